/* paxos.c - the rules of paxos.h.
 *
 * One object is proposer, acceptor and learner of one node; messages to itself are plain function calls.
 *
 *   FOLLOWER -> PREVOTING -> PREPARING -> SETTLING -> LEADING        any of them -> FOLLOWER, HALTED
 *
 *   state      what may be relied on                                       ended by
 *   FOLLOWER   nothing of ours is asked or led                             election_at_ms
 *   PREVOTING  nothing was promised for it; grants counted in `votes`      a majority; attempt_until_ms asks again
 *   PREPARING  we promised `ballot` ourselves; reports gather in `best`    whole promises of a majority, ours durable
 *   SETTLING   a majority promised `ballot`; first everything up to        chosen >= settle_top
 *              settle_chosen is learned, then the reports are proposed
 *   LEADING    every slot any promise reported is chosen; leases count     no majority, REFUSE, a higher ballot
 *   HALTED     two values for one (slot, ballot), or no more ballots       nothing
 *
 * The log above `chosen` is a ring of cells.  Values are counted references: the same bytes wait in the log, in a
 * save, in messages and in an apply.  What a step causes collects in `out`; a take hands it over and keeps it until
 * the next one. */
#include "lockd/core/paxos.h"

/* Planted bugs, for the proof that the simulator finds them (tests/sim/mutants.sh); compiled out of the product. */
#ifdef PAXOS_BUG
#define BUG(n) (PAXOS_BUG == (n))
#else
#define BUG(n) 0
#endif

enum {
    INFLIGHT_MAX = 1 << 16,
    WINDOW_MAX = 1 << 17,      /* slots a log may span above chosen, whatever a peer or a store says */
    LEASE_MS_MAX = 600 * 1000, /* a longer wish of a leader is nonsense */
    SENDS_MAX = 4096,          /* messages waiting for one take; more are dropped, as a network may */
    PART_ENTRIES_MAX = 1024,   /* entries of one message */
    ROUNDS_MAX = 64,
    STORED_MAX = 64,
    RETRY_MS_MIN = 50,
    RETRY_MS_MAX = 1000,
    BACKOFF_MAX = 4
};
static const uint64_t NUMBER_MAX = UINT64_C(1) << 62; /* rounds and slots: the next one can always be counted */

struct value {
    uint32_t refs;
    size_t bytes;
    char data[];
};

struct cell {
    paxos_slot slot; /* 0: empty */
    struct ballot ballot;
    struct value *value;
    uint64_t batch;      /* the transaction that makes it durable */
    uint64_t sent_ms;    /* leader: when it was proposed */
    uint32_t save_index; /* its place in out.saves while that transaction is not handed out */
    uint16_t acks;       /* leader: acceptors where it is durable under our ballot */
    bool chosen;         /* proven; waits for the slots below it */
};

struct window { /* cell of a slot: cells[slot % capacity]; the owner keeps all live slots within one capacity */
    struct cell *cells;
    uint32_t capacity; /* a power of two */
};

struct entries {
    struct paxos_entry *items;
    uint32_t count, capacity;
};
struct messages {
    struct paxos_msg *items;
    uint32_t *firsts; /* where each message's entries begin in outbox.parts */
    uint32_t count, capacity, firsts_capacity;
};

struct outbox {
    struct entries saves, applies, parts; /* parts: the entries inside messages */
    struct messages now, after;
    struct value **held; /* one reference for everything above that points to bytes */
    uint32_t held_count, held_capacity;
    struct paxos_fetch fetches[PAXOS_NODES_MAX];
    uint32_t fetch_count;
    struct ballot promise_sent[PAXOS_NODES_MAX]; /* one answer per question and take */
    bool save_promise, save_lease;
};

struct paxos {
    struct paxos_config config;
    const struct alloc *a;
    uint64_t now_ms, random;
    enum paxos_role role;
    const char *halt_reason;

    /* acceptor */
    struct ballot promised;
    uint64_t promise_batch, promise_ms; /* the transaction that saves it; when it was made */
    uint32_t lease_ms_max;
    uint64_t lease_batch;
    struct ballot bound; /* we promise no other node before bound_until_ms */
    uint64_t bound_until_ms, restart_until_ms;
    struct { /* ACCEPTED in the making: accepts of one turn are answered once */
        bool active;
        uint16_t to;
        struct ballot ballot;
        paxos_slot slot, slot_last;
        uint64_t round;
    } ack;

    /* log */
    struct window log;
    paxos_slot chosen, saved_chosen;
    struct { /* what a leader said to be chosen: proof for entries accepted under the same ballot */
        struct ballot ballot;
        paxos_slot chosen, marked;
    } claim;
    uint64_t batch, durable; /* handed out; on disk */
    struct {
        uint64_t batch;
        paxos_slot chosen;
    } stored_after[STORED_MAX]; /* once `batch` is durable, the store holds the chosen value of every slot up to
                                   `chosen` */
    uint32_t stored_count;
    paxos_slot stored;

    /* follower */
    struct ballot leader;
    bool leader_known;
    uint64_t leader_ms;
    uint64_t election_at_ms;
    uint64_t catchup_at_ms, catchup_wait_ms;

    /* candidate */
    uint64_t seen_round; /* highest of any ballot heard of */
    uint64_t nonce;      /* of the pre-vote */
    uint32_t failures;
    struct ballot ballot;
    uint16_t votes;
    uint64_t attempt_until_ms, resend_at_ms;
    uint64_t prepare_batch;
    paxos_slot covered[PAXOS_NODES_MAX]; /* how far the parts of that promise reach */
    struct window best;                  /* per slot above settle_chosen the report of the highest ballot */
    paxos_slot settle_chosen, settle_top;
    uint16_t settle_peer; /* reported settle_chosen: has it to give */

    /* leader */
    bool settle_proposed;
    paxos_slot last;   /* highest slot proposed */
    paxos_slot unsent; /* lowest slot proposed and not yet in an ACCEPT; 0 none */
    paxos_slot told_chosen;
    bool heartbeat_due;
    uint64_t heartbeat_at_ms;
    uint64_t round_last, confirmed, majority_ms, progress_ms;
    uint64_t acked[PAXOS_NODES_MAX];
    struct {
        uint64_t round, sent_ms;
    } rounds[ROUNDS_MAX];
    uint32_t round_count;
    bool lease_known;
    uint64_t lease_until_ms;
    struct {
        paxos_slot chosen;
        uint64_t resend_at_ms, resend_wait_ms;
    } peers[PAXOS_NODES_MAX];
};

/* ------------------------------------------------------------------ small things */

static bool alone(const struct paxos *p) {
    return p->config.node_count == 1;
}
static uint32_t majority(const struct paxos *p) {
    return p->config.node_count / 2u + (BUG(14) && !alone(p) ? 0 : 1);
}
static bool is_majority(const struct paxos *p, uint16_t mask) {
    return (uint32_t)__builtin_popcount(mask) >= majority(p);
}
static uint16_t bit(uint16_t node) {
    return (uint16_t)(1u << node);
}
static uint64_t max64(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}
static uint64_t min64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t random_next(struct paxos *p) {
    uint64_t z = p->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}
/* Failed attempts widen the spread, so that rivals on slow links or disks part in the end. */
static uint64_t jitter(struct paxos *p) {
    const uint64_t spread = (uint64_t)p->config.election_spread_ms
                            << (p->failures < BACKOFF_MAX ? p->failures : BACKOFF_MAX);
    return random_next(p) % (spread + 1);
}
static uint64_t retry_ms(const struct paxos *p) {
    return max64(p->config.heartbeat_ms, RETRY_MS_MIN);
}
static uint64_t next_batch(const struct paxos *p) {
    return p->batch + 1;
}

static struct value *value_new(struct paxos *p, struct slice bytes) {
    struct value *v = alloc_get(p->a, sizeof *v + bytes.bytes);
    v->refs = 1;
    v->bytes = bytes.bytes;
    if (bytes.bytes > 0) memcpy(v->data, bytes.data, bytes.bytes);
    return v;
}
static struct value *value_ref(struct value *v) {
    v->refs++;
    return v;
}
static void value_drop(struct paxos *p, struct value *v) {
    if (v != NULL && --v->refs == 0) alloc_put(p->a, v);
}
static struct slice value_slice(const struct value *v) {
    return slice_of(v->data, v->bytes);
}

