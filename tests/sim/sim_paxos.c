/* sim_paxos.c - Paxos alone in the simulated world.  Clients propose numbered values at whoever leads, and read under
 * the leader lease or with a confirmed round; an administrator adds, promotes and removes nodes by entries of the log
 * and moves the leadership about; nodes make checkpoints, cut their logs behind them and send them to who is too far
 * behind.
 *
 * A value is a u64 number and padding; with the highest bit set it is a change of the membership: u8 kind, u8 seat, u64
 * store id. */
#include <stdlib.h>
#include <string.h>
#include "common/must.h"
#include "tests/sim/check_paxos.h"
#include "tests/sim/object.h"

enum { ENTRIES_MAX = 1 << 17, VALUE_BYTES_MAX = 48, PENDING_MAX = 256, HAND_OVER_MS_MAX = 400, CHANGE_MS_MAX = 3000 };
static const uint64_t CHANGE_BIT = UINT64_C(1) << 63;

struct read_asked { /* by a confirmed round */
    uint64_t round;
    paxos_slot before;
};
struct process {
    struct paxos *p;
    enum paxos_role role;
    uint64_t pending[PENDING_MAX]; /* values proposed here by this life, not yet applied */
    uint32_t pending_count;
    struct read_asked reads[64];
    uint32_t read_count;
    paxos_slot applied;
    struct members members; /* as applied */
    uint16_t generation;
    struct { /* came from a peer, not installed yet */
        paxos_slot slot;
        struct members members;
    } snapshot;
};
struct state {
    struct process processes[SIM_NODES_MAX];
    uint32_t inflight_max, checkpoint_slots, stall_ms;
    uint32_t hand_over_ppm; /* each time that clients do something */
    bool calm;              /* no more changes */
    bool quiet;             /* no clients */
    struct membership founding;
    uint64_t doubts[SIM_NODES_MAX]; /* the store there was proposed to be removed, and sits there still */
    uint64_t values;                /* handed to anybody so far */
    paxos_slot *slot_of;            /* by value */
    size_t slot_capacity;
    uint64_t healed_value, heal_us; /* proposed after the faults ended */
    bool healed_done;
    uint64_t acknowledged;
};
static struct state *state_of(const struct world *w) {
    return w->user;
}
static unsigned long long u(uint64_t x) {
    return x;
}

static void begin(struct world *w) {
    struct state *s = calloc(1, sizeof *s);
    must(s != NULL);
    static const uint32_t inflights[] = {1, 2, 4, 8, 16};
    s->inflight_max = inflights[world_below(w, 5)];
    /* twice as many slots as can be open, so that who decides the later ones has all that the earlier ones chose */
    const uint32_t delays[] = {2 * s->inflight_max, 2 * s->inflight_max + 1, PAXOS_CONFIG_DELAY};
    w->config_delay = delays[world_below(w, 3)];
    static const uint32_t checkpoints[] = {3, 10, 50, 300}, stalls[] = {0, 150, 1000};
    s->checkpoint_slots = checkpoints[world_below(w, 4)];
    s->stall_ms = stalls[world_below(w, 3)];
    static const uint32_t hand_overs[] = {0, 0, 1000, 20000};
    s->hand_over_ppm = hand_overs[world_below(w, 4)];
    for (uint16_t i = 0; i < w->founders; i++) {
        w->nodes[i].disk.record.cluster_id = 1;
        w->nodes[i].disk.record.members = *check_newest(w);
    }
    s->founding = *check_newest(w);
    w->user = s;
}
static void release(struct world *w) {
    free(state_of(w)->slot_of);
    free(w->user);
}

static struct change read_change(struct slice v) {
    struct change c = {.kind = CHANGE_NONE};
    uint64_t number = 0;
    if (v.bytes >= sizeof number) memcpy(&number, v.data, sizeof number);
    if (!(number & CHANGE_BIT) || v.bytes < sizeof number + 10) return c;
    c.kind = (enum change_kind)v.data[8];
    c.seat = (uint8_t)v.data[9];
    memcpy(&c.store_id, v.data + 10, sizeof c.store_id);
    return c;
}
static bool matters(struct slice v) {
    return read_change(v).kind != CHANGE_NONE;
}
static bool change(struct world *w, paxos_slot slot, struct slice v, struct membership *m) {
    const struct change c = read_change(v);
    struct members made = {.now = *m};
    if (!members_change(&made, slot, w->config_delay, &c)) return false;
    *m = made.next;
    return true;
}

