/* What a node answers about itself and about a connection: Redis' words where Redis has them, and never without a
 * reply. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "lockd/core/link_refusal.h"
#include "lockd/core/local.h"

static struct buf reply;
static struct local_view view;
static struct slice name;

static void setup(void) {
    static const char *const addresses[] = {"one:1", "two:2", "three:3"};
    const struct ks_config config = {.alloc = heap_alloc(), .node = 0, .boot = 1};
    reply.alloc = heap_alloc();
    view = (struct local_view){.node_count = 3,
                               .store_id = 0xabc,
                               .role = "follower",
                               .leader = -1,
                               .keyspace = keyspace_new(&config),
                               .version = "test",
                               .node_addresses = addresses,
                               .disk_free = UINT64_MAX,
                               .unix_us = 5000007,
                               .client = 9};
}

static enum local_verdict ask(const char *line) {
    static char text[256];
    struct slice argv[16];
    char *rest = text;
    uint32_t argc = 0;
    snprintf(text, sizeof text, "%s", line);
    for (char *word = strsep(&rest, " "); word != NULL; word = strsep(&rest, " ")) argv[argc++] = slice_str(word);
    const struct command *command = command_find(argv[0], false);
    ck_assert_ptr_nonnull(command);
    buf_clear(&reply);
    name = slice_of(NULL, 0);
    const enum local_verdict verdict = local_command(&view, command, argc, argv, &reply, &name);
    ck_assert_uint_gt(reply.bytes, 0);
    buf_append(&reply, "", 1);
    return verdict;
}

/* What the reply begins with. */
static const struct {
    const char *line, *begins;
    enum local_verdict verdict;
} rows[] = {
    {"PING", "+PONG", LOCAL_ANSWERED},
    {"PING x", "$1\r\nx", LOCAL_ANSWERED},
    {"PING x y", "-ERR wrong number of arguments for 'ping'", LOCAL_ANSWERED},
    {"ECHO x", "$1\r\nx", LOCAL_ANSWERED},
    {"SELECT 0", "+OK", LOCAL_ANSWERED},
    {"SELECT 1", "-ERR DB index is out of range", LOCAL_ANSWERED},
    {"SELECT x", "-ERR value is not an integer", LOCAL_ANSWERED},
    {"QUIT", "+OK", LOCAL_HANG_UP},
    {"READONLY", "+OK", LOCAL_READONLY},
    {"READWRITE", "+OK", LOCAL_READWRITE},
    {"TIME", "*2\r\n$1\r\n5\r\n$1\r\n7\r\n", LOCAL_ANSWERED},
    {"COMMAND COUNT", ":", LOCAL_ANSWERED},
    {"HELLO", "*14", LOCAL_ANSWERED},
    {"HELLO 2", "*14", LOCAL_ANSWERED},
    {"HELLO 3", "-NOPROTO", LOCAL_ANSWERED},
    {"HELLO x", "-ERR Protocol version is not an integer", LOCAL_ANSWERED},
    {"HELLO 2 AUTH a b", "-ERR AUTH <password> called without", LOCAL_ANSWERED},
    {"HELLO 2 AUTH a", "-ERR Syntax error in HELLO option 'AUTH'", LOCAL_ANSWERED},
    {"HELLO 2 SETNAME me", "*14", LOCAL_NAME},
    {"HELLO 2 SETNAME", "-ERR Syntax error in HELLO option", LOCAL_ANSWERED},
    {"HELLO 2 SETNAME \x01", "-ERR Client names cannot contain", LOCAL_ANSWERED},
    {"HELLO 2 SETNAME \x7f", "-ERR Client names cannot contain", LOCAL_ANSWERED},
    {"CLIENT ID", ":9", LOCAL_ANSWERED},
    {"CLIENT ID x", "-ERR unknown subcommand", LOCAL_ANSWERED},
    {"CLIENT GETNAME", "$-1", LOCAL_ANSWERED},
    {"CLIENT GETNAME x", "-ERR unknown subcommand", LOCAL_ANSWERED},
    {"CLIENT SETNAME me", "+OK", LOCAL_NAME},
    {"CLIENT SETNAME", "-ERR unknown subcommand", LOCAL_ANSWERED},
    {"CLIENT SETNAME \x01", "-ERR Client names cannot contain", LOCAL_ANSWERED},
    {"CLIENT SETINFO LIB-NAME x", "+OK", LOCAL_ANSWERED},
    {"CLIENT SETINFO LIB-VER 1", "+OK", LOCAL_ANSWERED},
    {"CLIENT SETINFO LIB-VER \x01", "-ERR LIB-VER cannot contain", LOCAL_ANSWERED},
    {"CLIENT SETINFO OTHER 1", "-ERR Unrecognized option 'OTHER'", LOCAL_ANSWERED},
    {"CLIENT SETINFO LIB-VER", "-ERR unknown subcommand", LOCAL_ANSWERED},
    {"CLIENT NONSENSE", "-ERR unknown subcommand or wrong number of arguments for 'NONSENSE'", LOCAL_ANSWERED},
};
START_TEST(each_command_is_answered) {
    ck_assert_int_eq(ask(rows[_i].line), rows[_i].verdict);
    ck_assert_msg(strncmp(reply.data, rows[_i].begins, strlen(rows[_i].begins)) == 0, "%s", reply.data);
    ck_assert_int_eq(rows[_i].verdict == LOCAL_NAME, name.bytes > 0);
}
END_TEST

