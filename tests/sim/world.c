/* world.c - see world.h. */
#include "tests/sim/world.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/must.h"
#include "tests/sim/check_paxos.h"

enum event_kind {
    EVENT_DELIVER,
    EVENT_DISK,
    EVENT_WAKE,
    EVENT_TURN,
    EVENT_FAULT,
    EVENT_LOAD,
    EVENT_RESTART,
    EVENT_COUP,
    EVENT_MEND,
    EVENT_SPLIT,
    EVENT_RETURN,
    EVENT_LINKS,
    EVENT_FILE
};
struct event {
    uint64_t at_us, seq;
    enum event_kind kind;
    uint16_t node;
    uint64_t boot;
    struct packet *packet;
    uint32_t epoch;
};

/* ------------------------------------------------------------------ chance: xoshiro256** (Blackman, Vigna 2018) */

static uint64_t rotate(uint64_t x, int k) {
    return x << k | x >> (64 - k);
}
uint64_t world_random(struct world *w) {
    uint64_t *s = w->random;
    const uint64_t result = rotate(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate(s[3], 45);
    return result;
}
static void random_seed(struct world *w, uint64_t seed) {
    for (int i = 0; i < 4; i++) {
        uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);
        z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
        w->random[i] = z ^ z >> 31;
    }
}
uint64_t world_below(struct world *w, uint64_t limit) {
    must(limit > 0);
    return world_random(w) % limit;
}
uint64_t world_between(struct world *w, uint64_t low, uint64_t high) {
    return low + world_below(w, high - low + 1);
}
bool world_chance(struct world *w, uint32_t ppm) {
    return ppm > 0 && world_below(w, 1000000) < ppm;
}

/* ------------------------------------------------------------------ words */

void world_fail(struct world *w, const char *format, ...) {
    if (w->failed) return;
    w->failed = true;
    const int head = snprintf(w->failure, sizeof w->failure, "at %.3f ms: ", (double)w->now_us / 1000.0);
    va_list args;
    va_start(args, format);
    vsnprintf(w->failure + head, sizeof w->failure - (size_t)head, format, args);
    va_end(args);
    world_trace(w, "FAIL %s", w->failure);
}
void world_trace(struct world *w, const char *format, ...) {
    if (!w->trace) return;
    printf("%11.3f ", (double)w->now_us / 1000.0);
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

/* ------------------------------------------------------------------ memory of the objects */

static void *counted_resize(void *context, void *memory, size_t bytes) {
    struct sim_node *n = context;
    if (bytes == 0) {
        n->memory_blocks--;
        free(memory);
        return NULL;
    }
    if (memory == NULL) n->memory_blocks++;
    return realloc(memory, bytes);
}
static void *get(void *memory, size_t bytes) {
    void *fresh = realloc(memory, bytes);
    must(fresh != NULL);
    return fresh;
}

struct packet *packet_new(struct world *w, uint16_t from, size_t bytes) {
    (void)w;
    struct packet *p = get(NULL, sizeof *p + bytes);
    p->refs = 1;
    p->from = from;
    p->bytes = bytes;
    return p;
}
void packet_drop(struct packet *p) {
    if (p != NULL && --p->refs == 0) free(p);
}

/* ------------------------------------------------------------------ events */

static bool before(const struct event *a, const struct event *b) {
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->seq < b->seq;
}
static void schedule(struct world *w, uint64_t at_us, enum event_kind kind, uint16_t node, struct packet *packet) {
    if (w->heap_count == w->heap_capacity) {
        w->heap_capacity = w->heap_capacity ? w->heap_capacity * 2 : 1024;
        w->heap = get(w->heap, w->heap_capacity * sizeof *w->heap);
    }
    const struct event e = {.at_us = at_us,
                            .seq = ++w->event_seq,
                            .kind = kind,
                            .node = node,
                            .boot = w->nodes[node].boot,
                            .packet = packet,
                            .epoch = packet != NULL ? w->links[packet->from][node].epoch : 0};
    size_t at = w->heap_count++;
    for (; at > 0 && before(&e, &w->heap[(at - 1) / 2]); at = (at - 1) / 2) w->heap[at] = w->heap[(at - 1) / 2];
    w->heap[at] = e;
}
static struct event next_event(struct world *w) {
    const struct event first = w->heap[0], last = w->heap[--w->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= w->heap_count) break;
        if (child + 1 < w->heap_count && before(&w->heap[child + 1], &w->heap[child])) child++;
        if (!before(&w->heap[child], &last)) break;
        w->heap[at] = w->heap[child];
        at = child;
    }
    if (w->heap_count > 0) w->heap[at] = last;
    return first;
}

/* ------------------------------------------------------------------ clocks */

static uint64_t local_us(const struct world *w, uint16_t node) {
    const struct sim_node *n = &w->nodes[node];
    return n->offset_us + w->now_us + (uint64_t)((int64_t)w->now_us * n->rate_ppm / 1000000);
}
uint64_t world_local_ms(const struct world *w, uint16_t node) {
    return local_us(w, node) / 1000;
}
/* The true time at which the node's clock first shows that millisecond. */
static uint64_t true_us(const struct world *w, uint16_t node, uint64_t local_ms) {
    const struct sim_node *n = &w->nodes[node];
    if (local_ms <= world_local_ms(w, node)) return w->now_us;
    const int64_t ahead = (int64_t)(local_ms * 1000 - local_us(w, node));
    return w->now_us + (uint64_t)(ahead * 1000000 / (1000000 + n->rate_ppm)) + 2;
}

/* ------------------------------------------------------------------ turns */