/* Room for one more of `bytes` each. */
static void *room_for_one(struct paxos *p, void *items, uint32_t count, uint32_t *capacity, size_t bytes) {
    if (count < *capacity) return items;
    *capacity = *capacity ? *capacity * 2 : 16;
    return alloc_resize(p->a, items, *capacity * bytes);
}

/* ------------------------------------------------------------------ the log */

static struct cell *cell_at(const struct window *w, paxos_slot slot) {
    struct cell *c = &w->cells[slot & (w->capacity - 1)];
    return c->slot == slot && slot != 0 ? c : NULL;
}
static void cell_clear(struct paxos *p, struct cell *c) {
    value_drop(p, c->value);
    *c = (struct cell){0};
}
static void window_clear(struct paxos *p, struct window *w) {
    for (uint32_t i = 0; i < w->capacity; i++) cell_clear(p, &w->cells[i]);
}
/* Make base + 1 .. slot fit; the live slots are all above base and within WINDOW_MAX of it. */
static void window_fit(struct paxos *p, struct window *w, paxos_slot base, paxos_slot slot) {
    must(slot > base && slot - base <= WINDOW_MAX);
    if (slot - base <= w->capacity) return;
    const struct window old = *w;
    while (slot - base > w->capacity) w->capacity *= 2;
    w->cells = alloc_get0(p->a, w->capacity * sizeof *w->cells);
    for (uint32_t i = 0; i < old.capacity; i++) {
        if (old.cells[i].slot != 0) w->cells[old.cells[i].slot & (w->capacity - 1)] = old.cells[i];
    }
    alloc_put(p->a, old.cells);
}
/* The place of a slot that fits: its own cell or an empty one. */
static struct cell *window_place(struct window *w, paxos_slot slot) {
    struct cell *c = &w->cells[slot & (w->capacity - 1)];
    must(c->slot == 0 || c->slot == slot);
    return c;
}

/* ------------------------------------------------------------------ what leaves */

static void hold(struct paxos *p, struct outbox *o, struct value *v) {
    o->held = room_for_one(p, o->held, o->held_count, &o->held_capacity, sizeof(struct value *));
    o->held[o->held_count++] = v;
}
/* Takes over one reference. */
static void entry_add(struct paxos *p, struct entries *to, struct outbox *o, paxos_slot slot, struct ballot ballot,
                      struct value *v) {
    to->items = room_for_one(p, to->items, to->count, &to->capacity, sizeof *to->items);
    to->items[to->count++] = (struct paxos_entry){.slot = slot, .ballot = ballot, .value = value_slice(v)};
    hold(p, o, v);
}
static struct outbox *out(struct paxos *p);

static void message_add(struct paxos *p, struct messages *to, uint16_t peer, struct paxos_msg m) {
    if (to->count >= SENDS_MAX) return;
    m.from = p->config.node;
    m.to = peer;
    to->items = room_for_one(p, to->items, to->count, &to->capacity, sizeof *to->items);
    to->firsts = room_for_one(p, to->firsts, to->count, &to->firsts_capacity, sizeof *to->firsts);
    to->firsts[to->count] = 0;
    to->items[to->count++] = m;
}
static void send_now(struct paxos *p, uint16_t peer, struct paxos_msg m) {
    message_add(p, &out(p)->now, peer, m);
}
static void send_after(struct paxos *p, uint16_t peer, struct paxos_msg m) {
    message_add(p, &out(p)->after, peer, m);
}
/* An answer that reports what we promised or granted: at once only if all of that is on disk. */
static void send_fact(struct paxos *p, uint16_t peer, struct paxos_msg m) {
    const bool durable = p->promise_batch <= p->durable && p->lease_batch <= p->durable;
    message_add(p, durable ? &out(p)->now : &out(p)->after, peer, m);
}
static void send_to_all_now(struct paxos *p, struct paxos_msg m) {
    for (uint16_t i = 0; i < p->config.node_count; i++) {
        if (i != p->config.node) send_now(p, i, m);
    }
}
/* A message whose entries are parts[first .. count). */
static void send_parts(struct paxos *p, struct messages *to, uint16_t peer, struct paxos_msg m, uint32_t first,
                       uint32_t count) {
    const uint32_t before = to->count;
    m.entry_count = count;
    message_add(p, to, peer, m);
    if (to->count > before) to->firsts[before] = first;
}

static void refuse(struct paxos *p, const struct paxos_msg *m) {
    send_fact(p, m->from,
              (struct paxos_msg){.kind = PAXOS_MSG_REFUSE,
                                 .ballot = m->ballot,
                                 .promised = p->promised,
                                 .chosen = p->chosen,
                                 .round = m->round});
}

/* ------------------------------------------------------------------ roles */

static void halt(struct paxos *p, const char *reason) {
    p->role = PAXOS_HALTED;
    p->halt_reason = reason;
}
/* Wait for a leader; if none is heard, ask for votes after `wait` and a random time. */
static void follow(struct paxos *p, uint64_t wait_ms) {
    must(p->role != PAXOS_HALTED);
    if (p->role >= PAXOS_PREPARING) window_clear(p, &p->best);
    p->role = PAXOS_FOLLOWER;
    p->votes = 0;
    p->unsent = 0;
    p->heartbeat_due = false;
    p->lease_known = false;
    p->confirmed = 0;
    p->election_at_ms = p->now_ms + wait_ms + jitter(p);
}
static bool leads(const struct paxos *p) {
    return p->role == PAXOS_SETTLING || p->role == PAXOS_LEADING;
}
static void see_round(struct paxos *p, struct ballot b) {
    p->seen_round = max64(p->seen_round, b.round);
}

static void promise(struct paxos *p, struct ballot b) {
    must(ballot_compare(b, p->promised) > 0);
    p->promised = b;
    p->promise_batch = next_batch(p);
    p->promise_ms = p->now_ms;
    out(p)->save_promise = true;
    see_round(p, b);
}
/* The longest lease is on disk before anybody hears that we granted it (P8). */
static void lease_length(struct paxos *p, uint32_t lease_ms) {
    if (lease_ms <= p->lease_ms_max) return;
    p->lease_ms_max = lease_ms;
    p->lease_batch = next_batch(p);
    out(p)->save_lease = true;
}
static void bind(struct paxos *p, struct ballot b, uint32_t lease_ms) {
    p->bound = b;
    p->bound_until_ms = max64(p->bound_until_ms, p->now_ms + lease_ms);
}
/* May we promise a ballot of this node now?  A node has given up every ballot below one it prepares, so its own lease
 * does not stand against it; anybody else's does. */
static bool free_for(const struct paxos *p, uint16_t node) {
    if (alone(p)) return true;
    if (p->now_ms < p->restart_until_ms && !BUG(10)) return false;
    return p->now_ms >= p->bound_until_ms || p->bound.node == node || BUG(11);
}
static bool hears_leader(const struct paxos *p, uint64_t now_ms) {
    return p->leader_known && now_ms < p->leader_ms + p->config.lease_ms;
}

/* ------------------------------------------------------------------ accepting, learning, handing out */

/* Put (slot, ballot, value) into the log and into the next transaction; takes over one reference. */
static void log_accept(struct paxos *p, paxos_slot slot, struct ballot ballot, struct value *v) {
    struct outbox *o = out(p);
    window_fit(p, &p->log, p->chosen, slot);
    struct cell *c = window_place(&p->log, slot);
    const bool waits = c->slot == slot && c->batch == next_batch(p);
    const uint32_t index = waits ? c->save_index : o->saves.count;
    const bool chosen = c->chosen;
    value_drop(p, c->value);
    *c = (struct cell){.slot = slot,
                       .ballot = ballot,
                       .value = v,
                       .batch = next_batch(p),
                       .sent_ms = p->now_ms,
                       .save_index = index,
                       .chosen = chosen};
    if (waits) { /* one save per slot: the later acceptance stands */
        o->saves.items[index].ballot = ballot;
        o->saves.items[index].value = value_slice(v);
        hold(p, o, value_ref(v));
    } else {
        entry_add(p, &o->saves, o, slot, ballot, value_ref(v));
    }
    if (slot <= p->claim.chosen && (ballot_equal(ballot, p->claim.ballot) || BUG(8))) c->chosen = true;
}

