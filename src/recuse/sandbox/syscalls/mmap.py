"""mmap, mremap and remap_file_pages (mm/mmap.c, mm/mremap.c; Linux 6.1)."""

from __future__ import annotations

import contextlib
import errno
import os
from types import TracebackType
from typing import TYPE_CHECKING, Final

from recuse.kernel.char.files import OpenFile
from recuse.kernel.char.mmap import (
    MAP_ANONYMOUS,
    MAP_LOCKED,
    MAP_POPULATE,
    PROT_WRITE,
    Mapping,
    MmapCall,
)
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.sandbox.arch import arch, compat
from recuse.sandbox.mapping.snapshots import Copy
from recuse.sandbox.syscalls.handler import ANSWERED, PROCEED, Handler, signed32
from recuse.sandbox.trap.filter import MAP_DENYWRITE
from recuse.sandbox.trap.inject import GoneError, Injection
from recuse.wire.cuse import RECUSE_MMAP_DONT_COPY, RECUSE_MMAP_DONT_EXPAND
from recuse.wire.descriptor import OwnedDescriptor

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.mapping.memory_maps import Hold, MemoryMaps
    from recuse.sandbox.trap.call import TrappedCall
    from recuse.sandbox.vfs.nodes import Node

_LOW: Final = 0xFFFFFFFF
_MADV_DONTFORK: Final = 10
_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23


class _ThreadMapper:
    """Has a thread that waits in mmap map memory of a device.

    Its call is answered at the end of the block: with the mapping, or with the OSError that ends
    it. From the moment in which mapping begins, the thread is ours until then.
    """

    def __init__(self, call: TrappedCall, maps: MemoryMaps, access: int) -> None:
        self._call = call
        self._maps = maps
        self._access = access
        self._stack = contextlib.ExitStack()
        self._hold: Hold | None = None
        self._thread: Injection | None = None
        self._wanted = MmapCall(0, 0, 0, 0, 0)
        self._flags = 0
        self._address = 0

    def __enter__(self) -> _ThreadMapper:
        return self

    def map(self, memory: OwnedDescriptor, call: MmapCall, flags: int) -> int:
        """See `recuse.kernel.char.mmap.Mapper`."""
        self._wanted, self._flags = call, flags
        self._hold = self._maps.hold(memory, self._access)
        try:
            return self._map(call, flags, self._hold.descriptor.fileno())
        except GoneError:
            raise os_error(errno.EINTR) from None

    def _map(self, wanted: MmapCall, flags: int, descriptor: int) -> int:
        thread = self._stack.enter_context(Injection(self._call))
        self._thread = thread
        number = thread.give(descriptor)
        given = wanted.flags | MAP_DENYWRITE
        if wanted.private:
            # What is copied before the server has filled the memory would stay as it is.
            given &= ~(MAP_POPULATE | MAP_LOCKED)
        unit = compat.MMAP_UNIT if self._call.arch == compat.AUDIT_ARCH else arch.MMAP_UNIT
        offset = wanted.offset // unit
        try:
            self._address = thread.call(
                "mmap",
                wanted.address,
                wanted.length,
                wanted.protection & _LOW,
                given & _LOW,
                number,
                offset,
            )
        finally:
            thread.take_back(number)
        if flags & RECUSE_MMAP_DONT_COPY:
            thread.call("madvise", self._address, wanted.pages, _MADV_DONTFORK)
        return self._address

    def unmap(self) -> None:
        """See `recuse.kernel.char.mmap.Mapper`."""
        if self._thread is not None:
            with contextlib.suppress(GoneError, OSError):
                self._thread.call("munmap", self._address, self._wanted.pages)

    def copy(self, offset: int) -> Copy:
        """See `recuse.kernel.char.mmap.Mapper`."""
        return self._maps.snapshots.begin(offset, self._call.alive)

    def keep(self, file: OpenFile, node: Node, mapping: Mapping) -> None:
        """The server knows of the mapping: it is the program's."""
        thread, hold = self._thread, self._hold
        assert thread is not None
        assert hold is not None
        self._hold = None
        dont_expand = bool(self._flags & RECUSE_MMAP_DONT_EXPAND)
        self._maps.keep(hold, file, node, mapping, dont_expand=dont_expand)
        wanted = self._wanted
        if wanted.private:
            writes = wanted.protection & PROT_WRITE
            how = _MADV_POPULATE_WRITE if writes else _MADV_POPULATE_READ
            with contextlib.suppress(GoneError, OSError):
                if wanted.flags & MAP_LOCKED:
                    thread.call("mlock", self._address, wanted.pages)
                elif wanted.flags & MAP_POPULATE:
                    thread.call("madvise", self._address, wanted.pages, how)
        thread.result = self._address

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        failed = isinstance(value, OSError)
        if isinstance(value, OSError):
            if self._thread is None:
                self._call.finish(None, value)
            else:
                self._thread.result = -(value.errno or errno.EIO)
        self._stack.close()
        if self._hold is not None:
            self._maps.abandon(self._hold)
        return failed


def mmap(call: TrappedCall, machine: Machine) -> int:
    """``mmap(addr, length, prot, flags, fd, offset)``."""
    flags = call.a3 & 0xFFFFFFFF
    if flags & MAP_ANONYMOUS:
        return PROCEED
    descriptor = machine.files.find(call.tid, call.a4)
    if descriptor is None:
        return PROCEED
    file = descriptor.file
    if file is None:
        raise os_error(errno.EBADF)
    if not isinstance(file, OpenFile):
        raise os_error(errno.ENODEV)
    wanted = MmapCall(call.a0, call.a1, signed32(call.a2), signed32(flags), call.a5)
    caller = call.caller()
    with _ThreadMapper(call, machine.memory_maps, file.flags & os.O_ACCMODE) as mapper:
        mapping = call.complete(file.device, file.mmap(caller, mapper, wanted))
        mapper.keep(file, descriptor.node, mapping)
    return ANSWERED


def mremap(call: TrappedCall, machine: Machine) -> int:
    """``mremap(old, old_length, length, flags, new)``: not all mappings may grow."""
    old, new = (-(-length // PAGE_SIZE) for length in (call.a1, call.a2))
    if new > old and not machine.memory_maps.may_grow(call.tid, call.a0):
        raise os_error(errno.EFAULT)
    return PROCEED


def remap_file_pages(call: TrappedCall, machine: Machine) -> int:
    """``remap_file_pages(address, size, protection, page, flags)``: it maps other pages of a file.

    Linux does so by the driver's mmap. Here the server would not be asked, and would not know.
    """
    if machine.memory_maps.maps(call.tid, call.a0):
        raise os_error(errno.EINVAL)
    return PROCEED


HANDLERS: Final[dict[str, Handler]] = {
    "mmap": mmap,
    "mremap": mremap,
    "remap_file_pages": remap_file_pages,
}
