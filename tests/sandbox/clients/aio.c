/* The kernel's asynchronous I/O (io_submit) of devices, beside ordinary files. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef IOCB_CMD_POLL
#define IOCB_CMD_POLL 5
#endif

static aio_context_t context;
static int device, file;

static struct iocb block(int opcode, int fd, const void *buffer, size_t size, long long offset)
{
	struct iocb one = { .aio_lio_opcode = opcode, .aio_fildes = fd, .aio_nbytes = size };

	one.aio_buf = (uintptr_t)buffer;
	one.aio_offset = offset;
	one.aio_data = 0x1234567800000000 | opcode;
	return one;
}

static long submit(long count, struct iocb **blocks)
{
	long result = syscall(SYS_io_submit, context, count, blocks);

	return result < 0 ? -errno : result;
}

/* Wait for one; print what has ended, and with what. */
static void reap(struct iocb *blocks)
{
	struct io_event event;
	struct timespec patience = { 20, 0 };

	if (syscall(SYS_io_getevents, context, 1, 1, &event, &patience) != 1) {
		printf("  no event\n");
		return;
	}
	printf("  %d: %lld%s\n", (int)((struct iocb *)(uintptr_t)event.obj - blocks),
	       (long long)event.res,
	       event.data == ((struct iocb *)(uintptr_t)event.obj)->aio_data ? "" : " (data!)");
}

/* Submit all, however many calls that takes, and wait for their ends. */
static void all(const char *what, int count, struct iocb *blocks)
{
	struct iocb *each[16], before[16];
	int done = 0, changed = 0;

	for (int i = 0; i < count; i++)
		each[i] = &blocks[i];
	memcpy(before, blocks, count * sizeof *blocks);
	printf("%s:", what);
	while (done < count) {
		long result = submit(count - done, each + done);

		printf(" %ld", result);
		if (result <= 0)
			break;
		done += result;
	}
	printf("\n");
	for (int i = 0; i < done; i++)
		reap(blocks);
	for (int i = 0; i < count; i++) {
		before[i].aio_key = blocks[i].aio_key;
		changed |= memcmp(&before[i], &blocks[i], sizeof *blocks);
	}
	if (changed)
		printf("control blocks were changed\n");
	fflush(stdout);
}

static void transfers(void)
{
	static char big[1 << 20 | 5];
	char a[16] = "................", b[8] = "........", c[16] = "................";
	struct iovec in[2] = { { b, 3 }, { c, 15 } }, out[2] = { { "he", 2 }, { "llo", 3 } };
	struct iocb blocks[4];
	uint64_t told = 0;
	int events = eventfd(0, 0);

	blocks[0] = block(IOCB_CMD_PWRITEV, device, out, 2, 0);
	all("writev", 1, blocks);
	blocks[0] = block(IOCB_CMD_PREAD, device, a, 16, 4096);
	all("read", 1, blocks);
	printf("%.16s\n", a);
	blocks[0] = block(IOCB_CMD_PREAD, device, a, 16, 0);
	all("read of nothing", 1, blocks);

	blocks[0] = block(IOCB_CMD_PWRITE, device, "one", 3, 0);
	blocks[1] = block(IOCB_CMD_PWRITE, device, "two", 3, 7);
	blocks[2] = block(IOCB_CMD_PREADV, device, in, 2, 0);
	blocks[2].aio_flags = IOCB_FLAG_RESFD;
	blocks[2].aio_resfd = events;
	all("three", 3, blocks);
	printf("%.3s %.15s\n", b, c);
	printf("eventfd: %d", (int)read(events, &told, 8));
	printf(" %d\n", (int)told);

	/* Nothing left, then something: the first ends the call. */
	blocks[0] = block(IOCB_CMD_PREAD, device, a, 16, 0);
	blocks[1] = block(IOCB_CMD_PWRITE, device, "three", 5, 0);
	blocks[2] = block(IOCB_CMD_PREAD, device, a, 16, 0);
	all("nothing first", 3, blocks);

	blocks[0] = block(IOCB_CMD_PWRITE, file, "ordinary", 8, 0);
	blocks[1] = block(IOCB_CMD_PWRITE, device, "four", 4, 0);
	blocks[2] = block(IOCB_CMD_PREAD, file, a, 16, 2);
	blocks[3] = block(IOCB_CMD_PREAD, device, b, 8, 0);
	all("mixed", 4, blocks);
	printf("%.6s %.4s\n", a, b);

	memset(big, 'b', sizeof big);
	blocks[0] = block(IOCB_CMD_PWRITE, device, big, sizeof big, 0);
	all("big", 1, blocks);
	memset(big, 0, sizeof big);
	blocks[0] = block(IOCB_CMD_PREAD, device, big, sizeof big, 0);
	all("big", 1, blocks);
	printf("%c%c\n", big[0], big[sizeof big - 1]);
}

