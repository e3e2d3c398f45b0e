"""The recorder and the process that prints: outputs that fail, queues that overflow, ends."""

import errno
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.request import Reply, Request
from recuse.trace import recorder as module
from recuse.trace.recorder import ConnectionTap, Recorder
from recuse.trace.writer import frames
from recuse.wire import fuse


def request(unique: int, size: int = 0, opcode: int = fuse.FUSE_WRITE) -> bytes:
    body = fuse.fuse_write_in(fh=1, size=size).pack() + b"w" * size
    header = fuse.fuse_in_header(len=40 + len(body), opcode=opcode, unique=unique, pid=os.getpid())
    return header.pack() + body


def reply(unique: int, size: int = 0) -> bytes:
    body = fuse.fuse_write_out(size=size).pack()
    return fuse.fuse_out_header(len=16 + len(body), unique=unique).pack() + body


def exchange(tap: ConnectionTap, unique: int, size: int = 0) -> None:
    tap.request(request(unique, size))
    tap.reply(reply(unique, size))


def opened(path: Path | str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def recorder(path: Path | str, layout: str = "jsonl") -> Recorder:
    output = opened(path)
    try:
        return Recorder(output, layout)
    finally:
        os.close(output)


def objects(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_is_printed_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    recording = recorder(path)
    tap = recording.connection()
    tap.added("echo", 254, 3)
    for unique in range(2, 4002, 2):
        exchange(tap, unique, 3 if unique != 2 else 100_000)
    tap.removed()
    recording.close()
    start, added, *exchanges, removed = objects(path)
    assert (start["event"], start["version"]) == ("start", 1)
    assert (added["event"], added["device"], added["major"]) == ("added", "echo", 254)
    assert removed["event"] == "removed"
    assert [one["unique"] for one in exchanges] == list(range(2, 4002, 2))
    assert [one["result"] for one in exchanges] == [100_000, *[3] * 1999]
    own = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    assert {(one["pid"], one["program"]) for one in exchanges} == {(os.getpid(), own)}
    times = [one["ts"] for one in exchanges]
    assert times == sorted(times)  # type: ignore[type-var]
    assert recording.dropped == 0


def test_traces_of_one_file_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for _ in range(2):
        recorder(path).close()
    assert [one["event"] for one in objects(path)] == ["start", "start"]


def test_a_trace_is_printed_while_it_grows() -> None:
    reading, writing = os.pipe()
    recording = Recorder(writing, "text")
    os.close(writing)
    with open(reading, encoding="utf-8") as lines:
        tap = recording.connection()
        for unique in (2, 4, 6):
            exchange(tap, unique)
            assert "WRITE(fh=1" in lines.readline()
        recording.close()
        assert lines.read() == ""


@pytest.mark.parametrize("layout", ["text", "jsonl"])
def test_a_full_disk_ends_the_trace_with_one_warning(
    layout: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    recording = recorder("/dev/full", layout)
    tap = recording.connection()
    unique = 0
    while recording.room:
        unique += 2
        exchange(tap, unique)
    for more in range(unique + 2, unique + 1000, 2):
        exchange(tap, more)
    assert len(recording.records) <= 1
    recording.close()
    assert capfd.readouterr().err == "recuse: tracing stops: No space left on device\n"
    assert caplog.records == []


def test_a_disk_that_is_full_at_the_end(capfd: pytest.CaptureFixture[str]) -> None:
    recording = recorder("/dev/full", "text")
    exchange(recording.connection(), 2)
    recording.close()
    assert capfd.readouterr().err == "recuse: tracing stops: No space left on device\n"


def test_a_closed_pipe_ends_the_trace(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    recording = Recorder(writing, "text")
    os.close(writing)
    exchange(recording.connection(), 2)
    recording.close()
    assert capfd.readouterr().err == "recuse: tracing stops: nobody reads it\n"


def test_a_killed_writer_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recording = recorder(tmp_path / "trace")
    recording._writer.send_signal(signal.SIGKILL)
    tap = recording.connection()
    unique = 0
    while recording.room:
        unique += 2
        exchange(tap, unique)
    recording.close()
    assert [record.getMessage() for record in caplog.records] == [
        "tracing stops: its process ended with status -9"
    ]


def test_a_reader_that_waits_delays_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue takes so many records; what comes then is counted, and the trace says so."""
    monkeypatch.setattr(module, "QUEUE_MOST", 1000)
    reading, writing = os.pipe()
    recording = Recorder(writing, "jsonl")
    os.close(writing)
    tap = recording.connection()
    unique = 0
    while not recording.missing:
        unique += 2
        exchange(tap, unique)
    for _ in range(1000):
        unique += 2
        exchange(tap, unique)
    assert len(recording.records) <= 1000
    lines: list[bytes] = []
    with open(reading, "rb") as source:
        thread = threading.Thread(target=lambda: lines.extend(source))
        thread.start()
        recording.close()
        thread.join()
    found = [json.loads(line) for line in lines]
    missing = sum(one["count"] for one in found if one["event"] == "dropped")
    assert missing == recording.dropped
    assert not any(one["event"] == "refused" for one in found)
    exchanges = [one for one in found if one["event"] == "exchange"]
    places = [one for one in found if one["event"] == "dropped"]
    # At each place an answer may be there without its request, and the other way round.
    unpaired = sum(one["answered"] is None for one in exchanges)
    assert unpaired <= len(places)
    there = 2 * (len(exchanges) - unpaired) + unpaired
    assert there <= unique - missing <= there + len(places)


def test_interrupted_it_prints_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    recording = Recorder(writing, "text")
    os.close(writing)
    tap = recording.connection()
    for unique in range(2, 20_000, 2):
        exchange(tap, unique)

    def interrupt(timeout: float | None = None) -> int:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(recording._thread, "join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        recording.close()
    os.close(reading)


def test_a_program_that_executes_another_changes_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [10**9]
    monkeypatch.setattr(module, "perf_counter_ns", lambda: now[0])
    path = tmp_path / "trace"
    recording = recorder(path)
    tap = recording.connection()
    comm = Path("/proc/self/comm")
    own = comm.read_text(encoding="utf-8").strip()
    try:
        comm.write_text("before", encoding="utf-8")
        exchange(tap, 2)
        comm.write_text("after", encoding="utf-8")
        exchange(tap, 4)
        now[0] += 2_000_000
        exchange(tap, 6)
        comm.write_text("opening", encoding="utf-8")
        tap.request(request(8, opcode=fuse.FUSE_OPEN))
        tap.reply(reply(8))
    finally:
        comm.write_text(own, encoding="utf-8")
    recording.close()
    programs = [one["program"] for one in objects(path) if one["event"] == "exchange"]
    assert programs == ["before", "before", "after", "opening"]


def test_the_name_of_a_process_that_has_ended_is_kept(tmp_path: Path) -> None:
    recording = recorder(tmp_path / "trace")
    ended = subprocess.Popen(["true"])
    ended.wait()
    pid = ended.pid.to_bytes(4, sys.byteorder)
    assert recording.look_up(pid, 1) == (1, b"")
    recording.programs[pid] = (1, b"true")
    assert recording.look_up(pid, 2) == (2, b"true")
    assert recording.look_up(bytes(4), 1) == (1, b"")
    for number in range(5000):
        recording.look_up((2**31 + number).to_bytes(4, sys.byteorder), 3)
    assert len(recording.programs) <= 1024
    recording.close()


def test_a_frame_that_is_cut_off_is_left_out() -> None:
    assert list(frames(io.BytesIO(b""))) == []
    assert list(frames(io.BytesIO(b"\1\0"))) == []
    assert list(frames(io.BytesIO((100).to_bytes(4, sys.byteorder) + b"abc"))) == []


class Noted:
    """A tap that keeps everything."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.replies: list[bytes] = []

    def request(self, message: bytes) -> None:
        self.requests.append(message)

    def reply(self, message: bytes) -> None:
        self.replies.append(message)

    def added(self, name: str, major: int, minor: int) -> None: ...

    def removed(self) -> None: ...


class Broken(Noted):
    """A tap that fails at the first message."""

    def request(self, message: bytes) -> None:
        raise RuntimeError("mistake")

    reply = request


def connected() -> Connection:
    """A connection whose INIT has been answered."""

    def accept(_reply: Reply) -> None:
        connection.initialised(45, 4096)

    connection = Connection(Request(fuse.FUSE_INIT), accept)
    connection.read(1 << 20)
    connection.write(fuse.fuse_out_header(len=16, unique=2).pack())
    return connection


def test_a_tap_gets_the_bytes_of_both_directions() -> None:
    connection = connected()
    connection.tap = tap = Noted()
    asked = Request(fuse.FUSE_READ, bytes(40), 0, 16)
    connection.submit(asked)
    message = connection.read(1 << 20)
    connection.interrupt(asked)
    interrupt = connection.read(1 << 20)
    assert interrupt[4] == fuse.FUSE_INTERRUPT
    assert tap.requests == [message, interrupt]
    answer = fuse.fuse_out_header(len=18, unique=4).pack() + b"ok"
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ENOENT):
        connection.write(fuse.fuse_out_header(len=16, unique=8).pack())
    connection.write(memoryview(answer))
    assert tap.replies[1:] == [answer]
    assert type(tap.replies[1]) is bytes
    with pytest.raises(BlockingIOError):
        connection.read(1 << 20)
    assert len(tap.requests) == 2


def test_a_tap_that_fails_harms_no_request(caplog: pytest.LogCaptureFixture) -> None:
    connection = connected()
    answer = fuse.fuse_out_header(len=18, unique=4).pack() + b"ok"
    asked = Request(fuse.FUSE_READ, bytes(40), 0, 16)
    connection.submit(asked)
    connection.tap = Broken()
    connection.read(1 << 20)
    assert connection.tap is None
    connection.tap = Broken()
    connection.write(answer)
    assert asked.reply is not None
    assert asked.reply.payload == b"ok"
    assert connection.tap is None
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
