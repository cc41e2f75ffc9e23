/* lincheck.c - judges histories of real processes: lincheck [--drift-ppm N] FILE...   (format: HISTORY.md)
 * exit 0: all could be told by one store; 1: one could not; 2: a line cannot be read; 3: given up */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/sim/lin.h"

enum { STATES_MAX = 3000000 }; /* some seconds for one key; beyond that the search seldom ends */

static char *read_all(FILE *f, size_t *ret_bytes) {
    size_t bytes = 0, room = 1 << 16;
    char *data = malloc(room);
    while (data != NULL) {
        const size_t got = fread(data + bytes, 1, room - bytes, f);
        bytes += got;
        if (got == 0) break;
        if (bytes < room) continue;
        char *bigger = realloc(data, room *= 2);
        if (bigger == NULL) free(data);
        data = bigger;
    }
    *ret_bytes = bytes;
    return data;
}
static int judge(const char *name, uint32_t drift_ppm, struct lin_result *total) {
    FILE *f = strcmp(name, "-") == 0 ? stdin : fopen(name, "r");
    if (f == NULL) {
        perror(name);
        return 2;
    }
    size_t bytes;
    char *data = read_all(f, &bytes);
    if (f != stdin) fclose(f);
    if (data == NULL) {
        perror(name);
        return 2;
    }
    uint32_t line;
    struct lin_text *t = lin_text_read(data, bytes, drift_ppm, &line);
    free(data);
    if (t == NULL) {
        fprintf(stderr, "%s:%u: this line cannot be read\n", name, line);
        return 2;
    }
    const struct lin_result r = lin_text_check(t, STATES_MAX, stdout);
    lin_text_free(t);
    total->ops += r.ops;
    total->keys += r.keys;
    total->open += r.open;
    total->bad += r.bad;
    total->lost += r.lost;
    return r.bad > 0 ? 1 : r.lost > 0 ? 3 : 0;
}

int main(int argc, char **argv) {
    struct lin_result total = {0};
    uint32_t drift_ppm = 1000;
    int status = 0, first = 1;
    if (argc > 2 && strcmp(argv[1], "--drift-ppm") == 0) {
        drift_ppm = (uint32_t)strtoul(argv[2], NULL, 10);
        first = 3;
    }
    if (first >= argc || drift_ppm >= 1000000) {
        fprintf(stderr, "usage: %s [--drift-ppm N] FILE...\n", argv[0]);
        return 2;
    }
    for (int i = first; i < argc; i++) {
        const int one = judge(argv[i], drift_ppm, &total);
        if (one == 2) return 2;
        if (one == 1 || status == 0) status = one;
    }
    printf("lincheck: %" PRIu64 " operations, %" PRIu64 " keys, %" PRIu64 " unknown, %" PRIu64 " violations", total.ops,
           total.keys, total.open, total.bad);
    if (total.lost > 0) printf(", %" PRIu64 " given up", total.lost);
    putchar('\n');
    return status;
}
