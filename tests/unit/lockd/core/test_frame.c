/* Every kind of frame survives the way there and back; nothing else gets through.  See "What a FRAME_OK promises" in
 * frame.h. */
#include <check.h>
#include <stdlib.h>
#include <xxhash.h>
#include "common/io/heap.h"
#include "lockd/core/frame.h"

static struct buf bytes, again;
static struct frame_scratch scratch;
static struct frame got;
static size_t used;

static void setup(void) {
    bytes = again = (struct buf){.alloc = heap_alloc()};
}
static void teardown(void) {
    buf_release(&bytes);
    buf_release(&again);
}

/* The checksum and the length are made right again, so that what was bent inside is what is judged. */
static void seal(struct buf *b) {
    const size_t whole = b->bytes;
    b->bytes = 0;
    wire_put_u32(b, (uint32_t)(whole - 4));
    wire_put_u64(b, XXH3_64bits(b->data + 12, whole - 12));
    b->bytes = whole;
}
static enum frame_status decode(void) {
    return frame_decode(bytes.data, bytes.bytes, &got, &scratch, &used);
}

static const struct slice argv[] = {{"SET", 3}, {"k", 1}, {NULL, 0}};
static const struct paxos_entry entries[] = {
    {.slot = 1, .ballot = {7, 8}, .value = {"one", 3}},
    {.slot = UINT64_MAX, .ballot = {UINT64_MAX, 0}, .value = {NULL, 0}},
};
static const struct frame frames[] = {
    {.kind = FRAME_HELLO, .hello = {.from = 1, .to = 8, .boot = UINT64_MAX}},
    {.kind = FRAME_IDENTITY,
     .identity = {.is_answer = true,
                  .from = 2,
                  .to = 1,
                  .node_count = 3,
                  .store_id = 4,
                  .boot_id = 5,
                  .asked_store = 6,
                  .asked_boot = 7,
                  .stray = true,
                  .record = {.cluster_id = 9,
                             .members = {.slot = 8,
                                         .voters = 5,
                                         .learners = 2,
                                         .generation = {0, 4095, 1},
                                         .store_ids = {1, 2, 3}}}}},
    {.kind = FRAME_IDENTITY, .identity = {.from = 2, .to = 1, .node_count = 3}},
    {.kind = FRAME_PAXOS,
     .paxos = {.kind = PAXOS_MSG_ACCEPT,
               .from = 1,
               .to = 2,
               .ballot = {3, 4},
               .promised = {5, 6},
               .granted = true,
               .chosen = 7,
               .slot = 8,
               .slot_last = 9,
               .round = 10,
               .lease_ms = 300,
               .entries = entries,
               .entry_count = 2}},
    {.kind = FRAME_PAXOS, .paxos = {.kind = PAXOS_MSG_HEARTBEAT_ACK}},
    {.kind = FRAME_FORWARD,
     .forward = {.kind = FORWARD_READ,
                 .ballot = {3, 4},
                 .boot = 5,
                 .seq = 6,
                 .after = 7,
                 .sent_ms = 8,
                 .argc = 3,
                 .argv = argv}},
    {.kind = FRAME_ANSWER,
     .answer =
         {.kind = ANSWER_REFUSED, .of = FORWARD_READ, .ballot = {3, 4}, .boot = 5, .seq = 6, .reply = {"+OK\r\n", 5}}},
    {.kind = FRAME_SNAPSHOT,
     .snapshot = {.kind = SNAPSHOT_DATA, .slot = 2, .offset = 3, .total = UINT64_MAX, .data = {"piece", 5}}},
};
enum { FRAMES = sizeof frames / sizeof frames[0] };

START_TEST(there_and_back) {
    buf_append_str(&bytes, "xx"); /* a frame is appended */
    frame_encode(&frames[_i], &bytes);
    ck_assert_int_eq(memcmp(bytes.data, "xx", 2), 0);
    ck_assert_int_eq(frame_decode(bytes.data + 2, bytes.bytes - 2, &got, &scratch, &used), FRAME_OK);
    ck_assert_uint_eq(used, bytes.bytes - 2);
    ck_assert_int_eq((int)got.kind, (int)frames[_i].kind);
    frame_encode(&got, &again); /* all fields are in the bytes, so equal bytes are equal frames */
    ck_assert_uint_eq(again.bytes, bytes.bytes - 2);
    ck_assert_int_eq(memcmp(again.data, bytes.data + 2, again.bytes), 0);
}
END_TEST

