/* lockclient_private.h - what the parts of liblockclient know of each other.
 *
 * Place in the flow:  lockclient.c (commands, limits, ends) -> lockclient_link.c (one connection: order, loss, retry)
 *                     -> lockclient_reader.c (replies from bytes);  lockclient_lease.c sends commands like any caller
 *
 * A command is in one place at a time:
 *   QUEUED    in link->queue, in the order of the calls; none of it is on a connection that lives
 *   DELAYED   in link->delayed: refused or uncertain and to be sent again at wake_ms
 *   INFLIGHT  in link->inflight, in the order of its bytes; `dead` when its caller has been told
 *   FINISHED  in client->finished: its callback is due in the next turn of the loop */
#pragma once
#include "client/lockclient.h"
#include "common/must.h"
#include <event2/event.h>
#include <event2/event_struct.h>
#include <netinet/in.h>
#include <sys/queue.h>
#include <sys/socket.h>

enum {
    WAITING_BYTES_MAX = 64 << 20, /* C4: commands not yet ended */
    REPLY_BYTES_MAX = 64 << 20,   /* C4: one reply, in memory or still on its way */
    LINE_BYTES_MAX = 64 << 10,    /* a status, error, integer or length */
    ADDRESSES_MAX = 64,
    WAITER_LINKS_MAX = 8,
    BACKOFF_MS_MIN = 10,
    BACKOFF_MS_MAX = 500,
    SILENCE_MS = 1000, /* a connection whose oldest command timed out may be silent for so long */
};

/* ---- addresses ---- */
struct address {
    char *text;                   /* as it was given */
    char *host;                   /* without brackets */
    char port[6];                 /* decimal */
    struct sockaddr_storage name; /* numeric addresses only */
    socklen_t name_bytes;         /* 0: a name to be looked up */
    unsigned turn;                /* which of the addresses of that name comes next */
    bool silent;                  /* a renewal went unanswered there and nothing was heard since */
};
struct address_list {
    struct address *items;
    size_t count;
};
/* 0 or LOCKCLIENT_ERR_*; `error` names what was wrong with which address.  Release after success only. */
int address_list_parse(struct address_list *ret_list, const char *text, char *error, size_t error_bytes);
void address_list_release(struct address_list *list);

/* ---- replies from bytes ---- */
struct reader {
    redisReader *redis;
    redisReplyObjectFunctions functions; /* hiredis' own, with a limit before each */
    redisReplyObjectFunctions *inner;
    size_t reply_bytes; /* memory of the reply under construction */
};
enum reader_answer { READER_REPLY, READER_NEED_MORE, READER_GARBAGE };
void reader_init(struct reader *r);
void reader_release(struct reader *r);
NODISCARD enum reader_answer reader_feed(struct reader *r, const void *bytes, size_t count);
/* READER_REPLY: *ret_reply is the caller's, for freeReplyObject. */
NODISCARD enum reader_answer reader_next(struct reader *r, struct redisReply **ret_reply);

/* ---- commands ---- */
enum command_state { COMMAND_QUEUED, COMMAND_DELAYED, COMMAND_INFLIGHT, COMMAND_FINISHED };
struct command {
    uint32_t magic;
    enum command_state state;
    TAILQ_ENTRY(command) entry;
    struct link *link;
    uint64_t number; /* order of the calls */
    char *bytes;     /* RESP; NULL when dead */
    size_t byte_count;
    bool repeatable, dead;
    bool maybe_ran;                /* an earlier sending of it may have run */
    uint64_t deadline_ms;          /* the caller's timeout */
    uint64_t wake_ms;              /* DELAYED: when to send it again */
    uint64_t sent_ms;              /* INFLIGHT: read from the clock before it was handed over */
    uint64_t end_offset;           /* INFLIGHT: where it ends in the bytes of this connection */
    uint32_t attempt_ms;           /* no answer for so long ends the connection, then half more; 0: no such limit */
    unsigned retries;              /* for the backoff of -BUSY and -UNCERTAIN */
    struct redisReply *refusal;    /* what lockd said last instead of doing it */
    enum lockclient_result result; /* FINISHED */
    lockclient_reply_fn *fn;
    void *arg;
    struct event timer;
};
TAILQ_HEAD(command_queue, command);

