/* lockclient_link.c - one connection that follows the cluster: order of the bytes, loss, refusals, reconnects.
 *
 * Place in the flow:  lockclient_send -> link_queue -> bufferevent -> lockd -> reader -> command_finish_now
 *
 *     IDLE --work--> (RESOLVING) --> CONNECTING --> UP --lost--> BACKOFF --> CONNECTING ...
 *                         |               |         |                \-- nothing to send --> IDLE
 *                         +----failed-----+---------+
 *
 *   state       what holds
 *   IDLE        no connection; nothing queued, or `work` is active
 *   BACKOFF     no connection; `timer` runs
 *   RESOLVING   no connection; one look-up under way; `timer` bounds it
 *   CONNECTING  bev without a byte handed over; `timer` bounds it
 *   UP          bev; inflight's commands are on it in this order.  paused: the node refused, `timer` runs
 *
 * When a connection is lost, what libevent had not yet written was never sent: such a command, even a half-written
 * one, cannot have run and is queued again.  Nothing here calls the callback of a caller except on_read. */
#include "client/lockclient_private.h"
#include "common/io/clock.h"
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/dns.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    LINK_MAGIC = 0x6b6e696c,
    OUTPUT_BYTES_HIGH = 256 << 10, /* more is not handed to the bufferevent, so that it can still be taken back */
    OUTPUT_BYTES_LOW = 64 << 10,
    READ_BYTES_MAX = 64 << 10, /* libevent reads 4 KiB at a time unless told */
};

/* What an error reply means for the command it answers (section E of the protocol). */
enum refusal { REFUSED_BY_CONTENT, REFUSED_BY_NODE, REFUSED_NOW, REFUSED_FOR_GOOD, PERHAPS_EXECUTED };
static const struct {
    const char *word;
    enum refusal kind;
} refusals[] = {
    {"CLUSTERDOWN", REFUSED_BY_NODE}, {"LOADING", REFUSED_BY_NODE},   {"BUSY", REFUSED_NOW},
    {"DISKFULL", REFUSED_FOR_GOOD},   {"READONLY", REFUSED_FOR_GOOD}, {"UNCERTAIN", PERHAPS_EXECUTED},
};

static void on_work(evutil_socket_t fd, short what, void *arg);
static void on_timer(evutil_socket_t fd, short what, void *arg);
static void on_silence(evutil_socket_t fd, short what, void *arg);
static void on_read(struct bufferevent *bev, void *arg);
static void on_written(struct bufferevent *bev, void *arg);
static void on_event(struct bufferevent *bev, short what, void *arg);
static void link_connect(struct link *l);

static struct link *link_of(void *arg) {
    struct link *l = arg;
    must(l->magic == LINK_MAGIC);
    return l;
}

struct link *link_new(struct lockclient *c, enum link_kind kind) {
    struct link *l = get_memory(1, sizeof *l);
    l->magic = LINK_MAGIC;
    l->client = c;
    l->kind = kind;
    l->connect_timeout_ms = c->connect_timeout_ms;
    l->backoff_ms_max = BACKOFF_MS_MAX;
    TAILQ_INIT(&l->queue);
    TAILQ_INIT(&l->inflight);
    TAILQ_INIT(&l->delayed);
    must(event_assign(&l->work, c->base, -1, 0, on_work, l) == 0);
    must(evtimer_assign(&l->timer, c->base, on_timer, l) == 0);
    must(evtimer_assign(&l->silence, c->base, on_silence, l) == 0);
    return l;
}

void link_free(struct link *l) {
    if (l == NULL) return;
    must(l->command_count == 0 && l->bev == NULL && l->lookup == NULL);
    event_del(&l->work);
    event_del(&l->timer);
    event_del(&l->silence);
    l->magic = 0;
    free(l);
}

/* ---- queues ---- */

static struct command_queue *queue_of(struct command *cmd) {
    switch (cmd->state) {
    case COMMAND_QUEUED: return &cmd->link->queue;
    case COMMAND_DELAYED: return &cmd->link->delayed;
    case COMMAND_INFLIGHT: return &cmd->link->inflight;
    case COMMAND_FINISHED: break;
    }
    return &cmd->link->client->finished;
}

