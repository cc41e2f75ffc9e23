/* Strings: replies, errors and times to live are those of Redis 7.0 (each row was compared with redis-server 7.0.15).
 */
#include "ks_story.h"

START_TEST(set_and_get) {
    SEES("GET a", "nil");
    SAYS("SET a 1", "OK");
    SEES("GET a", "\"1\"");
    SAYS("set a '' xx", "OK");
    SEES("GET a", "\"\"");
    SAYS("SET a 2 NX", "nil");
    SAYS("SET b 2 XX", "nil");
    SAYS("SET b 2 nx", "OK");
    SAYS("SET b 3 GET", "\"2\"");
    SAYS("SET c 1 GET", "nil");
    SAYS("SET c 9 NX GET", "\"1\""); /* refused, and says what stands there */
    SAYS("SET d 9 GET NX", "nil");
    SEES("GET d", "\"9\"");
    SAYS("SET e 9 XX GET", "nil");
    SEES("GET e", "nil");
    SAYS("SET '' empty", "OK");
    SEES("GET ''", "\"empty\"");
    SEES("EXISTS a b nope a", "3");
    SEES("TYPE a", "string");
    SEES("TYPE nope", "none");
    SEES("DBSIZE", "5");
    SAYS("DEL a b nope a", "2");
    SEES("DBSIZE", "3");
}
END_TEST

static const struct {
    const char *line, *want;
} refused[] = {
    {"SET a 1 NX XX", "-ERR syntax error"},
    {"SET a 1 EX", "-ERR syntax error"},
    {"SET a 1 PX 5 EX 5", "-ERR syntax error"},
    {"SET a 1 KEEPTTL PX 5", "-ERR syntax error"},
    {"SET a 1 PX 5 KEEPTTL", "-ERR syntax error"},
    {"SET a 1 EXAT 5", "-ERR syntax error"},
    {"SET a 1 nonsense", "-ERR syntax error"},
    {"SET a 1 LEASE", "-ERR syntax error"},
    {"SET a 1 LEASE 1 PX 5", "-ERR syntax error"},
    {"SET a 1 KEEPTTL LEASE 1", "-ERR syntax error"},
    {"SET a 1 EX x", "-ERR value is not an integer or out of range"},
    {"SET a 1 EX 1.5", "-ERR value is not an integer or out of range"},
    {"SET a 1 PX 99999999999999999999", "-ERR value is not an integer or out of range"},
    {"SET a 1 EX 0", "-ERR invalid expire time in 'set' command"},
    {"SET a 1 PX -5", "-ERR invalid expire time in 'set' command"},
    {"SET a 1 EX 9223372036854775807", "-ERR invalid expire time in 'set' command"},
    {"SET a 1 PX 9223372036854775807", "-ERR invalid expire time in 'set' command"},
    {"SET a 1 LEASE x", "-ERR LEASE must be an integer from 0 to 9223372036854775807, not 'x'"},
    {"SET a 1 LEASE 99", "-NOLEASE lease 99 does not exist or has ended"},
    {"EXPIRE s x", "-ERR value is not an integer or out of range"},
    {"EXPIRE s 9223372036854775807", "-ERR invalid expire time in 'expire' command"},
    {"EXPIRE s -9223372036854775808", "-ERR invalid expire time in 'expire' command"},
    {"PEXPIRE s 9223372036854775807", "-ERR invalid expire time in 'pexpire' command"},
    {"EXPIRE s 5 NX XX", "-ERR NX and XX, GT or LT options at the same time are not compatible"},
    {"EXPIRE s 5 GT NX", "-ERR NX and XX, GT or LT options at the same time are not compatible"},
    {"EXPIRE s 5 GT LT", "-ERR GT and LT options at the same time are not compatible"},
    {"EXPIRE s 5 WHAT", "-ERR Unsupported option WHAT"},
    {"INCR s", "-ERR value is not an integer or out of range"},
    {"INCR max", "-ERR increment or decrement would overflow"},
    {"FLUSHALL NOW", "-ERR syntax error"},
    {"FLUSHALL SYNC SYNC", "-ERR syntax error"},
    {"GET", "-ERR wrong number of arguments for 'GET' command"},
    {"SET a", "-ERR wrong number of arguments for 'SET' command"},
    {"NOSUCH a", "-ERR unknown command 'NOSUCH'"},
    {"EVAL x 0", "-ERR unknown command 'EVAL'"}, /* never in a batch */
};
START_TEST(what_is_refused_changes_nothing) {
    at(1000);
    SAYS("SET s text", "OK");
    SAYS("SET max 9223372036854775807", "OK");
    SAYS(refused[_i].line, refused[_i].want);
    SEES("DBSIZE", "2");
    SEES("GET s", "\"text\"");
    SEES("PTTL s", "-1");
    SEES("GET max", "\"9223372036854775807\"");
}
END_TEST

