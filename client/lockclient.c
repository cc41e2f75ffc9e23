/* lockclient.c - the client: its life, the limits on what waits, and the end of every command (C2).
 *
 * Where the callbacks are called: from the reader for a reply (command_finish_now), from the event `finish` for
 * everything else, never from inside a function of the caller. */
#include "client/lockclient_private.h"
#include "common/io/clock.h"
#include <event2/dns.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { CLIENT_MAGIC = 0x6b6c6f68, COMMAND_MAGIC = 0x646d6d63 };

static _Thread_local char error_text[256];

/* ---- small things ---- */

void *get_memory(size_t count, size_t bytes) {
    void *memory = calloc(count, bytes);
    must(memory != NULL);
    return memory;
}

char *copy_text(const char *text) {
    char *copy = strdup(text);
    must(copy != NULL);
    return copy;
}

uint32_t client_random(struct lockclient *c, uint32_t limit) {
    c->random = c->random * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((c->random >> 33) % ((uint64_t)limit + 1));
}

static struct lockclient *client_of(void *arg) {
    struct lockclient *c = arg;
    must(c->magic == CLIENT_MAGIC);
    return c;
}

const char *lockclient_error_text(void) {
    return error_text;
}

/* ---- commands ---- */

static void on_command_timer(evutil_socket_t fd, short what, void *arg);

struct command *command_new(struct lockclient *c) {
    struct command *cmd = get_memory(1, sizeof *cmd);
    cmd->magic = COMMAND_MAGIC;
    must(evtimer_assign(&cmd->timer, c->base, on_command_timer, cmd) == 0);
    cmd->link = c->main;
    c->pending++;
    return cmd;
}

static void drop_bytes(struct command *cmd) {
    cmd->link->client->waiting_bytes -= cmd->bytes != NULL ? cmd->byte_count : 0;
    free(cmd->bytes);
    cmd->bytes = NULL;
}

void command_free(struct command *cmd) {
    must(cmd->magic == COMMAND_MAGIC);
    drop_bytes(cmd);
    cmd->link->client->pending--;
    event_del(&cmd->timer);
    if (cmd->refusal != NULL) freeReplyObject(cmd->refusal);
    cmd->magic = 0;
    free(cmd);
}

void command_arm(struct command *cmd, uint64_t now_ms) {
    uint64_t at_ms = cmd->deadline_ms;
    if (cmd->state == COMMAND_DELAYED && cmd->wake_ms < at_ms) at_ms = cmd->wake_ms;
    if (cmd->state == COMMAND_INFLIGHT && cmd->attempt_ms > 0 && cmd->sent_ms + cmd->attempt_ms < at_ms) {
        at_ms = cmd->sent_ms + cmd->attempt_ms;
    }
    const uint64_t after_ms = at_ms > now_ms ? at_ms - now_ms : 0;
    const struct timeval after = {.tv_sec = (time_t)(after_ms / 1000),
                                  .tv_usec = (suseconds_t)(after_ms % 1000 * 1000)};
    must(evtimer_add(&cmd->timer, &after) == 0);
}

static void call_back(struct command *cmd, enum lockclient_result result, struct redisReply *reply) {
    struct lockclient *c = cmd->link->client;
    if (cmd->fn != NULL) {
        c->callback_depth++;
        c->running = cmd;
        c->running_reply = reply;
        cmd->fn(c, result, reply, cmd->arg);
        reply = c->running_reply;
        c->running = NULL;
        c->running_reply = NULL;
        c->callback_depth--;
    }
    if (reply != NULL) freeReplyObject(reply);
}

void command_finish_now(struct command *cmd, enum lockclient_result result, struct redisReply *reply) {
    call_back(cmd, result, reply);
    command_free(cmd);
}

void command_finish_later(struct command *cmd, enum lockclient_result result, struct redisReply *reply) {
    struct lockclient *c = cmd->link->client;
    if (reply != NULL) {
        if (cmd->refusal != NULL) freeReplyObject(cmd->refusal);
        cmd->refusal = reply;
    }
    event_del(&cmd->timer);
    drop_bytes(cmd);
    cmd->state = COMMAND_FINISHED;
    cmd->result = result;
    TAILQ_INSERT_TAIL(&c->finished, cmd, entry);
    event_active(&c->finish, EV_TIMEOUT, 0);
}

