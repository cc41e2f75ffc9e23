/* A checkpoint is the state of one moment, whole, or the one before it; and a damaged one is never believed.
 * Guards C1-C5 of checkpoint.h.  Real processes and files; damage is done to the file by hand. */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "lockd/io/checkpoint.h"

enum { WAIT_S = 20, PIECE = 10007, PAGE = 4096 };

static char directory[64], path[96], tmp_path[96];
static char error[CHECKPOINT_ERROR_BYTES];
static struct event_base *base;
static struct checkpoint *c;

/* What done() was told. */
static uint32_t dones;
static paxos_slot done_slot;
static char done_error[CHECKPOINT_ERROR_BYTES];
static void on_done(void *context, paxos_slot slot, const char *what) {
    (void)context;
    dones++;
    done_slot = slot;
    snprintf(done_error, sizeof done_error, "%s", what != NULL ? what : "");
}

static int try_open(void) {
    const struct checkpoint_config config = {
        .directory = directory, .base = base, .store_id = 0x5107e, .done = on_done};
    c = NULL;
    return checkpoint_open(&config, &c, error, sizeof error);
}
static void reopen(void) {
    checkpoint_close(c);
    ck_assert_msg(try_open() == 0, "%s", error);
}

static void setup(void) {
    snprintf(directory, sizeof directory, "%s/test_checkpoint.XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/checkpoint", directory);
    snprintf(tmp_path, sizeof tmp_path, "%s/checkpoint.tmp", directory);
    base = event_base_new();
    ck_assert_msg(try_open() == 0, "%s", error);
}
static void teardown(void) {
    char command[128];
    checkpoint_close(c);
    event_base_free(base);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    ck_assert_int_eq(system(command), 0);
}

/* The state: so many bytes that follow from a seed.  `act` is done before piece number `at` is given, by the child. */
struct state {
    size_t bytes;
    uint32_t seed;
    size_t at;
    int (*act)(void);
};
static void fill(char *to, size_t bytes, uint32_t seed, size_t from) {
    for (size_t i = 0; i < bytes; i++) to[i] = (char)(((from + i) * 2654435761u + seed) >> 11);
}
static int save(const void *of, int (*put)(void *context, struct slice bytes), void *context) {
    const struct state *state = of;
    static char piece[PIECE];
    size_t number = 0;
    for (size_t at = 0; at < state->bytes || number <= state->at; at += PIECE, number++) {
        if (state->act != NULL && number == state->at && state->act() != 0) return -1;
        if (at >= state->bytes) continue;
        const size_t bytes = state->bytes - at < PIECE ? state->bytes - at : PIECE;
        fill(piece, bytes, state->seed, at);
        const int rc = put(context, slice_of(piece, bytes));
        if (rc != 0) return rc;
    }
    return 0;
}
static int check(void *of, paxos_slot slot, struct slice bytes, char *why, size_t why_bytes) {
    const struct state *state = of;
    char *want = malloc(state->bytes + 1);
    (void)slot;
    fill(want, state->bytes, state->seed, 0);
    const bool same = slice_equal(bytes, slice_of(want, state->bytes));
    free(want);
    snprintf(why, why_bytes, "these are other bytes");
    return same ? 0 : 1;
}

static void wait_done(uint32_t count) {
    while (dones < count) ck_assert_int_eq(event_base_loop(base, EVLOOP_ONCE), 0);
    ck_assert_uint_eq(dones, count);
}
static void write_one(paxos_slot slot, const struct state *state) {
    const uint32_t before = dones;
    ck_assert_int_eq(checkpoint_begin(c, slot, 77, save, state), 0);
    ck_assert_int_ne(checkpoint_running(c), 0);
    wait_done(before + 1);
    ck_assert_int_eq(checkpoint_running(c), 0);
    ck_assert_uint_eq(done_slot, slot);
}
static void check_now(paxos_slot slot, struct state *state) {
    ck_assert_uint_eq(checkpoint_now(c)->slot, slot);
    ck_assert_uint_eq(checkpoint_now(c)->cluster_id, 77);
    ck_assert_uint_eq(checkpoint_now(c)->bytes, state->bytes);
    ck_assert_msg(checkpoint_load(c, check, state, error, sizeof error) == 0, "%s", error);
}

