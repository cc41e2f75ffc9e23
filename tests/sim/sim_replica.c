/* sim_replica.c - whole nodes in the simulated world: the very object the daemon runs, with clients at every node
 * (clients.h), whose answers are judged. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/must.h"
#include "lockd/core/batch.h"
#include "lockd/core/replica.h"
#include "tests/sim/check_late.h"
#include "tests/sim/check_once.h"
#include "tests/sim/check_queue.h"
#include "tests/sim/check_paxos.h"
#include "tests/sim/clients.h"
#include "tests/sim/object.h"

enum { ENTRIES_MAX = 1 << 12, SUCCESSION_MS = 20000 };
static const uint64_t CLIENT_NOBODY = UINT64_MAX; /* a turn, and nobody speaks */

struct process {
    struct world *w;
    uint16_t node;
    uint64_t boot_id;
    struct replica *replica;
    struct buf frame;
    paxos_slot checkpointing;
    struct ballot handing_over; /* what it leads under and is to give away; round 0: nothing */
    uint16_t known;             /* seats whose addresses it has, as a mask */
    bool stuck;                 /* stopped before its replies left */
    struct buf late;            /* struct late and bytes, again and again */
};
struct late {
    uint64_t client, bytes;
    bool leased;
};
struct state {
    struct process processes[SIM_NODES_MAX];
    struct clients *clients;
    struct queue_facts *queues;
    uint64_t *hash_of; /* by slot: the state's hash there */
    size_t hash_capacity;
    uint64_t checkpoint_bytes;
    uint32_t checkpoints, installs, hand_overs;
    /* as every node has them configured */
    uint32_t inflight_max, forward_timeout_ms, batch_bytes_max, queue_bytes_max, heartbeat_ms, lease_ms,
        election_spread_ms, reattach_ms, client_pending_max;
    uint32_t hand_over_ppm;        /* each time that clients do something */
    paxos_slot changed, strike_at; /* the newest membership; where those who know of it start again; 0: nowhere */
    struct ballot log_ballot;      /* of the last first entry in the chosen log */
    bool log_gap;                  /* and a slot of that leader was lost since */
    struct slice argv[BATCH_ARGC_MAX];
    uint64_t again_us; /* then whoever leads is to hand over, too; 0: never */
};
static struct frame_scratch scratch;

static struct state *state_of(const struct world *w) {
    return w->user;
}
static unsigned long long u(uint64_t x) {
    return x;
}

/* ------------------------------------------------------------------ life */

static struct replica *replica_at(const struct world *w, uint16_t node) {
    return state_of(w)->processes[node].replica;
}
static struct ballot log_ballot(const struct world *w) {
    return state_of(w)->log_ballot;
}
static void begin(struct world *w) {
    struct state *s = calloc(1, sizeof *s);
    must(s != NULL);
    static const uint32_t inflights[] = {1, 2, 4, 16}, timeouts[] = {500, 2000, 10000}, batches[] = {2048, 131072},
                          beats[] = {50, 50, 50, 20, 100}, leases[] = {300, 300, 300, 200, 600},
                          reattaches[] = {500, 100, 2000}, pendings[] = {16, 16, 2};
    s->inflight_max = inflights[world_below(w, 4)];
    s->forward_timeout_ms = timeouts[world_below(w, 3)];
    static const uint64_t checkpoints[] = {0, 300, 1000, 3000, 20000};
    s->checkpoint_bytes = checkpoints[world_below(w, 5)];
    s->batch_bytes_max = batches[world_below(w, 2)];
    const uint64_t pace = world_below(w, 5);
    s->heartbeat_ms = beats[pace];
    s->lease_ms = leases[pace];
    s->election_spread_ms = world_chance(w, 350000) ? 300 : 100;
    s->reattach_ms = reattaches[world_below(w, 3)];
    s->client_pending_max = pendings[world_below(w, 3)];
    static const uint32_t queues[] = {1 << 20, 1 << 20, 1 << 20, 3000, 1500};
    s->queue_bytes_max = queues[world_below(w, 5)];
    static const uint32_t hand_overs[] = {0, 0, 1000, 20000};
    s->hand_over_ppm = hand_overs[world_below(w, 4)];
    w->user = s;
    s->clients = clients_new(w, replica_at, log_ballot, s->forward_timeout_ms);
    s->queues = check_queue_new();
}
static void release(struct world *w) {
    struct state *s = state_of(w);
    clients_free(s->clients);
    check_queue_free(s->queues);
    free(s->hash_of);
    free(s);
}

