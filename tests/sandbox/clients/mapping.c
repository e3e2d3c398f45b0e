// Maps a file, and does with the mappings what standard input says: one command a line, as
//     NAME SLOT [NUMBER...]
// The results are printed. What is printed of a device and of a memfd can be compared.
// mapping PATH FLAGS PAGES: PATH may be "memfd", which is made with that many pages.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define SLOTS 4

static struct {
    char *at;
    long pages;
} slots[SLOTS];

static void result(const char *name, long ok) {
    if (ok)
        printf("%s ok\n", name);
    else
        printf("%s %s\n", name, strerrorname_np(errno));
}

// What a child sees of each page: its first byte, or the signal that it dies of.
static void look(int slot) {
    printf("look");
    for (long page = 0; page < slots[slot].pages; page++) {
        fflush(stdout);
        pid_t child = fork();
        if (!child) {
            alarm(10);
            _exit(*(volatile unsigned char *)(slots[slot].at + page * PAGE));
        }
        int status;
        waitpid(child, &status, 0);
        if (WIFSIGNALED(status))
            printf(" !%d", WTERMSIG(status));
        else
            printf(" %d", WEXITSTATUS(status));
    }
    printf("\n");
}

static void fill(int slot, long value) {
    for (long page = 0; page < slots[slot].pages; page++)
        slots[slot].at[page * PAGE] = value + page;
}

int main(int argc, char **argv) {
    int flags = strtol(argv[2], NULL, 0);
    int fd;
    if (!strcmp(argv[1], "memfd")) {
        int made = memfd_create("native", 0);
        char path[40];
        if (ftruncate(made, atol(argv[3]) * PAGE))
            return 1;
        sprintf(path, "/proc/self/fd/%d", made);
        fd = open(path, flags);
    } else {
        fd = open(argv[1], flags);
    }
    if (fd < 0) {
        perror(argv[1]);
        return 1;
    }
    char name[20], line[200];
    while (fgets(line, sizeof line, stdin)) {
        int slot = 0;
        long a = 0, b = 0, c = 0, d = 0;
        if (sscanf(line, "%19s %d %li %li %li %li", name, &slot, &a, &b, &c, &d) < 1)
            continue;
        char *at = slots[slot].at;
        long pages = slots[slot].pages;
        if (!strcmp(name, "map")) {  // pages, protection, flags, offset in pages
            void *hint = c & MAP_FIXED ? at : NULL;
            char *made = mmap(hint, a * PAGE, b, c, fd, d * PAGE);
            result(name, made != MAP_FAILED && (!hint || made == hint));
            if (made != MAP_FAILED) {
                slots[slot].at = made;
                slots[slot].pages = a;
            }
        } else if (!strcmp(name, "reserve")) {  // pages
            slots[slot].at = mmap(NULL, a * PAGE, 0, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            slots[slot].pages = a;
        } else if (!strcmp(name, "raw")) {  // address offset, length, protection, flags
            void *made = mmap((void *)a, b, c, d, fd, 0);
            result(name, made != MAP_FAILED);
            if (made != MAP_FAILED)
                munmap(made, b);
        } else if (!strcmp(name, "unmap")) {  // first page, pages
            result(name, !munmap(at + a * PAGE, b * PAGE));
        } else if (!strcmp(name, "remap")) {  // pages, flags
            char *made = mremap(at, pages * PAGE, a * PAGE, b);
            result(name, made != MAP_FAILED);
            if (made != MAP_FAILED) {
                slots[slot].at = made;
                slots[slot].pages = a;
            }
        } else if (!strcmp(name, "protect")) {  // protection, first page, pages (0: all after it)
            result(name, !mprotect(at + b * PAGE, (c ? c : pages - b) * PAGE, a));
        } else if (!strcmp(name, "move")) {  // the slot that lies where it is to go
            char *made = mremap(at, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                                slots[a].at);
            result(name, made == slots[a].at);
            if (made != MAP_FAILED)
                slots[slot].at = made;
        } else if (!strcmp(name, "advise")) {
            result(name, !madvise(at, pages * PAGE, a));
        } else if (!strcmp(name, "sync")) {
            result(name, !msync(at, pages * PAGE, MS_SYNC));
        } else if (!strcmp(name, "fill")) {  // value
            fill(slot, a);
        } else if (!strcmp(name, "look")) {
            look(slot);
        } else if (!strcmp(name, "fork")) {  // value: a child fills the slot, and ends
            fflush(stdout);
            pid_t child = fork();
            if (!child) {
                fill(slot, a);
                munmap(at, PAGE);
                _exit(0);
            }
            int status;
            waitpid(child, &status, 0);
            printf("fork %d\n", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
        } else if (!strcmp(name, "vfork")) {
            pid_t child = vfork();
            if (!child) {
                execl("/bin/true", "true", NULL);
                _exit(1);
            }
            int status;
            waitpid(child, &status, 0);
            printf("vfork %d\n", status);
        } else if (!strcmp(name, "dup2")) {  // to
            result(name, dup2(fd, a) == a);
            close(fd);
            fd = a;
        } else if (!strcmp(name, "close")) {
            close(fd);
        } else if (!strcmp(name, "cycles")) {  // number, pages
            long done = 0;
            for (; done < a; done++) {
                char *made = mmap(NULL, b * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
                if (made == MAP_FAILED)
                    break;
                made[0]++;
                munmap(made, b * PAGE);
            }
            printf("cycles %ld\n", done);
        } else if (!strcmp(name, "drop")) {  // all slots
            for (int each = 0; each < SLOTS; each++) {
                if (slots[each].pages)
                    munmap(slots[each].at, slots[each].pages * PAGE);
                slots[each].pages = 0;
            }
        } else if (!strcmp(name, "say")) {
            printf("said\n");
        }
        fflush(stdout);
    }
    return 0;
}
