/* Every single request for memory fails once: the process ends there with the message of alloc.c, and with nothing else
 * (no crash, no answer made of half a state).  What is refused before memory runs out is memory-max's business. */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/io/heap.h"
#include "lockd/core/replica.h"

/* Fails request number `fail_at`, counted from 1; 0: none. */
static uint64_t requests, fail_at;

static void *failing_resize(void *context, void *memory, size_t bytes) {
    (void)context;
    if (bytes > 0 && ++requests == fail_at) return NULL;
    return heap_alloc()->resize(heap_alloc()->context, memory, bytes);
}
static const struct alloc failing = {.resize = failing_resize};

/* ---- drivers: short, and through as many allocating places as can be ---- */

static struct replica *node;
static uint64_t saved;
static char leases[2][24];         /* what A and B stand for */
enum { GRANT_A = 4, GRANT_B = 5 }; /* their places in the story */
static struct buf checkpoint;

static void on_save(void *context, uint64_t batch, const struct paxos_output *out,
                    const struct identity_record *record) {
    (void)context, (void)out, (void)record;
    saved = batch;
}
static void on_send(void *context, uint16_t peer, struct slice frame) {
    (void)context, (void)peer, (void)frame;
}
static void on_reply(void *context, uint64_t client, struct slice bytes, bool leased) {
    (void)context, (void)leased;
    if (bytes.data[0] == '-') fprintf(stderr, "%.*s", (int)bytes.bytes, bytes.data);
    if (client == GRANT_A || client == GRANT_B)
        snprintf(leases[client - GRANT_A], sizeof leases[0], "%.*s", (int)strcspn(bytes.data + 1, "\r"),
                 bytes.data + 1);
}
static void on_hang_up(void *context, uint64_t client) {
    (void)context, (void)client;
}
static void on_fetch(void *context, uint16_t peer, paxos_slot from_slot, paxos_slot to_slot) {
    (void)context, (void)peer, (void)from_slot, (void)to_slot;
}
static void on_note(void *context, char level, const char *text) {
    (void)context, (void)level, (void)text;
}
static int put(void *context, struct slice bytes) {
    buf_append_slice(context, bytes);
    return 0;
}

static void turns(uint64_t *now_ms, int count) {
    for (int i = 0; i < count; i++, (*now_ms)++) {
        (void)replica_turn(node, *now_ms);
        replica_durable(node, *now_ms, saved);
    }
}

static const char *const story[] = {
    "SET a 1",
    "INCR a",
    "SET b 2 PX 60000",
    "GET a",
    "LEASE.GRANT 60000 NAME x",
    "LEASE.GRANT 60000",
    "LOCK.ACQUIRE l LEASE A",
    "LOCK.ACQUIRE l LEASE B WAIT 60000",
    "CAS c 0 1 LEASE A",
    "WOR.SET r 1",
    "ROUTE.BIND p s LEASE A x PREFER x y",
    "ROUTE.GET p s LEASE B",
    "ROUTE.NEXT LEASE A 0",
    "ROUTE.SUSPECT p x 0 LEASE A",
    "EVAL return(redis.call('INCR',KEYS[1])) 1 a",
    "SCRIPT LOAD return(1)",
    "INFO",
    "CLIENT SETNAME me",
    "LEASE.KEEPALIVE A B",
    "LEASE.REVOKE A",
    "DEL a b",
};