static bool outbox_writes(const struct outbox *o) {
    return o->save_promise || o->save_lease || o->saves.count > 0;
}
/* With nothing on its way to the disk, the store holds all that is chosen. */
static void update_stored(struct paxos *p) {
    if (p->stored_count == 0 && !outbox_writes(out(p))) p->stored = p->chosen;
}

static void hand_out(struct paxos *p, struct cell *c) {
    must(c->slot == p->chosen + 1);
    entry_add(p, &out(p)->applies, out(p), c->slot, c->ballot, value_ref(c->value));
    cell_clear(p, c);
    p->chosen++;
    p->progress_ms = p->now_ms;
}

static void settle(struct paxos *p);

/* Hand out what is chosen and next in order. */
static void advance(struct paxos *p) {
    for (;;) {
        struct cell *c = cell_at(&p->log, p->chosen + 1);
        if (c == NULL || !c->chosen) break;
        hand_out(p, c);
    }
    update_stored(p);
    if (p->role == PAXOS_SETTLING) settle(p);
}

/* The leader of `ballot` knows every slot up to `chosen` to be chosen.  What we accepted from that very leader is then
 * what was chosen; anything else must be fetched. */
static void take_claim(struct paxos *p, struct ballot ballot, paxos_slot chosen) {
    if (!ballot_equal(ballot, p->claim.ballot)) {
        p->claim.ballot = ballot;
        p->claim.chosen = p->claim.marked = 0;
        p->catchup_at_ms = p->now_ms;
        p->catchup_wait_ms = retry_ms(p);
    }
    p->claim.chosen = max64(p->claim.chosen, chosen);
    const paxos_slot top = min64(p->claim.chosen, p->chosen + p->log.capacity);
    for (paxos_slot s = max64(p->claim.marked, p->chosen) + 1; s <= top; s++) {
        struct cell *c = cell_at(&p->log, s);
        if (c != NULL && (ballot_equal(c->ballot, ballot) || BUG(8))) c->chosen = true;
    }
    p->claim.marked = max64(p->claim.marked, top);
    advance(p);
}

/* Who has chosen values that we lack, if anybody. */
static bool behind(const struct paxos *p, uint16_t *ret_peer) {
    if (p->role == PAXOS_FOLLOWER && p->claim.chosen > p->chosen) {
        *ret_peer = p->claim.ballot.node;
        return true;
    }
    if (p->role == PAXOS_SETTLING && p->settle_chosen > p->chosen) {
        *ret_peer = p->settle_peer;
        return true;
    }
    return false;
}
static void catch_up(struct paxos *p) {
    uint16_t peer;
    if (!behind(p, &peer) || p->now_ms < p->catchup_at_ms) return;
    send_now(p, peer, (struct paxos_msg){.kind = PAXOS_MSG_CATCHUP, .slot = p->chosen + 1, .chosen = p->chosen});
    p->catchup_at_ms = p->now_ms + p->catchup_wait_ms;
    p->catchup_wait_ms = min64(p->catchup_wait_ms * 2, max64(RETRY_MS_MAX, retry_ms(p)));
}

/* A chosen entry out of a peer's store; slot == chosen + 1.  False: it contradicts what we know. */
static bool learn(struct paxos *p, const struct paxos_entry *e) {
    struct cell *c = cell_at(&p->log, e->slot);
    if (c != NULL && (c->chosen || ballot_equal(c->ballot, e->ballot))) {
        if (!slice_equal(value_slice(c->value), e->value)) {
            halt(p, c->chosen ? "a slot has two chosen values" : "two values for one slot and ballot");
            return false;
        }
    } else {
        log_accept(p, e->slot, e->ballot, value_new(p, e->value));
    }
    c = cell_at(&p->log, e->slot);
    hand_out(p, c);
    return true;
}

/* ------------------------------------------------------------------ leading: rounds and leases (P8) */

static void lease_from(struct paxos *p, uint64_t sent_ms) {
    const uint64_t lease = p->config.lease_ms;
    /* 1 ms: both clocks are read in whole milliseconds */
    const uint64_t cut = (lease * p->config.drift_ppm + 999999) / 1000000 + 1;
    p->majority_ms = max64(p->majority_ms, sent_ms);
    if (lease <= cut) return;
    p->lease_known = true;
    p->lease_until_ms = max64(p->lease_until_ms, sent_ms + lease - cut);
}

/* The newest round that a majority acknowledged. */
static void update_confirmed(struct paxos *p) {
    uint64_t sorted[PAXOS_NODES_MAX];
    const uint32_t n = p->config.node_count;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = i;
        for (; at > 0 && sorted[at - 1] < p->acked[i]; at--) sorted[at] = sorted[at - 1];
        sorted[at] = p->acked[i];
    }
    const uint64_t round = sorted[majority(p) - 1];
    if (round <= p->confirmed) return;
    p->confirmed = round;
    /* The table may have been thinned: an earlier round was sent earlier, so it only makes the lease shorter. */
    uint32_t at = p->round_count;
    while (at > 0 && p->rounds[at - 1].round > round) at--;
    if (at == 0) return;
    lease_from(p, BUG(9) ? p->now_ms : p->rounds[at - 1].sent_ms);
    memmove(p->rounds, p->rounds + (at - 1), (p->round_count - (at - 1)) * sizeof p->rounds[0]);
    p->round_count -= at - 1;
}

static void new_round(struct paxos *p) {
    if (p->round_count == ROUNDS_MAX) {
        uint32_t kept = 0;
        for (uint32_t i = 0; i < ROUNDS_MAX; i += 2) p->rounds[kept++] = p->rounds[i];
        p->round_count = kept;
    }
    p->round_last++;
    p->rounds[p->round_count].round = p->round_last;
    p->rounds[p->round_count++].sent_ms = p->now_ms;
    p->acked[p->config.node] = p->round_last;
    if (!BUG(18)) bind(p, p->ballot, p->config.lease_ms); /* our own grant binds us like anybody's */
    p->heartbeat_due = true;
    p->heartbeat_at_ms = p->now_ms + p->config.heartbeat_ms;
    update_confirmed(p);
}

static void peer_acked(struct paxos *p, const struct paxos_msg *m) {
    p->peers[m->from].chosen = max64(p->peers[m->from].chosen, m->chosen);
    const uint64_t round = BUG(12) ? p->round_last : m->round;
    if (round > p->acked[m->from]) {
        p->acked[m->from] = round;
        update_confirmed(p);
    }
}

/* ------------------------------------------------------------------ leading: proposals */

static void mark_chosen(struct paxos *p, struct cell *c) {
    if (is_majority(p, c->acks)) c->chosen = true;
}

/* Takes over one reference. */
static void propose(struct paxos *p, paxos_slot slot, struct value *v) {
    log_accept(p, slot, p->ballot, v);
    if (BUG(3)) cell_at(&p->log, slot)->acks |= bit(p->config.node);
    p->last = max64(p->last, slot);
    if (p->unsent == 0) p->unsent = slot;
}

/* Everything the promises reported above what is chosen, the highest ballot per slot, gaps filled with nothing. */
static void propose_reports(struct paxos *p) {
    p->settle_proposed = true;
    p->last = p->chosen;
    for (paxos_slot s = p->chosen + 1; s <= p->settle_top; s++) {
        struct cell *c = cell_at(&p->best, s);
        propose(p, s, c != NULL && !(BUG(7) && (s & 1)) ? value_ref(c->value) : value_new(p, slice_of(NULL, 0)));
    }
    window_clear(p, &p->best);
}

static void settle(struct paxos *p) {
    if (!p->settle_proposed) {
        if (p->chosen < p->settle_chosen) return;
        propose_reports(p);
    }
    if (p->chosen >= p->settle_top) {
        p->role = PAXOS_LEADING;
        p->failures = 0;
    }
}

