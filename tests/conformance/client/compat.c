/* The same from a 32-bit program. */
#include "client.h"

#define RETRY "next IOCTL retry"

static int fd;

CASE(open_flags_of_32_bits)
{
	fd = TRY(syscall(SYS_open, PLAIN, O_RDWR));
	say("F_GETFL %#x", fcntl(fd, F_GETFL));
	TRY(read(fd, BUF, 1));
	fd = TRY(syscall(SYS_open, PLAIN, O_RDWR | 0100000));
	say("F_GETFL %#x", fcntl(fd, F_GETFL));
	TRY(write(fd, BUF, 1));
	fd = TRY(syscall(SYS_openat, AT_FDCWD, PLAIN, O_RDONLY | O_CREAT | O_TRUNC, 0600));
	fd = TRY(syscall(SYS_openat, AT_FDCWD, PLAIN, O_RDWR | O_DIRECTORY));
	fd = TRY(syscall(SYS_creat, PLAIN, 0600));
}

CASE(transfers_of_32_bits)
{
	struct iovec parts[] = {{BUF, 10}, {BUF + 4096, 5000}};
	fd = TRY(syscall(SYS_open, PLAIN, O_RDWR));
	fill(BUF, BUF_SIZE);
	TRY(read(fd, BUF, 5000));
	TRY(read(fd, BUF + 1, 200000));
	TRY(write(fd, BUF + 1, 200000));
	TRY(readv(fd, parts, 2));
	TRY(writev(fd, parts, 2));
	parts[1].iov_len = 0xffffffff;
	TRY(readv(fd, parts, 2));
	TRY(syscall(SYS_pread64, fd, BUF, 10, 5, 1));
	TRY(syscall(SYS_pread64, fd, BUF, 10, 5, 0x80000000));
	TRY(syscall(SYS_pwrite64, fd, BUF, 10, 5, 1));
	TRY(syscall(SYS_preadv, fd, parts, 1, 5, 1));
	TRY(syscall(SYS_preadv, fd, parts, 1, 5, 0x80000000));
	TRY(syscall(SYS_pwritev, fd, parts, 1, 5, 1));
	TRY(syscall(SYS_preadv2, fd, parts, 1, -1, -1, 0));
	TRY(read(fd, (char *)0xfffff000, 10));
	TRY(read(fd, NOWHERE, 10));
	TRY(read(fd, END - 10, 20));
	uint64_t position = 7;
	TRY(syscall(SYS__llseek, fd, 1, 5, &position, SEEK_SET));
	say("%d", (int)position);
	TRY(lseek(fd, 5, SEEK_SET));
}

CASE(ioctls_of_32_bits)
{
	int on = 1;
	fd = TRY(syscall(SYS_open, RESTRICTED, O_RDWR));
	fill(BUF, 4096);
	server("next IOCTL echo");
	TRY(ioctl(fd, _IOWR('c', 1, long), BUF));
	server("next IOCTL ioctl 3 0 0 0 11223344");
	TRY(ioctl(fd, _IOR('c', 1, int), BUF));
	show("data", BUF, 8);
	TRY(ioctl(fd, _IO('c', 1), 0xffffffff));
	TRY(ioctl(fd, FIONBIO, &on));
	say("F_GETFL %#x", fcntl(fd, F_GETFL));
	fd = TRY(syscall(SYS_open, PLAIN, O_RDWR));
	TRY(ioctl(fd, _IO('c', 1), 0xffffffff));
	server(RETRY " 1 0 %#x:8", (int)BUF);
	server(RETRY " 1 1 %#x:8 %#x:4", (int)BUF, (int)BUF + 100);
	server("next IOCTL ioctl 5 0 0 0 99887766");
	TRY(ioctl(fd, _IO('c', 1), BUF));
	show("data", BUF + 98, 8);
	server(RETRY " 200 56 %#x:8", (int)BUF);
	server("next IOCTL ioctl 5 0 0 0 ");
	TRY(ioctl(fd, _IO('c', 1), BUF));
	server(RETRY " 1 0 0x100000000:8");
	TRY(ioctl(fd, _IO('c', 1), BUF));
	server(RETRY " 1 0 %#x:0x100000000", (int)BUF);
	TRY(ioctl(fd, _IO('c', 1), BUF));
	server(RETRY " 1 0 0xfffffff0:8");
	TRY(ioctl(fd, _IO('c', 1), BUF));
	server(RETRY " 1 0 0xfffffff0:0x20");
	TRY(ioctl(fd, _IO('c', 1), BUF));
	server("next IOCTL ioctl -5 0 0 0 ");
	TRY(ioctl(fd, _IO('c', 1), BUF));
	server("next IOCTL ioctl -5000 0 0 0 ");
	TRY(ioctl(fd, _IO('c', 1), BUF));
}

CASE(descriptors_of_32_bits)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 10};
	fd = TRY(syscall(SYS_open, PLAIN, O_RDWR | O_APPEND));
	int copy = TRY(fcntl(fd, F_DUPFD_CLOEXEC, 50));
	TRY(dup2(fd, 60));
	TRY(fcntl(copy, F_SETFL, O_NONBLOCK));
	say("F_GETFL %#x", fcntl(fd, F_GETFL));
	TRY(fcntl(fd, F_SETLK, &lock));
	TRY(write(60, BUF, 3));
	TRY(close(fd));
	TRY(close(60));
	say("the last one");
	TRY(close(copy));
}
