"""Files without their names (inodes): a class for each kind of file."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from recuse.kernel.caller import Caller
from recuse.kernel.char.devices import CharDevice
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.runtime.records import NamedTuple
from recuse.sandbox.arch.status import Status
from recuse.sandbox.vfs import native_files

if TYPE_CHECKING:
    from recuse.sandbox.trap.call import OnDevice


_SECOND: Final = 1_000_000_000


class Identity(NamedTuple):
    """What every node has from its creation."""

    inode: int
    """As st_ino."""
    uid: int
    gid: int
    filesystem: int
    """The number of the filesystem that it appears to be on, as st_dev."""


class Node:
    """What all kinds of nodes have in common; also a file whose kind is only in its mode."""

    __slots__ = (
        "accessed_ns",
        "block_size",
        "changed_ns",
        "filesystem",
        "gid",
        "inode",
        "links",
        "mode",
        "modified_ns",
        "rdev",
        "removed",
        "size",
        "uid",
    )

    is_directory: ClassVar[bool] = False
    is_link: ClassVar[bool] = False
    """Whether it is a symbolic link."""

    def __init__(self, identity: Identity, mode: int) -> None:
        """Make a node with the current time as its times; ``mode`` is as st_mode."""
        self.inode, self.uid, self.gid, self.filesystem = identity
        self.mode = mode
        self.links = 1
        """As st_nlink."""
        self.rdev = 0
        """A device's number, as st_rdev."""
        self.size = 0
        """As st_size."""
        self.block_size = PAGE_SIZE
        """As st_blksize."""
        self.accessed_ns = self.modified_ns = self.changed_ns = time.time_ns()
        self.removed = False
        """Whether no name leads to it any more."""

    def status(self) -> Status:
        """What stat returns for it."""
        return Status(
            self.filesystem,
            self.inode,
            self.mode,
            self.links,
            self.uid,
            self.gid,
            self.rdev,
            self.size,
            self.block_size,
            (
                *divmod(self.accessed_ns, _SECOND),
                *divmod(self.modified_ns, _SECOND),
                *divmod(self.changed_ns, _SECOND),
            ),
        )

    def resemble(self, native: os.stat_result) -> None:
        """Look like a native file."""
        self.mode, self.links, self.rdev = native.st_mode, native.st_nlink, native.st_rdev
        self.size, self.block_size = native.st_size, native.st_blksize
        self.accessed_ns, self.modified_ns = native.st_atime_ns, native.st_mtime_ns
        self.changed_ns = native.st_ctime_ns

    def read_link(self) -> bytes:
        """Where a symbolic link leads. OSError: EINVAL for all other nodes."""
        raise os_error(errno.EINVAL)


class DirectoryNode(Node):
    """A directory."""

    __slots__ = ()

    is_directory = True

    def __init__(self, identity: Identity, mode: int = 0o755) -> None:
        """Make an empty directory; ``mode`` is permission bits."""
        super().__init__(identity, stat.S_IFDIR | mode)
        self.links = 2


class LinkNode(Node):
    """A symbolic link."""

    __slots__ = ("target",)

    is_link = True

    def __init__(self, identity: Identity, target: bytes) -> None:
        """Make a link that leads to ``target``."""
        super().__init__(identity, stat.S_IFLNK | 0o777)
        self.target = target
        self.size = len(target)

    def read_link(self) -> bytes:
        """Where it leads."""
        return self.target


class AttributeNode(Node):
    """A small regular file like those of ``/sys`` and ``/proc``; its content is made when read."""

    __slots__ = ("show", "store")

    def __init__(
        self,
        identity: Identity,
        mode: int,
        show: Callable[[Caller], bytes | OnDevice[bytes]] | None,
        store: Callable[[bytes], None] | None = None,
    ) -> None:
        """Make one.

        Args:
            identity: as every node has.
            mode: permission bits.
            show: makes the content, or returns the step that does; None if it cannot be read.
            store: is given what is written; None if it cannot be written.
        """
        super().__init__(identity, stat.S_IFREG | mode)
        self.show = show
        self.store = store


class ControlNode(AttributeNode):
    """The same for a file of ``/sys/fs/fuse/connections``, another kind of filesystem."""

    __slots__ = ()


class ServerNode(Node):
    """A node that programs open to serve something."""

    __slots__ = ()

    def __init__(self, identity: Identity, mode: int, rdev: int) -> None:
        """Make the node; ``mode`` is permission bits."""
        super().__init__(identity, stat.S_IFCHR | mode)
        self.rdev = rdev

    def at(self, native: os.stat_result) -> Node:
        """Make a node like this one for a native node that has the same number."""
        second = type(self)(_identity(native), 0, self.rdev)
        second.resemble(native)
        return second


class CuseNode(ServerNode):
    """``/dev/cuse``: programs that open it serve devices."""

    __slots__ = ()


class FuseNode(ServerNode):
    """``/dev/fuse``: programs that open it serve filesystems."""

    __slots__ = ()


class DeviceNode(Node):
    """A node that leads to a device."""

    __slots__ = ("device",)

    def __init__(self, identity: Identity, mode: int, device: CharDevice) -> None:
        """Make the node; ``mode`` is permission bits."""
        super().__init__(identity, stat.S_IFCHR | mode)
        self.device = device
        self.rdev = os.makedev(device.major, device.minor)

    def at(self, native: os.stat_result) -> Node:
        """Make a node like this one for a native node that has the same number."""
        second = DeviceNode(_identity(native), 0, self.device)
        second.resemble(native)
        return second


class AnonymousNode(Node):
    """The common node of all files that a device's ioctls have made. It cannot be opened.

    Like the kernel's anonymous inode (fs/anon_inodes.c) it has mode 0600 and no type.
    """

    __slots__ = ("device",)

    def __init__(self, identity: Identity, device: CharDevice) -> None:
        """Make the node."""
        super().__init__(identity, 0o600)
        self.device = device


def _identity(native: os.stat_result) -> Identity:
    return Identity(native.st_ino, native.st_uid, native.st_gid, native.st_dev)


def native_node(file: int) -> Node:
    """A node that looks like the file to which a descriptor (O_PATH) leads.

    Raises:
        OSError: if the file cannot be looked at.
    """
    native = os.fstat(file)
    identity = _identity(native)
    node: Node
    if stat.S_ISDIR(native.st_mode):
        node = DirectoryNode(identity)
    elif stat.S_ISLNK(native.st_mode):
        node = LinkNode(identity, native_files.target_of(file))
    else:
        node = Node(identity, 0)
    node.resemble(native)
    return node
