/* Paxos with peers that say anything: no message reaches a must(), whatever the order, and what Paxos promises its
 * caller holds all the same: slots are handed out once, in order, without gaps (P4); the promise never goes down (P1);
 * transactions count up by one.  That values agree (P2) cannot be asked where peers lie. */
#include <stdlib.h>
#include "common/io/heap.h"
#include "lockd/core/paxos.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/take.h"

enum { OPERATIONS_MAX = 400, INFLIGHT = 4, DELAY = 8, ENTRIES = 4 };

static struct paxos *p;
static uint64_t now_ms, batch, said_durable;
static paxos_slot applied, cut;
static struct ballot promised;
static struct membership newest, now_members;

static struct slice value_of(struct take *t, paxos_slot slot) {
    static const char *const values[] = {"", "a", "b", "cc", "m"};
    const uint8_t dice = take_u8(t);
    return slice_str(values[dice < 200 ? slot % 3 : dice % 5]); /* mostly the same for the same slot */
}

/* What the caller's state machine would do with a chosen configuration. */
static void apply(const struct paxos_entry *e) {
    must(e->slot == applied + 1);
    applied = e->slot;
    if (newest.slot == 0 || applied >= newest.slot + DELAY) {
        now_members = newest;
        if (!slice_equal(e->value, slice_str("m"))) return;
        const uint16_t seat = (uint16_t)(1 + applied % (PAXOS_NODES_MAX - 1)), bit = (uint16_t)(1 << seat);
        newest.slot = applied;
        if (newest.learners & bit) {
            newest.learners = (uint16_t)(newest.learners & ~bit);
            newest.voters |= bit;
        } else if (newest.voters & bit) {
            newest.voters = (uint16_t)(newest.voters & ~bit);
            newest.store_ids[seat] = 0;
        } else {
            newest.learners |= bit;
            newest.store_ids[seat] = 1000 + applied;
            newest.generation[seat]++;
        }
        must(membership_makes_sense(&newest));
        paxos_members(p, now_ms, &newest);
    }
}

static void collect(void) {
    struct paxos_output out;
    while (paxos_take(p, &out)) {
        if (out.batch != 0) must(out.batch == ++batch);
        if (out.save_promise) {
            must(ballot_compare(out.promised, promised) >= 0);
            promised = out.promised;
        }
        for (uint32_t i = 0; i < out.save_count; i++) must(out.saves[i].slot > cut);
        for (uint32_t i = 0; i < out.apply_count; i++) apply(&out.applies[i]);
    }
    must(paxos_role(p) == PAXOS_HALTED || paxos_chosen(p) == applied);
}

static void message(struct take *t) {
    struct paxos_entry entries[ENTRIES];
    struct paxos_msg m = {.kind = (enum paxos_msg_kind)(1 + take_below(t, PAXOS_MSG_KIND_END - 1)),
                          .from = take_below(t, PAXOS_NODES_MAX),
                          .to = take_u8(t) < 250 ? 0 : 1,
                          .ballot = take_ballot(t),
                          .entries = entries};
    const uint8_t flags = take_u8(t);
    m.generation = flags >= 250 ? flags - 249 : 0;
    m.granted = flags & 1;
    if (flags & 2) m.ballot = paxos_ballot(p);
    m.promised = flags & 4 ? take_ballot(t) : m.ballot;
    m.chosen = flags & 8 ? take_number(t, 24) : applied;
    m.slot = flags & 16 ? take_number(t, 24) : m.chosen + 1;
    m.slot_last = flags & 32 ? take_number(t, 32) : UINT64_MAX;
    m.round = take_number(t, 16);
    m.lease_ms = (uint32_t)take_number(t, 200) * 4;
    m.free_bytes = flags & 64 ? take_number(t, 100) : UINT64_MAX;
    m.entry_count = take_below(t, ENTRIES + 1);
    paxos_slot slot = m.slot;
    for (uint32_t i = 0; i < m.entry_count; i++) {
        if (slot == 0) slot = 1;
        entries[i] = (struct paxos_entry){.slot = slot, .ballot = m.ballot, .value = value_of(t, slot)};
        const uint8_t dice = take_u8(t);
        if (dice & 1) entries[i].ballot = take_ballot(t);
        const paxos_slot step = dice < 200 ? 1 : dice - 198;
        if (slot > UINT64_MAX - step) m.entry_count = i + 1; /* frame.h: they ascend */
        slot += step;
    }
    const struct paxos_input in = {.now_ms = now_ms, .kind = PAXOS_MESSAGE, .message = &m};
    (void)!paxos_step(p, &in);
}

