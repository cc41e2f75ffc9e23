/* session.c - see session.h.
 *
 *  state        what holds here                                        goes to                         ended by
 *  READING_KEY  client fd only; kept bytes <= key-bytes-max            ASKING CLOSED                   key-timeout-ms
 *  ASKING       the table has the connection; client read is off       CONNECTING CLOSED               ask-timeout-ms
 *  CONNECTING   a connect is out; nothing has been sent                SPLICING ASKING CLOSED connect-timeout-ms
 *  SPLICING     both fds; waiting bytes per side <= relay-buffer-bytes DRAINING CLOSED                 idle-timeout-ms
 *  DRAINING     one side has ended, the other direction still flows    CLOSED                          drain-timeout-ms
 *  CLOSED       unlinked, magic cleared, counted; freed by the loop, not by the callback */
#include "proxy/io/session.h"
#include "common/io/clock.h"
#include "common/io/heap.h"
#include "common/io/log.h"
#include "proxy/io/listener.h"
#include "proxy/io/lockd.h"
#include "proxy/io/probe.h"
#include "proxy/io/relay.h"
#include <errno.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

enum session_state { READING_KEY, ASKING, CONNECTING, SPLICING, DRAINING, CLOSED };
enum { LISTS = 4, LABEL_BYTES = 65, ASKS_MAX = 1024, MOVES_MAX = 256, LOOSE_AFTER_MS = 500, STOP_MS = 900 };
enum { FDS_APART = 256, KEEPALIVE_S = 60 };
static const uint32_t SESSION_MAGIC = 0x5e551011;

#define BIT(state) (1u << (state))
static const uint32_t may_go_to[] = {
    [READING_KEY] = BIT(ASKING) | BIT(CLOSED),
    [ASKING] = BIT(CONNECTING) | BIT(CLOSED),
    [CONNECTING] = BIT(SPLICING) | BIT(ASKING) | BIT(CLOSED),
    [SPLICING] = BIT(DRAINING) | BIT(CLOSED),
    [DRAINING] = BIT(CLOSED),
    [CLOSED] = 0,
};

TAILQ_HEAD(session_list, session);

struct session {
    uint32_t magic;
    enum session_state state;
    struct pool *pool;
    struct bindings_conn conn;
    int client_fd, backend_fd; /* -1: none */
    struct event client_event; /* READING_KEY */
    struct event connect_event;
    struct relay relay;
    char *head; /* what the client sent before its backend was connected; NULL: nothing */
    size_t head_bytes;
    struct key_scan scan;
    bool client_ended;
    uint16_t backend; /* the last one it was sent to; PLACEMENT_NONE */
    char source_ip[46];
    char label[LABEL_BYTES]; /* the session key for the log */
    uint64_t began_ms, deadline_ms;
    struct session_list *list; /* of its pool, by deadline; NULL: in none */
    TAILQ_ENTRY(session) of_list, of_all;
};

/* Sessions by state; in each list all have the same timeout, so the first is due first. */
enum list_index { LIST_KEY, LIST_CONNECT, LIST_IDLE, LIST_DRAIN };
struct pool {
    struct proxy *proxy;
    const struct config_pool *config;
    uint32_t index;
    struct listener *listener;
    struct placement_member *members; /* names for questions; the states are the table's */
    struct probe **probes;
    struct session_list lists[LISTS];
};
struct proxy {
    struct event_base *base;
    const struct config *config;
    struct pool *pools;
    struct bindings *bindings;
    struct lockd *lockd;
    struct event tick, reaper;
    struct session_list all, dead;
    uint64_t connection_count, connections_max, accepted;
    uint64_t closes[CLOSE_REASON_COUNT];
    bool draining; /* the outputs are being carried out */
    bool stopping;
};

static void settle(struct proxy *p);
static const struct relay_owner relay_fns;

/* ---- small things ---- */
static struct session *session_of(struct bindings_conn *conn) {
    struct session *s = conn->owner;
    must(s->magic == SESSION_MAGIC);
    return s;
}

static void enter(struct session *s, enum session_state state) {
    must((may_go_to[s->state] & BIT(state)) != 0);
    s->state = state;
}

