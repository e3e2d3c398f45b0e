"""A server without memory: each request that the kernel has handed out gets an answer."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from recuse import Mount
from recuse.channel import reserve
from recuse.channel.devcuse import Channel
from recuse.channel.io_uring import Ring
from recuse.channel.ring_entry import Entry
from recuse.channel.rings import Rings
from recuse.channel.shared_ring import SharedRing
from recuse.server import pending_reply
from recuse.server.filesystem.session import FilesystemSession
from recuse.server.pending_reply import PendingReply
from recuse.server.runner import Runner

from .conftest import PATIENCE_S
from .programs import CPUS, STAT, Gate, Waiting, python, result, tree

ASKS = """
import errno, os, sys, threading
failures = []
def stat(index):
    os.stat(f"missing{index}")
def read(index):
    assert open("waits").read() in ("", "at last\\n")
def ask(function):
    for index in range(20):
        try:
            function(index)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOMEM, errno.EIO):
                failures.append(error)
threads = [threading.Thread(target=ask, args=(one,)) for one in (stat, read) * 2]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failures)
"""
AT_LAST = "print(open('waits').read(), end='')"


class Lack:
    """Has calls of a function fail for lack of memory, in threads of the server's."""

    def __init__(self, usual: Any, most: int = 8, each: int = 2) -> None:
        """Each so many calls one fails, of the first so many at most."""
        self.usual = usual
        self.most = most
        self.each = each
        self.calls = 0
        self.on = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        ours = threading.current_thread().name.startswith("recuse")
        if self.on and ours and self.calls < self.most:
            self.calls += 1
            if self.calls % self.each == 0:
                raise MemoryError
        return self.usual(*arguments, **options)

    def __get__(self, owner: object, _: type | None = None) -> Any:
        return lambda *arguments, **options: self(owner, *arguments, **options)


def each_request_is_answered(
    owner: Any, name: str, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lack = Lack(getattr(owner, name))
    # There they are shown; pytest's fails the test.
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(owner, name, lack)
    with Gate() as gate, Mount(tree(waits=Waiting(gate)), None, transport) as mount:
        gate.open()
        lack.on = True
        # A few at once: some are not taken by a CPU's own thread.
        programs = [python(ASKS, mount, cpu=cpu) for cpu in CPUS]
        for program in programs:
            assert result(program) == "[]\n"
        assert lack.calls
        lack.on = False
        assert result(python(STAT, mount)) == "14\n"


def named(part: object) -> str:
    return part if isinstance(part, str) else getattr(part, "__name__", "")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Mount, "_receive"),
        (Mount, "_handle"),
        (Mount, "_handle_one"),
        (Channel, "read"),
        (Channel, "write"),
        (FilesystemSession, "handle"),
        (Runner, "run"),
        (PendingReply, "__init__"),
        (PendingReply, "reply"),
        (pending_reply, "_pack_out_header"),
        (asyncio.BaseEventLoop, "create_task"),
    ],
    ids=named,
)
def test_requests_from_dev_fuse(
    owner: Any, name: str, root: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    each_request_is_answered(owner, name, "no_io_uring", monkeypatch)


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Mount, "_receive"),
        (Mount, "_handle"),
        (Mount, "_handle_one"),
        (Runner, "run"),
        (PendingReply, "__init__"),
        (PendingReply, "reply"),
        (Channel, "wait"),
        (Rings, "serve"),
        (Rings, "receive"),
        (Rings, "serve_shared"),
        (SharedRing, "claim"),
        (SharedRing, "relieve"),
        (SharedRing, "_do"),
        (SharedRing, "_look"),
        (SharedRing, "_grow"),
        (SharedRing, "_commit"),
        (Entry, "take"),
        (Entry, "begin"),
        (Entry, "answer"),
        (Entry, "_put"),
        (Ring, "add"),
        (Ring, "next"),
    ],
    ids=named,
)
def test_requests_from_rings(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    each_request_is_answered(owner, name, "io_uring", monkeypatch)


def test_no_memory_for_the_largest_request(
    root: None, mounts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A program's request is smaller, and so it is served.
    lack = Lack(Channel.read, most=1 << 62, each=1)
    with Mount(tree(), None, "no_io_uring") as mount:
        monkeypatch.setattr(Channel, "read", lack)
        lack.on = True
        assert result(python(STAT, mount)) == "14\n"
        # Not even for this one: it is refused.
        none = Lack(memoryview, most=1, each=1)
        monkeypatch.setattr(reserve, "memoryview", none, raising=False)
        none.on = True
        code = "import os\ntry: os.stat('missing')\nexcept OSError as error: print(error.strerror)"
        assert result(python(code, mount)) == os.strerror(12) + "\n"


SERVER = """
import resource, sys
from pathlib import Path
from recuse import Directory, Filesystem, Mount, OpenFile, RegularFile

class File(OpenFile):
    direct = True
    def read(self, size, offset):
        return bytes(size)
    def write(self, data, offset):
        return len(data)

class Big(RegularFile):
    size = 1 << 30
    def open(self, request):
        return File()

files = {"big": Big(), **{f"file{index}": RegularFile(b"") for index in range(100)}}
eaten = []
with Mount(Filesystem(Directory(files)), sys.argv[1], sys.argv[2]) as mount:
    assert mount.uses_io_uring == (sys.argv[2] == "io_uring")
    print("mounted", flush=True)
    input()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), hard))
    size = 1 << 24
    while size > 1 << 17:
        try:
            eaten.append(bytearray(size))
        except MemoryError:
            size //= 2
    print("none left", flush=True)
    input()
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    eaten.clear()
    print("enough", flush=True)
    input()
"""
LARGE = """
import os, threading
errors = []
def use(index):
    for turn in range(20):
        for call in (
            lambda: os.stat(f"file{turn + 20 * index}"),
            lambda: os.pread(number, 1 << 20, 0),
            lambda: os.pwrite(number, data, 0),
        ):
            try:
                call()
            except OSError as error:
                errors.append(error.errno)
number = os.open("big", os.O_RDWR)
data = bytes(1 << 20)
threads = [threading.Thread(target=use, args=(index,)) for index in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*sorted(set(errors)))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("root")
def test_a_server_that_gets_no_more_memory(transport: str, directory: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, directory, transport],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # One heap for all threads, or each has room of its own.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    ) as server:
        try:
            assert server.stdin is not None
            assert server.stdout is not None

            def client() -> str:
                done = subprocess.run(
                    [sys.executable, "-I", "-c", LARGE],
                    cwd=directory,
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                    timeout=PATIENCE_S,
                )
                return done.stdout

            assert server.stdout.readline() == "mounted\n"
            print(file=server.stdin, flush=True)
            assert server.stdout.readline() == "none left\n"
            # EIO is for a method that has raised, if there was memory to call it at all.
            assert {str(errno.ENOMEM)} <= {*client().split()} <= {str(errno.EIO), str(errno.ENOMEM)}
            print(file=server.stdin, flush=True)
            assert server.stdout.readline() == "enough\n"
            assert client() == "\n"
        finally:
            _, errors = server.communicate("\n", timeout=PATIENCE_S)
        assert server.returncode == 0, errors
