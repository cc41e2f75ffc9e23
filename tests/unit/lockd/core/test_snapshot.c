/* A checkpoint gets from one node to another over links that lose, repeat and end, and nothing that a peer says makes
 * the receiver take what was not offered or more memory than has arrived.  Guards S1-S5 of snapshot.h.  Virtual time.
 */
#include <check.h>
#include <stdlib.h>
#include <xxhash.h>
#include "common/io/heap.h"
#include "common/wire.h"
#include "lockd/core/snapshot.h"

enum { NODES = 4, MESSAGES = 4096, BLOCK = SNAPSHOT_BLOCK_BYTES_MAX };

struct post {
    uint16_t from, to;
    struct snapshot_msg msg;
    char *data;
};

static struct snapshot *nodes[NODES];
static struct buf files[NODES]; /* what each has as its checkpoint */
static paxos_slot file_slots[NODES];
static paxos_slot applied[NODES];
static struct post mail[MESSAGES];
static uint32_t mail_first, mail_count;
static uint64_t now_ms, random_state;
static uint32_t loss_percent, twice_percent;
static bool cut[NODES][NODES];
static uint64_t reads, read_bytes;
static uint32_t offers; /* sent */
static enum snapshot_news news[NODES];
static size_t allocated, allocated_most;

static uint32_t below(uint32_t limit) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % limit;
}

static void *counted(void *context, void *memory, size_t bytes) {
    (void)context;
    size_t *block = memory != NULL ? (size_t *)memory - 2 : NULL;
    if (block != NULL) allocated -= block[0];
    if (bytes == 0) {
        free(block);
        return NULL;
    }
    block = realloc(block, bytes + 2 * sizeof(size_t));
    block[0] = bytes;
    allocated += bytes;
    if (allocated > allocated_most) allocated_most = allocated;
    return block + 2;
}
static const struct alloc counting = {.resize = counted};

static void post(uint16_t from, uint16_t to, const struct snapshot_msg *msg) {
    for (uint32_t copies = below(100) < twice_percent ? 2 : 1; copies > 0; copies--) {
        if (cut[from][to] || below(100) < loss_percent) continue;
        ck_assert_uint_lt(mail_count, MESSAGES);
        struct post *p = &mail[(mail_first + mail_count++) % MESSAGES];
        *p = (struct post){.from = from, .to = to, .msg = *msg};
        if (msg->data.bytes == 0) continue;
        p->data = malloc(msg->data.bytes);
        memcpy(p->data, msg->data.data, msg->data.bytes);
        p->msg.data.data = p->data;
    }
}
static uint16_t number_of(void *context) {
    return (uint16_t)((struct buf *)context - files);
}
static void sink_send(void *context, uint16_t peer, const struct snapshot_msg *msg) {
    offers += msg->kind == SNAPSHOT_OFFER;
    post(number_of(context), peer, msg);
}
static void sink_read(void *context, uint16_t peer, paxos_slot slot, uint64_t offset, uint32_t bytes) {
    const uint16_t node = number_of(context);
    ck_assert_uint_eq(slot, file_slots[node]);
    ck_assert_uint_gt(bytes, 0);
    ck_assert_uint_le(bytes, SNAPSHOT_DATA_BYTES_MAX);
    ck_assert_uint_le(offset + bytes, files[node].bytes);
    reads++;
    read_bytes += bytes;
    const struct snapshot_msg msg = {.kind = SNAPSHOT_DATA,
                                     .slot = slot,
                                     .offset = offset,
                                     .total = files[node].bytes,
                                     .data = slice_of(files[node].data + offset, bytes)};
    post(node, peer, &msg);
}

static void make(uint16_t node, uint64_t bytes_per_second) {
    const struct snapshot_config config = {.alloc = &counting, .bytes_per_second = bytes_per_second};
    const struct snapshot_sink sink = {.context = &files[node], .send = sink_send, .read = sink_read};
    nodes[node] = snapshot_new(&config, &sink);
    snapshot_limit(nodes[node], 64 << 20);
}
static void setup(void) {
    memset(applied, 0, sizeof applied);
    memset(cut, 0, sizeof cut);
    memset(news, 0, sizeof news);
    mail_first = mail_count = 0;
    loss_percent = twice_percent = 0;
    reads = read_bytes = 0;
    offers = 0;
    now_ms = 1000;
    random_state = 1;
    for (uint16_t i = 0; i < NODES; i++) {
        files[i] = (struct buf){.alloc = heap_alloc()};
        make(i, 1000 << 20);
    }
    allocated_most = 0;
}
static void teardown(void) {
    for (; mail_count > 0; mail_count--) free(mail[mail_first++ % MESSAGES].data);
    for (uint16_t i = 0; i < NODES; i++) {
        snapshot_free(nodes[i]);
        buf_release(&files[i]);
    }
    ck_assert_uint_eq(allocated, 0);
}

