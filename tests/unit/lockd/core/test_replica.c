/* Whole nodes on a perfect network and disk: clients at any node get the right replies, through leader changes too.
 * The unkind network and disk are the simulator's (tests/sim). */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "lockd/core/replica.h"

enum { NODES = 3, SLOTS = 4096, CLIENTS = 80, DISK_MS = 2, LINK_MS = 1 };

struct packet {
    uint64_t at_ms;
    uint16_t from, to;
    uint64_t boot;
    struct packet *next;
    size_t bytes;
    char data[];
};
struct saved_slot {
    struct ballot ballot;
    char *value;
    size_t bytes;
    bool there;
};
struct test_node {
    struct replica *replica;
    bool alive;
    uint64_t store_id, boot, wake_ms, turns;
    uint64_t batch, durable_at_ms; /* newest transaction */
    struct replica_saved saved;
    struct saved_slot slots[SLOTS];
    /* the checkpoint, and the one on its way to the disk */
    struct buf file, new_file;
    paxos_slot new_slot; /* 0: none */
    uint64_t new_durable_ms;
    bool new_is_install;
    bool unreadable; /* the checkpoint, until it is written again */
    uint32_t checkpoints, installs;
};
static struct test_node nodes[NODES];
static uint16_t node_count;
static uint64_t now_ms, next_boot;
static struct packet *packets;
static bool paused[NODES]; /* takes no turn and reads nothing */
static bool deaf[NODES];   /* what is sent to it is lost */
static uint32_t answers;   /* FRAME_ANSWER handed out */
static uint32_t paxos_frames;
static char replies[CLIENTS][8192];
static struct buf scratch;
static uint64_t checkpoint_bytes, disk_reserve;
static bool checkpoints_fail;
static bool whole_logs;         /* nodes that keep their whole log */
static size_t backlogs[NODES];  /* on every link to that node */
static char last_answer[512];   /* of FRAME_ANSWER: the reply, or "refused" */
static char noted[1 << 16];     /* what the nodes said, line by line */
static bool names_reach[NODES]; /* that node is configured with the addresses of all */
static const char *const addresses[] = {"one:7000", "two:7000", "three:7000"};

static void sink_save(void *context, uint64_t batch, const struct paxos_output *out,
                      const struct identity_record *record) {
    struct test_node *n = context;
    n->batch = batch;
    n->durable_at_ms = now_ms + DISK_MS;
    if (record != NULL) n->saved.record = *record;
    if (out == NULL) return;
    if (out->save_promise) n->saved.paxos.promised = out->promised;
    if (out->save_lease_ms) n->saved.paxos.lease_ms_max = out->save_lease_ms;
    if (out->save_chosen) n->saved.paxos.chosen = out->save_chosen;
    for (uint32_t i = 0; i < out->save_count; i++) {
        ck_assert_uint_lt(out->saves[i].slot, SLOTS);
        struct saved_slot *s = &n->slots[out->saves[i].slot];
        free(s->value);
        s->there = true;
        s->ballot = out->saves[i].ballot;
        s->bytes = out->saves[i].value.bytes;
        s->value = malloc(s->bytes + 1);
        if (s->bytes > 0) memcpy(s->value, out->saves[i].value.data, s->bytes);
    }
}

static void sink_send(void *context, uint16_t peer, struct slice frame) {
    const struct test_node *n = context;
    static struct frame_scratch frame_scratch;
    struct frame sent;
    size_t used;
    ck_assert_int_eq(frame_decode(frame.data, frame.bytes, &sent, &frame_scratch, &used), FRAME_OK);
    paxos_frames += sent.kind == FRAME_PAXOS;
    if (sent.kind == FRAME_ANSWER) {
        const struct answer *a = &sent.answer;
        answers++;
        if (a->kind == ANSWER_REFUSED)
            strcpy(last_answer, "refused");
        else
            snprintf(last_answer, sizeof last_answer, "%.*s", (int)a->reply.bytes, a->reply.data);
    }
    struct packet *p = malloc(sizeof *p + frame.bytes);
    p->at_ms = now_ms + LINK_MS;
    p->from = (uint16_t)(n - nodes);
    p->to = peer;
    p->boot = n->boot;
    p->bytes = frame.bytes;
    p->next = NULL;
    memcpy(p->data, frame.data, frame.bytes);
    struct packet **at = &packets;
    while (*at != NULL) at = &(*at)->next;
    *at = p;
}

static void sink_reply(void *context, uint64_t client, struct slice bytes, bool leased) {
    (void)context, (void)leased;
    ck_assert_uint_lt(client, CLIENTS);
    ck_assert_uint_lt(strlen(replies[client]) + bytes.bytes, sizeof replies[0]);
    if (bytes.bytes > 0) strncat(replies[client], bytes.data, bytes.bytes);
}

static void sink_hang_up(void *context, uint64_t client) {
    (void)context;
    strcat(replies[client], "<bye>");
}

static void sink_fetch(void *context, uint16_t peer, paxos_slot from_slot, paxos_slot to_slot) {
    struct test_node *n = context;
    struct paxos_entry entries[64];
    uint32_t count = 0;
    for (paxos_slot s = from_slot; s <= to_slot && count < 64 && n->slots[s].there; s++)
        entries[count++] = (struct paxos_entry){
            .slot = s, .ballot = n->slots[s].ballot, .value = slice_of(n->slots[s].value, n->slots[s].bytes)};
    if (count == 0) return;
    buf_clear(&scratch);
    replica_chosen_frame(n->replica, peer, entries, count, &scratch);
    sink_send(context, peer, buf_slice(&scratch));
}

static void sink_note(void *context, char level, const char *text) {
    (void)context;
    if (strlen(noted) + strlen(text) + 4 < sizeof noted) sprintf(noted + strlen(noted), "%c %s\n", level, text);
    if (getenv("VERBOSE")) fprintf(stderr, "# %llu %c %s\n", (unsigned long long)now_ms, level, text);
}

static size_t sink_backlog(void *context, uint16_t peer) {
    (void)context;
    return backlogs[peer];
}
static uint32_t times_noted(const char *what) {
    uint32_t count = 0;
    for (const char *at = noted; (at = strstr(at, what)) != NULL; at++) count++;
    return count;
}

static int file_put(void *context, struct slice bytes) {
    buf_append_slice(context, bytes);
    return 0;
}
static void file_begin(struct test_node *n, paxos_slot slot, bool install) {
    n->new_slot = slot;
    n->new_durable_ms = now_ms + 3 * DISK_MS;
    n->new_is_install = install;
    buf_clear(&n->new_file);
    n->new_file.alloc = heap_alloc();
}
static void sink_checkpoint(void *context, const struct keyspace *ks, paxos_slot slot) {
    struct test_node *n = context;
    ck_assert_uint_eq(n->new_slot, 0);
    file_begin(n, slot, false);
    ck_assert_int_eq(keyspace_save(ks, file_put, &n->new_file), 0);
    n->checkpoints++;
}
static void sink_install(void *context, paxos_slot slot, struct slice bytes) {
    struct test_node *n = context;
    file_begin(n, slot, true);
    buf_append_slice(&n->new_file, bytes);
    n->installs++;
}
static void sink_cut(void *context, paxos_slot slot) {
    struct test_node *n = context;
    ck_assert_uint_le(slot, n->saved.checkpoint_slot); /* R5 */
    n->saved.paxos.cut = slot;
    for (paxos_slot s = 1; s <= slot; s++) n->slots[s].there = false;
}
static void sink_snapshot_read(void *context, uint16_t peer, paxos_slot slot, uint64_t offset, uint32_t bytes) {
    struct test_node *n = context;
    ck_assert_uint_eq(slot, n->saved.checkpoint_slot);
    ck_assert_uint_le(offset + bytes, n->file.bytes);
    if (n->unreadable) {
        replica_checkpoint_damaged(n->replica, slot);
        return;
    }
    buf_clear(&scratch);
    replica_snapshot_frame(n->replica, slot, offset, slice_of(n->file.data + offset, bytes), &scratch);
    sink_send(context, peer, buf_slice(&scratch));
}
/* What was written is durable now. */
static void file_done(struct test_node *n) {
    const paxos_slot slot = n->new_slot;
    n->new_slot = 0;
    n->wake_ms = now_ms;
    if (checkpoints_fail && !n->new_is_install) {
        replica_checkpointed(n->replica, now_ms, slot, 0);
        return;
    }
    buf_clear(&n->file);
    n->file.alloc = heap_alloc();
    buf_append_slice(&n->file, buf_slice(&n->new_file));
    n->unreadable = false;
    n->saved.checkpoint_slot = slot;
    n->saved.checkpoint_bytes = n->file.bytes;
    if (n->saved.paxos.chosen < slot) n->saved.paxos.chosen = slot;
    if (n->new_is_install)
        replica_installed(n->replica, now_ms, slot);
    else
        replica_checkpointed(n->replica, now_ms, slot, n->file.bytes);
}

static void node_start(uint16_t index) {
    struct test_node *n = &nodes[index];
    n->boot = ++next_boot;
    if (n->store_id == 0) n->store_id = 100u + index;
    struct replica_config config = {.alloc = heap_alloc(),
                                    .node = index,
                                    .node_count = node_count,
                                    .store_id = n->store_id,
                                    .boot_id = n->boot,
                                    .fresh_cluster_id = 7,
                                    .seed = n->boot * 7919,
                                    .start_ms = now_ms,
                                    .heartbeat_ms = 50,
                                    .lease_ms = 300,
                                    .election_spread_ms = 100,
                                    .drift_ppm = 500,
                                    .forward_timeout_ms = 10000,
                                    .reattach_ms = 1000,
                                    .inflight_max = 16,
                                    .batch_bytes_max = 1 << 20,
                                    .queue_bytes_max = 1 << 24,
                                    .client_pending_max = 1024,
                                    .request_bytes_max = 1 << 19,
                                    .checkpoint_bytes = checkpoint_bytes,
                                    .disk_reserve = disk_reserve,
                                    .version = "test",
                                    .node_addresses = names_reach[index] ? addresses : NULL};
    ks_settings_default(&config.settings);
    struct paxos_entry accepted[64];
    n->saved.paxos.accepted = accepted;
    n->saved.paxos.accepted_count = 0;
    n->saved.paxos.restarted = n->saved.record.cluster_id != 0 || n->saved.paxos.promised.round > 0;
    for (paxos_slot s = n->saved.paxos.chosen + 1; s < SLOTS; s++)
        if (n->slots[s].there)
            accepted[n->saved.paxos.accepted_count++] = (struct paxos_entry){
                .slot = s, .ballot = n->slots[s].ballot, .value = slice_of(n->slots[s].value, n->slots[s].bytes)};
    struct replica_sink sink = {.context = n,
                                .save = sink_save,
                                .send = sink_send,
                                .reply = sink_reply,
                                .hang_up = sink_hang_up,
                                .fetch = sink_fetch,
                                .note = sink_note,
                                .checkpoint = sink_checkpoint,
                                .cut = sink_cut,
                                .snapshot_read = sink_snapshot_read,
                                .install = sink_install,
                                .backlog = sink_backlog};
    if (whole_logs) {
        sink.checkpoint = NULL;
        sink.cut = NULL;
        sink.snapshot_read = NULL;
        sink.install = NULL;
        sink.backlog = NULL;
    }
    char error[128];
    n->new_slot = 0;
    n->replica = replica_new(&config, &n->saved, &sink);
    if (n->saved.checkpoint_slot > 0)
        ck_assert_int_eq(replica_restore(n->replica, buf_slice(&n->file), error, sizeof error), 0);
    for (paxos_slot s = n->saved.checkpoint_slot + 1; s <= n->saved.paxos.chosen; s++)
        replica_replay(n->replica, s, slice_of(n->slots[s].value, n->slots[s].bytes));
    n->alive = true;
    n->wake_ms = now_ms;
    n->batch = 0;
    n->durable_at_ms = 0;
    for (uint16_t i = 0; i < node_count; i++) {
        if (i == index || !nodes[i].alive) continue;
        replica_link_up(n->replica, now_ms, i);
        replica_link_up(nodes[i].replica, now_ms, index);
        nodes[i].wake_ms = now_ms;
    }
}

static void node_kill(uint16_t index) {
    nodes[index].alive = false;
    replica_free(nodes[index].replica);
    for (uint16_t i = 0; i < node_count; i++)
        if (nodes[i].alive) replica_link_lost(nodes[i].replica, now_ms, index);
}

