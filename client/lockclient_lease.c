/* lockclient_lease.c - leases kept alive, by the holder's own conservative clock (C3, C6).
 *
 *     ASKING --granted--> HELD --gone at lockd, or deadline--> LOST
 *        \--refused or too late--> REFUSED
 *
 * A lease may be relied on until `acked_ms + ttl - drift`, where acked_ms was read from CLOCK_BOOTTIME before the last
 * acknowledged request was handed to the socket: lockd counts from when it executed that, which cannot be earlier.
 * A renewal is due every ttl/3.  One that is unanswered for ttl/6 goes over the next connection, the next time a little
 * later, so when a node stalls there are three attempts or more before the deadline.
 *
 * The timer is a timerfd on CLOCK_BOOTTIME: libevent's own timers stand still while the machine is suspended. */
#include "client/lockclient_private.h"
#include "common/io/clock.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    LEASE_MAGIC = 0x7361656c,
    WAKE_EARLY_MS = 3, /* LOST is reported this much before the deadline: a timer wakes late, never early */
    ATTEMPT_MS_MIN = 50,
    RETRY_MS_MIN = 20,
};

enum lease_state { LEASE_ASKING, LEASE_HELD, LEASE_LOST, LEASE_REFUSED };
struct lockclient_lease {
    uint32_t magic;
    enum lease_state state;
    TAILQ_ENTRY(lockclient_lease) entry;
    struct lockclient *client; /* NULL: it has gone */
    uint32_t ttl_ms;
    char *name;
    int64_t id;
    uint64_t ask_until_ms; /* ASKING */
    uint64_t acked_ms, deadline_ms, renew_at_ms;
    bool renewing, doubted;
    bool gone;         /* lockd said so: nothing to revoke */
    bool freed;        /* by the caller; we still need it */
    unsigned commands; /* whose callback will name it */
    lockclient_lease_fn *fn;
    void *arg;
};

static void ask(struct lockclient_lease *lease);

static struct lockclient_lease *lease_of(void *arg) {
    struct lockclient_lease *lease = arg;
    must(lease->magic == LEASE_MAGIC);
    return lease;
}

/* ---- small things ---- */

static uint32_t at_least(uint32_t value, uint32_t least) {
    return value > least ? value : least;
}

static uint64_t doubt_at_ms(const struct lockclient_lease *lease) {
    return lease->acked_ms + (uint64_t)lease->ttl_ms * 2 / 3;
}

static uint64_t lost_at_ms(const struct lockclient_lease *lease) {
    return lease->deadline_ms - WAKE_EARLY_MS;
}

/* What is left of `life_ms` for a holder whose clock may run slow by the rate bound; 1 ms more for the rounding of the
 * clock itself. */
static uint64_t deadline_of(const struct lockclient *c, uint64_t sent_ms, uint64_t life_ms) {
    const uint64_t drift_ms = (life_ms * c->clock_drift_ppm + 999999) / 1000000 + 1;
    return sent_ms + (life_ms > drift_ms ? life_ms - drift_ms : 0);
}

static void free_if_unused(struct lockclient_lease *lease) {
    if (!lease->freed || lease->commands > 0) return;
    if (lease->client != NULL) {
        if (lease->client->lease_scan_depth > 0) return; /* the scan frees it at its end */
        TAILQ_REMOVE(&lease->client->leases, lease, entry);
    }
    free(lease->name);
    lease->magic = 0;
    free(lease);
}

/* The caller may free any lease in fn: while the depth is not 0 that only marks it. */
static void scan_begin(struct lockclient *c) {
    c->lease_scan_depth++;
}

static void report(struct lockclient_lease *lease, enum lockclient_lease_event event, const char *why) {
    if (lease->freed || lease->fn == NULL || lease->client->freeing) return;
    lease->client->callback_depth++;
    lease->fn(lease, event, why, lease->arg);
    lease->client->callback_depth--;
}

static uint64_t wake_of(const struct lockclient_lease *lease) {
    if (lease->state != LEASE_HELD || lease->freed) return UINT64_MAX;
    uint64_t wake_ms = lost_at_ms(lease);
    if (!lease->doubted && doubt_at_ms(lease) < wake_ms) wake_ms = doubt_at_ms(lease);
    if (!lease->renewing && lease->renew_at_ms < wake_ms) wake_ms = lease->renew_at_ms;
    return wake_ms;
}