static void take_in(struct link *l, struct command *cmd, enum command_state state) {
    cmd->link = l;
    cmd->state = state;
    l->command_count++;
}

void link_unqueue(struct command *cmd) {
    TAILQ_REMOVE(queue_of(cmd), cmd, entry);
    if (cmd->state != COMMAND_FINISHED) cmd->link->command_count--;
}

/* The queue is in the order of the calls.  New commands belong to its end, commands that come back to its front. */
void link_queue(struct link *l, struct command *cmd) {
    take_in(l, cmd, COMMAND_QUEUED);
    struct command *last = TAILQ_LAST(&l->queue, command_queue);
    if (last == NULL || last->number < cmd->number) {
        TAILQ_INSERT_TAIL(&l->queue, cmd, entry);
    } else {
        struct command *next = TAILQ_FIRST(&l->queue);
        while (next->number < cmd->number) next = TAILQ_NEXT(next, entry);
        TAILQ_INSERT_BEFORE(next, cmd, entry);
    }
    if (l->state == LINK_IDLE || (l->state == LINK_UP && !l->paused)) event_active(&l->work, EV_TIMEOUT, 0);
}

/* 10 ms, doubling to 500 ms (the keeper's: less), each with a spread. */
static uint32_t doubled_ms(const struct link *l, size_t doublings) {
    const uint32_t doubled = (uint32_t)BACKOFF_MS_MIN << (doublings < 6 ? doublings : 6);
    const uint32_t most = doubled < l->backoff_ms_max ? doubled : l->backoff_ms_max;
    return most / 2 + client_random(l->client, most / 2);
}

/* Send it again a little later: it was refused or is uncertain for a reason that passes. */
static void delay(struct link *l, struct command *cmd, uint64_t now_ms) {
    cmd->wake_ms = now_ms + doubled_ms(l, cmd->retries++);
    take_in(l, cmd, COMMAND_DELAYED);
    TAILQ_INSERT_TAIL(&l->delayed, cmd, entry);
    command_arm(cmd, now_ms);
}

bool link_is_free_to_move(const struct link *l) {
    const struct command *cmd;
    TAILQ_FOREACH(cmd, &l->inflight, entry) {
        if (!cmd->dead && !cmd->repeatable) return false;
    }
    return true;
}

/* ---- connecting ---- */

static struct address *address_of(struct link *l) {
    return &l->client->addresses.items[l->address_index];
}

static void arm(struct event *timer, uint64_t ms) {
    const struct timeval after = {.tv_sec = (time_t)(ms / 1000), .tv_usec = (suseconds_t)(ms % 1000 * 1000)};
    must(evtimer_add(timer, &after) == 0);
}

/* The first round over all addresses is quick. */
static uint32_t backoff_ms(struct link *l) {
    struct lockclient *c = l->client;
    if (l->failures < c->addresses.count) return client_random(c, BACKOFF_MS_MIN);
    return doubled_ms(l, l->failures - c->addresses.count);
}

static void next_address(struct link *l) {
    l->address_index = (l->address_index + 1) % l->client->addresses.count;
}

static int open_socket(int family) {
    const int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    /* A machine that vanished is noticed also while nothing is sent. */
    const int on = 1, idle_s = 5, interval_s = 2, probes = 3;
    const unsigned unacknowledged_ms = 10000;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof idle_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof interval_s);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unacknowledged_ms, sizeof unacknowledged_ms);
    return fd;
}

