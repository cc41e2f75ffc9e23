/* config.c - see config.h.
 *
 * The command line is turned into a small configuration text and read after the file by the same parser, so that both
 * get the same judgement in the same words. */
#include "proxy/io/config.h"
#include "common/io/log.h"
#include <confuse.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { LINE_BYTES = 1024, BACKENDS_MAX = PLACEMENT_MEMBERS_MAX };

/* ---- the tables ---- */
struct number_key {
    const char *key;
    uint64_t value, low, high;
    const char *unit, *text;
    size_t offset;
};
struct text_key {
    const char *key, *value, *form, *text;
    size_t offset, bytes;
};
#define NUMBER(field, key, value, low, high, unit, text)                                                               \
    {key, value, low, high, unit, text, offsetof(struct config, field)},
static const struct number_key global_numbers[] = {CONFIG_GLOBAL_NUMBERS(NUMBER)};
#undef NUMBER
#define NUMBER(field, key, value, low, high, unit, text)                                                               \
    {key, value, low, high, unit, text, offsetof(struct config_pool, field)},
static const struct number_key pool_numbers[] = {CONFIG_POOL_NUMBERS(NUMBER)};
#undef NUMBER
#define TEXT(field, key, value, bytes, form, text) {key, value, form, text, offsetof(struct config, field), bytes},
static const struct text_key global_texts[] = {CONFIG_GLOBAL_TEXTS(TEXT)};
#undef TEXT
#define TEXT(field, key, value, bytes, form, text) {key, value, form, text, offsetof(struct config_pool, field), bytes},
static const struct text_key pool_texts[] = {CONFIG_POOL_TEXTS(TEXT)};
#undef TEXT
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static const char *const lockd_text = "nodes of lockd, any of them is enough to begin with";
static const struct {
    const char *name, *argument, *what;
} key_kinds[] = {
#define KIND(NAME, name, argument, what) [KEY_##NAME] = {name, argument, what},
    KEY_KINDS(KIND)
#undef KIND
};
static const char *const key_text = "rules for the session key, the first that matches wins";

/* ---- messages ---- */
struct reading {
    struct config *config;
    char *text;
    bool failed;
};
static struct reading *reading_now; /* libconfuse's callbacks carry nothing of ours */

static int __attribute__((format(printf, 2, 3))) complain(struct reading *r, const char *format, ...) {
    if (r->failed) return -1; /* the first message is the one that matters */
    va_list args;
    va_start(args, format);
    vsnprintf(r->text, LINE_BYTES, format, args);
    va_end(args);
    for (char *at = r->text; *at != '\0'; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f) *at = '?';
    r->failed = true;
    return -1;
}

static void on_error(cfg_t *cfg, const char *format, va_list args) {
    char message[LINE_BYTES];
    vsnprintf(message, sizeof message, format, args);
    if (cfg != NULL && cfg->filename != NULL && strcmp(cfg->filename, "[buf]") != 0)
        complain(reading_now, "%s:%d: %s", cfg->filename, cfg->line, message);
    else
        complain(reading_now, "command line: %s", message);
}

/* ---- values: judged where they stand, so that the message has the line ---- */
static int judge_number(cfg_t *cfg, cfg_opt_t *opt, const struct number_key *key) {
    const long value = cfg_opt_getnint(opt, cfg_opt_size(opt) - 1);
    if (value >= 0 && (uint64_t)value >= key->low && (uint64_t)value <= key->high) return 0;
    cfg_error(cfg, "%s = %ld: it goes from %llu to %llu (%s)", key->key, value, (unsigned long long)key->low,
              (unsigned long long)key->high, key->unit);
    return -1;
}

static int on_number(cfg_t *cfg, cfg_opt_t *opt) {
    for (size_t i = 0; i < COUNT(global_numbers); i++)
        if (strcmp(global_numbers[i].key, cfg_opt_name(opt)) == 0) return judge_number(cfg, opt, &global_numbers[i]);
    for (size_t i = 0; i < COUNT(pool_numbers); i++)
        if (strcmp(pool_numbers[i].key, cfg_opt_name(opt)) == 0) return judge_number(cfg, opt, &pool_numbers[i]);
    return 0;
}

