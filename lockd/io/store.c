/* store.c - see store.h.
 *
 * Two threads.  The loop's thread opens, replays, fetches (a read-only transaction, renewed and reset each time so
 * that it never pins pages) and fills `queue`; the commit thread takes the whole queue and commits it.  They share what
 * stands under `mutex` and nothing else.  Memory of buffers is only ever resized by the loop's thread: the process-wide
 * allocator counts without a lock.
 *
 * LMDB trusts its own pages.  A damaged file can make it jump anywhere inside the map or past the end of the file, so
 * every read runs under a guard that turns SIGSEGV, SIGBUS and LMDB's own assertion into the answer "damaged". */
#include "lockd/io/store.h"
#include "common/io/clock.h"
#include "common/io/file.h"
#include "common/io/heap.h"
#include "common/io/say.h"
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

enum {
    /* "HLF4" in the file; another layout, or another meaning of what is logged, gets another number. */
    STORE_FORMAT = 0x34464c48,
    SUM_BYTES = 8,
    ENTRY_HEAD_BYTES = SUM_BYTES + 8 + 2, /* checksum, ballot */
    STATE_BYTES = SUM_BYTES + 4 + 8 + 2 + 10 + 4 + 8 + 8 + 8 + 8 + 8 + 8 + MEMBERSHIP_BYTES,
    QUEUE_KEEP_BYTES = 8 * 1024 * 1024, /* a buffer that grew beyond this is given back once empty */
    /* What one commit deletes below the cut: this, or twice what it adds, so that the cut always gains on the log. */
    CUT_ENTRIES = 512,
    CUT_BYTES = 16 * 1024 * 1024,
    /* Where LMDB 0.9 keeps the two things we read of a meta page: after the page head, magic, version, address and map
     * size come the two roots (48 bytes each, the last 8 are the page), the last page and the transaction id. */
    META_ROOT_OFFSET = 16 + 4 + 4 + 8 + 8 + 48 + 40,
    META_TXN_OFFSET = 16 + 4 + 4 + 8 + 8 + 48 + 48 + 8,
    META_END = META_TXN_OFFSET + 8
};

#define NO_PAGE UINT64_MAX /* LMDB: the root of what is empty */

/* The record "state". */
struct state {
    uint64_t store_id;
    uint16_t node;
    struct ballot promised;
    uint32_t lease_ms_max;
    paxos_slot chosen, cut;          /* up to `cut` nothing is needed; some of it may still be there */
    uint64_t txn;                    /* of the LMDB transaction that wrote this */
    uint64_t entry_count, entry_sum; /* of the log: how many, and their checksums added up */
    struct identity_record record;
};

/* What waits for one commit: the newest of everything, and every entry in order. */
struct pending {
    struct buf entries; /* struct entry_head and the value, again and again */
    bool any;           /* there is something to write */
    bool has_promise, has_record;
    struct ballot promised;
    uint32_t lease_ms;
    paxos_slot chosen, cut;
    struct identity_record record;
    uint64_t batch;    /* the last one in here, 0: nothing */
    uint64_t since_ms; /* when the first one came */
};
struct entry_head {
    paxos_slot slot;
    struct ballot ballot;
    size_t bytes;
};

struct store {
    struct store_config config;
    char *directory;
    int lock_fd;
    bool restarted;
    /* loop's thread */
    MDB_env *env;
    MDB_dbi main_dbi, log_dbi;
    MDB_txn *reader; /* reset between uses */
    struct buf fetched;
    struct paxos_entry *accepted; /* above chosen, until store_replay */
    struct buf accepted_values;
    uint32_t accepted_count;
    uint64_t read_count, read_sum; /* entries met while opening and replaying */
    struct state opened;           /* as found; later: whose store this is */
    paxos_slot base;               /* the state as of this slot came from a checkpoint */
    paxos_slot found, found_cut;   /* chosen and cut as the record has them */
    paxos_slot cut;                /* asked for so far */
    /* both, under mutex */
    pthread_mutex_t mutex;
    pthread_cond_t work, taken;
    struct pending queue;
    uint64_t durable, commit_since_ms; /* commit_since_ms: of what is being committed, 0 if nothing is */
    paxos_slot cut_wanted;
    bool cutting; /* the commit thread has something to delete */
    bool stopping, failed;
    char error[STORE_ERROR_BYTES];
    /* commit thread */
    pthread_t thread;
    bool running;
    struct pending batch;
    struct state state;
    paxos_slot slot_last; /* highest slot in the log */
    struct store *next;   /* only once it is abandoned */
};

/* ---- the guard ---- */

static __thread sigjmp_buf *guard; /* where a bad page takes us; NULL: nowhere */

static void guard_signal(int number) {
    if (guard != NULL) siglongjmp(*guard, 1);
    signal(number, SIG_DFL); /* not ours: fault again and die of it */
}

static void guard_assert(MDB_env *env, const char *text) {
    (void)env;
    (void)text;
    if (guard != NULL) siglongjmp(*guard, 1); /* else LMDB aborts when we return */
}

/* Run fn with the guard up; its result, or -1 when it met a page that cannot be read. */
static int guarded(int (*fn)(struct store *s, void *argument), struct store *s, void *argument) {
    struct sigaction catch = {.sa_handler = guard_signal, .sa_flags = SA_NODEFER}, segv, bus;
    sigjmp_buf place;
    must(guard == NULL);
    sigaction(SIGSEGV, &catch, &segv);
    sigaction(SIGBUS, &catch, &bus);
    int result = -1;
    if (sigsetjmp(place, 1) == 0) {
        guard = &place;
        const int answer = fn(s, argument);
        guard = NULL;
        result = answer;
    } else {
        guard = NULL;
    }
    sigaction(SIGSEGV, &segv, NULL);
    sigaction(SIGBUS, &bus, NULL);
    return result;
}

/* ---- texts ---- */

