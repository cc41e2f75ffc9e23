/* keyspace.c - how batches become replies and facts: the log's position, dispatch, facts.  What the commands do is in
 * ks_*.c, route.c and script.c; the memory they share in ks_state.h. */
#include "lockd/core/keyspace.h"
#include "lockd/core/bug.h"
#include "lockd/core/ks_state.h"
#include <xxhash.h>

enum { NAME_SHARDS = 1024, FORGET_PER_BATCH = 1000 };

/* ---- settings ---- */

struct setting {
    const char *name;
    size_t offset;
    uint64_t value, low, high;
};
static const struct setting settings[] = {
#define SETTING(name, value, low, high, unit, text) {#name, offsetof(struct ks_settings, name), value, low, high},
    KEYSPACE_SETTINGS(SETTING)
#undef SETTING
};
enum { SETTING_COUNT = sizeof settings / sizeof settings[0] };

static uint64_t *setting_at(struct ks_settings *s, const struct setting *setting) {
    return (uint64_t *)(void *)((char *)s + setting->offset);
}

void ks_settings_default(struct ks_settings *s) {
    for (size_t i = 0; i < SETTING_COUNT; i++) *setting_at(s, &settings[i]) = settings[i].value;
}

/* The first ones count for ever: two leaders may each have found a cluster without. */
static void x_settings(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    resp_ok(call->reply);
    if (ks->has_settings) return;
    for (uint32_t i = 1; i + 1 < call->argc; i += 2) {
        for (size_t k = 0; k < SETTING_COUNT; k++) {
            uint64_t value;
            if (!slice_equal(call->argv[i], slice_str(settings[k].name)) || !slice_to_u64(call->argv[i + 1], &value))
                continue;
            if (value < settings[k].low) value = settings[k].low;
            if (value > settings[k].high) value = settings[k].high;
            *setting_at(&ks->settings, &settings[k]) = value;
        }
    }
    ks->has_settings = true;
}

/* ---- life ---- */

struct keyspace *keyspace_new(const struct ks_config *config) {
    struct keyspace *ks = alloc_get0(config->alloc, sizeof *ks);
    ks->config = *config;
    ks->replies.alloc = ks->call_reply.alloc = ks->answer.alloc = config->alloc;
    ks_settings_default(&ks->settings);
    ks_names_init(ks, NAME_SHARDS);
    ks->argv = alloc_get(config->alloc, BATCH_ARGC_MAX * sizeof ks->argv[0]);
    ks->route = route_new(ks);
    return ks;
}

void keyspace_free(struct keyspace *ks) {
    if (ks == NULL) return;
    const struct alloc *alloc = ks->config.alloc;
    route_free(ks->route);
    ks_names_free(ks);
    ks_leases_free(ks);
    ks_scripts_free(ks);
    alloc_put(alloc, ks->argv);
    alloc_put(alloc, ks->facts);
    alloc_put(alloc, ks->fact_replies);
    buf_release(&ks->replies);
    buf_release(&ks->call_reply);
    buf_release(&ks->answer);
    alloc_put(alloc, ks);
}

struct keyspace *ks_overlay_new(const struct keyspace *base, uint64_t stamp_ms) {
    struct keyspace *ks = alloc_get0(base->config.alloc, sizeof *ks);
    ks->config = base->config;
    ks->base = base;
    ks->answer.alloc = ks->replies.alloc = base->config.alloc;
    ks->settings = base->settings;
    ks->revision = base->revision;
    ks->stamp_ms = stamp_ms;
    ks->name_count = base->name_count;
    ks->memory_bytes = base->memory_bytes;
    ks_names_init(ks, 1);
    return ks;
}

void ks_overlay_load(struct keyspace *overlay, struct slice key) {
    const struct ks_name *from = ks_find((struct keyspace *)(uintptr_t)overlay->base, key);
    if (from == NULL) return;
    struct ks_name *to = ks_make(overlay, key, (enum ks_type)from->type);
    ks_write(overlay, to, ks_value(from), from->version);
    ks_attach(overlay, to, from->lease);
    ks_set_deadline(overlay, to, from->due.at_ms, from->due.order);
    to->waiter_count = from->waiter_count;
    /* It is in the base's counts already. */
    overlay->name_count--;
    overlay->memory_bytes -= key.bytes + from->value_bytes;
}

void ks_overlay_free(struct keyspace *overlay) {
    const struct alloc *alloc = overlay->config.alloc;
    ks_names_free(overlay);
    alloc_put(alloc, overlay->facts);
    alloc_put(alloc, overlay->fact_replies);
    alloc_put(alloc, overlay->leases_seen);
    buf_release(&overlay->replies);
    buf_release(&overlay->answer);
    alloc_put(alloc, overlay);
}

