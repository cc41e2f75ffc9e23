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
#include <xxhash.h>
/* Hash tables take memory and seed from the route at hand: every function below calls it `r`.  Their order is that of
 * arrival whatever the seed, so it may differ from node to node, and does: users choose session names. */
#define uthash_malloc(bytes)                  alloc_get(r->alloc, (bytes))
#define uthash_free(memory, bytes)            alloc_put(r->alloc, (memory))
#define uthash_fatal(text)                    must_fail(__FILE__, __LINE__, (text))
#define HASH_FUNCTION(key, bytes, ret_result) (ret_result) = (unsigned)XXH3_64bits_withSeed((key), (bytes), r->seed)
#include "lockd/core/route.h"
#include "common/wire.h"
#include "lockd/core/ks_state.h"
#include <utlist.h>

struct hold {
    struct record *record;
    struct member *member;
    struct hold *prev, *next; /* of the record */
    struct hold *member_prev,
        *member_next; /* of the member: in `stalled` while the record has a stall, else in `holds` */
};

struct record {
    UT_hash_handle hh;
    uint64_t epoch;
    uint64_t touched_ms;
    struct hold *holds;
    struct stall *stall;
    struct record *idle_prev, *idle_next;
    uint32_t hold_count;
    uint32_t key_bytes, pool_bytes, shard_bytes;
    uint8_t backend, shard_count; /* index in the shard; members */
    bool idle;
    char bytes[]; /* key (see pair_key), then the shard: wire_put_bytes of each member */
};

struct report {
    UT_hash_handle hh;
    uint64_t lease;
    uint64_t stamp_ms;
    struct suspect *suspect;
    struct report *member_prev, *member_next;
    struct report *age_prev, *age_next;
};

struct suspect {
    UT_hash_handle hh;
    struct report *reports; /* by lease */
    uint32_t key_bytes;
    char key[]; /* pair_key of pool and backend */
};

struct member {
    UT_hash_handle hh;
    uint64_t lease;
    uint64_t hold_count;
    struct hold *holds;
    struct hold *stalled; /* in order of the moves that want them back */
    struct lost *lost;    /* by pair_key; in order of the moves */
    struct report *reports;
};

/* A hold that ended without its holder's word, because its limit had passed: named until it is acknowledged. */
struct lost {
    UT_hash_handle hh;
    uint64_t asked, epoch;
    uint32_t key_bytes, pool_bytes;
    char key[]; /* pair_key of pool and session */
};

/* One life of a node that has waiters attached. */
struct life {
    uint16_t node;
    uint64_t boot;
    uint64_t wait_count;
    struct life *prev, *next;
};

struct wait_key {
    uint64_t node, boot, seq;
};

struct wait {
    UT_hash_handle hh;
    struct wait_key key;
    struct origin origin;
    struct stall *stall;
    struct life *life;
    struct wait *prev, *next;
    ks_handler *handler;
    bool mover;
    size_t memory_bytes;
    uint32_t argc;
    struct slice argv[]; /* and the bytes they point to */
};

struct stall {
    UT_hash_handle hh; /* by asked; order of arrival = order of asked */
    uint64_t asked;    /* revision of the MOVE */
    struct record *record;
    uint8_t target;
    uint32_t wait_count;
    struct wait *waits;
};

enum { RECORD_TABLES = 1024, RECORD_TABLE_SHIFT = 22 };

enum run { RUN_FIRST, RUN_WAITED, RUN_MOVED /* the call whose move is done now */ };

struct route {
    struct keyspace *ks;
    const struct alloc *alloc;
    uint64_t seed;
    uint64_t memory_bytes; /* of everything below but the tables themselves */
    struct record
        *records[RECORD_TABLES]; /* by the high bits of the hash: no table is so large that doubling it is felt */
    uint64_t record_count;
    struct record *idle; /* oldest first */
    struct member *members;
    struct stall *stalls;
    struct wait *waits;
    struct life *lives;
    struct suspect *suspects;
    struct report *reports; /* oldest first */
    struct buf key;         /* scratch: a table key */
    struct buf shard;       /* scratch: the shard that a BIND names */
    enum run run;
};

