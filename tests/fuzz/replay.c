/* replay.c - a fuzz target without libFuzzer: every file of a corpus as it is, then a fixed number of changed ones.
 *
 *   replay CORPUS-DIR-OR-FILE [ROUNDS [SEED]]
 *
 * The changes depend on SEED alone.  When the target aborts or crashes, the input that did it is kept in a file whose
 * name is printed; `replay FILE 0` repeats it. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "tests/fuzz/fuzz.h"

enum { FILES_MAX = 4096, BYTES_MAX = 1 << 20, GROWTH_MAX = 4096 };

struct input {
    uint8_t *data;
    size_t bytes;
};

static struct input corpus[FILES_MAX];
static size_t corpus_count;
static struct input current;
static const char *program;

/* Async-signal-safe calls only. */
static void on_crash(int number) {
    static const char name[] = "fuzz-crash.bin", said[] = "the input is in ./fuzz-crash.bin; repeat with: ";
    const int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ssize_t done = fd >= 0 ? write(fd, current.data, current.bytes) : -1;
    if (done >= 0) {
        done = write(2, said, sizeof said - 1);
        done = write(2, program, strlen(program));
        done = write(2, " ./fuzz-crash.bin 0\n", 20);
    }
    if (fd >= 0) close(fd);
    _exit(128 + number);
}

static void try(uint8_t *data, size_t bytes) {
    current = (struct input){data, bytes};
    LLVMFuzzerTestOneInput(data, bytes);
}

/* SplitMix64 (Steele, Lea, Flood, 2014). */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static bool load(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || corpus_count == FILES_MAX) {
        if (file != NULL) fclose(file);
        return false;
    }
    struct input *in = &corpus[corpus_count++];
    in->data = malloc(BYTES_MAX + GROWTH_MAX);
    in->bytes = fread(in->data, 1, BYTES_MAX, file);
    in->data = realloc(in->data, in->bytes + 1);
    fclose(file);
    return true;
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* In order of name, so that a seed means the same everywhere. */
static bool load_all(const char *path) {
    struct stat status;
    if (stat(path, &status) != 0) return false;
    if (!S_ISDIR(status.st_mode)) return load(path);
    DIR *dir = opendir(path);
    if (dir == NULL) return false;
    static char *names[FILES_MAX];
    size_t count = 0;
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL && count < FILES_MAX;)
        if (entry->d_name[0] != '.') names[count++] = strdup(entry->d_name);
    closedir(dir);
    qsort(names, count, sizeof names[0], by_name);
    bool loaded = true;
    for (size_t i = 0; i < count; i++) {
        char file[4096];
        snprintf(file, sizeof file, "%s/%s", path, names[i]);
        loaded &= load(file);
        free(names[i]);
    }
    return loaded;
}

/* One to four changes: a bit, a byte, a byte that parsers look at, a cut, a run removed, repeated or taken from another
 * file. */
static void change(struct input *in, uint64_t *state) {
    static const char liked[] = "\r\n*$-+:0123456789\0\xff'\"\\ x";
    for (uint64_t i = 0, count = 1 + next_random(state) % 4; i < count; i++) {
        const uint64_t dice = next_random(state);
        const size_t at = in->bytes > 0 ? (size_t)(next_random(state) % in->bytes) : 0, rest = in->bytes - at;
        size_t run = 1 + (size_t)(next_random(state) % 16);
        switch (dice % 7) {
        case 0:
            if (rest > 0) in->data[at] ^= (uint8_t)(1 << (dice >> 8) % 8);
            break;
        case 1:
            if (rest > 0) in->data[at] = (uint8_t)(dice >> 8);
            break;
        case 2:
            if (rest > 0) in->data[at] = (uint8_t)liked[(dice >> 8) % (sizeof liked - 1)];
            break;
        case 3: in->bytes = at; break;
        case 4:
            if (run > rest) run = rest;
            memmove(in->data + at, in->data + at + run, rest - run);
            in->bytes -= run;
            break;
        case 5:
            if (run > rest) run = rest;
            memmove(in->data + at + run, in->data + at, rest);
            in->bytes += run;
            break;
        default: {
            const struct input *other = &corpus[(dice >> 8) % corpus_count];
            if (run > other->bytes) run = other->bytes;
            memmove(in->data + at + run, in->data + at, rest);
            memcpy(in->data + at, other->data, run);
            in->bytes += run;
        }
        }
    }
}

int main(int argc, char **argv) {
    program = argv[0];
    if (argc < 2 || !load_all(argv[1]) || corpus_count == 0) {
        fprintf(stderr, "usage: %s CORPUS-DIR-OR-FILE [ROUNDS [SEED]] (at least one readable file)\n", argv[0]);
        return 2;
    }
    const uint64_t rounds = argc > 2 ? strtoull(argv[2], NULL, 10) : 0;
    uint64_t state = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;
    const struct sigaction action = {.sa_handler = on_crash};
    sigaction(SIGABRT, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
    for (size_t i = 0; i < corpus_count; i++) try(corpus[i].data, corpus[i].bytes);
    for (uint64_t i = 0; i < rounds; i++) {
        const struct input *from = &corpus[next_random(&state) % corpus_count];
        struct input in = {malloc(from->bytes + GROWTH_MAX), from->bytes};
        memcpy(in.data, from->data, from->bytes);
        change(&in, &state);
        try(in.data, in.bytes);
        free(in.data);
    }
    for (size_t i = 0; i < corpus_count; i++) free(corpus[i].data);
    printf("%zu files, %llu changed inputs\n", corpus_count, (unsigned long long)rounds);
    return 0;
}
