/* The session table of one proxy, fed by hand.  Guards V1-V8 of bindings.h, one story each: inputs in order, and the
 * exact queue of work after each.  What two proxies and a lockd make of it together is bindings_model's. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "proxy/core/bindings.h"

enum { EXCLUSIVE, STICKY }; /* the pools */
enum { A, B, C };           /* their members; the shard of every session below is two of them */
enum { TTL = 3000, COVER = TTL - 3, CUT = COVER - TTL / 20, LEASE = 77 };

static struct bindings *b;
static struct bindings_output out;
static uint64_t now;
static struct bindings_conn conn, conn2, conn3;
static struct bindings_config config;
static const struct placement_member members[] = {
    {.name = {"a", 1}, .weight = 1}, {.name = {"b", 1}, .weight = 1}, {.name = {"c", 1}, .weight = 1}};
static const struct bindings_pool_config pools[] = {
    {.name = {"x", 1},
     .class = BINDINGS_EXCLUSIVE,
     .subset = 2,
     .load_bound_percent = 100,
     .ask_timeout_ms = 5000,
     .member_count = 3,
     .members = members},
    {.name = {"s", 1},
     .class = BINDINGS_STICKY,
     .subset = 2,
     .load_bound_percent = 100,
     .ask_timeout_ms = 5000,
     .member_count = 3,
     .members = members},
};

static const char *const kinds[] = {"CLOSE",         "RETRACT", "CONNECT", "NEXT",    "BIND",
                                    "GET",           "MOVE",    "DROP",    "TOUCH",   "SUSPECT",
                                    "REPLACE_LEASE", "BOUND",   "MOVED",   "COVERED", "UNCOVERED"};

static void begin_with(uint32_t sessions_max, uint32_t asks_max) {
    config = (struct bindings_config){.alloc = heap_alloc(),
                                      .pool_count = 2,
                                      .pools = pools,
                                      .clock_drift_ppm = 500,
                                      .sessions_max = sessions_max,
                                      .asks_max = asks_max,
                                      .moves_max = 10,
                                      .idle_drop_ms = 60000,
                                      .touch_ms = 600000,
                                      .loose_after_ms = 500,
                                      .loose_start_ms = 3000,
                                      .seed = 1};
    now = 1000;
    b = bindings_new(&config, now);
    conn = conn2 = conn3 = (struct bindings_conn){0};
}
static void setup(void) {
    begin_with(100, 10);
}
static void teardown(void) {
    bindings_free(b);
    ck_assert_uint_eq(heap_bytes_in_use(), 0);
}

/* The next piece of work is of that kind; `out` has it. */
static void take_line(int line, enum bindings_output_kind kind) {
    ck_assert_msg(bindings_take(b, &out), "line %d: nothing to do, %s was expected", line, kinds[kind]);
    ck_assert_msg(out.kind == kind, "line %d: %s, %s was expected", line, kinds[out.kind], kinds[kind]);
}
#define take(kind) take_line(__LINE__, kind)
static void take_nothing_line(int line) {
    const bool more = bindings_take(b, &out);
    ck_assert_msg(!more, "line %d: %s, nothing was expected", line, more ? kinds[out.kind] : "");
}
#define take_nothing() take_nothing_line(__LINE__)
static void take_close_line(int line, struct bindings_conn *c, enum close_reason reason) {
    take_line(line, BINDINGS_CLOSE);
    ck_assert_msg(out.conn == c && out.reason == reason, "line %d: %s", line, close_reason_word(out.reason));
}
#define take_close(conn, reason) take_close_line(__LINE__, conn, reason)
static void take_connect_line(int line, struct bindings_conn *c, int member) {
    take_line(line, BINDINGS_CONNECT);
    ck_assert_msg(out.conn == c && out.member == member, "line %d: to %d, %d was expected", line, out.member, member);
}
#define take_connect(conn, member) take_connect_line(__LINE__, conn, member)

static void want(struct bindings_conn *c, uint32_t pool, const char *session) {
    ck_assert_int_eq(bindings_want(b, now, c, pool, slice_str(session)), BINDINGS_TAKEN);
}
static void bound(uint64_t op, char backend, uint64_t epoch, uint64_t revision) {
    const struct slice shard[] = {{"a", 1}, {"b", 1}};
    bindings_binding(b, now, op,
                     &(struct bindings_reply){.backend = slice_of(&backend, 1),
                                              .epoch = epoch,
                                              .revision = revision,
                                              .is_new = true,
                                              .shard = shard,
                                              .shard_count = 2});
}
/* A lease, and cover counted from now. */
static void cover(void) {
    bindings_lease_granted(b, now, LEASE);
    take(BINDINGS_ASK_NEXT);
    ck_assert_int_eq(out.lease, LEASE);
    ck_assert_uint_eq(out.serial, 0);
    bindings_next(b, now, LEASE, TTL, 0, NULL, 0);
    take(BINDINGS_ASK_NEXT);
    take(BINDINGS_SAY_COVERED);
}
static void next(uint64_t serial) {
    bindings_next(b, now, LEASE, TTL, serial, NULL, 0);
    take(BINDINGS_ASK_NEXT);
    ck_assert_uint_eq(out.serial, serial);
}
static void revoke(uint32_t pool, const char *session, uint64_t epoch, uint64_t serial) {
    const struct bindings_revocation r = {.pool = pool, .session = slice_str(session), .epoch = epoch};
    bindings_next(b, now, LEASE, TTL, serial, &r, 1);
}
/* Covered, and `session` of `pool` bound to a (epoch 5) with `c` live on it. */
static void serve(struct bindings_conn *c, uint32_t pool, const char *session) {
    want(c, pool, session);
    take(BINDINGS_ASK_BIND);
    bound(out.op, 'a', 5, 5);
    take(BINDINGS_SAY_BOUND);
    take_connect(c, A);
    bindings_connected(b, now, c);
    take_nothing();
    ck_assert_int_eq(c->state, BINDINGS_CONN_LIVE);
}

START_TEST(a_first_connection_is_asked_for_and_a_second_is_not) {
    want(&conn, EXCLUSIVE, "r");
    take_nothing(); /* no lease yet */
    bindings_lease_granted(b, now, LEASE);
    take(BINDINGS_ASK_NEXT);
    take_nothing(); /* V6: no question without cover */
    now += 1000;
    bindings_next(b, now, LEASE, TTL, 0, NULL, 0);
    take(BINDINGS_ASK_NEXT);
    take(BINDINGS_SAY_COVERED);
    take(BINDINGS_ASK_BIND);
    ck_assert_uint_eq(out.shard_count, 2);
    ck_assert(out.member == out.shard[0]);
    ck_assert(slice_equal(out.session, slice_str("r")));
    bound(out.op, 'b', 9, 9); /* somebody else's choice */
    take(BINDINGS_SAY_BOUND);
    ck_assert_uint_eq(out.epoch, 9);
    take_connect(&conn, B);
    ck_assert_uint_eq(out.epoch, 9);
    bindings_connected(b, now, &conn);
    want(&conn2, EXCLUSIVE, "r");
    take_connect(&conn2, B); /* from memory */
    take_nothing();
    ck_assert_uint_eq(bindings_session_count(b), 1);
}
END_TEST

