/* The command table, what is refused before a handler sees it, and COMMAND as redis-cli reads it. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "lockd/core/command.h"

static struct buf out;

static void setup(void) {
    out = (struct buf){.alloc = heap_alloc()};
}
static void teardown(void) {
    buf_release(&out);
}

/* "get|a|b" -> argv */
static uint32_t split(const char *line, struct slice *argv) {
    uint32_t argc = 0;
    for (;;) {
        const char *bar = strchr(line, '|');
        argv[argc++] = slice_of(line, bar != NULL ? (size_t)(bar - line) : strlen(line));
        if (bar == NULL) return argc;
        line = bar + 1;
    }
}
static const struct command *check_line(const char *line) {
    struct slice argv[64];
    buf_clear(&out);
    const struct command *c = command_check(split(line, argv), argv, 16, &out);
    buf_append(&out, "", 1);
    return c;
}

START_TEST(every_name_is_found_in_any_case) {
    for (int i = 0; i < CMD_COUNT; i++) {
        const struct command *c = command_at((enum command_id)i);
        ck_assert_int_eq((int)c->id, i);
        char lower[64];
        const size_t bytes = strlen(c->name);
        for (size_t j = 0; j <= bytes; j++)
            lower[j] = c->name[j] >= 'A' && c->name[j] <= 'Z' ? (char)(c->name[j] + 32) : c->name[j];
        ck_assert_ptr_eq(command_find(slice_str(c->name), true), c);
        ck_assert_ptr_eq(command_find(slice_str(lower), true), c);
        ck_assert_ptr_eq(command_find(slice_of(lower, bytes - 1), true) == c ? c : NULL, NULL);
        const bool internal = c->class == COMMAND_INTERNAL;
        ck_assert_int_eq(internal, c->name[0] == '%');
        ck_assert_ptr_eq(command_find(slice_str(lower), false), internal ? NULL : c);
        /* the table itself */
        ck_assert_int_ne(c->arity, 0);
        ck_assert((c->first_key == 0) == (c->step == 0));
        ck_assert(c->first_key == 0 || c->last_key == -1 || c->last_key >= c->first_key);
        ck_assert(c->first_key == 0 || c->first_key < abs(c->arity));
    }
    ck_assert_ptr_null(command_find(slice_of(NULL, 0), true));
    ck_assert_ptr_null(command_find(slice_str("ge\xf4"), true));
    ck_assert_ptr_null(command_find(slice_str("a-name-that-is-longer-than-all-commands-of-the-list"), true));
}
END_TEST

static const struct {
    const char *line, *want; /* want "": it may be run */
} rows[] = {
    {"GeT|a", ""},
    {"set|a|b|px|1", ""},
    {"get", "-ERR wrong number of arguments for 'get' command\r\n"},
    {"GET|a|b", "-ERR wrong number of arguments for 'get' command\r\n"},
    {"route.bind|p", "-ERR wrong number of arguments for 'route.bind' command\r\n"},
    {"foo|a\r\n|b", "-ERR unknown command 'foo', with args beginning with: 'a  ' 'b' \r\n"},
    {"", "-ERR unknown command '', with args beginning with: \r\n"},
    {"%expire|1", "-ERR unknown command '%expire', with args beginning with: '1' \r\n"},
    {"get|12345678901234567", "-ERR key is too long: 17 bytes, key-bytes-max is 16\r\n"},
    {"get|1234567890123456", ""},
    {"set|a|12345678901234567", ""},
    {"del|a|b|12345678901234567|c", "-ERR key is too long: 17 bytes, key-bytes-max is 16\r\n"},
    {"eval|return 1 -- longer than a key|1|k|12345678901234567", ""},
    {"eval|return 1|1|12345678901234567", "-ERR key is too long: 17 bytes, key-bytes-max is 16\r\n"},
    {"eval|x|y|12345678901234567", ""}, /* the handler says what is wrong */
    {"eval|x|9|12345678901234567", ""},
    {"eval|x|18446744073709551615|12345678901234567", ""},
    {"once|1|2|set|a|b", ""},
    {"once|1|2|eval|x|1|a", ""},
    {"once|1|2", "-ERR wrong number of arguments for 'once' command\r\n"},
    {"once|1|2|set|a", "-ERR wrong number of arguments for 'set' command\r\n"},
    {"once|1|2|foo|a", "-ERR unknown command 'foo', with args beginning with: 'a' \r\n"},
    {"once|1|2|%expire|1", "-ERR unknown command '%expire', with args beginning with: '1' \r\n"},
    {"once|1|2|get|a",
     "-ERR ONCE takes a command that changes something, or a script; 'get' may be repeated as it is\r\n"},
    {"once|1|2|lease.keepalive|1",
     "-ERR ONCE takes a command that changes something, or a script; 'lease.keepalive' may be repeated as it is\r\n"},
    {"once|1|2|once|1|2|set|a|b",
     "-ERR ONCE takes a command that changes something, or a script; 'once' may be repeated as it is\r\n"},
    {"once|1|2|set|12345678901234567|b", "-ERR key is too long: 17 bytes, key-bytes-max is 16\r\n"},
    {"once|1|12345678901234567|set|a|b", ""},
    {"once|1|2|eval|x|1|12345678901234567", "-ERR key is too long: 17 bytes, key-bytes-max is 16\r\n"},
};
START_TEST(what_is_refused) {
    const struct command *c = check_line(rows[_i].line);
    ck_assert_str_eq(out.data, rows[_i].want);
    ck_assert_int_eq(c != NULL, rows[_i].want[0] == '\0');
}
END_TEST

