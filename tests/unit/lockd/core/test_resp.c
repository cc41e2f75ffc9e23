/* What a client may send, whole and byte by byte, and what Redis 7.0.15 was seen to answer to garbage.
 * Guards E1-E3 of resp.h. */
#include <check.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "lockd/core/resp.h"

enum { WORDS_MAX = 1024 };
static const struct resp_limits limits = {
    .argc_max = WORDS_MAX, .arg_bytes_max = 1 << 20, .request_bytes_max = 4 << 20};
static struct slice argv[WORDS_MAX];

/* Everything that comes out of `input`: "a|b;" for each request, then the error or "..." when more is needed.  The
 * bytes move between calls, and argv is not kept, as with a real connection. */
static void run(const struct resp_limits *within, const char *input, size_t bytes, size_t step, struct buf *out) {
    struct resp_parser p = {0};
    size_t from = 0, seen = 0;
    for (;;) {
        uint32_t argc;
        size_t used;
        const char *error;
        char *data = malloc(seen - from + 1);
        memcpy(data, input + from, seen - from);
        memset(argv, 0, sizeof argv[0] * 4);
        const enum resp_status status = resp_parse(&p, within, data, seen - from, &argc, argv, &used, &error);
        if (status == RESP_REQUEST) {
            ck_assert_uint_le(used, seen - from);
            for (uint32_t i = 0; i < argc; i++) {
                if (i > 0) buf_append_str(out, "|");
                buf_append_slice(out, argv[i]);
            }
            buf_append_str(out, ";");
            from += used;
        }
        free(data);
        if (status == RESP_ERROR) buf_append_str(out, error);
        if (status == RESP_NEED_MORE && seen == bytes) buf_append_str(out, "...");
        if (status == RESP_ERROR || (status == RESP_NEED_MORE && seen == bytes)) break;
        if (status == RESP_NEED_MORE) seen = seen + step < bytes ? seen + step : bytes;
    }
    buf_append(out, "", 1);
}