static void connect_to(struct link *l, const struct sockaddr *name, socklen_t name_bytes) {
    const int fd = open_socket(name->sa_family);
    l->state = LINK_CONNECTING;
    if (fd < 0) {
        link_fail(l);
        return;
    }
    l->bev = bufferevent_socket_new(l->client->base, fd, BEV_OPT_CLOSE_ON_FREE);
    must(l->bev != NULL);
    reader_init(&l->reader);
    l->connection++;
    bufferevent_setcb(l->bev, on_read, on_written, on_event, l);
    bufferevent_setwatermark(l->bev, EV_WRITE, OUTPUT_BYTES_LOW, 0);
    must(bufferevent_set_max_single_read(l->bev, READ_BYTES_MAX) == 0);
    must(bufferevent_set_max_single_write(l->bev, OUTPUT_BYTES_HIGH) == 0);
    /* May call on_event at once, which ends in link_fail; a failure without that is one as well. */
    const uint64_t connection = l->connection;
    if (bufferevent_socket_connect(l->bev, name, (int)name_bytes) != 0 && connection == l->connection &&
        l->state == LINK_CONNECTING) {
        link_fail(l);
    }
}

/* A cancelled look-up calls back much later, perhaps after its link has gone: it owns a note of who still asks. */
struct lookup {
    struct link *link; /* NULL: nobody */
    struct evdns_getaddrinfo_request *request;
};

static void connect_to_one_of(struct link *l, struct evutil_addrinfo *found) {
    unsigned count = 0;
    for (struct evutil_addrinfo *i = found; i != NULL; i = i->ai_next) count++;
    if (count == 0) {
        link_fail(l);
        return;
    }
    struct evutil_addrinfo *chosen = found;
    for (unsigned skip = address_of(l)->turn++ % count; skip > 0; skip--) chosen = chosen->ai_next;
    connect_to(l, chosen->ai_addr, (socklen_t)chosen->ai_addrlen);
}

static void on_resolved(int error, struct evutil_addrinfo *found, void *arg) {
    struct lookup *lookup = arg;
    if (lookup->link != NULL) {
        struct link *l = link_of(lookup->link);
        l->lookup = NULL;
        connect_to_one_of(l, error == 0 ? found : NULL);
    }
    if (found != NULL) evutil_freeaddrinfo(found);
    free(lookup);
}

static void cancel_lookup(struct link *l) {
    struct lookup *lookup = l->lookup;
    if (lookup == NULL) return;
    l->lookup = NULL;
    lookup->link = NULL;
    if (lookup->request != NULL) evdns_getaddrinfo_cancel(lookup->request);
}

/* With no usable resolv.conf the names of /etc/hosts still work. */
static struct evdns_base *dns_of(struct lockclient *c) {
    if (c->dns != NULL) return c->dns;
    c->dns = evdns_base_new(c->base, EVDNS_BASE_INITIALIZE_NAMESERVERS | EVDNS_BASE_DISABLE_WHEN_INACTIVE);
    if (c->dns == NULL) {
        c->dns = evdns_base_new(c->base, EVDNS_BASE_DISABLE_WHEN_INACTIVE);
        if (c->dns != NULL) (void)evdns_base_load_hosts(c->dns, "/etc/hosts");
    }
    return c->dns;
}

static void resolve(struct link *l) {
    struct address *a = address_of(l);
    struct evdns_base *dns = dns_of(l->client);
    const struct evutil_addrinfo hints = {
        .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_protocol = IPPROTO_TCP};
    if (dns == NULL) {
        link_fail(l);
        return;
    }
    struct lookup *lookup = get_memory(1, sizeof *lookup);
    lookup->link = l;
    l->lookup = lookup;
    /* on_resolved may be called before this returns, and then the note has gone and there is nothing to cancel. */
    const uint64_t connection = l->connection;
    struct evdns_getaddrinfo_request *request = evdns_getaddrinfo(dns, a->host, a->port, &hints, on_resolved, lookup);
    if (connection == l->connection && l->lookup == lookup) lookup->request = request;
}

static void link_connect(struct link *l) {
    struct address *a = address_of(l);
    l->state = LINK_RESOLVING;
    arm(&l->timer, l->connect_timeout_ms);
    if (a->name_bytes > 0) {
        connect_to(l, (const struct sockaddr *)&a->name, a->name_bytes);
    } else {
        resolve(l);
    }
}