static void turn_soon(struct world *w, uint16_t node) {
    struct sim_node *n = &w->nodes[node];
    if (n->turn_due) return;
    n->turn_due = true;
    uint64_t at = w->now_us + world_between(w, 5, 150); /* others arrive meanwhile: one turn takes them all */
    if (at < n->paused_until_us) at = n->paused_until_us;
    schedule(w, at, EVENT_TURN, node, NULL);
}
static void give(struct world *w, uint16_t node, struct input in) {
    struct sim_node *n = &w->nodes[node];
    if (n->inbox_count == n->inbox_capacity) {
        n->inbox_capacity = n->inbox_capacity ? n->inbox_capacity * 2 : 64;
        n->inbox = get(n->inbox, n->inbox_capacity * sizeof *n->inbox);
    }
    n->inbox[n->inbox_count++] = in;
    turn_soon(w, node);
}
void world_client_input(struct world *w, uint16_t node, uint64_t number) {
    if (w->nodes[node].up) give(w, node, (struct input){.kind = INPUT_CLIENT, .number = number});
}

static void release_held(struct world *w, uint16_t node) {
    struct sim_node *n = &w->nodes[node];
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n->held_count; i++) {
        if (n->held[i].batch <= n->disk.durable)
            world_send(w, node, n->held[i].to, n->held[i].packet); /* a point to die at as well */
        else
            n->held[kept++] = n->held[i];
    }
    n->held_count = kept;
}

static void turn(struct world *w, uint16_t node) {
    struct sim_node *n = &w->nodes[node];
    n->turn_due = false;
    for (uint32_t i = 0; i < n->inbox_count && !w->failed; i++) {
        const struct input in = n->inbox[i];
        if (in.kind == INPUT_DURABLE) {
            if (in.number > n->disk.durable) n->disk.durable = in.number;
        }
        w->object->input(w, node, &in);
        if (in.kind == INPUT_DURABLE) release_held(w, node);
        packet_drop(in.packet);
        n->inbox[i].packet = NULL;
    }
    n->inbox_count = 0;
    if (w->failed) return;
    const uint64_t wake_ms = w->object->turn(w, node);
    if (n->dying) {
        if (!w->failed) {
            world_crash(w, node);
            schedule(w, w->now_us + world_between(w, 1, 1000) * 1000, EVENT_RESTART, node, NULL);
        }
        return;
    }
    check_turn(w, node);
    if (wake_ms == UINT64_MAX) {
        n->wake_us = UINT64_MAX;
        return;
    }
    /* timers fire late, never early */
    const uint64_t late = world_below(w, 1500);
    n->wake_us = true_us(w, node, wake_ms) + late;
    schedule(w, n->wake_us, EVENT_WAKE, node, NULL);
}

/* ------------------------------------------------------------------ network */

/* True if the process is dead by now: the save or send does not happen. */
static bool dies_here(struct world *w, uint16_t node) {
    struct sim_node *n = &w->nodes[node];
    if (n->crash_after > 0 && --n->crash_after == 0) {
        world_trace(w, "n%u dies inside its turn", node);
        n->dying = true;
    }
    return n->dying;
}

void world_send(struct world *w, uint16_t from, uint16_t to, struct packet *p) {
    must(from < w->node_count && to < w->node_count && from != to);
    if (dies_here(w, from)) {
        packet_drop(p);
        return;
    }
    struct link *l = &w->links[from][to];
    check_emit(w, from, to, p);
    uint32_t copies = 1;
    if (w->object->connections) {
        if (!l->up || l->broken || l->cut || world_chance(w, l->loss_ppm / 100)) {
            l->broken = true;
            copies = 0;
        }
    } else if (l->cut || world_chance(w, l->loss_ppm))
        copies = 0;
    else if (world_chance(w, l->duplicate_ppm))
        copies = 2;
    for (uint32_t i = 0; i < copies; i++) {
        uint64_t at = w->now_us + world_between(w, l->delay_min_us, l->delay_max_us);
        if (l->slow_ppm > 0 && world_chance(w, l->slow_ppm)) at += world_between(w, 0, 100000);
        if (at < l->clog_until_us) at = l->clog_until_us;
        if (!w->object->connections && world_chance(w, l->reorder_ppm)) {
            at += world_between(w, 0, 40000);
            if (world_chance(w, 50000)) at += world_between(w, 0, 3000000); /* a packet from another age */
        } else {
            if (at <= l->last_us) at = l->last_us + 1;
            l->last_us = at;
        }
        p->refs++;
        schedule(w, at, EVENT_DELIVER, to, p);
    }
    packet_drop(p);
}
void world_send_after(struct world *w, uint16_t from, uint16_t to, struct packet *p, uint64_t batch) {
    struct sim_node *n = &w->nodes[from];
    if (n->dying || batch <= n->disk.durable) {
        world_send(w, from, to, p);
        return;
    }
    if (n->held_count == n->held_capacity) {
        n->held_capacity = n->held_capacity ? n->held_capacity * 2 : 64;
        n->held = get(n->held, n->held_capacity * sizeof *n->held);
    }
    n->held[n->held_count++] = (struct held){.batch = batch, .to = to, .packet = p};
}

/* ------------------------------------------------------------------ disks */

