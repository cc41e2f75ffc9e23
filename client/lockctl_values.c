/* lockctl_values.c - lockctl get, set, cas, wor, raw, route, status: one question, one answer. */
#include "client/lockctl.h"
#include "common/must.h"
#include "common/slice.h"
#include <event2/event.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUTE_TTL_MS = 5000, STATUS_TIMEOUT_MS = 2000, STATUS_NODES_MAX = 64 };

static bool is_integer(const struct redisReply *r) {
    return r->type == REDIS_REPLY_INTEGER;
}
static bool is_string(const struct redisReply *r) {
    return r->type == REDIS_REPLY_STRING;
}
static bool is_array(const struct redisReply *r, size_t least) {
    return r->type == REDIS_REPLY_ARRAY && r->elements >= least;
}

/* Open, ask, and leave the client to close. */
static int ask_once(const struct lockctl *ctl, unsigned flags, int argc, const char *const *argv,
                    struct redisReply **ret_reply) {
    struct lockclient *c = open_client(ctl, NULL);
    if (c == NULL) return EXIT_USAGE;
    const int code = ask_lockd(c, ctl, flags, argc, argv, ret_reply);
    lockclient_free(c);
    return code;
}

static int no_options(int argc, char **argv) {
    static const struct option none[] = {{0}};
    while (getopt_long(argc, argv, "", none, NULL) != -1) {
        return usage_error(argv[0], "write -- before words that begin with a dash");
    }
    return EXIT_OK;
}

/* ---- get, set, cas ---- */

static int print_version_and_value(const struct redisReply *version, const struct redisReply *value) {
    printf("%lld ", version->integer);
    print_value(value);
    return EXIT_OK;
}

int lockctl_get(const struct lockctl *ctl, int argc, char **argv) {
    static const struct option options[] = {{"with-version", no_argument, NULL, 'v'}, {0}};
    bool with_version = false;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option != 'v') return usage_error("get", "that is no option of get");
        with_version = true;
    }
    if (argc - optind != 1) return usage_error("get", argc == optind ? "KEY is missing" : "only one KEY is possible");
    const char *words[] = {with_version ? "GETV" : "GET", argv[optind]};
    struct redisReply *reply;
    int code = ask_once(ctl, LOCKCLIENT_REPEATABLE, 2, words, &reply);
    if (code != EXIT_OK) return code;
    if (reply->type == REDIS_REPLY_NIL) {
        complain("'%s' is absent", argv[optind]);
        code = EXIT_REFUSED;
    } else if (!with_version && is_string(reply)) {
        print_value(reply);
    } else if (with_version && is_array(reply, 2) && is_integer(reply->element[0])) {
        code = print_version_and_value(reply->element[0], reply->element[1]);
    } else {
        code = odd_reply(words[0]);
    }
    freeReplyObject(reply);
    return code;
}

int lockctl_set(const struct lockctl *ctl, int argc, char **argv) {
    static const struct option options[] = {
        {"ttl", required_argument, NULL, 't'}, {"nx", no_argument, NULL, 'n'}, {"xx", no_argument, NULL, 'x'}, {0}};
    const char *words[7] = {"SET"};
    const char *condition = NULL;
    uint64_t ttl_ms = 0;
    char number[24];
    int option, count = 3;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 't':
            if (!parse_ms("set", "--ttl", optarg, 1, INT64_MAX / 2, &ttl_ms)) return EXIT_USAGE;
            break;
        case 'n':
        case 'x':
            if (condition != NULL) return usage_error("set", "--nx and --xx exclude each other");
            condition = option == 'n' ? "NX" : "XX";
            break;
        default: return usage_error("set", "write -- before a VALUE that begins with a dash");
        }
    }
    if (argc - optind != 2) return usage_error("set", "KEY and VALUE are needed, and nothing more");
    words[1] = argv[optind];
    words[2] = argv[optind + 1];
    if (condition != NULL) words[count++] = condition;
    if (ttl_ms > 0) {
        snprintf(number, sizeof number, "%llu", (unsigned long long)ttl_ms);
        words[count++] = "PX";
        words[count++] = number;
    }
    struct redisReply *reply;
    int code = ask_once(ctl, 0, count, words, &reply);
    if (code != EXIT_OK) return code;
    if (reply->type == REDIS_REPLY_NIL) {
        complain("'%s' %s", words[1], condition != NULL && condition[0] == 'N' ? "exists already" : "does not exist");
        code = EXIT_REFUSED;
    }
    freeReplyObject(reply);
    return code;
}

