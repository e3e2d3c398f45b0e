"""Serving a filesystem in this process, for the programs of a sandbox."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from recuse.channel.inprocess_backing import InProcessBacking
from recuse.channel.inprocess_mount import InProcessMount
from recuse.kernel.connection.connection import Tap
from recuse.kernel.errors import os_error
from recuse.kernel.fs.notifications import notified
from recuse.kernel.fs.options import MountOptions
from recuse.kernel.fs.superblock import Superblock
from recuse.sandbox.files.table import FileTable
from recuse.sandbox.fs.tree import MountedTree
from recuse.server.filesystem.served import Served
from recuse.server.filesystem.session import FilesystemSession


class ServedTree(MountedTree):
    """A filesystem that is served in this process, until it is closed."""

    def __init__(self, superblock: Superblock, filesystem: Served, files: FileTable) -> None:
        """Begin to serve it."""
        name = os.fsencode(filesystem.name)
        super().__init__(superblock, files, (name, b"fuse." + name, b"rw,nosuid,nodev"))
        self._channel = InProcessMount(
            superblock, FilesystemSession(filesystem, InProcessBacking(superblock))
        )

    def close(self) -> None:
        """End the connection. Before that the server is told that nothing is in use any more."""
        self.superblock.drop_caches()
        self.superblock.send_forgets()
        self._channel.close()


def serve(filesystem: Served, files: FileTable, tap: Callable[[], Tap] | None) -> ServedTree:
    """Begin to serve a filesystem.

    Args:
        filesystem: what is served.
        files: the sandbox's table of open files.
        tap: see `recuse.sandbox.api.Sandbox`.

    Raises:
        OSError: ECONNREFUSED if its answer to INIT is no use.
        TypeError, ValueError: it is not well described.
    """
    options = MountOptions(user_id=os.geteuid(), group_id=os.getegid())
    superblock = Superblock(options, notified)
    if tap is not None:
        superblock.connection.tap = tap()
    tree = ServedTree(superblock, filesystem, files)
    if superblock.connection.ended:
        tree.close()
        raise os_error(errno.ECONNREFUSED)
    return tree