const struct disk_entry *disk_at(const struct disk *d, paxos_slot slot) {
    if (slot > d->top || slot >= d->entry_capacity) return NULL;
    return d->entries[slot].ballot.round == 0 ? NULL : &d->entries[slot];
}
static char *copy(struct slice s) {
    char *data = get(NULL, s.bytes + 1);
    if (s.bytes > 0) memcpy(data, s.data, s.bytes);
    return data;
}
static void write_release(struct disk_write *d) {
    for (uint32_t i = 0; i < d->count; i++) free((char *)(uintptr_t)d->entries[i].value.data);
    free(d->entries);
}
/* One transaction, whole. */
static void write_apply(struct world *w, uint16_t node, const struct disk_write *t) {
    struct disk *d = &w->nodes[node].disk;
    check_durable(w, node, t);
    d->used = true;
    if (t->save_promise) d->promised = t->promised;
    if (t->lease_ms != 0) d->lease_ms_max = t->lease_ms;
    if (t->chosen != 0) d->chosen = t->chosen;
    if (t->save_record) d->record = t->record;
    for (uint32_t i = 0; i < t->count; i++) {
        const struct paxos_entry *e = &t->entries[i];
        if (e->slot <= d->cut) continue; /* came late: nobody will ask for it */
        while (e->slot >= d->entry_capacity) {
            const size_t old = d->entry_capacity;
            d->entry_capacity = old ? old * 2 : 256;
            d->entries = get(d->entries, d->entry_capacity * sizeof *d->entries);
            memset(d->entries + old, 0, (d->entry_capacity - old) * sizeof *d->entries);
        }
        free(d->entries[e->slot].data);
        d->entries[e->slot] = (struct disk_entry){.ballot = e->ballot, .data = copy(e->value), .bytes = e->value.bytes};
        if (e->slot > d->top) d->top = e->slot;
    }
}
void disk_cut(struct disk *d, paxos_slot slot) {
    for (paxos_slot s = d->cut + 1; s <= slot && s < d->entry_capacity; s++) {
        free(d->entries[s].data);
        d->entries[s] = (struct disk_entry){0};
    }
    if (slot > d->cut) d->cut = slot;
}
static void disk_forget(struct disk *d, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) write_release(&d->queue[i]);
    if (count > 0) memmove(d->queue, d->queue + count, (d->queue_count - count) * sizeof *d->queue);
    d->queue_count -= count;
}
static void disk_commit(struct world *w, uint16_t node) {
    struct disk *d = &w->nodes[node].disk;
    if (d->committing > 0 || d->queue_count == 0) return;
    d->committing = d->queue_count; /* one commit for everything waiting */
    uint64_t latency = world_between(w, 100, 900) * d->slow_factor;
    if (world_chance(w, 5000)) latency += world_between(w, 0, 50000);
    schedule(w, w->now_us + latency, EVENT_DISK, node, NULL);
}
void world_save(struct world *w, uint16_t node, uint64_t batch, const struct paxos_output *out,
                const struct identity_record *record) {
    struct sim_node *n = &w->nodes[node];
    struct disk *d = &n->disk;
    if (dies_here(w, node)) return;
    if (batch != n->last_batch + 1)
        world_fail(w, "P3: n%u: batch %llu after %llu", node, (unsigned long long)batch,
                   (unsigned long long)n->last_batch);
    n->last_batch = batch;
    if (d->queue_count == d->queue_capacity) {
        d->queue_capacity = d->queue_capacity ? d->queue_capacity * 2 : 16;
        d->queue = get(d->queue, d->queue_capacity * sizeof *d->queue);
    }
    struct disk_write *t = &d->queue[d->queue_count++];
    *t = (struct disk_write){.batch = batch};
    if (record != NULL) {
        t->save_record = true;
        t->record = *record;
    }
    if (out != NULL) {
        t->save_promise = out->save_promise;
        t->promised = out->promised;
        t->lease_ms = out->save_lease_ms;
        t->chosen = out->save_chosen;
        t->count = out->save_count;
        t->entries = get(NULL, (out->save_count + 1) * sizeof *t->entries);
        for (uint32_t i = 0; i < out->save_count; i++) {
            t->entries[i] = out->saves[i];
            t->entries[i].value.data = copy(out->saves[i].value);
        }
    }
    disk_commit(w, node);
}
static void disk_done(struct world *w, uint16_t node) {
    struct disk *d = &w->nodes[node].disk;
    uint64_t batch = 0;
    if (d->fails && !w->calm) { /* EIO: what was being committed may be there or not, the process ends (D3) */
        world_trace(w, "n%u's disk fails", node);
        d->fails = false;
        world_crash(w, node);
        schedule(w, w->now_us + world_between(w, 100, 3000) * 1000, EVENT_RESTART, node, NULL);
        return;
    }
    for (uint32_t i = 0; i < d->committing; i++) {
        write_apply(w, node, &d->queue[i]);
        batch = d->queue[i].batch;
    }
    disk_forget(d, d->committing);
    d->committing = 0;
    give(w, node, (struct input){.kind = INPUT_DURABLE, .number = batch});
    disk_commit(w, node);
}
void disk_read(const struct disk *d, struct paxos_saved *ret_saved, struct paxos_entry *entries, uint32_t entries_max) {
    uint32_t count = 0;
    /* an install that was cut short: the snapshot is there, the log does not know */
    const paxos_slot chosen = d->chosen > d->snapshot.slot ? d->chosen : d->snapshot.slot;
    for (paxos_slot s = chosen + 1; s <= d->top; s++) {
        const struct disk_entry *e = disk_at(d, s);
        if (e == NULL) continue;
        must(count < entries_max);
        entries[count++] = (struct paxos_entry){.slot = s, .ballot = e->ballot, .value = slice_of(e->data, e->bytes)};
    }
    *ret_saved = (struct paxos_saved){.promised = d->promised,
                                      .lease_ms_max = d->lease_ms_max,
                                      .chosen = chosen,
                                      .cut = d->cut,
                                      .accepted = entries,
                                      .accepted_count = count,
                                      .restarted = d->used};
}

