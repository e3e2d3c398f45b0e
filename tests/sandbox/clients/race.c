/* Races between a path and what it leads to: see test_rights.py. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void become(int uid)
{
    if (setgroups(0, NULL) || setgid(uid) || setuid(uid)) {
        perror("become");
        exit(2);
    }
}

/* Exchange two names for ever. */
_Noreturn static void swap(const char *one, const char *other)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    puts("swapping");
    fflush(stdout);
    for (;;)
        syscall(SYS_renameat2, AT_FDCWD, one, AT_FDCWD, other, 2 /* RENAME_EXCHANGE */);
}

/* Look for SECRET in a file by all calls that open or look at one; 0 if it never was there. */
static int look(const char *path, int tries)
{
    int opened = 0, refused = 0;
    /* On a busy machine it takes a while until the other process has its turn. */
    for (int more = 50 * tries; tries > 0 || ((!opened || !refused) && more); tries--, more--) {
        char text[16] = "";
        int fd = open(path, O_RDONLY | (tries & 1 ? O_CREAT : 0), 0600);
        if (fd >= 0) {
            if (read(fd, text, sizeof text - 1) > 0 && strstr(text, "SECRET")) {
                printf("read with %d tries left\n", tries);
                return 1;
            }
            close(fd);
            opened++;
        } else {
            refused++;
        }
        struct stat status;
        if (stat(path, &status) == 0 && status.st_size == 6) {
            printf("looked at with %d tries left\n", tries);
            return 1;
        }
    }
    printf("%s %s\n", opened ? "opened" : "-", refused ? "refused" : "-");
    return 0;
}

int main(int argc, char **argv)
{
    become(65534);
    if (argc == 4 && !strcmp(argv[1], "swap"))
        swap(argv[2], argv[3]);
    if (argc == 4 && !strcmp(argv[1], "look"))
        return look(argv[2], atoi(argv[3]));
    return 2;
}