/* ---- losing a connection ---- */

static uint64_t written_bytes(struct link *l) {
    if (l->bev == NULL) return 0;
    return l->handed_bytes - evbuffer_get_length(bufferevent_get_output(l->bev));
}

/* Close, and let every command in flight go where it belongs. */
static void disconnect(struct link *l, bool for_good) {
    const uint64_t written = written_bytes(l);
    l->state = LINK_IDLE;
    l->paused = false;
    l->connection++;
    event_del(&l->timer);
    event_del(&l->silence);
    cancel_lookup(l);
    if (l->bev != NULL) {
        bufferevent_setcb(l->bev, NULL, NULL, NULL, NULL);
        bufferevent_free(l->bev);
        reader_release(&l->reader);
        l->bev = NULL;
    }
    l->handed_bytes = 0;
    struct command *cmd;
    while ((cmd = TAILQ_LAST(&l->inflight, command_queue)) != NULL) { /* backwards: each goes to the queue's front */
        link_unqueue(cmd);
        if (cmd->dead) {
            command_free(cmd);
            continue;
        }
        const bool may_have_run = cmd->end_offset <= written;
        cmd->maybe_ran |= may_have_run;
        if (for_good || (may_have_run && !cmd->repeatable)) {
            command_finish_later(cmd, cmd->maybe_ran ? LOCKCLIENT_UNCERTAIN : LOCKCLIENT_NOT_RUN, NULL);
        } else {
            link_queue(l, cmd);
            command_arm(cmd, clock_now_ms()); /* without the limit of the attempt */
        }
    }
}

void link_fail(struct link *l) {
    if (l->state == LINK_IDLE || l->state == LINK_BACKOFF) return;
    disconnect(l, false);
    event_del(&l->work);
    next_address(l);
    l->failures++;
    l->state = LINK_BACKOFF;
    arm(&l->timer, backoff_ms(l));
}

void link_close(struct link *l) {
    struct command *cmd;
    disconnect(l, true);
    event_del(&l->work);
    while ((cmd = TAILQ_FIRST(&l->queue)) != NULL || (cmd = TAILQ_FIRST(&l->delayed)) != NULL) {
        link_unqueue(cmd);
        command_finish_later(cmd, cmd->maybe_ran ? LOCKCLIENT_UNCERTAIN : LOCKCLIENT_NOT_RUN, NULL);
    }
    event_del(&l->work);
    l->state = LINK_IDLE;
}

/* The caller of the oldest command has given up.  If nothing at all came meanwhile the node is as good as dead, and
 * what is queued behind it should not wait; if other replies come, the slot just stays in its place (C5). */
void link_check_silence(struct link *l) {
    const struct command *oldest = TAILQ_FIRST(&l->inflight);
    if (l->state != LINK_UP || oldest == NULL || !oldest->dead) return;
    const uint64_t now_ms = clock_now_ms();
    const uint64_t since = oldest->sent_ms > l->heard_ms ? oldest->sent_ms : l->heard_ms;
    if (now_ms >= since + SILENCE_MS) {
        link_fail(l);
    } else {
        arm(&l->silence, since + SILENCE_MS - now_ms);
    }
}

/* ---- sending ---- */

static void flush(struct link *l) {
    struct evbuffer *output = bufferevent_get_output(l->bev);
    const uint64_t now_ms = clock_now_ms(); /* before anything is handed over: leases count from here (C3) */
    struct command *cmd;
    while ((cmd = TAILQ_FIRST(&l->queue)) != NULL && evbuffer_get_length(output) < OUTPUT_BYTES_HIGH) {
        if (now_ms >= cmd->deadline_ms) { /* we slept: it is too late for this one */
            command_expire(cmd);
            continue;
        }
        link_unqueue(cmd);
        take_in(l, cmd, COMMAND_INFLIGHT);
        TAILQ_INSERT_TAIL(&l->inflight, cmd, entry);
        l->handed_bytes += cmd->byte_count;
        cmd->end_offset = l->handed_bytes;
        cmd->sent_ms = now_ms;
        must(bufferevent_write(l->bev, cmd->bytes, cmd->byte_count) == 0);
        if (cmd->attempt_ms > 0) command_arm(cmd, now_ms);
    }
}

