/* script.c - scripts: the cache of their texts, what one is given, and applying what one did (script.h).  Part of the
 * keyspace. */
#include <openssl/sha.h>

#define uthash_malloc(bytes)       alloc_get(ut_alloc, (bytes))
#define uthash_free(memory, bytes) alloc_put(ut_alloc, (memory))
#define uthash_fatal(message)      must_fail(__FILE__, __LINE__, (message))
#include "lockd/core/script_run.h"
#include "lockd/core/bug.h"
#include <stdio.h>

/* ---- the cache of texts: replicated, the oldest goes ---- */

void script_sha(struct slice text, char ret_sha[41]) {
    static const char digits[] = "0123456789abcdef";
    unsigned char digest[SHA_DIGEST_LENGTH];
    must(SHA1((const unsigned char *)text.data, text.bytes, digest) != NULL);
    for (int i = 0; i < SHA_DIGEST_LENGTH; i++) {
        ret_sha[2 * i] = digits[digest[i] >> 4];
        ret_sha[2 * i + 1] = digits[digest[i] & 15];
    }
    ret_sha[40] = '\0';
}

/* Digests are accepted in any case, as by Redis. */
static struct ks_script_text *cache_find(const struct keyspace *ks, struct slice sha) {
    char lower[KS_SHA_BYTES];
    struct ks_script_text *found = NULL;
    if (sha.bytes != KS_SHA_BYTES) return NULL;
    for (int i = 0; i < KS_SHA_BYTES; i++) {
        const char c = sha.data[i];
        lower[i] = c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
    }
    HASH_FIND(hh, ks->scripts, lower, KS_SHA_BYTES, found);
    return found;
}

static void cache_drop(struct keyspace *ks, struct ks_script_text *s) {
    const struct alloc *ut_alloc = ks->config.alloc;
    HASH_DELETE(hh, ks->scripts, s);
    ks->memory_bytes -= s->bytes;
    alloc_put(ut_alloc, s);
}

static void cache_add(struct keyspace *ks, struct slice text, const char *sha) {
    const struct alloc *ut_alloc = ks->config.alloc;
    if (cache_find(ks, slice_of(sha, KS_SHA_BYTES)) != NULL) return;
    while (HASH_COUNT(ks->scripts) >= ks->settings.scripts_max) cache_drop(ks, ks->scripts);
    struct ks_script_text *s = alloc_get0(ut_alloc, sizeof *s + text.bytes);
    memcpy(s->sha, sha, KS_SHA_BYTES);
    s->bytes = (uint32_t)text.bytes;
    if (text.bytes > 0) memcpy(s->text, text.data, text.bytes);
    HASH_ADD(hh, ks->scripts, sha, KS_SHA_BYTES, s);
    ks->memory_bytes += text.bytes;
}

void ks_script_add(struct keyspace *ks, struct slice text) {
    char sha[KS_SHA_BYTES + 1];
    script_sha(text, sha);
    cache_add(ks, text, sha);
}

static void cache_clear(struct keyspace *ks) {
    while (ks->scripts != NULL) cache_drop(ks, ks->scripts);
}

void ks_scripts_free(struct keyspace *ks) {
    cache_clear(ks);
    script_engine_free(ks->engine);
}

static void script_load(struct ks_call *call) {
    char sha[KS_SHA_BYTES + 1];
    const struct slice text = call->argv[2];
    if (!ks_check_value(call, text) || !script_compiles(call->ks, text, call->reply) ||
        !ks_room(call, false, text.bytes))
        return;
    script_sha(text, sha);
    cache_add(call->ks, text, sha);
    resp_bulk_str(call->reply, sha);
}

static void script_flush(struct ks_call *call) {
    const bool good =
        call->argc == 2 ||
        (call->argc == 3 && (slice_is_word(call->argv[2], "SYNC") || slice_is_word(call->argv[2], "ASYNC")));
    if (!good) {
        resp_error(call->reply, "ERR SCRIPT FLUSH only support SYNC|ASYNC option");
        return;
    }
    cache_clear(call->ks);
    resp_ok(call->reply);
}