/* V1: cover counts from when the NEXT was given out, not from its reply. */
START_TEST(exclusive_is_cut_when_the_cover_ends) {
    cover();
    const uint64_t sent = now;
    serve(&conn, EXCLUSIVE, "r");
    now = sent + 1500;
    next(0); /* given out at `sent` */
    const uint64_t end = sent + COVER;
    ck_assert(bindings_may_write(b, end - 1, &conn));
    ck_assert(!bindings_may_write(b, end, &conn)); /* also if no tick came in between */
    ck_assert_uint_eq(bindings_wake_at_ms(b), sent + CUT);
    now = sent + CUT - 1;
    bindings_tick(b, now);
    take_nothing();
    now++;
    bindings_tick(b, now);
    take(BINDINGS_SAY_UNCOVERED);
    take_close(&conn, CLOSE_NO_COVER);
    take_nothing();
    ck_assert_int_eq(conn.state, BINDINGS_CONN_NONE);
}
END_TEST

/* After a stop of ten seconds whatever comes first finds the cover gone, before it is believed. */
START_TEST(after_a_wake_the_clock_is_first) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    now += 10000;
    ck_assert(!bindings_may_write(b, now, &conn));
    bindings_next(b, now, LEASE, TTL, 0, NULL, 0); /* an answer from before the stop */
    take(BINDINGS_SAY_UNCOVERED);
    take_close(&conn, CLOSE_NO_COVER);
    take(BINDINGS_ASK_NEXT);
    take_nothing(); /* ... gives no cover: it was asked too long ago */
    want(&conn2, EXCLUSIVE, "r");
    take_nothing();
    next(0); /* this one was asked after the wake */
    take(BINDINGS_SAY_COVERED);
    take(BINDINGS_ASK_BIND); /* V6: the old hold is void, it is asked again */
    take_nothing();
}
END_TEST

/* V6: what was asked under another cover is not held, however fresh it looks. */
START_TEST(a_question_from_before_a_lapse_is_asked_again) {
    cover();
    want(&conn, EXCLUSIVE, "r");
    take(BINDINGS_ASK_BIND);
    const uint64_t op = out.op;
    now += COVER;
    bindings_tick(b, now);
    take(BINDINGS_SAY_UNCOVERED);
    next(0);
    take_nothing();
    next(0);
    take(BINDINGS_SAY_COVERED);
    bound(op, 'a', 5, 5);
    take_nothing();
    now += 10;
    bindings_tick(b, now);
    take(BINDINGS_ASK_BIND);
    bound(out.op, 'b', 6, 6);
    take(BINDINGS_SAY_BOUND);
    take_connect(&conn, B);
}
END_TEST

/* V2, V3. */
START_TEST(a_revocation_is_let_go_before_it_is_acknowledged) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    want(&conn2, EXCLUSIVE, "r");
    take_connect(&conn2, A);
    revoke(EXCLUSIVE, "r", 5, 20);
    take_close(&conn, CLOSE_MOVED);
    take(BINDINGS_RETRACT); /* it has carried nothing: it waits for the new binding */
    ck_assert(out.conn == &conn2);
    take(BINDINGS_ASK_BIND);
    const uint64_t op = out.op;
    take(BINDINGS_ASK_NEXT);
    ck_assert_uint_eq(out.serial, 20);
    bound(op, 'a', 5, 20); /* V3: a reply from before the move */
    take_nothing();
    now += 10;
    bindings_tick(b, now);
    take(BINDINGS_ASK_BIND);
    bound(out.op, 'b', 21, 21);
    take(BINDINGS_SAY_BOUND);
    take_connect(&conn2, B);
    revoke(EXCLUSIVE, "r", 5, 20); /* named again, but what we have is newer */
    take(BINDINGS_ASK_NEXT);
    take_nothing();
}
END_TEST

START_TEST(revocations_of_others_touch_nothing) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    revoke(STICKY, "r", 5, 20);
    take(BINDINGS_ASK_NEXT);
    revoke(EXCLUSIVE, "q", 5, 21);
    take(BINDINGS_ASK_NEXT);
    revoke(7, "r", 5, 22);
    take(BINDINGS_ASK_NEXT);
    take_nothing();
    ck_assert_int_eq(conn.state, BINDINGS_CONN_LIVE);
}
END_TEST

/* A dead backend: told at once, cut at once, moved as soon as enough proxies say so. */
START_TEST(a_dead_backends_sessions_move) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_backend_down(b, now, EXCLUSIVE, A);
    take_close(&conn, CLOSE_BACKEND_DOWN);
    take(BINDINGS_ASK_SUSPECT);
    ck_assert_uint_eq(out.member, A);
    take_nothing();
    want(&conn2, EXCLUSIVE, "r");
    take_nothing(); /* it waits */
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 2, 2);
    take(BINDINGS_ASK_MOVE);
    ck_assert_uint_eq(out.epoch, 5);
    ck_assert_uint_eq(out.member, B);
    bound(out.op, 'b', 30, 30);
    take(BINDINGS_SAY_MOVED);
    ck_assert(out.from == A && out.member == B);
    take_connect(&conn2, B);
    take_nothing();
    now += 1000;
    bindings_tick(b, now); /* told again every second */
    take(BINDINGS_ASK_SUSPECT);
    take_nothing();
    ck_assert_uint_eq(bindings_counters(b)->moved, 1);
}
END_TEST

/* An idle session that is only remembered moves as well. */
START_TEST(a_dead_backends_idle_sessions_move_too) {
    cover();
    serve(&conn, STICKY, "r");
    bindings_gone(b, now, &conn);
    bindings_backend_down(b, now, STICKY, A);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, STICKY, A, 1, 1);
    take(BINDINGS_ASK_MOVE);
    bound(out.op, 'b', 30, 30);
    take(BINDINGS_SAY_MOVED);
    take_nothing();
}
END_TEST

/* The others do not think so: lockd's word stands and its backend is tried, once. */
START_TEST(one_suspicious_proxy_moves_nothing) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_backend_down(b, now, EXCLUSIVE, A);
    take_close(&conn, CLOSE_BACKEND_DOWN);
    take(BINDINGS_ASK_SUSPECT);
    want(&conn2, EXCLUSIVE, "r");
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 1, 2);
    take_connect(&conn2, A);
    bindings_connect_failed(b, now, &conn2);
    take_nothing();
    now += 50; /* asked about again soon */
    bindings_tick(b, now);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 1, 2);
    take_nothing(); /* not tried twice */
    now += 50;
    bindings_tick(b, now);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 2, 2);
    take(BINDINGS_ASK_MOVE);
    bound(out.op, 'b', 30, 30);
    take(BINDINGS_SAY_MOVED);
    take_connect(&conn2, B);
}
END_TEST

