/* The keyspace as a whole: ballots, stamps, replies to whom, and that equal logs give equal states. */
#include "ks_story.h"
#include "lockd/core/command.h"

/* P9, K2 */
START_TEST(batches_of_deposed_leaders_are_void) {
    at(100);
    story_ballot = (struct ballot){.round = 5, .node = 2};
    batch_begin(&story_value, story_ballot, true, 100);
    batch_line("SET a 1");
    ck_assert_str_eq(batch_end(), "first 5.2; #1 OK");
    ck_assert(ballot_equal(keyspace_ballot(ks), story_ballot));
    const uint64_t hash = keyspace_hash(ks), revision = keyspace_revision(ks);

    at(9000);
    story_ballot = (struct ballot){.round = 5, .node = 1}; /* lower */
    FACTS("SET a 2", "");
    batch_begin(&story_value, story_ballot, true, 9000); /* its first entry, too */
    batch_line("%EXPIRE 1");
    ck_assert_str_eq(batch_end(), "");
    ck_assert_uint_eq(keyspace_revision(ks), revision);
    ck_assert_uint_eq(keyspace_stamp(ks), 100); /* nor does its time count */
    ck_assert_uint_ne(keyspace_hash(ks), hash); /* the slot was used, though */
    SEES("GET a", "\"1\"");

    story_ballot = (struct ballot){.round = 6, .node = 0};
    batch_begin(&story_value, story_ballot, true, 300);
    ck_assert_str_eq(batch_end(), "first 6.0");
    story_ballot = (struct ballot){.round = 5, .node = 2};
    FACTS("SET a 4", "");
    SEES("GET a", "\"1\"");
}
END_TEST

/* K2: the slot before was lost with its leader, and what that one sent after it must not run before what was in it. */
START_TEST(nothing_counts_after_a_gap) {
    at(100);
    SAYS("SET a 1", "OK");
    keyspace_apply(ks, ++story_slot, (struct slice){0}, &story_facts);
    ck_assert_uint_eq(story_facts.count, 0);
    ck_assert_uint_eq(keyspace_slot(ks), 2);
    ck_assert_uint_eq(keyspace_stamp(ks), 100);
    FACTS("INCR a", "");
    FACTS("INCR a", "");
    story_ballot = (struct ballot){.round = 9, .node = 2};
    batch_begin(&story_value, story_ballot, true, 300);
    ck_assert_str_eq(batch_end(), "first 9.2");
    SAYS("INCR a", "2");

    const struct ballot ours = story_ballot; /* filled with what an older leader had built is as good as empty */
    story_ballot = (struct ballot){.round = 5, .node = 1};
    FACTS("SET a 7", "");
    story_ballot = ours;
    FACTS("INCR a", "");
}
END_TEST

START_TEST(a_blank_slot_is_no_gap) {
    at(100);
    SAYS("SET a 1", "OK");
    keyspace_apply(ks, ++story_slot, PAXOS_BLANK, &story_facts);
    ck_assert_uint_eq(story_facts.count, 0);
    SAYS("INCR a", "2");
}
END_TEST

START_TEST(stamps_never_go_down) {
    at(1000);
    SAYS("SET a 1 PX 500", "OK");
    at(400); /* a leader whose clock is behind */
    SAYS("SET b 1 PX 500", "OK");
    ck_assert_uint_eq(keyspace_stamp(ks), 1000);
    SEES("PTTL b", "500");
    READS(300, "PTTL b", "500");
}
END_TEST

