/* check_route.h - bindings that proxies cache are still true, judged while it happens.
 *
 *   an epoch names one backend; who asks is never shown an older epoch than was told before it asked
 *   no session is served to two backends at one true time: a proxy that is covered and holds a binding, and any other
 *   that does, hold the same one.  So a move is not done while a holder may still serve (section "lookups") */
#pragma once
#include "tests/sim/clients.h"

struct route_facts;
struct route_facts *check_route_new(void);
void check_route_free(struct route_facts *f);

bool proxy_serves(const struct world *w, const struct proxy *p, uint32_t route);
/* The highest epoch told for that session. */
uint64_t check_route_floor(const struct route_facts *f, uint32_t route);
/* Somebody who asked when `floor` was told is shown this. */
void check_route_shown(struct route_facts *f, struct world *w, uint32_t route, uint64_t epoch, uint64_t backend,
                       uint64_t floor);
/* Something changed: who serves what now? */
void check_route_served(struct world *w, const struct clients *cs);
