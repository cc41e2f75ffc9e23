/* Who may vote: a cluster forms once, out of empty stores that all spoke to this boot; nothing else is let in.
 * Guards I1-I5 of identity.h. */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "lockd/core/identity.h"

enum { N = 3 };
static struct identity nodes[N];
static bool on_disk[N]; /* the record */

static struct identity_config config_of(uint16_t node, uint64_t store, uint64_t boot) {
    return (struct identity_config){
        .node = node, .node_count = N, .store_id = store, .boot_id = boot, .fresh_cluster_id = 9000 + node};
}
static void setup(void) {
    for (uint16_t i = 0; i < N; i++) {
        const struct identity_config config = config_of(i, 100u + i, 10u + i);
        identity_init(&nodes[i], &config);
        on_disk[i] = false;
    }
}
/* One question and, if it comes, its answer. */
static enum identity_problem ask(uint16_t from, uint16_t to) {
    struct identity_msg question, answer, unused;
    bool reply, save, again;
    identity_question(&nodes[from], to, &question);
    const enum identity_problem there = identity_step(&nodes[to], &question, &reply, &answer, &save);
    on_disk[to] |= save;
    if (!reply) return there;
    ck_assert(answer.is_answer);
    const enum identity_problem here = identity_step(&nodes[from], &answer, &again, &unused, &save);
    ck_assert(!again);
    on_disk[from] |= save;
    return here != IDENTITY_OK ? here : there;
}
static void save_all(void) {
    for (uint16_t i = 0; i < N; i++) {
        if (nodes[i].saving) identity_saved(&nodes[i]);
    }
}
static void form(void) {
    for (int round = 0; round < 4; round++) {
        for (uint16_t i = 0; i < N; i++) {
            for (uint16_t j = 0; j < N; j++) {
                if (i != j) ck_assert_int_eq(ask(i, j), IDENTITY_OK);
            }
        }
        save_all();
    }
}

START_TEST(three_empty_stores_form_once) {
    ck_assert_int_eq(ask(0, 1), IDENTITY_OK);
    ck_assert(!nodes[0].saving); /* node 2 has not spoken: all, not a majority */
    ck_assert_int_eq(ask(1, 2), IDENTITY_OK);
    ck_assert_int_eq(ask(2, 1), IDENTITY_OK);
    ck_assert(!nodes[1].saving && !nodes[2].saving); /* only node 0 writes */
    ck_assert_int_eq(ask(0, 2), IDENTITY_OK);
    ck_assert(nodes[0].saving && on_disk[0]);
    ck_assert_int_eq(nodes[0].state, IDENTITY_JOINING);
    form();
    for (uint16_t i = 0; i < N; i++) {
        ck_assert_int_eq(nodes[i].state, IDENTITY_FORMED);
        ck_assert_uint_eq(nodes[i].record.cluster_id, 9000);
        for (uint16_t j = 0; j < N; j++) {
            ck_assert_uint_eq(nodes[i].record.members.store_ids[j], 100u + j);
            ck_assert_int_eq(identity_admitted(&nodes[i], j), i != j);
        }
    }
}
END_TEST

START_TEST(a_record_is_told_only_when_it_is_durable) {
    ask(0, 1);
    ask(0, 2);
    ck_assert(nodes[0].saving);
    struct identity_msg question, answer;
    bool reply, save;
    identity_question(&nodes[0], 1, &question);
    ck_assert_uint_eq(question.record.cluster_id, 0);
    identity_question(&nodes[1], 0, &question);
    ck_assert_int_eq(identity_step(&nodes[0], &question, &reply, &answer, &save), IDENTITY_OK);
    ck_assert(!reply && !save); /* neither "empty" nor the record */
    identity_saved(&nodes[0]);
    ck_assert_int_eq(identity_step(&nodes[0], &question, &reply, &answer, &save), IDENTITY_OK);
    ck_assert(reply);
    ck_assert_uint_eq(answer.record.cluster_id, 9000);
}
END_TEST