/* A majority has promised: from here on nobody can choose anything under a lower ballot. */
static void begin_settling(struct paxos *p) {
    p->role = PAXOS_SETTLING;
    p->leader_known = false;
    p->settle_proposed = false;
    p->unsent = 0;
    p->told_chosen = p->chosen;
    p->settle_top = max64(p->settle_chosen, p->chosen);
    for (uint32_t i = 0; i < p->log.capacity; i++) { /* our own acceptances are reports too */
        const struct cell *c = &p->log.cells[i];
        if (c->slot <= p->settle_chosen) continue;
        window_fit(p, &p->best, p->settle_chosen, c->slot);
        struct cell *b = window_place(&p->best, c->slot);
        if (b->slot == 0 || ballot_compare(c->ballot, b->ballot) > 0 || BUG(6)) {
            value_drop(p, b->value);
            *b = (struct cell){.slot = c->slot, .ballot = c->ballot, .value = value_ref(c->value)};
        }
    }
    for (uint32_t i = 0; i < p->best.capacity; i++) p->settle_top = max64(p->settle_top, p->best.cells[i].slot);
    p->last = p->settle_top;
    p->round_count = 0;
    p->confirmed = 0;
    p->lease_known = false;
    p->lease_until_ms = 0;
    p->majority_ms = p->progress_ms = p->now_ms;
    p->catchup_at_ms = p->now_ms;
    p->catchup_wait_ms = retry_ms(p);
    for (uint32_t i = 0; i < PAXOS_NODES_MAX; i++) {
        p->acked[i] = 0;
        p->peers[i].chosen = 0;
        p->peers[i].resend_at_ms = 0;
        p->peers[i].resend_wait_ms = 2 * retry_ms(p);
    }
    new_round(p);
    advance(p);
    catch_up(p);
}

static bool in_open_slots(const struct paxos *p, const struct cell *c) {
    return c != NULL && ballot_equal(c->ballot, p->ballot);
}

/* ACCEPT messages to the peers in `mask` for the open slots in first..last that were proposed no later than
 * sent_before_ms and that no node in `lacking` has acknowledged; a message holds about one proposal of the largest
 * size.  Returns how many messages each peer got. */
static uint32_t send_accepts(struct paxos *p, uint16_t mask, paxos_slot first, paxos_slot last, uint16_t lacking,
                             uint64_t sent_before_ms, uint32_t messages_max) {
    struct outbox *o = out(p);
    uint32_t sent = 0;
    paxos_slot s = first;
    while (s <= last && sent < messages_max) {
        const uint32_t begin = o->parts.count;
        size_t bytes = 0;
        for (; s <= last && o->parts.count - begin < PART_ENTRIES_MAX; s++) {
            const struct cell *c = cell_at(&p->log, s);
            if (!in_open_slots(p, c) || c->chosen) continue;
            if ((c->acks & lacking) != 0 || c->sent_ms > sent_before_ms) continue;
            if (o->parts.count > begin && bytes + c->value->bytes > p->config.value_bytes_max) break;
            bytes += c->value->bytes;
            entry_add(p, &o->parts, o, s, p->ballot, value_ref(c->value));
        }
        if (o->parts.count == begin) break;
        for (uint16_t i = 0; i < p->config.node_count; i++) {
            if (!(mask & bit(i))) continue;
            send_parts(p, &o->now, i,
                       (struct paxos_msg){.kind = PAXOS_MSG_ACCEPT,
                                          .ballot = p->ballot,
                                          .chosen = p->chosen,
                                          .round = p->round_last,
                                          .lease_ms = p->config.lease_ms},
                       begin, o->parts.count - begin);
        }
        sent++;
    }
    return sent;
}

/* Open slots that this peer has not acknowledged although there was time: say them again.  One message per timer, and
 * the timer doubles until the peer moves, so that a slow disk is not answered with a storm. */
static void resend(struct paxos *p, uint16_t peer) {
    if (p->now_ms < p->peers[peer].resend_at_ms || p->last <= p->chosen) return;
    const uint64_t age = 2 * retry_ms(p);
    if (p->now_ms < age) return;
    const paxos_slot top = min64(p->last, p->peers[peer].chosen + 2 * (uint64_t)p->config.inflight_max);
    if (send_accepts(p, bit(peer), p->chosen + 1, top, bit(peer), p->now_ms - age, 1) == 0) return;
    p->peers[peer].resend_at_ms = p->now_ms + p->peers[peer].resend_wait_ms;
    p->peers[peer].resend_wait_ms = min64(p->peers[peer].resend_wait_ms * 2, max64(RETRY_MS_MAX, age));
}

/* ------------------------------------------------------------------ asking for votes */

static struct ballot next_ballot(const struct paxos *p) {
    return (struct ballot){.round = max64(p->promised.round, p->seen_round) + 1, .node = p->config.node};
}

static void send_prevotes(struct paxos *p) {
    p->resend_at_ms = p->now_ms + retry_ms(p);
    for (uint16_t i = 0; i < p->config.node_count; i++) {
        if (p->votes & bit(i)) continue;
        send_now(
            p, i,
            (struct paxos_msg){.kind = PAXOS_MSG_PREVOTE, .ballot = p->ballot, .chosen = p->chosen, .round = p->nonce});
    }
}
static void send_prepares(struct paxos *p) {
    p->resend_at_ms = p->now_ms + 2 * retry_ms(p);
    for (uint16_t i = 0; i < p->config.node_count; i++) {
        if (i == p->config.node || (p->votes & bit(i))) continue;
        const struct paxos_msg m = {.kind = PAXOS_MSG_PREPARE, .ballot = p->ballot, .chosen = p->chosen};
        if (BUG(5))
            send_now(p, i, m);
        else
            send_after(p, i, m);
    }
}
static uint64_t attempt_ms(struct paxos *p) {
    const uint32_t shift = p->failures < BACKOFF_MAX ? p->failures : BACKOFF_MAX;
    return (((uint64_t)p->config.lease_ms + p->config.election_spread_ms) << shift) + jitter(p);
}

/* Our own promise goes to the disk, then the question leaves. */
static void begin_preparing(struct paxos *p) {
    p->role = PAXOS_PREPARING;
    p->votes = 0;
    p->settle_chosen = p->chosen;
    p->settle_peer = p->config.node;
    memset(p->covered, 0, sizeof p->covered);
    window_clear(p, &p->best);
    promise(p, p->ballot);
    if (!alone(p)) lease_length(p, p->config.lease_ms); /* we shall grant ourselves */
    p->prepare_batch = next_batch(p);
    p->attempt_until_ms = p->now_ms + attempt_ms(p);
    send_prepares(p);
}

static void begin_prevote(struct paxos *p) {
    if (!free_for(p, p->config.node)) {
        p->election_at_ms = max64(p->restart_until_ms, p->bound_until_ms) + jitter(p);
        return;
    }
    p->ballot = next_ballot(p);
    if (p->ballot.round > NUMBER_MAX) {
        halt(p, "no ballot above the ones in use");
        return;
    }
    p->role = PAXOS_PREVOTING;
    p->leader_known = false;
    p->nonce++;
    p->votes = bit(p->config.node);
    p->attempt_until_ms = p->now_ms + p->config.lease_ms + jitter(p);
    if (is_majority(p, p->votes))
        begin_preparing(p);
    else
        send_prevotes(p);
}

static void count_promises(struct paxos *p) {
    /* Ours has to be on disk as well: it says that the ballot is ours and that we may grant the lease. */
    if (!(p->votes & bit(p->config.node)) || !is_majority(p, p->votes)) return;
    begin_settling(p);
}

/* ------------------------------------------------------------------ messages: acceptor */

static void on_prevote(struct paxos *p, const struct paxos_msg *m) {
    const bool leader_near = hears_leader(p, p->now_ms) && p->leader.node != m->from;
    /* somebody else was promised a moment ago: let that one finish */
    const bool rival_near = p->promised.round > 0 && p->promised.node != m->from && p->promise_ms > 0 &&
                            p->now_ms < p->promise_ms + p->config.lease_ms;
    const bool granted =
        ballot_compare(m->ballot, p->promised) > 0 && free_for(p, m->from) && !leader_near && !rival_near && !leads(p);
    send_fact(p, m->from,
              (struct paxos_msg){.kind = PAXOS_MSG_PREVOTE_REPLY,
                                 .ballot = m->ballot,
                                 .promised = p->promised,
                                 .granted = granted,
                                 .chosen = p->chosen,
                                 .round = m->round});
}