/* ---- use ---- */

static const size_t lengths[] = {0,
                                 1,
                                 PIECE,
                                 CHECKPOINT_CHUNK_BYTES - 1,
                                 CHECKPOINT_CHUNK_BYTES,
                                 CHECKPOINT_CHUNK_BYTES + 1,
                                 9 * CHECKPOINT_CHUNK_BYTES,
                                 80 * CHECKPOINT_CHUNK_BYTES + 17};
START_TEST(what_was_written_is_there_again) {
    struct state state = {.bytes = lengths[_i], .seed = 4};
    char *want = malloc(state.bytes + 1);
    struct slice got;
    ck_assert_uint_eq(checkpoint_now(c)->slot, 0);
    ck_assert_int_eq(checkpoint_read(c, 0, 0, &got), -ESTALE);
    write_one(9, &state);
    ck_assert_str_eq(done_error, "");
    check_now(9, &state);
    reopen();
    check_now(9, &state);
    ck_assert_int_ne(access(tmp_path, F_OK), 0);
    fill(want, state.bytes, state.seed, 0);
    for (size_t at = 0; at < state.bytes; at += got.bytes) {
        ck_assert_int_eq(checkpoint_read(c, 9, at, &got), 0);
        ck_assert_uint_gt(got.bytes, 0);
        ck_assert_uint_le(got.bytes, CHECKPOINT_CHUNK_BYTES);
        ck_assert_int_eq(memcmp(got.data, want + at, got.bytes), 0);
        if (got.bytes > 5) got.bytes -= 3; /* any offset will do */
    }
    ck_assert_int_eq(checkpoint_read(c, 9, state.bytes, &got), -ERANGE);
    ck_assert_int_eq(checkpoint_read(c, 9, UINT64_MAX, &got), -ERANGE);
    ck_assert_int_eq(checkpoint_read(c, 8, 0, &got), -ESTALE);
    ck_assert_int_eq(checkpoint_begin(c, 8, 77, save, &state), -EINVAL);
    free(want);
}
END_TEST

START_TEST(it_is_the_state_of_one_moment) {
    struct state state = {.bytes = 30 * CHECKPOINT_CHUNK_BYTES, .seed = 4}, then = state;
    ck_assert_int_eq(checkpoint_begin(c, 9, 77, save, &state), 0);
    state.seed = 5; /* while it is being written */
    wait_done(1);
    check_now(9, &then);
    write_one(10, &state);
    check_now(10, &state);
}
END_TEST

/* ---- the child ---- */

static int die(void) {
    return raise(SIGKILL);
}
static int hang(void) {
    while (pause() != 0) {
    }
    return 0;
}
/* Wherever it is killed, the one before is there and the next one works. */
START_TEST(a_killed_child_changes_nothing) {
    struct state first = {.bytes = 700000, .seed = 1}, second = {.bytes = 900000, .seed = 2, .act = die};
    write_one(5, &first);
    for (second.at = 0; second.at <= 91; second.at += 7) {
        write_one(6, &second);
        ck_assert_msg(strstr(done_error, "signal 9") != NULL, "%s", done_error);
        check_now(5, &first);
        if (second.at % 2 == 0) reopen(); /* half-written and read by nobody */
        check_now(5, &first);
    }
    second.act = NULL;
    write_one(6, &second);
    ck_assert_str_eq(done_error, "");
    check_now(6, &second);
}
END_TEST

/* From outside, as an operator or the system short of memory would. */
START_TEST(a_child_that_was_killed_from_outside_is_told) {
    struct state state = {.bytes = 1000, .seed = 1, .act = hang};
    ck_assert_int_eq(checkpoint_begin(c, 5, 77, save, &state), 0);
    ck_assert_int_eq(kill((pid_t)checkpoint_running(c), SIGKILL), 0);
    wait_done(1);
    ck_assert_msg(strstr(done_error, "signal 9") != NULL, "%s", done_error);
}
END_TEST

