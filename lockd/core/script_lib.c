/* script_lib.c - what is left of Lua's own libraries for scripts (C4, C5 of script.h). */
#include "lockd/core/script_run.h"
#include <lauxlib.h>
#include <lualib.h>

enum { REP_BYTES_MAX = 1024 * 1024 };

/* C4: a limit goes through. */
static int limited_pcall(lua_State *L) {
    luaL_checkany(L, 1);
    script_charge(L, 10);
    const int status = lua_pcall(L, lua_gettop(L) - 1, LUA_MULTRET, 0);
    if (status == 0) {
        lua_pushboolean(L, true);
        lua_insert(L, 1);
        return lua_gettop(L);
    }
    if (script_engine_of(L)->run->limit != LIMIT_NONE) return lua_error(L);
    /* As in Redis 7: who catches an error gets its text. */
    if (lua_istable(L, -1) && script_field(L, "err", LUA_TSTRING)) lua_replace(L, -2);
    lua_pushboolean(L, false);
    lua_insert(L, -2);
    return 2;
}

/* Calls the script's handler, but not for a limit: the hook that found it does not count what a handler does. */
static int limited_handler(lua_State *L) {
    if (script_engine_of(L)->run->limit != LIMIT_NONE) return 1;
    lua_settop(L, 1);
    lua_pushvalue(L, lua_upvalueindex(1));
    lua_insert(L, 1);
    lua_call(L, 1, 1);
    return 1;
}

static int limited_xpcall(lua_State *L) {
    luaL_checkany(L, 2);
    script_charge(L, 10);
    lua_settop(L, 2);
    lua_pushcclosure(L, limited_handler, 1);
    lua_insert(L, 1);
    const int status = lua_pcall(L, 0, LUA_MULTRET, 1);
    if (script_engine_of(L)->run->limit != LIMIT_NONE) return lua_error(L);
    lua_pushboolean(L, status == 0);
    lua_replace(L, 1);
    return lua_gettop(L);
}

/* No addresses: they would differ from run to run. */
static int plain_tostring(lua_State *L) {
    luaL_checkany(L, 1);
    script_charge(L, 20);
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
    script_charge(L, 1 + (count > 0 ? (size_t)count * (bytes / 16 + 1) : 0));
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
    script_charge(L, work);
    return function(L);
}

/* table.maxn looks at every slot, and nothing says how many there are. */
static int charged_maxn(lua_State *L) {
    script_charge(L, 1 + script_engine_of(L)->bytes / 64);
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

void script_set_function(lua_State *L, const char *name, lua_CFunction function) {
    lua_pushcfunction(L, function);
    lua_setfield(L, -2, name);
}

static int readonly(lua_State *L) {
    return luaL_error(L, "Attempt to modify a readonly table");
}

void script_make_readonly(lua_State *L) {
    lua_newtable(L);
    lua_createtable(L, 0, 2);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    script_set_function(L, "__newindex", readonly);
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
    script_set_function(L, "rep", capped_rep);
    lua_remove(L, -2);
    /* Methods of strings come from here too, and from nowhere else. */
    lua_pushliteral(L, "");
    lua_getmetatable(L, -1);
    lua_pushvalue(L, -3);
    lua_setfield(L, -2, "__index");
    lua_pop(L, 2);
    script_make_readonly(L);
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
    script_make_readonly(L);
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
    script_make_readonly(L);
}

void script_push_libraries(lua_State *L) {
    open_library(L, luaopen_base, "");
    lua_newtable(L);
    take_functions(L, LUA_GLOBALSINDEX, base_functions);
    script_set_function(L, "pcall", limited_pcall);
    script_set_function(L, "xpcall", limited_xpcall);
    script_set_function(L, "tostring", plain_tostring);
    make_string(L);
    lua_setfield(L, -2, "string");
    make_table(L);
    lua_setfield(L, -2, "table");
    make_math(L);
    lua_setfield(L, -2, "math");
}