static int say_damaged(const struct store *s, char *error, size_t bytes, const char *what) {
    return say(error, bytes,
               "the log in %s/log is damaged: %s. This node must not vote with it. If the other nodes are a healthy "
               "majority, stop, move %s away and start again: a node with an empty store does not vote until it is "
               "re-added. Otherwise restore the directory from a copy",
               s->directory, what, s->directory);
}

static int say_slot_damaged(const struct store *s, char *error, size_t bytes, paxos_slot slot, const char *what) {
    char text[128];
    snprintf(text, sizeof text, "slot %llu %s", (unsigned long long)slot, what);
    return say_damaged(s, error, bytes, text);
}

static void say_lmdb(const struct store *s, char *error, size_t bytes, const char *what, int rc) {
    struct statvfs fs;
    unsigned long long free_mib = 0;
    if (statvfs(s->directory, &fs) == 0) free_mib = (unsigned long long)fs.f_bavail * fs.f_frsize >> 20;
    if (rc == MDB_MAP_FULL)
        say(error, bytes,
            "the log in %s/log has reached log-map-bytes (%llu): raise log-map-bytes and start this node again",
            s->directory, (unsigned long long)s->config.map_bytes);
    else if (rc == MDB_CORRUPTED || rc == MDB_PAGE_NOTFOUND || rc == MDB_INVALID || rc == MDB_PANIC)
        say_damaged(s, error, bytes, mdb_strerror(rc));
    else
        say(error, bytes, "%s the log in %s/log failed: %s (%llu MiB are free there)", what, s->directory,
            mdb_strerror(rc), free_mib);
}

/* ---- values ---- */

/* A buf over memory of fixed size, for wire_put_*: more than fits would be a programmer error and die on the missing
 * allocator. */
static struct buf fixed(char *memory, size_t bytes) {
    return (struct buf){.data = memory, .capacity = bytes};
}

static uint64_t entry_sum(uint64_t store_id, paxos_slot slot, struct ballot ballot, struct slice value) {
    char memory[32];
    struct buf b = fixed(memory, sizeof memory);
    wire_put_u64(&b, slot);
    wire_put_u64(&b, ballot.round);
    wire_put_u16(&b, ballot.node);
    wire_put_u64(&b, XXH3_64bits(value.data, value.bytes));
    return XXH3_64bits_withSeed(b.data, b.bytes, store_id);
}

static paxos_slot slot_of(const MDB_val *key) {
    paxos_slot slot = 0;
    for (size_t i = 0; i < sizeof slot; i++) slot = slot << 8 | ((const uint8_t *)key->mv_data)[i];
    return slot;
}

/* The entry under slot_key; false when its checksum does not hold. */
static bool entry_read(uint64_t store_id, const MDB_val *key, const MDB_val *data, struct paxos_entry *ret_entry,
                       uint64_t *ret_sum) {
    if (key->mv_size != sizeof(uint64_t) || data->mv_size < ENTRY_HEAD_BYTES) return false;
    const paxos_slot slot = slot_of(key);
    struct wire w = wire_of(slice_of(data->mv_data, data->mv_size));
    *ret_sum = wire_u64(&w);
    ret_entry->slot = slot;
    ret_entry->ballot.round = wire_u64(&w);
    ret_entry->ballot.node = wire_u16(&w);
    ret_entry->value = slice_of(w.at, (size_t)(w.end - w.at));
    return entry_sum(store_id, slot, ret_entry->ballot, ret_entry->value) == *ret_sum;
}

/* Big-endian, so that LMDB's own order is the order of slots. */
static MDB_val slot_key(paxos_slot slot, uint8_t memory[static 8]) {
    for (int i = 0; i < 8; i++) memory[i] = (uint8_t)(slot >> (56 - 8 * i));
    return (MDB_val){.mv_size = 8, .mv_data = memory};
}

static MDB_val state_key(void) {
    static char name[] = "state";
    return (MDB_val){.mv_size = sizeof name - 1, .mv_data = name};
}

static void state_write(const struct state *state, struct buf *b) {
    wire_put_u64(b, 0); /* the checksum, below */
    wire_put_u32(b, STORE_FORMAT);
    wire_put_u64(b, state->store_id);
    wire_put_u16(b, state->node);
    wire_put_u64(b, state->promised.round);
    wire_put_u16(b, state->promised.node);
    wire_put_u32(b, state->lease_ms_max);
    wire_put_u64(b, state->chosen);
    wire_put_u64(b, state->cut);
    wire_put_u64(b, state->txn);
    wire_put_u64(b, state->entry_count);
    wire_put_u64(b, state->entry_sum);
    wire_put_u64(b, state->record.cluster_id);
    membership_write(&state->record.members, b);
    const uint64_t sum = XXH3_64bits(b->data + SUM_BYTES, b->bytes - SUM_BYTES);
    for (int i = 0; i < SUM_BYTES; i++) b->data[i] = (char)(sum >> (8 * i));
}

enum state_status { STATE_OK, STATE_DAMAGED, STATE_OTHER_FORMAT };

static enum state_status state_read(struct slice value, struct state *ret_state) {
    struct wire w = wire_of(value);
    const uint64_t sum = wire_u64(&w);
    if (w.bad || XXH3_64bits(w.at, (size_t)(w.end - w.at)) != sum) return STATE_DAMAGED;
    if (wire_u32(&w) != STORE_FORMAT) return STATE_OTHER_FORMAT;
    ret_state->store_id = wire_u64(&w);
    ret_state->node = wire_u16(&w);
    ret_state->promised.round = wire_u64(&w);
    ret_state->promised.node = wire_u16(&w);
    ret_state->lease_ms_max = wire_u32(&w);
    ret_state->chosen = wire_u64(&w);
    ret_state->cut = wire_u64(&w);
    ret_state->txn = wire_u64(&w);
    ret_state->entry_count = wire_u64(&w);
    ret_state->entry_sum = wire_u64(&w);
    ret_state->record.cluster_id = wire_u64(&w);
    const bool limits = membership_read(&w, &ret_state->record.members);
    const bool sound = ret_state->record.cluster_id == 0 || membership_makes_sense(&ret_state->record.members);
    return wire_done(&w) && limits && sound && ret_state->cut <= ret_state->chosen ? STATE_OK : STATE_DAMAGED;
}

