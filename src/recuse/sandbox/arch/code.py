"""Patterns of machine code."""

from __future__ import annotations

import re
from collections.abc import Callable


def one_byte(is_one: Callable[[int], object]) -> bytes:
    """A regular expression for one byte of those for which ``is_one`` is true."""
    return b"[%b]" % b"".join(re.escape(bytes((n,))) for n in range(256) if is_one(n))


def in_memory(is_register: Callable[[int], object]) -> bytes:
    """One for the bytes after an operation of x86 that name a place in memory, and a register.

    Args:
        is_register: whether it may be that of number 0 to 7.
    """

    def byte(mode: int, is_base: Callable[[int], object]) -> bytes:
        return one_byte(lambda n: n >> 6 == mode and is_register(n >> 3 & 7) and is_base(n & 7))

    # Base 4 says that another byte follows, with the bases; 5 without an offset is none at all.
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
