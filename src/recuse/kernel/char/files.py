"""Open files of a device, and what system calls on them do: fs/fuse/cuse.c and file.c.

`recuse.kernel.files` has what all open files share, and when they are released.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

from recuse.kernel.caller import Caller, Memory
from recuse.kernel.char.devices import TRANSFER_MIN, CharDevice
from recuse.kernel.char.ioctl import do_ioctl
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
from recuse.kernel.connection.request import Request, Transfer
from recuse.kernel.errors import os_error
from recuse.kernel.files import FuseFile
from recuse.kernel.iovec import IoVec, length_of, load, part_of, store
from recuse.wire.fuse import (
    FUSE_OPEN,
    FUSE_READ_LOCKOWNER,
    FUSE_WRITE_KILL_SUIDGID,
    FUSE_WRITE_LOCKOWNER,
    fuse_open_in,
    fuse_open_out,
    fuse_write_out,
)
from recuse.wire.ids import Kh

_MAX_POSITION = (1 << 63) - 1

_OPEN_ONLY = os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_TRUNC
"""Flags that concern only the opening, not the device (fuse_send_open)."""

_SEEK_MAX = 4
"""SEEK_HOLE, the last one."""

# fuse_direct_io gives all requests an owner.
_READ_FLAGS = FUSE_READ_LOCKOWNER
_WRITE_FLAGS = FUSE_WRITE_LOCKOWNER
_KILLING_WRITE_FLAGS = FUSE_WRITE_LOCKOWNER | FUSE_WRITE_KILL_SUIDGID

_unpack_write_out = fuse_write_out.CODEC.unpack


def open_file(device: CharDevice, flags: int, caller: Caller) -> Operation[OpenFile]:
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


Install: TypeAlias = Callable[["OpenFile", bool], int]
"""Gives the caller a descriptor of a new file, maybe close-on-exec, and returns its number.

