// A clock that a test can set: preloaded into a program, it adds offsets to CLOCK_REALTIME and CLOCK_BOOTTIME, like a clock
// that was set wrong or a machine that was suspended. LAB_CLOCK names a file with both offsets, two signed 64-bit numbers
// of nanoseconds, which the test may change at any time. It affects all callers of the C library, such as Rust's std.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile const int64_t *offsets;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("LAB_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *map = fd < 0 ? MAP_FAILED : mmap(0, 16, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        abort(); // A test that believes its clock has moved must not pass.
    offsets = map;
    close(fd);
}

int clock_gettime(clockid_t id, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, id, time);
    int64_t offset = 0;
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)
        offset = offsets ? offsets[0] : 0;
    else if (id == CLOCK_BOOTTIME)
        offset = offsets ? offsets[1] : 0;
    if (result != 0 || offset == 0)
        return result;
    int64_t nanos = (int64_t)time->tv_sec * 1000000000 + time->tv_nsec + offset;
    time->tv_sec = nanos / 1000000000;
    time->tv_nsec = nanos % 1000000000;
    return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    time->tv_sec = exact.tv_sec;
    time->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *where) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (where)
        *where = exact.tv_sec;
    return exact.tv_sec;
}
