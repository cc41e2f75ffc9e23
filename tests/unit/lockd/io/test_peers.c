/* Frames of one node reach another whole and in order over the link it dialled, or the link is gone and both know.
 * Guards V1-V5 of peers.h.  Real sockets; the loop runs only while the test waits for something. */
#include <check.h>
#include <errno.h>
#include <event2/event_struct.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include "common/io/clock.h"
#include "common/io/heap.h"
#include "common/io/log.h"
#include "lockd/io/peers.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

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
    uint64_t refusals[LINK_REFUSAL_END];
    bool aloof; /* believes nobody */
};
static struct event_base *base;
static struct net_address addresses[NODES];
static int listeners[NODES];
static struct world worlds[NODES + 1];
static uint32_t refusal_ms; /* 0: as in the daemon */

static void link_up(void *context, uint16_t peer) {
    ((struct world *)context)->ups[peer]++;
}
static void link_lost(void *context, uint16_t peer) {
    ((struct world *)context)->losts[peer]++;
}
static bool admits(void *context, uint16_t peer, uint64_t boot) {
    const struct world *w = context;
    return !w->aloof && peer < NODES && w->boots[peer] == boot;
}
static enum link_refusal on_frame(void *context, uint16_t peer, uint64_t boot, const struct frame *frame) {
    struct world *w = context;
    if (w->aloof) return LINK_UNSHOWN;
    ck_assert_int_eq(frame->kind, FRAME_ANSWER);
    w->frames[peer]++;
    w->boots[peer] = boot;
    ck_assert_uint_gt(frame->answer.seq, w->last_seq[peer]);
    w->last_seq[peer] = frame->answer.seq;
    return LINK_TAKEN;
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
    const struct peers_config config = {.base = base,
                                        .node = node,
                                        .boot = boot,
                                        .refusals = w->refusals,
                                        .refusal_ms = refusal_ms,
                                        .listener = listener,
                                        .sink = {.context = w,
                                                 .link_up = link_up,
                                                 .link_lost = link_lost,
                                                 .frame = on_frame,
                                                 .admits = admits,
                                                 .work = work}};
    w->ps = peers_new(&config);
    for (uint16_t i = 0; i < NODES; i++) peers_set(w->ps, i, &addresses[i]);
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

/* The checksum of what was changed by hand. */
static void sum_again(char *frame, size_t bytes) {
    const uint64_t sum = XXH3_64bits(frame + 12, bytes - 12);
    memcpy(frame + 4, &sum, sizeof sum);
}

/* What ends an accepted link, and what it is counted as. */
static const struct {
    enum link_refusal why;
    bool greeted;      /* a good hello comes first */
    const char *bytes; /* instead of a hello */
    size_t count;
    uint16_t from, to; /* of the hello */
    int at;            /* this byte of it is changed, */
    bool sum;          /* and the checksum made good */
} bad_links[] = {
    {LINK_LENGTH, .bytes = "GET / HTTP/1.1\r\n\r\n", .count = 18},
    {LINK_LENGTH, .bytes = "\xff\xff\xff\xff", .count = 4},
    {LINK_LENGTH, .bytes = "\x00\x00\x00\x00", .count = 4},
    {LINK_HELLO, .bytes = "\xff\xff\xff\x00", .count = 4}, /* 16 MiB before it said who it is */
    {LINK_SILENT, .bytes = "", .count = 0},
    {LINK_HELLO, .bytes = NULL, .from = 9}, /* another frame first */
    {LINK_NUMBER, .from = 1, .to = 2},      /* for somebody else */
    {LINK_NUMBER, .from = 0, .to = 0},      /* ourselves */
    {LINK_CHECKSUM, .from = 1, .at = 20},
    {LINK_VERSION, .from = 1, .at = 12, .sum = true},
    {LINK_FIELDS, .from = 1, .at = 13, .sum = true}, /* a kind that nobody knows */
    {LINK_FIELDS, .from = 1, .at = 14, .sum = true}, /* a number that no node has */
    {LINK_SECOND_HELLO, true, .from = 1},
    {LINK_LENGTH, true, .bytes = "\xff\xff\xff\x7f", .count = 4},
    {LINK_CHECKSUM, true, .from = 1, .at = 20},
    {LINK_VERSION, true, .from = 1, .at = 12, .sum = true},
    {LINK_FIELDS, true, .from = 1, .at = 13, .sum = true},
};
START_TEST(a_link_that_cannot_be_trusted_ends) {
    struct buf b = {.alloc = heap_alloc()};
    start(&worlds[0], 0, 100, listeners[0]);
    if (bad_links[_i].greeted) hello_bytes(&b, 1, 0);
    const size_t at = b.bytes;
    if (bad_links[_i].from == 9) {
        const struct frame frame = {.kind = FRAME_ANSWER, .answer = {.kind = ANSWER_REPLY, .of = FORWARD_READ}};
        frame_encode(&frame, &b);
    } else if (bad_links[_i].bytes != NULL) {
        buf_append(&b, bad_links[_i].bytes, bad_links[_i].count);
    } else {
        hello_bytes(&b, bad_links[_i].from, bad_links[_i].to);
        if (bad_links[_i].at > 0) b.data[at + (size_t)bad_links[_i].at] ^= 77;
        if (bad_links[_i].sum) sum_again(b.data + at, b.bytes - at);
    }
    const uint64_t since_ms = clock_now_ms();
    const int fd = dial();
    ck_assert_int_eq(send(fd, b.data, b.bytes, MSG_NOSIGNAL), (ssize_t)b.bytes);
    RUN_UNTIL(closed(fd));
    if (b.bytes > 0)
        ck_assert_uint_lt(clock_now_ms() - since_ms, PEERS_HELLO_MS); /* for what it said, not for silence */
    for (int why = 0; why < LINK_REFUSAL_END; why++)
        ck_assert_uint_eq(worlds[0].refusals[why], why == (int)bad_links[_i].why);
    close(fd);
    buf_release(&b);
    close(listeners[1]);
    close(listeners[2]);
}
END_TEST

static void greet(int fd, uint16_t from, uint64_t boot) {
    struct buf b = {.alloc = heap_alloc()};
    const struct frame hello = {.kind = FRAME_HELLO, .hello = {.from = from, .to = 0, .boot = boot}};
    frame_encode(&hello, &b);
    ck_assert_int_eq(send(fd, b.data, b.bytes, MSG_NOSIGNAL), (ssize_t)b.bytes);
    buf_release(&b);
}
/* The beginning, `part` bytes, of an answer with `bytes` in it. */
static void answer(int fd, uint64_t seq, size_t bytes, size_t part) {
    struct buf b = {.alloc = heap_alloc()};
    char *content = calloc(1, bytes + 1);
    const struct frame frame = {
        .kind = FRAME_ANSWER,
        .answer = {.kind = ANSWER_REPLY, .of = FORWARD_READ, .seq = seq, .reply = slice_of(content, bytes)}};
    frame_encode(&frame, &b);
    if (part > b.bytes) part = b.bytes;
    for (size_t sent = 0; sent < part; pass()) {
        const ssize_t got = send(fd, b.data + sent, part - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (got > 0) sent += (size_t)got;
    }
    free(content);
    buf_release(&b);
}

/* When there are too many, the oldest that has not said who it is goes: who comes and says so always gets in. */
START_TEST(strangers_make_room) {
    int fds[PEERS_ACCEPTED_MAX + 2];
    start(&worlds[0], 0, 100, listeners[0]);
    fds[0] = dial();
    greet(fds[0], 1, 5);
    answer(fds[0], 1, 1, SIZE_MAX);
    RUN_UNTIL(worlds[0].frames[1] == 1);
    for (int i = 1; i <= PEERS_ACCEPTED_MAX; i++) fds[i] = dial();
    RUN_UNTIL(closed(fds[1]));
    ck_assert(!closed(fds[0]) && !closed(fds[2]) && !closed(fds[PEERS_ACCEPTED_MAX]));
    ck_assert_uint_eq(worlds[0].refusals[LINK_CROWD], 1);
    fds[PEERS_ACCEPTED_MAX + 1] = dial();
    greet(fds[PEERS_ACCEPTED_MAX + 1], 2, 6);
    answer(fds[PEERS_ACCEPTED_MAX + 1], 1, 1, SIZE_MAX);
    RUN_UNTIL(worlds[0].frames[2] == 1);
    for (int i = 0; i < PEERS_ACCEPTED_MAX + 2; i++) close(fds[i]);
    close(listeners[1]);
    close(listeners[2]);
}
END_TEST

/* Of one number only so many live at a time, and one that is believed is not pushed out. */
START_TEST(many_that_claim_one_number_are_bounded) {
    enum { MANY = PEERS_BOOTS_MAX + 5 };
    int fds[MANY], open_count = 0;
    start(&worlds[0], 0, 100, listeners[0]);
    close(listeners[1]);
    close(listeners[2]);
    for (int i = 0; i < MANY; i++) {
        fds[i] = dial();
        greet(fds[i], 1, 10 + (uint64_t)i);
        if (i > 0) continue;
        answer(fds[i], 1, 1, SIZE_MAX);
        RUN_UNTIL(worlds[0].frames[1] == 1); /* from now on it is the one that is admitted */
    }
    RUN_UNTIL(worlds[0].refusals[LINK_TWICE] == MANY - PEERS_BOOTS_MAX);
    pass();
    for (int i = 0; i < MANY; i++) open_count += !closed(fds[i]);
    ck_assert_int_eq(open_count, PEERS_BOOTS_MAX);
    ck_assert(!closed(fds[0]) && !closed(fds[MANY - 1]));
    for (int i = 0; i < MANY; i++) close(fds[i]);
}
END_TEST

/* What a peer sends that has not shown who it is takes no memory, whatever lengths it names. */
START_TEST(a_strangers_frames_are_read_past) {
    enum { BIG = 20 * 1024 * 1024, SMALL = 1024 * 1024, PART = 1 << 16 };
    start(&worlds[0], 0, 100, listeners[0]);
    worlds[0].aloof = true;
    close(listeners[1]);
    close(listeners[2]);
    const int fd = dial();
    greet(fd, 1, 5);
    static char content[PART];
    const uint32_t claimed = BIG;
    const size_t before = heap_bytes_in_use();
    ck_assert_int_eq(send(fd, &claimed, 4, MSG_NOSIGNAL), 4);
    for (size_t sent = 0; sent < BIG;) {
        const ssize_t got = send(fd, content, BIG - sent < PART ? BIG - sent : PART, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (got > 0) sent += (size_t)got;
        pass();
        ck_assert_uint_lt(heap_bytes_in_use(), before + SMALL);
    }
    worlds[0].aloof = false;
    answer(fd, 1, 10, SIZE_MAX);
    RUN_UNTIL(worlds[0].frames[1] == 1);
    ck_assert_uint_eq(worlds[0].refusals[LINK_CHECKSUM], 0); /* of what it was nobody looked at */
    const size_t idle = heap_bytes_in_use();
    answer(fd, 2, BIG, 4096); /* now it is believed, and takes what it sends, not what it names */
    pass();
    ck_assert_uint_lt(heap_bytes_in_use(), idle + SMALL);
    close(fd);
}
END_TEST

/* ---- lines ---- */

static int lines_fd, stderr_fd;
static void catch_lines(void) {
    fflush(stderr);
    stderr_fd = dup(STDERR_FILENO);
    lines_fd = memfd_create("lines", MFD_CLOEXEC);
    dup2(lines_fd, STDERR_FILENO);
    log_set_level(LOG_LEVEL_WARN);
}
/* Lines so far with that text; the last of them is in `last`. */
static char last[512];
static int lines_with(const char *text) {
    static char all[1 << 20];
    int count = 0;
    const ssize_t bytes = pread(lines_fd, all, sizeof all - 1, 0);
    all[bytes] = '\0';
    for (char *line = strtok(all, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        if (strstr(line, text) == NULL) continue;
        count++;
        snprintf(last, sizeof last, "%s", line);
    }
    return count;
}
static void offend(uint64_t times, const char *with, size_t bytes, enum link_refusal why) {
    const uint64_t before = worlds[0].refusals[why];
    for (uint64_t i = 1; i <= times; i++) {
        const int fd = dial();
        ck_assert_int_eq(send(fd, with, bytes, MSG_NOSIGNAL), (ssize_t)bytes);
        RUN_UNTIL(worlds[0].refusals[why] == before + i);
        close(fd);
    }
}
START_TEST(one_line_says_who_and_why) {
    refusal_ms = _i == 0 ? 0 : 100;
    close(listeners[1]);
    close(listeners[2]);
    start(&worlds[0], 0, 100, listeners[0]);
    catch_lines();
    offend(40, "GET / HTTP/1.1", 14, LINK_LENGTH);
    offend(2, "\x0a\x00\x00\x00garbage!..", 14, LINK_CHECKSUM);
    const int told = lines_with("reason=length ");
    if (_i == 0) ck_assert_int_eq(told, 1);
    ck_assert_ptr_nonnull(strstr(last, "peer refused from=127.0.0.1:"));
    ck_assert_ptr_nonnull(strstr(last, "peer=? "));
    ck_assert_int_ge(lines_with("reason=checksum "), 1);
    if (_i == 1) { /* time passes: what was left out is told */
        for (int count = told; count == told; count = lines_with("reason=length "))
            offend(2, "GET / HTTP/1.1", 14, LINK_LENGTH);
        offend(2, "GET / HTTP/1.1", 14, LINK_LENGTH);
        while (strstr(last, "left-out=0 ") != NULL) {
            offend(2, "GET / HTTP/1.1", 14, LINK_LENGTH);
            lines_with("reason=length ");
        }
    }
    dup2(stderr_fd, STDERR_FILENO);
}
END_TEST

/* A number that we have no address for: what it says is not heard until we do. */
START_TEST(an_unknown_number_waits) {
    struct world *a = &worlds[0];
    start(a, 0, 100, listeners[0]);
    RUN_UNTIL(a->ups[2] == 1);
    peers_set(a->ps, 2, NULL);
    RUN_UNTIL(a->losts[2] == 1);
    const int fd = dial();
    greet(fd, 2, 5);
    answer(fd, 1, 1, SIZE_MAX);
    RUN_UNTIL(a->refusals[LINK_UNKNOWN] == 1);
    ck_assert(!closed(fd));
    peers_set(a->ps, 2, &addresses[2]);
    RUN_UNTIL(a->ups[2] == 2);
    ck_assert_uint_eq(a->frames[2], 0);
    answer(fd, 2, 1, SIZE_MAX);
    RUN_UNTIL(a->frames[2] == 1);
    close(fd);
    close(listeners[1]);
    close(listeners[2]);
}
END_TEST

START_TEST(a_peer_that_moves_is_found) {
    struct world *a = &worlds[0], *b = &worlds[1];
    char name[NET_NAME_BYTES], text[NET_ERROR_BYTES];
    struct net_address other;
    start(a, 0, 100, listeners[0]);
    close(listeners[1]); /* nobody is at the old place */
    const int listener = listen_at("127.0.0.1:0");
    net_local_name(listener, name);
    ck_assert_int_eq(net_parse(name, false, &other, text, sizeof text), 0);
    start(b, 1, 101, listener);
    pass();
    peers_set(a->ps, 1, &other);
    RUN_UNTIL(a->ups[1] == 1 && b->ups[0] == 1);
    say(a, 1, 1, 10);
    RUN_UNTIL(b->frames[0] == 1);
    peers_set(a->ps, 1, &other); /* nothing new */
    peers_set(a->ps, 1, &addresses[1]);
    peers_set(a->ps, 1, &other); /* there and back before the loop ran */
    pass();
    ck_assert_uint_eq(a->losts[1], 0);
    peers_set(a->ps, 1, &addresses[1]);
    RUN_UNTIL(a->losts[1] == 1);
    ck_assert_uint_eq(a->ups[1], 1);
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
    tcase_add_loop_test(tc, a_link_that_cannot_be_trusted_ends, 0, sizeof bad_links / sizeof bad_links[0]);
    tcase_add_test(tc, strangers_make_room);
    tcase_add_test(tc, many_that_claim_one_number_are_bounded);
    tcase_add_test(tc, a_strangers_frames_are_read_past);
    tcase_add_loop_test(tc, one_line_says_who_and_why, 0, 2);
    tcase_add_test(tc, an_unknown_number_waits);
    tcase_add_test(tc, a_peer_that_moves_is_found);
    tcase_add_test(tc, a_name_is_looked_up);
    suite_add_tcase(suite, tc);
    SRunner *sr = srunner_create(suite);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_ENV);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
