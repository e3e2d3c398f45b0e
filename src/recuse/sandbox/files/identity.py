"""Which descriptors are the same open file: the kernel's own answer, from kcmp(2).

The link ``/proc/TID/fd/N`` says that too, but takes twice the time. An epoll of recuse's has all
the programs' ends in it. That does not keep them open: the kernel removes an end when its last
reference is closed. KCMP_EPOLL_TFD compares one of these with a descriptor of a thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import struct
from typing import Final

from recuse.sandbox.arch import arch
from recuse.sandbox.files.description import FileDescription
from recuse.sandbox.files.refresher import watched_by

KCMP: Final = arch.SYSCALLS["kcmp"]
KCMP_EPOLL_TFD: Final = 7
_KCMP_VM: Final = 1
EPOLL_SLOT: Final = struct.Struct("=III")
"""``struct kcmp_epoll_slot`` (linux/kcmp.h)."""
# Without argtypes, which would take a third of the call's time: all arguments have 32 bits.
kcmp = ctypes.CDLL(None).syscall


class Identities:
    """All programs' ends, to compare descriptors with. Not thread-safe."""

    def __init__(self) -> None:
        """Start without any. OSError: EMFILE."""
        self._by_slot: dict[int, FileDescription] = {}
        pid = os.getpid()
        # Containers may forbid it.
        self._can_compare = not kcmp(KCMP, pid, pid, _KCMP_VM, 0, None)
        self._epoll = select.epoll()
        """Nobody waits for this epoll."""

    def add(self, file: FileDescription) -> None:
        """Register a programs' end under a number that no other end in the table has."""
        number = file.end.theirs
        if number in self._by_slot:
            self._add_copy(file, number)
        else:
            self._add_as(file, number)

    def _add_as(self, file: FileDescription, number: int) -> None:
        if self._can_compare:
            slot = EPOLL_SLOT.pack(self._epoll.fileno(), number, 0)
            file.slot = ctypes.create_string_buffer(slot, len(slot))
        self._by_slot[number] = file
        file.slot_number = number
        self._epoll.register(number, 0)

    def _add_copy(self, file: FileDescription, number: int) -> None:
        """Register a copy of the end, whose own number another end has in the table."""
        with contextlib.ExitStack() as copies:
            while number in self._by_slot:
                try:
                    number = fcntl.fcntl(file.end.theirs, fcntl.F_DUPFD_CLOEXEC, number + 1)
                except OSError:  # no higher number is left, so this end cannot be compared
                    self._by_slot[number].slot = None
                    self._epoll.register(number, 0)
                    return
                copies.callback(os.close, number)
            self._add_as(file, number)

    def remove(self, file: FileDescription) -> None:
        """The last reference is gone. Another end may have the number already."""
        file.slot = None
        if self._by_slot.get(file.slot_number) is file:
            del self._by_slot[file.slot_number]

    def inodes(self) -> set[str]:
        """The inodes of the ends that some program still holds."""
        return {one.inode for one in watched_by(os.getpid(), self._epoll.fileno())}

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._epoll.closed

    def close(self) -> None:
        """Stop comparing."""
        self._epoll.close()
