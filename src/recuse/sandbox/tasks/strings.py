"""Strings in a program's memory, such as paths, which almost every trapped call has."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from time import monotonic
from typing import Final

from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.sandbox.arch import arch
from recuse.sandbox.tasks.memory import PAGE, UnreadableError, clip, read_memory
from recuse.sandbox.tasks.thread_ends import ThreadEnds
from recuse.wire.ids import Tid

_PATH_MAX: Final = 4096
_ADDRESS_LIMIT: Final = arch.ADDRESS_LIMIT


class StringReader:
    """Reads the strings that calls are given, above all paths, as quickly as possible.

    Almost every trapped call of an ordinary program is an open or stat. Reading its path through
    ``/proc/PID/mem`` takes half the time of ``process_vm_readv``. The descriptors for that are kept
    by thread ID, for the threads seen recently. A descriptor is right as long as the thread lives
    and keeps its memory image. Its end is noticed (:mod:`recuse.sandbox.tasks.thread_ends`), and
    before an exec :meth:`forget` must be called.

    What cannot be read like this is read by ``process_vm_readv``: for threads whose end would not
    be noticed, and for memory that another thread of the program still has to fill
    (userfaultfd(2)).
    """

    _MOST = 64

    def __init__(self) -> None:
        self._lock = new_lock("StringReader")
        self._descriptors: dict[Tid, int] = {}
        self._ends = ThreadEnds()

    def read(self, tid: Tid, address: int) -> bytes:
        """Read a path: a NUL-terminated string, returned without the NUL.

        Raises:
            OSError: ENAMETOOLONG if it has more than 4095 bytes; ESRCH if the thread is gone.
            UnreadableError: if the process may not be looked into, or if there is no such memory as
                far as can be seen from here. The kernel may see more.
        """
        try:
            with self._lock:  # otherwise the descriptor might be closed and its number used again
                if monotonic() > self._ends.known_until and self._ends.some():
                    for ended in self._ends.take():
                        self._close(ended)
                descriptor = self._descriptors.get(tid)
                if descriptor is None:
                    descriptor = self._open(tid)
                if descriptor is not None and address < _ADDRESS_LIMIT:
                    room = PAGE - address % PAGE  # "min" takes twice as long
                    part = os.pread(descriptor, room if room < 256 else 256, address)
                    end = part.find(0)
                    if end >= 0:
                        return part[:end]
                    return _read_string(os.pread, descriptor, address)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise
            self.forget(tid)  # the thread may have a new memory image
        try:
            # Not under the lock: this waits until the memory is there.
            return _read_string(lambda tid, size, at: read_memory(tid, at, size), tid, address)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
        raise UnreadableError

    def _open(self, tid: Tid) -> int | None:
        """A new descriptor of the thread's memory; None if it must not be kept."""
        if len(self._descriptors) >= self._MOST:
            self._close(next(iter(self._descriptors)))
        if not self._ends.watch(tid):
            return None
        try:
            descriptor = os.open(f"/proc/{tid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._ends.forget(tid)
            return None
        self._descriptors[tid] = descriptor
        return descriptor

    def _close(self, tid: Tid) -> None:
        self._ends.forget(tid)
        descriptor = self._descriptors.pop(tid, None)
        if descriptor is not None:
            os.close(descriptor)

    def forget(self, tid: Tid) -> None:
        """The thread is about to get a new memory image."""
        with self._lock:
            self._close(tid)

    def forget_others(self, tid: Tid) -> None:
        """The thread's process is about to get a new memory image."""
        with self._lock:
            for other in [other for other in self._descriptors if other != tid]:
                self._close(other)

    def forget_all(self) -> None:
        """A sandbox's programs have ended: close all descriptors."""
        with self._lock:
            for tid in list(self._descriptors):
                self._close(tid)

    def close(self) -> None:
        """Close everything for ever."""
        self.forget_all()
        self._ends.close()


def _read_string(read: Callable[[int, int, int], bytes], source: int, address: int) -> bytes:
    """Read a string page by page with ``read(source, size, address)``; see `StringReader.read`.

    Raises:
        OSError: EFAULT if it reaches memory that cannot be read; ENAMETOOLONG; as ``read`` does.
    """
    size = min(256, PAGE - address % PAGE)
    whole = b""
    while len(whole) < _PATH_MAX:
        part = read(source, clip(address, size), address)
        if not part:
            raise os_error(errno.EFAULT)
        end = part.find(0)
        if end >= 0:
            whole += part[:end]
            if len(whole) < _PATH_MAX:
                return whole
            break
        whole += part
        address += len(part)
        size = min(PAGE // 4, PAGE - address % PAGE)
    raise os_error(errno.ENAMETOOLONG)
