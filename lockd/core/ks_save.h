/* ks_save.h - the stream that keyspace_save writes and keyspace_load reads, for the files that own parts of the state
 * (ks_save.c, route_save.c).  Internal to them.
 *
 * The stream is cut into blocks without regard to what is in it: u32 bytes of the payload, u64 XXH3 of it, payload.
 * Only the first and the last block stand by themselves.  Integers are little-endian.
 *
 * Loading trusts nothing: the first thing that is wrong sets `bad`, and from then on everything reads as zero, so that
 * loops end by their counts and a part is checked where it matters.  What was built by then is always whole enough for
 * keyspace_free. */
#pragma once
#include "lockd/core/ks_state.h"

enum { KS_BLOCK_BYTES_MAX = KEYSPACE_BLOCK_BYTES_MAX, KS_BLOCK_HEAD_BYTES = 12, KS_SAVED_NAME_BYTES_MAX = 65536 };

struct ks_saver {
    int (*put)(void *context, struct slice bytes);
    void *context;
    int result; /* not 0: stopped; what is put from here on goes nowhere */
    uint32_t blocks;
    size_t bytes; /* of the block being filled, its head included */
    char *block;
};
void ks_put(struct ks_saver *s, const void *data, size_t bytes);
void ks_put_u8(struct ks_saver *s, uint8_t value);
void ks_put_u16(struct ks_saver *s, uint16_t value);
void ks_put_u32(struct ks_saver *s, uint32_t value);
void ks_put_u64(struct ks_saver *s, uint64_t value);
/* With their length before them. */
void ks_put_bytes(struct ks_saver *s, struct slice bytes);

void ks_put_once(struct ks_saver *s, struct ks_once_key key);

struct ks_loader {
    struct keyspace *ks;
    const char *at, *end; /* what is left of the block at hand */
    struct slice rest;    /* the blocks after it */
    uint32_t blocks;      /* opened */
    bool bad;
    char *error; /* of error_bytes; says what was bad first */
    size_t error_bytes;
    struct buf words; /* what ks_take_words gathers */
};
/* False, and the stream is bad, unless `good`. */
bool ks_take_check(struct ks_loader *l, bool good, const char *what);
/* Not less than the bytes that are left to take. */
static inline size_t ks_left(const struct ks_loader *l) {
    return (size_t)(l->end - l->at) + l->rest.bytes;
}
void ks_take(struct ks_loader *l, void *to, size_t bytes);
uint8_t ks_take_u8(struct ks_loader *l);
uint16_t ks_take_u16(struct ks_loader *l);
uint32_t ks_take_u32(struct ks_loader *l);
uint64_t ks_take_u64(struct ks_loader *l);
struct ks_once_key ks_take_once(struct ks_loader *l);
/* A revision that was given out. */
uint64_t ks_take_revision(struct ks_loader *l);
/* A length that is at most `most` and not more than what is left. */
uint32_t ks_take_length(struct ks_loader *l, uint32_t most);
/* `count` byte strings with their lengths, each at most `most`; they live until the next call.  All empty when bad. */
void ks_take_words(struct ks_loader *l, uint32_t count, uint32_t most, struct slice *ret_words);

/* The bindings' part. */
void route_save(const struct route *r, struct ks_saver *s);
void route_load(struct route *r, struct ks_loader *l);
