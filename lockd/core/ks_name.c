/* ks_name.c - names and their deadlines: the tables, the heap, and how a name ends.  Part of the keyspace. */
#include <xxhash.h>

#define uthash_malloc(bytes)       alloc_get(ut_alloc, (bytes))
#define uthash_free(memory, bytes) alloc_put(ut_alloc, (memory))
#define HASH_KEYCMP(a, b, bytes)   ((bytes) == 0 ? 0 : memcmp(a, b, bytes)) /* an empty slice may have no address */
#define uthash_fatal(message)      must_fail(__FILE__, __LINE__, (message))
#include "lockd/core/ks_state.h"
#include "lockd/core/bug.h"
#include <stddef.h>
#include <utlist.h>

/* The seed differs from node to node, lest somebody who knows it makes all keys collide; nothing that is replicated
 * may depend on the order of names in memory. */
static uint64_t key_hash(const struct keyspace *ks, struct slice key) {
    return XXH3_64bits_withSeed(key.data, key.bytes, ks->config.boot);
}

static struct ks_name **shard_of(const struct keyspace *ks, uint64_t hash) {
    return &ks->names[(uint32_t)(hash >> 32) & ks->shard_mask];
}

void ks_names_init(struct keyspace *ks, uint32_t shard_count) {
    must((shard_count & (shard_count - 1)) == 0);
    ks->shard_mask = shard_count - 1;
    ks->names = alloc_get0(ks->config.alloc, shard_count * sizeof ks->names[0]);
}

static struct ks_name *find_any(const struct keyspace *ks, struct slice key, uint64_t hash) {
    struct ks_name *head = *shard_of(ks, hash), *name = NULL;
    HASH_FIND_BYHASHVALUE(hh, head, key.data, key.bytes, (unsigned)hash, name);
    return name;
}

struct ks_name *ks_find(struct keyspace *ks, struct slice key) {
    struct ks_name *name = find_any(ks, key, key_hash(ks, key));
    return name != NULL && name->type != KS_VACANT ? name : NULL;
}

struct ks_name *ks_peek(struct ks_call *call, struct slice key) {
    struct ks_name *name = ks_find(call->ks, key);
    if (BUG(69) && name != NULL && name->due.at_ms <= call->stamp_ms) return NULL;
    if (name != NULL && name->due.at_ms <= call->stamp_ms && name->due.at_ms > call->needs_stamp_ms)
        call->needs_stamp_ms = name->due.at_ms;
    return name;
}

static void count_type(struct keyspace *ks, enum ks_type type, bool more) {
    if (type == KS_VACANT) return;
    ks->name_count += more ? 1 : (uint64_t)-1;
    if (type == KS_LOCK) ks->lock_count += more ? 1 : (uint64_t)-1;
    if (type == KS_REGISTER) ks->register_count += more ? 1 : (uint64_t)-1;
}

static void set_type(struct keyspace *ks, struct ks_name *name, enum ks_type type) {
    count_type(ks, (enum ks_type)name->type, false);
    name->type = (uint8_t)type;
    count_type(ks, type, true);
}

static struct ks_name *name_add(struct keyspace *ks, struct slice key, uint64_t hash) {
    const struct alloc *ut_alloc = ks->config.alloc;
    struct ks_name **shard = shard_of(ks, hash), *name = alloc_get0(ut_alloc, sizeof *name + key.bytes);
    name->key_bytes = (uint32_t)key.bytes;
    if (key.bytes > 0) memcpy(name->key, key.data, key.bytes);
    name->due.at_ms = KS_NEVER;
    HASH_ADD_KEYPTR_BYHASHVALUE(hh, *shard, name->key, key.bytes, (unsigned)hash, name);
    if (ks->base == NULL) DL_APPEND2(ks->unleased, name, lease_prev, lease_next);
    ks->memory_bytes += key.bytes;
    return name;
}

static struct ks_name *occupy(struct keyspace *ks, struct ks_name *name, enum ks_type type) {
    must(name->type == KS_VACANT);
    set_type(ks, name, type);
    ks->changes++;
    return name;
}

struct ks_name *ks_make(struct keyspace *ks, struct slice key, enum ks_type type) {
    const uint64_t hash = key_hash(ks, key);
    struct ks_name *name = find_any(ks, key, hash);
    return occupy(ks, name != NULL ? name : name_add(ks, key, hash), type);
}

struct ks_name *ks_make_first(struct keyspace *ks, struct slice key, enum ks_type type) {
    const uint64_t hash = key_hash(ks, key);
    return find_any(ks, key, hash) == NULL ? occupy(ks, name_add(ks, key, hash), type) : NULL;
}

