/* bindings.h - which backend each session of this proxy lives on, and how sure that is.
 *
 * Place in the flow:  session key -> [bindings] -> questions to lockd, connections to backends
 *
 * The session table and the proxy's half of the lookup protocol: a binding that lockd handed out (ROUTE.BIND, GET,
 * MOVE) is *held* under the proxy's one lease; only ROUTE.NEXT *covers* the holds.  Cary G. Gray and David R.
 * Cheriton's leases (1989) give the idea, Yin, Alvisi, Dahlin and Lin's volume leases (1999) the one lease for many
 * objects, Burrows' Chubby (2006) the KeepAlive that carries the invalidations.
 *
 * Pure: the time comes in with each input, questions and connections go out in a queue, memory comes from the config.
 * Connections are the caller's memory: it embeds one `struct bindings_conn` in each of its sessions.
 *
 * What always holds:
 *   V1  Class exclusive is served only while now < cover: the time the last ROUTE.NEXT whose reply was processed was
 *       given out, plus the ttl, less clock_drift_ppm of it.  Connections are cut (no-cover) BINDINGS_CUT_PERMILLE of
 *       the ttl earlier, so that the backends have seen the end before anyone else may begin.
 *   V2  What a revocation names is let go before it is acknowledged: in the queue every CLOSE and RETRACT it causes
 *       comes before the ROUTE.NEXT with its serial.
 *   V3  A reply whose revision is at or below the highest serial seen is not held but asked again: the hold it
 *       speaks of may be the one that was just given up.
 *   V4  At most one question per session is out, and none other is asked before its outcome is known.  Where a late
 *       copy of a command of ours could end a hold of ours behind our back (a MOVE or a DROP that perhaps ran), the
 *       session is not served again under the same lease (state DOUBT).
 *   V5  A session's connections all go to the session's one backend.  Before a MOVE is asked they are cut.
 *   V6  A hold counts only if it was asked for under cover and the cover has not lapsed since.  A lapse voids all holds
 *       and the replies to all questions that are out: a move may have passed us over in the meantime, and nothing that
 *       reaches us afterwards has to say so.
 *   V7  Every queue and table has a limit in bindings_config; when one is full we refuse, we never grow.
 *   V8  Every connection that was taken is in the end either live, or closed by exactly one CLOSE.
 *
 *  state       what may be relied on                            goes to
 *  UNKNOWN     nothing; a last known backend may be remembered  ASKING MOVING LOOSE
 *  ASKING      one BIND or GET is out; nothing is served        HELD UNKNOWN RECHECKING
 *  HELD        lockd's word, unlapsed since (V6); served         UNKNOWN MOVING DROPPING LOOSE
 *              while covered
 *  MOVING      a MOVE is or was out; no connection exists       HELD UNKNOWN DOUBT
 *  DROPPING    a DROP is out; no connection is served           UNKNOWN HELD DOUBT
 *  DOUBT       a late DROP or MOVE may still run                UNKNOWN (with the next lease)
 *  LOOSE       class sticky without cover: served, unconfirmed  UNKNOWN RECHECKING
 *  RECHECKING  as LOOSE, and a BIND is out                      HELD LOOSE */
#pragma once
#include "common/alloc.h"
#include "common/must.h"
#include "common/slice.h"
#include "proxy/core/close_reason.h"
#include "proxy/core/placement.h"
#include <sys/queue.h>

enum { BINDINGS_CUT_PERMILLE = 50, BINDINGS_POOLS_MAX = 256 };

enum bindings_class { BINDINGS_STICKY, BINDINGS_EXCLUSIVE };

