/* lockclient_address.c - "host:port,[v6]:port,..." taken apart.  Numeric addresses are ready to connect to; names are
 * looked up at each connect, because what they mean may change. */
#include "client/lockclient_private.h"
#include "common/slice.h"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool host_is_sane(struct slice host) {
    if (host.bytes == 0 || host.bytes > 255) return false;
    for (size_t i = 0; i < host.bytes; i++) {
        const unsigned char byte = (unsigned char)host.data[i];
        if (byte <= ' ' || byte >= 0x7f || byte == ',' || byte == '[' || byte == ']') return false;
    }
    return true;
}

static void set_numeric(struct address *a, uint16_t port) {
    struct sockaddr_in *v4 = (struct sockaddr_in *)&a->name;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&a->name;
    if (inet_pton(AF_INET, a->host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(port);
        a->name_bytes = sizeof *v4;
    } else if (inet_pton(AF_INET6, a->host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons(port);
        a->name_bytes = sizeof *v6;
    }
}

/* NULL, or what is wrong with it. */
static const char *parse_one(struct address *a, struct slice text) {
    const char *colon = memrchr(text.data, ':', text.bytes);
    if (colon == NULL) return "has no port (write host:port)";
    struct slice host = slice_of(text.data, (size_t)(colon - text.data));
    const struct slice port_text = slice_of(colon + 1, text.bytes - host.bytes - 1);
    if (host.bytes >= 2 && host.data[0] == '[' && host.data[host.bytes - 1] == ']') {
        host = slice_of(host.data + 1, host.bytes - 2);
    } else if (memchr(host.data, ':', host.bytes) != NULL) {
        return "has more than one colon (write an IPv6 address as [address]:port)";
    }
    uint64_t port;
    if (!slice_to_u64(port_text, &port) || port < 1 || port > 65535) return "has no port from 1 to 65535";
    if (!host_is_sane(host)) return "has no valid host";
    a->text = strndup(text.data, text.bytes);
    a->host = strndup(host.data, host.bytes);
    if (a->text == NULL || a->host == NULL) return "does not fit in memory";
    snprintf(a->port, sizeof a->port, "%u", (unsigned)port);
    set_numeric(a, (uint16_t)port);
    return NULL;
}

int address_list_parse(struct address_list *ret_list, const char *text, char *error, size_t error_bytes) {
    struct address_list list = {.items = calloc(ADDRESSES_MAX, sizeof *list.items)};
    if (list.items == NULL) {
        snprintf(error, error_bytes, "no memory for the addresses");
        return LOCKCLIENT_ERR_MEMORY;
    }
    for (const char *at = text;; at++) {
        const size_t bytes = strcspn(at, ",");
        if (list.count == ADDRESSES_MAX) {
            snprintf(error, error_bytes, "more than %d addresses", (int)ADDRESSES_MAX);
            break;
        }
        const char *wrong = parse_one(&list.items[list.count++], slice_of(at, bytes));
        if (wrong != NULL) {
            snprintf(error, error_bytes, "address '%.*s' %s", (int)(bytes > 128 ? 128 : bytes), at, wrong);
            break;
        }
        at += bytes;
        if (*at == '\0') {
            *ret_list = list;
            return 0;
        }
    }
    address_list_release(&list);
    return LOCKCLIENT_ERR_ADDRESS;
}

void address_list_release(struct address_list *list) {
    for (size_t i = 0; i < list->count; i++) {
        free(list->items[i].text);
        free(list->items[i].host);
    }
    free(list->items);
    *list = (struct address_list){0};
}
