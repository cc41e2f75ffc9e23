/* clients.c - see clients.h.  Connections, answers and the plain clients. */
#include "tests/sim/clients.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/must.h"
#include "tests/sim/check_hold.h"
#include "tests/sim/check_late.h"
#include "tests/sim/check_once.h"
#include "tests/sim/check_route.h"
#include "tests/sim/check_paxos.h"

enum { LINE_MAX = 256, ARGC_MAX = 24, SLACK_US = 1000000 };
#define CAD_SCRIPT "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end"
#define INC_SCRIPT "return redis.call('incr',KEYS[1])"

static unsigned long long u(uint64_t x) {
    return x;
}

/* What plain clients like to do. */
enum like {
    LIKE_SET,
    LIKE_SET_NX,
    LIKE_SET_XX,
    LIKE_SET_GET,
    LIKE_SET_PX,
    LIKE_GET,
    LIKE_GETV,
    LIKE_DEL,
    LIKE_CAS,
    LIKE_CAD,
    LIKE_PEXPIRE,
    LIKE_INCR,
    LIKE_COUNT,
    LIKE_REGISTER,
    LIKE_OBSERVE,
    LIKE_END
};
static const uint32_t likes_usual[LIKE_END] = {3, 2, 1, 1, 2, 3, 4, 2, 4, 2, 1, 4, 2, 3, 3};
static const uint32_t likes_reading[LIKE_END] = {[LIKE_GET] = 3, [LIKE_GETV] = 3, [LIKE_COUNT] = 2, [LIKE_OBSERVE] = 1};

/* ------------------------------------------------------------------ life */

struct clients *clients_new(struct world *w, struct replica *(*replica_at)(const struct world *w, uint16_t node),
                            struct ballot (*log_ballot)(const struct world *w), uint32_t forward_timeout_ms) {
    struct clients *cs = calloc(1, sizeof *cs);
    must(cs != NULL);
    cs->story = story_new();
    cs->holds = check_hold_new();
    cs->routes = check_route_new();
    cs->lates = check_late_new();
    cs->once_facts = check_once_new();
    cs->replica_at = replica_at;
    cs->log_ballot = log_ballot;
    cs->forward_timeout_ms = forward_timeout_ms;
    static const uint32_t plain[] = {2, 4, 6, 8, 8}, sessions[] = {0, 2, 3, 4, 4}, proxies[] = {0, 0, 2, 3},
                          onces[] = {0, 1, 2, 3};
    cs->plain_count = plain[world_below(w, 5)];
    cs->reader_count = world_chance(w, 500000) ? (uint32_t)world_between(w, 1, cs->plain_count - 1u) : 0;
    cs->session_count = sessions[world_below(w, 5)];
    cs->proxy_count = proxies[world_below(w, 4)];
    cs->once_count = onces[world_below(w, 4)];
    static const uint32_t pipelines[] = {0, 100000, 300000, 700000}, patience[] = {300, 3000, 3000, 20000};
    cs->pipeline_ppm = pipelines[world_below(w, 4)];
    cs->patience_ppm = patience[world_below(w, 4)];
    const bool patient = world_chance(w, 300000);
    cs->ttl_ms_min = patient ? 3000 : 1000;
    cs->ttl_ms_max = patient ? 6000 : 2500;
    uint32_t likes_total = 0;
    for (uint32_t i = 0; i < LIKE_END; i++) {
        cs->likes[i] = world_chance(w, 300000) ? (uint32_t)world_below(w, 2) * 8 : likes_usual[i];
        likes_total += cs->likes[i];
    }
    if (likes_total == 0) cs->likes[LIKE_INCR] = 1;
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
        struct client *c = &cs->all[i];
        c->id = ++cs->next_id;
        c->index = i;
        c->node = (uint16_t)(i < FIRST_SETTLER ? world_below(w, w->node_count) : i - FIRST_SETTLER);
    }
    for (uint32_t i = 0; i < SESSIONS_MAX; i++) session_begins(cs, w, &cs->sessions[i]);
    for (uint32_t i = 0; i < PROXIES_MAX; i++)
        cs->proxies[i].rate_ppm = (int64_t)world_between(w, 0, SIM_DRIFT_PPM) - SIM_DRIFT_PPM / 2;
    return cs;
}
void clients_free(struct clients *cs) {
    if (cs == NULL) return;
    story_free(cs->story);
    check_hold_free(cs->holds);
    check_route_free(cs->routes);
    check_late_free(cs->lates);
    check_once_free(cs->once_facts);
    free(cs);
}
static bool used(const struct clients *cs, const struct world *w, uint32_t index) {
    if (index < FIRST_MAIN) return index < cs->plain_count;
    if (index < FIRST_KEEPER) return index - FIRST_MAIN < cs->session_count;
    if (index < FIRST_ONCE) return index - FIRST_KEEPER < cs->session_count;
    if (index < ADMIN) return index - FIRST_ONCE < cs->once_count;
    if (index == ADMIN) return w->swarm.members;
    if (index < FIRST_NEXT) return index - FIRST_PROXY < cs->proxy_count;
    if (index < FIRST_SETTLER) return index - FIRST_NEXT < cs->proxy_count;
    return true;
}

