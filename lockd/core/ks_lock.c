/* ks_lock.c - locks, elections and the queues before them (W).  An election is a lock whose value says who leads.
 * Fencing tokens are the revisions of the grants, after Burrows, "The Chubby lock service" (2006), section 2.4.  Part
 * of the keyspace. */
#include "lockd/core/ks_state.h"
#include "lockd/core/bug.h"
#include <utlist.h>

/* ---- waiting ---- */

static struct ks_life *life_of(const struct keyspace *ks, uint16_t node, uint64_t boot) {
    struct ks_life *life;
    DL_FOREACH(ks->lives, life) {
        if (life->node == node && life->boot == boot) return life;
    }
    return NULL;
}

struct ks_life *ks_life_add(struct keyspace *ks, uint16_t node, uint64_t boot) {
    struct ks_life *life = alloc_get0(ks->config.alloc, sizeof *life);
    life->node = node;
    life->boot = boot;
    DL_APPEND(ks->lives, life);
    return life;
}

void ks_wait_attach(struct ks_waiter *w, struct ks_life *life, uint64_t seq) {
    w->origin = (struct origin){.node = life->node, .boot = life->boot, .seq = seq};
    w->life = life;
    DL_APPEND2(life->waiters, w, life_prev, life_next);
}

static void attach_wait(struct keyspace *ks, struct ks_waiter *w, struct origin origin) {
    struct ks_life *life = life_of(ks, origin.node, origin.boot);
    ks_wait_attach(w, life != NULL ? life : ks_life_add(ks, origin.node, origin.boot), origin.seq);
}

static void detach_wait(struct keyspace *ks, struct ks_waiter *w) {
    struct ks_life *life = w->life;
    DL_DELETE2(life->waiters, w, life_prev, life_next);
    if (life->waiters != NULL) return;
    DL_DELETE(ks->lives, life);
    alloc_put(ks->config.alloc, life);
}

static void set_wait_value(struct keyspace *ks, struct ks_waiter *w, struct slice value) {
    alloc_put(ks->config.alloc, w->value);
    w->value = value.bytes > 0 ? memcpy(alloc_get(ks->config.alloc, value.bytes), value.data, value.bytes) : NULL;
    ks->memory_bytes += value.bytes;
    ks->memory_bytes -= w->value_bytes;
    w->value_bytes = (uint32_t)value.bytes;
}

struct ks_waiter *ks_wait_add(struct keyspace *ks, struct ks_name *name, struct ks_lease *lease, uint64_t queued) {
    struct ks_waiter *w = alloc_get0(ks->config.alloc, sizeof *w);
    w->name = name;
    w->lease = lease;
    w->queued = queued;
    w->due.at_ms = KS_NEVER;
    w->due.is_wait = true;
    ks->memory_bytes += KS_WAITER_BYTES;
    ks->waiter_count++;
    if (BUG(60))
        DL_PREPEND(name->waiters, w);
    else
        DL_APPEND(name->waiters, w);
    name->waiter_count++;
    DL_APPEND2(lease->waits, w, lease_prev, lease_next);
    lease->wait_count++;
    return w;
}

void ks_unwait(struct keyspace *ks, struct ks_waiter *w) {
    ks_due_set(ks, &w->due, KS_NEVER, 0);
    detach_wait(ks, w);
    DL_DELETE2(w->lease->waits, w, lease_prev, lease_next);
    w->lease->wait_count--;
    DL_DELETE(w->name->waiters, w);
    w->name->waiter_count--;
    ks->waiter_count--;
    ks->memory_bytes -= w->value_bytes + (uint64_t)KS_WAITER_BYTES;
    alloc_put(ks->config.alloc, w->value);
    alloc_put(ks->config.alloc, w);
}

void ks_grant_next(struct keyspace *ks, struct ks_name *name) {
    struct ks_waiter *w = name->waiters;
    must(name->type == KS_LOCK && w != NULL && name->lease == NULL);
    struct ks_lease *lease = w->lease;
    must(ks_lease_find(ks, lease->id) == lease); /* K4, M2 */
    const uint64_t token = BUG(59) ? ks->revision : ++ks->revision;
    char *value = w->value;
    const uint32_t value_bytes = w->value_bytes;
    w->value = NULL;
    w->value_bytes = 0;
    ks->memory_bytes -= value_bytes; /* ks_write_owned counts it again */
    ks_write_owned(ks, name, value, value_bytes, token);
    ks_attach(ks, name, lease);
    buf_clear(&ks->answer);
    resp_integer(&ks->answer, (int64_t)token);
    ks_wait_answer(ks, w, buf_slice(&ks->answer));
    ks_unwait(ks, w);
}