#define MULTI(text) "-ERR Protocol error: " text "\r\n"
static const struct {
    const char *input;
    size_t bytes; /* 0: up to the NUL */
    const char *want;
} rows[] = {
    {"", 0, "..."},
    {"*1\r\n$4\r\nPING\r\n", 0, "PING;..."},
    {"*2\r\n$3\r\nGET\r\n$0\r\n\r\n*1\r\n$1\r\nx\r\n", 0, "GET|;x;..."},
    {"*1\r\n$3\r\na\0b\r\n", 13, "a"}, /* a NUL in a word is a byte like any other; the C string ends there */
    {"*0\r\nPING\r\n", 0, ";PING;..."},
    {"*-1\r\n*1\r\n$4\r\nPING\r\n", 0, ";PING;..."},
    {"*-99999999999999\r\nPING\r\n", 0, ";PING;..."},
    {"*1\r\n$4\r\nPINGxx*1\r\n$1\r\nx\r\n", 0, "PING;x;..."},
    {"*1\rx$4\ryPING\r\n", 0, "PING;..."},
    {"*x\r\n", 0, MULTI("invalid multibulk length")},
    {"*2147483648\r\n", 0, MULTI("invalid multibulk length")},
    {"*2147483647\r\n", 0, "-ERR too many arguments: 2147483647 given, arguments-max is 1024\r\n"},
    {"*1025\r\n", 0, "-ERR too many arguments: 1025 given, arguments-max is 1024\r\n"},
    {"*1024\r\n", 0, "..."},
    {"*\r\n", 0, MULTI("invalid multibulk length")},
    {"*01\r\n", 0, MULTI("invalid multibulk length")},
    {"*+1\r\n", 0, MULTI("invalid multibulk length")},
    {"* 1\r\n", 0, MULTI("invalid multibulk length")},
    {"*-0\r\n", 0, MULTI("invalid multibulk length")},
    {"*99999999999999999999\r\n", 0, MULTI("invalid multibulk length")},
    {"*1\r\n4\r\n", 0, MULTI("expected '$', got '4'")},
    {"*1\r\n\r\n", 0, MULTI("expected '$', got ' '")},
    {"*1\r\n\xff\r\n", 0, MULTI("expected '$', got '\xff'")},
    {"*1\r\n$-1\r\n", 0, MULTI("invalid bulk length")},
    {"*1\r\n$x\r\n", 0, MULTI("invalid bulk length")},
    {"*1\r\n$\r\n", 0, MULTI("invalid bulk length")},
    {"*1\r\n$9223372036854775807\r\n", 0, MULTI("invalid bulk length")},
    {"*1\r\n$18446744073709551616\r\n", 0, MULTI("invalid bulk length")},
    {"*1\r\n$1048577\r\n", 0, MULTI("invalid bulk length")},
    {"*1\r\n$1048576\r\n", 0, "..."},
    {"*1\r\n$4\r\nPIN", 0, "..."},
    {"*1\r\n$4\r\nPING\r", 0, "..."},
    {"PING\r\n", 0, "PING;..."},
    {"\r\n\n PING \n", 0, ";;PING;..."},
    {"PING \"a\\x41\\n\\\\\\q\" \r\n", 0, "PING|aA\n\\q;..."},
    {"PING \"\\xZZ\\x4\"\r\n", 0, "PING|xZZx4;..."},
    {"PING \"\\r\\t\\b\\a\" 'x\\y' \"\\x4Z\\x\"\r\n", 0, "PING|\r\t\b\a|x\\y|x4Zx;..."},
    {"PING a\rb\n", 0, "PING|a|b;..."},
    {"ECHO 'a\\\n", 0, MULTI("unbalanced quotes in request")},
    {"ECHO 'a\\'\n", 0, MULTI("unbalanced quotes in request")},
    {"ECHO 'a\\'b\\n'\r\n", 0, "ECHO|a'b\\n;..."},
    {"ECHO a\"b\" ''\r\n", 0, "ECHO|ab|;..."},
    {"\vECHO\ta\vb\r\n", 0, "ECHO|a\vb;..."},
    {"ECHO \"a\r\n", 0, MULTI("unbalanced quotes in request")},
    {"ECHO 'a\r\n", 0, MULTI("unbalanced quotes in request")},
    {"ECHO \"a\"b\r\n", 0, MULTI("unbalanced quotes in request")},
    {"ECHO \"a\\\r\n", 0, MULTI("unbalanced quotes in request")},
    {"a\0b\r\n", 5, MULTI("a NUL byte in an inline request")},
    {"post / HTTP/1.1\r\n", 0, MULTI("this is no web server")},
    {"GET / HTTP/1.1\r\nHost: x\r\n", 0, "GET|/|HTTP/1.1;" MULTI("this is no web server")},
};

START_TEST(requests_and_garbage) {
    const size_t bytes = rows[_i].bytes > 0 ? rows[_i].bytes : strlen(rows[_i].input);
    for (size_t step = 1; step <= bytes || step == 1; step++) { /* E3 */
        struct buf out = {.alloc = heap_alloc()};
        run(&limits, rows[_i].input, bytes, step, &out);
        ck_assert_msg(strcmp(out.data, rows[_i].want) == 0, "%s, %zu bytes at a time\n got %s\nwant %s", rows[_i].input,
                      step, out.data, rows[_i].want);
        buf_release(&out);
    }
}
END_TEST

/* Lines without an end, as Redis counts them: 65536 bytes wait, one more is refused. */
static const struct {
    const char *head;
    const char *want;
} endless[] = {
    {"*", MULTI("too big mbulk count string")},
    {"*1\r\n$", MULTI("too big bulk count string")},
    {"*1\r\n7", MULTI("too big bulk count string")},
    {"7", MULTI("too big inline request")},
};

START_TEST(line_without_end) {
    char data[4 + RESP_LINE_BYTES_MAX + 1];
    memset(data, '1', sizeof data);
    const size_t head = strlen(endless[_i].head);
    memcpy(data, endless[_i].head, head);
    const size_t whole = head - 1 + RESP_LINE_BYTES_MAX;
    struct buf out = {.alloc = heap_alloc()};
    run(&limits, data, whole, 1000, &out);
    ck_assert_str_eq(out.data, "...");
    buf_clear(&out);
    run(&limits, data, whole + 1, 1000, &out);
    ck_assert_str_eq(out.data, endless[_i].want);
    buf_release(&out);
}
END_TEST

