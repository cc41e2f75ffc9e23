/* A whole node among two peers that say anything, garbage included, while its clients go on asking: no frame reaches a
 * must(), nothing is sent twice to the disk, and each client gets at most as many replies as it asked. */
#include <stdio.h>
#include <stdlib.h>
#include <xxhash.h>
#include "common/io/heap.h"
#include "lockd/core/replica.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/take.h"

enum { OPERATIONS_MAX = 300, NODES = 3, CLIENTS = 8, ENTRIES = 4, ARGC = 10 };

static struct replica *r;
static uint64_t now_ms, saved_batch, durable_batch, peer_boot[NODES];
static struct buf frame_bytes, value_bytes[ENTRIES];
static struct frame_scratch scratch;
static struct slice installing;
static paxos_slot install_slot, checkpoint_slot;

static void on_save(void *context, uint64_t batch, const struct paxos_output *out,
                    const struct identity_record *record) {
    (void)context, (void)out, (void)record;
    must(batch == saved_batch + 1);
    saved_batch = batch;
}
static void on_send(void *context, uint16_t peer, struct slice frame) {
    struct frame f;
    size_t used;
    (void)context;
    must(peer < PAXOS_NODES_MAX && frame_decode(frame.data, frame.bytes, &f, &scratch, &used) == FRAME_OK);
}
static void on_reply(void *context, uint64_t client, struct slice bytes, bool leased) {
    (void)context, (void)leased;
    must(client < CLIENTS && bytes.bytes > 0);
}
static void on_hang_up(void *context, uint64_t client) {
    (void)context;
    must(client < CLIENTS);
}
static void on_fetch(void *context, uint16_t peer, paxos_slot from_slot, paxos_slot to_slot) {
    (void)context;
    must(peer < PAXOS_NODES_MAX && from_slot <= to_slot);
}
static void on_note(void *context, char level, const char *text) {
    (void)context;
    must((level == 'i' || level == 'w' || level == 'e') && text[0] != '\0');
}
static void on_checkpoint(void *context, const struct keyspace *ks, paxos_slot slot) {
    (void)context;
    must(keyspace_slot(ks) == slot);
    checkpoint_slot = slot;
}
static void on_cut(void *context, paxos_slot slot) {
    (void)context, (void)slot;
}
static void on_snapshot_read(void *context, uint16_t peer, paxos_slot slot, uint64_t offset, uint32_t bytes) {
    (void)context, (void)peer, (void)slot, (void)offset, (void)bytes;
}
static void on_install(void *context, paxos_slot slot, struct slice bytes) {
    (void)context;
    install_slot = slot;
    installing = bytes;
}

/* Words that commands are made of: names, options and numbers that mean something somewhere. */
static const char *const words[] = {"SET",
                                    "GET",
                                    "INCR",
                                    "DEL",
                                    "k",
                                    "x",
                                    "1",
                                    "2",
                                    "3",
                                    "1000",
                                    "5000",
                                    "LEASE",
                                    "LEASE.GRANT",
                                    "LEASE.KEEPALIVE",
                                    "LEASE.REVOKE",
                                    "LOCK.ACQUIRE",
                                    "WAIT",
                                    "100",
                                    "LOCK.RELEASE",
                                    "TOKEN",
                                    "EVAL",
                                    "return redis.call('INCR', KEYS[1])",
                                    "CAS",
                                    "GETV",
                                    "WOR.SET",
                                    "WOR.GET",
                                    "ROUTE.BIND",
                                    "PREFER",
                                    "ROUTE.GET",
                                    "ROUTE.MOVE",
                                    "FORCE",
                                    "ROUTE.NEXT",
                                    "ROUTE.DROP",
                                    "ROUTE.TOUCH",
                                    "ROUTE.SUSPECT",
                                    "%SETTINGS",
                                    "%EXPIRE",
                                    "%DEQUEUE",
                                    "%ORIGIN_GONE",
                                    "%ROUTE_JOIN",
                                    "%ROUTE_ACK",
                                    "%ROUTE_PASSED",
                                    "%SCRIPT",
                                    "%REPLY",
                                    "keys_max",
                                    "PX",
                                    "NX",
                                    "KEEPTTL",
                                    "PEXPIRE",
                                    "PERSIST",
                                    "FLUSHALL",
                                    "SCRIPT",
                                    "LOAD",
                                    "ELECT.CAMPAIGN",
                                    "VALUE",
                                    "WAITREV",
                                    "READONLY",
                                    "NODE.TRANSFER",
                                    "SNAPSHOT.SAVE",
                                    "",
                                    "0",
                                    "-1",
                                    "18446744073709551615",
                                    "+OK\r\n"};
