/* snapshot.h - carries a checkpoint from one node to another that the log no longer reaches (D2).
 *
 * Place in the flow:  paxos of a peer wants slots we have cut -> [snapshot] OFFER -> peer's [snapshot] ASK, DATA, ASK,
 *                     DATA ... -> the whole bytes -> keyspace_load there
 *
 * Pure.  One object is both halves of a node: it serves what the node's newest checkpoint holds, and it pulls what
 * others offer.  The receiver asks for each piece, one at a time, so a slow one slows nobody but itself, and a lost
 * link or a restarted sender costs the piece that was on its way.  Equal slots have equal bytes (keyspace_save is
 * deterministic), so another sender of the same slot may go on where the first stopped.
 *
 * What always holds:
 *   S1  What is pulled takes no more memory than twice the bytes that arrived, and never more than bytes_max; what a
 *       peer claims allocates nothing.
 *   S2  snapshot_whole's bytes are as many as were offered, of one slot, without gaps, each block's checksum good; who
 *       loads them checks the rest (their hash).
 *   S3  At most SNAPSHOT_SERVED_MAX peers are served at a time, all together no faster than bytes_per_second.
 *   S4  A transfer that goes on holds the checkpoint it reads, but only for SNAPSHOT_HOLD_IDLE_MS after its last
 *       question and SNAPSHOT_HOLD_MS in all: nobody keeps the log from being cut for ever.
 *   S5  A peer whose bytes were damaged or contradicted themselves is not pulled from for SNAPSHOT_SHUN_MS. */
#pragma once
#include "common/alloc.h"
#include "common/buf.h"
#include "common/must.h"
#include "lockd/core/paxos.h"

enum {
    SNAPSHOT_DATA_BYTES_MAX = 256 * 1024, /* of one DATA */
    SNAPSHOT_BLOCK_HEAD_BYTES = 12,       /* a block: u32 bytes, u64 XXH3, and at most ... */
    SNAPSHOT_BLOCK_BYTES_MAX = 64 * 1024, /* ... of payload */
    SNAPSHOT_SERVED_MAX = 2,
    SNAPSHOT_ASK_MS = 1000,         /* an unanswered question is asked again */
    SNAPSHOT_SILENT_MS = 3000,      /* after that without progress any other sender is as good */
    SNAPSHOT_GIVE_UP_MS = 60000,    /* and after that what arrived is dropped */
    SNAPSHOT_PLACE_IDLE_MS = 10000, /* who asked nothing for so long is not served any more */
    SNAPSHOT_HOLD_IDLE_MS = 60000,
    SNAPSHOT_HOLD_MS = 600000,
    SNAPSHOT_SHUN_MS = 10000
};

enum snapshot_msg_kind {
    SNAPSHOT_OFFER = 1, /* slot, total: this is my newest checkpoint, ask for it */
    SNAPSHOT_ASK,       /* slot, offset */
    SNAPSHOT_DATA,      /* slot, offset, total, data: 1..SNAPSHOT_DATA_BYTES_MAX of it */
    SNAPSHOT_MSG_KIND_END
};
struct snapshot_msg {
    enum snapshot_msg_kind kind;
    paxos_slot slot;
    uint64_t offset, total; /* bytes */
    struct slice data;
};

struct snapshot_config {
    const struct alloc *alloc;
    uint64_t bytes_per_second; /* served; at least 1000 */
};
struct snapshot_sink {
    void *context;
    void (*send)(void *context, uint16_t peer, const struct snapshot_msg *msg);
    /* Read `bytes` of our checkpoint of that slot and send them as DATA.  Inside snapshot_turn only.  What cannot be
     * read is asked for again. */
    void (*read)(void *context, uint16_t peer, paxos_slot slot, uint64_t offset, uint32_t bytes);
};

struct snapshot;
struct snapshot *snapshot_new(const struct snapshot_config *config, const struct snapshot_sink *sink);
void snapshot_free(struct snapshot *s);

/* ---- the sender's half ---- */
/* Our newest checkpoint, durable.  Transfers of the one before end and are offered this one. */
void snapshot_have(struct snapshot *s, paxos_slot slot, uint64_t bytes);
/* That peer asked for slots that the log no longer has: offer the checkpoint, if there is one and a place is free. */
void snapshot_wanted(struct snapshot *s, uint64_t now_ms, uint16_t peer);
/* Is the newest checkpoint in use by a transfer (S4)?  Then no other should take its place, nor the log be cut. */
bool snapshot_holds(const struct snapshot *s, uint64_t now_ms);

/* ---- the receiver's half ---- */
/* The most that is pulled. */
void snapshot_limit(struct snapshot *s, uint64_t bytes_max);
/* Everything has arrived: the bytes live until snapshot_drop.  False: nothing, or not yet. */
bool snapshot_whole(const struct snapshot *s, paxos_slot *ret_slot, struct slice *ret_bytes, uint16_t *ret_peer);
/* Forget what was pulled, for it is installed, or of no use.  `shun`: it was bad, and so is who sent it (S5). */
void snapshot_drop(struct snapshot *s, uint64_t now_ms, bool shun);
/* Slot, bytes so far and in all, of what is being pulled; false: nothing. */
bool snapshot_pulling(const struct snapshot *s, paxos_slot *ret_slot, uint64_t *ret_bytes, uint64_t *ret_total);

/* ---- both ---- */
/* What an input led to, worth a line in a log. */
enum snapshot_news {
    SNAPSHOT_NO_NEWS,
    SNAPSHOT_BEGUN,    /* we pull an offer of that peer */
    SNAPSHOT_ARRIVED,  /* see snapshot_whole */
    SNAPSHOT_TOO_LONG, /* its offer is longer than bytes_max: refused */
    SNAPSHOT_DAMAGED,  /* a block of its fails its checksum, or it contradicts itself: dropped, shunned */
    SNAPSHOT_GIVEN_UP  /* no progress: dropped */
};
/* A message of that peer; bytes are hostile.  Offers at or below `applied` are of no use to us. */
enum snapshot_news snapshot_message(struct snapshot *s, uint64_t now_ms, uint16_t peer, const struct snapshot_msg *msg,
                                    paxos_slot applied);
void snapshot_link_up(struct snapshot *s, uint64_t now_ms, uint16_t peer);
void snapshot_link_lost(struct snapshot *s, uint16_t peer);
/* Reads that are due, questions that are to be repeated, patience that has ended. */
enum snapshot_news snapshot_turn(struct snapshot *s, uint64_t now_ms, paxos_slot applied);
uint64_t snapshot_wake_at(const struct snapshot *s);
