/* lin_text.c - histories as text, see HISTORY.md.  Words become numbers, lines become operations, keys are judged
 * alone. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/must.h"
#include "common/slice.h"
#include "tests/sim/lin.h"
#include <uthash.h>

enum { WORDS_MAX = 16 };

struct word {
    UT_hash_handle hh;
    uint64_t id;
    char text[];
};
struct line {
    struct lin_op op;
    uint64_t key;
    uint32_t number; /* in the file */
};
struct lin_text {
    struct word *words;
    uint64_t word_count;
    struct line *lines;
    uint32_t count, capacity;
    struct lin_lease *leases;
    uint32_t lease_count, lease_capacity;
    uint32_t drift_ppm;
};
struct words {
    struct slice at[WORDS_MAX];
    uint32_t count;
};

static void *more(void *memory, uint32_t *capacity, uint32_t count, size_t each) {
    if (count < *capacity) return memory;
    *capacity = *capacity ? *capacity * 2 : 256;
    memory = realloc(memory, *capacity * each);
    must(memory != NULL);
    return memory;
}
/* Numbers stand for themselves, other words are numbered from 2^63 on. */
static uint64_t intern(struct lin_text *t, struct slice s) {
    uint64_t number;
    if (slice_to_u64(s, &number) && number < UINT64_C(1) << 63) return number;
    struct word *w;
    HASH_FIND(hh, t->words, s.data, s.bytes, w);
    if (w != NULL) return w->id;
    w = calloc(1, sizeof *w + s.bytes + 1);
    must(w != NULL);
    memcpy(w->text, s.data, s.bytes);
    w->id = (UINT64_C(1) << 63) + ++t->word_count;
    HASH_ADD_KEYPTR(hh, t->words, w->text, s.bytes, w);
    return w->id;
}
static const char *name_of(const struct lin_text *t, uint64_t id, char *room, size_t bytes) {
    if (id < UINT64_C(1) << 63) {
        snprintf(room, bytes, "%" PRIu64, id);
        return room;
    }
    for (const struct word *w = t->words; w != NULL; w = w->hh.next) {
        if (w->id == id) return w->text;
    }
    return "?";
}
static bool is(struct slice s, const char *text) {
    return slice_equal(s, slice_str(text));
}
static bool number(struct slice s, uint64_t *ret) {
    return slice_to_u64(s, ret);
}
static uint64_t shorter(const struct lin_text *t, uint64_t life) {
    const uint64_t less = life / 1000000 * t->drift_ppm + life % 1000000 * t->drift_ppm / 1000000;
    return life > less ? life - less : 1;
}

/* ------------------------------------------------------------------ one line */