START_TEST(a_backend_that_is_reached_although_it_is_down_here_serves) {
    cover();
    bindings_backend_down(b, now, EXCLUSIVE, A);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 1, 2);
    want(&conn, EXCLUSIVE, "r");
    take(BINDINGS_ASK_BIND);
    ck_assert_uint_ne(out.member, A);
    bound(out.op, 'a', 5, 5);
    take(BINDINGS_SAY_BOUND);
    take_connect(&conn, A);
    bindings_connected(b, now, &conn);
    now += 100;
    bindings_tick(b, now);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 1, 2);
    take_nothing();
    ck_assert_int_eq(conn.state, BINDINGS_CONN_LIVE);
}
END_TEST

/* Refused by lockd although the count looked good: the hold ended with the question, it is asked for anew. */
START_TEST(a_refused_move_is_followed_by_a_question) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_backend_down(b, now, EXCLUSIVE, A);
    take_close(&conn, CLOSE_BACKEND_DOWN);
    take(BINDINGS_ASK_SUSPECT);
    want(&conn2, EXCLUSIVE, "r");
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 2, 2);
    take(BINDINGS_ASK_MOVE);
    bindings_failed(b, now, out.op, BINDINGS_IN_SERVICE);
    take(BINDINGS_ASK_BIND);
    bound(out.op, 'a', 5, 5);
    take_connect(&conn2, A);
    bindings_connect_failed(b, now, &conn2);
    take_nothing();
    now += 50;
    bindings_tick(b, now);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 2, 2);
    take(BINDINGS_ASK_MOVE);
}
END_TEST

/* V4: a MOVE that perhaps ran is asked until its outcome is known; refused then, a copy may still run one day and end a
 * later hold without a word: only another lease is safe from it. */
START_TEST(a_move_in_doubt_ends_with_another_lease) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_backend_down(b, now, EXCLUSIVE, A);
    take_close(&conn, CLOSE_BACKEND_DOWN);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 2, 2);
    take(BINDINGS_ASK_MOVE);
    bindings_failed(b, now, out.op, BINDINGS_UNCERTAIN);
    take_nothing();
    bindings_backend_up(b, now, EXCLUSIVE, A);
    want(&conn2, EXCLUSIVE, "r");
    take_nothing();
    now += 10;
    bindings_tick(b, now);
    take(BINDINGS_ASK_MOVE);
    ck_assert_uint_eq(out.epoch, 5);
    bindings_failed(b, now, out.op, BINDINGS_IN_SERVICE);
    take(BINDINGS_REPLACE_LEASE);
    take_nothing(); /* and no question under this one */
    bindings_lease_lost(b, now);
    take(BINDINGS_SAY_UNCOVERED);
    bindings_lease_granted(b, now, LEASE + 1);
    take(BINDINGS_ASK_NEXT);
    bindings_next(b, now, LEASE + 1, TTL, 0, NULL, 0);
    take(BINDINGS_ASK_NEXT);
    take(BINDINGS_SAY_COVERED);
    take(BINDINGS_ASK_BIND);
    bound(out.op, 'a', 5, 40);
    take_connect(&conn2, A);
}
END_TEST

/* The same with a good end: the epoch has changed, so a late copy finds nothing. */
START_TEST(a_move_in_doubt_that_succeeds_is_held) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_backend_down(b, now, EXCLUSIVE, A);
    take_close(&conn, CLOSE_BACKEND_DOWN);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 2, 2);
    take(BINDINGS_ASK_MOVE);
    bindings_failed(b, now, out.op, BINDINGS_UNCERTAIN);
    now += 10;
    bindings_tick(b, now);
    take(BINDINGS_ASK_MOVE);
    bound(out.op, 'b', 30, 31);
    take(BINDINGS_SAY_MOVED);
    want(&conn2, EXCLUSIVE, "r");
    take_connect(&conn2, B);
}
END_TEST

START_TEST(a_dead_shard_is_refused) {
    cover();
    bindings_backend_down(b, now, EXCLUSIVE, A);
    bindings_backend_down(b, now, EXCLUSIVE, B);
    take(BINDINGS_ASK_SUSPECT);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 2, 2);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, B, 2, 2);
    want(&conn, EXCLUSIVE, "r");
    take(BINDINGS_ASK_BIND);  /* our own hashing would have c */
    bound(out.op, 'a', 5, 5); /* the record says a, and b behind it: never the third */
    take(BINDINGS_SAY_BOUND);
    take_close(&conn, CLOSE_SHARD_DOWN);
    take_nothing();
    want(&conn2, EXCLUSIVE, "r");
    take_close(&conn2, CLOSE_SHARD_DOWN);
    bindings_backend_up(b, now, EXCLUSIVE, B); /* one is back: moved there */
    want(&conn3, EXCLUSIVE, "r");
    take(BINDINGS_ASK_MOVE);
    ck_assert_uint_eq(out.member, B);
}
END_TEST

/* Nobody up at all: a record is looked up, none is made. */
START_TEST(with_nobody_up_nothing_is_bound) {
    cover();
    for (uint32_t m = A; m <= C; m++) {
        bindings_backend_down(b, now, STICKY, m);
        take(BINDINGS_ASK_SUSPECT);
        bindings_suspected(b, now, LEASE, STICKY, m, 1, 1);
    }
    want(&conn, STICKY, "r");
    take(BINDINGS_ASK_GET);
    bindings_absent(b, now, out.op);
    take_close(&conn, CLOSE_SHARD_DOWN);
    take_nothing();
}
END_TEST

/* All of the shard are down here, but the other proxies do not think so: it is bound and tried; then refused. */
START_TEST(a_shard_that_is_down_only_here_is_tried) {
    cover();
    for (uint32_t m = A; m <= C; m++) {
        bindings_backend_down(b, now, STICKY, m);
        take(BINDINGS_ASK_SUSPECT);
        bindings_suspected(b, now, LEASE, STICKY, m, 1, 2);
    }
    want(&conn, STICKY, "r");
    take(BINDINGS_ASK_BIND);
    ck_assert(out.member == out.shard[0]);
    bound(out.op, 'b', 5, 5);
    take(BINDINGS_SAY_BOUND);
    take_connect(&conn, B);
    bindings_connected(b, now, &conn);
    take_nothing();
    want(&conn2, STICKY, "r");
    take_connect(&conn2, B);
    bindings_connect_failed(b, now, &conn2);
    take_close(&conn2, CLOSE_SHARD_DOWN);
    take_nothing();
    ck_assert_int_eq(conn.state, BINDINGS_CONN_LIVE);
}
END_TEST

