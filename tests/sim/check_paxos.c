/* check_paxos.c - see check_paxos.h. */
#include "tests/sim/check_paxos.h"
#include <stdlib.h>
#include <string.h>
#include "common/must.h"
#include "tests/sim/object.h"

struct attempt { /* one (slot, ballot): one value, and where it was accepted */
    struct ballot ballot;
    uint64_t value;
    uint16_t accepted;
    char *kept; /* the value itself, if it may change the membership */
    size_t kept_bytes;
};
struct slot_facts {
    struct attempt *attempts;
    uint32_t count, capacity;
    bool chosen;
    uint64_t value;
    struct slice kept; /* see struct attempt */
};
struct heard {
    struct ballot ballot;
    uint64_t round, local_ms;
    uint32_t lease_ms;
};
struct node_facts {
    paxos_slot applied, told; /* handed out; in takes before the last one, so that it was applied */
    struct heard heard[256];
    uint32_t heard_at;
    struct ballot grant; /* the highest ballot it acknowledged, over restarts */
    uint64_t grant_until_ms;
    struct ballot promise; /* the last one given to a prepare of somebody else */
    uint64_t promise_ms;
    struct ballot leader, promise_leader; /* the highest that led; the same when that promise was made */
    uint64_t prepare_round, prepare_boot;
};
struct votes { /* by the stores that sit there */
    uint64_t store_ids[SIM_NODES_MAX];
};
struct campaign { /* one ballot */
    struct ballot ballot;
    struct votes granted, promised; /* by whom; promised: with a report of what was accepted */
    struct votes followed;          /* acknowledged its leader */
    bool let; /* a majority had let it when it first asked for promises; what it learns later changes no ballot */
    bool begun;
    paxos_slot known; /* how far the candidate had applied when it began: whose pre-votes it needed */
    bool led;
    bool released; /* its leader has given it up */
    uint16_t heir; /* to whom */
};
enum { CAMPAIGNS = 8192, CONFIGS_MAX = 512 };
struct checker {
    struct campaign campaigns[CAMPAIGNS];
    struct membership configs[CONFIGS_MAX]; /* as the chosen log says, ascending; the first one is the founding one */
    uint32_t config_count;
    paxos_slot prefix; /* every slot up to here is chosen, and its change is in `configs` */
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

/* ------------------------------------------------------------------ configurations (P10) */

static const struct membership *config_of(const struct world *w, paxos_slot slot) {
    const struct checker *c = w->checker;
    uint32_t at = c->config_count - 1;
    while (at > 0 && slot < c->configs[at].slot + w->config_delay) at--;
    return &c->configs[at];
}
static const struct membership *newest(const struct world *w) {
    return &w->checker->configs[w->checker->config_count - 1];
}
static void prefix_on(struct world *w) {
    struct checker *c = w->checker;
    while (facts(w, c->prefix + 1)->chosen) {
        const struct slice value = facts(w, ++c->prefix)->kept;
        struct membership m = *newest(w);
        if (!w->object->change(w, c->prefix, value, &m)) continue;
        must(c->config_count < CONFIGS_MAX);
        c->configs[c->config_count++] = m;
        if (w->calm) world_recall(w);
        world_trace(w, "slot %llu: voters %x learners %x", u(c->prefix), m.voters, m.learners);
    }
}
static bool many_of(const struct membership *m, const struct votes *v) {
    uint32_t count = 0;
    for (uint16_t i = 0; i < SIM_NODES_MAX; i++) count += (m->voters >> i & 1) && v->store_ids[i] == m->store_ids[i];
    return count > (uint32_t)__builtin_popcount(m->voters) / 2;
}
/* In every configuration that governs a slot above `above`, as far as the log up to `known` says. */
static bool many(const struct world *w, paxos_slot above, paxos_slot known, const struct votes *v) {
    for (uint32_t i = 0; i < w->checker->config_count; i++) {
        const struct membership *m = &w->checker->configs[i];
        const bool over =
            i + 1 < w->checker->config_count && m[1].slot <= known && m[1].slot + w->config_delay <= above + 1;
        if (!over && m->slot <= known && !many_of(m, v)) return false;
    }
    return true;
}
static void vote(const struct world *w, struct votes *v, uint16_t node) {
    v->store_ids[node] = w->nodes[node].disk.store_id;
}

const struct membership *check_newest(const struct world *w) {
    return newest(w);
}
paxos_slot check_prefix(const struct world *w) {
    return w->checker->prefix;
}
bool check_sat(const struct world *w, paxos_slot since, uint16_t seat, uint64_t store_id) {
    const struct checker *c = w->checker;
    for (uint32_t i = c->config_count; i-- > 0;) {
        if (c->configs[i].store_ids[seat] == store_id) return true;
        if (c->configs[i].slot <= since) break;
    }
    return false;
}
void check_members(struct world *w, uint16_t node, paxos_slot slot, const struct members *m) {
    const struct checker *c = w->checker;
    const struct membership *want = &c->configs[c->config_count - 1];
    if (slot > c->prefix) return; /* told by check_applied_is */
    while (want->slot > slot) want--;
    if (!membership_equal(members_newest(m), want))
        world_fail(w, "P10: n%u at slot %llu has another newest membership than the log makes", node, u(slot));
    else if (!membership_equal(&m->now, config_of(w, slot + 1)))
        world_fail(w, "P10: n%u at slot %llu takes another membership for the one in force", node, u(slot));
}
bool check_member(const struct world *w, uint16_t node) {
    return newest(w)->store_ids[node] == w->nodes[node].disk.store_id;
}
static bool works(const struct world *w, uint16_t node) {
    return w->nodes[node].up && !w->nodes[node].wiped && !w->nodes[node].gone && w->object->paxos(w, node) != NULL;
}
/* The voters that are there, one left out, are a majority of every configuration in force. */
bool check_can_spare(const struct world *w, uint16_t node) {
    struct votes v = {{0}};
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (i != node && works(w, i)) vote(w, &v, i);
    }
    return many(w, w->checker->prefix, w->checker->prefix, &v);
}
bool check_can_lead(const struct world *w, uint16_t node) {
    return works(w, node) && check_member(w, node) && (newest(w)->voters >> node & 1);
}

