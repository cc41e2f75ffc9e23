/* Deadlines that live in the leader's memory: renewal, expiry handed out once, remaining times, cover and limits.
 * Guards L3, L4, L6, C1 and C2 of keeper.h with a real keyspace under it. */
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
    uint64_t ttl;
    ck_assert_int_eq(keeper_renew(k, 5500, b, &ttl), KEEPER_KEPT); /* NEXT renews */
    keeper_next_hold(k, 5500, b, 1, &replaced);
    ck_assert_uint_eq(replaced, 0);
    due_at(6499, 0, 0, 0);
    due_at(6500, 0, 0, 1); /* a third of the ttl */
    keeper_next_answered(k, b, 5500);
    snprintf(line, sizeof line, "ROUTE.MOVE p s %llu LEASE %llu y FORCE", epoch, a);
    applied(6600, line);
    const uint64_t asked = asked_revision();
    ck_assert_int_eq(keeper_renew(k, 6900, b, &ttl), KEEPER_KEPT); /* C2: keeps the lease, not the cover */
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
    ck_assert_uint_ge(keeper_wake_at(k), 5000 + 43200000);
}
END_TEST

/* ---- remaining times ---- */

static uint64_t granted(uint64_t now_ms, const char *line) {
    applied(now_ms, line);
    return facts.facts[0].id;
}

static void say_of(uint64_t now_ms, const char *format, uint64_t id) {
    char line[64];
    snprintf(line, sizeof line, format, (unsigned long long)id);
    applied(now_ms, line);
}

/* What is due, applied at once. */
static void work(uint64_t now_ms) {
    char line[64];
    keeper_due(k, now_ms, &due);
    for (uint32_t i = 0; i < due.remaining_count; i++) {
        snprintf(line, sizeof line, "%%REMAINING %llu %llu", (unsigned long long)due.remaining[i].lease,
                 (unsigned long long)due.remaining[i].ms);
        applied(now_ms, line);
    }
    for (uint32_t i = 0; i < due.renewed_count; i++) say_of(now_ms, "%%RENEWED %llu", due.renewed[i]);
    for (uint32_t i = 0; i < due.expired_count; i++) say_of(now_ms, "%%EXPIRE %llu", due.expired[i]);
}

/* L3, after a pause: nothing of what is left is in the log, and the end is on its way. */
START_TEST(a_renewal_parks_while_it_expires_also_after_a_pause) {
    uint64_t ttl;
    const uint64_t id = granted(5000, "LEASE.GRANT 2000");
    keeper_due(k, 7100, &due);
    ck_assert_uint_eq(due.expired_count, 1);
    ck_assert_uint_eq(due.remaining_count, 0);
    ck_assert_int_eq(keeper_renew(k, 7100, id, &ttl), KEEPER_PARKED);
}
END_TEST

START_TEST(a_renewal_waits_while_a_remaining_time_is_in_the_log) {
    uint64_t ttl;
    const uint64_t id = granted(5000, "LEASE.GRANT 4000");
    keeper_due(k, 6999, &due);
    ck_assert_uint_eq(due.remaining_count, 0);
    ck_assert_uint_eq(keeper_wake_at(k), 7000);
    keeper_due(k, 7000, &due); /* silent for half its ttl */
    ck_assert_uint_eq(due.remaining_count, 1);
    ck_assert_uint_eq(due.remaining[0].lease, id);
    ck_assert_uint_eq(due.remaining[0].ms, 2000);
    ck_assert_int_eq(keeper_renew(k, 7100, id, &ttl), KEEPER_PARKED); /* it is proposed and not applied */
    ck_assert_uint_le(keeper_wake_at(k), 7100);
    keeper_due(k, 7100, &due);
    ck_assert_uint_eq(due.renewed_count, 1);
    ck_assert_uint_eq(due.renewed[0], id);
    say_of(7110, "%%REMAINING %llu 2000", id);
    ck_assert_uint_eq(keyspace_lease_remaining(ks, id), 2000);
    ck_assert_int_eq(keeper_renew(k, 7200, id, &ttl), KEEPER_PARKED);
    keeper_due(k, 7200, &due);
    ck_assert_uint_eq(due.renewed_count, 0); /* the clearing is out already */
    keeper_due(k, 9100, &due);
    ck_assert_uint_eq(due.expired_count + due.remaining_count, 0); /* who asked is no dead holder */
    say_of(9150, "%%RENEWED %llu", id);
    ck_assert_uint_eq(keyspace_lease_remaining(ks, id), 0);
    ck_assert_int_eq(keeper_renew(k, 9150, id, &ttl), KEEPER_KEPT);
    ck_assert_int_eq(keeper_renew(k, 9160, id, &ttl), KEEPER_KEPT);
}
END_TEST

