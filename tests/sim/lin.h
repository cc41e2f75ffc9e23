/* lin.h - could one store, doing one thing at a time, have told this history?  (Linearizability, key by key.)
 *
 * The search of Wing & Gong, "Testing and verifying concurrent objects" (1993), in the just-in-time order of Lowe,
 * "Testing for linearizability" (2017): at every point of time only operations that were asked before the next answer
 * may be next, and a (set of operations done, state of the store) that led nowhere is never looked at twice.  Horn and
 * Kroening, "Faster linearizability checking via P-compositionality" (2015): keys are judged alone.
 *
 * What is known of the store is kept as what could be told apart: a version that nobody was shown is only "above the
 * last one".  An operation without an answer may take effect at any time after it was asked, once, or never.
 *
 *   L1  Versions and tokens grow with every write, over deletions too (F).
 *   L2  What hangs on a time to live or a lease may be gone later than that, never earlier.
 *   L3  The operations of one connection take effect in their order; but one without an answer may do so after later
 *       ones, too.
 *   L4  What was refused as "did not run" has no effect (E). */
#pragma once
#include <stdbool.h>
#include <stdint.h>

/* KIND(name, word in a text history, least and most words after the key) */
#define LIN_KINDS(KIND)                                                                                                \
    KIND(SET, "set", 1, 6)                                                                                             \
    KIND(GET, "get", 0, 0)                                                                                             \
    KIND(GETV, "getv", 0, 0)                                                                                           \
    KIND(DEL, "del", 0, 0)                                                                                             \
    KIND(INCR, "incr", 0, 0)                                                                                           \
    KIND(CAS, "cas", 2, 2)                                                                                             \
    KIND(CAD, "cad", 1, 1)                                                                                             \
    KIND(PEXPIRE, "pexpire", 1, 1)                                                                                     \
    KIND(WOR_SET, "wor.set", 1, 1)                                                                                     \
    KIND(WOR_GET, "wor.get", 0, 0)                                                                                     \
    KIND(ACQUIRE, "acquire", 1, 1)                                                                                     \
    KIND(RELEASE, "release", 1, 2)                                                                                     \
    KIND(CHECK, "check", 1, 1)                                                                                         \
    KIND(HOLDER, "holder", 0, 0)

enum lin_kind {
#define KIND(name, word, least, most) LIN_##name,
    LIN_KINDS(KIND)
#undef KIND
        LIN_KIND_END
};
/* Does it change nothing? */
bool lin_reads(enum lin_kind kind);
enum lin_outcome {
    LIN_OPEN, /* no answer, or one that says nothing: it may run at any later time, or never */
    LIN_DONE,
    LIN_REFUSED /* it did not run */
};
enum { LIN_NX = 1, LIN_XX = 2, LIN_OLD = 4 /* SET ... GET */ };

struct lin_op {
    enum lin_kind kind;
    enum lin_outcome outcome;
    uint64_t connection;  /* 0: of its own; else those with the same number are in program order in the array */
    uint32_t flags;       /* SET */
    uint64_t asked, told; /* told: DONE only */
    uint64_t value;       /* written, or compared (CAD) */
    uint64_t version;     /* CAS: the version named; RELEASE, CHECK: the token, 0 none */
    uint64_t lease;       /* ACQUIRE, RELEASE; SET: the key hangs on it; 0 none */
    uint64_t life;        /* SET, PEXPIRE: the key lives at least so long after it was asked for; 0: for ever */
    /* the answer */
    bool yes;             /* it did what it says; GET, GETV, WOR_GET, HOLDER, SET with GET: there is something */
    bool no_lease;        /* ACQUIRE: the lease is gone */
    uint64_t ret_value;   /* GET, GETV, CAS that failed, WOR.*, SET with GET; INCR: the number; HOLDER: the lease */
    uint64_t ret_version; /* GETV, CAS, WOR.*; ACQUIRE, HOLDER: the token; CAS that failed: 0 absent */
};
struct lin_lease { /* it cannot have ended before `until` */
    uint64_t id, until;
};

enum lin_verdict {
    LIN_GOOD,
    LIN_BAD, /* nobody could have told this; *ret_stuck: the earliest answer that cannot be explained */
    LIN_LOST /* given up: more than states_max states */
};
/* Judges the history of one key.  `leases` are sorted by id; one that is not there may be gone at any time. */
enum lin_verdict lin_check(const struct lin_op *ops, uint32_t count, const struct lin_lease *leases,
                           uint32_t lease_count, uint64_t states_max, uint32_t *ret_stuck);

/* ---- histories as text: tests/sim/HISTORY.md ---- */
struct lin_text;
/* Reads one history; `name` is for messages.  NULL: a line cannot be read, *ret_line is its number. */
struct lin_text *lin_text_read(const char *bytes, uint64_t length, uint32_t drift_ppm, uint32_t *ret_line);
void lin_text_free(struct lin_text *t);
struct lin_result {
    uint64_t ops, keys, open, bad, lost;
};
/* Judges every key; writes a line for each that is wrong to `out` (a FILE), NULL: none. */
struct lin_result lin_text_check(const struct lin_text *t, uint64_t states_max, void *out);
