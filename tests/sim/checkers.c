/* checkers.c - see checkers.h. */
#include "tests/sim/checkers.h"
#include <stdlib.h>
#include <string.h>
#include "common/must.h"
#include "tests/sim/object.h"

struct attempt { /* one (slot, ballot): one value, and where it was accepted */
    struct ballot ballot;
    uint64_t value;
    uint16_t accepted;
};
struct slot_facts {
    struct attempt *attempts;
    uint32_t count, capacity;
    bool chosen;
    uint64_t value;
};
struct heard {
    struct ballot ballot;
    uint64_t round, local_ms;
    uint32_t lease_ms;
};
struct node_facts {
    paxos_slot applied;
    struct heard heard[256];
    uint32_t heard_at;
    struct ballot grant; /* the highest ballot it acknowledged, over restarts */
    uint64_t grant_until_ms;
    struct ballot promise; /* the last one given to a prepare of somebody else */
    uint64_t promise_ms;
    struct ballot leader, promise_leader; /* the highest that led; the same when that promise was made */
    uint64_t prepare_round, prepare_boot;
};
struct campaign { /* one ballot */
    struct ballot ballot;
    uint16_t granted, promised; /* by whom, the own node included */
};
struct checker {
    struct campaign campaigns[1024];
    struct slot_facts *slots;
    size_t slot_capacity;
    struct node_facts nodes[SIM_NODES_MAX];
    paxos_slot acknowledged_max;
};

static uint64_t digest(struct slice s) { /* FNV-1a, with the length */
    uint64_t h = UINT64_C(0xcbf29ce484222325) ^ s.bytes;
    for (size_t i = 0; i < s.bytes; i++) h = (h ^ (uint8_t)s.data[i]) * UINT64_C(0x100000001b3);
    return h;
}
static unsigned long long u(uint64_t x) {
    return x;
}

static struct slot_facts *facts(struct world *w, paxos_slot slot) {
    struct checker *c = w->checker;
    while (slot >= c->slot_capacity) {
        const size_t old = c->slot_capacity;
        c->slot_capacity = old ? old * 2 : 1024;
        c->slots = realloc(c->slots, c->slot_capacity * sizeof *c->slots);
        must(c->slots != NULL);
        memset(c->slots + old, 0, (c->slot_capacity - old) * sizeof *c->slots);
    }
    return &c->slots[slot];
}
static struct attempt *attempt_find(struct slot_facts *f, struct ballot b) {
    for (uint32_t i = f->count; i-- > 0;) {
        if (ballot_equal(f->attempts[i].ballot, b)) return &f->attempts[i];
    }
    return NULL;
}
/* P2: this value exists under (slot, ballot). */
static struct attempt *attempt_note(struct world *w, uint16_t node, paxos_slot slot, struct ballot b, uint64_t value) {
    struct slot_facts *f = facts(w, slot);
    struct attempt *a = attempt_find(f, b);
    if (a != NULL) {
        if (a->value != value)
            world_fail(w, "P2: n%u has a second value for slot %llu ballot %llu.%u", node, u(slot), u(b.round), b.node);
        return a;
    }
    if (f->count == f->capacity) {
        f->capacity = f->capacity ? f->capacity * 2 : 4;
        f->attempts = realloc(f->attempts, f->capacity * sizeof *f->attempts);
        must(f->attempts != NULL);
    }
    a = &f->attempts[f->count++];
    *a = (struct attempt){.ballot = b, .value = value};
    return a;
}
static void attempt_accepted(struct world *w, uint16_t node, paxos_slot slot, struct attempt *a) {
    a->accepted |= (uint16_t)(1u << node);
    if ((uint32_t)__builtin_popcount(a->accepted) < w->node_count / 2u + 1) return;
    struct slot_facts *f = facts(w, slot);
    if (f->chosen && f->value != a->value)
        world_fail(w, "P2: slot %llu has two chosen values, the second under ballot %llu.%u", u(slot),
                   u(a->ballot.round), a->ballot.node);
    f->chosen = true;
    f->value = a->value;
}

void check_begin(struct world *w) {
    w->checker = calloc(1, sizeof *w->checker);
    must(w->checker != NULL);
}
void check_release(struct world *w) {
    for (size_t i = 0; i < w->checker->slot_capacity; i++) free(w->checker->slots[i].attempts);
    free(w->checker->slots);
    free(w->checker);
}
void check_start(struct world *w, uint16_t node) {
    struct node_facts *n = &w->checker->nodes[node];
    n->applied = w->nodes[node].disk.chosen;
    memset(n->heard, 0, sizeof n->heard);
}