static const char *last_text(cfg_opt_t *opt) {
    const char *value = cfg_opt_getnstr(opt, cfg_opt_size(opt) - 1);
    return value != NULL ? value : "";
}

static int on_text(cfg_t *cfg, cfg_opt_t *opt) {
    const char *value = last_text(opt), *key = cfg_opt_name(opt);
    size_t bytes = 0;
    for (size_t i = 0; i < COUNT(global_texts); i++)
        if (strcmp(global_texts[i].key, key) == 0) bytes = global_texts[i].bytes;
    for (size_t i = 0; i < COUNT(pool_texts); i++)
        if (strcmp(pool_texts[i].key, key) == 0) bytes = pool_texts[i].bytes;
    if (strlen(value) >= bytes) {
        cfg_error(cfg, "%s: \"%.40s...\" is longer than %zu bytes", key, value, bytes - 1);
        return -1;
    }
    if (strcmp(key, "log-level") == 0 && log_level_of(value) < 0) {
        cfg_error(cfg, "log-level = \"%s\": it is one of error, warn, info, debug", value);
        return -1;
    }
    if (strcmp(key, "class") == 0 && strcmp(value, "sticky") != 0 && strcmp(value, "exclusive") != 0) {
        cfg_error(cfg, "class = \"%s\": it is sticky or exclusive", value);
        return -1;
    }
    if (strcmp(key, "name") == 0) {
        bool good = value[0] != '\0';
        for (const char *at = value; *at != '\0'; at++) good = good && *at > ' ' && *at < 0x7f;
        if (!good) {
            cfg_error(cfg, "name = \"%s\": printable characters without spaces", value);
            return -1;
        }
    }
    return 0;
}

static int on_address(cfg_t *cfg, cfg_opt_t *opt) {
    struct net_address address;
    char error[NET_ERROR_BYTES];
    const bool port_zero = strcmp(cfg_opt_name(opt), "listen") == 0;
    if (port_zero && on_text(cfg, opt) != 0) return -1;
    if (net_parse(last_text(opt), port_zero, &address, error, sizeof error) == 0) return 0;
    cfg_error(cfg, "%s = \"%.200s\": %s", cfg_opt_name(opt), last_text(opt), error);
    return -1;
}

static int on_weight(cfg_t *cfg, cfg_opt_t *opt) {
    const long value = cfg_opt_getnint(opt, cfg_opt_size(opt) - 1);
    if (value >= 1 && value <= PLACEMENT_WEIGHT_MAX) return 0;
    cfg_error(cfg, "weight = %ld: it goes from 1 to %d", value, PLACEMENT_WEIGHT_MAX);
    return -1;
}

static bool take_two(const char *text, uint64_t *ret_first, uint64_t *ret_second) {
    const size_t bytes = strcspn(text, " ");
    return slice_to_u64(slice_of(text, bytes), ret_first) &&
           slice_to_u64(slice_str(text + bytes + strspn(text + bytes, " ")), ret_second);
}

/* The words of a rule behind its name. */
static int take_argument(const char *text, struct key_rule *rule, struct linematch **ret_match, char *error,
                         size_t error_bytes) {
    uint64_t offset, length;
    switch (rule->kind) {
    case KEY_LINE:
    case KEY_HTTP_PATH:
        if (linematch_new(text, ret_match, error, error_bytes) != 0) return -1;
        rule->match = linematch_find;
        rule->context = *ret_match;
        return 0;
    case KEY_HTTP_HEADER:
    case KEY_HTTP_COOKIE:
    case KEY_HTTP_QUERY:
        if (strlen(text) < sizeof rule->name && strpbrk(text, " \t=;:&\"") == NULL) {
            memcpy(rule->name, text, strlen(text) + 1);
            return 0;
        }
        snprintf(error, error_bytes, "a name has 1 to %zu bytes and none of = ; : & \" or space",
                 sizeof rule->name - 1);
        return -1;
    case KEY_BYTES:
        if (take_two(text, &offset, &length) && length >= 1 && length <= KEY_BYTES_MAX &&
            offset <= KEY_HEAD_BYTES_MAX - length) {
            rule->offset = (uint32_t)offset;
            rule->length = (uint32_t)length;
            return 0;
        }
        snprintf(error, error_bytes, "OFFSET LENGTH are two numbers, LENGTH 1 to %d, both together at most %d",
                 KEY_BYTES_MAX, KEY_HEAD_BYTES_MAX);
        return -1;
    case KEY_SOURCE_IP:
    case KEY_SNI:
    case KEY_MQTT_CLIENT_ID: return 0;
    }
    return -1;
}

