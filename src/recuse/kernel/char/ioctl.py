"""ioctl on a device: fs/fuse/ioctl.c, fuse_do_ioctl.

A restricted device is given the area at the argument's address. The command encodes the area's size
and direction. An unrestricted one may answer with FUSE_IOCTL_RETRY and areas of the caller's
memory, input first, then output. It is asked again with the contents of the input areas and room
for the output areas, until it answers without RETRY.

One thing that Linux does not have: the server of a device with new_files may answer with an open
file (RECUSE_IOCTL_FILE). The caller gets a descriptor of it, and the output has its number.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from recuse.kernel.caller import Caller, Memory
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import MAX_PAGES, PAGE_SIZE, Request
from recuse.kernel.errors import os_error
from recuse.kernel.iovec import IoVec
from recuse.wire import ioctl
from recuse.wire.cuse import RECUSE_IOCTL_FILE, RECUSE_IOCTL_NONBLOCK, recuse_ioctl_file
from recuse.wire.fuse import (
    FUSE_IOCTL,
    FUSE_IOCTL_32BIT,
    FUSE_IOCTL_COMPAT,
    FUSE_IOCTL_DIR,
    FUSE_IOCTL_MAX_IOV,
    FUSE_IOCTL_RETRY,
    FUSE_IOCTL_UNRESTRICTED,
    fuse_ioctl_in,
    fuse_ioctl_iovec,
    fuse_ioctl_out,
)

NewFile = TypeVar("NewFile", bound="Released")
NewFile_co = TypeVar("NewFile_co", bound="Released", covariant=True)


class Released(Protocol):
    """A file that an ioctl has made."""

    def release(self) -> Operation[None]:
        """Release it, if nobody gets it."""


class IoctlRules(Protocol):
    """What do_ioctl needs of a device; see `recuse.kernel.char.devices.CharDevice`."""

    unrestricted: bool
    new_files: bool
    file_flags: bool


class IoctlFile(Protocol[NewFile_co]):
    """What do_ioctl needs of a file."""

    @property
    def device(self) -> IoctlRules:
        """Its device."""

    fh: int | None
    flags: int

    def sibling(self, fh: int, flags: int) -> NewFile_co:
        """Another file of the device."""


MAX_BYTES = MAX_PAGES * PAGE_SIZE
"""Most bytes of all input areas, and of all output areas."""

MAX_ROUNDS = 2 * FUSE_IOCTL_MAX_IOV
"""Most requests for one ioctl.

Linux has no such limit. A server that asks for one more area each time needs FUSE_IOCTL_MAX_IOV + 1
rounds. Twice that also lets it ask for longer areas.
"""

_NUMBER = struct.Struct("=i")
"""The size of a descriptor's number in the output."""

_O_NONBLOCK = os.O_NONBLOCK

_ERRNO_MAX = 4095

_NOT_KNOWN = frozenset({errno.ENOSYS, 515})
"""ENOSYS (fuse_do_ioctl) and ENOIOCTLCMD (vfs_ioctl), which programs see as ENOTTY."""

_pack_ioctl_in = fuse_ioctl_in.CODEC.pack
_unpack_ioctl_out = fuse_ioctl_out.CODEC.unpack_from
_OUT_SIZE = fuse_ioctl_out.SIZE


def do_ioctl(  # noqa: PLR0917 - by position, as `OpenFile` calls it
    file: IoctlFile[NewFile],
    caller: Caller,
    command: int,
    argument: int,
    compat: bool,
    install: Callable[[NewFile, bool], int] | None = None,
    directory: bool = False,
) -> Operation[int]:
    """Do one ioctl and return its result.

    ``command`` is 32 bits, ``argument`` 64. ``compat``: the caller is a 32-bit program. The server
    is told that the file has O_NONBLOCK if it asked for that, or that it is a ``directory``.

    Raises OSError: a negative result from the server; ENOTTY instead of ENOSYS; EFAULT for areas
    that cannot be read or written; ENOMEM for more than FUSE_IOCTL_MAX_IOV areas or MAX_BYTES in
    either direction; EIO for an answer that breaks the rules, and after MAX_ROUNDS requests; what
    ``install`` raises, EOPNOTSUPP without it.
    """
    device = file.device
    fh = file.fh or 0
    unrestricted = device.unrestricted
    flags = FUSE_IOCTL_UNRESTRICTED if unrestricted else 0
    if compat:
        flags |= FUSE_IOCTL_COMPAT | FUSE_IOCTL_32BIT
    if directory:
        flags |= FUSE_IOCTL_DIR
    if file.flags & _O_NONBLOCK and device.file_flags:
        flags |= RECUSE_IOCTL_NONBLOCK
    spare = recuse_ioctl_file.SIZE if device.new_files else 0
    sources: Sequence[IoVec] = ()
    targets: Sequence[IoVec] = ()
    if not unrestricted:
        area = (argument, ioctl.size(command))
        direction = ioctl.direction(command)
        if direction & ioctl.IOC_WRITE:
            sources = (area,)
        if direction & ioctl.IOC_READ:
            targets = (area,)
    for _ in range(MAX_ROUNDS):
        data = _load(caller.memory, sources) if sources else b""
        out_size = _total(targets)
        reply = yield Request(
            FUSE_IOCTL,
            _pack_ioctl_in(fh, flags, command, argument, len(data), out_size) + data,
            _OUT_SIZE,
            # The areas of a RETRY need room even if there will be no output.
            _OUT_SIZE + max(out_size, PAGE_SIZE) + spare,
            caller.pid,
            caller.uid,
            caller.gid,
        )
        if reply.error:
            raise os_error(errno.ENOTTY if reply.error == -errno.ENOSYS else -reply.error)
        result, said, in_areas, out_areas = _unpack_ioctl_out(reply.payload)
        payload = reply.payload[_OUT_SIZE:]
        if said & FUSE_IOCTL_RETRY:
            if not unrestricted:
                raise os_error(errno.EIO)
            sources, targets = _areas(in_areas, out_areas, payload, compat)
            continue
        if said & RECUSE_IOCTL_FILE and device.new_files:
            return (yield from _answer_with_file(file, caller, targets, result, payload, install))
        if len(payload) > out_size:
            raise os_error(errno.EIO)
        if payload:
            _store(caller.memory, targets, payload)
        return _result(result)
    raise os_error(errno.EIO)


