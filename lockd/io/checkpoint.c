/* checkpoint.c - see checkpoint.h.
 *
 * The child may use memory and the disk and nothing else of this process: no loop, no LMDB, no lock that another thread
 * may have held when it was forked (malloc's are made good by the C library). */
#include "lockd/io/checkpoint.h"
#include "common/io/file.h"
#include "common/io/heap.h"
#include "common/io/say.h"
#include "common/wire.h"
#include <event2/event_struct.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

enum {
    CHECKPOINT_FORMAT = 0x31504c48, /* "HLP1" in the file */
    SUM_BYTES = 8,
    HEAD_BYTES = SUM_BYTES + 4 + 4 + 8 + 8 + 8 + 8 + 8 + 8,
    HEAD_ROOM = 4096,             /* the state begins here */
    SYNC_BYTES = 4 * 1024 * 1024, /* so that the log's syncs never wait for much of ours */
    PATH_BYTES = 4096,
    NICE = 10
};

/* A child and how its end is noticed. */
struct job {
    struct checkpoint *all;
    pid_t pid;
    int pid_fd;
    paxos_slot slot;
    struct event event;
    struct job *next;
};

struct checkpoint {
    struct checkpoint_config config;
    char directory[PATH_BYTES - 32];
    struct checkpoint_head head;
    int fd; /* of the newest, -1: none */
    uint64_t *sums;
    struct job *running; /* NULL: none */
    struct job *dying;   /* aborted and not gone yet */
    char *chunk;
};

/* ---- texts and names ---- */

static int say_damaged(const struct checkpoint *c, char *error, size_t bytes, const char *what) {
    return say(error, bytes,
               "the checkpoint %s/checkpoint is damaged: %s. This node must not vote with it. If the other nodes are a "
               "healthy majority, stop, move %s away and start again: the new store does not vote, and says the "
               "NODE.ADD command that takes it in. Otherwise restore the directory from a copy",
               c->directory, what, c->directory);
}

static const char *path_of(const struct checkpoint *c, const char *name, char path[static PATH_BYTES]) {
    snprintf(path, PATH_BYTES, "%s/%s", c->directory, name);
    return path;
}

/* ---- the file ---- */

static uint64_t chunk_count(uint64_t bytes) {
    return (bytes + CHECKPOINT_CHUNK_BYTES - 1) / CHECKPOINT_CHUNK_BYTES;
}
static size_t chunk_bytes(uint64_t bytes, uint64_t index) {
    const uint64_t left = bytes - index * CHECKPOINT_CHUNK_BYTES;
    return left < CHECKPOINT_CHUNK_BYTES ? (size_t)left : CHECKPOINT_CHUNK_BYTES;
}

static uint64_t sum_of(uint64_t store_id, paxos_slot slot, uint64_t index, struct slice bytes) {
    const uint64_t place[3] = {store_id, slot, index};
    return XXH3_64bits_withSeed(bytes.data, bytes.bytes, XXH3_64bits(place, sizeof place));
}

static void head_write(const struct checkpoint_head *head, uint64_t store_id, uint64_t sums_hash,
                       char page[static HEAD_ROOM]) {
    memset(page, 0, HEAD_ROOM);
    struct buf b = {.data = page, .capacity = HEAD_ROOM};
    wire_put_u64(&b, 0); /* the checksum, below */
    wire_put_u32(&b, CHECKPOINT_FORMAT);
    wire_put_u32(&b, CHECKPOINT_CHUNK_BYTES);
    wire_put_u64(&b, store_id);
    wire_put_u64(&b, head->cluster_id);
    wire_put_u64(&b, head->slot);
    wire_put_u64(&b, head->bytes);
    wire_put_u64(&b, head->hash);
    wire_put_u64(&b, sums_hash);
    const uint64_t sum = XXH3_64bits(page + SUM_BYTES, HEAD_ROOM - SUM_BYTES);
    b.bytes = 0;
    wire_put_u64(&b, sum);
}