static void sink_save(void *context, uint64_t batch, const struct paxos_output *out,
                      const struct identity_record *record) {
    const struct process *pr = context;
    if (out != NULL) check_promises(pr->w, pr->node, out);
    world_save(pr->w, pr->node, batch, out, record);
}
static void sink_send(void *context, uint16_t peer, struct slice frame) {
    const struct process *pr = context;
    struct packet *p = packet_new(pr->w, pr->node, frame.bytes);
    p->boot = pr->boot_id;
    memcpy(p->data, frame.data, frame.bytes);
    check_told(pr->w, pr->node, keyspace_slot(replica_keyspace(pr->replica)));
    world_send(pr->w, pr->node, peer, p);
}
static void sink_fetch(void *context, uint16_t peer, paxos_slot from_slot, paxos_slot to_slot) {
    struct process *pr = context;
    struct paxos_entry entries[64];
    uint32_t count = 0;
    const uint32_t most = (uint32_t)world_between(pr->w, 1, 64);
    for (paxos_slot slot = from_slot; slot <= to_slot && count < most; slot++) {
        const struct disk_entry *e = disk_at(&pr->w->nodes[pr->node].disk, slot);
        check_fetched(pr->w, pr->node, slot, e);
        if (e == NULL) break;
        entries[count++] =
            (struct paxos_entry){.slot = slot, .ballot = e->ballot, .value = slice_of(e->data, e->bytes)};
    }
    if (count == 0) return;
    buf_clear(&pr->frame);
    replica_chosen_frame(pr->replica, peer, entries, count, &pr->frame);
    sink_send(context, peer, buf_slice(&pr->frame));
}
static void check_hash(struct world *w, uint16_t node);
static int put_bytes(void *context, struct slice bytes) {
    buf_append_slice(context, bytes);
    return 0;
}
static void sink_checkpoint(void *context, const struct keyspace *ks, paxos_slot slot) {
    struct process *pr = context;
    struct buf b = {.alloc = &pr->w->nodes[pr->node].alloc};
    pr->checkpointing = slot;
    must(keyspace_save(ks, put_bytes, &b) == 0);
    world_write_file(pr->w, pr->node, slot, buf_slice(&b), false);
    buf_release(&b);
    check_hash(pr->w, pr->node);
}
static void sink_install(void *context, paxos_slot slot, struct slice bytes) {
    const struct process *pr = context;
    world_write_file(pr->w, pr->node, slot, bytes, true);
}
static void sink_cut(void *context, paxos_slot slot) {
    const struct process *pr = context;
    world_cut_log(pr->w, pr->node, slot);
}
static void sink_snapshot_read(void *context, uint16_t peer, paxos_slot slot, uint64_t offset, uint32_t bytes) {
    struct process *pr = context;
    const struct file *f = &pr->w->nodes[pr->node].disk.checkpoint;
    if (slot != f->slot || offset >= f->bytes) {
        world_fail(pr->w, "n%u is asked for a checkpoint that it does not have", pr->node);
        return;
    }
    if (world_chance(pr->w, 20000)) {
        replica_checkpoint_damaged(pr->replica, slot);
        return;
    }
    uint64_t some = f->bytes - offset < bytes ? f->bytes - offset : bytes;
    if (world_chance(pr->w, 700000)) some = world_between(pr->w, some < 200 ? some : 200, some); /* many pieces */
    buf_clear(&pr->frame);
    replica_snapshot_frame(pr->replica, slot, offset, slice_of(f->data + offset, some), &pr->frame);
    sink_send(context, peer, buf_slice(&pr->frame));
}
static void sink_members(void *context, const struct ks_members *m) {
    struct process *pr = context;
    for (uint16_t seat = 0; seat < pr->w->node_count; seat++) { /* once known it is kept */
        if (m->addresses[seat][0] != '\0') pr->known |= (uint16_t)(1u << seat);
    }
}
static void sink_note(void *context, char level, const char *text) {
    const struct process *pr = context;
    world_trace(pr->w, "n%u %c %s", pr->node, level, text);
}
static void sink_hang_up(void *context, uint64_t client) {
    const struct process *pr = context;
    world_fail(pr->w, "R1: n%u closes client %llu", pr->node, u(client));
}
/* Before the bytes leave, the clock is looked at again: what was read under the leader lease must still be true. */
static void hand_over(struct process *pr, uint64_t client, struct slice bytes, bool leased) {
    struct world *w = pr->w;
    const bool late = leased && !replica_reads_hold(pr->replica, world_local_ms(w, pr->node));
    clients_told(state_of(w)->clients, w, pr->node, client, late ? slice_of(NULL, 0) : bytes);
}
static void sink_reply(void *context, uint64_t client, struct slice bytes, bool leased) {
    struct process *pr = context;
    if (pr->w->nodes[pr->node].dying) return;
    if (!pr->stuck) {
        hand_over(pr, client, bytes, leased);
        return;
    }
    const struct late late = {.client = client, .bytes = bytes.bytes, .leased = leased};
    buf_append(&pr->late, &late, sizeof late);
    buf_append_slice(&pr->late, bytes);
}
/* The process was stopped between its work and its writes, and goes on. */
static void come_unstuck(struct process *pr) {
    if (!pr->stuck) return;
    pr->stuck = false;
    for (size_t at = 0; at < pr->late.bytes;) {
        struct late late;
        memcpy(&late, pr->late.data + at, sizeof late);
        hand_over(pr, late.client, slice_of(pr->late.data + at + sizeof late, late.bytes), late.leased);
        at += sizeof late + late.bytes;
    }
    buf_clear(&pr->late);
    clients_turn_ended(state_of(pr->w)->clients, pr->w, pr->node);
}

