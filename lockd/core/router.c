/* Requests live in up to three lists: their client's queue (order of replies), the list of their kind (order of
 * sequence numbers, unanswered ones only), and the timeout list (order of arrival).  A request whose client is gone
 * stays until the log has said what became of it. */
#include "lockd/core/router.h"
#include "lockd/core/bug.h"
#include <stdio.h>
#include "lockd/core/resp.h"

#define HASH_ALLOC                 (rt->config.alloc)
#define uthash_fatal(text)         must_fail(__FILE__, __LINE__, (text))
#define uthash_malloc(bytes)       alloc_get(HASH_ALLOC, bytes)
#define uthash_free(memory, bytes) alloc_put(HASH_ALLOC, memory)
#include <uthash.h>
#include <utlist.h>

enum {
    TURN_BYTES = 4 << 20,   /* replies read here in one turn, before others have theirs */
    OUT_BYTES = 32 << 20,   /* replies on their way to us, by guess: the leader's link to us is no deeper */
    FIRST_GUESS = 64 << 10, /* of one reply */
    CAREFUL_GUESS = 1 << 20
};

enum request_state {
    WAITING_TURN, /* earlier commands of its client must finish first */
    READY,        /* may go; not out under any ballot */
    OUT,          /* handed out under `ballot`; unanswered */
    QUEUED,       /* ran, waits in replicated state */
    DONE          /* reply is there */
};

struct client;
struct request {
    struct client *client; /* NULL: nobody waits for the reply */
    const struct command *command;
    enum request_state state;
    bool write, own, barrier, alone, leased, hang_up;
    bool installed; /* the state that was just installed has this wait */
    enum request_timer { NO_TIMER, TIMEOUT, WAIT_END, LEAVE, REVISION } timer;
    uint64_t revision; /* that it waits for */
    uint64_t seq;
    uint64_t ends;               /* %DEQUEUE: seq of the wait it ends */
    struct ballot ballot, first; /* under which it is out; under which it was out first */
    uint64_t deadline_ms;        /* of `timer` */
    struct buf reply;
    size_t bytes; /* what it counts against the limits */
    struct request *client_prev, *client_next;
    struct request *kind_prev, *kind_next;
    struct request *time_prev, *time_next;
    UT_hash_handle hh; /* writes and reads by seq, while unanswered */
    uint32_t argc;
    struct slice argv[];
};

struct client {
    uint64_t id;
    struct request *queue;   /* utlist DL, oldest first */
    struct request *waiting; /* the first WAITING_TURN in it */
    uint32_t pending;
    size_t pending_bytes;
    uint32_t running_reads, running_writes, running_barriers; /* READY, OUT or QUEUED */
    bool dirty, blocked; /* blocked: a wait of its is QUEUED and keeps the rest back */
    struct client *dirty_next;
    UT_hash_handle hh;
};

struct router {
    struct router_config config;
    struct router_sink sink;
    struct client *clients;
    struct request *write_by_seq, *read_by_seq;
    struct request *writes, *reads; /* unanswered, by seq */
    struct request *timeouts;       /* not yet known to have run; by deadline: all timeouts are equally long */
    struct request *waits;          /* QUEUED, in no order: looked through once a second */
    struct request *leaving;        /* QUEUED without client, by deadline */
    struct request *revisions;      /* WAITREVs, in no order */
    struct request *own;            /* unanswered ones that this node answers */
    uint64_t waits_look_ms;
    struct request *send_writes; /* first of `writes` that is not out under the serving ballot; NULL: look for it */
    struct request *send_reads;  /* no read before it is READY; NULL: none is */
    struct client *dirty;
    uint64_t now_ms; /* of the last call that said */
    uint32_t out_reads;
    size_t read_guess; /* bytes of one reply */
    size_t turn_bytes; /* replies that came in this turn */
    bool more;         /* the next turn has work to do */
    uint64_t next_write, next_read;
    uint64_t last_sent_write; /* under sent_ballot; 0: none yet, or everything is being said again */
    struct ballot sent_ballot;
    size_t bytes;
    uint32_t pending;
    bool work;     /* something is READY */
    bool own_work; /* of our own */
    const char *refuse;
};

struct router *router_new(const struct router_config *config, const struct router_sink *sink) {
    struct router *rt = alloc_get0(config->alloc, sizeof *rt);
    rt->config = *config;
    rt->sink = *sink;
    rt->next_write = rt->next_read = 1;
    rt->read_guess = FIRST_GUESS;
    return rt;
}

