/* The first bytes of any client: the key is the same however they are cut into packets, lies inside them, and has a
 * good length.  The first byte of an input chooses the rules and the size of the packets. */
#include <stdlib.h>
#include "proxy/core/key.h"
#include "tests/fuzz/fuzz.h"

/* Stands in for a regular expression: the word behind the first blank. */
static bool second_word(const void *context, struct slice text, struct slice *ret_key) {
    (void)context;
    const char *blank = text.bytes > 0 ? (const char *)memchr(text.data, ' ', text.bytes) : NULL;
    if (blank == NULL) return false;
    *ret_key = slice_of(blank + 1, text.bytes - (size_t)(blank + 1 - text.data));
    return true;
}

#define ONE(...)                                                                                                       \
    { {{__VA_ARGS__}}, 1, 600 }
static const struct key_config configs[] = {
    ONE(.kind = KEY_LINE, .match = second_word),
    ONE(.kind = KEY_BYTES, .offset = 3, .length = 5),
    ONE(.kind = KEY_HTTP_HEADER, .name = "X-User"),
    ONE(.kind = KEY_HTTP_COOKIE, .name = "sid"),
    ONE(.kind = KEY_HTTP_QUERY, .name = "room"),
    ONE(.kind = KEY_HTTP_PATH, .match = second_word),
    ONE(.kind = KEY_SNI),
    ONE(.kind = KEY_MQTT_CLIENT_ID),
    {{{.kind = KEY_SNI},
      {.kind = KEY_MQTT_CLIENT_ID},
      {.kind = KEY_HTTP_COOKIE, .name = "sid"},
      {.kind = KEY_HTTP_PATH, .match = second_word},
      {.kind = KEY_LINE, .match = second_word},
      {.kind = KEY_BYTES, .offset = 3, .length = 5},
      {.kind = KEY_SOURCE_IP}},
     7,
     600},
};
enum { CONFIGS = sizeof configs / sizeof configs[0] };

/* In packets of `step` bytes, each time in memory of its own, so that a sanitizer sees a byte too far. */
static enum key_verdict find(const struct key_config *config, const uint8_t *data, size_t bytes, size_t step,
                             char key[KEY_BYTES_MAX], size_t *ret_bytes) {
    struct key_scan scan = {0};
    enum key_verdict verdict = KEY_NEED_MORE;
    static const char source[] = "10.0.0.1";
    for (size_t have = 0; verdict == KEY_NEED_MORE && have <= bytes; have += step) {
        const size_t now = bytes - have < step ? bytes : have + step;
        char *head = malloc(now + (now == 0));
        must(head != NULL);
        if (now > 0) memcpy(head, data, now);
        struct slice found = {0};
        verdict = key_find(config, slice_of(head, now), now == bytes, slice_str(source), &scan, &found);
        if (verdict == KEY_FOUND) {
            must(found.bytes >= 1 && found.bytes <= KEY_BYTES_MAX);
            must(found.data == source || (found.data >= head && found.data + found.bytes <= head + now));
            memcpy(key, found.data, *ret_bytes = found.bytes);
        }
        free(head);
        if (now == bytes) break;
    }
    must(verdict != KEY_NEED_MORE);
    return verdict;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    if (bytes < 2 || bytes > 2000) return 0;
    const struct key_config *config = &configs[data[0] % CONFIGS];
    char keys[2][KEY_BYTES_MAX];
    size_t key_bytes[2] = {0};
    const enum key_verdict at_once = find(config, data + 2, bytes - 2, bytes, keys[0], &key_bytes[0]);
    const enum key_verdict in_parts = find(config, data + 2, bytes - 2, 1 + data[1] % 64, keys[1], &key_bytes[1]);
    must(at_once == in_parts);
    must(key_bytes[0] == key_bytes[1] && memcmp(keys[0], keys[1], key_bytes[0]) == 0);
    return 0;
}
