/* command.c - see command.h. */
#include "lockd/core/command.h"
#include "lockd/core/resp.h"

enum { NAME_BYTES_MAX = 31, SHOWN_BYTES_MAX = 128 };

static const struct command commands[CMD_COUNT] = {
#define COMMAND(id, name, arity, class, first_key, last_key, step, since, args, summary)                               \
    [CMD_##id] = {CMD_##id, name, arity, COMMAND_##class, first_key, last_key, step, since, args, summary},
#include "lockd/core/commands.def"
#undef COMMAND
};

/* With a constant `bytes` only the comparisons with names of that length are left, each of a constant length. */
static inline __attribute__((always_inline)) const struct command *find_among(const char *upper, size_t bytes) {
#define COMMAND(id, name, arity, class, first_key, last_key, step, since, args, summary)                               \
    if (sizeof(name) - 1 == bytes && memcmp(upper, name, sizeof(name) - 1) == 0) return &commands[CMD_##id];
#include "lockd/core/commands.def"
#undef COMMAND
    return NULL;
}

const struct command *command_find(struct slice name, bool internal) {
    if (name.bytes == 0 || name.bytes > NAME_BYTES_MAX) return NULL;
    char upper[NAME_BYTES_MAX];
    for (size_t i = 0; i < name.bytes; i++) {
        const char c = name.data[i];
        upper[i] = c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
    }
    const struct command *c;
    switch (name.bytes) {
    case 3: c = find_among(upper, 3); break;
    case 4: c = find_among(upper, 4); break;
    case 5: c = find_among(upper, 5); break;
    case 6: c = find_among(upper, 6); break;
    case 7: c = find_among(upper, 7); break;
    case 8: c = find_among(upper, 8); break;
    case 9: c = find_among(upper, 9); break;
    case 10: c = find_among(upper, 10); break;
    case 11: c = find_among(upper, 11); break;
    case 12: c = find_among(upper, 12); break;
    default: c = find_among(upper, name.bytes); break;
    }
    return c != NULL && c->class == COMMAND_INTERNAL && !internal ? NULL : c;
}

const struct command *command_at(enum command_id id) {
    must((unsigned)id < CMD_COUNT);
    return &commands[id];
}

/* The name as Redis shows it. */
static struct slice lower_name(const struct command *c, char text[NAME_BYTES_MAX + 1]) {
    size_t bytes = 0;
    for (; c->name[bytes] != '\0'; bytes++) {
        const char letter = c->name[bytes];
        text[bytes] = letter >= 'A' && letter <= 'Z' ? (char)(letter - 'A' + 'a') : letter;
    }
    text[bytes] = '\0';
    return slice_of(text, bytes);
}

/* What "%.*s" prints: up to a NUL, at most `most` bytes. */
static int shown_bytes(struct slice s, size_t most) {
    const char *nul = s.bytes > 0 ? memchr(s.data, '\0', s.bytes) : NULL;
    const size_t bytes = nul != NULL ? (size_t)(nul - s.data) : s.bytes;
    return (int)(bytes < most ? bytes : most);
}

/* Redis shows what follows the name, as long as less than 128 bytes are shown already. */
static void put_unknown(uint32_t argc, const struct slice *argv, struct buf *error) {
    char text[2 * SHOWN_BYTES_MAX];
    size_t at = 0;
    for (uint32_t i = 1; i < argc && at < SHOWN_BYTES_MAX; i++) {
        const size_t bytes = (size_t)shown_bytes(argv[i], SHOWN_BYTES_MAX - at);
        text[at++] = '\'';
        if (bytes > 0) memcpy(text + at, argv[i].data, bytes);
        at += bytes;
        text[at++] = '\'';
        text[at++] = ' ';
    }
    resp_error(error, "ERR unknown command '%.*s', with args beginning with: %.*s",
               shown_bytes(argv[0], SHOWN_BYTES_MAX), argv[0].bytes > 0 ? argv[0].data : "", (int)at, text);
}

struct key_limit {
    size_t bytes_max, bytes_found; /* bytes_found: the first key that is too long; 0: none is */
};

static void check_key(void *context, struct slice key) {
    struct key_limit *limit = context;
    if (key.bytes > limit->bytes_max && limit->bytes_found == 0) limit->bytes_found = key.bytes;
}

static bool arity_fits(const struct command *c, uint32_t argc) {
    return c->arity >= 0 ? argc == (uint32_t)c->arity : argc >= (uint32_t)-c->arity;
}

const struct command *command_inner(const struct command *c, uint32_t *argc, const struct slice **argv) {
    if (c->id != CMD_ONCE) return c;
    if (*argc < 4) return NULL;
    *argc -= 3;
    *argv += 3;
    return command_find((*argv)[0], false);
}

/* What ONCE carries: a change, or a script, and whole. */
static bool check_inner(const struct command *c, uint32_t argc, const struct slice *argv, struct buf *error) {
    char name[NAME_BYTES_MAX + 1];
    if (c->id != CMD_ONCE) return true;
    const struct command *inner = command_inner(c, &argc, &argv);
    if (inner == NULL) {
        put_unknown(argc, argv, error);
        return false;
    }
    if (inner->id == CMD_ONCE || (inner->class != COMMAND_WRITE && inner->class != COMMAND_SCRIPT)) {
        resp_error(error, "ERR ONCE takes a command that changes something, or a script; '%s' may be repeated as it is",
                   lower_name(inner, name).data);
        return false;
    }
    if (arity_fits(inner, argc)) return true;
    resp_error(error, "ERR wrong number of arguments for '%s' command", lower_name(inner, name).data);
    return false;
}

const struct command *command_check(uint32_t argc, const struct slice *argv, uint32_t key_bytes_max,
                                    struct buf *error) {
    must(argc > 0);
    const struct command *c = command_find(argv[0], false);
    if (c == NULL) {
        put_unknown(argc, argv, error);
        return NULL;
    }
    if (!arity_fits(c, argc)) {
        char name[NAME_BYTES_MAX + 1];
        resp_error(error, "ERR wrong number of arguments for '%s' command", lower_name(c, name).data);
        return NULL;
    }
    if (!check_inner(c, argc, argv, error)) return NULL;
    struct key_limit limit = {.bytes_max = key_bytes_max};
    command_keys(c, argc, argv, check_key, &limit);
    if (limit.bytes_found > 0) {
        resp_error(error, "ERR key is too long: %zu bytes, key-bytes-max is %u", limit.bytes_found, key_bytes_max);
        return NULL;
    }
    return c;
}

void command_keys(const struct command *c, uint32_t argc, const struct slice *argv,
                  void (*fn)(void *context, struct slice key), void *context) {
    uint32_t first, last, step = 1;
    c = command_inner(c, &argc, &argv);
    if (c == NULL) return;
    if (c->class == COMMAND_SCRIPT) {
        uint64_t count;
        if (argc < 3 || !slice_to_u64(argv[2], &count) || count > argc - 3) return;
        first = 3;
        last = 2 + (uint32_t)count;
    } else if (c->first_key > 0) {
        first = (uint32_t)c->first_key;
        last = c->last_key >= 0 ? (uint32_t)c->last_key : argc - (uint32_t)-c->last_key;
        step = (uint32_t)c->step;
    } else {
        return;
    }
    for (uint32_t i = first; i <= last && i < argc; i += step) fn(context, argv[i]);
}

/* ---- COMMAND ---- */

static bool is_public(const struct command *c) {
    return c->class != COMMAND_INTERNAL;
}

static uint32_t public_count(void) {
    uint32_t count = 0;
    for (int i = 0; i < CMD_COUNT; i++) count += is_public(&commands[i]);
    return count;
}

/* Redis' word for how a command treats its keys and how long it may take. */
static void put_flags(const struct command *c, struct buf *reply) {
    switch (c->class) {
    case COMMAND_READ:
        resp_array(reply, 2);
        resp_simple(reply, "readonly");
        resp_simple(reply, "fast");
        break;
    case COMMAND_WRITE:
        resp_array(reply, c->id == CMD_ONCE ? 3 : 2);
        resp_simple(reply, "write");
        resp_simple(reply, "denyoom");
        if (c->id == CMD_ONCE) resp_simple(reply, "movablekeys");
        break;
    case COMMAND_SCRIPT:
        resp_array(reply, 3);
        resp_simple(reply, "noscript");
        resp_simple(reply, "skip_monitor");
        resp_simple(reply, "movablekeys");
        break;
    default:
        resp_array(reply, 2);
        resp_simple(reply, "noscript");
        resp_simple(reply, "fast");
        break;
    }
}

static void put_name(const struct command *c, struct buf *reply) {
    char name[NAME_BYTES_MAX + 1];
    resp_bulk(reply, lower_name(c, name));
}

static void put_info(const struct command *c, struct buf *reply) {
    resp_array(reply, 10);
    put_name(c, reply);
    resp_integer(reply, c->arity);
    put_flags(c, reply);
    resp_integer(reply, c->first_key);
    resp_integer(reply, c->last_key);
    resp_integer(reply, c->step);
    for (int i = 0; i < 4; i++) resp_array(reply, 0); /* ACL categories, tips, key specifications, subcommands */
}

static const char *group_of(const struct command *c, char text[NAME_BYTES_MAX + 1]) {
    char *dot = memchr(lower_name(c, text).data, '.', strlen(c->name));
    if (dot != NULL) {
        *dot = '\0';
        return text;
    }
    if (c->class == COMMAND_SCRIPT || c->id == CMD_SCRIPT) return "scripting";
    return c->class == COMMAND_LOCAL ? "server" : "generic";
}

/* The next word of an argument line: [in brackets] is optional; a space inside brackets does not end it. */
static bool next_argument(const char **at, struct slice *ret_name, bool *ret_optional) {
    while (**at == ' ') (*at)++;
    if (**at == '\0') return false;
    const char *from = *at;
    int depth = 0;
    for (; **at != '\0' && (depth > 0 || **at != ' '); (*at)++) depth += (**at == '[') - (**at == ']');
    size_t bytes = (size_t)(*at - from);
    *ret_optional = bytes >= 2 && from[0] == '[' && from[bytes - 1] == ']';
    *ret_name = *ret_optional ? slice_of(from + 1, bytes - 2) : slice_of(from, bytes);
    return true;
}

static void put_docs(const struct command *c, struct buf *reply) {
    char text[NAME_BYTES_MAX + 1];
    struct slice name;
    bool optional;
    uint32_t count = 0;
    for (const char *at = c->args; next_argument(&at, &name, &optional);) count++;
    put_name(c, reply);
    resp_array(reply, count > 0 ? 8 : 6);
    resp_bulk_str(reply, "summary");
    resp_bulk_str(reply, c->summary);
    resp_bulk_str(reply, "since");
    resp_bulk_str(reply, c->since);
    resp_bulk_str(reply, "group");
    resp_bulk_str(reply, group_of(c, text));
    if (count == 0) return;
    resp_bulk_str(reply, "arguments");
    resp_array(reply, count);
    for (const char *at = c->args; next_argument(&at, &name, &optional);) {
        resp_array(reply, optional ? 6 : 4);
        resp_bulk_str(reply, "name");
        resp_bulk(reply, name);
        resp_bulk_str(reply, "type");
        resp_bulk_str(reply, "string");
        if (!optional) continue;
        resp_bulk_str(reply, "flags");
        resp_array(reply, 1);
        resp_simple(reply, "optional");
    }
}

static void reply_info(uint32_t argc, const struct slice *argv, struct buf *reply) {
    if (argc <= 2) {
        resp_array(reply, public_count());
        for (int i = 0; i < CMD_COUNT; i++)
            if (is_public(&commands[i])) put_info(&commands[i], reply);
        return;
    }
    resp_array(reply, argc - 2);
    for (uint32_t i = 2; i < argc; i++) {
        const struct command *c = command_find(argv[i], false);
        if (c != NULL) {
            put_info(c, reply);
        } else {
            resp_nil(reply);
        }
    }
}

static void reply_docs(uint32_t argc, const struct slice *argv, struct buf *reply) {
    if (argc == 2) {
        resp_array(reply, 2 * public_count());
        for (int i = 0; i < CMD_COUNT; i++)
            if (is_public(&commands[i])) put_docs(&commands[i], reply);
        return;
    }
    uint32_t found = 0;
    for (uint32_t i = 2; i < argc; i++) found += command_find(argv[i], false) != NULL;
    resp_array(reply, 2 * found);
    for (uint32_t i = 2; i < argc; i++) {
        const struct command *c = command_find(argv[i], false);
        if (c != NULL) put_docs(c, reply);
    }
}

struct key_list {
    struct buf *reply; /* NULL: only count */
    uint32_t count;
};

static void list_key(void *context, struct slice key) {
    struct key_list *list = context;
    list->count++;
    if (list->reply != NULL) resp_bulk(list->reply, key);
}

static void reply_getkeys(uint32_t argc, const struct slice *argv, struct buf *reply) {
    const struct command *c = command_find(argv[0], false);
    if (c == NULL) {
        resp_error(reply, "ERR Invalid command specified");
        return;
    }
    const struct command *inner = command_inner(c, &argc, &argv);
    if (inner == NULL || (inner->first_key == 0 && inner->class != COMMAND_SCRIPT)) {
        resp_error(reply, "ERR The command has no key arguments");
        return;
    }
    c = inner;
    if (!arity_fits(c, argc)) {
        resp_error(reply, "ERR Invalid number of arguments specified for command");
        return;
    }
    struct key_list list = {.reply = NULL};
    command_keys(c, argc, argv, list_key, &list);
    resp_array(reply, list.count);
    list.reply = reply;
    command_keys(c, argc, argv, list_key, &list);
}

static void reply_help(struct buf *reply) {
    static const char *const lines[] = {
        "COMMAND <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
        "(no subcommand)",
        "    Return details about all commands.",
        "COUNT",
        "    Return the total number of commands in this server.",
        "LIST",
        "    Return a list of all commands in this server.",
        "INFO [<command-name> ...]",
        "    Return details about the named commands, or about all.",
        "DOCS [<command-name> ...]",
        "    Return documentation of the named commands, or of all.",
        "GETKEYS <full-command>",
        "    Return the keys from a full command.",
        "HELP",
        "    Print this help.",
    };
    resp_array(reply, sizeof lines / sizeof lines[0]);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) resp_simple(reply, lines[i]);
}

static void wrong_subcommand_arity(const char *subcommand, struct buf *reply) {
    resp_error(reply, "ERR wrong number of arguments for 'command|%s' command", subcommand);
}

void command_reply(uint32_t argc, const struct slice *argv, struct buf *reply) {
    must(argc > 0);
    if (argc == 1 || slice_is_word(argv[1], "INFO")) {
        reply_info(argc, argv, reply);
    } else if (slice_is_word(argv[1], "COUNT")) {
        if (argc != 2) {
            wrong_subcommand_arity("count", reply);
            return;
        }
        resp_integer(reply, public_count());
    } else if (slice_is_word(argv[1], "LIST")) {
        if (argc != 2) {
            resp_error(reply, "ERR syntax error");
            return;
        }
        resp_array(reply, public_count());
        for (int i = 0; i < CMD_COUNT; i++)
            if (is_public(&commands[i])) put_name(&commands[i], reply);
    } else if (slice_is_word(argv[1], "DOCS")) {
        reply_docs(argc, argv, reply);
    } else if (slice_is_word(argv[1], "GETKEYS")) {
        if (argc < 4) {
            wrong_subcommand_arity("getkeys", reply);
            return;
        }
        reply_getkeys(argc - 2, argv + 2, reply);
    } else if (slice_is_word(argv[1], "HELP")) {
        if (argc != 2) {
            wrong_subcommand_arity("help", reply);
            return;
        }
        reply_help(reply);
    } else {
        resp_error(reply, "ERR unknown subcommand '%.*s'. Try COMMAND HELP.", shown_bytes(argv[1], SHOWN_BYTES_MAX),
                   argv[1].bytes > 0 ? argv[1].data : "");
    }
}