/* NULL, or what is wrong. */
static const char *head_read(const char page[static HEAD_ROOM], uint64_t store_id, struct checkpoint_head *ret_head,
                             uint64_t *ret_sums_hash) {
    struct wire w = wire_of(slice_of(page, HEAD_BYTES));
    if (wire_u64(&w) != XXH3_64bits(page + SUM_BYTES, HEAD_ROOM - SUM_BYTES)) return "its head fails its checksum";
    if (wire_u32(&w) != CHECKPOINT_FORMAT || wire_u32(&w) != CHECKPOINT_CHUNK_BYTES)
        return "it has a format that this version of lockd does not know";
    if (wire_u64(&w) != store_id) return "it was written by another store";
    ret_head->cluster_id = wire_u64(&w);
    ret_head->slot = wire_u64(&w);
    ret_head->bytes = wire_u64(&w);
    ret_head->hash = wire_u64(&w);
    *ret_sums_hash = wire_u64(&w);
    return ret_head->slot != 0 && ret_head->bytes < INT64_MAX / 2 ? NULL : "its head makes no sense";
}

/* All of it, however often the system stops in between; -errno, -EIO for an end before its time. */
static int read_all(int fd, void *into, size_t bytes, uint64_t at) {
    for (char *to = into; bytes > 0;) {
        const ssize_t got = pread(fd, to, bytes, (off_t)at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got < 0 ? -errno : -EIO;
        to += got;
        at += (uint64_t)got;
        bytes -= (size_t)got;
    }
    return 0;
}

/* Open the file and believe its head and its sums; NULL, or what is wrong.  A file that is not there: slot 0. */
static const char *look(struct checkpoint *c, char text[static 128]) {
    char path[PATH_BYTES], page[HEAD_ROOM];
    struct checkpoint_head head = {0};
    struct stat st;
    uint64_t sums_hash = 0;
    const int fd = open(path_of(c, "checkpoint", path), O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return NULL;
    int rc = fd < 0 || fstat(fd, &st) != 0 ? -errno : 0;
    const char *wrong = NULL;
    if (rc == 0 && st.st_size < HEAD_ROOM) wrong = "it is too short";
    if (rc == 0 && wrong == NULL && (rc = read_all(fd, page, sizeof page, 0)) == 0)
        wrong = head_read(page, c->config.store_id, &head, &sums_hash);
    const uint64_t count = chunk_count(head.bytes);
    if (rc == 0 && wrong == NULL && (uint64_t)st.st_size != HEAD_ROOM + head.bytes + count * SUM_BYTES)
        wrong = "it has another length than it should";
    uint64_t *sums = NULL;
    if (rc == 0 && wrong == NULL) {
        sums = alloc_get(heap_alloc(), (size_t)(count + 1) * sizeof *sums);
        rc = read_all(fd, sums, (size_t)count * sizeof *sums, HEAD_ROOM + head.bytes);
        if (rc == 0 && XXH3_64bits(sums, (size_t)count * sizeof *sums) != sums_hash)
            wrong = "its checksums fail their own";
    }
    if (rc != 0 || wrong != NULL) {
        if (fd >= 0) close(fd);
        alloc_put(heap_alloc(), sums);
        if (rc == 0) return wrong;
        snprintf(text, 128, "it cannot be read: %s", strerror(-rc));
        return text;
    }
    if (c->fd >= 0) close(c->fd);
    alloc_put(heap_alloc(), c->sums);
    c->fd = fd;
    c->sums = sums;
    c->head = head;
    return NULL;
}

int checkpoint_open(const struct checkpoint_config *config, struct checkpoint **ret_checkpoint, char *error,
                    size_t error_bytes) {
    struct checkpoint *c = alloc_get0(heap_alloc(), sizeof *c);
    char path[PATH_BYTES], text[128];
    c->config = *config;
    c->fd = -1;
    if (strlen(config->directory) >= sizeof c->directory) {
        checkpoint_close(c);
        return say(error, error_bytes, "the path of the data directory is too long: %s (data-dir)", config->directory);
    }
    memcpy(c->directory, config->directory, strlen(config->directory) + 1);
    (void)unlink(path_of(c, "checkpoint.tmp", path)); /* whatever it is: nobody will ever read it */
    const char *wrong = look(c, text);
    if (wrong != NULL) {
        say_damaged(c, error, error_bytes, wrong);
        checkpoint_close(c);
        return -1;
    }
    *ret_checkpoint = c;
    return 0;
}

const struct checkpoint_head *checkpoint_now(const struct checkpoint *c) {
    return &c->head;
}

/* ---- reading it whole ---- */

static struct {
    const char *data;
    size_t bytes;
    sigjmp_buf place;
} mapped; /* a fault in here is the file's; data is NULL while none is mapped */

static void on_bus(int number, siginfo_t *info, void *context) {
    const char *at = info->si_addr;
    (void)context;
    if (mapped.data != NULL && at >= mapped.data && at < mapped.data + mapped.bytes) siglongjmp(mapped.place, 1);
    signal(number, SIG_DFL); /* not ours: fault again and die of it */
}

struct loading {
    int (*load)(void *context, paxos_slot slot, struct slice state, char *why, size_t why_bytes);
    void *context;
    char why[CHECKPOINT_ERROR_BYTES];
};

static int load_mapped(const struct checkpoint *c, struct loading *l) {
    const char *state = mapped.data + HEAD_ROOM;
    for (uint64_t i = 0; i < chunk_count(c->head.bytes); i++) {
        const struct slice chunk = slice_of(state + i * CHECKPOINT_CHUNK_BYTES, chunk_bytes(c->head.bytes, i));
        if (sum_of(c->config.store_id, c->head.slot, i, chunk) == c->sums[i]) continue;
        return say(l->why, sizeof l->why, "its bytes from %llu on fail their checksum",
                   (unsigned long long)(i * CHECKPOINT_CHUNK_BYTES));
    }
    return l->load(l->context, c->head.slot, slice_of(state, (size_t)c->head.bytes), l->why, sizeof l->why);
}

int checkpoint_load(struct checkpoint *c,
                    int (*load)(void *context, paxos_slot slot, struct slice state, char *why, size_t why_bytes),
                    void *context, char *error, size_t error_bytes) {
    const size_t bytes = HEAD_ROOM + (size_t)c->head.bytes;
    must(c->fd >= 0 && mapped.data == NULL);
    char *data = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, c->fd, 0);
    if (data == MAP_FAILED)
        return say(error, error_bytes, "cannot map the checkpoint %s/checkpoint: %s", c->directory, strerror(errno));
    (void)madvise(data, bytes, MADV_SEQUENTIAL);
    struct loading *l = alloc_get0(heap_alloc(), sizeof *l);
    struct sigaction catch = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_NODEFER}, before;
    l->load = load;
    l->context = context;
    mapped.bytes = bytes;
    mapped.data = data;
    sigaction(SIGBUS, &catch, &before);
    int result = -1;
    if (sigsetjmp(mapped.place, 1) == 0) {
        const int answer = load_mapped(c, l);
        result = answer;
    } else {
        snprintf(l->why, sizeof l->why, "it cannot be read: %s", strerror(EIO));
    }
    mapped.data = NULL;
    sigaction(SIGBUS, &before, NULL);
    munmap(data, bytes);
    if (result != 0) say_damaged(c, error, error_bytes, l->why);
    alloc_put(heap_alloc(), l);
    return result == 0 ? 0 : -1;
}

