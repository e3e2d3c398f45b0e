"""What the operations of one session have in common."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from recuse.runtime.records import NamedTuple
from recuse.server.device import File
from recuse.server.errors import Misuse, brief
from recuse.server.filesystem import encoding
from recuse.server.filesystem.attributes import Attributes
from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.known import KnownNodes
from recuse.server.filesystem.listing import Listing
from recuse.server.filesystem.nodes import Node
from recuse.server.filesystem.open_file import OpenFile
from recuse.server.filesystem.passthrough import Modes
from recuse.server.pending_reply import discard
from recuse.server.runner import Runner
from recuse.wire.fuse import (
    FOPEN_NOFLUSH,
    FUSE_COMPAT_SETXATTR_IN_SIZE,
    fuse_open_out,
)

if TYPE_CHECKING:
    from recuse.server.filesystem.device_node import Mapped


_pack_open = fuse_open_out.CODEC.pack


class Closed(NamedTuple):
    """A file that no program has open any longer."""

    file: File
    release: Callable[[], Any]
    """Releases it; to be called once. It may be ``async def``."""


class State:
    """The nodes and open files of one session, and what the kernel half is told about them."""

    def __init__(self, filesystem: Filesystem, runner: Runner, owner: encoding.Owner) -> None:
        self.filesystem = filesystem
        self.runner = runner
        self.known = KnownNodes(filesystem)
        self.files: dict[int, File] = {}
        self.listings: dict[int, Listing] = {}
        self.modes = Modes()
        self.mapped: dict[int, Mapped] = {}
        """By handle: the area that a device's open file has."""
        self.unpositioned: dict[int, bool] = {}
        """By handle: open files of devices that are not seekable, and whether they have an area."""
        self._handles = itertools.count(1)
        self.valid = encoding.valid(filesystem.cache_s)
        self.negative = encoding.valid(filesystem.negative_cache_s)
        # Giving nodes another owner takes longer.
        self._attributes = encoding.attributes if owner == encoding.Owner() else owner.of
        self.setxattr_size = FUSE_COMPAT_SETXATTR_IN_SIZE
        """How long a request to set an extended attribute is up to the name."""
        self._released = False
        """Whether all open files are being released, as the session ends."""

    def valid_of(self, node: Node) -> tuple[int, int]:
        """How long the kernel half may believe what it is told about a node."""
        return self.valid if node.cache_s is None else encoding.valid(node.cache_s)

    def handle(self) -> int:
        """Return a handle that no open file or directory of this session has had."""
        return next(self._handles)

    def entry(self, node: object, tail: bytes = b"") -> bytes | Awaitable[bytes]:
        """``struct fuse_entry_out`` for a node; the kernel half then knows it once more.

        ``tail`` follows it. Raises Misuse if it is not a node.
        """
        if not isinstance(node, Node):
            raise Misuse(f"returned {brief(node)}, not a Node")
        told: Any = node.attributes()
        if hasattr(told, "__await__"):
            return self._entry_later(node, told, tail)
        return self._entry(node, told, tail)

    async def _entry_later(self, node: Node, told: Awaitable[Any], tail: bytes) -> bytes:
        return self._entry(node, await told, tail)

    def _entry(self, node: Node, told: Any, tail: bytes) -> bytes:
        cache_s, entry_cache_s = node.cache_s, node.entry_cache_s
        valid = entry_valid = self.valid if cache_s is None else encoding.valid(cache_s)
        if entry_cache_s is not None:
            entry_valid = encoding.valid(entry_cache_s)
        # Count it last: if something failed after that, a FORGET would be due that never comes.
        attributes = self._attributes(self.known.number(node), told)
        return encoding.entry(self.known.know(node), entry_valid, valid) + attributes + tail

    def entry_now(self, node: Node) -> bytes | None:
        """`entry` for a listing; None if the attributes are not available at once."""
        told: Any = node.attributes()
        if hasattr(told, "__await__"):
            discard(told)
            return None
        return self._entry(node, told, b"")

    def ino(self, node: Node) -> int:
        """The inode number that programs see, for a listing without attributes.

        It is the node's number in the protocol if the attributes are not available at once.
        """
        told: Any = None
        with suppress(OSError):  # it has gone, or stat(2) will tell what is wrong
            told = node.attributes()
        if hasattr(told, "__await__"):
            discard(told)
        return encoding.ino(told) or self.known.number(node)

    def attr(self, node: Node) -> bytes | Awaitable[bytes]:
        """``struct fuse_attr_out`` for a node."""
        told: Any = node.attributes()
        if hasattr(told, "__await__"):
            return self._attr_later(node, told)
        return self._attr(node, told)

    async def _attr_later(self, node: Node, told: Awaitable[Any]) -> bytes:
        return self._attr(node, await told)

    def _attr(self, node: Node, told: Any) -> bytes:
        head = encoding.attr_head(self.valid_of(node))
        return head + self._attributes(self.known.number(node), told)

    def statx(self, node: Node) -> bytes | Awaitable[bytes]:
        """``struct fuse_statx_out`` for a node."""
        told: Any = node.attributes()
        if hasattr(told, "__await__"):
            return self._statx_later(node, told)
        return self._statx(node, told)

    async def _statx_later(self, node: Node, told: Awaitable[Any]) -> bytes:
        return self._statx(node, await told)

    def _statx(self, node: Node, told: Any) -> bytes:
        attributes = self._attributes(self.known.number(node), told)
        btime_ns = told.btime_ns if isinstance(told, Attributes) else node.btime_ns
        return encoding.statx(attributes, btime_ns, self.valid_of(node))

    def opened(self, node: Node, file: object, flags: int, handle: int) -> bytes:
        """``struct fuse_open_out`` for an open file, with its new handle.

        Raises:
            Misuse: it is not a File.
            OSError: ENODEV if the session has closed; then the file is released.
        """
        if not isinstance(file, File):
            raise Misuse(f"returned {brief(file)}, not a File")
        file.flags = flags
        descriptor, direct, keep_cache, flushes = None, node.size is None, False, False
        if isinstance(file, OpenFile):
            descriptor, keep_cache = file.backing, file.keep_cache
            direct = direct or file.direct
            flushes = type(file).flush is not OpenFile.flush
        number = self.known.number(node)
        how, backing = self.modes.open(handle, number, descriptor, direct, keep_cache)
        if not flushes and not self.filesystem.posix_locks:
            how |= FOPEN_NOFLUSH
        return self.add(handle, file, how, backing)

    def add(self, handle: int, file: File, how: int, backing: int) -> bytes:
        """``struct fuse_open_out`` for a file that is open from now on, with these FOPEN_ flags.

        Raises:
            OSError: ENODEV if the session has closed; then the file is released.
        """
        self.files[handle] = file
        if self._released:
            self.drop(handle)
            raise OSError(errno.ENODEV, "the session has closed")
        return _pack_open(handle, how, backing)

    def entry_opened(self, node: Node, file: object, flags: int) -> bytes | Awaitable[bytes]:
        """`entry` and `opened` in one answer. If it cannot be made, the file is released."""
        handle = self.handle()
        opened = self.opened(node, file, flags, handle)
        try:
            payload = self.entry(node, opened)
        except BaseException:
            self.drop(handle)
            raise
        return payload if isinstance(payload, bytes) else self._or_drop(payload, handle)

    async def _or_drop(self, payload: Awaitable[bytes], handle: int) -> bytes:
        try:
            return await payload
        except BaseException:
            self.drop(handle)
            raise

    def release_all(self) -> Iterator[Closed]:
        """Remove and return all open files, one by one; those opened later are released at once."""
        self._released = True
        for handle in list(self.files):
            closed = self.closed(handle)
            if closed is not None:
                yield closed

    def file(self, handle: int) -> File:
        """Return an open file. Raises OSError: EBADF."""
        try:
            return self.files[handle]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def place(self, handle: int, offset: int, flags: int) -> int:
        """Return the offset that a read or write has, whatever the kernel takes it for.

        A device without positions has none if the kernel tracks one: with FOPEN_STREAM it does not,
        but for O_APPEND. Then they count from the beginning of each call.
        """
        has_area = self.unpositioned.get(handle)
        if has_area is None:
            return offset
        return 0 if has_area or flags & os.O_APPEND else offset

    def closed(self, handle: int) -> Closed | None:
        """Remove and return a file that no program has open any longer; None if there is none."""
        self.modes.close(handle)
        file = self.files.pop(handle, None)
        if file is None:
            return None
        self.unpositioned.pop(handle, None)
        mapped = self.mapped.pop(handle, None)
        return Closed(file, file.release if mapped is None else mapped.end(self.runner))

    def adopt(self, file: object) -> tuple[int, int]:
        """See `recuse.server.ioctl_retries.Files`: a filesystem's ioctls make no files."""
        raise Misuse(f"returned {brief(file)}, and files that ioctls make are only devices'")

    def drop(self, handle: int) -> None:
        """See `recuse.server.ioctl_retries.Files`."""
        closed = self.closed(handle)
        if closed is not None:
            self.runner.quietly_later(closed.release)
        self.listings.pop(handle, None)

    def forget(self, number: int, count: int) -> None:
        """Take back ``count`` of the times that the kernel half was told about a node."""
        node = self.known.forget(number, count)
        if node is not None:
            self.runner.quietly_later(node.forgotten)


def made(returned: Any) -> tuple[Any, Any]:
    """Node and open file from what `Directory.create` returned; None if it opened none."""
    if isinstance(returned, tuple) and len(returned) == 2:
        return returned
    return returned, None


def of_kind(node: object, kind: type[Node]) -> Any:
    """Return a node if its kind supports an operation.

    Raises OSError: EINVAL, or ENOTDIR and the like, for requests the kernel would not make.
    """
    if not isinstance(node, kind):
        number = errno.ENOTDIR if kind.kind == stat.S_IFDIR else errno.EINVAL
        raise OSError(number, os.strerror(number))
    return node
