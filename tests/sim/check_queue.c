/* check_queue.c - see check_queue.h. */
#include "tests/sim/check_queue.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/io/heap.h"
#include "lockd/core/command.h"
#include "tests/sim/check_paxos.h"

enum { LOCKS_MAX = 64, WAITS_MAX = 32, GONE_MAX = 4096, NAME_MAX = 16, ONCES_MAX = 1024 };

struct wait {
    uint64_t lease, until_ms;
    struct origin origin;
    uint64_t once; /* it was sent in a ONCE with this number; 0: not */
};
struct lock {
    char name[NAME_MAX];          /* "": free */
    uint64_t holder, token, used; /* token 0 and held: not known */
    struct wait waits[WAITS_MAX];
    uint32_t wait_count;
    bool touched;
};
struct queue_facts {
    struct lock locks[LOCKS_MAX];
    uint64_t gone[GONE_MAX]; /* leases that have ended */
    uint32_t gone_count;
    paxos_slot slot;
    struct ballot ballot;
    bool gap; /* a slot of that leader was lost: what it built after it does not count */
    uint64_t revision, stamp_ms, uses;
    struct { /* commands on locks sent in a ONCE that have ended */
        uint64_t lease, seq;
    } onces[ONCES_MAX];
    uint32_t once_count; /* in a ring */
    uint64_t once;       /* the number of the one that runs now; 0: none does */
    bool vague;          /* a script was in the log: how many revisions it took is not followed */
    bool lost;           /* the log could not be read to its end: nothing is said any more */
    struct slice argv[BATCH_ARGC_MAX];
    struct buf reply;
};
static unsigned long long u(uint64_t x) {
    return x;
}

struct queue_facts *check_queue_new(void) {
    struct queue_facts *f = calloc(1, sizeof *f);
    must(f != NULL);
    f->reply.alloc = heap_alloc();
    return f;
}
void check_queue_free(struct queue_facts *f) {
    if (f == NULL) return;
    buf_release(&f->reply);
    free(f);
}

/* ------------------------------------------------------------------ the model */