START_TEST(unknown_command_shows_no_more_than_redis) {
    char line[600], want[600];
    memset(line, 0, sizeof line);
    memcpy(line, "foo|", 4);
    memset(line + 4, 'x', 200);
    memcpy(line + 204, "|y", 3);
    snprintf(want, sizeof want, "-ERR unknown command 'foo', with args beginning with: '%.128s' \r\n", line + 4);
    ck_assert_ptr_null(check_line(line));
    ck_assert_str_eq(out.data, want);
    line[104] = '|'; /* 100 x, then the rest: 25 more are shown and that is it */
    snprintf(want, sizeof want, "-ERR unknown command 'foo', with args beginning with: '%.100s' '%.25s' \r\n", line + 4,
             line + 105);
    ck_assert_ptr_null(check_line(line));
    ck_assert_str_eq(out.data, want);
    memset(line, 'F', 300);
    line[300] = '\0';
    snprintf(want, sizeof want, "-ERR unknown command '%.128s', with args beginning with: \r\n", line);
    ck_assert_ptr_null(check_line(line));
    ck_assert_str_eq(out.data, want);
}
END_TEST

static void join(void *context, struct slice key) {
    (void)context;
    buf_append_slice(&out, key);
    buf_append_str(&out, ",");
}
static const struct {
    const char *line, *want;
} keys[] = {
    {"get|a", "a,"},
    {"set|a|b|nx", "a,"},
    {"del|a|b|c", "a,b,c,"},
    {"ping", ""},
    {"eval|s|2|a|b|c", "a,b,"},
    {"eval|s|0|a", ""},
    {"evalsha|s|1|a", "a,"},
    {"lock.acquire|n|LEASE|1", "n,"},
    {"lease.keepalive|1|2", ""},
    {"eval|s|3|a|b", ""},
    {"route.get|p|s|LEASE|1", ""},
    {"once|1|2|del|a|b", "a,b,"},
    {"once|1|2|eval|s|1|a|b", "a,"},
    {"once|1|2|lease.grant|3", ""},
    {"once|1|2|nosuch|3", ""},
    {"once|1|2", ""},
};
START_TEST(keys_of_a_command) {
    struct slice argv[64];
    const uint32_t argc = split(keys[_i].line, argv);
    command_keys(command_find(argv[0], false), argc, argv, join, NULL);
    buf_append(&out, "", 1);
    ck_assert_str_eq(out.data, keys[_i].want);
}
END_TEST

/* The reply of COMMAND line. */
static const char *reply_to(const char *line) {
    struct slice argv[64];
    buf_clear(&out);
    command_reply(split(line, argv), argv, &out);
    buf_append(&out, "", 1);
    return out.data;
}

/* Past one whole reply, whatever it is; counts its parts. */
static const char *skip(const char *at, int *parts) {
    const char *end = strstr(at, "\r\n");
    ck_assert_ptr_nonnull(end);
    const long number = strtol(at + 1, NULL, 10);
    (*parts)++;
    switch (*at) {
    case '+':
    case '-':
    case ':': return end + 2;
    case '$': return number < 0 ? end + 2 : end + 2 + number + 2;
    case '*':
        at = end + 2;
        for (long i = 0; i < number; i++) at = skip(at, parts);
        return at;
    default: ck_abort_msg("not a reply: %s", at);
    }
}

static int public_commands(void) {
    int count = 0;
    for (int i = 0; i < CMD_COUNT; i++) count += command_at((enum command_id)i)->class != COMMAND_INTERNAL;
    return count;
}

