"""What all open files have in common in the kernel half: `struct fuse_file` (fs/fuse/file.c).

An operation counts as running on its file from its first step to its last. RELEASE is sent once,
when three things are true: the file has been released, no operation runs on it, and no mapping of
it is left. `FuseFile.release` sends it, or the last operation does before it returns, like the last
fput in Linux.
"""

from __future__ import annotations

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
        The server's number for it, None if the server does not know about open files.
    kh
        The kernel half's own number. The server uses it to say that the file is ready.
    flags
        From open(2), later changed by fcntl(F_SETFL). READ, WRITE and RELEASE carry them.
    """

    __slots__ = ("_connection", "_owed", "_released", "_running", "fh", "flags", "kh")

    def __init__(self, connection: Connection, fh: int | None, flags: int, kh: Kh) -> None:
        self._connection = connection
        self.fh = fh
        self.flags = flags
        self.kh = kh
        # Appending to a list and popping from it are atomic, unlike counting, and take a fifth of
        # the time of a lock. An operation first records that it runs, then checks whether the file
        # is released. `release` first records the release, then checks whether an operation runs.
        # So at least one of the two sees the other.
        self._running: list[None] = []
        """One entry for each operation that runs, and for each mapping."""
        self._released = False
        self._owed: list[None] = [None]
        """One entry. Only the code that takes it sends RELEASE."""

    def running(self, operation: Operation[T], mapped: bool = False) -> Operation[T]:
        """Run an operation on the file, which counts as running from its first step.

        ``mapped``: the operation ends what `hold` began, so it already counts as running.

        Raises OSError: EBADF if the file was released; or what the operation raises.
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
        """Keep the file from being released until ``running(..., mapped=True)``, as it is mapped.

        Call this only while an operation runs on the file.
        """
        self._running.append(None)

    def release(self) -> Operation[None]:
        """Release the file: its last descriptor was closed. A second call does nothing.

        Ends when the server has answered RELEASE, whatever the answer is. If operations still run
        on the file, it ends at once, and the last of them sends RELEASE. It also ends at once if
        the file is mapped.
        """
        self._released = True
        self._unlock()
        if self._takes_release():
            yield from self._send_release()

    def _unlock(self) -> None:
        """Give up the file's locks. This happens before RELEASE (fs/file_table.c, __fput)."""

    def _takes_release(self) -> bool:
        """Whether the caller has to send RELEASE."""
        # A generator that is being closed must not yield any more.
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
            # The header names no caller (fs/fuse/file.c, fuse_prepare_release: nocreds).
            release = fuse_release_in(fh=self.fh, flags=self.flags)
            yield Request(FUSE_RELEASE, release.pack(), force=True)
