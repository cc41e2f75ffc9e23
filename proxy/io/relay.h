/* relay.h - bytes from a client to a backend and back.
 *
 * Place in the flow:  [client fd] <-> relay <-> [backend fd], once the session's binding has a connection
 *
 * Raw libevent events with read(2) and write(2).  What one side sends is written to the other at once; only what the
 * other does not take is kept, in a buffer that exists only while bytes wait in it, and meanwhile the sender is not
 * read: back-pressure.  An end of one side is passed on with shutdown(2) after the last byte; the other direction goes
 * on (half-close).
 *
 * What always holds:
 *   Y1  At most buffer_bytes_max bytes wait per direction, and no memory is held for a direction where none waits.
 *   Y2  may_write is asked before every write towards the backend, however small, and nothing happens between.
 *   Y3  `ended` is called once at most, and nothing after it.  The owner calls relay_stop in it or later and keeps the
 *       memory until the loop's turn is over. */
#pragma once
#include <event2/event_struct.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum relay_end {
    RELAY_CLIENT_CLOSED, /* both sides have ended, the client first */
    RELAY_CLIENT_RESET,
    RELAY_BACKEND_CLOSED, /* both sides have ended, the backend first */
    RELAY_BACKEND_RESET,
    RELAY_FORBIDDEN /* may_write said no */
};
struct relay;
struct relay_owner {
    /* May bytes go to the backend at this very moment? */
    bool (*may_write)(struct relay *r);
    /* Something was read; keep it short. */
    void (*active)(struct relay *r);
    /* One side has ended and the other goes on. */
    void (*half_closed)(struct relay *r, bool client);
    void (*ended)(struct relay *r, enum relay_end end);
};
struct relay_side {
    int fd;
    struct event read, write;
    char *waiting; /* bytes this side did not take yet; NULL if none */
    uint32_t waiting_first, waiting_count;
    bool ended;     /* nothing more comes from it */
    uint64_t bytes; /* written to it */
};
struct relay {
    struct relay_side client, backend;
    const struct relay_owner *owner;
    uint32_t buffer_bytes_max;
    bool running, client_first;
};

/* Starts to relay between two connected, non-blocking descriptors, which stay the caller's.  `head`: what the client
 * has sent already; `client_ended`: and that was all.  owner->ended may be called before this returns. */
void relay_start(struct relay *r, struct event_base *base, const struct relay_owner *owner, int client_fd,
                 int backend_fd, uint32_t buffer_bytes_max, const char *head, size_t head_bytes, bool client_ended);
/* No event fires any more, waiting bytes are dropped.  The descriptors are left open.  Again: nothing. */
void relay_stop(struct relay *r);
