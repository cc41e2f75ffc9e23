/* must.h - programmer errors stop the process; they are never a return value.
 *
 * must() stays on in release builds: a lock service that goes on with a broken invariant is worse than one that
 * stops.  Input from a socket, a disk or a config file must never be able to reach one. */
#pragma once

#define NODISCARD __attribute__((warn_unused_result))

/* Prints file, line and condition to standard error and aborts. */
_Noreturn void must_fail(const char *file, int line, const char *condition);

#define must(condition) ((condition) ? (void)0 : must_fail(__FILE__, __LINE__, #condition))
