#include "lockd/core/local.h"
#include <stdio.h>
#include "lockd/core/link_refusal.h"
#include "lockd/core/membership.h"
#include "lockd/core/resp.h"

static void error_not_integer(struct buf *reply) {
    resp_error(reply, "ERR value is not an integer or out of range");
}

static bool name_is_fine(struct slice name) {
    if (name.bytes > 500) return false;
    for (size_t i = 0; i < name.bytes; i++)
        if (name.data[i] < '!' || name.data[i] > '~') return false;
    return true;
}

static enum local_verdict set_name(struct slice name, struct buf *reply, struct slice *ret_name) {
    if (!name_is_fine(name)) {
        resp_error(reply, "ERR Client names cannot contain spaces, newlines or special characters.");
        return LOCAL_ANSWERED;
    }
    *ret_name = name;
    return LOCAL_NAME;
}

static enum local_verdict hello(const struct local_view *view, uint32_t argc, const struct slice *argv,
                                struct buf *reply, struct slice *ret_name) {
    enum local_verdict verdict = LOCAL_ANSWERED;
    if (argc > 1) {
        int64_t version;
        if (!slice_to_i64(argv[1], &version)) {
            resp_error(reply, "ERR Protocol version is not an integer or out of range");
            return verdict;
        }
        if (version != 2) {
            resp_error(reply, "NOPROTO unsupported protocol version");
            return verdict;
        }
    }
    for (uint32_t i = 2; i < argc; i++) {
        if (slice_is_word(argv[i], "AUTH") && i + 2 < argc) {
            resp_error(reply, "ERR AUTH <password> called without any password configured for the default user. Are "
                              "you sure your configuration is correct?");
            return LOCAL_ANSWERED;
        }
        if (slice_is_word(argv[i], "SETNAME") && i + 1 < argc) {
            verdict = set_name(argv[++i], reply, ret_name);
            if (verdict == LOCAL_ANSWERED) return verdict;
        } else {
            char text[80];
            resp_error(reply, "ERR Syntax error in HELLO option '%s'", resp_show(argv[i], text, sizeof text));
            return LOCAL_ANSWERED;
        }
    }
    resp_array(reply, 14);
    resp_bulk_str(reply, "server");
    resp_bulk_str(reply, "redis");
    resp_bulk_str(reply, "version");
    resp_bulk_str(reply, "7.0.0");
    resp_bulk_str(reply, "proto");
    resp_integer(reply, 2);
    resp_bulk_str(reply, "id");
    resp_integer(reply, (int64_t)view->client);
    resp_bulk_str(reply, "mode");
    resp_bulk_str(reply, "standalone");
    resp_bulk_str(reply, "role");
    resp_bulk_str(reply, "master");
    resp_bulk_str(reply, "modules");
    resp_array(reply, 0);
    return verdict;
}

static enum local_verdict client(const struct local_view *view, uint32_t argc, const struct slice *argv,
                                 struct buf *reply, struct slice *ret_name) {
    if (slice_is_word(argv[1], "ID") && argc == 2) {
        resp_integer(reply, (int64_t)view->client);
    } else if (slice_is_word(argv[1], "GETNAME") && argc == 2) {
        if (view->client_name.bytes == 0)
            resp_nil(reply);
        else
            resp_bulk(reply, view->client_name);
    } else if (slice_is_word(argv[1], "SETNAME") && argc == 3) {
        if (set_name(argv[2], reply, ret_name) == LOCAL_ANSWERED) return LOCAL_ANSWERED;
        resp_ok(reply);
        return LOCAL_NAME;
    } else if (slice_is_word(argv[1], "SETINFO") && argc == 4) {
        if (!slice_is_word(argv[2], "LIB-NAME") && !slice_is_word(argv[2], "LIB-VER")) {
            char text[80];
            resp_error(reply, "ERR Unrecognized option '%s'", resp_show(argv[2], text, sizeof text));
        } else if (!name_is_fine(argv[3])) {
            char text[80];
            resp_error(reply, "ERR %s cannot contain spaces, newlines or special characters.",
                       resp_show(argv[2], text, sizeof text));
        } else {
            resp_ok(reply);
        }
    } else {
        char text[80];
        resp_error(reply, "ERR unknown subcommand or wrong number of arguments for '%s'. Try CLIENT HELP.",
                   resp_show(argv[1], text, sizeof text));
    }
    return LOCAL_ANSWERED;
}

