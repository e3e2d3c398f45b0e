"""Mistakes: an author's, and those of whoever uses what the author wrote."""

from __future__ import annotations


class ArgumentError(ValueError):
    """What the constructor of a device or filesystem raises for arguments that it cannot take.

    Whoever wrote them on a command line sees the text alone, in one line: "depth=8: must be 32 or
    16". Of any other exception, they see its type and its place in the source as well.
    """


class Misuse(Exception):
    """An author's mistake that needs no traceback: one line in the log, EIO for the program.

    Its text follows the name of the author's method: "returned None, not bytes".
    """


def brief(value: object) -> str:
    """Return a value as a line of a log shows it: what it is, or only its type if that is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
