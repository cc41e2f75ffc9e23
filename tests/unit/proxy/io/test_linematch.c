/* Regular expressions of key rules: which part of a line is the key, and what is refused as an expression. */
#include <check.h>
#include <stdlib.h>
#include "proxy/io/linematch.h"

static const struct {
    const char *pattern, *line, *key; /* key NULL: no match */
} rows[] = {
    {"^JOIN ([^ ]+)", "JOIN lobby ann", "lobby"},
    {"^JOIN ([^ ]+)", "join lobby ann", NULL},
    {"[0-9]+", "table 42, seat 7", "42"},
    {"^(GET|PUT) ", "PUT /x", "PUT"},
    {"a(x)?b", "zab", "ab"}, /* the group took no part: the whole match */
    {"^USER (.*)$", "USER ", ""},
    {"^$", "", ""},
    {"\\.b", "a.b", ".b"},
};
START_TEST(a_match) {
    struct linematch *m = NULL;
    char error[128];
    struct slice key;
    ck_assert_int_eq(linematch_new(rows[_i].pattern, &m, error, sizeof error), 0);
    const bool found = linematch_find(m, slice_str(rows[_i].line), &key);
    ck_assert(found == (rows[_i].key != NULL));
    if (found) ck_assert(slice_equal(key, slice_str(rows[_i].key)));
    linematch_free(m);
}
END_TEST

/* The key points into the line that was given; a line is bytes. */
START_TEST(the_key_is_inside_the_line) {
    static const char bytes[] = "id=a\0b;rest";
    struct linematch *m = NULL;
    char error[128];
    struct slice key;
    ck_assert_int_eq(linematch_new("^id=([^;]+);", &m, error, sizeof error), 0);
    ck_assert(linematch_find(m, slice_of(bytes, sizeof bytes - 1), &key));
    ck_assert_ptr_eq(key.data, bytes + 3);
    ck_assert_uint_eq(key.bytes, 3);
    ck_assert(!linematch_find(m, slice_of(bytes, 5), &key)); /* what lies behind it is not looked at */
    linematch_free(m);
}
END_TEST

static const char *const bad[] = {"(", "[a", "a{2", "*a\\", "(a)\\1", "x\\9"};
START_TEST(a_bad_expression) {
    struct linematch *m = NULL;
    char error[128] = "";
    ck_assert_int_eq(linematch_new(bad[_i], &m, error, sizeof error), -1);
    ck_assert(m == NULL && error[0] != '\0');
}
END_TEST

int main(void) {
    Suite *s = suite_create("linematch");
    TCase *tc = tcase_create("linematch");
    tcase_add_loop_test(tc, a_match, 0, sizeof rows / sizeof rows[0]);
    tcase_add_test(tc, the_key_is_inside_the_line);
    tcase_add_loop_test(tc, a_bad_expression, 0, sizeof bad / sizeof bad[0]);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
