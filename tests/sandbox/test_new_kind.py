"""A kind of file that recuse does not have: one class, and programs use it as any other."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest

from recuse.kernel.caller import Caller
from recuse.kernel.errors import os_error
from recuse.sandbox import Sandbox
from recuse.sandbox.files.description import FileDescription, IoVecs
from recuse.sandbox.files.pipe_end import PipeEnd
from recuse.sandbox.files.socket_end import SocketEnd
from recuse.sandbox.machine import Machine
from recuse.sandbox.syscalls import opening
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.trap.answers import ANSWERED
from recuse.sandbox.trap.call import TrappedCall
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.nodes import AttributeNode

from ..patience import PATIENCE_S
from .conftest import Shell, Start

PATH = "/sys/class/cuse/echo/uevent"
"""Where it is, as this kind of file takes the place of attributes."""


class Asked:
    """All files of the kind can be asked what they are ready for."""

    no_poll = False


class LetterBox(FileDescription):
    """Gives what is written to whoever reads; who finds nothing waits."""

    source = Asked()
    changed = threading.Condition()
    letters = b""
    readers: ClassVar[deque[tuple[TrappedCall, IoVecs]]] = deque()
    wakes: ClassVar[list[Callable[[], None]]] = []
    held: ClassVar[type[SocketEnd | PipeEnd]] = SocketEnd
    asked = 0
    released = 0

    def __init__(self, location: Location, flags: int) -> None:
        super().__init__(location, flags, self.held())

    @classmethod
    def opened_by(cls, call: TrappedCall, machine: Machine, location: Location, flags: int) -> int:
        """What opens it, as `opening.OPENERS` has it for other kinds."""
        return opening.install(call, machine, cls(location, flags & opening.STATUS_FLAGS), flags)

    def read(self, call: TrappedCall, segments: IoVecs, position: int | None) -> int:
        with self.changed:
            if LetterBox.letters:
                return self._give(call, segments)
            if self.flags & os.O_NONBLOCK:
                raise os_error(errno.EAGAIN)
            self.readers.append((call, segments))
            call.wait(self._interrupt)
            self.changed.notify_all()
            return ANSWERED

    def _interrupt(self, call: TrappedCall, fatal: bool) -> None:
        with self.changed:
            for waiting in self.readers:
                if waiting[0] is call:
                    self.readers.remove(waiting)
                    call.restart()
                    return

    def _give(self, call: TrappedCall, segments: IoVecs) -> int:
        address, size = segments[0]
        count = call.caller().memory.write(address, LetterBox.letters[:size])
        LetterBox.letters = LetterBox.letters[count:]
        return count

    def write(
        self, call: TrappedCall, segments: IoVecs, position: int | None, flags: int = 0
    ) -> int:
        data = b"".join(read_memory(call.tid, *segment) for segment in segments)
        with self.changed:
            LetterBox.letters += data
            while self.readers and LetterBox.letters:
                reader, room = self.readers.popleft()
                if reader.alive():
                    reader.answer(self._give(reader, room))
        for wake in list(self.wakes):
            wake()
        return len(data)

    @property
    def poll_source(self) -> Asked:
        return self.source

    def poll(self, caller: Caller, events: int, waiting: bool) -> int:
        with self.changed:
            LetterBox.asked += 1
            self.changed.notify_all()
            return select.POLLOUT | (select.POLLIN if LetterBox.letters else 0)

    def wake_by(self, changed: Callable[[], None]) -> None:
        self.wakes.append(changed)

    def release(self, released: Callable[[], None]) -> None:
        LetterBox.released += 1
        released()

    @classmethod
    def wait(cls, condition: Callable[[], bool]) -> None:
        with cls.changed:
            assert cls.changed.wait_for(condition, PATIENCE_S)


@pytest.fixture(autouse=True)
def box(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[LetterBox]]:
    monkeypatch.setitem(opening.OPENERS, AttributeNode, LetterBox.opened_by)
    LetterBox.letters, LetterBox.asked, LetterBox.released = b"", 0, 0
    yield LetterBox
    LetterBox.readers.clear()  # of a program that was killed
    LetterBox.wakes.clear()


def test_what_is_written_is_read(shell: Shell, sandbox: Sandbox, box: type[LetterBox]) -> None:
    assert shell(f"echo one > {PATH}; printf two >> {PATH}; head -c 7 {PATH}") == "one\ntwo"
    assert shell(f"head -c 3 {PATH} & echo two > {PATH}; wait") == "two"
    assert sandbox._machine is not None
    sandbox._machine.files.settle(PATIENCE_S)
    assert box.released == 5
    assert not len(sandbox._machine.files)


def test_who_finds_nothing_waits(
    sandbox: Sandbox, start: Start, shell: Shell, box: type[LetterBox]
) -> None:
    with start(sandbox, f"print(os.read(os.open({PATH!r}, os.O_RDONLY), 9))") as reader:
        box.wait(lambda: len(box.readers) == 1)
        shell(f"echo late > {PATH}")
        assert reader.stdout.readline() == b"b'late\\n'\n"


def test_a_signal_ends_the_wait(sandbox: Sandbox, start: Start, box: type[LetterBox]) -> None:
    script = f"""
