/* town.c - see town.h. */
#include "tests/scenario/town.h"
#include <stdio.h>
#include <stdlib.h>
#include <utlist.h>
#include "common/io/heap.h"

enum {
    ENTRIES_MAX = 256,
    CLIENTS_MAX = 4096,
    ON_THE_WAY_MAX = 256 /* frames of one link; what a sender has buffered beyond that is as if it were lost */
};

struct packet {
    struct packet *prev, *next;
    uint64_t at_ms;
    uint16_t from, to;
    uint64_t boot; /* of the sender */
    size_t bytes;
    char data[];
};
struct kept { /* an entry on a disk */
    struct ballot ballot;
    char *value;
    size_t bytes;
    bool there;
};
struct write { /* one transaction on its way to a disk */
    struct write *prev, *next;
    uint64_t batch, at_ms;
    bool has_promise, has_record;
    struct ballot promised;
    uint32_t lease_ms;
    paxos_slot chosen;
    struct identity_record record;
    struct paxos_entry *entries;
    uint32_t entry_count;
};
struct background { /* a checkpoint on its way to a disk */
    bool any;
    uint64_t at_ms;
    paxos_slot slot;
    struct buf bytes;
};
struct disk {
    uint64_t store_id;
    struct buf checkpoint; /* durable; saved.checkpoint_slot says which */
    struct background saving, installing;
    bool used;
    struct replica_saved saved;
    struct kept *slots;
    paxos_slot slot_count;
    struct write *writes;
    enum town_disk state;
    uint64_t write_ms;
};
struct machine {
    struct replica *replica;
    bool up, paused;
    uint64_t boot, wake_ms;
    struct disk disk;
    struct buf notes;
};
struct out_reply {
    uint64_t client;
    bool leased, hang_up;
    size_t at, bytes; /* in replies.data */
};
enum link { LINK_GOOD, LINK_CUT, LINK_HELD };

static struct {
    uint16_t count, founders;
    uint64_t now_ms, next_boot, next_store, next_client;
    struct machine machines[PAXOS_NODES_MAX];
    enum link links[PAXOS_NODES_MAX][PAXOS_NODES_MAX];
    bool twice[PAXOS_NODES_MAX][PAXOS_NODES_MAX];
    uint32_t on_the_way[PAXOS_NODES_MAX][PAXOS_NODES_MAX];
    struct packet *packets;
    int favoured;
    uint16_t client_node[CLIENTS_MAX];
    bool client_open[CLIENTS_MAX];
    struct town_sink sink;
    struct buf replies, frame, notes_shown; /* replies of the turn that runs */
    struct out_reply out[CLIENTS_MAX];
    uint32_t out_count;
    struct frame_scratch scratch;
} town;

/* ---- disks ---- */

static void write_free(struct write *w) {
    for (uint32_t i = 0; i < w->entry_count; i++) free((char *)(uintptr_t)w->entries[i].value.data);
    free(w->entries);
    free(w);
}

static char *copy_bytes(struct slice s) {
    char *copy = malloc(s.bytes + 1);
    if (s.bytes > 0) memcpy(copy, s.data, s.bytes);
    return copy;
}

static void keep(struct disk *d, const struct paxos_entry *e) {
    if (e->slot >= d->slot_count) {
        const paxos_slot count = e->slot * 2 + 64;
        d->slots = realloc(d->slots, count * sizeof *d->slots);
        memset(&d->slots[d->slot_count], 0, (count - d->slot_count) * sizeof *d->slots);
        d->slot_count = count;
    }
    struct kept *k = &d->slots[e->slot];
    free(k->value);
    *k = (struct kept){.ballot = e->ballot, .value = copy_bytes(e->value), .bytes = e->value.bytes, .there = true};
}

static void write_done(struct disk *d, const struct write *w) {
    if (w->has_record) d->saved.record = w->record;
    if (w->has_promise) d->saved.paxos.promised = w->promised;
    if (w->lease_ms != 0) d->saved.paxos.lease_ms_max = w->lease_ms;
    if (w->chosen != 0) d->saved.paxos.chosen = w->chosen;
    for (uint32_t i = 0; i < w->entry_count; i++) keep(d, &w->entries[i]);
}