START_TEST(a_failing_connect_is_repeated_until_the_timeout) {
    cover();
    want(&conn, EXCLUSIVE, "r");
    take(BINDINGS_ASK_BIND);
    bound(out.op, 'a', 5, 5);
    take(BINDINGS_SAY_BOUND);
    const uint64_t end = now + 5000;
    int tries = 0;
    while (now < end) {
        while (bindings_take(b, &out)) {
            if (out.kind == BINDINGS_CONNECT) {
                tries++;
                bindings_connect_failed(b, now, &conn);
            } else if (out.kind == BINDINGS_ASK_NEXT) {
                continue;
            } else {
                ck_assert_int_eq(out.kind, BINDINGS_CLOSE);
                ck_assert_int_eq(out.reason, CLOSE_CONNECT_FAILED);
                ck_assert_uint_eq(now, end);
            }
        }
        now += 10;
        if (now % 1000 == 0) bindings_next(b, now, LEASE, TTL, 0, NULL, 0);
        bindings_tick(b, now);
    }
    ck_assert_int_ge(tries, 8);
    ck_assert_int_le(tries, 14);
}
END_TEST

START_TEST(a_question_without_answer_ends_with_the_timeout) {
    cover();
    want(&conn, STICKY, "r");
    take(BINDINGS_ASK_BIND);
    for (int second = 0; second < 4; second++) {
        now += 1000;
        next(0);
    }
    now += 1000;
    bindings_tick(b, now);
    take_close(&conn, CLOSE_ASK_TIMEOUT);
    bound(out.op, 'a', 5, 5); /* ignored: op 0 */
    take_nothing();
}
END_TEST

START_TEST(lockd_can_refuse_a_session) {
    cover();
    want(&conn, STICKY, "r");
    take(BINDINGS_ASK_BIND);
    bindings_failed(b, now, out.op, BINDINGS_REFUSED);
    take_close(&conn, CLOSE_LOCKD_REFUSED);
    take_nothing();
}
END_TEST

START_TEST(an_unknown_backend_is_said_so) {
    cover();
    want(&conn, STICKY, "r");
    take(BINDINGS_ASK_BIND);
    bound(out.op, 'z', 5, 5);
    take(BINDINGS_SAY_BOUND);
    take_close(&conn, CLOSE_UNKNOWN_BACKEND);
    take_nothing();
}
END_TEST

/* Idle sessions are given back; who comes meanwhile waits for the outcome and is asked for again. */
START_TEST(idle_sessions_are_given_back) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_gone(b, now, &conn);
    for (int second = 0; second < 60; second++) {
        take_nothing();
        now += 1000;
        next(0);
    }
    bindings_tick(b, now);
    take(BINDINGS_ASK_DROP);
    ck_assert_uint_eq(out.epoch, 5);
    const uint64_t op = out.op;
    want(&conn2, EXCLUSIVE, "r");
    take_nothing();
    bindings_dropped(b, now, op);
    take(BINDINGS_ASK_BIND);
    bound(out.op, 'a', 5, 50);
    take_connect(&conn2, A);
    bindings_gone(b, now, &conn2);
    for (int second = 0; second < 60; second++) {
        now += 1000;
        next(0);
    }
    bindings_tick(b, now);
    take(BINDINGS_ASK_DROP);
    bindings_dropped(b, now, out.op);
    take_nothing();
    ck_assert_uint_eq(bindings_session_count(b), 0);
}
END_TEST

/* V4 for DROP. */
START_TEST(a_drop_in_doubt_is_not_served_under_the_same_lease) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_gone(b, now, &conn);
    for (int second = 0; second < 60; second++) {
        now += 1000;
        next(0);
    }
    bindings_tick(b, now);
    take(BINDINGS_ASK_DROP);
    bindings_failed(b, now, out.op, BINDINGS_UNCERTAIN);
    take_nothing();
    want(&conn, EXCLUSIVE, "r");
    take(BINDINGS_REPLACE_LEASE);
    take_nothing();
}
END_TEST

START_TEST(a_drop_that_did_not_run_leaves_the_hold) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_gone(b, now, &conn);
    for (int second = 0; second < 60; second++) {
        now += 1000;
        next(0);
    }
    bindings_tick(b, now);
    take(BINDINGS_ASK_DROP);
    bindings_failed(b, now, out.op, BINDINGS_NOT_RUN);
    want(&conn, EXCLUSIVE, "r");
    take_connect(&conn, A);
}
END_TEST

START_TEST(the_table_has_a_limit) {
    static struct bindings_conn many[16];
    memset(many, 0, sizeof many);
    bindings_free(b);
    begin_with(8, 10);
    char name[8];
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "r%d", i);
        want(&many[i], STICKY, name);
    }
    ck_assert_int_eq(bindings_want(b, now, &many[8], STICKY, slice_str("r8")), BINDINGS_FULL);
    ck_assert_int_eq(many[8].state, BINDINGS_CONN_NONE);
    want(&many[9], STICKY, "r0"); /* known ones are always taken */
    bindings_gone(b, now, &many[3]);
    want(&many[10], STICKY, "r10"); /* an idle one makes room */
    ck_assert_int_eq(bindings_want(b, now, &many[11], STICKY, slice_str("r11")), BINDINGS_FULL);
    ck_assert_uint_eq(bindings_session_count(b), 8);
    take_nothing();
}
END_TEST

START_TEST(questions_have_a_window) {
    bindings_free(b);
    begin_with(100, 2);
    cover();
    want(&conn, STICKY, "r1");
    take(BINDINGS_ASK_BIND);
    const uint64_t first = out.op;
    want(&conn2, STICKY, "r2");
    take(BINDINGS_ASK_BIND);
    want(&conn3, STICKY, "r3");
    take_nothing();
    bound(first, 'a', 5, 5);
    take(BINDINGS_SAY_BOUND);
    take_connect(&conn, A);
    take(BINDINGS_ASK_BIND);
    ck_assert(slice_equal(out.session, slice_str("r3")));
    take_nothing();
}
END_TEST

/* Class sticky beyond the cover: live ones stay, reconnects go where the session was, new ones to their first choice.
 */
START_TEST(sticky_goes_on_unconfirmed) {
    cover();
    serve(&conn, STICKY, "r");
    now += COVER;
    bindings_tick(b, now);
    take(BINDINGS_SAY_UNCOVERED);
    take_nothing();
    ck_assert(bindings_may_write(b, now, &conn));
    want(&conn2, STICKY, "r");
    take_nothing(); /* lockd gets a moment */
    now += 500;
    bindings_tick(b, now);
    take_connect(&conn2, A);
    ck_assert(out.unconfirmed);
    bindings_connected(b, now, &conn2);
    want(&conn3, STICKY, "new");
    take(BINDINGS_CONNECT);
    ck_assert(out.unconfirmed);
    const uint16_t chosen = out.member;
    bindings_connected(b, now, &conn3);
    ck_assert_uint_eq(bindings_counters(b)->split_possible, 2);

    next(0); /* asked long ago: no cover from it, but from the one after */
    take_nothing();
    next(0);
    take(BINDINGS_SAY_COVERED);
    uint64_t ops[2];
    for (int i = 0; i < 2; i++) {
        take(BINDINGS_ASK_BIND);
        const bool is_new = slice_equal(out.session, slice_str("new"));
        ck_assert_uint_eq(out.member, is_new ? chosen : A); /* what is served is asked for */
        ops[is_new] = out.op;
    }
    take_nothing();
    bound(ops[0], 'b', 60, 60); /* it was moved meanwhile: the losers are cut */
    take_close(&conn, CLOSE_SPLIT_LOST);
    take_close(&conn2, CLOSE_SPLIT_LOST);
    take(BINDINGS_SAY_BOUND);
    bound(ops[1], (char)('a' + chosen), 61, 61);
    take(BINDINGS_SAY_BOUND);
    take_nothing();
    ck_assert_int_eq(conn3.state, BINDINGS_CONN_LIVE);
}
END_TEST

