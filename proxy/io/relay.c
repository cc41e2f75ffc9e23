#include "proxy/io/relay.h"
#include "common/must.h"
#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SCRATCH_BYTES = 65536 };
static char scratch[SCRATCH_BYTES]; /* one thread, used within one callback only */

static struct relay_side *other_side(struct relay *r, const struct relay_side *side) {
    return side == &r->client ? &r->backend : &r->client;
}

static void end(struct relay *r, enum relay_end why) {
    if (!r->running) return;
    relay_stop(r);
    r->owner->ended(r, why);
}

static void reset_by(struct relay *r, const struct relay_side *side) {
    end(r, side == &r->client ? RELAY_CLIENT_RESET : RELAY_BACKEND_RESET);
}

/* `side` will say nothing more, and all it said has been passed on. */
static void pass_end(struct relay *r, const struct relay_side *side) {
    struct relay_side *to = other_side(r, side);
    if (to->ended) {
        end(r, r->client_first ? RELAY_CLIENT_CLOSED : RELAY_BACKEND_CLOSED);
        return;
    }
    (void)shutdown(to->fd, SHUT_WR); /* if that fails the connection is broken, and its read will say so */
    r->owner->half_closed(r, side == &r->client);
}

static void side_ended(struct relay *r, struct relay_side *side) {
    struct relay_side *to = other_side(r, side);
    side->ended = true;
    event_del(&side->read);
    if (!to->ended) r->client_first = side == &r->client;
    if (to->waiting == NULL) pass_end(r, side);
}

/* Hands bytes to the kernel.  Returns how many it took, 0 when it takes none now, -1 when it is over. */
static ssize_t write_some(struct relay *r, struct relay_side *to, const char *data, size_t bytes) {
    if (to == &r->backend && !r->owner->may_write(r)) {
        end(r, RELAY_FORBIDDEN);
        return -1;
    }
    const ssize_t written = send(to->fd, data, bytes, MSG_NOSIGNAL);
    if (written >= 0) {
        to->bytes += (uint64_t)written;
        return written;
    }
    if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS) return 0;
    reset_by(r, to);
    return -1;
}

/* All of it goes to `to` or waits there. */
static void pass(struct relay *r, struct relay_side *to, const char *data, size_t bytes) {
    must(to->waiting == NULL);
    const ssize_t written = write_some(r, to, data, bytes);
    if (written < 0 || (size_t)written == bytes) return;
    to->waiting_count = (uint32_t)(bytes - (size_t)written);
    to->waiting_first = 0;
    to->waiting = malloc(to->waiting_count);
    must(to->waiting != NULL);
    memcpy(to->waiting, data + written, to->waiting_count);
    event_del(&other_side(r, to)->read);
    event_add(&to->write, NULL);
}

static void on_readable(evutil_socket_t fd, short what, void *arg) {
    struct relay *r = arg;
    struct relay_side *from = fd == r->client.fd ? &r->client : &r->backend;
    (void)what;
    const ssize_t got = read(fd, scratch, r->buffer_bytes_max);
    if (got < 0) {
        if (errno != EAGAIN && errno != EINTR) reset_by(r, from);
    } else if (got == 0) {
        side_ended(r, from);
    } else {
        r->owner->active(r);
        pass(r, other_side(r, from), scratch, (size_t)got);
    }
}

static void on_writable(evutil_socket_t fd, short what, void *arg) {
    struct relay *r = arg;
    struct relay_side *to = fd == r->client.fd ? &r->client : &r->backend;
    (void)what;
    const ssize_t written = write_some(r, to, to->waiting + to->waiting_first, to->waiting_count);
    if (written < 0) return;
    to->waiting_first += (uint32_t)written;
    to->waiting_count -= (uint32_t)written;
    if (to->waiting_count > 0) return;
    free(to->waiting);
    to->waiting = NULL;
    event_del(&to->write);
    struct relay_side *from = other_side(r, to);
    if (from->ended)
        pass_end(r, from);
    else
        event_add(&from->read, NULL);
}

static void side_init(struct relay *r, struct relay_side *side, struct event_base *base, int fd) {
    *side = (struct relay_side){.fd = fd};
    event_assign(&side->read, base, fd, EV_READ | EV_PERSIST, on_readable, r);
    event_assign(&side->write, base, fd, EV_WRITE | EV_PERSIST, on_writable, r);
}

void relay_start(struct relay *r, struct event_base *base, const struct relay_owner *owner, int client_fd,
                 int backend_fd, uint32_t buffer_bytes_max, const char *head, size_t head_bytes, bool client_ended) {
    must(buffer_bytes_max >= 1 && buffer_bytes_max <= SCRATCH_BYTES && client_fd != backend_fd);
    r->owner = owner;
    r->buffer_bytes_max = buffer_bytes_max;
    r->running = true;
    r->client_first = false;
    side_init(r, &r->client, base, client_fd);
    side_init(r, &r->backend, base, backend_fd);
    event_add(&r->client.read, NULL);
    event_add(&r->backend.read, NULL);
    if (head_bytes > 0) pass(r, &r->backend, head, head_bytes);
    if (r->running && client_ended) side_ended(r, &r->client);
}

static void side_release(struct relay_side *side) {
    event_del(&side->read);
    event_del(&side->write);
    free(side->waiting);
    side->waiting = NULL;
    side->waiting_count = 0;
}

void relay_stop(struct relay *r) {
    if (!r->running) return;
    r->running = false;
    side_release(&r->client);
    side_release(&r->backend);
}
