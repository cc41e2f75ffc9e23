#include "common/buf.h"
#include "common/must.h"
#include <stdarg.h>
#include <stdio.h>

char *buf_reserve(struct buf *b, size_t bytes) {
    if (b->capacity - b->bytes < bytes) {
        size_t capacity = b->capacity ? b->capacity : 64;
        while (capacity - b->bytes < bytes) capacity *= 2;
        b->data = alloc_resize(b->alloc, b->data, capacity);
        b->capacity = capacity;
    }
    return b->data + b->bytes;
}

void buf_append(struct buf *b, const void *data, size_t bytes) {
    if (bytes == 0) return;
    memcpy(buf_reserve(b, bytes), data, bytes);
    b->bytes += bytes;
}

void buf_append_slice(struct buf *b, struct slice s) {
    buf_append(b, s.data, s.bytes);
}

void buf_append_str(struct buf *b, const char *text) {
    buf_append(b, text, strlen(text));
}

void buf_printf(struct buf *b, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    const int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    must(length >= 0);
    buf_append(b, text, (size_t)length < sizeof text ? (size_t)length : sizeof text - 1);
}

void buf_clear(struct buf *b) {
    b->bytes = 0;
}

void buf_release(struct buf *b) {
    alloc_put(b->alloc, b->data);
    b->data = NULL;
    b->bytes = b->capacity = 0;
}
