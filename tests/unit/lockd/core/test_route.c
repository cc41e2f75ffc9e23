/* Bindings through whole batches: who is told what, what a move waits for, what is refused.  Guards V1-V7 of route.h;
 * first as stories, then a random walk of leases, holders and moves against a model of what each lease was told. */
#include "tests/unit/lockd/core/ks_story.h"
#include "lockd/core/route.h"

/* Leases 1, 2 and 3: the first three revisions. */
static void three_leases(void) {
    at(1000);
    SAYS("LEASE.GRANT 5000", "1");
    SAYS("LEASE.GRANT 5000", "2");
    SAYS("LEASE.GRANT 5000", "3");
}
#define BIND(session, lease) "ROUTE.BIND p " session " LEASE " lease " a PREFER a b c"

/* What a proxy would be told by NEXT. */
static const char *revoked(uint64_t lease) {
    struct buf reply = {.alloc = heap_alloc()};
    uint64_t serial = 0;
    const uint32_t count = route_revocations(keyspace_route(ks), lease, &reply, &serial);
    struct buf whole = {.alloc = heap_alloc()};
    resp_array(&whole, 3 * count);
    buf_append_slice(&whole, buf_slice(&reply));
    buf_clear(&story_text);
    buf_printf(&story_text, "%llu ", (unsigned long long)serial);
    story_show_reply(&story_text, buf_slice(&whole));
    buf_append(&story_text, "", 1);
    buf_release(&whole);
    buf_release(&reply);
    return story_text.data;
}
#define REVOKED(lease, want) ck_assert_str_eq(revoked(lease), want)

static void name_holder(void *context, uint64_t asked, uint64_t lease) {
    buf_printf(context, "%llu:%llu ", (unsigned long long)asked, (unsigned long long)lease);
}
static const char *stalls(uint64_t asked) {
    buf_clear(&story_text);
    if (asked == 0) {
        route_each_stall(keyspace_route(ks), name_holder, &story_text);
    } else {
        route_each_holder(keyspace_route(ks), asked, name_holder, &story_text);
    }
    buf_append(&story_text, "", 1);
    return story_text.data;
}
#define STALLS(asked, want) ck_assert_str_eq(stalls(asked), want)

START_TEST(the_first_bind_decides) {
    three_leases();
    SAYS("ROUTE.GET p s LEASE 1", "nil");
    SAYS("ROUTE.BIND p s LEASE 1 b PREFER a b", "[\"b\" 5 5 1 \"a\" \"b\"]");
    SAYS("ROUTE.BIND p s LEASE 2 c PREFER c d e", "[\"b\" 5 6 0 \"a\" \"b\"]");
    SAYS("ROUTE.GET p s LEASE 3", "[\"b\" 5 7 0 \"a\" \"b\"]");
    SAYS("ROUTE.GET q s LEASE 3", "nil"); /* another pool, another session */
    SAYS("ROUTE.GET p S LEASE 3", "nil");
    SAYS("ROUTE.GET ps '' LEASE 3", "-ERR session is empty");
    SAYS("ROUTE.BIND '' s LEASE 3 a PREFER a", "-ERR pool is empty");
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 1), 1);
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 3), 1);
    ck_assert_uint_eq(route_binding_count(keyspace_route(ks)), 1);
    SAYS("ROUTE.BIND ps x LEASE 3 a PREFER a", "[\"a\" 12 12 1 \"a\"]"); /* ("p", "sx") and ("ps", "x") differ */
    SAYS("ROUTE.GET p sx LEASE 3", "nil");
}
END_TEST

static const struct {
    const char *line, *want;
} wrong[] = {
    {"ROUTE.BIND p s LEASE 1 a PREFER b", "-ERR backend 'a' is not among those after PREFER"},
    {"ROUTE.BIND p s LEASE 1 a PREFER a b a", "-ERR backend 'a' is given twice after PREFER"},
    {"ROUTE.BIND p s LEASE 1 a PREFERS a", "-ERR syntax error, PREFER expected after the first backend"},
    {"ROUTE.BIND p s LEASE 1 a PREFER a ''", "-ERR backend is empty"},
    {"ROUTE.BIND p s LEASE 9 a PREFER a", "-NOLEASE lease 9 does not exist or has ended"},
    {"ROUTE.BIND p s LEASE x a PREFER a", "-ERR LEASE must be an integer from 0 to 9223372036854775807, not 'x'"},
    {"ROUTE.BIND p s LEES 1 a PREFER a", "-ERR syntax error"},
    {"ROUTE.GET p s LEASE 0", "-NOLEASE lease 0 does not exist or has ended"},
    {"ROUTE.MOVE p nobody 1 LEASE 1 b", "-ERR no such session"},
    {"ROUTE.MOVE p t -1 LEASE 1 b", "-ERR epoch must be an integer from 0 to 18446744073709551615, not '-1'"},
    {"ROUTE.MOVE p t 4 LEASE 1 b HARD", "-ERR syntax error, only FORCE may follow the target"},
    {"ROUTE.MOVE p t 4 LEASE 1 b FORCE FORCE", "-ERR syntax error, only FORCE may follow the target"},
    {"ROUTE.MOVE p t 4 LEASE 1 z FORCE", "-ERR target 'z' is not in the shard of that session"},
    {"ROUTE.MOVE p t 4 LEASE 1 '' FORCE", "-ERR target is empty"},
    {"ROUTE.MOVE p t 4 LEASE 1 b", "-ERR backend in service"},
    {"ROUTE.DROP p t x LEASE 1", "-ERR epoch must be an integer from 0 to 18446744073709551615, not 'x'"},
    {"ROUTE.DROP p t 4 LEASE 9", "-NOLEASE lease 9 does not exist or has ended"},
    {"ROUTE.TOUCH p LEASE 9 t", "-NOLEASE lease 9 does not exist or has ended"},
    {"ROUTE.TOUCH p LEASE 1 t ''", "-ERR session is empty"},
    {"ROUTE.SUSPECT p a 1 LEASE 1", "-ERR epoch is not that of the backend: a static backend has epoch 0"},
    {"ROUTE.SUSPECT p '' 0 LEASE 1", "-ERR backend is empty"},
    {"ROUTE.SUSPECT p a 0 LEASE 9", "-NOLEASE lease 9 does not exist or has ended"},
    {"%ROUTE_ACK x 1", "-ERR lease must be an integer from 0 to 18446744073709551615, not 'x'"},
    {"%ROUTE_PASSED 1 x", "-ERR lease must be an integer from 0 to 18446744073709551615, not 'x'"},
    {"%ROUTE_PASSED 1 2 3", "OK"}, /* an odd one names nobody */
    {"%ROUTE_JOIN 99", "OK"},
    {"%ROUTE_ACK 99 99", "OK"},
};
START_TEST(refused_and_nothing_happened) {
    three_leases();
    SAYS(BIND("t", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(wrong[_i].line, wrong[_i].want);
    SAYS("ROUTE.GET p s LEASE 2", "nil");
    SAYS("ROUTE.GET p t LEASE 2", "[\"a\" 4 7 0 \"a\" \"b\" \"c\"]");
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 1), 1);
    ck_assert(!route_joined(keyspace_route(ks), 99));
}
END_TEST

