/* story.h - reads a scenario file, lets it happen in the town, and writes it down again with what really happened.
 *
 * A file is comments (`#`), and blocks: command lines, then `----`, then what they print, then an empty line.  A block
 * that prints nothing has no `----`.  A story is right when what comes out is the file itself.  The commands are listed
 * in tests/scenario/README.md; real values that a reader could only compare by eye (lease ids, tokens, revisions) get
 * names in the story: `let A = a: LEASE.GRANT 5000` prints `a: $A`, and so does every later reply that holds it. */
#pragma once
#include "common/buf.h"

/* `told` is appended to `out` with the outcome of each block.  False: a command was not understood or a node gave up
 * (said in `out` where it was). */
bool story_tell(struct slice text, struct buf *out);