/* Put the state under the id of this transaction; an LMDB code. */
static int state_put(struct store *s, MDB_txn *txn, struct state *state) {
    char memory[STATE_BYTES];
    struct buf b = fixed(memory, sizeof memory);
    state->txn = mdb_txn_id(txn);
    state_write(state, &b);
    MDB_val key = state_key(), data = {.mv_size = b.bytes, .mv_data = b.data};
    return mdb_put(txn, s->main_dbi, &key, &data, 0);
}

/* ---- opening ---- */

/* Make the directory and take its lock. */
static int take_directory(struct store *s, char *error, size_t bytes) {
    char path[4096];
    if (mkdir(s->directory, 0700) != 0 && errno != EEXIST)
        return say(error, bytes, "cannot make the data directory %s: %s (data-dir)", s->directory, strerror(errno));
    if (snprintf(path, sizeof path, "%s/lock", s->directory) >= (int)sizeof path - 16)
        return say(error, bytes, "the path of the data directory is too long: %s (data-dir)", s->directory);
    s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (s->lock_fd < 0)
        return say(error, bytes, "cannot write to the data directory %s: %s (data-dir)", s->directory, strerror(errno));
    if (flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        char pid[24] = "";
        const ssize_t got = pread(s->lock_fd, pid, sizeof pid - 1, 0);
        pid[got > 0 ? strcspn(pid, "\n") : 0] = '\0';
        return say(error, bytes, "the data directory %s is in use by another process (pid %s)", s->directory, pid);
    }
    char pid[24];
    const int length = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
    if (ftruncate(s->lock_fd, 0) != 0 || pwrite(s->lock_fd, pid, (size_t)length, 0) != length)
        return say(error, bytes, "cannot write to the data directory %s: %s (data-dir)", s->directory, strerror(errno));
    snprintf(path, sizeof path, "%s/log", s->directory);
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return say(error, bytes, "cannot make %s: %s", path, strerror(errno));
    return 0;
}

struct environment_open {
    char path[4096];
    char *error;
    size_t error_bytes;
    bool told; /* error is set */
};

/* What a meta page says: its transaction, and the page that is the root of the database with our record. */
struct meta {
    uint64_t txn, root;
};

static bool read_meta(int fd, size_t page_bytes, int index, struct meta *ret_meta) {
    const off_t page = (off_t)index * (off_t)page_bytes;
    return pread(fd, &ret_meta->txn, sizeof ret_meta->txn, page + META_TXN_OFFSET) == sizeof ret_meta->txn &&
           pread(fd, &ret_meta->root, sizeof ret_meta->root, page + META_ROOT_OFFSET) == sizeof ret_meta->root;
}

/* Does that root hold the record of that transaction?  Its page has a few dozen bytes besides the record. */
static bool meta_is_true(int fd, size_t page_bytes, const struct meta *meta) {
    static const char name[] = "state";
    char page[1 << 16];
    struct state state;
    if (page_bytes > sizeof page || meta->root > INT32_MAX) return false;
    if (pread(fd, page, page_bytes, (off_t)meta->root * (off_t)page_bytes) != (ssize_t)page_bytes) return false;
    for (const char *at = page; at + sizeof name - 1 + STATE_BYTES <= page + page_bytes; at++) {
        if (memcmp(at, name, sizeof name - 1) != 0) continue;
        const char *record = at + sizeof name - 1;
        struct wire format = wire_of(slice_of(record + SUM_BYTES, 4));
        if (wire_u32(&format) != STORE_FORMAT) return true; /* not ours to judge: open_state says so */
        if (state_read(slice_of(record, STATE_BYTES), &state) == STATE_OK && state.txn == meta->txn) return true;
    }
    return false;
}

/* LMDB alternates between two meta pages: their transactions are neighbours, and each root holds the record of its own.
 * If not, one is damaged, and LMDB might take the older one for the truth: an acknowledged transaction would be gone
 * without a trace.  (The pages of the older one are whole: LMDB reuses none of them before the next commit.) */
static int check_metas(struct store *s, void *argument) {
    MDB_stat stat;
    mdb_filehandle_t fd;
    (void)argument;
    struct meta metas[2];
    if (mdb_env_stat(s->env, &stat) != 0 || mdb_env_get_fd(s->env, &fd) != 0) return -1;
    for (int i = 0; i < 2; i++)
        if (!read_meta(fd, stat.ms_psize, i, &metas[i])) return -1;
    if (metas[0].txn == 0 && metas[1].txn == 0) return 0; /* just made */
    if ((metas[0].txn & 1) != 0 || (metas[0].txn + 1 != metas[1].txn && metas[1].txn + 1 != metas[0].txn)) return -1;
    for (int i = 0; i < 2; i++)
        if (metas[i].txn == 0 ? metas[i].root != NO_PAGE : !meta_is_true(fd, stat.ms_psize, &metas[i])) return -1;
    return 0;
}

static int tell(struct environment_open *o, struct store *s, const char *what, int rc) {
    say_lmdb(s, o->error, o->error_bytes, what, rc);
    o->told = true;
    return -1;
}

static int open_environment(struct store *s, void *argument) {
    struct environment_open *o = argument;
    int rc = mdb_env_create(&s->env);
    if (rc == 0) rc = mdb_env_set_assert(s->env, guard_assert);
    if (rc == 0) rc = mdb_env_set_maxdbs(s->env, 2);
    if (rc == 0) rc = mdb_env_set_mapsize(s->env, (size_t)s->config.map_bytes);
    if (rc == 0) rc = mdb_env_open(s->env, o->path, MDB_NOTLS, 0600);
    if (rc == ENOMEM) {
        o->told = true;
        return say(o->error, o->error_bytes, "cannot map %llu bytes for the log in %s: %s (log-map-bytes)",
                   (unsigned long long)s->config.map_bytes, o->path, mdb_strerror(rc));
    }
    if (rc != 0) return tell(o, s, "opening", rc);
    return 0;
}