static void bind_with_shard(char *line, size_t bytes, int count) {
    size_t at_ = (size_t)snprintf(line, bytes, "ROUTE.BIND p s LEASE 1 b0 PREFER");
    for (int i = 0; i < count; i++) at_ += (size_t)snprintf(line + at_, bytes - at_, " b%d", i);
}

START_TEST(names_have_limits) {
    three_leases();
    char line[1024] = "ROUTE.GET p ";
    const size_t at_ = strlen(line);
    memset(line + at_, 'x', 501);
    memcpy(line + at_ + 501, " LEASE 1", 9);
    SAYS(line, "-ERR session is too long: 501 bytes, key-bytes-max is 500");
    memmove(line + at_ + 500, line + at_ + 501, 9);
    SAYS(line, "nil");
    bind_with_shard(line, sizeof line, ROUTE_SHARD_MAX);
    ck_assert_int_eq(strncmp(answer_of(line), "[\"b0\" 6 6 1 \"b0\" \"b1\"", 21), 0);
    bind_with_shard(line, sizeof line, ROUTE_SHARD_MAX + 1);
    SAYS(line, "-ERR too many backends after PREFER: 65 given, at most 64");
}
END_TEST

START_TEST(a_move_of_the_only_holder_is_done_at_once) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 1 c FORCE", "#5 [\"c\" 5 5 1 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 2 b FORCE", "#6 [\"c\" 5 6 0 \"a\" \"b\" \"c\"]"); /* too late: learns and holds */
    FACTS("ROUTE.MOVE p s 5 LEASE 2 c FORCE", "#7 [\"c\" 5 7 0 \"a\" \"b\" \"c\"]"); /* there already */
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 1), 1);
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 2), 1);
    SAYS("ROUTE.DROP p s 5 LEASE 1", "1");
    SAYS("ROUTE.DROP p s 5 LEASE 2", "1");
    FACTS("ROUTE.MOVE p s 5 LEASE 3 b FORCE", "#10 [\"b\" 10 10 1 \"a\" \"b\" \"c\"]"); /* nobody held it */
}
END_TEST

/* The whole story: two proxies hold, one moves, the other's calls and a third's wait in line. */
START_TEST(a_move_waits_for_the_other_holder) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("s", "2"), "[\"a\" 4 5 0 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 1 b FORCE", "asked 6; #6 queued");
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 1), 0); /* the mover let go when the command was taken */
    REVOKED(1, "0 []");
    REVOKED(2, "6 [\"p\" \"s\" 4]");
    REVOKED(3, "0 []");
    STALLS(0, "6:2 ");
    STALLS(6, "6:2 ");
    STALLS(5, "");
    FACTS("ROUTE.GET p s LEASE 3", "#7 queued");
    FACTS(BIND("s", "1"), "#8 queued");
    FACTS("ROUTE.TOUCH p LEASE 3 x s", "#9 queued");
    FACTS("ROUTE.MOVE p s 4 LEASE 3 c FORCE", "#10 queued");
    FACTS("ROUTE.MOVE p s 3 LEASE 2 c FORCE", "#11 queued"); /* another epoch: lease 2 still holds 4 */
    SAYS("ROUTE.TOUCH p LEASE 3 x", "[0]");                  /* other sessions wait for nobody */
    ck_assert_uint_eq(route_waiter_count(keyspace_route(ks)), 6);
    FACTS("%ROUTE_ACK 2 5", "#13 OK"); /* an older serial lets go of nothing */
    ck_assert(route_ack_pending(keyspace_route(ks), 2, 6));
    ck_assert(!route_ack_pending(keyspace_route(ks), 2, 5));
    FACTS("ROUTE.MOVE p s 15 LEASE 3 c FORCE", "#14 queued"); /* guesses the next epoch: that is no move either */
    FACTS("%ROUTE_ACK 2 6", "done 6; #6 [\"b\" 15 15 1 \"a\" \"b\" \"c\"]; #7 [\"b\" 15 15 0 \"a\" \"b\" \"c\"]; "
                            "#8 [\"b\" 15 15 0 \"a\" \"b\" \"c\"]; #9 [0 15]; #10 [\"b\" 15 15 0 \"a\" \"b\" \"c\"]; "
                            "#11 [\"b\" 15 15 0 \"a\" \"b\" \"c\"]; #14 [\"b\" 15 15 0 \"a\" \"b\" \"c\"]; #15 OK");
    ck_assert_uint_eq(route_waiter_count(keyspace_route(ks)), 0);
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 1), 1);
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 3), 1);
    REVOKED(2, "0 []");
    STALLS(0, "");
}
END_TEST

/* Every other way in which a holder lets go. */
static const struct {
    const char *line;
} ends[] = {
    {"ROUTE.DROP p s 4 LEASE 2"}, {"LEASE.REVOKE 2"}, {"%EXPIRE 2"}, {"%ROUTE_PASSED 6 2"}, {"%ROUTE_ACK 2 99"},
};
START_TEST(a_holder_lets_go) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("s", "2"), "[\"a\" 4 5 0 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 1 b FORCE", "asked 6; #6 queued");
    FACTS("ROUTE.DROP p s 3 LEASE 2", "#7 0"); /* another epoch, another lease, another move: nothing */
    FACTS("ROUTE.DROP p s 4 LEASE 3", "#8 0");
    FACTS("%ROUTE_PASSED 5 2 6 3 6 1", "#9 OK");
    const char *facts = facts_of(ends[_i].line);
    ck_assert_ptr_nonnull(strstr(facts, "done 6; #6 [\"b\" 10 10 1 \"a\" \"b\" \"c\"]"));
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 2), 0);
}
END_TEST

