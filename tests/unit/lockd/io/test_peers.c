/* Frames of one node reach another whole and in order over the link it dialled, or the link is gone and both know.
 * Guards V1-V5 of peers.h.  Real sockets; the loop runs only while the test waits for something. */
#include <check.h>
#include <errno.h>
#include <event2/event_struct.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include "common/io/clock.h"
#include "common/io/heap.h"
#include "common/io/log.h"
#include "lockd/io/peers.h"

enum { NODES = 3, WAIT_MS = 10000 };

/* One node: its peers, and what they told it. */
struct world {
    struct event_base *base;
    struct event turn_event;
    struct peers *ps;
    uint16_t node;
    uint64_t boot;
    uint32_t ups[NODES], losts[NODES], frames[NODES];
    uint64_t boots[NODES], last_seq[NODES];
};
static struct event_base *base;
static struct net_address addresses[NODES];
static int listeners[NODES];
static struct world worlds[NODES + 1];

static void link_up(void *context, uint16_t peer) {
    ((struct world *)context)->ups[peer]++;
}
static void link_lost(void *context, uint16_t peer) {
    ((struct world *)context)->losts[peer]++;
}
static void on_frame(void *context, uint16_t peer, uint64_t boot, const struct frame *frame) {
    struct world *w = context;
    ck_assert_int_eq(frame->kind, FRAME_ANSWER);
    w->frames[peer]++;
    w->boots[peer] = boot;
    ck_assert_uint_gt(frame->answer.seq, w->last_seq[peer]);
    w->last_seq[peer] = frame->answer.seq;
}
static void work(void *context) {
    event_active(&((struct world *)context)->turn_event, EV_TIMEOUT, 0);
}
static void on_turn(int fd, short what, void *context) {
    (void)fd;
    (void)what;
    peers_flush(((struct world *)context)->ps);
}

static void start(struct world *w, uint16_t node, uint64_t boot, int listener) {
    *w = (struct world){.base = base, .node = node, .boot = boot};
    event_assign(&w->turn_event, base, -1, 0, on_turn, w);
    const struct peers_config config = {
        .base = base,
        .node = node,
        .node_count = NODES,
        .nodes = addresses,
        .boot = boot,
        .listener = listener,
        .sink = {.context = w, .link_up = link_up, .link_lost = link_lost, .frame = on_frame, .work = work}};
    w->ps = peers_new(&config);
}
static void stop(struct world *w) {
    peers_free(w->ps);
    event_del(&w->turn_event);
    w->ps = NULL;
}
static int listen_at(const char *text) {
    struct net_address a;
    char error[NET_ERROR_BYTES];
    int fd;
    ck_assert_int_eq(net_parse(text, true, &a, error, sizeof error), 0);
    ck_assert_msg(net_bind(&a, &fd, error, sizeof error) == 0, "%s", error);
    ck_assert_msg(net_listen(fd, error, sizeof error) == 0, "%s", error);
    return fd;
}

static void setup(void) {
    char error[NET_ERROR_BYTES], name[NET_NAME_BYTES];
    log_set_level(LOG_LEVEL_ERROR);
    base = event_base_new();
    for (int i = 0; i < NODES; i++) {
        listeners[i] = listen_at("127.0.0.1:0");
        net_local_name(listeners[i], name);
        ck_assert_int_eq(net_parse(name, false, &addresses[i], error, sizeof error), 0);
    }
}
static void teardown(void) {
    for (int i = 0; i <= NODES; i++)
        if (worlds[i].ps != NULL) stop(&worlds[i]);
    event_base_free(base);
}
static void pass(void) {
    event_base_loop(base, EVLOOP_NONBLOCK);
    poll(NULL, 0, 1); /* the loop's timers are in ms */
}
#define RUN_UNTIL(condition)                                                                                           \
    do {                                                                                                               \
        const uint64_t until_ms = clock_now_ms() + WAIT_MS;                                                            \
        while (!(condition)) {                                                                                         \
            ck_assert_msg(clock_now_ms() < until_ms, "%s did not come true", #condition);                              \
            pass();                                                                                                    \
        }                                                                                                              \
    } while (0)

static void say(struct world *w, uint16_t to, uint64_t seq, size_t bytes) {
    static char content[1 << 20];
    struct buf b = {.alloc = heap_alloc()};
    const struct frame frame = {
        .kind = FRAME_ANSWER,
        .answer = {.kind = ANSWER_REPLY, .of = FORWARD_READ, .seq = seq, .reply = slice_of(content, bytes)}};
    frame_encode(&frame, &b);
    peers_send(w->ps, to, buf_slice(&b));
    buf_release(&b);
}

static int dial(void) {
    int fd;
    ck_assert_int_eq(net_connect(&addresses[0].sockaddr.sa, addresses[0].sockaddr_bytes, &fd), 0);
    struct pollfd wait = {.fd = fd, .events = POLLOUT};
    ck_assert_int_eq(poll(&wait, 1, WAIT_MS), 1);
    return fd;
}
static bool closed(int fd) {
    char byte;
    const ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);
    ck_assert_int_le(got, 0); /* nobody talks on a link it accepted */
    return got == 0 || (errno != EAGAIN && errno != EINTR);
}