/* ... and the same from the very start, when there is no lockd at all. */
START_TEST(sticky_without_any_lockd) {
    want(&conn, STICKY, "r");
    want(&conn2, EXCLUSIVE, "r");
    now += 2999;
    bindings_tick(b, now);
    take_nothing();
    now++;
    bindings_tick(b, now);
    take(BINDINGS_CONNECT);
    ck_assert(out.conn == &conn && out.unconfirmed);
    take_nothing();
    now += 2000;
    bindings_tick(b, now);
    take_close(&conn2, CLOSE_ASK_TIMEOUT);
}
END_TEST

START_TEST(a_lost_lease_ends_every_hold) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    want(&conn2, STICKY, "r");
    take(BINDINGS_ASK_BIND);
    const uint64_t op = out.op;
    bindings_lease_lost(b, now);
    take(BINDINGS_SAY_UNCOVERED);
    take_close(&conn, CLOSE_NO_COVER);
    bound(op, 'a', 5, 5);
    take_nothing();
    now += 10;
    bindings_lease_granted(b, now, LEASE + 1);
    take(BINDINGS_ASK_NEXT);
    ck_assert_uint_eq(out.serial, 0);
    bindings_next(b, now, LEASE, TTL, 9, NULL, 0); /* the old lease's */
    take_nothing();
    bindings_next(b, now, LEASE + 1, TTL, 0, NULL, 0);
    take(BINDINGS_ASK_NEXT);
    take(BINDINGS_SAY_COVERED);
    take(BINDINGS_ASK_BIND);
    take_nothing();
}
END_TEST

START_TEST(a_failed_next_is_asked_again) {
    cover();
    bindings_next_failed(b, now, LEASE);
    ck_assert_uint_eq(bindings_wake_at_ms(b), now + 20);
    now += 20;
    bindings_tick(b, now);
    take(BINDINGS_ASK_NEXT);
    bindings_next_failed(b, now, LEASE);
    ck_assert_uint_eq(bindings_wake_at_ms(b), now + 40);
    take_nothing();
}
END_TEST

START_TEST(a_touch_that_finds_another_epoch_lets_go) {
    config.touch_ms = 1000;
    bindings_free(b);
    b = bindings_new(&config, now);
    cover();
    serve(&conn, EXCLUSIVE, "r");
    now += 1000;
    bindings_tick(b, now);
    take(BINDINGS_ASK_TOUCH);
    bindings_touched(b, now, out.op, 5);
    take_nothing();
    next(0);
    now += 1000;
    bindings_tick(b, now);
    take(BINDINGS_ASK_TOUCH);
    bindings_touched(b, now, out.op, 6);
    take_close(&conn, CLOSE_MOVED);
}
END_TEST

/* Work about a connection that its owner has ended by itself is not handed out. */
START_TEST(a_gone_connection_is_not_worked_on) {
    cover();
    want(&conn, STICKY, "r");
    take(BINDINGS_ASK_BIND);
    bound(out.op, 'a', 5, 5);
    bindings_gone(b, now, &conn);
    take(BINDINGS_SAY_BOUND);
    take_nothing();
    bindings_gone(b, now, &conn);
}
END_TEST

/* Five sessions with connections on each of three backends at most: the bound moves the sixth on. */
START_TEST(load_counts_at_bind_time) {
    static struct bindings_conn many[90];
    memset(many, 0, sizeof many);
    struct bindings_pool_config tight = pools[STICKY];
    tight.load_bound_percent = 10;
    tight.subset = 3;
    config.pools = &tight;
    config.pool_count = 1;
    config.asks_max = 100;
    bindings_free(b);
    b = bindings_new(&config, now);
    cover();
    int first[3] = {0};
    for (int i = 0; i < 90; i++) {
        char name[16];
        snprintf(name, sizeof name, "room%d", i);
        want(&many[i], 0, name);
        take(BINDINGS_ASK_BIND);
        first[out.member]++;
    }
    for (int m = 0; m < 3; m++) ck_assert_int_le(first[m], 33);
}
END_TEST

/* ---- answers that come late, twice, or to another question ---- */

START_TEST(an_answer_to_another_question_is_none) {
    const struct slice shard[] = {{"a", 1}, {"b", 1}};
    const struct bindings_reply reply = {
        .backend = {"b", 1}, .epoch = 9, .revision = 9, .shard = shard, .shard_count = 2};
    config.touch_ms = 1000;
    bindings_free(b);
    b = bindings_new(&config, now);
    cover();
    want(&conn, EXCLUSIVE, "r");
    take(BINDINGS_ASK_BIND);
    const uint64_t op = out.op;
    bindings_absent(b, now, op);
    bindings_dropped(b, now, op);
    bindings_touched(b, now, op, 6);
    bindings_absent(b, now, op + 1); /* never asked */
    bindings_dropped(b, now, op + 1);
    bindings_touched(b, now, op + 1, 6);
    bindings_binding(b, now, op + 1, &reply);
    bindings_failed(b, now, op + 1, BINDINGS_REFUSED);
    take_nothing();
    bound(op, 'a', 5, 5);
    take(BINDINGS_SAY_BOUND);
    take_connect(&conn, A);
    bindings_connected(b, now, &conn);
    bound(op, 'b', 6, 6); /* twice */
    take_nothing();
    now += 1000;
    next(0);
    bindings_tick(b, now);
    take(BINDINGS_ASK_TOUCH);
    bindings_binding(b, now, out.op, &reply);
    bindings_absent(b, now, out.op);
    take_nothing();
    ck_assert_int_eq(conn.state, BINDINGS_CONN_LIVE);
    bindings_failed(b, now, out.op, BINDINGS_UNCERTAIN); /* a TOUCH that perhaps did not run: the hold is what it was */
    want(&conn2, EXCLUSIVE, "r");
    take_connect(&conn2, A);
    take_nothing();
}
END_TEST

START_TEST(a_retracted_connect_is_no_connection) {
    cover();
    want(&conn, EXCLUSIVE, "r");
    take(BINDINGS_ASK_BIND);
    bound(out.op, 'a', 5, 5);
    take(BINDINGS_SAY_BOUND);
    take_connect(&conn, A);
    ck_assert(!bindings_may_write(b, now, &conn)); /* not yet */
    revoke(EXCLUSIVE, "r", 5, 20);
    bindings_connected(b, now, &conn); /* it had succeeded before the retraction was read */
    ck_assert_int_eq(conn.state, BINDINGS_CONN_WAITING);
    ck_assert(!bindings_may_write(b, now, &conn));
    bindings_connect_failed(b, now, &conn);
    ck_assert_int_eq(conn.state, BINDINGS_CONN_WAITING);
    take(BINDINGS_RETRACT);
    take(BINDINGS_ASK_BIND);
    take(BINDINGS_ASK_NEXT);
    take_nothing();
}
END_TEST

