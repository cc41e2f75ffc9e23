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

static struct membership founders(uint16_t count) {
    static const uint64_t ids[PAXOS_NODES_MAX] = {101, 102, 103, 104, 105, 106, 107, 108, 109};
    struct membership m;
    membership_founding(&m, count, ids);
    return m;
}
static struct paxos_config config_of(uint16_t node, uint16_t count) {
    return (struct paxos_config){.alloc = heap_alloc(),
                                 .node = node,
                                 .members = founders(count),
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

/* ------------------------------------------------------------------ one node, fed by hand */

static struct paxos *p;
static struct paxos_output out;
static struct paxos_saved saved;

static void make(uint16_t node) {
    const struct paxos_config config = config_of(node, 3);
    paxos_free(p);
    p = paxos_new(&config, &saved);
}
static void setup(void) { /* node 2 of three */
    now_ms = 1000;
    saved = (struct paxos_saved){0};
    p = NULL;
    make(2);
}
static void teardown(void) {
    paxos_free(p);
    p = NULL;
}
static enum paxos_verdict say(struct paxos_msg m) {
    m.to = 2;
    return paxos_step(p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_MESSAGE, .message = &m});
}
static enum paxos_verdict tick(void) {
    return paxos_step(p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_TICK});
}
static void durable(uint64_t batch) {
    ck_assert_int_eq(paxos_step(p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_DURABLE, .batch = batch}),
                     PAXOS_TAKEN);
}
static struct ballot ballot(uint64_t round, uint16_t node) {
    return (struct ballot){.round = round, .node = node};
}
static enum paxos_verdict prepare(uint64_t round, uint16_t from) {
    return say((struct paxos_msg){.kind = PAXOS_MSG_PREPARE, .from = from, .ballot = ballot(round, from)});
}
static enum paxos_verdict heartbeat(uint64_t round, uint16_t from, paxos_slot chosen, uint32_t lease_ms) {
    return say((struct paxos_msg){.kind = PAXOS_MSG_HEARTBEAT,
                                  .from = from,
                                  .ballot = ballot(round, from),
                                  .chosen = chosen,
                                  .round = 7,
                                  .lease_ms = lease_ms});
}
static enum paxos_verdict accept_one(uint64_t round, uint16_t from, paxos_slot slot, const char *value,
                                     paxos_slot chosen) {
    const struct paxos_entry e = {.slot = slot, .ballot = ballot(round, from), .value = slice_str(value)};
    return say((struct paxos_msg){.kind = PAXOS_MSG_ACCEPT,
                                  .from = from,
                                  .ballot = ballot(round, from),
                                  .chosen = chosen,
                                  .round = 3,
                                  .lease_ms = 300,
                                  .entries = &e,
                                  .entry_count = 1});
}
/* The only message of a list. */
static const struct paxos_msg *only(const struct paxos_msg *list, uint32_t count, enum paxos_msg_kind kind) {
    ck_assert_uint_eq(count, 1);
    ck_assert_int_eq((int)list->kind, (int)kind);
    return list;
}
static const struct paxos_msg *only_after(enum paxos_msg_kind kind) {
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.send_now_count, 0);
    return only(out.sends_after, out.send_after_count, kind);
}
static const struct paxos_msg *only_now(enum paxos_msg_kind kind) {
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.send_after_count, 0);
    return only(out.sends_now, out.send_now_count, kind);
}
static bool nothing(void) {
    return !paxos_take(p, &out);
}

static const struct {
    uint64_t round;
    uint16_t from;
    enum paxos_msg_kind want;
    bool saves;
} second_prepare[] = {
    {4, 0, PAXOS_MSG_REFUSE, false},  /* lower round */
    {5, 0, PAXOS_MSG_REFUSE, false},  /* same round, lower node */
    {5, 1, PAXOS_MSG_PROMISE, false}, /* repeat: same answer, nothing new to save */
    {6, 0, PAXOS_MSG_PROMISE, true},  /* higher round beats higher node */
};
START_TEST(second_prepare_is_judged_by_ballot) {
    ck_assert_int_eq(prepare(5, 1), PAXOS_TAKEN);
    const struct paxos_msg *m = only_after(PAXOS_MSG_PROMISE);
    ck_assert(out.save_promise); /* P3: the save is in the batch of the answer it covers */
    ck_assert_uint_eq(out.batch, 1);
    ck_assert(ballot_equal(out.promised, ballot(5, 1)));
    ck_assert_uint_eq(m->slot, 1);
    ck_assert_uint_eq(m->slot_last, UINT64_MAX);
    ck_assert_int_eq(prepare(second_prepare[_i].round, second_prepare[_i].from), PAXOS_TAKEN);
    only_after(second_prepare[_i].want); /* batch 1 is not durable: even a refusal reports it and waits */
    ck_assert_int_eq(out.save_promise, second_prepare[_i].saves);
    ck_assert_uint_eq(out.batch, second_prepare[_i].saves ? 2 : 0);
}
END_TEST

START_TEST(accept_raises_the_promise) { /* Q4 */
    accept_one(5, 1, 1, "a", 0);
    only_after(PAXOS_MSG_ACCEPTED);
    ck_assert(out.save_promise && ballot_equal(out.promised, ballot(5, 1)));
    ck_assert_uint_eq(out.save_count, 1);
    ck_assert_uint_eq(out.save_lease_ms, 300);
    durable(out.batch);
    now_ms += 1000; /* no lease binds */
    prepare(4, 0);
    only_now(PAXOS_MSG_REFUSE);
    accept_one(4, 0, 2, "b", 0);
    ck_assert(ballot_equal(only_now(PAXOS_MSG_REFUSE)->promised, ballot(5, 1)));
    ck_assert_uint_eq(out.save_count, 0);
}
END_TEST

START_TEST(accepts_of_one_turn_are_answered_once) {
    accept_one(5, 1, 1, "a", 0);
    accept_one(5, 1, 2, "b", 0);
    accept_one(5, 1, 3, "c", 0);
    const struct paxos_msg *m = only_after(PAXOS_MSG_ACCEPTED);
    ck_assert_uint_eq(m->slot, 1);
    ck_assert_uint_eq(m->slot_last, 3);
    ck_assert_uint_eq(out.save_count, 3);
    /* a gap makes two answers */
    accept_one(5, 1, 4, "d", 0);
    accept_one(5, 1, 6, "f", 0);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.send_after_count, 2);
}
END_TEST

START_TEST(a_repeated_accept_saves_nothing_and_still_waits_for_its_batch) {
    accept_one(5, 1, 1, "a", 0);
    only_after(PAXOS_MSG_ACCEPTED);
    const uint64_t batch = out.batch;
    accept_one(5, 1, 1, "a", 0);
    only_after(PAXOS_MSG_ACCEPTED);
    ck_assert_uint_eq(out.batch, 0);
    durable(batch);
    accept_one(5, 1, 1, "a", 0);
    only_after(PAXOS_MSG_ACCEPTED);
    ck_assert_uint_eq(out.batch, 0);
}
END_TEST

START_TEST(the_later_of_two_acceptances_of_one_turn_is_saved) {
    accept_one(5, 1, 1, "a", 0);
    accept_one(6, 0, 1, "b", 0);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.save_count, 1);
    ck_assert(ballot_equal(out.saves[0].ballot, ballot(6, 0)));
    ck_assert(slice_equal(out.saves[0].value, slice_str("b")));
    ck_assert(ballot_equal(out.promised, ballot(6, 0)));
}
END_TEST

START_TEST(two_values_for_one_slot_and_ballot_halt) {
    accept_one(5, 1, 1, "a", 0);
    only_after(PAXOS_MSG_ACCEPTED);
    accept_one(5, 1, 2, "c", 0);
    accept_one(5, 1, 1, "b", 0);
    ck_assert_int_eq(paxos_role(p), PAXOS_HALTED);
    ck_assert_ptr_nonnull(paxos_halt_reason(p));
    ck_assert(nothing()); /* not even what was said before it */
    ck_assert_uint_eq(out.wake_at_ms, UINT64_MAX);
    ck_assert_int_eq(prepare(9, 0), PAXOS_IGNORED);
    ck_assert_int_eq(tick(), PAXOS_TAKEN);
    ck_assert(nothing());
}
END_TEST

START_TEST(a_slot_beyond_the_window_is_not_taken) {
    accept_one(5, 1, 17, "x", 0); /* 2 x 8 above chosen 0 is the last */
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.save_count, 0);
    ck_assert_uint_eq(out.send_after_count, 1); /* it hears the leader all the same */
    ck_assert_int_eq((int)out.sends_after[0].kind, (int)PAXOS_MSG_HEARTBEAT_ACK);
    accept_one(5, 1, 16, "x", 0);
    only_after(PAXOS_MSG_ACCEPTED);
}
END_TEST

