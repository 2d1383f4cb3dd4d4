/* A system that refuses, for LD_PRELOAD: each variable that is set is one refusal.
 *
 *   FAULTY_FLOCK=errno       flock(2) fails
 *   FAULTY_FOLDER_SYNC=errno fsync(2) of a folder fails
 *   FAULTY_MAP=folder        mmap(2) of files below it fails with ENODEV
 *   FAULTY_WRITE=folder      writing to files below it fails with FAULTY_ERRNO once the file FAULTY_WHEN is there
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int set(const char *name) {
    const char *value = getenv(name);
    return value ? atoi(value) : 0;
}

static int below(int descriptor, const char *name) {
    const char *folder = getenv(name);
    char link[64], path[4096];
    if (!folder || descriptor < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int refuses(int descriptor) {
    const char *when = getenv("FAULTY_WHEN");
    if (!below(descriptor, "FAULTY_WRITE") || (when && access(when, F_OK) != 0)) return 0;
    errno = set("FAULTY_ERRNO");
    return 1;
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int flock(int descriptor, int operation) {
    REAL(flock);
    if (set("FAULTY_FLOCK")) { errno = set("FAULTY_FLOCK"); return -1; }
    return real(descriptor, operation);
}

int fsync(int descriptor) {
    REAL(fsync);
    struct stat status;
    if (set("FAULTY_FOLDER_SYNC") && fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) {
        errno = set("FAULTY_FOLDER_SYNC");
        return -1;
    }
    return real(descriptor);
}

void *mmap(void *address, size_t length, int protection, int flags, int descriptor, off_t offset) {
    REAL(mmap);
    if (!(flags & MAP_ANONYMOUS) && below(descriptor, "FAULTY_MAP")) { errno = ENODEV; return MAP_FAILED; }
    return real(address, length, protection, flags, descriptor, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int descriptor, off64_t offset) {
    REAL(mmap64);
    if (!(flags & MAP_ANONYMOUS) && below(descriptor, "FAULTY_MAP")) { errno = ENODEV; return MAP_FAILED; }
    return real(address, length, protection, flags, descriptor, offset);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    return refuses(descriptor) ? -1 : real(descriptor, data, size);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    REAL(pwrite);
    return refuses(descriptor) ? -1 : real(descriptor, data, size, offset);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    REAL(pwrite64);
    return refuses(descriptor) ? -1 : real(descriptor, data, size, offset);
}

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    REAL(writev);
    return refuses(descriptor) ? -1 : real(descriptor, parts, count);
}
