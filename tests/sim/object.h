/* object.h - what the objects under test share. */
#pragma once
#include "tests/sim/world.h"

/* One line of the trace. */
void object_trace(struct world *w, uint16_t from, uint16_t to, const struct paxos_msg *m);

extern const struct sim_object sim_paxos;   /* Paxos alone, values are numbers */
extern const struct sim_object sim_replica; /* whole nodes with clients */
