/* ks_save.c - the whole replicated state as a stream of checked blocks, and back.
 *
 * Names stand in the order of their leases and of their place in them, then those of no lease, in order: nothing has
 * to be sorted or gathered to write them, and to read them is to attach them again.  A waiter says when it was queued,
 * which is its place among its lease's, and when it was attached last, which is its place in its life. */
#include "lockd/core/ks_save.h"
#include "lockd/core/bug.h"
#include <stdio.h>
#include <utlist.h>
#include <xxhash.h>

/* "HFSTATE1" */
#define KS_SAVED_MAGIC 0x3145544154534648ULL

enum { KS_SAVED_FORMAT = 1 };
enum { NAME_TYPE = 3, NAME_TOUCHED = 4, NAME_DUE = 8, NAME_LEASED = 16, NAME_WAITED = 32, NAME_ALL = 63 };

/* ---- writing ---- */

static void put_number(char *at, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) at[i] = (char)(value >> (8 * i));
}

/* The block leaves as it is. */
static void block_end(struct ks_saver *s) {
    const size_t payload = s->bytes - KS_BLOCK_HEAD_BYTES;
    if (payload == 0) return;
    put_number(s->block, payload, 4);
    put_number(s->block + 4, XXH3_64bits(s->block + KS_BLOCK_HEAD_BYTES, payload), 8);
    if (s->result == 0) s->result = s->put(s->context, slice_of(s->block, s->bytes));
    s->blocks++;
    s->bytes = KS_BLOCK_HEAD_BYTES;
}

void ks_put(struct ks_saver *s, const void *data, size_t bytes) {
    const char *at = data;
    while (bytes > 0) {
        if (s->bytes == KS_BLOCK_BYTES_MAX) block_end(s);
        const size_t room = KS_BLOCK_BYTES_MAX - s->bytes, now = bytes < room ? bytes : room;
        memcpy(s->block + s->bytes, at, now);
        s->bytes += now;
        at += now;
        bytes -= now;
    }
}

static inline void put_integer(struct ks_saver *s, uint64_t value, size_t bytes) {
    if (KS_BLOCK_BYTES_MAX - s->bytes >= bytes) {
        put_number(s->block + s->bytes, value, bytes);
        s->bytes += bytes;
        return;
    }
    char text[8];
    put_number(text, value, bytes);
    ks_put(s, text, bytes);
}

void ks_put_u8(struct ks_saver *s, uint8_t value) {
    put_integer(s, value, 1);
}
void ks_put_u16(struct ks_saver *s, uint16_t value) {
    put_integer(s, value, 2);
}
void ks_put_u32(struct ks_saver *s, uint32_t value) {
    put_integer(s, value, 4);
}
void ks_put_u64(struct ks_saver *s, uint64_t value) {
    put_integer(s, value, 8);
}
void ks_put_bytes(struct ks_saver *s, struct slice bytes) {
    ks_put_u32(s, (uint32_t)bytes.bytes);
    ks_put(s, bytes.data, bytes.bytes);
}

void ks_put_once(struct ks_saver *s, struct ks_once_key key) {
    ks_put_u64(s, key.lease);
    ks_put_u64(s, key.seq);
    ks_put_u64(s, key.digest);
}

static void save_head(const struct keyspace *ks, struct ks_saver *s) {
    uint64_t lives = 0;
    const struct ks_life *life;
    DL_FOREACH(ks->lives, life) lives++;
    ks_put_u64(s, KS_SAVED_MAGIC);
    ks_put_u32(s, KS_SAVED_FORMAT);
    ks_put_u64(s, ks->slot);
    ks_put_u64(s, ks->revision);
    ks_put_u64(s, ks->stamp_ms);
    ks_put_u64(s, ks->ballot.round);
    ks_put_u16(s, ks->ballot.node);
    ks_put_u8(s, (uint8_t)(ks->has_settings | ks->gap << 1));
#define SETTING(name, value, low, high, unit, text) ks_put_u64(s, ks->settings.name);
    KEYSPACE_SETTINGS(SETTING)
#undef SETTING
    struct buf members = {.alloc = ks->config.alloc};
    ks_members_put(ks, &members);
    ks_put_bytes(s, buf_slice(&members));
    buf_release(&members);
    ks_put_u64(s, lives);
    ks_put_u64(s, ks->lease_count);
    ks_put_u64(s, ks->name_count);
    ks_put_u64(s, HASH_COUNT(ks->scripts));
    block_end(s);
}

