/* liblockclient against a scripted lockd on the same loop.  Guards C1-C6 of lockclient.h, each by the smallest play
 * that can break it. */
#include "client/lockclient.h"
#include "common/io/clock.h"
#include "tests/unit/client/fake_lockd.h"
#include <check.h>
#include <event2/event.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct event_base *base;
static struct fake one, two;
static struct lockclient *client;

/* What became of the commands of a test. */
struct end {
    unsigned calls;
    enum lockclient_result result;
    int type;
    long long integer;
    char text[128];
    unsigned order; /* the how-manieth end of all it was */
};
static unsigned ends;
static bool over; /* the test has returned, and its variables with it */

static void note(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply, void *arg) {
    struct end *end = arg;
    if (over) return;
    ck_assert_ptr_eq(c, client);
    end->calls++;
    end->result = result;
    end->order = ++ends;
    end->type = reply != NULL ? reply->type : 0;
    end->integer = reply != NULL ? reply->integer : 0;
    end->text[0] = '\0';
    if (reply != NULL && reply->str != NULL) snprintf(end->text, sizeof end->text, "%s", reply->str);
}

enum { MANY = 10000, BULKY = 100, BULKY_BYTES = 200000 };
static struct end many[MANY];
static unsigned seen[BULKY]; /* by lockd */
/* What leases reported. */
static unsigned lease_events[LOCKCLIENT_LEASE_REFUSED + 1];
static char lease_why[128];
static uint64_t lost_at_ms;
static bool free_in_callback;
/* What lockd does with renewals, and what was asked of it. */
enum renewals { RENEWED, GONE, UNANSWERED, NO_LEADER, ODD };
static enum renewals renewals;
static unsigned grants, keepalives, revokes;
static uint64_t last_executed_ms;
static const char *grant_reply;
static struct fake_conn *held_conn, *token_conn;
static bool reply_after_lost;

static void setup(void) {
    ends = grants = keepalives = revokes = 0;
    memset(lease_events, 0, sizeof lease_events);
    over = free_in_callback = reply_after_lost = false;
    renewals = RENEWED;
    held_conn = token_conn = NULL;
    memset(many, 0, sizeof many);
    memset(seen, 0, sizeof seen);
    base = event_base_new();
    ck_assert_ptr_nonnull(base);
    one = two = (struct fake){0};
    client = NULL;
}

static void teardown(void) {
    over = true;
    lockclient_free(client);
    fake_shut(&one);
    fake_shut(&two);
    event_base_loop(base, EVLOOP_NONBLOCK);
    event_base_free(base);
}

static void start_with(struct lockclient_config config) {
    config.base = base;
    ck_assert_int_eq(lockclient_new(&config, &client), 0);
}

static void start(uint32_t timeout_ms) {
    char addresses[80];
    snprintf(addresses, sizeof addresses, "%s%s%s", one.address, two.port > 0 ? "," : "",
             two.port > 0 ? two.address : "");
    start_with((struct lockclient_config){.addresses = addresses, .command_timeout_ms = timeout_ms});
}

static void until_ended(struct end *end) {
    fake_run_until_count(base, &end->calls, 1);
    ck_assert_uint_eq(end->calls, 1);
}

/* ---- what lockd does ---- */

/* +<last word>: each reply names its question. */
static void echo(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    (void)f;
    const struct redisReply *last = command->element[command->elements - 1];
    fake_say(conn, "$%zu\r\n", last->len);
    fake_say_bytes(conn, last->str, last->len);
    fake_say(conn, "\r\n");
}

static void mute(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    (void)f, (void)conn, (void)command;
}

/* The first sentence, then as `echo`. */
static const char *first_words;
static void first_then_echo(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    if (f->plays++ == 0)
        fake_say(conn, "%s", first_words);
    else
        echo(f, conn, command);
}
static void always_first(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    (void)f, (void)command;
    fake_say(conn, "%s", first_words);
}

/* ---- replies ---- */

static const struct {
    const char *bytes;
    int type;
    long long integer;
    const char *text;
} reply_rows[] = {
    {"+OK\r\n", REDIS_REPLY_STATUS, 0, "OK"},
    {":-7\r\n", REDIS_REPLY_INTEGER, -7, ""},
    {"$5\r\nhello\r\n", REDIS_REPLY_STRING, 0, "hello"},
    {"$0\r\n\r\n", REDIS_REPLY_STRING, 0, ""},
    {"$-1\r\n", REDIS_REPLY_NIL, 0, ""},
    {"*-1\r\n", REDIS_REPLY_NIL, 0, ""},
    {"*2\r\n:1\r\n*0\r\n", REDIS_REPLY_ARRAY, 0, ""},
    {"-ERR no such thing\r\n", REDIS_REPLY_ERROR, 0, "ERR no such thing"},
    {"-NOLEASE 5\r\n", REDIS_REPLY_ERROR, 0, "NOLEASE 5"},
    {"-BUSYGROUP is another word\r\n", REDIS_REPLY_ERROR, 0, "BUSYGROUP is another word"},
};
START_TEST(reply_arrives) {
    struct end end = {0};
    first_words = reply_rows[_i].bytes;
    fake_open(&one, base, always_first);
    start(0);
    ck_assert_ptr_null(lockclient_peer(client));
    lockclient_sendv(client, 0, 0, note, &end, "GET", "k", NULL);
    ck_assert_uint_eq(end.calls, 0);
    until_ended(&end);
    ck_assert_int_eq(end.result, LOCKCLIENT_REPLY);
    ck_assert_int_eq(end.type, reply_rows[_i].type);
    ck_assert_int_eq(end.integer, reply_rows[_i].integer);
    ck_assert_str_eq(end.text, reply_rows[_i].text);
    ck_assert_str_eq(lockclient_peer(client), one.address);
}
END_TEST

