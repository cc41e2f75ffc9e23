/* The configuration of lockproxy: a file, the command line, and one message that names the offender. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "proxy/io/config.h"

static char path[] = "/tmp/test-proxy-config-XXXXXX";
static struct config config;
static char text[CONFIG_TEXT_BYTES];

static void setup(void) {
    snprintf(path, sizeof path, "/tmp/test-proxy-config-XXXXXX");
    const int fd = mkstemp(path);
    must(fd >= 0);
    close(fd);
}
static void teardown(void) {
    config_release(&config);
    unlink(path);
}
static void write_file(const char *content) {
    FILE *file = fopen(path, "w");
    must(file != NULL);
    fputs(content, file);
    fclose(file);
}
static enum config_answer read_words(char *a, char *b, char *c, char *d, char *e, char *f) {
    static char program[] = "lockproxy", option[] = "--config";
    char *argv[] = {program, option, path, a, b, c, d, e, f, NULL};
    int argc = 3;
    while (argv[argc] != NULL) argc++;
    return config_read(argc, argv, &config, text);
}
static enum config_answer read_file(void) {
    return read_words(NULL, NULL, NULL, NULL, NULL, NULL);
}

#define POOL(extra)                                                                                                    \
    "lockd = {\"127.0.0.1:1\"}\npool chat {\n  listen = \"127.0.0.1:0\"\n" extra                                       \
    "\n  backend a { address = \"127.0.0.1:9\" }\n}\n"

static const struct {
    const char *content, *message; /* the message must contain this */
    int line;                      /* and name this line; 0: the file is enough */
} bad[] = {
    {POOL("  sunset = 2"), "sunset", 4},
    {POOL("  subset = 0"), "subset = 0: it goes from 1 to 64", 4},
    {POOL("  subset = 65"), "subset", 4},
    {POOL("  subset = many"), "subset", 4},
    {POOL("  fall = -1"), "fall", 4},
    {POOL("  class = \"sticki\""), "sticki", 4},
    {POOL("  key = {\"line [\"}"), "line [", 4},
    {POOL("  key = {\"line (a)\\\\1\"}"), "back-reference", 4},
    {POOL("  key = {\"lime x\"}"), "a rule is one of source-ip, line REGEX, bytes OFFSET LENGTH", 4},
    {POOL("  key = {\"sni example\"}"), "it reads sni", 4},
    {POOL("  key = {\"http-cookie\"}"), "it reads http-cookie NAME", 4},
    {POOL("  key = {\"http-cookie a=b\"}"), "a name has 1 to 63 bytes", 4},
    {POOL("  key = {\"http-path [\"}"), "http-path [", 4},
    {POOL("  key = {\"bytes 4\"}"), "OFFSET LENGTH are two numbers", 4},
    {POOL("  key = {\"bytes 4 256\"}"), "LENGTH 1 to 255", 4},
    {POOL("  key = {\"bytes 4 0\"}"), "LENGTH 1 to 255", 4},
    {POOL("  key = {\"bytes -1 4\"}"), "OFFSET LENGTH are two numbers", 4},
    {POOL("  key = {\"bytes 65530 40\"}"), "both together at most 65536", 4},
    {POOL("  key = {\"bytes 4 4 4\"}"), "OFFSET LENGTH are two numbers", 4},
    {POOL("  key-bytes-max = 32\n  key = {\"bytes 30 3\"}"), "key-bytes-max", 0},
    {POOL("  key = {}"), "key has no rule", 0},
    {POOL("  backend a { address = \"127.0.0.1:8\" }"), "a", 5},
    {POOL("  backend \"b b\" { address = \"127.0.0.1:8\" }"), "b b", 4},
    {POOL("  backend b { }"), "backend b has no address", 4},
    {POOL("  backend b { address = \"nonsense\" }"), "nonsense", 4},
    {POOL("  backend b { address = \"127.0.0.1:0\" }"), "127.0.0.1:0", 4},
    {POOL("  backend b { address = \"127.0.0.1:1\" weight = 0 }"), "weight", 4},
    {POOL("  backend b { address = \"127.0.0.1:1\" probe = \"x\" }"), "probe", 4},
    {"pool p { listen = \"127.0.0.1:0\" }\n", "pool p has no backend", 1},
    {"pool p { backend a { address = \"127.0.0.1:1\" } }\n", "pool p has no listen", 1},
    {"lockd = {\"nonsense\"}\n" POOL(""), "nonsense", 1},
    {"name = \"a b\"\n" POOL(""), "a b", 1},
    {"name = \"\"\n" POOL(""), "name", 1},
    {"log-level = \"loud\"\n" POOL(""), "loud", 1},
    {"lease-ttl-ms = 999\n" POOL(""), "lease-ttl-ms", 1},
    {"lease-ttl-ms = 99999999999999999999\n" POOL(""), "lease-ttl-ms", 1},
    {"lockd = {\"127.0.0.1:1\"}\n", "there is no pool", 0},
    {"pool {", "", 1},
    {"pool chat {", "", 1},
    {"", "there is no pool", 0},
};
START_TEST(what_is_wrong_is_named) {
    char where[64];
    write_file(bad[_i].content);
    ck_assert_msg(read_file() == CONFIG_BAD, "taken: %s", bad[_i].content);
    ck_assert_msg(strstr(text, bad[_i].message) != NULL, "%s: %s", bad[_i].content, text);
    if (bad[_i].line == 0) return;
    snprintf(where, sizeof where, "%s:%d:", path, bad[_i].line);
    ck_assert_msg(strstr(text, where) == text, "not \"%s\": %s", where, text);
}
END_TEST

