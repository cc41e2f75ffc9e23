/* Frames: whatever a peer sends, decoding stays inside the bytes, and what is taken is exactly what encoding would have
 * made of it.  Each input is tried as it is, and again with its length and checksum made right, so that what lies
 * behind the checksum is reached. */
#include <stdlib.h>
#include <xxhash.h>
#include "common/io/heap.h"
#include "lockd/core/frame.h"
#include "tests/fuzz/fuzz.h"

static struct frame_scratch scratch;

/* What frame.h promises of a FRAME_OK. */
static void check_frame(const struct frame *f) {
    switch (f->kind) {
    case FRAME_HELLO: must(f->hello.from < PAXOS_NODES_MAX && f->hello.to < PAXOS_NODES_MAX); break;
    case FRAME_IDENTITY:
        must(f->identity.from < PAXOS_NODES_MAX && f->identity.to < PAXOS_NODES_MAX);
        must(f->identity.node_count <= PAXOS_NODES_MAX);
        must((f->identity.record.members.voters | f->identity.record.members.learners) < 1 << PAXOS_NODES_MAX);
        break;
    case FRAME_PAXOS:
        must(f->paxos.kind >= PAXOS_MSG_PREVOTE && f->paxos.kind < PAXOS_MSG_KIND_END);
        must(f->paxos.from < PAXOS_NODES_MAX && f->paxos.to < PAXOS_NODES_MAX);
        must(ballot_seat(f->paxos.ballot) < PAXOS_NODES_MAX && ballot_seat(f->paxos.promised) < PAXOS_NODES_MAX);
        must(f->paxos.entry_count <= FRAME_ENTRIES_MAX);
        for (uint32_t i = 0; i < f->paxos.entry_count; i++)
            must(f->paxos.entries[i].slot > (i > 0 ? f->paxos.entries[i - 1].slot : 0) &&
                 ballot_seat(f->paxos.entries[i].ballot) < PAXOS_NODES_MAX);
        break;
    case FRAME_FORWARD:
        must(f->forward.kind == FORWARD_WRITE || f->forward.kind == FORWARD_READ);
        must(ballot_seat(f->forward.ballot) < PAXOS_NODES_MAX && f->forward.argc >= 1 &&
             f->forward.argc <= BATCH_ARGC_MAX);
        break;
    case FRAME_ANSWER:
        must(f->answer.kind == ANSWER_REPLY || f->answer.kind == ANSWER_REFUSED);
        must(f->answer.of == FORWARD_WRITE || f->answer.of == FORWARD_READ);
        must(ballot_seat(f->answer.ballot) < PAXOS_NODES_MAX);
        break;
    case FRAME_SNAPSHOT:
        must(f->snapshot.kind >= SNAPSHOT_OFFER && f->snapshot.kind < SNAPSHOT_MSG_KIND_END);
        must(f->snapshot.data.bytes <= SNAPSHOT_DATA_BYTES_MAX);
        break;
    default: must(f->kind == FRAME_HELLO);
    }
}

static void decode(const char *data, size_t bytes) {
    struct frame frame;
    size_t used;
    const enum frame_status status = frame_decode(data, bytes, &frame, &scratch, &used);
    if (status == FRAME_NEED_MORE) must(used == 0 ? bytes < FRAME_HEAD_BYTES : used > bytes && used <= FRAME_BYTES_MAX);
    if (status != FRAME_OK) return;
    must(used <= bytes);
    check_frame(&frame);
    struct buf again = {.alloc = heap_alloc()};
    frame_encode(&frame, &again);
    must(slice_equal(buf_slice(&again), slice_of(data, used)));
    buf_release(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    char *exact = malloc(bytes + (bytes == 0)); /* so that a sanitizer sees a read past the end */
    memcpy(exact, data, bytes);
    decode(exact, bytes);
    if (bytes > 12) {
        struct buf head = {.alloc = heap_alloc()};
        wire_put_u32(&head, (uint32_t)(bytes - 4));
        wire_put_u64(&head, XXH3_64bits(exact + 12, bytes - 12));
        memcpy(exact, head.data, head.bytes);
        buf_release(&head);
        decode(exact, bytes);
    }
    free(exact);
    return 0;
}
