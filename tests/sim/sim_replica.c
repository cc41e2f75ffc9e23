/* sim_replica.c - whole nodes in the simulated world: the very object the daemon runs, with clients at every node.
 *
 * Plain clients write, swap and read a few registers and counters; sessions hold leases and fight for a few locks.  A
 * client whose node dies goes to another one.  What they were told is judged by history.h; the holders of locks are
 * judged here, by their own clocks, while it happens. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/must.h"
#include "lockd/core/replica.h"
#include "tests/sim/checkers.h"
#include "tests/sim/history.h"
#include "tests/sim/object.h"

enum {
    PIPELINE_MAX = 4,
    PLAIN = 8,
    SESSIONS = 4,
    CLIENTS = PLAIN + 2 * SESSIONS + SIM_NODES_MAX,
    ENTRIES_MAX = 1 << 12
};
enum { FIRST_MAIN = PLAIN, FIRST_KEEPER = PLAIN + SESSIONS, FIRST_SETTLER = PLAIN + 2 * SESSIONS };

enum purpose {
    PURPOSE_NONE,
    PURPOSE_OP,
    PURPOSE_GRANT,
    PURPOSE_KEEP,
    PURPOSE_ACQUIRE,
    PURPOSE_RELEASE,
    PURPOSE_CHECK,
    PURPOSE_SETTLE
};
struct client {
    uint64_t id; /* of the present connection */
    uint16_t node;
    enum purpose purpose; /* NONE: idle */
    uint64_t asked_us, wait_ms;
    uint32_t ops[PIPELINE_MAX], op_count; /* PURPOSE_OP: commands on their way, oldest first */
    uint32_t last_op;                     /* 1 + the newest on this connection; 0 none */
    uint32_t session;                     /* PURPOSE_KEEP */
    struct {
        uint64_t version, value;
    } seen[HISTORY_KEYS];
    char reply[256];
    size_t reply_bytes;
};
struct session {
    int64_t rate_ppm;                    /* its own clock */
    uint64_t lease, ttl_ms, deadline_us; /* by that clock */
    bool holds;
    uint16_t lock;
    uint64_t token, floor_asked; /* highest token told to anybody when it asked */
    uint64_t asked_lease;
};
struct process {
    struct world *w;
    uint16_t node;
    uint64_t boot_id;
    struct replica *replica;
    struct buf frame;
};
struct state {
    struct process processes[SIM_NODES_MAX];
    struct client clients[CLIENTS];
    struct session sessions[SESSIONS];
    struct history *history;
    uint64_t next_client, next_value;
    uint64_t token_max[HISTORY_LOCKS];
    struct {
        uint64_t token, lease;
    } grants[4096];
    uint32_t grant_count;
    uint64_t *hash_of; /* by slot: the state's hash there */
    size_t hash_capacity;
    uint32_t inflight_max, forward_timeout_ms;
    bool settle_done[SIM_NODES_MAX];
    bool quiet; /* nobody asks anything new */
};
static struct frame_scratch scratch;

static struct state *state_of(const struct world *w) {
    return w->user;
}
static unsigned long long u(uint64_t x) {
    return x;
}

/* ------------------------------------------------------------------ life */

static void begin(struct world *w) {
    struct state *s = calloc(1, sizeof *s);
    must(s != NULL);
    static const uint32_t inflights[] = {1, 2, 4, 16}, timeouts[] = {500, 2000, 10000};
    s->inflight_max = inflights[world_below(w, 4)];
    s->forward_timeout_ms = timeouts[world_below(w, 3)];
    s->history = history_new();
    for (uint32_t i = 0; i < CLIENTS; i++) {
        s->clients[i].id = ++s->next_client;
        s->clients[i].node = (uint16_t)(i < FIRST_SETTLER ? world_below(w, w->node_count) : i - FIRST_SETTLER);
    }
    for (uint32_t i = 0; i < SESSIONS; i++)
        s->sessions[i].rate_ppm = (int64_t)world_between(w, 0, SIM_DRIFT_PPM) - SIM_DRIFT_PPM / 2;
    w->user = s;
}
static void release(struct world *w) {
    struct state *s = state_of(w);
    history_free(s->history);
    free(s->hash_of);
    free(s);
}

