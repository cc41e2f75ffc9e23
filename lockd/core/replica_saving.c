/* replica_saving.c - the state on the disk and on its way to others (D2): when a checkpoint is made, how far the log is
 * cut, how a snapshot that came takes the place of the state.
 *
 *   applied bytes, SNAPSHOT.SAVE -> sink.checkpoint -> replica_checkpointed -> sink.cut
 *   a peer asks below our cut -> OFFER ... DATA;  an offer to us -> ASK ... -> keyspace_load -> sink.install
 *     -> replica_installed -> the state, paxos and the router change over at once
 *
 * One generation of log is kept: the log is cut to the slot of the checkpoint before the newest, so that a node that is
 * a little behind needs no snapshot, and a start that finds the newest damaged could still be repaired by hand. */
#include <stdio.h>
#include "lockd/core/replica_state.h"
#include "lockd/core/bug.h"
#include "lockd/core/resp.h"

enum {
    RETRY_MS = 10000,              /* after a checkpoint that failed */
    ENTRY_BYTES = 64,              /* what an entry takes in the log besides its value, about */
    SERVED_BYTES_PER_S = 64 << 20, /* snapshots to peers, all together */
    OVERHEAD_BYTES_MAX = 1 << 30   /* a snapshot's leases, queues and bindings, which memory-max does not count */
};

/* ---- life ---- */

static void send_out(void *context, uint16_t peer, const struct snapshot_msg *msg) {
    const struct frame frame = {.kind = FRAME_SNAPSHOT, .snapshot = *msg};
    replica_send_frame(context, peer, &frame);
}

static void read_out(void *context, uint16_t peer, paxos_slot slot, uint64_t offset, uint32_t bytes) {
    struct replica *r = context;
    if (r->link_up[peer]) r->sink.snapshot_read(r->sink.context, peer, slot, offset, bytes);
}

void saving_begin(struct replica *r, const struct replica_saved *saved) {
    const struct snapshot_config config = {.alloc = r->config.alloc, .bytes_per_second = SERVED_BYTES_PER_S};
    const struct snapshot_sink sink = {.context = r, .send = send_out, .read = read_out};
    r->saving.snapshot = snapshot_new(&config, &sink);
    r->saving.slot = saved->checkpoint_slot;
    r->saving.bytes = saved->checkpoint_bytes;
    r->saving.cut = saved->paxos.cut;
    if (r->saving.slot > 0 && r->sink.snapshot_read != NULL)
        snapshot_have(r->saving.snapshot, r->saving.slot, r->saving.bytes);
}

void saving_end(struct replica *r) {
    keyspace_free(r->saving.loaded);
    snapshot_free(r->saving.snapshot);
}

void saving_applied(struct replica *r, size_t value_bytes) {
    r->saving.log_bytes += value_bytes + ENTRY_BYTES;
}

void replica_snapshot_frame(const struct replica *r, paxos_slot slot, uint64_t offset, struct slice data,
                            struct buf *out) {
    const struct frame frame = {
        .kind = FRAME_SNAPSHOT,
        .snapshot = {.kind = SNAPSHOT_DATA, .slot = slot, .offset = offset, .total = r->saving.bytes, .data = data}};
    frame_encode(&frame, out);
}

/* ---- checkpoints ---- */

/* Answer the first `count` of those who asked. */
static void answer_asks(struct replica *r, uint32_t count, const char *error) {
    struct saving *s = &r->saving;
    struct buf b = {.alloc = r->config.alloc};
    if (error != NULL)
        resp_error(&b, "%s", error);
    else
        resp_ok(&b);
    for (uint32_t i = 0; i < count; i++) router_read_reply(r->router, s->asks[i], buf_slice(&b), false);
    buf_release(&b);
    s->ask_count -= count;
    memmove(s->asks, s->asks + count, s->ask_count * sizeof s->asks[0]);
    s->running_asks = 0;
}

void saving_ask(struct replica *r, uint64_t seq) {
    struct saving *s = &r->saving;
    const char *error = NULL;
    if (r->sink.checkpoint == NULL) error = "ERR this node keeps its whole log and makes no checkpoints";
    if (s->ask_count == SAVING_ASKS_MAX) error = "BUSY too many commands wait for a checkpoint";
    if (error == NULL) {
        s->asks[s->ask_count++] = seq;
        s->retry_ms = 0;
        return;
    }
    struct buf b = {.alloc = r->config.alloc};
    resp_error(&b, "%s", error);
    router_read_reply(r->router, seq, buf_slice(&b), false);
    buf_release(&b);
}