/* ---- one connection ---- */
enum link_kind { LINK_MAIN, LINK_KEEPER, LINK_WAITER };
enum link_state { LINK_IDLE, LINK_BACKOFF, LINK_RESOLVING, LINK_CONNECTING, LINK_UP };
struct lookup;
struct link {
    uint32_t magic;
    struct lockclient *client;
    enum link_kind kind;
    enum link_state state;
    size_t address_index;
    uint32_t connect_timeout_ms, backoff_ms_max;
    unsigned failures;       /* since the last useful reply */
    bool paused;             /* UP, but the node refused: nothing is sent until the timer */
    struct bufferevent *bev; /* CONNECTING, UP */
    struct reader reader;    /* as bev */
    struct lookup *lookup;   /* RESOLVING */
    uint64_t connection;     /* counts connections, so that a loop notices that its own has gone */
    uint64_t handed_bytes;   /* given to bev since it is UP */
    uint64_t heard_ms;       /* when something was read, or the connection was made */
    struct command_queue queue, inflight, delayed;
    size_t command_count; /* in the three queues, dead ones included */
    struct event work;    /* something was queued */
    struct event timer;   /* backoff, connect timeout, pause */
    struct event silence; /* the oldest command is dead */
};
struct link *link_new(struct lockclient *c, enum link_kind kind);
/* Its commands must have been taken away. */
void link_free(struct link *l);
/* Take a command that is in no queue. */
void link_queue(struct link *l, struct command *cmd);
/* Take a command out of its queue, whatever queue that is. */
void link_unqueue(struct command *cmd);
/* Give the connection up and go to the next address; commands that may not be repeated end as UNCERTAIN. */
void link_fail(struct link *l);
/* End the connection for good: every command that was not dead is finished. */
void link_close(struct link *l);
/* Called when a command of it died: is anybody still there? */
void link_check_silence(struct link *l);
/* Nothing would be lost by a reconnect: all that is in flight may be repeated, or is dead. */
bool link_is_free_to_move(const struct link *l);

/* ---- the client ---- */
TAILQ_HEAD(lease_list, lockclient_lease);
struct lockclient {
    uint32_t magic;
    struct event_base *base;
    bool base_is_own, freeing, stopped;
    unsigned callback_depth;
    struct evdns_base *dns; /* made when a name is looked up first */
    struct address_list addresses;
    char *name;
    uint32_t connect_timeout_ms, command_timeout_ms, clock_drift_ppm, pending_max;
    uint64_t random;         /* state of the spread of backoffs */
    uint64_t command_number; /* of the last command */
    size_t pending;          /* commands that have not ended, dead slots included */
    size_t waiting_bytes;
    struct link *main, *keeper, *waiters[WAITER_LINKS_MAX];
    struct command_queue finished;
    struct event finish; /* active while `finished` is not empty */
    /* The command whose callback runs, for our own callbacks; its reply, which they may take by clearing it. */
    const struct command *running;
    struct redisReply *running_reply;

    struct lease_list leases;
    unsigned lease_scan_depth;
    bool lease_timer_added;
    bool lease_sweep_due; /* a lease was freed, or the wake time is not known */
    int lease_timer_fd;   /* CLOCK_BOOTTIME, so that it fires at once after a suspend */
    struct event lease_timer;
    uint64_t lease_wake_ms; /* nothing is due before; UINT64_MAX: nothing at all */
};
/* calloc that ends the process when there is no memory. */
void *get_memory(size_t count, size_t bytes);
char *copy_text(const char *text);
/* 0..limit, to spread what many clients do at the same time. */
uint32_t client_random(struct lockclient *c, uint32_t limit);
/* Counted as pending, in no queue. */
struct command *command_new(struct lockclient *c);
/* The ends of a command, which is in no queue.  `reply` becomes the command's (NULL is fine).  Later: from the loop.
 * Now: from a reader. */
void command_finish_later(struct command *cmd, enum lockclient_result result, struct redisReply *reply);
void command_finish_now(struct command *cmd, enum lockclient_result result, struct redisReply *reply);
void command_free(struct command *cmd);
/* Its time is over. */
void command_expire(struct command *cmd);
void command_arm(struct command *cmd, uint64_t now_ms);
/* lockclient_send with a link and attempt_ms of choice. */
void client_send_over(struct lockclient *c, struct link *l, unsigned flags, uint32_t timeout_ms, uint32_t attempt_ms,
                      int argc, const char *const *argv, const size_t *argv_bytes, lockclient_reply_fn *fn, void *arg);
/* The keeper heard from its node: whoever is silent is worse than that. */
void client_leave_silent_nodes(struct lockclient *c);

/* ---- leases ---- */
/* Before anything else is believed: report what ran out (C6) and renew what is due. */
void leases_check_clock(struct lockclient *c);
void leases_timer_fired(evutil_socket_t fd, short what, void *arg);
/* The client goes: no event is reported any more. */
void leases_abandon(struct lockclient *c);
