"""What programs have open: one class for each kind of file (``struct file``, linux/fs.h)."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, ClassVar, Final, Protocol, TypeAlias

from recuse.kernel.caller import Caller
from recuse.kernel.char.mmap import Mapper, Mapping, MmapCall
from recuse.kernel.errors import os_error
from recuse.kernel.iovec import IoVec
from recuse.kernel.locks import FileLocks
from recuse.runtime.records import NamedTuple
from recuse.sandbox.files.native_end import NativeEnd
from recuse.sandbox.files.readiness import Readiness
from recuse.sandbox.trap.answers import PROCEED
from recuse.sandbox.trap.call import OnDevice, Outcome, TrappedCall
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.nodes import Node
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from recuse.kernel.fs.mapping import FileMapper

    class AnyMapper(Mapper, FileMapper, Protocol):
        """What devices and files of filesystems are mapped by."""


IoVecs: TypeAlias = list[IoVec]
"""The parts of the caller's memory that a call reads from or writes to."""


NO_APPEND: Final = 1 << 31
"""Beside flags of open(2): write where the position is, although the file has O_APPEND."""


class Offsets(NamedTuple):
    """Where copy_file_range(2) finds its two offsets in the caller's memory, and leaves them; 0: in
    the file.
    """

    read_from: int
    written_to: int


class PollSource(Hashable, Protocol):
    """What is asked for readiness: a device, for all of its files."""

    @property
    def no_poll(self) -> bool:
        """Whether it cannot or need not be asked."""


