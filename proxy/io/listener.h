/* listener.h - accepts connections of one address and never spins: when the process has no descriptor left it pauses.
 *
 * Place in the flow:  address -> [listener] -> session */
#pragma once
#include "common/io/net.h"

struct event_base;
struct listener;

/* A new connection: non-blocking, close-on-exec, the callee's from now on.  `source_ip` is its address without port, in
 * `name`'s memory during the call only. */
typedef void listener_fn(void *owner, int fd, const char *source_ip);

/* Binds and listens.  0, or -1 with `error`, which names the address.  *ret_listener is freed with listener_free. */
NODISCARD int listener_new(struct event_base *base, const struct net_address *address, listener_fn *fn, void *owner,
                           struct listener **ret_listener, char *error, size_t error_bytes);
/* "host:port" with the port it really has. */
const char *listener_name(const struct listener *l);
/* Accepts no more.  NULL is fine. */
void listener_free(struct listener *l);
