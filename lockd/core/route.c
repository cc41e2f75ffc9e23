/* route.c - see route.h.  Part of the keyspace.
 *
 *   record   one binding, by (pool, session).  Its holds are those to whom it was handed out.
 *   member   one joined lease: its holds, apart those that a stalling move wants back, and its reports.
 *   stall    a move between *asked* and *done*: it waits until its record has no holds.  Its waits run again then.
 *   suspect  one backend and who reported it.
 *
 * A record is in the list of idle ones exactly while it has neither holds nor a stall; stamps never go down (K3), so
 * that list, like the one of reports, is in order of age when everything goes to its end.
 *
 * No cycle of calls: ending a hold may end a stall, ending a stall runs waits again, and a call that runs again never
 * ends a hold (a MOVE that waited gets the winner's binding). */
#include "lockd/core/route_state.h"
#include "lockd/core/bug.h"

/* When something ends, and by which command. */
struct moment {
    uint64_t stamp_ms, revision;
};

static unsigned key_hash(const struct route *r, struct slice key);
static bool shard_index(const struct record *rec, struct slice name, uint8_t *ret_index);
static void record_forget(struct route *r, struct record *rec);
static struct hold *hold_find(const struct record *rec, const struct member *m);
static bool hold_give(struct route *r, struct ks_call *call, struct record *rec, struct member *m, bool paid);
static void hold_end(struct route *r, struct hold *hold, struct moment when);
static void lost_end(struct route *r, struct member *m, struct lost *lost);
static void stall_begin(struct route *r, struct ks_call *call, struct record *rec, uint8_t target);
static void stall_end(struct route *r, struct stall *stall, struct moment when);
static bool wait_add(struct route *r, struct ks_call *call, struct stall *stall, ks_handler *handler);
static struct life *life_of(struct route *r, struct origin origin);
static void wait_end(struct route *r, struct wait *w);
static void report_end(struct route *r, struct report *report);
static void reports_prune(struct route *r, uint64_t stamp_ms);
static struct suspect *suspect_find(struct route *r, struct slice pool, struct slice backend);

/* ---- memory ---- */

/* `counted` is what it counts against memory-max. */
static void *take(struct route *r, size_t bytes, size_t counted) {
    r->memory_bytes += counted;
    return alloc_get0(r->alloc, bytes);
}

static void give_back(struct route *r, void *memory, size_t counted) {
    must(r->memory_bytes >= counted);
    r->memory_bytes -= counted;
    alloc_put(r->alloc, memory);
}

/* May `bytes` more be taken?  Else -BUSY. */
static bool has_room(struct route *r, struct ks_call *call, size_t bytes) {
    const uint64_t most = keyspace_settings(r->ks)->memory_max;
    if (bytes <= most && r->memory_bytes <= most - bytes) return true;
    resp_error(call->reply, "BUSY memory-max is reached: bindings take %llu of %llu bytes",
               (unsigned long long)r->memory_bytes, (unsigned long long)most);
    return false;
}

struct route *route_new(struct keyspace *ks) {
    const struct alloc *alloc = ks_alloc(ks);
    struct route *r = alloc_get0(alloc, sizeof *r);
    r->ks = ks;
    r->alloc = alloc;
    r->seed = ks->config.boot;
    r->key.alloc = r->shard.alloc = alloc;
    return r;
}

void route_free(struct route *r) {
    while (r->waits != NULL) wait_end(r, r->waits);
    while (r->reports != NULL) report_end(r, r->reports);
    while (r->stalls != NULL) {
        struct stall *stall = r->stalls;
        stall->record->stall = NULL;
        HASH_DEL(r->stalls, stall);
        give_back(r, stall, STALL_BYTES);
    }
    for (int i = 0; i < RECORD_TABLES; i++)
        while (r->records[i] != NULL) {
            struct record *rec = r->records[i];
            while (rec->holds != NULL) {
                struct hold *hold = rec->holds;
                DL_DELETE(rec->holds, hold);
                give_back(r, hold, HOLD_BYTES);
            }
            record_forget(r, rec);
        }
    while (r->members != NULL) {
        struct member *m = r->members;
        while (m->lost != NULL) lost_end(r, m, m->lost);
        HASH_DEL(r->members, m);
        give_back(r, m, MEMBER_BYTES);
    }
    struct life *life, *next;
    DL_FOREACH_SAFE(r->lives, life, next) { /* of a state that was not loaded whole */
        DL_DELETE(r->lives, life);
        give_back(r, life, LIFE_BYTES);
    }
    must(r->memory_bytes == 0 && r->suspects == NULL && r->idle == NULL && r->busy == NULL);
    buf_release(&r->key);
    buf_release(&r->shard);
    alloc_put(r->alloc, r);
}

/* ---- arguments: each appends the error and returns false ---- */

/* Scripts run on a copy of the keyspace that has no bindings, and script_allows keeps our commands out of them. */
static struct route *route_of(const struct ks_call *call) {
    struct route *r = keyspace_route(call->ks);
    must(r != NULL && !call->in_script);
    return r;
}

static bool arg_name(struct ks_call *call, uint32_t index, const char *what, struct slice *ret_name) {
    const struct slice name = call->argv[index];
    const uint64_t most = keyspace_settings(call->ks)->key_bytes_max;
    if (name.bytes == 0) {
        resp_error(call->reply, "ERR %s is empty", what);
        return false;
    }
    if (name.bytes > most) {
        resp_error(call->reply, "ERR %s is too long: %zu bytes, key-bytes-max is %llu", what, name.bytes,
                   (unsigned long long)most);
        return false;
    }
    *ret_name = name;
    return true;
}

