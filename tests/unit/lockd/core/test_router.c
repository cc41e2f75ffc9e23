/* The order of one client's commands and replies, what is said again and what never is, and the two kinds of timeout.
 * Guards N1-N6 of router.h with a hand-fed router: no leader, no log. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "lockd/core/router.h"

static struct router *rt;
static char calls[4096], out[4096], first_word[64]; /* first_word: after the name of the last call */
static const struct ballot b1 = {1, 0}, b2 = {2, 1};
static bool at_once; /* own reads are answered with a megabyte inside the call */
static uint32_t own_calls;

static void on_call(void *context, const struct router_call *call) {
    (void)context;
    char text[128];
    if (call->own && at_once) {
        static char value[1 << 20];
        own_calls++;
        router_read_reply(rt, call->seq, slice_of(value, sizeof value), false);
        return;
    }
    snprintf(text, sizeof text, "%c%llu", call->own ? 'o' : call->write ? 'w' : 'r', (unsigned long long)call->seq);
    strcat(calls, text);
    if (call->write) {
        snprintf(text, sizeof text, "<%llu", (unsigned long long)call->after);
        strcat(calls, text);
    }
    snprintf(text, sizeof text, ":%.*s ", (int)call->argv[0].bytes, call->argv[0].data);
    strcat(calls, text);
    snprintf(first_word, sizeof first_word, "%.*s", call->argc > 1 ? (int)call->argv[1].bytes : 0,
             call->argc > 1 ? call->argv[1].data : "");
}
static void on_reply(void *context, uint64_t client, struct slice bytes, bool leased) {
    (void)context;
    char text[256];
    snprintf(text, sizeof text, "%llu%s%.*s ", (unsigned long long)client, leased ? "L" : "=", (int)bytes.bytes - 2,
             bytes.data);
    strcat(out, text);
}
static void on_hang_up(void *context, uint64_t client) {
    (void)context, (void)client;
    strcat(out, "bye ");
}

static void setup(void) {
    const struct router_config config = {.alloc = heap_alloc(),
                                         .node = 2,
                                         .boot = 77,
                                         .timeout_ms = 10000,
                                         .reattach_ms = 1000,
                                         .pending_max = 8,
                                         .pending_bytes_max = 1 << 20,
                                         .bytes_max = 1 << 20};
    const struct router_sink sink = {NULL, on_call, on_reply, on_hang_up};
    rt = router_new(&config, &sink);
    calls[0] = out[0] = '\0';
}
static void teardown(void) {
    router_free(rt);
    ck_assert_uint_eq(heap_bytes_in_use(), 0);
}

static void say_to(bool own, uint64_t now_ms, uint64_t client, const char *line) {
    char text[256];
    struct slice argv[16];
    uint32_t argc = 0;
    snprintf(text, sizeof text, "%s", line);
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) argv[argc++] = slice_str(word);
    const struct command *command = command_find(argv[0], false);
    ck_assert_ptr_nonnull(command);
    if (own)
        router_add_own(rt, now_ms, client, command, argc, argv);
    else
        router_add(rt, now_ms, client, command, argc, argv);
}
static void say(uint64_t now_ms, uint64_t client, const char *line) {
    say_to(false, now_ms, client, line);
}
static void answer_write(uint64_t seq, const char *reply) {
    router_write_reply(rt, seq, slice_str(reply));
}
#define called(want)                                                                                                   \
    do {                                                                                                               \
        ck_assert_str_eq(calls, want);                                                                                 \
        calls[0] = '\0';                                                                                               \
    } while (0)
#define replied(want)                                                                                                  \
    do {                                                                                                               \
        router_flush(rt);                                                                                              \
        ck_assert_str_eq(out, want);                                                                                   \
        out[0] = '\0';                                                                                                 \
    } while (0)

START_TEST(replies_keep_the_order_of_commands) {
    say(0, 1, "SET a 1");
    router_answered(rt, 1, slice_str("+PONG\r\n"), false);
    say(0, 1, "SET b 1");
    router_pump(rt, 0, &b1);
    called("w1<0:SET w2<1:SET ");
    answer_write(2, "+two\r\n");
    replied("");
    answer_write(1, "+one\r\n");
    replied("1=+one 1=+PONG 1=+two ");
}
END_TEST

