/* chatd.c - the demo chat server: rooms, one backend process, no state on disk.  What a session server behind lockproxy
 * looks like from outside, with a log that tests can check.
 *
 *   chatd --listen HOST:PORT --name NAME [--log FILE]
 *
 * Lines from a client:
 *   JOIN room user   first line; answered with "* NAME welcomes user to room" to everybody in the room
 *   quit             the server ends this connection
 *   die              the server ends itself, abnormally: what a poisonous message does to a server with a bug
 *   anything else    "user: line" to everybody in the room, the sender included
 *
 * One line per event goes to the log at once, stamped with CLOCK_BOOTTIME in ms:
 *   123456 open conn=1 | join conn=1 room=lobby user=ann | message conn=1 room=lobby user=ann bytes=5 | close conn=1
 * ... */
#include "common/io/clock.h"
#include "common/io/net.h"
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/resource.h>
#include <unistd.h>

enum { WORD_BYTES = 256, LINE_BYTES_MAX = 4096, WAITING_BYTES_MAX = 1 << 20, CONNECTIONS_MAX = 20000, ROOMS = 4096 };

struct conn {
    uint64_t number;
    struct bufferevent *bev;
    struct server *server;
    char room[WORD_BYTES], user[WORD_BYTES]; /* empty before JOIN */
    TAILQ_ENTRY(conn) of_room, of_all;
};
TAILQ_HEAD(conn_list, conn);
struct server {
    struct event_base *base;
    const char *name;
    int log_fd;
    uint64_t last_number, count;
    struct conn_list all, rooms[ROOMS]; /* by a hash of the room's name */
    struct event acceptable, resume;
};

static struct conn_list *room_list(struct server *s, const char *room) {
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (; *room != '\0'; room++) hash = (hash ^ (unsigned char)*room) * 16777619u;
    return &s->rooms[hash % ROOMS];
}

static void note(const struct conn *c, const char *event, long bytes) {
    char line[LINE_BYTES_MAX];
    int used = snprintf(line, sizeof line, "%llu %s conn=%llu", (unsigned long long)clock_now_ms(), event,
                        (unsigned long long)c->number);
    if (c->room[0] != '\0')
        used += snprintf(line + used, sizeof line - (size_t)used, " room=%s user=%s", c->room, c->user);
    if (bytes >= 0) used += snprintf(line + used, sizeof line - (size_t)used, " bytes=%ld", bytes);
    line[used++] = '\n';
    if (write(c->server->log_fd, line, (size_t)used) < 0) exit(1); /* a log with holes proves nothing */
}

static void close_conn(struct conn *c) {
    struct server *s = c->server;
    note(c, "close", -1);
    if (c->room[0] != '\0') TAILQ_REMOVE(room_list(s, c->room), c, of_room);
    TAILQ_REMOVE(&s->all, c, of_all);
    s->count--;
    bufferevent_free(c->bev);
    free(c);
}

/* To everybody in the room of `from`.  Who does not read what it is sent loses lines, not the server its memory. */
static void say(struct conn *from, const char *text, size_t bytes) {
    const struct conn_list *room = room_list(from->server, from->room);
    for (struct conn *c = TAILQ_FIRST(room); c != NULL; c = TAILQ_NEXT(c, of_room)) {
        struct evbuffer *out = bufferevent_get_output(c->bev);
        if (strcmp(c->room, from->room) != 0 || evbuffer_get_length(out) > WAITING_BYTES_MAX) continue;
        evbuffer_add(out, text, bytes);
    }
}

static void on_join(struct conn *c, char *words) {
    char *save = NULL;
    const char *room = strtok_r(words, " ", &save), *user = strtok_r(NULL, " ", &save);
    if (room == NULL || user == NULL || c->room[0] != '\0' || strlen(room) >= WORD_BYTES ||
        strlen(user) >= WORD_BYTES) {
        evbuffer_add_printf(bufferevent_get_output(c->bev), "? JOIN room user, once\n");
        return;
    }
    snprintf(c->room, sizeof c->room, "%s", room);
    snprintf(c->user, sizeof c->user, "%s", user);
    TAILQ_INSERT_TAIL(room_list(c->server, c->room), c, of_room);
    note(c, "join", -1);
    char text[3 * WORD_BYTES + 64];
    const int bytes = snprintf(text, sizeof text, "* %s welcomes %s to %s\n", c->server->name, c->user, c->room);
    say(c, text, (size_t)bytes);
}

/* False: the connection is gone. */
static bool on_line(struct conn *c, char *line, size_t bytes) {
    if (strncmp(line, "JOIN ", 5) == 0) {
        on_join(c, line + 5);
        return true;
    }
    if (strcmp(line, "quit") == 0) {
        close_conn(c);
        return false;
    }
    if (strcmp(line, "die") == 0) {
        note(c, "die", (long)bytes);
        _exit(1);
    }
    note(c, "message", (long)bytes);
    if (c->room[0] == '\0') {
        evbuffer_add_printf(bufferevent_get_output(c->bev), "? JOIN room user first\n");
        return true;
    }
    char text[LINE_BYTES_MAX + WORD_BYTES + 8];
    const int used = snprintf(text, sizeof text, "%s: %s\n", c->user, line);
    say(c, text, (size_t)used);
    return true;
}

/* For the log and for others: one word or line of printable characters stays one. */
static void clean(char *line, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)line[i] < ' ' || line[i] == 0x7f) line[i] = '?';
}