static void put_binding(struct ks_call *call, const struct record *rec, bool new) {
    struct wire shard = wire_of(record_shard(rec));
    struct slice backend = slice_of(NULL, 0);
    for (int i = 0; i <= rec->backend; i++) backend = wire_bytes(&shard);
    resp_array(call->reply, 4 + (uint32_t)rec->shard_count);
    resp_bulk(call->reply, backend);
    resp_integer(call->reply, (int64_t)rec->epoch);
    resp_integer(call->reply, (int64_t)call->revision);
    resp_integer(call->reply, new);
    shard = wire_of(record_shard(rec));
    for (int i = 0; i < rec->shard_count; i++) resp_bulk(call->reply, wire_bytes(&shard));
}

/* The lease holds the binding from now on, and the reply says what it is.  `paid`: the call changed something already,
 * so it may not be refused.  (Memory for its hold there is: the hold whose end was waited for gave it back.) */
static void hand_out(struct route *r, struct ks_call *call, struct record *rec, struct member *m, bool new, bool paid) {
    if (hold_give(r, call, rec, m, paid)) put_binding(call, rec, new);
}

/* True when the call waits for the end of a stall, or was refused: the handler returns. */
static bool waits_for(struct route *r, struct ks_call *call, struct record *rec, ks_handler *handler) {
    if (rec == NULL || rec->stall == NULL) return false;
    if (wait_add(r, call, rec->stall, handler)) call->queued = true;
    return true;
}

/* ---- commands ---- */

/* The shard that BIND names, as a record keeps it; valid until the next call. */
static bool arg_shard(struct route *r, struct ks_call *call, struct slice *ret_shard, uint8_t *ret_first) {
    const uint32_t from = 7, count = call->argc - from;
    struct slice first, name;
    if (!arg_name(call, 5, "backend", &first)) return false;
    if (!slice_is_word(call->argv[6], "PREFER")) {
        resp_error(call->reply, "ERR syntax error, PREFER expected after the first backend");
        return false;
    }
    if (count > ROUTE_SHARD_MAX) {
        resp_error(call->reply, "ERR too many backends after PREFER: %u given, at most %d", count, ROUTE_SHARD_MAX);
        return false;
    }
    buf_clear(&r->shard);
    bool found = false;
    for (uint32_t i = 0; i < count; i++) {
        if (!arg_name(call, from + i, "backend", &name)) return false;
        for (uint32_t j = 0; j < i; j++) {
            if (!slice_equal(name, call->argv[from + j])) continue;
            char text[80];
            resp_error(call->reply, "ERR backend '%s' is given twice after PREFER", resp_show(name, text, sizeof text));
            return false;
        }
        if (slice_equal(name, first)) {
            *ret_first = (uint8_t)i;
            found = true;
        }
        wire_put_bytes(&r->shard, name);
    }
    if (!found) {
        char text[80];
        resp_error(call->reply, "ERR backend '%s' is not among those after PREFER",
                   resp_show(first, text, sizeof text));
        return false;
    }
    *ret_shard = buf_slice(&r->shard);
    return true;
}

static struct record *record_make(struct route *r, struct ks_call *call, struct slice pool, struct slice session,
                                  struct slice shard, uint8_t first) {
    const uint64_t most = keyspace_settings(r->ks)->bindings_max;
    if (r->record_count >= most) {
        resp_error(call->reply, "BUSY bindings-max is reached: %llu sessions are recorded", (unsigned long long)most);
        return NULL;
    }
    if (!has_room(r, call, RECORD_BYTES + HOLD_BYTES + 4 + pool.bytes + session.bytes + shard.bytes)) return NULL;
    struct record *rec = route_record_add(r, pool, session, shard, (uint8_t)(call->argc - 7));
    rec->epoch = call->revision;
    rec->backend = first;
    route_record_settle(r, rec, call->stamp_ms);
    return rec;
}

void route_bind(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, session, shard;
    uint64_t lease;
    uint8_t first = 0;
    if (!arg_name(call, 1, "pool", &pool) || !arg_name(call, 2, "session", &session) ||
        !ks_arg_lease(call, 3, &lease) || !arg_shard(r, call, &shard, &first))
        return;
    struct member *m = route_member_join(r, lease);
    struct record *rec = route_record_find(r, pool, session);
    if (waits_for(r, call, rec, route_bind)) return;
    const bool new = rec == NULL;
    if (new) rec = record_make(r, call, pool, session, shard, first);
    if (rec != NULL) hand_out(r, call, rec, m, new, new);
}

void route_get(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, session;
    uint64_t lease;
    if (!arg_name(call, 1, "pool", &pool) || !arg_name(call, 2, "session", &session) || !ks_arg_lease(call, 3, &lease))
        return;
    struct member *m = route_member_join(r, lease);
    struct record *rec = route_record_find(r, pool, session);
    if (waits_for(r, call, rec, route_get)) return;
    if (rec != NULL) {
        hand_out(r, call, rec, m, false, false);
    } else {
        resp_nil(call->reply);
    }
}

/* The backend that the record names may be left: more than half of the joined report it (V5). */
static bool is_suspected(struct route *r, const struct record *rec, uint64_t stamp_ms) {
    struct wire shard = wire_of(record_shard(rec));
    struct slice backend = slice_of(NULL, 0);
    for (int i = 0; i <= rec->backend; i++) backend = wire_bytes(&shard);
    reports_prune(r, stamp_ms);
    const struct suspect *suspect = suspect_find(r, record_pool(rec), backend);
    return suspect != NULL && 2 * HASH_COUNT(suspect->reports) > HASH_COUNT(r->members);
}

