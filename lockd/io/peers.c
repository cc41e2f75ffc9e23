/* peers.c - see peers.h.
 *
 * A dialled link:  WAITING -(timer)-> LOOKING_UP -> CONNECTING -> UP -(anything wrong)-> WAITING */
#include "lockd/io/peers.h"
#include "common/io/clock.h"
#include "common/io/heap.h"
#include "common/io/log.h"
#include <event2/event_struct.h>
#include <errno.h>
#include <event2/dns.h>
#include <event2/util.h>
#include <netdb.h>
#include <stdio.h>
#include <unistd.h>
#include <utlist.h>

enum {
    DIAL_MAGIC = 0x4449414c,
    ACCEPTED_MAGIC = 0x41434350,
    READ_BYTES = 256 * 1024,
    KEEPALIVE_S = 2,
    STEADY_MS = 2000, /* a link that lived this long starts over with a short pause */
    ACCEPT_PAUSE_MS = 100
};

enum dial_state { DIAL_WAITING, DIAL_LOOKING_UP, DIAL_CONNECTING, DIAL_UP };

/* Our link to one peer. */
struct dial {
    uint32_t magic;
    struct peers *all;
    uint16_t peer;
    enum dial_state state;
    int fd; /* -1 unless CONNECTING or UP */
    struct event event, write_event, timer;
    struct evdns_getaddrinfo_request *request;
    uint32_t backoff_ms;
    uint64_t attempt_ms; /* DIAL_WAITING: when the next one is due */
    uint64_t up_ms;
    bool told; /* that it is down: one line per change */
    bool dirty, overflow;
    struct buf out;
    size_t out_sent;
};

/* A link somebody dialled to us. */
struct accepted {
    uint32_t magic;
    struct peers *all;
    int fd;
    int peer; /* -1 before its HELLO */
    uint64_t boot;
    struct event event;
    struct buf in;
    struct accepted *prev, *next;
};

struct peers {
    struct peers_config config;
    struct evdns_base *dns; /* only if some address is a name */
    struct event accept_event, accept_timer;
    struct dial dials[PAXOS_NODES_MAX];
    struct accepted *accepted, *dead;
    uint32_t accepted_count;
    struct frame_scratch *scratch;
    char *bytes; /* READ_BYTES */
};

static void on_timer(int fd, short what, void *context);
static void on_connected(int fd, short what, void *context);
static void on_dial_readable(int fd, short what, void *context);
static void on_dial_writable(int fd, short what, void *context);
static void on_acceptable(int fd, short what, void *context);
static void on_accept_timer(int fd, short what, void *context);
static void on_readable(int fd, short what, void *context);

