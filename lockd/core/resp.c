/* resp.c - see resp.h.  The parser follows networking.c and sds.c of Redis 7.0 (processMultibulkBuffer,
 * processInlineBuffer, sdssplitargs), because clients know its answers. */
#include "lockd/core/resp.h"
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>

/* A line of a request, without its end. */
enum line_status { LINE_FOUND, LINE_SHORT, LINE_TOO_LONG };
/* The head of a request or of a word. */
enum header { HEADER_NUMBER, HEADER_SHORT, HEADER_TOO_LONG, HEADER_GARBAGE };

static enum resp_status refuse(struct resp_parser *p, const char **ret_error, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static enum resp_status too_long(struct resp_parser *p, const struct resp_limits *limits, const char **ret_error);
static inline void forget(struct resp_parser *p);
static inline enum header read_header(struct resp_parser *p, const char *data, size_t bytes, char mark,
                                      int64_t *ret_number);
static enum line_status find_line(struct resp_parser *p, const char *data, size_t bytes, char end,
                                  size_t *ret_line_bytes);
static enum resp_status parse_inline(struct resp_parser *p, const struct resp_limits *limits, char *data, size_t bytes,
                                     uint32_t *ret_argc, struct slice *argv, size_t *ret_used, const char **ret_error);

enum resp_status resp_parse(struct resp_parser *p, const struct resp_limits *limits, char *data, size_t bytes,
                            uint32_t *ret_argc, struct slice *argv, size_t *ret_used, const char **ret_error) {
    must(limits->argc_max > 0 && limits->arg_bytes_max > 0 && limits->request_bytes_max > 0);
    must(p->at <= bytes);
    if (bytes == 0) return RESP_NEED_MORE;
    if (data[0] != '*') return parse_inline(p, limits, data, bytes, ret_argc, argv, ret_used, ret_error);

    bool resumed = p->argc_seen > 0; /* words of an earlier call are not in argv */
    int64_t number;
again:
    if (!p->started) {
        switch (read_header(p, data, bytes, '*', &number)) {
        case HEADER_SHORT: return RESP_NEED_MORE;
        case HEADER_TOO_LONG: return refuse(p, ret_error, "Protocol error: too big mbulk count string");
        case HEADER_GARBAGE: number = INT64_MAX; break;
        case HEADER_NUMBER: break;
        }
        if (number > INT_MAX) return refuse(p, ret_error, "Protocol error: invalid multibulk length");
        if (number > (int64_t)limits->argc_max)
            return refuse(p, ret_error, "too many arguments: %lld given, arguments-max is %u", (long long)number,
                          limits->argc_max);
        p->argc = number > 0 ? (uint32_t)number : 0;
        p->started = true;
    }
    while (p->argc_seen < p->argc) {
        if (!p->in_bulk) {
            switch (read_header(p, data, bytes, '$', &number)) {
            case HEADER_SHORT: return RESP_NEED_MORE;
            case HEADER_TOO_LONG: return refuse(p, ret_error, "Protocol error: too big bulk count string");
            case HEADER_GARBAGE:
                if (data[p->at] != '$')
                    return refuse(p, ret_error, "Protocol error: expected '$', got '%c'", data[p->at]);
                number = -1;
                break;
            case HEADER_NUMBER: break;
            }
            if (number < 0 || number > (int64_t)limits->arg_bytes_max)
                return refuse(p, ret_error, "Protocol error: invalid bulk length");
            if (p->at + (size_t)number + 2 > limits->request_bytes_max) return too_long(p, limits, ret_error);
            p->bulk_bytes = number;
            p->in_bulk = true;
        }
        /* The two bytes after a word are dropped unseen, as Redis does. */
        if (bytes - p->at < (size_t)p->bulk_bytes + 2) return RESP_NEED_MORE;
        argv[p->argc_seen++] = slice_of(data + p->at, (size_t)p->bulk_bytes);
        p->at += (size_t)p->bulk_bytes + 2;
        p->in_bulk = false;
    }
    const uint32_t argc = p->argc;
    const size_t used = p->at;
    forget(p);
    if (resumed) { /* all of it is here now: one more look, at the headers only, finds every word (E1) */
        resumed = false;
        bytes = used;
        goto again;
    }
    *ret_argc = argc;
    *ret_used = used;
    return RESP_REQUEST;
}

static enum resp_status refuse(struct resp_parser *p, const char **ret_error, const char *format, ...) {
    const size_t room = sizeof p->error;
    memcpy(p->error, "-ERR ", 5);
    va_list args;
    va_start(args, format);
    const int length = vsnprintf(p->error + 5, room - 5 - 2, format, args);
    va_end(args);
    must(length >= 0 && (size_t)length < room - 5 - 2);
    size_t at = 5;
    for (; p->error[at] != '\0'; at++)
        if ((unsigned char)p->error[at] < ' ') p->error[at] = ' ';
    memcpy(p->error + at, "\r\n", 3);
    *ret_error = p->error;
    return RESP_ERROR;
}

static enum resp_status too_long(struct resp_parser *p, const struct resp_limits *limits, const char **ret_error) {
    return refuse(p, ret_error, "Protocol error: the request is longer than request-bytes-max, %u bytes",
                  limits->request_bytes_max);
}

/* The line that begins at p->at and ends before `end`; with '\r' the byte after it must be here too. */
static enum line_status find_line(struct resp_parser *p, const char *data, size_t bytes, char end,
                                  size_t *ret_line_bytes) {
    const char *line = data + p->at, *from = line + p->line_bytes, *past = data + bytes;
    const char *found = from < past ? memchr(from, end, (size_t)(past - from)) : NULL;
    p->line_bytes = (size_t)((found != NULL ? found : past) - line);
    if (p->line_bytes > RESP_LINE_BYTES_MAX) return LINE_TOO_LONG;
    if (found == NULL || (end == '\r' && found + 1 == past)) return LINE_SHORT;
    *ret_line_bytes = p->line_bytes;
    p->line_bytes = 0;
    return LINE_FOUND;
}

/* Ready for the next request; the room for an error need not be cleared. */
static inline void forget(struct resp_parser *p) {
    p->argc = p->argc_seen = 0;
    p->at = p->line_bytes = 0;
    p->bulk_bytes = 0;
    p->started = p->in_bulk = false;
}

/* `mark`, a number, CR and one byte more, from p->at on.  HEADER_NUMBER: p->at is past it; else it has not moved. */
static inline enum header read_header(struct resp_parser *p, const char *data, size_t bytes, char mark,
                                      int64_t *ret_number) {
    const char *at = data + p->at;
    const size_t here = bytes - p->at;
    /* Nearly all are one to six digits and here whole: without a call parsing takes half the time. */
    if (here >= 4 && at[0] == mark && at[1] >= '0' && at[1] <= '9') {
        const size_t most = here - 2 < 7 ? here - 2 : 7;
        int64_t number = at[1] - '0';
        size_t i = 2;
        if (number > 0)
            for (; i < most && at[i] >= '0' && at[i] <= '9'; i++) number = number * 10 + (at[i] - '0');
        if (at[i] == '\r') {
            *ret_number = number;
            p->at += i + 2;
            p->line_bytes = 0;
            return HEADER_NUMBER;
        }
    }
    size_t line_bytes;
    switch (find_line(p, data, bytes, '\r', &line_bytes)) {
    case LINE_SHORT: return HEADER_SHORT;
    case LINE_TOO_LONG: return HEADER_TOO_LONG;
    case LINE_FOUND: break;
    }
    if (at[0] != mark || !slice_to_i64(slice_of(at + 1, line_bytes - 1), ret_number)) return HEADER_GARBAGE;
    p->at += line_bytes + 2;
    return HEADER_NUMBER;
}

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* One word of an inline request, unquoted where it is: what comes out is never longer than what went in.  Returns where
 * the next one may begin, NULL when quotes do not match. */
static char *split_word(char *at, char *end, struct slice *ret_word) {
    char *out = at;
    const char *word = at;
    char quote = '\0';
    for (;;) {
        if (at == end) {
            if (quote != '\0') return NULL;
            break;
        }
        const char c = *at;
        if (quote == '\0') {
            if (c == ' ' || c == '\t' || c == '\r' || c == '\n')
                break; /* \v and \f only count between words, as in Redis */
            if (c == '"' || c == '\'') {
                quote = c;
            } else {
                *out++ = c;
            }
            at++;
        } else if (c == quote) {
            /* A closing quote is followed by a space or nothing at all. */
            if (at + 1 < end && !is_space(at[1])) return NULL;
            at++;
            break;
        } else if (quote == '"' && c == '\\' && end - at >= 4 && at[1] == 'x' && hex_value(at[2]) >= 0 &&
                   hex_value(at[3]) >= 0) {
            *out++ = (char)(hex_value(at[2]) * 16 + hex_value(at[3]));
            at += 4;
        } else if (quote == '"' && c == '\\' && end - at >= 2) {
            switch (at[1]) {
            case 'n': *out++ = '\n'; break;
            case 'r': *out++ = '\r'; break;
            case 't': *out++ = '\t'; break;
            case 'b': *out++ = '\b'; break;
            case 'a': *out++ = '\a'; break;
            default: *out++ = at[1]; break;
            }
            at += 2;
        } else if (quote == '\'' && c == '\\' && end - at >= 2 && at[1] == '\'') {
            *out++ = '\'';
            at += 2;
        } else {
            *out++ = c;
            at++;
        }
    }
    *ret_word = slice_of(word, (size_t)(out - word));
    return at;
}

static enum resp_status parse_inline(struct resp_parser *p, const struct resp_limits *limits, char *data, size_t bytes,
                                     uint32_t *ret_argc, struct slice *argv, size_t *ret_used, const char **ret_error) {
    size_t line_bytes;
    switch (find_line(p, data, bytes, '\n', &line_bytes)) {
    case LINE_SHORT: return RESP_NEED_MORE;
    case LINE_TOO_LONG: return refuse(p, ret_error, "Protocol error: too big inline request");
    case LINE_FOUND: break;
    }
    const size_t used = line_bytes + 1;
    if (used > limits->request_bytes_max) return too_long(p, limits, ret_error);
    char *end = data + line_bytes, *at = data;
    if (line_bytes > 0 && end[-1] == '\r') end--;
    if (line_bytes > 0 && memchr(data, '\0', line_bytes) != NULL)
        return refuse(p, ret_error, "Protocol error: a NUL byte in an inline request");
    uint32_t argc = 0;
    for (;;) {
        while (at < end && is_space(*at)) at++;
        if (at == end) break;
        if (argc == limits->argc_max)
            return refuse(p, ret_error, "too many arguments, arguments-max is %u", limits->argc_max);
        struct slice word;
        at = split_word(at, end, &word);
        if (at == NULL) return refuse(p, ret_error, "Protocol error: unbalanced quotes in request");
        if (word.bytes > limits->arg_bytes_max) return refuse(p, ret_error, "Protocol error: invalid bulk length");
        argv[argc++] = word;
    }
    if (argc > 0 && (slice_is_word(argv[0], "POST") || slice_is_word(argv[0], "HOST:")))
        return refuse(p, ret_error, "Protocol error: this is no web server");
    forget(p);
    *ret_argc = argc;
    *ret_used = used;
    return RESP_REQUEST;
}

/* ---- replies ---- */

/* Writes value in decimal so that it ends at `end`; returns its first byte. */
static char *digits(char *end, uint64_t value) {
    do {
        *--end = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    return end;
}

enum { HEAD_BYTES_MAX = 1 + 1 + 20 + 2 };

/* `mark`, the number, CRLF, at the end of `text`: the head of every reply that has one.  Returns where it begins. */
static char *head_of(char text[HEAD_BYTES_MAX], char mark, uint64_t value) {
    char *at = text + HEAD_BYTES_MAX - 2;
    memcpy(at, "\r\n", 2);
    at = digits(at, value);
    *--at = mark;
    return at;
}

void resp_ok(struct buf *b) {
    buf_append(b, "+OK\r\n", 5);
}

void resp_simple(struct buf *b, const char *text) {
    const size_t bytes = strlen(text);
    char *at = buf_reserve(b, bytes + 3);
    at[0] = '+';
    memcpy(at + 1, text, bytes);
    memcpy(at + 1 + bytes, "\r\n", 2);
    b->bytes += bytes + 3;
}

void resp_error(struct buf *b, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    const int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    must(length >= 0);
    const size_t bytes = (size_t)length < sizeof text ? (size_t)length : sizeof text - 1;
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f) text[i] = ' ';
    buf_append(b, "-", 1);
    buf_append(b, text, bytes);
    buf_append(b, "\r\n", 2);
}

void resp_integer(struct buf *b, int64_t value) {
    char text[HEAD_BYTES_MAX];
    char *at = head_of(text, ':', value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
    if (value < 0) {
        *at = '-';
        *--at = ':';
    }
    buf_append(b, at, (size_t)(text + sizeof text - at));
}

void resp_bulk(struct buf *b, struct slice s) {
    char text[HEAD_BYTES_MAX];
    const char *head = head_of(text, '$', s.bytes);
    const size_t head_bytes = (size_t)(text + sizeof text - head);
    char *at = buf_reserve(b, head_bytes + s.bytes + 2);
    memcpy(at, head, head_bytes);
    if (s.bytes > 0) memcpy(at + head_bytes, s.data, s.bytes);
    memcpy(at + head_bytes + s.bytes, "\r\n", 2);
    b->bytes += head_bytes + s.bytes + 2;
}

void resp_bulk_str(struct buf *b, const char *text) {
    resp_bulk(b, slice_str(text));
}

void resp_bulk_u64(struct buf *b, uint64_t value) {
    char text[20], *end = text + sizeof text;
    const char *at = digits(end, value);
    resp_bulk(b, slice_of(at, (size_t)(end - at)));
}

void resp_nil(struct buf *b) {
    buf_append(b, "$-1\r\n", 5);
}

void resp_nil_array(struct buf *b) {
    buf_append(b, "*-1\r\n", 5);
}

void resp_array(struct buf *b, uint32_t count) {
    char text[HEAD_BYTES_MAX];
    const char *at = head_of(text, '*', count);
    buf_append(b, at, (size_t)(text + sizeof text - at));
}

const char *resp_show(struct slice s, char *text, size_t text_bytes) {
    must(text_bytes > 0);
    size_t room = text_bytes - 1 < 64 ? text_bytes - 1 : 64;
    const bool cut = s.bytes > room;
    if (cut && room >= 3) room -= 3;
    const size_t bytes = s.bytes < room ? s.bytes : room;
    for (size_t i = 0; i < bytes; i++) text[i] = s.data[i] >= ' ' && s.data[i] < 0x7f ? s.data[i] : '?';
    size_t at = bytes;
    if (cut && at + 3 < text_bytes) {
        memcpy(text + at, "...", 3);
        at += 3;
    }
    text[at] = '\0';
    return text;
}
