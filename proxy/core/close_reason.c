#include "proxy/core/close_reason.h"
#include "common/must.h"

static const struct {
    const char *word, *meaning;
} table[] = {
#define X(name, word, meaning) {word, meaning},
#include "proxy/core/close_reason.def"
#undef X
};

const char *close_reason_word(enum close_reason reason) {
    must(reason < CLOSE_REASON_COUNT);
    return table[reason].word;
}

const char *close_reason_meaning(enum close_reason reason) {
    must(reason < CLOSE_REASON_COUNT);
    return table[reason].meaning;
}