static void set_timer(struct lockclient *c, uint64_t wake_ms) {
    c->lease_wake_ms = wake_ms;
    struct itimerspec when = {0};
    if (wake_ms != UINT64_MAX) {
        when.it_value.tv_sec = (time_t)(wake_ms / 1000);
        when.it_value.tv_nsec = (long)(wake_ms % 1000 * 1000000);
        if (when.it_value.tv_sec == 0 && when.it_value.tv_nsec == 0) when.it_value.tv_nsec = 1;
    }
    must(timerfd_settime(c->lease_timer_fd, TFD_TIMER_ABSTIME, &when, NULL) == 0);
    const bool wanted = wake_ms != UINT64_MAX; /* an event nobody needs would keep the caller's loop running */
    if (wanted != c->lease_timer_added) {
        must((wanted ? event_add(&c->lease_timer, NULL) : event_del(&c->lease_timer)) == 0);
        c->lease_timer_added = wanted;
    }
}

static void wake_no_later_than(struct lockclient *c, uint64_t wake_ms) {
    if (wake_ms < c->lease_wake_ms) set_timer(c, wake_ms);
}

/* Free what was freed meanwhile, and look when to wake next. */
static void sweep(struct lockclient *c) {
    uint64_t wake_ms = UINT64_MAX;
    struct lockclient_lease *next;
    for (struct lockclient_lease *lease = TAILQ_FIRST(&c->leases); lease != NULL; lease = next) {
        next = TAILQ_NEXT(lease, entry);
        if (wake_of(lease) < wake_ms) wake_ms = wake_of(lease);
        free_if_unused(lease);
    }
    c->lease_sweep_due = false;
    if (wake_ms != c->lease_wake_ms) set_timer(c, wake_ms);
}

static void scan_end(struct lockclient *c) {
    must(c->lease_scan_depth > 0);
    if (--c->lease_scan_depth == 0 && c->lease_sweep_due) sweep(c);
}

/* ---- asking lockd ---- */

static void send_for(struct lockclient_lease *lease, uint32_t timeout_ms, uint32_t attempt_ms, lockclient_reply_fn *fn,
                     int argc, const char *const *argv) {
    struct lockclient *c = lease->client;
    if (c->freeing) return;
    if (fn != NULL) lease->commands++;
    client_send_over(c, c->keeper, LOCKCLIENT_REPEATABLE, timeout_ms, attempt_ms, argc, argv, NULL, fn,
                     fn != NULL ? lease : NULL);
}

static uint32_t attempt_ms_of(const struct lockclient_lease *lease) {
    return at_least(lease->ttl_ms / 6, ATTEMPT_MS_MIN);
}

static void give_back(struct lockclient_lease *lease, int64_t id) {
    char number[24];
    snprintf(number, sizeof number, "%lld", (long long)id);
    const char *argv[] = {"LEASE.REVOKE", number};
    send_for(lease, at_least(lease->ttl_ms, 1000), attempt_ms_of(lease), NULL, 2, argv);
}

static void lose(struct lockclient_lease *lease, const char *why) {
    lease->state = LEASE_LOST;
    report(lease, LOCKCLIENT_LEASE_LOST, why);
}

static void refuse(struct lockclient_lease *lease, const char *why) {
    lease->state = LEASE_REFUSED;
    report(lease, LOCKCLIENT_LEASE_REFUSED, why);
}

static void acknowledged(struct lockclient_lease *lease, uint64_t sent_ms, uint64_t life_ms) {
    lease->acked_ms = sent_ms;
    lease->deadline_ms = deadline_of(lease->client, sent_ms, life_ms);
    lease->renew_at_ms = sent_ms + lease->ttl_ms / 3;
    lease->doubted = false;
}

