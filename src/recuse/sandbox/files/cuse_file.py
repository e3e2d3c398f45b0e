"""``/dev/cuse``: programs in the sandbox that serve devices (fs/fuse/dev.c, fs/fuse/cuse.c; 6.1).

A program opens it, reads requests and writes replies. At the other end is a connection of the
kernel half. Nothing here looks into a message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from recuse.kernel.caller import Caller
from recuse.kernel.char.cuse import CuseChannel
from recuse.kernel.char.devices import DeviceTable
from recuse.kernel.connection.request import Request
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.sandbox.files.description import FileDescription, IoVecs
from recuse.sandbox.files.pipe_end import PipeEnd
from recuse.sandbox.tasks.memory import UnreadableError, read_memory, write_memory
from recuse.sandbox.trap.answers import ANSWERED
from recuse.sandbox.trap.call import TrappedCall
from recuse.sandbox.vfs.dentry import Location

_LARGEST_REPLY: Final = 1 << 25
_PAGE: Final = 4096
_UNIQUE = struct.Struct("=8xQ")
_REPLY = struct.Struct("=IiQ")


class CuseFile(FileDescription):
    """One open ``/dev/cuse``, and the threads that wait in it for a request."""

    __slots__ = (
        "_connection",
        "_cuse",
        "_finished",
        "_lock",
        "_lost",
        "_readers",
        "_signalled",
    )

    def __init__(self, location: Location, flags: int, table: DeviceTable, caller: Caller) -> None:
        """Make the connection; CUSE_INIT can be read at once. OSError: ENFILE."""
        super().__init__(location, flags, PipeEnd())
        self._cuse = CuseChannel(table, caller.pid, caller.uid, caller.gid)
        self._connection = self._cuse.connection
        self._lock = new_lock("CuseFile")
        self._lost: list[int] = []
        self._finished: list[Request] = []
        """Requests that reading has ended. Those that wait for them are told without the lock,
        because their next step may be a request of this connection."""
        self._readers: deque[tuple[TrappedCall, IoVecs]] = deque()
        # A new descriptor is readable. That is right, because CUSE_INIT can be read.
        self._signalled = True
        self._connection.on_pending = self._serve_readers
        self._connection.at_end(self._serve_readers)

    def release(self, released: Callable[[], None]) -> None:
        """End the device, and everything that waits for it."""
        self._cuse.close()
        released()

    def read(
        self,
        call: TrappedCall,
        segments: IoVecs,
        position: int | None = None,
    ) -> int:
        """Give the caller the next request, or have it wait for one.

        Raises:
            OSError: EAGAIN if there is none and O_NONBLOCK is set; EINVAL for a buffer that is
                smaller than any may be; ENODEV when the connection has ended; EFAULT.
        """
        try:
            with self._lock:
                try:
                    return self._take(call, segments)
                except BlockingIOError:
                    if self.flags & os.O_NONBLOCK:
                        raise
                    self._readers.append((call, segments))
                    call.wait(self._interrupt)
                    return ANSWERED
        finally:
            self._end_lost()

    def _take(self, call: TrappedCall, segments: IoVecs) -> int:
        try:
            message = self._connection.read(sum(length for _, length in segments), self._finished)
        finally:
            # A request may also have been there that did not fit.
            self._settle()
        try:
            _scatter(call.tid, segments, message)
        except (OSError, UnreadableError):
            self._lost += _UNIQUE.unpack_from(message)
            raise os_error(errno.EFAULT) from None
        return len(message)

    def _end_lost(self) -> None:
        """End with EIO the requests that were taken out of the queue but not delivered.

        This is done without the lock; see `_finished`.
        """
        if self._finished:
            with self._lock:
                finished, self._finished = self._finished, []
            self._connection.tell_finished(finished)
        while self._lost:
            with contextlib.suppress(OSError, IndexError):
                self._connection.write(_REPLY.pack(_REPLY.size, -errno.EIO, self._lost.pop()))

    def _interrupt(self, call: TrappedCall, fatal: bool) -> None:
        del fatal
        with self._lock:
            for reader in self._readers:
                if reader[0] is call:
                    self._readers.remove(reader)
                    call.restart()
                    return

    def _settle(self) -> None:
        """Make the descriptor unreadable if no request is left. The lock is held."""
        connection = self._connection
        if self._signalled and not connection.readable and not connection.ended:
            self._signalled = False
            self.end.lower(_no_copy, drain=True, fill=False, spare=False)

    def _serve_readers(self) -> None:
        """There is a request to read, or there will be none any more."""
        self._hand_out()
        self._end_lost()

    def _hand_out(self) -> None:
        with self._lock:
            while self._readers:
                call, segments = self._readers[0]
                if not call.alive():
                    self._readers.popleft()
                    continue
                size, number = 0, 0
                try:
                    size = self._take(call, segments)
                except BlockingIOError:
                    return
                except OSError as error:
                    number = error.errno or errno.EIO
                self._readers.popleft()
                if number:
                    call.fail(number)
                else:
                    call.answer(size)
            if not self._signalled and (self._connection.readable or self._connection.ended):
                self._signalled = True
                self.end.make_readable()

    def write(
        self,
        call: TrappedCall,
        segments: IoVecs,
        position: int | None = None,
        flags: int = 0,
    ) -> int:
        """Take a reply from the caller.

        Raises:
            OSError: as :meth:`recuse.kernel.connection.connection.Connection.write`; EFAULT.
        """
        size = sum(length for _, length in segments)
        # If it is too large for any request, its beginning is enough to report that.
        message = _gather(call.tid, segments, _LARGEST_REPLY if size <= _LARGEST_REPLY else _PAGE)
        try:
            if len(message) < size:
                self._connection.write_torn(message, size)
            self._connection.write(message)
        finally:
            if self._signalled:
                # The request's INTERRUPT, which nobody has read, was removed with it.
                with self._lock:
                    self._settle()
        if message[8] & 1:
            # A reply to an INTERRUPT, which may ask for another INTERRUPT.
            self._serve_readers()
        return size


def _no_copy() -> int:
    """A pipe can show everything without a copy of the programs' end."""
    raise os_error(errno.EBADF)


def _gather(tid: int, segments: IoVecs, limit: int) -> bytes:
    """Read from the segments, up to the first byte that cannot be read, or the limit."""
    parts = []
    for address, length in segments:
        length = min(length, limit)
        limit -= length
        try:
            part = read_memory(tid, address, length)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            break
        parts.append(part)
        if len(part) < length or not limit:
            break
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _scatter(tid: int, segments: IoVecs, message: bytes) -> None:
    """Write all of a message into the segments, or raise EFAULT."""
    done = 0
    for address, length in segments:
        part = message[done : done + length]
        if write_memory(tid, address, part) < len(part):
            raise os_error(errno.EFAULT)
        done += len(part)
        if done == len(message):
            return