static void sink_save(void *context, uint64_t batch, const struct paxos_output *out,
                      const struct identity_record *record) {
    const struct process *pr = context;
    if (out != NULL) check_promises(pr->w, pr->node, out);
    world_save(pr->w, pr->node, batch, out, record);
}
static void sink_send(void *context, uint16_t peer, struct slice frame) {
    const struct process *pr = context;
    struct packet *p = packet_new(pr->w, pr->node, frame.bytes);
    p->boot = pr->boot_id;
    memcpy(p->data, frame.data, frame.bytes);
    world_send(pr->w, pr->node, peer, p);
}
static void sink_fetch(void *context, uint16_t peer, paxos_slot from_slot, paxos_slot to_slot) {
    struct process *pr = context;
    struct paxos_entry entries[64];
    uint32_t count = 0;
    const uint32_t most = (uint32_t)world_between(pr->w, 1, 64);
    for (paxos_slot slot = from_slot; slot <= to_slot && count < most; slot++) {
        const struct disk_entry *e = disk_at(&pr->w->nodes[pr->node].disk, slot);
        check_fetched(pr->w, pr->node, slot, e);
        if (e == NULL) break;
        entries[count++] =
            (struct paxos_entry){.slot = slot, .ballot = e->ballot, .value = slice_of(e->data, e->bytes)};
    }
    if (count == 0) return;
    buf_clear(&pr->frame);
    replica_chosen_frame(pr->replica, peer, entries, count, &pr->frame);
    sink_send(context, peer, buf_slice(&pr->frame));
}
static void sink_note(void *context, char level, const char *text) {
    const struct process *pr = context;
    world_trace(pr->w, "n%u %c %s", pr->node, level, text);
}
static void sink_hang_up(void *context, uint64_t client) {
    const struct process *pr = context;
    world_fail(pr->w, "n%u closes client %llu", pr->node, u(client));
}
static void sink_reply(void *context, uint64_t client, struct slice bytes, bool leased);

static void start(struct world *w, uint16_t node) {
    static struct paxos_entry entries[ENTRIES_MAX];
    struct state *s = state_of(w);
    struct process *pr = &s->processes[node];
    const struct disk *d = &w->nodes[node].disk;
    *pr = (struct process){.w = w, .node = node, .boot_id = world_random(w) | 1};
    pr->frame.alloc = &w->nodes[node].alloc;
    struct replica_config config = {.alloc = &w->nodes[node].alloc,
                                    .node = node,
                                    .node_count = w->node_count,
                                    .store_id = d->store_id,
                                    .boot_id = pr->boot_id,
                                    .fresh_cluster_id = world_random(w) | 1,
                                    .seed = world_random(w),
                                    .start_ms = world_local_ms(w, node),
                                    .heartbeat_ms = 50,
                                    .lease_ms = 300,
                                    .election_spread_ms = 100,
                                    .drift_ppm = SIM_DRIFT_PPM,
                                    .forward_timeout_ms = s->forward_timeout_ms,
                                    .reattach_ms = 500,
                                    .inflight_max = s->inflight_max,
                                    .batch_bytes_max = 128 * 1024,
                                    .queue_bytes_max = 1 << 20,
                                    .client_pending_max = 16,
                                    .request_bytes_max = 64 * 1024,
                                    .version = "sim"};
    ks_settings_default(&config.settings);
    struct replica_saved saved = {.record = d->record};
    disk_read(d, &saved.paxos, entries, ENTRIES_MAX);
    const struct replica_sink sink = {.context = pr,
                                      .save = sink_save,
                                      .send = sink_send,
                                      .reply = sink_reply,
                                      .hang_up = sink_hang_up,
                                      .fetch = sink_fetch,
                                      .note = sink_note};
    pr->replica = replica_new(&config, &saved, &sink);
    for (paxos_slot slot = 1; slot <= d->chosen; slot++) {
        const struct disk_entry *e = disk_at(d, slot);
        if (e == NULL) {
            world_fail(w, "D5: n%u starts without slot %llu of %llu chosen", node, u(slot), u(d->chosen));
            return;
        }
        replica_replay(pr->replica, slot, slice_of(e->data, e->bytes));
    }
}

