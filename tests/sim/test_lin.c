/* The judge judged: small histories, legal and not, and what the judge must say.  Guards L1-L4 of lin.h. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/sim/lin.h"

static const struct {
    const char *name;
    bool good;
    const char *text;
} rows[] = {
    {"nothing", true, ""},
    {"a read after a write", true, "a 1 2 set k x => ok\nb 3 4 get k => x\n"},
    {"a stale read", false, "a 1 2 set k x => ok\na 3 4 set k y => ok\nb 5 6 get k => x\n"},
    {"a read beside a write sees either", true, "a 1 9 set k x => ok\nb 2 3 get k => nil\nb 4 5 get k => x\n"},
    {"and not back again", false, "a 1 9 set k x => ok\nb 2 3 get k => x\nb 4 5 get k => nil\n"},
    {"a read of what nobody wrote", false, "a 1 2 set k x => ok\nb 3 4 get k => z\n"},
    {"two keys are judged apart", true, "a 1 2 set k x => ok\nb 3 4 get l => nil\n"},
    {"an answer at the instant of a question is beside it", true, "a 1 3 set k x => ok\nb 3 4 get k => nil\n"},
    {"an unknown write that happened late", true,
     "a 1 - set k x => ?\nb 2 3 get k => nil\nb 4 5 get k => x\nb 6 7 get k => x\n"},
    {"an unknown write that never happened", true, "a 1 - set k x => ?\nb 2 3 get k => nil\n"},
    {"an unknown write happens once", false,
     "a 1 - set k x => ?\nb 2 3 get k => x\nb 4 5 set k y => ok\nb 6 7 get k => x\n"},
    {"an unknown write does not happen before it is asked for", false, "a 4 - set k x => ?\nb 2 3 get k => x\n"},
    {"a refused write is never seen", false, "a 1 2 set k x => !\nb 3 4 get k => x\n"},
    {"a refused write is nothing", true, "a 1 2 set k x => !\nb 3 4 get k => nil\n"},
    {"set if absent, one wins", true, "a 1 4 set k x nx => ok\nb 2 3 set k y nx => nil\nb 5 6 get k => x\n"},
    {"set if absent, both win", false, "a 1 4 set k x nx => ok\nb 2 3 set k y nx => ok\n"},
    {"set if there", true, "a 1 2 set k x xx => nil\na 3 4 set k y => ok\na 5 6 set k z xx => ok\na 7 8 get k => z\n"},
    {"set if there finds what is not", false, "a 1 2 set k x xx => ok\n"},
    {"set and the old value", true, "a 1 2 set k x get => nil\na 3 4 set k y get => x\na 5 6 set k z nx get => y\n"},
    {"set and a wrong old value", false, "a 1 2 set k x get => nil\na 3 4 set k y get => nil\n"},
    {"delete", true, "a 1 2 set k x => ok\na 3 4 del k => 1\na 5 6 del k => 0\na 7 8 get k => nil\n"},
    {"deleted twice", false, "a 1 2 set k x => ok\na 3 6 del k => 1\nb 4 5 del k => 1\n"},
    {"compare and delete", true, "a 1 2 set k x => ok\na 3 4 cad k y => 0\na 5 6 cad k x => 1\na 7 8 get k => nil\n"},
    {"compare and delete of another's", false, "a 1 2 set k x => ok\nb 3 4 cad k y => 1\n"},
    {"counting", true, "a 1 5 incr k => 2\nb 2 4 incr k => 1\nc 6 7 get k => 2\n"},
    {"counting twice the same", false, "a 1 5 incr k => 1\nb 2 4 incr k => 1\n"},
    {"counting with one unknown", true, "a 1 - incr k => ?\nb 2 4 incr k => 2\n"},
    {"counting with two unknown, and one number too many", false,
     "a 1 - incr k => ?\na2 1 - incr k => ?\nb 2 4 incr k => 4\n"},
    {"versions", true,
     "a 1 2 cas k 0 x => 1 5\na 3 4 getv k => 5 x\nb 5 6 cas k 5 y => 1 7\nc 7 8 cas k 5 z => 0 7 y\n"},
    {"a version goes back", false, "a 1 2 cas k 0 x => 1 5\nb 5 6 cas k 5 y => 1 4\n"},
    {"a version goes back over a deletion", false,
     "a 1 2 cas k 0 x => 1 5\na 3 4 del k => 1\nb 5 6 cas k 0 y => 1 4\n"},
    {"a version has two values", false,
     "a 1 2 set k x => ok\nb 3 4 getv k => 5 x\na 5 6 set k y => ok\nb 7 8 getv k => 5 y\n"},
    {"a cas from an old version wins", false, "a 1 2 cas k 0 x => 1 5\na 3 4 set k y => ok\nb 5 6 cas k 5 z => 1 9\n"},
    {"an unknown cas won", true, "a 1 2 cas k 0 x => 1 5\na 3 - cas k 5 y => ?\nb 5 6 cas k 5 z => 0 6 y\n"},
    {"an absent key has no version", true, "a 1 2 cas k 3 x => 0 0\n"},
    {"a write-once register", true, "a 1 4 wor.set k x => 0 7 y\nb 2 3 wor.set k y => 1 7 y\nc 5 6 wor.get k => 7 y\n"},
    {"written twice", false, "a 1 4 wor.set k x => 1 6 x\nb 2 3 wor.set k y => 1 7 y\n"},
    {"the unknown one won", true, "a 1 - wor.set k x => ?\nb 2 3 wor.get k => nil\nb 4 5 wor.set k y => 0 9 x\n"},
    {"the loser is not told so", false, "a 1 2 wor.set k x => 1 6 x\nb 3 4 wor.get k => nil\n"},
    {"a key that lives too short", false, "a 100 101 set k x px=1000 => ok\nb 102 103 get k => nil\n"},
    {"a key that has run out", true, "a 100 101 set k x px=1000 => ok\nb 1100 1103 get k => nil\n"},
    {"a key that lives on", true, "a 100 101 set k x px=1000 => ok\nb 9000 9001 get k => x\n"},
    {"what has run out does not come back", false,
     "a 100 101 set k x px=1000 => ok\nb 1100 1103 get k => nil\nb 1104 1105 get k => x\n"},
    {"nor was it gone while it was there", false,
     "a 100 101 set k x px=1000 => ok\nb 600 1900 set k y xx => nil\nc 700 701 get k => nil\n"},
    {"a longer life", false,
     "a 100 101 set k x px=1000 => ok\nb 102 103 pexpire k 5000 => 1\nb 2000 2001 get k => nil\n"},
    {"a longer life of what hangs on a lease", true,
     "lease 1 until 900\na 100 101 set k x lease=1 => ok\nb 102 103 pexpire k 5000 => 1\nb 2000 2001 get k => nil\n"},
    {"a shorter life of what hangs on a lease", true,
     "lease 1 until 9000\na 100 101 set k x lease=1 => ok\nb 102 103 pexpire k 500 => 1\nb 2000 2001 get k => nil\n"},
    {"a lock goes round", true,
     "a 1 2 acquire k 1 => 5\nb 3 4 acquire k 2 => nil\na 5 6 release k 1 5 => 1\nb 7 8 acquire k 2 => 9\n"
     "a 9 10 check k 5 => fenced\nb 9 10 check k 9 => 1\nc 11 12 holder k => 9 2\n"},
    {"a lock has two holders", false, "lease 1 until 100\na 1 2 acquire k 1 => 5\nb 3 4 acquire k 2 => 9\n"},
    {"the lease may have ended", true, "lease 1 until 3\na 1 2 acquire k 1 => 5\nb 3 4 acquire k 2 => 9\n"},
    {"the lease was ended", true,
     "lease 1 until 100\nlease 1 ended 3\na 1 2 acquire k 1 => 5\nb 3 4 acquire k 2 => 9\n"},
    {"a token goes back", false, "a 1 2 acquire k 1 => 5\na 3 4 release k 1 => 1\nb 7 8 acquire k 2 => 4\n"},
    {"the same lease, the same token", true, "a 1 2 acquire k 1 => 5\na 3 4 acquire k 1 => 5\n"},
    {"the same lease, another token", false, "lease 1 until 100\na 1 2 acquire k 1 => 5\na 3 4 acquire k 1 => 6\n"},
    {"an unknown acquire holds it", true,
     "lease 1 until 100\na 1 - acquire k 1 => ?\nb 3 4 acquire k 2 => nil\na2 5 6 acquire k 1 => 3\n"},
    {"an old release frees nobody else's", false,
     "lease 2 until 100\na 1 2 acquire k 1 => 5\na 3 4 release k 1 5 => 1\nb 5 6 acquire k 2 => 7\n"
     "a 7 - release k 1 5 => ?\nb 9 10 check k 7 => fenced\n"},
    {"leaving the queue", true, "a 1 2 acquire k 1 => 5\nb 3 6 acquire k 2 => nil\nb2 4 5 release k 2 => 1\n"},
    {"pipelined commands keep their order", true, "a 1 9 set k x => ok\na 1 9 set k y => ok\nb 10 11 get k => y\n"},
    {"pipelined commands change places", false, "a 1 9 set k x => ok\na 1 9 set k y => ok\nb 10 11 get k => x\n"},
    {"an unknown one may run after a later one", true, "a 1 - set k x => ?\na 1 4 set k y => ok\nb 5 6 get k => x\n"},
    {"but not before an earlier one", false,
     "a 1 9 set k x => ok\na 1 - set k y => ?\nb 2 3 get k => y\nb 4 5 get k => x\n"},
};

START_TEST(the_verdict_is) {
    uint32_t line;
    struct lin_text *t = lin_text_read(rows[_i].text, strlen(rows[_i].text), 1000, &line);
    ck_assert_msg(t != NULL, "%s: line %u cannot be read", rows[_i].name, line);
    const struct lin_result r = lin_text_check(t, 100000, NULL);
    lin_text_free(t);
    ck_assert_uint_eq(r.lost, 0);
    ck_assert_msg((r.bad == 0) == rows[_i].good, "%s: judged %s", rows[_i].name, r.bad == 0 ? "good" : "bad");
}
END_TEST

static const struct {
    const char *text;
    uint32_t line;
} broken[] = {
    {"a 1 2 set k => ok\n", 1},
    {"# fine\na 1 2 get k => x\na 1 2 sing k => x\n", 3},
    {"a 2 1 get k => x\n", 1},
    {"a 1 - get k => x\n", 1},
    {"a 1 2 get k x\n", 1},
    {"lease 1 till 5\n", 1},
    {"a 1 2 set k x px=0 => ok\n", 1},
    {"a 1 2 acquire k 0 => 5", 1},
    {"a a a a a a a a a a a a a a a a a a a a\n", 1},
};
START_TEST(a_line_that_says_nothing_is_named) {
    uint32_t line;
    ck_assert_ptr_null(lin_text_read(broken[_i].text, strlen(broken[_i].text), 1000, &line));
    ck_assert_uint_eq(line, broken[_i].line);
}
END_TEST

/* Many at once, many unknown: the cache keeps it short. */
START_TEST(a_crowd_is_judged_quickly) {
    char text[1 << 16];
    size_t at = 0;
    for (int i = 0; i < 20; i++) at += (size_t)snprintf(text + at, sizeof text - at, "u%d 1 - incr k => ?\n", i);
    for (int i = 0; i < 200; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "c%d %d %d incr k => %d\n", i, 10 * (i / 10),
                               10 * (i / 10) + 9, i / 10 * 10 + 9 - i % 10 + 1 + (i >= 100 ? 20 : 0));
    uint32_t line;
    struct lin_text *t = lin_text_read(text, at, 1000, &line);
    const struct lin_result r = lin_text_check(t, 100000, NULL);
    ck_assert_uint_eq(r.bad + r.lost, 0);
    lin_text_free(t);
}
END_TEST

