/* history.c - see history.h. */
#include "tests/sim/history.h"
#include <stdlib.h>
#include <string.h>
#include "common/must.h"

struct history {
    struct op *ops;
    uint32_t count, capacity;
};

static unsigned long long u(uint64_t x) {
    return x;
}
struct history *history_new(void) {
    struct history *h = calloc(1, sizeof *h);
    must(h != NULL);
    return h;
}
void history_free(struct history *h) {
    if (h == NULL) return;
    free(h->ops);
    free(h);
}
uint32_t history_ask(struct history *h, struct op op) {
    if (h->count == h->capacity) {
        h->capacity = h->capacity ? h->capacity * 2 : 1024;
        h->ops = realloc(h->ops, h->capacity * sizeof *h->ops);
        must(h->ops != NULL);
    }
    h->ops[h->count] = op;
    return h->count++;
}
struct op *history_op(struct history *h, uint32_t number) {
    must(number < h->count);
    return &h->ops[number];
}

/* ------------------------------------------------------------------ moments: asked and told, in order of time */

struct moment {
    uint64_t at_us;
    bool told;
    uint32_t op;
};
static int compare_moments(const void *a, const void *b) {
    const struct moment *x = a, *y = b;
    if (x->at_us != y->at_us) return x->at_us < y->at_us ? -1 : 1;
    if (x->told != y->told) return x->told ? 1 : -1; /* at one instant: side by side, not one after the other */
    return x->op < y->op ? -1 : x->op > y->op;
}
static struct moment *moments_of(const struct history *h, uint16_t key, bool counters, uint32_t *ret_count) {
    struct moment *m = malloc((2 * (size_t)h->count + 1) * sizeof *m);
    must(m != NULL);
    uint32_t count = 0;
    for (uint32_t i = 0; i < h->count; i++) {
        const struct op *op = &h->ops[i];
        if (op->key != key || (op->kind == OP_INCR || op->kind == OP_COUNT) != counters) continue;
        m[count++] = (struct moment){.at_us = op->asked_us, .op = i};
        if (op->outcome == OUTCOME_DONE) m[count++] = (struct moment){.at_us = op->told_us, .told = true, .op = i};
    }
    qsort(m, count, sizeof *m, compare_moments);
    *ret_count = count;
    return m;
}

/* ------------------------------------------------------------------ registers */

struct seen { /* a (version, value) that somebody was shown */
    uint64_t version, value;
};
static int compare_seen(const void *a, const void *b) {
    const struct seen *x = a, *y = b;
    if (x->version != y->version) return x->version < y->version ? -1 : 1;
    return x->value < y->value ? -1 : x->value > y->value;
}
static int compare_value(const void *a, const void *b) {
    const struct seen *x = a, *y = b;
    return x->value < y->value ? -1 : x->value > y->value;
}
/* The version of the last earlier command of that connection on this key. */
static uint64_t program_floor(const struct history *h, const struct op *op, const uint64_t *resolved) {
    for (uint32_t at = op->after; at != 0; at = h->ops[at - 1].after) {
        if (h->ops[at - 1].key == op->key && resolved[at - 1] != 0) /* of the other kind: never resolved here */
            return resolved[at - 1];
    }
    return 0;
}
/* Position of the first with at least that version. */
static uint32_t seen_at(const struct seen *s, uint32_t count, uint64_t version) {
    uint32_t low = 0, high = count;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (s[middle].version < version)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void check_register(struct world *w, const struct history *h, uint16_t key) {
    struct seen *by_version = malloc((h->count + 1) * sizeof *by_version),
                *by_value = malloc((h->count + 1) * sizeof *by_value);
    uint64_t *floor_asked = calloc(h->count + 1, sizeof *floor_asked),
             *resolved = calloc(h->count + 1, sizeof *resolved);
    must(resolved != NULL && by_version != NULL && by_value != NULL && floor_asked != NULL);
    uint32_t count = 0;
    for (uint32_t i = 0; i < h->count; i++) {
        const struct op *op = &h->ops[i];
        if (op->key != key || op->outcome != OUTCOME_DONE || op->kind == OP_INCR || op->kind == OP_COUNT) continue;
        if (op->kind == OP_SET || op->version == 0) continue;
        by_version[count++] = (struct seen){.version = op->version, .value = op->value};
    }
    qsort(by_version, count, sizeof *by_version, compare_seen);
    uint32_t distinct = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (distinct > 0 && by_version[distinct - 1].version == by_version[i].version) {
            if (by_version[distinct - 1].value != by_version[i].value)
                world_fail(w, "H2: version %llu of r%u has two values", u(by_version[i].version), key);
            continue;
        }
        by_version[distinct++] = by_version[i];
    }
    memcpy(by_value, by_version, distinct * sizeof *by_value);
    qsort(by_value, distinct, sizeof *by_value, compare_value);
    for (uint32_t i = 1; i < distinct; i++) {
        if (by_value[i].value == by_value[i - 1].value)
            world_fail(w, "H2: value %llu of r%u has two versions", u(by_value[i].value), key);
    }

    /* What is written when: a SET learns its version from whoever read it. */
    uint32_t moment_count;
    struct moment *moments = moments_of(h, key, false, &moment_count);
    uint64_t floor = 0;
    for (uint32_t i = 0; i < moment_count; i++) {
        const struct op *op = &h->ops[moments[i].op];
        if (!moments[i].told) {
            floor_asked[moments[i].op] = floor;
            continue;
        }
        uint64_t version = op->version;
        const uint64_t program = program_floor(h, op, resolved);
        const uint64_t before = program > floor_asked[moments[i].op] ? program : floor_asked[moments[i].op];
        if (op->kind == OP_SET) {
            const struct seen key_of = {.value = op->value};
            const struct seen *found = bsearch(&key_of, by_value, distinct, sizeof *by_value, compare_value);
            version = found != NULL ? found->version : before + 1; /* never seen: it is newer than all before it */
        }
        const bool wrote = op->kind == OP_SET || (op->kind == OP_CAS && op->swapped);
        if (version < before || (wrote && version == before))
            world_fail(w, "H1: r%u shows version %llu to somebody who asked after %llu was shown", key, u(version),
                       u(before));
        if (op->kind == OP_CAS && op->swapped) {
            const uint32_t at = seen_at(by_version, distinct, op->version);
            if (at > 0 && by_version[at - 1].version > op->expected)
                world_fail(w, "H3: a CAS of r%u from version %llu to %llu, but %llu lies between", key, u(op->expected),
                           u(op->version), u(by_version[at - 1].version));
        }
        if (version > floor) floor = version;
        resolved[moments[i].op] = version;
    }
    /* H2, H4: what was read was asked for before, and not refused */
    for (uint32_t i = 0; i < h->count; i++) {
        const struct op *op = &h->ops[i];
        if (op->key != key || (op->kind != OP_SET && op->kind != OP_CAS)) continue;
        if (op->kind == OP_CAS && op->outcome == OUTCOME_DONE && !op->swapped) continue;
        const struct seen key_of = {.value = op->value};
        if (op->outcome == OUTCOME_REFUSED &&
            bsearch(&key_of, by_value, distinct, sizeof *by_value, compare_value) != NULL)
            world_fail(w, "H4: value %llu of r%u was refused and is there", u(op->value), key);
    }
    free(moments);
    free(by_version);
    free(by_value);
    free(floor_asked);
    free(resolved);
}