/* what an answer echoes -> does it count as "shown empty"? */
static const struct {
    uint64_t asked_store, asked_boot;
    bool is_answer, stray, counts;
} shown[] = {
    {100, 10, true, false, true},   {100, 9, true, false, false}, /* an earlier life of ours asked that */
    {99, 10, true, false, false},                                 /* somebody else did */
    {100, 10, false, false, false},                               /* a question proves nothing */
    {100, 10, true, true, false},                                 /* not empty */
};
START_TEST(only_an_answer_to_this_boot_shows_an_empty_store) {
    ask(0, 1);
    struct identity_msg m = {.is_answer = shown[_i].is_answer,
                             .from = 2,
                             .to = 0,
                             .node_count = N,
                             .store_id = 102,
                             .boot_id = 12,
                             .asked_store = shown[_i].asked_store,
                             .asked_boot = shown[_i].asked_boot,
                             .stray = shown[_i].stray},
                        answer;
    bool reply, save;
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save),
                     shown[_i].stray ? IDENTITY_PEER_STRAY : IDENTITY_OK);
    ck_assert_int_eq(save, shown[_i].counts);
    ck_assert_int_eq(reply, !shown[_i].is_answer);
}
END_TEST

START_TEST(a_lost_link_takes_back_what_was_shown) {
    ask(0, 1);
    identity_link_lost(&nodes[0], 1);
    ask(0, 2);
    ck_assert(!nodes[0].saving);
    ask(0, 1);
    ck_assert(nodes[0].saving);
}
END_TEST

START_TEST(a_wiped_node_is_an_outcast_everywhere) {
    form();
    for (uint16_t wiped = 0; wiped < N; wiped++) {
        setup();
        form();
        const struct identity_config config = config_of(wiped, 500, 50);
        identity_init(&nodes[wiped], &config);
        for (uint16_t i = 0; i < N; i++) {
            if (i == wiped) continue;
            identity_link_lost(&nodes[i], wiped);
            ck_assert_int_eq(ask(i, wiped), IDENTITY_PEER_OUTCAST);
            ck_assert(!identity_admitted(&nodes[i], wiped));
            ck_assert_int_eq(ask(wiped, i), IDENTITY_WE_ARE_OUTCAST);
        }
        ck_assert_int_eq(nodes[wiped].state, IDENTITY_OUTCAST);
        ck_assert_uint_eq(nodes[wiped].outcast_cluster, 9000);
        ck_assert(!nodes[wiped].saving);
        for (uint16_t i = 0; i < N; i++) ck_assert(!identity_admitted(&nodes[wiped], i));
    }
}
END_TEST

/* Node 0 is wiped while the others have the record, but not yet on disk: they must not show themselves empty. */
START_TEST(a_half_formed_cluster_does_not_form_twice) {
    ask(0, 1);
    ask(0, 2);
    identity_saved(&nodes[0]);
    ask(1, 0);
    ask(2, 0);
    ck_assert(nodes[1].saving && nodes[2].saving);
    const struct identity_config config = config_of(0, 500, 50);
    identity_init(&nodes[0], &config);
    (void)ask(0, 1);
    (void)ask(0, 2);
    ck_assert(!nodes[0].saving);
    save_all();
    ck_assert_int_eq(ask(0, 1), IDENTITY_WE_ARE_OUTCAST);
}
END_TEST

START_TEST(a_member_restarts_and_is_admitted_again) {
    form();
    struct identity_config config = config_of(1, 101, 77);
    config.record = nodes[0].record;
    identity_init(&nodes[1], &config);
    ck_assert_int_eq(nodes[1].state, IDENTITY_FORMED);
    ck_assert(!identity_admitted(&nodes[1], 0));
    identity_link_lost(&nodes[0], 1);
    ck_assert(!identity_admitted(&nodes[0], 1));
    ck_assert_int_eq(ask(1, 0), IDENTITY_OK);
    ck_assert(identity_admitted(&nodes[1], 0));
    ck_assert(!identity_admitted(&nodes[0], 1)); /* a question is no proof of who is at the end of our own link */
    ck_assert_int_eq(ask(0, 1), IDENTITY_OK);
    ck_assert(identity_admitted(&nodes[0], 1));
}
END_TEST

