/* Who belongs to the cluster: one change at a time, in effect a fixed number of slots later; a store sits once, the
 * last voter stays, a seat's generation only grows.  Guards P10 as far as it is replicated state, and M1-M3 of
 * membership.h. */
#include "tests/unit/lockd/core/ks_story.h"

static const struct ks_members *members(void) {
    return keyspace_members(ks);
}

/* Empty entries. */
static void slots(uint64_t count) {
    while (count-- > 0) keyspace_apply(ks, ++story_slot, PAXOS_BLANK, &story_facts);
}

static void founded(void) {
    origin_is(ORIGIN_NODE_NONE, 0);
    FACTS("%MEMBERS 1 11 h1:71 2 12 h2:72 3 13 h3:73", "members");
    origin_is(0, 1);
}

START_TEST(the_founders_are_named_once) {
    ck_assert_uint_eq(members()->now.voters, 0);
    SAYS("NODE.ADD 4 h:1 00000000000000aa",
         "-BUSY the first entry of the cluster, which names its members, is not applied yet");
    SAYS("NODE.REMOVE 4", "-ERR node 4 is no member");
    SAYS("%MEMBERS 1 11 h1:71 1 12 h2:72", "OK"); /* nonsense counts for nothing */
    SAYS("%MEMBERS 10 11 h1:71", "OK");
    SAYS("%MEMBERS 1 0 h1:71", "OK");
    SAYS("%MEMBERS 1 x h1:71", "OK");
    SAYS("%MEMBERS 1 7 h1:71 2 7 h1:71", "OK");
    ck_assert_uint_eq(members()->now.voters, 0);
    founded();
    const struct ks_members *m = members();
    ck_assert_uint_eq(m->now.voters, 7);
    ck_assert_uint_eq(m->now.learners, 0);
    ck_assert_uint_eq(m->now.slot, 0); /* as the identity record of those who founded it */
    ck_assert_uint_eq(m->now.store_ids[1], 12);
    ck_assert(!m->has_next);
    ck_assert_str_eq(m->addresses[2], "h3:73");
    struct membership founding;
    membership_founding(&founding, 3, (const uint64_t[]){11, 12, 13});
    ck_assert(membership_equal(&m->now, &founding));
    FACTS("%MEMBERS 1 99 h9:79", "#8 OK");
    ck_assert(membership_equal(&m->now, &founding));
}
END_TEST

START_TEST(a_store_learns_then_votes) {
    founded();
    FACTS("NODE.ADD 5 [::1]:7400 00000000000000AA", "members; #1 OK");
    const struct ks_members *m = members();
    const uint64_t slot = story_slot;
    ck_assert(m->has_next);
    ck_assert_uint_eq(m->next.slot, slot);
    ck_assert_uint_eq(m->next.voters, 7);
    ck_assert_uint_eq(m->next.learners, 16);
    ck_assert_uint_eq(m->next.store_ids[4], 0xaa);
    ck_assert_uint_eq(m->next.generation[4], 1);
    ck_assert_uint_eq(m->now.learners, 0);
    ck_assert_str_eq(m->addresses[4], "[::1]:7400");
    SAYS("NODE.REMOVE 1", "-BUSY the last change of members is not in effect yet: it will be at slot 66");
    ck_assert_uint_eq(slot + KS_CONFIG_DELAY, 66);
    FACTS("NODE.ADD 5 h5:7500 00000000000000aa",
          "members; #3 OK"); /* the same one, elsewhere now: no change of members */
    ck_assert_str_eq(m->addresses[4], "h5:7500");
    ck_assert_uint_eq(m->next.slot, slot);
    SAYS("%PROMOTE 5 170", "-BUSY the last change of members is not in effect yet: it will be at slot 66");
    slots(65 - story_slot - 1);
    ck_assert(m->has_next);
    slots(1); /* 65: the next slot is governed by it */
    ck_assert(!m->has_next);
    ck_assert_uint_eq(m->now.learners, 16);
    ck_assert_uint_eq(m->next.slot, 0);
    SAYS("%PROMOTE 5 171", "-ERR that store does not learn there any more");
    SAYS("%PROMOTE 1 11", "-ERR that store does not learn there any more");
    SAYS("%PROMOTE 0 11", "-ERR that store does not learn there any more");
    SAYS("%PROMOTE 10 11", "-ERR that store does not learn there any more");
    FACTS("%PROMOTE 5 170", "members; #9 OK");
    ck_assert_uint_eq(m->next.voters, 16 + 7);
    ck_assert_uint_eq(m->next.learners, 0);
    ck_assert_uint_eq(m->next.generation[4], 1);
}
END_TEST

