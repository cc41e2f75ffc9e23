/* script_run.c - the interpreter of one script: its limits, redis.*, replies (script_run.h). */
#include "lockd/core/script_run.h"
#include <lauxlib.h>
#include <stdio.h>

enum {
    HOOK_STEPS = 100,        /* instructions between two looks at the limit */
    PRICE_UNIT_BYTES = 1024, /* an instruction costs one step more per this much memory of the script */
    ENGINE_BYTES_MAX = 4 * 1024 * 1024,
    ENGINE_CHUNKS_MAX = 1000
};

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

struct script_engine *script_engine_of(lua_State *L) {
    void *context;
    (void)lua_getallocf(L, &context);
    return context;
}

static struct script_run *run_of(lua_State *L) {
    return script_engine_of(L)->run;
}

_Noreturn static void stop(lua_State *L, enum script_limit limit) {
    run_of(L)->limit = limit;
    lua_pushliteral(L, "script stopped");
    lua_error(L);
    must_fail(__FILE__, __LINE__, "lua_error returned");
}

void script_charge(lua_State *L, uint64_t steps) {
    struct script_run *run = run_of(L);
    if (run->limit != LIMIT_NONE || run->steps < steps) stop(L, run->limit != LIMIT_NONE ? run->limit : LIMIT_STEPS);
    run->steps -= steps;
}

/* One instruction may look at all of the script's memory (compare strings, find the next key of a sparse table): so its
 * price grows with it, and the steps bound the time whatever the script does. */