static const char *backend_name(const struct pool *pool, uint32_t member) {
    return member < pool->config->backend_count ? pool->config->backends[member].name : "-";
}

/* What clients sent is shown as printable characters, without spaces and quotes, and cut. */
static void make_label(struct slice key, char label[static LABEL_BYTES]) {
    const size_t bytes = key.bytes < LABEL_BYTES - 1 ? key.bytes : LABEL_BYTES - 1;
    for (size_t i = 0; i < bytes; i++) {
        const char c = key.data[i];
        label[i] = c > ' ' && c < 0x7f && c != '"' && c != '\\' ? c : '?';
    }
    label[bytes] = '\0';
}

static void unlist(struct session *s) {
    if (s->list != NULL) TAILQ_REMOVE(s->list, s, of_list);
    s->list = NULL;
}

/* timeout_ms 0: never. */
static void enlist(struct session *s, enum list_index index, uint64_t timeout_ms) {
    unlist(s);
    if (timeout_ms == 0) return;
    s->deadline_ms = clock_now_ms() + timeout_ms;
    s->list = &s->pool->lists[index];
    TAILQ_INSERT_TAIL(s->list, s, of_list);
}

/* ---- the end of a session ---- */
static void close_backend(struct session *s, bool hard) {
    if (s->backend_fd < 0) return;
    if (s->state == CONNECTING) event_del(&s->connect_event);
    /* Hard: what the kernel still holds for the backend must not reach it either. */
    if (hard)
        (void)setsockopt(s->backend_fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1}, sizeof(struct linger));
    close(s->backend_fd);
    s->backend_fd = -1;
}

/* A line for the client that is not served; it arrives only if nothing of what it sent stays unread. */
static void say_refusal(const struct session *s) {
    const char *text = s->pool->config->refuse_text;
    if (text[0] == '\0' || s->client_fd < 0) return;
    char line[sizeof s->pool->config->refuse_text + 2], unread[4096];
    const int bytes = snprintf(line, sizeof line, "%s\r\n", text);
    (void)send(s->client_fd, line, (size_t)bytes, MSG_NOSIGNAL);
    (void)shutdown(s->client_fd, SHUT_WR);
    for (int i = 0; i < 16 && read(s->client_fd, unread, sizeof unread) > 0; i++) continue;
}

static bool is_cut(enum close_reason reason) {
    return reason == CLOSE_NO_COVER || reason == CLOSE_MOVED || reason == CLOSE_BACKEND_DOWN ||
           reason == CLOSE_SPLIT_LOST;
}

static void session_close(struct session *s, enum close_reason reason) {
    must(s->magic == SESSION_MAGIC && s->state != CLOSED);
    struct proxy *p = s->pool->proxy;
    const uint64_t now_ms = clock_now_ms();
    const bool relayed = s->state == SPLICING || s->state == DRAINING;
    if (s->state == READING_KEY) event_del(&s->client_event);
    if (relayed)
        relay_stop(&s->relay);
    else if (reason != CLOSE_CLIENT_CLOSED && reason != CLOSE_CLIENT_RESET && reason != CLOSE_SHUTDOWN)
        say_refusal(s);
    close_backend(s, is_cut(reason));
    bindings_gone(p->bindings, now_ms, &s->conn);
    close(s->client_fd);
    s->client_fd = -1;
    unlist(s);
    free(s->head);
    s->head = NULL;
    enter(s, CLOSED);
    s->magic = 0;
    p->closes[reason]++;
    p->connection_count--;
    TAILQ_REMOVE(&p->all, s, of_all);
    TAILQ_INSERT_TAIL(&p->dead, s, of_all);
    event_active(&p->reaper, 0, 0);
    log_info("session end reason=%s pool=%s session=%s backend=%s client=%s up=%llu down=%llu ms=%llu",
             close_reason_word(reason), s->pool->config->name_of, s->label, backend_name(s->pool, s->backend),
             s->source_ip, (unsigned long long)(relayed ? s->relay.backend.bytes : 0),
             (unsigned long long)(relayed ? s->relay.client.bytes : 0), (unsigned long long)(now_ms - s->began_ms));
}

static void on_reap(evutil_socket_t fd, short what, void *arg) {
    struct proxy *p = arg;
    struct session *s;
    (void)fd, (void)what;
    while ((s = TAILQ_FIRST(&p->dead)) != NULL) {
        TAILQ_REMOVE(&p->dead, s, of_all);
        free(s);
    }
}

