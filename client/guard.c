/* guard.c - see guard.h.  Plain poll(2), no library with threads or state.
 *
 *     NONE --run--> RUNNING --deadline, stop, pipe closed, or exit with others left--> ENDING --grace--> KILLING
 *       ^              \-- exit, nobody left --\             \-- nobody left --\                            |
 *       +---------------- GUARD_ENDED ----------+-----------------------------+----- nobody left -----------+ */
#include "client/guard.h"
#include "common/io/clock.h"
#include "common/must.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    RECHECK_MS = 10,   /* while a group dies */
    GIVE_UP_MS = 2000, /* a group that SIGKILL does not empty is reported as ended: nobody can do more */
    NOT_STARTED = 125,
};

enum order_kind { ORDER_RUN, ORDER_EXTEND, ORDER_SIGNAL, ORDER_STOP };
struct order {
    uint32_t kind;
    int32_t signal_number;
    uint64_t deadline_ms;
    int64_t token;
};

/* Signals that lockctl passes on and the guard must survive. */
static const int deaf_to[] = {SIGINT,  SIGTERM, SIGHUP,  SIGQUIT, SIGUSR1,  SIGUSR2, SIGPIPE,
                              SIGTSTP, SIGTTIN, SIGTTOU, SIGALRM, SIGWINCH, SIGXFSZ};
enum { DEAF_COUNT = sizeof deaf_to / sizeof deaf_to[0] };

enum state { NONE, RUNNING, ENDING, KILLING };
struct watch {
    struct guard_config config;
    int control_fd, report_fd, signal_fd, timer_fd;
    pid_t owner_group;            /* lockctl's, for the terminal */
    bool was_ignored[DEAF_COUNT]; /* by whoever started lockctl: stays so for the command (nohup) */
    enum state state;
    pid_t group; /* of the command, which leads it */
    bool leader_alive, forced, orphaned;
    int status;
    uint64_t deadline_ms, ending_ms, killing_ms;
};

/* ---- the side of lockctl ---- */

static void send_order(struct guard *g, const struct order *order) {
    const ssize_t sent = write(g->control_fd, order, sizeof *order); /* atomic: less than PIPE_BUF */
    (void)sent;
}
void guard_run(struct guard *g, int64_t token, uint64_t deadline_ms) {
    send_order(g, &(struct order){.kind = ORDER_RUN, .token = token, .deadline_ms = deadline_ms});
}
void guard_extend(struct guard *g, uint64_t deadline_ms) {
    send_order(g, &(struct order){.kind = ORDER_EXTEND, .deadline_ms = deadline_ms});
}
void guard_signal(struct guard *g, int signal_number) {
    send_order(g, &(struct order){.kind = ORDER_SIGNAL, .signal_number = signal_number});
}
void guard_stop(struct guard *g) {
    send_order(g, &(struct order){.kind = ORDER_STOP});
}

int guard_read(struct guard *g, struct guard_report *ret_report) {
    const ssize_t count = read(g->report_fd, ret_report, sizeof *ret_report);
    if (count == (ssize_t)sizeof *ret_report) return 1;
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    return -1;
}

void guard_end(struct guard *g) {
    if (g->control_fd >= 0) close(g->control_fd);
    if (g->report_fd >= 0) close(g->report_fd);
    g->control_fd = g->report_fd = -1;
}

/* ---- the guard ---- */

static void report(struct watch *w, enum guard_report_kind kind, int value, bool forced) {
    const struct guard_report r = {.kind = (uint32_t)kind, .value = value, .group = w->group, .forced = forced};
    const ssize_t sent = write(w->report_fd, &r, sizeof r);
    (void)sent; /* lockctl has gone: orphaned is noticed by the other pipe */
}

static _Noreturn void run_command(struct watch *w, pid_t guard_pid, int64_t token) {
    char number[24];
    (void)setpgid(0, 0);
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != guard_pid) _exit(NOT_STARTED);
    /* The command takes lockctl's place in the foreground; SIGTTOU is still ignored here. */
    if (isatty(STDIN_FILENO) && tcgetpgrp(STDIN_FILENO) == w->owner_group) (void)tcsetpgrp(STDIN_FILENO, getpid());
    for (size_t i = 0; i < DEAF_COUNT; i++) {
        if (!w->was_ignored[i]) (void)signal(deaf_to[i], SIG_DFL);
    }
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    snprintf(number, sizeof number, "%lld", (long long)token);
    if (setenv("HOLDFAST_TOKEN", number, 1) != 0 || setenv("HOLDFAST_LOCK", w->config.lock, 1) != 0 ||
        setenv("HOLDFAST_SERVER", w->config.server, 1) != 0) {
        _exit(NOT_STARTED);
    }
    execvp(w->config.argv[0], w->config.argv);
    const int error = errno;
    dprintf(STDERR_FILENO, "lockctl: cannot run '%s': %s\n", w->config.argv[0], strerror(error));
    _exit(error == ENOENT ? 127 : 126);
}

