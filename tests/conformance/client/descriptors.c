/* Descriptors of one open file, and when it is released. */
#include "client.h"
#include <linux/close_range.h>

static int fd;

#define CLOSE(number) AS("close(" #number ")", close(number))

CASE(duplicates)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(dup(fd));
	TRY(dup2(fd, 77));
	TRY(dup3(fd, 78, O_CLOEXEC));
	TRY(dup2(fd, fd));
	TRY(dup3(fd, fd, 0));
	TRY(dup3(fd, 79, O_APPEND));
	TRY(dup2(fd, -1));
	TRY(dup2(fd, 1 << 30));
	TRY(dup2(150, 79));
	TRY(fcntl(fd, F_DUPFD, 100));
	TRY(fcntl(fd, F_DUPFD_CLOEXEC, 100));
	TRY(fcntl(fd, F_DUPFD, -1));
	say("F_GETFD %d %d %d %d", fcntl(77, F_GETFD), fcntl(78, F_GETFD), fcntl(100, F_GETFD),
	    fcntl(101, F_GETFD));
	TRY(read(77, BUF, 1));
	TRY(read(101, BUF, 1));
	CLOSE(fd);
	CLOSE(4);
	TRY(write(78, BUF, 1));
	CLOSE(77);
	CLOSE(78);
	CLOSE(100);
	say("the last one");
	CLOSE(101);
	CLOSE(101);
}

CASE(duplicates_onto_standard_streams)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(dup2(fd, 0));
	TRY(dup2(fd, 1));
	TRY(dup2(fd, 2));
	CLOSE(fd);
	TRY(read(0, BUF, 5));
	TRY(write(1, BUF, 5));
	TRY(write(2, BUF, 6));
	int null = TRY(open("/dev/null", O_RDWR));
	TRY(dup2(null, 0));
	TRY(read(0, BUF, 5));
	TRY(dup2(null, 1));
	say("the last one");
	TRY(dup2(null, 2));
}

CASE(a_duplicate_onto_another_device)
{
	fd = TRY(open(PLAIN, O_RDWR));
	int other = TRY(open(SMALL, O_RDONLY));
	TRY(dup2(fd, other));
	TRY(write(other, BUF, 1));
	CLOSE(fd);
	CLOSE(other);
}

CASE(flags_are_the_files)
{
	fd = TRY(open(PLAIN, O_RDWR | O_NONBLOCK));
	int other = TRY(dup(fd));
	TRY(fcntl(other, F_SETFL, O_APPEND));
	say("F_GETFL %#x", fcntl(fd, F_GETFL));
	TRY(read(fd, BUF, 1));
	TRY(fcntl(other, F_SETFL, O_NONBLOCK | O_NOATIME));
	TRY(read(fd, BUF, 1));
	TRY(fcntl(other, F_SETFL, O_WRONLY | O_CREAT | O_TRUNC | O_SYNC | O_CLOEXEC | O_DIRECTORY));
	say("F_GETFL %#x", fcntl(fd, F_GETFL));
	TRY(fcntl(fd, F_SETFL, O_DIRECT));
	TRY(fcntl(fd, F_SETFL, O_ASYNC));
	say("F_GETFL %#x", fcntl(fd, F_GETFL));
	TRY(fcntl(fd, F_SETFD, FD_CLOEXEC));
	say("F_GETFD %d %d", fcntl(fd, F_GETFD), fcntl(other, F_GETFD));
	TRY(lseek(fd, 5, SEEK_SET));
	TRY(lseek(other, 0, SEEK_CUR));
}

static int use_and_close(void)
{
	TRY(write(fd, BUF, 3));
	CLOSE(fd);
	return 0;
}

static int leave_open(void)
{
	TRY(write(fd, BUF, 3));
	return 3;
}

static int be_killed(void)
{
	kill(getpid(), SIGKILL);
	return 0;
}

CASE(forks)
{
	fd = TRY(open(PLAIN, O_RDWR));
	bury("child", child("child", use_and_close));
	bury("child 2", child("child 2", leave_open));
	bury("child 3", child("child 3", be_killed));
	TRY(read(fd, BUF, 1));
	say("the last one");
	CLOSE(fd);
}

static int pipes[2];

static int wait_and_write(void)
{
	char byte;
	close(pipes[1]);
	if (read(pipes[0], &byte, 1) != 0)
		return 1;
	TRY(write(fd, BUF, 4));
	say("the last one");
	return 0;
}

CASE(a_child_that_has_the_last)
{
	TRY(pipe(pipes));
	fd = TRY(open(PLAIN, O_RDWR));
	pid_t pid = child("child", wait_and_write);
	CLOSE(fd);
	close(pipes[1]);
	bury("child", pid);
	say("ended");
}

static int open_and_exit(void)
{
	TRY(open(PLAIN, O_RDWR));
	return 0;
}

static int open_and_be_killed(void)
{
	TRY(open(PLAIN, O_RDWR));
	kill(getpid(), SIGKILL);
	return 0;
}