static void hello_bytes(struct buf *b, uint16_t from, uint16_t to) {
    const struct frame hello = {.kind = FRAME_HELLO, .hello = {.from = from, .to = to, .boot = 5}};
    frame_encode(&hello, b);
}
START_TEST(frames_arrive_in_order_from_the_right_boot) {
    struct world *a = &worlds[0], *b = &worlds[1];
    close(listeners[2]);
    start(a, 0, 100, listeners[0]);
    start(b, 1, 101, listeners[1]);
    RUN_UNTIL(a->ups[1] == 1 && b->ups[0] == 1);
    for (uint64_t seq = 1; seq <= 200; seq++) say(a, 1, seq, seq % 10 == 0 ? 1 << 20 : seq);
    say(b, 0, 7, 0);
    RUN_UNTIL(b->frames[0] >= 60 && a->frames[1] == 1); /* the rest may not fit the queue */
    ck_assert_uint_eq(b->boots[0], 100);
    ck_assert_uint_eq(a->boots[1], 101);
    ck_assert_uint_eq(a->losts[1], 0);
    ck_assert_uint_eq(a->ups[2], 0); /* nobody is there */
}
END_TEST

START_TEST(a_peer_that_comes_back_is_found_again) {
    struct world *a = &worlds[0], *b = &worlds[1];
    char name[NET_NAME_BYTES];
    net_local_name(listeners[1], name);
    start(a, 0, 100, listeners[0]);
    start(b, 1, 101, listeners[1]);
    RUN_UNTIL(a->ups[1] == 1);
    stop(b);
    RUN_UNTIL(a->losts[1] == 1);
    say(a, 1, 1, 10); /* to nobody */
    ck_assert_uint_eq(peers_backlog(a->ps, 1), 0);
    start(b, 1, 102, listen_at(name));
    RUN_UNTIL(a->ups[1] == 2 && b->ups[0] == 1);
    say(a, 1, 2, 10);
    RUN_UNTIL(b->frames[0] == 1);
    close(listeners[2]);
}
END_TEST

static void on_pause_over(int fd, short what, void *context) {
    (void)fd;
    (void)what;
    *(bool *)context = true;
}

/* A node that was away so long that attempts have become rare is dialled at once when it shows itself: an election may
 * hang on this link. */
START_TEST(a_peer_that_dials_us_is_dialled_at_once) {
    struct world *a = &worlds[0], *b = &worlds[1];
    bool over = false;
    struct event pause;
    const struct timeval long_before_the_next_attempt = {.tv_usec = 700 * 1000};
    close(listeners[2]);
    start(a, 0, 100, listeners[0]);
    for (int attempts = 0; attempts < 6; attempts++) { /* the pause after the last one is PEERS_BACKOFF_MS_MAX */
        int fd = -1;
        RUN_UNTIL((fd = accept(listeners[1], NULL, NULL)) >= 0);
        close(fd);
    }
    RUN_UNTIL(a->losts[1] >= 6);
    event_assign(&pause, base, -1, 0, on_pause_over, &over);
    start(b, 1, 101, listeners[1]);
    event_add(&pause, &long_before_the_next_attempt);
    const uint32_t ups = a->ups[1];
    RUN_UNTIL(a->ups[1] > ups || over);
    ck_assert(!over);
    event_del(&pause);
}
END_TEST

/* Two live processes claim to be node 2: neither cuts the other off, and what they say stays apart. */
START_TEST(two_that_claim_one_number_are_kept_apart) {
    struct world *a = &worlds[0], *b = &worlds[1], *other = &worlds[NODES];
    close(listeners[2]);
    start(a, 0, 100, listeners[0]);
    start(b, 1, 101, listeners[1]);
    RUN_UNTIL(b->ups[0] == 1);
    say(b, 0, 1, 0);
    RUN_UNTIL(a->frames[1] == 1);
    start(other, 1, 201, listen_at("127.0.0.1:0"));
    RUN_UNTIL(other->ups[0] == 1);
    say(other, 0, 2, 0);
    RUN_UNTIL(a->frames[1] == 2);
    ck_assert_uint_eq(a->boots[1], 201);
    say(b, 0, 3, 0);
    RUN_UNTIL(a->frames[1] == 3);
    ck_assert_uint_eq(a->boots[1], 101);
    ck_assert_uint_eq(b->losts[0], 0);
}
END_TEST

/* The same process again, on a new link: the old one was dead and had not been noticed. */
START_TEST(a_newer_link_replaces_the_older) {
    struct buf b = {.alloc = heap_alloc()};
    close(listeners[1]);
    close(listeners[2]);
    start(&worlds[0], 0, 100, listeners[0]);
    hello_bytes(&b, 1, 0);
    const int first = dial();
    ck_assert_int_eq(send(first, b.data, b.bytes, MSG_NOSIGNAL), (ssize_t)b.bytes);
    const int second = dial();
    pass();
    ck_assert(!closed(first));
    ck_assert_int_eq(send(second, b.data, b.bytes, MSG_NOSIGNAL), (ssize_t)b.bytes);
    RUN_UNTIL(closed(first));
    ck_assert(!closed(second));
    close(first);
    close(second);
    buf_release(&b);
}
END_TEST

