/* config.c - see config.h.
 *
 * libconfuse reads words; every value goes through set_value(), from the file and from the command line alike, so that
 * both get the same judgement in the same words. */
#include "lockd/io/config.h"
#include "common/io/log.h"
#include <confuse.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { KEYS_MAX = 48, LINE_BYTES = 1024 };

/* ---- the table ---- */

static struct config_key table[KEYS_MAX];
static uint32_t table_count;

static struct config_key *add_key(const char *name, enum config_kind kind, const char *unit, const char *text) {
    must(table_count < KEYS_MAX && strlen(name) < sizeof table[0].name);
    struct config_key *key = &table[table_count++];
    *key = (struct config_key){.kind = kind, .unit = unit, .text = text};
    for (size_t i = 0; name[i] != '\0'; i++) key->name[i] = name[i] == '_' ? '-' : name[i];
    return key;
}

static void add_number(const char *name, uint64_t value, uint64_t low, uint64_t high, const char *unit,
                       const char *text, size_t offset) {
    struct config_key *key = add_key(name, CONFIG_NUMBER, unit, text);
    key->number = value;
    key->low = low;
    key->high = high;
    key->offset = offset;
}

static void add_string(const char *name, const char *value, size_t bytes, const char *form, const char *text,
                       size_t offset) {
    struct config_key *key = add_key(name, CONFIG_STRING, form, text);
    key->string = value;
    key->offset = offset;
    key->bytes = bytes;
}

