/* take.h - turns the bytes of a fuzz input into choices: small numbers from small domains, so that what happens twice
 * happens often.  Behind the end everything is 0. */
#pragma once
#include "lockd/core/membership.h"

struct take {
    const uint8_t *at, *end;
};

static inline bool take_more(const struct take *t) {
    return t->at < t->end;
}
static inline uint8_t take_u8(struct take *t) {
    return t->at < t->end ? *t->at++ : 0;
}
static inline uint8_t take_below(struct take *t, uint8_t bound) {
    return take_u8(t) % bound;
}
static inline struct slice take_bytes(struct take *t, size_t bytes) {
    if (bytes > (size_t)(t->end - t->at)) bytes = (size_t)(t->end - t->at);
    const struct slice s = slice_of(t->at, bytes);
    t->at += bytes;
    return s;
}
/* Mostly small, now and then at the edge of its type. */
static inline uint64_t take_number(struct take *t, uint8_t bound) {
    const uint8_t dice = take_u8(t);
    if (dice == 255) return UINT64_MAX;
    return dice == 254 ? UINT64_MAX - 1 : dice % bound;
}
static inline struct ballot take_ballot(struct take *t) {
    const uint64_t round = take_number(t, 8);
    const uint8_t who = take_u8(t); /* generation 0 mostly */
    return (struct ballot){.round = round, .node = member_number(who % PAXOS_NODES_MAX, who >= 240 ? who - 239 : 0)};
}
