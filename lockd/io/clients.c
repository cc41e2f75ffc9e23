/* clients.c - see clients.h.
 *
 * | state   | what holds                                                   | ended by                                |
 * |---------|--------------------------------------------------------------|-----------------------------------------|
 * | open    | read_event is added, or `paused`                             | EOF, QUIT, garbage, clients_stop: ended |
 * | ended   | nothing is parsed any more; a timer runs; `asked` counts down | asked == 0 and all sent, or the timer   |
 * | linger  | all sent, our side shut; bytes are read and dropped          | EOF or the timer                        |
 * | dead    | unlinked, magic cleared, on `dead`                           | clients_flush frees it                  |
 */
#include "lockd/io/clients.h"
#include "common/io/heap.h"
#include "common/io/log.h"
#include "common/io/net.h"
#include <event2/event_struct.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <utlist.h>

enum {
    CLIENT_MAGIC = 0x434c4e54,
    ACCEPTS_PER_PASS = 64,
    ACCEPT_PAUSE_MS = 100,
    KEEPALIVE_S = 30,
    FIRST_GUESS_BYTES = 1024 * 1024, /* a reply may be as long as a value */
    SMALL_BYTES = 64 * 1024          /* a connection that holds less is not closed for what others hold */
};

struct client {
    uint32_t magic;
    int fd;
    uint64_t id;
    struct clients *all;
    struct event read_event, write_event; /* read_event becomes the timer of an ended connection */
    struct buf in, out;
    size_t out_sent, counted; /* counted: bytes of both buffers that all->bytes includes */
    struct resp_parser parser;
    uint32_t asked;     /* commands not answered yet */
    size_t reply_guess; /* bytes of the next reply: rises at once, sinks slowly */
    bool paused, ended, linger, dirty, leased;
    bool overflow;              /* more replies than it may have waiting: closed by the flush */
    bool progress;              /* ended: bytes left since the timer was set */
    const char *last_words;     /* sent after everything asked is answered; then the connection lingers */
    struct client *prev, *next; /* paused */
    struct client *dirty_next;  /* dirty, dead */
};

struct clients {
    struct clients_config config;
    struct event accept_event, accept_timer;
    bool stopped, accept_paused;
    struct client **slots; /* clients_max; free ones are NULL */
    uint32_t *free_slots;
    uint32_t free_count, count, slot_bits;
    uint64_t serial;
    size_t bytes;
    bool has_leased;
    struct client *paused, *dirty, *dead;
    struct slice *argv;
    char *scratch; /* CLIENTS_READ_BYTES: what a connection without a buffer reads into */
};

static void on_acceptable(int fd, short what, void *context);
static void on_accept_timer(int fd, short what, void *context);
static void on_readable(int fd, short what, void *context);
static void on_writable(int fd, short what, void *context);
static void on_last_timer(int fd, short what, void *context);

/* ---- life ---- */

struct clients *clients_new(const struct clients_config *config) {
    const struct alloc *a = heap_alloc();
    struct clients *cs = alloc_get0(a, sizeof *cs);
    must(config->clients_max > 0);
    cs->config = *config;
    while ((1u << cs->slot_bits) < config->clients_max) cs->slot_bits++;
    cs->slots = alloc_get0(a, config->clients_max * sizeof *cs->slots);
    cs->free_slots = alloc_get(a, config->clients_max * sizeof *cs->free_slots);
    for (uint32_t i = 0; i < config->clients_max; i++) cs->free_slots[i] = config->clients_max - 1 - i;
    cs->free_count = config->clients_max;
    cs->argv = alloc_get(a, config->limits.argc_max * sizeof *cs->argv);
    cs->scratch = alloc_get(a, CLIENTS_READ_BYTES);
    must(event_assign(&cs->accept_event, config->base, config->listener, EV_READ | EV_PERSIST, on_acceptable, cs) == 0);
    must(evtimer_assign(&cs->accept_timer, config->base, on_accept_timer, cs) == 0);
    must(event_add(&cs->accept_event, NULL) == 0);
    return cs;
}

static void drop(struct client *c);
static void bury(struct clients *cs);

void clients_free(struct clients *cs) {
    if (cs == NULL) return;
    const struct alloc *a = heap_alloc();
    clients_stop(cs);
    for (uint32_t i = 0; i < cs->config.clients_max; i++)
        if (cs->slots[i] != NULL) drop(cs->slots[i]);
    bury(cs);
    alloc_put(a, cs->slots);
    alloc_put(a, cs->free_slots);
    alloc_put(a, cs->argv);
    alloc_put(a, cs->scratch);
    alloc_put(a, cs);
}

uint32_t clients_count(const struct clients *cs) {
    return cs->count;
}

