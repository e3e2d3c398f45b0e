/* Signals to a thread whose request the server is at. */
#include "client.h"

static int fd;

static int one_read(void)
{
	TRY(read(fd, BUF, 16));
	say("handled %d", handled);
	return 0;
}

static int one_write(void)
{
	TRY(write(fd, BUF, 16));
	say("handled %d", handled);
	return 0;
}

static int one_ioctl(void)
{
	TRY(ioctl(fd, _IO('c', 1), 5));
	say("handled %d", handled);
	return 0;
}

static int one_open(void)
{
	TRY(open(PLAIN, O_RDWR));
	say("handled %d", handled);
	return 0;
}

static int long_read(void)
{
	TRY(read(fd, BUF, 200000));
	say("handled %d", handled);
	return 0;
}

/* Signal a child that is in its function, whose request the server holds. */
static void signalled(int (*function)(void), const char *operation, const char *on_interrupt,
		      int flags)
{
	handle(SIGUSR1, flags);
	server("next %s hold", operation);
	server("on-interrupt %s", on_interrupt);
	pid_t pid = child("child", function);
	server("await %s 1", operation);
	kill(pid, SIGUSR1);
	server("await INTERRUPT 1");
	bury("child", pid);
}

CASE(signal_in_a_read_that_the_server_gives_up)
{
	fd = TRY(open(PLAIN, O_RDWR));
	signalled(one_read, "READ", "error 4", 0);
}

CASE(signal_with_sa_restart_in_a_read_that_the_server_gives_up)
{
	fd = TRY(open(PLAIN, O_RDWR));
	signalled(one_read, "READ", "error 4", SA_RESTART);
}

CASE(signal_in_a_write_that_the_server_gives_up)
{
	fd = TRY(open(PLAIN, O_RDWR));
	signalled(one_write, "WRITE", "error 4", 0);
}

CASE(signal_in_an_ioctl_that_the_server_gives_up)
{
	fd = TRY(open(PLAIN, O_RDWR));
	signalled(one_ioctl, "IOCTL", "error 4", 0);
}

CASE(signal_with_sa_restart_in_an_ioctl_that_the_server_gives_up)
{
	fd = TRY(open(PLAIN, O_RDWR));
	signalled(one_ioctl, "IOCTL", "error 4", SA_RESTART);
}

CASE(signal_in_an_open_that_the_server_gives_up)
{
	signalled(one_open, "OPEN", "error 4", 0);
}

CASE(signal_with_sa_restart_in_an_open_that_the_server_gives_up)
{
	signalled(one_open, "OPEN", "error 4", SA_RESTART);
}

CASE(signal_in_a_read_that_the_server_answers_with_data)
{
	fd = TRY(open(PLAIN, O_RDWR));
	signalled(one_read, "READ", "data 5", 0);
}

CASE(signal_in_a_read_that_the_server_answers_with_another_error)
{
	fd = TRY(open(PLAIN, O_RDWR));
	signalled(one_read, "READ", "error 11", SA_RESTART);
}

CASE(signal_in_a_read_that_the_server_answers_with_erestartsys)
{
	fd = TRY(open(PLAIN, O_RDWR));
	signalled(one_read, "READ", "error 512", SA_RESTART);
	/* The answer was refused, and the request was still there. */
}

CASE(signal_in_the_second_part_of_a_read)
{
	handle(SIGUSR1, 0);
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ pass");
	server("next READ hold");
	server("on-interrupt error 4");
	pid_t pid = child("child", long_read);
	server("await READ 2");
	kill(pid, SIGUSR1);
	server("await INTERRUPT 1");
	bury("child", pid);
}

CASE(interrupt_that_the_server_ignores)
{
	handle(SIGUSR1, 0);
	handle(SIGUSR2, 0);
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	server("on-interrupt ignore");
	pid_t pid = child("child", one_read);
	server("await READ 1");
	kill(pid, SIGUSR1);
	server("await INTERRUPT 1");
	/* No further INTERRUPT for further signals. */
	kill(pid, SIGUSR2);
	server("pause");
	server("answer READ data 7");
	bury("child", pid);
}

CASE(interrupt_that_the_server_wants_again)
{
	handle(SIGUSR1, 0);
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	server("on-interrupt again");
	pid_t pid = child("child", one_read);
	server("await READ 1");
	kill(pid, SIGUSR1);
	server("await INTERRUPT 3");
	bury("child", pid);
}

CASE(interrupt_that_the_server_does_not_know)
{
	handle(SIGUSR1, 0);
	fd = TRY(open("/dev/recuse-deaf", O_RDWR));
	server("next READ hold");
	server("on-interrupt unknown");
	pid_t pid = child("child", one_read);
	server("await READ 1");
	kill(pid, SIGUSR1);
	server("await INTERRUPT 1");
	server("answer READ data 7");
	bury("child", pid);
	/* It never gets any again. */
	server("next READ hold");
	pid = child("child 2", one_read);
	server("await READ 2");
	kill(pid, SIGUSR1);
	server("pause");
	server("answer READ data 7");
	bury("child 2", pid);
}

