#include "common/alloc.h"
#include "common/must.h"
#include <stdbool.h>
#include <string.h>

void *alloc_resize(const struct alloc *a, void *memory, size_t bytes) {
    must(bytes > 0);
    void *fresh = a->resize(a->context, memory, bytes);
    const bool out_of_memory = fresh == NULL; /* what must() shows */
    must(!out_of_memory);
    return fresh;
}

void *alloc_get(const struct alloc *a, size_t bytes) {
    return alloc_resize(a, NULL, bytes);
}

void *alloc_get0(const struct alloc *a, size_t bytes) {
    return memset(alloc_get(a, bytes), 0, bytes);
}

void alloc_put(const struct alloc *a, void *memory) {
    if (memory != NULL) a->resize(a->context, memory, 0);
}
