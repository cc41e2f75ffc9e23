/* The parts and how a command passes through them:
 *
 *   client -> router (order, sequence) -> call() --- we serve? ---> take_write() -> queue -> propose() -> paxos
 *                                             `---- else FORWARD frame ---> the leader's take_write() / ask_new()
 *   paxos applies -> keyspace -> facts -> router (replies), keeper (deadlines), scripts (void: again)
 *
 * Serving = LEADING and our own first entry is applied.  Everything below "the leader's half" exists only while serving
 * and is dropped whole by stop_serving: origins then learn from the next first entry what did not run. */
#include "lockd/core/replica.h"
#include <stdarg.h>
#include <stdio.h>
#include <xxhash.h>
#include "lockd/core/command.h"
#include "lockd/core/keeper.h"
#include "lockd/core/local.h"
#include "lockd/core/resp.h"
#include "lockd/core/router.h"

#define uthash_fatal(text)         must_fail(__FILE__, __LINE__, (text))
#define uthash_malloc(bytes)       alloc_get(r->config.alloc, bytes)
#define uthash_free(memory, bytes) alloc_put(r->config.alloc, memory)
#include <uthash.h>
#include <utlist.h>

enum {
    QUESTION_MS = 500,     /* identity questions while somebody is not admitted */
    RESEND_MS = 1000,      /* writes that are out at a remote leader are said again */
    REFUSED_MS = 50,       /* and after a refusal */
    ORIGIN_LOOK_MS = 250,  /* how often the leader looks for waits whose origin is gone */
    SCRIPT_TRIES_MAX = 64, /* a script whose reads keep changing */
    SCRIPT_PATIENCE = 1,   /* tries in vain after which the pipeline drains for it */
    HELD_BYTES_MAX = 128 << 20,
    BATCH_ROOM = 64,     /* more than the head of a batch takes */
    KEY_MARKS = 1 << 16, /* power of two */
    CLIENT_BYTES_MAX = 64 << 20
};

/* A frame that waits for the disk. */
struct held_frame {
    uint16_t peer;
    uint64_t batch;
    struct held_frame *prev, *next;
    size_t bytes;
    char data[];
};

/* A transaction on its way to the disk. */
struct transaction {
    uint64_t batch;
    uint64_t paxos_batch; /* 0: none */
    bool identity;
    struct transaction *prev, *next;
};

struct named {
    uint64_t id;
    UT_hash_handle hh;
    size_t bytes;
    char name[];
};

/* A read or a leader's command at the leader, from any origin. */
enum ask_park { ASK_FRESH, ASK_ROUND, ASK_STAMP, ASK_EXPIRING, ASK_NEXT };
struct ask {
    uint64_t handle;
    struct origin origin; /* seq: in the origin's count of reads */
    const struct command *command;
    uint64_t arrival_ms;
    enum ask_park park;
    uint64_t round, stamp_ms;
    struct ask *prev, *next;
    UT_hash_handle hh; /* held NEXTs by handle */
    uint32_t argc;
    struct slice argv[];
};

struct script_job {
    struct origin origin;
    const struct command *command;
    bool proposed;
    uint32_t tries;
    uint64_t wait_for; /* writes queued before it came, or before it was void */
    uint64_t write;    /* its number in the queue, once proposed */
    struct script_job *prev, *next;
    uint32_t argc;
    struct slice argv[];
};

struct queued_batch {
    struct buf value;
    struct queued_batch *next;
};

struct replica {
    struct replica_config config;
    struct replica_sink sink;
    struct identity identity;
    struct paxos *paxos; /* NULL until the cluster has formed */
    struct keyspace *ks;
    struct router *router;
    struct buf frame; /* scratch */
    struct buf reply; /* scratch */
    struct named *names;
    char refuse_text[160];
    uint64_t turn_ms; /* of the turn we are in */

    /* disk */
    uint64_t batch, durable; /* numbers of transactions */
    struct transaction *transactions;
    struct held_frame *held;
    size_t held_bytes;

    /* peers */
    bool link_up[PAXOS_NODES_MAX];
    uint64_t admitted_boot[PAXOS_NODES_MAX];
    uint64_t heard_ms[PAXOS_NODES_MAX];
    uint64_t admitted_ms[PAXOS_NODES_MAX]; /* when admitted_boot was first seen */
    enum identity_problem problem[PAXOS_NODES_MAX];
    uint64_t question_ms;

    /* the origin's half */
    struct ballot target; /* whom the router's calls go to; round 0: nobody */
    uint64_t resend_ms;
    bool read_refused;

    /* the leader's half */
    bool first_out, serving;
    struct ballot ballot; /* we proposed our first entry under */
    uint64_t base_stamp_ms, base_ms, serving_since_ms;
    uint64_t stamp_out_ms; /* highest stamp proposed */
    struct {
        uint64_t boot, seq;
    } taken[PAXOS_NODES_MAX];
    struct queued_batch *queue, *queue_tail, *spare;
    size_t queue_bytes;
    bool own_refused;       /* a write of our own router found the queue full */
    uint64_t queued_writes; /* commands put in the queue, proposed, applied, under our ballot */
    uint64_t proposed_writes, applied_writes;
    bool draining; /* nothing is proposed until all that is proposed is applied: a script waits for it */
    uint64_t key_marks[KEY_MARKS]; /* highest write number that touches such a key */
    uint64_t all_mark;
    struct script_job *scripts;
    struct ask *asks;       /* FRESH, ROUND, STAMP, EXPIRING */
    struct ask *held_nexts; /* by handle */
    uint64_t next_handle;
    uint64_t need_stamp_ms; /* an entry with this stamp must be chosen */
    uint64_t round_now;     /* asked for and not gone out yet; 0: none */
    struct keeper *keeper;
    uint64_t origin_look_ms;
};

