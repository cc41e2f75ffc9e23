/* script.c - scripts: the cache of their texts, running one (script.h), and applying what one did.  Part of the
 * keyspace. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <openssl/sha.h>

#define uthash_malloc(bytes)       alloc_get(ut_alloc, (bytes))
#define uthash_free(memory, bytes) alloc_put(ut_alloc, (memory))
#define uthash_fatal(message)      must_fail(__FILE__, __LINE__, (message))
#include "lockd/core/ks_state.h"
#include "lockd/core/script.h"
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

static void cache_clear(struct keyspace *ks) {
    while (ks->scripts != NULL) cache_drop(ks, ks->scripts);
}

static void engine_free(struct script_engine *e);

void ks_scripts_free(struct keyspace *ks) {
    cache_clear(ks);
    engine_free(ks->engine);
}

static bool check_text(struct ks_call *call, struct slice text);

static void script_load(struct ks_call *call) {
    char sha[KS_SHA_BYTES + 1];
    const struct slice text = call->argv[2];
    if (!check_text(call, text) || !ks_room(call, false, text.bytes)) return;
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

/* Commands that touch only the keys they name, answer from nothing else, and never wait. */
static bool allowed_in_script(enum command_id id) {
    switch (id) {
    case CMD_GET:
    case CMD_SET:
    case CMD_DEL:
    case CMD_EXISTS:
    case CMD_TYPE:
    case CMD_TTL:
    case CMD_PTTL:
    case CMD_EXPIRE:
    case CMD_PEXPIRE:
    case CMD_PERSIST:
    case CMD_INCR:
    case CMD_CAS:
    case CMD_GETV:
    case CMD_WOR_GET:
    case CMD_LOCK_CHECK:
    case CMD_LOCK_INFO:
    case CMD_ELECT_LEADER: return true;
    default: return false;
    }
}

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
    if (w->bad || count * each > (uint64_t)(w->end - w->at)) w->bad = true;
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
        if (handler == NULL || command->class != COMMAND_WRITE || !allowed_in_script(command->id)) continue;
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
        if (read_holds(ks, e.reads + 3 * (size_t)i)) continue;
        ks_fact(ks, &(struct ks_fact){.kind = KS_SCRIPT_VOID, .origin = call->origin});
        call->silent = true;
        return;
    }
    if (call->argv[2].bytes > 0) {
        char sha[KS_SHA_BYTES + 1];
        script_sha(call->argv[2], sha);
        cache_add(ks, call->argv[2], sha);
    }
    apply_writes(call, &e);
    buf_append_slice(call->reply, call->argv[1]);
}

/* ---- running one ---- */

enum {
    HOOK_STEPS = 100,        /* instructions between two looks at the limit */
    PRICE_UNIT_BYTES = 1024, /* an instruction costs one step more per this much memory of the script */
    REP_BYTES_MAX = 1024 * 1024,
    CALL_ARGC_MAX = 1024
};

enum limit { LIMIT_NONE, LIMIT_STEPS, LIMIT_MEMORY, LIMIT_EFFECTS, LIMIT_REPLY };

/* A list of words: their bytes, and where each ends. */
struct word_list {
    struct buf bytes, ends; /* ends: size_t each */
    uint32_t count;
};

struct run {
    struct keyspace *overlay;
    uint64_t stamp_ms;
    const struct slice *keys, *args;
    uint32_t key_count, arg_count;
    bool *key_loaded;
    struct slice text;
    const char *sha;
    struct word_list writes;
    uint32_t write_count;
    struct buf call_reply; /* of the redis.call being made */
    struct buf reply;      /* of the script */
    bool refused;          /* it did not compile: nothing to log */
    enum limit limit;
    uint64_t steps;
    struct slice argv[CALL_ARGC_MAX];
};

static void words_add(struct word_list *l, struct slice s) {
    buf_append_slice(&l->bytes, s);
    buf_append(&l->ends, &l->bytes.bytes, sizeof l->bytes.bytes);
    l->count++;
}

static void words_add_u64(struct word_list *l, uint64_t value) {
    char text[24];
    words_add(l, slice_of(text, (size_t)snprintf(text, sizeof text, "%llu", (unsigned long long)value)));
}

/* The interpreter, kept from run to run because making it costs more than running a script.  Nothing a script can
 * change outlives it: what is global is sealed (C5), KEYS and ARGV are made anew.  After a limit, or when it has grown,
 * it is thrown away. */
struct script_engine {
    const struct alloc *alloc;
    lua_State *L;
    struct run *run;           /* the one going on */
    size_t bytes, bytes_start; /* that Lua has now; that it had when the run began */
    uint32_t chunk_count;      /* compiled scripts it keeps, by digest */
};
enum { ENGINE_BYTES_MAX = 4 * 1024 * 1024, ENGINE_CHUNKS_MAX = 1000 };

static size_t run_bytes(const struct script_engine *e) {
    return e->bytes > e->bytes_start ? e->bytes - e->bytes_start : 0;
}

static void *lua_memory(void *context, void *memory, size_t old_bytes, size_t bytes) {
    struct script_engine *e = context;
    if (memory == NULL) old_bytes = 0;
    if (bytes == 0) {
        alloc_put(e->alloc, memory);
        e->bytes -= old_bytes;
        return NULL;
    }
    if (e->run != NULL && bytes > old_bytes && run_bytes(e) + (bytes - old_bytes) > SCRIPT_MEMORY_BYTES_MAX) {
        e->run->limit = LIMIT_MEMORY;
        return NULL;
    }
    memory = alloc_resize(e->alloc, memory, bytes);
    e->bytes += bytes - old_bytes;
    return memory;
}