START_TEST(chosen_counts_only_for_what_that_leader_proposed) {
    accept_one(5, 1, 1, "old", 0);
    only_after(PAXOS_MSG_ACCEPTED);
    durable(out.batch);
    heartbeat(6, 0, 1, 300); /* chosen, says another leader: our value may not be the one */
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.apply_count, 0);
    ck_assert_uint_eq(out.send_now_count, 1);
    ck_assert_int_eq((int)out.sends_now[0].kind, (int)PAXOS_MSG_CATCHUP);
    ck_assert_uint_eq(out.sends_now[0].to, 0);
    ck_assert_uint_eq(out.sends_now[0].slot, 1);
    heartbeat(6, 0, 1, 300);
    ck_assert(paxos_take(p, &out));
    for (uint32_t i = 0; i < out.send_now_count; i++) /* one question at a time */
        ck_assert_int_ne((int)out.sends_now[i].kind, (int)PAXOS_MSG_CATCHUP);
    const struct paxos_entry e = {.slot = 1, .ballot = ballot(6, 0), .value = slice_str("new")};
    say((struct paxos_msg){.kind = PAXOS_MSG_CHOSEN, .from = 0, .entries = &e, .entry_count = 1});
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.apply_count, 1);
    ck_assert(slice_equal(out.applies[0].value, slice_str("new")));
    ck_assert_uint_eq(out.save_count, 1); /* replaces ours */
    ck_assert(slice_equal(out.saves[0].value, slice_str("new")));
    ck_assert_uint_eq(out.save_chosen, 1);
    ck_assert_uint_eq(paxos_chosen(p), 1);
}
END_TEST

START_TEST(chosen_rides_on_writes_and_causes_none) {
    accept_one(5, 1, 1, "a", 0);
    only_after(PAXOS_MSG_ACCEPTED);
    durable(out.batch);
    heartbeat(5, 1, 1, 300);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.apply_count, 1);
    ck_assert_uint_eq(out.batch, 0);
    ck_assert_uint_eq(out.save_chosen, 0);
    accept_one(5, 1, 2, "b", 1);
    only_after(PAXOS_MSG_ACCEPTED);
    ck_assert_uint_eq(out.save_chosen, 1);
}
END_TEST

START_TEST(slots_are_applied_in_order_without_gaps) { /* P4 */
    accept_one(5, 1, 2, "b", 0);
    only_after(PAXOS_MSG_ACCEPTED);
    heartbeat(5, 1, 2, 300);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.apply_count, 0);
    accept_one(5, 1, 1, "a", 2);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.apply_count, 2);
    ck_assert_uint_eq(out.applies[0].slot, 1);
    ck_assert_uint_eq(out.applies[1].slot, 2);
    accept_one(5, 1, 1, "a", 2); /* again, known chosen: answered, not stored, not applied */
    only_after(PAXOS_MSG_ACCEPTED);
    ck_assert_uint_eq(out.apply_count, 0);
    ck_assert_uint_eq(out.save_count, 0);
}
END_TEST

START_TEST(a_lease_binds_against_other_nodes_until_it_ends) { /* P8 */
    heartbeat(5, 1, 0, 300);
    only_after(PAXOS_MSG_HEARTBEAT_ACK); /* a new promise and a longer lease: first to the disk */
    ck_assert_uint_eq(out.save_lease_ms, 300);
    durable(out.batch);
    now_ms += 10;
    heartbeat(5, 1, 0, 300);
    ck_assert_uint_eq(only_now(PAXOS_MSG_HEARTBEAT_ACK)->round, 7);
    now_ms += 299;
    prepare(6, 0);
    only_now(PAXOS_MSG_REFUSE);
    heartbeat(7, 0, 0, 300); /* a leader has a majority of promises: it is heard */
    only_after(PAXOS_MSG_HEARTBEAT_ACK);
    durable(out.batch);
    now_ms += 299;
    prepare(8, 1);
    only_now(PAXOS_MSG_REFUSE);
    prepare(8, 0); /* the leader itself has given up ballot 7 */
    only_after(PAXOS_MSG_PROMISE);
    now_ms += 1;
    prepare(9, 1);
    only_after(PAXOS_MSG_PROMISE);
}
END_TEST

START_TEST(a_restarted_acceptor_waits_the_longest_lease_it_ever_granted) {
    saved = (struct paxos_saved){.promised = ballot(5, 1), .lease_ms_max = 400, .restarted = true};
    make(2);
    now_ms += 400;
    prepare(6, 0);
    only_now(PAXOS_MSG_REFUSE);
    say((struct paxos_msg){.kind = PAXOS_MSG_PREVOTE, .from = 0, .ballot = ballot(6, 0), .round = 4});
    ck_assert(!only_now(PAXOS_MSG_PREVOTE_REPLY)->granted);
    now_ms += 1;
    say((struct paxos_msg){.kind = PAXOS_MSG_PREVOTE, .from = 0, .ballot = ballot(6, 0), .round = 4});
    ck_assert(only_now(PAXOS_MSG_PREVOTE_REPLY)->granted);
    prepare(6, 0);
    only_after(PAXOS_MSG_PROMISE);
}
END_TEST

START_TEST(a_promise_reports_everything_accepted_above_chosen) { /* Q6, over a restart */
    const struct paxos_entry stored[] = {
        {.slot = 3, .ballot = ballot(4, 0), .value = slice_str("old")}, /* at or below chosen: not reported */
        {.slot = 5, .ballot = ballot(5, 1), .value = slice_str("e")},
        {.slot = 7, .ballot = ballot(6, 0), .value = slice_str("a value of 20 bytes.")},
        {.slot = 40, .ballot = ballot(9, 1), .value = slice_str("h")}, /* from before inflight_max was lowered */
    };
    saved = (struct paxos_saved){
        .promised = ballot(6, 0), .chosen = 4, .accepted = stored, .accepted_count = 4, .restarted = true};
    make(2);
    prepare(8, 0);
    only_now(PAXOS_MSG_REFUSE); /* an acceptance at ballot 9 is a promise of it */
    prepare(10, 0);
    ck_assert(paxos_take(p, &out));
    paxos_slot next = 5;
    uint32_t found = 0;
    for (uint32_t i = 0; i < out.send_after_count; i++) { /* parts without gaps */
        const struct paxos_msg *m = &out.sends_after[i];
        ck_assert_int_eq((int)m->kind, (int)PAXOS_MSG_PROMISE);
        ck_assert_uint_eq(m->chosen, 4);
        ck_assert_uint_eq(m->slot, next);
        next = m->slot_last + 1;
        for (uint32_t j = 0; j < m->entry_count; j++, found++) {
            ck_assert_uint_eq(m->entries[j].slot, stored[found + 1].slot);
            ck_assert(ballot_equal(m->entries[j].ballot, stored[found + 1].ballot));
            ck_assert(slice_equal(m->entries[j].value, stored[found + 1].value));
        }
    }
    ck_assert_uint_eq(found, 3);
    ck_assert_uint_eq(next, 0); /* up to UINT64_MAX */
}
END_TEST

static const struct {
    struct paxos_entry entries[2];
    uint32_t count;
} broken_stores[] = {
    {{{.slot = 9, .ballot = {1, 0}}, {.slot = 8, .ballot = {1, 0}}}, 2},
    {{{.slot = 9, .ballot = {1, 0}}, {.slot = 9, .ballot = {1, 0}}}, 2},
    {{{.slot = UINT64_MAX, .ballot = {1, 0}}}, 1},
    {{{.slot = 1 << 20, .ballot = {1, 0}}}, 1},
};
START_TEST(a_store_that_makes_no_sense_halts) {
    saved = (struct paxos_saved){.accepted = broken_stores[_i].entries, .accepted_count = broken_stores[_i].count};
    make(2);
    ck_assert_int_eq(paxos_role(p), PAXOS_HALTED);
    ck_assert_ptr_nonnull(paxos_halt_reason(p));
    ck_assert(nothing());
}
END_TEST

/* Node 2 asks for votes and is promised by node 1. */
static struct ballot own;
static void grant_prevote(uint16_t from, uint64_t round) {
    say((struct paxos_msg){
        .kind = PAXOS_MSG_PREVOTE_REPLY, .from = from, .ballot = own, .granted = true, .round = round});
}
static void to_preparing(void) {
    ck_assert(nothing());
    now_ms = out.wake_at_ms;
    tick();
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.send_now_count, 2);
    ck_assert_int_eq((int)out.sends_now[0].kind, (int)PAXOS_MSG_PREVOTE);
    ck_assert_uint_eq(out.batch, 0); /* P7: asking changes nothing */
    own = out.sends_now[0].ballot;
    const uint64_t round = out.sends_now[0].round;
    grant_prevote(0, round - 1); /* of an earlier question */
    ck_assert_int_eq(paxos_role(p), PAXOS_PREVOTING);
    grant_prevote(0, round);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
}
static enum paxos_verdict promise_from(uint16_t from, paxos_slot chosen, const struct paxos_entry *entries,
                                       uint32_t count) {
    return say((struct paxos_msg){.kind = PAXOS_MSG_PROMISE,
                                  .from = from,
                                  .ballot = own,
                                  .chosen = chosen,
                                  .slot = chosen + 1,
                                  .slot_last = UINT64_MAX,
                                  .entries = entries,
                                  .entry_count = count});
}
static enum paxos_verdict accepted_from(uint16_t from, paxos_slot slot, paxos_slot slot_last, uint64_t round) {
    return say((struct paxos_msg){
        .kind = PAXOS_MSG_ACCEPTED, .from = from, .ballot = own, .slot = slot, .slot_last = slot_last, .round = round});
}
static void to_leading(void) {
    to_preparing();
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    promise_from(1, 0, NULL, 0);
    ck_assert_int_eq(paxos_role(p), PAXOS_LEADING);
}

START_TEST(a_prepare_waits_for_our_own_promise) { /* P3, Q2 */
    to_preparing();
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.send_now_count, 0);
    ck_assert_uint_eq(out.send_after_count, 2);
    ck_assert(out.save_promise && ballot_equal(out.promised, own));
    ck_assert_uint_eq(out.save_lease_ms, 300); /* we shall grant ourselves */
    promise_from(1, 0, NULL, 0);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING); /* two promises, ours not durable */
    durable(out.batch);
    ck_assert_int_eq(paxos_role(p), PAXOS_LEADING);
}
END_TEST

