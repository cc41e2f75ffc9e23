/* Two proxies' session tables against a made-up lockd in a made-up world: guards R1, that no two proxies ever serve one
 * session of class exclusive on two backends, and that everything is served again once the faults are over.
 *
 * The lockd here does as lockd/PROTOCOL.md says and no more than it must: a NEXT names only the moves that still
 * stall, the caller's own hold ends when its MOVE is taken, nothing tells a holder whose limit has passed.  The world
 * delays, loses and delivers late (copies of commands run long after their caller gave up), cuts proxies off, stops and
 * wakes them, kills backends, shows each proxy another health, runs their clocks fast and slow, and changes the leader.
 *
 * One seed is one run of 70 s in steps of 1 ms.  MODEL_SEED=n repeats one, MODEL_SEEDS=n runs more of them. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "proxy/core/bindings.h"

enum { PROXIES = 2, SESSIONS = 5, POOLS = 2, MEMBERS = 3, CONNS = 2 };
enum { TTL = 3000, DRIFT_PPM = 10000, CHAOS_MS = 45000, END_MS = 70000, MESSAGES = 4096, STALLED_MAX = 64 };
enum command { GRANT, REVOKE, KEEPALIVE, NEXT, BIND, GET, MOVE, DROP, TOUCH, SUSPECT };

static uint64_t seed, random_state, t; /* t: true time, ms */
static uint64_t chance(uint64_t below) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % below;
}
#define check(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, __VA_ARGS__);                                                                              \
            ck_abort_msg("at %llu ms: %s; repeat with MODEL_SEED=%llu", (unsigned long long)t, #condition,             \
                         (unsigned long long)seed);                                                                    \
        }                                                                                                              \
    } while (0)

/* ---- messages ---- */
struct call {
    enum command command;
    int proxy;
    int64_t lease;
    uint64_t op, epoch, serial;
    int pool, session, member; /* member: first, target or suspect */
    uint32_t shard_count;
    uint16_t shard[MEMBERS];
    uint64_t deadline; /* the caller gives up, true time */
};
struct answer {
    enum { BINDING, ABSENT, NUMBER, NAMES, SUSPICION, NO_LEASE, IN_SERVICE, ERROR } kind;
    uint64_t backend, epoch, revision, serial, number;
    uint32_t shard_count, name_count;
    uint16_t shard[MEMBERS];
    struct {
        int pool, session;
        uint64_t epoch;
    } names[POOLS * SESSIONS];
};
struct message {
    bool used, is_answer;
    uint64_t at;
    int call; /* index of the caller's record, -1 when it has given up */
    struct call what;
    struct answer answer;
};
static struct message wire[MESSAGES];
static int wire_count, call_count; /* nothing is used above them */
static struct {
    bool used;
    struct call what;
} calls[MESSAGES];

/* ---- lockd ---- */
enum { LEASES = 4096 };
static struct lease {
    bool alive, joined;
    int proxy;
    uint64_t deadline, cover;
    uint64_t suspects[POOLS][MEMBERS]; /* said so at, 0 = never */
    int next_held;                     /* message index, -1 */
    uint64_t next_arrival;
} leases[LEASES];
static int64_t lease_last;
static uint64_t revision;
static struct binding {
    bool exists, stalls;
    uint64_t epoch, asked;
    uint16_t backend, target, shard[MEMBERS];
    uint32_t shard_count;
    bool holds[LEASES];
    bool waits[LEASES];
    uint64_t limit[LEASES];
    int64_t mover;
    int waiting[STALLED_MAX], waiting_count; /* messages, the mover's first */
} bindings_of[POOLS][SESSIONS];

