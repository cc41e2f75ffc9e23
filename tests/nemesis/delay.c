/* delay.c - holds every packet of a netfilter queue for a while of its own, so that they overtake each other.
 *
 *   nemesis-delay QUEUE MIN-MS MAX-MS SEED     prints "ready" when the queue is its own; runs until it is ended */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <libnetfilter_queue/libnetfilter_queue.h>
#include <linux/netfilter.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

enum { HELD_MAX = 16384 };

struct held {
    uint64_t due_us;
    uint32_t id;
};

static struct held heap[HELD_MAX]; /* the soonest first */
static uint32_t held_count;
static uint64_t state, min_us, max_us;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t chance(void) { /* splitmix64 */
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void push(struct held h) {
    uint32_t i = held_count++;
    for (; i > 0 && heap[(i - 1) / 2].due_us > h.due_us; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = h;
}

static struct held pop(void) {
    const struct held first = heap[0], last = heap[--held_count];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child + 1 < held_count && heap[child + 1].due_us < heap[child].due_us) child++;
        if (child >= held_count || heap[child].due_us >= last.due_us) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = last;
    return first;
}

static int on_packet(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *data, void *context) {
    const struct nfqnl_msg_packet_hdr *header = nfq_get_msg_packet_hdr(data);
    (void)message;
    (void)context;
    if (header == NULL) return 0;
    const uint32_t id = ntohl(header->packet_id);
    if (held_count == HELD_MAX) return nfq_set_verdict(queue, id, NF_ACCEPT, 0, NULL);
    push((struct held){.due_us = now_us() + min_us + chance() % (max_us - min_us + 1), .id = id});
    return 0;
}

int main(int argc, char **argv) {
    static char bytes[65536] __attribute__((aligned(8)));
    if (argc != 5) {
        fprintf(stderr, "usage: %s QUEUE MIN-MS MAX-MS SEED\n", argv[0]);
        return 2;
    }
    min_us = strtoull(argv[2], NULL, 10) * 1000;
    max_us = strtoull(argv[3], NULL, 10) * 1000;
    state = strtoull(argv[4], NULL, 10);
    if (max_us < min_us) max_us = min_us;
    struct nfq_handle *h = nfq_open();
    struct nfq_q_handle *queue =
        h != NULL ? nfq_create_queue(h, (uint16_t)strtoul(argv[1], NULL, 10), on_packet, NULL) : NULL;
    if (queue == NULL || nfq_set_mode(queue, NFQNL_COPY_META, 0) < 0) {
        perror("nemesis-delay: no queue");
        return 1;
    }
    nfq_set_queue_maxlen(queue, HELD_MAX);
    puts("ready");
    fflush(stdout);
    struct pollfd ready = {.fd = nfq_fd(h), .events = POLLIN};
    for (;;) {
        while (held_count > 0 && heap[0].due_us <= now_us()) nfq_set_verdict(queue, pop().id, NF_ACCEPT, 0, NULL);
        const uint64_t now = now_us();
        const int wait_ms = held_count == 0 ? -1 : heap[0].due_us > now ? (int)((heap[0].due_us - now) / 1000) + 1 : 0;
        if (poll(&ready, 1, wait_ms) <= 0) continue;
        const ssize_t got = recv(ready.fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (got > 0) nfq_handle_packet(h, bytes, (int)got);
        if (got < 0 && errno != EAGAIN && errno != EINTR && errno != ENOBUFS) return 1;
    }
}
