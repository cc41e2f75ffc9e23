/* admin.h - who runs the cluster: takes nodes in and out by the commands that a person would give, through any node,
 * and asks again when the answer is lost.  A store that is out is kept, or given up for an empty one, before its node
 * is let in again; a node that has lost its disk is replaced.
 *
 * What a careful operator sees to, and the simulator with it: of those that vote now, or may by what is still on its
 * way, a majority has its disks (admin_can_lose). */
#pragma once
#include "tests/sim/world.h"

struct clients;
struct client;
struct admin {
    uint64_t next_us; /* does nothing before */
    struct {          /* a NODE.REMOVE that may still run */
        bool open, lost, dated;
        uint16_t seat;
        uint64_t lost_us;
        struct ballot ballot; /* dated: it runs under this one or a lower one, if at all */
    } removal;
    bool listed[SIM_NODES_MAX];   /* its configuration names every node by now, not the founders alone */
    uint64_t adds[SIM_NODES_MAX]; /* the store that it last asked to add there */
    uint32_t added, removed, transferred, emptied; /* for the trace */
};

/* Between turns: what needs no command. */
void admin_looks(struct clients *cs, struct world *w);
/* In its node's turn: one command. */
void admin_acts(struct clients *cs, struct world *w, struct client *c);
/* What it had asked will not be answered. */
void admin_lost(struct clients *cs, struct world *w, const struct client *c);
/* May that disk be lost now, or for ever out of reach? */
bool admin_can_lose(const struct clients *cs, const struct world *w, uint16_t node);
