/* A saved state is the state: its bytes are the same on every node, what is loaded from them has the same hash, says
 * the same from there on, and is saved as the same bytes.  And whatever the bytes are, loading them ends well or is
 * refused. Guards keyspace_save and keyspace_load (keyspace.h): random batches of every kind of command, and thousands
 * of damaged streams, their checksums repaired. */
#include "lockd/core/route.h"
#include "tests/unit/lockd/core/ks_story.h"
#include <xxhash.h>

static uint64_t random_state;
static uint32_t pick(uint32_t below) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % below);
}

/* ---- random batches ---- */

enum { SESSIONS = 6, QUEUED = 16, LEASES = 64 };
static uint64_t leases[LEASES], epochs[SESSIONS], queued[QUEUED], stalled[LEASES][2];
static uint32_t lease_count, queued_count, stalled_count;
static bool with_large;
static uint32_t bias; /* what most lines are about */

static bool note_lease(void *context, uint64_t id, uint64_t ttl_ms) {
    (void)context, (void)ttl_ms;
    leases[lease_count++] = id;
    return lease_count < LEASES;
}
static void note_stall(void *context, uint64_t asked, uint64_t lease) {
    (void)context;
    if (stalled_count == LEASES) return;
    stalled[stalled_count][0] = asked;
    stalled[stalled_count++][1] = lease;
}

static uint64_t a_lease(void) {
    return lease_count > 0 && pick(20) > 0 ? leases[pick(lease_count)] : 1 + pick(50);
}

static const char *const names[] = {"a", "b", "c", "d", "''", "lock", "key-with-a-long-name", "z"};
static const char *a_name(void) {
    return names[pick(sizeof names / sizeof names[0])];
}

struct line {
    char text[1900];
};
static const char *say(struct line *line, const char *format, ...) __attribute__((format(printf, 2, 3)));
static const char *say(struct line *line, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(line->text, sizeof line->text, format, args);
    va_end(args);
    return line->text;
}

static const char *route_line(struct line *l) {
    const uint32_t session = pick(SESSIONS), first = pick(3);
    const unsigned long long lease = a_lease(), epoch = pick(6) > 0 ? epochs[session] : pick(40);
    static const char *const backends[] = {"a", "bb", "c"};
    switch (pick(12)) {
    case 0:
    case 1: return say(l, "ROUTE.BIND p s%u LEASE %llu %s PREFER a bb c", session, lease, backends[first]);
    case 2:
    case 3: return say(l, "ROUTE.GET p s%u LEASE %llu", session, lease);
    case 4: return say(l, "ROUTE.MOVE p s%u %llu LEASE %llu %s FORCE", session, epoch, lease, backends[first]);
    case 5: return say(l, "ROUTE.MOVE p s%u %llu LEASE %llu %s", session, epoch, lease, backends[first]);
    case 6: return say(l, "ROUTE.DROP p s%u %llu LEASE %llu", session, epoch, lease);
    case 7: return say(l, "ROUTE.TOUCH p LEASE %llu s%u s%u", lease, session, pick(SESSIONS));
    case 8: return say(l, "ROUTE.SUSPECT p %s 0 LEASE %llu", backends[first], lease);
    case 9:
        if (pick(2)) return say(l, pick(2) ? "%%REMAINING %llu 700" : "%%RENEWED %llu", lease);
        return say(l, "%%ROUTE_JOIN %llu", lease);
    case 10:
        return say(l, "%%ROUTE_ACK %llu %llu", lease,
                   (unsigned long long)(keyspace_revision(ks) - pick(20) % (keyspace_revision(ks) + 1)));
    default:
        if (stalled_count == 0) return say(l, "%%ROUTE_PASSED 1 1");
        const uint64_t *one = stalled[pick(stalled_count)];
        return say(l, "%%ROUTE_PASSED %llu %llu", (unsigned long long)one[0], (unsigned long long)one[1]);
    }
}