static void send_promise(struct paxos *p, const struct paxos_msg *m) {
    struct outbox *o = out(p);
    if (ballot_equal(o->promise_sent[m->from], m->ballot)) return;
    o->promise_sent[m->from] = m->ballot;
    const paxos_slot top = p->chosen + p->log.capacity;
    paxos_slot slot = p->chosen + 1, s = slot;
    bool last = false;
    while (!last) {
        const uint32_t begin = o->parts.count;
        size_t bytes = 0;
        for (; s <= top && o->parts.count - begin < PART_ENTRIES_MAX; s++) {
            const struct cell *c = cell_at(&p->log, s);
            if (c == NULL) continue;
            if (o->parts.count > begin && bytes + c->value->bytes > p->config.value_bytes_max) break;
            bytes += c->value->bytes;
            if (BUG(15) && s > p->chosen + 1) continue;
            entry_add(p, &o->parts, o, s, c->ballot, value_ref(c->value));
        }
        last = s > top;
        send_parts(p, BUG(2) ? &o->now : &o->after, m->from,
                   (struct paxos_msg){.kind = PAXOS_MSG_PROMISE,
                                      .ballot = m->ballot,
                                      .chosen = p->chosen,
                                      .slot = slot,
                                      .slot_last = last ? UINT64_MAX : s - 1},
                   begin, o->parts.count - begin);
        slot = s;
    }
}

static void on_prepare(struct paxos *p, const struct paxos_msg *m) {
    const int order = ballot_compare(m->ballot, p->promised);
    if (order < 0 || (order > 0 && !free_for(p, m->from))) {
        refuse(p, m);
        return;
    }
    if (order > 0) {
        promise(p, m->ballot);
        follow(p, p->config.lease_ms);
    }
    send_promise(p, m);
}

/* An ACCEPT or HEARTBEAT: false if a higher promise stands against it.  A higher ballot than ours is taken whatever
 * lease binds us: its leader has the promises of a majority, and none of those was given before the lease ended. */
static bool hear_leader(struct paxos *p, const struct paxos_msg *m) {
    const int order = ballot_compare(m->ballot, p->promised);
    if (order < 0) {
        refuse(p, m);
        return false;
    }
    if (order > 0 && !BUG(4)) promise(p, m->ballot);
    p->failures = 0;
    follow(p, p->config.lease_ms);
    p->leader = m->ballot;
    p->leader_known = true;
    p->leader_ms = p->now_ms;
    if (m->round > 0 && m->lease_ms > 0) {
        lease_length(p, m->lease_ms);
        bind(p, m->ballot, m->lease_ms);
    }
    return true;
}

static void flush_ack(struct paxos *p) {
    if (!p->ack.active) return;
    p->ack.active = false;
    const struct paxos_msg m = {.kind = PAXOS_MSG_ACCEPTED,
                                .ballot = p->ack.ballot,
                                .slot = p->ack.slot,
                                .slot_last = p->ack.slot_last,
                                .chosen = p->chosen,
                                .round = p->ack.round};
    if (BUG(1))
        send_now(p, p->ack.to, m);
    else
        send_after(p, p->ack.to, m);
}
static void ack_slot(struct paxos *p, const struct paxos_msg *m, paxos_slot slot) {
    if (p->ack.active && p->ack.to == m->from && ballot_equal(p->ack.ballot, m->ballot) && slot + 1 >= p->ack.slot &&
        slot <= p->ack.slot_last + 1) {
        if (slot < p->ack.slot) p->ack.slot = slot;
        if (slot > p->ack.slot_last) p->ack.slot_last = slot;
        p->ack.round = max64(p->ack.round, m->round);
        return;
    }
    flush_ack(p);
    p->ack.active = true;
    p->ack.to = m->from;
    p->ack.ballot = m->ballot;
    p->ack.slot = p->ack.slot_last = slot;
    p->ack.round = m->round;
}
static void ack_heartbeat(struct paxos *p, const struct paxos_msg *m) {
    send_fact(p, m->from,
              (struct paxos_msg){
                  .kind = PAXOS_MSG_HEARTBEAT_ACK, .ballot = m->ballot, .round = m->round, .chosen = p->chosen});
}

/* One slot of an ACCEPT we may take; false when the node had to halt. */
static bool accept_slot(struct paxos *p, const struct paxos_entry *e) {
    const struct cell *c = cell_at(&p->log, e->slot);
    if (c != NULL && ballot_equal(c->ballot, e->ballot)) {
        if (slice_equal(value_slice(c->value), e->value)) return true; /* again: nothing new to save */
        halt(p, "two values for one slot and ballot");
        return false;
    }
    if (c != NULL && c->chosen && !slice_equal(value_slice(c->value), e->value)) {
        halt(p, "a chosen slot was proposed with another value");
        return false;
    }
    log_accept(p, e->slot, e->ballot, value_new(p, e->value));
    return true;
}

static void on_accept(struct paxos *p, const struct paxos_msg *m) {
    if (!hear_leader(p, m)) return;
    bool answered = false;
    for (uint32_t i = 0; i < m->entry_count; i++) {
        const struct paxos_entry *e = &m->entries[i];
        if (e->slot > p->chosen + 2 * (uint64_t)p->config.inflight_max) break; /* too far ahead: first we catch up */
        /* A slot known to be chosen needs no second copy: its value is this one, or the ballot would be refused. */
        if (e->slot > p->chosen && !accept_slot(p, e)) return;
        ack_slot(p, m, e->slot);
        answered = true;
    }
    take_claim(p, m->ballot, m->chosen);
    if (!answered) ack_heartbeat(p, m);
}

static void on_heartbeat(struct paxos *p, const struct paxos_msg *m) {
    if (!hear_leader(p, m)) return;
    take_claim(p, m->ballot, m->chosen);
    if (m->round > 0) ack_heartbeat(p, m);
}

static void on_catchup(struct paxos *p, const struct paxos_msg *m) {
    const paxos_slot top = BUG(13) ? p->chosen : p->stored;
    if (m->slot == 0 || m->slot > top) return;
    struct outbox *o = out(p);
    uint32_t at = 0;
    while (at < o->fetch_count && o->fetches[at].to != m->from) at++;
    if (at == o->fetch_count) o->fetch_count++;
    o->fetches[at] = (struct paxos_fetch){.to = m->from, .from_slot = m->slot, .to_slot = top};
}

/* ------------------------------------------------------------------ messages: candidate, leader, learner */

static bool on_prevote_reply(struct paxos *p, const struct paxos_msg *m) {
    if (p->role != PAXOS_PREVOTING || m->round != p->nonce || !ballot_equal(m->ballot, p->ballot)) return false;
    if (m->granted || BUG(19)) {
        p->votes |= bit(m->from);
        if (is_majority(p, p->votes)) begin_preparing(p);
    } else if (m->promised.round > p->seen_round) {
        see_round(p, m->promised); /* our number was too low: ask again with a better one */
        if (ballot_compare(m->promised, p->ballot) >= 0) begin_prevote(p);
    }
    return true;
}

/* One report of a promise; false when the node had to halt. */
static bool merge_report(struct paxos *p, const struct paxos_entry *e) {
    if (e->slot <= p->settle_chosen) return true;
    window_fit(p, &p->best, p->settle_chosen, e->slot);
    struct cell *c = window_place(&p->best, e->slot);
    const int order = c->slot == 0 ? 1 : ballot_compare(e->ballot, c->ballot);
    if (order == 0 && !slice_equal(value_slice(c->value), e->value)) {
        halt(p, "two values for one slot and ballot");
        return false;
    }
    if (order <= 0 && !(BUG(6) && order < 0)) return true;
    value_drop(p, c->value);
    *c = (struct cell){.slot = e->slot, .ballot = e->ballot, .value = value_new(p, e->value)};
    return true;
}

