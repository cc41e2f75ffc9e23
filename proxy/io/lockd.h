/* lockd.h - the link to lockd: one lease, and the questions of the session table as commands.
 *
 * Place in the flow:  bindings' outputs -> session -> [lockd] -> liblockclient -> any lockd node, and the replies back
 *
 * A Redis connection answers in order, and ROUTE.NEXT, ROUTE.MOVE and whatever concerns a session that moves are
 * answered late.  So each kind has connections of its own: one for NEXT, one for what is quick (SUSPECT, DROP), some
 * for BIND, GET and TOUCH, more for MOVE; they are made when they are first needed.
 *
 * This file gives the words and reads the replies; it decides nothing.  A reply that is not of the promised shape is
 * logged and counts as a failure. */
#pragma once
#include "proxy/core/bindings.h"

struct event_base;
struct lockd;

/* What was heard.  Each is called from the loop, never from within a function below. */
struct lockd_owner {
    void (*lease_granted)(void *owner, int64_t lease);
    void (*lease_lost)(void *owner, const char *why); /* another one is asked for already */
    void (*next)(void *owner, int64_t lease, uint32_t ttl_ms, uint64_t serial,
                 const struct bindings_revocation *revocations, uint32_t count);
    void (*next_failed)(void *owner, int64_t lease);
    void (*binding)(void *owner, uint64_t op, const struct bindings_reply *reply);
    void (*absent)(void *owner, uint64_t op);
    void (*dropped)(void *owner, uint64_t op);
    void (*touched)(void *owner, uint64_t op, uint64_t epoch);
    void (*failed)(void *owner, uint64_t op, enum bindings_failure failure);
    void (*suspected)(void *owner, int64_t lease, uint32_t pool, uint32_t member, uint64_t suspecting, uint64_t joined);
    void (*stopped)(void *owner);                           /* the lease was given back, or that took too long */
    uint32_t (*pool_named)(void *owner, struct slice name); /* index, or UINT32_MAX */
};
struct lockd_config {
    const char *addresses; /* "host:port,host:port" */
    const char *name;      /* of this proxy */
    uint32_t ttl_ms, clock_drift_ppm;
};

/* 0 and *ret_lockd, freed with lockd_free; or -1 with `error` (a bad address).  Asks for the lease at once. */
NODISCARD int lockd_new(struct event_base *base, const struct lockd_config *config, const struct lockd_owner *fns,
                        void *owner, struct lockd **ret_lockd, char *error, size_t error_bytes);
/* One of the BINDINGS_ASK_... outputs; names[i] is the name of member i of its pool. */
void lockd_ask(struct lockd *l, const struct bindings_output *out, struct slice pool,
               const struct placement_member *members);
/* Give the lease back and get another: lease_granted follows.  The caller knows that the old one is lost. */
void lockd_replace_lease(struct lockd *l);
/* Give the lease back for good; owner->stopped is called within timeout_ms. */
void lockd_stop(struct lockd *l, uint32_t timeout_ms);
/* No callback of the owner comes any more.  Not from a callback.  NULL is fine. */
void lockd_free(struct lockd *l);
