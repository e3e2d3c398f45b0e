/* open and its flags. */
#include "client.h"
#include <linux/openat2.h>

#define OPEN(flags) \
	do { \
		int number = AS("open(PLAIN, " #flags ")", open(PLAIN, flags, 0600)); \
		if (number != -1) \
			status(number); \
	} while (0)

static void status(int number)
{
	/* Another descriptor has the flags of another file, but its own close-on-exec. */
	say("F_GETFL %#x F_GETFD %d", fcntl(number, F_GETFL), fcntl(number, F_GETFD));
	AS("close", close(number));
}

CASE(open_for_each_access)
{
	OPEN(O_RDONLY);
	OPEN(O_WRONLY);
	OPEN(O_RDWR);
	OPEN(O_ACCMODE);
}

CASE(open_with_creating_flags)
{
	OPEN(O_RDWR | O_CREAT);
	OPEN(O_RDWR | O_CREAT | O_EXCL);
	OPEN(O_RDWR | O_EXCL);
	OPEN(O_RDWR | O_TRUNC);
	OPEN(O_RDONLY | O_TRUNC);
	OPEN(O_WRONLY | O_CREAT | O_TRUNC);
	OPEN(O_RDWR | O_TMPFILE);
	int number = TRY(creat(PLAIN, 0600));
	status(number);
}

CASE(open_with_status_flags)
{
	OPEN(O_RDWR | O_APPEND);
	OPEN(O_RDWR | O_NONBLOCK);
	OPEN(O_RDWR | O_NOCTTY);
	OPEN(O_RDWR | O_NOFOLLOW);
	OPEN(O_RDWR | O_SYNC);
	OPEN(O_RDWR | O_DSYNC);
	OPEN(O_RDWR | O_NOATIME);
	OPEN(O_RDWR | O_ASYNC);
	OPEN(O_RDWR | O_LARGEFILE);
	OPEN(O_RDWR | O_CLOEXEC);
	OPEN(O_RDWR | O_DIRECT);
	OPEN(O_RDWR | O_APPEND | O_NONBLOCK | O_NOCTTY | O_SYNC | O_CLOEXEC);
	OPEN(O_RDWR | 1 << 27);
	OPEN(O_RDWR | 1 << 29);
}

CASE(open_as_a_directory)
{
	OPEN(O_RDONLY | O_DIRECTORY);
	OPEN(O_RDONLY | O_DIRECTORY | O_PATH);
	TRY(open(PLAIN "/", O_RDONLY));
	TRY(open(PLAIN "/", O_RDWR | O_CREAT, 0600));
	TRY(open(PLAIN "/x", O_RDWR | O_CREAT, 0600));
	TRY(open(PLAIN "/.", O_RDONLY));
	TRY(open(PLAIN "/..", O_RDONLY));
}

CASE(open_as_a_path)
{
	int number = TRY(open(PLAIN, O_PATH));
	say("F_GETFL %#x", fcntl(number, F_GETFL));
	TRY(read(number, BUF, 1));
	TRY(write(number, BUF, 1));
	TRY(ioctl(number, 0x1234, 0));
	TRY(lseek(number, 0, SEEK_CUR));
	TRY(fcntl(number, F_SETFL, O_NONBLOCK));
	TRY(fchmod(number, 0600));
	struct stat about;
	TRY(fstat(number, &about));
	say("mode %#o", about.st_mode);
	TRY(dup(number));
	TRY(close(number));
	char path[64];
	sprintf(path, "/proc/self/fd/%d", 4);
	number = TRY(open(path, O_RDWR));
	status(number);
	number = TRY(open(PLAIN, O_PATH | O_RDWR | O_APPEND | O_TRUNC | O_CLOEXEC));
	status(number);
}

CASE(calls_on_a_path)
{
	int number = TRY(open(PLAIN, O_PATH));
	TRY(flock(number, LOCK_EX));
	TRY(fsync(number));
	TRY(fdatasync(number));
	TRY(ftruncate(number, 0));
	TRY(fallocate(number, 0, 0, 10));
	TRY(posix_fadvise(number, 0, 0, 0));
}

CASE(open_by_openat2)
{
	struct open_how how = {.flags = O_RDWR};
	int number = TRY(syscall(SYS_openat2, AT_FDCWD, PLAIN, &how, sizeof how));
	status(number);
	how.flags = O_RDWR | O_LARGEFILE | O_CLOEXEC;
	number = TRY(syscall(SYS_openat2, AT_FDCWD, PLAIN, &how, sizeof how));
	status(number);
	how.resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
	number = TRY(syscall(SYS_openat2, AT_FDCWD, PLAIN, &how, sizeof how));
	status(number);
	how.resolve = RESOLVE_BENEATH;
	TRY(syscall(SYS_openat2, AT_FDCWD, PLAIN, &how, sizeof how));
	how.resolve = 0;
	how.flags = O_RDWR | 1ull << 40;
	TRY(syscall(SYS_openat2, AT_FDCWD, PLAIN, &how, sizeof how));
	how.flags = O_RDWR | O_CREAT;
	how.mode = 01777777;
	TRY(syscall(SYS_openat2, AT_FDCWD, PLAIN, &how, sizeof how));
}

CASE(open_below_a_directory)
{
	struct open_how how = {.flags = O_RDWR, .resolve = RESOLVE_BENEATH};
	int dev = TRY(open("/dev", O_PATH));
	TRY(syscall(SYS_openat2, dev, "recuse-plain", &how, sizeof how));
	TRY(syscall(SYS_openat2, dev, "../dev/recuse-plain", &how, sizeof how));
	how.resolve = RESOLVE_IN_ROOT;
	TRY(syscall(SYS_openat2, dev, "/recuse-plain", &how, sizeof how));
}

CASE(open_that_the_server_refuses)
{
	static const int errors[] = {EPERM, ENOENT, EINTR, EIO, ENXIO, EAGAIN, ENOMEM, EACCES, EBUSY,
				     ENODEV, EINVAL, EMFILE, ENOSPC, EROFS, 511};
	for (unsigned i = 0; i < COUNT(errors); i++) {
		server("next OPEN error %d", errors[i]);
		TRY(open(PLAIN, O_RDWR));
	}
	server("next OPEN error 512");
	TRY(open(PLAIN, O_RDWR));
	server("next OPEN error -5");
	TRY(open(PLAIN, O_RDWR));
	/* Answers of the wrong length. */
	server("next OPEN raw ");
	TRY(open(PLAIN, O_RDWR));
	server("next OPEN raw 0100000000000000");
	TRY(open(PLAIN, O_RDWR));
	server("next OPEN raw 010000000000000000000000000000000000000000000000");
	TRY(open(PLAIN, O_RDWR));
}

CASE(open_of_a_server_that_does_not_know_open)
{
	server("next OPEN error 38");
	int one = TRY(open("/dev/recuse-opened-alike", O_RDWR));
	int two = TRY(open("/dev/recuse-opened-alike", O_RDWR));
	TRY(close(one));
	TRY(close(two));
}

CASE(open_with_flags_in_the_answer)
{
	for (int bit = 0; bit < 8; bit++) {
		server("next OPEN open %d", 1 << bit);
		int number = TRY(open(PLAIN, O_RDWR));
		TRY(read(number, BUF, 4));
		TRY(pread(number, BUF, 4, 10));
		TRY(lseek(number, 7, SEEK_SET));
		TRY(close(number));
	}
}

CASE(open_many_times)
{
	int numbers[5];
	for (int i = 0; i < 5; i++)
		numbers[i] = TRY(open(PLAIN, i % 2 ? O_RDONLY : O_WRONLY));
	for (int i = 4; i >= 0; i--) {
		TRY(close(numbers[i]));
	}
	TRY(close(numbers[0]));
}

static int as_somebody(void)
{
	TRY(setresgid(1001, 1002, 1003));
	TRY(setresuid(1004, 0, 1006));
	int number = TRY(open(PLAIN, O_RDWR));
	TRY(read(number, BUF, 1));
	TRY(ioctl(number, 0x1234, 0));
	TRY(syscall(SYS_setfsgid, 1010));
	TRY(read(number, BUF, 1));
	TRY(syscall(SYS_setfsuid, 1011));
	TRY(write(number, BUF, 1));
	TRY(open(PLAIN, O_RDWR));
	TRY(close(number));
	return 0;
}

CASE(open_as_somebody)
{
	bury("child", child("child", as_somebody));
}