static void granted(struct lockclient_lease *lease, int64_t id, uint64_t sent_ms) {
    lease->id = id;
    acknowledged(lease, sent_ms, lease->ttl_ms);
    if (clock_now_ms() >= lost_at_ms(lease)) { /* the answer took longer than the lease lives */
        give_back(lease, id);
        lease->id = 0;
        ask(lease);
        return;
    }
    lease->state = LEASE_HELD;
    report(lease, LOCKCLIENT_LEASE_GRANTED, "granted");
}

static void on_asked(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply, void *arg) {
    struct lockclient_lease *lease = lease_of(arg);
    const uint64_t sent_ms = c->running->sent_ms;
    scan_begin(c);
    lease->commands--;
    const bool is_id = result == LOCKCLIENT_REPLY && reply->type == REDIS_REPLY_INTEGER && reply->integer > 0;
    if (lease->freed) {
        if (is_id) give_back(lease, reply->integer);
    } else if (is_id) {
        granted(lease, reply->integer, sent_ms);
    } else if (reply != NULL && reply->type == REDIS_REPLY_ERROR) {
        refuse(lease, reply->str);
    } else if (result == LOCKCLIENT_REPLY) {
        refuse(lease, "lockd answered LEASE.GRANT with something that is not an id");
    } else {
        refuse(lease, result == LOCKCLIENT_NOT_RUN ? "no node could be reached" : "no node answered in time");
    }
    wake_no_later_than(c, wake_of(lease));
    c->lease_sweep_due |= lease->freed;
    scan_end(c);
}

/* Asking twice does no harm: a grant whose reply was lost is a lease that nobody renews. */
static void ask(struct lockclient_lease *lease) {
    const uint64_t now_ms = clock_now_ms();
    if (now_ms >= lease->ask_until_ms) {
        refuse(lease, "every answer came too late");
        return;
    }
    char ttl[16];
    snprintf(ttl, sizeof ttl, "%u", (unsigned)lease->ttl_ms);
    const char *argv[] = {"LEASE.GRANT", ttl, "NAME", lease->name};
    send_for(lease, (uint32_t)(lease->ask_until_ms - now_ms), at_least(attempt_ms_of(lease), 500), on_asked,
             lease->name != NULL ? 4 : 2, argv);
}

static void on_renewed(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply, void *arg) {
    struct lockclient_lease *lease = lease_of(arg);
    const uint64_t sent_ms = c->running->sent_ms;
    scan_begin(c);
    lease->commands--;
    lease->renewing = false;
    const uint64_t now_ms = clock_now_ms();
    const bool is_life = result == LOCKCLIENT_REPLY && reply->type == REDIS_REPLY_ARRAY && reply->elements == 1 &&
                         reply->element[0]->type == REDIS_REPLY_INTEGER;
    const long long life_ms = is_life ? reply->element[0]->integer : 0;
    if (lease->freed || lease->state != LEASE_HELD) {
        /* nobody wants to know any more */
    } else if (is_life && life_ms < 0) {
        lease->gone = true;
        lose(lease, "gone at lockd");
    } else if (now_ms >= lost_at_ms(lease)) { /* C6: what ran out stays lost, whatever the reply says */
        lose(lease, "its deadline passed before the renewal was answered");
    } else if (is_life) {
        const uint64_t life = (uint64_t)life_ms < lease->ttl_ms ? (uint64_t)life_ms : lease->ttl_ms;
        if (deadline_of(c, sent_ms, life) > lease->deadline_ms) acknowledged(lease, sent_ms, life);
        if (lease->renew_at_ms <= now_ms) lease->renew_at_ms = now_ms + at_least(lease->ttl_ms / 30, RETRY_MS_MIN);
        report(lease, LOCKCLIENT_LEASE_RENEWED, "renewed");
        client_leave_silent_nodes(c);
    } else { /* an election, or a node that cannot: try until the deadline */
        lease->renew_at_ms = now_ms + at_least(lease->ttl_ms / 30, RETRY_MS_MIN);
    }
    wake_no_later_than(c, wake_of(lease));
    c->lease_sweep_due |= lease->freed;
    scan_end(c);
}

