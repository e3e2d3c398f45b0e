/* All other calls that take a descriptor or a path. */
#include "client.h"
#include <sys/inotify.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <utime.h>
#include <linux/kcmp.h>

static int fd;

CASE(synchronising)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(fsync(fd));
	TRY(fdatasync(fd));
	TRY(sync_file_range(fd, 0, 10, SYNC_FILE_RANGE_WRITE));
	TRY(syncfs(fd));
}

CASE(sizes)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(ftruncate(fd, 0));
	TRY(ftruncate(fd, -1));
	TRY(truncate(PLAIN, 0));
	TRY(truncate(PLAIN, -1));
	TRY(fallocate(fd, 0, 0, 10));
	TRY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 10));
	TRY(fallocate(fd, 0, -1, 10));
	TRY(posix_fadvise(fd, 0, 0, POSIX_FADV_NORMAL));
	TRY(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
	TRY(posix_fadvise(fd, 0, 0, 99));
	TRY(readahead(fd, 0, 100));
	fd = TRY(open(PLAIN, O_RDONLY));
	TRY(ftruncate(fd, 0));
}

CASE(allocating_without_write_access)
{
	fd = TRY(open(PLAIN, O_RDONLY));
	TRY(fallocate(fd, 0, 0, 10));
}

static int file_with(int size)
{
	int file = memfd_create("file", 0);
	fill(BUF, size);
	if (write(file, BUF, size) != size || lseek(file, 0, SEEK_SET))
		_exit(98);
	return file;
}

CASE(transfers_inside_the_kernel)
{
	int pair[2];
	off_t at = 3;
	int file = file_with(1000);
	fd = TRY(open(PLAIN, O_RDWR));
	if (pipe(pair))
		return;
	TRY(sendfile(fd, file, NULL, 100));
	TRY(sendfile(fd, file, &at, 100));
	TRY(sendfile(file, fd, NULL, 100));
	TRY(sendfile(pair[1], fd, NULL, 100));
	TRY(copy_file_range(fd, NULL, file, NULL, 100, 0));
	TRY(copy_file_range(file, NULL, fd, NULL, 100, 0));
	TRY(splice(fd, NULL, pair[1], NULL, 100, SPLICE_F_NONBLOCK));
	TRY(write(pair[1], "hello", 5));
	TRY(splice(pair[0], NULL, fd, NULL, 100, SPLICE_F_NONBLOCK));
	TRY(splice(pair[0], NULL, fd, &at, 100, SPLICE_F_NONBLOCK));
	TRY(splice(file, NULL, fd, NULL, 100, 0));
	TRY(splice(fd, NULL, fd, NULL, 100, 0));
	TRY(tee(fd, pair[1], 100, 0));
	TRY(tee(pair[0], fd, 100, 0));
	struct iovec one = {BUF, 10};
	TRY(vmsplice(fd, &one, 1, 0));
}

CASE(mappings)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0));
	TRY(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0));
	TRY(mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
	TRY(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0));
	TRY(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 1));
}

CASE(mappings_that_the_file_does_not_allow)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(mmap(NULL, PAGE, PROT_EXEC, MAP_PRIVATE, fd, 0));
	fd = TRY(open(PLAIN, O_WRONLY));
	TRY(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0));
	fd = TRY(open(PLAIN, O_RDONLY));
	TRY(mmap(NULL, PAGE, PROT_WRITE, MAP_SHARED, fd, 0));
	TRY(mmap(NULL, PAGE, PROT_WRITE, MAP_PRIVATE, fd, 0));
}

static int lock_it(void)
{
	TRY(flock(fd, LOCK_EX | LOCK_NB));
	int other = TRY(open(PLAIN, O_RDWR));
	TRY(flock(other, LOCK_EX | LOCK_NB));
	return 0;
}

CASE(flocks_of_one_file)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(flock(fd, LOCK_SH));
	TRY(flock(fd, LOCK_EX));
	TRY(flock(fd, LOCK_UN));
	TRY(flock(fd, 99));
	TRY(flock(dup(fd), LOCK_EX | LOCK_NB));
}

