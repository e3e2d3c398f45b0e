"""statfs: which filesystem a file is on (fs/statfs.c; Linux 6.1).

The tree of a file of recuse's answers that. Files of devices are on the filesystem of their
directory.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.lookup import held, inspected
from recuse.sandbox.tasks.memory import write_memory
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.resolve import AT_FDCWD, Found

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall

_STATFS: Final = struct.Struct("=qqQQQQQiiqqq32x")
"""asm-generic/statfs.h"""
_STATFS64_32: Final = struct.Struct("=IIQQQQQiiIII16x")
"""The ``struct compat_statfs64`` of 32-bit programs (asm/compat.h)."""
_STATFS_32: Final = struct.Struct("=7Iii3I16x")
"""The ``struct compat_statfs`` of their older calls (asm-generic/compat.h)."""
_ALL: Final = (1 << 64) - 1
"""An unknown number of files. In 32 bits it is :data:`_LOW`."""
_LOW: Final = 0xFFFFFFFF


def _fill(
    call: TrappedCall,
    found: Found | None,
    address: int,
    layout: struct.Struct = _STATFS,
) -> int:
    if found is None or found.link:
        return PROCEED
    if found.native is None:
        data = found.location.mount.tree.statfs(call)
    else:
        data = native_files.statfs(found.native.descriptor)
    alive = call.alive()
    if layout is not _STATFS:
        data = _packed(layout, _STATFS.unpack(data))
    if alive and write_memory(call.tid, address, data) < len(data):
        raise os_error(errno.EFAULT)
    return 0


def _packed(layout: struct.Struct, numbers: tuple[int, ...]) -> bytes:
    """Encode it; EOVERFLOW if a number is too large, except an unknown number of files."""
    if layout is _STATFS_32:
        numbers = tuple(_LOW if number == _ALL else number for number in numbers)
    try:
        return layout.pack(*numbers)
    except struct.error:
        raise os_error(errno.EOVERFLOW) from None


def statfs(call: TrappedCall, machine: Machine) -> int:
    """``statfs(path, buf)``."""
    return _fill(call, inspected(call, machine, AT_FDCWD, call.a0, 0), call.a1)


def fstatfs(call: TrappedCall, machine: Machine) -> int:
    """``fstatfs(fd, buf)``."""
    return _fill(call, held(call, machine, signed32(call.a0)), call.a1)


def statfs64(call: TrappedCall, machine: Machine) -> int:
    """``statfs64(path, size, buf)`` of a 32-bit program."""
    if call.a1 != _STATFS64_32.size:
        return PROCEED  # EINVAL
    found = inspected(call, machine, AT_FDCWD, call.a0, 0)
    return _fill(call, found, call.a2, _STATFS64_32)


def fstatfs64(call: TrappedCall, machine: Machine) -> int:
    """``fstatfs64(fd, size, buf)`` of a 32-bit program."""
    if call.a1 != _STATFS64_32.size:
        return PROCEED
    found = held(call, machine, signed32(call.a0))
    return _fill(call, found, call.a2, _STATFS64_32)


def compat_statfs(call: TrappedCall, machine: Machine) -> int:
    """``statfs(path, buf)`` of a 32-bit program."""
    found = inspected(call, machine, AT_FDCWD, call.a0, 0)
    return _fill(call, found, call.a1, _STATFS_32)


def compat_fstatfs(call: TrappedCall, machine: Machine) -> int:
    """``fstatfs(fd, buf)`` of a 32-bit program."""
    return _fill(call, held(call, machine, signed32(call.a0)), call.a1, _STATFS_32)


HANDLERS: Final[dict[str, Handler]] = {"statfs": statfs, "fstatfs": fstatfs}