/* The newer one waits for the end of the older, and nobody hears of the older again. */
START_TEST(a_newer_one_takes_the_place) {
    struct state stuck = {.bytes = 1000000, .seed = 1, .at = 50, .act = hang}, good = {.bytes = 500000, .seed = 2};
    for (paxos_slot slot = 5; slot < 9; slot++) ck_assert_int_eq(checkpoint_begin(c, slot, 77, save, &stuck), 0);
    checkpoint_abort(c);
    ck_assert_int_eq(checkpoint_running(c), 0);
    ck_assert_int_eq(checkpoint_begin(c, 9, 77, save, &good), 0);
    wait_done(1);
    ck_assert_uint_eq(done_slot, 9);
    check_now(9, &good);
    while (event_base_loop(base, EVLOOP_NONBLOCK) == 0) {
    } /* until every child has been seen off */
    ck_assert_uint_eq(dones, 1);
    ck_assert_int_eq(waitpid(-1, NULL, WNOHANG), -1);
}
END_TEST

/* What the child holds of its parent's; its answer is how save ends. */
static int look_around(void) {
    struct sigaction action;
    sigset_t mask;
    DIR *d = opendir("/proc/self/fd");
    int open_count = 0;
    for (const struct dirent *e = readdir(d); e != NULL; e = readdir(d)) open_count += e->d_name[0] != '.';
    closedir(d);
    sigaction(SIGTERM, NULL, &action);
    sigprocmask(SIG_SETMASK, NULL, &mask);
    if (open_count > 3) return 1; /* standard error, the file, and the directory that is being read */
    if (action.sa_handler != SIG_DFL || sigismember(&mask, SIGTERM)) return 1;
    return 0;
}
static void on_term(int number) {
    (void)number;
}
START_TEST(the_child_holds_nothing_of_its_parents) {
    struct state state = {.bytes = 1000, .seed = 1, .at = 0, .act = look_around};
    int pair[2];
    char lock[96];
    signal(SIGTERM, on_term);
    ck_assert_int_eq(pipe(pair), 0);
    write_one(5, &state);
    ck_assert_str_eq(done_error, "");
    snprintf(lock, sizeof lock, "%s/lock", directory);
    const int held = open(lock, O_RDWR | O_CREAT, 0600);
    ck_assert_int_eq(flock(held, LOCK_EX | LOCK_NB), 0);
    state.act = hang;
    ck_assert_int_eq(checkpoint_begin(c, 6, 77, save, &state), 0);
    while (access(tmp_path, F_OK) != 0) sched_yield(); /* it has left us then */
    close(held);
    const int again = open(lock, O_RDWR);
    ck_assert_int_eq(flock(again, LOCK_EX | LOCK_NB), 0);
    close(again);
    close(pair[0]);
    close(pair[1]);
}
END_TEST

START_TEST(the_child_dies_with_its_parent) {
    struct state state = {.bytes = 1000, .seed = 1, .act = hang};
    int pair[2];
    ck_assert_int_eq(pipe(pair), 0);
    const pid_t parent = fork();
    if (parent == 0) {
        event_reinit(base);
        const long pid = checkpoint_begin(c, 5, 77, save, &state) == 0 ? checkpoint_running(c) : 0;
        while (access(tmp_path, F_OK) != 0) sched_yield();
        _exit(write(pair[1], &pid, sizeof pid) == sizeof pid ? 0 : 1);
    }
    long pid;
    ck_assert_int_eq(read(pair[0], &pid, sizeof pid), sizeof pid);
    ck_assert_int_ne(pid, 0);
    struct pollfd end = {.fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN};
    ck_assert(end.fd < 0 || poll(&end, 1, WAIT_S * 1000) == 1); /* it may be gone already */
    if (end.fd >= 0) close(end.fd);
    ck_assert_int_eq(waitpid(parent, NULL, 0), parent);
}
END_TEST

