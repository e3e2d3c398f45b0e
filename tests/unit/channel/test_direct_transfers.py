"""READs and WRITEs that a session in the same process is given without a message.

The protocol's messages are the truth: with a tap on the connection they are made and read, and
everything must be as without them.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse import Device, File, OpenRequest, current_request
from recuse.channel.inprocess import InProcessChannel, connect
from recuse.kernel.caller import Caller
from recuse.kernel.char.devices import DeviceTable
from recuse.kernel.char.files import open_file
from recuse.kernel.connection.operation import Operation, run
from recuse.wire.fuse import FUSE_READ, FUSE_WRITE

from .support import Begun

PARTS = (1, 13, 4096, 5000)


class Memory:
    """A program's: what is written to it is noted, and one byte of it is bad."""

    def __init__(self, bad: int) -> None:
        self.bad = bad
        self.written: list[tuple[int, bytes]] = []

    def read(self, address: int, size: int) -> bytes:
        good = self.writable(address, size)
        if size and not good:
            raise OSError(errno.EFAULT, "bad address")
        return bytes((address + at) % 251 for at in range(good))

    def write(self, address: int, data: Any) -> int:
        good = self.writable(address, len(data))
        self.written.append((address, bytes(data[:good])))
        if not good:
            raise OSError(errno.EFAULT, "bad address")
        return good

    def writable(self, address: int, size: int) -> int:
        return min(size, self.bad - address) if address <= self.bad < address + size else size


def data_of(size: int) -> bytes:
    return bytes(at % 7 for at in range(size))


ANSWERS: dict[str, Callable[[int], Any]] = {
    "all": lambda size: size,
    "half": lambda size: size // 2,
    "nothing": lambda _: 0,
    "too much": lambda size: size + 1,
    "negative": lambda _: -3,
    "None": lambda _: None,
    "text": lambda _: "text",
    "EAGAIN": lambda _: BlockingIOError(),
    "EINVAL": lambda _: OSError(errno.EINVAL, "no"),
    "ENOSYS": lambda _: OSError(errno.ENOSYS, "no"),
    "a mistake": lambda _: KeyError("mistake"),
    "no memory": lambda _: MemoryError(),
}


class Noting(Device):
    """Notes all that its methods are told, and answers as the test says."""

    name = "noting"
    seekable = True
    max_write = max_read = 8192

    def __init__(self, answers: list[str]) -> None:
        super().__init__()
        self.noted: list[Any] = []
        self.answers = iter(answers)

    def open(self, request: OpenRequest) -> File:
        return NotingFile()

    def answer(self, size: int, *told: object) -> Any:
        request = current_request()
        who = request.operation, request.uid, request.gid, request.pid, request.unique
        self.noted.append((*who, request.interrupted, *told))
        answer = ANSWERS[next(self.answers, "all")](size)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class NotingFile(File):
    device: Noting

    def read(self, size: int, offset: int) -> Any:
        answer = self.device.answer(size, size, offset, self.flags)
        return data_of(answer) if isinstance(answer, int) and answer >= 0 else answer

    def write(self, data: bytes, offset: int) -> Any:
        return self.device.answer(len(data), data, offset, self.flags)


class Tap:
    """Has all messages made, and keeps their opcodes."""

    def __init__(self) -> None:
        self.opcodes: list[int] = []

    def request(self, message: bytes) -> None:
        self.opcodes.append(message[4])

    def reply(self, message: bytes) -> None:
        pass

    def added(self, name: str, major: int, minor: int) -> None:
        pass

    def removed(self) -> None:
        pass


class Program:
    def __init__(self, made: InProcessChannel, memory: Memory, who: tuple[int, ...]) -> None:
        assert made.device is not None
        self.device = made.device
        pid, uid, gid, owner = who
        self.caller = Caller(pid, uid, gid, memory, owner, keeps_suid=owner % 2 == 0)

    def call(self, operation: Operation[Any]) -> Any:
        """The result, or the errno."""
        begun = Begun[Any]()
        run(self.device.connection, operation, begun.done)
        try:
            return begun()
        except OSError as error:
            return errno.errorcode[error.errno or 0]