static void on_read(struct bufferevent *bev, void *arg) {
    struct conn *c = arg;
    struct evbuffer *in = bufferevent_get_input(bev);
    char *line;
    size_t bytes;
    while ((line = evbuffer_readln(in, &bytes, EVBUFFER_EOL_CRLF)) != NULL) {
        clean(line, bytes);
        const bool goes_on = bytes <= LINE_BYTES_MAX && on_line(c, line, bytes);
        if (!goes_on && bytes > LINE_BYTES_MAX) close_conn(c);
        free(line);
        if (!goes_on) return;
    }
    if (evbuffer_get_length(in) > LINE_BYTES_MAX) close_conn(c);
}

static void on_event(struct bufferevent *bev, short what, void *arg) {
    (void)bev;
    if ((what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) != 0) close_conn(arg);
}

static void conn_new(struct server *s, int fd) {
    struct conn *c = s->count < CONNECTIONS_MAX ? calloc(1, sizeof *c) : NULL;
    if (c == NULL) {
        close(fd);
        return;
    }
    net_tune(fd, 60, 0);
    c->number = ++s->last_number;
    c->server = s;
    c->bev = bufferevent_socket_new(s->base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (c->bev == NULL) {
        close(fd);
        free(c);
        return;
    }
    TAILQ_INSERT_TAIL(&s->all, c, of_all);
    s->count++;
    note(c, "open", -1);
    bufferevent_setcb(c->bev, on_read, NULL, on_event, c);
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
}

static void on_accept(evutil_socket_t fd, short what, void *arg) {
    static const struct timeval pause = {.tv_usec = 100000};
    struct server *s = arg;
    (void)what;
    for (int i = 0; i < 64; i++) {
        const int client = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client >= 0) {
            conn_new(s, client);
        } else if (errno != EINTR && errno != ECONNABORTED) {
            if (errno == EAGAIN) return;
            event_del(&s->acceptable); /* no descriptor left: wait, do not spin */
            event_add(&s->resume, &pause);
            return;
        }
    }
}

static void on_resume(evutil_socket_t fd, short what, void *arg) {
    struct server *s = arg;
    (void)fd, (void)what;
    event_add(&s->acceptable, NULL);
}

static void on_stop(evutil_socket_t number, short what, void *arg) {
    (void)number, (void)what;
    event_base_loopbreak(arg);
}

static int fail(const char *what, const char *why) {
    fprintf(stderr, "chatd: %s: %s\n", what, why);
    return 1;
}

static int serve(const char *listen_text, const char *name, const char *log) {
    static struct server s;
    struct net_address address;
    char error[NET_ERROR_BYTES], shown[NET_NAME_BYTES];
    int fd;
    if (net_parse(listen_text, true, &address, error, sizeof error) != 0) return fail(listen_text, error);
    if (net_bind(&address, &fd, error, sizeof error) != 0 || net_listen(fd, error, sizeof error) != 0)
        return fail("listen", error);
    s.name = name;
    s.log_fd = STDOUT_FILENO;
    if (log != NULL && (s.log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) < 0)
        return fail(log, strerror(errno));
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
    (void)sigaction(SIGPIPE, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
    s.base = event_base_new();
    if (s.base == NULL) return fail("libevent", "no event base");
    TAILQ_INIT(&s.all);
    for (int i = 0; i < ROOMS; i++) TAILQ_INIT(&s.rooms[i]);
    struct event stops[2];
    evsignal_assign(&stops[0], s.base, SIGTERM, on_stop, s.base);
    evsignal_assign(&stops[1], s.base, SIGINT, on_stop, s.base);
    for (int i = 0; i < 2; i++) event_add(&stops[i], NULL);
    event_assign(&s.acceptable, s.base, fd, EV_READ | EV_PERSIST, on_accept, &s);
    event_assign(&s.resume, s.base, -1, 0, on_resume, &s);
    event_add(&s.acceptable, NULL);
    net_local_name(fd, shown);
    fprintf(stderr, "chatd %s listening address=%s\n", name, shown);
    event_base_dispatch(s.base);
    struct conn *c;
    while ((c = TAILQ_FIRST(&s.all)) != NULL) close_conn(c);
    for (int i = 0; i < 2; i++) event_del(&stops[i]);
    event_del(&s.acceptable);
    event_del(&s.resume);
    event_base_free(s.base);
    close(fd);
    return 0;
}

int main(int argc, char **argv) {
    const char *listen_text = NULL, *name = NULL, *log = NULL;
    for (int i = 1; i < argc; i++) {
        const char **value = strcmp(argv[i], "--listen") == 0 ? &listen_text
                             : strcmp(argv[i], "--name") == 0 ? &name
                             : strcmp(argv[i], "--log") == 0  ? &log
                                                              : NULL;
        if (value == NULL || i + 1 >= argc) {
            fprintf(stderr, "chatd: %s \"%s\"\n", value == NULL ? "there is no option" : "no value for", argv[i]);
            listen_text = NULL;
            break;
        }
        *value = argv[++i];
    }
    if (listen_text == NULL || name == NULL || strlen(name) >= WORD_BYTES) {
        fputs("usage: chatd --listen HOST:PORT --name NAME [--log FILE]\n", stderr);
        return 2;
    }
    return serve(listen_text, name, log);
}