static const char *lock_line(struct line *l) {
    const unsigned long long lease = a_lease();
    switch (pick(10)) {
    case 0:
    case 1:
    case 2: return say(l, "LOCK.ACQUIRE %s LEASE %llu WAIT %u VALUE v%u", a_name(), lease, 1 + pick(9000), pick(100));
    case 3: return say(l, "LOCK.ACQUIRE %s LEASE %llu", a_name(), lease);
    case 4: return say(l, "ELECT.CAMPAIGN %s LEASE %llu VALUE me WAIT %u", a_name(), lease, 1 + pick(5000));
    case 5: return say(l, "LOCK.RELEASE %s LEASE %llu", a_name(), lease);
    case 6: return say(l, "ELECT.RESIGN %s LEASE %llu", a_name(), lease);
    case 7:
        if (pick(4) > 0) return say(l, "SET %s 1 LEASE %llu", a_name(), lease);
        return say(l, "%%ORIGIN_GONE %u %u", pick(3), 1 + pick(3));
    default:
        if (queued_count == 0) return say(l, "LEASE.GRANT %u NAME holder-%u", 1000 + pick(9000), pick(9));
        return say(l, "%%DEQUEUE %s 0 1 %llu", pick(2) ? a_name() : "''",
                   (unsigned long long)queued[pick(queued_count)]);
    }
}

static const char *string_line(struct line *l) {
    static char large[1500];
    memset(large, 'x', sizeof large - 1);
    const char *value = with_large ? large + pick(1400) : "value";
    switch (pick(16)) {
    case 0: return say(l, "SET %s %s PX %u", a_name(), value, 1 + pick(2000));
    case 1: return say(l, "SET %s %s NX", a_name(), value);
    case 2: return say(l, "SET %s %s KEEPTTL", a_name(), value);
    case 3: return say(l, "SET %s %s LEASE %llu", a_name(), value, (unsigned long long)a_lease());
    case 4: return say(l, "SET n%u %s", pick(40), value);
    case 5: return say(l, "DEL %s %s", a_name(), a_name());
    case 6: return say(l, "PEXPIRE %s %u", a_name(), pick(3000));
    case 7: return say(l, "PERSIST %s", a_name());
    case 8: return say(l, "INCR counter%u", pick(3));
    case 9: return say(l, "CAS %s 0 %s LEASE %llu", a_name(), value, (unsigned long long)a_lease());
    case 10: return pick(4) ? say(l, "GET %s", a_name()) : say(l, "WOR.SET w%u %s", pick(4), value);
    case 11: return pick(20) ? say(l, "SCRIPT LOAD 'return %u'", pick(9)) : say(l, "SCRIPT FLUSH");
    case 12: return say(l, "FLUSHALL");
    case 13:
        switch (pick(5)) {
        case 0: return say(l, "%%MEMBERS 1 1 h:1 2 2 h:2 3 3 ''");
        case 1: return say(l, "NODE.ADD %u h%u:%u 000000000000000%u", 1 + pick(9), pick(9), 1 + pick(9), 1 + pick(9));
        case 2: return say(l, "NODE.REMOVE %u", 1 + pick(9));
        default: return say(l, "%%PROMOTE %u %u", 1 + pick(9), 1 + pick(9));
        }
    default: return say(l, "DEL n%u", pick(40));
    }
}

static const char *random_line(struct line *l) {
    if (bias == 1 && pick(3) > 0) return route_line(l);
    if (bias == 2 && pick(3) > 0) return lock_line(l);
    switch (pick(8)) {
    case 0:
        if (lease_count < 3 + 3 * bias) return say(l, "LEASE.GRANT %u NAME holder-%u", 1000 + pick(9000), pick(9));
        return pick(2) ? say(l, "LEASE.REVOKE %llu", (unsigned long long)a_lease())
                       : say(l, "%%EXPIRE %llu %llu", (unsigned long long)a_lease(), (unsigned long long)a_lease());
    case 1:
    case 2: return string_line(l);
    case 3:
    case 4: return lock_line(l);
    default: return route_line(l);
    }
}

/* A script that the leader ran on the state as it is. */
static void random_script(void) {
    static const char text[] =
        "if redis.call('get', KEYS[1]) then redis.call('del', KEYS[1]) "
        "else redis.call('set', KEYS[1], ARGV[1]) end redis.call('incr', KEYS[2]) return ARGV[1]";
    const struct slice argv[] = {slice_str("EVAL"),
                                 slice_of(text, sizeof text - 1 - pick(2)),
                                 slice_str("2"),
                                 slice_str(names[pick(4)]),
                                 slice_str("counter-eval"),
                                 slice_str("argument")};
    struct ks_effects effects = {.bytes = {.alloc = heap_alloc()}};
    uint64_t need;
    if (keyspace_script(ks, story_stamp, 6, argv, &effects, &need) == KS_SCRIPT_PROPOSE) {
        const struct origin origin = {.node = story_origin.node, .boot = story_origin.boot, .seq = ++story_seq};
        batch_add(&story_value, origin, effects.argc, effects.argv);
    }
    ks_effects_release(&effects);
}

