/* membership.c - see membership.h. */
#include "lockd/core/membership.h"
#include "common/must.h"

void membership_founding(struct membership *ret_members, uint16_t count, const uint64_t *store_ids) {
    must(count >= 1 && count <= PAXOS_NODES_MAX);
    *ret_members = (struct membership){.voters = (uint16_t)((1u << count) - 1u)};
    for (uint16_t i = 0; i < count; i++) ret_members->store_ids[i] = store_ids[i];
}

bool membership_equal(const struct membership *a, const struct membership *b) {
    if (a->slot != b->slot || a->voters != b->voters || a->learners != b->learners) return false;
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if (a->generation[i] != b->generation[i] || a->store_ids[i] != b->store_ids[i]) return false;
    }
    return true;
}

bool membership_makes_sense(const struct membership *m) {
    const uint16_t taken = m->voters | m->learners;
    if (m->voters == 0 || (m->voters & m->learners) != 0 || taken >> PAXOS_NODES_MAX != 0) return false;
    if (m->slot > PAXOS_NUMBER_MAX) return false;
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if ((m->store_ids[i] != 0) != ((taken >> i & 1) != 0)) return false;
        if (m->generation[i] > MEMBER_GENERATION_MAX) return false;
        for (uint16_t j = 0; j < i; j++) {
            if (m->store_ids[i] != 0 && m->store_ids[i] == m->store_ids[j]) return false;
        }
    }
    return true;
}

uint16_t membership_seat_of(const struct membership *m, uint64_t store_id) {
    uint16_t seat = 0;
    while (seat < PAXOS_NODES_MAX && (store_id == 0 || m->store_ids[seat] != store_id)) seat++;
    return seat;
}

void membership_write(const struct membership *m, struct buf *b) {
    wire_put_u64(b, m->slot);
    wire_put_u16(b, m->voters);
    wire_put_u16(b, m->learners);
    for (int i = 0; i < PAXOS_NODES_MAX; i++) {
        wire_put_u16(b, m->generation[i]);
        wire_put_u64(b, m->store_ids[i]);
    }
}

bool membership_read(struct wire *w, struct membership *ret_members) {
    struct membership m = {.slot = wire_u64(w)};
    m.voters = wire_u16(w);
    m.learners = wire_u16(w);
    bool good = (m.voters | m.learners) >> PAXOS_NODES_MAX == 0;
    for (int i = 0; i < PAXOS_NODES_MAX; i++) {
        m.generation[i] = wire_u16(w);
        m.store_ids[i] = wire_u64(w);
        good = good && m.generation[i] <= MEMBER_GENERATION_MAX;
    }
    *ret_members = m;
    return good;
}