static void save_waiter(const struct keyspace *ks, struct ks_saver *s, const struct ks_waiter *w) {
    uint32_t life_index = 0;
    const struct ks_life *life;
    DL_FOREACH(ks->lives, life) {
        if (life == w->life) break;
        life_index++;
    }
    ks_put_u64(s, w->lease->id);
    ks_put_u32(s, life_index);
    ks_put_u64(s, w->origin.seq);
    ks_put_once(s, w->once);
    ks_put_u64(s, w->queued);
    ks_put_u64(s, w->due.at_ms);
    ks_put_u64(s, w->due.order);
    ks_put_bytes(s, slice_of(w->value, w->value_bytes));
}

static void save_name(const struct keyspace *ks, struct ks_saver *s, const struct ks_name *name) {
    uint8_t flags = name->type;
    if (name->touched != 0) flags |= NAME_TOUCHED;
    if (name->due.at_ms != KS_NEVER) flags |= NAME_DUE;
    if (name->lease != NULL) flags |= NAME_LEASED;
    if (name->waiters != NULL && !BUG(48)) flags |= NAME_WAITED;
    ks_put_u8(s, flags);
    ks_put_u64(s, name->version);
    if (flags & NAME_TOUCHED) ks_put_u64(s, name->touched);
    if (flags & NAME_DUE) {
        ks_put_u64(s, name->due.at_ms);
        ks_put_u64(s, name->due.order);
    }
    if (flags & NAME_LEASED) ks_put_u64(s, name->lease->id);
    ks_put_bytes(s, ks_key(name));
    ks_put_bytes(s, ks_value(name));
    if (!(flags & NAME_WAITED)) return;
    ks_put_u32(s, name->waiter_count);
    const struct ks_waiter *w;
    DL_FOREACH(name->waiters, w) save_waiter(ks, s, w);
}

static void save_body(const struct keyspace *ks, struct ks_saver *s) {
    const struct ks_life *life;
    const struct ks_name *name;
    DL_FOREACH(ks->lives, life) {
        ks_put_u16(s, life->node);
        ks_put_u64(s, life->boot);
    }
    for (uint32_t i = 0; i < ks->place_count && s->result == 0; i++) {
        const struct ks_lease *lease = ks->leases[i].lease;
        if (lease == NULL) continue;
        ks_put_u64(s, lease->id);
        ks_put_u32(s, lease->ttl_ms);
        ks_put_u32(s, BUG(44) ? 0 : lease->remaining_ms);
        ks_put_bytes(s, slice_of(lease->holder, lease->holder_bytes));
        ks_put_u32(s, lease->once_count);
        for (const struct ks_once *o = lease->once; o != NULL; o = o->next) {
            ks_put_u64(s, o->seq);
            ks_put_u64(s, o->digest);
            ks_put_bytes(s, slice_of(o->reply, o->bytes)); /* empty: open */
        }
    }
    for (uint32_t i = 0; i < ks->place_count && s->result == 0; i++) {
        if (ks->leases[i].lease == NULL) continue;
        DL_FOREACH2(ks->leases[i].lease->names, name, lease_next) save_name(ks, s, name);
    }
    DL_FOREACH2(ks->unleased, name, lease_next) {
        if (s->result != 0) return;
        save_name(ks, s, name);
    }
    for (const struct ks_script_text *text = ks->scripts; text != NULL; text = text->hh.next)
        ks_put_bytes(s, slice_of(text->text, text->bytes));
    route_save(ks->route, s);
}