static uint64_t kill_at_ms(const struct watch *w) {
    const uint64_t limit = w->deadline_ms > w->config.margin_ms ? w->deadline_ms - w->config.margin_ms : 0;
    if (w->state != ENDING) return limit;
    const uint64_t after_grace = w->ending_ms + w->config.grace_ms;
    return after_grace < limit ? after_grace : limit;
}

static uint64_t end_at_ms(const struct watch *w) {
    const uint64_t limit = kill_at_ms(w);
    return limit > w->config.grace_ms ? limit - w->config.grace_ms : 0;
}

static void start(struct watch *w, const struct order *order) {
    if (w->state != NONE) return;
    w->deadline_ms = order->deadline_ms;
    w->forced = false;
    w->group = 0;
    const pid_t self = getpid();
    /* Before and not after the fork: what starts late is stopped by G1 like everything else. */
    pid_t pid = -1;
    if (clock_now_ms() >= end_at_ms(w))
        w->forced = true;
    else
        pid = fork();
    if (pid == 0) run_command(w, self, order->token);
    if (pid < 0) {
        report(w, GUARD_ENDED, NOT_STARTED, w->forced);
        return;
    }
    (void)setpgid(pid, pid);
    w->group = pid;
    w->state = RUNNING;
    w->leader_alive = true;
    report(w, GUARD_STARTED, 0, false);
}

static void begin_end(struct watch *w, bool forced) {
    if (w->state != RUNNING) return;
    w->state = ENDING;
    w->forced = forced;
    w->ending_ms = clock_now_ms();
    (void)kill(-w->group, SIGTERM);
    (void)kill(-w->group, SIGCONT); /* a stopped process cannot obey */
}

/* Kill what left the group and was given to us when its parent died; the list is the kernel's. */
static void kill_adopted(void) {
    FILE *list = fopen("/proc/thread-self/children", "re");
    if (list == NULL) return;
    int pid;
    while (fscanf(list, "%d", &pid) == 1) {
        if (pid > 1) (void)kill(pid, SIGKILL);
    }
    fclose(list);
}

static void kill_all(struct watch *w) {
    if (w->state != KILLING) w->killing_ms = clock_now_ms();
    w->state = KILLING;
    (void)kill(-w->group, SIGKILL);
    if (w->forced) kill_adopted();
}

static int shell_status(const siginfo_t *info) {
    return info->si_code == CLD_EXITED ? info->si_status & 0xff : 128 + info->si_status;
}

static void reap(struct watch *w) {
    for (;;) {
        siginfo_t info = {.si_pid = 0};
        if (waitid(P_ALL, 0, &info, WEXITED | WSTOPPED | WNOHANG) != 0 || info.si_pid == 0) return;
        if (info.si_pid != w->group) continue; /* adopted */
        if (info.si_code == CLD_STOPPED) {
            const int by = info.si_status;
            if (by == SIGTSTP || by == SIGTTIN || by == SIGTTOU) report(w, GUARD_STOPPED, by, false);
        } else {
            w->leader_alive = false;
            w->status = shell_status(&info);
        }
    }
}

static bool group_is_empty(const struct watch *w) {
    return kill(-w->group, 0) != 0 && errno == ESRCH;
}

static bool has_no_children(void) {
    siginfo_t info;
    return waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) != 0 && errno == ECHILD;
}

/* Nothing is left that should not be: what was forced also takes those who left the group (G4). */
static bool all_gone(const struct watch *w) {
    return !w->leader_alive && group_is_empty(w) && (!w->forced || has_no_children());
}

static void take_orders(struct watch *w) {
    for (;;) {
        struct order order;
        const ssize_t count = read(w->control_fd, &order, sizeof order);
        if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (count != (ssize_t)sizeof order) {
            w->orphaned = true;
            return;
        }
        switch ((enum order_kind)order.kind) {
        case ORDER_RUN: start(w, &order); break;
        case ORDER_EXTEND:
            if (order.deadline_ms > w->deadline_ms) w->deadline_ms = order.deadline_ms;
            break;
        case ORDER_SIGNAL:
            if (w->state != NONE) (void)kill(-w->group, order.signal_number);
            break;
        case ORDER_STOP: begin_end(w, true); break;
        }
    }
}