static void start(struct world *w, uint16_t node) {
    static struct paxos_entry entries[ENTRIES_MAX];
    struct state *s = state_of(w);
    struct process *pr = &s->processes[node];
    const struct disk *d = &w->nodes[node].disk;
    *pr = (struct process){.w = w, .node = node, .boot_id = world_random(w) | 1};
    /* Who comes later, or again without a disk, is given the whole list of nodes. */
    if (w->nodes[node].wiped) s->clients->admin.listed[node] = true;
    const bool founder = node < w->founders && !s->clients->admin.listed[node];
    const uint16_t node_count = founder ? w->founders : w->node_count;
    pr->known = (uint16_t)((1u << node_count) - 1u);
    pr->frame.alloc = pr->late.alloc = &w->nodes[node].alloc;
    struct replica_config config = {.alloc = &w->nodes[node].alloc,
                                    .node = node,
                                    .node_count = node_count,
                                    .store_id = d->store_id,
                                    .boot_id = pr->boot_id,
                                    .fresh_cluster_id = world_random(w) | 1,
                                    .seed = world_random(w),
                                    .start_ms = world_local_ms(w, node),
                                    .heartbeat_ms = s->heartbeat_ms,
                                    .lease_ms = s->lease_ms,
                                    .election_spread_ms = s->election_spread_ms,
                                    .drift_ppm = SIM_DRIFT_PPM,
                                    .forward_timeout_ms = s->forward_timeout_ms,
                                    .reattach_ms = s->reattach_ms,
                                    .inflight_max = s->inflight_max,
                                    .batch_bytes_max = s->batch_bytes_max,
                                    .queue_bytes_max = s->queue_bytes_max,
                                    .checkpoint_bytes = s->checkpoint_bytes,
                                    .client_pending_max = s->client_pending_max,
                                    .request_bytes_max = s->batch_bytes_max / 2,
                                    .version = "sim"};
    ks_settings_default(&config.settings);
    struct replica_saved saved = {
        .record = d->record, .checkpoint_slot = d->checkpoint.slot, .checkpoint_bytes = d->checkpoint.bytes};
    disk_read(d, &saved.paxos, entries, ENTRIES_MAX);
    const struct replica_sink sink = {.context = pr,
                                      .save = sink_save,
                                      .send = sink_send,
                                      .reply = sink_reply,
                                      .hang_up = sink_hang_up,
                                      .fetch = sink_fetch,
                                      .note = sink_note,
                                      .members = sink_members,
                                      .checkpoint = sink_checkpoint,
                                      .cut = sink_cut,
                                      .snapshot_read = sink_snapshot_read,
                                      .install = sink_install};
    char error[128];
    pr->replica = replica_new(&config, &saved, &sink);
    if (d->checkpoint.slot > 0 &&
        replica_restore(pr->replica, slice_of(d->checkpoint.data, d->checkpoint.bytes), error, sizeof error) != 0) {
        world_fail(w, "D2: n%u cannot read its checkpoint: %s", node, error);
        return;
    }
    for (paxos_slot slot = d->checkpoint.slot + 1; slot <= d->chosen; slot++) {
        const struct disk_entry *e = disk_at(d, slot);
        if (e == NULL) {
            world_fail(w, "D5: n%u starts without slot %llu of %llu chosen", node, u(slot), u(d->chosen));
            return;
        }
        replica_replay(pr->replica, slot, slice_of(e->data, e->bytes));
    }
}