/* When something ends, and by which command. */
struct moment {
    uint64_t stamp_ms, revision;
};

static struct slice pair_key(struct route *r, struct slice a, struct slice b);
static unsigned key_hash(const struct route *r, struct slice key);
static struct record *record_find(struct route *r, struct slice pool, struct slice session);
static struct slice record_shard(const struct record *rec);
static bool shard_index(const struct record *rec, struct slice name, uint8_t *ret_index);
static void record_settle(struct route *r, struct record *rec, uint64_t stamp_ms);
static void record_forget(struct route *r, struct record *rec);
static struct member *member_find(const struct route *r, uint64_t lease);
static struct member *member_join(struct route *r, uint64_t lease);
static struct hold *hold_find(const struct record *rec, const struct member *m);
static bool hold_give(struct route *r, struct ks_call *call, struct record *rec, struct member *m, bool paid);
static void hold_end(struct route *r, struct hold *hold, struct moment when);
static void lost_add(struct route *r, const struct hold *hold);
static void lost_end(struct route *r, struct member *m, struct lost *lost);
static void stall_begin(struct route *r, struct ks_call *call, struct record *rec, uint8_t target);
static void stall_end(struct route *r, struct stall *stall, struct moment when);
static bool wait_add(struct route *r, struct ks_call *call, struct stall *stall, ks_handler *handler, bool mover);
static void wait_end(struct route *r, struct wait *w);
static void report_end(struct route *r, struct report *report);
static void reports_prune(struct route *r, uint64_t stamp_ms);
static struct suspect *suspect_find(struct route *r, struct slice pool, struct slice backend);

/* ---- memory ---- */

static void *take(struct route *r, size_t bytes) {
    r->memory_bytes += bytes;
    return alloc_get0(r->alloc, bytes);
}

static void give_back(struct route *r, void *memory, size_t bytes) {
    must(r->memory_bytes >= bytes);
    r->memory_bytes -= bytes;
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
    if (r == NULL) return;
    while (r->waits != NULL) wait_end(r, r->waits);
    while (r->reports != NULL) report_end(r, r->reports);
    while (r->stalls != NULL) {
        struct stall *stall = r->stalls;
        stall->record->stall = NULL;
        HASH_DEL(r->stalls, stall);
        give_back(r, stall, sizeof *stall);
    }
    for (int i = 0; i < RECORD_TABLES; i++)
        while (r->records[i] != NULL) {
            struct record *rec = r->records[i];
            while (rec->holds != NULL) {
                struct hold *hold = rec->holds;
                DL_DELETE(rec->holds, hold);
                give_back(r, hold, sizeof *hold);
            }
            record_forget(r, rec);
        }
    while (r->members != NULL) {
        struct member *m = r->members;
        while (m->lost != NULL) lost_end(r, m, m->lost);
        HASH_DEL(r->members, m);
        give_back(r, m, sizeof *m);
    }
    must(r->memory_bytes == 0 && r->lives == NULL && r->suspects == NULL);
    buf_release(&r->key);
    buf_release(&r->shard);
    alloc_put(r->alloc, r);
}

/* ---- arguments: each appends the error and returns false ---- */

