/* lockctl.h - what the parts of the program lockctl share: options, exit codes, one command each. */
#pragma once
#include "client/lockclient.h"
#include <stdbool.h>
#include <stdint.h>

/* Documented in lockctl.1; scripts depend on them. */
enum exit_code {
    EXIT_OK = 0,
    EXIT_REFUSED = 1,   /* refused, absent, held by another */
    EXIT_USAGE = 2,     /* the command line is wrong */
    EXIT_NOT_RUN = 3,   /* no node could be reached, or none could do it: it did not run */
    EXIT_UNCERTAIN = 4, /* it may have run */
    EXIT_LOST = 5       /* the lock was lost while the command ran */
};

struct lockctl {
    const char *server;  /* as given: host:port,... */
    uint32_t timeout_ms; /* of one command; 0: the default of the library */
};

/* One command; argv[0] is its name.  Returns the exit code of the program. */
typedef int lockctl_fn(const struct lockctl *ctl, int argc, char **argv);
lockctl_fn lockctl_get, lockctl_set, lockctl_cas, lockctl_wor, lockctl_raw, lockctl_route, lockctl_status, lockctl_lock,
    lockctl_elect;

/* "lockctl: ..." on standard error. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, with a pointer to --help; returns EXIT_USAGE. */
int usage_error(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Print the help of one command; returns EXIT_OK. */
int show_help(const char *command);
/* A number of milliseconds from least to most; complains, naming `option`, and returns false otherwise. */
bool parse_ms(const char *command, const char *option, const char *text, uint64_t least, uint64_t most,
              uint64_t *ret_ms);

struct event_base;
/* A client of the servers in ctl, or NULL after a complaint.  base NULL: it makes its own. */
struct lockclient *open_client(const struct lockctl *ctl, struct event_base *base);
/* One command.  EXIT_OK: *ret_reply is a reply that is no error, to be freed with freeReplyObject.  Else it has been
 * complained about. */
int ask_lockd(struct lockclient *c, const struct lockctl *ctl, unsigned flags, int argc, const char *const *argv,
              struct redisReply **ret_reply);
/* Say what the result of a command means when it is no reply of content; for ask_lockd and its like. */
int explain(const struct lockctl *ctl, enum lockclient_result result, const struct redisReply *reply);
/* The reply has a shape that lockd never gives: complains, returns EXIT_REFUSED. */
int odd_reply(const char *command);

/* Bytes as they are, and a newline. */
void print_value(const struct redisReply *value);
