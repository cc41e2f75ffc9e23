/* Scripts: what they may do, what they answer (as redis-server 7.0.15 does), what of it is logged, and when that is
 * void (C1-C5 of script.h). */
#include "ks_story.h"
#include "lockd/core/script.h"

/* ---- replies and errors, row by row as redis-server 7.0.15 gave them unless the row says why not ---- */
static const struct {
    const char *script, *rest, *want;
} rows[] = {
    {"return 3.99", "0", "3"},
    {"return -3.99", "0", "-3"},
    {"return 1e30", "0", "-9223372036854775808"},
    {"return 0/0", "0", "-9223372036854775808"},
    {"return true", "0", "1"},
    {"return false", "0", "nil"},
    {"return nil", "0", "nil"},
    {"return", "0", "nil"},
    {"", "0", "nil"},
    {"return 'a'", "0", "\"a\""},
    {"return {}", "0", "[]"},
    {"return {1,2,nil,4}", "0", "[1 2]"},
    {"return {{1,{2}},'a',true,false,5}", "0", "[[1 [2]] \"a\" 1 nil 5]"},
    {"return {1.5,'x',{ok='y'}}", "0", "[1 \"x\" y]"},
    {"return {ok='fine'}", "0", "fine"},
    {"return {err='bad'}", "0", "-bad"},
    {"return {err='BAD x\\ny'}", "0", "-BAD x y"},
    {"return {double=3.5}", "0", "\"3.5\""},
    {"return {map={a=1}}", "0", "[\"a\" 1]"},
    {"return {set={a=true}}", "0", "[\"a\"]"},
    {"return {big_number='123'}", "0", "\"123\""},
    {"return {verbatim_string={format='txt',string='abc'}}", "0", "\"abc\""},
    {"return {verbatim_string={}}", "0", "nil"},
    {"return redis.error_reply('bad')", "0", "-ERR bad"},
    {"return redis.error_reply('-bad')", "0", "-ERR bad"},
    {"return redis.error_reply('BAD thing')", "0", "-BAD thing"},
    {"return redis.error_reply(1)", "0", "-ERR wrong number or type of arguments"},
    {"return redis.status_reply('S')", "0", "S"},
    {"return redis.status_reply()", "0", "-ERR wrong number or type of arguments"},
    {"return redis.sha1hex('')", "0", "\"da39a3ee5e6b4b0d3255bfef95601890afd80709\""},
    {"redis.log(redis.LOG_WARNING,'x')", "0", "nil"},
    {"return redis.replicate_commands()", "0", "1"},
    {"return #ARGV", "0 1 2 3", "3"},
    {"return ARGV[4]", "0 1 2 3", "nil"},
    {"return {KEYS[1],KEYS[2],KEYS[3],ARGV[1]}", "2 a b c", "[\"a\" \"b\"]"},
    {"return unpack({1,2,3})", "0", "1"},
    {"return type(redis.call('SET',KEYS[1],'1'))", "1 k", "\"table\""},
    {"return redis.call('SET',KEYS[1],'1')", "1 k", "OK"},
    {"return redis.call('SET',KEYS[1],'1').ok", "1 k", "\"OK\""},
    {"return redis.call('GET',KEYS[1])", "1 none", "nil"},
    {"return tostring(redis.call('GET',KEYS[1]))", "1 none", "\"false\""},
    {"redis.call('SET',KEYS[1],0.1) return redis.call('GET',KEYS[1])", "1 k", "\"0.10000000000000001\""},
    {"redis.call('SET',KEYS[1],1e17) return redis.call('GET',KEYS[1])", "1 k", "\"1e+17\""},
    {"redis.call('SET',KEYS[1],1e15) return redis.call('GET',KEYS[1])", "1 k", "\"1000000000000000\""},
    {"return redis.pcall('INCR',KEYS[1])", "1 x", "-ERR value is not an integer or out of range"},
    {"return redis.pcall('EVAL','return 1',0)", "0", "-ERR This Redis command is not allowed from script"},
    {"return redis.pcall('nosuch')", "0", "-ERR Unknown Redis command called from script"},
    {"local a,b=pcall(redis.call,'INCR',KEYS[1]) return b", "1 x", "\"ERR value is not an integer or out of range\""},
    {"local a,b=pcall(error,'x') return b", "0", "\"x\""},
    {"local a,b=pcall(function() error('x') end) return b", "0", "\"user_script:1: x\""},
    {"return {pcall(function(...) return ... end, 7, 8)}", "0", "[1 7 8]"},
    {"return {xpcall(function() error('x',0) end, function(e) return e..'!' end)}", "0", "[nil \"x!\"]"},
    {"return {xpcall(function() return 5 end, function(e) return e end)}", "0", "[1 5]"},
    {"error('boom')", "0",
     "-ERR user_script:1: boom script: 82903a0434f1503e152f89c03c9acd881a0e8150, on @user_script:1."},
    {"error({err='MY boom'})", "0", "-MY boom script: 4c2ee35ef37c857625d6ec6d812eab72377cfa97, on @user_script:1."},
    {"error(nil)", "0", "-ERR nil script: c402aa49952c86c38f35fb311d54977d08f3bf01, on @user_script:1."},
    {"error()", "0", "-ERR nil script: aca90d914519fdb9825352bdc0befb59f7c8510f, on @user_script:1."},
    {"error({})", "0", /* it killed redis-server */
     "-ERR unknown error script: 367bf7fe449ba40e54d99d9086aa3c2164008136, on @user_script:1."},
    {"return foo", "0",
     "-ERR user_script:1: Script attempted to access nonexistent global variable 'foo' script: "
     "47e30a5d10d5694f99208f9adc4fe3bf2450edbd, on @user_script:1."},
    {"return print", "0",
     "-ERR user_script:1: Script attempted to access nonexistent global variable 'print' script: "
     "df4c752a7558004676bbee87e38b92e0b9056d68, on @user_script:1."},
    {"foo = 1", "0",
     "-ERR user_script:1: Attempt to modify a readonly table script: e1934c7d679df0a682fa283afb2bdeec6495d463, on "
     "@user_script:1."},
    {"KEYS = 1 return 1", "0",
     "-ERR user_script:1: Attempt to modify a readonly table script: cf3658db9bf63056ae81b91abf77a70a64be0724, on "
     "@user_script:1."},
    {"string.foo=1", "0",
     "-ERR user_script:1: Attempt to modify a readonly table script: 430e58f82d10fb9c20c167012c39650705856070, on "
     "@user_script:1."},
    {"local x = nil; return x.y", "0",
     "-ERR user_script:1: attempt to index local 'x' (a nil value) script: cf0efd7895bbde8aab6ffbb44ec6bca4bd5ef4c3, "
     "on "
     "@user_script:1."},
    {"return 'a'..nil", "0",
     "-ERR user_script:1: attempt to concatenate a nil value script: bad78e871dc70caae12e06df72017df3c5f79a6b, on "
     "@user_script:1."},
    {"return redis.call()", "0",
     "-ERR Please specify at least one argument for this redis lib call script: "
     "0a907e1429221a4d85516cab7fd219a82a9439d8, on @user_script:1."},
    {"return redis.call('nosuch')", "0",
     "-ERR Unknown Redis command called from script script: 206396248e12c6e742fd7296250433c8d7343b74, on "
     "@user_script:1."},
    {"return redis.call('GET')", "0",
     "-ERR Wrong number of args calling Redis command from script script: 72273adc3c5955bf8543f1ad6ce893355b89617d, on "
     "@user_script:1."},
    {"return redis.call('GET', {})", "0",
     "-ERR Lua redis lib command arguments must be strings or integers script: "
     "1343dc154e60f8f7264d986cb42bf48ba973e527, on @user_script:1."},
    {"return redis.call('GET', true)", "0",
     "-ERR Lua redis lib command arguments must be strings or integers script: "
     "7af16faf65f6874e42bfc74fd79e22610b158d05, on @user_script:1."},
    {"return redis.call('EVAL','return 1',0)", "0",
     "-ERR This Redis command is not allowed from script script: c225e144ce9661ef1bbf2a55c99e7c3ff6a38b64, on "
     "@user_script:1."},
    {"return redis.call('INCR','x')", "1 x",
     "-ERR value is not an integer or out of range script: 706974bd9e2c8eb9f348db5255d1651e4e33fb7a, on "
     "@user_script:1."},
    {"return redis.call('PEXPIRE',KEYS[1],'abc')", "1 z",
     "-ERR value is not an integer or out of range script: 5a50d2735f5d78f9e0e8ae70c9765988551cc17b, on "
     "@user_script:1."},
    {"return redis.sha1hex()", "0",
     "-ERR wrong number of arguments script: 3c7ce947ae74a835cc575b6ee87fb27503cb7ba4, on @user_script:1."},
    {"redis.log('x')", "0",
     "-ERR redis.log() requires two arguments or more. script: 4365d697bcf18447f1a1b2cbfc70a188fabcdcff, on "
     "@user_script:1."},
    /* refused before anything runs */
    {"return 1 +", "0",
     "refused -ERR Error compiling script (new function): user_script:1: unexpected symbol near '<eof>'"},
    {"return }", "0", "refused -ERR Error compiling script (new function): user_script:1: unexpected symbol near '}'"},
    {"\033Lua", "0", "refused -ERR Error compiling script (new function): user_script: binary chunks are not accepted"},
    {"return 1", "x", "refused -ERR value is not an integer or out of range"},
    {"return 1", "-1", "refused -ERR Number of keys can't be negative"},
    {"return 1", "2 a", "refused -ERR Number of keys can't be greater than number of args"},
    {"return 1", "9999999999999999999999", "refused -ERR value is not an integer or out of range"},
    {"return 1", "", "refused -ERR wrong number of arguments for a script"},
};
START_TEST(answers_are_those_of_redis) {
    SAYS("SET x abc", "OK");
    EVALS(rows[_i].script, rows[_i].rest, rows[_i].want);
}
END_TEST

