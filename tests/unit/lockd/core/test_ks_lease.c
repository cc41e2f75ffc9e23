/* Leases: ids are revisions, everything that hangs on one goes with it (L1, L3). */
#include "ks_story.h"

START_TEST(a_lease_is_granted_and_ends) {
    at(1000);
    FACTS("LEASE.GRANT 5000 NAME anna", "lease+ 1 5000; #1 1");
    FACTS("lease.grant 86400000", "lease+ 2 86400000; #2 2");
    uint64_t ttl_ms = 0;
    ck_assert(keyspace_lease(ks, 1, &ttl_ms));
    ck_assert_uint_eq(ttl_ms, 5000);
    ck_assert(!keyspace_lease(ks, 3, &ttl_ms));
    FACTS("LEASE.REVOKE 1", "lease- 1; #3 1");
    FACTS("LEASE.REVOKE 1", "#4 0");
    ck_assert(!keyspace_lease(ks, 1, &ttl_ms));
    FACTS("%EXPIRE 1 2 2 99 junk", "lease- 2; #5 1");
    FACTS("LEASE.GRANT 1000", "lease+ 6 1000; #6 6"); /* ids are never used again */
}
END_TEST

static const struct {
    const char *line, *want;
} refused[] = {
    {"LEASE.GRANT 999", "-ERR ttl-ms must be an integer from 1000 to 86400000, not '999'"},
    {"LEASE.GRANT 86400001", "-ERR ttl-ms must be an integer from 1000 to 86400000, not '86400001'"},
    {"LEASE.GRANT x", "-ERR ttl-ms must be an integer from 1000 to 86400000, not 'x'"},
    {"LEASE.GRANT 5000 NAME", "-ERR syntax error"},
    {"LEASE.GRANT 5000 WHAT x", "-ERR syntax error"},
    {"LEASE.GRANT 5000 NAME x y", "-ERR syntax error"},
    {"LEASE.GRANT 5000 NAME 12345678901234567", "-ERR the NAME of a lease is too long: 17 bytes, key-bytes-max is 16"},
    {"LEASE.REVOKE x", "-ERR the lease id must be an integer from 1 to 9223372036854775807, not 'x'"},
    {"LEASE.REVOKE -1", "-ERR the lease id must be an integer from 1 to 9223372036854775807, not '-1'"},
    {"LEASE.LIST x", "-ERR the cursor must be an integer from 0 to 9223372036854775807, not 'x'"},
    {"LEASE.LIST 0 0", "-ERR syntax error"},
    {"LEASE.KEEPALIVE 1", "-ERR unknown command 'LEASE.KEEPALIVE'"}, /* the leader's memory answers it, never the log */
};
START_TEST(what_is_refused) {
    batch_begin(&story_value, story_ballot, true, 10);
    batch_line("%SETTINGS key_bytes_max 16");
    batch_end();
    SAYS(refused[_i].line, refused[_i].want);
    SEES("LEASE.LIST", "[0 []]");
}
END_TEST

START_TEST(leases_are_limited) {
    batch_begin(&story_value, story_ballot, true, 10);
    batch_line("%SETTINGS leases_max 2");
    batch_end();
    SAYS("LEASE.GRANT 5000", "2");
    SAYS("LEASE.GRANT 5000", "3");
    SAYS("LEASE.GRANT 5000", "-BUSY leases-max: 2 leases are alive");
    SAYS("LEASE.REVOKE 2", "1");
    SAYS("LEASE.GRANT 5000", "6");
}
END_TEST

static const char *info_of(uint64_t id) {
    struct buf reply = {.alloc = heap_alloc()};
    keyspace_lease_info(ks, id, 1234, &reply);
    buf_clear(&story_text);
    story_show_reply(&story_text, buf_slice(&reply));
    buf_append(&story_text, "", 1);
    buf_release(&reply);
    return story_text.data;
}
START_TEST(info_counts_what_hangs_on_it) {
    at(1000);
    SAYS("LEASE.GRANT 5000 NAME 'anna b'", "1");
    SAYS("LEASE.GRANT 5000", "2");
    ck_assert_str_eq(info_of(1), "[\"id\" 1 \"ttl\" 5000 \"remaining\" 1234 \"name\" \"anna b\" \"keys\" 0]");
    SAYS("SET a 1 LEASE 1", "OK");
    SAYS("LOCK.ACQUIRE l LEASE 1", "4");
    SAYS("LOCK.ACQUIRE m LEASE 2", "5");
    SAYS("LOCK.ACQUIRE m LEASE 1 WAIT 5000", "queued");
    ck_assert_str_eq(info_of(1), "[\"id\" 1 \"ttl\" 5000 \"remaining\" 1234 \"name\" \"anna b\" \"keys\" 3]");
    SAYS("SET a 1", "OK");
    SAYS("LOCK.RELEASE l LEASE 1", "1");
    SAYS("LOCK.RELEASE m LEASE 1", "1");
    ck_assert_str_eq(info_of(1), "[\"id\" 1 \"ttl\" 5000 \"remaining\" 1234 \"name\" \"anna b\" \"keys\" 0]");
    ck_assert_str_eq(info_of(77), "nil");
}
END_TEST