/* "source-ip", "line REGEX" and so on. */
static int make_rule(const char *text, struct key_rule *ret_rule, struct linematch **ret_match, char *error,
                     size_t error_bytes) {
    const size_t bytes = strcspn(text, " ");
    *ret_match = NULL;
    for (unsigned i = 0; i < COUNT(key_kinds); i++) {
        const char *name = key_kinds[i].name, *argument = text + bytes + strspn(text + bytes, " ");
        if (strncmp(name, text, bytes) != 0 || name[bytes] != '\0') continue;
        if ((argument[0] != '\0') != (key_kinds[i].argument[0] != '\0')) {
            snprintf(error, error_bytes, "it reads %s%s", name, key_kinds[i].argument);
            return -1;
        }
        *ret_rule = (struct key_rule){.kind = (enum key_kind)i};
        return take_argument(argument, ret_rule, ret_match, error, error_bytes);
    }
    size_t at = (size_t)snprintf(error, error_bytes, "a rule is one of");
    for (unsigned i = 0; i < COUNT(key_kinds) && at < error_bytes; i++)
        at += (size_t)snprintf(error + at, error_bytes - at, "%s %s%s", i > 0 ? "," : "", key_kinds[i].name,
                               key_kinds[i].argument);
    return -1;
}

static int on_rule(cfg_t *cfg, cfg_opt_t *opt) {
    struct key_rule rule;
    struct linematch *match;
    char error[NET_ERROR_BYTES];
    if (cfg_opt_size(opt) > KEY_RULES_MAX) {
        cfg_error(cfg, "key: more than %d rules", KEY_RULES_MAX);
        return -1;
    }
    if (make_rule(last_text(opt), &rule, &match, error, sizeof error) != 0) {
        cfg_error(cfg, "key = \"%.200s\": %s", last_text(opt), error);
        return -1;
    }
    linematch_free(match);
    return 0;
}

static bool name_is_good(const char *name) {
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    const size_t bytes = strlen(name);
    return bytes >= 1 && bytes <= 64 && strspn(name, allowed) == bytes;
}

/* Called at the end of a block. */
static int on_block(cfg_t *cfg, cfg_opt_t *opt) {
    const bool pool = strcmp(cfg_opt_name(opt), "pool") == 0;
    cfg_t *block = cfg_opt_getnsec(opt, cfg_opt_size(opt) - 1);
    const char *title = cfg_title(block);
    if (title == NULL || !name_is_good(title)) {
        cfg_error(cfg, "%s \"%.80s\": a name is 1 to 64 of A-Z a-z 0-9 . _ -", cfg_opt_name(opt),
                  title != NULL ? title : "");
        return -1;
    }
    const char *needed = pool ? "listen" : "address";
    const char *value = cfg_getstr(block, needed);
    if (value == NULL || value[0] == '\0') {
        cfg_error(cfg, "%s %s has no %s", cfg_opt_name(opt), title, needed);
        return -1;
    }
    if (pool && (cfg_size(block, "backend") == 0 || cfg_size(block, "backend") > BACKENDS_MAX)) {
        cfg_error(cfg, "pool %s has %s", title, cfg_size(block, "backend") == 0 ? "no backend" : "too many backends");
        return -1;
    }
    if (pool && cfg_size(block, "key") == 0) {
        cfg_error(cfg, "pool %s: key has no rule", title);
        return -1;
    }
    return 0;
}

/* ---- from the parser's values to ours ---- */
static void take_numbers(cfg_t *cfg, const struct number_key *keys, size_t count, void *into) {
    for (size_t i = 0; i < count; i++) {
        const uint64_t value = (uint64_t)cfg_getint(cfg, keys[i].key);
        memcpy((char *)into + keys[i].offset, &value, sizeof value);
    }
}

