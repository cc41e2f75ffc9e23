/* What lockd is told is judged once, in words that name the key, the place and the range.
 * Guards config.h.  Real files in a directory of its own. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include "common/io/log.h"
#include "lockd/io/config.h"

static char directory[64], file[96];
static struct config config;
static char text[CONFIG_TEXT_BYTES];

static void setup(void) {
    snprintf(directory, sizeof directory, "/tmp/test_config.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(file, sizeof file, "%s/lockd.conf", directory);
}
static void teardown(void) {
    unlink(file);
    rmdir(directory);
}

/* Read a command line given as one string of words. */
static enum config_answer words(const char *line) {
    static char copy[4096];
    static char *argv[64];
    int argc = 1;
    argv[0] = "lockd";
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok(copy, " "); word != NULL; word = strtok(NULL, " ")) argv[argc++] = word;
    argv[argc] = NULL;
    text[0] = '\0';
    return config_read(argc, argv, &config, text);
}
static void write_file(const char *content) {
    FILE *f = fopen(file, "w");
    ck_assert_ptr_nonnull(f);
    fputs(content, f);
    fclose(f);
}
/* Read that as a file, with more words on the command line. */
static enum config_answer with_file(const char *content, const char *more) {
    char line[512];
    write_file(content);
    snprintf(line, sizeof line, "--config %s %s", file, more);
    return words(line);
}

START_TEST(alone_it_is_a_cluster_of_one) {
    ck_assert_int_eq(words(""), CONFIG_RUN);
    ck_assert_uint_eq(config.node, 1);
    ck_assert_uint_eq(config.node_count, 1);
    ck_assert_str_eq(config.listen, "127.0.0.1:7400");
    ck_assert_uint_eq(config.listen_address.port, 7400);
    ck_assert_str_eq(config.data_dir, "./lockd-data");
    ck_assert_uint_eq(config.heartbeat_ms, 50);
    ck_assert_uint_eq(config.leader_lease_ms, 300);
    ck_assert_uint_eq(config.settings.key_bytes_max, 500);
    ck_assert_int_eq(config.log_level_number, LOG_LEVEL_INFO);
    ck_assert(!config.clients_max_given && !config.has_nodes);
}
END_TEST

START_TEST(the_command_line_beats_the_file) {
    const char *content = "# a comment\n"
                          "node = 2\n"
                          "nodes = {\"10.0.0.1:7411\", \"[::1]:7411\", \"third.example:7411\"}\n"
                          "heartbeat-ms = 40\n"
                          "leader-lease-ms = 400\n"
                          "key-bytes-max = 100\n";
    ck_assert_msg(with_file(content, "--heartbeat-ms 60 --data-dir=/x/y") == CONFIG_RUN, "%s", text);
    ck_assert_uint_eq(config.node, 2);
    ck_assert_uint_eq(config.node_count, 3);
    ck_assert_str_eq(config.nodes[1].host, "::1");
    ck_assert(!config.nodes[2].numeric);
    ck_assert_uint_eq(config.heartbeat_ms, 60);
    ck_assert_uint_eq(config.leader_lease_ms, 400);
    ck_assert_uint_eq(config.settings.key_bytes_max, 100);
    ck_assert_str_eq(config.data_dir, "/x/y");
}
END_TEST

START_TEST(nodes_on_the_command_line) {
    ck_assert_msg(words("--nodes 127.0.0.1:1,127.0.0.1:2,127.0.0.1:3 --node 3 --check") == CONFIG_CHECK, "%s", text);
    ck_assert_uint_eq(config.node_count, 3);
    ck_assert_str_eq(config.node_texts[2], "127.0.0.1:3");
    ck_assert_uint_eq(config.nodes[2].port, 3);
}
END_TEST

