"""What ``/proc/TID/status`` says of a thread (proc_pid_status(5)); everybody may read it."""

from __future__ import annotations

import errno
from typing import Final

from recuse.kernel.errors import os_error
from recuse.wire.ids import Tgid, Tid

_USUAL: Final = 8192
"""Enough bytes, except for a thread that is in many groups."""


class ThreadStatus:
    """The fields, as they were when the file was read."""

    __slots__ = ("_text",)

    def __init__(self, thread: int | str, proc: str = "/proc") -> None:
        """Read the file.

        Args:
            thread: its ID in the pid namespace of ``proc``; or a name, such as "thread-self".
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
        """A field's value without surrounding white space. KeyError if this kernel lacks it."""
        text = self._text
        # Only a name begins a line: newlines in a program's name are escaped.
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
        """The parent of its process; 0 if the parent is outside the pid namespace."""
        return Tgid(Tid(self.number(b"PPid")))

    @property
    def has_ended(self) -> bool:
        """Whether it only waits for its parent to notice. Then only root may look into it."""
        return self[b"State"][:1] in b"ZX"

    def number(self, name: bytes, base: int = 10) -> int:
        """A field that is a number. KeyError if this kernel lacks it."""
        return int(self[name], base)
