/* Requests: whatever a client sends, the parser answers the same at once and in pieces, stays inside the bytes, and
 * agrees with hiredis wherever hiredis understands (a request is a valid reply too).  Guards E1-E3 of resp.h. */
#include <hiredis/hiredis.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "common/wire.h"
#include "lockd/core/command.h"
#include "lockd/core/resp.h"
#include "tests/fuzz/fuzz.h"

enum { WORDS_MAX = 64 };
static const struct resp_limits limits = {.argc_max = WORDS_MAX, .arg_bytes_max = 4096, .request_bytes_max = 16384};

/* The same request as hiredis reads it, or must() fails. */
static void ask_oracle(const char *data, size_t bytes, uint32_t argc, const struct slice *argv) {
    redisReader *reader = redisReaderCreate();
    void *found = NULL;
    must(redisReaderFeed(reader, data, bytes) == REDIS_OK && redisReaderGetReply(reader, &found) == REDIS_OK);
    const redisReply *reply = found;
    must(reply != NULL && reply->type == REDIS_REPLY_ARRAY && reply->elements == argc);
    for (uint32_t i = 0; i < argc; i++) {
        must(reply->element[i]->type == REDIS_REPLY_STRING);
        must(slice_equal(slice_of(reply->element[i]->str, (size_t)reply->element[i]->len), argv[i]));
    }
    freeReplyObject(found);
    redisReaderFree(reader);
}

/* hiredis takes memory for as many elements as are announced: not for more than 999 here. */
static bool oracle_can_bear(const char *data, size_t bytes) {
    size_t digits = 0;
    for (size_t i = 0; i < bytes; i++) {
        digits = data[i] >= '0' && data[i] <= '9' ? digits + 1 : 0;
        if (digits > 3) return false;
    }
    return true;
}

/* Does hiredis find an array of strings at the start of data, within our limits? */
static bool oracle_finds_request(const char *data, size_t bytes) {
    if (!oracle_can_bear(data, bytes)) return false;
    redisReader *reader = redisReaderCreate();
    void *found = NULL;
    bool is_request = bytes > 0 && data[0] == '*' && redisReaderFeed(reader, data, bytes) == REDIS_OK &&
                      redisReaderGetReply(reader, &found) == REDIS_OK && found != NULL;
    if (is_request) {
        const redisReply *reply = found;
        is_request = reply->type == REDIS_REPLY_ARRAY && reply->elements <= WORDS_MAX;
        for (size_t i = 0; is_request && i < reply->elements; i++)
            is_request =
                reply->element[i]->type == REDIS_REPLY_STRING && (size_t)reply->element[i]->len <= limits.arg_bytes_max;
    }
    if (found != NULL) freeReplyObject(found);
    redisReaderFree(reader);
    return is_request;
}

static void check_request(const char *data, size_t used, uint32_t argc, const struct slice *argv) {
    struct buf plain = {.alloc = heap_alloc()};
    must(argc <= limits.argc_max && used > 0);
    resp_array(&plain, argc);
    for (uint32_t i = 0; i < argc; i++) {
        must(argv[i].bytes <= limits.arg_bytes_max);
        must(argv[i].data >= data && argv[i].data + argv[i].bytes <= data + used);
        resp_bulk(&plain, argv[i]);
    }
    if (slice_equal(buf_slice(&plain), slice_of(data, used))) ask_oracle(data, used, argc, argv);
    if (argc > 0) { /* the next station of every request */
        buf_clear(&plain);
        const struct command *c = command_check(argc, argv, 16, &plain);
        must((c == NULL) == (plain.bytes > 0));
        buf_clear(&plain);
        if (c != NULL && c->id == CMD_COMMAND) {
            command_reply(argc, argv, &plain);
            must(plain.bytes > 0);
        }
    }
    buf_release(&plain);
}

/* All that comes out, as text; `step` bytes more each time. */
static void run(const uint8_t *input, size_t bytes, size_t step, struct buf *out) {
    const bool whole = step >= bytes;
    char *data = malloc(bytes + 1);
    memcpy(data, input, bytes);
    struct resp_parser p = {0};
    struct slice argv[WORDS_MAX];
    size_t from = 0, seen = 0, requests = 0;
    for (;;) {
        uint32_t argc;
        size_t used;
        const char *error;
        const size_t here = seen - from;
        char *part = data + from;
        const bool exact = whole && requests < 16;
        if (exact) { /* so that a sanitizer sees a read past the end */
            part = malloc(here + (here == 0));
            memcpy(part, data + from, here);
        }
        memset(argv, 0, sizeof argv); /* nothing of an earlier call may be relied on */
        const enum resp_status status = resp_parse(&p, &limits, part, here, &argc, argv, &used, &error);
        if (status == RESP_REQUEST) {
            must(used <= here);
            if (whole && data[from] == '*')
                must(memcmp(part, data + from, here) == 0); /* only inline ones are unquoted */
            if (exact) check_request(part, used, argc, argv);
            buf_printf(out, "%u:", argc);
            for (uint32_t i = 0; i < argc; i++) wire_put_bytes(out, argv[i]);
            from += used;
            requests++;
        }
        if (exact) free(part);
        if (status == RESP_REQUEST) continue;
        if (status == RESP_ERROR) {
            const size_t length = strlen(error);
            must(length > 7 && memcmp(error, "-ERR ", 5) == 0 && strchr(error, '\r') == error + length - 2);
            if (whole && bytes - from <= limits.request_bytes_max)
                must(!oracle_finds_request(data + from, bytes - from));
            buf_append_str(out, error);
            break;
        }
        must(status == RESP_NEED_MORE);
        if (seen == bytes) {
            if (whole) must(!oracle_finds_request(data + from, bytes - from));
            break;
        }
        seen = bytes - seen > step ? seen + step : bytes;
    }
    buf_printf(out, "end %zu", from);
    free(data);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static const size_t steps[] = {1, 2, 3, 7, 64};
    struct buf whole = {.alloc = heap_alloc()}, pieces = {.alloc = heap_alloc()};
    run(data, bytes, SIZE_MAX, &whole);
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        buf_clear(&pieces);
        run(data, bytes, steps[i], &pieces);
        must(slice_equal(buf_slice(&whole), buf_slice(&pieces)));
    }
    buf_release(&whole);
    buf_release(&pieces);
    return 0;
}
