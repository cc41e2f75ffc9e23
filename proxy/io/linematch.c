#include "proxy/io/linematch.h"
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>

struct linematch {
    regex_t regex;
};

static bool has_back_reference(const char *pattern) {
    for (const char *at = pattern; *at != '\0'; at++) {
        if (*at != '\\' || at[1] == '\0') continue;
        if (at[1] >= '1' && at[1] <= '9') return true;
        at++;
    }
    return false;
}

int linematch_new(const char *pattern, struct linematch **ret_match, char *error, size_t error_bytes) {
    if (has_back_reference(pattern)) {
        snprintf(error, error_bytes, "back-references are not allowed");
        return -1;
    }
    struct linematch *m = calloc(1, sizeof *m);
    must(m != NULL);
    const int code = regcomp(&m->regex, pattern, REG_EXTENDED);
    if (code != 0) {
        regerror(code, &m->regex, error, error_bytes);
        free(m);
        return -1;
    }
    *ret_match = m;
    return 0;
}

bool linematch_find(const void *context, struct slice line, struct slice *ret_key) {
    const struct linematch *m = context;
    /* REG_STARTEND: the line is bytes, zero bytes included.  Still with one behind it: not every tool that looks over
     * regexec's shoulder knows that flag. */
    static char copy[LINEMATCH_BYTES_MAX + 1];
    if (line.bytes > LINEMATCH_BYTES_MAX) return false;
    if (line.bytes > 0) memcpy(copy, line.data, line.bytes);
    copy[line.bytes] = '\0';
    regmatch_t found[2] = {{.rm_so = 0, .rm_eo = (regoff_t)line.bytes}, {.rm_so = -1}};
    if (regexec(&m->regex, copy, 2, found, REG_STARTEND) != 0) return false;
    const regmatch_t *group = found[1].rm_so >= 0 ? &found[1] : &found[0];
    *ret_key = slice_of(line.data + group->rm_so, (size_t)(group->rm_eo - group->rm_so));
    return true;
}

void linematch_free(struct linematch *m) {
    if (m == NULL) return;
    regfree(&m->regex);
    free(m);
}