static bool set_option(struct lin_text *t, struct lin_op *op, struct slice s) {
    uint64_t n;
    if (is(s, "nx"))
        op->flags |= LIN_NX;
    else if (is(s, "xx"))
        op->flags |= LIN_XX;
    else if (is(s, "get"))
        op->flags |= LIN_OLD;
    else if (s.bytes > 3 && memcmp(s.data, "px=", 3) == 0) {
        if (!number(slice_of(s.data + 3, s.bytes - 3), &n) || n == 0) return false;
        op->life = shorter(t, n);
    } else if (s.bytes > 6 && memcmp(s.data, "lease=", 6) == 0) {
        if (!number(slice_of(s.data + 6, s.bytes - 6), &n) || n == 0) return false;
        op->lease = n;
    } else
        return false;
    return true;
}
static bool arguments(struct lin_text *t, struct lin_op *op, const struct slice *a, uint32_t count) {
    switch (op->kind) {
    case LIN_SET:
        op->value = intern(t, a[0]);
        for (uint32_t i = 1; i < count; i++) {
            if (!set_option(t, op, a[i])) return false;
        }
        return true;
    case LIN_CAS: op->value = intern(t, a[1]); return number(a[0], &op->version);
    case LIN_CAD:
    case LIN_WOR_SET: op->value = intern(t, a[0]); return true;
    case LIN_PEXPIRE:
        if (!number(a[0], &op->life) || op->life == 0) return false;
        op->life = shorter(t, op->life);
        return true;
    case LIN_ACQUIRE: return number(a[0], &op->lease) && op->lease != 0;
    case LIN_RELEASE:
        if (count == 2 && !number(a[1], &op->version)) return false;
        return number(a[0], &op->lease) && op->lease != 0;
    case LIN_CHECK: return number(a[0], &op->version);
    default: return true;
    }
}
static bool answer(struct lin_text *t, struct lin_op *op, const struct slice *a, uint32_t count) {
    uint64_t first = 0;
    const bool nil = count == 1 && is(a[0], "nil");
    if (count == 1 && (is(a[0], "?") || is(a[0], "!"))) {
        op->outcome = is(a[0], "!") ? LIN_REFUSED : LIN_OPEN;
        return true;
    }
    op->outcome = LIN_DONE;
    op->yes = !nil;
    switch (op->kind) {
    case LIN_SET:
        if (op->flags & LIN_OLD) {
            if (!nil) op->ret_value = intern(t, a[0]);
            return count == 1;
        }
        return count == 1 && (nil || is(a[0], "ok"));
    case LIN_GET:
        if (!nil) op->ret_value = intern(t, a[0]);
        return count == 1;
    case LIN_INCR:
        if (count != 1 || !number(a[0], &first)) return false;
        op->ret_value = first;
        return true;
    case LIN_GETV:
    case LIN_WOR_GET:
        if (nil) return true;
        if (count != 2) return false;
        op->ret_value = intern(t, a[1]);
        return number(a[0], &op->ret_version);
    case LIN_DEL:
    case LIN_CAD:
    case LIN_PEXPIRE:
    case LIN_RELEASE:
        if (count != 1 || !number(a[0], &first) || first > 1) return false;
        op->yes = first == 1;
        return true;
    case LIN_CAS:
    case LIN_WOR_SET:
        if (count < 2 || count > 3 || !number(a[0], &first) || first > 1 || !number(a[1], &op->ret_version))
            return false;
        op->yes = first == 1;
        if (op->kind == LIN_CAS && op->yes) return true;
        if (op->kind == LIN_CAS && op->ret_version == 0) return true;
        if (count != 3) return false;
        op->ret_value = intern(t, a[2]);
        return true;
    case LIN_ACQUIRE:
        if (count == 1 && is(a[0], "nolease")) {
            op->no_lease = true;
            return true;
        }
        return count == 1 && (nil || number(a[0], &op->ret_version));
    case LIN_CHECK: op->yes = count == 1 && is(a[0], "1"); return op->yes || (count == 1 && is(a[0], "fenced"));
    case LIN_HOLDER:
        if (nil) return true;
        return count == 2 && number(a[0], &op->ret_version) && number(a[1], &op->ret_value);
    case LIN_KIND_END: break;
    }
    return false;
}
/* lease ID until T, lease ID ended T */
static bool lease_line(struct lin_text *t, const struct words *w) {
    uint64_t id, at;
    if (w->count != 4 || !number(w->at[1], &id) || !number(w->at[3], &at)) return false;
    if (!is(w->at[2], "until") && !is(w->at[2], "ended")) return false;
    t->leases = more(t->leases, &t->lease_capacity, t->lease_count, sizeof *t->leases);
    /* an end is kept as a line of its own until all are read: the lowest bit says which */
    t->leases[t->lease_count++] = (struct lin_lease){.id = id, .until = at << 1 | is(w->at[2], "ended")};
    return true;
}
static bool op_line(struct lin_text *t, const struct words *w, uint32_t line_number) {
    static const struct {
        const char *word;
        uint32_t least, most;
    } kinds[LIN_KIND_END] = {
#define KIND(name, word, least, most) {word, least, most},
        LIN_KINDS(KIND)
#undef KIND
    };
    struct lin_op op = {0};
    if (w->count < 7) return false;
    uint32_t arrow = 5;
    while (arrow < w->count && !is(w->at[arrow], "=>")) arrow++;
    if (arrow + 1 >= w->count) return false;
    while (op.kind < LIN_KIND_END && !is(w->at[3], kinds[op.kind].word)) op.kind++;
    if (op.kind == LIN_KIND_END) return false;
    const uint32_t count = arrow - 5;
    if (count < kinds[op.kind].least || count > kinds[op.kind].most) return false;
    op.connection = intern(t, w->at[0]);
    if (!number(w->at[1], &op.asked)) return false;
    if (!arguments(t, &op, &w->at[5], count) || !answer(t, &op, &w->at[arrow + 1], w->count - arrow - 1)) return false;
    if (op.outcome == LIN_DONE && (!number(w->at[2], &op.told) || op.told < op.asked)) return false;
    if (op.kind == LIN_SET && op.life != 0 && op.lease != 0) return false;
    t->lines = more(t->lines, &t->capacity, t->count, sizeof *t->lines);
    t->lines[t->count++] = (struct line){.op = op, .key = intern(t, w->at[4]), .number = line_number};
    return true;
}

