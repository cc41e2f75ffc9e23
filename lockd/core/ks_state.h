/* ks_state.h - the memory of the keyspace: what its files share (keyspace.c, ks_*.c, script.c) and nobody else sees.
 *
 * What always holds between two commands, beyond K1-K7:
 *   M1  A lock has a holder, and the holder's lease is alive: what ends a lease ends all that hangs on it.
 *   M2  Every waiter's lease is alive, and it stands in the queue of a name that is a string or somebody else's lock.
 *   M3  A name is vacant only inside the apply of a script: a script is atomic, so a name that it ends and makes again
 *       was never free for those who wait.
 *   M4  An overlay (ks_overlay_new) never changes its base. */
#pragma once
#include "lockd/core/ks_call.h"
#include "lockd/core/route.h"
#include <uthash.h>

#define KS_NEVER UINT64_MAX

enum {
    KS_WAITER_BYTES = 256, /* what a waiter counts against memory-max, besides its value */
    KS_ONCE_BYTES = 96,    /* what a remembered ONCE counts against it, besides its reply */
    KS_ONCE_MAX = 1024,    /* of one lease */
    KS_ONCE_REPLY_BYTES_MAX = 65536,
    KS_WAIT_MS_MAX = 86400000, /* one day, as the longest lease */
    KS_LEASE_TTL_MS_MIN = 1000,
    KS_LEASE_TTL_MS_MAX = 86400000,
    KS_SHA_BYTES = 40 /* the digest of a script, as text */
};

/* A place in the heap of deadlines, which is ordered by (at_ms, order). */
struct ks_due {
    uint64_t at_ms; /* KS_NEVER: not in the heap */
    uint64_t order; /* revision of the command that set it */
    uint32_t index;
    bool is_wait; /* embedded in a waiter, else in a name */
};

enum ks_type { KS_VACANT, KS_STRING, KS_LOCK, KS_REGISTER };

struct ks_waiter;
struct ks_lease;

/* One record per name (K6). */
struct ks_name {
    UT_hash_handle hh;
    struct ks_due due;                       /* strings only */
    uint64_t version;                        /* revision that wrote the value; of a lock: its token */
    uint64_t touched;                        /* revision that changed only the deadline since, or 0 */
    struct ks_lease *lease;                  /* goes with it; of a lock: the holder's; NULL: none */
    struct ks_name *lease_prev, *lease_next; /* of the lease's, or of those of none */
    struct ks_waiter *waiters;               /* first come first served; empty in an overlay */
    uint32_t waiter_count;
    uint32_t value_bytes;
    char *value;
    uint32_t key_bytes;
    uint8_t type; /* enum ks_type */
    char key[];
};

/* One life of a node that has waiters attached. */
struct ks_life {
    uint16_t node;
    uint64_t boot;
    struct ks_waiter *waiters;
    struct ks_life *prev, *next;
};

struct ks_waiter {
    struct ks_name *name;
    struct ks_lease *lease;
    struct ks_life *life;
    struct origin origin; /* the attachment (W) */
    struct ks_once_key once;
    uint64_t queued;   /* revision of the command that queued it: the order in the queue and in the lease */
    struct ks_due due; /* its order is that in the life: of the command that attached it last */
    char *value;
    uint32_t value_bytes;
    struct ks_waiter *prev, *next;             /* queue of the name */
    struct ks_waiter *lease_prev, *lease_next; /* of the lease */
    struct ks_waiter *life_prev, *life_next;   /* of the life */
};

struct ks_lease {
    uint64_t id;
    uint32_t ttl_ms;
    uint32_t remaining_ms; /* logged (L4); 0: none */
    uint32_t holder_bytes;
    uint32_t name_count, wait_count;
    struct ks_name *names;   /* strings and locks that go with it, in order of attachment */
    struct ks_waiter *waits; /* queue places that go with it */
    struct ks_once *once;    /* what was sent under it in a ONCE, seq ascending */
    uint32_t once_count;
    char holder[];
};

/* A command that runs at most once (ks_once.c). */
struct ks_once {
    uint64_t seq, digest;
    struct ks_once *prev, *next;
    char *reply;
    uint32_t bytes;
    bool done;
};

/* Leases stand in order of grant, which is the order of their ids: found by bisection, ended in place. */
struct ks_lease_place {
    uint64_t id;
    struct ks_lease *lease; /* NULL: gone */
};

struct ks_script_text {
    UT_hash_handle hh; /* insertion order is age */
    char sha[KS_SHA_BYTES + 1];
    uint32_t bytes;
    char text[];
};

struct keyspace {
    struct ks_config config;
    const struct keyspace *base; /* not NULL: an overlay for one script run */

    /* where the log stands */
    paxos_slot slot;
    uint64_t revision, stamp_ms;
    struct ballot ballot;
    struct ks_settings settings;
    bool has_settings;
    bool gap; /* K2: nothing counts until a first entry */
    struct ks_members members;