START_TEST(a_read_waits_for_the_writes_before_it) {
    say(0, 1, "SET a 1");
    say(0, 1, "GET a");
    say(0, 1, "GET b");
    say(0, 1, "SET a 2");
    router_pump(rt, 0, &b1);
    called("w1<0:SET ");
    answer_write(1, "+OK\r\n");
    router_pump(rt, 0, &b1);
    called("r1:GET r2:GET ");
    router_read_reply(rt, 1, slice_str("$1\r\n1\r\n"), true);
    router_pump(rt, 0, &b1);
    called("");
    router_read_reply(rt, 2, slice_str("$-1\r\n"), true);
    router_pump(rt, 0, &b1);
    called("w2<1:SET ");
}
END_TEST

START_TEST(a_wait_for_a_lock_holds_the_rest_back) {
    say(0, 1, "LOCK.ACQUIRE l LEASE 1 WAIT 100");
    say(0, 1, "SET a 1");
    say(0, 2, "SET b 1");
    router_pump(rt, 0, &b1);
    called("w1<0:LOCK.ACQUIRE w2<1:SET ");
    answer_write(2, "+OK\r\n");
    router_write_queued(rt, 0, 1);
    router_pump(rt, 0, &b1);
    called("");
    answer_write(1, ":5\r\n");
    router_pump(rt, 0, &b1);
    called("w3<2:SET ");
}
END_TEST

START_TEST(a_once_is_treated_as_what_it_carries) {
    say(0, 1, "ONCE 7 1 LOCK.ACQUIRE l LEASE 1 WAIT 100");
    say(0, 1, "SET a 1");
    say(0, 2, "SET b 1");
    say(0, 2, "ONCE 7 2 EVAL x 0");
    say(0, 3, "ONCE 7 3 SET a 1");
    say(0, 3, "SET a 1");
    router_pump(rt, 0, &b1);
    called("w1<0:ONCE w2<1:SET w3<2:ONCE w4<3:SET "); /* client 1 waits for its lock, 2's script for its SET */
    answer_write(2, "+OK\r\n");
    router_pump(rt, 0, &b1);
    called("w5<4:ONCE ");
    router_write_queued(rt, 0, 1);
    router_client_gone(rt, 500, 1);
    router_expire(rt, 1500);
    router_pump(rt, 1500, &b1);
    called("w6<5:%DEQUEUE ");
    ck_assert_str_eq(first_word, "l"); /* the lock's name, not the lease of ONCE */
}
END_TEST

START_TEST(nothing_goes_out_without_a_leader_and_times_out_as_not_run) {
    say(0, 1, "SET a 1");
    say(1, 1, "GET a");
    router_pump(rt, 0, NULL);
    called("");
    ck_assert_uint_eq(router_wake_at(rt), 10000);
    router_expire(rt, 10001);
    replied("1=-CLUSTERDOWN no leader within forward-timeout (10000 ms); the command did not run "
            "1=-CLUSTERDOWN no leader within forward-timeout (10000 ms); the command did not run ");
}
END_TEST

START_TEST(what_is_out_times_out_as_uncertain) {
    say(0, 1, "SET a 1");
    router_pump(rt, 0, &b1);
    called("w1<0:SET ");
    router_expire(rt, 10000);
    replied("1=-UNCERTAIN no answer within forward-timeout (10000 ms); the command may have run ");
    answer_write(1, "+OK\r\n"); /* too late: the client has its one answer */
    replied("");
}
END_TEST

START_TEST(a_new_ballot_alone_proves_nothing) {
    say(0, 1, "SET a 1");
    router_pump(rt, 0, &b1);
    called("w1<0:SET ");
    router_pump(rt, 0, &b2); /* its first entry is not applied here: w1 may be in the log below it */
    called("");
    say(0, 2, "SET b 1");
    router_first(rt, b2); /* now it is known not to have run */
    router_pump(rt, 0, &b2);
    called("w1<0:SET w2<1:SET ");
    router_expire(rt, 10000);
    replied("2=-UNCERTAIN no answer within forward-timeout (10000 ms); the command may have run "
            "1=-UNCERTAIN no answer within forward-timeout (10000 ms); the command may have run ");
}
END_TEST

START_TEST(after_proof_a_timeout_is_not_uncertain) {
    say(0, 1, "SET a 1");
    router_pump(rt, 0, &b1);
    router_first(rt, b2);
    router_pump(rt, 0, NULL);
    router_expire(rt, 10000);
    replied("1=-CLUSTERDOWN no leader within forward-timeout (10000 ms); the command did not run ");
}
END_TEST