START_TEST(fields_arrive) {
    const struct frame *sent = &frames[3];
    frame_encode(sent, &bytes);
    ck_assert_int_eq(decode(), FRAME_OK);
    const struct paxos_msg *m = &got.paxos;
    ck_assert_int_eq((int)m->kind, PAXOS_MSG_ACCEPT);
    ck_assert(m->from == 1 && m->to == 2 && m->ballot.round == 3 && m->ballot.node == 4 && m->promised.round == 5 &&
              m->promised.node == 6 && m->granted && m->chosen == 7 && m->slot == 8 && m->slot_last == 9 &&
              m->round == 10 && m->lease_ms == 300 && m->entry_count == 2);
    ck_assert_uint_eq(m->entries[1].slot, UINT64_MAX);
    ck_assert(slice_equal(m->entries[0].value, slice_str("one")));
    buf_clear(&bytes);
    frame_encode(&frames[1], &bytes);
    ck_assert_int_eq(decode(), FRAME_OK);
    ck_assert_uint_eq(got.identity.record.members.store_ids[2], 3);
    ck_assert(got.identity.is_answer && got.identity.stray && got.identity.asked_boot == 7);
    buf_clear(&bytes);
    frame_encode(&frames[5], &bytes);
    ck_assert_int_eq(decode(), FRAME_OK);
    ck_assert_int_eq((int)got.forward.kind, FORWARD_READ);
    ck_assert(got.forward.after == 7 && got.forward.sent_ms == 8 && slice_equal(got.forward.argv[1], slice_str("k")));
}
END_TEST

START_TEST(a_part_needs_more) {
    frame_encode(&frames[_i], &bytes);
    const size_t whole = bytes.bytes;
    for (size_t part = 0; part < whole; part++) {
        ck_assert_int_eq(frame_decode(bytes.data, part, &got, &scratch, &used), FRAME_NEED_MORE);
        ck_assert_uint_eq(used, part < FRAME_HEAD_BYTES ? 0 : whole);
    }
    frame_encode(&frames[_i], &bytes); /* two in a row: the first is taken */
    ck_assert_int_eq(decode(), FRAME_OK);
    ck_assert_uint_eq(used, whole);
}
END_TEST

START_TEST(one_flipped_bit_is_bad) {
    frame_encode(&frames[_i], &bytes);
    for (size_t at = 0; at < bytes.bytes; at++)
        for (int bit = 0; bit < 8; bit++) {
            bytes.data[at] = (char)(bytes.data[at] ^ (1 << bit));
            const enum frame_status status = decode();
            ck_assert(status == FRAME_BAD || (at < 4 && status == FRAME_NEED_MORE));
            if (status == FRAME_BAD && at >= 4) ck_assert_int_eq(frame_refusal(bytes.data, bytes.bytes), LINK_CHECKSUM);
            bytes.data[at] = (char)(bytes.data[at] ^ (1 << bit));
        }
}
END_TEST

/* With a right checksum: too short, too long. */
START_TEST(sealed_but_cut_or_longer_is_bad) {
    frame_encode(&frames[_i], &bytes);
    const size_t whole = bytes.bytes;
    for (size_t part = 12; part < whole; part++) {
        buf_clear(&again);
        buf_append(&again, bytes.data, part);
        seal(&again);
        ck_assert_int_eq(frame_decode(again.data, part, &got, &scratch, &used), FRAME_BAD);
        ck_assert_int_eq(frame_refusal(again.data, part), part < 14 ? LINK_LENGTH : LINK_FIELDS);
    }
    wire_put_u8(&bytes, 0);
    seal(&bytes);
    ck_assert_int_eq(decode(), FRAME_BAD);
}
END_TEST

/* With a right checksum: one field that no correct peer sends.  Offsets count from the version byte. */
static const struct {
    int frame;
    size_t at;
    uint32_t value;
    size_t width;
} bent[] = {
    {0, 0, 0, 1},
    {0, 0, 1, 1}, /* version */
    {0, 1, 0, 1},
    {0, 1, FRAME_SNAPSHOT + 1, 1}, /* kind */
    {0, 2, PAXOS_NODES_MAX, 2},
    {0, 4, 0xffff, 2}, /* from, to */
    {1, 2, 2, 1},      /* is_answer */
    {1, 3, 9, 2},
    {1, 5, 9, 2},
    {1, 7, 10, 2}, /* from, to, node_count */
    {1, 41, 2, 1}, /* stray */
    {1, 58, 0x200, 2},
    {1, 60, 0x8000, 2},
    {1, 62, 4096, 2}, /* voters, learners, generation of seat 0 */
    {3, 2, 0, 1},
    {3, 2, PAXOS_MSG_KIND_END, 1},
    {3, 3, 9, 2},
    {3, 5, 9, 2},
    {3, 7, 4096, 2},
    {3, 17, 9, 2},
    {3, 17, 0xfff9, 2},
    {3, 27, 9, 2}, /* from, to, generation, ballot.node, promised.node */
    {3, 29, 2, 1}, /* granted */
    {3, 74, 1, 4},
    {3, 74, 3, 4},
    {3, 74, 4097, 4},
    {3, 74, 0xffffffff, 4}, /* entry_count */
    {3, 78, 0, 8},          /* slot 0 */
    {3, 86, 0xffffffff, 4}, /* first entry: a round, harmless; see below */
    {3, 94, 9, 2},
    {3, 96, 0xffffffff, 4}, /* its ballot.node, its length */
    {5, 2, 2, 1},
    {5, 11, 9, 2},
    {5, 45, 0, 4},
    {5, 45, 4097, 4},
    {5, 45, 2, 4},
    {5, 49, 0x7fffffff, 4},
    {6, 2, 2, 1},
    {6, 3, 2, 1},
    {6, 12, 9, 2},
    {6, 30, 6, 4},
    {6, 30, 4, 4},
    {7, 2, 0, 1},
    {7, 2, SNAPSHOT_MSG_KIND_END, 1},
    {7, 27, 6, 4},
    {7, 27, 4, 4}, /* length of the piece */
};
START_TEST(sealed_but_bent_is_bad) {
    frame_encode(&frames[bent[_i].frame], &bytes);
    ck_assert_uint_le(12 + bent[_i].at + bent[_i].width, bytes.bytes);
    for (size_t i = 0; i < bent[_i].width; i++)
        bytes.data[12 + bent[_i].at + i] = i < 4 ? (char)(bent[_i].value >> (8 * i)) : 0;
    seal(&bytes);
    const bool harmless = bent[_i].frame == 3 && bent[_i].at == 86;
    ck_assert_int_eq(decode(), harmless ? FRAME_OK : FRAME_BAD);
    if (!harmless)
        ck_assert_int_eq(frame_refusal(bytes.data, bytes.bytes), bent[_i].at == 0 ? LINK_VERSION : LINK_FIELDS);
}
END_TEST