START_TEST(a_move_that_comes_second_may_end_the_first) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("s", "2"), "[\"a\" 4 5 0 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 1 b FORCE", "asked 6; #6 queued");
    /* It has seen the end of epoch 4 as well: it gets the winner's. */
    FACTS("ROUTE.MOVE p s 4 LEASE 2 c FORCE",
          "done 6; #6 [\"b\" 7 7 1 \"a\" \"b\" \"c\"]; #7 [\"b\" 7 7 0 \"a\" \"b\" \"c\"]");
    SAYS("ROUTE.GET p s LEASE 3", "[\"b\" 7 8 0 \"a\" \"b\" \"c\"]");
    /* With three holders it waits, without its hold. */
    FACTS("ROUTE.MOVE p s 7 LEASE 3 a FORCE", "asked 9; #9 queued");
    STALLS(9, "9:1 9:2 ");
    FACTS("ROUTE.MOVE p s 7 LEASE 2 c FORCE", "#10 queued");
    STALLS(9, "9:1 ");
    FACTS("ROUTE.DROP p s 7 LEASE 1",
          "done 9; #9 [\"a\" 11 11 1 \"a\" \"b\" \"c\"]; #10 [\"a\" 11 11 0 \"a\" \"b\" \"c\"]; #11 1");
}
END_TEST

START_TEST(who_died_gets_no_binding) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("s", "2"), "[\"a\" 4 5 0 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 1 b FORCE", "asked 6; #6 queued");
    FACTS("ROUTE.GET p s LEASE 3", "#7 queued");
    FACTS("ROUTE.GET p s LEASE 2", "#8 queued"); /* asks again before it has seen the revocation */
    FACTS("%EXPIRE 1", "lease- 1; #9 1");        /* the move goes on without the mover */
    FACTS("%EXPIRE 2 3",                         /* 2 ends the move; 3 gets the binding and loses it with its lease */
          "done 6; #6 -NOLEASE lease 1 does not exist or has ended; #7 [\"b\" 10 10 0 \"a\" \"b\" \"c\"]; "
          "#8 -NOLEASE lease 2 does not exist or has ended; lease- 2; lease- 3; #10 2");
    SAYS("LEASE.GRANT 5000", "11");
    SAYS("ROUTE.GET p s LEASE 11", "[\"b\" 10 12 0 \"a\" \"b\" \"c\"]");
    ck_assert(!route_joined(keyspace_route(ks), 1) && !route_joined(keyspace_route(ks), 2));
}
END_TEST

START_TEST(an_acknowledgement_covers_all_moves_up_to_its_serial) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("t", "1"), "[\"a\" 5 5 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("u", "1"), "[\"a\" 6 6 1 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p t 5 LEASE 2 b FORCE", "asked 7; #7 queued");
    FACTS("ROUTE.MOVE p s 4 LEASE 2 b FORCE", "asked 8; #8 queued");
    REVOKED(1, "8 [\"p\" \"t\" 5 \"p\" \"s\" 4]");
    FACTS("ROUTE.MOVE p u 6 LEASE 3 b FORCE", "asked 9; #9 queued");
    STALLS(0, "7:1 8:1 9:1 ");
    FACTS("%ROUTE_ACK 1 8",
          "done 7; #7 [\"b\" 10 10 1 \"a\" \"b\" \"c\"]; done 8; #8 [\"b\" 10 10 1 \"a\" \"b\" \"c\"]; #10 OK");
    REVOKED(1, "9 [\"p\" \"u\" 6]");
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 1), 1);
}
END_TEST

/* A proxy whose limit has passed while its lease lives on may still believe: it is told until it says that it knows. */
START_TEST(what_was_taken_is_named_until_acknowledged) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("t", "1"), "[\"a\" 5 5 1 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 2 b FORCE", "asked 6; #6 queued");
    FACTS("%ROUTE_PASSED 6 1", "done 6; #6 [\"b\" 7 7 1 \"a\" \"b\" \"c\"]; #7 OK");
    REVOKED(1, "6 [\"p\" \"s\" 4]");
    ck_assert(route_ack_pending(keyspace_route(ks), 1, 6));
    FACTS("ROUTE.MOVE p t 5 LEASE 3 b FORCE", "asked 8; #8 queued");
    REVOKED(1, "8 [\"p\" \"s\" 4 \"p\" \"t\" 5]");
    SAYS("ROUTE.GET p s LEASE 1", "[\"b\" 7 9 0 \"a\" \"b\" \"c\"]"); /* a newer one, which stays */
    FACTS("%ROUTE_ACK 1 6", "#10 OK");
    REVOKED(1, "8 [\"p\" \"t\" 5]");
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 1), 2);
    FACTS("%ROUTE_PASSED 8 1", "done 8; #8 [\"b\" 11 11 1 \"a\" \"b\" \"c\"]; #11 OK");
    FACTS("%EXPIRE 1", "lease- 1; #12 1");
    REVOKED(1, "0 []");
}
END_TEST

START_TEST(a_touch_may_wait_for_one_session_after_another) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("t", "1"), "[\"a\" 5 5 1 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 2 b FORCE", "asked 6; #6 queued");
    FACTS("ROUTE.MOVE p t 5 LEASE 2 b FORCE", "asked 7; #7 queued");
    FACTS("ROUTE.TOUCH p LEASE 3 s t", "#8 queued");
    FACTS("ROUTE.DROP p s 4 LEASE 1", "done 6; #6 [\"b\" 9 9 1 \"a\" \"b\" \"c\"]; #9 1"); /* #8 waits for t now */
    ck_assert_uint_eq(route_waiter_count(keyspace_route(ks)), 2);
    FACTS("ROUTE.DROP p t 5 LEASE 1", "done 7; #7 [\"b\" 10 10 1 \"a\" \"b\" \"c\"]; #8 [9 10]; #10 1");
}
END_TEST

static uint32_t lives_seen;
static void count_life(void *context, uint16_t node, uint64_t boot) {
    (void)context, (void)node, (void)boot;
    lives_seen++;
}
START_TEST(who_went_away_is_not_answered) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("s", "2"), "[\"a\" 4 5 0 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 1 b FORCE", "asked 6; #6 queued");
    FACTS("ROUTE.GET p s LEASE 1", "#7 queued");
    origin_is(1, 77);
    FACTS("ROUTE.GET p s LEASE 3", ""); /* another node's client */
    origin_is(0, 1);
    FACTS("ROUTE.GET p s LEASE 3", "#9 queued");
    route_each_attachment(keyspace_route(ks), count_life, NULL);
    ck_assert_uint_eq(lives_seen, 2);
    FACTS("%DEQUEUE '' 0 1 6", "#10 OK"); /* the mover: that cancels nothing */
    FACTS("%DEQUEUE '' 0 1 6", "#11 OK");
    FACTS("%DEQUEUE '' 0 2 9", "#12 OK"); /* another life */
    FACTS("%ORIGIN_GONE 1 77", "#13 OK");
    ck_assert_uint_eq(route_waiter_count(keyspace_route(ks)), 2);
    FACTS("%ROUTE_ACK 2 6",
          "done 6; #7 [\"b\" 14 14 0 \"a\" \"b\" \"c\"]; #9 [\"b\" 14 14 0 \"a\" \"b\" \"c\"]; #14 OK");
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 3), 1);
    lives_seen = 0;
    route_each_attachment(keyspace_route(ks), count_life, NULL);
    ck_assert_uint_eq(lives_seen, 0);
}
END_TEST

