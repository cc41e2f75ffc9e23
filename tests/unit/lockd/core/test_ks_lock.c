/* Locks: who gets them, in which order, with which token (K4, W, F). */
#include "ks_story.h"

/* Three leases: 1 (anna), 2 (bert), 3 (carl); the next revision is 4. */
static void three_leases(void) {
    at(1000);
    SAYS("LEASE.GRANT 5000 NAME anna", "1");
    SAYS("LEASE.GRANT 5000 NAME bert", "2");
    SAYS("LEASE.GRANT 5000 NAME carl", "3");
}

START_TEST(a_lock_has_one_holder) {
    three_leases();
    SEES("LOCK.INFO l", "nil");
    SAYS("LOCK.ACQUIRE l LEASE 1 VALUE hello", "4");
    SAYS("LOCK.ACQUIRE l LEASE 2", "nil");
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 0", "nil");
    SAYS("LOCK.ACQUIRE l LEASE 1", "4"); /* the same again */
    SAYS("lock.acquire l lease 1 wait 500 value other", "4");
    SEES("LOCK.INFO l", "[\"name\" \"l\" \"lease\" 1 \"token\" 4 \"value\" \"hello\" \"waiters\" 0]");
    SEES("LOCK.CHECK l 4", "1");
    SEES("LOCK.CHECK l 5", "-FENCED token 5 does not hold 'l'");
    SEES("TYPE l", "lock");
    SEES("EXISTS l", "1");
    SEES("DBSIZE", "1");
    SEES("TTL l", "-1");
    SAYS("LOCK.RELEASE l LEASE 2", "0");
    SAYS("LOCK.RELEASE l LEASE 1 TOKEN 5", "0"); /* somebody else's grant */
    SEES("LOCK.CHECK l 4", "1");
    SAYS("LOCK.RELEASE l LEASE 1 TOKEN 4", "1");
    SAYS("LOCK.RELEASE l LEASE 1 TOKEN 4", "0"); /* a repeated unlock frees nobody's lock */
    SEES("LOCK.CHECK l 4", "-FENCED token 4 does not hold 'l'");
    SEES("EXISTS l", "0");
    SAYS("LOCK.ACQUIRE l LEASE 2", "13");
    SAYS("LOCK.RELEASE l LEASE 2", "1");
    SAYS("LOCK.RELEASE l LEASE 99", "0");
}
END_TEST

static const struct {
    const char *line, *want;
} refused[] = {
    {"LOCK.ACQUIRE l LEASE 9", "-NOLEASE lease 9 does not exist or has ended"},
    {"LOCK.ACQUIRE l LEASE x", "-ERR LEASE must be an integer from 0 to 9223372036854775807, not 'x'"},
    {"LOCK.ACQUIRE l NOLEASE 1", "-ERR syntax error"},
    {"LOCK.ACQUIRE l LEASE 1 WAIT", "-ERR syntax error near 'WAIT'"},
    {"LOCK.ACQUIRE l LEASE 1 SHARED", "-ERR syntax error near 'SHARED'"},
    {"LOCK.ACQUIRE l LEASE 1 WAIT x", "-ERR WAIT must be an integer from 0 to 86400000, not 'x'"},
    {"LOCK.ACQUIRE l LEASE 1 WAIT -1", "-ERR WAIT must be an integer from 0 to 86400000, not '-1'"},
    {"LOCK.ACQUIRE l LEASE 1 WAIT 86400001", "-ERR WAIT must be an integer from 0 to 86400000, not '86400001'"},
    {"ELECT.CAMPAIGN l LEASE 1 WAIT 5", "-ERR ELECT.CAMPAIGN needs VALUE"},
    {"LOCK.RELEASE l LEASE 1 TOKEN", "-ERR syntax error"},
    {"LOCK.RELEASE l LEASE 1 WHAT 5", "-ERR syntax error"},
    {"LOCK.RELEASE l WHAT 1", "-ERR syntax error"},
    {"LOCK.RELEASE l LEASE 1 TOKEN x", "-ERR TOKEN must be an integer from 0 to 9223372036854775807, not 'x'"},
    {"ELECT.RESIGN l WHAT 1", "-ERR syntax error"},
    {"LOCK.CHECK l x", "-ERR the token must be an integer from 0 to 9223372036854775807, not 'x'"},
    {"LOCK.ACQUIRE r LEASE 1", "-WRITEONCE key 'r' is a write-once register"},
    {"LOCK.RELEASE r LEASE 1", "-WRITEONCE key 'r' is a write-once register"},
    {"LOCK.INFO r", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"ELECT.LEADER r", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"LOCK.CHECK r 4", "-FENCED token 4 does not hold 'r'"},
};
START_TEST(what_is_refused) {
    three_leases();
    SAYS("WOR.SET r 1", "[1 4 \"1\"]");
    SAYS(refused[_i].line, refused[_i].want);
    SEES("DBSIZE", "1");
}
END_TEST

