/* poll and its kin on one device; the server tells readiness with FUSE_POLL and FUSE_NOTIFY_POLL. */
#include "client.h"

#define POLLED "/dev/recuse-polled"

static int fd;

static void tell(struct pollfd *entry, int number)
{
	for (int i = 0; i < number; i++)
		say("revents %#x", (unsigned short)entry[i].revents);
}

CASE(poll_of_a_device_without_poll)
{
	struct pollfd entry = {.events = POLLIN | POLLOUT | POLLPRI};
	entry.fd = TRY(open("/dev/recuse-unpolled", O_RDWR));
	TRY(poll(&entry, 1, 0));
	tell(&entry, 1);
	TRY(poll(&entry, 1, -1));
	tell(&entry, 1);
	entry.events = 0;
	TRY(poll(&entry, 1, 0));
	tell(&entry, 1);
	entry.events = POLLPRI;
	TRY(poll(&entry, 1, 10));
	tell(&entry, 1);
}

CASE(poll_of_what_is_ready)
{
	struct pollfd entry = {.events = POLLIN};
	entry.fd = TRY(open(POLLED, O_RDWR));
	server("next POLL poll 1");
	TRY(poll(&entry, 1, 0));
	tell(&entry, 1);
	server("next POLL poll 1");
	TRY(poll(&entry, 1, -1));
	tell(&entry, 1);
	server("next POLL poll 0x41");
	entry.events = POLLIN | POLLOUT;
	TRY(poll(&entry, 1, 1000));
	tell(&entry, 1);
	/* What was not asked for is not told, but for errors and hang-ups. */
	server("next POLL poll 0x1d");
	entry.events = POLLIN;
	TRY(poll(&entry, 1, 1000));
	tell(&entry, 1);
	server("next POLL poll 0xffff");
	entry.events = POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM | POLLPRI | POLLRDHUP | POLLRDBAND
		| POLLWRBAND | POLLMSG;
	TRY(poll(&entry, 1, 1000));
	tell(&entry, 1);
}

CASE(poll_that_times_out)
{
	struct pollfd entry = {.events = POLLIN};
	entry.fd = TRY(open(POLLED, O_RDWR));
	TRY(poll(&entry, 1, 0));
	tell(&entry, 1);
	TRY(poll(&entry, 1, 20));
	tell(&entry, 1);
	server("next POLL poll 4");
	TRY(poll(&entry, 1, 20));
	tell(&entry, 1);
}

CASE(poll_that_the_server_fails)
{
	struct pollfd entry = {.events = POLLIN};
	entry.fd = TRY(open(POLLED, O_RDWR));
	server("next POLL error 5");
	TRY(poll(&entry, 1, 0));
	tell(&entry, 1);
	server("next POLL error 11");
	TRY(poll(&entry, 1, -1));
	tell(&entry, 1);
	server("next POLL error 4");
	TRY(poll(&entry, 1, -1));
	tell(&entry, 1);
	server("next POLL raw 0100000000");
	TRY(poll(&entry, 1, -1));
	tell(&entry, 1);
}

static int poll_in(void)
{
	struct pollfd entry = {.fd = fd, .events = POLLIN};
	TRY(poll(&entry, 1, -1));
	tell(&entry, 1);
	return 0;
}

CASE(poll_that_is_woken)
{
	fd = TRY(open(POLLED, O_RDWR));
	pid_t pid = child("child", poll_in);
	server("await POLL 1");
	server("next POLL poll 1");
	server("notify 1");
	bury("child", pid);
	/* The next one asks anew. */
	server("next POLL poll 1");
	pid = child("child 2", poll_in);
	bury("child 2", pid);
}

CASE(poll_that_is_woken_in_vain)
{
	fd = TRY(open(POLLED, O_RDWR));
	pid_t pid = child("child", poll_in);
	server("await POLL 1");
	server("notify 1");
	server("await POLL 2");
	server("next POLL poll 1");
	server("notify 1");
	bury("child", pid);
}

