/* check_hold.h - locks and elections, judged while it happens, by what their holders may believe.
 *
 *   a lock has one holder at a time, by the holders' own clocks, whose rates keep within the bound
 *   tokens grow with every grant, for one lock and over all of them; a token belongs to one lease for ever (F)
 *   a lease is never gone while its holder's clock still gives it time (T4, L2-L4) */
#pragma once
#include "tests/sim/clients.h"

struct hold_facts;
struct hold_facts *check_hold_new(void);
void check_hold_free(struct hold_facts *f);

bool session_alive(const struct world *w, const struct session *se);
/* A session asks for the lock `se->key`: what it gets is above every token told before it first asked. */
void check_hold_asked(struct hold_facts *f, const struct session *se);
/* A question was answered, or is known not to have run: it is not granted any more. */
void check_hold_answered(struct hold_facts *f, uint64_t lease, uint32_t key);
/* It has given it back: if no question is open, the next time it asks is a first time. */
void check_hold_released(struct hold_facts *f, uint64_t lease, uint32_t key);
/* A session was told this token for its lock. */
void check_hold_granted(struct hold_facts *f, struct world *w, const struct clients *cs, const struct session *se,
                        uint64_t lease, uint32_t key, uint64_t token);
/* Somebody says that this lease is gone. */
void check_lease_gone(struct world *w, const struct session *se, uint64_t lease, const char *by);
