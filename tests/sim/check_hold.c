/* check_hold.c - see check_hold.h. */
#include "tests/sim/check_hold.h"
#include <stdlib.h>
#include "common/must.h"

enum { GRANTS_MAX = 8192, WISHES_MAX = 256 };

struct hold_facts {
    struct {
        uint64_t token, lease;
        uint32_t key;
    } grants[GRANTS_MAX];
    uint32_t count;
    uint64_t token_max;
    struct { /* who asks for what, and the highest token told when it first did */
        uint64_t lease, told_max;
        uint32_t key, open; /* open: questions whose answer is not known; any of them may be granted yet */
    } wishes[WISHES_MAX];
    uint32_t wish_count; /* in a ring: the oldest is forgotten */
};
static unsigned long long u(uint64_t x) {
    return x;
}

struct hold_facts *check_hold_new(void) {
    struct hold_facts *f = calloc(1, sizeof *f);
    must(f != NULL);
    return f;
}
void check_hold_free(struct hold_facts *f) {
    free(f);
}
bool session_alive(const struct world *w, const struct session *se) {
    return se->lease != 0 && w->now_us < se->until_us && !w->wild;
}
static uint32_t wish(const struct hold_facts *f, uint64_t lease, uint32_t key) {
    uint32_t i = 0;
    while (i < WISHES_MAX && (f->wishes[i].lease != lease || f->wishes[i].key != key)) i++;
    return i;
}
void check_hold_asked(struct hold_facts *f, const struct session *se) {
    uint32_t at = wish(f, se->lease, se->key);
    if (at == WISHES_MAX) {
        at = f->wish_count++ % WISHES_MAX;
        f->wishes[at].lease = se->lease;
        f->wishes[at].key = se->key;
        f->wishes[at].told_max = f->token_max;
        f->wishes[at].open = 0;
    }
    f->wishes[at].open++;
}
void check_hold_answered(struct hold_facts *f, uint64_t lease, uint32_t key) {
    const uint32_t at = wish(f, lease, key);
    if (at < WISHES_MAX && f->wishes[at].open > 0) f->wishes[at].open--;
}
void check_hold_released(struct hold_facts *f, uint64_t lease, uint32_t key) {
    const uint32_t at = wish(f, lease, key);
    if (at < WISHES_MAX && f->wishes[at].open == 0) f->wishes[at].lease = 0;
}
void check_lease_gone(struct world *w, const struct session *se, uint64_t lease, const char *by) {
    if (lease != 0 && lease == se->lease && session_alive(w, se))
        world_fail(w, "L: lease %llu is gone, says %s, and its holder's clock gives it another %llu us", u(lease), by,
                   u(se->until_us - w->now_us));
}
void check_hold_granted(struct hold_facts *f, struct world *w, const struct clients *cs, const struct session *se,
                        uint64_t lease, uint32_t key, uint64_t token) {
    bool known = false;
    for (uint32_t i = f->count; i-- > 0 && !known;) {
        if (f->grants[i].token != token) continue;
        known = true;
        if (f->grants[i].lease != lease || f->grants[i].key != key)
            world_fail(w, "F: token %llu was given for two locks or to two leases", u(token));
    }
    if (!known) {
        const uint32_t at = wish(f, lease, key);
        if (at < WISHES_MAX && token <= f->wishes[at].told_max)
            world_fail(w, "F: token %llu is given after %llu was told", u(token), u(f->wishes[at].told_max));
        if (f->count < GRANTS_MAX) {
            f->grants[f->count].token = token;
            f->grants[f->count].key = key;
            f->grants[f->count++].lease = lease;
        }
    }
    if (token > f->token_max) f->token_max = token;
    if (se->lease != lease || !session_alive(w, se)) return; /* too late to work under it */
    for (uint32_t i = 0; i < SESSIONS_MAX; i++) {
        const struct session *other = &cs->sessions[i];
        if (other != se && other->holds && other->key == key && session_alive(w, other))
            world_fail(w, "L: %s has two holders, tokens %llu and %llu", story_name(cs->story, key), u(other->token),
                       u(token));
    }
}