static void bytewise(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    (void)f, (void)command;
    const char reply[] = "*3\r\n:42\r\n$5\r\nhello\r\n*1\r\n$-1\r\n";
    for (size_t i = 0; i + 1 < sizeof reply; i++) {
        fake_say_bytes(conn, reply + i, 1);
        event_base_loop(base, EVLOOP_NONBLOCK | EVLOOP_ONCE); /* the client reads each byte alone */
    }
}
static void check_nested(struct lockclient *c, enum lockclient_result result, const struct redisReply *r, void *arg) {
    (void)c;
    ck_assert_int_eq(result, LOCKCLIENT_REPLY);
    ck_assert_uint_eq(r->elements, 3);
    ck_assert_int_eq(r->element[0]->integer, 42);
    ck_assert_str_eq(r->element[1]->str, "hello");
    ck_assert_int_eq(r->element[2]->element[0]->type, REDIS_REPLY_NIL);
    *(bool *)arg = true;
}
static void hold(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    (void)f, (void)command;
    held_conn = conn;
}
START_TEST(reply_byte_at_a_time) {
    bool done = false;
    fake_open(&one, base, hold);
    start(0);
    lockclient_sendv(client, 0, 0, check_nested, &done, "X", NULL);
    fake_run_until_count(base, &one.commands, 1);
    bytewise(&one, held_conn, NULL);
    fake_run_until(base, &done);
}
END_TEST

START_TEST(ten_thousand_pipelined) {
    fake_open(&one, base, echo);
    start(0);
    for (int i = 0; i < MANY; i++) {
        char word[16];
        snprintf(word, sizeof word, "%d", i);
        lockclient_sendv(client, 0, 0, note, &many[i], "ECHO", word, NULL);
    }
    fake_run_until_count(base, &ends, MANY);
    for (int i = 0; i < MANY; i++) {
        ck_assert_uint_eq(many[i].calls, 1);
        ck_assert_int_eq(many[i].result, LOCKCLIENT_REPLY);
        ck_assert_int_eq(atoi(many[i].text), i);
        ck_assert_uint_eq(many[i].order, (unsigned)i + 1);
    }
    ck_assert_uint_eq(one.connects, 1);
}
END_TEST

/* ---- lost connections (C1, C2) ---- */

static void half_a_reply(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    if (f->plays++ == 0) {
        fake_say(conn, "$500\r\nhalf");
        fake_hang_up(conn);
    } else {
        echo(f, conn, command);
    }
}
static void reset_then_echo(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    if (f->plays++ == 0)
        fake_reset(conn);
    else
        echo(f, conn, command);
}
static fake_handler *const droppers[] = {half_a_reply, reset_then_echo};
START_TEST(lost_in_mid_reply) {
    struct end repeatable = {0}, once = {0}, after = {0};
    fake_open(&one, base, droppers[_i]);
    start(0);
    lockclient_sendv(client, LOCKCLIENT_REPEATABLE, 0, note, &repeatable, "GET", "a", NULL);
    lockclient_sendv(client, 0, 0, note, &once, "INCR", "b", NULL);
    lockclient_sendv(client, LOCKCLIENT_REPEATABLE, 0, note, &after, "GET", "c", NULL);
    until_ended(&repeatable);
    until_ended(&once);
    until_ended(&after);
    ck_assert_int_eq(repeatable.result, LOCKCLIENT_REPLY);
    ck_assert_str_eq(repeatable.text, "a");
    ck_assert_int_eq(once.result, LOCKCLIENT_UNCERTAIN);
    ck_assert_str_eq(after.text, "c");
    ck_assert_uint_lt(repeatable.order, after.order);
    ck_assert_uint_eq(one.connects, 2);
}
END_TEST

/* Half a megabyte each: most never leave the process before the connection dies. */
static void count_seen(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    (void)f;
    seen[atoi(command->element[1]->str)]++;
    fake_say(conn, "+OK\r\n");
}
START_TEST(unwritten_are_kept_and_sent_once) {
    static char value[BULKY_BYTES];
    memset(value, 'v', sizeof value);
    fake_open(&one, base, count_seen);
    one.deaf = true;
    start(0);
    for (int i = 0; i < BULKY; i++) {
        char number[16];
        snprintf(number, sizeof number, "%d", i);
        const char *argv[] = {"SET", number, value};
        const size_t bytes[] = {3, strlen(number), sizeof value};
        lockclient_send(client, 0, 0, 3, argv, bytes, note, &many[i]);
    }
    fake_run_until_count(base, &one.connects, 1);
    fake_run_for(base, 50); /* the socket's buffers fill */
    one.deaf = false;
    fake_hang_up_all(&one);
    fake_run_until_count(base, &ends, BULKY);
    unsigned uncertain = 0;
    for (int i = 0; i < BULKY; i++) {
        ck_assert_uint_eq(many[i].calls, 1);
        if (many[i].result == LOCKCLIENT_UNCERTAIN) {
            uncertain++;
            ck_assert_uint_eq(seen[i], 0);
        } else {
            ck_assert_int_eq(many[i].result, LOCKCLIENT_REPLY);
            ck_assert_uint_eq(seen[i], 1);
        }
    }
    ck_assert_uint_gt(uncertain, 0);
    ck_assert_uint_lt(uncertain, BULKY);
}
END_TEST

/* More than the buffers of a socket hold: lockd cannot have had all of it, so it cannot have run. */
START_TEST(half_written_is_sent_again) {
    struct end end = {0};
    const size_t bytes[] = {3, 1, 32 << 20};
    char *value = calloc(1, bytes[2]);
    const char *argv[] = {"SET", "7", value};
    fake_open(&one, base, count_seen);
    one.deaf = true;
    start(0);
    lockclient_send(client, 0, 0, 3, argv, bytes, note, &end);
    free(value);
    fake_run_until_count(base, &one.connects, 1);
    fake_run_for(base, 50); /* the socket's buffers fill */
    one.deaf = false;
    fake_hang_up_all(&one);
    until_ended(&end);
    ck_assert_int_eq(end.result, LOCKCLIENT_REPLY);
    ck_assert_uint_eq(seen[7], 1);
}
END_TEST

START_TEST(next_address_when_refused) {
    struct end end = {0};
    fake_open(&one, base, echo);
    fake_open(&two, base, echo);
    start(0);
    fake_shut(&one);
    lockclient_sendv(client, 0, 0, note, &end, "INCR", "k", NULL);
    until_ended(&end);
    ck_assert_int_eq(end.result, LOCKCLIENT_REPLY);
    ck_assert_str_eq(lockclient_peer(client), two.address);
}
END_TEST