    struct ks_name **names; /* shard_mask + 1 hash tables: each grows by itself, so no growth stops us for long */
    uint32_t shard_mask;
    struct ks_name *unleased; /* names that go with no lease, in the order in which they came to be so */
    uint64_t name_count, lock_count, register_count; /* vacant ones do not count */
    uint64_t waiter_count, memory_bytes;
    uint64_t changes; /* grows with every change of a name: an overlay asks whether a command changed anything */
    struct ks_due **due;
    uint32_t due_count, due_capacity;
    struct ks_life *lives;

    struct ks_lease_place *leases;
    uint32_t place_count, place_capacity, lease_count;

    struct ks_script_text *scripts;
    struct script_engine *engine; /* not replicated; NULL: none made yet */
    struct route *route;          /* NULL in an overlay */

    /* the batch being applied */
    struct slice *argv;       /* BATCH_ARGC_MAX of them */
    bool defer_grants;        /* M3 */
    bool limits_off;          /* the leader checked them when it ran the script */
    struct ks_name **vacated; /* names whose grant is deferred */
    uint32_t vacated_count, vacated_capacity;
    struct ks_fact *facts;
    size_t *fact_replies; /* where in `replies` the reply of each fact begins */
    uint32_t fact_count, fact_capacity;
    struct buf replies, call_reply, answer;

    /* an overlay's: the leases it was asked for, alive or not */
    uint64_t *leases_seen;
    uint32_t leases_seen_count, leases_seen_capacity;
};

/* ---- names (ks_name.c) ---- */
/* NULL when there is none, or it is vacant. */
struct ks_name *ks_find(struct keyspace *ks, struct slice key);
/* The same for a read: an expiry at or before call->stamp_ms that the log does not show yet is noted in
 * call->needs_stamp_ms, and the answer is void (T3). */
struct ks_name *ks_peek(struct ks_call *call, struct slice key);
/* A string without value, for a key that ks_find does not find. */
struct ks_name *ks_make(struct keyspace *ks, struct slice key, enum ks_type type);
/* The same, but NULL if there is such a name already. */
struct ks_name *ks_make_first(struct keyspace *ks, struct slice key, enum ks_type type);
void ks_write(struct keyspace *ks, struct ks_name *name, struct slice value, uint64_t version);
/* Takes over `value`, which came from the allocator. */
void ks_write_owned(struct keyspace *ks, struct ks_name *name, char *value, uint32_t value_bytes, uint64_t version);
/* at_ms KS_NEVER: none. */
void ks_set_deadline(struct keyspace *ks, struct ks_name *name, uint64_t at_ms, uint64_t order);
/* NULL: of none. */
void ks_attach(struct keyspace *ks, struct ks_name *name, struct ks_lease *lease);
/* A string or lock ends: the first waiter gets the name as a lock, or the name is gone. */
void ks_end(struct keyspace *ks, struct ks_name *name);
/* Grant what was deferred since defer_grants was set, and clear it. */
void ks_grant_deferred(struct keyspace *ks);
/* A hash of all names, their waiters included, whatever their order in memory. */
uint64_t ks_names_hash(const struct keyspace *ks);
static inline struct slice ks_key(const struct ks_name *name) {
    return slice_of(name->key, name->key_bytes);
}
static inline struct slice ks_value(const struct ks_name *name) {
    return slice_of(name->value, name->value_bytes);
}
void ks_due_set(struct keyspace *ks, struct ks_due *due, uint64_t at_ms, uint64_t order);
/* End what is due at the stamp, in order (K3). */
void ks_end_due(struct keyspace *ks);
/* End every string; the caller has seen to it that there is nothing else. */
void ks_end_all(struct keyspace *ks);
void ks_names_init(struct keyspace *ks, uint32_t shard_count);
void ks_names_free(struct keyspace *ks);

/* ---- waiting (ks_lock.c) ---- */
/* The first waiter of a vacant name gets it. */
void ks_grant_next(struct keyspace *ks, struct ks_name *name);
/* A waiter at the end of the queue, without value, deadline and attachment yet. */
struct ks_waiter *ks_wait_add(struct keyspace *ks, struct ks_name *name, struct ks_lease *lease, uint64_t queued);
void ks_wait_attach(struct ks_waiter *w, struct ks_life *life, uint64_t seq);
struct ks_life *ks_life_add(struct keyspace *ks, uint16_t node, uint64_t boot);
/* Take a waiter out of its queue and free it; the caller answers it first. */
void ks_unwait(struct keyspace *ks, struct ks_waiter *w);

/* The end of its wait: the reply is kept for repeats of its ONCE, if it came in one. */
static inline void ks_wait_answer(struct keyspace *ks, const struct ks_waiter *w, struct slice reply) {
    ks_once_answer(ks, w->once, w->origin, reply);
}

