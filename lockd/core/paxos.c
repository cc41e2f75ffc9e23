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
 * Why a candidate that knows only an old configuration can do no harm (P10).  Let a = config_delay; slot i is decided
 * by the newest configuration applied at or below i - a, so by chosen values alone, and by induction over the slots
 * everybody who knows them knows the same one, C(i).
 *
 *   1. Nobody proposes in slot i before it has applied everything up to i - a (propose_limit: i <= known + a, and
 *      `known` moves only after the caller told of every configuration up to there), and before a majority of C(i) has
 *      promised its ballot.  So every slot is Paxos among one fixed set of acceptors, and P2 holds for it as ever, if
 *      the promises of that majority reported what they had accepted in i.
 *   2. While SETTLING only whole promises count, and a promise reports all slots.  A configuration D that is learned on
 *      the way, and of which no majority promised, sends us back to ask again under a higher ballot, D included.
 *      LEADING begins only once everything up to settle_top is applied (`known`), so no such D is overlooked.
 *   3. While LEADING under b a configuration D in slot s > settle_top is our own proposal.  None of the majority of
 *      C(s) that promised b had accepted anything in s, so under a lower ballot s never gets chosen: no leader of a
 *      lower ballot ever applies s, and by 1 none ever proposes in a slot that D decides.  There is nothing to report
 *      for those slots, and following b (an acknowledgement) is as good as a promise.
 *   4. So a candidate K that is behind, and knows C where D is long in effect, can collect a majority of C.  It
 *      proposes only in slots that C decides; all of them are chosen already (D governs), a majority of C accepted
 *      them before it promised K, so K's reports or K's settle_chosen hold their values, and settle_top or
 *      settle_chosen lies at or above the last of them.  It can only propose those very values again.  Among them is
 *      D's entry: by 2 it goes no further without a majority of D, and so on through every later configuration.
 *   5. The leader lease: K is LEADING, and serves, only after a majority of the configuration in force promised it; the
 *      lease of the leader there was granted by a majority of the same one (update_confirmed asks for every
 *      configuration in force, configuration_governs drops what was granted without the new one), and P8 does the rest.
 *   6. A vote is a store's.  In a seat that was given to another store K, which does not know that, gets answers with
 *      another generation and counts none of them (is_member); between two stores a seat is free for at least a slots.
 *
 * Up to paxos_members_done a removed store is needed as any other: thrown away earlier it counts as one store lost.
 * That loses nothing, for one member goes at a time, and what is left of a majority of the old configuration still
 * meets every majority of the new one; but two that become one cannot go on without it.  Nothing is lost by several
 * changes in a row either: an acceptor takes a slot only up to 2 x inflight_max above its chosen, so once that many
 * slots of the new configuration are chosen (config_delay, before the next change can be in effect, is more), a
 * majority of it has everything before.
 *
 * The log above `chosen` is a ring of cells.  Values are counted references: the same bytes wait in the log, in a
 * save, in messages and in an apply.  What a step causes collects in `out`; a take hands it over and keeps it until
 * the next one. */
#include "lockd/core/paxos.h"
#include "lockd/core/bug.h"

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
static const uint64_t NUMBER_MAX = PAXOS_NUMBER_MAX;

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
    struct ballot released; /* handed over by its leader: what still comes of it grants nothing */
    struct {                /* ACCEPTED in the making: accepts of one turn are answered once */
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
        uint64_t given_ms;
    } stored_after[STORED_MAX]; /* once `batch` is durable, the store holds the chosen value of every slot up to
                                   `chosen` */
    uint32_t stored_count;
    paxos_slot stored, cut;
    uint64_t free_bytes;

    /* configurations: [0] governs chosen + 1, [1] was applied and does not govern yet.  What was handed out up to
     * `known` has been applied by the caller, so every configuration up to there is here. */
    struct membership members[2];
    bool pending;
    paxos_slot handed, known;

    /* follower */
    struct ballot leader;
    bool leader_known;
    uint64_t leader_ms;
    uint64_t election_at_ms;
    uint64_t catchup_at_ms, catchup_wait_ms;
    uint16_t asked_seat; /* the last one that we asked though it does not lead us */

    /* candidate */
    uint64_t seen_round; /* highest of any ballot heard of */
    uint64_t nonce;      /* of the pre-vote */
    uint32_t failures;
    struct ballot ballot;
    struct ballot handed_over; /* by the leader before us, to us; round 0: nobody did */
    uint16_t votes;            /* who let us ask; who promised `ballot`, and reported what it had accepted (P10) */
    uint64_t attempt_until_ms, resend_at_ms;
    uint64_t prepare_batch;
    paxos_slot covered[PAXOS_NODES_MAX]; /* how far the parts of that promise reach */
    struct window best;                  /* per slot above settle_chosen the report of the highest ballot */
    paxos_slot settle_chosen, settle_top;
    uint16_t settle_peer; /* reported settle_chosen: has it to give */

    /* leader */
    bool settle_begun; /* everything up to settle_chosen is learned: the reports are being proposed */
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
    uint64_t config_round; /* the newest round when the pending configuration was learned */
    struct {
        paxos_slot chosen;
        uint64_t resend_at_ms, resend_wait_ms;
        uint64_t heard_ms; /* its last acknowledgement under our ballot; 0: none */
        uint64_t free_bytes;
    } peers[PAXOS_NODES_MAX];
    struct {
        bool active;
        uint16_t wish; /* the seat asked for; PAXOS_NODES_MAX: any */
        uint64_t until_ms, again_ms;
        paxos_slot asked_at; /* `chosen` when the heir was asked how far it is */
    } transfer;
};