/* A file of whole blocks with something in them. */
static void write_file(uint16_t node, paxos_slot slot, size_t bytes) {
    struct buf *b = &files[node];
    buf_clear(b);
    while (b->bytes < bytes) {
        static char payload[BLOCK];
        size_t some = bytes - b->bytes;
        if (some > BLOCK) some = BLOCK;
        for (size_t i = 0; i < some; i++) payload[i] = (char)(slot * 31 + b->bytes + i * 7);
        wire_put_u32(b, (uint32_t)some);
        wire_put_u64(b, XXH3_64bits(payload, some));
        buf_append(b, payload, some);
    }
    file_slots[node] = slot;
    snapshot_have(nodes[node], slot, b->bytes);
}
static void note_news(uint16_t node, enum snapshot_news what) {
    if (what != SNAPSHOT_NO_NEWS) news[node] = what;
}
static void hear(uint16_t node, uint16_t from, const struct snapshot_msg *msg) {
    note_news(node, snapshot_message(nodes[node], now_ms, from, msg, applied[node]));
}
static void deliver(void) {
    while (mail_count > 0) {
        struct post p = mail[mail_first % MESSAGES];
        mail_first++;
        mail_count--;
        hear(p.to, p.from, &p.msg);
        free(p.data);
    }
}
static void turn(void) {
    for (uint16_t i = 0; i < NODES; i++) note_news(i, snapshot_turn(nodes[i], now_ms, applied[i]));
}
/* Until `ms` have passed, or the node has everything. */
static bool run(uint16_t node, uint64_t ms) {
    paxos_slot slot;
    struct slice bytes;
    uint16_t peer;
    for (const uint64_t end = now_ms + ms; now_ms < end; now_ms++) {
        turn();
        deliver();
        if (snapshot_whole(nodes[node], &slot, &bytes, &peer)) return true;
    }
    return false;
}
static void check_whole(uint16_t node, uint16_t from) {
    paxos_slot slot = 0;
    struct slice bytes = {0};
    uint16_t peer = 0;
    ck_assert(snapshot_whole(nodes[node], &slot, &bytes, &peer));
    ck_assert_uint_eq(slot, file_slots[from]);
    ck_assert(slice_equal(bytes, buf_slice(&files[from])));
}
static uint64_t pulled(uint16_t node) {
    paxos_slot slot;
    uint64_t bytes = 0, total;
    return snapshot_pulling(nodes[node], &slot, &bytes, &total) ? bytes : 0;
}

START_TEST(a_checkpoint_arrives) {
    static const size_t sizes[] = {1, BLOCK, BLOCK + 1, SNAPSHOT_DATA_BYTES_MAX, SNAPSHOT_DATA_BYTES_MAX + 5, 3 << 20};
    write_file(0, 7, sizes[_i]);
    snapshot_wanted(nodes[0], now_ms, 1);
    ck_assert(run(1, 1000));
    check_whole(1, 0);
    ck_assert_uint_eq(reads, (files[0].bytes + SNAPSHOT_DATA_BYTES_MAX - 1) / SNAPSHOT_DATA_BYTES_MAX);
    ck_assert_int_eq((int)news[1], SNAPSHOT_ARRIVED);
    snapshot_drop(nodes[1], now_ms, false);
    paxos_slot slot;
    uint64_t bytes, total;
    ck_assert(!snapshot_pulling(nodes[1], &slot, &bytes, &total));
}
END_TEST

START_TEST(who_has_none_offers_none) {
    snapshot_wanted(nodes[0], now_ms, 1);
    ck_assert_uint_eq(offers, 0);
    const struct snapshot_msg ask = {.kind = SNAPSHOT_ASK, .slot = 3};
    hear(0, 1, &ask);
    turn();
    ck_assert_uint_eq(offers + reads, 0);
}
END_TEST