/* A peer that does not read: its queue has an end, and so has the link. */
START_TEST(a_full_queue_ends_the_link) {
    struct world *a = &worlds[0];
    start(a, 0, 100, listeners[0]);
    RUN_UNTIL(a->ups[1] == 1); /* the listener of node 1 takes the connection, nobody reads it */
    for (uint64_t seq = 1; a->losts[1] == 0 && seq < 200; seq++) {
        say(a, 1, seq, 1 << 20);
        ck_assert_uint_le(peers_backlog(a->ps, 1), PEERS_QUEUE_BYTES);
        event_base_loop(base, EVLOOP_NONBLOCK);
    }
    ck_assert_uint_eq(a->losts[1], 1);
    ck_assert_uint_eq(peers_backlog(a->ps, 1), 0);
    close(listeners[1]);
    close(listeners[2]);
}
END_TEST

/* What an accepted link may begin with: rows of bytes that end it. */
START_TEST(a_link_without_a_good_hello_ends) {
    struct buf b = {.alloc = heap_alloc()};
    start(&worlds[0], 0, 100, listeners[0]);
    switch (_i) {
    case 0: buf_append_str(&b, "GET / HTTP/1.1\r\n\r\n"); break;
    case 1: hello_bytes(&b, 1, 2); break; /* for somebody else */
    case 2: hello_bytes(&b, 0, 0); break; /* ourselves */
    case 3: hello_bytes(&b, 7, 0); break; /* nobody */
    case 4:                               /* one bit is wrong */
        hello_bytes(&b, 1, 0);
        b.data[b.bytes - 1] = (char)(b.data[b.bytes - 1] ^ 1);
        break;
    case 5: { /* another frame first */
        const struct frame frame = {.kind = FRAME_ANSWER, .answer = {.kind = ANSWER_REPLY, .of = FORWARD_READ}};
        frame_encode(&frame, &b);
        break;
    }
    case 6: /* twice */
        hello_bytes(&b, 1, 0);
        hello_bytes(&b, 1, 0);
        break;
    case 7: buf_append(&b, "\xff\xff\xff\x00", 4); break; /* announces 16 MiB before it said who it is */
    case 8: break;                                        /* says nothing at all */
    case 9: buf_append(&b, "\xff\xff\xff\xff", 4); break;
    }
    const uint64_t since_ms = clock_now_ms();
    const int fd = dial();
    ck_assert_int_eq(send(fd, b.data, b.bytes, MSG_NOSIGNAL), (ssize_t)b.bytes);
    RUN_UNTIL(closed(fd));
    if (b.bytes > 0)
        ck_assert_uint_lt(clock_now_ms() - since_ms, PEERS_HELLO_MS); /* for what it said, not for silence */
    close(fd);
    buf_release(&b);
    close(listeners[1]);
    close(listeners[2]);
}
END_TEST

START_TEST(too_many_strangers_are_closed) {
    int fds[PEERS_ACCEPTED_MAX + 1];
    start(&worlds[0], 0, 100, listeners[0]);
    for (int i = 0; i <= PEERS_ACCEPTED_MAX; i++) fds[i] = dial();
    RUN_UNTIL(closed(fds[PEERS_ACCEPTED_MAX]));
    ck_assert(!closed(fds[0]));
    for (int i = 0; i <= PEERS_ACCEPTED_MAX; i++) close(fds[i]);
    close(listeners[1]);
    close(listeners[2]);
}
END_TEST

/* Names are looked up without blocking the loop. */
START_TEST(a_name_is_looked_up) {
    struct world *a = &worlds[0];
    addresses[1].numeric = false;
    strcpy(addresses[1].host, "localhost");
    start(a, 0, 100, listeners[0]);
    RUN_UNTIL(a->ups[1] == 1);
    close(listeners[1]);
    close(listeners[2]);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("peers");
    TCase *tc = tcase_create("peers");
    tcase_set_timeout(tc, 30);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, frames_arrive_in_order_from_the_right_boot);
    tcase_add_test(tc, a_peer_that_comes_back_is_found_again);
    tcase_add_test(tc, a_peer_that_dials_us_is_dialled_at_once);
    tcase_add_test(tc, two_that_claim_one_number_are_kept_apart);
    tcase_add_test(tc, a_newer_link_replaces_the_older);
    tcase_add_test(tc, a_full_queue_ends_the_link);
    tcase_add_loop_test(tc, a_link_without_a_good_hello_ends, 0, 10);
    tcase_add_test(tc, too_many_strangers_are_closed);
    tcase_add_test(tc, a_name_is_looked_up);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_ENV);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
