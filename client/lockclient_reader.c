/* lockclient_reader.c - hiredis' reader with limits, because who answers may be hostile or broken.
 *
 * hiredis bounds the nesting (7).  Left to us: the memory of one reply, which `*2147483647` alone would make 16 GiB,
 * the bytes kept of an unfinished bulk, and a line that never ends. */
#include "client/lockclient_private.h"
#include <stdlib.h>
#include <string.h>

static bool take(const redisReadTask *task, size_t bytes) {
    struct reader *r = task->privdata;
    if (bytes > REPLY_BYTES_MAX || r->reply_bytes > REPLY_BYTES_MAX - bytes) return false;
    r->reply_bytes += bytes;
    return true;
}

static struct reader *reader_of(const redisReadTask *task) {
    return task->privdata;
}

/* NULL makes hiredis stop with an error of its own. */
static void *create_string(const redisReadTask *task, char *text, size_t bytes) {
    return take(task, bytes + sizeof(redisReply)) ? reader_of(task)->inner->createString(task, text, bytes) : NULL;
}
static void *create_array(const redisReadTask *task, int count) {
    const size_t bytes = count > 0 ? (size_t)count * sizeof(redisReply *) : 0;
    return take(task, bytes + sizeof(redisReply)) ? reader_of(task)->inner->createArray(task, count) : NULL;
}
static void *create_integer(const redisReadTask *task, long long value) {
    return take(task, sizeof(redisReply)) ? reader_of(task)->inner->createInteger(task, value) : NULL;
}
static void *create_nil(const redisReadTask *task) {
    return take(task, sizeof(redisReply)) ? reader_of(task)->inner->createNil(task) : NULL;
}

void reader_init(struct reader *r) {
    *r = (struct reader){.redis = redisReaderCreate()};
    must(r->redis != NULL);
    r->inner = r->redis->fn;
    r->functions =
        (redisReplyObjectFunctions){create_string, create_array, create_integer, create_nil, r->inner->freeObject};
    r->redis->fn = &r->functions;
    r->redis->privdata = r;
}

void reader_release(struct reader *r) {
    if (r->redis != NULL) redisReaderFree(r->redis);
    *r = (struct reader){0};
}

enum reader_answer reader_feed(struct reader *r, const void *bytes, size_t count) {
    if (count > REPLY_BYTES_MAX) return READER_GARBAGE;
    return redisReaderFeed(r->redis, bytes, count) == REDIS_OK ? READER_NEED_MORE : READER_GARBAGE;
}

enum reader_answer reader_next(struct reader *r, struct redisReply **ret_reply) {
    void *reply = NULL;
    if (redisReaderGetReply(r->redis, &reply) != REDIS_OK) return READER_GARBAGE;
    if (reply != NULL) {
        r->reply_bytes = 0;
        *ret_reply = reply;
        return READER_REPLY;
    }
    const size_t unread = r->redis->len - r->redis->pos;
    if (unread > (size_t)REPLY_BYTES_MAX + LINE_BYTES_MAX) return READER_GARBAGE;
    if (unread > LINE_BYTES_MAX && memchr(r->redis->buf + r->redis->pos, '\n', LINE_BYTES_MAX) == NULL) {
        return READER_GARBAGE;
    }
    return READER_NEED_MORE;
}
