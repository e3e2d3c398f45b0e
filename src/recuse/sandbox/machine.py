"""A sandbox's machine: its devices, its tree and its open files, for all programs in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from recuse.channel.inprocess import connect
from recuse.channel.socket import RemoteError
from recuse.kernel.char.devices import CharDevice, DeviceTable
from recuse.kernel.connection.connection import Connection, Tap
from recuse.sandbox.abilities import may_mount
from recuse.sandbox.arch import arch
from recuse.sandbox.errands import Errands
from recuse.sandbox.files.table import FileTable
from recuse.sandbox.mapping.memory_maps import MemoryMaps
from recuse.sandbox.tasks.strings import StringReader
from recuse.sandbox.tasks.tasks import Tasks
from recuse.sandbox.trap.signals import SignalWatch
from recuse.sandbox.vfs.dentry import Location, Mount
from recuse.sandbox.vfs.device_files import majors_in_use
from recuse.sandbox.vfs.filesystem_tree import FilesystemTree
from recuse.sandbox.vfs.resolve import Path, Tree
from recuse.server.device import Device
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from recuse.channel.socket_mount import RemoteFilesystem
    from recuse.sandbox.fs.tree import MountedTree
    from recuse.sandbox.trap.renumber import Renumbered
    from recuse.server.filesystem.served import Served as ServedFilesystem


_MINOR_BITS = 20
"""Of a device number within the kernel (linux/kdev_t.h)."""


class Channel(Protocol):
    """Joins a device's server to the machine. The device is in the table until it is closed."""

    def close(self) -> None:
        """End the connection, and so the device."""


class Served(Protocol):
    """Serves the programs under one listener: a supervisor."""

    first_process: int
    """The process ID of their common ancestor."""

    def let_go(self, connection: Connection) -> None:
        """Answer the calls of a device that has gone."""

    def waits_for(self, connection: Connection) -> bool:
        """Whether a call waits for that connection's server."""


class Joinable(Protocol):
    """A device that is served elsewhere."""

    def connect(self, table: DeviceTable) -> Channel:
        """Join the device to a machine's table. Raises OSError as :meth:`Machine.add` does."""


def _renumbered() -> Renumbered:
    from recuse.sandbox.trap.renumber import Renumbered  # noqa: PLC0415 - only in some containers

    return Renumbered({name: arch.SYSCALLS[name] for name in ("mount", "umount2")})


class _Replaced:
    """A mount whose tree is replaced when its server has come back."""

    def __init__(self, machine: Machine, path: Path, point: Location | None) -> None:
        self._machine = machine
        self._path = path
        self._point = point
        self._mount: Mount | None = None

    def show(self, tree: MountedTree) -> None:
        """Mount a tree. Raises OSError as `recuse.sandbox.vfs.mounts.Mounts.mount`."""
        machine, before = self._machine, self._mount
        self._mount = machine.tree.mount(tree, self._path, self._point)
        machine.serves(tree, os.fsdecode(self._mount.path))
        if before is not None:
            machine.unmount(before)

    def is_wanted(self) -> bool:
        """Whether no program has unmounted it."""
        return self._mount is None or not self._mount.detached


