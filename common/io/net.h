/* net.h - addresses and sockets for the io layers: "host:port" in, file descriptors out.  Never blocks after start:
 * net_resolve and net_listen may ask a name server and are for start-up only. */
#pragma once
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include "common/must.h"

enum { NET_HOST_BYTES = 256, NET_NAME_BYTES = 64, NET_ERROR_BYTES = 512 };

struct net_address {
    char host[NET_HOST_BYTES]; /* as written, without brackets */
    uint16_t port;
    bool numeric; /* host is an IPv4 or IPv6 address: sockaddr is set */
    union {
        struct sockaddr sa;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } sockaddr;
    socklen_t sockaddr_bytes;
};

/* Parse "127.0.0.1:7400", "[::1]:7400" or "name:7400"; nothing is looked up.  port 0 only when port_zero.  0, or -1
 * with what is wrong in `error`. */
NODISCARD int net_parse(const char *text, bool port_zero, struct net_address *ret_address, char *error,
                        size_t error_bytes);
/* The same host and port.  Names are compared as written, in any case. */
bool net_equal(const struct net_address *a, const struct net_address *b);
/* Set sockaddr of an address that is a name: its first IPv4 or IPv6 address.  0, or -1 with `error`. */
NODISCARD int net_resolve(struct net_address *address, char *error, size_t error_bytes);
/* A socket bound to the address (looked up if it is a name), non-blocking, close-on-exec, not listening yet.  0, or -1
 * with `error`. */
NODISCARD int net_bind(const struct net_address *address, int *ret_fd, char *error, size_t error_bytes);
/* listen(2) on it.  0, or -1 with `error`, which names the address. */
NODISCARD int net_listen(int fd, char *error, size_t error_bytes);
/* Start to connect, without waiting: *ret_fd is writable when it is done and net_socket_error says how it went.  0, or
 * -errno. */
NODISCARD int net_connect(const struct sockaddr *sa, socklen_t bytes, int *ret_fd);
/* SO_ERROR: 0 or an errno. */
int net_socket_error(int fd);
/* A connected TCP socket of ours: non-blocking, no delay for small writes, probes on an idle link after idle_s seconds;
 * user_timeout_ms > 0: what was sent and is not acknowledged for that long ends the link.  Failures do not matter. */
void net_tune(int fd, int idle_s, unsigned user_timeout_ms);
/* "127.0.0.1:7400" or "[::1]:7400" of our or the other end; "?" when it cannot be told. */
void net_local_name(int fd, char name[static NET_NAME_BYTES]);
void net_peer_name(int fd, char name[static NET_NAME_BYTES]);
