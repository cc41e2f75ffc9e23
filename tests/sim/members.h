/* members.h - how the simulated log says who belongs to the cluster; used by the state machine of the nodes and by the
 * oracle, each for itself. */
#pragma once
#include "lockd/core/membership.h"

enum change_kind { CHANGE_NONE, CHANGE_FOUND, CHANGE_ADD, CHANGE_PROMOTE, CHANGE_REMOVE };
struct change {
    enum change_kind kind;
    uint16_t seat;
    uint64_t store_id;
};

struct members {
    struct membership now, next; /* now.voters == 0: the log has not said it yet */
    bool has_next;               /* next was applied after now; it governs from next.slot + delay on */
};

/* What makes sense of it, whenever it comes; false: nothing. */
bool members_apply(struct membership *m, const struct change *c);
/* The entry of `slot` asks for that change.  False: void, because the change before it is not in effect, or it makes no
 * sense; `m` is untouched then. */
bool members_change(struct members *m, paxos_slot slot, uint32_t delay, const struct change *c);
const struct membership *members_newest(const struct members *m);
/* Who decides that slot, if the log is known up to slot - delay. */
const struct membership *members_governing(const struct members *m, paxos_slot slot, uint32_t delay);
