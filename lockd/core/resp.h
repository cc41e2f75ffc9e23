/* resp.h - the Redis protocol as a server reads and writes it (RESP2).
 *
 * Parsing is in place: argv points into the caller's bytes.  Accepts what Redis 7 accepts as multibulk requests and answers garbage with
 * Redis' own texts.  Pure. */
#pragma once
#include "common/buf.h"
#include "common/must.h"

struct resp_limits {
    uint32_t argc_max;      /* 1024 */
    uint32_t arg_bytes_max; /* 1 MiB + room: one argument */
    uint32_t request_bytes_max; /* whole request */
};

enum resp_status {
    RESP_NEED_MORE, /* no whole request yet */
    RESP_REQUEST,   /* *ret_argc >= 0 words in argv (0: an empty request, to be skipped) */
    RESP_ERROR      /* answer `error` ("-ERR Protocol error: ..." + CRLF) and close: what follows cannot be trusted */
};

/* Progress over one request, so that bytes are looked at once however slowly they come.  Zero-initialise. */
struct resp_parser {
    uint32_t argc, argc_seen;  /* words announced, words complete */
    size_t at;                 /* bytes of this request already understood */
    int64_t bulk_bytes;        /* the announced length of the word being read, -1: its header is not read yet */
    bool started;
    size_t offsets[1024];      /* of each complete word, from the start of the request */
    uint32_t lengths[1024];
};

/* Look at data[0..bytes), which begins at the start of a request and has only grown since the last call for it.
 * RESP_REQUEST: argv[0..*ret_argc) point into data, *ret_used is how much to drop; the parser is ready for the next. */
enum resp_status resp_parse(struct resp_parser *p, const struct resp_limits *limits, const char *data, size_t bytes,
                            uint32_t *ret_argc, struct slice *argv, size_t *ret_used, const char **ret_error);

/* Replies. */
void resp_ok(struct buf *b);                          /* +OK */
void resp_simple(struct buf *b, const char *text);    /* +text */
void resp_error(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3))); /* "-" text CRLF; control bytes become spaces */
void resp_integer(struct buf *b, int64_t value);
void resp_bulk(struct buf *b, struct slice s);
void resp_bulk_str(struct buf *b, const char *text);
void resp_bulk_u64(struct buf *b, uint64_t value); /* a number as a bulk string */
void resp_nil(struct buf *b);                         /* $-1 */
void resp_nil_array(struct buf *b);                   /* *-1 */
void resp_array(struct buf *b, uint32_t count);
/* `s` for use inside an error text: printable, at most 64 bytes, never more than `text_bytes` with the NUL. */
const char *resp_show(struct slice s, char *text, size_t text_bytes);