void ks_write_owned(struct keyspace *ks, struct ks_name *name, char *value, uint32_t value_bytes, uint64_t version) {
    alloc_put(ks->config.alloc, name->value);
    ks->memory_bytes += value_bytes;
    ks->memory_bytes -= name->value_bytes;
    name->value = value;
    name->value_bytes = value_bytes;
    name->version = version;
    name->touched = 0;
    ks->changes++;
}

void ks_write(struct keyspace *ks, struct ks_name *name, struct slice value, uint64_t version) {
    char *copy = NULL;
    if (value.bytes > 0) copy = memcpy(alloc_get(ks->config.alloc, value.bytes), value.data, value.bytes);
    ks_write_owned(ks, name, copy, (uint32_t)value.bytes, version);
}

/* Out of the list where it stands. */
static void unlist(struct keyspace *ks, struct ks_name *name) {
    if (name->lease == NULL) {
        DL_DELETE2(ks->unleased, name, lease_prev, lease_next);
    } else {
        DL_DELETE2(name->lease->names, name, lease_prev, lease_next);
        name->lease->name_count--;
    }
}

void ks_attach(struct keyspace *ks, struct ks_name *name, struct ks_lease *lease) {
    if (name->lease == lease) return;
    /* An overlay only remembers whose it is: the lease belongs to the base (M4). */
    if (ks->base == NULL) unlist(ks, name);
    name->lease = lease;
    if (ks->base != NULL) return;
    if (lease == NULL) {
        DL_APPEND2(ks->unleased, name, lease_prev, lease_next);
    } else {
        DL_APPEND2(lease->names, name, lease_prev, lease_next);
        lease->name_count++;
    }
}

/* A vacant name without waiters goes. */
static void drop(struct keyspace *ks, struct ks_name *name) {
    must(name->type == KS_VACANT && name->waiters == NULL && name->value == NULL && name->lease == NULL);
    const struct alloc *ut_alloc = ks->config.alloc;
    struct ks_name **shard = shard_of(ks, key_hash(ks, ks_key(name)));
    HASH_DELETE(hh, *shard, name);
    if (ks->base == NULL) unlist(ks, name);
    ks->memory_bytes -= name->key_bytes;
    alloc_put(ut_alloc, name);
}

static void defer_grant(struct keyspace *ks, struct ks_name *name) {
    if (ks->vacated_count == ks->vacated_capacity) {
        ks->vacated_capacity = ks->vacated_capacity ? ks->vacated_capacity * 2 : 16;
        ks->vacated = alloc_resize(ks->config.alloc, ks->vacated, ks->vacated_capacity * sizeof ks->vacated[0]);
    }
    ks->vacated[ks->vacated_count++] = name;
}

static void grant(struct keyspace *ks, struct ks_name *name) {
    set_type(ks, name, KS_LOCK);
    ks_grant_next(ks, name);
}

void ks_end(struct keyspace *ks, struct ks_name *name) {
    must(name->type == KS_STRING || name->type == KS_LOCK);
    ks_attach(ks, name, NULL);
    ks_due_set(ks, &name->due, KS_NEVER, 0);
    ks_write_owned(ks, name, NULL, 0, 0);
    set_type(ks, name, KS_VACANT);
    if (name->waiters == NULL)
        drop(ks, name);
    else if (ks->defer_grants)
        defer_grant(ks, name);
    else
        grant(ks, name);
}

void ks_grant_deferred(struct keyspace *ks) {
    ks->defer_grants = false;
    /* A name may have ended twice: the second time it is not vacant any more. */
    for (uint32_t i = 0; i < ks->vacated_count; i++)
        if (ks->vacated[i]->type == KS_VACANT) grant(ks, ks->vacated[i]);
    ks->vacated_count = 0;
}

/* ---- deadlines: a binary heap of what is embedded in names and waiters ---- */

static bool due_before(const struct ks_due *a, const struct ks_due *b) {
    return a->at_ms != b->at_ms ? a->at_ms < b->at_ms : a->order < b->order;
}

static void due_place(struct keyspace *ks, struct ks_due *due, uint32_t index) {
    ks->due[index] = due;
    due->index = index;
}

static void due_up(struct keyspace *ks, struct ks_due *due) {
    uint32_t index = due->index;
    while (index > 0 && due_before(due, ks->due[(index - 1) / 2])) {
        due_place(ks, ks->due[(index - 1) / 2], index);
        index = (index - 1) / 2;
    }
    due_place(ks, due, index);
}

static void due_down(struct keyspace *ks, struct ks_due *due) {
    uint32_t index = due->index;
    for (;;) {
        uint64_t child = 2 * (uint64_t)index + 1;
        if (child >= ks->due_count) break;
        if (child + 1 < ks->due_count && due_before(ks->due[child + 1], ks->due[child])) child++;
        if (!due_before(ks->due[child], due)) break;
        due_place(ks, ks->due[child], index);
        index = (uint32_t)child;
    }
    due_place(ks, due, index);
}