START_TEST(due_things_end_in_order) {
    at(0);
    SAYS("LEASE.GRANT 5000", "1");
    SAYS("LEASE.GRANT 5000", "2");
    SAYS("SET late 1 PX 500", "OK");
    SAYS("SET same 1 PX 400", "OK");
    SAYS("SET early 1 PX 300", "OK");
    SAYS("LOCK.ACQUIRE late LEASE 1 WAIT 9000", "queued");  /* #6 */
    SAYS("LOCK.ACQUIRE same LEASE 1 WAIT 9000", "queued");  /* #7 */
    SAYS("LOCK.ACQUIRE early LEASE 1 WAIT 9000", "queued"); /* #8 */
    SAYS("LOCK.ACQUIRE same LEASE 2 WAIT 400", "queued");   /* #9: as `same`, set later */
    SAYS("LOCK.ACQUIRE late LEASE 2 WAIT 100", "queued");   /* #10 */
    at(700);
    FACTS("GET early", "#10 nil; #8 11; #7 12; #9 nil; #6 13; "
                       "#11 -WRONGTYPE Operation against a key holding the wrong kind of value");
}
END_TEST

/* Replies are for those who asked here, in this life. */
START_TEST(others_are_not_answered) {
    origin_is(1, 1);
    FACTS("SET a 1", "");
    origin_is(0, 2);
    FACTS("SET a 2", "");
    FACTS("LEASE.GRANT 5000", "lease+ 3 5000"); /* facts are for everybody */
    FACTS("LOCK.ACQUIRE l LEASE 3", "");
    FACTS("LEASE.GRANT 5000", "lease+ 5 5000");
    FACTS("LOCK.ACQUIRE l LEASE 5 WAIT 5000", "");
    origin_is(ORIGIN_NODE_NONE, 0);
    FACTS("SET a 3", "");
    FACTS("LOCK.RELEASE l LEASE 3", ""); /* the one that waited is elsewhere */
    SEES("LOCK.CHECK l 9", "1");
    origin_is(0, 1);
    FACTS("%REPLY $-1\r\n", "#7 nil");
    FACTS("SET a 4", "#8 OK");
    SEES("GETV a", "[10 \"4\"]"); /* %REPLY took no revision, all others did */
}
END_TEST

START_TEST(a_batch_runs_in_order) {
    at(50);
    batch_start();
    batch_line("LEASE.GRANT 5000");
    batch_line("SET a 1 LEASE 1");
    batch_line("INCR a");
    batch_line("NONSENSE");
    batch_line("LOCK.ACQUIRE a LEASE 1 WAIT 5000");
    batch_line("GET a"); /* a read that somebody put into the log is a read */
    batch_line("DEL a");
    ck_assert_str_eq(batch_end(), "lease+ 1 5000; #1 1; #2 OK; #3 2; #4 -ERR unknown command 'NONSENSE'; #5 queued; "
                                  "#6 \"2\"; #5 6; #7 1");
}
END_TEST

START_TEST(damaged_internal_commands_do_nothing) {
    at(50);
    SAYS("LEASE.GRANT 5000", "1");
    const uint64_t memory = heap_bytes_in_use();
    SAYS("%EXPIRE", "-ERR wrong number of arguments for '%EXPIRE' command");
    SAYS("%EXPIRE x -1 '' 99999999999999999999", "0");
    SAYS("%DEQUEUE l 65535 1 1", "-ERR node must be an integer from 0 to 65534, not '65535'");
    SAYS("%DEQUEUE l 0 x 1", "-ERR boot must be an integer from 0 to 18446744073709551615, not 'x'");
    SAYS("%DEQUEUE l 0 1 x", "-ERR seq must be an integer from 0 to 18446744073709551615, not 'x'");
    SAYS("%DEQUEUE '' 0 1 1", "OK");
    SAYS("%ORIGIN_GONE x 1", "-ERR node must be an integer from 0 to 65534, not 'x'");
    SAYS("%SETTINGS key_bytes_max", "OK");
    SAYS("%NONSENSE", "-ERR unknown command '%NONSENSE'");
    ck_assert_uint_le(heap_bytes_in_use(), memory + 256);
    SEES("LEASE.LIST", "[0 [1]]");
}
END_TEST

/* ---- equal logs, equal states ---- */

static uint64_t random_state;
static uint32_t pick(uint32_t below) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % below;
}

