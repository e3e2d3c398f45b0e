"""What an author subclasses: `Device`, and `File` for what programs open of it."""

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

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from recuse.server.areas import Area
    from recuse.server.mapping import Mapping, MmapRequest


class File:
    """One open of a device, from open(2) to the last close(2) of all its copies.

    `Device.open` returns one; an ioctl handler may return another one (see `recuse.ioctl`).
    Override the operations that the device has.  Each may be a plain
    method, called in a thread of the channel, or an ``async def`` one, run on the event loop that
    all devices share.  **Two threads may run methods of one File at once** (a program may read in
    one thread and write in another): a File that minds takes a lock of its own.

    An operation fails by raising OSError with an errno from 1 to 511, which is what the program
    gets.  Whatever else escapes becomes EIO for the program, with a traceback in the log
    ``recuse.server``; so do results of the wrong type or out of range, with one line.
    """

    device: "Device"
    """The device that it is an open file of, set when `Device.open` or a handler has returned it.

    Subclasses may declare it as their own device's class.
    """

    flags: int = 0
    """The file's flags as open(2) and fcntl(2) F_SETFL made them, as far as known.

    CUSE tells them with OPEN, READ and WRITE: after F_SETFL they are new from the next of these.
    recuse's own kernel half tells of O_NONBLOCK with IOCTL, too.

    A File that an ioctl handler returns says itself what they are: the access mode (os.O_RDONLY,
    which this 0 is, os.O_RDWR...), and os.O_CLOEXEC for a descriptor that is closed by execve(2).
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

    def read(self, size: int, offset: int) -> "Buffer | Awaitable[Buffer]":
        """Return what the program reads: at most ``size`` bytes, fewer or none if that is all.

        ``size`` is 1 to the device's `max_read`; a longer read(2) comes in pieces, of which the
        first short one is the last.  ``offset`` is the file's position if the device is
        `seekable`.  If not, it counts from the beginning of each call: 0, and more only for the
        further pieces of a long one.

        Raises OSError; a File without this method answers EINVAL.
        """
        raise OSError(errno.EINVAL, "not readable")

    def write(self, data: bytes, offset: int) -> "int | Awaitable[int | None] | None":
        """Take what the program writes; return how many bytes of it, None for all.

        ``data`` is 1 to `max_write` bytes; a longer write(2) comes in pieces.  ``offset`` as for
        `read`.

        Raises OSError; a File without this method answers EINVAL.
        """
        raise OSError(errno.EINVAL, "not writable")

    def unknown_ioctl(
        self, command: int, argument: int, memory: Memory
    ) -> "int | Awaitable[int | None] | None":
        """Answer an ioctl whose command no handler is declared for (see `recuse.ioctl`).

        ``command`` is 32 bits, ``argument`` the raw third argument of ioctl(2), ``memory`` the
        program's.  Return the result of ioctl(2), 0 to 2**31 - 1, None for 0.

        Raises OSError; a File without this method answers ENOTTY, as Linux does.
        """
        raise OSError(errno.ENOTTY, "no handler")

    def poll(self, events: int) -> "int | Awaitable[int]":
        """Return what the file is ready for now: `select.POLLIN`, `select.POLLOUT` and so on.

        ``events`` are those that the program looks for, POLLERR and POLLHUP always among them; more
        may be returned.  Never waits: a program that waits for events does so in the kernel half,
        which asks again after `wake_pollers`.

        Raises OSError, which programs see as POLLERR; a File without this method answers ENOSYS,
        and from then on all files of the device are ready for reading and writing, always, as far
        as the kernel half is concerned.
        """
        raise OSError(errno.ENOSYS, "no poll")

    def wake_pollers(self) -> None:
        """Have programs that wait for events of this file ask `poll` again: something has changed.

        To be called whenever `poll` would return events that it did not return before, after that
        has become true.  From any thread, from methods and coroutines, also with a lock held that
        `poll` takes; costs next to nothing if nobody waits, and nothing happens after `release`.
        """
        if self._pollers is not None:
            self._pollers.wake()

    def mmap(self, request: "MmapRequest") -> "Area | Awaitable[Area]":
        """Return the memory that a program is to map: a new area, or one that it shares.

        A new one has ``request.size`` bytes, as a rule: ``Area(request.size)``.  What the program
        sees of it begins at ``request.offset``.  The kernel half has checked the arguments and the
        file's access mode.

        For each area that this returns `unmapped` is called once, whatever becomes of the mapping.

        Raises OSError; a File without this method answers ENOSYS.  That is ENODEV for the program,
        as in Linux, but for a private mapping of a `seekable` device: that is made of what `read`
        returns.
        """
        raise OSError(errno.ENOSYS, "no mmap")

    def mapped(self, mapping: "Mapping") -> "Awaitable[None] | None":
        """Be told that a mapping is made, before the program knows of it.

        The area may be filled here, and resized.  Raises OSError to make mmap(2) fail after all.
        """

    def unmapped(self, mapping: "Mapping") -> "Awaitable[None] | None":
        """Be told that nothing is left of a mapping; or that it came to nothing.

        The last part of it was unmapped, in the program and in all children that inherited it, or
        these have ended.  What is raised here is logged and changes nothing.
        """

    def release(self) -> "Awaitable[None] | None":
        """Be told that the last copy of the file is closed, or that the device goes away.

        And that nothing of it is mapped any more.  Called exactly once for each open that
        succeeded.  close(2) has succeeded already: what is raised here is logged and changes
        nothing.
        """


File._ioctl_table = IoctlTable(File)


# What a session does with a file: authors have its other names for their own.


def attach(file: File, device: "Device | None" = None) -> None:
    """Make a file one of the device's, or of a filesystem's, before programs use it."""
    if device is not None:
        file.device = device
    # In one step: one file may be returned for two opens at once.
    vars(file).setdefault("_pollers", Pollers())


def notify_once(file: File, kh: int, send: Send) -> None:
    """Have the next `File.wake_pollers` notify the poller ``kh`` through ``send``."""
    if file._pollers is not None:
        file._pollers.add(kh, send)


def find_handler(file: File, command: int) -> IoctlHandler:
    """Return what answers an ioctl command on a file, see `IoctlTable.find`."""
    return file._ioctl_table.find(command)


def makes_files(file: File) -> bool:
    """Whether one of its ioctls answers with a new file."""
    return file._ioctl_table.makes_files


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

    sysfs: abc.Mapping[str, Value] = {}
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
        sysfs: abc.Mapping[str, Value] | None = None,
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
                check_attribute(self, attribute)

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

    What a device opens is known only when it is opened: this goes by the File classes in the
    modules of its class and of those that it is derived from, and is good for a warning only.
    """
    return any(table.makes_files for table in _tables_near(device))


def device_uses_memory(device: Device) -> bool:
    """Whether ioctls of the device seem to use memory of which their numbers do not tell.

    This goes by the same as `device_makes_files`.
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
    """Check what an author may have got wrong, before a session depends on it.

    Raises ValueError that says which attribute is out of range, TypeError for a missing `open`.
    """
    if type(device).open is Device.open:
        raise TypeError(f"{type(device).__name__} has no open method")
    for attribute in CHECKED:
        check_attribute(device, attribute)
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