static void script_exists(struct ks_call *call) {
    resp_array(call->reply, call->argc - 2);
    for (uint32_t i = 2; i < call->argc; i++) resp_integer(call->reply, cache_find(call->ks, call->argv[i]) != NULL);
}

void ks_cmd_script(struct ks_call *call) {
    const struct slice word = call->argv[1];
    char shown[80];
    if (slice_is_word(word, "FLUSH")) {
        script_flush(call);
    } else if (slice_is_word(word, "LOAD")) {
        if (call->argc == 3)
            script_load(call);
        else
            resp_error(call->reply, "ERR wrong number of arguments for 'script|load' command");
    } else if (slice_is_word(word, "EXISTS")) {
        if (call->argc >= 3)
            script_exists(call);
        else
            resp_error(call->reply, "ERR wrong number of arguments for 'script|exists' command");
    } else if (slice_is_word(word, "KILL")) {
        resp_error(call->reply, "NOTBUSY No scripts in execution right now.");
    } else {
        resp_error(call->reply, "ERR unknown subcommand '%s'. Try SCRIPT HELP.", resp_show(word, shown, sizeof shown));
    }
}

/* ---- applying effects ---- */

/* The words of a %SCRIPT command, taken one by one. */
struct words {
    const struct slice *at, *end;
    bool bad;
};

static struct slice word(struct words *w) {
    if (w->at == w->end) {
        w->bad = true;
        return (struct slice){0};
    }
    return *w->at++;
}

static uint64_t word_u64(struct words *w) {
    uint64_t value = 0;
    if (!slice_to_u64(word(w), &value)) w->bad = true;
    return value;
}

/* A count of things of `each` words, all of which are there. */
static uint32_t word_count(struct words *w, uint32_t each) {
    const uint64_t count = word_u64(w);
    if (w->bad || count > (uint64_t)(w->end - w->at) / each) w->bad = true;
    return w->bad ? 0 : (uint32_t)count;
}

struct effects {
    uint32_t read_count, write_count;
    const struct slice *reads, *writes;
};

/* Where the parts are, once all of it has been seen to be whole. */
static bool effects_parse(const struct ks_call *call, struct effects *e) {
    struct words w = {.at = call->argv + 3, .end = call->argv + call->argc};
    e->read_count = word_count(&w, 3);
    e->reads = w.at;
    w.at += 3 * (size_t)e->read_count;
    e->write_count = word_count(&w, 1);
    e->writes = w.at;
    for (uint32_t i = 0; i < e->write_count; i++) {
        const uint32_t argc = word_count(&w, 1);
        if (argc == 0) w.bad = true;
        w.at += argc;
    }
    return !w.bad && w.at == w.end;
}

/* C2 */
static bool read_holds(struct keyspace *ks, const struct slice read[3]) {
    uint64_t version, touched, id;
    if (!slice_to_u64(read[1], &version)) return false;
    if (slice_is_word(read[2], "LEASE")) return slice_to_u64(read[0], &id) && ks_lease_exists(ks, id) == (version == 1);
    if (!slice_to_u64(read[2], &touched)) return false;
    const struct ks_name *name = ks_find(ks, read[0]);
    return version == (name ? name->version : 0) && touched == (name ? name->touched : 0);
}

static void apply_writes(struct ks_call *call, const struct effects *e) {
    struct keyspace *ks = call->ks;
    struct buf ignored = {.alloc = ks->config.alloc};
    struct words w = {.at = e->writes, .end = call->argv + call->argc};
    ks->defer_grants = ks->limits_off = true;
    for (uint32_t i = 0; i < e->write_count; i++) {
        const uint32_t argc = word_count(&w, 1);
        struct ks_call write = {.ks = ks,
                                .origin = ORIGIN_NONE,
                                .stamp_ms = call->stamp_ms,
                                .argc = argc,
                                .argv = w.at,
                                .reply = &ignored,
                                .in_script = true};
        w.at += argc;
        buf_clear(&ignored);
        const struct command *command;
        ks_handler *handler = ks_admit(&write, false, &command);
        if (handler == NULL || command->class != COMMAND_WRITE || !script_allows(command->id)) continue;
        write.revision = ++ks->revision;
        handler(&write);
    }
    ks->limits_off = false;
    ks_grant_deferred(ks);
    buf_release(&ignored);
}