class Machine:
    """What the programs of one sandbox share."""

    def __init__(self, tap: Callable[[], Tap] | None = None, *, fuse: bool = True) -> None:
        """Make a machine without devices, and start the threads that every machine needs.

        Args:
            tap: called for each connection of a device or filesystem; returns what sees its
                messages.
            fuse: whether programs may mount filesystems that they serve.

        Raises:
            OSError: EAGAIN if no thread can be started; EMFILE.
        """
        with contextlib.ExitStack() as made:
            self.errands = Errands()
            made.callback(self.errands.close)
            self.signals = SignalWatch(self.errands)
            made.callback(self.signals.close)
            self.files = FileTable(self.errands)
            made.callback(self.files.close)
            self.tasks = Tasks()
            made.callback(self.tasks.close)
            self.memory_maps = MemoryMaps(self.files.pending)
            self.tree = Tree(self.tasks, self.files.by_link)
            self.table = DeviceTable(self._added, self.tree.devices.remove, majors_in_use())
            self.tree.devices.add_machine(self.table)
            if fuse:
                self.tree.devices.add_kinds()
            self.table.tap = tap
            made.pop_all()
        self.strings = StringReader()
        self.supervisors: list[Served] = []
        """The supervisors of its programs."""
        self.let_pass: set[int] = set()
        """Threads that repeat a call which may pass devices on (`syscalls.passing`)."""
        self.scripts: dict[Tid, int] = {}
        """Threads that are made to execute a script's interpreter: how many led to it."""
        self.renumbered = None if may_mount() else _renumbered()
        """The threads whose calls of mount(2) a container would otherwise refuse."""
        self._channels: list[Channel] = []
        self.tap = tap
        self.fuse = fuse

    def _added(self, device: CharDevice) -> None:
        self.tree.devices.add(device)
        device.connection.at_end(partial(self._ended, device.connection))

    def _ended(self, connection: Connection) -> None:
        for supervisor in list(self.supervisors):
            supervisor.let_go(connection)

    def first_processes(self) -> set[int]:
        """The processes that are the ancestors of all its programs."""
        return {supervisor.first_process for supervisor in self.supervisors}

    def add(self, device: Device | Joinable) -> None:
        """Connect a device. It is in the tree when this returns.

        Raises:
            OSError: EEXIST if the name is taken, EBUSY if the number is.
        """
        if isinstance(device, Device):
            self._channels.append(connect(self.table, device))
        else:
            self._channels.append(device.connect(self.table))

    def mount(self, filesystem: ServedFilesystem | RemoteFilesystem, path: Path) -> None:
        """Serve a filesystem, or join its server, and cover a directory with it.

        Raises:
            RemoteError: see `RemoteFilesystem.join`.
            OSError: with ``path`` as its filename: ENOENT or ENOTDIR if it is no directory, EBUSY
                if something is mounted there; ECONNREFUSED if the filesystem's answer
                to INIT is no use.
        """
        from recuse.channel.socket_mount import RemoteFilesystem  # noqa: PLC0415 - few have any
        from recuse.sandbox.fs.mounting import RemoteMount, serve  # noqa: PLC0415 - few have any

        try:
            mount = _Replaced(self, path, self.tree.mount_point(path))
            if isinstance(filesystem, RemoteFilesystem):
                remote = RemoteMount(filesystem, self.files, self.tap, mount.show, mount.is_wanted)
                self._channels.append(remote)
            else:
                tree = serve(filesystem, self.files, self.tap)
                self._channels.append(tree)
                mount.show(tree)
        except RemoteError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None

    def serves(self, tree: MountedTree, path: str) -> None:
        """Note that a filesystem is mounted: what waits for it is answered when it ends."""
        connection, options = tree.connection, tree.superblock.options
        major, minor = os.major(tree.device), os.minor(tree.device)
        owner = options.user_id, options.group_id
        self.tree.devices.add_connection(connection, major << _MINOR_BITS | minor, owner)
        connection.at_end(partial(self._filesystem_ended, tree))
        if connection.tap is not None:
            connection.tap.added(path, 0, 0)

    def _filesystem_ended(self, tree: FilesystemTree) -> None:
        self._ended(tree.connection)
        self._remove_unused(tree)

    def _remove_unused(self, tree: FilesystemTree) -> None:
        """Remove a filesystem's files in /sys if it has ended and is mounted nowhere."""
        if tree.connection.ended and not self.tree.mounts.shows(tree):
            self.tree.devices.remove_connection(tree.connection)

    def unmount(self, mount: Mount) -> Connection | None:
        """Take a filesystem away, and what is mounted on it; it ends with its last open file.

        Returns its connection if that ends only when the server has answered.
        """
        mounts = self.tree.mounts
        awaited = None
        for one in mounts.unmount(mount):
            assert isinstance(one.tree, FilesystemTree)
            if mounts.shows(one.tree):
                continue
            if one.tree.detach() and one is mount:
                awaited = one.tree.connection
            self._remove_unused(one.tree)
        return awaited

    def waits_for(self, connection: Connection) -> bool:
        """Whether a program's call waits for that connection's server."""
        return any(supervisor.waits_for(connection) for supervisor in list(self.supervisors))

    def close(self) -> None:
        """Release all open files and end all devices and filesystems."""
        self.memory_maps.close()
        self.files.close()
        self.tree.close()
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self.signals.close()
        self.errands.close()
        self.strings.close()
        self.tasks.close()