/* Scripts run on a copy of the keyspace that has no bindings. */
static struct route *route_of(struct ks_call *call) {
    struct route *r = keyspace_route(call->ks);
    if (r == NULL || call->in_script) {
        resp_error(call->reply, "ERR ROUTE commands are not allowed in scripts");
        return NULL;
    }
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
    if (wait_add(r, call, rec->stall, handler, false)) call->queued = true;
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
    const struct slice key = pair_key(r, pool, session);
    struct record *rec;
    const size_t bytes = sizeof *rec + key.bytes + shard.bytes;
    const uint64_t most = keyspace_settings(r->ks)->bindings_max;
    if (r->record_count >= most) {
        resp_error(call->reply, "BUSY bindings-max is reached: %llu sessions are recorded", (unsigned long long)most);
        return NULL;
    }
    if (!has_room(r, call, bytes + sizeof(struct hold))) return NULL;
    rec = take(r, bytes);
    rec->epoch = call->revision;
    rec->touched_ms = call->stamp_ms;
    rec->key_bytes = (uint32_t)key.bytes;
    rec->pool_bytes = (uint32_t)pool.bytes;
    rec->shard_bytes = (uint32_t)shard.bytes;
    rec->shard_count = (uint8_t)(call->argc - 7);
    rec->backend = first;
    memcpy(rec->bytes, key.data, key.bytes);
    memcpy(rec->bytes + key.bytes, shard.data, shard.bytes);
    const unsigned hash = key_hash(r, key);
    struct record **table = &r->records[hash >> RECORD_TABLE_SHIFT];
    HASH_ADD_KEYPTR_BYHASHVALUE(hh, *table, rec->bytes, rec->key_bytes, hash, rec);
    r->record_count++;
    record_settle(r, rec, call->stamp_ms);
    return rec;
}

void route_bind(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, session, shard;
    uint64_t lease;
    uint8_t first;
    if (r == NULL || !arg_name(call, 1, "pool", &pool) || !arg_name(call, 2, "session", &session) ||
        !ks_arg_lease(call, 3, &lease) || !arg_shard(r, call, &shard, &first))
        return;
    struct member *m = member_join(r, lease);
    struct record *rec = record_find(r, pool, session);
    if (waits_for(r, call, rec, route_bind)) return;
    const bool new = rec == NULL;
    if (new) rec = record_make(r, call, pool, session, shard, first);
    if (rec != NULL) hand_out(r, call, rec, m, new, new);
}

void route_get(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, session;
    uint64_t lease;
    if (r == NULL || !arg_name(call, 1, "pool", &pool) || !arg_name(call, 2, "session", &session) ||
        !ks_arg_lease(call, 3, &lease))
        return;
    struct member *m = member_join(r, lease);
    struct record *rec = record_find(r, pool, session);
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
    const struct slice pool = slice_of(rec->bytes + 4, rec->pool_bytes);
    reports_prune(r, stamp_ms);
    const struct suspect *suspect = suspect_find(r, pool, backend);
    return suspect != NULL && 2 * HASH_COUNT(suspect->reports) > HASH_COUNT(r->members);
}

void route_move(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, session, target;
    uint64_t epoch, lease;
    if (r == NULL || !arg_name(call, 1, "pool", &pool) || !arg_name(call, 2, "session", &session) ||
        !ks_arg_u64(call, 3, "epoch", 0, UINT64_MAX, &epoch) || !ks_arg_lease(call, 4, &lease) ||
        !arg_name(call, 6, "target", &target))
        return;
    const bool force = call->argc > 7;
    if (call->argc > 8 || (force && !slice_is_word(call->argv[7], "FORCE"))) {
        resp_error(call->reply, "ERR syntax error, only FORCE may follow the target");
        return;
    }
    struct member *m = member_join(r, lease);
    struct record *rec = record_find(r, pool, session);
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
    if (rec->hold_count > (own != NULL)) { /* somebody else holds it: the move stalls */
        stall_begin(r, call, rec, index);
        if (!call->queued) return;
        if (own != NULL) hold_end(r, own, when);
        ks_fact(r->ks, &(struct ks_fact){.kind = KS_MOVE_ASKED, .id = call->revision});
        return;
    }
    if (own == NULL && !has_room(r, call, sizeof *own)) return;
    rec->backend = index;
    rec->epoch = call->revision;
    hand_out(r, call, rec, m, true, true);
}