static int refuse(void) {
    return 1;
}
/* Files may not grow beyond the limit: to the child that is a full disk. */
START_TEST(a_full_disk_is_told_and_leaves_nothing) {
    struct state first = {.bytes = 1000, .seed = 1}, second = {.bytes = 3000000, .seed = 2};
    const struct rlimit small = {.rlim_cur = 1 << 20, .rlim_max = RLIM_INFINITY},
                        whole = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
    write_one(5, &first);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    write_one(6, &second);
    ck_assert_msg(strstr(done_error, strerror(EFBIG)) != NULL && strstr(done_error, directory) != NULL, "%s",
                  done_error);
    ck_assert_int_ne(access(tmp_path, F_OK), 0);
    check_now(5, &first);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &whole), 0);
    second.act = refuse; /* who gives the state cannot go on */
    write_one(6, &second);
    ck_assert_str_ne(done_error, "");
    second.act = NULL;
    write_one(6, &second);
    check_now(6, &second);
}
END_TEST

/* ---- damage ---- */

static char *image;
static size_t image_bytes;
static struct state imaged = {.bytes = 3 * CHECKPOINT_CHUNK_BYTES + 100, .seed = 3};

static void put_file(const char *name, const char *data, size_t bytes) {
    const int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ck_assert_int_eq(write(fd, data, bytes), (ssize_t)bytes);
    close(fd);
}
static void take_image(void) {
    struct stat st;
    write_one(9, &imaged);
    checkpoint_close(c);
    c = NULL;
    const int fd = open(path, O_RDONLY);
    ck_assert_int_eq(fstat(fd, &st), 0);
    image_bytes = (size_t)st.st_size;
    image = malloc(image_bytes);
    ck_assert_int_eq(read(fd, image, image_bytes), (ssize_t)image_bytes);
    close(fd);
}
/* Refused, and the message says where and what to do. */
static bool refused(void) {
    const bool answer = try_open() != 0 || checkpoint_load(c, check, &imaged, error, sizeof error) != 0;
    if (answer) {
        ck_assert_msg(strstr(error, path) != NULL && strstr(error, "NODE.ADD") != NULL, "%s", error);
        ck_assert_ptr_null(strstr(error, "other bytes")); /* noticed before they were given away */
    }
    checkpoint_close(c);
    c = NULL;
    return answer;
}
START_TEST(a_flipped_bit_anywhere_is_refused) {
    take_image();
    ck_assert(!refused());
    for (size_t at = 0; at < image_bytes; at += at < 200 || at > image_bytes - 40 ? 1 : 1013) {
        image[at] = (char)(image[at] ^ 0x10);
        put_file(path, image, image_bytes);
        ck_assert_msg(refused(), "byte %zu", at);
        image[at] = (char)(image[at] ^ 0x10);
    }
    put_file(path, image, image_bytes);
    ck_assert(!refused());
    free(image);
}
END_TEST

START_TEST(another_length_is_refused) {
    take_image();
    for (size_t bytes = 0; bytes < image_bytes; bytes += bytes < 10 ? 1 : 4093) {
        put_file(path, image, bytes);
        ck_assert_msg(refused(), "%zu bytes", bytes);
    }
    image = realloc(image, image_bytes + 1);
    image[image_bytes] = 0;
    put_file(path, image, image_bytes + 1);
    ck_assert(refused());
    free(image);
}
END_TEST

/* Chunks that hold what they should, in each other's place. */
START_TEST(a_misplaced_chunk_is_refused) {
    char *other = malloc(CHECKPOINT_CHUNK_BYTES);
    take_image();
    memcpy(other, image + PAGE, CHECKPOINT_CHUNK_BYTES);
    memmove(image + PAGE, image + PAGE + CHECKPOINT_CHUNK_BYTES, CHECKPOINT_CHUNK_BYTES);
    memcpy(image + PAGE + CHECKPOINT_CHUNK_BYTES, other, CHECKPOINT_CHUNK_BYTES);
    put_file(path, image, image_bytes);
    ck_assert(refused());
    free(other);
    free(image);
}
END_TEST

