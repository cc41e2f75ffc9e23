/* story.c - see story.h. */
#include "tests/sim/story.h"
#include <stdio.h>
#include <stdlib.h>
#include "common/must.h"

enum { KEYS_MAX = 8, OPEN_MAX = 10, STATES_MAX = 2000000 };

static const struct {
    const char *name;
    char letter;
    uint32_t keys, ops;
} groups[STORY_GROUP_END] = {
#define GROUP(name, letter, count, ops) {#name, letter, count, ops},
    STORY_GROUPS(GROUP)
#undef GROUP
};

struct key { /* its number says who it is: group, which of the group, generation */
    uint32_t number, ops, open;
};
struct told {
    struct lin_op op;
    uint32_t key;
    bool lost;
};
struct lease {
    uint64_t id, until_us, ended_us;
};
struct story {
    struct key keys[STORY_GROUP_END][KEYS_MAX];
    struct told *ops;
    uint32_t count, capacity;
    struct lease *leases;
    uint32_t lease_count, lease_capacity;
    char name[32];
};

static uint32_t number_of(uint32_t group, uint32_t index, uint32_t generation) {
    return group << 28 | index << 24 | generation;
}
struct story *story_new(void) {
    struct story *s = calloc(1, sizeof *s);
    must(s != NULL);
    for (uint32_t g = 0; g < STORY_GROUP_END; g++) {
        for (uint32_t i = 0; i < groups[g].keys; i++) s->keys[g][i].number = number_of(g, i, 0);
    }
    return s;
}
void story_free(struct story *s) {
    if (s == NULL) return;
    free(s->ops);
    free(s->leases);
    free(s);
}

uint32_t story_key(struct story *s, struct world *w, enum story_group group) {
    struct key *key = &s->keys[group][world_below(w, groups[group].keys)];
    if (key->ops >= groups[group].ops || key->open >= OPEN_MAX) *key = (struct key){.number = key->number + 1};
    return key->number;
}
const char *story_name(const struct story *s, uint32_t key) {
    snprintf((char *)(uintptr_t)s->name, sizeof s->name, "%c%u.%u", groups[key >> 28].letter, key >> 24 & 15,
             key & 0xffffff);
    return s->name;
}
static struct key *key_at(struct story *s, uint32_t number) {
    struct key *key = &s->keys[number >> 28][number >> 24 & 15];
    return key->number == number ? key : NULL; /* NULL: given up meanwhile */
}
uint32_t story_ask(struct story *s, uint32_t key, struct lin_op op) {
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? s->capacity * 2 : 1024;
        s->ops = realloc(s->ops, s->capacity * sizeof *s->ops);
        must(s->ops != NULL);
    }
    if (key_at(s, key) != NULL) key_at(s, key)->ops++;
    s->ops[s->count] = (struct told){.op = op, .key = key};
    return s->count++;
}
struct lin_op *story_op(struct story *s, uint32_t number) {
    must(number < s->count);
    return &s->ops[number].op;
}
uint32_t story_key_of(const struct story *s, uint32_t number) {
    must(number < s->count);
    return s->ops[number].key;
}
void story_lost(struct story *s, uint32_t number) {
    must(number < s->count);
    struct key *key = key_at(s, s->ops[number].key);
    if (s->ops[number].lost || s->ops[number].op.outcome != LIN_OPEN) return;
    s->ops[number].lost = true;
    if (key != NULL) key->open++;
}

static struct lease *lease_at(struct story *s, uint64_t id) {
    for (uint32_t i = s->lease_count; i-- > 0;) {
        if (s->leases[i].id == id) return &s->leases[i];
    }
    if (s->lease_count == s->lease_capacity) {
        s->lease_capacity = s->lease_capacity ? s->lease_capacity * 2 : 64;
        s->leases = realloc(s->leases, s->lease_capacity * sizeof *s->leases);
        must(s->leases != NULL);
    }
    s->leases[s->lease_count] = (struct lease){.id = id, .ended_us = UINT64_MAX};
    return &s->leases[s->lease_count++];
}
void story_lease_until(struct story *s, uint64_t lease, uint64_t at_us) {
    struct lease *l = lease_at(s, lease);
    if (at_us > l->until_us) l->until_us = at_us;
}
void story_lease_ended(struct story *s, uint64_t lease, uint64_t at_us) {
    struct lease *l = lease_at(s, lease);
    if (at_us < l->ended_us) l->ended_us = at_us;
}