/* A line that means something more often than not. */
static void random_line(char *line, size_t bytes) {
    static const char *const keys[] = {"a", "b", "c", "d", "e"};
    const char *key = keys[pick(5)];
    const unsigned n = pick(20), lease = 1 + pick(60), wait = pick(400);
    switch (pick(22)) {
    case 0: snprintf(line, bytes, "SET %s %u", key, n); return;
    case 1: snprintf(line, bytes, "SET %s %u NX PX %u", key, n, wait + 1); return;
    case 2: snprintf(line, bytes, "SET %s %u LEASE %u", key, n, lease); return;
    case 3: snprintf(line, bytes, "DEL %s %s", key, keys[pick(5)]); return;
    case 4: snprintf(line, bytes, "INCR %s", key); return;
    case 5: snprintf(line, bytes, "PEXPIRE %s %u", key, wait); return;
    case 6: snprintf(line, bytes, "PERSIST %s", key); return;
    case 7: snprintf(line, bytes, "CAS %s %u x", key, n); return;
    case 8: snprintf(line, bytes, "CAS %s 0 y LEASE %u", key, lease); return;
    case 9: snprintf(line, bytes, "WOR.SET r%u %u", pick(3), n); return;
    case 10:
    case 11: snprintf(line, bytes, "LEASE.GRANT %u NAME h%u", 1000 + n, n); return;
    case 12: snprintf(line, bytes, "LEASE.REVOKE %u", lease); return;
    case 13: snprintf(line, bytes, "%%EXPIRE %u %u", lease, 1 + pick(60)); return;
    case 14:
    case 15:
    case 16: snprintf(line, bytes, "LOCK.ACQUIRE %s LEASE %u WAIT %u VALUE v%u", key, lease, wait, n); return;
    case 17: snprintf(line, bytes, "LOCK.RELEASE %s LEASE %u", key, lease); return;
    case 18: snprintf(line, bytes, "%%DEQUEUE %s %u 1 %u", key, pick(3), 1 + pick((uint32_t)story_seq + 1)); return;
    case 19: snprintf(line, bytes, "%%ORIGIN_GONE %u 1", pick(3)); return;
    case 20: snprintf(line, bytes, "FLUSHALL"); return;
    default: snprintf(line, bytes, "SCRIPT LOAD 'return %u'", n); return;
    }
}

/* M1, M2 and the counts, from outside. */
static void check_whole(void) {
    struct ks_counts counts;
    keyspace_counts(ks, &counts);
    char want[32];
    snprintf(want, sizeof want, "%llu", (unsigned long long)counts.keys);
    SEES("DBSIZE", want);
    QUICK(counts.memory_bytes < 1u << 20);
    QUICK(keyspace_next_due(ks) > keyspace_stamp(ks)); /* what was due has ended */
}

/* Runs a script here, and puts what it did into the batch: others of the batch may have made it void. */
static void random_script(void) {
    static const char *const scripts[] = {
        "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end",
        "redis.call('set', KEYS[1], ARGV[1], 'PX', 300) return redis.call('incr', KEYS[2])",
        "redis.call('del', KEYS[1], KEYS[2]) redis.call('set', KEYS[1], 'new') error('late')",
        "redis.pcall('cas', KEYS[1], 0, 'x', 'LEASE', ARGV[1]) return redis.call('pexpire', KEYS[2], ARGV[1])",
        "return {redis.call('exists', KEYS[1], KEYS[2]), redis.pcall('lock.info', KEYS[1])}",
    };
    static const char *const keys[] = {"a", "b", "c", "d", "e"};
    char number[8];
    snprintf(number, sizeof number, "%u", pick(60));
    const struct slice argv[] = {slice_str("EVAL"),        slice_str(scripts[pick(5)]), slice_str("2"),
                                 slice_str(keys[pick(5)]), slice_str(keys[pick(5)]),    slice_str(number)};
    struct ks_effects effects = {.bytes = {.alloc = heap_alloc()}};
    uint64_t need;
    const uint64_t hash = keyspace_hash(ks);
    if (keyspace_script(ks, story_stamp, 6, argv, &effects, &need) == KS_SCRIPT_PROPOSE) {
        const struct origin origin = {.node = story_origin.node, .boot = story_origin.boot, .seq = ++story_seq};
        batch_add(&story_value, origin, effects.argc, effects.argv);
    }
    QUICK(keyspace_hash(ks) == hash);
    ks_effects_release(&effects);
}