START_TEST(another_stores_checkpoint_is_refused) {
    take_image();
    const struct checkpoint_config config = {.directory = directory, .base = base, .store_id = 1, .done = on_done};
    ck_assert_int_eq(checkpoint_open(&config, &c, error, sizeof error), -1);
    ck_assert_msg(strstr(error, "another store") != NULL, "%s", error);
    free(image);
}
END_TEST

/* B14: what a crash left of one that was being written. */
START_TEST(a_half_written_one_never_matters) {
    take_image();
    for (size_t bytes = 0; bytes < image_bytes; bytes = bytes * 2 + 1) {
        put_file(tmp_path, image, bytes);
        ck_assert(!refused());
        ck_assert_int_ne(access(tmp_path, F_OK), 0);
    }
    ck_assert_int_eq(unlink(path), 0);
    put_file(tmp_path, image, image_bytes);
    ck_assert_msg(try_open() == 0, "%s", error);
    ck_assert_uint_eq(checkpoint_now(c)->slot, 0);
    free(image);
}
END_TEST

/* A file that gets shorter, or worse, while it is being used. */
START_TEST(damage_that_comes_later_is_refused) {
    struct slice got;
    take_image();
    ck_assert_int_eq(try_open(), 0);
    image[PAGE + CHECKPOINT_CHUNK_BYTES + 5] ^= 1;
    put_file(path, image, image_bytes);
    ck_assert_int_eq(checkpoint_read(c, 9, 0, &got), 0);
    ck_assert_int_eq(checkpoint_read(c, 9, CHECKPOINT_CHUNK_BYTES, &got), -EBADMSG);
    ck_assert_int_eq(truncate(path, PAGE + 100), 0);
    ck_assert_int_eq(checkpoint_read(c, 9, 0, &got), -EIO);
    ck_assert_int_eq(checkpoint_load(c, check, &imaged, error, sizeof error), -1);
    ck_assert_msg(strstr(error, path) != NULL, "%s", error);
    free(image);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("checkpoint");
    TCase *use = tcase_create("use"), *child = tcase_create("child"), *damage = tcase_create("damage");
    tcase_add_checked_fixture(use, setup, teardown);
    tcase_set_timeout(use, 60);
    tcase_add_loop_test(use, what_was_written_is_there_again, 0, sizeof lengths / sizeof lengths[0]);
    tcase_add_test(use, it_is_the_state_of_one_moment);
    suite_add_tcase(suite, use);
    tcase_add_checked_fixture(child, setup, teardown);
    tcase_set_timeout(child, 60);
    tcase_add_test(child, a_killed_child_changes_nothing);
    tcase_add_test(child, a_child_that_was_killed_from_outside_is_told);
    tcase_add_test(child, a_newer_one_takes_the_place);
    tcase_add_test(child, the_child_holds_nothing_of_its_parents);
    tcase_add_test(child, the_child_dies_with_its_parent);
    tcase_add_test(child, a_full_disk_is_told_and_leaves_nothing);
    suite_add_tcase(suite, child);
    tcase_add_checked_fixture(damage, setup, teardown);
    tcase_set_timeout(damage, 60);
    tcase_add_test(damage, a_flipped_bit_anywhere_is_refused);
    tcase_add_test(damage, another_length_is_refused);
    tcase_add_test(damage, a_misplaced_chunk_is_refused);
    tcase_add_test(damage, another_stores_checkpoint_is_refused);
    tcase_add_test(damage, a_half_written_one_never_matters);
    tcase_add_test(damage, damage_that_comes_later_is_refused);
    suite_add_tcase(suite, damage);
    SRunner *sr = srunner_create(suite);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_ENV);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
