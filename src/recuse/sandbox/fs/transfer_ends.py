"""The ends of a sendfile(2) or splice(2): where bytes come from, and where they go."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from recuse.channel.workers import TICK
from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.reading import NO_PLACES
from recuse.kernel.fs.regular import RegularFile
from recuse.runtime.room import keeping
from recuse.runtime.threads import must_not_block, no_more
from recuse.sandbox.files.description import NO_APPEND
from recuse.sandbox.fs.caller import caller_of, send_signal
from recuse.sandbox.fs.file import OpenedFile
from recuse.sandbox.tasks.memory import read_memory, write_memory

if TYPE_CHECKING:
    from recuse.kernel.fs.credentials import FileCaller
    from recuse.sandbox.trap.borrowing import Borrowing
    from recuse.sandbox.trap.call import TrappedCall

_SPLICE_F_NONBLOCK: Final = 2
_F_GETPIPE_SZ: Final = 1032
_PAGE: Final = 4096
_SYNC: Final = os.O_SYNC & ~os.O_DSYNC
_OFFSET: Final = {8: struct.Struct("=q"), 4: struct.Struct("=i")}
_TIMEVAL: Final = struct.Struct("@ll")

_tee = ctypes.CDLL(None, use_errno=True).tee
_tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_tee.restype = ctypes.c_ssize_t


class AgainError(Exception):
    """There is nothing to do yet, and the thread has to make its call once more."""


def put(
    file: RegularFile, caller: FileCaller, data: bytes, position: int | None, flags: int
) -> Operation[int]:
    """Write, and sync if the file's flags or these ones say so; see `FileDescription.write`."""
    appends = None
    if flags & (os.O_APPEND | NO_APPEND):
        appends = not flags & NO_APPEND
    written = yield from file.write(caller, data, position, appends)
    flags |= file.flags
    if written and flags & (os.O_SYNC | os.O_DSYNC):
        # fs/fuse/file.c, generic_write_sync
        yield from file.sync(caller, data_only=not flags & _SYNC)
    return written


class Place:
    """Where an end is read or written: at an offset in the caller's memory, or its own position."""

    def __init__(self, call: TrappedCall, address: int, width: int) -> None:
        self._call = call
        self._address = address
        self._layout = _OFFSET[width]
        self.position = 0

    @property
    def is_own(self) -> bool:
        """Whether it is the file's own position."""
        return not self._address

    def read(self) -> None:
        """Read it from memory. OSError: EFAULT, EINVAL."""
        data = read_memory(self._call.tid, self._address, self._layout.size)
        if len(data) < self._layout.size:
            raise os_error(errno.EFAULT)
        (self.position,) = self._layout.unpack(data)

    def write(self) -> None:
        """Store it there. OSError: EFAULT."""
        data = self._layout.pack(self.position)
        if write_memory(self._call.tid, self._address, data) < len(data):
            raise os_error(errno.EFAULT)


class _Placed:
    """An end that has a place."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def position(self) -> int:
        return self._place.position

    def advance(self, count: int) -> None:
        self._place.position += count


class FileEnd(_Placed):
    """A filesystem's file, from or to which bytes go."""

    def __init__(self, call: TrappedCall, file: OpenedFile, place: Place) -> None:
        """Begin. OSError: EFAULT, EINVAL; ESPIPE for a place in a file that has none."""
        assert isinstance(file.kernel_file, RegularFile)
        super().__init__(place)
        self._call = call
        self._tree = file.mounted
        self._file = file.kernel_file
        if place.is_own:
            place.position = self._file.position
        elif self._file.open_flags & NO_PLACES:
            raise os_error(errno.ESPIPE)
        else:
            place.read()
        if place.position < 0:
            raise os_error(errno.EINVAL)

    def take(self, size: int, ahead: int = 0) -> bytes:
        """Read, so many bytes ahead of the position; `advance` says how many were used."""
        position = self._place.position + ahead
        operation = self._file.read(caller_of(self._call), size, position)
        return self._call.complete(self._tree, self._tree.whole(operation))

    def put(self, data: bytes) -> int:
        """Write."""
        operation = put(self._file, caller_of(self._call), data, self._place.position, 0)
        written = self._call.complete(self._tree, self._tree.whole(operation))
        self.advance(written)
        return written

    def settle(self) -> None:
        """Note the position where it belongs. OSError: EFAULT."""
        if self._place.is_own:
            self._file.position = self._place.position
        else:
            self._place.write()

    def close(self) -> None:
        """There is nothing to close."""