static void take_texts(cfg_t *cfg, const struct text_key *keys, size_t count, void *into) {
    for (size_t i = 0; i < count; i++) {
        const char *value = cfg_getstr(cfg, keys[i].key);
        snprintf((char *)into + keys[i].offset, keys[i].bytes, "%s", value != NULL ? value : "");
    }
}

static int take_address(struct reading *r, const char *where, const char *text, bool listen,
                        struct net_address *ret_address) {
    char error[NET_ERROR_BYTES];
    if (net_parse(text, listen, ret_address, error, sizeof error) != 0)
        return complain(r, "%s: \"%.200s\": %s", where, text, error);
    if (!listen && !ret_address->numeric && net_resolve(ret_address, error, sizeof error) != 0)
        return complain(r, "%s: \"%.200s\": %s", where, text, error);
    return 0;
}

static int take_backend(struct reading *r, cfg_t *block, const char *pool, struct config_backend *ret_backend) {
    char where[192];
    snprintf(ret_backend->name, sizeof ret_backend->name, "%s", cfg_title(block));
    snprintf(where, sizeof where, "pool %s, backend %s", pool, ret_backend->name);
    const char *address = cfg_getstr(block, "address"), *probe = cfg_getstr(block, "probe");
    if (take_address(r, where, address, false, &ret_backend->address) != 0) return -1;
    if (take_address(r, where, probe != NULL ? probe : address, false, &ret_backend->probe) != 0) return -1;
    ret_backend->weight = (uint32_t)cfg_getint(block, "weight");
    ret_backend->drain = cfg_getbool(block, "drain");
    return 0;
}

static int take_pool(struct reading *r, cfg_t *block, struct config_pool *ret_pool) {
    take_numbers(block, pool_numbers, COUNT(pool_numbers), ret_pool);
    take_texts(block, pool_texts, COUNT(pool_texts), ret_pool);
    snprintf(ret_pool->name_of, sizeof ret_pool->name_of, "%s", cfg_title(block));
    ret_pool->class = strcmp(ret_pool->class_name, "exclusive") == 0 ? BINDINGS_EXCLUSIVE : BINDINGS_STICKY;
    char where[128], error[NET_ERROR_BYTES];
    snprintf(where, sizeof where, "pool %s", ret_pool->name_of);
    if (take_address(r, where, ret_pool->listen, true, &ret_pool->listen_address) != 0) return -1;
    ret_pool->key.bytes_max = (uint32_t)ret_pool->key_bytes_max;
    for (unsigned i = 0; i < cfg_size(block, "key"); i++) {
        const char *text = cfg_getnstr(block, "key", i);
        if (make_rule(text, &ret_pool->key.rules[i], &ret_pool->matches[i], error, sizeof error) != 0)
            return complain(r, "%s: key = \"%.200s\": %s", where, text, error);
        ret_pool->key.rule_count++;
        const struct key_rule *rule = &ret_pool->key.rules[i];
        if (rule->offset + rule->length > ret_pool->key.bytes_max)
            return complain(r, "%s: key = \"%.200s\": it lies behind the first %u bytes (key-bytes-max)", where, text,
                            ret_pool->key.bytes_max);
    }
    const unsigned count = cfg_size(block, "backend");
    ret_pool->backends = calloc(count, sizeof *ret_pool->backends);
    must(ret_pool->backends != NULL);
    for (unsigned i = 0; i < count; i++) {
        if (take_backend(r, cfg_getnsec(block, "backend", i), ret_pool->name_of, &ret_pool->backends[i]) != 0)
            return -1;
        ret_pool->backend_count++;
    }
    return 0;
}

static int take_lockd(struct reading *r, cfg_t *cfg) {
    size_t bytes = 1;
    const unsigned count = cfg_size(cfg, "lockd");
    if (count == 0) return complain(r, "lockd has no address");
    for (unsigned i = 0; i < count; i++) bytes += strlen(cfg_getnstr(cfg, "lockd", i)) + 1;
    r->config->lockd = calloc(1, bytes);
    must(r->config->lockd != NULL);
    size_t used = 0;
    for (unsigned i = 0; i < count; i++)
        used += (size_t)snprintf(r->config->lockd + used, bytes - used, "%s%s", i > 0 ? "," : "",
                                 cfg_getnstr(cfg, "lockd", i));
    return 0;
}

