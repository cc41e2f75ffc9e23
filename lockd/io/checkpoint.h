/* checkpoint.h - the state of one node as of one slot, in one file (D2, D4).
 *
 * Place in the flow:  replica -> "save now" -> [checkpoint] -> a child process writes -> done;
 *                     start -> [checkpoint] -> bytes of the state;  a peer asks -> [checkpoint] -> a chunk
 *
 * In <directory>: `checkpoint`, and `checkpoint.tmp` while one is being written, which is never read.  The file: one
 * page of head (store, cluster, slot, bytes and hash of the state), the bytes of the state, and a checksum for each
 * CHECKPOINT_CHUNK_BYTES of them.  What the bytes mean is the business of who gives and takes them.
 *
 * A checkpoint is written by a child process, forked so that it sees the state exactly as it was in that call, while
 * this process works on (the way of Redis' background save).  The log must not be cut for it before `done` has said so.
 *
 * What always holds:
 *   C1  `checkpoint` is always a whole one: written under the other name, synced, renamed, and the directory synced
 *       (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).  A crash or
 *       a kill at any point leaves the one before or the new one.
 *   C2  The child has nothing of its parent's but standard error and the memory: every descriptor is closed at once
 *       (the lock of the directory and all sockets), signals have their defaults, and it dies with its parent.
 *   C3  Nothing waits: the end of the child is an event, and what it could not do is a text for `done`, never an end of
 *       this process.
 *   C4  At most one child can change the file: a newer one begins by waiting for the end of the older.
 *   C5  Bytes are given out only if their checksum holds, seeded by store, slot and place.
 *
 * All functions are for one thread (the loop's), and for the thread that lives as long as the process: the child dies
 * with that. */
#pragma once
#include <event2/event.h>
#include "common/must.h"
#include "common/slice.h"
#include "lockd/core/paxos_msg.h"

enum { CHECKPOINT_CHUNK_BYTES = 256 * 1024, CHECKPOINT_ERROR_BYTES = 1024 };

struct checkpoint_head {
    uint64_t cluster_id;
    paxos_slot slot; /* 0: there is no checkpoint */
    uint64_t bytes;  /* of the state */
    uint64_t hash;   /* XXH3 of them */
};

struct checkpoint_config {
    const char *directory; /* exists and is ours (store.h); copied */
    struct event_base *base;
    uint64_t store_id;
    /* What checkpoint_begin began has ended: `error` is NULL, and it is durable and what checkpoint_now tells, or it
     * says why not, in one line, and the one before is still there.  Not called after checkpoint_abort. */
    void (*done)(void *context, paxos_slot slot, const char *error);
    void *context;
};

struct checkpoint;

/* Look at what is there; a half-written one is removed.  0, or -1 with a one-line reason in `error`
 * (CHECKPOINT_ERROR_BYTES hold every one) that says what to do: damaged, of another store or format. */
NODISCARD int checkpoint_open(const struct checkpoint_config *config, struct checkpoint **ret_checkpoint, char *error,
                              size_t error_bytes);
/* The newest durable one; valid until the next `done`. */
const struct checkpoint_head *checkpoint_now(const struct checkpoint *c);
/* Give the whole state to `load`, every checksum having held; the bytes live during the call only.  load returns 0, or
 * another value and what is wrong in `why` (CHECKPOINT_ERROR_BYTES).  0, or -1 with `error` as above, also when the
 * file cannot be read.  Only when there is one. */
NODISCARD int checkpoint_load(struct checkpoint *c,
                              int (*load)(void *context, paxos_slot slot, struct slice state, char *why,
                                          size_t why_bytes),
                              void *context, char *error, size_t error_bytes);

/* Gives the state away piece by piece, in pieces of any length; stops at the first put that does not return 0 and
 * returns that, or another value if it cannot go on; 0: all was given. */
typedef int checkpoint_save(const void *state, int (*put)(void *context, struct slice bytes), void *context);
/* Write the state as it is inside this call, as the checkpoint of `slot`, which is no lower than the newest.  One that
 * is being written is aborted.  0: `done` will be called; else -errno, and nothing has begun (-EINVAL: a lower slot; or
 * no memory or process is left). */
NODISCARD int checkpoint_begin(struct checkpoint *c, paxos_slot slot, uint64_t cluster_id, checkpoint_save *save,
                               const void *state);
/* Is one being written?  Its process id, else 0. */
long checkpoint_running(const struct checkpoint *c);
/* Stop writing; `done` will not be called.  Nothing happens if none is being written. */
void checkpoint_abort(struct checkpoint *c);

/* Up to CHECKPOINT_CHUNK_BYTES of the checkpoint of `slot`, from `offset` on; they live until the next call.  0, or
 * -ESTALE: the newest is another; -ERANGE: offset is not below its end; -EBADMSG or another: the file cannot be read
 * or is damaged, and a new checkpoint should be made. */
NODISCARD int checkpoint_read(struct checkpoint *c, paxos_slot slot, uint64_t offset, struct slice *ret_bytes);
/* Ends the child too.  NULL is fine. */
void checkpoint_close(struct checkpoint *c);
