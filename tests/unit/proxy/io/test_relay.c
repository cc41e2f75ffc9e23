/* The relay between two socket pairs: "client" and "backend" are the ends the test holds.  Guards Y1-Y3 of relay.h,
 * back-pressure and half-close.  Nothing here waits for time: the loop runs until nothing is ready any more. */
#include <check.h>
#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "common/must.h"
#include "proxy/io/relay.h"
#include <string.h>

static struct event_base *base;
static struct relay relay;
static int client, backend, relay_client, relay_backend;
static bool allowed;
static int asked, ended_count, half_closed_count;
static enum relay_end ended;
static bool half_closed_client;

static bool may_write(struct relay *r) {
    ck_assert_ptr_eq(r, &relay);
    asked++;
    return allowed;
}
static void active(struct relay *r) {
    ck_assert_ptr_eq(r, &relay);
}
static void half_closed(struct relay *r, bool by_client) {
    ck_assert_ptr_eq(r, &relay);
    half_closed_count++;
    half_closed_client = by_client;
}
static void on_ended(struct relay *r, enum relay_end end) {
    ck_assert_ptr_eq(r, &relay);
    ended_count++;
    ended = end;
}
static const struct relay_owner owner = {
    .may_write = may_write, .active = active, .half_closed = half_closed, .ended = on_ended};

static void pair(int *ours, int *theirs) {
    int fds[2];
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
    *ours = fds[0];
    *theirs = fds[1];
}
static void setup(void) {
    base = event_base_new();
    pair(&client, &relay_client);
    pair(&backend, &relay_backend);
    allowed = true;
    asked = ended_count = half_closed_count = 0;
}
static void teardown(void) {
    relay_stop(&relay);
    close(client);
    close(backend);
    close(relay_client);
    close(relay_backend);
    event_base_free(base);
}
static void start(const char *head, bool client_ended) {
    relay_start(&relay, base, &owner, relay_client, relay_backend, 4096, head, strlen(head), client_ended);
}
static void run(void) {
    for (int turn = 0; turn < 50; turn++) event_base_loop(base, EVLOOP_NONBLOCK);
}
static void expect(int fd, const char *text) {
    char got[256];
    const ssize_t bytes = read(fd, got, sizeof got);
    ck_assert_int_eq(bytes, (ssize_t)strlen(text));
    ck_assert(memcmp(got, text, strlen(text)) == 0);
}
static void expect_end(int fd) {
    char byte;
    ck_assert_int_eq(read(fd, &byte, 1), 0);
}
static void say(int fd, const char *text) {
    ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
}

START_TEST(bytes_go_both_ways) {
    start("head", false);
    expect(backend, "head");
    say(client, "to the backend");
    say(backend, "to the client");
    run();
    expect(backend, "to the backend");
    expect(client, "to the client");
    ck_assert_uint_eq(relay.backend.bytes, 4 + 14);
    ck_assert_uint_eq(relay.client.bytes, 13);
    ck_assert(relay.client.waiting == NULL && relay.backend.waiting == NULL);
    ck_assert_int_eq(ended_count, 0);
}
END_TEST

/* Y1: who does not read makes the other side stop; nothing is lost when it reads again. */
START_TEST(a_side_that_does_not_read_stops_the_other) {
    static char block[4096];
    size_t sent = 0, got = 0;
    start("", false);
    for (int quiet = 0; quiet < 3; quiet++) {
        for (ssize_t bytes; (bytes = write(client, block, sizeof block)) > 0; sent += (size_t)bytes) quiet = 0;
        ck_assert_int_eq(errno, EAGAIN);
        run();
    }
    ck_assert(relay.backend.waiting != NULL);
    ck_assert_uint_le(relay.backend.waiting_count, 4096);
    ck_assert(!event_pending(&relay.client.read, EV_READ, NULL));
    say(backend, "the other way is free");
    run();
    expect(client, "the other way is free");
    while (got < sent) {
        const ssize_t bytes = read(backend, block, sizeof block);
        if (bytes > 0)
            got += (size_t)bytes;
        else
            run();
    }
    run();
    ck_assert(relay.backend.waiting == NULL);
    ck_assert(event_pending(&relay.client.read, EV_READ, NULL));
    ck_assert_uint_eq(relay.backend.bytes, sent);
}
END_TEST

