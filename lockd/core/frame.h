/* frame.h - what two lockd nodes say to each other, as bytes.
 *
 * Place in the flow:  paxos, identity, router, snapshot -> [frame] -> peer link -> [frame] -> the same
 *
 * A frame: u32 bytes after this field, u64 XXH3 of the rest, u8 version, u8 kind, then the fields of its kind (wire.h).
 * Pure.  Bytes from a peer are hostile: every length is checked, nothing is trusted before the checksum holds.
 *
 * What a FRAME_OK promises, so that nobody checks it again: seats, ballots' included, are below PAXOS_NODES_MAX, masks
 * have no other bits, generations are at most MEMBER_GENERATION_MAX (membership_makes_sense asks for more);
 * kinds and flags are known ones; slots of entries are at least 1 and ascend; argc is 1..BATCH_ARGC_MAX; node counts
 * are at most PAXOS_NODES_MAX; a piece of a snapshot has at most SNAPSHOT_DATA_BYTES_MAX; nothing was left over.
 * Whether `from` is who it says it is, is for the link to check.
 */
#pragma once
#include "common/must.h"
#include "common/wire.h"
#include "lockd/core/batch.h"
#include "lockd/core/identity.h"
#include "lockd/core/link_refusal.h"
#include "lockd/core/paxos_msg.h"
#include "lockd/core/snapshot.h"

enum { FRAME_BYTES_MAX = 80 * 1024 * 1024, FRAME_HEAD_BYTES = 4, FRAME_ENTRIES_MAX = 4096 };

enum frame_kind {
    FRAME_HELLO = 1, /* first frame of a link, from the side that dialled: `from`, `to`, boot */
    FRAME_IDENTITY,
    FRAME_PAXOS,
    FRAME_FORWARD, /* a command for the leader (N) */
    FRAME_ANSWER,  /* the leader's answer to a forwarded read, or a refusal */
    FRAME_SNAPSHOT /* a checkpoint on its way to a node that the log does not reach */
};

enum forward_kind { FORWARD_WRITE, FORWARD_READ };
/* A command that the origin's router sends to the leader of `ballot`. */
struct forward {
    enum forward_kind kind;
    struct ballot ballot; /* a node leading under any other ballot refuses it unexecuted */
    uint64_t boot, seq;   /* with the sender's node: its origin.  Reads count in a space of their own */
    uint64_t
        after; /* writes: the seq of the write sent before it under this ballot, 0 for the first: a gap is noticed */
    uint64_t sent_ms; /* unused by the leader's decisions; for traces */
    uint32_t argc;
    const struct slice *argv;
};
enum answer_kind {
    ANSWER_REPLY,   /* reads: the RESP reply */
    ANSWER_REFUSED, /* not executed by this copy: we do not lead under that ballot (it proves nothing about other
                       copies) */
};
struct answer {
    enum answer_kind kind;
    enum forward_kind of;
    struct ballot ballot; /* echo */
    uint64_t boot, seq;   /* echo */
    struct slice reply;
};
struct hello {
    uint16_t from, to;
    uint64_t boot;
};
struct frame {
    enum frame_kind kind;
    union {
        struct hello hello;
        struct identity_msg identity;
        struct paxos_msg paxos;
        struct forward forward;
        struct answer answer;
        struct snapshot_msg snapshot;
    };
};

/* Append the frame's bytes.  Counts and lengths beyond the limits above are programmer errors. */
void frame_encode(const struct frame *f, struct buf *out);

/* Room for what a decoded frame points to. */
struct frame_scratch {
    struct paxos_entry entries[FRAME_ENTRIES_MAX];
    struct slice argv[BATCH_ARGC_MAX];
};
enum frame_status { FRAME_NEED_MORE, FRAME_OK, FRAME_BAD };
/* Decode the frame at the start of data.  FRAME_OK: *ret_frame borrows from data and scratch, *ret_used is how much to
 * drop.  FRAME_NEED_MORE: *ret_used is how many bytes the whole frame will have, 0 if not known yet.  FRAME_BAD: close
 * the link. */
enum frame_status frame_decode(const char *data, size_t bytes, struct frame *ret_frame, struct frame_scratch *scratch,
                               size_t *ret_used);
/* After a FRAME_BAD for the same bytes: LINK_LENGTH, LINK_CHECKSUM, LINK_VERSION or LINK_FIELDS. */
enum link_refusal frame_refusal(const char *data, size_t bytes);