static const char *address(const struct local_view *view, int node) {
    if (node < 0 || node >= PAXOS_NODES_MAX) return "";
    const char *known = keyspace_members(view->keyspace)->addresses[node];
    if (*known != '\0') return known;
    return view->node_addresses != NULL && node < view->node_count ? view->node_addresses[node] : "";
}

static bool wants(uint32_t argc, const struct slice *argv, const char *section) {
    bool any = argc == 1;
    for (uint32_t i = 1; i < argc; i++)
        any = any || slice_is_word(argv[i], section) || slice_is_word(argv[i], "ALL") ||
              slice_is_word(argv[i], "EVERYTHING") || slice_is_word(argv[i], "DEFAULT");
    return any;
}

static void info_persistence(const struct local_view *view, struct buf *b) {
    buf_printf(b,
               "# Persistence\r\nloading:0\r\ncheckpoint_slot:%llu\r\ncheckpoint_bytes:%llu\r\n"
               "checkpoint_in_progress:%d\r\ncheckpoints_made:%llu\r\ncheckpoints_failed:%llu\r\nlog_cut:%llu\r\n"
               "log_bytes_since_checkpoint:%llu\r\n",
               (unsigned long long)view->checkpoint_slot, (unsigned long long)view->checkpoint_bytes,
               view->checkpoint_running, (unsigned long long)view->checkpoints_made,
               (unsigned long long)view->checkpoints_failed, (unsigned long long)view->log_cut,
               (unsigned long long)view->log_bytes);
    buf_printf(b,
               "snapshots_installed:%llu\r\nsnapshot_slot:%llu\r\nsnapshot_bytes:%llu\r\nsnapshot_total_bytes:%llu\r\n",
               (unsigned long long)view->snapshots_installed, (unsigned long long)view->snapshot_slot,
               (unsigned long long)view->snapshot_bytes, (unsigned long long)view->snapshot_total);
    if (view->disk_free != UINT64_MAX) buf_printf(b, "disk_free_bytes:%llu\r\n", (unsigned long long)view->disk_free);
    buf_printf(b, "disk_reserve_bytes:%llu\r\ndisk_full:%d\r\n\r\n", (unsigned long long)view->disk_reserve,
               view->disk_full);
}