START_TEST(who_was_only_cut_off_hears_that_the_wait_ended) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("s", "2"), "[\"a\" 4 5 0 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 1 b FORCE", "asked 6; #6 queued");
    FACTS("ROUTE.GET p s LEASE 3", "#7 queued");
    lives_seen = 0;
    keyspace_each_attachment(ks, count_life, NULL);
    ck_assert_uint_eq(lives_seen, 1);
    FACTS("%ORIGIN_GONE 0 1", "#6 -UNCERTAIN the wait ended: the node lost contact with the leader; the move goes on; "
                              "#7 -CLUSTERDOWN the wait ended: the node lost contact with the leader; #8 OK");
    FACTS("%ROUTE_ACK 2 6", "done 6; #9 OK"); /* and it does */
    SAYS("ROUTE.GET p s LEASE 3", "[\"b\" 9 10 0 \"a\" \"b\" \"c\"]");
}
END_TEST

START_TEST(more_than_half_of_the_joined_must_suspect) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS("ROUTE.SUSPECT p a 0 LEASE 1", "[1 1]");
    SAYS("ROUTE.SUSPECT p a 0 LEASE 1", "[1 1]"); /* said again, counted once */
    SAYS("%ROUTE_JOIN 2", "OK");
    SAYS("ROUTE.MOVE p s 4 LEASE 1 b", "-ERR backend in service"); /* half is not more than half */
    SAYS("ROUTE.SUSPECT p b 0 LEASE 2", "[1 2]");                  /* another backend */
    SAYS("ROUTE.SUSPECT q a 0 LEASE 2", "[1 2]");                  /* another pool */
    SAYS("ROUTE.MOVE p s 4 LEASE 1 b", "-ERR backend in service");
    at(3500);
    SAYS("ROUTE.SUSPECT p a 0 LEASE 2", "[2 2]");
    SAYS("ROUTE.SUSPECT p a 0 LEASE 3", "[3 3]");
    at(4000); /* the report of lease 1 at 1000 is 3000 ms old: it counts no more */
    SAYS("ROUTE.MOVE p s 4 LEASE 1 b", "[\"b\" 14 14 1 \"a\" \"b\" \"c\"]");
    SAYS("ROUTE.SUSPECT p b 0 LEASE 3", "[1 3]");
    SAYS("ROUTE.SUSPECT p b 0 LEASE 2", "[2 3]");
    SAYS("%EXPIRE 2", "1"); /* its word goes with it */
    SAYS("ROUTE.MOVE p s 14 LEASE 1 c", "-ERR backend in service");
    at(6999);
    SAYS("ROUTE.SUSPECT p b 0 LEASE 1", "[2 2]");
    at(7000);
    SAYS("ROUTE.SUSPECT p b 0 LEASE 1", "[1 2]");
}
END_TEST

START_TEST(a_refused_move_keeps_the_hold) {
    three_leases();
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("s", "2"), "[\"a\" 4 5 0 \"a\" \"b\" \"c\"]");
    SAYS("ROUTE.MOVE p s 4 LEASE 1 b", "-ERR backend in service");
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 1), 1);
    SAYS("ROUTE.MOVE p s 3 LEASE 1 b", "[\"a\" 4 7 0 \"a\" \"b\" \"c\"]");
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 1), 1);
}
END_TEST

