"""Open files of a device, and what system calls on them do: fs/fuse/cuse.c and file.c.

An operation counts as running on its file from its first step to its last.  RELEASE is sent once,
when the file has been released, no operation runs on it and no mapping of it is left: by
`OpenFile.release`, or by the last operation before it returns, like the last fput in Linux.
"""

import errno
import os
import sys
from collections.abc import Callable, Sequence

from recuse.kernel.caller import Caller
from recuse.kernel.char.devices import TRANSFER_MIN, CharDevice
from recuse.kernel.char.ioctl import Install, do_ioctl
from recuse.kernel.char.mmap import (
    Mapper,
    Mapping,
    MmapCall,
    check,
    do_copy,
    do_mmap,
    do_munmap,
)
from recuse.kernel.char.poll import do_poll
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import Request
from recuse.kernel.errors import os_error
from recuse.kernel.iovec import IoVec, length_of, load, part_of, store
from recuse.wire.fuse import (
    FUSE_OPEN,
    FUSE_READ,
    FUSE_READ_LOCKOWNER,
    FUSE_RELEASE,
    FUSE_WRITE,
    FUSE_WRITE_KILL_SUIDGID,
    FUSE_WRITE_LOCKOWNER,
    fuse_open_in,
    fuse_open_out,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
    fuse_write_out,
)
from recuse.wire.ids import Kh

_MAX_POSITION = (1 << 63) - 1

_O_NONBLOCK = os.O_NONBLOCK

_OPEN_ONLY = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC
"""Flags that are for the opening only, and no business of a device (fuse_send_open)."""

_SEEK_MAX = 4
"""SEEK_HOLE, the last one."""

# fuse_direct_io gives all requests an owner.
_READ_FLAGS = FUSE_READ_LOCKOWNER
_WRITE_FLAGS = FUSE_WRITE_LOCKOWNER
_KILLING_WRITE_FLAGS = FUSE_WRITE_LOCKOWNER | FUSE_WRITE_KILL_SUIDGID

_pack_read_in = fuse_read_in.CODEC.pack
_pack_write_in = fuse_write_in.CODEC.pack
_unpack_write_out = fuse_write_out.CODEC.unpack


def open_file(device: CharDevice, flags: int, caller: Caller) -> Operation["OpenFile"]:
    """Open a device with the flags of open(2).

    Raises OSError: ENODEV if the device is gone, or what the server answers.
    """
    # fs/fuse/cuse.c, cuse_open, and file.c, fuse_file_open.
    if device.gone:
        raise os_error(errno.ENODEV)
    flags &= ~_OPEN_ONLY
    fh = None
    kh = device.connection.polled.next_kh()
    if not device.no_open:
        reply = yield Request(
            FUSE_OPEN,
            fuse_open_in(flags=flags).pack(),
            fuse_open_out.SIZE,
            fuse_open_out.SIZE,
            caller.pid,
            caller.uid,
            caller.gid,
        )
        if not reply.error:
            fh = fuse_open_out.unpack(reply.payload).fh
        elif reply.error == -errno.ENOSYS:
            device.no_open = True
        else:
            raise os_error(-reply.error)
    return OpenFile(device, fh, flags, kh)