START_TEST(a_remade_link_says_all_of_it_again_in_order) {
    say(0, 1, "SET a 1");
    say(0, 2, "LOCK.ACQUIRE l LEASE 1 WAIT 5");
    say(0, 3, "SET c 1");
    say(0, 4, "GET a");
    router_pump(rt, 0, &b1);
    called("w1<0:SET w2<1:LOCK.ACQUIRE w3<2:SET r1:GET ");
    router_write_queued(rt, 0, 2); /* ran: never said again */
    router_writes_again(rt);
    router_reads_again(rt);
    router_pump(rt, 0, &b1);
    called("w1<0:SET w3<1:SET r1:GET ");
}
END_TEST

START_TEST(a_client_that_leaves_gives_up_its_place_by_name) {
    say(0, 1, "LOCK.ACQUIRE l LEASE 1 WAIT 60000");
    say(0, 1, "SET never 1");
    router_pump(rt, 0, &b1);
    router_write_queued(rt, 0, 1);
    called("w1<0:LOCK.ACQUIRE ");
    router_client_gone(rt, 500, 1);
    router_expire(rt, 1499);
    router_pump(rt, 1499, &b1);
    called("");
    router_expire(rt, 1500);
    router_pump(rt, 1500, &b1);
    called("w2<1:%DEQUEUE ");
    answer_write(2, ":1\r\n");
    answer_write(1, "$-1\r\n");
    replied("");
    ck_assert_uint_eq(router_pending(rt), 0);
}
END_TEST

START_TEST(a_client_may_have_so_much_waiting_and_no_more) {
    for (int i = 0; i < 8; i++) {
        ck_assert(router_room(rt, 1));
        say(0, 1, "SET a 1");
    }
    ck_assert(!router_room(rt, 1));
    ck_assert(router_room(rt, 2));
}
END_TEST

START_TEST(an_outcast_refuses_at_once) {
    say(0, 1, "SET a 1");
    router_refuse(rt, "CLUSTERDOWN not ours");
    say(0, 1, "GET a");
    replied("1=-CLUSTERDOWN not ours 1=-CLUSTERDOWN not ours ");
}
END_TEST

/* A member that is removed has handed writes to the leader, which may well do them. */
START_TEST(an_outcast_says_of_what_is_out_that_it_may_have_run) {
    say(0, 1, "SET a 1");
    say(0, 2, "GET a");
    router_pump(rt, 0, &b1);
    called("w1<0:SET r1:GET ");
    say(0, 3, "SET b 1");
    router_refuse(rt, "CLUSTERDOWN not ours");
    router_flush(rt);
    ck_assert_ptr_nonnull(strstr(out, "1=-UNCERTAIN"));
    ck_assert_ptr_nonnull(strstr(out, "2=-CLUSTERDOWN not ours"));
    ck_assert_ptr_nonnull(strstr(out, "3=-CLUSTERDOWN not ours"));
}
END_TEST

/* The client asked for a minute; what it said after it is not late before that. */
START_TEST(what_stands_behind_a_wait_is_not_late) {
    say(0, 1, "LOCK.ACQUIRE l LEASE 1 WAIT 60000");
    say(1, 1, "SET a 1");
    router_pump(rt, 1, &b1);
    called("w1<0:LOCK.ACQUIRE ");
    router_write_queued(rt, 10, 1);
    say(20, 1, "GET a");
    router_expire(rt, 30000);
    replied("");
    answer_write(1, ":5\r\n");
    replied("1=:5 ");
    router_pump(rt, 30000, &b1);
    called("w2<1:SET ");
    router_expire(rt, 39999);
    replied("");
    router_expire(rt, 40000);
    router_flush(rt);
    ck_assert_ptr_nonnull(strstr(out, "1=-UNCERTAIN"));
    ck_assert_ptr_nonnull(strstr(out, "1=-CLUSTERDOWN"));
}
END_TEST

static uint32_t count_calls(void) {
    uint32_t count = 0;
    for (const char *at = calls; (at = strchr(at, 'r')) != NULL; at++) count++;
    calls[0] = '\0';
    return count;
}