int lockctl_cas(const struct lockctl *ctl, int argc, char **argv) {
    uint64_t version;
    if (no_options(argc, argv) != EXIT_OK) return EXIT_USAGE;
    if (argc - optind != 3) return usage_error("cas", "KEY, VERSION and VALUE are needed, and nothing more");
    if (!slice_to_u64(slice_str(argv[optind + 1]), &version) || version > INT64_MAX) {
        return usage_error("cas", "VERSION '%s' is not a version (0: absent)", argv[optind + 1]);
    }
    const char *words[] = {"CAS", argv[optind], argv[optind + 1], argv[optind + 2]};
    struct redisReply *reply;
    int code = ask_once(ctl, 0, 4, words, &reply);
    if (code != EXIT_OK) return code;
    if (!is_array(reply, 2) || !is_integer(reply->element[0]) || !is_integer(reply->element[1])) {
        code = odd_reply("CAS");
    } else if (reply->element[0]->integer == 1) {
        print_value(reply->element[1]);
    } else if (reply->elements < 3) {
        code = odd_reply("CAS");
    } else {
        code = EXIT_REFUSED;
        if (reply->element[1]->integer == 0) {
            complain("'%s' is absent, not at version %s", words[1], words[2]);
        } else {
            complain("'%s' is at version %lld, not %s", words[1], reply->element[1]->integer, words[2]);
        }
        print_version_and_value(reply->element[1], reply->element[2]);
    }
    freeReplyObject(reply);
    return code;
}

/* ---- wor ---- */

static int wor_get(const struct lockctl *ctl, const char *name) {
    const char *words[] = {"WOR.GET", name};
    struct redisReply *reply;
    int code = ask_once(ctl, LOCKCLIENT_REPEATABLE, 2, words, &reply);
    if (code != EXIT_OK) return code;
    if (reply->type == REDIS_REPLY_NIL) {
        complain("nothing was written to '%s' yet", name);
        code = EXIT_REFUSED;
    } else if (is_array(reply, 2) && is_string(reply->element[1])) {
        print_value(reply->element[1]);
    } else {
        code = odd_reply(words[0]);
    }
    freeReplyObject(reply);
    return code;
}

static int wor_set(const struct lockctl *ctl, const char *name, const char *value) {
    const char *words[] = {"WOR.SET", name, value};
    struct redisReply *reply;
    int code = ask_once(ctl, 0, 3, words, &reply);
    if (code != EXIT_OK) return code;
    if (is_array(reply, 3) && is_integer(reply->element[0]) && is_string(reply->element[2])) {
        print_value(reply->element[2]);
        if (reply->element[0]->integer != 1) {
            complain("'%s' was written before", name);
            code = EXIT_REFUSED;
        }
    } else {
        code = odd_reply(words[0]);
    }
    freeReplyObject(reply);
    return code;
}

int lockctl_wor(const struct lockctl *ctl, int argc, char **argv) {
    if (no_options(argc, argv) != EXIT_OK) return EXIT_USAGE;
    const int count = argc - optind;
    char **words = argv + optind;
    if (count == 2 && strcmp(words[0], "get") == 0) return wor_get(ctl, words[1]);
    if (count == 3 && strcmp(words[0], "set") == 0) return wor_set(ctl, words[1], words[2]);
    return usage_error("wor", "'get NAME' or 'set NAME VALUE' is needed");
}

/* ---- raw ---- */

static void print_reply(FILE *out, const struct redisReply *r, int depth) {
    switch (r->type) {
    case REDIS_REPLY_NIL: fputs("(nil)\n", out); break;
    case REDIS_REPLY_ERROR: fprintf(out, "(error) %s\n", r->str); break;
    case REDIS_REPLY_INTEGER: fprintf(out, "%lld\n", r->integer); break;
    case REDIS_REPLY_ARRAY:
        if (r->elements == 0) fputs("(empty)\n", out);
        for (size_t i = 0; i < r->elements; i++) {
            fprintf(out, "%*s%zu) ", i == 0 ? 0 : depth * 4, "", i + 1);
            print_reply(out, r->element[i], depth + 1);
        }
        break;
    default:
        fwrite(r->str, 1, r->len, out);
        fputc('\n', out);
        break;
    }
}

int lockctl_raw(const struct lockctl *ctl, int argc, char **argv) {
    const int first = argc > 1 && strcmp(argv[1], "--") == 0 ? 2 : 1;
    if (argc <= first) return usage_error("raw", "a WORD is missing");
    struct redisReply *reply;
    const int code = ask_once(ctl, 0, argc - first, (const char *const *)argv + first, &reply);
    if (code != EXIT_OK) return code;
    print_reply(stdout, reply, 0);
    freeReplyObject(reply);
    return EXIT_OK;
}

