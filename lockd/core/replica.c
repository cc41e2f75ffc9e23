/* replica.c - see replica.h.  The parts and how a command passes through them:
 *
 *   client -> router (order, sequence) -> call() --- we serve? ---> lead_take() -> queue -> propose() -> paxos
 *                                             `---- else FORWARD frame ---> the leader's lead_take() / ask_new()
 *   paxos applies -> keyspace -> facts -> router (replies), keeper (deadlines), scripts (void: again)
 */
#include <stdarg.h>
#include <stdio.h>
#include "lockd/core/local.h"
#include "lockd/core/bug.h"
#include "lockd/core/replica_state.h"
#include "lockd/core/resp.h"

enum {
    QUESTION_MS = 500,     /* identity questions while somebody is not admitted */
    QUESTION_SOON_MS = 20, /* to one who has just asked us: not more often than this */
    RESEND_MS = 1000,      /* writes that are out at a remote leader are said again */
    REFUSED_MS = 50,       /* and after a refusal */
    HELD_BYTES_MAX = 128 << 20,
    BACKLOG_BYTES_MAX = 16 << 20, /* on one link, before proposals to it are left out */
    CLIENT_BYTES_MAX = 64 << 20
};

void replica_note(const struct replica *r, char level, const char *format, ...) {
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
static void connection_free(struct replica *r, struct connection *c);

/* What the store gave back waits here until the log was replayed: who votes is in it. */
static void keep_saved(struct replica *r, const struct paxos_saved *saved) {
    size_t bytes = saved->accepted_count * sizeof saved->accepted[0];
    for (uint32_t i = 0; i < saved->accepted_count; i++) bytes += saved->accepted[i].value.bytes;
    r->saved = *saved;
    r->saved.accepted = NULL;
    if (saved->accepted_count == 0) return;
    struct paxos_entry *entries = alloc_get(r->config.alloc, bytes);
    char *at = (char *)&entries[saved->accepted_count];
    for (uint32_t i = 0; i < saved->accepted_count; i++) {
        const struct slice value = saved->accepted[i].value;
        entries[i] = saved->accepted[i];
        entries[i].value = slice_of(at, value.bytes);
        if (value.bytes > 0) memcpy(at, value.data, value.bytes);
        at += value.bytes;
    }
    r->saved.accepted = entries;
}

static void drop_saved(struct replica *r) {
    alloc_put(r->config.alloc, (void *)r->saved.accepted);
    r->saved = (struct paxos_saved){0};
}

static void paxos_begin(struct replica *r, uint64_t now_ms) {
    struct paxos_config config = {.alloc = r->config.alloc,
                                  .node = r->config.node,
                                  .generation = identity_generation(&r->identity),
                                  .stall_ms = r->config.stall_ms,
                                  .inflight_max = r->config.inflight_max,
                                  .value_bytes_max = r->config.batch_bytes_max,
                                  .heartbeat_ms = r->config.heartbeat_ms,
                                  .lease_ms = r->config.lease_ms,
                                  .election_spread_ms = r->config.election_spread_ms,
                                  .drift_ppm = r->config.drift_ppm,
                                  .seed = r->config.seed,
                                  .start_ms = now_ms};
    members_begin(r, &config.members);
    r->paxos = paxos_new(&config, &r->saved);
    members_begun(r, now_ms);
    if (r->disk_free != UINT64_MAX) paxos_disk_free(r->paxos, r->disk_free);
    drop_saved(r);
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
    r->disk_free = UINT64_MAX;
    saving_begin(r, saved);
    keep_saved(r, &saved->paxos);
    return r;
}

void replica_free(struct replica *r) {
    if (r == NULL) return;
    lead_drop(r);
    struct connection *c, *next_c;
    HASH_ITER(hh, r->connections, c, next_c) connection_free(r, c);
    struct transaction *t, *next_t;
    DL_FOREACH_SAFE(r->transactions, t, next_t) alloc_put(r->config.alloc, t);
    struct held_frame *h, *next_h;
    DL_FOREACH_SAFE(r->held, h, next_h) alloc_put(r->config.alloc, h);
    if (r->spare != NULL) {
        buf_release(&r->spare->value);
        alloc_put(r->config.alloc, r->spare);
    }
    saving_end(r);
    drop_saved(r);
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
    saving_applied(r, value.bytes);
}

void replica_disk_free(struct replica *r, uint64_t bytes) {
    r->disk_free = bytes;
    if (r->paxos != NULL) paxos_disk_free(r->paxos, bytes);
}

/* ---- frames and transactions out ---- */

void replica_send_frame(struct replica *r, uint16_t peer, const struct frame *frame) {
    if (peer == r->config.node || !r->link_up[peer]) return;
    buf_clear(&r->frame);
    frame_encode(frame, &r->frame);
    r->sink.send(r->sink.context, peer, buf_slice(&r->frame));
}

static void send_paxos(struct replica *r, const struct paxos_msg *msg) {
    /* A peer that takes less than we have for it costs us no memory: it catches up later, from the store (P5). */
    const bool long_one = msg->kind == PAXOS_MSG_ACCEPT && msg->entry_count > 0;
    if (long_one && r->sink.backlog != NULL && r->sink.backlog(r->sink.context, msg->to) > BACKLOG_BYTES_MAX) return;
    const struct frame frame = {.kind = FRAME_PAXOS, .paxos = *msg};
    replica_send_frame(r, msg->to, &frame);
}

static void send_paxos_after(struct replica *r, const struct paxos_msg *msg) {
    if (r->durable == r->batch || BUG(24)) {
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

void replica_save_record(struct replica *r) {
    save(r, NULL, &r->identity.record);
}

void replica_chosen_frame(const struct replica *r, uint16_t peer, const struct paxos_entry *entries, uint32_t count,
                          struct buf *out) {
    must(r->paxos != NULL); /* it is who asked for them */
    const struct frame frame = {.kind = FRAME_PAXOS,
                                .paxos = {.kind = PAXOS_MSG_CHOSEN,
                                          .from = r->config.node,
                                          .to = peer,
                                          .chosen = paxos_chosen(r->paxos),
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
        const bool joined = identity_saved(&r->identity);
        if (joined && r->paxos == NULL)
            paxos_begin(r, now_ms);
        else if (r->paxos != NULL && r->identity.state == IDENTITY_FORMED)
            /* also for who was out and in again without having noticed */
            paxos_generation(r->paxos, now_ms, identity_generation(&r->identity));
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

static void ask_identity(struct replica *r, uint64_t now_ms, uint16_t peer) {
    struct frame frame = {.kind = FRAME_IDENTITY};
    r->asked_ms[peer] = now_ms;
    identity_question(&r->identity, peer, &frame.identity);
    replica_send_frame(r, peer, &frame);
}

static void identity_turn(struct replica *r, uint64_t now_ms) {
    if (r->identity.state == IDENTITY_JOINING && identity_forms_alone(&r->identity)) save(r, NULL, &r->identity.record);
    if (r->identity.state == IDENTITY_FORMED && r->identity.saving) return;
    if (now_ms < r->question_ms) return;
    r->question_ms = now_ms + QUESTION_MS;
    struct ballot leader;
    const bool lonely = r->paxos != NULL && !r->serving && !paxos_leader(r->paxos, now_ms, &leader); /* are we out? */
    for (uint16_t peer = 0; peer < PAXOS_NODES_MAX; peer++)
        if (peer != r->config.node && r->link_up[peer] && (lonely || !identity_admitted(&r->identity, peer)))
            ask_identity(r, now_ms, peer);
}

/* Out, or in again: our clients are told, and the log says with which command it ends. */
static void identity_look(struct replica *r) {
    const bool out = r->identity.state == IDENTITY_OUTCAST;
    if (out == r->told_outcast) return;
    r->told_outcast = out;
    if (!out) {
        router_refuse(r->router, NULL);
        replica_note(r, 'i', "identity member-again store=%016llx", (unsigned long long)r->config.store_id);
        return;
    }
    const bool known = r->config.node_addresses != NULL;
    char add[128];
    snprintf(add, sizeof add, "NODE.ADD %u %s %016llx", r->config.node + 1u,
             known ? r->config.node_addresses[r->config.node] : "HOST:PORT", (unsigned long long)r->config.store_id);
    snprintf(r->refuse_text, sizeof r->refuse_text,
             "CLUSTERDOWN this node's store %016llx is not part of cluster %016llx: it does not vote or serve until %s",
             (unsigned long long)r->config.store_id, (unsigned long long)r->identity.outcast_cluster, add);
    router_refuse(r->router, r->refuse_text);
    replica_note(
        r, 'e',
        "identity outcast store=%016llx cluster=%016llx what=\"an empty, foreign or removed store met a formed "
        "cluster: it will not vote; restore its old data directory, or give this command to a member: %s (and "
        "NODE.REMOVE %u before it, if another store is node %u)\"",
        (unsigned long long)r->config.store_id, (unsigned long long)r->identity.outcast_cluster, add,
        r->config.node + 1u, r->config.node + 1u);
}

static void identity_frame(struct replica *r, uint64_t now_ms, uint16_t peer, uint64_t boot,
                           const struct identity_msg *msg) {
    bool reply = false, want_save = false;
    struct frame answer = {.kind = FRAME_IDENTITY};
    const enum identity_problem problem = identity_step(&r->identity, msg, &reply, &answer.identity, &want_save);
    if (problem == IDENTITY_OK && identity_admitted(&r->identity, peer) && r->admitted_boot[peer] != boot) {
        r->admitted_boot[peer] = boot;
        r->admitted_ms[peer] = now_ms;
    }
    if (reply) replica_send_frame(r, peer, &answer);
    if (msg->is_answer) r->asked_ms[peer] = 0;
    /* It can answer now, which it could not when we asked if its link to us was not up: an election may wait for it. */
    const bool unanswered = r->asked_ms[peer] != 0 && now_ms >= r->asked_ms[peer] + QUESTION_SOON_MS;
    if (!msg->is_answer && unanswered && !identity_admitted(&r->identity, peer)) ask_identity(r, now_ms, peer);
    if (want_save) save(r, NULL, &r->identity.record);
    if (!msg->is_answer && r->target.round > 0 &&
        ballot_seat(r->target) == peer) { /* it did not listen to us before this */
        router_writes_again(r->router);
        router_reads_again(r->router);
    }
    r->problem[peer] = problem;
}

/* ---- commands in ---- */

static int leader_index(const struct replica *r, uint64_t now_ms, struct ballot *ret_ballot) {
    struct ballot ballot = {0};
    const bool known = r->paxos != NULL && paxos_leader(r->paxos, now_ms, &ballot);
    *ret_ballot = ballot;
    return known ? (int)ballot_seat(ballot) : -1;
}

static const char *role_text(const struct replica *r) {
    if (r->identity.state == IDENTITY_OUTCAST) return "outcast";
    if (r->paxos == NULL) return "joining";
    if (r->serving) return "leader";
    return paxos_role(r->paxos) == PAXOS_FOLLOWER ? "follower" : "candidate";
}

static struct connection *connection_find(const struct replica *r, uint64_t client) {
    struct connection *c;
    HASH_FIND(hh, r->connections, &client, sizeof client, c);
    return c;
}

static struct connection *connection_get(struct replica *r, uint64_t client) {
    struct connection *c = connection_find(r, client);
    if (c != NULL) return c;
    c = alloc_get0(r->config.alloc, sizeof *c);
    c->id = client;
    HASH_ADD(hh, r->connections, id, sizeof c->id, c);
    return c;
}

static void connection_name(struct replica *r, struct connection *c, struct slice name) {
    alloc_put(r->config.alloc, c->name);
    c->name = NULL;
    c->name_bytes = name.bytes;
    if (name.bytes == 0) return;
    c->name = alloc_get(r->config.alloc, name.bytes);
    memcpy(c->name, name.data, name.bytes);
}

static void connection_free(struct replica *r, struct connection *c) {
    HASH_DEL(r->connections, c);
    alloc_put(r->config.alloc, c->name);
    alloc_put(r->config.alloc, c);
}

static void local(struct replica *r, uint64_t now_ms, uint64_t unix_us, uint64_t client, const struct command *command,
                  uint32_t argc, const struct slice *argv) {
    const struct connection *known = connection_find(r, client);
    struct local_view view = {
        .node = r->config.node,
        .node_count = r->config.node_count,
        .store_id = r->config.store_id,
        .boot_id = r->config.boot_id,
        .cluster_id = r->identity.record.cluster_id,
        .role = role_text(r),
        .keyspace = r->ks,
        .members_slot = r->identity.record.members.slot,
        .version = r->config.version,
        .node_addresses = r->config.node_addresses,
        .uptime_ms = now_ms - r->config.start_ms,
        .pending = router_pending(r->router),
        .inflight_max = r->config.inflight_max,
        .client_pending_max = r->config.client_pending_max,
        .queue_bytes_max = r->config.queue_bytes_max,
        .request_bytes_max = r->config.request_bytes_max,
        .forward_timeout_ms = r->config.forward_timeout_ms,
        .checkpoint_slot = r->saving.slot,
        .checkpoint_bytes = r->saving.bytes,
        .checkpoint_running = r->saving.running != 0,
        .checkpoints_made = r->saving.made,
        .checkpoints_failed = r->saving.failed,
        .log_cut = r->saving.cut,
        .log_bytes = r->saving.log_bytes,
        .snapshots_installed = r->saving.installed,
        .disk_free = r->disk_free,
        .disk_reserve = r->config.disk_reserve,
        .disk_full = r->serving ? lead_disk_is_short(r) : r->disk_free < r->config.disk_reserve,
        .refusals = r->config.refusals,
        .unix_us = unix_us,
        .client = client,
        .client_name = known != NULL ? slice_of(known->name, known->name_bytes) : slice_of(NULL, 0),
    };
    view.leader = leader_index(r, now_ms, &view.ballot);
    (void)snapshot_pulling(r->saving.snapshot, &view.snapshot_slot, &view.snapshot_bytes, &view.snapshot_total);
    if (r->serving) view.leader = r->config.node;
    if (r->serving) view.ballot = r->ballot;
    buf_clear(&r->reply);
    struct slice name = {0};
    const enum local_verdict verdict = local_command(&view, command, argc, argv, &r->reply, &name);
    if (verdict == LOCAL_NAME) connection_name(r, connection_get(r, client), name);
    if (verdict == LOCAL_READONLY) connection_get(r, client)->readonly = true;
    if (verdict == LOCAL_READWRITE && known != NULL) connection_get(r, client)->readonly = false;
    router_answered(r->router, client, buf_slice(&r->reply), verdict == LOCAL_HANG_UP);
}

/* A call is asked again of the next leader, and this one would move on and on: it says away from which ballot
 * (replica_ask.c). */
static void call_transfer(struct replica *r, const struct router_call *call,
                          void (*out)(void *, const struct router_call *)) {
    char texts[2][24];
    snprintf(texts[0], sizeof texts[0], "%llu", (unsigned long long)call->first.round);
    snprintf(texts[1], sizeof texts[1], "%u", (unsigned)call->first.node);
    const struct slice argv[] = {call->argv[0], call->argc == 2 ? call->argv[1] : slice_str("0"), slice_str(texts[0]),
                                 slice_str(texts[1])};
    struct router_call whole = *call;
    whole.argc = 4;
    whole.argv = argv;
    out(r, &whole);
}

/* The error is in r->reply. */
static bool transfer_makes_sense(struct replica *r, uint32_t argc, const struct slice *argv) {
    uint64_t number = 1;
    if (argc <= 2 && (argc == 1 || slice_to_u64(argv[1], &number)) && number >= 1 && number <= PAXOS_NODES_MAX)
        return true;
    resp_error(&r->reply, "ERR number is that of a node, 1 to %d", PAXOS_NODES_MAX);
    return false;
}

static bool connection_reads_here(const struct replica *r, uint64_t client) {
    const struct connection *c = connection_find(r, client);
    return c != NULL && c->readonly;
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
    } else if (command->id == CMD_NODE_TRANSFER && !transfer_makes_sense(r, argc, argv)) {
        router_answered(r->router, client, buf_slice(&r->reply), false);
    } else if (command->class == COMMAND_OWN || (command->class == COMMAND_READ && connection_reads_here(r, client))) {
        router_add_own(r->router, now_ms, client, command, argc, argv);
    } else {
        router_add(r->router, now_ms, client, command, argc, argv);
    }
}

void replica_client_gone(struct replica *r, uint64_t now_ms, uint64_t client) {
    router_client_gone(r->router, now_ms, client);
    struct connection *c = connection_find(r, client);
    if (c != NULL) connection_free(r, c);
}

static void router_reply_out(void *context, uint64_t client, struct slice bytes, bool leased) {
    struct replica *r = context;
    r->sink.reply(r->sink.context, client, bytes, leased);
}

static void router_hang_up_out(void *context, uint64_t client) {
    struct replica *r = context;
    r->sink.hang_up(r->sink.context, client);
}

/* ---- applying ---- */

static void apply_fact(struct replica *r, uint64_t now_ms, const struct ks_fact *fact, bool *lease_told) {
    switch (fact->kind) {
    case KS_REPLY: router_write_reply(r->router, fact->origin.seq, fact->reply); return;
    case KS_QUEUED: router_write_queued(r->router, now_ms, fact->origin.seq); return;
    case KS_FIRST:
        router_first(r->router, fact->ballot);
        if (r->first_out && !r->serving && lead_holds(r) && ballot_equal(fact->ballot, r->ballot))
            lead_start(r, now_ms);
        else if (fact->ballot.node != r->config.node)
            replica_note(r, 'i', "replica follower node=%u leader=%u ballot=%llu.%u", r->config.node + 1u,
                         ballot_seat(fact->ballot) + 1u, (unsigned long long)fact->ballot.round,
                         ballot_seat(fact->ballot) + 1u);
        return;
    case KS_LEASE_GONE:
    case KS_LEASE_RENEWED: *lease_told = true; break;
    case KS_MEMBERS: members_applied(r, now_ms); return;
    default: break;
    }
    if (r->serving) lead_fact(r, now_ms, fact);
}

static void apply(struct replica *r, uint64_t now_ms, const struct paxos_entry *entry) {
    struct wire w;
    struct batch_head head = {0};
    const bool own = r->serving && entry->value.bytes > 0 && batch_read(&w, entry->value, &head) &&
                     ballot_equal(head.ballot, r->ballot);
    struct ks_facts facts;
    keyspace_apply(r->ks, entry->slot,
                   BUG(51) && !r->serving && entry->slot % 64 == 0 ? slice_of(NULL, 0) : entry->value, &facts);
    saving_applied(r, entry->value.bytes);
    bool lease_told = false;
    for (uint32_t i = 0; i < facts.count; i++) apply_fact(r, now_ms, &facts.facts[i], &lease_told);
    if (own) lead_applied(r, head.count);
    if (lease_told && r->serving) asks_run_expiring(r, now_ms);
}

/* ---- frames in ---- */

static void refuse(struct replica *r, uint16_t peer, const struct forward *forward) {
    const struct frame frame = {.kind = FRAME_ANSWER,
                                .answer = {.kind = ANSWER_REFUSED,
                                           .of = forward->kind,
                                           .ballot = forward->ballot,
                                           .boot = forward->boot,
                                           .seq = forward->seq}};
    replica_send_frame(r, peer, &frame);
}

/* What is no batch must not get into the log: applying it would be the end of every node. */
static bool entries_are_batches(struct replica *r, uint16_t peer, const struct paxos_msg *msg) {
    for (uint32_t i = 0; i < msg->entry_count; i++) {
        if (batch_is_whole(msg->entries[i].value)) continue;
        const uint64_t count = ++r->nonsense[peer];
        if ((count & (count - 1)) == 0) /* now and then */
            replica_note(r, 'e', "peer nonsense peer=%u slot=%llu count=%llu what=\"a log entry that is no batch\"",
                         peer + 1u, (unsigned long long)msg->entries[i].slot, (unsigned long long)count);
        return false;
    }
    return true;
}

/* Of a peer that is admitted. */
static void take_frame(struct replica *r, uint64_t now_ms, uint16_t peer, uint64_t peer_boot,
                       const struct frame *frame) {
    r->heard_ms[peer] = now_ms;
    switch (frame->kind) {
    case FRAME_PAXOS: {
        if (!entries_are_batches(r, peer, &frame->paxos)) return;
        const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_MESSAGE, .message = &frame->paxos};
        (void)!paxos_step(r->paxos, &in); /* taken or of no use: nobody is told */
        return;
    }
    case FRAME_SNAPSHOT: saving_frame(r, now_ms, peer, &frame->snapshot); return;
    case FRAME_FORWARD: {
        const struct forward *f = &frame->forward;
        if (f->boot != peer_boot) return;
        if (!r->serving || !lead_holds(r) || (!ballot_equal(f->ballot, r->ballot) && !BUG(74))) {
            refuse(r, peer, f);
            return;
        }
        const struct origin origin = {.node = peer, .boot = f->boot, .seq = f->seq};
        if (f->kind == FORWARD_WRITE)
            lead_take(r, origin, f->after, f->argc, f->argv);
        else
            ask_new(r, now_ms, origin, f->argc, f->argv);
        return;
    }
    case FRAME_ANSWER: {
        const struct answer *a = &frame->answer;
        if (a->boot != r->config.boot_id || !ballot_equal(a->ballot, r->target)) return;
        if (a->kind == ANSWER_REPLY && a->of == FORWARD_READ) router_read_reply(r->router, a->seq, a->reply, false);
        if (a->kind == ANSWER_REPLY && a->of == FORWARD_WRITE)
            router_write_refused(r->router, a->seq, a->ballot, a->reply);
        if (a->kind != ANSWER_REFUSED) return;
        r->read_refused = r->read_refused || a->of == FORWARD_READ;
        if (r->resend_ms > now_ms + REFUSED_MS) r->resend_ms = now_ms + REFUSED_MS;
        return;
    }
    default: return;
    }
}

static enum link_refusal refusal_of(enum identity_problem problem) {
    switch (problem) {
    case IDENTITY_NODE_TWICE: return LINK_TWICE;
    case IDENTITY_OTHER_CLUSTER: return LINK_CLUSTER;
    case IDENTITY_OTHER_COUNT: return LINK_COUNT;
    case IDENTITY_PEER_OUTCAST:
    case IDENTITY_PEER_STRAY: return LINK_MEMBER;
    case IDENTITY_WRONG_NODE: return LINK_NUMBER;
    case IDENTITY_WE_ARE_OUTCAST: /* nothing is wrong with the peer */
    case IDENTITY_OK: return LINK_TAKEN;
    }
    return LINK_TAKEN;
}

bool replica_admits(const struct replica *r, uint16_t peer, uint64_t peer_boot) {
    return r->paxos != NULL && identity_admitted(&r->identity, peer) && r->admitted_boot[peer] == peer_boot;
}

enum link_refusal replica_frame(struct replica *r, uint64_t now_ms, uint16_t peer, uint64_t peer_boot,
                                const struct frame *frame) {
    if (peer >= PAXOS_NODES_MAX || peer == r->config.node) return LINK_NUMBER;
    if (frame->kind == FRAME_IDENTITY) {
        const struct identity_msg *msg = &frame->identity;
        if (msg->from != peer || msg->to != r->config.node || msg->boot_id != peer_boot) return LINK_NUMBER;
        identity_frame(r, now_ms, peer, peer_boot, msg);
        return refusal_of(r->problem[peer]);
    }
    if (!replica_admits(r, peer, peer_boot)) return r->paxos == NULL ? LINK_TAKEN : LINK_UNSHOWN;
    if (frame->kind == FRAME_PAXOS && (frame->paxos.from != peer || frame->paxos.to != r->config.node))
        return LINK_NUMBER;
    take_frame(r, now_ms, peer, peer_boot, frame);
    return LINK_TAKEN;
}

void replica_link_up(struct replica *r, uint64_t now_ms, uint16_t peer) {
    must(peer < PAXOS_NODES_MAX && peer != r->config.node);
    r->link_up[peer] = true;
    r->question_ms = now_ms; /* also to peers we have admitted: they may not have admitted us */
    identity_link_lost(&r->identity, peer);
    saving_link_up(r, now_ms, peer);
    if (r->target.round > 0 && ballot_seat(r->target) == peer) {
        router_writes_again(r->router);
        router_reads_again(r->router);
    }
}

void replica_link_lost(struct replica *r, uint64_t now_ms, uint16_t peer) {
    (void)now_ms;
    must(peer < PAXOS_NODES_MAX);
    r->link_up[peer] = false;
    saving_link_lost(r, peer);
}

/* ---- the origin's half ---- */

/* ---- what this node answers itself ---- */

static void wait_revision(struct replica *r, const struct router_call *call) {
    enum { MS_MAX = 86400000 }; /* one day, as the longest lease */
    uint64_t revision, ms;
    if (slice_to_u64(call->argv[1], &revision) && slice_to_u64(call->argv[2], &ms)) {
        router_wait_revision(r->router, call->seq, revision, r->turn_ms + (ms < MS_MAX ? ms : MS_MAX));
        return;
    }
    struct buf b = {.alloc = r->config.alloc};
    resp_error(&b, "ERR revision and ms are integers, 0 or more");
    router_read_reply(r->router, call->seq, buf_slice(&b), false);
    buf_release(&b);
}

static void own_call(struct replica *r, const struct router_call *call) {
    struct buf b = {.alloc = r->config.alloc};
    uint64_t stamp_ms;
    switch (call->command->id) {
    case CMD_WAITREV: wait_revision(r, call); return;
    case CMD_SNAPSHOT_SAVE: saving_ask(r, call->seq); return;
    default: break;
    }
    /* A read of our own state, at the time it is of: all that was due then has ended (K3). */
    if (keyspace_read(r->ks, keyspace_stamp(r->ks), call->argc, call->argv, &b, &stamp_ms) != KS_READ_DONE)
        resp_error(&b, "BUSY this node has not applied the end of that key yet");
    router_read_reply(r->router, call->seq, buf_slice(&b), false);
    buf_release(&b);
}

static void router_call_out(void *context, const struct router_call *call) {
    struct replica *r = context;
    if (call->own) {
        own_call(r, call);
        return;
    }
    if (call->command->id == CMD_NODE_TRANSFER && call->argc <= 2) {
        call_transfer(r, call, router_call_out);
        return;
    }
    if (ballot_seat(r->target) == r->config.node) {
        const struct origin origin = {.node = r->config.node, .boot = r->config.boot_id, .seq = call->seq};
        if (call->write)
            lead_take(r, origin, call->after, call->argc, call->argv);
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
    replica_send_frame(r, ballot_seat(r->target), &frame);
}

/* Who gets our clients' commands (R3). */
static void choose_target(struct replica *r, uint64_t now_ms) {
    struct ballot target = {0}, leader;
    if (r->serving) {
        target = r->ballot;
    } else if (leader_index(r, now_ms, &leader) >= 0 && ballot_seat(leader) != r->config.node &&
               r->link_up[ballot_seat(leader)] && (ballot_equal(leader, keyspace_ballot(r->ks)) || BUG(75))) {
        target = leader;
    }
    if (ballot_equal(target, r->target)) return;
    r->target = target;
    r->resend_ms = now_ms + RESEND_MS;
    router_reads_again(r->router);
    router_writes_again(r->router);
}

/* ---- the turn ---- */

/* ---- the turn ---- */

/* Collect what Paxos wants done.  True: there was something. */
static bool paxos_work(struct replica *r, uint64_t now_ms) {
    struct paxos_output out;
    if (!paxos_take(r->paxos, &out)) return false;
    if (out.batch != 0) save(r, &out, NULL);
    for (uint32_t i = 0; i < out.send_now_count; i++) send_paxos(r, &out.sends_now[i]);
    for (uint32_t i = 0; i < out.send_after_count; i++) send_paxos_after(r, &out.sends_after[i]);
    for (uint32_t i = 0; i < out.fetch_count; i++) {
        const struct paxos_fetch *f = &out.fetches[i];
        if (f->snapshot)
            saving_wanted(r, now_ms, f->to);
        else
            r->sink.fetch(r->sink.context, f->to, f->from_slot, f->to_slot);
    }
    for (uint32_t i = 0; i < out.apply_count; i++) apply(r, now_ms, &out.applies[i]);
    return true;
}

static void paxos_turn(struct replica *r, uint64_t now_ms) {
    const struct paxos_input tick = {.now_ms = now_ms, .kind = PAXOS_TICK};
    must(paxos_step(r->paxos, &tick) == PAXOS_TAKEN);
    for (;;) {
        while (paxos_work(r, now_ms)) {
        }
        if ((r->serving || r->first_out) && !lead_holds(r)) {
            if (r->serving) lead_stop(r);
            r->first_out = false;
        }
        if (!r->first_out && paxos_role(r->paxos) == PAXOS_LEADING && paxos_room(r->paxos) > 0) lead_first(r, now_ms);
        if (BUG(47) && r->first_out && !r->serving) lead_start(r, now_ms);
        choose_target(r, now_ms);
        if (r->target.round > 0 && ballot_seat(r->target) != r->config.node && now_ms >= r->resend_ms) {
            r->resend_ms = now_ms + RESEND_MS;
            router_writes_again(r->router);
            if (r->read_refused) router_reads_again(r->router);
            r->read_refused = false;
        }
        router_pump(r->router, now_ms, r->target.round > 0 ? &r->target : NULL);
        if (r->serving) lead_turn(r, now_ms);
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
    if (r->paxos == NULL && r->identity.state == IDENTITY_FORMED) paxos_begin(r, now_ms); /* the log is replayed now */
    identity_turn(r, now_ms);
    if (r->paxos != NULL) {
        paxos_turn(r, now_ms);
        members_turn(r, now_ms);
    }
    identity_look(r);
    router_pump_own(r->router, now_ms);
    router_revision(r->router, now_ms, keyspace_revision(r->ks));
    router_pump_own(r->router, now_ms); /* what stood behind a WAITREV */
    if (r->paxos != NULL) saving_turn(r, now_ms);
    router_expire(r->router, now_ms);
    router_flush(r->router);
    r->round_now = 0; /* it has left: who asks between two turns asks after it */

    uint64_t wake_ms = r->target.round > 0 && router_has_work(r->router) ? now_ms : router_wake_at(r->router);
    if (r->paxos == NULL || r->question_ms > now_ms) {
        if (r->question_ms < wake_ms) wake_ms = r->question_ms;
    }
    if (r->paxos != NULL) {
        struct paxos_output out;
        must(!paxos_take(r->paxos, &out));
        if (out.wake_at_ms < wake_ms) wake_ms = out.wake_at_ms;
        if (saving_wake_at(r) < wake_ms) wake_ms = saving_wake_at(r);
        const bool remote = r->target.round > 0 && ballot_seat(r->target) != r->config.node;
        if (remote && r->resend_ms < wake_ms) wake_ms = r->resend_ms;
    }
    if (r->serving) {
        const uint64_t lead_ms = lead_wake_at(r, now_ms);
        if (lead_ms < wake_ms) wake_ms = lead_ms;
    }
    return wake_ms > now_ms ? wake_ms : now_ms + 1;
}

bool replica_reads_hold(const struct replica *r, uint64_t now_ms) {
    return r->serving && paxos_lease_good(r->paxos, now_ms);
}

const char *replica_halt_reason(const struct replica *r) {
    return r->paxos != NULL ? paxos_halt_reason(r->paxos) : NULL;
}

bool replica_hand_over(struct replica *r, uint64_t now_ms) {
    return r->serving && paxos_transfer(r->paxos, now_ms, PAXOS_NODES_MAX) == PAXOS_TAKEN;
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
