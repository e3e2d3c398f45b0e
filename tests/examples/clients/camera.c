/*
 * A program of 32 or 64 bits that captures frames.
 *
 *   camera COUNT    frames, to standard output, and what it is told, to standard error
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define BUFFERS 3
#define CAPTURE V4L2_BUF_TYPE_VIDEO_CAPTURE

static int camera;

static void must(int result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

#define call(command, argument) must(ioctl(camera, command, argument), #command)

static void formats(void)
{
	struct v4l2_input input = {.index = 0};
	struct v4l2_format format = {.type = CAPTURE};

	call(VIDIOC_ENUMINPUT, &input);
	fprintf(stderr, "input %s %llu\n", input.name, (unsigned long long)input.std);
	call(VIDIOC_G_FMT, &format);
	fprintf(stderr, "was %u %u\n", format.fmt.pix.width, format.fmt.pix.height);
	format.fmt.pix.width = 300;
	format.fmt.pix.height = 200;
	call(VIDIOC_S_FMT, &format);
	fprintf(stderr, "is %u %u %u\n", format.fmt.pix.width, format.fmt.pix.height,
		format.fmt.pix.sizeimage);
}

static void controls(void)
{
	struct v4l2_event_subscription wanted = {
		.type = V4L2_EVENT_CTRL,
		.id = V4L2_CID_BRIGHTNESS,
		.flags = V4L2_EVENT_SUB_FL_ALLOW_FEEDBACK,
	};
	struct v4l2_ext_control items[2] = {
		{.id = V4L2_CID_BRIGHTNESS, .value = 160},
		{.id = V4L2_CID_CONTRAST, .value = 64},
	};
	struct v4l2_ext_controls all = {.count = 2, .controls = items};
	struct v4l2_event event = {0};

	call(VIDIOC_SUBSCRIBE_EVENT, &wanted);
	call(VIDIOC_S_EXT_CTRLS, &all);
	items[0].value = items[1].value = 0;
	call(VIDIOC_G_EXT_CTRLS, &all);
	fprintf(stderr, "controls %d %d at %s\n", items[0].value, items[1].value,
		all.controls == items ? "home" : "another place");
	items[1].id = 1;
	fprintf(stderr, "wrong %d", ioctl(camera, VIDIOC_TRY_EXT_CTRLS, &all));
	fprintf(stderr, " %s %u\n", strerror(errno), all.error_idx);
	call(VIDIOC_DQEVENT, &event);
	fprintf(stderr, "event %d of %x, time %s\n", event.u.ctrl.value, event.id,
		event.timestamp.tv_nsec < 1000000000 && event.timestamp.tv_sec >= 0 ? "ok" : "not");
}

static int capture(int count)
{
	struct v4l2_requestbuffers wanted = {
		.count = BUFFERS - 1, .type = CAPTURE, .memory = V4L2_MEMORY_MMAP};
	struct v4l2_create_buffers more = {
		.count = 1, .memory = V4L2_MEMORY_MMAP, .format = {.type = CAPTURE}};
	struct pollfd waited;
	void *memory[BUFFERS];
	int type = CAPTURE;
	long long last = -1;

	call(VIDIOC_REQBUFS, &wanted);
	call(VIDIOC_G_FMT, &more.format);
	call(VIDIOC_CREATE_BUFS, &more);
	for (unsigned i = 0; i < BUFFERS; i++) {
		struct v4l2_buffer buffer = {.index = i, .type = CAPTURE, .memory = V4L2_MEMORY_MMAP};

		call(VIDIOC_QUERYBUF, &buffer);
		memory[i] = mmap(NULL, buffer.length, PROT_READ, MAP_SHARED, camera, buffer.m.offset);
		must(memory[i] == MAP_FAILED ? -1 : 0, "mmap");
		call(VIDIOC_QBUF, &buffer);
	}
	call(VIDIOC_STREAMON, &type);
	waited.fd = camera;
	waited.events = POLLIN;
	while (count--) {
		struct v4l2_buffer buffer = {.type = CAPTURE, .memory = V4L2_MEMORY_MMAP};
		long long now;

		must(poll(&waited, 1, 20000) == 1 ? 0 : -1, "poll");
		call(VIDIOC_DQBUF, &buffer);
		now = buffer.timestamp.tv_sec * 1000000LL + buffer.timestamp.tv_usec;
		fprintf(stderr, "frame %s %s\n", now > last ? "later" : "not later",
			fwrite(memory[buffer.index], buffer.bytesused, 1, stdout) == 1 ? "ok" : "cut");
		last = now;
		call(VIDIOC_QBUF, &buffer);
	}
	call(VIDIOC_STREAMOFF, &type);
	return 0;
}

int main(int count, char **arguments)
{
	if (count != 2)
		return 2;
	camera = open("/dev/video9", O_RDWR);
	must(camera, "open");
	formats();
	controls();
	return capture(atoi(arguments[1]));
}