/* ---- facts ---- */

void ks_fact(struct keyspace *ks, const struct ks_fact *fact) {
    if (ks->fact_count == ks->fact_capacity) {
        ks->fact_capacity = ks->fact_capacity ? ks->fact_capacity * 2 : 64;
        ks->facts = alloc_resize(ks->config.alloc, ks->facts, ks->fact_capacity * sizeof ks->facts[0]);
        ks->fact_replies =
            alloc_resize(ks->config.alloc, ks->fact_replies, ks->fact_capacity * sizeof ks->fact_replies[0]);
    }
    ks->facts[ks->fact_count] = *fact;
    ks->fact_replies[ks->fact_count++] = ks->replies.bytes;
    buf_append_slice(&ks->replies, fact->reply);
}

/* `replies` moves while it grows, so the facts learn where theirs is when all is said. */
static void facts_finish(struct keyspace *ks, struct ks_facts *ret_facts) {
    for (uint32_t i = 0; i < ks->fact_count; i++)
        if (ks->facts[i].reply.bytes > 0) ks->facts[i].reply.data = ks->replies.data + ks->fact_replies[i];
    *ret_facts = (struct ks_facts){.facts = ks->facts, .count = ks->fact_count};
}

static bool is_ours(const struct keyspace *ks, struct origin origin) {
    return origin.node == ks->config.node && origin.boot == ks->config.boot;
}

void ks_answer(struct keyspace *ks, struct origin origin, struct slice reply) {
    if (is_ours(ks, origin)) ks_fact(ks, &(struct ks_fact){.kind = KS_REPLY, .origin = origin, .reply = reply});
}

/* ---- dispatch ---- */

static void x_reply(struct ks_call *call) {
    buf_append_slice(call->reply, call->argv[1]);
}

static ks_handler *handler_of(enum command_id id) {
    static ks_handler *const handlers[CMD_COUNT] = {
        [CMD_GET] = ks_cmd_get,
        [CMD_SET] = ks_cmd_set,
        [CMD_DEL] = ks_cmd_del,
        [CMD_EXISTS] = ks_cmd_exists,
        [CMD_TYPE] = ks_cmd_type,
        [CMD_TTL] = ks_cmd_ttl,
        [CMD_PTTL] = ks_cmd_pttl,
        [CMD_EXPIRE] = ks_cmd_expire,
        [CMD_PEXPIRE] = ks_cmd_pexpire,
        [CMD_PERSIST] = ks_cmd_persist,
        [CMD_INCR] = ks_cmd_incr,
        [CMD_DBSIZE] = ks_cmd_dbsize,
        [CMD_FLUSHALL] = ks_cmd_flushall,
        [CMD_CAS] = ks_cmd_cas,
        [CMD_GETV] = ks_cmd_getv,
        [CMD_WOR_SET] = ks_cmd_wor_set,
        [CMD_WOR_GET] = ks_cmd_wor_get,
        [CMD_SCRIPT] = ks_cmd_script,
        [CMD_LEASE_GRANT] = ks_cmd_lease_grant,
        [CMD_LEASE_REVOKE] = ks_cmd_lease_revoke,
        [CMD_LEASE_LIST] = ks_cmd_lease_list,
        [CMD_LOCK_ACQUIRE] = ks_cmd_lock_acquire,
        [CMD_LOCK_RELEASE] = ks_cmd_lock_release,
        [CMD_LOCK_CHECK] = ks_cmd_lock_check,
        [CMD_LOCK_INFO] = ks_cmd_lock_info,
        [CMD_ELECT_CAMPAIGN] = ks_cmd_elect_campaign,
        [CMD_ELECT_LEADER] = ks_cmd_elect_leader,
        [CMD_ELECT_RESIGN] = ks_cmd_elect_resign,
        [CMD_ROUTE_BIND] = route_bind,
        [CMD_ROUTE_GET] = route_get,
        [CMD_ROUTE_MOVE] = route_move,
        [CMD_ROUTE_DROP] = route_drop,
        [CMD_ROUTE_TOUCH] = route_touch,
        [CMD_ROUTE_SUSPECT] = route_suspect,
        [CMD_NODE_ADD] = ks_cmd_node_add,
        [CMD_NODE_REMOVE] = ks_cmd_node_remove,
        [CMD_ONCE] = ks_cmd_once,
        [CMD_X_ONCE] = ks_cmd_x_once,
        [CMD_X_SETTINGS] = x_settings,
        [CMD_X_MEMBERS] = ks_cmd_x_members,
        [CMD_X_PROMOTE] = ks_cmd_x_promote,
        [CMD_X_EXPIRE] = ks_cmd_x_expire,
        [CMD_X_REMAINING] = ks_cmd_x_remaining,
        [CMD_X_RENEWED] = ks_cmd_x_renewed,
        [CMD_X_DEQUEUE] = ks_cmd_x_dequeue,
        [CMD_X_ORIGIN_GONE] = ks_cmd_x_origin_gone,
        [CMD_X_ROUTE_JOIN] = route_join,
        [CMD_X_ROUTE_ACK] = route_ack,
        [CMD_X_ROUTE_PASSED] = route_passed,
        [CMD_X_SCRIPT] = ks_cmd_x_script,
        [CMD_X_REPLY] = x_reply,
    };
    return handlers[id];
}