void route_drop(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, session;
    uint64_t epoch, lease;
    if (r == NULL || !arg_name(call, 1, "pool", &pool) || !arg_name(call, 2, "session", &session) ||
        !ks_arg_u64(call, 3, "epoch", 0, UINT64_MAX, &epoch) || !ks_arg_lease(call, 4, &lease))
        return;
    const struct record *rec = record_find(r, pool, session);
    const struct member *m = member_find(r, lease);
    struct hold *own = rec != NULL && m != NULL && rec->epoch == epoch ? hold_find(rec, m) : NULL;
    resp_integer(call->reply, own != NULL);
    if (own != NULL) hold_end(r, own, (struct moment){call->stamp_ms, call->revision});
}

void route_touch(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, session;
    uint64_t lease;
    const uint32_t from = 4;
    if (r == NULL || !arg_name(call, 1, "pool", &pool) || !ks_arg_lease(call, 2, &lease)) return;
    for (uint32_t i = from; i < call->argc; i++)
        if (!arg_name(call, i, "session", &session)) return;
    for (uint32_t i = from; i < call->argc; i++)
        if (waits_for(r, call, record_find(r, pool, call->argv[i]), route_touch)) return;
    resp_array(call->reply, call->argc - from);
    for (uint32_t i = from; i < call->argc; i++) {
        struct record *rec = record_find(r, pool, call->argv[i]);
        if (rec != NULL) record_settle(r, rec, call->stamp_ms);
        resp_integer(call->reply, rec != NULL ? (int64_t)rec->epoch : 0);
    }
}

void route_suspect(struct ks_call *call) {
    struct route *r = route_of(call);
    struct slice pool, backend;
    uint64_t epoch, lease;
    if (r == NULL || !arg_name(call, 1, "pool", &pool) || !arg_name(call, 2, "backend", &backend) ||
        !ks_arg_u64(call, 3, "epoch", 0, UINT64_MAX, &epoch) || !ks_arg_lease(call, 4, &lease))
        return;
    if (epoch != 0) {
        resp_error(call->reply, "ERR epoch is not that of the backend: a static backend has epoch 0");
        return;
    }
    reports_prune(r, call->stamp_ms);
    struct member *m = member_join(r, lease);
    struct suspect *suspect = suspect_find(r, pool, backend);
    if (suspect == NULL) {
        const struct slice key = pair_key(r, pool, backend);
        const size_t bytes = sizeof *suspect + key.bytes;
        if (!has_room(r, call, bytes + sizeof(struct report))) return;
        suspect = take(r, bytes);
        suspect->key_bytes = (uint32_t)key.bytes;
        memcpy(suspect->key, key.data, key.bytes);
        HASH_ADD_KEYPTR(hh, r->suspects, suspect->key, suspect->key_bytes, suspect);
    }
    struct report *report;
    HASH_FIND(hh, suspect->reports, &lease, sizeof lease, report);
    if (report == NULL) {
        if (!has_room(r, call, sizeof *report)) return; /* not for a new suspect, which has room for both */
        report = take(r, sizeof *report);
        report->lease = lease;
        report->suspect = suspect;
        HASH_ADD(hh, suspect->reports, lease, sizeof report->lease, report);
        DL_APPEND2(m->reports, report, member_prev, member_next);
    } else {
        DL_DELETE2(r->reports, report, age_prev, age_next);
    }
    report->stamp_ms = call->stamp_ms;
    DL_APPEND2(r->reports, report, age_prev, age_next);
    resp_array(call->reply, 2);
    resp_integer(call->reply, (int64_t)HASH_COUNT(suspect->reports));
    resp_integer(call->reply, (int64_t)HASH_COUNT(r->members));
}

/* ---- commands of the leader ---- */