signal.signal(signal.SIGUSR1, lambda *_: print("signal", flush=True))
fd = os.open({PATH!r}, os.O_RDWR)
print(os.getpid(), flush=True)
print(os.read(fd, 9))
"""
    with start(sandbox, script) as reader:
        tid = int(reader.stdout.readline())
        box.wait(lambda: len(box.readers) == 1)
        os.kill(tid, signal.SIGUSR1)
        assert reader.stdout.readline() == b"signal\n"
        # Python reads again.
        box.wait(lambda: len(box.readers) == 1)
        os.kill(tid, signal.SIGTERM)
        assert reader.wait(PATIENCE_S) == -signal.SIGTERM


WAITS = {
    "poll": "poll = select.poll(); poll.register(fd, 1); print(poll.poll())",
    "select": "print([len(files) for files in select.select([fd], [], [])])",
    "epoll": "epoll = select.epoll(); epoll.register(fd, 1); print(epoll.poll())",
    "edges": "epoll = select.epoll(); epoll.register(fd, 1 | 1 << 31); print(epoll.poll())",
}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("held", [SocketEnd, PipeEnd])
def test_who_waits_for_it_is_woken(  # noqa: PLR0917 - fixtures and parameters
    sandbox: Sandbox,
    start: Start,
    shell: Shell,
    box: type[LetterBox],
    monkeypatch: pytest.MonkeyPatch,
    held: type[SocketEnd | PipeEnd],
    wait: str,
) -> None:
    monkeypatch.setattr(box, "held", held)
    script = f"""
import select
fd = os.open({PATH!r}, os.O_RDWR | os.O_NONBLOCK)
print(attempt(os.read, fd, 9), flush=True)
{WAITS[wait]}
print(os.read(fd, 9), attempt(os.read, fd, 9))
"""
    with start(sandbox, script) as program:
        assert program.stdout.readline() == b"EAGAIN\n"
        box.wait(lambda: box.asked > 0)
        shell(f"echo now > {PATH}")
        assert program.stdout.readline() in (b"[(3, 1)]\n", b"[1, 0, 0]\n")
        assert program.stdout.readline() == b"b'now\\n' EAGAIN\n"


def test_it_fails_as_files_do_that_cannot_do_something(client: Shell) -> None:
    script = f"""
fd = os.open({PATH!r}, os.O_RDWR)
print(attempt(os.lseek, fd, 0, 0), attempt(fcntl.ioctl, fd, 0x1234),
      attempt(mmap.mmap, fd, 4096), attempt(os.sendfile, fd, fd, None, 4))
print(attempt(fcntl.flock, fd, fcntl.LOCK_EX), attempt(os.read, os.open({PATH!r}, 1), 1),
      attempt(os.write, os.open({PATH!r}, 0), b"x"))
"""
    assert client(script) == "ESPIPE ENOTTY ENODEV EINVAL\nNone EBADF EBADF\n"


def test_its_flags_can_be_changed(client: Shell) -> None:
    script = f"""
fd = os.open({PATH!r}, os.O_RDWR | os.O_CLOEXEC)
fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
print(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK == os.O_NONBLOCK, attempt(os.read, fd, 1))
fcntl.ioctl(fd, 0x5421, b"\\0\\0\\0\\0")
print(fcntl.fcntl(fd, fcntl.F_GETFL) & 0o7777 == os.O_RDWR)
"""
    assert client(script) == "True EAGAIN\nTrue\n"
