/* A configuration file of anything: it is understood, or refused with a text that says where; what is understood lies
 * within the limits of its table.  Built twice: FUZZ_PROXY chooses lockproxy's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef FUZZ_PROXY
#include "proxy/io/config.h"
#else
#include "lockd/io/config.h"
#endif
#include "tests/fuzz/fuzz.h"

static struct config config;
static char text[CONFIG_TEXT_BYTES];

#ifdef FUZZ_PROXY
static void within(uint64_t value, uint64_t low, uint64_t high) {
    must(value >= low && value <= high);
}
#define CHECK(field, key, value, low, high, unit, words) within(c->field, low, high);
static void check_pool(const struct config_pool *c) {
    CONFIG_POOL_NUMBERS(CHECK)
    must(c->name_of[0] != '\0' && c->backend_count > 0);
}
static void check(const struct config *c) {
    CONFIG_GLOBAL_NUMBERS(CHECK)
    for (uint32_t i = 0; i < c->pool_count; i++) check_pool(&c->pools[i]);
}
#else
static void check(const struct config *c) {
    uint32_t count;
    const struct config_key *keys = config_keys(&count);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t number;
        if (keys[i].kind != CONFIG_NUMBER) continue;
        memcpy(&number, (const char *)c + keys[i].offset, sizeof number);
        must(number >= keys[i].low && number <= keys[i].high);
    }
    must(c->node_count >= 1 && c->node_count <= PAXOS_NODES_MAX && c->node >= 1 && c->node <= c->node_count);
}
static void config_release(struct config *c) {
    memset(c, 0, sizeof *c);
}
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    char path[64], check_word[] = "--check", program[] = "fuzz", file_word[] = "--config";
    const int fd = memfd_create("config", 0);
    must(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    char *const argv[] = {program, file_word, path, check_word, NULL};
    memset(&config, 0, sizeof config);
    memset(text, 'x', sizeof text);
    text[0] = '\0';
    switch (config_read(4, argv, &config, text)) {
    case CONFIG_RUN: must(false); break;
    case CONFIG_CHECK: check(&config); break;
    case CONFIG_BAD: must(text[0] != '\0' && memchr(text, '\0', sizeof text) != NULL); break;
    default: must(false); /* the command line is right */
    }
    config_release(&config);
    close(fd);
    return 0;
}