/* ---- proxies ---- */
struct slot {
    struct bindings_conn conn;
    int pool, session;
    uint16_t member;
    uint64_t connect_at; /* 0 = none under way */
};
static struct proxy {
    struct bindings *b;
    uint64_t base;
    int64_t rate_ppm;
    bool cut_off, up[POOLS][MEMBERS];
    uint64_t stopped_until, view_at[POOLS][MEMBERS];
    int64_t lease;
    uint64_t lease_deadline, keepalive_at, grant_at; /* local */
    struct slot slots[POOLS][SESSIONS][CONNS];
} proxies[PROXIES];
static bool alive[POOLS][MEMBERS];
static uint64_t served_count, moves_done;

static uint64_t local(const struct proxy *p) {
    return p->base + t + (uint64_t)((int64_t)t * p->rate_ppm / 1000000);
}
static const struct placement_member members[] = {
    {.name = {"a", 1}, .weight = 1}, {.name = {"b", 1}, .weight = 1}, {.name = {"c", 1}, .weight = 1}};
static const char *const session_names[SESSIONS] = {"r0", "r1", "r2", "r3", "r4"};

static int message_new(void) {
    for (int i = 0; i < MESSAGES; i++)
        if (!wire[i].used) {
            wire[i] = (struct message){.used = true};
            if (i >= wire_count) wire_count = i + 1;
            return i;
        }
    check(false, "too many messages\n");
    return -1;
}
static uint64_t transit(void) {
    return t + 1 + chance(4) + (chance(50) == 0 ? chance(300) : 0);
}

/* A command leaves its proxy.  Cut off: it is lost, refused at once, or a copy runs late. */
static void failed(struct proxy *p, const struct call *c, enum bindings_failure failure);
static void send(struct proxy *p, struct call c, uint64_t timeout_ms) {
    int record = 0;
    while (calls[record].used) record++;
    check(record < MESSAGES, "too many calls\n");
    c.proxy = (int)(p - proxies);
    c.deadline = t + timeout_ms;
    if (record >= call_count) call_count = record + 1;
    calls[record].used = true;
    calls[record].what = c;
    uint64_t at = transit();
    /* The copy that runs long after its caller gave up is what a DROP or a MOVE has to fear most. */
    if ((c.command == DROP || c.command == MOVE) && chance(4) == 0) at += chance(15000);
    if (p->cut_off) {
        const uint64_t fate = chance(4);
        if (fate == 0)
            at += chance(15000); /* sits in a buffer somewhere */
        else if (fate == 1) {    /* known not to have left: the client says so at once */
            calls[record].what.deadline = 0;
            return;
        } else
            return;
    }
    const int m = message_new();
    wire[m].at = at;
    wire[m].call = record;
    wire[m].what = c;
}

