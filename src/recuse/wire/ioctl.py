"""ioctl command numbers, as _IO, _IOR, _IOW and _IOWR of <asm-generic/ioctl.h> make them.

A command is 32 bits: number (8), type (8), size of the argument (14), direction (2). Directions
are the program's: IOC_READ means that the program reads, so the device fills in the argument. This
is the generic encoding (x86, ARM, RISC-V, s390), not that of MIPS, PowerPC, SPARC and Alpha.
"""

import builtins
import ctypes
from typing import Any

IOC_NONE = 0
IOC_WRITE = 1
IOC_READ = 2

_SIZE_MAX = (1 << 14) - 1


Size = int | builtins.type[Any]
"""Bytes, or a ctypes type of that size."""


def _command(direction: int, magic: int | str, number: int, size: Size) -> int:
    type_number = ord(magic) if isinstance(magic, str) else magic
    byte_count = size if isinstance(size, int) else ctypes.sizeof(size)
    if not 0 <= type_number <= 255:
        raise ValueError(f"ioctl type {magic!r} is not within a byte")
    if not 0 <= number <= 255:
        raise ValueError(f"ioctl number {number} is not within a byte")
    if not 0 <= byte_count <= _SIZE_MAX:
        raise ValueError(f"ioctl argument of {byte_count} bytes: at most {_SIZE_MAX} can be said")
    return direction << 30 | byte_count << 16 | type_number << 8 | number


def IO(magic: int | str, number: int) -> int:  # noqa: N802
    """Return the command without an encoded argument.

    ``magic`` is the type field, a number or a character as in C; ``number`` is 0 to 255.
    Raises ValueError if one of them does not fit.
    """
    return _command(IOC_NONE, magic, number, 0)


def IOR(magic: int | str, number: int, size: Size) -> int:  # noqa: N802
    """Return the command whose argument of ``size`` the device fills in."""
    return _command(IOC_READ, magic, number, size)


def IOW(magic: int | str, number: int, size: Size) -> int:  # noqa: N802
    """Return the command whose argument of ``size`` the device is given."""
    return _command(IOC_WRITE, magic, number, size)


def IOWR(magic: int | str, number: int, size: Size) -> int:  # noqa: N802
    """Return the command whose argument of ``size`` the device is given and fills in."""
    return _command(IOC_READ | IOC_WRITE, magic, number, size)


def direction(command: int) -> int:
    """Return IOC_NONE, or IOC_READ and IOC_WRITE or'ed."""
    return command >> 30 & 3


def size(command: int) -> int:
    """Return the argument's size in bytes, 0 to 16383."""
    return command >> 16 & _SIZE_MAX


def type(command: int) -> int:  # noqa: A001
    """Return the type field, 0 to 255."""
    return command >> 8 & 255


def number(command: int) -> int:
    """Return the number field, 0 to 255."""
    return command & 255
