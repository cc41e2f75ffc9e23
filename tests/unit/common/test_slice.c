/* Numbers and words as the Redis protocol reads them (slice.h). */
#include <check.h>
#include <stdlib.h>
#include "common/slice.h"

static const struct {
    const char *text;
    bool is_i64;
    int64_t i64;
    bool is_u64;
    uint64_t u64;
} numbers[] = {
    {"0", true, 0, true, 0},
    {"7", true, 7, true, 7},
    {"-7", true, -7, false, 0},
    {"9223372036854775807", true, INT64_MAX, true, INT64_MAX},
    {"9223372036854775808", false, 0, true, (uint64_t)INT64_MAX + 1},
    {"-9223372036854775808", true, INT64_MIN, false, 0},
    {"-9223372036854775809", false, 0, false, 0},
    {"18446744073709551615", false, 0, true, UINT64_MAX},
    {"18446744073709551616", false, 0, false, 0},
    {"-18446744073709551615", false, 0, false, 0},
    {"99999999999999999999", false, 0, false, 0},
    {"100000000000000000000", false, 0, false, 0}, /* 21 digits */
    {"", false, 0, false, 0},
    {"-", false, 0, false, 0},
    {"--1", false, 0, false, 0},
    {"-0", false, 0, false, 0},
    {"00", false, 0, false, 0},
    {"01", false, 0, false, 0},
    {"-01", false, 0, false, 0},
    {"+1", false, 0, false, 0},
    {" 1", false, 0, false, 0},
    {"1 ", false, 0, false, 0},
    {"1x", false, 0, false, 0},
    {"0x1", false, 0, false, 0},
    {"1e3", false, 0, false, 0},
    {"\xb1", false, 0, false, 0}, /* not an ASCII digit */
};
START_TEST(a_number_is_read_whole_or_not_at_all) {
    const struct slice s = slice_str(numbers[_i].text);
    int64_t i64 = -77;
    uint64_t u64 = 77;
    ck_assert_msg(slice_to_i64(s, &i64) == numbers[_i].is_i64, "i64 of '%s'", numbers[_i].text);
    ck_assert_msg(slice_to_u64(s, &u64) == numbers[_i].is_u64, "u64 of '%s'", numbers[_i].text);
    ck_assert_int_eq(i64, numbers[_i].is_i64 ? numbers[_i].i64 : -77); /* untouched on failure */
    ck_assert_uint_eq(u64, numbers[_i].is_u64 ? numbers[_i].u64 : 77);
}
END_TEST

START_TEST(a_number_may_be_followed_by_anything) {
    uint64_t u64;
    int64_t i64;
    ck_assert(slice_to_u64(slice_of("12345", 3), &u64) && u64 == 123);
    ck_assert(slice_to_i64(slice_of("-12345", 3), &i64) && i64 == -12);
    ck_assert(!slice_to_i64(slice_of("1\0", 2), &i64));
    ck_assert(!slice_to_u64(slice_of(NULL, 0), &u64));
}
END_TEST

static const struct {
    const char *text, *upper;
    bool want;
} words[] = {
    {"GET", "GET", true},
    {"gEt", "GET", true},
    {"GE", "GET", false},
    {"GETS", "GET", false},
    {"", "", true},
    {"", "GET", false},
    {"G_T", "G_T", true},
    {"g\x1ft", "G?T", false},
    {"[", "{", false},
    {"{", "[", false},
    {"route.get", "ROUTE.GET", true},
    {"\xe4", "\xc4", false}, /* no locale */
};
START_TEST(a_word_is_the_same_in_any_case) {
    ck_assert_msg(slice_is_word(slice_str(words[_i].text), words[_i].upper) == words[_i].want, "'%s' is '%s'",
                  words[_i].text, words[_i].upper);
}
END_TEST

START_TEST(a_nul_ends_no_word) {
    ck_assert(!slice_is_word(slice_of("GET\0", 4), "GET"));
    ck_assert(!slice_is_word(slice_of("GET\0X", 5), "GET"));
    ck_assert(slice_is_word(slice_of(NULL, 0), ""));
}
END_TEST

START_TEST(equal_means_the_same_bytes) {
    ck_assert(slice_equal(slice_of("a\0b", 3), slice_of("a\0b", 3)));
    ck_assert(!slice_equal(slice_of("a\0b", 3), slice_of("a\0c", 3)));
    ck_assert(!slice_equal(slice_str("a"), slice_str("ab")));
    ck_assert(slice_equal(slice_of(NULL, 0), slice_str("")));
}
END_TEST

int main(void) {
    Suite *s = suite_create("slice");
    TCase *tc = tcase_create("slice");
    tcase_add_loop_test(tc, a_number_is_read_whole_or_not_at_all, 0, sizeof numbers / sizeof numbers[0]);
    tcase_add_test(tc, a_number_may_be_followed_by_anything);
    tcase_add_loop_test(tc, a_word_is_the_same_in_any_case, 0, sizeof words / sizeof words[0]);
    tcase_add_test(tc, a_nul_ends_no_word);
    tcase_add_test(tc, equal_means_the_same_bytes);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
