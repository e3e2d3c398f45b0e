/* Runs the cases that standard input names, one a line. */
#include "client.h"
#include <stdarg.h>

/* Out of the way of the descriptors that the cases look at; they survive an exec. */
#define FROM_RUNNER 200
#define TO_RUNNER 201

static struct { const char *name; void (*function)(void); } cases[256];
static int count;

/* Two threads or processes may have something to tell: one at a time does. */
static pthread_mutex_t *telling;

void add_case(const char *name, void (*function)(void))
{
	cases[count].name = name;
	cases[count++].function = function;
}

static void must(int right, const char *what)
{
	if (!right) {
		dprintf(2, "conformance client: %s: %s\n", what, strerrorname_np(errno));
		_exit(99);
	}
}

static int get_line(char *line, int size)
{
	int length = 0;
	while (length < size - 1) {
		ssize_t got = read(FROM_RUNNER, line + length, 1);
		if (got == -1 && errno == EINTR)
			continue;
		if (got <= 0)
			return 0;
		if (line[length] == '\n')
			break;
		length++;
	}
	line[length] = 0;
	return 1;
}

/* Tell a line and get an answer, which is empty if all is well; return whether it is. */
static int put_line(char kind, const char *text, int wait)
{
	char line[2048];
	int length = snprintf(line, sizeof line, "%c%s\n", kind, text);
	must(length < (int)sizeof line, "a line is too long");
	int error = errno, right = 1;
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	pthread_mutex_lock(telling);
	must(write(TO_RUNNER, line, length) == length, "telling");
	if (wait) {
		must(get_line(line, sizeof line), "waiting for an answer");
		right = !*line;
		must(right || *line == '?', line);
	}
	pthread_mutex_unlock(telling);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	errno = error;
	return right;
}

#define FORMATTED(kind) \
	char text[2000]; \
	va_list arguments; \
	va_start(arguments, format); \
	vsnprintf(text, sizeof text, format, arguments); \
	va_end(arguments); \
	while (!put_line(kind, text, 1)) \
		usleep(1000);

void say(const char *format, ...) { FORMATTED(' ') }

void server(const char *format, ...) { FORMATTED('!') }

long told(const char *call, long result)
{
	int error = errno;
	const char *name = strerrorname_np(error);
	if (result == -1 && name)
		say("%s = -1 %s", call, name);
	else if (result == -1)
		say("%s = -1, error %d", call, error);
	else
		say("%s = %ld", call, result);
	errno = error;
	return result;
}

void show(const char *what, const void *data, long size)
{
	const unsigned char *bytes = data;
	if (size <= 32) {
		char hex[65] = "";
		for (long i = 0; i < size; i++)
			sprintf(hex + 2 * i, "%02x", bytes[i]);
		say("%s: %s", what, size > 0 ? hex : "nothing");
		return;
	}
	static uint32_t table[256];
	for (uint32_t i = 0; i < 256; i++) {
		table[i] = i;
		for (int bit = 0; bit < 8; bit++)
			table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320 : 0);
	}
	uint32_t sum = ~0u;
	for (long i = 0; i < size; i++)
		sum = sum >> 8 ^ table[(sum ^ bytes[i]) & 255];
	say("%s: %ld bytes, %08x", what, size, ~sum);
}

volatile int handled;

static void handler(int number)
{
	(void)number;
	handled++;
}

void handle(int number, int flags)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
	sigaction(number, &action, NULL);
}

void fill(void *data, long size)
{
	for (long i = 0; i < size; i++)
		((unsigned char *)data)[i] = i * 7 % 253;
}

void call_me(const char *name)
{
	char text[100];
	snprintf(text, sizeof text, "%s %d", name, (int)gettid());
	put_line('#', text, 1);
}

pid_t child(const char *name, int (*function)(void))
{
	pid_t pid = fork();
	must(pid != -1, "fork");
	if (!pid) {
		call_me(name);
		_exit(function());
	}
	return pid;
}

void bury(const char *name, pid_t pid)
{
	int status;
	must(waitpid(pid, &status, 0) == pid, "waitpid");
	if (WIFSIGNALED(status))
		say("%s was killed by SIG%s", name, sigabbrev_np(WTERMSIG(status)));
	else if (WEXITSTATUS(status))
		say("%s exited with %d", name, WEXITSTATUS(status));
	else
		say("%s exited", name);
}

static void map(char *at, long size, int protection)
{
	void *got = mmap(at, size, protection,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	must(got == at, "mmap");
}

static int run(const char *name)
{
	for (int i = 0; i < count; i++)
		if (!strcmp(cases[i].name, name)) {
			pid_t pid = fork();
			must(pid != -1, "fork");
			if (!pid) {
				call_me("main");
				map(BUF, BUF_SIZE, PROT_READ | PROT_WRITE);
				map(END, PAGE, PROT_NONE);
				map(CONSTANT, PAGE, PROT_READ);
				map(CONSTANT + PAGE, PAGE, PROT_NONE);
				cases[i].function();
				_exit(0);
			}
			int status;
			must(waitpid(pid, &status, 0) == pid, "waitpid");
			return status;
		}
	return -1;
}

int main(int argc, char **argv)
{
	char line[256];
	pthread_mutexattr_t shared;
	telling = mmap(NULL, sizeof *telling, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		       -1, 0);
	must(telling != MAP_FAILED, "mmap");
	pthread_mutexattr_init(&shared);
	pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(telling, &shared);
	if (argc == 2) {
		/* A case has executed this program anew. */
		for (int i = 0; i < count; i++)
			if (!strcmp(cases[i].name, argv[1]))
				cases[i].function();
		return 0;
	}
	must(dup2(0, FROM_RUNNER) != -1 && dup2(1, TO_RUNNER) != -1, "dup2");
	int null = open("/dev/null", O_RDWR);
	must(null != -1 && dup2(null, 0) != -1 && dup2(null, 1) != -1 && !close(null), "/dev/null");
	while (get_line(line, sizeof line)) {
		char text[32];
		snprintf(text, sizeof text, "%d", run(line));
		put_line('.', text, 0);
	}
	return 0;
}
