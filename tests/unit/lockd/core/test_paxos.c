/* Paxos by hand: one node fed with messages, and a small cluster on a perfect network.  What chance has to find is in
 * tests/sim. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "lockd/core/paxos.h"

/* ------------------------------------------------------------------ a cluster on a perfect network */

enum { NODES = 5, LOG = 4096, QUEUE = 65536 };
static struct {
    struct paxos *p;
    uint32_t applied;
    uint64_t applied_bytes[LOG];
    uint64_t wake_ms;
    bool cut; /* says and hears nothing */
} nodes[NODES];
static uint16_t node_count;
static uint64_t now_ms;
static struct {
    struct paxos_msg m;
    struct paxos_entry entries[64];
    char bytes[64][32];
} queue[QUEUE];
static uint32_t queue_head, queue_tail;
/* what each "disk" holds, for CATCHUP */
static struct paxos_entry disk[NODES][LOG];
static char disk_bytes[NODES][LOG][32];

static struct paxos_config config_of(uint16_t node, uint16_t count) {
    return (struct paxos_config){.alloc = heap_alloc(),
                                 .node = node,
                                 .node_count = count,
                                 .inflight_max = 8,
                                 .value_bytes_max = 16,
                                 .heartbeat_ms = 50,
                                 .lease_ms = 300,
                                 .election_spread_ms = 100,
                                 .drift_ppm = 500,
                                 .seed = node + 1u,
                                 .start_ms = now_ms};
}
static void enqueue(const struct paxos_msg *m) {
    ck_assert_uint_lt(queue_tail, QUEUE);
    ck_assert_uint_le(m->entry_count, 64);
    queue[queue_tail].m = *m;
    queue[queue_tail].m.entries = queue[queue_tail].entries;
    for (uint32_t i = 0; i < m->entry_count; i++) {
        queue[queue_tail].entries[i] = m->entries[i];
        memcpy(queue[queue_tail].bytes[i], m->entries[i].value.data, m->entries[i].value.bytes);
        queue[queue_tail].entries[i].value.data = queue[queue_tail].bytes[i];
    }
    queue_tail++;
}
static uint64_t value_number(struct slice v) {
    uint64_t number = 0;
    ck_assert_uint_le(v.bytes, sizeof number);
    memcpy(&number, v.data, v.bytes);
    return number;
}
static void drain(uint16_t n) {
    struct paxos_output out;
    while (paxos_take(nodes[n].p, &out)) {
        for (uint32_t i = 0; i < out.save_count; i++) {
            const paxos_slot s = out.saves[i].slot;
            disk[n][s] = out.saves[i];
            memcpy(disk_bytes[n][s], out.saves[i].value.data, out.saves[i].value.bytes);
            disk[n][s].value.data = disk_bytes[n][s];
        }
        for (uint32_t i = 0; i < out.send_now_count; i++) enqueue(&out.sends_now[i]);
        for (uint32_t i = 0; i < out.send_after_count; i++) enqueue(&out.sends_after[i]);
        for (uint32_t i = 0; i < out.apply_count; i++) {
            ck_assert_uint_eq(out.applies[i].slot, nodes[n].applied + 1);
            nodes[n].applied++;
            nodes[n].applied_bytes[nodes[n].applied] = value_number(out.applies[i].value);
        }
        for (uint32_t i = 0; i < out.fetch_count; i++) {
            struct paxos_entry entries[64];
            uint32_t count = 0;
            for (paxos_slot s = out.fetches[i].from_slot; s <= out.fetches[i].to_slot && count < 5; s++)
                entries[count++] = disk[n][s];
            enqueue(&(struct paxos_msg){.kind = PAXOS_MSG_CHOSEN,
                                        .from = n,
                                        .to = out.fetches[i].to,
                                        .entries = entries,
                                        .entry_count = count});
        }
        if (out.batch != 0)
            ck_assert_int_eq(
                paxos_step(nodes[n].p,
                           &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_DURABLE, .batch = out.batch}),
                PAXOS_TAKEN);
    }
    nodes[n].wake_ms = out.wake_at_ms;
}
static void deliver_all(void) {
    while (queue_head < queue_tail) {
        const struct paxos_msg *m = &queue[queue_head++].m;
        if (nodes[m->from].cut || nodes[m->to].cut) continue;
        (void)!paxos_step(nodes[m->to].p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_MESSAGE, .message = m});
        drain(m->to);
    }
    queue_head = queue_tail = 0;
}
static void cluster(uint16_t count) {
    node_count = count;
    now_ms = 1000;
    queue_head = queue_tail = 0;
    memset(disk, 0, sizeof disk);
    for (uint16_t i = 0; i < count; i++) {
        const struct paxos_config config = config_of(i, count);
        nodes[i].p = paxos_new(&config, &(struct paxos_saved){0});
        nodes[i].applied = 0;
        nodes[i].cut = false;
        drain(i);
    }
}
static void cluster_end(void) {
    for (uint16_t i = 0; i < node_count; i++) paxos_free(nodes[i].p);
}
/* Steps time until it is `until_ms`; a timer is never due twice at the same moment without work. */
static void run_until(uint64_t until_ms) {
    uint32_t still = 0;
    deliver_all();
    for (;;) {
        uint64_t at = UINT64_MAX;
        for (uint16_t i = 0; i < node_count; i++) {
            if (nodes[i].wake_ms < at) at = nodes[i].wake_ms;
        }
        if (at > until_ms) break;
        still = at <= now_ms ? still + 1 : 0;
        ck_assert_msg(still < 10 * node_count, "busy loop at %llu", (unsigned long long)now_ms);
        if (at > now_ms) now_ms = at;
        for (uint16_t i = 0; i < node_count; i++) {
            if (nodes[i].wake_ms > now_ms) continue;
            ck_assert_int_eq(paxos_step(nodes[i].p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_TICK}),
                             PAXOS_TAKEN);
            drain(i);
        }
        deliver_all();
    }
    now_ms = until_ms;
}
static int leader_of(void) {
    int leader = -1;
    for (uint16_t i = 0; i < node_count; i++) {
        if (nodes[i].cut || paxos_role(nodes[i].p) != PAXOS_LEADING) continue;
        ck_assert_int_eq(leader, -1);
        leader = i;
    }
    return leader;
}
static enum paxos_verdict give(int n, uint64_t number) {
    const enum paxos_verdict v = paxos_step(
        nodes[n].p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = slice_of(&number, 8)});
    return v;
}

