"""One connection's server half: requests come in as bytes, answers go out as bytes."""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.server.device import (
    Device,
    File,
    check_device,
    device_info,
    makes_files,
    notify_once,
)
from recuse.server.dispatch import (
    IOCTL_DATA,
    WRITE_DATA,
    pick_head,
    pick_interrupt,
    pick_ioctl,
    pick_mmap,
    pick_open,
    pick_poll,
    pick_read,
    pick_release,
    pick_write,
    poll_answer,
    read_answer,
    release_answer,
    write_answer,
)
from recuse.server.errors import Misuse, brief
from recuse.server.ioctl_retries import IoctlCall, IoctlRetries
from recuse.server.mappings import Mappings
from recuse.server.pending_reply import NO_REPLY, PendingReply, Send, answer_fault
from recuse.server.request import OpenRequest
from recuse.server.runner import Runner, Step
from recuse.server.sysfs import Link, encoded, show_answer
from recuse.wire.cuse import (
    CUSE_INIT,
    CUSE_UNRESTRICTED_IOCTL,
    RECUSE_FILE_FLAGS,
    RECUSE_IOCTL_FILE,
    RECUSE_IOCTL_NONBLOCK,
    RECUSE_MAPPING,
    RECUSE_MMAP,
    RECUSE_MMAP_COMMIT,
    RECUSE_MUNMAP,
    RECUSE_NEW_FILES,
    RECUSE_NODE_INFO,
    RECUSE_SEEKABLE,
    RECUSE_SHOW,
    RECUSE_SYSFS,
    cuse_init_in,
    cuse_init_out,
    recuse_ioctl_file,
)
from recuse.wire.errors import WireError
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_IOCTL_UNRESTRICTED,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_POLL_SCHEDULE_NOTIFY,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_in_header,
    fuse_ioctl_out,
    fuse_open_out,
)
from recuse.wire.poll import DEFAULT_POLLMASK

log = Log("recuse.server")

LEAST_MINOR = 11
"""The first minor version with CUSE."""

_O_NONBLOCK = os.O_NONBLOCK
_HEADER_SIZE = fuse_in_header.SIZE


