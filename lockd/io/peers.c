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
    int fd;                   /* -1 unless CONNECTING or UP */
    bool wanted, next_wanted; /* is there an address; and once `change` has run */
    struct net_address address, next_address;
    struct event event, write_event, timer, change;
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
    uint64_t since_ms;
    size_t skip; /* what is still to come of a frame that is read past */
    char name[NET_NAME_BYTES];
    struct event event;
    struct buf in;
    struct accepted *prev, *next;
};

/* What was said about one reason and host. */
struct told {
    enum link_refusal why; /* LINK_TAKEN: free */
    char host[NET_NAME_BYTES];
    uint64_t since_ms;
    uint32_t left_out;
};

struct peers {
    struct peers_config config;
    struct told told[PEERS_REFUSALS_MAX];
    uint32_t left_out;      /* for want of room in `told` */
    struct evdns_base *dns; /* only if some address is a name */
    struct event accept_event, accept_timer;
    struct dial dials[PAXOS_NODES_MAX];
    struct accepted *accepted, *dead;
    uint32_t accepted_count;
    struct frame_scratch *scratch;
    char *bytes; /* READ_BYTES */
};

static void on_timer(int fd, short what, void *context);
static void on_change(int fd, short what, void *context);
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
    if (ps->config.refusal_ms == 0) ps->config.refusal_ms = PEERS_REFUSAL_MS;
    ps->scratch = alloc_get(a, sizeof *ps->scratch);
    ps->bytes = alloc_get(a, READ_BYTES);
    must(event_assign(&ps->accept_event, config->base, config->listener, EV_READ | EV_PERSIST, on_acceptable, ps) == 0);
    must(evtimer_assign(&ps->accept_timer, config->base, on_accept_timer, ps) == 0);
    must(event_add(&ps->accept_event, NULL) == 0);
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        struct dial *d = &ps->dials[i];
        *d = (struct dial){
            .magic = DIAL_MAGIC, .all = ps, .peer = i, .fd = -1, .backoff_ms = PEERS_BACKOFF_MS, .out.alloc = a};
        must(evtimer_assign(&d->timer, config->base, on_timer, d) == 0);
        must(evtimer_assign(&d->change, config->base, on_change, d) == 0);
    }
    return ps;
}

void peers_set(struct peers *ps, uint16_t seat, const struct net_address *address) {
    must(seat < PAXOS_NODES_MAX);
    struct dial *d = &ps->dials[seat];
    if (seat == ps->config.node) return;
    if (address == NULL ? !d->next_wanted : d->next_wanted && net_equal(&d->next_address, address)) return;
    d->next_wanted = address != NULL;
    if (address != NULL) d->next_address = *address;
    event_active(&d->change, EV_TIMEOUT, 0); /* the caller may be inside the replica, which must hear of lost links */
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
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        struct dial *d = &ps->dials[i];
        if (d->request != NULL) evdns_getaddrinfo_cancel(d->request);
        take_down(d);
        event_del(&d->timer);
        event_del(&d->change);
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
    if (d->wanted && d->state == DIAL_WAITING && d->attempt_ms > clock_now_ms() + PEERS_SOON_MS)
        attempt_in(d, PEERS_SOON_MS);
}

/* The address is another one, or gone. */
static void on_change(int fd, short what, void *context) {
    struct dial *d = context;
    struct peers *ps = d->all;
    (void)fd;
    (void)what;
    must(d->magic == DIAL_MAGIC);
    const bool was_up = d->state == DIAL_UP;
    if (d->wanted == d->next_wanted && (!d->wanted || net_equal(&d->address, &d->next_address))) return;
    if (d->request != NULL) evdns_getaddrinfo_cancel(d->request); /* says so to nobody who still cares */
    d->request = NULL;
    event_del(&d->timer);
    take_down(d);
    if (was_up)
        log_info("peer link-moved peer=%u address=%s:%u", d->peer + 1u, d->address.host, (unsigned)d->address.port);
    d->wanted = d->next_wanted;
    d->address = d->next_address;
    d->told = false;
    d->backoff_ms = PEERS_BACKOFF_MS;
    if (d->wanted && !d->address.numeric && ps->dns == NULL)
        ps->dns = evdns_base_new(ps->config.base, EVDNS_BASE_INITIALIZE_NAMESERVERS | EVDNS_BASE_DISABLE_WHEN_INACTIVE);
    if (d->wanted) attempt_in(d, 0);
    if (!was_up) return;
    ps->config.sink.link_lost(ps->config.sink.context, d->peer);
    ps->config.sink.work(ps->config.sink.context);
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
        log_warn("peer link-down peer=%u address=%s:%u reason=\"%s\"", d->peer + 1u, d->address.host,
                 (unsigned)d->address.port, why);
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
    if (result == EVUTIL_EAI_CANCEL || d->magic != DIAL_MAGIC) return; /* everything ends, or the address is another */
    d->request = NULL;
    if (result != 0 || found == NULL) {
        try_later(d, result != 0 ? evutil_gai_strerror(result) : "no address");
    } else {
        start_connect(d, found->ai_addr, (socklen_t)found->ai_addrlen);
    }
    if (found != NULL) evutil_freeaddrinfo(found);
}