START_TEST(a_next_that_was_given_up_covers_nobody) {
    bindings_lease_granted(b, now, LEASE);
    take(BINDINGS_ASK_NEXT);
    bindings_next_failed(b, now, LEASE);
    bindings_next(b, now, LEASE, TTL, 7, NULL, 0); /* late */
    bindings_next_failed(b, now, LEASE);
    bindings_next_failed(b, now, LEASE + 1);
    take_nothing();
    ck_assert(!bindings_is_covered(b, now));
    now += 20;
    bindings_tick(b, now);
    take(BINDINGS_ASK_NEXT);
    ck_assert_uint_eq(out.serial, 0);
    bindings_next(b, now, LEASE, 1, 0, NULL, 0); /* a ttl that the drift eats up */
    take(BINDINGS_ASK_NEXT);
    take_nothing();
    bindings_next(b, now, LEASE, TTL, 0, NULL, 0);
    take(BINDINGS_ASK_NEXT);
    take(BINDINGS_SAY_COVERED);
    ck_assert(bindings_is_covered(b, now) && bindings_is_covered(b, now + COVER - 1));
    ck_assert(!bindings_is_covered(b, now + COVER));
    serve(&conn, EXCLUSIVE, "r");
    bindings_next(b, now, LEASE, 1, 0, NULL, 0);
    take(BINDINGS_ASK_NEXT);
    take(BINDINGS_SAY_UNCOVERED);
    take_close(&conn, CLOSE_NO_COVER);
    take_nothing();
}
END_TEST

START_TEST(a_revocation_that_names_no_session_is_passed_over) {
    static char key[300];
    memset(key, 'r', sizeof key);
    cover();
    serve(&conn, EXCLUSIVE, "r");
    const struct bindings_revocation none[] = {{.pool = EXCLUSIVE, .session = slice_of("", 0), .epoch = 5},
                                               {.pool = EXCLUSIVE, .session = slice_of(key, sizeof key), .epoch = 5}};
    bindings_next(b, now, LEASE, TTL, 20, none, 2);
    take(BINDINGS_ASK_NEXT);
    ck_assert_uint_eq(out.serial, 20);
    take_nothing();
    ck_assert_int_eq(conn.state, BINDINGS_CONN_LIVE);
}
END_TEST

/* What is said of a backend under another lease, or when it is up again, moves nothing. */
START_TEST(a_late_suspicion_moves_nothing) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_backend_up(b, now, EXCLUSIVE, A); /* it is */
    take_nothing();
    bindings_backend_down(b, now, EXCLUSIVE, A);
    take_close(&conn, CLOSE_BACKEND_DOWN);
    take(BINDINGS_ASK_SUSPECT);
    bindings_backend_down(b, now, EXCLUSIVE, A); /* it is */
    bindings_suspected(b, now, LEASE + 1, EXCLUSIVE, A, 2, 2);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, B, 2, 2); /* not asked */
    take_nothing();
    bindings_backend_up(b, now, EXCLUSIVE, A);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 2, 2);
    want(&conn2, EXCLUSIVE, "r");
    take_connect(&conn2, A);
    take_nothing();
    bindings_backend_down(b, now, EXCLUSIVE, A);
    take(BINDINGS_RETRACT);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 1, 0); /* nobody has joined: no majority of nobody */
    take_connect(&conn2, A);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 2, 2); /* said twice */
    take_nothing();
}
END_TEST

/* ---- what lockd did not do ---- */

static void begin_move(void) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_backend_down(b, now, EXCLUSIVE, A);
    take_close(&conn, CLOSE_BACKEND_DOWN);
    take(BINDINGS_ASK_SUSPECT);
    bindings_suspected(b, now, LEASE, EXCLUSIVE, A, 2, 2);
    take(BINDINGS_ASK_MOVE);
}

START_TEST(a_move_that_did_not_run_is_asked_again) {
    begin_move();
    bindings_failed(b, now, out.op, BINDINGS_NOT_RUN);
    take_nothing();
    now += 10;
    bindings_tick(b, now);
    take(BINDINGS_ASK_MOVE);
    bindings_failed(b, now, out.op, BINDINGS_UNCERTAIN);
    now += 20;
    bindings_tick(b, now);
    take(BINDINGS_ASK_MOVE);
    bindings_failed(b, now, out.op, BINDINGS_NOT_RUN); /* this one; the one before it is in doubt */
    bindings_backend_up(b, now, EXCLUSIVE, A);         /* which nothing but its outcome ends */
    want(&conn2, EXCLUSIVE, "r");
    take_nothing();
    now += 40;
    bindings_tick(b, now);
    take(BINDINGS_ASK_MOVE);
    bound(out.op, 'b', 30, 30);
    take(BINDINGS_SAY_MOVED);
    take_connect(&conn2, B);
}
END_TEST

START_TEST(a_move_that_is_refused_for_what_it_says_is_forgotten) {
    begin_move();
    want(&conn2, EXCLUSIVE, "r");
    bindings_failed(b, now, out.op, BINDINGS_REFUSED);
    take_nothing();
    now += 10;
    bindings_tick(b, now);
    take(BINDINGS_ASK_BIND); /* of whoever our own choice is */
    ck_assert_uint_eq(out.member, C);
    bound(out.op, 'b', 30, 30);
    take(BINDINGS_SAY_BOUND);
    take_connect(&conn2, B);
}
END_TEST

/* It was where it should be already, and nothing was moved. */
START_TEST(a_move_that_finds_it_done_says_nothing) {
    begin_move();
    bound(out.op, 'b', 5, 30);
    take_nothing();
    ck_assert_uint_eq(bindings_counters(b)->moved, 0);
    want(&conn2, EXCLUSIVE, "r");
    take_connect(&conn2, B);
}
END_TEST

static void begin_drop(void) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_gone(b, now, &conn);
    for (int second = 0; second < 60; second++) {
        now += 1000;
        next(0);
    }
    bindings_tick(b, now);
    take(BINDINGS_ASK_DROP);
}

START_TEST(a_drop_that_is_refused_ends_the_hold) {
    begin_drop();
    bindings_failed(b, now, out.op, BINDINGS_REFUSED);
    take_nothing();
    want(&conn, EXCLUSIVE, "r");
    take(BINDINGS_ASK_BIND);
}
END_TEST

START_TEST(who_waits_for_a_drop_that_did_not_run_is_served) {
    begin_drop();
    want(&conn2, EXCLUSIVE, "r");
    bindings_connected(b, now, &conn2); /* of which nobody spoke */
    take_nothing();
    bindings_failed(b, now, out.op, BINDINGS_NOT_RUN);
    take_connect(&conn2, A);
}
END_TEST

