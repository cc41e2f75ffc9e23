/* replica_lead.c - the leader's half of a node: the order of writes, scripts, what the keeper is due.
 *
 *   lead_take() -> queue of batches -> propose() -> paxos -> ... -> lead_applied(), lead_fact() */
#include <stdio.h>
#include <xxhash.h>
#include "lockd/core/replica_state.h"
#include "lockd/core/bug.h"
#include "lockd/core/resp.h"

enum {
    ORIGIN_LOOK_MS = 250,  /* how often the leader looks for waits whose origin is gone */
    SCRIPT_TRIES_MAX = 64, /* a script whose reads keep changing */
    SCRIPT_PATIENCE = 1,   /* tries in vain after which the pipeline drains for it */
    BATCH_ROOM = 64        /* more than the head of a batch takes */
};

/* ---- the queue of writes ---- */

uint64_t lead_cluster_now(const struct replica *r, uint64_t now_ms) {
    return r->base_stamp_ms + (now_ms - r->base_ms);
}

static uint64_t *key_mark(struct replica *r, struct slice key) {
    return &r->key_marks[XXH3_64bits(key.data, key.bytes) & (REPLICA_KEY_MARKS - 1)];
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

void lead_queue_internal(struct replica *r, uint32_t argc, const struct slice *argv) {
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

/* ---- a disk that is nearly full (D3) ---- */

bool lead_disk_is_short(const struct replica *r) {
    return r->config.disk_reserve > 0 && paxos_free_majority(r->paxos) < r->config.disk_reserve;
}

/* May it make the state larger?  What frees, ends, renews or moves what is there goes on below the reserve: the log it
 * takes is cut again. */
static bool takes_room(const struct command *command) {
    switch (command->id) {
    case CMD_DEL:
    case CMD_FLUSHALL:
    case CMD_EXPIRE:
    case CMD_PEXPIRE:
    case CMD_PERSIST:
    case CMD_NODE_ADD: /* a node with room for one without */
    case CMD_NODE_REMOVE:
    case CMD_LEASE_REVOKE:
    case CMD_LOCK_RELEASE:
    case CMD_ELECT_RESIGN:
    case CMD_ROUTE_DROP:
    case CMD_ROUTE_MOVE:
    case CMD_ROUTE_TOUCH:
    case CMD_ROUTE_SUSPECT: return false;
    default: return command->class != COMMAND_INTERNAL;
    }
}

/* The same of what a script wants to log (script.h): a lock library releases by a script. */
static bool effects_take_room(const struct ks_effects *effects) {
    uint64_t reads = 0, writes = 0, argc = 0;
    if (slice_is_word(effects->argv[0], "ONCE")) return false; /* a repeat: answered from the state */
    uint32_t at = slice_is_word(effects->argv[0], "%ONCE") ? 8 : 4;
    must(at <= effects->argc && slice_to_u64(effects->argv[at - 1], &reads)); /* keyspace_script wrote them just now */
    at += (uint32_t)reads * 3;
    must(at < effects->argc && slice_to_u64(effects->argv[at++], &writes));
    for (; writes > 0; writes--) {
        must(at + 1 < effects->argc && slice_to_u64(effects->argv[at], &argc));
        const struct command *command = command_find(effects->argv[at + 1], false);
        must(command != NULL);
        if (takes_room(command)) return true;
        at += 1 + (uint32_t)argc;
    }
    return false;
}

/* Not through the log, which takes room itself.  It was marked as taken, so that no copy of it is ever taken under this
 * ballot; what is lost on its way ends as -UNCERTAIN at its origin. */
static void refuse_disk(struct replica *r, struct origin origin) {
    buf_clear(&r->reply);
    resp_error(&r->reply,
               "DISKFULL less than disk-reserve (%llu bytes) is free on the disks of a majority; deletes, releases and "
               "renewals still work",
               (unsigned long long)r->config.disk_reserve);
    if (origin.node == r->config.node) {
        router_write_refused(r->router, origin.seq, r->ballot, buf_slice(&r->reply));
        return;
    }
    const struct frame frame = {.kind = FRAME_ANSWER,
                                .answer = {.kind = ANSWER_REPLY,
                                           .of = FORWARD_WRITE,
                                           .ballot = r->ballot,
                                           .boot = origin.boot,
                                           .seq = origin.seq,
                                           .reply = buf_slice(&r->reply)}};
    replica_send_frame(r, origin.node, &frame);
}

/* ---- taking ---- */

void lead_take(struct replica *r, struct origin origin, uint64_t after, uint32_t argc, const struct slice *argv) {
    if (r->taken[origin.node].boot != origin.boot) {
        r->taken[origin.node].boot = origin.boot;
        r->taken[origin.node].seq = 0;
    }
    if (origin.seq <= r->taken[origin.node].seq && !BUG(20)) return; /* a repeat: taken already */
    if (after > r->taken[origin.node].seq) return;                   /* a gap: the origin will say all of it again */
    if (r->queue_bytes > r->config.queue_bytes_max) { /* as if it were lost: said again, when there may be room */
        r->own_refused = r->own_refused || origin.node == r->config.node;
        return;
    }
    const struct command *command = command_find(argv[0], true);
    buf_clear(&r->reply);
    const bool own = command != NULL && command->class == COMMAND_INTERNAL;
    if (own ? command->id != CMD_X_DEQUEUE || argc != 5
            : command_check(argc, argv, (uint32_t)keyspace_settings(r->ks)->key_bytes_max, &r->reply) == NULL)
        command = NULL; /* another version's command, or not a lockd */
    uint32_t inner_argc = argc;
    const struct slice *inner_argv = argv;
    const struct command *runs = command != NULL ? command_inner(command, &inner_argc, &inner_argv) : NULL;
    if (runs != NULL && runs->class != COMMAND_SCRIPT &&
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
    if (runs->class == COMMAND_SCRIPT) {
        script_add(r, origin, command, argc, argv);
        return;
    }
    if (takes_room(runs) && lead_disk_is_short(r)) {
        refuse_disk(r, origin);
        return;
    }
    queue_add(r, origin, argc, argv);
    if (runs->first_key != 0)
        command_keys(command, argc, argv, mark_key, r);
    else
        r->all_mark = r->queued_writes;
}

/* ---- scripts ---- */

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
        switch (keyspace_script(r->ks, lead_cluster_now(r, now_ms), job->argc, job->argv, &effects, &stamp_ms)) {
        case KS_SCRIPT_NEEDS_STAMP:
            job->tries--;
            if (stamp_ms > r->need_stamp_ms) r->need_stamp_ms = stamp_ms;
            break;
        case KS_SCRIPT_REFUSED:
            queue_reply(r, job->origin, buf_slice(&effects.bytes));
            script_end(r, job);
            break;
        case KS_SCRIPT_PROPOSE:
            if (lead_disk_is_short(r) && effects_take_room(&effects)) {
                refuse_disk(r, job->origin);
                script_end(r, job);
                break;
            }
            if (effects.bytes.bytes + 8u * effects.argc + 128 > r->config.batch_bytes_max) {
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

/* ---- begin and end ---- */

void lead_drop(struct replica *r) {
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
    asks_drop(r);
    keeper_stop(r->keeper);
    r->queued_writes = r->proposed_writes = r->applied_writes = r->all_mark = 0;
    memset(r->key_marks, 0, sizeof r->key_marks);
    r->need_stamp_ms = 0;
}

void lead_end(struct replica *r) {
    if (r->serving) lead_stop(r);
    r->first_out = false;
}

void lead_stop(struct replica *r) {
    r->serving = r->first_out = false;
    lead_drop(r);
    router_reads_again(r->router);
    replica_note(r, 'i', "replica deposed node=%u ballot=%llu.%u", r->config.node + 1u,
                 (unsigned long long)r->ballot.round, ballot_seat(r->ballot) + 1u);
}

static char *number_text(char *text, uint64_t value) {
    snprintf(text, 24, "%llu", (unsigned long long)value);
    return text;
}

_Static_assert((int)KS_CONFIG_DELAY == (int)PAXOS_CONFIG_DELAY,
               "a change of members takes effect in one slot for both");

/* Who founded the cluster goes into its log once, with the addresses that we were configured with. */
static void propose_members(const struct replica *r, struct buf *value) {
    const struct membership *m = &r->identity.record.members;
    struct slice argv[1 + 3 * PAXOS_NODES_MAX];
    char numbers[2 * PAXOS_NODES_MAX][24];
    uint32_t argc = 0;
    argv[argc++] = slice_str("%MEMBERS");
    for (uint32_t seat = 0, at = 0; seat < PAXOS_NODES_MAX; seat++) {
        if (!(m->voters & 1u << seat)) continue;
        const bool known = r->config.node_addresses != NULL && seat < r->config.node_count;
        argv[argc++] = slice_str(number_text(numbers[at++], seat + 1u));
        argv[argc++] = slice_str(number_text(numbers[at++], m->store_ids[seat]));
        argv[argc++] = slice_str(known ? r->config.node_addresses[seat] : "");
    }
    if (argc > 1) batch_add(value, ORIGIN_NONE, argc, argv);
}

void lead_first(struct replica *r, uint64_t now_ms) {
    r->ballot = paxos_ballot(r->paxos);
    r->base_stamp_ms = keyspace_stamp(r->ks) + (BUG(72) ? 2000 : 0); /* T2: once per ballot */
    r->base_ms = now_ms;
    struct buf value = {.alloc = r->config.alloc};
    batch_begin(&value, r->ballot, true, lead_cluster_now(r, now_ms));
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
    if (keyspace_members(r->ks)->now.voters == 0) propose_members(r, &value);
    const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = buf_slice(&value)};
    r->first_out = paxos_step(r->paxos, &in) == PAXOS_TAKEN;
    r->stamp_out_ms = lead_cluster_now(r, now_ms);
    buf_release(&value);
}

void lead_start(struct replica *r, uint64_t now_ms) {
    r->serving = true;
    r->serving_since_ms = now_ms;
    r->origin_look_ms = now_ms;
    memset(r->taken, 0, sizeof r->taken);
    keeper_lead(r->keeper, now_ms, r->ks);
    replica_note(r, 'i', "replica leader node=%u ballot=%llu.%u revision=%llu", r->config.node + 1u,
                 (unsigned long long)r->ballot.round, ballot_seat(r->ballot) + 1u,
                 (unsigned long long)keyspace_revision(r->ks));
}

bool lead_holds(const struct replica *r) {
    return paxos_role(r->paxos) == PAXOS_LEADING && ballot_equal(paxos_ballot(r->paxos), r->ballot);
}

/* ---- what was applied ---- */

struct look {
    struct replica *r;
    uint64_t now_ms;
};

static void look_at_holder(void *context, uint64_t asked, uint64_t lease) {
    (void)asked;
    const struct look *look = context;
    if (paxos_lease_good(look->r->paxos, look->now_ms)) ask_next_answer(look->r, lease, false);
}

void lead_fact(struct replica *r, uint64_t now_ms, const struct ks_fact *fact) {
    switch (fact->kind) {
    case KS_SCRIPT_VOID: script_void(r, fact->origin); return;
    case KS_LEASE_GONE:
        ask_next_answer(r, fact->id, true);
        keeper_fact(r->keeper, now_ms, r->ks, fact);
        return;
    case KS_MOVE_ASKED: {
        keeper_fact(r->keeper, now_ms, r->ks, fact); /* limits first: an answer given now covers this move no more */
        struct look look = {.r = r, .now_ms = now_ms};
        route_each_holder(keyspace_route(r->ks), fact->id, look_at_holder, &look);
        return;
    }
    case KS_LEASE_NEW:
    case KS_LEASE_RENEWED:
    case KS_MOVE_DONE: keeper_fact(r->keeper, now_ms, r->ks, fact); return;
    default: return;
    }
}

void lead_applied(struct replica *r, uint32_t count) {
    r->applied_writes += count;
    scripts_end(r);
}

/* ---- the turn ---- */

static void propose(struct replica *r, uint64_t now_ms) {
    const uint64_t stamp_ms = lead_cluster_now(r, now_ms), due_ms = keyspace_next_due(r->ks);
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

/* The words of an internal command: its name, and numbers as text. */
struct numbers {
    uint32_t count;
    struct slice argv[1 + 2 * KEEPER_DUE_MAX];
    char texts[2 * KEEPER_DUE_MAX][24];
};
static void add_number(struct numbers *n, uint64_t value) {
    const uint32_t at = n->count++;
    must(at < 2 * KEEPER_DUE_MAX);
    n->argv[1 + at] = slice_str(number_text(n->texts[at], value));
}
/* Nothing to say: nothing is queued.  Empty afterwards. */
static void queue_numbers(struct replica *r, const char *name, struct numbers *n) {
    n->argv[0] = slice_str(name);
    if (n->count > 0) lead_queue_internal(r, 1 + n->count, n->argv);
    n->count = 0;
}

static void keeper_turn(struct replica *r, uint64_t now_ms) {
    if (keeper_wake_at(r->keeper) > now_ms) return;
    struct keeper_due due;
    keeper_due(r->keeper, now_ms, &due);
    struct numbers n; /* 40 KiB: only its count needs a value */
    n.count = 0;
    for (uint32_t i = 0; i < due.expired_count; i++) add_number(&n, due.expired[i]);
    queue_numbers(r, "%EXPIRE", &n);
    for (uint32_t i = 0; i < due.remaining_count; i++) {
        add_number(&n, due.remaining[i].lease);
        add_number(&n, due.remaining[i].ms);
    }
    queue_numbers(r, "%REMAINING", &n);
    for (uint32_t i = 0; i < due.renewed_count; i++) add_number(&n, due.renewed[i]);
    queue_numbers(r, "%RENEWED", &n); /* after what it clears */
    for (uint32_t i = 0; i < due.passed_count; i++) {
        add_number(&n, due.passed[i].asked);
        add_number(&n, due.passed[i].lease);
    }
    queue_numbers(r, "%ROUTE_PASSED", &n);
    for (uint32_t i = 0; i < due.next_count; i++) ask_next_due(r, now_ms, due.next[i]);
}

static void attachment_look(void *context, uint16_t node, uint64_t boot) {
    const struct look *look = context;
    struct replica *r = look->r;
    if (node >= PAXOS_NODES_MAX) return;
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
    lead_queue_internal(r, 3, argv);
}

void lead_turn(struct replica *r, uint64_t now_ms) {
    keeper_turn(r, now_ms);
    if (now_ms >= r->origin_look_ms) {
        r->origin_look_ms = now_ms + ORIGIN_LOOK_MS;
        struct look look = {.r = r, .now_ms = now_ms};
        keyspace_each_attachment(r->ks, attachment_look, &look);
    }
    asks_run(r, now_ms);
    scripts_run(r, now_ms);
    propose(r, now_ms);
}

uint64_t lead_wake_at(const struct replica *r, uint64_t now_ms) {
    uint64_t wake_ms = keeper_wake_at(r->keeper);
    if (r->origin_look_ms < wake_ms) wake_ms = r->origin_look_ms;
    const uint64_t due_ms = keyspace_next_due(r->ks);
    if (due_ms == UINT64_MAX || r->stamp_out_ms >= due_ms) return wake_ms;
    const uint64_t at_ms = due_ms > r->base_stamp_ms ? r->base_ms + (due_ms - r->base_stamp_ms) : now_ms;
    return at_ms < wake_ms ? at_ms : wake_ms;
}