/* The lease's place in the queue of that name, or NULL.  Looks where there is less to look at. */
static struct ks_waiter *find_wait(const struct ks_name *name, const struct ks_lease *lease) {
    struct ks_waiter *w;
    if (name->waiter_count < lease->wait_count) {
        DL_FOREACH(name->waiters, w) {
            if (w->lease == lease) return w;
        }
    } else {
        DL_FOREACH2(lease->waits, w, lease_next) {
            if (w->name == name) return w;
        }
    }
    return NULL;
}

/* ---- acquire ---- */

struct acquire {
    uint64_t lease_id, wait_ms;
    bool has_value;
    struct slice value;
};

/* argv[2..): LEASE id, and in any order [WAIT ms] [VALUE v]. */
static bool acquire_parse(struct ks_call *call, struct acquire *a) {
    for (uint32_t i = 4; i < call->argc; i += 2) {
        char shown[80];
        const bool wait = slice_is_word(call->argv[i], "WAIT"), value = slice_is_word(call->argv[i], "VALUE");
        if ((!wait && !value) || i + 1 == call->argc) {
            resp_error(call->reply, "ERR syntax error near '%s'", resp_show(call->argv[i], shown, sizeof shown));
            return false;
        }
        if (wait && !ks_arg_u64(call, i + 1, "WAIT", 0, KS_WAIT_MS_MAX, &a->wait_ms)) return false;
        if (value && !ks_check_value(call, call->argv[i + 1])) return false;
        if (value) {
            a->has_value = true;
            a->value = call->argv[i + 1];
        }
    }
    return ks_arg_lease(call, 2, &a->lease_id);
}

static void set_wait_deadline(struct ks_call *call, struct ks_waiter *w, uint64_t wait_ms) {
    ks_due_set(call->ks, &w->due, call->stamp_ms + wait_ms, call->revision);
}

static void enqueue(struct ks_call *call, struct ks_name *name, struct ks_lease *lease, const struct acquire *a) {
    struct keyspace *ks = call->ks;
    if (name->waiter_count >= ks->settings.waiters_max) {
        resp_error(call->reply, "BUSY waiters-max: %u wait for this lock", name->waiter_count);
        return;
    }
    if (!ks_room(call, false, a->value.bytes + KS_WAITER_BYTES)) return;
    struct ks_waiter *w = ks_wait_add(ks, name, lease, call->revision);
    w->once = call->once;
    set_wait_value(ks, w, a->value);
    attach_wait(ks, w, call->origin);
    set_wait_deadline(call, w, a->wait_ms);
    call->queued = true;
}

/* The wait keeps its place; whoever attached it before hears that it is not his any more. */
static void reattach(struct ks_call *call, struct ks_waiter *w, const struct acquire *a) {
    struct keyspace *ks = call->ks;
    if (a->has_value && a->value.bytes > w->value_bytes && !ks_room(call, false, a->value.bytes - w->value_bytes))
        return;
    const bool same = w->once.seq == call->once.seq && w->once.lease == call->once.lease; /* a repeat takes it over */
    if (!origin_equal(w->origin, call->origin))
        ks_once_answer(ks, same ? (struct ks_once_key){0} : w->once, w->origin,
                       slice_str("-ERR this wait was taken over by a later LOCK.ACQUIRE of the same lease\r\n"));
    w->once = call->once;
    detach_wait(ks, w);
    attach_wait(ks, w, call->origin);
    if (a->has_value) set_wait_value(ks, w, a->value);
    set_wait_deadline(call, w, a->wait_ms);
    call->queued = true;
}

static void acquire(struct ks_call *call, const struct acquire *a) {
    struct keyspace *ks = call->ks;
    const struct slice key = call->argv[1];
    struct ks_lease *lease = ks_lease_find(ks, a->lease_id);
    struct ks_name *name = ks_find(ks, key);
    if (name != NULL && name->type == KS_REGISTER) {
        (void)ks_check_string(call, name);
        return;
    }
    if (name != NULL && name->type == KS_LOCK && name->lease == lease) {
        resp_integer(call->reply, (int64_t)name->version);
        return;
    }
    if (name == NULL) {
        if (!ks_room_to_write(call, NULL, key, a->value.bytes)) return;
        name = ks_make(ks, key, KS_LOCK);
        ks_write(ks, name, a->value, call->revision);
        ks_attach(ks, name, lease);
        resp_integer(call->reply, (int64_t)call->revision);
        return;
    }
    const bool may_wait = a->wait_ms > 0 && call->origin.node != ORIGIN_NODE_NONE;
    if (!may_wait) {
        resp_nil(call->reply);
        return;
    }
    struct ks_waiter *w = find_wait(name, lease);
    if (w != NULL && !BUG(55))
        reattach(call, w, a);
    else
        enqueue(call, name, lease, a);
}