def _answer_with_file(  # noqa: PLR0917 - all that there is
    file: IoctlFile[NewFile],
    caller: Caller,
    targets: Sequence[IoVec],
    result: int,
    payload: bytes | memoryview,
    install: Callable[[NewFile, bool], int] | None,
) -> Operation[int]:
    """Finish an ioctl that was answered with a file; return its result.

    Once the file is known, it is either given to the caller or released.
    """
    if len(payload) < recuse_ioctl_file.SIZE:
        raise os_error(errno.EIO)
    made = recuse_ioctl_file.unpack(payload)
    output = bytearray(payload[recuse_ioctl_file.SIZE :])
    new = file.sibling(made.fh, made.flags & ~os.O_CLOEXEC)
    try:
        if len(output) > _total(targets) or made.offset + _NUMBER.size > len(output):
            raise os_error(errno.EIO)
        result = _result(result)
        # A descriptor cannot be taken back, so everything that can fail comes first. Another thread
        # may still unmap the memory meanwhile. Then nobody learns the descriptor's number.
        if not _fits(caller.memory, targets, len(output)):
            raise os_error(errno.EFAULT)
        if install is None:
            raise os_error(errno.EOPNOTSUPP)
        number = install(new, bool(made.flags & os.O_CLOEXEC))
    except OSError as reason:
        error = reason.with_traceback(None)
    else:
        _NUMBER.pack_into(output, made.offset, number)
        _store(caller.memory, targets, bytes(output))
        return result
    yield from new.release()
    raise error


def _fits(memory: Memory, areas: Sequence[IoVec], size: int) -> bool:
    """Whether this many bytes of output can be written."""
    for address, length in areas:
        part = min(length, size)
        if part and memory.writable(address, part) < part:
            return False
        size -= part
    return True


def _total(areas: Sequence[IoVec]) -> int:
    """Return the number of bytes in areas."""
    # Mostly there is one area or none, and for these this is three times as fast as the sum.
    if not areas:
        return 0
    return areas[0][1] if len(areas) == 1 else sum(length for _, length in areas)


def _areas(
    in_areas: int, out_areas: int, payload: bytes | memoryview, compat: bool
) -> tuple[list[IoVec], list[IoVec]]:
    """Return the input and output areas that a RETRY asks for, given their numbers."""
    count = in_areas + out_areas
    if count > FUSE_IOCTL_MAX_IOV:
        raise os_error(errno.ENOMEM)
    if len(payload) != count * fuse_ioctl_iovec.SIZE:
        raise os_error(errno.EIO)
    areas: list[IoVec] = list(fuse_ioctl_iovec.CODEC.iter_unpack(payload))
    if compat and any(base >> 32 or length >> 32 for base, length in areas):
        raise os_error(errno.EIO)
    sources, targets = areas[:in_areas], areas[in_areas:]
    for part in (sources, targets):
        if _total(part) > MAX_BYTES:
            raise os_error(errno.ENOMEM)
    return sources, targets


def _result(result: int) -> int:
    """Return the system call's result, or raise its error.

    Negative numbers that are not errnos are returned: the program sees them as they are. The same
    goes for ERESTARTSYS and its like, unless a signal comes: then the kernel repeats the call.
    """
    if -_ERRNO_MAX <= result < 0:
        raise os_error(errno.ENOTTY if -result in _NOT_KNOWN else -result)
    return result


def _load(memory: Memory, areas: Sequence[IoVec]) -> bytes:
    """Return what is in all the areas, or raise EFAULT if a byte cannot be read."""
    parts: list[bytes] = []
    for address, length in areas:
        if not length:
            continue
        part = memory.read(address, length)
        if len(part) < length:
            raise os_error(errno.EFAULT)
        parts.append(part)
    return b"".join(parts)


def _store(memory: Memory, areas: Sequence[IoVec], data: bytes | memoryview) -> None:
    """Put data into the areas, maybe not filling them, or raise EFAULT where they end."""
    stored = 0
    for address, length in areas:
        part = data[stored : stored + length]
        if not part:
            continue
        count = memory.write(address, part)
        if count < len(part):
            raise os_error(errno.EFAULT)
        stored += count