START_TEST(slots_ascend) {
    const paxos_slot slots[][3] = {{1, 2, 3}, {5, 9, 100}, {2, 2, 3}, {3, 2, 4}, {0, 1, 2}, {1, 3, 3}};
    for (size_t row = 0; row < 6; row++) {
        struct paxos_entry three[3] = {{.slot = slots[row][0]}, {.slot = slots[row][1]}, {.slot = slots[row][2]}};
        const struct frame f = {.kind = FRAME_PAXOS,
                                .paxos = {.kind = PAXOS_MSG_CHOSEN, .entries = three, .entry_count = 3}};
        buf_clear(&bytes);
        frame_encode(&f, &bytes);
        ck_assert_int_eq(decode(), row < 2 ? FRAME_OK : FRAME_BAD);
    }
}
END_TEST

START_TEST(a_piece_of_a_snapshot_has_a_limit) {
    static char piece[SNAPSHOT_DATA_BYTES_MAX + 1];
    struct frame f = {.kind = FRAME_SNAPSHOT,
                      .snapshot = {.kind = SNAPSHOT_DATA, .data = slice_of(piece, SNAPSHOT_DATA_BYTES_MAX)}};
    frame_encode(&f, &bytes);
    ck_assert_int_eq(decode(), FRAME_OK);
    ck_assert_uint_eq(got.snapshot.data.bytes, SNAPSHOT_DATA_BYTES_MAX);
    wire_put_u8(&bytes, 0); /* one byte more, and the field says so */
    wire_put_u32(&again, SNAPSHOT_DATA_BYTES_MAX + 1);
    memcpy(bytes.data + 12 + 27, again.data, 4);
    seal(&bytes);
    ck_assert_int_eq(decode(), FRAME_BAD);
}
END_TEST

START_TEST(lengths_are_judged_at_once) {
    const uint32_t lengths[] = {0, 9, FRAME_BYTES_MAX - 3, 0x7fffffff, 0xffffffff};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        buf_clear(&bytes);
        wire_put_u32(&bytes, lengths[i]);
        ck_assert_int_eq(decode(), FRAME_BAD);
        ck_assert_int_eq(frame_refusal(bytes.data, bytes.bytes), LINK_LENGTH);
    }
    buf_clear(&bytes);
    wire_put_u32(&bytes, FRAME_BYTES_MAX - 4);
    ck_assert_int_eq(decode(), FRAME_NEED_MORE);
    ck_assert_uint_eq(used, FRAME_BYTES_MAX);
}
END_TEST

int main(void) {
    Suite *s = suite_create("frame");
    TCase *tc = tcase_create("frame");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, there_and_back, 0, FRAMES);
    tcase_add_test(tc, fields_arrive);
    tcase_add_loop_test(tc, a_part_needs_more, 0, FRAMES);
    tcase_add_loop_test(tc, one_flipped_bit_is_bad, 0, FRAMES);
    tcase_add_loop_test(tc, sealed_but_cut_or_longer_is_bad, 0, FRAMES);
    tcase_add_loop_test(tc, sealed_but_bent_is_bad, 0, sizeof bent / sizeof bent[0]);
    tcase_add_test(tc, slots_ascend);
    tcase_add_test(tc, a_piece_of_a_snapshot_has_a_limit);
    tcase_add_test(tc, lengths_are_judged_at_once);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
