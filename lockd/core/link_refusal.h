/* link_refusal.h - why what came over the link of another node was not believed: one table for the frame reader, the
 * replica, the link's log line and INFO.
 *
 * Plain data.  X(NAME, name, "what"): `name` is the word in the log and in INFO (peer_refused_name). */
#pragma once

#define LINK_REFUSALS(X)                                                                                               \
    X(SILENT, silent, "no hello in time")                                                                              \
    X(CROWD, crowd, "too many links at a time, and this one had not said hello")                                       \
    X(HELLO, hello, "it does not begin with a hello")                                                                  \
    X(SECOND_HELLO, second_hello, "a second hello")                                                                    \
    X(LENGTH, length, "a frame of a length that none has")                                                             \
    X(CHECKSUM, checksum, "a frame whose checksum does not hold")                                                      \
    X(VERSION, version, "another version of the protocol")                                                             \
    X(FIELDS, fields, "a frame with fields that no node sends")                                                        \
    X(NUMBER, number, "it takes us for another node, or itself for us: compare nodes and node")                        \
    X(UNKNOWN, unknown, "no node of ours has its number; if it is to be one, NODE.ADD it")                             \
    X(UNSHOWN, unshown, "it goes on talking without having shown who it is")                                           \
    X(CLUSTER, cluster, "it belongs to another cluster")                                                               \
    X(COUNT, count, "it is configured with another number of nodes")                                                   \
    X(MEMBER, member, "its store is not the one that this node has in the cluster: empty, copied, damaged or removed") \
    X(TWICE, twice, "two live stores claim one number, or one store was copied")

enum link_refusal {
    LINK_TAKEN,
#define X(NAME, name, what) LINK_##NAME,
    LINK_REFUSALS(X)
#undef X
        LINK_REFUSAL_END
};
