"""Character devices and filesystems in userspace, including the kernel's part.

To write a device, subclass `Device` and `File`, and declare ioctl handlers with `ioctl`.
To run programs with devices, in tests and tools, use a `Sandbox`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recuse.sandbox import Sandbox, SandboxError
    from recuse.server.areas import Area
    from recuse.server.device import Device, File
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
    "Area": "server.areas",
    "Device": "server.device",
    "File": "server.device",
    "Link": "server.sysfs",
    "Mapping": "server.mapping",
    "Memory": "server.memory",
    "MmapRequest": "server.mapping",
    "OpenRequest": "server.request",
    "Request": "server.request",
    "Sandbox": "sandbox",
    "SandboxError": "sandbox",
    "Session": "server.session",
    "current_request": "server.request",
    "ioctl": "server.ioctl",
}

__all__ = [
    "IO",
    "IOR",
    "IOW",
    "IOWR",
    "Area",
    "Device",
    "File",
    "Link",
    "Mapping",
    "Memory",
    "MmapRequest",
    "OpenRequest",
    "Request",
    "Sandbox",
    "SandboxError",
    "Session",
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