static bool promise_makes_sense(const struct paxos *p, const struct paxos_msg *m) {
    if (m->slot == 0 || m->slot > m->slot_last || m->slot <= m->chosen) return false;
    for (uint32_t i = 0; i < m->entry_count; i++) {
        const struct paxos_entry *e = &m->entries[i];
        if (e->slot < m->slot || e->slot > m->slot_last || e->slot - m->chosen > WINDOW_MAX) return false;
        if (ballot_compare(e->ballot, p->ballot) >= 0) return false;
    }
    return true;
}

static bool on_promise(struct paxos *p, const struct paxos_msg *m) {
    if (p->role != PAXOS_PREPARING || (!ballot_equal(m->ballot, p->ballot) && !BUG(16))) return false;
    if (!promise_makes_sense(p, m)) return false;
    if (m->slot > m->chosen + 1 && m->slot > p->covered[m->from] + 1) return false; /* a part before it was lost */
    if (m->chosen > p->settle_chosen && !BUG(17)) {
        for (uint32_t i = 0; i < p->best.capacity; i++) {
            if (p->best.cells[i].slot <= m->chosen) cell_clear(p, &p->best.cells[i]);
        }
        p->settle_chosen = m->chosen;
        p->settle_peer = m->from;
    }
    for (uint32_t i = 0; i < m->entry_count; i++) {
        if (BUG(17) && m->entries[i].slot - p->settle_chosen > WINDOW_MAX) continue;
        if (!merge_report(p, &m->entries[i])) return true;
    }
    p->covered[m->from] = max64(p->covered[m->from], m->slot_last);
    if (p->covered[m->from] == UINT64_MAX) p->votes |= bit(m->from);
    count_promises(p);
    return true;
}

/* Somebody promised a higher ballot than the one we lead or try to lead under: it will not help us, and it hears
 * nobody until a ballot above its own exists.  A leader asks for one at once; its followers let it. */
static bool on_refuse(struct paxos *p, const struct paxos_msg *m) {
    if (p->role < PAXOS_PREPARING || !ballot_equal(m->ballot, p->ballot)) return false;
    see_round(p, m->promised);
    if (ballot_compare(m->promised, p->ballot) <= 0) return true; /* bound by a lease: it ends */
    const bool led = leads(p);
    p->failures += !led && p->failures < BACKOFF_MAX;
    follow(p, 0);
    if (led) p->election_at_ms = p->now_ms;
    return true;
}

static bool on_accepted(struct paxos *p, const struct paxos_msg *m) {
    if (!leads(p) || !ballot_equal(m->ballot, p->ballot) || m->round > p->round_last || m->slot == 0 ||
        m->slot > m->slot_last) {
        return false;
    }
    peer_acked(p, m);
    bool moved = false;
    const paxos_slot top = min64(m->slot_last, p->last);
    for (paxos_slot s = max64(m->slot, p->chosen + 1); s <= top; s++) {
        struct cell *c = cell_at(&p->log, s);
        if (!in_open_slots(p, c) || (c->acks & bit(m->from))) continue;
        c->acks |= bit(m->from);
        mark_chosen(p, c);
        moved = true;
    }
    if (moved) p->peers[m->from].resend_wait_ms = 2 * retry_ms(p);
    advance(p);
    resend(p, m->from);
    return true;
}

static bool on_heartbeat_ack(struct paxos *p, const struct paxos_msg *m) {
    if (!leads(p) || !ballot_equal(m->ballot, p->ballot) || m->round > p->round_last) return false;
    peer_acked(p, m);
    resend(p, m->from);
    return true;
}

static bool on_chosen(struct paxos *p, const struct paxos_msg *m) {
    for (uint32_t i = 0; i < m->entry_count; i++) {
        if (i > 0 && m->entries[i].slot != m->entries[i - 1].slot + 1) return false;
    }
    if (m->entry_count == 0 || m->entries[0].slot > p->chosen + 1) return false;
    const paxos_slot before = p->chosen;
    for (uint32_t i = 0; i < m->entry_count; i++) {
        const struct paxos_entry *e = &m->entries[i];
        if (e->slot != p->chosen + 1) continue;
        see_round(p, e->ballot);
        /* Chosen above the ballot we try to lead under: that is over. */
        if (p->role >= PAXOS_PREPARING && ballot_compare(e->ballot, p->ballot) > 0) follow(p, 0);
        if (leads(p) && p->settle_proposed) break; /* what we propose is at least as new */
        if (!learn(p, e)) return true;
    }
    if (p->chosen == before) return false;
    p->catchup_at_ms = p->now_ms;
    p->catchup_wait_ms = retry_ms(p);
    advance(p);
    return true;
}

/* ------------------------------------------------------------------ what may come in */

static bool ballot_makes_sense(const struct paxos *p, struct ballot b) {
    return b.round <= NUMBER_MAX && b.node < p->config.node_count;
}
static bool message_makes_sense(const struct paxos *p, const struct paxos_msg *m) {
    if (m->from >= p->config.node_count || m->from == p->config.node || m->to != p->config.node) return false;
    if (!ballot_makes_sense(p, m->ballot) || !ballot_makes_sense(p, m->promised)) return false;
    if (m->chosen > NUMBER_MAX || m->lease_ms > LEASE_MS_MAX) return false;
    switch (m->kind) {
    case PAXOS_MSG_PREVOTE:
    case PAXOS_MSG_PREPARE:
    case PAXOS_MSG_ACCEPT:
    case PAXOS_MSG_HEARTBEAT:
        if (m->ballot.node != m->from || m->ballot.round == 0) return false;
        break;
    case PAXOS_MSG_PREVOTE_REPLY:
    case PAXOS_MSG_PROMISE:
    case PAXOS_MSG_REFUSE:
    case PAXOS_MSG_ACCEPTED:
    case PAXOS_MSG_HEARTBEAT_ACK:
        if (m->ballot.node != p->config.node || m->ballot.round == 0) return false;
        break;
    case PAXOS_MSG_CATCHUP:
    case PAXOS_MSG_CHOSEN: break;
    case PAXOS_MSG_KIND_END:
    default: return false;
    }
    if (m->entry_count > 0 && m->entries == NULL) return false;
    for (uint32_t i = 0; i < m->entry_count; i++) {
        const struct paxos_entry *e = &m->entries[i];
        if (e->slot == 0 || e->slot > NUMBER_MAX || (i > 0 && e->slot <= m->entries[i - 1].slot)) return false;
        if (!ballot_makes_sense(p, e->ballot) || e->ballot.round == 0) return false;
        if (e->value.bytes > 0 && e->value.data == NULL) return false;
        if (m->kind == PAXOS_MSG_ACCEPT && !ballot_equal(e->ballot, m->ballot)) return false;
    }
    return true;
}

static enum paxos_verdict on_message(struct paxos *p, const struct paxos_msg *m) {
    if (!message_makes_sense(p, m)) return PAXOS_IGNORED;
    bool taken = true;
    switch (m->kind) {
    case PAXOS_MSG_PREVOTE: on_prevote(p, m); break;
    case PAXOS_MSG_PREPARE: on_prepare(p, m); break;
    case PAXOS_MSG_ACCEPT: on_accept(p, m); break;
    case PAXOS_MSG_HEARTBEAT: on_heartbeat(p, m); break;
    case PAXOS_MSG_CATCHUP: on_catchup(p, m); break;
    case PAXOS_MSG_PREVOTE_REPLY: taken = on_prevote_reply(p, m); break;
    case PAXOS_MSG_PROMISE: taken = on_promise(p, m); break;
    case PAXOS_MSG_REFUSE: taken = on_refuse(p, m); break;
    case PAXOS_MSG_ACCEPTED: taken = on_accepted(p, m); break;
    case PAXOS_MSG_HEARTBEAT_ACK: taken = on_heartbeat_ack(p, m); break;
    case PAXOS_MSG_CHOSEN: taken = on_chosen(p, m); break;
    case PAXOS_MSG_KIND_END: break;
    }
    if (p->role != PAXOS_HALTED) catch_up(p);
    return taken ? PAXOS_TAKEN : PAXOS_IGNORED;
}

