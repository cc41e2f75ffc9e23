/* heap.h - the allocator of the daemons: malloc with a count of the bytes in use. */
#pragma once
#include "common/alloc.h"

/* The process-wide allocator; valid for ever. */
const struct alloc *heap_alloc(void);
/* Bytes handed out and not yet given back, as malloc sized them. */
size_t heap_bytes_in_use(void);
