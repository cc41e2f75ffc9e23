/* proxies.c - clients that do what a proxy does with what it was told: bindings are held under one lease and served
 * from memory until the send time of the last ROUTE.NEXT that was answered, plus its ttl, less the drift of clocks.
 * Each has two connections: one that asks, one that waits for revocations. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "tests/sim/check_late.h"
#include "tests/sim/check_route.h"

static unsigned long long u(uint64_t x) {
    return x;
}
static struct proxy *asker_of(struct clients *cs, const struct client *c) {
    return &cs->proxies[c->index - FIRST_PROXY];
}
static void forget(struct proxy *p) {
    *p = (struct proxy){.rate_ppm = p->rate_ppm, .next_out = p->next_out};
}
static void gone(struct clients *cs, struct world *w, struct proxy *p, uint64_t lease) {
    if (lease != p->lease || lease == 0) return;
    if (w->now_us < p->covered_us && !w->wild)
        world_fail(w, "V: lease %llu is gone and covers what it holds for another %llu us", u(lease),
                   u(p->covered_us - w->now_us));
    forget(p);
    check_route_served(w, cs);
}

static void told_lease(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                       const struct reply *r) {
    struct proxy *p = asker_of(cs, c);
    if (r->kind != ':') return;
    forget(p);
    p->lease = (uint64_t)r->number;
    p->ttl_ms = a->a;
    check_late_sign(cs->lates, w, p->lease, p->ttl_ms);
}
/* a: lease, b: epoch told when it was asked << 8 | session. */
static void told_binding(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                         const struct reply *r) {
    struct proxy *p = asker_of(cs, c);
    const uint32_t route = (uint32_t)(a->b & 0xff);
    const uint64_t floor = a->b >> 8;
    if (reply_is_error(r, "NOLEASE")) gone(cs, w, p, a->a);
    if (r->kind == '-') return;
    if (r->kind == 'n') {
        if (floor > 0) world_fail(w, "V: the binding of u%u is forgotten, epoch %llu was told", route, u(floor));
        return;
    }
    if (r->kind != '*' || r->count < 5 || r->elements[0].text.bytes != 2) {
        world_fail(w, "R1: client %llu got another command's answer to ROUTE.*", u(c->id));
        return;
    }
    const uint64_t backend = (uint64_t)(r->elements[0].text.data[1] - '0'), epoch = (uint64_t)r->elements[1].number,
                   revision = (uint64_t)r->elements[2].number;
    check_route_shown(cs->routes, w, route, epoch, backend, floor);
    if (p->lease != a->a) return;
    if (epoch > p->bindings[route].seen_epoch) {
        p->bindings[route].seen_epoch = epoch;
        p->bindings[route].seen_backend = backend;
    }
    if (p->bindings[route].doubt != NO_DOUBT) return;
    if (revision <= p->serial) return; /* it may have been revoked already: not held, asked again */
    p->bindings[route].held = true;
    p->bindings[route].epoch = epoch;
    p->bindings[route].backend = backend;
    check_route_served(w, cs);
}
static void told_other(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                       const struct reply *r) {
    if (reply_is_error(r, "NOLEASE")) gone(cs, w, asker_of(cs, c), a->a);
}

static void told_dropped(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                         const struct reply *r) {
    if (r->kind == ':' && asker_of(cs, c)->lease == a->a) asker_of(cs, c)->bindings[a->b & 0xff].doubt = NO_DOUBT;
    told_other(cs, w, c, a, r);
}
static void told_moved(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                       const struct reply *r) {
    if (r->kind == '*' && asker_of(cs, c)->lease == a->a) asker_of(cs, c)->bindings[a->b & 0xff].doubt = NO_DOUBT;
    told_binding(cs, w, c, a, r);
}

