"""FUSE over io_uring (Linux 6.14): a ring and a thread for each CPU, beside /dev/fuse.

The kernel takes the rings only if there is an entry for each CPU that there could be. It goes on
sending FORGET and INTERRUPT by /dev/fuse, and takes notifications there; requests that came before
the rings were ready come there, too. See fs/fuse/dev_uring.c, and
Documentation/filesystems/fuse/fuse-io-uring.rst.
"""

from __future__ import annotations

import errno
import os
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from recuse.channel.cpu_ring import CpuRing
from recuse.channel.known_file import KnownFile
from recuse.channel.ring_entry import Entry
from recuse.channel.shared_ring import NUDGE, SharedRing
from recuse.runtime import threads
from recuse.runtime.log import Log, report
from recuse.server.pending_reply import NO_REPLY, Send
from recuse.wire.errors import WireError
from recuse.wire.fuse import (
    FUSE_INIT_EXT,
    FUSE_OVER_IO_URING,
    fuse_in_header,
    fuse_init_in,
)

log = Log("recuse.channel")

PARAMETER: Final = Path("/sys/module/fuse/parameters/enable_uring")
"""Root turns it on there."""

_CPUS: Final = Path("/sys/devices/system/cpu")
_AGAIN_S: Final = 0.001
_LOOK_UP_S: Final = 2.0


class Rings:
    """The rings of one connection."""

    def __init__(
        self, handle: Callable[[bytes, Send], object], broken: Callable[[], object]
    ) -> None:
        """Prepare.

        Args:
            handle: handles a request, as those from /dev/fuse are handled.
            broken: ends the connection, called when requests can no longer be answered.
        """
        self._handle = handle
        self._broken = broken
        self._cpus: list[CpuRing] = []
        self._shared: SharedRing | None = None
        self._file: KnownFile | None = None
        self.ready = False
        """Whether the kernel sends its requests here."""
        self._closing = False

    def prepare(self, number: int, size: int) -> None:
        """Make all that could fail, before the kernel is told that there are rings.

        Args:
            number: the descriptor of /dev/fuse.
            size: most bytes of a payload (`FilesystemSession.payload_size`).

        Raises OSError; `close` it then.
        """
        usable = os.sched_getaffinity(0)
        _try_cpus(usable)
        self._file = KnownFile()
        own: list[CpuRing | None] = [
            CpuRing(cpu, self.serve, self._broken) if cpu in usable else None
            for cpu in range(possible_cpus())
        ]
        self._cpus = [ring for ring in own if ring is not None]
        for ring in self._cpus:
            ring.prepare(number, size)
        for ring in self._cpus:
            ring.check()
        self._shared = SharedRing(
            number, size, own, serve=self.serve, broken=self._broken, ended=self._end
        )

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
        self.ready = True

    def know_file(self, root: str) -> None:
        """Have the kernel know a file, which it takes to serve more requests (`KnownFile`).

        ``root`` is a path to the mount's root directory; all threads are at work. A program's call
        may hold the directory, and its method block (`mkdir`). Then this goes on later.

        Raises OSError.
        """
        file = self._file
        assert file is not None
        errors: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                file.look_up(root)
            except OSError as error:
                errors.put(error)
                log.debug("%s: %s", root, error.strerror)
            else:
                errors.put(None)

        threads.start(look_up, name="recuse-look-up")
        try:
            error = errors.get(timeout=_LOOK_UP_S)
        except queue.Empty:
            log.warning(
                "%s: a method holds up the root directory; until it returns, "
                "calls may wait for others that block",
                root,
            )
        else:
            if error is not None:
                raise error

    def close(self) -> None:
        """Handle no more requests: they are refused until the end of the connection.

        Only then it ends. If a ring was closed before, a request that was just on its way there
        would never be answered (fs/fuse/dev_uring.c, Linux 6.18).
        """
        self._closing = True
        if self._shared is not None:
            self._shared.close()

    def join(self) -> None:
        """Wait for the end of the threads, after that of the connection."""
        if self._shared is not None:
            self._shared.join()
        for ring in self._cpus:
            ring.join()
        self._end()

    def _end(self) -> None:
        """Let go what waits for an answer, or is there for further requests."""
        for ring in self._cpus:
            ring.give_up()
        if self._file is not None:
            self._file.close()

    def fileno(self) -> int:
        """Return a descriptor that can be read when `receive` has something; -1 if there is none.

        The threads that read /dev/fuse wait for it, too.
        """
        return self._shared.fileno() if self._shared is not None and self.ready else -1

    def receive(self) -> Entry | None:
        """Return an entry with a request that no CPU's thread takes, None if there is none."""
        return self._shared.receive() if self._shared is not None and self.ready else None

    def serve_shared(self, entry: Entry) -> None:
        """Handle a request that `receive` has returned."""
        shared = self._shared
        if shared is not None and shared.claim(entry):
            if shared.asleep:
                shared.wake()
            self.serve(entry)
            if not entry.answered:
                shared.relieve(entry.queue)

    def refuse_shared(self, entry: Entry, number: int) -> None:
        """Answer with an errno what `serve_shared` has failed to handle, if nobody else has."""
        if self._shared is not None:
            self._shared.claim(entry)
            entry.fail(number)

    def serve(self, entry: Entry) -> None:
        """Handle an entry's request. It is answered then, or will be, whatever raises."""
        unique = 0
        try:
            message = entry.take()
            unique = entry.unique
            self._serve(entry, message)
        except BaseException as error:
            # If it was answered, it may have another request by now.
            if unique in (0, entry.unique):
                entry.fail(errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO)
            try:
                if isinstance(error, (WireError, MemoryError)):
                    log.error("request %d cannot be read: %r", unique, error)
                else:
                    log.exception("internal error in request %d", unique)
            except BaseException as failure:
                report(failure)

    def _serve(self, entry: Entry, message: bytes) -> None:
        if entry.opcode in NO_REPLY:
            # Only on a ring these have an answer: the entry has to be given back. A FORGET comes
            # here for a listing with impossible attributes (fs/fuse/readdir.c, fuse_force_forget,
            # Linux 6.18), and the program waits for it.
            if entry.unique < NUDGE:
                self._handle(message, lambda _: None)
            entry.fail(0)
        elif self._closing:
            entry.fail(errno.ENOTCONN)
        elif self._file is not None and (answer := self._file.answer(message)) is not None:
            entry.answer(answer)
        else:
            self._handle(message, entry.answer)

    def interrupt(self, unique: int, try_to: Callable[[], bool]) -> None:
        """Interrupt a request: call a function until it could, or the request is answered.

        An INTERRUPT, which comes by /dev/fuse, may be faster than its request. The kernel would
        not send it again, as it does for requests that came by /dev/fuse.
        """
        while not try_to() and self._holds(unique):
            time.sleep(_AGAIN_S)

    def _holds(self, unique: int) -> bool:
        return any(ring.holds(unique) for ring in (*self._cpus, self._shared) if ring is not None)