enum { WORDS = sizeof words / sizeof words[0] };

static uint32_t take_argv(struct take *t, struct slice *argv) {
    const uint32_t argc = 1 + take_below(t, ARGC);
    for (uint32_t i = 0; i < argc; i++) {
        const uint8_t dice = take_u8(t);
        argv[i] = dice < 250 ? slice_str(words[dice % WORDS]) : take_bytes(t, dice - 249);
    }
    return argc;
}

/* A batch with a few commands, or garbage. */
static struct slice take_value(struct take *t, struct buf *b, struct ballot ballot) {
    const uint8_t dice = take_u8(t);
    if (dice == 0) return slice_of(NULL, 0);
    if (dice > 250) return take_bytes(t, take_u8(t));
    batch_begin(b, dice & 1 ? ballot : take_ballot(t), dice & 2, dice & 4 ? take_number(t, 200) * 50 : now_ms);
    for (uint32_t i = dice >> 4; i < 4; i++) {
        struct slice argv[ARGC];
        const uint32_t argc = take_argv(t, argv);
        const uint8_t who = take_below(t, 5);
        const struct origin origin = {.node = who < NODES ? who : ORIGIN_NODE_NONE,
                                      .boot = who == 0      ? 1
                                              : who < NODES ? peer_boot[who]
                                                            : 0,
                                      .seq = take_number(t, 16)};
        batch_add(b, origin, argc, argv);
    }
    return buf_slice(b);
}

static void give(uint16_t peer, const struct frame *f) {
    replica_frame(r, now_ms, peer, peer_boot[peer], f);
}

static void identity(uint16_t peer, bool answer, struct take *t) {
    struct frame f = {.kind = FRAME_IDENTITY,
                      .identity = {.is_answer = answer,
                                   .from = peer,
                                   .to = 0,
                                   .node_count = NODES,
                                   .store_id = 100u + peer,
                                   .boot_id = peer_boot[peer],
                                   .asked_store = 100,
                                   .asked_boot = 1,
                                   .record.cluster_id = 7}};
    const uint64_t ids[] = {100, 101, 102};
    struct membership *m = &f.identity.record.members;
    membership_founding(m, NODES, ids);
    if (t != NULL) {
        switch (take_below(t, 8)) {
        case 0: f.identity.store_id = take_number(t, 200); break;
        case 1: f.identity.record.cluster_id = take_u8(t); break;
        case 2: f.identity.node_count = take_below(t, PAXOS_NODES_MAX + 1); break;
        case 3: f.identity.asked_boot = take_u8(t); break;
        case 4: f.identity.stray = true; break;
        case 5: /* any membership at all */
            m->slot = take_number(t, 32);
            m->voters = (uint16_t)(take_u8(t) | (take_u8(t) & 1) << 8);
            m->learners = (uint16_t)(take_u8(t) | (take_u8(t) & 1) << 8);
            for (int i = 0; i < PAXOS_NODES_MAX; i++) {
                m->store_ids[i] = take_u8(t) & 1 ? 100u + (unsigned)i : 0;
                m->generation[i] = take_below(t, 3);
            }
            break;
        case 6: /* one that makes sense and is newer */
            m->slot = take_number(t, 32);
            m->voters |= 1 << 3;
            m->store_ids[3] = 103;
            m->generation[3] = 1;
            break;
        default: break;
        }
    }
    give(peer, &f);
}

