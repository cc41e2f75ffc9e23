/* world.h - the simulated machine room: time, chance, network, disks, clocks and faults; nothing about what runs in it.
 *
 *   seed -> world -> events in order of true time -> object under test (struct sim_object) -> checkers
 *
 * One thread, one heap of events, one source of chance: a seed repeats a run exactly.  True time is in microseconds
 * and nobody in the world can read it; a node reads its own clock, which runs fast or slow within a bound and goes on
 * while the node is down or stopped (it is CLOCK_BOOTTIME). */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "common/alloc.h"
#include "lockd/core/identity.h"
#include "lockd/core/paxos.h"
#include "tests/sim/members.h"

enum { SIM_NODES_MAX = 7, SIM_DRIFT_PPM = 10000 };

struct world;

/* ---- what travels: one block of memory, shared by its copies ---- */
struct packet {
    uint32_t refs;
    uint16_t from;
    uint64_t boot; /* the object's own name for the sender's life */
    size_t bytes;
    _Alignas(16) char data[];
};
struct packet *packet_new(struct world *w, uint16_t from, size_t bytes);
void packet_drop(struct packet *p);

/* ---- disks ---- */
struct disk_entry {
    struct ballot ballot; /* round 0: nothing there */
    char *data;
    size_t bytes;
};
struct disk_write { /* one transaction */
    uint64_t batch;
    bool save_promise, save_record;
    struct ballot promised;
    uint32_t lease_ms;
    paxos_slot chosen;
    struct identity_record record;
    struct paxos_entry *entries; /* values malloc'ed */
    uint32_t count;
};
struct file {        /* a checkpoint */
    paxos_slot slot; /* 0: none */
    char *data;
    size_t bytes;
};
struct disk {
    struct file checkpoint, writing; /* the durable one; the one whose rename is on its way */
    bool writing_installs;
    paxos_slot cut; /* the log begins after it */
    uint64_t store_id;
    bool used; /* anything but the store id was written */
    struct ballot promised;
    uint32_t lease_ms_max;
    paxos_slot chosen;
    struct identity_record record;
    struct { /* of plain Paxos: the state as of `slot`, durable at once; 0: none */
        paxos_slot slot;
        struct members members;
    } snapshot;
    struct disk_entry *entries; /* by slot */
    size_t entry_capacity;
    paxos_slot top;
    struct disk_write *queue; /* [0, committing) is being committed, the rest waits */
    uint32_t queue_count, queue_capacity, committing;
    uint64_t durable;     /* batch, of this boot */
    uint64_t slow_factor; /* 1: normal */
    bool fails;           /* the next commit does (EIO) */
};

/* ---- one node: a process on a machine ---- */
enum input_kind { INPUT_TICK, INPUT_PACKET, INPUT_DURABLE, INPUT_CLIENT, INPUT_LINK, INPUT_FILE };
struct input {
    enum input_kind kind;
    struct packet *packet;
    uint64_t number; /* INPUT_DURABLE: batch; INPUT_CLIENT: the object's own; INPUT_LINK: 2 * peer + up;
                        INPUT_FILE: 2 * slot + installs; of what could not be written: 0 */
};
struct held { /* waits for a batch */
    uint64_t batch;
    uint16_t to;
    struct packet *packet;
};
struct sim_node {
    bool up;
    bool away;            /* stays away after the faults, though nothing is wrong with it */
    bool wiped;           /* lost its disk after the cluster had formed, and was not taken in again */
    bool gone;            /* never comes back: its disk is damaged, or it is not of the majority that is healed */
    uint32_t crash_after; /* it dies inside its turn, when it has saved and sent so often; 0: it does not */
    bool dying;           /* it has: nothing more of this turn gets out */
    uint64_t boot;
    uint64_t paused_until_us; /* SIGSTOP */
    int64_t rate_ppm;
    uint64_t offset_us;
    struct input *inbox;
    uint32_t inbox_count, inbox_capacity;
    bool turn_due;
    uint64_t wake_us; /* the next TICK; older timers are void */
    struct held *held;
    uint32_t held_count, held_capacity;
    uint64_t last_batch; /* handed to the disk */
    struct disk disk;
    void *object;
    long memory_blocks; /* what the object has allocated */
    struct alloc alloc;
};

/* ---- the object under test ---- */
struct sim_object {
    const char *name;
    /* Messages travel on connections: in order, none missing, until one breaks; then both ends' INPUT_LINK tells of the
     * end and of the next one.  False: a network that loses, repeats and reorders single messages. */
    bool connections;
    uint32_t wipes;                 /* how many nodes may lose their disks: they must stand aside from then on (P11) */
    void (*begin)(struct world *w); /* before the first start; may set w->user */
    void (*start)(struct world *w, uint16_t node); /* from its disk */
    void (*stop)(struct world *w, uint16_t node);  /* its memory is gone */
    void (*input)(struct world *w, uint16_t node, const struct input *in);
    uint64_t (*turn)(struct world *w, uint16_t node); /* end of a turn; returns the local ms of the next tick */
    void (*load)(struct world *w);                    /* called every w->load_us: clients do something */
    int (*leader)(struct world *w);                   /* the node that leads and serves, -1 none or several */
    void (*heal)(struct world *w);                    /* faults end: what must now be finished in bounded time? */
    bool (*settled)(struct world *w);                 /* ... is it? */
    void (*end)(struct world *w);                     /* last checks; faults are off, everything settled */
    void (*release)(struct world *w);                 /* w->user */
    /* The disk of this node may be lost now.  NULL: whenever the node belongs to a cluster. */
    bool (*may_wipe)(struct world *w, uint16_t node);
    void (*stretch)(struct world *w); /* something of its own in calm times; may be NULL */
    /* for the checkers */
    /* What the chosen value of that slot makes of the newest membership; false: it leaves it as it is.  Asked in order,
     * once for each slot whose value matters.  NULL: nothing ever changes it. */
    bool (*change)(struct world *w, paxos_slot slot, struct slice value, struct membership *m);
    bool (*matters)(struct slice value);
    /* That node knows an address of the other one.  NULL: everybody knows all. */
    bool (*dials)(const struct world *w, uint16_t from, uint16_t to);
    const struct paxos *(*paxos)(const struct world *w, uint16_t node); /* NULL: none yet */
    bool (*message)(const struct world *w, const struct packet *p,
                    struct paxos_msg *ret_message); /* false: no Paxos in it */
};