CASE(poll_in_two_processes)
{
	fd = TRY(open(POLLED, O_RDWR));
	pid_t one = child("child", poll_in);
	server("await POLL 1");
	server("next POLL poll 1");
	pid_t two = child("child 2", poll_in);
	bury("child 2", two);
	server("next POLL poll 1");
	server("notify 1");
	bury("child", one);
}

CASE(poll_of_two_files)
{
	struct pollfd entries[3] = {{.events = POLLIN}, {.events = POLLOUT}, {.events = POLLIN}};
	entries[0].fd = TRY(open(POLLED, O_RDWR));
	entries[1].fd = TRY(open(POLLED, O_RDWR));
	entries[2].fd = entries[0].fd;
	server("next POLL poll 0");
	server("next POLL poll 4");
	server("next POLL poll 1");
	TRY(poll(entries, 3, 1000));
	tell(entries, 3);
	server("next POLL poll 1");
	server("next POLL poll 4");
	server("next POLL poll 1");
	TRY(poll(entries, 3, 1000));
	tell(entries, 3);
}

CASE(poll_with_other_files)
{
	int pair[2];
	fd = TRY(open(POLLED, O_RDWR));
	TRY(pipe(pair));
	struct pollfd entries[4] = {{.fd = pair[0], .events = POLLIN}, {.fd = fd, .events = POLLIN},
				    {.fd = -1, .events = POLLIN}, {.fd = 150, .events = POLLIN}};
	TRY(poll(entries, 3, 10));
	tell(entries, 4);
	TRY(write(pair[1], "x", 1));
	TRY(poll(entries, 3, -1));
	tell(entries, 4);
	TRY(poll(entries, 4, -1));
	tell(entries, 4);
	server("next POLL poll 1");
	entries[0].fd = fd;
	entries[1].fd = pair[0];
	TRY(poll(entries, 3, -1));
	tell(entries, 4);
}

static void sets(fd_set *in, fd_set *out, fd_set *other)
{
	FD_ZERO(in);
	FD_ZERO(out);
	FD_ZERO(other);
	FD_SET(fd, in);
	FD_SET(fd, out);
	FD_SET(fd, other);
}

CASE(select_of_a_device)
{
	fd_set in, out, other;
	struct timeval none = {0, 0}, some = {0, 20000};
	fd = TRY(open(POLLED, O_RDWR));
	for (int ready = 0; ready < 64; ready = ready ? ready * 2 : 1) {
		sets(&in, &out, &other);
		say("ready for %#x", ready);
		server("next POLL poll %d", ready);
		TRY(select(fd + 1, &in, &out, &other, &none));
		say("%d %d %d", FD_ISSET(fd, &in), FD_ISSET(fd, &out), FD_ISSET(fd, &other));
	}
	sets(&in, &out, &other);
	TRY(select(fd + 1, &in, NULL, NULL, &some));
	say("%d", FD_ISSET(fd, &in));
	sets(&in, &out, &other);
	server("next POLL poll 4");
	TRY(select(fd + 1, NULL, &out, NULL, NULL));
	say("%d", FD_ISSET(fd, &out));
	sets(&in, &out, &other);
	server("next POLL poll 2");
	TRY(select(fd + 1, NULL, NULL, &other, NULL));
	say("%d", FD_ISSET(fd, &other));
}

static int events(int set, int timeout)
{
	struct epoll_event found[4];
	int number = AS("epoll_wait(set, found, 4, timeout)", epoll_wait(set, found, 4, timeout));
	for (int i = 0; i < number; i++)
		say("events %#x of %d", found[i].events, (int)found[i].data.u64);
	return number;
}

