/* clock.h - the one clock of the io layers: CLOCK_BOOTTIME, so that a suspended machine notices the time it lost. */
#pragma once
#include <stdint.h>

/* Milliseconds since boot, suspend included; never goes back. */
uint64_t clock_now_ms(void);
/* The same in microseconds, for latency figures. */
uint64_t clock_now_us(void);
/* 64 bits from the kernel's random source: store ids, boot ids, seeds. */
uint64_t clock_random_u64(void);
