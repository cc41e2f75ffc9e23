/* node.h - one lockd: the only place where the machine and the replica meet.
 *
 * Place in the flow:  clients, peers, store, timer -> inputs -> [replica] -> outputs -> clients, peers, store
 *
 * What always holds:
 *   O1  Callbacks queue input; the work happens once per pass of the loop, after every callback of it has run: sample
 *       CLOCK_BOOTTIME, replica_turn, then one write per connection.  libevent's time is never read.
 *   O2  Nothing that can be wrong lives here: no protocol, no state, no retry.
 *   O3  A store that has failed is not touched again: the process ends with 1. */
#pragma once
#include "lockd/io/config.h"

/* Run until SIGTERM or SIGINT (0) or until it cannot go on (1, after one log line that says why). */
NODISCARD int node_run(const struct config *config);
