/* What a store was given is there after it was opened again, whole and in order, or opening says why not.
 * Guards S1, S3, S5 of store.h.  Real LMDB in a directory of its own; damage is done to the file by hand. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/io/clock.h"
#include "lockd/io/store.h"

enum { NODE = 1, MAP_BYTES = 16 * 1024 * 1024 };

static char directory[64];
static char error[STORE_ERROR_BYTES];
static char data_path[128];
static int wakes;
static struct store *s;

static void wake(void *context) {
    (void)context;
    const uint64_t one = 1;
    ck_assert_int_eq(write(wakes, &one, sizeof one), sizeof one);
}

static struct store_config config_of(void) {
    return (struct store_config){.directory = directory,
                                 .map_bytes = MAP_BYTES,
                                 .node = NODE,
                                 .fresh_store_id = 0x5107e,
                                 .queue_bytes_max = 1 << 20,
                                 .wake = wake};
}

static int try_open(void) {
    const struct store_config config = config_of();
    s = NULL;
    return store_open(&config, &s, error, sizeof error);
}
static paxos_slot checkpoint_slot; /* where the checkpoint is that a test imagines */

static void remove_directory(void) {
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    ck_assert_int_eq(system(command), 0);
}

static void setup(void) {
    /* thousands of syncs, and nothing here is about what they do */
    snprintf(directory, sizeof directory, "%s/test_store.XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(directory));
    wakes = eventfd(0, EFD_CLOEXEC);
    ck_assert_int_ge(wakes, 0);
    ck_assert_msg(try_open() == 0, "%s", error);
}

static void teardown(void) {
    store_close(s);
    close(wakes);
    remove_directory();
}

/* Block until `batch` is durable. */
static void wait_durable(uint64_t batch) {
    bool failed;
    while (store_durable(s, &failed, error, sizeof error) < batch) {
        uint64_t count;
        ck_assert_msg(!failed, "%s", error);
        ck_assert_int_eq(read(wakes, &count, sizeof count), sizeof count);
    }
}

/* The value of a slot: different lengths, so that some lie in pages of their own. */
static struct slice value_of(paxos_slot slot, uint64_t round) {
    static char memory[1 << 16];
    const size_t bytes = slot % 7 == 0 ? 9000 + slot : slot % 5 == 0 ? 0 : slot * 3 % 200; /* some are empty */
    for (size_t i = 0; i < bytes; i++) memory[i] = (char)((slot * 1000003 + round * 7919 + i) * 2654435761u >> 13);
    return slice_of(memory, bytes);
}

static void save_entry(uint64_t batch, paxos_slot slot, uint64_t round, paxos_slot chosen) {
    const struct paxos_entry entry = {.slot = slot, .ballot = {round, 2}, .value = value_of(slot, round)};
    const struct paxos_output out = {.batch = batch, .saves = &entry, .save_count = 1, .save_chosen = chosen};
    store_save(s, batch, &out, NULL);
}

static paxos_slot replayed;
static uint64_t replayed_round;
static void replay_one(void *context, paxos_slot slot, struct slice value) {
    (void)context;
    ck_assert_uint_eq(slot, ++replayed);
    ck_assert(slice_equal(value, value_of(slot, replayed_round)));
}
static int replay(void) {
    replayed = checkpoint_slot;
    return store_replay(s, replay_one, NULL, error, sizeof error);
}

/* Slots 1..40 under ballot 5, chosen up to 33, a promise of 6, a lease, a record. */
static void fill(void) {
    const struct identity_record record = {.cluster_id = 77, .members = {.voters = 7, .store_ids = {1, 2, 3}}};
    const struct paxos_output promise = {.save_promise = true, .promised = {6, 1}, .save_lease_ms = 300};
    replayed_round = 5;
    store_save(s, 1, NULL, &record);
    store_save(s, 2, &promise, NULL);
    for (paxos_slot slot = 1; slot <= 40; slot++) {
        save_entry(2 + slot, slot, 5, slot > 7 ? slot - 7 : 0);
        if (slot % 4 == 0) wait_durable(2 + slot); /* some commits, each of some batches */
    }
}

static void reopen(void) {
    store_close(s);
    ck_assert_msg(try_open() == 0, "%s", error);
    ck_assert_msg(store_start_after(s, checkpoint_slot, error, sizeof error) == 0, "%s", error);
}

START_TEST(a_new_store_is_empty) {
    struct replica_saved saved;
    store_saved(s, &saved);
    ck_assert_uint_eq(store_id(s), 0x5107e);
    ck_assert(!saved.paxos.restarted);
    ck_assert_uint_eq(saved.paxos.chosen, 0);
    ck_assert_uint_eq(saved.paxos.accepted_count, 0);
    ck_assert_uint_eq(saved.record.cluster_id, 0);
    ck_assert_int_eq(replay(), 0);
    ck_assert_uint_eq(replayed, 0);
}
END_TEST

START_TEST(all_is_there_again) {
    struct replica_saved saved;
    fill();
    reopen();
    store_saved(s, &saved);
    ck_assert_uint_eq(store_id(s), 0x5107e);
    ck_assert(saved.paxos.restarted);
    ck_assert_uint_eq(saved.paxos.promised.round, 6);
    ck_assert_uint_eq(saved.paxos.promised.node, 1);
    ck_assert_uint_eq(saved.paxos.lease_ms_max, 300);
    ck_assert_uint_eq(saved.paxos.chosen, 33);
    ck_assert_uint_eq(saved.record.cluster_id, 77);
    ck_assert_uint_eq(saved.record.members.store_ids[2], 3);
    ck_assert_uint_eq(saved.paxos.accepted_count, 7);
    for (uint32_t i = 0; i < 7; i++) {
        const struct paxos_entry *entry = &saved.paxos.accepted[i];
        ck_assert_uint_eq(entry->slot, 34 + i);
        ck_assert_uint_eq(entry->ballot.round, 5);
        ck_assert_uint_eq(entry->ballot.node, 2);
        ck_assert(slice_equal(entry->value, value_of(entry->slot, 5)));
    }
    ck_assert_msg(replay() == 0, "%s", error);
    ck_assert_uint_eq(replayed, 33);
}
END_TEST

/* A slot accepted again under a higher ballot replaces what was there; a slot may come late. */
START_TEST(a_replaced_entry_is_the_newer_one) {
    struct replica_saved saved;
    replayed_round = 5;
    save_entry(1, 1, 5, 0);
    save_entry(2, 4, 5, 0);
    save_entry(3, 3, 5, 0);
    wait_durable(3);
    save_entry(4, 4, 9, 0);
    save_entry(5, 2, 5, 1);
    wait_durable(5);
    reopen();
    store_saved(s, &saved);
    ck_assert_uint_eq(saved.paxos.accepted_count, 3);
    ck_assert_uint_eq(saved.paxos.accepted[2].slot, 4);
    ck_assert_uint_eq(saved.paxos.accepted[2].ballot.round, 9);
    ck_assert(slice_equal(saved.paxos.accepted[2].value, value_of(4, 9)));
    ck_assert_msg(replay() == 0, "%s", error);
    ck_assert_uint_eq(replayed, 1);
}
END_TEST

START_TEST(fetch_gives_what_fits) {
    struct paxos_entry entries[64];
    fill();
    ck_assert_uint_eq(store_fetch(s, 1, 40, 1 << 20, entries, 64), 40);
    for (uint32_t i = 0; i < 40; i++) ck_assert(slice_equal(entries[i].value, value_of(i + 1, 5)));
    ck_assert_uint_eq(store_fetch(s, 7, 40, 1, entries, 64), 1); /* one, however long */
    ck_assert_uint_eq(store_fetch(s, 1, 40, 1 << 20, entries, 3), 3);
    ck_assert_uint_eq(store_fetch(s, 39, 60, 1 << 20, entries, 64), 2);
    ck_assert_uint_eq(store_fetch(s, 41, 60, 1 << 20, entries, 64), 0);
    ck_assert_uint_eq(store_fetch(s, 0, 60, 1 << 20, entries, 64), 0);
    save_entry(43, 41, 5, 0);
    wait_durable(43);
    ck_assert_uint_eq(store_fetch(s, 41, 60, 1 << 20, entries, 64), 1); /* a new reading sees the new commit */
}
END_TEST

START_TEST(lag_is_of_what_waits) {
    ck_assert_uint_eq(store_lag_ms(s, clock_now_ms() + 1000), 0);
    save_entry(1, 1, 1, 0);
    wait_durable(1);
    ck_assert_uint_eq(store_lag_ms(s, clock_now_ms() + 1000), 0);
}
END_TEST

START_TEST(a_second_process_is_refused) {
    const pid_t child = fork();
    if (child == 0) {
        const struct store_config config = config_of();
        struct store *other = NULL;
        char text[STORE_ERROR_BYTES], want[64];
        snprintf(want, sizeof want, "(pid %ld)", (long)getppid());
        if (store_open(&config, &other, text, sizeof text) == 0) _exit(1);
        _exit(strstr(text, directory) != NULL && strstr(text, want) != NULL ? 0 : 2);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", (unsigned)status);
}
END_TEST

START_TEST(another_nodes_directory_is_refused) {
    struct store_config config = config_of();
    store_close(s);
    s = NULL;
    config.node = 0;
    ck_assert_int_eq(store_open(&config, &s, error, sizeof error), -1);
    ck_assert_msg(strstr(error, "belongs to node 2") != NULL && strstr(error, "as node 1 ") != NULL, "%s", error);
    ck_assert_ptr_null(s);
}
END_TEST

START_TEST(a_directory_that_cannot_be_made_is_named) {
    struct store_config config = config_of();
    struct store *other = NULL;
    config.directory = "/proc/no/such";
    ck_assert_int_eq(store_open(&config, &other, error, sizeof error), -1);
    ck_assert_msg(strstr(error, "/proc/no/such") != NULL && strstr(error, "data-dir") != NULL, "%s", error);
    config.directory = "/dev/null";
    ck_assert_int_eq(store_open(&config, &other, error, sizeof error), -1);
    ck_assert_msg(strstr(error, "/dev/null") != NULL, "%s", error);
}
END_TEST

START_TEST(a_full_map_fails_once_and_names_the_key) {
    struct store_config config = config_of();
    bool failed = false;
    store_close(s);
    remove_directory();
    config.map_bytes = 256 * 1024;
    ck_assert_msg(store_open(&config, &s, error, sizeof error) == 0, "%s", error);
    uint64_t batch = 0;
    while (!failed && batch < 1000) {
        uint64_t count;
        batch++;
        save_entry(batch, 7 * batch, 1, 0);
        ck_assert_int_eq(read(wakes, &count, sizeof count), sizeof count);
        const uint64_t durable = store_durable(s, &failed, error, sizeof error);
        ck_assert(failed ? durable == batch - 1 : durable == batch);
    }
    ck_assert(failed);
    ck_assert_msg(strstr(error, "log-map-bytes") != NULL, "%s", error);
    save_entry(batch + 1, 7 * batch + 7, 1, 0); /* is dropped, and does not block */
    store_close(s);
    s = NULL;
    config.map_bytes = MAP_BYTES; /* as the message says */
    ck_assert_msg(store_open(&config, &s, error, sizeof error) == 0, "%s", error);
    struct replica_saved saved;
    store_saved(s, &saved);
    ck_assert_uint_eq(saved.paxos.accepted_count, batch - 1);
}
END_TEST

/* ---- the cut ---- */

static uint64_t batches; /* of the tests below */

static void append(paxos_slot from, paxos_slot to) {
    replayed_round = 5;
    for (paxos_slot slot = from; slot <= to; slot++) save_entry(++batches, slot, 5, slot > 3 ? slot - 3 : 0);
}

/* The cut is durable and nothing below it is left; the thread goes on without being asked. */
static void wait_cut(paxos_slot slot) {
    struct paxos_entry entry;
    while (store_first_slot(s) <= slot) sched_yield();
    ck_assert_uint_eq(store_fetch(s, slot, slot, 1, &entry, 1), 0);
}

START_TEST(a_cut_log_begins_after_the_cut) {
    struct replica_saved saved;
    struct paxos_entry entries[64];
    append(1, 3000);
    store_cut(s, 2000);
    ck_assert_uint_eq(store_fetch(s, 2000, 2010, 1 << 20, entries, 64), 0); /* from now on, wherever the thread is */
    wait_cut(2000);
    ck_assert_uint_eq(store_first_slot(s), 2001);
    ck_assert_uint_eq(store_fetch(s, 2001, 2010, 1 << 20, entries, 64), 10);
    append(3001, 3010);
    store_cut(s, 1500); /* behind the cut: nothing */
    wait_durable(batches);
    checkpoint_slot = 2500;
    reopen();
    store_saved(s, &saved);
    ck_assert_uint_eq(saved.paxos.chosen, 3007);
    ck_assert_uint_eq(saved.paxos.accepted_count, 3);
    ck_assert_msg(replay() == 0, "%s", error);
    ck_assert_uint_eq(replayed, 3007);
    ck_assert_uint_eq(store_fetch(s, 2001, 2010, 1 << 20, entries, 64), 10);
    ck_assert_uint_eq(store_fetch(s, 2000, 2010, 1 << 20, entries, 64), 0);
}
END_TEST

/* Whatever was deleted when the process stopped, the rest goes in its next life. */
START_TEST(a_cut_goes_on_after_a_restart) {
    append(1, 4000);
    wait_durable(batches);
    store_cut(s, 3900);
    const struct paxos_output out = {.save_lease_ms = 1};
    store_save(s, ++batches, &out, NULL); /* with this one at the latest the cut is durable */
    checkpoint_slot = 3900;
    reopen();
    ck_assert_msg(replay() == 0, "%s", error);
    ck_assert_uint_eq(replayed, 3997);
    batches = 0;
    wait_cut(3900);
    ck_assert_uint_eq(store_first_slot(s), 3901);
    reopen();
    ck_assert_msg(replay() == 0, "%s", error);
}
END_TEST

START_TEST(a_log_without_its_checkpoint_is_refused) {
    append(1, 100);
    store_cut(s, 50);
    wait_durable(batches);
    wait_cut(50);
    store_close(s);
    ck_assert_msg(try_open() == 0, "%s", error);
    ck_assert_int_eq(store_start_after(s, 0, error, sizeof error), -1);
    ck_assert_msg(strstr(error, "there is no checkpoint of slot 50") != NULL && strstr(error, directory) != NULL, "%s",
                  error);
    ck_assert_int_eq(store_start_after(s, 49, error, sizeof error), -1);
    ck_assert_msg(strstr(error, "only of slot 49") != NULL, "%s", error);
    ck_assert_int_eq(store_start_after(s, 50, error, sizeof error), 0);
}
END_TEST

/* A checkpoint that came from a peer: what the log has up to its slot may be anything, and is nobody's any more. */
START_TEST(a_checkpoint_ahead_of_the_log_is_believed) {
    struct replica_saved saved;
    struct paxos_entry entries[64];
    replayed_round = 5;
    for (paxos_slot slot = 1; slot <= 40; slot += slot < 20 ? 1 : 3)
        save_entry(++batches, slot, 5, slot < 20 && _i == 0 ? slot : 0);
    wait_durable(batches);
    checkpoint_slot = 30;
    for (int life = 0; life < 2; life++) {
        reopen();
        store_saved(s, &saved);
        ck_assert_uint_eq(saved.paxos.chosen, 30);
        ck_assert_uint_eq(saved.paxos.accepted_count, 3);
        ck_assert_uint_eq(saved.paxos.accepted[0].slot, 32);
        ck_assert(slice_equal(saved.paxos.accepted[0].value, value_of(32, 5)));
        ck_assert_msg(replay() == 0, "%s", error);
        ck_assert_uint_eq(replayed, 30);
        ck_assert_uint_eq(store_fetch(s, 5, 40, 1 << 20, entries, 64), 0);
        batches = 0;
        if (life == 0) wait_cut(30);
        save_entry(++batches, 7, 5, 0); /* comes late */
        wait_durable(batches);
        ck_assert_uint_eq(store_first_slot(s), 32);
    }
    checkpoint_slot = 29; /* it was durable as well */
    store_close(s);
    ck_assert_msg(try_open() == 0, "%s", error);
    ck_assert_int_eq(store_start_after(s, checkpoint_slot, error, sizeof error), -1);
}
END_TEST

/* Generations of log, entries from none to many pages long: the file stops growing after the first few. */
START_TEST(the_file_does_not_grow) {
    enum { GENERATIONS = 3000, SLOTS = 16 };
    struct store_config config = config_of();
    struct stat st;
    off_t early = 0;
    store_close(s);
    remove_directory();
    config.map_bytes = 4 * 1024 * 1024;
    ck_assert_msg(store_open(&config, &s, error, sizeof error) == 0, "%s", error);
    const uint64_t room = store_room_bytes(s);
    snprintf(data_path, sizeof data_path, "%s/log/data.mdb", directory);
    for (paxos_slot generation = 1; generation <= GENERATIONS; generation++) {
        for (paxos_slot slot = (generation - 1) * SLOTS + 1; slot <= generation * SLOTS; slot++) {
            const struct paxos_entry entry = {.slot = slot, .ballot = {5, 2}, .value = value_of(slot % 977, 5)};
            const struct paxos_output out = {.saves = &entry, .save_count = 1, .save_chosen = slot};
            store_save(s, ++batches, &out, NULL);
        }
        wait_durable(batches);
        if (generation > 1) store_cut(s, (generation - 1) * SLOTS - 3);
        if (generation == GENERATIONS / 10) {
            ck_assert_int_eq(stat(data_path, &st), 0);
            early = st.st_size;
        }
    }
    ck_assert_int_eq(stat(data_path, &st), 0);
    /* How much is free at a time hangs on how many transactions share a commit, so the size varies by some pages; one
     * page lost in each of the 2,700 generations since would make it fifty times as large. */
    ck_assert_msg(st.st_size <= 2 * early, "%lld bytes, and %lld early on", (long long)st.st_size, (long long)early);
    wait_cut((GENERATIONS - 1) * SLOTS - 3);
    ck_assert_uint_gt(store_room_bytes(s), room - 256 * 1024); /* what was given back counts */
    ck_assert_uint_le(store_room_bytes(s), room);
}
END_TEST

/* ---- damage ---- */

static char *image;
static size_t image_bytes;

static void take_image(void) {
    struct stat st;
    fill();
    store_close(s);
    s = NULL;
    snprintf(data_path, sizeof data_path, "%s/log/data.mdb", directory);
    const int fd = open(data_path, O_RDONLY);
    ck_assert_int_eq(fstat(fd, &st), 0);
    image_bytes = (size_t)st.st_size;
    image = malloc(image_bytes);
    ck_assert_int_eq(read(fd, image, image_bytes), (ssize_t)image_bytes);
    close(fd);
}

static void put_image(const char *data, size_t bytes) {
    const int fd = open(data_path, O_WRONLY | O_TRUNC);
    ck_assert_int_eq(write(fd, data, bytes), (ssize_t)bytes);
    close(fd);
}

/* Open and replay what is in data_path; true: it was refused, with a message that names the directory.  A healthy
 * answer must be the whole truth. */
static bool refused(void) {
    struct replica_saved saved;
    bool answer = true;
    if (try_open() == 0) {
        store_saved(s, &saved);
        const bool whole = saved.paxos.promised.round == 6 && saved.paxos.chosen == 33 &&
                           saved.paxos.accepted_count == 7 && saved.record.cluster_id == 77;
        bool good = whole;
        for (uint32_t i = 0; whole && i < 7; i++)
            good = good && slice_equal(saved.paxos.accepted[i].value, value_of(34 + i, 5));
        answer = replay() != 0;
        if (!answer) ck_assert(good && replayed == 33);
    }
    if (answer) ck_assert_msg(strstr(error, directory) != NULL, "%s", error);
    store_close(s);
    s = NULL;
    return answer;
}

/* In a process of its own: a damaged environment is left open. */
enum { BELIEVED = 10, REFUSED };
static int refusals(void (*damage)(size_t at), size_t from, size_t to, size_t step) {
    int refused_count = 0;
    for (size_t at = from; at < to; at += step) {
        const pid_t child = fork();
        if (child == 0) {
            damage(at);
            _exit(refused() ? REFUSED : BELIEVED); /* a failed assertion exits with 1 */
        }
        int status;
        ck_assert_int_eq(waitpid(child, &status, 0), child);
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) >= BELIEVED, "byte %zu: status %x", at,
                      (unsigned)status);
        refused_count += WEXITSTATUS(status) == REFUSED;
    }
    return refused_count;
}

