/* node.c - see node.h. */
#include "lockd/io/node.h"
#include "common/io/clock.h"
#include "common/io/heap.h"
#include "common/io/log.h"
#include "lockd/core/replica.h"
#include "lockd/io/checkpoint.h"
#include "lockd/io/clients.h"
#include "lockd/io/peers.h"
#include "lockd/io/store.h"
#include <event2/event_struct.h>
#include <errno.h>
#include <event2/event.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    INFLIGHT_MAX = 16,
    BATCH_BYTES_MAX = 2 * 1024 * 1024,
    QUEUE_BYTES_MAX = 64 * 1024 * 1024,
    CLIENT_PENDING_MAX = 1024,
    STORE_QUEUE_BYTES_MAX = 256 * 1024 * 1024,
    FETCH_BYTES = 4 * 1024 * 1024,         /* one answer to a peer that catches up */
    FETCH_BACKLOG_BYTES = 8 * 1024 * 1024, /* no more of them while that much waits on its link */
    STOP_MS = 500,
    LOOK_MS = 500,           /* how often the disk is looked at */
    LOOK_PARTS = 8,          /* and when this part of the reserve was written meanwhile */
    INSTALL_RETRY_MS = 1000, /* after a snapshot that could not be written */
    JOINING_MS = 5000,       /* who has not found its cluster by then says what may be missing */
    LOADING_LOOK_MS = 20,    /* how often a loading node looks at its sockets */
    SPARE_DESCRIPTORS = 256  /* store, peers, timers, and what the libraries open */
};

struct fetch {
    bool wanted;
    paxos_slot from_slot, to_slot;
};

struct node {
    const struct config *config;
    struct event_base *base;
    struct event turn_event, timer_event, wake_event, term_event, int_event, stop_event, look_event, install_event;
    int timer_fd, wake_fd;
    int client_listener, peer_listener; /* -1 once handed over */
    uint64_t armed_ms;                  /* what timer_fd is set to; UINT64_MAX: nothing */
    uint64_t durable;
    bool in_replica, stopping;
    bool handing_over; /* somebody else should lead before we end */
    bool loading;      /* the log is being replayed: every command is answered -LOADING */
    uint64_t looked_ms;
    int result;
    uint32_t clients_max;
    const char *addresses[PAXOS_NODES_MAX];
    struct store *store;
    struct checkpoint *checkpoint;
    uint64_t cluster_id;        /* 0: none yet */
    paxos_slot not_begun;       /* a checkpoint that could not even begin; told after the turn */
    paxos_slot installing;      /* 0: nothing */
    struct slice install_bytes; /* valid until it is installed */
    paxos_slot damaged;         /* the checkpoint of that slot cannot be read; said once */
    uint64_t start_ms;
    bool joining_told;
    uint64_t disk_reserve;   /* what counts of it */
    uint64_t unlooked_bytes; /* given to the store since the disk was looked at */
    struct replica *replica;
    struct clients *clients;
    struct peers *peers; /* NULL without nodes */
    uint64_t refusals[LINK_REFUSAL_END];
    struct fetch fetches[PAXOS_NODES_MAX];
    bool fetching;
    struct paxos_entry entries[FRAME_ENTRIES_MAX];
    struct buf frame, chunk;
};

/* ---- the turn ---- */

static void work(void *context) {
    struct node *n = context;
    if (!n->in_replica) event_active(&n->turn_event, EV_TIMEOUT, 0);
}

static void end(struct node *n, int result) {
    if (n->result == 0) n->result = result;
    event_base_loopbreak(n->base);
}

/* The store's own words, once. */
static void end_failed_store(struct node *n, const char *error) {
    if (n->result == 0) log_error("store failed what=\"%s\"", error);
    end(n, 1);
}