static void reconnect(struct clients *cs, struct world *w, struct client *c) {
    for (uint32_t i = 0; i < c->asked_count; i++) {
        if (c->asked[i].op != 0) story_lost(cs->story, c->asked[i].op - 1);
    }
    if (c->index >= FIRST_NEXT && c->index < FIRST_SETTLER) proxy_next_lost(cs, c);
    if (c->index == ADMIN) admin_lost(cs, w, c);
    c->id = ++cs->next_id;
    c->asked_count = 0;
    c->reply_bytes = 0;
    c->closed = false;
    if (c->index >= FIRST_SETTLER) return;
    const uint16_t first = (uint16_t)world_below(w, w->node_count);
    for (uint16_t i = 0; i < w->node_count; i++) {
        c->node = (uint16_t)((first + i) % w->node_count);
        if (w->nodes[c->node].up && !w->nodes[c->node].wiped && check_member(w, c->node)) return;
    }
}
void client_leaves(struct clients *cs, struct world *w, struct client *c) {
    if (w->nodes[c->node].up) replica_client_gone(cs->replica_at(w, c->node), world_local_ms(w, c->node), c->id);
    reconnect(cs, w, c);
}
void clients_node_gone(struct clients *cs, struct world *w, uint16_t node) {
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
        if (cs->all[i].node == node) reconnect(cs, w, &cs->all[i]);
    }
}
static void told_plain(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                       const struct reply *r);
/* Whatever happens to the others: a node that runs answers in forward-timeout, if only that it does not know. */
static void answered_in_time(const struct clients *cs, struct world *w, const struct client *c) {
    const struct sim_node *n = &w->nodes[c->node];
    if (c->asked_count == 0 || c->asked[0].told != told_plain || !n->up) return;
    const uint64_t ran_us = cs->stood_us[c->node], since_us = c->asked[0].at_us > ran_us ? c->asked[0].at_us : ran_us;
    if (w->now_us > since_us + cs->forward_timeout_ms * UINT64_C(1100) + SLACK_US)
        world_fail(w, "live: client %llu of n%u has waited for %llu ms", u(c->id), c->node,
                   u((w->now_us - c->asked[0].at_us) / 1000));
}
void clients_load(struct clients *cs, struct world *w) {
    if (w->swarm.members) admin_looks(cs, w);
    for (uint16_t node = 0; node < w->node_count; node++)
        if (w->nodes[node].paused_until_us > cs->stood_us[node]) cs->stood_us[node] = w->nodes[node].paused_until_us;
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) answered_in_time(cs, w, &cs->all[i]);
    for (uint32_t i = 0; i < FIRST_SETTLER; i++) {
        struct client *c = &cs->all[i];
        if (!used(cs, w, i) || !world_chance(w, 300000)) continue;
        const struct sim_node *n = &w->nodes[c->node];
        if (!n->up) client_leaves(cs, w, c);
        world_client_input(w, c->node, i);
    }
}
uint64_t lease_end_us(uint64_t asked_us, uint64_t ms, int64_t rate_ppm) {
    const uint64_t by_its_clock = ms * 1000 - ms * SIM_DRIFT_PPM / 1000;
    return asked_us + (uint64_t)((int64_t)by_its_clock * 1000000 / (1000000 + rate_ppm));
}