static void file_forget(struct file *f) {
    free(f->data);
    *f = (struct file){0};
}
/* The rename is durable. */
static void file_rename(struct disk *d) {
    file_forget(&d->checkpoint);
    d->checkpoint = d->writing;
    d->writing = (struct file){0};
    d->used = true;
}
void world_write_file(struct world *w, uint16_t node, paxos_slot slot, struct slice bytes, bool installs) {
    struct disk *d = &w->nodes[node].disk;
    if (dies_here(w, node)) return;
    if (slot < d->checkpoint.slot) world_fail(w, "D2: n%u writes a checkpoint older than the newest", node);
    file_forget(&d->writing);
    d->writing = (struct file){.slot = slot, .data = copy(bytes), .bytes = bytes.bytes};
    d->writing_installs = installs;
    world_trace(w, "n%u %s a checkpoint of slot %llu, %zu bytes", node, installs ? "installs" : "writes",
                (unsigned long long)slot, bytes.bytes);
    const uint64_t latency = world_between(w, 500, 60000) * d->slow_factor;
    schedule(w, w->now_us + (latency < 2000000 ? latency : 2000000), EVENT_FILE, node, NULL);
}
static void file_done(struct world *w, uint16_t node) {
    struct disk *d = &w->nodes[node].disk;
    if (d->writing.slot == 0) return; /* an earlier one's event: given up, or done */
    const uint64_t number = 2 * d->writing.slot + d->writing_installs;
    if (!d->writing_installs && w->swarm.disks && !w->calm && world_chance(w, 100000)) { /* no space */
        file_forget(&d->writing);
        give(w, node, (struct input){.kind = INPUT_FILE, .number = 0});
        return;
    }
    file_rename(d);
    give(w, node, (struct input){.kind = INPUT_FILE, .number = number});
}
void world_cut_log(struct world *w, uint16_t node, paxos_slot slot) {
    struct disk *d = &w->nodes[node].disk;
    if (dies_here(w, node)) return;
    if (slot > d->checkpoint.slot)
        world_fail(w, "D2: n%u cuts its log at %llu, its checkpoint is of %llu", node, (unsigned long long)slot,
                   (unsigned long long)d->checkpoint.slot);
    for (paxos_slot s = d->cut + 1; s <= slot && s < d->entry_capacity; s++) {
        free(d->entries[s].data);
        d->entries[s] = (struct disk_entry){0};
    }
    if (slot > d->cut) d->cut = slot;
    world_trace(w, "n%u cuts its log up to slot %llu", node, (unsigned long long)slot);
}

/* ------------------------------------------------------------------ connections */

static void link_down(struct world *w, uint16_t from, uint16_t to) {
    struct link *l = &w->links[from][to];
    l->epoch++; /* what is on its way is lost */
    l->broken = false;
    if (l->up && w->nodes[from].up) give(w, from, (struct input){.kind = INPUT_LINK, .number = 2u * to});
    l->up = false;
}
static void link_up(struct world *w, uint16_t from, uint16_t to) {
    struct link *l = &w->links[from][to];
    if (l->up || l->cut || !w->nodes[from].up || !w->nodes[to].up) return;
    if (w->object->dials != NULL && !w->object->dials(w, from, to)) return;
    l->up = true;
    l->last_us = w->now_us;
    give(w, from, (struct input){.kind = INPUT_LINK, .number = 2u * to + 1});
}
/* From time to time everybody notices what broke and dials again. */
static void look_at_links(struct world *w) {
    for (uint16_t i = 0; i < w->node_count; i++) {
        for (uint16_t j = 0; j < w->node_count; j++) {
            if (i == j) continue;
            if (w->links[i][j].broken) link_down(w, i, j);
            if (world_chance(w, 800000)) link_up(w, i, j);
        }
    }
    schedule(w, w->now_us + world_between(w, 10, 300) * 1000, EVENT_LINKS, 0, NULL);
}
static void links_of(struct world *w, uint16_t node) {
    for (uint16_t i = 0; i < w->node_count && w->object->connections; i++) {
        if (i == node) continue;
        link_down(w, i, node);
        link_down(w, node, i);
    }
}

/* ------------------------------------------------------------------ processes */

void world_pause(struct world *w, uint16_t node, uint64_t ms) {
    w->nodes[node].paused_until_us = w->now_us + ms * 1000;
    world_trace(w, "n%u stops until %.3f", node, (double)w->nodes[node].paused_until_us / 1000.0);
    turn_soon(w, node);
}
static void clear_memory(struct world *w, uint16_t node) {
    struct sim_node *n = &w->nodes[node];
    for (uint32_t i = 0; i < n->inbox_count; i++) packet_drop(n->inbox[i].packet);
    for (uint32_t i = 0; i < n->held_count; i++) packet_drop(n->held[i].packet);
    n->inbox_count = n->held_count = n->crash_after = 0;
    n->turn_due = n->dying = false;
    n->wake_us = UINT64_MAX;
}
void world_crash(struct world *w, uint16_t node) {
    struct sim_node *n = &w->nodes[node];
    if (!n->up) return;
    world_trace(w, "n%u crashes", node);
    /* of what was being committed any number of whole transactions may have made it */
    const uint32_t made = n->disk.committing > 0 ? (uint32_t)world_below(w, n->disk.committing + 1) : 0;
    for (uint32_t i = 0; i < made; i++) write_apply(w, node, &n->disk.queue[i]);
    disk_forget(&n->disk, n->disk.queue_count);
    n->disk.committing = 0;
    if (n->disk.writing.slot > 0 && world_chance(w, 300000)) file_rename(&n->disk); /* just made it */
    file_forget(&n->disk.writing);
    n->up = false;
    w->object->stop(w, node);
    clear_memory(w, node);
    links_of(w, node);
    if (n->memory_blocks != 0)
        world_fail(w, "memory: n%u: %ld blocks of memory left after the end", node, n->memory_blocks);
}
/* An empty disk instead of the old one. */
static void wipe(struct world *w, uint16_t node) {
    struct disk *d = &w->nodes[node].disk;
    world_trace(w, "n%u loses its disk", node);
    for (size_t s = 0; s < d->entry_capacity; s++) free(d->entries[s].data);
    free(d->entries);
    free(d->queue);
    file_forget(&d->checkpoint);
    file_forget(&d->writing);
    *d = (struct disk){.store_id = world_random(w) | 1, .slow_factor = 1};
    w->nodes[node].wiped = true;
}
void world_fall(struct world *w, uint16_t node) {
    if (!w->nodes[node].up) return;
    world_crash(w, node);
    schedule(w, w->now_us + world_between(w, 1, 500) * 1000, EVENT_RESTART, node, NULL);
}
void world_empty(struct world *w, uint16_t node) {
    world_crash(w, node);
    wipe(w, node);
    schedule(w, w->now_us + world_between(w, 1, 500) * 1000, EVENT_RESTART, node, NULL);
}
void world_restart(struct world *w, uint16_t node) {
    struct sim_node *n = &w->nodes[node];
    if (n->up || n->gone) return;
    n->up = true;
    n->boot++;
    n->last_batch = n->disk.durable = 0;
    n->paused_until_us = 0;
    n->turn_due = false; /* one that was to come while it was down */
    world_trace(w, "n%u starts, boot %llu", node, (unsigned long long)n->boot);
    /* an install that was cut short: the file is there, the log does not say so yet; what it has may be accepted only
     */
    const paxos_slot state = n->disk.checkpoint.slot + n->disk.snapshot.slot; /* an object has one kind of them */
    if (state > n->disk.chosen) {
        n->disk.chosen = state;
        disk_cut(&n->disk, state);
    }
    check_start(w, node);
    w->object->start(w, node);
    give(w, node, (struct input){.kind = INPUT_TICK});
}