static void stop(struct world *w, uint16_t node) {
    struct state *s = state_of(w);
    struct process *pr = &s->processes[node];
    replica_free(pr->replica);
    buf_release(&pr->frame);
    buf_release(&pr->late);
    pr->replica = NULL;
    clients_node_gone(s->clients, w, node);
}

/* ------------------------------------------------------------------ one node's driver */

static bool decode(const struct packet *p, struct frame *ret_frame) {
    size_t used;
    return frame_decode(p->data, p->bytes, ret_frame, &scratch, &used) == FRAME_OK && used == p->bytes;
}
static void told_of_file(struct world *w, uint16_t node, uint64_t number) {
    struct process *pr = &state_of(w)->processes[node];
    const struct file *f = &w->nodes[node].disk.checkpoint;
    const uint64_t now_ms = world_local_ms(w, node);
    if (number == 0) {
        replica_checkpointed(pr->replica, now_ms, pr->checkpointing, 0);
    } else if (number % 2 == 0) {
        state_of(w)->checkpoints++;
        replica_checkpointed(pr->replica, now_ms, number / 2, f->bytes);
    } else {
        state_of(w)->installs++;
        replica_installed(pr->replica, now_ms, number / 2);
        check_hash(w, node);
    }
}
static void input(struct world *w, uint16_t node, const struct input *in) {
    struct process *pr = &state_of(w)->processes[node];
    const uint64_t now_ms = world_local_ms(w, node);
    struct frame frame;
    come_unstuck(pr);
    switch (in->kind) {
    case INPUT_TICK: break;
    case INPUT_PACKET:
        if (!decode(in->packet, &frame)) {
            world_fail(w, "must: n%u sent a frame that does not decode", in->packet->from);
            break;
        }
        if (frame.kind == FRAME_PAXOS) check_heard(w, node, &frame.paxos);
        replica_frame(pr->replica, now_ms, in->packet->from, in->packet->boot, &frame);
        break;
    case INPUT_FILE: told_of_file(w, node, in->number); break;
    case INPUT_DURABLE: replica_durable(pr->replica, now_ms, in->number); break;
    case INPUT_CLIENT:
        if (in->number != CLIENT_NOBODY && state_of(w)->clients->all[in->number].node == node)
            clients_act(state_of(w)->clients, w, (uint32_t)in->number);
        break;
    case INPUT_LINK:
        if (in->number & 1)
            replica_link_up(pr->replica, now_ms, (uint16_t)(in->number / 2));
        else
            replica_link_lost(pr->replica, now_ms, (uint16_t)(in->number / 2));
        break;
    }
}

