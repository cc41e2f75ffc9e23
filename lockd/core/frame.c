/* frame.c - see frame.h.
 *
 * One function per kind writes, one reads; each pair stands together so that they cannot drift apart unseen.  A reader
 * returns false for what a correct peer never sends; short input is found once, by wire_done at the end. */
#include "lockd/core/frame.h"
#include <xxhash.h>

enum {
    FRAME_VERSION = 3,
    SUM_BYTES = 8,
    REST_BYTES_MIN = 2, /* version, kind */
};

/* ---- parts ---- */

static void put_bool(struct buf *b, bool value) {
    wire_put_u8(b, value);
}

static bool get_bool(struct wire *w, bool *ret_value) {
    const uint8_t value = wire_u8(w);
    *ret_value = value == 1;
    return value <= 1;
}

static bool get_node(struct wire *w, uint16_t *ret_node) {
    *ret_node = wire_u16(w);
    return *ret_node < PAXOS_NODES_MAX;
}

static void put_ballot(struct buf *b, struct ballot ballot) {
    wire_put_u64(b, ballot.round);
    wire_put_u16(b, ballot.node);
}

static bool get_ballot(struct wire *w, struct ballot *ret_ballot) {
    ret_ballot->round = wire_u64(w);
    ret_ballot->node = wire_u16(w);
    return ballot_seat(*ret_ballot) < PAXOS_NODES_MAX;
}

/* ---- kinds ---- */

static void put_hello(struct buf *b, const struct hello *m) {
    wire_put_u16(b, m->from);
    wire_put_u16(b, m->to);
    wire_put_u64(b, m->boot);
}

static bool get_hello(struct wire *w, struct hello *m) {
    if (!get_node(w, &m->from) || !get_node(w, &m->to)) return false;
    m->boot = wire_u64(w);
    return true;
}

static void put_identity(struct buf *b, const struct identity_msg *m) {
    put_bool(b, m->is_answer);
    wire_put_u16(b, m->from);
    wire_put_u16(b, m->to);
    wire_put_u16(b, m->node_count);
    wire_put_u64(b, m->store_id);
    wire_put_u64(b, m->boot_id);
    wire_put_u64(b, m->asked_store);
    wire_put_u64(b, m->asked_boot);
    put_bool(b, m->stray);
    wire_put_u64(b, m->record.cluster_id);
    membership_write(&m->record.members, b);
}

static bool get_identity(struct wire *w, struct identity_msg *m) {
    if (!get_bool(w, &m->is_answer) || !get_node(w, &m->from) || !get_node(w, &m->to)) return false;
    m->node_count = wire_u16(w);
    if (m->node_count > PAXOS_NODES_MAX) return false;
    m->store_id = wire_u64(w);
    m->boot_id = wire_u64(w);
    m->asked_store = wire_u64(w);
    m->asked_boot = wire_u64(w);
    if (!get_bool(w, &m->stray)) return false;
    m->record.cluster_id = wire_u64(w);
    return membership_read(w, &m->record.members);
}

static void put_paxos(struct buf *b, const struct paxos_msg *m) {
    must(m->entry_count <= FRAME_ENTRIES_MAX);
    wire_put_u8(b, (uint8_t)m->kind);
    wire_put_u16(b, m->from);
    wire_put_u16(b, m->to);
    wire_put_u16(b, m->generation);
    put_ballot(b, m->ballot);
    put_ballot(b, m->promised);
    put_bool(b, m->granted);
    wire_put_u64(b, m->chosen);
    wire_put_u64(b, m->slot);
    wire_put_u64(b, m->slot_last);
    wire_put_u64(b, m->round);
    wire_put_u32(b, m->lease_ms);
    wire_put_u64(b, m->free_bytes);
    wire_put_u32(b, m->entry_count);
    for (uint32_t i = 0; i < m->entry_count; i++) {
        wire_put_u64(b, m->entries[i].slot);
        put_ballot(b, m->entries[i].ballot);
        wire_put_bytes(b, m->entries[i].value);
    }
}

