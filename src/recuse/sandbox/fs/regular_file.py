"""Open regular files of filesystems: read, write and what else only they have."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from recuse.kernel.caller import Caller
from recuse.kernel.char.mmap import Mapping, MmapCall
from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs import file_calls
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.mapping import extend, map_file, sync_mapping, unmap_file
from recuse.kernel.fs.regular import RegularFile
from recuse.kernel.fs.writeback import write_back
from recuse.kernel.iovec import MAX_TRANSFER, length_of, load, store
from recuse.sandbox.files.description import FileDescription, IoVecs, Offsets, PollSource
from recuse.sandbox.fs.caller import caller_of, of_files
from recuse.sandbox.fs.file import OpenedFile
from recuse.sandbox.fs.transfer_ends import put
from recuse.sandbox.fs.transfers import send_file, splice
from recuse.sandbox.trap.call import OnDevice, Outcome, TrappedCall

if TYPE_CHECKING:
    from recuse.sandbox.files.description import AnyMapper

_FIONREAD: Final = 0x541B
_COUNT: Final = struct.Struct("=I")
_OFFSET: Final = struct.Struct("=q")


class DataFile(OpenedFile):
    """An open regular file."""

    __slots__ = ()

    has_events = True
    can_be_direct = True
    kernel_file: RegularFile

    def read(self, call: TrappedCall, segments: IoVecs, position: int | None) -> Outcome:
        """See `RegularFile.read`. OSError: EFAULT if nothing could be stored."""
        file, caller = self.kernel_file, caller_of(call)
        known = file.read_known(caller, length_of(segments), position)
        if known is not None:
            return _stored(file, caller, segments, known, position)
        operation = _read(file, caller, segments, position)
        return call.run(self._tree, self._tree.whole(operation))

    def write(
        self, call: TrappedCall, segments: IoVecs, position: int | None, flags: int = 0
    ) -> Outcome:
        """See `RegularFile.write`. OSError: EFAULT if nothing could be loaded."""
        operation = _write(self.kernel_file, caller_of(call), segments, position, flags)
        return call.run(self._tree, self._tree.whole(operation))

    def read_at(self, caller: Caller, segments: IoVecs, position: int) -> OnDevice[int]:
        """See `read`."""
        operation = _read(self.kernel_file, of_files(caller), segments, position)
        return OnDevice(self._tree, self._tree.whole(operation))

    def write_at(
        self, caller: Caller, segments: IoVecs, position: int, flags: int
    ) -> OnDevice[int]:
        """See `write`."""
        operation = _write(self.kernel_file, of_files(caller), segments, position, flags)
        return OnDevice(self._tree, self._tree.whole(operation))

    @property
    def poll_source(self) -> PollSource:
        """The filesystem."""
        return self._tree.superblock

    def poll(self, caller: Caller, events: int, waiting: bool) -> OnDevice[int]:
        """See `recuse.kernel.fs.file_calls.poll`."""
        operation = file_calls.poll(self.kernel_file, of_files(caller), events, waiting)
        return OnDevice(self._tree, self._tree.whole(operation))

    def wake_by(self, changed: Callable[[], None]) -> None:
        """See `FilesystemFile`."""
        self.kernel_file.wake_pollers = changed

    @property
    def ended(self) -> bool:
        """Whether the server has ended."""
        return self._tree.connection.ended

    def seek(self, call: TrappedCall, offset: int, whence: int) -> int:
        """See `RegularFile.seek`."""
        return self._tree.ask(
            call, ("seek", self), lambda: self.kernel_file.seek(caller_of(call), offset, whence)
        )

    def mmap(self, caller: Caller, mapper: AnyMapper, wanted: MmapCall) -> OnDevice[Mapping | None]:
        """See `map_file`."""
        operation = map_file(self.kernel_file, of_files(caller), mapper, wanted)
        return OnDevice(self._tree, self._tree.whole(operation))

    def munmap(self, mapping: Mapping) -> OnDevice[None]:
        """See `unmap_file`."""
        return OnDevice(self._tree, self._tree.whole(unmap_file(self.kernel_file)))

    def mapping_ended(self) -> None:
        """See `Mounted.closed`."""
        self._tree.closed()

    def sync_mapping(self, caller: Caller) -> OnDevice[None] | None:
        """See `recuse.kernel.fs.mapping.sync_mapping`."""
        operation = sync_mapping(self.kernel_file, of_files(caller))
        return OnDevice(self._tree, self._tree.whole(operation))

    def extend_mapping(self, caller: Caller, pages: range) -> OnDevice[None] | None:
        """See `recuse.kernel.fs.mapping.extend`."""
        operation = extend(self.kernel_file, of_files(caller), pages)
        return OnDevice(self._tree, self._tree.whole(operation))

    def send_file(
        self,
        call: TrappedCall,
        target: FileDescription | None,
        source: FileDescription | None,
        width: int,
    ) -> int:
        """See `recuse.sandbox.fs.transfers.send_file`."""
        return send_file(call, target, source, width)

    def splice(
        self, call: TrappedCall, target: FileDescription | None, source: FileDescription | None
    ) -> int:
        """See `recuse.sandbox.fs.transfers.splice`."""
        return splice(call, target, source)

    def copy_range(
        self, call: TrappedCall, other: FileDescription, offsets: Offsets, size: int
    ) -> Outcome:
        """See `RegularFile.copy_to`."""
        assert isinstance(other, DataFile)
        operation = _copy(self.kernel_file, other.kernel_file, caller_of(call), offsets, size)
        return self._tree.run(call, operation)

    def ioctl(self, call: TrappedCall, command: int, argument: int) -> Outcome:
        """See `OpenedFile.ioctl`; FIONREAD is answered for all files (fs/ioctl.c, do_vfs_ioctl)."""
        if command == _FIONREAD:
            return self._tree.run(call, _tell_left(self.kernel_file, caller_of(call), argument))
        return super().ioctl(call, command, argument)

    def write_range(self, call: TrappedCall) -> Outcome:
        """See `recuse.kernel.fs.writeback.write_back`."""
        kept = self.kernel_file
        return self._tree.run(call, kept.running(write_back(kept.superblock, kept.inode)))

    def read_ahead(self) -> int:
        """Read nothing yet. OSError: EBADF."""
        return 0 if self.readable else super().read_ahead()

    def truncate(self, call: TrappedCall, size: int) -> Outcome:
        """See `RegularFile.truncate`."""
        return self._tree.run(call, self.kernel_file.truncate(caller_of(call), size))

    def allocate(self, call: TrappedCall, mode: int, offset: int, length: int) -> Outcome:
        """See `RegularFile.allocate`."""
        return self._tree.run(
            call, self.kernel_file.allocate(caller_of(call), mode, offset, length)
        )


def _read(
    file: RegularFile, caller: FileCaller, segments: IoVecs, position: int | None
) -> Operation[int]:
    data = yield from file.read(caller, length_of(segments), position)
    return _stored(file, caller, segments, data, position)


def _stored(
    file: RegularFile, caller: FileCaller, segments: IoVecs, data: bytes, position: int | None
) -> int:
    """Give a program what was read; return how much of it could be stored."""
    if not data:
        return 0
    stored = store(caller.memory, segments, data)
    if position is None:
        file.position -= len(data) - stored
    if not stored:
        raise os_error(errno.EFAULT)
    return stored


def _write(
    file: RegularFile, caller: FileCaller, segments: IoVecs, position: int | None, flags: int
) -> Operation[int]:
    data = load(caller.memory, segments)
    if not data and length_of(segments):
        raise os_error(errno.EFAULT)
    return (yield from put(file, caller, data, position, flags))


def _tell_left(file: RegularFile, caller: FileCaller, address: int) -> Operation[None]:
    """Store how many bytes follow the position."""
    file.inode.check()
    data = _COUNT.pack(file.inode.attr.size - file.position & 0xFFFFFFFF)
    if caller.memory.write(address, data) < len(data):
        raise os_error(errno.EFAULT)
    yield from ()


def _copy(
    file: RegularFile, other: RegularFile, caller: FileCaller, offsets: Offsets, size: int
) -> Operation[int]:
    # fs/read_write.c, copy_file_range
    start, target = _offset(file, caller, offsets[0]), _offset(other, caller, offsets[1])
    copied = yield from file.copy_to(caller, start, other, target, min(size, MAX_TRANSFER))
    _move(file, caller, offsets[0], start + copied)
    _move(other, caller, offsets[1], target + copied)
    return copied


def _offset(file: RegularFile, caller: FileCaller, address: int) -> int:
    if not address:
        return file.position
    data = caller.memory.read(address, _OFFSET.size)
    if len(data) < _OFFSET.size:
        raise os_error(errno.EFAULT)
    return int(_OFFSET.unpack(data)[0])


def _move(file: RegularFile, caller: FileCaller, address: int, offset: int) -> None:
    if not address:
        file.position = offset
    elif caller.memory.write(address, _OFFSET.pack(offset)) < _OFFSET.size:
        raise os_error(errno.EFAULT)
