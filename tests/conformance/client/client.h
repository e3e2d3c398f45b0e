/* What the cases of the conformance suite share.
 *
 * A case is a function that makes system calls and prints what comes of them, a line for each.  It
 * runs in a process of its own.  Whoever started this program takes note of a line before the case
 * goes on, tells the device's server what to do, and may make the case wait for a request.
 */
#ifndef CLIENT_H
#define CLIENT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

/* The devices (see devices.py). */
#define PLAIN "/dev/recuse-plain"
#define RESTRICTED "/dev/recuse-restricted"
#define SMALL "/dev/recuse-small"
#define ODD "/dev/recuse-odd"

/* Memory at addresses that are the same in every run: some requests have them. */
#define PAGE 4096L
#ifdef __x86_64__
#define BUF ((char *)0x100000000)
#define NOWHERE ((char *)0x200000000)
#define KERNEL ((char *)0xffff800000000000)
#else
#define BUF ((char *)0x40000000)
#define NOWHERE ((char *)0x60000000)
#endif
#define BUF_SIZE (2 * 1024 * 1024L)
#define END (BUF + BUF_SIZE)           /* a page that nobody may touch */
#define CONSTANT (END + PAGE)          /* a page that may be read only; then nothing again */

/* Define a case: CASE(name) { ... } */
#define CASE(name) \
	static void name(void); \
	__attribute__((constructor)) static void add_##name(void) { add_case(#name, name); } \
	static void name(void)

void add_case(const char *name, void (*function)(void));

/* Do a call that fails with -1, and tell its text and its result. */
#define TRY(call) told(#call, (errno = 0, (long)(call)))

/* The same without the text, which is given. */
#define AS(text, call) told(text, (errno = 0, (long)(call)))

long told(const char *call, long result);

/* Tell a line. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Tell what is in a buffer. */
void show(const char *what, const void *data, long size);

/* Tell the server something (see recording.py); returns when it knows. */
void server(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Give the calling thread a name, by which its requests are known. */
void call_me(const char *name);

/* Fork; the child has a name, runs the function and exits with its result. */
pid_t child(const char *name, int (*function)(void));

/* Wait for a child and tell how it ended. */
void bury(const char *name, pid_t pid);

/* Count a signal from now on; how many there were. */
void handle(int number, int flags);
extern volatile int handled;

/* Bytes that are different everywhere. */
void fill(void *data, long size);

#define COUNT(array) (sizeof(array) / sizeof *(array))

#endif
