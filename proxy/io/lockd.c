#include "proxy/io/lockd.h"
#include "client/lockclient.h"
#include "common/io/log.h"
#include <event2/event.h>
#include <event2/event_struct.h>
#include <stdio.h>
#include <stdlib.h>

enum { ASK_CHANNELS = 8, MOVE_CHANNELS = 64, ASK_TIMEOUT_MS = 2500, SUSPECT_TIMEOUT_MS = 1000, LEASE_AGAIN_MS = 200 };
enum { WORDS_MAX = 16 + PLACEMENT_SHARD_MAX, NUMBER_BYTES = 24, REVOCATIONS_MAX = 65536 };

struct channel {
    struct lockclient *client; /* NULL: not needed so far */
    uint32_t out;
};
struct lockd {
    struct event_base *base;
    struct lockd_owner fns;
    void *owner;
    char *addresses, *name;
    uint32_t ttl_ms, clock_drift_ppm;
    struct channel next, quick, asks[ASK_CHANNELS], moves[MOVE_CHANNELS];
    struct lockclient_lease *lease;
    int64_t lease_id; /* 0 = none that the owner knows of */
    struct event lease_again, stop_timer;
    bool stopping, stopped, freeing;
};

/* One command that is out. */
struct ask {
    struct lockd *lockd;
    struct channel *channel;
    enum bindings_output_kind kind;
    uint64_t op;
    int64_t lease;
    uint32_t pool, member;
};

static int client_new(const struct lockd *l, struct lockclient **ret_client) {
    const struct lockclient_config config = {.addresses = l->addresses,
                                             .base = l->base,
                                             .name = l->name,
                                             .clock_drift_ppm = l->clock_drift_ppm > 0 ? l->clock_drift_ppm : 1};
    return lockclient_new(&config, ret_client);
}

/* The one with the least to wait for; a new one rather than to wait, while there may be more. */
static struct channel *channel_of(struct lockd *l, struct channel *channels, int count) {
    struct channel *best = NULL;
    for (int i = 0; i < count; i++) {
        struct channel *c = &channels[i];
        if (c->client == NULL) {
            if (best != NULL && best->out == 0) break;
            if (client_new(l, &c->client) == 0) best = c; /* else: out of descriptors; wait with the others */
            break;
        }
        if (best == NULL || c->out < best->out) best = c;
    }
    return best;
}

/* ---- replies ---- */
static bool read_integer(const struct redisReply *reply, int64_t low, int64_t *ret_value) {
    if (reply == NULL || reply->type != REDIS_REPLY_INTEGER || reply->integer < low) return false;
    *ret_value = reply->integer;
    return true;
}

static bool read_text(const struct redisReply *reply, struct slice *ret_text) {
    if (reply == NULL || (reply->type != REDIS_REPLY_STRING && reply->type != REDIS_REPLY_STATUS)) return false;
    *ret_text = slice_of(reply->str, (size_t)reply->len);
    return true;
}

static bool is_error(const struct redisReply *reply, const char *prefix) {
    const struct slice want = slice_str(prefix);
    return reply != NULL && reply->type == REDIS_REPLY_ERROR && (size_t)reply->len >= want.bytes &&
           memcmp(reply->str, want.data, want.bytes) == 0;
}

static void odd_reply(const struct redisReply *reply, const char *command) {
    const bool text = reply != NULL && reply->type == REDIS_REPLY_ERROR;
    log_warn("lockd refused command=%s why=\"%.200s\"", command, text ? reply->str : "a reply of another shape");
}

