/* story.c - see story.h.  Words in, effects on the town, lines out. */
#include "tests/scenario/story.h"
#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "tests/scenario/town.h"

enum {
    CLIENTS_MAX = 64,
    NAMES_MAX = 64,
    WORDS_MAX = 64,
    LINE_MAX_BYTES = 2048,
    TALLY_MAX = 16,
    ANSWER_MS = 200,       /* how long `a: COMMAND` waits */
    REVISION_START = 1000, /* so that a revision is not taken for a count */
    ELECTION_MS = 5000
};

struct client {
    char name[16];
    uint64_t id; /* 0: not connected */
    struct buf bytes;
    uint32_t answers; /* that came in since the last command that waits */
};
struct name {
    char name[16];
    int64_t value;
};
struct tally {
    char text[256];
    uint32_t count;
};
struct words {
    char text[LINE_MAX_BYTES];
    uint32_t count;
    char *word[WORDS_MAX];
};

static struct client clients[CLIENTS_MAX];
static struct name names[NAMES_MAX];
static uint32_t client_count, name_count;
static struct buf *out;       /* lines of the block at work */
static struct tally *tallies; /* not NULL: replies are counted instead of printed */
static int64_t found_integer; /* of the newest reply: the first that is a revision, else the first; what `let` names */
static bool has_integer;
static int crashed; /* the node that crashed last */
static bool good;

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...) {
    char text[LINE_MAX_BYTES * 2];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    buf_append_str(out, text);
    buf_append_str(out, "\n");
}

static void wrong(const char *what, const char *word) {
    say("NOT UNDERSTOOD: %s%s%s", what, word[0] != '\0' ? ": " : "", word);
    good = false;
}

/* ---- replies as text ---- */

static bool is_revision(int64_t value) {
    uint64_t revision = 0;
    for (uint16_t i = 0; i < town_count(); i++) {
        if (!town_is_up(i)) continue;
        const uint64_t r = keyspace_revision(replica_keyspace(town_replica(i)));
        if (r > revision) revision = r;
    }
    return value > REVISION_START && (uint64_t)value <= revision;
}

static void number_text(int64_t value, struct buf *text) {
    for (uint32_t i = 0; i < name_count; i++) {
        if (names[i].value != value) continue;
        buf_printf(text, "$%s", names[i].name);
        return;
    }
    if (is_revision(value))
        buf_append_str(text, "#");
    else
        buf_printf(text, "%" PRId64, value);
}

/* Text with numbers in it. */
static void error_text(const char *data, size_t bytes, struct buf *text) {
    for (size_t i = 0; i < bytes;) {
        size_t digits = 0;
        while (i + digits < bytes && isdigit((unsigned char)data[i + digits])) digits++;
        if (digits >= 4 && digits < 18)
            number_text(strtoll(data + i, NULL, 10), text);
        else
            buf_append(text, data + i, digits > 0 ? digits : 1);
        i += digits > 0 ? digits : 1;
    }
}

/* The reply at the start of data, as text; 0: it is not whole yet.  Returns its length. */
static size_t reply_text(const char *data, size_t bytes, struct buf *text) {
    const char *end = bytes > 0 ? memmem(data, bytes, "\r\n", 2) : NULL;
    if (end == NULL) return 0;
    size_t used = (size_t)(end - data) + 2;
    const long long n = strtoll(data + 1, NULL, 10);
    switch (data[0]) {
    case '+': buf_append(text, data + 1, used - 3); return used;
    case '-':
        buf_append_str(text, "error ");
        error_text(data + 1, used - 3, text);
        return used;
    case ':':
        if (!has_integer || (!is_revision(found_integer) && is_revision(n))) found_integer = n;
        has_integer = true;
        number_text(n, text);
        return used;
    case '$':
        if (n < 0) {
            buf_append_str(text, "nil");
            return used;
        }
        if (bytes < used + (size_t)n + 2) return 0;
        buf_append(text, data + used, (size_t)n);
        return used + (size_t)n + 2;
    default: break;
    }
    if (n < 0) {
        buf_append_str(text, "nil");
        return used;
    }
    buf_append_str(text, "[");
    for (long long i = 0; i < n; i++) {
        if (i > 0) buf_append_str(text, " ");
        const size_t part = reply_text(data + used, bytes - used, text);
        if (part == 0) return 0;
        used += part;
    }
    buf_append_str(text, "]");
    return used;
}