CASE(flocks_of_two_files)
{
	fd = TRY(open(PLAIN, O_RDWR));
	int other = TRY(open(PLAIN, O_RDWR));
	TRY(flock(fd, LOCK_EX | LOCK_NB));
	TRY(flock(other, LOCK_EX | LOCK_NB));
	TRY(flock(other, LOCK_SH | LOCK_NB));
	bury("child", child("child", lock_it));
	TRY(close(fd));
	TRY(flock(other, LOCK_EX | LOCK_NB));
}

static int record_locks(void)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10};
	TRY(fcntl(fd, F_SETLK, &lock));
	TRY(fcntl(fd, F_GETLK, &lock));
	say("type %d", lock.l_type);
	return 0;
}

CASE(record_locks_of_one_file)
{
	fd = TRY(open(PLAIN, O_RDWR));
	record_locks();
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_END, .l_len = 10};
	TRY(fcntl(fd, F_SETLK, &lock));
	bury("child", child("child", record_locks));
	lock.l_whence = SEEK_SET;
	TRY(fcntl(fd, F_OFD_SETLK, &lock));
	TRY(lockf(fd, F_TLOCK, 0));
}

CASE(record_locks_of_two_files)
{
	fd = TRY(open(PLAIN, O_RDWR));
	record_locks();
	fd = TRY(open(PLAIN, O_RDWR));
	bury("child", child("child", record_locks));
}

CASE(other_fcntls)
{
	struct f_owner_ex owner = {F_OWNER_PID, getpid()};
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(fcntl(fd, F_GETOWN));
	TRY(fcntl(fd, F_SETOWN, getpid()));
	TRY(fcntl(fd, F_GETOWN) == getpid());
	TRY(fcntl(fd, F_SETOWN_EX, &owner));
	TRY(fcntl(fd, F_GETSIG));
	TRY(fcntl(fd, F_SETSIG, SIGUSR1));
	TRY(fcntl(fd, F_GETSIG));
	TRY(fcntl(fd, F_GETPIPE_SZ));
	TRY(fcntl(fd, F_SETPIPE_SZ, 4096));
	TRY(fcntl(fd, F_GETLEASE));
	TRY(fcntl(fd, F_SETLEASE, F_RDLCK));
	TRY(fcntl(fd, F_NOTIFY, DN_ACCESS));
	TRY(fcntl(fd, F_ADD_SEALS, 0));
	TRY(fcntl(fd, F_GET_SEALS));
	TRY(fcntl(fd, 9999));
	uint64_t hint = 1;
	TRY(fcntl(fd, F_GET_RW_HINT, &hint));
	TRY(fcntl(fd, F_SET_RW_HINT, &hint));
}

CASE(as_a_directory)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(syscall(SYS_getdents64, fd, BUF, 1000));
	TRY(syscall(SYS_getdents, fd, BUF, 1000));
	TRY(fchdir(fd));
	TRY(openat(fd, "x", O_RDONLY));
	TRY(openat(fd, "", O_RDONLY));
	TRY(mkdirat(fd, "x", 0700));
	TRY(unlinkat(fd, "x", 0));
	TRY(faccessat(fd, "x", R_OK, 0));
	TRY(chdir(PLAIN));
	TRY(rmdir(PLAIN));
	TRY(mkdir(PLAIN, 0700));
}

CASE(paths_that_other_calls_take)
{
	struct statfs system;
	TRY(chroot(PLAIN));
	TRY(mount("x", PLAIN, "tmpfs", 0, NULL));
	TRY(statfs(PLAIN, &system));
	TRY(execl(PLAIN, PLAIN, NULL));
	TRY(setxattr(PLAIN, "user.x", "y", 1, 0));
	TRY(removexattr(PLAIN, "user.x"));
}

CASE(file_systems)
{
	struct statfs system;
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(fstatfs(fd, &system));
	say("type %#lx", (long)system.f_type);
}

CASE(as_a_socket)
{
	char address[100];
	socklen_t size = sizeof address;
	int value = 0;
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &size));
	TRY(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &value, sizeof value));
	TRY(getsockname(fd, (struct sockaddr *)address, &size));
	TRY(getpeername(fd, (struct sockaddr *)address, &size));
	TRY(send(fd, "x", 1, 0));
	TRY(recv(fd, BUF, 1, 0));
	TRY(shutdown(fd, SHUT_RDWR));
	TRY(listen(fd, 1));
	TRY(accept(fd, NULL, NULL));
	struct mmsghdr many = {0};
	TRY(sendmmsg(fd, &many, 1, 0));
	TRY(recvmmsg(fd, &many, 1, 0, NULL));
}