START_TEST(a_good_file) {
    write_file("lockd = {\"127.0.0.1:1\", \"[::1]:2\"}\nname = \"p1\"\nlease-ttl-ms = 1000\n"
               "pool chat {\n listen = \"127.0.0.1:0\"\n class = \"exclusive\"\n subset = 3\n"
               " key = {\"line ^JOIN ([^ ]+)\", 'line \\.x$', \"source-ip\"}\n refuse-text = \"no\"\n"
               " backend a { address = \"127.0.0.1:9\" weight = 7 drain = true }\n"
               " backend b { address = \"[::1]:10\" probe = \"127.0.0.1:11\" }\n}\n"
               "pool other { listen = \"127.0.0.1:0\" backend a { address = \"127.0.0.1:9\" } }\n"
               "pool web { listen = \"127.0.0.1:0\" backend a { address = \"127.0.0.1:9\" }\n"
               " key = {\"http-cookie sid\", \"http-header  X-User\", \"http-query room\", \"http-path ^/r/([0-9]+)\", "
               "\"sni\","
               " \"mqtt-client-id\", \"bytes 4 16\"} }\n");
    ck_assert_msg(read_file() == CONFIG_RUN, "%s", text);
    ck_assert_str_eq(config.lockd, "127.0.0.1:1,[::1]:2");
    ck_assert_str_eq(config.name, "p1");
    ck_assert_uint_eq(config.lease_ttl_ms, 1000);
    ck_assert_uint_eq(config.clock_drift_ppm, 500);
    ck_assert_uint_eq(config.pool_count, 3);
    const struct key_config *web = &config.pools[2].key;
    ck_assert_uint_eq(web->rule_count, 7);
    for (uint32_t i = 0; i < 7; i++)
        ck_assert_int_eq(web->rules[i].kind,
                         ((enum key_kind[]){KEY_HTTP_COOKIE, KEY_HTTP_HEADER, KEY_HTTP_QUERY, KEY_HTTP_PATH, KEY_SNI,
                                            KEY_MQTT_CLIENT_ID, KEY_BYTES})[i]);
    ck_assert_str_eq(web->rules[0].name, "sid");
    ck_assert_str_eq(web->rules[1].name, "X-User");
    ck_assert_uint_eq(web->rules[6].offset, 4);
    ck_assert_uint_eq(web->rules[6].length, 16);
    const struct config_pool *p = &config.pools[0];
    ck_assert_str_eq(p->name_of, "chat");
    ck_assert_int_eq(p->class, BINDINGS_EXCLUSIVE);
    ck_assert_uint_eq(p->subset, 3);
    ck_assert_str_eq(p->refuse_text, "no");
    ck_assert_uint_eq(p->key.rule_count, 3);
    ck_assert_int_eq(p->key.rules[2].kind, KEY_SOURCE_IP);
    struct slice key;
    ck_assert(p->key.rules[1].match(p->key.rules[1].context, slice_str("a.x"), &key));
    ck_assert(!p->key.rules[1].match(p->key.rules[1].context, slice_str("ax"), &key));
    ck_assert_uint_eq(p->backend_count, 2);
    ck_assert_uint_eq(p->backends[0].weight, 7);
    ck_assert(p->backends[0].drain && !p->backends[1].drain);
    ck_assert_uint_eq(p->backends[0].probe.port, 9);
    ck_assert_uint_eq(p->backends[1].probe.port, 11);
    ck_assert_int_eq(config.pools[1].class, BINDINGS_STICKY);
    ck_assert_uint_eq(config.pools[1].subset, 2);
    ck_assert_int_eq(config.pools[1].key.rules[0].kind, KEY_SOURCE_IP);
}
END_TEST

