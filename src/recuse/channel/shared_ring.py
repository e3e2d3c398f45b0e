"""The ring of the requests that no CPU's own thread takes.

It has entries for the queues of CPUs without a thread (those this process may not use, and those
that are off), and for a CPU whose thread is in a method that blocks, or waits for an `async def`
one. The threads that read /dev/fuse take these requests.

One thread submits for all: it gives the kernel the answers, and more entries when a queue has run
out of them. It never runs a method. The kernel copies a request in the thread that submitted the
entry, so that has to be one which nothing holds up (fs/fuse/dev_uring.c, fuse_uring_send_in_task).
"""

from __future__ import annotations

import errno
import itertools
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol, TypeVar

from recuse.channel import known_file
from recuse.channel.io_uring import Ring, fuse_command
from recuse.channel.ring_entry import Entry
from recuse.channel.workers import TICK
from recuse.runtime import threads
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log, report
from recuse.wire.fuse import FUSE_NOTIFY_RETRIEVE, fuse_out_header
from recuse.wire.notify import fuse_notify_retrieve_out
from recuse.wire.uring import FUSE_IO_URING_CMD_COMMIT_AND_FETCH, FUSE_IO_URING_CMD_REGISTER

log = Log("recuse.channel")

OVER: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED, errno.ENODEV})
"""With these, entries come back at the end of the connection."""

NUDGE: Final = 1 << 62
"""From here up are the uniques of requests that are only there to have the kernel look at a queue
(`_nudge`). Each has its own: by its unique the kernel finds the entry that is given back. They are
even, as all are."""

T = TypeVar("T")

_HEADER: Final = fuse_out_header(
    len=fuse_out_header.SIZE + fuse_notify_retrieve_out.SIZE, error=FUSE_NOTIFY_RETRIEVE
).pack()

_SUBMISSIONS: Final = 64
_MOST_AT_ONCE: Final = 32
_CLOSED_TICK_S: Final = 0.05
_IDLE_TICKS: Final = 100
_JOIN_S: Final = 2.0
_PAUSE_S: Final = 0.01


class Queue(Protocol):
    """What has to be known of a CPU's thread."""

    taken: int
    waiting: bool