/* Virtual time goes on by `ms`. */
static void run(uint64_t ms) {
    static struct frame_scratch frame_scratch;
    for (const uint64_t end_ms = now_ms + ms; now_ms < end_ms; now_ms++) {
        for (struct packet **at = &packets; *at != NULL && (*at)->at_ms <= now_ms;) {
            struct packet *p = *at;
            if (paused[p->to]) {
                at = &p->next;
                continue;
            }
            *at = p->next;
            struct frame frame;
            size_t used;
            ck_assert_int_eq(frame_decode(p->data, p->bytes, &frame, &frame_scratch, &used), FRAME_OK);
            if (nodes[p->to].alive && !deaf[p->to]) {
                replica_frame(nodes[p->to].replica, now_ms, p->from, p->boot, &frame);
                nodes[p->to].wake_ms = now_ms;
            }
            free(p);
        }
        for (uint16_t i = 0; i < node_count; i++) {
            struct test_node *n = &nodes[i];
            if (!n->alive || paused[i]) continue;
            if (n->durable_at_ms != 0 && n->durable_at_ms <= now_ms) {
                n->durable_at_ms = 0;
                replica_durable(n->replica, now_ms, n->batch);
                n->wake_ms = now_ms;
            }
            if (n->new_slot > 0 && n->new_durable_ms <= now_ms) file_done(n);
            if (n->wake_ms <= now_ms) {
                n->wake_ms = replica_turn(n->replica, now_ms);
                n->turns++;
            }
            ck_assert_ptr_null(replica_halt_reason(n->replica));
        }
    }
}

static void say(uint16_t node, uint64_t client, const char *line) {
    char text[1024];
    struct slice argv[64];
    uint32_t argc = 0;
    snprintf(text, sizeof text, "%s", line);
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) argv[argc++] = slice_str(word);
    replica_command(nodes[node].replica, now_ms, now_ms * 1000, client, argc, argv);
    nodes[node].wake_ms = now_ms;
}

static const char *take(uint64_t client) {
    static char text[8192];
    strcpy(text, replies[client]);
    replies[client][0] = '\0';
    return text;
}

#define expect(node, client, line, reply)                                                                              \
    do {                                                                                                               \
        say(node, client, line);                                                                                       \
        run(200);                                                                                                      \
        ck_assert_str_eq(take(client), reply);                                                                         \
    } while (0)

static int leader(void) {
    for (int i = 0; i < node_count; i++)
        if (nodes[i].alive && replica_is_leader(nodes[i].replica)) return i;
    return -1;
}

static void start_all(uint16_t count) {
    node_count = count;
    now_ms = 1000;
    scratch.alloc = heap_alloc();
    for (uint16_t i = 0; i < count; i++) node_start(i);
    run(3000);
    ck_assert_int_ge(leader(), 0);
}

START_TEST(one_node_serves_and_remembers) {
    start_all(1);
    expect(0, 1, "SET a 1", "+OK\r\n");
    expect(0, 1, "GET a", "$1\r\n1\r\n");
    expect(0, 1, "INCR a", ":2\r\n");
    node_kill(0);
    node_start(0);
    run(1000);
    expect(0, 2, "GET a", "$1\r\n2\r\n");
}
END_TEST

START_TEST(any_node_answers) {
    start_all(3);
    for (uint16_t i = 0; i < 3; i++) {
        char line[64];
        snprintf(line, sizeof line, "SET k%u v%u", i, i);
        expect(i, 1 + i, line, "+OK\r\n");
    }
    for (uint16_t i = 0; i < 3; i++) {
        expect(i, 10 + i, "GET k0", "$2\r\nv0\r\n");
        expect(i, 10 + i, "GET k2", "$2\r\nv2\r\n");
    }
}
END_TEST

START_TEST(a_pipeline_keeps_its_order_at_any_node) {
    start_all(3);
    for (uint16_t i = 0; i < 3; i++) {
        for (int n = 0; n < 20; n++) {
            say(i, i, "INCR n");
            say(i, i, "GET n");
            say(i, i, "PING");
        }
        run(3000);
        char want[8192] = "";
        for (int n = 1; n <= 20; n++) {
            char number[16], reply[96];
            snprintf(number, sizeof number, "%d", i * 20 + n);
            snprintf(reply, sizeof reply, ":%s\r\n$%zu\r\n%s\r\n+PONG\r\n", number, strlen(number), number);
            strcat(want, reply);
        }
        ck_assert_str_eq(take(i), want);
    }
}
END_TEST

START_TEST(the_leader_dies_and_nothing_is_lost) {
    start_all(3);
    for (int round = 0; round < 5; round++) {
        const uint16_t old = (uint16_t)leader(), other = (uint16_t)((old + 1) % 3);
        char line[64], reply[64];
        for (int n = 0; n < 10; n++) say(other, 5, "INCR n");
        run(1); /* some are on their way, some chosen, some not sent */
        node_kill(old);
        run(3000);
        ck_assert_int_ne(leader(), old);
        ck_assert_int_ge(leader(), 0);
        const char *got = take(5);
        for (int n = 1; n <= 10; n++) { /* each ran once, in order: the parked ones too */
            snprintf(line, sizeof line, ":%d\r\n", round * 10 + n);
            ck_assert_msg(strncmp(got, line, strlen(line)) == 0, "round %d n %d: %s", round, n, got);
            got += strlen(line);
        }
        node_start(old);
        run(2000);
        char number[16];
        snprintf(number, sizeof number, "%d", (round + 1) * 10);
        snprintf(reply, sizeof reply, "$%zu\r\n%s\r\n", strlen(number), number);
        expect(old, 6, "GET n", reply);
    }
    ck_assert_uint_eq(keyspace_hash(replica_keyspace(nodes[0].replica)),
                      keyspace_hash(replica_keyspace(nodes[1].replica)));
    ck_assert_uint_eq(keyspace_hash(replica_keyspace(nodes[0].replica)),
                      keyspace_hash(replica_keyspace(nodes[2].replica)));
}
END_TEST

static long long granted(uint16_t node, uint64_t client, const char *line) {
    say(node, client, line);
    run(200);
    long long id = -1;
    ck_assert_int_eq(sscanf(take(client), ":%lld", &id), 1);
    return id;
}

START_TEST(a_lock_goes_on_when_its_lease_ends) {
    start_all(3);
    char line[128], reply[64];
    const long long a = granted(0, 1, "LEASE.GRANT 2000"), b = granted(1, 2, "LEASE.GRANT 60000");
    snprintf(line, sizeof line, "LOCK.ACQUIRE l LEASE %lld", a);
    const long long token = granted(2, 1, line);
    snprintf(line, sizeof line, "LOCK.ACQUIRE l LEASE %lld WAIT 20000", b);
    expect(1, 2, line, "");
    snprintf(line, sizeof line, "LEASE.KEEPALIVE %lld", a);
    for (int i = 0; i < 5; i++) {
        expect(2, 3, line, "*1\r\n:2000\r\n");
        run(800);
        ck_assert_str_eq(take(2), "");
    }
    run(2500);
    long long next = 0;
    ck_assert_int_eq(sscanf(take(2), ":%lld", &next), 1);
    ck_assert_int_gt(next, token);
    expect(2, 3, line, "*1\r\n:-1\r\n");
    snprintf(line, sizeof line, "LOCK.CHECK l %lld", next);
    expect(0, 3, line, ":1\r\n");
    snprintf(reply, sizeof reply, "LOCK.CHECK l %lld", token);
    say(0, 3, reply);
    run(200);
    ck_assert_int_eq(strncmp(take(3), "-FENCED", 7), 0);
}
END_TEST

START_TEST(keys_end_and_no_reply_reveals_it_before_the_log) {
    start_all(3);
    expect(0, 1, "SET a 1 PX 1000", "+OK\r\n");
    run(400);
    expect(1, 1, "GET a", "$1\r\n1\r\n");
    run(1000);
    expect(2, 1, "GET a", "$-1\r\n");
    expect(2, 1, "DBSIZE", ":0\r\n");
}
END_TEST

START_TEST(a_move_waits_for_the_other_holder) {
    start_all(3);
    char line[256];
    const long long a = granted(0, 1, "LEASE.GRANT 3000"), b = granted(1, 2, "LEASE.GRANT 3000");
    snprintf(line, sizeof line, "ROUTE.BIND p s LEASE %lld x PREFER x y", a);
    say(0, 1, line);
    run(100);
    long long epoch = 0;
    ck_assert_int_eq(sscanf(take(1), "*6\r\n$1\r\nx\r\n:%lld\r\n", &epoch), 1);
    snprintf(line, sizeof line, "ROUTE.GET p s LEASE %lld", b);
    say(1, 2, line);
    run(100);
    ck_assert_ptr_nonnull(strstr(take(2), "$1\r\nx\r\n"));
    for (int i = 0; i < 2; i++) { /* both are covered, and wait for news */
        snprintf(line, sizeof line, "ROUTE.NEXT LEASE %lld 0", i == 0 ? a : b);
        say((uint16_t)i, (uint64_t)(10 + i), line);
        run(1100);
        ck_assert_int_eq(strncmp(take((uint64_t)(10 + i)), "*2\r\n:3000\r\n:0\r\n", 15), 0);
    }
    snprintf(line, sizeof line, "ROUTE.NEXT LEASE %lld 0", b);
    say(1, 11, line);
    run(50);
    snprintf(line, sizeof line, "ROUTE.MOVE p s %lld LEASE %lld y FORCE", epoch, a);
    say(0, 1, line);
    run(50);
    ck_assert_str_eq(take(1), ""); /* b may still serve x */
    long long ttl = 0, serial = 0;
    const char *news = take(11);
    ck_assert_msg(sscanf(news, "*5\r\n:%lld\r\n:%lld\r\n$1\r\np", &ttl, &serial) == 2, "%s", news);
    snprintf(line, sizeof line, "ROUTE.NEXT LEASE %lld %lld", b, serial);
    say(1, 11, line);
    run(50);
    ck_assert_ptr_nonnull(strstr(take(1), "$1\r\ny\r\n"));
    ck_assert_str_eq(take(11), "");
}
END_TEST

START_TEST(an_idle_node_sleeps) {
    start_all(_i == 0 ? 1 : 3);
    for (uint16_t i = 0; i < node_count; i++) nodes[i].turns = 0;
    run(10000);
    for (uint16_t i = 0; i < node_count; i++) /* 20 heartbeats a second, answered by two, and little else */
        ck_assert_msg(nodes[i].turns < (node_count == 1 ? 80 : 800), "node %u: %llu turns", i,
                      (unsigned long long)nodes[i].turns);
}
END_TEST

START_TEST(the_first_next_is_answered_at_once_by_every_leader) {
    start_all(3);
    char line[128];
    const long long id = granted(0, 1, "LEASE.GRANT 60000");
    const uint16_t old = (uint16_t)leader(), other = (uint16_t)((old + 1) % 3);
    snprintf(line, sizeof line, "ROUTE.NEXT LEASE %lld 0", id);
    expect(other, 1, line, "*2\r\n:60000\r\n:0\r\n");
    expect(other, 1, line, ""); /* the second waits for news */
    node_kill(old);
    run(3000);
    ck_assert_str_eq(take(1), "*2\r\n:60000\r\n:0\r\n"); /* covered again before the old cover could end */
}
END_TEST

START_TEST(a_move_waits_out_the_cover_of_a_silent_holder) {
    start_all(3);
    char line[256];
    const long long a = granted(0, 1, "LEASE.GRANT 3000"), b = granted(1, 2, "LEASE.GRANT 3000");
    snprintf(line, sizeof line, "ROUTE.BIND p s LEASE %lld x PREFER x y", b);
    say(1, 2, line);
    snprintf(line, sizeof line, "ROUTE.NEXT LEASE %lld 0", b);
    say(1, 11, line);
    run(1100);
    long long epoch = 0;
    ck_assert_int_eq(sscanf(take(2), "*6\r\n$1\r\nx\r\n:%lld\r\n", &epoch), 1);
    snprintf(line, sizeof line, "LEASE.KEEPALIVE %lld %lld", a, b);
    snprintf(replies[20], sizeof replies[20], "ROUTE.MOVE p s %lld LEASE %lld y FORCE", epoch, a);
    char move[128];
    strcpy(move, take(20));
    say(0, 1, move);
    for (int i = 0; i < 18; i++) { /* the lease lives on, but only NEXT covers */
        say(2, 3, line);
        run(100);
        ck_assert_msg(take(1)[0] == '\0', "moved after %d ms", i * 100);
    }
    for (int i = 0; i < 18; i++) {
        say(2, 3, line);
        run(100);
    }
    ck_assert_ptr_nonnull(strstr(take(1), "$1\r\ny\r\n"));
}
END_TEST

START_TEST(scripts_run_on_any_node) {
    start_all(3);
    const struct slice set[] = {slice_str("EVAL"),
                                slice_str("redis.call('SET', KEYS[1], ARGV[1]); return redis.call('INCR', KEYS[1])"),
                                slice_str("1"), slice_str("k"), slice_str("41")};
    for (uint16_t i = 0; i < 3; i++) {
        replica_command(nodes[i].replica, now_ms, 0, i, 5, set);
        nodes[i].wake_ms = now_ms;
        run(200);
        ck_assert_str_eq(take(i), ":42\r\n");
    }
    expect(0, 1, "GET k", "$2\r\n42\r\n");
}
END_TEST