/* ---- route ---- */

struct short_lease {
    bool decided, granted;
    char why[256];
};
static void on_short_lease(struct lockclient_lease *lease, enum lockclient_lease_event event, const char *why,
                           void *arg) {
    struct short_lease *s = arg;
    (void)lease;
    if (event == LOCKCLIENT_LEASE_GRANTED) s->granted = true;
    if (event == LOCKCLIENT_LEASE_GRANTED || event == LOCKCLIENT_LEASE_REFUSED) s->decided = true;
    snprintf(s->why, sizeof s->why, "%s", why);
}

/* A question about a binding hands a hold of it to the asker's lease: we take one for the question only. */
static struct lockclient_lease *take_short_lease(struct lockclient *c, const struct lockctl *ctl, struct short_lease *s,
                                                 char id[24]) {
    *s = (struct short_lease){.decided = false};
    struct lockclient_lease *lease = lockclient_lease_new(c, ROUTE_TTL_MS, "lockctl", on_short_lease, s);
    while (!s->decided) must(event_base_loop(lockclient_base(c), EVLOOP_ONCE) >= 0);
    if (s->granted) {
        snprintf(id, 24, "%lld", (long long)lockclient_lease_id(lease));
        return lease;
    }
    complain("no lease from %s: %s; see 'lockctl status'", ctl->server, s->why);
    lockclient_lease_free(lease);
    return NULL;
}

static bool is_binding(const struct redisReply *r) {
    if (!is_array(r, 4) || !is_string(r->element[0])) return false;
    for (size_t i = 1; i < 4; i++) {
        if (!is_integer(r->element[i])) return false;
    }
    for (size_t i = 4; i < r->elements; i++) {
        if (!is_string(r->element[i])) return false;
    }
    return true;
}

static void print_binding(const struct redisReply *r) {
    printf("backend %s\nepoch %lld\nrevision %lld\nshard", r->element[0]->str, r->element[1]->integer,
           r->element[2]->integer);
    for (size_t i = 4; i < r->elements; i++) printf(" %s", r->element[i]->str);
    putchar('\n');
}

static int get_binding(struct lockclient *c, const struct lockctl *ctl, const char *pool, const char *session,
                       const char *lease, struct redisReply **ret_reply) {
    const char *words[] = {"ROUTE.GET", pool, session, "LEASE", lease};
    struct redisReply *reply;
    const int code = ask_lockd(c, ctl, LOCKCLIENT_REPEATABLE | LOCKCLIENT_WAITS, 5, words, &reply);
    if (code != EXIT_OK) return code;
    if (is_binding(reply)) {
        *ret_reply = reply;
        return EXIT_OK;
    }
    const bool absent = reply->type == REDIS_REPLY_NIL;
    freeReplyObject(reply);
    if (!absent) return odd_reply(words[0]);
    complain("session '%s' of pool '%s' is not bound", session, pool);
    return EXIT_REFUSED;
}

static int route_move(struct lockclient *c, const struct lockctl *ctl, char **names, bool force, const char *lease) {
    struct redisReply *reply;
    int code = get_binding(c, ctl, names[0], names[1], lease, &reply);
    if (code != EXIT_OK) return code;
    char epoch[24];
    snprintf(epoch, sizeof epoch, "%lld", reply->element[1]->integer);
    freeReplyObject(reply);
    const char *words[] = {"ROUTE.MOVE", names[0], names[1], epoch, "LEASE", lease, names[2], "FORCE"};
    code = ask_lockd(c, ctl, LOCKCLIENT_REPEATABLE | LOCKCLIENT_WAITS, force ? 8 : 7, words, &reply);
    if (code == EXIT_REFUSED && !force) complain("--force moves it away from a backend in service, too");
    if (code != EXIT_OK) return code;
    if (!is_binding(reply)) {
        code = odd_reply(words[0]);
    } else {
        print_binding(reply);
        if (strcmp(reply->element[0]->str, names[2]) != 0) {
            complain("somebody else moved it meanwhile; look, and try again");
            code = EXIT_REFUSED;
        }
    }
    freeReplyObject(reply);
    return code;
}

static int route_get(struct lockclient *c, const struct lockctl *ctl, char **names, const char *lease) {
    struct redisReply *reply;
    const int code = get_binding(c, ctl, names[0], names[1], lease, &reply);
    if (code != EXIT_OK) return code;
    print_binding(reply);
    freeReplyObject(reply);
    return EXIT_OK;
}

