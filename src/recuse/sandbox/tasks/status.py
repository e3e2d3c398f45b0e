"""What ``/proc/TID/status`` says of a thread (proc_pid_status(5)); everybody may read it."""

from __future__ import annotations

import errno
from typing import Final

from recuse.kernel.errors import os_error
from recuse.wire.ids import Tgid, Tid

_USUAL: Final = 8192
"""Bytes that are enough, but for a thread that is in many groups."""


class ThreadStatus:
    """The fields, as they were when it was read."""

    __slots__ = ("_text",)

    def __init__(self, thread: int | str, proc: str = "/proc") -> None:
        """Read it.

        Args:
            thread: its number in the pid namespace of ``proc``; or a name, such as "thread-self".
            proc: the root of a ``/proc``.

        Raises:
            OSError: ESRCH if there is no such thread.
        """
        try:
            with open(f"{proc}/{thread}/status", "rb", 0) as status:
                text = status.read(_USUAL)
                if len(text) == _USUAL:
                    text += status.read()
        except (FileNotFoundError, ProcessLookupError):
            raise os_error(errno.ESRCH) from None
        self._text = text

    def __getitem__(self, name: bytes) -> bytes:
        """A field's value, without white space round it. KeyError if this kernel has none such."""
        text = self._text
        # A name begins a line, and nothing else does: newlines in a program's name are escaped.
        start = text.find(b"\n" + name + b":") + 1
        if not start and not text.startswith(name + b":"):
            raise KeyError(name)
        return text[start + len(name) + 1 : text.find(b"\n", start)].strip()

    @property
    def tgid(self) -> Tgid:
        """Its process."""
        return Tgid(Tid(self.number(b"Tgid")))

    @property
    def parent(self) -> Tgid:
        """Its process's parent; 0 if that is outside of the pid namespace."""
        return Tgid(Tid(self.number(b"PPid")))

    def number(self, name: bytes, base: int = 10) -> int:
        """A field that is a number. KeyError as above."""
        return int(self[name], base)
