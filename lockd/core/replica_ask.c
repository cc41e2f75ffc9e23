/* replica_ask.c - the leader's half of a node: reads, renewals and ROUTE.NEXT, from any origin.
 *
 * What cannot be answered at once is parked: for a fresh round of acknowledgements (P8), for an entry with a later
 * stamp (T3), for the outcome of an expiry (L3), for a hand-over of leadership, or, a NEXT, until there is something to
 * say. */
#include "lockd/core/replica_state.h"
#include "lockd/core/bug.h"
#include "lockd/core/resp.h"

enum { TRANSFER_GRACE_MS = 50 }; /* paxos gives a hand-over 2 x lease_ms */

static void ask_free(struct replica *r, struct ask *ask) {
    if (ask->park == ASK_NEXT)
        HASH_DEL(r->held_nexts, ask);
    else
        DL_DELETE(r->asks, ask);
    alloc_put(r->config.alloc, ask);
}

static void ask_answer(struct replica *r, struct ask *ask, struct slice reply, bool leased) {
    const struct origin origin = ask->origin;
    ask_free(r, ask);
    if (origin.node == r->config.node) {
        router_read_reply(r->router, origin.seq, reply, leased);
        return;
    }
    const struct frame frame = {.kind = FRAME_ANSWER,
                                .answer = {.kind = ANSWER_REPLY,
                                           .of = FORWARD_READ,
                                           .ballot = r->ballot,
                                           .boot = origin.boot,
                                           .seq = origin.seq,
                                           .reply = reply}};
    replica_send_frame(r, origin.node, &frame);
}

static void ask_error(struct replica *r, struct ask *ask, const char *text) {
    struct buf b = {.alloc = r->config.alloc};
    resp_error(&b, "%s", text);
    ask_answer(r, ask, buf_slice(&b), true);
    buf_release(&b);
}

static void ask_park_round(struct replica *r, uint64_t now_ms, struct ask *ask) {
    if (r->round_now == 0) r->round_now = paxos_confirm(r->paxos, now_ms);
    ask->park = ASK_ROUND;
    ask->round = r->round_now;
}

static void ask_keepalive(struct replica *r, uint64_t now_ms, struct ask *ask) {
    struct buf b = {.alloc = r->config.alloc};
    bool parked = false;
    resp_array(&b, ask->argc - 1);
    for (uint32_t i = 1; i < ask->argc; i++) {
        uint64_t id, ttl_ms = 0;
        if (!slice_to_u64(ask->argv[i], &id)) {
            buf_release(&b);
            ask_error(r, ask, "ERR id is not an integer or out of range");
            return;
        }
        switch (keeper_renew(r->keeper, now_ms, id, &ttl_ms)) {
        case KEEPER_KEPT: resp_integer(&b, (int64_t)ttl_ms); break;
        case KEEPER_GONE: resp_integer(&b, -1); break;
        case KEEPER_PARKED: parked = true; break; /* and the others are asked for all the same, to park once */
        }
    }
    if (parked)
        ask->park = ASK_EXPIRING; /* the outcome of the expiry answers it, or that the log is cleared (L3, L6) */
    else
        ask_answer(r, ask, buf_slice(&b), true);
    buf_release(&b);
}

static void ask_lease_info(struct replica *r, uint64_t now_ms, struct ask *ask) {
    uint64_t id;
    if (!slice_to_u64(ask->argv[1], &id)) {
        ask_error(r, ask, "ERR id is not an integer or out of range");
        return;
    }
    struct buf b = {.alloc = r->config.alloc};
    keyspace_lease_info(r->ks, id, keeper_remaining(r->keeper, now_ms, id), &b);
    ask_answer(r, ask, buf_slice(&b), true);
    buf_release(&b);
}

/* The keeper knows no handle but of those. */
static struct ask *held_next(struct replica *r, uint64_t handle) {
    struct ask *ask;
    HASH_FIND(hh, r->held_nexts, &handle, sizeof handle, ask);
    must(ask != NULL);
    return ask;
}

void ask_next_answer(struct replica *r, uint64_t lease, bool due) {
    const uint64_t handle = keeper_next_held(r->keeper, lease);
    if (handle == 0) return;
    struct ask *ask = held_next(r, handle);
    uint64_t ttl_ms, acknowledged = 0;
    if (!keyspace_lease(r->ks, lease, &ttl_ms)) {
        keeper_next_forget(r->keeper, lease);
        ask_error(r, ask, "NOLEASE that lease is gone");
        return;
    }
    must(slice_to_u64(ask->argv[3], &acknowledged));
    struct buf moves = {.alloc = r->config.alloc};
    uint64_t serial = acknowledged;
    const uint32_t count = BUG(63) ? 0 : route_revocations(keyspace_route(r->ks), lease, &moves, &serial);
    if (serial > acknowledged || due) {
        struct buf b = {.alloc = r->config.alloc};
        resp_array(&b, 2 + 3 * count);
        resp_integer(&b, (int64_t)ttl_ms);
        resp_integer(&b, (int64_t)serial);
        buf_append_slice(&b, buf_slice(&moves));
        keeper_next_answered(r->keeper, lease, ask->arrival_ms);
        ask_answer(r, ask, buf_slice(&b), true);
        buf_release(&b);
    }
    buf_release(&moves);
}

