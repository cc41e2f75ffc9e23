/* check_once.h - nothing runs twice (X, N).
 *
 *   of a ONCE    every reply that is not an error of the way equals the first one, whenever and wherever it was asked
 *                for again; and the first one is what a single execution answers (onces.c knows which that is)
 *   of any write  its origin's number comes up once in the chosen log, entries of deposed leaders left out (P6);
 * scripts excepted, whose entries are tried again until what they read has not changed */
#pragma once
#include "lockd/core/keyspace.h"
#include "tests/sim/world.h"

struct once_facts;
struct once_facts *check_once_new(void);
void check_once_free(struct once_facts *f);
/* A reply to command `seq` of that lease, as text that says all of it.  True: the first one. */
bool check_once_told(struct once_facts *f, struct world *w, uint64_t lease, uint64_t seq, const char *reply);
/* The node has applied everything up to where its keyspace is. */
void check_once_turn(struct once_facts *f, struct world *w, const struct keyspace *ks);