bool clients_has_leased(const struct clients *cs) {
    return cs->has_leased;
}

static struct client *find(struct clients *cs, uint64_t id) {
    const uint64_t slot = id & ((1u << cs->slot_bits) - 1);
    if (slot >= cs->config.clients_max) return NULL;
    struct client *c = cs->slots[slot];
    return c != NULL && c->id == id ? c : NULL;
}

static void mark_dirty(struct client *c) {
    if (c->dirty) return;
    c->dirty = true;
    c->dirty_next = c->all->dirty;
    c->all->dirty = c;
    c->all->config.sink.work(c->all->config.sink.context);
}

/* Keep the count of what all buffers hold.  False: there is too much of it and this one holds a good part; it is gone.
 */
static bool count_bytes(struct client *c) {
    struct clients *cs = c->all;
    const size_t now = c->in.capacity + c->out.capacity;
    cs->bytes = cs->bytes - c->counted + now;
    c->counted = now;
    if (cs->bytes <= CLIENTS_BYTES_MAX || now <= SMALL_BYTES) return true;
    log_warn("client closed id=%llu reason=memory bytes=%zu all=%zu", (unsigned long long)c->id, now, cs->bytes);
    drop(c);
    return false;
}

/* ---- the end of a connection ---- */

/* Unlink and close; the memory goes at the end of the turn. */
static void drop(struct client *c) {
    struct clients *cs = c->all;
    must(c->magic == CLIENT_MAGIC);
    c->magic = 0;
    event_del(&c->read_event);
    event_del(&c->write_event);
    close(c->fd);
    if (c->paused) DL_DELETE(cs->paused, c);
    c->paused = false;
    const uint32_t slot = (uint32_t)(c->id & ((1u << cs->slot_bits) - 1));
    cs->slots[slot] = NULL;
    cs->free_slots[cs->free_count++] = slot;
    cs->count--;
    cs->bytes -= c->counted;
    buf_release(&c->in);
    buf_release(&c->out);
    if (!c->dirty) { /* else it is on that list until the flush */
        c->dirty_next = cs->dead;
        cs->dead = c;
    }
    cs->config.sink.gone(cs->config.sink.context, c->id);
    cs->config.sink.work(cs->config.sink.context);
    if (cs->accept_paused && !cs->stopped) {
        cs->accept_paused = false;
        event_del(&cs->accept_timer);
        event_add(&cs->accept_event, NULL);
    }
}

static void bury(struct clients *cs) {
    while (cs->dirty != NULL) { /* only when everything ends */
        struct client *c = cs->dirty;
        cs->dirty = c->dirty_next;
        c->dirty_next = cs->dead;
        cs->dead = c;
    }
    while (cs->dead != NULL) {
        struct client *c = cs->dead;
        cs->dead = c->dirty_next;
        alloc_put(heap_alloc(), c);
    }
}

static void set_timer(struct client *c) {
    const struct timeval last = {.tv_sec = CLIENTS_LAST_MS / 1000, .tv_usec = CLIENTS_LAST_MS % 1000 * 1000};
    event_del(&c->read_event);
    must(evtimer_assign(&c->read_event, c->all->config.base, on_last_timer, c) == 0);
    must(event_add(&c->read_event, &last) == 0);
}

/* No more commands from it: answer what was asked, say the last words if there are any, close. */
static void end(struct client *c, const char *last_words) {
    if (c->ended) return;
    c->ended = true;
    c->last_words = last_words;
    if (c->paused) DL_DELETE(c->all->paused, c);
    c->paused = false;
    buf_release(&c->in);
    set_timer(c);
    mark_dirty(c); /* the flush closes it if there is nothing to wait for */
}

static void on_last_timer(int fd, short what, void *context) {
    struct client *c = context;
    (void)fd;
    (void)what;
    must(c->magic == CLIENT_MAGIC);
    if (c->progress) { /* slow, but it takes what it asked for */
        c->progress = false;
        set_timer(c);
        return;
    }
    drop(c);
}

/* Everything is said: closing with unread bytes would make the kernel throw our last words away at the other end. */
static void linger(struct client *c) {
    const struct timeval last = {.tv_sec = CLIENTS_LAST_MS / 1000, .tv_usec = CLIENTS_LAST_MS % 1000 * 1000};
    c->linger = true;
    shutdown(c->fd, SHUT_WR);
    event_del(&c->read_event);
    must(event_assign(&c->read_event, c->all->config.base, c->fd, EV_READ | EV_PERSIST, on_readable, c) == 0);
    must(event_add(&c->read_event, &last) == 0);
}

/* ---- accepting ---- */