START_TEST(an_unheld_binding_is_forgotten_in_time) {
    at(1000);
    SAYS("%SETTINGS binding_memory_ms 10000", "OK");
    SAYS("LEASE.GRANT 5000", "2");
    SAYS(BIND("s", "2"), "[\"a\" 3 3 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("t", "2"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("u", "2"), "[\"a\" 5 5 1 \"a\" \"b\" \"c\"]");
    at(2000);
    SAYS("ROUTE.DROP p s 3 LEASE 2", "1");
    SAYS("ROUTE.DROP p t 4 LEASE 2", "1");
    at(11999); /* 9999 ms after the end of the last hold */
    SAYS("ROUTE.TOUCH p LEASE 2 t", "[4]");
    SAYS("PTTL x", "-2");
    ck_assert_uint_eq(route_binding_count(keyspace_route(ks)), 3);
    at(12000);
    SAYS("LEASE.REVOKE 999", "0");
    ck_assert_uint_eq(route_binding_count(keyspace_route(ks)), 2);
    SAYS("ROUTE.TOUCH p LEASE 2 s t u", "[0 4 5]");
    SAYS(BIND("s", "2"), "[\"a\" 11 11 1 \"a\" \"b\" \"c\"]"); /* epochs go on */
    SAYS("ROUTE.DROP p s 3 LEASE 2", "0");
    at(1000000);
    SAYS("LEASE.REVOKE 999", "0");
    ck_assert_uint_eq(route_binding_count(keyspace_route(ks)), 2); /* s and u are held */
    SAYS("%EXPIRE 2", "1");
    at(1009999);
    SAYS("LEASE.REVOKE 999", "0");
    ck_assert_uint_eq(route_binding_count(keyspace_route(ks)), 2);
    at(1010000);
    SAYS("LEASE.REVOKE 999", "0");
    ck_assert_uint_eq(route_binding_count(keyspace_route(ks)), 0);
}
END_TEST

START_TEST(a_stalling_binding_is_not_forgotten) {
    at(1000);
    SAYS("%SETTINGS binding_memory_ms 1000", "OK");
    SAYS("LEASE.GRANT 5000", "2");
    SAYS("LEASE.GRANT 5000", "3");
    SAYS(BIND("s", "2"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 3 b FORCE", "asked 5; #5 queued");
    at(9000000);
    SAYS("LEASE.REVOKE 999", "0");
    FACTS("%DEQUEUE '' 0 1 5", "#7 OK");
    FACTS("%ROUTE_ACK 2 5", "done 5; #8 OK"); /* nobody holds it now */
    at(9000999);
    SAYS("LEASE.REVOKE 999", "0");
    ck_assert_uint_eq(route_binding_count(keyspace_route(ks)), 1);
    SAYS("ROUTE.GET p s LEASE 2", "[\"b\" 8 10 0 \"a\" \"b\" \"c\"]");
}
END_TEST

START_TEST(limits_are_named) {
    at(1000);
    SAYS("%SETTINGS waiters_max 2 bindings_max 2", "OK");
    SAYS("LEASE.GRANT 5000", "2");
    SAYS("LEASE.GRANT 5000", "3");
    SAYS(BIND("s", "2"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("t", "2"), "[\"a\" 5 5 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("u", "2"), "-BUSY bindings-max is reached: 2 sessions are recorded");
    SAYS(BIND("s", "3"), "[\"a\" 4 7 0 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 4 LEASE 2 b FORCE", "asked 8; #8 queued");
    FACTS("ROUTE.GET p s LEASE 2", "#9 queued");
    FACTS("ROUTE.GET p s LEASE 2", "#10 -BUSY waiters-max is reached: 2 calls wait for the move of that session");
    /* The last holder is not refused: it ends the wait. */
    FACTS("ROUTE.MOVE p s 4 LEASE 3 b FORCE", "done 8; #8 [\"b\" 11 11 1 \"a\" \"b\" \"c\"]; "
                                              "#9 [\"b\" 11 11 0 \"a\" \"b\" \"c\"]; #11 [\"b\" 11 11 0 \"a\" \"b\" "
                                              "\"c\"]");
    SAYS("LEASE.GRANT 5000", "12");
    SAYS("ROUTE.GET p s LEASE 12", "[\"b\" 11 13 0 \"a\" \"b\" \"c\"]");
    FACTS("ROUTE.MOVE p s 11 LEASE 2 a FORCE", "asked 14; #14 queued");
    FACTS("ROUTE.GET p s LEASE 2", "#15 queued");
    FACTS("ROUTE.MOVE p s 11 LEASE 3 c FORCE",
          "#16 -BUSY waiters-max is reached: 2 calls wait for the move of that session");
    STALLS(14, "14:3 14:12 "); /* refused: its hold goes on */
}
END_TEST

START_TEST(memory_has_a_limit) {
    at(1000);
    SAYS("%SETTINGS memory_max 1048576", "OK");
    SAYS("LEASE.GRANT 5000", "2");
    char line[600], pad[401];
    memset(pad, 'x', 400);
    pad[400] = '\0';
    uint32_t bound = 0;
    for (int i = 0; i < 5000; i++) {
        snprintf(line, sizeof line, "ROUTE.BIND p %d%s LEASE 2 a PREFER a b", i, pad);
        const char *said = answer_of(line);
        if (said[0] == '[') bound++;
        QUICK(route_memory_bytes(keyspace_route(ks)) <= 1048576);
        if (said[0] != '[') ck_assert_ptr_nonnull(strstr(said, "-BUSY memory-max is reached: bindings take "));
    }
    ck_assert_uint_gt(bound, 1000);
    ck_assert_uint_lt(bound, 2600);
    snprintf(line, sizeof line, "ROUTE.DROP p 0%s 3 LEASE 2", pad);
    SAYS(line, "1");
    SAYS("%EXPIRE 2", "1");
}
END_TEST

START_TEST(holders_of_one_binding_have_a_limit) {
    at(1000);
    char line[100];
    SAYS("LEASE.GRANT 5000", "1");
    SAYS(BIND("s", "1"), "[\"a\" 2 2 1 \"a\" \"b\" \"c\"]");
    for (int i = 1; i < ROUTE_HOLDERS_MAX; i++) {
        const int id = atoi(answer_of("LEASE.GRANT 5000"));
        snprintf(line, sizeof line, "ROUTE.GET p s LEASE %d", id);
        QUICK(answer_of(line)[0] == '[');
    }
    const int id = atoi(answer_of("LEASE.GRANT 5000"));
    snprintf(line, sizeof line, "ROUTE.GET p s LEASE %d", id);
    SAYS(line, "-BUSY 1024 leases hold the binding of that session, no more may");
    SAYS("ROUTE.DROP p s 2 LEASE 1", "1");
    ck_assert_int_eq(answer_of(line)[0], '[');
}
END_TEST

/* A move that was taken is never refused: its hold has ended already. */
START_TEST(a_taken_move_is_not_refused_for_the_limit_of_holders) {
    three_leases();
    char line[100];
    SAYS(BIND("s", "1"), "[\"a\" 4 4 1 \"a\" \"b\" \"c\"]");
    SAYS(BIND("s", "2"), "[\"a\" 4 5 0 \"a\" \"b\" \"c\"]");
    SAYS(BIND("s", "3"), "[\"a\" 4 6 0 \"a\" \"b\" \"c\"]");
    SAYS("ROUTE.MOVE p s 4 LEASE 1 b FORCE", "queued");
    for (int i = 0; i < ROUTE_HOLDERS_MAX; i++) {
        snprintf(line, sizeof line, "ROUTE.GET p s LEASE %s", answer_of("LEASE.GRANT 5000"));
        QUICK(strcmp(answer_of(line), "queued") == 0);
    }
    SAYS("ROUTE.MOVE p s 4 LEASE 2 c FORCE", "queued");
    const char *facts = facts_of("ROUTE.DROP p s 4 LEASE 3");
    const uint64_t revision = keyspace_revision(ks);
    ck_assert_ptr_nonnull(strstr(facts, "-BUSY 1024 leases hold")); /* the last GET */
    snprintf(line, sizeof line, "#%llu [\"b\" %llu %llu 0 ", (unsigned long long)story_seq - 1,
             (unsigned long long)revision, (unsigned long long)revision);
    ck_assert_msg(strstr(facts, line) != NULL, "%s", facts);
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 2), 1);
}
END_TEST

START_TEST(scripts_may_not) {
    three_leases();
    const char *said = eval_of("EVAL", "return redis.call('ROUTE.GET', 'p', 's', 'LEASE', '1')", "0");
    ck_assert_msg(strstr(said, "-ERR") != NULL, "%s", said);
    ck_assert_uint_eq(route_holds(keyspace_route(ks), 1), 0);
}
END_TEST

/* ---- the random walk ---- */

enum {
    LEASES = 5,
    SESSIONS = 4,
    BACKENDS = 4,
    SHARD = 3,
    CALLS = 4096,
    STEPS = 3000,
    MEMORY_MS = 20000,
    WINDOW_MS = 3000
};

/* What a proxy believes, and so may serve from memory. */
struct belief {
    bool on;
    int backend;
    uint64_t epoch;
    uint64_t
        lost; /* it was taken away by that move, when its limit had passed, and the lease has not said that it knows */
};
struct session {
    bool recorded, stalled;
    int backend, target;
    uint64_t epoch, epoch_ever, asked, touched_ms;
};
enum call_kind { CALL_NONE, CALL_BIND, CALL_GET, CALL_MOVE, CALL_TOUCH };
struct call { /* one that was queued, by its sequence number */
    enum call_kind kind;
    int lease, session;
    uint64_t lease_id;
};

static struct keyspace *other; /* the same log on another node */
static struct {
    uint64_t random;
    int seed, step;
    uint64_t lease_ids[LEASES]; /* 0: none */
    bool joined[LEASES];
    uint64_t suspected_ms[LEASES][BACKENDS]; /* UINT64_MAX: never */
    struct belief beliefs[LEASES][SESSIONS];
    struct session sessions[SESSIONS];
    struct call calls[CALLS];
    uint32_t replies, moves_done, moves_stalled, refused, forgotten, nolease;
} world;

#define WALK(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            ck_abort_msg("%s at step %d; repeat with ROUTE_SEED=%d test_route", #condition, world.step, world.seed);   \
    } while (0)

static uint32_t dice(uint32_t sides) {
    uint64_t z = world.random += 0x9e3779b97f4a7c15; /* SplitMix64 (Steele, Lea, Flood, 2014) */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (uint32_t)((z ^ z >> 31) % sides);
}

/* Backend number k of a session's shard. */
static int shard_member(int session, int k) {
    return (session + k) % BACKENDS;
}

/* A lease was told a binding: it is the only truth there is (V2), newer than all before (V4), and nobody is told while
 * a move stalls (V3). */
static void told(const char *said, const struct call *call) {
    char backend[8], a[8], b[8], c[8];
    unsigned long long epoch, revision;
    int new;
    WALK(sscanf(said, "[\"%7[^\"]\" %llu %llu %d \"%7[^\"]\" \"%7[^\"]\" \"%7[^\"]\"]", backend, &epoch, &revision,
                &new, a, b, c) == 7);
    struct session *s = &world.sessions[call->session];
    const struct belief got = {.on = true,
                               .backend = backend[1] - '0',
                               .epoch = epoch,
                               .lost = world.beliefs[call->lease][call->session].lost};
    WALK(a[1] - '0' == shard_member(call->session, 0) && b[1] - '0' == shard_member(call->session, 1) &&
         c[1] - '0' == shard_member(call->session, 2));
    WALK(!s->stalled && s->recorded);
    WALK(revision == keyspace_revision(ks) && epoch <= revision);
    WALK(got.backend == s->backend && got.epoch == s->epoch);
    for (int l = 0; l < LEASES; l++) {
        const struct belief *held = &world.beliefs[l][call->session];
        WALK(!held->on || (held->backend == got.backend && held->epoch == got.epoch));
    }
    WALK(world.lease_ids[call->lease] == call->lease_id);
    world.beliefs[call->lease][call->session] = got;
    s->touched_ms = story_stamp;
}

static void new_epoch(struct session *s, int backend) {
    s->recorded = true;
    s->backend = backend;
    s->epoch = keyspace_revision(ks);
    WALK(s->epoch > s->epoch_ever); /* V4 */
    s->epoch_ever = s->epoch;
    s->touched_ms = story_stamp;
}

static void let_go(int lease, int session) {
    if (!world.beliefs[lease][session].on) return;
    world.beliefs[lease][session].on = false;
    world.sessions[session].touched_ms = story_stamp;
}

static int session_of_asked(uint64_t asked) {
    for (int s = 0; s < SESSIONS; s++)
        if (world.sessions[s].stalled && world.sessions[s].asked == asked) return s;
    return -1;
}

static bool held_by_others(int session, int lease) {
    for (int l = 0; l < LEASES; l++)
        if (l != lease && world.beliefs[l][session].on) return true;
    return false;
}

static bool majority_suspects(int backend) {
    int joined = 0, suspecting = 0;
    for (int l = 0; l < LEASES; l++) {
        joined += world.joined[l];
        suspecting +=
            world.suspected_ms[l][backend] != UINT64_MAX && story_stamp - world.suspected_ms[l][backend] < WINDOW_MS;
    }
    return 2 * suspecting > joined;
}

/* Run one command on both nodes.  Facts that concern calls of before are judged here; the answer to the command itself
 * is returned. */
static char own_answer[512];
static const char *step(const struct call *call, const char *line) {
    struct ks_facts mine, theirs;
    batch_start();
    const uint64_t seq = batch_line(line);
    keyspace_apply(other, story_slot + 1, buf_slice(&story_value), &theirs);
    keyspace_apply(ks, ++story_slot, buf_slice(&story_value), &mine);
    own_answer[0] = '\0';
    WALK(seq < CALLS);
    for (uint32_t i = 0; i < mine.count; i++) {
        const struct ks_fact *f = &mine.facts[i];
        buf_clear(&story_text);
        if (f->kind == KS_REPLY) story_show_reply(&story_text, f->reply);
        buf_append(&story_text, "", 1);
        if (f->kind == KS_MOVE_DONE) {
            const int at_ = session_of_asked(f->id);
            WALK(at_ >= 0);
            struct session *s = &world.sessions[at_];
            WALK(!held_by_others(at_, -1)); /* V2 */
            s->stalled = false;
            new_epoch(s, s->target);
            world.moves_done++;
        } else if (f->kind == KS_QUEUED) {
            WALK(f->origin.seq == seq);
            if (call->kind != CALL_TOUCH) WALK(world.sessions[call->session].stalled || call->kind == CALL_MOVE);
            world.calls[seq] = *call;
            snprintf(own_answer, sizeof own_answer, "queued");
        } else if (f->kind == KS_REPLY && f->origin.seq == seq) {
            snprintf(own_answer, sizeof own_answer, "%s", story_text.data);
        } else if (f->kind == KS_REPLY) {
            struct call *before = &world.calls[f->origin.seq];
            WALK(before->kind != CALL_NONE); /* it waited, and is answered once */
            world.replies++;
            if (strncmp(story_text.data, "-NOLEASE", 8) == 0) {
                WALK(world.lease_ids[before->lease] != before->lease_id);
                world.nolease++;
            } else if (before->kind != CALL_TOUCH) {
                told(story_text.data, before);
            } else {
                WALK(story_text.data[0] == '[');
                for (int s = 0; s < SESSIONS; s++)
                    if (world.sessions[s].recorded) world.sessions[s].touched_ms = story_stamp;
            }
            before->kind = CALL_NONE;
        } else if (f->kind == KS_MOVE_ASKED) {
            struct session *s = &world.sessions[call->session];
            WALK(call->kind == CALL_MOVE && !s->stalled && f->id == keyspace_revision(ks));
            s->stalled = true;
            s->asked = f->id;
            s->touched_ms = story_stamp;
            world.moves_stalled++;
        }
    }
    for (uint32_t i = 0; i < theirs.count; i++)
        WALK(theirs.facts[i].kind != KS_REPLY && theirs.facts[i].kind != KS_QUEUED);
    return own_answer;
}

static void walk_bind(struct call call) {
    char line[200];
    struct session *s = &world.sessions[call.session];
    const int first = shard_member(call.session, (int)dice(SHARD));
    const bool get = dice(2) == 0;
    call.kind = get ? CALL_GET : CALL_BIND;
    if (get)
        snprintf(line, sizeof line, "ROUTE.GET p s%d LEASE %llu", call.session, (unsigned long long)call.lease_id);
    else
        snprintf(line, sizeof line, "ROUTE.BIND p s%d LEASE %llu b%d PREFER b%d b%d b%d", call.session,
                 (unsigned long long)call.lease_id, first, shard_member(call.session, 0), shard_member(call.session, 1),
                 shard_member(call.session, 2));
    const char *said = step(&call, line);
    world.joined[call.lease] = true;
    if (strcmp(said, "queued") == 0) {
        WALK(s->stalled);
    } else if (strcmp(said, "nil") == 0) {
        WALK(get && !s->recorded);
    } else {
        if (!s->recorded) {
            WALK(!get);
            new_epoch(s, first);
        }
        told(said, &call);
    }
}

static void walk_move(struct call call) {
    char line[200];
    struct session *s = &world.sessions[call.session];
    const struct session was = *s;
    const int target = shard_member(call.session, (int)dice(SHARD));
    const bool force = dice(3) == 0;
    const uint64_t epoch = dice(5) > 0 ? s->epoch : dice((uint32_t)keyspace_revision(ks) + 3);
    call.kind = CALL_MOVE;
    snprintf(line, sizeof line, "ROUTE.MOVE p s%d %llu LEASE %llu b%d%s", call.session, (unsigned long long)epoch,
             (unsigned long long)call.lease_id, target, force ? " FORCE" : "");
    world.joined[call.lease] = true;
    const bool current = was.recorded && epoch == was.epoch;
    const bool may = force || majority_suspects(was.backend);
    /* The caller's hold ends when the command is taken. */
    const bool taken = current && (was.stalled || (target != was.backend && may));
    if (taken) let_go(call.lease, call.session);
    if (taken && !was.stalled) s->target = target;
    const char *said = step(&call, line);
    if (!was.recorded) {
        WALK(strcmp(said, "-ERR no such session") == 0);
    } else if (was.stalled && s->stalled) {
        WALK(strcmp(said, "queued") == 0 && held_by_others(call.session, -1));
    } else if (was.stalled) { /* ours was the last hold: the first mover won */
        WALK(current);
        told(said, &call);
    } else if (!current || target == was.backend) {
        told(said, &call);
    } else if (!may) { /* V5 */
        WALK(strcmp(said, "-ERR backend in service") == 0);
        world.refused++;
    } else if (held_by_others(call.session, call.lease)) {
        WALK(strcmp(said, "queued") == 0 && s->stalled);
    } else {
        new_epoch(s, target);
        told(said, &call);
    }
}

static void walk_let_go(struct call call) {
    char line[200];
    struct session *s = &world.sessions[call.session];
    const uint64_t id = call.lease_id;
    switch (dice(3)) {
    case 0: {
        const uint64_t epoch = dice(4) > 0 ? s->epoch : s->epoch + 1;
        const bool held = world.beliefs[call.lease][call.session].on && epoch == s->epoch;
        if (held) let_go(call.lease, call.session);
        snprintf(line, sizeof line, "ROUTE.DROP p s%d %llu LEASE %llu", call.session, (unsigned long long)epoch,
                 (unsigned long long)id);
        WALK(strcmp(step(&call, line), held ? "1" : "0") == 0);
        break;
    }
    case 1: { /* as the leader acknowledges: all it was told, or part of it */
        struct buf told_ = {.alloc = heap_alloc()};
        uint64_t serial = 0, want = 0;
        const uint32_t count = route_revocations(keyspace_route(ks), id, &told_, &serial);
        buf_release(&told_);
        uint32_t expected = 0;
        for (int i = 0; i < SESSIONS; i++) {
            const struct belief *b = &world.beliefs[call.lease][i];
            const bool stalled = world.sessions[i].stalled && b->on;
            expected += (stalled ? 1U : 0U) + (b->lost != 0 ? 1U : 0U);
            if (stalled && world.sessions[i].asked > want) want = world.sessions[i].asked;
            if (b->lost > want) want = b->lost;
        }
        WALK(count == expected && serial == want);
        if (serial > 0 && dice(4) == 0) serial--;
        bool pending = false;
        for (int i = 0; i < SESSIONS; i++) {
            struct belief *b = &world.beliefs[call.lease][i];
            if (b->lost != 0 && b->lost <= serial) {
                b->lost = 0;
                pending = true;
            }
            if (!world.sessions[i].stalled || world.sessions[i].asked > serial) continue;
            pending |= b->on;
            let_go(call.lease, i);
        }
        WALK(route_ack_pending(keyspace_route(ks), id, serial) == pending);
        snprintf(line, sizeof line, "%%ROUTE_ACK %llu %llu", (unsigned long long)id, (unsigned long long)serial);
        step(&call, line);
        break;
    }
    default:
        if (!s->stalled) break;
        if (world.beliefs[call.lease][call.session].on) world.beliefs[call.lease][call.session].lost = s->asked;
        let_go(call.lease, call.session);
        snprintf(line, sizeof line, "%%ROUTE_PASSED %llu %llu", (unsigned long long)s->asked, (unsigned long long)id);
        step(&call, line);
    }
}

static void walk_lease(struct call call) {
    char line[100];
    if (call.lease_id == 0) {
        world.lease_ids[call.lease] = strtoull(step(&call, "LEASE.GRANT 5000"), NULL, 10);
        return;
    }
    for (int i = 0; i < SESSIONS; i++) {
        let_go(call.lease, i);
        world.beliefs[call.lease][i].lost = 0;
    }
    for (int b = 0; b < BACKENDS; b++) world.suspected_ms[call.lease][b] = UINT64_MAX;
    world.joined[call.lease] = false;
    world.lease_ids[call.lease] = 0;
    snprintf(line, sizeof line, dice(2) ? "%%EXPIRE %llu" : "LEASE.REVOKE %llu", (unsigned long long)call.lease_id);
    step(&call, line);
}

static void walk_touch(struct call call) {
    char line[100];
    bool waits = false;
    call.kind = CALL_TOUCH;
    snprintf(line, sizeof line, "ROUTE.TOUCH p LEASE %llu s0 s1 s2 s3", (unsigned long long)call.lease_id);
    for (int i = 0; i < SESSIONS; i++) waits |= world.sessions[i].stalled;
    const char *said = step(&call, line);
    WALK((strcmp(said, "queued") == 0) == waits);
    if (waits) return;
    unsigned long long epochs[SESSIONS];
    WALK(sscanf(said, "[%llu %llu %llu %llu]", &epochs[0], &epochs[1], &epochs[2], &epochs[3]) == SESSIONS);
    for (int i = 0; i < SESSIONS; i++) {
        WALK(epochs[i] == (world.sessions[i].recorded ? world.sessions[i].epoch : 0));
        world.sessions[i].touched_ms = story_stamp;
    }
}

static void walk_suspect(struct call call) {
    char line[100];
    const int backend = (int)dice(BACKENDS);
    snprintf(line, sizeof line, "ROUTE.SUSPECT p b%d 0 LEASE %llu", backend, (unsigned long long)call.lease_id);
    world.suspected_ms[call.lease][backend] = story_stamp;
    world.joined[call.lease] = true;
    step(&call, line);
}

static void walk_away(void) { /* some caller's connection is gone */
    char line[100];
    const uint64_t seq = dice((uint32_t)story_seq + 1);
    if (world.calls[seq].kind == CALL_NONE) return;
    world.calls[seq].kind = CALL_NONE;
    snprintf(line, sizeof line, "%%DEQUEUE '' 0 1 %llu", (unsigned long long)seq);
    step(&(struct call){0}, line);
}

/* What holds after every step. */
static void walk_check(void) {
    const struct route *r = keyspace_route(ks);
    uint64_t recorded = 0, waiting = 0;
    for (int s = 0; s < SESSIONS; s++) { /* V6, at the end of each batch */
        struct session *session = &world.sessions[s];
        if (session->recorded && !session->stalled && !held_by_others(s, -1) &&
            story_stamp - session->touched_ms >= MEMORY_MS) {
            session->recorded = false;
            world.forgotten++;
        }
        recorded += session->recorded;
    }
    WALK(route_binding_count(r) == recorded);
    for (uint64_t i = 0; i <= story_seq; i++) waiting += world.calls[i].kind != CALL_NONE;
    WALK(route_waiter_count(r) == waiting);
    for (int l = 0; l < LEASES; l++) { /* V1: what they believe is what is recorded of them */
        uint64_t beliefs = 0;
        for (int s = 0; s < SESSIONS; s++) beliefs += world.beliefs[l][s].on;
        WALK(world.lease_ids[l] == 0 || route_holds(r, world.lease_ids[l]) == beliefs);
        WALK(world.lease_ids[l] == 0 || route_joined(r, world.lease_ids[l]) == world.joined[l]);
    }
    WALK(keyspace_hash(ks) == keyspace_hash(other));
}

START_TEST(random_walk) {
    const char *chosen = getenv("ROUTE_SEED");
    memset(&world, 0, sizeof world);
    world.seed = chosen != NULL ? atoi(chosen) : _i + 1;
    world.random = (uint64_t)world.seed;
    for (int l = 0; l < LEASES; l++)
        for (int b = 0; b < BACKENDS; b++) world.suspected_ms[l][b] = UINT64_MAX;
    const struct ks_config config = {.alloc = heap_alloc(), .node = 1, .boot = 99}; /* another seed for its tables */
    other = keyspace_new(&config);
    at(1000);
    step(&(struct call){0}, "%SETTINGS binding_memory_ms 20000 suspect_window_ms 3000");
    for (world.step = 0; world.step < STEPS; world.step++) {
        const uint32_t what = dice(100);
        struct call call = {.lease = (int)dice(LEASES), .session = (int)dice(SESSIONS)};
        call.lease_id = world.lease_ids[call.lease];
        at(story_stamp + (dice(200) == 0 ? MEMORY_MS : dice(300)));
        if (what < 3 || call.lease_id == 0)
            walk_lease(call);
        else if (what < 35)
            walk_bind(call);
        else if (what < 55)
            walk_move(call);
        else if (what < 80)
            walk_let_go(call);
        else if (what < 85)
            walk_touch(call);
        else if (what < 97)
            walk_suspect(call);
        else
            walk_away();
        walk_check();
    }
    /* When all leases have ended nothing stalls and nobody waits. */
    for (int l = 0; l < LEASES; l++) {
        const struct call call = {.lease = l, .lease_id = world.lease_ids[l]};
        if (call.lease_id != 0) walk_lease(call);
        walk_check();
    }
    for (int s = 0; s < SESSIONS; s++) WALK(!world.sessions[s].stalled);
    WALK(route_waiter_count(keyspace_route(ks)) == 0);
    at(story_stamp + MEMORY_MS);
    step(&(struct call){0}, "LEASE.REVOKE 0");
    walk_check();
    WALK(route_memory_bytes(keyspace_route(ks)) == 0);
    /* It walked everywhere. */
    WALK(world.replies > 50 && world.moves_done > 50 && world.moves_stalled >= world.moves_done && world.refused > 20 &&
         world.forgotten > 0 && world.nolease > 0);
    keyspace_free(other);
}
END_TEST

static void add(TCase *tc) {
    tcase_add_test(tc, the_first_bind_decides);
    tcase_add_loop_test(tc, refused_and_nothing_happened, 0, sizeof wrong / sizeof wrong[0]);
    tcase_add_test(tc, names_have_limits);
    tcase_add_test(tc, a_move_of_the_only_holder_is_done_at_once);
    tcase_add_test(tc, a_move_waits_for_the_other_holder);
    tcase_add_loop_test(tc, a_holder_lets_go, 0, sizeof ends / sizeof ends[0]);
    tcase_add_test(tc, a_move_that_comes_second_may_end_the_first);
    tcase_add_test(tc, who_died_gets_no_binding);
    tcase_add_test(tc, an_acknowledgement_covers_all_moves_up_to_its_serial);
    tcase_add_test(tc, what_was_taken_is_named_until_acknowledged);
    tcase_add_test(tc, a_touch_may_wait_for_one_session_after_another);
    tcase_add_test(tc, who_went_away_is_not_answered);
    tcase_add_test(tc, who_was_only_cut_off_hears_that_the_wait_ended);
    tcase_add_test(tc, more_than_half_of_the_joined_must_suspect);
    tcase_add_test(tc, a_refused_move_keeps_the_hold);
    tcase_add_test(tc, an_unheld_binding_is_forgotten_in_time);
    tcase_add_test(tc, a_stalling_binding_is_not_forgotten);
    tcase_add_test(tc, limits_are_named);
    tcase_add_test(tc, memory_has_a_limit);
    tcase_add_test(tc, holders_of_one_binding_have_a_limit);
    tcase_add_test(tc, a_taken_move_is_not_refused_for_the_limit_of_holders);
    tcase_add_test(tc, scripts_may_not);
    tcase_add_loop_test(tc, random_walk, 0, getenv("ROUTE_SEED") != NULL ? 1 : 20);
}

int main(void) {
    return story_main("route", add);
}