/* ------------------------------------------------------------------ small things */

static uint16_t bit(uint16_t seat) {
    return (uint16_t)(1u << seat);
}
static uint32_t bits(uint16_t mask) {
    return (uint32_t)__builtin_popcount(mask);
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

/* ------------------------------------------------------------------ configurations (P10) */

static const struct membership *newest(const struct paxos *p) {
    return &p->members[p->pending ? 1 : 0];
}
/* Which one governs that slot; true only up to known + config_delay. */
static const struct membership *governs(const struct paxos *p, paxos_slot slot) {
    const bool later = p->pending && (slot >= p->members[1].slot + p->config.config_delay || BUG(31));
    return &p->members[later ? 1 : 0];
}
/* Everybody the configurations in force name, ourselves left out. */
static uint16_t others(const struct paxos *p) {
    uint16_t mask = p->members[0].voters | p->members[0].learners;
    if (p->pending) mask |= p->members[1].voters | p->members[1].learners;
    return mask & (uint16_t)~bit(p->config.node);
}
static uint16_t other_voters(const struct paxos *p) {
    return (uint16_t)(p->members[0].voters | (p->pending ? p->members[1].voters : 0)) & (uint16_t)~bit(p->config.node);
}
static bool alone(const struct paxos *p) {
    return others(p) == 0;
}
static bool votes_in(const struct paxos *p, const struct membership *m, uint16_t seat) {
    return (m->voters & bit(seat)) && (seat != p->config.node || m->generation[seat] == p->config.generation);
}
/* We may campaign: the configuration that governs the next slot is known from the log, and our store votes in it. */
static bool may_campaign(const struct paxos *p) {
    const struct membership *m = &p->members[0];
    return votes_in(p, m, p->config.node) && m->slot <= p->chosen;
}
static uint32_t majority(const struct membership *m) {
    return bits(m->voters) / 2u + (BUG(14) && bits(m->voters) > 1 ? 0 : 1);
}
/* Of one configuration: seats count, learners do not, and a seat of ours only if our store sits in it. */
static bool is_majority_of(const struct paxos *p, const struct membership *m, uint16_t mask) {
    if (!votes_in(p, m, p->config.node)) mask &= (uint16_t)~bit(p->config.node);
    return bits(mask & (BUG(30) ? m->voters | m->learners : m->voters)) >= majority(m);
}
/* Of every configuration that governs a slot above `chosen`. */
static bool is_majority(const struct paxos *p, uint16_t mask) {
    return is_majority_of(p, &p->members[0], mask) && (!p->pending || is_majority_of(p, &p->members[1], mask));
}
/* This message is from the store that the newest configuration names in that seat.  The one before it never names
 * another one there: a seat is free in between. */
static bool is_member(const struct paxos *p, const struct paxos_msg *m) {
    const struct membership *n = newest(p);
    return (others(p) & bit(m->from)) && m->generation == n->generation[m->from];
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
    m.generation = p->config.generation;
    m.free_bytes = p->free_bytes;
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
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if (others(p) & bit(i)) send_now(p, i, m);
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
    p->transfer.active = false;
    p->handed_over = (struct ballot){0};
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

static void configuration_governs(struct paxos *p);

/* The pending configuration takes effect when its first slot is the next one. */
static void roll(struct paxos *p) {
    if (!p->pending || p->chosen + 1 < p->members[1].slot + p->config.config_delay) return;
    p->members[0] = p->members[1];
    p->pending = false;
    configuration_governs(p);
}

static void hand_out(struct paxos *p, struct cell *c) {
    must(c->slot == p->chosen + 1);
    entry_add(p, &out(p)->applies, out(p), c->slot, c->ballot, value_ref(c->value));
    cell_clear(p, c);
    p->chosen++;
    p->progress_ms = p->now_ms;
    roll(p);
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
        *ret_peer = ballot_seat(p->claim.ballot);
        return true;
    }
    if (p->role == PAXOS_SETTLING && p->settle_chosen > p->chosen) {
        *ret_peer = p->settle_peer;
        return true;
    }
    return false;
}
static void ask_for_chosen(struct paxos *p, uint16_t peer) {
    send_now(p, peer, (struct paxos_msg){.kind = PAXOS_MSG_CATCHUP, .slot = p->chosen + 1, .chosen = p->chosen});
}
static void catch_up(struct paxos *p) {
    uint16_t peer;
    if (!behind(p, &peer) || p->now_ms < p->catchup_at_ms) return;
    ask_for_chosen(p, peer);
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

/* What the best majority of that configuration has at least. */
static uint64_t majority_has(const struct paxos *p, const struct membership *m, const uint64_t *by_seat) {
    uint64_t sorted[PAXOS_NODES_MAX];
    uint32_t n = 0;
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if (!(m->voters & bit(i))) continue;
        const uint64_t has = i != p->config.node || votes_in(p, m, i) ? by_seat[i] : 0;
        uint32_t at = n++;
        for (; at > 0 && sorted[at - 1] < has; at--) sorted[at] = sorted[at - 1];
        sorted[at] = has;
    }
    return sorted[majority(m) - 1];
}
static uint64_t majorities_have(const struct paxos *p, const uint64_t *by_seat) {
    const uint64_t now = majority_has(p, &p->members[0], by_seat);
    return p->pending ? min64(now, majority_has(p, &p->members[1], by_seat)) : now;
}

/* The newest round that a majority of every configuration in force acknowledged. */
static void update_confirmed(struct paxos *p) {
    const uint64_t round = majorities_have(p, p->acked);
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
    p->peers[m->from].heard_ms = p->now_ms;
    p->peers[m->from].free_bytes = m->free_bytes;
    /* Once we are LEADING nobody has accepted anything above settle_top under a lower ballot that could still be chosen
     * there: who follows this ballot has promised it, and has nothing to report that we lack (P10). */
    if (p->role == PAXOS_LEADING || BUG(43)) p->votes |= bit(m->from);
    const uint64_t round = BUG(12) ? p->round_last : m->round;
    if (round > p->acked[m->from]) {
        p->acked[m->from] = round;
        update_confirmed(p);
    }
}

/* ------------------------------------------------------------------ leading: proposals */

static void mark_chosen(struct paxos *p, struct cell *c) {
    if (is_majority_of(p, governs(p, c->slot), c->acks)) c->chosen = true;
}

/* The highest slot we may propose: its configuration is known from the log, and a majority of it has promised. */
static paxos_slot propose_limit(const struct paxos *p) {
    paxos_slot limit = p->known + p->config.config_delay;
    if (BUG(32)) return limit;
    if (!is_majority_of(p, &p->members[0], p->votes)) return p->chosen;
    if (p->pending && !is_majority_of(p, &p->members[1], p->votes))
        limit = min64(limit, p->members[1].slot + p->config.config_delay - 1);
    return limit;
}

/* Takes over one reference. */
static void propose(struct paxos *p, paxos_slot slot, struct value *v) {
    log_accept(p, slot, p->ballot, v);
    if (BUG(3)) cell_at(&p->log, slot)->acks |= bit(p->config.node);
    p->last = max64(p->last, slot);
    if (p->unsent == 0) p->unsent = slot;
}

/* Everything the promises reported above what is chosen, the highest ballot per slot, gaps filled with nothing; as far
 * as the configurations are known. */
static void propose_reports(struct paxos *p) {
    const paxos_slot limit = min64(p->settle_top, propose_limit(p));
    while (p->last < limit) {
        const paxos_slot s = p->last + 1;
        struct cell *c = cell_at(&p->best, s);
        propose(p, s, c != NULL && !(BUG(7) && (s & 1)) ? value_ref(c->value) : value_new(p, slice_of(NULL, 0)));
        if (c != NULL) cell_clear(p, c);
    }
}

static void settle(struct paxos *p) {
    if (p->chosen < p->settle_chosen) return;
    if (!p->settle_begun) {
        p->settle_begun = true;
        p->last = p->chosen;
    }
    propose_reports(p);
    /* A configuration among what was just chosen may need other promises than ours: first it must be known. */
    if (p->known < p->settle_top) return;
    window_clear(p, &p->best);
    p->role = PAXOS_LEADING;
    p->failures = 0;
}

/* A majority has promised: from here on nobody can choose anything under a lower ballot. */
static void begin_settling(struct paxos *p) {
    p->role = PAXOS_SETTLING;
    p->leader_known = false;
    p->settle_begun = false;
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
        p->peers[i].chosen = p->peers[i].heard_ms = 0;
        p->peers[i].resend_at_ms = 0;
        p->peers[i].resend_wait_ms = 2 * retry_ms(p);
    }
    p->config_round = 0;
    p->transfer.again_ms = 0;
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
        for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
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
    return (struct ballot){.round = max64(p->promised.round, p->seen_round) + 1,
                           .node = member_number(p->config.node, p->config.generation)};
}