START_TEST(nobody_listens) {
    struct end end = {0};
    fake_open(&one, base, echo);
    start(0);
    fake_shut(&one);
    const uint64_t from = clock_now_ms();
    lockclient_sendv(client, LOCKCLIENT_REPEATABLE, 300, note, &end, "GET", "k", NULL);
    until_ended(&end);
    ck_assert_int_eq(end.result, LOCKCLIENT_NOT_RUN);
    ck_assert_int_eq(end.type, 0);
    ck_assert_uint_ge(clock_now_ms() - from, 300);
}
END_TEST

START_TEST(name_is_looked_up) {
    struct end end = {0};
    char address[64];
    fake_open(&one, base, echo);
    snprintf(address, sizeof address, "localhost:%u", one.port);
    start_with((struct lockclient_config){.addresses = address});
    lockclient_sendv(client, 0, 0, note, &end, "GET", "k", NULL);
    until_ended(&end);
    ck_assert_int_eq(end.result, LOCKCLIENT_REPLY);
    ck_assert_str_eq(lockclient_peer(client), address);
}
END_TEST

START_TEST(freed_while_looking_up_a_name) {
    struct end end = {0};
    start_with((struct lockclient_config){.addresses = "no-such-host.invalid:1", .command_timeout_ms = 100});
    lockclient_sendv(client, 0, 0, note, &end, "GET", "k", NULL);
    if (_i == 1)
        until_ended(&end);
    else
        event_base_loop(base, EVLOOP_ONCE);
    lockclient_free(client);
    client = NULL;
    ck_assert_uint_eq(end.calls, 1);
    ck_assert_int_eq(end.result, LOCKCLIENT_NOT_RUN);
    fake_run_for(base, 50); /* what the look-up still calls back finds nobody */
}
END_TEST

/* ---- refusals (section E) ---- */

static const struct {
    const char *words;
    unsigned flags;
    enum lockclient_result result;
    bool again; /* is sent a second time */
} refusal_rows[] = {
    {"-CLUSTERDOWN no leader\r\n", 0, LOCKCLIENT_REPLY, true},
    {"-LOADING starting\r\n", 0, LOCKCLIENT_REPLY, true},
    {"-BUSY too much\r\n", 0, LOCKCLIENT_REPLY, true},
    {"-UNCERTAIN who knows\r\n", LOCKCLIENT_REPEATABLE, LOCKCLIENT_REPLY, true},
    {"-UNCERTAIN who knows\r\n", 0, LOCKCLIENT_UNCERTAIN, false},
    {"-DISKFULL no space\r\n", 0, LOCKCLIENT_NOT_RUN, false},
    {"-READONLY you said so\r\n", 0, LOCKCLIENT_NOT_RUN, false},
    {"-ERR content\r\n", LOCKCLIENT_REPEATABLE, LOCKCLIENT_REPLY, false},
};
START_TEST(refusal_is_judged) {
    struct end end = {0};
    first_words = refusal_rows[_i].words;
    fake_open(&one, base, first_then_echo);
    start(0);
    lockclient_sendv(client, refusal_rows[_i].flags, 0, note, &end, "GET", "k", NULL);
    until_ended(&end);
    ck_assert_int_eq(end.result, refusal_rows[_i].result);
    ck_assert_uint_eq(one.commands, refusal_rows[_i].again ? 2 : 1);
    if (refusal_rows[_i].again)
        ck_assert_str_eq(end.text, "k");
    else
        ck_assert_int_eq(end.type, REDIS_REPLY_ERROR);
}
END_TEST

static const char *const lasting[] = {"-CLUSTERDOWN no leader\r\n", "-BUSY too much\r\n"};
START_TEST(refused_until_the_timeout) {
    struct end end = {0};
    first_words = lasting[_i];
    fake_open(&one, base, always_first);
    fake_open(&two, base, always_first);
    start(0);
    lockclient_sendv(client, 0, 400, note, &end, "INCR", "k", NULL);
    until_ended(&end);
    ck_assert_int_eq(end.result, LOCKCLIENT_NOT_RUN);
    ck_assert_int_eq(end.type, REDIS_REPLY_ERROR);
    ck_assert_mem_eq(end.text, lasting[_i] + 1, strlen(lasting[_i]) - 3);
    ck_assert_uint_gt(one.commands + two.commands, 3);
    ck_assert_uint_lt(one.commands + two.commands, 60); /* it backs off */
}
END_TEST

START_TEST(other_node_when_one_is_down) {
    struct end end[3] = {0};
    first_words = "-CLUSTERDOWN no leader\r\n";
    fake_open(&one, base, always_first);
    fake_open(&two, base, echo);
    start(0);
    for (int i = 0; i < 3; i++) lockclient_sendv(client, 0, 0, note, &end[i], "INCR", i == 0 ? "a" : "b", NULL);
    fake_run_until_count(base, &ends, 3);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(end[i].result, LOCKCLIENT_REPLY);
        ck_assert_str_eq(end[i].text, i == 0 ? "a" : "b");
        ck_assert_uint_eq(end[i].order, (unsigned)i + 1);
    }
    ck_assert_uint_eq(two.commands, 3);
}
END_TEST

/* ---- timeouts (C5) ---- */

START_TEST(late_reply_is_not_the_next_ones) {
    struct end late = {0}, next = {0}, last = {0};
    fake_open(&one, base, hold);
    start(0);
    lockclient_sendv(client, 0, 100, note, &late, "GET", "late", NULL);
    lockclient_sendv(client, 0, 0, note, &next, "GET", "next", NULL);
    until_ended(&late);
    ck_assert_int_eq(late.result, LOCKCLIENT_UNCERTAIN);
    ck_assert_uint_eq(one.commands, 2);
    fake_say(held_conn, "+late\r\n+next\r\n");
    until_ended(&next);
    ck_assert_str_eq(next.text, "next");
    lockclient_sendv(client, 0, 0, note, &last, "GET", "last", NULL);
    fake_run_until_count(base, &one.commands, 3);
    fake_say(held_conn, "+last\r\n");
    until_ended(&last);
    ck_assert_str_eq(last.text, "last");
    ck_assert_uint_eq(late.calls, 1);
    ck_assert_uint_eq(one.connects, 1);
}
END_TEST

