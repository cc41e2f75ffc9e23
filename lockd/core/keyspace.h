/* keyspace.h - the replicated state: what the numbered log says is true.
 *
 * Place in the flow:  Paxos -> numbered log -> [keyspace] -> replies and facts
 *
 * Pure and deterministic: the same batches in the same order give the same state, replies and facts on every node.
 * Time is the stamp of the batch being applied (cluster time, T2), never the caller's clock.
 *
 * What always holds:
 *   K1  Every executed command that may change something gets the next revision (F); fences, versions, lease ids and
 *       epochs are revisions, so they only grow, for ever.
 *   K2  A batch built under a lower ballot than the last first entry applied is void whole (P6); so is what a leader
 *       built after a slot of its own that was lost, and filled by another: its clients' order would be turned.
 *   K3  Stamps never go down: a batch is judged at max(its stamp, the last one).  Everything due at that stamp (keys,
 *       waits) ends before the first command of the batch, in order of deadline, then of creation.
 *   K4  A grant checks the waiter's lease at apply; nobody is granted a lock with a lease that is gone.
 *   K5  Growth is refused by `settings` (replicated), as -BUSY with the name of the limit, which did not run.
 *   K6  One thing per name: a string, a lock or a register.  A lock that is free and has no waiters is absent.
 *   K7  A write to a register is -WRITEONCE, whatever the command. */
#pragma once
#include "common/alloc.h"
#include "common/buf.h"
#include "common/must.h"
#include "lockd/core/batch.h"
#include "lockd/core/membership.h"

/* Limits and times that change a command's outcome: seeded by the first entry of a cluster, then the same everywhere.
 * SETTING(name, default, lowest, highest, "unit", "what it is") */
#define KEYSPACE_SETTINGS(SETTING)                                                                                     \
    SETTING(key_bytes_max, 500, 16, 65536, "bytes", "longest key, lock, pool, session or backend name")                \
    SETTING(value_bytes_max, 1048576, 64, 1048576, "bytes", "longest value")                                           \
    SETTING(keys_max, 10000000, 1, 1000000000, "keys", "strings, locks and registers together")                        \
    SETTING(memory_max, 4294967296, 1048576, 1099511627776, "bytes", "keys and values together")                       \
    SETTING(leases_max, 2000000, 1, 100000000, "leases", "leases alive")                                               \
    SETTING(waiters_max, 10000, 1, 1000000, "waiters", "waiting for one lock or one session")                          \
    SETTING(scripts_max, 1000, 1, 100000, "scripts", "cached scripts")                                                 \
    SETTING(bindings_max, 5000000, 1, 100000000, "bindings", "recorded sessions of all pools")                         \
    SETTING(binding_memory_ms, 3600000, 1000, 31536000000, "ms", "how long an unheld binding is remembered")           \
    SETTING(suspect_window_ms, 3000, 200, 3600000, "ms", "how long a report of ROUTE.SUSPECT counts")

struct ks_settings {
#define SETTING(name, value, low, high, unit, text) uint64_t name;
    KEYSPACE_SETTINGS(SETTING)
#undef SETTING
};
void ks_settings_default(struct ks_settings *s);

struct ks_config {
    const struct alloc *alloc;
    uint16_t node; /* replies are formatted only for commands of this node and boot */
    uint64_t boot;
};

/* What an applied batch caused, in order, for the caller's volatile half.  Slices live until the next keyspace_apply.
 */
enum ks_fact_kind {
    KS_REPLY,         /* origin (always of this node and boot): answer its client with `reply` (RESP) */
    KS_QUEUED,        /* origin (this node and boot): it ran and waits; a KS_REPLY follows some day */
    KS_FIRST,         /* the first entry of `ballot` was applied: its leader now serves (P9) */
    KS_LEASE_NEW,     /* id, ttl_ms: counts from now */
    KS_LEASE_GONE,    /* id */
    KS_LEASE_RENEWED, /* id: no remaining time of it is logged any more */
    KS_SCRIPT_VOID,   /* origin (any; every node is told): what its script read has changed; nothing of it was executed:
                         the leader runs it again */
    KS_MOVE_ASKED, /* id = revision of the move that now stalls: from here on no NEXT covers that binding; set limits of
                      its holders */
    KS_MEMBERS,    /* who belongs to the cluster, or an address of theirs, changed: ask keyspace_members */
    KS_MOVE_DONE   /* id = revision of the move that no longer stalls */
};
struct ks_fact {
    enum ks_fact_kind kind;
    struct origin origin;
    struct ballot ballot;
    uint64_t id;
    uint64_t ttl_ms;
    struct slice reply;
};
struct ks_facts {
    const struct ks_fact *facts;
    uint32_t count;
};

struct keyspace;
struct keyspace *keyspace_new(const struct ks_config *config);
void keyspace_free(struct keyspace *ks);

/* Apply the value of the next slot (an empty value is a no-op).  `slot` must be the last one + 1.  A value that is not
 * a batch is a programmer error here: checksums and admission keep it out.  ret_facts lives until the next call. */
void keyspace_apply(struct keyspace *ks, paxos_slot slot, struct slice value, struct ks_facts *ret_facts);

/* ---- the whole state as bytes (D2) ---- */
/* The whole replicated state as of keyspace_slot, as checksummed blocks of at most 64 KiB: a first block that says what
 * it is and which slot, a last one with the number of blocks and keyspace_hash.  Deterministic: equal logs give equal
 * bytes.  `put` gets whole blocks, borrowed, and returns non-zero to stop; that is returned, else 0.  Changes nothing
 * and needs 64 KiB of memory, so it may run in a process of its own (fork) while this one goes on. */