/* C5: what is not there, and what cannot be changed. */
static const char *const not_there[] = {
    "load",         "loadstring",   "loadfile", "dofile", "require",  "module",         "getfenv", "setfenv",
    "getmetatable", "setmetatable", "rawget",   "rawset", "rawequal", "collectgarbage", "gcinfo",  "newproxy",
    "coroutine",    "os",           "io",       "debug",  "package",  "print",
};
START_TEST(the_sandbox_has_no_way_out) {
    char script[96], head[128];
    snprintf(script, sizeof script, "return %s", not_there[_i]);
    snprintf(head, sizeof head,
             "-ERR user_script:1: Script attempted to access nonexistent global variable '%s' script: ", not_there[_i]);
    const char *said = eval_of("EVAL", script, "0");
    ck_assert_msg(strncmp(said, head, strlen(head)) == 0, "%s", said);
}
END_TEST

START_TEST(libraries_are_cut_and_sealed) {
    EVALS("return {tostring(string.dump), tostring(string.find), tostring(string.match), tostring(string.gmatch), "
          "tostring(string.gsub), tostring(string.gfind), tostring(math.random), tostring(math.randomseed), "
          "tostring(table.foreach), tostring(table.foreachi), tostring(table.setn)}",
          "0", "[\"nil\" \"nil\" \"nil\" \"nil\" \"nil\" \"nil\" \"nil\" \"nil\" \"nil\" \"nil\" \"nil\"]");
    EVALS("local s = '' return {tostring(s.dump), tostring(s.find), tostring(s.gsub)}", "0",
          "[\"nil\" \"nil\" \"nil\"]");
    EVALS("return {('x'):rep(3), ('aB'):upper(), ('aB'):lower(), ('abc'):reverse(), ('abc'):sub(2,-1), ('abc'):len(), "
          "('abc'):byte(2), string.char(72,73), string.format('%05d|%s|%q', 42, 'x', 'y')}",
          "0", "[\"xxx\" \"AB\" \"ab\" \"cba\" \"bc\" 3 98 \"HI\" \"00042|x|\"y\"\"]");
    EVALS("local t = {3,1,2} table.sort(t) table.insert(t, 4) table.insert(t, 1, 0) table.remove(t) "
          "return {table.concat(t, ','), table.maxn(t), table.getn(t)}",
          "0", "[\"0,1,2,3\" 4 4]");
    EVALS("return {math.floor(1.5), math.max(1,2), math.huge > 1, select('#', 1, 2), tonumber('12'), math.abs(-3)}",
          "0", "[1 2 1 2 12 3]");
    EVALS("local n = 0 for k in pairs({a=1,b=2}) do n = n + 1 end for i in ipairs({1,2}) do n = n + i end "
          "return {n, next({}) == nil, assert(5), type(nil), select(2, 'a', 'b')}",
          "0", "[5 1 5 \"nil\" \"b\"]");
    EVALS("return {tostring({}), tostring(next), tostring(12), tostring(true), tostring('s')}", "0",
          "[\"table\" \"function\" \"12\" \"true\" \"s\"]"); /* no addresses */
    EVALS("_G.x = 1", "0",
          "-ERR user_script:1: Attempt to modify a readonly table script: e5cf4a26667af1721988fe8c9829d5cd2e26c62e, on "
          "@user_script:1.");
    EVALS("KEYS[1] = 'other' return KEYS[1]", "1 a", "\"other\"");
}
END_TEST

