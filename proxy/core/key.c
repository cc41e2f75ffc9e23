#include "proxy/core/key.h"
#include "proxy/core/key_rules.h"

static bool is_line(const struct key_config *config, uint32_t rule) {
    return rule < config->rule_count && config->rules[rule].kind == KEY_LINE;
}

/* The line rules that begin with scan->rule.  An empty capture is no match (K1). */
static enum key_verdict key_line(const struct key_config *config, struct slice head, struct key_scan *scan,
                                 struct slice *ret_key) {
    struct slice line;
    while (key_next_line(head, &scan->at, &line)) {
        for (uint32_t r = scan->rule; is_line(config, r); r++)
            if (config->rules[r].match(config->rules[r].context, line, ret_key) && ret_key->bytes > 0) return KEY_FOUND;
    }
    return KEY_NEED_MORE;
}

static enum key_verdict key_bytes(const struct key_rule *rule, struct slice head, struct slice *ret_key) {
    if (head.bytes < (size_t)rule->offset + rule->length) return KEY_NEED_MORE;
    *ret_key = slice_of(head.data + rule->offset, rule->length);
    return KEY_FOUND;
}

static enum key_verdict ask(const struct key_config *config, struct slice head, struct slice source_ip,
                            struct key_scan *scan, struct slice *ret_key) {
    const struct key_rule *rule = &config->rules[scan->rule];
    switch (rule->kind) {
    case KEY_SOURCE_IP: *ret_key = source_ip; return KEY_FOUND;
    case KEY_LINE: return key_line(config, head, scan, ret_key);
    case KEY_BYTES: return key_bytes(rule, head, ret_key);
    case KEY_HTTP_HEADER:
    case KEY_HTTP_COOKIE:
    case KEY_HTTP_QUERY:
    case KEY_HTTP_PATH: return key_http(rule, head, &scan->at, ret_key);
    case KEY_SNI: return key_sni(head, ret_key);
    case KEY_MQTT_CLIENT_ID: return key_mqtt(head, ret_key);
    }
    return KEY_NONE;
}

enum key_verdict key_find(const struct key_config *config, struct slice head, bool ended, struct slice source_ip,
                          struct key_scan *scan, struct slice *ret_key) {
    must(config->rule_count >= 1 && config->rule_count <= KEY_RULES_MAX);
    const struct slice usable = slice_of(head.data, head.bytes < config->bytes_max ? head.bytes : config->bytes_max);
    const bool whole = ended || head.bytes >= config->bytes_max;
    must(scan->at <= usable.bytes);
    while (scan->rule < config->rule_count) {
        struct slice key;
        const enum key_verdict verdict = ask(config, usable, source_ip, scan, &key);
        if (verdict == KEY_FOUND && key.bytes > KEY_BYTES_MAX) return KEY_TOO_LONG;
        if (verdict == KEY_FOUND && key.bytes > 0) {
            *ret_key = key;
            return KEY_FOUND;
        }
        if (verdict == KEY_NEED_MORE && !whole) return KEY_NEED_MORE;
        if (config->rules[scan->rule].kind == KEY_SOURCE_IP) return KEY_NONE; /* not known; what is behind never wins */
        for (scan->rule++; is_line(config, scan->rule - 1) && is_line(config, scan->rule);) scan->rule++;
        scan->at = 0;
    }
    return KEY_NONE;
}