static void put_background(struct background *b, paxos_slot slot, uint64_t at_ms) {
    b->any = true;
    b->slot = slot;
    b->at_ms = at_ms;
}

static void checkpoint_done(struct disk *d, struct background *b) {
    buf_clear(&d->checkpoint);
    buf_append_slice(&d->checkpoint, buf_slice(&b->bytes));
    d->saved.checkpoint_slot = b->slot;
    d->saved.checkpoint_bytes = b->bytes.bytes;
    b->any = false;
}

static void cut_to(struct disk *d, paxos_slot slot) {
    for (paxos_slot s = 1; s <= slot && s < d->slot_count; s++) {
        free(d->slots[s].value);
        d->slots[s] = (struct kept){.there = false};
    }
    if (slot > d->saved.paxos.cut) d->saved.paxos.cut = slot;
}

static void disk_forget(struct disk *d) {
    d->saving.any = d->installing.any = false;
    struct write *w, *next;
    DL_FOREACH_SAFE(d->writes, w, next) {
        DL_DELETE(d->writes, w);
        write_free(w);
    }
}

static void disk_wipe(struct disk *d) {
    disk_forget(d);
    for (paxos_slot s = 0; s < d->slot_count; s++) free(d->slots[s].value);
    free(d->slots);
    buf_release(&d->checkpoint);
    buf_release(&d->saving.bytes);
    buf_release(&d->installing.bytes);
    *d = (struct disk){.store_id = ++town.next_store, .state = d->state, .write_ms = d->write_ms};
    d->checkpoint.alloc = d->saving.bytes.alloc = d->installing.bytes.alloc = heap_alloc();
}

static struct paxos_entry kept_entry(const struct disk *d, paxos_slot slot) {
    const struct kept *k = &d->slots[slot];
    return (struct paxos_entry){.slot = slot, .ballot = k->ballot, .value = slice_of(k->value, k->bytes)};
}

/* ---- what a node hands out ---- */

static void on_save(void *context, uint64_t batch, const struct paxos_output *out,
                    const struct identity_record *record) {
    struct machine *m = context;
    struct write *w = calloc(1, sizeof *w);
    w->batch = batch;
    w->at_ms = town.now_ms + m->disk.write_ms;
    if (record != NULL) {
        w->has_record = true;
        w->record = *record;
    }
    if (out != NULL) {
        w->has_promise = out->save_promise;
        w->promised = out->promised;
        w->lease_ms = out->save_lease_ms;
        w->chosen = out->save_chosen;
        w->entry_count = out->save_count;
        w->entries = calloc(out->save_count + 1, sizeof *w->entries);
        for (uint32_t i = 0; i < out->save_count; i++) {
            w->entries[i] = out->saves[i];
            w->entries[i].value = slice_of(copy_bytes(out->saves[i].value), out->saves[i].value.bytes);
        }
    }
    DL_APPEND(m->disk.writes, w);
}

static void on_send(void *context, uint16_t peer, struct slice frame) {
    const struct machine *m = context;
    const uint16_t from = (uint16_t)(m - town.machines);
    if (town.links[from][peer] == LINK_CUT) return;
    for (int copies = town.twice[from][peer] ? 2 : 1; copies > 0; copies--) {
        if (town.on_the_way[from][peer] >= ON_THE_WAY_MAX) return;
        town.on_the_way[from][peer]++;
        struct packet *p = malloc(sizeof *p + frame.bytes);
        p->at_ms = town.now_ms + TOWN_LINK_MS;
        p->from = from;
        p->to = peer;
        p->boot = m->boot;
        p->bytes = frame.bytes;
        memcpy(p->data, frame.data, frame.bytes);
        DL_APPEND(town.packets, p);
    }
}

static void packet_end(struct packet *p) {
    town.on_the_way[p->from][p->to]--;
    DL_DELETE(town.packets, p);
    free(p);
}

