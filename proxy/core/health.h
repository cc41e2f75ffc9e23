/* health.h - whether one backend is up, by its probes and by what the traffic saw.
 *
 * Place in the flow:  probe results, connection failures -> [health] -> placement, ROUTE.SUSPECT, moves
 *
 * Pure: the time comes in with each input; the caller makes the probes when health_next_probe_ms() says so.
 *
 * What always holds:
 *   H1  The first probe result decides at once; until it a backend counts as up.
 *   H2  Up becomes down by `fall` failures in a row, or at once by a refused connection (a probe's or the traffic's)
 *       within HEALTH_EVIDENCE_MS of other evidence from the traffic.  A refusal is the kernel's word that nobody
 *       listens; a closed or reset connection alone is not, because sessions end that way too.
 *   H3  Down becomes up only by `rise` good probes in a row: traffic that reaches a backend its probes cannot reach
 *       does not make it up.
 *   H4  Evidence from the traffic asks for a probe at once, but never more often than every interval / 4. */
#pragma once
#include "common/must.h"
#include <stdbool.h>
#include <stdint.h>

enum { HEALTH_EVIDENCE_MS = 1000 };

struct health_config {
    uint32_t interval_ms; /* between the starts of two probes, > 0 */
    uint32_t rise, fall;  /* in a row, > 0 */
};
struct health {
    struct health_config config;
    bool up, decided;   /* decided: at least one probe has ended */
    uint32_t good, bad; /* in a row */
    uint64_t evidence_until_ms;
    uint64_t probe_started_ms, next_probe_ms;
};
enum health_probe { HEALTH_PROBE_OK, HEALTH_PROBE_REFUSED, HEALTH_PROBE_FAILED /* timeout, unreachable ... */ };
enum health_evidence {
    HEALTH_SEEN_ENDED,   /* a connection was ended or reset by the backend */
    HEALTH_SEEN_REFUSED, /* a connection was refused */
    HEALTH_SEEN_FAILED   /* a connection could not be made in time */
};
enum health_change { HEALTH_SAME, HEALTH_WENT_UP, HEALTH_WENT_DOWN };

/* The first probe is due at once. */
void health_init(struct health *h, const struct health_config *config, uint64_t now_ms);
static inline bool health_is_up(const struct health *h) {
    return h->up;
}
/* When the next probe is to start; the caller starts none while one is out. */
static inline uint64_t health_next_probe_ms(const struct health *h) {
    return h->next_probe_ms;
}
void health_probe_started(struct health *h, uint64_t now_ms);
/* The probe started last has ended. */
NODISCARD enum health_change health_probe_ended(struct health *h, uint64_t now_ms, enum health_probe result);
/* What the traffic saw. */
NODISCARD enum health_change health_seen(struct health *h, uint64_t now_ms, enum health_evidence evidence);
