/* A command sent in a ONCE runs at most once, and a repeat gets the first reply; one that waits is joined; limits hold.
 * Guards what ks_once.c says, through whole batches. */
#include "tests/unit/lockd/core/ks_story.h"
#include "lockd/core/route.h"

static void leases(int count) {
    at(1000);
    batch_start();
    for (int i = 0; i < count; i++) batch_line("LEASE.GRANT 5000");
    batch_end();
    story_seq = 0;
}

static uint64_t memory(void) {
    struct ks_counts counts;
    keyspace_counts(ks, &counts);
    return counts.memory_bytes;
}

START_TEST(a_repeat_gets_the_first_reply) {
    leases(1);
    SAYS("ONCE 1 1 INCR n", "1");
    SAYS("ONCE 1 1 INCR n", "1");
    SEES("GET n", "\"1\"");
    SAYS("ONCE 1 2 INCR n", "2");
    SAYS("ONCE 1 1 INCR n", "1");
    SAYS("ONCE 1 2 INCR m", "-ERR seq 2 of lease 1 was used for another command");
    SAYS("ONCE 1 2 incr n", "-ERR seq 2 of lease 1 was used for another command");
    SAYS("ONCE 1 5 INCR n", "3");
    SAYS("ONCE 1 4 INCR n", "-ERR seq 4 is older than the last one of lease 1, 5, and not remembered");
    SAYS("ONCE 1 6 CAS n 1 x", "[0 8 \"3\"]");
    SAYS("SET n 9", "OK");
    SAYS("ONCE 1 6 CAS n 1 x", "[0 8 \"3\"]");
    SAYS("ONCE 1 7 WOR.SET n x", "-WRONGTYPE Operation against a key holding the wrong kind of value");
    SAYS("DEL n", "1");
    SAYS("ONCE 1 7 WOR.SET n x", "-WRONGTYPE Operation against a key holding the wrong kind of value");
    SAYS("ONCE 1 8 DEL ''", "0"); /* an empty word is a word */
    SAYS("ONCE 1 8 DEL", "-ERR seq 8 of lease 1 was used for another command");
}
END_TEST

static const struct {
    const char *line, *want;
} wrong[] = {
    {"ONCE 9 1 INCR n", "-NOLEASE lease 9 does not exist or has ended"},
    {"ONCE x 1 INCR n", "-ERR the lease id must be an integer from 1 to 9223372036854775807, not 'x'"},
    {"ONCE 1 0 INCR n", "-ERR seq must be an integer from 1 to 9223372036854775807, not '0'"},
    {"ONCE 1 1 GET n", "-ERR ONCE does not run 'GET'"},
    {"ONCE 1 1 ONCE 1 2 INCR n", "-ERR ONCE does not run 'ONCE'"},
    {"ONCE 1 1 %EXPIRE 1", "-ERR unknown command '%EXPIRE'"},
    {"ONCE 1 1 NOSUCH 1", "-ERR unknown command 'NOSUCH'"},
    {"ONCE 1 1 INCR", "-ERR wrong number of arguments for 'INCR' command"},
    {"ONCE 1 1 EVAL x 0", "-ERR unknown command 'EVAL'"},
    {"%ONCE 1 1 1 SET a b c d e", "-ERR damaged effects of a script; it did not run"},
    {"%ONCE 1 1 1 %SCRIPT a b c d", "-ERR damaged effects of a script; it did not run"},
};
START_TEST(what_cannot_run_is_not_remembered) {
    leases(1);
    SAYS(wrong[_i].line, wrong[_i].want);
    SAYS(wrong[_i].line, wrong[_i].want);
    if (strstr(wrong[_i].line, "SCRIPT") == NULL) SAYS("ONCE 1 1 INCR n", "1");
}
END_TEST

START_TEST(what_met_a_limit_may_be_asked_for_again) {
    leases(1);
    origin_is(ORIGIN_NODE_NONE, 0);
    facts_of("%SETTINGS keys_max 1");
    origin_is(0, 1);
    SAYS("SET a 1", "OK");
    SAYS("ONCE 1 1 SET b 1", "-BUSY keys-max: there are 1 keys");
    SAYS("DEL a", "1");
    SAYS("ONCE 1 1 SET b 1", "OK");
    SAYS("DEL b", "1");
    SAYS("ONCE 1 1 SET b 1", "OK");
    SEES("EXISTS b", "0");
}
END_TEST