void check_durable(struct world *w, uint16_t node, const struct disk_write *t) {
    const struct disk *d = &w->nodes[node].disk;
    if (t->save_promise && ballot_compare(t->promised, d->promised) < 0)
        world_fail(w, "P1: the promise of n%u goes from %llu.%u down to %llu.%u", node, u(d->promised.round),
                   d->promised.node, u(t->promised.round), t->promised.node);
    if (t->lease_ms != 0 && t->lease_ms < d->lease_ms_max) world_fail(w, "P8: the longest lease of n%u shrinks", node);
    if (t->chosen != 0 && t->chosen < d->chosen) world_fail(w, "P4: chosen of n%u goes down", node);
    for (uint32_t i = 0; i < t->count; i++) {
        const struct paxos_entry *e = &t->entries[i];
        struct attempt *a = attempt_note(w, node, e->slot, e->ballot, digest(e->value));
        attempt_accepted(w, node, e->slot, a);
    }
}

/* ------------------------------------------------------------------ messages */

static struct campaign *campaign(struct world *w, struct ballot b) {
    struct campaign *c = &w->checker->campaigns[(b.round * SIM_NODES_MAX + b.node) % 1024];
    if (!ballot_equal(c->ballot, b)) *c = (struct campaign){.ballot = b};
    c->granted |= (uint16_t)(1u << b.node);
    return c;
}
static bool many(const struct world *w, uint16_t mask) {
    return (uint32_t)__builtin_popcount(mask) >= w->node_count / 2u + 1;
}
static void promise_is_durable(struct world *w, uint16_t node, struct ballot b, const char *what) {
    if (ballot_compare(w->nodes[node].disk.promised, b) < 0)
        world_fail(w, "P3: %s of n%u for ballot %llu.%u leaves before the promise is on its disk", what, node,
                   u(b.round), b.node);
}
static void check_prepare(struct world *w, uint16_t from, const struct paxos_msg *m) {
    struct node_facts *n = &w->checker->nodes[from];
    promise_is_durable(w, from, m->ballot, "the prepare");
    if (!many(w, campaign(w, m->ballot)->granted))
        world_fail(w, "P7: n%u prepares %llu.%u, a majority did not let it", from, u(m->ballot.round), m->ballot.node);
    const uint64_t boot = w->nodes[from].boot;
    if (n->prepare_round >= m->ballot.round && n->prepare_boot != boot)
        world_fail(w, "P3: ballot %llu.%u serves two lives of n%u", u(m->ballot.round), m->ballot.node, from);
    if (m->ballot.round > n->prepare_round) {
        n->prepare_round = m->ballot.round;
        n->prepare_boot = boot;
    }
}
static void check_promise(struct world *w, uint16_t from, const struct paxos_msg *m) {
    promise_is_durable(w, from, m->ballot, "the promise");
    const struct disk *d = &w->nodes[from].disk;
    const paxos_slot chosen = paxos_chosen(w->object->paxos(w, from));
    uint32_t at = 0;
    for (paxos_slot s = m->slot; s <= d->top && s <= m->slot_last; s++) {
        const struct disk_entry *e = disk_at(d, s);
        if (e == NULL || s <= chosen || ballot_compare(e->ballot, m->ballot) >= 0) continue;
        while (at < m->entry_count && m->entries[at].slot < s) at++;
        if (at == m->entry_count || m->entries[at].slot != s)
            world_fail(w, "P2: the promise of n%u does not report slot %llu", from, u(s));
    }
}
static void check_accepted(struct world *w, uint16_t from, const struct paxos_msg *m) {
    const struct disk *d = &w->nodes[from].disk;
    promise_is_durable(w, from, m->ballot, "the acceptance");
    for (paxos_slot s = m->slot; s <= m->slot_last; s++) {
        const struct disk_entry *e = disk_at(d, s);
        if (s <= d->cut) continue; /* a checkpoint holds its effect */
        const bool settled = paxos_chosen(w->object->paxos(w, from)) >= s;
        if (e == NULL || (ballot_compare(e->ballot, m->ballot) < 0 && !settled)) {
            world_fail(w, "P3: n%u reports slot %llu accepted under %llu.%u before it is on its disk", from, u(s),
                       u(m->ballot.round), m->ballot.node);
            return;
        }
        struct attempt *a = attempt_find(facts(w, s), m->ballot);
        if (a != NULL) attempt_accepted(w, from, s, a);
    }
}
/* P8: an acknowledged round is a grant that began when the question was taken in. */
static void check_grant(struct world *w, uint16_t from, const struct paxos_msg *m) {
    struct node_facts *n = &w->checker->nodes[from];
    if (w->wild) return;
    const struct heard *h = NULL;
    for (uint32_t i = 0; i < 256; i++) {
        if (n->heard[i].round == m->round && ballot_equal(n->heard[i].ballot, m->ballot)) h = &n->heard[i];
    }
    if (h == NULL) return; /* long ago: its grant has nearly ended */
    if (w->nodes[from].disk.lease_ms_max < h->lease_ms)
        world_fail(w, "P8: n%u grants a lease of %u ms, its disk knows %u", from, h->lease_ms,
                   w->nodes[from].disk.lease_ms_max);
    const uint64_t until = h->local_ms + h->lease_ms;
    /* who leads under a higher ballot has a majority of promises: the lower one's lease is over, for everybody */
    if (ballot_compare(n->promise_leader, m->ballot) <= 0 && ballot_compare(n->promise, m->ballot) > 0 &&
        n->promise.node != m->ballot.node && n->promise_ms >= h->local_ms && n->promise_ms < until)
        world_fail(w, "P8: n%u promised n%u while its grant to n%u lasted", from, n->promise.node, m->ballot.node);
    const int order = ballot_compare(m->ballot, n->grant);
    if (order < 0) return;
    if (order > 0 || until > n->grant_until_ms) n->grant_until_ms = until;
    n->grant = m->ballot;
}