/* ---- READING_KEY ---- */
static void session_want(struct session *s, struct slice key) {
    struct proxy *p = s->pool->proxy;
    make_label(key, s->label);
    event_del(&s->client_event);
    unlist(s);
    enter(s, ASKING);
    if (bindings_want(p->bindings, clock_now_ms(), &s->conn, s->pool->index, key) == BINDINGS_FULL)
        session_close(s, CLOSE_TABLE_FULL);
}

/* `last`: no byte more is waited for, because of this reason. */
static void look_for_key(struct session *s, bool last, enum close_reason reason) {
    struct slice key;
    switch (key_find(&s->pool->config->key, slice_of(s->head, s->head_bytes), last, slice_str(s->source_ip), &s->scan,
                     &key)) {
    case KEY_NEED_MORE: break;
    case KEY_FOUND: session_want(s, key); break;
    case KEY_NONE: session_close(s, last ? reason : CLOSE_NO_KEY); break;
    case KEY_TOO_LONG: session_close(s, CLOSE_KEY_TOO_LONG); break;
    }
}

static void on_client_readable(evutil_socket_t fd, short what, void *arg) {
    struct session *s = arg;
    struct proxy *p = s->pool->proxy;
    (void)what;
    must(s->magic == SESSION_MAGIC && s->state == READING_KEY);
    const size_t room = s->pool->config->key_bytes_max - s->head_bytes;
    char bytes[KEY_HEAD_BYTES_MAX]; /* the most key-bytes-max may be */
    const ssize_t got = read(fd, bytes, room);
    if (got < 0) {
        if (errno == EAGAIN || errno == EINTR) return;
        session_close(s, CLOSE_CLIENT_RESET);
    } else if (got == 0) {
        s->client_ended = true;
        look_for_key(s, true, CLOSE_CLIENT_CLOSED);
    } else {
        s->head = realloc(s->head, s->head_bytes + (size_t)got);
        must(s->head != NULL);
        memcpy(s->head + s->head_bytes, bytes, (size_t)got);
        s->head_bytes += (size_t)got;
        look_for_key(s, false, CLOSE_NO_KEY);
    }
    settle(p);
}

static void on_accept(void *owner, int fd, const char *source_ip) {
    struct pool *pool = owner;
    struct proxy *p = pool->proxy;
    struct session *s = calloc(1, sizeof *s);
    must(s != NULL);
    s->magic = SESSION_MAGIC;
    s->pool = pool;
    s->client_fd = fd;
    s->backend_fd = -1;
    s->backend = PLACEMENT_NONE;
    s->conn.owner = s;
    s->began_ms = clock_now_ms();
    snprintf(s->source_ip, sizeof s->source_ip, "%s", source_ip);
    snprintf(s->label, sizeof s->label, "-");
    net_tune(fd, KEEPALIVE_S, 0);
    event_assign(&s->client_event, p->base, fd, EV_READ | EV_PERSIST, on_client_readable, s);
    TAILQ_INSERT_TAIL(&p->all, s, of_all);
    p->connection_count++;
    p->accepted++;
    if (p->connection_count > p->connections_max) {
        session_close(s, CLOSE_CONNECTIONS_FULL);
    } else if (key_needs_no_bytes(&pool->config->key)) {
        look_for_key(s, false, CLOSE_NO_KEY);
    } else {
        event_add(&s->client_event, NULL);
        enlist(s, LIST_KEY, pool->config->key_timeout_ms);
    }
    settle(p);
}

