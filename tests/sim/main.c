/* main.c - runs seeds.  Each: faults for some seconds, then none, and a random majority comes back (not always
 * everybody); the cluster must settle new work within SETTLE_MS_MAX; then a calm stretch with one node half cut off,
 * which must not move the leader (P7), and a partial partition in which only some can lead, and must; then nothing may
 * be lost.
 *
 *   sim --seeds 1..300 [--object paxos|replica] [--nodes N] [--jobs N] [--stop]     exit 0: no violation
 *   sim --seed 42 [--object ...]                                                    the same run as a readable trace
 *
 * Without --object each seed is run with both. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "tests/sim/check_paxos.h"
#include "tests/sim/object.h"
#ifdef HOLDFAST_MUTANTS
#include "lockd/core/bug.h"
unsigned planted_bug;
#endif

/* STAR: from all links but those of one node to a leader there; many kinds of faults at once may take longer. */
enum {
    SETTLE_MS_MAX = 10000,
    STAR_MS_MAX = 2500,
    QUIET_MS = 5000,
    CALM_MS = 3000,
    JOBS_MAX = 16,
    ABORTED = 70,
    RUN_S_MAX = 60
};

static const struct sim_object *const objects[] = {&sim_paxos, &sim_replica};
enum { OBJECTS = sizeof objects / sizeof objects[0] };
static char current[160]; /* how to repeat what runs now */

static void on_abort(int number) {
    static const char aborted[] = "\nnot ok - aborted\n  repeat with: ",
                      hangs[] = "\nnot ok - hang: a turn does not end\n  repeat with: ";
    if (number == SIGPROF)
        (void)!write(STDOUT_FILENO, hangs, sizeof hangs - 1);
    else
        (void)!write(STDOUT_FILENO, aborted, sizeof aborted - 1);
    (void)!write(STDOUT_FILENO, current, strlen(current));
    (void)!write(STDOUT_FILENO, "\n", 1);
    _exit(ABORTED);
}

struct result {
    uint64_t seed, object; /* which of objects[] */
    bool failed;
    char failure[512];
    uint64_t virtual_us, events, hash, settle_ms, acknowledged, slots, rivals;
};

static void cut_all(struct world *w, bool cut) {
    for (uint16_t i = 0; i < w->node_count; i++) {
        for (uint16_t j = 0; j < w->node_count; j++) world_cut(w, i, j, cut);
    }
}

static bool all_there(const struct world *w) {
    for (uint16_t i = 0; i < w->node_count; i++) {
        if (w->nodes[i].gone || w->nodes[i].wiped) return false;
    }
    return true;
}
static bool must_lead(struct world *w, int leader, const char *why) {
    if (w->failed || w->object->leader(w) == leader) return !w->failed;
    world_fail(w, "P7: n%d led, and %s moved that", leader, why);
    return false;
}
/* A working leader stays, whatever one node does that is deaf, dumb or cut off from the leader alone. */
static void calm_stretch(struct world *w) {
    const int leader = w->object->leader(w);
    if (leader < 0) {
        world_fail(w, "live: no leader after everything had settled");
        return;
    }
    const uint16_t n = w->node_count;
    uint16_t odd = (uint16_t)world_below(w, n);
    const uint64_t way = world_below(w, 3);
    for (uint16_t i = 0; i < n && !check_can_spare(w, odd); i++) odd = i;
    if (odd != leader && check_can_spare(w, odd)) {
        static const char *const words[] = {"is deaf", "is dumb", "and the leader do not reach each other"};
        world_trace(w, "n%u %s", odd, words[way]);
        for (uint16_t i = 0; i < n; i++) {
            if (i == odd || (way == 2 && i != leader)) continue;
            if (way != 1) world_cut(w, i, odd, true);
            if (way != 0) world_cut(w, odd, i, true);
        }
    }
    for (int stage = 0; stage < 2; stage++) {
        const uint64_t until = w->now_us + CALM_MS * 1000;
        while (w->now_us < until &&
               must_lead(w, leader, stage == 0 ? "one node that is half cut off" : "one node that came back"))
            world_run_until(w, w->now_us + 20000);
        cut_all(w, false);
    }
}

/* New work must be finished everywhere in bounded time; returns how long it took. */
static uint64_t settle(struct world *w) {
    w->object->heal(w);
    const uint64_t begin = w->now_us;
    while (!w->failed && w->now_us < begin + SETTLE_MS_MAX * 1000) {
        world_run_until(w, w->now_us + 10000);
        if (!w->failed && w->object->settled(w)) return (w->now_us - begin) / 1000;
    }
    world_fail(w, "live: not settled %d ms after the faults ended", SETTLE_MS_MAX);
    return SETTLE_MS_MAX;
}