START_TEST(equal_logs_give_equal_states) {
    const struct ks_config twin_config = {.alloc = heap_alloc(), .node = 2, .boot = 0xfeedbeef};
    struct keyspace *twin = keyspace_new(&twin_config);
    random_state = (uint64_t)_i;
    for (int batch = 0; batch < 400; batch++) {
        char line[128];
        at(story_stamp + pick(60));
        if (pick(20) == 0) story_ballot = (struct ballot){.round = 1 + pick(30), .node = (uint16_t)pick(3)};
        batch_begin(&story_value, story_ballot, pick(10) == 0, story_stamp);
        for (uint32_t i = pick(6); i > 0; i--) {
            origin_is((uint16_t)pick(3), 1);
            if (pick(4) == 0) {
                random_script();
                continue;
            }
            random_line(line, sizeof line);
            batch_line(line);
        }
        batch_end();
        struct ks_facts twin_facts;
        keyspace_apply(twin, story_slot, buf_slice(&story_value), &twin_facts);
        if (keyspace_hash(ks) != keyspace_hash(twin)) ck_abort_msg("seed %d batch %d: states differ", _i, batch);
        check_whole();
    }
    keyspace_free(twin);
}
END_TEST

/* Whatever the words are, a command is answered once, or waits, or is void; and two nodes agree. */
START_TEST(any_words_have_one_answer) {
    static const char *const words[] = {
        "LEASE",
        "WAIT",
        "VALUE",
        "TOKEN",
        "NX",
        "XX",
        "GET",
        "PX",
        "EX",
        "KEEPTTL",
        "NAME",
        "PREFER",
        "FORCE",
        "LOAD",
        "EXISTS",
        "FLUSH",
        "a",
        "b",
        "l",
        "",
        "0",
        "1",
        "2",
        "3",
        "5",
        "100",
        "5000",
        "-1",
        "4294967296",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "x",
        "\r\n",
        "LT",
    };
    enum { WORDS = sizeof words / sizeof words[0] };
    const struct ks_config twin_config = {.alloc = heap_alloc(), .node = 0, .boot = 1};
    struct keyspace *twin = keyspace_new(&twin_config);
    random_state = 77 + (uint64_t)_i;
    at(1000);
    for (int i = 0; i < 5000; i++) {
        struct slice argv[12];
        const struct command *c = command_at((enum command_id)pick(CMD_COUNT));
        if (pick(10) == 0) c = command_at(CMD_LEASE_GRANT);
        uint32_t argc = (uint32_t)abs(c->arity);
        if (c->arity < 0) argc += pick(4);
        if (pick(20) == 0) argc = 1 + pick(11);
        argv[0] = slice_str(c->name);
        for (uint32_t k = 1; k < argc; k++) argv[k] = slice_str(words[pick(WORDS)]);
        /* %REPLY's argument is a finished reply, made by a leader. */
        if (c->id == CMD_X_REPLY) argv[1] = slice_str("+fine\r\n");
        if (c->id == CMD_X_SCRIPT) argv[1] = slice_str("+fine\r\n");
        at(story_stamp + pick(3));
        batch_start();
        const uint64_t seq = ++story_seq;
        batch_add(&story_value, (struct origin){.node = 0, .boot = 1, .seq = seq}, argc, argv);
        batch_end();
        uint32_t answers = 0;
        for (uint32_t k = 0; k < story_facts.count; k++) {
            const struct ks_fact *f = &story_facts.facts[k];
            answers +=
                f->origin.seq == seq && (f->kind == KS_REPLY || f->kind == KS_QUEUED || f->kind == KS_SCRIPT_VOID);
        }
        if (answers != 1) ck_abort_msg("seed %d, command %d, %s: %u answers", _i, i, c->name, answers);
        struct ks_facts twin_facts;
        keyspace_apply(twin, story_slot, buf_slice(&story_value), &twin_facts);
        if (twin_facts.count != story_facts.count || keyspace_hash(ks) != keyspace_hash(twin))
            ck_abort_msg("seed %d, command %d, %s: states differ", _i, i, c->name);
    }
    keyspace_free(twin);
}
END_TEST