/* ------------------------------------------------------------------ asking */

static void say(struct clients *cs, struct world *w, struct client *c, struct asked asked, const char *format,
                va_list args) {
    char text[LINE_MAX];
    struct slice argv[ARGC_MAX];
    uint32_t argc = 0;
    vsnprintf(text, sizeof text, format, args);
    world_trace(w, "client %llu at n%u: %s", u(c->id), c->node, text);
    for (char *at = text; *at != '\0';) {
        char *end = at + strcspn(at, " ");
        must(argc < ARGC_MAX);
        argv[argc] = slice_of(at, (size_t)(end - at));
        if (slice_equal(argv[argc], slice_str("@CAD"))) argv[argc] = slice_str(CAD_SCRIPT);
        if (slice_equal(argv[argc], slice_str("@INC"))) argv[argc] = slice_str(INC_SCRIPT);
        argc++;
        at = *end == '\0' ? end : end + 1;
    }
    must(c->asked_count < PIPELINE_MAX);
    asked.at_us = w->now_us;
    c->asked[c->asked_count++] = asked;
    replica_command(cs->replica_at(w, c->node), world_local_ms(w, c->node), w->now_us, c->id, argc, argv);
}
void client_says(struct clients *cs, struct world *w, struct client *c, told_fn *told, uint32_t op, uint64_t a,
                 uint64_t b, const char *format, ...) {
    va_list args;
    va_start(args, format);
    say(cs, w, c, (struct asked){.told = told, .op = op, .a = a, .b = b}, format, args);
    va_end(args);
}
void client_asks(struct clients *cs, struct world *w, struct client *c, told_fn *told, uint32_t key, struct lin_op op,
                 uint64_t a, const char *format, ...) {
    op.asked = w->now_us;
    op.connection = c->id;
    const uint32_t number = story_ask(cs->story, key, op);
    va_list args;
    va_start(args, format);
    say(cs, w, c, (struct asked){.told = told, .op = number + 1, .a = a}, format, args);
    va_end(args);
}

/* ------------------------------------------------------------------ plain clients */