/* C1 */
START_TEST(only_its_keys) {
    SAYS("SET secret 1", "OK");
    EVALS("return redis.pcall('GET', 'secret')", "1 other",
          "-ERR Script attempted to access key 'secret', which is not among its KEYS");
    EVALS("return redis.pcall('DEL', KEYS[1], 'secret')", "1 other",
          "-ERR Script attempted to access key 'secret', which is not among its KEYS");
    EVALS("KEYS[1] = 'secret' return redis.pcall('GET', KEYS[1])", "1 other",
          "-ERR Script attempted to access key 'secret', which is not among its KEYS");
    EVALS("return redis.pcall('DBSIZE')", "0", "-ERR This Redis command is not allowed from script");
    EVALS("return redis.pcall('FLUSHALL')", "0", "-ERR This Redis command is not allowed from script");
    EVALS("return redis.pcall('LOCK.ACQUIRE', KEYS[1], 'LEASE', 1)", "1 a",
          "-ERR This Redis command is not allowed from script");
    EVALS("return redis.pcall('%EXPIRE', 1)", "0", "-ERR Unknown Redis command called from script");
    SEES("GET secret", "\"1\"");
}
END_TEST

START_TEST(it_sees_its_own_writes) {
    at(1000);
    SAYS("SET a 1 PX 5000", "OK");
    EVALS("redis.call('set', KEYS[1], '2') local x = redis.call('get', KEYS[1]) redis.call('incr', KEYS[1]) "
          "redis.call('del', KEYS[2]) redis.call('set', KEYS[2], 'new', 'PX', 700) "
          "return {x, redis.call('get', KEYS[1]), redis.call('pttl', KEYS[1]), redis.call('pttl', KEYS[2]), "
          "redis.call('exists', KEYS[1], KEYS[2], KEYS[3]), redis.call('type', KEYS[3])}",
          "3 a b c", "[\"2\" \"3\" -1 700 2 none]");
    SEES("GET a", "\"3\"");
    SEES("PTTL a", "-1");
    SEES("PTTL b", "700");
}
END_TEST