const struct config_key *config_keys(uint32_t *ret_count) {
    if (table_count == 0) {
        add_key(
            "nodes", CONFIG_LIST, "host:port ...",
            "where the nodes of the cluster reach each other, in the same order everywhere; none: a cluster of one");
#define NUMBER(field, name, value, low, high, unit, text)                                                              \
    add_number(name, value, low, high, unit, text, offsetof(struct config, field));
        CONFIG_NUMBERS(NUMBER)
#undef NUMBER
#define TEXT(field, name, value, bytes, form, text)                                                                    \
    add_string(name, value, bytes, form, text, offsetof(struct config, field));
        CONFIG_TEXTS(TEXT)
#undef TEXT
#define SETTING(name, value, low, high, unit, text)                                                                    \
    add_number(#name, value, low, high, unit, text, offsetof(struct config, settings.name));
        KEYSPACE_SETTINGS(SETTING)
#undef SETTING
    }
    *ret_count = table_count;
    return table;
}

static int find_key(const char *name) {
    for (uint32_t i = 0; i < table_count; i++)
        if (strcmp(table[i].name, name) == 0) return (int)i;
    return -1;
}

/* How many letters have to be changed, added or dropped (Levenshtein 1966); both at most 31 long. */
static uint32_t distance(const char *a, const char *b) {
    uint32_t row[32];
    const size_t n = strlen(b);
    for (uint32_t j = 0; j <= n; j++) row[j] = j;
    for (uint32_t i = 0; a[i] != '\0'; i++) {
        uint32_t corner = row[0];
        row[0] = i + 1;
        for (size_t j = 1; j <= n; j++) {
            const uint32_t change = corner + (a[i] != b[j - 1]);
            const uint32_t shorter = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            corner = row[j];
            row[j] = change < shorter ? change : shorter;
        }
    }
    return row[n];
}

/* The key that was meant, or NULL if nothing is near. */
static const char *nearest(const char *name) {
    const char *best = NULL;
    uint32_t best_distance = 4;
    char given[32];
    if (strlen(name) >= sizeof given) return NULL;
    for (size_t i = 0; i <= strlen(name); i++) given[i] = name[i] == '_' ? '-' : (char)tolower((unsigned char)name[i]);
    for (uint32_t i = 0; i < table_count; i++) {
        const uint32_t d = distance(given, table[i].name);
        if (d < best_distance && d < strlen(table[i].name) / 2 + 1) {
            best = table[i].name;
            best_distance = d;
        }
    }
    return best;
}

/* ---- values ---- */

struct reading {
    struct config *config;
    char *text; /* the message */
    bool failed;
    int lines[KEYS_MAX]; /* where the file gave a key; 0: it did not */
    bool given[KEYS_MAX];
    const char *list[PAXOS_NODES_MAX + 1];
};

static bool __attribute__((format(printf, 2, 3))) complain(struct reading *r, const char *format, ...) {
    if (r->failed) return false; /* the first message is the one that matters */
    va_list args;
    va_start(args, format);
    vsnprintf(r->text, LINE_BYTES, format, args);
    va_end(args);
    for (char *at = r->text; *at != '\0'; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f) *at = '?';
    r->failed = true;
    return false;
}

/* `where` is "FILE:LINE: " or "--". */
static bool set_number(struct reading *r, const struct config_key *key, const char *where, const char *value) {
    uint64_t number;
    if (!slice_to_u64(slice_str(value), &number) || number < key->low || number > key->high)
        return complain(r, "%s%s: \"%.64s\" is not a number from %llu to %llu (%s)", where, key->name, value,
                        (unsigned long long)key->low, (unsigned long long)key->high, key->unit);
    memcpy((char *)r->config + key->offset, &number, sizeof number);
    return true;
}

static bool set_string(struct reading *r, const struct config_key *key, const char *where, const char *value) {
    char error[NET_ERROR_BYTES];
    struct config *c = r->config;
    if (value[0] == '\0') return complain(r, "%s%s: is empty (%s)", where, key->name, key->unit);
    if (strlen(value) >= key->bytes)
        return complain(r, "%s%s: is longer than %zu bytes", where, key->name, key->bytes - 1);
    if (key->offset == offsetof(struct config, listen) &&
        net_parse(value, true, &c->listen_address, error, sizeof error) != 0)
        return complain(r, "%s%s: %s", where, key->name, error);
    if (key->offset == offsetof(struct config, log_level)) {
        const int level = log_level_of(value);
        if (level < 0) return complain(r, "%s%s: \"%.64s\" is none of %s", where, key->name, value, key->unit);
        c->log_level_number = level;
    }
    memcpy((char *)c + key->offset, value, strlen(value) + 1);
    return true;
}

static bool set_nodes(struct reading *r, const char *where, const char *const *values, uint32_t count) {
    struct config *c = r->config;
    char error[NET_ERROR_BYTES];
    if (count < 1 || count > PAXOS_NODES_MAX)
        return complain(r, "%snodes: has %u entries (1..%d are possible)", where, count, PAXOS_NODES_MAX);
    for (uint32_t i = 0; i < count; i++) {
        if (net_parse(values[i], false, &c->nodes[i], error, sizeof error) != 0)
            return complain(r, "%snodes: entry %u: %s", where, i + 1, error);
        for (uint32_t j = 0; j < i; j++)
            if (net_equal(&c->nodes[i], &c->nodes[j]))
                return complain(r, "%snodes: entries %u and %u are both %.280s", where, j + 1, i + 1, values[i]);
        if (strlen(values[i]) >= sizeof c->node_texts[i])
            return complain(r, "%snodes: entry %u is too long", where, i + 1);
        memcpy(c->node_texts[i], values[i], strlen(values[i]) + 1);
    }
    c->node_count = count;
    c->has_nodes = true;
    return true;
}

/* ---- the file ---- */

static struct reading *now_reading; /* libconfuse's callbacks carry no context */

static void on_error(cfg_t *cfg, const char *format, va_list args) {
    char message[512], place[600];
    vsnprintf(message, sizeof message, format, args);
    snprintf(place, sizeof place, "%.500s:%d: ", cfg->filename ? cfg->filename : "?", cfg->line);
    const char *open = strchr(message, '\''), *close = open ? strrchr(message, '\'') : NULL;
    if (strncmp(message, "no such option", 14) == 0 && open != NULL && close > open) {
        char name[128];
        snprintf(name, sizeof name, "%.*s", (int)(close - open - 1), open + 1);
        const char *meant = nearest(name);
        if (meant != NULL)
            (void)complain(now_reading, "%s\"%s\" is not a key; did you mean %s?", place, name, meant);
        else
            (void)complain(now_reading, "%s\"%s\" is not a key; lockd --help lists them", place, name);
    } else {
        (void)complain(now_reading, "%s%s", place, message);
    }
}

static int on_value(cfg_t *cfg, cfg_opt_t *opt) {
    struct reading *r = now_reading;
    const int index = find_key(opt->name);
    must(index >= 0);
    const struct config_key *key = &table[index];
    char where[600];
    snprintf(where, sizeof where, "%.500s:%d: ", cfg->filename, cfg->line);
    if (key->kind == CONFIG_LIST) { /* comes entry by entry; judged at the end */
        if (r->lines[index] == 0) r->lines[index] = cfg->line;
        return 0;
    }
    if (r->lines[index] != 0) {
        (void)complain(r, "%s%s: was given in line %d already", where, key->name, r->lines[index]);
        return -1;
    }
    r->lines[index] = cfg->line;
    r->given[index] = true;
    const char *value = cfg_opt_getnstr(opt, 0);
    if (value == NULL) value = "";
    return (key->kind == CONFIG_NUMBER ? set_number : set_string)(r, key, where, value) ? 0 : -1;
}

static bool nodes_from_file(struct reading *r, cfg_t *cfg, const char *file) {
    const int index = find_key("nodes");
    const uint32_t count = cfg_size(cfg, "nodes");
    char where[600];
    if (r->lines[index] == 0 && count == 0) return true;
    snprintf(where, sizeof where, "%.500s:%d: ", file, r->lines[index]);
    for (uint32_t i = 0; i < count && i < PAXOS_NODES_MAX; i++) r->list[i] = cfg_getnstr(cfg, "nodes", i);
    return set_nodes(r, where, r->list, count);
}

static bool read_file(struct reading *r, const char *file) {
    cfg_opt_t options[KEYS_MAX + 1];
    struct stat st;
    if (stat(file, &st) != 0) return complain(r, "cannot read the file %s: %s (--config)", file, strerror(errno));
    if (!S_ISREG(st.st_mode) || st.st_size > 1 << 20) /* libconfuse would exit on a directory */
        return complain(r, "%s is not a configuration file (--config)", file);
    for (uint32_t i = 0; i < table_count; i++)
        options[i] = table[i].kind == CONFIG_LIST ? (cfg_opt_t)CFG_STR_LIST(table[i].name, 0, CFGF_NODEFAULT)
                                                  : (cfg_opt_t)CFG_STR(table[i].name, 0, CFGF_NODEFAULT);
    options[table_count] = (cfg_opt_t)CFG_END();
    cfg_t *cfg = cfg_init(options, CFGF_NONE);
    must(cfg != NULL);
    now_reading = r;
    cfg_set_error_function(cfg, on_error);
    for (uint32_t i = 0; i < table_count; i++) cfg_set_validate_func(cfg, table[i].name, on_value);
    const int rc = cfg_parse(cfg, file);
    if (rc == CFG_FILE_ERROR) (void)complain(r, "cannot read the file %s: %s (--config)", file, strerror(errno));
    if (rc != CFG_SUCCESS) (void)complain(r, "%s: cannot be understood (--config)", file);
    if (!r->failed) (void)nodes_from_file(r, cfg, file);
    cfg_free(cfg);
    now_reading = NULL;
    return !r->failed;
}

/* ---- the command line ---- */

static bool nodes_from_word(struct reading *r, const char *value) {
    char words[PAXOS_NODES_MAX * 300];
    uint32_t count = 0;
    if (strlen(value) >= sizeof words) return complain(r, "--nodes: is too long");
    memcpy(words, value, strlen(value) + 1);
    for (char *at = words; at != NULL && count <= PAXOS_NODES_MAX; count++) {
        char *comma = strchr(at, ',');
        if (comma != NULL) *comma = '\0';
        if (count < PAXOS_NODES_MAX) r->list[count] = at;
        at = comma != NULL ? comma + 1 : NULL;
    }
    return set_nodes(r, "--", r->list, count);
}

static bool set_option(struct reading *r, const char *name, const char *value) {
    const int index = find_key(name);
    if (index < 0) {
        const char *meant = nearest(name);
        if (meant != NULL) return complain(r, "--%.64s is not an option; did you mean --%s?", name, meant);
        return complain(r, "--%.64s is not an option; lockd --help lists them", name);
    }
    if (value == NULL) return complain(r, "--%s needs a value", name);
    const struct config_key *key = &table[index];
    r->given[index] = true;
    if (key->kind == CONFIG_LIST) return nodes_from_word(r, value);
    return (key->kind == CONFIG_NUMBER ? set_number : set_string)(r, key, "--", value);
}

struct words {
    const char *file;
    bool check, help, version;
};

/* Go over the words of the command line: `apply` false only looks for the file and for --help and the like. */
static bool read_words(struct reading *r, int argc, char *const *argv, bool apply, struct words *w) {
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        char name[80];
        if (strncmp(word, "--", 2) != 0 || word[2] == '\0') {
            if (strcmp(word, "-h") == 0) w->help = true;
            if (w->help) return true;
            return complain(r, "\"%.64s\" is not an option; lockd --help lists them", word);
        }
        const char *equals = strchr(word, '='), *value = NULL;
        const size_t bytes = equals != NULL ? (size_t)(equals - word - 2) : strlen(word + 2);
        snprintf(name, sizeof name, "%.*s", (int)(bytes < sizeof name ? bytes : sizeof name - 1), word + 2);
        if (equals == NULL && strcmp(name, "help") == 0) return w->help = true;
        if (equals == NULL && strcmp(name, "version") == 0) return w->version = true;
        if (equals == NULL && strcmp(name, "check") == 0) {
            w->check = true;
            continue;
        }
        if (equals != NULL)
            value = equals + 1;
        else if (i + 1 < argc && (strcmp(name, "config") == 0 || find_key(name) >= 0))
            value = argv[++i];
        if (strcmp(name, "config") == 0) {
            if (value == NULL) return complain(r, "--config needs a value");
            w->file = value;
        } else if ((apply || find_key(name) < 0 || value == NULL) && !set_option(r, name, value)) {
            return false;
        }
    }
    return true;
}

