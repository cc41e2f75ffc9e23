/* ks_story.h - lets the tests of the keyspace read as stories.
 *
 *   at(5000);                              the stamp of what follows
 *   SAYS("SET a 1 NX", "OK");              one command in a batch of its own, and its reply
 *   SAYS("LOCK.ACQUIRE l LEASE 2 WAIT 9", "queued");
 *   FACTS("%EXPIRE 2", "#7 -NOLEASE ...; lease- 2; #9 1"); all facts it caused, #n: answers to the n-th command asked
 *   READS(5100, "PTTL a", "400");
 *
 * Replies are shown as  OK  7  "bulk"  nil  [array of them]  -ERR text.  Words are separated by spaces; 'a b' is one
 * word, and so is ''.  Every command is asked by node 0 in its boot 1, which is this keyspace's, unless origin_is says
 * else. */
#pragma once
#include <check.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "common/io/heap.h"
#include "lockd/core/batch.h"
#include "lockd/core/keyspace.h"
#include "lockd/core/resp.h"

#define UNUSED __attribute__((unused))
/* As ck_assert, which tells the parent process of every success: too slow for what runs a million times. */
#define QUICK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) ck_abort_msg("%s", #condition);                                                              \
    } while (0)

static struct keyspace *ks;
static paxos_slot story_slot;
static uint64_t story_stamp, story_seq;
static struct ballot story_ballot;
static struct origin story_origin; /* seq is filled in */
static struct ks_facts story_facts;
static struct buf story_value, story_text;

UNUSED static void at(uint64_t stamp_ms) {
    story_stamp = stamp_ms;
}
UNUSED static void origin_is(uint16_t node, uint64_t boot) {
    story_origin = (struct origin){.node = node, .boot = boot};
}

static uint32_t story_words(char *line, struct slice *argv) {
    uint32_t argc = 0;
    while (*line != '\0') {
        if (*line == ' ') {
            line++;
            continue;
        }
        const char end = *line == '\'' ? '\'' : ' ';
        if (end == '\'') line++;
        char *stop = strchr(line, end);
        if (stop == NULL) stop = line + strlen(line);
        argv[argc++] = slice_of(line, (size_t)(stop - line));
        line = *stop != '\0' ? stop + 1 : stop;
    }
    return argc;
}

/* Appends one reply as text; returns what follows it. */
static const char *story_show(struct buf *b, const char *at_) {
    const char *end = strstr(at_, "\r\n");
    QUICK(end != NULL);
    const int line = (int)(end - at_);
    const long long number = atoll(at_ + 1);
    const char *next = end + 2;
    switch (*at_) {
    case '+': buf_append(b, at_ + 1, (size_t)line - 1); break;
    case '-': buf_append(b, at_, (size_t)line); break;
    case ':': buf_printf(b, "%lld", number); break;
    case '$':
        if (number < 0) {
            buf_append_str(b, "nil");
        } else {
            buf_append_str(b, "\"");
            buf_append(b, next, (size_t)number);
            buf_append_str(b, "\"");
            next += number;
            QUICK(memcmp(next, "\r\n", 2) == 0);
            next += 2;
        }
        break;
    case '*':
        if (number < 0) {
            buf_append_str(b, "nil-array");
            break;
        }
        buf_append_str(b, "[");
        for (long long i = 0; i < number; i++) {
            if (i > 0) buf_append_str(b, " ");
            next = story_show(b, next);
        }
        buf_append_str(b, "]");
        break;
    default: ck_abort_msg("not a reply: %s", at_);
    }
    return next;
}

static void story_show_reply(struct buf *b, struct slice reply) {
    char *copy = malloc(reply.bytes + 1);
    QUICK(copy != NULL);
    memcpy(copy, reply.data, reply.bytes);
    copy[reply.bytes] = '\0';
    const char *end = story_show(b, copy);
    QUICK(end == copy + reply.bytes); /* one reply, whole */
    free(copy);
}

