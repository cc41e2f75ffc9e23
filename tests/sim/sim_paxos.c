/* sim_paxos.c - Paxos alone in the simulated world.  Clients propose numbered values at whoever leads, and read under
 * the leader lease or with a confirmed round. */
#include <stdlib.h>
#include <string.h>
#include "common/must.h"
#include "tests/sim/checkers.h"
#include "tests/sim/object.h"

enum { ENTRIES_MAX = 1 << 17, VALUE_BYTES_MAX = 48, PENDING_MAX = 256 };

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
};
struct state {
    struct process processes[SIM_NODES_MAX];
    uint32_t inflight_max;
    uint64_t values;     /* handed to anybody so far */
    paxos_slot *slot_of; /* by value */
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
    w->user = s;
}
static void release(struct world *w) {
    free(state_of(w)->slot_of);
    free(w->user);
}

static struct membership founders(const struct world *w) {
    uint64_t ids[PAXOS_NODES_MAX];
    struct membership m;
    for (uint16_t i = 0; i < w->node_count; i++) ids[i] = w->nodes[i].disk.store_id;
    membership_founding(&m, w->node_count, ids);
    return m;
}

static void start(struct world *w, uint16_t node) {
    static struct paxos_entry entries[ENTRIES_MAX];
    struct paxos_saved saved;
    disk_read(&w->nodes[node].disk, &saved, entries, ENTRIES_MAX);
    const struct paxos_config config = {.alloc = &w->nodes[node].alloc,
                                        .node = node,
                                        .members = founders(w),
                                        .inflight_max = state_of(w)->inflight_max,
                                        .value_bytes_max = VALUE_BYTES_MAX,
                                        .heartbeat_ms = 50,
                                        .lease_ms = 300,
                                        .election_spread_ms = 100,
                                        .drift_ppm = SIM_DRIFT_PPM,
                                        .seed = world_random(w),
                                        .start_ms = world_local_ms(w, node)};
    struct process *pr = &state_of(w)->processes[node];
    *pr = (struct process){.p = paxos_new(&config, &saved)};
}
static void stop(struct world *w, uint16_t node) {
    struct process *pr = &state_of(w)->processes[node];
    paxos_free(pr->p);
    *pr = (struct process){0};
}

/* ------------------------------------------------------------------ messages as packets */

static struct packet *pack(struct world *w, uint16_t from, const struct paxos_msg *m) {
    size_t bytes = sizeof *m + m->entry_count * sizeof *m->entries;
    for (uint32_t i = 0; i < m->entry_count; i++) bytes += m->entries[i].value.bytes;
    struct packet *p = packet_new(w, from, bytes);
    struct paxos_msg *copy = (struct paxos_msg *)p->data;
    struct paxos_entry *entries = (struct paxos_entry *)(copy + 1);
    char *values = (char *)(entries + m->entry_count);
    *copy = *m;
    copy->entries = entries;
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
    *ret_message = *(const struct paxos_msg *)p->data;
    return true;
}

/* ------------------------------------------------------------------ values: u64 number, then padding */

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
    if (pr->pending_count < PENDING_MAX) pr->pending[pr->pending_count++] = number;
    return number;
}
static void applied(struct world *w, uint16_t node, const struct paxos_entry *e) {
    struct state *s = state_of(w);
    struct process *pr = &s->processes[node];
    const uint64_t number = value_number(e->value);
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
        pi.kind = PAXOS_MESSAGE;
        pi.message = (const struct paxos_msg *)in->packet->data;
        check_heard(w, node, pi.message);
        break;
    case INPUT_DURABLE:
        pi.kind = PAXOS_DURABLE;
        pi.batch = in->number;
        break;
    case INPUT_FILE: break;
    case INPUT_CLIENT:
        for (uint64_t i = 0; i < in->number; i++) (void)propose(w, node);
        return;
    case INPUT_LINK: return;
    }
    (void)!paxos_step(pr->p, &pi);
}

static void fetch(struct world *w, uint16_t node, const struct paxos_fetch *f) {
    struct paxos_entry entries[64];
    uint32_t count = 0;
    const uint32_t most = (uint32_t)world_between(w, 1, 64);
    for (paxos_slot s = f->from_slot; s <= f->to_slot && count < most; s++) {
        const struct disk_entry *e = disk_at(&w->nodes[node].disk, s);
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
    take_all(w, node, &wake_ms);
    if (w->failed) return wake_ms;
    /* A question asked now is answered by a round that begins now. */
    if (pr->read_count < 64 && paxos_role(pr->p) == PAXOS_LEADING && world_chance(w, 100000)) {
        const paxos_slot before = check_acknowledged_max(w);
        const uint64_t round = paxos_confirm(pr->p, world_local_ms(w, node));
        if (round == 0) world_fail(w, "n%u leads and confirms nothing", node);
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
        if (pr->role == PAXOS_HALTED) world_fail(w, "n%u halts: %s", node, paxos_halt_reason(pr->p));
    }
    if (paxos_chosen(pr->p) != check_applied(w, node)) world_fail(w, "P4: n%u counts slots it did not hand out", node);
    return wake_ms;
}

/* ------------------------------------------------------------------ load, healing */

static int leader(struct world *w) {
    int found = -1;
    for (uint16_t i = 0; i < w->node_count; i++) {
        const struct process *pr = &state_of(w)->processes[i];
        if (!w->nodes[i].up || paxos_role(pr->p) != PAXOS_LEADING || !paxos_lease_good(pr->p, world_local_ms(w, i)))
            continue;
        if (found >= 0) return -1;
        found = i;
    }
    return found;
}
static void load(struct world *w) {
    struct state *s = state_of(w);
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (!w->nodes[i].up || paxos_role(s->processes[i].p) != PAXOS_LEADING) continue;
        world_client_input(w, i, world_chance(w, 100000) ? world_between(w, 2, 40) : 1);
    }
}
static void heal(struct world *w) {
    struct state *s = state_of(w);
    s->heal_us = w->now_us;
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
    const paxos_slot need = check_acknowledged_max(w);
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (!w->nodes[i].gone && check_applied(w, i) < need) return false;
    }
    return true;
}
static void end(struct world *w) {
    check_end(w);
}
static const struct paxos *paxos(const struct world *w, uint16_t node) {
    return state_of(w)->processes[node].p;
}

const struct sim_object sim_paxos = {.name = "paxos",
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