static struct script_engine *engine_of(lua_State *L) {
    void *context;
    (void)lua_getallocf(L, &context);
    return context;
}

static struct run *run_of(lua_State *L) {
    return engine_of(L)->run;
}

_Noreturn static void stop(lua_State *L, enum limit limit) {
    run_of(L)->limit = limit;
    lua_pushliteral(L, "script stopped");
    lua_error(L);
    must_fail(__FILE__, __LINE__, "lua_error returned");
}

static void charge(lua_State *L, uint64_t steps) {
    struct run *run = run_of(L);
    if (run->limit != LIMIT_NONE || run->steps < steps) stop(L, run->limit != LIMIT_NONE ? run->limit : LIMIT_STEPS);
    run->steps -= steps;
}

/* One instruction may look at all of the script's memory (compare strings, find the next key of a sparse table): so its
 * price grows with it, and the steps bound the time whatever the script does. */
static void on_count(lua_State *L, lua_Debug *at) {
    (void)at;
    charge(L, HOOK_STEPS * (1 + run_bytes(engine_of(L)) / PRICE_UNIT_BYTES));
}

/* ---- errors, as Redis makes them: a table with the text in `err` ---- */

static void push_error(lua_State *L, const char *text) {
    lua_createtable(L, 0, 3);
    lua_pushstring(L, text);
    lua_setfield(L, -2, "err");
}

static int raise(lua_State *L, const char *text) {
    push_error(L, text);
    return lua_error(L);
}

/* Around the whole script: whatever was thrown becomes a table that says where. */
static int on_error(lua_State *L) {
    lua_Debug at;
    lua_settop(L, 1);
    if (!lua_istable(L, 1)) {
        const char *text = lua_tostring(L, 1);
        if (text == NULL) text = lua_isnil(L, 1) ? "nil" : luaL_typename(L, 1);
        lua_pushfstring(L, "ERR %s", text);
        lua_createtable(L, 0, 3);
        lua_insert(L, -2);
        lua_setfield(L, -2, "err");
    }
    for (int level = 1; level <= 2; level++) {
        if (!lua_getstack(L, level, &at) || !lua_getinfo(L, "Sl", &at)) break;
        if (level == 1 && strcmp(at.what, "C") == 0) continue;
        lua_pushstring(L, at.source);
        lua_setfield(L, -2, "source");
        lua_pushinteger(L, at.currentline);
        lua_setfield(L, -2, "line");
        break;
    }
    return 1;
}

static int readonly(lua_State *L) {
    return luaL_error(L, "Attempt to modify a readonly table");
}

static int undefined_global(lua_State *L) {
    luaL_checkany(L, 2);
    return luaL_error(L, "Script attempted to access nonexistent global variable '%s'",
                      lua_isstring(L, 2) ? lua_tostring(L, 2) : luaL_typename(L, 2));
}

/* ---- replies ---- */

/* "+" or "-", the text without control bytes, CRLF. */
static void reply_line(struct buf *b, char kind, const char *text, size_t bytes) {
    char *at = buf_reserve(b, bytes + 3);
    *at++ = kind;
    for (size_t i = 0; i < bytes; i++) *at++ = (unsigned char)text[i] < ' ' ? ' ' : text[i];
    memcpy(at, "\r\n", 2);
    b->bytes += bytes + 3;
}

static int64_t to_integer(lua_Number number) {
    /* What the cast gives on the machines Redis runs on, where C leaves it open. */
    return number >= -9223372036854775808.0 && number < 9223372036854775808.0 ? (int64_t)number : INT64_MIN;
}

static size_t number_text(lua_Number number, char *text, size_t text_bytes) {
    return (size_t)snprintf(text, text_bytes, "%.17g", number);
}

static void reply_value(lua_State *L, struct run *run, int depth);

/* The value on top of a one-field table {name = value} of this type is left there; else nothing is. */
static bool field(lua_State *L, const char *name, int type) {
    lua_pushstring(L, name);
    lua_rawget(L, -2);
    if (lua_type(L, -1) == type) return true;
    lua_pop(L, 1);
    return false;
}

static void reply_pairs(lua_State *L, struct run *run, int depth, bool values) {
    uint32_t count = 0;
    for (lua_pushnil(L); lua_next(L, -2); lua_pop(L, 1)) count++;
    resp_array(&run->reply, values ? 2 * count : count);
    for (lua_pushnil(L); lua_next(L, -2);) {
        lua_pushvalue(L, -2);
        reply_value(L, run, depth + 1);
        if (values)
            reply_value(L, run, depth + 1);
        else
            lua_pop(L, 1);
    }
}

static void reply_array(lua_State *L, struct run *run, int depth) {
    uint32_t count = 0;
    for (;; count++) { /* the first nil ends it */
        lua_rawgeti(L, -1, (int)count + 1);
        const bool end = lua_isnil(L, -1);
        lua_pop(L, 1);
        if (end) break;
    }
    resp_array(&run->reply, count);
    for (uint32_t i = 1; i <= count; i++) {
        lua_rawgeti(L, -1, (int)i);
        reply_value(L, run, depth + 1);
    }
}

