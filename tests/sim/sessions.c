/* sessions.c - clients that hold a lease and fight for locks and elections.  Each has two connections: one that works,
 * one that renews.  Some die without a word, some stop renewing and work on. */
#include "tests/sim/check_hold.h"
#include "tests/sim/check_late.h"

static unsigned long long u(uint64_t x) {
    return x;
}

void session_begins(struct clients *cs, struct world *w, struct session *se) {
    (void)cs;
    *se = (struct session){.rate_ppm = (int64_t)world_between(w, 0, SIM_DRIFT_PPM) - SIM_DRIFT_PPM / 2};
}
static void forget(struct session *se) {
    *se = (struct session){.rate_ppm = se->rate_ppm};
}
static void gone(struct world *w, struct session *se, uint64_t lease, const char *by) {
    check_lease_gone(w, se, lease, by);
    if (lease == se->lease) forget(se);
}
static void lives(struct clients *cs, struct session *se, uint64_t asked_us, uint64_t ms) {
    const uint64_t until = lease_end_us(asked_us, ms, se->rate_ppm);
    if (until > se->until_us) se->until_us = until;
    story_lease_until(cs->story, se->lease, until);
}
static struct session *main_of(struct clients *cs, const struct client *c) {
    return &cs->sessions[c->index - FIRST_MAIN];
}

static void told_lease(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                       const struct reply *r) {
    struct session *se = main_of(cs, c);
    if (r->kind == '-') return;
    if (r->kind != ':' || r->number <= 0) {
        world_fail(w, "R1: client %llu got another command's answer to LEASE.GRANT", u(c->id));
        return;
    }
    forget(se);
    se->lease = (uint64_t)r->number;
    se->ttl_ms = a->a;
    lives(cs, se, a->at_us, se->ttl_ms);
    check_late_sign(cs->lates, w, se->lease, se->ttl_ms);
}
static void told_grant(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                       const struct reply *r) {
    struct session *se = main_of(cs, c);
    const bool known = client_hears(cs, w, c, a, r);
    const struct lin_op *op = story_op(cs->story, a->op - 1);
    if (known || op->outcome == LIN_REFUSED)
        check_hold_answered(cs->holds, op->lease, story_key_of(cs->story, a->op - 1));
    if (!known) return;
    if (op->no_lease) {
        gone(w, se, op->lease, "LOCK.ACQUIRE");
        return;
    }
    if (!op->yes) return;
    check_hold_granted(cs->holds, w, cs, se, op->lease, story_key_of(cs->story, a->op - 1), op->ret_version);
    if (se->lease != op->lease || !session_alive(w, se)) return;
    se->holds = true;
    if (se->token != op->ret_version) se->token_before = se->token;
    se->token = op->ret_version;
}
static void told_release(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                         const struct reply *r) {
    struct session *se = main_of(cs, c);
    const bool known = client_hears(cs, w, c, a, r);
    const struct lin_op *op = story_op(cs->story, a->op - 1);
    if (known || op->outcome == LIN_REFUSED) se->releasing = false;
    if (!known) return;
    if (op->yes)
        check_hold_released(cs->holds, op->lease, story_key_of(cs->story, a->op - 1));
    else
        check_lease_gone(w, se, op->lease, "LOCK.RELEASE of what it held");
}
static void told_stray(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                       const struct reply *r) {
    const bool known = client_hears(cs, w, c, a, r);
    const struct lin_op *op = story_op(cs->story, a->op - 1);
    if ((known || op->outcome == LIN_REFUSED) && op->version == 0) main_of(cs, c)->releasing = false;
}
static void told_check(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                       const struct reply *r) {
    const struct session *se = main_of(cs, c);
    if (!client_hears(cs, w, c, a, r)) return;
    const struct lin_op *op = story_op(cs->story, a->op - 1);
    if (!op->yes && a->a == se->lease && se->holds && se->token == op->version)
        check_lease_gone(w, se, a->a, "LOCK.CHECK");
}
static void told_revoke(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                        const struct reply *r) {
    (void)cs;
    (void)a;
    if (r->kind != ':' && r->kind != '-') world_fail(w, "R1: client %llu got another command's answer", u(c->id));
}
static void told_set(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                     const struct reply *r) {
    (void)client_hears(cs, w, c, a, r);
    if (reply_is_error(r, "NOLEASE")) gone(w, main_of(cs, c), story_op(cs->story, a->op - 1)->lease, "SET");
}

