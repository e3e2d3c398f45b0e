"""What programs have open: one class for each kind of file (``struct file``, linux/fs.h)."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Hashable
from typing import ClassVar, Protocol, TypeAlias

from recuse.kernel.caller import Caller
from recuse.kernel.char.mmap import Mapper, Mapping, MmapCall
from recuse.kernel.errors import os_error
from recuse.kernel.iovec import IoVec
from recuse.kernel.locks import FileLocks
from recuse.sandbox.files.native_end import NativeEnd
from recuse.sandbox.files.readiness import Readiness
from recuse.sandbox.trap.call import OnDevice, Outcome, TrappedCall
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.nodes import Node

IoVecs: TypeAlias = list[IoVec]
"""The parts of the caller's memory that a call reads or writes."""


class PollSource(Hashable, Protocol):
    """Who is asked what files are ready for: a device, for all its files."""

    no_poll: bool
    """It has said that it cannot be asked."""


class FileDescription:
    """One open file, from open until its last reference is gone, and all that its kind may change.

    A kind overrides what its files can do. Everything else fails as for a file of Linux whose
    driver does not have it. Who calls a method has checked that the file allows that: that it is
    ``opened`` (`FileTable.find_opened`), or ``readable`` or ``writable``.
    """

    __slots__ = (
        "end",
        "flags",
        "link",
        "location",
        "node",
        "readable",
        "readiness",
        "slot",
        "slot_number",
        "writable",
    )

    opened: ClassVar[bool] = True
    """Whether it opens anything, and does not just name it (O_PATH)."""

    def __init__(self, location: Location, flags: int, end: NativeEnd) -> None:
        """Make it.

        Args:
            location: where it was found.
            flags: the open flags, as F_GETFL shows them.
            end: what the programs hold.
        """
        self.location = location
        self.node: Node = location.node
        self.flags = flags
        """As F_GETFL shows them, and F_SETFL changes them."""
        self.end = end
        self.link = end.link
        access = flags & os.O_ACCMODE
        self.readable = access in (os.O_RDONLY, os.O_RDWR)
        self.writable = access in (os.O_WRONLY, os.O_RDWR)
        self.readiness: Readiness | None = None
        """Once a program has asked for it."""
        self.slot: ctypes.Array[ctypes.c_char] | None = None
        """``struct kcmp_epoll_slot``: where the kernel finds it, to compare others with it."""
        self.slot_number = -1

    def read(self, call: TrappedCall, segments: IoVecs, position: int | None) -> Outcome:
        """Read into the segments from ``position``, or from the file's own, which moves then.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def write(
        self, call: TrappedCall, segments: IoVecs, position: int | None, flags: int = 0
    ) -> Outcome:
        """Write what is in the segments, with more open ``flags`` (O_SYNC, O_DSYNC) for this once.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def read_at(self, caller: Caller, segments: IoVecs, position: int) -> OnDevice[int]:
        """As :meth:`read`, for io_submit.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def write_at(
        self, caller: Caller, segments: IoVecs, position: int, flags: int
    ) -> OnDevice[int]:
        """As :meth:`write`, for io_submit.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def seek(self, offset: int, whence: int) -> int:
        """Do lseek(2).

        Raises:
            OSError: ESPIPE.
        """
        raise os_error(errno.ESPIPE)

    def ioctl(self, call: TrappedCall, command: int, argument: int) -> Outcome:
        """Do a command that not every file has.

        Raises:
            OSError: ENOTTY.
        """
        raise os_error(errno.ENOTTY)

    @property
    def poll_source(self) -> PollSource | None:
        """Who is to be asked, by :meth:`poll`; None if the end shows all that there is to show."""
        return None

    @property
    def is_asked(self) -> bool:
        """Whether it has to be asked what it is ready for: its end shows not always that."""
        source = self.poll_source
        return source is not None and not source.no_poll

    def poll(self, caller: Caller, events: int, waiting: bool) -> int | OnDevice[int]:
        """Say what it is ready for; only of files that are asked.

        Args:
            caller: who asks.
            events: what matters (POLLIN and so on).
            waiting: whether to call what :meth:`wake_by` was given when that changes.
        """
        raise os_error(errno.EPERM)

    def wake_by(self, changed: Callable[[], None]) -> None:
        """Have ``changed`` called, in any thread, when the answer to :meth:`poll` may be another.

        And when the file has ``ended``. It may neither wait nor ask.
        """

    @property
    def ended(self) -> bool:
        """Whether nobody answers any more: it is ready for good, with an error."""
        return False

    def mmap(self, caller: Caller, mapper: Mapper, wanted: MmapCall) -> OnDevice[Mapping]:
        """Map it into the caller's memory.

        Raises:
            OSError: ENODEV.
        """
        raise os_error(errno.ENODEV)

    def munmap(self, mapping: Mapping) -> OnDevice[None]:
        """Nothing is left of one that :meth:`mmap` has made."""
        raise os_error(errno.ENODEV)

    def locks(self) -> tuple[FileLocks, Hashable] | None:
        """The locks among which flock's of this file is, and whose it is there.

        None if nobody else opens the same: the kernel's own lock of the end does.
        """
        return None

    def set_flags(self, flags: int) -> None:
        """Do F_SETFL, whose argument was checked."""
        self.flags = flags

    def release(self, released: Callable[[], None]) -> None:
        """Do what the last close of a file does; then call ``released``, now or later."""
        released()
