/*
 * What a 32-bit program does with a device: each argument is one thing to do with /dev/echo, and
 * one line of output.  Built with -m32; with -D_FILE_OFFSET_BITS=64 for the larger structures.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utime.h>

struct inner { uint32_t length; char *text; };

static int device;
static const char *path = "/dev/echo";

static void say(const char *what, long result)
{
    printf("%s: %ld", what, result);
    if (result == -1)
        printf(" %s", strerrorname_np(errno));
    putchar('\n');
}

static void say_stat(const char *what, int result, const struct stat *s)
{
    printf("%s: %d %o %u %u %u:%u %lld\n", what, result, s->st_mode, s->st_uid, s->st_gid,
           major(s->st_rdev), minor(s->st_rdev), (long long) s->st_mtime);
}

static void act(const char *what)
{
    char text[64] = "";
    struct stat s;
    memset(&s, 0, sizeof s);
    if (!strcmp(what, "writev")) {
        struct iovec parts[] = {{"hello ", 6}, {"", 0}, {"world", 5}};
        say(what, writev(device, parts, 3));
    } else if (!strcmp(what, "bad writev")) {
        struct iovec parts[] = {{"hello", 5}, {"", 0x80000000u}};
        say(what, writev(device, parts, 2));
    } else if (!strcmp(what, "readv")) {
        struct iovec parts[] = {{text, 3}, {text + 32, 20}};
        long count = readv(device, parts, 2);
        printf("%s: %ld %s|%s\n", what, count, text, text + 32);
    } else if (!strcmp(what, "preadv")) {
        struct iovec part = {text, 20};
        long count = preadv(device, &part, 1, 2);
        printf("%s: %ld %s\n", what, count, text);
    } else if (!strcmp(what, "pwritev")) {
        struct iovec part = {"pwritev", 7};
        say(what, pwritev(device, &part, 1, 1LL));
    } else if (!strcmp(what, "pwritev far")) {
        struct iovec part = {"far", 3};
        say(what, syscall(SYS_pwritev, device, &part, 1, 4, 1)); /* low, high */
    } else if (!strcmp(what, "preadv2")) {
        struct iovec part = {text, 20};
        long count = preadv2(device, &part, 1, -1, 0);
        printf("%s: %ld %s\n", what, count, text);
    } else if (!strcmp(what, "pwrite")) {
        say(what, syscall(SYS_pwrite64, device, "pwrite", 6, 3, 2));
    } else if (!strcmp(what, "pread")) {
        long count = syscall(SYS_pread64, device, text, 20, 5, 2);
        printf("%s: %ld %s\n", what, count, text);
    } else if (!strcmp(what, "lseek")) {
        say(what, syscall(SYS_lseek, device, 7, SEEK_SET));
        say(what, syscall(SYS_lseek, device, -3, SEEK_CUR));
        say(what, syscall(SYS_lseek, device, -5, SEEK_CUR));
    } else if (!strcmp(what, "llseek")) {
        long long where = -1;
        int result = syscall(SYS__llseek, device, 3, 9, &where, SEEK_SET);
        printf("%s: %d %llx\n", what, result, where);
        say("lseek", syscall(SYS_lseek, device, 0, SEEK_CUR));
    } else if (!strcmp(what, "stat")) {
        int result = stat(path, &s);
        say_stat("stat", result, &s);
        memset(&s, 0, sizeof s);
        result = lstat(path, &s);
        say_stat("lstat", result, &s);
        memset(&s, 0, sizeof s);
        result = fstat(device, &s);
        say_stat("fstat", result, &s);
        memset(&s, 0, sizeof s);
        result = fstatat(AT_FDCWD, path, &s, 0);
        say_stat("fstatat", result, &s);
    } else if (!strcmp(what, "old stat")) {
        /* struct stat of the oldest calls that a 32-bit kernel still has: mode at 8. */
        long result = syscall(SYS_stat, path, text);
        printf("%s: %ld %o\n", what, result, *(unsigned short *) (text + 8));
    } else if (!strcmp(what, "statfs")) {
        struct statfs node, top;
        int results[] = {statfs(path, &node), fstatfs(device, &node), statfs("/dev", &top)};
        printf("%s: %d %d %d %d\n", what, results[0], results[1], results[2],
               memcmp(&node, &top, sizeof node));
    } else if (!strcmp(what, "old statfs")) {
        /* type, size of a block, numbers of blocks and files, an id, longest name, sizes, flags */
        int node[17] = {[16] = 77}, file[17] = {[16] = 77}, top[16];
        int results[] = {syscall(SYS_statfs, path, node), syscall(SYS_fstatfs, device, file),
                         syscall(SYS_statfs, "/dev", top)};
        printf("%s: %d %d %d %d %d %d %d\n", what, results[0], results[1], results[2],
               memcmp(node, top, 2 * sizeof(int)) | memcmp(node + 7, top + 7, 9 * sizeof(int)),
               memcmp(file, top, 2 * sizeof(int)) | memcmp(file + 7, top + 7, 9 * sizeof(int)),
               node[16], file[16]);
    } else if (!strcmp(what, "sysfs")) {
        DIR *directory = opendir("/sys/class/cuse");
        struct dirent *entry;
        char link[64] = "";
        while ((entry = readdir(directory)))
            if (entry->d_name[0] != '.')
                printf("%s: %s %d\n", what, entry->d_name, entry->d_type);
        closedir(directory);
        say(what, readlink("/sys/class/cuse/echo", link, sizeof link));
        int uevent = open("/sys/class/cuse/echo/uevent", O_RDONLY);
        say(what, lseek(uevent, 0, SEEK_END));
    } else if (!strcmp(what, "chown")) {
        say(what, syscall(SYS_chown, path, 12, 0xFFFF));
        say(what, syscall(SYS_lchown, path, 0xFFFF, 34));
        say(what, syscall(SYS_fchown, device, 56, 0xFFFF));
        say(what, syscall(SYS_chown32, path, -1, 70000));
    } else if (!strcmp(what, "times")) {
        struct utimbuf both = {1000, 2000};
        struct timeval many[2] = {{1, 0}, {3000, 0}};
        struct timespec exact[2] = {{1, 0}, {4000, 0}};
        int32_t small[4] = {1, 0, 5000, 0};
        say("utime", utime(path, &both));
        stat(path, &s);
        printf("%lld\n", (long long) s.st_mtime);
        say("utimes", utimes(path, many));
        stat(path, &s);
        printf("%lld\n", (long long) s.st_mtime);
        say("utimensat", utimensat(AT_FDCWD, path, exact, 0));
        stat(path, &s);
        printf("%lld\n", (long long) s.st_mtime);
        say("old utimensat", syscall(SYS_utimensat, AT_FDCWD, path, small, 0));
        stat(path, &s);
        printf("%lld\n", (long long) s.st_mtime);
        say("futimesat", syscall(SYS_futimesat, AT_FDCWD, path, small));
    } else if (!strcmp(what, "value")) {
        say(what, ioctl(device, 0x5601, 0xFFFFFFF0u));
    } else if (!strcmp(what, "nested")) {
        struct inner inner = {5, text};
        int result = ioctl(device, 0x5602, &inner);
        printf("%s: %d %s\n", what, result, text);
    } else if (!strcmp(what, "nested bad")) {
        struct inner inner = {5, (char *) 16};
        say(what, ioctl(device, 0x5602, &inner));
    } else if (!strcmp(what, "fcntl")) {
        say(what, fcntl(device, F_SETFL, O_NONBLOCK));
        say(what, fcntl(device, F_GETFL) & (O_NONBLOCK | O_ACCMODE));
    } else if (!strcmp(what, "dup")) {
        int copy = fcntl(device, F_DUPFD, 100);
        say(what, copy);
        say("dup2", dup2(copy, 50));
        say("write", write(50, "dup", 3));
    } else if (!strcmp(what, "fork")) {
        if (!fork())
            _exit(write(device, "child", 5));
        int status = 0;
        wait(&status);
        say(what, WEXITSTATUS(status));
    } else if (!strcmp(what, "socket")) {
        say("shutdown", shutdown(device, SHUT_RDWR));
        unsigned long args[] = {device, SHUT_RDWR};
        say("socketcall", syscall(SYS_socketcall, 13, args));
    } else if (!strcmp(what, "bind")) {
        struct sockaddr_un address = {AF_UNIX, "/dev/echo"};
        unsigned long args[] = {socket(AF_UNIX, SOCK_STREAM, 0), (unsigned long) &address,
                                sizeof address};
        say("bind", syscall(SYS_bind, args[0], &address, sizeof address));
        say("socketcall", syscall(SYS_socketcall, 2, args));
        args[2] = sizeof address.sun_family;
        say("no name", syscall(SYS_socketcall, 2, args));
    } else if (!strcmp(what, "pass")) {
        /* To a child through a socket: sendmsg is a second way to have two of it. */
        int ends[2];
        socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
        union { struct cmsghdr header; char room[CMSG_SPACE(sizeof(int))]; } control;
        char byte = 'x';
        struct iovec part = {&byte, 1};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                                 .msg_controllen = sizeof control};
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &device, sizeof device);
        say("sendmsg", sendmsg(ends[0], &message, 0));
        say("recvmsg", recvmsg(ends[1], &message, 0));
        int copy = *(int *) CMSG_DATA(CMSG_FIRSTHDR(&message));
        close(device);
        device = copy;
        say("write", write(device, "passed", 6));
    } else if (!strcmp(what, "list")) {
        DIR *directory = opendir("/dev");
        for (struct dirent *entry; (entry = readdir(directory)) != NULL;)
            if (!strcmp(entry->d_name, "echo"))
                printf("%s: %d\n", what, entry->d_type == DT_CHR);
        closedir(directory);
    } else if (!strcmp(what, "names")) {
        say("mkdir", mkdir(path, 0777));
        say("unlink", unlink(path));
        say("rename", rename(path, "/dev/other"));
        say("truncate", truncate(path, 0));
        say("access", access(path, R_OK | W_OK));
        say("excl", open(path, O_RDWR | O_CREAT | O_EXCL, 0666));
    } else if (!strcmp(what, "sendfile")) {
        say(what, syscall(SYS_sendfile64, 1, device, NULL, 10));
    } else {
        printf("%s?\n", what);
    }
}

int main(int argc, char **argv)
{
    device = open(path, O_RDWR);
    say("open", device);
    for (int i = 1; i < argc; i++)
        act(argv[i]);
    return 0;
}