/* The limits themselves, small: each is allowed, one more is refused. */
static const struct resp_limits small = {.argc_max = 3, .arg_bytes_max = 8, .request_bytes_max = 32};
static const struct {
    const char *input, *want;
} edges[] = {
    {"*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n", "a|b|c;..."},
    {"*4\r\n", "-ERR too many arguments: 4 given, arguments-max is 3\r\n"},
    {"*1\r\n$8\r\n12345678\r\n", "12345678;..."},
    {"*1\r\n$9\r\n", MULTI("invalid bulk length")},
    {"*2\r\n$8\r\n12345678\r\n$8\r\n12345678\r\n", "12345678|12345678;..."}, /* 32 bytes */
    {"*3\r\n$8\r\n12345678\r\n$2\r\n12\r\n$0\r\n\r\n", "12345678|12|;..."},  /* 32 bytes */
    {"*3\r\n$8\r\n12345678\r\n$2\r\n12\r\n$1\r\n", MULTI("the request is longer than request-bytes-max, 32 bytes")},
    {"a b c\r\n", "a|b|c;..."},
    {"a b c d\r\n", "-ERR too many arguments, arguments-max is 3\r\n"},
    {"12345678\r\n", "12345678;..."},
    {"123456789\r\n", MULTI("invalid bulk length")},
    {"a b 12345678                            \r\n", MULTI("the request is longer than request-bytes-max, 32 bytes")},
};
START_TEST(limits_at_their_edges) {
    const size_t bytes = strlen(edges[_i].input);
    for (size_t step = 1; step <= bytes; step++) {
        struct buf out = {.alloc = heap_alloc()};
        run(&small, edges[_i].input, bytes, step, &out);
        ck_assert_str_eq(out.data, edges[_i].want);
        buf_release(&out);
    }
}
END_TEST

START_TEST(replies) {
    struct buf b = {.alloc = heap_alloc()};
    resp_ok(&b);
    resp_simple(&b, "PONG");
    resp_error(&b, "ERR %s", "a\r\nb\x7f\tc");
    resp_integer(&b, 0);
    resp_integer(&b, INT64_MIN);
    resp_integer(&b, INT64_MAX);
    resp_bulk(&b, slice_of(NULL, 0));
    resp_bulk_str(&b, "hey");
    resp_bulk_u64(&b, UINT64_MAX);
    resp_nil(&b);
    resp_nil_array(&b);
    resp_array(&b, UINT32_MAX);
    buf_append(&b, "", 1);
    ck_assert_str_eq(b.data, "+OK\r\n+PONG\r\n-ERR a  b  c\r\n:0\r\n:-9223372036854775808\r\n:9223372036854775807\r\n"
                             "$0\r\n\r\n$3\r\nhey\r\n$20\r\n18446744073709551615\r\n$-1\r\n*-1\r\n*4294967295\r\n");
    buf_release(&b);
}
END_TEST

START_TEST(shown_text_is_short_and_printable) {
    char text[128], tiny[4];
    ck_assert_str_eq(resp_show(slice_str("a\nb\x80"), text, sizeof text), "a?b?");
    ck_assert_str_eq(resp_show(slice_of(NULL, 0), text, sizeof text), "");
    char many[100];
    memset(many, 'x', sizeof many);
    const char *shown = resp_show(slice_of(many, sizeof many), text, sizeof text);
    ck_assert_uint_eq(strlen(shown), 64);
    ck_assert_str_eq(shown + 61, "...");
    ck_assert_uint_eq(strlen(resp_show(slice_of(many, 64), text, sizeof text)), 64);
    ck_assert_str_eq(resp_show(slice_of(many, 64), text, sizeof text) + 61, "xxx");
    ck_assert_uint_lt(strlen(resp_show(slice_of(many, sizeof many), tiny, sizeof tiny)), sizeof tiny);
    ck_assert_str_eq(resp_show(slice_of(many, sizeof many), tiny, 1), "");
}
END_TEST

int main(void) {
    Suite *s = suite_create("resp");
    TCase *tc = tcase_create("resp");
    tcase_add_loop_test(tc, requests_and_garbage, 0, sizeof rows / sizeof rows[0]);
    tcase_add_loop_test(tc, line_without_end, 0, sizeof endless / sizeof endless[0]);
    tcase_add_loop_test(tc, limits_at_their_edges, 0, sizeof edges / sizeof edges[0]);
    tcase_add_test(tc, replies);
    tcase_add_test(tc, shown_text_is_short_and_printable);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
