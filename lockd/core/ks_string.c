/* ks_string.c - strings, their time to live, and what concerns keys of every kind.  Replies and errors are those of
 * Redis 7.0.  Part of the keyspace. */
#include "lockd/core/ks_state.h"
#include "lockd/core/bug.h"

/* ---- reads ---- */

void ks_cmd_get(struct ks_call *call) {
    const struct ks_name *name = ks_peek(call, call->argv[1]);
    if (name == NULL)
        resp_nil(call->reply);
    else if (name->type != KS_STRING)
        ks_wrong_type(call);
    else
        resp_bulk(call->reply, ks_value(name));
}

void ks_cmd_exists(struct ks_call *call) {
    int64_t count = 0;
    for (uint32_t i = 1; i < call->argc; i++) count += ks_peek(call, call->argv[i]) != NULL;
    resp_integer(call->reply, count);
}

void ks_cmd_type(struct ks_call *call) {
    static const char *const names[] = {
        [KS_VACANT] = "none", [KS_STRING] = "string", [KS_LOCK] = "lock", [KS_REGISTER] = "register"};
    const struct ks_name *name = ks_peek(call, call->argv[1]);
    resp_simple(call->reply, names[name ? name->type : KS_VACANT]);
}

static void ttl(struct ks_call *call, uint64_t unit_ms) {
    const struct ks_name *name = ks_peek(call, call->argv[1]);
    if (name == NULL)
        resp_integer(call->reply, -2);
    else if (name->due.at_ms == KS_NEVER)
        resp_integer(call->reply, -1);
    else if (name->due.at_ms <= call->stamp_ms)
        resp_integer(call->reply, 0); /* void: the caller needs a stamp */
    else
        resp_integer(call->reply, (int64_t)((name->due.at_ms - call->stamp_ms + unit_ms / 2) / unit_ms));
}

void ks_cmd_ttl(struct ks_call *call) {
    ttl(call, 1000);
}

void ks_cmd_pttl(struct ks_call *call) {
    ttl(call, 1);
}

void ks_cmd_dbsize(struct ks_call *call) {
    /* Any key that is due may be one of them, and more may have come due since: the stamp itself is needed. */
    const struct keyspace *ks = call->ks;
    if (ks->due_count > 0 && ks->due[0]->at_ms <= call->stamp_ms) call->needs_stamp_ms = call->stamp_ms;
    resp_integer(call->reply, (int64_t)ks->name_count);
}

/* ---- SET ---- */

enum { SET_NX = 1, SET_XX = 2, SET_GET = 4, SET_KEEPTTL = 8, SET_EX = 16, SET_PX = 32, SET_LEASE = 64 };
struct set_options {
    uint32_t flags;
    uint32_t expire_at; /* argv index of the number */
    uint32_t lease_at;  /* argv index of the word LEASE */
};

static bool set_parse(const struct ks_call *call, struct set_options *o) {
    static const struct {
        const char *word;
        uint32_t flag, excludes;
        bool has_argument;
    } options[] = {
        {"NX", SET_NX, SET_XX, false},
        {"XX", SET_XX, SET_NX, false},
        {"GET", SET_GET, 0, false},
        {"KEEPTTL", SET_KEEPTTL, SET_EX | SET_PX | SET_LEASE, false},
        {"EX", SET_EX, SET_KEEPTTL | SET_PX | SET_LEASE, true},
        {"PX", SET_PX, SET_KEEPTTL | SET_EX | SET_LEASE, true},
        {"LEASE", SET_LEASE, SET_KEEPTTL | SET_EX | SET_PX, true},
    };
    enum { OPTION_COUNT = sizeof options / sizeof options[0] };
    for (uint32_t i = 3; i < call->argc; i++) {
        uint32_t k = 0;
        while (k < OPTION_COUNT && !slice_is_word(call->argv[i], options[k].word)) k++;
        if (k == OPTION_COUNT || (o->flags & options[k].excludes)) return false;
        if (options[k].has_argument && i + 1 == call->argc) return false;
        o->flags |= options[k].flag;
        if (options[k].flag == SET_LEASE)
            o->lease_at = i;
        else if (options[k].has_argument)
            o->expire_at = i + 1;
        if (options[k].has_argument) i++;
    }
    return true;
}

static bool parse_integer(struct ks_call *call, uint32_t index, int64_t *ret_value) {
    if (slice_to_i64(call->argv[index], ret_value)) return true;
    resp_error(call->reply, "ERR value is not an integer or out of range");
    return false;
}

