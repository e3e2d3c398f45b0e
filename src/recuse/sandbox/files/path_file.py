"""Files that were opened with O_PATH: they name something, and open nothing (fs/open.c, fs/file.c).

What needs an open file fails with EBADF (fdget and fdget_raw). Natively such a descriptor is a
socket, so that nothing of that may be left to the kernel.
"""

from __future__ import annotations

from typing import ClassVar

from recuse.sandbox.files.description import FileDescription, PollSource
from recuse.sandbox.files.socket_end import SocketEnd
from recuse.sandbox.vfs.dentry import Location


class _Nobody:
    """It is not asked, but its end shows what a socket is ready for."""

    no_poll = False


_NOBODY = _Nobody()


class PathFile(FileDescription):
    """The place of a file."""

    __slots__ = ()

    opened: ClassVar[bool] = False

    def __init__(self, location: Location, flags: int) -> None:
        """Make it. OSError: ENFILE."""
        super().__init__(location, flags, SocketEnd())
        self.readable = self.writable = False

    @property
    def poll_source(self) -> PollSource:
        """Nobody."""
        return _NOBODY
