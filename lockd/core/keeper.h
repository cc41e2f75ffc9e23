/* keeper.h - what only the leader knows, and only while it leads: when leases run out, what proxies are covered for.
 *
 * Place in the flow:  renewals, facts of applied batches and the time -> [keeper] -> what to propose, whom to answer
 *
 * Pure.  Deadlines live here and in no log (L2): a leader change loses them, and the next leader counts anew (L4).
 *
 * What always holds:
 *   L2  Nothing here acknowledges anything unless the caller has checked the leader lease at that very now_ms.
 *   L3  From handing out an expiry until its outcome is applied, a renewal of that lease is PARKED.
 *   L4  A new leader counts every lease's full ttl, plus jitter of at most 1/20 ttl, from the moment its first entry
 * was applied; or the remaining time that is logged.  What remains is handed out for the log when a lease was silent
 *       for half its ttl, or for KEEPER_SILENT_MS since we began to lead, and again while it stays silent: so
 * elections, however many, keep no dead holder's lease alive. L6  From handing out a remaining time, or finding one in
 * the log, until an entry that clears it is applied, a renewal of that lease is PARKED, and makes us hand out the
 * clearing: the log never says less than a holder that was told of a renewal may believe.  A lease renewed every third
 * of its ttl costs the log nothing. C1  cover(lease) is at least the moment until which its holder may serve from
 * memory: arrival of the newest NEXT we answered + ttl; for a lease older than our leadership, at least our first entry
 * + ttl, or + what was logged (no NEXT was answered in the second half of the silence that it takes). C2  The limit of
 * a holder of a stalling move is its cover at the apply of *asked*; nothing moves it afterwards. */
#pragma once
#include "lockd/core/keyspace.h"
#include "lockd/core/route.h"

struct keeper;
struct keeper *keeper_new(const struct alloc *alloc, uint64_t seed);
void keeper_free(struct keeper *k);

/* Our first entry was applied: start from the state as it is. */
void keeper_lead(struct keeper *k, uint64_t now_ms, struct keyspace *ks);
/* Deposed: forget everything. */
void keeper_stop(struct keeper *k);
/* A fact of a batch applied while we lead. */
void keeper_fact(struct keeper *k, uint64_t now_ms, struct keyspace *ks, const struct ks_fact *fact);

enum keeper_verdict { KEEPER_KEPT, KEEPER_GONE, KEEPER_PARKED };
/* Renew.  KEPT: the deadline is now_ms + *ret_ttl_ms.  PARKED: ask again after the next KS_LEASE_GONE or
 * KS_LEASE_RENEWED. */
enum keeper_verdict keeper_renew(struct keeper *k, uint64_t now_ms, uint64_t lease, uint64_t *ret_ttl_ms);
/* Milliseconds left, 0 if past or unknown. */
uint64_t keeper_remaining(const struct keeper *k, uint64_t now_ms, uint64_t lease);

/* ---- ROUTE.NEXT ---- */
/* `lease` asks; `handle` names the call.  A call already held for the lease is returned in *ret_replaced (0: none) and
 * is to be answered now.  The call is due at now_ms + min(ttl/3, 5 s). */
void keeper_next_hold(struct keeper *k, uint64_t now_ms, uint64_t lease, uint64_t handle, uint64_t *ret_replaced);
/* The held call of that lease, 0 if none. */
uint64_t keeper_next_held(const struct keeper *k, uint64_t lease);
/* Has this leader answered a NEXT of that lease?  The first is answered at once: until then its holder is not covered,
 * or only by what an earlier leader said. */
bool keeper_next_known(const struct keeper *k, uint64_t lease);
/* The held call was answered: cover counts from its arrival. */
void keeper_next_answered(struct keeper *k, uint64_t lease, uint64_t arrival_ms);
/* The held call ends without an answer (its client is gone, or it is parked elsewhere). */
void keeper_next_forget(struct keeper *k, uint64_t lease);
/* True once per lease and serial: propose the acknowledgement. */
bool keeper_ack_once(struct keeper *k, uint64_t lease, uint64_t serial);
/* True once per lease: propose that it joins. */
bool keeper_join_once(struct keeper *k, uint64_t lease);

/* ---- time ---- */
enum { KEEPER_DUE_MAX = 512, KEEPER_SILENT_MS = 1000 };
struct keeper_due {
    uint64_t expired[KEEPER_DUE_MAX]; /* leases to expire: propose, renewals park from now on */
    uint32_t expired_count;
    struct {
        uint64_t asked, lease;
    } passed[KEEPER_DUE_MAX]; /* limits that have passed: propose %ROUTE_PASSED */
    uint32_t passed_count;
    uint64_t next[KEEPER_DUE_MAX]; /* leases whose held NEXT is to be answered now */
    uint32_t next_count;
    struct {
        uint64_t lease, ms;
    } remaining[KEEPER_DUE_MAX]; /* what remains of leases that are silent: propose %REMAINING */
    uint32_t remaining_count;
    uint64_t renewed[KEEPER_DUE_MAX]; /* leases whose remaining time is to be cleared: propose %RENEWED */
    uint32_t renewed_count;
};
/* What is due at now_ms, at most KEEPER_DUE_MAX of each kind; each is handed out once. */
void keeper_due(struct keeper *k, uint64_t now_ms, struct keeper_due *ret_due);
uint64_t keeper_wake_at(const struct keeper *k);