START_TEST(silence_is_logged_again_and_again) {
    uint32_t entries = 0;
    uint64_t last = UINT64_MAX;
    granted(0, "LEASE.GRANT 80000");
    for (uint64_t t = 10; t < 80000; t += 10) {
        keeper_due(k, t, &due);
        ck_assert_uint_eq(due.expired_count, 0);
        if (due.remaining_count == 0) continue;
        ck_assert_uint_eq(due.remaining[0].ms, 80000 - t);
        ck_assert(last == UINT64_MAX ? t == 40000 : t == last + 10000);
        last = t;
        entries++;
    }
    ck_assert_uint_eq(entries, 4);
    keeper_due(k, 80000, &due);
    ck_assert_uint_eq(due.expired_count, 1);
}
END_TEST

START_TEST(leases_renewed_in_time_cost_the_log_nothing) {
    enum { COUNT = 200 };
    uint64_t ids[COUNT], ttl;
    for (int i = 0; i < COUNT; i++) {
        char line[64];
        snprintf(line, sizeof line, "LEASE.GRANT %d", 3000 + 100 * i);
        ids[i] = granted(0, line);
    }
    for (uint64_t t = 0; t < 100000; t += 20) {
        for (uint64_t i = 0; i < COUNT; i++)
            if ((t + i * 20) % ((3000 + 100 * i) / 60 * 20) == 0)
                ck_assert_int_eq(keeper_renew(k, t, ids[i], &ttl), KEEPER_KEPT);
        keeper_due(k, t, &due);
        ck_assert_uint_eq(due.remaining_count + due.renewed_count + due.expired_count, 0);
    }
}
END_TEST

START_TEST(a_new_leader_counts_what_is_logged) {
    uint64_t ttl;
    const uint64_t silent = granted(5000, "LEASE.GRANT 20000"), quiet = granted(5000, "LEASE.GRANT 20000");
    say_of(15000, "%%REMAINING %llu 10000", silent);
    keeper_lead(k, 15500, ks);
    ck_assert_uint_eq(keeper_remaining(k, 15500, silent), 10000); /* no jitter: it would grow with each leader */
    ck_assert_uint_ge(keeper_remaining(k, 15500, quiet), 20000);
    ck_assert_int_eq(keeper_renew(k, 15600, quiet, &ttl), KEEPER_KEPT);
    uint64_t t = 15500;
    do keeper_due(k, ++t, &due);
    while (due.remaining_count == 0);
    ck_assert_uint_ge(t, 15500 + KEEPER_SILENT_MS);
    ck_assert_uint_le(t, 15500 + 2 * KEEPER_SILENT_MS);
    ck_assert_uint_eq(due.remaining[0].lease, silent);
    ck_assert_uint_eq(due.remaining[0].ms, 25500 - t);
    keeper_lead(k, 40000, ks); /* and again, with the first entry still in the log only */
    ck_assert_int_eq(keeper_renew(k, 40100, silent, &ttl), KEEPER_PARKED);
    keeper_due(k, 40100, &due);
    ck_assert_uint_eq(due.renewed_count, 1);
    say_of(40150, "%%RENEWED %llu", silent);
    ck_assert_int_eq(keeper_renew(k, 40150, silent, &ttl), KEEPER_KEPT);
}
END_TEST