/* A cluster of one: forms, serves, is saved and loaded. */
static void whole_node(void) {
    uint64_t now_ms = 1000;
    struct replica_config config = {.alloc = &failing,
                                    .node = 0,
                                    .node_count = 1,
                                    .store_id = 100,
                                    .boot_id = 1,
                                    .fresh_cluster_id = 7,
                                    .seed = 1,
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
    const struct replica_sink sink = {
        .save = on_save, .send = on_send, .reply = on_reply, .hang_up = on_hang_up, .fetch = on_fetch, .note = on_note};
    ks_settings_default(&config.settings);
    node = replica_new(&config, &(struct replica_saved){.record.cluster_id = 0}, &sink);
    turns(&now_ms, 600);
    for (size_t i = 0; i < sizeof story / sizeof story[0]; i++) {
        char text[256], *rest = NULL;
        struct slice argv[16];
        uint32_t argc = 0;
        snprintf(text, sizeof text, "%s", story[i]);
        for (char *word = strtok_r(text, " ", &rest); word != NULL; word = strtok_r(NULL, " ", &rest))
            argv[argc++] = slice_str(strcmp(word, "A") == 0 ? leases[0] : strcmp(word, "B") == 0 ? leases[1] : word);
        replica_command(node, now_ms, 0, i, argc, argv);
        turns(&now_ms, 3);
    }
    checkpoint.alloc = &failing;
    if (keyspace_save(replica_keyspace(node), put, &checkpoint) != 0) exit(2);
    char error[128];
    const struct ks_config loading = {.alloc = &failing, .node = 0, .boot = 2};
    struct keyspace *loaded = keyspace_load(&loading, buf_slice(&checkpoint), error, sizeof error);
    if (loaded == NULL) exit(3);
    keyspace_free(loaded);
    buf_release(&checkpoint);
    replica_free(node);
}

/* The leader of three that hears two peers, loses them and starts again: what one node alone never allocates. */
static void one_of_three(void) {
    const uint64_t ids[] = {100, 101, 102};
    struct paxos_config config = {.alloc = &failing,
                                  .node = 0,
                                  .inflight_max = 4,
                                  .value_bytes_max = 64,
                                  .heartbeat_ms = 50,
                                  .lease_ms = 300,
                                  .election_spread_ms = 100,
                                  .drift_ppm = 500,
                                  .seed = 1,
                                  .start_ms = 1000};
    membership_founding(&config.members, 3, ids);
    struct paxos *p = paxos_new(&config, &(struct paxos_saved){.chosen = 0});
    const struct paxos_entry entries[] = {{.slot = 1, .ballot = {1, 1}, .value = slice_str("one")},
                                          {.slot = 2, .ballot = {1, 1}, .value = slice_str("two")}};
    for (uint64_t now_ms = 1000; now_ms < 4000; now_ms += 25) {
        struct paxos_output out;
        struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_TICK};
        if (paxos_step(p, &in) != PAXOS_TAKEN) exit(2);
        if (now_ms == 1100 || now_ms == 2000) {
            const struct paxos_msg accept = {.kind = PAXOS_MSG_ACCEPT,
                                             .from = 1,
                                             .ballot = {1, 1},
                                             .chosen = now_ms == 2000 ? 2 : 0,
                                             .round = now_ms,
                                             .lease_ms = 300,
                                             .entries = entries,
                                             .entry_count = 2};
            in = (struct paxos_input){.now_ms = now_ms, .kind = PAXOS_MESSAGE, .message = &accept};
            (void)!paxos_step(p, &in);
        }
        in = (struct paxos_input){.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = slice_str("mine")};
        (void)!paxos_step(p, &in);
        while (paxos_take(p, &out)) {
            struct paxos_msg say[32];
            uint32_t count = 0;
            for (uint32_t i = 0; i < out.send_now_count + out.send_after_count && count < 32; i++) {
                const struct paxos_msg *m =
                    i < out.send_now_count ? &out.sends_now[i] : &out.sends_after[i - out.send_now_count];
                struct paxos_msg a = {.from = m->to, .to = 0, .ballot = m->ballot, .round = m->round, .granted = true};
                a.free_bytes = UINT64_MAX;
                a.chosen = m->chosen;
                a.promised = m->ballot;
                a.slot_last = UINT64_MAX;
                a.kind = m->kind == PAXOS_MSG_PREVOTE     ? PAXOS_MSG_PREVOTE_REPLY
                         : m->kind == PAXOS_MSG_PREPARE   ? PAXOS_MSG_PROMISE
                         : m->kind == PAXOS_MSG_ACCEPT    ? PAXOS_MSG_ACCEPTED
                         : m->kind == PAXOS_MSG_HEARTBEAT ? PAXOS_MSG_HEARTBEAT_ACK
                                                          : PAXOS_MSG_REFUSE;
                if (a.kind == PAXOS_MSG_PROMISE) a.slot = m->chosen + 1;
                if (a.kind == PAXOS_MSG_ACCEPTED && m->entry_count > 0) {
                    a.slot = m->entries[0].slot;
                    a.slot_last = m->entries[m->entry_count - 1].slot;
                }
                say[count++] = a;
            }
            const uint64_t batch = out.batch;
            if (batch != 0) {
                in = (struct paxos_input){.now_ms = now_ms, .kind = PAXOS_DURABLE, .batch = batch};
                (void)!paxos_step(p, &in);
            }
            for (uint32_t i = 0; i < count; i++) {
                in = (struct paxos_input){.now_ms = now_ms, .kind = PAXOS_MESSAGE, .message = &say[i]};
                (void)!paxos_step(p, &in);
            }
        }
    }
    if (paxos_chosen(p) < 4) exit(2);
    paxos_free(p);
}