static void run_fetches(struct node *n) {
    char error[STORE_ERROR_BYTES];
    bool failed;
    n->fetching = false;
    for (uint16_t peer = 0; peer < PAXOS_NODES_MAX; peer++) {
        struct fetch *f = &n->fetches[peer];
        if (!f->wanted) continue;
        f->wanted = false;
        if (n->peers == NULL || peers_backlog(n->peers, peer) > FETCH_BACKLOG_BYTES) continue; /* it asks again */
        const uint32_t count =
            store_fetch(n->store, f->from_slot, f->to_slot, FETCH_BYTES, n->entries, FRAME_ENTRIES_MAX);
        if (count == 0) continue;
        buf_clear(&n->frame);
        replica_chosen_frame(n->replica, peer, n->entries, count, &n->frame);
        peers_send(n->peers, peer, buf_slice(&n->frame));
    }
    if (n->frame.capacity > 2 * FETCH_BYTES) buf_release(&n->frame);
    (void)store_durable(n->store, &failed, error, sizeof error);
    if (failed) end_failed_store(n, error);
}

static void arm(struct node *n, uint64_t wake_ms) {
    if (wake_ms >= n->armed_ms) return; /* it will fire early and be set again */
    const struct itimerspec at = {
        .it_value = {.tv_sec = (time_t)(wake_ms / 1000), .tv_nsec = (long)(wake_ms % 1000) * 1000000}};
    must(timerfd_settime(n->timer_fd, TFD_TIMER_ABSTIME, &at, NULL) == 0);
    n->armed_ms = wake_ms;
}

/* What was given to the store since the last time may be on the disk or not yet: it is counted as if it were not. */
static void look_at_disk(struct node *n) {
    const uint64_t room = store_room_bytes(n->store);
    replica_disk_free(n->replica, room > n->unlooked_bytes ? room - n->unlooked_bytes : 0);
    n->unlooked_bytes = 0;
}

static void on_turn(int fd, short what, void *context) {
    struct node *n = context;
    (void)fd;
    (void)what;
    if (n->result != 0) return;
    if (n->loading) {
        clients_flush(n->clients, true);
        return;
    }
    n->in_replica = true;
    const uint64_t wake_ms = replica_turn(n->replica, clock_now_ms());
    n->in_replica = false;
    if (replica_halt_reason(n->replica) != NULL) {
        log_error("replica halted what=\"%s\"", replica_halt_reason(n->replica));
        end(n, 1);
        return;
    }
    if (n->not_begun != 0) {
        replica_checkpointed(n->replica, clock_now_ms(), n->not_begun, 0);
        n->not_begun = 0;
        work(n);
    }
    if (n->disk_reserve > 0 && n->unlooked_bytes > n->disk_reserve / LOOK_PARTS) look_at_disk(n);
    if (n->fetching) run_fetches(n);
    if (n->peers != NULL) peers_flush(n->peers);
    clients_flush(n->clients, !clients_has_leased(n->clients) || replica_reads_hold(n->replica, clock_now_ms()));
    arm(n, wake_ms);
    if (n->stopping && clients_count(n->clients) == 0 && !(n->handing_over && replica_is_leader(n->replica))) end(n, 0);
}

/* ---- inputs ---- */

static void on_timer(int fd, short what, void *context) {
    struct node *n = context;
    uint64_t count;
    (void)what;
    if (read(fd, &count, sizeof count) < 0) return;
    n->armed_ms = UINT64_MAX;
    work(n);
}

static void on_wake(int fd, short what, void *context) {
    struct node *n = context;
    char error[STORE_ERROR_BYTES];
    uint64_t count;
    bool failed;
    (void)what;
    if (read(fd, &count, sizeof count) < 0) return;
    const uint64_t durable = store_durable(n->store, &failed, error, sizeof error);
    if (failed) {
        end_failed_store(n, error);
        return;
    }
    if (durable == n->durable) return;
    n->durable = durable;
    replica_durable(n->replica, clock_now_ms(), durable);
    work(n);
}

/* From the commit thread. */
static void wake(void *context) {
    const struct node *n = context;
    const uint64_t one = 1;
    (void)!write(n->wake_fd, &one, sizeof one);
}