int keyspace_save(const struct keyspace *ks, int (*put)(void *context, struct slice bytes), void *context) {
    must(ks->base == NULL && ks->vacated_count == 0);
    struct ks_saver s = {.put = put,
                         .context = context,
                         .bytes = KS_BLOCK_HEAD_BYTES,
                         .block = alloc_get(ks->config.alloc, KS_BLOCK_BYTES_MAX)};
    save_head(ks, &s);
    if (s.result == 0) save_body(ks, &s);
    block_end(&s);
    if (s.result == 0) {
        ks_put_u32(&s, s.blocks);
        ks_put_u64(&s, keyspace_hash(ks));
        block_end(&s);
    }
    alloc_put(ks->config.alloc, s.block);
    return s.result;
}

/* ---- reading ---- */

bool ks_take_check(struct ks_loader *l, bool good, const char *what) {
    if (good || l->bad) return !l->bad;
    l->bad = true;
    snprintf(l->error, l->error_bytes, "block %u: %s", l->blocks, what);
    return false;
}

static uint64_t number_at(const char *at, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;) value = value << 8 | (uint8_t)at[i];
    return value;
}

static bool block_next(struct ks_loader *l) {
    l->blocks++;
    if (!ks_take_check(l, l->rest.bytes > KS_BLOCK_HEAD_BYTES, "it ends too early")) return false;
    const size_t payload = number_at(l->rest.data, 4);
    const uint64_t hash = number_at(l->rest.data + 4, 8);
    const bool fits = payload > 0 && payload <= KS_BLOCK_BYTES_MAX - KS_BLOCK_HEAD_BYTES &&
                      payload <= l->rest.bytes - KS_BLOCK_HEAD_BYTES;
    if (!ks_take_check(l, fits, "its length is wrong")) return false;
    l->at = l->rest.data + KS_BLOCK_HEAD_BYTES;
    if (!ks_take_check(l, XXH3_64bits(l->at, payload) == hash, "its checksum is wrong")) {
        l->at = l->end;
        return false;
    }
    l->end = l->at + payload;
    l->rest = slice_of(l->end, l->rest.bytes - KS_BLOCK_HEAD_BYTES - payload);
    return true;
}

void ks_take(struct ks_loader *l, void *to, size_t bytes) {
    char *at = to;
    while (bytes > 0) {
        if (l->bad || (l->at == l->end && !block_next(l))) {
            memset(at, 0, bytes);
            return;
        }
        const size_t there = (size_t)(l->end - l->at), now = bytes < there ? bytes : there;
        memcpy(at, l->at, now);
        l->at += now;
        at += now;
        bytes -= now;
    }
}

static inline uint64_t take_integer(struct ks_loader *l, size_t bytes) {
    if ((size_t)(l->end - l->at) >= bytes && !l->bad) {
        const uint64_t value = number_at(l->at, bytes);
        l->at += bytes;
        return value;
    }
    char text[8];
    ks_take(l, text, bytes);
    return number_at(text, bytes);
}

uint8_t ks_take_u8(struct ks_loader *l) {
    return (uint8_t)take_integer(l, 1);
}
uint16_t ks_take_u16(struct ks_loader *l) {
    return (uint16_t)take_integer(l, 2);
}
uint32_t ks_take_u32(struct ks_loader *l) {
    return (uint32_t)take_integer(l, 4);
}
uint64_t ks_take_u64(struct ks_loader *l) {
    return take_integer(l, 8);
}

uint64_t ks_take_revision(struct ks_loader *l) {
    const uint64_t revision = ks_take_u64(l);
    ks_take_check(l, revision > 0 && revision <= l->ks->revision, "a revision that was never given out");
    return l->bad ? 0 : revision;
}

uint32_t ks_take_length(struct ks_loader *l, uint32_t most) {
    const uint32_t bytes = ks_take_u32(l);
    ks_take_check(l, bytes <= most && bytes <= ks_left(l), "a length that is too large");
    return l->bad ? 0 : bytes;
}

void ks_take_words(struct ks_loader *l, uint32_t count, uint32_t most, struct slice *ret_words) {
    buf_clear(&l->words);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t bytes = ks_take_length(l, most);
        if (bytes > 0) ks_take(l, buf_reserve(&l->words, bytes), bytes);
        l->words.bytes += bytes;
        ret_words[i] = slice_of(NULL, bytes);
    }
    size_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (l->bad) ret_words[i].bytes = 0;
        if (ret_words[i].bytes > 0) ret_words[i].data = l->words.data + at;
        at += ret_words[i].bytes;
    }
}

