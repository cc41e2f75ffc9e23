#include "proxy/core/bindings.h"
#define XXH_INLINE_ALL
#include <xxhash.h>
/* uthash takes its memory and its hash from the table at hand: every function below calls it `b`. */
#define uthash_malloc(bytes)       alloc_get(b->alloc, (bytes))
#define uthash_free(memory, bytes) alloc_put(b->alloc, (memory))
#define uthash_fatal(text)         must_fail(__FILE__, __LINE__, (text))
#define HASH_FUNCTION(keyptr, keylen, hash_out)                                                                        \
    ((hash_out) = (unsigned)XXH3_64bits_withSeed((keyptr), (keylen), b->seed))
#include <uthash.h>

enum state { UNKNOWN, ASKING, HELD, MOVING, DROPPING, DOUBT, LOOSE, RECHECKING, STATE_COUNT };
enum op_kind { OP_NONE, OP_BIND, OP_GET, OP_MOVE, OP_DROP, OP_TOUCH };
enum suspicion { UNASKED, NOT_ENOUGH, ENOUGH };
enum { RETRY_MS_MIN = 10, RETRY_MS_MAX = 1000, SUSPECT_MS_MIN = 50, SUSPECT_MS_MAX = 1000, REPLACE_MS_MIN = 1000 };
enum { NEXT_RETRY_MS_MIN = 20, NEXT_RETRY_MS_MAX = 250, BUSY_MS = 100 };
static const uint64_t NEVER = UINT64_MAX;
static const uint32_t NOT_IN_HEAP = UINT32_MAX;

#define BIT(state) (1u << (state))
static const uint32_t may_go_to[STATE_COUNT] = {
    [UNKNOWN] = BIT(ASKING) | BIT(MOVING) | BIT(LOOSE),
    [ASKING] = BIT(HELD) | BIT(UNKNOWN) | BIT(RECHECKING),
    [HELD] = BIT(UNKNOWN) | BIT(MOVING) | BIT(DROPPING) | BIT(LOOSE),
    [MOVING] = BIT(HELD) | BIT(UNKNOWN) | BIT(DOUBT),
    [DROPPING] = BIT(UNKNOWN) | BIT(HELD) | BIT(DOUBT),
    [DOUBT] = BIT(UNKNOWN),
    [LOOSE] = BIT(UNKNOWN) | BIT(RECHECKING),
    [RECHECKING] = BIT(HELD) | BIT(LOOSE),
};

TAILQ_HEAD(conn_list, bindings_conn);
TAILQ_HEAD(entry_list, bindings_entry);

/* One session.  Its key is stored as the two bytes of the pool's index and then the session itself. */
struct bindings_entry {
    UT_hash_handle by_key, by_op;
    struct conn_list conns;
    uint32_t conn_count, waiting_count;
    enum state state;
    enum op_kind op_kind;
    uint64_t op;            /* the question that is out, 0 = none */
    uint64_t op_era;        /* when it was asked (V6) */
    bool known;             /* backend, epoch and shard say what was last known, in state HELD what is */
    bool move_due;          /* its backend is down: MOVE as soon as lockd would agree */
    bool doubt;             /* MOVING only: an earlier copy of the MOVE perhaps ran or will */
    uint16_t backend, seat; /* member; the member whose load it counts on.  PLACEMENT_NONE = none */
    uint16_t target;        /* first or target of the question that is out */
    uint16_t shard_count, *shard;
    uint64_t epoch;
    uint64_t retry_at_ms;
    uint32_t retry_ms;
    uint64_t idle_since_ms, touched_ms;
    uint64_t wake_ms;
    uint32_t heap_index;
    struct entry_list *queue; /* the ask queue or its backend's move queue; NULL = in none */
    TAILQ_ENTRY(bindings_entry) of_queue, of_idle;
    bool in_idle;
    uint32_t pool, key_bytes;
    char key[];
};

struct member {
    enum suspicion suspicion;
    bool suspect_out; /* a ROUTE.SUSPECT is out */
    uint64_t down_since_ms, suspect_at_ms;
    struct entry_list moves; /* sessions whose MOVE is due */
};
struct pool {
    struct bindings_pool_config config; /* name and members point to memory of ours */
    struct placement_member *members;
    struct member *states;
    struct conn_list waiting; /* by deadline: one timeout for all of a pool */
};
struct bindings {
    const struct alloc *alloc;
    uint64_t seed;
    struct bindings_config config;
    struct pool *pools;
    struct bindings_counters counters;
    uint64_t now_ms;

    struct bindings_entry *by_key, *by_op;
    struct bindings_entry **heap;
    uint32_t heap_count, heap_capacity;
    struct entry_list idle, asks;
    uint64_t op_last;
    uint32_t asks_out, moves_out, moves_waiting, down_count;

    int64_t lease; /* 0 = none */
    uint64_t era;  /* grows whenever the cover lapses */
    bool covered;  /* before cut_at_ms */
    bool unlapsed; /* before cover_until_ms: what is HELD is held */
    bool loose;    /* class sticky may serve unconfirmed */
    uint64_t cover_until_ms, cut_at_ms, loose_at_ms;
    bool next_out;
    uint64_t next_sent_ms, next_at_ms; /* next_at: when to ask again after a failure, else NEVER */
    uint32_t next_retry_ms;
    uint64_t serial; /* highest seen under this lease */
    uint64_t replace_allowed_ms;

    struct bindings_output *outputs;
    size_t output_first, output_count, output_capacity;
    struct bindings_entry *dead; /* freed when the queue is empty: outputs borrow from them; linked by by_op.prev */
};

/* ---- outputs ---- */
static struct bindings_output *put(struct bindings *b, enum bindings_output_kind kind) {
    if (b->output_count == b->output_capacity) {
        if (b->output_first > 0) {
            memmove(b->outputs, b->outputs + b->output_first, (b->output_count - b->output_first) * sizeof *b->outputs);
            b->output_count -= b->output_first;
            b->output_first = 0;
        } else {
            b->output_capacity = b->output_capacity > 0 ? b->output_capacity * 2 : 64;
            b->outputs = alloc_resize(b->alloc, b->outputs, b->output_capacity * sizeof *b->outputs);
        }
    }
    struct bindings_output *out = &b->outputs[b->output_count++];
    *out = (struct bindings_output){.kind = kind, .member = PLACEMENT_NONE, .from = PLACEMENT_NONE, .lease = b->lease};
    return out;
}

static struct bindings_output *put_about(struct bindings *b, enum bindings_output_kind kind,
                                         const struct bindings_entry *e) {
    struct bindings_output *out = put(b, kind);
    out->pool = (uint16_t)e->pool;
    out->session = slice_of(e->key + 2, e->key_bytes - 2);
    out->shard = e->shard;
    out->shard_count = e->shard_count;
    out->epoch = e->epoch;
    out->op = e->op;
    return out;
}

static void entry_free(struct bindings *b, struct bindings_entry *e) {
    alloc_put(b->alloc, e->shard);
    alloc_put(b->alloc, e);
}

bool bindings_take(struct bindings *b, struct bindings_output *ret_output) {
    while (b->output_first < b->output_count) {
        *ret_output = b->outputs[b->output_first++];
        const bool about_conn = ret_output->kind <= BINDINGS_CONNECT;
        if (!about_conn || ret_output->conn != NULL) return true;
    }
    b->output_first = b->output_count = 0;
    while (b->dead != NULL) {
        struct bindings_entry *e = b->dead;
        b->dead = e->by_op.prev;
        entry_free(b, e);
    }
    return false;
}

