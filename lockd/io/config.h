/* config.h - what lockd is told: a file and a command line, from one table of keys.
 *
 * Every key is `key = value` in the file (libconfuse) and `--key value` or `--key=value` on the command line, which
 * beats the file.  The table below says name, default, range, unit and meaning once: the parser, the messages, --help
 * and the test of conf/lockd.conf and of the manual page all read it.  Settings of the keyspace are keys as well, with
 * dashes; they only seed a cluster that forms (keyspace.h). */
#pragma once
#include "common/io/net.h"
#include "lockd/core/keyspace.h"
#include "lockd/core/paxos.h"

/* NUMBER(field, "key", default, lowest, highest, "unit", "what it is")
 * TEXT(field, "key", "default", bytes, "form", "what it is") */
#define CONFIG_NUMBERS(NUMBER)                                                                                         \
    NUMBER(node, "node", 1, 1, PAXOS_NODES_MAX, "index", "which entry of nodes this process is; the first is 1")       \
    NUMBER(heartbeat_ms, "heartbeat-ms", 50, 10, 10000, "ms", "how often the leader shows that it is alive")           \
    NUMBER(leader_lease_ms, "leader-lease-ms", 300, 50, 60000, "ms",                                                   \
           "how long an acknowledged leader cannot be replaced; at least two heartbeats")                              \
    NUMBER(election_spread_ms, "election-spread-ms", 100, 10, 60000, "ms",                                             \
           "elections start up to this much later at random, so that they seldom collide")                             \
    NUMBER(clock_drift_ppm, "clock-drift-ppm", 500, 0, 100000, "ppm",                                                  \
           "bound on how much faster one machine's clock may run than another's")                                      \
    NUMBER(forward_timeout_ms, "forward-timeout-ms", 10000, 100, 600000, "ms",                                         \
           "how long a command waits for a leader before it is refused")                                               \
    NUMBER(reattach_ms, "reattach-ms", 1000, 10, 600000, "ms",                                                         \
           "how long a waiter keeps its place after its connection was lost")                                          \
    NUMBER(log_map_bytes, "log-map-bytes", 68719476736, 1048576, 70368744177664, "bytes",                              \
           "the most the log may grow to; the file is sparse")                                                         \
    NUMBER(checkpoint_bytes, "checkpoint-bytes", 67108864, 0, 1099511627776, "bytes",                                  \
           "log to gather before the next checkpoint is written and old log is dropped; 0: only by SNAPSHOT.SAVE")     \
    NUMBER(disk_reserve, "disk-reserve", 67108864, 0, 1099511627776, "bytes",                                          \
           "when a majority of nodes has less room than this, nothing that grows is taken; 0: never")                  \
    NUMBER(stall_ms, "stall-ms", 1000, 0, 600000, "ms",                                                                \
           "a leader whose disk has not answered for so long hands over; 0: never")                                    \
    NUMBER(clients_max, "clients-max", 10000, 1, 1000000, "connections", "client connections at a time")               \
    NUMBER(arguments_max, "arguments-max", 1024, 16, 4096, "words", "arguments of one command")                        \
    NUMBER(request_bytes_max, "request-bytes-max", 2031616, 65536, 2031616, "bytes", "one command, headers included")
#define CONFIG_TEXTS(TEXT)                                                                                             \
    TEXT(listen, "listen", "127.0.0.1:7400", 288, "host:port", "where clients connect; port 0 picks a free one")       \
    TEXT(data_dir, "data-dir", "./lockd-data", 3072, "path", "directory of this node's log; made if missing")          \
    TEXT(log_level, "log-level", "info", 8, "error|warn|info|debug", "least important line to log")

struct config {
#define NUMBER(field, key, value, low, high, unit, text) uint64_t field;
    CONFIG_NUMBERS(NUMBER)
#undef NUMBER
#define TEXT(field, key, value, bytes, form, text) char field[bytes];
    CONFIG_TEXTS(TEXT)
#undef TEXT
    struct ks_settings settings;
    uint32_t node_count;                       /* 1 when nodes is not given */
    struct net_address nodes[PAXOS_NODES_MAX]; /* nodes: peer addresses in order */
    char node_texts[PAXOS_NODES_MAX][288];     /* the same as written */
    bool has_nodes;
    bool clients_max_given; /* not the default: it is meant */
    struct net_address listen_address;
    int log_level_number; /* enum log_level */
    const char *file;     /* --config; borrowed from argv, NULL if none */
};

enum config_answer {
    CONFIG_RUN,   /* go on */
    CONFIG_CHECK, /* --check: all is well; tell so and exit 0 */
    CONFIG_SHOWN, /* --help, --version: `text` is what to print; exit 0 */
    CONFIG_USAGE, /* the command line is wrong: `text` says how; exit 2 */
    CONFIG_BAD    /* the file, or what both say together, is wrong: `text` says where and how; exit 1 */
};
enum { CONFIG_TEXT_BYTES = 16384 };
/* Read the command line and the file it names. */
NODISCARD enum config_answer config_read(int argc, char *const *argv, struct config *ret_config,
                                         char text[static CONFIG_TEXT_BYTES]);

/* The table, for tests and documentation. */
enum config_kind { CONFIG_NUMBER, CONFIG_STRING, CONFIG_LIST };
struct config_key {
    char name[32];
    enum config_kind kind;
    uint64_t number, low, high; /* CONFIG_NUMBER */
    const char *string;         /* CONFIG_STRING: default */
    size_t offset, bytes;       /* in struct config */
    const char *unit, *text;    /* unit: of a number; of a text its form */
};
/* *ret_count entries, in the order of --help; valid for ever. */
const struct config_key *config_keys(uint32_t *ret_count);