START_TEST(incr_counts) {
    SAYS("INCR n", "1");
    SAYS("INCR n", "2");
    SAYS("SET n -1", "OK");
    SAYS("INCR n", "0");
    at(100);
    SAYS("SET n 41 PX 1000", "OK");
    SAYS("INCR n", "42"); /* keeps the time to live */
    SEES("PTTL n", "1000");
    SAYS("SET n 01", "OK");
    SAYS("INCR n", "-ERR value is not an integer or out of range");
}
END_TEST

START_TEST(times_to_live) {
    at(1000);
    SAYS("SET a 1 PX 1500", "OK");
    SEES("PTTL a", "1500");
    SEES("TTL a", "2"); /* rounded, as Redis does */
    READS(1001, "TTL a", "1");
    SAYS("SET a 2 KEEPTTL", "OK");
    SEES("PTTL a", "1500");
    SAYS("SET a 3", "OK");
    SEES("PTTL a", "-1");
    SEES("TTL nope", "-2");
    SEES("PTTL nope", "-2");
    SAYS("EXPIRE a 10", "1");
    SEES("TTL a", "10");
    SAYS("PERSIST a", "1");
    SAYS("PERSIST a", "0");
    SAYS("PERSIST nope", "0");
    SAYS("EXPIRE nope 10", "0");
    SAYS("SET a 4 EX 10 ex 20", "OK"); /* Redis takes the last */
    SEES("PTTL a", "20000");
}
END_TEST

static const struct {
    const char *start, *option;
    int ms;
    const char *want;
} conditions[] = {
    {"SET a 1", "NX", 500, "1"},          {"SET a 1 PX 1000", "NX", 500, "0"},  {"SET a 1", "XX", 500, "0"},
    {"SET a 1 PX 1000", "XX", 500, "1"},  {"SET a 1", "GT", 500, "0"},          {"SET a 1 PX 1000", "GT", 500, "0"},
    {"SET a 1 PX 1000", "GT", 1000, "0"}, {"SET a 1 PX 1000", "GT", 1001, "1"}, {"SET a 1", "LT", 500, "1"},
    {"SET a 1 PX 1000", "LT", 500, "1"},  {"SET a 1 PX 1000", "LT", 1000, "0"}, {"SET a 1 PX 1000", "xx gt", 2000, "1"},
    {"SET a 1", "XX LT", 500, "0"},
};
START_TEST(conditions_of_expire) {
    char line[64];
    at(5000);
    SAYS(conditions[_i].start, "OK");
    snprintf(line, sizeof line, "PEXPIRE a %d %s", conditions[_i].ms, conditions[_i].option);
    SAYS(line, conditions[_i].want);
}
END_TEST

START_TEST(a_deadline_in_the_past_deletes) {
    at(5000);
    SAYS("SET a 1", "OK");
    SAYS("EXPIRE a 0", "1");
    SEES("EXISTS a", "0");
    SAYS("SET a 1", "OK");
    SAYS("PEXPIRE a -1", "1");
    SEES("EXISTS a", "0");
    SAYS("EXPIRE a -1", "0");
}
END_TEST

/* K3: by the stamp of the entry, before its first command. */
START_TEST(keys_end_by_the_stamp) {
    at(1000);
    SAYS("SET a 1 PX 500", "OK");
    SAYS("SET b 1 PX 600", "OK");
    ck_assert_uint_eq(keyspace_next_due(ks), 1500);
    at(1499);
    SAYS("SET c 1", "OK");
    SEES("EXISTS a b", "2");
    at(1500);
    SAYS("SET a 2 NX", "OK"); /* it had ended before this ran */
    SEES("EXISTS a b", "2");
    SEES("PTTL a", "-1");
    ck_assert_uint_eq(keyspace_next_due(ks), 1600);
    at(9999);
    batch_start();
    batch_end(); /* an entry without commands ends what is due, too */
    SEES("EXISTS b", "0");
    ck_assert_uint_eq(keyspace_next_due(ks), UINT64_MAX);
}
END_TEST