START_TEST(a_wiped_node_does_not_vote) {
    start_all(3);
    expect(0, 1, "SET a 1", "+OK\r\n");
    const uint16_t victim = (uint16_t)((leader() + 1) % 3);
    node_kill(victim);
    memset(&nodes[victim].saved, 0, sizeof nodes[victim].saved);
    for (int s = 0; s < SLOTS; s++) nodes[victim].slots[s].there = false;
    node_count = 3;
    now_ms += 10;
    /* another store id in the same place */
    nodes[victim].boot = ++next_boot;
    struct replica_config config = {.alloc = heap_alloc(),
                                    .node = victim,
                                    .node_count = 3,
                                    .store_id = 999,
                                    .boot_id = nodes[victim].boot,
                                    .fresh_cluster_id = 8,
                                    .seed = 5,
                                    .start_ms = now_ms,
                                    .heartbeat_ms = 50,
                                    .lease_ms = 300,
                                    .election_spread_ms = 100,
                                    .drift_ppm = 500,
                                    .forward_timeout_ms = 10000,
                                    .reattach_ms = 1000,
                                    .inflight_max = 16,
                                    .batch_bytes_max = 1 << 20,
                                    .queue_bytes_max = 1 << 24,
                                    .client_pending_max = 1024,
                                    .request_bytes_max = 1 << 19,
                                    .version = "test"};
    ks_settings_default(&config.settings);
    const struct replica_sink sink = {&nodes[victim], sink_save,  sink_send, sink_reply,
                                      sink_hang_up,   sink_fetch, sink_note};
    nodes[victim].replica = replica_new(&config, &nodes[victim].saved, &sink);
    nodes[victim].alive = true;
    nodes[victim].wake_ms = now_ms;
    for (uint16_t i = 0; i < 3; i++)
        if (i != victim) {
            replica_link_up(nodes[victim].replica, now_ms, i);
            replica_link_up(nodes[i].replica, now_ms, victim);
        }
    run(2000);
    ck_assert_int_eq(replica_identity(nodes[victim].replica), IDENTITY_OUTCAST);
    say(victim, 9, "GET a");
    run(10);
    const char *got = take(9);
    ck_assert_msg(strncmp(got, "-CLUSTERDOWN this node's store 00000000000003e7", 46) == 0, "%s", got);
    /* with the wiped node's vote a majority would be there; without it there is none */
    node_kill((uint16_t)leader());
    run(5000);
    ck_assert_int_eq(leader(), -1);
}
END_TEST

/* Its log and promises are there and the record of its cluster is not: what else is missing nobody knows (P11).  Which
 * of the three is left does not matter. */
START_TEST(a_store_that_lost_its_record_does_not_vote) {
    start_all(3);
    expect(0, 1, "SET a 1", "+OK\r\n");
    const uint16_t victim = (uint16_t)((leader() + 1) % 3);
    struct test_node *n = &nodes[victim];
    node_kill(victim);
    n->saved.record = (struct identity_record){0};
    if (_i == 1) n->saved.paxos.chosen = 0; /* accepted entries */
    if (_i == 2) {                          /* a promise */
        n->saved.paxos.chosen = 0;
        for (int s = 0; s < SLOTS; s++) n->slots[s].there = false;
    }
    node_start(victim);
    run(2000);
    ck_assert_int_eq((int)replica_identity(n->replica), IDENTITY_OUTCAST);
    node_kill((uint16_t)leader());
    run(5000);
    ck_assert_int_eq(leader(), -1);
}
END_TEST

/* A command that another node forwards, by hand. */
static void forward(uint16_t to, uint16_t from, enum forward_kind kind, uint64_t seq, uint64_t after, uint32_t argc,
                    const struct slice *argv) {
    const struct frame frame = {.kind = FRAME_FORWARD,
                                .forward = {.kind = kind,
                                            .ballot = paxos_ballot(replica_paxos(nodes[to].replica)),
                                            .boot = nodes[from].boot,
                                            .seq = seq,
                                            .after = after,
                                            .argc = argc,
                                            .argv = argv}};
    replica_frame(nodes[to].replica, now_ms, from, nodes[from].boot, &frame);
    nodes[to].wake_ms = now_ms;
}

/* A round that went out before a read was asked proves nothing for it: somebody else may have led in between (P8). */
START_TEST(a_read_is_not_confirmed_by_a_round_older_than_itself) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    expect(l, 1, "SET a 1", "+OK\r\n");
    deaf[l] = true;
    run(310); /* the lease is over, and it has not stepped down yet */
    ck_assert(replica_is_leader(nodes[l].replica));
    say(l, 1, "GET a");
    run(1); /* the question for a round leaves; its answers wait while the leader is stopped for longer than a lease */
    deaf[l] = false;
    paused[l] = true;
    run(320);
    const struct slice get[] = {slice_str("GET"), slice_str("a")};
    answers = 0;
    forward(l, other, FORWARD_READ, 1000, 0, 2, get);
    paused[l] = false;
    run(1);
    ck_assert_str_eq(take(1), "$1\r\n1\r\n"); /* asked before the round left */
    ck_assert_uint_eq(answers, 0);
}
END_TEST

/* A node that is back at once has lost its connections, and their owners have reattach-ms to come back (W). */
START_TEST(a_quick_restart_leaves_waiters_their_time) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    char line[128];
    const long long a = granted(l, 1, "LEASE.GRANT 60000"), b = granted(l, 1, "LEASE.GRANT 60000");
    snprintf(line, sizeof line, "LOCK.ACQUIRE x LEASE %lld", a);
    (void)granted(l, 1, line);
    snprintf(line, sizeof line, "LOCK.ACQUIRE x LEASE %lld WAIT 60000", b);
    expect(other, 2, line, "");
    node_kill(other);
    node_start(other);
    run(900);
    say(l, 3, "LOCK.INFO x");
    run(10);
    ck_assert_ptr_nonnull(strstr(take(3), "waiters\r\n:1\r\n"));
    run(600);
    say(l, 3, "LOCK.INFO x");
    run(10);
    ck_assert_ptr_nonnull(strstr(take(3), "waiters\r\n:0\r\n"));
}
END_TEST

/* A stream of writes that touch its key, or that may touch any key, does not keep a script out. */
static const char *const streams[] = {"INCR k", "SET k 1 NX", "LEASE.REVOKE 99", "SET other 1"};
START_TEST(a_script_comes_through_a_stream_of_writes) {
    start_all(3);
    const uint16_t l = (uint16_t)leader();
    const struct slice script[] = {slice_str("EVAL"),
                                   slice_str("redis.call('SET', KEYS[1], '5'); return redis.call('GET', KEYS[1])"),
                                   slice_str("1"), slice_str("k")};
    uint64_t client = 40;
    uint32_t done = 0;
    expect(l, 1, "SET k 1", "+OK\r\n");
    for (int ms = 0; ms < 600; ms++) {
        say(l, (uint64_t)(2 + ms % 16), streams[_i]);
        if (ms >= 100 && ms < 110) replica_command(nodes[l].replica, now_ms, 0, client++, 4, script);
        run(1);
        for (uint64_t c = 2; c < 18; c++) (void)take(c);
    }
    for (uint64_t c = 40; c < client; c++) {
        const char *got = take(c);
        done += got[0] != '\0';
        ck_assert_msg(got[0] == '\0' || strcmp(got, "$1\r\n5\r\n") == 0, "%s", got);
    }
    ck_assert_uint_eq(done, 10);
    run(100);
    uint32_t replied = 0;
    for (uint64_t c = 2; c < 18; c++) replied += take(c)[0] != '\0';
    ck_assert_uint_gt(replied, 0); /* and it does not keep them out */
}
END_TEST

/* Other nodes may be configured for longer commands, or be no lockd: what fits no batch must not stop the queue. */
START_TEST(a_forwarded_command_that_fits_no_batch_is_refused) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    static char value[(1 << 20) + 100];
    memset(value, 'v', sizeof value);
    const struct slice set[] = {slice_str("SET"), slice_str("big"), slice_of(value, sizeof value)};
    forward(l, other, FORWARD_WRITE, 1000, 0, 3, set);
    run(100);
    expect(l, 1, "SET a 1", "+OK\r\n");
    expect(other, 1, "GET big", "$-1\r\n");
}
END_TEST

/* An origin forgets a write after forward-timeout; the leader's queue of them has a limit all the same (P5). */
START_TEST(the_leaders_queue_has_a_limit) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    static char value[400000];
    memset(value, 'v', sizeof value);
    const struct slice set[] = {slice_str("SET"), slice_str("big"), slice_of(value, sizeof value)};
    const size_t before = heap_bytes_in_use();
    for (uint64_t seq = 1; seq <= 200; seq++) forward(l, other, FORWARD_WRITE, seq, seq - 1, 3, set);
    ck_assert_uint_lt(heap_bytes_in_use() - before, 40u << 20);
    expect(l, 1, "SET a 1", "+OK\r\n");
    /* what was not taken is as if it were lost: its origin says it again, from the first */
    const struct slice last[] = {slice_str("SET"), slice_str("last"), slice_str("1")};
    forward(l, other, FORWARD_WRITE, 201, 0, 3, last);
    run(100);
    expect(l, 1, "GET last", "$1\r\n1\r\n");
}
END_TEST

/* N: the first of two was lost on the way; the second, taken alone, would run before it, or instead of it. */
START_TEST(a_write_behind_a_lost_one_waits_for_it) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    const struct slice first[] = {slice_str("SET"), slice_str("k"), slice_str("first")};
    const struct slice second[] = {slice_str("SET"), slice_str("k"), slice_str("second"), slice_str("GET")};
    forward(l, other, FORWARD_WRITE, 1001, 1000, 4, second);
    run(100);
    expect(l, 1, "GET k", "$-1\r\n");
    forward(l, other, FORWARD_WRITE, 1000, 0, 3, first); /* all of it is said again */
    forward(l, other, FORWARD_WRITE, 1001, 1000, 4, second);
    run(100);
    expect(l, 1, "GET k", "$6\r\nsecond\r\n");
}
END_TEST

/* A peer that was let in may still be broken, or another version: what it calls a log entry is looked at first. */
START_TEST(an_entry_that_is_no_batch_stays_out_of_the_log) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    expect(l, 1, "SET a 1", "+OK\r\n");
    const paxos_slot slot = paxos_chosen(replica_paxos(nodes[other].replica)) + 1;
    const struct paxos_entry garbage = {
        .slot = slot, .ballot = paxos_ballot(replica_paxos(nodes[l].replica)), .value = slice_str("garbage")};
    const struct frame frame = {.kind = FRAME_PAXOS,
                                .paxos = {.kind = PAXOS_MSG_CHOSEN,
                                          .from = l,
                                          .to = other,
                                          .ballot = garbage.ballot,
                                          .chosen = slot,
                                          .slot = slot,
                                          .slot_last = slot,
                                          .entries = &garbage,
                                          .entry_count = 1}};
    for (int i = 0; i < 3; i++)
        ck_assert_int_eq(replica_frame(nodes[other].replica, now_ms, l, nodes[l].boot, &frame), LINK_TAKEN);
    ck_assert_uint_eq(times_noted("e peer nonsense"), 2); /* at the first, the second, the fourth ... */
    nodes[other].wake_ms = now_ms;
    run(100);
    expect(other, 1, "SET a 2", "+OK\r\n");
    expect(other, 1, "GET a", "$1\r\n2\r\n");
}
END_TEST

/* A restarted node asks who the others are before their links to it are up again.  When these are, it knows at once. */
START_TEST(a_restarted_node_is_let_in_when_the_links_are_up) {
    start_all(3);
    const uint16_t back = (uint16_t)((leader() + 1) % 3);
    node_kill(back);
    run(1000);
    node_start(back);
    for (uint16_t i = 0; i < 3; i++)
        if (i != back) replica_link_lost(nodes[i].replica, now_ms, back);
    run(100);
    for (uint16_t i = 0; i < 3; i++)
        if (i != back) replica_link_up(nodes[i].replica, now_ms, back);
    run(10);
    say(back, 2, "SET a 1");
    run(120);
    ck_assert_str_eq(take(2), "+OK\r\n");
}
END_TEST

