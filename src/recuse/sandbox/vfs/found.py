"""What a path leads to, as a thread of a program sees it."""

from __future__ import annotations

import errno
import os
import stat

from recuse.runtime.records import NamedTuple
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import Location, lone
from recuse.sandbox.vfs.nodes import Node, native_node
from recuse.wire.ids import Tid


class AbsentError(FileNotFoundError):
    """A name is missing in a directory that exists only in the sandbox.

    Calls that would create the name fail with another error: nobody can create one there.
    """

    def __init__(self, directory: Location, name: bytes, slashes: bool) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT))
        self.directory = directory
        self.name = name
        """The last name of the path, or of what the last symbolic link holds."""
        self.slashes = slashes
        """Whether slashes follow it."""


class NativeFile:
    """A native file, held by a descriptor that opens nothing as long as this object lives."""

    def __init__(self, file: int, status: os.stat_result, directory: os.stat_result | None) -> None:
        """Take a copy of a descriptor.

        Args:
            file: the descriptor.
            status: its status.
            directory: the directory in which it was found by its name; None if there was none.
        """
        self.status = status
        self.directory = directory
        self.descriptor = -1
        self.descriptor = os.dup(file)

    @property
    def of_the_opener(self) -> bool:
        """Whether its content may depend on who opens it, like files of ``/proc``."""
        return native_files.depends_on_opener(self.descriptor)

    @property
    def path(self) -> bytes:
        """Its path from the supervisor's root."""
        return native_files.path_of(self.descriptor)

    def path_for(self, tid: Tid) -> bytes:
        """A path by which a thread finds it. OSError: ENOENT if there is none."""
        return native_files.path_to(tid, self.descriptor, self.status)

    @property
    def may_wait(self) -> bool:
        """Whether opening it may wait for another program, as with a FIFO."""
        return stat.S_ISFIFO(self.status.st_mode) and not native_files.is_pipe(self.descriptor)

    def location(self) -> Location:
        """The file as if it were one of recuse's; for looking only."""
        return lone(native_node(self.descriptor), self.path)

    def __del__(self) -> None:
        file, self.descriptor = self.descriptor, -1
        if file >= 0:
            os.close(file)


class OutsideError(FileNotFoundError):
    """A path leads through a directory or link of recuse's to a native file.

    The kernel cannot find the file by that path. Calls that only look at a file are answered for
    it. Some others are made again with its native path (`recuse.sandbox.syscalls.elsewhere`). For
    all others the file seems to be missing.
    """

    def __init__(self, file: NativeFile, links: int, magic: bool) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT))
        self.file = file
        self.links = links
        """Like that of :class:`Found`."""
        self.magic = magic


class NativelyAbsentError(FileNotFoundError):
    """A path leads through a directory or link of recuse's to a name that is natively missing.

    Only the last name is missing. Calls that would create it have to create it there.
    """

    def __init__(self, path: bytes) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT))
        self.path = path
        """Its path, from the supervisor's root."""


class Found(NamedTuple):
    """What a path leads to."""

    location: Location
    link: bool = False
    """Whether the path names a ``/proc/PID/fd`` link to it that must not be followed."""
    links: int = 0
    """How many symbolic links were followed."""
    magic: bool = False
    """Whether one of them was a ``/proc/PID/fd`` link."""
    native: NativeFile | None = None
    """The native file itself, if the node only looks like it."""

    @property
    def node(self) -> Node:
        """The node that is there."""
        return self.location.dentry.node
