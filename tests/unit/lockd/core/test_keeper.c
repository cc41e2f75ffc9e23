/* Deadlines that live in the leader's memory: renewal, expiry handed out once, cover and limits.
 * Guards L3, L4, C1 and C2 of keeper.h with a real keyspace under it. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "lockd/core/keeper.h"

static struct keyspace *ks;
static struct keeper *k;
static paxos_slot slot;
static struct ks_facts facts;

static void apply(const char *line) {
    char text[256];
    struct slice argv[16];
    uint32_t argc = 0;
    snprintf(text, sizeof text, "%s", line);
    for (char *word = strtok(text, " "); word != NULL; word = strtok(NULL, " ")) argv[argc++] = slice_str(word);
    struct buf b = {.alloc = heap_alloc()};
    batch_begin(&b, (struct ballot){1, 0}, false, 1000);
    batch_add(&b, ORIGIN_NONE, argc, argv);
    keyspace_apply(ks, ++slot, buf_slice(&b), &facts);
    buf_release(&b);
}
static void applied(uint64_t now_ms, const char *line) {
    apply(line);
    for (uint32_t i = 0; i < facts.count; i++) keeper_fact(k, now_ms, ks, &facts.facts[i]);
}

static void setup(void) {
    slot = 0;
    ks = keyspace_new(&(struct ks_config){.alloc = heap_alloc(), .node = 0, .boot = 1});
    k = keeper_new(heap_alloc(), 1);
    struct buf b = {.alloc = heap_alloc()};
    batch_begin(&b, (struct ballot){1, 0}, true, 1000);
    keyspace_apply(ks, ++slot, buf_slice(&b), &facts);
    buf_release(&b);
}
static void teardown(void) {
    keeper_free(k);
    keyspace_free(ks);
    ck_assert_uint_eq(heap_bytes_in_use(), 0);
}

static struct keeper_due due;
#define due_at(now_ms, expired_n, passed_n, next_n)                                                                    \
    do {                                                                                                               \
        keeper_due(k, now_ms, &due);                                                                                   \
        ck_assert_uint_eq(due.expired_count, expired_n);                                                               \
        ck_assert_uint_eq(due.passed_count, passed_n);                                                                 \
        ck_assert_uint_eq(due.next_count, next_n);                                                                     \
    } while (0)

START_TEST(a_lease_counts_from_its_last_renewal_and_parks_while_it_expires) {
    uint64_t ttl;
    applied(5000, "LEASE.GRANT 2000");
    const uint64_t id = facts.facts[0].id;
    ck_assert_int_eq(keeper_renew(k, 6000, id, &ttl), KEEPER_KEPT);
    ck_assert_uint_eq(ttl, 2000);
    due_at(7999, 0, 0, 0); /* its first deadline, 7000, only moved the timer */
    ck_assert_uint_eq(keeper_remaining(k, 7999, id), 1);
    due_at(8000, 1, 0, 0);
    ck_assert_uint_eq(due.expired[0], id);
    due_at(9000, 0, 0, 0); /* handed out once */
    ck_assert_int_eq(keeper_renew(k, 9000, id, &ttl), KEEPER_PARKED);
    char line[64];
    snprintf(line, sizeof line, "%%EXPIRE %llu", (unsigned long long)id);
    applied(9001, line);
    ck_assert_int_eq(keeper_renew(k, 9001, id, &ttl), KEEPER_GONE);
}
END_TEST

START_TEST(a_new_leader_gives_everybody_a_full_ttl) {
    apply("LEASE.GRANT 2000");
    apply("LEASE.GRANT 60000");
    keeper_lead(k, 100000, ks);
    due_at(101999, 0, 0, 0);
    due_at(102101, 1, 0, 0); /* plus at most 1/20 */
    due_at(159999, 0, 0, 0);
    due_at(163001, 1, 0, 0);
}
END_TEST

static uint64_t asked_revision(void) {
    for (uint32_t i = 0; i < facts.count; i++)
        if (facts.facts[i].kind == KS_MOVE_ASKED) return facts.facts[i].id;
    ck_abort_msg("no move was asked");
    return 0;
}