static bool arity_holds(const struct command *c, uint32_t argc) {
    return c->arity >= 0 ? argc == (uint32_t)c->arity : argc >= (uint32_t)-c->arity;
}

/* Clients' commands have passed command_check, under the settings that the node they spoke to had applied by then;
 * here it counts.  NULL: refused, and the reply says why. */
ks_handler *ks_admit(struct ks_call *call, bool internal, const struct command **ret_command) {
    const struct command *c = command_find(call->argv[0], internal);
    ks_handler *handler = c != NULL ? handler_of(c->id) : NULL;
    char shown[80];
    if (handler == NULL) {
        resp_error(call->reply, "ERR unknown command '%s'", resp_show(call->argv[0], shown, sizeof shown));
        return NULL;
    }
    if (!arity_holds(c, call->argc)) {
        resp_error(call->reply, "ERR wrong number of arguments for '%s' command",
                   resp_show(call->argv[0], shown, sizeof shown));
        return NULL;
    }
    const uint64_t bytes_max = call->ks->settings.key_bytes_max;
    const uint32_t last = c->last_key < 0 ? call->argc - 1 : (uint32_t)c->last_key;
    for (uint32_t i = (uint32_t)c->first_key; c->first_key > 0 && i <= last; i += (uint32_t)c->step) {
        if (call->argv[i].bytes <= bytes_max) continue;
        resp_error(call->reply, "ERR key is too long: %zu bytes, key-bytes-max is %llu", call->argv[i].bytes,
                   (unsigned long long)bytes_max);
        return NULL;
    }
    *ret_command = c;
    return handler;
}

static void run(struct keyspace *ks, struct origin origin, uint32_t argc, const struct slice *argv) {
    buf_clear(&ks->call_reply);
    struct ks_call call = {
        .ks = ks, .origin = origin, .stamp_ms = ks->stamp_ms, .argc = argc, .argv = argv, .reply = &ks->call_reply};
    const struct command *command;
    ks_handler *handler = ks_admit(&call, true, &command);
    if (handler != NULL) {
        if (command->class != COMMAND_READ && command->id != CMD_X_REPLY) call.revision = ++ks->revision; /* K1 */
        handler(&call);
    }
    if (call.silent) return;
    if (!call.queued)
        ks_answer(ks, origin, buf_slice(&ks->call_reply));
    else if (is_ours(ks, origin))
        ks_fact(ks, &(struct ks_fact){.kind = KS_QUEUED, .origin = origin});
}

static void apply_batch(struct keyspace *ks, struct slice value) {
    struct wire w;
    struct batch_head head;
    must(batch_read(&w, value, &head));
    if (ballot_compare(head.ballot, ks->ballot) < 0 && !BUG(21)) { /* K2 */
        ks->gap = true;
        return;
    }
    if (head.first) {
        ks->ballot = head.ballot;
        ks->gap = false;
        ks_fact(ks, &(struct ks_fact){.kind = KS_FIRST, .ballot = head.ballot});
    }
    if (ks->gap && !BUG(98)) return;                                /* K2 */
    if (head.stamp_ms > ks->stamp_ms) ks->stamp_ms = head.stamp_ms; /* K3 */
    if (!(BUG(50) && ks->config.node == 1)) ks_end_due(ks);
    for (uint32_t i = 0; i < head.count; i++) {
        struct origin origin;
        uint32_t argc;
        must(batch_next(&w, &origin, &argc, ks->argv));
        run(ks, origin, argc, ks->argv);
    }
    must(wire_done(&w));
    route_forget(ks->route, ks->stamp_ms, FORGET_PER_BATCH);
}

