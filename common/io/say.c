/* say.c - see say.h. */
#include "common/io/say.h"
#include <stdarg.h>
#include <stdio.h>

int say(char *error, size_t error_bytes, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(error, error_bytes, format, args);
    va_end(args);
    return -1;
}