/* A node that nobody speaks to answers from what it has, if asked to; and waits until it has what it is asked for. */
START_TEST(a_node_cut_off_answers_from_its_own_state) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    expect(other, 1, "SET a 1", "+OK\r\n");
    expect(other, 1, "READONLY", "+OK\r\n");
    expect(other, 1, "GET a", "$1\r\n1\r\n");
    deaf[other] = true;
    expect(l, 2, "SET a 2", "+OK\r\n");
    expect(other, 1, "GET a", "$1\r\n1\r\n");
    const uint64_t revision = keyspace_revision(replica_keyspace(nodes[l].replica));
    char line[64], reply[64];
    snprintf(line, sizeof line, "WAITREV %llu 500", (unsigned long long)revision);
    snprintf(reply, sizeof reply, ":%llu\r\n", (unsigned long long)revision);
    say(other, 1, line);
    say(other, 1, "GET a");
    run(499);
    ck_assert_str_eq(take(1), "");
    run(2);
    ck_assert_str_eq(take(1), "$-1\r\n$1\r\n1\r\n");
    say(other, 1, line);
    say(other, 1, "GET a");
    deaf[other] = false;
    run(400);
    ck_assert_int_eq(strncmp(replies[1], reply, strlen(reply)), 0);
    ck_assert_str_eq(take(1) + strlen(reply), "$1\r\n2\r\n");
    expect(other, 1, "WAITREV 1 0", reply);
    expect(other, 1, "WAITREV 99999 0", "$-1\r\n");
    expect(other, 1, "WAITREV x 0", "-ERR revision and ms are integers, 0 or more\r\n");
    expect(other, 1, "READWRITE", "+OK\r\n");
    expect(other, 1, "GET a", "$1\r\n2\r\n");
    replica_client_gone(nodes[other].replica, now_ms, 1);
}
END_TEST

/* ---- what peers and clients may send, and no node of ours does ---- */

static uint32_t words_of(const char *line, char *text, size_t text_bytes, struct slice *argv) {
    uint32_t argc = 0;
    snprintf(text, text_bytes, "%s", line);
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) argv[argc++] = slice_str(word);
    return argc;
}

static const struct {
    const char *line, *answer;
} asked[] = {
    {"GET a", "$-1\r\n"},
    {"SET a 1", "-ERR the leader does not know this command\r\n"}, /* no read */
    {"NOSUCH", "-ERR the leader does not know this command\r\n"},
    {"NODE.TRANSFER 1", "-ERR syntax error: NODE.TRANSFER [number]\r\n"}, /* as its origin got it */
    {"NODE.TRANSFER x 1 1", "-ERR syntax error: NODE.TRANSFER [number]\r\n"},
    {"NODE.TRANSFER 1 x 1", "-ERR syntax error: NODE.TRANSFER [number]\r\n"},
    {"NODE.TRANSFER 1 1 x", "-ERR syntax error: NODE.TRANSFER [number]\r\n"},
    {"NODE.TRANSFER 1 1 65536", "-ERR syntax error: NODE.TRANSFER [number]\r\n"},
    {"NODE.TRANSFER 10 1 1", "-ERR there is no such voter to lead, or none was heard lately\r\n"},
    {"LEASE.INFO x", "-ERR id is not an integer or out of range\r\n"},
    {"LEASE.KEEPALIVE 1 x", "-ERR id is not an integer or out of range\r\n"},
    {"ROUTE.NEXT LEESE 1 0", "-ERR syntax error: expected LEASE\r\n"},
    {"ROUTE.NEXT LEASE x 0", "-ERR id and serial are integers\r\n"},
    {"ROUTE.NEXT LEASE 1 x", "-ERR id and serial are integers\r\n"},
    {"ROUTE.NEXT LEASE 1 0", "-NOLEASE that lease is gone\r\n"},
};
START_TEST(what_is_asked_of_the_leader_is_looked_at) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    char text[256];
    struct slice argv[8];
    const uint32_t argc = words_of(asked[_i].line, text, sizeof text, argv);
    forward(l, other, FORWARD_READ, 1000, 0, argc, argv);
    run(10);
    ck_assert_str_eq(last_answer, asked[_i].answer);
    ck_assert_int_eq(leader(), l);
    expect(other, 1, "SET a 1", "+OK\r\n");
}
END_TEST

/* Internal commands are the leader's own, but for one.  The others are answered through the log and do nothing, and
 * what its origin says after them is taken. */
static const char *const not_yours[] = {"%EXPIRE LEASE", "%RENEWED LEASE", "%DEQUEUE 1 2", "NOSUCH", "SET a"};
START_TEST(a_forwarded_write_that_is_none_does_nothing) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    char text[256], id[24], line[64], reply[64];
    struct slice argv[8];
    const long long lease = granted(l, 1, "LEASE.GRANT 60000");
    snprintf(id, sizeof id, "%lld", lease);
    const uint32_t argc = words_of(not_yours[_i], text, sizeof text, argv);
    for (uint32_t i = 0; i < argc; i++)
        if (slice_is_word(argv[i], "LEASE")) argv[i] = slice_str(id);
    const paxos_slot before = paxos_chosen(replica_paxos(nodes[l].replica));
    forward(l, other, FORWARD_WRITE, 1000, 0, argc, argv);
    run(100);
    ck_assert_uint_eq(paxos_chosen(replica_paxos(nodes[l].replica)), before + 1);
    const struct slice set[] = {slice_str("SET"), slice_str("last"), slice_str("1")};
    forward(l, other, FORWARD_WRITE, 1001, 1000, 3, set);
    run(100);
    expect(l, 1, "GET last", "$1\r\n1\r\n");
    snprintf(line, sizeof line, "LEASE.KEEPALIVE %lld", lease);
    snprintf(reply, sizeof reply, "*1\r\n:60000\r\n");
    expect(other, 1, line, reply);
}
END_TEST

START_TEST(a_peer_is_believed_only_as_itself) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3), third = (uint16_t)((l + 2) % 3);
    struct replica *r = nodes[l].replica;
    const uint64_t boot = nodes[other].boot;
    const struct slice get[] = {slice_str("GET"), slice_str("a")};
    struct frame f = {.kind = FRAME_FORWARD,
                      .forward = {.kind = FORWARD_READ,
                                  .ballot = paxos_ballot(replica_paxos(r)),
                                  .boot = boot,
                                  .seq = 1000,
                                  .argc = 2,
                                  .argv = get}};
    ck_assert_int_eq(replica_frame(r, now_ms, PAXOS_NODES_MAX, boot, &f), LINK_NUMBER);
    ck_assert_int_eq(replica_frame(r, now_ms, l, boot, &f), LINK_NUMBER); /* us */
    ck_assert_int_eq(replica_frame(r, now_ms, other, boot + 1, &f), LINK_UNSHOWN);
    ck_assert(replica_admits(r, other, boot));
    ck_assert(!replica_admits(r, other, boot + 1));
    ck_assert(!replica_admits(r, 7, boot));
    f.forward.boot = boot + 1; /* in the name of another life */
    ck_assert_int_eq(replica_frame(r, now_ms, other, boot, &f), LINK_TAKEN);
    f = (struct frame){.kind = FRAME_HELLO, .hello = {.from = other, .to = l, .boot = boot}};
    ck_assert_int_eq(replica_frame(r, now_ms, other, boot, &f), LINK_TAKEN);
    answers = 0;
    nodes[l].wake_ms = now_ms;
    run(10);
    ck_assert_uint_eq(answers, 0);
    f = (struct frame){.kind = FRAME_PAXOS, .paxos = {.kind = PAXOS_MSG_CHOSEN, .from = third, .to = l}};
    ck_assert_int_eq(replica_frame(r, now_ms, other, boot, &f), LINK_NUMBER);
    f.paxos.from = other;
    f.paxos.to = third;
    ck_assert_int_eq(replica_frame(r, now_ms, other, boot, &f), LINK_NUMBER);
    f.paxos.to = l;
    ck_assert_int_eq(replica_frame(r, now_ms, other, boot, &f), LINK_TAKEN);
    expect(third, 1, "SET a 1", "+OK\r\n");
}
END_TEST

/* A question of a peer, as it would be honest; each row changes one thing. */
enum wrong { AS_IT_IS, FROM, TO, BOOT, OUR_STORE, NO_STORE, STRAY, EMPTY, CLUSTER };
static const struct {
    enum wrong what;
    enum link_refusal refusal;
} introductions[] = {{AS_IT_IS, LINK_TAKEN}, {FROM, LINK_NUMBER},     {TO, LINK_NUMBER},
                     {BOOT, LINK_NUMBER},    {OUR_STORE, LINK_TWICE}, {NO_STORE, LINK_NUMBER},
                     {STRAY, LINK_MEMBER},   {EMPTY, LINK_MEMBER},    {CLUSTER, LINK_CLUSTER}};
START_TEST(who_introduces_itself_wrongly_is_refused) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    struct frame f = {.kind = FRAME_IDENTITY,
                      .identity = {.from = other,
                                   .to = l,
                                   .node_count = 3,
                                   .store_id = nodes[other].store_id,
                                   .boot_id = nodes[other].boot,
                                   .record = nodes[other].saved.record}};
    struct identity_msg *m = &f.identity;
    switch (introductions[_i].what) {
    case AS_IT_IS: break;
    case FROM: m->from = (uint16_t)((l + 2) % 3); break;
    case TO: m->to = other; break;
    case BOOT: m->boot_id++; break;
    case OUR_STORE: m->store_id = nodes[l].store_id; break;
    case NO_STORE: m->store_id = 0; break;
    case STRAY:
        m->record.cluster_id = 0;
        m->stray = true;
        break;
    case EMPTY:
        m->record.cluster_id = 0;
        m->store_id = 999;
        break;
    case CLUSTER: m->record.cluster_id++; break;
    }
    ck_assert_int_eq(replica_frame(nodes[l].replica, now_ms, other, nodes[other].boot, &f), introductions[_i].refusal);
    nodes[l].wake_ms = now_ms;
    run(100);
    ck_assert_int_eq(leader(), l);
    expect(other, 1, "SET a 1", "+OK\r\n");
}
END_TEST

/* Nobody is formed yet. */
START_TEST(a_joining_node_compares_counts_and_may_be_told_that_it_is_out) {
    node_count = 3;
    now_ms = 1000;
    scratch.alloc = heap_alloc();
    node_start(0);
    run(100);
    struct replica *r = nodes[0].replica;
    struct frame f = {
        .kind = FRAME_IDENTITY,
        .identity = {.is_answer = true, .from = 1, .to = 0, .node_count = 5, .store_id = 101, .boot_id = 55}};
    ck_assert_int_eq(replica_frame(r, now_ms, 1, 55, &f), LINK_COUNT);
    const struct frame early = {.kind = FRAME_HELLO};
    ck_assert_int_eq(replica_frame(r, now_ms, 1, 55, &early), LINK_TAKEN); /* it cannot have shown itself to us yet */
    say(0, 1, "INFO replication");
    run(1);
    ck_assert_ptr_nonnull(strstr(take(1), "holdfast_role:joining\r\n"));
    const uint64_t stores[] = {999, 101, 102};
    f.identity.record.cluster_id = 70;
    membership_founding(&f.identity.record.members, 3, stores);
    ck_assert_int_eq(replica_frame(r, now_ms, 1, 55, &f), LINK_TAKEN); /* nothing is wrong with it, but with us */
    nodes[0].wake_ms = now_ms;
    run(1);
    ck_assert_int_eq((int)replica_identity(r), IDENTITY_OUTCAST);
    say(0, 1, "INFO replication");
    run(1);
    ck_assert_ptr_nonnull(strstr(take(1), "holdfast_role:outcast\r\n"));
}
END_TEST

/* An answer is for one life of ours and one ballot. */
START_TEST(an_answer_that_is_not_for_us_is_none) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    expect(other, 1, "SET a 1", "+OK\r\n");
    expect(other, 1, "GET a", "$1\r\n1\r\n");
    paused[l] = true; /* so that only we answer */
    say(other, 1, "GET a");
    run(1);
    const struct ballot ballot = paxos_ballot(replica_paxos(nodes[l].replica));
    struct frame f = {.kind = FRAME_ANSWER,
                      .answer = {.kind = ANSWER_REPLY,
                                 .of = FORWARD_READ,
                                 .ballot = ballot,
                                 .boot = nodes[other].boot + 1,
                                 .reply = slice_str("+WRONG\r\n")}};
    for (uint64_t seq = 1; seq < 20; seq++) {
        f.answer.seq = seq;
        f.answer.boot = nodes[other].boot + 1;
        f.answer.ballot = ballot;
        ck_assert_int_eq(replica_frame(nodes[other].replica, now_ms, l, nodes[l].boot, &f), LINK_TAKEN);
        f.answer.boot = nodes[other].boot;
        f.answer.ballot.round = ballot.round + 1;
        ck_assert_int_eq(replica_frame(nodes[other].replica, now_ms, l, nodes[l].boot, &f), LINK_TAKEN);
    }
    run(50);
    paused[l] = false;
    run(100);
    ck_assert_str_eq(take(1), "$1\r\n1\r\n");
}
END_TEST