CASE(epoll_level)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
	fd = TRY(open(POLLED, O_RDWR));
	int set = TRY(epoll_create1(0));
	TRY(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
	events(set, 0);
	server("next POLL poll 1");
	server("notify 1");
	events(set, -1);
	server("next POLL poll 1");
	events(set, -1);
	events(set, 0);
	events(set, 0);
	event.events = EPOLLOUT;
	server("next POLL poll 4");
	TRY(epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
	server("next POLL poll 4");
	events(set, 0);
	TRY(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
	events(set, 0);
	server("notify 1");
	events(set, 0);
}

CASE(epoll_edge)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = 7};
	fd = TRY(open(POLLED, O_RDWR));
	int set = TRY(epoll_create1(0));
	server("next POLL poll 1");
	TRY(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
	server("next POLL poll 1");
	events(set, 0);
	events(set, 0);
	server("next POLL poll 1");
	server("notify 1");
	events(set, 1000);
	events(set, 0);
	server("notify 1");
	server("pause");
	events(set, 0);
}

CASE(epoll_one_shot)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 7};
	fd = TRY(open(POLLED, O_RDWR));
	int set = TRY(epoll_create1(0));
	server("next POLL poll 1");
	TRY(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
	server("next POLL poll 1");
	events(set, 0);
	events(set, 0);
	server("notify 1");
	events(set, 0);
	server("next POLL poll 1");
	TRY(epoll_ctl(set, EPOLL_CTL_MOD, fd, &event));
	server("next POLL poll 1");
	events(set, 0);
}

static int set_of_the_child;

static int epoll_in(void)
{
	events(set_of_the_child, -1);
	return 0;
}

CASE(epoll_that_is_woken)
{
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
	fd = TRY(open(POLLED, O_RDWR));
	set_of_the_child = TRY(epoll_create1(0));
	TRY(epoll_ctl(set_of_the_child, EPOLL_CTL_ADD, fd, &event));
	pid_t pid = child("child", epoll_in);
	server("pause");
	server("next POLL poll 1");
	server("notify 1");
	bury("child", pid);
	TRY(close(fd));
	events(set_of_the_child, 0);
}

CASE(epoll_of_a_device_without_poll)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.u64 = 7};
	fd = TRY(open("/dev/recuse-unpolled-2", O_RDWR));
	int set = TRY(epoll_create1(0));
	TRY(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
	events(set, 0);
	events(set, -1);
}

CASE(poll_of_a_path_only)
{
	struct pollfd entry = {.events = POLLIN};
	struct epoll_event event = {.events = EPOLLIN};
	entry.fd = TRY(open(POLLED, O_PATH));
	TRY(poll(&entry, 1, 0));
	tell(&entry, 1);
	int set = TRY(epoll_create1(0));
	TRY(epoll_ctl(set, EPOLL_CTL_ADD, entry.fd, &event));
}

CASE(poll_again_and_again)
{
	struct pollfd entry = {.events = POLLIN};
	entry.fd = TRY(open(POLLED, O_RDWR));
	for (int i = 0; i < 3; i++) {
		TRY(poll(&entry, 1, 5));
		server("next POLL poll 1");
		TRY(poll(&entry, 1, -1));
		TRY(read(entry.fd, BUF, 3));
	}
	TRY(write(entry.fd, BUF, 3));
}

CASE(notify_without_poller)
{
	struct pollfd entry = {.events = POLLIN};
	entry.fd = TRY(open(POLLED, O_RDWR));
	TRY(poll(&entry, 1, 5));
	server("notify 1");
	server("notify 1");
	server("notify-raw 4242");
	server("next POLL poll 1");
	TRY(poll(&entry, 1, -1));
	tell(&entry, 1);
}

static int poll_with_a_handler(void)
{
	handle(SIGUSR1, SA_RESTART);
	struct pollfd entry = {.fd = fd, .events = POLLIN};
	TRY(poll(&entry, 1, -1));
	say("handled %d", handled);
	return 0;
}

CASE(signal_in_a_poll)
{
	fd = TRY(open(POLLED, O_RDWR));
	pid_t pid = child("child", poll_with_a_handler);
	server("await POLL 1");
	server("pause");
	kill(pid, SIGUSR1);
	bury("child", pid);
}

CASE(signal_while_the_server_is_at_a_poll)
{
	fd = TRY(open(POLLED, O_RDWR));
	server("next POLL hold");
	server("on-interrupt poll 0");
	pid_t pid = child("child", poll_with_a_handler);
	server("await POLL 1");
	kill(pid, SIGUSR1);
	bury("child", pid);
}
