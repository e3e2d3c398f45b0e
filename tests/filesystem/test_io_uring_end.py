"""FUSE over io_uring: how it ends, whoever ends it, and whatever waits then."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recuse import Mount, RegularFile
from recuse.channel import mount as mount_module
from recuse.channel.unmounting import abort
from recuse.server import loop

from .conftest import PATIENCE_S, is_mounted
from .programs import CPUS, READERS, STAT, Blocking, Gate, Waiting, python, result, tree


def wait_for_end_of(mount: Mount) -> None:
    """Wait until threads that were in methods have ended, too, and closed their rings."""
    rings = mount._rings
    assert rings is not None
    rings.join()
    for ring in rings._cpus:
        assert ring._thread is not None
        ring._thread.join(PATIENCE_S)
        assert not ring._thread.is_alive()


class Stubborn(Blocking):
    """A file whose read, a coroutine, cannot be cancelled."""

    async def read(self, size: int, offset: int) -> bytes:
        waits = asyncio.ensure_future(self.gate.pass_later())
        while not waits.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(waits)
        return b""


@pytest.mark.usefixtures("detached")
def test_the_end_while_a_coroutine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STOP_WAIT_S", 0.1)
    with Gate() as gate:
        with Mount(tree(waits=Stubborn(gate)), None, "io_uring") as mount:
            reader = python(READERS, mount, "waits", "1", cpu=CPUS[0])
            gate.wait_for(1)
        reader.communicate(timeout=PATIENCE_S)
        rings = mount._rings
        assert rings is not None
        for ring in rings._cpus:
            assert ring._thread is not None
            ring._thread.join(PATIENCE_S)
            assert not ring._thread.is_alive()


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("kind", [Blocking, Waiting])
def test_the_end_while_methods_wait(kind: type[Blocking]) -> None:
    with Gate() as gate:
        mount = Mount(tree(waits=kind(gate)), None, "io_uring")
        with mount:
            readers = python(READERS, mount, "waits", "5", cpu=CPUS[0])
            gate.wait_for(5)
        readers.communicate(timeout=PATIENCE_S)
        assert readers.returncode == 0  # its threads have failed
    wait_for_end_of(mount)


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("can_abort", [True, False])
@pytest.mark.parametrize("kind", [RegularFile, Blocking, Waiting])
def test_a_file_that_stays_open(
    can_abort: bool, kind: type[RegularFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_abort:  # as for an ordinary user where no fusectl is mounted
        monkeypatch.setattr(mount_module, "abort", lambda connection: None)
    with Gate() as gate:
        file = RegularFile(b"text") if kind is RegularFile else kind(gate)  # type: ignore[arg-type]
        mount = Mount(tree(file=file), None, "io_uring")
        with mount:
            number = os.open("file", os.O_RDONLY, dir_fd=mount.fileno())
            if kind is not RegularFile:
                reader = python(READERS, mount, "file", "1", cpu=CPUS[0])
                gate.wait_for(1)
        for _ in range(3):
            for cpu in CPUS:
                os.sched_setaffinity(0, {cpu})
                with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                    os.read(number, 1)
        os.sched_setaffinity(0, CPUS)
        os.close(number)
        gate.open()
        if kind is not RegularFile:
            reader.communicate(timeout=PATIENCE_S)
        # Then the threads end, and what they have open is closed.
        wait_for_end_of(mount)


@pytest.mark.usefixtures("rings", "root")
def test_aborted(directory: Path) -> None:
    ended = threading.Event()
    with Gate() as gate:
        mount = Mount(tree(waits=Blocking(gate)), directory, "io_uring", ended=ended.set)
        with mount:
            readers = python(READERS, mount, "waits", "3", cpu=CPUS[0])
            gate.wait_for(3)
            abort(os.minor(os.stat(directory).st_dev))
            readers.communicate(timeout=PATIENCE_S)
            assert ended.wait(PATIENCE_S)
            with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
                os.stat(directory / "not known yet")
    wait_for_end_of(mount)
    assert not is_mounted(directory)


@pytest.mark.usefixtures("rings", "root")
def test_unmounted_by_somebody_else(directory: Path) -> None:
    ended = threading.Event()
    with Mount(tree(), directory, "io_uring", ended=ended.set) as mount:
        assert result(python(STAT, mount)) == "14\n"
        subprocess.run(["umount", directory], check=True, timeout=PATIENCE_S)
        assert ended.wait(PATIENCE_S)
        assert mount.join(PATIENCE_S)


@pytest.mark.usefixtures("rings", "root")
def test_a_busy_mount_that_is_closed(directory: Path) -> None:
    with Gate() as gate:
        mount = Mount(tree(waits=Blocking(gate)), directory, "io_uring")
        with mount:
            inside = python("import os\nprint(1, flush=True)\ninput()\nos.stat('hello')", mount)
            reader = python(READERS, mount, "waits", "1")
            gate.wait_for(1)
        # Nobody serves it any more, and nothing hangs.
        reader.communicate(timeout=PATIENCE_S)
        _, errors = inside.communicate("\n", timeout=PATIENCE_S)
        assert os.strerror(errno.ENOTCONN) in errors or "EOF" in errors
    wait_for_end_of(mount)


BUSY = """
import asyncio, os, sys, threading
from recuse import Directory, Filesystem, Mount, RegularFile

class Blocking(RegularFile):
    size = None
    def read(self, size, offset):
        os.write(1, b"reads\\n")
        threading.Event().wait()

class Waiting(RegularFile):
    size = None
    async def read(self, size, offset):
        os.write(1, b"reads\\n")
        await asyncio.Event().wait()

tree = Directory({"hello": RegularFile(b"Hello, world!\\n"), "a": Blocking(), "b": Waiting()})
mount = Mount(Filesystem(tree), sys.argv[1], "io_uring")
mount.start()
assert mount.uses_io_uring
print("mounted", flush=True)
input()
"""


@pytest.mark.usefixtures("rings", "root")
@pytest.mark.parametrize("end", ["kill", "exit"])
def test_a_server_that_ends_without_closing(directory: Path, end: str) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", BUSY, directory],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdin is not None
    assert server.stdout.readline() == "mounted\n"
    readers = [subprocess.Popen(["cat", directory / name]) for name in ("a", "b")]
    for _ in readers:
        assert server.stdout.readline() == "reads\n"
    os.stat(directory / "hello")
    if end == "kill":
        server.kill()
    else:
        server.stdin.close()
    server.stdout.close()
    server.wait(PATIENCE_S)
    for reader in readers:
        assert reader.wait(PATIENCE_S) == 1
    # The process that watches over it unmounts it. Until then all calls fail.
    with open("/proc/self/mountinfo", "rb") as mounts:
        changed = select.poll()
        changed.register(mounts, select.POLLPRI)
        while is_mounted(directory):
            with contextlib.suppress(OSError):
                os.stat(directory)
            assert changed.poll(1000 * PATIENCE_S)
            mounts.seek(0)
            mounts.read()
    server.stdin.close()