int lockctl_route(const struct lockctl *ctl, int argc, char **argv) {
    static const struct option options[] = {{"force", no_argument, NULL, 'f'}, {0}};
    bool force = false;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option != 'f') return usage_error("route", "that is no option of route");
        force = true;
    }
    const int count = argc - optind;
    char **words = argv + optind;
    const bool get = count == 3 && strcmp(words[0], "get") == 0, move = count == 4 && strcmp(words[0], "move") == 0;
    if (!get && !move) return usage_error("route", "'get POOL SESSION' or 'move POOL SESSION TARGET' is needed");
    if (get && force) return usage_error("route", "--force is for move");
    struct lockclient *c = open_client(ctl, NULL);
    if (c == NULL) return EXIT_USAGE;
    struct short_lease s;
    char id[24];
    struct lockclient_lease *lease = take_short_lease(c, ctl, &s, id);
    int code = s.why[0] == 'E' ? EXIT_REFUSED : EXIT_NOT_RUN; /* ERR: by content */
    if (lease != NULL) {
        code = get ? route_get(c, ctl, words + 1, id) : route_move(c, ctl, words + 1, force, id);
        const char *revoke[] = {"LEASE.REVOKE", id}; /* with our hold; if it fails the lease ends by itself */
        (void)lockclient_call(c, LOCKCLIENT_REPEATABLE, ROUTE_TTL_MS, 2, revoke, NULL, NULL);
        lockclient_lease_free(lease);
    }
    lockclient_free(c);
    return code;
}

/* ---- status ---- */

static const struct {
    const char *field, *title;
} columns[] = {{"role", "ROLE"},       {"node", "NODE"},         {"leader", "LEADER"}, {"ballot", "BALLOT"},
               {"applied", "APPLIED"}, {"revision", "REVISION"}, {"formed", "FORMED"}, {"store-id", "STORE-ID"}};
enum { COLUMN_COUNT = sizeof columns / sizeof columns[0], LEADER_COLUMN = 2, CELL_BYTES = 48 };

struct node {
    struct lockclient *client;
    char address[300];
    bool answered, knows_leader;
    char cells[COLUMN_COUNT][CELL_BYTES];
    char trouble[128]; /* instead of cells */
    char *everything;  /* printed text; from open_memstream */
};

static void set_cell(char cell[CELL_BYTES], const struct redisReply *r) {
    if (r == NULL || r->type == REDIS_REPLY_NIL)
        snprintf(cell, CELL_BYTES, "-");
    else if (is_integer(r))
        snprintf(cell, CELL_BYTES, "%lld", r->integer);
    else if (r->str != NULL)
        snprintf(cell, CELL_BYTES, "%s", r->str);
    else
        snprintf(cell, CELL_BYTES, "...");
}

static const struct redisReply *field(const struct redisReply *map, const char *name) {
    for (size_t i = 0; i + 1 < map->elements; i += 2) {
        if (map->element[i]->str != NULL && strcmp(map->element[i]->str, name) == 0) return map->element[i + 1];
    }
    return NULL;
}

static bool names_a_leader(const char *cell) {
    static const char *const nobody[] = {"", "-", "-1", "none"};
    for (size_t i = 0; i < sizeof nobody / sizeof nobody[0]; i++) {
        if (strcmp(cell, nobody[i]) == 0) return false;
    }
    return true;
}

static void keep_status(struct node *n, const struct redisReply *map) {
    for (size_t i = 0; i < COLUMN_COUNT; i++) set_cell(n->cells[i], field(map, columns[i].field));
    n->knows_leader = names_a_leader(n->cells[LEADER_COLUMN]);
    size_t bytes;
    FILE *out = open_memstream(&n->everything, &bytes);
    must(out != NULL);
    for (size_t i = 0; i + 1 < map->elements; i += 2) {
        if (map->element[i]->str == NULL) continue;
        fprintf(out, "  %-16s", map->element[i]->str);
        print_reply(out, map->element[i + 1], 5);
    }
    must(fclose(out) == 0);
}

static void on_status(struct lockclient *c, enum lockclient_result result, const struct redisReply *reply, void *arg) {
    struct node *n = arg;
    (void)c;
    n->answered = true;
    if (result == LOCKCLIENT_REPLY && reply->type == REDIS_REPLY_ARRAY) {
        keep_status(n, reply);
    } else if (reply != NULL && reply->type == REDIS_REPLY_ERROR) {
        snprintf(n->trouble, sizeof n->trouble, "%s", reply->str);
    } else {
        snprintf(n->trouble, sizeof n->trouble, "%s",
                 result == LOCKCLIENT_NOT_RUN     ? "unreachable"
                 : result == LOCKCLIENT_UNCERTAIN ? "no answer"
                                                  : "not a lockd");
    }
}

