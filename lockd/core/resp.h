/* resp.h - the Redis protocol as a server reads and writes it (RESP2).
 *
 * Place in the flow:  bytes of a client -> [resp] -> argv -> command
 *
 * Parsing is in place: argv points into the caller's bytes.  Accepts what Redis 7.0 accepts, multibulk and inline, and
 * answers garbage with Redis' own texts.  (RESP2: https://redis.io/docs/reference/protocol-spec/.)  Pure.
 *
 * What always holds:
 *   E1  Every byte is looked at a bounded number of times, however slowly the bytes come.
 *   E2  What is announced is judged when its header is read: nothing is waited for that would be refused.
 *   E3  A RESP_REQUEST is the same whether its bytes came at once or one by one.
 *
 * Where we are stricter than Redis 7.0: a line of an inline request is refused above 64 KiB even when it came whole; a
 * NUL byte inside a length or an inline request is refused at once; an inline request whose first word is POST or Host:
 * (a web browser that somebody pointed at us) gets an error before the connection is closed. */
#pragma once
#include "common/buf.h"
#include "common/must.h"

/* All three are at least 1.  The names in error texts are those of the config keys. */
struct resp_limits {
    uint32_t argc_max;          /* arguments-max, 1024: words of one request */
    uint32_t arg_bytes_max;     /* 1 MiB + room: one argument */
    uint32_t request_bytes_max; /* request-bytes-max: a whole request, headers included */
};

enum { RESP_LINE_BYTES_MAX = 64 * 1024 }; /* an inline request, or a length that does not end */

enum resp_status {
    RESP_NEED_MORE, /* no whole request yet */
    RESP_REQUEST,   /* *ret_argc >= 0 words in argv (0: an empty request, to be skipped) */
    RESP_ERROR      /* answer `error` ("-ERR Protocol error: ..." + CRLF) and close: what follows cannot be trusted */
};

/* Progress over one request, so that bytes are looked at once however slowly they come.  Zero-initialise. */
struct resp_parser {
    uint32_t argc, argc_seen; /* words announced, words complete */
    size_t at;                /* bytes of this request already understood: up to the end of a header or a word */
    size_t line_bytes;        /* bytes after `at` already searched for the end of a line */
    int64_t bulk_bytes;       /* in_bulk: the announced length of the word being read */
    bool started;             /* the `*` header is read */
    bool in_bulk;             /* the header of word argc_seen is read */
    char error[96];           /* RESP_ERROR: what *ret_error points to */
};

/* Look at data[0..bytes), which begins at the start of a request and has only grown since the last call for it.
 * `argv` has room for limits->argc_max slices.
 *   RESP_REQUEST: argv[0..*ret_argc) point into data, *ret_used is how much to drop; the parser is ready for the next.
 *   RESP_NEED_MORE: call again with the same bytes and more; argv is undefined.
 *   RESP_ERROR: *ret_error is a whole reply with CRLF, valid as long as the parser; the parser is of no use any more.
 * The data may have moved between calls.  Bytes of an inline request are unquoted where they are, hence not const. */
NODISCARD enum resp_status resp_parse(struct resp_parser *p, const struct resp_limits *limits, char *data, size_t bytes,
                                      uint32_t *ret_argc, struct slice *argv, size_t *ret_used, const char **ret_error);

/* Replies. */
void resp_ok(struct buf *b);                       /* +OK */
void resp_simple(struct buf *b, const char *text); /* +text */
void resp_error(struct buf *b, const char *format, ...)
    __attribute__((format(printf, 2, 3))); /* "-" text CRLF; control bytes become spaces */
void resp_integer(struct buf *b, int64_t value);
void resp_bulk(struct buf *b, struct slice s);
void resp_bulk_str(struct buf *b, const char *text);
void resp_bulk_u64(struct buf *b, uint64_t value); /* a number as a bulk string */
void resp_nil(struct buf *b);                      /* $-1 */
void resp_nil_array(struct buf *b);                /* *-1 */
void resp_array(struct buf *b, uint32_t count);
/* `s` for use inside an error text: printable, at most 64 bytes, never more than `text_bytes` with the NUL. */
const char *resp_show(struct slice s, char *text, size_t text_bytes);
