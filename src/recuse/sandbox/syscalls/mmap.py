"""mmap, mremap, msync and remap_file_pages (mm/mmap.c, mm/mremap.c, mm/msync.c; Linux 6.1)."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from recuse.kernel.char.mmap import (
    MAP_ANONYMOUS,
    MAP_LOCKED,
    MAP_POPULATE,
    PROT_WRITE,
    MmapCall,
)
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch, compat
from recuse.sandbox.mapping.file_memory import FileMemory
from recuse.sandbox.mapping.snapshots import Copy
from recuse.sandbox.syscalls.handler import ANSWERED, PROCEED, Handler, signed32
from recuse.sandbox.trap.filter import MAP_DENYWRITE, MAP_EXECUTABLE
from recuse.sandbox.trap.inject import GoneError, Injection
from recuse.wire.cuse import RECUSE_MMAP_DONT_COPY, RECUSE_MMAP_DONT_EXPAND
from recuse.wire.descriptor import OwnedDescriptor

if TYPE_CHECKING:
    from recuse.kernel.fs.backing import BackingFile
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.mapping.memory_maps import Hold, MemoryMaps
    from recuse.sandbox.trap.call import OnDevice, Outcome, Steps, TrappedCall

_LOW: Final = 0xFFFFFFFF
_MS_SYNC: Final = 4
_MADV_DONTFORK: Final = 10
_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23


class _Mapping:
    """A mapping of a thread that makes calls for recuse meanwhile."""

    __slots__ = ("address", "flags", "hold", "thread", "wanted")

    def __init__(self, thread: Injection, hold: Hold | None, wanted: MmapCall, flags: int) -> None:
        self.thread = thread
        self.hold = hold
        self.wanted = wanted
        self.flags = flags
        self.address = 0

    def make(self, descriptor: int, unit: int) -> int:
        """Have the thread map it; return the address. mmap's offset is given in ``unit`` bytes."""
        thread, wanted = self.thread, self.wanted
        number = thread.give(descriptor)
        given = wanted.flags | MAP_DENYWRITE | MAP_EXECUTABLE
        if wanted.private:
            # Pages that are copied before the server has filled the memory would never change.
            given &= ~(MAP_POPULATE | MAP_LOCKED)
        protection = wanted.protection & _LOW
        offset = wanted.offset // unit
        try:
            self.address = thread.call(
                "mmap", wanted.address, wanted.length, protection, given & _LOW, number, offset
            )
        finally:
            thread.take_back(number)
        if self.flags & RECUSE_MMAP_DONT_COPY:
            thread.call("madvise", self.address, wanted.pages, _MADV_DONTFORK)
        return self.address

    def populate(self) -> None:
        """Do what else mmap's flags ask for, now that the memory has been filled."""
        wanted = self.wanted
        if not wanted.private:
            return
        writes = wanted.protection & PROT_WRITE
        how = _MADV_POPULATE_WRITE if writes else _MADV_POPULATE_READ
        with contextlib.suppress(GoneError, OSError):
            if wanted.flags & MAP_LOCKED:
                self.thread.call("mlock", self.address, wanted.pages)
            elif wanted.flags & MAP_POPULATE:
                self.thread.call("madvise", self.address, wanted.pages, how)


