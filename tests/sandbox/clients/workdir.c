/* Go to the directory in argument 1, tell where that is, and use the device in argument 2 there. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char buffer[4096], small[4];
	if (argc != 3 || chdir(argv[1]))
		return printf("%s\n", strerrorname_np(errno)), 1;
	long size = syscall(SYS_getcwd, buffer, sizeof buffer);
	printf("%ld %s\n", size, size > 0 ? buffer : "");
	size = syscall(SYS_getcwd, small, sizeof small);
	printf("%ld %s\n", size, strerrorname_np(errno));
	size = syscall(SYS_getcwd, 8, sizeof buffer);
	printf("%ld %s\n", size, strerrorname_np(errno));
	int fd = open(argv[2], O_RDWR);
	printf("%d %zd", fd, write(fd, "abc", 3));
	printf(" %zd\n", read(fd, buffer, 9));
	printf("%d", chdir(".."));
	printf(" %s\n", getcwd(buffer, sizeof buffer));
	return 0;
}