/* Call what is due now; what these callbacks finish is due in the next turn. */
static void finish_due(struct lockclient *c) {
    struct command_queue due = TAILQ_HEAD_INITIALIZER(due);
    TAILQ_CONCAT(&due, &c->finished, entry);
    struct command *cmd;
    while ((cmd = TAILQ_FIRST(&due)) != NULL) {
        TAILQ_REMOVE(&due, cmd, entry);
        struct redisReply *reply = cmd->refusal;
        cmd->refusal = NULL;
        call_back(cmd, cmd->result, reply);
        command_free(cmd);
    }
}

static void on_finish(evutil_socket_t fd, short what, void *arg) {
    struct lockclient *c = client_of(arg);
    (void)fd, (void)what;
    leases_check_clock(c);
    finish_due(c);
}

/* A command in flight leaves a dead slot behind, so that its late reply is not taken for the next one's (C5). */
static void leave_dead_slot(struct command *cmd) {
    struct link *l = cmd->link;
    struct command *slot = command_new(l->client);
    slot->link = l;
    slot->state = COMMAND_INFLIGHT;
    slot->dead = true;
    slot->sent_ms = cmd->sent_ms;
    slot->end_offset = cmd->end_offset;
    slot->byte_count = cmd->byte_count;
    TAILQ_INSERT_AFTER(&l->inflight, cmd, slot, entry);
    l->command_count++;
}

void command_expire(struct command *cmd) {
    struct link *l = cmd->link;
    const bool was_sent = cmd->state == COMMAND_INFLIGHT;
    if (was_sent) leave_dead_slot(cmd);
    link_unqueue(cmd);
    command_finish_later(cmd, was_sent || cmd->maybe_ran ? LOCKCLIENT_UNCERTAIN : LOCKCLIENT_NOT_RUN, NULL);
    if (was_sent) link_check_silence(l);
}

static void on_command_timer(evutil_socket_t fd, short what, void *arg) {
    struct command *cmd = arg;
    must(cmd->magic == COMMAND_MAGIC);
    (void)fd, (void)what;
    struct link *l = cmd->link;
    const uint64_t now_ms = clock_now_ms();
    if (now_ms >= cmd->deadline_ms) {
        command_expire(cmd);
    } else if (cmd->state == COMMAND_DELAYED && now_ms >= cmd->wake_ms) {
        link_unqueue(cmd);
        link_queue(l, cmd);
        command_arm(cmd, now_ms);
    } else if (cmd->state == COMMAND_INFLIGHT && cmd->attempt_ms > 0 && now_ms >= cmd->sent_ms + cmd->attempt_ms) {
        l->client->addresses.items[l->address_index].silent = true;
        cmd->attempt_ms += cmd->attempt_ms / 2;
        link_fail(l); /* queues it again */
    } else {
        command_arm(cmd, now_ms);
    }
}

/* False: longer than may wait at all. */
static bool measure(int argc, const char *const *argv, const size_t *argv_bytes, size_t *ret_bytes) {
    size_t total = 16;
    for (int i = 0; i < argc; i++) {
        const size_t bytes = argv_bytes != NULL ? argv_bytes[i] : strlen(argv[i]);
        if (bytes > WAITING_BYTES_MAX || total > WAITING_BYTES_MAX) return false;
        total += bytes + 16;
    }
    *ret_bytes = total;
    return true;
}

void client_send_over(struct lockclient *c, struct link *l, unsigned flags, uint32_t timeout_ms, uint32_t attempt_ms,
                      int argc, const char *const *argv, const size_t *argv_bytes, lockclient_reply_fn *fn, void *arg) {
    must(argc > 0);
    if (c->freeing) return;
    size_t most;
    const bool fits = measure(argc, argv, argv_bytes, &most) && c->pending < c->pending_max &&
                      most <= WAITING_BYTES_MAX - c->waiting_bytes;
    struct command *cmd = command_new(c);
    cmd->link = l;
    cmd->fn = fn;
    cmd->arg = arg;
    if (!fits) {
        command_finish_later(cmd, LOCKCLIENT_NOT_RUN, NULL);
        return;
    }
    const int count = redisFormatCommandArgv(&cmd->bytes, argc, (const char **)(uintptr_t)argv, argv_bytes);
    must(count > 0);
    cmd->byte_count = (size_t)count;
    c->waiting_bytes += cmd->byte_count;
    cmd->number = ++c->command_number;
    cmd->repeatable = (flags & LOCKCLIENT_REPEATABLE) != 0;
    cmd->attempt_ms = attempt_ms;
    const uint64_t now_ms = clock_now_ms();
    cmd->deadline_ms = now_ms + (timeout_ms > 0 ? timeout_ms : c->command_timeout_ms);
    link_queue(l, cmd);
    command_arm(cmd, now_ms);
}