static void both_ways(struct world *w, uint16_t a, uint16_t b, bool cut) {
    world_cut(w, a, b, cut);
    world_cut(w, b, a, cut);
}
/* Everybody reaches the hub and nobody else: only the hub can lead (from four nodes on), and it must soon; even if it
 * was cut off before and is behind (the quorum-loss and constrained-election cases of partial partitions). */
static void star_stretch(struct world *w) {
    const uint16_t n = w->node_count;
    uint16_t hub = (uint16_t)world_below(w, n);
    while (!check_can_lead(w, hub)) hub = (uint16_t)((hub + 1) % n);
    if (world_chance(w, 400000)) {
        world_trace(w, "n%u is cut off, and will be the hub", hub);
        for (uint16_t i = 0; i < n; i++) both_ways(w, i, hub, true);
        world_run_until(w, w->now_us + world_between(w, 100, 2000) * 1000);
    }
    world_trace(w, "n%u is the hub", hub);
    cut_all(w, true);
    for (uint16_t i = 0; i < n; i++) both_ways(w, i, hub, false);
    const uint64_t took_ms = settle(w);
    if (!w->failed && took_ms > STAR_MS_MAX)
        world_fail(w, "live: the hub led only after %llu ms", (unsigned long long)took_ms);
    for (int i = 0; i < 100 && !w->failed; i++) {
        if (w->object->leader(w) != hub)
            world_fail(w, "P7: n%u is the hub, n%d leads", hub, w->object->leader(w));
        else
            world_run_until(w, w->now_us + 20000);
    }
    cut_all(w, false);
}
/* A chain: each reaches its neighbours only.  Who can lead must, and whoever does stays. */
static void chain_stretch(struct world *w) {
    const uint16_t n = w->node_count;
    world_trace(w, "a chain");
    cut_all(w, true);
    for (uint16_t i = 0; i + 1 < n; i++) both_ways(w, i, i + 1u, false);
    const uint64_t until = w->now_us + SETTLE_MS_MAX * 1000;
    int leader = -1;
    uint64_t since_us = 0;
    while (!w->failed && w->now_us < until && (leader < 0 || w->now_us < since_us + 2000000)) {
        world_run_until(w, w->now_us + 20000);
        if (w->object->leader(w) != leader) since_us = w->now_us;
        leader = w->object->leader(w);
    }
    if (!w->failed && leader < 0) world_fail(w, "P7: nobody leads in a chain");
    const uint64_t quiet = w->now_us + CALM_MS * 1000;
    while (w->now_us < quiet && must_lead(w, leader, "a chain")) world_run_until(w, w->now_us + 20000);
    cut_all(w, false);
}