/* Each wrong command line, what is answered, and two things the message must say. */
static const struct {
    const char *line;
    enum config_answer answer;
    const char *says, *says_too;
} wrong_lines[] = {
    {"--hartbeat-ms 3", CONFIG_USAGE, "--hartbeat-ms", "--heartbeat-ms?"},
    {"--heartbeat_ms 30", CONFIG_USAGE, "--heartbeat_ms", "--heartbeat-ms?"},
    {"--zzz 3", CONFIG_USAGE, "--zzz", "--help"},
    {"zzz", CONFIG_USAGE, "\"zzz\"", "--help"},
    {"--heartbeat-ms", CONFIG_USAGE, "--heartbeat-ms", "needs a value"},
    {"--config", CONFIG_USAGE, "--config", "needs a value"},
    {"--heartbeat-ms 3", CONFIG_USAGE, "--heartbeat-ms: \"3\"", "from 10 to 10000 (ms)"},
    {"--heartbeat-ms 10001", CONFIG_USAGE, "--heartbeat-ms: \"10001\"", "from 10 to 10000 (ms)"},
    {"--heartbeat-ms 50x", CONFIG_USAGE, "\"50x\"", "from 10 to 10000 (ms)"},
    {"--heartbeat-ms -50", CONFIG_USAGE, "\"-50\"", "heartbeat-ms"},
    {"--heartbeat-ms 99999999999999999999999", CONFIG_USAGE, "heartbeat-ms", "not a number"},
    {"--heartbeat-ms=", CONFIG_USAGE, "heartbeat-ms", "not a number"},
    {"--listen 127.0.0.1", CONFIG_USAGE, "--listen", "no port"},
    {"--listen 127.0.0.1:99999", CONFIG_USAGE, "--listen", "bad port"},
    {"--listen 300.0.0.1;:80", CONFIG_USAGE, "--listen", "not a host name"},
    {"--data-dir=", CONFIG_USAGE, "--data-dir", "empty"},
    {"--log-level loud", CONFIG_USAGE, "\"loud\"", "error|warn|info|debug"},
    {"--nodes a:1,b:2,A:1 --node 1", CONFIG_USAGE, "entries 1 and 3", "A:1"},
    {"--nodes a:1,,b:2 --node 1", CONFIG_USAGE, "entry 2", "port"},
    {"--nodes a:0 --node 1", CONFIG_USAGE, "entry 1", "1..65535"},
    {"--nodes a:1,a:2,a:3,a:4,a:5,a:6,a:7,a:8,a:9,a:10 --node 1", CONFIG_USAGE, "10 entries", "1..9"},
    {"--nodes a:1,b:2,c:3 --node 4", CONFIG_BAD, "node: is 4", "3 entries"},
    {"--node 2", CONFIG_BAD, "node: is 2", "0 entries"},
    {"--nodes a:1,b:2,c:3", CONFIG_BAD, "node: is missing", "3 entries"},
    {"--nodes 127.0.0.1:7400,b:2,c:3 --node 1", CONFIG_BAD, "listen:", "entry 1"},
    {"--heartbeat-ms 200", CONFIG_BAD, "leader-lease-ms", "heartbeat-ms is 200"},
    {"--request-bytes-max 70000", CONFIG_BAD, "request-bytes-max", "value-bytes-max"},
    {"--config /no/such/file", CONFIG_BAD, "/no/such/file", "No such file"},
    {"--config /tmp", CONFIG_BAD, "/tmp", "not a configuration file"},
    {"--config /dev/null", CONFIG_BAD, "/dev/null", "not a configuration file"},
};
START_TEST(a_wrong_command_line_is_named) {
    ck_assert_msg(words(wrong_lines[_i].line) == wrong_lines[_i].answer, "%s: %s", wrong_lines[_i].line, text);
    ck_assert_msg(strstr(text, wrong_lines[_i].says) != NULL && strstr(text, wrong_lines[_i].says_too) != NULL,
                  "%s: %s", wrong_lines[_i].line, text);
    ck_assert_ptr_null(strchr(text, '\n'));
}
END_TEST

static const struct {
    const char *content, *says, *says_too;
} wrong_files[] = {
    {"heartbeat-ms = 50\n\nhartbeat-ms = 3\n", "lockd.conf:3: \"hartbeat-ms\"", "did you mean heartbeat-ms?"},
    {"colour = red\n", "lockd.conf:1: \"colour\"", "not a key"},
    {"\nheartbeat-ms = 3\n", "lockd.conf:2: heartbeat-ms: \"3\"", "from 10 to 10000 (ms)"},
    {"heartbeat-ms = 50\nheartbeat-ms = 60\n", "lockd.conf:2: heartbeat-ms", "in line 1 already"},
    {"heartbeat-ms 5\n", "lockd.conf:1:", "heartbeat-ms"},
    {"heartbeat-ms = {5}\n", "lockd.conf:1:", "{"},
    {"listen = \"abc\n", "lockd.conf:", "end of file"},
    {"nodes = {\"a:1\", \"b:2\", \"a:1\"}\nnode = 1\n", "lockd.conf:1: nodes", "entries 1 and 3"},
    {"nodes = {}\nnode = 1\nnodes = {\"a\"}\n", "nodes: entry 1", "no port"},
    {"node = 5\nnodes = {\"a:1\", \"b:2\", \"c:3\"}\n", "node: is 5", "3 entries"},
    {"\x01\x02\xff\n", "lockd.conf:1:", "not a key"},
};
START_TEST(a_wrong_file_is_named) {
    ck_assert_msg(with_file(wrong_files[_i].content, "") == CONFIG_BAD, "%s: %s", wrong_files[_i].content, text);
    ck_assert_msg(strstr(text, wrong_files[_i].says) != NULL && strstr(text, wrong_files[_i].says_too) != NULL,
                  "%s: %s", wrong_files[_i].content, text);
    for (const char *at = text; *at != '\0'; at++) ck_assert_msg((unsigned char)*at >= ' ', "%s", text);
}
END_TEST

