"""A device as a node of a filesystem, and the memory that programs map of it."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING

from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.server.device import Device, check_device
from recuse.server.filesystem.in_turn import InTurn
from recuse.server.filesystem.nodes import Node
from recuse.server.filesystem.open_file import error
from recuse.wire.descriptor import OwnedDescriptor

if TYPE_CHECKING:
    from recuse.server.areas import Area
    from recuse.server.device import File
    from recuse.server.filesystem.attributes import Changes
    from recuse.server.mapping import Mapping
    from recuse.server.runner import Runner

log = Log("recuse.server")


class DeviceNode(Node):
    """A device as a file of a filesystem: programs that open it get a `File` of the device.

    Mode and owner are the device's, and cannot be changed. To programs it is a regular file. They
    can map it if `Served.passthrough` is set, and `Served.direct_mmap` is not. `max_read` and
    `max_write` are the filesystem's. Nobody calls `Device.close`: do so in `Filesystem.close`.
    """

    kind = stat.S_IFREG
    size = None
    # What it can map may change its size at any time.
    cache_s = 0.0
    entry_cache_s = 1.0

    def __init__(self, device: Device) -> None:
        """Make it. Raises ValueError or TypeError if the device is not well described."""
        check_device(device)
        self.device = device
        self.mode = device.mode
        if device.uid is not None:
            self.uid = device.uid
        if device.gid is not None:
            self.gid = device.gid
        self.memory = SharedMemory()
        self._told: set[str] = set()

    def attributes(self) -> DeviceNode:
        """Return it; its size is that of the area that open files have."""
        self.size = self.memory.size
        return self

    def change(self, changes: Changes) -> None:
        """Refuse: EPERM."""
        raise error(errno.EPERM)

    def tell(self, what: str) -> None:
        """Log something, but not again."""
        if what not in self._told:
            self._told.add(what)
            log.error("%s: %s", self.device.name, what)


class SharedMemory:
    """The area that a device's open files have: all of them the same. Thread-safe."""

    def __init__(self) -> None:
        self._lock = new_lock("SharedMemory")
        self._area = 0
        self._files = 0
        self._descriptor: OwnedDescriptor | None = None

    @property
    def size(self) -> int | None:
        """Its size in bytes, None while there is none."""
        with self._lock:
            descriptor = self._descriptor
            return None if descriptor is None else os.fstat(descriptor.fileno()).st_size

    def take(self, area: Area) -> int:
        """Have one more file with this area; return a descriptor of it, which `leave` closes.

        Raises OSError: EBUSY if files have another area, EMFILE.
        """
        with self._lock:
            if self._descriptor is None:
                self._descriptor = OwnedDescriptor(os.dup(area.fileno()))
                self._area = area.number
            elif self._area != area.number:
                raise error(errno.EBUSY)
            self._files += 1
            return self._descriptor.fileno()

    def leave(self) -> None:
        """Have one file less."""
        with self._lock:
            self._files -= 1
            if not self._files and self._descriptor is not None:
                self._descriptor.close()
                self._descriptor = None


class Mapped:
    """The area of one open file, as its device sees it: a mapping."""

    def __init__(self, node: DeviceNode, file: File, mapping: Mapping) -> None:
        self._node = node
        self._file = file
        self._mapping = mapping

    def end(self, runner: Runner) -> InTurn:
        """Give it up; return what tells the device of that, and then releases the file."""
        self._node.memory.leave()
        file = self._file
        unmapped = partial(runner.forgiving, file.unmapped, self._mapping)
        return InTurn(unmapped, file.release, anyway=True)