/* False: void. */
static bool apply_change(struct world *w, struct members *m, paxos_slot slot, const struct change *c) {
    /* the founding membership is the one everybody began with */
    if (c->kind == CHANGE_FOUND && m->now.voters == 0) m->now = state_of(w)->founding;
    return m->now.voters != 0 && members_change(m, slot, w->config_delay, c);
}

/* From its disk: the checkpoint, then the log up to what is known to be chosen. */
static void start(struct world *w, uint16_t node) {
    static struct paxos_entry entries[ENTRIES_MAX];
    const struct disk *d = &w->nodes[node].disk;
    struct process *pr = &state_of(w)->processes[node];
    struct paxos_saved saved;
    if (d->record.cluster_id == 0) return; /* belongs to nobody: nothing of it runs */
    w->nodes[node].wiped = false;
    disk_read(d, &saved, entries, ENTRIES_MAX);
    *pr = (struct process){
        .members = d->snapshot.members, .applied = saved.chosen, .generation = d->record.members.generation[node]};
    if (d->snapshot.slot == 0) pr->members = (struct members){.has_next = false};
    if (d->record.members.slot == 0) pr->members.now = d->snapshot.slot == 0 ? d->record.members : pr->members.now;
    for (paxos_slot s = d->snapshot.slot + 1; s <= saved.chosen; s++) {
        const struct disk_entry *e = disk_at(d, s);
        if (e == NULL) {
            world_fail(w, "n%u: slot %llu is chosen and not on its disk", node, u(s));
            return;
        }
        const struct change c = read_change(slice_of(e->data, e->bytes));
        (void)apply_change(w, &pr->members, s, &c);
    }
    const struct membership *governing = members_governing(&pr->members, saved.chosen + 1, w->config_delay);
    const struct paxos_config config = {.alloc = &w->nodes[node].alloc,
                                        .node = node,
                                        .generation = pr->generation,
                                        .members = governing->voters != 0 ? *governing : d->record.members,
                                        .config_delay = w->config_delay,
                                        .inflight_max = state_of(w)->inflight_max,
                                        .value_bytes_max = VALUE_BYTES_MAX,
                                        .heartbeat_ms = 50,
                                        .lease_ms = 300,
                                        .election_spread_ms = 100,
                                        .drift_ppm = SIM_DRIFT_PPM,
                                        .stall_ms = state_of(w)->stall_ms,
                                        .seed = world_random(w),
                                        .start_ms = world_local_ms(w, node)};
    pr->p = paxos_new(&config, &saved);
    if (governing->voters != 0 && pr->members.has_next && governing == &pr->members.now)
        paxos_members(pr->p, config.start_ms, &pr->members.next);
}
/* The cluster has taken this store in, and it hears of it (lockd/core/identity.c does that on a real node). */
static void join(struct world *w, uint16_t node) {
    struct process *pr = &state_of(w)->processes[node];
    struct sim_node *n = &w->nodes[node];
    const struct membership *m = check_newest(w);
    if (!n->up || !check_member(w, node) || (pr->p != NULL && m->generation[node] == pr->generation)) return;
    n->disk.record.cluster_id = 1;
    n->disk.record.members = *m;
    world_trace(w, "n%u joins as %u.%u", node, node, m->generation[node]);
    if (pr->p != NULL) {
        pr->generation = m->generation[node];
        paxos_generation(pr->p, world_local_ms(w, node), pr->generation);
    } else {
        check_start(w, node);
        start(w, node);
    }
    world_client_input(w, node, 0);
}
static void stop(struct world *w, uint16_t node) {
    struct process *pr = &state_of(w)->processes[node];
    paxos_free(pr->p);
    *pr = (struct process){0};
}

/* ------------------------------------------------------------------ messages as packets */