static void send_name(struct link *l) {
    struct lockclient *c = l->client;
    if (c->name == NULL) return;
    const char *words[] = {"CLIENT", "SETNAME", c->name};
    char *bytes = NULL;
    const int count = redisFormatCommandArgv(&bytes, 3, words, NULL);
    must(count > 0);
    struct command *cmd = command_new(c);
    cmd->dead = true; /* nobody wants to know */
    cmd->sent_ms = clock_now_ms();
    l->handed_bytes += (uint64_t)count;
    cmd->end_offset = l->handed_bytes;
    take_in(l, cmd, COMMAND_INFLIGHT);
    TAILQ_INSERT_TAIL(&l->inflight, cmd, entry);
    must(bufferevent_write(l->bev, bytes, (size_t)count) == 0);
    free(bytes);
}

static void on_work(evutil_socket_t fd, short what, void *arg) {
    struct link *l = link_of(arg);
    (void)fd, (void)what;
    if (TAILQ_EMPTY(&l->queue)) return;
    if (l->state == LINK_IDLE)
        link_connect(l);
    else if (l->state == LINK_UP && !l->paused)
        flush(l);
}

static void on_written(struct bufferevent *bev, void *arg) {
    struct link *l = link_of(arg);
    if (bev == l->bev && l->state == LINK_UP && !l->paused) flush(l);
}

static void on_silence(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    link_check_silence(link_of(arg));
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
    struct link *l = link_of(arg);
    (void)fd, (void)what;
    switch (l->state) {
    case LINK_IDLE: break;
    case LINK_BACKOFF:
        l->state = LINK_IDLE;
        if (!TAILQ_EMPTY(&l->queue)) link_connect(l);
        break;
    case LINK_RESOLVING:
    case LINK_CONNECTING: link_fail(l); break;
    case LINK_UP: /* the pause is over */
        l->paused = false;
        if (l->client->addresses.count > 1 && link_is_free_to_move(l)) {
            disconnect(l, false);
            event_del(&l->work);
            next_address(l);
            if (!TAILQ_EMPTY(&l->queue)) link_connect(l);
        } else {
            flush(l);
        }
        break;
    }
}

/* ---- replies ---- */

static enum refusal refusal_of(const struct redisReply *reply) {
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        const size_t bytes = strlen(refusals[i].word);
        if (reply->len >= bytes && memcmp(reply->str, refusals[i].word, bytes) == 0 &&
            (reply->len == bytes || reply->str[bytes] == ' ')) {
            return refusals[i].kind;
        }
    }
    return REFUSED_BY_CONTENT;
}

static void keep_refusal(struct command *cmd, struct redisReply *reply) {
    if (cmd->refusal != NULL) freeReplyObject(cmd->refusal);
    cmd->refusal = reply;
}

/* The node cannot do anything for now.  Everything behind would hear the same: wait, then try the next one. */
static void pause_link(struct link *l) {
    if (l->paused) return;
    l->paused = true;
    l->failures++;
    arm(&l->timer, 1 + backoff_ms(l));
}

/* cmd is in no queue. */
static void refused(struct link *l, struct command *cmd, enum refusal kind, struct redisReply *reply) {
    const uint64_t now_ms = clock_now_ms();
    const bool late = now_ms >= cmd->deadline_ms;
    const enum lockclient_result not_run = cmd->maybe_ran ? LOCKCLIENT_UNCERTAIN : LOCKCLIENT_NOT_RUN;
    switch (kind) {
    case REFUSED_BY_CONTENT: command_finish_now(cmd, LOCKCLIENT_REPLY, reply); break;
    case REFUSED_FOR_GOOD: command_finish_now(cmd, not_run, reply); break;
    case REFUSED_BY_NODE:
        pause_link(l);
        if (late) {
            command_finish_now(cmd, not_run, reply);
        } else {
            keep_refusal(cmd, reply);
            link_queue(l, cmd);
            command_arm(cmd, now_ms);
        }
        break;
    case REFUSED_NOW:
        if (late) {
            command_finish_now(cmd, not_run, reply);
        } else {
            keep_refusal(cmd, reply);
            delay(l, cmd, now_ms);
        }
        break;
    case PERHAPS_EXECUTED:
        cmd->maybe_ran = true;
        if (late || !cmd->repeatable) {
            command_finish_now(cmd, LOCKCLIENT_UNCERTAIN, reply);
        } else {
            keep_refusal(cmd, reply);
            delay(l, cmd, now_ms);
        }
        break;
    }
}