static int read_with_a_pending_signal(void)
{
	sigset_t set, before;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, &before);
	raise(SIGUSR1);
	TRY(read(fd, BUF, 16));
	say("handled %d", handled);
	sigprocmask(SIG_SETMASK, &before, NULL);
	say("handled %d", handled);
	return 0;
}

CASE(signal_that_is_blocked)
{
	handle(SIGUSR1, 0);
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	pid_t pid = child("child", read_with_a_pending_signal);
	server("await READ 1");
	server("pause");
	server("answer READ data 3");
	bury("child", pid);
}

static int read_with_ignored_signals(void)
{
	signal(SIGUSR1, SIG_IGN);
	TRY(read(fd, BUF, 16));
	return 0;
}

CASE(signal_that_is_ignored)
{
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	pid_t pid = child("child", read_with_ignored_signals);
	server("await READ 1");
	kill(pid, SIGUSR1);
	/* These do nothing unless a handler is there. */
	kill(pid, SIGCHLD);
	kill(pid, SIGWINCH);
	kill(pid, SIGURG);
	server("pause");
	server("answer READ data 3");
	bury("child", pid);
}

CASE(stop_and_continue)
{
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	server("on-interrupt ignore");
	pid_t pid = child("child", one_read);
	server("await READ 1");
	kill(pid, SIGSTOP);
	server("await INTERRUPT 1");
	kill(pid, SIGCONT);
	server("pause");
	server("answer READ data 3");
	bury("child", pid);
}

CASE(stop_that_the_server_answers_with_eintr)
{
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	server("on-interrupt error 4");
	pid_t pid = child("child", one_read);
	server("await READ 1");
	kill(pid, SIGSTOP);
	server("await INTERRUPT 1");
	kill(pid, SIGCONT);
	bury("child", pid);
}

static void killed(int number, const char *on_interrupt)
{
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	server("on-interrupt %s", on_interrupt);
	pid_t pid = child("child", one_read);
	server("await READ 1");
	kill(pid, number);
	server("await INTERRUPT 1");
	bury("child", pid);
	TRY(close(fd));
}

CASE(kill_in_a_read_that_the_server_gives_up)
{
	killed(SIGKILL, "error 4");
}

CASE(kill_in_a_read_that_the_server_answers)
{
	killed(SIGKILL, "data 16");
}

CASE(term_in_a_read_that_the_server_gives_up)
{
	killed(SIGTERM, "error 4");
}

CASE(int_in_a_read_that_the_server_answers)
{
	killed(SIGINT, "data 16");
}

static void *read_in_a_thread(void *argument)
{
	(void)argument;
	call_me("thread");
	TRY(read(fd, BUF, 16));
	return NULL;
}

CASE(signal_to_a_thread)
{
	pthread_t thread;
	handle(SIGUSR1, 0);
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	server("on-interrupt error 4");
	pthread_create(&thread, NULL, read_in_a_thread, NULL);
	server("await READ 1");
	pthread_kill(thread, SIGUSR1);
	server("await INTERRUPT 1");
	pthread_join(thread, NULL);
	say("handled %d", handled);
}

CASE(signal_to_a_process_whose_other_thread_takes_it)
{
	pthread_t thread;
	handle(SIGUSR1, 0);
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	server("on-interrupt error 4");
	pthread_create(&thread, NULL, read_in_a_thread, NULL);
	server("await READ 1");
	/* The main thread wants it as well and comes first. */
	TRY(raise(SIGUSR1));
	say("handled %d", handled);
	server("pause");
	server("answer READ data 3");
	pthread_join(thread, NULL);
}

static int read_with_a_timer(void)
{
	handle(SIGALRM, SA_RESTART);
	alarm(1);
	TRY(read(fd, BUF, 16));
	say("handled %d", handled);
	return 0;
}

CASE(alarm_in_a_read)
{
	fd = TRY(open(PLAIN, O_RDWR));
	server("next READ hold");
	server("on-interrupt error 4");
	pid_t pid = child("child", read_with_a_timer);
	bury("child", pid);
}

static int read_and_write_after_a_signal(void)
{
	TRY(read(fd, BUF, 16));
	TRY(read(fd, BUF, 16));
	TRY(write(fd, BUF, 16));
	say("handled %d", handled);
	return 0;
}

CASE(calls_after_an_interrupted_one)
{
	fd = TRY(open(PLAIN, O_RDWR));
	signalled(read_and_write_after_a_signal, "READ", "error 4", 0);
}

static int close_it(void)
{
	handle(SIGUSR1, 0);
	fd = open(PLAIN, O_RDWR);
	TRY(close(fd));
	while (!handled)
		usleep(1000);
	say("handled %d", handled);
	return 0;
}

CASE(signal_in_a_close)
{
	server("next RELEASE hold");
	server("on-interrupt ignore");
	pid_t pid = child("child", close_it);
	server("await RELEASE 1");
	kill(pid, SIGUSR1);
	server("pause");
	server("answer RELEASE error 0");
	bury("child", pid);
}