/* First start: the id is on disk before anybody hears it. */
static int make_state(struct store *s, MDB_txn *txn, struct environment_open *o) {
    s->opened = (struct state){.store_id = s->config.fresh_store_id, .node = s->config.node};
    int rc = mdb_dbi_open(txn, "log", MDB_CREATE, &s->log_dbi);
    if (rc == 0) rc = state_put(s, txn, &s->opened);
    if (rc != 0) {
        mdb_txn_abort(txn);
        return tell(o, s, "making", rc);
    }
    rc = mdb_txn_commit(txn);
    if (rc != 0) return tell(o, s, "making", rc);
    return 0;
}

static int check_owner(struct store *s, struct environment_open *o) {
    const struct state *state = &s->opened;
    if (state->node == s->config.node) return 0;
    o->told = true;
    s->failed = false; /* it is sound, only not ours */
    return say(o->error, o->error_bytes,
               "the data directory %s belongs to node %u, this process is configured as node %u (node, data-dir)",
               s->directory, state->node + 1u, s->config.node + 1u);
}

/* Read the state and open the databases; make both on first start. */
static int open_state(struct store *s, void *argument) {
    struct environment_open *o = argument;
    MDB_txn *txn = NULL;
    MDB_envinfo info;
    int rc = mdb_env_info(s->env, &info);
    if (rc == 0) rc = mdb_txn_begin(s->env, NULL, 0, &txn);
    if (rc == 0) rc = mdb_dbi_open(txn, NULL, 0, &s->main_dbi);
    if (rc != 0) {
        if (txn != NULL) mdb_txn_abort(txn);
        return tell(o, s, "opening", rc);
    }
    if (info.me_last_txnid == 0 && info.me_last_pgno <= 1) return make_state(s, txn, o);
    s->restarted = true;
    MDB_val key = state_key(), data;
    rc = mdb_get(txn, s->main_dbi, &key, &data);
    const enum state_status status =
        rc == 0 ? state_read(slice_of(data.mv_data, data.mv_size), &s->opened) : STATE_DAMAGED;
    if (rc == 0 && status == STATE_OK) rc = mdb_dbi_open(txn, "log", 0, &s->log_dbi);
    if (rc == 0 && status == STATE_OK) {
        /* a commit, because only that keeps the handles; it has written nothing and touches no disk */
        rc = mdb_txn_commit(txn);
        if (rc != 0) return tell(o, s, "opening", rc);
        if (s->opened.txn != info.me_last_txnid) return -1;
        return check_owner(s, o);
    }
    mdb_txn_abort(txn);
    if (status == STATE_OTHER_FORMAT) {
        o->told = true;
        return say(o->error, o->error_bytes, "the log in %s has a format this version of lockd does not know", o->path);
    }
    return -1;
}

/* The values were copied into `values` one after the other, and it has stopped moving. */
static void point_into(const struct buf *values, struct paxos_entry *entries, uint32_t count) {
    size_t at = 0;
    for (uint32_t i = 0; i < count; at += entries[i++].value.bytes)
        entries[i].value.data = entries[i].value.bytes > 0 ? values->data + at : NULL;
}

/* Copy the entries above chosen. */
static int read_accepted(struct store *s, void *argument) {
    paxos_slot *slot_bad = argument;
    uint8_t memory[8];
    MDB_cursor *cursor;
    *slot_bad = s->opened.chosen + 1;
    MDB_val key = slot_key(*slot_bad, memory), data;
    if (mdb_txn_begin(s->env, NULL, MDB_RDONLY, &s->reader) != 0) return -1;
    if (mdb_cursor_open(s->reader, s->log_dbi, &cursor) != 0) return -1;
    uint32_t capacity = 0;
    int rc = mdb_cursor_get(cursor, &key, &data, MDB_SET_RANGE);
    for (; rc == 0; rc = mdb_cursor_get(cursor, &key, &data, MDB_NEXT)) {
        struct paxos_entry entry;
        uint64_t sum;
        if (!entry_read(s->opened.store_id, &key, &data, &entry, &sum)) return -1;
        if (entry.slot <= s->slot_last || entry.slot <= s->opened.chosen) return -1;
        if (s->read_count >= s->opened.entry_count) return -1;
        if (s->accepted_count == capacity) {
            capacity = capacity ? 2 * capacity : 16;
            s->accepted = alloc_resize(heap_alloc(), s->accepted, capacity * sizeof *s->accepted);
        }
        s->accepted[s->accepted_count++] = entry;
        buf_append_slice(&s->accepted_values, entry.value);
        s->slot_last = entry.slot;
        s->read_count++;
        s->read_sum += sum;
        *slot_bad = entry.slot + 1;
    }
    if (rc != MDB_NOTFOUND) return -1;
    mdb_cursor_close(cursor);
    mdb_txn_reset(s->reader);
    point_into(&s->accepted_values, s->accepted, s->accepted_count);
    if (s->slot_last < s->opened.chosen) s->slot_last = s->opened.chosen;
    return 0;
}

static void *commit_thread(void *argument);

static int start_thread(struct store *s, char *error, size_t bytes) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the loop */
    const int rc = pthread_create(&s->thread, NULL, commit_thread, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) return say(error, bytes, "cannot start the commit thread: %s", strerror(rc));
    s->running = true;
    return 0;
}

