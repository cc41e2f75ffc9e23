/* paxos.h - Multi-Paxos for one lockd node: the rules and nothing else.
 *
 * Place in the flow:  command bytes -> proposal -> [paxos] -> numbered log -> keyspace
 *
 * Pure.  No clock, socket, disk, log line or global; memory only from config.alloc.  The time comes in with every
 * input and chance comes from config.seed, so equal inputs give equal outputs anywhere.  Lamport, "The Part-Time
 * Parliament" (1998) and "Paxos Made Simple" (2001); leases and pre-vote after Chubby (2006) and Ongaro (2014);
 * configurations that govern from a later slot on after Lamport, Malkhi, Zhou, "Reconfiguring a State Machine" (2010).
 *
 * What always holds (asserted in paxos.c, checked again from outside by tests/sim):
 *   P1  The promised ballot never goes down, restarts included.
 *   P2  A slot never has two chosen values.
 *   P3  A message that reports a promise or an acceptance leaves after that fact, and every earlier one, is durable.
 *       So does a prepare (it reports that this ballot is ours).  Accept, heartbeat and chosen leave at once: the
 *       leader sends and writes at the same time and counts its own acceptance only when it is durable.  An acceptor
 *       that sees two values for one (slot, ballot) halts.
 *   P4  Slots are applied in order, without gaps, once each.
 *   P5  Every queue has a limit in paxos_config; when it is full we refuse, we never grow.
 *   P7  Pre-vote: no ballot is raised before a majority says it has not heard a leader lately; a leader that does not
 *       reach a majority for lease_ms + election_spread_ms steps down; so does one that hears of a higher promise, and
 *       one that gets nothing chosen for 10 x lease_ms.
 *   P8  Leader lease: an acceptor that acknowledged a leader at its time t promises no ballot of another node before
 *       t + lease_ms (the leader's number, in the message).  A higher ballot of the same node may be promised: by
 *       asking for it that node has given up the lower one.  The longest it ever granted is durable before it is
 *       granted, and after a restart the acceptor waits that long before it promises anything.  The leader counts
 *       from the *send* time of the acknowledged round, less drift_ppm.
 *   P9' (the caller does the rest of P9) a node is LEADING only when every slot that any promise reported is chosen
 *       and was handed out in `applies`; only then does it take proposals.
 *   P10 A configuration applied in slot s governs the slots from s + config_delay on, and those alone.  What a slot
 *       chooses is judged by the configuration that governs it; a slot is proposed only when that configuration is
 *       known from the log itself and a majority of it has promised the ballot.  Votes and the leader lease need a
 *       majority in every configuration that governs a slot above `chosen`.  Learners and removed members are never
 *       counted, and a vote is its store's (seat and generation), not its seat's.  Why a candidate that knows only an
 *       old configuration can do no harm: paxos.c, at the head.
 *   P13 A ballot that was handed over serves nothing any more: its leader stops before TRANSFER and RELEASE leave, and
 * a release frees acceptors from a lease of that very ballot only.
 *
 * The caller's duties: give a PAXOS_TICK no later than wake_at_ms; after every step take until there is nothing; apply
 * what a take handed out, and tell of each configuration in it by paxos_members, before the next step or take; make
 * each batch durable in order (promise, lease_ms, chosen and saves in ONE transaction) and then say PAXOS_DURABLE; hold
 * sends_after until then.  Messages may be lost, repeated and reordered on their way. */
#pragma once
#include "common/alloc.h"
#include "common/must.h"
#include "lockd/core/membership.h"
#include "lockd/core/paxos_msg.h"

enum { PAXOS_CONFIG_DELAY = 64 };

struct paxos_config {
    const struct alloc *alloc;
    uint16_t node;               /* own seat */
    uint16_t generation;         /* of our store in it, by the newest membership that names it */
    struct membership members;   /* governs slot saved->chosen + 1; a later one already applied: paxos_members */
    uint32_t config_delay;       /* slots between a configuration and the first it governs; more than inflight_max,
                                  * the same in every node for ever; 0: PAXOS_CONFIG_DELAY */
    uint32_t inflight_max;       /* slots proposed but not yet chosen; an acceptor takes 2 x this above its chosen */
    uint32_t value_bytes_max;    /* one proposal */
    uint32_t heartbeat_ms;       /* leader to followers; default 50 */
    uint32_t lease_ms;           /* default 300 */
    uint32_t election_spread_ms; /* a follower waits lease_ms + 0..spread before it asks for votes; default 100 */
    uint32_t drift_ppm;          /* rate bound between any two clocks; default 500 */
    uint32_t stall_ms;           /* a disk that holds a transaction this long is sick: such a node hands its
                                  * leadership over and does not campaign; 0: never */
    uint64_t seed;               /* spreads election timeouts; differs per node and boot */
    uint64_t start_ms;           /* now */
};

