/* Placement: who is in a shard, who of it is picked.  Guards S1-S3 of placement.h and the figures of the design. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include "proxy/core/placement.h"

enum { SESSIONS = 10000 };
static char names[400][16];
static struct placement_member members[400];

static void setup(void) {
    for (int i = 0; i < 400; i++) {
        snprintf(names[i], sizeof names[i], "backend%d", i);
        members[i] = (struct placement_member){.name = slice_str(names[i]), .weight = 1, .up = true};
    }
}

static struct slice session_key(uint32_t i, char room[32]) {
    snprintf(room, 32, "#room-%u", i);
    return slice_str(room);
}

static uint32_t shard_of(uint32_t session, uint32_t count, uint32_t subset, uint16_t *shard) {
    char room[32];
    return placement_shard(slice_str("chat"), session_key(session, room), members, count, subset, shard);
}

/* A tenth backend takes about a tenth of the first places, all for itself. */
START_TEST(a_new_member_only_takes) {
    uint16_t before[PLACEMENT_SHARD_MAX], after[PLACEMENT_SHARD_MAX];
    uint32_t moved = 0;
    for (uint32_t s = 0; s < SESSIONS; s++) {
        ck_assert_uint_eq(shard_of(s, 9, 1, before), 1);
        ck_assert_uint_eq(shard_of(s, 10, 1, after), 1);
        if (before[0] == after[0]) continue;
        ck_assert_uint_eq(after[0], 9);
        moved++;
    }
    ck_assert_uint_ge(moved, SESSIONS * 8 / 100);
    ck_assert_uint_le(moved, SESSIONS * 12 / 100);
}
END_TEST

/* S2 for whole shards: without the new one the order of the rest is what it was. */
START_TEST(a_new_member_keeps_the_order_of_the_rest) {
    uint16_t before[PLACEMENT_SHARD_MAX], after[PLACEMENT_SHARD_MAX];
    for (uint32_t s = 0; s < 1000; s++) {
        ck_assert_uint_eq(shard_of(s, 9, 4, before), 4);
        ck_assert_uint_eq(shard_of(s, 10, 4, after), 4);
        uint32_t at = 0;
        for (uint32_t i = 0; i < 4; i++)
            if (after[i] != 9) ck_assert_uint_eq(after[i], before[at++]);
        ck_assert_uint_ge(at, 3);
    }
}
END_TEST

/* S1: another order in the config, other states and loads: the same names. */
START_TEST(a_shard_depends_on_names_and_weights_only) {
    struct placement_member other[10];
    for (uint32_t i = 0; i < 10; i++) {
        other[i] = members[9 - i];
        other[i].up = i % 2 == 0;
        other[i].draining = i % 3 == 0;
        other[i].load = i * 100;
    }
    for (uint32_t s = 0; s < 1000; s++) {
        char room[32];
        uint16_t a[PLACEMENT_SHARD_MAX], b[PLACEMENT_SHARD_MAX];
        const uint32_t count = shard_of(s, 10, 3, a);
        ck_assert_uint_eq(placement_shard(slice_str("chat"), session_key(s, room), other, 10, 3, b), count);
        for (uint32_t i = 0; i < count; i++) ck_assert_uint_eq(a[i], 9 - b[i]);
    }
}
END_TEST

/* Another pool scatters the same sessions differently. */
START_TEST(pools_are_independent) {
    uint32_t same = 0;
    for (uint32_t s = 0; s < 1000; s++) {
        char room[32];
        uint16_t a[PLACEMENT_SHARD_MAX], b[PLACEMENT_SHARD_MAX];
        (void)shard_of(s, 10, 1, a);
        (void)placement_shard(slice_str("game"), session_key(s, room), members, 10, 1, b);
        same += a[0] == b[0];
    }
    ck_assert_uint_ge(same, 50);
    ck_assert_uint_le(same, 170);
}
END_TEST

START_TEST(weights_are_shares) {
    uint32_t heavy = 0;
    members[0].weight = 5;
    for (uint32_t s = 0; s < SESSIONS; s++) {
        uint16_t shard[PLACEMENT_SHARD_MAX];
        (void)shard_of(s, 6, 1, shard);
        heavy += shard[0] == 0;
    }
    ck_assert_uint_ge(heavy, SESSIONS * 48 / 100);
    ck_assert_uint_le(heavy, SESSIONS * 52 / 100);
}
END_TEST

/* Every pair of backends is somebody's shard: the sessions of a dead one scatter over all the others. */
START_TEST(seconds_scatter) {
    uint32_t second[10] = {0};
    for (uint32_t s = 0; s < SESSIONS; s++) {
        uint16_t shard[PLACEMENT_SHARD_MAX];
        ck_assert_uint_eq(shard_of(s, 10, 2, shard), 2);
        if (shard[0] == 0) second[shard[1]]++;
    }
    for (uint32_t m = 1; m < 10; m++) ck_assert_uint_ge(second[m], SESSIONS / 10 / 9 / 2);
}
END_TEST

/* The bits are part of the protocol between proxies of different versions: these never change. */
START_TEST(scores_are_for_ever) {
    const double score = placement_score(slice_str("chat"), slice_str("#lobby"), slice_str("a"), 1);
    char text[64];
    snprintf(text, sizeof text, "%.15g", score);
    ck_assert_str_eq(text, "1.49578420460476");
    snprintf(text, sizeof text, "%.15g", placement_score(slice_str("chat"), slice_str("#lobby"), slice_str("b"), 3));
    ck_assert_str_eq(text, "17.0554034567845");
}
END_TEST

