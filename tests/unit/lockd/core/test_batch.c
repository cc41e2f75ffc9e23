/* A batch is read back as it was built, and nothing else passes for one. */
#include <check.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "lockd/core/batch.h"

static struct buf b;
static struct slice argv[BATCH_ARGC_MAX];

static void setup(void) {
    b = (struct buf){.alloc = heap_alloc()};
    const struct slice set[] = {slice_str("SET"), slice_str("k"), slice_of("a\0b\r\n", 5)};
    const struct slice del[] = {slice_str("DEL"), slice_of(NULL, 0)};
    batch_begin(&b, (struct ballot){.round = 7, .node = 2}, true, 0);
    batch_add(&b, (struct origin){.node = 1, .boot = UINT64_MAX, .seq = 9}, 3, set);
    batch_add(&b, ORIGIN_NONE, 2, del);
    batch_set_stamp(&b, 1234567890123u);
}
static void teardown(void) {
    buf_release(&b);
}

/* Reads all of a value; false as soon as something is wrong. */
static bool read_all(struct slice value, uint32_t *ret_count) {
    struct wire w;
    struct batch_head head;
    if (!batch_read(&w, value, &head)) return false;
    for (uint32_t i = 0; i < head.count; i++) {
        struct origin origin;
        uint32_t argc;
        if (!batch_next(&w, &origin, &argc, argv)) return false;
    }
    *ret_count = head.count;
    return wire_done(&w);
}

START_TEST(what_was_put_in_comes_out) {
    struct wire w;
    struct batch_head head;
    struct origin origin;
    uint32_t argc;
    ck_assert_uint_eq(batch_count(&b), 2);
    ck_assert(batch_read(&w, buf_slice(&b), &head));
    ck_assert_uint_eq(head.ballot.round, 7);
    ck_assert_uint_eq(head.ballot.node, 2);
    ck_assert(head.first);
    ck_assert_uint_eq(head.stamp_ms, 1234567890123u);
    ck_assert_uint_eq(head.count, 2);
    ck_assert(batch_next(&w, &origin, &argc, argv));
    ck_assert(origin_equal(origin, (struct origin){.node = 1, .boot = UINT64_MAX, .seq = 9}));
    ck_assert_uint_eq(argc, 3);
    ck_assert(slice_equal(argv[0], slice_str("SET")));
    ck_assert(slice_equal(argv[2], slice_of("a\0b\r\n", 5)));
    ck_assert(batch_next(&w, &origin, &argc, argv));
    ck_assert_uint_eq(origin.node, ORIGIN_NODE_NONE);
    ck_assert_uint_eq(argc, 2);
    ck_assert_uint_eq(argv[1].bytes, 0);
    ck_assert(wire_done(&w));
    ck_assert(!batch_next(&w, &origin, &argc, argv));
}
END_TEST

START_TEST(a_batch_cut_anywhere_is_none) {
    uint32_t count;
    ck_assert(read_all(buf_slice(&b), &count));
    ck_assert(batch_is_whole(buf_slice(&b)));
    ck_assert(batch_is_whole(slice_of(NULL, 0))); /* a no-op */
    for (size_t bytes = 0; bytes < b.bytes; bytes++) {
        ck_assert_msg(!read_all(slice_of(b.data, bytes), &count), "cut at %zu", bytes);
        ck_assert_msg(bytes == 0 || !batch_is_whole(slice_of(b.data, bytes)), "cut at %zu", bytes);
    }
}
END_TEST

START_TEST(what_follows_a_batch_is_noticed) {
    uint32_t count;
    buf_append(&b, "x", 1);
    ck_assert(!read_all(buf_slice(&b), &count));
    ck_assert(!batch_is_whole(buf_slice(&b)));
}
END_TEST

/* Changed bytes may still be a batch, but never one that reads out of bounds (this runs under the sanitizers). */
START_TEST(damaged_bytes_read_nothing_outside) {
    uint32_t count;
    for (size_t i = 0; i < b.bytes; i++) {
        for (int bit = 0; bit < 8; bit++) {
            b.data[i] = (char)(b.data[i] ^ (1 << bit));
            ck_assert_int_eq(read_all(buf_slice(&b), &count), batch_is_whole(buf_slice(&b)));
            b.data[i] = (char)(b.data[i] ^ (1 << bit));
        }
    }
    ck_assert(read_all(buf_slice(&b), &count));
}
END_TEST

START_TEST(as_many_arguments_as_the_limit_and_no_more) {
    struct buf big = {.alloc = heap_alloc()};
    static struct slice many[BATCH_ARGC_MAX];
    uint32_t count = 0;
    for (int i = 0; i < BATCH_ARGC_MAX; i++) many[i] = slice_str("x");
    batch_begin(&big, (struct ballot){.round = 1}, false, 5);
    batch_add(&big, ORIGIN_NONE, BATCH_ARGC_MAX, many);
    ck_assert(read_all(buf_slice(&big), &count));
    ck_assert_uint_eq(count, 1);
    const size_t argc_at = 8 + 2 + 1 + 8 + 4 + 2 + 8 + 8;
    ck_assert(batch_is_whole(buf_slice(&big)));
    big.data[argc_at] = 1; /* 4097 */
    ck_assert(!read_all(buf_slice(&big), &count));
    ck_assert(!batch_is_whole(buf_slice(&big)));
    big.data[argc_at] = big.data[argc_at + 1] = 0; /* 0 */
    ck_assert(!read_all(buf_slice(&big), &count));
    ck_assert(!batch_is_whole(buf_slice(&big)));
    buf_release(&big);
}
END_TEST

int main(void) {
    Suite *s = suite_create("batch");
    TCase *tc = tcase_create("batch");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, what_was_put_in_comes_out);
    tcase_add_test(tc, a_batch_cut_anywhere_is_none);
    tcase_add_test(tc, what_follows_a_batch_is_noticed);
    tcase_add_test(tc, damaged_bytes_read_nothing_outside);
    tcase_add_test(tc, as_many_arguments_as_the_limit_and_no_more);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