void route_move(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, session, target;
    uint64_t epoch, lease;
    if (!arg_name(call, 1, "pool", &pool) || !arg_name(call, 2, "session", &session) ||
        !ks_arg_u64(call, 3, "epoch", 0, UINT64_MAX, &epoch) || !ks_arg_lease(call, 4, &lease) ||
        !arg_name(call, 6, "target", &target))
        return;
    const bool force = call->argc > 7;
    if (call->argc > 8 || (force && !slice_is_word(call->argv[7], "FORCE"))) {
        resp_error(call->reply, "ERR syntax error, only FORCE may follow the target");
        return;
    }
    struct member *m = route_member_join(r, lease);
    struct record *rec = route_record_find(r, pool, session);
    if (rec == NULL) {
        resp_error(call->reply, "ERR no such session");
        return;
    }
    const struct moment when = {call->stamp_ms, call->revision};
    struct hold *own = hold_find(rec, m);
    bool paid = r->run != RUN_FIRST;
    if (rec->stall != NULL && own != NULL && epoch == rec->epoch) {
        /* Who asks to leave the epoch that is just ending has let go of it: that may be all the first mover waits for.
         */
        if (rec->hold_count == 1) {
            hold_end(r, own, when);
            paid = true;
        } else if (waits_for(r, call, rec, route_move)) {
            if (call->queued) hold_end(r, own, when);
            return;
        }
    }
    if (waits_for(r, call, rec, route_move)) return;
    uint8_t index;
    if (r->run != RUN_FIRST || epoch != rec->epoch) {
        hand_out(r, call, rec, m, r->run == RUN_MOVED, paid);
        return;
    }
    if (!shard_index(rec, target, &index)) {
        char text[80];
        resp_error(call->reply, "ERR target '%s' is not in the shard of that session",
                   resp_show(target, text, sizeof text));
        return;
    }
    if (index == rec->backend) {
        hand_out(r, call, rec, m, false, false);
        return;
    }
    if (!force && !is_suspected(r, rec, call->stamp_ms)) {
        resp_error(call->reply, "ERR backend in service");
        return;
    }
    if (rec->hold_count > (own != NULL) && !BUG(62)) { /* somebody else holds it: the move stalls */
        stall_begin(r, call, rec, index);
        if (!call->queued) return;
        if (own != NULL) hold_end(r, own, when);
        ks_fact(r->ks, &(struct ks_fact){.kind = KS_MOVE_ASKED, .id = call->revision});
        return;
    }
    if (own == NULL && !has_room(r, call, HOLD_BYTES)) return;
    rec->backend = index;
    rec->epoch = call->revision;
    hand_out(r, call, rec, m, true, true);
}

void route_drop(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, session;
    uint64_t epoch, lease;
    if (!arg_name(call, 1, "pool", &pool) || !arg_name(call, 2, "session", &session) ||
        !ks_arg_u64(call, 3, "epoch", 0, UINT64_MAX, &epoch) || !ks_arg_lease(call, 4, &lease))
        return;
    const struct record *rec = route_record_find(r, pool, session);
    const struct member *m = route_member_find(r, lease);
    struct hold *own = rec != NULL && m != NULL && rec->epoch == epoch ? hold_find(rec, m) : NULL;
    resp_integer(call->reply, own != NULL);
    if (own != NULL) hold_end(r, own, (struct moment){call->stamp_ms, call->revision});
}

void route_touch(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, session;
    uint64_t lease;
    const uint32_t from = 4;
    if (!arg_name(call, 1, "pool", &pool) || !ks_arg_lease(call, 2, &lease)) return;
    for (uint32_t i = from; i < call->argc; i++)
        if (!arg_name(call, i, "session", &session)) return;
    for (uint32_t i = from; i < call->argc; i++)
        if (waits_for(r, call, route_record_find(r, pool, call->argv[i]), route_touch)) return;
    resp_array(call->reply, call->argc - from);
    for (uint32_t i = from; i < call->argc; i++) {
        struct record *rec = route_record_find(r, pool, call->argv[i]);
        if (rec != NULL) route_record_settle(r, rec, call->stamp_ms);
        resp_integer(call->reply, rec != NULL ? (int64_t)rec->epoch : 0);
    }
}

void route_suspect(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, backend;
    uint64_t epoch, lease;
    if (!arg_name(call, 1, "pool", &pool) || !arg_name(call, 2, "backend", &backend) ||
        !ks_arg_u64(call, 3, "epoch", 0, UINT64_MAX, &epoch) || !ks_arg_lease(call, 4, &lease))
        return;
    if (epoch != 0) {
        resp_error(call->reply, "ERR epoch is not that of the backend: a static backend has epoch 0");
        return;
    }
    reports_prune(r, call->stamp_ms);
    struct member *m = route_member_join(r, lease);
    struct suspect *suspect = suspect_find(r, pool, backend);
    struct report *report = NULL;
    if (suspect != NULL) HASH_FIND(hh, suspect->reports, &lease, sizeof lease, report);
    if (report != NULL) {
        DL_DELETE2(r->reports, report, age_prev, age_next);
        report->stamp_ms = call->stamp_ms;
        DL_APPEND2(r->reports, report, age_prev, age_next);
    } else {
        const size_t more = suspect != NULL ? 0 : SUSPECT_BYTES + 4 + pool.bytes + backend.bytes;
        if (!has_room(r, call, REPORT_BYTES + more)) return;
        suspect = route_report_add(r, pool, backend, m, call->stamp_ms);
    }
    resp_array(call->reply, 2);
    resp_integer(call->reply, (int64_t)HASH_COUNT(suspect->reports));
    resp_integer(call->reply, (int64_t)HASH_COUNT(r->members));
}

