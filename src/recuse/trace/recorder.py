"""Records the messages of connections, and hands them to the process that prints them.

The cost of a request here is the cost of tracing. So this only keeps the bytes, the time and the
program's name in a queue. A thread passes them on in batches. The queue is bounded: what does not
fit is counted, and the trace says so.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from time import perf_counter_ns

from recuse.runtime import threads
from recuse.runtime.log import Log
from recuse.trace.exchanges import LIMIT, Kind, Record
from recuse.trace.writer import FRAME_HEADER, TOLD
from recuse.wire.fuse import FUSE_OPEN, fuse_in_header

log = Log("recuse.trace")

QUEUE_MOST = 100_000
"""Records; with what they hold, at most 80 MB."""

BATCH = 512
"""Records in one frame: marshalling them takes 50 us, and nothing is served during that."""

INTERVAL_S = 0.02
"""How long records may wait for more."""

BUSY_INTERVAL_S = 0.1
"""The same when there are many: waking the process up less often leaves the CPUs to others."""

BUSY = 1000
"""This many records in one interval count as many."""

_FRESH_NS = 1_000_000
"""How long a program's name is kept: exec changes it, and most programs open files after that."""

_PROGRAMS_MOST = 1024
_PIPE_SIZE = 1 << 20
_HEADER_SIZE = fuse_in_header.SIZE
# Positions in fuse_in_header; for the opcode, that of its low byte.
_PID = slice(32, 36)
_OPCODE = 4 if sys.byteorder == "little" else 7
_REQUEST, _REPLY = int(Kind.REQUEST), int(Kind.REPLY)


class ConnectionTap:
    """The tap for one connection (`recuse.kernel.connection.connection.Tap`)."""

    __slots__ = ("_number", "_recorder", "_records")

    def __init__(self, recorder: Recorder, number: int) -> None:
        self._recorder = recorder
        self._records = recorder.records
        self._number = number

    def request(self, message: bytes) -> None:
        """Record a request, and its program."""
        now = perf_counter_ns()
        recorder = self._recorder
        pid = message[_PID]
        known = recorder.programs.get(pid)
        if known is None or now - known[0] > _FRESH_NS or message[_OPCODE] == FUSE_OPEN:
            known = recorder.look_up(pid, now)
        if len(self._records) < recorder.room:
            if recorder.missing:
                recorder.tell_missing(now)
            size = len(message)
            if size > LIMIT:
                message = message[:LIMIT]
            self._records.append((_REQUEST, self._number, now, message, size, known[1]))
        else:
            recorder.drop()
        if not recorder.awake:
            recorder.wake()

    def reply(self, message: bytes) -> None:
        """Record an answer or notification."""
        recorder = self._recorder
        if len(self._records) < recorder.room:
            now = perf_counter_ns()
            if recorder.missing:
                recorder.tell_missing(now)
            size = len(message)
            if size > LIMIT:
                message = message[:LIMIT]
            self._records.append((_REPLY, self._number, now, message, size, b""))
        else:
            recorder.drop()
        if not recorder.awake:
            recorder.wake()

    def added(self, name: str, major: int, minor: int) -> None:
        """Record that the device has been added."""
        self._note(Kind.ADDED, os.fsencode(name), major << 20 | minor)

    def removed(self) -> None:
        """Record that it has been removed."""
        self._note(Kind.REMOVED, b"", 0)

    def joined(self, name: str, pid: int) -> None:
        """Record who is at the other end of a connection to a device that others share."""
        program = self._recorder.look_up(pid.to_bytes(4, sys.byteorder), perf_counter_ns())[1]
        self._note(Kind.JOINED, os.fsencode(name), pid, program)

    def left(self) -> None:
        """Record that this connection has ended."""
        self._note(Kind.LEFT, b"", 0)

    def _note(self, kind: Kind, data: bytes, size: int, program: bytes = b"") -> None:
        # These are rare, and a trace without them makes no sense: there is always room.
        if self._recorder.room:
            record = (int(kind), self._number, perf_counter_ns(), data, size, program)
            self._records.append(record)
            self._recorder.wake()


