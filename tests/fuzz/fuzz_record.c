/* What a log's file may hold instead of an entry or the record "state": it is refused, or it is exactly what writing
 * would have made of it.  The decoders belong to the store alone, so this is compiled together with it.  Each input is
 * tried as it is, and again with its checksum made right. */
#include "lockd/io/store.c"
#include "tests/fuzz/fuzz.h"

static void entry(char *value, size_t bytes) {
    uint8_t key[8] = {0, 0, 0, 0, 0, 0, 0, (uint8_t)bytes};
    const MDB_val k = {.mv_size = sizeof key, .mv_data = key}, v = {.mv_size = bytes, .mv_data = value};
    struct paxos_entry e;
    uint64_t sum = 0;
    if (!entry_read(7, &k, &v, &e, &sum)) return;
    must(e.slot == (uint8_t)bytes && e.value.bytes == bytes - ENTRY_HEAD_BYTES);
    must(entry_sum(7, e.slot, e.ballot, e.value) == sum);
}

static void state(const char *value, size_t bytes) {
    struct state s = {.store_id = 0};
    if (state_read(slice_of(value, bytes), &s) != STATE_OK) return;
    char memory[STATE_BYTES];
    struct buf again = fixed(memory, sizeof memory);
    state_write(&s, &again);
    must(slice_equal(buf_slice(&again), slice_of(value, bytes)));
    must(s.record.cluster_id == 0 || membership_makes_sense(&s.record.members));
    must(s.cut <= s.chosen);
}

static void set_sum(char *value, uint64_t sum) {
    for (int i = 0; i < SUM_BYTES; i++) value[i] = (char)(sum >> (8 * i));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    char *exact = malloc(bytes + (bytes == 0));
    memcpy(exact, data, bytes);
    entry(exact, bytes);
    state(exact, bytes);
    if (bytes >= ENTRY_HEAD_BYTES) {
        struct wire w = wire_of(slice_of(exact + SUM_BYTES, bytes - SUM_BYTES));
        struct ballot b = {.round = wire_u64(&w)};
        b.node = wire_u16(&w);
        set_sum(exact, entry_sum(7, (uint8_t)bytes, b, slice_of(w.at, (size_t)(w.end - w.at))));
        entry(exact, bytes);
    }
    if (bytes >= SUM_BYTES) {
        set_sum(exact, XXH3_64bits(exact + SUM_BYTES, bytes - SUM_BYTES));
        state(exact, bytes);
    }
    free(exact);
    return 0;
}