static void out_add(uint64_t client, struct slice bytes, bool leased, bool hang_up) {
    must(town.out_count < CLIENTS_MAX);
    town.out[town.out_count++] = (struct out_reply){
        .client = client, .leased = leased, .hang_up = hang_up, .at = town.replies.bytes, .bytes = bytes.bytes};
    buf_append_slice(&town.replies, bytes);
}

static void on_reply(void *context, uint64_t client, struct slice bytes, bool leased) {
    (void)context;
    out_add(client, bytes, leased, false);
}

static void on_hang_up(void *context, uint64_t client) {
    (void)context;
    out_add(client, slice_of(NULL, 0), false, true);
}

static void on_fetch(void *context, uint16_t peer, paxos_slot from_slot, paxos_slot to_slot) {
    struct machine *m = context;
    const struct disk *d = &m->disk;
    struct paxos_entry entries[ENTRIES_MAX];
    uint32_t count = 0;
    for (paxos_slot s = from_slot; s <= to_slot && s < d->slot_count && count < ENTRIES_MAX && d->slots[s].there; s++)
        entries[count++] = kept_entry(d, s);
    if (count == 0) return;
    buf_clear(&town.frame);
    replica_chosen_frame(m->replica, peer, entries, count, &town.frame);
    on_send(context, peer, buf_slice(&town.frame));
}

static int put_bytes(void *context, struct slice bytes) {
    buf_append_slice(context, bytes);
    return 0;
}

static void on_checkpoint(void *context, const struct keyspace *ks, paxos_slot slot) {
    struct machine *m = context;
    buf_clear(&m->disk.saving.bytes);
    must(keyspace_save(ks, put_bytes, &m->disk.saving.bytes) == 0);
    put_background(&m->disk.saving, slot, town.now_ms + m->disk.write_ms);
}

static void on_cut(void *context, paxos_slot slot) {
    struct machine *m = context;
    cut_to(&m->disk, slot);
}

static void on_snapshot_read(void *context, uint16_t peer, paxos_slot slot, uint64_t offset, uint32_t bytes) {
    const struct machine *m = context;
    const struct buf *whole = &m->disk.checkpoint;
    if (m->disk.saved.checkpoint_slot != slot || offset > whole->bytes) return;
    if (bytes > whole->bytes - offset) bytes = (uint32_t)(whole->bytes - offset);
    buf_clear(&town.frame);
    replica_snapshot_frame(m->replica, slot, offset, slice_of(whole->data + offset, bytes), &town.frame);
    on_send(context, peer, buf_slice(&town.frame));
}

static void on_install(void *context, paxos_slot slot, struct slice bytes) {
    struct machine *m = context;
    buf_clear(&m->disk.installing.bytes);
    buf_append_slice(&m->disk.installing.bytes, bytes);
    put_background(&m->disk.installing, slot, town.now_ms + m->disk.write_ms);
}

static void on_note(void *context, char level, const char *text) {
    struct machine *m = context;
    if (getenv("VERBOSE") != NULL)
        printf("# %6llu node %u %c %s\n", (unsigned long long)town.now_ms, (unsigned)(m - town.machines) + 1, level,
               text);
    char line[64];
    const char *end = strchr(text, ' ');
    end = end != NULL ? strchr(end + 1, ' ') : NULL;
    snprintf(line, sizeof line, "%c %.*s\n", level, (int)(end != NULL ? end - text : 48), text);
    if (m->notes.bytes > 0 && strstr(m->notes.data, line) != NULL) return;
    buf_append(&m->notes, line, strlen(line) + 1);
    m->notes.bytes--; /* the end of the text is there, and not part of it */
}

/* ---- nodes ---- */

static bool dials(uint16_t from, uint16_t to) {
    return from != to && town.machines[from].up && town.machines[to].up && town.links[from][to] != LINK_CUT &&
           town.links[to][from] != LINK_CUT;
}

static void dial(uint16_t from, uint16_t to) {
    if (!dials(from, to)) return;
    replica_link_up(town.machines[from].replica, town.now_ms, to);
    town.machines[from].wake_ms = town.now_ms;
}