/* The same log gives the same state. */
static void check_hash(struct world *w, uint16_t node) {
    struct state *s = state_of(w);
    const struct keyspace *ks = replica_keyspace(s->processes[node].replica);
    const paxos_slot slot = keyspace_slot(ks);
    while (slot >= s->hash_capacity) {
        const size_t old = s->hash_capacity;
        s->hash_capacity = old ? old * 2 : 4096;
        s->hash_of = realloc(s->hash_of, s->hash_capacity * sizeof *s->hash_of);
        must(s->hash_of != NULL);
        memset(s->hash_of + old, 0, (s->hash_capacity - old) * sizeof *s->hash_of);
    }
    const uint64_t hash = keyspace_hash(ks) | 1;
    if (s->hash_of[slot] != 0 && s->hash_of[slot] != hash)
        world_fail(w, "hash: n%u has another state than somebody else at slot %llu", node, u(slot));
    s->hash_of[slot] = hash;
}
static void check_membership(struct world *w, uint16_t node) {
    const struct keyspace *ks = replica_keyspace(state_of(w)->processes[node].replica);
    const struct ks_members *m = keyspace_members(ks);
    const struct members as = {.now = m->now, .next = m->next, .has_next = m->has_next};
    if (m->now.voters != 0) check_members(w, node, keyspace_slot(ks), &as);
}
static uint64_t turn(struct world *w, uint16_t node) {
    struct process *pr = &state_of(w)->processes[node];
    if (w->nodes[node].wiped && check_sat(w, 0, node, w->nodes[node].disk.store_id))
        w->nodes[node].wiped = false; /* it was taken in again */
    const paxos_slot before = keyspace_slot(replica_keyspace(pr->replica));
    come_unstuck(pr);
    pr->stuck = w->swarm.pauses && !w->calm && world_chance(w, 3000);
    const uint64_t now_ms = world_local_ms(w, node), wake_ms = replica_turn(pr->replica, now_ms);
    if (pr->stuck) world_pause(w, node, world_between(w, 1, 1500));
    clients_turn_ended(state_of(w)->clients, w, node);
    if (replica_halt_reason(pr->replica) != NULL)
        world_fail(w, "must: n%u halts: %s", node, replica_halt_reason(pr->replica));
    const paxos_slot slot = keyspace_slot(replica_keyspace(pr->replica));
    if (wake_ms <= now_ms) world_fail(w, "must: n%u wants to be woken in the past", node);
    const struct paxos *p = replica_paxos(pr->replica);
    if (p != NULL && paxos_chosen(p) != slot)
        world_fail(w, "P4: n%u: paxos and keyspace count slots differently", node);
    if (pr->handing_over.round > 0 && !replica_is_leader(pr->replica)) {
        check_handed_over(w, pr->handing_over);
        pr->handing_over.round = 0;
    }
    if (w->nodes[node].dying) return wake_ms;
    check_applied_is(w, node, slot);
    if (slot != before) check_membership(w, node);
    if (slot != before) check_once_turn(state_of(w)->clients->once_facts, w, replica_keyspace(pr->replica));
    if (slot != before) check_queue_turn(state_of(w)->queues, w, node, replica_keyspace(pr->replica));
    if (slot != before && slot % 8 == 0) check_hash(w, node);
    return wake_ms;
}

/* ------------------------------------------------------------------ load, healing, the end */

static int leader(struct world *w) {
    int found = -1;
    for (uint16_t i = 0; i < w->node_count; i++) {
        const struct process *pr = &state_of(w)->processes[i];
        if (!w->nodes[i].up || !replica_reads_hold(pr->replica, world_local_ms(w, i))) continue;
        if (found >= 0) return -1;
        found = i;
    }
    return found;
}
/* Somebody wants another leader. */
static void give_away(struct world *w, uint16_t node) {
    const struct sim_node *n = &w->nodes[node];
    if (!n->up || w->now_us < n->paused_until_us) return;
    if (!replica_hand_over(replica_at(w, node), world_local_ms(w, node))) return;
    state_of(w)->hand_overs++;
    state_of(w)->processes[node].handing_over = paxos_ballot(replica_paxos(replica_at(w, node)));
    world_trace(w, "n%u is to hand over", node);
    world_client_input(w, node, CLIENT_NOBODY);
    if (w->calm) return;
    if (world_chance(w, 600000)) state_of(w)->again_us = w->now_us + world_between(w, 5, 100) * 1000;
    if (w->swarm.clogs && world_chance(w, 200000))
        world_clog(w, (uint16_t)world_below(w, w->node_count), (uint16_t)world_below(w, w->node_count),
                   world_between(w, 50, 600));
}
/* Somewhere between the choice of a new membership and the time when nobody needs the old one, those who know of it
 * start again. */