static void print_table(const struct node *nodes, size_t count) {
    size_t widths[COLUMN_COUNT], address_width = strlen("SERVER");
    for (size_t i = 0; i < COLUMN_COUNT; i++) {
        widths[i] = strlen(columns[i].title);
        for (size_t n = 0; n < count; n++) {
            if (strlen(nodes[n].cells[i]) > widths[i]) widths[i] = strlen(nodes[n].cells[i]);
        }
    }
    for (size_t n = 0; n < count; n++) {
        if (strlen(nodes[n].address) > address_width) address_width = strlen(nodes[n].address);
    }
    printf("%-*s", (int)address_width, "SERVER");
    widths[COLUMN_COUNT - 1] = 0; /* no blanks at the end of a line */
    for (size_t i = 0; i < COLUMN_COUNT; i++) printf("  %-*s", (int)widths[i], columns[i].title);
    for (size_t n = 0; n < count; n++) {
        printf("\n%-*s", (int)address_width, nodes[n].address);
        if (nodes[n].trouble[0] != '\0') printf("  %s", nodes[n].trouble);
        for (size_t i = 0; i < COLUMN_COUNT && nodes[n].trouble[0] == '\0'; i++) {
            printf("  %-*s", (int)widths[i], nodes[n].cells[i]);
        }
    }
    putchar('\n');
}

/* Each node has a client of its own on one loop, so that a dead one costs one timeout and not several. */
static int ask_nodes(const struct lockctl *ctl, struct event_base *base, struct node *nodes, size_t *ret_count) {
    const char *at = ctl->server;
    for (size_t count = 0;; at++) {
        struct node *n = &nodes[count];
        const size_t bytes = strcspn(at, ",");
        if (count == STATUS_NODES_MAX || bytes >= sizeof n->address) {
            return usage_error("status", "--server has too many addresses, or one that is too long");
        }
        memcpy(n->address, at, bytes);
        const struct lockctl one = {.server = n->address,
                                    .timeout_ms = ctl->timeout_ms > 0 ? ctl->timeout_ms : STATUS_TIMEOUT_MS};
        n->client = open_client(&one, base);
        if (n->client == NULL) return EXIT_USAGE;
        *ret_count = ++count;
        lockclient_sendv(n->client, LOCKCLIENT_REPEATABLE, 0, on_status, n, "NODE.STATUS", NULL);
        at += bytes;
        if (*at == '\0') return EXIT_OK;
    }
}

static bool all_answered(const struct node *nodes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (!nodes[i].answered) return false;
    }
    return true;
}

static int print_nodes(const struct node *nodes, size_t count, bool verbose) {
    bool led = false;
    print_table(nodes, count);
    for (size_t i = 0; i < count; i++) {
        led |= nodes[i].knows_leader;
        if (verbose && nodes[i].everything != NULL) printf("\n%s\n%s", nodes[i].address, nodes[i].everything);
    }
    if (led) return EXIT_OK;
    complain("no node knows a leader: most nodes are down, or cannot reach each other");
    return EXIT_NOT_RUN;
}

int lockctl_status(const struct lockctl *ctl, int argc, char **argv) {
    static const struct option options[] = {{"verbose", no_argument, NULL, 'v'}, {0}};
    bool verbose = false;
    int option;
    while ((option = getopt_long(argc, argv, "v", options, NULL)) != -1) {
        if (option != 'v') return usage_error("status", "that is no option of status");
        verbose = true;
    }
    if (argc != optind) return usage_error("status", "status takes no words; give nodes by --server");
    struct event_base *base = event_base_new();
    struct node *nodes = calloc(STATUS_NODES_MAX, sizeof *nodes);
    must(nodes != NULL && base != NULL);
    size_t count = 0;
    int code = ask_nodes(ctl, base, nodes, &count);
    while (code == EXIT_OK && !all_answered(nodes, count)) must(event_base_loop(base, EVLOOP_ONCE) >= 0);
    if (code == EXIT_OK) code = print_nodes(nodes, count, verbose);
    for (size_t i = 0; i < count; i++) {
        lockclient_free(nodes[i].client);
        free(nodes[i].everything);
    }
    free(nodes);
    event_base_free(base);
    return code;
}