/* ---- small parts ---- */

static struct client *client_find(const struct router *rt, uint64_t id) {
    struct client *c;
    HASH_FIND(hh, rt->clients, &id, sizeof id, c);
    return c;
}

static struct client *client_get(struct router *rt, uint64_t id) {
    struct client *c = client_find(rt, id);
    if (c == NULL) {
        c = alloc_get0(rt->config.alloc, sizeof *c);
        c->id = id;
        HASH_ADD(hh, rt->clients, id, sizeof c->id, c);
    }
    return c;
}

static void mark_dirty(struct router *rt, struct client *c) {
    if (c->dirty) return;
    c->dirty = true;
    c->dirty_next = rt->dirty;
    rt->dirty = c;
}

static struct request **timer_list(struct router *rt, const struct request *q) {
    switch (q->timer) {
    case TIMEOUT: return &rt->timeouts;
    case WAIT_END: return &rt->waits;
    case REVISION: return &rt->revisions;
    default: return &rt->leaving;
    }
}

static void untime(struct router *rt, struct request *q) {
    if (q->timer == NO_TIMER) return;
    struct request **list = timer_list(rt, q);
    DL_DELETE2(*list, q, time_prev, time_next);
    q->timer = NO_TIMER;
}

static void set_timer(struct router *rt, struct request *q, enum request_timer timer, uint64_t deadline_ms) {
    untime(rt, q);
    q->timer = timer;
    q->deadline_ms = deadline_ms;
    struct request **list = timer_list(rt, q);
    DL_APPEND2(*list, q, time_prev, time_next);
}

/* Commands of the leader have short replies, and must not wait for long ones. */
static bool has_length(const struct request *q) {
    return q->command->class == COMMAND_READ;
}

/* Out of the books of unanswered ones. */
static void unlist(struct router *rt, struct request *q) {
    if (q->seq == 0) return;
    if (q->write) {
        if (rt->send_writes == q) rt->send_writes = q->kind_next;
        DL_DELETE2(rt->writes, q, kind_prev, kind_next);
        HASH_DELETE(hh, rt->write_by_seq, q);
    } else if (q->own) {
        DL_DELETE2(rt->own, q, kind_prev, kind_next);
        HASH_DELETE(hh, rt->read_by_seq, q);
    } else {
        if (rt->send_reads == q) rt->send_reads = q->kind_next;
        if (q->state == OUT && has_length(q)) rt->out_reads--;
        DL_DELETE2(rt->reads, q, kind_prev, kind_next);
        HASH_DELETE(hh, rt->read_by_seq, q);
    }
    q->seq = 0;
}

static void request_free(struct router *rt, struct request *q) {
    rt->bytes -= q->bytes;
    rt->pending--;
    buf_release(&q->reply);
    alloc_put(rt->config.alloc, q);
}

static void running_change(struct client *c, const struct request *q, int by) {
    uint32_t *count = q->barrier ? &c->running_barriers : q->write ? &c->running_writes : &c->running_reads;
    *count = (uint32_t)((int)*count + by);
}

static bool may_start(const struct client *c, const struct request *q) {
    if (c->running_barriers > 0) return false;
    if (q->alone) return c->running_reads == 0 && c->running_writes == 0;
    return BUG(29) || (q->write ? c->running_reads == 0 : c->running_writes == 0);
}

static void start(struct router *rt, struct request *q) {
    q->state = READY;
    if (q->client != NULL) running_change(q->client, q, 1);
    if (q->write) {
        q->seq = rt->next_write++;
        HASH_ADD(hh, rt->write_by_seq, seq, sizeof q->seq, q);
        DL_APPEND2(rt->writes, q, kind_prev, kind_next);
        if (rt->send_writes == NULL) rt->send_writes = q;
    } else if (q->own) {
        untime(rt, q); /* it depends on nobody */
        q->seq = rt->next_read++;
        HASH_ADD(hh, rt->read_by_seq, seq, sizeof q->seq, q);
        DL_APPEND2(rt->own, q, kind_prev, kind_next);
        rt->own_work = true;
        return;
    } else {
        q->seq = rt->next_read++;
        HASH_ADD(hh, rt->read_by_seq, seq, sizeof q->seq, q);
        DL_APPEND2(rt->reads, q, kind_prev, kind_next);
        if (rt->send_reads == NULL) rt->send_reads = q;
    }
    rt->work = true;
}