/* False: it answers nothing we asked, or nothing more can be asked after it. */
static bool take_reply(struct link *l, struct redisReply *reply) {
    struct command *cmd = TAILQ_FIRST(&l->inflight);
    const uint64_t written = written_bytes(l);
    if (cmd == NULL || cmd->end_offset - cmd->byte_count >= written) {
        freeReplyObject(reply);
        return false;
    }
    if (cmd->end_offset > written) { /* refused in the middle of its bytes: too long for this node */
        const bool is_error = reply->type == REDIS_REPLY_ERROR;
        if (is_error && !cmd->dead) {
            link_unqueue(cmd);
            command_finish_now(cmd, LOCKCLIENT_REPLY, reply);
        } else {
            freeReplyObject(reply);
        }
        return false;
    }
    const enum refusal kind = reply->type == REDIS_REPLY_ERROR ? refusal_of(reply) : REFUSED_BY_CONTENT;
    if (kind != REFUSED_BY_NODE) {
        l->failures = 0;
        address_of(l)->silent = false;
    }
    link_unqueue(cmd);
    if (cmd->dead) {
        command_free(cmd);
        freeReplyObject(reply);
    } else if (reply->type == REDIS_REPLY_ERROR) {
        refused(l, cmd, kind, reply);
    } else {
        command_finish_now(cmd, LOCKCLIENT_REPLY, reply);
    }
    return true;
}

/* False: this connection is over. */
static bool take_replies(struct link *l, const void *bytes, size_t count) {
    const uint64_t connection = l->connection;
    struct redisReply *reply;
    enum reader_answer answer = reader_feed(&l->reader, bytes, count);
    while (answer != READER_GARBAGE && (answer = reader_next(&l->reader, &reply)) == READER_REPLY) {
        const bool fits = take_reply(l, reply);
        if (connection != l->connection) return false; /* a callback had it closed */
        if (!fits) answer = READER_GARBAGE;
    }
    if (answer == READER_GARBAGE) link_fail(l);
    return answer != READER_GARBAGE;
}

static void on_read(struct bufferevent *bev, void *arg) {
    struct link *l = link_of(arg);
    if (bev != l->bev) return;
    const uint64_t connection = l->connection;
    leases_check_clock(l->client);
    if (connection != l->connection || l->state != LINK_UP) return;
    l->heard_ms = clock_now_ms();
    struct evbuffer *input = bufferevent_get_input(bev);
    struct evbuffer_iovec piece;
    while (evbuffer_peek(input, -1, NULL, &piece, 1) > 0) {
        if (!take_replies(l, piece.iov_base, piece.iov_len)) return;
        must(evbuffer_drain(input, piece.iov_len) == 0);
    }
    link_check_silence(l);
}

static void on_event(struct bufferevent *bev, short what, void *arg) {
    struct link *l = link_of(arg);
    if (bev != l->bev) return;
    if ((what & BEV_EVENT_CONNECTED) == 0) {
        link_fail(l);
        return;
    }
    event_del(&l->timer);
    l->state = LINK_UP;
    l->handed_bytes = 0;
    l->heard_ms = clock_now_ms();
    if (bufferevent_enable(bev, EV_READ | EV_WRITE) != 0) {
        link_fail(l);
        return;
    }
    send_name(l);
    flush(l);
}
