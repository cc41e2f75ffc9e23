/* bug.h - planted bugs: BUG(n) is true in the one run that hunts bug n, and the constant 0 in every other build.
 *
 * tests/sim/mutants/table.txt says what each is and which checker must find it; tests/sim/mutants/run builds with
 * HOLDFAST_MUTANTS and hunts them all.  That is how we know that "no violations" means something. */
#pragma once
#ifdef HOLDFAST_MUTANTS
extern unsigned planted_bug; /* tests/sim/main.c: --bug N */
#define BUG(n) (planted_bug == (n))
#else
#define BUG(n) 0
#endif