static int open_all(struct store *s, char *error, size_t bytes) {
    struct environment_open o = {.error = error, .error_bytes = bytes};
    paxos_slot slot_bad = 0;
    if (take_directory(s, error, bytes) != 0) return -1;
    snprintf(o.path, sizeof o.path, "%s/log", s->directory);
    s->failed = true; /* until we know better: a damaged environment is not touched again, not even to close it */
    if (guarded(open_environment, s, &o) != 0)
        return o.told ? -1 : say_damaged(s, error, bytes, "its pages cannot be read");
    if (guarded(check_metas, s, NULL) != 0)
        return say_damaged(s, error, bytes, "its first pages contradict each other or the record they lead to");
    if (guarded(open_state, s, &o) != 0)
        return o.told ? -1
                      : say_damaged(s, error, bytes, "the record of its state cannot be read or is not the newest");
    if (guarded(read_accepted, s, &slot_bad) != 0)
        return say_slot_damaged(s, error, bytes, slot_bad, "cannot be read or fails its checksum");
    s->failed = false;
    char parent[4096];
    snprintf(parent, sizeof parent, "%s/..", s->directory);
    if (file_sync_directory(o.path) != 0 || file_sync_directory(s->directory) != 0 || file_sync_directory(parent) != 0)
        return say(error, bytes, "cannot sync the data directory %s: %s", s->directory, strerror(errno));
    s->state = s->opened;
    s->found = s->opened.chosen;
    s->found_cut = s->cut = s->opened.cut;
    return start_thread(s, error, bytes);
}

int store_open(const struct store_config *config, struct store **ret_store, char *error, size_t error_bytes) {
    const struct alloc *a = heap_alloc();
    struct store *s = alloc_get0(a, sizeof *s);
    s->config = *config;
    s->directory = alloc_get(a, strlen(config->directory) + 1);
    memcpy(s->directory, config->directory, strlen(config->directory) + 1);
    s->config.directory = s->directory;
    s->lock_fd = -1;
    s->fetched.alloc = s->accepted_values.alloc = s->queue.entries.alloc = s->batch.entries.alloc = a;
    must(pthread_mutex_init(&s->mutex, NULL) == 0);
    must(pthread_cond_init(&s->work, NULL) == 0 && pthread_cond_init(&s->taken, NULL) == 0);
    if (open_all(s, error, error_bytes) != 0) {
        store_close(s);
        return -1;
    }
    *ret_store = s;
    return 0;
}

uint64_t store_id(const struct store *s) {
    return s->opened.store_id;
}

void store_saved(struct store *s, struct replica_saved *ret_saved) {
    *ret_saved = (struct replica_saved){
        .paxos = {.promised = s->opened.promised,
                  .lease_ms_max = s->opened.lease_ms_max,
                  .chosen = s->opened.chosen,
                  .cut = s->opened.cut,
                  .accepted = s->accepted,
                  .accepted_count = s->accepted_count,
                  .restarted = s->restarted},
        .record = s->opened.record,
    };
}

/* ---- replay ---- */

int store_start_after(struct store *s, paxos_slot slot, char *error, size_t error_bytes) {
    struct state *state = &s->opened;
    if (slot < state->cut) {
        char text[160];
        snprintf(text, sizeof text, "it begins after slot %llu and %s %llu", (unsigned long long)state->cut,
                 slot == 0 ? "there is no checkpoint of slot" : "the checkpoint is only of slot",
                 (unsigned long long)(slot == 0 ? state->cut : slot));
        return say_damaged(s, error, error_bytes, text);
    }
    s->base = slot;
    if (slot <= state->chosen) return 0;
    /* What the log has up to there may have been accepted only: it is not ours to tell as chosen. */
    state->chosen = state->cut = s->cut = slot;
    uint32_t gone = 0;
    while (gone < s->accepted_count && s->accepted[gone].slot <= slot) gone++;
    s->accepted_count -= gone;
    memmove(s->accepted, s->accepted + gone, s->accepted_count * sizeof *s->accepted);
    return 0;
}

struct replay {
    void (*fn)(void *context, paxos_slot slot, struct slice value);
    void *context;
    paxos_slot slot;  /* expected, or the one that is wrong */
    paxos_slot first; /* in the log */
};

/* Every entry up to what the record calls chosen: below the cut whatever is left, above it all. */
static int replay_chosen(struct store *s, void *argument) {
    struct replay *r = argument;
    MDB_cursor *cursor;
    MDB_val key, data;
    if (mdb_txn_renew(s->reader) != 0) return -1;
    if (mdb_cursor_open(s->reader, s->log_dbi, &cursor) != 0) return -1;
    paxos_slot last = 0;
    int rc = mdb_cursor_get(cursor, &key, &data, MDB_FIRST);
    for (; rc == 0 && last < s->found; rc = mdb_cursor_get(cursor, &key, &data, MDB_NEXT)) {
        struct paxos_entry entry;
        uint64_t sum;
        r->slot = last + 1;
        if (!entry_read(s->opened.store_id, &key, &data, &entry, &sum) || entry.slot <= last) return -1;
        if (r->first == 0) r->first = entry.slot;
        if (entry.slot > s->found) break;
        r->slot = last < s->found_cut ? s->found_cut + 1 : last + 1;
        if (entry.slot > r->slot) return -1;
        if (++s->read_count > s->opened.entry_count) return -1;
        last = entry.slot;
        s->read_sum += sum;
        if (entry.slot <= s->base) continue;
        sigjmp_buf *place = guard;
        guard = NULL; /* a fault in the state machine is not a damaged page; the value has been read through already */
        r->fn(r->context, entry.slot, entry.value);
        guard = place;
    }
    r->slot = (last < s->found_cut ? s->found_cut : last) + 1;
    if (rc != 0 && rc != MDB_NOTFOUND) return -1;
    if (last < s->found && s->found > s->found_cut) return -1;
    mdb_cursor_close(cursor);
    mdb_txn_reset(s->reader);
    return 0;
}

