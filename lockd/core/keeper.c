/* One heap holds every deadline.  A renewal only changes the lease's own deadline; its heap entry is moved on when it
 * comes up too early, so that renewing costs no heap work.  Entries of leases that are gone stay until they come up, or
 * until they are the greater part of the heap. */
#include "lockd/core/keeper.h"
#include "lockd/core/bug.h"
#include <xxhash.h>

#define uthash_fatal(text)         must_fail(__FILE__, __LINE__, (text))
#define uthash_malloc(bytes)       alloc_get(k->alloc, bytes)
#define uthash_free(memory, bytes) alloc_put(k->alloc, memory)
#include <uthash.h>

enum { NEXT_HOLD_MS_MAX = 5000 };

enum timer_kind { TIMER_LEASE, TIMER_LIMIT, TIMER_NEXT };
struct timer {
    uint64_t at_ms;
    enum timer_kind kind;
    uint64_t a, b; /* LEASE: lease; LIMIT: asked, lease; NEXT: lease, handle */
};

struct kept {
    uint64_t id, ttl_ms, deadline_ms;
    uint64_t cover_ms; /* 0: never covered */
    uint64_t log_ms;   /* if it is not renewed by then, what remains is logged */
    bool expiring;     /* %EXPIRE is out */
    bool remaining;    /* a remaining time is logged, or out */
    bool clearing;     /* and is about to be cleared */
    bool join_out;
    bool next_known;    /* a NEXT of it was answered */
    uint64_t ack_out;   /* highest serial whose %ROUTE_ACK is out */
    uint64_t next_call; /* handle of the held NEXT, 0: none */
    UT_hash_handle hh;
};

struct keeper {
    const struct alloc *alloc;
    uint64_t seed;
    struct kept *leases;
    struct timer *heap;
    uint32_t heap_count, heap_room;
    uint32_t dead_count; /* entries TIMER_LEASE of leases that are gone */
    uint64_t *renewed;   /* to be handed out in keeper_due, newest last */
    uint32_t renewed_count, renewed_room;
};

struct keeper *keeper_new(const struct alloc *alloc, uint64_t seed) {
    struct keeper *k = alloc_get0(alloc, sizeof *k);
    k->alloc = alloc;
    k->seed = seed;
    return k;
}

static void heap_down(struct keeper *k, uint32_t at, struct timer timer) {
    for (;;) {
        uint32_t child = 2 * at + 1;
        if (child >= k->heap_count) break;
        if (child + 1 < k->heap_count && k->heap[child + 1].at_ms < k->heap[child].at_ms) child++;
        if (k->heap[child].at_ms >= timer.at_ms) break;
        k->heap[at] = k->heap[child];
        at = child;
    }
    k->heap[at] = timer;
}

static void heap_push(struct keeper *k, struct timer timer) {
    if (k->heap_count == k->heap_room) {
        k->heap_room = k->heap_room ? k->heap_room * 2 : 64;
        k->heap = alloc_resize(k->alloc, k->heap, k->heap_room * sizeof *k->heap);
    }
    uint32_t at = k->heap_count++;
    for (; at > 0 && k->heap[(at - 1) / 2].at_ms > timer.at_ms; at = (at - 1) / 2) k->heap[at] = k->heap[(at - 1) / 2];
    k->heap[at] = timer;
}

static struct timer heap_pop(struct keeper *k) {
    const struct timer top = k->heap[0], last = k->heap[--k->heap_count];
    if (k->heap_count > 0) heap_down(k, 0, last);
    return top;
}

static struct kept *kept_find(const struct keeper *k, uint64_t id) {
    struct kept *l;
    HASH_FIND(hh, k->leases, &id, sizeof id, l);
    return l;
}

static void heap_sweep(struct keeper *k) {
    uint32_t kept = 0;
    if (k->dead_count < 1024 || k->dead_count <= k->heap_count / 2) return;
    for (uint32_t i = 0; i < k->heap_count; i++) {
        if (k->heap[i].kind == TIMER_LEASE && kept_find(k, k->heap[i].a) == NULL) continue;
        k->heap[kept++] = k->heap[i];
    }
    k->heap_count = kept;
    k->dead_count = 0;
    for (uint32_t i = kept / 2; i-- > 0;) heap_down(k, i, k->heap[i]);
}

static uint64_t lease_timer(const struct kept *l) {
    return l->log_ms < l->deadline_ms ? l->log_ms : l->deadline_ms;
}

static struct kept *kept_add(struct keeper *k, uint64_t id, uint64_t ttl_ms, uint64_t log_ms, uint64_t deadline_ms) {
    struct kept *l = alloc_get0(k->alloc, sizeof *l);
    l->id = id;
    l->ttl_ms = ttl_ms;
    l->log_ms = log_ms;
    l->deadline_ms = deadline_ms;
    HASH_ADD(hh, k->leases, id, sizeof l->id, l);
    heap_push(k, (struct timer){.at_ms = lease_timer(l), .kind = TIMER_LEASE, .a = id});
    return l;
}