/* A new connection, to a node that is up if there is one; an answer to the old one never comes. */
static void reconnect(struct world *w, uint32_t index) {
    struct state *s = state_of(w);
    struct client *c = &s->clients[index];
    c->id = ++s->next_client;
    c->purpose = PURPOSE_NONE;
    c->reply_bytes = c->op_count = c->last_op = 0;
    if (index >= FIRST_SETTLER) return;
    const uint16_t first = (uint16_t)world_below(w, w->node_count);
    for (uint16_t i = 0; i < w->node_count; i++) {
        c->node = (uint16_t)((first + i) % w->node_count);
        if (w->nodes[c->node].up && !w->nodes[c->node].wiped) return;
    }
}
static void stop(struct world *w, uint16_t node) {
    struct state *s = state_of(w);
    struct process *pr = &s->processes[node];
    replica_free(pr->replica);
    buf_release(&pr->frame);
    pr->replica = NULL;
    for (uint32_t i = 0; i < CLIENTS; i++) {
        if (s->clients[i].node == node) reconnect(w, i);
    }
}

/* ------------------------------------------------------------------ what clients say */

static void command(struct world *w, struct client *c, enum purpose purpose, const char *line) {
    char text[256];
    struct slice argv[16];
    uint32_t argc = 0;
    snprintf(text, sizeof text, "%s", line);
    for (char *at = text; *at != '\0';) {
        char *end = at + strcspn(at, " ");
        argv[argc++] = slice_of(at, (size_t)(end - at));
        at = *end == '\0' ? end : end + 1;
    }
    c->purpose = purpose;
    c->asked_us = w->now_us;
    c->wait_ms = 0;
    world_trace(w, "client %llu at n%u: %s", u(c->id), c->node, line);
    replica_command(state_of(w)->processes[c->node].replica, world_local_ms(w, c->node), w->now_us, c->id, argc, argv);
}

static void ask_op(struct world *w, struct client *c, struct op op, const char *line) {
    op.asked_us = w->now_us;
    op.after = c->last_op;
    const uint32_t number = history_ask(state_of(w)->history, op);
    c->ops[c->op_count++] = number;
    c->last_op = number + 1;
    command(w, c, PURPOSE_OP, line);
}
static void plain_acts(struct world *w, struct client *c) {
    struct state *s = state_of(w);
    char line[128];
    struct op op = {.key = (uint16_t)world_below(w, HISTORY_KEYS)};
    switch (world_below(w, 10)) {
    case 0:
    case 1:
        op.kind = OP_SET;
        op.value = ++s->next_value;
        snprintf(line, sizeof line, "SET r%u %llu", op.key, u(op.value));
        break;
    case 2:
    case 3:
        op.kind = OP_CAS;
        op.value = ++s->next_value;
        op.expected = c->seen[op.key].version;
        snprintf(line, sizeof line, "CAS r%u %llu %llu", op.key, u(op.expected), u(op.value));
        break;
    case 4:
    case 5:
    case 6:
        op.kind = OP_GETV;
        snprintf(line, sizeof line, "GETV r%u", op.key);
        break;
    case 7:
    case 8:
        op.kind = OP_INCR;
        snprintf(line, sizeof line, "INCR c%u", op.key);
        break;
    default:
        op.kind = OP_COUNT;
        snprintf(line, sizeof line, "GET c%u", op.key);
        break;
    }
    ask_op(w, c, op, line);
}

/* ---- sessions ---- */