static void told_plain(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                       const struct reply *r) {
    if (!client_hears(cs, w, c, a, r)) return;
    const struct lin_op *op = story_op(cs->story, a->op - 1);
    const uint32_t key = story_key_of(cs->story, a->op - 1);
    if (key >> 28 != STORY_STRINGS) return;
    if (op->kind == LIN_GETV || op->kind == LIN_CAS) {
        c->versions[key >> 24 & 15] = op->ret_version;
        c->values[key >> 24 & 15] = op->yes && op->kind == LIN_CAS ? op->value : op->ret_value;
    }
    if (op->kind == LIN_GET && op->yes) c->values[key >> 24 & 15] = op->ret_value;
}
static uint64_t life_us(uint64_t ms) {
    return ms * 1000 - ms * SIM_DRIFT_PPM / 1000 - 2000;
}
void client_value(uint64_t value, char out[CLIENT_VALUE_MAX]) {
    snprintf(out, CLIENT_VALUE_MAX, "%0*llu", value % 4 == 0 ? 180 : 1, u(value));
}
static enum like pick_like(struct world *w, const uint32_t *likes) {
    uint32_t total = 0;
    for (uint32_t i = 0; i < LIKE_END; i++) total += likes[i];
    uint64_t pick = world_below(w, total);
    enum like like = 0;
    while (pick >= likes[like]) pick -= likes[like++];
    return like;
}
static void plain_acts(struct clients *cs, struct world *w, struct client *c) {
    const bool reads = c->index + cs->reader_count >= cs->plain_count; /* it never waits for a write of its own */
    const enum like like = pick_like(w, reads ? likes_reading : cs->likes);
    static const enum story_group groups[LIKE_END] = {
        [LIKE_INCR] = STORY_COUNTERS, [LIKE_COUNT] = STORY_COUNTERS, [LIKE_REGISTER] = STORY_REGISTERS};
    enum story_group group = groups[like];
    if (like == LIKE_OBSERVE) group = world_chance(w, 300000) ? STORY_ELECTIONS : STORY_LOCKS;
    const uint32_t key = story_key(cs->story, w, group), at = key >> 24 & 15;
    const char *const name = story_name(cs->story, key);
    struct lin_op op = {.value = ++cs->next_value};
    const uint64_t ms = world_between(w, 20, 3000);
    char value[CLIENT_VALUE_MAX];
    client_value(op.value, value);
    switch (like) {
    case LIKE_SET:
        op.kind = LIN_SET;
        client_asks(cs, w, c, told_plain, key, op, 0, "SET %s %s", name, value);
        break;
    case LIKE_SET_NX:
    case LIKE_SET_XX:
        op.kind = LIN_SET;
        op.flags = like == LIKE_SET_NX ? LIN_NX : LIN_XX;
        client_asks(cs, w, c, told_plain, key, op, 0, "SET %s %s %s", name, value, like == LIKE_SET_NX ? "NX" : "XX");
        break;
    case LIKE_SET_GET:
        op.kind = LIN_SET;
        op.flags = LIN_OLD | (world_chance(w, 500000) ? LIN_NX : 0);
        client_asks(cs, w, c, told_plain, key, op, 0, "SET %s %s GET%s", name, value, op.flags & LIN_NX ? " NX" : "");
        break;
    case LIKE_SET_PX:
        op.kind = LIN_SET;
        op.flags = world_chance(w, 500000) ? LIN_NX : 0;
        op.life = life_us(ms);
        client_asks(cs, w, c, told_plain, key, op, 0, "SET %s %s PX %llu%s", name, value, u(ms),
                    op.flags & LIN_NX ? " NX" : "");
        break;
    case LIKE_GET:
    case LIKE_COUNT:
        op.kind = LIN_GET;
        client_asks(cs, w, c, told_plain, key, op, 0, "GET %s", name);
        break;
    case LIKE_GETV:
        op.kind = LIN_GETV;
        client_asks(cs, w, c, told_plain, key, op, 0, "GETV %s", name);
        break;
    case LIKE_DEL:
        op.kind = LIN_DEL;
        client_asks(cs, w, c, told_plain, key, op, 0, "DEL %s", name);
        break;
    case LIKE_CAS:
        op.kind = LIN_CAS;
        op.version = c->versions[at];
        client_asks(cs, w, c, told_plain, key, op, 0, "CAS %s %llu %s", name, u(op.version), value);
        break;
    case LIKE_CAD:
        op.kind = LIN_CAD;
        op.value = c->values[at];
        client_value(op.value, value);
        client_asks(cs, w, c, told_plain, key, op, 0, "EVAL @CAD 1 %s %s", name, value);
        break;
    case LIKE_PEXPIRE:
        op.kind = LIN_PEXPIRE;
        op.life = life_us(ms);
        client_asks(cs, w, c, told_plain, key, op, 0, "PEXPIRE %s %llu", name, u(ms));
        break;
    case LIKE_INCR:
        op.kind = LIN_INCR;
        client_asks(cs, w, c, told_plain, key, op, 0, "INCR %s", name);
        break;
    case LIKE_REGISTER:
        op.kind = world_chance(w, 400000) ? LIN_WOR_SET : LIN_WOR_GET;
        if (op.kind == LIN_WOR_SET)
            client_asks(cs, w, c, told_plain, key, op, 0, "WOR.SET %s %llu", name, u(op.value));
        else
            client_asks(cs, w, c, told_plain, key, op, 0, "WOR.GET %s", name);
        break;
    case LIKE_OBSERVE:
        op.kind = LIN_HOLDER;
        client_asks(cs, w, c, told_plain, key, op, 0, "%s %s", group == STORY_ELECTIONS ? "ELECT.LEADER" : "LOCK.INFO",
                    name);
        break;
    case LIKE_END: break;
    }
}

