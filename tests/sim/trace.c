/* trace.c - a message as one line. */
#include <stdio.h>
#include "tests/sim/object.h"

void object_trace(struct world *w, uint16_t from, uint16_t to, const struct paxos_msg *m) {
    static const char *const names[PAXOS_MSG_KIND_END] = {
        "?",        "prevote",   "prevote-reply", "prepare", "promise", "refuse",   "accept",
        "accepted", "heartbeat", "heartbeat-ack", "catchup", "chosen",  "transfer", "release"};
    if (!w->trace) return;
    char entries[160] = "";
    size_t at = 0;
    for (uint32_t i = 0; i < m->entry_count && at + 40 < sizeof entries; i++)
        at +=
            (size_t)snprintf(entries + at, sizeof entries - at, " %llu@%llu.%u", (unsigned long long)m->entries[i].slot,
                             (unsigned long long)m->entries[i].ballot.round, m->entries[i].ballot.node);
    world_trace(w, "n%u->n%u %-13s %llu.%u promised=%llu.%u%s chosen=%llu slots=%llu..%lld round=%llu n=%u%s", from, to,
                names[m->kind < PAXOS_MSG_KIND_END ? m->kind : 0], (unsigned long long)m->ballot.round, m->ballot.node,
                (unsigned long long)m->promised.round, m->promised.node, m->granted ? " granted" : "",
                (unsigned long long)m->chosen, (unsigned long long)m->slot, (long long)m->slot_last,
                (unsigned long long)m->round, m->entry_count, entries);
}
