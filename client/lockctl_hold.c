/* lockctl_hold.c - lockctl lock and lockctl elect: a command that runs only while a lock is held.
 *
 * Place in the flow:  lease keeper (liblockclient) --deadline--> guard --> command
 *
 *     LEASING --granted--> WAITING --token--> RUNNING --command ended--> DONE
 *        ^  \--refused--> DONE  |  \--wait over--> DONE   |
 *        +----lease lost--------+                         +--lost: ENDING --command ended--> DONE, or LEASING (elect)
 *
 *   H1  The command is started only with a deadline that lies ahead, and the guard has each new one.
 *   H2  Nothing of lockctl is needed to end the command in time: the guard does (guard.h).
 *   H3  The lock is released only when nothing of the command is left. */
#include "client/guard.h"
#include "client/lockctl.h"
#include "common/io/clock.h"
#include "common/must.h"
#include <errno.h>
#include <event2/event.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    TTL_MS_MIN = 1000,
    TTL_MS_MAX = 86400000,
    LOCK_TTL_MS = 10000,
    ELECT_TTL_MS = 5000,
    SLICE_MS = 3600000, /* one WAIT; a nil after it leaves the queue, so it is long */
    ANSWER_MS = 5000,   /* the client's timeout is so much above the WAIT */
    TRACES_MS = 500,
    RELEASE_MS = 2000, /* best effort: the lease ends by itself */
    END_MS = 3000,     /* after the loss, for the guard to report */
    RETRY_MS = 1000,   /* elect: between tries when the cluster cannot be reached */
    FORCED_MARGIN_MS_MIN = 10,
    FORCED_MARGIN_MS_MAX = 100,
};