/* ---- at most once (ks_once.c) ---- */
/* call->argv is ONCE lease seq command ...; false: refused, and the reply says why. */
bool ks_once_parse(struct ks_call *call, struct ks_once_key *ret_key);
/* What it was answered before, or why it cannot run, is in the reply; false: it has to run.  Once decided it stays so.
 */
bool ks_once_decided(struct ks_call *call, const struct ks_once_key *key);
/* The newest of that lease, open; the oldest goes if there are too many. */
struct ks_once *ks_once_add(struct keyspace *ks, struct ks_lease *lease, uint64_t seq, uint64_t digest);
void ks_once_set(struct keyspace *ks, struct ks_once *o, struct slice reply);
void ks_once_free(struct keyspace *ks, struct ks_lease *lease);

/* ---- leases (ks_lease.c) ---- */
/* NULL if it is gone.  In an overlay: the base's, not to be changed, and noted in leases_seen. */
struct ks_lease *ks_lease_find(const struct keyspace *ks, uint64_t id);
/* `id` is higher than that of every lease there ever was. */
struct ks_lease *ks_lease_add(struct keyspace *ks, uint64_t id, uint32_t ttl_ms, struct slice holder);
void ks_leases_free(struct keyspace *ks);

/* ---- members (ks_member.c) ---- */
/* A slot was applied: a change may be in effect now. */
void ks_members_settle(struct keyspace *ks);
/* All of it as bytes, for the hash and for keyspace_save; and back: false if they contradict themselves. */
void ks_members_put(const struct keyspace *ks, struct buf *b);
bool ks_members_take(struct keyspace *ks, struct slice bytes);
bool ks_is_address(struct slice s);

/* ---- checks shared by handlers (keyspace.c): each appends the error and returns false ---- */
/* May memory grow by `more` bytes, and, with new_key, a name be added? */
bool ks_room(struct ks_call *call, bool new_key, size_t more);
/* The same for writing value_bytes to a name that there is, or under a new key (name NULL). */
bool ks_room_to_write(struct ks_call *call, const struct ks_name *name, struct slice key, size_t value_bytes);
/* A value within value-bytes-max. */
bool ks_check_value(struct ks_call *call, struct slice value);
/* A string may be written there: not a register (-WRITEONCE), not a lock (-WRONGTYPE).  NULL is fine. */
bool ks_check_string(struct ks_call *call, const struct ks_name *name);
void ks_wrong_type(struct ks_call *call);
void ks_syntax_error(struct ks_call *call);
void ks_no_lease(struct ks_call *call, uint64_t id);

/* ---- handlers ---- */
ks_handler ks_cmd_get, ks_cmd_set, ks_cmd_del, ks_cmd_exists, ks_cmd_type, ks_cmd_ttl, ks_cmd_pttl, ks_cmd_expire,
    ks_cmd_pexpire, ks_cmd_persist, ks_cmd_incr, ks_cmd_dbsize, ks_cmd_flushall;        /* ks_string.c */
ks_handler ks_cmd_cas, ks_cmd_getv, ks_cmd_wor_set, ks_cmd_wor_get;                     /* ks_register.c */
ks_handler ks_cmd_lease_grant, ks_cmd_lease_revoke, ks_cmd_lease_list, ks_cmd_x_expire, /* ks_lease.c */
    ks_cmd_x_remaining, ks_cmd_x_renewed;
ks_handler ks_cmd_lock_acquire, ks_cmd_lock_release, ks_cmd_lock_check, ks_cmd_lock_info, /* ks_lock.c */
    ks_cmd_elect_campaign, ks_cmd_elect_leader, ks_cmd_elect_resign, ks_cmd_x_dequeue, ks_cmd_x_origin_gone;
ks_handler ks_cmd_script, ks_cmd_x_script;                                          /* script.c */
ks_handler ks_cmd_once, ks_cmd_x_once;                                              /* ks_once.c */
ks_handler ks_cmd_node_add, ks_cmd_node_remove, ks_cmd_x_members, ks_cmd_x_promote; /* ks_member.c */
/* The handler of call->argv if it may run here, else NULL and the reply says why.  `internal`: % commands too. */
ks_handler *ks_admit(struct ks_call *call, bool internal, const struct command **ret_command);

/* ---- overlays and scripts ---- */
/* A keyspace that begins empty and takes names from `base` one by one (ks_overlay_load); dropped by ks_overlay_free. */
struct keyspace *ks_overlay_new(const struct keyspace *base, uint64_t stamp_ms);
void ks_overlay_load(struct keyspace *overlay, struct slice key);
void ks_overlay_free(struct keyspace *overlay);
void ks_scripts_free(struct keyspace *ks);
/* Into the cache, unless it is there. */
void ks_script_add(struct keyspace *ks, struct slice text);