static bool read_binding(const struct redisReply *reply, struct bindings_reply *ret_binding, struct slice *shard) {
    if (reply == NULL || reply->type != REDIS_REPLY_ARRAY || reply->elements < 4) return false;
    int64_t epoch, revision, is_new;
    if (!read_text(reply->element[0], &ret_binding->backend) || !read_integer(reply->element[1], 1, &epoch) ||
        !read_integer(reply->element[2], 0, &revision) || !read_integer(reply->element[3], 0, &is_new))
        return false;
    ret_binding->epoch = (uint64_t)epoch;
    ret_binding->revision = (uint64_t)revision;
    ret_binding->is_new = is_new == 1;
    ret_binding->shard = shard;
    ret_binding->shard_count = 0;
    for (size_t i = 4; i < reply->elements && ret_binding->shard_count < PLACEMENT_SHARD_MAX; i++)
        if (!read_text(reply->element[i], &shard[ret_binding->shard_count++])) return false;
    return true;
}

static const char *command_word(enum bindings_output_kind kind) {
    switch (kind) {
    case BINDINGS_ASK_NEXT: return "ROUTE.NEXT";
    case BINDINGS_ASK_BIND: return "ROUTE.BIND";
    case BINDINGS_ASK_GET: return "ROUTE.GET";
    case BINDINGS_ASK_MOVE: return "ROUTE.MOVE";
    case BINDINGS_ASK_DROP: return "ROUTE.DROP";
    case BINDINGS_ASK_TOUCH: return "ROUTE.TOUCH";
    case BINDINGS_ASK_SUSPECT: return "ROUTE.SUSPECT";
    default: must(false); return "";
    }
}

static void failed(const struct ask *ask, enum bindings_failure failure) {
    struct lockd *l = ask->lockd;
    if (ask->kind == BINDINGS_ASK_NEXT)
        l->fns.next_failed(l->owner, ask->lease);
    else if (ask->kind == BINDINGS_ASK_SUSPECT)
        l->fns.suspected(l->owner, ask->lease, ask->pool, ask->member, 0, 0);
    else
        l->fns.failed(l->owner, ask->op, failure);
}

static void on_next_reply(const struct ask *ask, const struct redisReply *reply) {
    struct lockd *l = ask->lockd;
    int64_t ttl_ms, serial;
    struct bindings_revocation *revocations = NULL;
    uint32_t count = 0;
    bool good = reply->type == REDIS_REPLY_ARRAY && reply->elements >= 2 && (reply->elements - 2) % 3 == 0 &&
                (reply->elements - 2) / 3 <= REVOCATIONS_MAX && read_integer(reply->element[0], 1, &ttl_ms) &&
                ttl_ms <= UINT32_MAX && read_integer(reply->element[1], 0, &serial);
    if (good && reply->elements > 2) {
        revocations = calloc((reply->elements - 2) / 3, sizeof *revocations);
        must(revocations != NULL);
        for (size_t i = 2; i < reply->elements && good; i += 3) {
            struct slice pool;
            int64_t epoch;
            good = read_text(reply->element[i], &pool) &&
                   read_text(reply->element[i + 1], &revocations[count].session) &&
                   read_integer(reply->element[i + 2], 0, &epoch);
            if (!good) break;
            revocations[count].pool = l->fns.pool_named(l->owner, pool);
            revocations[count++].epoch = (uint64_t)epoch;
        }
    }
    if (good) {
        l->fns.next(l->owner, ask->lease, (uint32_t)ttl_ms, (uint64_t)serial, revocations, count);
    } else {
        odd_reply(reply, "ROUTE.NEXT");
        failed(ask, BINDINGS_REFUSED);
    }
    free(revocations);
}