void keeper_stop(struct keeper *k) {
    struct kept *l, *next;
    HASH_ITER(hh, k->leases, l, next) {
        HASH_DEL(k->leases, l);
        alloc_put(k->alloc, l);
    }
    k->heap_count = k->dead_count = k->renewed_count = 0;
}

void keeper_free(struct keeper *k) {
    keeper_stop(k);
    alloc_put(k->alloc, k->heap);
    alloc_put(k->alloc, k->renewed);
    alloc_put(k->alloc, k);
}

struct leading {
    struct keeper *k;
    const struct keyspace *ks;
    uint64_t now_ms;
};

static bool lead_lease(void *context, uint64_t id, uint64_t ttl_ms) {
    const struct leading *l = context;
    /* Spread, so that the leases of a crowd that is gone do not all end in one batch (L5). */
    const uint64_t random = XXH3_64bits_withSeed(&id, sizeof id, l->k->seed ^ l->now_ms),
                   jitter = random % (ttl_ms / 20 + 1);
    const uint64_t log_ms = l->now_ms + KEEPER_SILENT_MS +
                            (random >> 32) % (ttl_ms / 32 < KEEPER_SILENT_MS ? ttl_ms / 32 + 1 : KEEPER_SILENT_MS);
    const uint64_t logged_ms = keyspace_lease_remaining(l->ks, id);
    if (logged_ms > 0) {
        /* No jitter: each leader would add it again, and it was spread when it was counted first. */
        struct kept *kept = kept_add(l->k, id, ttl_ms, log_ms, l->now_ms + logged_ms);
        kept->cover_ms = l->now_ms + logged_ms;
        kept->remaining = true;
        return true;
    }
    struct kept *kept = kept_add(l->k, id, ttl_ms, log_ms, l->now_ms + (BUG(25) ? ttl_ms / 8 : ttl_ms) + jitter);
    kept->cover_ms = BUG(64) ? 0 : l->now_ms + ttl_ms; /* whatever our predecessors answered was sent before now */
    return true;
}

static void lead_limit(void *context, uint64_t asked, uint64_t lease) {
    const struct leading *l = context;
    const struct kept *kept = kept_find(l->k, lease);
    heap_push(l->k, (struct timer){.at_ms = kept != NULL && kept->cover_ms > l->now_ms && !BUG(65) ? kept->cover_ms
                                                                                                   : l->now_ms,
                                   .kind = TIMER_LIMIT,
                                   .a = asked,
                                   .b = lease});
}

void keeper_lead(struct keeper *k, uint64_t now_ms, struct keyspace *ks) {
    keeper_stop(k);
    struct leading leading = {.k = k, .ks = ks, .now_ms = now_ms};
    keyspace_each_lease(ks, lead_lease, &leading);
    route_each_stall(keyspace_route(ks), lead_limit, &leading);
}

void keeper_fact(struct keeper *k, uint64_t now_ms, struct keyspace *ks, const struct ks_fact *fact) {
    struct leading leading = {.k = k, .now_ms = now_ms};
    switch (fact->kind) {
    case KS_LEASE_NEW:
        if (kept_find(k, fact->id) == NULL)
            kept_add(k, fact->id, fact->ttl_ms, now_ms + fact->ttl_ms / 2, now_ms + fact->ttl_ms);
        break;
    case KS_LEASE_RENEWED: {
        struct kept *l = kept_find(k, fact->id);
        if (l != NULL) l->remaining = l->clearing = false;
        break;
    }
    case KS_LEASE_GONE: {
        struct kept *l = kept_find(k, fact->id);
        if (l == NULL) break;
        HASH_DEL(k->leases, l); /* its heap entries find nobody and vanish */
        if (!l->expiring) k->dead_count++;
        alloc_put(k->alloc, l);
        heap_sweep(k);
        break;
    }
    case KS_MOVE_ASKED: route_each_holder(keyspace_route(ks), fact->id, lead_limit, &leading); break;
    default: break;
    }
}

static void clear_remaining(struct keeper *k, struct kept *l) {
    if (l->clearing) return;
    l->clearing = true;
    if (k->renewed_count == k->renewed_room) {
        k->renewed_room = k->renewed_room ? k->renewed_room * 2 : 64;
        k->renewed = alloc_resize(k->alloc, k->renewed, k->renewed_room * sizeof k->renewed[0]);
    }
    k->renewed[k->renewed_count++] = l->id;
}

enum keeper_verdict keeper_renew(struct keeper *k, uint64_t now_ms, uint64_t lease, uint64_t *ret_ttl_ms) {
    struct kept *l = kept_find(k, lease);
    if (l == NULL) return KEEPER_GONE;
    if (l->expiring) return KEEPER_PARKED;
    /* Also when the answer has to wait: its holder lives. */
    if (l->deadline_ms < now_ms + l->ttl_ms && !BUG(77)) l->deadline_ms = now_ms + l->ttl_ms;
    l->log_ms = now_ms + l->ttl_ms / 2;
    if (l->remaining && !BUG(85)) {
        clear_remaining(k, l);
        return KEEPER_PARKED;
    }
    *ret_ttl_ms = l->ttl_ms;
    return KEEPER_KEPT;
}