/* ------------------------------------------------------------------ the judgement */

struct place {
    uint32_t key, op;
};
static int compare_places(const void *a, const void *b) {
    const struct place *x = a, *y = b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return x->op < y->op ? -1 : x->op > y->op;
}
static int compare_leases(const void *a, const void *b) {
    const struct lin_lease *x = a, *y = b;
    return x->id < y->id ? -1 : x->id > y->id;
}
static struct place *places_of(const struct story *s) {
    struct place *places = calloc((size_t)s->count + 1, sizeof *places);
    must(places != NULL);
    for (uint32_t i = 0; i < s->count; i++) places[i] = (struct place){.key = s->ops[i].key, .op = i};
    if (s->count > 0) qsort(places, s->count, sizeof *places, compare_places);
    return places;
}
void story_each_key(const struct story *s, void (*fn)(void *context, enum story_group group, uint32_t key),
                    void *context) {
    struct place *places = places_of(s);
    const uint32_t count = s->count; /* fn may ask more */
    for (uint32_t i = 0; i < count; i++) {
        if (i == 0 || places[i].key != places[i - 1].key)
            fn(context, (enum story_group)(places[i].key >> 28), places[i].key);
    }
    free(places);
}
static void print_op(struct world *w, const struct lin_op *op, bool stuck) {
    static const char *const words[] = {
#define KIND(name, word, least, most) word,
        LIN_KINDS(KIND)
#undef KIND
    };
    static const char *const outcomes[] = {"?", "done", "refused"};
    world_trace(w,
                "  c%llu %.3f..%.3f %s value=%llu version=%llu lease=%llu life=%llu flags=%u -> %s yes=%d %llu %llu%s",
                (unsigned long long)op->connection, (double)op->asked / 1000.0, (double)op->told / 1000.0,
                words[op->kind], (unsigned long long)op->value, (unsigned long long)op->version,
                (unsigned long long)op->lease, (unsigned long long)op->life, op->flags, outcomes[op->outcome], op->yes,
                (unsigned long long)op->ret_version, (unsigned long long)op->ret_value, stuck ? "   <- this" : "");
}
/* Clocks step: reads under the leader's lease may be old, and times to live may be short. */
static void unclock(struct lin_op *ops, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        if (ops[i].life != 0) ops[i].life = 1;
        if (lin_reads(ops[i].kind)) ops[i].outcome = LIN_OPEN;
    }
}
void story_check(struct story *s, struct world *w) {
    struct place *places = places_of(s);
    struct lin_op *ops = calloc((size_t)s->count + 1, sizeof *ops);
    struct lin_lease *leases = calloc((size_t)s->lease_count + 1, sizeof *leases);
    must(ops != NULL && leases != NULL);
    for (uint32_t i = 0; i < s->lease_count; i++) {
        const struct lease *l = &s->leases[i];
        leases[i] = (struct lin_lease){.id = l->id, .until = l->until_us < l->ended_us ? l->until_us : l->ended_us};
    }
    if (s->lease_count > 0) qsort(leases, s->lease_count, sizeof *leases, compare_leases);
    for (uint32_t i = 0; i < s->count && !w->failed;) {
        const uint32_t key = places[i].key;
        uint32_t count = 0, stuck;
        for (; i < s->count && places[i].key == key; i++) ops[count++] = s->ops[places[i].op].op;
        if (w->wild) unclock(ops, count);
        const enum lin_verdict verdict =
            lin_check(ops, count, leases, w->wild ? 0 : s->lease_count, STATES_MAX, &stuck);
        if (verdict == LIN_GOOD) continue;
        const struct lin_op at = ops[stuck];
        for (uint32_t k = 0; k < count && w->trace; k++) {
            if (ops[k].asked <= at.told &&
                (ops[k].outcome != LIN_DONE || (count < 60 || ops[k].told + 500000 > at.asked)))
                print_op(w, &ops[k], k == stuck);
        }
        if (verdict == LIN_LOST)
            world_fail(w, "lin: the judge gives up on key %s, %u operations", story_name(s, key), count);
        else
            world_fail(w, "lin: key %s: what client %llu was told at %.3f ms cannot be explained", story_name(s, key),
                       (unsigned long long)at.connection, (double)at.told / 1000.0);
    }
    free(places);
    free(ops);
    free(leases);
}
