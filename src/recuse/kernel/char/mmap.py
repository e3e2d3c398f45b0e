"""mmap on a device, which Linux's CUSE never got.

It works as proposed in 2009 ("FUSE/CUSE: implement direct mmap", take 3), improved by what the
review found:

- The server is told whether the mapping is shared.
- It names its memory by sending a descriptor, not by a number in its own table.
- No error makes mmap fall back to something that the program did not ask for.

There are three requests, tied together by the first one's number. MMAP asks for memory. COMMIT
follows each MMAP that the server accepted, and says whether mapping succeeded. The program does not
continue until COMMIT is answered, so the server may then resize and fill the memory, or refuse.
MUNMAP comes once for each accepted COMMIT, when the last part of the last copy of the mapping is
gone.

If a file's server has no memory to share, the file can still be copied: a MAP_PRIVATE mapping gets
what READ returns at that moment, if the file has positions (`do_copy`).
"""

from __future__ import annotations

import errno
import os
from typing import Protocol

from recuse.kernel.caller import Caller
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import MOST_PAGES, PAGE_SIZE, Request
from recuse.kernel.errors import os_error
from recuse.runtime.records import NamedTuple
from recuse.wire.cuse import (
    RECUSE_MMAP,
    RECUSE_MMAP_COMMIT,
    RECUSE_MUNMAP,
    recuse_mmap_commit_in,
    recuse_mmap_in,
    recuse_mmap_out,
    recuse_munmap_in,
)
from recuse.wire.declare import Buffer
from recuse.wire.descriptor import BytesWithDescriptor, OwnedDescriptor
from recuse.wire.fuse import FUSE_READ, FUSE_READ_LOCKOWNER, fuse_read_in

# asm-generic/mman-common.h and mman.h; x86 has the same.
PROT_WRITE = 0x2
PROT_EXEC = 0x4
MAP_SHARED = 0x1
MAP_PRIVATE = 0x2
MAP_SHARED_VALIDATE = 0x3
MAP_FIXED = 0x10
MAP_ANONYMOUS = 0x20
MAP_GROWSDOWN = 0x100
MAP_DENYWRITE = 0x800
MAP_LOCKED = 0x2000
MAP_POPULATE = 0x8000
MAP_HUGETLB = 0x40000
MAP_FIXED_NOREPLACE = 0x100000
_MAP_TYPE = 0xF
_LEGACY = 0x7F970 | MAP_SHARED | MAP_PRIVATE | 21 << 26 | 30 << 26
"""LEGACY_MAP_MASK: the flags that MAP_SHARED_VALIDATE knows for a file without others."""

_TASK_SIZE_MAX = 1 << 47
_MAX_OFFSET = (1 << 63) - 1


class MmapCall(NamedTuple):
    """The arguments of mmap(2), length and offset in bytes."""

    address: int
    length: int
    protection: int
    flags: int
    offset: int

    @property
    def pages(self) -> int:
        """The length in bytes, up to a whole page."""
        return -(-self.length // PAGE_SIZE) * PAGE_SIZE

    @property
    def private(self) -> bool:
        """Whether what the caller writes there stays invisible to others."""
        return self.flags & _MAP_TYPE == MAP_PRIVATE


class Copy(Protocol):
    """Memory to be mapped, filled with what is read from a file."""

    @property
    def memory(self) -> OwnedDescriptor:
        """What is to be mapped: a file with the bytes at the same offsets as the copied one."""

    def append(self, data: Buffer) -> None:
        """Add some bytes.

        Raises OSError: ENOMEM if there is no room for them, EINTR if the caller is gone.
        """


class Mapper(Protocol):
    """Maps memory into the caller's, while the caller waits."""

    def map(self, memory: OwnedDescriptor, call: MmapCall, flags: int) -> int:
        """Map the memory and return the address.

        ``flags`` are RECUSE_MMAP_DONT_COPY and RECUSE_MMAP_DONT_EXPAND. The descriptor may be
        kept; nobody else closes it.

        Raises OSError if nothing is mapped: EINVAL if it is not memory that can be shared, EINTR if
        the caller is gone, or what mmap(2) says.
        """

    def unmap(self) -> None:
        """Undo `map`, if the caller is still there."""

    def copy(self, offset: int) -> Copy:
        """Make memory for the bytes of a file, starting at ``offset``.

        Raises OSError: ENOMEM, ENFILE.
        """


class Mapping(NamedTuple):
    """A committed mapping, as its MUNMAP will name it; or a copy, with area 0."""

    unique: int
    address: int
    length: int
    area: int


def check(call: MmapCall, access: int, possible: bool, executable: bool = False) -> None:
    """Refuse what Linux refuses before it asks a driver.

    ``access`` is the access mode that the file is open with. ``possible`` is whether its driver has
    mmap at all, for this kind of mapping, and ``executable`` whether it may be executed.

    Raises OSError: EINVAL, ENOMEM, EOVERFLOW, EACCES, EOPNOTSUPP, ENODEV; EPERM for PROT_EXEC
    unless ``executable``, as on a /dev that is mounted noexec.
    """
    # arch/x86/kernel/sys_x86_64.c and mm/mmap.c, ksys_mmap_pgoff and do_mmap, Linux 6.1.
    fixed = call.flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)
    kind = call.flags & _MAP_TYPE
    if call.offset % PAGE_SIZE or call.flags & MAP_HUGETLB or not call.length:
        raise os_error(errno.EINVAL)
    if call.pages > _TASK_SIZE_MAX:
        raise os_error(errno.ENOMEM)
    if call.offset + call.pages > _MAX_OFFSET:
        raise os_error(errno.EOVERFLOW)
    if (fixed and call.address % PAGE_SIZE) or not MAP_SHARED <= kind <= MAP_SHARED_VALIDATE:
        raise os_error(errno.EINVAL)
    if kind == MAP_SHARED_VALIDATE and call.flags & ~_LEGACY:
        raise os_error(errno.EOPNOTSUPP)
    writes = not call.private and call.protection & PROT_WRITE
    if access not in (os.O_RDONLY, os.O_RDWR) or (writes and access != os.O_RDWR):
        raise os_error(errno.EACCES)
    if not possible:
        raise os_error(errno.ENODEV)
    if call.protection & PROT_EXEC and not executable:
        raise os_error(errno.EPERM)
    if call.flags & MAP_GROWSDOWN:
        raise os_error(errno.EINVAL)