START_TEST(silent_node_is_left) {
    struct end end = {0}, next = {0}, after = {0};
    fake_open(&one, base, mute);
    fake_open(&two, base, echo);
    start(0);
    lockclient_sendv(client, 0, 200, note, &end, "GET", "k", NULL);
    lockclient_sendv(client, LOCKCLIENT_REPEATABLE, 10000, note, &next, "GET", "next", NULL);
    until_ended(&end);
    ck_assert_int_eq(end.result, LOCKCLIENT_UNCERTAIN);
    until_ended(&next);
    ck_assert_str_eq(next.text, "next");
    ck_assert_uint_eq(two.commands, 1);
    lockclient_sendv(client, 0, 0, note, &after, "GET", "after", NULL);
    until_ended(&after);
    ck_assert_str_eq(after.text, "after");
}
END_TEST

START_TEST(repeated_but_never_answered_is_uncertain) {
    struct end end = {0};
    fake_open(&one, base, reset_then_echo);
    start(0);
    lockclient_sendv(client, LOCKCLIENT_REPEATABLE, 300, note, &end, "GET", "k", NULL);
    fake_run_until_count(base, &one.commands, 1);
    fake_shut(&one);
    until_ended(&end);
    ck_assert_int_eq(end.result, LOCKCLIENT_UNCERTAIN); /* the first sending may have run */
}
END_TEST

/* ---- hostile lockd ---- */

static const struct {
    const char *bytes;
    size_t count;
} garbage_rows[] = {
#define ROW(text)                                                                                                      \
    { text, sizeof text - 1 }
    ROW("hello\r\n"),
    ROW(":12x\r\n"),
    ROW("*2147483647\r\n"),
    ROW("*9223372036854775807\r\n"),
    ROW("*2000000\r\n*2000000\r\n*2000000\r\n*2000000\r\n*2000000\r\n"),
    ROW("*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n"),
    ROW("$-2\r\n"),
    ROW("$99999999999999999999\r\n"),
    ROW("\0\0\0\0\0\0\0\0"),
};
static size_t garbage_count;
static void garbage_then_echo(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    if (f->plays++ == 0)
        fake_say_bytes(conn, first_words, garbage_count);
    else
        echo(f, conn, command);
}
START_TEST(garbage_ends_the_connection) {
    struct end end = {0}, once = {0};
    first_words = garbage_rows[_i].bytes;
    garbage_count = garbage_rows[_i].count;
    fake_open(&one, base, garbage_then_echo);
    start(0);
    lockclient_sendv(client, LOCKCLIENT_REPEATABLE, 0, note, &end, "GET", "k", NULL);
    lockclient_sendv(client, 0, 0, note, &once, "INCR", "k", NULL);
    until_ended(&end);
    until_ended(&once);
    ck_assert_int_eq(end.result, LOCKCLIENT_REPLY);
    ck_assert_str_eq(end.text, "k");
    ck_assert_int_eq(once.result, LOCKCLIENT_UNCERTAIN);
    ck_assert_uint_eq(one.connects, 2);
}
END_TEST

/* Pieces of RESP in any order; what they mean does not matter, only that every command ends once and nothing breaks. */
static unsigned chance;
static unsigned draw(unsigned limit) {
    chance = chance * 1103515245 + 12345;
    return (chance >> 16) % limit;
}
static void babble(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    static const char *const pieces[] = {"*",
                                         "$",
                                         "+",
                                         "-",
                                         ":",
                                         "\r\n",
                                         "\r",
                                         "\n",
                                         "0",
                                         "-1",
                                         "1",
                                         "3",
                                         "70000000",
                                         "abc",
                                         "+OK\r\n",
                                         ":5\r\n",
                                         "$3\r\nabc\r\n",
                                         "*2\r\n",
                                         "*-1\r\n",
                                         "-BUSY x\r\n",
                                         "-UNCERTAIN\r\n",
                                         "-CLUSTERDOWN\r\n",
                                         "-ERR\r\n",
                                         "$-1\r\n",
                                         "-\r\n"};
    if (f->plays++ > 40) {
        echo(f, conn, command);
        return;
    }
    for (unsigned i = draw(8); i > 0; i--) fake_say(conn, "%s", pieces[draw(sizeof pieces / sizeof pieces[0])]);
    if (draw(4) == 0) fake_hang_up(conn);
}
START_TEST(babble_ends_every_command_once) {
    struct end end[10] = {0};
    chance = (unsigned)_i;
    fake_open(&one, base, babble);
    start(0);
    for (int i = 0; i < 10; i++) {
        lockclient_sendv(client, draw(4), 300 + draw(300), note, &end[i], "GET", "k", NULL);
    }
    fake_run_until_count(base, &ends, 10);
    lockclient_free(client);
    client = NULL;
    for (int i = 0; i < 10; i++) ck_assert_uint_eq(end[i].calls, 1);
}
END_TEST

/* 70 MiB of a line, of a bulk, of an array: none may be kept. */
static const struct {
    const char *head, *repeat;
} flood_rows[] = {{"+", "xxxxxxxxxxxxxxxx"},
                  {"$9223372036854775807\r\n", "yyyyyyyyyyyyyyyy"},
                  {"*60000000\r\n", ":123456789\r\n"},
                  {"*8000000\r\n", "$30\r\nzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz\r\n"}};
static void flood(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    if (f->plays++ > 0) {
        echo(f, conn, command);
        return;
    }
    const int row = atoi(command->element[1]->str);
    const char *head = flood_rows[row].head, *repeat = flood_rows[row].repeat;
    const size_t total = 70 << 20, step = strlen(repeat);
    char *bytes = malloc(total);
    for (size_t at = 0; at + step <= total; at += step) memcpy(bytes + at, repeat, step);
    fake_say(conn, "%s", head);
    fake_say_bytes(conn, bytes, total / step * step);
    free(bytes);
}
START_TEST(flood_ends_the_connection) {
    struct end end = {0};
    char row[16];
    snprintf(row, sizeof row, "%d", _i);
    fake_open(&one, base, flood);
    start(0);
    lockclient_sendv(client, LOCKCLIENT_REPEATABLE, 0, note, &end, "GET", row, NULL);
    until_ended(&end);
    ck_assert_str_eq(end.text, row);
    ck_assert_uint_eq(one.connects, 2);
}
END_TEST

