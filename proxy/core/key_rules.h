/* key_rules.h - one function per protocol, for key.c.
 *
 * Each is called with more and more of the same head until it says something else than NEED_MORE.  An empty key may be
 * found; key.c takes it for none. */
#pragma once
#include "proxy/core/key.h"

/* `at` as in struct key_scan: lines before it are done with. */
enum key_verdict key_http(const struct key_rule *rule, struct slice head, size_t *at, struct slice *ret_key);
enum key_verdict key_sni(struct slice head, struct slice *ret_key);
enum key_verdict key_mqtt(struct slice head, struct slice *ret_key);

/* The next whole line, without its end; *at moves behind it.  False: there is none yet. */
static inline bool key_next_line(struct slice head, size_t *at, struct slice *ret_line) {
    const char *start = head.data + *at;
    const char *end = *at < head.bytes ? (const char *)memchr(start, '\n', head.bytes - *at) : NULL;
    if (end == NULL) return false;
    *ret_line = slice_of(start, (size_t)(end - start));
    *at += ret_line->bytes + 1;
    if (ret_line->bytes > 0 && ret_line->data[ret_line->bytes - 1] == '\r') ret_line->bytes--;
    return true;
}