START_TEST(a_seat_may_be_given_to_another_store) {
    founded();
    FACTS("NODE.REMOVE 2", "members; #1 OK");
    const struct ks_members *m = members();
    slots(KS_CONFIG_DELAY - 2);
    ck_assert_str_eq(m->addresses[1], "h2:72"); /* it is needed, so it has to be found, until it is out */
    slots(2);
    ck_assert_uint_eq(m->now.voters, 5);
    ck_assert_uint_eq(m->now.store_ids[1], 0);
    ck_assert_str_eq(m->addresses[1], "");
    SAYS("NODE.ADD 1 h:1 00000000000000aa",
         "-ERR node 1 is a member already, with store 000000000000000b: NODE.REMOVE 1 first");
    SAYS("NODE.ADD 2 h:1 000000000000000d", "-ERR that store is node 3 already");
    SAYS("NODE.ADD 2 h:1 00000000000000aa", "OK");
    slots(KS_CONFIG_DELAY);
    ck_assert_uint_eq(m->now.generation[1], 1);
    SAYS("NODE.REMOVE 2", "OK"); /* a learner goes the same way */
    slots(KS_CONFIG_DELAY);
    ck_assert_uint_eq(m->now.learners, 0);
    SAYS("NODE.ADD 2 h:1 00000000000000aa", "OK"); /* and a store that comes back is another member */
    slots(KS_CONFIG_DELAY);
    ck_assert_uint_eq(m->now.generation[1], 2);
    SAYS("NODE.REMOVE 1", "OK");
    slots(KS_CONFIG_DELAY);
    SAYS("NODE.REMOVE 3", "-ERR node 3 is the last that votes");
    SAYS("NODE.REMOVE 1", "-ERR node 1 is no member");
    ck_assert_uint_eq(m->now.voters, 4);
}
END_TEST

START_TEST(generations_end) {
    founded();
    struct ks_members *m = (struct ks_members *)(uintptr_t)members();
    m->now.generation[8] = MEMBER_GENERATION_MAX - 1;
    SAYS("NODE.ADD 9 h:1 00000000000000aa", "OK");
    slots(KS_CONFIG_DELAY);
    SAYS("NODE.REMOVE 9", "OK");
    slots(KS_CONFIG_DELAY);
    SAYS("NODE.ADD 9 h:1 00000000000000aa", "-ERR node 9 had 4095 stores already; choose another number");
}
END_TEST

#define ADDRESS(text) "-ERR the address must be HOST:PORT, shorter than 64 bytes, not '" text "'"
#define STORE(text)                                                                                                    \
    "-ERR the store id must be 16 hexadecimal digits, as NODE.STATUS of that node shows them, not '" text "'"
static const struct {
    const char *line, *want;
} wrong[] = {
    {"NODE.ADD 0 h:1 00000000000000aa", "-ERR the node's number must be an integer from 1 to 9, not '0'"},
    {"NODE.ADD 10 h:1 00000000000000aa", "-ERR the node's number must be an integer from 1 to 9, not '10'"},
    {"NODE.REMOVE x", "-ERR the node's number must be an integer from 1 to 9, not 'x'"},
    {"NODE.ADD 4 h 00000000000000aa", ADDRESS("h")},
    {"NODE.ADD 4 :1 00000000000000aa", ADDRESS(":1")},
    {"NODE.ADD 4 h: 00000000000000aa", ADDRESS("h:")},
    {"NODE.ADD 4 '' 00000000000000aa", ADDRESS("")},
    {"NODE.ADD 4 h:0 00000000000000aa", ADDRESS("h:0")},
    {"NODE.ADD 4 h:65536 00000000000000aa", ADDRESS("h:65536")},
    {"NODE.ADD 4 h:100000 00000000000000aa", ADDRESS("h:100000")},
    {"NODE.ADD 4 h:1x 00000000000000aa", ADDRESS("h:1x")},
    {"NODE.ADD 4 'h h:1' 00000000000000aa", ADDRESS("h h:1")},
    {"NODE.ADD 4 h\"h:1 00000000000000aa", ADDRESS("h\"h:1")},
    {"NODE.ADD 4 h\x7f:1 00000000000000aa", ADDRESS("h?:1")},
    {"NODE.ADD 4 h:/1 00000000000000aa", ADDRESS("h:/1")},
    {"NODE.ADD 4 h:1 000000000000000/", STORE("000000000000000/")},
    {"NODE.ADD 4 h:1 000000000000000G", STORE("000000000000000G")},
    {"NODE.ADD 4 h:1 aa", STORE("aa")},
    {"NODE.ADD 4 h:1 0000000000000000", STORE("0000000000000000")},
    {"NODE.ADD 4 h:1 00000000000000ag", STORE("00000000000000ag")},
    {"NODE.ADD 4 h:1 000000000000000aa", STORE("000000000000000aa")},
};
START_TEST(what_is_wrong_is_said) {
    founded();
    SAYS(wrong[_i].line, wrong[_i].want);
    ck_assert(!members()->has_next);
}
END_TEST

static void add(TCase *tc) {
    tcase_add_test(tc, the_founders_are_named_once);
    tcase_add_test(tc, a_store_learns_then_votes);
    tcase_add_test(tc, a_seat_may_be_given_to_another_store);
    tcase_add_test(tc, generations_end);
    tcase_add_loop_test(tc, what_is_wrong_is_said, 0, sizeof wrong / sizeof wrong[0]);
}

int main(void) {
    return story_main("keyspace members", add);
}