static int take_all(struct reading *r, cfg_t *cfg) {
    struct config *config = r->config;
    take_numbers(cfg, global_numbers, COUNT(global_numbers), config);
    take_texts(cfg, global_texts, COUNT(global_texts), config);
    config->log_level_number = log_level_of(config->log_level);
    if (take_lockd(r, cfg) != 0) return -1;
    const unsigned count = cfg_size(cfg, "pool");
    if (count == 0 || count > BINDINGS_POOLS_MAX)
        return complain(r, count == 0 ? "there is no pool: nothing to do" : "too many pools");
    config->pools = calloc(count, sizeof *config->pools);
    must(config->pools != NULL);
    for (unsigned i = 0; i < count; i++) {
        config->pool_count++;
        if (take_pool(r, cfg_getnsec(cfg, "pool", i), &config->pools[i]) != 0) return -1;
        for (unsigned j = 0; j < i; j++)
            if (config->pools[i].listen_address.port != 0 &&
                net_equal(&config->pools[i].listen_address, &config->pools[j].listen_address))
                return complain(r, "pool %s and pool %s both listen on %s", config->pools[j].name_of,
                                config->pools[i].name_of, config->pools[i].listen);
    }
    return 0;
}

/* ---- the command line as configuration text ---- */
struct line_text {
    FILE *global, *pool, *lists;
    char *global_text, *pool_text;
    size_t global_bytes, pool_bytes;
    const char *pool_name, *file;
    char *keys;
    size_t keys_bytes;
    bool has_pool_key, has_key, check;
};

static void put_quoted(FILE *out, const char *value, size_t bytes) {
    fputc('\'', out);
    for (size_t i = 0; i < bytes; i++) {
        if (value[i] == '\'' || value[i] == '\\') fputc('\\', out);
        fputc(value[i], out);
    }
    fputc('\'', out);
}

static void put_key(FILE *out, const char *key, const char *value) {
    fprintf(out, "%s = ", key);
    put_quoted(out, value, strlen(value));
    fputc('\n', out);
}

static void put_list(FILE *out, const char *key, const char *value) {
    fprintf(out, "%s = {", key);
    for (const char *at = value;; at++) {
        const size_t bytes = strcspn(at, ",");
        put_quoted(out, at, bytes);
        at += bytes;
        if (*at == '\0') break;
        fputc(',', out);
    }
    fputs("}\n", out);
}

static bool known(const char *key, bool *ret_pool) {
    *ret_pool = false;
    for (size_t i = 0; i < COUNT(global_numbers); i++)
        if (strcmp(global_numbers[i].key, key) == 0) return true;
    for (size_t i = 0; i < COUNT(global_texts); i++)
        if (strcmp(global_texts[i].key, key) == 0) return true;
    *ret_pool = true;
    for (size_t i = 0; i < COUNT(pool_numbers); i++)
        if (strcmp(pool_numbers[i].key, key) == 0) return true;
    for (size_t i = 0; i < COUNT(pool_texts); i++)
        if (strcmp(pool_texts[i].key, key) == 0) return true;
    return false;
}

/* NAME=ADDRESS[,key=value...] */
static bool put_backend(FILE *out, const char *value) {
    const char *equals = strchr(value, '=');
    if (equals == NULL) return false;
    fputs("backend ", out);
    put_quoted(out, value, (size_t)(equals - value));
    fputs(" {\naddress = ", out);
    const char *at = equals + 1;
    size_t bytes = strcspn(at, ",");
    put_quoted(out, at, bytes);
    fputc('\n', out);
    for (at += bytes; *at == ','; at += bytes) {
        at++;
        bytes = strcspn(at, ",");
        const char *sub = memchr(at, '=', bytes);
        if (sub == NULL) return false;
        const size_t key_bytes = (size_t)(sub - at);
        const struct slice key = slice_of(at, key_bytes);
        if (!slice_equal(key, slice_str("weight")) && !slice_equal(key, slice_str("drain")) &&
            !slice_equal(key, slice_str("probe")))
            return false;
        fprintf(out, "%.*s = ", (int)key_bytes, at);
        put_quoted(out, sub + 1, bytes - key_bytes - 1);
        fputc('\n', out);
    }
    fputs("}\n", out);
    return true;
}