struct bindings_pool_config {
    struct slice name;
    enum bindings_class class;
    uint32_t subset;                        /* backends a session may live on, 1..PLACEMENT_SHARD_MAX */
    uint32_t load_bound_percent;            /* e of (1+e) times the mean load */
    uint32_t ask_timeout_ms;                /* how long a connection waits for its backend */
    uint32_t member_count;                  /* 1..PLACEMENT_MEMBERS_MAX */
    const struct placement_member *members; /* name, weight and draining are used; copied */
};
struct bindings_config {
    const struct alloc *alloc;
    uint32_t pool_count;                      /* 1..BINDINGS_POOLS_MAX */
    const struct bindings_pool_config *pools; /* copied */
    uint32_t clock_drift_ppm;
    uint32_t sessions_max;   /* known at one time, idle ones included */
    uint32_t asks_max;       /* BIND, GET, DROP and TOUCH out at one time */
    uint32_t moves_max;      /* MOVE out at one time */
    uint32_t idle_drop_ms;   /* a session without connections is given back after so long */
    uint32_t touch_ms;       /* a session with connections is confirmed by ROUTE.TOUCH this often */
    uint32_t loose_after_ms; /* class sticky: after cover was lost, wait so long before serving unconfirmed */
    uint32_t loose_start_ms; /* the same after the start, before there was any cover */
    uint64_t seed;           /* of the hash table, against chosen collisions */
};

/* One connection of a client.  Zero it before the first use; only this module writes it, except `owner`. */
enum bindings_conn_state { BINDINGS_CONN_NONE, BINDINGS_CONN_WAITING, BINDINGS_CONN_CONNECTING, BINDINGS_CONN_LIVE };
struct bindings_entry;
struct bindings_conn {
    void *owner; /* the caller's */
    enum bindings_conn_state state;
    bool direct_tried; /* its backend was tried although it counts as down */
    bool unconfirmed;  /* connected without cover */
    uint64_t deadline_ms;
    struct bindings_entry *entry;
    TAILQ_ENTRY(bindings_conn) of_entry, of_waiting;
};

/* Work for the caller, in this order. */
enum bindings_output_kind {
    BINDINGS_CLOSE,         /* conn, reason: end it now, both sides; it is no longer ours */
    BINDINGS_RETRACT,       /* conn: give up its backend connection (which has carried nothing); it waits again */
    BINDINGS_CONNECT,       /* conn, member, epoch, unconfirmed: connect, then bindings_connected or _connect_failed */
    BINDINGS_ASK_NEXT,      /* lease, serial: ROUTE.NEXT; answer with bindings_next or bindings_next_failed */
    BINDINGS_ASK_BIND,      /* op, lease, member = first, shard: ROUTE.BIND; bindings_binding or _failed */
    BINDINGS_ASK_GET,       /* op, lease: ROUTE.GET; bindings_binding, bindings_absent or bindings_failed */
    BINDINGS_ASK_MOVE,      /* op, lease, epoch, member = target: ROUTE.MOVE, never repeated; _binding or _failed */
    BINDINGS_ASK_DROP,      /* op, lease, epoch: ROUTE.DROP, never repeated; bindings_dropped or bindings_failed */
    BINDINGS_ASK_TOUCH,     /* op, lease: ROUTE.TOUCH of one session; bindings_touched or bindings_failed */
    BINDINGS_ASK_SUSPECT,   /* lease, pool, member: ROUTE.SUSPECT, epoch 0; bindings_suspected */
    BINDINGS_REPLACE_LEASE, /* revoke the lease and get another: bindings_lease_lost, then _granted */
    BINDINGS_SAY_BOUND,     /* for the log: pool, session, member, epoch, is_new */
    BINDINGS_SAY_MOVED,     /* for the log: pool, session, from, member, epoch */
    BINDINGS_SAY_COVERED,   /* for the log */
    BINDINGS_SAY_UNCOVERED
};
struct bindings_output {
    enum bindings_output_kind kind;
    enum close_reason reason;
    struct bindings_conn *conn;
    struct slice session;  /* borrowed until bindings_take has said false */
    const uint16_t *shard; /* the same; indexes of members */
    uint32_t shard_count;
    uint16_t pool, member, from; /* indexes; `from` is PLACEMENT_NONE for a backend the config does not name */
    bool is_new, unconfirmed;
    uint64_t op, epoch, serial;
    int64_t lease;
};

struct bindings_counters {
    uint64_t bound, moved, moves_refused, revoked, asked_again, split_possible, uncovered, leases_replaced;
};

struct bindings;

/* Copies the config.  A config out of range is a programmer error.  NULL never. */
struct bindings *bindings_new(const struct bindings_config *config, uint64_t now_ms);
/* Connections still known are forgotten, not closed.  NULL is fine. */
void bindings_free(struct bindings *b);

