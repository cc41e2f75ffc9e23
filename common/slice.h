/* slice.h - borrowed bytes: a pointer and a length, nothing owned.
 *
 * A slice argument is read during the call only, unless the function says otherwise. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct slice {
    const char *data; /* may be NULL only if bytes == 0 */
    size_t bytes;
};

static inline struct slice slice_of(const void *data, size_t bytes) {
    return (struct slice){.data = (const char *)data, .bytes = bytes};
}
static inline struct slice slice_str(const char *text) {
    return slice_of(text, strlen(text));
}
static inline bool slice_equal(struct slice a, struct slice b) {
    return a.bytes == b.bytes && (a.bytes == 0 || memcmp(a.data, b.data, a.bytes) == 0);
}
/* ASCII only, no locale: what the Redis protocol means by "any case".  `upper` is in capitals. */
bool slice_is_word(struct slice s, const char *upper);

/* Decimal, the whole slice, no space, no leading plus; false when it is not an integer of that type.  This is the
 * rule of Redis' string2ll: no leading zeros except "0" itself. */
bool slice_to_i64(struct slice s, int64_t *ret_value);
bool slice_to_u64(struct slice s, uint64_t *ret_value);