class SharedRing:
    """The ring, and the thread that submits to it."""

    def __init__(
        self,
        number: int,
        size: int,
        own: Sequence[Queue | None],
        *,
        serve: Callable[[Entry], None],
        broken: Callable[[], object],
        ended: Callable[[], object],
    ) -> None:
        """Make the ring on an open /dev/fuse, and start the thread.

        Args:
            number: the descriptor of /dev/fuse.
            size: most bytes of a payload.
            own: for each queue, the thread of its CPU, if there is one.
            serve: answers an entry's request after `close`; it must not block then.
            broken: called when the kernel does not take an answer, though the connection lasts.
            ended: called after `close`, when the connection has ended.

        Raises OSError.
        """
        self._size = size
        self._own = own
        self._serve = serve
        self._broken = broken
        self._ended = ended
        self._lock = new_lock("SharedRing")
        self._free = [0] * len(own)
        """How many entries of each queue the kernel has."""
        self._committed = [0] * len(own)
        self._seen = [-1] * len(own)
        """What `taken` and `_committed` were, at the last look."""
        self._entries: list[Entry] = []
        self._inbox: queue.SimpleQueue[Entry | int | None] = queue.SimpleQueue()
        """Entries that were answered; queues that may have run out of entries."""
        self._job: Entry | int | None = None
        """What was taken out of there and is not done yet."""
        self.asleep = False
        """Whether the thread looks at nothing until it is woken."""
        self._closing = False
        self._tick_s = TICK
        self._full = False
        self._owed: dict[int, int] = {}
        """How often the kernel has to be asked to look at a queue, where that has failed."""
        self._uniques = itertools.count(NUDGE, 2)
        self._ring = Ring(_SUBMISSIONS)
        self._number = -1
        try:
            self._number = os.dup(number)
            self._ring.register_file(number)
            self._thread = threads.start(self._work, name="recuse-shared-ring")
        except OSError:
            self._close()
            raise

    def fileno(self) -> int:
        """Return a descriptor that can be read when `receive` has something."""
        return self._ring.fd

    def start(self) -> None:
        """Give each queue without a thread an entry."""
        for number, thread in enumerate(self._own):
            if thread is None:
                self._inbox.put(number)

    def wake(self) -> None:
        """Have the thread look whether methods block."""
        self._inbox.put(None)

    def relieve(self, number: int) -> None:
        """Make sure that a queue has an entry: a thread waits for an answer."""
        if not self._free[number]:
            self._inbox.put(number)

    def receive(self) -> Entry | None:
        """Return an entry with a request, None if there is none. Raises OSError."""
        ring = self._ring
        with self._lock:
            if ring.fd < 0 or not ring.has_completions:
                return None
        # What was seen to be there can be read after the lock was taken again, on any machine.
        with self._lock:
            if ring.fd < 0:
                return None
            ring.flush()
            while (completion := ring.next()) is not None:
                index, result = completion
                entry = self._entries[index]
                self._free[entry.queue] -= 1
                if not result:
                    entry.waits = entry.known = True
                    return entry
                if -result not in OVER:
                    log.error("an entry of queue %d: %s", entry.queue, os.strerror(-result))
                    if entry.known:  # otherwise there is just one entry less
                        self._broken()
        return None

    def claim(self, entry: Entry) -> bool:
        """Have the caller handle an entry's request; False if somebody else does."""
        with self._lock:
            if not entry.waits:
                return False
            entry.begin()
            entry.waits = False
            return True

    def holds(self, unique: int) -> bool:
        """Whether a request is in one of the entries, and not answered."""
        return any(entry.holds(unique) for entry in list(self._entries))

    def close(self) -> None:
        """Have it end with the connection. Until then it takes its requests itself."""
        self._closing = True
        self._tick_s = _CLOSED_TICK_S
        self._inbox.put(None)

    def join(self) -> None:
        """Wait for its end."""
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    def _work(self) -> None:
        idle = 0
        looked = time.monotonic()
        try:
            while True:
                try:
                    if self._is_over():
                        break
                    self._asleep_or_not(idle)
                    with suppress(queue.Empty):
                        if self._job is None:
                            wait_s = None if self.asleep else self._tick_s
                            self._job = self._inbox.get(timeout=wait_s)
                        idle = 0
                        self._do()
                    if time.monotonic() - looked >= self._tick_s:
                        self._ring.submit()  # what could not be submitted before
                        idle = 0 if self._look() else idle + 1
                        looked = time.monotonic()
                except BaseException as error:
                    report(error)  # without memory, anything may raise
                    time.sleep(_PAUSE_S)
        finally:
            self._close()
            self._ended()

    def _close(self) -> None:
        with self._lock:
            self._ring.close()
            if self._number >= 0:
                os.close(self._number)
                self._number = -1

    def _is_over(self) -> bool:
        """Whether it was closed, the connection has ended, and the kernel has no entry any more."""
        if not self._closing:
            return False
        while (entry := self.receive()) is not None:
            if self.claim(entry):
                self._serve(entry)
        with self._lock:
            if any(self._free):
                return False
        poll = select.poll()
        poll.register(self._number, 0)
        return bool(poll.poll(0))  # only POLLERR is left to report

    def _asleep_or_not(self, idle: int) -> None:
        # Threads look at `asleep` after they have become busy.
        self.asleep = idle > _IDLE_TICKS and not self._closing
        if self.asleep and (self._look() or self._ring.added):
            self.asleep = False

    def _do(self) -> None:
        """Do what is asked for, and what else has been asked for by now.

        If it raises, it can be called again: what is not done yet is there still.
        """
        dry: set[int] = set()
        while self._ring.added < _SUBMISSIONS:
            if isinstance(self._job, Entry):
                _until_memory(self._commit, self._job)
            elif self._job is not None:
                dry.add(self._job)
            self._job = None
            try:
                self._job = self._inbox.get_nowait()
            except queue.Empty:
                break
        self._ring.submit()
        for number in dry:
            if self._is_dry(number):
                self._grow(number)

    def _commit(self, entry: Entry) -> None:
        number = entry.queue
        with self._lock:
            # What raises, for lack of memory, comes first: nothing is done then.
            free, committed = self._free[number] + 1, self._committed[number] + 1
            self._add(FUSE_IO_URING_CMD_COMMIT_AND_FETCH, entry, entry.unique)
            self._free[number], self._committed[number] = free, committed

    def _add(self, command: int, entry: Entry, commit_id: int = 0) -> None:
        submission = fuse_command(command, entry.index, entry.iovecs, entry.queue)
        self._ring.add(submission, commit_id)

    def _look(self) -> bool:
        """Relieve queues on which nothing happens; return whether any is busy."""
        busy = bool(self._owed)
        for number in list(self._owed):
            self._nudge(number, 0)
        for number, thread in enumerate(self._own):
            done = self._committed[number] + (0 if thread is None else thread.taken)
            if self._is_dry(number):
                busy = True
                if done == self._seen[number]:
                    self._grow(number)
            elif thread is not None and not thread.waiting:
                busy = True
            self._seen[number] = done
        return busy

    def _is_dry(self, number: int) -> bool:
        thread = self._own[number]
        return not self._free[number] and (thread is None or not thread.waiting)

    def _grow(self, number: int) -> None:
        """Give a queue twice as many entries as it has here."""
        count = sum(entry.queue == number for entry in self._entries)
        made = []
        try:
            for _ in range(min(max(count, 1), _MOST_AT_ONCE)):
                made.append(Entry(number, self._size, self._inbox.put))
        except (OSError, MemoryError) as error:
            if not self._full:
                self._full = True
                log.error("no memory for more requests at once: %r", error)
        for entry in made:
            _until_memory(self._register, entry)
        self._ring.submit()
        if count or self._own[number] is not None:
            self._nudge(number, len(made))

    def _register(self, entry: Entry) -> None:
        with self._lock:
            entry.index = len(self._entries)
            self._entries.append(entry)
            try:
                free = self._free[entry.queue] + 1
                self._add(FUSE_IO_URING_CMD_REGISTER, entry)
            except MemoryError:
                self._entries.pop()
                raise
            self._free[entry.queue] = free

    def _nudge(self, number: int, count: int) -> None:
        """Have the kernel look at what waits on a queue, which has so many new entries.

        It does so for an entry that is answered, not for a new one. So a request has to take each
        new entry: we ask, on that CPU, for nothing of the content of a file that the kernel knows.
        What cannot be asked now is asked again later.
        """
        count += self._owed.pop(number, 0)
        usual = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {number})
            try:
                while count:
                    unique = next(self._uniques)
                    ask = fuse_notify_retrieve_out(notify_unique=unique, nodeid=known_file.NODE)
                    os.write(self._number, _HEADER + ask.pack())
                    count -= 1
            finally:
                os.sched_setaffinity(0, usual)
        except (OSError, MemoryError) as error:
            log.debug("queue %d: %r", number, error)
            if not self._closing:
                self._owed[number] = count


def _until_memory(function: Callable[[T], object], argument: T) -> None:
    """Call a function, again if there is no memory: what it does cannot be left undone."""
    while True:
        try:
            function(argument)
            return
        except MemoryError:
            time.sleep(_PAUSE_S)