START_TEST(a_drop_from_before_a_lapse_leaves_no_hold) {
    begin_drop();
    const uint64_t op = out.op;
    now += COVER;
    bindings_tick(b, now);
    take(BINDINGS_SAY_UNCOVERED);
    next(0);
    next(0);
    take(BINDINGS_SAY_COVERED);
    bindings_failed(b, now, op, BINDINGS_NOT_RUN);
    want(&conn, EXCLUSIVE, "r");
    take(BINDINGS_ASK_BIND);
}
END_TEST

/* Another lease is asked for once in a while, however many sessions are in doubt. */
START_TEST(leases_are_not_replaced_in_a_row) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    serve(&conn2, EXCLUSIVE, "q");
    bindings_gone(b, now, &conn);
    bindings_gone(b, now, &conn2);
    for (int second = 0; second < 60; second++) {
        now += 1000;
        next(0);
    }
    bindings_tick(b, now);
    for (int i = 0; i < 2; i++) {
        take(BINDINGS_ASK_DROP);
        bindings_failed(b, now, out.op, BINDINGS_UNCERTAIN);
    }
    want(&conn, EXCLUSIVE, "r");
    take(BINDINGS_REPLACE_LEASE);
    want(&conn2, EXCLUSIVE, "q");
    take_nothing();
    const uint64_t asked_ms = now;
    while (!bindings_take(b, &out) || out.kind != BINDINGS_REPLACE_LEASE) {
        ck_assert_uint_lt(now, asked_ms + 60000);
        now += 100;
        if (now % 1000 == 0) bindings_next(b, now, LEASE, TTL, 0, NULL, 0);
        bindings_tick(b, now);
        if (conn2.state == BINDINGS_CONN_NONE) want(&conn2, EXCLUSIVE, "q"); /* its client comes again */
    }
    ck_assert_uint_ge(now, asked_ms + 1000);
    ck_assert_uint_eq(bindings_counters(b)->leases_replaced, 2);
}
END_TEST

/* A question for a record, when nobody is up. */
START_TEST(a_record_that_is_not_there_is_made_when_somebody_is_up) {
    cover();
    for (uint32_t m = A; m <= C; m++) {
        bindings_backend_down(b, now, STICKY, m);
        take(BINDINGS_ASK_SUSPECT);
        bindings_suspected(b, now, LEASE, STICKY, m, 1, 1);
    }
    want(&conn, STICKY, "r");
    take(BINDINGS_ASK_GET);
    bindings_failed(b, now, out.op, BINDINGS_NOT_RUN);
    take_nothing();
    now += 10;
    bindings_tick(b, now);
    take(BINDINGS_ASK_GET);
    for (uint32_t m = A; m <= C; m++) bindings_backend_up(b, now, STICKY, m);
    bindings_absent(b, now, out.op);
    take_nothing();
    ck_assert_int_eq(conn.state, BINDINGS_CONN_WAITING);
    now += 100;
    bindings_tick(b, now);
    take(BINDINGS_ASK_BIND);
    const struct bindings_reply reply = {.backend = {"c", 1}, .epoch = 5, .revision = 5}; /* without a shard */
    bindings_binding(b, now, out.op, &reply);
    take(BINDINGS_SAY_BOUND);
    take_connect(&conn, C);
    bindings_connect_failed(b, now, &conn);
    revoke(STICKY, "r", 5, 9);
    while (bindings_take(b, &out) && out.kind != BINDINGS_ASK_BIND) {
    }
    ck_assert_int_eq(out.kind, BINDINGS_ASK_BIND);
    ck_assert_uint_eq(out.shard_count, 2); /* our own then */
}
END_TEST

START_TEST(who_waits_while_the_cover_is_cut_is_told_so) {
    cover();
    serve(&conn, EXCLUSIVE, "r");
    bindings_backend_down(b, now, EXCLUSIVE, A);
    take_close(&conn, CLOSE_BACKEND_DOWN);
    take(BINDINGS_ASK_SUSPECT); /* and no answer to it */
    want(&conn2, EXCLUSIVE, "r");
    const uint64_t deadline = now + 5000;
    now = deadline - CUT - 100;
    next(0);
    next(0); /* cover from here: cut before the deadline, and not lapsed at it */
    take_nothing();
    now = deadline - 100;
    bindings_tick(b, now);
    take(BINDINGS_SAY_UNCOVERED);
    take_nothing();
    now = deadline;
    bindings_tick(b, now);
    take_close(&conn2, CLOSE_NO_COVER);
}
END_TEST

/* ---- loose while still held: the cover is cut a little before it ends ---- */

static void begin_loose(void) {
    config.loose_after_ms = 10;
    bindings_free(b);
    b = bindings_new(&config, now);
    cover();
    serve(&conn, STICKY, "r");
}
static void cut_cover(void) {
    now += CUT;
    bindings_tick(b, now);
    take(BINDINGS_SAY_UNCOVERED);
    now += 10;
    bindings_tick(b, now);
    take_nothing();
}

START_TEST(a_held_session_is_served_without_cover) {
    begin_loose();
    cut_cover();
    want(&conn2, STICKY, "r");
    take_connect(&conn2, A);
    ck_assert(out.unconfirmed);
    ck_assert_int_eq(conn.state, BINDINGS_CONN_LIVE);
}
END_TEST

START_TEST(a_held_session_leaves_its_dead_backend_without_cover) {
    begin_loose();
    bindings_backend_down(b, now, STICKY, A);
    take_close(&conn, CLOSE_BACKEND_DOWN);
    take(BINDINGS_ASK_SUSPECT);
    cut_cover();
    want(&conn2, STICKY, "r");
    take_connect(&conn2, B);
    ck_assert(out.unconfirmed);
    bindings_connected(b, now, &conn2);
    next(0);
    next(0);
    take(BINDINGS_SAY_COVERED);
    take(BINDINGS_ASK_BIND); /* what is served is asked for, and not moved by an old suspicion */
    ck_assert_uint_eq(out.member, B);
    const uint64_t op = out.op;
    bindings_suspected(b, now, LEASE, STICKY, A, 2, 2);
    take_nothing();
    bound(op, 'b', 30, 30);
    take(BINDINGS_SAY_BOUND);
    take_nothing();
    ck_assert_int_eq(conn2.state, BINDINGS_CONN_LIVE);
}
END_TEST

START_TEST(without_cover_and_without_a_backend_nobody_is_served) {
    begin_loose();
    for (uint32_t m = A; m <= C; m++) bindings_backend_down(b, now, STICKY, m);
    take_close(&conn, CLOSE_BACKEND_DOWN);
    for (uint32_t m = A; m <= C; m++) take(BINDINGS_ASK_SUSPECT);
    cut_cover();
    want(&conn2, STICKY, "r");
    take_close(&conn2, CLOSE_SHARD_DOWN);
    take_nothing();
}
END_TEST

