/* Reads and writes of a cache's files and index that fail now and then, for crash.py: LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned one_in, seed;

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("FAIL_ONE_IN");
    one_in = text ? (unsigned)atoi(text) : 0;
    text = getenv("FAIL_SEED");
    seed = text ? (unsigned)atoi(text) : 1;
}

/* Whether a call on this descriptor is to fail. */
static int fails(int fd) {
    char link[64], path[4096];
    if (one_in == 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (!strstr(path, "/files/") && !strstr(path, "/index")) return 0;
    pthread_mutex_lock(&lock);
    int now = rand_r(&seed) % one_in == 0;
    pthread_mutex_unlock(&lock);
    return now;
}

#define FAIL(fd) \
    do { \
        if (fails(fd)) { \
            errno = EIO; \
            return -1; \
        } \
    } while (0)

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pread64(int fd, void *to, size_t count, off64_t at) {
    FAIL(fd);
    return REAL(pread64)(fd, to, count, at);
}

ssize_t pwrite64(int fd, const void *from, size_t count, off64_t at) {
    FAIL(fd);
    return REAL(pwrite64)(fd, from, count, at);
}

int ftruncate64(int fd, off64_t length) {
    FAIL(fd);
    return REAL(ftruncate64)(fd, length);
}

int fdatasync(int fd) {
    FAIL(fd);
    return REAL(fdatasync)(fd);
}