static void on_timer(int fd, short what, void *context) {
    struct dial *d = context;
    const struct net_address *address = &d->address;
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
    log_info("peer link-up peer=%u address=%s:%u", d->peer + 1u, d->address.host, (unsigned)d->address.port);
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
    must(peer < PAXOS_NODES_MAX);
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
    must(peer < PAXOS_NODES_MAX);
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
    for (uint16_t i = 0; i < PAXOS_NODES_MAX; i++) {
        struct dial *d = &ps->dials[i];
        if (!d->dirty) continue;
        d->dirty = false;
        write_out(d);
    }
    bury(ps);
}

/* ---- what is refused ---- */

static const char *refusal_name(enum link_refusal why) {
    static const char *const names[] = {
#define X(NAME, name, what) [LINK_##NAME] = #name,
        LINK_REFUSALS(X)
#undef X
    };
    return names[why];
}

static const char *refusal_text(enum link_refusal why) {
    static const char *const texts[] = {
#define X(NAME, name, what) [LINK_##NAME] = what,
        LINK_REFUSALS(X)
#undef X
    };
    return texts[why];
}

/* May a line be written now, and how many were not before it? */
static bool may_tell(struct peers *ps, enum link_refusal why, const char *name, uint32_t *ret_left_out) {
    const uint64_t now_ms = clock_now_ms();
    const size_t host_bytes = (size_t)(strrchr(name, ':') != NULL ? strrchr(name, ':') - name : 0);
    struct told *room = NULL;
    *ret_left_out = 0;
    for (int i = 0; i < PEERS_REFUSALS_MAX; i++) {
        struct told *told = &ps->told[i];
        const bool fresh = told->why != LINK_TAKEN && now_ms < told->since_ms + ps->config.refusal_ms;
        if (told->why == why && strlen(told->host) == host_bytes && memcmp(told->host, name, host_bytes) == 0) {
            if (fresh) told->left_out++;
            if (fresh) return false;
            room = told;
            *ret_left_out = told->left_out;
            break;
        }
        if (!fresh && room == NULL) room = told;
    }
    if (room == NULL) {
        ps->left_out++;
        return false;
    }
    if (*ret_left_out == 0) ps->left_out += room->left_out; /* of another host, which has fallen silent */
    *ret_left_out += ps->left_out;
    ps->left_out = 0;
    *room = (struct told){.why = why, .since_ms = now_ms};
    memcpy(room->host, name, host_bytes);
    return true;
}