/* Start what the order of this client allows (N2). */
static void start_more(struct router *rt, struct client *c) {
    while (c->waiting != NULL && (c->waiting->state != WAITING_TURN || may_start(c, c->waiting))) {
        struct request *q = c->waiting;
        c->waiting = q->client_next;
        if (q->state == WAITING_TURN) start(rt, q);
    }
}

/* What stands behind a wait that runs is kept back by nobody's failure: its time counts from the end of the wait. */
static void block(struct router *rt, struct client *c) {
    struct request *q;
    c->blocked = true;
    DL_FOREACH2(c->queue, q, client_next) {
        if (q->state == WAITING_TURN) untime(rt, q);
    }
}

static void unblock(struct router *rt, struct client *c) {
    struct request *q;
    c->blocked = false;
    DL_FOREACH2(c->queue, q, client_next) {
        if (q->state == WAITING_TURN) set_timer(rt, q, TIMEOUT, rt->now_ms + rt->config.timeout_ms);
    }
}

static void finish(struct router *rt, struct request *q, struct slice reply, bool leased) {
    untime(rt, q);
    const bool ran = q->state != WAITING_TURN;
    unlist(rt, q);
    q->state = DONE;
    struct client *c = q->client;
    if (c == NULL) {
        request_free(rt, q);
        return;
    }
    buf_append_slice(&q->reply, reply);
    q->leased = leased;
    if (ran) running_change(c, q, -1);
    if (q->barrier && c->blocked) unblock(rt, c);
    mark_dirty(rt, c);
    start_more(rt, c);
}

/* It runs beside nothing else of its client. */
static bool is_alone(const struct command *command, uint32_t argc, const struct slice *argv) {
    command = command_inner(command, &argc, &argv);
    return command != NULL && (command->class == COMMAND_SCRIPT || command->class == COMMAND_OWN);
}

/* A wait for a lock keeps its client's later commands back, as a blocked Redis client would. */
static bool is_barrier(const struct command *command, uint32_t argc, const struct slice *argv) {
    command = command_inner(command, &argc, &argv);
    if (command == NULL) return false;
    if (is_alone(command, argc, argv)) return true;
    if (command->id != CMD_LOCK_ACQUIRE && command->id != CMD_ELECT_CAMPAIGN) return false;
    for (uint32_t i = 2; i < argc; i++)
        if (slice_is_word(argv[i], "WAIT")) return true;
    return false;
}

static struct request *request_new(struct router *rt, const struct command *command, uint32_t argc,
                                   const struct slice *argv) {
    size_t bytes = sizeof(struct request) + argc * sizeof argv[0];
    const size_t text_at = bytes;
    for (uint32_t i = 0; i < argc; i++) bytes += argv[i].bytes;
    struct request *q = alloc_get(rt->config.alloc, bytes);
    memset(q, 0, sizeof *q);
    q->reply.alloc = rt->config.alloc;
    q->command = command;
    q->bytes = bytes;
    q->argc = argc;
    char *text = (char *)q + text_at;
    for (uint32_t i = 0; i < argc; i++) {
        q->argv[i] = slice_of(text, argv[i].bytes);
        if (argv[i].bytes > 0) memcpy(text, argv[i].data, argv[i].bytes);
        text += argv[i].bytes;
    }
    rt->bytes += bytes;
    rt->pending++;
    return q;
}

static void enqueue(struct client *c, struct request *q) {
    q->client = c;
    DL_APPEND2(c->queue, q, client_prev, client_next);
    c->pending++;
    c->pending_bytes += q->bytes;
}

/* ---- commands in ---- */

bool router_room(const struct router *rt, uint64_t id) {
    const struct client *c = client_find(rt, id);
    return c == NULL || (c->pending < rt->config.pending_max && c->pending_bytes < rt->config.pending_bytes_max);
}

void router_answered(struct router *rt, uint64_t id, struct slice reply, bool hang_up) {
    struct client *c = client_get(rt, id);
    struct request *q = request_new(rt, NULL, 0, NULL);
    q->hang_up = hang_up;
    enqueue(c, q);
    q->state = DONE;
    buf_append_slice(&q->reply, reply);
    mark_dirty(rt, c);
}

static void answer_error(struct router *rt, uint64_t id, const char *text) {
    struct buf b = {.alloc = rt->config.alloc};
    resp_error(&b, "%s", text);
    router_answered(rt, id, buf_slice(&b), false);
    buf_release(&b);
}

