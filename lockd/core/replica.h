/* replica.h - one whole lockd node without its machine: identity, Paxos, keyspace, leases, forwarding.
 *
 * Place in the flow:  client bytes -> RESP argv -> [replica] -> replies;  frames in -> [replica] -> frames out;
 *                     [replica] -> transactions for the disk -> "durable" -> [replica]
 *
 * Pure: the daemon (lockd/io/node.c) and the simulator (tests/sim) drive the very same object.  Inputs are queued work;
 * replica_turn does it: it collects all that arrived, proposes one batch, applies what was chosen, and hands everything
 * that must leave to the sink.  Sink functions are called only inside replica_turn, borrow their slices, and must not
 * call back.
 *
 * What always holds, beyond P, L, T, N of the parts:
 *   R1  Replies of one client come in the order of its commands, each exactly once, and never to another client.
 *   R2  A frame that must wait for the disk (P3) is handed out only after replica_durable of its transaction.
 *   R3  A command is forwarded only to the leader of the ballot whose first entry this node has applied, and named so;
 *       what was sent under a lower ballot and not seen applied is then known not to have run, and is sent again (N).
 *   R4  What one client may have waiting is limited (replica_client_room); what all may have is limited (-BUSY).
 *   R5  The log is cut only behind a durable checkpoint, one generation later, and not while that checkpoint is on its
 *       way to a peer (bounded, snapshot.h S4).
 *   R6  A snapshot takes the place of the state whole, after it was loaded, checked and made durable; nothing of the
 * old state is given up before. */
#pragma once
#include "lockd/core/frame.h"
#include "lockd/core/identity.h"
#include "lockd/core/keyspace.h"
#include "lockd/core/paxos.h"

struct replica_config {
    const struct alloc *alloc;
    uint16_t node, node_count;
    uint64_t store_id, boot_id, fresh_cluster_id, seed; /* random; store_id is durable before replica_new */
    uint64_t start_ms;
    /* times */
    uint32_t heartbeat_ms, lease_ms, election_spread_ms, drift_ppm; /* P12: 50, 300, 100, 500 */
    uint32_t forward_timeout_ms;                                    /* 10000 */
    uint32_t reattach_ms;                                           /* 1000 */
    /* limits */
    uint32_t inflight_max;       /* 16 slots */
    uint32_t batch_bytes_max;    /* 2 MiB: one proposal */
    uint32_t queue_bytes_max;    /* 64 MiB: commands waiting in this node, all clients together */
    uint32_t client_pending_max; /* 1024 commands of one client; and 64 MiB */
    uint32_t request_bytes_max;  /* one command; batch_bytes_max - 64 KiB at most */
    uint64_t checkpoint_bytes;   /* of log since the last checkpoint, before the next; 0: only when asked for */
    uint64_t disk_reserve; /* bytes; when the best majority has less free, nothing is taken that grows; 0: never */
    uint32_t stall_ms;     /* paxos.h; 0: never */
    struct ks_settings settings; /* proposed if this node leads a cluster that has none */
    /* for INFO and NODE.STATUS; borrowed for ever */
    const char *version;
    const char *const *node_addresses; /* peer addresses as configured, node_count of them; may be NULL */
    const uint64_t *refusals;          /* of links, LINK_REFUSAL_END counters; may be NULL */
};

/* What the store gave back. */
struct replica_saved {
    struct paxos_saved paxos; /* accepted: entries above chosen; the chosen ones go through replica_replay */
    struct identity_record record;
    paxos_slot checkpoint_slot; /* of the state that replica_restore gets; 0: there is none */
    uint64_t checkpoint_bytes;  /* of it */
};

/* The world outside.  All calls happen inside replica_turn (and replay/new: none). */
struct replica_sink {
    void *context;
    /* One transaction, to be durable whole and in order: out->save_promise, save_lease_ms, save_chosen, saves; and the
     * identity record when `record` is not NULL.  Copy before returning.  Say replica_durable(batch) when it is. */
    void (*save)(void *context, uint64_t batch, const struct paxos_output *out, const struct identity_record *record);
    /* One encoded frame for a peer (frame.h), to leave now on the link we dialled; dropped if there is none. */
    void (*send)(void *context, uint16_t peer, struct slice frame);
    /* Reply bytes for a client, in order.  `leased`: it shows state read under the leader lease: before the bytes
     * leave, the caller samples the clock and asks replica_reads_hold; if not, it closes these clients instead (after a
     * pause the reply may be stale). */
    void (*reply)(void *context, uint64_t client, struct slice bytes, bool leased);
    /* Close this client once its replies are out (QUIT). */
    void (*hang_up)(void *context, uint64_t client);
    /* Chosen entries a peer asks for: read them from the store and send them as PAXOS_MSG_CHOSEN in FRAME_PAXOS
     * (replica_chosen_frame). */
    void (*fetch)(void *context, uint16_t peer, paxos_slot from_slot, paxos_slot to_slot);
    /* A state change for the log: level 'i', 'w' or 'e', and "module event key=value ..." text. */
    void (*note)(void *context, char level, const char *text);
    /* ---- checkpoints (D2).  All NULL: this node keeps its whole log and takes no snapshots ---- */
    /* Write the state as it is inside this call (keyspace_save) in the background; then replica_checkpointed. */
    void (*checkpoint)(void *context, const struct keyspace *ks, paxos_slot slot);
    /* The log up to `slot` is not needed any more. */
    void (*cut)(void *context, paxos_slot slot);
    /* Read so many bytes (fewer only at the end) of the newest checkpoint, if it is that of `slot`, and send them
     * (replica_snapshot_frame).  What cannot be read is asked for again; when it is damaged, replica_checkpoint_damaged
     * may be called at once. */
    void (*snapshot_read)(void *context, uint16_t peer, paxos_slot slot, uint64_t offset, uint32_t bytes);
    /* Make these bytes our newest checkpoint; they live until replica_installed says that it is durable. */
    void (*install)(void *context, paxos_slot slot, struct slice bytes);
    /* Who belongs to the cluster has changed, or this node has just begun: its addresses are where the links go.  NULL:
     * they stay as configured. */
    void (*members)(void *context, const struct ks_members *members);
    /* Bytes that wait on our link to that peer.  NULL: nobody counts. */
    size_t (*backlog)(void *context, uint16_t peer);
};