/* ---- CONNECTING ---- */
static void connect_ended(struct session *s, int error) {
    struct proxy *p = s->pool->proxy;
    struct probe *probe = s->pool->probes[s->backend];
    if (error == 0) {
        event_del(&s->connect_event);
        bindings_connected(p->bindings, clock_now_ms(), &s->conn);
        settle(p); /* the table may have decided otherwise in this very moment */
        if (s->state != CONNECTING) return;
        unlist(s);
        enter(s, SPLICING);
        net_tune(s->backend_fd, KEEPALIVE_S, 0);
        enlist(s, LIST_IDLE, s->pool->config->idle_timeout_ms);
        relay_start(&s->relay, p->base, &relay_fns, s->client_fd, s->backend_fd,
                    (uint32_t)p->config->relay_buffer_bytes, s->head, s->head_bytes, s->client_ended);
        free(s->head);
        s->head = NULL;
        s->head_bytes = 0;
        return;
    }
    close_backend(s, false);
    unlist(s);
    enter(s, ASKING);
    /* In this order: what it says about the backend may have the session connected elsewhere at once. */
    bindings_connect_failed(p->bindings, clock_now_ms(), &s->conn);
    probe_seen(probe, error == ECONNREFUSED ? HEALTH_SEEN_REFUSED : HEALTH_SEEN_FAILED);
}

static void on_connected(evutil_socket_t fd, short what, void *arg) {
    struct session *s = arg;
    struct proxy *p = s->pool->proxy;
    (void)what;
    must(s->magic == SESSION_MAGIC && s->state == CONNECTING);
    connect_ended(s, net_socket_error(fd));
    settle(p);
}

static void start_connect(struct session *s, uint32_t member) {
    struct proxy *p = s->pool->proxy;
    const struct net_address *address = &s->pool->config->backends[member].address;
    must(s->state == ASKING && s->backend_fd < 0);
    s->backend = (uint16_t)member;
    enter(s, CONNECTING);
    const int error = net_connect(&address->sockaddr.sa, address->sockaddr_bytes, &s->backend_fd);
    if (error != 0) {
        s->backend_fd = -1;
        enter(s, ASKING);
        struct probe *probe = s->pool->probes[member];
        bindings_connect_failed(p->bindings, clock_now_ms(), &s->conn);
        if (error == -ECONNREFUSED)
            probe_seen(probe, HEALTH_SEEN_REFUSED);
        else
            log_warn("proxy connect-failed backend=%s why=\"%s\"", backend_name(s->pool, member), strerror(-error));
        return;
    }
    event_assign(&s->connect_event, p->base, s->backend_fd, EV_WRITE, on_connected, s);
    event_add(&s->connect_event, NULL);
    enlist(s, LIST_CONNECT, s->pool->config->connect_timeout_ms);
}

/* ---- SPLICING, DRAINING ---- */
static struct session *session_of_relay(struct relay *r) {
    struct session *s = (struct session *)((char *)r - offsetof(struct session, relay));
    must(s->magic == SESSION_MAGIC);
    return s;
}

static bool relay_may_write(struct relay *r) {
    struct session *s = session_of_relay(r);
    return bindings_may_write(s->pool->proxy->bindings, clock_now_ms(), &s->conn);
}

static void relay_active(struct relay *r) {
    struct session *s = session_of_relay(r);
    if (s->list == NULL) return; /* no timeout */
    if (s->state == SPLICING)
        enlist(s, LIST_IDLE, s->pool->config->idle_timeout_ms);
    else
        enlist(s, LIST_DRAIN, s->pool->config->drain_timeout_ms);
}

static void relay_half_closed(struct relay *r, bool client) {
    struct session *s = session_of_relay(r);
    enter(s, DRAINING);
    enlist(s, LIST_DRAIN, s->pool->config->drain_timeout_ms);
    if (!client) probe_seen(s->pool->probes[s->backend], HEALTH_SEEN_ENDED);
    settle(s->pool->proxy);
}

static void relay_ended(struct relay *r, enum relay_end end) {
    static const enum close_reason reasons[] = {[RELAY_CLIENT_CLOSED] = CLOSE_CLIENT_CLOSED,
                                                [RELAY_CLIENT_RESET] = CLOSE_CLIENT_RESET,
                                                [RELAY_BACKEND_CLOSED] = CLOSE_BACKEND_CLOSED,
                                                [RELAY_BACKEND_RESET] = CLOSE_BACKEND_RESET,
                                                [RELAY_FORBIDDEN] = CLOSE_NO_COVER};
    struct session *s = session_of_relay(r);
    struct proxy *p = s->pool->proxy;
    struct probe *probe = s->pool->probes[s->backend];
    session_close(s, reasons[end]);
    if (end == RELAY_BACKEND_RESET) probe_seen(probe, HEALTH_SEEN_ENDED);
    if (end == RELAY_FORBIDDEN) bindings_tick(p->bindings, clock_now_ms()); /* the others have no cover either */
    settle(p);
}

