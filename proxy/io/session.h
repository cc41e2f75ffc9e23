/* session.h - the proxy at work: all listeners, sessions, probes and the link to lockd around one session table.
 *
 * Place in the flow:  client -> [session] -> backend; the one place where core/ and io/ meet: it turns events into
 * inputs of core/bindings and carries out the outputs in their order. */
#pragma once
#include "common/must.h"
#include "proxy/io/config.h"

struct event_base;
struct proxy;

/* Opens all listeners, begins to probe and to ask lockd for a lease.  `config` outlives the proxy.  0, or -1 with
 * `error`: an address that cannot be listened on.  *ret_proxy is freed with proxy_free. */
NODISCARD int proxy_new(struct event_base *base, const struct config *config, struct proxy **ret_proxy, char *error,
                        size_t error_bytes);
/* Takes no more clients, ends all sessions (reason shutdown), gives the lease back and then ends the loop; within a
 * second.  Again: nothing. */
void proxy_stop(struct proxy *p);
/* One log line for the table's counters and one for the reasons sessions ended for. */
void proxy_log_counters(const struct proxy *p);
/* After the loop has ended.  NULL is fine. */
void proxy_free(struct proxy *p);