/* ---- lockd: what the commands do ---- */
static void answer(int m, const struct answer *a) {
    struct message *w = &wire[m];
    w->is_answer = true;
    w->answer = *a;
    w->at = transit();
    if (proxies[w->what.proxy].cut_off && chance(8) != 0) w->used = false;
}
static void answer_binding(int m, struct binding *x, int64_t lease) {
    struct answer a = {
        .kind = BINDING, .backend = x->backend, .epoch = x->epoch, .revision = revision, .shard_count = x->shard_count};
    memcpy(a.shard, x->shard, sizeof a.shard);
    x->holds[lease] = true;
    answer(m, &a);
}
static void answer_next(struct lease *l) {
    if (l->next_held < 0) return;
    struct answer a = {.kind = NAMES, .serial = wire[l->next_held].what.serial};
    for (int p = 0; p < POOLS; p++)
        for (int s = 0; s < SESSIONS; s++) {
            const struct binding *x = &bindings_of[p][s];
            if (!x->stalls || !x->waits[l - leases]) continue;
            a.names[a.name_count].pool = p;
            a.names[a.name_count].session = s;
            a.names[a.name_count++].epoch = x->epoch;
            if (x->asked > a.serial) a.serial = x->asked;
        }
    const uint64_t cover = l->next_arrival + TTL;
    if (cover > l->cover) l->cover = cover;
    answer(l->next_held, &a);
    l->next_held = -1;
}
static bool enough_suspect(int pool, int member) {
    int joined = 0, suspecting = 0;
    for (int64_t i = 1; i <= lease_last; i++) {
        if (!leases[i].alive || !leases[i].joined) continue;
        joined++;
        suspecting += leases[i].suspects[pool][member] > 0 && leases[i].suspects[pool][member] + 3000 > t;
    }
    return suspecting * 2 > joined;
}
static void run(int m);
static void settle_move(struct binding *x) {
    if (!x->stalls) return;
    for (int64_t i = 1; i <= lease_last; i++)
        if (x->waits[i] && (!leases[i].alive || t > x->limit[i])) {
            x->waits[i] = false;
            x->holds[i] = false;
        }
    for (int64_t i = 1; i <= lease_last; i++)
        if (x->waits[i]) return;
    x->stalls = false;
    x->backend = x->target;
    x->epoch = ++revision;
    moves_done++;
    int waiting[STALLED_MAX];
    const int count = x->waiting_count;
    memcpy(waiting, x->waiting, sizeof waiting);
    x->waiting_count = 0;
    for (int i = 0; i < count; i++) run(waiting[i]); /* the mover finds another epoch: it gets the binding */
}
static void start_stall(struct binding *x, int64_t mover, int target, int m) {
    x->stalls = true;
    x->asked = ++revision;
    x->target = (uint16_t)target;
    x->mover = mover;
    if (mover != 0) x->holds[mover] = false; /* ends when it is taken */
    x->waiting_count = 0;
    if (m >= 0) x->waiting[x->waiting_count++] = m;
    for (int64_t i = 1; i <= lease_last; i++) {
        x->waits[i] = x->holds[i];
        x->limit[i] = leases[i].cover;
        if (x->waits[i]) answer_next(&leases[i]);
    }
    settle_move(x);
}
static void run_next(int m, struct lease *l) {
    const struct call *c = &wire[m].what;
    answer_next(l); /* a held one is replaced */
    l->joined = true;
    for (int p = 0; p < POOLS; p++)
        for (int s = 0; s < SESSIONS; s++) {
            struct binding *x = &bindings_of[p][s];
            if (!x->stalls || !x->waits[c->lease] || x->asked > c->serial) continue;
            x->waits[c->lease] = false;
            x->holds[c->lease] = false;
            settle_move(x);
        }
    l->next_held = m;
    l->next_arrival = t;
    wire[m].at = UINT64_MAX;
    for (int p = 0; p < POOLS; p++)
        for (int s = 0; s < SESSIONS; s++)
            if (bindings_of[p][s].stalls && bindings_of[p][s].waits[c->lease] && l->next_held >= 0) answer_next(l);
}
static void run(int m) {
    const struct call c = wire[m].what;
    struct lease *l = c.lease > 0 ? &leases[c.lease] : NULL;
    if (c.command == GRANT) {
        check(lease_last + 1 < LEASES, "too many leases\n");
        leases[++lease_last] = (struct lease){.alive = true, .proxy = c.proxy, .deadline = t + TTL, .next_held = -1};
        answer(m, &(struct answer){.kind = NUMBER, .number = (uint64_t)lease_last});
        return;
    }
    if (!l->alive) {
        answer(m, &(struct answer){.kind = NO_LEASE});
        return;
    }
    struct binding *x = &bindings_of[c.pool][c.session];
    const bool of_session = c.command == BIND || c.command == GET || c.command == MOVE || c.command == TOUCH;
    if (of_session && x->stalls) { /* waits for the outcome */
        check(x->waiting_count < STALLED_MAX, "too many wait\n");
        x->waiting[x->waiting_count++] = m;
        wire[m].at = UINT64_MAX;
        return;
    }
    switch (c.command) {
    case KEEPALIVE:
        l->deadline = t + TTL;
        answer(m, &(struct answer){.kind = NUMBER, .number = TTL});
        break;
    case REVOKE:
        l->alive = false;
        answer(m, &(struct answer){.kind = NUMBER, .number = 1});
        break;
    case NEXT:
        l->deadline = t + TTL;
        run_next(m, l);
        break;
    case BIND:
    case GET:
        if (!x->exists && c.command == GET) {
            answer(m, &(struct answer){.kind = ABSENT});
            break;
        }
        if (!x->exists) {
            x->exists = true;
            x->backend = (uint16_t)c.member;
            x->shard_count = c.shard_count;
            memcpy(x->shard, c.shard, sizeof x->shard);
            x->epoch = ++revision;
        } else if (!x->holds[c.lease])
            revision++;
        answer_binding(m, x, c.lease);
        break;
    case MOVE:
        if (!x->exists)
            answer(m, &(struct answer){.kind = ERROR});
        else if (x->epoch != c.epoch) {
            revision++;
            answer_binding(m, x, c.lease);
        } else if (!enough_suspect(c.pool, x->backend))
            answer(m, &(struct answer){.kind = IN_SERVICE});
        else {
            wire[m].at = UINT64_MAX;
            start_stall(x, c.lease, c.member, m);
        }
        break;
    case DROP:
        if (x->holds[c.lease] && x->epoch == c.epoch) {
            x->holds[c.lease] = false;
            x->waits[c.lease] = false;
            revision++;
            settle_move(x);
        }
        answer(m, &(struct answer){.kind = NUMBER, .number = 1});
        break;
    case TOUCH: answer(m, &(struct answer){.kind = NUMBER, .number = x->exists ? x->epoch : 0}); break;
    case SUSPECT: {
        struct answer a = {.kind = SUSPICION, .number = 0};
        l->suspects[c.pool][c.member] = t;
        a.number = enough_suspect(c.pool, c.member) ? 2 : 1;
        answer(m, &a);
        break;
    }
    case GRANT: break;
    }
}
static void lockd_step(void) {
    for (int64_t i = 1; i <= lease_last; i++) {
        struct lease *l = &leases[i];
        if (l->alive && t > l->deadline) l->alive = false;
        if (l->next_held >= 0 && (!l->alive || t >= l->next_arrival + TTL / 3)) {
            if (l->alive)
                answer_next(l);
            else {
                answer(l->next_held, &(struct answer){.kind = NO_LEASE});
                l->next_held = -1;
            }
        }
    }
    for (int p = 0; p < POOLS; p++)
        for (int s = 0; s < SESSIONS; s++) settle_move(&bindings_of[p][s]);
    for (int m = 0; m < wire_count; m++)
        if (wire[m].used && !wire[m].is_answer && wire[m].at <= t) run(m);
}
static void change_leader(void) {
    for (int64_t i = 1; i <= lease_last; i++) {
        if (leases[i].next_held >= 0) wire[leases[i].next_held].used = false;
        leases[i].next_held = -1;
        if (leases[i].alive) leases[i].deadline = leases[i].cover = t + TTL;
        for (int p = 0; p < POOLS; p++)
            for (int s = 0; s < SESSIONS; s++) bindings_of[p][s].limit[i] = t + TTL;
    }
}