static void paxos(uint16_t peer, struct take *t) {
    struct paxos_entry entries[ENTRIES];
    const paxos_slot chosen = replica_paxos(r) != NULL ? paxos_chosen(replica_paxos(r)) : 0;
    const uint8_t flags = take_u8(t);
    struct frame f = {.kind = FRAME_PAXOS,
                      .paxos = {.kind = (enum paxos_msg_kind)(1 + take_below(t, PAXOS_MSG_KIND_END - 1)),
                                .from = peer,
                                .ballot = {.round = take_number(t, 8), .node = peer},
                                .granted = flags & 1,
                                .chosen = flags & 8 ? take_number(t, 24) : chosen,
                                .slot_last = UINT64_MAX,
                                .lease_ms = 300,
                                .free_bytes = UINT64_MAX,
                                .entries = entries}};
    struct paxos_msg *m = &f.paxos;
    if (flags & 2 && replica_paxos(r) != NULL) m->ballot = paxos_ballot(replica_paxos(r));
    m->promised = flags & 4 ? take_ballot(t) : m->ballot;
    m->slot = flags & 16 ? take_number(t, 24) : chosen + 1;
    if (flags & 32) m->slot_last = take_number(t, 32);
    m->round = take_number(t, 16);
    m->entry_count = take_below(t, ENTRIES + 1);
    paxos_slot slot = m->slot;
    for (uint32_t i = 0; i < m->entry_count; i++) {
        if (slot == 0) slot = 1;
        buf_clear(&value_bytes[i]);
        entries[i] =
            (struct paxos_entry){.slot = slot, .ballot = m->ballot, .value = take_value(t, &value_bytes[i], m->ballot)};
        if (slot == UINT64_MAX) m->entry_count = i + 1;
        slot++;
    }
    give(peer, &f);
}

static void other(uint16_t peer, struct take *t) {
    struct slice argv[ARGC];
    struct frame f = {.kind = FRAME_FORWARD};
    const struct ballot ballot = replica_paxos(r) != NULL ? paxos_ballot(replica_paxos(r)) : (struct ballot){0};
    const uint8_t dice = take_u8(t);
    switch (dice % 3) {
    case 0:
        f.forward = (struct forward){.kind = dice & 8 ? FORWARD_READ : FORWARD_WRITE,
                                     .ballot = dice & 16 ? take_ballot(t) : ballot,
                                     .boot = peer_boot[peer],
                                     .seq = take_number(t, 16),
                                     .after = dice & 32 ? take_number(t, 16) : 0,
                                     .argc = take_argv(t, argv),
                                     .argv = argv};
        break;
    case 1:
        f.kind = FRAME_ANSWER;
        f.answer = (struct answer){.kind = dice & 8 ? ANSWER_REPLY : ANSWER_REFUSED,
                                   .of = dice & 16 ? FORWARD_READ : FORWARD_WRITE,
                                   .ballot = dice & 32 ? take_ballot(t) : ballot,
                                   .boot = 1,
                                   .seq = take_number(t, 16),
                                   .reply = take_bytes(t, 1 + take_below(t, 16))};
        break;
    default:
        f.kind = FRAME_SNAPSHOT;
        f.snapshot =
            (struct snapshot_msg){.kind = (enum snapshot_msg_kind)(1 + take_below(t, SNAPSHOT_MSG_KIND_END - 1)),
                                  .slot = take_number(t, 48),
                                  .offset = dice & 64 ? take_number(t, 100) : 0,
                                  .total = take_number(t, 100)};
        f.snapshot.data = take_bytes(t, f.snapshot.kind == SNAPSHOT_DATA ? take_u8(t) : 0);
        break;
    }
    give(peer, &f);
}

/* Bytes as they come off a link, with the head made right. */
static void raw(uint16_t peer, struct take *t) {
    const struct slice body = take_bytes(t, 1 + take_u8(t));
    struct frame f;
    size_t used;
    buf_clear(&frame_bytes);
    wire_put_u32(&frame_bytes, (uint32_t)body.bytes + 8);
    wire_put_u64(&frame_bytes, XXH3_64bits(body.data, body.bytes));
    buf_append_slice(&frame_bytes, body);
    if (frame_decode(frame_bytes.data, frame_bytes.bytes, &f, &scratch, &used) == FRAME_OK) give(peer, &f);
}

static void command(struct take *t) {
    struct slice argv[ARGC];
    const uint64_t client = take_below(t, CLIENTS);
    const uint32_t argc = take_argv(t, argv);
    if (replica_client_room(r, client)) replica_command(r, now_ms, now_ms * 1000, client, argc, argv);
}