/* Elections without end: the dead holder's lease ends all the same, and no living one's does while it may believe in
 * it. */
START_TEST(elections_keep_no_dead_lease_alive) {
    enum { ELECTION_MS = 300 };
    const uint64_t reign_ms = 1400 + 600 * (uint64_t)_i, ttl_ms = _i % 2 ? 10000 : 3000;
    char line[64];
    snprintf(line, sizeof line, "LEASE.GRANT %llu", (unsigned long long)ttl_ms);
    const uint64_t dead = granted(0, line), living = granted(0, line);
    uint64_t ttl, believed = ttl_ms, gone_ms = 0;
    bool asks = false;
    for (uint64_t t = 10, led = 0; t < 200000; t += 10) {
        if (t - led >= reign_ms + ELECTION_MS) keeper_lead(k, led = t, ks);
        if (t - led >= reign_ms) continue; /* nobody leads */
        if (t % 1000 == 0) asks = true;
        if (asks && keeper_renew(k, t, living, &ttl) == KEEPER_KEPT) {
            believed = t + ttl_ms;
            asks = false;
        }
        work(t);
        if (gone_ms == 0 && !keyspace_lease(ks, dead, &ttl)) gone_ms = t;
        ck_assert_msg(believed <= t || keyspace_lease(ks, living, &ttl), "the living one ended at %d", (int)t);
        ck_assert_uint_gt(believed + 3000, t); /* it hears of its renewals in time */
    }
    ck_assert_uint_gt(gone_ms, 0);
    ck_assert_uint_le(gone_ms, 6 * ttl_ms);
}
END_TEST

/* ---- what it does not know, and much at once ---- */

START_TEST(a_lease_it_does_not_know_has_nothing) {
    uint64_t ttl;
    const uint64_t id = granted(5000, "LEASE.GRANT 2000");
    ck_assert_int_eq(keeper_renew(k, 5000, id + 1, &ttl), KEEPER_GONE);
    ck_assert_uint_eq(keeper_remaining(k, 5000, id + 1), 0);
    ck_assert_uint_eq(keeper_next_held(k, id + 1), 0);
    ck_assert(!keeper_next_known(k, id + 1));
    ck_assert(!keeper_ack_once(k, id + 1, 7));
    ck_assert(!keeper_join_once(k, id + 1));
    keeper_next_answered(k, id + 1, 5000);
    ck_assert(!keeper_next_known(k, id + 1));
    keeper_next_forget(k, id + 1);
    /* what the log says of it changes nothing either */
    keeper_fact(k, 5000, ks, &(struct ks_fact){.kind = KS_LEASE_RENEWED, .id = id + 1});
    keeper_fact(k, 5000, ks, &(struct ks_fact){.kind = KS_LEASE_GONE, .id = id + 1});
    keeper_fact(k, 5000, ks, &(struct ks_fact){.kind = KS_REPLY, .id = id});
    ck_assert_uint_eq(keeper_remaining(k, 5000, id), 2000);
    ck_assert_uint_eq(keeper_remaining(k, 8000, id), 0); /* past */
}
END_TEST

/* Our first entry and the grants that came with it in one batch: they are in the state that we begin from, too. */
START_TEST(a_lease_told_twice_is_counted_once) {
    apply("LEASE.GRANT 2000");
    const struct ks_fact fact = facts.facts[0];
    keeper_lead(k, 10000, ks);
    const uint64_t left = keeper_remaining(k, 10000, fact.id);
    keeper_fact(k, 11000, ks, &fact);
    ck_assert_uint_eq(keeper_remaining(k, 10000, fact.id), left);
    due_at(10000 + left, 1, 0, 0);
    due_at(20000, 0, 0, 0);
}
END_TEST

