/* lockclient.h - liblockclient: talk to a Holdfast cluster from a C program.
 *
 * Place in the flow:  your program -> [lockclient] -> RESP2 over TCP -> any lockd node
 *
 * One `struct lockclient` is one logical connection that follows the cluster: it connects to any of the addresses it
 * was given, in their order and beginning with the first, pipelines, and goes to the next address when a node dies,
 * falls silent or says -CLUSTERDOWN or -LOADING.  It runs on a libevent base and never blocks it; everything happens
 * on the thread that runs the base.  Replies come in the order of the calls, each exactly once; a command that is
 * tried again or times out ends when it ends.
 *
 * Redis connections answer in order: a command that waits at lockd (LOCK.ACQUIRE ... WAIT, ROUTE.NEXT, ROUTE.MOVE)
 * holds up every command sent after it.  Mark such a command LOCKCLIENT_WAITS and it goes over a connection that
 * nothing else waits for.  Leases are kept alive over a connection of their own, always.
 *
 * Commands that answer more or less than once (SUBSCRIBE, MONITOR, CLIENT REPLY) are not for this library, nor are
 * those whose effect is bound to one connection (MULTI, WATCH, SELECT): a reconnect forgets it.
 *
 * What always holds:
 *   C1  A command that may have run is not sent again unless it was marked LOCKCLIENT_REPEATABLE.
 *   C2  Every send ends in exactly one callback: a reply, NOT_RUN or UNCERTAIN.  On free too, as one of these two.
 *   C3  A holder relies on its lease until lockclient_lease_deadline_ms and no longer: counted on CLOCK_BOOTTIME from
 *       *before* the last acknowledged renewal was sent, less clock_drift_ppm of the ttl, because lockd counts from
 *       when it executed it.  LOST is reported a little before that moment, or as soon as the process gets to run.
 *   C4  Memory is bounded: at most `pending_max` commands and 64 MiB wait; more is refused as NOT_RUN at once.  A
 *       reply of more than 64 MiB, or nested deeper than 7, ends its connection as if it were broken.
 *   C5  A reply is never given to another command than the one it answers: what timed out keeps its place in the
 *       pipeline, and a connection that says more than it was asked is closed.
 *   C6  After the process or the machine slept, the clock comes first: a lease that ran out meanwhile is reported
 *       LOST before any reply that was waiting to be read.
 *
 * The replies are hiredis' `struct redisReply`; RESP errors of content (-ERR, -NOLEASE, -WRONGTYPE ...) arrive as
 * LOCKCLIENT_REPLY with type REDIS_REPLY_ERROR, because what they mean is up to the caller.
 *
 * Writing to a connection that the other side closed raises SIGPIPE: lockclient_new sets it to be ignored if it still
 * has its default action.  Running out of memory anywhere but in lockclient_new ends the process. */
#pragma once
#include <hiredis/hiredis.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct event_base;
struct lockclient;
struct lockclient_lease;

/* Zero-initialise; 0 means the default. */
struct lockclient_config {
    const char *addresses;   /* "host:port,host:port,..."; default "127.0.0.1:7400".  Read during lockclient_new only */
    struct event_base *base; /* the caller's loop; NULL: the client makes and owns one (lockclient_base) */
    const char *name;        /* CLIENT SETNAME; default none.  Read during lockclient_new only */
    uint32_t connect_timeout_ms; /* one address; default 1000 */
    uint32_t command_timeout_ms; /* default for each command; 15000.  lockd's own forward-timeout is 10 s */
    uint32_t clock_drift_ppm;    /* rate bound between our clock and lockd's; default 500 */
    uint32_t pending_max;        /* commands waiting or in flight; default 65536 */
};

/* Why a callback was called. */
enum lockclient_result {
    /* `reply` is what lockd said, RESP errors of content included. */
    LOCKCLIENT_REPLY,
    /* No node could be reached, or it was refused: it did not run.  -CLUSTERDOWN, -LOADING and -BUSY were tried again
     * until the timeout, -DISKFULL and -READONLY were not.  `reply` is the error lockd gave last, or NULL. */
    LOCKCLIENT_NOT_RUN,
    /* It was sent and may have run: connection lost, timeout or -UNCERTAIN.  `reply` may be NULL. */
    LOCKCLIENT_UNCERTAIN
};

/* `reply` is borrowed, for the call only.  The client must not be freed inside; lockclient_stop may be called. */
typedef void lockclient_reply_fn(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply,
                                 void *arg);