/* P2: this value exists under (slot, ballot). */
static struct attempt *attempt_note(struct world *w, uint16_t node, const struct paxos_entry *e) {
    const paxos_slot slot = e->slot;
    const struct ballot b = e->ballot;
    const uint64_t value = digest(e->value);
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
    if (w->object->change != NULL && e->value.bytes > 0 && w->object->matters(e->value)) {
        a->kept = malloc(e->value.bytes);
        must(a->kept != NULL);
        memcpy(a->kept, e->value.data, e->value.bytes);
        a->kept_bytes = e->value.bytes;
    }
    return a;
}
static void attempt_accepted(struct world *w, uint16_t node, paxos_slot slot, struct attempt *a) {
    if (w->checker->prefix + w->config_delay < slot) {
        world_fail(w, "P10: n%u accepts slot %llu, whose configuration slot %llu decides, which nobody has chosen",
                   node, u(slot), u(w->checker->prefix + 1));
        return;
    }
    const struct membership *m = config_of(w, slot);
    if (m->store_ids[node] == w->nodes[node].disk.store_id) a->accepted |= (uint16_t)(1u << node);
    const uint16_t counted = a->accepted & m->voters;
    if (__builtin_popcount(counted) <= __builtin_popcount(m->voters) / 2) return;
    struct slot_facts *f = facts(w, slot);
    if (f->chosen && f->value != a->value)
        world_fail(w, "P2: slot %llu has two chosen values, the second under ballot %llu.%u", u(slot),
                   u(a->ballot.round), a->ballot.node);
    f->chosen = true;
    f->value = a->value;
    f->kept = slice_of(a->kept, a->kept_bytes);
    prefix_on(w);
}

void check_begin(struct world *w) {
    w->checker = calloc(1, sizeof *w->checker);
    must(w->checker != NULL);
}
void check_founded(struct world *w) {
    uint64_t ids[PAXOS_NODES_MAX];
    for (uint16_t i = 0; i < w->founders; i++) ids[i] = w->nodes[i].disk.store_id;
    membership_founding(&w->checker->configs[0], w->founders, ids);
    w->checker->config_count = 1;
}
void check_release(struct world *w) {
    for (size_t i = 0; i < w->checker->slot_capacity; i++) {
        struct slot_facts *f = &w->checker->slots[i];
        for (uint32_t k = 0; k < f->count; k++) free(f->attempts[k].kept);
        free(f->attempts);
    }
    free(w->checker->slots);
    free(w->checker);
}
void check_start(struct world *w, uint16_t node) {
    struct node_facts *n = &w->checker->nodes[node];
    const struct disk *d = &w->nodes[node].disk;
    n->applied = n->told = d->chosen > d->snapshot.slot ? d->chosen : d->snapshot.slot;
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
        if (e->slot <= d->cut) continue;
        struct attempt *a = attempt_note(w, node, e);
        attempt_accepted(w, node, e->slot, a);
    }
}