/* ------------------------------------------------------------------ faults */

void world_cut(struct world *w, uint16_t from, uint16_t to, bool cut) {
    w->links[from][to].cut = cut;
}
void world_clog(struct world *w, uint16_t from, uint16_t to, uint64_t ms) {
    w->links[from][to].clog_until_us = w->now_us + ms * 1000;
}
static void all_links(struct world *w, bool cut) {
    for (uint16_t i = 0; i < w->node_count; i++) {
        for (uint16_t j = 0; j < w->node_count; j++) world_cut(w, i, j, cut);
    }
}
static void both_ways(struct world *w, uint16_t a, uint16_t b, bool cut) {
    world_cut(w, a, b, cut);
    world_cut(w, b, a, cut);
}
static void noise(struct world *w, bool on) {
    const uint32_t slow = on && world_chance(w, 200000) ? 40 : 1; /* links of another continent */
    for (uint16_t i = 0; i < w->node_count; i++) {
        for (uint16_t j = 0; j < w->node_count; j++) {
            struct link *l = &w->links[i][j];
            l->delay_min_us = (uint32_t)world_between(w, 30, 300) * slow;
            l->delay_max_us = l->delay_min_us + (uint32_t)world_between(w, 10, 1000) * slow;
            l->loss_ppm = on && w->swarm.loss && world_chance(w, 500000) ? (uint32_t)world_between(w, 0, 300000) : 0;
            l->duplicate_ppm = on && w->swarm.duplicate ? (uint32_t)world_between(w, 0, 100000) : 0;
            l->reorder_ppm = on && w->swarm.reorder ? (uint32_t)world_between(w, 0, 200000) : 0;
            l->slow_ppm = on && world_chance(w, 200000) ? (uint32_t)world_between(w, 0, 50000) : 0;
            l->clog_until_us = 0;
        }
    }
}
static void cut_something(struct world *w) {
    const uint16_t n = w->node_count, a = (uint16_t)world_below(w, n),
                   b = (uint16_t)((a + world_between(w, 1, n - 1u)) % n);
    switch (world_below(w, 6)) {
    case 0: world_cut(w, a, b, true); break;
    case 1: both_ways(w, a, b, true); break;
    case 2: /* hears nobody */
        for (uint16_t i = 0; i < n; i++) world_cut(w, i, a, true);
        break;
    case 3: /* is heard by nobody */
        for (uint16_t i = 0; i < n; i++) world_cut(w, a, i, true);
        break;
    case 4: { /* two camps */
        const uint64_t camp = world_random(w);
        for (uint16_t i = 0; i < n; i++) {
            for (uint16_t j = 0; j < n; j++) {
                if ((camp >> i & 1) != (camp >> j & 1)) world_cut(w, i, j, true);
            }
        }
        break;
    }
    default: all_links(w, false); break;
    }
}
/* Partial partitions: one hub that reaches everybody, a chain, a leader that only the hub hears. */
static void make_topology(struct world *w) {
    const uint16_t n = w->node_count, hub = (uint16_t)world_below(w, n);
    switch (world_below(w, 3)) {
    case 0:
        all_links(w, true);
        for (uint16_t i = 0; i < n; i++) both_ways(w, hub, i, false);
        break;
    case 1:
        all_links(w, true);
        for (uint16_t i = 0; i + 1 < n; i++) both_ways(w, i, i + 1u, false);
        break;
    default:
        all_links(w, false);
        for (uint16_t i = 0; i < n; i++) {
            if (i != hub) both_ways(w, (uint16_t)((hub + 1) % n), i, true);
        }
        break;
    }
}
/* What it says no longer arrives; perhaps one other still hears it. */
static void silence(struct world *w, uint16_t leader, bool deaf) {
    const uint16_t heard_by = (uint16_t)world_below(w, w->node_count);
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (i != heard_by || world_chance(w, 300000)) world_cut(w, leader, i, true);
        if (deaf) world_cut(w, i, leader, true);
    }
    world_trace(w, "n%u led and is cut off", leader);
}
static void coup(struct world *w) {
    const int leader = w->object->leader(w);
    const uint16_t first = w->coup.first;
    if (w->calm) return;
    if (w->coup.stage == 1 && leader >= 0 && leader != first) {
        w->coup.stage = 2;
        schedule(w, w->now_us + world_between(w, 0, world_chance(w, 500000) ? 5000 : 200000), EVENT_COUP, 0, NULL);
        return;
    }
    if (w->coup.stage == 3) {
        w->coup.stage = 1;
        silence(w, first, false);
    }
    if (w->coup.stage == 2) {
        world_trace(w, "the second leader dies, n%u is back", first);
        all_links(w, false);
        noise(w, true);
        if (leader >= 0) {
            world_crash(w, (uint16_t)leader);
            schedule(w, w->now_us + world_between(w, 1, 3000) * 1000, EVENT_RESTART, (uint16_t)leader, NULL);
        }
        w->coup.stage = 0;
        return;
    }
    schedule(w, w->now_us + 5000, EVENT_COUP, 0, NULL);
}
static void begin_coup(struct world *w) {
    const int leader = w->object->leader(w);
    if (w->coup.stage != 0 || leader < 0 || w->node_count < 3) return;
    all_links(w, false);
    w->coup.first = (uint16_t)leader;
    if (world_chance(w, 400000)) { /* first the answers to it get slow: they go on to arrive after the cut */
        w->coup.stage = 3;
        const uint32_t delay_us = (uint32_t)world_between(w, 100000, 380000);
        for (uint16_t i = 0; i < w->node_count; i++) {
            w->links[i][leader].delay_min_us = delay_us;
            w->links[i][leader].delay_max_us = delay_us + 5000;
            w->links[i][leader].loss_ppm = 0;
        }
        schedule(w, w->now_us + world_between(w, 300, 1000) * 1000, EVENT_COUP, 0, NULL);
        return;
    }
    w->coup.stage = 1;
    silence(w, (uint16_t)leader, world_chance(w, 500000));
    schedule(w, w->now_us + 5000, EVENT_COUP, 0, NULL);
}

