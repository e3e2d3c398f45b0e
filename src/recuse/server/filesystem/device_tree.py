"""Devices as a filesystem: what `recuse serve --mount` mounts."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from recuse.runtime.log import Log
from recuse.server.device import Device, device_makes_files, device_uses_memory
from recuse.server.filesystem.device_node import DeviceNode
from recuse.server.filesystem.filesystem import Filesystem
from recuse.server.filesystem.nodes import Directory, Node
from recuse.server.filesystem.open_file import error

if TYPE_CHECKING:
    from recuse.server.filesystem.attributes import Changes

log = Log("recuse.server")


class FixedDirectory(Directory):
    """A directory of which nothing changes."""

    def change(self, changes: Changes) -> None:
        """Refuse: EPERM."""
        raise error(errno.EPERM)


class DeviceTree(Filesystem):
    """Devices at their names; if these have "/", there are directories."""

    passthrough = True
    direct_mmap = False

    def __init__(self, devices: Sequence[Device]) -> None:
        """Make the tree.

        Raises ValueError or TypeError if a device is not well described (see `Device`), or if the
        names of two devices conflict.
        """
        super().__init__(FixedDirectory())
        self._devices = devices
        self.max_read = min(device.max_read for device in devices)
        self.max_write = min(device.max_write for device in devices)
        for device in devices:
            self._add(device)

    def _add(self, device: Device) -> None:
        *parents, name = device.name.split("/")
        node: Node = self.root
        for part in parents:
            if isinstance(node, Directory):
                node = _below(node, part)
        if not isinstance(node, Directory) or name in node.children:
            raise ValueError(f"the name {device.name} is taken twice")
        node.children[name] = DeviceNode(device)

    def limits(self, path: str, maps: bool) -> Iterator[str]:
        """What a mount on ``path`` does not do for these devices, line by line.

        Args:
            path: where it is.
            maps: whether the kernel takes backing files.
        """
        if not maps:
            yield (
                f"{path}: programs cannot map these files (ENODEV): this kernel has no FUSE "
                "passthrough (Linux 6.9 or newer, CONFIG_FUSE_PASSTHROUGH)"
            )
        for device in self._devices:
            node = f"{path}/{device.name}"
            if device.sysfs or device.subsystem != "class/cuse":
                yield f"{node}: what it declares for /sys is not there"
            if device_makes_files(device):
                yield (
                    f"{node}: ioctls that make a new descriptor fail (EOPNOTSUPP): "
                    "Linux's FUSE has no such thing"
                )
            if device.unrestricted and device_uses_memory(device):
                yield (
                    f"{node}: ioctls that use memory their number does not describe fail (EIO): "
                    "Linux's FUSE lets none through"
                )

    def close(self) -> None:
        """Tell the devices that this is their end."""
        for device in self._devices:
            try:
                device.close()
            except BaseException as failure:
                kind = type(device).__name__
                log.error("%s.close raised %s", kind, type(failure).__name__, exc_info=failure)


def _below(directory: Directory, name: str) -> Node:
    """Return what has a name in a directory; a new directory if there is nothing."""
    node = directory.children.get(name)
    if node is None:
        node = directory.children[name] = FixedDirectory()
        directory.nlink += 1
    return node