static void greet(struct clients *cs, int fd) {
    static const char full[] = "-ERR max number of clients reached\r\n";
    if (cs->free_count == 0) {
        (void)!send(fd, full, sizeof full - 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        close(fd);
        return;
    }
    struct client *c = alloc_get0(heap_alloc(), sizeof *c);
    c->magic = CLIENT_MAGIC;
    c->fd = fd;
    c->all = cs;
    c->in.alloc = c->out.alloc = heap_alloc();
    c->reply_guess = FIRST_GUESS_BYTES;
    const uint32_t slot = cs->free_slots[--cs->free_count];
    c->id = ++cs->serial << cs->slot_bits | slot;
    cs->slots[slot] = c;
    cs->count++;
    net_tune(fd, KEEPALIVE_S, 0);
    must(event_assign(&c->read_event, cs->config.base, fd, EV_READ | EV_PERSIST, on_readable, c) == 0);
    must(event_assign(&c->write_event, cs->config.base, fd, EV_WRITE, on_writable, c) == 0);
    must(event_add(&c->read_event, NULL) == 0);
}

static void on_acceptable(int fd, short what, void *context) {
    struct clients *cs = context;
    (void)what;
    for (int i = 0; i < ACCEPTS_PER_PASS; i++) {
        const int client = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client >= 0) {
            greet(cs, client);
            continue;
        }
        if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) return;
        /* No descriptors or no memory: the connection stays in the queue and would wake us for ever. */
        const struct timeval pause = {.tv_usec = ACCEPT_PAUSE_MS * 1000};
        log_warn("client accept-paused reason=\"%s\" clients=%u", strerror(errno), cs->count);
        cs->accept_paused = true;
        event_del(&cs->accept_event);
        event_add(&cs->accept_timer, &pause);
        return;
    }
}

static void on_accept_timer(int fd, short what, void *context) {
    struct clients *cs = context;
    (void)fd;
    (void)what;
    cs->accept_paused = false;
    if (!cs->stopped) event_add(&cs->accept_event, NULL);
}

void clients_stop(struct clients *cs) {
    if (!cs->stopped) {
        cs->stopped = true;
        event_del(&cs->accept_event);
        event_del(&cs->accept_timer);
        close(cs->config.listener);
    }
    for (uint32_t i = 0; i < cs->config.clients_max; i++)
        if (cs->slots[i] != NULL) end(cs->slots[i], NULL);
}

/* ---- reading ---- */

static size_t backlog(const struct client *c) {
    return c->out.bytes - c->out_sent;
}

static bool may_ask(const struct client *c) {
    const struct clients_sink *sink = &c->all->config.sink;
    if ((c->asked + 1) * c->reply_guess > CLIENTS_WINDOW_BYTES) return false;
    return backlog(c) <= CLIENTS_PAUSE_BYTES && sink->room(sink->context, c->id);
}

static void pause_reading(struct client *c) {
    if (c->paused) return;
    c->paused = true;
    DL_APPEND(c->all->paused, c);
    event_del(&c->read_event);
}

/* Give every whole request in data to the node; returns how many bytes were used up. */
static size_t parse(struct client *c, char *data, size_t bytes) {
    struct clients *cs = c->all;
    size_t at = 0;
    while (at < bytes && !c->ended) {
        if (!may_ask(c)) {
            pause_reading(c);
            break;
        }
        uint32_t argc;
        size_t used;
        const char *error;
        const enum resp_status status =
            resp_parse(&c->parser, &cs->config.limits, data + at, bytes - at, &argc, cs->argv, &used, &error);
        if (status == RESP_NEED_MORE) break;
        if (status == RESP_ERROR) {
            end(c, error);
            return bytes;
        }
        at += used;
        if (argc == 0) continue;
        c->asked++;
        cs->config.sink.command(cs->config.sink.context, c->id, argc, cs->argv);
        if (slice_is_word(cs->argv[0], "QUIT")) end(c, NULL);
    }
    if (at > 0) cs->config.sink.work(cs->config.sink.context);
    return c->ended ? bytes : at;
}

/* Parse what is in the connection's own buffer and give the buffer back once it is empty.  False: the connection is
 * gone. */
static bool parse_buffer(struct client *c) {
    const size_t used = parse(c, c->in.data, c->in.bytes);
    if (c->ended) return count_bytes(c); /* end() has released it */
    memmove(c->in.data, c->in.data + used, c->in.bytes - used);
    c->in.bytes -= used;
    if (c->in.bytes == 0) buf_release(&c->in);
    return count_bytes(c);
}

