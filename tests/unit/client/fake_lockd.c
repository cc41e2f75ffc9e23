#include "tests/unit/client/fake_lockd.h"
#include <check.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/listener.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

struct fake_conn {
    struct fake *fake;
    struct bufferevent *bev;
    redisReader *reader;
    bool closing, gone;
};

static void conn_free(struct fake_conn *conn) {
    struct fake *f = conn->fake;
    for (int i = 0; i < FAKE_CONNS_MAX; i++) {
        if (f->conns[i] == conn) f->conns[i] = NULL;
    }
    f->closes++;
    bufferevent_free(conn->bev);
    redisReaderFree(conn->reader);
    free(conn);
}

static void on_read(struct bufferevent *bev, void *arg) {
    struct fake_conn *conn = arg;
    char bytes[16384];
    size_t count;
    while ((count = bufferevent_read(bev, bytes, sizeof bytes)) > 0) {
        ck_assert_int_eq(redisReaderFeed(conn->reader, bytes, count), REDIS_OK);
    }
    for (;;) {
        void *command = NULL;
        ck_assert_msg(redisReaderGetReply(conn->reader, &command) == REDIS_OK, "the client sent garbage: %s",
                      conn->reader->errstr);
        if (command == NULL) break;
        if (!conn->closing) {
            conn->fake->commands++;
            conn->fake->handler(conn->fake, conn, command);
        }
        freeReplyObject(command);
        if (conn->gone) break;
    }
    if (conn->gone) conn_free(conn);
}

static void on_written(struct bufferevent *bev, void *arg) {
    struct fake_conn *conn = arg;
    (void)bev;
    if (conn->closing) conn_free(conn);
}

static void on_event(struct bufferevent *bev, short what, void *arg) {
    (void)bev;
    if ((what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) != 0) conn_free(arg);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *name, int bytes,
                      void *arg) {
    struct fake *f = arg;
    (void)listener, (void)name, (void)bytes;
    struct fake_conn *conn = calloc(1, sizeof *conn);
    conn->fake = f;
    conn->reader = redisReaderCreate();
    conn->bev = bufferevent_socket_new(f->base, fd, BEV_OPT_CLOSE_ON_FREE);
    bufferevent_setcb(conn->bev, on_read, on_written, on_event, conn);
    bufferevent_enable(conn->bev, f->deaf ? EV_WRITE : EV_READ | EV_WRITE);
    int i = 0;
    while (i < FAKE_CONNS_MAX && f->conns[i] != NULL) i++;
    ck_assert_int_lt(i, FAKE_CONNS_MAX);
    f->conns[i] = conn;
    f->connects++;
}

void fake_open(struct fake *f, struct event_base *base, fake_handler *handler) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t bytes = sizeof name;
    *f = (struct fake){.base = base, .handler = handler};
    f->listener =
        evconnlistener_new_bind(base, on_accept, f, LEV_OPT_CLOSE_ON_FREE, 128, (struct sockaddr *)&name, sizeof name);
    ck_assert_ptr_nonnull(f->listener);
    ck_assert_int_eq(getsockname(evconnlistener_get_fd(f->listener), (struct sockaddr *)&name, &bytes), 0);
    f->port = ntohs(name.sin_port);
    snprintf(f->address, sizeof f->address, "127.0.0.1:%u", f->port);
}

void fake_hang_up_all(struct fake *f) {
    for (int i = 0; i < FAKE_CONNS_MAX; i++) {
        if (f->conns[i] != NULL) conn_free(f->conns[i]);
    }
}

void fake_shut(struct fake *f) {
    fake_hang_up_all(f);
    if (f->listener != NULL) evconnlistener_free(f->listener);
    f->listener = NULL;
}

void fake_say_bytes(struct fake_conn *conn, const void *bytes, size_t count) {
    ck_assert_int_eq(bufferevent_write(conn->bev, bytes, count), 0);
}

void fake_say(struct fake_conn *conn, const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    const int count = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    ck_assert_int_lt(count, (int)sizeof text);
    fake_say_bytes(conn, text, (size_t)count);
}

void fake_say_now(struct fake_conn *conn, const char *text) {
    const ssize_t count = send(bufferevent_getfd(conn->bev), text, strlen(text), MSG_NOSIGNAL);
    ck_assert_int_eq(count, (ssize_t)strlen(text));
}

void fake_hang_up(struct fake_conn *conn) {
    if (evbuffer_get_length(bufferevent_get_output(conn->bev)) == 0) conn->gone = true;
    conn->closing = true;
}

void fake_reset(struct fake_conn *conn) {
    const struct linger now = {.l_onoff = 1, .l_linger = 0};
    setsockopt(bufferevent_getfd(conn->bev), SOL_SOCKET, SO_LINGER, &now, sizeof now);
    conn->gone = conn->closing = true;
}

struct fake *fake_of(struct fake_conn *conn) {
    return conn->fake;
}

bool fake_is(const struct redisReply *command, const char *word) {
    return command->type == REDIS_REPLY_ARRAY && command->elements > 0 &&
           strcasecmp(command->element[0]->str, word) == 0;
}

static void on_too_long(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    *(bool *)arg = true;
}

static void run(struct event_base *base, const bool *condition, const unsigned *count, unsigned least,
                unsigned limit_ms, bool must_happen) {
    bool late = false;
    struct event *timer = evtimer_new(base, on_too_long, &late);
    const struct timeval limit = {.tv_sec = limit_ms / 1000, .tv_usec = limit_ms % 1000 * 1000};
    evtimer_add(timer, &limit);
    while (!late && !(condition != NULL && *condition) && !(count != NULL && *count >= least)) {
        ck_assert_int_ge(event_base_loop(base, EVLOOP_ONCE), 0);
    }
    event_free(timer);
    if (must_happen) ck_assert_msg(!late, "what the test waits for did not happen");
}

void fake_run_until(struct event_base *base, const bool *condition) {
    run(base, condition, NULL, 0, 20000, true);
}
void fake_run_until_count(struct event_base *base, const unsigned *count, unsigned least) {
    run(base, NULL, count, least, 20000, true);
}
void fake_run_for(struct event_base *base, unsigned ms) {
    run(base, NULL, NULL, 0, ms, false);
}