void ks_cmd_lock_acquire(struct ks_call *call) {
    struct acquire a = {0};
    if (acquire_parse(call, &a)) acquire(call, &a);
}

void ks_cmd_elect_campaign(struct ks_call *call) {
    struct acquire a = {0};
    if (!acquire_parse(call, &a)) return;
    if (a.has_value)
        acquire(call, &a);
    else
        resp_error(call->reply, "ERR ELECT.CAMPAIGN needs VALUE");
}

/* ---- release ---- */

/* Not ks_arg_lease: of a lease that is gone there is nothing to release, which is an answer and no error. */
static bool release_parse_lease(struct ks_call *call, uint64_t *ret_id) {
    if (!slice_is_word(call->argv[2], "LEASE")) {
        ks_syntax_error(call);
        return false;
    }
    return ks_arg_u64(call, 3, "LEASE", 0, INT64_MAX, ret_id);
}

static void release(struct ks_call *call, uint64_t lease_id, bool has_token, uint64_t token) {
    struct keyspace *ks = call->ks;
    struct ks_name *name = ks_find(ks, call->argv[1]);
    if (name != NULL && name->type == KS_REGISTER) {
        (void)ks_check_string(call, name);
        return;
    }
    const struct ks_lease *lease = ks_lease_find(ks, lease_id);
    if (name == NULL || lease == NULL) {
        resp_integer(call->reply, 0);
        return;
    }
    if (name->type == KS_LOCK && (name->lease == lease || BUG(57))) {
        const bool ours = !has_token || token == name->version || BUG(56);
        resp_integer(call->reply, ours);
        if (ours) ks_end(ks, name);
        return;
    }
    /* A token names a grant, and this lease has none here: its wait, if any, belongs to a later attempt. */
    struct ks_waiter *w = has_token ? NULL : find_wait(name, lease);
    resp_integer(call->reply, w != NULL);
    if (w == NULL) return;
    ks_wait_answer(ks, w, slice_str("$-1\r\n"));
    ks_unwait(ks, w);
}

void ks_cmd_lock_release(struct ks_call *call) {
    uint64_t lease_id, token = 0;
    if (call->argc != 4 && !(call->argc == 6 && slice_is_word(call->argv[4], "TOKEN"))) {
        ks_syntax_error(call);
        return;
    }
    if (!release_parse_lease(call, &lease_id)) return;
    if (call->argc == 6 && !ks_arg_u64(call, 5, "TOKEN", 0, INT64_MAX, &token)) return;
    release(call, lease_id, call->argc == 6, token);
}

void ks_cmd_elect_resign(struct ks_call *call) {
    uint64_t lease_id;
    if (release_parse_lease(call, &lease_id)) release(call, lease_id, false, 0);
}

/* ---- reads ---- */

void ks_cmd_lock_check(struct ks_call *call) {
    uint64_t token;
    char shown[80];
    if (!ks_arg_u64(call, 2, "the token", 0, INT64_MAX, &token)) return;
    const struct ks_name *name = ks_peek(call, call->argv[1]);
    if (name != NULL && name->type == KS_LOCK && (name->version == token || BUG(49)))
        resp_integer(call->reply, 1);
    else
        resp_error(call->reply, "FENCED token %llu does not hold '%s'", (unsigned long long)token,
                   resp_show(call->argv[1], shown, sizeof shown));
}

void ks_cmd_lock_info(struct ks_call *call) {
    const struct ks_name *name = ks_peek(call, call->argv[1]);
    if (name != NULL && name->type == KS_REGISTER) {
        ks_wrong_type(call);
        return;
    }
    const bool held = name != NULL && name->type == KS_LOCK;
    if (!held && (name == NULL || name->waiter_count == 0)) {
        resp_nil(call->reply);
        return;
    }
    resp_array(call->reply, 10);
    resp_bulk_str(call->reply, "name");
    resp_bulk(call->reply, ks_key(name));
    resp_bulk_str(call->reply, "lease");
    resp_integer(call->reply, held ? (int64_t)name->lease->id : 0);
    resp_bulk_str(call->reply, "token");
    resp_integer(call->reply, held ? (int64_t)name->version : 0);
    resp_bulk_str(call->reply, "value");
    if (held)
        resp_bulk(call->reply, ks_value(name));
    else
        resp_nil(call->reply);
    resp_bulk_str(call->reply, "waiters");
    resp_integer(call->reply, name->waiter_count);
}

