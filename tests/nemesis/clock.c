/* clock.c - preloaded into a lockd of the nemesis: its clocks show what a file says.
 *
 * NEMESIS_CLOCK names a file of one `struct clock_setting`; whoever drives the run rewrites it while lockd works.  The
 * wall clock is the real one plus an offset.  CLOCK_BOOTTIME and CLOCK_MONOTONIC run at a rate of their own from a
 * common point on, and absolute timers follow them.  Relative waits are left alone: what they are for checks the clock.
 *
 * faketime cannot do it: it takes an absolute timer on CLOCK_BOOTTIME for one on the wall clock. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))

struct clock_setting {
    _Atomic uint64_t turn; /* odd while it is being rewritten */
    int64_t wall_offset_ns;
    int64_t rate_ppm; /* on top of the real rate */
    int64_t from_real_ns, from_shown_ns;
};

static const struct clock_setting *shared;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_timerfd_settime)(int, int, const struct itimerspec *, struct itimerspec *);

__attribute__((constructor)) static void find(void) {
    *(void **)&real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    *(void **)&real_timerfd_settime = dlsym(RTLD_NEXT, "timerfd_settime");
    const char *path = getenv("NEMESIS_CLOCK");
    const int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *memory = mmap(NULL, sizeof *shared, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (memory != MAP_FAILED) shared = memory;
}

static struct clock_setting setting(void) {
    struct clock_setting copy = {0};
    uint64_t before, after;
    if (shared == NULL) return copy;
    do {
        before = atomic_load(&shared->turn);
        copy.wall_offset_ns = shared->wall_offset_ns;
        copy.rate_ppm = shared->rate_ppm;
        copy.from_real_ns = shared->from_real_ns;
        copy.from_shown_ns = shared->from_shown_ns;
        after = atomic_load(&shared->turn);
    } while (before != after || before % 2 != 0);
    return copy;
}

static int64_t ns_of(const struct timespec *t) {
    return (int64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

static struct timespec of_ns(int64_t ns) {
    return (struct timespec){.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
}

PUBLIC int clock_gettime(clockid_t id, struct timespec *ret) {
    const int rc = real_clock_gettime(id, ret);
    if (rc != 0 || shared == NULL) return rc;
    const struct clock_setting s = setting();
    switch (id) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE: *ret = of_ns(ns_of(ret) + s.wall_offset_ns); break;
    case CLOCK_BOOTTIME:
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_MONOTONIC_RAW: {
        const double passed = (double)(ns_of(ret) - s.from_real_ns);
        *ret = of_ns(s.from_shown_ns + (int64_t)(passed * (1 + (double)s.rate_ppm / 1e6)));
        break;
    }
    default: break;
    }
    return 0;
}

PUBLIC time_t time(time_t *ret) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (ret != NULL) *ret = now.tv_sec;
    return now.tv_sec;
}

PUBLIC int timerfd_settime(int fd, int flags, const struct itimerspec *value, struct itimerspec *old) {
    struct itimerspec at = *value;
    if (shared != NULL && (flags & TFD_TIMER_ABSTIME) != 0 && ns_of(&at.it_value) != 0) {
        const struct clock_setting s = setting();
        const double left = (double)(ns_of(&at.it_value) - s.from_shown_ns) / (1 + (double)s.rate_ppm / 1e6);
        const int64_t real = s.from_real_ns + (int64_t)left;
        at.it_value = of_ns(real > 0 ? real : 1);
    }
    return real_timerfd_settime(fd, flags, &at, old);
}
