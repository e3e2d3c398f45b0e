"""What an author subclasses: `Device`, and `File` for what programs open of it."""

from __future__ import annotations

import errno
import os
from collections import abc
from collections.abc import Awaitable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from recuse.server.attributes import CHECKED, check_attribute
from recuse.server.ioctl_table import IoctlHandler, IoctlTable
from recuse.server.memory import Memory
from recuse.server.pending_reply import Send
from recuse.server.pollers import Pollers
from recuse.server.request import OpenRequest
from recuse.server.sysfs import Value, info_strings
from recuse.wire.cuse import CUSE_INIT_INFO_MAX, RECUSE_NODE_INFO, RECUSE_SYSFS
from recuse.wire.ids import Kh

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from recuse.server.areas import Area
    from recuse.server.mapping import Mapping, MmapRequest


class File:
    """One open of a device, from open(2) to the last close(2) of all its copies.

    `Device.open` returns one, and so can an ioctl handler (see `recuse.ioctl`).  Override the
    operations that the device has.  Each can be a plain method, which is called in a thread of the
    channel, or an ``async def`` one, which runs on the event loop that all devices share.  **Two
    threads may run methods of one File at once** (a program may read in one thread and write in
    another).  Use a lock if that matters.

    To fail, an operation raises OSError with an errno from 1 to 511: the program gets that errno.
    Any other exception is EIO for the program, with a traceback in the log ``recuse.server``.  A
    result of the wrong type or out of range is EIO as well, with one line in the log.
    """

    device: Device
    """The device of this file.  It is set after `Device.open` or a handler has returned the file.

    A subclass may declare it with the class of its own device.
    """

    flags: int = 0
    """The file's flags as open(2) and fcntl(2) F_SETFL set them, as far as known.

    CUSE sends them with OPEN, READ and WRITE: after F_SETFL, the next of these has the new ones.
    recuse's own kernel half also sends O_NONBLOCK with IOCTL.

    A File that an ioctl handler returns sets its own: the access mode (os.O_RDONLY, which is 0,
    os.O_RDWR...), and os.O_CLOEXEC for a descriptor that is closed by execve(2).
    """

    _pollers: Pollers | None = None

    _ioctl_table: ClassVar[IoctlTable]
    """The handlers of this class, for the session."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._ioctl_table = IoctlTable(cls)

    @property
    def nonblocking(self) -> bool:
        """Whether O_NONBLOCK is set: raise BlockingIOError(errno.EAGAIN, ...) rather than wait."""
        return bool(self.flags & os.O_NONBLOCK)

    def read(self, size: int, offset: int) -> Buffer | Awaitable[Buffer]:
        """Return what the program reads: at most ``size`` bytes, fewer or none if there is no more.

        ``size`` is 1 to the device's `max_read`.  A longer read(2) arrives in pieces; the first
        short answer is the last.  ``offset`` is the file's position if the device is `seekable`.
        If not, it counts from the beginning of each call: it is 0, except for the further pieces
        of a long one.

        Raises OSError; a File without this method answers EINVAL.
        """
        raise OSError(errno.EINVAL, "not readable")

    def write(self, data: bytes, offset: int) -> int | Awaitable[int | None] | None:
        """Take what the program writes; return how many bytes of it, None for all.

        ``data`` is 1 to `max_write` bytes; a longer write(2) arrives in pieces.  ``offset`` is as
        for `read`.

        Raises OSError; a File without this method answers EINVAL.
        """
        raise OSError(errno.EINVAL, "not writable")

    def unknown_ioctl(
        self, command: int, argument: int, memory: Memory
    ) -> int | Awaitable[int | None] | None:
        """Answer an ioctl whose command has no handler (see `recuse.ioctl`).

        ``command`` has 32 bits.  ``argument`` is the raw third argument of ioctl(2), and ``memory``
        the program's memory.  Return the result of ioctl(2), 0 to 2**31 - 1, or None for 0.

        Raises OSError; a File without this method answers ENOTTY, as Linux does.
        """
        raise OSError(errno.ENOTTY, "no handler")

    def poll(self, events: int) -> int | Awaitable[int]:
        """Return what the file is ready for now: `select.POLLIN`, `select.POLLOUT` and so on.

        ``events`` are those that the program waits for, always with POLLERR and POLLHUP; more may
        be returned.  It must not wait: programs wait in the kernel half, which asks again after
        `wake_pollers`.

        Raises OSError, which programs see as POLLERR.  A File without this method answers ENOSYS:
        from then on the kernel half takes all files of the device as always ready for reading and
        writing.
        """
        raise OSError(errno.ENOSYS, "no poll")

    def wake_pollers(self) -> None:
        """Have `poll` called again for programs that wait for events of this file.

        Call it whenever `poll` would return events that it did not return before, after that has
        become true.  It can be called from any thread, method or coroutine, even with a lock held
        that `poll` takes.  It costs next to nothing if nobody waits, and does nothing after
        `release`.
        """
        if self._pollers is not None:
            self._pollers.wake()

    def mmap(self, request: MmapRequest) -> Area | Awaitable[Area]:
        """Return the memory for a program to map: a new area, or an existing one, which it shares.

        A new one usually has ``request.size`` bytes: ``Area(request.size)``.  The program's view of
        it begins at ``request.offset``.  The kernel half has checked the arguments and the file's
        access mode.

        `unmapped` is called once for each area that this returns, whatever happens to the mapping.

        Raises OSError; a File without this method answers ENOSYS.  The program gets ENODEV then, as
        in Linux, except for a private mapping of a `seekable` device: that has what `read`
        returns.
        """
        raise OSError(errno.ENOSYS, "no mmap")

    def mapped(self, mapping: Mapping) -> Awaitable[None] | None:
        """Called when a mapping has been made, before the program knows of it.

        The area can be filled and resized here.  Raise OSError to make mmap(2) fail after all.
        """

    def unmapped(self, mapping: Mapping) -> Awaitable[None] | None:
        """Called when nothing is left of a mapping, or when it has failed.

        The program and all children that inherited the mapping have unmapped its last part, or have
        ended.  What this raises is logged and changes nothing.
        """

    def release(self) -> Awaitable[None] | None:
        """Called when the last copy of the file is closed and unmapped, or the device goes away.

        It is called exactly once for each open that succeeded.  close(2) has already succeeded:
        what this raises is logged and changes nothing.
        """


File._ioctl_table = IoctlTable(File)


# What a session does with a file.  These are not methods, so authors can use any names.


def notify_once(file: File, kh: Kh, send: Send) -> None:
    """Have the next `File.wake_pollers` notify the poller ``kh`` through ``send``."""
    pollers = file._pollers
    if pollers is None:
        # In one step: two threads may poll the file at once.
        pollers = vars(file).setdefault("_pollers", Pollers())
    pollers.add(kh, send)


def find_handler(file: File, command: int) -> IoctlHandler:
    """Return what answers an ioctl command on a file, see `IoctlTable.find`."""
    return file._ioctl_table.find(command)


def makes_files(file: File) -> bool:
    """Whether one of its ioctls answers with a new file."""
    return file._ioctl_table.makes_files


class Device:
    """A character device.  It exists while a session serves it.

    Describe it with class attributes, or with keyword arguments for one instance::

        class Echo(Device):
            name = "echo"

            def open(self, request):
                return EchoFile()

        Echo(name="echo1", mode=0o600)

    A subclass with its own ``__init__`` does not have to call this one.
    """

    name: str = ""
    """Path below /dev, such as "echo" or "snd/echo".

    It has 1 to 64 bytes of UTF-8 and is relative.  It has no empty components, no "." or "..", no
    control characters, and no white space at its ends (the kernel strips that).
    """

    mode: int = 0o666
    """Permission bits of the node, 0 to 0o777.  Linux's CUSE leaves them to udev."""

    uid: int | None = None
    """Owner of the node, None for the default.  Linux's CUSE leaves it to udev."""

    gid: int | None = None
    """Group of the node, None for the default.  Linux's CUSE leaves it to udev."""

    major: int = 0
    """Major number, 0 to 511; 0 picks a free one."""

    minor: int = 0
    """Minor number, 0 to 2**20 - 1."""

    max_read: int = 131072
    """Most bytes that `File.read` is asked for at once, 4096 to 2**20.

    Linux's CUSE sends at most 131072 (32 pages) anyway.
    """

    max_write: int = 131072
    """Most bytes that `File.write` is given at once, 4096 to 2**20; see `max_read`."""

    seekable: bool = False
    """Whether reads and writes have positions, as on a disk.

    recuse's own kernel half honours it.  Linux's CUSE does not: offsets are 0, and lseek(2)
    succeeds without effect.
    """

    unrestricted: bool = True
    """Whether ioctl handlers may use the program's memory at any address.

    If False, an ioctl moves what its command's number says (_IOR, _IOW, _IOWR) and nothing else.
    """

    subsystem: str = "class/cuse"
    """The class or bus below /sys where programs find the device: "class/i2c-dev", "bus/gpio".

    ``/sys/dev/char/MAJOR:MINOR`` leads to its directory there.  The directory in CUSE's class
    exists as well; Linux's CUSE has only that one.
    """

    sysfs: abc.Mapping[str, Value] = {}
    """Files in the device's directory below /sys: their content, by name or path.

    The content is str or bytes, at most 4096 bytes, exactly as programs read it (with a newline at
    its end).  Or it is a function that returns that: it is called with the device when a program
    reads the file, and may be ``async def``.  A `Link` is a symbolic link.  A path that begins with
    /sys/ or /proc/ is a file elsewhere.  The files that every device has (dev, uevent and so on)
    can be replaced.  Linux's CUSE has none of it.
    """

    map_length: int = 4096
    """The length that `File.mmap` is asked for on a FUSE mount, in bytes, 1 to 2**40.

    Linux does not say what programs map there (`recuse serve --mount`).  It is rounded to pages.
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
        sysfs: abc.Mapping[str, Value] | None = None,
        map_length: int | None = None,
    ) -> None:
        """Create a device; each argument overrides the class attribute of its name.

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
                check_attribute(self, attribute)

    def open(self, request: OpenRequest) -> File | Awaitable[File]:
        """Return a new File for a program that opens the device.

        The kernel half has already checked the permission bits.  This may be ``async def``.
        Raise OSError to refuse: EBUSY for a second user at a time, EACCES for a direction that the
        device does not have.
        """
        raise OSError(errno.ENODEV, "no open method")

    def close(self) -> None:
        """Called when the device goes away, after its files have been released.

        It is called once, when the session ends.  What it raises is logged.
        """