#define TAKEN_OVER "-ERR this wait was taken over by a later LOCK.ACQUIRE of the same lease"

START_TEST(a_repeat_joins_a_wait) {
    leases(2);
    SAYS("LOCK.ACQUIRE l LEASE 2", "3");
    SAYS("ONCE 1 1 LOCK.ACQUIRE l LEASE 1 WAIT 900", "queued"); /* #2 */
    FACTS("ONCE 1 1 LOCK.ACQUIRE l LEASE 1 WAIT 900", "#2 " TAKEN_OVER "; #3 queued");
    FACTS("LOCK.RELEASE l LEASE 2", "#3 7; #4 1");
    SAYS("ONCE 1 1 LOCK.ACQUIRE l LEASE 1 WAIT 900", "7");
    SAYS("LOCK.RELEASE l LEASE 1 TOKEN 7", "1");
    SAYS("LOCK.ACQUIRE l LEASE 2", "10");
    SAYS("ONCE 1 1 LOCK.ACQUIRE l LEASE 1 WAIT 900", "7"); /* what it got, though it has it no more */
}
END_TEST

START_TEST(a_wait_that_ran_out_is_over) {
    leases(3);
    SAYS("LOCK.ACQUIRE l LEASE 2", "4");
    SAYS("ONCE 1 1 LOCK.ACQUIRE l LEASE 1 WAIT 900", "queued"); /* #2 */
    SAYS("ONCE 1 2 ELECT.CAMPAIGN l LEASE 3 VALUE v WAIT 9000", "queued");
    at(1900);
    FACTS("DEL none", "#2 nil; #4 0");
    SAYS("ONCE 1 1 LOCK.ACQUIRE l LEASE 1 WAIT 900", "nil");
    FACTS("LEASE.REVOKE 3", "#3 -NOLEASE lease 3 ended while it waited; lease- 3; #6 1");
    SAYS("ONCE 1 2 ELECT.CAMPAIGN l LEASE 3 VALUE v WAIT 9000", "-NOLEASE lease 3 ended while it waited");
    SAYS("ONCE 1 3 LOCK.ACQUIRE l LEASE 1 WAIT 900", "queued"); /* #8 */
    FACTS("LOCK.RELEASE l LEASE 1", "#8 nil; #9 1");
    SAYS("ONCE 1 3 LOCK.ACQUIRE l LEASE 1 WAIT 900", "nil");
    SAYS("ONCE 1 4 LOCK.ACQUIRE l LEASE 1 WAIT 900", "queued"); /* #11 */
    FACTS("ONCE 1 5 LOCK.ACQUIRE l LEASE 1 WAIT 800", "#11 " TAKEN_OVER "; #12 queued");
    SAYS("ONCE 1 4 LOCK.ACQUIRE l LEASE 1 WAIT 900", TAKEN_OVER);
}
END_TEST

/* Its client was cut off: nothing was executed, so a repeat waits again. */
START_TEST(a_wait_that_was_given_up_may_begin_again) {
    leases(2);
    SAYS("LOCK.ACQUIRE l LEASE 2", "3");
    SAYS("ONCE 1 1 LOCK.ACQUIRE l LEASE 1 WAIT 900", "queued"); /* #2 */
    FACTS("%DEQUEUE l 0 1 2", "#2 nil; #3 1");
    SAYS("ONCE 1 1 LOCK.ACQUIRE l LEASE 1 WAIT 900", "queued"); /* #4 */
    facts_of("%ORIGIN_GONE 0 1");
    SEES("LOCK.INFO l", "[\"name\" \"l\" \"lease\" 2 \"token\" 3 \"value\" \"\" \"waiters\" 0]");
    SAYS("ONCE 1 1 LOCK.ACQUIRE l LEASE 1 WAIT 900", "queued"); /* #6 */
    FACTS("LOCK.RELEASE l LEASE 2", "#6 10; #7 1");
    SAYS("ONCE 1 1 LOCK.ACQUIRE l LEASE 1 WAIT 900", "10");
}
END_TEST