struct link {
    uint32_t delay_min_us, delay_max_us;
    uint32_t loss_ppm, duplicate_ppm, reorder_ppm, slow_ppm; /* slow: a long tail */
    bool cut;
    uint64_t last_us; /* FIFO */
    uint64_t clog_until_us;
    bool up, broken; /* connections: the sender thinks it has one; something was lost on it, so nothing follows */
    uint32_t epoch;
};

struct world {
    const struct sim_object *object;
    void *user;
    struct checker *checker;
    uint64_t seed, random[4];
    uint64_t now_us;
    uint16_t node_count;
    uint16_t founders; /* the first ones; the others join later */
    uint32_t config_delay;
    struct sim_node nodes[SIM_NODES_MAX];
    struct link links[SIM_NODES_MAX][SIM_NODES_MAX];
    struct event *heap;
    size_t heap_count, heap_capacity;
    uint64_t event_seq, events, hash;
    uint64_t load_us;
    bool calm; /* no faults from here on */
    bool wild; /* clocks step: what hangs on their rates is not promised, what hangs on the log is */
    struct {   /* which classes of fault this seed has */
        bool loss, duplicate, reorder, cuts, crashes, points, kills, pauses, disks, damage, clogs, topologies, coups,
            splits, absences, members, checkpoints;
        uint32_t wipes;  /* left */
        uint32_t gap_ms; /* mean time between faults */
    } swarm;
    struct { /* a leader is cut off with work in hand, another takes over and dies just when the first comes back */
        int stage; /* 0: none, 3: the answers are slow, 1: cut off, 2: the second leader is about to die */
        uint16_t first;
    } coup;
    bool trace;
    bool failed;
    char failure[512];
};

/* chance */
uint64_t world_random(struct world *w);
uint64_t world_below(struct world *w, uint64_t limit); /* 0 .. limit - 1 */
uint64_t world_between(struct world *w, uint64_t low, uint64_t high);
bool world_chance(struct world *w, uint32_t ppm);

/* A node's own clock. */
uint64_t world_local_ms(const struct world *w, uint16_t node);

/* From an object: */
void world_send(struct world *w, uint16_t from, uint16_t to, struct packet *p); /* takes over the reference */
/* The same, once everything up to `batch` is durable. */
void world_send_after(struct world *w, uint16_t from, uint16_t to, struct packet *p, uint64_t batch);
void world_save(struct world *w, uint16_t node, uint64_t batch, const struct paxos_output *out,
                const struct identity_record *record);
/* A checkpoint of that slot (copied), renamed into its place some time later: INPUT_FILE.  One that is being written is
 * given up.  `installs`: it came from a peer. */
void world_write_file(struct world *w, uint16_t node, paxos_slot slot, struct slice bytes, bool installs);
/* The log up to `slot` is deleted. */
void world_cut_log(struct world *w, uint16_t node, paxos_slot slot);
const struct disk_entry *disk_at(const struct disk *d, paxos_slot slot); /* NULL: nothing there */
/* Something for the node's next turn. */
void world_client_input(struct world *w, uint16_t node, uint64_t number);
/* A file system that remembers: what a starting paxos reads.  `entries` holds room for the accepted ones. */
void disk_read(const struct disk *d, struct paxos_saved *ret_saved, struct paxos_entry *entries, uint32_t entries_max);

void world_fail(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
void world_trace(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The entries up to there are not needed any more. */
void disk_cut(struct disk *d, paxos_slot slot);

/* From the driver: */
void world_init(struct world *w, const struct sim_object *object, uint64_t seed, uint16_t node_count, bool trace);
void world_release(struct world *w);
void world_run_until(struct world *w, uint64_t until_us);
/* SIGSTOP for so long. */
void world_pause(struct world *w, uint16_t node, uint64_t ms);
void world_crash(struct world *w, uint16_t node);
void world_restart(struct world *w, uint16_t node);
/* It crashes, and starts again a little later. */
void world_fall(struct world *w, uint16_t node);
/* Its disk is given up for an empty one; it starts again a little later. */
void world_empty(struct world *w, uint16_t node);
void world_cut(struct world *w, uint16_t from, uint16_t to, bool cut);
/* What that one says arrives only after so long, and then all of it. */
void world_clog(struct world *w, uint16_t from, uint16_t to, uint64_t ms);
/* Everything up, connected and quick. */
void world_heal(struct world *w);
/* Who stayed away comes back: a change of members that was under way has made another majority necessary. */
void world_recall(struct world *w);
