/* file.c - see file.h. */
#include "common/io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int file_sync_directory(const char *path) {
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return -1;
    const int result = fsync(fd);
    const int saved = errno;
    close(fd);
    errno = saved;
    return result;
}