int keyspace_save(const struct keyspace *ks, int (*put)(void *context, struct slice bytes), void *context);
/* The state that was saved: from here on it does what the saved one does, to the byte.  NULL: the bytes are damaged, of
 * another format, or contradict themselves; `error` says what, in one line.  Whatever the bytes are, no memory is taken
 * that is not in proportion to them. */
struct keyspace *keyspace_load(const struct ks_config *config, struct slice bytes, char *error, size_t error_bytes);
/* The slot named by the first block, which is all that is looked at (KEYSPACE_BLOCK_BYTES_MAX are always enough).
 * False: damaged, or of another format. */
enum { KEYSPACE_BLOCK_BYTES_MAX = 65536 };
NODISCARD bool keyspace_saved_slot(struct slice bytes, paxos_slot *ret_slot);

enum ks_read_verdict {
    KS_READ_DONE,       /* the reply is appended */
    KS_READ_NEEDS_STAMP /* the answer hangs on an expiry that the log does not show yet: have an entry with a stamp
                           >= *ret_stamp_ms applied, then ask again (T3).  Nothing was appended */
};
/* Run a COMMAND_READ from applied state; stamp_ms is the leader's cluster time now (>= the last stamp applied). */
NODISCARD enum ks_read_verdict keyspace_read(struct keyspace *ks, uint64_t stamp_ms, uint32_t argc,
                                             const struct slice *argv, struct buf *reply, uint64_t *ret_stamp_ms);

/* ---- scripts (leader only) ---- */
enum ks_script_verdict {
    KS_SCRIPT_PROPOSE, /* `effects` holds a %SCRIPT command's argv (see script.h); propose it under the script's origin
                        */
    KS_SCRIPT_REFUSED, /* `effects` holds a RESP reply: nothing ran (NOSCRIPT, bad numkeys, compile error ...) */
    KS_SCRIPT_NEEDS_STAMP /* as KS_READ_NEEDS_STAMP */
};
struct ks_effects {
    struct buf bytes;   /* the argv's bytes, or the reply */
    struct slice *argv; /* KS_SCRIPT_PROPOSE: argc slices into bytes; from alloc, released by ks_effects_release */
    uint32_t argc;
};
/* Run EVAL or EVALSHA on applied state at stamp_ms without changing it. */
NODISCARD enum ks_script_verdict keyspace_script(struct keyspace *ks, uint64_t stamp_ms, uint32_t argc,
                                                 const struct slice *argv, struct ks_effects *effects,
                                                 uint64_t *ret_stamp_ms);
void ks_effects_release(struct ks_effects *effects);

/* ---- what the leader's memory (keeper.h) and INFO ask ---- */
uint64_t keyspace_revision(const struct keyspace *ks);
paxos_slot keyspace_slot(const struct keyspace *ks);
/* The highest stamp applied: the base of a new leader's cluster time (T2). */
uint64_t keyspace_stamp(const struct keyspace *ks);
/* The ballot of the last first entry applied; round 0 before any. */
struct ballot keyspace_ballot(const struct keyspace *ks);
/* The next stamp at which a key or a wait ends; UINT64_MAX if none.  Bindings' memory does not count: it ends by and
 * by. */
uint64_t keyspace_next_due(const struct keyspace *ks);
const struct ks_settings *keyspace_settings(const struct keyspace *ks);
/* False before %SETTINGS was applied; then the first entry of a leader carries it. */
bool keyspace_has_settings(const struct keyspace *ks);
struct ks_counts {
    uint64_t keys, leases, waiters, bindings, scripts, memory_bytes;
};
void keyspace_counts(const struct keyspace *ks, struct ks_counts *ret_counts);
/* XXH3 over the whole replicated state in a fixed order: equal on equal logs. */
uint64_t keyspace_hash(const struct keyspace *ks);

/* Who belongs to the cluster, as the log says it (P10). */
enum { KS_CONFIG_DELAY = 64, KS_ADDRESS_BYTES = 64 };
struct ks_members {
    struct membership now;  /* governs keyspace_slot + 1; no voters: not known before %MEMBERS was applied */
    struct membership next; /* governs from next.slot + KS_CONFIG_DELAY on, if has_next; else all zero */
    bool has_next;
    char addresses[PAXOS_NODES_MAX][KS_ADDRESS_BYTES]; /* HOST:PORT of the peer links of whom now or
                                                        * next names, or empty */
};
const struct ks_members *keyspace_members(const struct keyspace *ks);

bool keyspace_lease(const struct keyspace *ks, uint64_t id, uint64_t *ret_ttl_ms);
/* The remaining time of that lease as the log says it (L4): at most so much was left when it was proposed, and nobody
 * was told of a renewal since.  0: none is logged, or the lease is gone. */
uint64_t keyspace_lease_remaining(const struct keyspace *ks, uint64_t id);
/* A map as LEASE.INFO answers it, with the remaining time the leader knows; nil if it is gone. */
void keyspace_lease_info(const struct keyspace *ks, uint64_t id, uint64_t remaining_ms, struct buf *reply);
/* Every lease in order of grant; fn returns false to stop. */
void keyspace_each_lease(const struct keyspace *ks, bool (*fn)(void *context, uint64_t id, uint64_t ttl_ms),
                         void *context);
/* Every (node, boot) that has waiters attached. */
void keyspace_each_attachment(const struct keyspace *ks, void (*fn)(void *context, uint16_t node, uint64_t boot),
                              void *context);
/* Every wait attached to that life: for a lock or for the end of a move. */
void keyspace_each_wait(const struct keyspace *ks, uint16_t node, uint64_t boot,
                        void (*fn)(void *context, uint64_t seq), void *context);
struct route;
/* The bindings and moves (route.h). */
struct route *keyspace_route(struct keyspace *ks);