static const struct relay_owner relay_fns = {
    .may_write = relay_may_write, .active = relay_active, .half_closed = relay_half_closed, .ended = relay_ended};

/* ---- the table's outputs, in their order ---- */
static void retract(struct session *s) {
    if (s->state != CONNECTING) return;
    close_backend(s, true);
    unlist(s);
    enter(s, ASKING);
}

static void log_binding(struct proxy *p, const struct bindings_output *out) {
    const struct pool *pool = &p->pools[out->pool];
    char label[LABEL_BYTES];
    make_label(out->session, label);
    if (out->kind == BINDINGS_SAY_BOUND)
        log_info("session bound pool=%s session=%s backend=%s epoch=%llu new=%d", pool->config->name_of, label,
                 backend_name(pool, out->member), (unsigned long long)out->epoch, out->is_new);
    else
        log_info("session moved pool=%s session=%s from=%s to=%s epoch=%llu", pool->config->name_of, label,
                 backend_name(pool, out->from), backend_name(pool, out->member), (unsigned long long)out->epoch);
}

static void carry_out(struct proxy *p, const struct bindings_output *out) {
    struct session *s = out->conn != NULL ? session_of(out->conn) : NULL;
    switch (out->kind) {
    case BINDINGS_CLOSE: session_close(s, out->reason); break;
    case BINDINGS_RETRACT: retract(s); break;
    case BINDINGS_CONNECT: start_connect(s, out->member); break;
    case BINDINGS_REPLACE_LEASE:
        log_warn("lockd lease-replaced why=\"a late copy of a command of ours could end a hold\"");
        lockd_replace_lease(p->lockd);
        bindings_lease_lost(p->bindings, clock_now_ms());
        break;
    case BINDINGS_SAY_BOUND:
    case BINDINGS_SAY_MOVED: log_binding(p, out); break;
    case BINDINGS_SAY_COVERED: log_info("lockd covered"); break;
    case BINDINGS_SAY_UNCOVERED: log_warn("lockd uncovered"); break;
    default: lockd_ask(p->lockd, out, slice_str(p->pools[out->pool].config->name_of), p->pools[out->pool].members);
    }
}

static uint64_t wake_at(const struct proxy *p) {
    uint64_t wake = bindings_wake_at_ms(p->bindings);
    for (uint32_t i = 0; i < p->config->pool_count; i++)
        for (int l = 0; l < LISTS; l++) {
            const struct session *first = TAILQ_FIRST(&p->pools[i].lists[l]);
            if (first != NULL && first->deadline_ms < wake) wake = first->deadline_ms;
        }
    return wake;
}

/* After every input: carry out what it caused and set the timer.  Called again from within, the outer call does it. */
static void settle(struct proxy *p) {
    if (p->draining) return;
    p->draining = true;
    struct bindings_output out;
    while (bindings_take(p->bindings, &out)) carry_out(p, &out);
    p->draining = false;
    const uint64_t now_ms = clock_now_ms(), wake = wake_at(p);
    if (wake == UINT64_MAX) {
        event_del(&p->tick);
        return;
    }
    const uint64_t wait = wake > now_ms ? wake - now_ms : 0;
    const struct timeval tv = {.tv_sec = (time_t)(wait / 1000), .tv_usec = (suseconds_t)(wait % 1000 * 1000)};
    event_add(&p->tick, &tv);
}

static void timed_out(struct session *s) {
    switch (s->state) {
    case READING_KEY: look_for_key(s, true, CLOSE_KEY_TIMEOUT); break;
    case CONNECTING:
        event_del(&s->connect_event);
        connect_ended(s, ETIMEDOUT);
        break;
    case SPLICING: session_close(s, CLOSE_IDLE_TIMEOUT); break;
    case DRAINING: session_close(s, CLOSE_DRAIN_TIMEOUT); break;
    case ASKING:
    case CLOSED: must(false);
    }
}