/* H2: a read does not end before the write of its value was asked for. */
static void check_future(struct world *w, const struct history *h) {
    uint64_t values = 0;
    for (uint32_t i = 0; i < h->count; i++) {
        if (h->ops[i].value > values) values = h->ops[i].value;
    }
    uint64_t *asked = calloc(values + 1, sizeof *asked);
    must(asked != NULL);
    for (uint32_t i = 0; i < h->count; i++) {
        const struct op *op = &h->ops[i];
        const bool writes = op->kind == OP_SET || (op->kind == OP_CAS && (op->swapped || op->outcome != OUTCOME_DONE));
        if (writes) asked[op->value] = op->asked_us + 1;
    }
    for (uint32_t i = 0; i < h->count; i++) {
        const struct op *op = &h->ops[i];
        const bool reads = op->kind == OP_GETV || (op->kind == OP_CAS && !op->swapped);
        if (!reads || op->outcome != OUTCOME_DONE || op->value == 0) continue;
        if (asked[op->value] == 0 || asked[op->value] > op->told_us + 1)
            world_fail(w, "H2: value %llu of r%u was read before anybody wrote it", u(op->value), op->key);
    }
    free(asked);
}

/* ------------------------------------------------------------------ counters */

static int compare_numbers(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}
static void check_counter(struct world *w, const struct history *h, uint16_t key) {
    uint32_t moment_count;
    struct moment *moments = moments_of(h, key, true, &moment_count);
    uint64_t *floor_asked = calloc(h->count + 1, sizeof *floor_asked), *numbers = calloc(h->count + 1, sizeof *numbers),
             *resolved = calloc(h->count + 1, sizeof *resolved);
    must(floor_asked != NULL && numbers != NULL && resolved != NULL);
    uint64_t floor = 0, asked = 0;
    uint32_t done = 0;
    for (uint32_t i = 0; i < moment_count; i++) {
        const struct op *op = &h->ops[moments[i].op];
        if (!moments[i].told) {
            floor_asked[moments[i].op] = floor;
            if (op->kind == OP_INCR && op->outcome != OUTCOME_REFUSED) asked++;
            continue;
        }
        const uint64_t program = program_floor(h, op, resolved);
        const uint64_t before = program > floor_asked[moments[i].op] ? program : floor_asked[moments[i].op];
        resolved[moments[i].op] = op->version;
        if (op->kind == OP_INCR) numbers[done++] = op->version;
        if (op->version < before || (op->kind == OP_INCR && op->version == before))
            world_fail(w, "H5: c%u shows %llu to somebody who asked after %llu was shown", key, u(op->version),
                       u(before));
        if (op->version > asked)
            world_fail(w, "H5: c%u is %llu, only %llu increments were asked for (one of them refused?)", key,
                       u(op->version), u(asked));
        if (op->version > floor) floor = op->version;
    }
    qsort(numbers, done, sizeof *numbers, compare_numbers);
    for (uint32_t i = 1; i < done; i++) {
        if (numbers[i] == numbers[i - 1]) world_fail(w, "H5: two increments of c%u got %llu", key, u(numbers[i]));
    }
    if (floor < done) world_fail(w, "H5: c%u is %llu at the end, %u increments were acknowledged", key, u(floor), done);
    free(moments);
    free(floor_asked);
    free(numbers);
    free(resolved);
}

void history_check(struct world *w, struct history *h) {
    for (uint16_t key = 0; key < HISTORY_KEYS; key++) {
        check_register(w, h, key);
        check_counter(w, h, key);
    }
    check_future(w, h);
}