class _Mapper:
    """Maps memory for a thread that waits in mmap, between two answers of its server.

    See `recuse.kernel.char.mmap.Mapper` and `recuse.kernel.fs.mapping.FileMapper`.
    """

    __slots__ = ("_access", "_call", "_hold", "_maps", "mapping")

    def __init__(self, call: TrappedCall, maps: MemoryMaps, access: int) -> None:
        self._call = call
        self._maps = maps
        self._access = access
        self._hold: Hold | None = None
        self.mapping: _Mapping | None = None
        """Set as soon as the thread makes calls for recuse."""

    def map(self, memory: OwnedDescriptor, wanted: MmapCall, flags: int) -> int:
        """Map the memory and return the address."""
        hold = self._hold = self._maps.hold(memory, self._access)
        return self._map(hold.descriptor.fileno(), hold, wanted, flags)

    def map_backing(self, file: BackingFile, wanted: MmapCall) -> int:
        """Map a file of the machine's and return the address."""
        return self._map(file.fileno(), None, wanted, 0)

    def _map(self, descriptor: int, hold: Hold | None, wanted: MmapCall, flags: int) -> int:
        call = self._call
        try:
            mapping = _Mapping(Injection(call), hold, wanted, flags)
            mapping.thread.attach()
            self.mapping = mapping
            unit = compat.MMAP_UNIT if call.arch == compat.AUDIT_ARCH else arch.MMAP_UNIT
            return mapping.make(descriptor, unit)
        except GoneError:
            raise os_error(errno.EINTR) from None

    def end(self) -> None:
        """Let the thread go with the result of its call. If nothing was mapped, hold nothing."""
        try:
            if self.mapping is not None:
                self.mapping.thread.let_go()
        finally:
            if self._hold is not None:
                self._maps.abandon(self._hold)

    def unmap(self) -> None:
        """Undo the mapping, if the caller is still there."""
        mapping = self.mapping
        if mapping is not None:
            with contextlib.suppress(GoneError, OSError):
                mapping.thread.call("munmap", mapping.address, mapping.wanted.pages)

    def copy(self, offset: int) -> Copy:
        """Make memory for the bytes of a file from ``offset`` on."""
        return self._maps.snapshots.begin(offset, self._call.alive)

    def memory(self) -> FileMemory:
        """Make memory for the pages of a filesystem's file."""
        return FileMemory(self._maps.snapshots)


def mmap(call: TrappedCall, machine: Machine) -> int:
    """``mmap(addr, length, prot, flags, fd, offset)``."""
    flags = call.a3 & 0xFFFFFFFF
    if flags & MAP_ANONYMOUS:
        return PROCEED
    file = machine.files.find_opened(call.tid, call.a4)
    if file is None:
        return PROCEED
    wanted = MmapCall(call.a0, call.a1, signed32(call.a2), signed32(flags), call.a5)
    maps = machine.memory_maps
    mapper = _Mapper(call, maps, file.flags & os.O_ACCMODE)
    try:
        step = file.mmap(call.caller(), mapper, wanted)
        try:
            mapped = call.complete(step.device, step.operation)
        except OSError as error:
            if mapper.mapping is None:
                call.finish(None, error)
            else:
                mapper.mapping.thread.result = -(error.errno or errno.EIO)
            return ANSWERED
        # The server knows of the mapping now, so it is the program's.
        mapping = mapper.mapping
        assert mapping is not None
        dont_expand = bool(mapping.flags & RECUSE_MMAP_DONT_EXPAND)
        if mapped is not None:
            assert mapping.hold is not None
            maps.keep(mapping.hold, file, mapped, dont_expand=dont_expand)
        mapping.populate()
        mapping.thread.result = mapping.address
    finally:
        mapper.end()
    return ANSWERED


def mremap(call: TrappedCall, machine: Machine) -> Outcome:
    """``mremap(old, old_length, length, flags, new)``: some mappings must not grow."""
    old, new = (-(-length // PAGE_SIZE) for length in (call.a1, call.a2))
    if new <= old:
        return PROCEED
    maps = machine.memory_maps
    if not maps.may_grow(call.tid, call.a0):
        raise os_error(errno.EFAULT)
    found = maps.at(call.tid, call.a0) if maps.extendable else None
    if found is None:
        return PROCEED
    file, offset = found
    first = offset // PAGE_SIZE
    return _first(file.extend_mapping(call.caller(), range(first, first + new)))


def _first(*steps: OnDevice[None] | None) -> Steps[int]:
    """Let the call proceed after some steps."""
    for step in steps:
        if step is not None:
            yield step
    return PROCEED


def msync(call: TrappedCall, machine: Machine) -> Outcome:
    """``msync(address, length, flags)``: what was stored is written back."""
    maps = machine.memory_maps
    if not call.a2 & _MS_SYNC or not maps.extendable:
        return PROCEED
    files = maps.shared(call.tid, call.a0, call.a0 + call.a1)
    return _first(*(file.sync_mapping(call.caller()) for file in files))


def remap_file_pages(call: TrappedCall, machine: Machine) -> int:
    """``remap_file_pages(address, size, protection, page, flags)``: it maps other pages of a file.

    Linux asks the driver's mmap. Here the server would not be asked, and would not know of it.
    """
    if machine.memory_maps.maps(call.tid, call.a0):
        raise os_error(errno.EINVAL)
    return PROCEED


HANDLERS: Final[dict[str, Handler]] = {
    "mmap": mmap,
    "mremap": mremap,
    "msync": msync,
    "remap_file_pages": remap_file_pages,
}
