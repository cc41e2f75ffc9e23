/* town.h - a few whole nodes in one process and in virtual time, for stories: a perfect network and perfect disks, and
 * only the faults that the story asks for.
 *
 * The nodes are the very objects the daemon runs (lockd/core/replica.h); town.c plays their machines.  Nothing here is
 * drawn by chance: the same calls give the same run.  The unkind world, with chance, is tests/sim. */
#pragma once
#include "common/buf.h"
#include "lockd/core/replica.h"

enum { TOWN_LINK_MS = 1, TOWN_DISK_MS = 2, TOWN_STALL_MS = 1000, TOWN_DISK_RESERVE = 1000 };

enum town_disk { TOWN_DISK_WORKS, TOWN_DISK_HANGS };

/* 1..PAXOS_NODES_MAX nodes, none of them running; the clock starts.  The first `founders` are to form a cluster. */
void town_open(uint16_t count, uint16_t founders);
void town_close(void);
uint64_t town_now(void);
uint16_t town_count(void);

/* ---- nodes, by index ---- */
void town_start(uint16_t node);  /* must be down */
void town_crash(uint16_t node);  /* kill -9: what was not durable is gone, connections break */
void town_pause(uint16_t node);  /* SIGSTOP: reads nothing, does nothing, connections stand */
void town_resume(uint16_t node); /* SIGCONT */
void town_wipe(uint16_t node);   /* must be down: its next start is that of an empty, other store */
bool town_is_up(uint16_t node);
bool town_is_paused(uint16_t node);
struct replica *town_replica(uint16_t node);
uint64_t town_store_id(uint16_t node);
void town_disk(uint16_t node, enum town_disk disk, uint64_t write_ms);
/* What its disk has left from now on. */
void town_disk_left(uint16_t node, uint64_t bytes);
/* The slot of the checkpoint on its disk, 0: none. */
uint64_t town_checkpoint(uint16_t node);
/* What the node noted for its log since the last call, one "l module event" per line, repeats left out. */
struct slice town_notes(uint16_t node);

/* ---- links, one way ---- */
void town_cut(uint16_t from, uint16_t to);               /* frames are lost in silence */
void town_hold(uint16_t from, uint16_t to);              /* frames wait on their way */
void town_twice(uint16_t from, uint16_t to, bool twice); /* frames arrive twice */
/* Neither cut nor held any more: what waited arrives now; a cut link is dialled again. */
void town_heal(uint16_t from, uint16_t to);
/* While set, nobody but this node gets its candidacy heard, so that a story knows who will lead; -1: as it comes. */
void town_favour(int node);

/* ---- clients ---- */
/* What a client sees: whole bytes of replies, or that its connection ended. */
struct town_sink {
    void (*reply)(uint64_t client, struct slice bytes);
    void (*closed)(uint64_t client);
};
void town_listen(const struct town_sink *sink);
/* A connection; ids are never reused.  0: nobody answers there. */
uint64_t town_connect(uint16_t node);
void town_disconnect(uint64_t client);
void town_command(uint64_t client, uint32_t argc, const struct slice *argv);

/* Virtual time goes on by `ms` at most; ends early when `enough` (may be NULL) says so after a millisecond in which
 * something happened.  True: it said so. */
bool town_run(uint64_t ms, bool (*enough)(void *context), void *context);
/* Why a node gave up for good, or NULL. */
const char *town_halted(uint16_t node);
