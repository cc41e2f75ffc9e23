/* script_run.h - running one script: what script.c asks for, and what the interpreter's two files share.  Internal to
 * script*.c.
 *
 *   script.c        which script, with which keys; the cache; effects as words, and applying them
 *   script_run.c    the interpreter, its limits, redis.*, replies
 *   script_lib.c    what is left of Lua's own libraries */
#pragma once
#include "lockd/core/ks_state.h"
#include "lockd/core/script.h"
#include <lua.h>

enum { SCRIPT_CALL_ARGC_MAX = 1024 };

enum script_limit { LIMIT_NONE, LIMIT_STEPS, LIMIT_MEMORY, LIMIT_EFFECTS, LIMIT_REPLY };

/* A list of words: their bytes, and where each ends. */
struct script_words {
    struct buf bytes, ends; /* ends: size_t each */
    uint32_t count;
};
void script_words_add(struct script_words *l, struct slice s);
void script_words_add_u64(struct script_words *l, uint64_t value);

struct script_run {
    struct keyspace *overlay; /* C1 */
    uint64_t stamp_ms;
    struct ks_once_key once;
    const struct slice *keys, *args;
    uint32_t key_count, arg_count;
    bool *key_loaded; /* by index in keys */
    struct slice text;
    const char *sha;
    struct script_words writes; /* of each command that changed something: argc arg ... */
    uint32_t write_count;
    struct buf call_reply; /* of the redis.call being made */
    struct buf reply;      /* of the script */
    bool refused;          /* it did not compile, or ran into a limit: nothing to log */
    enum script_limit limit;
    uint64_t steps; /* left */
    struct slice argv[SCRIPT_CALL_ARGC_MAX];
};

/* Run it; never fails: `reply` says what happened.  The interpreter is kept in ks->engine. */
void script_run(struct keyspace *ks, struct script_run *run);
/* The reply of a run that met run->limit. */
void script_reply_limit(struct script_run *run);
/* Does it compile?  If not, the error is appended. */
bool script_compiles(const struct keyspace *ks, struct slice text, struct buf *reply);
void script_engine_free(struct script_engine *e);
bool script_allows(enum command_id id);

/* ---- between script_run.c and script_lib.c ---- */
/* The interpreter, kept from run to run because making it costs more than running a script.  Nothing a script can
 * change outlives it: what is global is sealed (C5), KEYS and ARGV are made anew.  After a limit, or when it has grown,
 * it is thrown away. */
struct script_engine {
    const struct alloc *alloc;
    lua_State *L;
    struct script_run *run;    /* the one going on */
    size_t bytes, bytes_start; /* that Lua has now; that it had when the run began */
    uint32_t chunk_count;      /* compiled scripts it keeps, by digest */
};
struct script_engine *script_engine_of(lua_State *L);
/* Pay, or the script ends (C4). */
void script_charge(lua_State *L, uint64_t steps);
/* If the table on top has a field of this name and type, its value is pushed. */
bool script_field(lua_State *L, const char *name, int type);
void script_set_function(lua_State *L, const char *name, lua_CFunction function);
/* Instead of the table on top, one that reads like it and cannot be changed. */
void script_make_readonly(lua_State *L);
/* Pushes a table of all that Lua itself gives to scripts. */
void script_push_libraries(lua_State *L);