static uint64_t session_us(const struct world *w, const struct session *se) {
    return w->now_us + (uint64_t)((int64_t)w->now_us * se->rate_ppm / 1000000) + 1000000;
}
static bool alive(const struct world *w, const struct session *se) {
    return se->lease != 0 && session_us(w, se) < se->deadline_us;
}
static bool believes(const struct world *w, const struct session *se) {
    return se->holds && alive(w, se);
}
/* T4: a lease counts from before it was asked for, less the rate bound. */
static void lease_lasts(struct session *se, uint64_t asked_us, uint64_t ms) {
    const uint64_t until = asked_us + ms * 1000 - ms * SIM_DRIFT_PPM / 1000;
    if (until > se->deadline_us) se->deadline_us = until;
}
static void lease_gone(struct world *w, struct session *se, uint64_t lease, const char *by) {
    if (lease != se->lease || lease == 0) return;
    if (alive(w, se))
        world_fail(w, "L: lease %llu is gone, says %s, and its holder's clock gives it another %llu us", u(lease), by,
                   u(se->deadline_us - session_us(w, se)));
    *se = (struct session){.rate_ppm = se->rate_ppm};
}
static void main_acts(struct world *w, struct client *c, struct session *se) {
    struct state *s = state_of(w);
    char line[128];
    if (se->lease == 0) {
        se->ttl_ms = world_between(w, 1000, 2500);
        se->floor_asked = session_us(w, se);
        snprintf(line, sizeof line, "LEASE.GRANT %llu", u(se->ttl_ms));
        command(w, c, PURPOSE_GRANT, line);
        return;
    }
    if (se->holds && world_chance(w, 500000)) {
        se->asked_lease = se->lease;
        snprintf(line, sizeof line, "LOCK.CHECK l%u %llu", se->lock, u(se->token));
        command(w, c, PURPOSE_CHECK, line);
        return;
    }
    if (se->holds) {
        se->asked_lease = se->lease;
        snprintf(line, sizeof line, "LOCK.RELEASE l%u LEASE %llu TOKEN %llu", se->lock, u(se->lease), u(se->token));
        se->holds = false; /* it stops working before it lets go */
        command(w, c, PURPOSE_RELEASE, line);
        return;
    }
    if (world_chance(w, 30000)) { /* dies without a word */
        *se = (struct session){.rate_ppm = se->rate_ppm};
        return;
    }
    static const uint32_t waits[] = {0, 0, 200, 2000};
    se->lock = (uint16_t)world_below(w, HISTORY_LOCKS);
    se->floor_asked = s->token_max[se->lock];
    se->asked_lease = se->lease;
    const uint32_t wait = waits[world_below(w, 4)];
    snprintf(line, sizeof line, "LOCK.ACQUIRE l%u LEASE %llu WAIT %u", se->lock, u(se->lease), wait);
    command(w, c, PURPOSE_ACQUIRE, line);
    c->wait_ms = wait;
}
static void keeper_acts(struct world *w, struct client *c, const struct session *se) {
    char line[64];
    if (se->lease == 0 || world_chance(w, 300000)) return;
    snprintf(line, sizeof line, "LEASE.KEEPALIVE %llu", u(se->lease));
    c->session = (uint32_t)(se - state_of(w)->sessions);
    c->seen[0].value = se->lease;
    c->seen[0].version = session_us(w, se);
    command(w, c, PURPOSE_KEEP, line);
}

/* The node's turn reached this client's readiness to speak. */
static void client_acts(struct world *w, uint32_t index) {
    struct state *s = state_of(w);
    struct client *c = &s->clients[index];
    if (!w->nodes[c->node].up) return;
    const bool pipelines =
        c->purpose == PURPOSE_OP && c->op_count < PIPELINE_MAX && !s->quiet && world_chance(w, 300000);
    if (c->purpose != PURPOSE_NONE && !pipelines) {
        if (index < FIRST_SETTLER && !s->quiet && world_chance(w, 3000)) { /* loses patience */
            replica_client_gone(s->processes[c->node].replica, world_local_ms(w, c->node), c->id);
            reconnect(w, index);
        }
        return;
    }
    if (!replica_client_room(s->processes[c->node].replica, c->id)) return;
    if (index >= FIRST_SETTLER) {
        if (!s->settle_done[c->node]) command(w, c, PURPOSE_SETTLE, "SET settled yes");
    } else if (s->quiet) {
        return;
    } else if (index >= FIRST_KEEPER) {
        keeper_acts(w, c, &s->sessions[index - FIRST_KEEPER]);
    } else if (index >= FIRST_MAIN) {
        main_acts(w, c, &s->sessions[index - FIRST_MAIN]);
    } else {
        plain_acts(w, c);
    }
}

/* ------------------------------------------------------------------ what clients are told */