static void reply_table(lua_State *L, struct run *run, int depth) {
    char text[64];
    size_t bytes;
    const char *s;
    if (field(L, "err", LUA_TSTRING)) {
        s = lua_tolstring(L, -1, &bytes);
        reply_line(&run->reply, '-', s, bytes);
    } else if (field(L, "ok", LUA_TSTRING)) {
        s = lua_tolstring(L, -1, &bytes);
        reply_line(&run->reply, '+', s, bytes);
    } else if (field(L, "double", LUA_TNUMBER)) {
        resp_bulk(&run->reply, slice_of(text, number_text(lua_tonumber(L, -1), text, sizeof text)));
    } else if (field(L, "map", LUA_TTABLE)) {
        reply_pairs(L, run, depth, true);
    } else if (field(L, "set", LUA_TTABLE)) {
        reply_pairs(L, run, depth, false);
    } else if (field(L, "big_number", LUA_TSTRING)) {
        s = lua_tolstring(L, -1, &bytes);
        resp_bulk(&run->reply, slice_of(s, bytes));
    } else if (field(L, "verbatim_string", LUA_TTABLE)) {
        if (field(L, "string", LUA_TSTRING)) {
            s = lua_tolstring(L, -1, &bytes);
            resp_bulk(&run->reply, slice_of(s, bytes));
            lua_pop(L, 1);
        } else {
            resp_nil(&run->reply);
        }
    } else {
        reply_array(L, run, depth);
        return;
    }
    lua_pop(L, 1);
}

/* Converts the value on top, and pops it. */
static void reply_value(lua_State *L, struct run *run, int depth) {
    if (run->reply.bytes > SCRIPT_EFFECT_BYTES_MAX) stop(L, LIMIT_REPLY);
    charge(L, 1);
    if (depth > SCRIPT_REPLY_DEPTH_MAX || !lua_checkstack(L, 8)) {
        resp_error(&run->reply, "ERR reached lua stack limit");
        lua_pop(L, 1);
        return;
    }
    size_t bytes;
    const char *s;
    switch (lua_type(L, -1)) {
    case LUA_TSTRING:
        s = lua_tolstring(L, -1, &bytes);
        resp_bulk(&run->reply, slice_of(s, bytes));
        break;
    case LUA_TNUMBER: resp_integer(&run->reply, to_integer(lua_tonumber(L, -1))); break;
    case LUA_TBOOLEAN:
        if (lua_toboolean(L, -1))
            resp_integer(&run->reply, 1);
        else
            resp_nil(&run->reply);
        break;
    case LUA_TTABLE: reply_table(L, run, depth); break;
    default: resp_nil(&run->reply);
    }
    lua_pop(L, 1);
}

/* The other way: one of our own replies, from `at`; returns what follows it. */
static const char *push_reply(lua_State *L, const char *at, const char *end) {
    const char *line_end = memchr(at, '\r', (size_t)(end - at));
    must(line_end != NULL && line_end + 2 <= end);
    const char kind = *at++;
    const size_t line_bytes = (size_t)(line_end - at);
    const char *next = line_end + 2;
    int64_t number = 0;
    luaL_checkstack(L, 4, NULL);
    if (kind == '+' || kind == '-') {
        lua_createtable(L, 0, 3);
        lua_pushlstring(L, at, line_bytes);
        lua_setfield(L, -2, kind == '+' ? "ok" : "err");
        return next;
    }
    must(slice_to_i64(slice_of(at, line_bytes), &number));
    if (kind == ':') {
        lua_pushnumber(L, (lua_Number)number);
    } else if (number < 0) {
        lua_pushboolean(L, false);
    } else if (kind == '$') {
        lua_pushlstring(L, next, (size_t)number);
        next += number + 2;
    } else {
        lua_createtable(L, (int)number, 0);
        for (int i = 1; i <= (int)number; i++) { /* our replies to what a script may call are one level deep */
            next = push_reply(L, next, end);
            lua_rawseti(L, -2, i);
        }
    }
    return next;
}

/* ---- redis.* ---- */

/* The arguments on the stack as words; numbers become text where they are. */
static const char *collect_words(lua_State *L, struct run *run, int argc) {
    char text[64];
    if (argc == 0) return "ERR Please specify at least one argument for this redis lib call";
    if (argc > CALL_ARGC_MAX) return "ERR too many arguments for this redis lib call";
    for (int i = 1; i <= argc; i++) {
        const int type = lua_type(L, i);
        if (type == LUA_TNUMBER) {
            lua_pushlstring(L, text, number_text(lua_tonumber(L, i), text, sizeof text));
            lua_replace(L, i);
        } else if (type != LUA_TSTRING) {
            return "ERR Lua redis lib command arguments must be strings or integers";
        }
        size_t bytes;
        const char *s = lua_tolstring(L, i, &bytes);
        run->argv[i - 1] = slice_of(s, bytes);
    }
    return NULL;
}

/* C1: a name among KEYS comes into the overlay when it is first used.  False: it is not among them. */
static bool use_key(struct run *run, struct slice key) {
    bool declared = false;
    for (uint32_t i = 0; i < run->key_count; i++) {
        if (!slice_equal(run->keys[i], key)) continue;
        if (!declared && !run->key_loaded[i]) ks_overlay_load(run->overlay, key);
        declared = run->key_loaded[i] = true;
    }
    return declared;
}