static void two_for_one(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    echo(f, conn, command);
    if (f->plays++ == 0) echo(f, conn, command);
}
START_TEST(reply_without_a_question) {
    struct end first = {0}, second = {0};
    fake_open(&one, base, two_for_one);
    start(0);
    lockclient_sendv(client, 0, 0, note, &first, "GET", "first", NULL);
    until_ended(&first);
    fake_run_until_count(base, &one.closes, 1);
    lockclient_sendv(client, 0, 0, note, &second, "GET", "second", NULL);
    until_ended(&second);
    ck_assert_str_eq(second.text, "second");
}
END_TEST

/* A node that refuses a value before it has read it (Redis does): the command learns why, the connection goes. */
START_TEST(refused_in_the_middle) {
    struct end big = {0}, next = {0};
    const size_t bytes[] = {3, 1, 32 << 20};
    char *value = calloc(1, bytes[2]);
    const char *argv[] = {"SET", "k", value};
    fake_open(&one, base, echo);
    one.deaf = true;
    start(0);
    lockclient_send(client, 0, 0, 3, argv, bytes, note, &big);
    lockclient_sendv(client, 0, 0, note, &next, "GET", "next", NULL);
    fake_run_until_count(base, &one.connects, 1);
    fake_run_for(base, 20);
    one.deaf = false;
    fake_say(one.conns[0], "-ERR Protocol error: invalid bulk length\r\n");
    until_ended(&big);
    until_ended(&next);
    ck_assert_int_eq(big.result, LOCKCLIENT_REPLY);
    ck_assert_str_eq(big.text, "ERR Protocol error: invalid bulk length");
    ck_assert_str_eq(next.text, "next");
    free(value);
}
END_TEST

/* ---- limits and the end (C2, C4) ---- */

START_TEST(more_than_may_wait) {
    struct end end[4] = {0};
    fake_open(&one, base, hold);
    start_with((struct lockclient_config){.addresses = one.address, .pending_max = 2});
    for (int i = 0; i < 4; i++) lockclient_sendv(client, 0, 0, note, &end[i], "GET", "k", NULL);
    ck_assert_uint_eq(ends, 0);
    fake_run_until_count(base, &ends, 2);
    ck_assert_int_eq(end[2].result, LOCKCLIENT_NOT_RUN);
    ck_assert_int_eq(end[3].result, LOCKCLIENT_NOT_RUN);
    ck_assert_uint_eq(end[0].calls + end[1].calls, 0);
}
END_TEST

START_TEST(longer_than_may_wait) {
    struct end end[3] = {0};
    const size_t bytes[] = {3, 1, 40 << 20}, too_long[] = {3, 1, SIZE_MAX};
    char *value = calloc(1, bytes[2]);
    const char *argv[] = {"SET", "k", value};
    fake_open(&one, base, hold);
    start(0);
    lockclient_send(client, 0, 0, 3, argv, bytes, note, &end[0]);
    lockclient_send(client, 0, 0, 3, argv, bytes, note, &end[1]);
    lockclient_send(client, 0, 0, 3, argv, too_long, note, &end[2]);
    free(value);
    fake_run_until_count(base, &ends, 2);
    ck_assert_uint_eq(end[0].calls, 0);
    ck_assert_int_eq(end[1].result, LOCKCLIENT_NOT_RUN);
    ck_assert_int_eq(end[2].result, LOCKCLIENT_NOT_RUN);
}
END_TEST

static void send_more(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply, void *arg) {
    note(c, result, reply, arg);
    lockclient_sendv(c, 0, 0, send_more, arg, "GET", "more", NULL); /* dropped: the client is going */
}
START_TEST(free_with_pending) {
    struct end sent = {0}, unsent = {0}, greedy = {0};
    fake_open(&one, base, hold);
    start(0);
    lockclient_sendv(client, LOCKCLIENT_REPEATABLE, 0, note, &sent, "GET", "sent", NULL);
    fake_run_until_count(base, &one.commands, 1);
    lockclient_sendv(client, 0, 0, note, &unsent, "GET", "unsent", NULL);
    lockclient_sendv(client, 0, 0, send_more, &greedy, "GET", "greedy", NULL);
    lockclient_sendv(client, LOCKCLIENT_WAITS, 0, NULL, NULL, "WAIT", NULL);
    lockclient_free(client);
    client = NULL;
    ck_assert_uint_eq(sent.calls + unsent.calls + greedy.calls, 3);
    ck_assert_int_eq(sent.result, LOCKCLIENT_UNCERTAIN);
    ck_assert_int_eq(unsent.result, LOCKCLIENT_NOT_RUN);
}
END_TEST

static const struct {
    const char *addresses, *names;
} address_rows[] = {
    {"", "''"},       {"localhost", "'localhost'"}, {"a:1,,b:2", "''"},       {"a:1,b", "'b'"},
    {"a:0", "'a:0'"}, {"a:65536", "'a:65536'"},     {"a:-1", "'a:-1'"},       {"a:80x", "'a:80x'"},
    {":80", "':80'"}, {"::1:80", "'::1:80'"},       {"[::1:80", "'[::1:80'"}, {"a b:80", "'a b:80'"},
};
START_TEST(bad_address_is_named) {
    struct lockclient *c = (struct lockclient *)&base;
    ck_assert_int_eq(lockclient_new(&(struct lockclient_config){.addresses = address_rows[_i].addresses}, &c),
                     LOCKCLIENT_ERR_ADDRESS);
    ck_assert_ptr_eq(c, (struct lockclient *)&base);
    ck_assert_ptr_nonnull(strstr(lockclient_error_text(), address_rows[_i].names));
}
END_TEST

START_TEST(too_many_addresses) {
    struct lockclient *c;
    char text[1024] = "a:1";
    for (int i = 0; i < 64; i++) strcat(text, ",a:1");
    ck_assert_int_eq(lockclient_new(&(struct lockclient_config){.addresses = text}, &c), LOCKCLIENT_ERR_ADDRESS);
    ck_assert_ptr_nonnull(strstr(lockclient_error_text(), "64"));
}
END_TEST

START_TEST(own_base_and_good_addresses) {
    struct lockclient *c;
    ck_assert_int_eq(lockclient_new(&(struct lockclient_config){.addresses = "[::1]:80,localhost:1,1.2.3.4:65535"}, &c),
                     0);
    ck_assert_ptr_nonnull(lockclient_base(c));
    ck_assert_int_eq(event_base_dispatch(lockclient_base(c)), 1); /* nothing to do */
    lockclient_free(c);
    lockclient_free(NULL);
}
END_TEST