static void step(struct paxos_input in) {
    in.now_ms = now_ms;
    (void)!paxos_step(p, &in);
}

static void call(struct take *t) {
    struct membership pending = newest;
    switch (take_below(t, 7)) {
    case 0: (void)!paxos_transfer(p, now_ms, take_below(t, PAXOS_NODES_MAX + 1)); return;
    case 1: (void)paxos_confirm(p, now_ms); return;
    case 2: paxos_disk_free(p, take_number(t, 100)); return;
    case 3:
        cut = applied - (applied > 0 ? take_u8(t) % applied : 0);
        paxos_cut(p, cut);
        return;
    case 4:
        if (paxos_role(p) == PAXOS_HALTED) return;
        {
            const paxos_slot slot = applied + take_u8(t) % 16;
            const bool in_effect = newest.slot == 0 || slot + 1 >= newest.slot + DELAY;
            paxos_install(p, now_ms, slot, in_effect ? &newest : &now_members, in_effect ? NULL : &pending);
            if (in_effect) now_members = newest;
            applied = slot;
        }
        return;
    case 5: (void)paxos_caught_up(p, take_below(t, PAXOS_NODES_MAX)); return;
    default: {
        struct ballot b;
        (void)paxos_leader(p, now_ms, &b);
        (void)paxos_lease_good(p, now_ms);
        (void)paxos_free_majority(p);
    }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct take t = {data, data + bytes};
    const uint8_t setting = take_u8(&t);
    const uint64_t ids[PAXOS_NODES_MAX] = {100, 101, 102, 103, 104, 105, 106, 107, 108};
    membership_founding(&newest, (uint16_t)(1 + setting % 5), ids);
    now_members = newest;
    now_ms = 1000;
    batch = said_durable = applied = cut = 0;
    promised = (struct ballot){0};
    const struct paxos_config config = {.alloc = heap_alloc(),
                                        .node = 0,
                                        .members = newest,
                                        .config_delay = DELAY,
                                        .inflight_max = INFLIGHT,
                                        .value_bytes_max = 16,
                                        .heartbeat_ms = 50,
                                        .lease_ms = 300,
                                        .election_spread_ms = 100,
                                        .drift_ppm = 500,
                                        .stall_ms = setting & 64 ? 500 : 0,
                                        .seed = setting,
                                        .start_ms = now_ms};
    const struct paxos_saved saved = {.restarted = setting & 128, .lease_ms_max = setting & 128 ? 300 : 0};
    p = paxos_new(&config, &saved);
    collect();
    for (int i = 0; i < OPERATIONS_MAX && take_more(&t); i++) {
        switch (take_below(&t, 8)) {
        case 0: now_ms += 4u * take_u8(&t); /* fall through */
        case 1: step((struct paxos_input){.kind = PAXOS_TICK}); break;
        case 2:
            said_durable += batch > said_durable ? 1 + take_u8(&t) % (batch - said_durable) : 0;
            if (batch > 0) step((struct paxos_input){.kind = PAXOS_DURABLE, .batch = said_durable});
            break;
        case 3: step((struct paxos_input){.kind = PAXOS_PROPOSE, .value = value_of(&t, applied)}); break;
        case 4: call(&t); break;
        default: message(&t); break;
        }
        collect();
    }
    paxos_free(p);
    return 0;
}