void town_start(uint16_t node) {
    struct machine *m = &town.machines[node];
    struct disk *d = &m->disk;
    must(!m->up);
    m->boot = ++town.next_boot;
    struct replica_config config = {.alloc = heap_alloc(),
                                    .node = node,
                                    .node_count = node < town.founders ? town.founders : node + 1,
                                    .store_id = d->store_id,
                                    .boot_id = m->boot,
                                    .fresh_cluster_id = 0x7000 + m->boot,
                                    .seed = m->boot * 7919,
                                    .start_ms = town.now_ms,
                                    .heartbeat_ms = 50,
                                    .lease_ms = 300,
                                    .election_spread_ms = 100,
                                    .drift_ppm = 500,
                                    .forward_timeout_ms = 10000,
                                    .reattach_ms = 1000,
                                    .inflight_max = 16,
                                    .batch_bytes_max = 1 << 20,
                                    .queue_bytes_max = 1 << 24,
                                    .client_pending_max = 1024,
                                    .request_bytes_max = 1 << 19,
                                    .disk_reserve = TOWN_DISK_RESERVE,
                                    .stall_ms = TOWN_STALL_MS,
                                    .version = "story"};
    ks_settings_default(&config.settings);
    struct paxos_entry *accepted = calloc(d->slot_count + 1, sizeof *accepted);
    d->saved.paxos.accepted = accepted;
    d->saved.paxos.accepted_count = 0;
    d->saved.paxos.restarted = d->used;
    d->used = true;
    if (d->saved.checkpoint_slot > d->saved.paxos.chosen) d->saved.paxos.chosen = d->saved.checkpoint_slot;
    for (paxos_slot s = d->saved.paxos.chosen + 1; s < d->slot_count; s++)
        if (d->slots[s].there) accepted[d->saved.paxos.accepted_count++] = kept_entry(d, s);
    const struct replica_sink sink = {.context = m,
                                      .save = on_save,
                                      .send = on_send,
                                      .reply = on_reply,
                                      .hang_up = on_hang_up,
                                      .fetch = on_fetch,
                                      .note = on_note,
                                      .checkpoint = on_checkpoint,
                                      .cut = on_cut,
                                      .snapshot_read = on_snapshot_read,
                                      .install = on_install};
    m->replica = replica_new(&config, &d->saved, &sink);
    free(accepted);
    char error[256] = "";
    if (d->saved.checkpoint_slot > 0)
        must(replica_restore(m->replica, buf_slice(&d->checkpoint), error, sizeof error) == 0);
    for (paxos_slot s = d->saved.checkpoint_slot + 1; s <= d->saved.paxos.chosen; s++)
        replica_replay(m->replica, s, kept_entry(d, s).value);
    m->up = true;
    m->paused = false;
    m->wake_ms = town.now_ms;
    for (uint16_t i = 0; i < town.count; i++) {
        dial(node, i);
        dial(i, node);
    }
}

static void close_clients(uint16_t node) {
    for (uint64_t id = 1; id <= town.next_client; id++) {
        if (!town.client_open[id] || town.client_node[id] != node) continue;
        town.client_open[id] = false;
        town.sink.closed(id);
    }
}

void town_crash(uint16_t node) {
    struct machine *m = &town.machines[node];
    must(m->up);
    m->up = m->paused = false;
    replica_free(m->replica);
    m->replica = NULL;
    disk_forget(&m->disk);
    for (uint16_t i = 0; i < town.count; i++)
        if (town.machines[i].up) replica_link_lost(town.machines[i].replica, town.now_ms, node);
    close_clients(node);
}

void town_pause(uint16_t node) {
    town.machines[node].paused = true;
}

void town_resume(uint16_t node) {
    town.machines[node].paused = false;
    town.machines[node].wake_ms = town.now_ms;
}

void town_wipe(uint16_t node) {
    must(!town.machines[node].up);
    disk_wipe(&town.machines[node].disk);
}

bool town_is_up(uint16_t node) {
    return town.machines[node].up;
}

bool town_is_paused(uint16_t node) {
    return town.machines[node].paused;
}