static void log_write(lua_State *L, struct run *run, uint32_t argc) {
    words_add_u64(&run->writes, argc);
    for (uint32_t i = 0; i < argc; i++) words_add(&run->writes, run->argv[i]);
    run->write_count++;
    if (run->writes.bytes.bytes > SCRIPT_EFFECT_BYTES_MAX || run->writes.count > BATCH_ARGC_MAX) stop(L, LIMIT_EFFECTS);
}

/* Runs the command; its reply is in run->call_reply.  Not NULL: it may not run, and why. */
static const char *run_command(lua_State *L, struct run *run, uint32_t argc) {
    struct keyspace *overlay = run->overlay;
    buf_clear(&run->call_reply);
    struct ks_call call = {.ks = overlay,
                           .origin = ORIGIN_NONE,
                           .stamp_ms = run->stamp_ms,
                           .argc = argc,
                           .argv = run->argv,
                           .reply = &run->call_reply,
                           .in_script = true};
    const struct command *command = command_find(run->argv[0], false);
    if (command == NULL) return "ERR Unknown Redis command called from script";
    if (!allowed_in_script(command->id)) return "ERR This Redis command is not allowed from script";
    const int arity = command->arity;
    if (arity >= 0 ? argc != (uint32_t)arity : argc < (uint32_t)-arity)
        return "ERR Wrong number of args calling Redis command from script";
    const uint32_t last = command->last_key < 0 ? argc - 1 : (uint32_t)command->last_key;
    for (uint32_t i = (uint32_t)command->first_key; i <= last; i += (uint32_t)command->step) {
        charge(L, 1 + run->key_count);
        char shown[80];
        if (use_key(run, run->argv[i])) continue;
        return lua_pushfstring(L, "ERR Script attempted to access key '%s', which is not among its KEYS",
                               resp_show(run->argv[i], shown, sizeof shown));
    }
    ks_handler *handler = ks_admit(&call, false, &command);
    if (handler == NULL) return NULL; /* the reply says why */
    if (command->class == COMMAND_WRITE) call.revision = ++overlay->revision;
    const uint64_t changes = overlay->changes;
    handler(&call);
    must(call.needs_stamp_ms == 0); /* every key was looked at before the script began */
    if (overlay->changes != changes) log_write(L, run, argc);
    return NULL;
}

static int redis_do(lua_State *L, bool raises) {
    struct run *run = run_of(L);
    const int argc = lua_gettop(L);
    charge(L, 10);
    const char *error = collect_words(L, run, argc);
    if (error == NULL) error = run_command(L, run, (uint32_t)argc);
    if (error != NULL)
        push_error(L, error);
    else
        push_reply(L, run->call_reply.data, run->call_reply.data + run->call_reply.bytes);
    if (raises && (error != NULL || run->call_reply.data[0] == '-')) return lua_error(L);
    return 1;
}

static int redis_call(lua_State *L) {
    return redis_do(L, true);
}

static int redis_pcall(lua_State *L) {
    return redis_do(L, false);
}

static int redis_status_reply(lua_State *L) {
    if (lua_gettop(L) != 1 || lua_type(L, 1) != LUA_TSTRING) {
        push_error(L, "ERR wrong number or type of arguments");
        return 1;
    }
    lua_createtable(L, 0, 1);
    lua_pushvalue(L, 1);
    lua_setfield(L, -2, "ok");
    return 1;
}

/* The first word is the class of the error when there is more than one word, else it is ERR. */
static int redis_error_reply(lua_State *L) {
    if (lua_gettop(L) != 1 || lua_type(L, 1) != LUA_TSTRING) {
        push_error(L, "ERR wrong number or type of arguments");
        return 1;
    }
    const char *text = lua_tostring(L, 1);
    if (*text == '-') text++;
    push_error(L, strchr(text, ' ') != NULL ? text : lua_pushfstring(L, "ERR %s", text));
    return 1;
}

static int redis_sha1hex(lua_State *L) {
    char sha[KS_SHA_BYTES + 1];
    size_t bytes;
    if (lua_gettop(L) != 1) return raise(L, "ERR wrong number of arguments");
    const char *s = lua_tolstring(L, 1, &bytes);
    charge(L, 100 + (s ? bytes / 16 : 0));
    script_sha(s ? slice_of(s, bytes) : slice_str(""), sha);
    lua_pushstring(L, sha);
    return 1;
}

static int redis_log(lua_State *L) {
    if (lua_gettop(L) < 2) return raise(L, "ERR redis.log() requires two arguments or more.");
    if (!lua_isnumber(L, 1)) return raise(L, "ERR First argument must be a number (log level).");
    return 0;
}

static int redis_replicate_commands(lua_State *L) {
    lua_pushboolean(L, true);
    return 1;
}

/* ---- Lua's own functions, where they need a limit ---- */

/* C4: a limit goes through. */
static int limited_pcall(lua_State *L) {
    luaL_checkany(L, 1);
    charge(L, 10);
    const int status = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
    if (status == 0) {
        lua_pushboolean(L, true);
        lua_insert(L, 1);
        return lua_gettop(L);
    }
    if (run_of(L)->limit != LIMIT_NONE) return lua_error(L);
    /* As in Redis 7: who catches an error gets its text. */
    if (lua_istable(L, -1) && field(L, "err", LUA_TSTRING)) lua_replace(L, -2);
    lua_pushboolean(L, false);
    lua_insert(L, -2);
    return 2;
}

/* Calls the script's handler, but not for a limit: the hook that found it does not count what a handler does. */
static int limited_handler(lua_State *L) {
    if (run_of(L)->limit != LIMIT_NONE) return 1;
    lua_settop(L, 1);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, 1, 1);
    return 1;
}