static void info(const struct local_view *view, uint32_t argc, const struct slice *argv, struct buf *reply) {
    struct buf b = {.alloc = reply->alloc};
    struct ks_counts counts;
    keyspace_counts(view->keyspace, &counts);
    if (wants(argc, argv, "SERVER"))
        buf_printf(&b,
                   "# Server\r\nredis_version:7.0.0\r\nredis_mode:standalone\r\nholdfast_version:%s\r\nnode:%u\r\n"
                   "nodes:%u\r\nstore_id:%016llx\r\nrun_id:%016llx%016llx00000000\r\nuptime_in_seconds:%llu\r\n\r\n",
                   view->version, view->node + 1u, (unsigned)view->node_count, (unsigned long long)view->store_id,
                   (unsigned long long)view->store_id, (unsigned long long)view->boot_id,
                   (unsigned long long)(view->uptime_ms / 1000));
    if (wants(argc, argv, "CLIENTS")) buf_printf(&b, "# Clients\r\npending_commands:%u\r\n\r\n", view->pending);
    if (wants(argc, argv, "MEMORY"))
        buf_printf(&b, "# Memory\r\nkeyspace_bytes:%llu\r\n\r\n", (unsigned long long)counts.memory_bytes);
    if (wants(argc, argv, "PERSISTENCE")) info_persistence(view, &b);
    if (wants(argc, argv, "REPLICATION"))
        buf_printf(&b,
                   "# Replication\r\nrole:master\r\nconnected_slaves:0\r\nholdfast_role:%s\r\nleader:%d\r\n"
                   "leader_address:%s\r\nballot:%llu.%u\r\napplied:%llu\r\nrevision:%llu\r\n\r\n",
                   view->role, view->leader < 0 ? 0 : view->leader + 1, address(view, view->leader),
                   (unsigned long long)view->ballot.round, ballot_seat(view->ballot) + 1u,
                   (unsigned long long)keyspace_slot(view->keyspace),
                   (unsigned long long)keyspace_revision(view->keyspace));
    if (wants(argc, argv, "HOLDFAST"))
        buf_printf(&b, "# Holdfast\r\nleases:%llu\r\nwaiters:%llu\r\nbindings:%llu\r\nscripts:%llu\r\n\r\n",
                   (unsigned long long)counts.leases, (unsigned long long)counts.waiters,
                   (unsigned long long)counts.bindings, (unsigned long long)counts.scripts);
    if (wants(argc, argv, "PEERS") && view->refusals != NULL) {
        buf_append_str(&b, "# Peers\r\n");
#define X(NAME, name, what)                                                                                            \
    buf_printf(&b, "peer_refused_" #name ":%llu\r\n", (unsigned long long)view->refusals[LINK_##NAME]);
        LINK_REFUSALS(X)
#undef X
        buf_append_str(&b, "\r\n");
    }
    if (wants(argc, argv, "LIMITS")) {
        const struct ks_settings *s = keyspace_settings(view->keyspace);
        buf_printf(&b,
                   "# Limits\r\nclient_pending_max:%llu\r\nqueue_bytes_max:%llu\r\nrequest_bytes_max:%llu\r\n"
                   "forward_timeout_ms:%llu\r\ninflight_max:%u\r\n",
                   (unsigned long long)view->client_pending_max, (unsigned long long)view->queue_bytes_max,
                   (unsigned long long)view->request_bytes_max, (unsigned long long)view->forward_timeout_ms,
                   view->inflight_max);
#define SETTING(name, value, low, high, unit, text) buf_printf(&b, #name ":%llu\r\n", (unsigned long long)s->name);
        KEYSPACE_SETTINGS(SETTING)
#undef SETTING
        buf_append_str(&b, "\r\n");
    }
    if (wants(argc, argv, "KEYSPACE") && counts.keys > 0)
        buf_printf(&b, "# Keyspace\r\ndb0:keys=%llu,expires=0,avg_ttl=0\r\n", (unsigned long long)counts.keys);
    resp_bulk(reply, buf_slice(&b));
    buf_release(&b);
}

static void map_text(struct buf *reply, const char *name, const char *value) {
    resp_bulk_str(reply, name);
    resp_bulk_str(reply, value);
}

static void map_number(struct buf *reply, const char *name, uint64_t value) {
    resp_bulk_str(reply, name);
    resp_integer(reply, (int64_t)value);
}

static void map_hex(struct buf *reply, const char *name, uint64_t value) {
    resp_bulk_str(reply, name);
    struct buf b = {.alloc = reply->alloc};
    buf_printf(&b, "%016llx", (unsigned long long)value);
    resp_bulk(reply, buf_slice(&b));
    buf_release(&b);
}

/* Each member: number, what it is, store, address.  What is not in effect yet is said as it will be. */
static void members(const struct local_view *view, struct buf *reply) {
    const struct ks_members *all = keyspace_members(view->keyspace);
    const struct membership *m = all->has_next ? &all->next : &all->now;
    uint32_t count = 0;
    for (int seat = 0; seat < PAXOS_NODES_MAX; seat++) count += m->store_ids[seat] != 0;
    resp_bulk_str(reply, "members");
    resp_array(reply, count);
    for (int seat = 0; seat < PAXOS_NODES_MAX; seat++) {
        if (m->store_ids[seat] == 0) continue;
        char store[17];
        snprintf(store, sizeof store, "%016llx", (unsigned long long)m->store_ids[seat]);
        resp_array(reply, 4);
        resp_integer(reply, seat + 1);
        resp_bulk_str(reply, m->voters & 1u << seat ? "voter" : "learner");
        resp_bulk_str(reply, store);
        resp_bulk_str(reply, address(view, seat));
    }
}

static void node_status(const struct local_view *view, struct buf *reply) {
    struct buf ballot = {.alloc = reply->alloc};
    buf_printf(&ballot, "%llu.%u", (unsigned long long)view->ballot.round, ballot_seat(view->ballot) + 1u);
    resp_array(reply, 38);
    map_number(reply, "node", view->node + 1u);
    map_number(reply, "nodes", view->node_count);
    map_hex(reply, "store-id", view->store_id);
    map_hex(reply, "boot", view->boot_id);
    map_text(reply, "role", view->role);
    map_number(reply, "leader", view->leader < 0 ? 0 : (uint64_t)view->leader + 1);
    map_text(reply, "leader-address", address(view, view->leader));
    resp_bulk_str(reply, "ballot");
    resp_bulk(reply, buf_slice(&ballot));
    map_number(reply, "applied", keyspace_slot(view->keyspace));
    map_number(reply, "revision", keyspace_revision(view->keyspace));
    map_hex(reply, "cluster-id", view->cluster_id);
    map_number(reply, "formed", view->cluster_id != 0);
    map_number(reply, "checkpoint", view->checkpoint_slot);
    map_number(reply, "log-cut", view->log_cut);
    map_number(reply, "snapshot", view->snapshot_slot);
    resp_bulk_str(reply, "disk-free");
    resp_integer(reply, view->disk_free > INT64_MAX ? -1 : (int64_t)view->disk_free);
    map_number(reply, "disk-full", view->disk_full);
    const struct ks_members *m = keyspace_members(view->keyspace);
    map_number(reply, "members-pending", m->has_next || m->now.slot > view->members_slot);
    members(view, reply);
    buf_release(&ballot);
}

enum local_verdict local_command(const struct local_view *view, const struct command *command, uint32_t argc,
                                 const struct slice *argv, struct buf *reply, struct slice *ret_name) {
    int64_t number;
    switch (command->id) {
    case CMD_HELLO: return hello(view, argc, argv, reply, ret_name);
    case CMD_CLIENT: return client(view, argc, argv, reply, ret_name);
    case CMD_PING:
        if (argc > 2)
            resp_error(reply, "ERR wrong number of arguments for 'ping' command");
        else if (argc == 2)
            resp_bulk(reply, argv[1]);
        else
            resp_simple(reply, "PONG");
        break;
    case CMD_ECHO: resp_bulk(reply, argv[1]); break;
    case CMD_SELECT:
        if (!slice_to_i64(argv[1], &number))
            error_not_integer(reply);
        else if (number != 0)
            resp_error(reply, "ERR DB index is out of range");
        else
            resp_ok(reply);
        break;
    case CMD_READONLY: resp_ok(reply); return LOCAL_READONLY;
    case CMD_READWRITE: resp_ok(reply); return LOCAL_READWRITE;
    case CMD_QUIT: resp_ok(reply); return LOCAL_HANG_UP;
    case CMD_COMMAND: command_reply(argc, argv, reply); break;
    case CMD_INFO: info(view, argc, argv, reply); break;
    case CMD_TIME:
        resp_array(reply, 2);
        resp_bulk_u64(reply, view->unix_us / 1000000);
        resp_bulk_u64(reply, view->unix_us % 1000000);
        break;
    case CMD_NODE_STATUS: node_status(view, reply); break;
    default: must(false); /* command_check and the table leave nothing else */
    }
    return LOCAL_ANSWERED;
}
