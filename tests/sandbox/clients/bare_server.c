/* A CUSE server on the bare protocol, with nothing but the kernel's header.

   usage: bare_server NAME [poll] [vector] [THREADS]

   The device keeps what was written last. A file that has written has its own copy of that, and
   each file is read from its beginning to its end once. It prints "ready" when the device is there
   and ends with status 0 at SIGTERM, or when its channel does.

   poll: wait in poll, and read without waiting. vector: readv and writev in pieces.

   ioctls: _IOR('b', 1, int) how many files are open; _IO('b', 2) never answers, unless it is
   interrupted; _IO('b', 3) makes the server exit; _IO('b', 4) kills it. */

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#define MOST 65536

struct file {
	size_t position, size;
	int own;
	char data[MOST];
};

static int channel, with_poll, with_vectors, threads = 1, files;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t last_size;
static char last[MOST];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void on_signal(int number)
{
	(void)number;
	_exit(0);
}

/* Returns the size of the next request, 0 at the end. */
static size_t next(char *buffer, size_t size)
{
	for (;;) {
		ssize_t got;

		if (with_poll) {
			struct pollfd wait = { channel, POLLIN, 0 };

			if (poll(&wait, 1, -1) < 0 && errno != EINTR)
				fail("poll");
		}
		if (with_vectors) {
			struct iovec pieces[] = {
				{ buffer, 4 },
				{ buffer + 4, sizeof(struct fuse_in_header) - 4 },
				{ NULL, 0 },
				{ buffer + sizeof(struct fuse_in_header),
				  size - sizeof(struct fuse_in_header) },
			};

			got = readv(channel, pieces, 4);
		} else {
			got = read(channel, buffer, size);
		}
		if (got > 0) {
			struct fuse_in_header *header = (void *)buffer;

			if ((size_t)got != header->len)
				fail("half a request");
			return got;
		}
		if (got == 0 || errno == ENODEV)
			return 0;
		if (errno != EAGAIN && errno != EINTR)
			fail("read");
	}
}

static void answer(uint64_t unique, int error, const void *head, size_t head_size,
		   const void *data, size_t size)
{
	struct fuse_out_header header = {
		.len = sizeof(header) + head_size + size, .error = error, .unique = unique,
	};
	struct iovec pieces[] = {
		{ &header, sizeof(header) }, { (void *)head, head_size }, { (void *)data, size },
	};
	ssize_t done;

	char buffer[sizeof(header) + 256 + MOST];

	memcpy(buffer, &header, sizeof(header));
	if (head_size)
		memcpy(buffer + sizeof(header), head, head_size);
	if (size)
		memcpy(buffer + sizeof(header) + head_size, data, size);
	do {
		if (with_vectors)
			done = writev(channel, pieces, 3);
		else
			done = write(channel, buffer, header.len);
		/* Linux never says EINTR; a sandbox may, as for all calls that it sees. */
	} while (done < 0 && errno == EINTR);
	/* ENOENT: another thread has answered, as it was interrupted. */
	if (done != (ssize_t)header.len && errno != ENOENT && errno != ENODEV)
		fail("write");
}

static void initialise(uint64_t unique, const char *name)
{
	struct cuse_init_out out = {
		.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION,
		.max_read = MOST, .max_write = MOST,
	};
	char info[300];
	size_t size = snprintf(info, sizeof(info), "DEVNAME=%s", name) + 1;

	answer(unique, 0, &out, sizeof(out), info, size);
}

static void serve_ioctl(struct fuse_in_header *header, struct fuse_ioctl_in *in)
{
	struct fuse_ioctl_out out = { 0 };

	switch (in->cmd) {
	case _IOR('b', 1, int):
		answer(header->unique, 0, &out, sizeof(out), &files, sizeof(files));
		return;
	case _IO('b', 2):
		return;
	case _IO('b', 3):
		_exit(3);
	case _IO('b', 4):
		kill(getpid(), SIGKILL);
		pause();
	}
	answer(header->unique, -ENOTTY, NULL, 0, NULL, 0);
}

static void serve(struct fuse_in_header *header, void *body)
{
	struct fuse_open_out opened = { 0 };
	struct fuse_write_out written = { 0 };
	struct fuse_interrupt_in *interrupt = body;
	struct fuse_write_in *writing = body;
	struct fuse_read_in *reading = body;
	struct file *file = (void *)(uintptr_t)*(uint64_t *)body;
	char *from, data[MOST];
	size_t size, count = 0;

	pthread_mutex_lock(&lock);
	switch (header->opcode) {
	case FUSE_OPEN:
		files++;
		opened.fh = (uintptr_t)calloc(1, sizeof(struct file));
		pthread_mutex_unlock(&lock);
		answer(header->unique, 0, &opened, sizeof(opened), NULL, 0);
		return;
	case FUSE_READ:
		from = file->own ? file->data : last;
		size = file->own ? file->size : last_size;
		if (file->position < size)
			count = size - file->position;
		if (count > reading->size)
			count = reading->size;
		memcpy(data, from + file->position, count);
		file->position += count;
		pthread_mutex_unlock(&lock);
		answer(header->unique, 0, NULL, 0, data, count);
		return;
	case FUSE_WRITE:
		written.size = writing->size;
		memcpy(last, writing + 1, last_size = writing->size);
		memcpy(file->data, writing + 1, file->size = writing->size);
		file->position = 0;
		file->own = 1;
		pthread_mutex_unlock(&lock);
		answer(header->unique, 0, &written, sizeof(written), NULL, 0);
		return;
	case FUSE_RELEASE:
		files--;
		free(file);
		pthread_mutex_unlock(&lock);
		answer(header->unique, 0, NULL, 0, NULL, 0);
		return;
	}
	pthread_mutex_unlock(&lock);
	switch (header->opcode) {
	case FUSE_IOCTL:
		serve_ioctl(header, body);
		return;
	case FUSE_INTERRUPT:
		answer(interrupt->unique, -EINTR, NULL, 0, NULL, 0);
		return;
	default:
		answer(header->unique, -ENOSYS, NULL, 0, NULL, 0);
	}
}

static void *work(void *unused)
{
	size_t size = 2 * MOST;
	char *buffer = malloc(size);

	while (next(buffer, size))
		serve((void *)buffer, buffer + sizeof(struct fuse_in_header));
	free(buffer);
	return unused;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	struct fuse_in_header *header;
	char first[FUSE_MIN_READ_BUFFER];
	pthread_t thread;

	for (int i = 2; i < argc; i++) {
		if (!strcmp(argv[i], "poll"))
			with_poll = 1;
		else if (!strcmp(argv[i], "vector"))
			with_vectors = 1;
		else
			threads = atoi(argv[i]);
	}
	channel = open("/dev/cuse", O_RDWR | O_CLOEXEC | (with_poll ? O_NONBLOCK : 0));
	if (channel < 0)
		fail("/dev/cuse");
	if (!next(first, sizeof(first)))
		fail("no CUSE_INIT");
	header = (void *)first;
	initialise(header->unique, argv[1]);
	puts("ready");
	fflush(stdout);

	sigaction(SIGTERM, &action, NULL);
	for (int i = 1; i < threads; i++)
		pthread_create(&thread, NULL, work, NULL);
	work(NULL);
	return 0;
}