START_TEST(a_node_says_what_it_is) {
    for (int i = 0; i < NODES; i++) names_reach[i] = true;
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3), third = (uint16_t)((l + 2) % 3);
    char want[256];
    say(l, 1, "INFO replication");
    say(other, 2, "NODE.STATUS");
    run(1);
    ck_assert_ptr_nonnull(strstr(take(1), "holdfast_role:leader\r\n"));
    const char *status = take(2);
    ck_assert_ptr_nonnull(strstr(status, "$4\r\nrole\r\n$8\r\nfollower\r\n"));
    for (uint16_t i = 0; i < 3; i++) { /* the log has the addresses that the founder was configured with */
        snprintf(want, sizeof want, "*4\r\n:%u\r\n$5\r\nvoter\r\n$16\r\n%016llx\r\n$%zu\r\n%s\r\n", i + 1u,
                 (unsigned long long)nodes[i].store_id, strlen(addresses[i]), addresses[i]);
        ck_assert_msg(strstr(status, want) != NULL, "%s", status);
        ck_assert_str_eq(keyspace_members(replica_keyspace(nodes[third].replica))->addresses[i], addresses[i]);
    }
    node_kill(l);
    node_kill(third);
    run(2000);
    say(other, 1, "INFO replication");
    run(1);
    ck_assert_ptr_nonnull(strstr(take(1), "holdfast_role:candidate\r\n"));
}
END_TEST

START_TEST(a_connection_is_what_it_says) {
    start_all(1);
    static char big[(1 << 19) + 1];
    memset(big, 'v', sizeof big);
    const struct slice set[] = {slice_str("SET"), slice_str("big"), slice_of(big, sizeof big)},
                       no_name[] = {slice_str("CLIENT"), slice_str("SETNAME"), slice_of("", 0)},
                       no_id[] = {slice_str("LEASE.KEEPALIVE"), slice_of("", 0)};
    replica_command(nodes[0].replica, now_ms, 0, 1, 3, set);
    nodes[0].wake_ms = now_ms;
    run(10);
    ck_assert_str_eq(take(1), "-ERR the command is too long: 524295 bytes, request-bytes-max is 524288\r\n");
    expect(0, 1, "GET big", "$-1\r\n");
    expect(0, 2, "READWRITE", "+OK\r\n"); /* which it was anyway */
    expect(0, 2, "CLIENT SETNAME me", "+OK\r\n");
    expect(0, 2, "CLIENT GETNAME", "$2\r\nme\r\n");
    replica_command(nodes[0].replica, now_ms, 0, 2, 3, no_name);
    expect(0, 2, "CLIENT GETNAME", "+OK\r\n$-1\r\n");
    replica_command(nodes[0].replica, now_ms, 0, 2, 2, no_id);
    expect(0, 2, "PING", "-ERR id is not an integer or out of range\r\n+PONG\r\n");
    expect(0, 2, "WAITREV 1 x", "-ERR revision and ms are integers, 0 or more\r\n");
}
END_TEST

/* ---- at the leader ---- */

/* Who reads at the very moment at which a key ends gets its answer when the log says so: no value after a nil, and
 * nothing is lost (T3). */
START_TEST(a_key_that_is_due_is_read_when_the_log_has_ended_it) {
    start_all(3);
    const uint16_t l = (uint16_t)leader();
    const struct slice eval[] = {slice_str("EVAL"), slice_str("return redis.call('GET', KEYS[1]) or 'none'"),
                                 slice_str("1"), slice_str("a")};
    expect(l, 1, "SET a 1 PX 400", "+OK\r\n");
    uint32_t late = 0;
    for (int i = 0; i < 300; i++) {
        const size_t before = strlen(replies[2]);
        say(l, 2, "GET a");
        replica_command(nodes[l].replica, now_ms, 0, 3, 4, eval);
        run(1);
        late += strlen(replies[2]) == before;
    }
    run(3000); /* of the scripts one runs at a time */
    ck_assert_uint_gt(late, 0);
    static const char *const words[2][2] = {{"$1\r\n1\r\n", "$-1\r\n"}, {"$1\r\n1\r\n", "$4\r\nnone\r\n"}};
    for (uint64_t client = 2; client < 4; client++) {
        uint32_t counts[2] = {0};
        const char *at = take(client);
        for (int which = 0; which < 2; which++)
            for (; strncmp(at, words[client - 2][which], strlen(words[client - 2][which])) == 0; counts[which]++)
                at += strlen(words[client - 2][which]);
        ck_assert_str_eq(at, "");
        ck_assert_uint_eq(counts[0] + counts[1], 300);
        ck_assert(counts[0] > 0 && counts[1] > 0);
    }
}
END_TEST

START_TEST(a_held_next_ends_with_its_lease_or_by_a_newer_one) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    char line[64];
    const long long id = granted(l, 1, "LEASE.GRANT 60000");
    snprintf(line, sizeof line, "ROUTE.NEXT LEASE %lld 0", id);
    expect(other, 2, line, "*2\r\n:60000\r\n:0\r\n");
    expect(other, 2, line, ""); /* waits for news */
    expect(l, 3, line, "");
    ck_assert_str_eq(take(2), "-ERR a newer ROUTE.NEXT of the same lease took its place\r\n");
    snprintf(line, sizeof line, "ROUTE.NEXT LEASE %lld 99999", id);
    expect(l, 4, line, "-ERR serial is higher than any this cluster gave out\r\n");
    ck_assert_str_eq(take(3), "");
    snprintf(line, sizeof line, "LEASE.REVOKE %lld", id);
    expect(other, 4, line, ":1\r\n");
    ck_assert_str_eq(take(3), "-NOLEASE that lease is gone\r\n");
}
END_TEST

/* The leader lets go, and nobody takes it: the next one is asked in its turn, and says that it cannot be. */
START_TEST(a_transfer_to_a_node_that_hangs_is_given_up) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3), third = (uint16_t)((l + 2) % 3);
    char line[64];
    paused[other] = true;
    snprintf(line, sizeof line, "NODE.TRANSFER %u", other + 1u);
    say(third, 1, line);
    say(third, 2, "SET a 1");
    run(600);
    ck_assert_str_eq(take(1), "");
    run(900);
    ck_assert_str_eq(take(1), "-ERR that node did not catch up in time; the leader leads on\r\n");
    ck_assert_str_eq(take(2), "+OK\r\n");
    ck_assert(leader() == l || leader() == third);
}
END_TEST

START_TEST(a_script_whose_effects_fit_no_batch_does_nothing) {
    start_all(1);
    static char value[400000];
    memset(value, 'v', sizeof value);
    const struct slice eval[] = {slice_str("EVAL"),
                                 slice_str("for i = 1, 3 do redis.call('SET', KEYS[i], ARGV[1]) end"),
                                 slice_str("3"),
                                 slice_str("a"),
                                 slice_str("b"),
                                 slice_str("c"),
                                 slice_of(value, sizeof value)};
    replica_command(nodes[0].replica, now_ms, 0, 1, 7, eval);
    nodes[0].wake_ms = now_ms;
    run(100);
    const char *got = take(1);
    ck_assert_msg(strncmp(got, "-ERR the effects of this script are too large: 12", 49) == 0, "%s", got);
    expect(0, 1, "EXISTS a b c", ":0\r\n");
    expect(0, 1, "SET a 1", "+OK\r\n");
}
END_TEST

/* A node that does not take what we have for it costs us no memory; it catches up from the store. */
START_TEST(a_peer_that_takes_nothing_is_left_out) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), slow = (uint16_t)((l + 1) % 3);
    expect(l, 1, "SET a 0", "+OK\r\n");
    backlogs[slow] = 17 << 20;
    uint32_t entries = 0;
    for (int i = 0; i < 5; i++) {
        say(l, 1, "INCR a");
        run(1);
        for (const struct packet *p = packets; p != NULL; p = p->next) {
            struct frame f;
            static struct frame_scratch frame_scratch;
            size_t used;
            ck_assert_int_eq(frame_decode(p->data, p->bytes, &f, &frame_scratch, &used), FRAME_OK);
            if (p->to == slow && f.kind == FRAME_PAXOS && f.paxos.kind == PAXOS_MSG_ACCEPT)
                entries += f.paxos.entry_count;
        }
        run(20);
    }
    ck_assert_str_eq(take(1), ":1\r\n:2\r\n:3\r\n:4\r\n:5\r\n");
    ck_assert_uint_eq(entries, 0);
    backlogs[slow] = 0;
    run(1000);
    ck_assert_uint_eq(keyspace_hash(replica_keyspace(nodes[slow].replica)),
                      keyspace_hash(replica_keyspace(nodes[l].replica)));
}
END_TEST

/* The disks were looked at before the cluster had formed. */
START_TEST(a_disk_that_is_full_from_the_start_counts) {
    disk_reserve = 1000;
    node_count = 3;
    now_ms = 1000;
    scratch.alloc = heap_alloc();
    for (uint16_t i = 0; i < 3; i++) {
        node_start(i);
        replica_disk_free(nodes[i].replica, i == 0 ? 5000 : 10);
    }
    run(3000);
    say(0, 1, "SET a 1");
    run(200);
    ck_assert_int_eq(strncmp(take(1), "-DISKFULL", 9), 0);
    say(0, 1, "INFO persistence");
    say(1, 2, "INFO persistence");
    run(1);
    ck_assert_ptr_nonnull(strstr(take(1), "disk_free_bytes:5000\r\n"));
    ck_assert_ptr_nonnull(strstr(take(2), "disk_free_bytes:10\r\n"));
}
END_TEST

/* ---- checkpoints and snapshots ---- */

static uint64_t state_hash(uint16_t node) {
    return keyspace_hash(replica_keyspace(nodes[node].replica));
}
static void write_much(uint16_t node, int count) {
    for (int i = 0; i < count; i++) {
        char line[600];
        snprintf(line, sizeof line, "SET k%d %0500d", i % 20, i);
        say(node, 60, line);
        run(10);
    }
    run(300);
    replies[60][0] = '\0';
}
static void start_all_with_checkpoints(uint64_t bytes) {
    checkpoint_bytes = bytes;
    start_all(3);
}

START_TEST(the_log_is_cut_behind_the_checkpoint_before) {
    start_all_with_checkpoints(20000);
    const uint16_t l = (uint16_t)leader();
    write_much(l, 200);
    for (uint16_t i = 0; i < 3; i++) {
        const struct replica_saved *saved = &nodes[i].saved;
        ck_assert_uint_ge(nodes[i].checkpoints, 4);
        ck_assert_uint_gt(saved->paxos.cut, 0);
        ck_assert_uint_lt(saved->paxos.cut, saved->checkpoint_slot); /* one generation is kept */
    }
    for (uint16_t i = 0; i < 3; i++) node_kill(i);
    for (uint16_t i = 0; i < 3; i++) node_start(i);
    run(3000);
    ck_assert_int_ge(leader(), 0);
    char want[600];
    snprintf(want, sizeof want, "$500\r\n%0500d\r\n", 199);
    expect((uint16_t)leader(), 1, "GET k19", want);
    ck_assert_uint_eq(state_hash(0), state_hash(1));
    ck_assert_uint_eq(state_hash(0), state_hash(2));
}
END_TEST

START_TEST(a_node_behind_the_cut_gets_a_snapshot) {
    start_all_with_checkpoints(20000);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    const long long lease = granted(l, 1, "LEASE.GRANT 60000");
    node_kill(other);
    write_much(l, 200);
    ck_assert_uint_gt(nodes[l].saved.paxos.cut, 0);
    node_start(other);
    run(3000);
    ck_assert_uint_eq(nodes[other].installs, 1);
    ck_assert_uint_eq(state_hash(other), state_hash(l));
    char line[64];
    snprintf(line, sizeof line, "LOCK.ACQUIRE lock LEASE %lld", lease);
    ck_assert_int_gt(granted(other, 2, line), 0); /* the lease came with it */
    node_kill(other);
    node_start(other); /* from what was installed */
    run(1000);
    ck_assert_uint_eq(nodes[other].installs, 1);
    ck_assert_uint_eq(state_hash(other), state_hash(l));
}
END_TEST

