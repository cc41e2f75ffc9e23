/* check_queue.h - locks and their queues, told again from the log: first come, first served (W).
 *
 * A small model of what the numbered log says about locks and elections: every chosen batch is read in order, those of
 * deposed leaders are left out (P6), and holders, tokens and queues are followed.  After each turn the keyspace of the
 * node that is as far as the model must say the same of every lock that was touched: the same holder, the same token,
 * as many waiting.  Who is granted next shows the order. */
#pragma once
#include "lockd/core/keyspace.h"
#include "tests/sim/world.h"

struct queue_facts;
struct queue_facts *check_queue_new(void);
void check_queue_free(struct queue_facts *f);
/* The node has applied everything up to where its keyspace is. */
void check_queue_turn(struct queue_facts *f, struct world *w, uint16_t node, struct keyspace *ks);