/* The heap against the plainest model there is. */
START_TEST(what_is_due_next_is_always_known) {
    enum { KEYS = 200 };
    uint64_t deadlines[KEYS] = {0}; /* 0: none */
    char line[64];
    at(1000);
    for (int round = 0; round < 4000; round++) {
        const int key = rand() % KEYS;
        const bool ends = rand() % 3 == 0;
        snprintf(line, sizeof line, ends ? "DEL k%d" : "SET k%d 1 PX %d", key, 1 + rand() % 300);
        int ms = 0;
        if (!ends) QUICK(sscanf(strrchr(line, ' '), "%d", &ms) == 1);
        deadlines[key] = ends ? 0 : 1000 + (uint64_t)ms;
        answer_of(line);
        uint64_t next = UINT64_MAX;
        for (int i = 0; i < KEYS; i++)
            if (deadlines[i] != 0 && deadlines[i] < next) next = deadlines[i];
        if (keyspace_next_due(ks) != next) ck_abort_msg("round %d: %s", round, line);
    }
    while (keyspace_next_due(ks) != UINT64_MAX) { /* and they end in order, to the last one */
        uint64_t next = UINT64_MAX;
        for (int i = 0; i < KEYS; i++)
            if (deadlines[i] != 0 && deadlines[i] < next) next = deadlines[i];
        if (keyspace_next_due(ks) != next)
            ck_abort_msg("%llu is due next, not %llu", (unsigned long long)next,
                         (unsigned long long)keyspace_next_due(ks));
        for (int i = 0; i < KEYS; i++)
            if (deadlines[i] == next) deadlines[i] = 0;
        at(next);
        batch_start();
        batch_end();
    }
    SEES("DBSIZE", "0");
}
END_TEST

/* T3: no read says what the log does not. */
START_TEST(a_read_waits_for_the_log) {
    at(1000);
    SAYS("SET a 1 PX 500", "OK");
    SAYS("SET b 1 PX 600", "OK");
    READS(1499, "GET a", "\"1\"");
    READS(1499, "PTTL a", "1");
    READS(1500, "GET a", "needs 1500");
    READS(1700, "PTTL a", "needs 1500");
    READS(1700, "TYPE a", "needs 1500");
    READS(1700, "GETV a", "needs 1500");
    READS(1700, "LOCK.INFO a", "needs 1500");
    READS(1700, "LOCK.CHECK a 1", "needs 1500");
    READS(1700, "ELECT.LEADER a", "needs 1500");
    READS(1550, "EXISTS a b", "needs 1500");
    READS(1700, "EXISTS a b", "needs 1600"); /* the latest that is needed */
    READS(1700, "EXISTS b a", "needs 1600");
    READS(1700, "DBSIZE", "needs 1700");
    READS(1499, "DBSIZE", "2");
    READS(1700, "GET c", "nil");
    at(1650);
    SAYS("SET c 1", "OK");
    READS(1700, "EXISTS a b c", "1");
    READS(1700, "DBSIZE", "1");
}
END_TEST

START_TEST(a_read_is_no_way_to_write) {
    READS(0, "SET a 1", "-ERR 'SET' is not a read");
    READS(0, "%EXPIRE 1", "-ERR unknown command '%EXPIRE'");
    READS(0, "PING", "-ERR unknown command 'PING'");
    READS(0, "GET a b", "-ERR wrong number of arguments for 'GET' command");
    SEES("DBSIZE", "0");
}
END_TEST

START_TEST(flushall_takes_strings_only) {
    at(100);
    SAYS("SET a 1", "OK");
    SAYS("SET b 1 PX 50", "OK");
    SAYS("flushall async", "OK");
    SEES("DBSIZE", "0");
    ck_assert_uint_eq(keyspace_next_due(ks), UINT64_MAX);
    SAYS("SET a 1", "OK");
    SAYS("WOR.SET r 1", "[1 5 \"1\"]");
    SAYS("FLUSHALL", "-ERR FLUSHALL is refused while write-once registers or held locks exist: 1 and 0 do");
    SEES("EXISTS a r", "2");
}
END_TEST