static void on_content(const struct ask *ask, const struct redisReply *reply) {
    struct lockd *l = ask->lockd;
    struct bindings_reply binding;
    struct slice shard[PLACEMENT_SHARD_MAX];
    int64_t number, joined;
    switch (ask->kind) {
    case BINDINGS_ASK_NEXT: on_next_reply(ask, reply); return;
    case BINDINGS_ASK_BIND:
    case BINDINGS_ASK_GET:
    case BINDINGS_ASK_MOVE:
        if (read_binding(reply, &binding, shard)) {
            l->fns.binding(l->owner, ask->op, &binding);
            return;
        }
        if (ask->kind == BINDINGS_ASK_GET && reply->type == REDIS_REPLY_NIL) {
            l->fns.absent(l->owner, ask->op);
            return;
        }
        break;
    case BINDINGS_ASK_DROP:
        if (read_integer(reply, 0, &number)) {
            l->fns.dropped(l->owner, ask->op);
            return;
        }
        break;
    case BINDINGS_ASK_TOUCH:
        if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 1 && read_integer(reply->element[0], 0, &number)) {
            l->fns.touched(l->owner, ask->op, (uint64_t)number);
            return;
        }
        break;
    case BINDINGS_ASK_SUSPECT:
        if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 && read_integer(reply->element[0], 0, &number) &&
            read_integer(reply->element[1], 0, &joined)) {
            l->fns.suspected(l->owner, ask->lease, ask->pool, ask->member, (uint64_t)number, (uint64_t)joined);
            return;
        }
        break;
    default: must(false);
    }
    odd_reply(reply, command_word(ask->kind));
    failed(ask, BINDINGS_REFUSED);
}

static void lose_lease(struct lockd *l, const char *why, bool again_at_once);

static void on_reply(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply, void *arg) {
    const struct ask ask = *(struct ask *)arg;
    struct lockd *l = ask.lockd;
    (void)c;
    free(arg);
    ask.channel->out--;
    if (l->freeing || l->stopping) return;
    if (result == LOCKCLIENT_NOT_RUN) {
        failed(&ask, BINDINGS_NOT_RUN);
    } else if (result == LOCKCLIENT_UNCERTAIN || reply == NULL) {
        failed(&ask, BINDINGS_UNCERTAIN);
    } else if (is_error(reply, "NOLEASE")) {
        if (ask.lease == l->lease_id)
            lose_lease(l, "lockd does not know it any more", true);
        else
            failed(&ask, BINDINGS_NOT_RUN);
    } else if (ask.kind == BINDINGS_ASK_MOVE && is_error(reply, "ERR backend in service")) {
        failed(&ask, BINDINGS_IN_SERVICE);
    } else {
        on_content(&ask, reply);
    }
}

/* ---- questions ---- */
struct words {
    const char *text[WORDS_MAX];
    size_t bytes[WORDS_MAX];
    int count;
    char numbers[4][NUMBER_BYTES];
    int number_count;
};
static void add_slice(struct words *w, struct slice s) {
    must(w->count < WORDS_MAX);
    w->text[w->count] = s.data;
    w->bytes[w->count++] = s.bytes;
}
static void add_word(struct words *w, const char *text) {
    add_slice(w, slice_str(text));
}
static void add_number(struct words *w, uint64_t number) {
    must(w->number_count < 4);
    char *text = w->numbers[w->number_count++];
    snprintf(text, NUMBER_BYTES, "%llu", (unsigned long long)number);
    add_word(w, text);
}
static void add_lease(struct words *w, int64_t lease) {
    add_word(w, "LEASE");
    add_number(w, (uint64_t)lease);
}

static void make_words(struct words *w, const struct bindings_output *out, struct slice pool,
                       const struct placement_member *members) {
    w->count = w->number_count = 0;
    add_word(w, command_word(out->kind));
    if (out->kind != BINDINGS_ASK_NEXT) add_slice(w, pool);
    switch (out->kind) {
    case BINDINGS_ASK_NEXT:
        add_lease(w, out->lease);
        add_number(w, out->serial);
        break;
    case BINDINGS_ASK_BIND:
        add_slice(w, out->session);
        add_lease(w, out->lease);
        add_slice(w, members[out->member].name);
        add_word(w, "PREFER");
        for (uint32_t i = 0; i < out->shard_count; i++) add_slice(w, members[out->shard[i]].name);
        break;
    case BINDINGS_ASK_GET:
        add_slice(w, out->session);
        add_lease(w, out->lease);
        break;
    case BINDINGS_ASK_MOVE:
        add_slice(w, out->session);
        add_number(w, out->epoch);
        add_lease(w, out->lease);
        add_slice(w, members[out->member].name);
        break;
    case BINDINGS_ASK_DROP:
        add_slice(w, out->session);
        add_number(w, out->epoch);
        add_lease(w, out->lease);
        break;
    case BINDINGS_ASK_TOUCH:
        add_lease(w, out->lease);
        add_slice(w, out->session);
        break;
    case BINDINGS_ASK_SUSPECT:
        add_slice(w, members[out->member].name);
        add_number(w, 0); /* the epoch of a backend that is not registered */
        add_lease(w, out->lease);
        break;
    default: must(false);
    }
}