/* ---- the timer heap ---- */
static void heap_place(struct bindings *b, struct bindings_entry *e, uint32_t at) {
    b->heap[at] = e;
    e->heap_index = at;
}

static void heap_up(struct bindings *b, struct bindings_entry *e, uint32_t at) {
    while (at > 0 && b->heap[(at - 1) / 2]->wake_ms > e->wake_ms) {
        heap_place(b, b->heap[(at - 1) / 2], at);
        at = (at - 1) / 2;
    }
    heap_place(b, e, at);
}

static void heap_down(struct bindings *b, struct bindings_entry *e, uint32_t at) {
    for (uint32_t child = 2 * at + 1; child < b->heap_count; child = 2 * at + 1) {
        if (child + 1 < b->heap_count && b->heap[child + 1]->wake_ms < b->heap[child]->wake_ms) child++;
        if (b->heap[child]->wake_ms >= e->wake_ms) break;
        heap_place(b, b->heap[child], at);
        at = child;
    }
    heap_place(b, e, at);
}

static void heap_remove(struct bindings *b, struct bindings_entry *e) {
    if (e->heap_index == NOT_IN_HEAP) return;
    const uint32_t at = e->heap_index;
    e->heap_index = NOT_IN_HEAP;
    struct bindings_entry *last = b->heap[--b->heap_count];
    if (last == e) return;
    if (at > 0 && b->heap[(at - 1) / 2]->wake_ms > last->wake_ms)
        heap_up(b, last, at);
    else
        heap_down(b, last, at);
}

static void heap_set(struct bindings *b, struct bindings_entry *e, uint64_t wake_ms) {
    if (e->heap_index != NOT_IN_HEAP && e->wake_ms == wake_ms) return;
    heap_remove(b, e);
    if (wake_ms == NEVER) return;
    if (b->heap_count == b->heap_capacity) {
        b->heap_capacity = b->heap_capacity > 0 ? b->heap_capacity * 2 : 64;
        b->heap = alloc_resize(b->alloc, b->heap, b->heap_capacity * sizeof *b->heap);
    }
    e->wake_ms = wake_ms;
    heap_up(b, e, b->heap_count++);
}

/* ---- small things about entries ---- */
static void enter(struct bindings_entry *e, enum state state) {
    if (e->state == state) return;
    must((may_go_to[e->state] & BIT(state)) != 0);
    e->state = state;
}

static struct pool *pool_of(const struct bindings *b, const struct bindings_entry *e) {
    return &b->pools[e->pool];
}

static bool is_exclusive(const struct bindings *b, const struct bindings_entry *e) {
    return pool_of(b, e)->config.class == BINDINGS_EXCLUSIVE;
}

static bool is_up(const struct bindings *b, const struct bindings_entry *e) {
    return e->backend != PLACEMENT_NONE && pool_of(b, e)->members[e->backend].up;
}

static void dequeue(struct bindings *b, struct bindings_entry *e) {
    if (e->queue == NULL) return;
    TAILQ_REMOVE(e->queue, e, of_queue);
    if (e->queue != &b->asks) b->moves_waiting--;
    e->queue = NULL;
}

/* Sessions somebody waits for go first. */
static void enqueue(struct bindings *b, struct bindings_entry *e, struct entry_list *queue) {
    if (e->queue == queue) return;
    dequeue(b, e);
    if (e->waiting_count > 0 && queue != &b->asks)
        TAILQ_INSERT_HEAD(queue, e, of_queue);
    else
        TAILQ_INSERT_TAIL(queue, e, of_queue);
    e->queue = queue;
    if (queue != &b->asks) b->moves_waiting++;
}

static void no_move_due(struct bindings *b, struct bindings_entry *e) {
    e->move_due = false;
    if (e->queue != NULL && e->queue != &b->asks) dequeue(b, e);
}

static void start_op(struct bindings *b, struct bindings_entry *e, enum op_kind kind) {
    must(e->op == 0);
    e->op = ++b->op_last;
    e->op_kind = kind;
    e->op_era = b->era;
    if (kind == OP_MOVE)
        b->moves_out++;
    else
        b->asks_out++;
    HASH_ADD(by_op, b->by_op, op, sizeof e->op, e);
}

static enum op_kind end_op(struct bindings *b, struct bindings_entry *e) {
    const enum op_kind kind = e->op_kind;
    if (e->op == 0) return OP_NONE;
    HASH_DELETE(by_op, b->by_op, e);
    if (kind == OP_MOVE)
        b->moves_out--;
    else
        b->asks_out--;
    e->op = 0;
    e->op_kind = OP_NONE;
    return kind;
}

static struct bindings_entry *find_op(struct bindings *b, uint64_t op) {
    struct bindings_entry *e;
    if (op == 0) return NULL;
    HASH_FIND(by_op, b->by_op, &op, sizeof op, e);
    return e;
}

static void retry_later(struct bindings *b, struct bindings_entry *e) {
    e->retry_ms = e->retry_ms == 0 ? RETRY_MS_MIN : e->retry_ms * 2 > RETRY_MS_MAX ? RETRY_MS_MAX : e->retry_ms * 2;
    e->retry_at_ms = b->now_ms + e->retry_ms;
}

static void retry_now(struct bindings_entry *e) {
    e->retry_ms = 0;
    e->retry_at_ms = 0;
}

static void set_shard(struct bindings *b, struct bindings_entry *e, const uint16_t *shard, uint32_t count) {
    if (e->shard_count == count && count > 0 && memcmp(e->shard, shard, count * sizeof *shard) == 0) return;
    if (e->shard_count != count) {
        alloc_put(b->alloc, e->shard);
        e->shard = count > 0 ? alloc_get(b->alloc, count * sizeof *shard) : NULL;
        e->shard_count = (uint16_t)count;
    }
    if (count > 0) memcpy(e->shard, shard, count * sizeof *shard);
}

/* The recorded shard if there is one that this proxy can use, else the one that the pool's members give. */
static void want_shard(struct bindings *b, struct bindings_entry *e) {
    const struct pool *p = pool_of(b, e);
    bool usable = e->known && e->shard_count > 0;
    for (uint32_t i = 0; usable && i < e->shard_count; i++) usable = e->shard[i] != PLACEMENT_NONE;
    if (usable) return;
    uint16_t shard[PLACEMENT_SHARD_MAX];
    const uint32_t count = placement_shard(p->config.name, slice_of(e->key + 2, e->key_bytes - 2), p->members,
                                           p->config.member_count, p->config.subset, shard);
    set_shard(b, e, shard, count);
}

static enum placement_verdict pick(const struct bindings *b, const struct bindings_entry *e, uint16_t *ret_member) {
    const struct pool *p = pool_of(b, e);
    return placement_pick(p->members, p->config.member_count, e->shard, e->shard_count, p->config.load_bound_percent,
                          ret_member);
}

static void set_seat(struct bindings *b, struct bindings_entry *e, uint16_t seat) {
    if (e->seat == seat) return;
    struct pool *p = pool_of(b, e);
    if (e->seat != PLACEMENT_NONE) p->members[e->seat].load--;
    if (seat != PLACEMENT_NONE) p->members[seat].load++;
    e->seat = seat;
}

