"""What the tests of FUSE mounts share: devices, and programs, which are other processes.

This one serves, and must not wait for itself.
"""

from __future__ import annotations

import ctypes
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

from recuse import (
    IOR,
    Area,
    Device,
    File,
    Mapping,
    MmapRequest,
    OpenRequest,
    current_request,
    ioctl,
)

WAIT_S = 20


Event = str | tuple[object, ...]
"""What a device's methods tell: their name, or that and what they were asked."""


class Board(Device):
    """A text that all its files share, by read, write and mmap."""

    name = "board"

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.area = Area(65536)
        self.happened: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def open(self, request: OpenRequest) -> File:
        return BoardFile()

    def take(self, count: int) -> list[Event]:
        return [self.happened.get(timeout=WAIT_S) for _ in range(count)]


class BoardFile(File):
    device: Board
    finished = False

    def read(self, size: int, offset: int) -> bytes:
        self.device.happened.put(("read", size, offset))
        if self.finished:
            return b""
        self.finished = True
        return bytes(self.device.area[:5])[:size]

    def write(self, data: bytes, offset: int) -> None:
        self.device.happened.put(("write", data, offset))
        self.device.area[: len(data)] = data

    def mmap(self, request: MmapRequest) -> Area:
        assert request.at_open
        self.device.happened.put(("mmap", request.size, request.protection))
        return self.device.area

    def mapped(self, mapping: Mapping) -> None:
        assert mapping.area is self.device.area
        self.device.happened.put(("mapped", current_request().operation))

    def unmapped(self, mapping: Mapping) -> None:
        assert mapping.area is self.device.area
        try:
            operation = current_request().operation
        except LookupError:  # no request: the mount ended before the kernel had told of the close
            operation = "end"
        self.device.happened.put(("unmapped", operation))

    def release(self) -> None:
        self.device.happened.put("release")

    @ioctl(IOR("b", 1, ctypes.c_int), ctypes.c_int)
    def answer(self) -> int:
        return 42


class Plain(Device):
    """Has no areas, and no poll."""

    name = "plain"

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.happened: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.go_on = threading.Event()

    def open(self, request: OpenRequest) -> File:
        self.happened.put(("open", request.flags & os.O_TRUNC))
        return PlainFile()


class PlainFile(File):
    device: Plain

    def read(self, size: int, offset: int) -> bytes:
        self.device.happened.put("read")
        assert self.device.go_on.wait(WAIT_S)
        return b""

    def write(self, data: bytes, offset: int) -> None:
        self.device.happened.put(("write", len(data), offset))


PRELUDE = """
import errno, fcntl, mmap, os, select, signal, sys
def fails(number, function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        assert error.errno == number, error
    else:
        raise AssertionError("did not fail")
def say(what):
    print(what, flush=True)
"""


class Program:
    """A Python program in `directory`; it says something, and waits to be told to go on."""

    def __init__(self, directory: Path, code: str, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code],
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **options,
        )
        self._alarm = threading.Timer(WAIT_S, self.process.kill)
        self._alarm.start()

    def line(self) -> str:
        assert self.process.stdout is not None
        said: bytes = self.process.stdout.readline()
        return said.decode().rstrip("\n")

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def end(self) -> str:
        with self.process:
            output, _ = self.process.communicate()
            self._alarm.cancel()
        said: bytes = output
        return said.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.end()


def run(directory: Path, code: str, **options: Any) -> str:
    with Program(directory, code, **options) as program:
        output = program.end()
        assert program.process.returncode == 0
    return output


def shell(directory: Path, command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", command],
        cwd=directory,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
        **options,
    )