static void send_prevotes(struct paxos *p) {
    p->resend_at_ms = p->now_ms + retry_ms(p);
    const uint16_t mask = other_voters(p) & (uint16_t)~p->votes;
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if (!(mask & bit(i))) continue;
        send_now(
            p, i,
            (struct paxos_msg){.kind = PAXOS_MSG_PREVOTE, .ballot = p->ballot, .chosen = p->chosen, .round = p->nonce});
    }
}
static void send_prepares(struct paxos *p) {
    p->resend_at_ms = p->now_ms + 2 * retry_ms(p);
    const uint16_t mask = other_voters(p) & (uint16_t)~p->votes;
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if (!(mask & bit(i))) continue;
        const struct paxos_msg m = {
            .kind = PAXOS_MSG_PREPARE, .ballot = p->ballot, .chosen = p->chosen, .promised = p->handed_over};
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

/* A ballot of our own above every one heard of; false: there is none. */
static bool take_next_ballot(struct paxos *p) {
    p->ballot = next_ballot(p);
    if (p->ballot.round > NUMBER_MAX) halt(p, "no ballot above the ones in use");
    return p->role != PAXOS_HALTED;
}

/* The disk holds a transaction for too long: others do better (P10 has nothing to do with it; RELIABILITY: a leader
 * whose disk hangs still sends heartbeats). */
static bool stalled(const struct paxos *p) {
    return p->config.stall_ms > 0 && p->stored_count > 0 &&
           p->now_ms >= p->stored_after[0].given_ms + p->config.stall_ms;
}

/* Somebody may lead whom we do not hear: the others have what it chose, and the log says who leads, and where.  One
 * after the other, for some may have nothing. */
static void ask_around(struct paxos *p) {
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        p->asked_seat = (uint16_t)((p->asked_seat + 1) % PAXOS_NODES_MAX);
        if (others(p) & bit(p->asked_seat)) break;
    }
    if (!alone(p)) ask_for_chosen(p, p->asked_seat);
}
static void begin_prevote(struct paxos *p) {
    if (!may_campaign(p)) ask_around(p);
    if (!may_campaign(p) || stalled(p)) { /* perhaps later */
        p->election_at_ms = p->now_ms + p->config.lease_ms + jitter(p);
        return;
    }
    if (!free_for(p, member_number(p->config.node, p->config.generation))) {
        p->election_at_ms = max64(p->restart_until_ms, p->bound_until_ms) + jitter(p);
        return;
    }
    if (!take_next_ballot(p)) return;
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

/* ------------------------------------------------------------------ giving leadership away (P13) */

/* Who may lead after us, now and once a pending configuration is in effect. */
static uint16_t heirs(const struct paxos *p) {
    return p->members[0].voters & newest(p)->voters & (uint16_t)~bit(p->config.node);
}
static bool heard_lately(const struct paxos *p, uint16_t seat) {
    return p->peers[seat].heard_ms > 0 && p->now_ms < p->peers[seat].heard_ms + p->config.lease_ms;
}
/* The one that has most, of those that answer; PAXOS_NODES_MAX: nobody does. */
static uint16_t best_heir(const struct paxos *p) {
    uint16_t best = PAXOS_NODES_MAX;
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if (!(heirs(p) & bit(i)) || !heard_lately(p, i)) continue;
        if (best == PAXOS_NODES_MAX || p->peers[i].chosen > p->peers[best].chosen) best = i;
    }
    return best;
}

