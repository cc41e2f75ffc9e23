/* batch.h - the value of one slot: a batch of commands with the ballot that built it and one stamp.
 *
 * Everything that changes replicated state is a command in a batch, ours as well as the clients': internal commands
 * have names that start with '%', which no client can send.
 *
 * Layout (wire.h): u64 round, u16 node, u8 first, u64 stamp_ms, u32 count, then per command u16 node, u64 boot, u64
 * seq, u32 argc, argc x bytes.  An empty value (0 bytes) fills a gap that a leader
 * left, a blank one (PAXOS_BLANK) is a slot in which a leader says nothing. */
#pragma once
#include "common/must.h"
#include "common/wire.h"
#include "lockd/core/paxos_msg.h"

enum { BATCH_ARGC_MAX = 4096 }; /* scripts unfold to more arguments than a client may send */

/* Whom to answer: a node of the cluster, one of its lives, and its own count of writes (N). */
struct origin {
    uint16_t node; /* ORIGIN_NODE_NONE: nobody waits */
    uint64_t boot;
    uint64_t seq;
};
enum { ORIGIN_NODE_NONE = 0xffff };
#define ORIGIN_NONE ((struct origin){.node = ORIGIN_NODE_NONE})

static inline bool origin_equal(struct origin a, struct origin b) {
    return a.node == b.node && a.boot == b.boot && a.seq == b.seq;
}

struct batch_head {
    struct ballot ballot; /* of the leader that built it; re-proposing does not change it (P6) */
    bool first;           /* the first entry of that ballot (P9) */
    uint64_t stamp_ms;    /* cluster time (T2) */
    uint32_t count;
};

/* Start a batch in `b` (cleared first). */
void batch_begin(struct buf *b, struct ballot ballot, bool first, uint64_t stamp_ms);
void batch_add(struct buf *b, struct origin origin, uint32_t argc, const struct slice *argv);
/* Commands added so far. */
uint32_t batch_count(const struct buf *b);

/* False: not a batch. */
NODISCARD bool batch_read(struct wire *w, struct slice value, struct batch_head *ret_head);
/* The next command; its argv (up to BATCH_ARGC_MAX slices) is borrowed from the value.  False: damaged or past the end.
 */
NODISCARD bool batch_next(struct wire *w, struct origin *ret_origin, uint32_t *ret_argc, struct slice *argv);
/* Would batch_read and then batch_next for each of its commands succeed, with nothing left over; or is it a no-op?  To
 * be asked of what a peer sends before it gets into the log. */
NODISCARD bool batch_is_whole(struct slice value);
/* Set the stamp of a batch under construction. */
void batch_set_stamp(struct buf *b, uint64_t stamp_ms);
