"""The buffers that a camera fills one by one, and that programs map into their memory.

Errors are those of drivers/media/common/videobuf2, Linux 6.1.
"""

import asyncio
import errno
import mmap
import select
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum

from linuxpy.video import raw
from v4l2 import busy, handles, invalid, is_capture
from v4l2controls import ControlledFile

from recuse import Area, Mapping, MmapRequest

MAX_BUFFERS = 32
MAX_SIZE = 1 << 26
_CAPABILITIES = 1 << 0 | 1 << 4
"""V4L2_BUF_CAP_SUPPORTS_MMAP and _ORPHANED_BUFS, which linuxpy lacks."""
_READABLE = select.POLLIN | select.POLLRDNORM

READ_BUFFERS = 2
"""The number of buffers for programs that read."""


def whole_pages(size: int) -> int:
    """Return the size of the whole pages that ``size`` bytes need."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def make_area(size: int) -> Area:
    """Return new memory for buffers."""
    return Area(size, name="recuse camera")


class State(Enum):
    """Where a buffer is."""

    PROGRAM = 0
    QUEUED = raw.BufferFlag.QUEUED
    DONE = raw.BufferFlag.DONE


class Buffer:
    """Memory for one frame."""

    def __init__(self, index: int, offset: int, memory: memoryview) -> None:
        self.index = index
        self.offset = offset
        """Its offset for mmap(2)."""
        self.memory = memory
        self.state = State.PROGRAM
        self.mapped = 0
        self.used = 0
        """The number of bytes of the frame in it."""
        self.failed = False
        self.sequence = 0
        self.at_ns = 0

    def describe(self) -> raw.v4l2_buffer:
        """Return its description for programs."""
        told = raw.v4l2_buffer(index=self.index, type=raw.BufType.VIDEO_CAPTURE)
        told.memory, told.m.offset, told.length = raw.Memory.MMAP, self.offset, len(self.memory)
        told.flags = int(raw.BufferFlag.TIMESTAMP_MONOTONIC) | int(self.state.value)
        told.flags |= int(raw.BufferFlag.MAPPED) if self.mapped else 0
        told.flags |= int(raw.BufferFlag.ERROR) if self.failed else 0
        told.field, told.bytesused, told.sequence = raw.Field.NONE, self.used, self.sequence
        told.timestamp.secs, told.timestamp.usecs = divmod(self.at_ns // 1000, 10**6)
        return told


Fill = Callable[[memoryview, int], Awaitable[int]]
"""Puts the frame with a number into memory; returns its size in bytes, 0 if it failed."""


class Queue:
    """The buffers of a device, the file that has them, and the clock."""

    def __init__(self, fill: Fill, interval_s: Callable[[], float]) -> None:
        self._fill = fill
        self._interval_s = interval_s
        self.owner: QueueFile | None = None
        self.reading = False
        """The owner reads frames by read(2), and does not see buffers."""
        self.area: Area | None = None
        self.buffers: list[Buffer] = []
        self.common: Area | None = None
        """On a FUSE mount: the area that open files keep, whatever is asked for later."""
        self.files_with_common = 0
        self._queued: deque[Buffer] = deque()
        self.done: deque[Buffer] = deque()
        self.used = False
        """Whether a buffer was queued since the stream was switched on or off."""
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()

    @property
    def streaming(self) -> bool:
        return self._task is not None and not self._stop.is_set()

    def add(self, owner: "QueueFile", count: int, size: int, *, reading: bool = False) -> None:
        """Add buffers, 1 or more, for a file that owns all other buffers."""
        room = whole_pages(size)
        # One area has all buffers, and each starts at a page.
        begin = sum(whole_pages(len(buffer.memory)) for buffer in self.buffers)
        end = begin + room * count
        if self.area is None:
            self.owner, self.reading = owner, reading
            self.area = self.common or make_area(end)
        if self.area.size < end:
            self.area.resize(end)
        for offset in range(begin, end, room):
            memory = self.area[offset : offset + size]
            self.buffers.append(Buffer(len(self.buffers), offset, memory))

    def free(self) -> None:
        """Remove all buffers.  Programs that have mapped them keep the memory."""
        self.owner, self.reading = None, False
        self.area, self.buffers = None, []

    def check_unused(self) -> None:
        """Raise EBUSY if there are buffers: their size cannot change."""
        if self.buffers:
            raise busy("there are buffers")

    def queue(self, buffer: Buffer) -> None:
        """Queue a buffer to be filled."""
        if buffer.state is not State.PROGRAM:
            raise invalid("queued already")
        buffer.state = State.QUEUED
        self._queued.append(buffer)
        self.used = True

    async def dequeue(self, *, nonblocking: bool) -> Buffer:
        """Give a buffer with a frame to the program."""
        while True:
            if not self.streaming:
                raise invalid("not streaming")
            if self.done:
                break
            if nonblocking:
                raise BlockingIOError(errno.EAGAIN, "no frame yet")
            self._changed.clear()
            await self._changed.wait()
        buffer = self.done.popleft()
        buffer.state = State.PROGRAM
        return buffer

    def start(self) -> None:
        """Start the frames."""
        # New ones: if the device is served again, the loop is another one.
        self._stop, self._changed = asyncio.Event(), asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stop the frames, and give all buffers back."""
        self._stop.set()
        self._wake()
        if self._task is not None:
            # Wait until the frame that is being painted is complete.
            await asyncio.wait([self._task])
        self._task = None
        self._queued.clear()
        self.done.clear()
        self.used = False
        for buffer in self.buffers:
            buffer.state, buffer.used = State.PROGRAM, 0

    async def _run(self) -> None:
        """The clock.  A frame without a free buffer is lost, as with a real camera."""
        loop = asyncio.get_running_loop()
        due, number = loop.time(), 0
        while True:
            due += self._interval_s()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._stop.wait()
            if self._stop.is_set():
                return
            if late := int((loop.time() - due) / self._interval_s()):
                due += late * self._interval_s()
                # The first frame is number 0, however late it is.
                number += late if number else 0
            if self._queued:
                buffer = self._queued.popleft()
                buffer.sequence, buffer.at_ns = number & 0xFFFFFFFF, time.monotonic_ns()
                buffer.used = await self._fill(buffer.memory, number)
                buffer.failed, buffer.state = not buffer.used, State.DONE
                self.done.append(buffer)
                self._wake()
            number += 1

    def _wake(self) -> None:
        self._changed.set()
        if self.owner is not None:
            self.owner.wake_pollers()


