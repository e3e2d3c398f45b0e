"""The character devices that exist, by name and by number."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from recuse.kernel.connection.connection import Connection, Tap
from recuse.kernel.errors import os_error
from recuse.kernel.locks import FileLocks
from recuse.runtime.locks import new_lock
from recuse.runtime.records import NamedTuple, field, record

MAJOR_MAX = 511
MINOR_MAX = (1 << 20) - 1
DYNAMIC_MAJORS: tuple[int, ...] = (*range(254, 233, -1), *range(511, 383, -1))
"""In the order in which they are assigned (fs/char_dev.c, find_dynamic_major)."""

NAME_MAX = 255
"""Most bytes of a device's name: the limit for a directory in /sys."""

TRANSFER_MIN = 4096
"""max_read and max_write are at least this many bytes, even if a server asks for less."""

_serials = itertools.count(1)


class Declaration(NamedTuple):
    """What a device's server wants in /sys in addition to CUSE's own files.

    subsystem is "class/NAME" or "bus/NAME"; the paths of attributes and links are absolute, or
    relative to the device's directory.
    """

    subsystem: str = "class/cuse"
    attributes: tuple[str, ...] = ()
    links: Mapping[str, str] = MappingProxyType({})


@record
class CharDevice:
    """A device that programs can open.

    mode is permission bits. max_read and max_write are the most bytes of one READ or WRITE.
    Unrestricted devices may ask for the caller's memory by address in an ioctl. Seekable ones get
    the file position with READ and WRITE. Those with new_files may answer an ioctl with an open
    file, those with mapping can be mapped into memory, and those with file_flags are told of
    O_NONBLOCK with ioctls. uid and gid are None if the server leaves the node's owner to the code
    that makes the node.
    """

    name: str
    major: int
    minor: int
    connection: Connection
    mode: int = 0o600
    uid: int | None = None
    gid: int | None = None
    seekable: bool = False
    unrestricted: bool = False
    new_files: bool = False
    mapping: bool = False
    file_flags: bool = False
    max_read: int = TRANSFER_MIN
    max_write: int = TRANSFER_MIN
    sysfs: Declaration = field(default_factory=Declaration)
    """What it has in /sys in addition to CUSE's own files."""
    locks: FileLocks = field(default_factory=FileLocks)
    """Which of its open files are locked (flock)."""
    no_open: bool = False
    """The server has answered OPEN with ENOSYS: it gets neither OPEN nor RELEASE."""
    no_poll: bool = False
    """The server has answered POLL with ENOSYS: its files are always ready."""
    gone: bool = False
    """It was in the table and has been removed."""
    serial: int = field(default_factory=lambda: next(_serials))
    """Unique among all devices that ever existed, like an inode number."""


class DeviceTable:
    """The devices of one machine (one sandbox).  Thread-safe.

    `register` calls ``added`` with the device before it returns, and `remove` calls ``removed`` in
    the same way. So what shows the devices to programs is always up to date.
    """

    def __init__(
        self,
        added: Callable[[CharDevice], None] | None = None,
        removed: Callable[[CharDevice], None] | None = None,
        taken: Iterable[int] = (),
    ) -> None:
        """Make an empty one; devices that ask for any major never get one from ``taken``."""
        self._added = added
        self._removed = removed
        self.tap: Callable[[], Tap] | None = None
        """Makes the tap that sees all messages of a new connection."""
        self._taken = frozenset(taken)
        self._lock = new_lock("DeviceTable")
        self._by_name: dict[str, CharDevice] = {}
        self._by_number: dict[tuple[int, int], CharDevice] = {}

    def register(
        self,
        name: str,
        major: int,
        minor: int,
        connection: Connection,
        *,
        mode: int = 0o600,
        uid: int | None = None,
        gid: int | None = None,
        seekable: bool = False,
        unrestricted: bool = False,
        new_files: bool = False,
        mapping: bool = False,
        file_flags: bool = False,
        max_read: int = TRANSFER_MIN,
        max_write: int = TRANSFER_MIN,
        sysfs: Declaration | None = None,
    ) -> CharDevice:
        """Add a device; major 0 asks for a free one.

        Raises OSError: EINVAL for a bad name or number, EEXIST if the name is taken, EBUSY if the
        number is taken or no major is free.
        """
        check_name(name)
        _check_number(major, minor)
        with self._lock:
            if not major:
                major = self._free_major()
            elif (major, minor) in self._by_number:
                raise os_error(errno.EBUSY)
            if name in self._by_name:
                raise os_error(errno.EEXIST)
            device = CharDevice(
                name,
                major,
                minor,
                connection,
                mode=mode,
                uid=uid,
                gid=gid,
                seekable=seekable,
                unrestricted=unrestricted,
                new_files=new_files,
                mapping=mapping,
                file_flags=file_flags,
                max_read=max(max_read, TRANSFER_MIN),
                max_write=max(max_write, TRANSFER_MIN),
                sysfs=sysfs or Declaration(),
            )
            self._by_name[name] = self._by_number[major, minor] = device
        if connection.tap is not None:
            connection.tap.added(name, major, minor)
        if self._added is not None:
            try:
                self._added(device)
            except BaseException:
                self.remove(device)
                raise
        return device

    def _free_major(self) -> int:
        """Return the first dynamic major that has no device with any minor."""
        taken = self._taken.union(major for major, _ in self._by_number)
        for major in DYNAMIC_MAJORS:
            if major not in taken:
                return major
        raise os_error(errno.EBUSY)

    def remove(self, device: CharDevice) -> None:
        """Take a device out; do nothing if it is not in the table."""
        with self._lock:
            if self._by_name.get(device.name) is not device:
                return
            del self._by_name[device.name]
            del self._by_number[device.major, device.minor]
            device.gone = True
        if device.connection.tap is not None:
            device.connection.tap.removed()
        if self._removed is not None:
            self._removed(device)

    def by_name(self, name: str) -> CharDevice | None:
        """Return the device with that name (below /dev, "snd/dsp")."""
        return self._by_name.get(name)

    def by_number(self, major: int, minor: int) -> CharDevice | None:
        """Return the device with that number."""
        return self._by_number.get((major, minor))

    def __iter__(self) -> Iterator[CharDevice]:
        """Iterate over the present devices, in the order in which they were added."""
        with self._lock:
            return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        """Return the number of devices."""
        return len(self._by_name)


def _check_number(major: int, minor: int) -> None:
    if not (0 <= major <= MAJOR_MAX and 0 <= minor <= MINOR_MAX):
        raise os_error(errno.EINVAL)


def check_name(name: str) -> None:
    """Raise OSError(EINVAL) unless a device can have this name: a relative path of 1 to 255 bytes.

    It has no empty components, no ``.``, no ``..`` and no NUL.
    """
    if (
        not 1 <= len(name.encode("utf-8", "surrogateescape")) <= NAME_MAX
        or "\0" in name
        or any(component in {"", ".", ".."} for component in name.split("/"))
    ):
        raise os_error(errno.EINVAL)
