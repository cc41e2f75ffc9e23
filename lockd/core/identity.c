/* identity.c - see identity.h.  Everything here is comparing ids; the care is in which message may prove what:
 *
 *   a record proves itself, whenever it was sent: a membership with one slot is written once and never changes, and
 *   the one with the highest slot is the newest;
 *   "empty" and "this store is at the other end of our link" are true only for a while, so only an answer to a question
 *   of this very boot proves them (I1, I4). */
#include "lockd/core/identity.h"
#include "lockd/core/bug.h"
#include <string.h>
#include "common/must.h"

static bool record_exists(const struct identity_record *r) {
    return r->cluster_id != 0;
}
static bool ids_are_distinct(const uint64_t *ids, uint16_t count) {
    for (uint16_t i = 0; i < count; i++) {
        if (ids[i] == 0) return false;
        for (uint16_t j = 0; j < i; j++) {
            if (ids[i] == ids[j]) return false;
        }
    }
    return true;
}

static void adopt(struct identity *id, const struct identity_record *record, bool *ret_save) {
    id->record = *record;
    id->saving = true;
    *ret_save = true;
}

/* Node 0 forms once every node, itself included, is empty (I2). */
static void form_if_all_empty(struct identity *id, bool *ret_save) {
    if (id->config.node != 0 || id->config.stray || id->saving || id->state != IDENTITY_JOINING) return;
    uint64_t store_ids[PAXOS_NODES_MAX];
    for (uint16_t i = 0; i < id->config.node_count; i++)
        store_ids[i] = i == 0 ? id->config.store_id : id->shown_empty[i];
    if (!ids_are_distinct(store_ids, id->config.node_count)) return;
    struct identity_record r = {.cluster_id = id->config.fresh_cluster_id};
    membership_founding(&r.members, id->config.node_count, store_ids);
    adopt(id, &r, ret_save);
}

static bool names_us(const struct identity *id, const struct membership *m) {
    return m->store_ids[id->config.node] == id->config.store_id || BUG(28);
}
static void cast_out(struct identity *id, uint64_t cluster_id) {
    id->state = IDENTITY_OUTCAST;
    id->outcast_cluster = cluster_id;
    memset(id->admitted, 0, sizeof id->admitted);
}

void identity_init(struct identity *id, const struct identity_config *config) {
    must(config->node_count >= 1 && config->node_count <= PAXOS_NODES_MAX && config->node < config->node_count);
    must(config->store_id != 0 && config->boot_id != 0 && config->fresh_cluster_id != 0);
    *id = (struct identity){.config = *config, .state = IDENTITY_JOINING};
    if (!record_exists(&config->record)) return;
    id->record = config->record;
    id->state = IDENTITY_FORMED;
    /* Our own disk says that we are not in our place: we were removed, or the record is not ours. */
    if (!names_us(id, &config->record.members)) cast_out(id, config->record.cluster_id);
}

static struct identity_msg introduce(const struct identity *id, uint16_t to) {
    struct identity_msg m = {.from = id->config.node,
                             .to = to,
                             .node_count = id->config.node_count,
                             .store_id = id->config.store_id,
                             .boot_id = id->config.boot_id,
                             .stray = id->config.stray && id->state != IDENTITY_FORMED};
    if (id->state == IDENTITY_FORMED) m.record = id->record;
    return m;
}

void identity_question(const struct identity *id, uint16_t to, struct identity_msg *ret_msg) {
    *ret_msg = introduce(id, to);
}

/* A newer membership of our cluster. */
static void replace(struct identity *id, const struct membership *newer, bool *ret_save) {
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if (id->record.members.store_ids[i] != newer->store_ids[i]) id->admitted[i] = false;
    }
    id->record.members = *newer;
    *ret_save = true;
    if (!names_us(id, newer)) cast_out(id, id->record.cluster_id);
}

/* We belong to the same cluster, and the peer shows what it knows of it. */
static enum identity_problem meet_fellow(struct identity *id, const struct identity_msg *m, bool answers_us,
                                         bool *ret_save) {
    const struct membership *theirs = &m->record.members;
    if (theirs->slot == id->record.members.slot && !membership_equal(theirs, &id->record.members))
        return IDENTITY_OTHER_CLUSTER;
    if (theirs->slot > id->record.members.slot) replace(id, theirs, ret_save);
    if (id->state == IDENTITY_OUTCAST) return IDENTITY_WE_ARE_OUTCAST;
    if (id->record.members.store_ids[m->from] != m->store_id) return IDENTITY_PEER_OUTCAST;
    if (answers_us) id->admitted[m->from] = true;
    return IDENTITY_OK;
}