class QueueFile(ControlledFile):
    """An open file of a device that has a queue."""

    queue: Queue

    def __init__(self) -> None:
        super().__init__()
        self._rest = memoryview(b"")
        """The rest of the frame that a program reads."""

    def frame_size(self) -> int:
        """Return the most bytes that a frame can have."""
        raise NotImplementedError

    def _mine(self) -> Queue:
        """Return the queue; raises EBUSY if it belongs to another file, or to read(2)."""
        queue = self.queue
        if queue.owner not in (None, self) or queue.reading:
            raise busy("another program has the buffers")
        return queue

    def _buffer(self, asked: raw.v4l2_buffer) -> Buffer:
        is_capture(asked.type)
        if asked.index >= len(self.queue.buffers):
            raise invalid("no such buffer")
        index: int = asked.index
        return self.queue.buffers[index]

    @handles(raw.IOC.REQBUFS, raw.v4l2_requestbuffers)
    async def reqbufs(self, asked: raw.v4l2_requestbuffers) -> raw.v4l2_requestbuffers:
        self.may_change()
        is_capture(asked.type)
        if asked.memory != raw.Memory.MMAP:
            raise invalid("buffers must be mapped")
        queue = self._mine()
        if queue.streaming:
            raise busy("streaming")
        if queue.buffers:
            await queue.stop()
            queue.free()
        count = min(asked.count, MAX_BUFFERS)
        if count:
            queue.add(self, count, self.frame_size())
        return raw.v4l2_requestbuffers(count, asked.type, asked.memory, _CAPABILITIES)

    @handles(raw.IOC.CREATE_BUFS, raw.v4l2_create_buffers)
    async def create_bufs(self, asked: raw.v4l2_create_buffers) -> raw.v4l2_create_buffers:
        self.may_change()
        is_capture(asked.format.type)
        queue = self._mine()
        size = asked.format.fmt.pix.sizeimage
        if asked.memory != raw.Memory.MMAP or not self.frame_size() <= size <= MAX_SIZE:
            raise invalid("no such buffers")
        told = raw.v4l2_create_buffers(len(queue.buffers), memory=asked.memory)
        told.count = min(asked.count, MAX_BUFFERS - len(queue.buffers))
        told.format, told.capabilities = asked.format, _CAPABILITIES
        if told.count:
            queue.add(self, told.count, size)
        elif asked.count:
            raise OSError(errno.ENOBUFS, "too many buffers")
        return told

    @handles(raw.IOC.QUERYBUF, raw.v4l2_buffer)
    async def querybuf(self, asked: raw.v4l2_buffer) -> raw.v4l2_buffer:
        return self._buffer(asked).describe()

    @handles(raw.IOC.QBUF, raw.v4l2_buffer)
    async def qbuf(self, asked: raw.v4l2_buffer) -> raw.v4l2_buffer:
        queue = self._mine()
        buffer = self._buffer(asked)
        if asked.memory != raw.Memory.MMAP:
            raise invalid("buffers must be mapped")
        queue.queue(buffer)
        return buffer.describe()

    @handles(raw.IOC.DQBUF, raw.v4l2_buffer)
    async def dqbuf(self, asked: raw.v4l2_buffer) -> raw.v4l2_buffer:
        is_capture(asked.type)
        queue = self._mine()
        if asked.memory != raw.Memory.MMAP:
            raise invalid("buffers must be mapped")
        return (await queue.dequeue(nonblocking=self.nonblocking)).describe()

    @handles(raw.IOC.STREAMON, raw.cint)
    async def streamon(self, type_: int) -> None:
        self.may_change()
        is_capture(type_)
        queue = self._mine()
        if not queue.buffers:
            raise invalid("no buffers")
        if not queue.streaming:
            queue.start()

    @handles(raw.IOC.STREAMOFF, raw.cint)
    async def streamoff(self, type_: int) -> None:
        self.may_change()
        is_capture(type_)
        await self._mine().stop()

    # Memory

    async def mmap(self, request: MmapRequest) -> Area:
        queue = self.queue
        if request.at_open:
            if queue.common is None:
                queue.common = make_area(mmap.PAGESIZE)
            queue.files_with_common += 1
            return queue.common
        for buffer in queue.buffers:
            # The length has whole pages, as the next offset has.
            room = whole_pages(len(buffer.memory))
            if buffer.offset == request.offset and request.length <= room:
                break
        else:
            raise invalid("no such buffer")
        if queue.reading or queue.area is None:
            raise busy("used by read")
        if request.private or not request.protection & mmap.PROT_READ:
            raise invalid("buffers must be shared and readable")
        buffer.mapped += 1
        return queue.area

    async def unmapped(self, mapping: Mapping) -> None:
        queue = self.queue
        if mapping.area is queue.common:
            queue.files_with_common -= 1
            if not queue.files_with_common:
                queue.common = None
            return
        for buffer in queue.buffers if mapping.area is queue.area else ():
            buffer.mapped -= buffer.offset == mapping.offset

    # Reading, and waiting

    def _begin_to_read(self) -> None:
        queue = self.queue
        if queue.owner is None:
            queue.add(self, READ_BUFFERS, self.frame_size(), reading=True)
            for buffer in queue.buffers:
                queue.queue(buffer)
            queue.start()
        elif queue.owner is not self or not queue.reading:
            raise busy("another program has the buffers")

    async def read(self, size: int, offset: int) -> memoryview:
        self._begin_to_read()
        # One read gets a part of one frame, although a long one arrives in several requests.
        if not self._rest and not offset:
            buffer = await self.queue.dequeue(nonblocking=self.nonblocking)
            self._rest = memoryview(bytes(buffer.memory[: buffer.used]))
            self.queue.queue(buffer)
            if buffer.failed:
                raise OSError(errno.EIO, "no picture")
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    async def poll(self, events: int) -> int:
        ready = select.POLLPRI if self.events else 0
        queue = self.queue
        if queue.owner is None and events & _READABLE:
            self._begin_to_read()
        if events & _READABLE:
            if queue.owner is not self or not queue.streaming or not queue.used:
                ready |= select.POLLERR
            elif queue.done or self._rest:
                ready |= _READABLE
        return ready

    async def release(self) -> None:
        if self.queue.owner is self:
            await self.queue.stop()
            self.queue.free()