static void on_tick(evutil_socket_t fd, short what, void *arg) {
    struct proxy *p = arg;
    (void)fd, (void)what;
    const uint64_t now_ms = clock_now_ms();
    bindings_tick(p->bindings, now_ms);
    settle(p);
    for (uint32_t i = 0; i < p->config->pool_count; i++)
        for (int l = 0; l < LISTS; l++) {
            struct session *s;
            while ((s = TAILQ_FIRST(&p->pools[i].lists[l])) != NULL && s->deadline_ms <= now_ms) {
                unlist(s);
                timed_out(s);
                settle(p);
            }
        }
    settle(p);
}

/* ---- what lockd says ---- */
static void on_lease_granted(void *owner, int64_t lease) {
    struct proxy *p = owner;
    log_info("lockd lease id=%lld", (long long)lease);
    bindings_lease_granted(p->bindings, clock_now_ms(), lease);
    settle(p);
}
static void on_lease_lost(void *owner, const char *why) {
    struct proxy *p = owner;
    log_warn("lockd lost why=\"%s\"", why);
    bindings_lease_lost(p->bindings, clock_now_ms());
    settle(p);
}
static void on_next(void *owner, int64_t lease, uint32_t ttl_ms, uint64_t serial,
                    const struct bindings_revocation *revocations, uint32_t count) {
    struct proxy *p = owner;
    bindings_next(p->bindings, clock_now_ms(), lease, ttl_ms, serial, revocations, count);
    settle(p);
}
static void on_next_failed(void *owner, int64_t lease) {
    struct proxy *p = owner;
    bindings_next_failed(p->bindings, clock_now_ms(), lease);
    settle(p);
}
static void on_binding(void *owner, uint64_t op, const struct bindings_reply *reply) {
    struct proxy *p = owner;
    bindings_binding(p->bindings, clock_now_ms(), op, reply);
    settle(p);
}
static void on_absent(void *owner, uint64_t op) {
    struct proxy *p = owner;
    bindings_absent(p->bindings, clock_now_ms(), op);
    settle(p);
}
static void on_dropped(void *owner, uint64_t op) {
    struct proxy *p = owner;
    bindings_dropped(p->bindings, clock_now_ms(), op);
    settle(p);
}
static void on_touched(void *owner, uint64_t op, uint64_t epoch) {
    struct proxy *p = owner;
    bindings_touched(p->bindings, clock_now_ms(), op, epoch);
    settle(p);
}
static void on_failed(void *owner, uint64_t op, enum bindings_failure failure) {
    struct proxy *p = owner;
    bindings_failed(p->bindings, clock_now_ms(), op, failure);
    settle(p);
}
static void on_suspected(void *owner, int64_t lease, uint32_t pool, uint32_t member, uint64_t suspecting,
                         uint64_t joined) {
    struct proxy *p = owner;
    bindings_suspected(p->bindings, clock_now_ms(), lease, pool, member, suspecting, joined);
    settle(p);
}
static void on_stopped(void *owner) {
    struct proxy *p = owner;
    event_base_loopbreak(p->base);
}
static uint32_t pool_named(void *owner, struct slice name) {
    const struct proxy *p = owner;
    for (uint32_t i = 0; i < p->config->pool_count; i++)
        if (slice_equal(slice_str(p->config->pools[i].name_of), name)) return i;
    return UINT32_MAX;
}
static const struct lockd_owner lockd_fns = {.lease_granted = on_lease_granted,
                                             .lease_lost = on_lease_lost,
                                             .next = on_next,
                                             .next_failed = on_next_failed,
                                             .binding = on_binding,
                                             .absent = on_absent,
                                             .dropped = on_dropped,
                                             .touched = on_touched,
                                             .failed = on_failed,
                                             .suspected = on_suspected,
                                             .stopped = on_stopped,
                                             .pool_named = pool_named};

static void on_health(void *owner, uint32_t pool, uint32_t member, bool up) {
    struct proxy *p = owner;
    log_info("backend %s pool=%s backend=%s", up ? "up" : "down", p->pools[pool].config->name_of,
             backend_name(&p->pools[pool], member));
    if (up)
        bindings_backend_up(p->bindings, clock_now_ms(), pool, member);
    else
        bindings_backend_down(p->bindings, clock_now_ms(), pool, member);
    settle(p);
}