/* Who leads has the promises of a majority, its own on its disk; and grants itself what it asks of others. */
static void check_leads(struct world *w, uint16_t node, const struct paxos_msg *m) {
    promise_is_durable(w, node, m->ballot, "leading");
    if (!many(w, campaign(w, m->ballot)->promised | (uint16_t)(1u << node)))
        world_fail(w, "P2: n%u leads under %llu.%u without the promises of a majority", node, u(m->ballot.round),
                   m->ballot.node);
    if (m->round == 0) return;
    struct node_facts *n = &w->checker->nodes[node];
    if (ballot_compare(m->ballot, n->leader) > 0) n->leader = m->ballot;
    if (ballot_compare(m->ballot, n->grant) < 0) return;
    n->grant = m->ballot;
    if (m->kind == PAXOS_MSG_HEARTBEAT) n->grant_until_ms = world_local_ms(w, node) + m->lease_ms;
}

void check_emit(struct world *w, uint16_t from, uint16_t to, const struct packet *p) {
    struct paxos_msg m;
    if (!w->object->message(w, p, &m)) return;
    object_trace(w, from, to, &m);
    if (w->nodes[from].wiped) world_fail(w, "P11: n%u lost its disk and speaks Paxos again", from);
    switch (m.kind) {
    case PAXOS_MSG_PREVOTE_REPLY:
        if (m.granted) campaign(w, m.ballot)->granted |= (uint16_t)(1u << from);
        break;
    case PAXOS_MSG_PREPARE: check_prepare(w, from, &m); break;
    case PAXOS_MSG_PROMISE:
        check_promise(w, from, &m);
        if (m.slot_last == UINT64_MAX) campaign(w, m.ballot)->promised |= (uint16_t)(1u << from);
        break;
    case PAXOS_MSG_ACCEPTED:
        check_accepted(w, from, &m);
        check_grant(w, from, &m);
        break;
    case PAXOS_MSG_HEARTBEAT_ACK: check_grant(w, from, &m); break;
    case PAXOS_MSG_HEARTBEAT: check_leads(w, from, &m); break;
    case PAXOS_MSG_ACCEPT:
        check_leads(w, from, &m);
        for (uint32_t i = 0; i < m.entry_count; i++)
            (void)attempt_note(w, from, m.entries[i].slot, m.entries[i].ballot, digest(m.entries[i].value));
        break;
    default: break;
    }
}

void check_heard(struct world *w, uint16_t node, const struct paxos_msg *m) {
    if ((m->kind != PAXOS_MSG_HEARTBEAT && m->kind != PAXOS_MSG_ACCEPT) || m->round == 0) return;
    struct node_facts *n = &w->checker->nodes[node];
    if (ballot_compare(m->ballot, n->leader) > 0) n->leader = m->ballot;
    for (uint32_t i = 0; i < 256;
         i++) { /* repeated: the later one extends the grant, the first is what is safe to say */
        if (n->heard[i].round == m->round && ballot_equal(n->heard[i].ballot, m->ballot)) return;
    }
    n->heard[n->heard_at++ % 256] = (struct heard){
        .ballot = m->ballot, .round = m->round, .local_ms = world_local_ms(w, node), .lease_ms = m->lease_ms};
}