/* Count it, and say so if it is time; `store` is 0 if it has told none. */
static void refuse(struct accepted *l, enum link_refusal why, uint64_t store, const char *what) {
    struct peers *ps = l->all;
    char peer[16] = "?", owner[24] = "?";
    uint32_t left_out;
    ps->config.refusals[why]++;
    if (!may_tell(ps, why, l->name, &left_out)) return;
    if (l->peer >= 0) snprintf(peer, sizeof peer, "%d", l->peer + 1);
    if (store != 0) snprintf(owner, sizeof owner, "%016llx", (unsigned long long)store);
    log_warn("peer refused from=%s peer=%s store=%s reason=%s left-out=%u what=\"%s\"", l->name, peer, owner,
             refusal_name(why), left_out, what != NULL ? what : refusal_text(why));
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

static bool admitted(const struct accepted *l) {
    struct peers *ps = l->all;
    return l->peer >= 0 && ps->config.sink.admits(ps->config.sink.context, (uint16_t)l->peer, l->boot);
}

/* The oldest link of that peer that nobody believes, else its oldest; peer -1: those that have not said hello. */
static struct accepted *oldest(const struct peers *ps, int peer) {
    struct accepted *l, *found = NULL;
    bool found_admitted = true;
    DL_FOREACH(ps->accepted, l) {
        if (l->peer != peer) continue;
        const bool is = admitted(l);
        if (found != NULL && (is || !found_admitted)) continue;
        found = l;
        found_admitted = is;
    }
    return found;
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
    struct accepted *stranger = ps->accepted_count >= PEERS_ACCEPTED_MAX ? oldest(ps, -1) : NULL;
    if (stranger != NULL) { /* never NULL when it is full: those with a hello are fewer */
        refuse(stranger, LINK_CROWD, 0, NULL);
        drop(stranger);
    }
    struct accepted *l = alloc_get0(heap_alloc(), sizeof *l);
    const struct timeval timeout = in_ms(PEERS_HELLO_MS);
    *l = (struct accepted){.magic = ACCEPTED_MAGIC,
                           .all = ps,
                           .fd = link,
                           .peer = -1,
                           .since_ms = clock_now_ms(),
                           .in.alloc = heap_alloc()};
    net_peer_name(link, l->name);
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

/* It ends here. */
static void refuse_and_drop(struct accepted *l, enum link_refusal why, const char *what) {
    refuse(l, why, 0, what);
    drop(l);
}

/* The first frame of a link.  False: it is gone. */
static bool greet(struct accepted *l, const struct frame *frame) {
    struct peers *ps = l->all;
    const struct hello *hello = &frame->hello;
    if (frame->kind != FRAME_HELLO) {
        refuse_and_drop(l, LINK_HELLO, NULL);
        return false;
    }
    if (hello->to != ps->config.node || hello->from == ps->config.node) {
        char what[160];
        snprintf(what, sizeof what, "node %u of its list takes us for node %u, we are %u: compare nodes and node",
                 hello->from + 1u, hello->to + 1u, ps->config.node + 1u);
        refuse_and_drop(l, LINK_NUMBER, what);
        return false;
    }
    struct accepted *other, *next;
    uint32_t boots = 0;
    DL_FOREACH_SAFE(ps->accepted, other, next) {
        if (other->peer != hello->from) continue;
        if (other->boot == hello->boot)
            drop(other);
        else
            boots++;
    }
    if (boots >= PEERS_BOOTS_MAX) refuse_and_drop(oldest(ps, hello->from), LINK_TWICE, NULL);
    l->peer = hello->from;
    l->boot = hello->boot;
    event_remove_timer(&l->event); /* it was for the hello */
    if (!ps->dials[l->peer].wanted) refuse(l, LINK_UNKNOWN, 0, NULL);
    try_soon(&ps->dials[l->peer]);
    return true;
}

/* A whole frame after the hello. */
static void take_frame(struct accepted *l, const struct frame *frame) {
    struct peers *ps = l->all;
    if (!ps->dials[l->peer].wanted) return; /* greet said so; it may yet become a node of ours */
    const enum link_refusal why = ps->config.sink.frame(ps->config.sink.context, (uint16_t)l->peer, l->boot, frame);
    if (why == LINK_TAKEN) return;
    /* Each side may believe the other a little earlier. */
    if (why == LINK_UNSHOWN && clock_now_ms() < l->since_ms + PEERS_HELLO_MS) return;
    refuse(l, why, frame->kind == FRAME_IDENTITY ? frame->identity.store_id : 0, NULL);
}

/* Every whole frame in data; returns the bytes used up, or -1: the link is gone. */
static ssize_t take_frames(struct accepted *l, const char *data, size_t bytes) {
    struct peers *ps = l->all;
    size_t at = 0;
    while (at < bytes) {
        if (l->skip > 0) {
            const size_t part = l->skip < bytes - at ? l->skip : bytes - at;
            l->skip -= part;
            at += part;
            continue;
        }
        struct frame frame;
        size_t used = 0;
        const enum frame_status status = frame_decode(data + at, bytes - at, &frame, ps->scratch, &used);
        if (status == FRAME_BAD) {
            refuse_and_drop(l, frame_refusal(data + at, bytes - at), NULL);
            return -1;
        }
        if (status == FRAME_NEED_MORE) {
            if (l->peer < 0 && (used > PEERS_HELLO_BYTES || bytes - at > PEERS_HELLO_BYTES)) {
                refuse_and_drop(l, LINK_HELLO, NULL);
                return -1;
            }
            if (used <= PEERS_STRANGER_BYTES || admitted(l)) break;
            l->skip = used; /* V6 */
            continue;
        }
        at += used;
        if (l->peer < 0) {
            if (!greet(l, &frame)) return -1;
        } else if (frame.kind == FRAME_HELLO) {
            refuse_and_drop(l, LINK_SECOND_HELLO, NULL);
            return -1;
        } else {
            take_frame(l, &frame);
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
        refuse_and_drop(l, LINK_SILENT, NULL);
        return;
    }
    /* What is left over from the last time is the beginning of one frame. */
    const bool kept = l->in.bytes > 0;
    const size_t room = l->peer < 0 ? PEERS_HELLO_BYTES + 1 : READ_BYTES;
    char *into = kept ? buf_reserve(&l->in, room) : ps->bytes;
    const ssize_t got = read(fd, into, room);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        drop(l);
        return;
    }
    if (!kept) {
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
