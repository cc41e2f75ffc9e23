/* main.c - runs seeds.  Each: faults for some seconds, then none; the cluster must settle new work in bounded time;
 * then a calm stretch with one node half cut off, which must not move the leader (P7), and a star around one node,
 * which must lead; then nothing may be lost.
 *
 *   sim --seeds 1..300 [--object paxos|replica] [--nodes N]     exit 0: no failure
 *   sim --seed 42                                               the same run as a readable trace */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "tests/sim/checkers.h"
#include "tests/sim/object.h"

enum { SETTLE_MS_MAX = 10000, QUIET_MS = 5000, CALM_MS = 3000 };

static const struct sim_object *const objects[] = {&sim_paxos, &sim_replica};
static char current[160]; /* how to repeat what runs now */

static void on_abort(int number) {
    (void)number;
    static const char text[] = "not ok - aborted; repeat with: ";
    (void)!write(STDOUT_FILENO, text, sizeof text - 1);
    (void)!write(STDOUT_FILENO, current, strlen(current));
    (void)!write(STDOUT_FILENO, "\n", 1);
    _exit(1);
}

struct result {
    bool failed;
    char failure[512];
    uint64_t virtual_us, events, hash, settle_ms, acknowledged, slots, rivals;
};

static void cut_all(struct world *w, bool cut) {
    for (uint16_t i = 0; i < w->node_count; i++) {
        for (uint16_t j = 0; j < w->node_count; j++) world_cut(w, i, j, cut);
    }
}

/* A working leader stays, whatever one node does that is deaf, dumb or cut off from the leader alone. */
static void calm_stretch(struct world *w) {
    const int leader = w->object->leader(w);
    if (leader < 0) {
        world_fail(w, "no leader after everything had settled");
        return;
    }
    const uint16_t n = w->node_count;
    uint16_t odd = (uint16_t)leader;
    if (n >= 3) {
        while (odd == leader) odd = (uint16_t)world_below(w, n);
        for (uint16_t i = 0; i < n; i++) {
            if (w->nodes[i].wiped) odd = i; /* of the others perhaps none can be spared */
        }
        static const char *const words[] = {"is deaf", "is dumb", "and the leader do not reach each other"};
        const uint64_t way = world_below(w, 3);
        world_trace(w, "n%u %s", odd, words[way]);
        for (uint16_t i = 0; i < n; i++) {
            if (i == odd || (way == 2 && i != leader)) continue;
            if (way != 1) world_cut(w, i, odd, true);
            if (way != 0) world_cut(w, odd, i, true);
        }
    }
    for (int stage = 0; stage < 2; stage++) {
        const uint64_t until = w->now_us + CALM_MS * 1000;
        while (!w->failed && w->now_us < until) {
            world_run_until(w, w->now_us + 20000);
            if (w->object->leader(w) != leader && !w->failed)
                world_fail(w, "P7: n%d led, and one node %s moved that", leader,
                           stage == 0 ? "that is half cut off" : "that came back");
        }
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
    world_fail(w, "not settled %d ms after the faults ended", SETTLE_MS_MAX);
    return SETTLE_MS_MAX;
}

/* Everybody reaches the hub and nobody else: only the hub can lead (from four nodes on), and it must soon. */
static void star_stretch(struct world *w) {
    const uint16_t n = w->node_count;
    if (n < 4) return;
    uint16_t hub = (uint16_t)world_below(w, n);
    while (w->nodes[hub].wiped) hub = (uint16_t)((hub + 1) % n);
    world_trace(w, "n%u is the hub", hub);
    cut_all(w, true);
    for (uint16_t i = 0; i < n; i++) {
        world_cut(w, i, hub, false);
        world_cut(w, hub, i, false);
    }
    (void)settle(w);
    for (int i = 0; i < 100 && !w->failed; i++) {
        if (w->object->leader(w) != hub)
            world_fail(w, "n%u is the hub, n%d leads", hub, w->object->leader(w));
        else
            world_run_until(w, w->now_us + 20000);
    }
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
    if (!w.failed) star_stretch(&w);
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
            world_fail(&w, "n%u: %ld blocks of memory left", i, w.nodes[i].memory_blocks);
    }
    r.failed = w.failed;
    memcpy(r.failure, w.failure, sizeof r.failure);
    return r;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}