struct reply {
    char kind;      /* ':' '+' '-' '$' '*', 'n' nil */
    int64_t number; /* ':' value; '*' count */
    struct slice text;
    int64_t numbers[3]; /* of an array: integers and numeric strings; -1 for nil */
};
/* One RESP value at *at; false: not whole. */
static bool parse_one(const char **at, const char *end, struct reply *r) {
    const char *line = memchr(*at, '\n', (size_t)(end - *at));
    if (line == NULL || line == *at) return false;
    r->kind = **at;
    r->text = slice_of(*at + 1, (size_t)(line - *at) - 2);
    const int64_t number = r->kind == ':' || r->kind == '$' || r->kind == '*' ? strtoll(*at + 1, NULL, 10) : 0;
    *at = line + 1;
    r->number = number;
    if (r->kind == '$' || r->kind == '*') {
        if (number < 0) {
            r->kind = 'n';
            r->number = -1;
        } else if (r->kind == '$') {
            if (end - *at < number + 2) return false;
            r->text = slice_of(*at, (size_t)number);
            *at += number + 2;
            r->number = number > 0 && number < 20 ? strtoll(r->text.data, NULL, 10) : 0;
        } else {
            for (int64_t i = 0; i < number; i++) {
                struct reply inner = {0};
                if (!parse_one(at, end, &inner)) return false;
                if (i < 3) r->numbers[i] = inner.number;
            }
        }
    }
    return true;
}
static bool is_error(const struct reply *r, const char *word) {
    const size_t bytes = strlen(word);
    return r->kind == '-' && r->text.bytes >= bytes && memcmp(r->text.data, word, bytes) == 0;
}

static void told_op(struct world *w, struct client *c, const struct reply *r) {
    struct op *op = history_op(state_of(w)->history, c->ops[0]);
    memmove(c->ops, c->ops + 1, --c->op_count * sizeof c->ops[0]);
    if (c->op_count > 0) c->purpose = PURPOSE_OP;
    op->told_us = w->now_us;
    if (r->kind == '-') {
        static const char *const refusals[] = {"CLUSTERDOWN", "LOADING", "BUSY", "DISKFULL", "READONLY"};
        for (uint32_t i = 0; i < 5; i++) {
            if (is_error(r, refusals[i])) op->outcome = OUTCOME_REFUSED;
        }
        if (op->outcome == OUTCOME_OPEN && !is_error(r, "UNCERTAIN"))
            world_fail(w, "client %llu is told -%.*s", u(c->id), (int)r->text.bytes, r->text.data);
        return;
    }
    op->outcome = OUTCOME_DONE;
    const struct keyspace *ks = replica_keyspace(state_of(w)->processes[c->node].replica);
    if (op->kind == OP_SET || op->kind == OP_INCR) check_acknowledged(w, c->node, keyspace_slot(ks));
    bool good = true;
    switch (op->kind) {
    case OP_SET: good = r->kind == '+'; break;
    case OP_CAS:
        good = r->kind == '*' && r->number >= 2;
        op->swapped = r->numbers[0] == 1;
        op->version = (uint64_t)r->numbers[1];
        if (!op->swapped) op->value = op->version == 0 ? 0 : (uint64_t)r->numbers[2];
        break;
    case OP_GETV:
        good = r->kind == 'n' || (r->kind == '*' && r->number == 2);
        op->version = r->kind == 'n' ? 0 : (uint64_t)r->numbers[0];
        op->value = r->kind == 'n' ? 0 : (uint64_t)r->numbers[1];
        break;
    case OP_INCR:
        good = r->kind == ':';
        op->version = (uint64_t)r->number;
        break;
    case OP_COUNT:
        good = r->kind == 'n' || r->kind == '$';
        op->version = r->kind == 'n' ? 0 : (uint64_t)r->number;
        break;
    }
    if (!good) {
        world_fail(w, "client %llu got another command's answer: %c%.*s", u(c->id), r->kind, (int)r->text.bytes,
                   r->text.data);
    } else if (op->kind == OP_CAS || op->kind == OP_GETV) {
        c->seen[op->key].version = op->version;
        c->seen[op->key].value = op->value;
    }
}

