"""Character devices and filesystems in userspace, including the kernel's part.

For authors of devices: subclass `Device` and `File`, declare ioctl handlers with `ioctl`.
"""

from recuse.server.device import Device
from recuse.server.file import File
from recuse.server.ioctl import ioctl
from recuse.server.memory import Memory
from recuse.server.request import OpenRequest, Request, current_request
from recuse.server.session import Session
from recuse.wire.ioctl import IO, IOR, IOW, IOWR

__all__ = [
    "IO",
    "IOR",
    "IOW",
    "IOWR",
    "Device",
    "File",
    "Memory",
    "OpenRequest",
    "Request",
    "Session",
    "current_request",
    "ioctl",
]