START_TEST(command_replies_are_whole) {
    static const char *const lines[] = {"COMMAND",          "command|info",         "COMMAND|DOCS",
                                        "COMMAND|LIST",     "COMMAND|COUNT",        "COMMAND|HELP",
                                        "COMMAND|INFO|get", "COMMAND|DOCS|get|set", "COMMAND|DOCS|nosuch"};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        int parts = 0;
        const char *reply = reply_to(lines[i]);
        ck_assert_ptr_eq(skip(reply, &parts), reply + out.bytes - 1);
    }
    char want[64];
    snprintf(want, sizeof want, ":%d\r\n", public_commands());
    ck_assert_str_eq(reply_to("COMMAND|COUNT"), want);
    snprintf(want, sizeof want, "*%d\r\n", public_commands());
    ck_assert_int_eq(strncmp(reply_to("COMMAND|LIST"), want, strlen(want)), 0);
    ck_assert_int_eq(strncmp(reply_to("COMMAND"), want, strlen(want)), 0);
    snprintf(want, sizeof want, "*%d\r\n", 2 * public_commands());
    ck_assert_int_eq(strncmp(reply_to("COMMAND|DOCS"), want, strlen(want)), 0);
    ck_assert_ptr_null(strchr(reply_to("COMMAND|LIST"), '%')); /* nothing internal */
}
END_TEST

static const struct {
    const char *line, *want;
} questions[] = {
    {"COMMAND|INFO|nosuch|%expire", "*2\r\n$-1\r\n$-1\r\n"},
    {"COMMAND|INFO|gEt",
     "*1\r\n*10\r\n$3\r\nget\r\n:2\r\n*2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n*0\r\n*0\r\n*0\r\n"
     "*0\r\n"},
    {"COMMAND|DOCS|nosuch", "*0\r\n"},
    {"COMMAND|DOCS|DBSIZE",
     "*2\r\n$6\r\ndbsize\r\n*6\r\n$7\r\nsummary\r\n$14\r\nNumber of keys\r\n$5\r\nsince\r\n$3\r\n0.1\r\n"
     "$5\r\ngroup\r\n$7\r\ngeneric\r\n"},
    {"COMMAND|DOCS|lease.list",
     "*2\r\n$10\r\nlease.list\r\n*8\r\n$7\r\nsummary\r\n$9\r\nLease ids\r\n$5\r\nsince\r\n$3\r\n0.1\r\n"
     "$5\r\ngroup\r\n$5\r\nlease\r\n$9\r\narguments\r\n*1\r\n*6\r\n$4\r\nname\r\n$6\r\ncursor\r\n$4\r\ntype\r\n"
     "$6\r\nstring\r\n$5\r\nflags\r\n*1\r\n+optional\r\n"},
    {"COMMAND|GETKEYS|set|a|b", "*1\r\n$1\r\na\r\n"},
    {"COMMAND|GETKEYS|del|a|b", "*2\r\n$1\r\na\r\n$1\r\nb\r\n"},
    {"COMMAND|GETKEYS|eval|x|2|a|b|c", "*2\r\n$1\r\na\r\n$1\r\nb\r\n"},
    {"COMMAND|GETKEYS|eval|x|9|a", "*0\r\n"},
    {"COMMAND|GETKEYS|get|a|b", "-ERR Invalid number of arguments specified for command\r\n"},
    {"COMMAND|GETKEYS|nosuch|a", "-ERR Invalid command specified\r\n"},
    {"COMMAND|GETKEYS|ping|a", "-ERR The command has no key arguments\r\n"},
    {"COMMAND|GETKEYS|ping", "-ERR wrong number of arguments for 'command|getkeys' command\r\n"},
    {"COMMAND|COUNT|x", "-ERR wrong number of arguments for 'command|count' command\r\n"},
    {"COMMAND|HELP|x", "-ERR wrong number of arguments for 'command|help' command\r\n"},
    {"COMMAND|LIST|x", "-ERR syntax error\r\n"},
    {"COMMAND|foo", "-ERR unknown subcommand 'foo'. Try COMMAND HELP.\r\n"},
};
START_TEST(command_answers) {
    ck_assert_str_eq(reply_to(questions[_i].line), questions[_i].want);
}
END_TEST

int main(void) {
    Suite *s = suite_create("command");
    TCase *tc = tcase_create("command");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, every_name_is_found_in_any_case);
    tcase_add_loop_test(tc, what_is_refused, 0, sizeof rows / sizeof rows[0]);
    tcase_add_test(tc, unknown_command_shows_no_more_than_redis);
    tcase_add_loop_test(tc, keys_of_a_command, 0, sizeof keys / sizeof keys[0]);
    tcase_add_test(tc, command_replies_are_whole);
    tcase_add_loop_test(tc, command_answers, 0, sizeof questions / sizeof questions[0]);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
