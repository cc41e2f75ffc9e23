/* key.h - the session key in the first bytes of a connection.
 *
 * Place in the flow:  client's first bytes -> [key] -> bindings
 *
 * Rules are an ordered list.  Complete lines are taken one after the other; on each line the line rules are tried in
 * their order and the first that matches wins.  A source-ip rule matches once no line rule before it can match any
 * more: at once if there is none before it, else when the bytes or the time for the head are used up or the
 * client has ended.  So the same bytes give the same key however they are cut into packets.
 *
 * Pure: the regular expressions themselves come in as functions, because regexec(3) allocates.
 *
 * What always holds:
 *   K1  A key has 1..KEY_BYTES_MAX bytes.  A longer match is refused, never cut: two cut keys could be equal.
 *   K2  No line is matched twice (`scanned`), so a client that sends byte by byte costs no more expressions. */
#pragma once
#include "common/must.h"
#include "common/slice.h"

enum { KEY_RULES_MAX = 16, KEY_BYTES_MAX = 255 };

/* Does `line` (without its end) match?  Then *ret_key is the key, inside `line`. */
typedef bool key_match_fn(const void *context, struct slice line, struct slice *ret_key);

enum key_kind { KEY_SOURCE_IP, KEY_LINE };
struct key_rule {
    enum key_kind kind;
    key_match_fn *match; /* KEY_LINE only */
    const void *context; /* for match; outlives the rule */
};
struct key_config {
    struct key_rule rules[KEY_RULES_MAX];
    uint32_t rule_count; /* 1..KEY_RULES_MAX */
    uint32_t bytes_max;  /* of the head: after so many bytes without a match no line rule can match */
};

/* NEED_MORE: read on.  FOUND: *ret_key, inside `head` or `source_ip`.  NONE: no rule matches and none can.
 * TOO_LONG: a rule matched, but more than KEY_BYTES_MAX bytes. */
enum key_verdict { KEY_NEED_MORE, KEY_FOUND, KEY_NONE, KEY_TOO_LONG };

/* `head`: everything the client has sent so far.  `ended`: nothing more will come or may be waited for.
 * *scanned starts at 0 and is kept between the calls of one connection. */
NODISCARD enum key_verdict key_find(const struct key_config *config, struct slice head, bool ended,
                                    struct slice source_ip, size_t *scanned, struct slice *ret_key);
/* True when the key is known without a byte from the client: the first rule is source-ip. */
static inline bool key_needs_no_bytes(const struct key_config *config) {
    return config->rules[0].kind == KEY_SOURCE_IP;
}
