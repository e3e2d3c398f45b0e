"""What every open file has in the kernel half: `struct fuse_file` (fs/fuse/file.c), and its end.

An operation counts as running on its file from its first step to its last.  RELEASE is sent once,
when the file has been released, no operation runs on it and no mapping of it is left: by
`FuseFile.release`, or by the last operation before it returns, like the last fput in Linux.
"""

import errno
import sys
from typing import TypeVar

from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import Request
from recuse.kernel.errors import os_error
from recuse.wire.fuse import FUSE_RELEASE, fuse_release_in
from recuse.wire.ids import Kh

T = TypeVar("T")


class FuseFile:
    """What a descriptor (and its copies) refers to.

    fh
        The server's number for it, None if the server knows nothing of open files.
    kh
        The kernel half's own, by which the server says that it is ready for something.
    flags
        Of open(2), and what fcntl(F_SETFL) makes of them; READ, WRITE and RELEASE carry them.
    """

    __slots__ = ("_connection", "_owed", "_released", "_running", "fh", "flags", "kh")

    def __init__(self, connection: Connection, fh: int | None, flags: int, kh: Kh) -> None:
        self._connection = connection
        self.fh = fh
        self.flags = flags
        self.kh = kh
        # Appending to a list and popping from it are atomic, unlike counting, and take a fifth of
        # the time of a lock.  An operation first says that it runs and then looks whether the file
        # is released; `release` first says so and then looks whether an operation runs: one of the
        # two sees the other.
        self._running: list[None] = []
        """One entry for each operation that runs, and for each mapping."""
        self._released = False
        self._owed: list[None] = [None]
        """One entry, which whoever sends RELEASE takes."""

    def running(self, operation: Operation[T], mapped: bool = False) -> Operation[T]:
        """Run an operation on the file, from its first step on.

        ``mapped``: it is the end of what `hold` has begun, which counts as running already.

        Raises OSError: EBADF if the file was released; what the operation raises.
        """
        if not mapped:
            self._running.append(None)
        try:
            if self._released and not mapped:
                raise os_error(errno.EBADF)
            return (yield from operation)
        finally:
            self._running.pop()
            if self._released and self._takes_release():
                yield from self._send_release()

    def hold(self) -> None:
        """Keep the file from being released until ``running(..., mapped=True)``: it is mapped.

        Only while an operation runs on it.
        """
        self._running.append(None)

    def release(self) -> Operation[None]:
        """Let the file go: the last descriptor of it was closed.  Again, do nothing.

        Ends when the server has answered RELEASE, whatever that answer is; at once if operations
        still run on the file, the last of which then sends it, or if it is mapped.
        """
        self._released = True
        self._unlock()
        if self._takes_release():
            yield from self._send_release()

    def _unlock(self) -> None:
        """Give up its locks, which is before RELEASE (fs/file_table.c, __fput)."""

    def _takes_release(self) -> bool:
        """Whether it is up to the caller to send RELEASE."""
        # A generator that is thrown away may not yield any more.
        if self._running or sys.exc_info()[0] is GeneratorExit:
            return False
        try:
            self._owed.pop()
        except IndexError:
            return False
        return True

    def _send_release(self) -> Operation[None]:
        self._connection.polled.remove(self.kh)
        if self.fh is not None:
            # Without a caller in its header (fs/fuse/file.c, fuse_prepare_release: nocreds).
            release = fuse_release_in(fh=self.fh, flags=self.flags)
            yield Request(FUSE_RELEASE, release.pack(), force=True)