START_TEST(only_distinct_acceptors_of_this_ballot_count) { /* Q3 */
    to_preparing();
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    const struct ballot mine = own;
    own = ballot(mine.round - 1, 2);
    if (own.round > 0) ck_assert_int_eq(promise_from(1, 0, NULL, 0), PAXOS_IGNORED);
    own = ballot(mine.round + 1, 2);
    ck_assert_int_eq(promise_from(1, 0, NULL, 0), PAXOS_IGNORED);
    own = mine;
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
    /* a promise whose first part was lost is not whole */
    ck_assert_int_eq(
        say((struct paxos_msg){
            .kind = PAXOS_MSG_PROMISE, .from = 1, .ballot = own, .chosen = 0, .slot = 5, .slot_last = UINT64_MAX}),
        PAXOS_IGNORED);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
}
END_TEST

START_TEST(the_highest_ballot_is_proposed_again_and_gaps_are_filled) { /* Q6 */
    const struct paxos_entry stored[] = {{.slot = 2, .ballot = ballot(3, 2), .value = slice_str("mine2")},
                                         {.slot = 3, .ballot = ballot(3, 2), .value = slice_str("mine3")}};
    saved = (struct paxos_saved){.promised = ballot(4, 2), .accepted = stored, .accepted_count = 2};
    make(2);
    to_preparing();
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    const struct paxos_entry theirs[] = {{.slot = 2, .ballot = ballot(2, 1), .value = slice_str("theirs2")},
                                         {.slot = 3, .ballot = ballot(4, 1), .value = slice_str("theirs3")},
                                         {.slot = 5, .ballot = ballot(2, 1), .value = slice_str("theirs5")}};
    promise_from(1, 0, theirs, 3);
    ck_assert_int_eq(paxos_role(p), PAXOS_SETTLING);
    ck_assert_uint_eq(paxos_room(p), 0);
    ck_assert(paxos_take(p, &out));
    static const char *const want[] = {"", "mine2", "theirs3", "", "theirs5"};
    ck_assert_uint_eq(out.save_count, 5);
    for (uint32_t i = 0; i < 5; i++) {
        ck_assert_uint_eq(out.saves[i].slot, i + 1);
        ck_assert(ballot_equal(out.saves[i].ballot, own));
        ck_assert(slice_equal(out.saves[i].value, slice_str(want[i])));
    }
    const uint64_t batch = out.batch;
    accepted_from(1, 1, 5, 0);
    ck_assert_int_eq(paxos_role(p), PAXOS_SETTLING); /* ours is not durable yet */
    durable(batch);
    ck_assert_int_eq(paxos_role(p), PAXOS_SETTLING); /* a configuration may be among them */
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.apply_count, 5);
    (void)!paxos_take(p, &out);
    ck_assert_int_eq(paxos_role(p), PAXOS_LEADING);
}
END_TEST

START_TEST(a_candidate_behind_learns_before_it_proposes) {
    to_preparing();
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    const struct paxos_entry theirs = {.slot = 4, .ballot = ballot(1, 1), .value = slice_str("d")};
    own = paxos_ballot(p);
    promise_from(1, 3, own.round > 1 ? &theirs : NULL, own.round > 1);
    ck_assert_int_eq(paxos_role(p), PAXOS_SETTLING);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.save_count, 0);
    bool asked = false;
    for (uint32_t i = 0; i < out.send_now_count; i++)
        asked |= out.sends_now[i].kind == PAXOS_MSG_CATCHUP && out.sends_now[i].to == 1 && out.sends_now[i].slot == 1;
    ck_assert(asked);
    struct paxos_entry e[3];
    for (uint32_t i = 0; i < 3; i++)
        e[i] = (struct paxos_entry){.slot = i + 1, .ballot = ballot(1, 1), .value = slice_str("x")};
    /* hostile or torn answers change nothing */
    ck_assert_int_eq(say((struct paxos_msg){.kind = PAXOS_MSG_CHOSEN, .from = 1, .entries = e + 1, .entry_count = 2}),
                     PAXOS_IGNORED);
    ck_assert_int_eq(say((struct paxos_msg){.kind = PAXOS_MSG_CHOSEN, .from = 1, .entries = e, .entry_count = 3}),
                     PAXOS_TAKEN);
    ck_assert_uint_eq(paxos_chosen(p), 3);
    ck_assert_int_eq(paxos_role(p), PAXOS_SETTLING);
    while (paxos_take(p, &out)) {
    }
    ck_assert_int_eq(paxos_role(p), own.round > 1 ? PAXOS_SETTLING : PAXOS_LEADING);
}
END_TEST

START_TEST(a_leader_counts_its_own_acceptance_only_when_durable) { /* P3 */
    to_leading();
    ck_assert(paxos_take(p, &out));
    const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = slice_str("v")};
    ck_assert_int_eq(paxos_step(p, &in), PAXOS_TAKEN);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.send_now_count, 2); /* sent while it is written */
    ck_assert_int_eq((int)out.sends_now[0].kind, (int)PAXOS_MSG_ACCEPT);
    const uint64_t batch = out.batch;
    accepted_from(1, 1, 1, 0);
    accepted_from(1, 1, UINT64_MAX, 0); /* the same acceptor again, and a range beyond everything */
    ck_assert_uint_eq(paxos_chosen(p), 0);
    durable(batch);
    ck_assert_uint_eq(paxos_chosen(p), 1);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.apply_count, 1);
    ck_assert_uint_eq(out.send_now_count, 2); /* the followers hear at once */
    ck_assert_uint_eq(out.sends_now[0].chosen, 1);
    ck_assert_uint_eq(out.sends_now[0].round, 0);
}
END_TEST

START_TEST(two_followers_choose_without_the_leaders_disk) {
    to_leading();
    ck_assert(paxos_take(p, &out));
    const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = slice_str("v")};
    ck_assert_int_eq(paxos_step(p, &in), PAXOS_TAKEN);
    ck_assert(paxos_take(p, &out));
    accepted_from(1, 1, 1, 0);
    accepted_from(0, 1, 1, 0);
    ck_assert_uint_eq(paxos_chosen(p), 1);
    ck_assert(paxos_take(p, &out));
    /* but the store does not hold it yet: nobody is sent there */
    say((struct paxos_msg){.kind = PAXOS_MSG_CATCHUP, .from = 0, .slot = 1});
    ck_assert(nothing());
    durable(2);
    say((struct paxos_msg){.kind = PAXOS_MSG_CATCHUP, .from = 0, .slot = 1});
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.fetch_count, 1);
    ck_assert_uint_eq(out.fetches[0].to_slot, 1);
}
END_TEST

START_TEST(the_lease_counts_from_the_send_and_from_the_right_round) { /* Q13, B56 */
    to_leading();
    ck_assert(paxos_take(p, &out));
    const uint64_t first = out.sends_now[0].round, first_ms = now_ms;
    ck_assert(!paxos_lease_good(p, now_ms));
    now_ms += 40;
    const uint64_t second = paxos_confirm(p, now_ms);
    ck_assert_uint_eq(second, first + 1);
    ck_assert_uint_eq(paxos_confirm(p, now_ms), second); /* not sent yet: the same question */
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.send_now_count, 2);
    const uint64_t third = paxos_confirm(p, now_ms);
    ck_assert_uint_eq(third, second + 1);
    struct paxos_msg ack = {.kind = PAXOS_MSG_HEARTBEAT_ACK, .from = 1, .ballot = own, .round = first};
    say(ack);
    ck_assert_uint_eq(paxos_confirmed(p), first); /* a late answer proves nothing newer */
    ck_assert(paxos_lease_good(p, now_ms));
    ck_assert(paxos_lease_good(p, first_ms + 297)); /* 300 less 500 ppm, rounded up, less 1 */
    ck_assert(!paxos_lease_good(p, first_ms + 298));
    ack.round = third + 1; /* never asked */
    ck_assert_int_eq(say(ack), PAXOS_IGNORED);
    ack.round = third;
    say(ack);
    ck_assert_uint_eq(paxos_confirmed(p), third);
    ck_assert(paxos_lease_good(p, first_ms + 40 + 297));
    ck_assert(!paxos_lease_good(p, first_ms + 40 + 298));
}
END_TEST

START_TEST(many_rounds_keep_the_lease_conservative) {
    to_leading();
    const uint64_t start = now_ms;
    uint64_t round = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        (void)!paxos_take(p, &out);
        now_ms = start + i / 20; /* 20 questions a millisecond */
        round = paxos_confirm(p, now_ms);
    }
    say((struct paxos_msg){.kind = PAXOS_MSG_HEARTBEAT_ACK, .from = 1, .ballot = own, .round = round - 100});
    ck_assert_uint_eq(paxos_confirmed(p), round - 100);
    const uint64_t sent = start + (999 - 100) / 20;
    ck_assert(!paxos_lease_good(p, sent + 298));
    ck_assert(paxos_lease_good(p, sent + 200)); /* thinned, not lost */
}
END_TEST

START_TEST(a_leader_binds_itself) {
    to_leading();
    (void)!paxos_take(p, &out);
    prepare(own.round + 1, 1);
    ck_assert_int_eq(paxos_role(p), PAXOS_LEADING);
    only_now(PAXOS_MSG_REFUSE);
}
END_TEST