START_TEST(a_call_that_is_forgotten_is_not_due) {
    uint64_t replaced;
    const uint64_t id = granted(5000, "LEASE.GRANT 30000"), gone = granted(5000, "LEASE.GRANT 30000");
    keeper_next_hold(k, 5000, id, 1, &replaced);
    keeper_next_hold(k, 5000, gone, 2, &replaced);
    keeper_next_forget(k, id);
    ck_assert_uint_eq(keeper_next_held(k, id), 0);
    say_of(6000, "LEASE.REVOKE %llu", gone);
    due_at(10000, 0, 0, 0);
    keeper_next_hold(k, 10000, id, 3, &replaced);
    ck_assert_uint_eq(replaced, 0);
}
END_TEST

enum { CROWD = 2 * KEEPER_DUE_MAX + 100 };
/* A crowd that is silent, then heard again, then gone: each is handed out once, KEEPER_DUE_MAX at most in one go. */
START_TEST(a_crowd_is_handed_out_in_portions) {
    static uint64_t ids[CROWD];
    static bool seen[CROWD];
    static const uint32_t portions[] = {KEEPER_DUE_MAX, KEEPER_DUE_MAX, CROWD - 2 * KEEPER_DUE_MAX, 0};
    uint64_t ttl;
    for (int i = 0; i < CROWD; i++) ids[i] = granted(5000, "LEASE.GRANT 4000");
    for (int step = 0; step < 3; step++) { /* remaining times at half of the ttl, clearings, expiries */
        const uint64_t at_ms = step == 0 ? 7000 : step == 1 ? 8000 : 20000;
        if (step == 1)
            for (int i = 0; i < CROWD; i++) ck_assert_int_eq(keeper_renew(k, 8000, ids[i], &ttl), KEEPER_PARKED);
        memset(seen, 0, sizeof seen);
        for (int p = 0; p < 4; p++) {
            keeper_due(k, at_ms, &due);
            const uint32_t count = step == 0 ? due.remaining_count : step == 1 ? due.renewed_count : due.expired_count;
            ck_assert_uint_eq(due.remaining_count + due.renewed_count + due.expired_count, count);
            ck_assert_uint_eq(count, portions[p]);
            for (uint32_t i = 0; i < count; i++) {
                const uint64_t id = step == 0 ? due.remaining[i].lease : step == 1 ? due.renewed[i] : due.expired[i];
                const uint64_t at = id - ids[0]; /* ids are revisions, one after the other */
                ck_assert_uint_lt(at, CROWD);
                ck_assert(!seen[at]);
                seen[at] = true;
            }
            if (p < 2) ck_assert_uint_le(keeper_wake_at(k), at_ms); /* it wants to be asked again at once */
        }
        ck_assert_uint_gt(keeper_wake_at(k), at_ms);
    }
}
END_TEST

START_TEST(held_calls_and_limits_come_in_portions) {
    char line[128];
    uint64_t replaced;
    const unsigned long long mover = granted(5000, "LEASE.GRANT 3600000");
    const uint64_t first = granted(5000, "LEASE.GRANT 3600000");
    snprintf(line, sizeof line, "ROUTE.BIND p s LEASE %llu x PREFER x y", mover);
    applied(5000, line);
    const unsigned long long epoch = keyspace_revision(ks);
    for (uint32_t i = 0; i < KEEPER_DUE_MAX + 10; i++) {
        const uint64_t id = i == 0 ? first : granted(5000, "LEASE.GRANT 3600000");
        snprintf(line, sizeof line, "ROUTE.GET p s LEASE %llu", (unsigned long long)id);
        applied(5000, line);
        keeper_next_hold(k, 5000, id, i + 1, &replaced);
    }
    due_at(10000, 0, 0, KEEPER_DUE_MAX);
    due_at(10000, 0, 0, 10);
    due_at(10000, 0, 0, 0);
    snprintf(line, sizeof line, "ROUTE.MOVE p s %llu LEASE %llu y FORCE", epoch, mover);
    applied(11000, line); /* none is covered: no NEXT of it was answered */
    due_at(11000, 0, KEEPER_DUE_MAX, 0);
    due_at(11000, 0, 10, 0);
    due_at(11000, 0, 0, 0);
}
END_TEST