/* Replies may be as long as a value: no more of them are asked for than a link holds, and no more made in one turn. */
START_TEST(long_replies_do_not_come_all_at_once) {
    static char value[1 << 20];
    for (uint64_t client = 1; client <= 60; client++) say(0, client, "GET a");
    say(0, 61, "LEASE.KEEPALIVE 5");
    router_pump(rt, 0, &b1);
    ck_assert_ptr_nonnull(strstr(calls, "KEEPALIVE"));
    ck_assert_uint_eq(count_calls(), 33);
    for (uint64_t seq = 1; seq <= 8; seq++) router_read_reply(rt, seq, slice_of(value, sizeof value), false);
    router_pump(rt, 0, &b1);
    ck_assert_uint_eq(count_calls(), 0); /* enough for this turn */
    ck_assert_uint_eq(router_wake_at(rt), 0);
    for (uint64_t client = 1; client <= 8; client++) router_client_gone(rt, 0, client);
    router_flush(rt);
    router_pump(rt, 1, &b1);
    ck_assert_uint_eq(count_calls(), 8);
    ck_assert_uint_ne(router_wake_at(rt), 0);
}
END_TEST

/* A wait is forgotten with its dequeue: not each kind of wait is answered when it is ended for nobody. */
START_TEST(a_wait_that_was_left_costs_nothing) {
    say(0, 1, "ROUTE.GET p s LEASE 1");
    router_pump(rt, 0, &b1);
    router_write_queued(rt, 10, 1);
    router_client_gone(rt, 20, 1);
    router_expire(rt, 1020);
    router_pump(rt, 1020, &b1);
    called("w1<0:ROUTE.GET w2<1:%DEQUEUE ");
    answer_write(2, "+OK\r\n");
    replied("");
    ck_assert_uint_eq(router_pending(rt), 0);
}
END_TEST

/* ---- what this node answers itself ---- */

START_TEST(own_reads_need_no_leader) {
    say_to(true, 0, 1, "GET a");
    say(0, 2, "GET b");
    router_pump_own(rt, 0);
    router_pump(rt, 0, NULL);
    called("o1:GET ");
    router_read_reply(rt, 1, slice_str("+one\r\n"), false);
    replied("1=+one ");
    router_reads_again(rt); /* it is not asked again: it is answered */
    router_pump(rt, 0, &b1);
    router_pump_own(rt, 0);
    called("r2:GET ");
}
END_TEST

START_TEST(own_reads_keep_the_order_of_their_client) {
    say(0, 1, "SET a 1");
    say_to(true, 0, 1, "GET a");
    router_pump_own(rt, 0);
    router_pump(rt, 0, &b1);
    called("w1<0:SET "); /* the read waits for the write */
    answer_write(1, "+OK\r\n");
    router_pump_own(rt, 0);
    called("o1:GET ");
    router_read_reply(rt, 1, slice_str("+1\r\n"), false);
    replied("1=+OK 1=+1 ");
}
END_TEST

START_TEST(waitrev_keeps_the_rest_back) {
    say_to(true, 0, 1, "WAITREV 5 3000");
    say_to(true, 0, 1, "GET a");
    say(0, 1, "SET a 1");
    router_pump_own(rt, 0);
    called("o1:WAITREV ");
    router_wait_revision(rt, 1, 5, 3000);
    ck_assert_uint_eq(router_wake_at(rt), 3000);
    router_revision(rt, 2999, 4);
    router_pump_own(rt, 2999);
    router_pump(rt, 2999, &b1);
    called("");
    router_revision(rt, 2999, 6);
    replied("1=:6 ");
    router_pump_own(rt, 2999);
    router_pump(rt, 2999, &b1);
    called("o2:GET ");
    router_read_reply(rt, 2, slice_str("+1\r\n"), false);
    router_pump(rt, 2999, &b1);
    called("w1<0:SET ");
}
END_TEST

START_TEST(waitrev_has_an_end) {
    say_to(true, 0, 1, "WAITREV 5 20000");
    say(0, 1, "GET a");
    router_pump_own(rt, 0);
    calls[0] = '\0';
    router_wait_revision(rt, 1, 5, 20000);
    router_expire(rt, 19999); /* longer than forward-timeout, which stands still for what is behind it */
    router_revision(rt, 19999, 4);
    replied("");
    router_revision(rt, 20000, 4);
    replied("1=$-1 ");
    router_pump(rt, 20000, &b1);
    called("r2:GET ");
    router_expire(rt, 29999);
    replied("");
    router_expire(rt, 30000);
    ck_assert_int_eq(strncmp((router_flush(rt), out), "1=-CLUSTERDOWN", 14), 0);
}
END_TEST