START_TEST(the_lock_of_redis_py) {
    static const char release[] =
        "local token = redis.call('get', KEYS[1]) if not token or token ~= ARGV[1] then return 0 "
        "end redis.call('del', KEYS[1]) return 1";
    static const char extend[] =
        "local token = redis.call('get', KEYS[1])\nif not token or token ~= ARGV[1] then\nreturn 0\nend\n"
        "local expiration = redis.call('pttl', KEYS[1])\nif not expiration then\nexpiration = 0\nend\n"
        "if expiration < 0 then\nreturn 0\nend\nlocal newttl = ARGV[2]\nif ARGV[3] == \"0\" then\n"
        "newttl = ARGV[2] + expiration\nend\nredis.call('pexpire', KEYS[1], newttl)\nreturn 1\n";
    static const char reacquire[] =
        "local token = redis.call('get', KEYS[1]) if not token or token ~= ARGV[1] then return 0 "
        "end redis.call('pexpire', KEYS[1], ARGV[2]) return 1";
    at(1000);
    SAYS("SET lock mine NX PX 5000", "OK");
    SAYS("SET lock theirs NX PX 5000", "nil");
    at(2000);
    EVALS(extend, "1 lock theirs 3000 0", "0");
    EVALS(extend, "1 lock mine 3000 0", "1");
    SEES("PTTL lock", "7000");
    EVALS(extend, "1 lock mine 3000 1", "1");
    SEES("PTTL lock", "3000");
    EVALS(reacquire, "1 lock mine 9000", "1");
    SEES("PTTL lock", "9000");
    EVALS(release, "1 lock theirs", "0");
    EVALS(release, "1 lock mine", "1");
    EVALS(release, "1 lock mine", "0");
    SEES("EXISTS lock", "0");
    /* by digest, as the library calls them */
    char sha[41];
    script_sha(slice_str(release), sha);
    SAYS("SET lock mine NX PX 5000", "OK");
    ck_assert_str_eq(eval_of("EVALSHA", sha, "1 lock mine"), "1");
}
END_TEST

/* The interpreter is kept, the scripts' doings are not. */
START_TEST(runs_know_nothing_of_each_other) {
    static const char count[] =
        "local n = 0 local function up() n = n + 1 return n end return {up(), up(), #KEYS, #ARGV}";
    EVALS(count, "2 a b c", "[1 2 2 1]");
    EVALS(count, "0", "[1 2 0 0]");
    EVALS("KEYS.mine = 1 ARGV[1] = 'x' redis.mine = 1", "1 a b",
          "-ERR user_script:1: Attempt to modify a readonly table script: 106404013b160ad11a86328bd05f25b1f2065f98, on "
          "@user_script:1.");
    EVALS("return {tostring(KEYS.mine), ARGV[1], tostring(redis.mine)}", "1 a b", "[\"nil\" \"b\" \"nil\"]");
    EVALS(
        "while true do end", "0",
        "refused -ERR the script did not end within 5000000 steps (a step costs more the more memory it uses); it did "
        "nothing");
    EVALS(count, "0", "[1 2 0 0]");
    for (int i = 0; i < 1200; i++) { /* more scripts than it keeps compiled */
        char script[64], want[16];
        snprintf(script, sizeof script, "return %d", i);
        snprintf(want, sizeof want, "%d", i);
        if (strcmp(eval_of("EVAL", script, "0"), want) != 0) ck_abort_msg("%s", script);
    }
}
END_TEST

START_TEST(the_cache_of_texts) {
    batch_begin(&story_value, story_ballot, true, 10);
    batch_line("%SETTINGS scripts_max 2");
    batch_end();
    static const char one[] = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db"; /* return 1 */
    struct ks_counts counts;
    ck_assert_str_eq(eval_of("EVALSHA", one, "0"), "refused -NOSCRIPT No matching script. Please use EVAL.");
    ck_assert_str_eq(eval_of("EVALSHA", "abc", "x"), "refused -NOSCRIPT No matching script. Please use EVAL.");
    SAYS("SCRIPT LOAD 'return 1'", "\"e0e1f9fabfc9d4800c877a703b823ac0578ff8db\"");
    SAYS("script load 'return 1'", "\"e0e1f9fabfc9d4800c877a703b823ac0578ff8db\"");
    ck_assert_str_eq(eval_of("EVALSHA", one, "0"), "1");
    ck_assert_str_eq(eval_of("EVALSHA", "E0E1F9FABFC9D4800C877A703B823AC0578FF8DB", "0"), "1");
    SAYS("SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db abc", "[1 0]");
    keyspace_counts(ks, &counts);
    ck_assert_uint_eq(counts.scripts, 1);
    EVALS("return 2", "0", "2"); /* EVAL puts it there, too */
    keyspace_counts(ks, &counts);
    ck_assert_uint_eq(counts.scripts, 2);
    ck_assert_uint_eq(counts.memory_bytes, 16);
    EVALS("return 3", "0", "3"); /* the oldest goes */
    SAYS("SCRIPT EXISTS e0e1f9fabfc9d4800c877a703b823ac0578ff8db", "[0]");
    keyspace_counts(ks, &counts);
    ck_assert_uint_eq(counts.scripts, 2);
    SAYS("SCRIPT FLUSH SYNC", "OK");
    keyspace_counts(ks, &counts);
    ck_assert_uint_eq(counts.scripts, 0);
    ck_assert_uint_eq(counts.memory_bytes, 0);
    SAYS("SCRIPT LOAD 'return }'",
         "-ERR Error compiling script (new function): user_script:1: unexpected symbol near '}'");
    SAYS("SCRIPT FLUSH x", "-ERR SCRIPT FLUSH only support SYNC|ASYNC option");
    SAYS("SCRIPT FLUSH ASYNC y", "-ERR SCRIPT FLUSH only support SYNC|ASYNC option");
    SAYS("SCRIPT LOAD", "-ERR wrong number of arguments for 'script|load' command");
    SAYS("SCRIPT EXISTS", "-ERR wrong number of arguments for 'script|exists' command");
    SAYS("SCRIPT FOO", "-ERR unknown subcommand 'FOO'. Try SCRIPT HELP.");
    SAYS("SCRIPT KILL", "-NOTBUSY No scripts in execution right now.");
}
END_TEST