static enum paxos_verdict on_propose(struct paxos *p, struct slice value) {
    if (p->role != PAXOS_LEADING) return PAXOS_NOT_LEADER;
    if (value.bytes > p->config.value_bytes_max) return PAXOS_TOO_LONG;
    if (paxos_room(p) == 0) return PAXOS_FULL;
    propose(p, p->last + 1, value_new(p, value));
    return PAXOS_TAKEN;
}

static void on_durable(struct paxos *p, uint64_t batch) {
    must(batch <= p->batch);
    if (batch <= p->durable) return;
    const bool promise_waited = p->promise_batch > p->durable && p->promise_batch <= batch;
    p->durable = batch;
    uint32_t done = 0;
    while (done < p->stored_count && p->stored_after[done].batch <= batch) p->stored = p->stored_after[done++].chosen;
    memmove(p->stored_after, p->stored_after + done, (p->stored_count - done) * sizeof p->stored_after[0]);
    p->stored_count -= done;
    update_stored(p);
    if (promise_waited && !hears_leader(p, p->now_ms)) {
        p->promise_ms = p->now_ms; /* who asked for it hears of it only now */
        if (p->role == PAXOS_FOLLOWER)
            p->election_at_ms = max64(p->election_at_ms, p->now_ms + p->config.lease_ms + jitter(p));
    }
    if (p->role == PAXOS_PREPARING && p->prepare_batch <= batch && !(p->votes & bit(p->config.node))) {
        p->votes |= bit(p->config.node);
        p->attempt_until_ms = p->now_ms + attempt_ms(p);
        p->resend_at_ms = p->now_ms + 2 * retry_ms(p);
        count_promises(p);
    } else if (leads(p)) {
        for (paxos_slot s = p->chosen + 1; s <= p->last; s++) {
            struct cell *c = cell_at(&p->log, s);
            if (!in_open_slots(p, c) || c->batch > batch) continue;
            c->acks |= bit(p->config.node);
            mark_chosen(p, c);
        }
        advance(p);
    }
}

/* ------------------------------------------------------------------ time */

/* How long a settling leader waits for the next value it must learn: its source may be dead, and the next candidate
 * may not need it. */
static uint64_t learn_until(const struct paxos *p) {
    return p->progress_ms + 2 * ((uint64_t)p->config.lease_ms + p->config.election_spread_ms);
}
static uint64_t majority_until(const struct paxos *p) {
    return p->majority_ms + p->config.lease_ms + p->config.election_spread_ms;
}
/* Heartbeats pass but nothing gets chosen: somebody with better links or a better disk may do it. */
static uint64_t stall_until(const struct paxos *p) {
    const struct cell *c = cell_at(&p->log, p->chosen + 1);
    if (!p->settle_proposed || !in_open_slots(p, c)) return UINT64_MAX;
    return max64(c->sent_ms, p->progress_ms) + 10 * (uint64_t)p->config.lease_ms;
}

static void lead_on(struct paxos *p) {
    if (alone(p)) return;
    if (p->now_ms >= majority_until(p)) {
        follow(p, 0);
    } else if (p->role == PAXOS_SETTLING && !p->settle_proposed && p->now_ms >= learn_until(p)) {
        follow(p, p->config.lease_ms);
    } else if (p->now_ms >= stall_until(p)) {
        follow(p, 2 * ((uint64_t)p->config.lease_ms + p->config.election_spread_ms));
    } else if (p->now_ms >= p->heartbeat_at_ms) {
        new_round(p);
    }
}

static void on_tick(struct paxos *p) {
    switch (p->role) {
    case PAXOS_FOLLOWER:
        if (p->now_ms >= p->election_at_ms) begin_prevote(p);
        break;
    case PAXOS_PREVOTING:
        if (p->now_ms >= p->attempt_until_ms) {
            p->role = PAXOS_FOLLOWER;
            begin_prevote(p);
        } else if (p->now_ms >= p->resend_at_ms) {
            send_prevotes(p);
        }
        break;
    case PAXOS_PREPARING:
        if (alone(p)) break;
        if (p->now_ms >= p->attempt_until_ms) {
            p->failures += p->failures < BACKOFF_MAX;
            follow(p, 0);
        } else if (p->now_ms >= p->resend_at_ms) {
            /* before our own promise is durable the first question has not left */
            if (p->votes & bit(p->config.node))
                send_prepares(p);
            else
                p->resend_at_ms = p->now_ms + 2 * retry_ms(p);
        }
        break;
    case PAXOS_SETTLING:
    case PAXOS_LEADING: lead_on(p); break;
    case PAXOS_HALTED: break;
    }
    if (p->role != PAXOS_HALTED) catch_up(p);
}

static uint64_t wake_at(const struct paxos *p) {
    uint64_t at = UINT64_MAX;
    uint16_t peer;
    switch (p->role) {
    case PAXOS_FOLLOWER: at = p->election_at_ms; break;
    case PAXOS_PREVOTING: at = min64(p->attempt_until_ms, p->resend_at_ms); break;
    case PAXOS_PREPARING:
        if (!alone(p)) at = min64(p->attempt_until_ms, p->resend_at_ms);
        break;
    case PAXOS_SETTLING:
    case PAXOS_LEADING:
        if (alone(p)) break;
        at = min64(min64(p->heartbeat_at_ms, majority_until(p)), stall_until(p));
        if (p->role == PAXOS_SETTLING && !p->settle_proposed) at = min64(at, learn_until(p));
        break;
    case PAXOS_HALTED: return UINT64_MAX;
    }
    if (behind(p, &peer)) at = min64(at, p->catchup_at_ms);
    return at;
}

/* ------------------------------------------------------------------ the caller's side */

struct boxes { /* after struct paxos in one allocation: `filling` collects, the other one was handed out */
    struct paxos paxos;
    struct outbox box[2];
    uint32_t filling;
};

static struct outbox *out(struct paxos *p) {
    struct boxes *b = (struct boxes *)p;
    return &b->box[b->filling];
}

static void outbox_clear(struct paxos *p, struct outbox *o) {
    for (uint32_t i = 0; i < o->held_count; i++) value_drop(p, o->held[i]);
    o->held_count = o->saves.count = o->applies.count = o->parts.count = o->now.count = o->after.count = 0;
    o->fetch_count = 0;
    o->save_promise = o->save_lease = false;
    memset(o->promise_sent, 0, sizeof o->promise_sent);
}
static void outbox_release(struct paxos *p, struct outbox *o) {
    outbox_clear(p, o);
    alloc_put(p->a, o->saves.items);
    alloc_put(p->a, o->applies.items);
    alloc_put(p->a, o->parts.items);
    alloc_put(p->a, o->now.items);
    alloc_put(p->a, o->now.firsts);
    alloc_put(p->a, o->after.items);
    alloc_put(p->a, o->after.firsts);
    alloc_put(p->a, o->held);
}

static void load_accepted(struct paxos *p, const struct paxos_saved *saved) {
    paxos_slot before = 0;
    for (uint32_t i = 0; i < saved->accepted_count; i++) {
        const struct paxos_entry *e = &saved->accepted[i];
        if (e->slot <= before) {
            halt(p, "the stored entries are not in order");
            return;
        }
        before = e->slot;
        if (e->slot <= saved->chosen) continue;
        if (e->slot - saved->chosen > WINDOW_MAX || e->slot > NUMBER_MAX) {
            halt(p, "a stored entry lies too far above what is chosen");
            return;
        }
        window_fit(p, &p->log, p->chosen, e->slot);
        *window_place(&p->log, e->slot) =
            (struct cell){.slot = e->slot, .ballot = e->ballot, .value = value_new(p, e->value)};
        see_round(p, e->ballot);
        if (ballot_compare(e->ballot, p->promised) > 0) p->promised = e->ballot; /* an acceptance is a promise too */
    }
}

