/* key_mqtt.c - the client id of an MQTT CONNECT: 3.1 ("MQIsdp"), 3.1.1 and 5 ("MQTT"; OASIS, section 3.1). */
#include "proxy/core/key_rules.h"

enum { CONNECT = 0x10, LENGTH_BYTES_MAX = 4, VERSION_5 = 5 };

struct reader {
    struct slice bytes;
    size_t at;
    bool bad;
};

static struct slice take(struct reader *r, size_t bytes) {
    if (r->bad || bytes > r->bytes.bytes - r->at) {
        r->bad = true;
        return slice_of(NULL, 0);
    }
    r->at += bytes;
    return slice_of(r->bytes.data + r->at - bytes, bytes);
}
static size_t number(struct reader *r, size_t bytes) {
    const struct slice s = take(r, bytes);
    size_t value = 0;
    for (size_t i = 0; i < s.bytes; i++) value = value << 8 | (uint8_t)s.data[i];
    return value;
}
/* A variable byte integer; bad also when it goes on after its fourth byte. */
static size_t length(struct reader *r) {
    size_t value = 0;
    for (int i = 0; i < LENGTH_BYTES_MAX; i++) {
        const size_t byte = number(r, 1);
        value |= (byte & 0x7f) << (7 * i);
        if (byte < 0x80) return value;
    }
    r->bad = true;
    return 0;
}

enum key_verdict key_mqtt(struct slice head, struct slice *ret_key) {
    if (head.bytes > 0 && (uint8_t)head.data[0] != CONNECT) return KEY_NONE;
    struct reader r = {.bytes = head};
    (void)take(&r, 1);
    const size_t bytes = length(&r);
    if (r.bad) return head.bytes > LENGTH_BYTES_MAX ? KEY_NONE : KEY_NEED_MORE;
    /* A will may be long and comes behind the client id: the packet need not be here whole. */
    const bool whole = bytes <= head.bytes - r.at;
    if (whole) r.bytes.bytes = r.at + bytes;
    const struct slice protocol = take(&r, number(&r, 2));
    if (!r.bad && !slice_equal(protocol, slice_str("MQTT")) && !slice_equal(protocol, slice_str("MQIsdp")))
        return KEY_NONE;
    const size_t version = number(&r, 1);
    (void)take(&r, 1 + 2); /* flags, keep alive */
    if (version == VERSION_5) (void)take(&r, length(&r));
    const struct slice id = take(&r, number(&r, 2));
    if (r.bad) return whole ? KEY_NONE : KEY_NEED_MORE;
    *ret_key = id;
    return KEY_FOUND;
}