static void on_readable(int fd, short what, void *context) {
    struct client *c = context;
    struct clients *cs = c->all;
    must(c->magic == CLIENT_MAGIC);
    if (c->linger && (what & EV_TIMEOUT) != 0) {
        drop(c);
        return;
    }
    char *into = c->in.bytes > 0 ? buf_reserve(&c->in, CLIENTS_READ_BYTES) : cs->scratch;
    const ssize_t got = read(fd, into, CLIENTS_READ_BYTES);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got < 0 || (got == 0 && c->linger)) {
        drop(c);
    } else if (c->linger) {
        return;
    } else if (got == 0) {
        end(c, NULL);
    } else if (into != cs->scratch) {
        c->in.bytes += (size_t)got;
        (void)parse_buffer(c);
    } else {
        const size_t used = parse(c, into, (size_t)got);
        if (used == (size_t)got) return;
        buf_append(&c->in, into + used, (size_t)got - used);
        (void)count_bytes(c);
    }
}

/* There may be room again: go on with what is buffered, then with the socket. */
static void read_on(struct client *c) {
    if (!may_ask(c)) return;
    DL_DELETE(c->all->paused, c);
    c->paused = false;
    if (c->in.bytes > 0 && !parse_buffer(c)) return;
    if (!c->paused && !c->ended) event_add(&c->read_event, NULL);
}

/* ---- writing ---- */

void clients_reply(struct clients *cs, uint64_t client, struct slice bytes, bool leased) {
    struct client *c = find(cs, client);
    if (c == NULL) return;
    if (c->asked > 0) c->asked--;
    c->reply_guess = bytes.bytes > c->reply_guess ? bytes.bytes : c->reply_guess - (c->reply_guess - bytes.bytes) / 8;
    if (backlog(c) + bytes.bytes > CLIENTS_BACKLOG_BYTES) c->overflow = true;
    if (!c->overflow) buf_append_slice(&c->out, bytes);
    if (leased) c->leased = cs->has_leased = true;
    mark_dirty(c);
}

void clients_hang_up(struct clients *cs, uint64_t client) {
    struct client *c = find(cs, client);
    if (c == NULL) return;
    end(c, NULL);
    c->asked = 0;
}

/* One write; then wait for room in the socket, or see whether this connection is over. */
static void write_out(struct client *c) {
    if (c->linger) return;
    if (c->ended && c->asked == 0 && c->last_words != NULL) {
        buf_append_str(&c->out, c->last_words);
        c->last_words = ""; /* said; the connection still lingers */
    }
    if (backlog(c) > 0) {
        const ssize_t sent = send(c->fd, c->out.data + c->out_sent, backlog(c), MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN && errno != EINTR) {
            drop(c);
            return;
        }
        if (sent > 0) {
            c->out_sent += (size_t)sent;
            c->progress = true;
        }
    }
    if (backlog(c) > 0) {
        if (c->out_sent > c->out.bytes / 2) {
            memmove(c->out.data, c->out.data + c->out_sent, backlog(c));
            c->out.bytes -= c->out_sent;
            c->out_sent = 0;
        }
        event_add(&c->write_event, NULL);
        (void)count_bytes(c);
        return;
    }
    c->out_sent = 0;
    buf_release(&c->out);
    if (!count_bytes(c)) return;
    if (!c->ended || c->asked > 0) return;
    if (c->last_words != NULL)
        linger(c);
    else
        drop(c);
}

static void on_writable(int fd, short what, void *context) {
    struct client *c = context;
    (void)fd;
    (void)what;
    must(c->magic == CLIENT_MAGIC);
    if (c->paused) c->all->config.sink.work(c->all->config.sink.context); /* the flush looks whether it may read on */
    if (!c->dirty) write_out(c); /* else the flush of this turn writes; there may be leased replies to judge */
}

void clients_flush(struct clients *cs, bool reads_hold) {
    struct client *dirty = cs->dirty;
    cs->dirty = NULL;
    cs->has_leased = false;
    while (dirty != NULL) {
        struct client *c = dirty;
        dirty = c->dirty_next;
        c->dirty = false;
        if (c->magic != CLIENT_MAGIC) { /* closed meanwhile */
            c->dirty_next = cs->dead;
            cs->dead = c;
        } else if (c->overflow) {
            log_warn("client closed id=%llu reason=backlog bytes=%zu", (unsigned long long)c->id, backlog(c));
            drop(c);
        } else if (c->leased && !reads_hold) {
            log_warn("client closed id=%llu reason=stale-read", (unsigned long long)c->id);
            drop(c);
        } else {
            c->leased = false;
            write_out(c);
        }
    }
    struct client *c, *next;
    DL_FOREACH_SAFE(cs->paused, c, next) read_on(c);
    while (cs->dead != NULL) {
        struct client *gone = cs->dead;
        cs->dead = gone->dirty_next;
        alloc_put(heap_alloc(), gone);
    }
}
