/* route_save.c - the bindings in the stream of keyspace_save (ks_save.h).
 *
 * Records stand in the order of their two lists, and waits in that of their table, which is that of arrival; so to read
 * them is to add them again.  A hold says the how manieth it was, which is its place among its member's. */
#include "lockd/core/route_state.h"
#include "lockd/core/ks_save.h"

/* What a call that waits may be; its argv[0] says which. */
static const struct {
    enum command_id id;
    ks_handler *handler;
} calls[] = {{CMD_ROUTE_BIND, route_bind},
             {CMD_ROUTE_GET, route_get},
             {CMD_ROUTE_MOVE, route_move},
             {CMD_ROUTE_TOUCH, route_touch}};
enum { CALL_COUNT = sizeof calls / sizeof calls[0] };

/* ---- writing ---- */

static uint64_t count_records(const struct record *list) {
    uint64_t count = 0;
    const struct record *rec;
    DL_FOREACH2(list, rec, list_next) count++;
    return count;
}

static void save_member(const struct member *m, struct ks_saver *s) {
    ks_put_u64(s, m->lease);
    ks_put_u32(s, HASH_COUNT(m->lost));
    for (const struct lost *lost = m->lost; lost != NULL; lost = lost->hh.next) {
        const char *pool = lost->key + 4;
        ks_put_u64(s, lost->asked);
        ks_put_u64(s, lost->epoch);
        ks_put_bytes(s, slice_of(pool, lost->pool_bytes));
        ks_put_bytes(s, slice_of(pool + lost->pool_bytes, lost->key_bytes - 4 - lost->pool_bytes));
    }
}

static void save_records(const struct record *list, struct ks_saver *s) {
    const struct record *rec;
    DL_FOREACH2(list, rec, list_next) {
        if (s->result != 0) return;
        ks_put_u64(s, rec->epoch);
        ks_put_u64(s, rec->touched_ms);
        ks_put_u8(s, rec->backend);
        ks_put_u8(s, rec->shard_count);
        ks_put_bytes(s, record_pool(rec));
        ks_put_bytes(s, record_session(rec));
        ks_put_bytes(s, record_shard(rec));
        ks_put_u32(s, rec->hold_count);
        for (const struct hold *hold = rec->holds; hold != NULL; hold = hold->next) {
            ks_put_u64(s, hold->member->lease);
            ks_put_u64(s, hold->given);
        }
    }
}

static void save_stalls(const struct route *r, struct ks_saver *s) {
    for (const struct stall *stall = r->stalls; stall != NULL; stall = stall->hh.next) {
        ks_put_u64(s, stall->asked);
        ks_put_u8(s, stall->target);
        ks_put_bytes(s, record_pool(stall->record));
        ks_put_bytes(s, record_session(stall->record));
    }
}

static void save_waits(const struct route *r, struct ks_saver *s) {
    for (const struct wait *w = r->waits; w != NULL; w = w->hh.next) {
        uint32_t life_index = 0;
        for (const struct life *life = r->lives; life != w->life; life = life->next) life_index++;
        ks_put_u64(s, w->stall->asked);
        ks_put_u32(s, life_index);
        ks_put_u64(s, w->origin.seq);
        ks_put_once(s, w->once);
        ks_put_u8(s, w->mover);
        ks_put_u32(s, w->argc);
        for (uint32_t i = 0; i < w->argc; i++) ks_put_bytes(s, w->argv[i]);
    }
}

static void save_reports(const struct route *r, struct ks_saver *s) {
    const struct report *report;
    DL_FOREACH2(r->reports, report, age_next) {
        const struct suspect *suspect = report->suspect;
        const char *pool = suspect->key + 4;
        ks_put_u64(s, report->lease);
        ks_put_u64(s, report->stamp_ms);
        ks_put_bytes(s, slice_of(pool, suspect->pool_bytes));
        ks_put_bytes(s, slice_of(pool + suspect->pool_bytes, suspect->key_bytes - 4 - suspect->pool_bytes));
    }
}

void route_save(const struct route *r, struct ks_saver *s) {
    uint64_t lives = 0, reports = 0;
    const struct life *life;
    const struct report *report;
    DL_FOREACH(r->lives, life) lives++;
    DL_FOREACH2(r->reports, report, age_next) reports++;
    ks_put_u64(s, r->holds_given);
    ks_put_u64(s, HASH_COUNT(r->members));
    ks_put_u64(s, count_records(r->idle));
    ks_put_u64(s, count_records(r->busy));
    ks_put_u64(s, HASH_COUNT(r->stalls));
    ks_put_u64(s, lives);
    ks_put_u64(s, HASH_COUNT(r->waits));
    ks_put_u64(s, reports);
    for (const struct member *m = r->members; m != NULL; m = m->hh.next) save_member(m, s);
    save_records(r->idle, s);
    save_records(r->busy, s);
    save_stalls(r, s);
    DL_FOREACH(r->lives, life) {
        ks_put_u16(s, life->node);
        ks_put_u64(s, life->boot);
    }
    save_waits(r, s);
    save_reports(r, s);
}

