/*
 * The benchmark's client: times system calls on one path.
 *
 *     client [-t SECONDS] [-n OPERATIONS] PATH WORK...
 *
 * WORK is read:SIZE, write:SIZE, ioctl:16, openclose, stat, stat:cached, create, wake, map:SIZE or
 * copy:SIZE;
 * read:SIZEx8 is done by eight threads at once, each with a buffer of its own. For each the client
 * warms up, checks what came back, and prints one line: the work, the operations done and the
 * nanoseconds they took.
 * -t sets for how long each work is timed (default 0.25 s; the warm-up takes a fifth of it more);
 * -n times exactly so many operations instead.
 *
 * A read must answer all it was asked for and nothing but 'R', so must the ioctl; anything else
 * ends the client with status 1 and a line on stderr, as a failed call does.
 *
 * wake asks the device to wake the client up soon, sleeps in poll, and then asks it when that was:
 * the time is that between the device's wake-up and the client's return from poll.
 *
 * map is mmap and munmap of so many bytes, none of which is touched; copy is memcpy out of a mapping.
 *
 * stat is statx with AT_STATX_FORCE_SYNC, for which the kernel asks the server, and stat:cached is
 * statx without it; create makes a new
 * file "new" beside PATH, closes it and removes it.
 *
 * SPDX-License-Identifier: MIT
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FILL 'R'
#define IOCTL_SIZE 16
#define MAX_THREADS 64
/* EVIOCGKEY(16) of linux/input.h: any 16-byte _IOR would do, and umockdev knows this one. */
#define IOCTL_COMMAND _IOC(_IOC_READ, 'E', 0x18, IOCTL_SIZE)

/* Have the device wake up who polls; and when it did, in nanoseconds of CLOCK_MONOTONIC. */
#define WAKE_SOON _IOC(_IOC_NONE, 'E', 0x70, 0)
#define WOKEN_AT _IOC(_IOC_READ, 'E', 0x71, 8)

enum kind { READ, WRITE, IOCTL, OPENCLOSE, STAT, STAT_CACHED, CREATE, WAKE, MAP, COPY };

struct work {
    enum kind kind;
    const char *path;
    size_t size;
    unsigned threads;
    int fd;
    unsigned char *buffer, *mapping;
};

/* What one of several threads does. */
struct share {
    struct work work;
    pthread_t thread;
    pthread_barrier_t *ready;
    uint64_t duration, batch, exactly;
    uint64_t count;
};

