/* main.c - tells every story and compares: TAP on standard output, one test per file.
 *
 *   scenario [--rewrite] FILE-OR-DIRECTORY ...
 *
 * Each story is told in a process of its own, so that one that ends it does not hide the others.  A difference is shown
 * line by line with the command that repeats it; --rewrite puts what happened into the file instead: read the diff of
 * your version control before you believe it. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/io/heap.h"
#include "tests/scenario/story.h"

enum { FILES_MAX = 1024, LINES_MAX = 1000, STORY_SECONDS_MAX = 60 };

static char *files[FILES_MAX];
static size_t file_count;
static bool rewrite;
static const char *program;

static void add_file(const char *path) {
    if (file_count < FILES_MAX) files[file_count++] = strdup(path);
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void add(const char *path) {
    DIR *dir = opendir(path);
    if (dir == NULL) {
        add_file(path);
        return;
    }
    for (const struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        const size_t bytes = strlen(entry->d_name);
        if (bytes < 5 || strcmp(entry->d_name + bytes - 4, ".txt") != 0) continue;
        char file[4096];
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        add_file(file);
    }
    closedir(dir);
    qsort(files, file_count, sizeof files[0], by_name);
}

static bool read_whole(const char *path, struct buf *text) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return false;
    char part[4096];
    for (size_t n; (n = fread(part, 1, sizeof part, file)) > 0;) buf_append(text, part, n);
    fclose(file);
    return true;
}

static bool write_whole(const char *path, struct slice text) {
    FILE *file = fopen(path, "wb");
    if (file == NULL) return false;
    const bool whole = fwrite(text.data, 1, text.bytes, file) == text.bytes;
    return fclose(file) == 0 && whole;
}

static struct slice next_line(struct slice *text) {
    const char *end = text->bytes > 0 ? memchr(text->data, '\n', text->bytes) : NULL;
    const size_t bytes = end != NULL ? (size_t)(end - text->data) : text->bytes;
    const struct slice line = slice_of(text->data, bytes);
    *text = slice_of(text->data + bytes + (end != NULL), text->bytes - bytes - (end != NULL));
    return line;
}

static uint32_t split_lines(struct slice text, struct slice *lines) {
    uint32_t count = 0;
    while (text.bytes > 0 && count < LINES_MAX) lines[count++] = next_line(&text);
    return count;
}

/* The longest common subsequence, by the book: stories are short. */
static void show_difference(struct slice want_text, struct slice got_text) {
    static struct slice want[LINES_MAX], got[LINES_MAX];
    static uint16_t common[LINES_MAX + 1][LINES_MAX + 1]; /* of want from i on and got from k on */
    const uint32_t wants = split_lines(want_text, want), gots = split_lines(got_text, got);
    for (uint32_t i = wants; i-- > 0;)
        for (uint32_t k = gots; k-- > 0;) {
            const uint16_t drop = common[i + 1][k] > common[i][k + 1] ? common[i + 1][k] : common[i][k + 1];
            common[i][k] = slice_equal(want[i], got[k]) ? (uint16_t)(common[i + 1][k + 1] + 1) : drop;
        }
    for (uint32_t i = 0, k = 0; i < wants || k < gots;) {
        if (i < wants && k < gots && slice_equal(want[i], got[k])) {
            i++;
            k++;
        } else if (k == gots || (i < wants && common[i + 1][k] >= common[i][k + 1])) {
            printf("# line %-3u - %.*s\n", i + 1, (int)want[i].bytes, want[i].data);
            i++;
        } else {
            printf("# line %-3u + %.*s\n", i + 1, (int)got[k].bytes, got[k].data);
            k++;
        }
    }
}

static int tell(const char *path) {
    struct buf want = {.alloc = heap_alloc()}, got = {.alloc = heap_alloc()};
    bool same = false;
    if (!read_whole(path, &want)) {
        printf("# %s cannot be read\n", path);
    } else {
        const bool good = story_tell(buf_slice(&want), &got);
        same = good && slice_equal(buf_slice(&want), buf_slice(&got));
        if (!same) show_difference(buf_slice(&want), buf_slice(&got));
        if (rewrite && !slice_equal(buf_slice(&want), buf_slice(&got))) {
            const bool written = write_whole(path, buf_slice(&got));
            printf("# %s %s\n", written ? "rewrote" : "CANNOT WRITE", path);
            same = written && good;
        }
    }
    buf_release(&want);
    buf_release(&got);
    return same ? 0 : 1;
}

int main(int argc, char **argv) {
    int failed = 0;
    program = argv[0];
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--rewrite") == 0)
            rewrite = true;
        else
            add(argv[i]);
    }
    if (file_count == 0) {
        fprintf(stderr, "usage: %s [--rewrite] FILE-OR-DIRECTORY ...\n", argv[0]);
        return 2;
    }
    printf("1..%zu\n", file_count);
    for (size_t i = 0; i < file_count; i++) {
        fflush(stdout);
        const pid_t child = fork();
        if (child == 0) {
            alarm(STORY_SECONDS_MAX);
            const int status = tell(files[i]);
            for (size_t k = 0; k < file_count; k++) free(files[k]);
            fflush(stdout);
            exit(status);
        }
        int status = -1;
        const bool good = child > 0 && waitpid(child, &status, 0) == child && status == 0;
        const char *name = strrchr(files[i], '/');
        if (!good && WIFSIGNALED(status)) printf("# ended by signal %d\n", WTERMSIG(status));
        if (!good) printf("# repeat: %s %s   (VERBOSE=1 shows what the nodes say)\n", program, files[i]);
        printf("%s %zu - %s\n", good ? "ok" : "not ok", i + 1, name != NULL ? name + 1 : files[i]);
        failed += !good;
    }
    for (size_t i = 0; i < file_count; i++) free(files[i]);
    return failed != 0;
}