static void random_batch(void) {
    struct line line, once;
    lease_count = stalled_count = 0;
    keyspace_each_lease(ks, note_lease, NULL);
    route_each_stall(keyspace_route(ks), note_stall, NULL);
    if (story_stamp < keyspace_stamp(ks)) at(keyspace_stamp(ks));
    at(story_stamp + pick(pick(10) ? 40 : 1500));
    if (pick(30) == 0) story_ballot = (struct ballot){.round = story_ballot.round + pick(2), .node = (uint16_t)pick(3)};
    batch_begin(&story_value, story_ballot, pick(15) == 0, story_stamp);
    for (uint32_t i = pick(6); i > 0; i--) {
        const char *text = pick(20) ? random_line(&line) : NULL;
        if (text != NULL && *text == '%')
            story_origin = ORIGIN_NONE;
        else
            origin_is((uint16_t)(pick(2) ? 0 : pick(3)), 1 + (pick(4) == 0));
        if (text != NULL && *text != '%' && pick(4) == 0)
            text = say(&once, "ONCE %llu %u %s", (unsigned long long)a_lease(), 1 + pick(30), text);
        if (text != NULL)
            batch_line(text);
        else
            random_script();
    }
    origin_is(0, 1);
}

/* What later lines name: epochs that replies told, calls that wait. */
static void learn(const struct ks_facts *facts) {
    for (uint32_t i = 0; i < facts->count; i++) {
        const struct ks_fact *f = &facts->facts[i];
        unsigned long long epoch;
        char text[48] = {0};
        if (f->kind == KS_QUEUED && queued_count < QUEUED) queued[queued_count++] = f->origin.seq;
        if (f->kind == KS_QUEUED && queued_count == QUEUED) queued[pick(QUEUED)] = f->origin.seq;
        if (f->kind != KS_REPLY || f->reply.bytes < 20) continue;
        memcpy(text, f->reply.data, f->reply.bytes < sizeof text ? f->reply.bytes : sizeof text - 1);
        if (sscanf(text, "*7 $%*d %*s :%llu", &epoch) == 1) epochs[pick(SESSIONS)] = epoch;
    }
}

static void apply_story(void) {
    keyspace_apply(ks, ++story_slot, buf_slice(&story_value), &story_facts);
    learn(&story_facts);
}

/* ---- saving and loading ---- */

static int gather(void *context, struct slice bytes) {
    QUICK(bytes.bytes <= KEYSPACE_BLOCK_BYTES_MAX);
    buf_append_slice(context, bytes);
    return 0;
}

static struct buf saved_of(const struct keyspace *of) {
    struct buf b = {.alloc = heap_alloc()};
    QUICK(keyspace_save(of, gather, &b) == 0);
    return b;
}

static struct ks_config same_config(void) {
    return (struct ks_config){.alloc = heap_alloc(), .node = 0, .boot = 1};
}

static char error[120];
static struct keyspace *load(const struct buf *b) {
    const struct ks_config config = same_config();
    error[0] = '\0';
    return keyspace_load(&config, buf_slice(b), error, sizeof error);
}

/* What was saved is what is loaded; returns it. */
static struct keyspace *reloaded(const struct keyspace *of) {
    struct buf b = saved_of(of);
    struct keyspace *copy = load(&b);
    if (copy == NULL) ck_abort_msg("slot %llu: %s", (unsigned long long)keyspace_slot(of), error);
    QUICK(keyspace_hash(copy) == keyspace_hash(of));
    struct buf again = saved_of(copy);
    QUICK(slice_equal(buf_slice(&again), buf_slice(&b)));
    struct ks_counts counts, copied;
    keyspace_counts(of, &counts);
    keyspace_counts(copy, &copied);
    QUICK(memcmp(&counts, &copied, sizeof counts) == 0);
    paxos_slot slot;
    QUICK(keyspace_saved_slot(buf_slice(&b), &slot) && slot == keyspace_slot(of));
    buf_release(&again);
    buf_release(&b);
    return copy;
}