/* One keyspace: what other commands do to a held lock. */
static const struct {
    const char *line, *want;
} others[] = {
    {"SET l 1 NX", "nil"},
    {"SET l 1 NX PX 5000", "nil"},
    {"SET l 1 NX GET", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"SET l 1", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"SET l 1 XX", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"DEL a l", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"INCR l", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"EXPIRE l 10", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"PERSIST l", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"CAS l 0 x", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"WOR.SET l x", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"GET l", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"GETV l", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"WOR.GET l", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"FLUSHALL", "-ERR FLUSHALL is refused while write-once registers or held locks exist: 0 and 1 do"},
};
START_TEST(a_held_lock_is_not_a_string) {
    three_leases();
    SAYS("SET a 1", "OK");
    SAYS("LOCK.ACQUIRE l LEASE 1", "5");
    SAYS(others[_i].line, others[_i].want);
    SEES("LOCK.CHECK l 5", "1");
    SEES("EXISTS a", "1"); /* DEL is refused whole */
}
END_TEST

START_TEST(waiters_are_served_in_order) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");                            /* #4 */
    SAYS("LOCK.ACQUIRE l LEASE 3 WAIT 60000 VALUE carl", "queued"); /* #5 */
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 60000 VALUE bert", "queued"); /* #6 */
    SEES("LOCK.INFO l", "[\"name\" \"l\" \"lease\" 1 \"token\" 4 \"value\" \"\" \"waiters\" 2]");
    struct ks_counts counts;
    keyspace_counts(ks, &counts);
    ck_assert_uint_eq(counts.waiters, 2);
    FACTS("LOCK.RELEASE l LEASE 1", "#5 8; #7 1"); /* the token of the grant comes after the release's revision 7 */
    SEES("LOCK.INFO l", "[\"name\" \"l\" \"lease\" 3 \"token\" 8 \"value\" \"carl\" \"waiters\" 1]");
    SAYS("LOCK.ACQUIRE l LEASE 1", "nil"); /* no overtaking */
    FACTS("LEASE.REVOKE 3", "#6 11; lease- 3; #9 1");
    SEES("LOCK.INFO l", "[\"name\" \"l\" \"lease\" 2 \"token\" 11 \"value\" \"bert\" \"waiters\" 0]");
    FACTS("LOCK.RELEASE l LEASE 2 TOKEN 11", "#10 1");
    SEES("EXISTS l", "0");
    SAYS("LEASE.REVOKE 1", "1");
    SAYS("LEASE.REVOKE 2", "1");
    keyspace_counts(ks, &counts);
    ck_assert_uint_eq(counts.memory_bytes, 0); /* names of leases, keys, values of locks and of waiters */
    ck_assert_uint_eq(keyspace_next_due(ks), UINT64_MAX);
}
END_TEST

START_TEST(a_wait_ends_by_the_stamp) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 500", "queued"); /* #5, until 1500 */
    SAYS("LOCK.ACQUIRE l LEASE 3 WAIT 300", "queued"); /* #6, until 1300 */
    ck_assert_uint_eq(keyspace_next_due(ks), 1300);
    at(1300);
    batch_start();
    ck_assert_str_eq(batch_end(), "#6 nil");
    at(1500);
    FACTS("LOCK.RELEASE l LEASE 1", "#5 nil; #7 1"); /* due first: too late for it by the log */
    SEES("EXISTS l", "0");
}
END_TEST

/* B30: never granted to a lease that is gone. */
START_TEST(a_dead_waiter_gets_nothing) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 60000", "queued"); /* #5 */
    SAYS("LOCK.ACQUIRE l LEASE 3 WAIT 60000", "queued"); /* #6 */
    FACTS("%EXPIRE 2", "#5 -NOLEASE lease 2 ended while it waited; lease- 2; #7 1");
    FACTS("LOCK.RELEASE l LEASE 1", "#6 9; #8 1");
}
END_TEST

START_TEST(leases_that_end_together_hand_nothing_to_each_other) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 60000", "queued"); /* #5 */
    SAYS("LOCK.ACQUIRE l LEASE 3 WAIT 60000", "queued"); /* #6 */
    FACTS("%EXPIRE 1 77 2", "#5 -NOLEASE lease 2 ended while it waited; #6 8; lease- 1; lease- 2; #7 2");
}
END_TEST

