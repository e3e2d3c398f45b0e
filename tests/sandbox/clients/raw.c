/* Threads and processes as a runtime without libc makes them: by bare system calls. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK 65536

static volatile int done;
static int device;

static long call3(long number, long a, long b, long c)
{
	long result;
	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return result;
}

/* Opens the device by itself, writes through both files, and ends without libc's help. */
static int work(void *text)
{
	long fd = call3(SYS_open, (long)"/dev/echo", O_RDWR, 0);
	if (fd < 0)
		call3(SYS_exit, 10, 0, 0);
	if (call3(SYS_write, fd, (long)text, strlen(text)) != (long)strlen(text))
		call3(SYS_exit, 11, 0, 0);
	if (call3(SYS_write, device, (long)"!", 1) != 1)
		call3(SYS_exit, 12, 0, 0);
	call3(SYS_close, fd, 0, 0);
	done = 1;
	call3(SYS_futex, (long)&done, FUTEX_WAKE, 1);
	call3(SYS_exit, 0, 0, 0);
	return 0;
}

static void await(void)
{
	while (!done)
		syscall(SYS_futex, &done, FUTEX_WAIT, 0, NULL, NULL, 0);
	done = 0;
}

static int finished(int pid)
{
	int status;
	if (pid < 0 || waitpid(pid, &status, __WALL) != pid)
		return 99;
	return status;
}

int main(int argc, char **argv)
{
	const int thread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_SYSVSEM | CLONE_THREAD;
	char *stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int status;
	(void)argc;
	device = open("/dev/echo", O_RDWR);
	if (device < 0 || write(device, "main", 4) != 4)
		return 1;
	if (!strcmp(argv[1], "thread")) { /* as Go makes them */
		if (clone(work, stack + STACK, thread, "thread") < 0)
			return 2;
		await();
		status = 0;
	} else if (!strcmp(argv[1], "clone")) {
		status = finished(clone(work, stack + STACK, SIGCHLD, "clone"));
	} else if (!strcmp(argv[1], "shared")) {
		status = finished(clone(work, stack + STACK, CLONE_VM | CLONE_FILES | SIGCHLD, "shared"));
	} else if (!strcmp(argv[1], "clone3")) {
		struct clone_args args = { .exit_signal = SIGCHLD };
		long pid = syscall(SYS_clone3, &args, sizeof(args));
		if (pid == 0)
			work("clone3");
		status = finished(pid);
	} else if (!strcmp(argv[1], "clone3-into")) { /* exit signal 0, its own pidfd */
		int pidfd = -1;
		struct clone_args args = { .flags = CLONE_PIDFD, .pidfd = (uintptr_t)&pidfd };
		long pid = syscall(SYS_clone3, &args, sizeof(args));
		if (pid == 0)
			work("clone3-into");
		status = finished(pid);
	} else if (!strcmp(argv[1], "vfork")) {
		pid_t pid = vfork();
		if (pid == 0) {
			execl("/bin/sh", "sh", "-c", "printf vfork >/dev/echo; printf ! >/dev/echo", (char *)0);
			_exit(127);
		}
		status = finished(pid);
	} else {
		pid_t pid = fork();
		if (pid == 0)
			work("fork");
		status = finished(pid);
	}
	char text[100] = "";
	if (write(device, "end", 3) != 3 || read(device, text, 99) <= 0)
		return 3;
	printf("%d %s\n", status, text);
	return 0;
}