class Session:
    """Serves one `Device` to the kernel half at the other end of one channel.

    A channel reads requests, in any number of threads, and gives each to `handle`.
    """

    def __init__(self, device: Device, *, shared: bool = False) -> None:
        """Make a session; it starts with the kernel half's first request.

        Other sessions serve a ``shared`` device too, and it outlives this one: the code that shares
        it calls `Device.close`.

        Raises ValueError or TypeError if the device is not well described (see `Device`).
        """
        check_device(device)
        self.device = device
        self.minor = FUSE_KERNEL_MINOR_VERSION
        """Minor version of the protocol, 11 to 45: the lower of the two halves' versions."""
        self._runner = Runner(self._undelivered, self._failed)
        self._mappings = Mappings(self._runner)
        self._files: dict[int, File] = {}
        self._handles = itertools.count(1)
        self._new_files = False
        """Whether the kernel half accepts files that ioctls make."""
        self._told_of_new_files = False
        self._file_flags = False
        """Whether ioctls say if the file has O_NONBLOCK."""
        self._has_kinds_of_files = False
        """Whether ioctls of an opened file make other files, perhaps of another class."""
        self._retries = IoctlRetries(self.drop)
        self._lock = new_lock("Session")
        self._closed = False
        self._released = False
        self._shared = shared
        self._serve: dict[int, Callable[[PendingReply], None]] = {
            CUSE_INIT: self._init,
            FUSE_OPEN: self._open,
            FUSE_READ: self._read,
            FUSE_WRITE: self._write,
            FUSE_IOCTL: self._ioctl,
            FUSE_POLL: self._poll,
            FUSE_RELEASE: self._release,
            FUSE_INTERRUPT: self._interrupt,
            RECUSE_SHOW: self._show,
            RECUSE_MMAP: self._mmap,
            RECUSE_MMAP_COMMIT: self._mappings.commit,
            RECUSE_MUNMAP: self._mappings.munmap,
        }

    def handle(self, message: bytes, reply: Send) -> None:
        """Answer one request through ``reply``, exactly once, if it needs an answer.

        The author's plain methods run here, in the calling thread, and are answered before this
        returns. ``async def`` ones are answered later, from the thread of the event loop. Any
        number of threads may call this at once. What ``reply`` raises is logged.

        Notifications also go through ``reply``, later and from any of the author's threads. So it
        has to work until `close`, and to raise OSError after that.

        Raises WireError if the message is too malformed to be answered: shorter than a header, or
        not as long as its header says.
        """
        try:
            length, opcode, unique = pick_head(message)
        except struct.error:
            length = -1
        if length != len(message):
            raise WireError(f"{len(message)} bytes that are not a request")
        serve = self._serve.get(opcode)
        pending = PendingReply(message, opcode, unique, reply)
        if serve is None:
            if opcode not in NO_REPLY:
                pending.fail(errno.ENOSYS)
        elif self._closed:
            pending.fail(errno.ENODEV)
        else:
            try:
                serve(pending)
            except BaseException as error:
                answer_fault(pending, error)

    def close(self) -> None:
        """End the session: the connection is gone, or is about to go.

        This cancels running ``async def`` methods and waits for them; their requests are answered
        with ECONNABORTED. It ends the mappings that are left, releases the files that are left, and
        calls `Device.close`, unless the device is shared. It does not wait more than 5 seconds for
        anything that is ``async def``. Plain methods that are running continue in their threads.
        In the thread of the event loop, it returns at once and does all this soon after.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._runner.end(self._ending)

    def _ending(self) -> Iterator[Step]:
        self._released = True
        for owner, mapping in self._mappings.end():
            awaitable = self._runner.quietly(owner.unmapped, mapping)
            if awaitable is not None:
                yield owner.unmapped, awaitable
        for handle in list(self._files):
            file = self._files.pop(handle, None)
            if file is not None:
                awaitable = self._runner.quietly(file.release)
                if awaitable is not None:
                    yield file.release, awaitable
        if not self._shared:
            self._runner.quietly(self.device.close)

    # Each of these answers the request, or makes sure that it is answered.

    def _init(self, pending: PendingReply) -> None:
        request = cuse_init_in.unpack(pending.message, _HEADER_SIZE)
        if request.major != FUSE_KERNEL_VERSION or request.minor < LEAST_MINOR:
            log.error(
                "the kernel half speaks %d.%d, this is for 7.%d and later",
                request.major,
                request.minor,
                LEAST_MINOR,
            )
            pending.fail(errno.EPROTO)
            return
        self.minor = min(FUSE_KERNEL_MINOR_VERSION, request.minor)
        self._new_files = bool(request.flags & RECUSE_NEW_FILES)
        self._file_flags = bool(request.flags & RECUSE_FILE_FLAGS)
        pending.reply(_init_answer(self.device, self.minor, request.flags))

    def _open(self, pending: PendingReply) -> None:
        (flags,) = pick_open(pending.message)
        self._runner.run(pending, self.device.open, self._open_answer, flags, OpenRequest(pending))

    def _open_answer(self, returned: Any, flags: int) -> bytes:
        if not isinstance(returned, File):
            raise Misuse(f"returned {brief(returned)}, not a File")
        returned.flags = flags
        return fuse_open_out(fh=self._add(returned)).pack()

    def adopt(self, file: object) -> tuple[int, int]:
        """See `recuse.server.ioctl_retries.Files`."""
        if not isinstance(file, File):
            raise Misuse(f"returned {brief(file)}, not a File")
        flags = file.flags
        file.flags &= ~os.O_CLOEXEC
        return self._add(file), flags

    def _add(self, file: File) -> int:
        """Add a new file and return its handle. Raises OSError if the session has closed."""
        file.device = self.device
        if makes_files(file):
            self._has_kinds_of_files = True
        handle = next(self._handles)
        self._files[handle] = file
        if self._released:
            self.drop(handle)
            raise OSError(errno.ENODEV, "the session has closed")
        return handle

    def _undelivered(self, pending: PendingReply, payload: bytes) -> None:
        """Undo the making of a file, or of a mapping, that the kernel half was not told about.

        It sends no RELEASE for such a file.
        """
        if pending.opcode == FUSE_OPEN:
            self.drop(fuse_open_out.unpack(payload).fh)
        elif pending.opcode == FUSE_IOCTL:
            out = fuse_ioctl_out.unpack(payload)
            if out.flags & RECUSE_IOCTL_FILE:
                self.drop(recuse_ioctl_file.unpack(payload, fuse_ioctl_out.SIZE).fh)
        else:
            self._mappings.undelivered(pending)

    def _failed(self, pending: PendingReply) -> None:
        self._mappings.failed(pending)

    def drop(self, handle: int) -> None:
        """See `recuse.server.ioctl_retries.Files`."""
        file = self._files.pop(handle, None)
        if file is not None:
            self._runner.quietly_later(file.release)

    def transfer(  # noqa: PLR0917 - as the parts come in the messages
        self,
        pending: PendingReply,
        handle: int,
        offset: int,
        size: int,
        flags: int,
        data: bytes | None = None,
    ) -> None:
        """Answer a READ, or a WRITE of ``data``, whose parts are known without a message.

        The channel may call this instead of `handle`.
        """
        file = self._files.get(handle)
        if file is None or self._closed:
            pending.fail(errno.ENODEV if self._closed else errno.EBADF)
            return
        if file.flags != flags:
            file.flags = flags
        try:
            if data is None:
                self._runner.run(pending, file.read, read_answer, size, size, offset)
            else:
                self._runner.run(pending, file.write, write_answer, size, data, offset)
        except BaseException as error:
            answer_fault(pending, error)

    def _read(self, pending: PendingReply) -> None:
        self.transfer(pending, *pick_read(pending.message))

    def _write(self, pending: PendingReply) -> None:
        message = pending.message
        handle, offset, size, flags = pick_write(message)
        data = message[WRITE_DATA : WRITE_DATA + size]
        if len(data) != size:
            raise WireError(f"{len(data)} bytes of data, not {size}")
        self.transfer(pending, handle, offset, size, flags, data)

    def _ioctl(self, pending: PendingReply) -> None:
        message = pending.message
        pid, handle, flags, command, argument, in_size, out_size = pick_ioctl(message)
        data = message[IOCTL_DATA : IOCTL_DATA + in_size]
        if len(data) != in_size:
            raise WireError(f"{len(data)} bytes of data, not {in_size}")
        file = self._files.get(handle)
        if file is None:
            pending.fail(errno.EBADF)
            return
        if self._file_flags:
            nonblocking = _O_NONBLOCK if flags & RECUSE_IOCTL_NONBLOCK else 0
            if file.flags & _O_NONBLOCK != nonblocking:
                file.flags ^= _O_NONBLOCK
        call = IoctlCall(file, command, argument, data, out_size, self)
        if not self._new_files and call.makes_file:
            pending.fail(errno.EOPNOTSUPP)
            self._tell_of_new_files(call.label)
            return
        if flags & FUSE_IOCTL_UNRESTRICTED:
            answer = self._retries.begin(call, (handle, pid))
            if answer is not None:
                if not pending.reply(answer):
                    self._undelivered(pending, answer)
                return
        else:
            call.restrict()
        self._runner.run(pending, call.begin, call.answer, None)

    def _poll(self, pending: PendingReply) -> None:
        handle, kh, flags, events = pick_poll(pending.message)
        file = self._files.get(handle)
        if file is None:
            pending.fail(errno.EBADF)
            return
        if self._has_kinds_of_files and type(file).poll is File.poll:
            # ENOSYS would apply to all files of the device, and some of them may have poll.
            pending.reply(poll_answer(DEFAULT_POLLMASK, None))
            return
        if flags & FUSE_POLL_SCHEDULE_NOTIFY:
            # This comes before the file is asked: a change after its answer must be reported.
            notify_once(file, kh, pending.send)
        self._runner.run(pending, file.poll, poll_answer, None, events)

    def _tell_of_new_files(self, method: str) -> None:
        if not self._told_of_new_files:
            self._told_of_new_files = True
            log.error(
                "%s makes a file, which this kernel half does not take: EOPNOTSUPP for the program",
                method,
            )

    def _release(self, pending: PendingReply) -> None:
        (handle,) = pick_release(pending.message)
        file = self._files.pop(handle, None)
        if file is None:
            pending.fail(errno.EBADF)
            return
        self._retries.forget(handle)
        self._runner.run(pending, file.release, release_answer, None)

    def _mmap(self, pending: PendingReply) -> None:
        (handle,) = pick_mmap(pending.message)
        file = self._files.get(handle)
        if file is None:
            pending.fail(errno.EBADF)
            return
        self._mappings.mmap(pending, file)

    def _show(self, pending: PendingReply) -> None:
        path = os.fsdecode(pending.message[_HEADER_SIZE:].rstrip(b"\0"))
        value = self.device.sysfs.get(path)
        if value is None or isinstance(value, Link):
            pending.fail(errno.ENOENT)
        elif isinstance(value, str | bytes):
            pending.reply(encoded(value))
        else:
            self._runner.run(pending, value, show_answer, None, self.device)

    def _interrupt(self, pending: PendingReply) -> None:
        (unique,) = pick_interrupt(pending.message)
        if not self._runner.interrupt(unique):
            # Either it has been answered already, and nothing has to be done. Or another thread has
            # read the request but has not got here with it: then the kernel half sends this again.
            pending.fail(errno.EAGAIN)


def _init_answer(device: Device, minor: int, offered: int) -> bytes:
    flags = RECUSE_NODE_INFO | RECUSE_NEW_FILES | RECUSE_SYSFS | RECUSE_MAPPING | RECUSE_FILE_FLAGS
    if device.unrestricted:
        flags |= CUSE_UNRESTRICTED_IOCTL
    if device.seekable:
        flags |= RECUSE_SEEKABLE
    flags &= offered
    answer = cuse_init_out(
        major=FUSE_KERNEL_VERSION,
        minor=minor,
        flags=flags,
        max_read=device.max_read,
        max_write=device.max_write,
        dev_major=device.major,
        dev_minor=device.minor,
    )
    return answer.pack() + device_info(device, flags)