static void heard(const struct client *c, const char *what) {
    if (tallies == NULL) {
        say("%s: %s", c->name, what);
        return;
    }
    for (uint32_t i = 0; i < TALLY_MAX; i++) {
        if (tallies[i].count > 0 && strcmp(tallies[i].text, what) != 0) continue;
        snprintf(tallies[i].text, sizeof tallies[i].text, "%s", what);
        tallies[i].count++;
        return;
    }
}

static struct client *client_of(uint64_t id) {
    for (uint32_t i = 0; i < client_count; i++)
        if (clients[i].id == id) return &clients[i];
    return NULL;
}

static void on_reply(uint64_t id, struct slice bytes) {
    struct client *c = client_of(id);
    if (c == NULL) return;
    buf_append_slice(&c->bytes, bytes);
    for (;;) {
        struct buf text = {.alloc = heap_alloc()};
        const size_t used = reply_text(c->bytes.data, c->bytes.bytes, &text);
        if (used > 0) {
            buf_append(&text, "", 1);
            heard(c, text.data);
            c->answers++;
            c->bytes.bytes -= used;
            memmove(c->bytes.data, c->bytes.data + used, c->bytes.bytes);
        }
        buf_release(&text);
        if (used == 0) return;
    }
}

static void on_closed(uint64_t id) {
    struct client *c = client_of(id);
    if (c == NULL) return;
    c->id = 0;
    buf_clear(&c->bytes);
    heard(c, "connection lost");
    c->answers++;
}

/* ---- words ---- */

/* Split at spaces; "..." is one word, \" and \\ inside it stand for themselves; $NAME becomes its value, $STORE3 the
 * store id of node 3. */
static void split(const char *line, struct words *w) {
    size_t at = 0;
    *w = (struct words){0};
    while (*line != '\0' && w->count < WORDS_MAX) {
        while (*line == ' ') line++;
        if (*line == '\0') break;
        const bool quoted = *line == '"';
        w->word[w->count++] = &w->text[at];
        line += quoted;
        while (*line != '\0' && *line != (quoted ? '"' : ' ') && at + 32 < sizeof w->text) {
            if (quoted && *line == '\\') line++;
            uint32_t i = 0;
            size_t bytes = 0;
            if (*line == '$') {
                while (isalnum((unsigned char)line[1 + bytes])) bytes++;
                for (i = 0; i < name_count; i++)
                    if (strlen(names[i].name) == bytes && memcmp(names[i].name, line + 1, bytes) == 0) break;
            }
            const int store = bytes == 6 && memcmp(line + 1, "STORE", 5) == 0 ? line[6] - '0' : 0;
            if (store >= 1 && store <= town_count()) {
                at += (size_t)snprintf(&w->text[at], 24, "%016" PRIx64, town_store_id((uint16_t)(store - 1)));
                line += 1 + bytes;
            } else if (bytes > 0 && i < name_count) {
                at += (size_t)snprintf(&w->text[at], 24, "%" PRId64, names[i].value);
                line += 1 + bytes;
            } else {
                w->text[at++] = *line++;
            }
        }
        if (quoted && *line == '"') line++;
        w->text[at++] = '\0';
    }
}

static bool is(const struct words *w, uint32_t at, const char *word) {
    return at < w->count && strcmp(w->word[at], word) == 0;
}

/* "200ms", "5s", "2min"; UINT64_MAX when it is none of these. */
static uint64_t time_of(const struct words *w, uint32_t at) {
    if (at >= w->count) return UINT64_MAX;
    char *unit;
    const uint64_t n = strtoull(w->word[at], &unit, 10);
    if (unit == w->word[at]) return UINT64_MAX;
    if (strcmp(unit, "ms") == 0) return n;
    if (strcmp(unit, "s") == 0) return n * 1000;
    return strcmp(unit, "min") == 0 ? n * 60000 : UINT64_MAX;
}