/* The hash sees a difference in each kind of thing. */
static const char *const differences[] = {
    "SET a 2",
    "SET a 1",
    "PEXPIRE a 500",
    "SET b 1",
    "DEL a",
    "LEASE.GRANT 5000",
    "LEASE.GRANT 5000 NAME x",
    "LOCK.ACQUIRE l LEASE 1",
    "LOCK.ACQUIRE m LEASE 1 WAIT 400",
    "LOCK.ACQUIRE m LEASE 1 WAIT 401",
    "LOCK.ACQUIRE m LEASE 1 WAIT 400 VALUE v",
    "WOR.SET a2 1",
    "SCRIPT LOAD 'return 1'",
    "SCRIPT LOAD 'return 2'",
    "LEASE.REVOKE 1",
    "SET b 1 LEASE 1",
    "SET b 1 LEASE 2",
    "%MEMBERS 1 11 a:1",
    "%MEMBERS 1 11 a:2",
    "%MEMBERS 1 12 a:1",
    "%MEMBERS 2 11 a:1",
    "ONCE 1 1 DEL nothing",
    "ONCE 1 2 DEL nothing",
    "ONCE 1 2 DEL nobody",
    "ONCE 1 2 LOCK.ACQUIRE m LEASE 1 WAIT 400",
    "%REMAINING 1 700",
    "%REMAINING 1 701",
};
enum { DIFFERENCES = sizeof differences / sizeof differences[0] };
START_TEST(the_hash_sees_every_difference) {
    uint64_t hashes[DIFFERENCES];
    for (int i = 0; i < DIFFERENCES; i++) {
        story_end();
        story_new();
        at(100);
        SAYS("LEASE.GRANT 5000", "1");
        SAYS("LEASE.GRANT 5000", "2");
        SAYS("SET a 1", "OK");
        SAYS("LOCK.ACQUIRE m LEASE 2", "4");
        facts_of(differences[i]);
        hashes[i] = keyspace_hash(ks);
        for (int k = 0; k < i; k++)
            ck_assert_msg(hashes[k] != hashes[i], "'%s' and '%s'", differences[k], differences[i]);
    }
}
END_TEST

START_TEST(many_keys_come_and_go) {
    char line[64];
    for (int i = 0; i < 200; i++) {
        at(story_stamp + 1);
        batch_start();
        for (int k = 0; k < 1000; k++) {
            snprintf(line, sizeof line, "SET key:%d %d PX %d", i * 1000 + k, k, 300 + (k * 7919) % 1000);
            batch_line(line);
        }
        batch_end();
    }
    SEES("DBSIZE", "200000");
    at(story_stamp + 1000000);
    batch_start();
    batch_end();
    SEES("DBSIZE", "0");
}
END_TEST

static void add(TCase *tc) {
    tcase_add_test(tc, batches_of_deposed_leaders_are_void);
    tcase_add_test(tc, nothing_counts_after_a_gap);
    tcase_add_test(tc, a_blank_slot_is_no_gap);
    tcase_add_test(tc, stamps_never_go_down);
    tcase_add_test(tc, due_things_end_in_order);
    tcase_add_test(tc, others_are_not_answered);
    tcase_add_test(tc, a_batch_runs_in_order);
    tcase_add_test(tc, damaged_internal_commands_do_nothing);
    tcase_add_loop_test(tc, equal_logs_give_equal_states, 0, 20);
    tcase_add_loop_test(tc, any_words_have_one_answer, 0, 8);
    tcase_add_test(tc, the_hash_sees_every_difference);
    tcase_add_test(tc, many_keys_come_and_go);
}
int main(void) {
    return story_main("keyspace", add);
}