static bool invalid_expire(struct ks_call *call, const char *command) {
    resp_error(call->reply, "ERR invalid expire time in '%s' command", command);
    return false;
}

/* The number at `index`, in units of unit_ms, as a deadline.  Without `negative_ok` it must be above 0. */
static bool parse_deadline(struct ks_call *call, uint32_t index, int64_t unit_ms, bool negative_ok, const char *command,
                           int64_t *ret_at_ms) {
    int64_t value, at_ms;
    if (!parse_integer(call, index, &value)) return false;
    if (value <= 0 && !negative_ok) return invalid_expire(call, command);
    if (__builtin_mul_overflow(BUG(68) ? value / 2 : value, unit_ms, &at_ms) ||
        __builtin_add_overflow(at_ms, (int64_t)call->stamp_ms, &at_ms))
        return invalid_expire(call, command);
    *ret_at_ms = at_ms;
    return true;
}

static void set(struct ks_call *call, const struct set_options *o, int64_t deadline_ms, uint64_t lease_id) {
    struct keyspace *ks = call->ks;
    const struct slice key = call->argv[1], value = call->argv[2];
    struct ks_name *name = ks_find(ks, key);
    if (name != NULL && name->type == KS_REGISTER) {
        (void)ks_check_string(call, name);
        return;
    }
    if (name != NULL && name->type == KS_LOCK && (o->flags & SET_NX) && !(o->flags & SET_GET)) {
        resp_nil(call->reply); /* somebody holds it: what a client that locks with SET NX expects to hear */
        return;
    }
    if (!ks_check_string(call, name)) return;
    const bool refused = name != NULL ? (o->flags & SET_NX) != 0 && !BUG(88) : (o->flags & SET_XX) != 0;
    if (!refused && !ks_room_to_write(call, name, key, value.bytes)) return;
    if (o->flags & SET_GET) {
        if (name != NULL)
            resp_bulk(call->reply, ks_value(name));
        else
            resp_nil(call->reply);
    } else if (refused) {
        resp_nil(call->reply);
    } else {
        resp_ok(call->reply);
    }
    if (refused) return;
    if (name == NULL) name = ks_make(ks, key, KS_STRING);
    ks_write(ks, name, value, call->revision);
    if (o->flags & SET_KEEPTTL) return;
    ks_attach(ks, name, o->flags & SET_LEASE ? ks_lease_find(ks, lease_id) : NULL);
    ks_set_deadline(ks, name, o->flags & (SET_EX | SET_PX) ? (uint64_t)deadline_ms : KS_NEVER, call->revision);
}

void ks_cmd_set(struct ks_call *call) {
    struct set_options o = {0};
    int64_t deadline_ms = 0;
    uint64_t lease_id = 0;
    if (!set_parse(call, &o)) {
        ks_syntax_error(call);
        return;
    }
    if ((o.flags & (SET_EX | SET_PX)) &&
        !parse_deadline(call, o.expire_at, o.flags & SET_EX ? 1000 : 1, false, "set", &deadline_ms))
        return;
    if (!ks_check_value(call, call->argv[2])) return;
    if ((o.flags & SET_LEASE) && !ks_arg_lease(call, o.lease_at, &lease_id)) return;
    set(call, &o, deadline_ms, lease_id);
}

/* ---- other writes ---- */

void ks_cmd_del(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    for (uint32_t i = 1; i < call->argc; i++) /* refused whole, or done whole */
        if (!ks_check_string(call, ks_find(ks, call->argv[i]))) return;
    /* A name that somebody waits for becomes his lock when it ends; named twice, it must not be taken for a string. */
    const bool deferred = ks->defer_grants;
    ks->defer_grants = true;
    int64_t count = 0;
    for (uint32_t i = 1; i < call->argc; i++) {
        struct ks_name *name = ks_find(ks, call->argv[i]);
        if (name == NULL) continue;
        ks_end(ks, name);
        count++;
    }
    if (!deferred) ks_grant_deferred(ks);
    resp_integer(call->reply, count);
}

enum { EXPIRE_NX = 1, EXPIRE_XX = 2, EXPIRE_GT = 4, EXPIRE_LT = 8 };