static void flip_byte(size_t at) {
    image[at] = (char)(image[at] ^ 0x10);
    put_image(image, image_bytes);
}

/* A flipped byte anywhere is refused, or was in nothing that is read: never a wrong answer, never a crash. */
START_TEST(a_flipped_byte_is_never_believed) {
    take_image();
    const int count = refusals(flip_byte, 0, image_bytes, 211);
    ck_assert_msg(count * 3 > (int)(image_bytes / 211), "only %d of %zu", count, image_bytes / 211);
    free(image);
}
END_TEST

/* Every byte of a value is covered: the longest one lies in pages of its own. */
START_TEST(a_flipped_byte_of_a_value_is_refused) {
    take_image();
    const struct slice value = value_of(14, 5);
    size_t at = 0;
    while (at + 64 < image_bytes && memcmp(image + at, value.data, 64) != 0) at++;
    ck_assert_uint_lt(at + 64, image_bytes);
    ck_assert_int_eq(refusals(flip_byte, at, at + value.bytes, 997), (int)((value.bytes + 996) / 997));
    free(image);
}
END_TEST

static uint64_t newest_txn(size_t *ret_at) {
    uint64_t txn[2];
    memcpy(&txn[0], image + 144, 8);
    memcpy(&txn[1], image + 4096 + 144, 8);
    *ret_at = (txn[0] > txn[1] ? 0 : 4096) + 144;
    return txn[0] > txn[1] ? txn[0] : txn[1];
}
static void set_newest_txn(size_t txn) {
    size_t at;
    newest_txn(&at);
    memcpy(image + at, &(uint64_t){txn}, 8);
    put_image(image, image_bytes);
}
/* The id of the newest transaction, made older: LMDB would quietly take the one before for the truth. */
START_TEST(a_lost_last_transaction_is_refused) {
    size_t at;
    take_image();
    const uint64_t txn = newest_txn(&at);
    ck_assert_int_eq(refusals(set_newest_txn, 0, txn, 1), (int)txn);
    ck_assert_int_eq(refusals(set_newest_txn, txn, txn + 1, 1), 0); /* as it was */
    ck_assert_int_eq(refusals(set_newest_txn, txn + 1, txn + 10, 1), 9);
    free(image);
}
END_TEST