static void told_grant(struct world *w, struct client *c, struct session *se, uint32_t index, const struct reply *r) {
    struct state *s = state_of(w);
    if (r->kind == '-' && is_error(r, "NOLEASE")) lease_gone(w, se, se->asked_lease, "LOCK.ACQUIRE");
    if (r->kind == '-' || r->kind == 'n') return;
    if (r->kind != ':') {
        world_fail(w, "client %llu got another command's answer to LOCK.ACQUIRE: %c", u(c->id), r->kind);
        return;
    }
    const uint64_t token = (uint64_t)r->number;
    bool known = false;
    for (uint32_t i = 0; i < s->grant_count; i++) {
        if (s->grants[i].token != token) continue;
        known = true;
        if (s->grants[i].lease != se->asked_lease) world_fail(w, "H7: token %llu was given to two leases", u(token));
    }
    if (!known) {
        if (token <= se->floor_asked)
            world_fail(w, "H7: l%u gives token %llu after %llu was told", se->lock, u(token), u(se->floor_asked));
        if (s->grant_count < 4096) {
            s->grants[s->grant_count].token = token;
            s->grants[s->grant_count++].lease = se->asked_lease;
        }
    }
    if (token > s->token_max[se->lock]) s->token_max[se->lock] = token;
    if (se->lease != se->asked_lease || !alive(w, se)) return; /* too late to work under it */
    for (uint32_t i = 0; i < SESSIONS; i++) {
        const struct session *other = &s->sessions[i];
        if (i != index && other->lock == se->lock && believes(w, other))
            world_fail(w, "H7: l%u has two holders, tokens %llu and %llu", se->lock, u(other->token), u(token));
    }
    se->holds = true;
    se->token = token;
}

static void told(struct world *w, uint32_t index, const struct reply *r) {
    struct state *s = state_of(w);
    struct client *c = &s->clients[index];
    const enum purpose purpose = c->purpose;
    world_trace(w, "client %llu is told %c%.*s %lld", u(c->id), r->kind, (int)(r->text.bytes < 60 ? r->text.bytes : 60),
                r->text.data, (long long)r->number);
    c->purpose = PURPOSE_NONE;
    struct session *se = index >= FIRST_MAIN && index < FIRST_KEEPER ? &s->sessions[index - FIRST_MAIN] : NULL;
    switch (purpose) {
    case PURPOSE_NONE: world_fail(w, "client %llu is told something and asked nothing", u(c->id)); break;
    case PURPOSE_OP: told_op(w, c, r); break;
    case PURPOSE_GRANT:
        if (r->kind != ':') break;
        se->lease = (uint64_t)r->number;
        se->deadline_us = 0;
        lease_lasts(se, se->floor_asked, se->ttl_ms);
        break;
    case PURPOSE_KEEP: {
        struct session *kept = &s->sessions[c->session];
        if (r->kind != '*' || r->number != 1) break;
        if (r->numbers[0] < 0)
            lease_gone(w, kept, c->seen[0].value, "LEASE.KEEPALIVE");
        else if (kept->lease == c->seen[0].value)
            lease_lasts(kept, c->seen[0].version, (uint64_t)r->numbers[0]);
        break;
    }
    case PURPOSE_ACQUIRE: told_grant(w, c, se, index - FIRST_MAIN, r); break;
    case PURPOSE_RELEASE:
        if (r->kind == ':' && r->number == 0 && se->lease == se->asked_lease && alive(w, se))
            world_fail(w, "H7: l%u was held by lease %llu, its release finds nothing", se->lock, u(se->lease));
        break;
    case PURPOSE_CHECK:
        if (is_error(r, "FENCED") && se->lease == se->asked_lease && believes(w, se))
            world_fail(w, "H7: l%u is held with token %llu, LOCK.CHECK denies it", se->lock, u(se->token));
        break;
    case PURPOSE_SETTLE: s->settle_done[c->node] = r->kind == '+'; break;
    }
}

static void sink_reply(void *context, uint64_t client, struct slice bytes, bool leased) {
    const struct process *pr = context;
    struct world *w = pr->w;
    struct state *s = state_of(w);
    if (leased && !replica_reads_hold(pr->replica, world_local_ms(w, pr->node)))
        world_fail(w, "n%u hands out a leased reply without its lease", pr->node);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        struct client *c = &s->clients[i];
        if (c->id != client) continue;
        if (c->node != pr->node || c->reply_bytes + bytes.bytes > sizeof c->reply) {
            world_fail(w, "client %llu is told by the wrong node or too much", u(client));
            return;
        }
        memcpy(c->reply + c->reply_bytes, bytes.data, bytes.bytes);
        c->reply_bytes += bytes.bytes;
        for (;;) {
            const char *at = c->reply;
            struct reply r = {0};
            if (c->reply_bytes == 0 || !parse_one(&at, c->reply + c->reply_bytes, &r)) return;
            told(w, i, &r);
            c->reply_bytes -= (size_t)(at - c->reply);
            memmove(c->reply, at, c->reply_bytes);
        }
    }
    world_fail(w, "n%u answers client %llu, which is not there", pr->node, u(client));
}

