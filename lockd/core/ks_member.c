/* ks_member.c - who belongs to the cluster, as the log says it (P10).  One change at a time: the entry in slot s makes
 * a membership that governs from s + KS_CONFIG_DELAY on, and until then no other is taken.  What follows from it is the
 * business of paxos.h and identity.h.  After Lamport, Malkhi and Zhou, "Reconfiguring a state machine" (2010): a
 * configuration that is part of the state, in effect a fixed number of slots later.  Part of the keyspace. */
#include "lockd/core/ks_state.h"

const struct ks_members *keyspace_members(const struct keyspace *ks) {
    return &ks->members;
}

static const struct membership *newest(const struct keyspace *ks) {
    return ks->members.has_next ? &ks->members.next : &ks->members.now;
}

static void set_address(struct keyspace *ks, uint16_t seat, struct slice address) {
    memset(ks->members.addresses[seat], 0, KS_ADDRESS_BYTES);
    if (address.bytes > 0) memcpy(ks->members.addresses[seat], address.data, address.bytes);
}

/* Who is on its way out is needed until it is out, and has to be found by who starts meanwhile: its address goes with
 * it. */
void ks_members_settle(struct keyspace *ks) {
    struct ks_members *m = &ks->members;
    if (!m->has_next || ks->slot + 1 < m->next.slot + KS_CONFIG_DELAY) return;
    for (uint16_t seat = 0; seat < PAXOS_NODES_MAX; seat++)
        if (m->now.store_ids[seat] != 0 && m->next.store_ids[seat] == 0) set_address(ks, seat, slice_of(NULL, 0));
    m->now = m->next;
    m->next = (struct membership){0};
    m->has_next = false;
}

static void tell(struct keyspace *ks) {
    ks_fact(ks, &(struct ks_fact){.kind = KS_MEMBERS});
}

/* A copy of the newest to be changed, or NULL: refused, and the reply says why. */
static struct membership *change_begin(struct ks_call *call) {
    struct ks_members *m = &call->ks->members;
    if (m->now.voters == 0) {
        resp_error(call->reply, "BUSY the first entry of the cluster, which names its members, is not applied yet");
        return NULL;
    }
    if (m->has_next) {
        resp_error(call->reply, "BUSY the last change of members is not in effect yet: it will be at slot %llu",
                   (unsigned long long)(m->next.slot + KS_CONFIG_DELAY));
        return NULL;
    }
    m->next = m->now;
    m->next.slot = call->ks->slot;
    return &m->next;
}

static void change_end(struct ks_call *call) {
    must(membership_makes_sense(&call->ks->members.next));
    call->ks->members.has_next = true;
    tell(call->ks);
    resp_ok(call->reply);
}

/* ---- arguments ---- */

static bool arg_seat(struct ks_call *call, uint32_t index, uint16_t *ret_seat) {
    uint64_t number;
    if (!ks_arg_u64(call, index, "the node's number", 1, PAXOS_NODES_MAX, &number)) return false;
    *ret_seat = (uint16_t)(number - 1);
    return true;
}

/* A store id as NODE.STATUS shows it: 16 hexadecimal digits. */
static bool arg_store(struct ks_call *call, uint32_t index, uint64_t *ret_store) {
    const struct slice s = call->argv[index];
    uint64_t store = 0;
    bool good = s.bytes == 16;
    for (size_t i = 0; i < s.bytes && good; i++) {
        const char c = s.data[i];
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                          : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                 : -1;
        good = digit >= 0;
        store = store << 4 | (uint64_t)(digit & 15);
    }
    if (good && store != 0) {
        *ret_store = store;
        return true;
    }
    char shown[80];
    resp_error(call->reply,
               "ERR the store id must be 16 hexadecimal digits, as NODE.STATUS of that node shows them, not '%s'",
               resp_show(s, shown, sizeof shown));
    return false;
}

bool ks_is_address(struct slice s) {
    uint32_t port = 0;
    size_t colon = s.bytes;
    while (colon > 0 && s.data[colon - 1] != ':') colon--;
    if (s.bytes >= KS_ADDRESS_BYTES || colon < 2 || colon == s.bytes || s.bytes - colon > 5) return false;
    for (size_t i = 0; i < colon - 1; i++)
        if (s.data[i] <= ' ' || s.data[i] > '~' || s.data[i] == '"') return false;
    for (size_t i = colon; i < s.bytes; i++) {
        if (s.data[i] < '0' || s.data[i] > '9') return false;
        port = port * 10 + (uint32_t)(s.data[i] - '0');
    }
    return port > 0 && port <= 65535;
}

/* ---- commands ---- */