static int limited_xpcall(lua_State *L) {
    luaL_checkany(L, 2);
    charge(L, 10);
    lua_settop(L, 2);
    lua_pushcclosure(L, limited_handler, 1);
    lua_insert(L, 1);
    const int status = lua_pcall(L, 0, LUA_MULTRET, 1);
    if (run_of(L)->limit != LIMIT_NONE) return lua_error(L);
    lua_pushboolean(L, status == 0);
    lua_replace(L, 1);
    return lua_gettop(L);
}

/* No addresses: they would differ from run to run. */
static int plain_tostring(lua_State *L) {
    luaL_checkany(L, 1);
    charge(L, 20);
    switch (lua_type(L, 1)) {
    case LUA_TNUMBER: lua_pushstring(L, lua_tostring(L, 1)); break;
    case LUA_TSTRING: lua_pushvalue(L, 1); break;
    case LUA_TBOOLEAN: lua_pushstring(L, lua_toboolean(L, 1) ? "true" : "false"); break;
    default: lua_pushstring(L, luaL_typename(L, 1));
    }
    return 1;
}

static int capped_rep(lua_State *L) {
    size_t bytes;
    luaL_checklstring(L, 1, &bytes);
    const int count = luaL_checkint(L, 2);
    if (count > 0 && bytes > 0 && (size_t)count > REP_BYTES_MAX / bytes)
        return luaL_error(L, "string.rep: the result would be longer than %d bytes", REP_BYTES_MAX);
    charge(L, 1 + (count > 0 ? (size_t)count * (bytes / 16 + 1) : 0));
    luaL_Buffer b;
    luaL_buffinit(L, &b);
    for (int i = 0; i < count; i++) luaL_addlstring(&b, lua_tostring(L, 1), bytes);
    luaL_pushresult(&b);
    return 1;
}

/* Library functions whose work grows with their first argument, or with the range they are given, pay for it. */
static int charged(lua_State *L) {
    const lua_CFunction function = lua_tocfunction(L, lua_upvalueindex(1));
    const uint64_t weight = (uint64_t)lua_tointeger(L, lua_upvalueindex(2));
    const size_t length =
        lua_gettop(L) > 0 && (lua_istable(L, 1) || lua_type(L, 1) == LUA_TSTRING) ? lua_objlen(L, 1) : 0;
    uint64_t work = 1 + length * weight / 16;
    if (lua_gettop(L) >= 3 && lua_isnumber(L, 3)) work += 1000; /* unpack, byte: up to some thousand results */
    charge(L, work);
    return function(L);
}

/* table.maxn looks at every slot, and nothing says how many there are. */
static int charged_maxn(lua_State *L) {
    charge(L, 1 + engine_of(L)->bytes / 64);
    return lua_tocfunction(L, lua_upvalueindex(1))(L);
}

struct function {
    const char *name;
    int weight; /* steps for 16 bytes of a string or 16 elements of a table; 0: as it is */
};
static const struct function base_functions[] = {{"assert", 0}, {"error", 0},  {"ipairs", 0},   {"next", 0},
                                                 {"pairs", 0},  {"select", 0}, {"tonumber", 1}, {"type", 0},
                                                 {"unpack", 2}, {NULL, 0}};
static const struct function string_functions[] = {{"byte", 1}, {"char", 0},  {"format", 1600},
                                                   {"len", 0},  {"lower", 1}, {"reverse", 1},
                                                   {"sub", 1},  {"upper", 1}, {NULL, 0}};
static const struct function table_functions[] = {{"concat", 32}, {"getn", 0},   {"insert", 16},
                                                  {"remove", 16}, {"sort", 512}, {NULL, 0}};
static const char *const math_functions[] = {"abs", "acos", "asin",  "atan", "atan2", "ceil",  "cos",  "cosh",
                                             "deg", "exp",  "floor", "fmod", "frexp", "ldexp", "log",  "log10",
                                             "max", "min",  "modf",  "pow",  "rad",   "sin",   "sinh", "sqrt",
                                             "tan", "tanh", "pi",    "huge", NULL};

/* From the table at index `from` into the one on top. */
static void take_functions(lua_State *L, int from, const struct function *list) {
    for (; list->name != NULL; list++) {
        lua_getfield(L, from, list->name);
        if (list->weight > 0) {
            lua_pushinteger(L, list->weight);
            lua_pushcclosure(L, charged, 2);
        }
        lua_setfield(L, -2, list->name);
    }
}

static void set_function(lua_State *L, const char *name, lua_CFunction function) {
    lua_pushcfunction(L, function);
    lua_setfield(L, -2, name);
}

/* Instead of the table on top, one that reads like it and cannot be changed. */
static void make_readonly(lua_State *L) {
    lua_newtable(L);
    lua_createtable(L, 0, 2);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    set_function(L, "__newindex", readonly);
    lua_setmetatable(L, -2);
    lua_remove(L, -2);
}

static void open_library(lua_State *L, lua_CFunction open, const char *name) {
    lua_pushcfunction(L, open);
    lua_pushstring(L, name);
    lua_call(L, 1, 0);
}