static void ask_next(struct replica *r, uint64_t now_ms, struct ask *ask) {
    uint64_t lease, serial, ttl_ms;
    if (!slice_is_word(ask->argv[1], "LEASE")) {
        ask_error(r, ask, "ERR syntax error: expected LEASE");
        return;
    }
    if (!slice_to_u64(ask->argv[2], &lease) || !slice_to_u64(ask->argv[3], &serial)) {
        ask_error(r, ask, "ERR id and serial are integers");
        return;
    }
    switch (keeper_renew(r->keeper, now_ms, lease, &ttl_ms)) {
    case KEEPER_GONE: ask_error(r, ask, "NOLEASE that lease is gone"); return;
    case KEEPER_PARKED: ask->park = ASK_EXPIRING; return;
    case KEEPER_KEPT: break;
    }
    const struct route *route = keyspace_route(r->ks);
    if (!route_joined(route, lease) && keeper_join_once(r->keeper, lease)) {
        const struct slice argv[] = {slice_str("%ROUTE_JOIN"), ask->argv[2]};
        lead_queue_internal(r, 2, argv);
    }
    if (serial > keyspace_revision(r->ks)) {
        ask_error(r, ask, "ERR serial is higher than any this cluster gave out");
        return;
    }
    if (route_ack_pending(route, lease, serial) && keeper_ack_once(r->keeper, lease, serial)) {
        const struct slice argv[] = {slice_str("%ROUTE_ACK"), ask->argv[2], ask->argv[3]};
        lead_queue_internal(r, 3, argv);
    }
    DL_DELETE(r->asks, ask);
    ask->park = ASK_NEXT;
    HASH_ADD(hh, r->held_nexts, handle, sizeof ask->handle, ask);
    uint64_t replaced_handle;
    keeper_next_hold(r->keeper, now_ms, lease, ask->handle, &replaced_handle);
    if (replaced_handle != 0) {
        struct ask *replaced = held_next(r, replaced_handle);
        if (origin_equal(replaced->origin, ask->origin))
            ask_free(r, replaced); /* the same call, asked again after a lost link */
        else
            ask_error(r, replaced, "ERR a newer ROUTE.NEXT of the same lease took its place");
    }
    ask_next_answer(r, lease, !keeper_next_known(r->keeper, lease));
}

/* NODE.TRANSFER number round member, as the origin completed it: away from whoever led under that ballot or a lower
 * one. Asked again after the hand-over, as any call is that the old leader left unanswered, it finds its wish
 * fulfilled. */
static void ask_transfer(struct replica *r, uint64_t now_ms, struct ask *ask) {
    uint64_t number, round, member;
    if (ask->argc != 4 || !slice_to_u64(ask->argv[1], &number) || !slice_to_u64(ask->argv[2], &round) ||
        !slice_to_u64(ask->argv[3], &member) || member > UINT16_MAX) {
        ask_error(r, ask, "ERR syntax error: NODE.TRANSFER [number]");
        return;
    }
    const struct ballot from = {.round = round, .node = (uint16_t)member};
    if (number == r->config.node + 1u || (number == 0 && ballot_compare(r->ballot, from) > 0)) {
        struct buf b = {.alloc = r->config.alloc};
        resp_integer(&b, r->config.node + 1);
        ask_answer(r, ask, buf_slice(&b), true);
        buf_release(&b);
        return;
    }
    if (number > PAXOS_NODES_MAX ||
        paxos_transfer(r->paxos, now_ms, number == 0 ? PAXOS_NODES_MAX : (uint16_t)(number - 1)) != PAXOS_TAKEN) {
        ask_error(r, ask, "ERR there is no such voter to lead, or none was heard lately");
        return;
    }
    ask->park = ASK_TRANSFER;
    ask->until_ms = now_ms + 2 * r->config.lease_ms + TRANSFER_GRACE_MS;
}

