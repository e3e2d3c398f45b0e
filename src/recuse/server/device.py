"""What an author subclasses for a device."""

import errno
import os
from collections.abc import Awaitable, Mapping

from recuse.server.file import FILE_MAKERS, MEMORY_USERS, File
from recuse.server.request import OpenRequest
from recuse.server.sysfs import Value, info_strings, wrong_subsystem, wrong_sysfs
from recuse.wire.cuse import CUSE_INIT_INFO_MAX, RECUSE_NODE_INFO, RECUSE_SYSFS

NAME_MAX_BYTES = 64
"""Longest device name, in bytes of UTF-8; there is no such limit in fs/fuse/cuse.c, 6.1."""

_LEAST_TRANSFER_BYTES = 4096
_MOST_TRANSFER_BYTES = 1 << 20


class Device:
    """A character device, which exists while a session serves it.

    Describe it with class attributes, or with keyword arguments for one instance of it::

        class Echo(Device):
            name = "echo"

            def open(self, request):
                return EchoFile()

        Echo(name="echo1", mode=0o600)

    A subclass with an ``__init__`` of its own needs not call this one.
    """

    name: str = ""
    """Path below /dev, "echo" or "snd/echo": 1 to 64 bytes of UTF-8, relative, without empty
    components, "." and "..", without control characters, and without white space at the ends (the
    kernel strips it)."""

    mode: int = 0o666
    """Permission bits of the node, 0 to 0o777.  Linux's CUSE leaves them to udev."""

    uid: int | None = None
    """Owner of the node, None for the default.  Linux's CUSE leaves it to udev."""

    gid: int | None = None
    """Group of the node, None for the default.  Linux's CUSE leaves it to udev."""

    major: int = 0
    """Major number, 0 to 511; 0 takes a free one."""

    minor: int = 0
    """Minor number, 0 to 2**20 - 1."""

    max_read: int = 131072
    """Most bytes that `File.read` is asked for at once, 4096 to 2**20.

    Linux's CUSE sends at most 131072 (32 pages) anyway.
    """

    max_write: int = 131072
    """Most bytes that `File.write` is given at once, 4096 to 2**20; the same holds."""

    seekable: bool = False
    """Whether reads and writes have positions, as on a disk.

    recuse's own kernel half honours it.  Linux's CUSE cannot: offsets are 0 and lseek(2) succeeds
    without effect.
    """

    unrestricted: bool = True
    """Whether ioctl handlers may use the program's memory at any address.

    Without, an ioctl moves what its command's number says (_IOR, _IOW, _IOWR) and nothing else.
    """

    subsystem: str = "class/cuse"
    """The class or bus below /sys that programs look for it in: "class/i2c-dev", "bus/gpio".

    ``/sys/dev/char/MAJOR:MINOR`` leads to its directory there; the one in CUSE's class is there as
    well.  Linux's CUSE has that one only.
    """

    sysfs: Mapping[str, Value] = {}
    """Files in the device's directory below /sys: by name or path in it, what is to be read there.

    The content is str or bytes of 4096 bytes at the most, exactly as it is to be read (with the
    newline at its end), or a function that is called with the device when a program reads the
    file, and returns that; it may be ``async def``.  A `Link` is a symbolic link.  A path that
    begins with /sys/ or /proc/ is another file's.  What is there for every device (dev, uevent and
    so on) may be replaced.  Linux's CUSE has none of it.
    """

    map_length: int = 4096
    """What `File.mmap` is asked for on a FUSE mount, in bytes: a positive number, at most 2**40.

    Linux does not tell what programs map there (`recuse serve --mount`).  It is rounded to pages.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        major: int | None = None,
        minor: int | None = None,
        max_read: int | None = None,
        max_write: int | None = None,
        seekable: bool | None = None,
        unrestricted: bool | None = None,
        subsystem: str | None = None,
        sysfs: Mapping[str, Value] | None = None,
        map_length: int | None = None,
    ) -> None:
        """Make a device; each argument overrides the class attribute of its name.

        Raises ValueError if an attribute is out of its range.
        """
        for attribute, value in (
            ("name", name),
            ("mode", mode),
            ("uid", uid),
            ("gid", gid),
            ("major", major),
            ("minor", minor),
            ("max_read", max_read),
            ("max_write", max_write),
            ("seekable", seekable),
            ("unrestricted", unrestricted),
            ("subsystem", subsystem),
            ("sysfs", sysfs),
            ("map_length", map_length),
        ):
            if value is not None:
                setattr(self, attribute, value)
                _check_attribute(self, attribute)

    def open(self, request: OpenRequest) -> File | Awaitable[File]:
        """Return a new File for a program that opens the device.

        Permission bits have been checked already, by the kernel half.  May be ``async def``.
        Raises OSError to refuse: EBUSY if there may be one user at a time, EACCES for a
        direction that the device has not.
        """
        raise OSError(errno.ENODEV, "no open method")

    def close(self) -> None:
        """Be told that the device is gone; its files have been released before.

        Called once, when the session ends.  What is raised here is logged.
        """


def device_makes_files(device: Device) -> bool:
    """Whether ioctls of the device seem to make files, which not all kernel halves take.

    What a device opens is known only when it is opened: this goes by what else there is in the
    modules of its class and of those that it is derived from, when it is asked.
    """
    return any(cls.__module__ in FILE_MAKERS for cls in type(device).__mro__)


def device_uses_memory(device: Device) -> bool:
    """Whether ioctls of the device seem to use memory of which their numbers do not tell.

    This goes by the same as `device_makes_files`.
    """
    return any(cls.__module__ in MEMORY_USERS for cls in type(device).__mro__)


_RANGES = {
    "mode": (0, 0o777),
    "major": (0, 511),
    "minor": (0, (1 << 20) - 1),
    "max_read": (_LEAST_TRANSFER_BYTES, _MOST_TRANSFER_BYTES),
    "max_write": (_LEAST_TRANSFER_BYTES, _MOST_TRANSFER_BYTES),
    "uid": (0, (1 << 32) - 2),
    "gid": (0, (1 << 32) - 2),
    "map_length": (1, 1 << 40),
}


def check_device(device: Device) -> None:
    """Check what an author may have got wrong, before a session depends on it.

    Raises ValueError that says which attribute is out of range, TypeError for a missing `open`.
    """
    if type(device).open is Device.open:
        raise TypeError(f"{type(device).__name__} has no open method")
    for attribute in ("name", *_RANGES, "subsystem", "sysfs"):
        _check_attribute(device, attribute)
    info = device_info(device, 0xFFFFFFFF)
    if len(info) > CUSE_INIT_INFO_MAX:
        raise ValueError(
            f"{type(device).__name__}.sysfs has too many paths: they are {len(info)} bytes, "
            f"with {CUSE_INIT_INFO_MAX} at most"
        )


def device_info(device: Device, flags: int) -> bytes:
    """The strings that describe a device in the answer to CUSE_INIT, for its flags."""
    info = [("DEVNAME", device.name)]
    if flags & RECUSE_NODE_INFO:
        info.append(("DEVMODE", f"{device.mode:04o}"))
        info += [("DEVUID", str(device.uid))] if device.uid is not None else []
        info += [("DEVGID", str(device.gid))] if device.gid is not None else []
    if flags & RECUSE_SYSFS:
        info += info_strings(device.subsystem, device.sysfs)
    return b"".join(os.fsencode(f"{key}={value}\0") for key, value in info)


def _check_attribute(device: Device, attribute: str) -> None:
    value = getattr(device, attribute)
    wrong = None
    if attribute == "name":
        wrong = _wrong_name(value)
    elif attribute == "subsystem":
        wrong = wrong_subsystem(value)
    elif attribute == "sysfs":
        wrong = wrong_sysfs(value)
    elif attribute in _RANGES:
        least, most = _RANGES[attribute]
        unset = value is None and attribute in ("uid", "gid")
        if not unset and not (isinstance(value, int) and least <= value <= most):
            wrong = f"not {least} to {most}"
    if wrong is not None:
        raise ValueError(f"{type(device).__name__}.{attribute} is {value!r}: {wrong}")


def _wrong_name(name: object) -> str | None:
    if not isinstance(name, str):
        return "not a string"
    if not 1 <= len(os.fsencode(name)) <= NAME_MAX_BYTES:
        return f"not 1 to {NAME_MAX_BYTES} bytes long"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "not a path below /dev"
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        return "has control characters"
    if name != name.strip():
        return "has white space at an end"
    return None