/* ---- life ---- */
static void pool_init(struct proxy *p, uint32_t index) {
    struct pool *pool = &p->pools[index];
    pool->proxy = p;
    pool->index = index;
    pool->config = &p->config->pools[index];
    for (int l = 0; l < LISTS; l++) TAILQ_INIT(&pool->lists[l]);
    pool->members = calloc(pool->config->backend_count, sizeof *pool->members);
    pool->probes = calloc(pool->config->backend_count, sizeof(struct probe *));
    must(pool->members != NULL && pool->probes != NULL);
    for (uint32_t i = 0; i < pool->config->backend_count; i++) {
        const struct config_backend *backend = &pool->config->backends[i];
        pool->members[i] = (struct placement_member){
            .name = slice_str(backend->name), .weight = backend->weight, .draining = backend->drain};
    }
}

static void make_bindings(struct proxy *p) {
    struct bindings_pool_config *pools = calloc(p->config->pool_count, sizeof *pools);
    must(pools != NULL);
    for (uint32_t i = 0; i < p->config->pool_count; i++) {
        const struct config_pool *c = &p->config->pools[i];
        pools[i] = (struct bindings_pool_config){.name = slice_str(c->name_of),
                                                 .class = c->class,
                                                 .subset = (uint32_t)c->subset,
                                                 .load_bound_percent = (uint32_t)c->load_bound_percent,
                                                 .ask_timeout_ms = (uint32_t)c->ask_timeout_ms,
                                                 .member_count = c->backend_count,
                                                 .members = p->pools[i].members};
    }
    const struct bindings_config config = {.alloc = heap_alloc(),
                                           .pool_count = p->config->pool_count,
                                           .pools = pools,
                                           .clock_drift_ppm = (uint32_t)p->config->clock_drift_ppm,
                                           .sessions_max = (uint32_t)p->config->sessions_max,
                                           .asks_max = ASKS_MAX,
                                           .moves_max = MOVES_MAX,
                                           .idle_drop_ms = (uint32_t)p->config->session_idle_ms,
                                           .touch_ms = (uint32_t)p->config->session_touch_ms,
                                           .loose_after_ms = LOOSE_AFTER_MS,
                                           .loose_start_ms = (uint32_t)p->config->lease_ttl_ms,
                                           .seed = clock_random_u64()};
    p->bindings = bindings_new(&config, clock_now_ms());
    free(pools);
}

static void start_probes(struct proxy *p) {
    for (uint32_t i = 0; i < p->config->pool_count; i++) {
        const struct config_pool *c = &p->config->pools[i];
        for (uint32_t m = 0; m < c->backend_count; m++) {
            const struct probe_config config = {.address = c->backends[m].probe,
                                                .health = {.interval_ms = (uint32_t)c->probe_interval_ms,
                                                           .rise = (uint32_t)c->rise,
                                                           .fall = (uint32_t)c->fall},
                                                .timeout_ms = (uint32_t)c->probe_timeout_ms,
                                                .pool = i,
                                                .member = m,
                                                .fn = on_health,
                                                .owner = p};
            p->pools[i].probes[m] = probe_new(p->base, &config);
        }
    }
}

/* Every client takes two descriptors; some are for lockd, probes and the rest. */
static uint64_t connections_that_fit(const struct config *config) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) limit.rlim_cur = 1 << 20;
    uint64_t apart = FDS_APART;
    for (uint32_t i = 0; i < config->pool_count; i++) apart += config->pools[i].backend_count + 1;
    const uint64_t fit = limit.rlim_cur > apart + 2 ? (limit.rlim_cur - apart) / 2 : 1;
    if (config->connections_max == 0) return fit;
    if (config->connections_max > fit)
        log_warn("proxy few-files connections-max=%llu fit=%llu what=\"raise the limit of open files\"",
                 (unsigned long long)config->connections_max, (unsigned long long)fit);
    return config->connections_max;
}

