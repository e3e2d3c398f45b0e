"""Readiness on the real kernel: poll, select and epoll of a device, and how it wakes them."""

import os
import select
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest

from recuse import Device, File, OpenRequest
from recuse.channel.devcuse import DevCuse

WAIT_S = 30

Kernel = Callable[[Device], DevCuse]

IN, OUT, ERR, HUP = select.POLLIN, select.POLLOUT, select.POLLERR, select.POLLHUP


class BoxFile(File):
    device: "Box"

    def write(self, data: bytes, offset: int) -> None:
        self.device.put(data)

    def read(self, size: int, offset: int) -> bytes:
        data, self.device.data = self.device.data, b""
        return data

    def poll(self, events: int) -> int:
        with self.device.changed:
            self.device.asked += 1
            self.device.changed.notify_all()
            if self.device.broken:
                raise OSError(5, "broken")
            return OUT | (IN if self.device.data else 0)


class Box(Device):
    """What is written can be read, once."""

    name = "box"

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()
        self.data = b""
        self.asked = 0
        self.broken = False
        self.files: list[BoxFile] = []

    def open(self, request: OpenRequest) -> File:
        self.files.append(BoxFile())
        return self.files[-1]

    def put(self, data: bytes) -> None:
        with self.changed:
            self.data += data
            for file in self.files:
                file.wake_pollers()

    def wait_until_asked(self, times: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.asked >= times, WAIT_S)


@contextmanager
def opened(served: DevCuse) -> Any:
    number = os.open(served.node, os.O_RDWR)
    try:
        yield number
    finally:
        os.close(number)


class Waiting:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        self.outcome = call()

    def result(self) -> Any:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self.outcome


def test_poll_tells_what_the_device_says(kernel: Kernel) -> None:
    box = Box()
    with opened(kernel(box)) as file:
        poll = select.poll()
        poll.register(file, IN | OUT)
        assert poll.poll(0) == [(file, OUT)]
        os.write(file, b"x")
        assert poll.poll() == [(file, IN | OUT)]
        assert os.read(file, 10) == b"x"
        assert select.select([file], [file], [file], 0) == ([], [file], [])
        box.broken = True
        assert poll.poll() == [(file, ERR)]


def epoll_of(file: int, events: int) -> select.epoll:
    epoll = select.epoll()
    epoll.register(file, events)
    return epoll


@pytest.mark.parametrize("how", ["poll", "select", "epoll", "edge"])
def test_who_waits_is_woken(kernel: Kernel, how: str) -> None:
    box = Box()
    with opened(kernel(box)) as file:
        if how == "poll":
            poll = select.poll()
            poll.register(file, IN)
            waiting = Waiting(lambda: poll.poll(WAIT_S * 1000))
        elif how == "select":
            waiting = Waiting(lambda: select.select([file], [], [], WAIT_S)[0])
        else:
            epoll = epoll_of(file, select.EPOLLIN | (select.EPOLLET if how == "edge" else 0))
            waiting = Waiting(lambda: epoll.poll(WAIT_S))
        box.wait_until_asked(1)
        box.put(b"data")
        assert waiting.result() == ([file] if how == "select" else [(file, IN)])


def test_two_threads_wait_for_one_file(kernel: Kernel) -> None:
    box = Box()
    with opened(kernel(box)) as file:
        waiting = [Waiting(lambda: select.select([file], [], [], WAIT_S)[0]) for _ in range(2)]
        box.wait_until_asked(2)
        box.put(b"data")
        assert [one.result() for one in waiting] == [[file], [file]]


def test_a_device_without_poll_is_always_ready(kernel: Kernel) -> None:
    class Plain(Device):
        name = "plain"

        def open(self, request: OpenRequest) -> File:
            return File()

    with opened(kernel(Plain())) as file:
        poll = select.poll()
        poll.register(file, IN | OUT | select.POLLPRI)
        for _ in range(2):
            assert poll.poll() == [(file, IN | OUT)]


def test_the_end_of_the_device_wakes_who_waits(kernel: Kernel) -> None:
    box = Box()
    served = kernel(box)
    with opened(served) as file:
        poll = select.poll()
        poll.register(file, IN)
        waiting = Waiting(lambda: poll.poll(WAIT_S * 1000))
        box.wait_until_asked(1)
        served.close()
        assert waiting.result() == [(file, ERR)]
        assert poll.poll() == [(file, ERR)]
        assert select.select([file], [file], [], WAIT_S) == ([file], [file], [])