START_TEST(one_node_leads_at_once_and_applies_what_is_on_disk) {
    cluster(1);
    run_until(now_ms + 1);
    ck_assert_int_eq(leader_of(), 0);
    ck_assert(paxos_lease_good(nodes[0].p, now_ms + 1000000));
    for (uint64_t i = 1; i <= 5; i++) ck_assert_int_eq(give(0, i), PAXOS_TAKEN);
    ck_assert_uint_eq(paxos_room(nodes[0].p), 3);
    struct paxos_output out;
    ck_assert(paxos_take(nodes[0].p, &out));
    ck_assert_uint_eq(out.save_count, 5);
    ck_assert_uint_eq(out.apply_count, 0); /* not before it is durable */
    ck_assert(out.batch != 0);
    ck_assert_int_eq(
        paxos_step(nodes[0].p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_DURABLE, .batch = out.batch}),
        PAXOS_TAKEN);
    drain(0);
    ck_assert_uint_eq(nodes[0].applied, 5);
    ck_assert_uint_eq(paxos_confirm(nodes[0].p, now_ms), paxos_confirmed(nodes[0].p));
    ck_assert_uint_eq(nodes[0].wake_ms, UINT64_MAX);
    cluster_end();
}
END_TEST

START_TEST(three_nodes_elect_agree_and_go_on_without_the_leader) {
    cluster(3);
    run_until(now_ms + 500);
    const int first = leader_of();
    ck_assert_int_ge(first, 0);
    ck_assert(paxos_lease_good(nodes[first].p, now_ms));
    for (uint64_t i = 1; i <= 8; i++) ck_assert_int_eq(give(first, i), PAXOS_TAKEN);
    ck_assert_int_eq(give(first, 9), PAXOS_FULL);
    drain((uint16_t)first);
    deliver_all();
    for (int i = 0; i < 3; i++) ck_assert_uint_eq(nodes[i].applied, 8); /* followers hear of it at once */
    nodes[first].cut = true;
    ck_assert_int_eq(give(first, 77), PAXOS_TAKEN);
    drain((uint16_t)first);
    run_until(now_ms + 1000);
    ck_assert_int_ne(paxos_role(nodes[first].p), PAXOS_LEADING);
    const int second = leader_of();
    ck_assert_int_ge(second, 0);
    for (uint64_t i = 10; i <= 12; i++) ck_assert_int_eq(give(second, i), PAXOS_TAKEN);
    drain((uint16_t)second);
    run_until(now_ms + 100);
    ck_assert_uint_eq(nodes[second].applied, 11);
    nodes[first].cut = false;
    run_until(now_ms + 1000);
    ck_assert_int_eq(leader_of(), second); /* who comes back does not disturb (P7) */
    for (int i = 0; i < 3; i++) {
        ck_assert_uint_eq(nodes[i].applied, 11);
        for (uint32_t s = 1; s <= 11; s++) ck_assert_uint_eq(nodes[i].applied_bytes[s], nodes[second].applied_bytes[s]);
    }
    ck_assert_uint_eq(nodes[0].applied_bytes[9], 10);
    cluster_end();
}
END_TEST

START_TEST(a_node_far_behind_catches_up) {
    cluster(5);
    run_until(now_ms + 500);
    const int leader = leader_of();
    const int late = (leader + 1) % 5;
    nodes[late].cut = true;
    for (uint64_t i = 1; i <= 200; i++) {
        ck_assert_int_eq(give(leader, i), PAXOS_TAKEN);
        drain((uint16_t)leader);
        deliver_all();
    }
    ck_assert_uint_eq(nodes[late].applied, 0);
    nodes[late].cut = false;
    run_until(now_ms + 200);
    ck_assert_uint_eq(nodes[late].applied, 200);
    cluster_end();
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("paxos");
    TCase *tc = tcase_create("cluster");
    tcase_set_timeout(tc, 30);
    tcase_add_test(tc, one_node_leads_at_once_and_applies_what_is_on_disk);
    tcase_add_test(tc, three_nodes_elect_agree_and_go_on_without_the_leader);
    tcase_add_test(tc, a_node_far_behind_catches_up);
    suite_add_tcase(s, tc);
    return s;
}

int main(void) {
    SRunner *sr = srunner_create(suite());
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