/* C3 */
START_TEST(a_failure_keeps_what_was_written) {
    EVALS("redis.call('SET',KEYS[1],'1') error('late')", "1 z",
          "-ERR user_script:1: late script: cc7ee1a338f1ec736938800cd20c053ea9627870, on @user_script:1.");
    SEES("GET z", "\"1\"");
}
END_TEST

/* ---- C2: what changed between the run and the apply ---- */

static uint64_t start(const char *script, const char *rest) {
    char copy[256];
    struct slice argv[16] = {slice_str("EVAL"), slice_str(script)};
    uint64_t seq = 0;
    memcpy(copy, rest, strlen(rest) + 1);
    const char *said = script_start(&seq, 2 + story_words(copy, argv + 2), argv);
    ck_assert_str_eq(said, "");
    return seq;
}
static const struct {
    const char *between; /* runs before the effects are applied */
    uint64_t apply_at;
    bool is_void;
} races[] = {
    {"SET other 1", 1000, false},    {"SET a 1", 1000, true}, /* the same value, another version */
    {"SET a 2", 1000, true},         {"DEL a", 1000, true},   {"PEXPIRE a 9000", 1000, true}, /* only the deadline */
    {"PERSIST a", 1000, true},       {"SET b 1", 1000, true},                                 /* was absent */
    {"SET c 1", 1000, false},                                                        /* declared, never looked at */
    {"GET a", 1000, false},          {"GET a", 5999, false},  {"GET a", 6000, true}, /* it expired */
    {"LEASE.REVOKE 1", 1000, false},
};
START_TEST(what_changed_voids_it) {
    at(1000);
    SAYS("LEASE.GRANT 5000", "1");
    SAYS("SET a 1 PX 5000", "OK");
    const uint64_t seq = start("redis.call('set', KEYS[2], 'x') return redis.call('get', KEYS[1])", "3 a b c");
    struct buf effects = {.alloc = heap_alloc()};
    buf_append_slice(&effects, buf_slice(&story_value));
    answer_of(races[_i].between);
    batch_start();
    buf_clear(&story_value);
    buf_append_slice(&story_value, buf_slice(&effects));
    batch_set_stamp(&story_value, races[_i].apply_at);
    char want[64];
    snprintf(want, sizeof want, races[_i].is_void ? "#%llu void" : "#%llu \"1\"", (unsigned long long)seq);
    ck_assert_str_eq(batch_end(), want);
    const bool made = strcmp(read_of(keyspace_stamp(ks), "GET b"), "\"x\"") == 0;
    ck_assert_int_eq(made, !races[_i].is_void);
    buf_release(&effects);
}
END_TEST

START_TEST(a_void_script_is_told_to_every_node) {
    at(1000);
    origin_is(2, 9);
    start("return redis.call('get', KEYS[1])", "1 a");
    struct buf effects = {.alloc = heap_alloc()};
    buf_append_slice(&effects, buf_slice(&story_value));
    answer_of("SET a 1");
    buf_clear(&story_value);
    buf_append_slice(&story_value, buf_slice(&effects));
    ck_assert_str_eq(batch_end(), "#1 void");
    ck_assert_uint_eq(story_facts.facts[0].origin.node, 2);
    buf_release(&effects);
}
END_TEST

START_TEST(it_hangs_on_the_leases_it_names) {
    at(1000);
    SAYS("LEASE.GRANT 5000", "1");
    EVALS("return redis.call('set', KEYS[1], 'x', 'LEASE', 1)", "1 a", "OK");
    EVALS("return redis.pcall('set', KEYS[1], 'x', 'LEASE', 7)", "1 b", "-NOLEASE lease 7 does not exist or has ended");
    const uint64_t seq = start("return redis.call('cas', KEYS[1], 0, 'x', 'LEASE', '1')", "1 c");
    struct buf effects = {.alloc = heap_alloc()};
    buf_append_slice(&effects, buf_slice(&story_value));
    SAYS("LEASE.REVOKE 1", "1");
    SEES("EXISTS a", "0");
    buf_clear(&story_value);
    buf_append_slice(&story_value, buf_slice(&effects));
    char want[64];
    snprintf(want, sizeof want, "#%llu void", (unsigned long long)seq);
    ck_assert_str_eq(batch_end(), want);
    SEES("EXISTS c", "0");
    buf_release(&effects);
}
END_TEST

