/* main.c - the daemon lockproxy: configuration in, the loop, exit code out (0 stopped, 1 failed, 2 wrong usage). */
#include "common/io/log.h"
#include "proxy/io/session.h"
#include <event2/event.h>
#include <event2/event_struct.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

static void on_stop(evutil_socket_t number, short what, void *arg) {
    (void)number, (void)what;
    proxy_stop(arg);
}

static void on_counters(evutil_socket_t number, short what, void *arg) {
    (void)number, (void)what;
    proxy_log_counters(arg);
}

static void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}

/* libevent's cached time is never used; timers come at their millisecond. */
static struct event_base *base_new(void) {
    struct event_config *config = event_config_new();
    must(config != NULL);
    event_config_set_flag(config, EVENT_BASE_FLAG_NO_CACHE_TIME | EVENT_BASE_FLAG_PRECISE_TIMER);
    struct event_base *base = event_base_new_with_config(config);
    event_config_free(config);
    must(base != NULL);
    return base;
}

static int run(const struct config *config) {
    struct event_base *base = base_new();
    struct proxy *proxy;
    char error[NET_ERROR_BYTES];
    if (proxy_new(base, config, &proxy, error, sizeof error) != 0) {
        log_error("proxy start why=\"%s\"", error);
        event_base_free(base);
        return 1;
    }
    static const int stops[] = {SIGTERM, SIGINT};
    struct event signals[3];
    for (int i = 0; i < 2; i++) evsignal_assign(&signals[i], base, stops[i], on_stop, proxy);
    evsignal_assign(&signals[2], base, SIGUSR1, on_counters, proxy);
    for (int i = 0; i < 3; i++) event_add(&signals[i], NULL);
    event_base_dispatch(base);
    proxy_log_counters(proxy);
    for (int i = 0; i < 3; i++) event_del(&signals[i]);
    proxy_free(proxy);
    event_base_free(base);
    log_info("proxy stopped");
    return 0;
}

int main(int argc, char **argv) {
    static struct config config;
    static char text[CONFIG_TEXT_BYTES];
    const enum config_answer answer = config_read(argc, argv, &config, text);
    int status = 0;
    switch (answer) {
    case CONFIG_SHOWN: fputs(text, stdout); break;
    case CONFIG_CHECK: printf("lockproxy: the configuration is good: %u pools\n", config.pool_count); break;
    case CONFIG_USAGE:
        fprintf(stderr, "lockproxy: %s\n", text);
        status = 2;
        break;
    case CONFIG_BAD:
        fprintf(stderr, "lockproxy: %s\n", text);
        status = 1;
        break;
    case CONFIG_RUN:
        log_set_level((enum log_level)config.log_level_number);
        raise_file_limit();
        (void)sigaction(SIGPIPE, &(struct sigaction){.sa_handler = SIG_IGN}, NULL);
        status = run(&config);
        break;
    }
    config_release(&config);
    return status;
}
