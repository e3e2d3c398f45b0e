"""Character devices and filesystems in userspace, including the kernel's part.

For authors of devices: subclass `Device` and `File`, declare ioctl handlers with `ioctl`.
For tests and tools: run programs in a `Sandbox` with such devices.
"""

from typing import TYPE_CHECKING, Any

from recuse.server.areas import Area
from recuse.server.device import Device
from recuse.server.file import File
from recuse.server.ioctl import ioctl
from recuse.server.mappings import Mapping, MmapRequest
from recuse.server.memory import Memory
from recuse.server.request import OpenRequest, Request, current_request
from recuse.server.session import Session
from recuse.server.sysfs import Link
from recuse.wire.ioctl import IO, IOR, IOW, IOWR

if TYPE_CHECKING:
    from recuse.sandbox import Sandbox, SandboxError

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
    """Import the sandbox when it is asked for: a device's module does without it."""
    if name in ("Sandbox", "SandboxError"):
        from recuse import sandbox  # noqa: PLC0415

        return getattr(sandbox, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
