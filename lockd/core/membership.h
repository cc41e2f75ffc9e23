/* membership.h - who belongs to the cluster: seats, the stores that sit in them, who of them votes.
 *
 * Plain data, no allocation.  A *seat* is 0..PAXOS_NODES_MAX-1, shown to people as node number seat + 1.  A *member* is
 * one store in a seat.  When a seat is given to another store its *generation* goes up, and the member's number in
 * ballots is generation and seat together: a new store in an old seat never repeats a ballot of its predecessor, and a
 * vote of one is never taken for a vote of the other.
 *
 * What always holds of a membership that makes sense:
 *   M1  voters and learners are disjoint, and there is at least one voter.
 *   M2  A seat has a store id exactly if it is a voter's or a learner's; no store sits twice.
 *   M3  The generation of a seat never goes down from one membership of the log to the next; it goes up by one when the
 *       seat is taken. */
#pragma once
#include "common/must.h"
#include "common/wire.h"
#include "lockd/core/paxos_msg.h"

enum {
    PAXOS_NODES_MAX = 9,
    MEMBER_SEAT_BITS = 4, /* of ballot.node; the rest is the generation */
    MEMBER_GENERATION_MAX = 4095
};

struct membership {
    paxos_slot slot;                      /* of the log entry that made it; 0: the founding one */
    uint16_t voters, learners;            /* masks by seat */
    uint16_t generation[PAXOS_NODES_MAX]; /* of the newest store that ever sat there */
    uint64_t store_ids[PAXOS_NODES_MAX];  /* 0: nobody */
};

/* The number of a member in ballots. */
static inline uint16_t member_number(uint16_t seat, uint16_t generation) {
    return (uint16_t)(generation << MEMBER_SEAT_BITS | seat);
}
static inline uint16_t member_of(const struct membership *m, uint16_t seat) {
    return member_number(seat, m->generation[seat]);
}
static inline uint16_t member_seat(uint16_t member) {
    return member & ((1 << MEMBER_SEAT_BITS) - 1);
}
static inline uint16_t member_generation(uint16_t member) {
    return member >> MEMBER_SEAT_BITS;
}
static inline uint16_t ballot_seat(struct ballot b) {
    return member_seat(b.node);
}

/* The membership of a cluster that forms: seats 0..count-1 vote. */
void membership_founding(struct membership *ret_members, uint16_t count, const uint64_t *store_ids);
bool membership_equal(const struct membership *a, const struct membership *b);
/* M1, M2 and every number within its limits: for what comes from a peer or a disk. */
bool membership_makes_sense(const struct membership *m);
/* The seat of that store, or PAXOS_NODES_MAX. */
uint16_t membership_seat_of(const struct membership *m, uint64_t store_id);

/* How it travels and how it is stored (wire.h): u64 slot, u16 voters, u16 learners, then per seat u16 generation, u64
 * store id. */
enum { MEMBERSHIP_BYTES = 8 + 2 + 2 + PAXOS_NODES_MAX * (2 + 8) };
void membership_write(const struct membership *m, struct buf *b);
/* False: a mask or a generation is beyond its limits; whether the whole makes sense is another question, for the one of
 * a store that belongs to no cluster is all zero.  Too few bytes are told by the wire, as ever. */
NODISCARD bool membership_read(struct wire *w, struct membership *ret_members);
