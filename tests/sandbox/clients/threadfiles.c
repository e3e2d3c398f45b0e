/* A thread with descriptors of its own: its process's first thread has ended ("leaderless"), or it has
 * unshared them. Nothing is ready: each wait of 20 ms is to end with 0, and a longer one to sleep. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <unistd.h>

static const char *how;
static pthread_t first;

static void *thread(void *unused)
{
	if (!strcmp(how, "leaderless"))
		pthread_join(first, 0);
	else if (unshare(CLONE_FILES))
		return 0;
	int fd = dup2(open("/dev/box", O_RDWR), 700), ends[2];
	struct timeval time = { 0, 20000 };
	struct epoll_event event = { EPOLLIN, { 0 } };
	int epoll = epoll_create1(0);
	fd_set set;

	if (pipe(ends))
		return 0;
	struct pollfd files[2] = { { ends[0], POLLIN, 0 }, { fd, POLLIN, 0 } };
	printf("poll %d %d\n", poll(&files[1], 1, 20), poll(files, 2, 20));
	FD_ZERO(&set);
	FD_SET(fd, &set);
	printf("select %d\n", select(fd + 1, &set, 0, 0, &time));
	epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
	printf("epoll %d\n", epoll_wait(epoll, &event, 1, 20));
	if (write(ends[1], "x", 1) != 1)
		return 0;
	printf("ready %d\n", poll(files, 2, 20000));
	fflush(stdout);
	printf("woken %d\n", poll(&files[1], 1, 20000));
	fflush(stdout);
	exit(0);
}

int main(int count, char **args)
{
	pthread_t other;

	how = args[1];
	first = pthread_self();
	pthread_create(&other, 0, thread, 0);
	if (!strcmp(how, "leaderless"))
		pthread_exit(0);
	pthread_join(other, 0);
	return 1;
}