static int open_and_abort(void)
{
	TRY(open(PLAIN, O_RDWR));
	signal(SIGABRT, SIG_DFL);
	abort();
}

CASE(ends)
{
	bury("child", child("child", open_and_exit));
	say("after exit");
	bury("child 2", child("child 2", open_and_be_killed));
	say("after SIGKILL");
	bury("child 3", child("child 3", open_and_abort));
	say("after SIGABRT");
}

static int pair[2];

static void send_descriptor(int number)
{
	char space[CMSG_SPACE(sizeof number)] = "", byte = 'x';
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space,
				 .msg_controllen = sizeof space};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof number);
	memcpy(CMSG_DATA(header), &number, sizeof number);
	AS("sendmsg", sendmsg(pair[0], &message, 0));
}

static int receive_descriptor(void)
{
	char space[CMSG_SPACE(sizeof(int))], byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space,
				 .msg_controllen = sizeof space};
	int number;
	if (AS("recvmsg", recvmsg(pair[1], &message, 0)) == -1)
		return -1;
	memcpy(&number, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof number);
	return number;
}

static int receive_and_write(void)
{
	close(pair[0]);
	int number = receive_descriptor();
	say("received %d", number);
	TRY(write(number, BUF, 2));
	say("the last one");
	CLOSE(number);
	return 0;
}

CASE(a_descriptor_in_a_message)
{
	TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	fd = TRY(open(PLAIN, O_RDWR));
	send_descriptor(fd);
	CLOSE(fd);
	bury("child", child("child", receive_and_write));
}

CASE(a_descriptor_in_a_message_that_nobody_receives)
{
	TRY(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	fd = TRY(open(PLAIN, O_RDWR));
	send_descriptor(fd);
	CLOSE(fd);
	close(pair[0]);
	say("the last one");
	close(pair[1]);
}

CASE(opened_anew)
{
	char path[64];
	fd = TRY(open(PLAIN, O_RDONLY));
	sprintf(path, "/proc/self/fd/%d", fd);
	int again = TRY(open(path, O_RDWR | O_APPEND));
	TRY(write(again, BUF, 1));
	sprintf(path, "/proc/%d/fd/%d", getpid(), fd);
	AS("open(path, O_WRONLY)", open(path, O_WRONLY));
	sprintf(path, "/proc/thread-self/fd/%d", fd);
	TRY(open(path, O_NOFOLLOW));
	TRY(readlink(path, BUF, 100) > 0);
	say("%.*s", (int)strlen(PLAIN), BUF);
	CLOSE(fd);
	CLOSE(again);
	CLOSE(5);
}

CASE(close_ranges)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(dup2(fd, 20));
	TRY(dup2(fd, 21));
	TRY(syscall(SYS_close_range, 20, 30, CLOSE_RANGE_CLOEXEC));
	say("F_GETFD %d", fcntl(20, F_GETFD));
	TRY(syscall(SYS_close_range, 20, 30, 0));
	TRY(write(20, BUF, 1));
	TRY(write(fd, BUF, 1));
	say("the last one");
	TRY(syscall(SYS_close_range, 3, 30, 0));
	TRY(write(fd, BUF, 1));
	fd = TRY(open(PLAIN, O_RDWR));
	say("the last one");
	TRY(syscall(SYS_close_range, 3, 30, CLOSE_RANGE_UNSHARE));
	TRY(syscall(SYS_close_range, 30, 3, 0));
}

/* Run by the program that a case below has executed. */
CASE(executed)
{
	call_me("executed");
	if (fcntl(3, F_GETFD) >= 0)
		server("await RELEASE 1"); /* of what exec has closed, which nothing here waits for */
	TRY(write(3, BUF - 0x100000000 + (long)"hello", 5));
	TRY(write(4, "world", 5));
}

static int execute(void)
{
	fd = TRY(open(PLAIN, O_RDWR));
	TRY(open(SMALL, O_RDWR | O_CLOEXEC));
	execl("/proc/self/exe", "client", "executed", NULL);
	return 1;
}

CASE(exec)
{
	bury("child", child("child", execute));
}

static void *read_it(void *argument)
{
	(void)argument;
	call_me("thread");
	TRY(read(fd, BUF, 16));
	return NULL;
}

CASE(close_during_a_read)
{
	pthread_t thread;
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	pthread_create(&thread, NULL, read_it, NULL);
	server("await READ 1");
	CLOSE(fd);
	server("pause");
	say("now answered");
	server("answer READ data 5");
	pthread_join(thread, NULL);
	say("joined");
}

CASE(duplicate_over_during_a_read)
{
	pthread_t thread;
	fd = TRY(open(PLAIN, O_RDWR));
	int null = TRY(open("/dev/null", O_RDWR));
	server("next READ hold");
	pthread_create(&thread, NULL, read_it, NULL);
	server("await READ 1");
	TRY(dup2(null, fd));
	TRY(write(fd, BUF, 1));
	server("answer READ data 5");
	pthread_join(thread, NULL);
	say("joined");
}
