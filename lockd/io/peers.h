/* peers.h - the links to the other nodes.
 *
 * Place in the flow:  replica -> frames -> [peers] -> sockets;  sockets -> [peers] -> frames -> replica
 *
 * Each node dials every other and sends only on the link it dialled; links it accepted are for receiving only.  So a
 * link has one direction, and "my link is up" is one fact.
 *
 * What always holds:
 *   V1  The first frame on a dialled link is a HELLO with both names and our boot; an accepted link must begin with one
 *       that names us, within PEERS_HELLO_MS.  Before it a link may send PEERS_HELLO_BYTES, not more.
 *   V2  One accepted link per peer and boot: a newer one replaces the older.  Links of another boot stay as long as
 * they live: whether it is an earlier life or a second process with the same number, only identity.h can tell. V3  A
 * link whose queue would exceed PEERS_QUEUE_BYTES is dropped and made again: frames are lost only with their link, and
 * the replica is told of both ends of its life. V4  A frame that cannot be trusted ends its link. V5  What was sent and
 * is not acknowledged within PEERS_SILENT_MS ends the link. */
#pragma once
#include <event2/event.h>
#include "common/io/net.h"
#include "lockd/core/frame.h"

enum {
    PEERS_CONNECT_MS = 500,
    PEERS_BACKOFF_MS = 50, /* doubled up to PEERS_BACKOFF_MS_MAX */
    PEERS_BACKOFF_MS_MAX = 1000,
    PEERS_SOON_MS = 10, /* to the next attempt once a peer has dialled us */
    PEERS_HELLO_MS = 2000,
    PEERS_HELLO_BYTES = 256,
    PEERS_SILENT_MS = 2000,
    PEERS_ACCEPTED_MAX = 64,
    PEERS_QUEUE_BYTES = 64 * 1024 * 1024
};

/* Never called inside peers_send. */
struct peers_sink {
    void *context;
    void (*link_up)(void *context, uint16_t peer);
    void (*link_lost)(void *context, uint16_t peer);
    void (*frame)(void *context, uint16_t peer, uint64_t boot, const struct frame *frame);
    /* There is work: call peers_flush before the loop sleeps again.  This one may be called inside peers_send. */
    void (*work)(void *context);
};
struct peers_config {
    struct event_base *base;
    uint16_t node, node_count;
    const struct net_address *nodes; /* node_count of them; borrowed */
    uint64_t boot;
    int listener; /* listening, non-blocking; owned from here on */
    struct peers_sink sink;
};

struct peers;
/* Starts to dial at once. */
struct peers *peers_new(const struct peers_config *config);
/* NULL is fine. */
void peers_free(struct peers *ps);
/* Queue one encoded frame on the link we dialled; dropped if it is down. */
void peers_send(struct peers *ps, uint16_t peer, struct slice frame);
/* Bytes queued on that link. */
size_t peers_backlog(const struct peers *ps, uint16_t peer);
/* The end of a turn: one write per link with something new. */
void peers_flush(struct peers *ps);