static struct result run(const struct sim_object *object, uint64_t seed, uint16_t nodes, bool trace) {
    static struct world w;
    world_init(&w, object, seed, nodes, trace);
    world_run_until(&w, world_between(&w, 2000, 12000) * 1000);
    struct result r = {0};
    if (!w.failed) {
        world_heal(&w);
        r.settle_ms = settle(&w);
    }
    /* a commit that began on a slow disk may still take its time */
    if (!w.failed) world_run_until(&w, w.now_us + QUIET_MS * 1000);
    if (!w.failed) calm_stretch(&w);
    if (!w.failed && all_there(&w)) {
        const int voters = __builtin_popcount(check_newest(&w)->voters);
        if (voters >= 4 && (voters < w.node_count || voters >= 6 || /* in a long chain nobody can lead */
                            world_chance(&w, 700000)))
            star_stretch(&w);
        else if (voters >= 3 && voters <= 5 && voters == w.node_count) /* more: three in a row are no majority */
            chain_stretch(&w);
    }
    if (!w.failed && w.object->stretch != NULL) w.object->stretch(&w);
    if (!w.failed) (void)settle(&w);
    if (!w.failed) w.object->end(&w);
    r.virtual_us = w.now_us;
    r.events = w.events;
    r.hash = w.hash;
    r.acknowledged = check_acknowledged_max(&w);
    check_conflicts(&w, &r.slots, &r.rivals);
    world_release(&w);
    for (uint16_t i = 0; i < w.node_count; i++) {
        if (w.nodes[i].memory_blocks != 0)
            world_fail(&w, "memory: n%u: %ld blocks of memory left", i, w.nodes[i].memory_blocks);
    }
    r.failed = w.failed;
    snprintf(r.failure, sizeof r.failure, "%s", w.failure);
    return r;
}

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
static int usage(const char *name) {
    fprintf(stderr, "usage: %s --seeds A..B | --seed N  [--object paxos|replica] [--nodes 1..%d] [--jobs N] [--stop]\n",
            name, SIM_NODES_MAX);
    return 2;
}
static int compare(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

struct options {
    const char *program;
    uint64_t first, last;
    uint16_t nodes;
    uint32_t jobs;
    bool trace, stop;
    int object; /* -1: all */
};
struct total {
    uint64_t runs, failures, virtual_us, events, acknowledged, slots, rivals;
    uint64_t *settles;
    double begin, shown;
};

static struct result one(const struct options *o, uint64_t seed, size_t object) {
    char node_text[32] = "";
    if (o->nodes != 0) snprintf(node_text, sizeof node_text, " --nodes %u", o->nodes);
    snprintf(current, sizeof current, "%s --object %s%s --seed %" PRIu64, o->program, objects[object]->name, node_text,
             seed);
    const struct itimerval limit = {.it_value.tv_sec = RUN_S_MAX}; /* of processor time, for this run alone */
    if (!o->trace) (void)setitimer(ITIMER_PROF, &limit, NULL);
    struct result r = run(objects[object], seed, o->nodes, o->trace);
    if (!r.failed && !o->trace && seed % 16 == 0) { /* equal seeds, equal runs */
        const struct result again = run(objects[object], seed, o->nodes, false);
        if (again.hash != r.hash || again.events != r.events) {
            r.failed = true;
            snprintf(r.failure, sizeof r.failure, "hash: the same seed ran differently the second time");
        }
    }
    r.seed = seed;
    r.object = object;
    return r;
}
/* Every jobs-th run from `from` on; runs are counted over seeds and objects. */
static void work(const struct options *o, uint64_t from, uint64_t runs, int out) {
    for (uint64_t i = from; i < runs; i += o->jobs) {
        const struct result r =
            o->object >= 0 ? one(o, o->first + i, (size_t)o->object) : one(o, o->first + i / OBJECTS, i % OBJECTS);
        if (write(out, &r, sizeof r) != (ssize_t)sizeof r) _exit(1);
    }
    exit(0); /* what counts branches writes them down at exit */
}
static pid_t begin_worker(const struct options *o, uint64_t from, uint64_t runs, int *ret_in) {
    int ends[2];
    if (pipe(ends) != 0) return -1;
    fflush(stdout);
    const pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        work(o, from, runs, ends[1]);
    }
    close(ends[1]);
    *ret_in = ends[0];
    return pid;
}

static void add(struct total *t, const struct options *o, const struct result *r) {
    t->settles[t->runs++] = r->settle_ms;
    t->virtual_us += r->virtual_us;
    t->events += r->events;
    t->acknowledged += r->acknowledged;
    t->slots += r->slots;
    t->rivals += r->rivals;
    if (!r->failed) return;
    t->failures++;
    char node_text[32] = "";
    if (o->nodes != 0) snprintf(node_text, sizeof node_text, " --nodes %u", o->nodes);
    printf("not ok - %s seed %" PRIu64 ": %s\n  repeat with: %s --object %s%s --seed %" PRIu64 "\n",
           objects[r->object]->name, r->seed, r->failure, o->program, objects[r->object]->name, node_text, r->seed);
}
static void progress(struct total *t, uint64_t runs, bool last) {
    const double now = seconds(CLOCK_MONOTONIC);
    if (!last && now - t->shown < 10) return;
    t->shown = now;
    printf("# %" PRIu64 " of %" PRIu64 " runs, %.1f a second, %" PRIu64 " violations\n", t->runs, runs,
           (double)t->runs / (now - t->begin + 1e-9), t->failures);
}
/* Reads what the workers found, in turns, so that the order does not depend on who is quicker. */
static void gather(const struct options *o, struct total *t, uint64_t runs) {
    pid_t pids[JOBS_MAX];
    int ins[JOBS_MAX];
    for (uint32_t j = 0; j < o->jobs; j++) pids[j] = begin_worker(o, j, runs, &ins[j]);
    for (uint64_t i = 0; i < runs && !(o->stop && t->failures > 0); i++) {
        const uint32_t j = (uint32_t)(i % o->jobs);
        struct result r;
        size_t got = 0;
        while (pids[j] > 0 && got < sizeof r) {
            const ssize_t some = read(ins[j], (char *)&r + got, sizeof r - got);
            if (some <= 0) break;
            got += (size_t)some;
        }
        if (got == sizeof r) {
            add(t, o, &r);
        } else { /* it died of that run, and has said so: another goes on behind it */
            t->settles[t->runs++] = 0;
            t->failures++;
            close(ins[j]);
            if (pids[j] > 0) waitpid(pids[j], NULL, 0);
            pids[j] = begin_worker(o, i + o->jobs, runs, &ins[j]);
        }
        progress(t, runs, false);
    }
    for (uint32_t j = 0; j < o->jobs; j++) {
        if (pids[j] <= 0) continue;
        close(ins[j]);
        if (o->stop && t->failures > 0) kill(pids[j], SIGTERM); /* else it has said all and ends by itself */
        waitpid(pids[j], NULL, 0);
    }
}