/* A connection for one that waits: an idle one, else a new one, else the one with the least to do. */
static struct link *waiter_link(struct lockclient *c) {
    struct link *best = NULL;
    for (int i = 0; i < WAITER_LINKS_MAX; i++) {
        if (c->waiters[i] == NULL && (best == NULL || best->command_count > 0)) {
            c->waiters[i] = link_new(c, LINK_WAITER);
            c->waiters[i]->address_index = c->main->address_index;
        }
        if (c->waiters[i] == NULL) break;
        if (best == NULL || c->waiters[i]->command_count < best->command_count) best = c->waiters[i];
    }
    return best;
}

void lockclient_send(struct lockclient *c, unsigned flags, uint32_t timeout_ms, int argc, const char *const *argv,
                     const size_t *argv_bytes, lockclient_reply_fn *fn, void *arg) {
    client_send_over(c, (flags & LOCKCLIENT_WAITS) != 0 ? waiter_link(c) : c->main, flags, timeout_ms, 0, argc, argv,
                     argv_bytes, fn, arg);
}

void lockclient_sendv(struct lockclient *c, unsigned flags, uint32_t timeout_ms, lockclient_reply_fn *fn, void *arg,
                      const char *word, ...) {
    int argc = 1;
    va_list words;
    va_start(words, word);
    while (va_arg(words, const char *) != NULL) argc++;
    va_end(words);
    const char **argv = get_memory((size_t)argc, sizeof *argv);
    argv[0] = word;
    va_start(words, word);
    for (int i = 1; i < argc; i++) argv[i] = va_arg(words, const char *);
    va_end(words);
    lockclient_send(c, flags, timeout_ms, argc, argv, NULL, fn, arg);
    free(argv);
}

/* ---- one command at a time ---- */

struct call {
    bool done;
    enum lockclient_result result;
    struct redisReply *reply;
};

static void on_call_done(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply,
                         void *arg) {
    struct call *call = arg;
    (void)reply;
    call->done = true;
    call->result = result;
    call->reply = c->running_reply;
    c->running_reply = NULL;
}

static struct command *find_call(struct link *l, const struct call *call) {
    struct command_queue *queues[] = {&l->queue, &l->inflight, &l->delayed};
    for (size_t i = 0; i < sizeof queues / sizeof queues[0]; i++) {
        struct command *cmd;
        TAILQ_FOREACH(cmd, queues[i], entry) {
            if (cmd->fn == on_call_done && cmd->arg == call) return cmd;
        }
    }
    return NULL;
}

enum lockclient_result lockclient_call(struct lockclient *c, unsigned flags, uint32_t timeout_ms, int argc,
                                       const char *const *argv, const size_t *argv_bytes,
                                       struct redisReply **ret_reply) {
    must(c->callback_depth == 0 && !c->freeing);
    struct call call = {.done = false};
    struct link *l = (flags & LOCKCLIENT_WAITS) != 0 ? waiter_link(c) : c->main;
    client_send_over(c, l, flags, timeout_ms, 0, argc, argv, argv_bytes, on_call_done, &call);
    c->stopped = false;
    while (!call.done) {
        if (c->stopped) { /* a callback wants the loop to end: so does this call, as if its time were over */
            struct command *cmd = find_call(l, &call);
            if (cmd != NULL) command_expire(cmd);
            finish_due(c);
            continue;
        }
        must(event_base_loop(c->base, EVLOOP_ONCE) >= 0);
    }
    if (ret_reply != NULL)
        *ret_reply = call.reply;
    else if (call.reply != NULL)
        freeReplyObject(call.reply);
    return call.result;
}

/* ---- the client's life ---- */

/* libevent on a precise clock: the leases of the caller depend on when it wakes. */
static struct event_base *new_base(void) {
    struct event_config *config = event_config_new();
    if (config == NULL) return NULL;
    event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
    struct event_base *base = event_base_new_with_config(config);
    event_config_free(config);
    return base;
}

static void ignore_sigpipe(void) {
    struct sigaction action;
    if (sigaction(SIGPIPE, NULL, &action) == 0 && action.sa_handler == SIG_DFL) {
        action.sa_handler = SIG_IGN;
        (void)sigaction(SIGPIPE, &action, NULL);
    }
}

static int no_memory(const char *what) {
    snprintf(error_text, sizeof error_text, "no memory or file descriptor for %s", what);
    return LOCKCLIENT_ERR_MEMORY;
}