/* However many, and however often. */
START_TEST(it_hangs_on_many_leases) {
    static const char text[] =
        "for i = 1, 2 * #ARGV do redis.call('set', KEYS[1], i, 'LEASE', ARGV[(i - 1) % #ARGV + 1]) "
        "end return redis.call('get', KEYS[1])";
    at(1000);
    char id[24];
    for (int i = 1; i <= 10; i++) {
        snprintf(id, sizeof id, "%d", i);
        SAYS("LEASE.GRANT 5000", id);
    }
    EVALS(text, "1 a 1 2 3 4 5 6 7 8 9 10", "\"20\"");
    const uint64_t seq = start(text, "1 b 1 2 3 4 5 6 7 8 9 10");
    struct buf effects = {.alloc = heap_alloc()};
    buf_append_slice(&effects, buf_slice(&story_value));
    SAYS("LEASE.REVOKE 9", "1");
    buf_clear(&story_value);
    buf_append_slice(&story_value, buf_slice(&effects));
    char want[64];
    snprintf(want, sizeof want, "#%llu void", (unsigned long long)seq);
    ck_assert_str_eq(batch_end(), want);
    SEES("EXISTS b", "0");
    buf_release(&effects);
}
END_TEST

START_TEST(it_waits_for_the_log_as_reads_do) {
    at(1000);
    SAYS("SET a 1 PX 500", "OK");
    SAYS("SET b 1 PX 600", "OK");
    at(1499);
    EVALS("return redis.call('pttl', KEYS[1])", "1 a", "1");
    at(1700);
    EVALS("return 1", "1 a", "needs 1500");
    EVALS("return 1", "3 a b c", "needs 1600");
    EVALS("return 1", "1 c", "1");
    EVALS("return redis.call('exists', KEYS[1])", "1 a", "0");
}
END_TEST

START_TEST(versions_made_by_the_script_are_not_known_in_it) {
    SAYS("SET a 1", "OK");
    EVALS("return redis.call('CAS', KEYS[1], 1, 'two')", "1 a", "[1 nil]");
    SEES("GETV a", "[3 \"two\"]");
    EVALS("return redis.call('CAS', KEYS[1], 1, 'x')", "1 a", "[0 3 \"two\"]");
    EVALS("return redis.call('GETV', KEYS[1])", "1 a", "[3 \"two\"]");
    EVALS("redis.call('SET', KEYS[1], 'z') return redis.pcall('GETV', KEYS[1])", "1 a",
          "-ERR a key that this script wrote has no version before the script has ended");
    EVALS("redis.call('SET', KEYS[1], 'z') return redis.pcall('CAS', KEYS[1], 3, 'y')", "1 a",
          "-ERR a key that this script wrote has no version before the script has ended");
    SEES("GET a", "\"z\"");
}
END_TEST

START_TEST(fencing_inside_a_script) {
    at(1000);
    SAYS("LEASE.GRANT 5000", "1");
    SAYS("LOCK.ACQUIRE l LEASE 1 VALUE me", "2");
    static const char guarded[] =
        "redis.call('LOCK.CHECK', KEYS[1], ARGV[1]) return redis.call('SET', KEYS[2], ARGV[2])";
    EVALS(guarded, "2 l data 2 first", "OK");
    EVALS(guarded, "2 l data 3 second",
          "-FENCED token 3 does not hold 'l' script: b0efc1af99a44ef4f83ab7c00d494cb92f573788, on @user_script:1.");
    EVALS("return {redis.call('LOCK.INFO', KEYS[1]), redis.call('ELECT.LEADER', KEYS[1]), redis.call('TYPE', KEYS[1])}",
          "1 l", "[[\"name\" \"l\" \"lease\" 1 \"token\" 2 \"value\" \"me\" \"waiters\" 0] [\"me\" 2 1] lock]");
    EVALS("return redis.call('SET', KEYS[1], '1', 'NX')", "1 l", "nil");
    EVALS("return redis.pcall('DEL', KEYS[1])", "1 l",
          "-WRONGTYPE Operation against a key holding the wrong kind of value");
    SEES("GET data", "\"first\"");
    SAYS("WOR.SET r v", "[1 9 \"v\"]");
    EVALS("return {redis.call('WOR.GET', KEYS[1]), redis.pcall('SET', KEYS[1], 'x')}", "1 r",
          "[[9 \"v\"] -WRITEONCE key 'r' is a write-once register]");
}
END_TEST

/* M3: a script is atomic; a name that it ends and makes again was never free. */
START_TEST(who_waits_sees_only_the_end_of_a_script) {
    at(1000);
    SAYS("LEASE.GRANT 5000", "1");
    SAYS("SET s 1", "OK");
    SAYS("LOCK.ACQUIRE s LEASE 1 WAIT 60000", "queued"); /* #3 */
    EVALS("redis.call('DEL', KEYS[1]) redis.call('DEL', KEYS[1]) redis.call('SET', KEYS[1], '2') "
          "return redis.call('GET', KEYS[1])",
          "1 s", "\"2\"");
    SEES("TYPE s", "string");
    start("redis.call('SET', KEYS[1], '3') redis.call('DEL', KEYS[1]) return redis.call('EXISTS', KEYS[1])", "1 s");
    ck_assert_str_eq(batch_end(), "#3 10; #5 0");
    SEES("TYPE s", "lock");
}
END_TEST