static void begin_checkpoint(struct replica *r, uint64_t now_ms) {
    struct saving *s = &r->saving;
    const paxos_slot slot = keyspace_slot(r->ks);
    if (r->sink.checkpoint == NULL || s->running != 0 || s->loaded != NULL || now_ms < s->retry_ms) return;
    if (slot == s->slot && !s->damaged) { /* nothing has changed: the newest one is what they want */
        if (s->ask_count > 0) answer_asks(r, s->ask_count, NULL);
        return;
    }
    const uint64_t enough = r->config.checkpoint_bytes > s->bytes ? r->config.checkpoint_bytes : s->bytes;
    const bool due = r->config.checkpoint_bytes > 0 && s->log_bytes >= enough;
    if (s->ask_count == 0 && !s->damaged && (!due || snapshot_holds(s->snapshot, now_ms))) return;
    s->running = slot;
    if (BUG(80)) s->cut_wanted = slot;
    s->running_log_bytes = s->log_bytes;
    s->running_asks = s->ask_count;
    s->begun_ms = now_ms;
    r->sink.checkpoint(r->sink.context, r->ks, slot);
}

void replica_checkpointed(struct replica *r, uint64_t now_ms, paxos_slot slot, uint64_t bytes) {
    struct saving *s = &r->saving;
    if (s->running == 0 || slot != s->running) return;
    s->running = 0;
    if (bytes == 0) {
        s->failed++;
        s->retry_ms = now_ms + RETRY_MS;
        answer_asks(r, s->running_asks, "ERR the checkpoint could not be written; this node's log file says why");
        return;
    }
    s->made++;
    s->log_bytes -= s->running_log_bytes;
    if (s->damaged)
        s->retry_ms = now_ms + RETRY_MS;
    else
        s->cut_wanted = BUG(83) ? slot + 8 : s->slot;
    s->damaged = false;
    s->slot = slot;
    s->bytes = bytes;
    snapshot_have(s->snapshot, slot, bytes);
    replica_note(r, 'i', "replica checkpoint slot=%llu bytes=%llu ms=%llu", (unsigned long long)slot,
                 (unsigned long long)bytes, (unsigned long long)(now_ms - s->begun_ms));
    answer_asks(r, s->running_asks, NULL);
}

void replica_checkpoint_damaged(struct replica *r, paxos_slot slot) {
    if (slot == r->saving.slot && r->sink.checkpoint != NULL) r->saving.damaged = true;
}

static void cut(struct replica *r, paxos_slot slot) {
    r->saving.cut = slot;
    paxos_cut(r->paxos, slot);
    r->sink.cut(r->sink.context, slot);
}

/* ---- snapshots ---- */

void saving_wanted(struct replica *r, uint64_t now_ms, uint16_t peer) {
    snapshot_wanted(r->saving.snapshot, now_ms, peer);
}

static void tell(const struct replica *r, uint16_t peer, enum snapshot_news news) {
    paxos_slot slot = 0;
    uint64_t bytes = 0, total = 0;
    (void)snapshot_pulling(r->saving.snapshot, &slot, &bytes, &total);
    switch (news) {
    case SNAPSHOT_NO_NEWS:
    case SNAPSHOT_ARRIVED: return;
    case SNAPSHOT_BEGUN:
        replica_note(r, 'i', "snapshot begun peer=%u slot=%llu bytes=%llu applied=%llu", peer + 1u,
                     (unsigned long long)slot, (unsigned long long)total, (unsigned long long)keyspace_slot(r->ks));
        return;
    case SNAPSHOT_TOO_LONG:
        replica_note(r, 'e', "snapshot refused peer=%u what=\"longer than memory-max allows\"", peer + 1u);
        return;
    case SNAPSHOT_DAMAGED:
        replica_note(r, 'e',
                     "snapshot damaged peer=%u what=\"a checksum or a length does not hold: is its disk well?\"",
                     peer + 1u);
        return;
    case SNAPSHOT_GIVEN_UP:
        replica_note(r, 'w', "snapshot given-up what=\"nothing came for %u s\"", SNAPSHOT_GIVE_UP_MS / 1000u);
        return;
    }
}

void saving_frame(struct replica *r, uint64_t now_ms, uint16_t peer, const struct snapshot_msg *msg) {
    if (msg->kind == SNAPSHOT_OFFER && (r->sink.install == NULL || r->saving.loaded != NULL)) return;
    tell(r, peer, snapshot_message(r->saving.snapshot, now_ms, peer, msg, keyspace_slot(r->ks)));
}

void saving_link_up(struct replica *r, uint64_t now_ms, uint16_t peer) {
    snapshot_link_up(r->saving.snapshot, now_ms, peer);
}

void saving_link_lost(struct replica *r, uint16_t peer) {
    snapshot_link_lost(r->saving.snapshot, peer);
}