static struct timeval in_ms(uint32_t ms) {
    return (struct timeval){.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
}

/* ---- life ---- */

struct peers *peers_new(const struct peers_config *config) {
    const struct alloc *a = heap_alloc();
    struct peers *ps = alloc_get0(a, sizeof *ps);
    ps->config = *config;
    ps->scratch = alloc_get(a, sizeof *ps->scratch);
    ps->bytes = alloc_get(a, READ_BYTES);
    must(event_assign(&ps->accept_event, config->base, config->listener, EV_READ | EV_PERSIST, on_acceptable, ps) == 0);
    must(evtimer_assign(&ps->accept_timer, config->base, on_accept_timer, ps) == 0);
    must(event_add(&ps->accept_event, NULL) == 0);
    for (uint16_t i = 0; i < config->node_count; i++) {
        struct dial *d = &ps->dials[i];
        *d = (struct dial){
            .magic = DIAL_MAGIC, .all = ps, .peer = i, .fd = -1, .backoff_ms = PEERS_BACKOFF_MS, .out.alloc = a};
        must(evtimer_assign(&d->timer, config->base, on_timer, d) == 0);
        if (i == config->node) continue;
        if (!config->nodes[i].numeric && ps->dns == NULL)
            ps->dns =
                evdns_base_new(config->base, EVDNS_BASE_INITIALIZE_NAMESERVERS | EVDNS_BASE_DISABLE_WHEN_INACTIVE);
        event_active(&d->timer, EV_TIMEOUT, 0);
    }
    return ps;
}

static void take_down(struct dial *d);
static void drop(struct accepted *l);
static void bury(struct peers *ps);

void peers_free(struct peers *ps) {
    if (ps == NULL) return;
    const struct alloc *a = heap_alloc();
    event_del(&ps->accept_event);
    event_del(&ps->accept_timer);
    close(ps->config.listener);
    for (uint16_t i = 0; i < ps->config.node_count; i++) {
        struct dial *d = &ps->dials[i];
        if (d->request != NULL) evdns_getaddrinfo_cancel(d->request);
        take_down(d);
        event_del(&d->timer);
        d->magic = 0;
    }
    while (ps->accepted != NULL) drop(ps->accepted);
    bury(ps);
    if (ps->dns != NULL) evdns_base_free(ps->dns, 0);
    alloc_put(a, ps->scratch);
    alloc_put(a, ps->bytes);
    alloc_put(a, ps);
}

/* ---- links we dial ---- */

/* Close what there is of it. */
static void take_down(struct dial *d) {
    if (d->fd >= 0) {
        event_del(&d->event);
        if (d->state == DIAL_UP) event_del(&d->write_event);
        close(d->fd);
    }
    d->fd = -1;
    d->state = DIAL_WAITING;
    d->overflow = false;
    d->out_sent = 0;
    buf_release(&d->out);
}

static void attempt_in(struct dial *d, uint32_t ms) {
    const struct timeval pause = in_ms(ms);
    d->attempt_ms = clock_now_ms() + ms;
    event_add(&d->timer, &pause);
}

/* It lives: it has just dialled us.  No use in waiting out a pause that was meant for a dead one.  Many of these in a
 * row must not put the attempt off. */
static void try_soon(struct dial *d) {
    d->backoff_ms = PEERS_BACKOFF_MS;
    if (d->state == DIAL_WAITING && d->attempt_ms > clock_now_ms() + PEERS_SOON_MS) attempt_in(d, PEERS_SOON_MS);
}

/* It failed, or it never came up: say so once, try again later. */
static void try_later(struct dial *d, const char *why) {
    struct peers *ps = d->all;
    const bool was_up = d->state == DIAL_UP;
    if (was_up && clock_now_ms() - d->up_ms >= STEADY_MS) d->backoff_ms = PEERS_BACKOFF_MS;
    take_down(d);
    attempt_in(d, d->backoff_ms);
    d->backoff_ms = d->backoff_ms * 2 < PEERS_BACKOFF_MS_MAX ? d->backoff_ms * 2 : PEERS_BACKOFF_MS_MAX;
    if (was_up || !d->told)
        log_warn("peer link-down peer=%u address=%s:%u reason=\"%s\"", d->peer + 1u, ps->config.nodes[d->peer].host,
                 ps->config.nodes[d->peer].port, why);
    d->told = true;
    if (!was_up) return;
    ps->config.sink.link_lost(ps->config.sink.context, d->peer);
    ps->config.sink.work(ps->config.sink.context);
}

static void start_connect(struct dial *d, const struct sockaddr *sa, socklen_t bytes) {
    const int rc = net_connect(sa, bytes, &d->fd);
    if (rc != 0) {
        d->fd = -1;
        try_later(d, strerror(-rc));
        return;
    }
    const struct timeval timeout = in_ms(PEERS_CONNECT_MS);
    d->state = DIAL_CONNECTING;
    must(event_assign(&d->event, d->all->config.base, d->fd, EV_WRITE, on_connected, d) == 0);
    must(event_add(&d->event, &timeout) == 0);
}

static void on_address(int result, struct evutil_addrinfo *found, void *context) {
    struct dial *d = context;
    if (d->magic != DIAL_MAGIC) return; /* everything ends */
    d->request = NULL;
    if (result == EVUTIL_EAI_CANCEL) return;
    if (result != 0 || found == NULL) {
        try_later(d, result != 0 ? evutil_gai_strerror(result) : "no address");
    } else {
        start_connect(d, found->ai_addr, (socklen_t)found->ai_addrlen);
    }
    if (found != NULL) evutil_freeaddrinfo(found);
}

static void on_timer(int fd, short what, void *context) {
    struct dial *d = context;
    const struct net_address *address = &d->all->config.nodes[d->peer];
    (void)fd;
    (void)what;
    must(d->magic == DIAL_MAGIC && d->state == DIAL_WAITING);
    if (address->numeric) {
        start_connect(d, &address->sockaddr.sa, address->sockaddr_bytes);
        return;
    }
    if (d->all->dns == NULL) {
        try_later(d, "no name server");
        return;
    }
    char port[8];
    snprintf(port, sizeof port, "%u", address->port);
    const struct evutil_addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    d->state = DIAL_LOOKING_UP;
    /* may call back before it returns, and returns NULL then */
    struct evdns_getaddrinfo_request *request =
        evdns_getaddrinfo(d->all->dns, address->host, port, &hints, on_address, d);
    if (d->state == DIAL_LOOKING_UP) d->request = request;
}

static void on_connected(int fd, short what, void *context) {
    struct dial *d = context;
    struct peers *ps = d->all;
    must(d->magic == DIAL_MAGIC && d->state == DIAL_CONNECTING);
    const int error = (what & EV_TIMEOUT) != 0 ? ETIMEDOUT : net_socket_error(fd);
    if (error != 0) {
        try_later(d, strerror(error));
        return;
    }
    d->state = DIAL_UP;
    d->up_ms = clock_now_ms();
    d->told = false;
    net_tune(fd, KEEPALIVE_S, PEERS_SILENT_MS);
    event_del(&d->event);
    must(event_assign(&d->event, ps->config.base, fd, EV_READ | EV_PERSIST, on_dial_readable, d) == 0);
    must(event_assign(&d->write_event, ps->config.base, fd, EV_WRITE, on_dial_writable, d) == 0);
    must(event_add(&d->event, NULL) == 0);
    const struct frame hello = {.kind = FRAME_HELLO,
                                .hello = {.from = ps->config.node, .to = d->peer, .boot = ps->config.boot}};
    frame_encode(&hello, &d->out);
    d->dirty = true;
    log_info("peer link-up peer=%u address=%s:%u", d->peer + 1u, ps->config.nodes[d->peer].host,
             ps->config.nodes[d->peer].port);
    ps->config.sink.link_up(ps->config.sink.context, d->peer);
    ps->config.sink.work(ps->config.sink.context);
}

/* Nobody talks to us here: only its end is news. */
static void on_dial_readable(int fd, short what, void *context) {
    struct dial *d = context;
    char byte;
    (void)what;
    must(d->magic == DIAL_MAGIC && d->state == DIAL_UP);
    const ssize_t got = read(fd, &byte, 1);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    try_later(d, got == 0 ? "closed by the peer" : got > 0 ? "the peer talks on it" : strerror(errno));
}

void peers_send(struct peers *ps, uint16_t peer, struct slice frame) {
    must(peer < ps->config.node_count);
    struct dial *d = &ps->dials[peer];
    if (d->state != DIAL_UP || d->overflow) return;
    if (d->out.bytes - d->out_sent + frame.bytes > PEERS_QUEUE_BYTES)
        d->overflow = true;
    else
        buf_append_slice(&d->out, frame);
    if (!d->dirty) ps->config.sink.work(ps->config.sink.context);
    d->dirty = true;
}

size_t peers_backlog(const struct peers *ps, uint16_t peer) {
    must(peer < ps->config.node_count);
    return ps->dials[peer].out.bytes - ps->dials[peer].out_sent;
}

static void write_out(struct dial *d) {
    if (d->state != DIAL_UP) return;
    if (d->overflow) {
        try_later(d, "its queue is full");
        return;
    }
    if (d->out.bytes > d->out_sent) {
        const ssize_t sent = send(d->fd, d->out.data + d->out_sent, d->out.bytes - d->out_sent, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            try_later(d, strerror(errno));
            return;
        }
        if (sent > 0) d->out_sent += (size_t)sent;
    }
    if (d->out.bytes > d->out_sent) {
        if (d->out_sent > d->out.bytes / 2) {
            memmove(d->out.data, d->out.data + d->out_sent, d->out.bytes - d->out_sent);
            d->out.bytes -= d->out_sent;
            d->out_sent = 0;
        }
        event_add(&d->write_event, NULL);
        return;
    }
    d->out_sent = 0;
    buf_clear(&d->out);
    if (d->out.capacity > READ_BYTES) buf_release(&d->out);
}

static void on_dial_writable(int fd, short what, void *context) {
    struct dial *d = context;
    (void)fd;
    (void)what;
    must(d->magic == DIAL_MAGIC);
    write_out(d);
}

void peers_flush(struct peers *ps) {
    for (uint16_t i = 0; i < ps->config.node_count; i++) {
        struct dial *d = &ps->dials[i];
        if (!d->dirty) continue;
        d->dirty = false;
        write_out(d);
    }
    bury(ps);
}

/* ---- links we accept ---- */

/* Unlink and close; the memory goes at the end of the turn. */
static void drop(struct accepted *l) {
    struct peers *ps = l->all;
    must(l->magic == ACCEPTED_MAGIC);
    l->magic = 0;
    event_del(&l->event);
    close(l->fd);
    buf_release(&l->in);
    DL_DELETE(ps->accepted, l);
    ps->accepted_count--;
    l->next = ps->dead;
    ps->dead = l;
    ps->config.sink.work(ps->config.sink.context);
}

static void bury(struct peers *ps) {
    while (ps->dead != NULL) {
        struct accepted *l = ps->dead;
        ps->dead = l->next;
        alloc_put(heap_alloc(), l);
    }
}

static void on_acceptable(int fd, short what, void *context) {
    struct peers *ps = context;
    (void)what;
    const int link = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (link < 0) {
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
        const struct timeval pause = in_ms(ACCEPT_PAUSE_MS);
        log_warn("peer accept-paused reason=\"%s\"", strerror(errno));
        event_del(&ps->accept_event);
        event_add(&ps->accept_timer, &pause);
        return;
    }
    if (ps->accepted_count >= PEERS_ACCEPTED_MAX) {
        close(link);
        return;
    }
    struct accepted *l = alloc_get0(heap_alloc(), sizeof *l);
    const struct timeval timeout = in_ms(PEERS_HELLO_MS);
    *l = (struct accepted){.magic = ACCEPTED_MAGIC, .all = ps, .fd = link, .peer = -1, .in.alloc = heap_alloc()};
    DL_APPEND(ps->accepted, l);
    ps->accepted_count++;
    net_tune(link, KEEPALIVE_S, PEERS_SILENT_MS);
    must(event_assign(&l->event, ps->config.base, link, EV_READ | EV_PERSIST, on_readable, l) == 0);
    must(event_add(&l->event, &timeout) == 0);
}

static void on_accept_timer(int fd, short what, void *context) {
    struct peers *ps = context;
    (void)fd;
    (void)what;
    event_add(&ps->accept_event, NULL);
}

static void bad(struct accepted *l, const char *why) {
    char name[NET_NAME_BYTES];
    net_peer_name(l->fd, name);
    log_warn("peer bad-link from=%s peer=%d what=\"%s\"", name, l->peer + 1, why);
    drop(l);
}

/* The first frame of a link.  False: it is gone. */
static bool greet(struct accepted *l, const struct frame *frame) {
    struct peers *ps = l->all;
    const struct hello *hello = &frame->hello;
    if (frame->kind != FRAME_HELLO) {
        bad(l, "it does not begin with a hello");
        return false;
    }
    if (hello->to != ps->config.node || hello->from >= ps->config.node_count || hello->from == ps->config.node) {
        char why[160];
        snprintf(why, sizeof why, "node %u of its list takes us for node %u, we are %u of %u: compare nodes and node",
                 hello->from + 1u, hello->to + 1u, ps->config.node + 1u, ps->config.node_count);
        bad(l, why);
        return false;
    }
    struct accepted *other, *next;
    DL_FOREACH_SAFE(ps->accepted, other, next)
    if (other != l && other->peer == hello->from && other->boot == hello->boot) drop(other);
    l->peer = hello->from;
    l->boot = hello->boot;
    event_remove_timer(&l->event); /* it was for the hello */
    try_soon(&ps->dials[l->peer]);
    return true;
}

/* Every whole frame in data; returns the bytes used up, or -1: the link is gone. */
static ssize_t take_frames(struct accepted *l, const char *data, size_t bytes) {
    struct peers *ps = l->all;
    size_t at = 0;
    while (at < bytes) {
        struct frame frame;
        size_t used = 0;
        const enum frame_status status = frame_decode(data + at, bytes - at, &frame, ps->scratch, &used);
        if (status == FRAME_BAD) {
            bad(l, "a frame that cannot be trusted");
            return -1;
        }
        if (status == FRAME_NEED_MORE) {
            if (l->peer < 0 && (used > PEERS_HELLO_BYTES || bytes - at > PEERS_HELLO_BYTES)) {
                bad(l, "it does not begin with a hello");
                return -1;
            }
            break;
        }
        at += used;
        if (l->peer < 0) {
            if (!greet(l, &frame)) return -1;
        } else if (frame.kind == FRAME_HELLO) {
            bad(l, "a second hello");
            return -1;
        } else {
            ps->config.sink.frame(ps->config.sink.context, (uint16_t)l->peer, l->boot, &frame);
        }
    }
    if (at > 0) ps->config.sink.work(ps->config.sink.context);
    return (ssize_t)at;
}

static void on_readable(int fd, short what, void *context) {
    struct accepted *l = context;
    struct peers *ps = l->all;
    must(l->magic == ACCEPTED_MAGIC);
    if ((what & EV_TIMEOUT) != 0 && l->peer < 0) {
        drop(l); /* no hello in time; a port scanner is not worth a line */
        return;
    }
    char *into = l->in.bytes > 0 ? buf_reserve(&l->in, READ_BYTES) : ps->bytes;
    const ssize_t got = read(fd, into, READ_BYTES);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        drop(l);
        return;
    }
    if (into == ps->bytes) {
        const ssize_t used = take_frames(l, into, (size_t)got);
        if (used >= 0 && used < got) buf_append(&l->in, into + used, (size_t)(got - used));
        return;
    }
    l->in.bytes += (size_t)got;
    const ssize_t used = take_frames(l, l->in.data, l->in.bytes);
    if (used < 0) return;
    memmove(l->in.data, l->in.data + used, l->in.bytes - (size_t)used);
    l->in.bytes -= (size_t)used;
    if (l->in.bytes == 0) buf_release(&l->in);
}
