/* What a client asks is given to the node whole and in order, and what the node answers comes back, or the connection
 * is closed for a reason.  Guards C1-C4 of clients.h.  Real sockets; the node is a sink that keeps commands until the
 * test lets it answer; the loop runs only while the test waits for something. */
#include <check.h>
#include <errno.h>
#include <event2/event_struct.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include "common/io/clock.h"
#include "common/io/heap.h"
#include "common/io/log.h"
#include "common/io/net.h"
#include "lockd/io/clients.h"

enum { ASKED_MAX = 1 << 17, WAIT_MS = 10000, CLIENTS_TEST_MAX = 128 };

static struct event_base *base;
static struct clients *cs;
static struct net_address address;
static struct event turn_event;
static struct {
    uint64_t client;
    char text[32]; /* the words, cut */
} asked[ASKED_MAX];
static uint32_t asked_count, answered_count, gone_count, turns, pending_max;
static bool answering; /* the flush follows anyway */
static bool hold;      /* the node answers nothing */
static bool leased, reads_hold;
static size_t reply_bytes; /* 0: echo; else bulks of that size */

static bool room(void *context, uint64_t client) {
    (void)context;
    uint32_t pending = 0;
    for (uint32_t i = answered_count; i < asked_count; i++) pending += asked[i].client == client;
    return pending < pending_max;
}
static void command(void *context, uint64_t client, uint32_t argc, const struct slice *argv) {
    (void)context;
    ck_assert_uint_lt(asked_count, ASKED_MAX);
    char *text = asked[asked_count].text;
    size_t used = 0;
    for (uint32_t i = 0; i < argc; i++)
        used += (size_t)snprintf(text + used, sizeof asked->text - used, "%s%.*s", i ? " " : "",
                                 argv[i].bytes > 5 ? 5 : (int)argv[i].bytes, argv[i].data);
    asked[asked_count++].client = client;
}
static void gone(void *context, uint64_t client) {
    (void)context;
    (void)client;
    gone_count++;
}
static void work(void *context) {
    (void)context;
    if (!answering) event_active(&turn_event, EV_TIMEOUT, 0);
}

static void on_turn(int fd, short what, void *context) {
    static char big[1 << 20];
    (void)fd;
    (void)what;
    (void)context;
    turns++;
    answering = true;
    while (!hold && answered_count < asked_count) {
        const uint64_t client = asked[answered_count].client;
        struct buf b = {.alloc = heap_alloc()};
        if (reply_bytes == 0)
            buf_printf(&b, "+%s\r\n", asked[answered_count].text);
        else
            resp_bulk(&b, slice_of(big, reply_bytes));
        const bool quit = strcmp(asked[answered_count].text, "QUIT") == 0;
        answered_count++;
        clients_reply(cs, client, buf_slice(&b), leased);
        if (quit) clients_hang_up(cs, client);
        buf_release(&b);
    }
    answering = false;
    clients_flush(cs, reads_hold);
}

static void make(uint32_t clients_max) {
    char error[NET_ERROR_BYTES], name[NET_NAME_BYTES];
    int listener;
    log_set_level(LOG_LEVEL_ERROR);
    base = event_base_new();
    event_assign(&turn_event, base, -1, 0, on_turn, NULL);
    ck_assert_int_eq(net_parse("127.0.0.1:0", true, &address, error, sizeof error), 0);
    ck_assert_int_eq(net_bind(&address, &listener, error, sizeof error), 0);
    ck_assert_int_eq(net_listen(listener, error, sizeof error), 0);
    net_local_name(listener, name);
    ck_assert_int_eq(net_parse(name, false, &address, error, sizeof error), 0);
    const struct clients_config config = {
        .base = base,
        .listener = listener,
        .clients_max = clients_max,
        .limits = {.argc_max = 16, .arg_bytes_max = 1 << 21, .request_bytes_max = 1 << 21},
        .sink = {.room = room, .command = command, .gone = gone, .work = work}};
    cs = clients_new(&config);
    pending_max = 1000;
    reads_hold = true;
}
static void setup(void) {
    make(CLIENTS_TEST_MAX);
}
static void teardown(void) {
    clients_free(cs);
    event_base_free(base);
}