/* Answer it, or park it. */
static void ask_run(struct replica *r, uint64_t now_ms, struct ask *ask) {
    const bool leased = paxos_lease_good(r->paxos, now_ms) || BUG(22);
    const bool confirmed = (ask->park == ASK_ROUND && paxos_confirmed(r->paxos) >= ask->round) || BUG(23);
    const bool read = ask->command->class == COMMAND_READ;
    if (!leased && !(confirmed && read) && !(BUG(76) && !read)) {
        /* Only a good lease may acknowledge a renewal (L2); a read is also good after a fresh round (P8). */
        ask_park_round(r, now_ms, ask);
        return;
    }
    if (!read) {
        switch (ask->command->id) {
        case CMD_LEASE_KEEPALIVE: ask_keepalive(r, now_ms, ask); break;
        case CMD_LEASE_INFO: ask_lease_info(r, now_ms, ask); break;
        case CMD_ROUTE_NEXT: ask_next(r, now_ms, ask); break;
        case CMD_NODE_TRANSFER: ask_transfer(r, now_ms, ask); break;
        default: must(false); /* ask_new admits no other */
        }
        return;
    }
    struct buf b = {.alloc = r->config.alloc};
    uint64_t stamp_ms = 0;
    if (keyspace_read(r->ks, lead_cluster_now(r, now_ms), ask->argc, ask->argv, &b, &stamp_ms) == KS_READ_DONE) {
        ask_answer(r, ask, buf_slice(&b), leased);
    } else {
        ask->park = ASK_STAMP;
        ask->stamp_ms = stamp_ms;
        if (stamp_ms > r->need_stamp_ms) r->need_stamp_ms = stamp_ms;
    }
    buf_release(&b);
}

void ask_new(struct replica *r, uint64_t now_ms, struct origin origin, uint32_t argc, const struct slice *argv) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < argc; i++) bytes += argv[i].bytes;
    struct ask *ask = alloc_get(r->config.alloc, sizeof *ask + argc * sizeof argv[0] + bytes);
    memset(ask, 0, sizeof *ask);
    ask->handle = ++r->next_handle;
    ask->origin = origin;
    ask->arrival_ms = now_ms;
    ask->argc = argc;
    char *text = (char *)&ask->argv[argc];
    for (uint32_t i = 0; i < argc; i++) {
        ask->argv[i] = slice_of(text, argv[i].bytes);
        if (argv[i].bytes > 0) memcpy(text, argv[i].data, argv[i].bytes);
        text += argv[i].bytes;
    }
    DL_APPEND(r->asks, ask);
    buf_clear(&r->reply);
    ask->command = command_check(argc, argv, (uint32_t)keyspace_settings(r->ks)->key_bytes_max, &r->reply);
    const bool known =
        ask->command != NULL && (ask->command->class == COMMAND_READ || ask->command->class == COMMAND_LEADER);
    if (!known) {
        ask_error(r, ask, "ERR the leader does not know this command");
        return;
    }
    ask_run(r, now_ms, ask);
}

void asks_run(struct replica *r, uint64_t now_ms) {
    struct ask *ask, *next;
    DL_FOREACH_SAFE(r->asks, ask, next) {
        if (ask->park == ASK_ROUND && (paxos_confirmed(r->paxos) >= ask->round || paxos_lease_good(r->paxos, now_ms)))
            ask_run(r, now_ms, ask);
        else if (ask->park == ASK_STAMP && keyspace_stamp(r->ks) >= ask->stamp_ms)
            ask_run(r, now_ms, ask);
        else if (ask->park == ASK_TRANSFER && now_ms >= ask->until_ms)
            ask_error(r, ask, "ERR that node did not catch up in time; the leader leads on");
    }
}

void asks_run_expiring(struct replica *r, uint64_t now_ms) {
    struct ask *ask, *next;
    DL_FOREACH_SAFE(r->asks, ask, next) {
        if (ask->park == ASK_EXPIRING) ask_run(r, now_ms, ask);
    }
}

void asks_drop(struct replica *r) {
    struct ask *ask, *next;
    DL_FOREACH_SAFE(r->asks, ask, next) ask_free(r, ask);
    HASH_ITER(hh, r->held_nexts, ask, next) ask_free(r, ask);
}

void ask_next_due(struct replica *r, uint64_t now_ms, uint64_t lease) {
    if (paxos_lease_good(r->paxos, now_ms)) {
        ask_next_answer(r, lease, true);
        return;
    }
    const uint64_t handle = keeper_next_held(r->keeper, lease);
    must(handle != 0);                      /* it is due because it is held */
    struct ask *ask = held_next(r, handle); /* covers nobody now: it waits for a round like any other */
    keeper_next_forget(r->keeper, lease);
    HASH_DEL(r->held_nexts, ask);
    DL_APPEND(r->asks, ask);
    ask_park_round(r, now_ms, ask);
}
