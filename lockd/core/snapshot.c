/* snapshot.c - see snapshot.h.
 *
 * The receiver:  IDLE -- offer --> PULLING -- last piece --> WHOLE -- drop --> IDLE
 *                         PULLING -- newer offer of the same sender, damage, no progress --> PULLING anew or IDLE */
#include "lockd/core/snapshot.h"
#include <xxhash.h>
#include "common/wire.h"

enum { BUDGET_BYTES_MAX = 2 * SNAPSHOT_DATA_BYTES_MAX }; /* what may be read at once after a quiet time */

enum pull_state { IDLE, PULLING, WHOLE };

struct served {
    bool used;   /* has asked for the newest checkpoint */
    bool parked; /* its question waits for the budget */
    uint64_t first_ms, asked_ms;
    uint64_t offset;
};

struct snapshot {
    struct snapshot_config config;
    struct snapshot_sink sink;

    paxos_slot have_slot;
    uint64_t have_bytes;
    struct served served[PAXOS_NODES_MAX];
    int64_t budget; /* bytes that may be read now; below 0: they were read ahead */
    uint64_t budget_ms;

    enum pull_state state;
    uint16_t peer;
    paxos_slot slot;
    uint64_t total, bytes_max;
    struct buf bytes;
    uint64_t block_at; /* where the first block begins that is not whole yet */
    uint64_t asked_ms, progress_ms;
    uint64_t shun_until_ms[PAXOS_NODES_MAX];
};

struct snapshot *snapshot_new(const struct snapshot_config *config, const struct snapshot_sink *sink) {
    must(config->bytes_per_second >= 1000);
    struct snapshot *s = alloc_get0(config->alloc, sizeof *s);
    s->config = *config;
    s->sink = *sink;
    s->bytes.alloc = config->alloc;
    s->budget = BUDGET_BYTES_MAX;
    return s;
}

void snapshot_free(struct snapshot *s) {
    buf_release(&s->bytes);
    alloc_put(s->config.alloc, s);
}

/* ---- the sender's half ---- */

void snapshot_have(struct snapshot *s, paxos_slot slot, uint64_t bytes) {
    s->have_slot = slot;
    s->have_bytes = bytes;
    memset(s->served, 0, sizeof s->served); /* who asks for the old one is offered this */
}

static bool place_is_free(const struct snapshot *s, uint64_t now_ms, uint16_t peer) {
    uint32_t others = 0;
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++)
        others += i != peer && s->served[i].used && s->served[i].offset < s->have_bytes &&
                  now_ms < s->served[i].asked_ms + SNAPSHOT_PLACE_IDLE_MS;
    return others < SNAPSHOT_SERVED_MAX;
}

void snapshot_wanted(struct snapshot *s, uint64_t now_ms, uint16_t peer) {
    if (s->have_slot == 0 || peer >= PAXOS_NODES_MAX || !place_is_free(s, now_ms, peer)) return;
    const struct snapshot_msg offer = {.kind = SNAPSHOT_OFFER, .slot = s->have_slot, .total = s->have_bytes};
    s->sink.send(s->sink.context, peer, &offer);
}

bool snapshot_holds(const struct snapshot *s, uint64_t now_ms) {
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        const struct served *one = &s->served[i];
        if (one->used && now_ms < one->asked_ms + SNAPSHOT_HOLD_IDLE_MS && now_ms < one->first_ms + SNAPSHOT_HOLD_MS)
            return true;
    }
    return false;
}

static void asked(struct snapshot *s, uint64_t now_ms, uint16_t peer, const struct snapshot_msg *msg) {
    if (msg->slot != s->have_slot || msg->offset >= s->have_bytes) {
        snapshot_wanted(s, now_ms, peer);
        return;
    }
    if (!place_is_free(s, now_ms, peer)) return; /* it asks again */
    struct served *one = &s->served[peer];
    if (!one->used) one->first_ms = now_ms;
    one->used = one->parked = true;
    one->asked_ms = now_ms;
    one->offset = msg->offset;
}

static uint32_t piece_bytes(const struct snapshot *s, uint64_t offset) {
    const uint64_t left = s->have_bytes - offset;
    return left < SNAPSHOT_DATA_BYTES_MAX ? (uint32_t)left : SNAPSHOT_DATA_BYTES_MAX;
}

static void earn(struct snapshot *s, uint64_t now_ms) {
    uint64_t ms = now_ms - s->budget_ms;
    s->budget_ms = now_ms;
    if (ms > 1000) ms = 1000;
    const uint64_t earned = ms * s->config.bytes_per_second / 1000;
    s->budget = earned < BUDGET_BYTES_MAX ? s->budget + (int64_t)earned : BUDGET_BYTES_MAX;
    if (s->budget > BUDGET_BYTES_MAX) s->budget = BUDGET_BYTES_MAX;
}

