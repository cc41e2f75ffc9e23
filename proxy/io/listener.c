#include "proxy/io/listener.h"
#include "common/io/log.h"
#include <arpa/inet.h>
#include <errno.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ACCEPTS_PER_TURN = 64, PAUSE_MS = 100 };

struct listener {
    int fd;
    listener_fn *fn;
    void *owner;
    struct event readable, resume;
    bool told; /* of a pause since the last connection that was taken */
    char name[NET_NAME_BYTES];
};

static void pause_accepting(struct listener *l, int error) {
    static const struct timeval pause = {.tv_usec = PAUSE_MS * 1000};
    event_del(&l->readable);
    event_add(&l->resume, &pause);
    if (!l->told) log_warn("proxy accept-paused address=%s why=\"%s\"", l->name, strerror(error));
    l->told = true;
}

static void on_resume(evutil_socket_t fd, short what, void *arg) {
    struct listener *l = arg;
    (void)fd, (void)what;
    event_add(&l->readable, NULL);
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
    struct listener *l = arg;
    (void)what;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        union {
            struct sockaddr sa;
            struct sockaddr_in in;
            struct sockaddr_in6 in6;
        } from;
        socklen_t from_bytes = sizeof from;
        const int client = accept4(fd, &from.sa, &from_bytes, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client < 0) {
            if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO) continue;
            if (errno != EAGAIN) pause_accepting(l, errno);
            return;
        }
        l->told = false;
        char source_ip[INET6_ADDRSTRLEN] = "";
        if (from.sa.sa_family == AF_INET)
            (void)inet_ntop(AF_INET, &from.in.sin_addr, source_ip, sizeof source_ip);
        else
            (void)inet_ntop(AF_INET6, &from.in6.sin6_addr, source_ip, sizeof source_ip);
        l->fn(l->owner, client, source_ip);
    }
}

int listener_new(struct event_base *base, const struct net_address *address, listener_fn *fn, void *owner,
                 struct listener **ret_listener, char *error, size_t error_bytes) {
    int fd;
    if (net_bind(address, &fd, error, error_bytes) != 0) return -1;
    if (net_listen(fd, error, error_bytes) != 0) {
        close(fd);
        return -1;
    }
    struct listener *l = calloc(1, sizeof *l);
    must(l != NULL);
    l->fd = fd;
    l->fn = fn;
    l->owner = owner;
    net_local_name(fd, l->name);
    event_assign(&l->readable, base, fd, EV_READ | EV_PERSIST, on_readable, l);
    event_assign(&l->resume, base, -1, 0, on_resume, l);
    event_add(&l->readable, NULL);
    *ret_listener = l;
    return 0;
}

const char *listener_name(const struct listener *l) {
    return l->name;
}

void listener_free(struct listener *l) {
    if (l == NULL) return;
    event_del(&l->readable);
    event_del(&l->resume);
    close(l->fd);
    free(l);
}