struct replica *town_replica(uint16_t node) {
    return town.machines[node].replica;
}

uint64_t town_store_id(uint16_t node) {
    return town.machines[node].disk.store_id;
}

const char *town_halted(uint16_t node) {
    return town.machines[node].up ? replica_halt_reason(town.machines[node].replica) : NULL;
}

void town_disk(uint16_t node, enum town_disk disk, uint64_t write_ms) {
    struct disk *d = &town.machines[node].disk;
    struct write *w;
    if (d->state == TOWN_DISK_HANGS && disk == TOWN_DISK_WORKS)
        DL_FOREACH(d->writes, w) w->at_ms = town.now_ms + write_ms;
    d->state = disk;
    d->write_ms = write_ms;
}

void town_disk_left(uint16_t node, uint64_t bytes) {
    if (town.machines[node].up) replica_disk_free(town.machines[node].replica, bytes);
}

uint64_t town_checkpoint(uint16_t node) {
    return town.machines[node].disk.saved.checkpoint_slot;
}

struct slice town_notes(uint16_t node) {
    struct buf *notes = &town.machines[node].notes;
    buf_clear(&town.notes_shown);
    buf_append_slice(&town.notes_shown, buf_slice(notes));
    buf_clear(notes);
    return buf_slice(&town.notes_shown);
}

/* ---- links ---- */

void town_cut(uint16_t from, uint16_t to) {
    struct packet *p, *next;
    town.links[from][to] = LINK_CUT;
    DL_FOREACH_SAFE(town.packets, p, next) {
        if (p->from != from || p->to != to) continue;
        packet_end(p);
    }
}

void town_hold(uint16_t from, uint16_t to) {
    town.links[from][to] = LINK_HELD;
}

void town_twice(uint16_t from, uint16_t to, bool twice) {
    town.twice[from][to] = twice;
}

void town_heal(uint16_t from, uint16_t to) {
    const bool was_cut = town.links[from][to] == LINK_CUT;
    town.links[from][to] = LINK_GOOD;
    if (!was_cut || !dials(from, to)) return;
    replica_link_lost(town.machines[from].replica, town.now_ms, to);
    dial(from, to);
    replica_link_lost(town.machines[to].replica, town.now_ms, from);
    dial(to, from);
}

void town_favour(int node) {
    town.favoured = node;
}

/* ---- clients ---- */

void town_listen(const struct town_sink *sink) {
    town.sink = *sink;
}

uint64_t town_connect(uint16_t node) {
    if (!town.machines[node].up) return 0;
    const uint64_t id = ++town.next_client;
    must(id < CLIENTS_MAX);
    town.client_node[id] = node;
    town.client_open[id] = true;
    return id;
}

void town_disconnect(uint64_t client) {
    if (!town.client_open[client]) return;
    struct machine *m = &town.machines[town.client_node[client]];
    town.client_open[client] = false;
    replica_client_gone(m->replica, town.now_ms, client);
    m->wake_ms = town.now_ms;
}

void town_command(uint64_t client, uint32_t argc, const struct slice *argv) {
    if (!town.client_open[client]) return;
    struct machine *m = &town.machines[town.client_node[client]];
    replica_command(m->replica, town.now_ms, town.now_ms * 1000, client, argc, argv);
    m->wake_ms = town.now_ms;
}

static void replies_out(const struct machine *m) {
    for (uint32_t i = 0; i < town.out_count; i++) {
        const struct out_reply *o = &town.out[i];
        if (!town.client_open[o->client]) continue;
        const bool stale = o->leased && !replica_reads_hold(m->replica, town.now_ms);
        if (!stale && o->bytes > 0) town.sink.reply(o->client, slice_of(town.replies.data + o->at, o->bytes));
        if (!stale && !o->hang_up) continue;
        town_disconnect(o->client);
        town.sink.closed(o->client);
    }
    town.out_count = 0;
    buf_clear(&town.replies);
}

/* ---- time ---- */