/* Could the others still be a majority if this one never came back?  A cluster needs everybody until it has formed. */
static bool may_spare(struct world *w, uint16_t node) {
    uint32_t lost = 1;
    if (w->object->may_wipe != NULL) return !w->nodes[node].gone && w->object->may_wipe(w, node);
    for (uint16_t i = 0; i < w->node_count; i++) {
        const bool out = w->nodes[i].gone || w->nodes[i].wiped;
        if (!out && w->object->wipes && w->nodes[i].disk.record.cluster_id == 0) return false;
        lost += out;
    }
    return !w->nodes[node].gone && !w->nodes[node].wiped && lost <= (w->node_count - 1u) / 2u;
}
/* A flipped bit on its disk: it crashes, notices at the next start, and refuses to vote (D4). */
static void damage(struct world *w, uint16_t node) {
    world_trace(w, "n%u's disk is damaged: it stays away", node);
    world_crash(w, node);
    w->nodes[node].gone = true;
    w->swarm.damage = false;
}

/* The leader and a minority on one side, a majority on the other; each side has clients, and goes on as long as it can.
 */
static void split(struct world *w, int leader) {
    const uint16_t n = w->node_count;
    bool ours[SIM_NODES_MAX] = {false};
    if (w->calm || w->coup.stage != 0 || leader < 0 || n < 3) return;
    ours[leader] = true;
    const uint64_t most = (n - 1u) / 2u - 1;
    for (uint64_t more = world_chance(w, 700000) ? most : world_between(w, 0, most); more > 0;) {
        const uint64_t one = world_below(w, n);
        more -= !ours[one];
        ours[one] = true;
    }
    all_links(w, false);
    for (uint16_t i = 0; i < n; i++) {
        for (uint16_t j = 0; j < n; j++) world_cut(w, i, j, ours[i] != ours[j]);
    }
    world_trace(w, "n%d leads and is cut off with a minority", leader);
    schedule(w, w->now_us + world_between(w, 300, 3000) * 1000, EVENT_MEND, 0, NULL);
}

/* A switch that fails once fails again. */
static void mend(struct world *w) {
    if (w->calm || w->coup.stage != 0) return;
    all_links(w, false);
    if (w->swarm.splits && world_chance(w, 700000))
        schedule(w, w->now_us + world_between(w, 300, 1500) * 1000, EVENT_SPLIT, 0, NULL);
}
/* One node sees nothing for a time; when it is back, the leader that could tell it what happened is not there. */
static void absence(struct world *w, int leader) {
    const uint16_t n = w->node_count, one = (uint16_t)world_below(w, n);
    if (w->coup.stage != 0 || leader < 0 || leader == one || n < 3) return;
    all_links(w, false);
    for (uint16_t i = 0; i < n; i++) both_ways(w, i, one, true);
    world_trace(w, "n%u is away", one);
    schedule(w, w->now_us + world_between(w, 300, 3000) * 1000, EVENT_RETURN, one, NULL);
}
static void absent_returns(struct world *w) {
    const int leader = w->object->leader(w);
    if (w->calm || w->coup.stage != 0) return;
    all_links(w, false);
    world_trace(w, "who was away is back, n%d is not there", leader);
    for (uint16_t i = 0; i < w->node_count && leader >= 0; i++) both_ways(w, i, (uint16_t)leader, true);
    schedule(w, w->now_us + world_between(w, 300, 2000) * 1000, EVENT_MEND, 0, NULL);
}