static void note(struct replica *r, char level, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void note(struct replica *r, char level, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    r->sink.note(r->sink.context, level, text);
}

/* ---- life ---- */

static void router_call_out(void *context, const struct router_call *call);
static void router_reply_out(void *context, uint64_t client, struct slice bytes, bool leased);
static void router_hang_up_out(void *context, uint64_t client);

static void paxos_begin(struct replica *r, uint64_t now_ms, const struct paxos_saved *saved) {
    const struct paxos_config config = {.alloc = r->config.alloc,
                                        .node = r->config.node,
                                        .node_count = r->config.node_count,
                                        .inflight_max = r->config.inflight_max,
                                        .value_bytes_max = r->config.batch_bytes_max,
                                        .heartbeat_ms = r->config.heartbeat_ms,
                                        .lease_ms = r->config.lease_ms,
                                        .election_spread_ms = r->config.election_spread_ms,
                                        .drift_ppm = r->config.drift_ppm,
                                        .seed = r->config.seed,
                                        .start_ms = now_ms};
    r->paxos = paxos_new(&config, saved);
}

struct replica *replica_new(const struct replica_config *config, const struct replica_saved *saved,
                            const struct replica_sink *sink) {
    must(config->node < config->node_count && config->node_count <= PAXOS_NODES_MAX);
    struct replica *r = alloc_get0(config->alloc, sizeof *r);
    r->config = *config;
    r->sink = *sink;
    r->frame.alloc = r->reply.alloc = config->alloc;
    const struct identity_config identity = {
        .node = config->node,
        .node_count = config->node_count,
        .store_id = config->store_id,
        .boot_id = config->boot_id,
        .fresh_cluster_id = config->fresh_cluster_id,
        .record = saved->record,
        .stray = saved->record.cluster_id == 0 && saved->paxos.restarted &&
                 (saved->paxos.chosen > 0 || saved->paxos.accepted_count > 0 || saved->paxos.promised.round > 0)};
    identity_init(&r->identity, &identity);
    const struct ks_config ks = {.alloc = config->alloc, .node = config->node, .boot = config->boot_id};
    r->ks = keyspace_new(&ks);
    const struct router_config router = {.alloc = config->alloc,
                                         .node = config->node,
                                         .boot = config->boot_id,
                                         .timeout_ms = config->forward_timeout_ms,
                                         .reattach_ms = config->reattach_ms,
                                         .pending_max = config->client_pending_max,
                                         .pending_bytes_max = CLIENT_BYTES_MAX,
                                         .bytes_max = config->queue_bytes_max};
    const struct router_sink router_sink = {
        .context = r, .call = router_call_out, .reply = router_reply_out, .hang_up = router_hang_up_out};
    r->router = router_new(&router, &router_sink);
    r->keeper = keeper_new(config->alloc, config->seed);
    if (r->identity.state == IDENTITY_FORMED) paxos_begin(r, config->start_ms, &saved->paxos);
    return r;
}

static void drop_leader_half(struct replica *r);

void replica_free(struct replica *r) {
    if (r == NULL) return;
    drop_leader_half(r);
    struct named *n, *next_named;
    HASH_ITER(hh, r->names, n, next_named) {
        HASH_DEL(r->names, n);
        alloc_put(r->config.alloc, n);
    }
    struct transaction *t, *next_t;
    DL_FOREACH_SAFE(r->transactions, t, next_t) alloc_put(r->config.alloc, t);
    struct held_frame *h, *next_h;
    DL_FOREACH_SAFE(r->held, h, next_h) alloc_put(r->config.alloc, h);
    if (r->spare != NULL) {
        buf_release(&r->spare->value);
        alloc_put(r->config.alloc, r->spare);
    }
    keeper_free(r->keeper);
    router_free(r->router);
    keyspace_free(r->ks);
    if (r->paxos != NULL) paxos_free(r->paxos);
    buf_release(&r->frame);
    buf_release(&r->reply);
    alloc_put(r->config.alloc, r);
}

void replica_replay(struct replica *r, paxos_slot slot, struct slice value) {
    struct ks_facts facts;
    keyspace_apply(r->ks, slot, value, &facts);
}

/* ---- frames and transactions out ---- */

static void send_frame(struct replica *r, uint16_t peer, const struct frame *frame) {
    if (peer == r->config.node || !r->link_up[peer]) return;
    buf_clear(&r->frame);
    frame_encode(frame, &r->frame);
    r->sink.send(r->sink.context, peer, buf_slice(&r->frame));
}

static void send_paxos(struct replica *r, const struct paxos_msg *msg) {
    const struct frame frame = {.kind = FRAME_PAXOS, .paxos = *msg};
    send_frame(r, msg->to, &frame);
}

static void send_paxos_after(struct replica *r, const struct paxos_msg *msg) {
    if (r->durable == r->batch) {
        send_paxos(r, msg);
        return;
    }
    if (!r->link_up[msg->to]) return;
    const struct frame frame = {.kind = FRAME_PAXOS, .paxos = *msg};
    buf_clear(&r->frame);
    frame_encode(&frame, &r->frame);
    if (r->held_bytes + r->frame.bytes > HELD_BYTES_MAX) return; /* as if it were lost; the disk hangs */
    r->held_bytes += r->frame.bytes;
    struct held_frame *h = alloc_get(r->config.alloc, sizeof *h + r->frame.bytes);
    h->peer = msg->to;
    h->batch = r->batch;
    h->bytes = r->frame.bytes;
    memcpy(h->data, r->frame.data, h->bytes);
    DL_APPEND(r->held, h);
}

static void save(struct replica *r, const struct paxos_output *out, const struct identity_record *record) {
    struct transaction *t = alloc_get0(r->config.alloc, sizeof *t);
    t->batch = ++r->batch;
    t->paxos_batch = out != NULL ? out->batch : 0;
    t->identity = record != NULL;
    DL_APPEND(r->transactions, t);
    r->sink.save(r->sink.context, t->batch, out, record);
}

void replica_chosen_frame(const struct replica *r, uint16_t peer, const struct paxos_entry *entries, uint32_t count,
                          struct buf *out) {
    const struct frame frame = {.kind = FRAME_PAXOS,
                                .paxos = {.kind = PAXOS_MSG_CHOSEN,
                                          .from = r->config.node,
                                          .to = peer,
                                          .chosen = r->paxos != NULL ? paxos_chosen(r->paxos) : 0,
                                          .entries = entries,
                                          .entry_count = count}};
    frame_encode(&frame, out);
}

void replica_durable(struct replica *r, uint64_t now_ms, uint64_t batch) {
    uint64_t paxos_batch = 0;
    bool identity = false;
    struct transaction *t, *next;
    DL_FOREACH_SAFE(r->transactions, t, next) {
        if (t->batch > batch) break;
        if (t->paxos_batch != 0) paxos_batch = t->paxos_batch;
        identity = identity || t->identity;
        DL_DELETE(r->transactions, t);
        alloc_put(r->config.alloc, t);
    }
    if (batch > r->durable) r->durable = batch;
    if (identity) {
        identity_saved(&r->identity);
        paxos_begin(r, now_ms, &(struct paxos_saved){0});
        r->question_ms = 0;
    }
    if (paxos_batch != 0) {
        const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_DURABLE, .batch = paxos_batch};
        must(paxos_step(r->paxos, &in) == PAXOS_TAKEN);
    }
}

static void release_held(struct replica *r) {
    struct held_frame *h, *next;
    DL_FOREACH_SAFE(r->held, h, next) {
        if (h->batch > r->durable) return;
        DL_DELETE(r->held, h);
        r->held_bytes -= h->bytes;
        if (r->link_up[h->peer]) r->sink.send(r->sink.context, h->peer, slice_of(h->data, h->bytes));
        alloc_put(r->config.alloc, h);
    }
}

/* ---- identity ---- */

static void ask_identity(struct replica *r, uint16_t peer) {
    struct frame frame = {.kind = FRAME_IDENTITY};
    identity_question(&r->identity, peer, &frame.identity);
    send_frame(r, peer, &frame);
}

static void identity_turn(struct replica *r, uint64_t now_ms) {
    if (r->identity.state == IDENTITY_JOINING && identity_forms_alone(&r->identity)) save(r, NULL, &r->identity.record);
    if (r->identity.state == IDENTITY_FORMED && r->identity.saving) return;
    if (now_ms < r->question_ms) return;
    r->question_ms = now_ms + QUESTION_MS;
    for (uint16_t peer = 0; peer < r->config.node_count; peer++)
        if (peer != r->config.node && r->link_up[peer] && !identity_admitted(&r->identity, peer)) ask_identity(r, peer);
}