START_TEST(a_stray_store_never_votes) {
    struct identity_config config = config_of(1, 101, 11);
    config.stray = true;
    identity_init(&nodes[1], &config);
    ck_assert_int_eq(ask(0, 1), IDENTITY_PEER_STRAY);
    ask(0, 2);
    ck_assert(!nodes[0].saving);
    setup();
    form();
    identity_init(&nodes[1], &config); /* named in the record, but it lost it */
    ck_assert_int_eq(ask(1, 0), IDENTITY_WE_ARE_OUTCAST);
    ck_assert_int_eq(nodes[1].state, IDENTITY_OUTCAST);
    ck_assert_int_eq(ask(0, 1), IDENTITY_PEER_STRAY);
    ck_assert(!identity_admitted(&nodes[0], 1));
    config = config_of(0, 100, 10);
    config.stray = true;
    identity_init(&nodes[0], &config); /* nor does it form */
    config = config_of(1, 101, 11);
    identity_init(&nodes[1], &config);
    config = config_of(2, 102, 12);
    identity_init(&nodes[2], &config);
    ask(0, 1);
    ask(0, 2);
    ck_assert(!nodes[0].saving);
}
END_TEST

/* what is wrong with a frame -> which problem is named */
static const struct {
    struct identity_msg m;
    enum identity_problem want;
} wrong[] = {
    {{.from = 4, .to = 0, .node_count = 5, .store_id = 101}, IDENTITY_PEER_OUTCAST},
    {{.from = PAXOS_NODES_MAX, .to = 0, .node_count = 3, .store_id = 101}, IDENTITY_WRONG_NODE},
    {{.from = 0, .to = 0, .node_count = 3, .store_id = 777}, IDENTITY_NODE_TWICE},
    {{.from = 1, .to = 0, .node_count = 3, .store_id = 100}, IDENTITY_NODE_TWICE},
    {{.from = 1, .to = 2, .node_count = 3, .store_id = 101}, IDENTITY_WRONG_NODE},
    {{.from = 1, .to = 0, .node_count = 3, .store_id = 777}, IDENTITY_PEER_OUTCAST},
    {{.from = 1,
      .to = 0,
      .node_count = 3,
      .store_id = 101,
      .record = {.cluster_id = 1, .members = {.voters = 7, .store_ids = {100, 101, 102}}}},
     IDENTITY_OTHER_CLUSTER},
    {{.from = 1,
      .to = 0,
      .node_count = 3,
      .store_id = 101,
      .record = {.cluster_id = 9000, .members = {.voters = 7, .store_ids = {100, 101, 103}}}},
     IDENTITY_OTHER_CLUSTER},
    {{.from = 1,
      .to = 0,
      .node_count = 3,
      .store_id = 101,
      .record = {.cluster_id = 9000, .members = {.voters = 7, .store_ids = {101, 101, 101}}}},
     IDENTITY_OTHER_CLUSTER},
    {{.from = 1,
      .to = 0,
      .node_count = 3,
      .store_id = 101,
      .record = {.cluster_id = 9000, .members = {.voters = 60000, .store_ids = {100, 101, 102}}}},
     IDENTITY_OTHER_CLUSTER},
    {{.from = 1,
      .to = 0,
      .node_count = 3,
      .store_id = 105,
      .record = {.cluster_id = 9000, .members = {.voters = 7, .store_ids = {100, 101, 102}}}},
     IDENTITY_PEER_OUTCAST},
};
START_TEST(a_wrong_frame_is_named_and_changes_nothing) {
    form();
    const struct identity before = nodes[0];
    struct identity_msg m = wrong[_i].m, answer;
    bool reply, save;
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), wrong[_i].want);
    ck_assert(!save);
    ck_assert_int_eq(memcmp(&before, &nodes[0], sizeof before), 0); /* a question takes nothing from the member */
    /* as an answer on our own link: the member is not there any more */
    m.is_answer = true;
    m.asked_store = 100;
    m.asked_boot = 10;
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), wrong[_i].want);
    ck_assert(!reply && !save);
    if (m.from == 1 && m.to == 0 && m.store_id != 100) ck_assert(!identity_admitted(&nodes[0], 1));
    ck_assert(identity_admitted(&nodes[0], 2));
}
END_TEST