void keyspace_apply(struct keyspace *ks, paxos_slot slot, struct slice value, struct ks_facts *ret_facts) {
    must(slot == ks->slot + 1); /* P4 */
    ks->slot = slot;
    ks->fact_count = 0;
    buf_clear(&ks->replies);
    if (value.bytes == 0)
        ks->gap = true;
    else if (!paxos_is_blank(value))
        apply_batch(ks, value);
    ks_members_settle(ks);
    facts_finish(ks, ret_facts);
}

enum ks_read_verdict keyspace_read(struct keyspace *ks, uint64_t stamp_ms, uint32_t argc, const struct slice *argv,
                                   struct buf *reply, uint64_t *ret_stamp_ms) {
    const size_t start = reply->bytes;
    struct ks_call call = {.ks = ks,
                           .origin = ORIGIN_NONE,
                           .stamp_ms = stamp_ms > ks->stamp_ms ? stamp_ms : ks->stamp_ms,
                           .argc = argc,
                           .argv = argv,
                           .reply = reply};
    const struct command *command;
    ks_handler *handler = ks_admit(&call, false, &command);
    if (handler != NULL && command->class != COMMAND_READ) {
        resp_error(reply, "ERR '%s' is not a read", command->name);
        handler = NULL;
    }
    if (handler != NULL) handler(&call);
    if (call.needs_stamp_ms == 0) return KS_READ_DONE;
    reply->bytes = start;
    *ret_stamp_ms = call.needs_stamp_ms;
    return KS_READ_NEEDS_STAMP;
}

/* ---- checks shared by handlers ---- */

void ks_syntax_error(struct ks_call *call) {
    resp_error(call->reply, "ERR syntax error");
}

void ks_wrong_type(struct ks_call *call) {
    resp_error(call->reply, "WRONGTYPE Operation against a key holding the wrong kind of value");
}

void ks_no_lease(struct ks_call *call, uint64_t id) {
    resp_error(call->reply, "NOLEASE lease %llu does not exist or has ended", (unsigned long long)id);
}

bool ks_check_string(struct ks_call *call, const struct ks_name *name) {
    char shown[80];
    if (name == NULL || name->type == KS_STRING) return true;
    if (name->type == KS_REGISTER)
        resp_error(call->reply, "WRITEONCE key '%s' is a write-once register",
                   resp_show(ks_key(name), shown, sizeof shown));
    else
        ks_wrong_type(call);
    return false;
}

bool ks_check_value(struct ks_call *call, struct slice value) {
    const uint64_t bytes_max = call->ks->settings.value_bytes_max;
    if (value.bytes <= bytes_max) return true;
    resp_error(call->reply, "ERR value is too long: %zu bytes, value-bytes-max is %llu", value.bytes,
               (unsigned long long)bytes_max);
    return false;
}

bool ks_room(struct ks_call *call, bool new_key, size_t more) {
    const struct keyspace *ks = call->ks;
    if (ks->limits_off) return true;
    if (new_key && ks->name_count >= ks->settings.keys_max) {
        resp_error(call->reply, "BUSY keys-max: there are %llu keys", (unsigned long long)ks->name_count);
        return false;
    }
    if (more > 0 && ks->memory_bytes + more > ks->settings.memory_max) {
        resp_error(call->reply, "BUSY memory-max: keys and values take %llu bytes",
                   (unsigned long long)ks->memory_bytes);
        return false;
    }
    return true;
}

bool ks_room_to_write(struct ks_call *call, const struct ks_name *name, struct slice key, size_t value_bytes) {
    if (name == NULL) return ks_room(call, true, key.bytes + value_bytes);
    return ks_room(call, false, value_bytes > name->value_bytes ? value_bytes - name->value_bytes : 0);
}

bool ks_arg_u64(struct ks_call *call, uint32_t index, const char *what, uint64_t low, uint64_t high,
                uint64_t *ret_value) {
    char shown[80];
    if (index >= call->argc) {
        ks_syntax_error(call);
        return false;
    }
    uint64_t value;
    if (slice_to_u64(call->argv[index], &value) && value >= low && value <= high) {
        *ret_value = value;
        return true;
    }
    resp_error(call->reply, "ERR %s must be an integer from %llu to %llu, not '%s'", what, (unsigned long long)low,
               (unsigned long long)high, resp_show(call->argv[index], shown, sizeof shown));
    return false;
}

/* A script's writes hang on whether the leases it names were alive. */
static void lease_seen(struct keyspace *overlay, uint64_t id) {
    for (uint32_t i = 0; i < overlay->leases_seen_count; i++)
        if (overlay->leases_seen[i] == id) return;
    if (overlay->leases_seen_count == overlay->leases_seen_capacity) {
        overlay->leases_seen_capacity = overlay->leases_seen_capacity ? overlay->leases_seen_capacity * 2 : 8;
        overlay->leases_seen = alloc_resize(overlay->config.alloc, overlay->leases_seen,
                                            overlay->leases_seen_capacity * sizeof overlay->leases_seen[0]);
    }
    overlay->leases_seen[overlay->leases_seen_count++] = id;
}