static void identity_frame(struct replica *r, uint64_t now_ms, uint16_t peer, uint64_t boot,
                           const struct identity_msg *msg) {
    if (msg->from != peer || msg->to != r->config.node || msg->boot_id != boot) return;
    const enum identity_state before = r->identity.state;
    bool reply = false, want_save = false;
    struct frame answer = {.kind = FRAME_IDENTITY};
    const enum identity_problem problem = identity_step(&r->identity, msg, &reply, &answer.identity, &want_save);
    if (problem == IDENTITY_OK && identity_admitted(&r->identity, peer) && r->admitted_boot[peer] != boot) {
        r->admitted_boot[peer] = boot;
        r->admitted_ms[peer] = now_ms;
    }
    if (reply) send_frame(r, peer, &answer);
    if (want_save) save(r, NULL, &r->identity.record);
    if (!msg->is_answer && r->target.round > 0 && r->target.node == peer) { /* it did not listen to us before this */
        router_writes_again(r->router);
        router_reads_again(r->router);
    }
    if (problem != r->problem[peer]) {
        r->problem[peer] = problem;
        if (problem != IDENTITY_OK)
            note(r, 'e', "identity problem peer=%u store=%016llx what=\"%s\"", peer + 1u,
                 (unsigned long long)msg->store_id, identity_problem_text(problem));
    }
    if (r->identity.state != before && r->identity.state == IDENTITY_OUTCAST) {
        snprintf(r->refuse_text, sizeof r->refuse_text,
                 "CLUSTERDOWN this node's store %016llx is not part of cluster %016llx: it does not vote or serve",
                 (unsigned long long)r->config.store_id, (unsigned long long)r->identity.outcast_cluster);
        router_refuse(r->router, r->refuse_text);
        note(r, 'e',
             "identity outcast store=%016llx cluster=%016llx what=\"an empty or foreign store met a formed cluster: it "
             "will not vote; restore its old data directory\"",
             (unsigned long long)r->config.store_id, (unsigned long long)r->identity.outcast_cluster);
    }
}

/* ---- commands in ---- */

static int leader_index(const struct replica *r, uint64_t now_ms, struct ballot *ret_ballot) {
    struct ballot ballot = {0};
    const bool known = r->paxos != NULL && paxos_leader(r->paxos, now_ms, &ballot);
    *ret_ballot = ballot;
    return known ? (int)ballot.node : -1;
}

static const char *role_text(const struct replica *r) {
    if (r->identity.state == IDENTITY_OUTCAST) return "outcast";
    if (r->paxos == NULL) return "joining";
    if (r->serving) return "leader";
    return paxos_role(r->paxos) == PAXOS_FOLLOWER ? "follower" : "candidate";
}

static void local(struct replica *r, uint64_t now_ms, uint64_t unix_us, uint64_t client, const struct command *command,
                  uint32_t argc, const struct slice *argv) {
    struct named *named;
    HASH_FIND(hh, r->names, &client, sizeof client, named);
    struct local_view view = {
        .node = r->config.node,
        .node_count = r->config.node_count,
        .store_id = r->config.store_id,
        .boot_id = r->config.boot_id,
        .cluster_id = r->identity.record.cluster_id,
        .role = role_text(r),
        .keyspace = r->ks,
        .version = r->config.version,
        .node_addresses = r->config.node_addresses,
        .uptime_ms = now_ms - r->config.start_ms,
        .pending = router_pending(r->router),
        .inflight_max = r->config.inflight_max,
        .client_pending_max = r->config.client_pending_max,
        .queue_bytes_max = r->config.queue_bytes_max,
        .request_bytes_max = r->config.request_bytes_max,
        .forward_timeout_ms = r->config.forward_timeout_ms,
        .unix_us = unix_us,
        .client = client,
        .client_name = named != NULL ? slice_of(named->name, named->bytes) : slice_of(NULL, 0),
    };
    view.leader = leader_index(r, now_ms, &view.ballot);
    if (r->serving) view.leader = r->config.node;
    if (r->serving) view.ballot = r->ballot;
    buf_clear(&r->reply);
    struct slice name = {0};
    const enum local_verdict verdict = local_command(&view, command, argc, argv, &r->reply, &name);
    if (verdict == LOCAL_NAME) {
        if (named != NULL) {
            HASH_DEL(r->names, named);
            alloc_put(r->config.alloc, named);
        }
        if (name.bytes > 0) {
            named = alloc_get0(r->config.alloc, sizeof *named + name.bytes);
            named->id = client;
            named->bytes = name.bytes;
            memcpy(named->name, name.data, name.bytes);
            HASH_ADD(hh, r->names, id, sizeof named->id, named);
        }
    }
    router_answered(r->router, client, buf_slice(&r->reply), verdict == LOCAL_HANG_UP);
}

bool replica_client_room(const struct replica *r, uint64_t client) {
    return router_room(r->router, client);
}

void replica_command(struct replica *r, uint64_t now_ms, uint64_t unix_us, uint64_t client, uint32_t argc,
                     const struct slice *argv) {
    buf_clear(&r->reply);
    const struct command *command =
        command_check(argc, argv, (uint32_t)keyspace_settings(r->ks)->key_bytes_max, &r->reply);
    size_t bytes = 0;
    for (uint32_t i = 0; i < argc; i++) bytes += argv[i].bytes;
    if (command == NULL) {
        router_answered(r->router, client, buf_slice(&r->reply), false);
    } else if (bytes > r->config.request_bytes_max) {
        resp_error(&r->reply, "ERR the command is too long: %zu bytes, request-bytes-max is %u", bytes,
                   r->config.request_bytes_max);
        router_answered(r->router, client, buf_slice(&r->reply), false);
    } else if (command->class == COMMAND_LOCAL) {
        local(r, now_ms, unix_us, client, command, argc, argv);
    } else {
        router_add(r->router, now_ms, client, command, argc, argv);
    }
}

void replica_client_gone(struct replica *r, uint64_t now_ms, uint64_t client) {
    router_client_gone(r->router, now_ms, client);
    struct named *named;
    HASH_FIND(hh, r->names, &client, sizeof client, named);
    if (named == NULL) return;
    HASH_DEL(r->names, named);
    alloc_put(r->config.alloc, named);
}

static void router_reply_out(void *context, uint64_t client, struct slice bytes, bool leased) {
    struct replica *r = context;
    r->sink.reply(r->sink.context, client, bytes, leased);
}

static void router_hang_up_out(void *context, uint64_t client) {
    struct replica *r = context;
    r->sink.hang_up(r->sink.context, client);
}

/* ---- the leader's half: the queue of writes ---- */

static uint64_t cluster_now(const struct replica *r, uint64_t now_ms) {
    return r->base_stamp_ms + (now_ms - r->base_ms);
}

static uint64_t *key_mark(struct replica *r, struct slice key) {
    return &r->key_marks[XXH3_64bits(key.data, key.bytes) & (KEY_MARKS - 1)];
}

static void mark_key(void *context, struct slice key) {
    struct replica *r = context;
    *key_mark(r, key) = r->queued_writes;
}

/* What a command takes in a batch, at most. */
static size_t queued_bytes(uint32_t argc, const struct slice *argv) {
    size_t bytes = 64;
    for (uint32_t i = 0; i < argc; i++) bytes += 4 + argv[i].bytes;
    return bytes;
}

static struct queued_batch *queued_batch_new(struct replica *r) {
    struct queued_batch *batch = r->spare;
    r->spare = NULL;
    if (batch == NULL) batch = alloc_get0(r->config.alloc, sizeof *batch);
    batch->value.alloc = r->config.alloc;
    batch->next = NULL;
    batch_begin(&batch->value, r->ballot, false, 0);
    r->queue_bytes += batch->value.bytes;
    return batch;
}

static void batch_put(struct replica *r, struct queued_batch *batch, struct origin origin, uint32_t argc,
                      const struct slice *argv) {
    const size_t before = batch->value.bytes;
    batch_add(&batch->value, origin, argc, argv);
    r->queue_bytes += batch->value.bytes - before;
    r->queued_writes++;
}

static void queue_add(struct replica *r, struct origin origin, uint32_t argc, const struct slice *argv) {
    struct queued_batch *tail = r->queue_tail;
    if (tail == NULL || tail->value.bytes + queued_bytes(argc, argv) > r->config.batch_bytes_max) {
        tail = queued_batch_new(r);
        if (r->queue_tail != NULL)
            r->queue_tail->next = tail;
        else
            r->queue = tail;
        r->queue_tail = tail;
    }
    batch_put(r, tail, origin, argc, argv);
}

