/* local.h - commands that the node a client speaks to answers by itself: about the connection, the node, the commands.
 *
 * Pure.  Handed a view of the node; changes nothing but the connection's name. */
#pragma once
#include "lockd/core/command.h"
#include "lockd/core/keyspace.h"

struct local_view {
    uint16_t node, node_count;
    uint64_t store_id, boot_id, cluster_id;
    const char *role; /* leader, follower, candidate, joining, outcast */
    int leader;       /* node index, -1 unknown */
    struct ballot ballot;
    const struct keyspace *keyspace;
    paxos_slot members_slot; /* of the membership that is in effect for good (replica_members.c) */
    const char *version;
    const char *const *node_addresses; /* may be NULL */
    uint64_t uptime_ms;
    uint32_t pending, inflight_max;
    uint64_t client_pending_max, queue_bytes_max, request_bytes_max, forward_timeout_ms;
    /* checkpoints, snapshots and the disk */
    paxos_slot checkpoint_slot, log_cut;
    uint64_t checkpoint_bytes, log_bytes; /* of the newest checkpoint; applied since */
    bool checkpoint_running;
    uint64_t checkpoints_made, checkpoints_failed, snapshots_installed;
    paxos_slot snapshot_slot; /* being pulled; 0: none */
    uint64_t snapshot_bytes, snapshot_total;
    uint64_t disk_free, disk_reserve; /* disk_free UINT64_MAX: not known */
    bool disk_full;                   /* what grows is refused; a node that does not lead knows its own disk only */
    const uint64_t *refusals;         /* LINK_REFUSAL_END counters; may be NULL */
    uint64_t unix_us;
    uint64_t client; /* id of the connection */
    struct slice client_name;
};

enum local_verdict {
    LOCAL_ANSWERED,
    LOCAL_HANG_UP,
    LOCAL_NAME,     /* answered, and the connection is now called *ret_name */
    LOCAL_READONLY, /* answered, and its reads are this node's own from now on */
    LOCAL_READWRITE /* answered, and they are the leader's again */
};
enum local_verdict local_command(const struct local_view *view, const struct command *command, uint32_t argc,
                                 const struct slice *argv, struct buf *reply, struct slice *ret_name);