/* ---- commands of the leader ---- */

void route_join(struct ks_call *call) {
    struct route *r = route_of(call);
    uint64_t lease;
    if (!ks_arg_u64(call, 1, "lease", 0, UINT64_MAX, &lease)) return;
    if (ks_lease_exists(r->ks, lease)) route_member_join(r, lease); /* it may have ended since that was proposed */
    resp_ok(call->reply);
}

void route_ack(struct ks_call *call) {
    struct route *r = route_of(call);
    uint64_t lease, serial;
    if (!ks_arg_u64(call, 1, "lease", 0, UINT64_MAX, &lease) || !ks_arg_u64(call, 2, "serial", 0, UINT64_MAX, &serial))
        return;
    struct member *m = route_member_find(r, lease);
    if (m != NULL) {
        struct lost *lost, *next;
        HASH_ITER(hh, m->lost, lost, next) {
            if (lost->asked <= serial) lost_end(r, m, lost);
        }
        while (m->stalled != NULL && (m->stalled->record->stall->asked <= serial || BUG(66)))
            hold_end(r, m->stalled, (struct moment){call->stamp_ms, call->revision});
    }
    resp_ok(call->reply);
}

void route_passed(struct ks_call *call) {
    struct route *r = route_of(call);
    uint64_t asked, lease;
    for (uint32_t i = 1; i + 1 < call->argc; i += 2) {
        if (!ks_arg_u64(call, i, "asked", 0, UINT64_MAX, &asked) ||
            !ks_arg_u64(call, i + 1, "lease", 0, UINT64_MAX, &lease))
            return;
        struct stall *stall;
        HASH_FIND(hh, r->stalls, &asked, sizeof asked, stall);
        const struct member *m = route_member_find(r, lease);
        struct hold *hold = stall != NULL && m != NULL ? hold_find(stall->record, m) : NULL;
        if (hold == NULL) continue;
        const struct record *rec = hold->record;
        route_lost_add(r, hold->member, rec->stall->asked, rec->epoch, record_pool(rec), record_session(rec));
        hold_end(r, hold, (struct moment){call->stamp_ms, call->revision});
    }
    resp_ok(call->reply);
}

/* ---- ends ---- */

void route_lease_gone(struct route *r, uint64_t lease, uint64_t stamp_ms, uint64_t revision) {
    struct member *m = route_member_find(r, lease);
    if (m == NULL) return;
    const struct moment when = {stamp_ms, revision};
    must(!ks_lease_exists(r->ks, lease)); /* its own calls that waited get -NOLEASE, so it gets no new holds below */
    while (m->reports != NULL) {
        struct report *report = m->reports;
        DL_DELETE2(m->reports, report, member_prev, member_next);
        report->member_prev = NULL;
        report_end(r, report);
    }
    while (m->lost != NULL) lost_end(r, m, m->lost);
    while (m->stalled != NULL) hold_end(r, m->stalled, when);
    while (m->holds != NULL) hold_end(r, m->holds, when);
    must(m->hold_count == 0);
    HASH_DEL(r->members, m);
    give_back(r, m, MEMBER_BYTES);
}

void route_origin_gone(struct route *r, uint16_t node, uint64_t boot) {
    struct wait *w, *next;
    HASH_ITER(hh, r->waits, w, next) {
        if (w->origin.node != node || w->origin.boot != boot) continue;
        /* It may live and only be cut off: then it hears this one day.  What a MOVE asked for goes on. */
        ks_answer(
            r->ks, w->origin,
            w->handler == route_move
                ? slice_str("-UNCERTAIN the wait ended: the node lost contact with the leader; the move goes on\r\n")
                : slice_str("-CLUSTERDOWN the wait ended: the node lost contact with the leader\r\n"));
        wait_end(r, w);
    }
}

void route_dequeue(struct route *r, struct origin attachment) {
    const struct wait_key key = {attachment.node, attachment.boot, attachment.seq};
    struct wait *w;
    HASH_FIND(hh, r->waits, &key, sizeof key, w);
    if (w != NULL) wait_end(r, w);
}

void route_forget(struct route *r, uint64_t stamp_ms, uint32_t limit) {
    const uint64_t memory_ms = keyspace_settings(r->ks)->binding_memory_ms;
    for (uint32_t i = 0; i < limit && r->idle != NULL; i++) {
        if (stamp_ms - r->idle->touched_ms < memory_ms) break;
        record_forget(r, r->idle);
    }
    reports_prune(r, stamp_ms);
}

/* ---- questions ---- */

uint64_t route_holds(const struct route *r, uint64_t lease) {
    const struct member *m = route_member_find(r, lease);
    return m != NULL ? m->hold_count : 0;
}

uint64_t route_binding_count(const struct route *r) {
    return r->record_count;
}

uint64_t route_waiter_count(const struct route *r) {
    return HASH_COUNT(r->waits);
}

uint64_t route_memory_bytes(const struct route *r) {
    return r->memory_bytes;
}