int store_replay(struct store *s, void (*fn)(void *context, paxos_slot slot, struct slice value), void *context,
                 char *error, size_t error_bytes) {
    struct replay r = {.fn = fn, .context = context};
    int result = guarded(replay_chosen, s, &r);
    if (result != 0) {
        say_slot_damaged(s, error, error_bytes, r.slot, "is missing, cannot be read or fails its checksum");
    } else if (s->read_count != s->opened.entry_count || s->read_sum != s->opened.entry_sum) {
        char text[128];
        snprintf(text, sizeof text, "it holds %llu entries and should hold %llu, or others than it should",
                 (unsigned long long)s->read_count, (unsigned long long)s->opened.entry_count);
        result = say_damaged(s, error, error_bytes, text);
    }
    alloc_put(heap_alloc(), s->accepted);
    s->accepted = NULL;
    s->accepted_count = 0;
    buf_release(&s->accepted_values);
    pthread_mutex_lock(&s->mutex);
    if (result != 0) {
        s->failed = true; /* so that closing leaves LMDB alone */
        snprintf(s->error, sizeof s->error, "%s", error);
    } else if (s->cut > s->found_cut || (r.first != 0 && r.first <= s->cut)) { /* what an earlier life began */
        s->cut_wanted = s->cut;
        s->cutting = true;
        pthread_cond_signal(&s->work);
    }
    pthread_mutex_unlock(&s->mutex);
    return result;
}

/* ---- writing ---- */

static bool out_has_work(const struct paxos_output *out) {
    return out != NULL &&
           (out->save_promise || out->save_lease_ms != 0 || out->save_chosen != 0 || out->save_count != 0);
}

static void queue_output(struct pending *q, const struct paxos_output *out) {
    if (out->save_promise) {
        q->has_promise = true;
        q->promised = out->promised;
    }
    if (out->save_lease_ms != 0) q->lease_ms = out->save_lease_ms;
    if (out->save_chosen != 0) q->chosen = out->save_chosen;
    for (uint32_t i = 0; i < out->save_count; i++) {
        const struct paxos_entry *entry = &out->saves[i];
        must(entry->slot >= 1);
        const struct entry_head head = {.slot = entry->slot, .ballot = entry->ballot, .bytes = entry->value.bytes};
        buf_append(&q->entries, &head, sizeof head);
        buf_append_slice(&q->entries, entry->value);
    }
}

void store_save(struct store *s, uint64_t batch, const struct paxos_output *out, const struct identity_record *record) {
    pthread_mutex_lock(&s->mutex);
    struct pending *q = &s->queue;
    while (!s->failed && q->batch != 0 && q->entries.bytes >= s->config.queue_bytes_max)
        pthread_cond_wait(&s->taken, &s->mutex);
    must(batch > q->batch && batch > s->durable);
    if (q->batch == 0) {
        q->since_ms = clock_now_ms();
        if (q->entries.capacity > QUEUE_KEEP_BYTES) buf_release(&q->entries);
    }
    if (out_has_work(out)) {
        q->any = true;
        queue_output(q, out);
    }
    if (record != NULL) {
        q->any = q->has_record = true;
        q->record = *record;
    }
    q->batch = batch;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->mutex);
}

void store_cut(struct store *s, paxos_slot slot) {
    if (slot <= s->cut) return;
    s->cut = slot;
    pthread_mutex_lock(&s->mutex);
    s->cut_wanted = slot;
    s->cutting = true;
    pthread_cond_signal(&s->work);
    pthread_mutex_unlock(&s->mutex);
}

uint64_t store_durable(struct store *s, bool *ret_failed, char *error, size_t error_bytes) {
    pthread_mutex_lock(&s->mutex);
    const uint64_t durable = s->durable;
    *ret_failed = s->failed;
    if (s->failed) snprintf(error, error_bytes, "%s", s->error);
    pthread_mutex_unlock(&s->mutex);
    return durable;
}

uint64_t store_lag_ms(struct store *s, uint64_t now_ms) {
    pthread_mutex_lock(&s->mutex);
    uint64_t since = s->commit_since_ms;
    if (since == 0 && s->queue.batch != 0) since = s->queue.since_ms;
    pthread_mutex_unlock(&s->mutex);
    return since != 0 && now_ms > since ? now_ms - since : 0;
}

/* ---- the commit thread ---- */

static int put_entry(struct store *s, MDB_txn *txn, struct state *state, paxos_slot *slot_last,
                     const struct paxos_entry *entry) {
    uint8_t memory[8];
    MDB_val key = slot_key(entry->slot, memory), data;
    unsigned flags = MDB_RESERVE;
    if (entry->slot > *slot_last) {
        flags |= MDB_APPEND; /* fills pages to the brim instead of halving them */
        *slot_last = entry->slot;
        state->entry_count++;
    } else {
        const int rc = mdb_get(txn, s->log_dbi, &key, &data);
        if (rc == 0) {
            struct wire w = wire_of(slice_of(data.mv_data, data.mv_size));
            state->entry_sum -= wire_u64(&w);
        } else if (rc == MDB_NOTFOUND) {
            state->entry_count++;
        } else {
            return rc;
        }
    }
    const uint64_t sum = entry_sum(state->store_id, entry->slot, entry->ballot, entry->value);
    data = (MDB_val){.mv_size = ENTRY_HEAD_BYTES + entry->value.bytes};
    const int rc = mdb_put(txn, s->log_dbi, &key, &data, flags);
    if (rc != 0) return rc;
    struct buf b = fixed(data.mv_data, data.mv_size);
    wire_put_u64(&b, sum);
    wire_put_u64(&b, entry->ballot.round);
    wire_put_u16(&b, entry->ballot.node);
    buf_append_slice(&b, entry->value);
    state->entry_sum += sum;
    return 0;
}

