/* ioctl: what the kernel does with commands, arguments and answers. */
#include "client.h"
#include <linux/fs.h>
#include <linux/fiemap.h>
#include <termios.h>

#define RETRY 4

static int fd;

static void start(const char *path)
{
	fd = open(path, O_RDWR);
	fill(BUF, BUF_SIZE);
}

/* The server is to ask for these areas of memory, first those to read, then those to write. */
static void next_retry(int inputs, int outputs, const struct iovec *areas, int known)
{
	/* Lines are limited: the server repeats the last area that it knows of. */
	char text[1500];
	int length = sprintf(text, "next IOCTL retry %d %d", inputs, outputs);
	for (int i = 0; i < known; i++)
		length += sprintf(text + length, " %#lx:%#lx", (long)areas[i].iov_base,
				  (long)areas[i].iov_len);
	server("%s", text);
}

#define AREAS(inputs, outputs, ...) \
	do { \
		struct iovec areas[] = {__VA_ARGS__}; \
		next_retry(inputs, outputs, areas, COUNT(areas)); \
	} while (0)

#define IOCTL(command, argument) \
	AS("ioctl(" #command ", " #argument ")", ioctl(fd, command, argument))

CASE(restricted_directions)
{
	start(RESTRICTED);
	IOCTL(_IO('c', 1), 7);
	server("next IOCTL echo");
	IOCTL(_IO('c', 1), 0x123456789abcdef);
	server("next IOCTL echo");
	IOCTL(_IOW('c', 2, int), BUF);
	server("next IOCTL ioctl 0 0 0 0 11223344");
	IOCTL(_IOR('c', 3, int), BUF);
	show("data", BUF, 8);
	server("next IOCTL ioctl 5 0 0 0 55667788");
	IOCTL(_IOWR('c', 4, int), BUF);
	show("data", BUF, 8);
	server("next IOCTL echo");
	IOCTL(_IOWR('c', 4, char[100]), BUF + 4090);
	IOCTL(0xffffffff, BUF);
	IOCTL(0x80000000, BUF);
	IOCTL(0x1234, BUF);
	IOCTL(0, 0);
}

CASE(restricted_sizes)
{
	start(RESTRICTED);
	static const int sizes[] = {0, 1, 4095, 4096, 4097, 16383};
	for (unsigned i = 0; i < COUNT(sizes); i++) {
		say("size %d", sizes[i]);
		server("next IOCTL ioctl 0 0 0 0 ");
		IOCTL(_IOC(_IOC_WRITE, 'c', 5, sizes[i]), BUF + 1);
		server("next IOCTL ioctl 0 0 0 0 ");
		IOCTL(_IOC(_IOC_READ, 'c', 5, sizes[i]), BUF + 1);
		server("next IOCTL echo");
		IOCTL(_IOC(_IOC_READ | _IOC_WRITE, 'c', 5, sizes[i]), BUF + 1);
	}
}

CASE(restricted_with_bad_memory)
{
	start(RESTRICTED);
	server("next IOCTL ioctl 0 0 0 0 1122334455667788");
	IOCTL(_IOR('c', 3, long), NULL);
	IOCTL(_IOW('c', 3, long), NULL);
	IOCTL(_IOW('c', 3, long), NOWHERE);
	IOCTL(_IOW('c', 3, long), KERNEL);
	IOCTL(_IOW('c', 3, long), (char *)-1);
	IOCTL(_IOW('c', 3, long), END - 4);
	IOCTL(_IOW('c', 3, char[0]), NULL);
	server("next IOCTL ioctl 0 0 0 0 1122334455667788");
	IOCTL(_IOR('c', 3, long), END - 4);
	show("data", END - 4, 4);
	server("next IOCTL ioctl 0 0 0 0 1122");
	IOCTL(_IOR('c', 3, long), END - 4);
	show("data", END - 4, 4);
	server("next IOCTL ioctl 0 0 0 0 1122334455667788");
	IOCTL(_IOR('c', 3, long), CONSTANT);
	server("next IOCTL ioctl 3 0 0 0 ");
	IOCTL(_IOR('c', 3, long), NOWHERE);
	server("next IOCTL ioctl -5 0 0 0 ");
	IOCTL(_IOR('c', 3, long), NOWHERE);
	server("next IOCTL ioctl -5 0 0 0 1122");
	IOCTL(_IOR('c', 3, long), NOWHERE);
}

CASE(restricted_answers)
{
	start(RESTRICTED);
	memset(BUF, 0, 16);
	server("next IOCTL ioctl 0 0 0 0 1122");
	IOCTL(_IOR('c', 3, int), BUF);
	show("too little", BUF, 8);
	server("next IOCTL ioctl 0 0 0 0 112233445566");
	IOCTL(_IOR('c', 3, int), BUF);
	show("too much", BUF, 8);
	server("next IOCTL ioctl 0 0 0 0 11");
	IOCTL(_IO('c', 3), BUF);
	server("next IOCTL raw 00");
	IOCTL(_IO('c', 3), BUF);
	server("next IOCTL raw ");
	IOCTL(_IOR('c', 3, int), BUF);
	server("next IOCTL ioctl -1 0 0 0 55667788");
	IOCTL(_IOR('c', 3, int), BUF);
	show("with an error", BUF, 8);
	AREAS(1, 0, {BUF, 4});
	IOCTL(_IOR('c', 3, int), BUF);
	server("next IOCTL ioctl 0 8 0 0 55667788");
	IOCTL(_IOR('c', 3, int), BUF);
	server("next IOCTL ioctl 0 0xfffb 7 9 55667788");
	IOCTL(_IOR('c', 3, int), BUF);
}

static void results(void)
{
	static const int numbers[] = {0, 1, 255, 4096, 2147483647, -1, -EINTR, -ENOSYS, -ENOTTY, -511,
				      -512, -513, -514, -515, -516, -517, -4095, -4096, -5000,
				      -2147483647 - 1};
	for (unsigned i = 0; i < COUNT(numbers); i++) {
		server("next IOCTL ioctl %d 0 0 0 ", numbers[i]);
		say("result %d", numbers[i]);
		IOCTL(_IO('c', 1), 0);
	}
	static const int errors[] = {EPERM, EINTR, EIO, EAGAIN, EFAULT, EINVAL, ENOTTY, ENOSYS, 511};
	for (unsigned i = 0; i < COUNT(errors); i++) {
		server("next IOCTL error %d", errors[i]);
		IOCTL(_IO('c', 1), 0);
	}
}

CASE(restricted_results)
{
	start(RESTRICTED);
	results();
}

CASE(unrestricted_results)
{
	start(PLAIN);
	results();
}

CASE(unrestricted_without_areas)
{
	start(PLAIN);
	server("next IOCTL ioctl 0 0 0 0 ");
	IOCTL(_IOWR('c', 4, int), BUF);
	server("next IOCTL ioctl 0 0 0 0 11223344");
	IOCTL(_IOWR('c', 4, int), BUF);
	server("next IOCTL ioctl 7 0 0 0 ");
	IOCTL(0xffffffff, 0xffffffffffffffff);
}

CASE(one_round)
{
	start(PLAIN);
	AREAS(1, 0, {BUF, 16});
	server("next IOCTL ioctl 3 0 0 0 ");
	IOCTL(_IO('c', 1), BUF);
	AREAS(0, 1, {BUF + 100, 4});
	server("next IOCTL ioctl 3 0 0 0 11223344");
	IOCTL(_IO('c', 1), BUF);
	show("data", BUF + 98, 8);
	AREAS(1, 1, {BUF, 4}, {BUF + 100, 4});
	server("next IOCTL echo");
	IOCTL(_IO('c', 1), BUF);
	show("data", BUF + 98, 8);
	AREAS(2, 2, {BUF, 4}, {BUF + 200, 2}, {BUF + 100, 4}, {BUF + 110, 2});
	server("next IOCTL echo");
	IOCTL(_IO('c', 1), BUF);
	show("data", BUF + 98, 16);
	AREAS(1, 2, {BUF, 3}, {BUF + 100, 4}, {BUF + 110, 2});
	server("next IOCTL echo");
	IOCTL(_IO('c', 1), BUF);
	show("too little", BUF + 98, 16);
	AREAS(1, 1, {BUF, 8}, {BUF + 100, 4});
	server("next IOCTL echo");
	IOCTL(_IO('c', 1), BUF);
	show("too much", BUF + 98, 16);
	AREAS(0, 1, {BUF + 100, 4});
	server("next IOCTL ioctl -5 0 0 0 99999999");
	IOCTL(_IO('c', 1), BUF);
	show("with an error", BUF + 98, 16);
}

CASE(more_rounds)
{
	start(PLAIN);
	AREAS(1, 0, {BUF, 8});
	AREAS(2, 0, {BUF, 8}, {BUF + 100, 16});
	AREAS(2, 1, {BUF, 8}, {BUF + 100, 16}, {BUF + 200, 24});
	server("next IOCTL echo");
	IOCTL(_IO('c', 1), BUF);
	show("data", BUF + 200, 24);
	/* (After a round with input, one without is a request of Linux 6.1's with wrong content.) */
	AREAS(0, 1, {BUF, 8});
	server("next IOCTL retry 0 0");
	server("next IOCTL ioctl 9 0 0 0 ");
	IOCTL(_IO('c', 1), BUF);
	AREAS(1, 0, {BUF, 8});
	AREAS(1, 0, {BUF, 8});
	server("next IOCTL error 22");
	IOCTL(_IO('c', 1), BUF);
}

CASE(many_areas)
{
	start(PLAIN);
	static const int counts[][2] = {{255, 0}, {256, 0}, {257, 0}, {0, 256}, {128, 128},
					{128, 129}, {200, 57}, {100000, 0}};
	for (unsigned i = 0; i < COUNT(counts); i++) {
		struct iovec one = {BUF, 5};
		next_retry(counts[i][0], counts[i][1], &one, 1);
		say("%d and %d areas", counts[i][0], counts[i][1]);
		server("next IOCTL ioctl 3 0 0 0 ");
		if (IOCTL(_IO('c', 1), BUF) == -1) {
			/* It was not asked again. */
			server("forget IOCTL");
		}
	}
}

#define ROUND(...) \
	do { \
		AREAS(__VA_ARGS__); \
		server("next IOCTL ioctl 3 0 0 0 "); \
		AS("ioctl with " #__VA_ARGS__, ioctl(fd, _IO('c', 1), BUF)); \
		server("forget IOCTL"); \
	} while (0)

CASE(areas_that_are_large)
{
	start(PLAIN);
	ROUND(1, 0, {BUF, 4096});
	ROUND(1, 0, {BUF + 1, 4097});
	ROUND(1, 0, {BUF, 131071});
	ROUND(1, 0, {BUF, 131072});
	ROUND(1, 0, {BUF + 1, 131072});
	ROUND(1, 0, {BUF, 131073});
	ROUND(0, 1, {BUF, 131072});
	ROUND(0, 1, {BUF, 131073});
	ROUND(1, 1, {BUF, 131072}, {BUF, 131072});
	ROUND(2, 0, {BUF, 131072}, {BUF, 1});
	ROUND(2, 1, {BUF, 131071}, {BUF, 1}, {BUF, 10});
	ROUND(0, 2, {BUF, 131071}, {BUF, 2});
}

CASE(areas_that_are_wrong)
{
	start(PLAIN);
	ROUND(1, 0, {NULL, 8});
	ROUND(1, 0, {NULL, 0});
	ROUND(0, 1, {NULL, 0});
	ROUND(1, 0, {NOWHERE, 8});
	ROUND(1, 0, {KERNEL, 8});
	ROUND(1, 0, {(char *)-1, 8});
	ROUND(1, 0, {BUF, -1});
	ROUND(1, 0, {BUF, 0x8000000000000000});
	ROUND(2, 0, {BUF, 0x8000000000000000}, {BUF, 0x8000000000000000});
	ROUND(1, 0, {BUF, 0x100000000});
	ROUND(1, 0, {END - 4, 8});
	ROUND(2, 0, {BUF, 8}, {END, 1});
	ROUND(0, 1, {NOWHERE, 8});
	ROUND(0, 1, {NULL, 0x100000000});
	AREAS(0, 1, {NOWHERE, 8});
	server("next IOCTL ioctl 3 0 0 0 11");
	IOCTL(_IO('c', 1), BUF);
	AREAS(0, 2, {BUF, 2}, {NOWHERE, 2});
	server("next IOCTL ioctl 3 0 0 0 1122");
	IOCTL(_IO('c', 1), BUF);
	AREAS(0, 2, {BUF, 2}, {NOWHERE, 2});
	server("next IOCTL ioctl 3 0 0 0 334455");
	IOCTL(_IO('c', 1), BUF);
	show("data", BUF, 4);
	AREAS(0, 1, {CONSTANT, 2});
	server("next IOCTL ioctl 3 0 0 0 3344");
	IOCTL(_IO('c', 1), BUF);
}

CASE(retries_that_are_wrong)
{
	start(PLAIN);
	server("next IOCTL ioctl 0 4 1 0 ");
	IOCTL(_IO('c', 1), BUF);
	server("next IOCTL ioctl 0 4 1 0 0000000001000000");
	IOCTL(_IO('c', 1), BUF);
	server("next IOCTL ioctl 0 4 1 0 0000000001000000040000000000000000");
	IOCTL(_IO('c', 1), BUF);
	server("next IOCTL ioctl 0 4 0 0 00");
	IOCTL(_IO('c', 1), BUF);
	server("next IOCTL ioctl 0 4 4294967295 2 ");
	IOCTL(_IO('c', 1), BUF);
	/* The result of a round that is no answer means nothing. */
	server("next IOCTL ioctl -5 4 0 0 ");
	server("next IOCTL ioctl 4 0 0 0 ");
	IOCTL(_IO('c', 1), BUF);
	server("next IOCTL ioctl 0 4 0 0 ");
	server("next IOCTL ioctl 0 4 0 0 ");
	server("next IOCTL ioctl 4 0 0 0 ");
	IOCTL(_IO('c', 1), BUF);
}

#define GENERIC(command, argument) \
	do { \
		AS(#command, ioctl(fd, command, argument)); \
	} while (0)

CASE(commands_that_the_kernel_answers)
{
	int number = 1;
	start(PLAIN);
	GENERIC(FIOCLEX, 0);
	say("F_GETFD %d", fcntl(fd, F_GETFD));
	GENERIC(FIONCLEX, 0);
	say("F_GETFD %d", fcntl(fd, F_GETFD));
	GENERIC(FIONBIO, &number);
	say("F_GETFL %#x", fcntl(fd, F_GETFL));
	TRY(read(fd, BUF, 1));
	number = 0;
	GENERIC(FIONBIO, &number);
	say("F_GETFL %#x", fcntl(fd, F_GETFL));
	GENERIC(FIONBIO, NULL);
	GENERIC(FIOASYNC, NULL);
	GENERIC(FIOASYNC, &number);
	number = 1;
	GENERIC(FIOASYNC, &number);
	say("F_GETFL %#x", fcntl(fd, F_GETFL));
	GENERIC(FIOQSIZE, BUF);
	number = 0;
	GENERIC(FIGETBSZ, &number);
	say("%d", number);
	GENERIC(FIGETBSZ, NULL);
	GENERIC(FS_IOC_FIEMAP, BUF);
	GENERIC(FIBMAP, BUF);
	memset(BUF, 0, 1000);
	*(int64_t *)BUF = fd;
	GENERIC(FIFREEZE, 0);
	GENERIC(FICLONE, fd);
	GENERIC(FICLONE, 150);
	GENERIC(FICLONERANGE, BUF);
	GENERIC(FIDEDUPERANGE, BUF);
}

CASE(commands_that_the_device_is_asked)
{
	start(PLAIN);
	GENERIC(FIONREAD, BUF);
	GENERIC(TCGETS, BUF);
	GENERIC(TCFLSH, 0);
	GENERIC(TIOCGWINSZ, BUF);
	GENERIC(TIOCSCTTY, 0);
	GENERIC(TIOCNOTTY, 0);
	GENERIC(TIOCGPGRP, BUF);
	GENERIC(BLKGETSIZE64, BUF);
	GENERIC(FS_IOC_GETFLAGS, BUF);
	GENERIC(FS_IOC_SETFLAGS, BUF);
	GENERIC(FS_IOC_FSGETXATTR, BUF);
	GENERIC(FS_IOC_FSSETXATTR, BUF);
	GENERIC(FS_IOC_GETFSLABEL, BUF);
	GENERIC(0x8901, BUF); /* FIOSETOWN */
	GENERIC(0x8903, BUF); /* FIOGETOWN */
	GENERIC(0x8904, BUF); /* SIOCGPGRP */
	GENERIC(0x8907, BUF); /* SIOCATMARK */
	GENERIC(0x8933, BUF); /* SIOCGIFINDEX */
	GENERIC(0x40086602, BUF);
	GENERIC(0x100001234, BUF);
}

CASE(ioctl_of_a_file_for_one_direction)
{
	fd = open(PLAIN, O_RDONLY);
	server("next IOCTL ioctl 1 0 0 0 ");
	IOCTL(_IOW('c', 1, int), BUF);
	fd = open(PLAIN, O_WRONLY);
	server("next IOCTL ioctl 1 0 0 0 ");
	IOCTL(_IOR('c', 1, int), BUF);
	fd = open(RESTRICTED, O_RDONLY);
	server("next IOCTL echo");
	IOCTL(_IOW('c', 1, int), BUF);
	fd = 150;
	IOCTL(_IOW('c', 1, int), BUF);
	IOCTL(_IOW('c', 1, int), NULL);
}