void ks_cmd_x_script(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    struct effects e;
    if (!effects_parse(call, &e)) {
        resp_error(call->reply, "ERR damaged effects of a script; it did not run");
        return;
    }
    for (uint32_t i = 0; i < e.read_count; i++) {
        if (read_holds(ks, e.reads + 3 * (size_t)i) || BUG(70)) continue;
        ks_fact(ks, &(struct ks_fact){.kind = KS_SCRIPT_VOID, .origin = call->origin});
        call->silent = true;
        return;
    }
    if (call->argv[2].bytes > 0) ks_script_add(ks, call->argv[2]);
    apply_writes(call, &e);
    buf_append_slice(call->reply, call->argv[1]);
}

/* ---- what a script did, as a %SCRIPT command ---- */

void script_words_add(struct script_words *l, struct slice s) {
    buf_append_slice(&l->bytes, s);
    buf_append(&l->ends, &l->bytes.bytes, sizeof l->bytes.bytes);
    l->count++;
}

void script_words_add_u64(struct script_words *l, uint64_t value) {
    char text[24];
    script_words_add(l, slice_of(text, (size_t)snprintf(text, sizeof text, "%llu", (unsigned long long)value)));
}

static void run_init(struct script_run *run, const struct keyspace *ks, uint64_t stamp_ms) {
    const struct alloc *alloc = ks->config.alloc;
    run->overlay = ks_overlay_new(ks, stamp_ms);
    run->stamp_ms = stamp_ms;
    run->steps = SCRIPT_STEPS_MAX;
    run->writes.bytes.alloc = run->writes.ends.alloc = run->call_reply.alloc = run->reply.alloc = alloc;
}

static void run_release(struct script_run *run) {
    alloc_put(run->overlay->config.alloc, run->key_loaded);
    buf_release(&run->writes.bytes);
    buf_release(&run->writes.ends);
    buf_release(&run->call_reply);
    buf_release(&run->reply);
    ks_overlay_free(run->overlay);
}

static void add_reads(struct script_words *l, const struct script_run *run) {
    struct keyspace *base = (struct keyspace *)(uintptr_t)run->overlay->base;
    uint32_t count = run->overlay->leases_seen_count;
    for (uint32_t i = 0; i < run->key_count; i++) count += run->key_loaded[i];
    script_words_add_u64(l, count);
    for (uint32_t i = 0; i < run->key_count; i++) {
        if (!run->key_loaded[i]) continue;
        const struct ks_name *name = ks_find(base, run->keys[i]);
        script_words_add(l, run->keys[i]);
        script_words_add_u64(l, name ? name->version : 0);
        script_words_add_u64(l, name ? name->touched : 0);
    }
    for (uint32_t i = 0; i < run->overlay->leases_seen_count; i++) {
        const uint64_t id = run->overlay->leases_seen[i];
        script_words_add_u64(l, id);
        script_words_add_u64(l, ks_lease_exists(base, id));
        script_words_add(l, slice_str("LEASE"));
    }
}

/* The words become the effects.  False: more than one batch holds. */
static bool effects_take(struct script_words *all, struct ks_effects *effects) {
    effects->bytes = all->bytes;
    const bool fits =
        all->count <= BATCH_ARGC_MAX && all->bytes.bytes + 8 * (size_t)all->count <= SCRIPT_EFFECT_BYTES_MAX;
    if (fits) {
        effects->argc = all->count;
        effects->argv = alloc_get(effects->bytes.alloc, all->count * sizeof effects->argv[0]);
        for (uint32_t i = 0; i < all->count; i++) {
            const size_t *ends = (const size_t *)(const void *)all->ends.data, start = i > 0 ? ends[i - 1] : 0;
            effects->argv[i] = slice_of(effects->bytes.data + start, ends[i] - start);
        }
    }
    buf_release(&all->ends);
    return fits;
}

