/* identity.h - who this store is, and when a cluster exists (P11).
 *
 * A node's name in votes is the random id of its store, not its place in the config.  A cluster forms exactly once,
 * when ALL configured nodes have shown empty stores; after that an empty or foreign store never votes.  (Chandra,
 * Griesemer, Redstone, "Paxos Made Live", 2007, section 5.1: a replica with a lost disk must not vote.)
 *
 * Place in the flow: the first frames on every peer link; paxos hears nothing from a peer before identity says
 * `admitted`.
 *
 * What always holds:
 *   I1  "Shown empty" = the peer answered a question that names our store id and boot (a late answer to an earlier life
 *       counts for nothing).
 *   I2  Only node 0 writes the founding record {cluster id, all store ids}, only when every configured node (itself
 *       included) is empty, and it is durable before it is told to anybody.
 *   I3  A store without a record adopts one in which its own store id sits in its own seat.  From then on only a newer
 *       membership of the same cluster (a higher members.slot) replaces what it knows.
 *   I4  A peer is admitted only if its store id is the one that the newest membership we know names in its seat, and
 * its cluster id equals ours. I5  A store that the newest membership it met does not name in its seat is an outcast: it
 * never votes, and says so, until a newer one names it (its operator added it again).  A store that holds a log but no
 * record is damaged: being named does not help it. I6  How many nodes are configured matters only until a cluster has
 * formed. */
#pragma once
#include "common/alloc.h"
#include "lockd/core/membership.h"
#include "lockd/core/paxos_msg.h"

struct identity_record {
    uint64_t cluster_id;       /* 0: not formed, and no members */
    struct membership members; /* the newest known */
};

/* One frame of this protocol: question (is_answer false) or answer. */
struct identity_msg {
    bool is_answer;
    uint16_t from, to, node_count;    /* node_count as configured at the sender */
    uint64_t store_id, boot_id;       /* the sender's */
    uint64_t asked_store, asked_boot; /* answer: echo of the question's store_id and boot_id */
    struct identity_record record;    /* what the sender has adopted; cluster_id 0 if nothing */
    bool stray; /* the sender's store holds log entries or promises but no record: it is not empty */
};

enum identity_state { IDENTITY_JOINING, IDENTITY_FORMED, IDENTITY_OUTCAST };

enum identity_problem {
    IDENTITY_OK,
    IDENTITY_NODE_TWICE,     /* two live stores claim one node index */
    IDENTITY_OTHER_CLUSTER,  /* the peer belongs to another cluster */
    IDENTITY_OTHER_COUNT,    /* the peer is configured with another number of nodes */
    IDENTITY_PEER_OUTCAST,   /* the peer's store is not the one recorded for its index */
    IDENTITY_WE_ARE_OUTCAST, /* our store is not in the record the peer showed: never was, or was removed */
    IDENTITY_WRONG_NODE,     /* the peer takes us for another node, or says it is none of ours: an address is wrong
                                somewhere */
    IDENTITY_PEER_STRAY      /* the peer's store has a log or promises but no record: damaged, it counts for nothing */
};

struct identity_config {
    uint16_t node, node_count;     /* own seat; nodes configured, for the forming */
    uint64_t store_id, boot_id;    /* random; store_id durable before the first message */
    uint64_t fresh_cluster_id;     /* random: used if we are the one to form */
    struct identity_record record; /* from the store */
    bool stray;
};

struct identity { /* plain memory, no allocation */
    struct identity_config config;
    enum identity_state state;
    bool saving;                   /* record chosen, not durable yet, and until then we belong to nobody */
    struct identity_record record; /* an outcast's: the newest that it was in, if any */
    uint64_t
        shown_empty[PAXOS_NODES_MAX]; /* store id of the peer that showed an empty store to this boot; 0 = not yet */
    bool admitted[PAXOS_NODES_MAX];
    uint64_t outcast_cluster; /* the cluster that does not know us */
};

void identity_init(struct identity *id, const struct identity_config *config);
/* The question to send to `to` when a link comes up, and every 500 ms to each peer that is not admitted. */
void identity_question(const struct identity *id, uint16_t to, struct identity_msg *ret_msg);
/* Feed a frame.  While a record is on its way to the disk questions get no answer: "empty" would no longer be true and
 * the record is not ours to tell yet (I2).  *ret_reply true: send *ret_answer back on the same link.  *ret_save true:
 * make *record durable and call identity_saved.  The result says what is wrong with that peer, for one log line per
 * change. */
enum identity_problem identity_step(struct identity *id, const struct identity_msg *msg, bool *ret_reply,
                                    struct identity_msg *ret_answer, bool *ret_save);
/* The record, or a newer membership in it, is durable.  True: by that we became FORMED, or came back from being an
 * outcast; peers are admitted by their next answers. */
bool identity_saved(struct identity *id);
/* Our own log says so: the newest membership that was applied.  True: it is news; make *record durable and call
 * identity_saved.  If it does not name our store in our seat, we are an outcast from now on. */
bool identity_members(struct identity *id, const struct membership *members);
/* The generation of our store by the record; 0 without one. */
uint16_t identity_generation(const struct identity *id);
/* A one-node cluster has nobody to ask: true once, when the record should be saved right after init. */
bool identity_forms_alone(struct identity *id);
/* The link to that peer is gone: neither admitted nor shown empty until it shows itself again. */
void identity_link_lost(struct identity *id, uint16_t peer);
bool identity_admitted(const struct identity *id, uint16_t peer);