/* Where the clock, the pipe and the children meet. */
static void enforce(struct watch *w) {
    if (w->state == NONE) return;
    const uint64_t now_ms = clock_now_ms();
    const bool gone = all_gone(w);
    if (w->state == RUNNING && !gone) {
        if (w->orphaned || now_ms >= end_at_ms(w))
            begin_end(w, true);
        else if (!w->leader_alive)
            begin_end(w, false); /* it left somebody behind */
    }
    if (!gone && (w->state == KILLING || now_ms >= kill_at_ms(w))) {
        kill_all(w);
    }
    const bool hopeless = w->state == KILLING && now_ms >= w->killing_ms + GIVE_UP_MS;
    if (gone || hopeless) {
        report(w, GUARD_ENDED, w->status, w->forced);
        w->state = NONE;
    }
}

static void set_timer(struct watch *w) {
    const uint64_t now_ms = clock_now_ms();
    struct itimerspec when = {0};
    uint64_t at_ms = 0;
    if (w->state == RUNNING) at_ms = end_at_ms(w);
    if (w->state == ENDING || w->state == KILLING) {
        at_ms = kill_at_ms(w);
        if (at_ms > now_ms + RECHECK_MS || at_ms <= now_ms) at_ms = now_ms + RECHECK_MS;
    }
    if (w->state != NONE && at_ms <= now_ms) at_ms = now_ms + 1;
    when.it_value.tv_sec = (time_t)(at_ms / 1000);
    when.it_value.tv_nsec = (long)(at_ms % 1000 * 1000000);
    must(timerfd_settime(w->timer_fd, TFD_TIMER_ABSTIME, &when, NULL) == 0);
}

static void drain(int fd) {
    struct signalfd_siginfo bytes[4];
    while (read(fd, bytes, sizeof bytes) > 0) continue;
}

static _Noreturn void watch(struct watch *w) {
    struct pollfd fds[] = {{.fd = w->control_fd, .events = POLLIN},
                           {.fd = w->signal_fd, .events = POLLIN},
                           {.fd = w->timer_fd, .events = POLLIN}};
    for (;;) {
        if (!w->orphaned) take_orders(w);
        fds[0].fd = w->orphaned ? -1 : w->control_fd;
        reap(w);
        enforce(w);
        if (w->orphaned && w->state == NONE) _exit(0);
        set_timer(w);
        if (poll(fds, 3, -1) < 0 && errno != EINTR) _exit(1);
        if (fds[1].revents != 0) drain(w->signal_fd);
        if (fds[2].revents != 0) drain(w->timer_fd);
    }
}

static void close_all_but(int a, int b) {
    const unsigned low = (unsigned)(a < b ? a : b), high = (unsigned)(a < b ? b : a);
    if (low > 3) (void)close_range(3, low - 1, 0);
    if (high > low + 1) (void)close_range(low + 1, high - 1, 0);
    (void)close_range(high + 1, ~0U, 0);
}

static _Noreturn void guard_main(struct watch *w) {
    sigset_t child;
    close_all_but(w->control_fd, w->report_fd);
    (void)setpgid(0, 0);
    (void)prctl(PR_SET_NAME, "lockctl-guard");
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    (void)signal(SIGCHLD, SIG_DFL);
    for (size_t i = 0; i < DEAF_COUNT; i++) {
        const struct sigaction ignore = {.sa_handler = SIG_IGN};
        struct sigaction before;
        must(sigaction(deaf_to[i], &ignore, &before) == 0);
        w->was_ignored[i] = before.sa_handler == SIG_IGN;
    }
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    must(sigprocmask(SIG_SETMASK, &child, NULL) == 0);
    w->signal_fd = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    w->timer_fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (w->signal_fd < 0 || w->timer_fd < 0) _exit(1);
    watch(w);
}

int guard_start(struct guard *g, const struct guard_config *config) {
    int control[2], reports[2];
    if (pipe2(control, O_CLOEXEC | O_NONBLOCK) != 0) return errno;
    if (pipe2(reports, O_CLOEXEC | O_NONBLOCK) != 0) {
        const int error = errno;
        close(control[0]);
        close(control[1]);
        return error;
    }
    struct watch w = {.config = *config, .control_fd = control[0], .report_fd = reports[1], .owner_group = getpgrp()};
    const pid_t pid = fork();
    if (pid == 0) {
        close(control[1]); /* or a dead lockctl would go unnoticed (G2) */
        close(reports[0]);
        guard_main(&w);
    }
    const int error = errno;
    close(control[0]);
    close(reports[1]);
    if (pid < 0) {
        close(control[1]);
        close(reports[0]);
        return error;
    }
    *g = (struct guard){.pid = pid, .control_fd = control[1], .report_fd = reports[0]};
    return 0;
}