class Recorder:
    """Records to ``output``, a descriptor, until `close`; ``layout`` is "text" or "jsonl".

    If something goes wrong with the output, tracing stops; the traced programs are not affected.
    Raises OSError if the process that prints, or the thread that sends to it, cannot be started.
    """

    def __init__(self, output: int, layout: str = "text") -> None:
        self.records: deque[Record] = deque()
        self.room = QUEUE_MOST
        """How many records may wait; 0 when tracing has stopped."""
        self.dropped = 0
        """Records that did not fit; `missing` is added to it when the trace reports them."""
        self.missing = 0
        self.programs: dict[bytes, tuple[int, bytes]] = {}
        """By the header's pid: when the name was looked up, and the name."""
        self.awake = True
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._connections = 0
        # Its own process group gets no signals that are meant for programs. In its own session,
        # Linux would give it half of a CPU whatever its niceness (autogroup). -P: a module in the
        # working directory does not replace one of the library's.
        self._writer = subprocess.Popen(
            [sys.executable, "-P", "-m", "recuse.trace.writer", layout, str(perf_counter_ns())],
            stdin=subprocess.PIPE,
            stdout=output,
            process_group=0,
        )
        assert self._writer.stdin is not None
        self._pipe = self._writer.stdin.fileno()
        with suppress(OSError):  # more than all that an unprivileged user may have
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        try:
            self._thread = threads.start(self._send_all, name="recuse-trace")
        except OSError:
            self._writer.kill()
            self._close_pipe()
            self._writer.wait()
            raise

    def connection(self) -> ConnectionTap:
        """Return the tap for a new connection."""
        self._connections += 1
        return ConnectionTap(self, self._connections)

    def close(self) -> None:
        """Have everything recorded printed. If interrupted (Ctrl-C), it prints no more of it."""
        self._closing.set()
        self._wake.set()
        try:
            self._thread.join()
            self._close_pipe()
            self._writer.wait()
        except BaseException:
            self._writer.kill()
            self._thread.join()
            self._close_pipe()
            self._writer.wait()
            raise
        if self.room:
            self.room = 0
            self._report()

    def _close_pipe(self) -> None:
        assert self._writer.stdin is not None
        with suppress(OSError):
            self._writer.stdin.close()

    def look_up(self, pid: bytes, now: int) -> tuple[int, bytes]:
        """Return the time and the name of a process, which is waiting for its request.

        If the process has ended meanwhile (a RELEASE may be late), it is the last known name.
        """
        number = int.from_bytes(pid, sys.byteorder)
        name = b""
        if number:
            try:
                with open(f"/proc/{number}/comm", "rb", buffering=0) as comm:
                    name = comm.read(64).removesuffix(b"\n")
            except OSError:
                known = self.programs.get(pid)
                name = known[1] if known is not None else b""
        if len(self.programs) >= _PROGRAMS_MOST:
            self.programs.clear()
        entry = self.programs[pid] = (now, name)
        return entry

    def drop(self) -> None:
        """Count a record that does not fit; more fit when the queue is half empty.

        This way the missing records are in few places, each with many exchanges.
        """
        if self.room:
            self.missing += 1
            self.room = QUEUE_MOST // 2

    def tell_missing(self, now: int) -> None:
        """Put a record of the missing ones in their place."""
        count, self.missing = self.missing, 0
        if count and self.room:
            self.room = QUEUE_MOST
            self.dropped += count
            self.records.append((int(Kind.DROPPED), 0, now, b"", count, b""))

    def wake(self) -> None:
        """Have the thread look for records."""
        self.awake = True
        self._wake.set()

    def _send_all(self) -> None:
        interval = INTERVAL_S
        while True:
            # A record that comes before this is sent now; one that comes after it wakes us.
            self.awake = False
            if not self.records and not self._closing.is_set():
                self._wake.wait()
            self.awake = True
            self._wake.clear()
            closing = self._closing.wait(interval)
            interval = INTERVAL_S if len(self.records) < BUSY else BUSY_INTERVAL_S
            try:
                while self.records:
                    self._send([self.records.popleft() for _ in range(self._next())])
                if closing:
                    self.tell_missing(perf_counter_ns())
            except (OSError, MemoryError):
                self.room = 0
                self.records.clear()
                self._report()
                return
            if closing and not self.records:
                return

    def _next(self) -> int:
        return min(len(self.records), BATCH)

    def _send(self, records: list[Record]) -> None:
        frame = marshal.dumps(records, 2)
        data = memoryview(len(frame).to_bytes(FRAME_HEADER, sys.byteorder) + frame)
        while data:
            data = data[os.write(self._pipe, data) :]

    def _report(self) -> None:
        """Report that tracing has stopped, unless the process that prints has done so."""
        status = self._writer.wait()
        if status not in (0, TOLD):
            log.warning("tracing stops: its process ended with status %d", status)