/* ---- the child ---- */

struct writer {
    const struct checkpoint *c;
    struct checkpoint_head head;
    int fd, error;
    char *chunk;
    size_t used; /* of the chunk */
    uint64_t *sums, sum_room;
    uint64_t unsynced;
    XXH3_state_t hash;
};

static int write_all(struct writer *w, const void *data, size_t bytes) {
    for (const char *from = data; bytes > 0 && w->error == 0;) {
        const ssize_t put = write(w->fd, from, bytes);
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) {
            w->error = put < 0 ? errno : EIO;
            break;
        }
        from += put;
        bytes -= (size_t)put;
        w->unsynced += (uint64_t)put;
    }
    if (w->error == 0 && w->unsynced >= SYNC_BYTES) {
        w->unsynced = 0;
        if (fdatasync(w->fd) != 0) w->error = errno;
    }
    return w->error;
}

static int end_chunk(struct writer *w) {
    const uint64_t index = chunk_count(w->head.bytes) - 1;
    if (index >= w->sum_room) {
        w->sum_room = w->sum_room ? 2 * w->sum_room : 64;
        w->sums = alloc_resize(heap_alloc(), w->sums, (size_t)w->sum_room * sizeof *w->sums);
    }
    const struct slice chunk = slice_of(w->chunk, w->used);
    w->sums[index] = sum_of(w->c->config.store_id, w->head.slot, index, chunk);
    XXH3_64bits_update(&w->hash, w->chunk, w->used);
    w->used = 0;
    return write_all(w, chunk.data, chunk.bytes);
}