/* ------------------------------------------------------------------ one node's driver */

static bool decode(const struct packet *p, struct frame *ret_frame) {
    size_t used;
    return frame_decode(p->data, p->bytes, ret_frame, &scratch, &used) == FRAME_OK && used == p->bytes;
}
static void input(struct world *w, uint16_t node, const struct input *in) {
    struct process *pr = &state_of(w)->processes[node];
    const uint64_t now_ms = world_local_ms(w, node);
    struct frame frame;
    switch (in->kind) {
    case INPUT_TICK: break;
    case INPUT_PACKET:
        if (!decode(in->packet, &frame)) {
            world_fail(w, "n%u sent a frame that does not decode", in->packet->from);
            break;
        }
        if (frame.kind == FRAME_PAXOS) check_heard(w, node, &frame.paxos);
        replica_frame(pr->replica, now_ms, in->packet->from, in->packet->boot, &frame);
        break;
    case INPUT_DURABLE: replica_durable(pr->replica, now_ms, in->number); break;
    case INPUT_CLIENT:
        if (state_of(w)->clients[in->number].node == node) client_acts(w, (uint32_t)in->number);
        break;
    case INPUT_LINK:
        if (in->number & 1)
            replica_link_up(pr->replica, now_ms, (uint16_t)(in->number / 2));
        else
            replica_link_lost(pr->replica, now_ms, (uint16_t)(in->number / 2));
        break;
    }
}

/* The same log gives the same state. */
static void check_hash(struct world *w, uint16_t node) {
    struct state *s = state_of(w);
    const struct keyspace *ks = replica_keyspace(s->processes[node].replica);
    const paxos_slot slot = keyspace_slot(ks);
    while (slot >= s->hash_capacity) {
        const size_t old = s->hash_capacity;
        s->hash_capacity = old ? old * 2 : 4096;
        s->hash_of = realloc(s->hash_of, s->hash_capacity * sizeof *s->hash_of);
        must(s->hash_of != NULL);
        memset(s->hash_of + old, 0, (s->hash_capacity - old) * sizeof *s->hash_of);
    }
    const uint64_t hash = keyspace_hash(ks) | 1;
    if (s->hash_of[slot] != 0 && s->hash_of[slot] != hash)
        world_fail(w, "n%u has another state than somebody else at slot %llu", node, u(slot));
    s->hash_of[slot] = hash;
}
static uint64_t turn(struct world *w, uint16_t node) {
    struct process *pr = &state_of(w)->processes[node];
    const paxos_slot before = keyspace_slot(replica_keyspace(pr->replica));
    const uint64_t now_ms = world_local_ms(w, node), wake_ms = replica_turn(pr->replica, now_ms);
    if (replica_halt_reason(pr->replica) != NULL)
        world_fail(w, "n%u halts: %s", node, replica_halt_reason(pr->replica));
    const paxos_slot slot = keyspace_slot(replica_keyspace(pr->replica));
    if (wake_ms <= now_ms) world_fail(w, "n%u wants to be woken in the past", node);
    const struct paxos *p = replica_paxos(pr->replica);
    if (p != NULL && paxos_chosen(p) != slot)
        world_fail(w, "P4: n%u: paxos and keyspace count slots differently", node);
    check_applied_is(w, node, slot);
    if (slot != before) check_hash(w, node);
    return wake_ms;
}

/* ------------------------------------------------------------------ load, healing, the end */