static void add(struct router *rt, uint64_t now_ms, uint64_t id, const struct command *command, bool own, uint32_t argc,
                const struct slice *argv) {
    if (rt->refuse != NULL) {
        answer_error(rt, id, rt->refuse);
        return;
    }
    if (rt->bytes > rt->config.bytes_max) {
        answer_error(rt, id, "BUSY too many commands are waiting in this node; the limit is queue-bytes-max");
        return;
    }
    struct client *c = client_get(rt, id);
    struct request *q = request_new(rt, command, argc, argv);
    q->write = command->class == COMMAND_WRITE || command->class == COMMAND_SCRIPT;
    q->own = own;
    q->barrier = is_barrier(command, argc, argv);
    q->alone = is_alone(command, argc, argv);
    rt->now_ms = now_ms;
    if (!c->blocked) set_timer(rt, q, TIMEOUT, now_ms + rt->config.timeout_ms);
    enqueue(c, q);
    if (c->waiting == NULL) c->waiting = q;
    start_more(rt, c);
}

void router_add(struct router *rt, uint64_t now_ms, uint64_t id, const struct command *command, uint32_t argc,
                const struct slice *argv) {
    add(rt, now_ms, id, command, false, argc, argv);
}

void router_add_own(struct router *rt, uint64_t now_ms, uint64_t id, const struct command *command, uint32_t argc,
                    const struct slice *argv) {
    add(rt, now_ms, id, command, true, argc, argv);
}

void router_client_gone(struct router *rt, uint64_t now_ms, uint64_t id) {
    struct client *c = client_find(rt, id);
    if (c == NULL) return;
    struct request *q, *next;
    DL_FOREACH_SAFE2(c->queue, q, next, client_next) {
        DL_DELETE2(c->queue, q, client_prev, client_next);
        /* A write that is out may run; what becomes of it is known only from the log.  The rest is dropped. */
        const bool keep = q->write && (q->state == OUT || q->state == QUEUED);
        if (!keep) {
            untime(rt, q);
            unlist(rt, q);
            request_free(rt, q);
            continue;
        }
        q->client = NULL;
        if (q->state == QUEUED) set_timer(rt, q, LEAVE, now_ms + rt->config.reattach_ms);
    }
    for (struct client **at = &rt->dirty; c->dirty && *at != NULL; at = &(*at)->dirty_next)
        if (*at == c) {
            *at = c->dirty_next;
            break;
        }
    HASH_DEL(rt->clients, c);
    alloc_put(rt->config.alloc, c);
}

/* ---- what came back ---- */

static struct request *write_find(const struct router *rt, uint64_t seq) {
    struct request *q;
    HASH_FIND(hh, rt->write_by_seq, &seq, sizeof seq, q);
    return q;
}

static struct request *read_find(const struct router *rt, uint64_t seq) {
    struct request *q;
    HASH_FIND(hh, rt->read_by_seq, &seq, sizeof seq, q);
    return q;
}

void router_write_reply(struct router *rt, uint64_t seq, struct slice reply) {
    struct request *q = write_find(rt, BUG(52) && seq % 8 == 0 ? seq + 1 : seq);
    if (q == NULL) return;
    struct request *ended = q->ends != 0 ? write_find(rt, q->ends) : NULL;
    finish(rt, q, reply, false);
    if (ended == NULL) return;
    must(ended->client == NULL); /* it was left: the log says no more about that wait, and nobody asks */
    finish(rt, ended, reply, false);
}

void router_write_refused(struct router *rt, uint64_t seq, struct ballot ballot, struct slice reply) {
    struct request *q = write_find(rt, seq);
    if (q != NULL && q->state == OUT && ballot_equal(q->ballot, ballot)) finish(rt, q, reply, false);
}

/* How long a command asks to wait at most: its own WAIT. */
static uint64_t wait_ms(const struct request *q) {
    uint64_t ms = 0;
    for (uint32_t i = 2; i + 1 < q->argc; i++)
        if (slice_is_word(q->argv[i], "WAIT") && slice_to_u64(q->argv[i + 1], &ms)) break;
    return ms < UINT64_MAX / 4 ? ms : UINT64_MAX / 4;
}

