"""``/dev/fuse``: programs in the sandbox that serve filesystems (fs/fuse/dev.c; Linux 6.18)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.files.server_channel import ServerChannel, ServerFile
from recuse.sandbox.tasks.memory import read_memory

if TYPE_CHECKING:
    from recuse.sandbox.files.table import FileTable
    from recuse.sandbox.trap.call import TrappedCall
    from recuse.sandbox.vfs.dentry import Location
    from recuse.sandbox.vfs.filesystem_tree import FilesystemTree

_NUMBER: Final = struct.Struct("=I")


class FuseFile(ServerFile):
    """One open ``/dev/fuse``. Until mount(2) names it, it serves nothing."""

    __slots__ = ("_files", "tree")

    def __init__(self, location: Location, flags: int, files: FileTable) -> None:
        """Open it; ``files`` is the sandbox's table. OSError: ENFILE."""
        super().__init__(location, flags, None)
        self._files = files
        self.tree: FilesystemTree | None = None
        """What was mounted with it."""

    def mounted(self, tree: FilesystemTree, channel: ServerChannel) -> None:
        """Serve a filesystem from now on."""
        self.tree = tree
        self.serve(channel)

    def ioctl(self, call: TrappedCall, command: int, argument: int) -> int:
        """Have this file serve what another one serves (FUSE_DEV_IOC_CLONE).

        Raises:
            OSError: ENOTTY for other commands; EINVAL if this one serves already, or the other one
                is no /dev/fuse or serves nothing; EFAULT.
        """
        from recuse.wire.filesystem import (  # noqa: PLC0415 - few sandboxes need any of it
            FUSE_DEV_IOC_CLONE,
        )

        if command != FUSE_DEV_IOC_CLONE:
            raise os_error(errno.ENOTTY)
        data = read_memory(call.tid, argument, _NUMBER.size)
        if len(data) < _NUMBER.size:
            raise os_error(errno.EFAULT)
        other = self._files.find_opened(call.tid, *_NUMBER.unpack(data))
        if self.tree is not None or not isinstance(other, FuseFile):
            raise os_error(errno.EINVAL)
        if other.tree is None or other.channel is None:
            raise os_error(errno.EINVAL)
        self.mounted(other.tree, other.channel)
        return 0