uint64_t keeper_remaining(const struct keeper *k, uint64_t now_ms, uint64_t lease) {
    const struct kept *l = kept_find(k, lease);
    return l == NULL || l->deadline_ms <= now_ms ? 0 : l->deadline_ms - now_ms;
}

void keeper_next_hold(struct keeper *k, uint64_t now_ms, uint64_t lease, uint64_t handle, uint64_t *ret_replaced) {
    *ret_replaced = 0;
    struct kept *l = kept_find(k, lease);
    must(l != NULL && handle != 0);
    *ret_replaced = l->next_call;
    l->next_call = handle;
    const uint64_t hold_ms = l->ttl_ms / 3 < NEXT_HOLD_MS_MAX ? l->ttl_ms / 3 : NEXT_HOLD_MS_MAX;
    heap_push(k, (struct timer){.at_ms = now_ms + hold_ms, .kind = TIMER_NEXT, .a = lease, .b = handle});
}

uint64_t keeper_next_held(const struct keeper *k, uint64_t lease) {
    const struct kept *l = kept_find(k, lease);
    return l != NULL ? l->next_call : 0;
}

bool keeper_next_known(const struct keeper *k, uint64_t lease) {
    const struct kept *l = kept_find(k, lease);
    return l != NULL && l->next_known;
}

void keeper_next_answered(struct keeper *k, uint64_t lease, uint64_t arrival_ms) {
    struct kept *l = kept_find(k, lease);
    if (l == NULL) return;
    if (l->cover_ms < arrival_ms + l->ttl_ms) l->cover_ms = arrival_ms + l->ttl_ms;
    l->next_known = true;
    l->next_call = 0;
}

void keeper_next_forget(struct keeper *k, uint64_t lease) {
    struct kept *l = kept_find(k, lease);
    if (l != NULL) l->next_call = 0;
}

bool keeper_ack_once(struct keeper *k, uint64_t lease, uint64_t serial) {
    struct kept *l = kept_find(k, lease);
    if (l == NULL || l->ack_out >= serial) return false;
    l->ack_out = serial;
    return true;
}

bool keeper_join_once(struct keeper *k, uint64_t lease) {
    struct kept *l = kept_find(k, lease);
    if (l == NULL || l->join_out) return false;
    l->join_out = true;
    return true;
}

/* What is to be done about it now. */
static void lease_due(struct keeper *k, uint64_t now_ms, struct kept *l, struct keeper_due *due) {
    if (l->deadline_ms <= now_ms) {
        l->expiring = true;
        if (BUG(78)) return;
        due->expired[due->expired_count++] = l->id;
        return;
    }
    if (l->log_ms <= now_ms) {
        const uint64_t again_ms = l->ttl_ms / 8 > KEEPER_SILENT_MS ? l->ttl_ms / 8 : KEEPER_SILENT_MS;
        l->log_ms = now_ms + again_ms;
        l->remaining = !BUG(84);
        due->remaining[due->remaining_count].lease = l->id;
        due->remaining[due->remaining_count].ms = l->deadline_ms - now_ms;
        due->remaining_count += BUG(84) ? 0 : 1;
    }
    heap_push(k, (struct timer){.at_ms = lease_timer(l), .kind = TIMER_LEASE, .a = l->id});
}

void keeper_due(struct keeper *k, uint64_t now_ms, struct keeper_due *ret_due) {
    ret_due->expired_count = ret_due->passed_count = ret_due->next_count = 0;
    ret_due->remaining_count = ret_due->renewed_count = 0;
    while (k->renewed_count > 0 && ret_due->renewed_count < KEEPER_DUE_MAX)
        ret_due->renewed[ret_due->renewed_count++] = k->renewed[--k->renewed_count];
    while (k->heap_count > 0 && k->heap[0].at_ms <= now_ms) {
        if (ret_due->expired_count == KEEPER_DUE_MAX || ret_due->passed_count == KEEPER_DUE_MAX ||
            ret_due->next_count == KEEPER_DUE_MAX || ret_due->remaining_count == KEEPER_DUE_MAX)
            return; /* the rest next turn: expiries are spread over batches and never starve writes (L5) */
        const struct timer timer = heap_pop(k);
        struct kept *l = kept_find(k, timer.kind == TIMER_LIMIT ? timer.b : timer.a);
        switch (timer.kind) {
        case TIMER_LEASE:
            if (l == NULL) {
                k->dead_count--;
                break;
            }
            lease_due(k, now_ms, l, ret_due);
            break;
        case TIMER_LIMIT:
            ret_due->passed[ret_due->passed_count].asked = timer.a;
            ret_due->passed[ret_due->passed_count++].lease = timer.b;
            break;
        case TIMER_NEXT:
            if (l != NULL && l->next_call == timer.b) ret_due->next[ret_due->next_count++] = l->id;
            break;
        }
    }
}

uint64_t keeper_wake_at(const struct keeper *k) {
    if (k->renewed_count > 0) return 0;
    return k->heap_count > 0 ? k->heap[0].at_ms : UINT64_MAX;
}
