/* say.h - the environment failed: one line of why, for the caller to log where it is handled. */
#pragma once
#include <stddef.h>

/* Formats into `error`, cut to `error_bytes`.  Always -1, so that a function can end with `return say(...)`. */
int say(char *error, size_t error_bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));