/* N6: what its own clients had out when it fell behind. */
START_TEST(a_snapshot_and_the_clients_of_the_node_that_takes_it) {
    start_all_with_checkpoints(20000);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    const long long holder = granted(l, 1, "LEASE.GRANT 600000"), waiter = granted(l, 1, "LEASE.GRANT 600000");
    static const char uncertain[] = "-UNCERTAIN this node caught up by a snapshot; the command may have run\r\n";
    char line[64], reply[64];
    for (int i = 0; i < 2; i++) {
        snprintf(line, sizeof line, "LOCK.ACQUIRE lock%d LEASE %lld", i, holder);
        ck_assert_int_gt(granted(l, 1, line), 0);
        snprintf(line, sizeof line, "LOCK.ACQUIRE lock%d LEASE %lld WAIT 500000", i, waiter);
        say(other, 10u + (uint64_t)i, line);
    }
    run(200);
    deaf[other] = true; /* it speaks, and hears nothing: its write runs, and it does not learn of it */
    say(other, 12, "INCR n");
    run(100);
    snprintf(line, sizeof line, "LOCK.RELEASE lock1 LEASE %lld", holder);
    expect(l, 1, line, ":1\r\n"); /* lock1 goes to the waiter while its node hears nothing */
    write_much(l, 200);
    ck_assert_str_eq(take(12), "");
    ck_assert_uint_gt(nodes[l].saved.paxos.cut, keyspace_slot(replica_keyspace(nodes[other].replica)));
    deaf[other] = false;
    run(3000);
    ck_assert_uint_eq(nodes[other].installs, 1);
    ck_assert_str_eq(take(12), uncertain);
    ck_assert_str_eq(take(11), uncertain);
    ck_assert_str_eq(take(10), ""); /* it still waits ... */
    expect(l, 1, "GET n", "$1\r\n1\r\n");
    snprintf(line, sizeof line, "LOCK.RELEASE lock0 LEASE %lld", holder);
    expect(l, 1, line, ":1\r\n"); /* ... and is granted */
    ck_assert_int_eq(replies[10][0], ':');
    snprintf(line, sizeof line, "LOCK.ACQUIRE lock1 LEASE %lld", waiter);
    snprintf(reply, sizeof reply, ":%lld\r\n", granted(other, 11, line)); /* asked again: the same token */
    expect(l, 1, line, reply);
}
END_TEST

START_TEST(a_damaged_snapshot_changes_nothing) {
    start_all_with_checkpoints(20000);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    node_kill(other);
    write_much(l, 200);
    const uint64_t hash = state_hash(l);
    for (uint16_t i = 0; i < 3; i++)
        if (i != other) nodes[i].file.data[nodes[i].file.bytes / 2] ^= 1;
    node_start(other);
    run(3000);
    ck_assert_uint_eq(nodes[other].installs, 0);
    ck_assert_uint_lt(keyspace_slot(replica_keyspace(nodes[other].replica)), nodes[l].saved.paxos.cut);
    for (uint16_t i = 0; i < 3; i++)
        if (i != other) nodes[i].file.data[nodes[i].file.bytes / 2] ^= 1;
    run(20000);
    ck_assert_uint_eq(nodes[other].installs, 1);
    ck_assert_uint_eq(state_hash(other), hash);
}
END_TEST

/* Two values for one slot: such a node can never work again, and what it was installing does not change that.  It keeps
 * the state it had, votes no more and serves nobody. */
START_TEST(a_node_that_halts_while_it_installs_does_nothing_more) {
    start_all_with_checkpoints(20000);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    struct test_node *n = &nodes[other];
    node_kill(other);
    write_much(l, 200);
    node_start(other);
    for (int i = 0; i < 3000 && n->installs == 0; i++) run(1);
    ck_assert(n->new_slot > 0 && n->new_is_install);
    n->alive = false; /* from here on by hand */
    const struct ballot ballot = paxos_ballot(replica_paxos(nodes[l].replica));
    struct paxos_entry entry = {.slot = paxos_chosen(replica_paxos(n->replica)) + 3, .ballot = ballot};
    struct frame frame = {
        .kind = FRAME_PAXOS,
        .paxos = {
            .kind = PAXOS_MSG_ACCEPT, .from = l, .to = other, .ballot = ballot, .entries = &entry, .entry_count = 1}};
    struct buf batch = {.alloc = heap_alloc()};
    batch_begin(&batch, ballot, false, 0);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(replica_frame(n->replica, now_ms, l, nodes[l].boot, &frame), LINK_TAKEN);
        entry.value = buf_slice(&batch);
    }
    buf_release(&batch);
    ck_assert_ptr_nonnull(replica_halt_reason(n->replica));
    const uint64_t hash = state_hash(other);
    const paxos_slot slot = keyspace_slot(replica_keyspace(n->replica));
    (void)replica_turn(n->replica, now_ms);
    n->batch = 0;
    file_done(n); /* it became durable all the same */
    paxos_frames = 0;
    frame.paxos = (struct paxos_msg){.kind = PAXOS_MSG_PREVOTE,
                                     .from = l,
                                     .to = other,
                                     .ballot = {.round = ballot.round + 5, .node = l},
                                     .round = 9};
    (void)replica_frame(n->replica, now_ms, l, nodes[l].boot, &frame);
    say(other, 3, "GET k1");
    for (int i = 0; i < 50; i++) (void)replica_turn(n->replica, now_ms++);
    ck_assert_uint_eq(paxos_frames, 0);
    ck_assert_str_eq(take(3), "");
    ck_assert_uint_eq(keyspace_slot(replica_keyspace(n->replica)), slot);
    ck_assert_uint_eq(state_hash(other), hash);
    n->alive = true;
}
END_TEST

/* D4: on the disk it has gone bad, in memory all is there; nobody writes, so nothing else would make another one. */
START_TEST(a_damaged_checkpoint_is_written_again) {
    start_all_with_checkpoints(20000);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    node_kill(other);
    write_much(l, 200);
    expect(l, 1, "SNAPSHOT.SAVE", "+OK\r\n");
    const uint32_t made = nodes[l].checkpoints;
    const paxos_slot cut = nodes[l].saved.paxos.cut;
    for (uint16_t i = 0; i < 3; i++) nodes[i].unreadable = true;
    node_start(other);
    run(5000);
    ck_assert_uint_eq(nodes[other].installs, 1);
    ck_assert_uint_eq(state_hash(other), state_hash(l));
    ck_assert_uint_eq(nodes[l].checkpoints, made + 1);
    ck_assert_uint_eq(nodes[l].saved.paxos.cut, cut); /* the damaged one was no generation */
    node_kill(other);
    node_kill((uint16_t)(3 - l - other));
    node_start((uint16_t)(3 - l - other));
    run(2000);
    for (int i = 0; i < 3; i++) { /* the disk under it is bad: not in a loop */
        nodes[l].unreadable = true;
        replica_checkpoint_damaged(nodes[l].replica, nodes[l].saved.checkpoint_slot);
        nodes[l].wake_ms = now_ms;
        run(1000);
    }
    ck_assert_uint_eq(nodes[l].checkpoints, made + 1);
    run(10000);
    ck_assert_uint_eq(nodes[l].checkpoints, made + 2);
}
END_TEST

START_TEST(a_checkpoint_is_made_when_asked_for) {
    start_all(3);
    const uint16_t l = (uint16_t)leader();
    expect(l, 1, "SET a 1", "+OK\r\n");
    ck_assert_uint_eq(nodes[l].checkpoints, 0);
    for (uint64_t client = 1; client < 4; client++) say(l, client, "SNAPSHOT.SAVE");
    say(l, 1, "PING"); /* behind it */
    run(5);
    ck_assert_str_eq(take(1), "");
    run(5);
    ck_assert_str_eq(take(1), "+OK\r\n+PONG\r\n");
    ck_assert_str_eq(take(2), "+OK\r\n");
    ck_assert_str_eq(take(3), "+OK\r\n");
    ck_assert_uint_eq(nodes[l].checkpoints, 1);
    expect(l, 1, "SNAPSHOT.SAVE", "+OK\r\n"); /* nothing has changed */
    ck_assert_uint_eq(nodes[l].checkpoints, 1);
    expect(l, 1, "SET a 2", "+OK\r\n");
    checkpoints_fail = true;
    expect(l, 1, "SNAPSHOT.SAVE", "-ERR the checkpoint could not be written; this node's log file says why\r\n");
    ck_assert_uint_lt(nodes[l].saved.checkpoint_slot, keyspace_slot(replica_keyspace(nodes[l].replica)));
    checkpoints_fail = false;
    expect(l, 1, "SNAPSHOT.SAVE", "+OK\r\n");
    say(l, 1, "SET a 3"); /* who asks while one is being written gets the next */
    run(100);
    say(l, 2, "SNAPSHOT.SAVE");
    run(1);
    say(l, 1, "SET a 4");
    run(4);
    say(l, 3, "SNAPSHOT.SAVE");
    run(100);
    ck_assert_str_eq(take(2), "+OK\r\n");
    ck_assert_str_eq(take(3), "+OK\r\n");
    ck_assert_uint_eq(nodes[l].checkpoints, 5);
}
END_TEST

START_TEST(who_keeps_the_whole_log_makes_no_checkpoint) {
    whole_logs = true;
    start_all_with_checkpoints(1000);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    expect(l, 1, "SNAPSHOT.SAVE", "-ERR this node keeps its whole log and makes no checkpoints\r\n");
    node_kill(other);
    write_much(l, 20);
    ck_assert_uint_eq(nodes[l].checkpoints + nodes[l].saved.paxos.cut, 0);
    const struct frame offer = {.kind = FRAME_SNAPSHOT,
                                .snapshot = {.kind = SNAPSHOT_OFFER, .slot = 100000, .total = 5000}};
    node_start(other);
    run(100);
    ck_assert_int_eq(replica_frame(nodes[other].replica, now_ms, l, nodes[l].boot, &offer), LINK_TAKEN);
    say(other, 1, "INFO persistence");
    run(1);
    ck_assert_ptr_nonnull(strstr(take(1), "snapshot_total_bytes:0\r\n")); /* it takes none */
    run(500);
    ck_assert_uint_eq(state_hash(other), state_hash(l));
}
END_TEST

START_TEST(those_who_wait_for_a_checkpoint_have_a_limit) {
    enum { MAX = 64 }; /* replica_state.h */
    start_all(1);
    expect(0, 1, "SET a 1", "+OK\r\n");
    for (uint64_t c = 1; c <= MAX + 1; c++) say(0, c, "SNAPSHOT.SAVE");
    run(1);
    ck_assert_str_eq(take(MAX + 1), "-BUSY too many commands wait for a checkpoint\r\n");
    run(100);
    for (uint64_t c = 1; c <= MAX; c++) ck_assert_str_eq(take(c), "+OK\r\n");
    expect(0, MAX + 1, "SNAPSHOT.SAVE", "+OK\r\n");
}
END_TEST

/* What a node gets back from its disk is looked at before it is believed. */
START_TEST(a_checkpoint_that_is_not_what_it_is_said_to_be_is_refused) {
    start_all(1);
    expect(0, 1, "SET a 1", "+OK\r\n");
    expect(0, 1, "SNAPSHOT.SAVE", "+OK\r\n");
    struct test_node *n = &nodes[0];
    struct replica_saved saved = n->saved;
    char error[128] = "";
    const struct replica_sink sink = {&nodes[0], sink_save, sink_send, sink_reply, sink_hang_up, sink_fetch, sink_note};
    const struct replica_config config = {.alloc = heap_alloc(),
                                          .node_count = 1,
                                          .store_id = n->store_id,
                                          .boot_id = 99,
                                          .fresh_cluster_id = 7,
                                          .inflight_max = 1,
                                          .batch_bytes_max = 1 << 20,
                                          .version = "test"};
    saved.checkpoint_slot++;
    struct replica *r = replica_new(&config, &saved, &sink);
    ck_assert_int_eq(replica_restore(r, buf_slice(&n->file), error, sizeof error), -1);
    ck_assert_ptr_nonnull(strstr(error, "the checkpoint is of slot"));
    replica_free(r);
    saved.checkpoint_slot--;
    n->file.data[n->file.bytes / 2] ^= 1;
    r = replica_new(&config, &saved, &sink);
    ck_assert_int_eq(replica_restore(r, buf_slice(&n->file), error, sizeof error), -1);
    n->file.data[n->file.bytes / 2] ^= 1;
    ck_assert_int_eq(replica_restore(r, buf_slice(&n->file), error, sizeof error), 0);
    replica_free(r);
}
END_TEST

/* The checkpoint that was being written is of a state that has gone: nobody is told that it is durable. */
START_TEST(a_checkpoint_that_nobody_waits_for_changes_nothing) {
    start_all(1);
    expect(0, 1, "SET a 1", "+OK\r\n");
    expect(0, 1, "SNAPSHOT.SAVE", "+OK\r\n");
    const paxos_slot slot = nodes[0].saved.checkpoint_slot;
    expect(0, 1, "SET a 2", "+OK\r\n");
    replica_checkpointed(nodes[0].replica, now_ms, slot + 1, 12345); /* none is on its way */
    replica_installed(nodes[0].replica, now_ms, slot + 1);
    say(0, 2, "SNAPSHOT.SAVE");
    run(1);
    ck_assert_uint_gt(nodes[0].new_slot, slot);
    replica_checkpointed(nodes[0].replica, now_ms, slot, 12345); /* not that one */
    run(1);
    ck_assert_str_eq(take(2), "");
    say(0, 1, "INFO persistence");
    run(1);
    ck_assert_ptr_nonnull(strstr(take(1), "checkpoints_made:1\r\n"));
    run(100);
    ck_assert_str_eq(take(2), "+OK\r\n");
    say(0, 1, "INFO persistence");
    run(1);
    ck_assert_ptr_nonnull(strstr(take(1), "checkpoints_made:2\r\n"));
}
END_TEST