START_TEST(what_the_log_has_is_not_pulled) {
    write_file(0, 7, 100);
    applied[1] = 7;
    snapshot_wanted(nodes[0], now_ms, 1);
    ck_assert(!run(1, 50));
    ck_assert_uint_eq(reads, 0);
    write_file(0, 9, 1 << 20); /* and the log catches up on the way */
    snapshot_wanted(nodes[0], now_ms, 1);
    deliver();
    applied[1] = 9;
    ck_assert(!run(1, 50));
    ck_assert_uint_eq(pulled(1), 0);
}
END_TEST

START_TEST(loss_and_repetition_cost_only_time) {
    write_file(0, 7, 2 << 20);
    random_state = (uint64_t)_i;
    loss_percent = twice_percent = 30;
    for (int i = 0; i < 20; i++) { /* as a catch-up does, again and again */
        snapshot_wanted(nodes[0], now_ms, 1);
        if (run(1, 5000)) break;
    }
    check_whole(1, 0);
}
END_TEST

/* The link ends in the middle: the next one goes on where it was, without waiting for a timeout. */
START_TEST(a_lost_link_costs_one_piece) {
    write_file(0, 7, 4 << 20);
    snapshot_wanted(nodes[0], now_ms, 1);
    for (int i = 0; i < 4; i++) {
        turn();
        deliver();
    }
    const uint64_t before = pulled(1), read_before = reads;
    ck_assert_uint_gt(before, 0);
    cut[0][1] = cut[1][0] = true;
    snapshot_link_lost(nodes[0], 1);
    snapshot_link_lost(nodes[1], 0);
    ck_assert(!run(1, 4500));
    ck_assert_uint_eq(pulled(1), before);
    cut[0][1] = cut[1][0] = false;
    snapshot_link_up(nodes[1], now_ms, 0);
    ck_assert(run(1, 100));
    check_whole(1, 0);
    ck_assert_uint_le(reads - read_before, (files[0].bytes - before) / SNAPSHOT_DATA_BYTES_MAX + 2);
}
END_TEST

START_TEST(a_restarted_sender_goes_on) {
    write_file(0, 7, 4 << 20);
    snapshot_wanted(nodes[0], now_ms, 1);
    for (int i = 0; i < 4; i++) {
        turn();
        deliver();
    }
    const uint64_t before = pulled(1);
    snapshot_free(nodes[0]);
    make(0, 1000 << 20);
    snapshot_have(nodes[0], 7, files[0].bytes);
    ck_assert(run(1, SNAPSHOT_ASK_MS + 200));
    check_whole(1, 0);
    ck_assert_uint_le(read_bytes, files[0].bytes + SNAPSHOT_DATA_BYTES_MAX);
    ck_assert_uint_gt(before, 0);
}
END_TEST

START_TEST(a_newer_checkpoint_starts_anew) {
    write_file(0, 7, 4 << 20);
    snapshot_wanted(nodes[0], now_ms, 1);
    for (int i = 0; i < 4; i++) {
        turn();
        deliver();
    }
    ck_assert_uint_gt(pulled(1), 0);
    write_file(0, 8, 1 << 20);
    ck_assert(run(1, SNAPSHOT_ASK_MS + 200));
    check_whole(1, 0);
}
END_TEST

START_TEST(an_offer_from_yesterday_changes_nothing) {
    write_file(0, 7, 4 << 20);
    snapshot_wanted(nodes[0], now_ms, 1);
    for (int i = 0; i < 4; i++) {
        turn();
        deliver();
    }
    const uint64_t before = pulled(1);
    const struct snapshot_msg stale = {.kind = SNAPSHOT_OFFER, .slot = 6, .total = 1000},
                              same = {.kind = SNAPSHOT_OFFER, .slot = 7, .total = files[0].bytes};
    hear(1, 0, &stale);
    hear(1, 0, &same);
    hear(1, 2, &stale); /* of another, while this one answers */
    ck_assert_uint_eq(pulled(1), before);
    ck_assert(run(1, 200));
    check_whole(1, 0);
}
END_TEST

/* The first sender is silent: another with the same slot goes on, another with a newer one starts anew. */
START_TEST(another_sender_takes_over) {
    write_file(0, 7, 4 << 20);
    write_file(2, _i == 0 ? 7 : 9, 4 << 20);
    snapshot_wanted(nodes[0], now_ms, 1);
    for (int i = 0; i < 4; i++) {
        turn();
        deliver();
    }
    const uint64_t before = pulled(1);
    cut[0][1] = true;
    snapshot_wanted(nodes[2], now_ms, 1);
    turn();
    deliver();
    ck_assert(!run(1, SNAPSHOT_SILENT_MS));
    ck_assert_uint_eq(pulled(1), before); /* too early to leave the first */
    read_bytes = 0;
    snapshot_wanted(nodes[2], now_ms, 1);
    ck_assert(run(1, 500));
    check_whole(1, 2);
    /* and the first answered one more question, into the void */
    ck_assert_uint_le(read_bytes, files[2].bytes - (_i == 0 ? before : 0) + SNAPSHOT_DATA_BYTES_MAX);
}
END_TEST