/* Before everything that waits, by its own. */
static void queue_add_first(struct replica *r, struct origin origin, uint32_t argc, const struct slice *argv) {
    struct queued_batch *head = queued_batch_new(r);
    head->next = r->queue;
    r->queue = head;
    if (r->queue_tail == NULL) r->queue_tail = head;
    batch_put(r, head, origin, argc, argv);
}

/* Internal commands of the leader: nobody waits for them. */
static void queue_internal(struct replica *r, uint32_t argc, const struct slice *argv) {
    queue_add(r, ORIGIN_NONE, argc, argv);
    r->all_mark = r->queued_writes;
}

static void queue_reply(struct replica *r, struct origin origin, struct slice reply) {
    const struct slice argv[] = {slice_str("%REPLY"), reply};
    queue_add(r, origin, 2, argv);
}

static void script_add(struct replica *r, struct origin origin, const struct command *command, uint32_t argc,
                       const struct slice *argv) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < argc; i++) bytes += argv[i].bytes;
    struct script_job *job = alloc_get(r->config.alloc, sizeof *job + argc * sizeof argv[0] + bytes);
    memset(job, 0, sizeof *job);
    job->origin = origin;
    job->command = command;
    job->wait_for = r->queued_writes;
    job->argc = argc;
    char *text = (char *)&job->argv[argc];
    for (uint32_t i = 0; i < argc; i++) {
        job->argv[i] = slice_of(text, argv[i].bytes);
        if (argv[i].bytes > 0) memcpy(text, argv[i].data, argv[i].bytes);
        text += argv[i].bytes;
    }
    DL_APPEND(r->scripts, job);
}

/* Take a write of some origin into the order of the log.  Each (origin, boot) is taken in sequence, once (N). */
static void take_write(struct replica *r, struct origin origin, uint64_t after, uint32_t argc,
                       const struct slice *argv) {
    if (r->taken[origin.node].boot != origin.boot) {
        r->taken[origin.node].boot = origin.boot;
        r->taken[origin.node].seq = 0;
    }
    if (origin.seq <= r->taken[origin.node].seq) return; /* a repeat: taken already */
    if (after > r->taken[origin.node].seq) return;       /* a gap: the origin will say all of it again */
    if (r->queue_bytes > r->config.queue_bytes_max) {    /* as if it were lost: said again, when there may be room */
        r->own_refused = r->own_refused || origin.node == r->config.node;
        return;
    }
    const struct command *command = command_find(argv[0], true);
    buf_clear(&r->reply);
    const bool own = command != NULL && command->class == COMMAND_INTERNAL;
    if (own ? command->id != CMD_X_DEQUEUE || argc != 5
            : command_check(argc, argv, (uint32_t)keyspace_settings(r->ks)->key_bytes_max, &r->reply) == NULL)
        command = NULL; /* another version's command, or not a lockd */
    if (command != NULL && command->class != COMMAND_SCRIPT &&
        queued_bytes(argc, argv) > r->config.batch_bytes_max - BATCH_ROOM) {
        resp_error(&r->reply, "ERR the command is too long for the leader's batch-bytes-max, %u",
                   r->config.batch_bytes_max);
        command = NULL;
    }
    r->taken[origin.node].seq = origin.seq;
    if (command == NULL) {
        if (r->reply.bytes == 0) resp_error(&r->reply, "ERR the leader does not know this command");
        queue_reply(r, origin, buf_slice(&r->reply));
        return;
    }
    if (command->class == COMMAND_SCRIPT) {
        script_add(r, origin, command, argc, argv);
        return;
    }
    queue_add(r, origin, argc, argv);
    if (command->first_key != 0)
        command_keys(command, argc, argv, mark_key, r);
    else
        r->all_mark = r->queued_writes;
}

/* ---- the leader's half: scripts ---- */

struct key_wait {
    struct replica *r;
    bool busy;
};

static void key_is_busy(void *context, struct slice key) {
    struct key_wait *wait = context;
    if (*key_mark(wait->r, key) > wait->r->applied_writes) wait->busy = true;
}

static void script_end(struct replica *r, struct script_job *job) {
    DL_DELETE(r->scripts, job);
    alloc_put(r->config.alloc, job);
}

/* Its entry goes to the head of the queue, and all that wait there move up by one. */
static void script_first(struct replica *r, struct script_job *job, const struct ks_effects *effects) {
    struct script_job *other;
    queue_add_first(r, job->origin, effects->argc, effects->argv);
    DL_FOREACH(r->scripts, other) {
        if (other->proposed) other->write++;
    }
    job->write = r->applied_writes + 1;
}

static bool script_is_busy(struct replica *r, const struct script_job *job) {
    struct key_wait wait = {.r = r, .busy = r->all_mark > r->applied_writes};
    if (!wait.busy) command_keys(job->command, job->argc, job->argv, key_is_busy, &wait);
    return wait.busy;
}

/* A script runs when nothing in flight touches its keys; but it waits only for what was before it, or a stream of
 * writes would keep it out for ever.  What comes in between may void it.  After SCRIPT_PATIENCE tries nothing may: the
 * pipeline drains and the script goes first.  The waiting spares work; what is right is judged at apply. */
static void scripts_run(struct replica *r, uint64_t now_ms) {
    struct script_job *job, *next;
    uint64_t before = 0; /* the last write of an earlier script */
    bool drained = r->applied_writes == r->proposed_writes;
    r->draining = false;
    DL_FOREACH_SAFE(r->scripts, job, next) {
        if (job->proposed) {
            if (job->write > before) before = job->write;
            continue;
        }
        const bool busy = script_is_busy(r, job);
        const bool first = busy && job->tries >= SCRIPT_PATIENCE;
        if (first && !drained) {
            r->draining = true;
            continue;
        }
        if (busy && !first && (r->applied_writes < job->wait_for || r->applied_writes < before)) continue;
        if (job->tries++ == SCRIPT_TRIES_MAX) {
            buf_clear(&r->reply);
            resp_error(&r->reply, "BUSY the keys this script reads change too fast; it did not run");
            queue_reply(r, job->origin, buf_slice(&r->reply));
            script_end(r, job);
            continue;
        }
        struct ks_effects effects = {.bytes = {.alloc = r->config.alloc}};
        uint64_t stamp_ms = 0;
        switch (keyspace_script(r->ks, cluster_now(r, now_ms), job->argc, job->argv, &effects, &stamp_ms)) {
        case KS_SCRIPT_NEEDS_STAMP:
            job->tries--;
            if (stamp_ms > r->need_stamp_ms) r->need_stamp_ms = stamp_ms;
            break;
        case KS_SCRIPT_REFUSED:
            queue_reply(r, job->origin, buf_slice(&effects.bytes));
            script_end(r, job);
            break;
        case KS_SCRIPT_PROPOSE:
            if (effects.bytes.bytes + 8u * effects.argc + 128 > r->config.batch_bytes_max ||
                effects.argc > BATCH_ARGC_MAX) {
                buf_clear(&r->reply);
                resp_error(&r->reply, "ERR the effects of this script are too large: %zu bytes; it did not run",
                           effects.bytes.bytes);
                queue_reply(r, job->origin, buf_slice(&r->reply));
                script_end(r, job);
                break;
            }
            if (first) {
                script_first(r, job, &effects);
                drained = false;
            } else {
                queue_add(r, job->origin, effects.argc, effects.argv);
                job->write = r->queued_writes;
            }
            job->proposed = true;
            before = job->write > before ? job->write : before;
            command_keys(job->command, job->argc, job->argv, mark_key, r);
            break;
        }
        ks_effects_release(&effects);
    }
}

