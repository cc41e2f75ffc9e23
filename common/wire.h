/* wire.h - little-endian integers and length-prefixed bytes, for log values and peer frames.
 *
 * Reading never goes past the end: the first short or over-long read sets `bad` and everything after reads as zero,
 * so a decoder checks once, at the end. */
#pragma once
#include "common/buf.h"

struct wire {
    const char *at, *end;
    bool bad;
};

static inline struct wire wire_of(struct slice s) {
    return (struct wire){.at = s.data, .end = s.bytes > 0 ? s.data + s.bytes : s.data, .bad = false};
}
uint8_t wire_u8(struct wire *w);
uint16_t wire_u16(struct wire *w);
uint32_t wire_u32(struct wire *w);
uint64_t wire_u64(struct wire *w);
/* A u32 length and that many bytes; borrowed from the input. */
struct slice wire_bytes(struct wire *w);
/* True when nothing was short and nothing is left over. */
static inline bool wire_done(const struct wire *w) {
    return !w->bad && w->at == w->end;
}

void wire_put_u8(struct buf *b, uint8_t value);
void wire_put_u16(struct buf *b, uint16_t value);
void wire_put_u32(struct buf *b, uint32_t value);
void wire_put_u64(struct buf *b, uint64_t value);
void wire_put_bytes(struct buf *b, struct slice s);