enum state { LEASING, WAITING, RUNNING, ENDING, DONE };
static const int passed_on[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
enum { PASSED_COUNT = sizeof passed_on / sizeof passed_on[0] };

struct hold {
    struct {
        bool elect, once;
        const char *name;
        char value[256];
        uint32_t ttl_ms, grace_ms;
        uint64_t wait_ms; /* UINT64_MAX: for ever */
        char **command;
    } config;
    const struct lockctl *ctl;
    struct guard guard;
    struct lockclient *client;
    struct lockclient_lease *lease;
    enum state state;
    uint64_t wait_until_ms;
    int64_t token;
    uint64_t deadline_ms; /* the last one the guard was told */
    pid_t group;          /* of the command; 0: none */
    int signalled;        /* the last signal that asked us to end */
    bool was_told;        /* the trouble with the cluster has been complained about */
    int exit_code;
    struct event *signals[PASSED_COUNT], *reports, *timer;
};

static void take_lease(struct hold *h);

/* ---- the end ---- */

static void done(struct hold *h, int code) {
    h->state = DONE;
    h->exit_code = code;
    must(event_base_loopbreak(lockclient_base(h->client)) == 0);
}

static void arm(struct event *timer, uint64_t ms) {
    const struct timeval after = {.tv_sec = (time_t)(ms / 1000), .tv_usec = (suseconds_t)(ms % 1000 * 1000)};
    must(evtimer_add(timer, &after) == 0);
}

static void new_lease(struct hold *h) {
    lockclient_lease_free(h->lease);
    h->lease = NULL;
    take_lease(h);
}

/* The lead is gone and nothing runs: begin anew, or not. */
static void after_loss(struct hold *h) {
    if (h->config.elect && !h->config.once && h->signalled == 0) {
        complain("election '%s': campaigning again", h->config.name);
        new_lease(h);
    } else {
        done(h, EXIT_LOST);
    }
}

/* The lease ended while we waited: our place in the queue went with it. */
static void wait_anew(struct hold *h, const char *why) {
    if (clock_now_ms() < h->wait_until_ms) {
        new_lease(h);
    } else {
        complain("'%s': %s while waiting; see 'lockctl status'", h->config.name, why);
        done(h, EXIT_NOT_RUN);
    }
}

/* Only from the command: a job in the background must not take it from the shell.  SIGTTOU is ignored. */
static void take_terminal_back(const struct hold *h) {
    if (h->group > 0 && tcgetpgrp(STDIN_FILENO) == h->group) (void)tcsetpgrp(STDIN_FILENO, getpgrp());
}

static void on_ended(struct hold *h, const struct guard_report *r) {
    event_del(h->timer);
    take_terminal_back(h);
    h->group = 0;
    if (h->state == ENDING || r->forced) {
        if (h->state == RUNNING) complain("'%s': time ran out, the command was ended", h->config.name);
        after_loss(h);
    } else {
        done(h, r->value);
    }
}

static void kill_command(struct hold *h) {
    if (h->group > 0) (void)kill(-h->group, SIGKILL);
}

/* The command was stopped from the terminal: so are we, or the shell would never get the terminal back.  Nobody renews
 * meanwhile, and the guard ends the command when its time is over. */
static void stop_with_command(struct hold *h) {
    if (!isatty(STDIN_FILENO) || h->group == 0) return;
    complain("stopped; '%s' is lost in %u ms unless continued", h->config.name, (unsigned)h->config.ttl_ms);
    take_terminal_back(h);
    (void)raise(SIGSTOP);
    if (tcgetpgrp(STDIN_FILENO) == getpgrp()) (void)tcsetpgrp(STDIN_FILENO, h->group);
    guard_signal(&h->guard, SIGCONT);
}

static void read_reports(struct hold *h) {
    struct guard_report r;
    int found;
    while (h->state != DONE && (found = guard_read(&h->guard, &r)) != 0) {
        if (found < 0) { /* somebody killed the guard: nobody else would end the command */
            kill_command(h);
            complain("the guard process has died; the command was killed");
            done(h, h->group > 0 ? EXIT_LOST : EXIT_REFUSED);
            return;
        }
        switch ((enum guard_report_kind)r.kind) {
        case GUARD_STARTED: h->group = r.group; break;
        case GUARD_STOPPED: stop_with_command(h); break;
        case GUARD_ENDED: on_ended(h, &r); break;
        }
    }
}

static void on_report(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    read_reports(arg);
}

/* ---- the lock ---- */

/* The command runs and must not: the guard has ended it, or does now. */
static void lose(struct hold *h, const char *why) {
    if (h->state != RUNNING) return;
    complain("'%s' is lost: %s", h->config.name, why);
    h->state = ENDING;
    guard_stop(&h->guard);
    read_reports(h); /* what the guard did while we slept */
    if (h->state != ENDING) return;
    /* At the deadline the guard has killed it; if it is still there the guard itself was stopped. */
    if (clock_now_ms() + 5 >= h->deadline_ms) kill_command(h);
    arm(h->timer, END_MS);
}

static void got_token(struct hold *h, int64_t token) {
    const uint64_t deadline_ms = lockclient_lease_deadline_ms(h->lease);
    if (deadline_ms == 0) return; /* LOST is on its way */
    h->state = RUNNING;
    h->token = token;
    h->deadline_ms = deadline_ms;
    h->was_told = false;
    guard_run(&h->guard, token, deadline_ms);
}

struct question {
    struct hold *h;
    int64_t lease;
};

static void ask_for_lock(struct hold *h);

static void on_answer(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply, void *arg) {
    struct question *question = arg;
    struct hold *h = question->h;
    const bool current = h->state == WAITING && question->lease == lockclient_lease_id(h->lease);
    (void)c;
    free(question);
    if (!current) return;
    const bool is_error = reply != NULL && reply->type == REDIS_REPLY_ERROR;
    const bool too_late = clock_now_ms() >= h->wait_until_ms;
    if (result == LOCKCLIENT_REPLY && reply->type == REDIS_REPLY_INTEGER && reply->integer > 0) {
        got_token(h, reply->integer);
    } else if (result == LOCKCLIENT_REPLY && reply->type == REDIS_REPLY_NIL) {
        if (!too_late) {
            ask_for_lock(h);
            return;
        }
        complain("'%s' is held by another; see 'lockctl raw LOCK.INFO %s'", h->config.name, h->config.name);
        done(h, EXIT_REFUSED);
    } else if (result == LOCKCLIENT_REPLY && is_error && strncmp(reply->str, "NOLEASE", 7) == 0) {
        wait_anew(h, reply->str);
    } else if (result == LOCKCLIENT_REPLY) {
        done(h, is_error ? explain(h->ctl, result, reply) : odd_reply("LOCK.ACQUIRE"));
    } else if (too_late) {
        done(h, explain(h->ctl, LOCKCLIENT_NOT_RUN, reply)); /* the lease goes, and what may have run with it */
    } else {
        ask_for_lock(h);
    }
}

/* Repeatable: by the same lease it re-attaches to the wait, and gets the same token. */
static void ask_for_lock(struct hold *h) {
    const uint64_t now_ms = clock_now_ms();
    uint64_t wait_ms = h->wait_until_ms > now_ms ? h->wait_until_ms - now_ms : 0;
    if (wait_ms > SLICE_MS) wait_ms = SLICE_MS;
    char id[24], wait[24];
    snprintf(id, sizeof id, "%lld", (long long)lockclient_lease_id(h->lease));
    snprintf(wait, sizeof wait, "%llu", (unsigned long long)wait_ms);
    const char *words[] = {h->config.elect ? "ELECT.CAMPAIGN" : "LOCK.ACQUIRE",
                           h->config.name,
                           "LEASE",
                           id,
                           "VALUE",
                           h->config.value,
                           "WAIT",
                           wait};
    struct question *question = malloc(sizeof *question);
    must(question != NULL);
    *question = (struct question){.h = h, .lease = lockclient_lease_id(h->lease)};
    h->state = WAITING;
    lockclient_send(h->client, LOCKCLIENT_REPEATABLE | LOCKCLIENT_WAITS, (uint32_t)wait_ms + ANSWER_MS, 8, words, NULL,
                    on_answer, question);
}

/* ---- the lease ---- */

/* Not by content, but because the cluster cannot just now. */
static bool may_pass(const char *why) {
    static const char *const words[] = {"no node", "every answer", "CLUSTERDOWN", "LOADING",
                                        "BUSY",    "DISKFULL",     "UNCERTAIN"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        if (strncmp(why, words[i], strlen(words[i])) == 0) return true;
    }
    return false;
}

static void on_refused(struct hold *h, const char *why) {
    lockclient_lease_free(h->lease);
    h->lease = NULL;
    if (h->config.elect && may_pass(why)) {
        if (!h->was_told) complain("election '%s': %s; trying on", h->config.name, why);
        h->was_told = true;
        arm(h->timer, RETRY_MS);
        return;
    }
    complain("no lease from %s: %s; see 'lockctl status'", h->ctl->server, why);
    done(h, may_pass(why) ? EXIT_NOT_RUN : EXIT_REFUSED);
}

static void on_lease(struct lockclient_lease *lease, enum lockclient_lease_event event, const char *why, void *arg) {
    struct hold *h = arg;
    if (h->state == DONE) return;
    switch (event) {
    case LOCKCLIENT_LEASE_GRANTED:
        h->lease = lease;
        ask_for_lock(h);
        break;
    case LOCKCLIENT_LEASE_RENEWED:
        if (h->state != RUNNING) break;
        h->deadline_ms = lockclient_lease_deadline_ms(lease);
        if (h->deadline_ms > 0) guard_extend(&h->guard, h->deadline_ms);
        break;
    case LOCKCLIENT_LEASE_DOUBT:
        if (h->state == RUNNING) complain("'%s' is in doubt: %s", h->config.name, why);
        break;
    case LOCKCLIENT_LEASE_LOST:
        if (h->state == RUNNING)
            lose(h, why);
        else if (h->state == WAITING)
            wait_anew(h, why);
        break;
    case LOCKCLIENT_LEASE_REFUSED: on_refused(h, why); break;
    }
}

static void take_lease(struct hold *h) {
    h->state = LEASING;
    h->lease = lockclient_lease_new(h->client, h->config.ttl_ms, h->config.value, on_lease, h);
}

/* ---- events ---- */

static void on_timer(evutil_socket_t fd, short what, void *arg) {
    struct hold *h = arg;
    (void)fd, (void)what;
    if (h->state == LEASING) {
        take_lease(h);
    } else if (h->state == ENDING) {
        kill_command(h);
        complain("the command could not be ended; look for processes of group %d", (int)h->group);
        done(h, EXIT_LOST);
    }
}

static void on_signal(evutil_socket_t number, short what, void *arg) {
    struct hold *h = arg;
    (void)what;
    if (number != SIGUSR1 && number != SIGUSR2) h->signalled = number;
    if (h->state == RUNNING || h->state == ENDING)
        guard_signal(&h->guard, number);
    else if (number != SIGUSR1 && number != SIGUSR2)
        done(h, 128 + number);
}

static void add_events(struct hold *h) {
    struct event_base *base = lockclient_base(h->client);
    for (size_t i = 0; i < PASSED_COUNT; i++) {
        struct sigaction action;
        if (sigaction(passed_on[i], NULL, &action) == 0 && action.sa_handler == SIG_IGN) continue; /* nohup */
        h->signals[i] = evsignal_new(base, passed_on[i], on_signal, h);
        must(h->signals[i] != NULL && evsignal_add(h->signals[i], NULL) == 0);
    }
    h->reports = event_new(base, h->guard.report_fd, EV_READ | EV_PERSIST, on_report, h);
    h->timer = evtimer_new(base, on_timer, h);
    must(h->reports != NULL && h->timer != NULL && event_add(h->reports, NULL) == 0);
}

static void remove_events(struct hold *h) {
    for (size_t i = 0; i < PASSED_COUNT; i++) {
        if (h->signals[i] != NULL) event_free(h->signals[i]);
    }
    event_free(h->reports);
    event_free(h->timer);
}

static bool tell(struct hold *h, uint32_t timeout_ms, int argc, const char *const *argv) {
    return lockclient_call(h->client, LOCKCLIENT_REPEATABLE, timeout_ms, argc, argv, NULL, NULL) == LOCKCLIENT_REPLY;
}

/* So that the next one need not wait for our lease to end. */
static void release(struct hold *h) {
    if (h->lease == NULL || lockclient_lease_id(h->lease) == 0) return;
    char id[24], token[24];
    snprintf(id, sizeof id, "%lld", (long long)lockclient_lease_id(h->lease));
    snprintf(token, sizeof token, "%lld", (long long)h->token);
    const char *unlock[] = {"LOCK.RELEASE", h->config.name, "LEASE", id, "TOKEN", token};
    const char *resign[] = {"ELECT.RESIGN", h->config.name, "LEASE", id};
    const char *revoke[] = {"LEASE.REVOKE", id};
    if (h->exit_code == EXIT_LOST) { /* of what is lost only traces can be left */
        (void)tell(h, TRACES_MS, 2, revoke);
        return;
    }
    if (h->token > 0 && h->config.elect) (void)tell(h, RELEASE_MS, 4, resign);
    if (h->token > 0 && !h->config.elect) (void)tell(h, RELEASE_MS, 6, unlock);
    if (!tell(h, RELEASE_MS, 2, revoke)) {
        complain("'%s' could not be released now; it is free in %u ms at the latest", h->config.name,
                 (unsigned)(h->config.ttl_ms + h->config.ttl_ms / 10));
    }
}

static int hold(struct hold *h) {
    uint32_t margin_ms = h->config.ttl_ms / 50;
    if (margin_ms < FORCED_MARGIN_MS_MIN) margin_ms = FORCED_MARGIN_MS_MIN;
    if (margin_ms > FORCED_MARGIN_MS_MAX) margin_ms = FORCED_MARGIN_MS_MAX;
    const struct guard_config config = {.argv = h->config.command,
                                        .lock = h->config.name,
                                        .server = h->ctl->server,
                                        .grace_ms = h->config.grace_ms,
                                        .margin_ms = margin_ms};
    const int error = guard_start(&h->guard, &config); /* before there is anything that a fork would copy */
    if (error != 0) {
        complain("cannot start the guard process: %s", strerror(error));
        return EXIT_NOT_RUN;
    }
    h->client = open_client(h->ctl, NULL);
    if (h->client == NULL) {
        guard_end(&h->guard);
        return EXIT_USAGE;
    }
    (void)signal(SIGTTOU, SIG_IGN); /* to take the terminal back */
    add_events(h);
    h->wait_until_ms = h->config.wait_ms == UINT64_MAX ? UINT64_MAX : clock_now_ms() + h->config.wait_ms;
    take_lease(h);
    while (h->state != DONE) must(event_base_dispatch(lockclient_base(h->client)) >= 0);
    must(event_del(h->reports) == 0);
    release(h);
    remove_events(h);
    lockclient_lease_free(h->lease);
    lockclient_free(h->client);
    guard_end(&h->guard);
    return h->exit_code;
}

/* ---- the command line ---- */

/* Everything after the first `--` is the command; getopt sees only what is before. */
static bool split(int argc, char **argv, int *ret_argc, char ***ret_command) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--") == 0 && i + 1 < argc) {
            *ret_argc = i;
            *ret_command = argv + i + 1;
            return true;
        }
    }
    return false;
}