START_TEST(half_close_is_passed_on_and_the_answer_comes) {
    start("", false);
    say(client, "question");
    ck_assert_int_eq(shutdown(client, SHUT_WR), 0);
    run();
    expect(backend, "question");
    expect_end(backend);
    ck_assert(half_closed_count == 1 && half_closed_client && ended_count == 0);
    say(backend, "answer");
    run();
    expect(client, "answer");
    close(backend);
    run();
    ck_assert(ended_count == 1 && ended == RELAY_CLIENT_CLOSED);
    backend = dup(client);
}
END_TEST

START_TEST(an_end_waits_for_the_bytes_before_it) {
    static char block[4096];
    size_t sent = 0, got = 0;
    start("", false);
    for (int quiet = 0; quiet < 3; quiet++) {
        for (ssize_t bytes; (bytes = write(client, block, sizeof block)) > 0; sent += (size_t)bytes) quiet = 0;
        run();
    }
    ck_assert_int_eq(shutdown(client, SHUT_WR), 0);
    run();
    ck_assert_int_eq(half_closed_count, 0);
    for (ssize_t bytes; (bytes = read(backend, block, sizeof block)) != 0;) {
        if (bytes > 0)
            got += (size_t)bytes;
        else
            run();
    }
    ck_assert_uint_eq(got, sent);
    ck_assert_int_eq(half_closed_count, 1);
}
END_TEST

START_TEST(a_client_that_ended_before_it_was_connected) {
    start("JOIN a b\n", true);
    run();
    expect(backend, "JOIN a b\n");
    expect_end(backend);
    say(backend, "welcome");
    run();
    expect(client, "welcome");
}
END_TEST

START_TEST(the_backend_may_end_first) {
    start("", false);
    ck_assert_int_eq(shutdown(backend, SHUT_WR), 0);
    run();
    expect_end(client);
    ck_assert(half_closed_count == 1 && !half_closed_client);
    ck_assert_int_eq(shutdown(client, SHUT_WR), 0);
    run();
    ck_assert(ended_count == 1 && ended == RELAY_BACKEND_CLOSED);
}
END_TEST

/* Y2: not a byte without asking, from the head to what has waited. */
START_TEST(what_is_forbidden_is_not_written) {
    char byte;
    start("", false);
    say(client, "one");
    run();
    expect(backend, "one");
    ck_assert_int_eq(asked, 1);
    allowed = false;
    say(client, "two");
    run();
    ck_assert(ended_count == 1 && ended == RELAY_FORBIDDEN);
    ck_assert_int_eq(read(backend, &byte, 1), -1);
    ck_assert_int_eq(errno, EAGAIN);
}
END_TEST

START_TEST(not_even_the_head_is_written_when_forbidden) {
    char byte;
    allowed = false;
    start("head", false);
    ck_assert(ended_count == 1 && ended == RELAY_FORBIDDEN);
    ck_assert_int_eq(read(backend, &byte, 1), -1);
}
END_TEST

START_TEST(what_waited_is_asked_for_again) {
    static char block[4096];
    start("", false);
    for (int quiet = 0; quiet < 3; quiet++) {
        for (ssize_t bytes; (bytes = write(client, block, sizeof block)) > 0;) quiet = 0;
        run();
    }
    const uint64_t before = relay.backend.bytes;
    allowed = false;
    while (read(backend, block, sizeof block) > 0) continue;
    run();
    ck_assert(ended_count == 1 && ended == RELAY_FORBIDDEN);
    ck_assert_uint_eq(relay.backend.bytes, before);
    ck_assert(relay.backend.waiting == NULL);
}
END_TEST

START_TEST(writing_to_a_broken_side_ends_it) {
    start("", false);
    close(backend);
    say(client, "to nobody");
    run();
    ck_assert_int_eq(ended_count, 1);
    ck_assert(ended == RELAY_BACKEND_RESET || ended == RELAY_BACKEND_CLOSED);
    backend = dup(client);
}
END_TEST

int main(void) {
    Suite *s = suite_create("relay");
    TCase *tc = tcase_create("relay");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, bytes_go_both_ways);
    tcase_add_test(tc, a_side_that_does_not_read_stops_the_other);
    tcase_add_test(tc, half_close_is_passed_on_and_the_answer_comes);
    tcase_add_test(tc, an_end_waits_for_the_bytes_before_it);
    tcase_add_test(tc, a_client_that_ended_before_it_was_connected);
    tcase_add_test(tc, the_backend_may_end_first);
    tcase_add_test(tc, what_is_forbidden_is_not_written);
    tcase_add_test(tc, not_even_the_head_is_written_when_forbidden);
    tcase_add_test(tc, what_waited_is_asked_for_again);
    tcase_add_test(tc, writing_to_a_broken_side_ends_it);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