void route_join(struct ks_call *call) {
    struct route *r = route_of(call);
    uint64_t lease;
    if (r == NULL || !ks_arg_u64(call, 1, "lease", 0, UINT64_MAX, &lease)) return;
    if (ks_lease_exists(r->ks, lease)) member_join(r, lease); /* it may have ended since that was proposed */
    resp_ok(call->reply);
}

void route_ack(struct ks_call *call) {
    struct route *r = route_of(call);
    uint64_t lease, serial;
    if (r == NULL || !ks_arg_u64(call, 1, "lease", 0, UINT64_MAX, &lease) ||
        !ks_arg_u64(call, 2, "serial", 0, UINT64_MAX, &serial))
        return;
    struct member *m = member_find(r, lease);
    if (m != NULL) {
        struct lost *lost, *next;
        HASH_ITER(hh, m->lost, lost, next) {
            if (lost->asked <= serial) lost_end(r, m, lost);
        }
        while (m->stalled != NULL && m->stalled->record->stall->asked <= serial)
            hold_end(r, m->stalled, (struct moment){call->stamp_ms, call->revision});
    }
    resp_ok(call->reply);
}

void route_passed(struct ks_call *call) {
    struct route *r = route_of(call);
    uint64_t asked, lease;
    if (r == NULL) return;
    for (uint32_t i = 1; i + 1 < call->argc; i += 2) {
        if (!ks_arg_u64(call, i, "asked", 0, UINT64_MAX, &asked) ||
            !ks_arg_u64(call, i + 1, "lease", 0, UINT64_MAX, &lease))
            return;
        struct stall *stall;
        HASH_FIND(hh, r->stalls, &asked, sizeof asked, stall);
        const struct member *m = member_find(r, lease);
        struct hold *hold = stall != NULL && m != NULL ? hold_find(stall->record, m) : NULL;
        if (hold == NULL) continue;
        lost_add(r, hold);
        hold_end(r, hold, (struct moment){call->stamp_ms, call->revision});
    }
    resp_ok(call->reply);
}

/* ---- ends ---- */

void route_lease_gone(struct route *r, uint64_t lease, uint64_t stamp_ms, uint64_t revision) {
    struct member *m = member_find(r, lease);
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
    give_back(r, m, sizeof *m);
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
    const struct member *m = member_find(r, lease);
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

bool route_joined(const struct route *r, uint64_t lease) {
    return member_find(r, lease) != NULL;
}

uint32_t route_revocations(const struct route *r, uint64_t lease, struct buf *reply, uint64_t *ret_serial) {
    const struct member *m = member_find(r, lease);
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
        const char *pool = rec->bytes + 4;
        resp_bulk(reply, slice_of(pool, rec->pool_bytes));
        resp_bulk(reply, slice_of(pool + rec->pool_bytes, rec->key_bytes - 4 - rec->pool_bytes));
        resp_integer(reply, (int64_t)rec->epoch);
        if (rec->stall->asked > *ret_serial) *ret_serial = rec->stall->asked;
        count++;
    }
    return count;
}