static int __attribute__((format(printf, 2, 3))) usage(char *text, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const int used = vsnprintf(text, LINE_BYTES, format, args);
    va_end(args);
    for (char *at = text; *at != '\0'; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f) *at = '?';
    if (used >= 0 && used < LINE_BYTES) snprintf(text + used, 64, " (lockproxy --help shows what there is)");
    return -1;
}

static int put_option(struct line_text *t, const char *name, const char *value, char *text) {
    bool of_pool;
    if (strcmp(name, "config") == 0) {
        t->file = value;
    } else if (strcmp(name, "pool") == 0) {
        if (t->pool_name != NULL) return usage(text, "--pool %.64s: a second pool needs a file", value);
        t->pool_name = value;
    } else if (strcmp(name, "backend") == 0) {
        t->has_pool_key = true;
        if (!put_backend(t->pool, value))
            return usage(text, "--backend %.200s: it is NAME=HOST:PORT[,weight=N][,drain=true][,probe=HOST:PORT]",
                         value);
    } else if (strcmp(name, "key") == 0) {
        t->has_pool_key = true;
        if (t->has_key) fputc(',', t->lists);
        t->has_key = true;
        put_quoted(t->lists, value, strlen(value));
    } else if (strcmp(name, "lockd") == 0) {
        put_list(t->global, "lockd", value);
    } else if (known(name, &of_pool)) {
        if (of_pool) t->has_pool_key = true;
        put_key(of_pool ? t->pool : t->global, name, value);
    } else {
        return usage(text, "there is no option --%.64s", name);
    }
    return 0;
}

static void put_help(char text[static CONFIG_TEXT_BYTES]) {
    FILE *out = fmemopen(text, CONFIG_TEXT_BYTES, "w");
    must(out != NULL);
    fputs("lockproxy - keeps every session of chat and game servers on one backend\n\n"
          "usage: lockproxy --config FILE [--key value ...]\n"
          "       lockproxy --pool NAME --listen HOST:PORT --backend NAME=HOST:PORT ... [--key value ...]\n\n"
          "  --config FILE   what to do; conf/proxy.conf shows all keys\n"
          "  --check         read the configuration, say what is wrong with it, and end\n"
          "  --help          this text\n"
          "  --version       the version\n\n"
          "keys of the file that can be given here as well, as --key value:\n",
          out);
    fprintf(out, "  --lockd HOST:PORT,...  %s (127.0.0.1:7400)\n", lockd_text);
    for (size_t i = 0; i < COUNT(global_texts); i++)
        fprintf(out, "  --%s %s  %s (%s)\n", global_texts[i].key, global_texts[i].form, global_texts[i].text,
                global_texts[i].value);
    for (size_t i = 0; i < COUNT(global_numbers); i++)
        fprintf(out, "  --%s N  %s (%llu %s)\n", global_numbers[i].key, global_numbers[i].text,
                (unsigned long long)global_numbers[i].value, global_numbers[i].unit);
    fputs("\none pool without a file:\n"
          "  -p, --pool NAME  its name at lockd\n"
          "  -b, --backend NAME=HOST:PORT[,weight=N][,drain=true][,probe=HOST:PORT]  once for each backend\n",
          out);
    fprintf(out, "  --key RULE  %s; once for each (source-ip):\n", key_text);
    for (unsigned i = 0; i < COUNT(key_kinds); i++)
        fprintf(out, "      %s%s  %s\n", key_kinds[i].name, key_kinds[i].argument, key_kinds[i].what);
    for (size_t i = 0; i < COUNT(pool_texts); i++)
        fprintf(out, "  --%s %s  %s%s%s%s\n", pool_texts[i].key, pool_texts[i].form, pool_texts[i].text,
                pool_texts[i].value[0] != '\0' ? " (" : "", pool_texts[i].value,
                pool_texts[i].value[0] != '\0' ? ")" : "");
    for (size_t i = 0; i < COUNT(pool_numbers); i++)
        fprintf(out, "  --%s N  %s (%llu %s)\n", pool_numbers[i].key, pool_numbers[i].text,
                (unsigned long long)pool_numbers[i].value, pool_numbers[i].unit);
    fputs("\nSIGUSR1 logs all counters.  SIGTERM and SIGINT end it cleanly.\n", out);
    fclose(out);
}