static bool is_others_candidacy(const struct frame *f) {
    return town.favoured >= 0 && f->kind == FRAME_PAXOS && f->paxos.from != town.favoured &&
           (f->paxos.kind == PAXOS_MSG_PREVOTE || f->paxos.kind == PAXOS_MSG_PREPARE);
}

static bool arrive(void) {
    bool any = false;
    struct packet *p, *next;
    DL_FOREACH_SAFE(town.packets, p, next) {
        struct machine *m = &town.machines[p->to];
        if (p->at_ms > town.now_ms || m->paused || town.links[p->from][p->to] == LINK_HELD) continue;
        struct frame frame;
        size_t used;
        must(frame_decode(p->data, p->bytes, &frame, &town.scratch, &used) == FRAME_OK);
        if (m->up && !is_others_candidacy(&frame)) {
            replica_frame(m->replica, town.now_ms, p->from, p->boot, &frame);
            m->wake_ms = town.now_ms;
        }
        packet_end(p);
        any = true;
    }
    return any;
}

static bool background_done(struct machine *m) {
    struct disk *d = &m->disk;
    bool any = false;
    if (d->saving.any && d->saving.at_ms <= town.now_ms) {
        checkpoint_done(d, &d->saving);
        replica_checkpointed(m->replica, town.now_ms, d->saved.checkpoint_slot, d->checkpoint.bytes);
        any = true;
    }
    if (d->installing.any && d->installing.at_ms <= town.now_ms) {
        checkpoint_done(d, &d->installing);
        cut_to(d, d->saved.checkpoint_slot);
        replica_installed(m->replica, town.now_ms, d->saved.checkpoint_slot);
        any = true;
    }
    if (any) m->wake_ms = town.now_ms;
    return any;
}

static bool become_durable(struct machine *m) {
    uint64_t batch = 0;
    struct write *w, *next;
    if (m->disk.state == TOWN_DISK_HANGS) return false;
    const bool any = background_done(m);
    DL_FOREACH_SAFE(m->disk.writes, w, next) {
        if (w->at_ms > town.now_ms) break;
        write_done(&m->disk, w);
        batch = w->batch;
        DL_DELETE(m->disk.writes, w);
        write_free(w);
    }
    if (batch == 0) return any;
    replica_durable(m->replica, town.now_ms, batch);
    m->wake_ms = town.now_ms;
    return true;
}

static bool step(void) {
    bool any = arrive();
    for (uint16_t i = 0; i < town.count; i++) {
        struct machine *m = &town.machines[i];
        if (!m->up || m->paused) continue;
        any |= become_durable(m);
        if (m->wake_ms > town.now_ms) continue;
        m->wake_ms = replica_turn(m->replica, town.now_ms);
        replies_out(m);
        any = true;
    }
    return any;
}

bool town_run(uint64_t ms, bool (*enough)(void *context), void *context) {
    for (const uint64_t end_ms = town.now_ms + ms; town.now_ms < end_ms; town.now_ms++)
        if (step() && enough != NULL && enough(context)) return true;
    return false;
}

/* ---- beginning and end ---- */

void town_open(uint16_t count, uint16_t founders) {
    must(founders >= 1 && founders <= count && count <= PAXOS_NODES_MAX);
    town.founders = founders;
    town.count = count;
    town.now_ms = 1000;
    town.next_store = 0x100;
    town.favoured = -1;
    town.replies.alloc = town.frame.alloc = town.notes_shown.alloc = heap_alloc();
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        struct machine *m = &town.machines[i];
        m->notes.alloc = heap_alloc();
        m->disk.write_ms = TOWN_DISK_MS;
        disk_wipe(&m->disk);
    }
}

void town_close(void) {
    struct packet *p, *next;
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        struct machine *m = &town.machines[i];
        replica_free(m->replica);
        disk_wipe(&m->disk);
        buf_release(&m->notes);
    }
    DL_FOREACH_SAFE(town.packets, p, next) free(p);
    buf_release(&town.replies);
    buf_release(&town.frame);
    buf_release(&town.notes_shown);
    memset(&town, 0, sizeof town);
}

uint64_t town_now(void) {
    return town.now_ms;
}

uint16_t town_count(void) {
    return town.count;
}
