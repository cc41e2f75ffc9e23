/* check_late.c - see check_late.h. */
#include "tests/sim/check_late.h"
#include <stdlib.h>
#include "common/must.h"
#include "lockd/core/keeper.h"

enum { LEASES_MAX = 1024, LATE_MS = 3000, COMMIT_MS = 300 };

struct late_facts {
    struct {
        uint64_t id, ttl_ms, last_us;
        uint64_t counted_us; /* of its ttl, by the leaders that came and went since the last sign */
    } leases[LEASES_MAX];
    uint32_t count;    /* in a ring */
    uint64_t since_us; /* this leader serves without a break since then, in peace */
    uint64_t seen_us;  /* and was seen to, last */
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
    f->leases[at].counted_us = 0;
}
/* What the leader that was last seen has taken off that lease, at least: it logs what remains after some time of
 * silence, and from then on at every interval; the rest of its time is lost with it. */
static uint64_t counted_us(const struct late_facts *f, uint32_t at) {
    const uint64_t ttl_ms = f->leases[at].ttl_ms, last_us = f->leases[at].last_us;
    const uint64_t first_ms = last_us > f->since_us ? ttl_ms / 2 : KEEPER_SILENT_MS + ttl_ms / 32;
    const uint64_t again_ms = ttl_ms / 8 > KEEPER_SILENT_MS ? ttl_ms / 8 : KEEPER_SILENT_MS;
    const uint64_t lost_us = ((first_ms > again_ms ? first_ms : again_ms) + COMMIT_MS) * 1000;
    const uint64_t from_us = last_us > f->since_us ? last_us : f->since_us;
    return f->seen_us > from_us + lost_us ? f->seen_us - from_us - lost_us : 0;
}
void check_late_look(struct late_facts *f, struct world *w, const struct keyspace *leading) {
    const uint32_t known = f->count < LEASES_MAX ? f->count : LEASES_MAX;
    if (leading == NULL || !w->calm || !ballot_equal(keyspace_ballot(leading), f->ballot)) {
        for (uint32_t i = 0; i < known; i++)
            f->leases[i].counted_us = w->calm ? f->leases[i].counted_us + counted_us(f, i) : 0;
        f->since_us = f->seen_us = w->now_us;
        if (leading != NULL) f->ballot = keyspace_ballot(leading);
        return;
    }
    f->seen_us = w->now_us;
    for (uint32_t i = 0; i < known; i++) {
        const uint64_t from = f->leases[i].last_us > f->since_us ? f->leases[i].last_us : f->since_us;
        const uint64_t patience_us = (f->leases[i].ttl_ms * 111 / 100 + LATE_MS) * 1000;
        uint64_t ttl_ms;
        if (w->now_us + f->leases[i].counted_us < from + patience_us) continue;
        if (!keyspace_lease(leading, f->leases[i].id, &ttl_ms)) continue;
        world_fail(w, "late: lease %llu of %llu ms lives on, %llu ms after the last sign of its holder",
                   (unsigned long long)f->leases[i].id, (unsigned long long)ttl_ms,
                   (unsigned long long)((w->now_us - f->leases[i].last_us) / 1000));
    }
}