enum lockclient_send_flag {
    /* The caller knows that running it twice does no harm (reads; LOCK.ACQUIRE of one lease; LOCK.RELEASE with TOKEN;
     * LEASE.KEEPALIVE; ROUTE.*): after a lost connection it is sent again, until its timeout. */
    LOCKCLIENT_REPEATABLE = 1,
    /* It may wait at lockd for long.  Give it a timeout_ms above that wait. */
    LOCKCLIENT_WAITS = 2
};

/* Errors of the functions that return int: 0 is success, the outputs are untouched on failure. */
enum lockclient_error {
    LOCKCLIENT_ERR_ADDRESS = -1, /* `addresses` is malformed; lockclient_error_text names the bad one */
    LOCKCLIENT_ERR_MEMORY = -2   /* no memory, or the event base or its timer could not be made */
};

/* Make a client; nothing is sent before the loop runs.  *ret_client is freed with lockclient_free. */
int lockclient_new(const struct lockclient_config *config, struct lockclient **ret_client);
/* What the last failed lockclient_new of this thread was about; static storage. */
const char *lockclient_error_text(void);
/* Ends every pending command with its callback, closes the connections, frees.  NULL is fine.  Not from a callback.
 * What those last callbacks send is dropped without a callback.  Leases that were not freed are neither kept nor
 * revoked from here on; their deadline stays what it was. */
void lockclient_free(struct lockclient *c);
/* The loop it runs on. */
struct event_base *lockclient_base(struct lockclient *c);
/* Ask for the loop to end after the callbacks that are due; for use in callbacks. */
void lockclient_stop(struct lockclient *c);
/* "host:port", as it was given, of the node the client is connected to, or NULL.  Valid until the next loop turn. */
const char *lockclient_peer(const struct lockclient *c);

/* Queue one command.  argv is copied; argv_bytes NULL: the words end with a zero byte.  timeout_ms 0: the config's
 * default.  Always ends in one call of fn (C2), never before this function has returned.  fn NULL: nobody wants to
 * know. */
void lockclient_send(struct lockclient *c, unsigned flags, uint32_t timeout_ms, int argc, const char *const *argv,
                     const size_t *argv_bytes, lockclient_reply_fn *fn, void *arg);
/* The same from words: lockclient_sendv(c, flags, 0, fn, arg, "GET", "key", NULL). */
void lockclient_sendv(struct lockclient *c, unsigned flags, uint32_t timeout_ms, lockclient_reply_fn *fn, void *arg,
                      const char *word, ...) __attribute__((sentinel));

/* Send one command and run the loop until its end.  For programs without a loop of their own; not from a callback.
 * A lockclient_stop meanwhile ends it early, as NOT_RUN or UNCERTAIN.  *ret_reply: caller frees with freeReplyObject,
 * NULL if there is none; ret_reply NULL: not wanted. */
enum lockclient_result lockclient_call(struct lockclient *c, unsigned flags, uint32_t timeout_ms, int argc,
                                       const char *const *argv, const size_t *argv_bytes,
                                       struct redisReply **ret_reply);

/* ---- a lease that is kept alive in the background ---- */
enum lockclient_lease_event {
    LOCKCLIENT_LEASE_GRANTED, /* id and deadline are known; kept alive from here on, every ttl/3 */
    LOCKCLIENT_LEASE_RENEWED, /* deadline moved on */
    LOCKCLIENT_LEASE_DOUBT,   /* two thirds of the ttl have passed without an acknowledgement: stop starting new work */
    LOCKCLIENT_LEASE_LOST,    /* may no longer be relied on: gone at lockd, or our deadline passed.  Last event */
    LOCKCLIENT_LEASE_REFUSED  /* could not be granted (the reply is in `why`).  Last event */
};
typedef void lockclient_lease_fn(struct lockclient_lease *lease, enum lockclient_lease_event event, const char *why,
                                 void *arg);

/* Ask for a lease; fn hears of everything that happens to it, never before this function has returned.  name may be
 * NULL.  Asking is tried again until the config's command timeout.  ttl_ms is judged by lockd (1000..86400000).  The
 * lease object lives until lockclient_lease_free, also after LOST. */
struct lockclient_lease *lockclient_lease_new(struct lockclient *c, uint32_t ttl_ms, const char *name,
                                              lockclient_lease_fn *fn, void *arg);
/* 0 until granted. */
int64_t lockclient_lease_id(const struct lockclient_lease *lease);
/* CLOCK_BOOTTIME ms until which the holder may rely on it (C3); 0 when it may not. */
uint64_t lockclient_lease_deadline_ms(const struct lockclient_lease *lease);
/* Stop keeping it alive and revoke it, best effort; frees.  NULL is fine.  May be called in fn. */
void lockclient_lease_free(struct lockclient_lease *lease);

#ifdef __cplusplus
}
#endif
