/* check_late.h - leases end: not much later than promised, and none lives for ever (L5).
 *
 * Who holds a lease says when it was last heard of.  In peace, a leader that has served without a break lets a lease
 * end within a tenth of its ttl after the ttl, counted from the last sign of its holder or from the beginning of that
 * leadership, whichever is later; LATE_MS is for commits and what was on its way.  When leaders come and go, each takes
 * off the ttl what it could have logged: no number of elections keeps a lease alive. */
#pragma once
#include "lockd/core/keyspace.h"
#include "tests/sim/world.h"

struct late_facts;
struct late_facts *check_late_new(void);
void check_late_free(struct late_facts *f);
/* The holder asked for it, renewed it, or was told that it was renewed. */
void check_late_sign(struct late_facts *f, const struct world *w, uint64_t lease, uint64_t ttl_ms);
/* The keyspace of the node that leads, or NULL if none does; called often. */
void check_late_look(struct late_facts *f, struct world *w, const struct keyspace *leading);