static void story_show_fact(struct buf *b, const struct ks_fact *f) {
    const unsigned long long id = f->id;
    if (b->bytes > 0) buf_append_str(b, "; ");
    switch (f->kind) {
    case KS_REPLY:
        QUICK(f->origin.node == 0 && f->origin.boot == 1);
        buf_printf(b, "#%llu ", (unsigned long long)f->origin.seq);
        story_show_reply(b, f->reply);
        break;
    case KS_QUEUED: buf_printf(b, "#%llu queued", (unsigned long long)f->origin.seq); break;
    case KS_FIRST: buf_printf(b, "first %llu.%u", (unsigned long long)f->ballot.round, f->ballot.node); break;
    case KS_LEASE_NEW: buf_printf(b, "lease+ %llu %llu", id, (unsigned long long)f->ttl_ms); break;
    case KS_LEASE_GONE: buf_printf(b, "lease- %llu", id); break;
    case KS_LEASE_RENEWED: buf_printf(b, "lease= %llu", id); break;
    case KS_SCRIPT_VOID: buf_printf(b, "#%llu void", (unsigned long long)f->origin.seq); break;
    case KS_MEMBERS: buf_append_str(b, "members"); break;
    case KS_MOVE_ASKED: buf_printf(b, "asked %llu", id); break;
    case KS_MOVE_DONE: buf_printf(b, "done %llu", id); break;
    }
}

/* ---- batches ---- */
UNUSED static void batch_start(void) {
    batch_begin(&story_value, story_ballot, false, story_stamp);
}
/* Returns the sequence number it was asked with. */
UNUSED static uint64_t batch_line(const char *line) {
    char copy[2048];
    struct slice argv[512];
    QUICK(strlen(line) < sizeof copy);
    memcpy(copy, line, strlen(line) + 1);
    const uint32_t argc = story_words(copy, argv);
    struct origin origin = story_origin;
    if (origin.node != ORIGIN_NODE_NONE) origin.seq = ++story_seq;
    batch_add(&story_value, origin, argc, argv);
    return story_seq;
}
/* Applies it; the facts as text. */
UNUSED static const char *batch_end(void) {
    keyspace_apply(ks, ++story_slot, buf_slice(&story_value), &story_facts);
    buf_clear(&story_text);
    for (uint32_t i = 0; i < story_facts.count; i++) story_show_fact(&story_text, &story_facts.facts[i]);
    buf_append(&story_text, "", 1);
    return story_text.data;
}
UNUSED static const char *facts_of(const char *line) {
    batch_start();
    batch_line(line);
    return batch_end();
}
/* The answer to the command itself. */
static const char *story_own_answer(uint64_t seq) {
    buf_clear(&story_text);
    for (uint32_t i = 0; i < story_facts.count; i++) {
        const struct ks_fact *f = &story_facts.facts[i];
        if (f->origin.seq != seq) continue;
        if (f->kind == KS_REPLY)
            story_show_reply(&story_text, f->reply);
        else if (f->kind == KS_QUEUED)
            buf_append_str(&story_text, "queued");
        else if (f->kind == KS_SCRIPT_VOID)
            buf_append_str(&story_text, "void");
    }
    buf_append(&story_text, "", 1);
    return story_text.data;
}
UNUSED static const char *answer_of(const char *line) {
    batch_start();
    const uint64_t seq = batch_line(line);
    batch_end();
    return story_own_answer(seq);
}
UNUSED static const char *read_of(uint64_t stamp_ms, const char *line) {
    char copy[2048];
    struct slice argv[512];
    memcpy(copy, line, strlen(line) + 1);
    const uint32_t argc = story_words(copy, argv);
    struct buf reply = {.alloc = heap_alloc()};
    uint64_t need = 0;
    buf_append_str(&reply, "before");
    const enum ks_read_verdict verdict = keyspace_read(ks, stamp_ms, argc, argv, &reply, &need);
    buf_clear(&story_text);
    if (verdict == KS_READ_NEEDS_STAMP) {
        ck_assert_uint_eq(reply.bytes, 6);
        buf_printf(&story_text, "needs %llu", (unsigned long long)need);
    } else {
        story_show_reply(&story_text, slice_of(reply.data + 6, reply.bytes - 6));
    }
    buf_append(&story_text, "", 1);
    buf_release(&reply);
    return story_text.data;
}