void lockd_ask(struct lockd *l, const struct bindings_output *out, struct slice pool,
               const struct placement_member *members) {
    struct channel *channel = &l->quick;
    uint32_t timeout_ms = ASK_TIMEOUT_MS;
    unsigned flags = 0;
    switch (out->kind) {
    case BINDINGS_ASK_NEXT: /* due after ttl / 3; asked anew, with a fresh time, rather than repeated */
        channel = &l->next;
        timeout_ms = l->ttl_ms * 2 / 3;
        break;
    case BINDINGS_ASK_BIND:
    case BINDINGS_ASK_GET:
    case BINDINGS_ASK_TOUCH:
        channel = channel_of(l, l->asks, ASK_CHANNELS);
        flags = LOCKCLIENT_REPEATABLE;
        break;
    case BINDINGS_ASK_MOVE: /* stalls for a whole cover at worst, and a change of the leader on top */
        channel = channel_of(l, l->moves, MOVE_CHANNELS);
        timeout_ms = l->ttl_ms * 2 + 4000;
        break;
    case BINDINGS_ASK_SUSPECT:
        timeout_ms = SUSPECT_TIMEOUT_MS;
        flags = LOCKCLIENT_REPEATABLE;
        break;
    default: break;
    }
    if (channel == NULL) channel = &l->quick;
    struct ask *ask = malloc(sizeof *ask);
    must(ask != NULL);
    *ask = (struct ask){.lockd = l,
                        .channel = channel,
                        .kind = out->kind,
                        .op = out->op,
                        .lease = out->lease,
                        .pool = out->pool,
                        .member = out->member};
    struct words w;
    make_words(&w, out, pool, members);
    channel->out++;
    lockclient_send(channel->client, flags, timeout_ms, w.count, w.text, w.bytes, on_reply, ask);
}

/* ---- the lease ---- */
static void ask_for_lease(struct lockd *l);

static void lose_lease(struct lockd *l, const char *why, bool again_at_once) {
    const bool known = l->lease_id != 0;
    lockclient_lease_free(l->lease);
    l->lease = NULL;
    l->lease_id = 0;
    static const struct timeval later = {.tv_usec = LEASE_AGAIN_MS * 1000};
    if (again_at_once)
        ask_for_lease(l);
    else
        event_add(&l->lease_again, &later);
    if (known) l->fns.lease_lost(l->owner, why);
}

static void on_lease(struct lockclient_lease *lease, enum lockclient_lease_event event, const char *why, void *arg) {
    struct lockd *l = arg;
    if (lease != l->lease || l->stopping || l->freeing) return;
    switch (event) {
    case LOCKCLIENT_LEASE_GRANTED:
        l->lease_id = lockclient_lease_id(lease);
        if (l->lease_id <= 0) { /* it ran out while we slept; LOST follows */
            l->lease_id = 0;
            return;
        }
        l->fns.lease_granted(l->owner, l->lease_id);
        break;
    case LOCKCLIENT_LEASE_RENEWED: break;
    case LOCKCLIENT_LEASE_DOUBT: log_debug("lockd lease-doubt id=%lld", (long long)l->lease_id); break;
    case LOCKCLIENT_LEASE_LOST: lose_lease(l, why != NULL ? why : "not renewed in time", true); break;
    case LOCKCLIENT_LEASE_REFUSED:
        log_warn("lockd lease-refused why=\"%.200s\"", why != NULL ? why : "");
        lose_lease(l, "refused", false);
        break;
    }
}

