/* main.c - the daemon lockd: configuration in, node_run, exit code out (0 stopped, 1 failed, 2 wrong usage). */
#include "common/io/log.h"
#include "lockd/io/node.h"
#include <stdio.h>

int main(int argc, char **argv) {
    static struct config config;
    static char text[CONFIG_TEXT_BYTES];
    switch (config_read(argc, argv, &config, text)) {
    case CONFIG_SHOWN: fputs(text, stdout); return 0;
    case CONFIG_CHECK:
        printf("lockd: %s is good: node %llu of %u\n", config.file != NULL ? config.file : "the configuration",
               (unsigned long long)config.node, config.node_count);
        return 0;
    case CONFIG_USAGE: fprintf(stderr, "lockd: %s\n", text); return 2;
    case CONFIG_BAD: fprintf(stderr, "lockd: %s\n", text); return 1;
    case CONFIG_RUN: break;
    }
    log_set_level((enum log_level)config.log_level_number);
    if (config.node_count % 2 == 0)
        log_warn("lockd even-cluster nodes=%u what=\"it survives no more failures than one node less would\"",
                 config.node_count);
    return node_run(&config);
}
