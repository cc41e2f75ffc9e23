#include "common/must.h"
#include <stdio.h>
#include <stdlib.h>

void must_fail(const char *file, int line, const char *condition) {
    fprintf(stderr, "fatal must file=%s line=%d condition=\"%s\"\n", file, line, condition);
    abort();
}