void router_write_queued(struct router *rt, uint64_t now_ms, uint64_t seq) {
    struct request *q = write_find(rt, seq);
    if (q == NULL || q->state == QUEUED) return;
    q->state = QUEUED;
    rt->now_ms = now_ms;
    if (q->client == NULL) {
        set_timer(rt, q, LEAVE, now_ms + rt->config.reattach_ms);
        return;
    }
    set_timer(rt, q, WAIT_END, now_ms + wait_ms(q) + rt->config.timeout_ms);
    if (q->barrier) block(rt, q->client);
}

void router_first(struct router *rt, struct ballot ballot) {
    struct request *q, *next;
    DL_FOREACH_SAFE2(rt->writes, q, next, kind_next) {
        if (q->state != OUT || ballot_compare(q->ballot, ballot) >= 0) continue;
        if (q->client == NULL && q->command->class != COMMAND_INTERNAL) { /* it did not run and nobody asks any more */
            untime(rt, q);
            unlist(rt, q);
            request_free(rt, q);
            continue;
        }
        q->state = READY;
    }
    rt->send_writes = rt->writes;
    rt->last_sent_write = 0;
    rt->work = true;
    router_reads_again(rt);
}

void router_read_reply(struct router *rt, uint64_t seq, struct slice reply, bool leased) {
    struct request *q = read_find(rt, seq);
    if (q == NULL) return;
    if (has_length(q) && !q->own)
        rt->read_guess =
            reply.bytes > rt->read_guess ? reply.bytes : rt->read_guess - (rt->read_guess - reply.bytes) / 8;
    rt->turn_bytes += reply.bytes;
    finish(rt, q, reply, leased);
    if (rt->send_reads != NULL) rt->work = true;
}

void router_reads_again(struct router *rt) {
    struct request *q;
    DL_FOREACH2(rt->reads, q, kind_next) q->state = READY;
    rt->send_reads = rt->reads;
    rt->out_reads = 0;
    rt->read_guess = CAREFUL_GUESS; /* another leader, or too many long ones broke the link */
    if (rt->reads != NULL) rt->work = true;
}

void router_writes_again(struct router *rt) {
    rt->send_writes = rt->writes;
    rt->last_sent_write = 0;
    if (rt->writes != NULL) rt->work = true;
}

/* ---- a snapshot was installed ---- */

void router_install_wait(struct router *rt, uint64_t seq) {
    struct request *q = write_find(rt, seq);
    if (q != NULL) q->installed = true;
}

static void give_up(struct router *rt, struct request *q) {
    struct buf b = {.alloc = rt->config.alloc};
    resp_error(&b, "UNCERTAIN this node caught up by a snapshot; the command may have run");
    finish(rt, q, buf_slice(&b), false);
    buf_release(&b);
}

/* As if it had just come: one of ours, for no client. */
static void restart(struct router *rt, struct request *q) {
    must(q->client == NULL);
    unlist(rt, q);
    start(rt, q);
}

void router_installed(struct router *rt, uint64_t now_ms) {
    const uint64_t next = rt->next_write; /* what is made here is not looked at */
    struct request *q, *after;
    rt->now_ms = now_ms;
    DL_FOREACH_SAFE2(rt->writes, q, after, kind_next) {
        if (q->seq >= next) break;
        if (q->state != OUT && q->state != QUEUED) continue;
        if (q->installed) {
            q->installed = false;
            router_write_queued(rt, now_ms, q->seq);
        } else if (q->ends != 0) { /* void or again, it does no harm */
            const struct request *ended = write_find(rt, q->ends);
            if (ended != NULL && (ended->installed || ended->state == QUEUED))
                restart(rt, q);
            else
                finish(rt, q, slice_of(NULL, 0), false);
        } else {
            give_up(rt, q);
        }
    }
    router_writes_again(rt);
    router_reads_again(rt);
}

/* ---- own commands that wait ---- */

void router_wait_revision(struct router *rt, uint64_t seq, uint64_t revision, uint64_t until_ms) {
    struct request *q = read_find(rt, seq);
    if (q == NULL || !q->own) return;
    q->revision = revision;
    set_timer(rt, q, REVISION, until_ms);
}

void router_revision(struct router *rt, uint64_t now_ms, uint64_t revision) {
    struct request *q, *next;
    rt->now_ms = now_ms;
    DL_FOREACH_SAFE2(rt->revisions, q, next, time_next) {
        if (q->revision > revision && q->deadline_ms > now_ms) continue;
        struct buf b = {.alloc = rt->config.alloc};
        if (q->revision <= revision)
            resp_integer(&b, (int64_t)revision);
        else
            resp_nil(&b);
        finish(rt, q, buf_slice(&b), false);
        buf_release(&b);
    }
}