/* The peer belongs to a cluster. */
static enum identity_problem meet_member(struct identity *id, const struct identity_msg *m, bool answers_us,
                                         bool *ret_save) {
    const struct identity_record *theirs = &m->record;
    if (!membership_makes_sense(&theirs->members)) return IDENTITY_OTHER_CLUSTER;
    if (theirs->members.store_ids[m->from] != m->store_id) return IDENTITY_PEER_OUTCAST;
    const bool known = id->saving || record_exists(&id->record);
    if (known && id->record.cluster_id != theirs->cluster_id) return IDENTITY_OTHER_CLUSTER;
    if (id->saving) return IDENTITY_OK; /* what is newer in it is met again when ours is durable */
    if (id->state == IDENTITY_FORMED) return meet_fellow(id, m, answers_us, ret_save);
    /* A stray store is damaged: it may have voted and forgotten, so being named does not help it. */
    const bool old_news = known && theirs->members.slot <= id->record.members.slot;
    if (!names_us(id, &theirs->members) || id->config.stray || old_news) {
        cast_out(id, theirs->cluster_id);
        return IDENTITY_WE_ARE_OUTCAST;
    }
    id->state = IDENTITY_JOINING;
    id->outcast_cluster = 0;
    adopt(id, theirs, ret_save);
    return IDENTITY_OK;
}

/* The peer belongs to no cluster that it has written down. */
static enum identity_problem meet_homeless(struct identity *id, const struct identity_msg *m, bool answers_us,
                                           bool *ret_save) {
    if (id->state == IDENTITY_FORMED || id->saving) {
        if (id->record.members.store_ids[m->from] != m->store_id) return IDENTITY_PEER_OUTCAST;
        return m->stray ? IDENTITY_PEER_STRAY : IDENTITY_OK; /* named, and about to adopt the record */
    }
    if (m->stray) {
        if (answers_us) id->shown_empty[m->from] = 0;
        return IDENTITY_PEER_STRAY;
    }
    if (m->node_count != id->config.node_count) return IDENTITY_OTHER_COUNT;
    if (!answers_us || id->state != IDENTITY_JOINING) return IDENTITY_OK;
    const uint64_t before = id->shown_empty[m->from];
    id->shown_empty[m->from] = m->store_id;
    form_if_all_empty(id, ret_save);
    return before != 0 && before != m->store_id ? IDENTITY_NODE_TWICE : IDENTITY_OK;
}

enum identity_problem identity_step(struct identity *id, const struct identity_msg *msg, bool *ret_reply,
                                    struct identity_msg *ret_answer, bool *ret_save) {
    *ret_reply = *ret_save = false;
    const bool formed = id->saving || id->state == IDENTITY_FORMED || record_exists(&msg->record);
    if (!formed && msg->from >= id->config.node_count)
        return msg->node_count != id->config.node_count ? IDENTITY_OTHER_COUNT : IDENTITY_WRONG_NODE;
    if (msg->from >= PAXOS_NODES_MAX) return IDENTITY_WRONG_NODE;
    if (msg->from == id->config.node || msg->store_id == id->config.store_id) return IDENTITY_NODE_TWICE;
    if (msg->to != id->config.node || msg->store_id == 0) return IDENTITY_WRONG_NODE;

    const bool answers_us =
        msg->is_answer && msg->asked_store == id->config.store_id && msg->asked_boot == id->config.boot_id;
    enum identity_problem problem;
    if (record_exists(&msg->record))
        problem = meet_member(id, msg, answers_us, ret_save);
    else
        problem = meet_homeless(id, msg, answers_us, ret_save);

    /* What answers on our own link is not the member we took it for. */
    if (problem != IDENTITY_OK && answers_us) id->admitted[msg->from] = false;
    if (!msg->is_answer && !id->saving) {
        *ret_answer = introduce(id, msg->from);
        ret_answer->is_answer = true;
        ret_answer->asked_store = msg->store_id;
        ret_answer->asked_boot = msg->boot_id;
        *ret_reply = true;
    }
    return problem;
}

bool identity_saved(struct identity *id) {
    if (!id->saving) return false;
    id->saving = false;
    id->state = IDENTITY_FORMED;
    return true;
}

bool identity_members(struct identity *id, const struct membership *members) {
    bool save = false;
    if (id->state == IDENTITY_FORMED && !id->saving && members->slot > id->record.members.slot)
        replace(id, members, &save);
    return save;
}

uint16_t identity_generation(const struct identity *id) {
    return id->record.members.generation[id->config.node];
}

bool identity_forms_alone(struct identity *id) {
    bool save = false;
    if (id->config.node_count == 1) form_if_all_empty(id, &save);
    return save;
}

void identity_link_lost(struct identity *id, uint16_t peer) {
    must(peer < PAXOS_NODES_MAX);
    id->admitted[peer] = false;
    id->shown_empty[peer] = 0;
}

bool identity_admitted(const struct identity *id, uint16_t peer) {
    return peer < PAXOS_NODES_MAX && id->state == IDENTITY_FORMED && id->admitted[peer];
}