static void ask_for_lease(struct lockd *l) {
    if (l->stopping || l->lease != NULL) return;
    l->lease = lockclient_lease_new(l->quick.client, l->ttl_ms, l->name, on_lease, l);
    static const struct timeval later = {.tv_usec = LEASE_AGAIN_MS * 1000};
    if (l->lease == NULL) event_add(&l->lease_again, &later);
}

static void on_lease_again(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    ask_for_lease(arg);
}

void lockd_replace_lease(struct lockd *l) {
    lockclient_lease_free(l->lease);
    l->lease = NULL;
    l->lease_id = 0;
    ask_for_lease(l);
}

/* ---- life ---- */
static void tell_stopped(struct lockd *l) {
    if (l->stopped || l->freeing) return;
    l->stopped = true;
    event_del(&l->stop_timer);
    l->fns.stopped(l->owner);
}

static void on_revoked(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply, void *arg) {
    (void)c, (void)result, (void)reply;
    tell_stopped(arg);
}

static void on_stop_timer(evutil_socket_t fd, short what, void *arg) {
    (void)fd, (void)what;
    tell_stopped(arg);
}

void lockd_stop(struct lockd *l, uint32_t timeout_ms) {
    l->stopping = true;
    const struct timeval tv = {.tv_sec = (time_t)(timeout_ms / 1000),
                               .tv_usec = (suseconds_t)(timeout_ms % 1000 * 1000)};
    if (l->lease_id == 0) {
        static const struct timeval now = {0};
        event_add(&l->stop_timer, &now);
        return;
    }
    char id[NUMBER_BYTES];
    snprintf(id, sizeof id, "%lld", (long long)l->lease_id);
    event_add(&l->stop_timer, &tv);
    lockclient_sendv(l->quick.client, LOCKCLIENT_REPEATABLE, timeout_ms, on_revoked, l, "LEASE.REVOKE", id, NULL);
}

int lockd_new(struct event_base *base, const struct lockd_config *config, const struct lockd_owner *fns, void *owner,
              struct lockd **ret_lockd, char *error, size_t error_bytes) {
    struct lockd *l = calloc(1, sizeof *l);
    must(l != NULL);
    l->base = base;
    l->fns = *fns;
    l->owner = owner;
    l->addresses = strdup(config->addresses);
    l->name = strdup(config->name);
    must(l->addresses != NULL && l->name != NULL);
    l->ttl_ms = config->ttl_ms;
    l->clock_drift_ppm = config->clock_drift_ppm;
    event_assign(&l->lease_again, base, -1, 0, on_lease_again, l);
    event_assign(&l->stop_timer, base, -1, 0, on_stop_timer, l);
    if (client_new(l, &l->quick.client) != 0 || client_new(l, &l->next.client) != 0) {
        snprintf(error, error_bytes, "%s", lockclient_error_text());
        lockd_free(l);
        return -1;
    }
    ask_for_lease(l);
    *ret_lockd = l;
    return 0;
}

static void channels_free(struct channel *channels, int count) {
    for (int i = 0; i < count; i++) lockclient_free(channels[i].client);
}

void lockd_free(struct lockd *l) {
    if (l == NULL) return;
    l->freeing = true;
    event_del(&l->lease_again);
    event_del(&l->stop_timer);
    lockclient_lease_free(l->lease);
    channels_free(&l->next, 1);
    channels_free(&l->quick, 1);
    channels_free(l->asks, ASK_CHANNELS);
    channels_free(l->moves, MOVE_CHANNELS);
    free(l->addresses);
    free(l->name);
    free(l);
}