static bool is_gone(const struct queue_facts *f, uint64_t lease) {
    for (uint32_t i = 0; i < f->gone_count && i < GONE_MAX; i++) {
        if (f->gone[i] == lease) return true;
    }
    return false;
}
static struct lock *lock_of(struct queue_facts *f, struct slice name) {
    struct lock *oldest = &f->locks[0];
    if (name.bytes == 0 || name.bytes >= NAME_MAX) return NULL;
    for (uint32_t i = 0; i < LOCKS_MAX; i++) {
        struct lock *l = &f->locks[i];
        if (strlen(l->name) == name.bytes && memcmp(l->name, name.data, name.bytes) == 0) {
            l->used = ++f->uses;
            l->touched = true;
            return l;
        }
        const bool idle = l->holder == 0 && l->wait_count == 0 && !l->touched;
        if (idle && l->used < oldest->used) oldest = l;
    }
    if (oldest->holder != 0 || oldest->wait_count > 0) { /* more locks in use than are followed */
        f->lost = true;
        return NULL;
    }
    *oldest = (struct lock){.used = ++f->uses, .touched = true};
    memcpy(oldest->name, name.data, name.bytes);
    return oldest;
}
static void once_done(struct queue_facts *f, uint64_t lease, uint64_t seq) {
    if (seq == 0) return;
    f->onces[f->once_count % ONCES_MAX].lease = lease;
    f->onces[f->once_count++ % ONCES_MAX].seq = seq;
}
static bool once_is_done(const struct queue_facts *f, uint64_t lease, uint64_t seq) {
    for (uint32_t i = 0; i < f->once_count && i < ONCES_MAX; i++) {
        if (f->onces[i].lease == lease && f->onces[i].seq == seq) return true;
    }
    return false;
}
static void wait_end(struct lock *l, uint32_t at) {
    memmove(&l->waits[at], &l->waits[at + 1], (--l->wait_count - at) * sizeof l->waits[0]);
    l->touched = true;
}
static void lock_free(struct queue_facts *f, struct lock *l) {
    l->holder = l->token = 0;
    l->touched = true;
    if (l->wait_count == 0) return;
    l->holder = l->waits[0].lease;
    f->revision++;
    l->token = f->vague ? 0 : f->revision;
    once_done(f, l->waits[0].lease, l->waits[0].once);
    wait_end(l, 0);
}
static uint64_t number(struct slice s) {
    uint64_t n = 0;
    return slice_to_u64(s, &n) ? n : 0;
}
static uint64_t word_number(const struct queue_facts *f, uint32_t argc, const char *word) {
    for (uint32_t i = 2; i + 1 < argc; i++) {
        if (slice_is_word(f->argv[i], word)) return number(f->argv[i + 1]);
    }
    return 0;
}
/* True: it waits now. */
static bool acquire(struct queue_facts *f, struct origin origin, uint32_t argc) {
    struct lock *l = lock_of(f, f->argv[1]);
    const uint64_t lease = number(f->argv[3]), wait_ms = word_number(f, argc, "WAIT");
    if (l == NULL || is_gone(f, lease) || l->holder == lease) return false;
    if (l->holder == 0) {
        l->holder = lease;
        l->token = f->vague ? 0 : f->revision;
        return false;
    }
    if (wait_ms == 0) return false;
    uint32_t at = 0;
    while (at < l->wait_count && l->waits[at].lease != lease) at++;
    if (at == WAITS_MAX) {
        f->lost = true;
        return false;
    }
    if (at == l->wait_count) l->wait_count++;
    l->waits[at] = (struct wait){.lease = lease, .until_ms = f->stamp_ms + wait_ms, .origin = origin, .once = f->once};
    return true;
}
static void release(struct queue_facts *f, uint32_t argc) {
    struct lock *l = lock_of(f, f->argv[1]);
    const uint64_t lease = number(f->argv[3]), token = word_number(f, argc, "TOKEN");
    if (l == NULL || is_gone(f, lease)) return;
    if (l->holder == lease) {
        if (token == 0 || l->token == 0 || token == l->token) lock_free(f, l);
        return;
    }
    for (uint32_t i = 0; i < l->wait_count && token == 0; i++) {
        if (l->waits[i].lease == lease) wait_end(l, i--);
    }
}
static void leases_end(struct queue_facts *f, uint32_t argc) {
    for (uint32_t i = 1; i < argc; i++) { /* their places in queues first */
        const uint64_t lease = number(f->argv[i]);
        for (uint32_t k = 0; k < LOCKS_MAX; k++) {
            struct lock *l = &f->locks[k];
            for (uint32_t j = 0; j < l->wait_count; j++) {
                if (l->waits[j].lease == lease) wait_end(l, j--);
            }
        }
    }
    for (uint32_t i = 1; i < argc; i++) {
        const uint64_t lease = number(f->argv[i]);
        if (is_gone(f, lease)) continue;
        f->gone[f->gone_count++ % GONE_MAX] = lease;
        /* what it held goes in the order in which it got it */
        for (;;) {
            struct lock *first = NULL;
            for (uint32_t k = 0; k < LOCKS_MAX; k++) {
                struct lock *l = &f->locks[k];
                if (l->holder == lease && (first == NULL || l->token < first->token)) first = l;
            }
            if (first == NULL) break;
            lock_free(f, first);
        }
    }
}
static void waits_end(struct queue_facts *f, struct lock *l, bool (*which)(const struct wait *, const struct origin *),
                      const struct origin *origin) {
    (void)f;
    for (uint32_t i = 0; i < l->wait_count; i++) {
        if (which(&l->waits[i], origin)) wait_end(l, i--);
    }
}
static bool same_call(const struct wait *w, const struct origin *o) {
    return origin_equal(w->origin, *o);
}
static bool same_life(const struct wait *w, const struct origin *o) {
    return w->origin.node == o->node && w->origin.boot == o->boot;
}
/* ONCE lease seq command ...: of those on locks each runs until it has ended, and then no more. */
static void run_once(struct queue_facts *f, struct origin origin, uint32_t argc) {
    const uint64_t lease = number(f->argv[1]), seq = number(f->argv[2]);
    const struct command *c = command_find(f->argv[3], true);
    if (c == NULL || is_gone(f, lease) || once_is_done(f, lease, seq)) return;
    memmove(f->argv, f->argv + 3, (argc - 3) * sizeof f->argv[0]);
    f->once = seq;
    bool waits = false;
    if (c->id == CMD_LOCK_ACQUIRE)
        waits = acquire(f, origin, argc - 3);
    else if (c->id == CMD_LOCK_RELEASE)
        release(f, argc - 3);
    if (!waits && (c->id == CMD_LOCK_ACQUIRE || c->id == CMD_LOCK_RELEASE)) once_done(f, lease, seq);
    f->once = 0;
}
static void run(struct queue_facts *f, struct origin origin, uint32_t argc) {
    const struct command *c = command_find(f->argv[0], true);
    if (c == NULL) return;
    if (c->class != COMMAND_READ && c->id != CMD_X_REPLY) f->revision++;
    struct origin named = {0};
    switch (c->id) {
    case CMD_LOCK_ACQUIRE:
    case CMD_ELECT_CAMPAIGN: (void)acquire(f, origin, argc); break;
    case CMD_ONCE: run_once(f, origin, argc); break;
    case CMD_LOCK_RELEASE:
    case CMD_ELECT_RESIGN: release(f, argc); break;
    case CMD_LEASE_REVOKE:
    case CMD_X_EXPIRE: leases_end(f, argc); break;
    case CMD_X_DEQUEUE:
        if (f->argv[1].bytes == 0 || argc < 5) break;
        named = (struct origin){(uint16_t)number(f->argv[2]), number(f->argv[3]), number(f->argv[4])};
        if (lock_of(f, f->argv[1]) != NULL) waits_end(f, lock_of(f, f->argv[1]), same_call, &named);
        break;
    case CMD_X_SCRIPT:
    case CMD_X_ONCE: f->vague = true; break;
    case CMD_X_ORIGIN_GONE:
        named = (struct origin){.node = (uint16_t)number(f->argv[1]), .boot = number(f->argv[2])};
        for (uint32_t i = 0; i < LOCKS_MAX; i++) waits_end(f, &f->locks[i], same_life, &named);
        break;
    default: break;
    }
}
static void apply(struct queue_facts *f, struct slice value) {
    struct wire w;
    struct batch_head head;
    f->gap = f->gap || value.bytes == 0;
    if (value.bytes == 0 || paxos_is_blank(value)) return;
    if (!batch_read(&w, value, &head)) {
        f->lost = true;
        return;
    }
    f->gap = (f->gap && !head.first) || ballot_compare(head.ballot, f->ballot) < 0;
    if (f->gap) return;
    if (head.first) f->ballot = head.ballot;
    if (head.stamp_ms > f->stamp_ms) f->stamp_ms = head.stamp_ms;
    for (uint32_t i = 0; i < LOCKS_MAX; i++) {
        struct lock *l = &f->locks[i];
        for (uint32_t k = 0; k < l->wait_count; k++) {
            if (l->waits[k].until_ms > f->stamp_ms) continue;
            once_done(f, l->waits[k].lease, l->waits[k].once);
            wait_end(l, k--);
        }
    }
    for (uint32_t i = 0; i < head.count && !f->lost; i++) {
        struct origin origin;
        uint32_t argc;
        if (batch_next(&w, &origin, &argc, f->argv))
            run(f, origin, argc);
        else
            f->lost = true;
    }
}

