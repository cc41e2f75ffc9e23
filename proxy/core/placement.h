/* placement.h - which backends a session may live on, and which of them it is put on first.
 *
 * Place in the flow:  session key -> [placement] -> what ROUTE.BIND and ROUTE.MOVE are asked for
 *
 * Weighted rendezvous hashing (Thaler and Ravishankar 1998; the weights as in Schindelhauer and Schomaker 2005):
 * every member scores -weight / ln(h), h from a hash of (pool, session, member name) in (0, 1), and the highest scores
 * are the session's shard, in that order.  Bounded loads as in Mirrokni, Thorup and Zadimoghaddam 2018.
 *
 * Pure: no clock, global, allocation or libm; the logarithm is computed here, so that every proxy on every machine
 * gets the same bits and so the same order.
 *
 * What always holds:
 *   S1  A shard depends on names and weights of the pool's members only: not on which are up, not on their order
 *       in the config, not on load.
 *   S2  Adding a member changes a shard only by putting the new member into it; removing one only by taking it out.
 *   S3  A pick is a member of the shard that is up, or none: never a member outside the shard. */
#pragma once
#include "common/must.h"
#include "common/slice.h"

enum {
    PLACEMENT_MEMBERS_MAX = 1024, /* in one pool */
    PLACEMENT_SHARD_MAX = 64,     /* what ROUTE.BIND takes */
    PLACEMENT_WEIGHT_MAX = 1000,
    PLACEMENT_NONE = 0xffff /* no member */
};

struct placement_member {
    struct slice name; /* stable: the identity that is hashed; borrowed */
    uint32_t weight;   /* 1..PLACEMENT_WEIGHT_MAX */
    bool up;           /* by this proxy's view */
    bool draining;     /* takes no new session while another member of the shard can */
    uint32_t load;     /* sessions with a connection that this proxy knows of */
};

/* The ordered shard of `session`: the `subset` members with the highest scores, best first, as indexes into
 * `members`.  Fewer when the pool has fewer members.  `ret_shard` has room for PLACEMENT_SHARD_MAX.
 * member_count <= PLACEMENT_MEMBERS_MAX, 1 <= subset <= PLACEMENT_SHARD_MAX.  Returns the count. */
uint32_t placement_shard(struct slice pool, struct slice session, const struct placement_member *members,
                         uint32_t member_count, uint32_t subset, uint16_t *ret_shard);

/* Normal answers: someone was found, or no member of the shard is up. */
enum placement_verdict { PLACEMENT_PICKED, PLACEMENT_SHARD_DOWN };

/* The first of the shard that is up, not draining and under (1 + bound_percent / 100) times its fair part of the
 * load, this session included; if all are at the bound the least loaded for its weight that is up and not draining; if
 * only draining ones are up, the first of those.  Indexes >= member_count in the shard (members that a record names
 * but this proxy does not know) are passed over.  *ret_member is set only with PLACEMENT_PICKED. */
NODISCARD enum placement_verdict placement_pick(const struct placement_member *members, uint32_t member_count,
                                                const uint16_t *shard, uint32_t shard_count, uint32_t bound_percent,
                                                uint16_t *ret_member);

/* The score of one member: bigger is better, always finite and > 0.  Shown for tests and for explanations. */
double placement_score(struct slice pool, struct slice session, struct slice name, uint32_t weight);