struct paxos *paxos_new(const struct paxos_config *config, const struct paxos_saved *saved) {
    must(config->alloc != NULL && config->node_count >= 1 && config->node_count <= PAXOS_NODES_MAX);
    must(config->node < config->node_count && config->value_bytes_max >= 1);
    must(config->inflight_max >= 1 && config->inflight_max <= INFLIGHT_MAX);
    must(config->heartbeat_ms >= 1 && config->heartbeat_ms < config->lease_ms && config->lease_ms <= LEASE_MS_MAX);
    must(config->drift_ppm <= 1000000 && config->election_spread_ms <= LEASE_MS_MAX);
    struct boxes *b = alloc_get0(config->alloc, sizeof *b);
    struct paxos *p = &b->paxos;
    p->config = *config;
    p->a = config->alloc;
    p->now_ms = config->start_ms;
    p->random = config->seed;
    p->role = PAXOS_FOLLOWER;
    p->log.capacity = p->best.capacity = 16;
    while (p->log.capacity < 2 * config->inflight_max) p->log.capacity *= 2;
    p->log.cells = alloc_get0(p->a, p->log.capacity * sizeof *p->log.cells);
    p->best.cells = alloc_get0(p->a, p->best.capacity * sizeof *p->best.cells);
    p->promised = saved->promised;
    p->lease_ms_max = saved->lease_ms_max;
    p->chosen = p->saved_chosen = p->stored = saved->chosen;
    p->seen_round = saved->promised.round;
    p->nonce = random_next(p) >> 16;
    p->catchup_wait_ms = retry_ms(p);
    /* What it granted in its last life may still be believed; 1 ms because that life's clock reading was rounded too.
     */
    if (saved->restarted && saved->lease_ms_max > 0) p->restart_until_ms = p->now_ms + saved->lease_ms_max + 1;
    load_accepted(p, saved);
    if (saved->chosen > NUMBER_MAX && p->role != PAXOS_HALTED) halt(p, "the stored position is no slot");
    p->election_at_ms = p->now_ms + (alone(p) ? 0 : jitter(p) + (saved->restarted ? config->lease_ms : 0));
    return p;
}

void paxos_free(struct paxos *p) {
    if (p == NULL) return;
    struct boxes *b = (struct boxes *)p;
    const struct alloc *a = p->a;
    outbox_release(p, &b->box[0]);
    outbox_release(p, &b->box[1]);
    window_clear(p, &p->log);
    window_clear(p, &p->best);
    alloc_put(a, p->log.cells);
    alloc_put(a, p->best.cells);
    alloc_put(a, b);
}

enum paxos_verdict paxos_step(struct paxos *p, const struct paxos_input *in) {
    must(in->now_ms >= p->now_ms && in->kind <= PAXOS_DURABLE);
    p->now_ms = in->now_ms;
    const bool halted = p->role == PAXOS_HALTED;
    switch (in->kind) {
    case PAXOS_TICK:
        if (!halted) on_tick(p);
        return PAXOS_TAKEN;
    case PAXOS_DURABLE:
        if (!halted) on_durable(p, in->batch);
        return PAXOS_TAKEN;
    case PAXOS_MESSAGE: return halted ? PAXOS_IGNORED : on_message(p, in->message);
    case PAXOS_PROPOSE: return on_propose(p, in->value);
    }
    return PAXOS_IGNORED;
}

/* What is built once per take: one answer, one ACCEPT, one heartbeat for all that happened since the last. */
static void flush(struct paxos *p) {
    flush_ack(p);
    if (!leads(p) || alone(p)) return;
    bool told = false;
    if (p->unsent != 0) {
        const uint16_t all = (uint16_t)((1u << p->config.node_count) - 1u);
        told = send_accepts(p, all & (uint16_t)~bit(p->config.node), p->unsent, p->last, 0, UINT64_MAX, UINT32_MAX) > 0;
        p->unsent = 0;
    }
    /* A heartbeat goes besides the ACCEPT: its answer does not wait for a disk. */
    if (p->heartbeat_due) {
        send_to_all_now(p, (struct paxos_msg){.kind = PAXOS_MSG_HEARTBEAT,
                                              .ballot = p->ballot,
                                              .chosen = p->chosen,
                                              .round = p->round_last,
                                              .lease_ms = p->config.lease_ms});
        p->heartbeat_due = false;
        told = true;
    }
    if (!told && p->chosen > p->told_chosen) { /* followers answer their clients from their own apply */
        send_to_all_now(p, (struct paxos_msg){.kind = PAXOS_MSG_HEARTBEAT, .ballot = p->ballot, .chosen = p->chosen});
        told = true;
    }
    if (told) p->told_chosen = p->chosen;
}

static void fix_entries(struct outbox *o, struct messages *m) {
    for (uint32_t i = 0; i < m->count; i++) {
        m->items[i].entries = m->items[i].entry_count > 0 ? o->parts.items + m->firsts[i] : NULL;
    }
}
/* After this batch the store holds the chosen value of every slot up to chosen. */
static void note_batch(struct paxos *p) {
    if (p->stored_count == STORED_MAX) p->stored_count--; /* known a little later */
    p->stored_after[p->stored_count].batch = p->batch;
    p->stored_after[p->stored_count++].chosen = p->chosen;
}

bool paxos_take(struct paxos *p, struct paxos_output *ret_out) {
    struct boxes *b = (struct boxes *)p;
    *ret_out = (struct paxos_output){0};
    outbox_clear(p, &b->box[b->filling ^ 1]);
    if (p->role == PAXOS_HALTED)
        outbox_clear(p, out(p)); /* nothing of a broken node may leave */
    else
        flush(p);
    struct outbox *o = out(p);
    ret_out->wake_at_ms = wake_at(p);
    const bool writes = outbox_writes(o);
    if (!writes && o->now.count + o->after.count + o->applies.count + o->fetch_count == 0) return false;
    fix_entries(o, &o->now);
    fix_entries(o, &o->after);
    if (writes) {
        ret_out->batch = ++p->batch;
        ret_out->save_promise = o->save_promise;
        ret_out->promised = p->promised;
        ret_out->save_lease_ms = o->save_lease ? p->lease_ms_max : 0;
        if (p->chosen > p->saved_chosen) ret_out->save_chosen = p->saved_chosen = p->chosen;
        note_batch(p);
    }
    ret_out->saves = o->saves.items;
    ret_out->save_count = o->saves.count;
    ret_out->sends_now = o->now.items;
    ret_out->send_now_count = o->now.count;
    ret_out->sends_after = o->after.items;
    ret_out->send_after_count = o->after.count;
    ret_out->applies = o->applies.items;
    ret_out->apply_count = o->applies.count;
    ret_out->fetches = o->fetches;
    ret_out->fetch_count = o->fetch_count;
    b->filling ^= 1;
    return true;
}

enum paxos_role paxos_role(const struct paxos *p) {
    return p->role;
}
struct ballot paxos_ballot(const struct paxos *p) {
    return p->role == PAXOS_PREPARING || leads(p) ? p->ballot : p->promised;
}
bool paxos_leader(const struct paxos *p, uint64_t now_ms, struct ballot *ret_ballot) {
    if (p->role == PAXOS_LEADING) {
        *ret_ballot = p->ballot;
        return true;
    }
    *ret_ballot = p->leader;
    return p->role != PAXOS_HALTED && hears_leader(p, now_ms);
}
paxos_slot paxos_chosen(const struct paxos *p) {
    return p->chosen;
}
uint32_t paxos_room(const struct paxos *p) {
    if (p->role != PAXOS_LEADING) return 0;
    const paxos_slot open = p->last > p->chosen ? p->last - p->chosen : 0;
    return open >= p->config.inflight_max ? 0 : p->config.inflight_max - (uint32_t)open;
}
bool paxos_lease_good(const struct paxos *p, uint64_t now_ms) {
    if (p->role != PAXOS_LEADING) return false;
    return alone(p) || (p->lease_known && now_ms < p->lease_until_ms);
}
uint64_t paxos_confirm(struct paxos *p, uint64_t now_ms) {
    must(now_ms >= p->now_ms);
    p->now_ms = now_ms;
    if (p->role != PAXOS_LEADING) return 0;
    /* one that has not left yet serves this question as well */
    if (!p->heartbeat_due || alone(p)) new_round(p);
    return p->round_last;
}
uint64_t paxos_confirmed(const struct paxos *p) {
    return leads(p) ? p->confirmed : 0;
}
const char *paxos_halt_reason(const struct paxos *p) {
    return p->role == PAXOS_HALTED ? p->halt_reason : NULL;
}
