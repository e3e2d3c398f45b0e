/* Every call that waits for files, by its bare number: a device alone, and the time that is left. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

static int device;

static void say(const char *name, long result, long shown)
{
	printf("%s: %ld %lx\n", name, result, shown);
}

/* ppoll and pselect6 with a timeout of 50 s, of whatever form; whether it was updated. */
static void timed(const char *name, long number, int select, int wide)
{
	struct pollfd entry = { .fd = device, .events = POLLOUT };
	int32_t narrow[2] = { 50, 0 };
	int64_t long_ones[2] = { 50, 0 };
	void *timeout = wide ? (void *)long_ones : (void *)narrow;
	unsigned long set[3] = { 1ul << device, 0, 7 };
	unsigned long in[3] = { 1ul << device, 0, 7 };
	long result;

	if (select)
		result = syscall(number, device + 1, in, set, 0, timeout, 0);
	else
		result = syscall(number, &entry, 1, timeout, 0, 8);
	say(name, result, select ? (long)(set[0] << 8 | in[0] | set[2] << 16) : entry.revents);
	printf("%d\n", wide ? long_ones[0] == 49 : narrow[0] == 49);
}

int main(void)
{
	struct pollfd entry = { .events = POLLIN | POLLOUT };
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT, .data.u64 = 0x1234567890 };
	int set = epoll_create1(0);
	long result;

	device = entry.fd = open("/dev/box", O_RDWR);
	result = syscall(SYS_poll, &entry, 1, -1);
	say("poll", result, entry.revents);
#ifdef __i386__
	timed("ppoll", SYS_ppoll, 0, 0);
	timed("ppoll_time64", 414, 0, 1);
	timed("_newselect", SYS__newselect, 1, 0);
	timed("pselect6", SYS_pselect6, 1, 0);
	timed("pselect6_time64", 413, 1, 1);
	{
		unsigned long out = 1ul << device;
		int32_t timeout[2] = { 0, 0 };
		unsigned long old[5] = { device + 1, 0, (long)&out, 0, (long)timeout };

		result = syscall(SYS_select, old);
		say("select", result, out);
	}
#else
	timed("ppoll", SYS_ppoll, 0, 1);
	timed("select", SYS_select, 1, 1);
	timed("pselect6", SYS_pselect6, 1, 1);
#endif
	say("epoll_ctl", syscall(SYS_epoll_ctl, set, EPOLL_CTL_ADD, device, &event), 0);
	memset(&event, 0, sizeof event);
	result = epoll_wait(set, &event, 1, -1);
	say("epoll_wait", result, event.events);
	printf("%llx\n", (unsigned long long)event.data.u64);
	return 0;
}