Raises OSError: EMFILE if the caller's table is full, ENFILE, ESRCH if the caller is gone. If it
raises, the file is or will be released: it may have released the file already itself.
"""


class OpenFile(FuseFile):
    """What a descriptor (and its copies) of a device refers to.

    flags
        The flags of the opening decide what may be read or written, even if they change later.
    position
        In bytes; stays 0 unless the device is seekable.
    wake_pollers
        Set this before the first poll. It is called when something may have changed for callers
        that polled with ``waiting``, and when the connection has ended. It is called in one of the
        server's threads, so it must not wait or make requests.
    """

    __slots__ = ("_readable", "_writable", "device", "position", "wake_pollers")

    def __init__(self, device: CharDevice, fh: int | None, flags: int, kh: Kh) -> None:
        """Make it; ``fh`` is None if the server does not know about open files (`no_open`)."""
        super().__init__(device.connection, fh, flags, kh)
        self.device = device
        self.position = 0
        self.wake_pollers: Callable[[], None] = _nobody
        access = flags & os.O_ACCMODE
        self._readable = access in (os.O_RDONLY, os.O_RDWR)
        self._writable = access in (os.O_WRONLY, os.O_RDWR)

    # Every transfer goes through one of these two, so each does by itself what `running` does.
    #
    # If an area of the caller's ends in the middle, the part up to there is used, like the pages
    # that fuse_get_user_pages could get. Only a request with no usable byte fails with EFAULT.

    def read(self, caller: Caller, segments: Sequence[IoVec], offset: int | None) -> Operation[int]:
        """Read into the segments, one after the other; return how many bytes were read.

        offset None: read at the file position and move it. On devices that are not seekable every
        call reads from offset 0, as in fs/fuse/cuse.c. Only the second and later requests of one
        call have another offset.

        Raises OSError: EBADF if not open for reading; EINVAL for an offset that is negative or
        goes beyond 2**63 - 1; EFAULT if nothing can be stored (then no request is sent); or what
        the server answers, unless some bytes were read before.
        """
        self._running.append(None)
        try:
            if self._released:
                raise os_error(errno.EBADF)
            # Usually nothing has to be split: no device takes less.
            fits = len(segments) == 1 and segments[0][1] <= TRANSFER_MIN
            total = segments[0][1] if fits else length_of(segments)
            position = self._start(self._readable, offset, total)
            limit = self.device.max_read
            memory = caller.memory
            done = error = 0
            while done < total:
                areas = segments if fits else part_of(segments, done, min(limit, total - done))
                size = memory.writable(*areas[0]) if fits else _room(memory, areas)
                if not size:
                    error = errno.EFAULT
                    break
                reply = yield Transfer(
                    self.fh or 0,
                    position,
                    size,
                    self.flags,
                    None,
                    _READ_FLAGS,
                    caller.owner,
                    caller.pid,
                    caller.uid,
                    caller.gid,
                )
                if reply.error:
                    error = -reply.error
                    break
                count = len(reply.payload)
                stored = store(memory, areas, reply.payload) if count else 0
                done += stored
                position += stored
                if stored < count:
                    error = errno.EFAULT
                    break
                if count < size:
                    break
                fits = False
            return self._end(done, error, offset, position)
        finally:
            self._running.pop()
            if self._released and self._takes_release():
                yield from self._send_release()

    def write(
        self, caller: Caller, segments: Sequence[IoVec], offset: int | None, flags: int = 0
    ) -> Operation[int]:
        """Write what is in the segments; return how many bytes the server took.

        ``flags`` (O_SYNC, O_DSYNC) are added to the file's for this call.

        Otherwise like `read`, with EBADF if not open for writing. Also EIO if the server says that
        it took more than it was given.
        """
        self._running.append(None)
        try:
            if self._released:
                raise os_error(errno.EBADF)
            fits = len(segments) == 1 and segments[0][1] <= TRANSFER_MIN
            total = segments[0][1] if fits else length_of(segments)
            position = self._start(self._writable, offset, total)
            limit = self.device.max_write
            done = error = 0
            while done < total:
                areas = segments if fits else part_of(segments, done, min(limit, total - done))
                data = load(caller.memory, areas)
                size = len(data)
                if not size:
                    error = errno.EFAULT
                    break
                reply = yield Transfer(
                    self.fh or 0,
                    position,
                    size,
                    self.flags | flags,
                    data,
                    _WRITE_FLAGS if caller.keeps_suid else _KILLING_WRITE_FLAGS,
                    caller.owner,
                    caller.pid,
                    caller.uid,
                    caller.gid,
                )
                if reply.error:
                    error = -reply.error
                    break
                count = _unpack_write_out(reply.payload)[0]
                if count > size:
                    error = errno.EIO
                    break
                done += count
                position += count
                if count < size:
                    break
                fits = False
            return self._end(done, error, offset, position)
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
        return self.running(do_ioctl(self, caller, command, argument, compat, install))

    def sibling(self, fh: int, flags: int) -> OpenFile:
        """Another file of the device, made by one of its ioctls."""
        return OpenFile(self.device, fh, flags, self.device.connection.polled.next_kh())

    def poll(self, caller: Caller, events: int, waiting: bool) -> Operation[int]:
        """Ask the server which of ``events`` (POLLIN and so on) the file is ready for.

        The answer may have other bits too. It is POLLERR if the server fails. Once the server has
        said that it has no poll, it is all of DEFAULT_POLLMASK, without asking. ``waiting``:
        somebody is to be woken by `wake_pollers` when the answer changes.
        """
        return self.running(do_poll(self, caller, events, waiting))

    def mmap(self, caller: Caller, mapper: Mapper, call: MmapCall) -> Operation[Mapping]:
        """Map the file's memory into the caller's; the file is not released before `munmap`.

        If the server has no memory for a seekable file, a private mapping gets a copy: what can be
        read of the file now.

        Raises OSError like `recuse.kernel.char.mmap.check`, `recuse.kernel.char.mmap.do_mmap` and
        `recuse.kernel.char.mmap.do_copy`; ENODEV if the server has no memory.
        """
        return self.running(self._map(caller, mapper, call))

    def _map(self, caller: Caller, mapper: Mapper, call: MmapCall) -> Operation[Mapping]:
        device = self.device
        # Reading a stream for this would take its data from other readers.
        copies = device.seekable and call.private
        check(call, self.flags & os.O_ACCMODE, device.mapping or copies)
        fh = self.fh or 0
        mapping = None
        if device.mapping:
            mapping = yield from do_mmap(fh, caller, mapper, call)
        if mapping is None:
            if not copies:
                raise os_error(errno.ENODEV)
            mapping = yield from do_copy(fh, self.flags, device.max_read, caller, mapper, call)
        self.hold()
        return mapping

    def munmap(self, mapping: Mapping) -> Operation[None]:
        """Release a mapping whose last part is gone. Call it once for each from `mmap`."""
        return self.running(do_munmap(self.fh or 0, mapping), mapped=True)

    def _unlock(self) -> None:
        self.device.locks.unlock(self)

    def seek(self, offset: int, whence: int) -> int:
        """Do lseek(2) and return the position.

        On devices that are not seekable it has no effect and no error (noop_llseek). Raises
        OSError: EINVAL for a position that is negative or above 2**63 - 1, and for SEEK_DATA and
        SEEK_HOLE; ESPIPE for SEEK_END, as the end of a device is not known. Programs that open a
        file to append to it (fopen, Python's open) accept ESPIPE and continue.
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
        """Do the checks that read and write share, and return the first request's offset."""
        # fs/read_write.c, ksys_pread64, vfs_read, rw_verify_area.
        if offset is not None and offset < 0:
            raise os_error(errno.EINVAL)
        if not allowed:
            raise os_error(errno.EBADF)
        position = self.position if offset is None else offset
        if position + total > _MAX_POSITION:
            raise os_error(errno.EINVAL)
        return position if self.device.seekable else 0

    def _end(self, done: int, error: int, offset: int | None, position: int) -> int:
        """Return what `read` or `write` has done, or raise its error if that is nothing."""
        if done:
            if offset is None and self.device.seekable:
                self.position = position
        elif error:
            raise os_error(error)
        return done


def _room(memory: Memory, areas: Sequence[IoVec]) -> int:
    """How many bytes can be stored in the areas, up to the first one that cannot."""
    size = 0
    for address, length in areas:
        room = memory.writable(address, length)
        size += room
        if room < length:
            break
    return size


def _nobody() -> None:
    pass
