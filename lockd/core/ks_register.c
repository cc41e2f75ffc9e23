/* ks_register.c - compare-and-set by version, and write-once registers.  Part of the keyspace. */
#include "lockd/core/ks_state.h"
#include "lockd/core/bug.h"

static void version_and_value(struct buf *reply, const struct ks_name *name) {
    resp_integer(reply, (int64_t)name->version);
    resp_bulk(reply, ks_value(name));
}

/* What a script wrote itself has no version before the script is applied (%SCRIPT runs the command again then). */
static bool check_version_known(struct ks_call *call, const struct ks_name *name) {
    const struct keyspace *base = call->ks->base;
    if (base == NULL || name == NULL || name->version <= base->revision) return true;
    resp_error(call->reply, "ERR a key that this script wrote has no version before the script has ended");
    return false;
}

void ks_cmd_getv(struct ks_call *call) {
    const struct ks_name *name = ks_peek(call, call->argv[1]);
    if (!check_version_known(call, name)) return;
    if (name == NULL) {
        resp_nil(call->reply);
    } else if (name->type != KS_STRING) {
        ks_wrong_type(call);
    } else {
        resp_array(call->reply, 2);
        version_and_value(call->reply, name);
    }
}

void ks_cmd_cas(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    const struct slice key = call->argv[1], value = call->argv[3];
    uint64_t version, lease_id = 0;
    if (call->argc != 4 && call->argc != 6) {
        ks_syntax_error(call);
        return;
    }
    if (!ks_arg_u64(call, 2, "the version", 0, INT64_MAX, &version)) return;
    if (!ks_check_value(call, value)) return;
    if (call->argc == 6 && !ks_arg_lease(call, 4, &lease_id)) return;
    struct ks_name *name = ks_find(ks, key);
    if (!ks_check_string(call, name) || !check_version_known(call, name)) return;
    if (version != (name ? name->version : 0) && !BUG(71)) {
        resp_array(call->reply, 3);
        resp_integer(call->reply, 0);
        if (name != NULL) {
            version_and_value(call->reply, name);
        } else {
            resp_integer(call->reply, 0);
            resp_nil(call->reply);
        }
        return;
    }
    if (!ks_room_to_write(call, name, key, value.bytes)) return;
    if (name == NULL) name = ks_make(ks, key, KS_STRING);
    ks_write(ks, name, value, call->revision);
    ks_attach(ks, name, lease_id ? ks_lease_find(ks, lease_id) : NULL);
    ks_set_deadline(ks, name, KS_NEVER, 0);
    resp_array(call->reply, 2);
    resp_integer(call->reply, 1);
    if (call->in_script)
        resp_nil(call->reply);
    else
        resp_integer(call->reply, (int64_t)name->version);
}

void ks_cmd_wor_set(struct ks_call *call) {
    struct keyspace *ks = call->ks;
    const struct slice key = call->argv[1], value = call->argv[2];
    if (!ks_check_value(call, value)) return;
    struct ks_name *name = ks_find(ks, key);
    if (name != NULL && name->type != KS_REGISTER) {
        ks_wrong_type(call);
        return;
    }
    const bool first = name == NULL;
    if (first) {
        if (!ks_room_to_write(call, NULL, key, value.bytes)) return;
        name = ks_make(ks, key, KS_REGISTER);
        ks_write(ks, name, value, call->revision);
    }
    if (!first && BUG(58)) ks_write(ks, name, value, call->revision);
    resp_array(call->reply, 3);
    resp_integer(call->reply, first);
    version_and_value(call->reply, name);
}

void ks_cmd_wor_get(struct ks_call *call) {
    const struct ks_name *name = ks_peek(call, call->argv[1]);
    if (name == NULL) {
        resp_nil(call->reply);
    } else if (name->type != KS_REGISTER) {
        ks_wrong_type(call);
    } else {
        resp_array(call->reply, 2);
        version_and_value(call->reply, name);
    }
}
