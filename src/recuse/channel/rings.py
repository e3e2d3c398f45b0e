"""FUSE over io_uring (Linux 6.14): a ring and a thread for each CPU, beside /dev/fuse.

The kernel takes the rings only if there is an entry for each CPU that there could be. It goes on
sending FORGET and INTERRUPT by /dev/fuse, and takes notifications there; requests that came before
the rings were ready come there, too. See fs/fuse/dev_uring.c, and
Documentation/filesystems/fuse/fuse-io-uring.rst.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from recuse.channel.cpu_ring import CpuRing
from recuse.channel.ring_entry import Entry
from recuse.channel.shared_ring import NUDGE, SharedRing
from recuse.runtime.log import Log
from recuse.server.pending_reply import Send
from recuse.wire.errors import WireError
from recuse.wire.fuse import FUSE_NOTIFY_REPLY

log = Log("recuse.channel")

PARAMETER: Final = Path("/sys/module/fuse/parameters/enable_uring")
"""Root turns it on there."""

_POSSIBLE: Final = Path("/sys/devices/system/cpu/possible")
_AGAIN_S: Final = 0.001


class Rings:
    """The rings of one connection."""

    def __init__(self, handle: Callable[[bytes, Send], object]) -> None:
        """Prepare; ``handle`` handles a request, as those from /dev/fuse are handled."""
        self._handle = handle
        self._cpus: list[CpuRing] = []
        self._shared: SharedRing | None = None
        self._end = -1

    def prepare(self, number: int, size: int, notify: Callable[[bytes], object]) -> None:
        """Make all that could fail, before the kernel is told that there are rings.

        Args:
            number: the descriptor of /dev/fuse.
            size: most bytes of a payload (`FilesystemSession.payload_size`).
            notify: sends a notification to the kernel.

        Raises OSError; `close` it then.
        """
        self._end = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        usable = os.sched_getaffinity(0)
        own: list[CpuRing | None] = [
            CpuRing(cpu, self.serve, self._end) if cpu in usable else None
            for cpu in range(possible_cpus())
        ]
        self._cpus = [ring for ring in own if ring is not None]
        for ring in self._cpus:
            ring.prepare(number, size)
        for ring in self._cpus:
            ring.check()
        self._shared = SharedRing(number, size, own, notify)

    def start(self) -> None:
        """Give the kernel the entries: it has been told that there are rings.

        Raises OSError if it does not take them; it sends all by /dev/fuse then.
        """
        assert self._shared is not None
        self._shared.start()
        for ring in self._cpus:
            ring.start(self._shared)
        for ring in self._cpus:
            ring.check()

    def close(self) -> None:
        """End them: the connection has ended, or it ends now."""
        for ring in self._cpus:
            ring.close()
        if self._end >= 0:
            os.eventfd_write(self._end, 1)
        if self._shared is not None:
            self._shared.close()
        for ring in self._cpus:
            ring.join()
        if self._end >= 0:
            os.close(self._end)
            self._end = -1

    def fileno(self) -> int:
        """Return a descriptor that can be read when `receive` has something; -1 if there is none.

        The threads that read /dev/fuse wait for it, too.
        """
        return -1 if self._shared is None else self._shared.fileno()

    def receive(self) -> Entry | None:
        """Return an entry with a request that no CPU's thread takes, None if there is none."""
        return None if self._shared is None else self._shared.receive()

    def serve_shared(self, entry: Entry) -> None:
        """Handle a request that `receive` has returned."""
        self.serve(entry)
        if not entry.answered and self._shared is not None:
            self._shared.relieve(entry.queue)

    def serve(self, entry: Entry) -> None:
        """Handle an entry's request. It is answered then, or will be."""
        try:
            message = entry.take()
            if entry.opcode == FUSE_NOTIFY_REPLY:
                # Only on a ring this has an answer: the entry has to be given back.
                if entry.unique != NUDGE:
                    self._handle(message, lambda _: None)
                entry.fail(0)
            else:
                self._handle(message, entry.answer)
        except (WireError, MemoryError) as error:
            log.error("request %d cannot be read: %r", entry.unique, error)
            if not entry.answered:
                entry.fail(errno.EIO)
        except BaseException:
            log.exception("internal error in request %d", entry.unique)
            if not entry.answered:
                entry.fail(errno.EIO)

    def interrupt(self, unique: int, try_to: Callable[[], bool]) -> None:
        """Interrupt a request: call a function until it could, or the request is answered.

        An INTERRUPT, which comes by /dev/fuse, may be faster than its request. The kernel would
        not send it again, as it does for requests that came by /dev/fuse.
        """
        while not try_to() and self._holds(unique):
            time.sleep(_AGAIN_S)

    def _holds(self, unique: int) -> bool:
        return any(ring.holds(unique) for ring in (*self._cpus, self._shared) if ring is not None)


def possible_cpus() -> int:
    """How many CPUs there could be, some of them off: each has a queue."""
    try:
        text = _POSSIBLE.read_text(encoding="ascii")
        return int(text.replace(",", "-").rpartition("-")[2]) + 1
    except (OSError, ValueError):
        return os.cpu_count() or 1