struct parcel { /* what a packet holds */
    bool snapshot;
    paxos_slot slot;
    struct members members;
    struct paxos_msg m;
};
static struct packet *pack(struct world *w, uint16_t from, const struct paxos_msg *m) {
    size_t bytes = sizeof(struct parcel) + m->entry_count * sizeof *m->entries;
    for (uint32_t i = 0; i < m->entry_count; i++) bytes += m->entries[i].value.bytes;
    struct packet *p = packet_new(w, from, bytes);
    struct parcel *parcel = (struct parcel *)p->data;
    struct paxos_entry *entries = (struct paxos_entry *)(parcel + 1);
    char *values = (char *)(entries + m->entry_count);
    *parcel = (struct parcel){.m = *m};
    parcel->m.entries = entries;
    for (uint32_t i = 0; i < m->entry_count; i++) {
        entries[i] = m->entries[i];
        if (m->entries[i].value.bytes > 0) memcpy(values, m->entries[i].value.data, m->entries[i].value.bytes);
        entries[i].value.data = values;
        values += m->entries[i].value.bytes;
    }
    return p;
}
static bool message(const struct world *w, const struct packet *p, struct paxos_msg *ret_message) {
    (void)w;
    const struct parcel *parcel = (const struct parcel *)p->data;
    *ret_message = parcel->m;
    return !parcel->snapshot;
}

/* ------------------------------------------------------------------ values */

static uint64_t value_number(struct slice v) {
    uint64_t number = 0;
    if (v.bytes >= sizeof number) memcpy(&number, v.data, sizeof number);
    return number;
}
static uint64_t propose(struct world *w, uint16_t node) {
    struct state *s = state_of(w);
    struct process *pr = &s->processes[node];
    char bytes[VALUE_BYTES_MAX] = {0};
    const uint64_t number = s->values + 1;
    memcpy(bytes, &number, sizeof number);
    const struct paxos_input in = {.now_ms = world_local_ms(w, node),
                                   .kind = PAXOS_PROPOSE,
                                   .value = slice_of(bytes, world_between(w, sizeof number, VALUE_BYTES_MAX))};
    if (paxos_step(pr->p, &in) != PAXOS_TAKEN) return 0;
    s->values = number;
    if (pr->pending_count == PENDING_MAX) /* the oldest was lost with an earlier leadership */
        memmove(pr->pending, pr->pending + 1, --pr->pending_count * sizeof pr->pending[0]);
    pr->pending[pr->pending_count++] = number;
    return number;
}
static bool propose_change(struct world *w, uint16_t node, struct change c) {
    char bytes[18];
    const uint64_t number = CHANGE_BIT | ++state_of(w)->values;
    memcpy(bytes, &number, sizeof number);
    bytes[8] = (char)c.kind;
    bytes[9] = (char)c.seat;
    memcpy(bytes + 10, &c.store_id, sizeof c.store_id);
    const struct paxos_input in = {
        .now_ms = world_local_ms(w, node), .kind = PAXOS_PROPOSE, .value = slice_of(bytes, sizeof bytes)};
    static const char *const words[] = {"nothing", "found", "add", "promote", "remove"};
    world_trace(w, "n%u proposes to %s n%u", node, words[c.kind], c.seat);
    return paxos_step(state_of(w)->processes[node].p, &in) == PAXOS_TAKEN;
}
static void applied(struct world *w, uint16_t node, const struct paxos_entry *e) {
    struct state *s = state_of(w);
    struct process *pr = &s->processes[node];
    const uint64_t number = value_number(e->value);
    pr->applied = e->slot;
    const struct change c = read_change(e->value);
    if (c.kind != CHANGE_NONE) {
        if (apply_change(w, &pr->members, e->slot, &c))
            paxos_members(pr->p, world_local_ms(w, node), &pr->members.next);
        return;
    }
    if (number == 0) return;
    while (number >= s->slot_capacity) {
        const size_t old = s->slot_capacity;
        s->slot_capacity = old ? old * 2 : 1024;
        s->slot_of = realloc(s->slot_of, s->slot_capacity * sizeof *s->slot_of);
        must(s->slot_of != NULL);
        memset(s->slot_of + old, 0, (s->slot_capacity - old) * sizeof *s->slot_of);
    }
    if (s->slot_of[number] != 0 && s->slot_of[number] != e->slot)
        world_fail(w, "P4: value %llu is applied in slots %llu and %llu", u(number), u(s->slot_of[number]), u(e->slot));
    s->slot_of[number] = e->slot;
    for (uint32_t i = 0; i < pr->pending_count; i++) {
        if (pr->pending[i] != number) continue;
        pr->pending[i] = pr->pending[--pr->pending_count];
        check_acknowledged(w, node, e->slot);
        s->acknowledged++;
        if (number == s->healed_value) s->healed_done = true;
    }
}