static int leader(void) {
    int found = -1;
    for (uint16_t i = 0; i < town_count(); i++) {
        if (!town_is_up(i) || !replica_is_leader(town_replica(i))) continue;
        if (found < 0 || ballot_compare(paxos_ballot(replica_paxos(town_replica(i))),
                                        paxos_ballot(replica_paxos(town_replica((uint16_t)found)))) > 0)
            found = i;
    }
    return found;
}

/* A number, `leader`, `follower` (the first that is up and does not lead) or `crashed`; -1: there is none such. */
static int node_of(const struct words *w, uint32_t at) {
    if (at >= w->count) return -1;
    const char *word = w->word[at];
    if (strcmp(word, "leader") == 0) return leader();
    if (strcmp(word, "crashed") == 0) return crashed;
    if (strcmp(word, "follower") == 0) {
        for (uint16_t i = 0; i < town_count(); i++)
            if (town_is_up(i) && !town_is_paused(i) && i != leader()) return i;
        return -1;
    }
    const int number = isdigit((unsigned char)word[0]) ? atoi(word) : 0;
    return number >= 1 && number <= town_count() ? number - 1 : -1;
}

static struct client *client_named(const char *name) {
    for (uint32_t i = 0; i < client_count; i++)
        if (strcmp(clients[i].name, name) == 0) return &clients[i];
    return NULL;
}

/* ---- commands ---- */

static bool has_answer(void *context) {
    const struct client *c = context;
    return c->answers > 0;
}

static void client_sends(struct client *c, const struct words *w, uint32_t from) {
    struct slice argv[WORDS_MAX];
    uint32_t argc = 0;
    for (uint32_t i = from; i < w->count; i++) argv[argc++] = slice_str(w->word[i]);
    c->answers = 0;
    if (argc == 0)
        wrong("a client says nothing", c->name);
    else if (c->id == 0)
        heard(c, "not connected");
    else
        town_command(c->id, argc, argv);
}

/* `a: COMMAND`: send, and wait for the answer a short while. */
static void client_asks(struct client *c, const struct words *w, uint32_t from) {
    client_sends(c, w, from);
    if (c->id == 0) return;
    if (!has_answer(c) && !town_run(ANSWER_MS, has_answer, c)) heard(c, "(waits)");
}

static void do_client(const struct words *w) { /* client a at 1 */
    const int node = node_of(w, 3);
    if (!is(w, 2, "at") || node < 0 || strlen(w->word[1]) >= sizeof clients[0].name) {
        wrong("client NAME at NODE", "");
        return;
    }
    struct client *c = client_named(w->word[1]);
    if (c == NULL) {
        must(client_count < CLIENTS_MAX);
        c = &clients[client_count++];
        snprintf(c->name, sizeof c->name, "%s", w->word[1]);
        c->bytes.alloc = heap_alloc();
    }
    if (c->id != 0) town_disconnect(c->id);
    buf_clear(&c->bytes);
    c->id = town_connect((uint16_t)node);
    if (c->id == 0) say("%s: node %d does not answer", c->name, node + 1);
}

static bool candidate_leads(void *context) {
    const int *node = context;
    return leader() == *node;
}

static void do_elect(const struct words *w) { /* elect 2 */
    int node = node_of(w, 1);
    if (node < 0) {
        wrong("elect NODE", "");
        return;
    }
    town_favour(node);
    const bool elected = candidate_leads(&node) || town_run(ELECTION_MS, candidate_leads, &node);
    town_favour(-1);
    if (!elected) say("node %d is not elected", node + 1);
}

static void do_nodes(const struct words *w) { /* nodes 3 | nodes 3 off | nodes 3 of 4: one more for later */
    const int count = w->count > 1 ? atoi(w->word[1]) : 0,
              all = is(w, 2, "of") && w->count > 3 ? atoi(w->word[3]) : count;
    if (count < 1 || all < count || all > PAXOS_NODES_MAX || town_count() > 0) {
        wrong("nodes COUNT [of COUNT], once", "");
        return;
    }
    static const struct town_sink sink = {.reply = on_reply, .closed = on_closed};
    town_open((uint16_t)all, (uint16_t)count);
    town_listen(&sink);
    if (is(w, 2, "off")) return;
    for (uint16_t i = 0; i < count; i++) town_start(i);
    struct words elect;
    split("elect 1", &elect);
    do_elect(&elect);
    const uint64_t id = town_connect(0); /* nobody's: its replies are not heard */
    const struct slice argv[] = {slice_str("PERSIST"), slice_str("nothing")};
    for (int i = 0; i < REVISION_START; i++) town_command(id, 2, argv);
    (void)town_run(1000, NULL, NULL);
    town_disconnect(id);
    (void)town_run(100, NULL, NULL);
    for (uint16_t i = 0; i < all; i++) (void)town_notes(i);
}