/* ---- out ---- */

static void call(struct router *rt, struct request *q, struct ballot ballot, uint64_t after) {
    q->state = OUT;
    q->ballot = ballot;
    if (q->first.round == 0) q->first = ballot;
    if (!q->write && has_length(q)) rt->out_reads++;
    const struct router_call out = {.write = q->write,
                                    .seq = q->seq,
                                    .after = after,
                                    .first = q->first,
                                    .argc = q->argc,
                                    .argv = q->argv,
                                    .command = q->command};
    rt->sink.call(rt->sink.context, &out);
}

/* May one more read go now?  Long replies come no faster than they fit into links and turns. */
static bool read_may_go(struct router *rt) {
    rt->more = rt->more || rt->turn_bytes > TURN_BYTES;
    return rt->turn_bytes <= TURN_BYTES && (rt->out_reads == 0 || (rt->out_reads + 1) * rt->read_guess <= OUT_BYTES);
}

static void pump_reads(struct router *rt, struct ballot serving) {
    struct request *q = rt->send_reads, *next, *held = NULL;
    rt->send_reads = NULL;
    for (; q != NULL; q = next) { /* a call may answer at once, and start more */
        next = q->kind_next;
        if (q->state != READY) continue;
        if (has_length(q) && (held != NULL || !read_may_go(rt)))
            held = held != NULL ? held : q;
        else
            call(rt, q, serving, 0);
    }
    if (held != NULL) rt->send_reads = held;
}

void router_pump_own(struct router *rt, uint64_t now_ms) {
    rt->now_ms = now_ms;
    while (rt->own_work) {
        struct request *q, *next;
        rt->own_work = false;
        DL_FOREACH_SAFE2(rt->own, q, next, kind_next) { /* most are answered at once, and start more */
            if (q->state != READY) continue;
            if (rt->turn_bytes > TURN_BYTES) {
                rt->own_work = rt->more = true;
                return;
            }
            q->state = OUT;
            const struct router_call out = {
                .own = true, .seq = q->seq, .argc = q->argc, .argv = q->argv, .command = q->command};
            rt->sink.call(rt->sink.context, &out);
            if (q->state == OUT && q->barrier) block(rt, q->client);
        }
    }
}

void router_pump(struct router *rt, uint64_t now_ms, const struct ballot *serving) {
    rt->now_ms = now_ms;
    rt->more = false;
    if (serving == NULL || !rt->work) return;
    if (!ballot_equal(rt->sent_ballot, *serving)) {
        rt->sent_ballot = *serving;
        rt->send_writes = rt->writes;
        rt->last_sent_write = 0;
        router_reads_again(rt);
    }
    while (rt->work) {
        rt->work = false;
        struct request *q = rt->send_writes, *next;
        rt->send_writes = NULL;
        for (; q != NULL; q = next) {
            next = q->kind_next;
            if (q->state == QUEUED) continue;
            /* Out under a ballot whose successor's first entry is not applied here: nobody knows yet whether it ran. */
            if (q->state == OUT && !ballot_equal(q->ballot, *serving) && !BUG(75)) continue;
            const uint64_t after = rt->last_sent_write;
            rt->last_sent_write = q->seq;
            call(rt, q, *serving, after);
        }
        pump_reads(rt, *serving);
    }
}

/* It was handed out, and nothing proves yet that it did not run. */
static bool may_run(const struct request *q) {
    return q->write && (q->state == OUT || q->state == QUEUED);
}

static void time_out(struct router *rt, struct request *q) {
    const bool maybe = may_run(q) && !BUG(27);
    struct buf b = {.alloc = rt->config.alloc};
    if (maybe)
        resp_error(&b, "UNCERTAIN no answer within forward-timeout (%u ms); the command may have run",
                   rt->config.timeout_ms);
    else
        resp_error(&b, "CLUSTERDOWN no leader within forward-timeout (%u ms); the command did not run",
                   rt->config.timeout_ms);
    finish(rt, q, buf_slice(&b), false);
    buf_release(&b);
}