static void about(const struct stat *found)
{
	say("mode %#o, size %ld, blocks %ld, blksize %ld, links %ld, owner %d:%d, minor %d",
	    found->st_mode, (long)found->st_size, (long)found->st_blocks, (long)found->st_blksize,
	    (long)found->st_nlink, found->st_uid, found->st_gid, minor(found->st_rdev));
}

CASE(status)
{
	struct stat by_file, by_path;
	struct statx extended;
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(fstat(fd, &by_file));
	about(&by_file);
	TRY(stat(PLAIN, &by_path));
	about(&by_path);
	say("the same: %d", by_file.st_ino == by_path.st_ino && by_file.st_dev == by_path.st_dev
	    && by_file.st_rdev == by_path.st_rdev);
	TRY(lstat(PLAIN, &by_path));
	about(&by_path);
	TRY(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &extended));
	say("mask %#x, mode %#o", extended.stx_mask & 0x7ff, extended.stx_mode);
	TRY(access(PLAIN, R_OK | W_OK));
	TRY(access(PLAIN, X_OK));
	TRY(readlink(PLAIN, BUF, 100));
}

CASE(changing_attributes)
{
	struct stat found;
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(fchmod(fd, 0640));
	TRY(fstat(fd, &found));
	about(&found);
	TRY(chmod(PLAIN, 0600));
	TRY(fchown(fd, 5, 6));
	TRY(stat(PLAIN, &found));
	about(&found);
	TRY(chown(PLAIN, 0, 0));
	struct timespec times[2] = {{1000, 0}, {2000, 0}};
	TRY(futimens(fd, times));
	TRY(fstat(fd, &found));
	say("times %ld %ld", (long)found.st_atime, (long)found.st_mtime);
	TRY(utimensat(AT_FDCWD, PLAIN, times, 0));
}

CASE(extended_attributes)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(fgetxattr(fd, "user.x", BUF, 100));
	TRY(fgetxattr(fd, "trusted.x", BUF, 100));
	TRY(fgetxattr(fd, "security.x", BUF, 100));
	TRY(fsetxattr(fd, "user.x", "y", 1, 0));
	TRY(fremovexattr(fd, "user.x"));
	TRY(flistxattr(fd, BUF, 0));
	TRY(getxattr(PLAIN, "user.x", BUF, 100));
	TRY(listxattr(PLAIN, BUF, 0));
}

CASE(same_files)
{
	fd = TRY(open(PLAIN, O_RDWR));
	int copy = TRY(dup(fd));
	int other = TRY(open(PLAIN, O_RDWR));
	TRY(syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fd, copy));
	TRY(!!syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fd, other));
}

CASE(what_proc_shows)
{
	char path[64], target[100] = "";
	fd = TRY(open(PLAIN, O_RDWR | O_APPEND));
	sprintf(path, "/proc/self/fd/%d", fd);
	TRY(readlink(path, target, sizeof target - 1));
	say("%s", target);
}

CASE(what_fdinfo_shows)
{
	char path[64], *line = BUF;
	fd = TRY(open(PLAIN, O_RDWR | O_APPEND));
	sprintf(path, "/proc/self/fdinfo/%d", fd);
	FILE *info = fopen(path, "r");
	while (fgets(line, 100, info))
		if (!strncmp(line, "pos", 3) || !strncmp(line, "flags", 5)) {
			line[strcspn(line, "\n")] = 0;
			say("%s", line);
		}
	fclose(info);
}

CASE(watched)
{
	int watch = TRY(inotify_init1(IN_NONBLOCK));
	TRY(inotify_add_watch(watch, PLAIN, IN_ALL_EVENTS));
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(read(fd, BUF, 1));
	TRY(write(fd, BUF, 1));
	TRY(close(fd));
	struct inotify_event events[10];
	long size = TRY(read(watch, events, sizeof events));
	for (long i = 0; i < size / (long)sizeof *events; i++)
		say("event %#x", events[i].mask);
}