static void do_node(const struct words *w) { /* start|crash|pause|resume|wipe NODE */
    const int node = node_of(w, 1);
    const bool up = node >= 0 && town_is_up((uint16_t)node);
    if (node < 0 || up == (is(w, 0, "start") || is(w, 0, "wipe"))) {
        wrong(node < 0 ? "no such node" : up ? "it is up" : "it is down", w->count > 1 ? w->word[1] : "");
        return;
    }
    if (is(w, 0, "start")) town_start((uint16_t)node);
    if (is(w, 0, "wipe")) town_wipe((uint16_t)node);
    if (is(w, 0, "pause")) town_pause((uint16_t)node);
    if (is(w, 0, "resume")) town_resume((uint16_t)node);
    if (!is(w, 0, "crash")) return;
    crashed = node;
    town_crash((uint16_t)node);
}

static void on_link(const struct words *w, uint16_t from, uint16_t to) {
    if (from == to) return;
    if (is(w, 0, "cut")) town_cut(from, to);
    if (is(w, 0, "hold")) town_hold(from, to);
    if (is(w, 0, "heal")) town_heal(from, to);
    if (is(w, 0, "twice")) town_twice(from, to, true);
    if (is(w, 0, "once")) town_twice(from, to, false);
}

/* cut|hold|heal|twice|once A -> B | A <-> B (a node or `all`), heal alone: everything */
static void do_link(const struct words *w) {
    const bool every = w->count == 1 && is(w, 0, "heal");
    const int a = node_of(w, 1), b = node_of(w, 3);
    const bool all_a = every || is(w, 1, "all"), all_b = every || is(w, 3, "all"), both = is(w, 2, "<->");
    if (!every && ((a < 0 && !all_a) || (b < 0 && !all_b) || (!both && !is(w, 2, "->")))) {
        wrong("cut|hold|heal|twice|once NODE -> NODE", "");
        return;
    }
    for (uint16_t i = 0; i < town_count(); i++)
        for (uint16_t k = 0; k < town_count(); k++) {
            if ((all_a || i == a) && (all_b || k == b)) on_link(w, i, k);
            if (both && (all_a || k == a) && (all_b || i == b)) on_link(w, i, k);
        }
}

static void do_disk(const struct words *w) { /* disk 1 hangs | works | slow 200ms | left 500 */
    const int node = node_of(w, 1);
    const uint64_t ms = time_of(w, 3);
    if (node >= 0 && is(w, 2, "hangs"))
        town_disk((uint16_t)node, TOWN_DISK_HANGS, TOWN_DISK_MS);
    else if (node >= 0 && is(w, 2, "works"))
        town_disk((uint16_t)node, TOWN_DISK_WORKS, TOWN_DISK_MS);
    else if (node >= 0 && is(w, 2, "slow") && ms != UINT64_MAX)
        town_disk((uint16_t)node, TOWN_DISK_WORKS, ms);
    else if (node >= 0 && is(w, 2, "left") && w->count == 4)
        town_disk_left((uint16_t)node, strtoull(w->word[3], NULL, 10));
    else
        wrong("disk NODE hangs|works|slow TIME|left BYTES", "");
}

static void do_run(const struct words *w) { /* run 200ms */
    const uint64_t ms = time_of(w, 1);
    if (ms == UINT64_MAX)
        wrong("run TIME", "");
    else
        (void)town_run(ms, NULL, NULL);
}

static bool somebody_leads(void *context) {
    (void)context;
    return leader() >= 0;
}

static void do_leader(const struct words *w) { /* leader | leader within 2s */
    const uint64_t ms = time_of(w, 2);
    if (is(w, 1, "within") && ms != UINT64_MAX) {
        if (somebody_leads(NULL) || town_run(ms, somebody_leads, NULL))
            say("somebody leads");
        else
            say("nobody leads");
    } else if (leader() < 0) {
        say("nobody leads");
    } else {
        say("node %d leads", leader() + 1);
    }
}