/* ------------------------------------------------------------------ the driver of one process */

static void input(struct world *w, uint16_t node, const struct input *in) {
    struct process *pr = &state_of(w)->processes[node];
    struct paxos_input pi = {.now_ms = world_local_ms(w, node)};
    switch (in->kind) {
    case INPUT_TICK: pi.kind = PAXOS_TICK; break;
    case INPUT_PACKET:
        if (pr->p == NULL) return;
        const struct parcel *parcel = (const struct parcel *)in->packet->data;
        if (parcel->snapshot) {
            if (parcel->slot > pr->snapshot.slot) {
                pr->snapshot.slot = parcel->slot;
                pr->snapshot.members = parcel->members;
            }
            return;
        }
        pi.kind = PAXOS_MESSAGE;
        pi.message = &parcel->m;
        check_heard(w, node, pi.message);
        break;
    case INPUT_DURABLE:
        pi.kind = PAXOS_DURABLE;
        pi.batch = in->number;
        break;
    case INPUT_FILE: break;
    case INPUT_CLIENT:
        for (uint64_t i = 0; i < in->number && pr->p != NULL; i++) (void)propose(w, node);
        return;
    case INPUT_LINK: return;
    }
    if (pr->p != NULL) (void)!paxos_step(pr->p, &pi);
}

/* ------------------------------------------------------------------ checkpoints */

/* The state as it is, durable at once; the log is kept back to the one before. */
static void checkpoint(struct world *w, uint16_t node) {
    struct process *pr = &state_of(w)->processes[node];
    struct disk *d = &w->nodes[node].disk;
    if (pr->applied < d->snapshot.slot + state_of(w)->checkpoint_slots || pr->members.now.voters == 0) return;
    const paxos_slot before = d->snapshot.slot;
    /* a start reads the entries above it, so all below must be chosen for a reader of this disk too */
    d->snapshot.slot = pr->applied;
    d->snapshot.members = pr->members;
    disk_cut(d, before);
    paxos_cut(pr->p, before);
}
static void install(struct world *w, uint16_t node) {
    struct process *pr = &state_of(w)->processes[node];
    struct disk *d = &w->nodes[node].disk;
    const paxos_slot slot = pr->snapshot.slot;
    const struct members m = pr->snapshot.members;
    pr->snapshot.slot = 0;
    if (slot <= pr->applied) return;
    world_trace(w, "n%u installs a snapshot of slot %llu", node, u(slot));
    d->snapshot.slot = slot;
    d->snapshot.members = m;
    disk_cut(d, slot);
    check_installed(w, node, slot, &m);
    pr->members = m;
    pr->applied = slot;
    pr->pending_count = 0;
    const struct membership *governing = members_governing(&m, slot + 1, w->config_delay);
    paxos_install(pr->p, world_local_ms(w, node), slot, governing, m.has_next && governing == &m.now ? &m.next : NULL);
}