static int put_bytes(void *context, struct slice bytes) {
    struct writer *w = context;
    while (bytes.bytes > 0 && w->error == 0) {
        const size_t room = CHECKPOINT_CHUNK_BYTES - w->used, part = bytes.bytes < room ? bytes.bytes : room;
        memcpy(w->chunk + w->used, bytes.data, part);
        w->used += part;
        w->head.bytes += part;
        bytes = slice_of(bytes.data + part, bytes.bytes - part);
        if (w->used == CHECKPOINT_CHUNK_BYTES) end_chunk(w);
    }
    return w->error;
}

/* The whole file, synced; an errno. */
static int write_file(struct writer *w, checkpoint_save *save, const void *state) {
    char page[HEAD_ROOM] = {0};
    w->chunk = alloc_get(heap_alloc(), CHECKPOINT_CHUNK_BYTES);
    XXH3_64bits_reset(&w->hash);
    write_all(w, page, sizeof page);
    if (w->error == 0 && save(state, put_bytes, w) != 0 && w->error == 0) w->error = ECANCELED;
    if (w->error == 0 && w->used > 0) end_chunk(w);
    const size_t sums_bytes = (size_t)chunk_count(w->head.bytes) * sizeof *w->sums;
    write_all(w, w->sums, sums_bytes);
    w->head.hash = XXH3_64bits_digest(&w->hash);
    head_write(&w->head, w->c->config.store_id, XXH3_64bits(w->sums, sums_bytes), page);
    if (w->error == 0 && pwrite(w->fd, page, sizeof page, 0) != (ssize_t)sizeof page) w->error = EIO;
    if (w->error == 0 && fsync(w->fd) != 0) w->error = errno;
    return w->error;
}

/* C4, and then C2. */
static void leave_parent(const struct checkpoint *c, pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(ECANCELED); /* it went before we could ask for that */
    for (const struct job *job = c->dying; job != NULL; job = job->next) {
        struct pollfd end = {.fd = job->pid_fd, .events = POLLIN};
        while (poll(&end, 1, -1) < 0 && errno == EINTR) {
        }
    }
    close(STDIN_FILENO);
    close(STDOUT_FILENO);
    if (syscall(SYS_close_range, STDERR_FILENO + 1, ~0u, 0) != 0) {
        struct rlimit limit = {.rlim_cur = 1 << 20};
        getrlimit(RLIMIT_NOFILE, &limit);
        for (int fd = STDERR_FILENO + 1; (rlim_t)fd < limit.rlim_cur && fd < 1 << 20; fd++) close(fd);
    }
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
    signal(SIGXFSZ, SIG_IGN); /* a limit on the length of files is an error like a full disk */
    sigprocmask(SIG_SETMASK, &none, NULL);
    (void)setpriority(PRIO_PROCESS, 0, NICE);
    const int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC); /* rather this process than the node */
    if (fd < 0) return;
    (void)!write(fd, "500", 3);
    close(fd);
}

static _Noreturn void write_checkpoint(const struct checkpoint *c, paxos_slot slot, uint64_t cluster_id,
                                       checkpoint_save *save, const void *state) {
    char tmp[PATH_BYTES], path[PATH_BYTES];
    path_of(c, "checkpoint.tmp", tmp);
    struct writer w = {.c = c, .head = {.slot = slot, .cluster_id = cluster_id}};
    w.fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (w.fd < 0) _exit(errno);
    if (write_file(&w, save, state) != 0) {
        (void)unlink(tmp); /* on a full disk every byte counts */
        _exit(w.error);
    }
    if (rename(tmp, path_of(c, "checkpoint", path)) != 0) _exit(errno);
    _exit(file_sync_directory(c->directory) == 0 ? 0 : errno);
}

/* ---- beginning and end ---- */

static void free_job(struct job *job) {
    event_del(&job->event);
    close(job->pid_fd);
    alloc_put(heap_alloc(), job);
}

static void tell_end(struct checkpoint *c, paxos_slot slot, int status) {
    char error[CHECKPOINT_ERROR_BYTES], text[128];
    if (WIFSIGNALED(status)) {
        snprintf(error, sizeof error, "the process that wrote it was killed by signal %d", WTERMSIG(status));
    } else if (WEXITSTATUS(status) != 0) {
        struct statvfs fs;
        unsigned long long free_mib = 0;
        if (statvfs(c->directory, &fs) == 0) free_mib = (unsigned long long)fs.f_bavail * fs.f_frsize >> 20;
        snprintf(error, sizeof error, "%s (%llu MiB are free in %.512s)", strerror(WEXITSTATUS(status)), free_mib,
                 c->directory);
    } else {
        const char *wrong = look(c, text);
        if (wrong == NULL && c->head.slot == slot) {
            c->config.done(c->config.context, slot, NULL);
            return;
        }
        snprintf(error, sizeof error, "what was written is not what can be read: %s",
                 wrong != NULL ? wrong : "it is of another slot");
    }
    c->config.done(c->config.context, slot, error);
}

