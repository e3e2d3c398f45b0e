"""Character devices and filesystems in userspace, including the kernel's part.

To write a device, subclass `Device` and `File`, and declare ioctl handlers with `ioctl`.
To write a filesystem, subclass `Filesystem`, `Directory` and `RegularFile`, and `Mount` it.
To run programs with devices, in tests and tools, use a `Sandbox`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recuse.channel.mount import Mount
    from recuse.channel.mounting import MountError
    from recuse.sandbox import Sandbox, SandboxError
    from recuse.server.areas import Area
    from recuse.server.device import Device, File
    from recuse.server.errors import ArgumentError
    from recuse.server.filesystem.attributes import (
        Attributes,
        Changes,
        DirectoryEntry,
        Entry,
        InodeEntry,
        Lock,
        Opened,
        Statistics,
    )
    from recuse.server.filesystem.device_node import DeviceNode
    from recuse.server.filesystem.filesystem import Filesystem
    from recuse.server.filesystem.inodes import ROOT_INODE, Inodes
    from recuse.server.filesystem.nodes import (
        RENAME_EXCHANGE,
        RENAME_NOREPLACE,
        RENAME_WHITEOUT,
        Directory,
        Node,
        NodeFile,
        RegularFile,
        Special,
        Symlink,
    )
    from recuse.server.filesystem.open_file import OpenFile
    from recuse.server.ioctl import ioctl
    from recuse.server.mapping import Mapping, MmapRequest
    from recuse.server.memory import Memory
    from recuse.server.request import OpenRequest, Request, current_request
    from recuse.server.session import Session
    from recuse.server.sysfs import Link
    from recuse.wire.ioctl import IO, IOR, IOW, IOWR

# These are imported on first use: the command does not need most of them, and a device's module
# does not need the sandbox.
_HOMES = {
    "IO": "wire.ioctl",
    "IOR": "wire.ioctl",
    "IOW": "wire.ioctl",
    "IOWR": "wire.ioctl",
    "RENAME_EXCHANGE": "server.filesystem.nodes",
    "RENAME_NOREPLACE": "server.filesystem.nodes",
    "RENAME_WHITEOUT": "server.filesystem.nodes",
    "ROOT_INODE": "server.filesystem.inodes",
    "Area": "server.areas",
    "ArgumentError": "server.errors",
    "Attributes": "server.filesystem.attributes",
    "Changes": "server.filesystem.attributes",
    "Device": "server.device",
    "DeviceNode": "server.filesystem.device_node",
    "Directory": "server.filesystem.nodes",
    "DirectoryEntry": "server.filesystem.attributes",
    "Entry": "server.filesystem.attributes",
    "File": "server.device",
    "Filesystem": "server.filesystem.filesystem",
    "InodeEntry": "server.filesystem.attributes",
    "Inodes": "server.filesystem.inodes",
    "Link": "server.sysfs",
    "Lock": "server.filesystem.attributes",
    "Mapping": "server.mapping",
    "Memory": "server.memory",
    "MmapRequest": "server.mapping",
    "Mount": "channel.mount",
    "MountError": "channel.mounting",
    "Node": "server.filesystem.nodes",
    "NodeFile": "server.filesystem.nodes",
    "OpenFile": "server.filesystem.open_file",
    "OpenRequest": "server.request",
    "Opened": "server.filesystem.attributes",
    "RegularFile": "server.filesystem.nodes",
    "Request": "server.request",
    "Sandbox": "sandbox",
    "SandboxError": "sandbox",
    "Session": "server.session",
    "Special": "server.filesystem.nodes",
    "Statistics": "server.filesystem.attributes",
    "Symlink": "server.filesystem.nodes",
    "current_request": "server.request",
    "ioctl": "server.ioctl",
}

__all__ = [
    "IO",
    "IOR",
    "IOW",
    "IOWR",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "ROOT_INODE",
    "Area",
    "ArgumentError",
    "Attributes",
    "Changes",
    "Device",
    "DeviceNode",
    "Directory",
    "DirectoryEntry",
    "Entry",
    "File",
    "Filesystem",
    "InodeEntry",
    "Inodes",
    "Link",
    "Lock",
    "Mapping",
    "Memory",
    "MmapRequest",
    "Mount",
    "MountError",
    "Node",
    "NodeFile",
    "OpenFile",
    "OpenRequest",
    "Opened",
    "RegularFile",
    "Request",
    "Sandbox",
    "SandboxError",
    "Session",
    "Special",
    "Statistics",
    "Symlink",
    "current_request",
    "ioctl",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"recuse.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