static int compare_leases(const void *a, const void *b) {
    const struct lin_lease *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}
/* One per lease: the latest "until", not beyond the earliest "ended". */
static void merge_leases(struct lin_text *t) {
    uint32_t kept = 0;
    if (t->lease_count > 0) qsort(t->leases, t->lease_count, sizeof *t->leases, compare_leases);
    for (uint32_t i = 0; i < t->lease_count;) {
        uint64_t until = 0, ended = UINT64_MAX;
        const uint64_t id = t->leases[i].id;
        for (; i < t->lease_count && t->leases[i].id == id; i++) {
            const uint64_t at = t->leases[i].until >> 1;
            if (t->leases[i].until & 1)
                ended = at < ended ? at : ended;
            else
                until = at > until ? at : until;
        }
        t->leases[kept++] = (struct lin_lease){.id = id, .until = until < ended ? until : ended};
    }
    t->lease_count = kept;
}
static int compare_lines(const void *a, const void *b) {
    const struct line *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->number < y->number ? -1 : x->number > y->number;
}

struct lin_text *lin_text_read(const char *bytes, uint64_t length, uint32_t drift_ppm, uint32_t *ret_line) {
    struct lin_text *t = calloc(1, sizeof *t);
    must(t != NULL);
    t->drift_ppm = drift_ppm;
    *ret_line = 0;
    const char *const end = bytes + length;
    for (const char *at = bytes; at < end;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *const stop = newline != NULL ? newline : end;
        struct words w = {0};
        bool good = true;
        ++*ret_line;
        while (at < stop) {
            while (at < stop && (*at == ' ' || *at == '\t' || *at == '\r')) at++;
            const char *word = at;
            while (at < stop && *at != ' ' && *at != '\t' && *at != '\r') at++;
            if (at == word) break;
            if (w.count == WORDS_MAX) good = false;
            if (good) w.at[w.count++] = slice_of(word, (size_t)(at - word));
        }
        at = stop + 1;
        if (w.count == 0 || w.at[0].data[0] == '#') continue;
        if (good) good = is(w.at[0], "lease") ? lease_line(t, &w) : op_line(t, &w, *ret_line);
        if (good) continue;
        lin_text_free(t);
        return NULL;
    }
    merge_leases(t);
    if (t->count > 0) qsort(t->lines, t->count, sizeof *t->lines, compare_lines);
    return t;
}
void lin_text_free(struct lin_text *t) {
    if (t == NULL) return;
    struct word *w, *next;
    HASH_ITER(hh, t->words, w, next) {
        HASH_DEL(t->words, w);
        free(w);
    }
    free(t->lines);
    free(t->leases);
    free(t);
}

/* ------------------------------------------------------------------ the judgement */

struct lin_result lin_text_check(const struct lin_text *t, uint64_t states_max, void *out) {
    struct lin_result r = {.ops = t->count};
    struct lin_op *ops = calloc((size_t)t->count + 1, sizeof *ops);
    must(ops != NULL);
    for (uint32_t i = 0; i < t->count;) {
        const uint32_t first = i;
        uint32_t stuck, open = 0;
        for (; i < t->count && t->lines[i].key == t->lines[first].key; i++) {
            ops[i - first] = t->lines[i].op;
            open += t->lines[i].op.outcome == LIN_OPEN;
        }
        r.keys++;
        r.open += open;
        const enum lin_verdict verdict = lin_check(ops, i - first, t->leases, t->lease_count, states_max, &stuck);
        r.bad += verdict == LIN_BAD;
        r.lost += verdict == LIN_LOST;
        if (verdict == LIN_GOOD || out == NULL) continue;
        char room[32];
        const char *const key = name_of(t, t->lines[first].key, room, sizeof room);
        if (verdict == LIN_LOST) {
            fprintf(out, "given up - key %s: %u operations, %u of them without an answer\n", key, i - first, open);
            continue;
        }
        fprintf(out, "not ok - key %s: what line %u was told at %" PRIu64 " cannot be explained; with it and before:\n",
                key, t->lines[first + stuck].number, ops[stuck].told);
        for (uint32_t k = 0; k < i - first; k++) {
            const struct lin_op *op = &ops[k];
            const bool near =
                op->asked <= ops[stuck].told && (op->outcome != LIN_DONE || op->told + 1 > ops[stuck].asked);
            if (near) fprintf(out, "  line %u%s\n", t->lines[first + k].number, k == stuck ? " <- this" : "");
        }
    }
    free(ops);
    return r;
}