Call = tuple[str, int, int | None, int]
calls = st.lists(
    st.tuples(
        st.sampled_from(["read", "write"]),
        st.sampled_from([0, 1, 16, 4096, 4097, 8192, 8193, 20000]),
        st.sampled_from([None, 0, 5, 1 << 40, (1 << 63) - 10]),
        st.sampled_from([os.O_RDWR, os.O_RDWR | os.O_NONBLOCK, os.O_RDWR | os.O_SYNC]),
    ),
    min_size=1,
    max_size=6,
)
whos = st.tuples(*[st.integers(1, 1 << 31)] * 3, st.integers(0, (1 << 64) - 1))


def observe(
    made_calls: list[Call], answers: list[str], who: tuple[int, ...], bad: int, *, tapped: bool
) -> tuple[list[Any], list[Any], list[Any], list[int]]:
    device = Noting(answers)
    made = connect(DeviceTable(), device)
    memory, tap = Memory(bad), Tap()
    try:
        program = Program(made, memory, who)
        file = program.call(open_file(program.device, os.O_RDWR, program.caller))
        if tapped:
            program.device.connection.tap = tap
        outcomes = []
        for method, size, offset, flags in made_calls:
            file.flags = flags
            segments = [(4096, size // 2), (1 << 20, size - size // 2)] if size % 2 else [(0, size)]
            outcomes.append(program.call(getattr(file, method)(program.caller, segments, offset)))
            outcomes.append(file.position)
        program.call(file.release())
    finally:
        made.close()
    return outcomes, device.noted, memory.written, tap.opcodes


@given(
    made_calls=calls,
    answers=st.lists(st.sampled_from(list(ANSWERS)), max_size=12),
    who=whos,
    bad=st.sampled_from([1 << 60, 0, 15, 4099, 8000]),
)
def test_they_are_as_by_messages(
    made_calls: list[Call], answers: list[str], who: tuple[int, ...], bad: int
) -> None:
    direct = observe(made_calls, answers, who, bad, tapped=False)
    by_messages = observe(made_calls, answers, who, bad, tapped=True)
    assert direct[:3] == by_messages[:3]
    asked = {FUSE_READ, FUSE_WRITE} & set(by_messages[3])
    assert len(asked) == len({noted[0] for noted in by_messages[1]})


def test_no_message_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = connect(DeviceTable(), Noting([]))
    program = Program(made, Memory(1 << 60), (1, 2, 3, 4))
    file = program.call(open_file(program.device, os.O_RDWR, program.caller))
    handled: list[bytes] = []
    monkeypatch.setattr(made.session, "handle", lambda message, _: handled.append(message))
    assert program.call(file.read(program.caller, [(0, 16)], 0)) == 16
    assert program.call(file.write(program.caller, [(0, 16)], 0)) == 16
    assert handled == []
    monkeypatch.undo()
    made.close()


def test_an_answer_after_the_end_is_not_taken() -> None:
    reading, go_on = threading.Event(), threading.Event()

    class SlowFile(File):
        def read(self, size: int, offset: int) -> bytes:
            reading.set()
            assert go_on.wait(20)
            return b"late"

    class Slow(Device):
        name = "slow"

        def open(self, request: OpenRequest) -> File:
            return SlowFile()

    made = connect(DeviceTable(), Slow())
    program = Program(made, Memory(1 << 60), (1, 2, 3, 4))
    file = program.call(open_file(program.device, os.O_RDWR, program.caller))
    outcome: list[object] = []
    operation = file.read(program.caller, [(0, 16)], 0)
    reader = threading.Thread(target=lambda: outcome.append(program.call(operation)))
    reader.start()
    assert reading.wait(20)
    program.device.connection.abort()
    go_on.set()
    reader.join()
    assert outcome == ["ECONNABORTED"]
