/* history.h - what clients asked and were told, and whether one store could have told them that (linearizability).
 *
 * Every value is written once, and every change of a key has a version that only grows (F), so the order of writes is
 * known and the judgement needs no search.  What a client saw or wrote must lie in that order as in time:
 *   H1  what completed before a question was asked is not older in version than the answer
 *   H2  a version names one value, a value one version; nothing is read before somebody asked to write it
 *   H3  a compare-and-set followed directly upon the version it named
 *   H4  what was refused as "did not run" is never seen (E)
 *   H5  counters: every INCR gets its own number, in the order of time; reads lie between
 *   H6  the commands of one connection take effect in their order, and are answered in it
 *   H7  a lock has one holder at a time, by the holders' own clocks; tokens grow with every grant (F) */
#pragma once
#include "tests/sim/world.h"

enum { HISTORY_KEYS = 4, HISTORY_LOCKS = 3 };

enum op_kind { OP_SET, OP_CAS, OP_GETV, OP_INCR, OP_COUNT };
enum op_outcome {
    OUTCOME_OPEN, /* no answer: it may run any time later, or never */
    OUTCOME_DONE,
    OUTCOME_REFUSED /* an error that says it did not run */
};
struct op {
    enum op_kind kind;
    uint16_t key;
    enum op_outcome outcome;
    uint64_t asked_us, told_us;
    uint32_t after;    /* 1 + the number of the command before it on the same connection; 0: none */
    uint64_t value;    /* written (SET, CAS) or read (GETV, failed CAS); 0 none */
    uint64_t expected; /* CAS: the version named */
    bool swapped;      /* CAS */
    uint64_t version;  /* told: of the value read or written; INCR, COUNT: the number */
};

struct history;
struct history *history_new(void);
void history_free(struct history *h);
/* A question; returns its number. */
uint32_t history_ask(struct history *h, struct op op);
struct op *history_op(struct history *h, uint32_t number);
/* Judges all of it; problems go to world_fail. */
void history_check(struct world *w, struct history *h);