class OpenFile:
    """What a descriptor (and its copies) of a device refers to.

    flags
        Of open(2), and what fcntl(F_SETFL) makes of them; READ, WRITE and RELEASE carry them.
        What may be read or written is decided by those of the opening.
    position
        In bytes; stays 0 unless the device is seekable.
    wake_pollers
        To be set before the first poll.  Called when something may have changed for those that
        have polled with ``waiting``, and when the connection has ended: in a thread of the
        server's, so that it may neither wait nor make requests.
    """

    __slots__ = (
        "_fh",
        "_kh",
        "_owed",
        "_readable",
        "_released",
        "_running",
        "_writable",
        "device",
        "flags",
        "position",
        "wake_pollers",
    )

    def __init__(self, device: CharDevice, fh: int | None, flags: int, kh: Kh) -> None:
        self.device = device
        self.flags = flags
        self.position = 0
        self._fh = fh
        """None if the server knows nothing of open files (`CharDevice.no_open`)."""
        self._kh = kh
        self.wake_pollers: Callable[[], None] = _nobody
        access = flags & os.O_ACCMODE
        self._readable = access in (os.O_RDONLY, os.O_RDWR)
        self._writable = access in (os.O_WRONLY, os.O_RDWR)
        # Appending to a list and popping from it are atomic, unlike counting, and take a fifth of
        # the time of a lock.  An operation first says that it runs and then looks whether the file
        # is released; `release` first says so and then looks whether an operation runs: one of the
        # two sees the other.
        self._running: list[None] = []
        """One entry for each operation that runs, and for each mapping."""
        self._released = False
        self._owed: list[None] = [None]
        """One entry, which whoever sends RELEASE takes."""

    # An area of the caller's that ends in the middle is used up to there, as the pages that
    # fuse_get_user_pages could get; only a request for which there is none fails with EFAULT.

    def read(self, caller: Caller, segments: Sequence[IoVec], offset: int | None) -> Operation[int]:
        """Read into the segments, one after the other; return how many bytes were read.

        offset None: at the file position, which moves on.  Devices that are not seekable are read
        from offset 0 by every call, as fs/fuse/cuse.c does; only the second and later requests
        of one call have another offset.

        Raises OSError: EBADF if not open for reading; EINVAL for an offset that is negative or
        goes beyond 2**63 - 1; EFAULT if nothing can be stored (no request is sent then); or what
        the server answers, unless some bytes were read before.
        """
        # fs/fuse/file.c, fuse_direct_io, Linux 6.1.
        self._running.append(None)
        try:
            # Usually there is nothing to split: no device takes less.
            fits = len(segments) == 1 and segments[0][1] <= TRANSFER_MIN
            total = segments[0][1] if fits else length_of(segments)
            position = self._start(self._readable, offset, total)
            memory = caller.memory
            limit = self.device.max_read
            transferred = 0
            error = 0
            while transferred < total:
                if fits:
                    areas = segments
                    fits = False
                else:
                    areas = part_of(segments, transferred, min(limit, total - transferred))
                wanted = 0
                for address, length in areas:
                    room = memory.writable(address, length)
                    wanted += room
                    if room < length:
                        break
                if not wanted:
                    error = errno.EFAULT
                    break
                reply = yield Request(
                    FUSE_READ,
                    _pack_read_in(
                        self._fh or 0, position, wanted, _READ_FLAGS, caller.owner, self.flags, 0
                    ),
                    0,
                    wanted,
                    caller.pid,
                    caller.uid,
                    caller.gid,
                )
                if reply.error:
                    error = -reply.error
                    break
                count = len(reply.payload)
                stored = store(memory, areas, reply.payload) if count else 0
                transferred += stored
                position += stored
                if stored < count:
                    error = errno.EFAULT
                    break
                if count < wanted:
                    break
            if transferred:
                if offset is None and self.device.seekable:
                    self.position = position
            elif error:
                raise os_error(error)
            return transferred
        finally:
            self._running.pop()
            if self._released and self._takes_release():
                yield from self._send_release()

    def write(
        self, caller: Caller, segments: Sequence[IoVec], offset: int | None, flags: int = 0
    ) -> Operation[int]:
        """Write what is in the segments; return how many bytes the server took.

        ``flags`` (O_SYNC, O_DSYNC) are the file's for this call, too.

        As `read`, with EBADF if not open for writing; EIO also if the server says that it took
        more than it was given.
        """
        self._running.append(None)
        try:
            # Usually there is nothing to split: no device takes less.
            fits = len(segments) == 1 and segments[0][1] <= TRANSFER_MIN
            total = segments[0][1] if fits else length_of(segments)
            position = self._start(self._writable, offset, total)
            memory = caller.memory
            limit = self.device.max_write
            transferred = 0
            error = 0
            while transferred < total:
                if fits:
                    areas = segments
                    fits = False
                else:
                    areas = part_of(segments, transferred, min(limit, total - transferred))
                data = load(memory, areas)
                given = len(data)
                if not given:
                    error = errno.EFAULT
                    break
                reply = yield Request(
                    FUSE_WRITE,
                    _pack_write_in(
                        self._fh or 0,
                        position,
                        given,
                        _WRITE_FLAGS if caller.keeps_suid else _KILLING_WRITE_FLAGS,
                        caller.owner,
                        self.flags | flags,
                        0,
                    )
                    + data,
                    fuse_write_out.SIZE,
                    fuse_write_out.SIZE,
                    caller.pid,
                    caller.uid,
                    caller.gid,
                )
                if reply.error:
                    error = -reply.error
                    break
                count, _ = _unpack_write_out(reply.payload)
                if count > given:
                    error = errno.EIO
                    break
                transferred += count
                position += count
                if count < given:
                    break
            if transferred:
                if offset is None and self.device.seekable:
                    self.position = position
            elif error:
                raise os_error(error)
            return transferred
        finally:
            self._running.pop()
            if self._released and self._takes_release():
                yield from self._send_release()

    def ioctl(
        self,
        caller: Caller,
        command: int,
        argument: int,
        compat: bool = False,
        install: Install | None = None,
    ) -> Operation[int]:
        """Do what `recuse.kernel.char.ioctl.do_ioctl` says."""
        self._running.append(None)
        try:
            if self._released:
                raise os_error(errno.EBADF)
            return (
                yield from do_ioctl(
                    self.device,
                    self._fh or 0,
                    caller,
                    command,
                    argument,
                    compat=compat,
                    nonblocking=bool(self.flags & _O_NONBLOCK),
                    install=install,
                )
            )
        finally:
            self._running.pop()
            if self._released and self._takes_release():
                yield from self._send_release()

    def poll(self, caller: Caller, events: int, waiting: bool) -> Operation[int]:
        """Ask the server what the file is ready for, out of ``events`` (POLLIN and so on).

        The answer may have other bits than those; it is POLLERR if the server fails, and all of
        DEFAULT_POLLMASK, without asking, once it has said that it has no poll.  ``waiting``: there
        is somebody to wake, with `wake_pollers`, when that changes.
        """
        self._running.append(None)
        try:
            if self._released:
                raise os_error(errno.EBADF)
            if waiting and not self.device.no_poll:
                # First, or what changes from now on could be missed.
                self.device.connection.polled.add(self._kh, self.wake_pollers)
            return (
                yield from do_poll(self.device, self._fh or 0, self._kh, caller, events, waiting)
            )
        finally:
            self._running.pop()
            if self._released and self._takes_release():
                yield from self._send_release()

    def mmap(self, caller: Caller, mapper: Mapper, call: MmapCall) -> Operation[Mapping]:
        """Map the file's memory into the caller's; the file is not released before `munmap`.

        A private mapping of a seekable file whose server has no memory for it is of what is read
        of the file now.

        Raises OSError as `recuse.kernel.char.mmap.check`, `recuse.kernel.char.mmap.do_mmap` and
        `recuse.kernel.char.mmap.do_copy`; ENODEV if the server has no memory.
        """
        self._running.append(None)
        mapped = False
        try:
            if self._released:
                raise os_error(errno.EBADF)
            device = self.device
            # What a stream gives away would be missing for who reads it.
            copies = device.seekable and call.private
            check(call, self.flags & os.O_ACCMODE, device.mapping or copies)
            fh = self._fh or 0
            mapping = None
            if device.mapping:
                mapping = yield from do_mmap(fh, caller, mapper, call)
            if mapping is None:
                if not copies:
                    raise os_error(errno.ENODEV)
                mapping = yield from do_copy(fh, self.flags, device.max_read, caller, mapper, call)
            mapped = True
            return mapping
        finally:
            if not mapped:
                self._running.pop()
                if self._released and self._takes_release():
                    yield from self._send_release()

    def munmap(self, mapping: Mapping) -> Operation[None]:
        """Let a mapping go: the last part of it is gone.  Once for each that `mmap` has made."""
        try:
            yield from do_munmap(self._fh or 0, mapping)
        finally:
            self._running.pop()
            if self._released and self._takes_release():
                yield from self._send_release()

    def release(self) -> Operation[None]:
        """Let the file go: the last descriptor of it was closed.  Again, do nothing.

        Ends when the server has answered RELEASE, whatever that answer is; at once if operations
        still run on the file, the last of which then sends it, or if it is mapped.
        """
        self._released = True
        self.device.locks.unlock(self)  # before RELEASE (fs/file_table.c, __fput)
        if self._takes_release():
            yield from self._send_release()

    def seek(self, offset: int, whence: int) -> int:
        """Do lseek(2) and return the position.

        Without effect and without error on devices that are not seekable (noop_llseek).  Raises
        OSError: EINVAL for a position that is negative or above 2**63 - 1, and for SEEK_DATA and
        SEEK_HOLE; ESPIPE for SEEK_END, as the end of a device is not known: with that, programs
        that open a file to append to it (fopen, Python's open) go on without.
        """
        if not 0 <= whence <= _SEEK_MAX:
            raise os_error(errno.EINVAL)
        if not self.device.seekable:
            return self.position
        if whence == os.SEEK_CUR:
            offset += self.position
        elif whence != os.SEEK_SET:
            raise os_error(errno.ESPIPE if whence == os.SEEK_END else errno.EINVAL)
        if not 0 <= offset <= _MAX_POSITION:
            raise os_error(errno.EINVAL)
        self.position = offset
        return offset

    def _start(self, allowed: bool, offset: int | None, total: int) -> int:
        """Check what read and write both check and return the first request's offset."""
        # fs/read_write.c, ksys_pread64, vfs_read, rw_verify_area.
        if self._released:
            raise os_error(errno.EBADF)
        if offset is not None and offset < 0:
            raise os_error(errno.EINVAL)
        if not allowed:
            raise os_error(errno.EBADF)
        position = self.position if offset is None else offset
        if position + total > _MAX_POSITION:
            raise os_error(errno.EINVAL)
        return position if self.device.seekable else 0

    def _takes_release(self) -> bool:
        """Whether it is up to the caller to send RELEASE."""
        # A generator that is thrown away may not yield any more.
        if self._running or sys.exc_info()[0] is GeneratorExit:
            return False
        try:
            self._owed.pop()
        except IndexError:
            return False
        return True

    def _send_release(self) -> Operation[None]:
        self.device.connection.polled.remove(self._kh)
        if self._fh is not None:
            # Without a caller in its header (fs/fuse/file.c, fuse_prepare_release: nocreds).
            release = fuse_release_in(fh=self._fh, flags=self.flags)
            yield Request(FUSE_RELEASE, release.pack(), force=True)


def _nobody() -> None:
    pass