static void release(struct paxos *p, struct ballot ballot);

/* From here on nothing is served or proposed under this ballot. */
static void hand_over(struct paxos *p, uint16_t heir) {
    const struct paxos_msg m = {.kind = PAXOS_MSG_RELEASE, .ballot = p->ballot, .chosen = p->chosen};
    send_to_all_now(p, m);
    struct paxos_msg to_heir = m;
    to_heir.kind = PAXOS_MSG_TRANSFER;
    send_now(p, heir, to_heir);
    if (BUG(34)) {
        p->transfer.active = false;
        return;
    }
    release(p, p->ballot);
    follow(p, (uint64_t)p->config.lease_ms + p->config.election_spread_ms);
}

static void transfer_on(struct paxos *p) {
    const uint16_t heir = p->transfer.wish < PAXOS_NODES_MAX ? p->transfer.wish : best_heir(p);
    if (heir < PAXOS_NODES_MAX && p->chosen == p->last && (heirs(p) & bit(heir))) {
        if (p->peers[heir].chosen >= p->chosen && heard_lately(p, heir)) {
            hand_over(p, heir);
            return;
        }
        if (p->transfer.asked_at != p->chosen) { /* it says how far it is when it is asked */
            p->transfer.asked_at = p->chosen;
            new_round(p);
        }
    }
    if (p->now_ms < p->transfer.until_ms) return;
    p->transfer.active = false;
    p->transfer.again_ms = p->now_ms + 2 * (uint64_t)p->config.lease_ms;
    if (!votes_in(p, &p->members[0], p->config.node)) follow(p, p->config.lease_ms); /* the voters choose among them */
}
static void transfer_begin(struct paxos *p, uint16_t wish) {
    p->transfer.active = true;
    p->transfer.wish = wish;
    p->transfer.asked_at = UINT64_MAX;
    p->transfer.until_ms = p->now_ms + 2 * (uint64_t)p->config.lease_ms;
}
/* We are no voter any more, or our disk is sick: somebody else should lead. */
static bool should_go(const struct paxos *p) {
    if (BUG(39)) return false;
    return !votes_in(p, &p->members[0], p->config.node) || stalled(p);
}