/* Every byte of the record "state", in every copy that lies around. */
static void flip_state(size_t offset) {
    for (size_t at = 0; at + 256 < image_bytes; at++)
        if (memcmp(image + at, "HLF4", 4) == 0) image[at - 8 + offset] = (char)(image[at - 8 + offset] ^ 0x01);
    put_image(image, image_bytes);
}
START_TEST(a_flipped_byte_of_the_state_is_refused) {
    const size_t state_bytes = 8 + 4 + 8 + 2 + 10 + 4 + 8 + 8 + 8 + 16 + 8 + 12 + 10 * PAXOS_NODES_MAX;
    take_image();
    ck_assert_int_eq(refusals(flip_state, 0, state_bytes, 1), (int)state_bytes);
    free(image);
}
END_TEST

/* A leaf page that counts one entry less: what is left is in order and every checksum holds. */
static void forget_last(size_t slot) {
    const uint8_t key[8] = {0, 0, 0, 0, 0, 0, 0, (uint8_t)slot};
    for (size_t page = 0; page + 4096 <= image_bytes; page += 4096) {
        uint16_t flags, lower;
        memcpy(&flags, image + page + 10, 2);
        memcpy(&lower, image + page + 12, 2);
        if (flags != 2 || memmem(image + page, 4096, key, 8) == NULL) continue;
        if (memmem(image + page, 4096, "state", 5) != NULL) continue;
        lower = (uint16_t)(lower - 2);
        memcpy(image + page + 12, &lower, 2);
    }
    put_image(image, image_bytes);
}
START_TEST(a_forgotten_entry_is_refused) {
    take_image();
    ck_assert_int_eq(refusals(forget_last, 40, 41, 1), 1);
    ck_assert_int_eq(refusals(forget_last, 200, 201, 1), 0); /* which nobody has: nothing is damaged */
    free(image);
}
END_TEST

