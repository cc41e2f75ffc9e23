/* close_reason.h - the one table of reasons to end a client's connection. */
#pragma once

enum close_reason {
#define X(name, word, meaning) CLOSE_##name,
#include "proxy/core/close_reason.def"
#undef X
    CLOSE_REASON_COUNT
};

/* "backend-down" and so on: stable words. */
const char *close_reason_word(enum close_reason reason);
/* One sentence for people. */
const char *close_reason_meaning(enum close_reason reason);