static void due_remove(struct keyspace *ks, struct ks_due *due) {
    must(ks->due[due->index] == due);
    struct ks_due *last = ks->due[--ks->due_count];
    if (last == due) return;
    due_place(ks, last, due->index);
    due_up(ks, last);
    due_down(ks, last);
}

void ks_due_set(struct keyspace *ks, struct ks_due *due, uint64_t at_ms, uint64_t order) {
    if (due->at_ms != KS_NEVER) due_remove(ks, due);
    due->at_ms = at_ms;
    due->order = order;
    if (at_ms == KS_NEVER) return;
    if (ks->due_count == ks->due_capacity) {
        ks->due_capacity = ks->due_capacity ? ks->due_capacity * 2 : 64;
        ks->due = alloc_resize(ks->config.alloc, ks->due, ks->due_capacity * sizeof ks->due[0]);
    }
    due_place(ks, due, ks->due_count++);
    due_up(ks, due);
}

void ks_set_deadline(struct keyspace *ks, struct ks_name *name, uint64_t at_ms, uint64_t order) {
    if (name->due.at_ms == KS_NEVER && at_ms == KS_NEVER) return;
    ks_due_set(ks, &name->due, at_ms, order);
    ks->changes++;
}

void ks_end_due(struct keyspace *ks) {
    while (ks->due_count > 0 && ks->due[0]->at_ms <= ks->stamp_ms) {
        struct ks_due *due = ks->due[0];
        if (due->is_wait) {
            struct ks_waiter *w = (struct ks_waiter *)(void *)((char *)due - offsetof(struct ks_waiter, due));
            ks_wait_answer(ks, w, slice_str("$-1\r\n"));
            ks_unwait(ks, w);
        } else {
            ks_end(ks, (struct ks_name *)(void *)((char *)due - offsetof(struct ks_name, due)));
        }
    }
}

/* ---- all names ---- */

void ks_end_all(struct keyspace *ks) {
    struct ks_name *name, *next;
    for (uint32_t i = 0; i <= ks->shard_mask; i++) {
        HASH_ITER(hh, ks->names[i], name, next) {
            must(name->type == KS_STRING);
            /* Who waits is granted in an order that is the same everywhere: that of the versions, through the heap. */
            if (name->waiters != NULL)
                ks_due_set(ks, &name->due, 0, name->version);
            else
                ks_end(ks, name);
        }
    }
    ks_end_due(ks);
}

void ks_names_free(struct keyspace *ks) {
    const struct alloc *ut_alloc = ks->config.alloc;
    struct ks_name *name, *next;
    for (uint32_t i = 0; i <= ks->shard_mask; i++) {
        HASH_ITER(hh, ks->names[i], name, next) {
            HASH_DELETE(hh, ks->names[i], name);
            struct ks_waiter *w, *after;
            DL_FOREACH_SAFE(name->waiters, w, after) {
                alloc_put(ut_alloc, w->value);
                alloc_put(ut_alloc, w);
            }
            alloc_put(ut_alloc, name->value);
            alloc_put(ut_alloc, name);
        }
    }
    struct ks_life *life, *after;
    DL_FOREACH_SAFE(ks->lives, life, after) {
        alloc_put(ut_alloc, life);
    }
    alloc_put(ut_alloc, ks->names);
    alloc_put(ut_alloc, ks->due);
    alloc_put(ut_alloc, ks->vacated);
}

static uint64_t name_hash(const struct ks_name *name) {
    const uint64_t head[] = {name->type,
                             name->version,
                             name->touched,
                             name->due.at_ms,
                             name->due.at_ms == KS_NEVER ? 0 : name->due.order,
                             name->lease ? name->lease->id : 0,
                             name->waiter_count};
    uint64_t hash = XXH3_64bits(head, sizeof head);
    hash = XXH3_64bits_withSeed(name->key, name->key_bytes, hash);
    hash = XXH3_64bits_withSeed(name->value, name->value_bytes, hash);
    const struct ks_waiter *w;
    DL_FOREACH(name->waiters, w) {
        const uint64_t place[] = {w->lease->id, w->origin.node, w->origin.boot, w->origin.seq, w->queued,
                                  w->due.at_ms, w->due.order,   w->once.lease,  w->once.seq,   w->once.digest};
        hash = XXH3_64bits_withSeed(place, sizeof place, hash);
        hash = XXH3_64bits_withSeed(w->value, w->value_bytes, hash);
    }
    return hash;
}

uint64_t ks_names_hash(const struct keyspace *ks) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i <= ks->shard_mask; i++)
        for (const struct ks_name *name = ks->names[i]; name != NULL; name = name->hh.next) sum += name_hash(name);
    return sum;
}