void check_promises(struct world *w, uint16_t node, const struct paxos_output *out) {
    struct node_facts *n = &w->checker->nodes[node];
    if (w->wild) return;
    const uint64_t now = world_local_ms(w, node);
    for (uint32_t i = 0; i < out->send_after_count + out->send_now_count; i++) {
        const struct paxos_msg *m =
            i < out->send_after_count ? &out->sends_after[i] : &out->sends_now[i - out->send_after_count];
        if (m->kind != PAXOS_MSG_PROMISE || !out->save_promise || !ballot_equal(m->ballot, out->promised)) continue;
        if (ballot_compare(n->leader, n->grant) <= 0 && m->ballot.node != n->grant.node && n->grant.round > 0 &&
            now < n->grant_until_ms)
            world_fail(w, "P8: n%u promises n%u while its grant to n%u lasts", node, m->ballot.node, n->grant.node);
        n->promise = m->ballot;
        n->promise_ms = now;
        n->promise_leader = n->leader;
    }
}

void check_applies(struct world *w, uint16_t node, const struct paxos_output *out) {
    struct node_facts *n = &w->checker->nodes[node];
    for (uint32_t i = 0; i < out->apply_count; i++) {
        const struct paxos_entry *e = &out->applies[i];
        if (e->slot != n->applied + 1)
            world_fail(w, "P4: n%u applies slot %llu after %llu", node, u(e->slot), u(n->applied));
        n->applied = e->slot;
        const struct slot_facts *f = facts(w, e->slot);
        if (!f->chosen)
            world_fail(w, "P2: n%u applies slot %llu, which nobody has chosen", node, u(e->slot));
        else if (f->value != digest(e->value))
            world_fail(w, "P2: n%u applies another value in slot %llu than was chosen", node, u(e->slot));
    }
}

/* ------------------------------------------------------------------ leases, reads, ends */

static bool believes(const struct world *w, uint16_t node) {
    if (!w->nodes[node].up) return false;
    const struct paxos *p = w->object->paxos(w, node);
    return p != NULL && paxos_lease_good(p, world_local_ms(w, node));
}
void check_read(struct world *w, uint16_t node, paxos_slot before, const char *by) {
    if (w->checker->nodes[node].applied < before)
        world_fail(w, "P8: a read by %s at n%u sees slot %llu, but %llu was acknowledged before it was asked", by, node,
                   u(w->checker->nodes[node].applied), u(before));
}
void check_turn(struct world *w, uint16_t node) {
    if (w->wild || !believes(w, node)) return;
    check_read(w, node, w->checker->acknowledged_max, "lease");
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (i != node && believes(w, i)) world_fail(w, "P8: n%u and n%u believe their leases at one time", node, i);
    }
}
void check_fetched(struct world *w, uint16_t node, paxos_slot slot, const struct disk_entry *e) {
    const struct slot_facts *f = facts(w, slot);
    if (e == NULL || !f->chosen || f->value != digest(slice_of(e->data, e->bytes)))
        world_fail(w, "P2: n%u sends slot %llu as chosen, its disk has something else there", node, u(slot));
}
void check_conflicts(struct world *w, uint64_t *ret_slots, uint64_t *ret_rivals) {
    for (size_t s = 0; s < w->checker->slot_capacity; s++) {
        const struct slot_facts *f = &w->checker->slots[s];
        bool rivals = false;
        for (uint32_t i = 1; i < f->count; i++) rivals |= f->attempts[i].value != f->attempts[0].value;
        *ret_slots += f->count > 0;
        *ret_rivals += rivals;
    }
}
void check_acknowledged(struct world *w, uint16_t node, paxos_slot slot) {
    (void)node;
    if (slot > w->checker->acknowledged_max) w->checker->acknowledged_max = slot;
}
paxos_slot check_acknowledged_max(const struct world *w) {
    return w->checker->acknowledged_max;
}
paxos_slot check_applied(const struct world *w, uint16_t node) {
    return w->checker->nodes[node].applied;
}
void check_applied_is(struct world *w, uint16_t node, paxos_slot slot) {
    struct node_facts *n = &w->checker->nodes[node];
    if (slot < n->applied) world_fail(w, "P4: n%u goes back from slot %llu to %llu", node, u(n->applied), u(slot));
    for (paxos_slot s = n->applied + 1; s <= slot; s++) {
        if (!facts(w, s)->chosen) world_fail(w, "P2: n%u applies slot %llu, which nobody has chosen", node, u(s));
    }
    n->applied = slot;
}
void check_end(struct world *w) {
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (w->nodes[i].wiped || w->nodes[i].gone) continue;
        if (w->checker->nodes[i].applied < w->checker->acknowledged_max)
            world_fail(w, "n%u has applied %llu slots, %llu are acknowledged", i, u(w->checker->nodes[i].applied),
                       u(w->checker->acknowledged_max));
    }
}