/* ---- calls ---- */

START_TEST(call_returns_the_reply) {
    struct redisReply *reply = NULL;
    const char *argv[] = {"ECHO", "hello"};
    fake_open(&one, base, echo);
    start(0);
    ck_assert_int_eq(lockclient_call(client, 0, 0, 2, argv, NULL, &reply), LOCKCLIENT_REPLY);
    ck_assert_str_eq(reply->str, "hello");
    freeReplyObject(reply);
    ck_assert_int_eq(lockclient_call(client, 0, 0, 2, argv, NULL, NULL), LOCKCLIENT_REPLY);
    fake_shut(&one);
    fake_run_for(base, 20); /* until the client has noticed: before, it would be uncertain */
    ck_assert_int_eq(lockclient_call(client, 0, 200, 2, argv, NULL, &reply), LOCKCLIENT_NOT_RUN);
    ck_assert_ptr_null(reply);
}
END_TEST

static void on_stop_timer(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what, (void)arg;
    lockclient_stop(client);
}
START_TEST(stop_ends_a_call) {
    const char *argv[] = {"ECHO", "hello"};
    fake_open(&one, base, hold);
    start(0);
    event_base_once(base, -1, EV_TIMEOUT, on_stop_timer, NULL, &(struct timeval){.tv_usec = 50000});
    ck_assert_int_eq(lockclient_call(client, 0, 0, 2, argv, NULL, NULL), LOCKCLIENT_UNCERTAIN);
    ck_assert_uint_eq(one.commands, 1);
}
END_TEST

/* ---- who waits, and who they are ---- */

static void hold_waiters(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    if (fake_is(command, "LOCK.ACQUIRE"))
        held_conn = conn;
    else
        echo(f, conn, command);
}
START_TEST(waiting_holds_up_nobody) {
    struct end wait[2] = {0}, get = {0};
    fake_open(&one, base, hold_waiters);
    start(0);
    lockclient_sendv(client, LOCKCLIENT_WAITS, 0, note, &wait[0], "LOCK.ACQUIRE", "a", NULL);
    fake_run_until_count(base, &one.commands, 1);
    struct fake_conn *first = held_conn;
    lockclient_sendv(client, LOCKCLIENT_WAITS, 0, note, &wait[1], "LOCK.ACQUIRE", "b", NULL);
    lockclient_sendv(client, 0, 0, note, &get, "GET", "k", NULL);
    until_ended(&get);
    fake_run_until_count(base, &one.commands, 3);
    ck_assert_ptr_ne(first, held_conn);
    fake_say(held_conn, ":2\r\n");
    until_ended(&wait[1]);
    ck_assert_int_eq(wait[1].integer, 2);
    fake_say(first, ":1\r\n");
    until_ended(&wait[0]);
    ck_assert_int_eq(wait[0].integer, 1);
    ck_assert_uint_eq(one.connects, 3);
}
END_TEST

START_TEST(many_wait_on_few_connections) {
    fake_open(&one, base, echo);
    start(0);
    for (int i = 0; i < 100; i++) lockclient_sendv(client, LOCKCLIENT_WAITS, 0, note, &many[i], "ECHO", "x", NULL);
    fake_run_until_count(base, &ends, 100);
    ck_assert_uint_le(one.connects, 8);
}
END_TEST

static bool named_first;
static void see_name(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    if (fake_is(command, "CLIENT")) {
        ck_assert_uint_eq(f->commands, 1);
        ck_assert_str_eq(command->element[1]->str, "SETNAME");
        ck_assert_str_eq(command->element[2]->str, "me");
        named_first = true;
        fake_say(conn, "-ERR no spaces\r\n");
    } else {
        echo(f, conn, command);
    }
}
START_TEST(name_is_set_on_connect) {
    struct end end = {0};
    fake_open(&one, base, see_name);
    start_with((struct lockclient_config){.addresses = one.address, .name = "me"});
    lockclient_sendv(client, 0, 0, note, &end, "GET", "k", NULL);
    until_ended(&end);
    ck_assert(named_first);
    ck_assert_str_eq(end.text, "k");
}
END_TEST

/* ---- leases (C3, C6) ---- */

enum { TTL_MS = 1500, LATE_MS = 1000 /* a busy machine wakes us so late at most */ };
static void on_lease(struct lockclient_lease *lease, enum lockclient_lease_event event, const char *why, void *arg) {
    (void)arg;
    lease_events[event]++;
    snprintf(lease_why, sizeof lease_why, "%s", why);
    if (event == LOCKCLIENT_LEASE_LOST) lost_at_ms = clock_now_ms();
    if (event == LOCKCLIENT_LEASE_LOST) ck_assert_uint_eq(lockclient_lease_deadline_ms(lease), 0);
    if (free_in_callback) lockclient_lease_free(lease);
}

/* lockd with leases. */
static void lease_lockd(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    if (fake_is(command, "LEASE.GRANT")) {
        grants++;
        last_executed_ms = clock_now_ms();
        fake_say(conn, "%s", grant_reply);
    } else if (fake_is(command, "LEASE.REVOKE")) {
        ck_assert_str_eq(command->element[1]->str, "77");
        revokes++;
        fake_say(conn, ":1\r\n");
    } else if (fake_is(command, "LEASE.KEEPALIVE")) {
        ck_assert_str_eq(command->element[1]->str, "77");
        keepalives++;
        switch (renewals) {
        case RENEWED:
            last_executed_ms = clock_now_ms();
            fake_say(conn, "*1\r\n:%d\r\n", TTL_MS);
            break;
        case GONE: fake_say(conn, "*1\r\n:-1\r\n"); break;
        case UNANSWERED: held_conn = conn; break;
        case NO_LEADER: fake_say(conn, "-CLUSTERDOWN no leader\r\n"); break;
        case ODD: fake_say(conn, "+what\r\n"); break;
        }
    } else {
        echo(f, conn, command);
    }
}

static struct lockclient_lease *hold_lease(fake_handler *handler) {
    grant_reply = ":77\r\n";
    fake_open(&one, base, handler);
    start(0);
    struct lockclient_lease *lease = lockclient_lease_new(client, TTL_MS, "me", on_lease, NULL);
    ck_assert_int_eq(lockclient_lease_id(lease), 0);
    ck_assert_uint_eq(lockclient_lease_deadline_ms(lease), 0);
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_GRANTED], 1);
    ck_assert_int_eq(lockclient_lease_id(lease), 77);
    ck_assert_uint_lt(lockclient_lease_deadline_ms(lease), last_executed_ms + TTL_MS);
    return lease;
}