void route_each_attachment(const struct route *r, void (*fn)(void *context, uint16_t node, uint64_t boot),
                           void *context) {
    for (const struct life *life = r->lives; life != NULL; life = life->next) fn(context, life->node, life->boot);
}

void route_each_wait(const struct route *r, uint16_t node, uint64_t boot, void (*fn)(void *context, uint64_t seq),
                     void *context) {
    for (const struct wait *w = r->waits; w != NULL; w = w->hh.next)
        if (w->origin.node == node && w->origin.boot == boot) fn(context, w->origin.seq);
}

bool route_joined(const struct route *r, uint64_t lease) {
    return route_member_find(r, lease) != NULL;
}

uint32_t route_revocations(const struct route *r, uint64_t lease, struct buf *reply, uint64_t *ret_serial) {
    const struct member *m = route_member_find(r, lease);
    uint32_t count = 0;
    if (m == NULL) return 0;
    for (const struct lost *lost = m->lost; lost != NULL; lost = lost->hh.next) {
        const char *pool = lost->key + 4;
        resp_bulk(reply, slice_of(pool, lost->pool_bytes));
        resp_bulk(reply, slice_of(pool + lost->pool_bytes, lost->key_bytes - 4 - lost->pool_bytes));
        resp_integer(reply, (int64_t)lost->epoch);
        if (lost->asked > *ret_serial) *ret_serial = lost->asked;
        count++;
    }
    for (const struct hold *hold = m->stalled; hold != NULL; hold = hold->member_next) {
        const struct record *rec = hold->record;
        resp_bulk(reply, record_pool(rec));
        resp_bulk(reply, record_session(rec));
        resp_integer(reply, (int64_t)rec->epoch);
        if (rec->stall->asked > *ret_serial) *ret_serial = rec->stall->asked;
        count++;
    }
    return count;
}

bool route_ack_pending(const struct route *r, uint64_t lease, uint64_t serial) {
    const struct member *m = route_member_find(r, lease);
    if (m == NULL) return false;
    for (const struct lost *lost = m->lost; lost != NULL; lost = lost->hh.next)
        if (lost->asked <= serial) return true;
    return m->stalled != NULL && m->stalled->record->stall->asked <= serial;
}

static void each_holder(const struct stall *stall, void (*fn)(void *context, uint64_t asked, uint64_t lease),
                        void *context) {
    for (const struct hold *hold = stall->record->holds; hold != NULL; hold = hold->next)
        fn(context, stall->asked, hold->member->lease);
}

void route_each_stall(const struct route *r, void (*fn)(void *context, uint64_t asked, uint64_t lease), void *context) {
    for (const struct stall *stall = r->stalls; stall != NULL; stall = stall->hh.next) each_holder(stall, fn, context);
}

void route_each_holder(const struct route *r, uint64_t asked, void (*fn)(void *context, uint64_t asked, uint64_t lease),
                       void *context) {
    const struct stall *stall;
    HASH_FIND(hh, r->stalls, &asked, sizeof asked, stall);
    if (stall != NULL) each_holder(stall, fn, context);
}

/* ---- the hash: what is in order is hashed in order ---- */

static void put_wait(struct buf *b, const struct wait *w) {
    wire_put_u64(b, w->stall->asked);
    wire_put_u16(b, w->origin.node);
    wire_put_u64(b, w->origin.boot);
    wire_put_u64(b, w->origin.seq);
    wire_put_u64(b, w->once.lease);
    wire_put_u64(b, w->once.seq);
    wire_put_u64(b, w->once.digest);
    wire_put_u8(b, w->mover);
    wire_put_u32(b, w->argc);
    for (uint32_t i = 0; i < w->argc; i++) wire_put_bytes(b, w->argv[i]);
}

static void put_record(struct buf *b, const struct record *rec) {
    wire_put_bytes(b, slice_of(rec->bytes, rec->key_bytes + rec->shard_bytes));
    wire_put_u32(b, rec->pool_bytes);
    wire_put_u8(b, rec->backend);
    wire_put_u64(b, rec->epoch);
    wire_put_u64(b, rec->touched_ms);
    wire_put_u32(b, rec->hold_count);
    for (const struct hold *hold = rec->holds; hold != NULL; hold = hold->next) {
        wire_put_u64(b, hold->member->lease);
        wire_put_u64(b, hold->given);
    }
    wire_put_u8(b, rec->stall != NULL);
    if (rec->stall == NULL) return;
    wire_put_u64(b, rec->stall->asked);
    wire_put_u8(b, rec->stall->target);
}

static uint64_t mix(struct buf *b, uint64_t hash) {
    hash = XXH3_64bits_withSeed(b->data, b->bytes, hash);
    buf_clear(b);
    return hash;
}

static uint64_t hash_records(const struct record *list, struct buf *b, uint64_t hash) {
    const struct record *rec;
    DL_FOREACH2(list, rec, list_next) {
        put_record(b, rec);
        hash = mix(b, hash);
    }
    return hash;
}