static void script_void(struct replica *r, struct origin origin) {
    struct script_job *job;
    DL_FOREACH(r->scripts, job) {
        if (origin_equal(job->origin, origin)) {
            job->proposed = false;
            job->wait_for = r->queued_writes;
            return;
        }
    }
}

static void scripts_end(struct replica *r) {
    struct script_job *job, *next;
    DL_FOREACH_SAFE(r->scripts, job, next) {
        if (job->proposed && job->write <= r->applied_writes) script_end(r, job);
    }
}

/* ---- the leader's half: reads and leader's commands ---- */

static void ask_free(struct replica *r, struct ask *ask) {
    if (ask->park == ASK_NEXT)
        HASH_DEL(r->held_nexts, ask);
    else
        DL_DELETE(r->asks, ask);
    alloc_put(r->config.alloc, ask);
}

static void ask_answer(struct replica *r, struct ask *ask, struct slice reply, bool leased) {
    const struct origin origin = ask->origin;
    ask_free(r, ask);
    if (origin.node == r->config.node) {
        router_read_reply(r->router, origin.seq, reply, leased);
        return;
    }
    const struct frame frame = {.kind = FRAME_ANSWER,
                                .answer = {.kind = ANSWER_REPLY,
                                           .of = FORWARD_READ,
                                           .ballot = r->ballot,
                                           .boot = origin.boot,
                                           .seq = origin.seq,
                                           .reply = reply}};
    send_frame(r, origin.node, &frame);
}

static void ask_error(struct replica *r, struct ask *ask, const char *text) {
    struct buf b = {.alloc = r->config.alloc};
    resp_error(&b, "%s", text);
    ask_answer(r, ask, buf_slice(&b), true);
    buf_release(&b);
}

static void ask_park_round(struct replica *r, uint64_t now_ms, struct ask *ask) {
    if (r->round_now == 0) r->round_now = paxos_confirm(r->paxos, now_ms);
    ask->park = ASK_ROUND;
    ask->round = r->round_now;
}

static void ask_keepalive(struct replica *r, uint64_t now_ms, struct ask *ask) {
    struct buf b = {.alloc = r->config.alloc};
    resp_array(&b, ask->argc - 1);
    for (uint32_t i = 1; i < ask->argc; i++) {
        uint64_t id, ttl_ms = 0;
        if (!slice_to_u64(ask->argv[i], &id)) {
            buf_release(&b);
            ask_error(r, ask, "ERR id is not an integer or out of range");
            return;
        }
        switch (keeper_renew(r->keeper, now_ms, id, &ttl_ms)) {
        case KEEPER_KEPT: resp_integer(&b, (int64_t)ttl_ms); break;
        case KEEPER_GONE: resp_integer(&b, -1); break;
        case KEEPER_PARKED: /* L3: the outcome of the expiry answers it */
            buf_release(&b);
            ask->park = ASK_EXPIRING;
            return;
        }
    }
    ask_answer(r, ask, buf_slice(&b), true);
    buf_release(&b);
}

static void ask_lease_info(struct replica *r, uint64_t now_ms, struct ask *ask) {
    uint64_t id;
    if (!slice_to_u64(ask->argv[1], &id)) {
        ask_error(r, ask, "ERR id is not an integer or out of range");
        return;
    }
    struct buf b = {.alloc = r->config.alloc};
    keyspace_lease_info(r->ks, id, keeper_remaining(r->keeper, now_ms, id), &b);
    ask_answer(r, ask, buf_slice(&b), true);
    buf_release(&b);
}

/* Answer the NEXT that is held for this lease if there is something to say, or if it is due. */
static void next_answer(struct replica *r, uint64_t lease, bool due) {
    const uint64_t handle = keeper_next_held(r->keeper, lease);
    struct ask *ask = NULL;
    if (handle != 0) HASH_FIND(hh, r->held_nexts, &handle, sizeof handle, ask);
    if (ask == NULL) return;
    uint64_t ttl_ms, acknowledged = 0;
    if (!keyspace_lease(r->ks, lease, &ttl_ms)) {
        keeper_next_forget(r->keeper, lease);
        ask_error(r, ask, "NOLEASE that lease is gone");
        return;
    }
    must(slice_to_u64(ask->argv[3], &acknowledged));
    struct buf moves = {.alloc = r->config.alloc};
    uint64_t serial = acknowledged;
    const uint32_t count = route_revocations(keyspace_route(r->ks), lease, &moves, &serial);
    if (serial > acknowledged || due) {
        struct buf b = {.alloc = r->config.alloc};
        resp_array(&b, 2 + 3 * count);
        resp_integer(&b, (int64_t)ttl_ms);
        resp_integer(&b, (int64_t)serial);
        buf_append_slice(&b, buf_slice(&moves));
        keeper_next_answered(r->keeper, lease, ask->arrival_ms);
        ask_answer(r, ask, buf_slice(&b), true);
        buf_release(&b);
    }
    buf_release(&moves);
}

static void ask_next(struct replica *r, uint64_t now_ms, struct ask *ask) {
    uint64_t lease, serial, ttl_ms;
    if (!slice_is_word(ask->argv[1], "LEASE")) {
        ask_error(r, ask, "ERR syntax error: expected LEASE");
        return;
    }
    if (!slice_to_u64(ask->argv[2], &lease) || !slice_to_u64(ask->argv[3], &serial)) {
        ask_error(r, ask, "ERR id and serial are integers");
        return;
    }
    switch (keeper_renew(r->keeper, now_ms, lease, &ttl_ms)) {
    case KEEPER_GONE: ask_error(r, ask, "NOLEASE that lease is gone"); return;
    case KEEPER_PARKED: ask->park = ASK_EXPIRING; return;
    case KEEPER_KEPT: break;
    }
    const struct route *route = keyspace_route(r->ks);
    if (!route_joined(route, lease) && keeper_join_once(r->keeper, lease)) {
        const struct slice argv[] = {slice_str("%ROUTE_JOIN"), ask->argv[2]};
        queue_internal(r, 2, argv);
    }
    if (serial > keyspace_revision(r->ks)) {
        ask_error(r, ask, "ERR serial is higher than any this cluster gave out");
        return;
    }
    if (route_ack_pending(route, lease, serial) && keeper_ack_once(r->keeper, lease, serial)) {
        const struct slice argv[] = {slice_str("%ROUTE_ACK"), ask->argv[2], ask->argv[3]};
        queue_internal(r, 3, argv);
    }
    DL_DELETE(r->asks, ask);
    ask->park = ASK_NEXT;
    HASH_ADD(hh, r->held_nexts, handle, sizeof ask->handle, ask);
    uint64_t replaced_handle;
    keeper_next_hold(r->keeper, now_ms, lease, ask->handle, &replaced_handle);
    struct ask *replaced = NULL;
    if (replaced_handle != 0) HASH_FIND(hh, r->held_nexts, &replaced_handle, sizeof replaced_handle, replaced);
    if (replaced != NULL) {
        if (origin_equal(replaced->origin, ask->origin))
            ask_free(r, replaced); /* the same call, asked again after a lost link */
        else
            ask_error(r, replaced, "ERR a newer ROUTE.NEXT of the same lease took its place");
    }
    next_answer(r, lease, !keeper_next_known(r->keeper, lease));
}

