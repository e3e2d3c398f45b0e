"""What a mounted filesystem decides about its files: everything.

A device's file is a node, and the handlers of system calls look at it. A filesystem's files are
its server's and its kernel half's (:mod:`recuse.sandbox.fs`), so the handlers leave the calls to
their tree.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.runtime.records import NamedTuple
from recuse.sandbox.arch.status import Status
from recuse.sandbox.vfs.dentry import Dentry, Location

if TYPE_CHECKING:
    from recuse.kernel.connection.connection import Connection
    from recuse.sandbox.trap.call import OnDevice, Outcome, Steps, TrappedCall


class Place(NamedTuple):
    """Where a name is to be made, moved or removed."""

    directory: Location
    name: bytes
    """b"" if the path has none: "/"; it may also be "." or ".."."""
    slashes: bool
    """Whether slashes follow: then it has to be a directory's."""

    @property
    def is_dots(self) -> bool:
        """Whether it is no name that something could be made or removed with."""
        return self.name in (b"", b".", b"..")


Times = tuple[int | None, int | None]
"""Access and modification time in nanoseconds since the epoch; None leaves a time unchanged, NOW
sets it to the present one."""
NOW: Final = 1 << 100


class Description(NamedTuple):
    """What /proc/mounts says of a filesystem."""

    source: bytes
    kind: bytes
    flags: bytes
    """Those of the mount: ``rw``, and so on."""
    options: bytes
    """Those of the filesystem itself."""
    device: int
    """As st_dev."""
    user: int
    """Who mounted it, and may unmount it."""


