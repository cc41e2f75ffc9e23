/* ks_once.c - commands that run at most once (X).  A lease remembers the replies of the last ONCE commands sent under
 * it, by their sequence numbers, so that a repeat gets the first reply, whoever leads by then.
 *
 *   open   it was seen and has no reply yet: it waits, or its wait was given up.  A repeat runs the command again,
 * which joins a wait that still stands, and begins another if none does. done   its reply is known.
 *
 * After Ongaro and Ousterhout, "In search of an understandable consensus algorithm" (2014), section 8, with the lease
 * as the client's session.  Part of the keyspace. */
#include "lockd/core/bug.h"
#include "lockd/core/ks_state.h"
#include <utlist.h>
#include <xxhash.h>

static uint64_t digest_of(uint32_t argc, const struct slice *argv) {
    uint64_t hash = argc;
    for (uint32_t i = 0; i < argc; i++) {
        const uint64_t bytes = argv[i].bytes;
        hash = XXH3_64bits_withSeed(&bytes, sizeof bytes, hash);
        hash = XXH3_64bits_withSeed(argv[i].data, argv[i].bytes, hash);
    }
    return hash;
}

/* Repeats are mostly of the newest. */
static struct ks_once *find(const struct ks_lease *lease, uint64_t seq) {
    struct ks_once *o = lease->once != NULL ? lease->once->prev : NULL;
    while (o != NULL && o->seq > seq) o = o == lease->once ? NULL : o->prev;
    return o != NULL && o->seq == seq ? o : NULL;
}

static void forget(struct keyspace *ks, struct ks_lease *lease, struct ks_once *o) {
    DL_DELETE(lease->once, o);
    lease->once_count--;
    ks->memory_bytes -= KS_ONCE_BYTES + (uint64_t)o->bytes;
    alloc_put(ks->config.alloc, o->reply);
    alloc_put(ks->config.alloc, o);
}

void ks_once_free(struct keyspace *ks, struct ks_lease *lease) {
    while (lease->once != NULL) forget(ks, lease, lease->once);
}

struct ks_once *ks_once_add(struct keyspace *ks, struct ks_lease *lease, uint64_t seq, uint64_t digest) {
    struct ks_once *o = alloc_get0(ks->config.alloc, sizeof *o);
    if (lease->once_count == KS_ONCE_MAX) forget(ks, lease, lease->once);
    o->seq = seq;
    o->digest = digest;
    DL_APPEND(lease->once, o);
    lease->once_count++;
    ks->memory_bytes += KS_ONCE_BYTES;
    return o;
}

void ks_once_set(struct keyspace *ks, struct ks_once *o, struct slice reply) {
    must(!o->done && reply.bytes > 0);
    o->done = true;
    o->bytes = (uint32_t)reply.bytes;
    o->reply = memcpy(alloc_get(ks->config.alloc, reply.bytes), reply.data, reply.bytes);
    ks->memory_bytes += o->bytes;
}

/* The reply of that command is known: it is kept, if somebody may ask for it. */
static void record(struct keyspace *ks, struct ks_once_key key, struct slice reply) {
    struct ks_lease *lease = key.seq != 0 ? ks_lease_find(ks, key.lease) : NULL;
    struct ks_once *o = lease != NULL ? find(lease, key.seq) : NULL;
    if (o == NULL || o->done) return;
    if (reply.bytes <= KS_ONCE_REPLY_BYTES_MAX) {
        ks_once_set(ks, o, reply);
        return;
    }
    struct buf text = {.alloc = ks->config.alloc};
    resp_error(&text, "ERR this command ran, and its reply of %zu bytes was too long to be kept for a repeat",
               reply.bytes);
    ks_once_set(ks, o, buf_slice(&text));
    buf_release(&text);
}

void ks_once_answer(struct keyspace *ks, struct ks_once_key key, struct origin origin, struct slice reply) {
    if (!BUG(113)) record(ks, key, reply);
    const struct ks_lease *lease = key.seq != 0 ? ks_lease_find(ks, key.lease) : NULL;
    const struct ks_once *o = lease != NULL ? find(lease, key.seq) : NULL;
    /* Two attempts may have waited: both get what the first one to end got. */
    const bool kept = o != NULL && o->done && reply.bytes <= KS_ONCE_REPLY_BYTES_MAX;
    ks_answer(ks, origin, kept ? slice_of(o->reply, o->bytes) : reply);
}

