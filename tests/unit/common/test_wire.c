/* What is put comes out, little-endian on any machine; nothing is read past the end (wire.h). */
#include <check.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "common/wire.h"

static struct buf b;

static void setup(void) {
    b = (struct buf){.alloc = heap_alloc()};
}
static void teardown(void) {
    buf_release(&b);
}
static void put_all(void) {
    wire_put_u8(&b, 0x81);
    wire_put_u16(&b, 0x8283);
    wire_put_u32(&b, 0x84858687);
    wire_put_u64(&b, 0x88898a8b8c8d8e8f);
    wire_put_bytes(&b, slice_of("a\0b", 3));
    wire_put_bytes(&b, slice_of(NULL, 0));
}

START_TEST(bytes_are_little_endian) {
    put_all();
    static const char want[] = "\x81\x83\x82\x87\x86\x85\x84\x8f\x8e\x8d\x8c\x8b\x8a\x89\x88\3\0\0\0a\0b\0\0\0\0";
    ck_assert(slice_equal(buf_slice(&b), slice_of(want, sizeof want - 1)));
}
END_TEST

START_TEST(what_is_put_comes_out) {
    put_all();
    struct wire w = wire_of(buf_slice(&b));
    ck_assert_uint_eq(wire_u8(&w), 0x81);
    ck_assert_uint_eq(wire_u16(&w), 0x8283);
    ck_assert_uint_eq(wire_u32(&w), 0x84858687);
    ck_assert_uint_eq(wire_u64(&w), 0x88898a8b8c8d8e8f);
    ck_assert(!wire_done(&w));
    const struct slice borrowed = wire_bytes(&w);
    ck_assert(slice_equal(borrowed, slice_of("a\0b", 3)));
    ck_assert_ptr_eq(borrowed.data, b.data + 19);
    ck_assert_uint_eq(wire_bytes(&w).bytes, 0);
    ck_assert(wire_done(&w));
    ck_assert_uint_eq(wire_u8(&w), 0); /* past the end */
    ck_assert(w.bad && !wire_done(&w));
}
END_TEST

/* However much is missing: no read past the end, and done says so. */
START_TEST(any_cut_is_noticed) {
    put_all();
    for (size_t bytes = 0; bytes < b.bytes; bytes++) {
        char *exact = malloc(bytes + (bytes == 0)); /* so that a sanitizer sees one byte too many */
        if (bytes > 0) memcpy(exact, b.data, bytes);
        struct wire w = wire_of(slice_of(exact, bytes));
        wire_u8(&w), wire_u16(&w), wire_u32(&w), wire_u64(&w), wire_bytes(&w), wire_bytes(&w);
        ck_assert(w.bad && !wire_done(&w));
        free(exact);
    }
}
END_TEST

START_TEST(after_one_bad_read_all_is_zero) {
    wire_put_u32(&b, 0xffffffff); /* a length that is not there */
    wire_put_u64(&b, 1);
    struct wire w = wire_of(buf_slice(&b));
    const struct slice s = wire_bytes(&w);
    ck_assert(s.bytes == 0 && s.data == NULL && w.bad);
    ck_assert_uint_eq(wire_u64(&w), 0);
    ck_assert_uint_eq(wire_bytes(&w).bytes, 0);
}
END_TEST

START_TEST(nothing_is_nothing) {
    struct wire w = wire_of(slice_of(NULL, 0));
    ck_assert(wire_done(&w));
    ck_assert_uint_eq(wire_u8(&w), 0);
    ck_assert(w.bad);
}
END_TEST

int main(void) {
    Suite *s = suite_create("wire");
    TCase *tc = tcase_create("wire");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, bytes_are_little_endian);
    tcase_add_test(tc, what_is_put_comes_out);
    tcase_add_test(tc, any_cut_is_noticed);
    tcase_add_test(tc, after_one_bad_read_all_is_zero);
    tcase_add_test(tc, nothing_is_nothing);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