START_TEST(who_leaves_waits_for_no_revision) {
    say_to(true, 0, 1, "WAITREV 5 20000");
    router_pump_own(rt, 0);
    router_wait_revision(rt, 1, 5, 20000);
    router_client_gone(rt, 1, 1);
    router_revision(rt, 2, 9);
    router_read_reply(rt, 1, slice_str("+x\r\n"), false);
    router_wait_revision(rt, 1, 5, 20000);
    replied("");
    ck_assert_uint_eq(router_pending(rt), 0);
}
END_TEST

/* ---- a refusal that the log does not carry ---- */

START_TEST(a_refused_write_is_answered_once) {
    say(0, 1, "SET a 1");
    router_pump(rt, 0, &b1);
    calls[0] = '\0';
    router_write_refused(rt, 1, b2, slice_str("-DISKFULL b\r\n")); /* not the one it was sent to */
    replied("");
    router_write_refused(rt, 1, b1, slice_str("-DISKFULL a\r\n"));
    router_write_refused(rt, 1, b1, slice_str("-DISKFULL c\r\n"));
    replied("1=-DISKFULL a ");
    say(0, 1, "SET a 2");
    router_write_refused(rt, 2, b1, slice_str("-DISKFULL d\r\n")); /* nobody has it yet */
    replied("");
}
END_TEST

/* ---- a snapshot was installed (N6) ---- */

#define uncertain "-UNCERTAIN this node caught up by a snapshot; the command may have run"

START_TEST(what_a_snapshot_jumped_over_is_uncertain) {
    say(0, 1, "SET a 1");                       /* 1: out, fate unknown */
    say(0, 2, "LOCK.ACQUIRE l LEASE 3 WAIT 9"); /* 2: ran, waits, and does so in the new state */
    say(0, 3, "LOCK.ACQUIRE m LEASE 3 WAIT 9"); /* 3: ran and waited; not any more */
    say(0, 4, "LOCK.ACQUIRE n LEASE 3 WAIT 9"); /* 4: out; it waits, as the new state tells */
    router_pump(rt, 0, &b1);
    router_write_queued(rt, 0, 2);
    router_write_queued(rt, 0, 3);
    say(0, 5, "SET b 1"); /* 5: not out */
    say(0, 6, "GET c");
    calls[0] = '\0';
    router_install_wait(rt, 2);
    router_install_wait(rt, 4);
    router_install_wait(rt, 99);
    router_installed(rt, 100);
    replied("3=" uncertain " 1=" uncertain " ");
    router_first(rt, b2); /* and what was jumped over is not sent again */
    router_pump(rt, 100, &b2);
    called("w5<0:SET r1:GET ");
    router_write_reply(rt, 1, slice_str("+OK\r\n")); /* nor answered twice */
    router_write_reply(rt, 4, slice_str(":4\r\n"));
    router_write_reply(rt, 2, slice_str(":2\r\n"));
    replied("2=:2 4=:4 ");
}
END_TEST

START_TEST(places_in_queues_are_given_up_across_a_snapshot) {
    say(0, 1, "LOCK.ACQUIRE l LEASE 3 WAIT 9");
    say(0, 2, "LOCK.ACQUIRE m LEASE 3 WAIT 9");
    say(0, 3, "SET a 1");
    router_pump(rt, 0, &b1);
    router_write_queued(rt, 0, 1);
    router_write_queued(rt, 0, 2);
    for (uint64_t client = 1; client < 4; client++) router_client_gone(rt, 0, client);
    router_expire(rt, 1000);
    calls[0] = '\0';
    router_pump(rt, 1000, &b1);
    called("w4<3:%DEQUEUE w5<4:%DEQUEUE ");
    router_install_wait(rt, 1); /* one still stands in its queue, the other does not */
    router_installed(rt, 1000);
    ck_assert_uint_eq(router_pending(rt), 2);
    router_pump(rt, 1000, &b1);
    called("w6<0:%DEQUEUE ");
    answer_write(6, "+OK\r\n");
    ck_assert_uint_eq(router_pending(rt), 0);
    replied("");
}
END_TEST

/* ---- limits, and ends ---- */