static bool parse(int argc, char **argv, struct options *o) {
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--stop") == 0) { /* at the first failure */
            o->stop = true;
            continue;
        }
        if (strcmp(argv[i], "--seeds") == 0) {
            if (sscanf(value, "%" SCNu64 "..%" SCNu64, &o->first, &o->last) != 2) return false;
        } else if (strcmp(argv[i], "--seed") == 0) {
            if (sscanf(value, "%" SCNu64, &o->first) != 1) return false;
            o->last = o->first;
            o->trace = true;
        } else if (strcmp(argv[i], "--nodes") == 0) {
            if (sscanf(value, "%" SCNu16, &o->nodes) != 1 || o->nodes < 1 || o->nodes > SIM_NODES_MAX) return false;
#ifdef HOLDFAST_MUTANTS
        } else if (strcmp(argv[i], "--bug") == 0) {
            if (sscanf(value, "%u", &planted_bug) != 1) return false;
#endif
        } else if (strcmp(argv[i], "--jobs") == 0) {
            if (sscanf(value, "%" SCNu32, &o->jobs) != 1 || o->jobs < 1 || o->jobs > JOBS_MAX) return false;
        } else if (strcmp(argv[i], "--object") == 0) {
            o->object = -1;
            for (int j = 0; j < OBJECTS; j++) {
                if (strcmp(objects[j]->name, value) == 0) o->object = j;
            }
            if (o->object < 0) return false;
        } else {
            return false;
        }
        i++;
    }
    return o->last >= o->first && o->last - o->first < UINT32_MAX;
}

int main(int argc, char **argv) {
    struct options o = {.program = argv[0], .first = 1, .last = 0, .jobs = 1, .object = -1};
    if (!parse(argc, argv, &o)) return usage(argv[0]);
    signal(SIGABRT, on_abort);
    signal(SIGSEGV, on_abort);
    signal(SIGPROF, on_abort);
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    const uint64_t runs = (o.last - o.first + 1) * (o.object >= 0 ? 1 : OBJECTS);
    struct total t = {.begin = seconds(CLOCK_MONOTONIC)};
    t.shown = t.begin;
    t.settles = calloc((size_t)runs, sizeof *t.settles);
    if (t.settles == NULL) return 2;
    if (o.trace) {
        for (uint64_t i = 0; i < runs; i++) {
            const struct result r = one(&o, o.first, o.object >= 0 ? (size_t)o.object : (size_t)i);
            add(&t, &o, &r);
        }
    } else {
        gather(&o, &t, runs);
    }
    const double took = seconds(CLOCK_MONOTONIC) - t.begin;
    struct timespec spent;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &spent);
    struct rusage children;
    getrusage(RUSAGE_CHILDREN, &children);
    const double cpu = (double)spent.tv_sec + (double)spent.tv_nsec / 1e9 + (double)children.ru_utime.tv_sec +
                       (double)children.ru_utime.tv_usec / 1e6 + (double)children.ru_stime.tv_sec +
                       (double)children.ru_stime.tv_usec / 1e6;
    const uint64_t seeds = o.object >= 0 ? t.runs : (t.runs + OBJECTS - 1) / OBJECTS;
    qsort(t.settles, (size_t)t.runs, sizeof *t.settles, compare);
    printf("# %.0f s, %.0fk events/s; %" PRIu64 " slots, %" PRIu64 " acknowledged, %" PRIu64
           " with rival values; settled after the faults p50 %" PRIu64 " ms, p99 %" PRIu64 " ms, max %" PRIu64 " ms\n",
           took, (double)t.events / took / 1e3, t.slots, t.acknowledged, t.rivals, t.settles[t.runs / 2],
           t.settles[t.runs * 99 / 100], t.settles[t.runs - 1]);
    printf(
        "%s%s: %" PRIu64 " seeds, %.2f virtual hours, %.0f x real time (%.0f x its CPU time), %" PRIu64 " violations\n",
        o.object >= 0 ? "sim " : "sim", o.object >= 0 ? objects[o.object]->name : "", seeds,
        (double)t.virtual_us / 3.6e9, (double)t.virtual_us / 1e6 / took, (double)t.virtual_us / 1e6 / cpu, t.failures);
    free(t.settles);
    return t.failures == 0 ? 0 : 1;
}