static void cut_at(size_t at) {
    put_image(image, at);
}
START_TEST(a_file_cut_short_is_refused) {
    take_image();
    const int count = refusals(cut_at, 4096, image_bytes - 8192, 9001);
    ck_assert_int_gt(count, 5);
    free(image);
}
END_TEST

static void zero_page(size_t at) {
    memset(image + at, 0, 4096);
    put_image(image, image_bytes);
}
START_TEST(a_zeroed_page_is_never_believed) {
    take_image();
    ck_assert_int_gt(refusals(zero_page, 0, image_bytes - 4095, 4096), 5);
    free(image);
}
END_TEST

/* A file left by a crash before the first page was written is as good as none. */
START_TEST(an_empty_file_is_a_first_start) {
    struct replica_saved saved;
    store_close(s);
    snprintf(data_path, sizeof data_path, "%s/log/data.mdb", directory);
    put_image("", 0);
    ck_assert_msg(try_open() == 0, "%s", error);
    store_saved(s, &saved);
    ck_assert(!saved.paxos.restarted);
}
END_TEST

/* A disk that goes bad under a running node: what a peer asks for is not given, and the node learns why. */
START_TEST(a_fetch_of_damage_fails_the_store) {
    struct paxos_entry entries[64];
    bool failed;
    take_image();
    ck_assert_msg(try_open() == 0, "%s", error);
    ck_assert_msg(replay() == 0, "%s", error);
    const struct slice value = value_of(14, 5);
    size_t at = 0;
    while (memcmp(image + at, value.data, 64) != 0) at++;
    const int fd = open(data_path, O_WRONLY);
    ck_assert_int_eq(pwrite(fd, "\x55", 1, (off_t)at + 100), 1);
    close(fd);
    ck_assert_uint_eq(store_fetch(s, 1, 40, 1 << 20, entries, 64), 0);
    store_durable(s, &failed, error, sizeof error);
    ck_assert(failed);
    ck_assert_msg(strstr(error, "slot 14") != NULL, "%s", error);
    free(image);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("store");
    TCase *use = tcase_create("use"), *damage = tcase_create("damage");
    tcase_add_checked_fixture(use, setup, teardown);
    tcase_add_test(use, a_new_store_is_empty);
    tcase_add_test(use, all_is_there_again);
    tcase_add_test(use, a_replaced_entry_is_the_newer_one);
    tcase_add_test(use, fetch_gives_what_fits);
    tcase_add_test(use, lag_is_of_what_waits);
    tcase_add_test(use, a_second_process_is_refused);
    tcase_add_test(use, another_nodes_directory_is_refused);
    tcase_add_test(use, a_directory_that_cannot_be_made_is_named);
    tcase_add_test(use, a_full_map_fails_once_and_names_the_key);
    tcase_add_test(use, an_empty_file_is_a_first_start);
    tcase_set_timeout(use, 60);
    tcase_add_test(use, a_cut_log_begins_after_the_cut);
    tcase_add_test(use, a_cut_goes_on_after_a_restart);
    tcase_add_test(use, a_log_without_its_checkpoint_is_refused);
    tcase_add_loop_test(use, a_checkpoint_ahead_of_the_log_is_believed, 0, 2);
    tcase_add_test(use, the_file_does_not_grow);
    suite_add_tcase(suite, use);
    tcase_add_checked_fixture(damage, setup, teardown);
    tcase_set_timeout(damage, 60);
    tcase_add_test(damage, a_flipped_byte_is_never_believed);
    tcase_add_test(damage, a_flipped_byte_of_a_value_is_refused);
    tcase_add_test(damage, a_lost_last_transaction_is_refused);
    tcase_add_test(damage, a_flipped_byte_of_the_state_is_refused);
    tcase_add_test(damage, a_forgotten_entry_is_refused);
    tcase_add_test(damage, a_file_cut_short_is_refused);
    tcase_add_test(damage, a_zeroed_page_is_never_believed);
    tcase_add_test(damage, a_fetch_of_damage_fails_the_store);
    suite_add_tcase(suite, damage);
    SRunner *sr = srunner_create(suite);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_ENV);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
