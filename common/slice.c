#include "common/slice.h"

bool slice_is_word(struct slice s, const char *upper) {
    for (size_t i = 0; i < s.bytes; i++) {
        char c = s.data[i];
        if (c >= 'a' && c <= 'z') c = (char)(c - 'a' + 'A');
        if (c == '\0' || c != upper[i]) return false;
    }
    return upper[s.bytes] == '\0';
}

bool slice_to_u64(struct slice s, uint64_t *ret_value) {
    if (s.bytes == 0 || s.bytes > 20) return false;
    if (s.data[0] == '0' && s.bytes > 1) return false;
    uint64_t value = 0;
    for (size_t i = 0; i < s.bytes; i++) {
        if (s.data[i] < '0' || s.data[i] > '9') return false;
        const uint64_t digit = (uint64_t)(s.data[i] - '0');
        if (value > (UINT64_MAX - digit) / 10) return false;
        value = value * 10 + digit;
    }
    *ret_value = value;
    return true;
}

bool slice_to_i64(struct slice s, int64_t *ret_value) {
    const bool negative = s.bytes > 0 && s.data[0] == '-';
    uint64_t magnitude;
    if (!slice_to_u64(negative ? slice_of(s.data + 1, s.bytes - 1) : s, &magnitude)) return false;
    if (negative) {
        if (magnitude == 0 || magnitude > (uint64_t)INT64_MAX + 1) return false;
        *ret_value = magnitude == (uint64_t)INT64_MAX + 1 ? INT64_MIN : -(int64_t)magnitude;
    } else {
        if (magnitude > (uint64_t)INT64_MAX) return false;
        *ret_value = (int64_t)magnitude;
    }
    return true;
}