static uint64_t earlier(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

/* After every change of an entry: its load, its place in the idle list, its timer. */
static void settle(struct bindings *b, struct bindings_entry *e) {
    uint16_t seat = PLACEMENT_NONE;
    if (e->conn_count > 0) seat = e->state == ASKING ? e->target : e->known ? e->backend : PLACEMENT_NONE;
    set_seat(b, e, seat);

    if (e->conn_count == 0 && !e->in_idle) {
        e->idle_since_ms = b->now_ms;
        TAILQ_INSERT_TAIL(&b->idle, e, of_idle);
        e->in_idle = true;
    } else if (e->conn_count > 0 && e->in_idle) {
        TAILQ_REMOVE(&b->idle, e, of_idle);
        e->in_idle = false;
    }

    uint64_t wake = NEVER;
    const bool retries =
        e->waiting_count > 0 || (e->state == MOVING && e->op == 0) || e->move_due || (e->state == LOOSE && b->covered);
    if (retries && e->retry_at_ms > b->now_ms) wake = e->retry_at_ms;
    if (e->in_idle && e->op == 0 && e->state != MOVING) wake = earlier(wake, e->idle_since_ms + b->config.idle_drop_ms);
    if (e->state == HELD && e->conn_count > 0 && e->op == 0 && b->config.touch_ms > 0)
        wake = earlier(wake, e->touched_ms + b->config.touch_ms);
    heap_set(b, e, wake);
}

/* ---- connections ---- */
static void unlink_conn(struct bindings *b, struct bindings_conn *c) {
    struct bindings_entry *e = c->entry;
    if (c->state == BINDINGS_CONN_WAITING) {
        TAILQ_REMOVE(&pool_of(b, e)->waiting, c, of_waiting);
        e->waiting_count--;
    }
    TAILQ_REMOVE(&e->conns, c, of_entry);
    e->conn_count--;
    c->state = BINDINGS_CONN_NONE;
    c->entry = NULL;
}

static void close_conn(struct bindings *b, struct bindings_conn *c, enum close_reason reason) {
    unlink_conn(b, c);
    struct bindings_output *out = put(b, BINDINGS_CLOSE);
    out->conn = c;
    out->reason = reason;
}

/* Into the pool's list of waiting ones, at the place of its deadline: a connection that waits again has an old one. */
static void wait_conn(struct bindings *b, struct bindings_conn *c) {
    struct conn_list *list = &pool_of(b, c->entry)->waiting;
    struct bindings_conn *after = TAILQ_LAST(list, conn_list);
    while (after != NULL && after->deadline_ms > c->deadline_ms) after = TAILQ_PREV(after, conn_list, of_waiting);
    if (after == NULL)
        TAILQ_INSERT_HEAD(list, c, of_waiting);
    else
        TAILQ_INSERT_AFTER(list, after, c, of_waiting);
    c->state = BINDINGS_CONN_WAITING;
    c->entry->waiting_count++;
}

static void retract_conn(struct bindings *b, struct bindings_conn *c) {
    must(c->state == BINDINGS_CONN_CONNECTING);
    put(b, BINDINGS_RETRACT)->conn = c;
    wait_conn(b, c);
}

static void close_waiting(struct bindings *b, struct bindings_entry *e, enum close_reason reason) {
    struct bindings_conn *c, *next;
    for (c = TAILQ_FIRST(&e->conns); c != NULL; c = next) {
        next = TAILQ_NEXT(c, of_entry);
        if (c->state == BINDINGS_CONN_WAITING) close_conn(b, c, reason);
    }
}

/* Nothing of this session reaches its backend any more; who was not connected yet waits again. */
static void cut(struct bindings *b, struct bindings_entry *e, enum close_reason reason) {
    struct bindings_conn *c, *next;
    for (c = TAILQ_FIRST(&e->conns); c != NULL; c = next) {
        next = TAILQ_NEXT(c, of_entry);
        if (c->state == BINDINGS_CONN_LIVE)
            close_conn(b, c, reason);
        else if (c->state == BINDINGS_CONN_CONNECTING)
            retract_conn(b, c);
    }
}

static bool has_served(const struct bindings_entry *e) {
    return e->conn_count > e->waiting_count;
}

static void connect_conn(struct bindings *b, struct bindings_conn *c, bool unconfirmed) {
    struct bindings_entry *e = c->entry;
    TAILQ_REMOVE(&pool_of(b, e)->waiting, c, of_waiting);
    e->waiting_count--;
    c->state = BINDINGS_CONN_CONNECTING;
    c->unconfirmed = unconfirmed;
    if (unconfirmed) b->counters.split_possible++;
    struct bindings_output *out = put_about(b, BINDINGS_CONNECT, e);
    out->conn = c;
    out->member = e->backend;
    out->unconfirmed = unconfirmed;
}

static void connect_waiting(struct bindings *b, struct bindings_entry *e, bool unconfirmed) {
    for (struct bindings_conn *c = TAILQ_FIRST(&e->conns); c != NULL; c = TAILQ_NEXT(c, of_entry))
        if (c->state == BINDINGS_CONN_WAITING) connect_conn(b, c, unconfirmed);
}

/* The backend counts as down here but lockd's word stands: each waiting connection tries it once. */
static void connect_directly(struct bindings *b, struct bindings_entry *e) {
    for (struct bindings_conn *c = TAILQ_FIRST(&e->conns); c != NULL; c = TAILQ_NEXT(c, of_entry)) {
        if (c->state != BINDINGS_CONN_WAITING || c->direct_tried) continue;
        c->direct_tried = true;
        connect_conn(b, c, false);
    }
}

/* ---- what to do next about one session ---- */
static void evaluate(struct bindings *b, struct bindings_entry *e);

static bool serves_loosely(const struct bindings *b, const struct bindings_entry *e) {
    return b->loose && !is_exclusive(b, e);
}

/* All of the shard, which is one of members (want_shard), are down here.  The first that most proxies think well of:
 * our view is the odd one, then. */
static uint16_t only_we_suspect(const struct bindings *b, const struct bindings_entry *e) {
    const struct pool *p = pool_of(b, e);
    for (uint32_t i = 0; i < e->shard_count; i++)
        if (p->states[e->shard[i]].suspicion == NOT_ENOUGH) return e->shard[i];
    return PLACEMENT_NONE;
}

/* BIND if somebody of the shard could take the session, else GET.  Returns false when the window is full: the entry
 * is queued then. */
static bool ask(struct bindings *b, struct bindings_entry *e) {
    if (b->asks_out >= b->config.asks_max) {
        enqueue(b, e, &b->asks);
        return false;
    }
    if (e->queue == &b->asks) dequeue(b, e);
    want_shard(b, e);
    uint16_t first = PLACEMENT_NONE;
    bool last_in_shard = false;
    for (uint32_t i = 0; e->known && i < e->shard_count; i++) last_in_shard |= e->shard[i] == e->backend;
    const bool serves = e->state == LOOSE && has_served(e);
    if (last_in_shard && is_up(b, e) && (serves || !pool_of(b, e)->members[e->backend].draining))
        first = e->backend;
    else if (pick(b, e, &first) == PLACEMENT_SHARD_DOWN)
        first = only_we_suspect(b, e);
    e->target = first;
    start_op(b, e, first != PLACEMENT_NONE ? OP_BIND : OP_GET);
    put_about(b, first != PLACEMENT_NONE ? BINDINGS_ASK_BIND : BINDINGS_ASK_GET, e)->member = first;
    enter(e, e->state == LOOSE ? RECHECKING : ASKING);
    return true;
}

/* Served without lockd: the last known backend, else the first choice. */
static void serve_loosely(struct bindings *b, struct bindings_entry *e) {
    if (!e->known || !is_up(b, e)) {
        want_shard(b, e);
        uint16_t member;
        if (pick(b, e, &member) == PLACEMENT_SHARD_DOWN) {
            close_waiting(b, e, CLOSE_SHARD_DOWN);
            return;
        }
        cut(b, e, CLOSE_BACKEND_DOWN);         /* V5 */
        if (e->state == HELD) enter(e, LOOSE); /* not the backend that is held */
        if (!e->known) e->epoch = 0;
        e->known = true;
        e->backend = member;
        retry_now(e);
    }
    if (e->state == UNKNOWN)
        enter(e, LOOSE);
    else if (e->state == ASKING)
        enter(e, RECHECKING);
    if (b->now_ms >= e->retry_at_ms) connect_waiting(b, e, true);
}

static void want_move(struct bindings *b, struct bindings_entry *e) {
    e->move_due = true;
    enqueue(b, e, &pool_of(b, e)->states[e->backend].moves);
}

static void evaluate_unknown(struct bindings *b, struct bindings_entry *e) {
    if (e->move_due && is_up(b, e)) no_move_due(b, e);
    if (e->move_due && b->covered && b->now_ms >= e->retry_at_ms) {
        const struct member *m = &pool_of(b, e)->states[e->backend];
        enqueue(b, e, &pool_of(b, e)->states[e->backend].moves);
        if (m->suspicion == ENOUGH) return; /* the pump takes it from here */
    }
    if (e->waiting_count == 0) return;
    if (serves_loosely(b, e))
        serve_loosely(b, e);
    else if (b->covered && b->now_ms >= e->retry_at_ms) {
        no_move_due(b, e);
        (void)ask(b, e);
    }
}

static void evaluate_held(struct bindings *b, struct bindings_entry *e) {
    if (e->backend == PLACEMENT_NONE) {
        close_waiting(b, e, CLOSE_UNKNOWN_BACKEND);
        return;
    }
    if (!b->covered) {
        if (serves_loosely(b, e) && e->waiting_count > 0) serve_loosely(b, e);
        return;
    }
    if (is_up(b, e)) {
        if (b->now_ms >= e->retry_at_ms) connect_waiting(b, e, false);
        return;
    }
    if (e->waiting_count == 0 && !e->move_due) return;
    const enum suspicion suspicion = pool_of(b, e)->states[e->backend].suspicion;
    uint16_t target;
    const bool nowhere = pick(b, e, &target) == PLACEMENT_SHARD_DOWN;
    if (suspicion == NOT_ENOUGH) connect_directly(b, e); /* lockd's word stands */
    if (nowhere && suspicion != UNASKED) {
        close_waiting(b, e, CLOSE_SHARD_DOWN);
        no_move_due(b, e);
        return;
    }
    want_move(b, e);
}

static void start_move(struct bindings *b, struct bindings_entry *e) {
    uint16_t target;
    dequeue(b, e);
    if (pick(b, e, &target) == PLACEMENT_SHARD_DOWN) {
        if (!e->doubt) { /* nowhere to go: it stays where it is recorded */
            e->move_due = false;
            close_waiting(b, e, CLOSE_SHARD_DOWN);
            return;
        }
        target = e->target; /* an earlier copy is out: its outcome has to be known */
    }
    cut(b, e, CLOSE_BACKEND_DOWN); /* V5: our hold ends when lockd takes the MOVE */
    e->target = target;
    enter(e, MOVING);
    start_op(b, e, OP_MOVE);
    put_about(b, BINDINGS_ASK_MOVE, e)->member = target;
}

static void evaluate_moving(struct bindings *b, struct bindings_entry *e) {
    if (e->op != 0 || !b->covered || b->now_ms < e->retry_at_ms) return;
    if (b->moves_out >= b->config.moves_max) {
        e->retry_at_ms = b->now_ms + BUSY_MS;
        return;
    }
    start_move(b, e);
}

static void evaluate_doubt(struct bindings *b, struct bindings_entry *e) {
    if (e->waiting_count == 0 || b->lease == 0 || b->now_ms < e->retry_at_ms) return;
    if (b->now_ms < b->replace_allowed_ms) {
        e->retry_at_ms = b->replace_allowed_ms;
        return;
    }
    b->replace_allowed_ms = b->now_ms + REPLACE_MS_MIN;
    e->retry_at_ms = b->replace_allowed_ms;
    b->counters.leases_replaced++;
    put(b, BINDINGS_REPLACE_LEASE);
}

static void evaluate_loose(struct bindings *b, struct bindings_entry *e) {
    if (b->covered) {
        if (e->state == RECHECKING) return; /* who waits, waits for lockd's word */
        if (e->conn_count == 0)
            enter(e, UNKNOWN);
        else if (b->now_ms >= e->retry_at_ms)
            (void)ask(b, e);
    } else if (e->waiting_count > 0 && b->loose) {
        serve_loosely(b, e);
    }
}

static void evaluate(struct bindings *b, struct bindings_entry *e) {
    switch (e->state) {
    case UNKNOWN: evaluate_unknown(b, e); break;
    case ASKING:
        if (serves_loosely(b, e) && e->waiting_count > 0) serve_loosely(b, e);
        break;
    case HELD: evaluate_held(b, e); break;
    case MOVING: evaluate_moving(b, e); break;
    case DROPPING: break;
    case DOUBT: evaluate_doubt(b, e); break;
    case LOOSE:
    case RECHECKING: evaluate_loose(b, e); break;
    case STATE_COUNT: must(false);
    }
    settle(b, e);
}

static void evaluate_all(struct bindings *b) {
    struct bindings_entry *e, *next;
    HASH_ITER(by_key, b->by_key, e, next) {
        evaluate(b, e);
    }
}

/* Our hold is over: by revocation, or because it turned out not to be one. */
static void let_go(struct bindings *b, struct bindings_entry *e, enum close_reason reason) {
    must(e->state == HELD);
    (void)end_op(b, e); /* a TOUCH may be out */
    no_move_due(b, e);
    cut(b, e, reason);
    enter(e, UNKNOWN);
    retry_now(e);
}

static void forget(struct bindings *b, struct bindings_entry *e) {
    must(e->conn_count == 0 && e->op == 0);
    dequeue(b, e);
    heap_remove(b, e);
    set_seat(b, e, PLACEMENT_NONE);
    if (e->in_idle) TAILQ_REMOVE(&b->idle, e, of_idle);
    HASH_DELETE(by_key, b->by_key, e);
    e->by_op.prev = b->dead;
    b->dead = e;
}

/* ---- time ---- */
static void lose_cover(struct bindings *b) {
    b->covered = false;
    b->loose = false;
    b->loose_at_ms = b->now_ms + b->config.loose_after_ms;
    b->counters.uncovered++;
    put(b, BINDINGS_SAY_UNCOVERED);
    struct bindings_entry *e, *next;
    HASH_ITER(by_key, b->by_key, e, next) {
        if (!is_exclusive(b, e) || !has_served(e)) continue;
        cut(b, e, CLOSE_NO_COVER);
        settle(b, e);
    }
}

/* Lockd may have passed us over by now without a word that reaches us: nothing is held (V6). */
static void lapse(struct bindings *b) {
    b->unlapsed = false;
    b->era++;
    struct bindings_entry *e, *next;
    HASH_ITER(by_key, b->by_key, e, next) {
        if (e->state != HELD) continue;
        (void)end_op(b, e); /* a TOUCH may be out */
        no_move_due(b, e);
        enter(e, has_served(e) ? LOOSE : UNKNOWN);
        settle(b, e);
    }
}

/* Every input begins here: the clock is looked at before anything else is believed. */
static void begin(struct bindings *b, uint64_t now_ms) {
    must(now_ms >= b->now_ms);
    b->now_ms = now_ms;
    if (b->covered && now_ms >= b->cut_at_ms) lose_cover(b);
    if (b->unlapsed && now_ms >= b->cover_until_ms) lapse(b);
    if (!b->covered && !b->loose && now_ms >= b->loose_at_ms) {
        b->loose = true;
        evaluate_all(b);
    }
}

static void pump_member(struct bindings *b, const struct pool *p, uint32_t index) {
    struct member *m = &p->states[index];
    while (m->suspicion == ENOUGH && b->moves_out < b->config.moves_max && !TAILQ_EMPTY(&m->moves)) {
        struct bindings_entry *e = TAILQ_FIRST(&m->moves);
        dequeue(b, e);
        if (!e->move_due || e->backend != index || (e->state != HELD && e->state != UNKNOWN)) continue;
        (void)end_op(b, e); /* a TOUCH may be out */
        if (b->now_ms >= e->retry_at_ms) start_move(b, e);
        settle(b, e); /* else its timer brings it back */
    }
}

/* Every input ends here: what waited for room in a window gets it. */
static void finish(struct bindings *b) {
    if (!b->covered) return;
    while (b->asks_out < b->config.asks_max && !TAILQ_EMPTY(&b->asks)) {
        struct bindings_entry *e = TAILQ_FIRST(&b->asks);
        dequeue(b, e);
        evaluate(b, e);
    }
    if (b->moves_waiting == 0) return;
    for (uint32_t p = 0; p < b->config.pool_count; p++)
        for (uint32_t m = 0; m < b->pools[p].config.member_count; m++)
            if (!TAILQ_EMPTY(&b->pools[p].states[m].moves)) pump_member(b, &b->pools[p], m);
}

/* ---- life ---- */
static struct slice copy_slice(const struct alloc *a, struct slice s) {
    char *copy = alloc_get(a, s.bytes + 1);
    memcpy(copy, s.data, s.bytes);
    copy[s.bytes] = '\0';
    return slice_of(copy, s.bytes);
}

static void pool_init(struct bindings *b, struct pool *p, const struct bindings_pool_config *config) {
    must(config->subset >= 1 && config->subset <= PLACEMENT_SHARD_MAX && config->name.bytes > 0);
    must(config->member_count >= 1 && config->member_count <= PLACEMENT_MEMBERS_MAX && config->ask_timeout_ms > 0);
    p->config = *config;
    p->config.name = copy_slice(b->alloc, config->name);
    p->members = alloc_get0(b->alloc, config->member_count * sizeof *p->members);
    p->config.members = p->members;
    p->states = alloc_get0(b->alloc, config->member_count * sizeof *p->states);
    TAILQ_INIT(&p->waiting);
    for (uint32_t m = 0; m < config->member_count; m++) {
        p->members[m] = (struct placement_member){.name = copy_slice(b->alloc, config->members[m].name),
                                                  .weight = config->members[m].weight,
                                                  .draining = config->members[m].draining,
                                                  .up = true};
        TAILQ_INIT(&p->states[m].moves);
    }
}

struct bindings *bindings_new(const struct bindings_config *config, uint64_t now_ms) {
    must(config->pool_count >= 1 && config->pool_count <= BINDINGS_POOLS_MAX);
    must(config->sessions_max >= 1 && config->asks_max >= 1 && config->moves_max >= 1 && config->idle_drop_ms >= 1);
    struct bindings *b = alloc_get0(config->alloc, sizeof *b);
    b->alloc = config->alloc;
    b->seed = config->seed;
    b->config = *config;
    b->now_ms = now_ms;
    b->loose_at_ms = now_ms + config->loose_start_ms;
    b->next_at_ms = NEVER;
    TAILQ_INIT(&b->idle);
    TAILQ_INIT(&b->asks);
    b->pools = alloc_get0(b->alloc, config->pool_count * sizeof *b->pools);
    for (uint32_t p = 0; p < config->pool_count; p++) pool_init(b, &b->pools[p], &config->pools[p]);
    return b;
}

void bindings_free(struct bindings *b) {
    struct bindings_entry *e, *next;
    HASH_CLEAR(by_op, b->by_op);
    HASH_ITER(by_key, b->by_key, e, next) {
        HASH_DELETE(by_key, b->by_key, e);
        entry_free(b, e);
    }
    b->output_first = b->output_count;
    struct bindings_output none;
    must(!bindings_take(b, &none));
    for (uint32_t p = 0; p < b->config.pool_count; p++) {
        struct pool *pool = &b->pools[p];
        for (uint32_t m = 0; m < pool->config.member_count; m++) {
            union {
                const char *borrowed;
                char *ours;
            } name = {.borrowed = pool->members[m].name.data};
            alloc_put(b->alloc, name.ours);
        }
        union {
            const char *borrowed;
            char *ours;
        } name = {.borrowed = pool->config.name.data};
        alloc_put(b->alloc, name.ours);
        alloc_put(b->alloc, pool->members);
        alloc_put(b->alloc, pool->states);
    }
    alloc_put(b->alloc, b->pools);
    alloc_put(b->alloc, b->heap);
    alloc_put(b->alloc, b->outputs);
    alloc_put(b->alloc, b);
}

/* ---- inputs: connections ---- */
/* Gives the binding of an idle session back; who is wanted again meanwhile waits for the outcome. */
static void start_drop(struct bindings *b, struct bindings_entry *e) {
    must(e->conn_count == 0 && e->op == 0);
    no_move_due(b, e);
    enter(e, DROPPING);
    start_op(b, e, OP_DROP);
    put_about(b, BINDINGS_ASK_DROP, e);
}

/* An idle session has had its time: forget it or give it back. */
static void retire(struct bindings *b, struct bindings_entry *e) {
    if (e->state == UNKNOWN || e->state == LOOSE) {
        forget(b, e);
        return;
    }
    const bool can = e->state == HELD && b->covered && b->asks_out < b->config.asks_max;
    if (can) {
        start_drop(b, e);
    } else { /* DOUBT stays known while the lease lives; the others get another turn */
        TAILQ_REMOVE(&b->idle, e, of_idle);
        e->in_idle = false;
    }
    settle(b, e);
}

/* Close to the limit: the longest idle sessions go.  Looks at a few only; each new session makes its own room. */
static void make_room(struct bindings *b) {
    struct bindings_entry *e = TAILQ_FIRST(&b->idle), *next;
    for (int looked = 0; e != NULL && looked < 8; e = next, looked++) {
        next = TAILQ_NEXT(e, of_idle);
        if (e->op == 0 && e->state != MOVING) retire(b, e);
    }
}

static struct bindings_entry *entry_make(struct bindings *b, uint32_t pool, const char *key, uint32_t key_bytes) {
    struct bindings_entry *e = alloc_get0(b->alloc, sizeof *e + key_bytes);
    e->pool = pool;
    e->backend = e->seat = e->target = PLACEMENT_NONE;
    e->heap_index = NOT_IN_HEAP;
    TAILQ_INIT(&e->conns);
    e->key_bytes = key_bytes;
    memcpy(e->key, key, key_bytes);
    HASH_ADD_KEYPTR(by_key, b->by_key, e->key, key_bytes, e);
    return e;
}

static struct bindings_entry *entry_find(struct bindings *b, uint32_t pool, struct slice session, char *key,
                                         uint32_t *ret_key_bytes) {
    key[0] = (char)(pool & 0xff);
    key[1] = (char)(pool >> 8);
    memcpy(key + 2, session.data, session.bytes);
    *ret_key_bytes = (uint32_t)session.bytes + 2;
    struct bindings_entry *e;
    HASH_FIND(by_key, b->by_key, key, *ret_key_bytes, e);
    return e;
}

enum bindings_verdict bindings_want(struct bindings *b, uint64_t now_ms, struct bindings_conn *conn, uint32_t pool,
                                    struct slice session) {
    must(conn->state == BINDINGS_CONN_NONE && pool < b->config.pool_count);
    must(session.bytes >= 1 && session.bytes <= 255);
    begin(b, now_ms);
    char key[257];
    uint32_t key_bytes;
    struct bindings_entry *e = entry_find(b, pool, session, key, &key_bytes);
    if (e == NULL) {
        const uint32_t count = HASH_CNT(by_key, b->by_key);
        if (count >= b->config.sessions_max - b->config.sessions_max / 8) make_room(b);
        if (HASH_CNT(by_key, b->by_key) >= b->config.sessions_max) {
            finish(b);
            return BINDINGS_FULL;
        }
        e = entry_make(b, pool, key, key_bytes);
    }
    conn->entry = e;
    conn->direct_tried = conn->unconfirmed = false;
    conn->deadline_ms = now_ms + b->pools[pool].config.ask_timeout_ms;
    TAILQ_INSERT_TAIL(&e->conns, conn, of_entry);
    e->conn_count++;
    wait_conn(b, conn);
    evaluate(b, e);
    finish(b);
    return BINDINGS_TAKEN;
}

void bindings_connected(struct bindings *b, uint64_t now_ms, struct bindings_conn *conn) {
    begin(b, now_ms);
    if (conn->state == BINDINGS_CONN_CONNECTING) { /* else it was retracted in the same turn */
        struct bindings_entry *e = conn->entry;
        conn->state = BINDINGS_CONN_LIVE;
        retry_now(e);
        if (e->state == HELD) no_move_due(b, e); /* it is reached: lockd's word was right */
        settle(b, e);
    }
    finish(b);
}

void bindings_connect_failed(struct bindings *b, uint64_t now_ms, struct bindings_conn *conn) {
    begin(b, now_ms);
    if (conn->state == BINDINGS_CONN_CONNECTING) {
        wait_conn(b, conn);
        if (is_up(b, conn->entry)) retry_later(b, conn->entry); /* else it waits for the move, which must not wait */
        evaluate(b, conn->entry);
    }
    finish(b);
}

void bindings_gone(struct bindings *b, uint64_t now_ms, struct bindings_conn *conn) {
    begin(b, now_ms);
    for (size_t i = b->output_first; i < b->output_count; i++)
        if (b->outputs[i].conn == conn) b->outputs[i].conn = NULL;
    if (conn->state != BINDINGS_CONN_NONE) {
        struct bindings_entry *e = conn->entry;
        unlink_conn(b, conn);
        settle(b, e);
    }
    finish(b);
}

bool bindings_may_write(const struct bindings *b, uint64_t now_ms, const struct bindings_conn *conn) {
    if (conn->state != BINDINGS_CONN_LIVE) return false;
    return !is_exclusive(b, conn->entry) || (b->covered && now_ms < b->cover_until_ms);
}

/* ---- inputs: lockd ---- */
static void ask_next(struct bindings *b) {
    b->next_out = true;
    b->next_at_ms = NEVER;
    b->next_sent_ms = b->now_ms;
    put(b, BINDINGS_ASK_NEXT)->serial = b->serial;
}

void bindings_lease_granted(struct bindings *b, uint64_t now_ms, int64_t lease) {
    must(lease > 0 && b->lease == 0);
    begin(b, now_ms);
    b->lease = lease;
    b->serial = 0;
    b->next_retry_ms = 0;
    ask_next(b);
    for (uint32_t p = 0; p < b->config.pool_count; p++)
        for (uint32_t m = 0; m < b->pools[p].config.member_count; m++) b->pools[p].states[m].suspect_at_ms = now_ms;
    evaluate_all(b);
    finish(b);
}

/* What is out under the old lease is of no interest any more, and its late copies can do no harm. */
static void unask(struct bindings *b, struct bindings_entry *e) {
    (void)end_op(b, e);
    dequeue(b, e);
    e->move_due = e->doubt = false;
    retry_now(e);
    switch (e->state) {
    case RECHECKING: enter(e, LOOSE); break;
    case ASKING:
    case MOVING:
    case DROPPING:
    case DOUBT: enter(e, UNKNOWN); break;
    default: break;
    }
}

void bindings_lease_lost(struct bindings *b, uint64_t now_ms) {
    begin(b, now_ms);
    b->lease = 0;
    b->next_out = false;
    b->next_at_ms = NEVER;
    b->serial = 0;
    b->cover_until_ms = b->cut_at_ms = 0;
    if (b->covered) lose_cover(b);
    if (b->unlapsed) lapse(b);
    for (uint32_t p = 0; p < b->config.pool_count; p++)
        for (uint32_t m = 0; m < b->pools[p].config.member_count; m++) {
            b->pools[p].states[m].suspicion = UNASKED;
            b->pools[p].states[m].suspect_out = false;
        }
    struct bindings_entry *e, *next;
    HASH_ITER(by_key, b->by_key, e, next) {
        unask(b, e);
        evaluate(b, e);
    }
    finish(b);
}

static void revoke(struct bindings *b, const struct bindings_revocation *r) {
    if (r->pool >= b->config.pool_count || r->session.bytes < 1 || r->session.bytes > 255) return;
    char key[257];
    uint32_t key_bytes;
    struct bindings_entry *e = entry_find(b, r->pool, r->session, key, &key_bytes);
    if (e == NULL || e->state != HELD || r->epoch < e->epoch) return; /* nothing, or already the one after */
    b->counters.revoked++;
    let_go(b, e, CLOSE_MOVED);
    evaluate(b, e);
}

static void gain_cover(struct bindings *b) {
    b->covered = true;
    b->loose = false;
    put(b, BINDINGS_SAY_COVERED);
    evaluate_all(b);
}

void bindings_next(struct bindings *b, uint64_t now_ms, int64_t lease, uint32_t ttl_ms, uint64_t serial,
                   const struct bindings_revocation *revocations, uint32_t count) {
    begin(b, now_ms);
    if (lease == b->lease && b->next_out) {
        if (serial > b->serial) b->serial = serial; /* first: what is asked again below must be judged by it (V3) */
        for (uint32_t i = 0; i < count; i++) revoke(b, &revocations[i]);
        const uint64_t drift = ((uint64_t)ttl_ms * b->config.clock_drift_ppm + 999999) / 1000000 + 1;
        const uint64_t margin = (uint64_t)ttl_ms * BINDINGS_CUT_PERMILLE / 1000;
        const uint64_t until = ttl_ms > drift ? b->next_sent_ms + ttl_ms - drift : b->next_sent_ms;
        b->cover_until_ms = until;
        b->cut_at_ms = until > margin ? until - margin : 0;
        b->next_retry_ms = 0;
        ask_next(b); /* after every CLOSE and RETRACT (V2) */
        b->unlapsed = now_ms < until;
        const bool covered = now_ms < b->cut_at_ms;
        if (covered && !b->covered)
            gain_cover(b);
        else if (!covered && b->covered)
            lose_cover(b);
    }
    finish(b);
}

void bindings_next_failed(struct bindings *b, uint64_t now_ms, int64_t lease) {
    begin(b, now_ms);
    if (lease == b->lease && b->next_out) {
        b->next_out = false;
        b->next_retry_ms = b->next_retry_ms == 0                      ? NEXT_RETRY_MS_MIN
                           : b->next_retry_ms * 2 > NEXT_RETRY_MS_MAX ? NEXT_RETRY_MS_MAX
                                                                      : b->next_retry_ms * 2;
        b->next_at_ms = now_ms + b->next_retry_ms;
    }
    finish(b);
}

static uint16_t member_named(const struct pool *p, struct slice name) {
    for (uint32_t m = 0; m < p->config.member_count; m++)
        if (slice_equal(p->members[m].name, name)) return (uint16_t)m;
    return PLACEMENT_NONE;
}

static void hold(struct bindings *b, struct bindings_entry *e, const struct bindings_reply *reply, bool moved) {
    const struct pool *p = pool_of(b, e);
    const uint16_t backend = member_named(p, reply->backend), before = e->known ? e->backend : PLACEMENT_NONE;
    const uint64_t epoch_before = e->known ? e->epoch : 0;
    if (e->state == RECHECKING && backend != e->backend) cut(b, e, CLOSE_SPLIT_LOST);
    uint16_t shard[PLACEMENT_SHARD_MAX];
    const uint32_t count = reply->shard_count < PLACEMENT_SHARD_MAX ? reply->shard_count : PLACEMENT_SHARD_MAX;
    for (uint32_t i = 0; i < count; i++) shard[i] = member_named(p, reply->shard[i]);
    set_shard(b, e, shard, count);
    enter(e, HELD);
    no_move_due(b, e);
    e->known = true;
    e->doubt = false;
    e->backend = backend;
    e->epoch = reply->epoch;
    e->touched_ms = b->now_ms;
    retry_now(e);
    if (epoch_before == reply->epoch) return; /* nothing new */
    struct bindings_output *out = put_about(b, moved ? BINDINGS_SAY_MOVED : BINDINGS_SAY_BOUND, e);
    out->member = backend;
    out->from = before;
    out->is_new = reply->is_new;
    if (moved)
        b->counters.moved++;
    else
        b->counters.bound++;
}

void bindings_binding(struct bindings *b, uint64_t now_ms, uint64_t op, const struct bindings_reply *reply) {
    begin(b, now_ms);
    struct bindings_entry *e = find_op(b, op);
    if (e != NULL && (e->op_kind == OP_BIND || e->op_kind == OP_GET || e->op_kind == OP_MOVE)) {
        const bool moved = end_op(b, e) == OP_MOVE;
        if (reply->revision > b->serial && e->op_era == b->era) {
            hold(b, e, reply, moved);
        } else { /* V3, V6 */
            b->counters.asked_again++;
            retry_later(b, e);
            if (e->state == RECHECKING)
                enter(e, LOOSE);
            else
                enter(e, UNKNOWN);
            no_move_due(b, e);
            e->doubt = false;
        }
        evaluate(b, e);
    }
    finish(b);
}

void bindings_absent(struct bindings *b, uint64_t now_ms, uint64_t op) {
    begin(b, now_ms);
    struct bindings_entry *e = find_op(b, op);
    if (e != NULL && e->op_kind == OP_GET) {
        (void)end_op(b, e);
        if (e->state == RECHECKING) {
            enter(e, LOOSE);
        } else {
            enter(e, UNKNOWN);
            e->known = false;
        }
        retry_later(b, e);
        uint16_t member;
        if (pick(b, e, &member) == PLACEMENT_SHARD_DOWN) close_waiting(b, e, CLOSE_SHARD_DOWN);
        evaluate(b, e);
    }
    finish(b);
}

void bindings_dropped(struct bindings *b, uint64_t now_ms, uint64_t op) {
    begin(b, now_ms);
    struct bindings_entry *e = find_op(b, op);
    if (e != NULL && e->op_kind == OP_DROP) {
        (void)end_op(b, e);
        enter(e, UNKNOWN);
        retry_now(e);
        if (e->conn_count == 0)
            forget(b, e);
        else
            evaluate(b, e);
    }
    finish(b);
}

void bindings_touched(struct bindings *b, uint64_t now_ms, uint64_t op, uint64_t epoch) {
    begin(b, now_ms);
    struct bindings_entry *e = find_op(b, op);
    if (e != NULL && e->op_kind == OP_TOUCH) {
        (void)end_op(b, e);
        e->touched_ms = now_ms;
        if (epoch != e->epoch) let_go(b, e, CLOSE_MOVED);
        evaluate(b, e);
    }
    finish(b);
}

static void move_failed(struct bindings *b, struct bindings_entry *e, enum bindings_failure failure) {
    struct member *m = &pool_of(b, e)->states[e->backend];
    switch (failure) {
    case BINDINGS_UNCERTAIN: /* asked again until its outcome is known */
        e->doubt = true;
        retry_later(b, e);
        return;
    case BINDINGS_NOT_RUN:
        retry_later(b, e);
        if (!e->doubt) enter(e, UNKNOWN);
        return;
    case BINDINGS_IN_SERVICE:
        b->counters.moves_refused++;
        if (m->suspicion == ENOUGH) {
            m->suspicion = NOT_ENOUGH;
            m->suspect_at_ms = b->now_ms + SUSPECT_MS_MIN;
        }
        retry_now(e);
        break;
    case BINDINGS_REFUSED:
        e->known = false;
        no_move_due(b, e);
        retry_later(b, e);
        break;
    }
    enter(e, e->doubt ? DOUBT : UNKNOWN);
    if (e->doubt) no_move_due(b, e);
}

static void ask_failed(struct bindings *b, struct bindings_entry *e, enum bindings_failure failure) {
    enter(e, e->state == RECHECKING ? LOOSE : UNKNOWN);
    retry_later(b, e);
    if (failure == BINDINGS_REFUSED || failure == BINDINGS_IN_SERVICE) {
        e->retry_at_ms = b->now_ms + RETRY_MS_MAX;
        close_waiting(b, e, CLOSE_LOCKD_REFUSED);
    }
}

static void drop_failed(struct bindings *b, struct bindings_entry *e, enum bindings_failure failure) {
    if (failure == BINDINGS_UNCERTAIN) {
        enter(e, DOUBT);
    } else if (failure == BINDINGS_NOT_RUN) {
        enter(e, e->op_era == b->era ? HELD : UNKNOWN);
        if (e->in_idle) { /* as if it became idle now */
            TAILQ_REMOVE(&b->idle, e, of_idle);
            e->in_idle = false;
        }
    } else {
        enter(e, UNKNOWN);
    }
}

void bindings_failed(struct bindings *b, uint64_t now_ms, uint64_t op, enum bindings_failure failure) {
    begin(b, now_ms);
    struct bindings_entry *e = find_op(b, op);
    if (e != NULL) {
        switch (end_op(b, e)) {
        case OP_BIND:
        case OP_GET: ask_failed(b, e, failure); break;
        case OP_MOVE: move_failed(b, e, failure); break;
        case OP_DROP: drop_failed(b, e, failure); break;
        case OP_TOUCH: e->touched_ms = now_ms; break; /* the hold keeps it as well; next time */
        case OP_NONE: must(false);
        }
        evaluate(b, e);
    }
    finish(b);
}

void bindings_suspected(struct bindings *b, uint64_t now_ms, int64_t lease, uint32_t pool, uint32_t member,
                        uint64_t suspecting, uint64_t joined) {
    must(pool < b->config.pool_count && member < b->pools[pool].config.member_count);
    begin(b, now_ms);
    struct member *m = &b->pools[pool].states[member];
    if (lease == b->lease && m->suspect_out) {
        m->suspect_out = false;
        if (!b->pools[pool].members[member].up) {
            m->suspicion = joined > 0 && suspecting > joined / 2 ? ENOUGH : NOT_ENOUGH;
            /* Who waits may try the backend itself meanwhile; the pump in finish() sends the moves. */
            struct bindings_entry *e, *next;
            for (e = TAILQ_FIRST(&m->moves); m->suspicion == NOT_ENOUGH && e != NULL; e = next) {
                next = TAILQ_NEXT(e, of_queue);
                if (e->waiting_count > 0) evaluate(b, e);
            }
        }
    }
    finish(b);
}

/* ---- inputs: backends and time ---- */
void bindings_backend_up(struct bindings *b, uint64_t now_ms, uint32_t pool, uint32_t member) {
    must(pool < b->config.pool_count && member < b->pools[pool].config.member_count);
    begin(b, now_ms);
    struct pool *p = &b->pools[pool];
    if (!p->members[member].up) {
        p->members[member].up = true;
        b->down_count--;
        p->states[member].suspicion = UNASKED;
        struct bindings_entry *e;
        while ((e = TAILQ_FIRST(&p->states[member].moves)) != NULL) {
            no_move_due(b, e);
            retry_now(e);
            evaluate(b, e);
        }
    }
    finish(b);
}

void bindings_backend_down(struct bindings *b, uint64_t now_ms, uint32_t pool, uint32_t member) {
    must(pool < b->config.pool_count && member < b->pools[pool].config.member_count);
    begin(b, now_ms);
    struct pool *p = &b->pools[pool];
    if (p->members[member].up) {
        p->members[member].up = false;
        b->down_count++;
        p->states[member].suspicion = UNASKED;
        p->states[member].down_since_ms = p->states[member].suspect_at_ms = now_ms;
        struct bindings_entry *e, *next;
        HASH_ITER(by_key, b->by_key, e, next) {
            if (e->pool != pool || !e->known || e->backend != member) continue;
            if (e->state != HELD && e->state != LOOSE && e->state != RECHECKING) continue;
            cut(b, e, CLOSE_BACKEND_DOWN);
            for (struct bindings_conn *c = TAILQ_FIRST(&e->conns); c != NULL; c = TAILQ_NEXT(c, of_entry))
                c->direct_tried = false;
            retry_now(e);
            if (e->state == HELD) e->move_due = true;
            evaluate(b, e);
        }
    }
    bindings_tick(b, now_ms); /* the suspicion is told at once */
}

static void suspect_due(struct bindings *b) {
    if (b->lease == 0 || b->down_count == 0) return;
    for (uint32_t p = 0; p < b->config.pool_count; p++)
        for (uint32_t i = 0; i < b->pools[p].config.member_count; i++) {
            struct member *m = &b->pools[p].states[i];
            if (b->pools[p].members[i].up || m->suspect_out || b->now_ms < m->suspect_at_ms) continue;
            uint64_t every = (b->now_ms - m->down_since_ms) / 4;
            if (every < SUSPECT_MS_MIN) every = SUSPECT_MS_MIN;
            if (every > SUSPECT_MS_MAX || m->suspicion == ENOUGH) every = SUSPECT_MS_MAX;
            m->suspect_at_ms = b->now_ms + every;
            m->suspect_out = true;
            struct bindings_output *out = put(b, BINDINGS_ASK_SUSPECT);
            out->pool = (uint16_t)p;
            out->member = (uint16_t)i;
        }
}

static enum close_reason late_reason(const struct bindings *b, const struct bindings_entry *e) {
    if (e->state != HELD) return CLOSE_ASK_TIMEOUT;
    if (!b->covered) return CLOSE_NO_COVER;
    return is_up(b, e) ? CLOSE_CONNECT_FAILED : CLOSE_BACKEND_DOWN;
}

static void waiting_due(struct bindings *b) {
    for (uint32_t p = 0; p < b->config.pool_count; p++) {
        struct bindings_conn *c;
        while ((c = TAILQ_FIRST(&b->pools[p].waiting)) != NULL && c->deadline_ms <= b->now_ms) {
            struct bindings_entry *e = c->entry;
            close_conn(b, c, late_reason(b, e));
            settle(b, e);
        }
    }
}

static void timer_due(struct bindings *b, struct bindings_entry *e) {
    heap_remove(b, e);
    if (e->in_idle && e->op == 0 && e->state != MOVING && b->now_ms >= e->idle_since_ms + b->config.idle_drop_ms) {
        retire(b, e);
        return;
    }
    const bool touches = e->state == HELD && e->conn_count > 0 && e->op == 0 && b->config.touch_ms > 0;
    if (touches && b->now_ms >= e->touched_ms + b->config.touch_ms) {
        e->touched_ms = b->now_ms;
        if (b->covered && b->asks_out < b->config.asks_max) {
            start_op(b, e, OP_TOUCH);
            put_about(b, BINDINGS_ASK_TOUCH, e);
        }
    }
    evaluate(b, e);
}

void bindings_tick(struct bindings *b, uint64_t now_ms) {
    begin(b, now_ms);
    if (b->lease != 0 && !b->next_out && now_ms >= b->next_at_ms) ask_next(b);
    suspect_due(b);
    waiting_due(b);
    while (b->heap_count > 0 && b->heap[0]->wake_ms <= now_ms) timer_due(b, b->heap[0]);
    finish(b);
}

uint64_t bindings_wake_at_ms(const struct bindings *b) {
    uint64_t wake = b->heap_count > 0 ? b->heap[0]->wake_ms : NEVER;
    if (b->lease != 0 && !b->next_out) wake = earlier(wake, b->next_at_ms);
    if (b->covered)
        wake = earlier(wake, b->cut_at_ms);
    else if (!b->loose)
        wake = earlier(wake, b->loose_at_ms);
    for (uint32_t p = 0; p < b->config.pool_count; p++) {
        const struct bindings_conn *c = TAILQ_FIRST(&b->pools[p].waiting);
        if (c != NULL) wake = earlier(wake, c->deadline_ms);
        if (b->lease == 0 || b->down_count == 0) continue;
        for (uint32_t m = 0; m < b->pools[p].config.member_count; m++) {
            const struct member *state = &b->pools[p].states[m];
            if (!b->pools[p].members[m].up && !state->suspect_out) wake = earlier(wake, state->suspect_at_ms);
        }
    }
    return wake;
}

/* ---- to look at ---- */
const struct bindings_counters *bindings_counters(const struct bindings *b) {
    return &b->counters;
}

uint32_t bindings_session_count(const struct bindings *b) {
    return HASH_CNT(by_key, b->by_key);
}

bool bindings_is_covered(const struct bindings *b, uint64_t now_ms) {
    return b->covered && now_ms < b->cover_until_ms;
}
