#include "common/io/heap.h"
#include <malloc.h>
#include <stdlib.h>

static size_t in_use; /* core runs on one thread; other threads have their own memory */

static void *heap_resize(void *context, void *memory, size_t bytes) {
    (void)context;
    const size_t before = memory != NULL ? malloc_usable_size(memory) : 0;
    if (bytes == 0) {
        free(memory);
        in_use -= before;
        return NULL;
    }
    void *fresh = realloc(memory, bytes);
    if (fresh != NULL) in_use += malloc_usable_size(fresh) - before;
    return fresh;
}

const struct alloc *heap_alloc(void) {
    static const struct alloc alloc = {.resize = heap_resize};
    return &alloc;
}

size_t heap_bytes_in_use(void) {
    return in_use;
}