START_TEST(limits_are_named) {
    batch_begin(&story_value, story_ballot, true, 10);
    origin_is(ORIGIN_NODE_NONE, 0);
    batch_line("%SETTINGS key_bytes_max 16 value_bytes_max 64 keys_max 3 memory_max 1 unknown 7 leases_max x");
    ck_assert_str_eq(batch_end(), "first 1.0");
    origin_is(0, 1);
    ck_assert(keyspace_has_settings(ks));
    ck_assert_uint_eq(keyspace_settings(ks)->key_bytes_max, 16);
    ck_assert_uint_eq(keyspace_settings(ks)->memory_max, 1048576); /* the lowest there may be */
    ck_assert_uint_eq(keyspace_settings(ks)->leases_max, 2000000);
    SAYS("SET 12345678901234567 1", "-ERR key is too long: 17 bytes, key-bytes-max is 16");
    SAYS("DEL a 12345678901234567", "-ERR key is too long: 17 bytes, key-bytes-max is 16");
    SAYS("SET a 12345678901234567890123456789012345678901234567890123456789012345",
         "-ERR value is too long: 65 bytes, value-bytes-max is 64");
    SAYS("CAS a 0 12345678901234567890123456789012345678901234567890123456789012345",
         "-ERR value is too long: 65 bytes, value-bytes-max is 64");
    SAYS("WOR.SET a 12345678901234567890123456789012345678901234567890123456789012345",
         "-ERR value is too long: 65 bytes, value-bytes-max is 64");
    SAYS("SET a 1", "OK");
    SAYS("SET b 1", "OK");
    SAYS("SET c 1", "OK");
    SAYS("SET d 1", "-BUSY keys-max: there are 3 keys");
    SAYS("INCR d", "-BUSY keys-max: there are 3 keys");
    SAYS("CAS d 0 1", "-BUSY keys-max: there are 3 keys");
    SAYS("WOR.SET d 1", "-BUSY keys-max: there are 3 keys");
    SAYS("SET d 1 XX", "nil");
    SAYS("SET a 2", "OK"); /* what exists may change */
    SAYS("DEL b", "1");
    SAYS("INCR d", "1");
    SAYS("%SETTINGS keys_max 1000", "OK"); /* the first ones count for ever */
    ck_assert_uint_eq(keyspace_settings(ks)->keys_max, 3);
}
END_TEST

START_TEST(memory_is_limited) {
    struct ks_counts counts;
    char line[1200];
    batch_begin(&story_value, story_ballot, true, 10);
    batch_line("%SETTINGS memory_max 1048576");
    batch_end();
    int kept = 0;
    for (;; kept++) {
        snprintf(line, sizeof line, "SET k%d %01000d", kept, 0);
        const char *said = answer_of(line);
        if (strcmp(said, "OK") == 0) continue;
        ck_assert_int_eq(strncmp(said, "-BUSY memory-max: keys and values take 104", 42), 0);
        break;
    }
    ck_assert_int_ge(kept, 1040);
    snprintf(line, sizeof line, "SET k0 %01000d", 7); /* what does not grow may change */
    SAYS(line, "OK");
    SAYS("SET k0 0", "OK");
    SAYS("INCR k0", "1");
    keyspace_counts(ks, &counts);
    ck_assert_uint_eq(counts.keys, (uint64_t)kept);
    ck_assert_uint_le(counts.memory_bytes, 1048576);
    SAYS("FLUSHALL", "OK");
    keyspace_counts(ks, &counts);
    ck_assert_uint_eq(counts.memory_bytes, 0);
    SAYS("SET k 1", "OK");
}
END_TEST

START_TEST(a_key_goes_with_its_lease) {
    at(1000);
    SAYS("LEASE.GRANT 5000", "1");
    SAYS("SET a 1 LEASE 1", "OK");
    SAYS("SET b 1 LEASE 1", "OK");
    SAYS("SET c 1 LEASE 1", "OK");
    SEES("PTTL a", "-1");
    SAYS("SET b 2", "OK");         /* on its own again */
    SAYS("SET c 2 KEEPTTL", "OK"); /* stays with the lease */
    SAYS("INCR c", "3");
    SAYS("PEXPIRE c 100000", "1"); /* whichever comes first */
    FACTS("%EXPIRE 1", "lease- 1; #9 1");
    SEES("EXISTS a", "0");
    SEES("EXISTS b", "1");
    SEES("EXISTS c", "0");
    ck_assert_uint_eq(keyspace_next_due(ks), UINT64_MAX);
}
END_TEST

static void add(TCase *tc) {
    tcase_add_test(tc, set_and_get);
    tcase_add_loop_test(tc, what_is_refused_changes_nothing, 0, sizeof refused / sizeof refused[0]);
    tcase_add_test(tc, incr_counts);
    tcase_add_test(tc, times_to_live);
    tcase_add_loop_test(tc, conditions_of_expire, 0, sizeof conditions / sizeof conditions[0]);
    tcase_add_test(tc, a_deadline_in_the_past_deletes);
    tcase_add_test(tc, keys_end_by_the_stamp);
    tcase_add_test(tc, what_is_due_next_is_always_known);
    tcase_add_test(tc, a_read_waits_for_the_log);
    tcase_add_test(tc, a_read_is_no_way_to_write);
    tcase_add_test(tc, flushall_takes_strings_only);
    tcase_add_test(tc, limits_are_named);
    tcase_add_test(tc, memory_is_limited);
    tcase_add_test(tc, a_key_goes_with_its_lease);
}
int main(void) {
    return story_main("ks_string", add);
}