bool route_ack_pending(const struct route *r, uint64_t lease, uint64_t serial) {
    const struct member *m = member_find(r, lease);
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

/* The parts of a table are added up, so their order does not count; what is ordered is written in order. */
static uint64_t hash_record(const struct record *rec, struct buf *b, uint64_t seed) {
    uint64_t holders = 0;
    for (const struct hold *hold = rec->holds; hold != NULL; hold = hold->next)
        holders += XXH3_64bits_withSeed(&hold->member->lease, sizeof hold->member->lease, seed);
    buf_clear(b);
    wire_put_bytes(b, slice_of(rec->bytes, rec->key_bytes + rec->shard_bytes));
    wire_put_u8(b, rec->backend);
    wire_put_u64(b, rec->epoch);
    wire_put_u64(b, rec->touched_ms);
    wire_put_u64(b, holders);
    wire_put_u8(b, rec->stall != NULL);
    if (rec->stall != NULL) {
        wire_put_u64(b, rec->stall->asked);
        wire_put_u8(b, rec->stall->target);
        wire_put_u32(b, rec->stall->wait_count);
        for (const struct wait *w = rec->stall->waits; w != NULL; w = w->next) {
            wire_put_u16(b, w->origin.node);
            wire_put_u64(b, w->origin.boot);
            wire_put_u64(b, w->origin.seq);
            wire_put_u8(b, w->mover);
            wire_put_u32(b, w->argc);
            for (uint32_t i = 0; i < w->argc; i++) wire_put_bytes(b, w->argv[i]);
        }
    }
    return XXH3_64bits_withSeed(b->data, b->bytes, seed);
}

uint64_t route_hash(const struct route *r, uint64_t seed) {
    struct buf b = {.alloc = r->alloc};
    uint64_t records = 0, members = 0, reports = 0;
    for (int i = 0; i < RECORD_TABLES; i++)
        for (const struct record *rec = r->records[i]; rec != NULL; rec = rec->hh.next)
            records += hash_record(rec, &b, seed);
    for (const struct member *m = r->members; m != NULL; m = m->hh.next) {
        buf_clear(&b);
        wire_put_u64(&b, m->lease);
        for (const struct lost *lost = m->lost; lost != NULL; lost = lost->hh.next) {
            wire_put_u64(&b, lost->asked);
            wire_put_u64(&b, lost->epoch);
            wire_put_bytes(&b, slice_of(lost->key, lost->key_bytes));
        }
        members += XXH3_64bits_withSeed(b.data, b.bytes, seed);
    }
    for (const struct report *report = r->reports; report != NULL; report = report->age_next) {
        buf_clear(&b);
        wire_put_bytes(&b, slice_of(report->suspect->key, report->suspect->key_bytes));
        wire_put_u64(&b, report->lease);
        wire_put_u64(&b, report->stamp_ms);
        reports += XXH3_64bits_withSeed(b.data, b.bytes, seed);
    }
    buf_release(&b);
    const uint64_t parts[] = {records, members, reports};
    return XXH3_64bits_withSeed(parts, sizeof parts, seed);
}

/* ---- records ---- */

/* Two names as one key, unambiguous; valid until the next call. */
static struct slice pair_key(struct route *r, struct slice a, struct slice b) {
    buf_clear(&r->key);
    wire_put_bytes(&r->key, a);
    buf_append_slice(&r->key, b);
    return buf_slice(&r->key);
}

static unsigned key_hash(const struct route *r, struct slice key) {
    return (unsigned)XXH3_64bits_withSeed(key.data, key.bytes, r->seed);
}

static struct record *record_find(struct route *r, struct slice pool, struct slice session) {
    const struct slice key = pair_key(r, pool, session);
    const unsigned hash = key_hash(r, key);
    struct record *rec;
    HASH_FIND_BYHASHVALUE(hh, r->records[hash >> RECORD_TABLE_SHIFT], key.data, key.bytes, hash, rec);
    return rec;
}

static struct slice record_shard(const struct record *rec) {
    return slice_of(rec->bytes + rec->key_bytes, rec->shard_bytes);
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

/* The record was used, or a hold of it ended: its memory counts from now (V6). */
static void record_settle(struct route *r, struct record *rec, uint64_t stamp_ms) {
    rec->touched_ms = stamp_ms;
    if (rec->idle) DL_DELETE2(r->idle, rec, idle_prev, idle_next);
    rec->idle = rec->holds == NULL && rec->stall == NULL;
    if (rec->idle) DL_APPEND2(r->idle, rec, idle_prev, idle_next);
}

static void record_forget(struct route *r, struct record *rec) {
    must(rec->holds == NULL && rec->stall == NULL);
    if (rec->idle) DL_DELETE2(r->idle, rec, idle_prev, idle_next);
    HASH_DEL(r->records[rec->hh.hashv >> RECORD_TABLE_SHIFT], rec);
    r->record_count--;
    give_back(r, rec, sizeof *rec + rec->key_bytes + rec->shard_bytes);
}

/* ---- members and holds ---- */

static struct member *member_find(const struct route *r, uint64_t lease) {
    struct member *m;
    HASH_FIND(hh, r->members, &lease, sizeof lease, m);
    return m;
}

/* The lease is alive: leases-max limits how many members there are. */
static struct member *member_join(struct route *r, uint64_t lease) {
    struct member *m = member_find(r, lease);
    if (m != NULL) return m;
    m = take(r, sizeof *m);
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
    if (!paid && !has_room(r, call, sizeof(struct hold))) return false;
    struct hold *hold = take(r, sizeof *hold);
    hold->record = rec;
    hold->member = m;
    DL_APPEND(rec->holds, hold);
    rec->hold_count++;
    DL_APPEND2(m->holds, hold, member_prev, member_next);
    m->hold_count++;
    record_settle(r, rec, call->stamp_ms);
    return true;
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
    give_back(r, hold, sizeof *hold);
    record_settle(r, rec, when.stamp_ms);
    if (rec->stall != NULL && rec->holds == NULL) stall_end(r, rec->stall, when);
}

/* One per session and lease, the latest: a silent holder costs no more than it once held. */
static void lost_add(struct route *r, const struct hold *hold) {
    const struct record *rec = hold->record;
    struct member *m = hold->member;
    struct lost *lost;
    HASH_FIND(hh, m->lost, rec->bytes, rec->key_bytes, lost);
    if (lost != NULL) lost_end(r, m, lost);
    lost = take(r, sizeof *lost + rec->key_bytes);
    lost->asked = rec->stall->asked;
    lost->epoch = rec->epoch;
    lost->key_bytes = rec->key_bytes;
    lost->pool_bytes = rec->pool_bytes;
    memcpy(lost->key, rec->bytes, rec->key_bytes);
    HASH_ADD_KEYPTR(hh, m->lost, lost->key, lost->key_bytes, lost);
}

static void lost_end(struct route *r, struct member *m, struct lost *lost) {
    HASH_DEL(m->lost, lost);
    give_back(r, lost, sizeof *lost + lost->key_bytes);
}

/* ---- moves ---- */

/* Holds are wanted back from now on.  call->queued tells whether the mover waits; else it was refused. */
static void stall_begin(struct route *r, struct ks_call *call, struct record *rec, uint8_t target) {
    struct stall *stall;
    if (!has_room(r, call, sizeof *stall)) return;
    stall = take(r, sizeof *stall);
    stall->asked = call->revision;
    stall->record = rec;
    stall->target = target;
    if (!wait_add(r, call, stall, route_move, true)) {
        give_back(r, stall, sizeof *stall);
        return;
    }
    HASH_ADD(hh, r->stalls, asked, sizeof stall->asked, stall);
    for (struct hold *hold = rec->holds; hold != NULL; hold = hold->next) {
        DL_DELETE2(hold->member->holds, hold, member_prev, member_next);
        DL_APPEND2(hold->member->stalled, hold, member_prev, member_next);
    }
    rec->stall = stall;
    call->queued = true;
}

/* Nobody holds the old binding (V2): the new one begins, and who waited runs again, in order. */
static void stall_end(struct route *r, struct stall *stall, struct moment when) {
    struct record *rec = stall->record;
    must(rec->holds == NULL && rec->stall == stall && when.revision > rec->epoch);
    rec->stall = NULL;
    rec->backend = stall->target;
    rec->epoch = when.revision;
    record_settle(r, rec, when.stamp_ms);
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
                               .reply = &reply};
        r->run = w->mover ? RUN_MOVED : RUN_WAITED;
        w->handler(&call);
        r->run = RUN_FIRST;
        if (!call.queued) ks_answer(r->ks, w->origin, buf_slice(&reply)); /* else it waits for another session now */
        buf_release(&reply);
        wait_end(r, w);
    }
    give_back(r, stall, sizeof *stall);
}