START_TEST(a_move_is_joined_too) {
    leases(2);
    SAYS("ROUTE.BIND p s LEASE 1 a PREFER a b", "[\"a\" 3 3 1 \"a\" \"b\"]");
    SAYS("ROUTE.GET p s LEASE 2", "[\"a\" 3 4 0 \"a\" \"b\"]");
    facts_of("ONCE 1 1 ROUTE.MOVE p s 3 LEASE 1 b FORCE"); /* #3 */
    ck_assert_str_eq(story_own_answer(3), "queued");
    SAYS("ONCE 1 1 ROUTE.MOVE p s 3 LEASE 1 b FORCE", "queued"); /* #4 */
    FACTS("ROUTE.DROP p s 3 LEASE 2", "done 5; #3 [\"b\" 7 7 1 \"a\" \"b\"]; #4 [\"b\" 7 7 1 \"a\" \"b\"]; #5 1");
    SAYS("ONCE 1 1 ROUTE.MOVE p s 3 LEASE 1 b FORCE", "[\"b\" 7 7 1 \"a\" \"b\"]");
}
END_TEST

START_TEST(it_goes_with_its_lease) {
    leases(2);
    const uint64_t before = memory();
    SAYS("ONCE 1 1 DEL none", "0");
    ck_assert_uint_gt(memory(), before + 4);
    SAYS("ONCE 1 2 LEASE.REVOKE 1", "1");
    SAYS("ONCE 1 2 LEASE.REVOKE 1", "-NOLEASE lease 1 does not exist or has ended");
    ck_assert_uint_eq(memory(), before);
    SAYS("ONCE 2 1 LOCK.ACQUIRE l LEASE 2", "6");
    facts_of("%EXPIRE 2");
    SAYS("ONCE 2 1 LOCK.ACQUIRE l LEASE 2", "-NOLEASE lease 2 does not exist or has ended");
    ck_assert_uint_eq(memory(), before);
}
END_TEST

START_TEST(limits_hold) {
    char line[64];
    leases(1);
    for (int i = 1; i <= 1100; i++) {
        snprintf(line, sizeof line, "ONCE 1 %d INCR n", i);
        facts_of(line);
    }
    SAYS("ONCE 1 1100 INCR n", "1100");
    SAYS("ONCE 1 77 INCR n", "77"); /* the last 1024 of them */
    SAYS("ONCE 1 76 INCR n", "-ERR seq 76 is older than the last one of lease 1, 1100, and not remembered");
    static char large[70001];
    memset(large, 'x', sizeof large - 1);
    const struct slice argv[] = {slice_str("SET"), slice_str("large"), slice_str(large)};
    batch_start();
    batch_add(&story_value, ORIGIN_NONE, 3, argv);
    batch_end();
    const char *first =
        answer_of("ONCE 1 1101 SET large xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx GET");
    ck_assert_uint_eq(strlen(first), 70002);
    SAYS("ONCE 1 1101 SET large xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx GET",
         "-ERR this command ran, and its reply of 70010 bytes was too long to be kept for a repeat");
    origin_is(ORIGIN_NODE_NONE, 0);
    facts_of("%SETTINGS memory_max 1048576");
    origin_is(0, 1);
    for (size_t bytes = 60000; bytes > 0; bytes /= 2) { /* until not a byte is left */
        const char *said = "";
        for (int i = 0; strncmp(said, "-BUSY", 5) != 0; i++) {
            char name[32];
            snprintf(name, sizeof name, "f%zu-%d", bytes, i);
            const struct slice words[] = {slice_str("SET"), slice_str(name), slice_of(large, bytes)};
            batch_start();
            batch_add(&story_value, (struct origin){.node = 0, .boot = 1, .seq = ++story_seq}, 3, words);
            batch_end();
            said = story_own_answer(story_seq);
        }
    }
    ck_assert_int_eq(strncmp(answer_of("ONCE 1 1102 DEL none"), "-BUSY memory-max: ", 18), 0);
    SAYS("DEL large f60000-0", "2");
    SAYS("ONCE 1 1102 DEL none", "0");
}
END_TEST

/* ---- scripts ---- */

static const char *once_eval(const char *lease, const char *seq, const char *name, const char *text) {
    const struct slice argv[] = {slice_str("ONCE"), slice_str(lease), slice_str(seq), slice_str(name),
                                 slice_str(text),   slice_str("1"),   slice_str("k")};
    uint64_t number = 0;
    const char *said = script_start(&number, 7, argv);
    if (*said != '\0') return said;
    batch_end();
    return story_own_answer(number);
}
#define INCREMENT "return redis.call('incr', KEYS[1])"