static void errors(void)
{
	char a[16];
	struct iocb one, two, *each[2] = { &one, &two }, *bad[1] = { (void *)16 };
	int written = open("/dev/echo", O_WRONLY), path = open("/dev/echo", O_PATH);
	aio_context_t right = context;

	one = block(IOCB_CMD_PREAD, written, a, 16, 0);
	printf("not for reading: %ld\n", submit(1, each));
	one = block(IOCB_CMD_PREAD, path, a, 16, 0);
	printf("O_PATH: %ld\n", submit(1, each));
	one = block(IOCB_CMD_PREAD, device, a, 16, 0);
	one.aio_rw_flags = 0x4000;
	printf("unknown flags: %ld\n", submit(1, each));
	one = block(IOCB_CMD_PREAD, device, a, 16, -1);
	printf("negative: %ld\n", submit(1, each));
	one = block(IOCB_CMD_PREAD, device, a, 16, 0);
	one.aio_reserved2 = 1;
	printf("reserved: %ld\n", submit(1, each));
	one = block(IOCB_CMD_FSYNC, device, 0, 0, 0);
	printf("fsync: %ld\n", submit(1, each));
	one = block(77, device, 0, 0, 0);
	printf("unknown: %ld\n", submit(1, each));
	printf("no block: %ld\n", submit(1, bad));
	printf("no array: %ld\n", submit(1, (void *)16));
	printf("none: %ld %ld\n", submit(0, each), submit(-1, each));
	one = block(IOCB_CMD_PWRITE, device, "x", 1, 0);
	two = block(IOCB_CMD_PREAD, written, a, 16, 0);
	printf("a good one first: %ld\n", submit(2, each));
	reap(&one);
	context = (uintptr_t)a & ~7ul;
	one = block(IOCB_CMD_PREAD, device, a, 16, 0);
	printf("no context: %ld\n", submit(1, each));
	context = right;
	printf("still there: %d\n", (int)read(device, a, 16));
	printf("next descriptor: %d\n", dup(0) - path);
}

/* Takes note of what has ended at once, and uses the control block's memory for something else. */
static volatile struct iocb *volatile reaped;

static void *reaper(void *unused)
{
	struct io_event event;

	while (syscall(SYS_io_getevents, context, 1, 1, &event, 0) == 1) {
		memset((void *)(uintptr_t)event.obj, 0xAA, sizeof(struct iocb));
		reaped = (void *)(uintptr_t)event.obj;
	}
	return 0;
}

static void race(int rounds)
{
	struct iocb one, *each[1] = { &one }, other;
	pthread_t thread;
	int bad = 0;

	memset(&other, 0xAA, sizeof other);
	pthread_create(&thread, 0, reaper, 0);
	for (int i = 0; i < rounds; i++) {
		reaped = 0;
		one = block(IOCB_CMD_PWRITE, device, "x", 1, 0);
		if (submit(1, each) != 1)
			bad++;
		while (!reaped)
			;
		bad += !!memcmp(&one, &other, sizeof one);
	}
	printf("%d bad\n", bad);
}

static void polls(void)
{
	struct iocb blocks[3];
	char a[16];

	blocks[0] = block(IOCB_CMD_POLL, device, (void *)POLLOUT, 0, 0);
	all("room", 1, blocks);
	blocks[0] = block(IOCB_CMD_POLL, device, (void *)POLLIN, 0, 0);
	blocks[1] = block(IOCB_CMD_POLL, device, (void *)POLLIN, 0, 0);
	struct iocb *each[3] = { &blocks[0], &blocks[1], &blocks[2] };
	printf("%ld\n", submit(2, each));
	struct io_event event;
	struct timespec soon = { 0, 50000000 };
	printf("ended: %ld\n", syscall(SYS_io_getevents, context, 1, 1, &event, &soon));
	blocks[2] = block(IOCB_CMD_PWRITE, device, "data", 4, 0);
	printf("%ld\n", submit(1, each + 2));
	int seen = 0;
	for (int i = 0; i < 3; i++) {
		struct timespec patience = { 20, 0 };
		if (syscall(SYS_io_getevents, context, 1, 1, &event, &patience) == 1)
			seen |= 1 << ((struct iocb *)(uintptr_t)event.obj - blocks);
	}
	printf("ended: %d\n", seen);
	printf("read: %d\n", (int)read(device, a, 16));
	struct pollfd entry = { .fd = device, .events = POLLIN };
	printf("poll: %d\n", poll(&entry, 1, 5));
}

int main(int count, char **args)
{
	device = open(count > 2 ? args[2] : "/dev/echo", O_RDWR);
	file = memfd_create("ordinary", 0);
	if (syscall(SYS_io_setup, 8, &context))
		return 1;
	if (!strcmp(args[1], "transfers"))
		transfers();
	else if (!strcmp(args[1], "errors"))
		errors();
	else if (!strcmp(args[1], "polls"))
		polls();
	else
		race(atoi(args[1]));
	fflush(stdout);
	return 0;
}
