#define XXH_INLINE_ALL
#include <xxhash.h>
#include "proxy/core/placement.h"

/* Natural logarithm of m in [1, 2) by the series of atanh: with t = (m-1)/(m+1) <= 1/3 twenty terms are below one
 * unit in the last place.  Plain IEEE additions, multiplications and divisions: the same bits everywhere. */
static double ln_mantissa(double m) {
    const double t = (m - 1.0) / (m + 1.0), square = t * t;
    double sum = 0.0;
    for (int k = 39; k >= 1; k -= 2) sum = sum * square + 1.0 / k;
    return 2.0 * t * sum;
}

/* -ln((hash + 1/2) / 2^64): from 2.7e-20 to about 45. */
static double minus_ln(uint64_t hash) {
    if (hash >= (UINT64_C(1) << 63)) {
        /* Near 1 the logarithm loses all digits; use the distance to 1, which is exact. */
        const double rest = ((double)(~hash) + 0.5) / 18446744073709551616.0; /* 1 - h, at most 1/2 */
        if (rest < 1e-9) return rest;
    }
    if (hash == 0) return 45.05456673639644; /* -ln(2^-65) */
    const int shift = __builtin_clzll(hash);
    const double mantissa = (double)((hash << shift) >> 11) / 4503599627370496.0; /* 53 bits, in [1, 2) */
    return (double)(shift + 1) * 0.6931471805599453 - ln_mantissa(mantissa);
}

double placement_score(struct slice pool, struct slice session, struct slice name, uint32_t weight) {
    uint64_t hash = XXH3_64bits(pool.data, pool.bytes);
    hash = XXH3_64bits_withSeed(session.data, session.bytes, hash);
    hash = XXH3_64bits_withSeed(name.data, name.bytes, hash);
    const double distance = minus_ln(hash); /* never 0 */
    return (double)weight / distance;
}

static bool name_before(struct slice a, struct slice b) {
    const int order = memcmp(a.data, b.data, a.bytes < b.bytes ? a.bytes : b.bytes);
    return order != 0 ? order < 0 : a.bytes < b.bytes;
}

uint32_t placement_shard(struct slice pool, struct slice session, const struct placement_member *members,
                         uint32_t member_count, uint32_t subset, uint16_t *ret_shard) {
    must(member_count <= PLACEMENT_MEMBERS_MAX);
    must(subset >= 1 && subset <= PLACEMENT_SHARD_MAX);
    double scores[PLACEMENT_SHARD_MAX];
    uint32_t count = 0;
    for (uint32_t m = 0; m < member_count; m++) {
        const double score = placement_score(pool, session, members[m].name, members[m].weight);
        uint32_t at = count;
        while (at > 0 && (score > scores[at - 1] ||
                          (!(score < scores[at - 1]) && name_before(members[m].name, members[ret_shard[at - 1]].name))))
            at--;
        if (at >= subset) continue;
        if (count < subset) count++;
        for (uint32_t i = count - 1; i > at; i--) {
            scores[i] = scores[i - 1];
            ret_shard[i] = ret_shard[i - 1];
        }
        scores[at] = score;
        ret_shard[at] = (uint16_t)m;
    }
    return count;
}

/* load + 1 <= ceil((1 + percent/100) * (total + 1) * weight / weights), without rounding errors. */
static bool under_bound(const struct placement_member *m, uint64_t total, uint64_t weights, uint32_t bound_percent) {
    const uint64_t above = (100 + (uint64_t)bound_percent) * (total + 1) * m->weight;
    const uint64_t below = 100 * weights;
    return (uint64_t)m->load + 1 <= (above + below - 1) / below;
}

enum placement_verdict placement_pick(const struct placement_member *members, uint32_t member_count,
                                      const uint16_t *shard, uint32_t shard_count, uint32_t bound_percent,
                                      uint16_t *ret_member) {
    uint64_t total = 0, weights = 0;
    for (uint32_t m = 0; m < member_count; m++) {
        if (!members[m].up || members[m].draining) continue;
        total += members[m].load;
        weights += members[m].weight;
    }
    uint32_t least = PLACEMENT_NONE, draining = PLACEMENT_NONE;
    for (uint32_t i = 0; i < shard_count; i++) {
        if (shard[i] >= member_count) continue;
        const struct placement_member *m = &members[shard[i]];
        if (!m->up) continue;
        if (m->draining) {
            if (draining == PLACEMENT_NONE) draining = shard[i];
            continue;
        }
        if (under_bound(m, total, weights, bound_percent)) {
            *ret_member = shard[i];
            return PLACEMENT_PICKED;
        }
        if (least == PLACEMENT_NONE ||
            (uint64_t)m->load * members[least].weight < (uint64_t)members[least].load * m->weight)
            least = shard[i];
    }
    if (least == PLACEMENT_NONE) least = draining;
    if (least == PLACEMENT_NONE) return PLACEMENT_SHARD_DOWN;
    *ret_member = (uint16_t)least;
    return PLACEMENT_PICKED;
}