/* ---- draining, and limits ---- */

/* A session that nobody is on leaves a draining backend when it is asked for again; one that is served stays. */
START_TEST(a_draining_backend_keeps_what_it_serves) {
    struct placement_member draining[3];
    memcpy(draining, members, sizeof draining);
    draining[A].draining = true;
    struct bindings_pool_config pool = pools[STICKY];
    pool.members = draining;
    config.pools = &pool;
    config.pool_count = 1;
    bindings_free(b);
    b = bindings_new(&config, now);
    cover();
    for (int i = 0; i < 2; i++) {
        want(i == 0 ? &conn : &conn2, 0, i == 0 ? "served" : "idle");
        take(BINDINGS_ASK_BIND);
        bound(out.op, 'a', 5, 5);
        take(BINDINGS_SAY_BOUND);
        take_connect(i == 0 ? &conn : &conn2, A);
        bindings_connected(b, now, i == 0 ? &conn : &conn2);
    }
    bindings_gone(b, now, &conn2);
    now += COVER;
    bindings_tick(b, now);
    take(BINDINGS_SAY_UNCOVERED);
    next(0);
    next(0);
    take(BINDINGS_SAY_COVERED);
    take(BINDINGS_ASK_BIND);
    ck_assert(slice_equal(out.session, slice_str("served")));
    ck_assert_uint_eq(out.member, A);
    want(&conn2, 0, "idle");
    take(BINDINGS_ASK_BIND);
    ck_assert_uint_eq(out.member, B);
}
END_TEST

/* Work is handed out in the order in which it came up, however much there is; room is made a few sessions at a time,
 * and not by those of which something is out. */
START_TEST(much_at_once) {
    enum { MANY = 140 };
    static struct bindings_conn many[MANY + 20];
    char name[16];
    memset(many, 0, sizeof many);
    bindings_free(b);
    begin_with(160, MANY / 2);
    cover();
    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "r%d", i);
        want(&many[i], STICKY, name);
    }
    for (int i = 0; i < MANY / 2; i++) {
        take(BINDINGS_ASK_BIND);
        snprintf(name, sizeof name, "r%d", i);
        ck_assert(slice_equal(out.session, slice_str(name)));
    }
    take_nothing();
    for (int i = 0; i < MANY; i++) bindings_gone(b, now, &many[i]); /* a question is out for the first half */
    ck_assert_uint_eq(bindings_session_count(b), MANY);
    want(&many[MANY], STICKY, "new");
    ck_assert_uint_eq(bindings_session_count(b), MANY + 1); /* the eight that were looked at were asked for */
    for (uint64_t op = 1; op <= MANY / 2; op++) bindings_failed(b, now, op, BINDINGS_NOT_RUN);
    want(&many[MANY + 1], STICKY, "newer");
    ck_assert_uint_eq(bindings_session_count(b), MANY + 1 - 8 + 1);
}
END_TEST

int main(void) {
    Suite *s = suite_create("bindings");
    TCase *tc = tcase_create("bindings");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_first_connection_is_asked_for_and_a_second_is_not);
    tcase_add_test(tc, exclusive_is_cut_when_the_cover_ends);
    tcase_add_test(tc, after_a_wake_the_clock_is_first);
    tcase_add_test(tc, a_question_from_before_a_lapse_is_asked_again);
    tcase_add_test(tc, a_revocation_is_let_go_before_it_is_acknowledged);
    tcase_add_test(tc, revocations_of_others_touch_nothing);
    tcase_add_test(tc, a_dead_backends_sessions_move);
    tcase_add_test(tc, a_dead_backends_idle_sessions_move_too);
    tcase_add_test(tc, one_suspicious_proxy_moves_nothing);
    tcase_add_test(tc, a_backend_that_is_reached_although_it_is_down_here_serves);
    tcase_add_test(tc, a_refused_move_is_followed_by_a_question);
    tcase_add_test(tc, a_move_in_doubt_ends_with_another_lease);
    tcase_add_test(tc, a_move_in_doubt_that_succeeds_is_held);
    tcase_add_test(tc, a_dead_shard_is_refused);
    tcase_add_test(tc, with_nobody_up_nothing_is_bound);
    tcase_add_test(tc, a_shard_that_is_down_only_here_is_tried);
    tcase_add_test(tc, a_failing_connect_is_repeated_until_the_timeout);
    tcase_add_test(tc, a_question_without_answer_ends_with_the_timeout);
    tcase_add_test(tc, lockd_can_refuse_a_session);
    tcase_add_test(tc, an_unknown_backend_is_said_so);
    tcase_add_test(tc, idle_sessions_are_given_back);
    tcase_add_test(tc, a_drop_in_doubt_is_not_served_under_the_same_lease);
    tcase_add_test(tc, a_drop_that_did_not_run_leaves_the_hold);
    tcase_add_test(tc, the_table_has_a_limit);
    tcase_add_test(tc, questions_have_a_window);
    tcase_add_test(tc, sticky_goes_on_unconfirmed);
    tcase_add_test(tc, sticky_without_any_lockd);
    tcase_add_test(tc, a_lost_lease_ends_every_hold);
    tcase_add_test(tc, a_failed_next_is_asked_again);
    tcase_add_test(tc, a_touch_that_finds_another_epoch_lets_go);
    tcase_add_test(tc, a_gone_connection_is_not_worked_on);
    tcase_add_test(tc, load_counts_at_bind_time);
    tcase_add_test(tc, an_answer_to_another_question_is_none);
    tcase_add_test(tc, a_retracted_connect_is_no_connection);
    tcase_add_test(tc, a_next_that_was_given_up_covers_nobody);
    tcase_add_test(tc, a_revocation_that_names_no_session_is_passed_over);
    tcase_add_test(tc, a_late_suspicion_moves_nothing);
    tcase_add_test(tc, a_move_that_did_not_run_is_asked_again);
    tcase_add_test(tc, a_move_that_is_refused_for_what_it_says_is_forgotten);
    tcase_add_test(tc, a_move_that_finds_it_done_says_nothing);
    tcase_add_test(tc, a_drop_that_is_refused_ends_the_hold);
    tcase_add_test(tc, who_waits_for_a_drop_that_did_not_run_is_served);
    tcase_add_test(tc, a_drop_from_before_a_lapse_leaves_no_hold);
    tcase_add_test(tc, leases_are_not_replaced_in_a_row);
    tcase_add_test(tc, a_record_that_is_not_there_is_made_when_somebody_is_up);
    tcase_add_test(tc, who_waits_while_the_cover_is_cut_is_told_so);
    tcase_add_test(tc, a_held_session_is_served_without_cover);
    tcase_add_test(tc, a_held_session_leaves_its_dead_backend_without_cover);
    tcase_add_test(tc, without_cover_and_without_a_backend_nobody_is_served);
    tcase_add_test(tc, a_draining_backend_keeps_what_it_serves);
    tcase_add_test(tc, much_at_once);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