START_TEST(a_connection_knows_its_name) {
    view.client_name = slice_str("me");
    ask("CLIENT GETNAME");
    ck_assert_str_eq(reply.data, "$2\r\nme\r\n");
}
END_TEST

static const struct {
    const char *line, *has, *lacks;
} sections[] = {
    {"INFO", "# Server", "no such text"},
    {"INFO ALL", "# Server", "no such text"},
    {"INFO everything", "# Persistence", "no such text"},
    {"INFO default", "# Persistence", "no such text"},
    {"INFO persistence", "# Persistence", "# Server"},
    {"INFO nonsense persistence", "# Persistence", "# Server"},
    {"INFO server", "# Server", "# Persistence"},
};
START_TEST(info_has_the_sections_asked_for) {
    ask(sections[_i].line);
    ck_assert_ptr_nonnull(strstr(reply.data, sections[_i].has));
    ck_assert_ptr_null(strstr(reply.data, sections[_i].lacks));
}
END_TEST

/* Before and after a cluster has formed, with and without what may be missing. */
START_TEST(a_node_tells_its_state) {
    ask("NODE.STATUS");
    ck_assert_ptr_nonnull(strstr(reply.data, "0000000000000abc"));
    ck_assert_ptr_nonnull(strstr(reply.data, "disk-free\r\n:-1\r\n"));
    view.leader = 1;
    view.cluster_id = 7;
    view.disk_free = 1000;
    view.disk_full = true;
    view.snapshot_slot = 3;
    view.checkpoint_running = true;
    ask("NODE.STATUS");
    ck_assert_ptr_nonnull(strstr(reply.data, "two:2"));
    ck_assert_ptr_nonnull(strstr(reply.data, "disk-free\r\n:1000\r\n"));
    ask("INFO");
    view.node_addresses = NULL;
    ask("NODE.STATUS");
    ck_assert_ptr_null(strstr(reply.data, "two:2"));
}
END_TEST

