/* config.h - what lockproxy is told: a file and a command line, from one table of keys.
 *
 * Global keys are `key = value` in the file (libconfuse) and `--key value` on the command line, which beats the file.
 * Keys of a pool stand in its `pool NAME { ... }` block; on the command line they describe the one pool that --pool
 * names.  The tables below say key, default, range, unit and meaning once: parser, messages and --help read them. */
#pragma once
#include "common/io/net.h"
#include "proxy/core/bindings.h"
#include "proxy/core/key.h"
#include "proxy/io/linematch.h"

/* NUMBER(field, "key", default, lowest, highest, "unit", "what it is") */
#define CONFIG_GLOBAL_NUMBERS(NUMBER)                                                                                  \
    NUMBER(                                                                                                            \
        lease_ttl_ms, "lease-ttl-ms", 3000, 1000, 60000, "ms",                                                         \
        "how long lockd waits for a proxy that is gone; this proxy is covered for so long after each word from lockd") \
    NUMBER(clock_drift_ppm, "clock-drift-ppm", 500, 0, 100000, "ppm",                                                  \
           "bound on how much faster one machine's clock may run than another's")                                      \
    NUMBER(connections_max, "connections-max", 0, 0, 10000000, "connections",                                          \
           "clients at a time; 0: as many as the limit of open files allows")                                          \
    NUMBER(sessions_max, "sessions-max", 200000, 1, 10000000, "sessions",                                              \
           "sessions known at a time, those without a connection included")                                            \
    NUMBER(session_idle_ms, "session-idle-ms", 600000, 1000, 3600000, "ms",                                            \
           "a session without connections is given back to lockd after so long")                                       \
    NUMBER(session_touch_ms, "session-touch-ms", 1800000, 1000, 3600000, "ms",                                         \
           "a session with connections is confirmed with lockd this often")                                            \
    NUMBER(relay_buffer_bytes, "relay-buffer-bytes", 65536, 1024, 65536, "bytes",                                      \
           "what may wait in one direction of one connection before its sender is not read any more")
#define CONFIG_POOL_NUMBERS(NUMBER)                                                                                    \
    NUMBER(subset, "subset", 2, 1, PLACEMENT_SHARD_MAX, "backends",                                                    \
           "how many backends one session may ever live on; it is refused when all of them are down")                  \
    NUMBER(load_bound_percent, "load-bound-percent", 25, 0, 1000000, "percent",                                        \
           "a new session passes by a backend that has so much more than its fair part of the sessions")               \
    NUMBER(key_bytes_max, "key-bytes-max", 4096, 16, KEY_HEAD_BYTES_MAX, "bytes",                                      \
           "the session key must be in the first so many bytes")                                                       \
    NUMBER(key_timeout_ms, "key-timeout-ms", 3000, 10, 3600000, "ms", "... and must have come by then")                \
    NUMBER(connect_timeout_ms, "connect-timeout-ms", 1000, 10, 600000, "ms",                                           \
           "how long one connect to a backend may take")                                                               \
    NUMBER(ask_timeout_ms, "ask-timeout-ms", 5000, 100, 600000, "ms",                                                  \
           "how long a client waits until its backend is known, moved and connected")                                  \
    NUMBER(idle_timeout_ms, "idle-timeout-ms", 0, 0, 2592000000, "ms",                                                 \
           "a connection without a byte in either direction ends after so long; 0: never")                             \
    NUMBER(drain_timeout_ms, "drain-timeout-ms", 10000, 10, 2592000000, "ms",                                          \
           "after one side has ended, how long the other may stay silent before the connection ends")                  \
    NUMBER(probe_interval_ms, "probe-interval-ms", 200, 10, 3600000, "ms", "how often each backend is probed")         \
    NUMBER(probe_timeout_ms, "probe-timeout-ms", 1000, 10, 600000, "ms", "how long a probe may take")                  \
    NUMBER(rise, "rise", 2, 1, 1000, "probes", "so many good ones in a row bring a backend up")                        \
    NUMBER(fall, "fall", 3, 1, 1000, "probes",                                                                         \
           "so many bad ones in a row bring it down; a refused connection after lost ones does at once")
/* TEXT(field, "key", "default", bytes, "form", "what it is") */
#define CONFIG_GLOBAL_TEXTS(TEXT)                                                                                      \
    TEXT(name, "name", "lockproxy", 65, "text", "how this proxy is called at lockd")                                   \
    TEXT(log_level, "log-level", "info", 8, "error|warn|info|debug", "least important line to log")
#define CONFIG_POOL_TEXTS(TEXT)                                                                                        \
    TEXT(listen, "listen", "", 288, "host:port", "where its clients connect; port 0 picks a free one")                 \
    TEXT(class_name, "class", "sticky", 16, "sticky|exclusive",                                                        \
         "without lockd: sticky goes on serving, exclusive ends connections rather than to serve a session twice")     \
    TEXT(refuse_text, "refuse-text", "", 512, "text", "a line for clients that are refused; empty: none")

struct config_backend {
    char name[65];
    struct net_address address, probe;
    uint32_t weight;
    bool drain;
};
struct config_pool {
#define NUMBER(field, key, value, low, high, unit, text) uint64_t field;
    CONFIG_POOL_NUMBERS(NUMBER)
#undef NUMBER
#define TEXT(field, key, value, bytes, form, text) char field[bytes];
    CONFIG_POOL_TEXTS(TEXT)
#undef TEXT
    char name_of[65];
    enum bindings_class class;
    struct net_address listen_address;
    struct key_config key;
    struct linematch *matches[KEY_RULES_MAX]; /* of the line rules; NULL for the others */
    struct config_backend *backends;
    uint32_t backend_count;
};
struct config {
#define NUMBER(field, key, value, low, high, unit, text) uint64_t field;
    CONFIG_GLOBAL_NUMBERS(NUMBER)
#undef NUMBER
#define TEXT(field, key, value, bytes, form, text) char field[bytes];
    CONFIG_GLOBAL_TEXTS(TEXT)
#undef TEXT
    char *lockd; /* "host:port,host:port" */
    int log_level_number;
    struct config_pool *pools;
    uint32_t pool_count;
};

enum config_answer {
    CONFIG_RUN,   /* go on */
    CONFIG_CHECK, /* --check: all is well; tell so and exit 0 */
    CONFIG_SHOWN, /* --help, --version: `text` is what to print; exit 0 */
    CONFIG_USAGE, /* the command line is wrong: `text` says how; exit 2 */
    CONFIG_BAD    /* the file, or what both say together, is wrong: `text` says where and how; exit 1 */
};
enum { CONFIG_TEXT_BYTES = 16384 };
/* Read the command line and the file it names.  ret_config is good after RUN and CHECK; config_release always is. */
NODISCARD enum config_answer config_read(int argc, char *const *argv, struct config *ret_config,
                                         char text[static CONFIG_TEXT_BYTES]);
void config_release(struct config *config);
