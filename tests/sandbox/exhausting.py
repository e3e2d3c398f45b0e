"""A sandbox whose supervisor lacks something from some moment on; run by test_exhaustion.

``exhausting.py WHAT NUMBER [once]``: of WHAT (threads, descriptors or memory, in KiB) there are so
many more when the sandbox is made; or with ``once``, only one lacks. It prints what the program
says: a line for each thing that it does, with its outcome, "ok" or the name of an errno; and "not
started: ..." if it cannot be.
"""

import asyncio  # here, as what is imported later lacks descriptors
import os
import resource
import sys
import threading
import time
from pathlib import Path

from recuse import Area, Device, File, ioctl
from recuse.sandbox import Sandbox, SandboxError

MOST_S = 0.3
"""How long plain methods block."""


class Devices:
    """What the devices' files share."""

    area = Area(4096)


class Plain(File):
    """Plain methods that block."""

    def read(self, size: int, offset: int) -> bytes:
        time.sleep(MOST_S)
        return b"p"

    def write(self, data: bytes, offset: int) -> None:
        pass

    @ioctl(0x5801)
    def reset(self) -> None:
        pass

    def poll(self, events: int) -> int:
        return 4  # POLLOUT

    def mmap(self, request: object) -> Area:
        return Devices.area


class Asynchronous(File):
    """Methods that need no thread."""

    async def read(self, size: int, offset: int) -> bytes:
        await asyncio.sleep(MOST_S / 3)
        return b"a"


class OneFile(Device):
    """A device with files of one class."""

    def __init__(self, name: str, kind: type[File]) -> None:
        super().__init__(name=name)
        self._kind = kind

    def open(self, request: object) -> File:
        return self._kind()


PROGRAM = r"""
import errno, fcntl, mmap, os, select, signal, sys, threading, time
def attempt(what, function):
    try:
        function()
        outcome = "ok"
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, str(error.errno))
    except RuntimeError:
        outcome = "EAGAIN"
    os.write(1, f"{what} {outcome}\n".encode())
def using(path, function, flags=os.O_RDWR):
    descriptor = os.open(path, flags)
    try:
        return function(descriptor)
    finally:
        os.close(descriptor)
def plain(fd):
    assert os.read(fd, 1) == b"p"
def polled(fd):
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    if poll.poll(5000) != [(fd, select.POLLOUT)]:  # what poll fails with, programs do not see
        raise OSError(errno.EIO, "POLLERR")
def mapped(fd):
    with mmap.mmap(fd, 4096) as memory:
        memory[0] = 1
def asynchronous(fd):
    assert os.read(fd, 1) == b"a"
def many():
    outcomes = []
    def one():
        try:
            using("/dev/plain", plain)
        except OSError as error:
            outcomes.append(error)
    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if outcomes:
        raise outcomes[0]
def ordinary():
    for _ in range(20):
        with open("/proc/self/stat", "rb") as file:
            assert file.read()
attempt("ordinary", ordinary)
attempt("read", lambda: using("/dev/plain", plain))
attempt("write", lambda: using("/dev/plain", lambda fd: os.write(fd, b"x")))
attempt("ioctl", lambda: using("/dev/plain", lambda fd: fcntl.ioctl(fd, 0x5801)))
attempt("async", lambda: using("/dev/async", asynchronous))
attempt("poll", lambda: using("/dev/plain", polled))
attempt("mmap", lambda: using("/dev/plain", mapped))
attempt("many", many)
attempt("ordinary", ordinary)
os._exit(0)
"""


def fail_after(number: int, *, once: bool) -> None:
    """Let so many threads be started, and then none; or all but the next."""
    start = threading.Thread.start
    left = number

    def begin(thread: threading.Thread) -> None:
        nonlocal left
        left -= 1
        if left == -1 or (left < 0 and not once):
            raise RuntimeError("can't start new thread")
        start(thread)

    threading.Thread.start = begin  # type: ignore[assignment, method-assign]  # for all


def limit(what: str, number: int, *, once: bool) -> None:
    """Lack something from now on, but for so many."""
    if what == "threads":
        fail_after(number, once=once)
    elif what == "descriptors":
        used = os.dup(1)  # the lowest one that is free
        os.close(used)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + number, most))
    else:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        size = pages * os.sysconf("SC_PAGESIZE") + number * 1024
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))


def main(what: str, number: int, *, once: bool) -> None:
    devices = [OneFile("plain", Plain), OneFile("async", Asynchronous)]
    limit(what, number, once=once)
    try:
        with Sandbox(*devices) as sandbox:
            sandbox.run([sys.executable, "-I", "-S", "-c", PROGRAM], open_files=1000)
    except (OSError, SandboxError, MemoryError) as error:
        print("not started:", error, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), once=sys.argv[3:] == ["once"])