/* ---- reading ---- */

enum { POOL, SESSION, SHARD, WORDS };

static void load_member(struct route *r, struct ks_loader *l) {
    const uint64_t lease = ks_take_u64(l);
    const uint32_t lost = ks_take_u32(l);
    if (!ks_take_check(l, ks_lease_exists(r->ks, lease), "a member whose lease does not exist") ||
        !ks_take_check(l, route_member_find(r, lease) == NULL, "a member that is there twice"))
        return;
    struct member *m = route_member_join(r, lease);
    for (uint32_t i = 0; i < lost && !l->bad; i++) {
        struct slice words[WORDS];
        const uint64_t asked = ks_take_revision(l), epoch = ks_take_revision(l);
        ks_take_words(l, SESSION + 1, KS_SAVED_NAME_BYTES_MAX, words);
        if (!l->bad) route_lost_add(r, m, asked, epoch, words[POOL], words[SESSION]);
    }
}

/* As many names as it says, none empty, and nothing else. */
static bool is_shard(struct slice shard, uint8_t count) {
    struct wire w = wire_of(shard);
    for (uint8_t i = 0; i < count; i++)
        if (wire_bytes(&w).bytes == 0) return false;
    return count > 0 && count <= ROUTE_SHARD_MAX && wire_done(&w);
}

static void load_record(struct route *r, struct ks_loader *l, bool idle) {
    struct slice words[WORDS];
    const uint64_t epoch = ks_take_revision(l), touched_ms = ks_take_u64(l);
    const uint8_t backend = ks_take_u8(l), shard_count = ks_take_u8(l);
    ks_take_words(l, WORDS, ROUTE_SHARD_MAX * (4 + KS_SAVED_NAME_BYTES_MAX), words);
    const uint32_t holds = ks_take_u32(l);
    if (!ks_take_check(l, is_shard(words[SHARD], shard_count) && backend < shard_count, "a shard that is none") ||
        !ks_take_check(l,
                       words[POOL].bytes <= KS_SAVED_NAME_BYTES_MAX && words[SESSION].bytes <= KS_SAVED_NAME_BYTES_MAX,
                       "a name that is too long") ||
        !ks_take_check(l, route_record_find(r, words[POOL], words[SESSION]) == NULL, "a binding that is there twice") ||
        !ks_take_check(l, touched_ms <= r->ks->stamp_ms, "a binding used in the future") ||
        !ks_take_check(l, (holds == 0) == idle, "a binding among the wrong ones"))
        return;
    struct record *rec = route_record_add(r, words[POOL], words[SESSION], words[SHARD], shard_count);
    rec->epoch = epoch;
    rec->backend = backend;
    for (uint32_t i = 0; i < holds && !l->bad; i++) {
        struct member *m = route_member_find(r, ks_take_u64(l));
        const uint64_t given = ks_take_u64(l), before = rec->holds != NULL ? rec->holds->prev->given : 0;
        if (ks_take_check(l, m != NULL, "a holder that is no member") &&
            ks_take_check(l, m->holds == NULL || m->holds->member_prev->record != rec,
                          "a holder that is there twice") &&
            ks_take_check(l, given > before && given <= r->holds_given, "a hold out of order"))
            route_hold_add(r, rec, m)->given = given;
    }
    route_record_settle(r, rec, touched_ms);
}

static int by_given(const struct hold *a, const struct hold *b) {
    return a->given < b->given ? -1 : a->given > b->given;
}

/* They came in the order of the records, where those used again since stand later: only these are sorted. */
static void order_holds(struct member *m) {
    struct hold *hold, *next, *late = NULL, *at;
    uint64_t most = 0;
    DL_FOREACH_SAFE2(m->holds, hold, next, member_next) {
        if (hold->given >= most) {
            most = hold->given;
            continue;
        }
        DL_DELETE2(m->holds, hold, member_prev, member_next);
        DL_APPEND2(late, hold, member_prev, member_next);
    }
    DL_SORT2(late, by_given, member_prev, member_next);
    at = m->holds;
    DL_FOREACH_SAFE2(late, hold, next, member_next) {
        while (at->given < hold->given) at = at->member_next; /* the last one is given after all that were late */
        DL_DELETE2(late, hold, member_prev, member_next);
        DL_PREPEND_ELEM2(m->holds, at, hold, member_prev, member_next);
    }
}

static void load_stall(struct route *r, struct ks_loader *l, uint64_t *last) {
    struct slice words[WORDS];
    const uint64_t asked = ks_take_revision(l);
    const uint8_t target = ks_take_u8(l);
    ks_take_words(l, SESSION + 1, KS_SAVED_NAME_BYTES_MAX, words);
    struct record *rec = l->bad ? NULL : route_record_find(r, words[POOL], words[SESSION]);
    if (!ks_take_check(l, asked > *last, "moves that are not in order") ||
        !ks_take_check(l, rec != NULL && rec->holds != NULL && rec->stall == NULL && target < rec->shard_count,
                       "a move of nothing"))
        return;
    *last = asked;
    route_stall_add(r, rec, asked, target);
}