START_TEST(a_limit_is_the_cover_of_the_moment_of_asking) {
    char line[128];
    uint64_t replaced;
    applied(5000, "LEASE.GRANT 3000");
    const unsigned long long a = facts.facts[0].id;
    applied(5000, "LEASE.GRANT 3000");
    const unsigned long long b = facts.facts[0].id;
    snprintf(line, sizeof line, "ROUTE.BIND p s LEASE %llu x PREFER x y", b);
    applied(5000, line);
    const unsigned long long epoch = keyspace_revision(ks);
    keeper_next_hold(k, 5500, b, 1, &replaced);
    ck_assert_uint_eq(replaced, 0);
    due_at(6499, 0, 0, 0);
    due_at(6500, 0, 0, 1); /* a third of the ttl */
    keeper_next_answered(k, b, 5500);
    snprintf(line, sizeof line, "ROUTE.MOVE p s %llu LEASE %llu y FORCE", epoch, a);
    applied(6600, line);
    const uint64_t asked = asked_revision();
    uint64_t ttl;
    ck_assert_int_eq(keeper_renew(k, 8400, b, &ttl), KEEPER_KEPT); /* C2: keeps the lease, not the cover */
    due_at(8499, 1, 0, 0);                                         /* a's lease */
    due_at(8500, 0, 1, 0);                                         /* 5500 + 3000 */
    ck_assert_uint_eq(due.passed[0].asked, asked);
    ck_assert_uint_eq(due.passed[0].lease, b);
}
END_TEST

START_TEST(a_new_leader_trusts_no_cover_it_did_not_give) {
    char line[128];
    apply("LEASE.GRANT 3000");
    const unsigned long long a = facts.facts[0].id;
    apply("LEASE.GRANT 3000");
    const unsigned long long b = facts.facts[0].id;
    snprintf(line, sizeof line, "ROUTE.BIND p s LEASE %llu x PREFER x y", b);
    apply(line);
    snprintf(line, sizeof line, "ROUTE.MOVE p s %llu LEASE %llu y FORCE", (unsigned long long)keyspace_revision(ks), a);
    apply(line); /* asked under another leader */
    keeper_lead(k, 10000, ks);
    uint64_t ttl;
    for (uint64_t t = 10100; t < 13000; t += 100) {
        ck_assert_int_eq(keeper_renew(k, t, a, &ttl), KEEPER_KEPT);
        ck_assert_int_eq(keeper_renew(k, t, b, &ttl), KEEPER_KEPT);
        due_at(t, 0, 0, 0);
    }
    due_at(13000, 0, 1, 0);
}
END_TEST

START_TEST(a_newer_next_takes_the_place_of_an_older) {
    uint64_t replaced;
    applied(5000, "LEASE.GRANT 30000");
    const uint64_t id = facts.facts[0].id;
    keeper_next_hold(k, 5000, id, 1, &replaced);
    keeper_next_hold(k, 6000, id, 2, &replaced);
    ck_assert_uint_eq(replaced, 1);
    ck_assert_uint_eq(keeper_next_held(k, id), 2);
    due_at(10999, 0, 0, 0); /* five seconds at most */
    due_at(11000, 0, 0, 1);
    ck_assert(keeper_ack_once(k, id, 7));
    ck_assert(!keeper_ack_once(k, id, 7));
    ck_assert(keeper_join_once(k, id));
    ck_assert(!keeper_join_once(k, id));
}
END_TEST

/* Leases that are given back long before they run out leave nothing behind. */
START_TEST(leases_given_back_cost_nothing) {
    char line[64];
    applied(5000, "LEASE.GRANT 3000"); /* one that lives on, below and above the others */
    const uint64_t id = facts.facts[0].id;
    size_t before = 0;
    for (int i = 0; i < 12000; i++) {
        applied(5000, "LEASE.GRANT 86400000");
        snprintf(line, sizeof line, "LEASE.REVOKE %llu", (unsigned long long)facts.facts[0].id);
        applied(5000, line);
        if (i == 4000) before = heap_bytes_in_use();
    }
    ck_assert_uint_le(heap_bytes_in_use(), before + 1000);
    due_at(7999, 0, 0, 0);
    due_at(8000, 1, 0, 0);
    ck_assert_uint_eq(due.expired[0], id);
    ck_assert_uint_ge(keeper_wake_at(k), 5000 + 86400000);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("keeper");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_lease_counts_from_its_last_renewal_and_parks_while_it_expires);
    tcase_add_test(tc, a_new_leader_gives_everybody_a_full_ttl);
    tcase_add_test(tc, a_limit_is_the_cover_of_the_moment_of_asking);
    tcase_add_test(tc, a_new_leader_trusts_no_cover_it_did_not_give);
    tcase_add_test(tc, a_newer_next_takes_the_place_of_an_older);
    tcase_add_test(tc, leases_given_back_cost_nothing);
    Suite *suite = suite_create("keeper");
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