static void strike(struct world *w) {
    struct state *s = state_of(w);
    const paxos_slot slot = check_newest(w)->slot;
    if (s->changed != slot) {
        s->changed = slot;
        s->strike_at = world_chance(w, 300000) ? slot + world_below(w, w->config_delay + 2 * s->inflight_max + 2) : 0;
    }
    if (s->strike_at == 0 || check_prefix(w) < s->strike_at || !w->swarm.crashes) return;
    s->strike_at = 0;
    world_trace(w, "a change is on its way, and");
    const bool all = world_chance(w, 600000);
    const int led = leader(w);
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (all || i == led) world_fall(w, i);
    }
}
static void load(struct world *w) {
    if (!w->calm) strike(w);
    const int led = leader(w);
    check_late_look(state_of(w)->clients->lates, w, led >= 0 ? replica_keyspace(replica_at(w, (uint16_t)led)) : NULL);
    if (!w->calm && world_chance(w, state_of(w)->hand_over_ppm)) give_away(w, (uint16_t)world_below(w, w->node_count));
    if (!w->calm && led >= 0 && state_of(w)->again_us != 0 && w->now_us >= state_of(w)->again_us) {
        state_of(w)->again_us = 0;
        give_away(w, (uint16_t)led);
    }
    clients_load(state_of(w)->clients, w);
}
/* Leaders come and go, each long before a lease that it found has run its time; the leases end all the same. */
static void succession(struct world *w) {
    const uint64_t until_us = w->now_us + SUCCESSION_MS * 1000;
    if (state_of(w)->clients->ttl_ms_min < 3000 || !world_chance(w, 500000)) return;
    world_trace(w, "leaders come and go");
    while (!w->failed && w->now_us < until_us) {
        world_run_until(w, w->now_us + world_between(w, 1800, 2800) * 1000);
        const int led = leader(w);
        if (w->failed || led < 0) continue;
        if (world_chance(w, 300000) && check_can_spare(w, (uint16_t)led)) {
            world_crash(w, (uint16_t)led);
            world_restart(w, (uint16_t)led);
        } else {
            give_away(w, (uint16_t)led);
        }
    }
}
static void stretch(struct world *w) {
    succession(w);
}
static void heal(struct world *w) {
    clients_settle(state_of(w)->clients);
}
/* Some member that is there has that node's address, and so can tell it what it is. */
static bool is_dialled(const struct world *w, uint16_t node) {
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (i != node && w->nodes[i].up && check_member(w, i) && (state_of(w)->processes[i].known >> node & 1))
            return true;
    }
    return false;
}
/* No change is under way, those who can vote do, and who is out knows it. */
static bool members_settled(struct world *w) {
    const struct membership *m = check_newest(w);
    if (m->slot != 0 && check_prefix(w) + 1 < m->slot + w->config_delay) return false;
    for (uint16_t i = 0; i < w->node_count; i++) {
        const struct sim_node *n = &w->nodes[i];
        if (n->gone || !n->up) continue;
        if (check_member(w, i)) {
            if (m->learners >> i & 1) return false;
        } else if (replica_identity(replica_at(w, i)) == IDENTITY_FORMED && is_dialled(w, i)) {
            return false;
        }
    }
    return true;
}
static bool settled(struct world *w) {
    const bool all = clients_settled(state_of(w)->clients, w);
    return leader(w) >= 0 && all && members_settled(w);
}
static void end(struct world *w) {
    for (uint16_t node = 0; node < w->node_count && !w->failed; node++) {
        if (!w->nodes[node].wiped || !w->nodes[node].up) continue;
        const enum identity_state state = replica_identity(replica_at(w, node));
        if (state == IDENTITY_FORMED || (state != IDENTITY_OUTCAST && is_dialled(w, node)))
            world_fail(w, "P11: n%u lost its disk and does not know that it is out", node);
    }
    const struct admin *o = &state_of(w)->clients->admin;
    world_trace(w, "the operator let %u in, took %u out, moved leadership %u times and emptied %u stores", o->added,
                o->removed, o->transferred, o->emptied);
    if (!w->failed) clients_end(state_of(w)->clients, w, state_of(w)->forward_timeout_ms);
    if (!w->failed) check_end(w);
}

/* ------------------------------------------------------------------ members */