/* ---- proxies: outputs out, answers in ---- */
static struct slot *slot_of(struct bindings_conn *c) {
    return c->owner;
}
static void lose_lease(struct proxy *p) {
    if (p->lease == 0) return;
    send(p, (struct call){.command = REVOKE, .lease = p->lease}, 1000);
    p->lease = 0;
    p->grant_at = local(p);
    bindings_lease_lost(p->b, local(p));
}
static int session_of(struct slice name) {
    return name.data[1] - '0';
}
static void drain(struct proxy *p) {
    struct bindings_output out;
    static const enum command commands[] = {
        [BINDINGS_ASK_NEXT] = NEXT,      [BINDINGS_ASK_BIND] = BIND, [BINDINGS_ASK_GET] = GET,
        [BINDINGS_ASK_MOVE] = MOVE,      [BINDINGS_ASK_DROP] = DROP, [BINDINGS_ASK_TOUCH] = TOUCH,
        [BINDINGS_ASK_SUSPECT] = SUSPECT};
    while (bindings_take(p->b, &out)) {
        switch (out.kind) {
        case BINDINGS_CLOSE:
        case BINDINGS_RETRACT: slot_of(out.conn)->connect_at = 0; break;
        case BINDINGS_CONNECT:
            slot_of(out.conn)->connect_at = t + 1 + chance(5);
            slot_of(out.conn)->member = out.member;
            break;
        case BINDINGS_REPLACE_LEASE: lose_lease(p); break;
        case BINDINGS_SAY_BOUND:
        case BINDINGS_SAY_MOVED:
        case BINDINGS_SAY_COVERED:
        case BINDINGS_SAY_UNCOVERED: break;
        default: {
            struct call c = {.command = commands[out.kind],
                             .lease = out.lease,
                             .op = out.op,
                             .epoch = out.epoch,
                             .serial = out.serial,
                             .pool = out.pool,
                             .member = out.member};
            if (out.session.bytes > 0) c.session = session_of(out.session);
            c.shard_count = out.shard_count;
            if (out.shard_count > 0) memcpy(c.shard, out.shard, out.shard_count * sizeof c.shard[0]);
            send(p, c, c.command == MOVE ? 6000 : 2000);
        }
        }
    }
}
static void failed(struct proxy *p, const struct call *c, enum bindings_failure failure) {
    switch (c->command) {
    case GRANT: p->grant_at = local(p) + 200; break;
    case NEXT: bindings_next_failed(p->b, local(p), c->lease); break;
    case SUSPECT: bindings_suspected(p->b, local(p), c->lease, (uint32_t)c->pool, (uint32_t)c->member, 0, 0); break;
    case KEEPALIVE:
    case REVOKE: break;
    default: bindings_failed(p->b, local(p), c->op, failure); break;
    }
}
static void answered(struct proxy *p, const struct call *c, const struct answer *a, uint64_t sent_local) {
    if (a->kind == NO_LEASE) {
        if (c->lease == p->lease && c->command != REVOKE) lose_lease(p);
        return;
    }
    switch (c->command) {
    case GRANT:
        p->lease = (int64_t)a->number;
        p->lease_deadline = sent_local + TTL - TTL * DRIFT_PPM / 1000000;
        p->keepalive_at = local(p) + TTL / 3;
        bindings_lease_granted(p->b, local(p), p->lease);
        break;
    case KEEPALIVE:
        if (c->lease == p->lease) p->lease_deadline = sent_local + TTL - TTL * DRIFT_PPM / 1000000;
        break;
    case REVOKE: break;
    case NEXT: {
        struct bindings_revocation names[POOLS * SESSIONS];
        for (uint32_t i = 0; i < a->name_count; i++)
            names[i] = (struct bindings_revocation){.pool = (uint32_t)a->names[i].pool,
                                                    .session = slice_str(session_names[a->names[i].session]),
                                                    .epoch = a->names[i].epoch};
        bindings_next(p->b, local(p), c->lease, TTL, a->serial, names, a->name_count);
        break;
    }
    case SUSPECT:
        bindings_suspected(p->b, local(p), c->lease, (uint32_t)c->pool, (uint32_t)c->member, a->number, 2);
        break;
    case DROP: bindings_dropped(p->b, local(p), c->op); break;
    case TOUCH: bindings_touched(p->b, local(p), c->op, a->number); break;
    case BIND:
    case GET:
    case MOVE:
        if (a->kind == BINDING) {
            struct slice shard[MEMBERS];
            for (uint32_t i = 0; i < a->shard_count; i++) shard[i] = members[a->shard[i]].name;
            bindings_binding(p->b, local(p), c->op,
                             &(struct bindings_reply){.backend = members[a->backend].name,
                                                      .epoch = a->epoch,
                                                      .revision = a->revision,
                                                      .shard = shard,
                                                      .shard_count = a->shard_count});
        } else if (a->kind == ABSENT)
            bindings_absent(p->b, local(p), c->op);
        else
            bindings_failed(p->b, local(p), c->op, a->kind == IN_SERVICE ? BINDINGS_IN_SERVICE : BINDINGS_REFUSED);
        break;
    }
}
static void deliver(struct proxy *p) {
    const int index = (int)(p - proxies);
    for (int m = 0; m < wire_count; m++) {
        if (!wire[m].used || !wire[m].is_answer || wire[m].at > t || wire[m].what.proxy != index) continue;
        wire[m].used = false;
        /* The caller's record is reused only after it gave up; the deadline tells the calls apart. */
        const int record = wire[m].call;
        if (!calls[record].used || calls[record].what.proxy != index ||
            calls[record].what.deadline != wire[m].what.deadline || calls[record].what.op != wire[m].what.op ||
            calls[record].what.command != wire[m].what.command)
            continue;
        calls[record].used = false;
        const uint64_t ago = t - (wire[m].what.deadline - (wire[m].what.command == MOVE ? 6000 : 2000));
        answered(p, &wire[m].what, &wire[m].answer, local(p) - ago - ago * DRIFT_PPM / 1000000 - 1);
        drain(p);
    }
    for (int i = 0; i < call_count; i++) {
        if (!calls[i].used || calls[i].what.proxy != index || calls[i].what.deadline > t) continue;
        calls[i].used = false;
        failed(p, &calls[i].what, calls[i].what.deadline == 0 ? BINDINGS_NOT_RUN : BINDINGS_UNCERTAIN);
        drain(p);
    }
}
static void clients(struct proxy *p, bool quiet) {
    for (int pool = 0; pool < POOLS; pool++)
        for (int s = 0; s < SESSIONS; s++)
            for (int i = 0; i < CONNS; i++) {
                struct slot *slot = &p->slots[pool][s][i];
                if (slot->connect_at > 0 && slot->connect_at <= t) {
                    slot->connect_at = 0;
                    if (alive[pool][slot->member])
                        bindings_connected(p->b, local(p), &slot->conn);
                    else
                        bindings_connect_failed(p->b, local(p), &slot->conn);
                } else if (slot->conn.state == BINDINGS_CONN_NONE && chance(quiet ? 20 : 1500) == 0) {
                    slot->connect_at = 0;
                    check(bindings_want(p->b, local(p), &slot->conn, (uint32_t)pool, slice_str(session_names[s])) ==
                              BINDINGS_TAKEN,
                          "the table has room\n");
                } else if (slot->conn.state != BINDINGS_CONN_NONE && !quiet && chance(2500) == 0) {
                    bindings_gone(p->b, local(p), &slot->conn);
                    slot->connect_at = 0;
                } else
                    continue;
                drain(p);
            }
}
static void views(struct proxy *p, bool quiet) {
    for (int pool = 0; pool < POOLS; pool++)
        for (int m = 0; m < MEMBERS; m++) {
            if (!quiet && chance(20000) == 0) p->view_at[pool][m] = t + 300 + chance(3000); /* a wrong view */
            const bool lies = !quiet && p->view_at[pool][m] > t && p->view_at[pool][m] < t + 3300;
            const bool sees = lies ? !alive[pool][m] : alive[pool][m];
            if (sees == p->up[pool][m] || chance(100) != 0) continue;
            p->up[pool][m] = sees;
            if (sees)
                bindings_backend_up(p->b, local(p), (uint32_t)pool, (uint32_t)m);
            else
                bindings_backend_down(p->b, local(p), (uint32_t)pool, (uint32_t)m);
            drain(p);
        }
}
static void proxy_step(struct proxy *p, bool quiet) {
    if (p->stopped_until > t) return;
    const bool messages_first = chance(2) == 0; /* what comes first after a wake is not ours to say */
    if (messages_first) deliver(p);
    if (p->lease != 0 && local(p) >= p->lease_deadline) lose_lease(p);
    if (p->lease != 0 && local(p) >= p->keepalive_at) {
        p->keepalive_at = local(p) + TTL / 3;
        send(p, (struct call){.command = KEEPALIVE, .lease = p->lease}, 2000);
    }
    if (p->lease == 0 && local(p) >= p->grant_at) {
        p->grant_at = UINT64_MAX;
        send(p, (struct call){.command = GRANT}, 2000);
    }
    drain(p);
    clients(p, quiet);
    views(p, quiet);
    if (bindings_wake_at_ms(p->b) <= local(p)) bindings_tick(p->b, local(p));
    drain(p);
    check(bindings_wake_at_ms(p->b) > local(p), "a tick must move the clock on\n");
    if (!messages_first) deliver(p);
}

