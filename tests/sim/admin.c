/* admin.c - see admin.h. */
#include "tests/sim/admin.h"
#include <stdio.h>
#include <string.h>
#include "tests/sim/check_paxos.h"
#include "tests/sim/clients.h"

enum { DATE_US = 4000000 }; /* and the patience of routers: then a command goes out under no other ballot */

static unsigned long long u(uint64_t x) {
    return x;
}
static uint16_t bit(uint16_t seat) {
    return (uint16_t)(1u << seat);
}
static uint64_t store_of(const struct world *w, uint16_t node) {
    return w->nodes[node].disk.store_id;
}

/* ------------------------------------------------------------------ what may be lost */

/* Learners whose disks are lost count as voters: their promotion may be on its way. */
static bool majority_without(const struct world *w, uint16_t out, uint16_t lost) {
    const struct membership *m = check_newest(w);
    uint32_t voters = 0, sound = 0;
    for (uint16_t i = 0; i < SIM_NODES_MAX; i++) {
        const bool votes = (m->voters & bit(i) & ~out) != 0, learns = (m->learners & bit(i)) != 0;
        const bool well = i < w->node_count && i != lost && !w->nodes[i].wiped && !w->nodes[i].gone &&
                          m->store_ids[i] == store_of(w, i);
        voters += votes || (learns && !well);
        sound += votes && well;
    }
    return sound > voters / 2;
}
static bool bearable(const struct admin *o, const struct world *w, uint16_t removed, uint16_t lost) {
    const uint16_t one = removed < SIM_NODES_MAX ? bit(removed) : 0, other = o->removal.open ? bit(o->removal.seat) : 0;
    return majority_without(w, 0, lost) && majority_without(w, one, lost) && majority_without(w, other, lost) &&
           majority_without(w, one | other, lost);
}
bool admin_can_lose(const struct clients *cs, const struct world *w, uint16_t node) {
    if (w->nodes[node].wiped || cs->admin.removal.open) return false;
    return !check_member(w, node) || bearable(&cs->admin, w, SIM_NODES_MAX, node);
}

/* ------------------------------------------------------------------ asking */

static void removal_done(struct admin *o) {
    if (!o->removal.lost) o->removal.open = false; /* else another copy of it may be about */
}
void admin_lost(struct clients *cs, struct world *w, const struct client *c) {
    struct admin *o = &cs->admin;
    if (c->asked_count == 0 || c->asked[0].a != CHANGE_REMOVE) return;
    o->removal.lost = true;
    o->removal.dated = false;
    o->removal.lost_us = w->now_us;
}
/* A lost copy of a removal can run until a later leader's first entry. */
static void look_at_removal(struct clients *cs, struct world *w) {
    struct admin *o = &cs->admin;
    if (!o->removal.open || !o->removal.lost) return;
    if (!o->removal.dated) {
        if (w->now_us < o->removal.lost_us + DATE_US + cs->forward_timeout_ms * UINT64_C(1100)) return;
        o->removal.dated = true;
        for (uint16_t i = 0; i < w->node_count; i++) {
            const struct ballot b = w->nodes[i].disk.promised;
            if (ballot_compare(b, o->removal.ballot) > 0) o->removal.ballot = b;
        }
        return;
    }
    if (ballot_compare(cs->log_ballot(w), o->removal.ballot) > 0) o->removal.open = o->removal.lost = false;
}

/* a: enum change_kind, CHANGE_NONE for a transfer; b: slot chosen when it was asked << 8 | seat. */
static void told(struct clients *cs, struct world *w, struct client *c, const struct asked *a, const struct reply *r) {
    static const char *const usual[] = {"BUSY",
                                        "CLUSTERDOWN",
                                        "UNCERTAIN",
                                        "ERR node ",
                                        "ERR that store is node",
                                        "ERR there is no such voter",
                                        "ERR that node did not catch up"};
    struct admin *o = &cs->admin;
    const uint16_t seat = (uint16_t)(a->b & 0xff);
    bool known = r->kind == (a->a == CHANGE_NONE ? ':' : '+');
    for (uint32_t i = 0; i < sizeof usual / sizeof usual[0]; i++) known = known || reply_is_error(r, usual[i]);
    if (!known) {
        world_fail(w, "E: the operator, client %llu, is told %c%.*s", u(c->id), r->kind, (int)r->text.bytes,
                   r->text.data);
        return;
    }
    if (a->a == CHANGE_REMOVE && reply_is_error(r, "UNCERTAIN")) {
        c->asked_count++; /* as if the connection had ended */
        admin_lost(cs, w, c);
        c->asked_count--;
    } else if (a->a == CHANGE_REMOVE) {
        removal_done(o);
    }
    if (r->kind == ':') o->transferred++;
    if (r->kind != '+') return;
    const uint64_t store = a->a == CHANGE_REMOVE ? 0 : o->adds[seat];
    if (!check_sat(w, a->b >> 8, seat, store))
        world_fail(w, "P10: client %llu is told that node %u is %s, and the log does not say so", u(c->id), seat + 1u,
                   store == 0 ? "out" : "in");
    if (store == 0)
        o->removed++;
    else
        o->added++;
}