static void acquire(struct clients *cs, struct world *w, struct client *c, struct session *se) {
    static const uint32_t waits[] = {0, 0, 200, 2000};
    se->election = world_chance(w, 250000);
    se->key = story_key(cs->story, w, se->election ? STORY_ELECTIONS : STORY_LOCKS);
    check_hold_asked(cs->holds, se);
    const struct lin_op op = {.kind = LIN_ACQUIRE, .lease = se->lease};
    const uint32_t wait = waits[world_below(w, 4)];
    client_asks(cs, w, c, told_grant, se->key, op, 0, "%s %s LEASE %llu VALUE v%llu WAIT %u",
                se->election ? "ELECT.CAMPAIGN" : "LOCK.ACQUIRE", story_name(cs->story, se->key), u(se->lease),
                u(se->lease), wait);
}
static void release(struct clients *cs, struct world *w, struct client *c, struct session *se) {
    struct lin_op op = {.kind = LIN_RELEASE, .lease = se->lease};
    se->holds = false; /* it stops working before it lets go */
    se->releasing = true;
    if (se->election) {
        client_asks(cs, w, c, told_release, se->key, op, 1, "ELECT.RESIGN %s LEASE %llu",
                    story_name(cs->story, se->key), u(se->lease));
        return;
    }
    op.version = se->token;
    client_asks(cs, w, c, told_release, se->key, op, 1, "LOCK.RELEASE %s LEASE %llu TOKEN %llu",
                story_name(cs->story, se->key), u(se->lease), u(se->token));
}
/* A release of what it does not hold, or by a token of another time: it frees nothing, but may leave a queue. */
static void stray_release(struct clients *cs, struct world *w, struct client *c, struct session *se) {
    const uint32_t key = se->holds ? se->key : story_key(cs->story, w, STORY_LOCKS);
    struct lin_op op = {.kind = LIN_RELEASE, .lease = se->lease};
    if (se->holds) op.version = world_chance(w, 500000) ? se->token - 1 : se->token_before;
    if (se->holds && op.version == 0) return;
    if (op.version == 0) se->releasing = true; /* without a token it may free what it is given meanwhile */
    if (op.version != 0)
        client_asks(cs, w, c, told_stray, key, op, 0, "LOCK.RELEASE %s LEASE %llu TOKEN %llu",
                    story_name(cs->story, key), u(op.lease), u(op.version));
    else
        client_asks(cs, w, c, told_stray, key, op, 0, "LOCK.RELEASE %s LEASE %llu", story_name(cs->story, key),
                    u(op.lease));
}
void session_acts(struct clients *cs, struct world *w, struct client *c, struct session *se) {
    /* A release whose outcome is unknown may come late and free what the same lease would be given again: the careful
     * client takes another lease. */
    if (se->releasing) forget(se);
    if (se->lease == 0) {
        const uint64_t ttl_ms = world_between(w, cs->ttl_ms_min, cs->ttl_ms_max);
        client_says(cs, w, c, told_lease, 0, ttl_ms, 0, "LEASE.GRANT %llu NAME s%u", u(ttl_ms), c->index);
        return;
    }
    if (se->holds && world_chance(w, 400000)) {
        const struct lin_op op = {.kind = LIN_CHECK, .version = se->token};
        client_asks(cs, w, c, told_check, se->key, op, se->lease, "LOCK.CHECK %s %llu", story_name(cs->story, se->key),
                    u(se->token));
        return;
    }
    if (world_chance(w, 50000) && !(se->holds && se->election)) {
        stray_release(cs, w, c, se);
        return;
    }
    if (world_chance(w, 20000)) {
        forget(se); /* it dies without a word */
        client_leaves(cs, w, c);
        return;
    }
    if (world_chance(w, 10000)) se->mute = true;
    if (world_chance(w, 20000)) {
        const uint64_t lease = se->lease;
        story_lease_ended(cs->story, lease, w->now_us);
        forget(se);
        client_says(cs, w, c, told_revoke, 0, lease, 0, "LEASE.REVOKE %llu", u(lease));
        return;
    }
    if (world_chance(w, 100000)) {
        const uint32_t key = story_key(cs->story, w, STORY_STRINGS);
        const struct lin_op op = {.kind = LIN_SET, .value = ++cs->next_value, .lease = se->lease};
        char value[CLIENT_VALUE_MAX];
        client_value(op.value, value);
        client_asks(cs, w, c, told_set, key, op, 0, "SET %s %s LEASE %llu", story_name(cs->story, key), value,
                    u(op.lease));
        return;
    }
    if (se->holds)
        release(cs, w, c, se);
    else
        acquire(cs, w, c, se);
}

static void told_keep(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                      const struct reply *r) {
    struct session *se = &cs->sessions[c->index - FIRST_KEEPER];
    check_late_sign(cs->lates, w, a->a, a->b);
    if (r->kind != '*' || r->count != 1) {
        if (r->kind != '-') world_fail(w, "R1: client %llu got another command's answer to LEASE.KEEPALIVE", u(c->id));
        return;
    }
    if (r->elements[0].number < 0)
        gone(w, se, a->a, "LEASE.KEEPALIVE");
    else if (se->lease == a->a)
        lives(cs, se, a->at_us, (uint64_t)r->elements[0].number);
}
void session_keeps(struct clients *cs, struct world *w, struct client *c, struct session *se) {
    if (se->lease == 0 || se->mute || world_chance(w, 700000)) return;
    check_late_sign(cs->lates, w, se->lease, se->ttl_ms);
    client_says(cs, w, c, told_keep, 0, se->lease, se->ttl_ms, "LEASE.KEEPALIVE %llu", u(se->lease));
}