static void fetch(struct world *w, uint16_t node, const struct paxos_fetch *f) {
    struct paxos_entry entries[64];
    uint32_t count = 0;
    const struct disk *d = &w->nodes[node].disk;
    if (f->snapshot) {
        struct packet *p = packet_new(w, node, sizeof(struct parcel));
        *(struct parcel *)p->data =
            (struct parcel){.snapshot = true, .slot = d->snapshot.slot, .members = d->snapshot.members};
        world_send(w, node, f->to, p);
        return;
    }
    const uint32_t most = (uint32_t)world_between(w, 1, 64);
    for (paxos_slot s = f->from_slot; s <= f->to_slot && count < most; s++) {
        const struct disk_entry *e = disk_at(d, s);
        check_fetched(w, node, s, e);
        if (e == NULL) break;
        entries[count++] = (struct paxos_entry){.slot = s, .ballot = e->ballot, .value = slice_of(e->data, e->bytes)};
    }
    if (count == 0) return;
    const struct paxos_msg m = {
        .kind = PAXOS_MSG_CHOSEN, .from = node, .to = f->to, .entries = entries, .entry_count = count};
    world_send(w, node, f->to, pack(w, node, &m));
}
static void take_all(struct world *w, uint16_t node, uint64_t *ret_wake_ms) {
    struct process *pr = &state_of(w)->processes[node];
    struct paxos_output out;
    while (paxos_take(pr->p, &out) && !w->failed) {
        check_promises(w, node, &out);
        check_applies(w, node, &out);
        if (out.batch != 0) world_save(w, node, out.batch, &out, NULL);
        for (uint32_t i = 0; i < out.send_now_count; i++)
            world_send(w, node, out.sends_now[i].to, pack(w, node, &out.sends_now[i]));
        for (uint32_t i = 0; i < out.send_after_count; i++)
            world_send_after(w, node, out.sends_after[i].to, pack(w, node, &out.sends_after[i]),
                             w->nodes[node].last_batch);
        for (uint32_t i = 0; i < out.apply_count; i++) applied(w, node, &out.applies[i]);
        for (uint32_t i = 0; i < out.fetch_count; i++) fetch(w, node, &out.fetches[i]);
    }
    *ret_wake_ms = out.wake_at_ms;
}
static uint64_t turn(struct world *w, uint16_t node) {
    static const char *const roles[] = {"follower", "prevoting", "preparing", "settling", "leading", "halted"};
    struct process *pr = &state_of(w)->processes[node];
    uint64_t wake_ms;
    if (pr->p == NULL) return UINT64_MAX;
    take_all(w, node, &wake_ms);
    if (w->failed) return wake_ms;
    const uint64_t roll = world_below(w, 4);
    if (pr->snapshot.slot != 0 && roll < 3) {
        install(w, node);
        take_all(w, node, &wake_ms);
    } else if (w->swarm.checkpoints && roll == 3) {
        checkpoint(w, node);
    }
    if (w->failed) return wake_ms;
    /* A question asked now is answered by a round that begins now. */
    if (pr->read_count < 64 && paxos_role(pr->p) == PAXOS_LEADING && world_chance(w, 100000)) {
        const paxos_slot before = check_acknowledged_max(w);
        const uint64_t round = paxos_confirm(pr->p, world_local_ms(w, node));
        if (round == 0) world_fail(w, "P8: n%u leads and confirms nothing", node);
        pr->reads[pr->read_count++] = (struct read_asked){.round = round, .before = before};
        take_all(w, node, &wake_ms);
    }
    if (paxos_role(pr->p) != PAXOS_LEADING) pr->read_count = 0;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < pr->read_count; i++) {
        if (paxos_confirmed(pr->p) >= pr->reads[i].round)
            check_read(w, node, pr->reads[i].before, "round");
        else
            pr->reads[kept++] = pr->reads[i];
    }
    pr->read_count = kept;
    if (paxos_role(pr->p) != pr->role) {
        pr->role = paxos_role(pr->p);
        world_trace(w, "n%u is %s under %llu.%u", node, roles[pr->role], u(paxos_ballot(pr->p).round),
                    paxos_ballot(pr->p).node);
        if (pr->role == PAXOS_HALTED) world_fail(w, "must: n%u halts: %s", node, paxos_halt_reason(pr->p));
    }
    if (paxos_chosen(pr->p) != check_applied(w, node)) world_fail(w, "P4: n%u counts slots it did not hand out", node);
    return wake_ms;
}

/* ------------------------------------------------------------------ load, healing */

static int leader(struct world *w) {
    int found = -1;
    for (uint16_t i = 0; i < w->node_count; i++) {
        const struct process *pr = &state_of(w)->processes[i];
        if (!w->nodes[i].up || pr->p == NULL || paxos_role(pr->p) != PAXOS_LEADING ||
            !paxos_lease_good(pr->p, world_local_ms(w, i)))
            continue;
        if (found >= 0) return -1;
        found = i;
    }
    return found;
}

/* ------------------------------------------------------------------ the administrator */