static bool same_facts(const struct ks_facts *a, const struct ks_facts *b) {
    if (a->count != b->count) return false;
    for (uint32_t i = 0; i < a->count; i++) {
        const struct ks_fact *x = &a->facts[i], *y = &b->facts[i];
        if (x->kind != y->kind || !origin_equal(x->origin, y->origin) || !ballot_equal(x->ballot, y->ballot) ||
            x->id != y->id || x->ttl_ms != y->ttl_ms || !slice_equal(x->reply, y->reply))
            return false;
    }
    return true;
}

START_TEST(a_loaded_state_goes_on_as_the_saved_one) {
    random_state = (uint64_t)_i;
    with_large = _i % 4 == 3;
    bias = (uint32_t)_i % 3;
    /* Another node's, whose tables have another order. */
    const struct ks_config other_config = {.alloc = heap_alloc(), .node = 2, .boot = 0xfeedbeef};
    struct keyspace *other = keyspace_new(&other_config), *copy = reloaded(ks);
    if (_i % 3 == 2) {
        batch_start();
        story_origin = ORIGIN_NONE;
        batch_line("%SETTINGS waiters_max 2 scripts_max 3 keys_max 30 binding_memory_ms 2000 memory_max 1048576");
        batch_end();
        struct ks_facts facts;
        keyspace_apply(other, story_slot, buf_slice(&story_value), &facts);
        keyspace_apply(copy, story_slot, buf_slice(&story_value), &facts);
    }
    for (int batch = 0; batch < 400; batch++) {
        struct ks_facts other_facts, copy_facts;
        random_batch();
        apply_story();
        keyspace_apply(other, story_slot, buf_slice(&story_value), &other_facts);
        keyspace_apply(copy, story_slot, buf_slice(&story_value), &copy_facts);
        if (!same_facts(&story_facts, &copy_facts) || keyspace_hash(ks) != keyspace_hash(copy))
            ck_abort_msg("seed %d batch %d: the loaded state went another way", _i, batch);
        if (pick(8) > 0) continue;
        keyspace_free(copy);
        copy = reloaded(ks);
        struct buf here = saved_of(ks), there = saved_of(other);
        QUICK(slice_equal(buf_slice(&here), buf_slice(&there)));
        buf_release(&here);
        buf_release(&there);
    }
    keyspace_free(copy);
    keyspace_free(other);
}
END_TEST

static void reload(void) {
    struct keyspace *copy = reloaded(ks);
    keyspace_free(ks);
    ks = copy;
}

/* Who waits in many queues is told in the order in which it queued; a life's waits end in the order of attachment; what
 * a lease held ends in the order in which it got it. */
START_TEST(places_keep_their_order) {
    at(1000);
    SAYS("LEASE.GRANT 5000", "1");
    SAYS("LEASE.GRANT 5000", "2");
    SAYS("LEASE.GRANT 5000", "3");
    SAYS("LOCK.ACQUIRE a LEASE 1", "4");
    SAYS("LOCK.ACQUIRE b LEASE 2", "5");
    SAYS("LOCK.ACQUIRE b LEASE 3 WAIT 900", "queued"); /* #6 */
    SAYS("LOCK.ACQUIRE a LEASE 3 WAIT 900", "queued"); /* #7 */
    SAYS("LOCK.ACQUIRE a LEASE 2 WAIT 900", "queued"); /* #8 */
    FACTS("LOCK.ACQUIRE b LEASE 3 WAIT 900",
          "#6 -ERR this wait was taken over by a later LOCK.ACQUIRE of the same lease; #9 queued");
    reload();
    FACTS("LEASE.REVOKE 3", "#9 -NOLEASE lease 3 ended while it waited; #7 -NOLEASE lease 3 ended while it waited; "
                            "lease- 3; #10 1");
    SAYS("LOCK.ACQUIRE b LEASE 1 WAIT 900", "queued"); /* #11 */
    FACTS("LOCK.ACQUIRE a LEASE 2 WAIT 900",
          "#8 -ERR this wait was taken over by a later LOCK.ACQUIRE of the same lease; #12 queued");
    reload();
    FACTS("%ORIGIN_GONE 0 1", "#11 -CLUSTERDOWN the wait ended: node 0 lost contact with the leader; "
                              "#12 -CLUSTERDOWN the wait ended: node 0 lost contact with the leader; #13 OK");
    SAYS("SET y 1 LEASE 1", "OK");
    SAYS("SET x 1 LEASE 1", "OK");
    SAYS("SET y 2 KEEPTTL", "OK");
    SAYS("LOCK.ACQUIRE x LEASE 2 WAIT 900", "queued"); /* #17 */
    SAYS("LOCK.ACQUIRE y LEASE 2 WAIT 900", "queued"); /* #18 */
    reload();
    FACTS("LEASE.REVOKE 1", "#18 20; #17 21; lease- 1; #19 1"); /* y was the lease's before x was */
}
END_TEST

