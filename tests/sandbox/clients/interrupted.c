/* Calls that a signal does interrupt natively: each waits for what does not come, until a signal.
 *
 *     interrupted plain|restart CALL
 *
 * Prints what the call returned after the first signal, or "went on" if there had to be a second one,
 * whose handler ends the program. They come from a child, when it sees the program sleep. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void on_signal(int number)
{
    (void)number;
    if (++signals == 2) {
        (void)!write(1, "went on\n", 8);
        _exit(0);
    }
}

/* Return when a process has been seen to sleep ten times in a row, 5 ms apart. */
static void wait_for_sleep(pid_t pid)
{
    char path[64], text[512];
    int times = 0;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    while (times < 10) {
        FILE *file = fopen(path, "r");
        int asleep = file && fgets(text, sizeof text, file) && strstr(text, ") S ");
        if (file)
            fclose(file);
        times = asleep ? times + 1 : 0;
        usleep(5000);
    }
}

int main(int argc, char **argv)
{
    const char *call = argv[2];
    struct sigaction action = {.sa_handler = on_signal};
    struct epoll_event event = {.events = EPOLLIN};
    struct flock record = {.l_type = F_WRLCK};
    struct sockaddr_un address = {AF_UNIX, "socket"};
    int pair[2], ends[2], result = 0, listener, ready[2], told[2];
    char buffer[1 << 17] = "";
    fd_set set;

    if (argc < 3 || pipe(pair) || socketpair(AF_UNIX, SOCK_STREAM, 0, ends) || pipe(ready) || pipe(told))
        return 2;
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    unlink("socket");
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 5))
        return 2;
    unlink("fifo");
    mkfifo("fifo", 0600);
    int file = open("locked", O_RDWR | O_CREAT, 0600), epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &event);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int own = open("locked", O_RDWR);
        flock(own, LOCK_EX);
        fcntl(own, F_SETLK, &record);
        (void)!write(told[1], "", 1);
        (void)!read(ready[0], buffer, 1);
        for (;;) {
            wait_for_sleep(getppid());
            kill(getppid(), SIGUSR1);
        }
    }
    (void)!read(told[0], buffer, 1);
    if (!strcmp(argv[1], "restart"))
        action.sa_flags = SA_RESTART;
    sigaction(SIGUSR1, &action, NULL);
    FD_ZERO(&set);
    FD_SET(pair[0], &set);
    struct pollfd entry = {pair[0], POLLIN, 0};
    (void)!write(ready[1], "", 1);
    if (!strcmp(call, "read"))
        result = read(pair[0], buffer, 1);
    else if (!strcmp(call, "write"))
        do
            result = write(pair[1], buffer, 4096);
        while (result == 4096);
    else if (!strcmp(call, "recv"))
        result = recv(ends[0], buffer, 1, 0);
    else if (!strcmp(call, "accept"))
        result = accept(listener, NULL, NULL);
    else if (!strcmp(call, "open"))
        result = open("fifo", O_RDONLY);
    else if (!strcmp(call, "flock"))
        result = flock(file, LOCK_EX);
    else if (!strcmp(call, "fcntl"))
        result = fcntl(file, F_SETLKW, &record);
    else if (!strcmp(call, "wait"))
        result = waitpid(child, NULL, 0);
    else if (!strcmp(call, "poll"))
        result = poll(&entry, 1, -1);
    else if (!strcmp(call, "select"))
        result = select(pair[0] + 1, &set, NULL, NULL, NULL);
    else if (!strcmp(call, "epoll_wait"))
        result = epoll_wait(epoll, &event, 1, -1);
    else if (!strcmp(call, "pause"))
        result = pause();
    else
        return 2;
    if (result < 0)
        printf("%s\n", errno == EINTR ? "EINTR" : strerror(errno));
    else
        printf("%d\n", result);
    return 0;
}
