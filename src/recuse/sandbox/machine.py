"""A sandbox's machine: its devices, its tree and its open files, for all programs in it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from recuse.channel.inprocess import connect
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
from recuse.sandbox.vfs.device_files import majors_in_use
from recuse.sandbox.vfs.resolve import Path, Tree
from recuse.server.device import Device
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from recuse.sandbox.trap.renumber import Renumbered
    from recuse.server.filesystem.served import Served as ServedFilesystem


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

    def mount(self, filesystem: ServedFilesystem, path: Path) -> None:
        """Serve a filesystem, and cover a directory with it.

        Raises:
            OSError: with ``path`` as its filename: ENOENT or ENOTDIR if it is no directory, EBUSY
                if something is mounted there; ECONNREFUSED if the filesystem's answer
                to INIT is no use.
        """
        from recuse.sandbox.fs.mounting import serve  # noqa: PLC0415 - few sandboxes have any

        try:
            point = self.tree.mount_point(path)
            tree = serve(filesystem, self.files, self.tap)
            self._channels.append(tree)
            self.tree.mount(tree, path, point)
        except OSError as error:
            raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None
        self.serves(tree.connection)

    def serves(self, connection: Connection) -> None:
        """Answer what waits for a filesystem when its connection ends."""
        connection.at_end(partial(self._ended, connection))

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