/* Answer it, or park it. */
static void ask_run(struct replica *r, uint64_t now_ms, struct ask *ask) {
    const bool leased = paxos_lease_good(r->paxos, now_ms);
    const bool confirmed = ask->park == ASK_ROUND && paxos_confirmed(r->paxos) >= ask->round;
    const bool read = ask->command->class == COMMAND_READ;
    if (!leased && !(confirmed && read)) {
        /* Only a good lease may acknowledge a renewal (L2); a read is also good after a fresh round (P8). */
        ask_park_round(r, now_ms, ask);
        return;
    }
    if (!read) {
        switch (ask->command->id) {
        case CMD_LEASE_KEEPALIVE: ask_keepalive(r, now_ms, ask); break;
        case CMD_LEASE_INFO: ask_lease_info(r, now_ms, ask); break;
        case CMD_ROUTE_NEXT: ask_next(r, now_ms, ask); break;
        default: must(false); /* ask_new admits no other */
        }
        return;
    }
    struct buf b = {.alloc = r->config.alloc};
    uint64_t stamp_ms = 0;
    if (keyspace_read(r->ks, cluster_now(r, now_ms), ask->argc, ask->argv, &b, &stamp_ms) == KS_READ_DONE) {
        ask_answer(r, ask, buf_slice(&b), leased);
    } else {
        ask->park = ASK_STAMP;
        ask->stamp_ms = stamp_ms;
        if (stamp_ms > r->need_stamp_ms) r->need_stamp_ms = stamp_ms;
    }
    buf_release(&b);
}

static void ask_new(struct replica *r, uint64_t now_ms, struct origin origin, uint32_t argc, const struct slice *argv) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < argc; i++) bytes += argv[i].bytes;
    struct ask *ask = alloc_get(r->config.alloc, sizeof *ask + argc * sizeof argv[0] + bytes);
    memset(ask, 0, sizeof *ask);
    ask->handle = ++r->next_handle;
    ask->origin = origin;
    ask->arrival_ms = now_ms;
    ask->argc = argc;
    char *text = (char *)&ask->argv[argc];
    for (uint32_t i = 0; i < argc; i++) {
        ask->argv[i] = slice_of(text, argv[i].bytes);
        if (argv[i].bytes > 0) memcpy(text, argv[i].data, argv[i].bytes);
        text += argv[i].bytes;
    }
    DL_APPEND(r->asks, ask);
    buf_clear(&r->reply);
    ask->command = command_check(argc, argv, (uint32_t)keyspace_settings(r->ks)->key_bytes_max, &r->reply);
    const bool known =
        ask->command != NULL && (ask->command->class == COMMAND_READ || ask->command->class == COMMAND_LEADER);
    if (!known) {
        ask_error(r, ask, "ERR the leader does not know this command");
        return;
    }
    ask_run(r, now_ms, ask);
}

static void asks_run(struct replica *r, uint64_t now_ms) {
    struct ask *ask, *next;
    DL_FOREACH_SAFE(r->asks, ask, next) {
        if (ask->park == ASK_ROUND && (paxos_confirmed(r->paxos) >= ask->round || paxos_lease_good(r->paxos, now_ms)))
            ask_run(r, now_ms, ask);
        else if (ask->park == ASK_STAMP && keyspace_stamp(r->ks) >= ask->stamp_ms)
            ask_run(r, now_ms, ask);
    }
}

static void asks_run_expiring(struct replica *r, uint64_t now_ms) {
    struct ask *ask, *next;
    DL_FOREACH_SAFE(r->asks, ask, next) {
        if (ask->park == ASK_EXPIRING) ask_run(r, now_ms, ask);
    }
}

/* ---- the leader's half: begin and end ---- */

static void drop_leader_half(struct replica *r) {
    while (r->queue != NULL) {
        struct queued_batch *batch = r->queue;
        r->queue = batch->next;
        buf_release(&batch->value);
        alloc_put(r->config.alloc, batch);
    }
    r->queue_tail = NULL;
    r->queue_bytes = 0;
    r->own_refused = r->draining = false;
    struct script_job *job, *next_job;
    DL_FOREACH_SAFE(r->scripts, job, next_job) script_end(r, job);
    struct ask *ask, *next_ask;
    DL_FOREACH_SAFE(r->asks, ask, next_ask) ask_free(r, ask);
    HASH_ITER(hh, r->held_nexts, ask, next_ask) ask_free(r, ask);
    keeper_stop(r->keeper);
    r->queued_writes = r->proposed_writes = r->applied_writes = r->all_mark = 0;
    memset(r->key_marks, 0, sizeof r->key_marks);
    r->need_stamp_ms = 0;
}

static void stop_serving(struct replica *r) {
    r->serving = r->first_out = false;
    drop_leader_half(r);
    router_reads_again(r->router);
    note(r, 'i', "replica deposed node=%u ballot=%llu.%u", r->config.node + 1u, (unsigned long long)r->ballot.round,
         r->ballot.node + 1u);
}

/* P9: with all older slots settled and applied, our first entry goes before everything else. */
static void propose_first(struct replica *r, uint64_t now_ms) {
    r->ballot = paxos_ballot(r->paxos);
    r->base_stamp_ms = keyspace_stamp(r->ks); /* T2: once per ballot */
    r->base_ms = now_ms;
    struct buf value = {.alloc = r->config.alloc};
    batch_begin(&value, r->ballot, true, cluster_now(r, now_ms));
    if (!keyspace_has_settings(r->ks)) {
        struct slice argv[64];
        char numbers[32][24];
        uint32_t argc = 0, count = 0;
        argv[argc++] = slice_str("%SETTINGS");
#define SETTING(name, value, low, high, unit, text)                                                                    \
    snprintf(numbers[count], sizeof numbers[0], "%llu", (unsigned long long)r->config.settings.name);                  \
    argv[argc++] = slice_str(#name);                                                                                   \
    argv[argc++] = slice_str(numbers[count++]);
        KEYSPACE_SETTINGS(SETTING)
#undef SETTING
        batch_add(&value, ORIGIN_NONE, argc, argv);
    }
    const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = buf_slice(&value)};
    r->first_out = paxos_step(r->paxos, &in) == PAXOS_TAKEN;
    r->stamp_out_ms = cluster_now(r, now_ms);
    buf_release(&value);
}

static void start_serving(struct replica *r, uint64_t now_ms) {
    r->serving = true;
    r->serving_since_ms = now_ms;
    r->origin_look_ms = now_ms;
    memset(r->taken, 0, sizeof r->taken);
    keeper_lead(r->keeper, now_ms, r->ks);
    note(r, 'i', "replica leader node=%u ballot=%llu.%u revision=%llu", r->config.node + 1u,
         (unsigned long long)r->ballot.round, r->ballot.node + 1u, (unsigned long long)keyspace_revision(r->ks));
}

static bool still_leading(const struct replica *r) {
    return paxos_role(r->paxos) == PAXOS_LEADING && ballot_equal(paxos_ballot(r->paxos), r->ballot);
}

/* ---- applying ---- */

struct next_check {
    struct replica *r;
    uint64_t now_ms;
};

static void next_check_holder(void *context, uint64_t asked, uint64_t lease) {
    (void)asked;
    const struct next_check *check = context;
    if (paxos_lease_good(check->r->paxos, check->now_ms)) next_answer(check->r, lease, false);
}