static void fail(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fputs("client: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static unsigned char *buffer_of(size_t size)
{
    void *buffer;

    /* Page-aligned: kernel FUSE would need a page more, and a second request, for 1 MiB that is not. */
    if (posix_memalign(&buffer, 4096, size ? size : 1))
        fail("no memory");
    return buffer;
}

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *map(const struct work *work)
{
    void *mapping = mmap(NULL, work->size, PROT_READ | PROT_WRITE, MAP_SHARED, work->fd, 0);

    if (mapping == MAP_FAILED)
        fail("%s: %s", work->path, strerror(errno));
    return mapping;
}

static void operate(const struct work *work, uint64_t count)
{
    ssize_t got = 0;
    struct statx status;
    int fd;

    for (; count > 0; count--) {
        switch (work->kind) {
        case READ:
            got = pread(work->fd, work->buffer, work->size, 0);
            break;
        case WRITE:
            got = pwrite(work->fd, work->buffer, work->size, 0);
            break;
        case IOCTL:
            got = ioctl(work->fd, IOCTL_COMMAND, work->buffer) < 0 ? -1 : (ssize_t)work->size;
            break;
        case OPENCLOSE:
            fd = open(work->path, O_RDONLY | O_CLOEXEC);
            got = fd < 0 || close(fd) < 0 ? -1 : (ssize_t)work->size;
            break;
        case STAT:
        case STAT_CACHED:
            got = statx(AT_FDCWD, work->path, work->kind == STAT ? AT_STATX_FORCE_SYNC : 0,
                        STATX_BASIC_STATS, &status);
            break;
        case CREATE:
            fd = open(work->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
            got = fd < 0 || close(fd) < 0 || unlink(work->path) < 0 ? -1 : 0;
            break;
        case MAP:
            got = munmap(map(work), work->size) < 0 ? -1 : (ssize_t)work->size;
            break;
        case COPY:
            memcpy(work->buffer, work->mapping, work->size);
            /* Lest the compiler leave out copies that nobody looks at. */
            __asm__ volatile("" : : "r"(work->buffer) : "memory");
            got = (ssize_t)work->size;
            break;
        case WAKE: /* see operate_wake */
            return;
        }
        if (got < 0)
            fail("%s: %s", work->path, strerror(errno));
        if ((size_t)got != work->size)
            fail("%s: %zd bytes instead of %zu", work->path, got, work->size);
    }
}

static void check(const struct work *work)
{
    memset(work->buffer, work->kind == WRITE || work->kind == MAP ? FILL : 0, work->size);
    operate(work, 1);
    for (size_t i = 0; i < work->size; i++)
        if (work->buffer[i] != FILL)
            fail("%s: wrong data at byte %zu", work->path, i);
}

/* Does batches for at least `duration` nanoseconds; returns the operations done. */
static uint64_t operate_for(const struct work *work, uint64_t duration, uint64_t batch,
                            uint64_t *elapsed)
{
    uint64_t start = now(), count = 0;

    do {
        operate(work, batch);
        count += batch;
        *elapsed = now() - start;
    } while (*elapsed < duration);
    return count;
}

static void *operate_share(void *argument)
{
    struct share *share = argument;
    uint64_t elapsed;

    pthread_barrier_wait(share->ready);
    if (share->exactly)
        operate(&share->work, share->count = share->exactly);
    else
        share->count = operate_for(&share->work, share->duration, share->batch, &elapsed);
    return NULL;
}

/* As operate_for, or `exactly` operations, by all of the work's threads together. */
static uint64_t operate_together(const struct work *work, uint64_t duration, uint64_t batch,
                                 uint64_t exactly, uint64_t *elapsed)
{
    struct share shares[MAX_THREADS];
    pthread_barrier_t ready;
    uint64_t start, count = 0;

    pthread_barrier_init(&ready, NULL, work->threads + 1);
    for (unsigned i = 0; i < work->threads; i++) {
        struct share *share = &shares[i];

        *share = (struct share){.work = *work, .ready = &ready, .duration = duration,
                                .batch = batch, .exactly = exactly / work->threads};
        share->work.buffer = buffer_of(work->size);
        if (pthread_create(&share->thread, NULL, operate_share, share))
            fail("no thread");
    }
    pthread_barrier_wait(&ready);
    start = now();
    for (unsigned i = 0; i < work->threads; i++) {
        pthread_join(shares[i].thread, NULL);
        free(shares[i].work.buffer);
        count += shares[i].count;
    }
    *elapsed = now() - start;
    pthread_barrier_destroy(&ready);
    return count;
}

/* Wakes up for at least `duration` nanoseconds, or `exactly` times; `elapsed` is what that took. */
static uint64_t operate_wake(const struct work *work, uint64_t duration, uint64_t exactly,
                             uint64_t *elapsed)
{
    uint64_t start = now(), count = 0, woken, awake;

    *elapsed = 0;
    while (exactly ? count < exactly : !count || now() - start < duration) {
        struct pollfd entry = {.fd = work->fd, .events = POLLIN};

        if (ioctl(work->fd, WAKE_SOON, 0) < 0 || poll(&entry, 1, 10000) != 1)
            fail("%s: not woken up: %s", work->path, strerror(errno));
        awake = now();
        if (ioctl(work->fd, WOKEN_AT, &woken) < 0 || woken > awake)
            fail("%s: woken up in the future", work->path);
        *elapsed += awake - woken;
        count++;
    }
    return count;
}

static void measure(const char *name, const struct work *work, uint64_t duration, uint64_t exactly)
{
    uint64_t elapsed, count, batch;

    if (work->kind == WAKE) {
        operate_wake(work, duration / 5, 0, &elapsed);
        count = operate_wake(work, duration, exactly, &elapsed);
        printf("%s %llu %llu\n", name, (unsigned long long)count, (unsigned long long)elapsed);
        fflush(stdout);
        return;
    }
    check(work);
    count = operate_for(work, duration / 5, 1, &elapsed);
    /* About 2 ms a batch, so that reading the clock costs nothing that could be seen. */
    batch = 2000000 * count / elapsed;
    if (!batch)
        batch = 1;
    if (work->threads > 1) {
        /* Slower together, each of them. */
        batch = batch / work->threads ? batch / work->threads : 1;
        count = operate_together(work, duration, batch, exactly, &elapsed);
    } else if (exactly) {
        uint64_t start = now();

        operate(work, exactly);
        elapsed = now() - start;
        count = exactly;
    } else {
        count = operate_for(work, duration, batch, &elapsed);
    }
    printf("%s %llu %llu\n", name, (unsigned long long)count, (unsigned long long)elapsed);
    fflush(stdout);
}

/* The path of another file in the same directory. */
static char *beside(const char *path, const char *name)
{
    const char *slash = strrchr(path, '/');
    char *made;

    if (asprintf(&made, "%.*s%s", slash ? (int)(slash - path + 1) : 0, path, name) < 0)
        fail("no memory");
    return made;
}

static struct work parse(const char *text, const char *path)
{
    struct work work = {.path = path, .threads = 1, .fd = -1};
    size_t size = 0;

    if (sscanf(text, "read:%zux%u", &size, &work.threads) >= 1 && work.threads >= 1 &&
        work.threads <= MAX_THREADS)
        work.kind = READ;
    else if (sscanf(text, "write:%zu", &size) == 1)
        work.kind = WRITE;
    else if (sscanf(text, "ioctl:%zu", &size) == 1 && size == IOCTL_SIZE)
        work.kind = IOCTL;
    else if (sscanf(text, "map:%zu", &size) == 1)
        work.kind = MAP;
    else if (sscanf(text, "copy:%zu", &size) == 1)
        work.kind = COPY;
    else if (strcmp(text, "openclose") == 0)
        work.kind = OPENCLOSE;
    else if (strcmp(text, "stat") == 0)
        work.kind = STAT;
    else if (strcmp(text, "stat:cached") == 0)
        work.kind = STAT_CACHED;
    else if (strcmp(text, "create") == 0) {
        work.kind = CREATE;
        work.path = beside(path, "new"); /* kept until the end */
    }
    else if (strcmp(text, "wake") == 0)
        work.kind = WAKE;
    else
        fail("unknown work: %s", text);
    work.size = size;
    work.buffer = buffer_of(size);
    return work;
}

int main(int argc, char **argv)
{
    double seconds = 0.25;
    uint64_t exactly = 0;
    int option;
    const char *path;

    while ((option = getopt(argc, argv, "+t:n:")) != -1) {
        if (option == 't')
            seconds = atof(optarg);
        else if (option == 'n')
            exactly = strtoull(optarg, NULL, 0);
        else
            return 2;
    }
    if (argc - optind < 2)
        fail("usage: client [-t SECONDS] [-n OPERATIONS] PATH WORK...");
    path = argv[optind++];
    for (; optind < argc; optind++) {
        struct work work = parse(argv[optind], path);

        if (work.kind != OPENCLOSE && work.kind != STAT && work.kind != STAT_CACHED &&
            work.kind != CREATE) {
            work.fd = open(path, O_RDWR | O_CLOEXEC);
            if (work.fd < 0)
                fail("%s: %s", path, strerror(errno));
        }
        if (work.kind == COPY)
            memset(work.mapping = map(&work), FILL, work.size);
        measure(argv[optind], &work, (uint64_t)(seconds * 1e9), exactly);
        if (work.mapping)
            munmap(work.mapping, work.size);
        if (work.fd >= 0)
            close(work.fd);
        free(work.buffer);
    }
    return 0;
}
