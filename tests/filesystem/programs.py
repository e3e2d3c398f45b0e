"""Small filesystems for the tests of FUSE over io_uring, and the programs that use them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import Any

from recuse import Directory, Filesystem, Mount, RegularFile

from .conftest import PATIENCE_S

CPUS = sorted(os.sched_getaffinity(0))

STAT = "import os; print(os.stat('hello').st_size)"
READERS = """
import sys, threading
def read():
    with open(sys.argv[1]) as file:
        texts.append(file.read())
texts = []
threads = [threading.Thread(target=read) for _ in range(int(sys.argv[2]))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(set(texts), len(texts))
"""


class Gate:
    """Where methods wait until the test lets them go on."""

    def __init__(self) -> None:
        self.came = threading.Semaphore(0)
        self._opened: Future[None] = Future()
        self._opened.set_running_or_notify_cancel()

    def wait_for(self, count: int) -> None:
        """Wait until so many methods have come here."""
        for _ in range(count):
            assert self.came.acquire(timeout=PATIENCE_S)

    def open(self) -> None:
        """Let all go on, those that come later too."""
        if not self._opened.done():
            self._opened.set_result(None)

    def pass_through(self) -> None:
        """Wait in a plain method."""
        self.came.release()
        self._opened.result(PATIENCE_S)

    async def pass_later(self) -> None:
        """Wait in a coroutine."""
        self.came.release()
        await asyncio.wrap_future(self._opened)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open()


class Blocking(RegularFile):
    """A file whose read waits, and occupies its thread."""

    size = None

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def read(self, size: int, offset: int) -> Any:
        self.gate.pass_through()
        return b"" if offset else b"at last\n"


class Waiting(Blocking):
    """The same, as a coroutine."""

    async def read(self, size: int, offset: int) -> bytes:
        await self.gate.pass_later()
        return b"" if offset else b"at last\n"


def tree(**files: RegularFile) -> Filesystem:
    return Filesystem(Directory({"hello": RegularFile(b"Hello, world!\n"), **files}))


def python(
    code: str, mount: Mount, *args: str, cpu: int | None = None, keep: int | None = None
) -> subprocess.Popen[str]:
    """A program in the root directory of a mount, on one CPU; it has a descriptor that it keeps."""
    pin = "" if cpu is None else f"import os; os.sched_setaffinity(0, {{{cpu}}})\n"
    return subprocess.Popen(
        [sys.executable, "-I", "-c", pin + code, *args],
        cwd=mount.path,
        pass_fds=() if keep is None else (keep,),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(program: subprocess.Popen[str]) -> str:
    """What a program has printed, if it has succeeded."""
    output, errors = program.communicate(timeout=PATIENCE_S)
    assert not program.returncode, errors
    return output
