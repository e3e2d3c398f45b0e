"""The ring of one CPU, and the thread that serves the programs which run there.

The kernel puts a request on the queue of the CPU that the program runs on. The thread stays on that
CPU, too, so the kernel goes on with it as soon as the program waits: the other CPUs need not wake.

The ring has one entry. While the thread handles its request, the kernel has none that belongs to
this thread. So whatever a method does, even if it uses the filesystem itself, no request waits for
the thread.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from recuse.channel.io_uring import DEFER_TASKRUN, SINGLE_ISSUER, Ring, fuse_command
from recuse.channel.ring_entry import Entry
from recuse.channel.shared_ring import OVER, SharedRing
from recuse.runtime import threads
from recuse.runtime.log import Log
from recuse.wire.uring import FUSE_IO_URING_CMD_COMMIT_AND_FETCH, FUSE_IO_URING_CMD_REGISTER

log = Log("recuse.channel")

_SUBMISSIONS: Final = 4
_COMMITTED, _RECEIVED, _BEGUN, _SERVED, _ANSWERED = range(5)
"""What was last done with the entry."""
_JOIN_S: Final = 2.0
_PAUSE_S: Final = 0.01
_LACK: Final = frozenset({errno.EAGAIN, errno.EBUSY, errno.ENOMEM})


class CpuRing:
    """One thread with its ring."""

    def __init__(
        self, cpu: int, serve: Callable[[Entry], None], broken: Callable[[], object]
    ) -> None:
        """Prepare.

        Args:
            cpu: whose queue it is.
            serve: handles an entry's request, and raises nothing; it may be answered later.
            broken: called if the thread ends, once started, though the connection has not.
        """
        self.cpu = cpu
        self.taken = 0
        """How many requests it has taken."""
        self.waiting = False
        """Whether the kernel has its entry, or is about to get it."""
        self._serve = serve
        self._broken = broken
        self._started = False
        self._answered: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._ring: Ring | None = None
        self._entry: Entry | None = None
        self._shared: SharedRing | None = None
        self._go = threading.Event()
        self._results: queue.SimpleQueue[OSError | None] = queue.SimpleQueue()
        """How `prepare` and `start` have gone, in the thread."""
        self._thread: threading.Thread | None = None

    def prepare(self, number: int, size: int) -> None:
        """Start the thread, which makes a ring on an open /dev/fuse; then call `check`.

        ``size`` is the most bytes of a payload. Raises OSError.
        """
        self._thread = threads.start(self._work, number, size, name="recuse-ring")

    def start(self, shared: SharedRing) -> None:
        """Have it take requests; then call `check`.

        ``shared`` takes those of its CPU that it cannot take.
        """
        self._shared = shared
        self._go.set()

    def check(self) -> None:
        """Wait until the thread has done that. Raises OSError if it could not."""
        error = self._results.get()
        if error is not None:
            raise error

    def join(self) -> None:
        """Wait for its end, with that of the connection, unless it is in a method."""
        self._go.set()  # if it was never started
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        end = time.monotonic() + _JOIN_S
        while thread.is_alive() and (self.waiting or not self._started):
            thread.join(_PAUSE_S)
            if time.monotonic() > end:
                log.error("the thread of CPU %d does not end", self.cpu)
                return

    def give_up(self) -> None:
        """Wait for no answer any more: the connection has ended."""
        self._answered.put(None)

    def holds(self, unique: int) -> bool:
        """See `Entry.holds`."""
        return self._entry is not None and self._entry.holds(unique)

    def _work(self, number: int, size: int) -> None:
        try:
            try:
                ring, entry = self._make(number, size)
            except OSError as error:
                self._results.put(error)
                return
            self._results.put(None)
            self._go.wait()
            self._take_turns(ring, entry)
        except BaseException as error:
            log.exception("internal error in the ring of CPU %d", self.cpu)
            if self._started:
                self._broken()  # nobody would serve the CPU's programs
            else:
                self._report(OSError(errno.EIO, repr(error)))
        finally:
            self.waiting = False
            if self._ring is not None:
                self._ring.close()

    def _make(self, number: int, size: int) -> tuple[Ring, Entry]:
        try:
            os.sched_setaffinity(0, {self.cpu})
        except OSError as error:  # it works all the same, only slower
            log.debug("a thread cannot stay on CPU %d: %s", self.cpu, error.strerror)
        self._entry = Entry(self.cpu, size, self._answered.put)
        self._ring = Ring(_SUBMISSIONS, SINGLE_ISSUER | DEFER_TASKRUN)
        self._ring.register_file(number)
        return self._ring, self._entry

    def _take_turns(self, ring: Ring, entry: Entry) -> None:
        shared = self._shared
        if shared is None:
            return  # it was closed before it was started
        serve, answered, iovecs, cpu = self._serve, self._answered, entry.iovecs, self.cpu
        commit = fuse_command(FUSE_IO_URING_CMD_COMMIT_AND_FETCH, 0, iovecs, cpu)
        ring.add(fuse_command(FUSE_IO_URING_CMD_REGISTER, 0, iovecs, cpu))
        ring.submit()
        if not ring.has_completions:  # an entry that is not taken comes back at once
            self._report(None)
        state = _COMMITTED
        while True:
            try:
                if state == _COMMITTED:
                    if not self._receive(ring):
                        return
                    state = _RECEIVED
                if state == _RECEIVED:
                    if shared.asleep:
                        shared.wake()
                    self.taken += 1
                    entry.begin()
                    state = _BEGUN
                if state == _BEGUN:
                    serve(entry)
                    state = _SERVED
                    if not entry.answered:
                        shared.relieve(cpu)
                if state == _SERVED:
                    if answered.get() is None:
                        return
                    state = _ANSWERED
                ring.add(commit, entry.unique)
                state = _COMMITTED
            except MemoryError:  # go on where it was raised
                if state == _BEGUN and entry.answered:
                    state = _SERVED
                time.sleep(_PAUSE_S)

    def _receive(self, ring: Ring) -> bool:
        """Submit, and wait for a request; False at the end."""
        self.waiting = True
        while (completion := ring.next()) is None:
            try:
                ring.submit(1)
            except OSError as error:
                if error.errno not in _LACK:
                    raise
                time.sleep(_PAUSE_S)
        self.waiting = False
        result = completion[1]
        if result and -result not in OVER and self._started:
            log.error("the ring of CPU %d: %s", self.cpu, os.strerror(-result))
            self._broken()  # what was answered last has no answer, and will never have one
        if not self._started or result:  # nothing that could raise comes between two requests
            self._report(OSError(-result, os.strerror(-result)) if result else None)
        return not result

    def _report(self, error: OSError | None) -> None:
        """Say how `start` has gone, if that was not said yet."""
        if not self._started:
            self._started = True
            self._results.put(error)