static void fault(struct world *w) {
    if (w->calm) return;
    schedule(w, w->now_us + world_between(w, 1, 2 * w->swarm.gap_ms) * 1000, EVENT_FAULT, 0, NULL);
    const uint16_t node = (uint16_t)world_below(w, w->node_count);
    struct sim_node *n = &w->nodes[node];
    const int led = w->object->leader(w);
    switch (world_below(w, 17)) {
    case 11:
        if (w->swarm.kills && led >= 0) {
            world_trace(w, "the leader is killed");
            world_crash(w, (uint16_t)led);
            schedule(w, w->now_us + world_between(w, 1, 1000) * 1000, EVENT_RESTART, (uint16_t)led, NULL);
        }
        break;
    case 12:
    case 13:
        if (w->swarm.points && n->up) n->crash_after = (uint32_t)world_between(w, 1, world_chance(w, 500000) ? 6 : 60);
        break;
    case 14:
        if (w->swarm.clogs) {
            const bool to_leader = led >= 0 && world_chance(w, 300000);
            world_clog(w, node, to_leader ? (uint16_t)led : (uint16_t)world_below(w, w->node_count),
                       world_between(w, 1, 1500));
        }
        break;
    case 15:
        if (w->swarm.disks && n->up) n->disk.fails = true;
        if (w->swarm.damage && may_spare(w, node)) damage(w, node);
        break;
    case 16:
        if (w->wild) { /* the machine's clock steps */
            n->offset_us += world_between(w, 1, 5000) * 1000;
            world_trace(w, "n%u's clock steps", node);
            turn_soon(w, node);
        }
        break;
    case 9:
    case 10:
        if (w->swarm.coups) begin_coup(w);
        break;
    case 0:
    case 1:
        if (w->swarm.crashes && n->up) {
            world_crash(w, node);
            if (w->swarm.wipes > 0 && n->disk.record.cluster_id != 0 && may_spare(w, node)) {
                wipe(w, node);
                w->swarm.wipes--;
            }
            schedule(w, w->now_us + world_between(w, 1, 2000) * 1000, EVENT_RESTART, node, NULL);
        }
        break;
    case 2:
        if (w->swarm.crashes && world_chance(w, 150000)) { /* power loss */
            for (uint16_t i = 0; i < w->node_count; i++) {
                world_crash(w, i);
                schedule(w, w->now_us + world_between(w, 1, 500) * 1000, EVENT_RESTART, i, NULL);
            }
        } else if (w->swarm.crashes && n->up) { /* gone and back at once */
            world_crash(w, node);
            world_restart(w, node);
        }
        break;
    case 3:
        if (w->swarm.pauses && n->up) {
            world_pause(w, node, world_between(w, 1, world_chance(w, 300000) ? 3000 : 500));
        }
        break;
    case 4:
        if (w->swarm.disks) {
            static const uint64_t factors[] = {1, 1, 10, 100, 400, 4000};
            n->disk.slow_factor = factors[world_below(w, 6)];
            world_trace(w, "n%u disk x%llu", node, (unsigned long long)n->disk.slow_factor);
        }
        break;
    case 5:
        noise(w, true);
        world_trace(w, "other noise");
        break;
    case 6:
        if (w->swarm.topologies) {
            make_topology(w);
            world_trace(w, "topology");
        }
        break;
    default:
        if (w->swarm.splits) {
            split(w, led);
        } else if (w->swarm.absences) {
            absence(w, led);
        } else if (w->swarm.cuts && w->node_count > 1) {
            cut_something(w);
            world_trace(w, "cuts");
        }
        break;
    }
}
void world_heal(struct world *w) {
    w->calm = true;
    if (w->load_us < 15000) w->load_us = 15000; /* what is tried in peace needs no crowd */
    world_trace(w, "faults end");
    all_links(w, false);
    noise(w, false);
    const bool some = world_chance(w, 300000); /* not everybody comes back */
    for (uint16_t k = 0, i = (uint16_t)world_below(w, w->node_count); k < w->node_count;
         k++, i = (uint16_t)((i + 1) % w->node_count)) {
        if (some && may_spare(w, i) && world_chance(w, 700000)) {
            world_trace(w, "n%u stays away", i);
            world_crash(w, i);
            w->nodes[i].gone = w->nodes[i].away = true;
        }
        w->nodes[i].disk.slow_factor = 1;
        w->nodes[i].disk.fails = false;
        w->nodes[i].crash_after = 0;
        w->nodes[i].paused_until_us = 0;
        if (w->nodes[i].gone) continue;
        world_restart(w, i);
        w->nodes[i].turn_due = false; /* one that was to wait for the end of a stop */
        turn_soon(w, i);
    }
}

void world_recall(struct world *w) {
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (!w->nodes[i].away) continue;
        w->nodes[i].gone = w->nodes[i].away = false;
        schedule(w, w->now_us + 1000, EVENT_RESTART, i, NULL);
    }
}

/* ------------------------------------------------------------------ the run */