/* Until the cluster has formed it needs everybody; and a change must have reached the disks of those who decide now. */
static bool may_wipe(struct world *w, uint16_t node) {
    const struct membership *m = check_newest(w);
    for (uint16_t i = 0; i < w->founders && check_prefix(w) < 1000; i++) {
        if (!w->nodes[i].gone && !w->nodes[i].wiped && w->nodes[i].disk.record.cluster_id == 0) return false;
    }
    if (m->slot != 0 && check_prefix(w) < m->slot + w->config_delay + 2ull * state_of(w)->inflight_max) return false;
    return admin_can_lose(state_of(w)->clients, w, node);
}
static bool dials(const struct world *w, uint16_t from, uint16_t to) {
    return (state_of(w)->processes[from].known >> to & 1) != 0;
}
static bool has(struct slice value, const char *text) {
    const size_t bytes = strlen(text);
    for (size_t i = 0; i + bytes <= value.bytes; i++) {
        if (value.data[i] == text[0] && memcmp(value.data + i, text, bytes) == 0) return true;
    }
    return false;
}
static bool matters(struct slice value) {
    struct wire w;
    struct batch_head head;
    return paxos_is_blank(value) || batch_read(&w, value, &head); /* gaps too decide what counts */
}
static uint64_t number(struct slice s, int base) {
    char text[24];
    snprintf(text, sizeof text, "%.*s", (int)s.bytes, s.data);
    return strtoull(text, NULL, base);
}
static struct change read_change(const struct membership *m, const struct slice *argv) {
    struct change c = {.seat = (uint16_t)(number(argv[1], 10) - 1)};
    must(c.seat < PAXOS_NODES_MAX);
    if (slice_equal(argv[0], slice_str("NODE.ADD"))) {
        c.kind = CHANGE_ADD;
        c.store_id = number(argv[3], 16);
    } else if (slice_equal(argv[0], slice_str("NODE.REMOVE"))) {
        c.kind = CHANGE_REMOVE;
        c.store_id = m->store_ids[c.seat];
    } else if (slice_equal(argv[0], slice_str("%PROMOTE"))) {
        c.kind = CHANGE_PROMOTE;
        c.store_id = number(argv[2], 10);
    }
    return c;
}
/* What lockd/core/ks_member.c is to do, said again.  Of a batch the first that makes sense counts. */
static bool change(struct world *w, paxos_slot slot, struct slice value, struct membership *m) {
    struct state *s = state_of(w);
    struct wire wire;
    struct batch_head head;
    bool changed = m->slot != 0 && slot < m->slot + w->config_delay; /* not yet again */
    bool ret_changed = false;
    if (paxos_is_blank(value)) return false;
    const bool whole = batch_read(&wire, value, &head);
    s->log_gap = !whole || (s->log_gap && !head.first) || ballot_compare(head.ballot, s->log_ballot) < 0;
    if (s->log_gap) return false;
    if (head.first) s->log_ballot = head.ballot;
    for (uint32_t i = 0; i < head.count && !changed; i++) {
        struct origin origin;
        uint32_t argc;
        if (!batch_next(&wire, &origin, &argc, s->argv)) break;
        if (!has(s->argv[0], "NODE.") && !has(s->argv[0], "%PROMOTE")) continue;
        const struct change c = read_change(m, s->argv);
        changed = ret_changed = members_apply(m, &c);
    }
    if (ret_changed) m->slot = slot;
    return ret_changed;
}

static const struct paxos *paxos(const struct world *w, uint16_t node) {
    const struct replica *r = state_of(w)->processes[node].replica;
    return r != NULL ? replica_paxos(r) : NULL;
}
static bool message(const struct world *w, const struct packet *p, struct paxos_msg *ret_message) {
    (void)w;
    struct frame frame;
    if (!decode(p, &frame)) return false;
    if (frame.kind == FRAME_SNAPSHOT) {
        static const char *const kinds[] = {"", "offer", "ask", "data"};
        const struct snapshot_msg *m = &frame.snapshot;
        world_trace((struct world *)(uintptr_t)w, "n%u-> snapshot %s slot=%llu offset=%llu total=%llu n=%zu", p->from,
                    kinds[m->kind], u(m->slot), u(m->offset), u(m->total), m->data.bytes);
    }
    if (frame.kind != FRAME_PAXOS) return false;
    *ret_message = frame.paxos;
    return true;
}

const struct sim_object sim_replica = {.name = "replica",
                                       .connections = true,
                                       .wipes = 3,
                                       .may_wipe = may_wipe,
                                       .change = change,
                                       .matters = matters,
                                       .dials = dials,
                                       .begin = begin,
                                       .start = start,
                                       .stop = stop,
                                       .input = input,
                                       .turn = turn,
                                       .load = load,
                                       .leader = leader,
                                       .stretch = stretch,
                                       .heal = heal,
                                       .settled = settled,
                                       .end = end,
                                       .release = release,
                                       .paxos = paxos,
                                       .message = message};