/* Delete some of what lies at or below the cut; *ret_more: not all of it.  An LMDB code. */
static int delete_some(struct store *s, MDB_txn *txn, struct state *state, uint32_t entries, size_t bytes,
                       bool *ret_more) {
    MDB_cursor *cursor;
    MDB_val key, data;
    *ret_more = false;
    int rc = mdb_cursor_open(txn, s->log_dbi, &cursor);
    if (rc != 0) return rc;
    size_t gone = 0;
    for (rc = mdb_cursor_get(cursor, &key, &data, MDB_FIRST); rc == 0;
         rc = mdb_cursor_get(cursor, &key, &data, MDB_FIRST)) {
        if (key.mv_size != sizeof(paxos_slot)) rc = MDB_CORRUPTED;
        if (rc != 0 || slot_of(&key) > state->cut) break;
        *ret_more = entries == 0 || gone >= bytes;
        if (*ret_more) break;
        struct wire w = wire_of(slice_of(data.mv_data, data.mv_size));
        state->entry_sum -= wire_u64(&w);
        state->entry_count--;
        entries--;
        gone += data.mv_size;
        if ((rc = mdb_cursor_del(cursor, 0)) != 0) break;
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

/* One LMDB transaction for everything in `p`; an LMDB code. */
/* A commit whose last write fails, that of the meta page, leaves an old transaction there with the root of the one that
 * failed (env_write_meta of LMDB 0.9).  LMDB never looks at that page again; but check_metas, for which damage looks
 * the same, would refuse a store in which nothing is wrong.  So what was there before is put back, if the disk lets
 * us. */
static int commit_whole(struct store *s, MDB_txn *txn) {
    char before[META_END];
    MDB_stat stat;
    mdb_filehandle_t fd;
    int rc = mdb_env_stat(s->env, &stat);
    if (rc == 0) rc = mdb_env_get_fd(s->env, &fd);
    if (rc != 0) {
        mdb_txn_abort(txn);
        return rc;
    }
    const off_t page = (off_t)(mdb_txn_id(txn) & 1) * (off_t)stat.ms_psize;
    const bool known = pread(fd, before, sizeof before, page) == (ssize_t)sizeof before;
    rc = mdb_txn_commit(txn);
    if (rc != 0 && known) {
        const ssize_t put = pwrite(fd, before, sizeof before, page);
        (void)put; /* if it fails too, the next start says that the log is damaged, and so it is */
    }
    return rc;
}

static int commit(struct store *s, const struct pending *p, bool *ret_more) {
    MDB_txn *txn;
    struct state state = s->state;
    paxos_slot slot_last = s->slot_last;
    uint32_t added = 0;
    *ret_more = false;
    int rc = mdb_txn_begin(s->env, NULL, 0, &txn);
    if (rc != 0) return rc;
    if (p->chosen > state.chosen) state.chosen = p->chosen;
    if (p->cut > state.cut) state.cut = p->cut;
    if (state.cut > state.chosen) state.chosen = state.cut;
    for (size_t at = 0; rc == 0 && at < p->entries.bytes;) {
        struct entry_head head;
        memcpy(&head, p->entries.data + at, sizeof head);
        at += sizeof head;
        const struct paxos_entry entry = {
            .slot = head.slot, .ballot = head.ballot, .value = slice_of(p->entries.data + at, head.bytes)};
        at += head.bytes;
        if (entry.slot <= state.cut) continue; /* came late: nobody will ask for it */
        rc = put_entry(s, txn, &state, &slot_last, &entry);
        added++;
    }
    if (rc == 0 && state.cut > 0)
        rc = delete_some(s, txn, &state, added > CUT_ENTRIES / 2 ? 2 * added : CUT_ENTRIES,
                         p->entries.bytes > CUT_BYTES / 2 ? 2 * p->entries.bytes : CUT_BYTES, ret_more);
    if (p->has_promise) {
        must(ballot_compare(p->promised, state.promised) >= 0); /* P1 */
        state.promised = p->promised;
    }
    if (p->lease_ms > state.lease_ms_max) state.lease_ms_max = p->lease_ms;
    if (p->has_record) state.record = p->record;
    if (rc == 0) rc = state_put(s, txn, &state);
    if (rc != 0) {
        mdb_txn_abort(txn);
        return rc;
    }
    rc = commit_whole(s, txn);
    if (rc == 0) {
        s->state = state;
        s->slot_last = slot_last;
    }
    return rc;
}

/* Take everything that waits; false: nothing will come any more.  Called and left with the mutex held. */
static bool take_queue(struct store *s) {
    while (s->queue.batch == 0 && !s->cutting && !s->stopping && !s->failed) pthread_cond_wait(&s->work, &s->mutex);
    if (s->failed || (s->queue.batch == 0 && s->stopping)) return false; /* what is not deleted yet will be */
    const struct pending empty = s->batch;                               /* its buffer has nothing in it */
    s->batch = s->queue;
    s->queue = empty;
    s->batch.cut = s->cut_wanted;
    if (s->cutting) s->batch.any = true;
    s->cutting = false;
    s->commit_since_ms = s->batch.since_ms;
    pthread_cond_signal(&s->taken);
    return true;
}

static void *commit_thread(void *argument) {
    struct store *s = argument;
    pthread_mutex_lock(&s->mutex);
    while (take_queue(s)) {
        pthread_mutex_unlock(&s->mutex);
        bool more = false;
        const int rc = s->batch.any ? commit(s, &s->batch, &more) : 0;
        const bool tell = rc != 0 || s->batch.batch != 0;
        pthread_mutex_lock(&s->mutex);
        s->commit_since_ms = 0;
        if (rc == 0) {
            if (s->batch.batch != 0) s->durable = s->batch.batch;
            if (more) s->cutting = true;
        } else if (!s->failed) {
            s->failed = true;
            say_lmdb(s, s->error, sizeof s->error, "writing", rc);
        }
        struct buf entries = s->batch.entries;
        buf_clear(&entries);
        s->batch = (struct pending){.entries = entries};
        pthread_cond_signal(&s->taken);
        pthread_mutex_unlock(&s->mutex);
        if (tell) s->config.wake(s->config.context);
        pthread_mutex_lock(&s->mutex);
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

/* ---- reading for peers ---- */

struct fetch {
    paxos_slot from_slot, to_slot;
    size_t bytes_max;
    struct paxos_entry *entries;
    uint32_t entries_max, count;
    bool damaged;
};

static int fetch_entries(struct store *s, void *argument) {
    struct fetch *f = argument;
    uint8_t memory[8];
    MDB_cursor *cursor;
    MDB_val key = slot_key(f->from_slot, memory), data;
    if (mdb_txn_renew(s->reader) != 0) return -1;
    if (mdb_cursor_open(s->reader, s->log_dbi, &cursor) != 0) return -1;
    int rc = mdb_cursor_get(cursor, &key, &data, MDB_SET);
    while (rc == 0 && f->count < f->entries_max) {
        struct paxos_entry *entry = &f->entries[f->count];
        uint64_t sum;
        if (!entry_read(s->opened.store_id, &key, &data, entry, &sum)) {
            f->damaged = true;
            break;
        }
        if (entry->slot != f->from_slot + f->count) break;
        if (f->count > 0 && s->fetched.bytes + entry->value.bytes > f->bytes_max) break;
        buf_append_slice(&s->fetched, entry->value);
        f->count++;
        if (entry->slot == f->to_slot) break;
        rc = mdb_cursor_get(cursor, &key, &data, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    mdb_txn_reset(s->reader);
    return rc == 0 || rc == MDB_NOTFOUND ? 0 : -1;
}

uint32_t store_fetch(struct store *s, paxos_slot from_slot, paxos_slot to_slot, size_t bytes_max,
                     struct paxos_entry *entries, uint32_t entries_max) {
    struct fetch f = {.from_slot = from_slot,
                      .to_slot = to_slot,
                      .bytes_max = bytes_max,
                      .entries = entries,
                      .entries_max = entries_max};
    if (from_slot <= s->cut || to_slot < from_slot || entries_max == 0) return 0;
    pthread_mutex_lock(&s->mutex);
    const bool failed = s->failed;
    pthread_mutex_unlock(&s->mutex);
    if (failed) return 0;
    if (s->fetched.capacity > QUEUE_KEEP_BYTES) buf_release(&s->fetched);
    buf_clear(&s->fetched);
    if (guarded(fetch_entries, s, &f) != 0 || f.damaged) {
        pthread_mutex_lock(&s->mutex);
        if (!s->failed) {
            s->failed = true;
            say_slot_damaged(s, s->error, sizeof s->error, from_slot + f.count, "cannot be read or fails its checksum");
        }
        pthread_cond_signal(&s->work);
        pthread_mutex_unlock(&s->mutex);
        return 0;
    }
    point_into(&s->fetched, entries, f.count);
    return f.count;
}

static int read_first(struct store *s, void *argument) {
    paxos_slot *first = argument;
    MDB_cursor *cursor;
    MDB_val key, data;
    if (mdb_txn_renew(s->reader) != 0) return -1;
    if (mdb_cursor_open(s->reader, s->log_dbi, &cursor) != 0) return -1;
    const int rc = mdb_cursor_get(cursor, &key, &data, MDB_FIRST);
    if (rc == 0 && key.mv_size == sizeof *first) *first = slot_of(&key);
    mdb_cursor_close(cursor);
    mdb_txn_reset(s->reader);
    return 0;
}

paxos_slot store_first_slot(struct store *s) {
    paxos_slot first = UINT64_MAX;
    pthread_mutex_lock(&s->mutex);
    const bool failed = s->failed;
    pthread_mutex_unlock(&s->mutex);
    if (!failed) (void)guarded(read_first, s, &first);
    return first;
}

/* ---- room ---- */

struct room {
    uint64_t map_bytes;
};

/* What LMDB can still write: pages never used, and those that are free again.  (The list of free pages is a database of
 * its own, number 0: one record per transaction, which begins with a count.) */
static int read_room(struct store *s, void *argument) {
    struct room *r = argument;
    MDB_cursor *cursor;
    MDB_val key, data;
    MDB_envinfo info;
    MDB_stat stat;
    size_t pages = 0;
    if (mdb_env_info(s->env, &info) != 0 || mdb_env_stat(s->env, &stat) != 0) return -1;
    if (mdb_txn_renew(s->reader) != 0) return -1;
    if (mdb_cursor_open(s->reader, 0, &cursor) != 0) return -1;
    int rc;
    while ((rc = mdb_cursor_get(cursor, &key, &data, MDB_NEXT)) == 0) {
        size_t count;
        if (data.mv_size < sizeof count) return -1;
        memcpy(&count, data.mv_data, sizeof count);
        pages += count;
    }
    mdb_cursor_close(cursor);
    mdb_txn_reset(s->reader);
    const uint64_t used = ((uint64_t)info.me_last_pgno + 1) * stat.ms_psize;
    r->map_bytes = (info.me_mapsize > used ? info.me_mapsize - used : 0) + (uint64_t)pages * stat.ms_psize;
    return rc == MDB_NOTFOUND ? 0 : -1;
}

uint64_t store_room_bytes(struct store *s) {
    struct statvfs fs;
    struct room room = {0};
    pthread_mutex_lock(&s->mutex);
    const bool failed = s->failed;
    pthread_mutex_unlock(&s->mutex);
    if (failed || guarded(read_room, s, &room) != 0 || statvfs(s->directory, &fs) != 0) return 0;
    const uint64_t disk = (uint64_t)fs.f_bavail * fs.f_frsize;
    return disk < room.map_bytes ? disk : room.map_bytes;
}

/* ---- the end ---- */

void store_close(struct store *s) {
    if (s == NULL) return;
    if (s->running) {
        pthread_mutex_lock(&s->mutex);
        s->stopping = true;
        pthread_cond_signal(&s->work);
        pthread_mutex_unlock(&s->mutex);
        pthread_join(s->thread, NULL);
    }
    if (s->failed && s->env != NULL) {
        static struct store *abandoned; /* still open, and never freed */
        s->next = abandoned;
        abandoned = s;
        if (s->lock_fd >= 0) close(s->lock_fd);
        return;
    }
    if (s->reader != NULL) mdb_txn_abort(s->reader);
    if (s->env != NULL) mdb_env_close(s->env);
    if (s->lock_fd >= 0) close(s->lock_fd);
    const struct alloc *a = heap_alloc();
    alloc_put(a, s->accepted);
    buf_release(&s->accepted_values);
    buf_release(&s->fetched);
    buf_release(&s->queue.entries);
    buf_release(&s->batch.entries);
    alloc_put(a, s->directory);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->work);
    pthread_cond_destroy(&s->taken);
    alloc_put(a, s);
}