START_TEST(lease_is_kept) {
    struct lockclient_lease *lease = hold_lease(lease_lockd);
    const uint64_t deadline = lockclient_lease_deadline_ms(lease), from = clock_now_ms();
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_RENEWED], 5);
    ck_assert_uint_gt(lockclient_lease_deadline_ms(lease), deadline);
    ck_assert_uint_lt(lockclient_lease_deadline_ms(lease), last_executed_ms + TTL_MS);
    ck_assert_uint_ge(clock_now_ms() - from, 5 * TTL_MS / 4); /* every ttl/3, a little early at most */
    ck_assert_uint_eq(lease_events[LOCKCLIENT_LEASE_DOUBT] + lease_events[LOCKCLIENT_LEASE_LOST], 0);
    lockclient_lease_free(lease);
    fake_run_until_count(base, &revokes, 1);
    const unsigned sent = keepalives;
    fake_run_for(base, TTL_MS);
    ck_assert_uint_eq(keepalives, sent);
}
END_TEST

START_TEST(lease_gone_at_lockd) {
    struct lockclient_lease *lease = hold_lease(lease_lockd);
    renewals = GONE;
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_LOST], 1);
    ck_assert_str_eq(lease_why, "gone at lockd");
    lockclient_lease_free(lease);
    fake_run_for(base, 50);
    ck_assert_uint_eq(revokes, 0);
}
END_TEST

static const enum renewals bad_renewals[] = {UNANSWERED, NO_LEADER, ODD};
START_TEST(lease_in_doubt_then_lost) {
    struct lockclient_lease *lease = hold_lease(lease_lockd);
    renewals = bad_renewals[_i];
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_DOUBT], 1);
    ck_assert_uint_ge(clock_now_ms(), last_executed_ms + TTL_MS * 2 / 3 - 50);
    const uint64_t deadline_ms = lockclient_lease_deadline_ms(lease);
    if (deadline_ms != 0) ck_assert_uint_lt(deadline_ms, last_executed_ms + TTL_MS); /* C3; 0: a slow machine */
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_LOST], 1);
    ck_assert_uint_ge(lost_at_ms, last_executed_ms + TTL_MS - 50);
    ck_assert_uint_le(lost_at_ms, last_executed_ms + TTL_MS + LATE_MS);
    ck_assert_uint_ge(keepalives, 2);
    fake_run_for(base, 100);
    ck_assert_uint_eq(lease_events[LOCKCLIENT_LEASE_LOST], 1);
    lockclient_lease_free(lease);
}
END_TEST

START_TEST(lease_survives_an_election) {
    struct lockclient_lease *lease = hold_lease(lease_lockd);
    renewals = NO_LEADER;
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_DOUBT], 1);
    renewals = RENEWED;
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_RENEWED], 2);
    ck_assert_uint_eq(lease_events[LOCKCLIENT_LEASE_LOST], 0);
    lockclient_lease_free(lease);
}
END_TEST

/* Asleep past the deadline, with the renewal's acknowledgement and another reply waiting in the socket. */
static void reply_sees_lost(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply,
                            void *arg) {
    note(c, result, reply, arg);
    reply_after_lost = lease_events[LOCKCLIENT_LEASE_LOST] == 1;
}
static void token_lockd(struct fake *f, struct fake_conn *conn, const struct redisReply *command) {
    if (fake_is(command, "LOCK.ACQUIRE"))
        token_conn = conn;
    else
        lease_lockd(f, conn, command);
}
START_TEST(clock_comes_before_replies) {
    struct end end = {0};
    struct lockclient_lease *lease = hold_lease(token_lockd);
    renewals = UNANSWERED;
    lockclient_sendv(client, 0, 0, reply_sees_lost, &end, "LOCK.ACQUIRE", "a", NULL);
    fake_run_until_count(base, &keepalives, 1);
    ck_assert_ptr_nonnull(token_conn);
    const unsigned renewed = lease_events[LOCKCLIENT_LEASE_RENEWED];
    const uint64_t deadline = lockclient_lease_deadline_ms(lease);
    fake_say_now(token_conn, ":5\r\n");
    fake_say_now(held_conn, "*1\r\n:1500\r\n");
    while (clock_now_ms() < deadline) poll(NULL, 0, 5); /* the whole process sleeps */
    until_ended(&end);
    ck_assert(reply_after_lost);
    ck_assert_uint_eq(end.calls, 1);
    fake_run_for(base, 50);
    ck_assert_uint_eq(lease_events[LOCKCLIENT_LEASE_RENEWED], renewed);
    lockclient_lease_free(lease);
}
END_TEST

static const struct {
    const char *reply, *why;
} refuse_rows[] = {
    {"-ERR ttl-ms is too short\r\n", "ERR ttl-ms is too short"},
    {"+OK\r\n", "lockd answered LEASE.GRANT with something that is not an id"},
    {":0\r\n", "lockd answered LEASE.GRANT with something that is not an id"},
    {"-CLUSTERDOWN no leader\r\n", "CLUSTERDOWN no leader"},
};
START_TEST(lease_refused) {
    grant_reply = refuse_rows[_i].reply;
    free_in_callback = true;
    fake_open(&one, base, lease_lockd);
    start(500);
    lockclient_lease_new(client, TTL_MS, NULL, on_lease, NULL);
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_REFUSED], 1);
    ck_assert_str_eq(lease_why, refuse_rows[_i].why);
}
END_TEST

START_TEST(lease_without_a_cluster) {
    fake_open(&one, base, lease_lockd);
    start(300);
    fake_shut(&one);
    struct lockclient_lease *lease = lockclient_lease_new(client, TTL_MS, NULL, on_lease, NULL);
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_REFUSED], 1);
    ck_assert_str_eq(lease_why, "no node could be reached");
    lockclient_lease_free(lease);
}
END_TEST

START_TEST(lease_freed_in_its_callback) {
    free_in_callback = true;
    grant_reply = ":77\r\n";
    fake_open(&one, base, lease_lockd);
    start(0);
    lockclient_lease_new(client, TTL_MS, "me", on_lease, NULL);
    fake_run_until_count(base, &revokes, 1);
    ck_assert_uint_eq(lease_events[LOCKCLIENT_LEASE_GRANTED], 1);
}
END_TEST

