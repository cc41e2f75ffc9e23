/* fake_lockd.h - a lockd of a few lines on the loop of the test: it takes commands apart and does what a row says.
 *
 * A test waits for events only; fake_run_until ends the test when nothing happens for too long. */
#pragma once
#include <event2/event.h>
#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FAKE_CONNS_MAX = 64 };
struct fake;
struct fake_conn;
/* One command came in.  Answer with fake_say, now or later, or close. */
typedef void fake_handler(struct fake *f, struct fake_conn *conn, const struct redisReply *command);

struct fake {
    struct event_base *base;
    struct evconnlistener *listener;
    fake_handler *handler;
    uint16_t port;
    char address[32];
    unsigned connects, commands, closes; /* so far */
    unsigned plays;                      /* for handlers: which act of the play it is */
    bool deaf;                           /* reads nothing */
    struct fake_conn *conns[FAKE_CONNS_MAX];
};

void fake_open(struct fake *f, struct event_base *base, fake_handler *handler);
/* Close everything and stop listening; the port stays refused. */
void fake_shut(struct fake *f);
void fake_say(struct fake_conn *conn, const char *format, ...) __attribute__((format(printf, 2, 3)));
void fake_say_bytes(struct fake_conn *conn, const void *bytes, size_t count);
/* Into the socket without a turn of the loop; only when nothing said before waits. */
void fake_say_now(struct fake_conn *conn, const char *text);
/* What was said before is sent first. */
void fake_hang_up(struct fake_conn *conn);
/* With a reset; nothing said before is waited for. */
void fake_reset(struct fake_conn *conn);
void fake_hang_up_all(struct fake *f);
struct fake *fake_of(struct fake_conn *conn);
bool fake_is(const struct redisReply *command, const char *word);

/* Run the loop until *condition; fails the test after 20 s. */
void fake_run_until(struct event_base *base, const bool *condition);
/* The same until *count is at least `least`. */
void fake_run_until_count(struct event_base *base, const unsigned *count, unsigned least);
/* Run the loop for so long: for tests that nothing happens. */
void fake_run_for(struct event_base *base, unsigned ms);