class NativeEnd(_Placed):
    """A native regular file from which bytes come."""

    def __init__(self, copy: int, place: Place) -> None:
        super().__init__(place)
        self._copy = copy
        if place.is_own:
            place.position = os.lseek(copy, 0, os.SEEK_CUR)
        else:
            place.read()
            if place.position < 0:
                raise os_error(errno.EINVAL)

    def take(self, size: int) -> bytes:
        return os.pread(self._copy, size, self._place.position)

    def settle(self) -> None:
        if self._place.is_own:
            os.lseek(self._copy, self._place.position, os.SEEK_SET)
        else:
            self._place.write()

    def close(self) -> None:
        os.close(self._copy)


class _Stream:
    """A pipe or socket, and how to wait for it.

    Whoever may not wait, by O_NONBLOCK or SPLICE_F_NONBLOCK, gets EAGAIN.
    """

    def __init__(self, call: TrappedCall, lender: Borrowing, descriptor: int, waits: bool) -> None:
        self._call = call
        self._lender = lender
        self.waits = waits
        self._deadline: float | None = None
        self.descriptor = descriptor

    def wait(self, events: int) -> None:
        """Wait for one of these events.

        Raises:
            OSError: EAGAIN, EINTR.
            AgainError: the thread is stopped, and cannot get its signals.
        """
        if not self.waits:
            raise os_error(errno.EAGAIN)
        poll = select.poll()
        poll.register(self.descriptor, events)
        self._call.watch()
        while not poll.poll(TICK * 1000):
            if self._lender.has_lent:
                raise AgainError
            if must_not_block():
                raise no_more()
            if self._call.interrupted or not self._call.alive():
                raise os_error(errno.EINTR)
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise os_error(errno.EAGAIN)

    def close(self) -> None:
        os.close(self.descriptor)


class Pipe(_Stream):
    """A pipe, opened once more."""

    @classmethod
    def opened(
        cls, call: TrappedCall, lender: Borrowing, number: int, how: int, waits: bool
    ) -> Pipe:
        """Open it for reading or for writing. OSError: EPIPE if nobody reads; EINVAL."""
        try:
            with keeping():
                descriptor = os.open(
                    f"/proc/{call.tid}/fd/{number}", how | os.O_NONBLOCK | os.O_CLOEXEC
                )
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise broken(call) from None
            raise os_error(errno.EINVAL) from None
        return cls(call, lender, descriptor, waits)

    def room(self, position: int) -> int:
        """How much one call moves at most: what a page of the file has fills a slot of it."""
        size = fcntl.fcntl(self.descriptor, _F_GETPIPE_SZ)
        return max(size - position % _PAGE, _PAGE)

    def put(self, data: bytes) -> int:
        """Write what there is room for, at least a byte."""
        while True:
            try:
                return os.write(self.descriptor, data)
            except BlockingIOError:
                self.wait(select.POLLOUT)
            except BrokenPipeError:
                raise broken(self._call) from None

    def look(self, size: int, scratch: tuple[int, int]) -> bytes:
        """Copy what comes next; it stays there. Empty if nothing will come."""
        reads, writes = scratch
        while True:
            copied = _tee(self.descriptor, writes, size, _SPLICE_F_NONBLOCK)
            if copied >= 0:
                return os.read(reads, copied) if copied else b""
            if ctypes.get_errno() != errno.EAGAIN:
                raise os_error(ctypes.get_errno())
            self.wait(select.POLLIN)

    def drop(self, count: int) -> None:
        """Take out what was looked at."""
        while count:
            count -= len(os.read(self.descriptor, count)) or count


class Socket(_Stream):
    """A copy of a socket."""

    def __init__(self, call: TrappedCall, lender: Borrowing, descriptor: int, waits: bool) -> None:
        super().__init__(call, lender, descriptor, waits)
        self._socket = socket.socket(fileno=descriptor)
        data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.size)
        seconds, microseconds = _TIMEVAL.unpack(data)
        if seconds or microseconds:
            self._deadline = time.monotonic() + seconds + microseconds / 1e6

    def put(self, data: bytes) -> int:
        """Send what there is room for, at least a byte."""
        while True:
            try:
                return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self.wait(select.POLLOUT)
            except BrokenPipeError:
                raise broken(self._call) from None

    def close(self) -> None:
        self._socket.close()


def broken(call: TrappedCall) -> OSError:
    """The error if nobody reads any more; the thread gets the signal too."""
    send_signal(call.tid, signal.SIGPIPE)
    return os_error(errno.EPIPE)