START_TEST(patience_ends) {
    write_file(0, 7, 4 << 20);
    snapshot_wanted(nodes[0], now_ms, 1);
    turn();
    deliver();
    turn();
    deliver();
    ck_assert_uint_gt(pulled(1), 0);
    cut[0][1] = true;
    ck_assert(!run(1, SNAPSHOT_GIVE_UP_MS + 10));
    ck_assert_int_eq((int)news[1], SNAPSHOT_GIVEN_UP);
    ck_assert_uint_eq(pulled(1), 0);
    ck_assert_uint_le(allocated, NODES * 2048); /* what had arrived is given back */
}
END_TEST

/* ---- hostile senders ---- */

static void offer_to(uint16_t node, uint16_t from, paxos_slot slot, uint64_t total) {
    const struct snapshot_msg msg = {.kind = SNAPSHOT_OFFER, .slot = slot, .total = total};
    hear(node, from, &msg);
}
static void data_to(uint16_t node, uint16_t from, paxos_slot slot, uint64_t offset, uint64_t total, struct slice data) {
    const struct snapshot_msg msg = {
        .kind = SNAPSHOT_DATA, .slot = slot, .offset = offset, .total = total, .data = data};
    hear(node, from, &msg);
}

START_TEST(a_claim_takes_no_memory) {
    const size_t before = allocated;
    offer_to(1, 0, 7, 64 << 20);
    ck_assert_int_eq((int)news[1], SNAPSHOT_BEGUN);
    ck_assert_uint_eq(allocated, before);
    offer_to(2, 0, 7, (64 << 20) + 1);
    ck_assert_int_eq((int)news[2], SNAPSHOT_TOO_LONG);
    offer_to(3, 0, 7, UINT64_MAX);
    ck_assert_int_eq((int)news[3], SNAPSHOT_TOO_LONG);
    ck_assert_uint_eq(allocated, before);
    news[2] = SNAPSHOT_NO_NEWS;
    offer_to(2, 0, 7, 100000); /* it is shunned for a while */
    ck_assert_int_eq((int)news[2], SNAPSHOT_NO_NEWS);
}
END_TEST

START_TEST(nonsense_is_ignored) {
    write_file(0, 7, 1 << 20);
    const struct slice piece = slice_of(files[0].data, 1000);
    data_to(1, 0, 7, 0, files[0].bytes, piece); /* nobody asked */
    offer_to(1, 0, 0, 1000);                    /* no slot */
    offer_to(1, 0, 7, 0);
    offer_to(1, 0, 7, SNAPSHOT_BLOCK_HEAD_BYTES); /* too short to hold anything */
    ck_assert_int_eq((int)news[1], SNAPSHOT_NO_NEWS);
    offer_to(1, 0, 7, files[0].bytes);
    data_to(1, 2, 7, 0, files[0].bytes, piece);             /* of somebody else */
    data_to(1, 0, 6, 0, files[0].bytes, piece);             /* of another slot */
    data_to(1, 0, 7, 1, files[0].bytes, piece);             /* not what was asked */
    data_to(1, 0, 7, UINT64_MAX, files[0].bytes, piece);    /* far away */
    data_to(1, 0, 7, 0, files[0].bytes, slice_of(NULL, 0)); /* nothing */
    data_to(1, 0, 7, 0, files[0].bytes, slice_of(NULL, 0)); /* nothing */
    const struct snapshot_msg unknown = {.kind = SNAPSHOT_MSG_KIND_END, .slot = 7};
    hear(1, 0, &unknown);
    ck_assert_uint_eq(pulled(1), 0);
    ck_assert_int_eq((int)news[1], SNAPSHOT_BEGUN);
    hear(1, PAXOS_NODES_MAX, &unknown);
    const struct snapshot_msg far = {.kind = SNAPSHOT_ASK, .slot = 7, .offset = UINT64_MAX};
    hear(0, 1, &far); /* answered with an offer, read nowhere */
    turn();
    ck_assert_uint_eq(reads, 0);
    ck_assert_uint_eq(offers, 1);
}
END_TEST

