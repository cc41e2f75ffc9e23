/* fuzz.h - the one function of a fuzz target.  libFuzzer calls it with inputs it makes up (meson -Dfuzz=true, clang);
 * replay.c calls it with the corpus and simple changes of it, with any compiler. */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include "common/must.h"

/* Returns 0; what must not be, aborts. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
