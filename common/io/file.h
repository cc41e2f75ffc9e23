/* file.h - what the C library leaves out about files. */
#pragma once

/* Make the names in that directory durable: after a file was made or renamed there.  0, or -1 and errno. */
int file_sync_directory(const char *path);