/* ---- what must be true ---- */
static void check_one_owner(void) {
    for (int s = 0; s < SESSIONS; s++) {
        uint32_t where = 0;
        for (int p = 0; p < PROXIES; p++) {
            for (int i = 0; i < CONNS; i++) {
                const struct slot *slot = &proxies[p].slots[0][s][i];
                if (slot->conn.state != BINDINGS_CONN_LIVE) continue;
                if (!bindings_may_write(proxies[p].b, local(&proxies[p]), &slot->conn)) continue;
                where |= 1u << slot->member;
                served_count++;
            }
        }
        check((where & (where - 1)) == 0, "session %d is served on two backends (set %x)\n", s, where);
    }
    for (int p = 0; p < PROXIES; p++) /* V5, sticky too */
        for (int pool = 0; pool < POOLS; pool++)
            for (int s = 0; s < SESSIONS; s++) {
                const struct slot *two = proxies[p].slots[pool][s];
                if (two[0].conn.state == BINDINGS_CONN_LIVE && two[1].conn.state == BINDINGS_CONN_LIVE)
                    check(two[0].member == two[1].member, "proxy %d serves session %d on two\n", p, s);
            }
}
static void check_all_served(void) {
    for (int pool = 0; pool < POOLS; pool++)
        for (int s = 0; s < SESSIONS; s++) {
            const struct slot *first = &proxies[0].slots[pool][s][0];
            for (int p = 0; p < PROXIES; p++)
                for (int i = 0; i < CONNS; i++) {
                    const struct slot *slot = &proxies[p].slots[pool][s][i];
                    check(slot->conn.state == BINDINGS_CONN_LIVE, "proxy %d pool %d session %d: state %d\n", p, pool, s,
                          (int)slot->conn.state);
                    check(slot->member == first->member, "pool %d session %d is on two backends\n", pool, s);
                    check(!slot->conn.unconfirmed || pool == 1, "exclusive is never unconfirmed\n");
                }
        }
}

