"""What an author subclasses for a filesystem: a tree of nodes, which are objects."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import AsyncIterable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias

from recuse.server.device import File
from recuse.server.filesystem.attributes import GID, STARTED_NS, UID, Attributes, Changes, Entry
from recuse.server.filesystem.open_file import OpenFile, error
from recuse.wire.fuse import (
    FUSE_EXPIRE_ONLY,
    FUSE_NOTIFY_DELETE,
    FUSE_NOTIFY_INVAL_ENTRY,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_STORE,
)
from recuse.wire.notify import (
    fuse_notify_delete_out,
    fuse_notify_inval_entry_out,
    fuse_notify_inval_inode_out,
    fuse_notify_store_out,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from concurrent.futures import Future

    from typing_extensions import Buffer

    from recuse.server.request import OpenRequest
    from recuse.wire.declare import Structure

Attributed: TypeAlias = "Node | Attributes | os.stat_result"


class Owner(Protocol):
    """A node's filesystem, as far as the node needs it."""

    def notify(self, code: int, body: Structure, data: bytes) -> None:
        """Tell the kernel half something soon, if there is one."""

    def retrieve(self, number: int, offset: int, size: int) -> Future[bytes]:
        """Ask the kernel half for some of a node's content. Raises OSError: ENODEV."""


class Node:
    """A file of whatever kind. The same object is the same file, whatever names it has.

    Attributes may be set on the class or on the object; `change` sets them, and `attributes`
    tells them.
    """

    kind: ClassVar[int] = 0
    """The type bits of ``st_mode``."""
    mode: int = 0o644
    """Permission bits, 0 to 0o7777."""
    size: int | None = 0
    """In bytes; None if it is not known before the end is read: programs get it by reading."""
    nlink: int = 1
    uid: int = UID
    """By default the user who serves; likewise the group."""
    gid: int = GID
    rdev: int = 0
    atime_ns: int = STARTED_NS
    mtime_ns: int = STARTED_NS
    ctime_ns: int = STARTED_NS
    btime_ns: int | None = None
    """When it was made, for statx(2); None if that is not known."""
    cache_s: float | None = None
    """How long the kernel may believe what it was told of this node; None: `Filesystem.cache_s`."""

    _number: int = 0
    """Its number in its filesystem, 0 before it has one."""
    _filesystem: Owner | None = None
    """Set with the number."""

    def attributes(self) -> Attributed | Awaitable[Attributed]:
        """Return what stat(2) tells: this node, by default, whose attributes are read."""
        return self

    def change(self, changes: Changes) -> Awaitable[None] | None:
        """Change attributes, as chmod, chown, truncate and utimensat do.

        By default they are set on the object, ``size`` by `RegularFile.truncate`. Whether the
        program may do that, the kernel has checked (``default_permissions``).

        Raises OSError.
        """
        if changes.size is not None:
            if not isinstance(self, RegularFile):
                raise error(errno.EINVAL)
            self.truncate(changes.size)
        for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns"):
            value = getattr(changes, name)
            if value is not None:
                setattr(self, name, value)
        self.ctime_ns = time.time_ns()
        return None

    def get_xattr(self, name: str) -> Buffer | Awaitable[Buffer]:
        """Return an extended attribute. Raises OSError: ENODATA if there is none of that name."""
        raise error(errno.ENODATA)

    def list_xattr(self) -> Iterable[str] | Awaitable[Iterable[str]]:
        """Return the names of the extended attributes."""
        return ()

    def set_xattr(self, name: str, value: bytes, flags: int) -> Awaitable[None] | None:
        """Set an extended attribute.

        ``flags``: `os.XATTR_CREATE` (EEXIST if it is there), `os.XATTR_REPLACE` (ENODATA if not).
        """
        raise error(errno.EOPNOTSUPP)

    def remove_xattr(self, name: str) -> Awaitable[None] | None:
        """Remove an extended attribute. Raises OSError: ENODATA if there is none of that name."""
        raise error(errno.EOPNOTSUPP)

    def changed(self, offset: int = 0, length: int = 0) -> None:
        """Say that something else has changed the node: what the kernel has of it is not true.

        That is its attributes, and of its content ``length`` bytes from ``offset`` on; 0: all to
        the end. Callable from any thread and method; it returns before the kernel knows.
        """
        body = fuse_notify_inval_inode_out(ino=self._number, off=offset, len=length)
        self._notify(FUSE_NOTIFY_INVAL_INODE, body)

    def attributes_changed(self) -> None:
        """The same for the attributes alone."""
        body = fuse_notify_inval_inode_out(ino=self._number, off=-1)
        self._notify(FUSE_NOTIFY_INVAL_INODE, body)

    def _notify(self, code: int, body: Structure, data: bytes = b"") -> None:
        if self._filesystem is not None:
            self._filesystem.notify(code, body, data)

    def forgotten(self) -> None:
        """The kernel knows the node no more: no request is about it before it is found again."""