START_TEST(lease_freed_while_asking) {
    fake_open(&one, base, hold);
    start(0);
    struct lockclient_lease *lease = lockclient_lease_new(client, TTL_MS, "me", on_lease, NULL);
    fake_run_until_count(base, &one.commands, 1);
    lockclient_lease_free(lease);
    one.handler = lease_lockd;
    fake_say(held_conn, ":77\r\n");
    fake_run_until_count(base, &revokes, 1);
    ck_assert_uint_eq(lease_events[LOCKCLIENT_LEASE_GRANTED], 0);
}
END_TEST

START_TEST(client_freed_before_its_leases) {
    struct lockclient_lease *lease = hold_lease(lease_lockd);
    renewals = UNANSWERED;
    fake_run_until_count(base, &keepalives, 1);
    struct lockclient_lease *asking = lockclient_lease_new(client, TTL_MS, NULL, on_lease, NULL);
    lockclient_free(client);
    client = NULL;
    ck_assert_uint_eq(lease_events[LOCKCLIENT_LEASE_LOST] + lease_events[LOCKCLIENT_LEASE_REFUSED], 0);
    ck_assert_uint_ne(lockclient_lease_deadline_ms(lease), 0);
    lockclient_lease_free(lease);
    lockclient_lease_free(asking);
}
END_TEST

START_TEST(hundred_leases_and_one_loop) {
    struct lockclient_lease *leases[100];
    grant_reply = ":77\r\n";
    fake_open(&one, base, lease_lockd);
    start(0);
    for (int i = 0; i < 100; i++) leases[i] = lockclient_lease_new(client, TTL_MS, NULL, on_lease, NULL);
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_RENEWED], 500);
    ck_assert_uint_eq(lease_events[LOCKCLIENT_LEASE_GRANTED], 100);
    ck_assert_uint_eq(lease_events[LOCKCLIENT_LEASE_LOST], 0);
    for (int i = 0; i < 100; i++) lockclient_lease_free(leases[i]);
    fake_run_until_count(base, &revokes, 100);
}
END_TEST

/* The node stops answering anything: the keeper finds another one, and who waits at the silent one follows. */
START_TEST(waiter_follows_the_keeper) {
    struct end wait = {0}, once = {0};
    grant_reply = ":77\r\n";
    fake_open(&one, base, token_lockd);
    fake_open(&two, base, lease_lockd);
    start(0);
    struct lockclient_lease *lease = lockclient_lease_new(client, TTL_MS, NULL, on_lease, NULL);
    fake_run_until_count(base, &lease_events[LOCKCLIENT_LEASE_GRANTED], 1);
    lockclient_sendv(client, LOCKCLIENT_WAITS | LOCKCLIENT_REPEATABLE, 0, note, &wait, "LOCK.ACQUIRE", "a", NULL);
    fake_run_until_count(base, &one.commands, 2);
    one.handler = mute;
    lockclient_sendv(client, 0, 0, note, &once, "INCR", "k", NULL);
    until_ended(&wait);
    ck_assert_str_eq(wait.text, "a");
    ck_assert_uint_eq(once.calls, 0); /* it may have run: it waits for its own timeout */
    ck_assert_uint_eq(lease_events[LOCKCLIENT_LEASE_LOST], 0);
    lockclient_lease_free(lease);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("lockclient");
#define CASE(name, ...)                                                                                                \
    {                                                                                                                  \
        TCase *tc = tcase_create(name);                                                                                \
        tcase_add_checked_fixture(tc, setup, teardown);                                                                \
        tcase_set_timeout(tc, 60);                                                                                     \
        __VA_ARGS__                                                                                                    \
        suite_add_tcase(suite, tc);                                                                                    \
    }
#define TEST(test)       tcase_add_test(tc, test);
#define ROWS(test, rows) tcase_add_loop_test(tc, test, 0, sizeof rows / sizeof rows[0]);
    CASE("replies", ROWS(reply_arrives, reply_rows) TEST(reply_byte_at_a_time) TEST(ten_thousand_pipelined))
    CASE("loss", ROWS(lost_in_mid_reply, droppers) TEST(unwritten_are_kept_and_sent_once)
                     TEST(half_written_is_sent_again) TEST(next_address_when_refused) TEST(nobody_listens)
                         TEST(name_is_looked_up) tcase_add_loop_test(tc, freed_while_looking_up_a_name, 0, 2);)
    CASE("refusals", ROWS(refusal_is_judged, refusal_rows) ROWS(refused_until_the_timeout, lasting)
                         TEST(other_node_when_one_is_down))
    CASE("timeouts",
         TEST(late_reply_is_not_the_next_ones) TEST(silent_node_is_left) TEST(repeated_but_never_answered_is_uncertain))
    CASE("hostile", ROWS(garbage_ends_the_connection, garbage_rows) ROWS(flood_ends_the_connection, flood_rows)
                        tcase_add_loop_test(tc, babble_ends_every_command_once, 0, 12);
         tcase_add_loop_test(tc, babble_ends_every_command_once, 0, 12);
         TEST(reply_without_a_question) TEST(refused_in_the_middle))
    CASE("limits", TEST(more_than_may_wait) TEST(longer_than_may_wait) TEST(free_with_pending) ROWS(
                       bad_address_is_named, address_rows) TEST(too_many_addresses) TEST(own_base_and_good_addresses))
    CASE("calls", TEST(call_returns_the_reply) TEST(stop_ends_a_call))
    CASE("waiting", TEST(waiting_holds_up_nobody) TEST(many_wait_on_few_connections) TEST(name_is_set_on_connect))
    CASE("leases",
         TEST(lease_is_kept) TEST(lease_gone_at_lockd) ROWS(lease_in_doubt_then_lost, bad_renewals)
             TEST(lease_survives_an_election) TEST(clock_comes_before_replies) ROWS(lease_refused, refuse_rows)
                 TEST(lease_without_a_cluster) TEST(lease_freed_in_its_callback) TEST(lease_freed_while_asking)
                     TEST(client_freed_before_its_leases) TEST(hundred_leases_and_one_loop)
                         TEST(waiter_follows_the_keeper))
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
