#include "common/wire.h"
#include "common/must.h"

static uint64_t take(struct wire *w, size_t bytes) {
    if (w->bad || (size_t)(w->end - w->at) < bytes) {
        w->bad = true;
        return 0;
    }
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;) value = value << 8 | (uint8_t)w->at[i];
    w->at += bytes;
    return value;
}

static void put(struct buf *b, uint64_t value, size_t bytes) {
    char *at = buf_reserve(b, bytes);
    for (size_t i = 0; i < bytes; i++) at[i] = (char)(value >> (8 * i));
    b->bytes += bytes;
}

uint8_t wire_u8(struct wire *w) {
    return (uint8_t)take(w, 1);
}
uint16_t wire_u16(struct wire *w) {
    return (uint16_t)take(w, 2);
}
uint32_t wire_u32(struct wire *w) {
    return (uint32_t)take(w, 4);
}
uint64_t wire_u64(struct wire *w) {
    return take(w, 8);
}

struct slice wire_bytes(struct wire *w) {
    const size_t bytes = wire_u32(w);
    if (w->bad || (size_t)(w->end - w->at) < bytes) {
        w->bad = true;
        return slice_of(NULL, 0);
    }
    const struct slice s = slice_of(w->at, bytes);
    w->at += bytes;
    return s;
}

void wire_put_u8(struct buf *b, uint8_t value) {
    put(b, value, 1);
}
void wire_put_u16(struct buf *b, uint16_t value) {
    put(b, value, 2);
}
void wire_put_u32(struct buf *b, uint32_t value) {
    put(b, value, 4);
}
void wire_put_u64(struct buf *b, uint64_t value) {
    put(b, value, 8);
}
void wire_put_bytes(struct buf *b, struct slice s) {
    must(s.bytes <= UINT32_MAX);
    wire_put_u32(b, (uint32_t)s.bytes);
    buf_append_slice(b, s);
}