static const char *state_of(uint16_t node) {
    if (!town_is_up(node)) return "down";
    struct replica *r = town_replica(node);
    if (replica_identity(r) == IDENTITY_OUTCAST) return "outcast";
    if (replica_identity(r) == IDENTITY_JOINING) return "joining";
    if (replica_is_leader(r)) return town_is_paused(node) ? "paused leader" : "leader";
    return town_is_paused(node) ? "paused" : "follower";
}

static void do_state(const struct words *w) {
    (void)w;
    char line[256] = "";
    for (uint16_t i = 0; i < town_count(); i++)
        snprintf(line + strlen(line), sizeof line - strlen(line), "%s%u %s", i > 0 ? ", " : "", i + 1u, state_of(i));
    say("%s", line);
}

static bool counts(uint16_t node) {
    return town_is_up(node) && !town_is_paused(node) && replica_identity(town_replica(node)) == IDENTITY_FORMED;
}

static uint64_t hash_of(uint16_t node) {
    return keyspace_hash(replica_keyspace(town_replica(node)));
}

static bool all_agree(void *context) {
    (void)context;
    int first = -1;
    for (uint16_t i = 0; i < town_count(); i++) {
        if (!counts(i)) continue;
        if (first >= 0 && hash_of(i) != hash_of((uint16_t)first)) return false;
        if (first < 0) first = i;
    }
    return true;
}

static void do_agree(const struct words *w) { /* agree | agree within 2s: same state on all that run */
    const uint64_t ms = time_of(w, 2);
    if (is(w, 1, "within") && ms != UINT64_MAX && !all_agree(NULL)) (void)town_run(ms, all_agree, NULL);
    char line[256] = "";
    int first = -1;
    for (uint16_t i = 0; i < town_count(); i++) {
        if (!counts(i)) continue;
        snprintf(line + strlen(line), sizeof line - strlen(line), "%s%u",
                 first < 0                                ? ""
                 : hash_of(i) == hash_of((uint16_t)first) ? " = "
                                                          : " /= ",
                 i + 1u);
        if (first < 0) first = i;
    }
    say("%s", line);
}

static void do_checkpoints(const struct words *w) { /* checkpoints: which nodes have one, in order of slots */
    (void)w;
    char line[256] = "";
    for (uint16_t i = 0; i < town_count(); i++) {
        uint32_t older = 0;
        for (uint16_t k = 0; k < town_count(); k++) older += town_checkpoint(k) < town_checkpoint(i);
        snprintf(line + strlen(line), sizeof line - strlen(line), "%s%u %s", i > 0 ? ", " : "", i + 1u,
                 town_checkpoint(i) == 0 ? "none"
                 : older > 0             ? "newer"
                                         : "one");
    }
    say("%s", line);
}

static void do_said(const struct words *w) { /* said 3: what it noted for its log since it was asked last */
    const int node = node_of(w, 1);
    if (node < 0) {
        wrong("said NODE", "");
        return;
    }
    struct slice notes = town_notes((uint16_t)node);
    while (notes.bytes > 0) {
        const char *end = memchr(notes.data, '\n', notes.bytes);
        const size_t bytes = (size_t)(end - notes.data);
        say("%d: %.*s", node + 1, (int)bytes, notes.data);
        notes = slice_of(end + 1, notes.bytes - bytes - 1);
    }
}

static void do_order(const struct words *w, const char *line) { /* order $T1 < $T2 */
    int64_t last = INT64_MIN;
    bool ascending = w->count > 3;
    for (uint32_t i = 1; i < w->count; i += 2) {
        const int64_t value = strtoll(w->word[i], NULL, 10);
        ascending = ascending && value > last && (i + 1 == w->count || is(w, i + 1, "<"));
        last = value;
    }
    say("%s: %s", ascending ? "yes" : "NO", line + strlen("order "));
}

static void tell_line(const char *line);