/* False: more than one batch holds. */
static bool write_effects(const struct script_run *run, struct slice text, struct ks_effects *effects) {
    struct script_words all = {.bytes = effects->bytes, .ends.alloc = effects->bytes.alloc};
    if (run->once.seq != 0) {
        script_words_add(&all, slice_str("%ONCE"));
        script_words_add_u64(&all, run->once.lease);
        script_words_add_u64(&all, run->once.seq);
        script_words_add_u64(&all, run->once.digest);
    }
    script_words_add(&all, slice_str("%SCRIPT"));
    script_words_add(&all, buf_slice(&run->reply));
    script_words_add(&all, text);
    add_reads(&all, run);
    script_words_add_u64(&all, run->write_count);
    const struct script_words *writes = &run->writes;
    for (uint32_t i = 0; i < writes->count; i++) {
        const size_t *ends = (const size_t *)(const void *)writes->ends.data, start = i > 0 ? ends[i - 1] : 0;
        script_words_add(&all, slice_of(writes->bytes.data + start, ends[i] - start));
    }
    return effects_take(&all, effects);
}

void ks_effects_release(struct ks_effects *effects) {
    if (effects->bytes.alloc == NULL) return;
    alloc_put(effects->bytes.alloc, effects->argv);
    buf_release(&effects->bytes);
    effects->argv = NULL;
    effects->argc = 0;
}

/* argv of EVAL or EVALSHA: which text, which keys, which arguments.  False: refused, and the reply says why. */
static bool find_script(struct ks_call *call, struct script_run *run, char sha[KS_SHA_BYTES + 1], bool *ret_cached) {
    const bool by_sha = slice_is_word(call->argv[0], "EVALSHA");
    const struct ks_script_text *cached = NULL;
    int64_t key_count;
    if (by_sha) cached = cache_find(call->ks, call->argv[1]);
    if (by_sha && call->argv[1].bytes != KS_SHA_BYTES) {
        resp_error(call->reply, "NOSCRIPT No matching script. Please use EVAL.");
        return false;
    }
    if (!slice_to_i64(call->argv[2], &key_count)) {
        resp_error(call->reply, "ERR value is not an integer or out of range");
        return false;
    }
    if (key_count > (int64_t)call->argc - 3) {
        resp_error(call->reply, "ERR Number of keys can't be greater than number of args");
        return false;
    }
    if (key_count < 0) {
        resp_error(call->reply, "ERR Number of keys can't be negative");
        return false;
    }
    if (by_sha && cached == NULL) {
        resp_error(call->reply, "NOSCRIPT No matching script. Please use EVAL.");
        return false;
    }
    run->keys = call->argv + 3;
    run->key_count = (uint32_t)key_count;
    run->args = run->keys + key_count;
    run->arg_count = call->argc - 3 - (uint32_t)key_count;
    if (!by_sha) {
        run->text = call->argv[1];
        if (!ks_check_value(call, run->text)) return false;
        script_sha(run->text, sha);
        cached = cache_find(call->ks, slice_of(sha, KS_SHA_BYTES));
        if (cached == NULL && !ks_room(call, false, run->text.bytes)) return false;
    } else {
        run->text = slice_of(cached->text, cached->bytes);
        memcpy(sha, cached->sha, KS_SHA_BYTES + 1);
    }
    run->sha = sha;
    *ret_cached = cached != NULL;
    return true;
}

/* T3, for every key at once: the script runs only when the log shows what has ended by now. */
static uint64_t stamp_needed(struct ks_call *call, const struct script_run *run) {
    for (uint32_t i = 0; i < run->key_count; i++) (void)ks_peek(call, run->keys[i]);
    return call->needs_stamp_ms;
}