static int leader(struct world *w) {
    int found = -1;
    for (uint16_t i = 0; i < w->node_count; i++) {
        const struct process *pr = &state_of(w)->processes[i];
        if (!w->nodes[i].up || !replica_reads_hold(pr->replica, world_local_ms(w, i))) continue;
        if (found >= 0) return -1;
        found = i;
    }
    return found;
}
static void load(struct world *w) {
    struct state *s = state_of(w);
    for (uint32_t i = 0; i < FIRST_SETTLER; i++) {
        if (!world_chance(w, 300000)) continue;
        const struct sim_node *n = &w->nodes[s->clients[i].node];
        if (n->up && n->wiped)
            replica_client_gone(s->processes[s->clients[i].node].replica, world_local_ms(w, s->clients[i].node),
                                s->clients[i].id);
        if (!n->up || n->wiped) reconnect(w, i);
        world_client_input(w, s->clients[i].node, i);
    }
}
static void heal(struct world *w) {
    memset(state_of(w)->settle_done, 0, sizeof state_of(w)->settle_done);
}
static bool settled(struct world *w) {
    const struct state *s = state_of(w);
    bool all = leader(w) >= 0;
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (w->nodes[i].wiped) continue;
        if (!s->settle_done[i]) world_client_input(w, i, FIRST_SETTLER + i);
        all = all && s->settle_done[i];
    }
    return all;
}

static bool somebody_waits(const struct world *w) {
    const struct state *s = state_of(w);
    for (uint32_t i = 0; i < CLIENTS; i++) {
        if (s->clients[i].purpose != PURPOSE_NONE) return true;
    }
    return false;
}
/* One command by one client, answered. */
static void ask_and_wait(struct world *w, uint32_t index, struct op op, const char *line) {
    struct state *s = state_of(w);
    struct client *c = &s->clients[index];
    ask_op(w, c, op, line);
    const uint32_t number = c->last_op - 1;
    world_client_input(w, c->node, index); /* a turn */
    for (int i = 0; i < 500 && c->purpose != PURPOSE_NONE && !w->failed; i++) world_run_until(w, w->now_us + 10000);
    if (!w->failed && history_op(s->history, number)->outcome != OUTCOME_DONE)
        world_fail(w, "n%u does not answer %s", c->node, line);
}
static void end(struct world *w) {
    struct state *s = state_of(w);
    s->quiet = true;
    const uint64_t patience = w->now_us + (s->forward_timeout_ms + 5000u) * 1000u;
    while (!w->failed && somebody_waits(w) && w->now_us < patience) world_run_until(w, w->now_us + 20000);
    for (uint32_t i = 0; i < CLIENTS && !w->failed; i++) {
        if (s->clients[i].purpose != PURPOSE_NONE)
            world_fail(w, "client %llu of n%u got no answer for %llu ms", u(s->clients[i].id), s->clients[i].node,
                       u((w->now_us - s->clients[i].asked_us) / 1000));
    }
    char line[32];
    for (uint16_t node = 0; node < w->node_count && !w->failed; node++) {
        if (w->nodes[node].wiped) {
            if (replica_identity(s->processes[node].replica) != IDENTITY_OUTCAST)
                world_fail(w, "P11: n%u lost its disk and does not know that it is out", node);
            continue;
        }
        s->clients[0].node = node;
        s->clients[0].id = ++s->next_client;
        s->clients[0].last_op = 0;
        for (uint16_t key = 0; key < HISTORY_KEYS && !w->failed; key++) {
            snprintf(line, sizeof line, "GETV r%u", key);
            ask_and_wait(w, 0, (struct op){.kind = OP_GETV, .key = key}, line);
            snprintf(line, sizeof line, "GET c%u", key);
            if (!w->failed) ask_and_wait(w, 0, (struct op){.kind = OP_COUNT, .key = key}, line);
        }
    }
    if (!w->failed) history_check(w, s->history);
    if (!w->failed) check_end(w);
}

static const struct paxos *paxos(const struct world *w, uint16_t node) {
    const struct replica *r = state_of(w)->processes[node].replica;
    return r != NULL ? replica_paxos(r) : NULL;
}
static bool message(const struct world *w, const struct packet *p, struct paxos_msg *ret_message) {
    (void)w;
    struct frame frame;
    if (!decode(p, &frame) || frame.kind != FRAME_PAXOS) return false;
    *ret_message = frame.paxos;
    return true;
}

const struct sim_object sim_replica = {.name = "replica",
                                       .connections = true,
                                       .wipes = true,
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
