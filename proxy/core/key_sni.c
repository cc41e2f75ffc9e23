/* key_sni.c - the server name in a TLS ClientHello (RFC 8446, section 4.1.2; RFC 6066, section 3).
 *
 * The ClientHello is a handshake message in one or a few records.  Nothing is parsed before all of it is there. */
#include "proxy/core/key_rules.h"

enum {
    RECORD_HEAD_BYTES = 5,
    RECORD_BYTES_MAX = 16384,
    RECORDS_MAX = 8, /* a ClientHello in more pieces is not one of a real client */
    HANDSHAKE_RECORD = 22,
    CLIENT_HELLO = 1,
    SERVER_NAME = 0, /* the extension, and in it the type of a host name */
};

/* The message without the record heads between its bytes. */
struct message {
    struct slice parts[RECORDS_MAX];
    uint32_t part_count;
    size_t bytes; /* of all parts */
    size_t at;
    bool bad; /* somebody read beyond its end */
};

static uint8_t byte_of(struct slice s, size_t at) {
    return (uint8_t)s.data[at];
}

/* The next `bytes` bytes, or bad: there are not so many.  Empty if they are not in one piece. */
static struct slice take(struct message *m, size_t bytes) {
    if (m->bad || bytes > m->bytes - m->at) {
        m->bad = true;
        return slice_of(NULL, 0);
    }
    size_t before = m->at;
    m->at += bytes;
    for (uint32_t i = 0; i < m->part_count; i++) {
        if (before < m->parts[i].bytes) {
            if (bytes <= m->parts[i].bytes - before) return slice_of(m->parts[i].data + before, bytes);
            break;
        }
        before -= m->parts[i].bytes;
    }
    return slice_of(NULL, 0);
}
static size_t number(struct message *m, int bytes) {
    size_t value = 0;
    for (int i = 0; i < bytes; i++) {
        const struct slice one = take(m, 1);
        value = value << 8 | (one.bytes == 1 ? byte_of(one, 0) : 0);
    }
    return value;
}
/* NEED_MORE, NONE (no ClientHello), or FOUND: all of it is in `m`. */
static enum key_verdict gather(struct slice head, struct message *m) {
    size_t at = 0;
    while (m->part_count < RECORDS_MAX) {
        if (head.bytes > at && byte_of(head, at) != HANDSHAKE_RECORD) return KEY_NONE;
        if (head.bytes > at + 1 && byte_of(head, at + 1) != 3) return KEY_NONE;
        if (head.bytes < at + RECORD_HEAD_BYTES) return KEY_NEED_MORE;
        const size_t bytes = (size_t)byte_of(head, at + 3) << 8 | byte_of(head, at + 4);
        if (bytes == 0 || bytes > RECORD_BYTES_MAX) return KEY_NONE;
        at += RECORD_HEAD_BYTES;
        if (head.bytes > at && m->part_count == 0 && byte_of(head, at) != CLIENT_HELLO) return KEY_NONE;
        if (head.bytes < at + bytes) return KEY_NEED_MORE;
        m->parts[m->part_count++] = slice_of(head.data + at, bytes);
        m->bytes += bytes;
        at += bytes;
        if (m->bytes < 4) continue;
        m->at = 1;
        const size_t announced = number(m, 3);
        m->at = 0;
        if (m->bytes < 4 + announced) continue;
        m->bytes = 4 + announced;
        return KEY_FOUND;
    }
    return KEY_NONE;
}

enum key_verdict key_sni(struct slice head, struct slice *ret_key) {
    struct message m = {0};
    const enum key_verdict verdict = gather(head, &m);
    if (verdict != KEY_FOUND) return verdict;
    (void)take(&m, 4 + 2 + 32);    /* type, length, version, random */
    (void)take(&m, number(&m, 1)); /* session id */
    (void)take(&m, number(&m, 2)); /* cipher suites */
    (void)take(&m, number(&m, 1)); /* compression methods */
    const size_t extensions = number(&m, 2);
    if (m.bad || extensions > m.bytes - m.at) return KEY_NONE;
    m.bytes = m.at + extensions;
    while (!m.bad && m.at < m.bytes) {
        const size_t type = number(&m, 2), bytes = number(&m, 2);
        if (type != SERVER_NAME) {
            (void)take(&m, bytes);
            continue;
        }
        (void)take(&m, 2); /* of the list, which holds one host name */
        if (number(&m, 1) != SERVER_NAME || m.bad) return KEY_NONE;
        *ret_key = take(&m, number(&m, 2));
        return m.bad ? KEY_NONE : KEY_FOUND;
    }
    return KEY_NONE;
}
