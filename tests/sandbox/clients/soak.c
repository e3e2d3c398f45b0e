/*
 * soak DEVICE PROCESSES THREADS SECONDS SEED
 *
 * Keeps PROCESSES processes with THREADS threads each, which do random things with DEVICE, and kills
 * and replaces them at random moments, until SECONDS are over.  Then kills them all.  Prints how
 * many it killed.  A result that no program may see (another's data, an errno that is none) is
 * printed and makes the status 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SWAP _IOWR(0x56, 1, uint64_t)
#define NESTED _IO(0x56, 2)

static const char *device;
static int *wrong; /* shared by all processes: how often something was wrong */

static void check(int right, const char *what, long result)
{
    if (!right) {
        fprintf(stderr, "%s: %ld, errno %d\n", what, result, errno);
        __atomic_add_fetch(wrong, 1, __ATOMIC_SEQ_CST);
    }
}

static void swap(int fd, unsigned *seed)
{
    uint64_t mine = ((uint64_t) rand_r(seed) << 32) | rand_r(seed), value = mine;
    int result = ioctl(fd, SWAP, &value);
    check(result == 0 ? value == ~mine : errno == EINTR, "swap", result);
}

static void nested(int fd, unsigned *seed)
{
    unsigned char text[100];
    struct { uint64_t length, address; } argument = {rand_r(seed) % sizeof text, (uintptr_t) text};
    memset(text, 1, sizeof text);
    long result = ioctl(fd, NESTED, &argument), sum = 0;
    for (size_t i = 0; i < sizeof text; i++)
        sum += text[i];
    check(result >= 0 ? sum == (long) (sizeof text + argument.length) : errno == EINTR, "nested",
          result);
}

static void transfer(int fd, unsigned *seed)
{
    static _Thread_local unsigned char buffer[300000];
    size_t size = rand_r(seed) % 10 ? rand_r(seed) % 100 : rand_r(seed) % sizeof buffer;
    struct iovec parts[2] = {{buffer, size / 2}, {buffer + size / 2, size - size / 2}};
    ssize_t result;
    switch (rand_r(seed) % 4) {
    case 0: result = read(fd, buffer, size); break;
    case 1: result = write(fd, buffer, size); break;
    case 2: result = readv(fd, parts, 2); break;
    default: result = writev(fd, parts, 2);
    }
    check(result == (ssize_t) size || (result < 0 ? errno == EINTR : (size_t) result < size),
          "transfer", result);
}

static void with_child(int fd, unsigned *seed)
{
    pid_t child = fork();
    if (child == 0) {
        swap(fd, seed);
        _exit(0);
    }
    if (rand_r(seed) % 2)
        kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static void *work(void *argument)
{
    unsigned seed = (uintptr_t) argument;
    for (;;) {
        int fd = open(device, O_RDWR | (rand_r(&seed) % 2 ? O_CLOEXEC : 0));
        if (fd < 0) {
            check(errno == EINTR, "open", fd);
            continue;
        }
        for (int i = rand_r(&seed) % 8; i > 0; i--) {
            struct pollfd one = {fd, POLLIN | POLLOUT, 0};
            int copy;
            switch (rand_r(&seed) % 8) {
            case 0: swap(fd, &seed); break;
            case 1: nested(fd, &seed); break;
            case 2: copy = dup(fd); close(fd); fd = copy; break;
            case 3: copy = fcntl(fd, F_DUPFD, 200); swap(copy, &seed); close(copy); break;
            case 4: check(poll(&one, 1, rand_r(&seed) % 3) >= 0 || errno == EINTR, "poll", 0); break;
            case 5: if (rand_r(&seed) % 8 == 0) with_child(fd, &seed); break;
            default: transfer(fd, &seed);
            }
        }
        close(fd);
    }
    return NULL;
}

static pid_t start(int threads, unsigned seed)
{
    pid_t pid = fork();
    if (pid)
        return pid;
    for (int i = 1; i < threads; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, work, (void *) (uintptr_t) (seed * 64 + i));
    }
    work((void *) (uintptr_t) (seed * 64));
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    device = argv[1];
    int processes = atoi(argv[2]), threads = atoi(argv[3]);
    unsigned seed = atoi(argv[5]), started = seed * 10000, killed = 0;
    time_t end = time(NULL) + atoi(argv[4]);
    pid_t children[processes];
    wrong = mmap(NULL, sizeof *wrong, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < processes; i++)
        children[i] = start(threads, started++);
    while (time(NULL) < end) {
        int i = rand_r(&seed) % processes;
        usleep(rand_r(&seed) % 20000);
        kill(children[i], SIGKILL);
        waitpid(children[i], NULL, 0);
        killed++;
        children[i] = start(threads, started++);
    }
    for (int i = 0; i < processes; i++)
        kill(children[i], SIGKILL);
    for (int i = 0; i < processes; i++)
        waitpid(children[i], NULL, 0);
    printf("%u\n", killed);
    return *wrong != 0;
}