/* The first `bytes` of a snapshot come to a node by hand: an offer of the leader, and the answer to its question. */
static void offer_to(uint16_t to, uint16_t from, paxos_slot slot, uint64_t total) {
    const struct frame f = {.kind = FRAME_SNAPSHOT, .snapshot = {.kind = SNAPSHOT_OFFER, .slot = slot, .total = total}};
    ck_assert_int_eq(replica_frame(nodes[to].replica, now_ms, from, nodes[from].boot, &f), LINK_TAKEN);
}
static void hand_over_file(uint16_t to, uint16_t from, paxos_slot slot, const struct buf *file) {
    offer_to(to, from, slot, file->bytes);
    const struct frame f = {
        .kind = FRAME_SNAPSHOT,
        .snapshot = {.kind = SNAPSHOT_DATA, .slot = slot, .total = file->bytes, .data = buf_slice(file)}};
    ck_assert_int_eq(replica_frame(nodes[to].replica, now_ms, from, nodes[from].boot, &f), LINK_TAKEN);
    nodes[to].wake_ms = now_ms;
}
static uint64_t pulling(uint16_t node) {
    unsigned long long bytes = 0;
    say(node, 62, "INFO persistence");
    run(1);
    sscanf(strstr(take(62), "snapshot_total_bytes:"), "snapshot_total_bytes:%llu", &bytes);
    return bytes;
}

START_TEST(a_snapshot_that_is_not_what_it_is_said_to_be_is_refused) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    expect(l, 1, "SET a 1", "+OK\r\n");
    expect(l, 1, "SNAPSHOT.SAVE", "+OK\r\n");
    const paxos_slot slot = nodes[l].saved.checkpoint_slot;
    const uint64_t hash = state_hash(other);
    offer_to(other, l, slot + 1000, UINT64_MAX / 2);
    ck_assert_uint_eq(times_noted("e snapshot refused"), 1);
    ck_assert_uint_eq(pulling(other), 0);
    run(11000);                                            /* it is not listened to for a while */
    hand_over_file(other, l, slot + 1000, &nodes[l].file); /* whole, and of another slot */
    run(10);
    ck_assert_uint_eq(times_noted("what=\"it is of another slot than was said\""), 1);
    ck_assert_uint_eq(nodes[other].installs, 0);
    run(11000);
    nodes[l].file.data[nodes[l].file.bytes / 2] ^= 1;
    hand_over_file(other, l, slot + 1000, &nodes[l].file);
    ck_assert_uint_eq(times_noted("a checksum or a length does not hold"), 1);
    run(11000);
    offer_to(other, l, slot + 1000, 100000); /* and then nothing */
    ck_assert_uint_eq(pulling(other), 100000);
    run(59000);
    ck_assert_uint_eq(pulling(other), 100000);
    run(2000);
    ck_assert_uint_eq(pulling(other), 0);
    ck_assert_uint_eq(times_noted("w snapshot given-up"), 1);
    ck_assert_uint_eq(state_hash(other), hash);
    ck_assert_int_eq(leader(), l);
}
END_TEST

/* A snapshot that the log has overtaken: before it was whole, while it was made durable; and one that nobody waits for
 * any more because the process ends. */
START_TEST(the_log_may_be_faster_than_a_snapshot) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    struct test_node *n = &nodes[other];
    for (int i = 0; i < 4; i++) {
        expect(l, 1, "INCR a", i == 0 ? ":1\r\n" : i == 1 ? ":2\r\n" : i == 2 ? ":3\r\n" : ":4\r\n");
        deaf[other] = true;
        say(l, 1, "SET b 1"); /* this one it does not hear of yet */
        run(50);
        ck_assert_str_eq(take(1), "+OK\r\n");
        expect(l, 1, "SNAPSHOT.SAVE", "+OK\r\n");
        const paxos_slot slot = nodes[l].saved.checkpoint_slot;
        ck_assert_uint_gt(slot, keyspace_slot(replica_keyspace(n->replica)));
        if (i == 0) {                                                            /* it has begun to pull */
            offer_to(other, (uint16_t)((l + 2) % 3), slot, nodes[l].file.bytes); /* which has none to give */
            ck_assert_uint_gt(pulling(other), 0);
            deaf[other] = false;
            run(2000);
            ck_assert_uint_eq(pulling(other), 0);
            ck_assert_uint_eq(n->installs, 0);
        } else if (i == 1) { /* it is on its way to the disk */
            hand_over_file(other, l, slot, &nodes[l].file);
            run(1);
            ck_assert_uint_eq(n->installs, 1);
            offer_to(other, l, slot + 10, 5000); /* nothing else is listened to meanwhile */
            n->new_durable_ms = now_ms + 3000;
            deaf[other] = false;
            run(2500);
            ck_assert_uint_ge(keyspace_slot(replica_keyspace(n->replica)), slot);
            run(1000);
            ck_assert_uint_eq(n->saved.checkpoint_slot, slot); /* it is a good one all the same */
            ck_assert_uint_eq(times_noted("i snapshot installed"), 0);
        } else if (i == 2) { /* it takes the place of a state of which a checkpoint is being written */
            say(other, 2, "READONLY");
            say(other, 2, "SNAPSHOT.SAVE");
            run(1);
            ck_assert_uint_gt(n->new_slot, 0);
            n->new_slot = 0; /* which that puts an end to (lockd/io/checkpoint.h) */
            hand_over_file(other, l, slot, &nodes[l].file);
            run(1);
            run(20);
            ck_assert_uint_eq(times_noted("i snapshot installed"), 1);
            deaf[other] = false;
            run(1000);
        } else { /* the process ends before it is durable */
            hand_over_file(other, l, slot, &nodes[l].file);
            run(1);
            ck_assert_uint_eq(n->installs, 3);
            node_kill(other);
            deaf[other] = false;
            node_start(other);
            run(1000);
        }
        ck_assert_uint_eq(state_hash(other), state_hash(l));
    }
}
END_TEST

/* D3 */
START_TEST(a_full_disk_refuses_what_grows) {
    disk_reserve = 1000;
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    static const char full[] = "-DISKFULL less than disk-reserve (1000 bytes) is free on the disks of a majority; "
                               "deletes, releases and renewals still work\r\n";
    expect(l, 1, "SET a 1", "+OK\r\n");
    expect(l, 1, "SET b 1", "+OK\r\n");
    const long long lease = granted(l, 1, "LEASE.GRANT 600000");
    char line[128], want[512];
    snprintf(line, sizeof line, "LOCK.ACQUIRE lock LEASE %lld", lease);
    ck_assert_int_gt(granted(l, 1, line), 0);
    replica_disk_free(nodes[l].replica, 10);
    for (uint16_t i = 0; i < 3; i++)
        if (i != l) replica_disk_free(nodes[i].replica, 5000);
    run(200);
    expect(l, 1, "SET c 1", "+OK\r\n"); /* a majority has room */
    replica_disk_free(nodes[other].replica, 999);
    run(200);
    expect(l, 1, "SET d 1", full);
    expect(other, 2, "SET d 1", full);
    expect(other, 2, "LEASE.GRANT 1000", full);
    say(other, 3, "INCR c"); /* a pipeline keeps its order */
    say(other, 3, "DEL a");
    say(other, 3, "GET c");
    run(200);
    snprintf(want, sizeof want, "%s:1\r\n$1\r\n1\r\n", full);
    ck_assert_str_eq(take(3), want);
    const struct slice eval[] = {slice_str("EVAL"), slice_str("return redis.call('DEL', KEYS[1])"), slice_str("1"),
                                 slice_str("b")},
                       grows[] = {slice_str("EVAL"), slice_str("return redis.call('SET', KEYS[1], 'x')"),
                                  slice_str("1"), slice_str("b")};
    replica_command(nodes[other].replica, now_ms, 0, 4, 4, eval);
    nodes[other].wake_ms = now_ms;
    run(200);
    ck_assert_str_eq(take(4), ":1\r\n");
    replica_command(nodes[other].replica, now_ms, 0, 4, 4, grows);
    nodes[other].wake_ms = now_ms;
    run(200);
    ck_assert_str_eq(take(4), full);
    snprintf(line, sizeof line, "LEASE.KEEPALIVE %lld", lease);
    expect(other, 5, line, "*1\r\n:600000\r\n");
    /* What is sent in a ONCE is judged by what it carries. */
    char id[24];
    snprintf(id, sizeof id, "%lld", lease);
    const struct slice once[] = {slice_str("ONCE"),
                                 slice_str(id),
                                 slice_str("1"),
                                 slice_str("EVAL"),
                                 slice_str("return redis.call('DEL', KEYS[1]) + 7"),
                                 slice_str("1"),
                                 slice_str("c")};
    for (int i = 0; i < 2; i++) {
        replica_command(nodes[other].replica, now_ms, 0, 6, 7, once);
        nodes[other].wake_ms = now_ms;
        run(200);
        ck_assert_str_eq(take(6), ":8\r\n");
    }
    snprintf(line, sizeof line, "ONCE %lld 2 SET d 1", lease);
    expect(other, 5, line, full);
    snprintf(line, sizeof line, "ONCE %lld 2 LOCK.RELEASE lock LEASE %lld", lease, lease);
    expect(other, 5, line, ":1\r\n");
    expect(other, 5, line, ":1\r\n");
    expect(other, 5, "NODE.REMOVE 9", "-ERR node 9 is no member\r\n"); /* the way to another disk is open */
    say(other, 5, "INFO persistence");
    run(10);
    ck_assert_ptr_nonnull(strstr(take(5), "disk_free_bytes:999\r\ndisk_reserve_bytes:1000\r\ndisk_full:1\r\n"));
    replica_disk_free(nodes[other].replica, 1000);
    run(200);
    expect(other, 2, "SET d 1", "+OK\r\n"); /* by itself */
}
END_TEST

/* ---- giving leadership away ---- */

START_TEST(leadership_is_given_away_without_an_error) {
    start_all(3);
    for (int round = 0; round < 6; round++) {
        const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3), third = (uint16_t)((l + 2) % 3);
        char line[64], want[64];
        say(third, 1, "SET a 1");
        if (round % 2 == 0)
            snprintf(line, sizeof line, "NODE.TRANSFER %u", other + 1u);
        else
            snprintf(line, sizeof line, "node.transfer");
        say(round % 3 == 0 ? l : third, 2, line); /* at the leader itself, and elsewhere */
        say(third, 1, "INCR a");
        run(100);
        ck_assert_int_ne(leader(), l);
        ck_assert_int_ge(leader(), 0);
        if (round % 2 == 0) ck_assert_int_eq(leader(), other);
        snprintf(want, sizeof want, ":%d\r\n", leader() + 1);
        ck_assert_str_eq(take(2), want); /* once: it did not move on */
        ck_assert_str_eq(take(1), "+OK\r\n:2\r\n");
        run(2000);
        ck_assert_int_ne(leader(), l);
    }
}
END_TEST

/* Who asks has not heard of the leader yet: still it is this leader that the call is to end. */
START_TEST(leadership_is_given_away_by_one_who_is_behind) {
    start_all(3);
    const uint16_t first = (uint16_t)leader(), other = (uint16_t)((first + 1) % 3);
    char line[32], want[16];
    node_kill(other);
    snprintf(line, sizeof line, "NODE.TRANSFER %u", (first + 2u) % 3 + 1);
    say(first, 1, line);
    run(500);
    const uint16_t l = (uint16_t)leader();
    ck_assert_uint_eq(l, (first + 2u) % 3);
    node_start(other);
    say(other, 2, "NODE.TRANSFER");
    run(1500);
    ck_assert_int_ne(leader(), l);
    snprintf(want, sizeof want, ":%d\r\n", leader() + 1);
    ck_assert_str_eq(take(2), want);
}
END_TEST

START_TEST(a_transfer_that_cannot_be_is_refused) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    char line[64], want[64];
    expect(l, 1, "NODE.TRANSFER 0", "-ERR number is that of a node, 1 to 9\r\n");
    expect(l, 1, "NODE.TRANSFER 10", "-ERR number is that of a node, 1 to 9\r\n");
    expect(l, 1, "NODE.TRANSFER 1 2 3", "-ERR number is that of a node, 1 to 9\r\n");
    expect(other, 1, "NODE.TRANSFER 4", "-ERR there is no such voter to lead, or none was heard lately\r\n");
    snprintf(line, sizeof line, "NODE.TRANSFER %u", l + 1u);
    snprintf(want, sizeof want, ":%u\r\n", l + 1u);
    expect(other, 1, line, want); /* it leads already */
    ck_assert_int_eq(leader(), l);
}
END_TEST

