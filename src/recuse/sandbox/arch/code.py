"""Patterns of machine code."""

from __future__ import annotations

import re
from collections.abc import Callable


def one_byte(is_one: Callable[[int], object]) -> bytes:
    """A regular expression for one byte of those for which ``is_one`` is true."""
    return b"[%b]" % b"".join(re.escape(bytes((n,))) for n in range(256) if is_one(n))