/* Of the voters, some removed or one lost, a majority has its disks. */
static bool majority_without(const struct world *w, uint16_t removed, uint16_t lost) {
    const struct membership *m = check_newest(w);
    uint32_t voters = 0, sound = 0;
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (!(m->voters & ~removed & 1u << i)) continue;
        voters++;
        sound += !w->nodes[i].wiped && !w->nodes[i].gone && i != lost;
    }
    return sound > voters / 2;
}
/* The same, whatever becomes of the removals that were proposed and may be chosen yet. */
static bool bearable(struct world *w, uint16_t removed, uint16_t lost) {
    struct state *s = state_of(w);
    const struct membership *m = check_newest(w);
    const uint16_t one = removed < SIM_NODES_MAX ? (uint16_t)(1u << removed) : 0;
    for (uint16_t i = 0; i < SIM_NODES_MAX; i++) {
        if (m->store_ids[i] != s->doubts[i]) s->doubts[i] = 0;
    }
    for (uint16_t some = 0; some < 1 << SIM_NODES_MAX; some++) {
        bool may_go = true;
        for (uint16_t i = 0; i < SIM_NODES_MAX && may_go; i++) may_go = !(some >> i & 1) || s->doubts[i] != 0;
        if (may_go && !majority_without(w, some | one, lost)) return false;
    }
    return true;
}
/* The newest membership is in effect and its majority has everything that was chosen before it. */
static bool in_effect(const struct world *w, uint32_t inflight_max) {
    return check_newest(w)->slot == 0 ||
           check_prefix(w) >= check_newest(w)->slot + w->config_delay + 2 * (uint64_t)inflight_max;
}
static void administrate(struct world *w, uint16_t node) {
    struct state *s = state_of(w);
    struct process *pr = &s->processes[node];
    const struct membership *m = members_newest(&pr->members);
    if (m->slot == 0) {
        if (world_chance(w, 300000)) (void)propose_change(w, node, (struct change){.kind = CHANGE_FOUND});
        return;
    }
    if (s->calm || !world_chance(w, 40000)) return;
    if (pr->applied < m->slot + w->config_delay && !world_chance(w, 50000)) return; /* one at a time */
    const uint16_t seat = (uint16_t)world_below(w, w->node_count);
    const uint16_t bit = (uint16_t)(1u << seat);
    struct change c = {.seat = seat, .store_id = w->nodes[seat].disk.store_id};
    if (m->learners & bit) {
        c.kind = paxos_caught_up(pr->p, seat) ? CHANGE_PROMOTE : CHANGE_NONE;
        if (world_chance(w, 200000)) c.kind = CHANGE_REMOVE;
    } else if (m->voters & bit) {
        const bool lost = m->store_ids[seat] != c.store_id;
        if ((lost || world_chance(w, 300000)) && bearable(w, seat, SIM_NODES_MAX)) c.kind = CHANGE_REMOVE;
    } else {
        c.kind = CHANGE_ADD;
    }
    if (c.kind == CHANGE_REMOVE) c.store_id = m->store_ids[seat];
    if (c.kind == CHANGE_REMOVE) s->doubts[seat] = c.store_id;
    if (c.kind != CHANGE_NONE) (void)propose_change(w, node, c);
}
/* Somebody wants another leader, that one or any. */
static void give_away(struct world *w, uint16_t node) {
    const uint16_t heir = world_chance(w, 500000) ? PAXOS_NODES_MAX : (uint16_t)world_below(w, w->node_count);
    if (paxos_transfer(state_of(w)->processes[node].p, world_local_ms(w, node), heir) != PAXOS_TAKEN) return;
    world_trace(w, "n%u is to hand over to %u", node, heir);
    world_client_input(w, node, 0);
}
static bool may_wipe(struct world *w, uint16_t node) {
    const uint32_t inflight_max = state_of(w)->inflight_max;
    if (w->nodes[node].wiped || w->nodes[node].disk.record.cluster_id == 0 || !in_effect(w, inflight_max)) return false;
    return !check_member(w, node) || bearable(w, SIM_NODES_MAX, node);
}

