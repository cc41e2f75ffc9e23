/* script.h - Lua 5.1 scripts of Redis' lock libraries: run on the leader, logged as effects (S).
 *
 * Place in the flow:  EVAL -> [keyspace_script, leader, changes nothing] -> %SCRIPT -> log -> [apply, every node]
 *
 * A %SCRIPT command's argv (SCRIPT_FIXED_WORDS and what it unfolds to):
 *   %SCRIPT reply text nreads (key version touched)* nwrites (argc arg ...)*
 * `reply` is the finished RESP reply; `text` is the script, empty if it was cached already; a key that was absent has
 * version 0 and touched 0.  A lease that a command named is a read too: (id 0|1 LEASE), 1: it was alive.
 *
 * What always holds:
 *   C1  A script reads and writes only names in its KEYS, and sees its own writes: it runs on an overlay (ks_state.h).
 *   C2  What it read is what is true when its effects are applied, or nothing of it is executed (KS_SCRIPT_VOID).
 *   C3  A script that fails keeps what it wrote before, as in Redis; one that runs into a limit has done nothing.
 *   C4  Nothing a script does costs more than its limits: steps (an instruction's price grows with the memory it could
 *       look at), memory, and the size of its effects.  pcall does not catch them.
 *   C5  A script cannot reach the machine, another script, or the time: no load*, os, io, debug, patterns, random,
 *       metatables; what is global cannot be changed.
 *
 * Numbers, strings and tables are converted as Redis 7.0 does for RESP2; errors have its texts. */
#pragma once
#include "lockd/core/keyspace.h"

enum {
    SCRIPT_STEPS_MAX = 5000000,
    SCRIPT_MEMORY_BYTES_MAX = 32 * 1024 * 1024,
    SCRIPT_EFFECT_BYTES_MAX = 2 * 1024 * 1024 - 128 * 1024, /* one batch holds it */
    SCRIPT_REPLY_DEPTH_MAX = 100
};

/* The digest of a script's text, in lower case hexadecimal, with a NUL. */
void script_sha(struct slice text, char ret_sha[41]);