static enum config_answer read_line(int argc, char *const *argv, struct line_text *t, char *text) {
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
            put_help(text);
            return CONFIG_SHOWN;
        }
        if (strcmp(word, "--version") == 0) {
            snprintf(text, LINE_BYTES, "lockproxy %s\n", HOLDFAST_VERSION);
            return CONFIG_SHOWN;
        }
        if (strcmp(word, "--check") == 0) {
            t->check = true;
            continue;
        }
        char name[64];
        const char *value = NULL;
        if (strcmp(word, "-p") == 0) word = "--pool";
        if (strcmp(word, "-b") == 0) word = "--backend";
        if (strncmp(word, "--", 2) != 0) {
            usage(text, "what is \"%.64s\"?", word);
            return CONFIG_USAGE;
        }
        const size_t bytes = strcspn(word + 2, "=");
        snprintf(name, sizeof name, "%.*s", (int)bytes, word + 2);
        if (word[2 + bytes] == '=')
            value = word + 2 + bytes + 1;
        else if (i + 1 < argc)
            value = argv[++i];
        bool of_pool;
        if (value == NULL && (known(name, &of_pool) || strcmp(name, "config") == 0 || strcmp(name, "pool") == 0 ||
                              strcmp(name, "backend") == 0 || strcmp(name, "key") == 0 || strcmp(name, "lockd") == 0)) {
            usage(text, "--%s needs a value", name);
            return CONFIG_USAGE;
        }
        if (put_option(t, name, value != NULL ? value : "", text) != 0) return CONFIG_USAGE;
    }
    if (t->file == NULL && t->pool_name == NULL) {
        usage(text, "no configuration: give --config FILE (conf/proxy.conf shows all keys), or one pool as --pool NAME "
                    "--listen HOST:PORT --backend NAME=HOST:PORT ...");
        return CONFIG_USAGE;
    }
    if (t->pool_name == NULL && t->has_pool_key) {
        usage(text, "keys of a pool on the command line describe the pool that --pool names, and there is none");
        return CONFIG_USAGE;
    }
    return CONFIG_RUN;
}

/* ---- all together ---- */
static cfg_t *parser_new(void) {
    static cfg_opt_t backend_opts[] = {CFG_STR("address", NULL, CFGF_NODEFAULT), CFG_STR("probe", NULL, CFGF_NODEFAULT),
                                       CFG_INT("weight", 1, CFGF_NONE), CFG_BOOL("drain", cfg_false, CFGF_NONE),
                                       CFG_END()};
    static cfg_opt_t pool_opts[] = {
#define NUMBER(field, key, value, low, high, unit, text) CFG_INT(key, value, CFGF_NONE),
        CONFIG_POOL_NUMBERS(NUMBER)
#undef NUMBER
#define TEXT(field, key, value, bytes, form, text) CFG_STR(key, value, CFGF_NONE),
            CONFIG_POOL_TEXTS(TEXT)
#undef TEXT
                CFG_STR_LIST("key", "{source-ip}", CFGF_NONE),
        CFG_SEC("backend", backend_opts, CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES), CFG_END()};
    static cfg_opt_t opts[] = {
#define NUMBER(field, key, value, low, high, unit, text) CFG_INT(key, value, CFGF_NONE),
        CONFIG_GLOBAL_NUMBERS(NUMBER)
#undef NUMBER
#define TEXT(field, key, value, bytes, form, text) CFG_STR(key, value, CFGF_NONE),
            CONFIG_GLOBAL_TEXTS(TEXT)
#undef TEXT
                CFG_STR_LIST("lockd", "{127.0.0.1:7400}", CFGF_NONE),
        CFG_SEC("pool", pool_opts, CFGF_MULTI | CFGF_TITLE | CFGF_NO_TITLE_DUPES), CFG_END()};
    cfg_t *cfg = cfg_init(opts, CFGF_NONE);
    must(cfg != NULL);
    char path[96];
    cfg_set_error_function(cfg, on_error);
    for (size_t i = 0; i < COUNT(global_numbers); i++) cfg_set_validate_func(cfg, global_numbers[i].key, on_number);
    for (size_t i = 0; i < COUNT(global_texts); i++) cfg_set_validate_func(cfg, global_texts[i].key, on_text);
    for (size_t i = 0; i < COUNT(pool_numbers); i++) {
        snprintf(path, sizeof path, "pool|%s", pool_numbers[i].key);
        cfg_set_validate_func(cfg, path, on_number);
    }
    for (size_t i = 0; i < COUNT(pool_texts); i++) {
        snprintf(path, sizeof path, "pool|%s", pool_texts[i].key);
        cfg_set_validate_func(cfg, path, on_text);
    }
    cfg_set_validate_func(cfg, "lockd", on_address);
    cfg_set_validate_func(cfg, "pool|listen", on_address);
    cfg_set_validate_func(cfg, "pool|key", on_rule);
    cfg_set_validate_func(cfg, "pool|backend|address", on_address);
    cfg_set_validate_func(cfg, "pool|backend|probe", on_address);
    cfg_set_validate_func(cfg, "pool|backend|weight", on_weight);
    cfg_set_validate_func(cfg, "pool|backend", on_block);
    cfg_set_validate_func(cfg, "pool", on_block);
    return cfg;
}