static void say_long(uint64_t client, size_t bytes) {
    static char value[1 << 20];
    const struct slice argv[] = {slice_str("SET"), slice_str("a"), slice_of(value, bytes)};
    router_add(rt, 0, client, command_find(argv[0], false), 3, argv);
}

START_TEST(what_waits_has_a_limit_in_bytes) {
    say_long(1, 600000);
    ck_assert(router_room(rt, 1));
    say_long(1, 600000);
    ck_assert(!router_room(rt, 1)); /* of one client */
    ck_assert(router_room(rt, 2));
    say(0, 2, "GET a"); /* of all of them */
    replied("2=-BUSY too many commands are waiting in this node; the limit is queue-bytes-max ");
    router_pump(rt, 0, &b1);
    answer_write(1, "+OK\r\n");
    replied("1=+OK ");
    say(0, 2, "GET a");
    replied("");
    ck_assert_uint_eq(router_pending(rt), 2);
}
END_TEST

START_TEST(who_quits_is_hung_up_after_its_replies) {
    say(0, 1, "SET a 1");
    router_answered(rt, 1, slice_str("+OK\r\n"), true);
    router_pump(rt, 0, &b1);
    replied("");
    answer_write(1, "+one\r\n");
    replied("1=+one 1=+OK bye ");
}
END_TEST

/* Several have replies to be handed out, and one of them leaves. */
START_TEST(who_has_left_gets_no_reply) {
    for (uint64_t client = 1; client <= 3; client++) router_answered(rt, client, slice_str("+OK\r\n"), false);
    router_client_gone(rt, 0, 2);
    router_client_gone(rt, 0, 9); /* unknown */
    router_flush(rt);
    ck_assert_ptr_nonnull(strstr(out, "1=+OK "));
    ck_assert_ptr_nonnull(strstr(out, "3=+OK "));
    ck_assert_ptr_null(strstr(out, "2=+OK "));
    ck_assert_uint_eq(router_pending(rt), 0);
}
END_TEST

/* Own reads are answered inside the call; there too a turn makes so much and no more. */
START_TEST(long_own_replies_do_not_come_all_at_once) {
    for (uint64_t client = 1; client <= 20; client++) say_to(true, 0, client, "GET a");
    at_once = true;
    router_pump_own(rt, 0);
    ck_assert_uint_eq(own_calls, 5); /* the fifth is over four megabytes */
    ck_assert_uint_eq(router_wake_at(rt), 0);
    router_flush(rt);
    router_pump_own(rt, 0);
    ck_assert_uint_eq(own_calls, 10);
    router_flush(rt);
    for (int turn = 0; turn < 2; turn++) {
        router_pump_own(rt, 0);
        router_flush(rt);
    }
    ck_assert_uint_eq(own_calls, 20);
    ck_assert_uint_eq(router_pending(rt), 0);
}
END_TEST

START_TEST(a_wait_that_names_no_time_ends_with_the_timeout) {
    say(0, 1, "LOCK.ACQUIRE l LEASE 1 WAIT x");
    router_pump(rt, 0, &b1);
    router_write_queued(rt, 0, 1);
    router_write_queued(rt, 5000, 1); /* told twice: it counts from the first */
    router_expire(rt, 9999);
    replied("");
    router_expire(rt, 11000);
    replied("1=-UNCERTAIN no answer within forward-timeout (10000 ms); the command may have run ");
}
END_TEST

START_TEST(an_older_first_entry_proves_nothing) {
    say(0, 1, "SET a 1");
    router_pump(rt, 0, &b2);
    called("w1<0:SET ");
    router_first(rt, b1);
    router_first(rt, b2); /* that it is sent under */
    router_expire(rt, 10000);
    replied("1=-UNCERTAIN no answer within forward-timeout (10000 ms); the command may have run ");
}
END_TEST

START_TEST(a_candidate_that_leaves_gives_up_its_place) {
    say(0, 1, "ELECT.CAMPAIGN e LEASE 1 v WAIT 60000");
    router_pump(rt, 0, &b1);
    calls[0] = '\0';
    router_client_gone(rt, 0, 1); /* before it was told that it waits */
    router_write_queued(rt, 100, 1);
    router_expire(rt, 1099);
    router_pump(rt, 1099, &b1);
    called("");
    router_expire(rt, 1100);
    router_pump(rt, 1100, &b1);
    called("w2<1:%DEQUEUE ");
    ck_assert_str_eq(first_word, "e");
}
END_TEST