static bool client_room(void *context, uint64_t client) {
    const struct node *n = context;
    return n->loading || replica_client_room(n->replica, client);
}

static void client_command(void *context, uint64_t client, uint32_t argc, const struct slice *argv) {
    static const char loading[] = "-LOADING this node is reading its log\r\n";
    struct node *n = context;
    struct timespec unix_time; /* for the command TIME only */
    if (n->loading) {
        clients_reply(n->clients, client, slice_of(loading, sizeof loading - 1), false);
        return;
    }
    clock_gettime(CLOCK_REALTIME, &unix_time);
    const uint64_t unix_us = (uint64_t)unix_time.tv_sec * 1000000 + (uint64_t)unix_time.tv_nsec / 1000;
    replica_command(n->replica, clock_now_ms(), unix_us, client, argc, argv);
}

static void client_gone(void *context, uint64_t client) {
    struct node *n = context;
    if (!n->loading) replica_client_gone(n->replica, clock_now_ms(), client);
}

static void link_up(void *context, uint16_t peer) {
    struct node *n = context;
    replica_link_up(n->replica, clock_now_ms(), peer);
}

static void link_lost(void *context, uint16_t peer) {
    struct node *n = context;
    replica_link_lost(n->replica, clock_now_ms(), peer);
}

static bool peer_admits(void *context, uint16_t peer, uint64_t boot) {
    const struct node *n = context;
    return replica_admits(n->replica, peer, boot);
}

static enum link_refusal peer_frame(void *context, uint16_t peer, uint64_t boot, const struct frame *frame) {
    struct node *n = context;
    /* frames may be answered while they are taken in: what leaves then waits for the turn's flush like the rest */
    n->in_replica = true;
    const enum link_refusal why = replica_frame(n->replica, clock_now_ms(), peer, boot, frame);
    n->in_replica = false;
    return why;
}

/* ---- outputs; all inside replica_turn ---- */

static void save(void *context, uint64_t batch, const struct paxos_output *out, const struct identity_record *record) {
    struct node *n = context;
    if (record != NULL) n->cluster_id = record->cluster_id;
    for (uint32_t i = 0; out != NULL && i < out->save_count; i++) n->unlooked_bytes += out->saves[i].value.bytes;
    store_save(n->store, batch, out, record);
}

static void send_frame(void *context, uint16_t peer, struct slice frame) {
    struct node *n = context;
    if (n->peers != NULL) peers_send(n->peers, peer, frame);
}

static void reply(void *context, uint64_t client, struct slice bytes, bool leased) {
    struct node *n = context;
    clients_reply(n->clients, client, bytes, leased);
}

static void hang_up(void *context, uint64_t client) {
    struct node *n = context;
    clients_hang_up(n->clients, client);
}

static void fetch(void *context, uint16_t peer, paxos_slot from_slot, paxos_slot to_slot) {
    struct node *n = context;
    n->fetches[peer] = (struct fetch){.wanted = true, .from_slot = from_slot, .to_slot = to_slot};
    n->fetching = true;
}

/* ---- checkpoints and snapshots ---- */

static int save_keyspace(const void *state, int (*put)(void *context, struct slice bytes), void *context) {
    return keyspace_save(state, put, context);
}

static int save_bytes(const void *state, int (*put)(void *context, struct slice bytes), void *context) {
    return put(context, *(const struct slice *)state);
}

static void checkpoint(void *context, const struct keyspace *ks, paxos_slot slot) {
    struct node *n = context;
    const int rc = checkpoint_begin(n->checkpoint, slot, n->cluster_id, save_keyspace, ks);
    if (rc == 0) return;
    log_warn("checkpoint failed slot=%llu what=\"%s\"", (unsigned long long)slot, strerror(-rc));
    n->not_begun = slot;
}

static void cut(void *context, paxos_slot slot) {
    struct node *n = context;
    store_cut(n->store, slot);
}