uint64_t route_hash(const struct route *r, uint64_t seed) {
    struct buf b = {.alloc = r->alloc};
    wire_put_u64(&b, r->holds_given);
    wire_put_u64(&b, r->record_count);
    uint64_t hash = mix(&b, seed);
    hash = hash_records(r->idle, &b, hash);
    hash = hash_records(r->busy, &b, hash);
    for (const struct member *m = r->members; m != NULL; m = m->hh.next) {
        wire_put_u64(&b, m->lease);
        for (const struct lost *lost = m->lost; lost != NULL; lost = lost->hh.next) {
            wire_put_u64(&b, lost->asked);
            wire_put_u64(&b, lost->epoch);
            wire_put_bytes(&b, slice_of(lost->key, lost->key_bytes));
        }
        hash = mix(&b, hash);
    }
    for (const struct wait *w = r->waits; w != NULL; w = w->hh.next) {
        put_wait(&b, w);
        hash = mix(&b, hash);
    }
    for (const struct life *life = r->lives; life != NULL; life = life->next) {
        wire_put_u16(&b, life->node);
        wire_put_u64(&b, life->boot);
        hash = mix(&b, hash);
    }
    for (const struct report *report = r->reports; report != NULL; report = report->age_next) {
        wire_put_bytes(&b, slice_of(report->suspect->key, report->suspect->key_bytes));
        wire_put_u64(&b, report->lease);
        wire_put_u64(&b, report->stamp_ms);
        hash = mix(&b, hash);
    }
    buf_release(&b);
    return hash;
}

/* ---- records ---- */

struct slice route_pair_key(struct route *r, struct slice a, struct slice b) {
    buf_clear(&r->key);
    wire_put_bytes(&r->key, a);
    buf_append_slice(&r->key, b);
    return buf_slice(&r->key);
}

static unsigned key_hash(const struct route *r, struct slice key) {
    return (unsigned)XXH3_64bits_withSeed(key.data, key.bytes, r->seed);
}

struct record *route_record_find(struct route *r, struct slice pool, struct slice session) {
    const struct slice key = route_pair_key(r, pool, session);
    const unsigned hash = key_hash(r, key);
    struct record *rec;
    HASH_FIND_BYHASHVALUE(hh, r->records[hash >> RECORD_TABLE_SHIFT], key.data, key.bytes, hash, rec);
    return rec;
}

struct record *route_record_add(struct route *r, struct slice pool, struct slice session, struct slice shard,
                                uint8_t shard_count) {
    const struct slice key = route_pair_key(r, pool, session);
    const size_t bytes = key.bytes + shard.bytes;
    struct record *rec = take(r, sizeof *rec + bytes, RECORD_BYTES + bytes);
    rec->key_bytes = (uint32_t)key.bytes;
    rec->pool_bytes = (uint32_t)pool.bytes;
    rec->shard_bytes = (uint32_t)shard.bytes;
    rec->shard_count = shard_count;
    memcpy(rec->bytes, key.data, key.bytes);
    memcpy(rec->bytes + key.bytes, shard.data, shard.bytes);
    const unsigned hash = key_hash(r, key);
    struct record **table = &r->records[hash >> RECORD_TABLE_SHIFT];
    HASH_ADD_KEYPTR_BYHASHVALUE(hh, *table, rec->bytes, rec->key_bytes, hash, rec);
    r->record_count++;
    return rec;
}

static bool shard_index(const struct record *rec, struct slice name, uint8_t *ret_index) {
    struct wire shard = wire_of(record_shard(rec));
    for (uint8_t i = 0; i < rec->shard_count; i++) {
        if (!slice_equal(wire_bytes(&shard), name)) continue;
        *ret_index = i;
        return true;
    }
    return false;
}

static void unlist(struct route *r, struct record *rec) {
    if (rec->list_prev == NULL) return; /* in no list yet */
    struct record **list = rec->idle ? &r->idle : &r->busy;
    DL_DELETE2(*list, rec, list_prev, list_next);
}

void route_record_settle(struct route *r, struct record *rec, uint64_t stamp_ms) {
    rec->touched_ms = stamp_ms;
    unlist(r, rec);
    rec->idle = rec->holds == NULL && rec->stall == NULL;
    struct record **list = rec->idle ? &r->idle : &r->busy;
    DL_APPEND2(*list, rec, list_prev, list_next);
}

static void record_forget(struct route *r, struct record *rec) {
    must(rec->holds == NULL && rec->stall == NULL);
    unlist(r, rec);
    HASH_DEL(r->records[rec->hh.hashv >> RECORD_TABLE_SHIFT], rec);
    r->record_count--;
    give_back(r, rec, RECORD_BYTES + (size_t)rec->key_bytes + rec->shard_bytes);
}

/* ---- members and holds ---- */

struct member *route_member_find(const struct route *r, uint64_t lease) {
    struct member *m;
    HASH_FIND(hh, r->members, &lease, sizeof lease, m);
    return m;
}

struct member *route_member_join(struct route *r, uint64_t lease) {
    struct member *m = route_member_find(r, lease);
    if (m != NULL) return m;
    m = take(r, sizeof *m, MEMBER_BYTES);
    m->lease = lease;
    HASH_ADD(hh, r->members, lease, sizeof m->lease, m);
    return m;
}

static struct hold *hold_find(const struct record *rec, const struct member *m) {
    for (struct hold *hold = rec->holds; hold != NULL; hold = hold->next)
        if (hold->member == m) return hold;
    return NULL;
}

static bool hold_give(struct route *r, struct ks_call *call, struct record *rec, struct member *m, bool paid) {
    must(rec->stall == NULL); /* V3 */
    if (hold_find(rec, m) != NULL) return true;
    if (!paid && rec->hold_count >= ROUTE_HOLDERS_MAX) {
        resp_error(call->reply, "BUSY %d leases hold the binding of that session, no more may", ROUTE_HOLDERS_MAX);
        return false;
    }
    if (!paid && !has_room(r, call, HOLD_BYTES)) return false;
    struct hold *hold = route_hold_add(r, rec, m);
    hold->given = ++r->holds_given;
    route_record_settle(r, rec, call->stamp_ms);
    return true;
}