/* ---- bytes that lie ---- */

static uint64_t number_at(const char *at_, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;) value = value << 8 | (uint8_t)at_[i];
    return value;
}
static void put_at(char *at_, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) at_[i] = (char)(value >> (8 * i));
}

/* Where the blocks begin; the last entry is the end. */
static uint32_t blocks_of(const struct buf *b, size_t *starts, uint32_t most) {
    uint32_t count = 0;
    size_t start = 0;
    while (start + 12 <= b->bytes && count + 1 < most) {
        starts[count++] = start;
        const size_t payload = number_at(b->data + start, 4);
        if (payload > b->bytes - start - 12) break;
        start += 12 + payload;
    }
    starts[count] = start;
    return count;
}

static void repair_checksums(struct buf *b) {
    size_t starts[64];
    const uint32_t count = blocks_of(b, starts, 64);
    for (uint32_t i = 0; i < count; i++) {
        const size_t payload = number_at(b->data + starts[i], 4);
        if (starts[i] + 12 + payload > b->bytes) return;
        put_at(b->data + starts[i] + 4, XXH3_64bits(b->data + starts[i] + 12, payload), 8);
    }
}

static void swap_block_in(struct buf *b, const struct buf *from, uint32_t index, uint32_t with, bool twice) {
    size_t starts[64];
    const uint32_t count = blocks_of(from, starts, 64);
    buf_clear(b);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t take = i == index % count ? with % count : i;
        const struct slice block = slice_of(from->data + starts[take], starts[take + 1] - starts[take]);
        buf_append_slice(b, block);
        if (twice && i == index % count)
            buf_append_slice(b, slice_of(from->data + starts[i], starts[i + 1] - starts[i]));
    }
}

/* Integers near what was there, and at the borders. */
static void change_integer(struct buf *b) {
    static const size_t sizes[] = {1, 2, 4, 8};
    const size_t bytes = sizes[pick(4)];
    if (b->bytes < 24 + bytes) return;
    char *at_ = b->data + 12 + pick((uint32_t)(b->bytes - 12 - bytes));
    uint64_t value = number_at(at_, bytes);
    switch (pick(6)) {
    case 0: value = 0; break;
    case 1: value = UINT64_MAX; break;
    case 2: value++; break;
    case 3: value--; break;
    case 4: value ^= 1ull << pick((uint32_t)(8 * bytes)); break;
    default: value = pick(40); break;
    }
    put_at(at_, value, bytes);
}

/* A session or a number that the state knows, in the place of another. */
static void change_known(struct buf *b) {
    const uint32_t start = pick((uint32_t)b->bytes);
    const bool session = pick(2);
    for (size_t i = start; i + 8 < b->bytes; i++) {
        if (session && b->data[i] == 's' && b->data[i + 1] >= '0' && b->data[i + 1] < '0' + SESSIONS) {
            b->data[i + 1] = (char)('0' + pick(SESSIONS));
            return;
        }
        for (uint32_t k = 0; !session && k < lease_count; k++) {
            if (number_at(b->data + i, 8) != leases[k]) continue;
            put_at(b->data + i, leases[pick(lease_count)], 8);
            return;
        }
    }
}

static uint32_t loads, hashes_repaired;
static char reasons[64][120];
static uint32_t reason_count;