static const enum bend {
    BEND_TOTAL_LESS,
    BEND_TOTAL_MORE,
    BEND_BYTE,
    BEND_LENGTH,
    BEND_LENGTH_0,
    BEND_PAST
} bends[] = {BEND_TOTAL_LESS, BEND_TOTAL_MORE, BEND_BYTE, BEND_LENGTH, BEND_LENGTH_0, BEND_PAST};
START_TEST(who_contradicts_itself_is_shunned) {
    write_file(0, 7, 300000);
    const uint64_t total = files[0].bytes;
    struct slice first = slice_of(files[0].data, 200000), rest = slice_of(files[0].data + 200000, total - 200000);
    offer_to(1, 0, 7, total);
    data_to(1, 0, 7, 0, total, first);
    ck_assert_uint_eq(pulled(1), 200000);
    static char longer[SNAPSHOT_DATA_BYTES_MAX];
    switch (bends[_i]) {
    case BEND_TOTAL_LESS: data_to(1, 0, 7, 200000, total - 1, slice_of(rest.data, rest.bytes - 1)); break;
    case BEND_TOTAL_MORE: data_to(1, 0, 7, 200000, UINT64_MAX, rest); break;
    case BEND_BYTE:
        files[0].data[250000] ^= 1;
        data_to(1, 0, 7, 200000, total, rest);
        break;
    case BEND_LENGTH: /* of the block that begins in the rest */
        files[0].data[4 * (BLOCK + 12) + 3] = 1;
        data_to(1, 0, 7, 200000, total, rest);
        break;
    case BEND_LENGTH_0:
        memset(files[0].data + 4 * (BLOCK + 12), 0, 4);
        data_to(1, 0, 7, 200000, total, rest);
        break;
    case BEND_PAST: data_to(1, 0, 7, 200000, total, slice_of(longer, sizeof longer)); break;
    }
    ck_assert_int_eq((int)news[1], SNAPSHOT_DAMAGED);
    ck_assert_uint_eq(pulled(1), 0);
    news[1] = SNAPSHOT_NO_NEWS;
    offer_to(1, 0, 8, 5000);
    ck_assert_int_eq((int)news[1], SNAPSHOT_NO_NEWS);
    offer_to(1, 2, 8, 5000); /* another is as good as ever */
    ck_assert_int_eq((int)news[1], SNAPSHOT_BEGUN);
    snapshot_drop(nodes[1], now_ms, false);
    now_ms += SNAPSHOT_SHUN_MS;
    news[1] = SNAPSHOT_NO_NEWS;
    offer_to(1, 0, 8, 5000);
    ck_assert_int_eq((int)news[1], SNAPSHOT_BEGUN);
}
END_TEST

/* All there, but the last block says it is longer than what was offered. */
START_TEST(an_end_inside_a_block_is_damage) {
    write_file(0, 7, 100000);
    const uint64_t total = files[0].bytes - 10;
    offer_to(1, 0, 7, total);
    data_to(1, 0, 7, 0, total, slice_of(files[0].data, total));
    ck_assert_int_eq((int)news[1], SNAPSHOT_DAMAGED);
}
END_TEST

START_TEST(memory_follows_what_arrives) {
    write_file(0, 7, 8 << 20);
    snapshot_wanted(nodes[0], now_ms, 1);
    ck_assert(run(1, 1000));
    ck_assert_uint_le(allocated_most, 2 * files[0].bytes + (1 << 20) + files[0].bytes);
    ck_assert_uint_le(allocated, 2 * files[0].bytes + (1 << 16));
}
END_TEST

/* ---- many receivers ---- */

START_TEST(two_are_served_the_third_waits) {
    snapshot_free(nodes[0]);
    make(0, 4 << 20);
    write_file(0, 7, 4 << 20);
    for (uint16_t i = 1; i < 3; i++) snapshot_wanted(nodes[0], now_ms, i);
    deliver();
    turn();
    offers = 0;
    snapshot_wanted(nodes[0], now_ms, 3);
    ck_assert_uint_eq(offers, 0);
    offer_to(3, 0, 7, files[0].bytes); /* it knows anyway, and asks */
    const uint64_t began = now_ms;
    ck_assert(run(1, 4000));
    ck_assert(run(2, 4000));
    ck_assert_uint_eq(pulled(3), 0);
    ck_assert_uint_ge(now_ms - began, 1700); /* 8 MiB at 4 MiB a second, less what may be read ahead */
    ck_assert_uint_le(now_ms - began, 2300);
    ck_assert(run(3, 3000)); /* a place is free: its next question is answered */
    check_whole(3, 0);
}
END_TEST