static void make_string(lua_State *L) {
    open_library(L, luaopen_string, LUA_STRLIBNAME);
    lua_getglobal(L, LUA_STRLIBNAME);
    lua_newtable(L);
    take_functions(L, lua_gettop(L) - 1, string_functions);
    set_function(L, "rep", capped_rep);
    lua_remove(L, -2);
    /* Methods of strings come from here too, and from nowhere else. */
    lua_pushliteral(L, "");
    lua_getmetatable(L, -1);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 2);
    make_readonly(L);
}

static void make_table(lua_State *L) {
    open_library(L, luaopen_table, LUA_TABLIBNAME);
    lua_getglobal(L, LUA_TABLIBNAME);
    lua_newtable(L);
    take_functions(L, lua_gettop(L) - 1, table_functions);
    lua_getfield(L, -2, "maxn");
    lua_pushcclosure(L, charged_maxn, 1);
    lua_setfield(L, -2, "maxn");
    lua_remove(L, -2);
    make_readonly(L);
}

static void make_math(lua_State *L) {
    open_library(L, luaopen_math, LUA_MATHLIBNAME);
    lua_getglobal(L, LUA_MATHLIBNAME);
    lua_newtable(L);
    for (const char *const *name = math_functions; *name != NULL; name++) {
        lua_getfield(L, -2, *name);
        lua_setfield(L, -2, *name);
    }
    lua_remove(L, -2);
    make_readonly(L);
}

static void make_redis(lua_State *L) {
    static const char *const levels[] = {"LOG_DEBUG", "LOG_VERBOSE", "LOG_NOTICE", "LOG_WARNING"};
    lua_newtable(L);
    set_function(L, "call", redis_call);
    set_function(L, "pcall", redis_pcall);
    set_function(L, "status_reply", redis_status_reply);
    set_function(L, "error_reply", redis_error_reply);
    set_function(L, "sha1hex", redis_sha1hex);
    set_function(L, "log", redis_log);
    set_function(L, "replicate_commands", redis_replicate_commands);
    for (int i = 0; i < 4; i++) {
        lua_pushinteger(L, i);
        lua_setfield(L, -2, levels[i]);
    }
    make_readonly(L);
}

static void make_words(lua_State *L, const struct slice *words, uint32_t count) {
    lua_createtable(L, (int)count, 0);
    for (uint32_t i = 0; i < count; i++) {
        lua_pushlstring(L, words[i].data, words[i].bytes);
        lua_rawseti(L, -2, (int)i + 1);
    }
}

/* Two tables in the registry: GLOBALS, what scripts see, which is empty and sealed; and THERE, from which it reads. */
static const char GLOBALS[] = "holdfast.globals", THERE[] = "holdfast.there";

static int make_globals(lua_State *L) {
    lua_settop(L, 0);
    open_library(L, luaopen_base, "");
    lua_newtable(L);
    take_functions(L, LUA_GLOBALSINDEX, base_functions);
    set_function(L, "pcall", limited_pcall);
    set_function(L, "xpcall", limited_xpcall);
    set_function(L, "tostring", plain_tostring);
    make_string(L);
    lua_setfield(L, -2, "string");
    make_table(L);
    lua_setfield(L, -2, "table");
    make_math(L);
    lua_setfield(L, -2, "math");
    make_redis(L);
    lua_setfield(L, -2, "redis");
    lua_createtable(L, 0, 1);
    set_function(L, "__index", undefined_global);
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_setfield(L, LUA_REGISTRYINDEX, THERE);
    lua_pushvalue(L, -1);
    make_readonly(L);
    lua_pushvalue(L, -1);
    lua_setfield(L, -3, "_G");
    lua_setfield(L, LUA_REGISTRYINDEX, GLOBALS);
    return 0;
}

static void engine_free(struct script_engine *e) {
    if (e == NULL) return;
    e->run = NULL;
    if (e->L != NULL) lua_close(e->L);
    must(e->bytes == 0);
    alloc_put(e->alloc, e);
}

static struct script_engine *engine_new(const struct alloc *alloc, bool with_libraries) {
    struct script_engine *e = alloc_get0(alloc, sizeof *e);
    e->alloc = alloc;
    e->L = lua_newstate(lua_memory, e);
    must(e->L != NULL); /* without a run there is no limit, and running out of memory is fatal anyway */
    if (with_libraries) must(lua_cpcall(e->L, make_globals, NULL) == 0);
    return e;
}

static void reply_failure(lua_State *L, struct run *run) {
    buf_clear(&run->reply);
    if (!lua_istable(L, -1)) {
        const char *text = lua_tostring(L, -1);
        resp_error(&run->reply, "ERR Error running script %s, %s", run->sha, text ? text : "execution failure");
        return;
    }
    struct buf text = {.alloc = run->overlay->config.alloc};
    size_t bytes = 0;
    const char *s = NULL;
    if (field(L, "err", LUA_TSTRING)) {
        s = lua_tolstring(L, -1, &bytes);
        lua_pop(L, 1); /* the table keeps it */
    }
    if (s != NULL)
        buf_append(&text, s, bytes);
    else
        buf_append_str(&text, "ERR unknown error");
    lua_getfield(L, -1, "line");
    if (lua_isnumber(L, -1)) buf_printf(&text, " script: %s, on @user_script:%d.", run->sha, (int)lua_tointeger(L, -1));
    lua_pop(L, 1);
    reply_line(&run->reply, '-', text.data, text.bytes);
    buf_release(&text);
}

