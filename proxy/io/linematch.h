/* linematch.h - the regular expressions of `line REGEX` rules: POSIX extended, as regcomp(3) has them. */
#pragma once
#include "proxy/core/key.h"

enum { LINEMATCH_BYTES_MAX = 65536 }; /* a longer line never matches */

struct linematch;

/* 0 and *ret_match, freed with linematch_free; or -1 with what is wrong in `error`.  Back-references are refused: with
 * them the time for one line can grow exponentially, and lines come from clients. */
NODISCARD int linematch_new(const char *pattern, struct linematch **ret_match, char *error, size_t error_bytes);
/* A key_match_fn; context is the struct linematch.  The key is the first group that took part, else the whole match. */
bool linematch_find(const void *context, struct slice line, struct slice *ret_key);
/* NULL is fine. */
void linematch_free(struct linematch *m);