START_TEST(a_leader_without_a_majority_steps_down) { /* P7, Q15 */
    to_leading();
    const uint64_t start = now_ms;
    while (paxos_role(p) == PAXOS_LEADING) {
        (void)!paxos_take(p, &out);
        ck_assert_uint_gt(out.wake_at_ms, now_ms);
        now_ms = out.wake_at_ms;
        tick();
    }
    ck_assert_uint_eq(now_ms - start, 400);
}
END_TEST

START_TEST(a_leader_refused_by_a_higher_promise_asks_for_a_higher_ballot) {
    to_leading();
    (void)!paxos_take(p, &out);
    say((struct paxos_msg){.kind = PAXOS_MSG_REFUSE, .from = 1, .ballot = own, .promised = ballot(own.round + 5, 1)});
    ck_assert_int_eq(paxos_role(p), PAXOS_FOLLOWER);
    ck_assert(nothing());
    ck_assert_uint_le(out.wake_at_ms, now_ms);
    tick();
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.sends_now[0].ballot.round, own.round + 6);
}
END_TEST

START_TEST(lost_accepts_are_said_again_but_not_often) {
    to_leading();
    (void)!paxos_take(p, &out);
    const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = slice_str("v")};
    ck_assert_int_eq(paxos_step(p, &in), PAXOS_TAKEN);
    uint32_t again = 0;
    for (uint32_t i = 0; i < 2000; i++) { /* two seconds of heartbeats that are acknowledged each millisecond */
        bool more = paxos_take(p, &out);
        for (uint32_t j = 0; more && j < out.send_now_count; j++)
            again += i > 0 && out.sends_now[j].kind == PAXOS_MSG_ACCEPT && out.sends_now[j].to == 1;
        now_ms++;
        tick();
        (void)!paxos_take(p, &out);
        say((struct paxos_msg){
            .kind = PAXOS_MSG_HEARTBEAT_ACK, .from = 1, .ballot = own, .round = paxos_confirmed(p) + 1});
    }
    ck_assert_int_eq(paxos_role(p), PAXOS_LEADING);
    ck_assert_uint_ge(again, 2);
    ck_assert_uint_le(again, 8);
}
END_TEST

START_TEST(a_pre_vote_needs_a_silent_leader) { /* P7 */
    heartbeat(5, 1, 0, 100);                   /* a short lease: what counts for a vote is hearing the leader */
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    const struct paxos_msg ask = {.kind = PAXOS_MSG_PREVOTE, .from = 0, .ballot = ballot(6, 0), .round = 9};
    now_ms += 299;
    say(ask);
    const struct paxos_msg *m = only_now(PAXOS_MSG_PREVOTE_REPLY);
    ck_assert(!m->granted);
    ck_assert_uint_eq(m->round, 9);
    now_ms += 1;
    say(ask);
    ck_assert(only_now(PAXOS_MSG_PREVOTE_REPLY)->granted);
    ck_assert_uint_eq(out.batch, 0);
    /* too low: the answer tells by how much */
    say((struct paxos_msg){.kind = PAXOS_MSG_PREVOTE, .from = 0, .ballot = ballot(5, 0), .round = 9});
    m = only_now(PAXOS_MSG_PREVOTE_REPLY);
    ck_assert(!m->granted && ballot_equal(m->promised, ballot(5, 1)));
}
END_TEST

START_TEST(a_ballot_is_above_everything_heard_of) {
    saved = (struct paxos_saved){.promised = ballot(41, 1), .restarted = true};
    make(2);
    to_preparing();
    ck_assert_uint_eq(own.round, 42);
    ck_assert_uint_eq(own.node, 2);
}
END_TEST

START_TEST(no_ballot_left_halts) {
    saved = (struct paxos_saved){.promised = ballot(UINT64_C(1) << 62, 1), .restarted = true};
    make(2);
    ck_assert(nothing());
    now_ms = out.wake_at_ms;
    tick();
    ck_assert_int_eq(paxos_role(p), PAXOS_HALTED);
}
END_TEST

/* Whatever comes in: ignored, and nothing leaves. */
static const struct paxos_entry e_low = {.slot = 0, .ballot = {5, 1}};
static const struct paxos_entry e_high = {.slot = UINT64_MAX, .ballot = {5, 1}};
static const struct paxos_entry e_other = {.slot = 1, .ballot = {4, 1}};
static const struct paxos_entry e_node = {.slot = 1, .ballot = {5, 77}};
static const struct paxos_entry e_null = {.slot = 1, .ballot = {5, 1}, .value = {.data = NULL, .bytes = 9}};
static const struct paxos_entry e_order[2] = {{.slot = 2, .ballot = {5, 1}}, {.slot = 1, .ballot = {5, 1}}};
static const struct paxos_msg nonsense[] = {
    {.kind = 0, .from = 1, .ballot = {5, 1}},
    {.kind = PAXOS_MSG_KIND_END, .from = 1, .ballot = {5, 1}},
    {.kind = (enum paxos_msg_kind)1000, .from = 1, .ballot = {5, 1}},
    {.kind = PAXOS_MSG_PREPARE, .from = 9, .ballot = {5, 9}},
    {.kind = PAXOS_MSG_PREPARE, .from = 1, .ballot = {5, 17}}, /* of a store that sat there before */
    {.kind = PAXOS_MSG_PREPARE, .from = 1, .generation = 4096, .ballot = {5, 1}},
    {.kind = PAXOS_MSG_PREPARE, .from = 2, .ballot = {5, 2}},
    {.kind = PAXOS_MSG_PREPARE, .from = 1, .ballot = {5, 0}}, /* somebody else's ballot */
    {.kind = PAXOS_MSG_PREPARE, .from = 1, .ballot = {0, 1}},
    {.kind = PAXOS_MSG_PREPARE, .from = 1, .ballot = {UINT64_MAX, 1}},
    {.kind = PAXOS_MSG_HEARTBEAT, .from = 1, .ballot = {5, 1}, .round = 1, .lease_ms = UINT32_MAX},
    {.kind = PAXOS_MSG_HEARTBEAT, .from = 1, .ballot = {5, 1}, .round = 1, .chosen = UINT64_MAX},
    {.kind = PAXOS_MSG_HEARTBEAT, .from = 1, .ballot = {5, 1}, .promised = {UINT64_MAX, 1}},
    {.kind = PAXOS_MSG_ACCEPT, .from = 1, .ballot = {5, 1}, .entry_count = 1},
    {.kind = PAXOS_MSG_ACCEPT, .from = 1, .ballot = {5, 1}, .entry_count = 1, .entries = &e_low},
    {.kind = PAXOS_MSG_ACCEPT, .from = 1, .ballot = {5, 1}, .entry_count = 1, .entries = &e_high},
    {.kind = PAXOS_MSG_ACCEPT, .from = 1, .ballot = {5, 1}, .entry_count = 1, .entries = &e_other},
    {.kind = PAXOS_MSG_ACCEPT, .from = 1, .ballot = {5, 1}, .entry_count = 1, .entries = &e_node},
    {.kind = PAXOS_MSG_ACCEPT, .from = 1, .ballot = {5, 1}, .entry_count = 1, .entries = &e_null},
    {.kind = PAXOS_MSG_ACCEPT, .from = 1, .ballot = {5, 1}, .entry_count = 2, .entries = e_order},
    {.kind = PAXOS_MSG_CHOSEN, .from = 1, .entry_count = 0},
    {.kind = PAXOS_MSG_PROMISE, .from = 1, .ballot = {5, 2}, .slot = 1, .slot_last = UINT64_MAX},
    {.kind = PAXOS_MSG_PROMISE, .from = 1, .ballot = {5, 1}, .slot = 1, .slot_last = UINT64_MAX},
    {.kind = PAXOS_MSG_ACCEPTED, .from = 1, .ballot = {5, 2}, .slot = 1, .slot_last = UINT64_MAX},
    {.kind = PAXOS_MSG_HEARTBEAT_ACK, .from = 1, .ballot = {5, 2}, .round = 1},
    {.kind = PAXOS_MSG_REFUSE, .from = 1, .ballot = {5, 2}, .promised = {6, 1}},
    {.kind = PAXOS_MSG_PREVOTE_REPLY, .from = 1, .ballot = {1, 2}, .granted = true},
};
START_TEST(nonsense_is_ignored) {
    ck_assert_int_eq(say(nonsense[_i]), PAXOS_IGNORED);
    ck_assert(nothing());
    ck_assert_int_eq(paxos_role(p), PAXOS_FOLLOWER);
    to_leading(); /* and in another role */
    (void)!paxos_take(p, &out);
    ck_assert_int_eq(say(nonsense[_i]), PAXOS_IGNORED);
    ck_assert(nothing());
    ck_assert_int_eq(paxos_role(p), PAXOS_LEADING);
}
END_TEST

START_TEST(a_catchup_beyond_what_is_stored_asks_for_nothing) {
    say((struct paxos_msg){.kind = PAXOS_MSG_CATCHUP, .from = 1, .slot = 0});
    say((struct paxos_msg){.kind = PAXOS_MSG_CATCHUP, .from = 1, .slot = 1});
    say((struct paxos_msg){.kind = PAXOS_MSG_CATCHUP, .from = 1, .slot = UINT64_MAX});
    ck_assert(nothing());
}
END_TEST