static void install_later(struct node *n) {
    const struct timeval pause = {.tv_sec = INSTALL_RETRY_MS / 1000, .tv_usec = INSTALL_RETRY_MS % 1000 * 1000};
    event_add(&n->install_event, &pause);
}

static void begin_install(struct node *n) {
    const int rc = checkpoint_begin(n->checkpoint, n->installing, n->cluster_id, save_bytes, &n->install_bytes);
    if (rc == 0) return;
    log_warn("checkpoint failed slot=%llu what=\"%s\"", (unsigned long long)n->installing, strerror(-rc));
    install_later(n);
}

static void install(void *context, paxos_slot slot, struct slice bytes) {
    struct node *n = context;
    n->installing = slot;
    n->install_bytes = bytes;
    begin_install(n);
}

static void on_install_timer(int fd, short what, void *context) {
    (void)fd;
    (void)what;
    begin_install(context);
}

/* The child has ended; not inside a turn. */
static void checkpoint_done(void *context, paxos_slot slot, const char *error) {
    struct node *n = context;
    const uint64_t now_ms = clock_now_ms();
    if (error != NULL) log_warn("checkpoint failed slot=%llu what=\"%s\"", (unsigned long long)slot, error);
    if (slot != n->installing) {
        replica_checkpointed(n->replica, now_ms, slot, error == NULL ? checkpoint_now(n->checkpoint)->bytes : 0);
    } else if (error != NULL) {
        install_later(n);
    } else {
        n->installing = 0;
        replica_installed(n->replica, now_ms, slot);
    }
    work(n);
}

static void snapshot_read(void *context, uint16_t peer, paxos_slot slot, uint64_t offset, uint32_t bytes) {
    struct node *n = context;
    int rc = 0;
    buf_clear(&n->chunk);
    while (rc == 0 && n->chunk.bytes < bytes) {
        struct slice part;
        rc = checkpoint_read(n->checkpoint, slot, offset + n->chunk.bytes, &part);
        if (rc == -ERANGE && n->chunk.bytes > 0) break; /* its end */
        if (rc != 0) continue;
        const size_t room = bytes - n->chunk.bytes;
        buf_append(&n->chunk, part.data, part.bytes < room ? part.bytes : room);
    }
    if (rc != 0 && rc != -ERANGE && rc != -ESTALE) {
        if (n->damaged != slot)
            log_error("checkpoint damaged slot=%llu what=\"%s; it cannot be given to a peer: another one takes its "
                      "place now, but look at the disk\"",
                      (unsigned long long)slot, rc == -EBADMSG ? "its checksum does not hold" : strerror(-rc));
        n->damaged = slot;
        replica_checkpoint_damaged(n->replica, slot);
    }
    if ((rc != 0 && rc != -ERANGE) || n->chunk.bytes == 0 || n->peers == NULL) return;
    buf_clear(&n->frame);
    replica_snapshot_frame(n->replica, slot, offset, buf_slice(&n->chunk), &n->frame);
    peers_send(n->peers, peer, buf_slice(&n->frame));
}

static size_t backlog(void *context, uint16_t peer) {
    const struct node *n = context;
    return n->peers != NULL ? peers_backlog(n->peers, peer) : 0;
}

/* ---- members ---- */

/* The founders are where this node's own configuration says (it may see them by other addresses than they do); who came
 * later is where NODE.ADD said.  A seat that was given up keeps its address: whoever comes back there is told by
 * identity that it is out. */
static void set_members(void *context, const struct ks_members *m) {
    struct node *n = context;
    const struct membership *newest = m->has_next ? &m->next : &m->now;
    if (n->peers == NULL) return;
    for (uint16_t seat = 0; seat < PAXOS_NODES_MAX; seat++) {
        struct net_address address;
        char error[NET_ERROR_BYTES];
        const bool sits = m->now.store_ids[seat] != 0 || newest->store_ids[seat] != 0; /* until it is out */
        const bool founder = newest->generation[seat] == 0 && seat < n->config->node_count;
        if (!sits || founder || seat + 1u == n->config->node || m->addresses[seat][0] == '\0') continue;
        if (net_parse(m->addresses[seat], false, &address, error, sizeof error) != 0)
            log_warn("lockd bad-address node=%u what=\"%s\"", seat + 1u, error);
        else
            peers_set(n->peers, seat, &address);
    }
}

