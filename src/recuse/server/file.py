"""What an author subclasses for the open files of a device."""

import errno
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar

from recuse.server.ioctl import IoctlTable
from recuse.server.memory import Memory
from recuse.server.pollers import Pollers

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from recuse.server.areas import Area
    from recuse.server.device import Device
    from recuse.server.mappings import Mapping, MmapRequest


FILE_MAKERS: set[str] = set()
"""The modules that have a File whose ioctls make new files."""
MEMORY_USERS: set[str] = set()
"""Those that have one whose ioctls use memory of which their numbers do not tell."""


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
        cls._ioctl_table = table = IoctlTable(cls)
        if table.makes_files:
            FILE_MAKERS.add(cls.__module__)
        if table.uses_memory:
            MEMORY_USERS.add(cls.__module__)

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