struct ks_once_key ks_take_once(struct ks_loader *l) {
    const uint64_t lease = ks_take_u64(l), seq = ks_take_u64(l), digest = ks_take_u64(l);
    return (struct ks_once_key){.lease = lease, .seq = seq, .digest = digest};
}

struct counts {
    uint64_t lives, leases, names, scripts;
    struct ks_life **life; /* by index */
};

static void load_head(struct ks_loader *l, struct counts *c) {
    struct keyspace *ks = l->ks;
    if (!ks_take_check(l, ks_take_u64(l) == KS_SAVED_MAGIC, "this is no saved state")) return;
    if (!ks_take_check(l, ks_take_u32(l) == KS_SAVED_FORMAT, "its format is of another version")) return;
    ks->slot = ks_take_u64(l);
    ks->revision = ks_take_u64(l);
    ks->stamp_ms = BUG(86) ? ks_take_u64(l) / 2 : ks_take_u64(l);
    ks->ballot.round = ks_take_u64(l);
    ks->ballot.node = ks_take_u16(l);
    const uint8_t flags = ks_take_u8(l);
    ks_take_check(l, flags <= 3, "a flag that is neither set nor not");
    ks->has_settings = (flags & 1) != 0;
    ks->gap = (flags & 2) != 0;
#define SETTING(name, value, low, high, unit, text)                                                                    \
    ks->settings.name = ks_take_u64(l);                                                                                \
    ks_take_check(l, ks->settings.name >= low && ks->settings.name <= high, "a setting is out of range");
    KEYSPACE_SETTINGS(SETTING)
#undef SETTING
    struct slice members;
    ks_take_words(l, 1, KS_SAVED_NAME_BYTES_MAX, &members);
    ks_take_check(l, ks_members_take(ks, members), "members that cannot be");
    c->lives = ks_take_u64(l);
    c->leases = ks_take_u64(l);
    c->names = ks_take_u64(l);
    c->scripts = ks_take_u64(l);
    ks_take_check(l, l->at == l->end, "more in the head than belongs there");
    ks_take_check(l, ks->slot <= PAXOS_NUMBER_MAX / 2 && ks->revision <= INT64_MAX / 2 && ks->stamp_ms <= INT64_MAX,
                  "a slot, time or revision out of range");
}

static void load_lives(struct ks_loader *l, struct counts *c) {
    const struct alloc *alloc = l->ks->config.alloc;
    if (!ks_take_check(l, c->lives <= ks_left(l) / 10, "more lives than there is room for") || c->lives == 0) return;
    c->life = alloc_get0(alloc, c->lives * sizeof c->life[0]);
    for (uint64_t i = 0; i < c->lives && !l->bad; i++) {
        const uint16_t node = ks_take_u16(l);
        const uint64_t boot = ks_take_u64(l);
        if (!l->bad) c->life[i] = ks_life_add(l->ks, node, boot);
    }
}

static void load_once(struct ks_loader *l, struct ks_lease *lease) {
    const uint32_t count = ks_take_u32(l);
    uint64_t last = 0;
    ks_take_check(l, count <= KS_ONCE_MAX, "more replies than a lease remembers");
    for (uint32_t i = 0; i < count && !l->bad; i++) {
        const uint64_t seq = ks_take_u64(l), digest = ks_take_u64(l);
        struct slice reply;
        ks_take_words(l, 1, KS_ONCE_REPLY_BYTES_MAX, &reply);
        if (!ks_take_check(l, seq > last, "replies that are not in order")) return;
        last = seq;
        struct ks_once *o = ks_once_add(l->ks, lease, seq, digest);
        if (reply.bytes > 0) ks_once_set(l->ks, o, reply);
    }
}