/* ---- running ---- */

bool ks_once_parse(struct ks_call *call, struct ks_once_key *ret_key) {
    if (!ks_arg_u64(call, 1, "the lease id", 1, INT64_MAX, &ret_key->lease) ||
        !ks_arg_u64(call, 2, "seq", 1, INT64_MAX, &ret_key->seq))
        return false;
    ret_key->digest = digest_of(call->argc - 3, call->argv + 3);
    return true;
}

bool ks_once_decided(struct ks_call *call, const struct ks_once_key *key) {
    const struct ks_lease *lease = ks_lease_find(call->ks, key->lease);
    if (lease == NULL) {
        ks_no_lease(call, key->lease);
        return true;
    }
    const struct ks_once *o = find(lease, key->seq);
    if (o == NULL && (lease->once == NULL || key->seq > lease->once->prev->seq)) return false;
    if (o == NULL)
        resp_error(call->reply, "ERR seq %llu is older than the last one of lease %llu, %llu, and not remembered",
                   (unsigned long long)key->seq, (unsigned long long)key->lease,
                   (unsigned long long)lease->once->prev->seq);
    else if (o->digest != key->digest)
        resp_error(call->reply, "ERR seq %llu of lease %llu was used for another command", (unsigned long long)key->seq,
                   (unsigned long long)key->lease);
    else if (o->done && BUG(112) && lease->once->prev->done)
        buf_append(call->reply, lease->once->prev->reply, lease->once->prev->bytes);
    else if (o->done && !BUG(110))
        buf_append(call->reply, o->reply, o->bytes);
    else
        return false;
    return true;
}

/* After the command ran: it may have ended the lease itself. */
static void remember(struct ks_call *call, const struct ks_once_key *key) {
    struct ks_lease *lease = ks_lease_find(call->ks, key->lease);
    if (lease == NULL) return;
    if (find(lease, key->seq) == NULL) ks_once_add(call->ks, lease, key->seq, key->digest);
    if (!call->queued) record(call->ks, *key, buf_slice(call->reply));
}

void ks_cmd_once(struct ks_call *call) {
    static const char busy[] = "-BUSY ";
    struct ks_call inner = *call;
    const struct command *command;
    if (!ks_once_parse(call, &inner.once) || ks_once_decided(call, &inner.once)) return;
    inner.argc -= 3;
    inner.argv += 3;
    ks_handler *handler = ks_admit(&inner, false, &command);
    if (handler == NULL) return;
    if (command->class != COMMAND_WRITE || command->id == CMD_ONCE) { /* a script has come as %ONCE */
        resp_error(call->reply, "ERR ONCE does not run '%s'", command->name);
        return;
    }
    if (!ks_room(call, false, KS_ONCE_BYTES)) return;
    handler(&inner);
    call->queued = inner.queued;
    /* What met a limit did not run: it may be asked for again. */
    if (!call->queued && call->reply->bytes > sizeof busy && memcmp(call->reply->data, busy, sizeof busy - 1) == 0)
        return;
    remember(call, &inner.once);
}

/* %ONCE lease seq digest %SCRIPT ...: what a script did that was sent in a ONCE. */
void ks_cmd_x_once(struct ks_call *call) {
    struct ks_call inner = *call;
    struct ks_once_key key;
    if (!ks_arg_u64(call, 1, "lease", 1, INT64_MAX, &key.lease) ||
        !ks_arg_u64(call, 2, "seq", 1, INT64_MAX, &key.seq) ||
        !ks_arg_u64(call, 3, "digest", 0, UINT64_MAX, &key.digest) || ks_once_decided(call, &key) ||
        !ks_room(call, false, KS_ONCE_BYTES))
        return;
    inner.argc -= 4;
    inner.argv += 4;
    if (inner.argc < 5 || !slice_is_word(inner.argv[0], "%SCRIPT")) {
        resp_error(call->reply, "ERR damaged effects of a script; it did not run");
        return;
    }
    ks_cmd_x_script(&inner);
    call->silent = inner.silent;
    if (!call->silent) remember(call, &key);
}