/* What is swept out is only what nobody waits for: deadlines, held calls and limits stay, each at its time. */
START_TEST(a_sweep_keeps_the_living_in_order) {
    enum { COUNT = 2700, EVERY = 4, HOLDER_MS = 2500 };
    static uint64_t ids[COUNT], end_ms[COUNT];
    char line[128];
    uint64_t replaced;
    const unsigned long long mover = granted(5000, "LEASE.GRANT 3600000"), holder = granted(5000, "LEASE.GRANT 2500");
    snprintf(line, sizeof line, "ROUTE.BIND p s LEASE %llu x PREFER x y", holder);
    applied(5000, line);
    const unsigned long long epoch = keyspace_revision(ks);
    keeper_next_hold(k, 5000, holder, 1, &replaced);
    keeper_next_answered(k, holder, 5000);
    keeper_next_hold(k, 5000, holder, 2, &replaced);
    snprintf(line, sizeof line, "ROUTE.MOVE p s %llu LEASE %llu y FORCE", epoch, mover);
    applied(5000, line);
    for (uint64_t i = 0; i < COUNT; i++) {
        const uint64_t ttl_ms = 1000 + i * 7919 % COUNT; /* in no order */
        snprintf(line, sizeof line, "LEASE.GRANT %llu", (unsigned long long)ttl_ms);
        ids[i] = granted(5000, line);
        end_ms[i] = 5000 + ttl_ms;
    }
    const size_t before = heap_bytes_in_use();
    for (int i = 0; i < COUNT; i++)
        if (i % EVERY != 0) say_of(5000, "LEASE.REVOKE %llu", ids[i]);
    ck_assert_uint_lt(heap_bytes_in_use(), before);
    uint32_t ended = 0;
    for (uint64_t t = 5001; t < 10000; t++) {
        keeper_due(k, t, &due);
        for (uint32_t i = 0; i < due.expired_count; i++) {
            if (due.expired[i] == holder) continue;
            const uint64_t at = due.expired[i] - ids[0];
            ck_assert_uint_lt(at, COUNT);
            ck_assert_uint_eq(end_ms[at], t);
            ended++;
        }
        ck_assert_uint_eq(due.next_count, t == 5000 + HOLDER_MS / 3);
        ck_assert_uint_eq(due.passed_count, t == 5000 + HOLDER_MS);
    }
    ck_assert_uint_eq(ended, COUNT / EVERY);
}
END_TEST

int main(void) {
    TCase *tc = tcase_create("keeper");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_lease_counts_from_its_last_renewal_and_parks_while_it_expires);
    tcase_add_test(tc, a_renewal_parks_while_it_expires_also_after_a_pause);
    tcase_add_test(tc, a_new_leader_gives_everybody_a_full_ttl);
    tcase_add_test(tc, a_limit_is_the_cover_of_the_moment_of_asking);
    tcase_add_test(tc, a_new_leader_trusts_no_cover_it_did_not_give);
    tcase_add_test(tc, a_newer_next_takes_the_place_of_an_older);
    tcase_add_test(tc, leases_given_back_cost_nothing);
    tcase_add_test(tc, a_renewal_waits_while_a_remaining_time_is_in_the_log);
    tcase_add_test(tc, silence_is_logged_again_and_again);
    tcase_add_test(tc, leases_renewed_in_time_cost_the_log_nothing);
    tcase_add_test(tc, a_new_leader_counts_what_is_logged);
    tcase_add_loop_test(tc, elections_keep_no_dead_lease_alive, 0, 6);
    tcase_add_test(tc, a_lease_it_does_not_know_has_nothing);
    tcase_add_test(tc, a_lease_told_twice_is_counted_once);
    tcase_add_test(tc, a_call_that_is_forgotten_is_not_due);
    tcase_add_test(tc, a_crowd_is_handed_out_in_portions);
    tcase_add_test(tc, held_calls_and_limits_come_in_portions);
    tcase_add_test(tc, a_sweep_keeps_the_living_in_order);
    Suite *suite = suite_create("keeper");
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