int proxy_new(struct event_base *base, const struct config *config, struct proxy **ret_proxy, char *error,
              size_t error_bytes) {
    struct proxy *p = calloc(1, sizeof *p);
    must(p != NULL);
    p->base = base;
    p->config = config;
    p->connections_max = connections_that_fit(config);
    TAILQ_INIT(&p->all);
    TAILQ_INIT(&p->dead);
    event_assign(&p->tick, base, -1, 0, on_tick, p);
    event_assign(&p->reaper, base, -1, 0, on_reap, p);
    p->pools = calloc(config->pool_count, sizeof *p->pools);
    must(p->pools != NULL);
    for (uint32_t i = 0; i < config->pool_count; i++) pool_init(p, i);
    make_bindings(p);
    for (uint32_t i = 0; i < config->pool_count; i++) {
        struct pool *pool = &p->pools[i];
        if (listener_new(base, &pool->config->listen_address, on_accept, pool, &pool->listener, error, error_bytes) !=
            0) {
            proxy_free(p);
            return -1;
        }
    }
    const struct lockd_config lockd_config = {.addresses = config->lockd,
                                              .name = config->name,
                                              .ttl_ms = (uint32_t)config->lease_ttl_ms,
                                              .clock_drift_ppm = (uint32_t)config->clock_drift_ppm};
    if (lockd_new(base, &lockd_config, &lockd_fns, p, &p->lockd, error, error_bytes) != 0) {
        proxy_free(p);
        return -1;
    }
    start_probes(p);
    for (uint32_t i = 0; i < config->pool_count; i++)
        log_info("proxy listening pool=%s address=%s class=%s backends=%u subset=%llu", config->pools[i].name_of,
                 listener_name(p->pools[i].listener), config->pools[i].class_name, config->pools[i].backend_count,
                 (unsigned long long)config->pools[i].subset);
    settle(p);
    *ret_proxy = p;
    return 0;
}

static void close_listeners(struct proxy *p) {
    for (uint32_t i = 0; i < p->config->pool_count; i++) {
        listener_free(p->pools[i].listener);
        p->pools[i].listener = NULL;
    }
}

void proxy_stop(struct proxy *p) {
    if (p->stopping) return;
    p->stopping = true;
    log_info("proxy stopping connections=%llu", (unsigned long long)p->connection_count);
    close_listeners(p);
    struct session *s;
    while ((s = TAILQ_FIRST(&p->all)) != NULL) session_close(s, CLOSE_SHUTDOWN);
    settle(p);
    lockd_stop(p->lockd, STOP_MS);
}

void proxy_log_counters(const struct proxy *p) {
    const struct bindings_counters *c = bindings_counters(p->bindings);
    log_info("proxy counters accepted=%llu connections=%llu sessions=%u covered=%d bound=%llu moved=%llu "
             "moves_refused=%llu revoked=%llu asked_again=%llu split_possible=%llu uncovered=%llu leases_replaced=%llu "
             "heap=%zu",
             (unsigned long long)p->accepted, (unsigned long long)p->connection_count,
             bindings_session_count(p->bindings), bindings_is_covered(p->bindings, clock_now_ms()),
             (unsigned long long)c->bound, (unsigned long long)c->moved, (unsigned long long)c->moves_refused,
             (unsigned long long)c->revoked, (unsigned long long)c->asked_again, (unsigned long long)c->split_possible,
             (unsigned long long)c->uncovered, (unsigned long long)c->leases_replaced, heap_bytes_in_use());
    char line[1024];
    int used = 0;
    for (int r = 0; r < CLOSE_REASON_COUNT && used >= 0 && (size_t)used < sizeof line; r++)
        used += snprintf(line + used, sizeof line - (size_t)used, " %s=%llu", close_reason_word((enum close_reason)r),
                         (unsigned long long)p->closes[r]);
    log_info("proxy ends%s", line);
}

void proxy_free(struct proxy *p) {
    if (p == NULL) return;
    close_listeners(p);
    struct session *s;
    while ((s = TAILQ_FIRST(&p->all)) != NULL) session_close(s, CLOSE_SHUTDOWN);
    lockd_free(p->lockd);
    for (uint32_t i = 0; i < p->config->pool_count; i++) {
        for (uint32_t m = 0; m < p->pools[i].config->backend_count; m++) probe_free(p->pools[i].probes[m]);
        free(p->pools[i].probes);
        free(p->pools[i].members);
    }
    bindings_free(p->bindings);
    event_del(&p->tick);
    event_del(&p->reaper);
    on_reap(-1, 0, p);
    free(p->pools);
    free(p);
}