START_TEST(scripts_run_once_too) {
    leases(1);
    ck_assert_str_eq(once_eval("1", "1", "EVAL", INCREMENT), "1");
    ck_assert_str_eq(once_eval("1", "1", "EVAL", INCREMENT), "1");
    SEES("GET k", "\"1\"");
    ck_assert_str_eq(once_eval("1", "1", "EVAL", "return 7"), "-ERR seq 1 of lease 1 was used for another command");
    ck_assert_str_eq(once_eval("9", "1", "EVAL", INCREMENT), "-NOLEASE lease 9 does not exist or has ended");
    ck_assert_str_eq(once_eval("1", "x", "EVAL", INCREMENT),
                     "refused -ERR seq must be an integer from 1 to 9223372036854775807, not 'x'");
    ck_assert_str_eq(once_eval("1", "2", "EVAL", "return redis.error_reply('BUSY I did run')"), "-BUSY I did run");
    SAYS("ONCE 1 2 INCR n", "-ERR seq 2 of lease 1 was used for another command");
    /* By digest; a repeat does not need the script any more. */
    ck_assert_str_eq(once_eval("1", "3", "EVALSHA", "ffffffffffffffffffffffffffffffffffffffff"),
                     "refused -NOSCRIPT No matching script. Please use EVAL.");
    char sha[64] = "";
    snprintf(sha, sizeof sha, "%.40s", answer_of("SCRIPT LOAD 'return 5'") + 1);
    ck_assert_str_eq(once_eval("1", "3", "EVALSHA", sha), "5");
    SAYS("SCRIPT FLUSH", "OK");
    ck_assert_str_eq(once_eval("1", "3", "EVALSHA", sha), "5");
    ck_assert_str_eq(once_eval("1", "4", "EVALSHA", sha), "refused -NOSCRIPT No matching script. Please use EVAL.");
}
END_TEST

/* Two attempts on their way at once; and one whose key changed before it was applied. */
START_TEST(of_two_scripts_under_way_one_counts) {
    const struct slice argv[] = {slice_str("ONCE"),    slice_str("1"), slice_str("1"), slice_str("EVAL"),
                                 slice_str(INCREMENT), slice_str("1"), slice_str("k")};
    leases(1);
    uint64_t seq = 0;
    ck_assert_str_eq(script_start(&seq, 7, argv), "");
    struct buf late = {.alloc = heap_alloc()};
    buf_append_slice(&late, buf_slice(&story_value));
    SAYS("SET k 5", "OK");
    buf_clear(&story_value);
    buf_append_slice(&story_value, buf_slice(&late));
    batch_end();
    ck_assert_str_eq(story_own_answer(seq), "void"); /* nothing is remembered: it has to run again */
    ck_assert_str_eq(script_start(&seq, 7, argv), "");
    buf_clear(&late);
    buf_append_slice(&late, buf_slice(&story_value));
    batch_end();
    ck_assert_str_eq(story_own_answer(seq), "6");
    buf_clear(&story_value);
    buf_append_slice(&story_value, buf_slice(&late));
    batch_end();
    ck_assert_str_eq(story_own_answer(seq), "6");
    SEES("GET k", "\"6\"");
    buf_release(&late);
}
END_TEST

static void add(TCase *tc) {
    tcase_add_test(tc, a_repeat_gets_the_first_reply);
    tcase_add_loop_test(tc, what_cannot_run_is_not_remembered, 0, sizeof wrong / sizeof wrong[0]);
    tcase_add_test(tc, what_met_a_limit_may_be_asked_for_again);
    tcase_add_test(tc, a_repeat_joins_a_wait);
    tcase_add_test(tc, a_wait_that_ran_out_is_over);
    tcase_add_test(tc, a_wait_that_was_given_up_may_begin_again);
    tcase_add_test(tc, a_move_is_joined_too);
    tcase_add_test(tc, it_goes_with_its_lease);
    tcase_add_test(tc, limits_hold);
    tcase_add_test(tc, scripts_run_once_too);
    tcase_add_test(tc, of_two_scripts_under_way_one_counts);
}

int main(void) {
    return story_main("keyspace once", add);
}