static void told_settler(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                         const struct reply *r) {
    (void)w;
    (void)a;
    cs->settle_done[c->node] = r->kind == '+';
}
void clients_act(struct clients *cs, struct world *w, uint32_t index) {
    struct client *c = &cs->all[index];
    if (!w->nodes[c->node].up) return;
    const bool wiped = w->nodes[c->node].wiped, out = wiped || !check_member(w, c->node);
    if (out && index < FIRST_SETTLER && !cs->quiet && (wiped || world_chance(w, 300000))) {
        client_leaves(cs, w, c); /* here nobody serves it */
        return;
    }
    const bool plain = index < FIRST_MAIN;
    const bool may = c->asked_count == 0 ||
                     (plain && c->asked_count < PIPELINE_MAX && !cs->quiet && world_chance(w, cs->pipeline_ppm));
    if (!may) {
        /* a held ROUTE.NEXT is no reason to lose patience */
        if (index < FIRST_NEXT && !cs->quiet && world_chance(w, cs->patience_ppm)) client_leaves(cs, w, c);
        return;
    }
    if (!replica_client_room(cs->replica_at(w, c->node), c->id)) return;
    if (index >= FIRST_SETTLER) {
        if (!cs->settle_done[c->node]) client_says(cs, w, c, told_settler, 0, 0, 0, "SET settled yes");
    } else if (cs->quiet) {
        return;
    } else if (index >= FIRST_NEXT) {
        proxy_nexts(cs, w, c, &cs->proxies[index - FIRST_NEXT]);
    } else if (index >= FIRST_PROXY) {
        proxy_acts(cs, w, c, &cs->proxies[index - FIRST_PROXY]);
    } else if (index == ADMIN) {
        admin_acts(cs, w, c);
    } else if (index >= FIRST_ONCE) {
        once_acts(cs, w, c, &cs->onces[index - FIRST_ONCE]);
    } else if (index >= FIRST_KEEPER) {
        session_keeps(cs, w, c, &cs->sessions[index - FIRST_KEEPER]);
    } else if (index >= FIRST_MAIN) {
        session_acts(cs, w, c, &cs->sessions[index - FIRST_MAIN]);
    } else {
        plain_acts(cs, w, c);
    }
}

/* ------------------------------------------------------------------ hearing */

/* One RESP value at *at; false: not whole.  `depth` 0: the reply itself. */
static bool parse(const char **at, const char *end, struct reply *r, bool inner) {
    const char *line = memchr(*at, '\n', (size_t)(end - *at));
    if (line == NULL || line == *at) return false;
    struct element e = {.kind = **at, .text = slice_of(*at + 1, (size_t)(line - *at) - 2)};
    const int64_t number = e.kind == ':' || e.kind == '$' || e.kind == '*' ? strtoll(*at + 1, NULL, 10) : 0;
    *at = line + 1;
    e.number = number;
    const bool array = e.kind == '*';
    if ((e.kind == '$' || array) && number < 0) {
        e.kind = 'n';
        e.number = -1;
    } else if (e.kind == '$') {
        if (end - *at < number + 2) return false;
        e.text = slice_of(*at, (size_t)number);
        *at += number + 2;
        e.number = number > 0 && number < 200 ? strtoll(e.text.data, NULL, 10) : 0;
    }
    if (inner) {
        if (r->count < sizeof r->elements / sizeof r->elements[0]) r->elements[r->count++] = e;
    } else {
        r->kind = e.kind;
        r->number = e.number;
        r->text = e.text;
    }
    for (int64_t i = 0; array && i < number; i++) {
        if (!parse(at, end, r, true)) return false;
    }
    return true;
}
bool reply_is_error(const struct reply *r, const char *word) {
    const size_t bytes = strlen(word);
    return r->kind == '-' && r->text.bytes >= bytes && memcmp(r->text.data, word, bytes) == 0;
}
static uint64_t element(const struct reply *r, uint32_t at) {
    return at < r->count ? (uint64_t)r->elements[at].number : 0;
}
/* A map as a flat array: the number after that name. */
static uint64_t field(const struct reply *r, const char *name) {
    for (uint32_t i = 0; i + 1 < r->count; i += 2) {
        if (slice_equal(r->elements[i].text, slice_str(name))) return element(r, i + 1);
    }
    return 0;
}

