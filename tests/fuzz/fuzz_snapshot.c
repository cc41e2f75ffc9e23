/* The bytes of a checkpoint: whatever they are, loading refuses them in one line or makes the very state that saves as
 * these bytes.  Each input is tried as it is, and again with its blocks' checksums made right, so that what lies behind
 * them is reached. */
#include <stdlib.h>
#include <xxhash.h>
#include "common/io/heap.h"
#include "lockd/core/keyspace.h"
#include "tests/fuzz/fuzz.h"

enum { HEAD_BYTES = 4 + 8 };

static int put(void *context, struct slice bytes) {
    buf_append_slice(context, bytes);
    return 0;
}

static void load(const char *data, size_t bytes) {
    const struct ks_config config = {.alloc = heap_alloc(), .node = 0, .boot = 1};
    char error[256] = "";
    paxos_slot slot = 0;
    const size_t before = heap_bytes_in_use();
    const bool named = keyspace_saved_slot(slice_of(data, bytes), &slot);
    struct keyspace *ks = keyspace_load(&config, slice_of(data, bytes), error, sizeof error);
    must((ks == NULL) == (error[0] != '\0') && strchr(error, '\n') == NULL);
    if (ks != NULL) {
        struct buf again = {.alloc = heap_alloc()};
        must(named && slot == keyspace_slot(ks));
        must(keyspace_save(ks, put, &again) == 0 && slice_equal(buf_slice(&again), slice_of(data, bytes)));
        buf_release(&again);
        keyspace_free(ks);
    }
    must(heap_bytes_in_use() == before);
}

static void make_right(char *data, size_t bytes) {
    for (size_t at = 0; at + HEAD_BYTES <= bytes;) {
        const uint8_t *head = (const uint8_t *)data + at;
        size_t payload = (size_t)head[0] | (size_t)head[1] << 8;
        if (payload > bytes - at - HEAD_BYTES) payload = bytes - at - HEAD_BYTES;
        const uint64_t sum = XXH3_64bits(data + at + HEAD_BYTES, payload);
        for (int i = 0; i < 4; i++) data[at + (size_t)i] = (char)(payload >> (8 * i));
        for (int i = 0; i < 8; i++) data[at + 4 + (size_t)i] = (char)(sum >> (8 * i));
        at += HEAD_BYTES + payload;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    char *exact = malloc(bytes + (bytes == 0));
    memcpy(exact, data, bytes);
    load(exact, bytes);
    make_right(exact, bytes);
    load(exact, bytes);
    free(exact);
    return 0;
}