def device_makes_files(device: Device) -> bool:
    """Whether ioctls of the device seem to create files, which not all kernel halves accept.

    What a device opens is known only when it is opened.  So this looks at the File classes in the
    modules of its class and its base classes, and is good enough only for a warning.
    """
    return any(table.makes_files for table in _tables_near(device))


def device_uses_memory(device: Device) -> bool:
    """Whether ioctls of the device seem to use memory that their numbers do not describe.

    This looks at the same classes as `device_makes_files`.
    """
    return any(table.uses_memory for table in _tables_near(device))


def _tables_near(device: Device) -> Iterator[IoctlTable]:
    modules = {cls.__module__ for cls in type(device).__mro__}
    classes = [File]
    for cls in classes:  # which grows
        classes += cls.__subclasses__()
        if cls.__module__ in modules - {File.__module__}:
            yield cls._ioctl_table


def check_device(device: Device) -> None:
    """Check what an author may have got wrong, before a session relies on it.

    Raises ValueError naming the attribute that is out of range, TypeError for a missing `open`.
    """
    if type(device).open is Device.open:
        raise TypeError(f"{type(device).__name__} has no open method")
    for attribute in CHECKED:
        check_attribute(device, attribute)
    info = device_info(device, 0xFFFFFFFF)
    if len(info) > CUSE_INIT_INFO_MAX:
        raise ValueError(
            f"{type(device).__name__}.sysfs has too many paths: they take {len(info)} bytes, "
            f"and at most {CUSE_INIT_INFO_MAX} are possible"
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