static void do_let(const char *line) { /* let A = a: LEASE.GRANT 5000 */
    struct words w;
    split(line, &w);
    if (w.count < 4 || !is(&w, 2, "=") || strlen(w.word[1]) >= sizeof names[0].name) {
        wrong("let NAME = CLIENT: COMMAND", "");
        return;
    }
    struct buf *real = out;
    struct buf hidden = {.alloc = heap_alloc()};
    out = &hidden; /* it has no name yet */
    has_integer = false;
    tell_line(strchr(line, '=') + 2);
    out = real;
    if (!has_integer) {
        buf_append_slice(out, buf_slice(&hidden));
    } else {
        must(name_count < NAMES_MAX);
        struct name *n = &names[name_count++];
        *n = (struct name){.value = found_integer};
        snprintf(n->name, sizeof n->name, "%s", w.word[1]);
        struct buf text = {.alloc = heap_alloc()};
        number_text(found_integer, &text);
        const size_t name_bytes = strcspn(w.word[3], ":");
        bool named = false; /* its own line is said anew, with the name; what others heard meanwhile stays */
        for (char *rest = hidden.data, *end; rest < hidden.data + hidden.bytes; rest = end + 1) {
            end = memchr(rest, '\n', (size_t)(hidden.data + hidden.bytes - rest));
            if (!named && strncmp(rest, w.word[3], name_bytes) == 0 && rest[name_bytes] == ':') {
                say("%.*s: %.*s", (int)name_bytes, w.word[3], (int)text.bytes, text.data);
                named = true;
            } else {
                say("%.*s", (int)(end - rest), rest);
            }
        }
        buf_release(&text);
    }
    buf_release(&hidden);
}

static void do_for(const struct words *w, const char *line) { /* for 10s every 500ms a: COMMAND */
    const uint64_t all_ms = time_of(w, 1), each_ms = time_of(w, 3);
    if (all_ms == UINT64_MAX || each_ms == UINT64_MAX || each_ms == 0 || !is(w, 2, "every") || w->count < 5) {
        wrong("for TIME every TIME COMMAND", "");
        return;
    }
    struct tally found[TALLY_MAX] = {{.count = 0}};
    const char *rest = strstr(line, " every ") + strlen(" every ") + strlen(w->word[3]);
    while (*rest == ' ') rest++;
    tallies = found;
    for (const uint64_t end_ms = town_now() + all_ms; town_now() < end_ms;) {
        const uint64_t next_ms = town_now() + each_ms;
        tell_line(rest);
        if (town_now() < next_ms) (void)town_run(next_ms - town_now(), NULL, NULL);
    }
    tallies = NULL;
    for (uint32_t i = 0; i < TALLY_MAX && found[i].count > 0; i++)
        say("%.*s %u x %s", (int)strcspn(rest, " "), rest, found[i].count, found[i].text);
}

/* `20 times: COMMAND; COMMAND`: printed once if it was the same each time. */
static void do_times(int times, const char *commands) {
    struct buf first = {.alloc = heap_alloc()}, now = {.alloc = heap_alloc()}, *real = out;
    int same = 0;
    for (int i = 0; i < times; i++) {
        buf_clear(&now);
        out = &now;
        char copy[LINE_MAX_BYTES];
        snprintf(copy, sizeof copy, "%s", commands);
        char *rest = copy;
        for (char *one = strsep(&rest, ";"); one != NULL; one = strsep(&rest, ";")) {
            while (*one == ' ') one++;
            if (*one != '\0') tell_line(one);
        }
        out = real;
        if (i == 0) buf_append_slice(&first, buf_slice(&now));
        same += slice_equal(buf_slice(&first), buf_slice(&now));
        if (slice_equal(buf_slice(&first), buf_slice(&now))) continue;
        say("time %d:", i + 1);
        buf_append_slice(out, buf_slice(&now));
    }
    if (first.bytes > 0) say("%d times:", same);
    buf_append_slice(out, buf_slice(&first));
    buf_release(&first);
    buf_release(&now);
}