static bool hear_error(struct clients *cs, struct world *w, struct client *c, struct lin_op *op, uint32_t number,
                       const struct reply *r) {
    static const char *const refusals[] = {"CLUSTERDOWN", "LOADING", "BUSY", "DISKFULL", "READONLY"};
    for (uint32_t i = 0; i < 5; i++) {
        if (reply_is_error(r, refusals[i])) op->outcome = LIN_REFUSED;
    }
    if (op->outcome == LIN_REFUSED) return false;
    if (op->kind == LIN_CHECK && reply_is_error(r, "FENCED")) {
        op->outcome = LIN_DONE;
        return true;
    }
    if (reply_is_error(r, "NOLEASE") && op->lease != 0) {
        op->outcome = op->kind == LIN_ACQUIRE ? LIN_DONE : LIN_REFUSED;
        op->no_lease = true;
        return op->kind == LIN_ACQUIRE;
    }
    story_lost(cs->story, number);
    if (!reply_is_error(r, "UNCERTAIN") && !reply_is_error(r, "ERR this wait was taken over"))
        world_fail(w, "E: client %llu is told -%.*s", u(c->id), (int)r->text.bytes, r->text.data);
    return false;
}
bool client_hears(struct clients *cs, struct world *w, struct client *c, const struct asked *a, const struct reply *r) {
    struct lin_op *op = story_op(cs->story, a->op - 1);
    op->told = w->now_us;
    if (r->kind == '-') return hear_error(cs, w, c, op, a->op - 1, r);
    op->outcome = LIN_DONE;
    const bool nil = r->kind == 'n';
    bool good = true;
    op->yes = !nil;
    switch (op->kind) {
    case LIN_SET:
        good = nil || r->kind == (op->flags & LIN_OLD ? '$' : '+');
        op->ret_value = (uint64_t)r->number;
        break;
    case LIN_GET:
        good = nil || r->kind == '$';
        op->ret_value = (uint64_t)r->number;
        break;
    case LIN_GETV:
    case LIN_WOR_GET:
        good = nil || (r->kind == '*' && r->count == 2);
        op->ret_version = element(r, 0);
        op->ret_value = element(r, 1);
        break;
    case LIN_INCR:
        good = r->kind == ':';
        op->ret_value = (uint64_t)r->number;
        break;
    case LIN_DEL:
    case LIN_CAD:
    case LIN_PEXPIRE:
    case LIN_RELEASE:
    case LIN_CHECK:
        good = r->kind == ':' && (r->number == 0 || r->number == 1);
        op->yes = r->number == 1;
        break;
    case LIN_CAS:
    case LIN_WOR_SET:
        good = r->kind == '*' && r->count >= 2;
        op->yes = element(r, 0) == 1;
        op->ret_version = element(r, 1);
        op->ret_value = op->ret_version == 0 ? 0 : element(r, 2);
        break;
    case LIN_ACQUIRE:
        good = nil || r->kind == ':';
        op->ret_version = nil ? 0 : (uint64_t)r->number;
        break;
    case LIN_HOLDER:
        good = nil || (r->kind == '*' && (r->count == 3 || r->count == 10));
        if (nil || !good) break;
        op->ret_version = r->count == 3 ? element(r, 1) : field(r, "token");
        op->ret_value = r->count == 3 ? element(r, 2) : field(r, "lease");
        op->yes = op->ret_value != 0;
        break;
    case LIN_KIND_END: break;
    }
    if (!good)
        world_fail(w, "R1: client %llu got another command's answer: %c%.*s", u(c->id), r->kind, (int)r->text.bytes,
                   r->text.data);
    static const bool writes[LIN_KIND_END] = {[LIN_SET] = true, [LIN_INCR] = true, [LIN_DEL] = true};
    if (writes[op->kind]) check_acknowledged(w, c->node, keyspace_slot(replica_keyspace(cs->replica_at(w, c->node))));
    return good;
}