def do_mmap(fh: int, caller: Caller, mapper: Mapper, call: MmapCall) -> Operation[Mapping | None]:
    """Do one mmap with checked arguments; return None if the server does not know MMAP.

    Raises OSError: what the server answers to MMAP or COMMIT, EINVAL if it answers without a
    descriptor of memory, or the error of the mapping.
    """
    asked = recuse_mmap_in(fh, call.address, call.pages, call.protection, call.flags, call.offset)
    request = Request(
        RECUSE_MMAP,
        asked.pack(),
        recuse_mmap_out.SIZE,
        recuse_mmap_out.SIZE,
        caller.pid,
        caller.uid,
        caller.gid,
    )
    reply = yield request
    if reply.error == -errno.ENOSYS:
        return None
    if reply.error:
        raise os_error(-reply.error)
    out = recuse_mmap_out.unpack(reply.payload)
    failure: Exception | None = None
    address = 0
    try:
        if not isinstance(reply.payload, BytesWithDescriptor) or out.area <= 0:
            raise os_error(errno.EINVAL)
        address = mapper.map(reply.payload.descriptor, call, out.flags)
    except OSError as error:
        failure = error
        result = -(error.errno or errno.EIO)
    except Exception as error:
        failure = error
        result = -errno.EIO
    else:
        result = out.area
    commit = recuse_mmap_commit_in(
        fh, request.unique, address, asked.len, asked.prot, asked.flags, result, 0, asked.offset
    )
    # This must reach the server, which may hold something for the mapping.
    reply = yield Request(
        RECUSE_MMAP_COMMIT, commit.pack(), 0, 0, caller.pid, caller.uid, caller.gid, force=True
    )
    if failure is not None:
        try:
            raise failure
        finally:
            # Its traceback would keep this frame alive, and so the memory's descriptor.
            del failure
    if reply.error:
        mapper.unmap()
        raise os_error(-reply.error)
    return Mapping(request.unique, address, asked.len, out.area)


def do_copy(  # noqa: PLR0917 - a file's properties
    fh: int, flags: int, max_read: int, caller: Caller, mapper: Mapper, call: MmapCall
) -> Operation[Mapping]:
    """Map a copy of what a file has now; its server has no memory to share.

    The arguments have been checked. ``flags`` are the file's, ``max_read`` is the most bytes of one
    READ. A short answer is the last. Beyond it the mapping has no memory (SIGBUS), except for the
    rest of a page.

    Raises OSError: what the server answers to a READ, even if something was read before; ENOMEM;
    EINTR; or the error of the mapping.
    """
    # fs/fuse/file.c, fuse_file_mmap, Linux 6.1: generic_file_mmap after invalidate_inode_pages2.
    # There, pages are read when they are touched. If that fails, the program gets SIGBUS.
    copy = mapper.copy(call.offset)
    try:
        done = 0
        while done < call.pages:
            wanted = min(max_read, MOST_PAGES * PAGE_SIZE, call.pages - done)
            ask = fuse_read_in(
                fh, call.offset + done, wanted, FUSE_READ_LOCKOWNER, caller.owner, flags
            )
            reply = yield Request(
                FUSE_READ, ask.pack(), 0, wanted, caller.pid, caller.uid, caller.gid
            )
            if reply.error:
                raise os_error(-reply.error)
            copy.append(reply.payload)
            done += len(reply.payload)
            if len(reply.payload) < wanted:
                break
    except BaseException:
        copy.memory.close()
        raise
    address = mapper.map(copy.memory, call, 0)
    return Mapping(0, address, call.pages, 0)


def do_munmap(fh: int, mapping: Mapping) -> Operation[None]:
    """Tell the server that a mapping is gone; its answer changes nothing.

    It was never told about copies.
    """
    if not mapping.area:
        return
    body = recuse_munmap_in(fh, mapping.unique, mapping.address, mapping.length, mapping.area)
    yield Request(RECUSE_MUNMAP, body.pack(), force=True)
