#include "proxy/io/probe.h"
#include "common/io/clock.h"
#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <stdlib.h>
#include <unistd.h>

struct probe {
    struct probe_config config;
    struct health health;
    int fd; /* -1: no probe is out */
    uint64_t deadline_ms;
    struct event timer, connected;
    struct event_base *base;
};

/* The timer is for the end of the probe that is out, else for the next one. */
static void arm(struct probe *p) {
    const uint64_t now_ms = clock_now_ms();
    const uint64_t at = p->fd >= 0 ? p->deadline_ms : health_next_probe_ms(&p->health);
    const uint64_t wait = at > now_ms ? at - now_ms : 0;
    const struct timeval tv = {.tv_sec = (time_t)(wait / 1000), .tv_usec = (suseconds_t)(wait % 1000 * 1000)};
    event_add(&p->timer, &tv);
}

static void tell(struct probe *p, enum health_change change) {
    if (change != HEALTH_SAME)
        p->config.fn(p->config.owner, p->config.pool, p->config.member, change == HEALTH_WENT_UP);
}

static void finish(struct probe *p, int error) {
    if (p->fd >= 0) {

        event_del(&p->connected);
        close(p->fd);
        p->fd = -1;
    }
    const enum health_probe result = error == 0              ? HEALTH_PROBE_OK
                                     : error == ECONNREFUSED ? HEALTH_PROBE_REFUSED
                                                             : HEALTH_PROBE_FAILED;
    const enum health_change change = health_probe_ended(&p->health, clock_now_ms(), result);
    arm(p);
    tell(p, change);
}

static void on_connected(evutil_socket_t fd, short what, void *arg) {
    (void)what;
    finish(arg, net_socket_error(fd));
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
    struct probe *p = arg;
    (void)fd, (void)what;
    const uint64_t now_ms = clock_now_ms();
    if (p->fd >= 0) {
        if (now_ms >= p->deadline_ms)
            finish(p, ETIMEDOUT);
        else
            arm(p);
        return;
    }
    if (now_ms < health_next_probe_ms(&p->health)) {
        arm(p);
        return;
    }
    health_probe_started(&p->health, now_ms);
    p->deadline_ms = now_ms + p->config.timeout_ms;
    const int error = net_connect(&p->config.address.sockaddr.sa, p->config.address.sockaddr_bytes, &p->fd);
    if (error != 0) {
        p->fd = -1;
        /* Out of descriptors or ports here says nothing about the backend. */
        if (error == -EMFILE || error == -ENFILE || error == -EADDRNOTAVAIL || error == -ENOBUFS)
            arm(p);
        else
            finish(p, -error);
        return;
    }
    event_assign(&p->connected, p->base, p->fd, EV_WRITE, on_connected, p);
    event_add(&p->connected, NULL);
    arm(p);
}

struct probe *probe_new(struct event_base *base, const struct probe_config *config) {
    struct probe *p = calloc(1, sizeof *p);
    must(p != NULL);
    p->config = *config;
    p->base = base;
    p->fd = -1;
    health_init(&p->health, &config->health, clock_now_ms());
    event_assign(&p->timer, base, -1, 0, on_timer, p);
    arm(p);
    return p;
}

void probe_seen(struct probe *p, enum health_evidence evidence) {
    const enum health_change change = health_seen(&p->health, clock_now_ms(), evidence);
    if (p->fd < 0) arm(p);
    tell(p, change);
}

bool probe_is_up(const struct probe *p) {
    return health_is_up(&p->health);
}

void probe_free(struct probe *p) {
    if (p == NULL) return;
    event_del(&p->timer);
    if (p->fd >= 0) {
        event_del(&p->connected);
        close(p->fd);
    }
    free(p);
}
