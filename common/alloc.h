/* alloc.h - where core code gets its memory from.
 *
 * Core libraries never call malloc: they take a `struct alloc` in their configuration, so that a test can limit it,
 * count it and make the N-th request fail.  Running out is fatal (must): growth is refused long before by the
 * limits in settings, and a replica that cannot apply what was chosen has to stop. */
#pragma once
#include <stddef.h>

struct alloc {
    /* As realloc(3): memory NULL allocates, bytes 0 frees and returns NULL. */
    void *(*resize)(void *context, void *memory, size_t bytes);
    void *context;
};

/* Fresh memory, not cleared; never NULL for bytes > 0. */
void *alloc_get(const struct alloc *a, size_t bytes);
/* The same, cleared. */
void *alloc_get0(const struct alloc *a, size_t bytes);
/* Grow or shrink, keeping the contents. */
void *alloc_resize(const struct alloc *a, void *memory, size_t bytes);
/* Give back; NULL is fine. */
void alloc_put(const struct alloc *a, void *memory);