/* ---- waits ---- */

static struct life *life_of(struct route *r, struct origin origin) {
    struct life *life;
    DL_FOREACH(r->lives, life) {
        if (life->node == origin.node && life->boot == origin.boot) return life;
    }
    life = take(r, sizeof *life);
    life->node = origin.node;
    life->boot = origin.boot;
    DL_APPEND(r->lives, life);
    return life;
}

/* False: refused, and the reply says why. */
static bool wait_add(struct route *r, struct ks_call *call, struct stall *stall, ks_handler *handler, bool mover) {
    const uint64_t most = keyspace_settings(r->ks)->waiters_max;
    struct wait *w;
    size_t bytes = sizeof *w + call->argc * sizeof w->argv[0];
    for (uint32_t i = 0; i < call->argc; i++) bytes += call->argv[i].bytes;
    if (stall->wait_count >= most) {
        resp_error(call->reply, "BUSY waiters-max is reached: %llu calls wait for the move of that session",
                   (unsigned long long)most);
        return false;
    }
    if (!has_room(r, call, bytes)) return false;
    w = take(r, bytes);
    w->memory_bytes = bytes;
    w->origin = call->origin;
    w->key = (struct wait_key){call->origin.node, call->origin.boot, call->origin.seq};
    w->handler = handler;
    w->mover = mover;
    w->stall = stall;
    w->argc = call->argc;
    char *at = (char *)(w->argv + w->argc);
    for (uint32_t i = 0; i < w->argc; i++) {
        if (call->argv[i].bytes > 0) memcpy(at, call->argv[i].data, call->argv[i].bytes);
        w->argv[i] = slice_of(at, call->argv[i].bytes);
        at += call->argv[i].bytes;
    }
    w->life = life_of(r, call->origin);
    w->life->wait_count++;
    HASH_ADD(hh, r->waits, key, sizeof w->key, w);
    DL_APPEND(stall->waits, w);
    stall->wait_count++;
    return true;
}

