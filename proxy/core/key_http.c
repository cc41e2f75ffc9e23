/* key_http.c - the head of an HTTP/1 request (RFC 9112), as far as a key needs it: read, never changed. */
#include "proxy/core/key_rules.h"

enum { METHOD_BYTES_MAX = 32 };

static bool is_upper(char c) {
    return c >= 'A' && c <= 'Z';
}
static char lower(char c) {
    return is_upper(c) ? (char)(c + ('a' - 'A')) : c;
}
static bool is_blank(char c) {
    return c == ' ' || c == '\t';
}
static struct slice trimmed(struct slice s) {
    while (s.bytes > 0 && is_blank(s.data[0])) s = slice_of(s.data + 1, s.bytes - 1);
    while (s.bytes > 0 && is_blank(s.data[s.bytes - 1])) s.bytes--;
    return s;
}
/* Cut `*rest` at the first `c`: what stands before it; `*rest` is what stands behind, empty if there is none. */
static struct slice cut(struct slice *rest, char c) {
    const char *found = rest->bytes > 0 ? (const char *)memchr(rest->data, c, rest->bytes) : NULL;
    const struct slice before = found != NULL ? slice_of(rest->data, (size_t)(found - rest->data)) : *rest;
    const size_t used = before.bytes + (found != NULL);
    *rest = slice_of(rest->data + used, rest->bytes - used);
    return before;
}

/* Methods are tokens; all that are registered are capitals and hyphens. */
static bool is_method(struct slice s) {
    if (s.bytes == 0 || s.bytes > METHOD_BYTES_MAX || !is_upper(s.data[0])) return false;
    for (size_t i = 0; i < s.bytes; i++)
        if (!is_upper(s.data[i]) && s.data[i] != '-') return false;
    return true;
}

/* What there is of the first line may become one. */
static bool may_be_request(struct slice part) {
    const bool whole_method = part.bytes > 0 && memchr(part.data, ' ', part.bytes) != NULL;
    const struct slice method = cut(&part, ' ');
    return is_method(method) || (method.bytes == 0 && !whole_method);
}

static bool request_line(struct slice line, struct slice *ret_target) {
    static const char version[] = "HTTP/1.";
    const struct slice method = cut(&line, ' ');
    *ret_target = cut(&line, ' ');
    return is_method(method) && ret_target->bytes > 0 && line.bytes == sizeof version &&
           memcmp(line.data, version, sizeof version - 1) == 0;
}

/* Without scheme and host, query and fragment.  Empty for what has none: "host:port" of CONNECT. */
static struct slice path_of(struct slice target) {
    struct slice rest = cut(&target, '#'), path = cut(&rest, '?');
    if (path.bytes > 0 && (path.data[0] == '/' || path.data[0] == '*')) return path;
    for (size_t i = 0; i + 3 <= path.bytes; i++) {
        if (memcmp(path.data + i, "://", 3) != 0) continue;
        for (i += 3; i < path.bytes && path.data[i] != '/';) i++;
        return slice_of(path.data + i, path.bytes - i);
    }
    return slice_of(path.data, 0);
}

/* The value of the first `name` among name=value pairs. */
static bool pair_of(struct slice pairs, char between, const char *name, struct slice *ret_value) {
    while (pairs.bytes > 0) {
        struct slice pair = trimmed(cut(&pairs, between));
        if (!slice_equal(cut(&pair, '='), slice_str(name))) continue;
        *ret_value = pair;
        return true;
    }
    return false;
}

static bool target_matches(const struct key_rule *rule, struct slice target, struct slice *ret_key) {
    if (rule->kind == KEY_HTTP_PATH) return rule->match(rule->context, path_of(target), ret_key);
    struct slice query = cut(&target, '#');
    (void)cut(&query, '?');
    return pair_of(query, '&', rule->name, ret_key);
}

static bool is_named(struct slice field, const char *name) {
    if (field.bytes != strlen(name)) return false;
    for (size_t i = 0; i < field.bytes; i++)
        if (lower(field.data[i]) != lower(name[i])) return false;
    return true;
}

static bool field_matches(const struct key_rule *rule, struct slice line, struct slice *ret_key) {
    const bool cookie = rule->kind == KEY_HTTP_COOKIE;
    if (memchr(line.data, ':', line.bytes) == NULL) return false;
    if (!is_named(cut(&line, ':'), cookie ? "cookie" : rule->name)) return false;
    const struct slice value = trimmed(line);
    if (!cookie) {
        *ret_key = value;
        return true;
    }
    if (!pair_of(value, ';', rule->name, ret_key)) return false;
    if (ret_key->bytes >= 2 && ret_key->data[0] == '"' && ret_key->data[ret_key->bytes - 1] == '"')
        *ret_key = slice_of(ret_key->data + 1, ret_key->bytes - 2);
    return true;
}

enum key_verdict key_http(const struct key_rule *rule, struct slice head, size_t *at, struct slice *ret_key) {
    const bool in_target = rule->kind == KEY_HTTP_PATH || rule->kind == KEY_HTTP_QUERY;
    struct slice line, target;
    if (*at == 0) {
        if (!key_next_line(head, at, &line)) return may_be_request(head) ? KEY_NEED_MORE : KEY_NONE;
        if (!request_line(line, &target)) return KEY_NONE;
        if (in_target) return target_matches(rule, target, ret_key) ? KEY_FOUND : KEY_NONE;
    }
    while (key_next_line(head, at, &line)) {
        if (line.bytes == 0) return KEY_NONE; /* the end of the head */
        if (field_matches(rule, line, ret_key)) return KEY_FOUND;
    }
    return KEY_NEED_MORE;
}