void proxy_acts(struct clients *cs, struct world *w, struct client *c, struct proxy *p) {
    if (p->lease == 0) {
        const uint64_t ttl_ms = world_between(w, 1000, 2000);
        client_says(cs, w, c, told_lease, 0, ttl_ms, 0, "LEASE.GRANT %llu", u(ttl_ms));
        return;
    }
    if (world_chance(w, 5000)) {
        forget(p); /* it dies without a word */
        client_leaves(cs, w, c);
        return;
    }
    const uint32_t route = (uint32_t)world_below(w, ROUTES_MAX);
    struct binding *b = &p->bindings[route];
    const uint64_t tag = check_route_floor(cs->routes, route) << 8 | route;
    uint32_t target = (uint32_t)world_below(w, BACKENDS);
    uint64_t what = world_below(w, 10);
    if (b->doubt != NO_DOUBT) what = b->doubt == DOUBT_MOVE ? 5 : 7;
    switch (what) {
    case 0:
    case 1:
    case 2:
        client_says(cs, w, c, told_binding, 0, p->lease, tag, "ROUTE.BIND p u%u LEASE %llu b%u PREFER b0 b1 b2", route,
                    u(p->lease), target);
        break;
    case 3:
    case 4:
        client_says(cs, w, c, told_binding, 0, p->lease, tag, "ROUTE.GET p u%u LEASE %llu", route, u(p->lease));
        break;
    case 5:
    case 6:
        if (b->doubt == NO_DOUBT) {
            if (b->seen_epoch == 0) break;
            if (target == b->seen_backend) target = (target + 1) % BACKENDS;
            b->held = false; /* its own hold ends when the command is taken */
            b->doubt = DOUBT_MOVE;
            b->doubt_epoch = b->seen_epoch;
            b->doubt_target = target;
        }
        client_says(cs, w, c, told_moved, 0, p->lease, tag, "ROUTE.MOVE p u%u %llu LEASE %llu b%u FORCE", route,
                    u(b->doubt_epoch), u(p->lease), b->doubt_target);
        break;
    case 7:
        if (b->doubt == NO_DOUBT) {
            if (!b->held) break;
            b->held = false;
            b->doubt = DOUBT_DROP;
            b->doubt_epoch = b->epoch;
        }
        client_says(cs, w, c, told_dropped, 0, p->lease, tag, "ROUTE.DROP p u%u %llu LEASE %llu", route,
                    u(b->doubt_epoch), u(p->lease));
        break;
    case 8:
        client_says(cs, w, c, told_other, 0, p->lease, 0, "ROUTE.TOUCH p LEASE %llu u%u", u(p->lease), route);
        break;
    default:
        client_says(cs, w, c, told_other, 0, p->lease, 0, "ROUTE.SUSPECT p b%u 0 LEASE %llu", target, u(p->lease));
        break;
    }
}

static void told_next(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                      const struct reply *r) {
    struct proxy *p = &cs->proxies[c->index - FIRST_NEXT];
    p->next_out = false;
    check_late_sign(cs->lates, w, a->a, a->b);
    if (reply_is_error(r, "NOLEASE")) gone(cs, w, p, a->a);
    if (r->kind == '-' || p->lease != a->a) return;
    if (r->kind != '*' || r->count < 2 || (r->count - 2) % 3 != 0) {
        world_fail(w, "R1: client %llu got another command's answer to ROUTE.NEXT", u(c->id));
        return;
    }
    if ((uint64_t)r->elements[1].number > p->serial) p->serial = (uint64_t)r->elements[1].number;
    for (uint32_t i = 2; i + 2 < r->count; i += 3) {
        const uint32_t route = (uint32_t)(r->elements[i + 1].text.data[1] - '0');
        if (route < ROUTES_MAX && p->bindings[route].epoch <= (uint64_t)r->elements[i + 2].number)
            p->bindings[route].held = false;
    }
    const uint64_t until = lease_end_us(a->at_us, (uint64_t)r->elements[0].number, p->rate_ppm);
    if (until > p->covered_us) p->covered_us = until;
    check_route_served(w, cs);
}
void proxy_nexts(struct clients *cs, struct world *w, struct client *c, struct proxy *p) {
    if (p->lease == 0 || p->next_out || world_chance(w, 200000)) return;
    p->next_out = true;
    check_late_sign(cs->lates, w, p->lease, p->ttl_ms);
    client_says(cs, w, c, told_next, 0, p->lease, p->ttl_ms, "ROUTE.NEXT LEASE %llu %llu", u(p->lease), u(p->serial));
}
void proxy_next_lost(struct clients *cs, struct client *c) {
    cs->proxies[c->index - FIRST_NEXT].next_out = false;
}
