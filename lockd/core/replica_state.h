/* replica_state.h - the memory of one node: what replica's files share and nobody else sees.
 *
 *   replica.c       life, frames and transactions, identity, commands in, the origin's half, the turn
 *   replica_lead.c  the leader's half: the order of writes, scripts, deadlines; begins and ends with serving
 *   replica_ask.c   the leader's half: reads, renewals, ROUTE.NEXT, giving leadership away
 *   replica_members.c  who belongs to the cluster: told to paxos, identity and links; learners become voters
 *   replica_saving.c   checkpoints, how far the log is cut, snapshots to and from peers
 *
 * Serving = LEADING and our own first entry is applied.  The leader's half exists only while serving and is dropped
 * whole by lead_stop: origins then learn from the next first entry what did not run. */
#pragma once
#include "lockd/core/command.h"
#include "lockd/core/keeper.h"
#include "lockd/core/replica.h"
#include "lockd/core/router.h"

#define uthash_fatal(text)         must_fail(__FILE__, __LINE__, (text))
#define uthash_malloc(bytes)       alloc_get(r->config.alloc, bytes)
#define uthash_free(memory, bytes) alloc_put(r->config.alloc, memory)
#include <uthash.h>
#include <utlist.h>

enum { REPLICA_KEY_MARKS = 1 << 16 /* power of two */ };

/* A frame that waits for the disk. */
struct held_frame {
    uint16_t peer;
    uint64_t batch;
    struct held_frame *prev, *next;
    size_t bytes;
    char data[];
};

/* A transaction on its way to the disk. */
struct transaction {
    uint64_t batch;
    uint64_t paxos_batch; /* 0: none */
    bool identity;
    struct transaction *prev, *next;
};

/* What a connection said about itself, if anything. */
struct connection {
    uint64_t id;
    UT_hash_handle hh;
    bool readonly;
    size_t name_bytes;
    char *name; /* of name_bytes */
};

/* A read or a leader's command at the leader, from any origin. */
enum ask_park { ASK_FRESH, ASK_ROUND, ASK_STAMP, ASK_EXPIRING, ASK_TRANSFER, ASK_NEXT };
struct ask {
    uint64_t handle;
    struct origin origin; /* seq: in the origin's count of reads */
    const struct command *command;
    uint64_t arrival_ms;
    enum ask_park park;
    uint64_t round, stamp_ms;
    uint64_t until_ms; /* ASK_TRANSFER: then it has failed */
    struct ask *prev, *next;
    UT_hash_handle hh; /* held NEXTs by handle */
    uint32_t argc;
    struct slice argv[];
};

struct script_job {
    struct origin origin;
    const struct command *command;
    bool proposed;
    uint32_t tries;
    uint64_t wait_for; /* writes queued before it came, or before it was void */
    uint64_t write;    /* its number in the queue, once proposed */
    struct script_job *prev, *next;
    uint32_t argc;
    struct slice argv[];
};

enum { SAVING_ASKS_MAX = 64 };
/* Checkpoints and snapshots (replica_saving.c). */
struct saving {
    struct snapshot *snapshot;
    paxos_slot slot; /* of our newest durable checkpoint; 0: none */
    bool damaged;    /* it cannot be read */
    uint64_t bytes;
    uint64_t log_bytes; /* applied since that state, about */
    paxos_slot running; /* being written; 0: nothing is */
    uint64_t running_log_bytes, begun_ms;
    uint64_t retry_ms;              /* not before */
    uint64_t asks[SAVING_ASKS_MAX]; /* calls of SNAPSHOT.SAVE; the first running_asks wait for the one being written */
    uint32_t ask_count, running_asks;
    paxos_slot cut, cut_wanted;
    struct keyspace *loaded; /* a snapshot, being made durable; NULL: none */
    paxos_slot loaded_slot;
    uint64_t loaded_bytes;
    uint64_t made, failed, installed; /* counts, of this life */
};

struct queued_batch {
    struct buf value;
    struct queued_batch *next;
};

struct replica {
    struct replica_config config;
    struct replica_sink sink;
    struct identity identity;
    struct paxos *paxos; /* NULL until the cluster has formed */
    struct keyspace *ks;
    struct router *router;
    struct buf frame; /* scratch */
    struct buf reply; /* scratch */
    struct connection *connections;
    char refuse_text[320];
    bool told_outcast;    /* our clients are */
    bool members_changed; /* the links do not know yet */
    uint64_t promote_ms;  /* not before */
    uint64_t turn_ms;     /* of the turn we are in */

    /* disk */
    uint64_t batch, durable; /* numbers of transactions */
    struct transaction *transactions;
    struct held_frame *held;
    size_t held_bytes;

    /* peers */
    bool link_up[PAXOS_NODES_MAX];
    uint64_t admitted_boot[PAXOS_NODES_MAX];
    uint64_t heard_ms[PAXOS_NODES_MAX];
    uint64_t nonsense[PAXOS_NODES_MAX];    /* frames of that peer with entries that are no batches */
    uint64_t admitted_ms[PAXOS_NODES_MAX]; /* when admitted_boot was first seen */
    enum identity_problem problem[PAXOS_NODES_MAX];
    uint64_t question_ms;
    uint64_t asked_ms[PAXOS_NODES_MAX]; /* of the question it has not answered; 0: it has */

    struct paxos_saved saved; /* until paxos begins; `accepted` is ours */
    struct saving saving;
    uint64_t disk_free; /* of our own; UINT64_MAX: nobody has looked */