START_TEST(who_fell_silent_gives_its_place_up) {
    write_file(0, 7, 4 << 20);
    const struct snapshot_msg ask = {.kind = SNAPSHOT_ASK, .slot = 7};
    hear(0, 1, &ask);
    hear(0, 2, &ask);
    turn();
    snapshot_wanted(nodes[0], now_ms, 3);
    ck_assert_uint_eq(offers, 0);
    cut[0][1] = cut[0][2] = true;
    now_ms += SNAPSHOT_PLACE_IDLE_MS;
    snapshot_wanted(nodes[0], now_ms, 3);
    ck_assert(run(3, 500));
}
END_TEST

/* S4 */
START_TEST(a_transfer_holds_the_checkpoint_for_a_while) {
    const struct snapshot_msg ask = {.kind = SNAPSHOT_ASK, .slot = 7};
    write_file(0, 7, 4 << 20);
    snapshot_wanted(nodes[0], now_ms, 1);
    ck_assert(!snapshot_holds(nodes[0], now_ms)); /* nobody took it yet */
    hear(0, 1, &ask);
    const uint64_t first_ms = now_ms;
    ck_assert(snapshot_holds(nodes[0], now_ms + SNAPSHOT_HOLD_IDLE_MS - 1));
    ck_assert(!snapshot_holds(nodes[0], now_ms + SNAPSHOT_HOLD_IDLE_MS));
    while (now_ms < first_ms + SNAPSHOT_HOLD_MS - 1000) {
        now_ms += 1000;
        hear(0, 1, &ask);
        ck_assert(snapshot_holds(nodes[0], now_ms));
    }
    now_ms += 1000;
    hear(0, 1, &ask);
    ck_assert(!snapshot_holds(nodes[0], now_ms)); /* long enough, whatever it asks */
    write_file(0, 8, 4 << 20);
    ck_assert(!snapshot_holds(nodes[0], now_ms));
}
END_TEST

START_TEST(it_wakes_when_it_has_to) {
    ck_assert_uint_eq(snapshot_wake_at(nodes[1]), UINT64_MAX);
    offer_to(1, 0, 7, 5000);
    ck_assert_uint_eq(snapshot_wake_at(nodes[1]), now_ms + SNAPSHOT_ASK_MS);
    snapshot_free(nodes[0]);
    make(0, 1000);
    write_file(0, 7, 1 << 20);
    const struct snapshot_msg ask = {.kind = SNAPSHOT_ASK, .slot = 7};
    for (int i = 0; i < 3; i++) { /* 512 KiB are read at once */
        hear(0, 1, &ask);
        turn();
    }
    ck_assert_uint_eq(reads, 2);
    ck_assert_uint_eq(snapshot_wake_at(nodes[0]), now_ms + 1);
    now_ms++;
    turn();
    ck_assert_uint_eq(reads, 3);
}
END_TEST

int main(void) {
    Suite *s = suite_create("snapshot");
    TCase *tc = tcase_create("snapshot");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, a_checkpoint_arrives, 0, 6);
    tcase_add_test(tc, who_has_none_offers_none);
    tcase_add_test(tc, what_the_log_has_is_not_pulled);
    tcase_add_loop_test(tc, loss_and_repetition_cost_only_time, 0, 20);
    tcase_add_test(tc, a_lost_link_costs_one_piece);
    tcase_add_test(tc, a_restarted_sender_goes_on);
    tcase_add_test(tc, a_newer_checkpoint_starts_anew);
    tcase_add_test(tc, an_offer_from_yesterday_changes_nothing);
    tcase_add_loop_test(tc, another_sender_takes_over, 0, 2);
    tcase_add_test(tc, patience_ends);
    tcase_add_test(tc, a_claim_takes_no_memory);
    tcase_add_test(tc, nonsense_is_ignored);
    tcase_add_loop_test(tc, who_contradicts_itself_is_shunned, 0, sizeof bends / sizeof bends[0]);
    tcase_add_test(tc, an_end_inside_a_block_is_damage);
    tcase_add_test(tc, memory_follows_what_arrives);
    tcase_add_test(tc, two_are_served_the_third_waits);
    tcase_add_test(tc, who_fell_silent_gives_its_place_up);
    tcase_add_test(tc, a_transfer_holds_the_checkpoint_for_a_while);
    tcase_add_test(tc, it_wakes_when_it_has_to);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
