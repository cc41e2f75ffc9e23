/* lin.c - see lin.h.  The search over one key. */
#include "tests/sim/lin.h"
#include <stdlib.h>
#include <string.h>
#include "common/must.h"

/* ------------------------------------------------------------------ the store, as far as its answers show it */

struct state {
    uint64_t value;   /* INCR: the number */
    uint64_t version; /* exact: of what is there; else what it is above of */
    uint64_t lease;   /* it hangs on; of a lock: its holder */
    uint64_t ends_at; /* there: it may be gone from then on, UINT64_MAX never; else: it was gone at that time */
    bool there, exact;
};

static uint64_t lease_until(const struct lin_lease *leases, uint32_t count, uint64_t id) {
    uint32_t low = 0, high = count;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (leases[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && leases[low].id == id ? leases[low].until : 0;
}

/* What is there has this version: false if it cannot. */
static bool shows(struct state *s, uint64_t version) {
    if (s->exact ? s->version != version : s->version >= version) return false;
    s->version = version;
    s->exact = true;
    return true;
}
static void writes(struct state *s, uint64_t value) {
    s->there = true;
    s->value = value;
    s->exact = false;
}
static void ends(struct state *s, uint64_t at) {
    s->there = s->exact = false;
    s->value = s->lease = 0;
    s->ends_at = at;
}

struct judge {
    const struct lin_lease *leases;
    uint32_t lease_count;
};

static void lives(const struct judge *j, struct state *s, const struct lin_op *op) {
    s->lease = op->lease;
    s->ends_at = op->lease != 0  ? lease_until(j->leases, j->lease_count, op->lease)
                 : op->life != 0 ? op->asked + op->life
                                 : UINT64_MAX;
}

static bool run_set(const struct judge *j, struct state *s, const struct lin_op *op) {
    const bool done = op->outcome == LIN_DONE,
               does = (s->there || !(op->flags & LIN_XX)) && !(s->there && (op->flags & LIN_NX));
    if (done && (op->flags & LIN_OLD)) {
        if (op->yes != s->there || (s->there && s->value != op->ret_value)) return false;
    } else if (done && op->yes != does) {
        return false;
    }
    if (does) {
        writes(s, op->value);
        lives(j, s, op);
    }
    return done || does;
}
static bool run_cas(struct state *s, const struct lin_op *op) {
    const bool done = op->outcome == LIN_DONE;
    if (done && !op->yes) { /* it shows what is there instead */
        if (op->ret_version == op->version) return false;
        if (op->ret_version == 0) return !s->there;
        return s->there && s->value == op->ret_value && shows(s, op->ret_version);
    }
    if (op->version == 0 ? s->there : !s->there || !shows(s, op->version)) return false;
    writes(s, op->value);
    s->lease = 0;
    s->ends_at = UINT64_MAX;
    return !done || shows(s, op->ret_version);
}
static bool run_register(struct state *s, const struct lin_op *op) {
    if (op->kind == LIN_WOR_GET && !op->yes) return !s->there;
    if (op->kind == LIN_WOR_SET) {
        const bool first = !s->there;
        if (op->outcome != LIN_DONE && !first) return false; /* no effect: never needed */
        if (op->outcome == LIN_DONE && op->yes != first) return false;
        if (first) {
            writes(s, op->value);
            s->ends_at = UINT64_MAX;
        }
        if (op->outcome != LIN_DONE) return true;
    }
    return s->there && s->value == op->ret_value && shows(s, op->ret_version);
}
static bool run_lock(const struct judge *j, struct state *s, const struct lin_op *op) {
    const bool done = op->outcome == LIN_DONE, ours = s->there && s->lease == op->lease;
    switch (op->kind) {
    case LIN_ACQUIRE:
        if (op->no_lease) return true;
        if (done && !op->yes) return s->there && !ours;
        if (s->there && !ours) return false;
        if (ours) return done && shows(s, op->ret_version);
        writes(s, 0);
        lives(j, s, op);
        return !done || shows(s, op->ret_version);
    case LIN_RELEASE: {
        bool match = ours;
        if (match && op->version != 0) { /* a token that was never shown may be this one, or it is not */
            if (done && !op->yes && !s->exact) return true;
            match = shows(s, op->version);
        }
        if (done && !op->yes) return !match;
        if (match)
            ends(s, 0);
        else if (op->version != 0 || !done)
            return false; /* without a token it may have left the queue */
        return true;
    }
    case LIN_CHECK:
        if (op->yes) return s->there && shows(s, op->version);
        return !s->there || !s->exact || s->version != op->version;
    default: /* HOLDER */
        if (!op->yes) return !s->there;
        return s->there && s->lease == op->ret_value && shows(s, op->ret_version);
    }
}

/* One operation in one state; false: its answer cannot have come from there (or, without an answer, nothing happens).
 */
static bool run(const struct judge *j, struct state *s, const struct lin_op *op) {
    const bool done = op->outcome == LIN_DONE;
    switch (op->kind) {
    case LIN_SET: return run_set(j, s, op);
    case LIN_GET: return op->yes == s->there && (!s->there || s->value == op->ret_value);
    case LIN_GETV: return op->yes ? s->there && s->value == op->ret_value && shows(s, op->ret_version) : !s->there;
    case LIN_DEL:
        if (done ? op->yes != s->there : !s->there) return false;
        if (s->there) ends(s, 0);
        return true;
    case LIN_INCR: {
        const uint64_t number = s->there ? s->value + 1 : 1;
        if (done && number != op->ret_value) return false;
        if (!s->there) s->ends_at = UINT64_MAX;
        writes(s, number);
        return true;
    }
    case LIN_CAS: return run_cas(s, op);
    case LIN_CAD: {
        const bool does = s->there && s->value == op->value;
        if (done ? op->yes != does : !does) return false;
        if (does) ends(s, 0);
        return true;
    }
    case LIN_PEXPIRE:
        if (done ? op->yes != s->there : !s->there) return false;
        /* what hangs on a lease as well goes with whichever ends first */
        if (s->there && (s->lease == 0 || op->asked + op->life < s->ends_at)) s->ends_at = op->asked + op->life;
        return true;
    case LIN_WOR_SET:
    case LIN_WOR_GET: return run_register(s, op);
    default: return run_lock(j, s, op);
    }
}

/* The states that `op` may leave behind: of what is there, and of what has run out meanwhile. */
static uint32_t successors(const struct judge *j, const struct state *s, const struct lin_op *op, struct state *ret) {
    uint32_t count = 0;
    const uint64_t told = op->outcome == LIN_DONE ? op->told : UINT64_MAX;
    if (!s->there && told < s->ends_at) return 0; /* it was still there when this was answered */
    ret[0] = *s;
    count += run(j, &ret[0], op);
    if (s->there && s->ends_at <= told) {
        ret[count] = *s;
        ends(&ret[count], s->ends_at);
        count += run(j, &ret[count], op);
    }
    return count;
}

/* ------------------------------------------------------------------ the search */

struct event { /* an operation is asked, or is answered */
    uint64_t at;
    uint32_t op, prev, next; /* places in the list; 0 is its head */
    bool told;
};
struct node {
    uint32_t asked_at, told_at; /* places of its events; told_at 0: no answer */
    uint32_t chain_before;      /* 1 + the operation before it on its connection; 0 none */
    uint32_t twin;              /* 1 + an equal operation without an answer, asked before; 0 none */
    uint64_t sign[2];
    bool done;
};
struct step {
    uint32_t place; /* of the event that was taken */
    uint8_t tried, count;
    bool open; /* it came from the second look: operations without an answer */
    struct state before, after[2];
};
struct cache {
    uint64_t (*slots)[2];
    uint64_t mask, count;
};
struct search {
    struct judge judge;
    const struct lin_op *ops;
    struct event *events;
    struct node *nodes;
    struct step *steps;
    struct cache cache;
    uint64_t sign[2]; /* of what is done */
    uint32_t unanswered;
};

static uint64_t mix(uint64_t z) {
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
/* True if this was not there yet.  128 bits stand for (set of operations, state): a false "seen" does not happen. */
static bool cache_add(struct search *f, const struct state *s) {
    struct cache *c = &f->cache;
    if (c->count * 2 > c->mask) {
        struct cache bigger = {.mask = c->mask * 2 + 1};
        bigger.slots = calloc(bigger.mask + 1, sizeof *bigger.slots);
        must(bigger.slots != NULL);
        for (uint64_t i = 0; i <= c->mask; i++) {
            if (c->slots[i][0] == 0) continue;
            uint64_t at = c->slots[i][0] & bigger.mask;
            while (bigger.slots[at][0] != 0) at = (at + 1) & bigger.mask;
            memcpy(bigger.slots[at], c->slots[i], sizeof bigger.slots[at]);
        }
        bigger.count = c->count;
        free(c->slots);
        *c = bigger;
    }
    uint64_t hash[2];
    for (int i = 0; i < 2; i++) {
        uint64_t h = f->sign[i] + (uint64_t)i;
        h = mix(h ^ mix(s->value + 1));
        h = mix(h ^ mix(s->version + 2));
        h = mix(h ^ mix(s->lease + 3));
        h = mix(h ^ mix(s->ends_at + 4));
        hash[i] = mix(h + (s->there ? 1 : 0) + (s->exact ? 2 : 0));
    }
    hash[0] |= 1;
    uint64_t at = hash[0] & c->mask;
    for (; c->slots[at][0] != 0; at = (at + 1) & c->mask) {
        if (c->slots[at][0] == hash[0] && c->slots[at][1] == hash[1]) return false;
    }
    memcpy(c->slots[at], hash, sizeof hash);
    c->count++;
    return true;
}

static int compare_events(const void *a, const void *b) {
    const struct event *x = a, *y = b;
    if (x->at != y->at) return x->at < y->at ? -1 : 1;
    if (x->told != y->told) return x->told ? 1 : -1; /* at one instant: side by side */
    return x->op < y->op ? -1 : x->op > y->op;
}
bool lin_reads(enum lin_kind kind) {
    return kind == LIN_GET || kind == LIN_GETV || kind == LIN_WOR_GET || kind == LIN_CHECK || kind == LIN_HOLDER;
}
static bool equal_wish(const struct lin_op *a, const struct lin_op *b) {
    return a->kind == b->kind && a->flags == b->flags && a->value == b->value && a->version == b->version &&
           a->lease == b->lease && a->life == b->life;
}
/* Events in order of time, linked; what has no answer and no effect, or was refused, is left out. */
static uint32_t arrange(struct search *f, uint32_t count) {
    struct event *sorted = calloc(2 * (size_t)count + 1, sizeof *sorted);
    must(sorted != NULL);
    uint32_t events = 0, open = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct lin_op *op = &f->ops[i];
        if (op->outcome == LIN_REFUSED || (op->outcome == LIN_OPEN && lin_reads(op->kind))) continue;
        sorted[events++] = (struct event){.at = op->asked, .op = i};
        if (op->outcome == LIN_DONE)
            sorted[events++] = (struct event){.at = op->told, .op = i, .told = true};
        else
            open++;
    }
    qsort(sorted, events, sizeof *sorted, compare_events);
    for (uint32_t i = 0; i < events; i++) {
        f->events[i + 1] = sorted[i];
        *(sorted[i].told ? &f->nodes[sorted[i].op].told_at : &f->nodes[sorted[i].op].asked_at) = i + 1;
    }
    for (uint32_t i = 0; i <= events; i++) {
        f->events[i].next = i < events ? i + 1 : 0;
        f->events[i].prev = i > 0 ? i - 1 : events;
    }
    free(sorted);
    f->unanswered = (events - open) / 2;
    return events;
}
struct place {
    uint64_t connection;
    uint32_t op;
};
static int compare_places(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    if (x->connection != y->connection) return x->connection < y->connection ? -1 : 1;
    return x->op < y->op ? -1 : x->op > y->op;
}
static void chain(struct search *f, uint32_t count) {
    struct place *places = calloc(count + 1, sizeof *places);
    uint32_t *open = calloc(count + 1, sizeof *open);
    must(places != NULL && open != NULL);
    uint32_t used = 0, open_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (f->nodes[i].asked_at == 0) continue;
        places[used++] = (struct place){.connection = f->ops[i].connection, .op = i};
        if (f->nodes[i].told_at == 0) open[open_count++] = i;
    }
    qsort(places, used, sizeof *places, compare_places);
    for (uint32_t i = 1; i < used; i++) {
        if (places[i].connection == 0 || places[i].connection != places[i - 1].connection) continue;
        f->nodes[places[i].op].chain_before = places[i - 1].op + 1;
    }
    for (uint32_t i = 0; i < open_count; i++) { /* few */
        struct node *n = &f->nodes[open[i]];
        for (uint32_t k = 0; k < open_count; k++) {
            const struct node *other = &f->nodes[open[k]];
            if (other->asked_at < n->asked_at && equal_wish(&f->ops[open[i]], &f->ops[open[k]]) &&
                (n->twin == 0 || f->nodes[n->twin - 1].asked_at < other->asked_at))
                n->twin = open[k] + 1;
        }
    }
    free(places);
    free(open);
}

static void unlink_event(struct search *f, uint32_t place) {
    if (place == 0) return;
    const struct event *e = &f->events[place];
    f->events[e->prev].next = e->next;
    f->events[e->next].prev = e->prev;
}
static void relink_event(struct search *f, uint32_t place) {
    if (place == 0) return;
    const struct event *e = &f->events[place];
    f->events[e->prev].next = f->events[e->next].prev = place;
}
static void take(struct search *f, uint32_t op) {
    struct node *n = &f->nodes[op];
    unlink_event(f, n->asked_at);
    unlink_event(f, n->told_at);
    n->done = true;
    f->sign[0] ^= n->sign[0];
    f->sign[1] ^= n->sign[1];
    f->unanswered -= n->told_at != 0;
}
static void untake(struct search *f, uint32_t op) {
    struct node *n = &f->nodes[op];
    relink_event(f, n->told_at);
    relink_event(f, n->asked_at);
    n->done = false;
    f->sign[0] ^= n->sign[0];
    f->sign[1] ^= n->sign[1];
    f->unanswered += n->told_at != 0;
}
/* L3, and of equal operations without an answer the first goes first. */
static bool may_go(const struct search *f, uint32_t op) {
    const struct node *n = &f->nodes[op];
    for (uint32_t at = n->chain_before; at != 0 && !f->nodes[at - 1].done; at = f->nodes[at - 1].chain_before) {
        if (f->nodes[at - 1].told_at != 0) return false;
    }
    return n->twin == 0 || f->nodes[n->twin - 1].done || !may_go(f, n->twin - 1);
}

/* The next operation to try at this depth, from `place` on; 0: none.  First those with an answer, then the others. */
static uint32_t next_try(const struct search *f, struct step *step, uint32_t place, const struct state *s) {
    for (;;) {
        for (; place != 0 && !f->events[place].told; place = f->events[place].next) {
            const uint32_t op = f->events[place].op;
            if ((f->nodes[op].told_at == 0) != step->open || !may_go(f, op)) continue;
            step->count = (uint8_t)successors(&f->judge, s, &f->ops[op], step->after);
            step->tried = 0;
            if (step->count > 0) return place;
        }
        if (step->open) return 0;
        step->open = true;
        place = f->events[0].next;
    }
}
static uint32_t first_answer(const struct search *f) {
    uint32_t place = f->events[0].next;
    while (place != 0 && !f->events[place].told) place = f->events[place].next;
    return place;
}

static enum lin_verdict search(struct search *f, uint64_t states_max, uint32_t *ret_stuck) {
    uint32_t depth = 0, furthest = 0;
    struct state s = {0};
    bool fresh = true; /* this depth was just entered */
    for (;;) {
        if (f->unanswered == 0) return LIN_GOOD;
        struct step *step = &f->steps[depth];
        uint32_t place;
        if (fresh) {
            const uint32_t wall = first_answer(f);
            if (wall > furthest) furthest = wall;
            *step = (struct step){.before = s};
            place = next_try(f, step, f->events[0].next, &s);
        } else { /* back from deeper */
            untake(f, f->events[step->place].op);
            s = step->before;
            place = step->tried < step->count ? step->place : next_try(f, step, f->events[step->place].next, &s);
        }
        fresh = false;
        for (; place != 0; place = step->tried < step->count ? place : next_try(f, step, f->events[place].next, &s)) {
            const uint32_t op = f->events[place].op;
            const struct state after = step->after[step->tried++];
            take(f, op);
            if (cache_add(f, &after)) {
                step->place = place;
                s = after;
                depth++;
                fresh = true;
                break;
            }
            untake(f, op);
        }
        if (fresh) {
            if (f->cache.count > states_max) return LIN_LOST;
            continue;
        }
        if (depth == 0) {
            *ret_stuck = f->events[furthest].op;
            return LIN_BAD;
        }
        depth--;
    }
}

enum lin_verdict lin_check(const struct lin_op *ops, uint32_t count, const struct lin_lease *leases,
                           uint32_t lease_count, uint64_t states_max, uint32_t *ret_stuck) {
    struct search f = {.judge = {.leases = leases, .lease_count = lease_count}, .ops = ops, .cache.mask = 1023};
    *ret_stuck = 0;
    f.events = calloc(2 * (size_t)count + 2, sizeof *f.events);
    f.nodes = calloc((size_t)count + 1, sizeof *f.nodes);
    f.steps = calloc((size_t)count + 2, sizeof *f.steps);
    f.cache.slots = calloc(f.cache.mask + 1, sizeof *f.cache.slots);
    must(f.events != NULL && f.nodes != NULL && f.steps != NULL && f.cache.slots != NULL);
    for (uint32_t i = 0; i < count; i++) {
        f.nodes[i].sign[0] = mix(2 * (uint64_t)i + 1);
        f.nodes[i].sign[1] = mix((2 * (uint64_t)i + 2) ^ UINT64_C(0x9e3779b97f4a7c15));
    }
    (void)arrange(&f, count);
    chain(&f, count);
    const enum lin_verdict verdict = search(&f, states_max, ret_stuck);
    free(f.events);
    free(f.nodes);
    free(f.steps);
    free(f.cache.slots);
    return verdict;
}
