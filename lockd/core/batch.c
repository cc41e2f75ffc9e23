#include "lockd/core/batch.h"

enum { COUNT_AT = 8 + 2 + 1 + 8, HEAD_BYTES = COUNT_AT + 4 };

void batch_begin(struct buf *b, struct ballot ballot, bool first, uint64_t stamp_ms) {
    buf_clear(b);
    wire_put_u64(b, ballot.round);
    wire_put_u16(b, ballot.node);
    wire_put_u8(b, first);
    wire_put_u64(b, stamp_ms);
    wire_put_u32(b, 0);
}

uint32_t batch_count(const struct buf *b) {
    must(b->bytes >= HEAD_BYTES);
    struct wire w = wire_of(slice_of(b->data + COUNT_AT, 4));
    return wire_u32(&w);
}

void batch_add(struct buf *b, struct origin origin, uint32_t argc, const struct slice *argv) {
    must(argc > 0 && argc <= BATCH_ARGC_MAX);
    const uint32_t count = batch_count(b) + 1;
    for (int i = 0; i < 4; i++) b->data[COUNT_AT + i] = (char)(count >> (8 * i));
    wire_put_u16(b, origin.node);
    wire_put_u64(b, origin.boot);
    wire_put_u64(b, origin.seq);
    wire_put_u32(b, argc);
    for (uint32_t i = 0; i < argc; i++) wire_put_bytes(b, argv[i]);
}

bool batch_read(struct wire *w, struct slice value, struct batch_head *ret_head) {
    *w = wire_of(value);
    struct batch_head head;
    head.ballot.round = wire_u64(w);
    head.ballot.node = wire_u16(w);
    head.first = wire_u8(w) != 0;
    head.stamp_ms = wire_u64(w);
    head.count = wire_u32(w);
    if (w->bad) return false;
    *ret_head = head;
    return true;
}

bool batch_next(struct wire *w, struct origin *ret_origin, uint32_t *ret_argc, struct slice *argv) {
    ret_origin->node = wire_u16(w);
    ret_origin->boot = wire_u64(w);
    ret_origin->seq = wire_u64(w);
    const uint32_t argc = wire_u32(w);
    if (w->bad || argc == 0 || argc > BATCH_ARGC_MAX) return false;
    for (uint32_t i = 0; i < argc; i++) argv[i] = wire_bytes(w);
    *ret_argc = argc;
    return !w->bad;
}

bool batch_is_whole(struct slice value) {
    struct wire w;
    struct batch_head head;
    if (value.bytes == 0 || paxos_is_blank(value)) return true;
    if (!batch_read(&w, value, &head)) return false;
    for (uint32_t i = 0; i < head.count && !w.bad; i++) {
        (void)wire_u16(&w);
        (void)wire_u64(&w);
        (void)wire_u64(&w);
        const uint32_t argc = wire_u32(&w);
        if (argc == 0 || argc > BATCH_ARGC_MAX) return false;
        for (uint32_t k = 0; k < argc; k++) (void)wire_bytes(&w);
    }
    return wire_done(&w);
}

void batch_set_stamp(struct buf *b, uint64_t stamp_ms) {
    must(b->bytes >= HEAD_BYTES);
    for (int i = 0; i < 8; i++) b->data[8 + 2 + 1 + i] = (char)(stamp_ms >> (8 * i));
}