/* The call is about the binding it waits for: only then is it sure that it ends no hold when it runs again. */
static ks_handler *handler_of(const struct stall *stall, uint32_t argc, const struct slice *argv) {
    const struct command *c = command_find(argv[0], false);
    if (c == NULL || (c->arity > 0 ? argc != (uint32_t)c->arity : argc < (uint32_t)-c->arity) || argc < 3) return NULL;
    if (!slice_equal(argv[1], record_pool(stall->record))) return NULL;
    for (uint32_t k = 0; k < CALL_COUNT; k++) {
        if (calls[k].id != c->id) continue;
        for (uint32_t i = c->id == CMD_ROUTE_TOUCH ? 4 : 2; i < argc; i++) {
            if (slice_equal(argv[i], record_session(stall->record))) return calls[k].handler;
            if (c->id != CMD_ROUTE_TOUCH) break;
        }
    }
    return NULL;
}

static void load_wait(struct route *r, struct ks_loader *l, uint64_t lives, struct life *const *life) {
    const uint64_t asked = ks_take_u64(l);
    const uint32_t life_index = ks_take_u32(l);
    const uint64_t seq = ks_take_u64(l);
    const struct ks_once_key once = ks_take_once(l);
    const uint8_t mover = ks_take_u8(l);
    const uint32_t argc = ks_take_u32(l);
    if (!ks_take_check(l, argc > 0 && argc <= BATCH_ARGC_MAX, "a call without words")) return;
    struct slice *argv = r->ks->argv;
    ks_take_words(l, argc, UINT32_MAX, argv);
    struct stall *stall = NULL;
    if (!l->bad) HASH_FIND(hh, r->stalls, &asked, sizeof asked, stall);
    if (!ks_take_check(l, stall != NULL, "a wait for no move") ||
        !ks_take_check(l, life_index < lives, "a wait of nobody"))
        return;
    ks_handler *handler = handler_of(stall, argc, argv);
    if (!ks_take_check(l, handler != NULL && mover <= (handler == route_move), "a call that cannot wait")) return;
    const struct life *who = life[life_index];
    const struct origin origin = {.node = who->node, .boot = who->boot, .seq = seq};
    route_wait_add(r, stall, life[life_index], origin, handler, mover == 1, argc, argv)->once = once;
}

static void load_waits(struct route *r, struct ks_loader *l, uint64_t lives, uint64_t waits) {
    if (!ks_take_check(l, lives <= ks_left(l) / 10, "more lives than there is room for")) return;
    struct life **life = lives > 0 ? alloc_get0(r->alloc, lives * sizeof life[0]) : NULL;
    for (uint64_t i = 0; i < lives && !l->bad; i++) {
        const uint16_t node = ks_take_u16(l);
        const uint64_t boot = ks_take_u64(l);
        if (!l->bad) life[i] = route_life_add(r, node, boot);
    }
    for (uint64_t i = 0; i < waits && !l->bad; i++) load_wait(r, l, lives, life);
    for (uint64_t i = 0; i < lives && !l->bad; i++) ks_take_check(l, life[i]->wait_count > 0, "a life without waits");
    alloc_put(r->alloc, life);
}

static void load_report(struct route *r, struct ks_loader *l) {
    struct slice words[WORDS];
    struct member *m = route_member_find(r, ks_take_u64(l));
    const uint64_t stamp_ms = ks_take_u64(l);
    ks_take_words(l, SESSION + 1, KS_SAVED_NAME_BYTES_MAX, words);
    if (!ks_take_check(l, m != NULL, "a report of nobody") ||
        !ks_take_check(l, stamp_ms <= r->ks->stamp_ms, "a report from the future"))
        return;
    if (!ks_take_check(l, !route_has_report(r, words[POOL], words[SESSION], m->lease), "a report that is there twice"))
        return;
    route_report_add(r, words[POOL], words[SESSION], m, stamp_ms);
}

void route_load(struct route *r, struct ks_loader *l) {
    uint64_t last = 0;
    r->holds_given = ks_take_u64(l);
    const uint64_t members = ks_take_u64(l), idle = ks_take_u64(l), busy = ks_take_u64(l), stalls = ks_take_u64(l),
                   lives = ks_take_u64(l), waits = ks_take_u64(l), reports = ks_take_u64(l);
    for (uint64_t i = 0; i < members && !l->bad; i++) load_member(r, l);
    for (uint64_t i = 0; i < idle && !l->bad; i++) load_record(r, l, true);
    for (uint64_t i = 0; i < busy && !l->bad; i++) load_record(r, l, false);
    for (struct member *m = r->members; m != NULL; m = m->hh.next) order_holds(m);
    for (uint64_t i = 0; i < stalls && !l->bad; i++) load_stall(r, l, &last);
    if (!l->bad) load_waits(r, l, lives, waits);
    for (uint64_t i = 0; i < reports && !l->bad; i++) load_report(r, l);
}