static void told(struct clients *cs, struct world *w, struct client *c, const struct reply *r) {
    world_trace(w, "client %llu is told %c%.*s %lld", u(c->id), r->kind, (int)(r->text.bytes < 60 ? r->text.bytes : 60),
                r->text.data, (long long)r->number);
    if (c->asked_count == 0) {
        world_fail(w, "R1: client %llu is told something and asked nothing", u(c->id));
        return;
    }
    const struct asked a = c->asked[0];
    memmove(c->asked, c->asked + 1, --c->asked_count * sizeof c->asked[0]);
    a.told(cs, w, c, &a, r);
}
void clients_told(struct clients *cs, struct world *w, uint16_t node, uint64_t id, struct slice bytes) {
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
        struct client *c = &cs->all[i];
        if (c->id != id) continue;
        if (c->node != node || c->reply_bytes + bytes.bytes > sizeof c->reply) {
            world_fail(w, "R1: client %llu is told by the wrong node or too much", u(id));
            return;
        }
        c->closed |= bytes.bytes == 0;
        if (c->closed) return;
        memcpy(c->reply + c->reply_bytes, bytes.data, bytes.bytes);
        c->reply_bytes += bytes.bytes;
        while (c->reply_bytes > 0 && c->id == id) {
            const char *at = c->reply;
            static struct reply r;
            r.count = 0;
            if (!parse(&at, c->reply + c->reply_bytes, &r, false)) return;
            told(cs, w, c, &r);
            if (c->id != id) return; /* it left at what it was told */
            c->reply_bytes -= (size_t)(at - c->reply);
            memmove(c->reply, at, c->reply_bytes);
        }
        return;
    }
    world_fail(w, "R1: n%u answers client %llu, which is not there", node, u(id));
}

void clients_turn_ended(struct clients *cs, struct world *w, uint16_t node) {
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
        if (cs->all[i].closed && cs->all[i].node == node) client_leaves(cs, w, &cs->all[i]);
    }
}

/* ------------------------------------------------------------------ healing, the end */

void clients_settle(struct clients *cs) {
    memset(cs->settle_done, 0, sizeof cs->settle_done);
}
bool clients_settled(struct clients *cs, struct world *w) {
    bool all = true;
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (w->nodes[i].wiped || !w->nodes[i].up || !check_member(w, i)) continue;
        if (!cs->settle_done[i]) world_client_input(w, i, FIRST_SETTLER + i);
        all = all && cs->settle_done[i];
    }
    return all;
}

static bool somebody_waits(const struct clients *cs) {
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) {
        if (cs->all[i].asked_count > 0) return true;
    }
    return false;
}
struct last_look {
    struct clients *cs;
    struct world *w;
};
static void look(void *context, enum story_group group, uint32_t key) {
    const struct last_look *l = context;
    struct clients *cs = l->cs;
    struct world *w = l->w;
    struct client *c = &cs->all[0];
    if (w->failed) return;
    static const enum lin_kind kinds[STORY_GROUP_END] = {LIN_GETV, LIN_GET, LIN_WOR_GET, LIN_HOLDER, LIN_HOLDER};
    static const char *const words[STORY_GROUP_END] = {"GETV", "GET", "WOR.GET", "LOCK.INFO", "ELECT.LEADER"};
    client_asks(cs, w, c, told_plain, key, (struct lin_op){.kind = kinds[group]}, 0, "%s %s", words[group],
                story_name(cs->story, key));
    const uint32_t number = c->asked[0].op - 1;
    world_client_input(w, c->node, 0); /* a turn */
    for (int i = 0; i < 5000 && c->asked_count > 0 && !w->failed; i++) world_run_until(w, w->now_us + 1000);
    if (!w->failed && story_op(cs->story, number)->outcome != LIN_DONE)
        world_fail(w, "live: n%u does not answer %s %s", c->node, words[group], story_name(cs->story, key));
}
void clients_end(struct clients *cs, struct world *w, uint32_t patience_ms) {
    cs->quiet = true;
    const uint64_t patience = w->now_us + (patience_ms + 5000ull) * 1000ull;
    while (!w->failed && somebody_waits(cs) && w->now_us < patience) world_run_until(w, w->now_us + 20000);
    for (uint32_t i = 0; i < CLIENTS_MAX && !w->failed; i++) {
        const struct client *c = &cs->all[i];
        if (c->asked_count > 0 && w->nodes[c->node].up)
            world_fail(w, "live: client %llu of n%u got no answer for %llu ms", u(c->id), c->node,
                       u((w->now_us - c->asked[0].at_us) / 1000));
    }
    for (uint16_t node = 0; node < w->node_count && !w->failed; node++) {
        if (w->nodes[node].wiped || !w->nodes[node].up || !check_member(w, node)) continue;
        reconnect(cs, w, &cs->all[0]);
        cs->all[0].node = node;
        struct last_look l = {.cs = cs, .w = w};
        story_each_key(cs->story, look, &l);
    }
    if (!w->failed) story_check(cs->story, w);
}