class RegularFile(Node):
    """A regular file. Subclasses define `read` (and `write`, `truncate`), or `open`."""

    kind = stat.S_IFREG

    def __init__(self, content: Buffer | None = None) -> None:
        """Make one; with ``content`` it is read-only and has that."""
        if content is not None:
            self.content = bytes(content)
            self.size = len(self.content)

    content: bytes = b""

    def open(self, request: OpenRequest) -> File | Awaitable[File]:
        """Return an open file; by default one that reads and writes by the node's methods.

        Raises OSError to refuse. Whether the program may open it, the kernel has checked.
        """
        del request
        return NodeFile(self)

    def read(self, size: int, offset: int) -> Buffer | Awaitable[Buffer]:
        """Return at most ``size`` bytes from ``offset`` on; fewer only at the end."""
        return self.content[offset : offset + size]

    def write(self, data: bytes, offset: int) -> int | Awaitable[int | None] | None:
        """Take what is written at ``offset``; return how many bytes of it, None for all."""
        raise error(errno.EBADF)

    def store(self, offset: int, data: bytes) -> None:
        """Give the kernel some of the file's content before a program reads it.

        The file is longer by that, if it was shorter. Callable from any thread and method; it
        returns before the kernel has it.
        """
        body = fuse_notify_store_out(nodeid=self._number, offset=offset, size=len(data))
        self._notify(FUSE_NOTIFY_STORE, body, data)

    def retrieve(self, offset: int, size: int) -> Future[bytes]:
        """Ask for what the kernel has of the file's content: ``size`` bytes at most.

        Not to be waited for in a method, whose program may hold up the answer. The result may be
        shorter. Raises OSError: ENODEV if the filesystem is not served, or the kernel does not
        know the file.
        """
        if self._filesystem is None:
            raise error(errno.ENODEV)
        return self._filesystem.retrieve(self._number, offset, size)

    def truncate(self, size: int) -> None:
        """Make the file that long, with zeros at the end if it was shorter."""
        raise error(errno.EPERM)


class NodeFile(OpenFile):
    """An open file that reads and writes by the methods of its node."""

    def __init__(self, node: RegularFile) -> None:
        self.node = node
        self.read = node.read  # type: ignore[method-assign]
        self.write = node.write  # type: ignore[method-assign]


class Symlink(Node):
    """A symbolic link."""

    kind = stat.S_IFLNK
    mode = 0o777

    def __init__(self, target: str) -> None:
        self.target = target
        self.size = len(os.fsencode(target))

    def readlink(self) -> str | Awaitable[str]:
        """Return what it leads to."""
        return self.target


class Special(Node):
    """A FIFO, a socket or a device node, which the kernel opens itself."""

    def __init__(self, mode: int, rdev: int = 0) -> None:
        """Make one of a type and permissions, as mknod(2) does."""
        self.kind = stat.S_IFMT(mode)  # type: ignore[misc]
        self.mode = stat.S_IMODE(mode)
        self.rdev = rdev


Listed: TypeAlias = "tuple[str, Node] | Entry"
Entries: TypeAlias = "Mapping[str, Node] | Iterable[Listed] | AsyncIterable[Listed]"