/* Who is a member, and how it will be; the log's addresses go before those of the configuration. */
START_TEST(members_are_told_as_they_will_be) {
    struct ks_facts facts;
    paxos_slot slot = 0;
    static const char *const lines[] = {"%MEMBERS 1 11 h1:71 2 12 h2:72", "NODE.ADD 5 h5:75 00000000000000aa"};
    for (int i = 0; i < 2; i++) {
        char text[128];
        struct slice argv[8];
        uint32_t argc = 0;
        snprintf(text, sizeof text, "%s", lines[i]);
        for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) argv[argc++] = slice_str(word);
        struct buf b = {.alloc = heap_alloc()};
        batch_begin(&b, (struct ballot){1, 0}, i == 0, 1000);
        batch_add(&b, ORIGIN_NONE, argc, argv);
        keyspace_apply((struct keyspace *)(uintptr_t)view.keyspace, ++slot, buf_slice(&b), &facts);
        buf_release(&b);
        ask("NODE.STATUS");
        ck_assert_ptr_nonnull(
            strstr(reply.data, "*4\r\n:2\r\n$5\r\nvoter\r\n$16\r\n000000000000000c\r\n$5\r\nh2:72\r\n"));
        ck_assert_ptr_nonnull(strstr(reply.data, i == 0 ? "members-pending\r\n:0" : "members-pending\r\n:1"));
        const char *learner = "*4\r\n:5\r\n$7\r\nlearner\r\n$16\r\n00000000000000aa\r\n$5\r\nh5:75\r\n";
        ck_assert_int_eq(strstr(reply.data, learner) != NULL, i == 1);
    }
    view.leader = 1;
    ask("INFO replication");
    ck_assert_ptr_nonnull(strstr(reply.data, "leader_address:h2:72\r\n"));
    view.leader = 2; /* no member: what the configuration says */
    ask("INFO replication");
    ck_assert_ptr_nonnull(strstr(reply.data, "leader_address:three:3\r\n"));
    view.leader = 7;
    ask("INFO replication");
    ck_assert_ptr_nonnull(strstr(reply.data, "leader_address:\r\n"));
    view.leader = PAXOS_NODES_MAX;
    ask("INFO replication");
    ck_assert_ptr_nonnull(strstr(reply.data, "leader_address:\r\n"));
}
END_TEST

START_TEST(refused_links_are_counted) {
    uint64_t refusals[LINK_REFUSAL_END] = {0};
    ask("INFO peers");
    ck_assert_ptr_null(strstr(reply.data, "# Peers"));
    view.refusals = refusals;
    refusals[LINK_CLUSTER] = 12;
    ask("INFO peers");
    ck_assert_ptr_nonnull(strstr(reply.data, "# Peers\r\n"));
    ck_assert_ptr_nonnull(strstr(reply.data, "peer_refused_cluster:12\r\n"));
    ck_assert_ptr_nonnull(strstr(reply.data, "peer_refused_twice:0\r\n"));
    ask("INFO server");
    ck_assert_ptr_null(strstr(reply.data, "# Peers"));
}
END_TEST

START_TEST(a_name_has_a_limit) {
    static char text[502];
    memset(text, 'n', 501);
    const struct slice argv[] = {slice_str("CLIENT"), slice_str("SETNAME"), slice_of(text, 501)};
    ck_assert_int_eq(local_command(&view, command_find(argv[0], false), 3, argv, &reply, &name), LOCAL_ANSWERED);
    ck_assert_int_eq(strncmp(reply.data, "-ERR Client names", 17), 0);
    const struct slice shorter[] = {slice_str("CLIENT"), slice_str("SETNAME"), slice_of(text, 500)};
    ck_assert_int_eq(local_command(&view, command_find(argv[0], false), 3, shorter, &reply, &name), LOCAL_NAME);
    ck_assert_uint_eq(name.bytes, 500);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("local");
    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_add_loop_test(tc, each_command_is_answered, 0, sizeof rows / sizeof rows[0]);
    tcase_add_test(tc, a_connection_knows_its_name);
    tcase_add_loop_test(tc, info_has_the_sections_asked_for, 0, sizeof sections / sizeof sections[0]);
    tcase_add_test(tc, a_node_tells_its_state);
    tcase_add_test(tc, members_are_told_as_they_will_be);
    tcase_add_test(tc, refused_links_are_counted);
    tcase_add_test(tc, a_name_has_a_limit);
    Suite *suite = suite_create("local");
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