struct hold *route_hold_add(struct route *r, struct record *rec, struct member *m) {
    struct hold *hold = take(r, sizeof *hold, HOLD_BYTES);
    hold->record = rec;
    hold->member = m;
    DL_APPEND(rec->holds, hold);
    rec->hold_count++;
    DL_APPEND2(m->holds, hold, member_prev, member_next);
    m->hold_count++;
    return hold;
}

static void hold_end(struct route *r, struct hold *hold, struct moment when) {
    struct record *rec = hold->record;
    struct member *m = hold->member;
    DL_DELETE(rec->holds, hold);
    rec->hold_count--;
    if (rec->stall != NULL) {
        DL_DELETE2(m->stalled, hold, member_prev, member_next);
    } else {
        DL_DELETE2(m->holds, hold, member_prev, member_next);
    }
    m->hold_count--;
    give_back(r, hold, HOLD_BYTES);
    route_record_settle(r, rec, when.stamp_ms);
    if (rec->stall != NULL && rec->holds == NULL) stall_end(r, rec->stall, when);
}

/* One per session and lease, the latest: a silent holder costs no more than it once held. */
void route_lost_add(struct route *r, struct member *m, uint64_t asked, uint64_t epoch, struct slice pool,
                    struct slice session) {
    const struct slice key = route_pair_key(r, pool, session);
    struct lost *lost;
    HASH_FIND(hh, m->lost, key.data, key.bytes, lost);
    if (lost != NULL) lost_end(r, m, lost);
    lost = take(r, sizeof *lost + key.bytes, LOST_BYTES + key.bytes);
    lost->asked = asked;
    lost->epoch = epoch;
    lost->key_bytes = (uint32_t)key.bytes;
    lost->pool_bytes = (uint32_t)pool.bytes;
    memcpy(lost->key, key.data, key.bytes);
    HASH_ADD_KEYPTR(hh, m->lost, lost->key, lost->key_bytes, lost);
}

static void lost_end(struct route *r, struct member *m, struct lost *lost) {
    HASH_DEL(m->lost, lost);
    give_back(r, lost, LOST_BYTES + (size_t)lost->key_bytes);
}

/* ---- moves ---- */

struct stall *route_stall_add(struct route *r, struct record *rec, uint64_t asked, uint8_t target) {
    struct stall *stall = take(r, sizeof *stall, STALL_BYTES);
    stall->asked = asked;
    stall->record = rec;
    stall->target = target;
    HASH_ADD(hh, r->stalls, asked, sizeof stall->asked, stall);
    for (struct hold *hold = rec->holds; hold != NULL; hold = hold->next) {
        DL_DELETE2(hold->member->holds, hold, member_prev, member_next);
        DL_APPEND2(hold->member->stalled, hold, member_prev, member_next);
    }
    rec->stall = stall;
    return stall;
}

/* call->queued tells whether the mover waits; else it was refused, and nothing stalls. */
static void stall_begin(struct route *r, struct ks_call *call, struct record *rec, uint8_t target) {
    if (!has_room(r, call, STALL_BYTES + LIFE_BYTES + route_wait_bytes(call->argc, call->argv))) return;
    struct stall *stall = route_stall_add(r, rec, call->revision, target);
    route_wait_add(r, stall, life_of(r, call->origin), call->origin, route_move, true, call->argc, call->argv)->once =
        call->once;
    call->queued = true;
}

/* Nobody holds the old binding (V2): the new one begins, and who waited runs again, in order. */
static void stall_end(struct route *r, struct stall *stall, struct moment when) {
    struct record *rec = stall->record;
    must(rec->holds == NULL && rec->stall == stall && when.revision > rec->epoch);
    rec->stall = NULL;
    rec->backend = stall->target;
    if (!BUG(91)) rec->epoch = when.revision;
    route_record_settle(r, rec, when.stamp_ms);
    HASH_DEL(r->stalls, stall);
    ks_fact(r->ks, &(struct ks_fact){.kind = KS_MOVE_DONE, .id = stall->asked});
    must(r->run == RUN_FIRST);
    while (stall->waits != NULL) {
        struct wait *w = stall->waits;
        struct buf reply = {.alloc = r->alloc};
        struct ks_call call = {.ks = r->ks,
                               .origin = w->origin,
                               .stamp_ms = when.stamp_ms,
                               .revision = when.revision,
                               .argc = w->argc,
                               .argv = w->argv,
                               .reply = &reply,
                               .once = w->once};
        r->run = w->mover ? RUN_MOVED : RUN_WAITED;
        w->handler(&call);
        r->run = RUN_FIRST;
        if (!call.queued)
            ks_once_answer(r->ks, w->once, w->origin, buf_slice(&reply)); /* else it waits for another session now */
        buf_release(&reply);
        wait_end(r, w);
    }
    give_back(r, stall, STALL_BYTES);
}

/* ---- waits ---- */

struct life *route_life_add(struct route *r, uint16_t node, uint64_t boot) {
    struct life *life = take(r, sizeof *life, LIFE_BYTES);
    life->node = node;
    life->boot = boot;
    DL_APPEND(r->lives, life);
    return life;
}

static struct life *life_of(struct route *r, struct origin origin) {
    struct life *life;
    DL_FOREACH(r->lives, life) {
        if (life->node == origin.node && life->boot == origin.boot) return life;
    }
    return route_life_add(r, origin.node, origin.boot);
}

