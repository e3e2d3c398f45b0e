"""The server's end of a connection, for a server that is a program in the sandbox.

The program reads requests and writes replies (fs/fuse/dev.c; Linux 6.1). Nothing here looks into a
message.
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
from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.request import Request
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.records import NamedTuple
from recuse.sandbox.files.description import FileDescription, IoVecs, PollSource
from recuse.sandbox.files.native_end import POLLERR
from recuse.sandbox.files.pipe_end import PipeEnd
from recuse.sandbox.tasks.memory import UnreadableError, read_memory, write_memory
from recuse.sandbox.trap.answers import ANSWERED
from recuse.sandbox.trap.call import TrappedCall
from recuse.sandbox.vfs.dentry import Location

_LARGEST_REPLY: Final = 1 << 25
_PAGE: Final = 4096
_UNIQUE = struct.Struct("=8xQ")
_REPLY = struct.Struct("=IiQ")


class _Reader(NamedTuple):
    """A thread that waits for a request."""

    call: TrappedCall
    file: ServerFile
    size: int
    """For how many bytes there is room."""
    store: Callable[[bytes], None]
    """Puts a message there. OSError, UnreadableError: if it cannot."""


class ServerChannel:
    """The open files of one server, and the threads that wait in them for a request."""

    def __init__(self, connection: Connection) -> None:
        """Make it of a connection, which ends when the last of its files is closed."""
        self.connection = connection
        self._lock = new_lock("ServerChannel")
        self._files: list[ServerFile] = []
        self._taken: dict[int, ServerFile] = {}
        """The requests in processing, by their numbers, if there are several files: a reply comes
        through the file by which the request was read."""
        self._lost: list[tuple[int, int]] = []
        """Requests that nobody will answer, each with the errno that it ends with."""
        self._finished: list[Request] = []
        """Requests that reading has ended. Those that wait for them are told without the lock,
        because their next step may be a request of this connection."""
        self._readers: deque[_Reader] = deque()
        # A new descriptor is readable. That is right, because INIT can be read.
        self._signalled = True
        connection.on_pending = self._serve_readers
        connection.at_end(self._serve_readers)

    def join(self, file: ServerFile) -> None:
        """Have one more file."""
        with self._lock:
            self._files.append(file)
            if not self._signalled:
                _lower(file)

    def leave(self, file: ServerFile) -> None:
        """A file was closed (fs/fuse/dev.c, fuse_dev_release)."""
        with self._lock:
            self._files.remove(file)
            last = not self._files
            gone = [unique for unique, by in self._taken.items() if by is file]
            self._lost += [(unique, errno.ECONNABORTED) for unique in gone]
        if last:
            self.connection.abort()
        else:
            self._end_lost()

    def read(self, reader: _Reader) -> int:
        """Give the caller the next request, or have it wait for one; see `ServerFile.read`."""
        try:
            with self._lock:
                try:
                    return self._take(reader)
                except BlockingIOError:
                    if reader.file.flags & os.O_NONBLOCK:
                        raise
                    self._readers.append(reader)
                    reader.call.wait(self._interrupt)
                    return ANSWERED
        finally:
            self._end_lost()

    def _take(self, reader: _Reader) -> int:
        try:
            message = self.connection.read(reader.size, self._finished)
        finally:
            # A request may also have been there that did not fit.
            self._settle()
        try:
            reader.store(message)
        except (OSError, UnreadableError) as error:
            self._lost.append((*_UNIQUE.unpack_from(message), errno.EIO))
            code = error.errno if isinstance(error, OSError) else None
            raise os_error(code or errno.EFAULT) from None
        if len(self._files) > 1:
            self._taken[_UNIQUE.unpack_from(message)[0]] = reader.file
        return len(message)

    def _end_lost(self) -> None:
        """End requests that were taken out of the queue and will not be answered.

        This is done without the lock; see `_finished`.
        """
        if self._finished:
            with self._lock:
                finished, self._finished = self._finished, []
            self.connection.tell_finished(finished)
        while self._lost:
            with contextlib.suppress(OSError, IndexError):
                unique, code = self._lost.pop()
                self._taken.pop(unique, None)
                self.connection.write(_REPLY.pack(_REPLY.size, -code, unique))

    def _interrupt(self, call: TrappedCall, fatal: bool) -> None:
        del fatal
        with self._lock:
            for reader in self._readers:
                if reader.call is call:
                    self._readers.remove(reader)
                    call.restart()
                    return

    def _settle(self) -> None:
        """Make the descriptors unreadable if no request is left. The lock is held."""
        connection = self.connection
        if self._signalled and not connection.readable and not connection.ended:
            self._signalled = False
            for file in self._files:
                _lower(file)

    def _serve_readers(self) -> None:
        """There is a request to read, or there will be none any more."""
        self._hand_out()
        self._end_lost()

    def _hand_out(self) -> None:
        with self._lock:
            while self._readers:
                reader = self._readers[0]
                call = reader.call
                if not call.alive():
                    self._readers.popleft()
                    continue
                size, number = 0, 0
                try:
                    size = self._take(reader)
                except BlockingIOError:
                    return
                except OSError as error:
                    number = error.errno or errno.EIO
                self._readers.popleft()
                if number:
                    call.fail(number)
                else:
                    call.answer(size)
            if not self._signalled and (self.connection.readable or self.connection.ended):
                self._signalled = True
                for file in self._files:
                    file.end.make_readable()

    def write(self, file: ServerFile, message: bytes, size: int) -> None:
        """Take a reply of ``size`` bytes, of which the end may be missing; see `ServerFile`."""
        if self._taken and len(message) >= _REPLY.size:
            (unique,) = _UNIQUE.unpack_from(message)
            if self._taken.get(unique, file) is not file:
                raise os_error(errno.ENOENT)
            self._taken.pop(unique, None)
        try:
            if len(message) < size:
                self.connection.write_torn(message, size)
            self.connection.write(message)
        finally:
            if self._signalled:
                # The request's INTERRUPT, which nobody has read, was removed with it.
                with self._lock:
                    self._settle()
        if message[8] & 1:
            # A reply to an INTERRUPT, which may ask for another INTERRUPT.
            self._serve_readers()


class ServerFile(FileDescription):
    """An open file by which a program serves."""

    __slots__ = ("_source", "channel")

    def __init__(self, location: Location, flags: int, channel: ServerChannel | None) -> None:
        """Make it; without a channel, it is not clear yet what is served. OSError: ENFILE."""
        super().__init__(location, flags, PipeEnd())
        self.channel: ServerChannel | None = None
        self._source = _Source(self)
        if channel is not None:
            self.serve(channel)

    def serve(self, channel: ServerChannel) -> None:
        """Take requests from a channel from now on."""
        self.channel = channel
        channel.join(self)

    def _served(self) -> ServerChannel:
        # fs/fuse/dev.c, fuse_get_dev
        if self.channel is None:
            raise os_error(errno.EPERM)
        return self.channel

    def release(self, released: Callable[[], None]) -> None:
        """Have the server go, if this is its last file, and end what waits for it."""
        if self.channel is not None:
            self.channel.leave(self)
        released()

    def read(self, call: TrappedCall, segments: IoVecs, position: int | None = None) -> int:
        """Give the caller the next request, or have it wait for one.

        Raises:
            OSError: EPERM if nothing is served; EAGAIN if there is no request and O_NONBLOCK is
                set; EINVAL for a buffer that is smaller than any may be; ENODEV when the connection
                has ended; EFAULT.
        """
        size = sum(length for _, length in segments)

        def store(message: bytes) -> None:
            _scatter(call.tid, segments, message)

        return self._served().read(_Reader(call, self, size, store))

    def splice_to(self, call: TrappedCall, pipe: int, size: int) -> int:
        """Put the next request into a pipe of the caller's (fuse_dev_splice_read).

        Raises:
            OSError: as `read`; EINVAL if it is no pipe; EIO if it has no room for the request,
                which then ends too.
        """
        from recuse.sandbox.files.pipes import (  # noqa: PLC0415 - few servers splice
            check_pipe,
            fill_pipe,
        )

        check_pipe(call.tid, pipe)

        def store(message: bytes) -> None:
            fill_pipe(call.tid, pipe, message)

        return self._served().read(_Reader(call, self, size, store))

    def write(
        self,
        call: TrappedCall,
        segments: IoVecs,
        position: int | None = None,
        flags: int = 0,
    ) -> int:
        """Take a reply from the caller.

        Raises:
            OSError: as :meth:`recuse.kernel.connection.connection.Connection.write`; EFAULT; EPERM
                if nothing is served.
        """
        channel = self._served()
        size = sum(length for _, length in segments)
        # If it is too large for any request, its beginning is enough to report that.
        message = _gather(call.tid, segments, _LARGEST_REPLY if size <= _LARGEST_REPLY else _PAGE)
        channel.write(self, message, size)
        return size

    def splice_from(self, call: TrappedCall, pipe: int, size: int) -> int:
        """Take a reply of that size out of a pipe of the caller's (fuse_dev_splice_write).

        Raises:
            OSError: as `write`; EINVAL if the pipe has less in it.
        """
        from recuse.sandbox.files.pipes import take_from_pipe  # noqa: PLC0415 - few servers splice

        channel = self._served()
        channel.write(self, take_from_pipe(call.tid, pipe, min(size, _LARGEST_REPLY)), size)
        return size

    @property
    def ended(self) -> bool:
        """Whether there will be no requests any more."""
        return self.channel is not None and self.channel.connection.ended

    @property
    def poll_source(self) -> PollSource:
        """The file itself, before it serves and after the end: then it has an error."""
        return self._source

    def poll(self, caller: Caller, events: int, waiting: bool) -> int:
        """Answer with an error (fs/fuse/dev.c, fuse_dev_poll)."""
        return POLLERR

    def wake_by(self, changed: Callable[[], None]) -> None:
        """Do nothing: an error lasts until the file is no longer asked."""


class _Source:
    """Asks a server's file for its readiness while its descriptor cannot show that."""

    __slots__ = ("_file",)

    def __init__(self, file: ServerFile) -> None:
        self._file = file

    @property
    def no_poll(self) -> bool:
        """Whether the descriptor shows it."""
        return self._file.channel is not None and not self._file.ended


def _lower(file: ServerFile) -> None:
    file.end.lower(_no_copy, drain=True, fill=False, spare=False)


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