/* Refused with a reason, or a state that can be worked with: it is saved, loaded, and lives through what comes. */
static void try_bytes(struct buf *b) {
    struct keyspace *copy = load(b);
    unsigned long long hash;
    const char *said = strstr(error, "its hash is ");
    if (copy == NULL && said != NULL && sscanf(said, "its hash is %llx", &hash) == 1) {
        /* Whoever made these bytes could have said so himself. */
        put_at(b->data + b->bytes - 8, hash, 8);
        repair_checksums(b);
        hashes_repaired++;
        copy = load(b);
    }
    if (copy == NULL) {
        QUICK(error[0] != '\0' && strlen(error) < sizeof error);
        const char *reason = strstr(error, ": ") + 2;
        uint32_t i = 0;
        while (i < reason_count && strcmp(reasons[i], reason) != 0) i++;
        if (i == reason_count && i < 64) strcpy(reasons[reason_count++], reason);
        return;
    }
    loads++;
    struct keyspace *const before = ks;
    const paxos_slot slot = story_slot;
    const uint64_t stamp = story_stamp;
    ks = copy;
    story_slot = keyspace_slot(ks);
    for (int i = 0; i < 30; i++) {
        random_batch();
        if (story_slot == UINT64_MAX) break;
        apply_story();
    }
    keyspace_free(ks);
    ks = before;
    story_slot = slot;
    at(stamp);
}

START_TEST(no_bytes_do_harm) {
    random_state = 1000 + (uint64_t)_i;
    with_large = _i % 2 == 1;
    bias = (uint32_t)_i % 3;
    loads = hashes_repaired = reason_count = 0;
    for (int round = 0; round < 40; round++) {
        for (int i = 0; i < 25; i++) {
            random_batch();
            apply_story();
        }
        struct buf good = saved_of(ks), bad = {.alloc = heap_alloc()};
        for (int i = 0; i < 150; i++) {
            buf_clear(&bad);
            buf_append_slice(&bad, buf_slice(&good));
            switch (pick(8)) {
            case 0: bad.bytes = pick((uint32_t)bad.bytes + 1); break;
            case 1: bad.data[pick((uint32_t)bad.bytes)] ^= (char)(1 << pick(8)); break; /* its checksum stays */
            case 2: swap_block_in(&bad, &good, pick(64), pick(64), pick(2)); break;
            case 3:
                bad.bytes = pick((uint32_t)bad.bytes + 1);
                repair_checksums(&bad);
                break;
            default:
                for (uint32_t k = 1 + pick(3); k > 0; k--) {
                    if (pick(2))
                        change_known(&bad);
                    else
                        change_integer(&bad);
                }
                repair_checksums(&bad);
                break;
            }
            try_bytes(&bad);
        }
        buf_release(&good);
        buf_release(&bad);
    }
    ck_assert_uint_gt(hashes_repaired, 0);
    ck_assert_uint_gt(loads, 100);
    ck_assert_uint_gt(reason_count, 10);
}
END_TEST

static int stop_at(void *context, struct slice bytes) {
    uint32_t *left = context;
    QUICK(bytes.bytes > 12);
    return --*left == 0 ? 77 : 0;
}

START_TEST(a_save_stops_when_it_is_told_to) {
    struct line line;
    at(1000);
    for (int i = 0; i < 2000; i++) facts_of(say(&line, "SET key%d %0512d", i, i));
    for (uint32_t stop = 1; stop < 10; stop++) {
        uint32_t left = stop;
        ck_assert_int_eq(keyspace_save(ks, stop_at, &left), 77);
        ck_assert_uint_eq(left, 0); /* and is not asked again */
    }
}
END_TEST

START_TEST(what_is_no_state_is_refused) {
    struct buf b = saved_of(ks);
    paxos_slot slot = 7;
    ck_assert_ptr_null(load(&(struct buf){0}));
    ck_assert_str_eq(error, "block 1: it ends too early");
    b.data[12] ^= 1;
    ck_assert(!keyspace_saved_slot(buf_slice(&b), &slot));
    ck_assert_ptr_null(load(&b));
    ck_assert_str_eq(error, "block 1: its checksum is wrong");
    repair_checksums(&b);
    ck_assert(!keyspace_saved_slot(buf_slice(&b), &slot));
    ck_assert_ptr_null(load(&b));
    ck_assert_str_eq(error, "block 1: this is no saved state");
    b.data[12] ^= 1;
    b.data[20]++;
    repair_checksums(&b);
    ck_assert(!keyspace_saved_slot(buf_slice(&b), &slot));
    ck_assert_ptr_null(load(&b));
    ck_assert_str_eq(error, "block 1: its format is of another version");
    ck_assert_uint_eq(slot, 7);
    b.data[20]--;
    repair_checksums(&b);
    keyspace_free(load(&b));
    ck_assert_str_eq(error, "");
    buf_append_str(&b, "x");
    ck_assert_ptr_null(load(&b));
    ck_assert_str_eq(error, "block 3: something follows the end");
    buf_release(&b);
}
END_TEST