static void apply_fact(struct replica *r, uint64_t now_ms, const struct ks_fact *fact, bool *lease_gone) {
    switch (fact->kind) {
    case KS_REPLY: router_write_reply(r->router, fact->origin.seq, fact->reply); return;
    case KS_QUEUED: router_write_queued(r->router, now_ms, fact->origin.seq); return;
    case KS_FIRST:
        router_first(r->router, fact->ballot);
        if (r->first_out && !r->serving && still_leading(r) && ballot_equal(fact->ballot, r->ballot))
            start_serving(r, now_ms);
        else if (fact->ballot.node != r->config.node)
            note(r, 'i', "replica follower node=%u leader=%u ballot=%llu.%u", r->config.node + 1u,
                 fact->ballot.node + 1u, (unsigned long long)fact->ballot.round, fact->ballot.node + 1u);
        return;
    case KS_SCRIPT_VOID:
        if (r->serving) script_void(r, fact->origin);
        return;
    case KS_LEASE_GONE:
        if (!r->serving) return;
        next_answer(r, fact->id, true);
        keeper_fact(r->keeper, now_ms, r->ks, fact);
        *lease_gone = true;
        return;
    case KS_MOVE_ASKED: {
        if (!r->serving) return;
        keeper_fact(r->keeper, now_ms, r->ks, fact); /* limits first: an answer given now covers this move no more */
        struct next_check check = {.r = r, .now_ms = now_ms};
        route_each_holder(keyspace_route(r->ks), fact->id, next_check_holder, &check);
        return;
    }
    case KS_LEASE_NEW:
    case KS_MOVE_DONE:
        if (r->serving) keeper_fact(r->keeper, now_ms, r->ks, fact);
        return;
    }
}

static void apply(struct replica *r, uint64_t now_ms, const struct paxos_entry *entry) {
    struct wire w;
    struct batch_head head = {0};
    const bool own = r->serving && entry->value.bytes > 0 && batch_read(&w, entry->value, &head) &&
                     ballot_equal(head.ballot, r->ballot);
    struct ks_facts facts;
    keyspace_apply(r->ks, entry->slot, entry->value, &facts);
    bool lease_gone = false;
    for (uint32_t i = 0; i < facts.count; i++) apply_fact(r, now_ms, &facts.facts[i], &lease_gone);
    if (own) {
        r->applied_writes += head.count;
        scripts_end(r);
    }
    if (lease_gone) asks_run_expiring(r, now_ms);
}

/* ---- frames in ---- */

static void refuse(struct replica *r, uint16_t peer, const struct forward *forward) {
    const struct frame frame = {.kind = FRAME_ANSWER,
                                .answer = {.kind = ANSWER_REFUSED,
                                           .of = forward->kind,
                                           .ballot = forward->ballot,
                                           .boot = forward->boot,
                                           .seq = forward->seq}};
    send_frame(r, peer, &frame);
}

void replica_frame(struct replica *r, uint64_t now_ms, uint16_t peer, uint64_t peer_boot, const struct frame *frame) {
    if (peer >= r->config.node_count || peer == r->config.node) return;
    if (frame->kind == FRAME_IDENTITY) {
        identity_frame(r, now_ms, peer, peer_boot, &frame->identity);
        return;
    }
    if (r->paxos == NULL || !identity_admitted(&r->identity, peer) || r->admitted_boot[peer] != peer_boot) return;
    r->heard_ms[peer] = now_ms;
    switch (frame->kind) {
    case FRAME_PAXOS: {
        if (frame->paxos.from != peer || frame->paxos.to != r->config.node) return;
        const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_MESSAGE, .message = &frame->paxos};
        if (paxos_step(r->paxos, &in) == PAXOS_IGNORED) return;
        return;
    }
    case FRAME_FORWARD: {
        const struct forward *f = &frame->forward;
        if (f->boot != peer_boot) return;
        if (!r->serving || !still_leading(r) || !ballot_equal(f->ballot, r->ballot)) {
            refuse(r, peer, f);
            return;
        }
        const struct origin origin = {.node = peer, .boot = f->boot, .seq = f->seq};
        if (f->kind == FORWARD_WRITE)
            take_write(r, origin, f->after, f->argc, f->argv);
        else
            ask_new(r, now_ms, origin, f->argc, f->argv);
        return;
    }
    case FRAME_ANSWER: {
        const struct answer *a = &frame->answer;
        if (a->boot != r->config.boot_id || !ballot_equal(a->ballot, r->target)) return;
        if (a->kind == ANSWER_REPLY && a->of == FORWARD_READ) router_read_reply(r->router, a->seq, a->reply, false);
        if (a->kind != ANSWER_REFUSED) return;
        r->read_refused = r->read_refused || a->of == FORWARD_READ;
        if (r->resend_ms > now_ms + REFUSED_MS) r->resend_ms = now_ms + REFUSED_MS;
        return;
    }
    default: return;
    }
}

void replica_link_up(struct replica *r, uint64_t now_ms, uint16_t peer) {
    if (peer >= r->config.node_count || peer == r->config.node) return;
    r->link_up[peer] = true;
    r->question_ms = now_ms; /* also to peers we have admitted: they may not have admitted us */
    identity_link_lost(&r->identity, peer);
    if (r->target.round > 0 && r->target.node == peer) {
        router_writes_again(r->router);
        router_reads_again(r->router);
    }
}

void replica_link_lost(struct replica *r, uint64_t now_ms, uint16_t peer) {
    (void)now_ms;
    if (peer < r->config.node_count) r->link_up[peer] = false;
}

/* ---- the origin's half ---- */

static void router_call_out(void *context, const struct router_call *call) {
    struct replica *r = context;
    if (r->target.node == r->config.node) {
        const struct origin origin = {.node = r->config.node, .boot = r->config.boot_id, .seq = call->seq};
        if (call->write)
            take_write(r, origin, call->after, call->argc, call->argv);
        else
            ask_new(r, r->turn_ms, origin, call->argc, call->argv);
        return;
    }
    const struct frame frame = {.kind = FRAME_FORWARD,
                                .forward = {.kind = call->write ? FORWARD_WRITE : FORWARD_READ,
                                            .ballot = r->target,
                                            .boot = r->config.boot_id,
                                            .seq = call->seq,
                                            .after = call->after,
                                            .argc = call->argc,
                                            .argv = call->argv}};
    send_frame(r, r->target.node, &frame);
}

/* Who gets our clients' commands (R3). */
static void choose_target(struct replica *r, uint64_t now_ms) {
    struct ballot target = {0}, leader;
    if (r->serving) {
        target = r->ballot;
    } else if (leader_index(r, now_ms, &leader) >= 0 && leader.node != r->config.node &&
               leader.node < r->config.node_count && r->link_up[leader.node] &&
               ballot_equal(leader, keyspace_ballot(r->ks))) {
        target = leader;
    }
    if (ballot_equal(target, r->target)) return;
    r->target = target;
    r->resend_ms = now_ms + RESEND_MS;
    router_reads_again(r->router);
    router_writes_again(r->router);
}

/* ---- the turn ---- */

static void propose(struct replica *r, uint64_t now_ms) {
    const uint64_t stamp_ms = cluster_now(r, now_ms), due_ms = keyspace_next_due(r->ks);
    const bool due = (due_ms <= stamp_ms && r->stamp_out_ms < due_ms) || r->stamp_out_ms < r->need_stamp_ms;
    if (r->draining) return;
    if (r->queue == NULL && due) r->queue = r->queue_tail = queued_batch_new(r);
    while (r->queue != NULL && paxos_room(r->paxos) > 0) {
        struct queued_batch *batch = r->queue;
        batch_set_stamp(&batch->value, stamp_ms);
        const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = buf_slice(&batch->value)};
        if (paxos_step(r->paxos, &in) != PAXOS_TAKEN) return;
        r->stamp_out_ms = stamp_ms;
        r->proposed_writes += batch_count(&batch->value);
        r->queue_bytes -= batch->value.bytes;
        r->queue = batch->next;
        if (r->queue == NULL) r->queue_tail = NULL;
        if (r->spare == NULL) {
            r->spare = batch;
        } else {
            buf_release(&batch->value);
            alloc_put(r->config.alloc, batch);
        }
    }
}

static char *number_text(char *text, uint64_t value) {
    snprintf(text, 24, "%llu", (unsigned long long)value);
    return text;
}