/* ---- now and then ---- */

static void look_again(struct node *n) {
    const struct timeval pause = {.tv_sec = LOOK_MS / 1000, .tv_usec = LOOK_MS % 1000 * 1000};
    event_add(&n->look_event, &pause);
}

static void on_look(int fd, short what, void *context) {
    struct node *n = context;
    (void)fd;
    (void)what;
    if (n->result != 0) return;
    look_at_disk(n);
    const bool joining = replica_identity(n->replica) == IDENTITY_JOINING;
    if (joining && !n->joining_told && clock_now_ms() >= n->start_ms + JOINING_MS) {
        const unsigned number = (unsigned)n->config->node;
        log_warn(
            "lockd joining node=%u store=%016llx what=\"a new cluster waits until every node of it has shown itself; "
            "to be taken into one that exists, tell that one: NODE.ADD %u %s %016llx\"",
            number, (unsigned long long)store_id(n->store), number,
            n->config->has_nodes ? n->config->node_texts[number - 1] : "HOST:PORT",
            (unsigned long long)store_id(n->store));
        n->joining_told = true;
    }
    look_again(n);
}

static void note(void *context, char level, const char *text) {
    (void)context;
    log_line(level == 'e' ? LOG_LEVEL_ERROR : level == 'w' ? LOG_LEVEL_WARN : LOG_LEVEL_INFO, "%s", text);
}

/* ---- the end ---- */

static void on_signal(int number, short what, void *context) {
    struct node *n = context;
    const struct timeval stop = {.tv_usec = STOP_MS * 1000};
    (void)what;
    if (n->stopping) return;
    if (n->loading) { /* nothing is in flight, and what is half-read need not be read on */
        log_info("lockd stopped while=loading");
        _exit(0);
    }
    log_info("lockd stopping signal=%s clients=%u", number == SIGTERM ? "SIGTERM" : "SIGINT",
             clients_count(n->clients));
    n->stopping = true;
    n->handing_over = replica_hand_over(n->replica, clock_now_ms());
    clients_stop(n->clients);
    event_add(&n->stop_event, &stop);
    work(n);
}

static void on_stop_timer(int fd, short what, void *context) {
    (void)fd;
    (void)what;
    end(context, 0);
}

/* ---- the beginning ---- */

static int cannot_start(const char *error) {
    log_error("lockd cannot-start what=\"%s\"", error);
    return -1;
}

/* As many descriptors as clients-max needs; fewer clients when nobody asked for that many. */
static int raise_descriptors(struct node *n) {
    const rlim_t wanted = n->config->clients_max + SPARE_DESCRIPTORS;
    char error[256];
    struct rlimit limit;
    n->clients_max = (uint32_t)n->config->clients_max;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return cannot_start(strerror(errno));
    if (limit.rlim_cur >= wanted) return 0;
    struct rlimit higher = {.rlim_cur = wanted, .rlim_max = limit.rlim_max > wanted ? limit.rlim_max : wanted};
    if (setrlimit(RLIMIT_NOFILE, &higher) == 0) return 0;
    higher = (struct rlimit){.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &higher) != 0) higher = limit;
    if (higher.rlim_cur >= wanted) return 0;
    if (n->config->clients_max_given || higher.rlim_cur <= SPARE_DESCRIPTORS) {
        snprintf(error, sizeof error,
                 "clients-max %llu needs %llu file descriptors and the limit is %llu: raise it (ulimit -Hn, "
                 "LimitNOFILE) or lower clients-max",
                 (unsigned long long)n->config->clients_max, (unsigned long long)wanted,
                 (unsigned long long)higher.rlim_cur);
        return cannot_start(error);
    }
    n->clients_max = (uint32_t)(higher.rlim_cur - SPARE_DESCRIPTORS);
    log_warn("lockd fewer-clients clients-max=%u descriptors=%llu", n->clients_max,
             (unsigned long long)higher.rlim_cur);
    return 0;
}

