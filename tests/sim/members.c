/* members.c - see members.h. */
#include "tests/sim/members.h"

const struct membership *members_newest(const struct members *m) {
    return m->has_next ? &m->next : &m->now;
}
const struct membership *members_governing(const struct members *m, paxos_slot slot, uint32_t delay) {
    return m->has_next && slot >= m->next.slot + delay ? &m->next : &m->now;
}

bool members_apply(struct membership *m, const struct change *c) {
    const uint16_t bit = (uint16_t)(1u << c->seat), taken = m->voters | m->learners;
    switch (c->kind) {
    case CHANGE_FOUND: return m->slot == 0;
    case CHANGE_ADD:
        if ((taken & bit) || membership_seat_of(m, c->store_id) != PAXOS_NODES_MAX) return false;
        m->learners |= bit;
        m->generation[c->seat]++;
        m->store_ids[c->seat] = c->store_id;
        return true;
    case CHANGE_PROMOTE:
        if (!(m->learners & bit) || m->store_ids[c->seat] != c->store_id) return false;
        m->learners &= (uint16_t)~bit;
        m->voters |= bit;
        return true;
    case CHANGE_REMOVE:
        if (!(taken & bit) || m->store_ids[c->seat] != c->store_id || m->voters == bit) return false;
        m->voters &= (uint16_t)~bit;
        m->learners &= (uint16_t)~bit;
        m->store_ids[c->seat] = 0;
        return true;
    case CHANGE_NONE: break;
    }
    return false;
}

bool members_change(struct members *m, paxos_slot slot, uint32_t delay, const struct change *c) {
    const struct membership *newest = members_newest(m);
    if (c->kind == CHANGE_NONE || c->seat >= PAXOS_NODES_MAX) return false;
    if (c->kind != CHANGE_FOUND && (newest->slot == 0 || slot < newest->slot + delay)) return false;
    struct membership made = *newest;
    if (!members_apply(&made, c)) return false;
    made.slot = slot;
    if (m->has_next) m->now = m->next;
    m->next = made;
    m->has_next = true;
    return true;
}