static uint32_t or_default(uint32_t value, uint32_t other) {
    return value > 0 ? value : other;
}

int lockclient_new(const struct lockclient_config *config, struct lockclient **ret_client) {
    struct lockclient *c = calloc(1, sizeof *c);
    if (c == NULL) return no_memory("the client");
    const char *addresses = config->addresses != NULL ? config->addresses : "127.0.0.1:7400";
    const int result = address_list_parse(&c->addresses, addresses, error_text, sizeof error_text);
    if (result != 0) {
        free(c);
        return result;
    }
    c->lease_timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    c->base = config->base != NULL ? config->base : new_base();
    c->base_is_own = config->base == NULL;
    if (c->base == NULL || c->lease_timer_fd < 0) {
        if (c->lease_timer_fd >= 0) close(c->lease_timer_fd);
        if (c->base != NULL && c->base_is_own) event_base_free(c->base);
        address_list_release(&c->addresses);
        free(c);
        return no_memory("the event base and its timer");
    }
    ignore_sigpipe();
    c->magic = CLIENT_MAGIC;
    c->name = config->name != NULL ? copy_text(config->name) : NULL;
    c->connect_timeout_ms = or_default(config->connect_timeout_ms, 1000);
    c->command_timeout_ms = or_default(config->command_timeout_ms, 15000);
    c->clock_drift_ppm = or_default(config->clock_drift_ppm, 500);
    c->pending_max = or_default(config->pending_max, 65536);
    c->random = clock_random_u64();
    c->lease_wake_ms = UINT64_MAX;
    TAILQ_INIT(&c->finished);
    TAILQ_INIT(&c->leases);
    must(event_assign(&c->finish, c->base, -1, 0, on_finish, c) == 0);
    must(event_assign(&c->lease_timer, c->base, c->lease_timer_fd, EV_READ | EV_PERSIST, leases_timer_fired, c) == 0);
    c->main = link_new(c, LINK_MAIN);
    c->keeper = link_new(c, LINK_KEEPER);
    *ret_client = c;
    return 0;
}

void lockclient_free(struct lockclient *c) {
    if (c == NULL) return;
    must(client_of(c)->callback_depth == 0 && c->lease_scan_depth == 0);
    c->freeing = true;
    link_close(c->main);
    link_close(c->keeper);
    for (int i = 0; i < WAITER_LINKS_MAX && c->waiters[i] != NULL; i++) link_close(c->waiters[i]);
    finish_due(c);
    leases_abandon(c);
    must(TAILQ_EMPTY(&c->finished) && c->pending == 0 && c->waiting_bytes == 0);
    link_free(c->main);
    link_free(c->keeper);
    for (int i = 0; i < WAITER_LINKS_MAX; i++) link_free(c->waiters[i]);
    event_del(&c->finish);
    event_del(&c->lease_timer);
    close(c->lease_timer_fd);
    if (c->dns != NULL) evdns_base_free(c->dns, 0);
    if (c->base_is_own) event_base_free(c->base);
    address_list_release(&c->addresses);
    free(c->name);
    c->magic = 0;
    free(c);
}

struct event_base *lockclient_base(struct lockclient *c) {
    return c->base;
}

void lockclient_stop(struct lockclient *c) {
    c->stopped = true;
    must(event_base_loopexit(c->base, NULL) == 0);
}

const char *lockclient_peer(const struct lockclient *c) {
    const struct link *links[2 + WAITER_LINKS_MAX] = {c->main, c->keeper};
    memcpy(links + 2, c->waiters, sizeof c->waiters);
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++) {
        if (links[i] != NULL && links[i]->state == LINK_UP) return c->addresses.items[links[i]->address_index].text;
    }
    return NULL;
}

/* The keeper was answered: the cluster works.  A node that left one of its renewals unanswered, and that still has
 * commands of ours, is worse than the one that answered; what may be repeated is asked again elsewhere. */
void client_leave_silent_nodes(struct lockclient *c) {
    struct link *links[1 + WAITER_LINKS_MAX] = {c->main};
    memcpy(links + 1, c->waiters, sizeof c->waiters);
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++) {
        struct link *l = links[i];
        if (l != NULL && l->state == LINK_UP && l->address_index != c->keeper->address_index &&
            c->addresses.items[l->address_index].silent && !TAILQ_EMPTY(&l->inflight) && link_is_free_to_move(l)) {
            link_fail(l);
        }
    }
}