static bool get_paxos(struct wire *w, struct paxos_msg *m, struct paxos_entry *entries) {
    const uint8_t kind = wire_u8(w);
    if (kind < PAXOS_MSG_PREVOTE || kind >= PAXOS_MSG_KIND_END) return false;
    m->kind = (enum paxos_msg_kind)kind;
    if (!get_node(w, &m->from) || !get_node(w, &m->to)) return false;
    m->generation = wire_u16(w);
    if (m->generation > MEMBER_GENERATION_MAX) return false;
    if (!get_ballot(w, &m->ballot) || !get_ballot(w, &m->promised) || !get_bool(w, &m->granted)) return false;
    m->chosen = wire_u64(w);
    m->slot = wire_u64(w);
    m->slot_last = wire_u64(w);
    m->round = wire_u64(w);
    m->lease_ms = wire_u32(w);
    m->free_bytes = wire_u64(w);
    m->entry_count = wire_u32(w);
    m->entries = entries;
    if (m->entry_count > FRAME_ENTRIES_MAX) return false;
    paxos_slot last = 0; /* slots begin at 1 and ascend */
    for (uint32_t i = 0; i < m->entry_count; i++) {
        entries[i].slot = wire_u64(w);
        if (!get_ballot(w, &entries[i].ballot)) return false;
        entries[i].value = wire_bytes(w);
        if (entries[i].slot <= last) return false; /* also where the input ends: everything reads as zero then */
        last = entries[i].slot;
    }
    return true;
}

static void put_forward(struct buf *b, const struct forward *m) {
    must(m->argc >= 1 && m->argc <= BATCH_ARGC_MAX);
    wire_put_u8(b, (uint8_t)m->kind);
    put_ballot(b, m->ballot);
    wire_put_u64(b, m->boot);
    wire_put_u64(b, m->seq);
    wire_put_u64(b, m->after);
    wire_put_u64(b, m->sent_ms);
    wire_put_u32(b, m->argc);
    for (uint32_t i = 0; i < m->argc; i++) wire_put_bytes(b, m->argv[i]);
}

static bool get_forward_kind(struct wire *w, enum forward_kind *ret_kind) {
    const uint8_t kind = wire_u8(w);
    *ret_kind = (enum forward_kind)kind;
    return kind <= FORWARD_READ;
}

static bool get_forward(struct wire *w, struct forward *m, struct slice *argv) {
    if (!get_forward_kind(w, &m->kind) || !get_ballot(w, &m->ballot)) return false;
    m->boot = wire_u64(w);
    m->seq = wire_u64(w);
    m->after = wire_u64(w);
    m->sent_ms = wire_u64(w);
    m->argc = wire_u32(w);
    m->argv = argv;
    if (m->argc < 1 || m->argc > BATCH_ARGC_MAX) return false;
    for (uint32_t i = 0; i < m->argc; i++) argv[i] = wire_bytes(w);
    return true;
}

static void put_answer(struct buf *b, const struct answer *m) {
    wire_put_u8(b, (uint8_t)m->kind);
    wire_put_u8(b, (uint8_t)m->of);
    put_ballot(b, m->ballot);
    wire_put_u64(b, m->boot);
    wire_put_u64(b, m->seq);
    wire_put_bytes(b, m->reply);
}

static bool get_answer(struct wire *w, struct answer *m) {
    const uint8_t kind = wire_u8(w);
    if (kind > ANSWER_REFUSED) return false;
    m->kind = (enum answer_kind)kind;
    if (!get_forward_kind(w, &m->of) || !get_ballot(w, &m->ballot)) return false;
    m->boot = wire_u64(w);
    m->seq = wire_u64(w);
    m->reply = wire_bytes(w);
    return true;
}

static void put_snapshot(struct buf *b, const struct snapshot_msg *m) {
    must(m->data.bytes <= SNAPSHOT_DATA_BYTES_MAX);
    wire_put_u8(b, (uint8_t)m->kind);
    wire_put_u64(b, m->slot);
    wire_put_u64(b, m->offset);
    wire_put_u64(b, m->total);
    wire_put_bytes(b, m->data);
}

static bool get_snapshot(struct wire *w, struct snapshot_msg *m) {
    const uint8_t kind = wire_u8(w);
    if (kind < SNAPSHOT_OFFER || kind >= SNAPSHOT_MSG_KIND_END) return false;
    m->kind = (enum snapshot_msg_kind)kind;
    m->slot = wire_u64(w);
    m->offset = wire_u64(w);
    m->total = wire_u64(w);
    m->data = wire_bytes(w);
    return m->data.bytes <= SNAPSHOT_DATA_BYTES_MAX;
}

