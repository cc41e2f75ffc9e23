/* clients.h - who uses the cluster in the simulated world, through any node, and what they were told.
 *
 *   plain     write, swap, count, compare-and-delete, read a few keys, with pipelines
 *   sessions  hold a lease each and fight for locks and elections; half-dead ones stop renewing, or everything
 *   proxies   hold a lease each and cache who serves which session (ROUTE.*)
 *   onces     number their commands and repeat them until they are answered (onces.c)
 *   operator  takes nodes in and out (admin.h)
 *   settlers  one at each node: is new work finished?
 *
 * Each seed draws how many of each there are and what they like to do.  What they are told goes to story.h (judged at
 * the end by lin.h) and to check_hold.h and check_route.h (judged at once).  A client whose node dies, or that loses
 * patience, goes to another node; what it had asked may then have happened or not. */
#pragma once
#include "lockd/core/replica.h"
#include "tests/sim/admin.h"
#include "tests/sim/story.h"

enum { PIPELINE_MAX = 4, PLAIN_MAX = 8, SESSIONS_MAX = 4, PROXIES_MAX = 3, ONCES_MAX = 3 };
enum {
    FIRST_MAIN = PLAIN_MAX,
    FIRST_KEEPER = FIRST_MAIN + SESSIONS_MAX,
    FIRST_ONCE = FIRST_KEEPER + SESSIONS_MAX,
    ADMIN = FIRST_ONCE + ONCES_MAX,
    FIRST_PROXY,
    FIRST_NEXT = FIRST_PROXY + PROXIES_MAX,
    FIRST_SETTLER = FIRST_NEXT + PROXIES_MAX,
    CLIENTS_MAX = FIRST_SETTLER + SIM_NODES_MAX
};

struct reply {
    char kind;      /* ':' '+' '-' '$' '*', 'n' nil */
    int64_t number; /* ':' value; '*' elements, all levels; '$' its number if it is one */
    struct slice text;
    uint32_t count; /* of an array: elements, inner ones in their place */
    struct element {
        char kind;
        int64_t number;
        struct slice text;
    } elements[80];
};
struct clients;
struct client;
struct asked;
typedef void told_fn(struct clients *cs, struct world *w, struct client *c, const struct asked *a,
                     const struct reply *r);
struct asked { /* one command on its way */
    told_fn *told;
    uint32_t op; /* 1 + its number in the story; 0 none */
    uint64_t at_us, a, b;
};
struct client {
    uint64_t id; /* of the present connection */
    uint32_t index;
    uint16_t node;
    bool closed;                      /* by its node */
    struct asked asked[PIPELINE_MAX]; /* oldest first */
    uint32_t asked_count;
    uint64_t versions[16]; /* what it last saw, by the key's low bits: for CAS */
    uint64_t values[16];
    char reply[4096];
    size_t reply_bytes;
};
struct session {
    int64_t rate_ppm;                 /* its own clock */
    uint64_t lease, ttl_ms, until_us; /* true time at which its own clock says that the lease ends */
    uint64_t token, token_before;
    bool releasing;             /* it asked to, and does not know the outcome */
    bool holds, mute, election; /* mute: renews no more, and works on */
    uint32_t key;               /* of the lock */
};
enum { ROUTES_MAX = 4, BACKENDS = 3 };
struct proxy {
    int64_t rate_ppm;
    uint64_t lease, ttl_ms;
    uint64_t covered_us; /* true time */
    uint64_t serial;     /* highest seen */
    bool next_out;
    struct binding {
        bool held;
        uint64_t epoch, backend;           /* held */
        uint64_t seen_epoch, seen_backend; /* the newest it was shown */
        /* A MOVE or DROP of that epoch is out, or may come late: it would end a hold that was asked for meanwhile.  It
         * is said again until it is answered. */
        enum { NO_DOUBT, DOUBT_MOVE, DOUBT_DROP } doubt;
        uint64_t doubt_epoch;
        uint32_t doubt_target;
    } bindings[ROUTES_MAX];
};
struct once_client {
    uint64_t lease, seq;
    uint32_t kind;         /* enum once_kind */
    bool answered;         /* the newest one is */
    char line[128];        /* as it was sent, and will be again */
    char line_before[128]; /* the one before it: somebody may ask for that as well */
    uint64_t seq_before;
    uint64_t count, version, token; /* what it knows of its own names: it alone changes them */
};
struct clients {
    struct client all[CLIENTS_MAX];
    struct session sessions[SESSIONS_MAX];
    struct proxy proxies[PROXIES_MAX];
    struct once_client onces[ONCES_MAX];
    struct once_facts *once_facts;
    struct story *story;
    struct hold_facts *holds;
    struct route_facts *routes;
    struct late_facts *lates;
    uint64_t next_id, next_value;
    uint32_t plain_count, reader_count, session_count, proxy_count, once_count; /* readers: the last plain ones */
    uint32_t likes[16];                                                         /* plain clients' mix */
    uint32_t pipeline_ppm, patience_ppm;
    uint64_t ttl_ms_min, ttl_ms_max; /* of the sessions */
    bool settle_done[SIM_NODES_MAX];
    bool quiet; /* nobody asks anything new */
    struct admin admin;
    uint32_t forward_timeout_ms;
    uint64_t stood_us[SIM_NODES_MAX]; /* a SIGSTOP of that node ended last */
    struct replica *(*replica_at)(const struct world *w, uint16_t node);
    struct ballot (*log_ballot)(const struct world *w); /* of the last first entry that was chosen */
};

