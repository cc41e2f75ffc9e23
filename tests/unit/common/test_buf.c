/* A buf keeps what was appended, wherever its memory moves, and gives all of it back (buf.h, alloc.h, heap.h). */
#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include "common/buf.h"
#include "common/io/heap.h"

START_TEST(appended_bytes_stay_while_it_grows) {
    const size_t before = heap_bytes_in_use();
    struct buf b = {.alloc = heap_alloc()};
    for (int i = 0; i < 10000; i++) {
        const char c = (char)(i * 7);
        buf_append(&b, &c, 1);
        ck_assert_uint_le(b.bytes, b.capacity);
    }
    ck_assert_uint_eq(b.bytes, 10000);
    for (int i = 0; i < 10000; i++) ck_assert_int_eq(b.data[i], (char)(i * 7));
    buf_release(&b);
    ck_assert_uint_eq(heap_bytes_in_use(), before);
    buf_append_str(&b, "again"); /* it may be used again */
    ck_assert(slice_equal(buf_slice(&b), slice_str("again")));
    buf_release(&b);
    buf_release(&b); /* nothing to give back is fine */
    ck_assert_uint_eq(heap_bytes_in_use(), before);
}
END_TEST

START_TEST(reserve_promises_room_and_changes_nothing) {
    struct buf b = {.alloc = heap_alloc()};
    buf_append_str(&b, "ab");
    char *at = buf_reserve(&b, 1000);
    ck_assert_ptr_eq(at, b.data + 2);
    ck_assert_uint_eq(b.bytes, 2);
    ck_assert_uint_ge(b.capacity, 1002);
    memset(at, 'x', 1000);
    const char *data = b.data;
    ck_assert_ptr_eq(buf_reserve(&b, 1000), at); /* it is there already */
    ck_assert_ptr_eq(b.data, data);
    buf_release(&b);
}
END_TEST

START_TEST(clear_keeps_the_memory) {
    struct buf b = {.alloc = heap_alloc()};
    buf_append_str(&b, "some text");
    const char *data = b.data;
    buf_clear(&b);
    ck_assert_uint_eq(b.bytes, 0);
    ck_assert_uint_eq(buf_slice(&b).bytes, 0);
    buf_append(&b, NULL, 0);
    buf_append_slice(&b, slice_of(NULL, 0));
    buf_append_str(&b, "");
    ck_assert_uint_eq(b.bytes, 0);
    buf_append_slice(&b, slice_str("text"));
    ck_assert_ptr_eq(b.data, data);
    buf_release(&b);
}
END_TEST

START_TEST(printf_appends_and_cuts_at_1023) {
    struct buf b = {.alloc = heap_alloc()};
    buf_append_str(&b, "x");
    buf_printf(&b, "%s=%d", "a", -1);
    ck_assert(slice_equal(buf_slice(&b), slice_str("xa=-1")));
    buf_clear(&b);
    buf_printf(&b, "%1023s", "y");
    ck_assert_uint_eq(b.bytes, 1023);
    ck_assert_int_eq(b.data[1022], 'y');
    buf_clear(&b);
    buf_printf(&b, "%2000s", "y");
    ck_assert_uint_eq(b.bytes, 1023);
    ck_assert_int_eq(b.data[1022], ' ');
    buf_release(&b);
}
END_TEST

/* An allocator that fails: running out is fatal by design (alloc.h), never a NULL that travels on. */
static void *refuse(void *context, void *memory, size_t bytes) {
    (void)context, (void)memory, (void)bytes;
    return NULL;
}
START_TEST(running_out_stops) {
    const struct alloc none = {.resize = refuse};
    struct buf b = {.alloc = &none};
    buf_append_str(&b, "x");
}
END_TEST

int main(void) {
    Suite *s = suite_create("buf");
    TCase *tc = tcase_create("buf");
    tcase_add_test(tc, appended_bytes_stay_while_it_grows);
    tcase_add_test(tc, reserve_promises_room_and_changes_nothing);
    tcase_add_test(tc, clear_keeps_the_memory);
    tcase_add_test(tc, printf_appends_and_cuts_at_1023);
    const char *fork = getenv("CK_FORK");
    if (fork == NULL || strcmp(fork, "no") != 0) tcase_add_test_raise_signal(tc, running_out_stops, SIGABRT);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
