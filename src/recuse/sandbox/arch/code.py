"""Patterns of x86's machine code (Intel's manual, volume 2, tables A-2 to A-6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

# Operations that write to their second operand, with the size of the number that follows.
_TO_SECOND: Final = (
    (rb"[\x01\x09\x21\x29\x31\x89]", 0),  # add, or, and, sub, xor and mov %register
    (rb"[\x83\xc1]", 1),  # the same with a constant; shifts
    (rb"[\x81\xc7]", 4),
)
_TO_REGISTER: Final = (
    rb"[\x03\x0b\x23\x2b\x33\x8b\x8d]",  # add, or, and, sub, xor, mov and lea
    rb"\x0f[\x40-\x4f]",  # cmov
)
_TO_NOTHING: Final = rb"[\x39\x3b\x85]"  # cmp and test
_TO_MEMORY: Final = ((rb"\x89", 0), (rb"\xc7", 4))  # mov


def one_byte(is_one: Callable[[int], object]) -> bytes:
    """A regular expression for one byte for which ``is_one`` is true."""
    return b"[%b]" % b"".join(re.escape(bytes((n,))) for n in range(256) if is_one(n))


def leaves_eax(segment: bytes, *, wide: bool) -> bytes:
    """A regular expression for an instruction between the loading of eax and a system call.

    Compilers put such instructions there. They write neither to eax nor to the stack pointer,
    except to reserve room on the stack.

    Args:
        segment: the prefix for data of the thread's own, such as the stack's guard.
        wide: whether this is 64-bit code, which has prefixes for registers.
    """
    return b"(?:" + b"|".join(_instructions(segment, wide)) + b")"


def _instructions(segment: bytes, wide: bool) -> Iterator[bytes]:
    # A prefix of 0x40 to 0x4f has bit 8 for 64-bit operands. Bits 4 and 1 select the upper eight
    # registers as the first and second operand in the byte after the operation.
    def prefix(mask: int, value: int) -> bytes:
        return one_byte(lambda n: n & 0xF0 == 0x40 and n & mask == value) + b"?" * (not value)

    direct = one_byte(lambda n: n >> 6 == 3)
    any_place = b"(?:" + direct + b"|" + in_memory(lambda _: True) + b")"
    second_not_eax = one_byte(lambda n: n >> 6 == 3 and n & 7)
    first_not_eax = one_byte(lambda n: n >> 6 == 3 and n & 0x38)
    place_not_eax = b"(?:" + first_not_eax + b"|" + in_memory(bool) + b")"
    some = prefix(0, 0) if wide else b""
    lower_second, lower_first = (prefix(1, 0), prefix(4, 0)) if wide else (b"", b"")
    yield rb"[\xb9-\xbf].{4}"  # mov $number,%register
    for operation, size in _TO_SECOND:
        number = rb".{%d}" % size
        yield lower_second + operation + second_not_eax + number
        if wide:
            yield prefix(1, 1) + operation + direct + number
    for operation in (*_TO_REGISTER, *([rb"\x63"] if wide else [])):  # movslq
        yield segment + b"?" + lower_first + operation + place_not_eax
        if wide:
            yield segment + b"?" + prefix(4, 4) + operation + any_place
    yield some + _TO_NOTHING + direct
    yield some + rb"\x83" + one_byte(lambda n: n & 0xF8 == 0xF8) + b"."  # cmp $number
    yield rb"\x80" + one_byte(lambda n: n >> 6 == 3 and n & 3) + b"."  # a byte of a register
    for operation, size in _TO_MEMORY:
        first = in_memory(lambda _: True) if not size else in_memory(lambda number: not number)
        yield some + operation + first + rb".{%d}" % size
    if wide:
        yield rb"\x41[\xb8-\xbf].{4}"
        yield rb"\x49[\xb8-\xbf].{8}"


def in_memory(is_register: Callable[[int], object]) -> bytes:
    """A regular expression for the bytes after an operation that name memory and a register.

    Args:
        is_register: whether the register may have that number, 0 to 7.
    """

    def byte(mode: int, is_base: Callable[[int], object]) -> bytes:
        return one_byte(lambda n: n >> 6 == mode and is_register(n >> 3 & 7) and is_base(n & 7))

    # Base 4 means that another byte with the bases follows. Base 5 without an offset means no base.
    places = (
        byte(0, lambda base: base not in {4, 5}),
        byte(0, lambda base: base == 5) + rb".{4}",
        byte(0, lambda base: base == 4) + one_byte(lambda n: n & 7 != 5),
        byte(0, lambda base: base == 4) + one_byte(lambda n: n & 7 == 5) + rb".{4}",
        byte(1, lambda base: base != 4) + rb".",
        byte(1, lambda base: base == 4) + rb"..",
        byte(2, lambda base: base != 4) + rb".{4}",
        byte(2, lambda base: base == 4) + rb".{5}",
    )
    return b"(?:" + b"|".join(places) + b")"
