"""Files that were opened with O_PATH: they only name something (fs/open.c, fs/file.c).

Calls that need an open file fail with EBADF (fdget and fdget_raw). Natively such a descriptor is a
socket, so none of these calls may be left to the kernel.
"""

from __future__ import annotations

from typing import ClassVar

from recuse.sandbox.files.description import FileDescription, PollSource
from recuse.sandbox.files.socket_end import SocketEnd
from recuse.sandbox.vfs.dentry import Location


class _Nobody:
    """It is not asked, but its end shows the readiness of a socket."""

    no_poll = False


_NOBODY = _Nobody()


class PathFile(FileDescription):
    """A file's location, opened with O_PATH."""

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
