#include "common/io/net.h"
#include "common/io/say.h"
#include "common/slice.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

static void set_numeric(struct net_address *a) {
    memset(&a->sockaddr, 0, sizeof a->sockaddr);
    if (inet_pton(AF_INET, a->host, &a->sockaddr.in.sin_addr) == 1) {
        a->sockaddr.in.sin_family = AF_INET;
        a->sockaddr.in.sin_port = htons(a->port);
        a->sockaddr_bytes = sizeof a->sockaddr.in;
        a->numeric = true;
    } else if (inet_pton(AF_INET6, a->host, &a->sockaddr.in6.sin6_addr) == 1) {
        a->sockaddr.in6.sin6_family = AF_INET6;
        a->sockaddr.in6.sin6_port = htons(a->port);
        a->sockaddr_bytes = sizeof a->sockaddr.in6;
        a->numeric = true;
    }
}

/* Letters, digits, '.', '-' and '_': what a host name may consist of. */
static bool is_name(const char *host) {
    for (; *host != '\0'; host++) {
        const char c = *host;
        const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!letter && c != '.' && c != '-' && c != '_') return false;
    }
    return true;
}

int net_parse(const char *text, bool port_zero, struct net_address *ret_address, char *error, size_t error_bytes) {
    struct net_address a = {.sockaddr_bytes = 0};
    const char *colon = strrchr(text, ':'), *host = text, *host_end = colon;
    const bool bracket = text[0] == '[';
    if (colon == NULL) return say(error, error_bytes, "\"%.80s\" has no port (host:port is expected)", text);
    if (bracket) {
        host = text + 1;
        host_end = colon - 1;
        if (host_end < host || *host_end != ']')
            return say(error, error_bytes, "\"%.80s\" is not [address]:port", text);
    }
    const size_t host_bytes = (size_t)(host_end - host);
    if (host_bytes == 0) return say(error, error_bytes, "\"%.80s\" has no host (host:port is expected)", text);
    if (host_bytes >= sizeof a.host) return say(error, error_bytes, "\"%.80s...\" has a host that is too long", text);
    memcpy(a.host, host, host_bytes);
    uint64_t port;
    if (!slice_to_u64(slice_str(colon + 1), &port) || port > 65535 || (port == 0 && !port_zero))
        return say(error, error_bytes, "\"%.80s\" has a bad port: \"%.20s\" (%d..65535)", text, colon + 1,
                   port_zero ? 0 : 1);
    a.port = (uint16_t)port;
    set_numeric(&a);
    const bool six = a.numeric && a.sockaddr.sa.sa_family == AF_INET6;
    if (six != bracket)
        return say(error, error_bytes, "\"%.80s\": an IPv6 address, and only that, stands in brackets", text);
    if (!a.numeric && !is_name(a.host)) return say(error, error_bytes, "\"%.80s\" is not a host name and port", text);
    *ret_address = a;
    return 0;
}

bool net_equal(const struct net_address *a, const struct net_address *b) {
    if (a->port != b->port || a->numeric != b->numeric) return false;
    if (!a->numeric) return strcasecmp(a->host, b->host) == 0;
    if (a->sockaddr.sa.sa_family != b->sockaddr.sa.sa_family) return false;
    return a->sockaddr.sa.sa_family == AF_INET
               ? a->sockaddr.in.sin_addr.s_addr == b->sockaddr.in.sin_addr.s_addr
               : memcmp(&a->sockaddr.in6.sin6_addr, &b->sockaddr.in6.sin6_addr, sizeof(struct in6_addr)) == 0;
}

int net_resolve(struct net_address *address, char *error, size_t error_bytes) {
    if (address->numeric) return 0;
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    char port[8];
    snprintf(port, sizeof port, "%u", address->port);
    const int rc = getaddrinfo(address->host, port, &hints, &found);
    if (rc != 0) return say(error, error_bytes, "cannot look up \"%s\": %s", address->host, gai_strerror(rc));
    must(found->ai_addrlen <= sizeof address->sockaddr);
    memcpy(&address->sockaddr, found->ai_addr, found->ai_addrlen);
    address->sockaddr_bytes = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

int net_bind(const struct net_address *address, int *ret_fd, char *error, size_t error_bytes) {
    struct net_address a = *address;
    const int yes = 1;
    if (net_resolve(&a, error, error_bytes) != 0) return -1;
    const int fd = socket(a.sockaddr.sa.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return say(error, error_bytes, "cannot make a socket: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, &a.sockaddr.sa, a.sockaddr_bytes) != 0) {
        const int saved = errno;
        close(fd);
        return say(error, error_bytes, "cannot use the address %s:%u: %s", a.host, a.port, strerror(saved));
    }
    *ret_fd = fd;
    return 0;
}

int net_listen(int fd, char *error, size_t error_bytes) {
    char name[NET_NAME_BYTES];
    if (listen(fd, 4096) == 0) return 0;
    const int saved = errno;
    net_local_name(fd, name);
    return say(error, error_bytes, "cannot listen on %s: %s", name, strerror(saved));
}

int net_connect(const struct sockaddr *sa, socklen_t bytes, int *ret_fd) {
    const int fd = socket(sa->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -errno;
    if (connect(fd, sa, bytes) != 0 && errno != EINPROGRESS) {
        const int saved = errno;
        close(fd);
        return -saved;
    }
    *ret_fd = fd;
    return 0;
}

int net_socket_error(int fd) {
    int error = 0;
    socklen_t bytes = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes) == 0 ? error : errno;
}

static void set(int fd, int level, int option, int value) {
    (void)setsockopt(fd, level, option, &value, sizeof value);
}

void net_tune(int fd, int idle_s, unsigned user_timeout_ms) {
    const int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK) == 0) (void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set(fd, IPPROTO_TCP, TCP_KEEPIDLE, idle_s);
    set(fd, IPPROTO_TCP, TCP_KEEPINTVL, idle_s > 3 ? idle_s / 3 : 1);
    set(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
    if (user_timeout_ms > 0) set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (int)user_timeout_ms);
}

static void name_of(int result, const struct sockaddr_storage *storage, char *name) {
    char host[INET6_ADDRSTRLEN];
    snprintf(name, NET_NAME_BYTES, "?");
    if (result != 0) return;
    if (storage->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)storage;
        if (inet_ntop(AF_INET, &in->sin_addr, host, sizeof host) != NULL)
            snprintf(name, NET_NAME_BYTES, "%s:%u", host, ntohs(in->sin_port));
    } else if (storage->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)storage;
        if (inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host) != NULL)
            snprintf(name, NET_NAME_BYTES, "[%s]:%u", host, ntohs(in6->sin6_port));
    }
}

void net_local_name(int fd, char name[static NET_NAME_BYTES]) {
    struct sockaddr_storage storage;
    socklen_t bytes = sizeof storage;
    name_of(getsockname(fd, (struct sockaddr *)&storage, &bytes), &storage, name);
}

void net_peer_name(int fd, char name[static NET_NAME_BYTES]) {
    struct sockaddr_storage storage;
    socklen_t bytes = sizeof storage;
    name_of(getpeername(fd, (struct sockaddr *)&storage, &bytes), &storage, name);
}