void world_init(struct world *w, const struct sim_object *object, uint64_t seed, uint16_t node_count, bool trace) {
    memset(w, 0, sizeof *w);
    w->object = object;
    w->seed = seed;
    w->trace = trace;
    random_seed(w, seed);
    static const uint16_t counts[] = {3, 3, 3, 3, 3, 3, 5, 5, 5, 5, 1, 2, 4, 6, 7};
    uint16_t drawn = counts[world_below(w, 15)];
    if (drawn > SIM_NODES_MAX) drawn = SIM_NODES_MAX;
    w->node_count = w->founders = node_count != 0 ? node_count : drawn;
    w->config_delay = PAXOS_CONFIG_DELAY;
    if (object->change != NULL && node_count == 0) { /* some are there from the beginning, some come later */
        const uint16_t all = (uint16_t)(w->founders + world_between(w, 0, 3));
        w->node_count = all < SIM_NODES_MAX ? all : SIM_NODES_MAX;
    }
    w->now_us = world_between(w, 0, 999);
    static const uint64_t loads[] = {500, 2000, 5000, 15000, 40000, 100000};
    w->load_us = loads[world_below(w, 6)];
    w->swarm.loss = world_chance(w, 500000);
    w->swarm.duplicate = world_chance(w, 500000);
    w->swarm.reorder = world_chance(w, 400000);
    w->swarm.cuts = world_chance(w, 600000);
    w->swarm.crashes = world_chance(w, 700000);
    w->swarm.points = world_chance(w, 400000);
    w->swarm.kills = world_chance(w, 300000);
    w->swarm.clogs = world_chance(w, 300000);
    w->swarm.damage = world_chance(w, 100000);
    w->wild = world_chance(w, 40000);
    w->swarm.pauses = world_chance(w, 500000);
    w->swarm.disks = world_chance(w, 500000);
    w->swarm.topologies = world_chance(w, 300000) && w->node_count >= 3;
    w->swarm.coups = world_chance(w, 400000);
    w->swarm.wipes = world_chance(w, 150000) && w->node_count >= 3 ? object->wipes : 0;
    w->swarm.members = object->change != NULL && world_chance(w, 700000);
    if (!w->swarm.members) w->node_count = w->founders;
    w->swarm.checkpoints = object->change != NULL && world_chance(w, 500000);
    if (w->swarm.coups && world_chance(w, 600000)) w->swarm.cuts = w->swarm.topologies = w->swarm.crashes = false;
    w->swarm.splits = !w->swarm.coups && w->node_count >= 3 && world_chance(w, 500000);
    if (w->swarm.splits && world_chance(w, 600000))
        w->swarm.crashes = w->swarm.points = w->swarm.kills = w->swarm.disks = false;
    w->swarm.absences = !w->swarm.coups && w->node_count >= 3 && world_chance(w, w->swarm.members ? 400000 : 50000);
    static const uint32_t gaps[] = {20, 100, 300, 800};
    w->swarm.gap_ms = gaps[world_below(w, 4)];
    noise(w, true);
    check_begin(w);
    for (uint16_t i = 0; i < w->node_count; i++) {
        struct sim_node *n = &w->nodes[i];
        n->rate_ppm = (int64_t)world_between(w, 0, SIM_DRIFT_PPM) - SIM_DRIFT_PPM / 2;
        n->offset_us = world_between(w, 0, 1000000000);
        n->disk.slow_factor = 1;
        n->disk.store_id = world_random(w) | 1;
        n->alloc = (struct alloc){.resize = counted_resize, .context = n};
    }
    check_founded(w);
    object->begin(w);
    for (uint16_t i = 0; i < w->node_count; i++)
        schedule(w, w->now_us + world_below(w, 300000), EVENT_RESTART, i, NULL);
    schedule(w, w->now_us + w->load_us, EVENT_LOAD, 0, NULL);
    if (object->connections) schedule(w, w->now_us, EVENT_LINKS, 0, NULL);
    schedule(w, w->now_us + w->swarm.gap_ms * 1000, EVENT_FAULT, 0, NULL);
}

void world_release(struct world *w) {
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (w->nodes[i].up) w->object->stop(w, i);
        clear_memory(w, i);
        struct disk *d = &w->nodes[i].disk;
        disk_forget(d, d->queue_count);
        for (size_t s = 0; s < d->entry_capacity; s++) free(d->entries[s].data);
        free(d->entries);
        free(d->queue);
        file_forget(&d->checkpoint);
        file_forget(&d->writing);
        free(w->nodes[i].inbox);
        free(w->nodes[i].held);
    }
    while (w->heap_count > 0) packet_drop(next_event(w).packet);
    free(w->heap);
    w->object->release(w);
    check_release(w);
}

static void dispatch(struct world *w, const struct event *e) {
    struct sim_node *n = &w->nodes[e->node];
    const bool same = n->up && n->boot == e->boot;
    switch (e->kind) {
    case EVENT_DELIVER:
        if (n->up && (!w->object->connections || e->epoch == w->links[e->packet->from][e->node].epoch)) {
            give(w, e->node, (struct input){.kind = INPUT_PACKET, .packet = e->packet});
        } else {
            packet_drop(e->packet);
        }
        break;
    case EVENT_DISK:
        if (same) disk_done(w, e->node);
        break;
    case EVENT_WAKE:
        if (same && n->wake_us == e->at_us) give(w, e->node, (struct input){.kind = INPUT_TICK});
        break;
    case EVENT_TURN:
        if (!same || !n->turn_due) break;
        if (w->now_us < n->paused_until_us)
            schedule(w, n->paused_until_us, EVENT_TURN, e->node, NULL);
        else
            turn(w, e->node);
        break;
    case EVENT_FAULT: fault(w); break;
    case EVENT_LOAD:
        w->object->load(w);
        schedule(w, w->now_us + world_between(w, 1, 2 * w->load_us), EVENT_LOAD, 0, NULL);
        break;
    case EVENT_RESTART: world_restart(w, e->node); break;
    case EVENT_COUP: coup(w); break;
    case EVENT_RETURN: absent_returns(w); break;
    case EVENT_MEND: mend(w); break;
    case EVENT_SPLIT: split(w, w->object->leader(w)); break;
    case EVENT_LINKS: look_at_links(w); break;
    case EVENT_FILE:
        if (same) file_done(w, e->node);
        break;
    }
}

void world_run_until(struct world *w, uint64_t until_us) {
    while (!w->failed && w->heap_count > 0 && w->heap[0].at_us <= until_us) {
        const struct event e = next_event(w);
        w->now_us = e.at_us;
        w->events++;
        w->hash = (w->hash ^ e.at_us ^ (uint64_t)e.kind << 40 ^ (uint64_t)e.node << 48) * UINT64_C(0x100000001b3);
        dispatch(w, &e);
    }
    if (!w->failed && w->now_us < until_us) w->now_us = until_us;
}
