/* buf.h - a growing run of bytes the owner appends to.
 *
 * Zero-initialise with an allocator: struct buf b = {.alloc = a}.  The data pointer moves when it grows. */
#pragma once
#include "common/alloc.h"
#include "common/slice.h"

struct buf {
    const struct alloc *alloc;
    char *data;
    size_t bytes, capacity;
};

static inline struct slice buf_slice(const struct buf *b) {
    return slice_of(b->data, b->bytes);
}
/* Room for `bytes` more at the end; returns where they go.  buf->bytes does not change. */
char *buf_reserve(struct buf *b, size_t bytes);
void buf_append(struct buf *b, const void *data, size_t bytes);
void buf_append_slice(struct buf *b, struct slice s);
void buf_append_str(struct buf *b, const char *text);
/* printf(3) for short texts and numbers; the formatted text is at most 1023 bytes, the rest is cut. */
void buf_printf(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Forget the contents, keep the memory. */
void buf_clear(struct buf *b);
/* Give the memory back; the buf may be used again. */
void buf_release(struct buf *b);