static void (*const drivers[])(void) = {whole_node, one_of_three};

/* Run the driver in a process of its own, with request number `at` failing; its wait status.  `text`: its last words.
 */
static int outcome(void (*driver)(void), uint64_t at, char text[static 512]) {
    const int words = memfd_create("words", 0);
    ck_assert_int_ge(words, 0);
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(words, 2);
        alarm(60);
        requests = 0;
        fail_at = at;
        driver();
        if (at == 0) dprintf(words, "%llu", (unsigned long long)requests);
        _exit(0);
    }
    int status = -1;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    const ssize_t bytes = pread(words, text, 511, 0);
    text[bytes > 0 ? bytes : 0] = '\0';
    close(words);
    return status;
}

START_TEST(the_nth_request_for_memory_fails) {
    char text[512];
    int status = outcome(drivers[_i], 0, text);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the driver itself: %d %s", status, text);
    char *end;
    const uint64_t total = strtoull(text, &end, 10);
    ck_assert_msg(total > 20 && *end == '\0', "the driver itself: %s", text);
    /* All of the first few hundred, then a sample that meets each place again and again: the same code allocates. */
    for (uint64_t at = 1; at <= total; at += at < 300 ? 1 : 1 + total / 200) {
        status = outcome(drivers[_i], at, text);
        ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "request %llu of %llu: status %d %s",
                      (unsigned long long)at, (unsigned long long)total, status, text);
        ck_assert_msg(strstr(text, "alloc.c") != NULL && strstr(text, "out_of_memory") != NULL, "request %llu: %s",
                      (unsigned long long)at, text);
    }
}
END_TEST

/* Long before that, memory-max refuses by name what would grow, and what frees still works. */
START_TEST(memory_max_refuses_before_memory_runs_out) {
    struct buf value = {.alloc = heap_alloc()};
    const struct ks_config config = {.alloc = heap_alloc(), .node = 0, .boot = 1};
    struct keyspace *ks = keyspace_new(&config);
    static char big[100000];
    memset(big, 'v', sizeof big);
    const struct slice settings[] = {slice_str("%SETTINGS"), slice_str("memory_max"), slice_str("1048576")};
    struct ks_facts facts;
    paxos_slot slot = 0;
    batch_begin(&value, (struct ballot){1, 0}, true, 1);
    batch_add(&value, ORIGIN_NONE, 3, settings);
    keyspace_apply(ks, ++slot, buf_slice(&value), &facts);
    const size_t before = heap_bytes_in_use();
    uint32_t taken = 0, refused = 0;
    for (int i = 0; i < 100; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%d", i);
        const struct slice set[] = {slice_str("SET"), slice_str(key), slice_of(big, sizeof big)};
        batch_begin(&value, (struct ballot){1, 0}, false, 1);
        batch_add(&value, (struct origin){0, 1, (uint64_t)i + 1}, 3, set);
        keyspace_apply(ks, ++slot, buf_slice(&value), &facts);
        ck_assert_uint_eq(facts.count, 1);
        const bool ok = facts.facts[0].reply.data[0] == '+';
        taken += ok;
        refused += !ok;
        if (!ok) ck_assert_ptr_nonnull(memmem(facts.facts[0].reply.data, facts.facts[0].reply.bytes, "memory-max", 10));
    }
    ck_assert_uint_gt(taken, 5);
    ck_assert_uint_gt(refused, 80);
    ck_assert_uint_lt(heap_bytes_in_use() - before, 3u << 20);
    const struct slice del[] = {slice_str("DEL"), slice_str("k0")};
    batch_begin(&value, (struct ballot){1, 0}, false, 1);
    batch_add(&value, (struct origin){0, 1, 1000}, 2, del);
    keyspace_apply(ks, ++slot, buf_slice(&value), &facts);
    ck_assert(slice_equal(facts.facts[0].reply, slice_str(":1\r\n")));
    keyspace_free(ks);
    buf_release(&value);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("alloc fails");
    tcase_set_timeout(tc, 100);
    tcase_add_loop_test(tc, the_nth_request_for_memory_fails, 0, sizeof drivers / sizeof drivers[0]);
    tcase_add_test(tc, memory_max_refuses_before_memory_runs_out);
    Suite *suite = suite_create("alloc fails");
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
