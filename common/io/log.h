/* log.h - one line per state change on standard error: `level module event key=value ...`.
 *
 * Only io layers log; core returns facts.  error = someone must act; warn = something is degraded;
 * info = a state changed; debug = only with --log-level debug.  Stable words, ids, no payloads. */
#pragma once

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

void log_set_level(enum log_level level);
/* "error", "warn", "info", "debug"; -1 if it is none of them. */
int log_level_of(const char *name);
/* format gives "module event key=value ..."; the level, a wall-clock time and the newline are added. */
void log_line(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)