/* ---- C4: limits ---- */
static const struct {
    const char *script, *head;
} limits[] = {
    {"while true do end", "refused -ERR the script did not end within 5000000 steps"},
    {"while true do pcall(function() while true do end end) end", "refused -ERR the script did not end within"},
    {"xpcall(function() while true do end end, function() while true do end end)",
     "refused -ERR the script did not end"},
    {"local function f() return f() end return f()", "refused -ERR the script did not end within"},
    {"local t = {} while true do t[#t+1] = #t end", "refused -ERR the script did not end within"},
    {"local t = {} for i=1,10000 do t[i]=i end while true do table.insert(t, 1, 0) table.remove(t, 1) end",
     "refused -ERR the script did not end within"},
    {"local t = {} for i=1,10000 do t[i]=i end while true do table.sort(t) end", "refused -ERR the script did not end"},
    {"local s = ('x'):rep(1000000) while true do local r = s..s end", "refused -ERR the script did not end within"},
    {"local s = ('x'):rep(1000000) while true do local r = s < s end", "refused -ERR the script did not end within"},
    {"local s = ('x'):rep(1000000) while true do local r = s:lower() end",
     "refused -ERR the script did not end within"},
    {"while true do local r = ('x'):rep(1000000) end", "refused -ERR the script did not end within"},
    {"local t = {} for i=1,20000 do t[i..'k']=i end for i=1,20000 do t[i..'k']=nil end while true do next(t) end",
     "refused -ERR the script did not end within"},
    {"while true do unpack({}, 1, 7000) end", "refused -ERR the script did not end within"},
    {"local s = ('x'):rep(1000000) for i=1,9 do s = s..s end",
     "refused -ERR the script needs more than 33554432 bytes"},
    {"local s = ('x'):rep(1000000) for i=1,9 do pcall(function() s = s..s end) end return 1",
     "refused -ERR the script needs more than 33554432 bytes"},
    {"return ('x'):rep(1048577)",
     "-ERR user_script:1: string.rep: the result would be longer than 1048576 bytes script: "},
    {"return ('xx'):rep(2147483647)", "-ERR user_script:1: string.rep: the result would be longer than 1048576 bytes"},
    {"local function f() return 1 + f() end return f()", "refused -ERR the script did not end within"},
    {"local t={} t[1]=t return t", "[[[[[[[["},
    {"local t={} t[1]=t t[2]=t return t", "refused -ERR the reply of the script is longer than"},
    {"local s = ('x'):rep(1000000) return {s,s,s}", "refused -ERR the reply of the script is longer than"},
    {"local s = ('x'):rep(1000000) return {s,s}", "refused -ERR the script writes more than"},
    {"local s = ('x'):rep(900000) for i=1,3 do redis.call('SET', KEYS[1], s) end",
     "refused -ERR the script writes more than"},
    {"for i=1,2000 do redis.call('INCR', KEYS[1]) end", "refused -ERR the script writes more than"},
    {"for i=1,2000 do pcall(redis.call, 'INCR', KEYS[1]) end", "refused -ERR the script writes more than"},
    {"return redis.call(unpack({}, 1, 2000))", "-ERR too many arguments for this redis lib call script: "},
    {"return unpack({}, 1, 1000000)", "-ERR user_script:1: too many results to unpack"},
    {"return redis.call('SET', KEYS[1], ('x'):rep(1000001))",
     "-ERR value is too long: 1000001 bytes, value-bytes-max is 1000000"},
};
START_TEST(limits_hold_and_leave_nothing) {
    batch_begin(&story_value, story_ballot, true, 10);
    batch_line("%SETTINGS value_bytes_max 1000000");
    batch_end();
    SAYS("SET k 1", "OK");
    const char *said = eval_of("EVAL", limits[_i].script, "1 k");
    ck_assert_msg(strncmp(said, limits[_i].head, strlen(limits[_i].head)) == 0, "%.300s", said);
    SEES("GET k", "\"1\"");
}
END_TEST

/* On the leader, when it runs; what it was allowed then is done whole at apply. */
START_TEST(growth_is_limited_as_everywhere) {
    batch_begin(&story_value, story_ballot, true, 10);
    batch_line("%SETTINGS keys_max 3 memory_max 1048576");
    batch_end();
    SAYS("SET a 1", "OK");
    SAYS("SET b 1", "OK");
    EVALS("redis.call('SET', KEYS[1], '2') redis.call('SET', KEYS[2], '2') return redis.pcall('SET', KEYS[3], '2')",
          "3 a b c", "OK");
    EVALS("redis.call('SET', KEYS[1], '2') return redis.pcall('SET', KEYS[2], '2')", "2 a d",
          "-BUSY keys-max: there are 3 keys");
    EVALS("redis.call('DEL', KEYS[1]) return redis.pcall('SET', KEYS[2], '2')", "2 a d", "OK");
    EVALS("return redis.pcall('SET', KEYS[1], ('x'):rep(1048570))", "1 d",
          "-BUSY memory-max: keys and values take 246 bytes");
    SAYS("DEL b", "1");
    start("return redis.call('SET', KEYS[1], 'two')", "1 e");
    struct buf effects = {.alloc = heap_alloc()};
    buf_append_slice(&effects, buf_slice(&story_value));
    SAYS("SET f 1", "OK"); /* somebody takes the last place meanwhile */
    buf_clear(&story_value);
    buf_append_slice(&story_value, buf_slice(&effects));
    batch_end();
    SEES("GET e", "\"two\"");
    SEES("DBSIZE", "4");
    buf_release(&effects);
}
END_TEST