static void load_leases(struct ks_loader *l, uint64_t count) {
    struct keyspace *ks = l->ks;
    uint64_t last = 0;
    for (uint64_t i = 0; i < count && !l->bad; i++) {
        const uint64_t id = ks_take_revision(l);
        const uint32_t ttl_ms = ks_take_u32(l), remaining_ms = ks_take_u32(l);
        struct slice holder;
        ks_take_words(l, 1, KS_SAVED_NAME_BYTES_MAX, &holder);
        if (!ks_take_check(l, id > last, "leases that are not in order") ||
            !ks_take_check(l, ttl_ms >= KS_LEASE_TTL_MS_MIN && ttl_ms <= KS_LEASE_TTL_MS_MAX,
                           "a lease whose ttl is out of range") ||
            !ks_take_check(l, remaining_ms <= ttl_ms, "a lease that has more left than its ttl"))
            return;
        last = id;
        struct ks_lease *lease = ks_lease_add(ks, id, ttl_ms, holder);
        lease->remaining_ms = remaining_ms;
        load_once(l, lease);
    }
}

static struct ks_lease *take_lease(struct ks_loader *l) {
    struct ks_lease *lease = ks_lease_find(l->ks, ks_take_u64(l));
    ks_take_check(l, lease != NULL, "a lease that does not exist");
    return l->bad ? NULL : lease;
}

/* An allocated copy, or NULL if there are none. */
static char *take_value(struct ks_loader *l, uint32_t *ret_bytes) {
    const uint32_t bytes = ks_take_length(l, UINT32_MAX);
    char *value = NULL;
    if (bytes > 0) ks_take(l, value = alloc_get(l->ks->config.alloc, bytes), bytes);
    *ret_bytes = bytes;
    return value;
}

static void load_waiter(struct ks_loader *l, const struct counts *c, struct ks_name *name) {
    struct keyspace *ks = l->ks;
    struct ks_lease *lease = take_lease(l);
    const uint32_t life = ks_take_u32(l);
    const uint64_t seq = ks_take_u64(l);
    const struct ks_once_key once = ks_take_once(l);
    const uint64_t queued = ks_take_revision(l), at_ms = ks_take_u64(l), order = ks_take_revision(l);
    const uint64_t after = name->waiters != NULL ? name->waiters->prev->queued : 0;
    if (!ks_take_check(l, queued > after, "a queue that is not in order") ||
        !ks_take_check(l, at_ms != KS_NEVER, "a wait without an end") ||
        !ks_take_check(l, life < c->lives, "a wait of nobody") ||
        !ks_take_check(l, lease != name->lease || name->type != KS_LOCK, "a holder that waits for its own lock"))
        return;
    struct ks_waiter *w = ks_wait_add(ks, name, lease, queued);
    w->once = once;
    w->value = take_value(l, &w->value_bytes);
    ks->memory_bytes += w->value_bytes;
    ks_wait_attach(w, c->life[life], seq);
    ks_due_set(ks, &w->due, at_ms, order);
}

static void load_name(struct ks_loader *l, const struct counts *c) {
    struct keyspace *ks = l->ks;
    const uint8_t flags = ks_take_u8(l);
    const enum ks_type type = (enum ks_type)(flags & NAME_TYPE);
    const uint64_t version = ks_take_revision(l);
    const uint64_t touched = flags & NAME_TOUCHED ? ks_take_revision(l) : 0;
    const uint64_t at_ms = flags & NAME_DUE ? ks_take_u64(l) : KS_NEVER;
    const uint64_t order = flags & NAME_DUE ? ks_take_revision(l) : 0;
    struct ks_lease *lease = flags & NAME_LEASED ? take_lease(l) : NULL;
    struct slice key;
    ks_take_words(l, 1, KS_SAVED_NAME_BYTES_MAX, &key);
    if (!ks_take_check(l, flags <= NAME_ALL && type != KS_VACANT, "a name of no known kind") ||
        !ks_take_check(l, type != KS_LOCK || lease != NULL, "a lock that nobody holds") ||
        !ks_take_check(l, type == KS_STRING || at_ms == KS_NEVER, "a deadline of what is not a string") ||
        !ks_take_check(l, type != KS_REGISTER || !(flags & (NAME_LEASED | NAME_WAITED)), "a register that may end"))
        return;
    struct ks_name *name = ks_make_first(ks, key, type);
    if (!ks_take_check(l, name != NULL, "a name that is there twice")) return;
    uint32_t value_bytes;
    char *value = take_value(l, &value_bytes);
    ks_write_owned(ks, name, value, value_bytes, version);
    name->touched = touched;
    ks_attach(ks, name, lease);
    ks_set_deadline(ks, name, at_ms, order);
    if (!(flags & NAME_WAITED)) return;
    const uint32_t waiters = ks_take_u32(l);
    for (uint32_t i = 0; i < waiters && !l->bad; i++) load_waiter(l, c, name);
}