/* Before a cluster has formed the configurations must agree; afterwards they do not matter. */
START_TEST(the_count_matters_until_a_cluster_has_formed) {
    struct identity_msg m = {.from = 1, .to = 0, .node_count = 5, .store_id = 101}, answer;
    bool reply, save;
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), IDENTITY_OTHER_COUNT);
    m.from = 4;
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), IDENTITY_OTHER_COUNT);
    m.node_count = 3;
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), IDENTITY_WRONG_NODE);
    form();
    m = (struct identity_msg){.from = 1, .to = 0, .node_count = 5, .store_id = 101};
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), IDENTITY_OK);
}
END_TEST

START_TEST(a_record_of_another_cluster_replaces_nothing) {
    form();
    const struct identity_msg m = {.is_answer = true,
                                   .from = 1,
                                   .to = 0,
                                   .node_count = 3,
                                   .store_id = 101,
                                   .asked_store = 100,
                                   .asked_boot = 10,
                                   .record = {.cluster_id = 1, .members = {.voters = 7, .store_ids = {100, 101, 102}}}};
    struct identity_msg answer;
    bool reply, save;
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), IDENTITY_OTHER_CLUSTER);
    ck_assert_uint_eq(nodes[0].record.cluster_id, 9000);
    ck_assert_int_eq(nodes[0].state, IDENTITY_FORMED);
}
END_TEST

START_TEST(of_two_records_the_first_stays) {
    struct identity_msg m = {.from = 0,
                             .to = 1,
                             .node_count = 3,
                             .store_id = 100,
                             .record = {.cluster_id = 5, .members = {.voters = 7, .store_ids = {100, 101, 102}}}};
    struct identity_msg answer;
    bool reply, save;
    ck_assert_int_eq(identity_step(&nodes[1], &m, &reply, &answer, &save), IDENTITY_OK);
    ck_assert(save && !reply);
    m.record.cluster_id = 6; /* while the first is on its way to the disk */
    ck_assert_int_eq(identity_step(&nodes[1], &m, &reply, &answer, &save), IDENTITY_OTHER_CLUSTER);
    ck_assert(!save && !reply);
    ck_assert_uint_eq(nodes[1].record.cluster_id, 5);
    m.record.cluster_id = 5;
    ck_assert_int_eq(identity_step(&nodes[1], &m, &reply, &answer, &save), IDENTITY_OK);
    ck_assert(!save); /* once */
}
END_TEST

static const uint64_t impossible[][3] = {{100, 101, 100}, {100, 101, 0}, {101, 101, 102}};
START_TEST(a_record_that_cannot_be_is_not_adopted) {
    struct identity_msg m = {
        .from = 0, .to = 1, .node_count = 3, .store_id = 100, .record = {.cluster_id = 5, .members = {.voters = 7}}};
    struct identity_msg answer;
    bool reply, save;
    memcpy(m.record.members.store_ids, impossible[_i], sizeof impossible[0]);
    ck_assert_int_ne(identity_step(&nodes[1], &m, &reply, &answer, &save), IDENTITY_OK);
    ck_assert(!save && !nodes[1].saving);
    ck_assert_int_eq(nodes[1].state, IDENTITY_JOINING);
}
END_TEST

START_TEST(one_node_forms_alone_once) {
    struct identity_config config = config_of(0, 100, 10);
    config.node_count = 1;
    struct identity id;
    identity_init(&id, &config);
    ck_assert(identity_forms_alone(&id));
    ck_assert(!identity_forms_alone(&id));
    identity_saved(&id);
    ck_assert_int_eq(id.state, IDENTITY_FORMED);
    ck_assert(!identity_forms_alone(&id));
    config.stray = true;
    identity_init(&id, &config);
    ck_assert(!identity_forms_alone(&id));
    ck_assert(!identity_forms_alone(&nodes[0])); /* of three */
}
END_TEST

START_TEST(a_record_of_our_own_disk_that_names_another_store_is_not_ours) {
    form();
    struct identity_config config = config_of(1, 555, 10);
    config.record = nodes[0].record;
    struct identity id;
    identity_init(&id, &config);
    ck_assert_int_eq(id.state, IDENTITY_OUTCAST);
    ck_assert_uint_eq(id.outcast_cluster, 9000);
}
END_TEST

