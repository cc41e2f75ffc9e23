/* route.h - bindings of sessions to backends that proxies cache and that are still true.
 *
 * Place in the flow: part of the keyspace; its handlers run at apply, the leader's memory (keeper.h) decides when
 * holders' limits have passed.  After the leases of Gray & Cheriton (1989), volume leases of Yin et al. (1999) and
 * the session of Burrows, "The Chubby lock service" (2006).
 *
 * What always holds:
 *   V1  A binding {backend, epoch, shard} has at any time the set of leases it was handed to (its holders).
 *   V2  The backend of a binding changes only when no lease other than the mover's holds it: each has dropped,
 * acknowledged the revocation, lost its lease, or its limit (kept by the leader, logged as %ROUTE_PASSED) has passed.
 *   V3  While a move stalls nobody is handed the binding: BIND, GET, MOVE and TOUCH of that session wait, in order, and
 * run again when it is done.  A mover that disconnects cancels nothing. V4  Epochs are revisions: they grow over
 * forgotten records too.  The shard never changes while the record exists. V5  A move needs suspicion of the bound
 * backend by more than half of the joined leases (each report counts for suspect_window_ms and only while its lease
 * lives), or FORCE. V6  A record without holders is forgotten binding_memory_ms after its last BIND, GET, MOVE, TOUCH
 * or end of a hold. V7  Nothing grows without limit: bindings by bindings_max, the waiters of one session by
 * waiters_max, the holders of one binding by ROUTE_HOLDERS_MAX, and all of it together by memory_max (counted apart
 * from keys and values); what does not fit is -BUSY and did not run.
 *
 * A reply that hands out a binding carries the revision of the command that produced the state it shows: its own, or,
 * for a call that waited, that of the command that ended the stall.  new? is 1 for the BIND that made the record and
 * for the MOVE that made the new epoch, else 0.
 *
 * A lease is "joined" from %ROUTE_JOIN, or its first BIND, GET, MOVE or SUSPECT, until it ends. */
#pragma once
#include "lockd/core/ks_call.h"

enum { ROUTE_SHARD_MAX = 64, ROUTE_HOLDERS_MAX = 1024 };

struct route;
/* Memory comes from ks_alloc(ks).  Of `ks` only allocator and boot must be there already. */
struct route *route_new(struct keyspace *ks);
void route_free(struct route *r); /* NULL is fine */

/* Handlers of ROUTE.* and %ROUTE_*; dispatched by keyspace.c.  The caller tells of a `queued` call (KS_QUEUED) after
 * the handler has returned; the handler answers others (ks_answer) and adds its own facts while it runs. */
void route_bind(struct ks_call *call);
void route_get(struct ks_call *call);
void route_move(struct ks_call *call);
void route_drop(struct ks_call *call);
void route_touch(struct ks_call *call);
void route_suspect(struct ks_call *call);
void route_join(struct ks_call *call);
void route_ack(struct ks_call *call);
void route_passed(struct ks_call *call);

/* A lease is gone: its holds, reports and membership end; moves that waited only for it are done.  `revision` is that
 * of the command that ended it.  Called by the keyspace when the lease does not exist any more and before it emits
 * KS_LEASE_GONE. */
void route_lease_gone(struct route *r, uint64_t lease, uint64_t stamp_ms, uint64_t revision);
/* The waits attached to that origin life end: -CLUSTERDOWN, or -UNCERTAIN for a MOVE, if it lives after all. */
void route_origin_gone(struct route *r, uint16_t node, uint64_t boot);
/* Forget records whose memory has ended; at most `limit` per call; called once per batch. */
void route_forget(struct route *r, uint64_t stamp_ms, uint32_t limit);
/* Holds of that lease, for LEASE.INFO keys. */
uint64_t route_holds(const struct route *r, uint64_t lease);
uint64_t route_binding_count(const struct route *r);
uint64_t route_waiter_count(const struct route *r);
uint64_t route_memory_bytes(const struct route *r);
/* Every wait attached to that life, by its sequence number. */
void route_each_wait(const struct route *r, uint16_t node, uint64_t boot, void (*fn)(void *context, uint64_t seq),
                     void *context);
/* Every (node, boot) that has waiters attached, once each. */
void route_each_attachment(const struct route *r, void (*fn)(void *context, uint16_t node, uint64_t boot),
                           void *context);
/* Mix the whole state into a hash that does not depend on the order in which it came about. */
uint64_t route_hash(const struct route *r, uint64_t seed);

/* ---- for the leader's memory ---- */
bool route_joined(const struct route *r, uint64_t lease);
/* Appends to `reply` the array elements "pool session epoch" of every revocation this lease has not acknowledged: first
 * of the moves that went on without it because its limit had passed, then of those that stall for it; returns how many
 * moves (3 elements each); *ret_serial becomes the highest asked revision among them, or stays. */
uint32_t route_revocations(const struct route *r, uint64_t lease, struct buf *reply, uint64_t *ret_serial);
/* Is a revocation with asked revision <= serial still unacknowledged by this lease? */
bool route_ack_pending(const struct route *r, uint64_t lease, uint64_t serial);
/* Every (stalling move, holder that has not let go), by asked revision. */
void route_each_stall(const struct route *r, void (*fn)(void *context, uint64_t asked, uint64_t lease), void *context);
/* The same for one move. */
void route_each_holder(const struct route *r, uint64_t asked, void (*fn)(void *context, uint64_t asked, uint64_t lease),
                       void *context);
/* Drop one attachment's wait (used by %DEQUEUE with an empty name). */
void route_dequeue(struct route *r, struct origin attachment);
