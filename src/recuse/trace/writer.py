"""The process that decodes and prints a trace: `python -m recuse.trace.writer FORMAT START`.

START is when the trace began, by perf_counter_ns. stdin brings frames of records
(`recuse.trace.recorder`) until end of file; the trace goes to stdout. It is a separate process for
two reasons. Decoding in the process that serves would hold up its interpreter. And the trace is
complete this way, however that process ends.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import BinaryIO

from recuse.trace import jsonl, text
from recuse.trace.exchanges import Exchanges, Record

TOLD = 3
"""The exit status after a failure that was reported to the user."""

FRAME_HEADER = 4
"""Bytes of a frame's length, in the machine's order; the marshalled records follow."""

_NICE = 15
"""Leaves it 3 % of a CPU that programs want for themselves (10: 10 %), enough for 3000 lines a
second. What is traced there becomes slower by that much."""

Formatter = text.Formatter | jsonl.Formatter


def frames(source: BinaryIO) -> Iterator[list[Record]]:
    """Yield the records of each frame; a frame that is cut off at the end is left out."""
    while len(header := source.read(FRAME_HEADER)) == FRAME_HEADER:
        length = int.from_bytes(header, sys.byteorder)
        frame = source.read(length)
        if len(frame) < length:
            return
        yield marshal.loads(frame)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, even to a pipe that somebody has made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def write_trace(
    source: Iterable[list[Record]], formatter: Formatter, descriptor: int, start: int = 0
) -> None:
    """Write the trace of all frames; it began at ``start``. Raises OSError as writing does."""
    exchanges = Exchanges(start)
    line = formatter.line
    first = formatter.start(datetime.now(UTC).isoformat(timespec="milliseconds"))
    write_all(descriptor, first.encode())
    for records in source:
        lines = [line(item) for record in records for item in exchanges.feed(record)]
        write_all(descriptor, "".join(lines).encode())
    write_all(descriptor, "".join(line(item) for item in exchanges.end()).encode())


def main(name: str, start: int) -> int:
    """Write the trace in the named format until stdin ends; return the exit status."""
    # The terminal may forbid writing from the background (stty tostop).
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.nice(_NICE)
    output = sys.stdout.fileno()
    colour = os.isatty(output) and not os.environ.get("NO_COLOR")
    formatter: Formatter = jsonl.Formatter() if name == "jsonl" else text.Formatter(colour=colour)
    try:
        write_trace(frames(sys.stdin.buffer), formatter, output, start)
    except OSError as error:
        reason = "nobody reads it" if error.errno == errno.EPIPE else error.strerror
        with suppress(OSError):
            write_all(2, f"recuse: tracing stops: {reason}\n".encode())
        return TOLD
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