START_TEST(a_waiter_that_asks_again_keeps_its_place) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 500 VALUE old", "queued"); /* #5 */
    SAYS("LOCK.ACQUIRE l LEASE 3 WAIT 60000", "queued");         /* #6 */
    at(1400);
    SAYS("LOCK.ACQUIRE l LEASE 2", "nil"); /* #7 does not wait; the wait of #5 stands */
    FACTS("LOCK.ACQUIRE l LEASE 2 WAIT 500 VALUE new",
          "#5 -ERR this wait was taken over by a later LOCK.ACQUIRE of the same lease; #8 queued");
    at(1600); /* past the first deadline, within the second */
    FACTS("LOCK.RELEASE l LEASE 1", "#8 10; #9 1");
    SEES("ELECT.LEADER l", "[\"new\" 10 2]");
}
END_TEST

/* The same entry twice (a link was made anew, say) is no quarrel with oneself. */
START_TEST(the_same_attachment_twice_is_one) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 500", "queued");
    story_seq--;
    FACTS("LOCK.ACQUIRE l LEASE 2 WAIT 900", "#5 queued");
    ck_assert_uint_eq(keyspace_next_due(ks), 1900);
    FACTS("LOCK.RELEASE l LEASE 1", "#5 8; #6 1");
}
END_TEST

START_TEST(release_leaves_the_queue) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 500", "queued"); /* #5 */
    FACTS("LOCK.RELEASE l LEASE 2 TOKEN 4", "#6 0");   /* a token names a grant, and it has none */
    FACTS("LOCK.RELEASE l LEASE 2", "#5 nil; #7 1");
    FACTS("LOCK.RELEASE l LEASE 2", "#8 0");
    FACTS("LOCK.RELEASE l LEASE 1", "#9 1");
}
END_TEST

/* W: a lock waits for a string of its name, however that ends. */
static const struct {
    const char *end, *want;
} string_ends[] = {
    {"DEL s", "#5 7; #6 1"},
    {"DEL s s", "#5 7; #6 1"},
    {"PEXPIRE s 0", "#5 7; #6 1"},
    {"FLUSHALL", "#5 7; #6 OK"},
    {"LEASE.REVOKE 1", "#5 7; lease- 1; #6 1"},
};
START_TEST(a_lock_waits_for_a_string_to_end) {
    three_leases();
    SAYS("SET s text LEASE 1", "OK");
    SAYS("LOCK.ACQUIRE s LEASE 2 WAIT 60000 VALUE v", "queued");
    SEES("LOCK.INFO s", "[\"name\" \"s\" \"lease\" 0 \"token\" 0 \"value\" nil \"waiters\" 1]");
    SEES("GET s", "\"text\"");
    SEES("ELECT.LEADER s", "nil");
    FACTS(string_ends[_i].end, string_ends[_i].want);
    SEES("LOCK.INFO s", "[\"name\" \"s\" \"lease\" 2 \"token\" 7 \"value\" \"v\" \"waiters\" 0]");
    SEES("DBSIZE", "1");
}
END_TEST

START_TEST(a_lock_waits_for_a_string_to_expire) {
    three_leases();
    SAYS("SET s text PX 500", "OK");
    SAYS("LOCK.ACQUIRE s LEASE 2 WAIT 60000", "queued"); /* #5 */
    SAYS("LOCK.ACQUIRE s LEASE 3", "nil");
    SAYS("SET s more KEEPTTL", "OK"); /* a string may be written while somebody waits for its end */
    READS(1500, "LOCK.INFO s", "needs 1500");
    at(1500);
    batch_start();
    ck_assert_str_eq(batch_end(), "#5 8");
    SEES("TYPE s", "lock");
}
END_TEST

START_TEST(flushall_grants_in_the_order_of_the_versions) {
    char line[64];
    three_leases();
    for (int i = 0; i < 30; i++) {
        snprintf(line, sizeof line, "SET k%d 1", i);
        SAYS(line, "OK");
    }
    for (int i = 0; i < 30; i++) { /* in another order */
        snprintf(line, sizeof line, "SET k%d 2", i * 7 % 30);
        SAYS(line, "OK");
    }
    const uint64_t first = story_seq + 1;
    for (int i = 0; i < 30; i++) {
        snprintf(line, sizeof line, "LOCK.ACQUIRE k%d LEASE 1 WAIT 60000", i);
        SAYS(line, "queued");
    }
    facts_of("FLUSHALL");
    ck_assert_uint_eq(story_facts.count, 31);
    for (uint32_t i = 0; i < 30; i++) ck_assert_uint_eq(story_facts.facts[i].origin.seq, first + i * 7 % 30);
}
END_TEST

