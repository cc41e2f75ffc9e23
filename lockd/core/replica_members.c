/* replica_members.c - who belongs to the cluster (P10, P11): what the log says about it is told to Paxos, to the
 * store's record, to the links; and the leader lets learners vote that have caught up.
 *
 *   %MEMBERS, NODE.ADD, NODE.REMOVE, %PROMOTE applied -> KS_MEMBERS -> members_applied -> paxos_members
 *   64 slots later it is in effect, and some later for good -> members_turn -> record of the store, admission of peers
 *
 * The record follows what is in effect for good, not what was applied: a member that is on its way out is needed, and
 * let in, until a majority of those who stay has it on its disks that they decide alone.  If it were told before, and
 * they started again without knowing, they would need it and it would be silent for ever.  A leader that removes itself
 * hands over in time. */
#include <stdio.h>
#include "lockd/core/replica_state.h"

enum { PROMOTE_MS = 1000 }; /* a promotion that had no effect is proposed again */

static const struct membership *newest(const struct ks_members *m) {
    return m->has_next ? &m->next : &m->now;
}

void members_begin(const struct replica *r, struct membership *ret_governing) {
    const struct ks_members *m = keyspace_members(r->ks);
    *ret_governing = m->now.voters != 0 ? m->now : r->identity.record.members;
}

void members_begun(struct replica *r, uint64_t now_ms) {
    const struct ks_members *m = keyspace_members(r->ks);
    r->members_changed = true;
    if (m->has_next) paxos_members(r->paxos, now_ms, &m->next);
}

void members_applied(struct replica *r, uint64_t now_ms) {
    const struct ks_members *m = keyspace_members(r->ks);
    r->members_changed = true;
    paxos_members(r->paxos, now_ms, newest(m));
}

void members_installed(struct replica *r, uint64_t now_ms) {
    const struct ks_members *m = keyspace_members(r->ks);
    struct membership governing;
    members_begin(r, &governing);
    paxos_install(r->paxos, now_ms, keyspace_slot(r->ks), &governing, m->has_next ? &m->next : NULL);
    r->members_changed = true;
}

/* Learners that are ready vote; one change at a time. */
static void promote(struct replica *r, uint64_t now_ms, const struct ks_members *m) {
    if (now_ms < r->promote_ms || m->now.learners == 0 || m->has_next) return;
    for (uint16_t seat = 0; seat < PAXOS_NODES_MAX; seat++) {
        if ((m->now.learners & 1u << seat) == 0 || !paxos_caught_up(r->paxos, seat)) continue;
        char numbers[2][24];
        snprintf(numbers[0], sizeof numbers[0], "%u", seat + 1u);
        snprintf(numbers[1], sizeof numbers[1], "%llu", (unsigned long long)m->now.store_ids[seat]);
        const struct slice argv[] = {slice_str("%PROMOTE"), slice_str(numbers[0]), slice_str(numbers[1])};
        lead_queue_internal(r, 3, argv);
        r->promote_ms = now_ms + PROMOTE_MS;
        return;
    }
}

void members_turn(struct replica *r, uint64_t now_ms) {
    const struct ks_members *m = keyspace_members(r->ks);
    if (m->now.voters == 0) return;
    if (m->now.slot > r->identity.record.members.slot &&
        keyspace_slot(r->ks) >= paxos_members_done(r->paxos, m->now.slot) && identity_members(&r->identity, &m->now)) {
        replica_save_record(r);
        replica_note(r, 'i', "replica members slot=%llu voters=%#x learners=%#x", (unsigned long long)m->now.slot,
                     m->now.voters, m->now.learners);
        r->members_changed = true;
    }
    if (r->members_changed && r->sink.members != NULL) r->sink.members(r->sink.context, m);
    r->members_changed = false;
    if (r->serving) promote(r, now_ms, m);
}