size_t route_wait_bytes(uint32_t argc, const struct slice *argv) {
    size_t bytes = WAIT_BYTES + (size_t)argc * WAIT_WORD_BYTES;
    for (uint32_t i = 0; i < argc; i++) bytes += argv[i].bytes;
    return bytes;
}

struct wait *route_wait_add(struct route *r, struct stall *stall, struct life *life, struct origin origin,
                            ks_handler *handler, bool mover, uint32_t argc, const struct slice *argv) {
    struct wait *w;
    size_t bytes = sizeof *w + argc * sizeof w->argv[0];
    for (uint32_t i = 0; i < argc; i++) bytes += argv[i].bytes;
    const size_t counted = route_wait_bytes(argc, argv);
    w = take(r, bytes, counted);
    w->memory_bytes = counted;
    w->origin = origin;
    w->key = (struct wait_key){origin.node, origin.boot, origin.seq};
    w->handler = handler;
    w->mover = mover;
    w->stall = stall;
    w->argc = argc;
    char *at = (char *)(w->argv + w->argc);
    for (uint32_t i = 0; i < argc; i++) {
        if (argv[i].bytes > 0) memcpy(at, argv[i].data, argv[i].bytes);
        w->argv[i] = slice_of(at, argv[i].bytes);
        at += argv[i].bytes;
    }
    w->life = life;
    life->wait_count++;
    HASH_ADD(hh, r->waits, key, sizeof w->key, w);
    DL_APPEND(stall->waits, w);
    stall->wait_count++;
    return w;
}

/* False: refused, and the reply says why. */
static bool wait_add(struct route *r, struct ks_call *call, struct stall *stall, ks_handler *handler) {
    const uint64_t most = keyspace_settings(r->ks)->waiters_max;
    if (stall->wait_count >= most) {
        resp_error(call->reply, "BUSY waiters-max is reached: %llu calls wait for the move of that session",
                   (unsigned long long)most);
        return false;
    }
    if (!has_room(r, call, LIFE_BYTES + route_wait_bytes(call->argc, call->argv))) return false;
    route_wait_add(r, stall, life_of(r, call->origin), call->origin, handler, false, call->argc, call->argv)->once =
        call->once;
    return true;
}

static void wait_end(struct route *r, struct wait *w) {
    DL_DELETE(w->stall->waits, w);
    w->stall->wait_count--;
    if (--w->life->wait_count == 0) {
        DL_DELETE(r->lives, w->life);
        give_back(r, w->life, LIFE_BYTES);
    }
    HASH_DEL(r->waits, w);
    give_back(r, w, w->memory_bytes);
}

/* ---- suspicion ---- */

static struct suspect *suspect_find(struct route *r, struct slice pool, struct slice backend) {
    const struct slice key = route_pair_key(r, pool, backend);
    struct suspect *suspect;
    HASH_FIND(hh, r->suspects, key.data, key.bytes, suspect);
    return suspect;
}

struct suspect *route_report_add(struct route *r, struct slice pool, struct slice backend, struct member *m,
                                 uint64_t stamp_ms) {
    struct suspect *suspect = suspect_find(r, pool, backend);
    if (suspect == NULL) {
        const struct slice key = route_pair_key(r, pool, backend);
        suspect = take(r, sizeof *suspect + key.bytes, SUSPECT_BYTES + key.bytes);
        suspect->key_bytes = (uint32_t)key.bytes;
        suspect->pool_bytes = (uint32_t)pool.bytes;
        memcpy(suspect->key, key.data, key.bytes);
        HASH_ADD_KEYPTR(hh, r->suspects, suspect->key, suspect->key_bytes, suspect);
    }
    struct report *report = take(r, sizeof *report, REPORT_BYTES);
    report->lease = m->lease;
    report->suspect = suspect;
    report->stamp_ms = stamp_ms;
    HASH_ADD(hh, suspect->reports, lease, sizeof report->lease, report);
    DL_APPEND2(m->reports, report, member_prev, member_next);
    DL_APPEND2(r->reports, report, age_prev, age_next);
    return suspect;
}

bool route_has_report(struct route *r, struct slice pool, struct slice backend, uint64_t lease) {
    const struct suspect *suspect = suspect_find(r, pool, backend);
    struct report *report = NULL;
    if (suspect != NULL) HASH_FIND(hh, suspect->reports, &lease, sizeof lease, report);
    return report != NULL;
}

static void report_end(struct route *r, struct report *report) {
    struct suspect *suspect = report->suspect;
    if (report->member_prev != NULL) {
        struct member *m = route_member_find(r, report->lease);
        DL_DELETE2(m->reports, report, member_prev, member_next);
    }
    DL_DELETE2(r->reports, report, age_prev, age_next);
    HASH_DEL(suspect->reports, report);
    give_back(r, report, REPORT_BYTES);
    if (suspect->reports != NULL) return;
    HASH_DEL(r->suspects, suspect);
    give_back(r, suspect, SUSPECT_BYTES + (size_t)suspect->key_bytes);
}

/* Each counts for the window, and only those that count are kept; who reported is a member, so its lease lives. */
static void reports_prune(struct route *r, uint64_t stamp_ms) {
    const uint64_t window = keyspace_settings(r->ks)->suspect_window_ms;
    while (r->reports != NULL && stamp_ms - r->reports->stamp_ms >= window) report_end(r, r->reports);
}