bool ks_arg_lease(struct ks_call *call, uint32_t index, uint64_t *ret_id) {
    uint64_t id;
    if (index + 1 >= call->argc || !slice_is_word(call->argv[index], "LEASE")) {
        ks_syntax_error(call);
        return false;
    }
    if (!ks_arg_u64(call, index + 1, "LEASE", 0, INT64_MAX, &id)) return false;
    if (call->ks->base != NULL) lease_seen(call->ks, id);
    if (!ks_lease_exists(call->ks, id)) {
        ks_no_lease(call, id);
        return false;
    }
    *ret_id = id;
    return true;
}

const struct alloc *ks_alloc(const struct keyspace *ks) {
    return ks->config.alloc;
}

/* ---- what others ask ---- */

uint64_t keyspace_revision(const struct keyspace *ks) {
    return ks->revision;
}
paxos_slot keyspace_slot(const struct keyspace *ks) {
    return ks->slot;
}
uint64_t keyspace_stamp(const struct keyspace *ks) {
    return ks->stamp_ms;
}
struct ballot keyspace_ballot(const struct keyspace *ks) {
    return ks->ballot;
}
uint64_t keyspace_next_due(const struct keyspace *ks) {
    return ks->due_count > 0 ? ks->due[0]->at_ms : UINT64_MAX;
}
const struct ks_settings *keyspace_settings(const struct keyspace *ks) {
    return &ks->settings;
}
bool keyspace_has_settings(const struct keyspace *ks) {
    return ks->has_settings;
}
struct route *keyspace_route(struct keyspace *ks) {
    return ks->route;
}

void keyspace_counts(const struct keyspace *ks, struct ks_counts *ret_counts) {
    *ret_counts = (struct ks_counts){.keys = ks->name_count,
                                     .leases = ks->lease_count,
                                     .waiters = ks->waiter_count + route_waiter_count(ks->route),
                                     .bindings = route_binding_count(ks->route),
                                     .scripts = HASH_COUNT(ks->scripts),
                                     .memory_bytes = ks->memory_bytes};
}

uint64_t keyspace_hash(const struct keyspace *ks) {
    const uint64_t head[] = {ks->slot,         ks->revision,     ks->stamp_ms,
                             ks->ballot.round, ks->ballot.node,  (uint64_t)ks->has_settings | (uint64_t)ks->gap << 1,
                             ks->name_count,   ks->lock_count,   ks->register_count,
                             ks->waiter_count, ks->memory_bytes, ks->lease_count,
                             ks_names_hash(ks)};
    uint64_t hash = XXH3_64bits(head, sizeof head);
    hash = XXH3_64bits_withSeed(&ks->settings, sizeof ks->settings, hash);
    for (uint32_t i = 0; i < ks->place_count; i++) {
        const struct ks_lease *lease = ks->leases[i].lease;
        if (lease == NULL) continue;
        const uint64_t facts[] = {lease->id, lease->ttl_ms, lease->remaining_ms, lease->name_count, lease->wait_count};
        hash = XXH3_64bits_withSeed(facts, sizeof facts, hash);
        hash = XXH3_64bits_withSeed(lease->holder, lease->holder_bytes, hash);
        for (const struct ks_once *o = lease->once; o != NULL; o = o->next) {
            const uint64_t once[] = {o->seq, o->digest, o->done, o->bytes};
            hash = XXH3_64bits_withSeed(once, sizeof once, hash);
            hash = XXH3_64bits_withSeed(o->reply, o->bytes, hash);
        }
        /* The order in which names end with their lease. */
        for (const struct ks_name *n = lease->names; n != NULL; n = n->lease_next)
            hash = XXH3_64bits_withSeed(n->key, n->key_bytes, hash);
    }
    for (const struct ks_life *life = ks->lives; life != NULL; life = life->next) {
        const uint64_t facts[] = {life->node, life->boot};
        hash = XXH3_64bits_withSeed(facts, sizeof facts, hash);
    }
    for (const struct ks_script_text *s = ks->scripts; s != NULL; s = s->hh.next)
        hash = XXH3_64bits_withSeed(s->sha, KS_SHA_BYTES, hash);
    struct buf members = {.alloc = ks->config.alloc};
    ks_members_put(ks, &members);
    hash = XXH3_64bits_withSeed(members.data, members.bytes, hash);
    buf_release(&members);
    return route_hash(ks->route, hash);
}