    /* the origin's half */
    struct ballot target; /* whom the router's calls go to; round 0: nobody */
    uint64_t resend_ms;
    bool read_refused;

    /* the leader's half */
    bool first_out, serving;
    struct ballot ballot; /* we proposed our first entry under */
    uint64_t base_stamp_ms, base_ms, serving_since_ms;
    uint64_t stamp_out_ms; /* highest stamp proposed */
    struct {
        uint64_t boot, seq;
    } taken[PAXOS_NODES_MAX];
    struct queued_batch *queue, *queue_tail, *spare;
    size_t queue_bytes;
    bool own_refused;       /* a write of our own router found the queue full */
    uint64_t queued_writes; /* commands put in the queue, proposed, applied, under our ballot */
    uint64_t proposed_writes, applied_writes;
    bool draining; /* nothing is proposed until all that is proposed is applied: a script waits for it */
    uint64_t key_marks[REPLICA_KEY_MARKS]; /* highest write number that touches such a key */
    uint64_t all_mark;
    struct script_job *scripts;
    struct ask *asks;       /* all but the held NEXTs */
    struct ask *held_nexts; /* by handle */
    uint64_t next_handle;
    uint64_t need_stamp_ms; /* an entry with this stamp must be chosen */
    uint64_t round_now;     /* asked for and not gone out yet; 0: none */
    struct keeper *keeper;
    uint64_t origin_look_ms;
};

/* ---- replica.c ---- */
void replica_note(const struct replica *r, char level, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* On the link we dialled, now; dropped if there is none. */
void replica_save_record(struct replica *r);
void replica_send_frame(struct replica *r, uint16_t peer, const struct frame *frame);

/* ---- replica_lead.c ---- */
/* We are LEADING: our first entry goes before everything else (P9). */
void lead_first(struct replica *r, uint64_t now_ms);
/* It was applied: serve. */
void lead_start(struct replica *r, uint64_t now_ms);
/* Deposed, if we led at all. */
void lead_end(struct replica *r);
/* Deposed: everything is dropped. */
void lead_stop(struct replica *r);
/* The same without a word, for the end of the process. */
void lead_drop(struct replica *r);
/* Still LEADING, under the ballot of our first entry? */
bool lead_holds(const struct replica *r);
/* Take a write of some origin into the order of the log.  Each (origin, boot) is taken in sequence, once (N). */
void lead_take(struct replica *r, struct origin origin, uint64_t after, uint32_t argc, const struct slice *argv);
/* Facts of what was applied, while serving. */
void lead_fact(struct replica *r, uint64_t now_ms, const struct ks_fact *fact);
/* A batch of ours with `count` commands was applied. */
void lead_applied(struct replica *r, uint32_t count);
void lead_turn(struct replica *r, uint64_t now_ms);
/* Less than disk-reserve is free on the best majority (D3). */
bool lead_disk_is_short(const struct replica *r);
uint64_t lead_wake_at(const struct replica *r, uint64_t now_ms);
uint64_t lead_cluster_now(const struct replica *r, uint64_t now_ms);
/* Internal commands of the leader: nobody waits for them. */
void lead_queue_internal(struct replica *r, uint32_t argc, const struct slice *argv);

/* ---- replica_saving.c ---- */
void saving_begin(struct replica *r, const struct replica_saved *saved);
void saving_end(struct replica *r);
/* An entry was applied. */
void saving_applied(struct replica *r, size_t value_bytes);
/* That peer wants slots that we have cut. */
void saving_wanted(struct replica *r, uint64_t now_ms, uint16_t peer);
void saving_frame(struct replica *r, uint64_t now_ms, uint16_t peer, const struct snapshot_msg *msg);
void saving_link_up(struct replica *r, uint64_t now_ms, uint16_t peer);
void saving_link_lost(struct replica *r, uint16_t peer);
/* SNAPSHOT.SAVE: answered when a checkpoint of the state as it is now, or a later one, is durable. */
void saving_ask(struct replica *r, uint64_t seq);
void saving_turn(struct replica *r, uint64_t now_ms);
uint64_t saving_wake_at(const struct replica *r);

/* ---- replica_members.c ---- */
/* The membership that governs the slot after our applied state. */
void members_begin(const struct replica *r, struct membership *ret_governing);
/* Paxos has begun with it. */
void members_begun(struct replica *r, uint64_t now_ms);
/* An entry changed it. */
void members_applied(struct replica *r, uint64_t now_ms);
/* A snapshot took the place of the state: Paxos goes over to it too. */
void members_installed(struct replica *r, uint64_t now_ms);
/* What has come into effect is told; if we serve, learners that are ready are to vote. */
void members_turn(struct replica *r, uint64_t now_ms);

/* ---- replica_ask.c ---- */
/* A read or a leader's command of some origin: answered now or parked. */
void ask_new(struct replica *r, uint64_t now_ms, struct origin origin, uint32_t argc, const struct slice *argv);
/* What was parked for a round or a stamp that has come. */
void asks_run(struct replica *r, uint64_t now_ms);
/* Renewals that waited for the outcome of an expiry. */
void asks_run_expiring(struct replica *r, uint64_t now_ms);
void asks_drop(struct replica *r);
/* Answer the NEXT that is held for this lease if there is something to say, or if it is due. */
void ask_next_answer(struct replica *r, uint64_t lease, bool due);
/* The held NEXT of this lease is due. */
void ask_next_due(struct replica *r, uint64_t now_ms, uint64_t lease);
