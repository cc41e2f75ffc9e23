/* Session keys from first bytes.  Guards K1 and K2 of key.h and that packets make no difference. */
#include <check.h>
#include <stdlib.h>
#include "proxy/core/key.h"

/* A rule "the word after this prefix"; stands in for a regular expression. */
static bool after_prefix(const void *context, struct slice line, struct slice *ret_key) {
    const struct slice prefix = slice_str((const char *)context);
    if (line.bytes < prefix.bytes || memcmp(line.data, prefix.data, prefix.bytes) != 0) return false;
    *ret_key = slice_of(line.data + prefix.bytes, line.bytes - prefix.bytes);
    return true;
}

#define LINE(prefix)                                                                                                   \
    { .kind = KEY_LINE, .match = after_prefix, .context = (prefix) }
#define SOURCE                                                                                                         \
    { .kind = KEY_SOURCE_IP }
static const struct key_config lines_then_source = {{LINE("NICK "), LINE("USER "), SOURCE}, 3, 64};
static const struct key_config lines_only = {{LINE("NICK "), LINE("USER ")}, 2, 64};
static const struct key_config source_first = {{SOURCE, LINE("NICK ")}, 2, 64};

static const struct {
    const char *about;
    const struct key_config *config;
    const char *head;
    bool ended;
    enum key_verdict want;
    const char *key;
} rows[] = {
    {"a whole line", &lines_only, "NICK anna\n", false, KEY_FOUND, "anna"},
    {"its carriage return is not part of it", &lines_only, "NICK anna\r\n", false, KEY_FOUND, "anna"},
    {"half a line is no line", &lines_only, "NICK ann", false, KEY_NEED_MORE, NULL},
    {"not even at the end", &lines_only, "NICK ann", true, KEY_NONE, NULL},
    {"an earlier line wins over an earlier rule", &lines_only, "USER u\nNICK anna\n", false, KEY_FOUND, "u"},
    {"lines that match nothing are passed over", &lines_only, "CAP LS\n\nNICK anna\n", false, KEY_FOUND, "anna"},
    {"an empty match is none", &lines_only, "NICK \nUSER u\n", false, KEY_FOUND, "u"},
    {"source-ip waits for the lines", &lines_then_source, "CAP LS\n", false, KEY_NEED_MORE, NULL},
    {"source-ip at the end", &lines_then_source, "CAP LS\n", true, KEY_FOUND, "10.0.0.1"},
    {"source-ip when the bytes are used up", &lines_then_source,
     "0123456789012345678901234567890123456789012345678901234567890123", false, KEY_FOUND, "10.0.0.1"},
    {"a line over the limit is none", &lines_then_source,
     "01234567890123456789012345678901234567890123456789012\nNICK anna-is-cut\n", false, KEY_FOUND, "10.0.0.1"},
    {"source-ip first needs no bytes", &source_first, "", false, KEY_FOUND, "10.0.0.1"},
    {"source-ip first hides the rest", &source_first, "NICK anna\n", false, KEY_FOUND, "10.0.0.1"},
};

static void check_row(int row, size_t step) {
    const struct slice head = slice_str(rows[row].head);
    size_t scanned = 0;
    enum key_verdict verdict = KEY_NEED_MORE;
    struct slice key = {0};
    for (size_t bytes = step < head.bytes ? step : head.bytes; verdict == KEY_NEED_MORE; bytes += step) {
        if (bytes > head.bytes) bytes = head.bytes;
        verdict = key_find(rows[row].config, slice_of(head.data, bytes), rows[row].ended && bytes == head.bytes,
                           slice_str("10.0.0.1"), &scanned, &key);
        if (bytes == head.bytes) break;
    }
    ck_assert_msg(verdict == rows[row].want, "%s (in steps of %zu): %d", rows[row].about, step, (int)verdict);
    if (rows[row].key != NULL) ck_assert_msg(slice_equal(key, slice_str(rows[row].key)), "%s", rows[row].about);
}

START_TEST(a_row_at_once) {
    check_row(_i, 1000);
}
END_TEST
START_TEST(a_row_byte_by_byte) {
    check_row(_i, 1);
}
END_TEST

/* K1: refused, not cut. */
START_TEST(too_long) {
    static char head[400] = "NICK ";
    const struct key_config config = {{LINE("NICK ")}, 1, sizeof head};
    size_t scanned = 0;
    struct slice key;
    memset(head + 5, 'a', KEY_BYTES_MAX + 1);
    head[5 + KEY_BYTES_MAX + 1] = '\n';
    ck_assert_int_eq(key_find(&config, slice_of(head, 5 + KEY_BYTES_MAX + 2), false, slice_str("x"), &scanned, &key),
                     KEY_TOO_LONG);
    head[5 + KEY_BYTES_MAX] = '\n';
    scanned = 0;
    ck_assert_int_eq(key_find(&config, slice_of(head, 5 + KEY_BYTES_MAX + 1), false, slice_str("x"), &scanned, &key),
                     KEY_FOUND);
    ck_assert_uint_eq(key.bytes, KEY_BYTES_MAX);
}
END_TEST

/* Bytes of value zero are bytes like others. */
START_TEST(zero_bytes) {
    size_t scanned = 0;
    struct slice key;
    ck_assert_int_eq(key_find(&lines_only, slice_of("\0\0\nNICK a\0b\n", 12), false, slice_str("x"), &scanned, &key),
                     KEY_FOUND);
    ck_assert(slice_equal(key, slice_of("a\0b", 3)));
}
END_TEST

/* A client of a local socket has no address: what only that could give is not found. */
START_TEST(without_an_address) {
    size_t scanned = 0;
    struct slice key;
    ck_assert_int_eq(key_find(&source_first, slice_str("NICK a\n"), false, slice_of(NULL, 0), &scanned, &key),
                     KEY_NONE);
    scanned = 0;
    ck_assert_int_eq(key_find(&lines_then_source, slice_str("CAP\n"), true, slice_of(NULL, 0), &scanned, &key),
                     KEY_NONE);
    scanned = 0;
    ck_assert_int_eq(key_find(&lines_then_source, slice_str("NICK a\n"), false, slice_of(NULL, 0), &scanned, &key),
                     KEY_FOUND);
}
END_TEST

int main(void) {
    Suite *s = suite_create("key");
    TCase *tc = tcase_create("key");
    tcase_add_loop_test(tc, a_row_at_once, 0, sizeof rows / sizeof rows[0]);
    tcase_add_loop_test(tc, a_row_byte_by_byte, 0, sizeof rows / sizeof rows[0]);
    tcase_add_test(tc, too_long);
    tcase_add_test(tc, zero_bytes);
    tcase_add_test(tc, without_an_address);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