static void keeper_turn(struct replica *r, uint64_t now_ms) {
    if (keeper_wake_at(r->keeper) > now_ms) return;
    struct keeper_due due;
    keeper_due(r->keeper, now_ms, &due);
    struct slice argv[1 + 2 * KEEPER_DUE_MAX];
    char numbers[2 * KEEPER_DUE_MAX][24];
    if (due.expired_count > 0) {
        argv[0] = slice_str("%EXPIRE");
        for (uint32_t i = 0; i < due.expired_count; i++)
            argv[1 + i] = slice_str(number_text(numbers[i], due.expired[i]));
        queue_internal(r, 1 + due.expired_count, argv);
    }
    if (due.passed_count > 0) {
        argv[0] = slice_str("%ROUTE_PASSED");
        for (uint32_t i = 0; i < due.passed_count; i++) {
            argv[1 + 2 * i] = slice_str(number_text(numbers[2 * i], due.passed[i].asked));
            argv[2 + 2 * i] = slice_str(number_text(numbers[2 * i + 1], due.passed[i].lease));
        }
        queue_internal(r, 1 + 2 * due.passed_count, argv);
    }
    const bool leased = paxos_lease_good(r->paxos, now_ms);
    for (uint32_t i = 0; i < due.next_count; i++) {
        const uint64_t handle = keeper_next_held(r->keeper, due.next[i]);
        if (leased) {
            next_answer(r, due.next[i], true);
        } else if (handle != 0) { /* covers nobody now: it waits for a round like any other */
            struct ask *ask;
            HASH_FIND(hh, r->held_nexts, &handle, sizeof handle, ask);
            keeper_next_forget(r->keeper, due.next[i]);
            if (ask == NULL) continue;
            HASH_DEL(r->held_nexts, ask);
            DL_APPEND(r->asks, ask);
            ask_park_round(r, now_ms, ask);
        }
    }
}

static void attachment_look(void *context, uint16_t node, uint64_t boot) {
    const struct next_check *look = context;
    struct replica *r = look->r;
    if (node >= r->config.node_count) return;
    const bool own = node == r->config.node;
    const uint64_t boot_now = own ? r->config.boot_id : r->admitted_boot[node];
    if (own && boot == boot_now) return;
    const bool same_life = boot_now == 0 || boot == boot_now;
    /* From a life that is over nothing was heard since the next one was; its clients have had as long to come back. */
    uint64_t heard_ms = own ? 0 : same_life ? r->heard_ms[node] : r->admitted_ms[node];
    if (heard_ms < r->serving_since_ms) heard_ms = r->serving_since_ms;
    if (look->now_ms < heard_ms + r->config.reattach_ms) return;
    char numbers[2][24];
    const struct slice argv[] = {slice_str("%ORIGIN_GONE"), slice_str(number_text(numbers[0], node)),
                                 slice_str(number_text(numbers[1], boot))};
    queue_internal(r, 3, argv);
}

static void leader_turn(struct replica *r, uint64_t now_ms) {
    keeper_turn(r, now_ms);
    if (now_ms >= r->origin_look_ms) {
        r->origin_look_ms = now_ms + ORIGIN_LOOK_MS;
        struct next_check look = {.r = r, .now_ms = now_ms};
        keyspace_each_attachment(r->ks, attachment_look, &look);
    }
    asks_run(r, now_ms);
    scripts_run(r, now_ms);
    propose(r, now_ms);
}

/* Collect what Paxos wants done.  True: there was something. */
static bool paxos_work(struct replica *r, uint64_t now_ms) {
    struct paxos_output out;
    if (!paxos_take(r->paxos, &out)) return false;
    if (out.batch != 0) save(r, &out, NULL);
    for (uint32_t i = 0; i < out.send_now_count; i++) send_paxos(r, &out.sends_now[i]);
    for (uint32_t i = 0; i < out.send_after_count; i++) send_paxos_after(r, &out.sends_after[i]);
    for (uint32_t i = 0; i < out.fetch_count; i++)
        r->sink.fetch(r->sink.context, out.fetches[i].to, out.fetches[i].from_slot, out.fetches[i].to_slot);
    for (uint32_t i = 0; i < out.apply_count; i++) apply(r, now_ms, &out.applies[i]);
    return true;
}

static void paxos_turn(struct replica *r, uint64_t now_ms) {
    const struct paxos_input tick = {.now_ms = now_ms, .kind = PAXOS_TICK};
    must(paxos_step(r->paxos, &tick) == PAXOS_TAKEN);
    for (;;) {
        while (paxos_work(r, now_ms)) {
        }
        if ((r->serving || r->first_out) && !still_leading(r)) {
            if (r->serving) stop_serving(r);
            r->first_out = false;
        }
        if (!r->first_out && paxos_role(r->paxos) == PAXOS_LEADING && paxos_room(r->paxos) > 0)
            propose_first(r, now_ms);
        choose_target(r, now_ms);
        if (r->target.round > 0 && r->target.node != r->config.node && now_ms >= r->resend_ms) {
            r->resend_ms = now_ms + RESEND_MS;
            router_writes_again(r->router);
            if (r->read_refused) router_reads_again(r->router);
            r->read_refused = false;
        }
        router_pump(r->router, now_ms, r->target.round > 0 ? &r->target : NULL);
        if (r->serving) leader_turn(r, now_ms);
        if (r->own_refused && r->queue_bytes < r->config.queue_bytes_max / 2) {
            r->own_refused = false;
            router_writes_again(r->router);
        }
        if (!paxos_work(r, now_ms)) return;
    }
}

uint64_t replica_turn(struct replica *r, uint64_t now_ms) {
    r->turn_ms = now_ms;
    release_held(r);
    identity_turn(r, now_ms);
    if (r->paxos != NULL) paxos_turn(r, now_ms);
    router_expire(r->router, now_ms);
    router_flush(r->router);
    r->round_now = 0; /* it has left: who asks between two turns asks after it */

    uint64_t wake_ms = router_wake_at(r->router);
    if (r->paxos == NULL || r->question_ms > now_ms) {
        if (r->question_ms < wake_ms) wake_ms = r->question_ms;
    }
    if (r->paxos != NULL) {
        struct paxos_output out;
        must(!paxos_take(r->paxos, &out));
        if (out.wake_at_ms < wake_ms) wake_ms = out.wake_at_ms;
        const bool remote = r->target.round > 0 && r->target.node != r->config.node;
        if (remote && r->resend_ms < wake_ms) wake_ms = r->resend_ms;
    }
    if (r->serving) {
        if (keeper_wake_at(r->keeper) < wake_ms) wake_ms = keeper_wake_at(r->keeper);
        if (r->origin_look_ms < wake_ms) wake_ms = r->origin_look_ms;
        const uint64_t due_ms = keyspace_next_due(r->ks);
        if (due_ms != UINT64_MAX && r->stamp_out_ms < due_ms) {
            const uint64_t at_ms = due_ms > r->base_stamp_ms ? r->base_ms + (due_ms - r->base_stamp_ms) : now_ms;
            if (at_ms < wake_ms) wake_ms = at_ms;
        }
    }
    return wake_ms > now_ms ? wake_ms : now_ms + 1;
}

bool replica_reads_hold(const struct replica *r, uint64_t now_ms) {
    return r->serving && paxos_lease_good(r->paxos, now_ms);
}

const char *replica_halt_reason(const struct replica *r) {
    return r->paxos != NULL ? paxos_halt_reason(r->paxos) : NULL;
}

bool replica_is_leader(const struct replica *r) {
    return r->serving;
}

enum identity_state replica_identity(const struct replica *r) {
    return r->identity.state;
}

struct keyspace *replica_keyspace(struct replica *r) {
    return r->ks;
}

const struct paxos *replica_paxos(const struct replica *r) {
    return r->paxos;
}