/* What M1 and K7 (ks_state.h) rule out. */
static const struct {
    const char *line;
    size_t before; /* its flags stand so many bytes before the length of its key */
    char flags;
    const char *error;
} pokes[] = {
    {"SET poked v", 9, 2, "a lock that nobody holds"},
    {"SET poked v", 9, 0, "a name of no known kind"},
    {"SET poked v", 9, 64 + 1, "a name of no known kind"},
    {"SET poked v LEASE 1", 17, 16 + 3, "a register that may end"},
    {"SET poked v PX 500", 25, 8 + 3, "a deadline of what is not a string"},
    {"SET poked v PX 500", 25, 8 + 2, "a lock that nobody holds"},
};

START_TEST(a_name_that_cannot_be_is_refused) {
    SAYS("LEASE.GRANT 5000", "1");
    SAYS(pokes[_i].line, "OK");
    struct buf b = saved_of(ks);
    size_t at_ = 0;
    while (memcmp(b.data + at_, "\5\0\0\0poked", 9) != 0) at_++;
    b.data[at_ - pokes[_i].before] = pokes[_i].flags;
    repair_checksums(&b);
    ck_assert_ptr_null(load(&b));
    ck_assert_str_eq(strstr(error, ": ") + 2, pokes[_i].error);
    buf_release(&b);
}
END_TEST

/* The session that a waiting MOVE names is that of the move it waits for; or it would end holds while moves end. */
START_TEST(a_wait_is_about_its_own_move) {
    static const char *const lines[] = {"LEASE.GRANT 5000",
                                        "LEASE.GRANT 5000",
                                        "ROUTE.BIND p s1 LEASE 1 a PREFER a b",
                                        "ROUTE.BIND p s2 LEASE 1 a PREFER a b",
                                        "ROUTE.MOVE p s1 3 LEASE 2 b FORCE",
                                        "ROUTE.MOVE p s1 3 LEASE 2 b FORCE",
                                        "ROUTE.TOUCH p LEASE 2 s3 s1",
                                        "ROUTE.MOVE p s2 4 LEASE 2 b FORCE"};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) facts_of(lines[i]);
    static const char *const calls[] = {"ROUTE.MOVE", "ROUTE.TOUCH"};
    uint32_t tried = 0;
    struct buf good = saved_of(ks), bad = {.alloc = heap_alloc()};
    for (size_t i = 0; i + 80 < good.bytes; i++) {
        for (int k = 0; k < 2; k++) {
            if (memcmp(good.data + i, calls[k], strlen(calls[k])) != 0) continue;
            buf_clear(&bad);
            buf_append_slice(&bad, buf_slice(&good));
            char *session = memmem(bad.data + i, 80, "s1", 2);
            if (session == NULL) continue;
            session[1] = '2';
            repair_checksums(&bad);
            ck_assert_ptr_null(load(&bad));
            ck_assert_str_eq(strstr(error, ": ") + 2, "a call that cannot wait");
            session[1] = '1';
            *(char *)memmem(bad.data + i, 80, "p", 1) = 'q';
            repair_checksums(&bad);
            ck_assert_ptr_null(load(&bad));
            ck_assert_str_eq(strstr(error, ": ") + 2, "a call that cannot wait");
            tried++;
        }
    }
    ck_assert_uint_eq(tried, 3);
    buf_release(&good);
    buf_release(&bad);
}
END_TEST

static void add(TCase *tc) {
    tcase_add_loop_test(tc, a_name_that_cannot_be_is_refused, 0, sizeof pokes / sizeof pokes[0]);
    tcase_add_test(tc, a_wait_is_about_its_own_move);
    tcase_add_test(tc, places_keep_their_order);
    tcase_add_loop_test(tc, a_loaded_state_goes_on_as_the_saved_one, 0, 24);
    tcase_add_loop_test(tc, no_bytes_do_harm, 0, 6);
    tcase_add_test(tc, a_save_stops_when_it_is_told_to);
    tcase_add_test(tc, what_is_no_state_is_refused);
}

int main(void) {
    return story_main("keyspace saved", add);
}
