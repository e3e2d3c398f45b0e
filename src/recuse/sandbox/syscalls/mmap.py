"""mmap, mremap and remap_file_pages (mm/mmap.c, mm/mremap.c; Linux 6.1)."""

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
from recuse.sandbox.mapping.snapshots import Copy
from recuse.sandbox.syscalls.handler import ANSWERED, PROCEED, Handler, signed32
from recuse.sandbox.trap.filter import MAP_DENYWRITE, MAP_EXECUTABLE
from recuse.sandbox.trap.inject import GoneError, Injection
from recuse.wire.cuse import RECUSE_MMAP_DONT_COPY, RECUSE_MMAP_DONT_EXPAND
from recuse.wire.descriptor import OwnedDescriptor

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.mapping.memory_maps import Hold, MemoryMaps
    from recuse.sandbox.trap.call import TrappedCall

_LOW: Final = 0xFFFFFFFF
_MADV_DONTFORK: Final = 10
_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23


class _Mapping:
    """A mapping of a thread that makes calls for recuse meanwhile."""

    __slots__ = ("address", "flags", "hold", "thread", "wanted")

    def __init__(self, thread: Injection, hold: Hold, wanted: MmapCall, flags: int) -> None:
        self.thread = thread
        self.hold = hold
        self.wanted = wanted
        self.flags = flags
        self.address = 0

    def make(self, unit: int) -> int:
        """Have the thread map it; return the address. mmap's offset is given in ``unit`` bytes."""
        thread, wanted = self.thread, self.wanted
        number = thread.give(self.hold.descriptor.fileno())
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

    See `recuse.kernel.char.mmap.Mapper`.
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
        call = self._call
        hold = self._hold = self._maps.hold(memory, self._access)
        try:
            mapping = _Mapping(Injection(call), hold, wanted, flags)
            mapping.thread.attach()
            self.mapping = mapping
            return mapping.make(
                compat.MMAP_UNIT if call.arch == compat.AUDIT_ARCH else arch.MMAP_UNIT
            )
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
        maps.keep(mapping.hold, file, mapped, dont_expand=dont_expand)
        mapping.populate()
        mapping.thread.result = mapping.address
    finally:
        mapper.end()
    return ANSWERED


def mremap(call: TrappedCall, machine: Machine) -> int:
    """``mremap(old, old_length, length, flags, new)``: some mappings must not grow."""
    old, new = (-(-length // PAGE_SIZE) for length in (call.a1, call.a2))
    if new > old and not machine.memory_maps.may_grow(call.tid, call.a0):
        raise os_error(errno.EFAULT)
    return PROCEED


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
    "remap_file_pages": remap_file_pages,
}
