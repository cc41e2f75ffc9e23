/* Session keys from first bytes.  Guards K1 of key.h, and that packets make no difference. */
#include <check.h>
#include <stdlib.h>
#include "common/must.h"
#include "proxy/core/key.h"

/* A rule "the word after this prefix"; stands in for a regular expression. */
static bool after_prefix(const void *context, struct slice line, struct slice *ret_key) {
    const struct slice prefix = slice_str((const char *)context);
    if (line.bytes < prefix.bytes || memcmp(line.data, prefix.data, prefix.bytes) != 0) return false;
    *ret_key = slice_of(line.data + prefix.bytes, line.bytes - prefix.bytes);
    return true;
}

#define LINE(prefix)                                                                                                   \
    { .kind = KEY_LINE, .match = after_prefix, .context = (prefix) }
#define SOURCE                                                                                                         \
    { .kind = KEY_SOURCE_IP }
static const struct key_config lines_then_source = {{LINE("NICK "), LINE("USER "), SOURCE}, 3, 64};
static const struct key_config lines_only = {{LINE("NICK "), LINE("USER ")}, 2, 64};
static const struct key_config source_first = {{SOURCE, LINE("NICK ")}, 2, 64};

#define RULE(kind_, ...)                                                                                               \
    { {{.kind = KEY_##kind_, __VA_ARGS__}}, 1, 600 }
static const struct key_config bytes_4_to_6 = RULE(BYTES, .offset = 4, .length = 3);
static const struct key_config header = RULE(HTTP_HEADER, .name = "X-User");
static const struct key_config cookie = RULE(HTTP_COOKIE, .name = "sid");
static const struct key_config query = RULE(HTTP_QUERY, .name = "room");
static const struct key_config path = RULE(HTTP_PATH, .match = after_prefix, .context = "/r/");
static const struct key_config sni = RULE(SNI, );
static const struct key_config mqtt = RULE(MQTT_CLIENT_ID, );
static const struct key_config everything = {{{.kind = KEY_HTTP_COOKIE, .name = "sid"},
                                              {.kind = KEY_HTTP_HEADER, .name = "X-User"},
                                              {.kind = KEY_SNI},
                                              {.kind = KEY_MQTT_CLIENT_ID},
                                              LINE("NICK "),
                                              LINE("USER "),
                                              SOURCE},
                                             7,
                                             600};

#define GET(fields) "GET /r/7?room=a HTTP/1.1\r\nHost: h\r\n" fields "\r\n"
static const struct {
    const char *about;
    const struct key_config *config;
    const char *head;
    bool ended;
    enum key_verdict want;
    const char *key;
} rows[] = {
    {"bytes", &bytes_4_to_6, "0123456789", false, KEY_FOUND, "456"},
    {"bytes that have not come", &bytes_4_to_6, "012345", false, KEY_NEED_MORE, NULL},
    {"bytes that will not come", &bytes_4_to_6, "012345", true, KEY_NONE, NULL},

    {"a field", &header, GET("X-User:  anna \r\n"), false, KEY_FOUND, "anna"},
    {"its name in any case", &header, GET("x-uSER:anna\r\n"), false, KEY_FOUND, "anna"},
    {"of two the first", &header, GET("X-User: a\r\nX-User: b\r\n"), false, KEY_FOUND, "a"},
    {"a longer name is another", &header, GET("X-User-Id: a\r\n"), false, KEY_NONE, NULL},
    {"a shorter name too", &header, GET("X-Use: a\r\n"), false, KEY_NONE, NULL},
    {"an empty field is none", &header, GET("X-User: \r\n"), false, KEY_NONE, NULL},
    {"behind the head is no head", &header, GET("") "X-User: a\r\n", false, KEY_NONE, NULL},
    {"half a field", &header, "GET / HTTP/1.1\r\nX-User: an", false, KEY_NEED_MORE, NULL},
    {"half a field at the end", &header, "GET / HTTP/1.1\r\nX-User: an", true, KEY_NONE, NULL},
    {"a line that is no field", &header, GET("X-User\r\n"), false, KEY_NONE, NULL},
    {"half a method", &header, "GE", false, KEY_NEED_MORE, NULL},
    {"no method", &header, "nick", false, KEY_NONE, NULL},
    {"a method that begins with a space", &header, " GET", false, KEY_NONE, NULL},
    {"a method that never ends", &header, "GETGETGETGETGETGETGETGETGETGETGETGET", false, KEY_NONE, NULL},
    {"HTTP 2", &header, "PRI * HTTP/2.0\r\n\r\n", false, KEY_NONE, NULL},
    {"no version", &header, "GET /\r\n\r\n", false, KEY_NONE, NULL},

    {"a cookie", &cookie, GET("Cookie: a=b; sid=42; c=d\r\n"), false, KEY_FOUND, "42"},
    {"a cookie in quotes", &cookie, GET("Cookie: sid=\"42\"\r\n"), false, KEY_FOUND, "42"},
    {"a cookie with = in it", &cookie, GET("cookie:sid=4==\r\n"), false, KEY_FOUND, "4=="},
    {"a second field", &cookie, GET("Cookie: a=b\r\nCookie: sid=42\r\n"), false, KEY_FOUND, "42"},
    {"the name of a cookie as it is written", &cookie, GET("Cookie: SID=42; xsid=1\r\n"), false, KEY_NONE, NULL},
    {"a cookie without a value", &cookie, GET("Cookie: sid; sid=\r\n"), false, KEY_NONE, NULL},

    {"a parameter", &query, "GET /x?a=b&room=7&c HTTP/1.1\r\n", false, KEY_FOUND, "7"},
    {"not decoded", &query, "GET /x?room=%37+a HTTP/1.1\r\n", false, KEY_FOUND, "%37+a"},
    {"a parameter before the fragment", &query, "GET /?room=7#room=8 HTTP/1.0\r\n", false, KEY_FOUND, "7"},
    {"no parameter", &query, "GET /room=7 HTTP/1.1\r\n", false, KEY_NONE, NULL},

    {"a path", &path, "GET /r/7?x=/r/8 HTTP/1.1\r\n", false, KEY_FOUND, "7"},
    {"a path behind a host", &path, "GET http://h:80/r/7 HTTP/1.1\r\n", false, KEY_FOUND, "7"},
    {"a host without a path", &path, "GET http://h HTTP/1.1\r\n", false, KEY_NONE, NULL},
    {"CONNECT has none", &path, "CONNECT h:1/r/7 HTTP/1.1\r\n", false, KEY_NONE, NULL},

    {"no TLS", &sni, "G", false, KEY_NONE, NULL},
    {"another version of records", &sni, "\x16\x02", false, KEY_NONE, NULL},
    {"an empty record", &sni, "\x16\x03\x01", false, KEY_NEED_MORE, NULL},
    {"no MQTT", &mqtt, "G", false, KEY_NONE, NULL},
    {"a length of five bytes", &mqtt, "\x10\xff\xff\xff\xff\x01", false, KEY_NONE, NULL},
    {"another protocol in an MQTT packet", &mqtt, "\x10\x20\x01\x01MQTX", false, KEY_NEED_MORE, NULL},

    {"a list: the earlier rule wins", &everything, GET("X-User: u\r\nCookie: sid=c\r\n"), false, KEY_FOUND, "c"},
    {"a list: the later one when the earlier cannot", &everything, GET("X-User: u\r\n"), false, KEY_FOUND, "u"},
    {"a list: another protocol", &everything, "NICK anna\r\n", false, KEY_FOUND, "anna"},
    {"a list: what is left", &everything, "hello\r\n", true, KEY_FOUND, "10.0.0.1"},

    {"a whole line", &lines_only, "NICK anna\n", false, KEY_FOUND, "anna"},
    {"its carriage return is not part of it", &lines_only, "NICK anna\r\n", false, KEY_FOUND, "anna"},
    {"half a line is no line", &lines_only, "NICK ann", false, KEY_NEED_MORE, NULL},
    {"not even at the end", &lines_only, "NICK ann", true, KEY_NONE, NULL},
    {"an earlier line wins over an earlier rule", &lines_only, "USER u\nNICK anna\n", false, KEY_FOUND, "u"},
    {"lines that match nothing are passed over", &lines_only, "CAP LS\n\nNICK anna\n", false, KEY_FOUND, "anna"},
    {"an empty match is none", &lines_only, "NICK \nUSER u\n", false, KEY_FOUND, "u"},
    {"source-ip waits for the lines", &lines_then_source, "CAP LS\n", false, KEY_NEED_MORE, NULL},
    {"source-ip at the end", &lines_then_source, "CAP LS\n", true, KEY_FOUND, "10.0.0.1"},
    {"source-ip when the bytes are used up", &lines_then_source,
     "0123456789012345678901234567890123456789012345678901234567890123", false, KEY_FOUND, "10.0.0.1"},
    {"a line over the limit is none", &lines_then_source,
     "01234567890123456789012345678901234567890123456789012\nNICK anna-is-cut\n", false, KEY_FOUND, "10.0.0.1"},
    {"source-ip first needs no bytes", &source_first, "", false, KEY_FOUND, "10.0.0.1"},
    {"source-ip first hides the rest", &source_first, "NICK anna\n", false, KEY_FOUND, "10.0.0.1"},
};

static void check_row(int row, size_t step) {
    const struct slice head = slice_str(rows[row].head);
    struct key_scan scan = {0};
    enum key_verdict verdict = KEY_NEED_MORE;
    struct slice key = {0};
    for (size_t bytes = step < head.bytes ? step : head.bytes; verdict == KEY_NEED_MORE; bytes += step) {
        if (bytes > head.bytes) bytes = head.bytes;
        verdict = key_find(rows[row].config, slice_of(head.data, bytes), rows[row].ended && bytes == head.bytes,
                           slice_str("10.0.0.1"), &scan, &key);
        if (bytes == head.bytes) break;
    }
    ck_assert_msg(verdict == rows[row].want, "%s (in steps of %zu): %d", rows[row].about, step, (int)verdict);
    if (rows[row].key != NULL) ck_assert_msg(slice_equal(key, slice_str(rows[row].key)), "%s", rows[row].about);
}

START_TEST(a_row_at_once) {
    check_row(_i, 1000);
}
END_TEST
START_TEST(a_row_byte_by_byte) {
    check_row(_i, 1);
}
END_TEST

/* K1: refused, not cut. */
START_TEST(too_long) {
    static char head[400] = "NICK ";
    const struct key_config config = {{LINE("NICK ")}, 1, sizeof head};
    struct key_scan scan = {0};
    struct slice key;
    memset(head + 5, 'a', KEY_BYTES_MAX + 1);
    head[5 + KEY_BYTES_MAX + 1] = '\n';
    ck_assert_int_eq(key_find(&config, slice_of(head, 5 + KEY_BYTES_MAX + 2), false, slice_str("x"), &scan, &key),
                     KEY_TOO_LONG);
    head[5 + KEY_BYTES_MAX] = '\n';
    scan = (struct key_scan){0};
    ck_assert_int_eq(key_find(&config, slice_of(head, 5 + KEY_BYTES_MAX + 1), false, slice_str("x"), &scan, &key),
                     KEY_FOUND);
    ck_assert_uint_eq(key.bytes, KEY_BYTES_MAX);
}
END_TEST

/* Bytes of value zero are bytes like others. */
START_TEST(zero_bytes) {
    struct key_scan scan = {0};
    struct slice key;
    ck_assert_int_eq(key_find(&lines_only, slice_of("\0\0\nNICK a\0b\n", 12), false, slice_str("x"), &scan, &key),
                     KEY_FOUND);
    ck_assert(slice_equal(key, slice_of("a\0b", 3)));
}
END_TEST

/* A client of a local socket has no address: what only that could give is not found. */
START_TEST(without_an_address) {
    struct key_scan scan = {0};
    struct slice key;
    ck_assert_int_eq(key_find(&source_first, slice_str("NICK a\n"), false, slice_of(NULL, 0), &scan, &key), KEY_NONE);
    scan = (struct key_scan){0};
    ck_assert_int_eq(key_find(&lines_then_source, slice_str("CAP\n"), true, slice_of(NULL, 0), &scan, &key), KEY_NONE);
    scan = (struct key_scan){0};
    ck_assert_int_eq(key_find(&lines_then_source, slice_str("NICK a\n"), false, slice_of(NULL, 0), &scan, &key),
                     KEY_FOUND);
}
END_TEST

/* ---- binary protocols ---- */

static unsigned char packet[2048];
static size_t packet_bytes;
static void put(const char *hex_free, size_t bytes) {
    memcpy(packet + packet_bytes, hex_free, bytes);
    packet_bytes += bytes;
}
static void put_number(size_t value, int bytes) {
    for (int i = bytes; i-- > 0;) packet[packet_bytes++] = (unsigned char)(value >> (8 * i));
}
static void put_zeros(size_t bytes) {
    memset(packet + packet_bytes, 0, bytes);
    packet_bytes += bytes;
}

/* A ClientHello as openssl makes one, with the name between two other extensions; name NULL: without it. */
static void client_hello(const char *name) {
    const size_t name_bytes = name != NULL ? strlen(name) : 0, extensions = (name != NULL ? 9 + name_bytes : 0) + 10;
    const size_t body = 2 + 32 + 1 + 32 + 2 + 4 + 2 + 2 + extensions;
    packet_bytes = 0;
    put("\x16\x03\x01", 3);
    put_number(4 + body, 2);
    put_number(1, 1);
    put_number(body, 3);
    put("\x03\x03", 2);
    put_zeros(32);
    put_number(32, 1);
    put_zeros(32);
    put("\x00\x04\x13\x01\x13\x02\x01\x00", 8);
    put_number(extensions, 2);
    put("\x00\x0b\x00\x02\x01\x00", 6);
    if (name != NULL) {
        put_number(0, 2);
        put_number(5 + name_bytes, 2);
        put_number(3 + name_bytes, 2);
        put_number(0, 1);
        put_number(name_bytes, 2);
        put(name, name_bytes);
    }
    put("\x00\x17\x00\x00", 4);
}

/* The packet in all steps gives `want`, and at no moment before its `needed` bytes are there. */
static void check_packet(const struct key_config *config, size_t needed, enum key_verdict want, const char *key) {
    for (size_t step = 1; step <= packet_bytes; step = step * 3 + 1) {
        struct key_scan scan = {0};
        struct slice found = {0};
        enum key_verdict verdict = KEY_NEED_MORE;
        for (size_t bytes = 0; verdict == KEY_NEED_MORE && bytes < packet_bytes;) {
            bytes = bytes + step < packet_bytes ? bytes + step : packet_bytes;
            char *exact = malloc(bytes); /* a byte too far is a sanitizer's business */
            must(exact != NULL);
            memcpy(exact, packet, bytes);
            verdict = key_find(config, slice_of(exact, bytes), false, slice_str("x"), &scan, &found);
            if (verdict == KEY_FOUND) ck_assert(slice_equal(found, slice_str(key)));
            if (bytes < needed) ck_assert_int_eq(verdict, KEY_NEED_MORE);
            free(exact);
        }
        ck_assert_int_eq(verdict, want);
    }
}

START_TEST(a_server_name) {
    client_hello("game.example");
    check_packet(&sni, packet_bytes, KEY_FOUND, "game.example");
    client_hello(NULL);
    check_packet(&sni, packet_bytes, KEY_NONE, NULL);
    client_hello("");
    check_packet(&sni, packet_bytes, KEY_NONE, NULL);
}
END_TEST

/* The same message cut into two records, at every place: a name that is cut is not found, and nothing else happens. */
START_TEST(a_server_name_in_two_records) {
    client_hello("game.example");
    unsigned char whole[sizeof packet];
    const size_t body = packet_bytes - 5;
    int found = 0;
    memcpy(whole, packet, packet_bytes);
    for (size_t first = 1; first < body; first++) {
        packet_bytes = 0;
        put("\x16\x03\x01", 3);
        put_number(first, 2);
        put((char *)whole + 5, first);
        put("\x16\x03\x01", 3);
        put_number(body - first, 2);
        put((char *)whole + 5 + first, body - first);
        struct key_scan scan = {0};
        struct slice key;
        const enum key_verdict verdict =
            key_find(&sni, slice_of(packet, packet_bytes), false, slice_str("x"), &scan, &key);
        if (verdict == KEY_FOUND) ck_assert(slice_equal(key, slice_str("game.example")));
        found += verdict == KEY_FOUND;
        ck_assert(verdict == KEY_FOUND || verdict == KEY_NONE);
    }
    ck_assert_uint_eq((size_t)found, body - 1 - (strlen("game.example") - 1));
}
END_TEST

/* Every length in it made larger or smaller: an answer, nothing read beyond the end. */
START_TEST(a_hello_that_lies) {
    static const struct key_config *const configs[] = {&sni, &everything};
    for (size_t at = 0; at < 160; at++)
        for (int value = 0; value < 256; value += value < 4 || value > 250 ? 1 : 41) {
            client_hello("game.example");
            if (at >= packet_bytes) break;
            packet[at] = (unsigned char)value;
            for (int i = 0; i < 2; i++) {
                char *exact = malloc(packet_bytes);
                must(exact != NULL);
                memcpy(exact, packet, packet_bytes);
                struct key_scan scan = {0};
                struct slice key = {0};
                const enum key_verdict verdict =
                    key_find(configs[i], slice_of(exact, packet_bytes), false, slice_str("x"), &scan, &key);
                if (verdict == KEY_FOUND) ck_assert(key.bytes >= 1 && key.bytes <= KEY_BYTES_MAX);
                free(exact);
            }
        }
}
END_TEST

START_TEST(a_client_id) {
    static const struct {
        const char *protocol;
        int version;
        const char *properties, *id;
        enum key_verdict want;
    } connects[] = {
        {"MQTT", 4, "", "sensor-7", KEY_FOUND},
        {"MQIsdp", 3, "", "sensor-7", KEY_FOUND},
        {"MQTT", 5, "\x05\x11zzzz", "s", KEY_FOUND},
        {"MQTT", 4, "", "", KEY_NONE},
        {"MQTX", 4, "", "s", KEY_NONE},
    };
    for (size_t i = 0; i < sizeof connects / sizeof connects[0]; i++) {
        const size_t properties = strlen(connects[i].properties), id = strlen(connects[i].id);
        const size_t protocol = strlen(connects[i].protocol), will = 300;
        const size_t head = 2 + protocol + 1 + 1 + 2 + properties + 2 + id;
        packet_bytes = 0;
        put_number(0x10, 1);
        put_number(0x80 | ((head + will) & 0x7f), 1); /* two bytes: 128 and more */
        put_number((head + will) >> 7, 1);
        put_number(protocol, 2);
        put(connects[i].protocol, protocol);
        put_number((size_t)connects[i].version, 1);
        put_number(2, 1);
        put_number(60, 2);
        put(connects[i].properties, properties);
        put_number(id, 2);
        put(connects[i].id, id);
        check_packet(&mqtt, i == 4 ? 3 + 2 + protocol : packet_bytes, connects[i].want, connects[i].id);
    }
    packet_bytes = 0; /* an id that is longer than its packet */
    put("\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x09sensor-7", 22);
    check_packet(&mqtt, 16, KEY_NONE, NULL);
}
END_TEST

int main(void) {
    Suite *s = suite_create("key");
    TCase *tc = tcase_create("key");
    tcase_add_loop_test(tc, a_row_at_once, 0, sizeof rows / sizeof rows[0]);
    tcase_add_loop_test(tc, a_row_byte_by_byte, 0, sizeof rows / sizeof rows[0]);
    tcase_add_test(tc, too_long);
    tcase_add_test(tc, zero_bytes);
    tcase_add_test(tc, without_an_address);
    tcase_add_test(tc, a_server_name);
    tcase_add_test(tc, a_server_name_in_two_records);
    tcase_add_test(tc, a_hello_that_lies);
    tcase_add_test(tc, a_client_id);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
