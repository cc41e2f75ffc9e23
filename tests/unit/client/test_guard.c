/* The guard against real processes: what it ends, when, and what it leaves alone.  Guards G1-G5 of client/guard.h. */
#include "client/guard.h"
#include "common/io/clock.h"
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { GRACE_MS = 300, MARGIN_MS = 50, FAR_MS = 60000, LIMIT_MS = 20000 };
enum { LATE_MS = 500 }; /* a busy machine wakes us so late at most */
static struct guard guard;
static char folder[] = "/tmp/test_guard.XXXXXX", path[64];
static struct guard_report last;

static void start(const char *script) {
    char *argv[] = {"sh", "-c", (char *)(uintptr_t)script, NULL};
    const struct guard_config config = {
        .argv = argv, .lock = "job", .server = "here:1", .grace_ms = GRACE_MS, .margin_ms = MARGIN_MS};
    ck_assert_int_eq(guard_start(&guard, &config), 0);
}

static void setup(void) {
    strcpy(folder + strlen(folder) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/out", folder);
    setenv("OUT", path, 1);
    guard = (struct guard){.control_fd = -1, .report_fd = -1};
}

static void teardown(void) {
    guard_end(&guard);
    unlink(path);
    rmdir(folder);
    int status;
    if (guard.pid > 0) ck_assert_int_eq(waitpid(guard.pid, &status, 0), guard.pid);
}

static void next_report(void) {
    struct pollfd fd = {.fd = guard.report_fd, .events = POLLIN};
    ck_assert_msg(poll(&fd, 1, LIMIT_MS) == 1, "the guard reports nothing");
    ck_assert_int_eq(guard_read(&guard, &last), 1);
}
static pid_t until_started(void) {
    next_report();
    ck_assert_uint_eq(last.kind, GUARD_STARTED);
    ck_assert_int_gt(last.group, 0);
    return last.group;
}
static void until_ended(void) {
    next_report();
    ck_assert_uint_eq(last.kind, GUARD_ENDED);
}

/* A file is how the command talks to the test: wait until it has written so many bytes. */
static const char *until_written(size_t bytes) {
    static char text[4096];
    const uint64_t limit_ms = clock_now_ms() + LIMIT_MS;
    for (;;) {
        const int fd = open(path, O_RDONLY | O_CLOEXEC);
        const ssize_t count = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
        if (fd >= 0) close(fd);
        text[count > 0 ? count : 0] = '\0';
        if (count >= (ssize_t)bytes && strchr(text, '\n') != NULL) return text;
        ck_assert_msg(clock_now_ms() < limit_ms, "the command wrote nothing");
        poll(NULL, 0, 2);
    }
}
static void until_gone(pid_t pid) {
    const uint64_t limit_ms = clock_now_ms() + LIMIT_MS;
    while (kill(pid, 0) == 0 || errno != ESRCH) {
        ck_assert_msg(clock_now_ms() < limit_ms, "%d still exists", (int)pid);
        poll(NULL, 0, 2);
    }
}

static const struct {
    const char *script;
    int status;
} status_rows[] = {
    {"exit 0", 0},    {"exit 7", 7}, {"kill -TERM $$", 143}, {"kill -KILL $$", 137}, {"exec /nowhere/x", 127},
    {"exit 255", 255}};
START_TEST(status_is_the_shells) {
    start(status_rows[_i].script);
    guard_run(&guard, 1, clock_now_ms() + FAR_MS);
    until_started();
    until_ended();
    ck_assert_int_eq(last.value, status_rows[_i].status);
    ck_assert_uint_eq(last.forced, 0);
}
END_TEST

static const struct {
    const char *command;
    int status;
} missing_rows[] = {{"/nowhere/command", 127}, {"/dev/null", 126}};
START_TEST(command_that_cannot_run) {
    char *argv[] = {(char *)(uintptr_t)missing_rows[_i].command, NULL};
    const struct guard_config config = {.argv = argv, .lock = "", .server = "", .grace_ms = 1, .margin_ms = 1};
    ck_assert_int_eq(guard_start(&guard, &config), 0);
    guard_run(&guard, 1, clock_now_ms() + FAR_MS);
    until_started();
    until_ended();
    ck_assert_int_eq(last.value, missing_rows[_i].status);
}
END_TEST

START_TEST(command_is_told) {
    start("echo $HOLDFAST_TOKEN $HOLDFAST_LOCK $HOLDFAST_SERVER > $OUT");
    guard_run(&guard, INT64_MAX, clock_now_ms() + FAR_MS);
    until_started();
    until_ended();
    ck_assert_str_eq(until_written(1), "9223372036854775807 job here:1\n");
}
END_TEST

START_TEST(command_inherits_what_it_should) {
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigaddset(&mask, SIGCHLD);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signal(SIGHUP, SIG_IGN); /* as nohup does */
    signal(SIGINT, SIG_DFL); /* a shell in the background ignores both of them, and so did we then */
    signal(SIGQUIT, SIG_DFL);
    ck_assert_int_eq(dup2(STDERR_FILENO, 50), 50);
    start("exec > $OUT; grep -E 'Sig(Blk|Ign)' /proc/self/status; echo /proc/$$/fd/*; ps -o pgid= -p $$; echo $$");
    signal(SIGHUP, SIG_DFL);
    guard_run(&guard, 1, clock_now_ms() + FAR_MS);
    until_started();
    until_ended();
    unsigned long blocked = 1, ignored = 0;
    int group = 0, shell = 0, end = 0;
    const char *text = until_written(1);
    /* 3 is the directory that the shell reads; were there more, it would be 4. */
    const int found =
        sscanf(text, "SigBlk: %lx SigIgn: %lx /proc/%*d/fd/0 /proc/%*d/fd/1 /proc/%*d/fd/2 /proc/%*d/fd/3 %d %d%n",
               &blocked, &ignored, &group, &shell, &end);
    ck_assert_msg(found == 4 && end > 0, "three descriptors and nothing more are expected in: %s", text);
    ck_assert_uint_eq(blocked, 0);
    ck_assert_uint_eq(ignored, 1ul << (SIGHUP - 1));
    ck_assert_int_eq(group, shell);
}
END_TEST

/* No shell: those clear the mask themselves. */
START_TEST(command_starts_with_a_clean_mask) {
    char to[80];
    snprintf(to, sizeof to, "of=%s", path);
    char *argv[] = {"dd", "if=/proc/self/status", "status=none", to, NULL};
    const struct guard_config config = {.argv = argv, .lock = "", .server = "", .grace_ms = 1, .margin_ms = 1};
    sigset_t mask;
    sigfillset(&mask);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    ck_assert_int_eq(guard_start(&guard, &config), 0);
    sigprocmask(SIG_UNBLOCK, &mask, NULL);
    guard_run(&guard, 1, clock_now_ms() + FAR_MS);
    until_started();
    until_ended();
    ck_assert_ptr_nonnull(strstr(until_written(100), "SigBlk:\t0000000000000000"));
}
END_TEST

/* ---- G1 ---- */

START_TEST(deadline_ends_it) {
    start("trap 'echo term >> $OUT' TERM; echo on > $OUT; while :; do sleep 0.02; done");
    const uint64_t deadline_ms = clock_now_ms() + 1200;
    guard_run(&guard, 1, deadline_ms);
    until_started();
    until_written(3);
    until_written(3 + 5);
    ck_assert_uint_ge(clock_now_ms(), deadline_ms - MARGIN_MS - GRACE_MS);
    until_ended();
    ck_assert_int_eq(last.value, 137);
    ck_assert_uint_eq(last.forced, 1);
    ck_assert_uint_ge(clock_now_ms(), deadline_ms - MARGIN_MS);
    ck_assert_uint_le(clock_now_ms(), deadline_ms + LATE_MS);
}
END_TEST

START_TEST(later_deadlines_count) {
    start("echo on > $OUT; exec sleep 60");
    const uint64_t first_ms = clock_now_ms() + 800, last_ms = first_ms + 700;
    guard_run(&guard, 1, first_ms);
    guard_extend(&guard, last_ms);
    guard_extend(&guard, first_ms); /* never earlier again */
    until_started();
    until_ended();
    ck_assert_int_eq(last.value, 143);
    ck_assert_uint_eq(last.forced, 1);
    ck_assert_uint_ge(clock_now_ms(), last_ms - MARGIN_MS - GRACE_MS);
    ck_assert_uint_lt(clock_now_ms(), last_ms + LATE_MS);
}
END_TEST

START_TEST(too_late_to_start) {
    start("echo on > $OUT");
    guard_run(&guard, 1, clock_now_ms() + MARGIN_MS + GRACE_MS);
    until_ended();
    ck_assert_uint_eq(last.forced, 1);
    ck_assert_int_ne(access(path, F_OK), 0);
    guard_run(&guard, 2, clock_now_ms() + FAR_MS); /* but the next one may run */
    until_started();
    until_ended();
    ck_assert_uint_eq(last.forced, 0);
}
END_TEST

START_TEST(stopped_command_is_ended_too) {
    start("echo on > $OUT; kill -STOP $$; echo never >> $OUT");
    guard_run(&guard, 1, clock_now_ms() + 900);
    until_started();
    until_ended();
    ck_assert_int_eq(last.value, 143);
}
END_TEST

/* ---- G2, G3 ---- */

START_TEST(closed_pipe_ends_it) {
    start("trap '' TERM; echo on > $OUT; while :; do sleep 0.02; done");
    guard_run(&guard, 1, clock_now_ms() + FAR_MS);
    const pid_t group = until_started();
    until_written(3);
    const uint64_t from_ms = clock_now_ms();
    guard_end(&guard);
    until_gone(-group);
    ck_assert_uint_ge(clock_now_ms() - from_ms, GRACE_MS);
    ck_assert_uint_lt(clock_now_ms() - from_ms, FAR_MS / 2);
}
END_TEST

START_TEST(closed_pipe_after_the_deadline) {
    start("trap '' TERM; echo on > $OUT; while :; do sleep 0.02; done");
    const uint64_t deadline_ms = clock_now_ms() + 800;
    guard_run(&guard, 1, deadline_ms);
    const pid_t group = until_started();
    until_written(3);
    while (clock_now_ms() < deadline_ms - MARGIN_MS - GRACE_MS / 2) poll(NULL, 0, 2); /* in the middle of the grace */
    guard_end(&guard);
    until_gone(-group);
    ck_assert_uint_le(clock_now_ms(), deadline_ms + LATE_MS);
}
END_TEST

START_TEST(told_to_stop) {
    start("trap 'exit 9' TERM; echo on > $OUT; while :; do sleep 0.02; done");
    guard_run(&guard, 1, clock_now_ms() + FAR_MS);
    until_started();
    until_written(3);
    guard_stop(&guard);
    guard_extend(&guard, clock_now_ms() + 2 * FAR_MS);
    until_ended();
    ck_assert_int_eq(last.value, 9);
    ck_assert_uint_eq(last.forced, 1);
}
END_TEST

START_TEST(signals_are_passed_on) {
    start("trap 'exit 42' USR1; echo on > $OUT; while :; do sleep 0.02; done");
    guard_run(&guard, 1, clock_now_ms() + FAR_MS);
    until_started();
    until_written(3);
    ck_assert_int_eq(kill(guard.pid, SIGTERM), 0); /* the guard is deaf ... */
    ck_assert_int_eq(kill(guard.pid, SIGINT), 0);
    guard_signal(&guard, SIGUSR1); /* ... the command is not */
    until_ended();
    ck_assert_uint_eq(last.forced, 0);
    ck_assert(last.value == 42 || last.value == 128 + SIGUSR1); /* its sleep may die of it first */
}
END_TEST

/* ---- G4, G5 ---- */

START_TEST(what_it_leaves_in_its_group_is_ended) {
    start("sleep 60 & echo $! > $OUT; exit 3");
    guard_run(&guard, 1, clock_now_ms() + FAR_MS);
    const pid_t group = until_started();
    until_ended();
    ck_assert_int_eq(last.value, 3);
    ck_assert_uint_eq(last.forced, 0);
    until_gone(atoi(until_written(1)));
    until_gone(-group);
}
END_TEST

START_TEST(daemon_of_a_clean_exit_lives_on) {
    start("setsid sh -c 'echo $$ > $OUT; exec sleep 60' & while ! [ -s $OUT ]; do sleep 0.01; done");
    guard_run(&guard, 1, clock_now_ms() + FAR_MS);
    until_started();
    until_ended();
    const pid_t daemon = atoi(until_written(1));
    ck_assert_uint_eq(last.forced, 0);
    ck_assert_int_eq(kill(daemon, 0), 0);
    kill(daemon, SIGKILL);
}
END_TEST

START_TEST(daemon_of_a_lost_lock_does_not) {
    start("setsid sh -c 'echo $$ > $OUT; exec sleep 60' & sleep 60");
    guard_run(&guard, 1, clock_now_ms() + 1000);
    until_started();
    const pid_t daemon = atoi(until_written(1));
    until_ended();
    ck_assert_uint_eq(last.forced, 1);
    until_gone(daemon);
}
END_TEST

START_TEST(guard_killed_is_noticed) {
    start("echo on > $OUT; exec sleep 60");
    guard_run(&guard, 1, clock_now_ms() + FAR_MS);
    const pid_t group = until_started();
    until_written(3);
    ck_assert_int_eq(kill(guard.pid, SIGKILL), 0);
    struct pollfd fd = {.fd = guard.report_fd, .events = POLLIN};
    ck_assert_int_eq(poll(&fd, 1, LIMIT_MS), 1);
    ck_assert_int_eq(guard_read(&guard, &last), -1);
    until_gone(group);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("guard");
    TCase *tc = tcase_create("guard");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, status_is_the_shells, 0, sizeof status_rows / sizeof status_rows[0]);
    tcase_add_loop_test(tc, command_that_cannot_run, 0, sizeof missing_rows / sizeof missing_rows[0]);
    tcase_add_test(tc, command_is_told);
    tcase_add_test(tc, command_inherits_what_it_should);
    tcase_add_test(tc, command_starts_with_a_clean_mask);
    tcase_add_test(tc, deadline_ends_it);
    tcase_add_test(tc, later_deadlines_count);
    tcase_add_test(tc, too_late_to_start);
    tcase_add_test(tc, stopped_command_is_ended_too);
    tcase_add_test(tc, closed_pipe_ends_it);
    tcase_add_test(tc, closed_pipe_after_the_deadline);
    tcase_add_test(tc, told_to_stop);
    tcase_add_test(tc, signals_are_passed_on);
    tcase_add_test(tc, what_it_leaves_in_its_group_is_ended);
    tcase_add_test(tc, daemon_of_a_clean_exit_lives_on);
    tcase_add_test(tc, daemon_of_a_lost_lock_does_not);
    tcase_add_test(tc, guard_killed_is_noticed);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_set_tap(runner, "-");
    srunner_run_all(runner, CK_SILENT);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