START_TEST(the_command_line_beats_the_file) {
    static char name[] = "--name=it's me\\", lockd[] = "--lockd", addresses[] = "127.0.0.1:7,127.0.0.1:8",
                ttl[] = "--lease-ttl-ms", value[] = "2000", check[] = "--check";
    write_file("name = \"file\"\n" POOL(""));
    ck_assert_int_eq(read_words(name, NULL, NULL, NULL, NULL, NULL), CONFIG_BAD); /* a space; and the quotes hold */
    ck_assert_msg(strstr(text, "command line") == text && strstr(text, "it's me\\") != NULL, "%s", text);
    config_release(&config);
    static char good[] = "--name=me";
    ck_assert_msg(read_words(good, lockd, addresses, ttl, value, check) == CONFIG_CHECK, "%s", text);
    ck_assert_str_eq(config.name, "me");
    ck_assert_str_eq(config.lockd, "127.0.0.1:7,127.0.0.1:8");
    ck_assert_uint_eq(config.lease_ttl_ms, 2000);
}
END_TEST

static enum config_answer read_line(const char *words) {
    static char copy[512];
    char *argv[32] = {copy}, *save = NULL;
    int argc = 0;
    snprintf(copy, sizeof copy, "%s", words);
    for (char *word = strtok_r(copy, " ", &save); word != NULL; word = strtok_r(NULL, " ", &save)) argv[argc++] = word;
    return config_read(argc, argv, &config, text);
}

START_TEST(one_pool_without_a_file) {
    ck_assert_msg(read_line("lockproxy --pool p --listen 127.0.0.1:0 --backend a=127.0.0.1:9,weight=3 "
                            "-b b=127.0.0.1:10,probe=127.0.0.1:11,drain=true --key line:x --subset 2") == CONFIG_BAD,
                  "%s", text); /* "line:x" is no rule */
    config_release(&config);
    ck_assert_msg(read_line("lockproxy --pool p --listen=127.0.0.1:0 --backend a=127.0.0.1:9,weight=3 "
                            "-b b=127.0.0.1:10,probe=127.0.0.1:11,drain=true --key source-ip --fall 1") == CONFIG_RUN,
                  "%s", text);
    ck_assert_str_eq(config.pools[0].name_of, "p");
    ck_assert_uint_eq(config.pools[0].backends[0].weight, 3);
    ck_assert_uint_eq(config.pools[0].backends[1].probe.port, 11);
    ck_assert_uint_eq(config.pools[0].fall, 1);
}
END_TEST

static const struct {
    const char *words, *message;
} usage[] = {
    {"lockproxy", "--config"},
    {"lockproxy --frob 1", "--frob"},
    {"lockproxy --config", "--config needs a value"},
    {"lockproxy surplus", "surplus"},
    {"lockproxy --subset 2", "--config"},
    {"lockproxy --pool a --pool b", "second pool"},
    {"lockproxy --pool p --backend a", "--backend a"},
    {"lockproxy --pool p --backend a=127.0.0.1:1,wait=3", "wait=3"},
};
START_TEST(a_wrong_command_line) {
    ck_assert_int_eq(read_line(usage[_i].words), CONFIG_USAGE);
    ck_assert_msg(strstr(text, usage[_i].message) != NULL, "%s: %s", usage[_i].words, text);
}
END_TEST

START_TEST(a_missing_file) {
    ck_assert_int_eq(read_line("lockproxy --config /nowhere/proxy.conf"), CONFIG_BAD);
    ck_assert_str_eq(text, "/nowhere/proxy.conf: No such file or directory");
}
END_TEST

START_TEST(help_and_version) {
    ck_assert_int_eq(read_line("lockproxy --help"), CONFIG_SHOWN);
    ck_assert(strstr(text, "--ask-timeout-ms") != NULL && strstr(text, "SIGUSR1") != NULL);
    ck_assert_int_eq(read_line("lockproxy --version"), CONFIG_SHOWN);
    ck_assert_str_eq(text, "lockproxy " HOLDFAST_VERSION "\n");
}
END_TEST

int main(void) {
    Suite *s = suite_create("config");
    TCase *tc = tcase_create("config");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, what_is_wrong_is_named, 0, sizeof bad / sizeof bad[0]);
    tcase_add_test(tc, a_good_file);
    tcase_add_test(tc, the_command_line_beats_the_file);
    tcase_add_test(tc, one_pool_without_a_file);
    tcase_add_loop_test(tc, a_wrong_command_line, 0, sizeof usage / sizeof usage[0]);
    tcase_add_test(tc, a_missing_file);
    tcase_add_test(tc, help_and_version);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