/* ------------------------------------------------------------------ messages */

static struct campaign *campaign(struct world *w, struct ballot b) {
    struct campaign *c = &w->checker->campaigns[(b.round * SIM_NODES_MAX + ballot_seat(b)) % CAMPAIGNS];
    if (!ballot_equal(c->ballot, b)) *c = (struct campaign){.ballot = b};
    return c;
}
static void promise_is_durable(struct world *w, uint16_t node, struct ballot b, const char *what) {
    if (ballot_compare(w->nodes[node].disk.promised, b) < 0)
        world_fail(w, "P3: %s of n%u for ballot %llu.%u leaves before the promise is on its disk", what, node,
                   u(b.round), b.node);
}
static void check_prepare(struct world *w, uint16_t from, const struct paxos_msg *m) {
    struct node_facts *n = &w->checker->nodes[from];
    promise_is_durable(w, from, m->ballot, "the prepare");
    struct campaign *c = campaign(w, m->ballot);
    vote(w, &c->granted, from);
    paxos_slot known = c->begun ? c->known : n->told;
    if (m->chosen < known) known = m->chosen;
    bool let = c->let || many(w, m->chosen, known, &c->granted);
    if (m->promised.round > 0) {
        const struct campaign *before = campaign(w, m->promised);
        if (!before->released || before->heir != from)
            world_fail(w, "P13: n%u says it was handed %llu.%u, and was not", from, u(m->promised.round),
                       ballot_seat(m->promised));
        let = true;
    }
    c->let = let;
    if (!let)
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
        if (s <= d->cut) continue;
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
    if (h == NULL) return;                        /* long ago: its grant has nearly ended */
    if (campaign(w, m->ballot)->released) return; /* void, whenever it was given */
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
    struct node_facts *n = &w->checker->nodes[node];
    struct campaign *c = campaign(w, m->ballot);
    promise_is_durable(w, node, m->ballot, "leading");
    vote(w, &c->promised, node);
    const bool leading = paxos_role(w->object->paxos(w, node)) == PAXOS_LEADING;
    if (!c->led && !many(w, n->told, n->told, &c->promised))
        world_fail(w, "P10: n%u leads under %llu.%u without the promises of a majority", node, u(m->ballot.round),
                   m->ballot.node);
    if (c->released)
        world_fail(w, "P13: n%u goes on leading under %llu.%u, which it gave up", node, u(m->ballot.round),
                   m->ballot.node);
    c->led = c->led || leading;
    for (uint32_t i = 0; i < m->entry_count; i++) {
        struct votes v = c->promised;
        for (uint16_t j = 0; c->led && j < SIM_NODES_MAX; j++) {
            if (c->followed.store_ids[j] != 0) v.store_ids[j] = c->followed.store_ids[j];
        }
        if (w->checker->prefix + w->config_delay < m->entries[i].slot)
            world_fail(w, "P10: n%u proposes slot %llu, slot %llu is not chosen", node, u(m->entries[i].slot),
                       u(w->checker->prefix + 1));
        else if (!many_of(config_of(w, m->entries[i].slot), &v))
            world_fail(w, "P10: n%u proposes slot %llu without the promises of a majority there", node,
                       u(m->entries[i].slot));
    }
    if (m->round == 0) return;
    if (ballot_compare(m->ballot, n->leader) > 0) n->leader = m->ballot;
    if (ballot_compare(m->ballot, n->grant) < 0) return;
    n->grant = m->ballot;
    if (m->kind == PAXOS_MSG_HEARTBEAT) n->grant_until_ms = world_local_ms(w, node) + m->lease_ms;
}

