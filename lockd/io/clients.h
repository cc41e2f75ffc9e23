/* clients.h - the connections of clients: bytes in, commands out; replies in, bytes out.
 *
 * Place in the flow:  socket -> [clients] -> argv -> node -> replica -> reply bytes -> [clients] -> socket
 *
 * Raw libevent events: one read(2) per connection and pass of the loop, one write(2) per connection and turn.  Sink
 * functions only queue; nothing here calls the replica.
 *
 * What always holds:
 *   C1  A connection that has nothing half-read and nothing unsent holds no buffer.
 *   C2  Reading from a client pauses while it may queue no more commands, or while more than CLIENTS_PAUSE_BYTES of
 *       replies wait for it, or while what it has asked, at the size of its latest replies, would come to more than
 *       CLIENTS_WINDOW_BYTES; beyond CLIENTS_BACKLOG_BYTES it is closed.  All connections together hold at most
 *       CLIENTS_BYTES_MAX; who would need more is closed.
 *   C3  What was asked is answered before we close: after an end of file, QUIT, and what the protocol forbids (whose
 *       error comes last); but for no longer than CLIENTS_LAST_MS in which nothing moves.
 *   C4  A connection is unlinked at once and freed at the end of a turn: no callback meets freed memory.  Ids are never
 *       used twice. */
#pragma once
#include <event2/event.h>
#include "lockd/core/resp.h"

enum {
    CLIENTS_READ_BYTES = 64 * 1024,
    CLIENTS_PAUSE_BYTES = 1024 * 1024,
    CLIENTS_WINDOW_BYTES = 32 * 1024 * 1024,
    CLIENTS_BACKLOG_BYTES = 64 * 1024 * 1024,
    CLIENTS_BYTES_MAX = 1024 * 1024 * 1024,
    CLIENTS_LAST_MS = 1000
};

struct clients_sink {
    void *context;
    /* May this client queue another command? */
    bool (*room)(void *context, uint64_t client);
    /* One command; argv is borrowed.  Exactly one clients_reply answers it. */
    void (*command)(void *context, uint64_t client, uint32_t argc, const struct slice *argv);
    /* The connection is gone; what it asked need not be answered. */
    void (*gone)(void *context, uint64_t client);
    /* There is work: call clients_flush before the loop sleeps again.  The other three are never called inside
     * clients_reply and clients_hang_up; this one may be. */
    void (*work)(void *context);
};
struct clients_config {
    struct event_base *base;
    int listener; /* listening, non-blocking; owned from here on */
    uint32_t clients_max;
    struct resp_limits limits;
    struct clients_sink sink;
};

struct clients;
struct clients *clients_new(const struct clients_config *config);
/* Closes every connection without a word; NULL is fine. */
void clients_free(struct clients *cs);
/* The reply to one command.  `leased`: see replica.h.  A client that is gone: ignored. */
void clients_reply(struct clients *cs, uint64_t client, struct slice bytes, bool leased);
/* Close once what was replied so far is out; later commands of it get no answer. */
void clients_hang_up(struct clients *cs, uint64_t client);
/* True if a leased reply waits to be flushed. */
bool clients_has_leased(const struct clients *cs);
/* The end of a turn: write what is new, once per connection; if !reads_hold close those with leased replies instead;
 * read on where there is room again; free what was closed. */
void clients_flush(struct clients *cs, bool reads_hold);
/* Accept nobody any more, read nothing any more, close each connection when it is answered. */
void clients_stop(struct clients *cs);
/* Connections open. */
uint32_t clients_count(const struct clients *cs);
