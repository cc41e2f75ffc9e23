/* ks_lease.c - leases: who is alive, and what hangs on whom (L1).  Deadlines of leases are not here: they live in the
 * leader's memory, and only their end comes through the log (L2, L3).  Part of the keyspace. */
#include "lockd/core/ks_state.h"
#include "lockd/core/bug.h"
#include <utlist.h>

/* Where the first id at or above this one stands. */
static uint32_t place_of(const struct keyspace *ks, uint64_t id) {
    uint32_t low = 0, high = ks->place_count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (ks->leases[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct ks_lease *ks_lease_find(const struct keyspace *ks, uint64_t id) {
    if (ks->base != NULL) ks = ks->base;
    const uint32_t index = place_of(ks, id);
    return index < ks->place_count && ks->leases[index].id == id ? ks->leases[index].lease : NULL;
}

bool ks_lease_exists(const struct keyspace *ks, uint64_t id) {
    return ks_lease_find(ks, id) != NULL;
}

bool keyspace_lease(const struct keyspace *ks, uint64_t id, uint64_t *ret_ttl_ms) {
    const struct ks_lease *lease = ks_lease_find(ks, id);
    if (lease != NULL) *ret_ttl_ms = lease->ttl_ms;
    return lease != NULL;
}

uint64_t keyspace_lease_remaining(const struct keyspace *ks, uint64_t id) {
    const struct ks_lease *lease = ks_lease_find(ks, id);
    return lease != NULL ? lease->remaining_ms : 0;
}

void keyspace_each_lease(const struct keyspace *ks, bool (*fn)(void *context, uint64_t id, uint64_t ttl_ms),
                         void *context) {
    for (uint32_t i = 0; i < ks->place_count; i++)
        if (ks->leases[i].lease != NULL && !fn(context, ks->leases[i].id, ks->leases[i].lease->ttl_ms)) return;
}

void keyspace_lease_info(const struct keyspace *ks, uint64_t id, uint64_t remaining_ms, struct buf *reply) {
    const struct ks_lease *lease = ks_lease_find(ks, id);
    if (lease == NULL) {
        resp_nil(reply);
        return;
    }
    resp_array(reply, 10);
    resp_bulk_str(reply, "id");
    resp_integer(reply, (int64_t)id);
    resp_bulk_str(reply, "ttl");
    resp_integer(reply, lease->ttl_ms);
    resp_bulk_str(reply, "remaining");
    resp_integer(reply, (int64_t)remaining_ms);
    resp_bulk_str(reply, "name");
    resp_bulk(reply, slice_of(lease->holder, lease->holder_bytes));
    resp_bulk_str(reply, "keys");
    resp_integer(reply, (int64_t)(lease->name_count + lease->wait_count + route_holds(ks->route, id)));
}

static void compact(struct keyspace *ks) {
    if (ks->place_count < 64 || ks->lease_count > ks->place_count / 2) return;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < ks->place_count; i++)
        if (ks->leases[i].lease != NULL) ks->leases[kept++] = ks->leases[i];
    ks->place_count = kept;
}

struct ks_lease *ks_lease_add(struct keyspace *ks, uint64_t id, uint32_t ttl_ms, struct slice holder) {
    const struct alloc *alloc = ks->config.alloc;
    if (ks->place_count == ks->place_capacity) {
        ks->place_capacity = ks->place_capacity ? ks->place_capacity * 2 : 64;
        ks->leases = alloc_resize(alloc, ks->leases, ks->place_capacity * sizeof ks->leases[0]);
    }
    struct ks_lease *lease = alloc_get0(alloc, sizeof *lease + holder.bytes);
    lease->id = id;
    lease->ttl_ms = ttl_ms;
    lease->holder_bytes = (uint32_t)holder.bytes;
    if (holder.bytes > 0) memcpy(lease->holder, holder.data, holder.bytes);
    ks->leases[ks->place_count++] = (struct ks_lease_place){.id = id, .lease = lease};
    ks->lease_count++;
    ks->memory_bytes += holder.bytes;
    return lease;
}

void ks_cmd_lease_grant(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    uint64_t ttl_ms;
    struct slice holder = {0};
    if (!ks_arg_u64(call, 1, "ttl-ms", KS_LEASE_TTL_MS_MIN, KS_LEASE_TTL_MS_MAX, &ttl_ms)) return;
    if (call->argc != 2 && !(call->argc == 4 && slice_is_word(call->argv[2], "NAME"))) {
        ks_syntax_error(call);
        return;
    }
    if (call->argc == 4) holder = call->argv[3];
    if (holder.bytes > ks->settings.key_bytes_max) {
        resp_error(call->reply, "ERR the NAME of a lease is too long: %zu bytes, key-bytes-max is %llu", holder.bytes,
                   (unsigned long long)ks->settings.key_bytes_max);
        return;
    }
    if (ks->lease_count >= ks->settings.leases_max) {
        resp_error(call->reply, "BUSY leases-max: %u leases are alive", ks->lease_count);
        return;
    }
    if (!ks_room(call, false, holder.bytes)) return;

    const struct ks_lease *lease = ks_lease_add(ks, call->revision, (uint32_t)ttl_ms, holder);
    resp_integer(call->reply, (int64_t)lease->id);
    ks_fact(ks, &(struct ks_fact){.kind = KS_LEASE_NEW, .id = lease->id, .ttl_ms = ttl_ms});
}

/* Its queue places end first, also when many leases end at once: what one of them held is not handed to another. */
static void leave_queues(struct keyspace *ks, struct ks_lease *lease) {
    struct ks_waiter *w, *next;
    DL_FOREACH_SAFE2(lease->waits, w, next, lease_next) {
        struct buf *answer = &ks->answer;
        buf_clear(answer);
        resp_error(answer, "NOLEASE lease %llu ended while it waited", (unsigned long long)lease->id);
        ks_wait_answer(ks, w, buf_slice(answer));
        ks_unwait(ks, w);
    }
}

static void end_lease(struct ks_call *call, uint64_t id) {
    struct keyspace *ks = call->ks;
    struct ks_lease_place *place = &ks->leases[place_of(ks, id)];
    struct ks_lease *lease = place->lease;
    must(place->id == id && lease != NULL && lease->waits == NULL);
    place->lease = NULL; /* from here on it does not exist: nothing below can grant to it (K4) */
    ks->lease_count--;
    while (lease->names != NULL) ks_end(ks, lease->names);
    must(lease->name_count == 0 && lease->wait_count == 0);
    ks_once_free(ks, lease);
    ks->memory_bytes -= lease->holder_bytes;
    alloc_put(ks->config.alloc, lease);
    compact(ks);
    route_lease_gone(ks->route, id, call->stamp_ms, call->revision);
    ks_fact(ks, &(struct ks_fact){.kind = KS_LEASE_GONE, .id = id});
}

/* End those of argv[1..argc) that exist; returns how many. */
static uint32_t end_leases(struct ks_call *call) {
    uint32_t count = 0;
    uint64_t id;
    for (uint32_t i = 1; i < call->argc; i++) {
        struct ks_lease *lease = slice_to_u64(call->argv[i], &id) ? ks_lease_find(call->ks, id) : NULL;
        if (lease != NULL && !BUG(54)) leave_queues(call->ks, lease);
    }
    for (uint32_t i = 1; i < call->argc; i++) {
        if (!slice_to_u64(call->argv[i], &id) || ks_lease_find(call->ks, id) == NULL) continue;
        end_lease(call, id);
        count++;
    }
    return count;
}

void ks_cmd_lease_revoke(struct ks_call *call) {
    uint64_t id;
    if (!ks_arg_u64(call, 1, "the lease id", 1, INT64_MAX, &id)) return;
    resp_integer(call->reply, end_leases(call));
}

void ks_cmd_x_expire(struct ks_call *call) {
    resp_integer(call->reply, end_leases(call));
}

/* Jitter may have made it more than the ttl, which is all that a renewal ever gave. */
void ks_cmd_x_remaining(struct ks_call *call) {
    uint64_t id, ms;
    for (uint32_t i = 1; i + 1 < call->argc; i += 2) {
        struct ks_lease *lease = slice_to_u64(call->argv[i], &id) ? ks_lease_find(call->ks, id) : NULL;
        if (lease != NULL && slice_to_u64(call->argv[i + 1], &ms) && ms > 0)
            lease->remaining_ms = ms < lease->ttl_ms ? (uint32_t)ms : lease->ttl_ms;
    }
    resp_ok(call->reply);
}

void ks_cmd_x_renewed(struct ks_call *call) {
    uint64_t id;
    for (uint32_t i = 1; i < call->argc; i++) {
        struct ks_lease *lease = slice_to_u64(call->argv[i], &id) ? ks_lease_find(call->ks, id) : NULL;
        if (lease == NULL) continue;
        lease->remaining_ms = 0;
        ks_fact(call->ks, &(struct ks_fact){.kind = KS_LEASE_RENEWED, .id = id});
    }
    resp_ok(call->reply);
}

void ks_cmd_lease_list(struct ks_call *call) {
    enum { PAGE = 1000 };
    const struct keyspace *ks = call->ks;
    uint64_t cursor = 0;
    if (call->argc > 2) {
        ks_syntax_error(call);
        return;
    }
    if (call->argc == 2 && !ks_arg_u64(call, 1, "the cursor", 0, INT64_MAX, &cursor)) return;
    uint64_t ids[PAGE];
    uint32_t count = 0, index = place_of(ks, cursor + 1);
    for (; index < ks->place_count && count < PAGE; index++)
        if (ks->leases[index].lease != NULL) ids[count++] = ks->leases[index].id;
    while (index < ks->place_count && ks->leases[index].lease == NULL) index++;
    resp_array(call->reply, 2);
    resp_integer(call->reply, index < ks->place_count ? (int64_t)ids[count - 1] : 0);
    resp_array(call->reply, count);
    for (uint32_t i = 0; i < count; i++) resp_integer(call->reply, (int64_t)ids[i]);
}

void ks_leases_free(struct keyspace *ks) {
    for (uint32_t i = 0; i < ks->place_count; i++) {
        if (ks->leases[i].lease != NULL) ks_once_free(ks, ks->leases[i].lease);
        alloc_put(ks->config.alloc, ks->leases[i].lease);
    }
    alloc_put(ks->config.alloc, ks->leases);
}