void check_handed_over(struct world *w, struct ballot b) {
    campaign(w, b)->released = true;
}
void check_emit(struct world *w, uint16_t from, uint16_t to, const struct packet *p) {
    struct paxos_msg m;
    if (!w->object->message(w, p, &m)) return;
    object_trace(w, from, to, &m);
    if (w->object->paxos(w, from) != NULL && w->nodes[from].wiped)
        world_fail(w, "P11: n%u lost its disk and speaks Paxos again", from);
    switch (m.kind) {
    case PAXOS_MSG_PREVOTE_REPLY:
        if (m.granted && campaign(w, m.ballot)->granted.store_ids[from] == 0)
            vote(w, &campaign(w, m.ballot)->granted, from); /* another store there takes nothing back */
        break;
    case PAXOS_MSG_PREPARE: check_prepare(w, from, &m); break;
    case PAXOS_MSG_PROMISE:
        check_promise(w, from, &m);
        if (m.slot_last == UINT64_MAX) vote(w, &campaign(w, m.ballot)->promised, from);
        break;
    case PAXOS_MSG_ACCEPTED:
        check_accepted(w, from, &m);
        check_grant(w, from, &m);
        vote(w, &campaign(w, m.ballot)->followed, from);
        break;
    case PAXOS_MSG_HEARTBEAT_ACK:
        check_grant(w, from, &m);
        vote(w, &campaign(w, m.ballot)->followed, from);
        break;
    case PAXOS_MSG_TRANSFER: campaign(w, m.ballot)->heir = to; /* fall through */
    case PAXOS_MSG_RELEASE:
        if (ballot_seat(m.ballot) == from) campaign(w, m.ballot)->released = true;
        break;
    case PAXOS_MSG_HEARTBEAT: check_leads(w, from, &m); break;
    case PAXOS_MSG_ACCEPT:
        check_leads(w, from, &m);
        for (uint32_t i = 0; i < m.entry_count; i++) (void)attempt_note(w, from, &m.entries[i]);
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
            now < n->grant_until_ms && !campaign(w, n->grant)->released)
            world_fail(w, "P8: n%u promises n%u while its grant to n%u lasts", node, m->ballot.node, n->grant.node);
        n->promise = m->ballot;
        n->promise_ms = now;
        n->promise_leader = n->leader;
    }
}

void check_applies(struct world *w, uint16_t node, const struct paxos_output *out) {
    struct node_facts *n = &w->checker->nodes[node];
    n->told = n->applied;
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
/* Its question leaves when its disk has the promise; what it learns on the way changes nobody's leave to ask. */
static void note_candidate(struct world *w, uint16_t node) {
    const struct paxos *p = w->object->paxos(w, node);
    if (p == NULL || paxos_role(p) != PAXOS_PREPARING) return;
    struct campaign *c = campaign(w, paxos_ballot(p));
    if (!c->begun) c->known = w->checker->nodes[node].told;
    c->begun = true;
}
void check_turn(struct world *w, uint16_t node) {
    note_candidate(w, node);
    if (w->wild || !believes(w, node)) return;
    if (campaign(w, paxos_ballot(w->object->paxos(w, node)))->released)
        world_fail(w, "P13: n%u believes the lease of a ballot it gave up", node);
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
bool check_chosen(struct world *w, paxos_slot slot, struct slice *ret_value) {
    const struct slot_facts *f = facts(w, slot);
    for (uint16_t i = 0; i < w->node_count && f->chosen; i++) {
        const struct disk_entry *e = disk_at(&w->nodes[i].disk, slot);
        if (e == NULL || digest(slice_of(e->data, e->bytes)) != f->value) continue;
        *ret_value = slice_of(e->data, e->bytes);
        return true;
    }
    return false;
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
void check_told(struct world *w, uint16_t node, paxos_slot slot) {
    w->checker->nodes[node].told = slot;
}
void check_applied_is(struct world *w, uint16_t node, paxos_slot slot) {
    struct node_facts *n = &w->checker->nodes[node];
    if (slot < n->applied) world_fail(w, "P4: n%u goes back from slot %llu to %llu", node, u(n->applied), u(slot));
    for (paxos_slot s = n->applied + 1; s <= slot; s++) {
        if (!facts(w, s)->chosen) world_fail(w, "P2: n%u applies slot %llu, which nobody has chosen", node, u(s));
    }
    n->applied = slot;
}
/* A snapshot is in the place of every slot up to there. */
void check_installed(struct world *w, uint16_t node, paxos_slot slot, const struct members *members) {
    struct node_facts *n = &w->checker->nodes[node];
    if (slot > w->checker->prefix) world_fail(w, "P2: n%u installs slot %llu, which nobody has chosen", node, u(slot));
    const struct membership *want = newest(w);
    while (want->slot > slot) want--;
    if (members->now.voters != 0 && !membership_equal(members_newest(members), want))
        world_fail(w, "P10: n%u installs another membership than slot %llu has", node, u(slot));
    if (slot > n->applied) n->applied = n->told = slot;
}
void check_end(struct world *w) {
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (w->nodes[i].wiped || w->nodes[i].gone || !check_member(w, i)) continue;
        if (w->checker->nodes[i].applied < w->checker->acknowledged_max)
            world_fail(w, "lost: n%u has applied %llu slots, %llu are acknowledged", i, u(w->checker->nodes[i].applied),
                       u(w->checker->acknowledged_max));
    }
}
