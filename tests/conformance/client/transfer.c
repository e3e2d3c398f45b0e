/* read, write and their kin. */
#include "client.h"

static int fd;

static void start(const char *path)
{
	fd = open(path, O_RDWR);
	fill(BUF, BUF_SIZE);
}

#define READ(at, size) \
	do { \
		long got = AS("read(" #at ", " #size ")", read(fd, at, size)); \
		if (got > 0) \
			show("data", at, got); \
	} while (0)
#define WRITE(at, size) AS("write(" #at ", " #size ")", write(fd, at, size))

CASE(read_sizes)
{
	start(PLAIN);
	READ(BUF, 0);
	READ(BUF, 1);
	READ(BUF, 16);
	READ(BUF, 4095);
	READ(BUF, 4096);
	READ(BUF, 4097);
	READ(BUF, 128 * 1024 - 1);
	READ(BUF, 128 * 1024);
	READ(BUF, 128 * 1024 + 1);
	READ(BUF, 1024 * 1024);
}

CASE(write_sizes)
{
	start(PLAIN);
	WRITE(BUF, 0);
	WRITE(BUF, 1);
	WRITE(BUF, 16);
	WRITE(BUF, 4095);
	WRITE(BUF, 4096);
	WRITE(BUF, 4097);
	WRITE(BUF, 128 * 1024 - 1);
	WRITE(BUF, 128 * 1024);
	WRITE(BUF, 128 * 1024 + 1);
	WRITE(BUF, 1024 * 1024);
}

CASE(buffers_that_are_not_aligned)
{
	start(PLAIN);
	READ(BUF + 1, 4096);
	READ(BUF + 1, 128 * 1024 - 1);
	READ(BUF + 1, 128 * 1024);
	READ(BUF + 4095, 128 * 1024);
	READ(BUF + 4095, 128 * 1024 + 1);
	WRITE(BUF + 1, 128 * 1024 - 1);
	WRITE(BUF + 1, 128 * 1024);
	WRITE(BUF + 4095, 300 * 1024);
}

CASE(devices_that_take_little)
{
	start(SMALL);
	READ(BUF, 10000);
	READ(BUF + 100, 10000);
	WRITE(BUF, 10000);
	WRITE(BUF + 100, 10000);
	start(ODD);
	READ(BUF, 25000);
	READ(BUF + 100, 25000);
	WRITE(BUF, 12000);
	WRITE(BUF + 100, 12000);
}

CASE(short_answers)
{
	start(PLAIN);
	server("next READ data 0");
	READ(BUF, 100);
	server("next READ data 50");
	READ(BUF, 100);
	server("next READ data 5000");
	READ(BUF, 10000);
	server("next READ pass");
	server("next READ data 10");
	READ(BUF, 300000);
	server("next READ pass");
	server("next READ data 0");
	READ(BUF, 300000);
	server("next WRITE count 0");
	WRITE(BUF, 100);
	server("next WRITE count 50");
	WRITE(BUF, 100);
	server("next WRITE pass");
	server("next WRITE count 10");
	WRITE(BUF, 300000);
	server("next WRITE pass");
	server("next WRITE count 0");
	WRITE(BUF, 300000);
}

CASE(errors)
{
	static const int numbers[] = {EPERM, EINTR, EIO, EAGAIN, EINVAL, ENOSPC, EPIPE, ENOSYS, 511};
	start(PLAIN);
	for (unsigned i = 0; i < COUNT(numbers); i++) {
		server("next READ error %d", numbers[i]);
		READ(BUF, 100);
		server("next WRITE error %d", numbers[i]);
		WRITE(BUF, 100);
	}
	server("next READ error 512");
	READ(BUF, 100);
	server("next READ pass");
	server("next READ error 5");
	READ(BUF, 300000);
	server("next WRITE pass");
	server("next WRITE error 5");
	WRITE(BUF, 300000);
	server("next READ error 11");
	READ(BUF, 300000);
}

CASE(answers_that_are_wrong)
{
	start(PLAIN);
	server("next READ data 101");
	READ(BUF, 100);
	server("next READ pass");
	server("next READ data 131073");
	READ(BUF, 300000);
	server("next WRITE count 101");
	WRITE(BUF, 100);
	server("next WRITE pass");
	server("next WRITE count 131073");
	WRITE(BUF, 300000);
	server("next WRITE raw ");
	WRITE(BUF, 100);
	server("next WRITE raw 64000000");
	WRITE(BUF, 100);
	server("next WRITE raw 640000000000000000");
	WRITE(BUF, 100);
	server("next WRITE count 4294967295");
	WRITE(BUF, 100);
}

CASE(bad_buffers)
{
	start(PLAIN);
	READ(NULL, 1);
	READ(NULL, 0);
	READ(NOWHERE, 100);
	READ(KERNEL, 100);
	READ((char *)-1, 1);
	READ((char *)-1, 2);
	READ(END, 1);
	READ(END - 1, 1);
	READ(END - 10, 20);
	READ(END - 5000, 6000);
	READ(END - 200000, 300000);
	READ(END - 131072, 131073);
	READ(CONSTANT, 10);
	READ(CONSTANT - 10, 20);
	WRITE(NULL, 1);
	WRITE(NULL, 0);
	WRITE(NOWHERE, 100);
	WRITE(KERNEL, 100);
	WRITE(END, 1);
	WRITE(END - 1, 1);
	WRITE(END - 10, 20);
	WRITE(END - 5000, 6000);
	WRITE(END - 200000, 300000);
	WRITE(END - 131072, 131073);
	WRITE(CONSTANT, 10);
	WRITE(CONSTANT + 4090, 20);
}

CASE(bad_sizes)
{
	start(PLAIN);
	server("next READ data 0");
	READ(BUF, 0x7fffffffffffffff);
	READ(BUF, -1);
	server("next READ data 0");
	READ(BUF, 0x7ffff000);
	server("next WRITE count 0");
	WRITE(BUF, 0x80000000);
	WRITE(BUF, -1);
}

CASE(access_that_was_not_asked_for)
{
	struct iovec one = {BUF, 4};
	fd = TRY(open(PLAIN, O_WRONLY));
	READ(BUF, 1);
	READ(BUF, 0);
	READ(NOWHERE, 10);
	TRY(pread(fd, BUF, 1, 0));
	TRY(readv(fd, &one, 1));
	WRITE(BUF, 1);
	fd = TRY(open(PLAIN, O_RDONLY));
	WRITE(BUF, 1);
	WRITE(BUF, 0);
	TRY(pwrite(fd, BUF, 1, 0));
	TRY(writev(fd, &one, 1));
	READ(BUF, 1);
	fd = TRY(open(PLAIN, O_ACCMODE));
	READ(BUF, 1);
	WRITE(BUF, 1);
	TRY(ioctl(fd, 0x1234, 1));
}

CASE(positions)
{
	start(PLAIN);
	TRY(pread(fd, BUF, 10, 0));
	TRY(pread(fd, BUF, 10, 5000));
	TRY(pread(fd, BUF, 200000, 5000));
	TRY(pread(fd, BUF, 10, -1));
	TRY(pread(fd, BUF, 0, -1));
	TRY(pread(fd, BUF, 10, INT64_MAX));
	TRY(pread(fd, BUF, 10, INT64_MAX - 10));
	TRY(pwrite(fd, BUF, 10, 5000));
	TRY(pwrite(fd, BUF, 10, -1));
	TRY(pwrite(fd, BUF, 10, INT64_MAX));
	TRY(read(fd, BUF, 10));
	TRY(read(fd, BUF, 10));
	TRY(lseek(fd, 0, SEEK_CUR));
}

CASE(seeks)
{
	start(PLAIN);
	TRY(lseek(fd, 0, SEEK_SET));
	TRY(lseek(fd, 100, SEEK_SET));
	TRY(lseek(fd, -100, SEEK_SET));
	TRY(lseek(fd, 0, SEEK_CUR));
	TRY(lseek(fd, 100, SEEK_CUR));
	TRY(lseek(fd, 0, SEEK_END));
	TRY(lseek(fd, -1, SEEK_END));
	TRY(lseek(fd, 0, SEEK_DATA));
	TRY(lseek(fd, 0, SEEK_HOLE));
	TRY(lseek(fd, 0, 5));
	TRY(lseek(fd, 0, -1));
	TRY(lseek(fd, INT64_MAX, SEEK_SET));
	TRY(read(fd, BUF, 10));
	TRY(lseek(fd, 0, SEEK_CUR));
}

#define READV(...) \
	do { \
		struct iovec parts[] = {__VA_ARGS__}; \
		memset(BUF, 0, 300000); \
		if (AS("readv(" #__VA_ARGS__ ")", readv(fd, parts, COUNT(parts))) > 0) \
			show("data", BUF, 300000); \
	} while (0)
#define WRITEV(...) \
	do { \
		struct iovec parts[] = {__VA_ARGS__}; \
		AS("writev(" #__VA_ARGS__ ")", writev(fd, parts, COUNT(parts))); \
	} while (0)

CASE(read_vectors)
{
	start(PLAIN);
	READV({BUF, 10});
	READV({BUF, 10}, {BUF + 100, 20});
	READV({BUF + 100, 10}, {BUF, 20});
	READV({BUF, 0}, {BUF + 100, 20}, {BUF, 0});
	READV({BUF, 0});
	READV({BUF, 10}, {BUF + 10, 10}, {BUF + 4096, 10}, {BUF + 8192, 4096}, {BUF + 20000, 1});
	READV({BUF, 4096}, {BUF + 4096, 4096}, {BUF + 8192, 4096});
	READV({BUF + 1, 4096}, {BUF + 8193, 4096}, {BUF + 20000, 4096});
	READV({BUF, 131072}, {BUF + 131072, 131072});
	READV({BUF, 100}, {BUF + 131072, 131072});
	READV({BUF, 131000}, {BUF + 131072, 131072});
	READV({BUF, 10}, {NULL, 10});
	READV({NULL, 10}, {BUF, 10});
	READV({BUF, 10}, {END - 10, 20}, {BUF + 10, 10});
	READV({BUF, 10}, {BUF, -1});
	READV({BUF, 10}, {KERNEL, 10});
	READV({BUF, 10}, {NULL, 0});
	server("next READ data 15");
	READV({BUF, 10}, {BUF + 100, 20});
	TRY(readv(fd, NULL, 0));
	TRY(readv(fd, NULL, 1));
	TRY(readv(fd, NULL, 1025));
	TRY(readv(fd, NULL, -1));
}

CASE(read_many_small_vectors)
{
	static struct iovec parts[1025];
	start(PLAIN);
	for (int i = 0; i < 1025; i++)
		parts[i] = (struct iovec){BUF + i * 100, 10};
	TRY(readv(fd, parts, 40));
	TRY(readv(fd, parts, 1024));
	TRY(readv(fd, parts, 1025));
	TRY(writev(fd, parts, 40));
	TRY(writev(fd, parts, 1024));
	for (int i = 0; i < 100; i++)
		parts[i] = (struct iovec){BUF + i * PAGE, 10};
	TRY(readv(fd, parts, 32));
	TRY(readv(fd, parts, 33));
	TRY(readv(fd, parts, 100));
	TRY(writev(fd, parts, 33));
	for (int i = 0; i < 100; i++)
		parts[i] = (struct iovec){BUF + i * 2 * PAGE - (i > 0 ? 5 : 0), 10};
	TRY(readv(fd, parts, 17));
	TRY(readv(fd, parts, 40));
	TRY(writev(fd, parts, 40));
}

CASE(write_vectors)
{
	start(PLAIN);
	WRITEV({BUF, 10});
	WRITEV({BUF, 10}, {BUF + 100, 20});
	WRITEV({BUF, 0}, {BUF + 100, 20}, {BUF, 0});
	WRITEV({BUF, 4096}, {BUF + 4096, 4096}, {BUF + 8192, 4096});
	WRITEV({BUF, 100}, {BUF + 131072, 131072});
	WRITEV({BUF, 10}, {NULL, 10});
	WRITEV({NULL, 10}, {BUF, 10});
	WRITEV({BUF, 10}, {END - 10, 20}, {BUF + 10, 10});
	WRITEV({BUF, 10}, {BUF, -1});
	server("next WRITE count 15");
	WRITEV({BUF, 10}, {BUF + 100, 20});
	TRY(writev(fd, NULL, 0));
	TRY(writev(fd, NULL, 1025));
}

CASE(vectors_with_positions_and_flags)
{
	struct iovec one = {BUF, 10};
	start(PLAIN);
	TRY(preadv(fd, &one, 1, 100));
	TRY(preadv(fd, &one, 1, -1));
	TRY(pwritev(fd, &one, 1, 100));
	TRY(pwritev(fd, &one, 1, -2));
	TRY(preadv2(fd, &one, 1, 100, 0));
	TRY(preadv2(fd, &one, 1, -1, 0));
	TRY(preadv2(fd, &one, 1, -2, 0));
	TRY(preadv2(fd, &one, 1, 0, RWF_HIPRI));
	TRY(preadv2(fd, &one, 1, 0, RWF_DSYNC));
	TRY(preadv2(fd, &one, 1, 0, RWF_SYNC));
	TRY(preadv2(fd, &one, 1, 0, RWF_NOWAIT));
	TRY(preadv2(fd, &one, 1, 0, RWF_APPEND));
	TRY(preadv2(fd, &one, 1, 0, 0x80));
	TRY(preadv2(fd, &one, 0, 0, 0x80));
	TRY(pwritev2(fd, &one, 1, 100, 0));
	TRY(pwritev2(fd, &one, 1, -1, 0));
	TRY(pwritev2(fd, &one, 1, 0, RWF_HIPRI));
	TRY(pwritev2(fd, &one, 1, 0, RWF_DSYNC));
	TRY(pwritev2(fd, &one, 1, 0, RWF_SYNC));
	TRY(pwritev2(fd, &one, 1, 0, RWF_NOWAIT));
	TRY(pwritev2(fd, &one, 1, 0, RWF_APPEND));
	TRY(pwritev2(fd, &one, 1, 0, 0x80));
}

CASE(appending)
{
	fd = TRY(open(PLAIN, O_RDWR | O_APPEND));
	TRY(write(fd, BUF, 10));
	TRY(pwrite(fd, BUF, 10, 100));
	TRY(fcntl(fd, F_SETFL, 0));
	TRY(write(fd, BUF, 10));
}

static int both(void)
{
	TRY(read(fd, BUF, 1));
	TRY(write(fd, BUF, 1));
	return 0;
}

static void *both_in_a_thread(void *argument)
{
	call_me(argument);
	both();
	return NULL;
}

CASE(lock_owners)
{
	pthread_t thread;
	start(PLAIN);
	both();
	pthread_create(&thread, NULL, both_in_a_thread, "thread");
	pthread_join(thread, NULL);
	bury("child", child("child", both));
	both();
	TRY(unshare(CLONE_FILES));
	both();
	int other = open(PLAIN, O_RDWR);
	TRY(read(other, BUF, 1));
	fd = open(SMALL, O_RDWR);
	both();
}
