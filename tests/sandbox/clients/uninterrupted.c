/* Calls that no signal interrupts natively, while a timer's signals come whose handler has no SA_RESTART.
 *
 *     uninterrupted HERTZ ROUNDS [DEVICE]
 *
 * Each round makes every call once, in the working directory. Prints for each call that has failed
 * with EINTR how often, then a line with how many calls were made and how many signals came. The
 * status is 1 if any has failed; 2 if one has for another reason. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>
#ifdef THREADS
#include <pthread.h>

/* With a second thread the C library makes its calls by other code. */
static void *idle(void *unused)
{
    for (;;)
        pause();
    return unused;
}
#endif

static volatile sig_atomic_t signals;
static long calls, failures;
static struct { const char *name; long count; } failed[128];

static void count(int number) { (void)number; signals++; }

static long check(const char *name, long result)
{
    calls++;
    if (result >= 0)
        return result;
    if (errno != EINTR) {
        fprintf(stderr, "%s: %s\n", name, strerror(errno));
        exit(2);
    }
    failures++;
    for (int i = 0; i < 128; i++)
        if (!failed[i].name || failed[i].name == name) {
            failed[i].name = name;
            failed[i].count++;
            break;
        }
    return -1;
}
#define DO(call) check(#call, call)

static void round_of_calls(int *pair, int *ends, int device)
{
    char buffer[4096];
    struct stat status;
    struct statfs filesystem;
    struct pollfd pollfd = {ends[0], POLLIN | POLLOUT, 0};
    struct timeval none __attribute__((unused)) = {0, 0}, times[2] = {{1, 0}, {1, 0}};
    fd_set set;
    int file = DO(open("file", O_RDWR | O_CREAT | O_TRUNC, 0644)), size, number;

    DO(write(file, "some text", 9));
    DO(lseek(file, 0, SEEK_SET));
    DO(read(file, buffer, 4));
    DO(pread(file, buffer, 4, 1));
    DO(pwrite(file, "x", 1, 3));
    DO(fstat(file, &status));
    DO(fcntl(file, F_GETFL));
    DO(fchmod(file, 0600));
    DO(flock(file, LOCK_EX | LOCK_NB));
#ifndef __i386__ /* There calls of six arguments are made by a function that hides their number. */
    void *map = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
    DO(map == MAP_FAILED ? -1 : 0);
    if (map != MAP_FAILED)
        munmap(map, 4096);
#endif
    close(file);
    DO(stat("file", &status));
    DO(lstat("file", &status));
    DO(access("file", R_OK));
    DO(fstatat(AT_FDCWD, "file", &status, 0));
    DO(chmod("file", 0644));
    DO(chown("file", -1, -1));
    DO(utimes("file", times));
    DO(truncate("file", 5));
    DO(rename("file", "renamed"));
    DO(link("renamed", "linked"));
    DO(symlink("renamed", "symbolic"));
    DO(readlink("symbolic", buffer, sizeof buffer));
    DO(statfs("renamed", &filesystem));
    DO(listxattr("renamed", buffer, sizeof buffer));
    DO(mkdir("directory", 0755));
    DO(chdir("directory"));
    DO(chdir(".."));
    DO(rmdir("directory"));
    DO(getcwd(buffer, sizeof buffer) ? 0 : -1);
    DIR *directory = opendir(".");
    DO(directory ? 0 : -1);
    if (directory) {
        do
            errno = 0;
        while (readdir(directory));
        DO(errno ? -1 : 0);
        closedir(directory);
    }
    DO(unlink("linked"));
    DO(unlink("symbolic"));
    DO(unlink("renamed"));
    file = DO(open("made", O_WRONLY | O_CREAT | O_EXCL, 0644));
    close(file);
    DO(unlink("made"));
    file = DO(open("/dev/null", O_WRONLY));
    close(file);
    DO(isatty(ends[0]) || errno != EINTR ? 0 : -1);

    /* What is ready does not wait. */
    DO(write(pair[1], "pipe", 4));
    DO(poll(&pollfd, 1, 0));
    DO(read(pair[0], buffer, 4));
    DO(send(ends[0], "data", 4, 0));
    DO(ioctl(ends[1], FIONREAD, &size));
    FD_ZERO(&set);
    FD_SET(ends[1], &set);
#ifndef __i386__
    DO(select(ends[1] + 1, &set, NULL, NULL, &none));
#endif
    DO(recv(ends[1], buffer, 4, 0));
    number = 1;
    DO(setsockopt(ends[0], SOL_SOCKET, SO_KEEPALIVE, &number, sizeof number));

    if (device >= 0) {
        DO(write(device, "data", 4));
        DO(read(device, buffer, 4));
        DO(ioctl(device, 0x1234, 5));
        DO(fstat(device, &status));
    }
}

int main(int argc, char **argv)
{
    int hertz = atoi(argv[1]), rounds = atoi(argv[2]), pair[2], ends[2];
    int device = argc > 3 ? open(argv[3], O_RDWR) : -1;
    struct sigaction action = {.sa_handler = count};
    struct itimerval timer = {{0, 1000000 / hertz}, {0, 1000000 / hertz}}, off = {{0, 0}, {0, 0}};

    if (pipe(pair) || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) || (argc > 3 && device < 0))
        return 2;
#ifdef THREADS
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, idle, NULL))
        return 2;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
#endif
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    for (int i = 0; i < rounds; i++)
        round_of_calls(pair, ends, device);
    setitimer(ITIMER_REAL, &off, NULL);
    for (int i = 0; i < 128 && failed[i].name; i++)
        printf("%ld of %d: %s\n", failed[i].count, rounds, failed[i].name);
    printf("%ld failures in %ld calls, with %d signals\n", failures, calls, (int)signals);
    return failures > 0;
}
