/* route_state.h - the memory of the bindings: what route.c and route_save.c share and nobody else sees.  Whoever
 * includes it calls the route at hand `r`: its hash tables take memory and seed from there. */
#pragma once
#include <xxhash.h>
/* Hash tables take memory and seed from the route at hand.  Their order is that of arrival whatever the seed, so it may
 * differ from node to node, and does: users choose session names. */
#define uthash_malloc(bytes)                  alloc_get(r->alloc, (bytes))
#define uthash_free(memory, bytes)            alloc_put(r->alloc, (memory))
#define uthash_fatal(text)                    must_fail(__FILE__, __LINE__, (text))
#define HASH_FUNCTION(key, bytes, ret_result) (ret_result) = (unsigned)XXH3_64bits_withSeed((key), (bytes), r->seed)
#include "lockd/core/route.h"
#include "common/wire.h"
#include "lockd/core/ks_state.h"
#include <utlist.h>

struct hold {
    struct record *record;
    struct member *member;
    uint64_t given;           /* the how manieth hold that was ever given: the order within a member */
    struct hold *prev, *next; /* of the record */
    struct hold *member_prev,
        *member_next; /* of the member: in `stalled` while the record has a stall, else in `holds` */
};

struct record {
    UT_hash_handle hh;
    uint64_t epoch;
    uint64_t touched_ms;
    struct hold *holds;
    struct stall *stall;
    struct record *list_prev, *list_next; /* of the idle ones, or of the others */
    uint32_t hold_count;
    uint32_t key_bytes, pool_bytes, shard_bytes;
    uint8_t backend, shard_count; /* index in the shard; members */
    bool idle;
    char bytes[]; /* key (see pair_key), then the shard: wire_put_bytes of each member */
};

struct report {
    UT_hash_handle hh;
    uint64_t lease;
    uint64_t stamp_ms;
    struct suspect *suspect;
    struct report *member_prev, *member_next;
    struct report *age_prev, *age_next;
};

struct suspect {
    UT_hash_handle hh;
    struct report *reports; /* by lease */
    uint32_t key_bytes, pool_bytes;
    char key[]; /* pair_key of pool and backend */
};

struct member {
    UT_hash_handle hh;
    uint64_t lease;
    uint64_t hold_count;
    struct hold *holds;
    struct hold *stalled; /* in order of the moves that want them back */
    struct lost *lost;    /* by pair_key; in order of the moves */
    struct report *reports;
};

/* A hold that ended without its holder's word, because its limit had passed: named until it is acknowledged. */
struct lost {
    UT_hash_handle hh;
    uint64_t asked, epoch;
    uint32_t key_bytes, pool_bytes;
    char key[]; /* pair_key of pool and session */
};

/* One life of a node that has waiters attached. */
struct life {
    uint16_t node;
    uint64_t boot;
    uint64_t wait_count;
    struct life *prev, *next;
};

struct wait_key {
    uint64_t node, boot, seq;
};

struct wait {
    UT_hash_handle hh;
    struct wait_key key;
    struct origin origin;
    struct stall *stall;
    struct life *life;
    struct wait *prev, *next;
    struct ks_once_key once;
    ks_handler *handler;
    bool mover;
    size_t memory_bytes;
    uint32_t argc;
    struct slice argv[]; /* and the bytes they point to */
};

struct stall {
    UT_hash_handle hh; /* by asked; order of arrival = order of asked */
    uint64_t asked;    /* revision of the MOVE */
    struct record *record;
    uint8_t target;
    uint32_t wait_count;
    struct wait *waits;
};

/* What each counts against memory-max, besides the bytes of its names and words: constants, since two builds must not
 * disagree about when it is reached. */
enum {
    RECORD_BYTES = 160,
    HOLD_BYTES = 64,
    MEMBER_BYTES = 128,
    LOST_BYTES = 96,
    STALL_BYTES = 128,
    LIFE_BYTES = 48,
    WAIT_BYTES = 160,
    WAIT_WORD_BYTES = 16,
    SUSPECT_BYTES = 96,
    REPORT_BYTES = 144
};

enum { RECORD_TABLES = 1024, RECORD_TABLE_SHIFT = 22 };

enum run { RUN_FIRST, RUN_WAITED, RUN_MOVED /* the call whose move is done now */ };

struct route {
    struct keyspace *ks;
    const struct alloc *alloc;
    uint64_t seed;
    uint64_t memory_bytes; /* of everything below but the tables themselves */
    struct record
        *records[RECORD_TABLES]; /* by the high bits of the hash: no table is so large that doubling it is felt */
    uint64_t record_count;
    struct record *idle; /* longest settled first */
    struct record *busy; /* the others, in the same order */
    uint64_t holds_given;
    struct member *members;
    struct stall *stalls;
    struct wait *waits;
    struct life *lives;
    struct suspect *suspects;
    struct report *reports; /* oldest first */
    struct buf key;         /* scratch: a table key */
    struct buf shard;       /* scratch: the shard that a BIND names */
    enum run run;
};

/* ---- the parts, without any check: the caller has seen to it that there is room and none like it ---- */
/* Two names as one key, unambiguous; valid until the next call. */
struct slice route_pair_key(struct route *r, struct slice a, struct slice b);
struct record *route_record_find(struct route *r, struct slice pool, struct slice session);
/* In the tables, and in no list yet (route_record_settle). */
struct record *route_record_add(struct route *r, struct slice pool, struct slice session, struct slice shard,
                                uint8_t shard_count);
/* It was used, or a hold of it ended: its memory counts from now (V6), and it goes to the end of the list where it
 * belongs. */
void route_record_settle(struct route *r, struct record *rec, uint64_t stamp_ms);
struct member *route_member_find(const struct route *r, uint64_t lease);
/* Finds it, or makes it.  The lease is alive: leases-max limits how many members there are. */
struct member *route_member_join(struct route *r, uint64_t lease);
struct hold *route_hold_add(struct route *r, struct record *rec, struct member *m);
void route_lost_add(struct route *r, struct member *m, uint64_t asked, uint64_t epoch, struct slice pool,
                    struct slice session);
/* The holds of `rec` are wanted back from now on. */
struct stall *route_stall_add(struct route *r, struct record *rec, uint64_t asked, uint8_t target);
struct life *route_life_add(struct route *r, uint16_t node, uint64_t boot);
/* What a call that waits counts against memory-max. */
size_t route_wait_bytes(uint32_t argc, const struct slice *argv);
struct wait *route_wait_add(struct route *r, struct stall *stall, struct life *life, struct origin origin,
                            ks_handler *handler, bool mover, uint32_t argc, const struct slice *argv);
/* The report of `m` about that backend, whose suspect is made if there is none; goes to the end of the list. */
struct suspect *route_report_add(struct route *r, struct slice pool, struct slice backend, struct member *m,
                                 uint64_t stamp_ms);

bool route_has_report(struct route *r, struct slice pool, struct slice backend, uint64_t lease);

static inline struct slice record_pool(const struct record *rec) {
    return slice_of(rec->bytes + 4, rec->pool_bytes);
}
static inline struct slice record_session(const struct record *rec) {
    return slice_of(rec->bytes + 4 + rec->pool_bytes, rec->key_bytes - 4 - rec->pool_bytes);
}
static inline struct slice record_shard(const struct record *rec) {
    return slice_of(rec->bytes + rec->key_bytes, rec->shard_bytes);
}