class FileDescription:
    """One open file, from open until its last reference is gone, with its state.

    A kind of file overrides what its files can do. Everything else fails as in Linux for a file
    whose driver does not implement it. The caller of a method has checked that the file allows it:
    that the file is ``opened`` (`FileTable.find_opened`), ``readable`` or ``writable``.
    """

    __slots__ = (
        "end",
        "flags",
        "group",
        "link",
        "location",
        "node",
        "noted",
        "readable",
        "readiness",
        "slot",
        "slot_number",
        "writable",
    )

    can_be_direct: ClassVar[bool] = False
    """Whether fcntl may set O_DIRECT (FMODE_CAN_ODIRECT)."""
    has_events: ClassVar[bool] = True
    """Whether an epoll takes it (EPERM: file_can_poll)."""
    opened: ClassVar[bool] = True
    """Whether it opens something, and does not just name it (O_PATH)."""

    def __init__(self, location: Location, flags: int, end: NativeEnd) -> None:
        """Make it.

        Args:
            location: where it was found.
            flags: the open flags, as F_GETFL returns them.
            end: what programs hold of it.
        """
        self.location = location
        self.node: Node = location.node
        self.group: Hashable = self.node
        """Before a file of the same group is opened, this one is released if it was closed."""
        self.flags = flags
        """As F_GETFL returns them and F_SETFL changes them."""
        self.end = end
        self.link = end.link
        access = flags & os.O_ACCMODE
        self.readable = access in (os.O_RDONLY, os.O_RDWR)
        self.writable = access in (os.O_WRONLY, os.O_RDWR)
        self.noted: list[tuple[Tid, int]] = []
        """Where the table remembers it: by thread and number."""
        self.readiness: Readiness | None = None
        """None until a program has asked for it."""
        self.slot: ctypes.Array[ctypes.c_char] | None = None
        """``struct kcmp_epoll_slot``: the kernel finds the file by it, to compare it."""
        self.slot_number = -1

    def read(self, call: TrappedCall, segments: IoVecs, position: int | None) -> Outcome:
        """Read into the segments from ``position``, or from the file's position, which then moves.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def write(
        self, call: TrappedCall, segments: IoVecs, position: int | None, flags: int = 0
    ) -> Outcome:
        """Write what is in the segments.

        ``flags`` are added for this call only: O_SYNC, O_DSYNC, O_APPEND, or `NO_APPEND`.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def read_at(self, caller: Caller, segments: IoVecs, position: int) -> OnDevice[int]:
        """Read like :meth:`read`, for io_submit.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def write_at(
        self, caller: Caller, segments: IoVecs, position: int, flags: int
    ) -> OnDevice[int]:
        """Write like :meth:`write`, for io_submit.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def sync_at(self, caller: Caller, data_only: bool) -> OnDevice[None]:
        """Sync like :meth:`sync`, for io_submit.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def seek(self, call: TrappedCall, offset: int, whence: int) -> int:
        """Do lseek(2). The handler may be left to ask (`TrappedCall.ask`).

        Raises:
            OSError: ESPIPE.
        """
        raise os_error(errno.ESPIPE)

    def send_file(
        self,
        call: TrappedCall,
        target: FileDescription | None,
        source: FileDescription | None,
        width: int,
    ) -> int:
        """Do sendfile(2). This file is one of the ends; None is for a native one.

        ``width``: the size of the offset in the caller's memory, in bytes.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def splice(
        self, call: TrappedCall, target: FileDescription | None, source: FileDescription | None
    ) -> int:
        """Move bytes between this file and a pipe. None is for a native end, as pipes are.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def splice_to(self, call: TrappedCall, pipe: int, size: int) -> int:
        """Do splice(2) from this file to the caller's descriptor of a pipe.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def splice_from(self, call: TrappedCall, pipe: int, size: int) -> int:
        """Do splice(2) from the caller's descriptor of a pipe to this file.

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def flush(self, call: TrappedCall) -> OnDevice[None] | None:
        """What comes before the close of a descriptor, whose error is close's; None if nothing."""
        return None

    def sync(self, call: TrappedCall, data_only: bool) -> Outcome:
        """Do fsync(2) or fdatasync(2).

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def truncate(self, call: TrappedCall, size: int) -> Outcome:
        """Do ftruncate(2).

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def allocate(self, call: TrappedCall, mode: int, offset: int, length: int) -> Outcome:
        """Do fallocate(2).

        Raises:
            OSError: ENODEV, or EBADF if it is not open for writing.
        """
        raise os_error(errno.ENODEV if self.writable else errno.EBADF)

    def write_range(self, call: TrappedCall) -> Outcome:
        """Do sync_file_range(2): write back what only the page cache has.

        Raises:
            OSError: ESPIPE.
        """
        raise os_error(errno.ESPIPE)

    def read_ahead(self) -> int:
        """Do readahead(2), which reads nothing if it does not have to.

        Raises:
            OSError: EBADF if it is not open for reading; EINVAL.
        """
        raise os_error(errno.EINVAL if self.readable else errno.EBADF)

    def entries(self, call: TrappedCall, address: int, size: int, *, typed: bool) -> Outcome:
        """Do getdents64(2), or getdents(2) if not ``typed``, into ``size`` bytes of memory.

        Raises:
            OSError: ENOTDIR.
        """
        raise os_error(errno.ENOTDIR)

    def copy_range(
        self, call: TrappedCall, other: FileDescription, offsets: Offsets, size: int
    ) -> Outcome:
        """Copy bytes to another regular file of the same filesystem, as copy_file_range(2).

        Raises:
            OSError: EINVAL.
        """
        raise os_error(errno.EINVAL)

    def ioctl(self, call: TrappedCall, command: int, argument: int) -> Outcome:
        """Run a command that not every file has.

        Raises:
            OSError: ENOTTY.
        """
        raise os_error(errno.ENOTTY)

    @property
    def poll_source(self) -> PollSource | None:
        """What :meth:`poll` asks; None if the end itself always shows the file's readiness."""
        return None

    @property
    def is_asked(self) -> bool:
        """Whether it must be asked for its readiness, because the end does not always show it."""
        source = self.poll_source
        return source is not None and not source.no_poll

    def poll(self, caller: Caller, events: int, waiting: bool) -> int | OnDevice[int]:
        """Return what the file is ready for. Only for files that are asked.

        Args:
            caller: who asks.
            events: the events that matter (POLLIN and so on).
            waiting: whether to call the function given to :meth:`wake_by` when that changes.
        """
        raise os_error(errno.EPERM)

    def wake_by(self, changed: Callable[[], None]) -> None:
        """Have ``changed`` called, in any thread, when the result of :meth:`poll` may have changed.

        It is also called when the file has ``ended``. It may neither wait nor ask.
        """

    @property
    def ended(self) -> bool:
        """Whether nobody answers any more: the file is ready for ever, with an error."""
        return False

    def mmap(self, caller: Caller, mapper: AnyMapper, wanted: MmapCall) -> OnDevice[Mapping | None]:
        """Map the file into the caller's memory; None if its end need not be known.

        Raises:
            OSError: ENODEV.
        """
        raise os_error(errno.ENODEV)

    def munmap(self, mapping: Mapping) -> OnDevice[None]:
        """Nothing is left of a mapping that :meth:`mmap` has made."""
        raise os_error(errno.ENODEV)

    def mapping_ended(self) -> None:
        """What :meth:`munmap` does has been done."""

    def sync_mapping(self, caller: Caller) -> OnDevice[None] | None:
        """Do msync(2) with MS_SYNC on a mapping of the file; None if there is nothing to do."""
        return None

    def extend_mapping(self, caller: Caller, pages: range) -> OnDevice[None] | None:
        """A mapping of the file becomes longer, with these pages; None if that needs nothing."""
        return None

    def flock(self, call: TrappedCall, operation: int) -> Outcome | None:
        """Lock or unlock the whole file; None if :meth:`locks` has the table for that."""
        return None

    def record_lock(self, call: TrappedCall, command: int, address: int) -> Outcome:
        """Do fcntl's lock commands: the kernel's locks on the end work within one open file."""
        return PROCEED

    def locks(self) -> tuple[FileLocks, Hashable] | None:
        """The table of locks that flock uses for this file, and the owner to use in it.

        None if nobody else can open the same file: the kernel's lock on the end is enough then.
        """
        return None

    def set_flags(self, flags: int) -> None:
        """Do F_SETFL. The argument has been checked."""
        self.flags = flags

    def release(self, released: Callable[[], None]) -> None:
        """Do what the last close of the file does, then call ``released``, now or later."""
        released()
