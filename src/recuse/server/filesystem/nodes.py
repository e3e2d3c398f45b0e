"""What an author subclasses for a filesystem: a tree of nodes, which are objects."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping
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
    from concurrent.futures import Future

    from typing_extensions import Buffer

    from recuse.server.request import OpenRequest
    from recuse.wire.declare import Structure

Attributed: TypeAlias = "Node | Attributes | os.stat_result"


class Owner(Protocol):
    """A node's filesystem: the part of it that the node needs."""

    def notify(self, code: int, body: Structure, data: bytes) -> None:
        """Send the kernel half a notification soon, if there is a kernel half."""

    def retrieve(self, number: int, offset: int, size: int) -> Future[bytes]:
        """Ask the kernel half for part of a node's content. Raises OSError: ENODEV."""


class Node:
    """A file of any kind. The same object is the same file, even under several names.

    Attributes may be set on the class or on the object. `change` sets them, and `attributes`
    returns them.
    """

    kind: ClassVar[int] = 0
    """The type bits of ``st_mode``."""
    mode: int = 0o644
    """Permission bits, 0 to 0o7777."""
    size: int | None = 0
    """In bytes. None if it is not known before the end is read: programs find it by reading."""
    blocks: int | None = None
    """In blocks of 512 bytes. None: as many as the size needs."""
    nlink: int = 1
    uid: int = UID
    """By default the user who serves; the group likewise."""
    gid: int = GID
    rdev: int = 0
    atime_ns: int = STARTED_NS
    mtime_ns: int = STARTED_NS
    ctime_ns: int = STARTED_NS
    btime_ns: int | None = None
    """When it was made, for statx(2). None if not known."""
    cache_s: float | None = None
    """How long the kernel may believe what it knows about this node. None: `Filesystem.cache_s`."""
    entry_cache_s: float | None = None
    """How long it may believe that a name stands for this node. None: as ``cache_s``."""

    _number: int = 0
    """Its number in its filesystem, 0 before it has one."""
    _filesystem: Owner | None = None
    """Set with the number."""

    def attributes(self) -> Attributed | Awaitable[Attributed]:
        """Return the result for stat(2). By default it is this node, with its attributes.

        Its inode number is what programs see. 0: the number that the node has in the protocol,
        which another object for the same file does not share.
        """
        return self

    def change(self, changes: Changes) -> Awaitable[None] | None:
        """Change attributes, as chmod, chown, truncate and utimensat do.

        By default this sets them on the object, and ``size`` with `RegularFile.truncate`. The
        kernel has already checked that the program may do this (``default_permissions``).

        Raises OSError.
        """
        if changes.size is not None:
            if not isinstance(self, RegularFile):
                raise error(errno.EINVAL)
            truncated = self.truncate(changes.size)
            if truncated is not None:
                return self._change_later(truncated, changes)
        self._set(changes)
        return None

    async def _change_later(self, truncated: Awaitable[None], changes: Changes) -> None:
        await truncated
        self._set(changes)

    def _set(self, changes: Changes) -> None:
        for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns"):
            value = getattr(changes, name)
            if value is not None:
                setattr(self, name, value)
        self.ctime_ns = time.time_ns()

    def get_xattr(self, name: str) -> Buffer | Awaitable[Buffer]:
        """Return an extended attribute. Raises OSError: ENODATA if it does not exist."""
        raise error(errno.ENODATA)

    def list_xattr(self) -> Iterable[str] | Awaitable[Iterable[str]]:
        """Return the names of the extended attributes."""
        return ()

    def set_xattr(self, name: str, value: bytes, flags: int) -> Awaitable[None] | None:
        """Set an extended attribute.

        ``flags``: `os.XATTR_CREATE` (EEXIST if it exists), `os.XATTR_REPLACE` (ENODATA if not).
        """
        raise error(errno.EOPNOTSUPP)

    def remove_xattr(self, name: str) -> Awaitable[None] | None:
        """Remove an extended attribute. Raises OSError: ENODATA if it does not exist."""
        raise error(errno.EOPNOTSUPP)

    def changed(self, offset: int = 0, length: int = 0) -> None:
        """Report that something else has changed the node: what the kernel has cached is wrong.

        That is the attributes, and ``length`` bytes of content starting at ``offset``; 0: all to
        the end. Callable from any thread and method. It returns before the kernel knows.
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

    def forgotten(self) -> Awaitable[None] | None:
        """Called when the kernel has forgotten the node; new requests come only after a lookup."""


class RegularFile(Node):
    """A regular file. Subclasses define `read` (and `write`, `truncate`), or `open`."""

    kind = stat.S_IFREG

    def __init__(self, content: Buffer | None = None) -> None:
        """Make one. With ``content``, it is read-only and has that content."""
        if content is not None:
            self.content = bytes(content)
            self.size = len(self.content)

    content: bytes = b""

    def open(self, request: OpenRequest) -> File | Awaitable[File]:
        """Return an open file. By default it reads and writes with the node's methods.

        Raises OSError to refuse. The kernel has already checked that the program may open it.
        """
        del request
        return NodeFile(self)

    def read(self, size: int, offset: int) -> Buffer | Awaitable[Buffer]:
        """Return at most ``size`` bytes starting at ``offset``; fewer only at the end."""
        return self.content[offset : offset + size]

    def write(self, data: bytes, offset: int) -> int | Awaitable[int | None] | None:
        """Take data written at ``offset``; return how many bytes were taken, None for all."""
        raise error(errno.EBADF)

    def store(self, offset: int, data: bytes) -> None:
        """Give the kernel part of the file's content before a program reads it.

        If the file is too short for that, it grows. Callable from any thread and method.
        It returns before the kernel has the content.
        """
        body = fuse_notify_store_out(nodeid=self._number, offset=offset, size=len(data))
        self._notify(FUSE_NOTIFY_STORE, body, data)

    def retrieve(self, offset: int, size: int) -> Future[bytes]:
        """Ask for what the kernel has of the file's content, at most ``size`` bytes.

        Do not wait for it in a method: the program that called may hold up the answer. The result
        may be shorter. Raises OSError: ENODEV if the filesystem is not served, or the kernel does
        not know the file.
        """
        if self._filesystem is None:
            raise error(errno.ENODEV)
        return self._filesystem.retrieve(self._number, offset, size)

    def truncate(self, size: int) -> Awaitable[None] | None:
        """Change the file to this size; if it was shorter, zeros are added at the end."""
        raise error(errno.EPERM)


class NodeFile(OpenFile):
    """An open file that reads and writes with the methods of its node."""

    def __init__(self, node: RegularFile) -> None:
        self.node = node
        self.read = node.read  # type: ignore[method-assign]
        self.write = node.write  # type: ignore[method-assign]


class Symlink(Node):
    """A symbolic link."""

    kind = stat.S_IFLNK
    mode = 0o777

    def __init__(self, target: str) -> None:
        """Make one that leads to ``target``. Raises TypeError if that is no path."""
        if not isinstance(target, str | bytes):
            raise TypeError(f"target: {target!r} is not a str")
        self.target = target
        self.size = len(os.fsencode(target))

    def readlink(self) -> str | Awaitable[str]:
        """Return its target."""
        return self.target


class Special(Node):
    """A FIFO, a socket or a device node, which the kernel opens itself."""

    def __init__(self, mode: int, rdev: int = 0) -> None:
        """Make one with a type and permissions, as mknod(2) does."""
        self.kind = stat.S_IFMT(mode)  # type: ignore[misc]
        self.mode = stat.S_IMODE(mode)
        self.rdev = rdev


Listed: TypeAlias = "tuple[str, Node] | Entry"
Entries: TypeAlias = "Mapping[str, Node] | Iterable[Listed] | AsyncIterable[Listed]"


class Directory(Node):
    """A directory.

    A read-only one defines `entries`, and `lookup` if finding one name is faster than going
    through all. A missing method answers EPERM. In a filesystem that is `Filesystem.read_only`,
    everything that would change something answers EROFS.
    """

    kind = stat.S_IFDIR
    mode = 0o755
    nlink = 2

    def __init__(self, children: Mapping[str, Node] | None = None) -> None:
        """Make one. With ``children``, it contains these."""
        self.children: dict[str, Node] = dict(children or {})
        for name, child in self.children.items():
            if not isinstance(child, Node):
                raise TypeError(f"{name!r} is {child!r}, not a Node such as RegularFile")

    def entries(self) -> Entries | Awaitable[Entries]:
        """Return the content of the directory; "." and ".." are added, and may be there or not.

        It is a mapping from name to `Node`, or pairs of these in any order. An `Entry` may replace
        a pair if the node has not been made yet. An iterator, plain or asynchronous, is only read
        as far as a program reads.
        """
        return self.children

    def lookup(self, name: str) -> Node | Awaitable[Node | None] | None:
        """Return the node with a name, None if there is none.

        By default this searches `entries`.
        """
        entries = self.entries()
        if isinstance(entries, Mapping):
            return entries.get(name)
        if isinstance(entries, Awaitable):
            return _look_in_later(name, entries)
        return _look_in(name, entries)

    def create(self, name: str, mode: int) -> Any:
        """Make a regular file; return its node, or its node and an open `File`.

        ``mode`` has the permission bits, with the program's umask removed. Raises OSError: EEXIST.
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
        """Give a node an additional name."""
        raise error(errno.EPERM)

    def unlink(self, name: str) -> Awaitable[None] | None:
        """Remove a name that is not a directory's."""
        raise error(errno.EPERM)

    def rmdir(self, name: str) -> Awaitable[None] | None:
        """Remove a directory. Raises OSError: ENOTEMPTY if it is not empty."""
        raise error(errno.EPERM)

    def rename(
        self, name: str, directory: Directory, new_name: str, flags: int
    ) -> Awaitable[None] | None:
        """Rename something, perhaps into another directory.

        Whatever had the new name before is then gone. ENOTEMPTY if that is a directory that is not
        empty. ``flags``: `RENAME_NOREPLACE` (EEXIST instead), `RENAME_EXCHANGE` (both stay),
        `RENAME_WHITEOUT` (a character device with the number 0 takes its place, for overlayfs).
        """
        raise error(errno.EPERM)

    def entry_changed(self, name: str) -> None:
        """Report that something else has changed what a name stands for, or made or removed it.

        Programs that use the old node keep it. Callable from any thread and method. It returns
        before the kernel knows.
        """
        self._forget_name(name, 0)

    def entry_expired(self, name: str) -> None:
        """Have the kernel look up a name again when it is next used, but keep it until then."""
        self._forget_name(name, FUSE_EXPIRE_ONLY)

    def _forget_name(self, name: str, flags: int) -> None:
        encoded = os.fsencode(name)
        body = fuse_notify_inval_entry_out(parent=self._number, namelen=len(encoded), flags=flags)
        self._notify(FUSE_NOTIFY_INVAL_ENTRY, body, encoded + b"\0")

    def entry_removed(self, name: str, node: Node) -> None:
        """Report that something else has removed a name: watchers of the directory are told."""
        encoded = os.fsencode(name)
        body = fuse_notify_delete_out(parent=self._number, child=node._number, namelen=len(encoded))
        self._notify(FUSE_NOTIFY_DELETE, body, encoded + b"\0")

    def tmpfile(self, mode: int) -> Any:
        """Make a regular file without a name (O_TMPFILE); return its node, or node and `File`."""
        raise error(errno.EOPNOTSUPP)

    def sync(self, data_only: bool) -> Awaitable[None] | None:
        """Make sure that all in the directory is safe when this returns (fsync of a directory)."""


RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
"""linux/fs.h"""


def _look_in(
    name: str, entries: Iterable[Listed] | AsyncIterable[Listed]
) -> Node | Awaitable[Node | None] | None:
    if isinstance(entries, AsyncIterable):
        return _look_for(name, entries)
    for entry in entries:
        if not isinstance(entry, Entry) and entry[0] == name:
            return entry[1]
    return None


async def _look_in_later(name: str, entries: Awaitable[Entries]) -> Node | None:
    awaited = await entries
    if isinstance(awaited, Mapping):
        return awaited.get(name)
    found = _look_in(name, awaited)
    return await found if isinstance(found, Awaitable) else found


async def _look_for(name: str, entries: AsyncIterable[tuple[str, Node] | Entry]) -> Node | None:
    async for entry in entries:
        if not isinstance(entry, Entry) and entry[0] == name:
            return entry[1]
    return None