static bool keys_fit(struct ks_call *call, const struct script_run *run) {
    const uint64_t bytes_max = call->ks->settings.key_bytes_max;
    for (uint32_t i = 0; i < run->key_count; i++) {
        if (run->keys[i].bytes <= bytes_max) continue;
        resp_error(call->reply, "ERR key is too long: %zu bytes, key-bytes-max is %llu", run->keys[i].bytes,
                   (unsigned long long)bytes_max);
        return false;
    }
    return true;
}

static enum ks_script_verdict script_verdict(struct ks_call *call, struct script_run *run, struct ks_effects *effects) {
    char sha[KS_SHA_BYTES + 1];
    bool cached = false;
    if (!find_script(call, run, sha, &cached) || !keys_fit(call, run)) return KS_SCRIPT_REFUSED;
    if (stamp_needed(call, run) != 0) return KS_SCRIPT_NEEDS_STAMP;
    if (run->key_count > 0) run->key_loaded = alloc_get0(call->ks->config.alloc, run->key_count * sizeof(bool));
    script_run(call->ks, run);
    if (!run->refused && write_effects(run, cached ? (struct slice){0} : run->text, effects)) return KS_SCRIPT_PROPOSE;
    if (!run->refused) {
        run->limit = LIMIT_EFFECTS;
        script_reply_limit(run);
    }
    buf_clear(&effects->bytes);
    buf_append_slice(&effects->bytes, buf_slice(&run->reply));
    return KS_SCRIPT_REFUSED;
}

/* What a ONCE is answered is in the state already: the log says when. */
static enum ks_script_verdict propose_as_is(struct ks_effects *effects, uint32_t argc, const struct slice *argv) {
    buf_clear(&effects->bytes);
    struct script_words all = {.bytes = effects->bytes, .ends.alloc = effects->bytes.alloc};
    for (uint32_t i = 0; i < argc; i++) script_words_add(&all, argv[i]);
    if (effects_take(&all, effects)) return KS_SCRIPT_PROPOSE;
    buf_clear(&effects->bytes);
    resp_error(&effects->bytes, "ERR the command is too long: %u words", argc);
    return KS_SCRIPT_REFUSED;
}

enum ks_script_verdict keyspace_script(struct keyspace *ks, uint64_t stamp_ms, uint32_t argc, const struct slice *argv,
                                       struct ks_effects *effects, uint64_t *ret_stamp_ms) {
    if (effects->bytes.alloc == NULL) effects->bytes.alloc = ks->config.alloc;
    buf_clear(&effects->bytes);
    struct ks_call call = {.ks = ks,
                           .origin = ORIGIN_NONE,
                           .stamp_ms = stamp_ms > ks->stamp_ms ? stamp_ms : ks->stamp_ms,
                           .argc = argc,
                           .argv = argv,
                           .reply = &effects->bytes,
                           .in_script = true};
    if (argc >= 4 && slice_is_word(argv[0], "ONCE")) {
        if (!ks_once_parse(&call, &call.once)) return KS_SCRIPT_REFUSED;
        if (ks_once_decided(&call, &call.once)) return propose_as_is(effects, argc, argv);
        call.argc -= 3;
        call.argv += 3;
    }
    if (call.argc < 3) {
        resp_error(&effects->bytes, "ERR wrong number of arguments for a script");
        return KS_SCRIPT_REFUSED;
    }
    struct script_run *run = alloc_get0(ks->config.alloc, sizeof *run);
    run->once = call.once;
    run_init(run, ks, call.stamp_ms);
    const enum ks_script_verdict verdict = script_verdict(&call, run, effects);
    if (verdict == KS_SCRIPT_NEEDS_STAMP) *ret_stamp_ms = call.needs_stamp_ms;
    run_release(run);
    alloc_put(ks->config.alloc, run);
    return verdict;
}
