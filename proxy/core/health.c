#include "proxy/core/health.h"

void health_init(struct health *h, const struct health_config *config, uint64_t now_ms) {
    must(config->interval_ms > 0 && config->rise > 0 && config->fall > 0);
    *h = (struct health){.config = *config, .up = true, .next_probe_ms = now_ms};
}

void health_probe_started(struct health *h, uint64_t now_ms) {
    h->probe_started_ms = now_ms;
    h->next_probe_ms = now_ms + h->config.interval_ms;
}

static uint64_t quick_ms(const struct health *h) {
    return h->config.interval_ms / 4 > 0 ? h->config.interval_ms / 4 : 1;
}

/* A probe soon: a quarter of the interval after the last one began. */
static void probe_soon(struct health *h, uint64_t now_ms) {
    uint64_t soon = h->probe_started_ms + quick_ms(h);
    if (soon < now_ms) soon = now_ms;
    if (soon < h->next_probe_ms) h->next_probe_ms = soon;
}

static enum health_change go_down(struct health *h) {
    if (!h->up) return HEALTH_SAME;
    h->up = false;
    h->good = h->bad = 0;
    h->evidence_until_ms = 0;
    return HEALTH_WENT_DOWN;
}

static enum health_change one_failure(struct health *h, uint64_t now_ms) {
    h->good = 0;
    if (!h->up) return HEALTH_SAME;
    h->bad++;
    if (h->bad >= h->config.fall) return go_down(h);
    probe_soon(h, now_ms);
    return HEALTH_SAME;
}

enum health_change health_probe_ended(struct health *h, uint64_t now_ms, enum health_probe result) {
    const bool first = !h->decided;
    h->decided = true;
    if (result == HEALTH_PROBE_OK) {
        h->bad = 0;
        h->evidence_until_ms = 0;
        if (h->up) return first ? HEALTH_WENT_UP : HEALTH_SAME;
        h->good++;
        if (h->good < h->config.rise) return HEALTH_SAME;
        h->up = true;
        h->good = 0;
        return HEALTH_WENT_UP;
    }
    if (first) return go_down(h);
    if (result == HEALTH_PROBE_REFUSED && now_ms < h->evidence_until_ms) return go_down(h);
    return one_failure(h, now_ms);
}

enum health_change health_seen(struct health *h, uint64_t now_ms, enum health_evidence evidence) {
    if (!h->up) return HEALTH_SAME;
    const bool again = now_ms < h->evidence_until_ms;
    if (evidence == HEALTH_SEEN_REFUSED && again) return go_down(h);
    h->evidence_until_ms = now_ms + HEALTH_EVIDENCE_MS;
    probe_soon(h, now_ms);
    return evidence == HEALTH_SEEN_ENDED ? HEALTH_SAME : one_failure(h, now_ms);
}