class Directory(Node):
    """A directory.

    A read-only one defines `entries`, and `lookup` if finding one name is quicker than going
    through all. A method that is missing answers EPERM; all that would change something answer
    EROFS in a filesystem that is `Filesystem.read_only`.
    """

    kind = stat.S_IFDIR
    mode = 0o755
    nlink = 2

    def __init__(self, children: Mapping[str, Node] | None = None) -> None:
        """Make one; with ``children`` it has these."""
        self.children: dict[str, Node] = dict(children or {})

    def entries(self) -> Entries:
        """Return what is in the directory, without "." and "..".

        By name a `Node`; or pairs of these, or an `Entry` where the node is yet to be made, in any
        order; an iterator, plain or asynchronous, is asked for as many as a program reads.
        """
        return self.children

    def lookup(self, name: str) -> Node | Awaitable[Node | None] | None:
        """Return the node of a name, None if there is none.

        By default it is looked for in `entries`.
        """
        entries = self.entries()
        if isinstance(entries, Mapping):
            return entries.get(name)
        if isinstance(entries, AsyncIterable):
            return _look_for(name, entries)
        for entry in entries:
            if not isinstance(entry, Entry) and entry[0] == name:
                return entry[1]
        return None

    def create(self, name: str, mode: int) -> Any:
        """Make a regular file; return its node, or node and open `File`.

        ``mode`` are the permission bits without the program's umask. Raises OSError: EEXIST.
        """
        raise error(errno.EPERM)

    def mkdir(self, name: str, mode: int) -> Any:
        """Make a directory; return its node."""
        raise error(errno.EPERM)

    def symlink(self, name: str, target: str) -> Any:
        """Make a symbolic link; return its node."""
        raise error(errno.EPERM)

    def mknod(self, name: str, mode: int, rdev: int) -> Any:
        """Make a FIFO, a socket or a device node (see `Special`); return its node."""
        raise error(errno.EPERM)

    def link(self, name: str, node: Node) -> Awaitable[None] | None:
        """Give a node another name."""
        raise error(errno.EPERM)

    def unlink(self, name: str) -> Awaitable[None] | None:
        """Take a name away that is no directory's."""
        raise error(errno.EPERM)

    def rmdir(self, name: str) -> Awaitable[None] | None:
        """Take a directory away. Raises OSError: ENOTEMPTY if something is in it."""
        raise error(errno.EPERM)

    def rename(
        self, name: str, directory: Directory, new_name: str, flags: int
    ) -> Awaitable[None] | None:
        """Give what has a name another one, perhaps in another directory.

        What had that name before is gone then: ENOTEMPTY if it is a directory with something in
        it. ``flags``: `RENAME_NOREPLACE` (EEXIST instead), `RENAME_EXCHANGE` (both stay).
        """
        raise error(errno.EPERM)

    def entry_changed(self, name: str) -> None:
        """Say that something else has changed what a name stands for, or made or removed it.

        Programs that use the old node go on with it. Callable from any thread and method; it
        returns before the kernel knows.
        """
        self._forget_name(name, 0)

    def entry_expired(self, name: str) -> None:
        """Have the kernel look a name up again when it is used next, and keep it until then."""
        self._forget_name(name, FUSE_EXPIRE_ONLY)

    def _forget_name(self, name: str, flags: int) -> None:
        encoded = os.fsencode(name)
        body = fuse_notify_inval_entry_out(parent=self._number, namelen=len(encoded), flags=flags)
        self._notify(FUSE_NOTIFY_INVAL_ENTRY, body, encoded + b"\0")

    def entry_removed(self, name: str, node: Node) -> None:
        """Say that something else has removed a name: who watches the directory is told."""
        encoded = os.fsencode(name)
        body = fuse_notify_delete_out(parent=self._number, child=node._number, namelen=len(encoded))
        self._notify(FUSE_NOTIFY_DELETE, body, encoded + b"\0")

    def tmpfile(self, mode: int) -> Any:
        """Make a regular file without a name (O_TMPFILE); return its node, or node and `File`."""
        raise error(errno.EOPNOTSUPP)

    def sync(self, data_only: bool) -> Awaitable[None] | None:
        """Have all that is in the directory safe when this returns (fsync of a directory)."""


RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
"""linux/fs.h"""


async def _look_for(name: str, entries: AsyncIterable[tuple[str, Node] | Entry]) -> Node | None:
    async for entry in entries:
        if not isinstance(entry, Entry) and entry[0] == name:
            return entry[1]
    return None