START_TEST(everything_goes_with_it) {
    at(1000);
    SAYS("LEASE.GRANT 5000", "1");
    SAYS("LEASE.GRANT 5000", "2");
    SAYS("SET a 1 LEASE 1", "OK");
    SAYS("SET b 1 LEASE 2", "OK");
    SAYS("SET b 2 LEASE 1", "OK"); /* moves over */
    SAYS("CAS c 0 1 LEASE 1", "[1 6]");
    SAYS("LOCK.ACQUIRE l LEASE 1", "7");
    SAYS("LOCK.ACQUIRE m LEASE 2", "8");
    SAYS("LOCK.ACQUIRE m LEASE 1 WAIT 9000", "queued"); /* #9 */
    FACTS("LEASE.REVOKE 1", "#9 -NOLEASE lease 1 ended while it waited; lease- 1; #10 1");
    SEES("EXISTS a b c l", "0");
    SEES("EXISTS m", "1");
    SAYS("LOCK.ACQUIRE n LEASE 1", "-NOLEASE lease 1 does not exist or has ended");
    SAYS("SET n 1 LEASE 1", "-NOLEASE lease 1 does not exist or has ended");
    FACTS("LEASE.REVOKE 2", "lease- 2; #13 1");
    SEES("DBSIZE", "0");
}
END_TEST

START_TEST(what_remains_is_replicated) {
    SAYS("LEASE.GRANT 5000", "1");
    SAYS("LEASE.GRANT 5000", "2");
    ck_assert_uint_eq(keyspace_lease_remaining(ks, 1), 0);
    SAYS("%REMAINING 1 700 9 700 2 9000 x 5 1", "OK"); /* one is gone, one more than its ttl, and one has no number */
    ck_assert_uint_eq(keyspace_lease_remaining(ks, 1), 700);
    ck_assert_uint_eq(keyspace_lease_remaining(ks, 2), 5000);
    ck_assert_uint_eq(keyspace_lease_remaining(ks, 9), 0);
    SAYS("%REMAINING 1 0 2 -1", "OK"); /* no times */
    ck_assert_uint_eq(keyspace_lease_remaining(ks, 1), 700);
    SAYS("%REMAINING 1 400", "OK");
    ck_assert_uint_eq(keyspace_lease_remaining(ks, 1), 400);
    FACTS("%RENEWED 1 9 x", "lease= 1; #6 OK");
    ck_assert_uint_eq(keyspace_lease_remaining(ks, 1), 0);
    ck_assert_uint_eq(keyspace_lease_remaining(ks, 2), 5000);
    FACTS("%EXPIRE 2", "lease- 2; #7 1");
    ck_assert_uint_eq(keyspace_lease_remaining(ks, 2), 0);
}
END_TEST

static bool add_id(void *context, uint64_t id, uint64_t ttl_ms) {
    (void)ttl_ms;
    uint64_t *at_ = context;
    ck_assert_uint_gt(id, at_[0]); /* in order of grant */
    at_[0] = id;
    return ++at_[1] < 700;
}
START_TEST(the_list_comes_in_pages) {
    char line[64], want[64];
    batch_start();
    for (int i = 0; i < 2500; i++) batch_line("LEASE.GRANT 5000");
    batch_end();
    batch_start();
    for (int i = 1; i <= 2500; i++) {
        snprintf(line, sizeof line, "LEASE.REVOKE %d", i);
        if (i % 2 == 0) batch_line(line); /* the odd ones stay: 1250 */
    }
    batch_end();
    struct ks_counts counts;
    keyspace_counts(ks, &counts);
    ck_assert_uint_eq(counts.leases, 1250);
    const char *page = read_of(0, "LEASE.LIST");
    ck_assert_int_eq(strncmp(page, "[1999 [1 3 5 ", 13), 0);
    ck_assert_str_eq(page + strlen(page) - 12, " 1997 1999]]");
    page = read_of(0, "LEASE.LIST 1998"); /* a cursor need not be a lease */
    ck_assert_int_eq(strncmp(page, "[0 [1999 2001 ", 14), 0);
    page = read_of(0, "LEASE.LIST 1999");
    ck_assert_int_eq(strncmp(page, "[0 [2001 2003 ", 14), 0);
    ck_assert_str_eq(page + strlen(page) - 12, " 2497 2499]]");
    READS(0, "LEASE.LIST 2499", "[0 []]");
    READS(0, "LEASE.LIST 9223372036854775807", "[0 []]");
    uint64_t walked[2] = {0, 0};
    keyspace_each_lease(ks, add_id, walked);
    ck_assert_uint_eq(walked[1], 700); /* it stops when told to */
    for (int i = 1; i <= 2500; i++) {
        uint64_t ttl_ms;
        ck_assert_int_eq(keyspace_lease(ks, (uint64_t)i, &ttl_ms), i % 2);
    }
    snprintf(want, sizeof want, "%d", 2500 + 1250 + 1);
    SAYS("LEASE.GRANT 5000", want);
}
END_TEST

START_TEST(leases_that_come_and_go_leave_no_memory) {
    char line[64];
    size_t most = 0;
    SAYS("LEASE.GRANT 5000", "1"); /* one stays */
    for (int i = 0; i < 20000; i++) {
        batch_start();
        batch_line("LEASE.GRANT 5000");
        snprintf(line, sizeof line, "LEASE.REVOKE %d", 2 + 2 * i);
        batch_line(line);
        batch_end();
        QUICK(story_facts.count == 4);
        if (i == 1000) most = heap_bytes_in_use();
    }
    ck_assert_uint_le(heap_bytes_in_use(), most + 1024);
    SEES("LEASE.LIST", "[0 [1]]");
}
END_TEST

static void add(TCase *tc) {
    tcase_add_test(tc, a_lease_is_granted_and_ends);
    tcase_add_loop_test(tc, what_is_refused, 0, sizeof refused / sizeof refused[0]);
    tcase_add_test(tc, leases_are_limited);
    tcase_add_test(tc, info_counts_what_hangs_on_it);
    tcase_add_test(tc, everything_goes_with_it);
    tcase_add_test(tc, what_remains_is_replicated);
    tcase_add_test(tc, the_list_comes_in_pages);
    tcase_add_test(tc, leases_that_come_and_go_leave_no_memory);
}
int main(void) {
    return story_main("ks_lease", add);
}