static int dial(void) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(connect(fd, &address.sockaddr.sa, address.sockaddr_bytes), 0);
    return fd;
}
static void pass(void) {
    event_base_loop(base, EVLOOP_NONBLOCK);
}
/* Run the loop until `condition`, which some event of the loop makes true. */
#define RUN_UNTIL(condition)                                                                                           \
    do {                                                                                                               \
        const uint64_t until_ms = clock_now_ms() + WAIT_MS;                                                            \
        while (!(condition)) {                                                                                         \
            ck_assert_msg(clock_now_ms() < until_ms, "%s did not come true", #condition);                              \
            pass();                                                                                                    \
        }                                                                                                              \
    } while (0)
static void ask(int fd, const char *text) {
    ck_assert_int_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}
/* Run the loop until that many bytes came, or the end; returns them with a NUL.  "EOF" or "RST" is appended at an end.
 */
static char *hear(int fd, size_t bytes) {
    static char text[1 << 16];
    size_t used = 0;
    const uint64_t until_ms = clock_now_ms() + WAIT_MS;
    while (used < bytes) {
        ck_assert_msg(clock_now_ms() < until_ms, "only heard \"%.*s\"", (int)used, text);
        pass();
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        if (poll(&wait, 1, 1) == 0) continue;
        const ssize_t got = recv(fd, text + used, bytes - used, MSG_DONTWAIT);
        if (got <= 0) {
            strcpy(text + used, got == 0 ? "EOF" : "RST");
            return text;
        }
        used += (size_t)got;
    }
    text[used] = '\0';
    return text;
}
/* All of it, to the end. */
static char *hear_all(int fd) {
    return hear(fd, (1 << 16) - 8);
}

START_TEST(commands_in_order_however_the_bytes_come) {
    const char *bytes = "PING\r\n*2\r\n$3\r\nGET\r\n$1\r\na\r\n\r\nECHO b\r\n";
    const int fd = dial();
    for (const char *at = bytes; *at != '\0'; at++) {
        ck_assert_int_eq(send(fd, at, 1, 0), 1);
        RUN_UNTIL(clients_count(cs) == 1);
        pass();
    }
    ck_assert_str_eq(hear(fd, 24), "+PING\r\n+GET a\r\n+ECHO b\r\n");
    ask(fd, bytes);
    ck_assert_str_eq(hear(fd, 24), "+PING\r\n+GET a\r\n+ECHO b\r\n");
    close(fd);
    RUN_UNTIL(gone_count == 1);
    ck_assert_uint_eq(clients_count(cs), 0);
}
END_TEST

/* Many commands in one packet are one turn, so one batch and one write. */
START_TEST(one_turn_for_what_comes_together) {
    const int fd = dial();
    RUN_UNTIL(clients_count(cs) == 1);
    turns = 0;
    ask(fd, "A\r\nB\r\nC\r\nD\r\n");
    ck_assert_str_eq(hear(fd, 16), "+A\r\n+B\r\n+C\r\n+D\r\n");
    ck_assert_uint_eq(turns, 1);
    close(fd);
}
END_TEST

START_TEST(garbage_is_answered_after_what_was_asked) {
    static char garbage[1 << 20];
    const int fd = dial();
    hold = true;
    ask(fd, "PING\r\n*1\r\n$-1\r\n");
    RUN_UNTIL(asked_count == 1);
    (void)!send(fd, garbage, sizeof garbage, MSG_DONTWAIT); /* unread bytes must not cost the error */
    pass();
    hold = false;
    work(NULL);
    ck_assert_str_eq(hear_all(fd), "+PING\r\n-ERR Protocol error: invalid bulk length\r\nEOF");
    close(fd);
    RUN_UNTIL(gone_count == 1);
}
END_TEST

START_TEST(half_closed_is_answered_and_closed) {
    const int fd = dial();
    hold = true;
    ask(fd, "PING\r\nGET a\r\nGET");
    shutdown(fd, SHUT_WR);
    RUN_UNTIL(asked_count == 2);
    for (int i = 0; i < 10; i++) pass();
    ck_assert_uint_eq(gone_count, 0);
    hold = false;
    work(NULL);
    ck_assert_str_eq(hear_all(fd), "+PING\r\n+GET a\r\nEOF");
    ck_assert_uint_eq(gone_count, 1);
    close(fd);
}
END_TEST

START_TEST(half_closed_and_never_answered_ends) {
    const int fd = dial();
    hold = true;
    ask(fd, "WAIT\r\n");
    shutdown(fd, SHUT_WR);
    ck_assert_str_eq(hear_all(fd), "EOF");
    ck_assert_uint_eq(gone_count, 1);
    hold = false; /* an answer to nobody */
    work(NULL);
    pass();
    close(fd);
}
END_TEST

START_TEST(quit_ends_what_follows) {
    const int fd = dial();
    ask(fd, "PING\r\nQUIT\r\nSET a\r\n");
    ck_assert_str_eq(hear_all(fd), "+PING\r\n+QUIT\r\nEOF");
    ck_assert_uint_eq(asked_count, 2);
    close(fd);
}
END_TEST

START_TEST(no_room_stops_reading_of_that_client_only) {
    char many[4096];
    const int fd = dial(), other = dial();
    pending_max = 3;
    hold = true;
    many[0] = '\0';
    for (int i = 0; i < 500; i++) strcat(many, "PING\r\n");
    ask(fd, many);
    RUN_UNTIL(asked_count == 3);
    for (int i = 0; i < 10; i++) pass();
    ck_assert_uint_eq(asked_count, 3);
    ask(other, "GET o\r\n");
    RUN_UNTIL(asked_count == 4);
    hold = false;
    work(NULL);
    char *heard = hear(fd, 500 * 7);
    for (int i = 0; i < 500; i++) ck_assert_int_eq(memcmp(heard + 7 * i, "+PING\r\n", 7), 0);
    ck_assert_str_eq(hear(other, 8), "+GET o\r\n");
    ck_assert_uint_eq(asked_count, 501);
    close(fd);
    close(other);
}
END_TEST

/* A client that does not read its replies: we stop reading its commands long before memory hurts. */
START_TEST(unread_replies_stop_the_commands) {
    const int fd = dial();
    char many[4000 * 7 + 1];
    uint32_t before;
    reply_bytes = 1 << 19;
    for (int i = 0; i < 4000; i++) memcpy(many + 7 * i, "GET a\r\n", 8);
    ask(fd, many);
    RUN_UNTIL(asked_count > 0);
    do {
        before = asked_count;
        for (int i = 0; i < 50; i++) pass();
    } while (asked_count > before);
    ck_assert_uint_lt(asked_count, 64 + 64); /* a window's worth, and what the kernel swallowed */
    ck_assert_uint_eq(clients_count(cs), 1);
    close(fd);
    RUN_UNTIL(gone_count == 1);
}
END_TEST

START_TEST(too_much_unread_is_closed) {
    const int fd = dial();
    for (int i = 0; i < 100; i++) ask(fd, "GET a\r\n"); /* it seems to like short replies */
    RUN_UNTIL(answered_count == 100);
    hold = true;
    reply_bytes = 1 << 20;
    for (int i = 0; i < 100; i++) ask(fd, "GET a\r\n");
    RUN_UNTIL(asked_count == 200);
    hold = false;
    work(NULL); /* 100 MiB in one turn */
    RUN_UNTIL(gone_count == 1);
    close(fd);
}
END_TEST

START_TEST(a_stale_read_is_never_sent) {
    const int fd = dial(), other = dial();
    leased = true;
    reads_hold = false;
    ask(fd, "GET a\r\n");
    ck_assert_str_eq(hear_all(fd), "EOF");
    leased = false;
    ask(other, "PING\r\n");
    ck_assert_str_eq(hear(other, 7), "+PING\r\n");
    close(fd);
    close(other);
}
END_TEST

START_TEST(one_too_many_is_told) {
    int fds[CLIENTS_TEST_MAX];
    for (int i = 0; i < CLIENTS_TEST_MAX; i++) fds[i] = dial();
    RUN_UNTIL(clients_count(cs) == CLIENTS_TEST_MAX);
    const int fd = dial();
    ck_assert_str_eq(hear_all(fd), "-ERR max number of clients reached\r\nEOF");
    close(fd);
    close(fds[5]);
    RUN_UNTIL(gone_count == 1);
    const int again = dial();
    ask(again, "PING\r\n");
    ck_assert_str_eq(hear(again, 7), "+PING\r\n");
    close(again);
    for (int i = 0; i < CLIENTS_TEST_MAX; i++)
        if (i != 5) close(fds[i]);
}
END_TEST

START_TEST(no_descriptors_pauses_and_does_not_spin) {
    struct rlimit limit, low;
    const int spare = dial();
    RUN_UNTIL(clients_count(cs) == 1);
    getrlimit(RLIMIT_NOFILE, &limit);
    const int fd = dial(); /* in the listen queue; its other end gets no descriptor */
    low = limit;
    low.rlim_cur = (rlim_t)fd + 1;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
    for (int i = 0; i < 20; i++) pass();
    ck_assert_uint_eq(clients_count(cs), 1);
    ck_assert_int_eq(event_base_get_num_events(base, EVENT_BASE_COUNT_ACTIVE), 0); /* it sleeps */
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    RUN_UNTIL(clients_count(cs) == 2);
    ask(fd, "PING\r\n");
    ck_assert_str_eq(hear(fd, 7), "+PING\r\n");
    close(fd);
    close(spare);
}
END_TEST

START_TEST(an_idle_connection_holds_no_buffer) {
    int fds[100];
    const int first = dial();
    RUN_UNTIL(clients_count(cs) == 1);
    const size_t before = heap_bytes_in_use();
    for (int i = 0; i < 100; i++) fds[i] = dial();
    for (int i = 0; i < 100; i++) ask(fds[i], "PI"); /* half a command needs a buffer */
    RUN_UNTIL(clients_count(cs) == 101);
    for (int i = 0; i < 10; i++) pass();
    ck_assert_uint_eq(asked_count, 0);
    reply_bytes = 20000;
    for (int i = 0; i < 100; i++) ask(fds[i], "NG\r\n");
    for (int i = 0; i < 100; i++) (void)hear(fds[i], 20010);
    RUN_UNTIL(answered_count == 100);
    ck_assert_uint_lt(heap_bytes_in_use() - before, 100 * 1024);
    for (int i = 0; i < 100; i++) close(fds[i]);
    close(first);
    RUN_UNTIL(gone_count == 101);
    ck_assert_uint_le(heap_bytes_in_use(), before);
}
END_TEST

START_TEST(stop_closes_the_idle_and_answers_the_rest) {
    const int idle = dial(), busy = dial();
    hold = true;
    ask(busy, "SET a\r\n");
    RUN_UNTIL(asked_count == 1 && clients_count(cs) == 2);
    clients_stop(cs);
    ck_assert_str_eq(hear_all(idle), "EOF");
    ck_assert_uint_eq(clients_count(cs), 1);
    const int late = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(connect(late, &address.sockaddr.sa, address.sockaddr_bytes), -1);
    ck_assert_int_eq(errno, ECONNREFUSED);
    hold = false;
    work(NULL);
    ck_assert_str_eq(hear_all(busy), "+SET a\r\nEOF");
    ck_assert_uint_eq(clients_count(cs), 0);
    close(late);
    close(idle);
    close(busy);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("clients");
    TCase *tc = tcase_create("clients");
    tcase_set_timeout(tc, 30);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, commands_in_order_however_the_bytes_come);
    tcase_add_test(tc, one_turn_for_what_comes_together);
    tcase_add_test(tc, garbage_is_answered_after_what_was_asked);
    tcase_add_test(tc, half_closed_is_answered_and_closed);
    tcase_add_test(tc, half_closed_and_never_answered_ends);
    tcase_add_test(tc, quit_ends_what_follows);
    tcase_add_test(tc, no_room_stops_reading_of_that_client_only);
    tcase_add_test(tc, unread_replies_stop_the_commands);
    tcase_add_test(tc, too_much_unread_is_closed);
    tcase_add_test(tc, a_stale_read_is_never_sent);
    tcase_add_test(tc, one_too_many_is_told);
    tcase_add_test(tc, no_descriptors_pauses_and_does_not_spin);
    tcase_add_test(tc, an_idle_connection_holds_no_buffer);
    tcase_add_test(tc, stop_closes_the_idle_and_answers_the_rest);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_ENV);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