/* Take the addresses before anything else is touched; listening starts when there is somebody to answer. */
static int bind_addresses(struct node *n) {
    char error[NET_ERROR_BYTES], text[NET_ERROR_BYTES + 32];
    const struct config *c = n->config;
    if (net_bind(&c->listen_address, &n->client_listener, error, sizeof error) != 0) {
        snprintf(text, sizeof text, "listen: %s", error);
        return cannot_start(text);
    }
    if (!c->has_nodes) return 0;
    if (net_bind(&c->nodes[c->node - 1], &n->peer_listener, error, sizeof error) != 0) {
        snprintf(text, sizeof text, "nodes, entry %llu: %s", (unsigned long long)c->node, error);
        return cannot_start(text);
    }
    return 0;
}

static int listen_all(struct node *n) {
    char error[NET_ERROR_BYTES];
    if (net_listen(n->client_listener, error, sizeof error) != 0) return cannot_start(error);
    if (n->peer_listener >= 0 && net_listen(n->peer_listener, error, sizeof error) != 0) return cannot_start(error);
    return 0;
}

static uint64_t random_id(void) {
    uint64_t id = 0;
    while (id == 0) id = clock_random_u64();
    return id;
}

static int open_store(struct node *n) {
    const struct config *c = n->config;
    char error[STORE_ERROR_BYTES];
    const struct store_config config = {.directory = c->data_dir,
                                        .map_bytes = c->log_map_bytes,
                                        .node = (uint16_t)(c->node - 1),
                                        .fresh_store_id = random_id(),
                                        .queue_bytes_max = STORE_QUEUE_BYTES_MAX,
                                        .wake = wake,
                                        .context = n};
    if (store_open(&config, &n->store, error, sizeof error) != 0) return cannot_start(error);
    const struct checkpoint_config checkpoint_config = {.directory = c->data_dir,
                                                        .base = n->base,
                                                        .store_id = store_id(n->store),
                                                        .done = checkpoint_done,
                                                        .context = n};
    if (checkpoint_open(&checkpoint_config, &n->checkpoint, error, sizeof error) != 0) return cannot_start(error);
    if (store_start_after(n->store, checkpoint_now(n->checkpoint)->slot, error, sizeof error) != 0)
        return cannot_start(error);
    return 0;
}

static int restore(void *context, paxos_slot slot, struct slice state, char *why, size_t why_bytes) {
    struct node *n = context;
    (void)slot;
    return replica_restore(n->replica, state, why, why_bytes);
}

static void replay(void *context, paxos_slot slot, struct slice value) {
    struct node *n = context;
    replica_replay(n->replica, slot, value);
    if (slot % 16 != 0) return;
    const uint64_t now_ms = clock_now_ms();
    if (now_ms < n->looked_ms + LOADING_LOOK_MS) return;
    n->looked_ms = now_ms;
    event_base_loop(n->base, EVLOOP_NONBLOCK);
}

static void make_peers(struct node *n, uint64_t boot_id) {
    const struct config *c = n->config;
    char name[NET_NAME_BYTES];
    const struct peers_config config = {.base = n->base,
                                        .node = (uint16_t)(c->node - 1),
                                        .boot = boot_id,
                                        .refusals = n->refusals,
                                        .listener = n->peer_listener,
                                        .sink = {.context = n,
                                                 .link_up = link_up,
                                                 .link_lost = link_lost,
                                                 .frame = peer_frame,
                                                 .admits = peer_admits,
                                                 .work = work}};
    net_local_name(n->peer_listener, name);
    log_info("lockd peer-listening address=%s node=%llu nodes=%u", name, (unsigned long long)c->node, c->node_count);
    n->peers = peers_new(&config);
    for (uint16_t seat = 0; seat < c->node_count; seat++) peers_set(n->peers, seat, &c->nodes[seat]);
    n->peer_listener = -1;
}