static void on_end(int fd, short what, void *context) {
    struct job *job = context;
    struct checkpoint *c = job->all;
    int status;
    (void)fd;
    (void)what;
    const pid_t ended = waitpid(job->pid, &status, WNOHANG);
    if (ended == 0 || (ended < 0 && errno == EINTR)) return;
    if (ended < 0) status = ECHILD << 8; /* somebody else took its status: as good as failed */
    const paxos_slot slot = job->slot;
    const bool aborted = job != c->running;
    for (struct job **at = &c->dying; *at != NULL; at = &(*at)->next) {
        if (*at != job) continue;
        *at = job->next;
        break;
    }
    if (!aborted) c->running = NULL;
    free_job(job);
    if (!aborted) tell_end(c, slot, status);
}

int checkpoint_begin(struct checkpoint *c, paxos_slot slot, uint64_t cluster_id, checkpoint_save *save,
                     const void *state) {
    sigset_t all, before;
    if (slot == 0 || slot < c->head.slot) return -EINVAL;
    checkpoint_abort(c);
    const pid_t parent = getpid();
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before); /* the child takes none for us */
    const pid_t pid = fork();
    if (pid == 0) {
        leave_parent(c, parent);
        write_checkpoint(c, slot, cluster_id, save, state);
    }
    const int error = pid < 0 ? errno : 0;
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) return -error;
    const int pid_fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pid_fd < 0) {
        const int why = errno;
        kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0);
        return -why;
    }
    struct job *job = alloc_get0(heap_alloc(), sizeof *job);
    *job = (struct job){.all = c, .pid = pid, .pid_fd = pid_fd, .slot = slot};
    must(event_assign(&job->event, c->config.base, pid_fd, EV_READ | EV_PERSIST, on_end, job) == 0);
    must(event_add(&job->event, NULL) == 0);
    c->running = job;
    return 0;
}

long checkpoint_running(const struct checkpoint *c) {
    return c->running != NULL ? c->running->pid : 0;
}

void checkpoint_abort(struct checkpoint *c) {
    struct job *job = c->running;
    if (job == NULL) return;
    kill(job->pid, SIGKILL);
    c->running = NULL;
    job->next = c->dying;
    c->dying = job;
}

void checkpoint_close(struct checkpoint *c) {
    if (c == NULL) return;
    checkpoint_abort(c);
    while (c->dying != NULL) {
        struct job *job = c->dying;
        c->dying = job->next;
        (void)waitpid(job->pid, NULL, 0);
        free_job(job);
    }
    if (c->fd >= 0) close(c->fd);
    alloc_put(heap_alloc(), c->sums);
    alloc_put(heap_alloc(), c->chunk);
    alloc_put(heap_alloc(), c);
}

/* ---- reading it in pieces ---- */

int checkpoint_read(struct checkpoint *c, paxos_slot slot, uint64_t offset, struct slice *ret_bytes) {
    if (slot == 0 || slot != c->head.slot) return -ESTALE;
    if (offset >= c->head.bytes) return -ERANGE;
    if (c->chunk == NULL) c->chunk = alloc_get(heap_alloc(), CHECKPOINT_CHUNK_BYTES);
    const uint64_t index = offset / CHECKPOINT_CHUNK_BYTES;
    const struct slice chunk = slice_of(c->chunk, chunk_bytes(c->head.bytes, index));
    const int rc = read_all(c->fd, c->chunk, chunk.bytes, HEAD_ROOM + index * CHECKPOINT_CHUNK_BYTES);
    if (rc != 0) return rc;
    if (sum_of(c->config.store_id, slot, index, chunk) != c->sums[index]) return -EBADMSG;
    const size_t skip = (size_t)(offset % CHECKPOINT_CHUNK_BYTES);
    *ret_bytes = slice_of(chunk.data + skip, chunk.bytes - skip);
    return 0;
}