/* The place in the queue of a client that is gone is given up through the log, by name of this very attachment (W). */
static void leave(struct router *rt, struct request *q) {
    untime(rt, q);
    char node[24], boot[24], seq[24];
    uint32_t argc = q->argc;
    const struct slice *words = q->argv;
    const struct command *runs = command_inner(q->command, &argc, &words);
    const bool lock = runs != NULL && (runs->id == CMD_LOCK_ACQUIRE || runs->id == CMD_ELECT_CAMPAIGN);
    snprintf(node, sizeof node, "%u", (unsigned)rt->config.node);
    snprintf(boot, sizeof boot, "%llu", (unsigned long long)rt->config.boot);
    snprintf(seq, sizeof seq, "%llu", (unsigned long long)q->seq);
    const struct slice argv[] = {slice_str("%DEQUEUE"), lock ? words[1] : slice_str(""), slice_str(node),
                                 slice_str(boot), slice_str(seq)};
    struct request *out = request_new(rt, command_at(CMD_X_DEQUEUE), 5, argv);
    out->write = true;
    out->ends = q->seq;
    start(rt, out);
    /* The wait itself stays on the books until this one is through. */
}

void router_expire(struct router *rt, uint64_t now_ms) {
    rt->now_ms = now_ms;
    while (!BUG(53) && rt->timeouts != NULL && rt->timeouts->deadline_ms <= now_ms) time_out(rt, rt->timeouts);
    while (rt->leaving != NULL && rt->leaving->deadline_ms <= now_ms) leave(rt, rt->leaving);
    if (rt->waits == NULL || now_ms < rt->waits_look_ms) return;
    rt->waits_look_ms = now_ms + 1000;
    struct request *q, *next;
    DL_FOREACH_SAFE2(rt->waits, q, next, time_next) {
        if (q->deadline_ms <= now_ms) time_out(rt, q); /* the log should have ended it long ago: we are cut off */
    }
}

void router_flush(struct router *rt) {
    rt->turn_bytes = 0;
    if (rt->more) rt->work = true;
    while (rt->dirty != NULL) {
        struct client *c = rt->dirty;
        rt->dirty = c->dirty_next;
        c->dirty = false;
        while (c->queue != NULL && c->queue->state == DONE) {
            struct request *q = c->queue;
            DL_DELETE2(c->queue, q, client_prev, client_next);
            c->pending--;
            c->pending_bytes -= q->bytes;
            rt->sink.reply(rt->sink.context, c->id, buf_slice(&q->reply), q->leased);
            if (q->hang_up) rt->sink.hang_up(rt->sink.context, c->id);
            request_free(rt, q);
        }
        if (c->queue == NULL) { /* an idle client costs nothing here */
            HASH_DEL(rt->clients, c);
            alloc_put(rt->config.alloc, c);
        }
    }
}

bool router_has_work(const struct router *rt) {
    return rt->work;
}

uint64_t router_wake_at(const struct router *rt) {
    uint64_t at = rt->more ? 0 : UINT64_MAX;
    if (rt->timeouts != NULL && rt->timeouts->deadline_ms < at) at = rt->timeouts->deadline_ms;
    if (rt->leaving != NULL && rt->leaving->deadline_ms < at) at = rt->leaving->deadline_ms;
    if (rt->waits != NULL && rt->waits_look_ms < at) at = rt->waits_look_ms;
    const struct request *q;
    DL_FOREACH2(rt->revisions, q, time_next) {
        if (q->deadline_ms < at) at = q->deadline_ms;
    }
    return at;
}

void router_refuse(struct router *rt, const char *error) {
    rt->refuse = error;
    if (error == NULL) return;
    struct request *q, *next; /* whoever waits would wait for ever */
    DL_FOREACH_SAFE2(rt->timeouts, q, next, time_next) {
        struct buf b = {.alloc = rt->config.alloc};
        if (may_run(q))
            resp_error(&b, "UNCERTAIN this node is no part of the cluster any more; the command may have run");
        else
            resp_error(&b, "%s", error);
        finish(rt, q, buf_slice(&b), false);
        buf_release(&b);
    }
}

uint32_t router_pending(const struct router *rt) {
    return rt->pending;
}

void router_free(struct router *rt) {
    struct client *c, *next;
    HASH_ITER(hh, rt->clients, c, next) router_client_gone(rt, 0, c->id);
    struct request *q, *after;
    DL_FOREACH_SAFE2(rt->writes, q, after, kind_next) {
        untime(rt, q);
        unlist(rt, q);
        request_free(rt, q);
    }
    alloc_put(rt->config.alloc, rt);
}
