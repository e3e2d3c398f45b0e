/* What a program does with files, whose calls have other numbers and layouts if it has 32 bits. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <unistd.h>

static long done(long result)
{
	return result < 0 ? -errno : result;
}

int main(void)
{
	int file = open("file", O_RDWR | O_CREAT | O_EXCL, 0640);
	struct stat status;
	struct flock lock = { .l_type = F_WRLCK, .l_start = 5, .l_len = 10 };
	struct timespec times[2] = { { 5, 7 }, { 6, 8 } };
	char data[64] = "", *mapped;
	struct dirent *entry;
	DIR *directory;

	printf("%ld %ld\n", done(write(file, "0123456789", 10)), done(pwrite(file, "x", 1, 5000)));
	printf("%lld %ld\n", (long long)lseek(file, -3, SEEK_END), done(read(file, data, 9)));
	printf("%ld %ld\n", done(ftruncate(file, 7)), done(fallocate(file, 0, 4000, 6000)));
	printf("%lld %ld\n", (long long)lseek(file, 3, SEEK_SET), done(truncate("file", 9)));
	printf("%ld %s\n", done(pread(file, data, 9, 0)), data);
	printf("%ld %ld\n", done(fsync(file)), done(fdatasync(file)));
	printf("%ld %ld\n", done(fcntl(file, F_SETLK, &lock)), done(flock(file, LOCK_EX | LOCK_NB)));
	printf("%ld %ld\n", done(futimens(file, times)), done(fchmod(file, 0604)));
	printf("%ld ", done(stat("file", &status)));
	printf("%o %lld %ld %ld %d\n", status.st_mode, (long long)status.st_size,
	       (long)status.st_mtim.tv_sec, (long)status.st_mtim.tv_nsec, (int)status.st_nlink);
	printf("%ld %ld\n", done(fsetxattr(file, "user.a", "value", 5, 0)),
	       done(getxattr("file", "user.a", data, 64)));
	printf("%ld %ld\n", done(listxattr("file", data, 64)), done(fremovexattr(file, "user.a")));
	mapped = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, file, 0);
	printf("%d %.7s\n", mapped == MAP_FAILED, mapped == MAP_FAILED ? "" : mapped);
	printf("%ld %ld\n", done(mkdir("made", 0755)), done(rename("file", "made/file")));
	printf("%ld %ld\n", done(symlink("made/file", "link")), done(readlink("link", data, 64)));
	printf("%ld %ld\n", done(chdir("made")), done(access("../link", R_OK)));
	directory = opendir(".");
	while ((entry = readdir(directory)))
		if (entry->d_name[0] != '.')
			printf("%s %d\n", entry->d_name, entry->d_type);
	printf("%ld %ld\n", done(fchdir(dirfd(directory))), done(unlink("file")));
	printf("%ld %ld %ld\n", done(chdir("..")), done(rmdir("made")), done(unlink("link")));
	return 0;
}
