/* router.h - the origin's half of "any node answers" (N): clients' commands, in order, to whoever leads, and back.
 *
 * Place in the flow:  argv of one client -> [router] -> the leader (this node or a frame) -> ... -> [router] -> reply
 * bytes
 *
 * Pure.  Knows nothing of Paxos or the keyspace; it is told which ballot serves and what was applied.
 *
 * What always holds:
 *   N1  Replies of one client leave in the order of its commands, each exactly once.
 *   N2  A command runs after all earlier commands of its client: reads run beside reads and writes beside writes; a
 *       change between the two, a script and a wait let the earlier ones finish first.
 *   N3  A write has one sequence number for ever.  It is handed out again only under the ballot it was handed out under
 *       (the leader of a ballot takes a sequence once), or after the first entry of a higher ballot was applied here
 *       without it: then it did not run.
 *   N4  After timeout_ms a command is answered: -CLUSTERDOWN if it is not out under any ballot, else -UNCERTAIN.  Reads
 *       change nothing, so theirs is always -CLUSTERDOWN.  Behind a wait that runs the time of the commands after it
 *       stands still.
 *   N5  Limits: pending_max commands and pending_bytes_max per client, bytes_max for all; more is refused with -BUSY.
 *   N6  What a snapshot jumped over was not seen: a write that was out when one was installed is answered -UNCERTAIN
 * and never handed out again, unless the installed state shows that it waits. */
#pragma once
#include "lockd/core/batch.h"
#include "lockd/core/command.h"

struct router_config {
    const struct alloc *alloc;
    uint16_t node;
    uint64_t boot;
    uint32_t timeout_ms;  /* forward-timeout */
    uint32_t reattach_ms; /* a wait whose client is gone leaves its queue after this */
    uint32_t pending_max;
    size_t pending_bytes_max;
    size_t bytes_max;
};

/* One command on its way to the leader of the serving ballot, or, `own`, to this node itself. */
struct router_call {
    bool write;          /* through the log (writes and scripts); else a read or a leader's command */
    bool own;            /* this node answers it, by router_read_reply, from what it has */
    uint64_t seq, after; /* as in struct forward */
    struct ballot first; /* reads: the ballot under which it was handed out the first time */
    uint32_t argc;
    const struct slice *argv;
    const struct command *command;
};
struct router_sink {
    void *context;
    void (*call)(void *context, const struct router_call *call); /* inside router_pump and router_pump_own only */
    void (*reply)(void *context, uint64_t client, struct slice bytes, bool leased); /* inside router_flush only */
    void (*hang_up)(void *context, uint64_t client);                                /* inside router_flush only */
};

struct router;
struct router *router_new(const struct router_config *config, const struct router_sink *sink);
void router_free(struct router *rt);

/* False: let the client wait before its next command is taken. */
bool router_room(const struct router *rt, uint64_t client);
/* A command that has passed command_check and is not LOCAL; argv is copied. */
void router_add(struct router *rt, uint64_t now_ms, uint64_t client, const struct command *command, uint32_t argc,
                const struct slice *argv);
/* The same for a command that this node answers itself when its turn has come, whoever leads: a read of its own state,
 * WAITREV, SNAPSHOT.SAVE. */
void router_add_own(struct router *rt, uint64_t now_ms, uint64_t client, const struct command *command, uint32_t argc,
                    const struct slice *argv);
/* A command already answered (LOCAL, errors): its reply takes its place in the order. */
void router_answered(struct router *rt, uint64_t client, struct slice reply, bool hang_up);
void router_client_gone(struct router *rt, uint64_t now_ms, uint64_t client);

/* ---- what came back ---- */
void router_write_reply(struct router *rt, uint64_t seq, struct slice reply);
/* The leader of `ballot` says that it did not take it and never will: an error reply. */
void router_write_refused(struct router *rt, uint64_t seq, struct ballot ballot, struct slice reply);
/* It ran and waits: no timeout any more; its reply comes when the log says so. */
void router_write_queued(struct router *rt, uint64_t now_ms, uint64_t seq);
/* The first entry of that ballot was applied: what is out under a lower one and unanswered did not run. */
void router_first(struct router *rt, struct ballot ballot);
void router_read_reply(struct router *rt, uint64_t seq, struct slice reply, bool leased);
/* Reads that are out may have been lost: ask again.  Harmless at any time. */
void router_reads_again(struct router *rt);
/* Writes that are out under the serving ballot may have been lost on the way: say them again.  Harmless at any time. */
void router_writes_again(struct router *rt);

/* ---- a snapshot was installed (N6) ---- */
/* First, for each wait of this node and boot in the state that was installed: */
void router_install_wait(struct router *rt, uint64_t seq);
/* Then, once. */
void router_installed(struct router *rt, uint64_t now_ms);

/* ---- own commands that wait ---- */
/* Out and own: it waits until that revision was applied, or until then.  Answered by router_revision. */
void router_wait_revision(struct router *rt, uint64_t seq, uint64_t revision, uint64_t until_ms);
/* This node has applied `revision`: WAITREVs that it satisfies are answered with it, those whose time is over with nil.
 */
void router_revision(struct router *rt, uint64_t now_ms, uint64_t revision);

/* Hand out what this node answers itself. */
void router_pump_own(struct router *rt, uint64_t now_ms);
/* Hand out what may go: everything not yet out goes to the leader of `serving` (NULL: nobody serves). */
void router_pump(struct router *rt, uint64_t now_ms, const struct ballot *serving);
/* Timeouts, and the end of waits whose client is gone. */
void router_expire(struct router *rt, uint64_t now_ms);
/* Give finished replies to the sink. */
void router_flush(struct router *rt);
/* Something is ready to be handed out to a leader: what an own command held back. */
bool router_has_work(const struct router *rt);
uint64_t router_wake_at(const struct router *rt);
/* "This node can never get an answer" (outcast): while set, new commands get this error at once, and so does what
 * waits; writes that are out already are -UNCERTAIN, for the leader may have them.  Borrowed; NULL ends it. */
void router_refuse(struct router *rt, const char *error);
/* Clients known and commands pending, for INFO. */
uint32_t router_pending(const struct router *rt);