/* Whoever asked first is served first. */
static void serve(struct snapshot *s, uint64_t now_ms) {
    earn(s, now_ms);
    while (s->budget > 0) {
        uint16_t next = PAXOS_NODES_MAX;
        for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
            if (!s->served[i].parked) continue;
            if (next == PAXOS_NODES_MAX || s->served[i].asked_ms < s->served[next].asked_ms) next = i;
        }
        if (next == PAXOS_NODES_MAX) return;
        struct served *one = &s->served[next];
        const uint64_t offset = one->offset;
        const uint32_t bytes = piece_bytes(s, offset);
        one->parked = false;
        one->offset = offset + bytes;
        s->budget -= bytes;
        s->sink.read(s->sink.context, next, s->have_slot, offset, bytes);
    }
}

/* ---- the receiver's half ---- */

void snapshot_limit(struct snapshot *s, uint64_t bytes_max) {
    s->bytes_max = bytes_max;
}

static void ask(struct snapshot *s, uint64_t now_ms) {
    const struct snapshot_msg msg = {.kind = SNAPSHOT_ASK, .slot = s->slot, .offset = s->bytes.bytes};
    s->asked_ms = now_ms;
    s->sink.send(s->sink.context, s->peer, &msg);
}

static enum snapshot_news begin(struct snapshot *s, uint64_t now_ms, uint16_t peer, const struct snapshot_msg *offer) {
    buf_release(&s->bytes);
    s->state = PULLING;
    s->peer = peer;
    s->slot = offer->slot;
    s->total = offer->total;
    s->block_at = 0;
    s->progress_ms = now_ms;
    ask(s, now_ms);
    return SNAPSHOT_BEGUN;
}

void snapshot_drop(struct snapshot *s, uint64_t now_ms, bool shun) {
    if (s->state != IDLE && shun) s->shun_until_ms[s->peer] = now_ms + SNAPSHOT_SHUN_MS;
    s->state = IDLE;
    buf_release(&s->bytes);
}

static enum snapshot_news damaged(struct snapshot *s, uint64_t now_ms) {
    snapshot_drop(s, now_ms, true);
    return SNAPSHOT_DAMAGED;
}

static enum snapshot_news offered(struct snapshot *s, uint64_t now_ms, uint16_t peer, const struct snapshot_msg *offer,
                                  paxos_slot applied) {
    if (s->state == WHOLE || offer->slot <= applied || now_ms < s->shun_until_ms[peer]) return SNAPSHOT_NO_NEWS;
    if (offer->total <= SNAPSHOT_BLOCK_HEAD_BYTES) return SNAPSHOT_NO_NEWS;
    if (offer->total > s->bytes_max) {
        s->shun_until_ms[peer] = now_ms + SNAPSHOT_SHUN_MS;
        return SNAPSHOT_TOO_LONG;
    }
    if (s->state == IDLE) return begin(s, now_ms, peer, offer);
    const bool same = offer->slot == s->slot && offer->total == s->total;
    if (peer == s->peer) {
        const bool late = offer->slot < s->slot && now_ms < s->progress_ms + SNAPSHOT_SILENT_MS;
        return same || late ? SNAPSHOT_NO_NEWS : begin(s, now_ms, peer, offer);
    }
    if (now_ms < s->progress_ms + SNAPSHOT_SILENT_MS) return SNAPSHOT_NO_NEWS;
    if (!same) return begin(s, now_ms, peer, offer);
    s->peer = peer; /* the very same bytes */
    s->progress_ms = now_ms;
    ask(s, now_ms);
    return SNAPSHOT_NO_NEWS;
}

/* The blocks that are whole now.  False: damaged. */
static bool blocks_hold(struct snapshot *s) {
    for (;;) {
        const uint64_t left = s->bytes.bytes - s->block_at;
        if (left < SNAPSHOT_BLOCK_HEAD_BYTES) return true;
        struct wire w = wire_of(slice_of(s->bytes.data + s->block_at, SNAPSHOT_BLOCK_HEAD_BYTES));
        const uint32_t bytes = wire_u32(&w);
        const uint64_t sum = wire_u64(&w);
        if (bytes == 0 || bytes > SNAPSHOT_BLOCK_BYTES_MAX) return false;
        if (left < SNAPSHOT_BLOCK_HEAD_BYTES + (uint64_t)bytes) return true;
        const char *payload = s->bytes.data + s->block_at + SNAPSHOT_BLOCK_HEAD_BYTES;
        if (XXH3_64bits(payload, bytes) != sum) return false;
        s->block_at += SNAPSHOT_BLOCK_HEAD_BYTES + (uint64_t)bytes;
    }
}