/* ---- all together ---- */

static bool check_together(struct reading *r) {
    struct config *c = r->config;
    const bool node_given = r->given[find_key("node")];
    if (c->node > c->node_count)
        return complain(r, "node: is %llu, but nodes has %u %s", (unsigned long long)c->node,
                        c->has_nodes ? c->node_count : 0, c->has_nodes && c->node_count == 1 ? "entry" : "entries");
    if (c->node_count > 1 && !node_given)
        return complain(r, "node: is missing: which of the %u entries of nodes is this process?", c->node_count);
    if (c->has_nodes && c->node_count > 1 && net_equal(&c->listen_address, &c->nodes[c->node - 1]))
        return complain(r, "listen: is the same address as entry %llu of nodes; clients and nodes need one each",
                        (unsigned long long)c->node);
    if (c->leader_lease_ms < 2 * c->heartbeat_ms)
        return complain(r, "leader-lease-ms: %llu is less than two heartbeats (heartbeat-ms is %llu)",
                        (unsigned long long)c->leader_lease_ms, (unsigned long long)c->heartbeat_ms);
    if (c->settings.key_bytes_max + c->settings.value_bytes_max + 4096 > c->request_bytes_max)
        return complain(r, "request-bytes-max: %llu is too small for value-bytes-max (%llu) and key-bytes-max (%llu)",
                        (unsigned long long)c->request_bytes_max, (unsigned long long)c->settings.value_bytes_max,
                        (unsigned long long)c->settings.key_bytes_max);
    c->clients_max_given = r->given[find_key("clients-max")];
    return true;
}