START_TEST(limits_are_answers) { /* P5 */
    ck_assert_int_eq(paxos_step(p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_PROPOSE}), PAXOS_NOT_LEADER);
    ck_assert_uint_eq(paxos_confirm(p, now_ms), 0);
    to_leading();
    ck_assert_int_eq(
        paxos_step(
            p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = slice_str("seventeen bytes..")}),
        PAXOS_TOO_LONG);
    for (uint32_t i = 0; i < 8; i++)
        ck_assert_int_eq(paxos_step(p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_PROPOSE}), PAXOS_TAKEN);
    ck_assert_uint_eq(paxos_room(p), 0);
    ck_assert_int_eq(paxos_step(p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_PROPOSE}), PAXOS_FULL);
    ck_assert(paxos_take(p, &out));
    /* a flood of questions without a take does not grow without end */
    for (uint32_t i = 0; i < 20000; i++)
        say((struct paxos_msg){.kind = PAXOS_MSG_PREVOTE, .from = 1, .ballot = ballot(900, 1), .round = i});
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_le(out.send_now_count + out.send_after_count, 2 * 4096);
}
END_TEST

START_TEST(who_leads_is_a_hint_with_a_time) {
    struct ballot b;
    ck_assert(!paxos_leader(p, now_ms, &b));
    heartbeat(5, 1, 0, 300);
    ck_assert(paxos_leader(p, now_ms + 299, &b));
    ck_assert(ballot_equal(b, ballot(5, 1)));
    ck_assert(!paxos_leader(p, now_ms + 300, &b));
    teardown();
    setup();
    to_leading();
    ck_assert(paxos_leader(p, now_ms, &b));
    ck_assert(ballot_equal(b, own));
}
END_TEST

/* Two truths about one slot: nothing of this node may be believed any more. */
START_TEST(chosen_and_accepted_disagree_halts) {
    const struct paxos_entry same_ballot = {.slot = 1, .ballot = ballot(5, 1), .value = slice_str("b")};
    accept_one(5, 1, 1, "a", 0);
    say((struct paxos_msg){.kind = PAXOS_MSG_CHOSEN, .from = 0, .entries = &same_ballot, .entry_count = 1});
    ck_assert_int_eq(paxos_role(p), PAXOS_HALTED);
    ck_assert_str_eq(paxos_halt_reason(p), "two values for one slot and ballot");
}
END_TEST
START_TEST(two_chosen_values_halt) {
    accept_one(5, 1, 2, "b", 0);
    heartbeat(5, 1, 2, 300); /* slot 2 is chosen, slot 1 is not here */
    ck_assert_uint_eq(paxos_chosen(p), 0);
    const struct paxos_entry e[] = {{.slot = 1, .ballot = ballot(5, 1), .value = slice_str("a")},
                                    {.slot = 2, .ballot = ballot(4, 1), .value = slice_str("c")}};
    say((struct paxos_msg){.kind = PAXOS_MSG_CHOSEN, .from = 0, .entries = e, .entry_count = 2});
    ck_assert_int_eq(paxos_role(p), PAXOS_HALTED);
    ck_assert_str_eq(paxos_halt_reason(p), "a slot has two chosen values");
}
END_TEST
START_TEST(a_chosen_slot_proposed_with_another_value_halts) {
    accept_one(5, 1, 2, "b", 0);
    heartbeat(5, 1, 2, 300);
    accept_one(6, 0, 2, "b", 0); /* the same again is what must be */
    ck_assert_int_eq(paxos_role(p), PAXOS_FOLLOWER);
    accept_one(7, 0, 2, "c", 0);
    ck_assert_int_eq(paxos_role(p), PAXOS_HALTED);
}
END_TEST
START_TEST(two_reports_that_disagree_halt) {
    saved = (struct paxos_saved){.promised = ballot(4, 0), .lease_ms_max = 0};
    make(2);
    to_preparing();
    ck_assert(paxos_take(p, &out)); /* not durable: no majority yet */
    const struct paxos_entry one = {.slot = 1, .ballot = ballot(3, 1), .value = slice_str("a")};
    const struct paxos_entry other = {.slot = 1, .ballot = ballot(3, 1), .value = slice_str("b")};
    promise_from(1, 0, &one, 1);
    promise_from(0, 0, &other, 1);
    ck_assert_int_eq(paxos_role(p), PAXOS_HALTED);
}
END_TEST

START_TEST(a_promise_in_parts_counts_when_whole) {
    saved = (struct paxos_saved){.promised = ballot(4, 0)};
    make(2);
    to_preparing();
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    const struct paxos_entry e[] = {{.slot = 1, .ballot = ballot(3, 1), .value = slice_str("a")},
                                    {.slot = 9, .ballot = ballot(3, 1), .value = slice_str("i")}};
    struct paxos_msg part = {
        .kind = PAXOS_MSG_PROMISE, .from = 1, .ballot = own, .slot = 1, .slot_last = 8, .entries = e, .entry_count = 1};
    ck_assert_int_eq(say(part), PAXOS_TAKEN);
    ck_assert_int_eq(say(part), PAXOS_TAKEN); /* again */
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
    part = (struct paxos_msg){.kind = PAXOS_MSG_PROMISE, .from = 1, .ballot = own, .slot = 10, .slot_last = UINT64_MAX};
    ck_assert_int_eq(say(part), PAXOS_IGNORED); /* slot 9 is missing */
    part = (struct paxos_msg){.kind = PAXOS_MSG_PROMISE,
                              .from = 1,
                              .ballot = own,
                              .slot = 9,
                              .slot_last = UINT64_MAX,
                              .entries = e + 1,
                              .entry_count = 1};
    ck_assert_int_eq(say(part), PAXOS_TAKEN);
    ck_assert_int_eq(paxos_role(p), PAXOS_SETTLING);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.save_count, 9);
}
END_TEST
START_TEST(nothing_outside_its_range_is_in_a_part) {
    saved = (struct paxos_saved){.promised = ballot(4, 0)};
    make(2);
    to_preparing();
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    struct paxos_entry e = {.slot = 9, .ballot = ballot(3, 1)};
    struct paxos_msg part = {.kind = PAXOS_MSG_PROMISE,
                             .from = 1,
                             .ballot = own,
                             .slot = 1,
                             .slot_last = 8,
                             .entries = &e,
                             .entry_count = 1};
    ck_assert_int_eq(say(part), PAXOS_IGNORED);
    part.slot_last = UINT64_MAX;
    e.slot = 1 << 20; /* further above its chosen than any log reaches */
    ck_assert_int_eq(say(part), PAXOS_IGNORED);
    e.slot = 9;
    e.ballot = own; /* accepted under the ballot we only ask for */
    ck_assert_int_eq(say(part), PAXOS_IGNORED);
    e.ballot = ballot(3, 1);
    part.chosen = 3; /* a part does not begin at or below what is chosen */
    ck_assert_int_eq(say(part), PAXOS_IGNORED);
    part.slot = 0;
    ck_assert_int_eq(say(part), PAXOS_IGNORED);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
}
END_TEST

START_TEST(who_cannot_learn_what_is_chosen_gives_up) {
    to_preparing();
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    promise_from(1, 3, NULL, 0); /* and is never heard again but for its heartbeats */
    const uint64_t start = now_ms;
    uint32_t asked = 0;
    while (paxos_role(p) == PAXOS_SETTLING) {
        bool more = paxos_take(p, &out);
        for (uint32_t i = 0; more && i < out.send_now_count; i++) {
            asked += out.sends_now[i].kind == PAXOS_MSG_CATCHUP;
            if (out.sends_now[i].kind == PAXOS_MSG_HEARTBEAT && out.sends_now[i].to == 1)
                say((struct paxos_msg){.kind = PAXOS_MSG_HEARTBEAT_ACK,
                                       .from = 1,
                                       .ballot = own,
                                       .chosen = 3,
                                       .round = out.sends_now[i].round});
        }
        (void)!paxos_take(p, &out);
        ck_assert_uint_gt(out.wake_at_ms, now_ms);
        now_ms = out.wake_at_ms;
        tick();
    }
    ck_assert_uint_eq(now_ms - start, 800);
    ck_assert_uint_ge(asked, 3); /* repeated, at growing intervals */
    ck_assert_uint_le(asked, 6);
}
END_TEST

START_TEST(a_leader_that_gets_nothing_chosen_lets_others_try) { /* Q16 */
    to_leading();
    (void)!paxos_take(p, &out);
    const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = slice_str("v")};
    ck_assert_int_eq(paxos_step(p, &in), PAXOS_TAKEN);
    const uint64_t start = now_ms;
    while (paxos_role(p) == PAXOS_LEADING) {
        bool more = paxos_take(p, &out);
        for (uint32_t i = 0; more && i < out.send_now_count; i++) {
            if (out.sends_now[i].kind == PAXOS_MSG_HEARTBEAT && out.sends_now[i].to == 1)
                say((struct paxos_msg){
                    .kind = PAXOS_MSG_HEARTBEAT_ACK, .from = 1, .ballot = own, .round = out.sends_now[i].round});
        }
        (void)!paxos_take(p, &out);
        now_ms = out.wake_at_ms;
        tick();
    }
    ck_assert_uint_eq(now_ms - start, 3000);
    ck_assert(nothing());
    ck_assert_uint_ge(out.wake_at_ms, now_ms + 800); /* the others come first */
}
END_TEST

