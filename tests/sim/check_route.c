/* check_route.c - see check_route.h. */
#include "tests/sim/check_route.h"
#include <stdlib.h>
#include "common/must.h"

enum { EPOCHS_MAX = 4096 };

struct route_facts {
    uint64_t told_max[ROUTES_MAX];
    struct {
        uint64_t epoch, backend;
        uint32_t route;
    } epochs[EPOCHS_MAX];
    uint32_t count;
};
static unsigned long long u(uint64_t x) {
    return x;
}

struct route_facts *check_route_new(void) {
    struct route_facts *f = calloc(1, sizeof *f);
    must(f != NULL);
    return f;
}
void check_route_free(struct route_facts *f) {
    free(f);
}
bool proxy_serves(const struct world *w, const struct proxy *p, uint32_t route) {
    return p->lease != 0 && p->bindings[route].held && w->now_us < p->covered_us && !w->wild;
}
uint64_t check_route_floor(const struct route_facts *f, uint32_t route) {
    return f->told_max[route];
}
void check_route_shown(struct route_facts *f, struct world *w, uint32_t route, uint64_t epoch, uint64_t backend,
                       uint64_t floor) {
    if (epoch < floor)
        world_fail(w, "V: u%u is shown in epoch %llu to somebody who asked after %llu was told", route, u(epoch),
                   u(floor));
    if (epoch > f->told_max[route]) f->told_max[route] = epoch;
    for (uint32_t i = f->count; i-- > 0;) {
        if (f->epochs[i].epoch != epoch || f->epochs[i].route != route) continue;
        if (f->epochs[i].backend != backend) world_fail(w, "V: epoch %llu of u%u names two backends", u(epoch), route);
        return;
    }
    if (f->count == EPOCHS_MAX) return;
    f->epochs[f->count].epoch = epoch;
    f->epochs[f->count].route = route;
    f->epochs[f->count++].backend = backend;
}
void check_route_served(struct world *w, const struct clients *cs) {
    for (uint32_t route = 0; route < ROUTES_MAX; route++) {
        const struct proxy *first = NULL;
        for (uint32_t i = 0; i < cs->proxy_count; i++) {
            const struct proxy *p = &cs->proxies[i];
            if (!proxy_serves(w, p, route)) continue;
            if (first != NULL && first->bindings[route].epoch != p->bindings[route].epoch)
                world_fail(w, "V: u%u is served in epoch %llu to b%llu and in epoch %llu to b%llu at one time", route,
                           u(first->bindings[route].epoch), u(first->bindings[route].backend),
                           u(p->bindings[route].epoch), u(p->bindings[route].backend));
            first = p;
        }
    }
}
