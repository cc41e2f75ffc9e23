/* ks_call.h - what a command handler of the keyspace gets and what it may use.  Internal to the keyspace's files
 * (keyspace.c, ks_*.c, route.c, script.c); nobody else includes it. */
#pragma once
#include "lockd/core/command.h"
#include "lockd/core/keyspace.h"
#include "lockd/core/resp.h"

/* Which ONCE a command was sent in. */
struct ks_once_key {
    uint64_t lease, seq, digest; /* seq 0: in none; digest: of the command inside */
};

/* One command being run.  Handlers append exactly one reply to `reply`, or set `queued` and answer later with
 * ks_answer. */
struct ks_call {
    struct keyspace *ks;
    struct origin origin; /* ORIGIN_NONE for reads, internal commands and calls from scripts */
    uint64_t stamp_ms;    /* judge expiry by this */
    uint64_t revision;    /* of this command; 0 for reads */
    uint32_t argc;
    const struct slice *argv;
    struct buf *reply;
    struct ks_once_key once;
    bool queued;    /* the reply comes later */
    bool in_script; /* blocking forms act as without WAIT */
    bool silent;    /* neither a reply nor a wait: a fact says what became of it */
    uint64_t
        needs_stamp_ms; /* reads: the answer is void before an entry with this stamp was applied (T3); 0: it is good */
};
typedef void ks_handler(struct ks_call *call);

/* Answer a command that was queued: a KS_REPLY fact if its origin is this node and boot, else nothing. */
void ks_answer(struct keyspace *ks, struct origin origin, struct slice reply);
/* The same for a command that may have been sent in a ONCE: its reply is kept for repeats. */
void ks_once_answer(struct keyspace *ks, struct ks_once_key key, struct origin origin, struct slice reply);
void ks_fact(struct keyspace *ks, const struct ks_fact *fact);
const struct alloc *ks_alloc(const struct keyspace *ks);
bool ks_lease_exists(const struct keyspace *ks, uint64_t id);

/* Option parsing shared by handlers.  Each appends the error reply and returns false when the argument is wrong. */
bool ks_arg_u64(struct ks_call *call, uint32_t index, const char *what, uint64_t low, uint64_t high,
                uint64_t *ret_value);
/* Expects the word LEASE at `index` and the id of a live lease after it; -NOLEASE if it is gone. */
bool ks_arg_lease(struct ks_call *call, uint32_t index, uint64_t *ret_id);