START_TEST(deep_replies_end_in_an_error) {
    const char *said = eval_of("EVAL", "local t={} t[1]=t return t", "0");
    ck_assert_ptr_nonnull(strstr(said, "[[-ERR reached lua stack limit]]"));
    size_t depth = 0;
    while (said[depth] == '[') depth++;
    ck_assert_uint_eq(depth, SCRIPT_REPLY_DEPTH_MAX + 1);
}
END_TEST

/* A leader that is wrong, or bytes that a checksum missed: nothing is executed, nothing is read outside. */
static const char *const damaged[] = {
    "%SCRIPT r '' x 0",
    "%SCRIPT r '' 0 x",
    "%SCRIPT r '' 0 1",
    "%SCRIPT r '' 0 1 3 SET a",
    "%SCRIPT r '' 0 1 0",
    "%SCRIPT r '' 1 a 0 0",
    "%SCRIPT r '' 0 0 more",
    "%SCRIPT r '' 99999999999999999999 0",
    "%SCRIPT r '' 18446744073709551615 0",
    "%SCRIPT r '' 6148914691236517206 0",
    "%SCRIPT r '' 0 4294967295",
    "%SCRIPT r '' 6148914691236517206 0 0 0",
};
START_TEST(damaged_effects_do_nothing) {
    SAYS(damaged[_i], "-ERR damaged effects of a script; it did not run");
    SEES("DBSIZE", "0");
}
END_TEST

START_TEST(effects_do_only_what_scripts_may) {
    SAYS("%SCRIPT +OK\r\n '' 1 a 0 0 1 3 SET a 1", "OK");
    SEES("GET a", "\"1\"");
    SAYS("%SCRIPT +OK\r\n '' 0 3 1 FLUSHALL 2 LEASE.GRANT 5000 2 %REPLY x", "OK");
    SEES("GET a", "\"1\"");
    SEES("LEASE.LIST", "[0 []]");
    SAYS("%SCRIPT +OK\r\n '' 1 a x 0 0", "void");
    SAYS("%SCRIPT +OK\r\n '' 1 a 1 x 0", "void");
    SAYS("%SCRIPT +OK\r\n '' 1 x 1 LEASE 0", "void");
    SAYS("%SCRIPT +OK\r\n '' 1 7 0 LEASE 0", "OK");
}
END_TEST

/* A thousand keys, and none. */
START_TEST(many_keys) {
    char rest[2048] = "400";
    for (int i = 0; i < 400; i++) snprintf(rest + strlen(rest), sizeof rest - strlen(rest), " k%d", i);
    EVALS("for i=1,#KEYS do redis.call('SET', KEYS[i], i) end return redis.call('EXISTS', unpack(KEYS))", rest, "400");
    SEES("DBSIZE", "400");
    SEES("GET k399", "\"400\"");
}
END_TEST

static void add(TCase *tc) {
    tcase_add_loop_test(tc, answers_are_those_of_redis, 0, sizeof rows / sizeof rows[0]);
    tcase_add_loop_test(tc, the_sandbox_has_no_way_out, 0, sizeof not_there / sizeof not_there[0]);
    tcase_add_test(tc, libraries_are_cut_and_sealed);
    tcase_add_test(tc, only_its_keys);
    tcase_add_test(tc, it_sees_its_own_writes);
    tcase_add_test(tc, the_lock_of_redis_py);
    tcase_add_test(tc, runs_know_nothing_of_each_other);
    tcase_add_test(tc, the_cache_of_texts);
    tcase_add_test(tc, a_failure_keeps_what_was_written);
    tcase_add_loop_test(tc, what_changed_voids_it, 0, sizeof races / sizeof races[0]);
    tcase_add_test(tc, a_void_script_is_told_to_every_node);
    tcase_add_test(tc, it_hangs_on_the_leases_it_names);
    tcase_add_test(tc, it_hangs_on_many_leases);
    tcase_add_test(tc, it_waits_for_the_log_as_reads_do);
    tcase_add_test(tc, versions_made_by_the_script_are_not_known_in_it);
    tcase_add_test(tc, fencing_inside_a_script);
    tcase_add_test(tc, who_waits_sees_only_the_end_of_a_script);
    tcase_add_loop_test(tc, limits_hold_and_leave_nothing, 0, sizeof limits / sizeof limits[0]);
    tcase_add_test(tc, growth_is_limited_as_everywhere);
    tcase_add_test(tc, deep_replies_end_in_an_error);
    tcase_add_loop_test(tc, damaged_effects_do_nothing, 0, sizeof damaged / sizeof damaged[0]);
    tcase_add_test(tc, effects_do_only_what_scripts_may);
    tcase_add_test(tc, many_keys);
}
int main(void) {
    return story_main("script", add);
}