static enum snapshot_news arrived(struct snapshot *s, uint64_t now_ms, uint16_t peer, const struct snapshot_msg *msg) {
    if (s->state != PULLING || peer != s->peer || msg->slot != s->slot) return SNAPSHOT_NO_NEWS;
    if (msg->total != s->total) return damaged(s, now_ms); /* of one slot there is one length */
    if (msg->offset != s->bytes.bytes) return SNAPSHOT_NO_NEWS;
    if (msg->data.bytes == 0 || msg->data.bytes > SNAPSHOT_DATA_BYTES_MAX) return SNAPSHOT_NO_NEWS;
    if (msg->data.bytes > s->total - s->bytes.bytes) return damaged(s, now_ms);
    buf_append_slice(&s->bytes, msg->data);
    s->progress_ms = now_ms;
    if (!blocks_hold(s)) return damaged(s, now_ms);
    if (s->bytes.bytes < s->total) {
        ask(s, now_ms);
        return SNAPSHOT_NO_NEWS;
    }
    if (s->block_at != s->total) return damaged(s, now_ms);
    s->state = WHOLE;
    return SNAPSHOT_ARRIVED;
}

bool snapshot_whole(const struct snapshot *s, paxos_slot *ret_slot, struct slice *ret_bytes, uint16_t *ret_peer) {
    if (s->state != WHOLE) return false;
    *ret_slot = s->slot;
    *ret_bytes = buf_slice(&s->bytes);
    *ret_peer = s->peer;
    return true;
}

bool snapshot_pulling(const struct snapshot *s, paxos_slot *ret_slot, uint64_t *ret_bytes, uint64_t *ret_total) {
    if (s->state == IDLE) return false;
    *ret_slot = s->slot;
    *ret_bytes = s->bytes.bytes;
    *ret_total = s->total;
    return true;
}

/* ---- both ---- */

enum snapshot_news snapshot_message(struct snapshot *s, uint64_t now_ms, uint16_t peer, const struct snapshot_msg *msg,
                                    paxos_slot applied) {
    if (peer >= PAXOS_NODES_MAX || msg->slot == 0) return SNAPSHOT_NO_NEWS;
    switch (msg->kind) {
    case SNAPSHOT_OFFER: return offered(s, now_ms, peer, msg, applied);
    case SNAPSHOT_ASK: asked(s, now_ms, peer, msg); return SNAPSHOT_NO_NEWS;
    case SNAPSHOT_DATA: return arrived(s, now_ms, peer, msg);
    default: return SNAPSHOT_NO_NEWS;
    }
}

void snapshot_link_up(struct snapshot *s, uint64_t now_ms, uint16_t peer) {
    if (s->state == PULLING && peer == s->peer) ask(s, now_ms);
}

void snapshot_link_lost(struct snapshot *s, uint16_t peer) {
    if (peer < PAXOS_NODES_MAX) s->served[peer].parked = false;
}

enum snapshot_news snapshot_turn(struct snapshot *s, uint64_t now_ms, paxos_slot applied) {
    serve(s, now_ms);
    if (s->state != PULLING) return SNAPSHOT_NO_NEWS;
    if (s->slot <= applied) { /* the log was faster */
        snapshot_drop(s, now_ms, false);
        return SNAPSHOT_NO_NEWS;
    }
    if (now_ms >= s->progress_ms + SNAPSHOT_GIVE_UP_MS) {
        snapshot_drop(s, now_ms, false);
        return SNAPSHOT_GIVEN_UP;
    }
    if (now_ms >= s->asked_ms + SNAPSHOT_ASK_MS) ask(s, now_ms);
    return SNAPSHOT_NO_NEWS;
}

uint64_t snapshot_wake_at(const struct snapshot *s) {
    uint64_t at = UINT64_MAX;
    if (s->state == PULLING) {
        at = s->asked_ms + SNAPSHOT_ASK_MS;
        if (s->progress_ms + SNAPSHOT_GIVE_UP_MS < at) at = s->progress_ms + SNAPSHOT_GIVE_UP_MS;
    }
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        if (!s->served[i].parked) continue;
        const uint64_t missing = s->budget > 0 ? 0 : (uint64_t)(1 - s->budget);
        const uint64_t ms = (missing * 1000 + s->config.bytes_per_second - 1) / s->config.bytes_per_second;
        if (s->budget_ms + ms < at) at = s->budget_ms + ms;
    }
    return at;
}
