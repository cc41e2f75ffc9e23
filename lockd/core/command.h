/* command.h - the one list of commands: commands.def says name, arity, class, keys and help; nothing else does.
 *
 * Place in the flow:  argv -> [command] -> router (by class) -> handler
 *
 * A command is checked once, where the client speaks to us; what is forwarded or logged has passed.  Pure. */
#pragma once
#include "common/buf.h"
#include "common/must.h"

/* Who runs a command, and when. */
enum command_class {
    COMMAND_LOCAL, /* the node the client speaks to, at once: PING, HELLO, INFO, NODE.STATUS */
    COMMAND_OWN,   /* the node the client speaks to, after all earlier commands of the client: WAITREV, SNAPSHOT.SAVE */
    COMMAND_READ,  /* the leader under its lease, from applied state: GET */
    COMMAND_LEADER,  /* the leader, from its own memory, outside the log: LEASE.KEEPALIVE, ROUTE.NEXT, LEASE.INFO */
    COMMAND_WRITE,   /* through the log: SET */
    COMMAND_SCRIPT,  /* runs on the leader, its effects go through the log: EVAL, EVALSHA */
    COMMAND_INTERNAL /* only inside a batch; the name starts with '%' */
};

enum command_id {
#define COMMAND(id, name, arity, class, first_key, last_key, step, since, args, summary) CMD_##id,
#include "lockd/core/commands.def"
#undef COMMAND
    CMD_COUNT
};

struct command {
    enum command_id id;
    const char *name; /* capitals */
    int arity;        /* as Redis: with the name; negative: at least */
    enum command_class class;
    int first_key, last_key, step; /* positions in argv; 0 0 0: no keys; last_key -1: to the end */
    const char *since, *args, *summary;
};

/* By name in any case; NULL if there is none.  Internal ones only when `internal`. */
const struct command *command_find(struct slice name, bool internal);
const struct command *command_at(enum command_id id);
/* The command when argv may be run; else NULL, and `error` holds Redis' own reply (unknown command, wrong
 * number of arguments, a key that is too long ...).  Options and numbers are the handlers' business.  argc >= 1. */
const struct command *command_check(uint32_t argc, const struct slice *argv, uint32_t key_bytes_max, struct buf *error);
/* The command that a ONCE carries, *argc and *argv moved to where it begins; NULL if it carries none.  Any other
 * command is its own. */
const struct command *command_inner(const struct command *c, uint32_t *argc, const struct slice **argv);
/* Calls fn for each key of a command that has passed command_check.  Scripts: their KEYS; none when numkeys is no
 * number or says more than there are. */
void command_keys(const struct command *c, uint32_t argc, const struct slice *argv,
                  void (*fn)(void *context, struct slice key), void *context);
/* Append the reply of COMMAND [COUNT|DOCS|GETKEYS|HELP|INFO|LIST], shaped as Redis 7 shapes it for RESP2, so that the
 * completion and hints of redis-cli work.  argv[0] is COMMAND itself. */
void command_reply(uint32_t argc, const struct slice *argv, struct buf *reply);