/* What the cluster says of itself later replaces what was known, and only that. */
static struct identity_msg news(paxos_slot slot, uint64_t store_2) {
    struct identity_msg m = {
        .is_answer = true, .from = 1, .to = 0, .node_count = 3, .store_id = 101, .asked_store = 100, .asked_boot = 10};
    m.record = nodes[0].record;
    m.record.members.slot = slot;
    m.record.members.store_ids[2] = store_2;
    m.record.members.voters = store_2 != 0 ? 7 : 3;
    return m;
}
START_TEST(the_newest_membership_stands) {
    form();
    struct identity_msg answer, m = news(7, 0);
    bool reply, save;
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), IDENTITY_OK);
    ck_assert(save);
    ck_assert(!identity_saved(&nodes[0])); /* it was formed before */
    ck_assert(!identity_admitted(&nodes[0], 2) && identity_admitted(&nodes[0], 1));
    m = news(6, 102); /* older news change nothing */
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), IDENTITY_OK);
    ck_assert(!save);
    ck_assert_uint_eq(nodes[0].record.members.slot, 7);
    m = news(7, 102); /* two truths for one slot */
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), IDENTITY_OTHER_CLUSTER);
    ck_assert(!save);
    const struct membership log = news(9, 105).record.members;
    ck_assert(identity_members(&nodes[0], &log)); /* our own log says so */
    ck_assert(!identity_members(&nodes[0], &log));
    ck_assert_uint_eq(nodes[0].record.members.store_ids[2], 105);
}
END_TEST

START_TEST(who_was_removed_stands_aside_until_it_is_added_again) {
    form();
    struct membership without = nodes[0].record.members;
    without.slot = 7;
    without.voters = 6;
    without.store_ids[0] = 0;
    ck_assert(identity_members(&nodes[0], &without));
    ck_assert_int_eq(nodes[0].state, IDENTITY_OUTCAST);
    ck_assert(!identity_admitted(&nodes[0], 1));
    struct identity_msg answer, m = news(8, 102);
    m.record.members.voters = 6;
    m.record.members.learners = 1;
    m.record.members.store_ids[0] = 100;
    m.record.members.generation[0] = 1;
    bool reply, save;
    m.record.members.slot = 7; /* no news: it would be the old truth */
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), IDENTITY_WE_ARE_OUTCAST);
    m.record.members.slot = 8;
    ck_assert_int_eq(identity_step(&nodes[0], &m, &reply, &answer, &save), IDENTITY_OK);
    ck_assert(save);
    ck_assert(identity_saved(&nodes[0]));
    ck_assert_int_eq(nodes[0].state, IDENTITY_FORMED);
    ck_assert_uint_eq(identity_generation(&nodes[0]), 1);
}
END_TEST

int main(void) {
    Suite *s = suite_create("identity");
    TCase *tc = tcase_create("identity");
    tcase_add_checked_fixture(tc, setup, NULL);
    tcase_add_test(tc, three_empty_stores_form_once);
    tcase_add_test(tc, a_record_is_told_only_when_it_is_durable);
    tcase_add_loop_test(tc, only_an_answer_to_this_boot_shows_an_empty_store, 0, sizeof shown / sizeof shown[0]);
    tcase_add_test(tc, a_lost_link_takes_back_what_was_shown);
    tcase_add_test(tc, a_wiped_node_is_an_outcast_everywhere);
    tcase_add_test(tc, a_half_formed_cluster_does_not_form_twice);
    tcase_add_test(tc, a_member_restarts_and_is_admitted_again);
    tcase_add_test(tc, a_stray_store_never_votes);
    tcase_add_loop_test(tc, a_wrong_frame_is_named_and_changes_nothing, 0, sizeof wrong / sizeof wrong[0]);
    tcase_add_test(tc, the_count_matters_until_a_cluster_has_formed);
    tcase_add_test(tc, a_record_of_another_cluster_replaces_nothing);
    tcase_add_test(tc, the_newest_membership_stands);
    tcase_add_test(tc, who_was_removed_stands_aside_until_it_is_added_again);
    tcase_add_test(tc, of_two_records_the_first_stays);
    tcase_add_loop_test(tc, a_record_that_cannot_be_is_not_adopted, 0, sizeof impossible / sizeof impossible[0]);
    tcase_add_test(tc, one_node_forms_alone_once);
    tcase_add_test(tc, a_record_of_our_own_disk_that_names_another_store_is_not_ours);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