/* ------------------------------------------------------------------ the comparison */

/* The number after that name in a RESP2 map. */
static uint64_t field(struct slice reply, const char *name) {
    char text[512], line[32];
    snprintf(text, sizeof text, "%.*s", (int)reply.bytes, reply.data);
    snprintf(line, sizeof line, "\r\n%s\r\n:", name);
    const char *at = strstr(text, line);
    return at != NULL ? strtoull(at + strlen(line), NULL, 10) : 0;
}
static void compare(struct queue_facts *f, struct world *w, uint16_t node, struct keyspace *ks, struct lock *l) {
    const struct slice argv[] = {slice_str("LOCK.INFO"), slice_str(l->name)};
    uint64_t stamp_ms;
    buf_clear(&f->reply);
    if (keyspace_read(ks, 0, 2, argv, &f->reply, &stamp_ms) != KS_READ_DONE) return;
    const struct slice reply = buf_slice(&f->reply);
    const uint64_t lease = field(reply, "lease"), token = field(reply, "token"), waiters = field(reply, "waiters");
    if (l->token == 0) l->token = token;
    if (lease != l->holder || waiters != l->wait_count || token != l->token)
        world_fail(w,
                   "queue: n%u at slot %llu: %s is held by lease %llu with token %llu and %llu wait; by the log it is "
                   "%llu, %llu and %u",
                   node, u(f->slot), l->name, u(lease), u(token), u(waiters), u(l->holder), u(l->token), l->wait_count);
    l->touched = false;
}
void check_queue_turn(struct queue_facts *f, struct world *w, uint16_t node, struct keyspace *ks) {
    const paxos_slot slot = keyspace_slot(ks);
    while (f->slot < slot && !f->lost) {
        struct slice value;
        if (check_chosen(w, f->slot + 1, &value))
            apply(f, value);
        else
            f->lost = true;
        f->slot++;
    }
    if (f->lost || f->slot != slot) return;
    if (f->vague) f->revision = keyspace_revision(ks);
    f->vague = false;
    if (f->revision != keyspace_revision(ks))
        world_fail(w, "queue: n%u at slot %llu has revision %llu, by the log it is %llu", node, u(slot),
                   u(keyspace_revision(ks)), u(f->revision));
    for (uint32_t i = 0; i < LOCKS_MAX && !w->failed; i++) {
        if (f->locks[i].touched) compare(f, w, node, ks, &f->locks[i]);
    }
}