/* A pending configuration takes effect only as slots are chosen: blank ones if nobody has work, and so many more that a
 * majority of it has that on its disks (paxos.h).  Half of the places stay free for those who have work. */
static void bring_into_effect(struct paxos *p) {
    const struct membership *n = newest(p);
    if (n->slot == 0 || BUG(41)) return;
    const paxos_slot need = min64(paxos_members_done(p, n->slot), propose_limit(p));
    const paxos_slot most = p->chosen + (p->config.inflight_max + 1) / 2;
    while (p->last < need && p->last < most) propose(p, p->last + 1, value_new(p, PAXOS_BLANK));
}

/* What a leader does of itself, once per take. */
static void tend(struct paxos *p) {
    if (p->role == PAXOS_SETTLING) settle(p);
    if (p->role != PAXOS_LEADING) return;
    if (!p->transfer.active) bring_into_effect(p);
    if (alone(p)) return;
    if (!p->transfer.active && should_go(p) && p->now_ms >= p->transfer.again_ms) transfer_begin(p, PAXOS_NODES_MAX);
    if (p->transfer.active) transfer_on(p);
}
/* When tend has something to look at besides what comes in. */
static uint64_t tend_at(const struct paxos *p) {
    if (p->role != PAXOS_LEADING || alone(p)) return UINT64_MAX;
    if (p->transfer.active) return p->transfer.until_ms;
    if (should_go(p)) return p->transfer.again_ms;
    if (p->config.stall_ms == 0 || p->stored_count == 0) return UINT64_MAX;
    return max64(p->stored_after[0].given_ms + p->config.stall_ms, p->transfer.again_ms);
}

/* ------------------------------------------------------------------ messages: acceptor */

/* We know more of the log than who asks, and there it is no voter any more: it would campaign in vain. */
static bool was_removed(const struct paxos *p, const struct paxos_msg *m) {
    const struct membership *n = newest(p);
    if (m->chosen >= p->chosen) return false;
    return !(others(p) & bit(m->from)) || m->generation != n->generation[m->from];
}