START_TEST(the_answer_that_stuck_is_named) {
    const struct lin_op ops[] = {
        {.kind = LIN_SET, .outcome = LIN_DONE, .asked = 1, .told = 2, .value = 7, .yes = true},
        {.kind = LIN_GET, .outcome = LIN_DONE, .asked = 3, .told = 4, .ret_value = 8, .yes = true},
        {.kind = LIN_GET, .outcome = LIN_DONE, .asked = 5, .told = 6, .ret_value = 9, .yes = true},
    };
    uint32_t stuck;
    ck_assert_int_eq(lin_check(ops, 3, NULL, 0, 1000, &stuck), LIN_BAD);
    ck_assert_uint_eq(stuck, 1);
}
END_TEST

int main(void) {
    Suite *s = suite_create("lin");
    TCase *tc = tcase_create("judge");
    tcase_add_loop_test(tc, the_verdict_is, 0, sizeof rows / sizeof rows[0]);
    tcase_add_loop_test(tc, a_line_that_says_nothing_is_named, 0, sizeof broken / sizeof broken[0]);
    tcase_add_test(tc, a_crowd_is_judged_quickly);
    tcase_add_test(tc, the_answer_that_stuck_is_named);
    suite_add_tcase(s, tc);
    SRunner *r = srunner_create(s);
    srunner_set_tap(r, "-");
    srunner_run_all(r, CK_SILENT);
    srunner_free(r);
    return EXIT_SUCCESS;
}
