"""Servers that are killed, have children, or do not answer: nobody waits for them for ever."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from recuse import Directory, Filesystem, Mount, RegularFile

from .conftest import EXAMPLES, PATIENCE_S, ROOT, Serve, Somebody, is_mounted

Command = Callable[..., subprocess.CompletedProcess[str]]

FORKING = """
import ctypes, os, signal
from recuse import Directory, Filesystem, RegularFile
class Fork(RegularFile):
    size = None
    def read(self, size, offset):
        if offset:
            return b""
        child = {fork}
        while child == 0:
            signal.pause()
        return str(child).encode()
class Waiting(RegularFile):
    size = None
    def read(self, size, offset):
        {waits}
        while True:
            signal.pause()
filesystem = Filesystem(Directory({{"fork": Fork(), "wait": Waiting()}}))
"""


def until(condition: Callable[[], object]) -> None:
    """Wait for another process."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        os.sched_yield()


@contextmanager
def ends(process: int) -> Iterator[None]:
    """Kill it at the end, whoever's child it is."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


@contextmanager
def stopped(process: int) -> Iterator[None]:
    """Have it answer nothing, for a while."""
    os.kill(process, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, process, os.WSTOPPED)
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize(
    "fork", ["os.fork()", pytest.param("ctypes.PyDLL(None).fork()", id="fork without Python")]
)
def test_a_child_of_the_server_keeps_nobody_waiting(
    serve: Serve, directory: Path, tmp_path: Path, fork: str, number: int
) -> None:
    if os.geteuid() and "ctypes" in fork:
        pytest.skip("only root can end a connection that somebody has open")
    path = tmp_path / "fs.py"
    path.write_text(FORKING.format(fork=fork, waits="print('waits', flush=True)"))
    server = serve(str(path), str(directory))
    assert server.line() == str(directory)
    with ends(int((directory / "fork").read_text())):
        program = subprocess.Popen(["cat", directory / "wait"], stderr=subprocess.PIPE, text=True)
        assert server.line() == "waits"
        server.process.send_signal(number)
        server.process.wait(PATIENCE_S)
        _, errors = program.communicate(timeout=PATIENCE_S)
        assert re.search("not connected|connection abort", errors)
        until(lambda: not is_mounted(directory))


TERMINATED = """
import os, signal
from recuse import Directory, Filesystem, RegularFile
class Terminated(RegularFile):
    size = None
    def read(self, size, offset):
        if offset:
            return b''
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        return b'%d' % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
filesystem = Filesystem(Directory({'file': Terminated()}))
"""


def test_a_signal_for_a_child_is_not_the_servers(
    serve: Serve, directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "fs.py"
    path.write_text(TERMINATED)
    server = serve(str(path), str(directory))
    assert server.line()
    for _ in range(2):
        assert (directory / "file").read_bytes() == b"-15"
    assert server.end(signal.SIGINT) == (0, "")


def test_a_signal_for_a_child_is_not_the_one_programs(
    command: Command, directory: Path, tmp_path: Path
) -> None:
    path = tmp_path / "fs.py"
    path.write_text(TERMINATED)
    script = f"cat {directory}/file {directory}/file"
    done = command("mount", "--private", str(path), str(directory), "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "-15-15", "")


@pytest.mark.usefixtures("mounts")
def test_a_child_of_an_ordinary_users_server_keeps_nobody_waiting(
    somebody: Somebody, needs: Callable[..., Path]
) -> None:
    needs("fusermount3", "fuse3")
    path, directory = somebody.home / "fs.py", somebody.directory
    places = somebody.home / "places"
    places.mkdir()
    places.chmod(0o777)
    path.write_text(FORKING.format(fork="os.fork()", waits=f"os.mkdir('{places}/waits')"))
    path.chmod(0o644)
    assert somebody.recuse("mount", "--background", str(path), str(directory)).returncode == 0
    child = int(somebody.run("cat", str(directory / "fork")).stdout)
    with ThreadPoolExecutor(1) as pool, ends(child):
        status = Path(f"/proc/{child}/status").read_text()
        (server,) = re.findall(r"^PPid:\s(\d+)$", status, re.MULTILINE)
        program = pool.submit(somebody.run, "cat", str(directory / "wait"))
        until((places / "waits").exists)
        os.kill(int(server), signal.SIGKILL)
        assert re.search("not connected|connection abort", program.result(PATIENCE_S).stderr)
        until(lambda: not is_mounted(directory))


@pytest.mark.usefixtures("mounts")
def test_a_child_does_not_unmount(directory: Path) -> None:
    filesystem = Filesystem(Directory({"file": RegularFile(b"text")}))
    with Mount(filesystem, directory) as mount:
        child = os.fork()
        if child == 0:
            try:
                mount.close()
            finally:
                os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        assert (directory / "file").read_bytes() == b"text"
    assert not is_mounted(directory)


@pytest.mark.parametrize("options", [[], ["--lazy"]])
@pytest.mark.parametrize("spelling", ["mount", "mount/", "link", "./link/"])
def test_to_unmount_asks_nobody(
    serve: Serve, command: Command, directory: Path, options: list[str], spelling: str
) -> None:
    (directory.parent / "link").symlink_to(directory)
    server = serve(f"{EXAMPLES}/hellofs.py,cache_s=0", str(directory))
    assert server.line()
    with stopped(server.process.pid):
        done = command("umount", *options, spelling, cwd=directory.parent)
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
        assert not is_mounted(directory)
    assert server.end() == (0, "")


def test_to_mount_asks_nobody(serve: Serve, command: Command, directory: Path) -> None:
    spec = f"{EXAMPLES}/hellofs.py,cache_s=0"
    server = serve(spec, str(directory))
    assert server.line()
    with stopped(server.process.pid):
        done = command("mount", spec, str(directory))
        assert f"{directory}: a FUSE filesystem is mounted there" in done.stderr
        other = serve(f"{EXAMPLES}/memoryfs.py", str(directory), "-o", "nonempty")
        assert other.line() == str(directory)
        assert os.listdir(directory) == []
        assert other.end(signal.SIGTERM) == (0, "")
    assert server.end(signal.SIGTERM) == (0, "")


def test_the_guides_mount_stands_alone(mounts: None) -> None:
    text = (ROOT / "docs/mounting.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Mount it from Python\n\n```python\n(.*?)```", text, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", block], check=True, capture_output=True, timeout=PATIENCE_S
    )
    assert done.stdout == b"Hello, world!\n"