static bool compile(lua_State *L, struct slice text, struct buf *reply) {
    const char *problem = "user_script: binary chunks are not accepted";
    if (text.bytes == 0 || text.data[0] != LUA_SIGNATURE[0]) {
        if (luaL_loadbuffer(L, text.data, text.bytes, "@user_script") == 0) return true;
        problem = lua_tostring(L, -1);
    }
    resp_error(reply, "ERR Error compiling script (new function): %s", problem ? problem : "unknown error");
    return false;
}

/* KEYS or ARGV among the globals; NULL: none. */
static void set_words(lua_State *L, const char *name, const struct slice *words, uint32_t count) {
    lua_getfield(L, LUA_REGISTRYINDEX, THERE);
    if (words != NULL)
        make_words(L, words, count);
    else
        lua_pushnil(L);
    lua_setfield(L, -2, name);
    lua_pop(L, 1);
}

/* Pushes the compiled script. */
static bool push_chunk(lua_State *L, struct run *run) {
    lua_getfield(L, LUA_REGISTRYINDEX, run->sha);
    if (lua_isfunction(L, -1)) return true;
    lua_pop(L, 1);
    if (!compile(L, run->text, &run->reply)) return false;
    lua_getfield(L, LUA_REGISTRYINDEX, GLOBALS);
    lua_setfenv(L, -2);
    lua_pushvalue(L, -1);
    lua_setfield(L, LUA_REGISTRYINDEX, run->sha);
    engine_of(L)->chunk_count++;
    return true;
}

/* All of Lua happens in here, protected. */
static int run_protected(lua_State *L) {
    struct run *run = run_of(L);
    lua_settop(L, 0);
    lua_pushcfunction(L, on_error); /* 1: the handler of the lua_pcall below */
    if (!push_chunk(L, run)) {
        run->refused = true;
        return 0;
    }
    set_words(L, "KEYS", run->keys, run->key_count);
    set_words(L, "ARGV", run->args, run->arg_count);
    lua_sethook(L, on_count, LUA_MASKCOUNT, HOOK_STEPS);
    const int status = lua_pcall(L, 0, 1, 1);
    if (run->limit != LIMIT_NONE) return 0;
    if (status == 0)
        reply_value(L, run, 0);
    else
        reply_failure(L, run);
    lua_sethook(L, NULL, 0, 0);
    set_words(L, "KEYS", NULL, 0);
    set_words(L, "ARGV", NULL, 0);
    return 0;
}

static void reply_limit(struct run *run) {
    buf_clear(&run->reply);
    run->refused = true;
    switch (run->limit) {
    case LIMIT_STEPS:
        resp_error(&run->reply,
                   "ERR the script did not end within %d steps (a step costs more the more memory it uses); "
                   "it did nothing",
                   SCRIPT_STEPS_MAX);
        return;
    case LIMIT_MEMORY:
        resp_error(&run->reply, "ERR the script needs more than %d bytes of memory; it did nothing",
                   SCRIPT_MEMORY_BYTES_MAX);
        return;
    case LIMIT_EFFECTS:
        resp_error(&run->reply, "ERR the script writes more than %d bytes or %d words; it did nothing",
                   SCRIPT_EFFECT_BYTES_MAX, BATCH_ARGC_MAX);
        return;
    case LIMIT_REPLY:
        resp_error(&run->reply, "ERR the reply of the script is longer than %d bytes; it did nothing",
                   SCRIPT_EFFECT_BYTES_MAX);
        return;
    case LIMIT_NONE: return;
    }
}

static void run_script(struct keyspace *ks, struct run *run) {
    if (ks->engine == NULL) ks->engine = engine_new(ks->config.alloc, true);
    struct script_engine *e = ks->engine;
    e->run = run;
    e->bytes_start = e->bytes;
    const int status = lua_cpcall(e->L, run_protected, NULL);
    if (status != 0 && run->limit == LIMIT_NONE) {
        const char *text = lua_tostring(e->L, -1);
        buf_clear(&run->reply);
        resp_error(&run->reply, "ERR the script failed: %s; it did nothing", text ? text : "unknown error");
        run->refused = true;
    }
    lua_settop(e->L, 0);
    e->run = NULL;
    if (run->limit != LIMIT_NONE) reply_limit(run);
    if (status != 0 || run->limit != LIMIT_NONE || e->bytes > ENGINE_BYTES_MAX || e->chunk_count > ENGINE_CHUNKS_MAX) {
        engine_free(e);
        ks->engine = NULL;
    }
}

static void run_init(struct run *run, const struct keyspace *ks, uint64_t stamp_ms) {
    const struct alloc *alloc = ks->config.alloc;
    run->overlay = ks_overlay_new(ks, stamp_ms);
    run->stamp_ms = stamp_ms;
    run->steps = SCRIPT_STEPS_MAX;
    run->writes.bytes.alloc = run->writes.ends.alloc = run->call_reply.alloc = run->reply.alloc = alloc;
}

static void run_release(struct run *run) {
    alloc_put(run->overlay->config.alloc, run->key_loaded);
    buf_release(&run->writes.bytes);
    buf_release(&run->writes.ends);
    buf_release(&run->call_reply);
    buf_release(&run->reply);
    ks_overlay_free(run->overlay);
}

/* Does it compile?  On every node alike, when SCRIPT LOAD is applied. */
static bool check_text(struct ks_call *call, struct slice text) {
    if (!ks_check_value(call, text)) return false;
    struct run limits = {.limit = LIMIT_NONE};
    struct script_engine *e = engine_new(call->ks->config.alloc, false);
    e->bytes_start = e->bytes;
    e->run = &limits;
    const bool good = compile(e->L, text, call->reply);
    engine_free(e);
    return good;
}