def is_offered(message: bytes) -> bool:
    """Whether the kernel offers rings in its INIT."""
    # Kernels before 7.36 send a shorter structure.
    offer = fuse_init_in.unpack(message[fuse_in_header.SIZE :].ljust(fuse_init_in.SIZE, b"\0"))
    flags = offer.flags | offer.flags2 << 32
    return bool(offer.flags & FUSE_INIT_EXT and flags & FUSE_OVER_IO_URING)


def possible_cpus() -> int:
    """How many CPUs there could be, some of them off: each has a queue."""
    try:
        return max(_cpus_of("possible")) + 1
    except (OSError, ValueError):
        return os.cpu_count() or 1


def _cpus_of(kind: str) -> list[int]:
    """Return the CPUs of a kind, from a text such as ``0-3,5``. Raises OSError or ValueError."""
    cpus: list[int] = []
    for part in (_CPUS / kind).read_text(encoding="ascii").strip().split(","):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus


def _try_cpus(usual: set[int]) -> None:
    """Raise OSError if this process cannot run on a CPU on which programs do.

    With a program's request that blocks, others on its CPU would then wait: only a request made
    there has the kernel look at them (`SharedRing`).
    """
    try:
        online = _cpus_of("online")
    except ValueError:
        return
    try:
        for cpu in online:
            os.sched_setaffinity(0, {cpu})
    except OSError as error:
        raise OSError(error.errno, f"this process may not use CPU {cpu} (cpuset)") from error
    finally:
        os.sched_setaffinity(0, usual)
