/* peers.h - the links to the other nodes.
 *
 * Place in the flow:  replica -> frames -> [peers] -> sockets;  sockets -> [peers] -> frames -> replica
 *
 * Each node dials every other and sends only on the link it dialled; links it accepted are for receiving only.  So a
 * link has one direction, and "my link is up" is one fact.
 *
 * What always holds:
 *   V1  The first frame on a dialled link is a HELLO with both numbers and our boot; an accepted link must begin with
 * one that names us, within PEERS_HELLO_MS.  Before it a link may send PEERS_HELLO_BYTES, not more. V2  One accepted
 * link per peer and boot: a newer one replaces the older.  Links of another boot stay as long as they live, up to
 * PEERS_BOOTS_MAX of one peer: whether it is an earlier life or a second process with the same number, only identity.h
 * can tell. V3  A link whose queue would exceed PEERS_QUEUE_BYTES is dropped and made again: frames are lost only with
 * their link, and the replica is told of both ends of its life. V4  A frame that cannot be trusted ends its link. V5
 * What was sent and is not acknowledged within PEERS_SILENT_MS ends the link. V6  Bytes from the network are hostile.
 * Of a peer that is not admitted no frame above PEERS_STRANGER_BYTES is kept (it is read past: it would be of no use);
 * of one that is, one frame.  When links run out, the oldest that nobody believes goes.  Whatever is refused is counted
 * by reason (link_refusal.h) and logged with address and reason, at most once per reason and host in PEERS_REFUSAL_MS
 * and PEERS_REFUSALS_MAX times in all; the next line says how many were left out. */
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
    PEERS_BOOTS_MAX = 4,
    PEERS_STRANGER_BYTES = 64 * 1024,
    PEERS_REFUSAL_MS = 10000,
    PEERS_REFUSALS_MAX = 64,
    PEERS_QUEUE_BYTES = 64 * 1024 * 1024
};

/* Never called inside peers_send. */
struct peers_sink {
    void *context;
    void (*link_up)(void *context, uint16_t peer);
    void (*link_lost)(void *context, uint16_t peer);
    /* What the receiver makes of it; anything but LINK_TAKEN is counted and logged, and the link stays. */
    enum link_refusal (*frame)(void *context, uint16_t peer, uint64_t boot, const struct frame *frame);
    /* Has the peer of that boot shown who it is? */
    bool (*admits)(void *context, uint16_t peer, uint64_t boot);
    /* There is work: call peers_flush before the loop sleeps again.  This one may be called inside peers_send. */
    void (*work)(void *context);
};
struct peers_config {
    struct event_base *base;
    uint16_t node; /* our seat */
    uint64_t boot;
    uint64_t *refusals;  /* counted in here by reason: LINK_REFUSAL_END of them; borrowed */
    uint32_t refusal_ms; /* 0: PEERS_REFUSAL_MS */
    int listener;        /* listening, non-blocking; owned from here on */
    struct peers_sink sink;
};

struct peers;
/* Nobody is dialled before peers_set. */
struct peers *peers_new(const struct peers_config *config);
/* Where that seat is to be found from now on (copied), NULL: nobody sits there.  The same as before changes nothing; a
 * link to another address is taken down in the next turn of the loop. */
void peers_set(struct peers *ps, uint16_t seat, const struct net_address *address);
/* NULL is fine. */
void peers_free(struct peers *ps);
/* Queue one encoded frame on the link we dialled; dropped if it is down. */
void peers_send(struct peers *ps, uint16_t peer, struct slice frame);
/* Bytes queued on that link. */
size_t peers_backlog(const struct peers *ps, uint16_t peer);
/* The end of a turn: one write per link with something new. */
void peers_flush(struct peers *ps);