static void on_prevote(struct paxos *p, const struct paxos_msg *m) {
    const bool leader_near = hears_leader(p, p->now_ms) && p->leader.node != m->ballot.node;
    /* somebody else was promised a moment ago: let that one finish */
    const bool rival_near = p->promised.round > 0 && p->promised.node != m->ballot.node && p->promise_ms > 0 &&
                            p->now_ms < p->promise_ms + p->config.lease_ms;
    const bool granted = ballot_compare(m->ballot, p->promised) > 0 && free_for(p, m->ballot.node) && !leader_near &&
                         !rival_near && !leads(p) && !was_removed(p, m);
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

/* The leader of `ballot` has stopped under it for good: what we granted it binds us no more, and nothing else we
 * granted is touched (P13).  What that leader granted before it, it had outlived when it began to lead. */
static void release(struct paxos *p, struct ballot ballot) {
    if (ballot.round == 0) return;
    if (ballot_compare(ballot, p->released) > 0) p->released = ballot;
    if (ballot_equal(ballot, p->bound)) p->bound_until_ms = 0;
    if (ballot_equal(ballot, p->leader)) p->leader_known = false;
}

/* The leader hands over to us: no vote is needed before we ask for promises, it had a majority until now. */
static bool on_transfer(struct paxos *p, const struct paxos_msg *m) {
    release(p, m->ballot);
    if (p->role != PAXOS_FOLLOWER || !ballot_equal(m->ballot, p->promised)) return false;
    if (!may_campaign(p) || p->known < p->chosen || stalled(p)) return false;
    if (!free_for(p, member_number(p->config.node, p->config.generation)) || !take_next_ballot(p)) return false;
    p->leader_known = false;
    p->handed_over = m->ballot;
    begin_preparing(p);
    return true;
}
static void on_release(struct paxos *p, const struct paxos_msg *m) {
    release(p, m->ballot);
    if (p->role == PAXOS_FOLLOWER) p->election_at_ms = p->now_ms + p->config.lease_ms + jitter(p); /* the heir first */
}

static void on_prepare(struct paxos *p, const struct paxos_msg *m) {
    release(p, m->promised);
    const int order = ballot_compare(m->ballot, p->promised);
    if (order < 0 || (order > 0 && !free_for(p, m->ballot.node))) {
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
    const bool gone = ballot_equal(m->ballot, p->released);
    p->leader = m->ballot;
    p->leader_known = !gone;
    p->leader_ms = p->now_ms;
    if (m->round > 0 && m->lease_ms > 0 && !gone) {
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
    o->fetches[at] = (struct paxos_fetch){
        .to = m->from, .snapshot = m->slot <= p->cut && !BUG(36), .from_slot = m->slot, .to_slot = top};
}

/* ------------------------------------------------------------------ messages: candidate, leader, learner */

static bool on_prevote_reply(struct paxos *p, const struct paxos_msg *m) {
    if (p->role != PAXOS_PREVOTING || m->round != p->nonce || !ballot_equal(m->ballot, p->ballot)) return false;
    if (!is_member(p, m)) return false;
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
    if (!is_member(p, m) || !promise_makes_sense(p, m)) return false;
    p->peers[m->from].free_bytes = m->free_bytes;
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
    if (p->role < PAXOS_PREPARING || !ballot_equal(m->ballot, p->ballot) || !is_member(p, m)) return false;
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
        m->slot > m->slot_last || !is_member(p, m)) {
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
    if (!leads(p) || !ballot_equal(m->ballot, p->ballot) || m->round > p->round_last || !is_member(p, m)) return false;
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
        if (leads(p) && p->settle_begun) break; /* what we propose is at least as new */
        if (!learn(p, e)) return true;
    }
    if (p->chosen == before) return false;
    p->catchup_at_ms = p->now_ms;
    p->catchup_wait_ms = retry_ms(p);
    advance(p);
    if (p->role <= PAXOS_PREVOTING && !hears_leader(p, p->now_ms)) ask_for_chosen(p, m->from); /* there may be more */
    return true;
}

/* ------------------------------------------------------------------ what may come in */

static bool ballot_makes_sense(struct ballot b) {
    return b.round <= NUMBER_MAX && ballot_seat(b) < PAXOS_NODES_MAX;
}
static bool message_makes_sense(const struct paxos *p, const struct paxos_msg *m) {
    const uint16_t own = member_number(p->config.node, p->config.generation);
    if (m->from >= PAXOS_NODES_MAX || m->from == p->config.node || m->to != p->config.node) return false;
    if (!ballot_makes_sense(m->ballot) || !ballot_makes_sense(m->promised)) return false;
    if (m->chosen > NUMBER_MAX || m->lease_ms > LEASE_MS_MAX) return false;
    switch (m->kind) {
    case PAXOS_MSG_PREVOTE:
    case PAXOS_MSG_PREPARE:
    case PAXOS_MSG_ACCEPT:
    case PAXOS_MSG_HEARTBEAT:
    case PAXOS_MSG_TRANSFER:
    case PAXOS_MSG_RELEASE:
        if (m->generation > MEMBER_GENERATION_MAX || m->ballot.round == 0) return false;
        if (m->ballot.node != member_number(m->from, m->generation)) return false;
        break;
    case PAXOS_MSG_PREVOTE_REPLY:
    case PAXOS_MSG_PROMISE:
    case PAXOS_MSG_REFUSE:
    case PAXOS_MSG_ACCEPTED:
    case PAXOS_MSG_HEARTBEAT_ACK:
        if (m->ballot.node != own || m->ballot.round == 0) return false;
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
        if (!ballot_makes_sense(e->ballot) || e->ballot.round == 0) return false;
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
    case PAXOS_MSG_TRANSFER: taken = on_transfer(p, m); break;
    case PAXOS_MSG_RELEASE: on_release(p, m); break;
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
    while (done < p->stored_count && p->stored_after[done].batch <= batch)
        p->stored = max64(p->stored, p->stored_after[done++].chosen);
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
    if (!p->settle_begun || !in_open_slots(p, c)) return UINT64_MAX;
    return max64(c->sent_ms, p->progress_ms) + (BUG(46) ? 0 : 10) * (uint64_t)p->config.lease_ms;
}

static void lead_on(struct paxos *p) {
    if (alone(p)) return;
    if (p->now_ms >= majority_until(p) && !BUG(45)) {
        follow(p, 0);
    } else if (p->role == PAXOS_SETTLING && !p->settle_begun && p->now_ms >= learn_until(p)) {
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
        /* what was just handed out may hold a configuration: first the caller applies it */
        if (p->now_ms >= p->election_at_ms && p->known == p->chosen) begin_prevote(p);
        break;
    case PAXOS_PREVOTING:
        if (p->now_ms >= p->attempt_until_ms) {
            p->role = PAXOS_FOLLOWER;
            ask_around(p);
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
        if (p->role == PAXOS_SETTLING && !p->settle_begun) at = min64(at, learn_until(p));
        at = min64(at, tend_at(p));
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
    must(config->alloc != NULL && config->node < PAXOS_NODES_MAX && config->generation <= MEMBER_GENERATION_MAX);
    must(membership_makes_sense(&config->members) && config->value_bytes_max >= 1);
    must(config->inflight_max >= 1 && config->inflight_max <= INFLIGHT_MAX);
    must(config->heartbeat_ms >= 1 && config->heartbeat_ms < config->lease_ms && config->lease_ms <= LEASE_MS_MAX);
    must(config->drift_ppm <= 1000000 && config->election_spread_ms <= LEASE_MS_MAX);
    struct boxes *b = alloc_get0(config->alloc, sizeof *b);
    struct paxos *p = &b->paxos;
    p->config = *config;
    if (p->config.config_delay == 0) p->config.config_delay = PAXOS_CONFIG_DELAY;
    p->members[0] = config->members;
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
    p->chosen = p->saved_chosen = p->stored = p->handed = p->known = saved->chosen;
    p->cut = saved->cut;
    p->free_bytes = UINT64_MAX;
    for (uint32_t i = 0; i < PAXOS_NODES_MAX; i++) p->peers[i].free_bytes = UINT64_MAX;
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
    p->known = p->handed;
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
        told = send_accepts(p, others(p), p->unsent, p->last, 0, UINT64_MAX, UINT32_MAX) > 0;
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
    p->stored_after[p->stored_count].given_ms = p->now_ms;
    p->stored_after[p->stored_count].batch = p->batch;
    p->stored_after[p->stored_count++].chosen = p->chosen;
}

bool paxos_take(struct paxos *p, struct paxos_output *ret_out) {
    struct boxes *b = (struct boxes *)p;
    *ret_out = (struct paxos_output){0};
    outbox_clear(p, &b->box[b->filling ^ 1]);
    p->known = p->handed;
    tend(p);
    if (p->role == PAXOS_HALTED)
        outbox_clear(p, out(p)); /* nothing of a broken node may leave */
    else
        flush(p);
    struct outbox *o = out(p);
    p->handed = p->chosen;
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
    if (p->role != PAXOS_LEADING || p->transfer.active) return 0;
    const paxos_slot last = max64(p->last, p->chosen);
    const paxos_slot limit = min64(propose_limit(p), p->chosen + p->config.inflight_max);
    return last >= limit ? 0 : (uint32_t)(limit - last);
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

/* ------------------------------------------------------------------ membership, the log's beginning, room */

/* The pending configuration governs the next slot: its majority alone counts from here on.  What the leader's lease was
 * granted by must have been a majority of it too. */
static void configuration_governs(struct paxos *p) {
    if (!leads(p)) return;
    if (p->confirmed <= p->config_round) {
        p->lease_known = false;
        p->lease_until_ms = 0;
    }
    update_confirmed(p);
}

/* Another store sits there now: what we know is of its predecessor. */
static void forget_peer(struct paxos *p, uint16_t seat) {
    p->votes &= (uint16_t)~bit(seat);
    p->acked[seat] = 0;
    p->covered[seat] = 0;
    p->peers[seat].chosen = p->peers[seat].heard_ms = p->peers[seat].resend_at_ms = 0;
    p->peers[seat].resend_wait_ms = 2 * retry_ms(p);
    p->peers[seat].free_bytes = UINT64_MAX;
}

static void lead_with_new_members(struct paxos *p, bool was_alone) {
    p->config_round = p->round_last;
    if (p->role == PAXOS_SETTLING && !is_majority(p, p->votes) && !BUG(32)) {
        /* Of what that majority has accepted nothing was reported to us: ask again, it as well. */
        follow(p, may_campaign(p) ? 0 : p->config.lease_ms);
        if (may_campaign(p)) p->election_at_ms = p->now_ms;
        return;
    }
    if (was_alone && !alone(p)) {
        lease_length(p, p->config.lease_ms);
        p->majority_ms = p->now_ms;
    }
    if (!alone(p)) new_round(p);
}

void paxos_members(struct paxos *p, uint64_t now_ms, const struct membership *m) {
    must(now_ms >= p->now_ms && membership_makes_sense(m) && m->slot <= p->handed);
    p->now_ms = now_ms;
    const bool hearsay = p->members[0].slot > p->chosen; /* named by the cluster, not learned from its log */
    if (m->slot <= newest(p)->slot && !hearsay) return;
    must(!p->pending);
    const bool was_alone = alone(p);
    const struct membership before = p->members[0];
    if (hearsay || m->slot + p->config.config_delay <= p->chosen + 1) {
        p->members[0] = *m;
    } else {
        p->members[1] = *m;
        p->pending = true;
    }
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if (before.generation[i] != m->generation[i] && i != p->config.node) forget_peer(p, i);
    }
    if (p->role == PAXOS_PREVOTING || p->role == PAXOS_PREPARING) {
        if (!may_campaign(p)) follow(p, p->config.lease_ms);
    } else if (leads(p)) {
        lead_with_new_members(p, was_alone);
    }
}

paxos_slot paxos_members_done(const struct paxos *p, paxos_slot slot) {
    return slot + p->config.config_delay - 1 + 2 * (uint64_t)p->config.inflight_max;
}

const struct membership *paxos_members_newest(const struct paxos *p) {
    return newest(p);
}

void paxos_generation(struct paxos *p, uint64_t now_ms, uint16_t generation) {
    must(now_ms >= p->now_ms && generation >= p->config.generation && generation <= MEMBER_GENERATION_MAX);
    p->now_ms = now_ms;
    if (generation == p->config.generation) return;
    p->config.generation = generation;
    if (p->role != PAXOS_FOLLOWER && p->role != PAXOS_HALTED) follow(p, p->config.lease_ms);
}

bool paxos_caught_up(const struct paxos *p, uint16_t seat) {
    if (p->role != PAXOS_LEADING || seat >= PAXOS_NODES_MAX || !(others(p) & bit(seat))) return false;
    return heard_lately(p, seat) && p->peers[seat].chosen + p->config.inflight_max >= p->chosen;
}

enum paxos_verdict paxos_transfer(struct paxos *p, uint64_t now_ms, uint16_t seat) {
    must(now_ms >= p->now_ms && seat <= PAXOS_NODES_MAX);
    p->now_ms = now_ms;
    if (p->role != PAXOS_LEADING) return PAXOS_NOT_LEADER;
    if (seat == PAXOS_NODES_MAX ? best_heir(p) == PAXOS_NODES_MAX : !(heirs(p) & bit(seat))) return PAXOS_IGNORED;
    transfer_begin(p, seat);
    return PAXOS_TAKEN;
}

void paxos_install(struct paxos *p, uint64_t now_ms, paxos_slot slot, const struct membership *governing,
                   const struct membership *pending) {
    must(now_ms >= p->now_ms && slot <= NUMBER_MAX && membership_makes_sense(governing));
    must(pending == NULL || membership_makes_sense(pending));
    p->now_ms = now_ms;
    if (p->role == PAXOS_HALTED || slot <= p->chosen) return;
    if (p->role != PAXOS_FOLLOWER) follow(p, p->config.lease_ms);
    out(p)->applies.count = 0; /* they are in the snapshot */
    for (uint32_t i = 0; i < p->log.capacity; i++) {
        if (p->log.cells[i].slot <= slot) cell_clear(p, &p->log.cells[i]);
    }
    p->handed = p->known = slot;
    if (!BUG(37)) p->chosen = slot;
    p->stored = max64(p->stored, slot);
    p->cut = max64(p->cut, slot);
    p->members[0] = *governing;
    p->pending = pending != NULL;
    if (pending != NULL) p->members[1] = *pending;
    p->catchup_at_ms = p->now_ms;
    p->catchup_wait_ms = retry_ms(p);
    advance(p);
}

void paxos_cut(struct paxos *p, paxos_slot slot) {
    must(slot <= p->chosen);
    p->cut = max64(p->cut, slot);
}

void paxos_disk_free(struct paxos *p, uint64_t bytes) {
    p->free_bytes = bytes;
}
uint64_t paxos_free_majority(const struct paxos *p) {
    if (p->role != PAXOS_LEADING) return 0;
    uint64_t by_seat[PAXOS_NODES_MAX];
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++)
        by_seat[i] = i == p->config.node ? p->free_bytes : p->peers[i].free_bytes;
    return majorities_have(p, by_seat);
}