static void set_defaults(struct reading *r) {
    memset(r->config, 0, sizeof *r->config);
    r->config->node_count = 1;
    for (uint32_t i = 0; i < table_count; i++) {
        const struct config_key *key = &table[i];
        if (key->kind == CONFIG_NUMBER) memcpy((char *)r->config + key->offset, &key->number, sizeof key->number);
        if (key->kind == CONFIG_STRING) must(set_string(r, key, "", key->string));
    }
}

static void __attribute__((format(printf, 2, 3))) add(char *text, const char *format, ...) {
    const size_t used = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, CONFIG_TEXT_BYTES - used, format, args);
    va_end(args);
}

static void show_help(char *text) {
    text[0] = '\0';
    add(text, "lockd - a lock and lookup service replicated by Paxos that speaks the Redis protocol\n\n"
              "usage: lockd [--config FILE] [--key value ...]\n\n"
              "  --config FILE   read keys from a file first; the command line beats it\n"
              "  --check         say whether the configuration is good, and exit\n"
              "  --version       print the version, and exit\n"
              "  --help          print this, and exit\n\n"
              "Every key is `key = value` in the file and `--key value` here.  Alone, without any, lockd is a working\n"
              "cluster of one on 127.0.0.1:7400 with its data in ./lockd-data.\n\n");
    for (uint32_t i = 0; i < table_count; i++) {
        const struct config_key *key = &table[i];
        if (key->kind == CONFIG_NUMBER)
            add(text, "  --%s N (%s, %llu..%llu; default %llu)\n", key->name, key->unit, (unsigned long long)key->low,
                (unsigned long long)key->high, (unsigned long long)key->number);
        else if (key->kind == CONFIG_STRING)
            add(text, "  --%s %s (default %s)\n", key->name, key->unit, key->string);
        else
            add(text, "  --%s host:port,host:port,... (up to %d; default none)\n", key->name, PAXOS_NODES_MAX);
        add(text, "        %s\n", key->text);
    }
    must(strlen(text) + 1 < CONFIG_TEXT_BYTES);
}

enum config_answer config_read(int argc, char *const *argv, struct config *ret_config,
                               char text[static CONFIG_TEXT_BYTES]) {
    struct reading r = {.config = ret_config, .text = text};
    struct words words = {.file = NULL};
    uint32_t count;
    (void)config_keys(&count);
    set_defaults(&r);
    if (!read_words(&r, argc, argv, false, &words)) return CONFIG_USAGE;
    if (words.help) {
        show_help(text);
        return CONFIG_SHOWN;
    }
    if (words.version) {
        snprintf(text, CONFIG_TEXT_BYTES, "lockd %s\n", HOLDFAST_VERSION);
        return CONFIG_SHOWN;
    }
    ret_config->file = words.file;
    if (words.file != NULL && !read_file(&r, words.file)) return CONFIG_BAD;
    if (!read_words(&r, argc, argv, true, &words)) return CONFIG_USAGE;
    if (!check_together(&r)) return CONFIG_BAD;
    return words.check ? CONFIG_CHECK : CONFIG_RUN;
}