/* ---- the frame ---- */

void frame_encode(const struct frame *f, struct buf *out) {
    const size_t begin = out->bytes;
    wire_put_u32(out, 0); /* both are known at the end */
    wire_put_u64(out, 0);
    wire_put_u8(out, FRAME_VERSION);
    wire_put_u8(out, (uint8_t)f->kind);
    switch (f->kind) {
    case FRAME_HELLO: put_hello(out, &f->hello); break;
    case FRAME_IDENTITY: put_identity(out, &f->identity); break;
    case FRAME_PAXOS: put_paxos(out, &f->paxos); break;
    case FRAME_FORWARD: put_forward(out, &f->forward); break;
    case FRAME_ANSWER: put_answer(out, &f->answer); break;
    case FRAME_SNAPSHOT: put_snapshot(out, &f->snapshot); break;
    default: must(f->kind <= FRAME_SNAPSHOT && f->kind >= FRAME_HELLO);
    }
    const size_t bytes = out->bytes - begin, rest = FRAME_HEAD_BYTES + SUM_BYTES;
    must(bytes <= FRAME_BYTES_MAX);
    const uint64_t sum = XXH3_64bits(out->data + begin + rest, bytes - rest);
    out->bytes = begin;
    wire_put_u32(out, (uint32_t)(bytes - FRAME_HEAD_BYTES));
    wire_put_u64(out, sum);
    out->bytes = begin + bytes;
}

static bool get_frame(struct wire *w, struct frame *f, struct frame_scratch *scratch) {
    if (wire_u8(w) != FRAME_VERSION) return false;
    const uint8_t kind = wire_u8(w);
    f->kind = (enum frame_kind)kind;
    switch (kind) {
    case FRAME_HELLO: return get_hello(w, &f->hello);
    case FRAME_IDENTITY: return get_identity(w, &f->identity);
    case FRAME_PAXOS: return get_paxos(w, &f->paxos, scratch->entries);
    case FRAME_FORWARD: return get_forward(w, &f->forward, scratch->argv);
    case FRAME_ANSWER: return get_answer(w, &f->answer);
    case FRAME_SNAPSHOT: return get_snapshot(w, &f->snapshot);
    default: return false;
    }
}

static bool length_is_possible(size_t body) {
    return body >= SUM_BYTES + REST_BYTES_MIN && body <= FRAME_BYTES_MAX - FRAME_HEAD_BYTES;
}

enum frame_status frame_decode(const char *data, size_t bytes, struct frame *ret_frame, struct frame_scratch *scratch,
                               size_t *ret_used) {
    *ret_used = 0;
    if (bytes < FRAME_HEAD_BYTES) return FRAME_NEED_MORE;
    struct wire head = wire_of(slice_of(data, FRAME_HEAD_BYTES));
    const size_t body = wire_u32(&head);
    if (!length_is_possible(body)) return FRAME_BAD;
    const size_t whole = FRAME_HEAD_BYTES + body;
    if (bytes < whole) {
        *ret_used = whole;
        return FRAME_NEED_MORE;
    }
    struct wire w = wire_of(slice_of(data + FRAME_HEAD_BYTES, body));
    const uint64_t sum = wire_u64(&w);
    if (sum != XXH3_64bits(w.at, (size_t)(w.end - w.at))) return FRAME_BAD;
    struct frame frame = {0};
    if (!get_frame(&w, &frame, scratch) || !wire_done(&w)) return FRAME_BAD;
    *ret_frame = frame;
    *ret_used = whole;
    return FRAME_OK;
}

enum link_refusal frame_refusal(const char *data, size_t bytes) {
    struct wire w = wire_of(slice_of(data, bytes));
    const size_t body = wire_u32(&w);
    const uint64_t sum = wire_u64(&w);
    if (!length_is_possible(body) || bytes < FRAME_HEAD_BYTES + body) return LINK_LENGTH;
    if (sum != XXH3_64bits(w.at, body - SUM_BYTES)) return LINK_CHECKSUM;
    return wire_u8(&w) != FRAME_VERSION ? LINK_VERSION : LINK_FIELDS;
}