START_TEST(a_question_for_chosen_values_is_repeated_with_patience) {
    uint32_t asked = 0;
    const uint64_t start = now_ms;
    while (now_ms < start + 2000) { /* the leader goes on, its answers are lost */
        heartbeat(5, 1, 9, 300);
        const bool more = paxos_take(p, &out);
        for (uint32_t i = 0; more && i < out.send_now_count; i++) asked += out.sends_now[i].kind == PAXOS_MSG_CATCHUP;
        if (more && out.batch != 0) durable(out.batch);
        now_ms += 10;
    }
    ck_assert_uint_ge(asked, 4);
    ck_assert_uint_le(asked, 8);
}
END_TEST

START_TEST(large_values_travel_one_by_one) {
    to_leading();
    (void)!paxos_take(p, &out);
    for (uint32_t i = 0; i < 4; i++) {
        const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = slice_str("sixteen bytes...")};
        ck_assert_int_eq(paxos_step(p, &in), PAXOS_TAKEN);
    }
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.save_count, 4);
    ck_assert_uint_eq(out.send_now_count, 8);
    for (uint32_t i = 0; i < 8; i++) {
        ck_assert_uint_eq(out.sends_now[i].entry_count, 1);
        ck_assert_uint_eq(out.sends_now[i].entries[0].slot, i / 2 + 1);
    }
}
END_TEST

/* ------------------------------------------------------------------ membership, hand-over, the log's beginning */

/* A configuration as the entry of that slot makes it: the founders, voters and learners by mask. */
static struct membership made(paxos_slot slot, uint16_t voters, uint16_t learners) {
    struct membership m = {.slot = slot, .voters = voters, .learners = learners};
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if ((voters | learners) >> i & 1) m.store_ids[i] = 101u + i;
    }
    return m;
}
/* Every node of the cluster has applied the entry of that slot. */
static void tell_all(const struct membership *m) {
    for (uint16_t i = 0; i < node_count; i++) {
        paxos_members(nodes[i].p, now_ms, m);
        drain(i);
    }
    deliver_all();
}

START_TEST(a_membership_that_cannot_be_is_refused) {
    struct membership m = made(5, 7, 8);
    ck_assert(membership_makes_sense(&m));
    ck_assert_uint_eq(membership_seat_of(&m, 104), 3);
    ck_assert_uint_eq(membership_seat_of(&m, 0), PAXOS_NODES_MAX);
    struct membership other = m;
    other.generation[3] = 1;
    ck_assert(!membership_equal(&m, &other));
    ck_assert_uint_eq(member_of(&other, 3), 1 << 4 | 3);
    ck_assert_uint_eq(ballot_seat((struct ballot){1, member_of(&other, 3)}), 3);
    other.generation[3] = MEMBER_GENERATION_MAX + 1;
    ck_assert(!membership_makes_sense(&other));
    other = m, other.learners = 9; /* votes and learns */
    ck_assert(!membership_makes_sense(&other));
    other = m, other.voters = 0;
    ck_assert(!membership_makes_sense(&other));
    other = m, other.store_ids[3] = 0; /* nobody in a seat */
    ck_assert(!membership_makes_sense(&other));
    other = m, other.store_ids[3] = 101; /* one store twice */
    ck_assert(!membership_makes_sense(&other));
    other = m, other.store_ids[5] = 9; /* a store in no seat */
    ck_assert(!membership_makes_sense(&other));
    other = m, other.slot = UINT64_MAX;
    ck_assert(!membership_makes_sense(&other));
}
END_TEST

/* Three become two: the change is brought into effect without anybody's work, and then one of them is not enough. */
START_TEST(a_change_takes_effect_by_itself) {
    cluster(3);
    run_until(now_ms + 1000);
    const int leader = leader_of();
    ck_assert_int_eq(give(leader, 1), PAXOS_TAKEN);
    drain((uint16_t)leader);
    run_until(now_ms + 200);
    const uint16_t out_seat = (uint16_t)((leader + 1) % 3);
    const struct membership m = made(nodes[leader].applied, (uint16_t)(7 & ~(1u << out_seat)), 0);
    tell_all(&m);
    ck_assert(membership_equal(paxos_members_newest(nodes[leader].p), &m));
    run_until(now_ms + 500);
    ck_assert_uint_ge(paxos_chosen(nodes[leader].p), m.slot + PAXOS_CONFIG_DELAY - 1);
    nodes[(leader + 2) % 3].cut = true; /* the removed one alone is no majority with the leader */
    run_until(now_ms + 1000);
    ck_assert_int_ne(paxos_role(nodes[leader].p), PAXOS_LEADING);
    cluster_end();
}
END_TEST

START_TEST(a_leader_that_is_removed_hands_over) {
    cluster(3);
    run_until(now_ms + 1000);
    const int leader = leader_of();
    ck_assert_int_eq(give(leader, 1), PAXOS_TAKEN);
    drain((uint16_t)leader);
    run_until(now_ms + 200);
    const struct membership m = made(nodes[leader].applied, (uint16_t)(7 & ~(1u << leader)), 0);
    tell_all(&m);
    run_until(now_ms + 300);
    const int next = leader_of();
    ck_assert_int_ne(next, leader);
    ck_assert_int_eq(paxos_role(nodes[leader].p), PAXOS_FOLLOWER);
    run_until(now_ms + 3000);
    ck_assert_int_eq(leader_of(), next); /* and it does not come back */
    cluster_end();
}
END_TEST

START_TEST(leadership_is_given_away_at_once) {
    cluster(3);
    run_until(now_ms + 1000);
    const int leader = leader_of();
    const uint16_t heir = (uint16_t)((leader + 1) % 3);
    ck_assert_int_eq(paxos_transfer(nodes[heir].p, now_ms, (uint16_t)leader), PAXOS_NOT_LEADER);
    ck_assert_int_eq(paxos_transfer(nodes[leader].p, now_ms, 5), PAXOS_IGNORED);
    ck_assert_int_eq(paxos_transfer(nodes[leader].p, now_ms, (uint16_t)leader), PAXOS_IGNORED);
    ck_assert_int_eq(give(leader, 1), PAXOS_TAKEN);
    ck_assert_int_eq(paxos_transfer(nodes[leader].p, now_ms, heir), PAXOS_TAKEN);
    ck_assert_uint_eq(paxos_room(nodes[leader].p), 0);
    ck_assert_int_eq(give(leader, 2), PAXOS_FULL);
    drain((uint16_t)leader);
    deliver_all();
    run_until(now_ms + 10);
    ck_assert_int_eq(leader_of(), heir);
    ck_assert(!paxos_lease_good(nodes[leader].p, now_ms));
    ck_assert_uint_eq(nodes[heir].applied, 1); /* it had everything */
    cluster_end();
}
END_TEST

START_TEST(an_heir_that_does_not_answer_gets_nothing) {
    cluster(3);
    run_until(now_ms + 1000);
    const int leader = leader_of();
    const uint16_t heir = (uint16_t)((leader + 1) % 3);
    nodes[heir].cut = true;
    run_until(now_ms + 400);
    ck_assert_int_eq(paxos_transfer(nodes[leader].p, now_ms, heir), PAXOS_TAKEN);
    drain((uint16_t)leader);
    ck_assert_uint_eq(paxos_room(nodes[leader].p), 0);
    run_until(now_ms + 700);
    ck_assert_int_eq(paxos_role(nodes[leader].p), PAXOS_LEADING);
    ck_assert_uint_gt(paxos_room(nodes[leader].p), 0);
    cluster_end();
}
END_TEST

/* A release frees an acceptor from the ballot it names and from no other (P13). */
static const struct {
    uint64_t round;
    enum paxos_msg_kind want;
} releases[] = {{5, PAXOS_MSG_PROMISE}, {4, PAXOS_MSG_REFUSE}, {6, PAXOS_MSG_REFUSE}};
START_TEST(a_release_frees_one_ballot) {
    ck_assert_int_eq(heartbeat(5, 0, 0, 300), PAXOS_TAKEN);
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    say((struct paxos_msg){.kind = PAXOS_MSG_RELEASE, .from = 0, .ballot = ballot(releases[_i].round, 0)});
    (void)!paxos_take(p, &out);
    prepare(9, 1);
    ck_assert(paxos_take(p, &out));
    const struct paxos_msg *m = out.send_now_count > 0 ? out.sends_now : out.sends_after;
    ck_assert_int_eq((int)m->kind, (int)releases[_i].want);
}
END_TEST

START_TEST(an_heir_asks_at_once_and_says_whose) {
    ck_assert_int_eq(heartbeat(5, 0, 0, 300), PAXOS_TAKEN);
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    ck_assert_int_eq(say((struct paxos_msg){.kind = PAXOS_MSG_TRANSFER, .from = 0, .ballot = ballot(4, 0)}),
                     PAXOS_IGNORED); /* not the ballot we follow */
    ck_assert_int_eq(say((struct paxos_msg){.kind = PAXOS_MSG_TRANSFER, .from = 0, .ballot = ballot(5, 0)}),
                     PAXOS_TAKEN);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
    ck_assert(paxos_take(p, &out));
    ck_assert(out.save_promise);
    ck_assert_uint_eq(out.send_after_count, 2);
    ck_assert_int_eq((int)out.sends_after[0].kind, (int)PAXOS_MSG_PREPARE);
    ck_assert(ballot_equal(out.sends_after[0].promised, ballot(5, 0)));
    ck_assert_int_eq(say((struct paxos_msg){.kind = PAXOS_MSG_TRANSFER, .from = 0, .ballot = ballot(5, 0)}),
                     PAXOS_IGNORED); /* once */
}
END_TEST