START_TEST(the_nearest_of_several_ends_wakes) {
    say_to(true, 0, 1, "WAITREV 5 5000");
    say_to(true, 0, 2, "WAITREV 6 3000");
    say_to(true, 0, 3, "WAITREV 7 4000");
    router_pump_own(rt, 0);
    router_wait_revision(rt, 1, 5, 5000);
    router_wait_revision(rt, 2, 6, 3000);
    router_wait_revision(rt, 3, 7, 4000);
    ck_assert_uint_eq(router_wake_at(rt), 3000);
    router_revision(rt, 3000, 4);
    replied("2=$-1 ");
    router_revision(rt, 3500, 7);
    router_flush(rt);
    ck_assert_ptr_nonnull(strstr(out, "1=:7 "));
    ck_assert_ptr_nonnull(strstr(out, "3=:7 "));
    ck_assert_uint_eq(router_wake_at(rt), UINT64_MAX);
}
END_TEST

/* What has not even begun is refused with the rest, in its place. */
START_TEST(an_outcast_refuses_what_has_not_begun) {
    say_to(true, 0, 1, "WAITREV 5 3000");
    say(0, 1, "SET a 1");
    router_refuse(rt, "CLUSTERDOWN not ours");
    router_refuse(rt, NULL); /* a member again */
    say(0, 1, "GET a");
    replied("");
    router_pump_own(rt, 0);
    router_wait_revision(rt, 1, 5, 3000);
    router_revision(rt, 3000, 4);
    router_pump(rt, 3000, &b1);
    called("o1:WAITREV r2:GET ");
    replied("1=$-1 1=-CLUSTERDOWN not ours ");
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("router");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, replies_keep_the_order_of_commands);
    tcase_add_test(tc, a_read_waits_for_the_writes_before_it);
    tcase_add_test(tc, a_wait_for_a_lock_holds_the_rest_back);
    tcase_add_test(tc, a_once_is_treated_as_what_it_carries);
    tcase_add_test(tc, nothing_goes_out_without_a_leader_and_times_out_as_not_run);
    tcase_add_test(tc, what_is_out_times_out_as_uncertain);
    tcase_add_test(tc, a_new_ballot_alone_proves_nothing);
    tcase_add_test(tc, after_proof_a_timeout_is_not_uncertain);
    tcase_add_test(tc, a_remade_link_says_all_of_it_again_in_order);
    tcase_add_test(tc, a_client_that_leaves_gives_up_its_place_by_name);
    tcase_add_test(tc, a_client_may_have_so_much_waiting_and_no_more);
    tcase_add_test(tc, an_outcast_refuses_at_once);
    tcase_add_test(tc, an_outcast_says_of_what_is_out_that_it_may_have_run);
    tcase_add_test(tc, what_stands_behind_a_wait_is_not_late);
    tcase_add_test(tc, long_replies_do_not_come_all_at_once);
    tcase_add_test(tc, a_wait_that_was_left_costs_nothing);
    Suite *suite = suite_create("router");
    tcase_add_test(tc, own_reads_need_no_leader);
    tcase_add_test(tc, own_reads_keep_the_order_of_their_client);
    tcase_add_test(tc, waitrev_keeps_the_rest_back);
    tcase_add_test(tc, waitrev_has_an_end);
    tcase_add_test(tc, who_leaves_waits_for_no_revision);
    tcase_add_test(tc, a_refused_write_is_answered_once);
    tcase_add_test(tc, what_a_snapshot_jumped_over_is_uncertain);
    tcase_add_test(tc, places_in_queues_are_given_up_across_a_snapshot);
    tcase_add_test(tc, what_waits_has_a_limit_in_bytes);
    tcase_add_test(tc, who_quits_is_hung_up_after_its_replies);
    tcase_add_test(tc, who_has_left_gets_no_reply);
    tcase_add_test(tc, long_own_replies_do_not_come_all_at_once);
    tcase_add_test(tc, a_wait_that_names_no_time_ends_with_the_timeout);
    tcase_add_test(tc, an_older_first_entry_proves_nothing);
    tcase_add_test(tc, a_candidate_that_leaves_gives_up_its_place);
    tcase_add_test(tc, the_nearest_of_several_ends_wakes);
    tcase_add_test(tc, an_outcast_refuses_what_has_not_begun);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