static void renew(struct lockclient_lease *lease, uint64_t now_ms) {
    char number[24];
    snprintf(number, sizeof number, "%lld", (long long)lease->id);
    const char *argv[] = {"LEASE.KEEPALIVE", number};
    lease->renewing = true;
    send_for(lease, (uint32_t)(lease->deadline_ms - now_ms), attempt_ms_of(lease), on_renewed, 2, argv);
}

/* ---- the clock ---- */

void leases_check_clock(struct lockclient *c) {
    const uint64_t now_ms = clock_now_ms();
    if (now_ms < c->lease_wake_ms || c->freeing || c->lease_scan_depth > 0) return;
    scan_begin(c);
    struct lockclient_lease *lease;
    TAILQ_FOREACH(lease, &c->leases, entry) {
        if (lease->state != LEASE_HELD || lease->freed) continue;
        if (now_ms >= lost_at_ms(lease)) {
            lose(lease, "its deadline passed without a renewal being acknowledged");
            continue;
        }
        if (!lease->doubted && now_ms >= doubt_at_ms(lease)) {
            lease->doubted = true;
            report(lease, LOCKCLIENT_LEASE_DOUBT, "no renewal was acknowledged for two thirds of its ttl");
        }
        /* A little early is fine, and brings many leases together in one wake. */
        if (!lease->freed && !lease->renewing && now_ms + lease->ttl_ms / 24 >= lease->renew_at_ms) {
            renew(lease, now_ms);
        }
    }
    c->lease_sweep_due = true;
    scan_end(c);
}

void leases_timer_fired(evutil_socket_t fd, short what, void *arg) {
    uint64_t expirations;
    (void)what;
    ssize_t count = read(fd, &expirations, sizeof expirations);
    (void)count; /* EAGAIN: it was set anew meanwhile */
    leases_check_clock(arg);
}

void leases_abandon(struct lockclient *c) {
    struct lockclient_lease *next;
    for (struct lockclient_lease *lease = TAILQ_FIRST(&c->leases); lease != NULL; lease = next) {
        next = TAILQ_NEXT(lease, entry);
        TAILQ_REMOVE(&c->leases, lease, entry);
        lease->client = NULL;
        lease->commands = 0;
        free_if_unused(lease);
    }
}

/* The keeper must not spend a lease's life on one connect or one backoff. */
static void set_pace(struct link *keeper, const struct lockclient_lease *lease) {
    const uint32_t backoff_ms = at_least(lease->ttl_ms / 12, RETRY_MS_MIN);
    if (attempt_ms_of(lease) < keeper->connect_timeout_ms) keeper->connect_timeout_ms = attempt_ms_of(lease);
    if (backoff_ms < keeper->backoff_ms_max) keeper->backoff_ms_max = backoff_ms;
}

/* ---- public ---- */

struct lockclient_lease *lockclient_lease_new(struct lockclient *c, uint32_t ttl_ms, const char *name,
                                              lockclient_lease_fn *fn, void *arg) {
    struct lockclient_lease *lease = get_memory(1, sizeof *lease);
    lease->magic = LEASE_MAGIC;
    lease->client = c;
    lease->ttl_ms = ttl_ms;
    lease->name = name != NULL ? copy_text(name) : NULL;
    lease->fn = fn;
    lease->arg = arg;
    TAILQ_INSERT_TAIL(&c->leases, lease, entry);
    set_pace(c->keeper, lease);
    lease->ask_until_ms = clock_now_ms() + c->command_timeout_ms;
    ask(lease);
    return lease;
}

int64_t lockclient_lease_id(const struct lockclient_lease *lease) {
    return lease->id;
}

uint64_t lockclient_lease_deadline_ms(const struct lockclient_lease *lease) {
    if (lease->state != LEASE_HELD || clock_now_ms() >= lease->deadline_ms) return 0;
    return lease->deadline_ms;
}

void lockclient_lease_free(struct lockclient_lease *lease) {
    if (lease == NULL) return;
    must(lease_of(lease)->freed == false);
    lease->freed = true;
    struct lockclient *c = lease->client;
    if (c == NULL) {
        free_if_unused(lease);
        return;
    }
    scan_begin(c);
    if (lease->id > 0 && !lease->gone) give_back(lease, lease->id);
    c->lease_sweep_due = true;
    scan_end(c);
}