START_TEST(a_vote_is_a_stores_and_not_a_seats) {
    to_preparing();
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    const struct paxos_msg m = {.kind = PAXOS_MSG_PROMISE,
                                .from = 1,
                                .generation = 1, /* another store sits there now */
                                .ballot = paxos_ballot(p),
                                .slot = 1,
                                .slot_last = UINT64_MAX};
    ck_assert_int_eq(say(m), PAXOS_IGNORED);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
}
END_TEST

START_TEST(a_learner_does_not_campaign_and_its_word_does_not_count) {
    struct paxos_config config = config_of(2, 3);
    config.members = made(0, 3, 4);
    paxos_free(p);
    p = paxos_new(&config, &saved);
    now_ms += 10000;
    ck_assert_int_eq(tick(), PAXOS_TAKEN);
    ck_assert_int_eq(paxos_role(p), PAXOS_FOLLOWER);
    ck_assert(paxos_take(p, &out)); /* it only asks for what was chosen */
    ck_assert_uint_eq(out.send_now_count, 1);
    ck_assert_int_eq(out.sends_now[0].kind, PAXOS_MSG_CATCHUP);
    ck_assert_uint_eq(out.send_after_count, 0);
    config = config_of(2, 3); /* two voters: ourselves and 0; 1 learns */
    config.members = made(0, 5, 2);
    config.start_ms = now_ms;
    paxos_free(p);
    p = paxos_new(&config, &saved);
    (void)!paxos_take(p, &out);
    now_ms = out.wake_at_ms;
    tick();
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.send_now_count, 1); /* learners are not asked */
    own = out.sends_now[0].ballot;
    grant_prevote(1, out.sends_now[0].round);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREVOTING);
    grant_prevote(0, out.sends_now[0].round);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    promise_from(1, 0, NULL, 0);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
    promise_from(0, 0, NULL, 0);
    ck_assert_int_ge(paxos_role(p), PAXOS_SETTLING);
}
END_TEST

/* Named by the cluster, but not by the log it has: it follows until it knows. */
START_TEST(who_only_heard_of_its_membership_does_not_campaign) {
    struct paxos_config config = config_of(2, 3);
    config.members.slot = 50;
    paxos_free(p);
    p = paxos_new(&config, &saved);
    now_ms += 10000;
    ck_assert_int_eq(tick(), PAXOS_TAKEN);
    ck_assert_int_eq(paxos_role(p), PAXOS_FOLLOWER);
}
END_TEST

START_TEST(a_snapshot_stands_for_the_log_before_it) {
    accept_one(5, 0, 3, "three", 0);
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    const struct membership now = made(2, 7, 0), next = made(9, 7, 8);
    paxos_install(p, now_ms, 10, &now, &next);
    ck_assert_uint_eq(paxos_chosen(p), 10);
    ck_assert(membership_equal(paxos_members_newest(p), &next));
    (void)!paxos_take(p, &out);
    ck_assert_uint_eq(out.apply_count, 0);
    paxos_install(p, now_ms, 4, &now, NULL); /* old */
    ck_assert_uint_eq(paxos_chosen(p), 10);
    accept_one(5, 0, 11, "eleven", 11);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.apply_count, 1);
    ck_assert_uint_eq(out.applies[0].slot, 11);
    ck_assert_uint_eq(out.save_chosen, 11);
    durable(out.batch);
    (void)!paxos_take(p, &out);
    say((struct paxos_msg){.kind = PAXOS_MSG_CATCHUP, .from = 1, .slot = 4});
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.fetch_count, 1);
    ck_assert(out.fetches[0].snapshot);
    say((struct paxos_msg){.kind = PAXOS_MSG_CATCHUP, .from = 1, .slot = 11});
    ck_assert(paxos_take(p, &out));
    ck_assert(!out.fetches[0].snapshot);
    paxos_cut(p, 11);
    say((struct paxos_msg){.kind = PAXOS_MSG_CATCHUP, .from = 1, .slot = 11});
    ck_assert(paxos_take(p, &out));
    ck_assert(out.fetches[0].snapshot);
}
END_TEST

START_TEST(the_room_of_the_best_majority) {
    cluster(3);
    const uint64_t room[] = {500, 100, 300};
    for (uint16_t i = 0; i < 3; i++) paxos_disk_free(nodes[i].p, room[i]);
    run_until(now_ms + 1000);
    const int leader = leader_of();
    ck_assert_uint_eq(paxos_free_majority(nodes[leader].p), 300);
    ck_assert_uint_eq(paxos_free_majority(nodes[(leader + 1) % 3].p), 0);
    cluster_end();
}
END_TEST

/* A disk that hangs: who leads hands over, and does not campaign until it is well again. */
START_TEST(a_sick_disk_neither_leads_nor_campaigns) {
    struct paxos_config config = config_of(2, 3);
    config.stall_ms = 200;
    paxos_free(p);
    p = paxos_new(&config, &saved);
    to_leading();
    (void)!paxos_take(p, &out);
    const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_PROPOSE, .value = slice_str("v")};
    ck_assert_int_eq(paxos_step(p, &in), PAXOS_TAKEN);
    ck_assert(paxos_take(p, &out));
    accepted_from(1, 1, 1, 1);
    accepted_from(0, 1, 1, 1);
    (void)!paxos_take(p, &out);
    ck_assert_uint_eq(paxos_chosen(p), 1);
    now_ms += 200;
    ck_assert_int_eq(tick(), PAXOS_TAKEN);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(paxos_room(p), 0); /* it is on its way out */
}
END_TEST

/* ------------------------------------------------------------------ what is said in the wrong role, or of another time
 */

START_TEST(a_stored_position_that_is_no_slot_halts) {
    saved = (struct paxos_saved){.chosen = UINT64_MAX};
    make(2);
    ck_assert_str_eq(paxos_halt_reason(p), "the stored position is no slot");
    saved.accepted = broken_stores[0].entries; /* and more is wrong: the first reason stays */
    saved.accepted_count = 2;
    make(2);
    ck_assert_int_eq(paxos_role(p), PAXOS_HALTED);
    ck_assert_str_ne(paxos_halt_reason(p), "the stored position is no slot");
}
END_TEST

START_TEST(who_has_halted_does_nothing_any_more) {
    const struct membership now = made(2, 7, 0);
    struct ballot b;
    accept_one(5, 1, 1, "a", 0);
    only_after(PAXOS_MSG_ACCEPTED);
    const uint64_t batch = out.batch;
    accept_one(5, 1, 1, "b", 0);
    ck_assert_int_eq(paxos_role(p), PAXOS_HALTED);
    durable(batch);
    paxos_install(p, now_ms, 10, &now, NULL);
    paxos_generation(p, now_ms, 1);
    ck_assert_int_eq(paxos_role(p), PAXOS_HALTED);
    ck_assert_uint_eq(paxos_chosen(p), 0);
    ck_assert(!paxos_leader(p, now_ms, &b));
    ck_assert_int_eq(paxos_transfer(p, now_ms, PAXOS_NODES_MAX), PAXOS_NOT_LEADER);
    ck_assert(nothing());
}
END_TEST

START_TEST(a_follower_has_confirmed_nothing) {
    ck_assert_uint_eq(paxos_confirmed(p), 0);
    ck_assert(!paxos_caught_up(p, 0));
    to_leading();
    ck_assert_uint_ge(paxos_confirm(p, now_ms), 1);
    ck_assert(!paxos_caught_up(p, 2)); /* ourselves */
    ck_assert(!paxos_caught_up(p, 5)); /* no member */
    ck_assert(!paxos_caught_up(p, PAXOS_NODES_MAX));
}
END_TEST

/* Each row makes one thing wrong. */
enum broken { SLOT_0, SLOTS_TURNED, ROUND_LATER, BALLOT_OTHER, STORE_OTHER, BROKEN_END };
static struct paxos_msg broken(struct paxos_msg m, enum broken what) {
    switch (what) {
    case SLOT_0: m.slot = 0; break;
    case SLOTS_TURNED: m.slot = m.slot_last + 1; break;
    case ROUND_LATER: m.round += 1000; break;
    case BALLOT_OTHER: m.ballot.round++; break;
    case STORE_OTHER: m.generation = 1; break;
    case BROKEN_END: break;
    }
    return m;
}
START_TEST(what_a_leader_is_told_is_looked_at) {
    to_leading();
    for (int i = 0; i < 2; i++)
        ck_assert_int_eq(paxos_step(p, &(struct paxos_input){.now_ms = now_ms, .kind = PAXOS_PROPOSE}), PAXOS_TAKEN);
    ck_assert(paxos_take(p, &out));
    const struct paxos_msg accepted = {.kind = PAXOS_MSG_ACCEPTED, .from = 1, .ballot = own, .slot = 1, .slot_last = 2},
                           ack = {.kind = PAXOS_MSG_HEARTBEAT_ACK, .from = 1, .ballot = own, .round = 1},
                           refuse = {.kind = PAXOS_MSG_REFUSE, .from = 1, .ballot = own, .promised = ballot(99, 1)};
    for (enum broken what = SLOT_0; what < BROKEN_END; what++) {
        ck_assert_int_eq(say(broken(accepted, what)), PAXOS_IGNORED);
        if (what >= ROUND_LATER) ck_assert_int_eq(say(broken(ack, what)), PAXOS_IGNORED);
        if (what >= BALLOT_OTHER) ck_assert_int_eq(say(broken(refuse, what)), PAXOS_IGNORED);
    }
    const struct paxos_entry e = {.slot = 1, .ballot = own, .value = slice_str("other")};
    ck_assert_int_eq(say((struct paxos_msg){.kind = PAXOS_MSG_CHOSEN, .from = 1, .entries = &e, .entry_count = 1}),
                     PAXOS_IGNORED); /* what it proposes is at least as new */
    ck_assert_int_eq(paxos_role(p), PAXOS_LEADING);
    ck_assert_uint_eq(paxos_chosen(p), 0);
    durable(out.batch);
    ck_assert_int_eq(say(accepted), PAXOS_TAKEN);
    ck_assert_uint_eq(paxos_chosen(p), 2);
    ck_assert_int_eq(say(accepted), PAXOS_TAKEN); /* twice is once */
    ck_assert_uint_eq(paxos_chosen(p), 2);
}
END_TEST