struct replica;
struct replica *replica_new(const struct replica_config *config, const struct replica_saved *saved,
                            const struct replica_sink *sink);
void replica_free(struct replica *r);

/* Before anything else if there is a checkpoint: its bytes.  0, or -1: it is damaged or of another slot, `error` says
 * what in one line; then only replica_free is left. */
NODISCARD int replica_restore(struct replica *r, struct slice bytes, char *error, size_t error_bytes);
/* Before the first turn: the chosen log, slot by slot from checkpoint_slot + 1 to saved->paxos.chosen. */
void replica_replay(struct replica *r, paxos_slot slot, struct slice value);

/* ---- inputs: queued or taken at once; nothing leaves before the next replica_turn ---- */
/* May this client queue another command?  If not, stop reading from it until some of its replies went out. */
bool replica_client_room(const struct replica *r, uint64_t client);
/* One command; client ids are never reused.  argv is copied if kept.  unix_us: the wall clock, for TIME only. */
void replica_command(struct replica *r, uint64_t now_ms, uint64_t unix_us, uint64_t client, uint32_t argc,
                     const struct slice *argv);
void replica_client_gone(struct replica *r, uint64_t now_ms, uint64_t client);
/* Our dialled link to that peer is up (again): everything unanswered is said again.  / It is down. */
void replica_link_up(struct replica *r, uint64_t now_ms, uint16_t peer);
void replica_link_lost(struct replica *r, uint64_t now_ms, uint16_t peer);
/* A frame that came in on a link whose HELLO named this peer and boot.  LINK_TAKEN, also if it is of no use any more;
 * else why that peer is not believed (link_refusal.h) and nothing was done with it. */
enum link_refusal replica_frame(struct replica *r, uint64_t now_ms, uint16_t peer, uint64_t peer_boot,
                                const struct frame *frame);
/* Is the peer of that boot admitted (identity.h)?  Until then only its identity frames are of any use. */
bool replica_admits(const struct replica *r, uint16_t peer, uint64_t peer_boot);
/* That transaction and every earlier one is durable. */
void replica_durable(struct replica *r, uint64_t now_ms, uint64_t batch);
/* The checkpoint of that slot is durable and has so many bytes; 0: it could not be written. */
void replica_checkpointed(struct replica *r, uint64_t now_ms, paxos_slot slot, uint64_t bytes);
/* The checkpoint of that slot does not hold any more what was written: the state takes its place, though nothing may
 * have changed, and at most once in 10 s, for the next disk block may be as bad. */
void replica_checkpoint_damaged(struct replica *r, paxos_slot slot);
/* What sink.install was given is durable. */
void replica_installed(struct replica *r, uint64_t now_ms, paxos_slot slot);
/* What is left on the disk, now and then. */
void replica_disk_free(struct replica *r, uint64_t bytes);
/* This process is about to end: if it leads, let another lead first.  False: nothing to give, or nobody to take it.
 * Then turn until !replica_is_leader, or until your patience ends. */
bool replica_hand_over(struct replica *r, uint64_t now_ms);

/* ---- the work ---- */
/* now_ms is sampled after the last input of this turn.  Returns when the next turn is due at the latest. */
uint64_t replica_turn(struct replica *r, uint64_t now_ms);
/* May replies marked `leased` of the last turn still leave at now_ms? */
bool replica_reads_hold(const struct replica *r, uint64_t now_ms);
/* Encode fetched entries as a frame for `peer`. */
void replica_chosen_frame(const struct replica *r, uint16_t peer, const struct paxos_entry *entries, uint32_t count,
                          struct buf *out);

/* Encode what was read of the newest checkpoint as a frame. */
void replica_snapshot_frame(const struct replica *r, paxos_slot slot, uint64_t offset, struct slice data,
                            struct buf *out);

/* ---- for the process, tests and the simulator ---- */
/* Why it can never work again (paxos halted), or NULL: log it, exit. */
const char *replica_halt_reason(const struct replica *r);
bool replica_is_leader(const struct replica *r); /* leads and serves */
enum identity_state replica_identity(const struct replica *r);
struct keyspace *replica_keyspace(struct replica *r);
const struct paxos *replica_paxos(const struct replica *r);
