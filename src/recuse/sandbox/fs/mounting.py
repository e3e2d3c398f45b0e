"""Filesystems that are served in this process, or at a socket, for the programs of a sandbox."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from recuse.channel.socket_mount import RemoteFilesystem


class ServedTree(MountedTree):
    """A filesystem that is served in this process, until it is closed."""

    def __init__(self, superblock: Superblock, filesystem: Served, files: FileTable) -> None:
        """Begin to serve it."""
        super().__init__(superblock, files, _listed(superblock, filesystem.name, filesystem.name))
        self._channel = InProcessMount(
            superblock, FilesystemSession(filesystem, InProcessBacking(superblock))
        )

    def close(self) -> None:
        """End the connection. Before that the server is told that nothing is in use any more."""
        _forget(self)
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
    options = MountOptions(
        user_id=os.geteuid(),
        group_id=os.getegid(),
        read_only=filesystem.read_only,
        max_read=filesystem.max_read,
    )
    superblock = Superblock(options, notified)
    if tap is not None:
        superblock.connection.tap = tap()
    tree = ServedTree(superblock, filesystem, files)
    if superblock.connection.ended:
        tree.close()
        raise os_error(errno.ECONNREFUSED)
    return tree


class RemoteMount:
    """The mount of a filesystem that is served at a socket: a new tree for each connection."""

    def __init__(
        self,
        filesystem: RemoteFilesystem,
        files: FileTable,
        tap: Callable[[], Tap] | None,
        mount: Callable[[MountedTree], None],
        wanted: Callable[[], bool],
    ) -> None:
        """Mount it.

        Args:
            filesystem: what is served.
            files: the sandbox's table of open files.
            tap: see `recuse.sandbox.api.Sandbox`.
            mount: mounts a tree, in place of the one before.
            wanted: whether it is still mounted.

        Raises:
            OSError: as `RemoteFilesystem.join`.
        """
        self._source = f"unix:{filesystem.path}"
        self._files = files
        self._mount = mount
        self._tree: MountedTree | None = None
        self._joined = filesystem.join(self._appear, wanted, tap)

    def _appear(self, superblock: Superblock, name: str) -> None:
        listed = _listed(superblock, self._source, name)
        self._tree = MountedTree(superblock, self._files, listed)
        self._mount(self._tree)

    def close(self) -> None:
        """End the connection. Before that the server is told that nothing is in use any more."""
        if self._tree is not None:
            _forget(self._tree)
        self._joined.close()


def _listed(superblock: Superblock, source: str, name: str) -> tuple[bytes, bytes, bytes]:
    flags = b"ro" if superblock.options.read_only else b"rw"
    return os.fsencode(source), b"fuse." + os.fsencode(name), flags + b",nosuid,nodev"


def _forget(tree: MountedTree) -> None:
    tree.superblock.drop_caches()
    tree.superblock.send_forgets()
