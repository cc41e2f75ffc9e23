/* story.h - everything clients of one run asked and were told, to be judged by lin.h at the end.
 *
 * Keys come in groups, and a group's key is given up for a fresh one before it has too many operations or too many of
 * unknown outcome: the search stays short, and keys that nobody ever wrote are tried as well. */
#pragma once
#include <stddef.h>
#include "tests/sim/lin.h"
#include "tests/sim/world.h"

/* GROUP(name, letter in keys, keys at a time, operations per key) */
#define STORY_GROUPS(GROUP)                                                                                            \
    GROUP(STRINGS, 's', 4, 250)                                                                                        \
    GROUP(COUNTERS, 'c', 3, 250)                                                                                       \
    GROUP(REGISTERS, 'w', 2, 25)                                                                                       \
    GROUP(LOCKS, 'l', 3, 300)                                                                                          \
    GROUP(ELECTIONS, 'e', 1, 300)

enum story_group {
#define GROUP(name, letter, count, ops) STORY_##name,
    STORY_GROUPS(GROUP)
#undef GROUP
        STORY_GROUP_END
};

struct story;
struct story *story_new(void);
void story_free(struct story *s);

/* A key of that group, any of those in use. */
uint32_t story_key(struct story *s, struct world *w, enum story_group group);
/* Its name, good until the next call. */
const char *story_name(const struct story *s, uint32_t key);
/* A question; returns its number. */
uint32_t story_ask(struct story *s, uint32_t key, struct lin_op op);
struct lin_op *story_op(struct story *s, uint32_t number);
/* The same key's. */
uint32_t story_key_of(const struct story *s, uint32_t number);
/* Nobody waits for that answer any more. */
void story_lost(struct story *s, uint32_t number);
/* The lease cannot have ended before that true time; its end was asked for. */
void story_lease_until(struct story *s, uint64_t lease, uint64_t at_us);
void story_lease_ended(struct story *s, uint64_t lease, uint64_t at_us);
/* Calls fn for every key that was used. */
void story_each_key(const struct story *s, void (*fn)(void *context, enum story_group group, uint32_t key),
                    void *context);
/* Judges all of it; problems go to world_fail. */
void story_check(struct story *s, struct world *w);
