/* key.h - the session key in the first bytes of a connection.
 *
 * Place in the flow:  client's first bytes -> [key] -> bindings
 *
 * Rules are an ordered list, and the first that matches wins.  A rule is asked until it has matched or can match no
 * more, and only then the one behind it; so the same bytes give the same key however they are cut into packets.  Line
 * rules that stand together are asked together: complete lines are taken one after the other, and on each the first
 * of them that matches wins.
 *
 *   source-ip       the client's address; needs no byte
 *   line            a regular expression on each line
 *   bytes           so many bytes from a place on
 *   http-...        a field, a cookie, a query parameter, or a regular expression on the path of the first HTTP/1
 *                   request (RFC 9112; cookies RFC 6265); bytes as sent, nothing is decoded
 *   sni             the server name in a TLS ClientHello (RFC 6066, section 3)
 *   mqtt-client-id  of an MQTT CONNECT, versions 3.1, 3.1.1 and 5
 *
 * Bytes that are not of a rule's protocol end that rule at once, so a list can serve several protocols on one port.
 *
 * Pure: the regular expressions themselves come in as functions, because regexec(3) allocates.
 *
 * What always holds:
 *   K1  A key has 1..KEY_BYTES_MAX bytes.  A longer match is refused, never cut: two cut keys could be equal.
 *   K2  Work is linear in the bytes, also when they come one by one: no line is looked at twice by one rule, and the
 *       binary protocols are parsed once, when all they announce is there. */
#pragma once
#include "common/must.h"
#include "common/slice.h"

enum { KEY_RULES_MAX = 16, KEY_BYTES_MAX = 255, KEY_NAME_BYTES = 64, KEY_HEAD_BYTES_MAX = 65536 };

/* Does `text` (a line without its end, a path) match?  Then *ret_key is the key, inside `text`. */
typedef bool key_match_fn(const void *context, struct slice text, struct slice *ret_key);

/* KIND(NAME, "name", " ARGUMENT", what it is): the words of a configuration. */
#define KEY_KINDS(KIND)                                                                                                \
    KIND(SOURCE_IP, "source-ip", "", "the client's address")                                                           \
    KIND(LINE, "line", " REGEX", "its first group, or the whole match, in the first line that matches")                \
    KIND(BYTES, "bytes", " OFFSET LENGTH", "these bytes")                                                              \
    KIND(HTTP_HEADER, "http-header", " NAME", "that field of the first HTTP/1 request")                                \
    KIND(HTTP_COOKIE, "http-cookie", " NAME", "that cookie of the first HTTP/1 request")                               \
    KIND(HTTP_QUERY, "http-query", " NAME", "that parameter in the target of the first HTTP/1 request")                \
    KIND(HTTP_PATH, "http-path", " REGEX", "its first group, or the whole match, in the path of that request")         \
    KIND(SNI, "sni", "", "the server name that a TLS client asks for")                                                 \
    KIND(MQTT_CLIENT_ID, "mqtt-client-id", "", "the client id of an MQTT CONNECT")

enum key_kind {
#define KIND(NAME, name, argument, what) KEY_##NAME,
    KEY_KINDS(KIND)
#undef KIND
};
struct key_rule {
    enum key_kind kind;
    key_match_fn *match;       /* LINE, HTTP_PATH */
    const void *context;       /* for match; outlives the rule */
    char name[KEY_NAME_BYTES]; /* HTTP_HEADER (in any case), HTTP_COOKIE, HTTP_QUERY */
    uint32_t offset, length;   /* BYTES; length 1..KEY_BYTES_MAX */
};
struct key_config {
    struct key_rule rules[KEY_RULES_MAX];
    uint32_t rule_count; /* 1..KEY_RULES_MAX */
    uint32_t bytes_max;  /* of the head: after so many bytes without a match no rule that reads them can match */
};

/* How far the rules have come with one connection.  Zero at its beginning. */
struct key_scan {
    uint32_t rule; /* is being asked; those before it cannot match any more */
    size_t at;     /* and has looked at so many bytes */
};

/* NEED_MORE: read on.  FOUND: *ret_key, inside `head` or `source_ip`.  NONE: no rule matches and none can.
 * TOO_LONG: a rule matched, but more than KEY_BYTES_MAX bytes. */
enum key_verdict { KEY_NEED_MORE, KEY_FOUND, KEY_NONE, KEY_TOO_LONG };

/* `head`: everything the client has sent so far, which is longer at each call.  `ended`: nothing more will come or may
 * be waited for.  source_ip may be empty: not known. */
NODISCARD enum key_verdict key_find(const struct key_config *config, struct slice head, bool ended,
                                    struct slice source_ip, struct key_scan *scan, struct slice *ret_key);
/* True when the key is known without a byte from the client: the first rule is source-ip. */
static inline bool key_needs_no_bytes(const struct key_config *config) {
    return config->rules[0].kind == KEY_SOURCE_IP;
}