#define SAYS(line, want)         ck_assert_str_eq(answer_of(line), want)
#define FACTS(line, want)        ck_assert_str_eq(facts_of(line), want)
#define READS(stamp, line, want) ck_assert_str_eq(read_of(stamp, line), want)
/* A read at the last stamp. */
#define SEES(line, want) READS(keyspace_stamp(ks), line, want)

/* ---- scripts ---- */
/* Run on the leader, at story_stamp.  "needs n", "refused -ERR ...", or "" and the effects wait in story_value. */
UNUSED static const char *script_start(uint64_t *ret_seq, uint32_t argc, const struct slice *argv) {
    struct ks_effects effects = {.bytes = {.alloc = heap_alloc()}};
    uint64_t need = 0;
    buf_clear(&story_text);
    const uint64_t hash = keyspace_hash(ks);
    switch (keyspace_script(ks, story_stamp, argc, argv, &effects, &need)) {
    case KS_SCRIPT_NEEDS_STAMP: buf_printf(&story_text, "needs %llu", (unsigned long long)need); break;
    case KS_SCRIPT_REFUSED:
        buf_append_str(&story_text, "refused ");
        story_show_reply(&story_text, buf_slice(&effects.bytes));
        break;
    case KS_SCRIPT_PROPOSE: {
        batch_start();
        struct origin origin = story_origin;
        *ret_seq = origin.seq = ++story_seq;
        batch_add(&story_value, origin, effects.argc, effects.argv);
        break;
    }
    }
    ck_assert_uint_eq(keyspace_hash(ks), hash); /* running it changes nothing */
    ks_effects_release(&effects);
    buf_append(&story_text, "", 1);
    return story_text.data;
}
/* EVAL text and what follows it ("1 key arg"), applied at once: the reply. */
UNUSED static const char *eval_of(const char *name, const char *text, const char *rest) {
    char copy[2048];
    struct slice argv[512] = {slice_str(name), slice_str(text)};
    memcpy(copy, rest, strlen(rest) + 1);
    uint64_t seq = 0;
    const uint32_t argc = 2 + story_words(copy, argv + 2);
    const char *said = script_start(&seq, argc, argv);
    if (*said != '\0') return said;
    batch_end();
    return story_own_answer(seq);
}
#define EVALS(text, rest, want) ck_assert_str_eq(eval_of("EVAL", text, rest), want)

/* ---- fixture ---- */
UNUSED static void story_new(void) {
    const struct ks_config config = {.alloc = heap_alloc(), .node = 0, .boot = 1};
    ks = keyspace_new(&config);
    story_slot = story_seq = story_stamp = 0;
    story_ballot = (struct ballot){.round = 1, .node = 0};
    story_value = story_text = (struct buf){.alloc = heap_alloc()};
    origin_is(0, 1);
}
UNUSED static void story_end(void) {
    keyspace_free(ks);
    buf_release(&story_value);
    buf_release(&story_text);
    ck_assert_uint_eq(heap_bytes_in_use(), 0); /* nothing is left behind */
}
UNUSED static int story_main(const char *name, void (*add)(TCase *tc)) {
    Suite *s = suite_create(name);
    TCase *tc = tcase_create(name);
    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, story_new, story_end);
    add(tc);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_set_tap(sr, "-");
    srunner_run_all(sr, CK_SILENT);
    const int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