static void on_count(lua_State *L, lua_Debug *at) {
    (void)at;
    script_charge(L, HOOK_STEPS * (1 + run_bytes(script_engine_of(L)) / PRICE_UNIT_BYTES));
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

static void reply_value(lua_State *L, struct script_run *run, int depth);

/* The value on top of a one-field table {name = value} of this type is left there; else nothing is. */
bool script_field(lua_State *L, const char *name, int type) {
    lua_pushstring(L, name);
    lua_rawget(L, -2);
    if (lua_type(L, -1) == type) return true;
    lua_pop(L, 1);
    return false;
}

static void reply_pairs(lua_State *L, struct script_run *run, int depth, bool values) {
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

static void reply_array(lua_State *L, struct script_run *run, int depth) {
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

static void reply_table(lua_State *L, struct script_run *run, int depth) {
    char text[64];
    size_t bytes;
    const char *s;
    if (script_field(L, "err", LUA_TSTRING)) {
        s = lua_tolstring(L, -1, &bytes);
        reply_line(&run->reply, '-', s, bytes);
    } else if (script_field(L, "ok", LUA_TSTRING)) {
        s = lua_tolstring(L, -1, &bytes);
        reply_line(&run->reply, '+', s, bytes);
    } else if (script_field(L, "double", LUA_TNUMBER)) {
        resp_bulk(&run->reply, slice_of(text, number_text(lua_tonumber(L, -1), text, sizeof text)));
    } else if (script_field(L, "map", LUA_TTABLE)) {
        reply_pairs(L, run, depth, true);
    } else if (script_field(L, "set", LUA_TTABLE)) {
        reply_pairs(L, run, depth, false);
    } else if (script_field(L, "big_number", LUA_TSTRING)) {
        s = lua_tolstring(L, -1, &bytes);
        resp_bulk(&run->reply, slice_of(s, bytes));
    } else if (script_field(L, "verbatim_string", LUA_TTABLE)) {
        if (script_field(L, "string", LUA_TSTRING)) {
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
static void reply_value(lua_State *L, struct script_run *run, int depth) {
    if (run->reply.bytes > SCRIPT_EFFECT_BYTES_MAX) stop(L, LIMIT_REPLY);
    script_charge(L, 1);
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

/* Commands that touch only the keys they name, answer from nothing else, and never wait. */
bool script_allows(enum command_id id) {
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

/* ---- redis.* ---- */

/* The arguments on the stack as words; numbers become text where they are. */
static const char *collect_words(lua_State *L, struct script_run *run, int argc) {
    char text[64];
    if (argc == 0) return "ERR Please specify at least one argument for this redis lib call";
    if (argc > SCRIPT_CALL_ARGC_MAX) return "ERR too many arguments for this redis lib call";
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
static bool use_key(struct script_run *run, struct slice key) {
    bool declared = false;
    for (uint32_t i = 0; i < run->key_count; i++) {
        if (!slice_equal(run->keys[i], key)) continue;
        if (!declared && !run->key_loaded[i]) ks_overlay_load(run->overlay, key);
        declared = run->key_loaded[i] = true;
    }
    return declared;
}

static void log_write(lua_State *L, struct script_run *run, uint32_t argc) {
    script_words_add_u64(&run->writes, argc);
    for (uint32_t i = 0; i < argc; i++) script_words_add(&run->writes, run->argv[i]);
    run->write_count++;
    if (run->writes.bytes.bytes > SCRIPT_EFFECT_BYTES_MAX || run->writes.count > BATCH_ARGC_MAX) stop(L, LIMIT_EFFECTS);
}

/* Runs the command; its reply is in run->call_reply.  Not NULL: it may not run, and why. */
static const char *run_command(lua_State *L, struct script_run *run, uint32_t argc) {
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
    if (!script_allows(command->id)) return "ERR This Redis command is not allowed from script";
    const int arity = command->arity;
    if (arity >= 0 ? argc != (uint32_t)arity : argc < (uint32_t)-arity)
        return "ERR Wrong number of args calling Redis command from script";
    const uint32_t last = command->last_key < 0 ? argc - 1 : (uint32_t)command->last_key;
    for (uint32_t i = (uint32_t)command->first_key; i <= last; i += (uint32_t)command->step) {
        script_charge(L, 1 + run->key_count);
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
    struct script_run *run = run_of(L);
    const int argc = lua_gettop(L);
    script_charge(L, 10);
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
    script_charge(L, 100 + (s ? bytes / 16 : 0));
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

static void make_redis(lua_State *L) {
    static const char *const levels[] = {"LOG_DEBUG", "LOG_VERBOSE", "LOG_NOTICE", "LOG_WARNING"};
    lua_newtable(L);
    script_set_function(L, "call", redis_call);
    script_set_function(L, "pcall", redis_pcall);
    script_set_function(L, "status_reply", redis_status_reply);
    script_set_function(L, "error_reply", redis_error_reply);
    script_set_function(L, "sha1hex", redis_sha1hex);
    script_set_function(L, "log", redis_log);
    script_set_function(L, "replicate_commands", redis_replicate_commands);
    for (int i = 0; i < 4; i++) {
        lua_pushinteger(L, i);
        lua_setfield(L, -2, levels[i]);
    }
    script_make_readonly(L);
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
    script_push_libraries(L);
    make_redis(L);
    lua_setfield(L, -2, "redis");
    lua_createtable(L, 0, 1);
    script_set_function(L, "__index", undefined_global);
    lua_setmetatable(L, -2);
    lua_pushvalue(L, -1);
    lua_setfield(L, LUA_REGISTRYINDEX, THERE);
    lua_pushvalue(L, -1);
    script_make_readonly(L);
    lua_pushvalue(L, -1);
    lua_setfield(L, -3, "_G");
    lua_setfield(L, LUA_REGISTRYINDEX, GLOBALS);
    return 0;
}

void script_engine_free(struct script_engine *e) {
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

static void reply_failure(lua_State *L, struct script_run *run) {
    buf_clear(&run->reply);
    if (!lua_istable(L, -1)) {
        const char *text = lua_tostring(L, -1);
        resp_error(&run->reply, "ERR Error running script %s, %s", run->sha, text ? text : "execution failure");
        return;
    }
    struct buf text = {.alloc = run->overlay->config.alloc};
    size_t bytes = 0;
    const char *s = NULL;
    if (script_field(L, "err", LUA_TSTRING)) {
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
static bool push_chunk(lua_State *L, struct script_run *run) {
    lua_getfield(L, LUA_REGISTRYINDEX, run->sha);
    if (lua_isfunction(L, -1)) return true;
    lua_pop(L, 1);
    if (!compile(L, run->text, &run->reply)) return false;
    lua_getfield(L, LUA_REGISTRYINDEX, GLOBALS);
    lua_setfenv(L, -2);
    lua_pushvalue(L, -1);
    lua_setfield(L, LUA_REGISTRYINDEX, run->sha);
    script_engine_of(L)->chunk_count++;
    return true;
}

/* All of Lua happens in here, protected. */
static int run_protected(lua_State *L) {
    struct script_run *run = run_of(L);
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

void script_reply_limit(struct script_run *run) {
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

void script_run(struct keyspace *ks, struct script_run *run) {
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
    if (run->limit != LIMIT_NONE) script_reply_limit(run);
    if (status != 0 || run->limit != LIMIT_NONE || e->bytes > ENGINE_BYTES_MAX || e->chunk_count > ENGINE_CHUNKS_MAX) {
        script_engine_free(e);
        ks->engine = NULL;
    }
}

bool script_compiles(const struct keyspace *ks, struct slice text, struct buf *reply) {
    struct script_run limits = {.limit = LIMIT_NONE};
    struct script_engine *e = engine_new(ks->config.alloc, false);
    e->bytes_start = e->bytes;
    e->run = &limits;
    const bool good = compile(e->L, text, reply);
    script_engine_free(e);
    return good;
}
