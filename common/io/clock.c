#include "common/io/clock.h"
#include "common/must.h"
#include <sys/random.h>
#include <time.h>

uint64_t clock_now_us(void) {
    struct timespec now;
    must(clock_gettime(CLOCK_BOOTTIME, &now) == 0);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

uint64_t clock_now_ms(void) {
    return clock_now_us() / 1000;
}

uint64_t clock_random_u64(void) {
    uint64_t value = 0;
    must(getrandom(&value, sizeof value, 0) == (ssize_t)sizeof value);
    return value;
}