START_TEST(few_members_make_a_short_shard) {
    uint16_t shard[PLACEMENT_SHARD_MAX];
    ck_assert_uint_eq(shard_of(1, 3, PLACEMENT_SHARD_MAX, shard), 3);
    ck_assert_uint_eq(shard_of(1, 300, PLACEMENT_SHARD_MAX, shard), PLACEMENT_SHARD_MAX);
    for (uint32_t i = 0; i < PLACEMENT_SHARD_MAX; i++)
        for (uint32_t j = 0; j < i; j++) ck_assert_uint_ne(shard[i], shard[j]);
}
END_TEST

/* The shard is always 0, 1, 2 of four members; bound 25 %. */
static const struct {
    const char *about;
    bool up[4], draining[4];
    uint32_t load[4], weight[4];
    int want;
} picks[] = {
    {"the first", {1, 1, 1, 1}, {0}, {0}, {1, 1, 1, 1}, 0},
    {"the first is down", {0, 1, 1, 1}, {0}, {0}, {1, 1, 1, 1}, 1},
    {"the first drains", {1, 1, 1, 1}, {1}, {0}, {1, 1, 1, 1}, 1},
    {"the first is at the bound", {1, 1, 1, 1}, {0}, {13, 9, 9, 9}, {1, 1, 1, 1}, 1},
    {"just under it: ceil(1.25 * 40 / 4) = 13", {1, 1, 1, 1}, {0}, {12, 9, 9, 9}, {1, 1, 1, 1}, 0},
    {"a weight of 2 may take twice as much", {1, 1, 1, 1}, {0}, {18, 9, 6, 6}, {2, 1, 1, 1}, 0},
    {"all at the bound: the least loaded", {1, 1, 1, 1}, {0}, {30, 20, 25, 0}, {1, 1, 1, 1}, 1},
    {"all at the bound: the least loaded for its weight", {1, 1, 1, 1}, {0}, {90, 60, 75, 0}, {1, 1, 3, 1}, 2},
    {"the least loaded is down", {1, 0, 1, 1}, {0}, {30, 20, 25, 0}, {1, 1, 1, 1}, 2},
    {"only a draining one is left", {0, 0, 1, 1}, {0, 0, 1}, {0}, {1, 1, 1, 1}, 2},
    {"two draining ones are left: the first", {0, 1, 1, 1}, {0, 1, 1}, {0}, {1, 1, 1, 1}, 1},
    {"none of the shard is up, another one is", {0, 0, 0, 1}, {0}, {0}, {1, 1, 1, 1}, -1},
};
START_TEST(a_pick_follows_the_shard) {
    struct placement_member four[4];
    const uint16_t shard[] = {0, PLACEMENT_NONE, 1, 2}; /* one member of the record is not in this config */
    for (int i = 0; i < 4; i++)
        four[i] = (struct placement_member){.name = members[i].name,
                                            .weight = picks[_i].weight[i],
                                            .up = picks[_i].up[i],
                                            .draining = picks[_i].draining[i],
                                            .load = picks[_i].load[i]};
    uint16_t member = 77;
    const enum placement_verdict verdict = placement_pick(four, 4, shard, 4, 25, &member);
    ck_assert_msg((verdict == PLACEMENT_SHARD_DOWN) == (picks[_i].want < 0), "%s", picks[_i].about);
    ck_assert_msg((int)member == (picks[_i].want < 0 ? 77 : picks[_i].want), "%s: %u", picks[_i].about, member);
}
END_TEST

/* Of equal scores, as members without weight have, the name decides and not the order in the config. */
START_TEST(equal_scores_go_by_name) {
    static const char *const mixed[] = {"bb", "b", "abc", "ab", "c", "a"};
    static const uint16_t order[] = {5, 3, 2, 1, 0, 4};
    uint16_t shard[PLACEMENT_SHARD_MAX];
    for (int i = 0; i < 6; i++) members[i] = (struct placement_member){.name = slice_str(mixed[i]), .up = true};
    for (uint32_t s = 0; s < 20; s++) {
        ck_assert_uint_eq(shard_of(s, 6, 6, shard), 6);
        for (int i = 0; i < 6; i++) ck_assert_uint_eq(shard[i], order[i]);
    }
}
END_TEST

int main(void) {
    Suite *s = suite_create("placement");
    TCase *tc = tcase_create("placement");
    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_add_test(tc, a_new_member_only_takes);
    tcase_add_test(tc, a_new_member_keeps_the_order_of_the_rest);
    tcase_add_test(tc, a_shard_depends_on_names_and_weights_only);
    tcase_add_test(tc, pools_are_independent);
    tcase_add_test(tc, weights_are_shares);
    tcase_add_test(tc, seconds_scatter);
    tcase_add_test(tc, scores_are_for_ever);
    tcase_add_test(tc, equal_scores_go_by_name);
    tcase_add_test(tc, few_members_make_a_short_shard);
    tcase_add_loop_test(tc, a_pick_follows_the_shard, 0, sizeof picks / sizeof picks[0]);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