static int usage(const char *name) {
    fprintf(stderr, "usage: %s --seeds A..B | --seed N  [--object paxos|replica] [--nodes 1..5] [--stop]\n", name);
    return 2;
}
static int compare(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    uint64_t first = 1, last = 0;
    uint16_t nodes = 0;
    bool trace = false, stop = false;
    const struct sim_object *object = objects[0];
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--stop") == 0) { /* at the first failure */
            stop = true;
            continue;
        }
        if (strcmp(argv[i], "--seeds") == 0) {
            if (sscanf(value, "%" SCNu64 "..%" SCNu64, &first, &last) != 2) return usage(argv[0]);
        } else if (strcmp(argv[i], "--seed") == 0) {
            if (sscanf(value, "%" SCNu64, &first) != 1) return usage(argv[0]);
            last = first;
            trace = true;
        } else if (strcmp(argv[i], "--nodes") == 0) {
            if (sscanf(value, "%" SCNu16, &nodes) != 1 || nodes < 1 || nodes > SIM_NODES_MAX) return usage(argv[0]);
        } else if (strcmp(argv[i], "--object") == 0) {
            object = NULL;
            for (size_t j = 0; j < sizeof objects / sizeof objects[0]; j++) {
                if (strcmp(objects[j]->name, value) == 0) object = objects[j];
            }
            if (object == NULL) return usage(argv[0]);
        } else {
            return usage(argv[0]);
        }
        i++;
    }
    if (last < first) return usage(argv[0]);
    signal(SIGABRT, on_abort);
    signal(SIGSEGV, on_abort);
    setvbuf(stdout, NULL, _IOLBF, 0);

    const double begin = seconds();
    uint64_t failures = 0, virtual_us = 0, events = 0, acknowledged = 0, runs = 0, slots = 0, rivals = 0;
    uint64_t *settles = calloc((size_t)(last - first + 1), sizeof *settles);
    if (settles == NULL) return 2;
    for (uint64_t seed = first; seed <= last; seed++) {
        char node_text[32] = "";
        if (nodes != 0) snprintf(node_text, sizeof node_text, " --nodes %u", nodes);
        snprintf(current, sizeof current, "%s --object %s%s --seed %" PRIu64, argv[0], object->name, node_text, seed);
        struct result r = run(object, seed, nodes, trace);
        if (!r.failed && !trace && seed % 16 == 0) { /* equal seeds, equal runs */
            const struct result again = run(object, seed, nodes, false);
            if (again.hash != r.hash || again.events != r.events) {
                r.failed = true;
                snprintf(r.failure, sizeof r.failure, "the same seed ran differently the second time");
            }
        }
        settles[runs++] = r.settle_ms;
        virtual_us += r.virtual_us;
        events += r.events;
        acknowledged += r.acknowledged;
        slots += r.slots;
        rivals += r.rivals;
        if (!r.failed) continue;
        failures++;
        printf("not ok - seed %" PRIu64 ": %s\n  repeat with: %s\n", seed, r.failure, current);
        if (stop) break;
    }
    const double took = seconds() - begin;
    qsort(settles, (size_t)runs, sizeof *settles, compare);
    printf("%s: %" PRIu64 " seeds, %" PRIu64 " failures, %.0f s of virtual time, %.0fx real time, %.0fk events/s\n",
           object->name, runs, failures, (double)virtual_us / 1e6, (double)virtual_us / 1e6 / took,
           (double)events / took / 1e3);
    printf("%" PRIu64 " slots, %" PRIu64 " acknowledged, %" PRIu64
           " with rival values; settled after faults p50 %" PRIu64 " ms, p99 %" PRIu64 " ms, max %" PRIu64 " ms\n",
           slots, acknowledged, rivals, settles[runs / 2], settles[runs * 99 / 100], settles[runs - 1]);
    free(settles);
    return failures == 0 ? 0 : 1;
}
