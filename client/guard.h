/* guard.h - a process of its own that ends a command no later than its lock, whatever becomes of lockctl.
 *
 * Place in the flow:  lockctl --deadlines, by pipe--> [guard] --signals--> the command's process group
 *                             <--its end, by pipe--
 *
 * The guard is forked before anything else is set up.  It is the parent of the command and a subreaper, in a process
 * group of its own, deaf to the signals of the terminal, and holds nothing but the two pipes and what the command
 * inherits: standard input, output and error.
 *
 * What always holds, while the guard itself runs:
 *   G1  The command's group has SIGKILL at `deadline - margin`, the deadline being the latest one it was told, on
 *       CLOCK_BOOTTIME; SIGTERM comes `grace` before that.  So a lockctl that is stopped, slow or cut off has the
 *       same effect as one that says that the lock is lost.
 *   G2  When the pipe closes (lockctl was killed) SIGTERM comes at once, SIGKILL after `grace`, but not after G1.
 *   G3  What was told to end stays told: no later deadline takes a SIGTERM back.
 *   G4  The end is reported when nothing is left in the command's group; processes it left there when it exited are
 *       ended like the command itself.  At G1 and G2 also processes that left the group and lost their parent are
 *       killed; when the command exits by itself those live on, as daemons it started on purpose.
 *   G5  The command itself dies with the guard (PR_SET_PDEATHSIG); its children do not.  lockctl, which sees the
 *       guard's pipe close, then kills the group. */
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct guard_config {
    char *const *argv;  /* the command; NULL at the end */
    const char *lock;   /* HOLDFAST_LOCK */
    const char *server; /* HOLDFAST_SERVER */
    uint32_t grace_ms, margin_ms;
};
struct guard {
    pid_t pid;
    int control_fd, report_fd; /* close on exec, non-blocking */
};
enum guard_report_kind {
    GUARD_STARTED, /* group is known */
    GUARD_STOPPED, /* the command was stopped by `value`, a signal of the terminal */
    GUARD_ENDED    /* value: what a shell would say, 0..255; forced: the guard ended it for G1, G2 or guard_stop */
};
struct guard_report {
    uint32_t kind;
    int32_t value;
    int32_t group;
    uint32_t forced;
};

/* Fork the guard.  0, or an errno.  Everything in *config is used in the fork only. */
int guard_start(struct guard *g, const struct guard_config *config);
/* Run the command once more, with HOLDFAST_TOKEN.  It is not started, and GUARD_ENDED says forced, when its time is
 * over already.  Only after the previous run's GUARD_ENDED. */
void guard_run(struct guard *g, int64_t token, uint64_t deadline_ms);
/* A later deadline.  Lost when the pipe is full, which is on the safe side. */
void guard_extend(struct guard *g, uint64_t deadline_ms);
/* Send a signal to the command's group. */
void guard_signal(struct guard *g, int signal_number);
/* End the command: SIGTERM now, SIGKILL after the grace. */
void guard_stop(struct guard *g);
/* 1: a report; 0: none for now; -1: the guard has died. */
int guard_read(struct guard *g, struct guard_report *ret_report);
/* Let it go: closes the pipes, and the guard exits. */
void guard_end(struct guard *g);