static void faults(bool quiet) {
    if (quiet) {
        for (int p = 0; p < PROXIES; p++) proxies[p].cut_off = false;
        for (int pool = 0; pool < POOLS; pool++)
            for (int m = 0; m < MEMBERS; m++) alive[pool][m] = true;
        return;
    }
    for (int p = 0; p < PROXIES; p++) {
        if (chance(proxies[p].cut_off ? 3000 : 8000) == 0) proxies[p].cut_off = !proxies[p].cut_off;
        if (chance(10000) == 0) proxies[p].stopped_until = t + chance(chance(2) == 0 ? 500 : 8000);
    }
    for (int pool = 0; pool < POOLS; pool++)
        for (int m = 0; m < MEMBERS; m++)
            if (chance(alive[pool][m] ? 6000 : 1500) == 0) alive[pool][m] = !alive[pool][m];
    if (chance(15000) == 0) change_leader();
    struct binding *x = &bindings_of[chance(POOLS)][chance(SESSIONS)];
    if (chance(1500) == 0 && x->exists && !x->stalls) /* an operator with FORCE */
        start_stall(x, 0, x->shard[chance(x->shard_count)], -1);
}

static void one_run(uint64_t run_seed) {
    seed = run_seed;
    random_state = run_seed * 0x9e3779b97f4a7c15 + 1;
    memset(wire, 0, sizeof wire);
    memset(calls, 0, sizeof calls);
    memset(leases, 0, sizeof leases);
    memset(bindings_of, 0, sizeof bindings_of);
    memset(proxies, 0, sizeof proxies);
    memset(alive, 1, sizeof alive);
    lease_last = 0;
    wire_count = call_count = 0;
    revision = 100;
    t = 1000;
    const struct bindings_pool_config pools[POOLS] = {
        {.name = {"x", 1},
         .class = BINDINGS_EXCLUSIVE,
         .subset = 2,
         .load_bound_percent = 25,
         .ask_timeout_ms = 5000,
         .member_count = MEMBERS,
         .members = members},
        {.name = {"s", 1},
         .class = BINDINGS_STICKY,
         .subset = 2,
         .load_bound_percent = 25,
         .ask_timeout_ms = 5000,
         .member_count = MEMBERS,
         .members = members},
    };
    const struct bindings_config config = {.alloc = heap_alloc(),
                                           .pool_count = POOLS,
                                           .pools = pools,
                                           .clock_drift_ppm = DRIFT_PPM,
                                           .sessions_max = 100,
                                           .asks_max = 4,
                                           .moves_max = 2,
                                           .idle_drop_ms = 1500,
                                           .touch_ms = 4000,
                                           .loose_after_ms = 500,
                                           .loose_start_ms = 3000,
                                           .seed = seed};
    for (int p = 0; p < PROXIES; p++) {
        proxies[p].base = 100000 + chance(1000000);
        proxies[p].rate_ppm = (int64_t)chance(9001) - 4500;
        proxies[p].b = bindings_new(&config, local(&proxies[p]));
        memset(proxies[p].up, 1, sizeof proxies[p].up);
        for (int pool = 0; pool < POOLS; pool++)
            for (int s = 0; s < SESSIONS; s++)
                for (int i = 0; i < CONNS; i++) {
                    proxies[p].slots[pool][s][i].pool = pool;
                    proxies[p].slots[pool][s][i].session = s;
                    proxies[p].slots[pool][s][i].conn.owner = &proxies[p].slots[pool][s][i];
                }
    }
    for (; t < END_MS; t++) {
        const bool quiet = t > CHAOS_MS;
        faults(quiet);
        lockd_step();
        for (int p = 0; p < PROXIES; p++) proxy_step(&proxies[p], quiet);
        check_one_owner();
    }
    check_all_served();
    for (int p = 0; p < PROXIES; p++) bindings_free(proxies[p].b);
    check(heap_bytes_in_use() == 0, "memory is left\n");
}

START_TEST(no_session_has_two_owners) {
    const char *one = getenv("MODEL_SEED"), *many = getenv("MODEL_SEEDS");
    if (one != NULL) {
        one_run(strtoull(one, NULL, 10));
        return;
    }
    const uint64_t count = many != NULL ? strtoull(many, NULL, 10) : 100;
    for (uint64_t s = 1; s <= count; s++) one_run(s);
    /* A world in which nothing happens proves nothing. */
    ck_assert_uint_gt(served_count, count * 10000);
    ck_assert_uint_gt(moves_done, count * 10);
}
END_TEST

int main(void) {
    Suite *s = suite_create("bindings_model");
    TCase *tc = tcase_create("bindings_model");
    tcase_set_timeout(tc, 3600); /* the runner has the limit */
    tcase_add_test(tc, no_session_has_two_owners);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failures = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