class FilesystemTree(ABC):
    """A tree whose files are a filesystem's.

    The first methods return what they find out. If its server has to be asked for that, the handler
    is left, and starts again later (`TrappedCall.ask`). The others do what the call is for, as
    the system call that they name, and return its outcome. All raise OSError for the call.
    """

    is_filesystem = True

    @property
    @abstractmethod
    def root(self) -> Dentry:
        """The directory at the top."""

    @property
    @abstractmethod
    def description(self) -> Description:
        """What lists of mounts say of it."""

    @property
    @abstractmethod
    def connection(self) -> Connection:
        """The connection to its server."""

    @abstractmethod
    def remount(self, flags: bytes) -> None:
        """Have other flags from now on, those of `Description`."""

    @abstractmethod
    def detach(self) -> bool:
        """It is mounted nowhere any more: end when none of its files is open.

        Returns True if it ends as soon as its server has answered: `Connection.at_end` tells when.
        """

    @abstractmethod
    def directory_at(self, path: bytes) -> Dentry:
        """The directory with that path, for the supervisor itself, which waits for the server.

        Links are not followed. OSError: ENOENT, ENOTDIR.
        """

    @abstractmethod
    def write_back(self) -> OnDevice[None]:
        """Have the server get everything that it does not have yet, as syncfs(2)."""

    # Looking

    @abstractmethod
    def go_along(
        self, call: TrappedCall, start: Dentry, names: list[bytes], *, real: bool
    ) -> Dentry:
        """Go along a path, and take each name off the end of ``names``; return where it stops.

        It stops at what is no directory, where nothing has that name, and before "..".
        ``real``: for the real user.
        """

    def lookup(self, call: TrappedCall, directory: Dentry, name: bytes) -> Dentry | None:
        """What has that name; None if nothing has it."""
        names = [name]
        found = self.go_along(call, directory, names, real=False)
        return None if names else found

    @abstractmethod
    def read_link(self, call: TrappedCall, link: Dentry) -> bytes:
        """Where a symbolic link leads. OSError: EINVAL if it is no link."""

    @abstractmethod
    def statfs(self, call: TrappedCall) -> bytes:
        """``struct statfs`` for the whole filesystem."""

    @abstractmethod
    def check_enter(self, call: TrappedCall, directory: Dentry) -> None:
        """Raise EACCES unless it may become the caller's working directory."""

    @abstractmethod
    def check_access(self, call: TrappedCall, dentry: Dentry, wanted: int, *, real: bool) -> None:
        """As access(2). ``wanted`` has the bits of `recuse.sandbox.vfs.permissions`."""

    @abstractmethod
    def status(self, call: TrappedCall, dentry: Dentry, mask: int = 0x7FF, sync: int = 0) -> Status:
        """What stat returns; ``mask`` and ``sync`` are as for statx(2)."""

    @abstractmethod
    def is_removed(self, dentry: Dentry) -> bool:
        """Whether there is no path to it any more."""

    @abstractmethod
    def read_program(
        self, call: TrappedCall, dentry: Dentry, take: Callable[[bytes], None]
    ) -> Steps[None]:
        """Give all that a file has to ``take``, if the caller may execute it (EACCES)."""

    def list(self, call: TrappedCall, directory: Dentry) -> Sequence[Dentry]:
        """Nobody has one of its directories open natively: open ones are files of their own."""
        raise os_error(errno.EOPNOTSUPP)

    # Opening and making

    @abstractmethod
    def open(self, call: TrappedCall, location: Location, flags: int, mode: int) -> Outcome:
        """Open what was found, or make a file without a name in it (O_TMPFILE)."""

    @abstractmethod
    def create(
        self, call: TrappedCall, place: Place, flags: int, mode: int, *, absent: bool
    ) -> Outcome:
        """Open a file that is made if there is none (O_CREAT); ``absent``: there was none yet."""

    @abstractmethod
    def make_directory(self, call: TrappedCall, place: Place, mode: int) -> Outcome:
        """As mkdir(2)."""

    @abstractmethod
    def make_node(self, call: TrappedCall, place: Place, mode: int, rdev: int) -> Outcome:
        """As mknod(2)."""

    @abstractmethod
    def make_symlink(self, call: TrappedCall, place: Place, target: bytes) -> Outcome:
        """As symlink(2)."""

    @abstractmethod
    def make_link(self, call: TrappedCall, old: Location, place: Place) -> Outcome:
        """As link(2), within one mount."""

    @abstractmethod
    def unlink(self, call: TrappedCall, place: Place) -> Outcome:
        """Remove a name that is not a directory's."""

    @abstractmethod
    def remove_directory(self, call: TrappedCall, place: Place) -> Outcome:
        """As rmdir(2)."""

    @abstractmethod
    def rename(self, call: TrappedCall, old: Place, new: Place, flags: int) -> Outcome:
        """As renameat2(2), within one mount."""

    # Attributes

    @abstractmethod
    def change_mode(self, call: TrappedCall, dentry: Dentry, mode: int) -> Outcome:
        """As chmod(2)."""

    @abstractmethod
    def change_owner(
        self, call: TrappedCall, dentry: Dentry, uid: int | None, gid: int | None
    ) -> Outcome:
        """As chown(2); None leaves an ID unchanged."""

    @abstractmethod
    def set_times(self, call: TrappedCall, dentry: Dentry, times: Times) -> Outcome:
        """As utimensat(2)."""

    @abstractmethod
    def truncate(self, call: TrappedCall, dentry: Dentry, size: int) -> Outcome:
        """Change the size of a regular file."""

    # Extended attributes. Values and lists are in the caller's memory, at ``address``.

    @abstractmethod
    def get_xattr(
        self, call: TrappedCall, dentry: Dentry, name: bytes, address: int, size: int
    ) -> Outcome:
        """As getxattr(2)."""

    @abstractmethod
    def list_xattr(self, call: TrappedCall, dentry: Dentry, address: int, size: int) -> Outcome:
        """As listxattr(2)."""

    @abstractmethod
    def set_xattr(
        self, call: TrappedCall, dentry: Dentry, name: bytes, value: bytes, flags: int
    ) -> Outcome:
        """As setxattr(2)."""

    @abstractmethod
    def remove_xattr(self, call: TrappedCall, dentry: Dentry, name: bytes) -> Outcome:
        """As removexattr(2)."""


def filesystem_of(location: Location) -> FilesystemTree | None:
    """The filesystem that a file is on; None if it is on none of the sandbox's."""
    tree = location.mount.tree
    # Asking for its class takes several times as long.
    return tree if tree.is_filesystem else None  # type: ignore[return-value]