struct clients *clients_new(struct world *w, struct replica *(*replica_at)(const struct world *w, uint16_t node),
                            struct ballot (*log_ballot)(const struct world *w), uint32_t forward_timeout_ms);
void clients_free(struct clients *cs);
/* Every load_us: who wants to say something gets a turn of its node. */
void clients_load(struct clients *cs, struct world *w);
/* In the node's turn. */
void clients_act(struct clients *cs, struct world *w, uint32_t index);
/* All connections to that node are gone. */
void clients_node_gone(struct clients *cs, struct world *w, uint16_t node);
/* Bytes for a client arrive; none: its node closes the connection instead, once the turn has ended. */
void clients_told(struct clients *cs, struct world *w, uint16_t node, uint64_t id, struct slice bytes);
void clients_turn_ended(struct clients *cs, struct world *w, uint16_t node);
/* New work at every node from here on ... is it done? */
void clients_settle(struct clients *cs);
bool clients_settled(struct clients *cs, struct world *w);
/* Everybody is answered, everything read once more at every node, and all of it judged. */
void clients_end(struct clients *cs, struct world *w, uint32_t patience_ms);

/* ---- among clients.c, sessions.c, proxies.c ---- */
/* One command: a line of words; @CAD stands for the script that compares and deletes, @INC for one that increments. op:
 * see struct asked. */
void client_says(struct clients *cs, struct world *w, struct client *c, told_fn *told, uint32_t op, uint64_t a,
                 uint64_t b, const char *format, ...) __attribute__((format(printf, 8, 9)));
/* How that value is written; some are long: limits count bytes. */
enum { CLIENT_VALUE_MAX = 192 };
void client_value(uint64_t value, char out[CLIENT_VALUE_MAX]);
/* The same as client_says, recorded in the story. */
void client_asks(struct clients *cs, struct world *w, struct client *c, told_fn *told, uint32_t key, struct lin_op op,
                 uint64_t a, const char *format, ...) __attribute__((format(printf, 8, 9)));
/* What the answer says about the story's operation; false: it was an error. */
bool client_hears(struct clients *cs, struct world *w, struct client *c, const struct asked *a, const struct reply *r);
/* Another connection, to a node that is up if there is one. */
void client_leaves(struct clients *cs, struct world *w, struct client *c);
bool reply_is_error(const struct reply *r, const char *word);
/* T4: what is asked now and lasts `ms` by a server's clock ends at this true time by a clock of that rate. */
uint64_t lease_end_us(uint64_t asked_us, uint64_t ms, int64_t rate_ppm);

void session_begins(struct clients *cs, struct world *w, struct session *se);
void session_acts(struct clients *cs, struct world *w, struct client *c, struct session *se);
void session_keeps(struct clients *cs, struct world *w, struct client *c, struct session *se);
void once_acts(struct clients *cs, struct world *w, struct client *c, struct once_client *o);
void proxy_acts(struct clients *cs, struct world *w, struct client *c, struct proxy *p);
void proxy_nexts(struct clients *cs, struct world *w, struct client *c, struct proxy *p);
void proxy_next_lost(struct clients *cs, struct client *c);