static bool expire_parse(struct ks_call *call, uint32_t *ret_flags) {
    uint32_t flags = 0;
    for (uint32_t i = 3; i < call->argc; i++) {
        const struct slice s = call->argv[i];
        char shown[80];
        if (slice_is_word(s, "NX"))
            flags |= EXPIRE_NX;
        else if (slice_is_word(s, "XX"))
            flags |= EXPIRE_XX;
        else if (slice_is_word(s, "GT"))
            flags |= EXPIRE_GT;
        else if (slice_is_word(s, "LT"))
            flags |= EXPIRE_LT;
        else {
            resp_error(call->reply, "ERR Unsupported option %s", resp_show(s, shown, sizeof shown));
            return false;
        }
    }
    if ((flags & EXPIRE_NX) && (flags & ~(uint32_t)EXPIRE_NX)) {
        resp_error(call->reply, "ERR NX and XX, GT or LT options at the same time are not compatible");
        return false;
    }
    if ((flags & EXPIRE_GT) && (flags & EXPIRE_LT)) {
        resp_error(call->reply, "ERR GT and LT options at the same time are not compatible");
        return false;
    }
    *ret_flags = flags;
    return true;
}

/* No deadline counts as one that never comes. */
static bool expire_applies(uint32_t flags, bool has_deadline, int64_t current_ms, int64_t at_ms) {
    if ((flags & EXPIRE_NX) && has_deadline) return false;
    if ((flags & EXPIRE_XX) && !has_deadline) return false;
    if ((flags & EXPIRE_GT) && (!has_deadline || at_ms <= current_ms)) return false;
    if ((flags & EXPIRE_LT) && has_deadline && at_ms >= current_ms) return false;
    return true;
}

static void expire(struct ks_call *call, int64_t unit_ms, const char *command) {
    uint32_t flags;
    int64_t at_ms;
    if (!expire_parse(call, &flags) || !parse_deadline(call, 2, unit_ms, true, command, &at_ms)) return;
    struct ks_name *name = ks_find(call->ks, call->argv[1]);
    if (!ks_check_string(call, name)) return;
    if (name == NULL || !expire_applies(flags, name->due.at_ms != KS_NEVER, (int64_t)name->due.at_ms, at_ms)) {
        resp_integer(call->reply, 0);
        return;
    }
    if (at_ms <= (int64_t)call->stamp_ms) {
        ks_end(call->ks, name);
    } else {
        ks_set_deadline(call->ks, name, (uint64_t)at_ms, call->revision);
        name->touched = call->revision;
    }
    resp_integer(call->reply, 1);
}

void ks_cmd_expire(struct ks_call *call) {
    expire(call, 1000, "expire");
}

void ks_cmd_pexpire(struct ks_call *call) {
    expire(call, 1, "pexpire");
}

void ks_cmd_persist(struct ks_call *call) {
    struct ks_name *name = ks_find(call->ks, call->argv[1]);
    if (!ks_check_string(call, name)) return;
    const bool had = name != NULL && name->due.at_ms != KS_NEVER;
    if (had) {
        ks_set_deadline(call->ks, name, KS_NEVER, 0);
        name->touched = call->revision;
    }
    resp_integer(call->reply, had);
}

void ks_cmd_incr(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    const struct slice key = call->argv[1];
    struct ks_name *name = ks_find(ks, key);
    if (!ks_check_string(call, name)) return;
    int64_t value = 0;
    if (name != NULL && !slice_to_i64(ks_value(name), &value)) {
        resp_error(call->reply, "ERR value is not an integer or out of range");
        return;
    }
    if (value == INT64_MAX) {
        resp_error(call->reply, "ERR increment or decrement would overflow");
        return;
    }
    struct buf *text = &ks->answer;
    buf_clear(text);
    buf_printf(text, "%lld", (long long)(value + 1));
    if (!ks_room_to_write(call, name, key, text->bytes)) return;
    if (name == NULL) name = ks_make(ks, key, KS_STRING);
    ks_write(ks, name, buf_slice(text), call->revision);
    resp_integer(call->reply, value + 1);
}

void ks_cmd_flushall(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    if (call->argc > 2 ||
        (call->argc == 2 && !slice_is_word(call->argv[1], "ASYNC") && !slice_is_word(call->argv[1], "SYNC"))) {
        ks_syntax_error(call);
        return;
    }
    if (ks->register_count > 0 || ks->lock_count > 0) {
        resp_error(call->reply,
                   "ERR FLUSHALL is refused while write-once registers or held locks exist: %llu and %llu do",
                   (unsigned long long)ks->register_count, (unsigned long long)ks->lock_count);
        return;
    }
    ks_end_all(ks);
    resp_ok(call->reply);
}
