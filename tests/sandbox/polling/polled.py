"""A device to be polled, for the tests of poll, select and epoll."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from pathlib import Path
from typing import Any

from recuse import Device, File, OpenRequest, current_request
from recuse.sandbox.arch import arch

from ...patience import PATIENCE_S

IN, OUT, PRI, ERR, HUP = 1, 4, 2, 8, 16
"""POLLIN and so on, and as epoll has them."""


def lines(text: str) -> list[str]:
    """What a client has printed."""
    return text.splitlines()


class BoxFile(File):
    device: Box

    def write(self, data: bytes, offset: int) -> int:
        box = self.device
        with box.changed:
            if not box.room:
                raise BlockingIOError(errno.EAGAIN, "full")
            box.room -= 1
            box.changed.notify_all()
        if not data.startswith(b"nothing"):
            box.put(data)
        return len(data)

    def read(self, size: int, offset: int) -> bytes:
        with self.device.changed:
            data, self.device.data = self.device.data, b""
            if not data and self.nonblocking:
                raise BlockingIOError(errno.EAGAIN, "empty")
            return data

    def poll(self, events: int) -> int:
        box = self.device
        with box.changed:
            box.asked.append((current_request().pid, events))
            box.changed.notify_all()
            if box.extra < 0:
                raise OSError(-box.extra, "as the test wants it")
            ready = select.POLLIN if box.data else 0
            return ready | (select.POLLOUT if box.room else 0) | box.extra

    def release(self) -> None:
        with self.device.changed:
            self.device.files.remove(self)
            self.device.changed.notify_all()


class Box(Device):
    """What is written, or put into it, can be read; there is room for so many writes."""

    name = "box"
    kind = BoxFile

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.changed = threading.Condition()
        self.data = b""
        self.room = 1000
        self.extra = 0
        """More events, or a negative errno."""
        self.asked: list[tuple[int, int]] = []
        """The thread and the events of each poll."""
        self.files: list[BoxFile] = []

    def open(self, request: OpenRequest) -> File:
        with self.changed:
            self.files.append(self.kind())
            return self.files[-1]

    def put(self, data: bytes = b"", *, room: int = 0, extra: int = 0) -> None:
        """Change something, and say so, under the lock that `poll` takes."""
        with self.changed:
            self.data += data
            self.room += room
            self.extra |= extra
            for file in self.files:
                file.wake_pollers()

    def wait_asked(self, times: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= times, PATIENCE_S)

    def wait_released(self) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: not self.files, PATIENCE_S)


def wait_asleep(tid: int, *numbers: int) -> None:
    """Wait until a thread sleeps in one of these system calls, natively.

    Not where it waits for the supervisor: in a trapped call, or stopped while it lends something.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        call = Path(f"/proc/{tid}/syscall").read_text().split()[0]
        place = Path(f"/proc/{tid}/wchan").read_text()
        elsewhere = place == "0" or "seccomp" in place or "ptrace" in place
        if call in map(str, numbers) and not elsewhere:
            return
        assert time.monotonic() < deadline, (call, place)
        os.sched_yield()


def _numbers(*names: str) -> tuple[int, ...]:
    """The numbers of those calls among these that this architecture has."""
    return tuple(arch.SYSCALLS[name] for name in names if name in arch.SYSCALLS)


# Their system calls.
POLL = _numbers("poll", "ppoll")
SELECT = _numbers("select", "pselect6")
EPOLL = _numbers("epoll_wait", "epoll_pwait", "epoll_pwait2")

PRELUDE = """
import select
fd = os.open("/dev/box", os.O_RDWR)
def poll(timeout, *pairs):
    poll = select.poll()
    for number, events in pairs: poll.register(number, events)
    return sorted(poll.poll(timeout))
IN, OUT, PRI, ERR, HUP = 1, 4, 2, 8, 16
"""
"""What clients that poll it begin with."""


def program_pid(box: Box) -> int:
    """The first thread that has asked."""
    return box.asked[0][0]