static void wait_end(struct route *r, struct wait *w) {
    DL_DELETE(w->stall->waits, w);
    w->stall->wait_count--;
    if (--w->life->wait_count == 0) {
        DL_DELETE(r->lives, w->life);
        give_back(r, w->life, sizeof *w->life);
    }
    HASH_DEL(r->waits, w);
    give_back(r, w, w->memory_bytes);
}

/* ---- suspicion ---- */

static struct suspect *suspect_find(struct route *r, struct slice pool, struct slice backend) {
    const struct slice key = pair_key(r, pool, backend);
    struct suspect *suspect;
    HASH_FIND(hh, r->suspects, key.data, key.bytes, suspect);
    return suspect;
}

static void report_end(struct route *r, struct report *report) {
    struct suspect *suspect = report->suspect;
    if (report->member_prev != NULL) {
        struct member *m = member_find(r, report->lease);
        DL_DELETE2(m->reports, report, member_prev, member_next);
    }
    DL_DELETE2(r->reports, report, age_prev, age_next);
    HASH_DEL(suspect->reports, report);
    give_back(r, report, sizeof *report);
    if (suspect->reports != NULL) return;
    HASH_DEL(r->suspects, suspect);
    give_back(r, suspect, sizeof *suspect + suspect->key_bytes);
}

/* Each counts for the window, and only those that count are kept; who reported is a member, so its lease lives. */
static void reports_prune(struct route *r, uint64_t stamp_ms) {
    const uint64_t window = keyspace_settings(r->ks)->suspect_window_ms;
    while (r->reports != NULL && stamp_ms - r->reports->stamp_ms >= window) report_end(r, r->reports);
}