void ks_cmd_node_add(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    uint16_t seat;
    uint64_t store;
    char shown[80];
    if (!arg_seat(call, 1, &seat)) return;
    if (!ks_is_address(call->argv[2])) {
        resp_error(call->reply, "ERR the address must be HOST:PORT, shorter than %d bytes, not '%s'", KS_ADDRESS_BYTES,
                   resp_show(call->argv[2], shown, sizeof shown));
        return;
    }
    if (!arg_store(call, 3, &store)) return;
    const struct membership *known = newest(ks);
    const uint16_t sits = membership_seat_of(known, store);
    if (sits == seat) { /* asked again, or it moved: who it is does not change */
        set_address(ks, seat, call->argv[2]);
        tell(ks);
        resp_ok(call->reply);
    } else if (sits != PAXOS_NODES_MAX) {
        resp_error(call->reply, "ERR that store is node %u already", sits + 1u);
    } else if (known->store_ids[seat] != 0) {
        resp_error(call->reply, "ERR node %u is a member already, with store %016llx: NODE.REMOVE %u first", seat + 1u,
                   (unsigned long long)known->store_ids[seat], seat + 1u);
    } else if (known->generation[seat] >= MEMBER_GENERATION_MAX) {
        resp_error(call->reply, "ERR node %u had %d stores already; choose another number", seat + 1u,
                   MEMBER_GENERATION_MAX);
    } else {
        struct membership *next = change_begin(call);
        if (next == NULL) return;
        next->learners |= (uint16_t)(1u << seat);
        next->generation[seat]++;
        next->store_ids[seat] = store;
        set_address(ks, seat, call->argv[2]);
        change_end(call);
    }
}

void ks_cmd_node_remove(struct ks_call *call) {
    uint16_t seat;
    if (!arg_seat(call, 1, &seat)) return;
    const uint16_t bit = (uint16_t)(1u << seat);
    const struct membership *known = newest(call->ks);
    if (known->store_ids[seat] == 0) {
        resp_error(call->reply, "ERR node %u is no member", seat + 1u);
    } else if (known->voters == bit) {
        resp_error(call->reply, "ERR node %u is the last that votes", seat + 1u);
    } else {
        struct membership *next = change_begin(call);
        if (next == NULL) return;
        next->voters &= (uint16_t)~bit;
        next->learners &= (uint16_t)~bit;
        next->store_ids[seat] = 0;
        change_end(call);
    }
}

/* The first ones count for ever: two leaders may each have found a cluster without. */
void ks_cmd_x_members(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    struct membership founding = {0};
    resp_ok(call->reply);
    if (ks->members.now.voters != 0) return;
    for (uint32_t i = 1; i + 2 < call->argc; i += 3) {
        uint64_t number, store;
        if (!slice_to_u64(call->argv[i], &number) || number == 0 || number > PAXOS_NODES_MAX ||
            !slice_to_u64(call->argv[i + 1], &store) || (founding.voters & 1u << (number - 1)) != 0)
            return;
        founding.voters |= (uint16_t)(1u << (number - 1));
        founding.store_ids[number - 1] = store;
    }
    if (!membership_makes_sense(&founding)) return;
    ks->members.now = founding;
    for (uint32_t i = 1; i + 2 < call->argc; i += 3) {
        uint64_t number;
        if (slice_to_u64(call->argv[i], &number) && ks_is_address(call->argv[i + 2]))
            set_address(ks, (uint16_t)(number - 1), call->argv[i + 2]);
    }
    tell(ks);
}

/* Void unless that very store still learns there, and no other change came first. */
void ks_cmd_x_promote(struct ks_call *call) {
    uint64_t number, store;
    const struct membership *known = newest(call->ks);
    const bool learns = slice_to_u64(call->argv[1], &number) && slice_to_u64(call->argv[2], &store) && number > 0 &&
                        number <= PAXOS_NODES_MAX && known->store_ids[number - 1] == store &&
                        (known->learners & 1u << (number - 1)) != 0;
    if (!learns) {
        resp_error(call->reply, "ERR that store does not learn there any more");
        return;
    }
    struct membership *next = change_begin(call);
    if (next == NULL) return;
    next->learners &= (uint16_t) ~(1u << (number - 1));
    next->voters |= (uint16_t)(1u << (number - 1));
    change_end(call);
}

/* ---- hash, save, load ---- */

void ks_members_put(const struct keyspace *ks, struct buf *b) {
    const struct ks_members *m = &ks->members;
    membership_write(&m->now, b);
    wire_put_u8(b, m->has_next);
    if (m->has_next) membership_write(&m->next, b);
    for (int i = 0; i < PAXOS_NODES_MAX; i++) wire_put_bytes(b, slice_str(m->addresses[i]));
}

bool ks_members_take(struct keyspace *ks, struct slice bytes) {
    struct ks_members *m = &ks->members;
    struct wire w = wire_of(bytes);
    if (!membership_read(&w, &m->now)) return false;
    m->has_next = wire_u8(&w) == 1;
    if (m->has_next && !membership_read(&w, &m->next)) return false;
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        const struct slice address = wire_bytes(&w);
        if (address.bytes > 0 && !ks_is_address(address)) return false;
        set_address(ks, i, address);
    }
    if (!wire_done(&w)) return false;
    if (m->now.voters == 0) return !m->has_next && membership_equal(&m->now, &(struct membership){0});
    if (!membership_makes_sense(&m->now) || m->now.slot > ks->slot) return false;
    return !m->has_next || (membership_makes_sense(&m->next) && m->next.slot <= ks->slot &&
                            ks->slot + 1 < m->next.slot + KS_CONFIG_DELAY);
}
