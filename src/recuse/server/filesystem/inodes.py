"""What an author subclasses for a filesystem of inodes: a method for each operation.

It is for those who port a filesystem from libfuse's low level or pyfuse3, or who have numbers for
files already. `Filesystem` is easier, and no slower.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from recuse.server.filesystem.attributes import Statistics
from recuse.server.filesystem.inode_notices import InodeNotices
from recuse.server.filesystem.open_file import error
from recuse.wire.fuse import FUSE_ROOT_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
    from typing import Any, TypeAlias, TypeVar

    from typing_extensions import Buffer

    from recuse.server.filesystem.attributes import (
        Attributes,
        Changes,
        DirectoryEntry,
        InodeEntry,
        Lock,
        Opened,
    )

    T = TypeVar("T")
    Soon: TypeAlias = "T | Awaitable[T]"
    """What a method returns, or an awaitable of it: it may be ``async def``."""
    Attributed = Attributes | os.stat_result | InodeEntry
    Entries = Iterable[DirectoryEntry] | AsyncIterable[DirectoryEntry]
    Made = tuple[InodeEntry, object | Opened]

ROOT_INODE: Final = FUSE_ROOT_ID
"""The number of the root directory. The kernel knows it from the beginning."""


class Inodes(InodeNotices):
    """A filesystem with a method for each operation of the protocol (FUSE 7.45).

    The numbers of inodes are yours, and so is counting lookups: an inode must be known until
    `forget` has taken back as many as there were. Methods may be plain or ``async def``, and raise
    OSError to fail. Names are str; what is no UTF-8 in them is escaped (`os.fsencode`).

    **A method that you leave out answers ENOSYS.** For most operations the kernel remembers that
    and does not ask again, for any inode: each says what happens then. A method of yours that
    raises ENOSYS has the same effect.

    ``ino`` and ``parent`` are numbers of inodes. ``fh`` is what `open` or `opendir` has returned;
    None if the kernel opened without asking, or if no open file was used.
    `recuse.current_request` tells who asks.
    """

    export: bool = False
    """Whether `lookup` finds "." and ".." of any inode that there is, even if the kernel has
    forgotten it, and `InodeEntry.generation` is right: for NFS, and open_by_handle_at(2)."""

    def init(self) -> None:
        """Called before all else, as the connection begins. It must be a plain method.

        Raises OSError: then it cannot be mounted.
        """

    def destroy(self) -> Soon[None]:
        """Called at the end, when all files have been released. Lookups are not taken back."""

    # ---- names (fs/fuse/dir.c)

    def lookup(self, parent: int, name: str) -> Soon[InodeEntry | None]:
        """Return what a name stands for, None if nothing (as ENOENT does).

        Without it, programs find nothing: ENOSYS.
        """
        raise error(errno.ENOSYS)

    def forget(self, inodes: list[tuple[int, int]]) -> Soon[None]:
        """Take back lookups: the number of an inode and how many, for each.

        It cannot fail, and there is no request. Without it, nothing happens.
        """

    def mknod(self, parent: int, name: str, mode: int, rdev: int) -> Soon[InodeEntry]:
        """Make a file that is no directory; ``mode`` has its type. Raises OSError: EEXIST...

        It also comes for regular files if there is no `create`.
        """
        raise error(errno.ENOSYS)

    def mkdir(self, parent: int, name: str, mode: int) -> Soon[InodeEntry]:
        """Make a directory; ``mode`` has the permission bits."""
        raise error(errno.ENOSYS)

    def symlink(self, parent: int, name: str, target: str) -> Soon[InodeEntry]:
        """Make a symbolic link."""
        raise error(errno.ENOSYS)

    def link(self, ino: int, parent: int, name: str) -> Soon[InodeEntry]:
        """Give an inode another name; return its entry."""
        raise error(errno.ENOSYS)

    def unlink(self, parent: int, name: str) -> Soon[None]:
        """Remove a name of what is no directory. The inode stays until it is forgotten."""
        raise error(errno.ENOSYS)

    def rmdir(self, parent: int, name: str) -> Soon[None]:
        """Remove a directory. Raises OSError: ENOTEMPTY."""
        raise error(errno.ENOSYS)

    def rename(
        self, parent: int, name: str, new_parent: int, new_name: str, flags: int
    ) -> Soon[None]:
        """Rename something; ``flags`` are those of `Directory.rename`."""
        raise error(errno.ENOSYS)

    def readlink(self, ino: int) -> Soon[str]:
        """Return what a symbolic link leads to. The kernel remembers it."""
        raise error(errno.ENOSYS)

    # ---- attributes (fs/fuse/dir.c, xattr.c)

    def getattr(self, ino: int, fh: Any) -> Soon[Attributed]:
        """Return an inode's attributes; an `InodeEntry` if they have a ``cache_s`` of their own.

        An InodeEntry that this or `setattr` returns does not count as a lookup.
        """
        raise error(errno.ENOSYS)

    def setattr(self, ino: int, changes: Changes, fh: Any) -> Soon[Attributed]:
        """Change attributes; return all as `getattr` does. ``changes.file`` is always None."""
        raise error(errno.ENOSYS)

    def statx(self, ino: int, fh: Any, flags: int, mask: int) -> Soon[Attributed]:
        """Return attributes with `Attributes.btime_ns`; ``mask`` says what is wanted (STATX_*).

        Without it, `getattr` comes instead.
        """
        raise error(errno.ENOSYS)

    def access(self, ino: int, mask: int) -> Soon[None]:
        """Check permissions, as ``mask`` says (`os.R_OK`...). Raises OSError: EACCES.

        It comes only if the kernel does not check them itself, which mounts of recuse have it do.
        Without it, all is allowed.
        """
        raise error(errno.ENOSYS)

    def getxattr(self, ino: int, name: str) -> Soon[Buffer]:
        """Return an extended attribute. Raises OSError: ENODATA.

        Without one of these four, programs get EOPNOTSUPP.
        """
        raise error(errno.ENOSYS)

    def setxattr(self, ino: int, name: str, value: bytes, flags: int) -> Soon[None]:
        """Set one; ``flags``: `os.XATTR_CREATE` (EEXIST), `os.XATTR_REPLACE` (ENODATA)."""
        raise error(errno.ENOSYS)

    def listxattr(self, ino: int) -> Soon[Iterable[str]]:
        """Return the names of all."""
        raise error(errno.ENOSYS)

    def removexattr(self, ino: int, name: str) -> Soon[None]:
        """Remove one. Raises OSError: ENODATA."""
        raise error(errno.ENOSYS)

    def statfs(self, ino: int) -> Soon[Statistics | os.statvfs_result]:
        """Return what df(1) shows. Without it, there are no blocks and no files."""
        del ino
        return Statistics()

    def syncfs(self, ino: int) -> Soon[None]:
        """Make sure that all is safe when this returns. Without it, nothing happens.

        Linux does not ask FUSE filesystems on mounts for it, only virtiofs.
        """
        raise error(errno.ENOSYS)

    # ---- directories (fs/fuse/readdir.c)

    def opendir(self, ino: int, flags: int) -> Soon[object | Opened]:
        """Open a directory: return anything as ``fh``, or `Opened`.

        Without it, the kernel opens directories itself, and remembers their entries until it sees
        another ``mtime``.
        """
        raise error(errno.ENOSYS)

    def readdir(self, ino: int, fh: Any, offset: int) -> Soon[Entries]:
        """Return the entries that follow ``offset``: 0, or that of one returned earlier.

        An iterator is only read as far as there is room.
        """
        raise error(errno.ENOSYS)

    def readdirplus(self, ino: int, fh: Any, offset: int) -> Soon[Entries]:
        """Return entries with `DirectoryEntry.entry`, which count as lookups.

        This saves a lookup for each. With `readdir` as well, the kernel chooses (``ls`` needs no
        attributes, ``ls -l`` does).
        """
        raise error(errno.ENOSYS)

    def fsyncdir(self, ino: int, fh: Any, data_only: bool) -> Soon[None]:
        """Make sure that a directory's entries are safe. Without it, nothing happens."""
        raise error(errno.ENOSYS)

    def releasedir(self, ino: int, fh: Any) -> Soon[None]:
        """Called once for each `opendir`, when it is closed. Without it, nothing happens."""

    # ---- open files (fs/fuse/file.c, ioctl.c)

    def create(self, parent: int, name: str, mode: int, flags: int) -> Soon[Made]:
        """Make a regular file and open it: return the entry, and what `open` returns.

        Without it, `mknod` and `open` come instead.
        """
        raise error(errno.ENOSYS)

    def tmpfile(self, parent: int, mode: int, flags: int) -> Soon[Made]:
        """The same without a name (O_TMPFILE). Without it, programs get EOPNOTSUPP."""
        raise error(errno.ENOSYS)

    def open(self, ino: int, flags: int) -> Soon[object | Opened]:
        """Open a file: return anything as ``fh``, or `Opened`. With O_TRUNC, truncate it.

        ``flags`` are open(2)'s; O_CREAT, O_EXCL and O_NOCTTY have been dealt with. Define it if
        there is a `create`. Without both, the kernel opens files itself, truncates by `setattr`,
        and keeps what it has cached until it sees another size or time.
        """
        raise error(errno.ENOSYS)

    def read(self, ino: int, fh: Any, size: int, offset: int) -> Soon[Buffer]:
        """Return at most ``size`` bytes starting at ``offset``; fewer only at the end."""
        raise error(errno.ENOSYS)

    def write(self, ino: int, fh: Any, data: bytes, offset: int) -> Soon[int | None]:
        """Take data; return how many bytes, None for all. The offset is right for O_APPEND too."""
        raise error(errno.ENOSYS)

    def flush(self, ino: int, fh: Any, owner: int) -> Soon[None]:
        """Called when a program closes a descriptor; it gets what this raises.

        The locks of ``owner`` (see `setlk`) must be dropped. Without it, nothing happens.
        """
        raise error(errno.ENOSYS)

    def fsync(self, ino: int, fh: Any, data_only: bool) -> Soon[None]:
        """Make sure that what was written is safe. Without it, nothing happens."""
        raise error(errno.ENOSYS)

    def release(self, ino: int, fh: Any) -> Soon[None]:
        """Called once for each `open` and `create`, when the last descriptor is closed.

        Or at the end of the session. Without it, nothing happens. What it raises is logged.
        """

    def getlk(self, ino: int, fh: Any, lock: Lock, owner: int) -> Soon[Lock]:
        """Return a lock that conflicts with ``lock``, or one of type F_UNLCK."""
        raise error(errno.ENOSYS)

    def setlk(self, ino: int, fh: Any, lock: Lock, owner: int, wait: bool) -> Soon[None]:
        """Lock or unlock for an owner, 64 bits (fcntl(2)). With ``wait``, wait for others.

        Raises OSError: EAGAIN if another has it, EINTR if interrupted. Without it, the kernel keeps
        these locks.
        """
        raise error(errno.ENOSYS)

    def flock(self, ino: int, fh: Any, operation: int, owner: int) -> Soon[None]:
        """Lock or unlock a whole file: `fcntl.LOCK_SH`, LOCK_EX or LOCK_UN, perhaps LOCK_NB.

        LOCK_UN also comes before `release`. Without it, the kernel keeps these locks.
        """
        raise error(errno.ENOSYS)

    def ioctl(  # noqa: PLR0917  # the protocol's own
        self, ino: int, fh: Any, command: int, argument: int, data: bytes, room: int
    ) -> Soon[int | bytes | tuple[int, bytes] | None]:
        """Do an ioctl on a file or directory: return the result, bytes for the program, or both.

        ``data`` is what it passed, and ``room`` the most that it takes, by the command's number.
        Raises OSError: ENOTTY for an unknown command, as programs get without this method.
        """
        raise error(errno.ENOSYS)

    def poll(self, ino: int, fh: Any, events: int, wake: Callable[[], None] | None) -> Soon[int]:
        """Return what a file is ready for now; it must not wait.

        If ``wake`` is given, keep it and call it once, from any thread, when that may have changed.
        Without it, files are always ready.
        """
        raise error(errno.ENOSYS)

    def fallocate(self, ino: int, fh: Any, mode: int, offset: int, length: int) -> Soon[None]:
        """Reserve, zero or punch ``length`` bytes. Without it, programs get EOPNOTSUPP."""
        raise error(errno.ENOSYS)

    def lseek(self, ino: int, fh: Any, offset: int, whence: int) -> Soon[int]:
        """Find data (`os.SEEK_DATA`) or a hole (SEEK_HOLE). Raises OSError: ENXIO at the end.

        Without it, all is data.
        """
        raise error(errno.ENOSYS)

    def copy_file_range(  # noqa: PLR0917  # the protocol's own
        self,
        ino: int,
        fh: Any,
        offset: int,
        other_ino: int,
        other_fh: Any,
        other_offset: int,
        length: int,
        flags: int,
    ) -> Soon[int | None]:
        """Copy from a file to another; return how many bytes. Without it, the kernel copies."""
        raise error(errno.ENOSYS)

    def bmap(self, ino: int, block: int, block_size: int) -> Soon[int]:
        """Return where a block is on the device; only for mounts of type fuseblk."""
        raise error(errno.ENOSYS)