START_TEST(help_and_version) {
    uint32_t count;
    char option[48];
    ck_assert_int_eq(words("--version"), CONFIG_SHOWN);
    ck_assert_str_eq(text, "lockd " HOLDFAST_VERSION "\n");
    ck_assert_int_eq(words("--help"), CONFIG_SHOWN);
    const struct config_key *keys = config_keys(&count);
    ck_assert_uint_gt(count, 20);
    for (uint32_t i = 0; i < count; i++) {
        snprintf(option, sizeof option, "  --%s ", keys[i].name);
        ck_assert_msg(strstr(text, option) != NULL, "%s", option);
    }
    ck_assert_int_eq(words("--check"), CONFIG_CHECK);
    ck_assert_int_eq(words("--check --heartbeat-ms 1"), CONFIG_USAGE);
}
END_TEST

static char *slurp(const char *path) {
    static char content[65536];
    FILE *f = fopen(path, "r");
    ck_assert_msg(f != NULL, "%s", path);
    content[fread(content, 1, sizeof content - 1, f)] = '\0';
    fclose(f);
    return content;
}

/* conf/lockd.conf shows every key, commented out, with its default; uncommented it says what silence says. */
START_TEST(the_example_shows_the_defaults) {
    static char active[65536];
    struct config silent;
    uint32_t count;
    char wanted[128];
    const char *content = slurp(LOCKD_CONF);
    const struct config_key *keys = config_keys(&count);
    ck_assert_int_eq(words(""), CONFIG_RUN);
    silent = config;
    active[0] = '\0';
    for (uint32_t i = 0; i < count; i++) {
        if (keys[i].kind == CONFIG_LIST) continue;
        snprintf(wanted, sizeof wanted, "\n# %s = ", keys[i].name);
        const char *at = strstr(content, wanted);
        ck_assert_msg(at != NULL, "conf/lockd.conf does not show%s", wanted);
        strncat(active, at + 3, strcspn(at + 3, "\n") + 1);
    }
    ck_assert_msg(with_file(active, "") == CONFIG_RUN, "%s", text);
    for (uint32_t i = 0; i < count; i++) {
        const size_t bytes = keys[i].kind == CONFIG_NUMBER ? sizeof(uint64_t) : keys[i].bytes;
        if (keys[i].kind == CONFIG_LIST) continue;
        ck_assert_msg(memcmp((char *)&config + keys[i].offset, (char *)&silent + keys[i].offset, bytes) == 0,
                      "%s is not shown with its default", keys[i].name);
    }
    ck_assert_ptr_nonnull(strstr(content, "\n# nodes = {"));
    ck_assert_msg(words("--config " LOCKD_CONF) == CONFIG_RUN, "%s", text);
}
END_TEST

START_TEST(the_manual_names_every_key) {
    uint32_t count;
    char wanted[64];
    const char *content = slurp(LOCKD_MAN);
    const struct config_key *keys = config_keys(&count);
    for (uint32_t i = 0; i < count; i++) {
        size_t used = (size_t)snprintf(wanted, sizeof wanted, "\n.B ");
        for (const char *at = keys[i].name; *at != '\0'; at++) { /* a dash is \- in a manual page */
            if (*at == '-') wanted[used++] = '\\';
            wanted[used++] = *at;
        }
        wanted[used] = '\0';
        ck_assert_msg(strstr(content, wanted) != NULL, "lockd.1 does not explain %s", keys[i].name);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("config");
    TCase *tc = tcase_create("config");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, alone_it_is_a_cluster_of_one);
    tcase_add_test(tc, the_command_line_beats_the_file);
    tcase_add_test(tc, nodes_on_the_command_line);
    tcase_add_loop_test(tc, a_wrong_command_line_is_named, 0, sizeof wrong_lines / sizeof *wrong_lines);
    tcase_add_loop_test(tc, a_wrong_file_is_named, 0, sizeof wrong_files / sizeof *wrong_files);
    tcase_add_test(tc, help_and_version);
    tcase_add_test(tc, the_example_shows_the_defaults);
    tcase_add_test(tc, the_manual_names_every_key);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_ENV);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