static void default_value(char *value, size_t bytes) {
    char host[128] = "localhost";
    (void)gethostname(host, sizeof host - 1);
    snprintf(value, bytes, "%s:%ld", host, (long)getpid());
}

static int parse_and_hold(const struct lockctl *ctl, struct hold *h, int argc, char **argv,
                          const struct option *options) {
    char **command, *end = NULL;
    uint64_t ttl_ms = h->config.elect ? ELECT_TTL_MS : LOCK_TTL_MS, grace_ms = UINT64_MAX;
    int option, count;
    if (!split(argc, argv, &count, &command)) return usage_error(argv[0], "-- and a COMMAND are missing");
    end = argv[count];
    argv[count] = NULL;
    while ((option = getopt_long(count, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 't':
            if (!parse_ms(argv[0], "--ttl", optarg, TTL_MS_MIN, TTL_MS_MAX, &ttl_ms)) return EXIT_USAGE;
            break;
        case 'w':
            if (!parse_ms(argv[0], "--wait", optarg, 0, INT64_MAX / 2, &h->config.wait_ms)) return EXIT_USAGE;
            break;
        case 'g':
            if (!parse_ms(argv[0], "--grace", optarg, 0, TTL_MS_MAX, &grace_ms)) return EXIT_USAGE;
            break;
        case 'v':
            if (strlen(optarg) >= sizeof h->config.value) {
                return usage_error(argv[0], "--value is longer than %zu bytes", sizeof h->config.value - 1);
            }
            snprintf(h->config.value, sizeof h->config.value, "%s", optarg);
            break;
        case 'o': h->config.once = true; break;
        default: return usage_error(argv[0], "that is no option of %s", argv[0]);
        }
    }
    argv[count] = end;
    if (count - optind != 1) return usage_error(argv[0], "one NAME is needed before the --");
    if (grace_ms == UINT64_MAX) grace_ms = ttl_ms / 10 < 500 ? ttl_ms / 10 : 500;
    if (grace_ms > ttl_ms / 2) {
        return usage_error(argv[0], "--grace '%llu' is more than half of the ttl (%llu)", (unsigned long long)grace_ms,
                           (unsigned long long)ttl_ms);
    }
    h->ctl = ctl;
    h->config.ttl_ms = (uint32_t)ttl_ms;
    h->config.grace_ms = (uint32_t)grace_ms;
    h->config.name = argv[optind];
    h->config.command = command;
    if (h->config.value[0] == '\0') default_value(h->config.value, sizeof h->config.value);
    return hold(h);
}

int lockctl_lock(const struct lockctl *ctl, int argc, char **argv) {
    static const struct option options[] = {{"ttl", required_argument, NULL, 't'},
                                            {"wait", required_argument, NULL, 'w'},
                                            {"grace", required_argument, NULL, 'g'},
                                            {0}};
    struct hold h = {.config = {.wait_ms = UINT64_MAX}};
    return parse_and_hold(ctl, &h, argc, argv, options);
}

int lockctl_elect(const struct lockctl *ctl, int argc, char **argv) {
    static const struct option options[] = {{"ttl", required_argument, NULL, 't'},
                                            {"value", required_argument, NULL, 'v'},
                                            {"grace", required_argument, NULL, 'g'},
                                            {"once", no_argument, NULL, 'o'},
                                            {0}};
    struct hold h = {.config = {.wait_ms = UINT64_MAX, .elect = true}};
    return parse_and_hold(ctl, &h, argc, argv, options);
}
