/* paxos_msg.h - what Paxos nodes say to each other, and the two numbers everything hangs on.
 *
 * Pure data.  lockd/core/frame.c turns it into bytes and back: every field of struct paxos_msg travels with every kind,
 * so that nothing here has to be kept in step with the coder. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include "common/slice.h"

/* Ordered by round, then node.  Round 0 is "none".  `node` is the member (membership.h): a seat and the generation of
 * the store in it; with generation 0 it equals the seat.  A member never uses a round twice: its own promise of a
 * ballot is durable before the first prepare leaves (P3), and a restarted node goes above everything it promised. */
struct ballot {
    uint64_t round;
    uint16_t node;
};

static inline int ballot_compare(struct ballot a, struct ballot b) {
    if (a.round != b.round) return a.round < b.round ? -1 : 1;
    return a.node == b.node ? 0 : a.node < b.node ? -1 : 1;
}
static inline bool ballot_equal(struct ballot a, struct ballot b) {
    return ballot_compare(a, b) == 0;
}

/* Position in the log.  The first slot is 1; 0 means "none yet". */
typedef uint64_t paxos_slot;

/* A leader that needs a slot and has nothing to say proposes this; an empty value stands where nobody knows of one. */
#define PAXOS_BLANK slice_of("", 1)
static inline bool paxos_is_blank(struct slice value) {
    return value.bytes == 1 && value.data[0] == 0;
}

/* No round and no slot of a correct node is above this: the next one can always be counted. */
#define PAXOS_NUMBER_MAX (UINT64_C(1) << 62)

/* A value accepted for a slot under a ballot.  The value is opaque here (batch.h says what is in it). */
struct paxos_entry {
    paxos_slot slot;
    struct ballot ballot;
    struct slice value;
};

enum paxos_msg_kind {
    PAXOS_MSG_PREVOTE = 1, /* would you promise `ballot`?  round = a fresh number of the asker.  Changes nothing (P7) */
    PAXOS_MSG_PREVOTE_REPLY, /* granted or not; ballot and round echo; promised = the answerer's */
    PAXOS_MSG_PREPARE,       /* phase 1 for every slot above `chosen`; promised = the ballot that was handed over to the
                              * asker (TRANSFER), none if it was not: whoever gets this is released from it as well */
    PAXOS_MSG_PROMISE,   /* ballot echoes; chosen = the acceptor's; entries = all it accepted in slot..slot_last.  The
                          * parts   of one promise follow each other without gaps from chosen + 1 to UINT64_MAX; it counts
                          * when all have arrived */
    PAXOS_MSG_REFUSE,    /* ballot echoes what was refused; promised = what stands against it */
    PAXOS_MSG_ACCEPT,    /* phase 2: entries[0..n), ascending, at ballot; chosen = the leader's; round, lease_ms as
                            HEARTBEAT */
    PAXOS_MSG_ACCEPTED,  /* ballot echoes; slot..slot_last are durable here under it; chosen = the acceptor's; round
                            echoes */
    PAXOS_MSG_HEARTBEAT, /* leader alive; chosen; asks for its lease: round, lease_ms (P8).  Round 0 only tells
                          * `chosen`: it asks for no lease and is not answered */
    PAXOS_MSG_HEARTBEAT_ACK, /* ballot and round echo; chosen = the acceptor's */
    PAXOS_MSG_CATCHUP,       /* please send chosen entries from `slot` on */
    PAXOS_MSG_CHOSEN,        /* entries, ascending without gaps, all chosen; the answer to CATCHUP */
    PAXOS_MSG_TRANSFER, /* the leader of `ballot` has stopped for good under it: take over; chosen = the leader's */
    PAXOS_MSG_RELEASE,  /* the same to the others: a lease granted under `ballot`, and no other, binds no more */
    PAXOS_MSG_KIND_END
};

struct paxos_msg {
    enum paxos_msg_kind kind;
    uint16_t from, to;   /* seats */
    uint16_t generation; /* of the sender's store: whose vote this is */
    struct ballot ballot;
    struct ballot promised;
    bool granted;
    paxos_slot chosen; /* every slot up to here is known chosen, with its value, by the sender */
    paxos_slot slot, slot_last;
    uint64_t round;      /* a fresh number per round of acknowledgements: a late one never validates a later question */
    uint32_t lease_ms;   /* how long an acknowledgement of this message binds the acceptor */
    uint64_t free_bytes; /* acknowledgements: room on the sender's disk; UINT64_MAX: it has not looked yet */
    const struct paxos_entry *entries;
    uint32_t entry_count;
};