static int by_queued(const struct ks_waiter *a, const struct ks_waiter *b) {
    return a->queued < b->queued ? -1 : a->queued > b->queued;
}

static int by_attached(const struct ks_waiter *a, const struct ks_waiter *b) {
    return a->due.order < b->due.order ? -1 : a->due.order > b->due.order;
}

/* They came in the order of the names. */
static void order_waiters(struct ks_loader *l) {
    struct keyspace *ks = l->ks;
    struct ks_life *life;
    for (uint32_t i = 0; i < ks->place_count && ks->waiter_count > 0; i++)
        DL_SORT2(ks->leases[i].lease->waits, by_queued, lease_prev, lease_next);
    DL_FOREACH(ks->lives, life) {
        ks_take_check(l, life->waiters != NULL, "a life without waits");
        DL_SORT2(life->waiters, by_attached, life_prev, life_next);
    }
}

static void load_scripts(struct ks_loader *l, uint64_t count) {
    for (uint64_t i = 0; i < count && !l->bad; i++) {
        struct slice text;
        ks_take_words(l, 1, UINT32_MAX, &text);
        if (!l->bad) ks_script_add(l->ks, text);
    }
    ks_take_check(l, HASH_COUNT(l->ks->scripts) == count, "a script that is there twice");
}

static void load_body(struct ks_loader *l, struct counts *c) {
    load_lives(l, c);
    load_leases(l, c->leases);
    for (uint64_t i = 0; i < c->names && !l->bad; i++) load_name(l, c);
    if (l->bad) return;
    order_waiters(l);
    load_scripts(l, c->scripts);
    if (!l->bad) route_load(l->ks->route, l);
}

static void load_end(struct ks_loader *l) {
    if (!ks_take_check(l, l->at == l->end, "more in it than was announced")) return;
    const uint32_t blocks = ks_take_u32(l);
    const uint64_t hash = ks_take_u64(l);
    if (!ks_take_check(l, blocks == l->blocks - 1, "blocks are missing") ||
        !ks_take_check(l, l->at == l->end && l->rest.bytes == 0, "something follows the end"))
        return;
    const uint64_t found = keyspace_hash(l->ks);
    if (found == hash) return;
    char what[80];
    snprintf(what, sizeof what, "the state is not the one that was saved: its hash is %016llx",
             (unsigned long long)found);
    ks_take_check(l, false, what);
}

struct keyspace *keyspace_load(const struct ks_config *config, struct slice bytes, char *error, size_t error_bytes) {
    struct ks_loader l = {.ks = keyspace_new(config),
                          .rest = bytes,
                          .error = error,
                          .error_bytes = error_bytes,
                          .words.alloc = config->alloc};
    struct counts counts = {0};
    load_head(&l, &counts);
    if (!l.bad) load_body(&l, &counts);
    if (!l.bad) load_end(&l);
    for (uint32_t i = 0; BUG(111) && !l.bad && i < l.ks->place_count; i++)
        if (l.ks->leases[i].lease != NULL) ks_once_free(l.ks, l.ks->leases[i].lease);
    alloc_put(config->alloc, counts.life);
    buf_release(&l.words);
    if (!l.bad) return l.ks;
    keyspace_free(l.ks);
    return NULL;
}

bool keyspace_saved_slot(struct slice bytes, paxos_slot *ret_slot) {
    char error[80];
    struct ks_loader l = {.rest = bytes, .error = error, .error_bytes = sizeof error};
    const bool known = ks_take_u64(&l) == KS_SAVED_MAGIC && ks_take_u32(&l) == KS_SAVED_FORMAT;
    const paxos_slot slot = ks_take_u64(&l);
    if (l.bad || !known) return false;
    *ret_slot = slot;
    return true;
}