/* All of it has come: the new state is built and checked before anything of the old is given up. */
static void load(struct replica *r, uint64_t now_ms) {
    struct saving *s = &r->saving;
    struct slice bytes;
    uint16_t peer;
    paxos_slot slot;
    if (s->loaded != NULL || !snapshot_whole(s->snapshot, &slot, &bytes, &peer)) return;
    if (slot <= keyspace_slot(r->ks) && !BUG(82)) { /* the log was faster */
        snapshot_drop(s->snapshot, now_ms, false);
        return;
    }
    char error[128] = "";
    const struct ks_config config = {.alloc = r->config.alloc, .node = r->config.node, .boot = r->config.boot_id};
    struct keyspace *ks = keyspace_load(&config, bytes, error, sizeof error);
    if (ks != NULL && keyspace_slot(ks) != slot) {
        keyspace_free(ks);
        ks = NULL;
        snprintf(error, sizeof error, "it is of another slot than was said");
    }
    if (ks == NULL) {
        replica_note(r, 'e', "snapshot damaged peer=%u slot=%llu what=\"%s\"", peer + 1u, (unsigned long long)slot,
                     error);
        snapshot_drop(s->snapshot, now_ms, true);
        return;
    }
    s->loaded = ks;
    s->loaded_slot = slot;
    s->loaded_bytes = bytes.bytes;
    s->running = 0; /* of a state that is about to go: its end is not told */
    r->sink.install(r->sink.context, slot, bytes);
}

static void wait_installed(void *context, uint64_t seq) {
    const struct replica *r = context;
    router_install_wait(r->router, seq);
}

/* The whole node goes over to the state that came, in one step (N6, P4). */
static void change_over(struct replica *r, uint64_t now_ms, struct keyspace *ks) {
    const paxos_slot slot = keyspace_slot(ks), before = keyspace_slot(r->ks);
    lead_end(r);
    if (!BUG(87)) keyspace_free(r->ks);
    r->ks = ks;
    members_installed(r, now_ms);
    r->saving.log_bytes = 0;
    cut(r, slot);
    keyspace_each_wait(r->ks, r->config.node, r->config.boot_id, wait_installed, r);
    if (!BUG(81)) router_installed(r->router, now_ms);
    replica_note(r, 'i', "snapshot installed slot=%llu bytes=%llu before=%llu", (unsigned long long)slot,
                 (unsigned long long)r->saving.bytes, (unsigned long long)before);
}

void replica_installed(struct replica *r, uint64_t now_ms, paxos_slot slot) {
    struct saving *s = &r->saving;
    if (s->loaded == NULL || slot != s->loaded_slot) return;
    struct keyspace *ks = s->loaded;
    s->loaded = NULL;
    s->installed++;
    s->damaged = false;
    s->slot = slot;
    s->bytes = s->loaded_bytes;
    s->running = 0;
    snapshot_drop(s->snapshot, now_ms, false);
    snapshot_have(s->snapshot, slot, s->bytes);
    if ((slot > keyspace_slot(r->ks) || BUG(82)) && paxos_role(r->paxos) != PAXOS_HALTED)
        change_over(r, now_ms, ks);
    else
        keyspace_free(ks); /* the log was faster after all; the checkpoint is a good one */
}

int replica_restore(struct replica *r, struct slice bytes, char *error, size_t error_bytes) {
    const struct ks_config config = {.alloc = r->config.alloc, .node = r->config.node, .boot = r->config.boot_id};
    struct keyspace *ks = keyspace_load(&config, bytes, error, error_bytes);
    if (ks == NULL) return -1;
    if (keyspace_slot(ks) != r->saving.slot) {
        snprintf(error, error_bytes, "the checkpoint is of slot %llu and says %llu",
                 (unsigned long long)keyspace_slot(ks), (unsigned long long)r->saving.slot);
        keyspace_free(ks);
        return -1;
    }
    keyspace_free(r->ks);
    r->ks = ks;
    return 0;
}

/* ---- the turn ---- */

void saving_turn(struct replica *r, uint64_t now_ms) {
    struct saving *s = &r->saving;
    snapshot_limit(s->snapshot, keyspace_settings(r->ks)->memory_max + OVERHEAD_BYTES_MAX);
    tell(r, 0, snapshot_turn(s->snapshot, now_ms, keyspace_slot(r->ks)));
    load(r, now_ms);
    begin_checkpoint(r, now_ms);
    if (s->cut_wanted > s->cut && !snapshot_holds(s->snapshot, now_ms)) cut(r, s->cut_wanted);
}

uint64_t saving_wake_at(const struct replica *r) {
    return snapshot_wake_at(r->saving.snapshot);
}
