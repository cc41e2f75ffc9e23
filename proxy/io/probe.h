/* probe.h - asks one backend, again and again, whether it takes connections.
 *
 * Place in the flow:  backend address -> [probe] -> health -> session
 *
 * A probe is a TCP connection that is ended as soon as it stands.  When to probe and what it means is core/health's. */
#pragma once
#include "common/io/net.h"
#include "proxy/core/health.h"

struct event_base;
struct probe;

typedef void probe_fn(void *owner, uint32_t pool, uint32_t member, bool up);
struct probe_config {
    struct net_address address; /* resolved; copied */
    struct health_config health;
    uint32_t timeout_ms;
    uint32_t pool, member; /* given back to fn */
    probe_fn *fn;          /* its state has changed; also called once when it is first found up */
    void *owner;
};

/* The first probe goes out in the next turn of the loop.  Never NULL; freed with probe_free. */
struct probe *probe_new(struct event_base *base, const struct probe_config *config);
/* What the traffic saw; may call fn. */
void probe_seen(struct probe *p, enum health_evidence evidence);
bool probe_is_up(const struct probe *p);
/* NULL is fine. */
void probe_free(struct probe *p);