/* %DEQUEUE names an attachment: void for any other (W). */
START_TEST(a_dequeue_names_its_attachment) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 60000", "queued"); /* #5 */
    SAYS("LOCK.ACQUIRE l LEASE 3 WAIT 60000", "queued"); /* #6 */
    FACTS("LOCK.ACQUIRE l LEASE 2 WAIT 60000",
          "#5 -ERR this wait was taken over by a later LOCK.ACQUIRE of the same lease; #7 queued");
    FACTS("%DEQUEUE l 0 1 5", "#8 0");
    FACTS("%DEQUEUE l 1 1 7", "#9 0");
    FACTS("%DEQUEUE l 0 2 7", "#10 0");
    FACTS("%DEQUEUE nope 0 1 7", "#11 0");
    FACTS("%DEQUEUE l 0 1 7", "#7 nil; #12 1");
    FACTS("LOCK.RELEASE l LEASE 1", "#6 14; #13 1");
    FACTS("%DEQUEUE l 0 1 6", "#14 0"); /* granted meanwhile: it keeps the lock */
    SEES("LOCK.CHECK l 14", "1");
}
END_TEST

START_TEST(waits_end_with_their_origin) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    origin_is(2, 70);
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 60000", ""); /* somebody else's client */
    origin_is(0, 1);
    SAYS("LOCK.ACQUIRE l LEASE 3 WAIT 60000", "queued"); /* #6 */
    FACTS("%ORIGIN_GONE 2 71", "#7 OK");
    FACTS("%ORIGIN_GONE 2 70", "#8 OK");
    SEES("LOCK.INFO l", "[\"name\" \"l\" \"lease\" 1 \"token\" 4 \"value\" \"\" \"waiters\" 1]");
    FACTS("%ORIGIN_GONE 0 1", "#6 -CLUSTERDOWN the wait ended: node 0 lost contact with the leader; #9 OK");
    SEES("LOCK.INFO l", "[\"name\" \"l\" \"lease\" 1 \"token\" 4 \"value\" \"\" \"waiters\" 0]");
    FACTS("LOCK.RELEASE l LEASE 1", "#10 1");
}
END_TEST

static void note_attachment(void *context, uint16_t node, uint64_t boot) {
    buf_printf(context, "%u/%llu ", node, (unsigned long long)boot);
}
START_TEST(attachments_are_listed_once_each) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    SAYS("LOCK.ACQUIRE m LEASE 1", "5");
    origin_is(2, 70);
    SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 60000", "");
    SAYS("LOCK.ACQUIRE m LEASE 2 WAIT 60000", "");
    origin_is(2, 71);
    SAYS("LOCK.ACQUIRE l LEASE 3 WAIT 60000", "");
    struct buf list = {.alloc = heap_alloc()};
    keyspace_each_attachment(ks, note_attachment, &list);
    ck_assert(slice_equal(buf_slice(&list), slice_str("2/70 2/71 ")));
    /* Those that wait for a move of a session are there, too. */
    buf_clear(&list);
    SAYS("ROUTE.BIND p s LEASE 1 x PREFER x y", "");
    SAYS("ROUTE.MOVE p s 9 LEASE 2 y FORCE", "");
    origin_is(2, 70);
    SAYS("ROUTE.GET p s LEASE 3", "");
    origin_is(1, 5);
    SAYS("ROUTE.GET p s LEASE 3", "");
    keyspace_each_attachment(ks, note_attachment, &list);
    buf_append(&list, "", 1);
    ck_assert_str_eq(list.data, "2/70 2/71 1/5 ");
    buf_release(&list);
}
END_TEST

START_TEST(nobody_can_wait_without_an_origin) {
    three_leases();
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    origin_is(ORIGIN_NODE_NONE, 0);
    facts_of("LOCK.ACQUIRE l LEASE 2 WAIT 500");
    SEES("LOCK.INFO l", "[\"name\" \"l\" \"lease\" 1 \"token\" 4 \"value\" \"\" \"waiters\" 0]");
}
END_TEST