struct paxos_saved { /* read back from disk; zero on first start */
    struct ballot promised;
    uint32_t lease_ms_max; /* the longest lease ever granted */
    paxos_slot chosen;     /* every entry up to here in the store is chosen and was given to the state by the caller */
    paxos_slot cut;        /* the store has no entries up to here any more; 0: it has all */
    const struct paxos_entry *accepted; /* every entry in the store above `chosen`, ascending; copied */
    uint32_t accepted_count;
    bool restarted; /* false only on the very first start of this store */
};

enum paxos_input_kind { PAXOS_TICK, PAXOS_MESSAGE, PAXOS_PROPOSE, PAXOS_DURABLE };
struct paxos_input {
    uint64_t now_ms; /* monotonic, never lower than in the previous call */
    enum paxos_input_kind kind;
    union {
        const struct paxos_msg *message; /* PAXOS_MESSAGE; read during the call */
        struct slice value;              /* PAXOS_PROPOSE; copied if taken */
        uint64_t batch;                  /* PAXOS_DURABLE: this and every earlier paxos_output.batch is on disk */
    };
};
/* Answers, not errors: each is normal, and the caller has something to tell its client. */
enum paxos_verdict { PAXOS_TAKEN, PAXOS_NOT_LEADER, PAXOS_FULL, PAXOS_TOO_LONG, PAXOS_IGNORED };

/* A peer wants chosen entries; the caller reads slots from..to out of its store, as many as fit one frame, and sends
 * them as PAXOS_MSG_CHOSEN.  All of them are durable there, with the values that were chosen.  What is left out is
 * asked for again. */
struct paxos_fetch {
    uint16_t to;
    bool snapshot; /* from_slot is not in the store any more: the peer needs a snapshot of the state instead */
    paxos_slot from_slot, to_slot;
};

/* Work for the caller.  sends_now may leave at once; sends_after only when this batch and every
 * earlier one is durable (P3). */
struct paxos_output {
    uint64_t batch;    /* counts up by one per transaction; 0: nothing to write, sends_after waits for earlier ones */
    bool save_promise; /* store `promised` in the same transaction as `saves` */
    struct ballot promised;
    uint32_t save_lease_ms; /* non-zero: store as lease_ms_max */
    paxos_slot save_chosen; /* non-zero: store as chosen.  A hint for restart: rides on other writes, causes none */
    const struct paxos_entry *saves; /* store each under its slot, replacing what is there */
    uint32_t save_count;
    const struct paxos_msg *sends_now; /* no durable fact of ours */
    uint32_t send_now_count;
    const struct paxos_msg *sends_after; /* prepare, promise, accepted; answers that report what is not durable yet */
    uint32_t send_after_count;
    const struct paxos_entry *applies; /* chosen, ascending, no gaps (P4) */
    uint32_t apply_count;
    const struct paxos_fetch *fetches;
    uint32_t fetch_count;
    uint64_t wake_at_ms; /* give a PAXOS_TICK no later than this */
};

enum paxos_role { PAXOS_FOLLOWER, PAXOS_PREVOTING, PAXOS_PREPARING, PAXOS_SETTLING, PAXOS_LEADING, PAXOS_HALTED };

struct paxos;

/* A follower.  A config out of range is a programmer error.  Freed with paxos_free. */
struct paxos *paxos_new(const struct paxos_config *config, const struct paxos_saved *saved);
void paxos_free(struct paxos *p);

/* Feed one input; slices inside are read during the call only.  TICK and DURABLE always answer PAXOS_TAKEN.  A stale,
 * unknown or nonsensical message answers PAXOS_IGNORED and changes nothing: no message can reach a must(). */
NODISCARD enum paxos_verdict paxos_step(struct paxos *p, const struct paxos_input *in);

/* Collect the work caused since the last take.  Pointers in `ret_out` live until the next step or take.  False:
 * nothing to do, only wake_at_ms is set. */
NODISCARD bool paxos_take(struct paxos *p, struct paxos_output *ret_out);

/* ---- membership (P10) ---- */

