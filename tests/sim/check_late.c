/* check_late.c - see check_late.h. */
#include "tests/sim/check_late.h"
#include <stdlib.h>
#include "common/must.h"

enum { LEASES_MAX = 1024, LATE_MS = 3000 };

struct late_facts {
    struct {
        uint64_t id, ttl_ms, last_us;
    } leases[LEASES_MAX];
    uint32_t count;    /* in a ring */
    uint64_t since_us; /* this leader serves without a break since then, in peace */
    struct ballot ballot;
};

struct late_facts *check_late_new(void) {
    struct late_facts *f = calloc(1, sizeof *f);
    must(f != NULL);
    return f;
}
void check_late_free(struct late_facts *f) {
    free(f);
}
void check_late_sign(struct late_facts *f, const struct world *w, uint64_t lease, uint64_t ttl_ms) {
    const uint32_t known = f->count < LEASES_MAX ? f->count : LEASES_MAX;
    uint32_t at = 0;
    while (at < known && f->leases[at].id != lease) at++;
    if (at == known) at = f->count++ % LEASES_MAX;
    f->leases[at].id = lease;
    f->leases[at].ttl_ms = ttl_ms;
    f->leases[at].last_us = w->now_us;
}
void check_late_look(struct late_facts *f, struct world *w, const struct keyspace *leading) {
    if (leading == NULL || !w->calm || !ballot_equal(keyspace_ballot(leading), f->ballot)) {
        f->since_us = w->now_us;
        if (leading != NULL) f->ballot = keyspace_ballot(leading);
        return;
    }
    for (uint32_t i = 0; i < f->count && i < LEASES_MAX; i++) {
        const uint64_t from = f->leases[i].last_us > f->since_us ? f->leases[i].last_us : f->since_us;
        uint64_t ttl_ms;
        if (w->now_us < from + (f->leases[i].ttl_ms * 111 / 100 + LATE_MS) * 1000) continue;
        if (!keyspace_lease(leading, f->leases[i].id, &ttl_ms)) continue;
        world_fail(w, "late: lease %llu of %llu ms lives on, %llu ms after the last sign of its holder",
                   (unsigned long long)f->leases[i].id, (unsigned long long)ttl_ms,
                   (unsigned long long)((w->now_us - f->leases[i].last_us) / 1000));
    }
}
