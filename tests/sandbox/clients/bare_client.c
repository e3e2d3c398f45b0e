/* A client of bare_server.

   usage: bare_client PATH check ROUNDS    writes and reads back, ROUNDS times
          bare_client PATH NUMBER          ioctl _IO('b', NUMBER), or 1: prints the files */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

static void check(int ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

int main(int argc, char **argv)
{
	static char out[20000], in[20001];

	if (argc == 3) {
		int fd = open(argv[1], O_RDWR), number = atoi(argv[2]), files = 0, result;

		check(fd >= 0, "open");
		if (number == 1)
			result = ioctl(fd, _IOR('b', 1, int), &files);
		else
			result = ioctl(fd, _IO('b', number));
		printf("%s %d\n", result < 0 ? strerrorname_np(errno) : "files", files);
		return 0;
	}
	for (int round = 0; round < atoi(argv[3]); round++) {
		int fd = open(argv[1], O_RDWR);
		size_t size = 1 + (getpid() * 31 + round * 997) % sizeof(out);
		struct iovec pieces[] = { { in, size / 2 }, { in + size / 2, size - size / 2 + 1 } };

		check(fd >= 0, "open");
		for (size_t i = 0; i < size; i++)
			out[i] = getpid() + round + i;
		check(write(fd, out, size) == (ssize_t)size, "write");
		check(readv(fd, pieces, 2) == (ssize_t)size, "readv");
		check(!memcmp(in, out, size), "other data");
		check(read(fd, in, sizeof(in)) == 0, "end");
		check(close(fd) == 0, "close");
	}
	return 0;
}