static int make_replica(struct node *n) {
    const struct config *c = n->config;
    char error[STORE_ERROR_BYTES];
    struct replica_saved saved;
    const uint64_t start_ms = clock_now_ms();
    store_saved(n->store, &saved);
    const struct checkpoint_head *head = checkpoint_now(n->checkpoint);
    saved.checkpoint_slot = head->slot;
    saved.checkpoint_bytes = head->bytes;
    n->cluster_id = saved.record.cluster_id;
    n->disk_reserve = c->disk_reserve < c->log_map_bytes / 4 ? c->disk_reserve : c->log_map_bytes / 4;
    if (head->slot != 0 && head->cluster_id != n->cluster_id) {
        snprintf(
            error, sizeof error,
            "the checkpoint in %.512s is of cluster %016llx and the log of cluster %016llx: restore both from one copy",
            c->data_dir, (unsigned long long)head->cluster_id, (unsigned long long)n->cluster_id);
        return cannot_start(error);
    }
    const unsigned members = saved.record.members.voters | saved.record.members.learners;
    if (!c->has_nodes && (members & (members - 1)) != 0) {
        snprintf(
            error, sizeof error,
            "the data directory %.512s belongs to node %llu of a cluster of %d: say where the others are (nodes, node)",
            c->data_dir, (unsigned long long)c->node, __builtin_popcount(members));
        return cannot_start(error);
    }
    const struct replica_config config = {.alloc = heap_alloc(),
                                          .node = (uint16_t)(c->node - 1),
                                          .node_count = (uint16_t)c->node_count,
                                          .store_id = store_id(n->store),
                                          .boot_id = random_id(),
                                          .fresh_cluster_id = random_id(),
                                          .seed = random_id(),
                                          .start_ms = start_ms,
                                          .heartbeat_ms = (uint32_t)c->heartbeat_ms,
                                          .lease_ms = (uint32_t)c->leader_lease_ms,
                                          .election_spread_ms = (uint32_t)c->election_spread_ms,
                                          .drift_ppm = (uint32_t)c->clock_drift_ppm,
                                          .forward_timeout_ms = (uint32_t)c->forward_timeout_ms,
                                          .reattach_ms = (uint32_t)c->reattach_ms,
                                          .inflight_max = INFLIGHT_MAX,
                                          .batch_bytes_max = BATCH_BYTES_MAX,
                                          .queue_bytes_max = QUEUE_BYTES_MAX,
                                          .client_pending_max = CLIENT_PENDING_MAX,
                                          .request_bytes_max = (uint32_t)c->request_bytes_max,
                                          .checkpoint_bytes = c->checkpoint_bytes,
                                          .disk_reserve = n->disk_reserve,
                                          .stall_ms = (uint32_t)c->stall_ms,
                                          .settings = c->settings,
                                          .version = HOLDFAST_VERSION,
                                          .node_addresses = c->has_nodes ? n->addresses : NULL,
                                          .refusals = n->refusals};
    const struct replica_sink sink = {.context = n,
                                      .save = save,
                                      .send = send_frame,
                                      .reply = reply,
                                      .hang_up = hang_up,
                                      .fetch = fetch,
                                      .note = note,
                                      .checkpoint = checkpoint,
                                      .cut = cut,
                                      .snapshot_read = snapshot_read,
                                      .install = install,
                                      .members = set_members,
                                      .backlog = backlog};
    n->replica = replica_new(&config, &saved, &sink);
    n->looked_ms = start_ms;
    if (head->slot != 0 && checkpoint_load(n->checkpoint, restore, n, error, sizeof error) != 0)
        return cannot_start(error);
    if (store_replay(n->store, replay, n, error, sizeof error) != 0) return cannot_start(error);
    n->loading = false;
    log_info("store opened directory=%s store=%016llx checkpoint=%llu slots=%llu ms=%llu", c->data_dir,
             (unsigned long long)config.store_id, (unsigned long long)head->slot,
             (unsigned long long)saved.paxos.chosen, (unsigned long long)(clock_now_ms() - start_ms));
    n->start_ms = start_ms;
    look_again(n);
    if (c->has_nodes) make_peers(n, config.boot_id);
    return 0;
}

