"""Character devices and filesystems in userspace, including the kernel's part.

For authors of devices: subclass `Device` and `File`, declare ioctl handlers with `ioctl`.
For tests and tools: run programs in a `Sandbox` with such devices.
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

# What is imported when it is asked for: the command does without most of it, and a device's module
# without the sandbox.
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