/* ---- what it did, as a %SCRIPT command ---- */

static void add_reads(struct word_list *l, const struct run *run) {
    struct keyspace *base = (struct keyspace *)(uintptr_t)run->overlay->base;
    uint32_t count = run->overlay->leases_seen_count;
    for (uint32_t i = 0; i < run->key_count; i++) count += run->key_loaded[i];
    words_add_u64(l, count);
    for (uint32_t i = 0; i < run->key_count; i++) {
        if (!run->key_loaded[i]) continue;
        const struct ks_name *name = ks_find(base, run->keys[i]);
        words_add(l, run->keys[i]);
        words_add_u64(l, name ? name->version : 0);
        words_add_u64(l, name ? name->touched : 0);
    }
    for (uint32_t i = 0; i < run->overlay->leases_seen_count; i++) {
        const uint64_t id = run->overlay->leases_seen[i];
        words_add_u64(l, id);
        words_add_u64(l, ks_lease_exists(base, id));
        words_add(l, slice_str("LEASE"));
    }
}

/* False: more than one batch holds. */
static bool write_effects(const struct run *run, struct slice text, struct ks_effects *effects) {
    struct word_list all = {.bytes = effects->bytes, .ends.alloc = effects->bytes.alloc};
    words_add(&all, slice_str("%SCRIPT"));
    words_add(&all, buf_slice(&run->reply));
    words_add(&all, text);
    add_reads(&all, run);
    words_add_u64(&all, run->write_count);
    const struct word_list *writes = &run->writes;
    for (uint32_t i = 0; i < writes->count; i++) {
        const size_t *ends = (const size_t *)(const void *)writes->ends.data, start = i > 0 ? ends[i - 1] : 0;
        words_add(&all, slice_of(writes->bytes.data + start, ends[i] - start));
    }
    effects->bytes = all.bytes;
    const bool fits = all.count <= BATCH_ARGC_MAX && all.bytes.bytes + 8 * (size_t)all.count <= SCRIPT_EFFECT_BYTES_MAX;
    if (fits) {
        effects->argc = all.count;
        effects->argv = alloc_get(effects->bytes.alloc, all.count * sizeof effects->argv[0]);
        for (uint32_t i = 0; i < all.count; i++) {
            const size_t *ends = (const size_t *)(const void *)all.ends.data, start = i > 0 ? ends[i - 1] : 0;
            effects->argv[i] = slice_of(effects->bytes.data + start, ends[i] - start);
        }
    }
    buf_release(&all.ends);
    return fits;
}

void ks_effects_release(struct ks_effects *effects) {
    if (effects->bytes.alloc == NULL) return;
    alloc_put(effects->bytes.alloc, effects->argv);
    buf_release(&effects->bytes);
    effects->argv = NULL;
    effects->argc = 0;
}

/* argv of EVAL or EVALSHA: which text, which keys, which arguments.  False: refused, and the reply says why. */
static bool find_script(struct ks_call *call, struct run *run, char sha[KS_SHA_BYTES + 1], bool *ret_cached) {
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
static uint64_t stamp_needed(struct ks_call *call, const struct run *run) {
    for (uint32_t i = 0; i < run->key_count; i++) (void)ks_peek(call, run->keys[i]);
    return call->needs_stamp_ms;
}

static bool keys_fit(struct ks_call *call, const struct run *run) {
    const uint64_t bytes_max = call->ks->settings.key_bytes_max;
    for (uint32_t i = 0; i < run->key_count; i++) {
        if (run->keys[i].bytes <= bytes_max) continue;
        resp_error(call->reply, "ERR key is too long: %zu bytes, key-bytes-max is %llu", run->keys[i].bytes,
                   (unsigned long long)bytes_max);
        return false;
    }
    return true;
}

static enum ks_script_verdict script_verdict(struct ks_call *call, struct run *run, struct ks_effects *effects) {
    char sha[KS_SHA_BYTES + 1];
    bool cached = false;
    if (!find_script(call, run, sha, &cached) || !keys_fit(call, run)) return KS_SCRIPT_REFUSED;
    if (stamp_needed(call, run) != 0) return KS_SCRIPT_NEEDS_STAMP;
    if (run->key_count > 0) run->key_loaded = alloc_get0(call->ks->config.alloc, run->key_count * sizeof(bool));
    run_script(call->ks, run);
    if (!run->refused && write_effects(run, cached ? (struct slice){0} : run->text, effects)) return KS_SCRIPT_PROPOSE;
    if (!run->refused) {
        run->limit = LIMIT_EFFECTS;
        reply_limit(run);
    }
    buf_clear(&effects->bytes);
    buf_append_slice(&effects->bytes, buf_slice(&run->reply));
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
    if (argc < 3) {
        resp_error(&effects->bytes, "ERR wrong number of arguments for a script");
        return KS_SCRIPT_REFUSED;
    }
    struct run *run = alloc_get0(ks->config.alloc, sizeof *run);
    run_init(run, ks, call.stamp_ms);
    const enum ks_script_verdict verdict = script_verdict(&call, run, effects);
    if (verdict == KS_SCRIPT_NEEDS_STAMP) *ret_stamp_ms = call.needs_stamp_ms;
    run_release(run);
    alloc_put(ks->config.alloc, run);
    return verdict;
}