/* The next piece of work; false when there is none.  Inputs may be given between two takes. */
NODISCARD bool bindings_take(struct bindings *b, struct bindings_output *ret_output);

/* ---- connections ---- */
enum bindings_verdict { BINDINGS_TAKEN, BINDINGS_FULL /* sessions_max; the caller closes with table-full */ };
/* conn wants `session` (1..255 bytes, copied) of `pool`; conn->state is NONE. */
NODISCARD enum bindings_verdict bindings_want(struct bindings *b, uint64_t now_ms, struct bindings_conn *conn,
                                              uint32_t pool, struct slice session);
/* The outcome of CONNECT.  After `connected` the queue may hold the CLOSE of that very conn. */
void bindings_connected(struct bindings *b, uint64_t now_ms, struct bindings_conn *conn);
void bindings_connect_failed(struct bindings *b, uint64_t now_ms, struct bindings_conn *conn);
/* The caller ended it by itself.  In state NONE nothing happens. */
void bindings_gone(struct bindings *b, uint64_t now_ms, struct bindings_conn *conn);
/* Asked before every write towards a backend, with a fresh sample of the clock (V1). */
bool bindings_may_write(const struct bindings *b, uint64_t now_ms, const struct bindings_conn *conn);

/* ---- lockd ---- */
void bindings_lease_granted(struct bindings *b, uint64_t now_ms, int64_t lease);
void bindings_lease_lost(struct bindings *b, uint64_t now_ms);

struct bindings_revocation {
    uint32_t pool;
    struct slice session; /* read during the call only */
    uint64_t epoch;       /* the one that ends */
};
/* The reply to the NEXT given out last.  `lease` is the one it was asked under; another one is ignored. */
void bindings_next(struct bindings *b, uint64_t now_ms, int64_t lease, uint32_t ttl_ms, uint64_t serial,
                   const struct bindings_revocation *revocations, uint32_t count);
void bindings_next_failed(struct bindings *b, uint64_t now_ms, int64_t lease);

struct bindings_reply {
    struct slice backend; /* names */
    uint64_t epoch, revision;
    bool is_new;
    const struct slice *shard;
    uint32_t shard_count; /* more than PLACEMENT_SHARD_MAX are cut */
};
/* Outcomes of a question.  An `op` that is no longer waited for is ignored. */
void bindings_binding(struct bindings *b, uint64_t now_ms, uint64_t op, const struct bindings_reply *reply);
void bindings_absent(struct bindings *b, uint64_t now_ms, uint64_t op);
void bindings_dropped(struct bindings *b, uint64_t now_ms, uint64_t op);
void bindings_touched(struct bindings *b, uint64_t now_ms, uint64_t op, uint64_t epoch);
enum bindings_failure {
    BINDINGS_NOT_RUN,    /* lockd did not run it; ask again */
    BINDINGS_UNCERTAIN,  /* it may have run, or may run later */
    BINDINGS_IN_SERVICE, /* MOVE: too few proxies suspect the backend */
    BINDINGS_REFUSED     /* refused for what it says */
};
void bindings_failed(struct bindings *b, uint64_t now_ms, uint64_t op, enum bindings_failure failure);
/* The reply to ROUTE.SUSPECT; (0, 0) when it failed. */
void bindings_suspected(struct bindings *b, uint64_t now_ms, int64_t lease, uint32_t pool, uint32_t member,
                        uint64_t suspecting, uint64_t joined);

/* ---- backends and time ---- */
void bindings_backend_up(struct bindings *b, uint64_t now_ms, uint32_t pool, uint32_t member);
void bindings_backend_down(struct bindings *b, uint64_t now_ms, uint32_t pool, uint32_t member);
void bindings_tick(struct bindings *b, uint64_t now_ms);
/* Give a tick no later than this. */
uint64_t bindings_wake_at_ms(const struct bindings *b);

/* ---- to look at ---- */
const struct bindings_counters *bindings_counters(const struct bindings *b);
uint32_t bindings_session_count(const struct bindings *b);
bool bindings_is_covered(const struct bindings *b, uint64_t now_ms);