static const struct {
    const char *word;
    void (*run)(const struct words *w);
} commands[] = {
    {"nodes", do_nodes},
    {"start", do_node},
    {"crash", do_node},
    {"pause", do_node},
    {"resume", do_node},
    {"wipe", do_node},
    {"cut", do_link},
    {"hold", do_link},
    {"heal", do_link},
    {"twice", do_link},
    {"once", do_link},
    {"disk", do_disk},
    {"run", do_run},
    {"elect", do_elect},
    {"leader", do_leader},
    {"state", do_state},
    {"agree", do_agree},
    {"said", do_said},
    {"checkpoints", do_checkpoints},
    {"client", do_client},
};

static void tell_client(struct client *c, const struct words *w) {
    const uint64_t ms = time_of(w, 3);
    if (is(w, 1, "sends")) {
        client_sends(c, w, 2);
    } else if (is(w, 1, "leaves")) {
        if (c->id != 0) town_disconnect(c->id);
        c->id = 0;
    } else if (is(w, 1, "gets") && is(w, 2, "within") && ms != UINT64_MAX) {
        c->answers = 0;
        if (!town_run(ms, has_answer, c)) heard(c, "(still waits)");
    } else {
        wrong("a client sends, leaves, or gets within TIME", w->word[0]);
    }
}

static void tell_line(const char *line) {
    struct words w;
    split(line, &w);
    const size_t bytes = strlen(w.word[0]);
    if (bytes > 1 && w.word[0][bytes - 1] == ':') {
        w.word[0][bytes - 1] = '\0';
        struct client *c = client_named(w.word[0]);
        if (c == NULL)
            wrong("no such client", w.word[0]);
        else
            client_asks(c, &w, 1);
        return;
    }
    struct client *c = client_named(w.word[0]);
    if (c != NULL) {
        tell_client(c, &w);
        return;
    }
    if (is(&w, 0, "let")) {
        do_let(line);
        return;
    }
    if (is(&w, 0, "order")) {
        do_order(&w, line);
        return;
    }
    if (is(&w, 0, "for")) {
        do_for(&w, line);
        return;
    }
    if (is(&w, 1, "times:")) {
        do_times(atoi(w.word[0]), strchr(line, ':') + 1);
        return;
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (!is(&w, 0, commands[i].word)) continue;
        commands[i].run(&w);
        return;
    }
    wrong("no such command", w.word[0]);
}

static void tell_halts(void) {
    static bool told[PAXOS_NODES_MAX];
    for (uint16_t i = 0; i < town_count(); i++) {
        const char *why = town_halted(i);
        if (why != NULL && !told[i]) {
            say("NODE %u GAVE UP: %s", i + 1u, why);
            good = false;
        }
        told[i] = why != NULL;
    }
}

/* ---- the file ---- */

static void block_end(struct buf *whole, struct buf *lines) {
    if (lines->bytes > 0) buf_append_str(whole, "----\n");
    buf_append_slice(whole, buf_slice(lines));
    buf_clear(lines);
}

bool story_tell(struct slice text, struct buf *whole) {
    struct buf lines = {.alloc = heap_alloc()};
    enum { BETWEEN, COMMANDS, EXPECTED } where = BETWEEN;
    good = true;
    crashed = -1;
    while (text.bytes > 0) {
        const char *end = memchr(text.data, '\n', text.bytes);
        const size_t bytes = end != NULL ? (size_t)(end - text.data) : text.bytes;
        char line[LINE_MAX_BYTES];
        snprintf(line, sizeof line, "%.*s", (int)bytes, text.data);
        text = slice_of(text.data + bytes, text.bytes - bytes);
        if (text.bytes > 0) text = slice_of(text.data + 1, text.bytes - 1);
        if (where == EXPECTED && line[0] != '\0') continue;
        if (strcmp(line, "----") == 0) {
            where = EXPECTED;
            continue;
        }
        if (line[0] == '\0') {
            block_end(whole, &lines);
            where = BETWEEN;
        }
        buf_append_str(whole, line);
        buf_append_str(whole, "\n");
        if (line[0] == '\0' || line[0] == '#') continue;
        where = COMMANDS;
        out = &lines;
        tell_line(line);
        tell_halts();
    }
    block_end(whole, &lines);
    buf_release(&lines);
    if (town_count() > 0) town_close();
    for (uint32_t i = 0; i < client_count; i++) buf_release(&clients[i].bytes);
    memset(clients, 0, sizeof clients);
    client_count = name_count = 0;
    return good;
}
