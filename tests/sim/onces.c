/* onces.c - clients that want every command to run exactly once: each has a lease, numbers its commands and sends them
 * in ONCE, through any node and as often as it takes until there is an answer; now and then once more after that.  Each
 * works on names of its own, so it knows what a command that ran once, and after the ones before it, has to answer.
 * The lock is the exception: they fight for it, and wait. */
#include <stdio.h>
#include <string.h>
#include "tests/sim/check_late.h"
#include "tests/sim/check_once.h"
#include "tests/sim/clients.h"

enum once_kind { ONCE_INCR, ONCE_SCRIPT, ONCE_SET_NX, ONCE_CAS, ONCE_ACQUIRE, ONCE_RELEASE };

static unsigned long long u(uint64_t x) {
    return x;
}
static struct once_client *state_of(struct clients *cs, const struct client *c) {
    return &cs->onces[c->index - FIRST_ONCE];
}
static void told_lease(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                       const struct reply *r) {
    if (r->kind != ':') return;
    *state_of(cs, c) = (struct once_client){.lease = (uint64_t)r->number, .answered = true};
    check_late_sign(cs->lates, w, (uint64_t)r->number, a->a);
}

/* All that a reply says, as text. */
static void as_text(const struct reply *r, char *text, size_t bytes) {
    int at = snprintf(text, bytes, "%c", r->kind);
    if (r->kind == '*') {
        for (uint32_t i = 0; i < r->count && (size_t)at < bytes; i++)
            at += snprintf(text + at, bytes - (size_t)at, " %lld", (long long)r->elements[i].number);
    } else if (r->kind == ':') {
        snprintf(text + at, bytes - (size_t)at, "%lld", (long long)r->number);
    } else if (r->kind != 'n') {
        snprintf(text + at, bytes - (size_t)at, "%.*s", (int)(r->text.bytes < 40 ? r->text.bytes : 40), r->text.data);
    }
}
/* The first reply: what a single execution says? */
static void judge(struct world *w, struct once_client *o, const struct reply *r, const char *text) {
    char want[64] = "";
    switch (o->kind) {
    case ONCE_INCR:
    case ONCE_SCRIPT: snprintf(want, sizeof want, ":%llu", u(++o->count)); break;
    case ONCE_SET_NX: snprintf(want, sizeof want, "+OK"); break;
    case ONCE_CAS:
        if (r->kind == '*' && r->count >= 2 && r->elements[0].number == 1)
            o->version = (uint64_t)r->elements[1].number;
        else
            snprintf(want, sizeof want, "* 1 and a version");
        break;
    case ONCE_ACQUIRE:
        o->token = r->kind == ':' ? (uint64_t)r->number : 0;
        if (r->kind != ':' && r->kind != 'n') snprintf(want, sizeof want, "a token or nil");
        break;
    case ONCE_RELEASE:
        snprintf(want, sizeof want, ":1");
        o->token = 0;
        break;
    }
    if (want[0] != '\0' && strcmp(want, text) != 0)
        world_fail(w, "once: %s was answered %s; had it run once, it would have been %s", o->line, text, want);
}
/* a: lease, b: seq. */
static void told(struct clients *cs, struct world *w, struct client *c, const struct asked *a, const struct reply *r) {
    struct once_client *o = state_of(cs, c);
    static const char *const open[] = {"CLUSTERDOWN", "BUSY", "UNCERTAIN", "ERR this wait was"};
    char text[48];
    for (uint32_t i = 0; i < sizeof open / sizeof open[0]; i++) {
        if (reply_is_error(r, open[i])) return; /* it says it again, some other time */
    }
    if (reply_is_error(r, "NOLEASE")) {
        if (o->lease == a->a) *o = (struct once_client){0};
        return;
    }
    as_text(r, text, sizeof text);
    const bool first = check_once_told(cs->once_facts, w, a->a, a->b, text);
    if (r->kind == '-') world_fail(w, "once: %s was answered %s", o->line, text);
    if (!first || o->lease != a->a || o->seq != a->b) return;
    o->answered = true;
    judge(w, o, r, text);
}
static void next(struct world *w, uint32_t index, struct once_client *o) {
    static const char *const words[] = {"INCR", "EVAL @INC 1"};
    static const enum once_kind kinds[] = {ONCE_INCR,   ONCE_INCR, ONCE_INCR,    ONCE_SCRIPT,
                                           ONCE_SET_NX, ONCE_CAS,  ONCE_ACQUIRE, ONCE_ACQUIRE};
    memcpy(o->line_before, o->line, sizeof o->line);
    o->seq_before = o->seq;
    o->kind = o->token != 0 ? ONCE_RELEASE : kinds[world_below(w, 8)];
    o->seq += world_between(w, 1, 3);
    o->answered = false;
    char command[96] = "";
    switch (o->kind) {
    case ONCE_INCR:
    case ONCE_SCRIPT: snprintf(command, sizeof command, "%s o%llu", words[o->kind], u(o->lease)); break;
    case ONCE_SET_NX: snprintf(command, sizeof command, "SET n%llu.%llu %u NX", u(o->lease), u(o->seq), index); break;
    case ONCE_CAS:
        snprintf(command, sizeof command, "CAS v%llu %llu %llu", u(o->lease), u(o->version), u(o->seq));
        break;
    case ONCE_ACQUIRE:
        snprintf(command, sizeof command, "LOCK.ACQUIRE m0 LEASE %llu WAIT %u", u(o->lease),
                 world_chance(w, 700000) ? (unsigned)world_between(w, 1, 1500) : 0);
        break;
    case ONCE_RELEASE:
        snprintf(command, sizeof command, "LOCK.RELEASE m0 LEASE %llu TOKEN %llu", u(o->lease), u(o->token));
        break;
    }
    snprintf(o->line, sizeof o->line, "ONCE %llu %llu %s", u(o->lease), u(o->seq), command);
}
void once_acts(struct clients *cs, struct world *w, struct client *c, struct once_client *o) {
    if (o->lease == 0) {
        const uint64_t ttl_ms = world_chance(w, 700000) ? 600000 : world_between(w, 1000, 4000);
        client_says(cs, w, c, told_lease, 0, ttl_ms, 0, "LEASE.GRANT %llu", u(ttl_ms));
        return;
    }
    if (o->seq_before != 0 && world_chance(w, 50000)) {
        client_says(cs, w, c, told, 0, o->lease, o->seq_before, "%s", o->line_before);
        return;
    }
    if (o->answered && !(o->line[0] != '\0' && world_chance(w, 250000))) next(w, c->index, o);
    client_says(cs, w, c, told, 0, o->lease, o->seq, "%s", o->line);
}