static void transfer(struct clients *cs, struct world *w, struct client *c) {
    if (world_chance(w, 500000))
        client_says(cs, w, c, told, 0, CHANGE_NONE, 0, "NODE.TRANSFER");
    else
        client_says(cs, w, c, told, 0, CHANGE_NONE, 0, "NODE.TRANSFER %u", (unsigned)world_below(w, w->node_count) + 1);
}
static void remove_node(struct clients *cs, struct world *w, struct client *c, uint16_t seat) {
    struct admin *o = &cs->admin;
    if (o->removal.open && o->removal.seat != seat) return; /* one after the other */
    if (!bearable(o, w, seat, SIM_NODES_MAX)) return;
    o->removal.open = true;
    o->removal.seat = seat;
    client_says(cs, w, c, told, 0, CHANGE_REMOVE, check_prefix(w) << 8 | seat, "NODE.REMOVE %u", seat + 1u);
}
static void add_node(struct clients *cs, struct world *w, struct client *c, uint16_t seat, uint64_t store) {
    cs->admin.adds[seat] = store;
    client_says(cs, w, c, told, 0, CHANGE_ADD, check_prefix(w) << 8 | seat, "NODE.ADD %u 10.0.0.%u:7411 %016llx",
                seat + 1u, seat + 1u, u(store));
}
/* One of the things that can be done now, if there is one: who is lost first, then whatever comes. */
static void change_members(struct clients *cs, struct world *w, struct client *c) {
    const struct membership *m = check_newest(w);
    const uint16_t first = (uint16_t)world_below(w, w->node_count);
    const bool takes_out = world_chance(w, 400000);
    for (uint16_t i = 0; i < w->node_count && c->asked_count == 0; i++) {
        const uint16_t seat = (uint16_t)((first + i) % w->node_count);
        const bool sits = m->store_ids[seat] != 0, lost = sits && m->store_ids[seat] != store_of(w, seat);
        if (lost || (sits && takes_out))
            remove_node(cs, w, c, seat);
        else if (!sits && !takes_out && w->nodes[seat].up)
            add_node(cs, w, c, seat, store_of(w, seat));
    }
}
void admin_acts(struct clients *cs, struct world *w, struct client *c) {
    struct admin *o = &cs->admin;
    const struct membership *m = check_newest(w);
    if (w->now_us < o->next_us || w->calm) return;
    o->next_us = w->now_us + world_between(w, 5, world_chance(w, 200000) ? 1000 : 100) * 1000;
    const uint16_t seat = (uint16_t)world_below(w, w->node_count), other = (uint16_t)world_below(w, w->node_count);
    if (world_chance(w, o->removal.open && o->removal.lost ? 300000 : 70000))
        transfer(cs, w, c);
    else if (world_chance(w, 30000) && m->store_ids[other] != 0 && m->store_ids[seat] != 0)
        add_node(cs, w, c, seat, m->store_ids[other]); /* makes no sense, or was done long ago */
    else if (o->removal.open && world_chance(w, 500000))
        remove_node(cs, w, c, o->removal.seat);
    else
        change_members(cs, w, c);
}
/* A node that knows no address of anybody who is in now learns nothing of its own: its configuration is mended. */
static void look_at_lists(struct clients *cs, struct world *w) {
    const uint16_t node = (uint16_t)world_below(w, w->node_count);
    bool others = false, reached = false;
    if (w->nodes[node].disk.record.cluster_id == 0) return; /* the cluster has to form by the list that it has */
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (i == node || !check_member(w, i)) continue;
        others = true;
        reached = reached || (w->nodes[i].up && w->object->dials(w, node, i));
    }
    if (cs->admin.listed[node] || !w->nodes[node].up || !others || reached || !world_chance(w, 200000)) return;
    world_trace(w, "n%u is given the list of those who are in", node);
    cs->admin.listed[node] = true;
    world_fall(w, node);
}
void admin_looks(struct clients *cs, struct world *w) {
    look_at_removal(cs, w);
    look_at_lists(cs, w);
    if (w->calm || !world_chance(w, 20000)) return;
    const uint16_t node = (uint16_t)world_below(w, w->node_count);
    const struct sim_node *n = &w->nodes[node];
    if (check_member(w, node) || n->disk.record.cluster_id == 0 || n->gone || !w->object->may_wipe(w, node)) return;
    world_trace(w, "the operator empties n%u, which is out", node);
    cs->admin.emptied++;
    world_empty(w, node);
}