static int parse(struct reading *r, cfg_t *cfg, const struct line_text *t, const char *line) {
    if (t->file != NULL) {
        FILE *file = fopen(t->file, "r");
        if (file == NULL) return complain(r, "%s: %s", t->file, strerror(errno));
        fclose(file);
        errno = 0;
        if (cfg_parse(cfg, t->file) != CFG_SUCCESS) {
            const int why = errno;
            return complain(r, "%s: %s", t->file, why != 0 ? strerror(why) : "not a configuration");
        }
    }
    if (line[0] != '\0' && cfg_parse_buf(cfg, line) != CFG_SUCCESS) return complain(r, "command line: not understood");
    return 0;
}

static enum config_answer read_both(struct config *config, struct line_text *t, char *text) {
    char *line = NULL;
    if (t->pool_name == NULL) {
        must(asprintf(&line, "%s", t->global_text) >= 0);
    } else {
        FILE *title;
        char *title_text;
        size_t title_bytes;
        title = open_memstream(&title_text, &title_bytes);
        must(title != NULL);
        put_quoted(title, t->pool_name, strlen(t->pool_name));
        fclose(title);
        must(asprintf(&line, "%spool %s {\n%s%s%s%s}\n", t->global_text, title_text, t->pool_text,
                      t->has_key ? "key = {" : "", t->keys, t->has_key ? "}\n" : "") >= 0);
        free(title_text);
    }
    struct reading r = {.config = config, .text = text};
    reading_now = &r;
    cfg_t *cfg = parser_new();
    int result = parse(&r, cfg, t, line);
    if (result == 0) result = take_all(&r, cfg);
    cfg_free(cfg);
    free(line);
    reading_now = NULL;
    if (result != 0) return CONFIG_BAD;
    return t->check ? CONFIG_CHECK : CONFIG_RUN;
}

enum config_answer config_read(int argc, char *const *argv, struct config *ret_config,
                               char text[static CONFIG_TEXT_BYTES]) {
    memset(ret_config, 0, sizeof *ret_config);
    text[0] = '\0';
    struct line_text t = {0};
    t.global = open_memstream(&t.global_text, &t.global_bytes);
    t.pool = open_memstream(&t.pool_text, &t.pool_bytes);
    t.lists = open_memstream(&t.keys, &t.keys_bytes);
    must(t.global != NULL && t.pool != NULL && t.lists != NULL);
    enum config_answer answer = read_line(argc, argv, &t, text);
    fclose(t.global);
    fclose(t.pool);
    fclose(t.lists);
    if (answer == CONFIG_RUN) answer = read_both(ret_config, &t, text);
    free(t.global_text);
    free(t.pool_text);
    free(t.keys);
    return answer;
}

void config_release(struct config *config) {
    for (uint32_t p = 0; p < config->pool_count; p++) {
        for (uint32_t i = 0; i < KEY_RULES_MAX; i++) linematch_free(config->pools[p].matches[i]);
        free(config->pools[p].backends);
    }
    free(config->pools);
    free(config->lockd);
    memset(config, 0, sizeof *config);
}