void ks_cmd_elect_leader(struct ks_call *call) {
    const struct ks_name *name = ks_peek(call, call->argv[1]);
    if (name != NULL && name->type == KS_REGISTER) {
        ks_wrong_type(call);
    } else if (name == NULL || name->type != KS_LOCK) {
        resp_nil(call->reply);
    } else {
        resp_array(call->reply, 3);
        resp_bulk(call->reply, ks_value(name));
        resp_integer(call->reply, (int64_t)name->version);
        resp_integer(call->reply, (int64_t)name->lease->id);
    }
}

/* ---- ends of waits that the leader proposes ---- */

void ks_cmd_x_dequeue(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    uint64_t node;
    struct origin origin = {0};
    if (!ks_arg_u64(call, 2, "node", 0, ORIGIN_NODE_NONE - 1, &node)) return;
    if (!ks_arg_u64(call, 3, "boot", 0, UINT64_MAX, &origin.boot)) return;
    if (!ks_arg_u64(call, 4, "seq", 0, UINT64_MAX, &origin.seq)) return;
    origin.node = (uint16_t)node;
    if (call->argv[1].bytes == 0) {
        route_dequeue(ks->route, origin);
        resp_ok(call->reply);
        return;
    }
    struct ks_name *name = ks_find(ks, call->argv[1]);
    struct ks_waiter *w = NULL;
    if (name != NULL) {
        DL_FOREACH(name->waiters, w) {
            if (origin_equal(w->origin, origin) || BUG(61)) break;
        }
    }
    resp_integer(call->reply, w != NULL);
    if (w == NULL) return;                          /* granted meanwhile, or attached anew */
    ks_answer(ks, w->origin, slice_str("$-1\r\n")); /* nobody hears it: a repeat of its ONCE waits again */
    ks_unwait(ks, w);
}

void ks_cmd_x_origin_gone(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    uint64_t node, boot;
    if (!ks_arg_u64(call, 1, "node", 0, ORIGIN_NODE_NONE - 1, &node)) return;
    if (!ks_arg_u64(call, 2, "boot", 0, UINT64_MAX, &boot)) return;
    const struct ks_life *life = life_of(ks, (uint16_t)node, boot);
    for (struct ks_waiter *w = life ? life->waiters : NULL, *next; w != NULL; w = next) {
        next = w->life_next; /* the last one takes `life` with it */
        buf_clear(&ks->answer);
        resp_error(&ks->answer, "CLUSTERDOWN the wait ended: node %u lost contact with the leader", (unsigned)node);
        ks_answer(ks, w->origin, buf_slice(&ks->answer));
        ks_unwait(ks, w);
    }
    route_origin_gone(ks->route, (uint16_t)node, boot);
    resp_ok(call->reply);
}

struct attachments {
    const struct keyspace *ks;
    void (*fn)(void *context, uint16_t node, uint64_t boot);
    void *context;
};

/* A life that waits for locks was told already. */
static void route_attachment(void *context, uint16_t node, uint64_t boot) {
    const struct attachments *all = context;
    if (life_of(all->ks, node, boot) == NULL) all->fn(all->context, node, boot);
}

void keyspace_each_attachment(const struct keyspace *ks, void (*fn)(void *context, uint16_t node, uint64_t boot),
                              void *context) {
    const struct ks_life *life;
    DL_FOREACH(ks->lives, life) {
        fn(context, life->node, life->boot);
    }
    struct attachments all = {.ks = ks, .fn = fn, .context = context};
    route_each_attachment(ks->route, route_attachment, &all);
}

void keyspace_each_wait(const struct keyspace *ks, uint16_t node, uint64_t boot,
                        void (*fn)(void *context, uint64_t seq), void *context) {
    const struct ks_life *life = life_of(ks, node, boot);
    const struct ks_waiter *w;
    if (life != NULL) {
        DL_FOREACH2(life->waiters, w, life_next) fn(context, w->origin.seq);
    }
    route_each_wait(ks->route, node, boot, fn, context);
}