static void load(struct world *w) {
    struct state *s = state_of(w);
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (world_chance(w, 300000)) join(w, i);
        if (!w->nodes[i].up || s->processes[i].p == NULL || paxos_role(s->processes[i].p) != PAXOS_LEADING) continue;
        if (s->quiet) continue;
        if (w->swarm.members) administrate(w, i);
        if (!s->calm && world_chance(w, s->hand_over_ppm)) give_away(w, i);
        world_client_input(w, i, world_chance(w, 100000) ? world_between(w, 2, 40) : 1);
    }
}
static void heal(struct world *w) {
    struct state *s = state_of(w);
    s->heal_us = w->now_us;
    s->calm = true;
    s->healed_value = 0;
    s->healed_done = false;
}
static bool settled(struct world *w) {
    struct state *s = state_of(w);
    const int l = leader(w);
    if (l < 0) return false;
    if (s->healed_value == 0 || (!s->healed_done && s->processes[l].pending_count == 0))
        s->healed_value = propose(w, (uint16_t)l);
    if (!s->healed_done) {
        world_client_input(w, (uint16_t)l, 0);
        return false;
    }
    const struct membership *m = check_newest(w);
    if (m->slot != 0 && check_prefix(w) + 1 < m->slot + w->config_delay) return false; /* a change has an end */
    if (!(m->voters >> l & 1)) return false; /* who is no voter any more gives leadership away */
    const paxos_slot need = check_acknowledged_max(w);
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (!w->nodes[i].wiped && !w->nodes[i].gone && check_member(w, i) &&
            (check_applied(w, i) < need || s->processes[i].p == NULL))
            return false;
    }
    return true;
}
/* Planned: leadership goes to another voter, and nothing is lost on the way. */
static void hand_over(struct world *w) {
    struct state *s = state_of(w);
    const int from = leader(w);
    if (from < 0 || w->failed ||
        paxos_transfer(s->processes[from].p, world_local_ms(w, (uint16_t)from), PAXOS_NODES_MAX) != PAXOS_TAKEN)
        return;
    world_trace(w, "n%d is to hand over", from);
    world_client_input(w, (uint16_t)from, 0);
    const uint64_t begin_us = w->now_us;
    int now = from;
    while (!w->failed && (now == from || now < 0) && w->now_us < begin_us + HAND_OVER_MS_MAX * 1000) {
        world_run_until(w, w->now_us + 1000);
        now = leader(w);
    }
    world_trace(w, "n%d leads after %.3f ms", now, (double)(w->now_us - begin_us) / 1000.0);
    if (!w->failed && (now == from || now < 0))
        world_fail(w, "P13: a planned hand-over took more than %d ms", HAND_OVER_MS_MAX);
}
/* Nobody has work, and yet a change takes effect. */
static void change_when_idle(struct world *w) {
    struct state *s = state_of(w);
    const struct membership *m = check_newest(w);
    const paxos_slot before = m->slot;
    const int l = leader(w);
    uint16_t seat = 0;
    while (seat < w->node_count && ((m->voters | m->learners) >> seat & 1)) seat++;
    if (l < 0 || before == 0 || seat == w->node_count) return;
    const uint64_t begin_us = w->now_us;
    const struct change c = {.kind = CHANGE_ADD, .seat = seat, .store_id = w->nodes[seat].disk.store_id};
    if (!propose_change(w, (uint16_t)l, c)) return;
    s->quiet = true;
    world_client_input(w, (uint16_t)l, 0);
    bool done = false;
    while (!w->failed && !done && w->now_us < begin_us + CHANGE_MS_MAX * 1000) {
        world_run_until(w, w->now_us + 10000);
        m = check_newest(w);
        done = m->slot > before && check_prefix(w) + 1 >= m->slot + w->config_delay;
    }
    if (!w->failed && !done) world_fail(w, "P10: a change did not take effect within %d ms", CHANGE_MS_MAX);
    s->quiet = false;
}
static void stretch(struct world *w) {
    change_when_idle(w);
    for (int i = 0; i < 3 && !w->failed; i++) {
        hand_over(w);
        if (!w->failed) world_run_until(w, w->now_us + world_between(w, 1, 1000) * 1000);
    }
}
static void end(struct world *w) {
    check_end(w);
}
static const struct paxos *paxos(const struct world *w, uint16_t node) {
    return state_of(w)->processes[node].p;
}

const struct sim_object sim_paxos = {.name = "paxos",
                                     .wipes = 3,
                                     .may_wipe = may_wipe,
                                     .stretch = stretch,
                                     .change = change,
                                     .matters = matters,
                                     .begin = begin,
                                     .start = start,
                                     .stop = stop,
                                     .input = input,
                                     .turn = turn,
                                     .load = load,
                                     .leader = leader,
                                     .heal = heal,
                                     .settled = settled,
                                     .end = end,
                                     .release = release,
                                     .paxos = paxos,
                                     .message = message};
