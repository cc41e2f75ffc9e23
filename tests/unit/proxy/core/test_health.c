/* Health: when a backend counts as up.  Guards H1-H4 of health.h.  Each row is a story in letters:
 *   o r f   a probe ends well, is refused, fails otherwise        e R F   the traffic sees an end, a refusal, a failure
 *   .       one interval (200 ms) passes                           ,       one second passes
 * and the state after each letter: + up, - down. */
#include <check.h>
#include <stdlib.h>
#include "proxy/core/health.h"

static const struct {
    const char *about, *story, *states;
} rows[] = {
    {"up until the first result", ".", "+"},
    {"the first result decides: bad", "r", "-"},
    {"the first result decides: bad without a refusal", "f", "-"},
    {"the first result decides: good", "o", "+"},
    {"fall in a row", "o.r.r.r", "++++++-"},
    {"a good one between starts the count anew", "orrorrr", "++++++-"},
    {"rise in a row", "r.o.o", "----+"},
    {"a bad one between starts the count anew", "roroo", "----+"},
    {"an end and a refused probe right after", "oer", "++-"},
    {"an end, and a second later a refused probe", "oe,r", "++++"},
    {"an end and a probe that merely fails", "oef", "+++"},
    {"an end and a good probe: a session that was over", "oeor", "++++"},
    {"an end and a refused connection", "oeR", "++-"},
    {"two refused connections", "oRR", "++-"},
    {"a refused connection and a refused probe", "oRr", "++-"},
    {"connections that time out count like probes", "oFFF", "+++-"},
    {"ends alone say nothing", "oeeeeeeee", "+++++++++"},
    {"what the traffic brought down before the first probe stays down", "RRrfr", "+----"},
    {"traffic cannot bring it up", "reRF", "----"},
};
START_TEST(a_story) {
    const struct health_config config = {.interval_ms = 200, .rise = 2, .fall = 3};
    struct health h;
    uint64_t now = 1000;
    health_init(&h, &config, now);
    for (int i = 0; rows[_i].story[i] != '\0' && rows[_i].states[i] != '\0'; i++) {
        const bool before = health_is_up(&h), first = !h.decided;
        enum health_change change = HEALTH_SAME;
        switch (rows[_i].story[i]) {
        case 'o': change = health_probe_ended(&h, now, HEALTH_PROBE_OK); break;
        case 'r': change = health_probe_ended(&h, now, HEALTH_PROBE_REFUSED); break;
        case 'f': change = health_probe_ended(&h, now, HEALTH_PROBE_FAILED); break;
        case 'e': change = health_seen(&h, now, HEALTH_SEEN_ENDED); break;
        case 'R': change = health_seen(&h, now, HEALTH_SEEN_REFUSED); break;
        case 'F': change = health_seen(&h, now, HEALTH_SEEN_FAILED); break;
        case '.': now += 200; break;
        case ',': now += 1000; break;
        default: ck_abort();
        }
        ck_assert_msg(health_is_up(&h) == (rows[_i].states[i] == '+'), "%s: letter %d", rows[_i].about, i + 1);
        if (change == HEALTH_SAME)
            ck_assert(health_is_up(&h) == before);
        else if (!first)
            ck_assert(health_is_up(&h) != before);
    }
}
END_TEST

/* H4: evidence brings the next probe forward, but not below a quarter of the interval after the last. */
START_TEST(evidence_asks_for_a_probe) {
    const struct health_config config = {.interval_ms = 200, .rise = 2, .fall = 3};
    struct health h;
    health_init(&h, &config, 1000);
    ck_assert_uint_eq(health_next_probe_ms(&h), 1000);
    health_probe_started(&h, 1000);
    ck_assert_uint_eq(health_next_probe_ms(&h), 1200);
    ck_assert_int_eq(health_probe_ended(&h, 1001, HEALTH_PROBE_OK), HEALTH_WENT_UP);
    ck_assert_int_eq(health_seen(&h, 1010, HEALTH_SEEN_ENDED), HEALTH_SAME);
    ck_assert_uint_eq(health_next_probe_ms(&h), 1050);
    health_probe_started(&h, 1050);
    ck_assert_int_eq(health_seen(&h, 1180, HEALTH_SEEN_ENDED), HEALTH_SAME);
    ck_assert_uint_eq(health_next_probe_ms(&h), 1180);
    ck_assert_int_eq(health_probe_ended(&h, 1181, HEALTH_PROBE_REFUSED), HEALTH_WENT_DOWN);
}
END_TEST

/* However short the interval is, not sooner than after a millisecond. */
START_TEST(a_short_interval_has_quarters_too) {
    const struct health_config config = {.interval_ms = 3, .rise = 1, .fall = 3};
    struct health h;
    health_init(&h, &config, 1000);
    health_probe_started(&h, 1000);
    ck_assert_int_eq(health_probe_ended(&h, 1000, HEALTH_PROBE_OK), HEALTH_WENT_UP);
    ck_assert_int_eq(health_seen(&h, 1000, HEALTH_SEEN_ENDED), HEALTH_SAME);
    ck_assert_uint_eq(health_next_probe_ms(&h), 1001);
}
END_TEST

int main(void) {
    Suite *s = suite_create("health");
    TCase *tc = tcase_create("health");
    tcase_add_loop_test(tc, a_story, 0, sizeof rows / sizeof rows[0]);
    tcase_add_test(tc, evidence_asks_for_a_probe);
    tcase_add_test(tc, a_short_interval_has_quarters_too);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
