/* store.h - the log of one node on disk: LMDB, one commit thread, a checksum on every value (D1, D3, D4).
 *
 * Place in the flow:  replica -> transactions -> [store] -> "durable" -> replica
 *
 * In <directory>: `lock` (one process at a time), `log/` (the LMDB environment).  The environment holds one record
 * "state" (format, store id, node, promise, longest lease, chosen, cut, cluster) and the database "log", slot -> ballot
 * and value.  The record is rewritten by every transaction and names it, so that an older root that LMDB takes
 * for the newest one is noticed; it also carries the count and the sum of the checksums of all entries, so that
 * entries that vanish are.
 *
 * What always holds:
 *   S1  Transactions become durable in order, each whole or not at all; everything waiting goes in one LMDB commit.
 *   S2  Default LMDB durability: no NOSYNC, NOMETASYNC, MAPASYNC or WRITEMAP.
 *   S3  Every value carries XXH3 over its key, fields and bytes, seeded by the store's id; one that fails is never
 *       returned: opening refuses, and a fetch that meets one makes the store fail.
 *   S4  A failed commit is fatal: it is reported once through `failed`; nothing is retried (fsync errors cannot be).
 *   S5  One process per directory (a lock file); a directory of another node index is refused by name.
 *   S6  A store that was just made is durable, directory entries included, before store_open returns (P11).
 *   S7  Up to the cut nothing is returned and nothing is taken in; above it nothing is missing up to chosen.  Entries
 *       are deleted a bounded number per commit, so that a cut of any length holds nobody up, and their pages are used
 *       again, so that the file does not grow.
 *
 * All functions are for one thread (the loop's).  The commit thread is inside; config.wake is all it calls. */
#pragma once
#include "lockd/core/replica.h"

enum { STORE_ERROR_BYTES = 1024 };

struct store;
struct store_config {
    const char *directory; /* made if missing, one level; copied */
    uint64_t map_bytes;    /* LMDB map size: the most the log may grow to; the file is sparse */
    uint16_t node;
    uint64_t fresh_store_id; /* random: becomes the store's id on first start */
    size_t queue_bytes_max;  /* waiting for the commit thread; more blocks the caller of store_save (it never should) */
    /* Called from the commit thread: must only wake the loop (eventfd). */
    void (*wake)(void *context);
    void *context;
};
/* Open or make.  0, or -1 with a one-line reason that names the path and says what to do in `error` (STORE_ERROR_BYTES
 * hold every one): not writable, in use by another process, of another node, damaged. */
NODISCARD int store_open(const struct store_config *config, struct store **ret_store, char *error, size_t error_bytes);
uint64_t store_id(const struct store *s);
/* Once, between store_open and store_saved: the state as of `slot` is in a checkpoint (0: there is none), so that is
 * where replay begins.  A slot above what the record calls chosen is taken as chosen, and the log up to it as cut: the
 * checkpoint was made durable before the record could say so.  0, or -1 with `error`: the log has been cut behind a
 * later checkpoint than that. */
NODISCARD int store_start_after(struct store *s, paxos_slot slot, char *error, size_t error_bytes);
/* What was on disk.  Entries above chosen are in ret_saved->paxos.accepted, owned by the store until store_replay. */
void store_saved(struct store *s, struct replica_saved *ret_saved);
/* Once, before the first store_save: feed the chosen entries after the checkpoint's slot in order (values live during
 * fn only), reading the whole log, and check it against its sum.  0, or -1 with `error` set on damage or a gap; fn may
 * have been called until then, so the caller must stop. */
NODISCARD int store_replay(struct store *s, void (*fn)(void *context, paxos_slot slot, struct slice value),
                           void *context, char *error, size_t error_bytes);
/* Queue one transaction (copied).  `out` may be NULL when there is only a record, `record` NULL when there is none.
 * batch is higher than in the call before. */
void store_save(struct store *s, uint64_t batch, const struct paxos_output *out, const struct identity_record *record);
/* The log up to `slot` will not be needed again, because a durable checkpoint holds its effects: chosen is at least
 * that.  It is forgotten in the background; a lower slot than before changes nothing. */
void store_cut(struct store *s, paxos_slot slot);
/* The highest batch that is durable; call after a wake.  *ret_failed: a commit failed, or a fetch met damage (S3, S4);
 * `error` says why, once and for ever. */
uint64_t store_durable(struct store *s, bool *ret_failed, char *error, size_t error_bytes);
/* Read entries for a peer, as many as fit bytes_max (at least one if it is there).  Values live until the next call.
 * Returns the count, 0 if the first is not there (cut, not durable yet, or the store has failed). */
uint32_t store_fetch(struct store *s, paxos_slot from_slot, paxos_slot to_slot, size_t bytes_max,
                     struct paxos_entry *entries, uint32_t entries_max);
/* Age of the oldest transaction not yet durable, in ms of clock_now_ms: 0 if none waits. */
uint64_t store_lag_ms(struct store *s, uint64_t now_ms);
/* The lowest slot in the log, UINT64_MAX when it holds none: how far the deleting is. */
paxos_slot store_first_slot(struct store *s);
/* Bytes the log may still take: the lesser of what the file system has free and what is left of log-map-bytes; 0 when
 * that cannot be told.  Pages that a cut gave back count.  After store_replay. */
uint64_t store_room_bytes(struct store *s);
/* Waits for everything queued, stops the thread, closes.  After a failure it only stops the thread: LMDB is not
 * touched again.  NULL is fine. */
void store_close(struct store *s);