START_TEST(waiters_are_limited) {
    batch_begin(&story_value, story_ballot, true, 10);
    batch_line("%SETTINGS waiters_max 1");
    batch_end();
    SAYS("LEASE.GRANT 5000", "2");
    SAYS("LEASE.GRANT 5000", "3");
    SAYS("LEASE.GRANT 5000", "4");
    SAYS("LOCK.ACQUIRE l LEASE 2", "5");
    SAYS("LOCK.ACQUIRE l LEASE 3 WAIT 500", "queued");
    SAYS("LOCK.ACQUIRE l LEASE 4 WAIT 500", "-BUSY waiters-max: 1 wait for this lock");
    SAYS("LOCK.ACQUIRE l LEASE 3 WAIT 700", "queued"); /* it has its place */
    SAYS("LOCK.RELEASE l LEASE 3", "1");
    SAYS("LOCK.ACQUIRE l LEASE 4 WAIT 500", "queued");
}
END_TEST

START_TEST(an_election_is_a_lock_with_a_name_on_it) {
    three_leases();
    SEES("ELECT.LEADER e", "nil");
    SAYS("ELECT.CAMPAIGN e LEASE 1 VALUE host-a", "4");
    SAYS("ELECT.CAMPAIGN e LEASE 2 VALUE host-b", "nil");
    SAYS("ELECT.CAMPAIGN e LEASE 2 WAIT 60000 VALUE host-b", "queued"); /* #6 */
    SEES("ELECT.LEADER e", "[\"host-a\" 4 1]");
    SEES("LOCK.CHECK e 4", "1");
    FACTS("ELECT.RESIGN e LEASE 3", "#7 0");
    FACTS("ELECT.RESIGN e LEASE 1", "#6 9; #8 1");
    SEES("ELECT.LEADER e", "[\"host-b\" 9 2]");
    FACTS("ELECT.RESIGN e LEASE 2", "#9 1");
    SEES("ELECT.LEADER e", "nil");
}
END_TEST

/* F: over any sequence of grants, tokens only grow. */
START_TEST(tokens_only_grow) {
    three_leases();
    uint64_t last = 0, token;
    for (int i = 0; i < 400; i++) {
        char line[96];
        const int lease = 1 + rand() % 3;
        const bool take = rand() % 2;
        snprintf(line, sizeof line, take ? "LOCK.ACQUIRE l%d LEASE %d WAIT 60000" : "LOCK.RELEASE l%d LEASE %d",
                 rand() % 2, lease);
        const uint64_t below = keyspace_revision(ks);
        facts_of(line);
        for (uint32_t k = 0; k < story_facts.count; k++) {
            const struct slice reply = story_facts.facts[k].reply;
            if (reply.bytes < 4 || reply.data[0] != ':') continue;
            ck_assert(slice_to_u64(slice_of(reply.data + 1, reply.bytes - 3), &token));
            if (token <= below) continue; /* the answer of RELEASE, or a grant told again */
            ck_assert_uint_gt(token, last);
            last = token;
        }
    }
    ck_assert_uint_gt(last, 300);
}
END_TEST

static void add(TCase *tc) {
    tcase_add_test(tc, a_lock_has_one_holder);
    tcase_add_loop_test(tc, what_is_refused, 0, sizeof refused / sizeof refused[0]);
    tcase_add_loop_test(tc, a_held_lock_is_not_a_string, 0, sizeof others / sizeof others[0]);
    tcase_add_test(tc, waiters_are_served_in_order);
    tcase_add_test(tc, a_wait_ends_by_the_stamp);
    tcase_add_test(tc, a_dead_waiter_gets_nothing);
    tcase_add_test(tc, leases_that_end_together_hand_nothing_to_each_other);
    tcase_add_test(tc, a_waiter_that_asks_again_keeps_its_place);
    tcase_add_test(tc, the_same_attachment_twice_is_one);
    tcase_add_test(tc, release_leaves_the_queue);
    tcase_add_loop_test(tc, a_lock_waits_for_a_string_to_end, 0, sizeof string_ends / sizeof string_ends[0]);
    tcase_add_test(tc, a_lock_waits_for_a_string_to_expire);
    tcase_add_test(tc, flushall_grants_in_the_order_of_the_versions);
    tcase_add_test(tc, a_dequeue_names_its_attachment);
    tcase_add_test(tc, waits_end_with_their_origin);
    tcase_add_test(tc, attachments_are_listed_once_each);
    tcase_add_test(tc, nobody_can_wait_without_an_origin);
    tcase_add_test(tc, waiters_are_limited);
    tcase_add_test(tc, an_election_is_a_lock_with_a_name_on_it);
    tcase_add_test(tc, tokens_only_grow);
}
int main(void) {
    return story_main("ks_lock", add);
}