static void machine(uint16_t peer, struct take *t) {
    switch (take_below(t, 7)) {
    case 0: replica_link_lost(r, now_ms, peer); break;
    case 1: replica_link_up(r, now_ms, peer); break;
    case 2: replica_disk_free(r, take_number(t, 100)); break;
    case 3: (void)replica_hand_over(r, now_ms); break;
    case 4:
        if (checkpoint_slot == 0) break;
        replica_checkpointed(r, now_ms, checkpoint_slot, take_u8(t));
        checkpoint_slot = 0;
        break;
    case 5:
        if (install_slot == 0) break;
        replica_installed(r, now_ms, install_slot);
        install_slot = 0;
        break;
    default: /* it comes back as another process */
        peer_boot[peer]++;
        identity(peer, false, NULL);
        identity(peer, true, NULL);
    }
}

static void begin(uint8_t setting) {
    const uint64_t ids[] = {100, 101, 102};
    struct replica_saved saved = {.record.cluster_id = setting & 1 ? 0 : 7};
    if (!(setting & 1)) membership_founding(&saved.record.members, NODES, ids);
    saved.paxos.restarted = !(setting & 1);
    struct replica_config config = {.alloc = heap_alloc(),
                                    .node = 0,
                                    .node_count = NODES,
                                    .store_id = 100,
                                    .boot_id = 1,
                                    .fresh_cluster_id = 7,
                                    .seed = setting,
                                    .start_ms = now_ms,
                                    .heartbeat_ms = 50,
                                    .lease_ms = 300,
                                    .election_spread_ms = 100,
                                    .drift_ppm = 500,
                                    .forward_timeout_ms = 2000,
                                    .reattach_ms = 1000,
                                    .inflight_max = 4,
                                    .batch_bytes_max = 128 << 10,
                                    .queue_bytes_max = 1 << 20,
                                    .client_pending_max = 16,
                                    .request_bytes_max = 32 << 10,
                                    .checkpoint_bytes = 512,
                                    .disk_reserve = 10,
                                    .stall_ms = setting & 2 ? 500 : 0,
                                    .version = "fuzz"};
    ks_settings_default(&config.settings);
    const struct replica_sink sink = {.save = on_save,
                                      .send = on_send,
                                      .reply = on_reply,
                                      .hang_up = on_hang_up,
                                      .fetch = on_fetch,
                                      .note = on_note,
                                      .checkpoint = on_checkpoint,
                                      .cut = on_cut,
                                      .snapshot_read = on_snapshot_read,
                                      .install = on_install};
    r = replica_new(&config, &saved, &sink);
    for (uint16_t peer = 1; peer < NODES; peer++) {
        peer_boot[peer] = 10u * peer;
        replica_link_up(r, now_ms, peer);
        (void)replica_turn(r, now_ms);
        identity(peer, false, NULL);
        identity(peer, true, NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct take t = {data, data + bytes};
    now_ms = 1000;
    saved_batch = durable_batch = 0;
    install_slot = checkpoint_slot = 0;
    frame_bytes.alloc = heap_alloc();
    for (int i = 0; i < ENTRIES; i++) value_bytes[i].alloc = heap_alloc();
    begin(take_u8(&t));
    for (int i = 0; i < OPERATIONS_MAX && take_more(&t) && replica_halt_reason(r) == NULL; i++) {
        const uint8_t dice = take_u8(&t);
        const uint16_t peer = 1 + (dice >> 7);
        switch (dice % 10) {
        case 0: now_ms += 4u * take_u8(&t); break;
        case 1:
            if (saved_batch > durable_batch) durable_batch = saved_batch;
            replica_durable(r, now_ms, durable_batch);
            break;
        case 2: command(&t); break;
        case 3: identity(peer, take_u8(&t) & 1, &t); break;
        case 4: other(peer, &t); break;
        case 5: raw(peer, &t); break;
        case 6: machine(peer, &t); break;
        default: paxos(peer, &t); break;
        }
        if (replica_turn(r, now_ms) < now_ms) must(false);
    }
    replica_free(r);
    buf_release(&frame_bytes);
    for (int i = 0; i < ENTRIES; i++) buf_release(&value_bytes[i]);
    return 0;
}
