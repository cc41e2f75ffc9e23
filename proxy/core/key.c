#include "proxy/core/key.h"

static enum key_verdict verdict_of(struct slice key, struct slice *ret_key) {
    if (key.bytes > KEY_BYTES_MAX) return KEY_TOO_LONG;
    *ret_key = key;
    return KEY_FOUND;
}

/* The line rules from the first up to `limit`, on one line.  An empty capture is no match (K1). */
static bool line_matches(const struct key_config *config, uint32_t limit, struct slice line, struct slice *ret_key) {
    for (uint32_t r = 0; r < limit; r++) {
        must(config->rules[r].kind == KEY_LINE);
        if (config->rules[r].match(config->rules[r].context, line, ret_key) && ret_key->bytes > 0) return true;
    }
    return false;
}

enum key_verdict key_find(const struct key_config *config, struct slice head, bool ended, struct slice source_ip,
                          size_t *scanned, struct slice *ret_key) {
    must(config->rule_count >= 1 && config->rule_count <= KEY_RULES_MAX);
    must(*scanned <= head.bytes);
    uint32_t limit = 0; /* rules behind a source-ip rule can never win */
    while (limit < config->rule_count && config->rules[limit].kind != KEY_SOURCE_IP) limit++;
    const bool has_source_ip = limit < config->rule_count && source_ip.bytes > 0;
    if (limit == 0) return has_source_ip ? verdict_of(source_ip, ret_key) : KEY_NONE;

    const size_t usable = head.bytes < config->bytes_max ? head.bytes : config->bytes_max;
    while (*scanned < usable) {
        const char *start = head.data + *scanned;
        const char *end = memchr(start, '\n', usable - *scanned);
        if (end == NULL) break;
        struct slice line = slice_of(start, (size_t)(end - start)), key;
        *scanned += line.bytes + 1;
        if (line.bytes > 0 && line.data[line.bytes - 1] == '\r') line.bytes--;
        if (line_matches(config, limit, line, &key)) return verdict_of(key, ret_key);
    }
    if (!ended && head.bytes < config->bytes_max) return KEY_NEED_MORE;
    return has_source_ip ? verdict_of(source_ip, ret_key) : KEY_NONE;
}