/* An entry that changes the membership was applied, and was not void; m->slot is its slot.  It governs from m->slot +
 * config_delay on.  The change before it is in effect (m->slot lies at or above the first slot that one governs): who
 * admits changes to the log sees to that.  Also right after paxos_new, for what was applied at saved->chosen or below
 * and does not govern yet. */
void paxos_members(struct paxos *p, uint64_t now_ms, const struct membership *m);
/* Once that slot is chosen, nobody whom the membership made in `slot` leaves out is needed any more: a majority of it
 * has on its disks that it governs.  Whoever accepted this slot had all but the last 2 x inflight_max before it chosen,
 * and stored so with it.  A leader goes as far with blank slots if nobody has work. */
paxos_slot paxos_members_done(const struct paxos *p, paxos_slot slot);
/* The newest membership applied, in effect or pending. */
const struct membership *paxos_members_newest(const struct paxos *p);
/* Our store was taken into the cluster again: it votes as another member from now on.  Never lower than before; the
 * same: nothing happens. */
void paxos_generation(struct paxos *p, uint64_t now_ms, uint16_t generation);
/* LEADING, and that member has all but the last inflight_max slots and was heard within lease_ms. */
bool paxos_caught_up(const struct paxos *p, uint16_t seat);

/* ---- leadership by arrangement (P13) ---- */

/* Give leadership to `seat`; PAXOS_NODES_MAX: to the best one.  PAXOS_TAKEN: from now on nothing is proposed
 * (paxos_room is 0); once the target has everything we stop for good under this ballot and it asks for promises at
 * once.  If it is not so far after 2 x lease_ms we go on leading.  Asked again meanwhile: the later wish stands.
 * PAXOS_NOT_LEADER: not LEADING.  PAXOS_IGNORED: that seat holds no voter besides us, or nobody was heard lately. */
NODISCARD enum paxos_verdict paxos_transfer(struct paxos *p, uint64_t now_ms, uint16_t seat);

/* ---- the log's beginning ---- */

/* The state as of `slot` came as a snapshot and is durable, with `chosen` at least there after a restart: everything up
 * to it is chosen and will not be handed out any more.  `governing` governs slot + 1; `pending`, if not NULL, was
 * applied at or before `slot` and does not govern yet.  A candidate or leader follows.  A slot we have passed already:
 * nothing happens.  Not between a take and the applying of what it handed out. */
void paxos_install(struct paxos *p, uint64_t now_ms, paxos_slot slot, const struct membership *governing,
                   const struct membership *pending);
/* The store has dropped, or is about to drop, the entries up to `slot`, which is chosen: who asks for them is answered
 * by a fetch with .snapshot set. */
void paxos_cut(struct paxos *p, paxos_slot slot);

/* ---- room on disks ---- */

/* What is left on ours, told with every acknowledgement. */
void paxos_disk_free(struct paxos *p, uint64_t bytes);
/* LEADING: what the best majority of every configuration in force has at least; UINT64_MAX while nobody has looked. */
uint64_t paxos_free_majority(const struct paxos *p);

/* ---- questions ---- */

enum paxos_role paxos_role(const struct paxos *p);
/* The ballot we lead or try to lead under, while role >= PREPARING; else the highest promised. */
struct ballot paxos_ballot(const struct paxos *p);
/* The ballot of the leader heard last, and whether it was heard within lease_ms: whom to forward to, never a ground for
 * a read.  node == own while LEADING. */
bool paxos_leader(const struct paxos *p, uint64_t now_ms, struct ballot *ret_ballot);
/* All slots up to here are chosen and were handed out in `applies`. */
paxos_slot paxos_chosen(const struct paxos *p);
/* Free places for proposals right now; 0 unless LEADING, and while leadership is being handed over. */
uint32_t paxos_room(const struct paxos *p);
/* LEADING, and the leader lease covers now_ms: a read of the applied state is linearizable. */
bool paxos_lease_good(const struct paxos *p, uint64_t now_ms);
/* Start a fresh round of acknowledgements (a heartbeat to everybody now) and name it; for reads while the lease is in
 * doubt, and rounds may be shared by callers of the same moment.  0 unless LEADING. */
uint64_t paxos_confirm(struct paxos *p, uint64_t now_ms);
/* The newest round that a majority has acknowledged under the ballot we lead. */
uint64_t paxos_confirmed(const struct paxos *p);
/* Why it halted (PAXOS_HALTED), else NULL.  Static text. */
const char *paxos_halt_reason(const struct paxos *p);
