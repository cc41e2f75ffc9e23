/* check_once.c - see check_once.h. */
#include "tests/sim/check_once.h"
#include <stdlib.h>
#include <string.h>
#include "common/must.h"
#include "lockd/core/command.h"
#include "tests/sim/check_paxos.h"

enum { REPLIES_MAX = 16384, REPLY_BYTES = 48, PLACES_MAX = 1 << 18 };

struct once_facts {
    struct {
        uint64_t lease, seq;
        char reply[REPLY_BYTES];
    } replies[REPLIES_MAX];
    uint32_t reply_count;
    struct origin *places; /* open addressing; boot 0: free */
    uint32_t place_count;
    paxos_slot slot;
    struct ballot ballot;
    bool gap;  /* a slot of that leader was lost: what it built after it does not count */
    bool lost; /* the log could not be read to its end */
    struct slice argv[BATCH_ARGC_MAX];
};

struct once_facts *check_once_new(void) {
    struct once_facts *f = calloc(1, sizeof *f);
    must(f != NULL);
    f->places = calloc(PLACES_MAX, sizeof *f->places);
    must(f->places != NULL);
    return f;
}
void check_once_free(struct once_facts *f) {
    if (f == NULL) return;
    free(f->places);
    free(f);
}

bool check_once_told(struct once_facts *f, struct world *w, uint64_t lease, uint64_t seq, const char *reply) {
    must(strlen(reply) < REPLY_BYTES);
    for (uint32_t i = f->reply_count; i-- > 0;) {
        if (f->replies[i].lease != lease || f->replies[i].seq != seq) continue;
        if (strcmp(f->replies[i].reply, reply) != 0)
            world_fail(w, "once: command %llu of lease %llu was answered %s, and now %s", (unsigned long long)seq,
                       (unsigned long long)lease, f->replies[i].reply, reply);
        return false;
    }
    if (f->reply_count == REPLIES_MAX) return false;
    f->replies[f->reply_count].lease = lease;
    f->replies[f->reply_count].seq = seq;
    strcpy(f->replies[f->reply_count++].reply, reply);
    return true;
}

/* False: it is there already. */
static bool origin_add(struct once_facts *f, struct origin o) {
    uint64_t at = (o.boot ^ o.seq * UINT64_C(0x9e3779b97f4a7c15) ^ o.node) * UINT64_C(0xbf58476d1ce4e5b9) >> 20;
    for (;; at++) {
        struct origin *place = &f->places[at % PLACES_MAX];
        if (place->boot == 0) {
            *place = o;
            f->lost = ++f->place_count > PLACES_MAX / 2;
            return true;
        }
        if (origin_equal(*place, o)) return false;
    }
}
static void apply(struct once_facts *f, struct world *w, struct slice value) {
    struct wire wire;
    struct batch_head head;
    if (!batch_read(&wire, value, &head)) {
        f->gap = f->gap || value.bytes == 0;
        f->lost = value.bytes > 0 && !paxos_is_blank(value);
        return;
    }
    f->gap = (f->gap && !head.first) || ballot_compare(head.ballot, f->ballot) < 0;
    if (f->gap) return;
    if (head.first) f->ballot = head.ballot;
    for (uint32_t i = 0; i < head.count && !f->lost; i++) {
        struct origin o;
        uint32_t argc;
        if (!batch_next(&wire, &o, &argc, f->argv)) {
            f->lost = true;
            return;
        }
        const struct command *c = command_find(f->argv[0], true);
        if (o.node == ORIGIN_NODE_NONE || c == NULL || c->id == CMD_X_SCRIPT || c->id == CMD_X_ONCE) continue;
        if (!origin_add(f, o))
            world_fail(w, "once: %s, write %llu of n%u's life %llx, is in the log a second time, in slot %llu", c->name,
                       (unsigned long long)o.seq, o.node, (unsigned long long)o.boot, (unsigned long long)f->slot);
    }
}
void check_once_turn(struct once_facts *f, struct world *w, const struct keyspace *ks) {
    while (f->slot < keyspace_slot(ks) && !f->lost) {
        struct slice value;
        f->slot++;
        if (check_chosen(w, f->slot, &value))
            apply(f, w, value);
        else
            f->lost = true;
    }
}