static void make_clients(struct node *n) {
    const struct config *c = n->config;
    const struct clients_config config = {
        .base = n->base,
        .listener = n->client_listener,
        .clients_max = n->clients_max,
        .limits = {.argc_max = (uint32_t)c->arguments_max,
                   .arg_bytes_max = (uint32_t)c->request_bytes_max,
                   .request_bytes_max = (uint32_t)c->request_bytes_max},
        .sink = {.context = n, .room = client_room, .command = client_command, .gone = client_gone, .work = work}};
    n->clients = clients_new(&config);
    n->client_listener = -1;
}

static int make_loop(struct node *n) {
    struct event_config *config = event_config_new();
    must(config != NULL);
    event_config_set_flag(config, EVENT_BASE_FLAG_NO_CACHE_TIME);
    n->base = event_base_new_with_config(config);
    event_config_free(config);
    n->timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    n->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (n->base == NULL || n->timer_fd < 0 || n->wake_fd < 0) return cannot_start(strerror(errno));
    must(event_assign(&n->turn_event, n->base, -1, 0, on_turn, n) == 0);
    must(event_assign(&n->timer_event, n->base, n->timer_fd, EV_READ | EV_PERSIST, on_timer, n) == 0);
    must(event_assign(&n->wake_event, n->base, n->wake_fd, EV_READ | EV_PERSIST, on_wake, n) == 0);
    must(evsignal_assign(&n->term_event, n->base, SIGTERM, on_signal, n) == 0);
    must(evsignal_assign(&n->int_event, n->base, SIGINT, on_signal, n) == 0);
    must(evtimer_assign(&n->stop_event, n->base, on_stop_timer, n) == 0);
    must(evtimer_assign(&n->look_event, n->base, on_look, n) == 0);
    must(evtimer_assign(&n->install_event, n->base, on_install_timer, n) == 0);
    must(event_add(&n->timer_event, NULL) == 0 && event_add(&n->wake_event, NULL) == 0);
    must(event_add(&n->term_event, NULL) == 0 && event_add(&n->int_event, NULL) == 0);
    return 0;
}

static int start(struct node *n) {
    char name[NET_NAME_BYTES];
    if (raise_descriptors(n) != 0 || make_loop(n) != 0) return -1;
    if (bind_addresses(n) != 0 || open_store(n) != 0 || listen_all(n) != 0) return -1;
    net_local_name(n->client_listener, name);
    n->loading = true;
    make_clients(n);
    if (make_replica(n) != 0) return -1;
    log_info("lockd listening address=%s", name);
    return 0;
}

int node_run(const struct config *config) {
    const struct alloc *a = heap_alloc();
    struct node *n = alloc_get0(a, sizeof *n);
    n->config = config;
    n->timer_fd = n->wake_fd = n->client_listener = n->peer_listener = -1;
    n->armed_ms = UINT64_MAX;
    n->frame.alloc = n->chunk.alloc = a;
    for (uint32_t i = 0; i < config->node_count; i++) n->addresses[i] = config->node_texts[i];
    signal(SIGPIPE, SIG_IGN);
    if (start(n) == 0) {
        work(n);
        event_base_dispatch(n->base);
    } else {
        n->result = 1;
    }
    clients_free(n->clients);
    peers_free(n->peers);
    checkpoint_close(n->checkpoint);
    if (n->result == 0) {
        store_close(n->store);
        log_info("lockd stopped");
    }
    return n->result; /* the process ends now: what is left is the system's to take back */
}
