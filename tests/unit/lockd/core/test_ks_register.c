/* Compare-and-set by version, and registers that are written once (K7). */
#include "ks_story.h"

START_TEST(cas_goes_by_the_version) {
    SAYS("CAS a 0 one", "[1 1]");
    SAYS("CAS a 0 two", "[0 1 \"one\"]");
    SAYS("CAS a 1 two", "[1 3]");
    SAYS("CAS a 1 three", "[0 3 \"two\"]"); /* of two that race, one wins */
    SEES("GETV a", "[3 \"two\"]");
    SEES("GETV nope", "nil");
    SAYS("CAS nope 7 x", "[0 0 nil]");
    SEES("EXISTS nope", "0");
    SAYS("SET a x", "OK");
    SEES("GETV a", "[6 \"x\"]"); /* every write has a version */
    SAYS("DEL a", "1");
    SAYS("CAS a 6 y", "[0 0 nil]");
    SAYS("CAS a 0 y", "[1 9]"); /* versions grow over deletions */
}
END_TEST

/* F: changing only the deadline leaves the version. */
START_TEST(a_deadline_is_no_version) {
    at(1000);
    SAYS("SET a x", "OK");
    SAYS("PEXPIRE a 5000", "1");
    SAYS("PERSIST a", "1");
    SAYS("PEXPIRE a 5000", "1");
    SEES("GETV a", "[1 \"x\"]");
    SAYS("CAS a 1 y", "[1 5]");
    SEES("PTTL a", "-1"); /* as SET does */
    SAYS("PEXPIRE a 5000", "1");
    SAYS("CAS a 1 y", "[0 5 \"y\"]");
    SEES("PTTL a", "5000"); /* what failed changed nothing */
}
END_TEST

START_TEST(cas_attaches_to_a_lease) {
    SAYS("LEASE.GRANT 5000", "1");
    SAYS("CAS a 0 x LEASE 1", "[1 2]");
    SAYS("CAS b 0 x LEASE 1", "[1 3]");
    SAYS("CAS b 3 y", "[1 4]"); /* on its own again */
    SAYS("LEASE.REVOKE 1", "1");
    SEES("EXISTS a", "0");
    SEES("EXISTS b", "1");
}
END_TEST

/* B44: the first write wins for ever, and everybody is told. */
START_TEST(a_register_is_written_once) {
    SEES("WOR.GET r", "nil");
    SAYS("WOR.SET r first", "[1 1 \"first\"]");
    SAYS("WOR.SET r second", "[0 1 \"first\"]");
    SAYS("WOR.SET r first", "[0 1 \"first\"]");
    SEES("WOR.GET r", "[1 \"first\"]");
    SEES("TYPE r", "register");
    SEES("EXISTS r", "1");
    SEES("TTL r", "-1");
}
END_TEST

static const struct {
    const char *line, *want;
} refused[] = {
    {"SET r x", "-WRITEONCE key 'r' is a write-once register"},
    {"SET r x NX", "-WRITEONCE key 'r' is a write-once register"},
    {"SET r x XX GET", "-WRITEONCE key 'r' is a write-once register"},
    {"DEL a r", "-WRITEONCE key 'r' is a write-once register"},
    {"INCR r", "-WRITEONCE key 'r' is a write-once register"},
    {"EXPIRE r 10", "-WRITEONCE key 'r' is a write-once register"},
    {"EXPIRE r 0", "-WRITEONCE key 'r' is a write-once register"},
    {"PERSIST r", "-WRITEONCE key 'r' is a write-once register"},
    {"CAS r 2 x", "-WRITEONCE key 'r' is a write-once register"},
    {"FLUSHALL", "-ERR FLUSHALL is refused while write-once registers or held locks exist: 1 and 0 do"},
    {"GET r", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"GETV r", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"WOR.SET a x", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"WOR.GET a", "-WRONGTYPE Operation against a key holding the wrong kind of value"},
    {"CAS a x y", "-ERR the version must be an integer from 0 to 9223372036854775807, not 'x'"},
    {"CAS a -1 y", "-ERR the version must be an integer from 0 to 9223372036854775807, not '-1'"},
    {"CAS a 1 y LEASE", "-ERR syntax error"},
    {"CAS a 1 y WHAT 1", "-ERR syntax error"},
    {"CAS a 1 y LEASE 1 1", "-ERR syntax error"},
    {"CAS a 1 y LEASE 9", "-NOLEASE lease 9 does not exist or has ended"},
    {"WOR.SET a", "-ERR wrong number of arguments for 'WOR.SET' command"},
};
START_TEST(what_is_refused_changes_nothing) {
    SAYS("SET a 1", "OK");
    SAYS("WOR.SET r first", "[1 2 \"first\"]");
    SAYS(refused[_i].line, refused[_i].want);
    SEES("WOR.GET r", "[2 \"first\"]");
    SEES("GETV a", "[1 \"1\"]");
}
END_TEST

static void add(TCase *tc) {
    tcase_add_test(tc, cas_goes_by_the_version);
    tcase_add_test(tc, a_deadline_is_no_version);
    tcase_add_test(tc, cas_attaches_to_a_lease);
    tcase_add_test(tc, a_register_is_written_once);
    tcase_add_loop_test(tc, what_is_refused_changes_nothing, 0, sizeof refused / sizeof refused[0]);
}
int main(void) {
    return story_main("ks_register", add);
}
