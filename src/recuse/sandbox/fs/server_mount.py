"""What mount(2) says of a filesystem whose server has opened /dev/fuse (fs/fuse/inode.c, 6.18)."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Final

from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs.notifications import notified
from recuse.kernel.fs.options import MountOptions
from recuse.kernel.fs.superblock import Superblock
from recuse.runtime.records import record
from recuse.sandbox.files.server_channel import ServerChannel
from recuse.sandbox.fs.tree import MountedTree

if TYPE_CHECKING:
    from collections.abc import Callable

    from recuse.kernel.connection.connection import Tap
    from recuse.sandbox.files.fuse_file import FuseFile
    from recuse.sandbox.files.table import FileTable
    from recuse.sandbox.vfs.filesystem_tree import FilesystemTree

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
_MS_NOATIME: Final = 1024
_MS_STRICTATIME: Final = 1 << 24
_ATIME: Final = _MS_NOATIME | 2048 | 1 << 21 | _MS_STRICTATIME
"""Without any of these, a remount leaves them as they are."""
_FLAGS: Final = (
    (16, b"sync"),
    (128, b"dirsync"),
    (MS_NOSUID, b"nosuid"),
    (MS_NODEV, b"nodev"),
    (8, b"noexec"),
    (_MS_NOATIME, b"noatime"),
    (2048, b"nodiratime"),
)
"""linux/mount.h"""

_NO_LIMIT: Final = 0xFFFFFFFF
_BLOCK: Final = 512
"""FUSE_DEFAULT_BLKSIZE"""


@record
class ServerOptions:
    """The options of one mount."""

    descriptor: int = -1
    root_mode: int = -1
    user_id: int = -1
    group_id: int = -1
    default_permissions: bool = False
    allow_other: bool = False
    max_read: int = _NO_LIMIT
    block_size: int = 0
    """See `MountOptions`."""


def parse_options(data: bytes, *, on_device: bool) -> ServerOptions:
    """Parse what mount(2) gets as data; ``on_device`` for fuseblk.

    Raises:
        OSError: EINVAL for what is unknown, malformed, or missing.
    """
    options = ServerOptions(block_size=_BLOCK if on_device else 0)
    for option in filter(None, data.split(b",")):
        name, _, value = option.partition(b"=")
        match name:
            case b"fd":
                options.descriptor = _number(value)
            case b"rootmode":
                options.root_mode = _number(value, 8)
            case b"user_id":
                options.user_id = _number(value)
            case b"group_id":
                options.group_id = _number(value)
            case b"max_read":
                options.max_read = _number(value)
            case b"blksize" if on_device:
                options.block_size = _block_size(value)
            case b"default_permissions" if not value:
                options.default_permissions = True
            case b"allow_other" if not value:
                options.allow_other = True
            case b"subtype" | b"source" if value:
                pass  # mount(2) has its own argument for either
            case _:
                raise os_error(errno.EINVAL)
    if min(options.descriptor, options.root_mode, options.user_id, options.group_id) < 0:
        raise os_error(errno.EINVAL)
    if not stat.S_IFMT(options.root_mode):
        raise os_error(errno.EINVAL)
    return options


def _number(value: bytes, base: int = 10) -> int:
    try:
        number = int(value, base) if value.isalnum() else -1
    except ValueError:
        number = -1
    if not 0 <= number <= 0xFFFFFFFF:
        raise os_error(errno.EINVAL)
    return number


def _block_size(value: bytes) -> int:
    size = _number(value)
    if not _BLOCK <= size <= PAGE_SIZE or size & (size - 1):
        raise os_error(errno.EINVAL)
    return size


def mount_server(  # noqa: PLR0917 - what mount(2) has
    file: FuseFile,
    options: ServerOptions,
    listed: tuple[bytes, bytes, int],
    device: int | None,
    files: FileTable,
    tap: Callable[[], Tap] | None,
) -> MountedTree:
    """The tree of what a program serves by a file; the same one if it is mounted once more.

    ``listed`` is its source, type and flags, as mount(2) has them, and ``device`` the number of the
    block device that it is on.
    """
    if isinstance(file.tree, MountedTree):
        return file.tree
    source, kind, flags = listed
    told = MountOptions(
        default_permissions=options.default_permissions,
        allow_other=options.allow_other,
        read_only=bool(flags & MS_RDONLY),
        user_id=options.user_id,
        group_id=options.group_id,
        root_mode=options.root_mode,
        max_read=options.max_read,
        block_size=options.block_size,
    )
    superblock = Superblock(told, notified)
    if tap is not None:
        superblock.connection.tap = tap()
    tree = MountedTree(superblock, files, (source, kind, shown_flags(flags)), device)
    file.mounted(tree, ServerChannel(superblock.connection))
    return tree


def shown_flags(flags: int) -> bytes:
    """What ``/proc/mounts`` says of a mount's flags (fs/proc_namespace.c)."""
    shown = [b"ro" if flags & MS_RDONLY else b"rw"]
    shown += [name for flag, name in _FLAGS if flags & flag]
    if not flags & (_MS_NOATIME | _MS_STRICTATIME):
        shown.append(b"relatime")
    return b",".join(shown)


def remount(tree: FilesystemTree, flags: int) -> None:
    """Change a mount's flags (fs/namespace.c, path_mount; fs/fuse/inode.c, fuse_reconfigure)."""
    shown = shown_flags(flags)
    if not flags & _ATIME:
        before = tree.description.flags.split(b",")
        kept = [word for word in before if word.endswith((b"atime", b"diratime"))]
        shown = b",".join([*shown.split(b",")[:-1], *kept])
    tree.remount(shown)