START_TEST(a_leader_that_ends_hands_over_first) {
    start_all(3);
    const uint16_t l = (uint16_t)leader();
    ck_assert(!replica_hand_over(nodes[(l + 1) % 3].replica, now_ms));
    ck_assert(replica_hand_over(nodes[l].replica, now_ms));
    nodes[l].wake_ms = now_ms;
    run(50);
    ck_assert(!replica_is_leader(nodes[l].replica));
    ck_assert_int_ge(leader(), 0);
}
END_TEST

START_TEST(alone_there_is_nobody_to_take_it) {
    start_all(1);
    ck_assert(!replica_hand_over(nodes[0].replica, now_ms));
    expect(0, 1, "NODE.TRANSFER", "-ERR there is no such voter to lead, or none was heard lately\r\n");
    expect(0, 1, "SET a 1", "+OK\r\n");
}
END_TEST

/* ---- members ---- */

/* Another machine with that number: an empty disk. */
static void node_new_store(uint16_t index, uint64_t store_id) {
    struct test_node *n = &nodes[index];
    for (paxos_slot s = 0; s < SLOTS; s++) {
        free(n->slots[s].value);
        n->slots[s] = (struct saved_slot){0};
    }
    n->saved = (struct replica_saved){0};
    n->store_id = store_id;
}
/* Until the change before it is in effect the answer is -BUSY. */
static void change(uint16_t node, const char *line) {
    for (int i = 0; i < 50; i++) {
        say(node, 50, line);
        run(100);
        const char *reply = take(50);
        if (strcmp(reply, "+OK\r\n") == 0) return;
        ck_assert_msg(strncmp(reply, "-BUSY", 5) == 0 || reply[0] == '\0', "%s", reply);
    }
    ck_abort_msg("%s", line);
}
static const struct membership *members_of(uint16_t node) {
    const struct ks_members *m = keyspace_members(replica_keyspace(nodes[node].replica));
    return m->has_next ? &m->next : &m->now;
}

START_TEST(a_dead_node_is_replaced_by_an_empty_one) {
    checkpoint_bytes = _i == 0 ? 0 : 20000; /* by the log, or by a snapshot */
    start_all(3);
    const uint16_t l = (uint16_t)leader(), dead = (uint16_t)((l + 1) % 3), third = (uint16_t)((l + 2) % 3);
    char line[128];
    node_kill(dead);
    write_much(l, 200);
    node_new_store(dead, 0xc8);
    node_start(dead);
    run(1500);
    ck_assert_int_eq((int)replica_identity(nodes[dead].replica), IDENTITY_OUTCAST);
    say(dead, 7, "GET k1");
    run(10);
    ck_assert_ptr_nonnull(strstr(take(7), "until NODE.ADD"));
    snprintf(line, sizeof line, "NODE.REMOVE %u", dead + 1u);
    change(third, line);
    snprintf(line, sizeof line, "NODE.ADD %u 127.0.0.1:7000 00000000000000c8", dead + 1u);
    change(l, line);
    run(5000);
    ck_assert_int_eq((int)replica_identity(nodes[dead].replica), IDENTITY_FORMED);
    ck_assert_uint_eq(nodes[dead].installs, (unsigned)_i);
    ck_assert_uint_eq(members_of(l)->voters, 7); /* it caught up, and votes */
    ck_assert_uint_eq(members_of(dead)->voters, 7);
    ck_assert_uint_eq(state_hash(dead), state_hash(l));
    expect(dead, 8, "SET x 1", "+OK\r\n");
    node_kill(l); /* its vote is needed, and given */
    run(3000);
    ck_assert_int_ge(leader(), 0);
    expect(dead, 8, "GET x", "$1\r\n1\r\n");
    expect(third, 8, "SET x 2", "+OK\r\n");
    node_kill(dead); /* what it knows is on its disk */
    node_start(dead);
    run(3000);
    expect(dead, 9, "GET x", "$1\r\n2\r\n");
}
END_TEST

START_TEST(a_removed_node_says_so_and_may_come_back) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), out = (uint16_t)((l + 1) % 3);
    char line[128];
    expect(out, 6, "SET y 1", "+OK\r\n");
    snprintf(line, sizeof line, "NODE.REMOVE %u", out + 1u);
    change(l, line);
    run(3000);
    ck_assert_int_eq((int)replica_identity(nodes[out].replica), IDENTITY_OUTCAST);
    say(out, 7, "GET y");
    run(10);
    ck_assert_ptr_nonnull(strstr(take(7), "-CLUSTERDOWN this node's store"));
    node_kill(out);
    node_start(out); /* it remembers */
    run(2000);
    ck_assert_int_eq((int)replica_identity(nodes[out].replica), IDENTITY_OUTCAST);
    expect(l, 6, "SET y 2", "+OK\r\n");
    snprintf(line, sizeof line, "NODE.ADD %u 127.0.0.1:7000 %016llx", out + 1u, 100ull + out);
    change(l, line);
    run(4000);
    ck_assert_int_eq((int)replica_identity(nodes[out].replica), IDENTITY_FORMED);
    ck_assert_uint_eq(members_of(l)->voters, 7);
    expect(out, 8, "GET y", "$1\r\n2\r\n");
}
END_TEST

/* The same without a restart: the store takes its new name while it runs, and votes by it. */
START_TEST(a_removed_node_that_runs_on_may_come_back) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), out = (uint16_t)((l + 1) % 3), third = (uint16_t)((l + 2) % 3);
    char line[128];
    snprintf(line, sizeof line, "NODE.REMOVE %u", out + 1u);
    change(l, line);
    run(3000);
    ck_assert_int_eq((int)replica_identity(nodes[out].replica), IDENTITY_OUTCAST);
    snprintf(line, sizeof line, "NODE.ADD %u 127.0.0.1:7000 %016llx", out + 1u, 100ull + out);
    change(l, line);
    run(4000);
    ck_assert_int_eq((int)replica_identity(nodes[out].replica), IDENTITY_FORMED);
    ck_assert_uint_eq(members_of(l)->voters, 7);
    ck_assert_uint_eq(members_of(l)->generation[out], 1);
    node_kill(third); /* its vote is needed */
    run(1000);
    expect(out, 8, "SET y 1", "+OK\r\n");
    expect(out, 8, "GET y", "$1\r\n1\r\n");
}
END_TEST

/* It heard nothing of it, and nobody speaks to it any more. */
START_TEST(who_was_removed_while_it_was_away_finds_out) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), out = (uint16_t)((l + 1) % 3);
    char line[128];
    deaf[out] = true;
    snprintf(line, sizeof line, "NODE.REMOVE %u", out + 1u);
    change(l, line);
    run(3000);
    ck_assert_int_eq((int)replica_identity(nodes[out].replica), IDENTITY_FORMED);
    deaf[out] = false;
    run(3000);
    ck_assert_int_eq((int)replica_identity(nodes[out].replica), IDENTITY_OUTCAST);
}
END_TEST

START_TEST(a_leader_that_is_removed_hands_over) {
    start_all(3);
    const uint16_t l = (uint16_t)leader(), other = (uint16_t)((l + 1) % 3);
    char line[128];
    snprintf(line, sizeof line, "NODE.REMOVE %u", l + 1u);
    change(other, line);
    for (int i = 0; i < 20; i++) say(other, 6, "INCR n");
    run(1000);
    ck_assert_int_ge(leader(), 0);
    ck_assert_int_ne(leader(), l);
    char want[256] = "";
    for (int i = 1; i <= 20; i++) snprintf(want + strlen(want), sizeof want - strlen(want), ":%d\r\n", i);
    ck_assert_str_eq(take(6), want);
    run(2000);
    ck_assert_int_eq((int)replica_identity(nodes[l].replica), IDENTITY_OUTCAST);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("replica");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, one_node_serves_and_remembers);
    tcase_add_test(tc, any_node_answers);
    tcase_add_test(tc, a_pipeline_keeps_its_order_at_any_node);
    tcase_add_test(tc, the_leader_dies_and_nothing_is_lost);
    tcase_add_test(tc, a_lock_goes_on_when_its_lease_ends);
    tcase_add_test(tc, keys_end_and_no_reply_reveals_it_before_the_log);
    tcase_add_test(tc, a_move_waits_for_the_other_holder);
    tcase_add_loop_test(tc, an_idle_node_sleeps, 0, 2);
    tcase_add_test(tc, the_first_next_is_answered_at_once_by_every_leader);
    tcase_add_test(tc, a_move_waits_out_the_cover_of_a_silent_holder);
    tcase_add_test(tc, scripts_run_on_any_node);
    tcase_add_test(tc, a_wiped_node_does_not_vote);
    tcase_add_loop_test(tc, a_store_that_lost_its_record_does_not_vote, 0, 3);
    tcase_add_test(tc, a_read_is_not_confirmed_by_a_round_older_than_itself);
    tcase_add_test(tc, a_quick_restart_leaves_waiters_their_time);
    tcase_add_loop_test(tc, a_script_comes_through_a_stream_of_writes, 0, sizeof streams / sizeof streams[0]);
    tcase_add_test(tc, a_forwarded_command_that_fits_no_batch_is_refused);
    tcase_add_test(tc, a_write_behind_a_lost_one_waits_for_it);
    tcase_add_test(tc, the_leaders_queue_has_a_limit);
    tcase_add_test(tc, an_entry_that_is_no_batch_stays_out_of_the_log);
    tcase_add_test(tc, a_restarted_node_is_let_in_when_the_links_are_up);
    tcase_add_test(tc, a_node_cut_off_answers_from_its_own_state);
    tcase_add_test(tc, the_log_is_cut_behind_the_checkpoint_before);
    tcase_add_test(tc, a_node_behind_the_cut_gets_a_snapshot);
    tcase_add_test(tc, a_snapshot_and_the_clients_of_the_node_that_takes_it);
    tcase_add_test(tc, a_damaged_snapshot_changes_nothing);
    tcase_add_test(tc, a_node_that_halts_while_it_installs_does_nothing_more);
    tcase_add_test(tc, a_damaged_checkpoint_is_written_again);
    tcase_add_test(tc, a_checkpoint_is_made_when_asked_for);
    tcase_add_test(tc, a_full_disk_refuses_what_grows);
    tcase_add_test(tc, leadership_is_given_away_without_an_error);
    tcase_add_test(tc, leadership_is_given_away_by_one_who_is_behind);
    tcase_add_test(tc, a_transfer_that_cannot_be_is_refused);
    tcase_add_test(tc, a_leader_that_ends_hands_over_first);
    tcase_add_test(tc, alone_there_is_nobody_to_take_it);
    tcase_add_loop_test(tc, a_dead_node_is_replaced_by_an_empty_one, 0, 2);
    tcase_add_test(tc, a_removed_node_says_so_and_may_come_back);
    tcase_add_test(tc, a_removed_node_that_runs_on_may_come_back);
    tcase_add_test(tc, who_was_removed_while_it_was_away_finds_out);
    tcase_add_test(tc, a_leader_that_is_removed_hands_over);
    tcase_add_loop_test(tc, what_is_asked_of_the_leader_is_looked_at, 0, sizeof asked / sizeof asked[0]);
    tcase_add_loop_test(tc, a_forwarded_write_that_is_none_does_nothing, 0, sizeof not_yours / sizeof not_yours[0]);
    tcase_add_test(tc, a_peer_is_believed_only_as_itself);
    tcase_add_loop_test(tc, who_introduces_itself_wrongly_is_refused, 0,
                        sizeof introductions / sizeof introductions[0]);
    tcase_add_test(tc, a_joining_node_compares_counts_and_may_be_told_that_it_is_out);
    tcase_add_test(tc, an_answer_that_is_not_for_us_is_none);
    tcase_add_test(tc, a_node_says_what_it_is);
    tcase_add_test(tc, a_connection_is_what_it_says);
    tcase_add_test(tc, a_key_that_is_due_is_read_when_the_log_has_ended_it);
    tcase_add_test(tc, a_held_next_ends_with_its_lease_or_by_a_newer_one);
    tcase_add_test(tc, a_transfer_to_a_node_that_hangs_is_given_up);
    tcase_add_test(tc, a_script_whose_effects_fit_no_batch_does_nothing);
    tcase_add_test(tc, a_peer_that_takes_nothing_is_left_out);
    tcase_add_test(tc, a_disk_that_is_full_from_the_start_counts);
    tcase_add_test(tc, who_keeps_the_whole_log_makes_no_checkpoint);
    tcase_add_test(tc, those_who_wait_for_a_checkpoint_have_a_limit);
    tcase_add_test(tc, a_checkpoint_that_is_not_what_it_is_said_to_be_is_refused);
    tcase_add_test(tc, a_checkpoint_that_nobody_waits_for_changes_nothing);
    tcase_add_test(tc, a_snapshot_that_is_not_what_it_is_said_to_be_is_refused);
    tcase_add_test(tc, the_log_may_be_faster_than_a_snapshot);
    Suite *suite = suite_create("replica");
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