START_TEST(what_a_candidate_is_told_is_looked_at) {
    ck_assert(nothing());
    now_ms = out.wake_at_ms;
    tick();
    ck_assert(paxos_take(p, &out));
    const struct paxos_msg granted = {.kind = PAXOS_MSG_PREVOTE_REPLY,
                                      .from = 0,
                                      .ballot = out.sends_now[0].ballot,
                                      .granted = true,
                                      .round = out.sends_now[0].round};
    for (enum broken what = ROUND_LATER; what < BROKEN_END; what++)
        ck_assert_int_eq(say(broken(granted, what)), PAXOS_IGNORED);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREVOTING);
    say(granted);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
    ck_assert(paxos_take(p, &out));
    durable(out.batch);
    const struct paxos_msg promise = {
        .kind = PAXOS_MSG_PROMISE, .from = 1, .ballot = granted.ballot, .slot = 1, .slot_last = UINT64_MAX - 1};
    for (enum broken what = SLOT_0; what < BROKEN_END; what++)
        if (what != ROUND_LATER) ck_assert_int_eq(say(broken(promise, what)), PAXOS_IGNORED);
    const struct paxos_entry early = {.slot = 4, .ballot = ballot(1, 1)};
    struct paxos_msg part = promise; /* an entry before the part's first slot */
    part.slot = 5;
    part.chosen = 4;
    part.entries = &early;
    part.entry_count = 1;
    ck_assert_int_eq(say(part), PAXOS_IGNORED);
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
    paxos_generation(p, now_ms, 0); /* that it is already */
    ck_assert_int_eq(paxos_role(p), PAXOS_PREPARING);
    paxos_generation(p, now_ms, 1); /* nobody's vote was for this store */
    ck_assert_int_eq(paxos_role(p), PAXOS_FOLLOWER);
}
END_TEST

/* Of two promises one reports what the other says is chosen: that is learned, and not proposed. */
START_TEST(what_is_chosen_elsewhere_is_not_proposed_again) {
    saved = (struct paxos_saved){.promised = ballot(4, 0)};
    make(2);
    to_preparing();
    ck_assert(paxos_take(p, &out));
    const uint64_t batch = out.batch;
    const struct paxos_entry e[] = {{.slot = 2, .ballot = ballot(3, 1), .value = slice_str("b")},
                                    {.slot = 7, .ballot = ballot(3, 1), .value = slice_str("g")}};
    ck_assert_int_eq(promise_from(1, 0, e, 2), PAXOS_TAKEN);
    ck_assert_int_eq(promise_from(0, 5, NULL, 0), PAXOS_TAKEN);
    durable(batch);
    ck_assert_int_eq(paxos_role(p), PAXOS_SETTLING);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.save_count, 0);
    uint32_t asked = 0;
    for (uint32_t i = 0; i < out.send_now_count; i++) {
        if (out.sends_now[i].kind != PAXOS_MSG_CATCHUP) continue;
        ck_assert_uint_eq(out.sends_now[i].to, 0);
        asked++;
    }
    ck_assert_uint_eq(asked, 1);
    struct paxos_entry chosen[5];
    for (uint32_t i = 0; i < 5; i++)
        chosen[i] = (struct paxos_entry){.slot = i + 1, .ballot = ballot(2, 0), .value = slice_str("c")};
    ck_assert_int_eq(say((struct paxos_msg){.kind = PAXOS_MSG_CHOSEN, .from = 0, .entries = chosen, .entry_count = 5}),
                     PAXOS_TAKEN);
    ck_assert(paxos_take(p, &out));
    ck_assert_uint_eq(out.apply_count, 5);
    ck_assert(slice_equal(out.applies[1].value, slice_str("c")));
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
    tc = tcase_create("by hand");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, second_prepare_is_judged_by_ballot, 0, sizeof second_prepare / sizeof second_prepare[0]);
    tcase_add_test(tc, accept_raises_the_promise);
    tcase_add_test(tc, accepts_of_one_turn_are_answered_once);
    tcase_add_test(tc, a_repeated_accept_saves_nothing_and_still_waits_for_its_batch);
    tcase_add_test(tc, the_later_of_two_acceptances_of_one_turn_is_saved);
    tcase_add_test(tc, two_values_for_one_slot_and_ballot_halt);
    tcase_add_test(tc, a_slot_beyond_the_window_is_not_taken);
    tcase_add_test(tc, chosen_counts_only_for_what_that_leader_proposed);
    tcase_add_test(tc, chosen_rides_on_writes_and_causes_none);
    tcase_add_test(tc, slots_are_applied_in_order_without_gaps);
    tcase_add_test(tc, a_lease_binds_against_other_nodes_until_it_ends);
    tcase_add_test(tc, a_restarted_acceptor_waits_the_longest_lease_it_ever_granted);
    tcase_add_test(tc, a_promise_reports_everything_accepted_above_chosen);
    tcase_add_loop_test(tc, a_store_that_makes_no_sense_halts, 0, sizeof broken_stores / sizeof broken_stores[0]);
    tcase_add_test(tc, a_prepare_waits_for_our_own_promise);
    tcase_add_test(tc, only_distinct_acceptors_of_this_ballot_count);
    tcase_add_test(tc, the_highest_ballot_is_proposed_again_and_gaps_are_filled);
    tcase_add_test(tc, a_candidate_behind_learns_before_it_proposes);
    tcase_add_test(tc, a_leader_counts_its_own_acceptance_only_when_durable);
    tcase_add_test(tc, two_followers_choose_without_the_leaders_disk);
    tcase_add_test(tc, the_lease_counts_from_the_send_and_from_the_right_round);
    tcase_add_test(tc, many_rounds_keep_the_lease_conservative);
    tcase_add_test(tc, a_leader_binds_itself);
    tcase_add_test(tc, a_leader_without_a_majority_steps_down);
    tcase_add_test(tc, a_leader_refused_by_a_higher_promise_asks_for_a_higher_ballot);
    tcase_add_test(tc, lost_accepts_are_said_again_but_not_often);
    tcase_add_test(tc, a_pre_vote_needs_a_silent_leader);
    tcase_add_test(tc, a_ballot_is_above_everything_heard_of);
    tcase_add_test(tc, no_ballot_left_halts);
    tcase_add_loop_test(tc, nonsense_is_ignored, 0, sizeof nonsense / sizeof nonsense[0]);
    tcase_add_test(tc, a_catchup_beyond_what_is_stored_asks_for_nothing);
    tcase_add_test(tc, limits_are_answers);
    tcase_add_test(tc, who_leads_is_a_hint_with_a_time);
    tcase_add_test(tc, chosen_and_accepted_disagree_halts);
    tcase_add_test(tc, two_chosen_values_halt);
    tcase_add_test(tc, a_chosen_slot_proposed_with_another_value_halts);
    tcase_add_test(tc, two_reports_that_disagree_halt);
    tcase_add_test(tc, a_promise_in_parts_counts_when_whole);
    tcase_add_test(tc, nothing_outside_its_range_is_in_a_part);
    tcase_add_test(tc, who_cannot_learn_what_is_chosen_gives_up);
    tcase_add_test(tc, a_leader_that_gets_nothing_chosen_lets_others_try);
    tcase_add_test(tc, a_question_for_chosen_values_is_repeated_with_patience);
    tcase_add_test(tc, large_values_travel_one_by_one);
    tcase_add_test(tc, a_membership_that_cannot_be_is_refused);
    tcase_add_test(tc, a_change_takes_effect_by_itself);
    tcase_add_test(tc, a_leader_that_is_removed_hands_over);
    tcase_add_test(tc, leadership_is_given_away_at_once);
    tcase_add_test(tc, an_heir_that_does_not_answer_gets_nothing);
    tcase_add_loop_test(tc, a_release_frees_one_ballot, 0, sizeof releases / sizeof releases[0]);
    tcase_add_test(tc, an_heir_asks_at_once_and_says_whose);
    tcase_add_test(tc, a_vote_is_a_stores_and_not_a_seats);
    tcase_add_test(tc, a_learner_does_not_campaign_and_its_word_does_not_count);
    tcase_add_test(tc, who_only_heard_of_its_membership_does_not_campaign);
    tcase_add_test(tc, a_snapshot_stands_for_the_log_before_it);
    tcase_add_test(tc, the_room_of_the_best_majority);
    tcase_add_test(tc, a_sick_disk_neither_leads_nor_campaigns);
    tcase_add_test(tc, a_stored_position_that_is_no_slot_halts);
    tcase_add_test(tc, who_has_halted_does_nothing_any_more);
    tcase_add_test(tc, a_follower_has_confirmed_nothing);
    tcase_add_test(tc, what_a_leader_is_told_is_looked_at);
    tcase_add_test(tc, what_a_candidate_is_told_is_looked_at);
    tcase_add_test(tc, what_is_chosen_elsewhere_is_not_proposed_again);
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
