"""What the close of a file of a filesystem does: FLUSH, with its error, and RELEASE once."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from recuse import Directory, Filesystem, OpenFile, OpenRequest, RegularFile
from recuse.sandbox import Sandbox

from ...patience import PATIENCE_S
from ..conftest import Compiled, client_in, python_argv, shell_in
from .as_linux import alike

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="close is trapped on x86-64 only"
)


class Log(RegularFile):
    """Its content says what happened to the other files."""

    mode = 0o444
    size = None  # every read asks

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.guard = threading.Condition()

    def note(self, what: str) -> None:
        with self.guard:
            self.happened.append(what)
            self.guard.notify_all()

    def read(self, size: int, offset: int) -> bytes:
        with self.guard:
            return " ".join(self.happened).encode()[offset : offset + size]


class Watched(RegularFile):
    """A file whose closes are noted, and fail if it says so."""

    mode = 0o666
    size = 0

    def __init__(self, log: Log) -> None:
        self.log = log

    def open(self, request: OpenRequest) -> OpenFile:
        return Open(self.log)

    def truncate(self, size: int) -> None:
        pass


class Open(OpenFile):
    direct = True
    failing = 0

    def __init__(self, log: Log) -> None:
        self.log = log

    def write(self, data: bytes, offset: int) -> int:
        if data.startswith(b"fail "):
            self.failing = getattr(errno, data[5:].decode())
        self.log.note(f"write:{len(data)}")
        return len(data)

    def flush(self) -> None:
        self.log.note("flush")
        if self.failing:
            raise OSError(self.failing, os.strerror(self.failing))

    def release(self) -> None:
        self.log.note("release")


def make() -> Filesystem:
    """A filesystem with two such files, and their log."""
    log = Log()
    return Filesystem(Directory({"log": log, "f": Watched(log), "g": Watched(log)}))


BEGIN = """
def opened(name="f", flags=os.O_RDWR): return os.open("mnt/" + name, flags)
def log(released=None):
    # Linux does not wait for RELEASE.
    while True:
        fd = os.open("mnt/log", os.O_RDONLY); text = os.read(fd, 9999).decode(); os.close(fd)
        if released is None or text.count("release") >= released: return text
"""

ERRORS = """
for name in ("EIO", "ENOSPC", "EDQUOT", "EINTR", "EAGAIN"):
    fd = opened(); os.write(fd, b"fail " + name.encode())
    other = os.dup(fd)
    print(name, call("close", fd), call("close", fd), call("close", other))
    print(opened() == fd, os.close(fd))
fd = opened(); os.write(fd, b"fail EIO"); os.dup2(0, fd); print(os.fstat(fd) == os.fstat(0))
fd = opened(); os.write(fd, b"fail EIO"); other = os.dup(fd); print(call("close_range", fd, fd, 0))
print(attempt(os.fstat, fd), call("close", other))
fd = opened(); os.write(fd, b"fail EIO"); pid = os.fork()
if not pid: os._exit(call("close", fd) == "EIO")
print(wait(pid), call("close", fd))
file = open("mnt/f", "w"); file.write("fail ENOSPC"); print(attempt(file.close))
"""


def test_an_error_of_flush_is_that_of_close() -> None:
    assert "ENOSPC ENOSPC EBADF ENOSPC" in alike(make, BEGIN + ERRORS)


FLUSHES = """
fd = opened(); os.close(fd); print(log(1))
fd = opened(); other = os.dup(fd); os.close(fd); print(log(1)); os.close(other); print(log(2))
fd = opened(); other = os.dup2(fd, 99); os.close(fd); os.dup2(0, 99); print(log(3)); os.close(99)
fd = opened(); os.dup2(fd, fd); os.close(fd); print(log(4))
fd = opened(); print(attempt(os.dup2, 777, fd), attempt(os.dup2, fd, 1 << 20)); os.close(fd)
print(log(5))
a, b = opened(), opened("g"); os.closerange(a, b + 1); print(log(7))
a = opened(); print(call("close_range", a, a, 4), call("close_range", a, a, 8))
print(call("close_range", a, 1, 0), log(7), call("close_range", a, a, 2)); print(log(8))
a = os.open("mnt/f", os.O_PATH); os.close(a); print(log(8))
fd = opened(); os.write(fd, b"abc"); os.close(fd); print(log(9))
r, w = os.pipe(); q, v = os.pipe()
fd = opened(); pid = os.fork()
if not pid: os.close(fd); os.write(v, b"1"); os.read(r, 1); os._exit(0)
os.read(q, 1); print(log(9)); os.close(fd); print(log(10)); os.write(w, b"1"); wait(pid)
pid = os.fork()
if not pid: fd = opened(); os.write(fd, b"12"); os._exit(0)
wait(pid); print(log(11).split()[-3:])
fd = opened(); os.write(fd, b"abc"); pid = os.fork()
if not pid: os.write(fd, b"1"); os._exit(0)
wait(pid); os.close(fd); print(log(12).split()[-2:])
"""


def test_each_close_flushes_and_the_last_one_releases() -> None:
    assert alike(make, BEGIN + FLUSHES)


SHELL = """
import subprocess
def sh(script):
    done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(done.returncode, done.stdout)
sh("echo hi >mnt/f"); print(log(1)); sh("echo -n fail EIO >mnt/f"); print(log(2))
sh("exec 3>mnt/f; echo hi >&3; exec 3>&-"); print(log(3))
sh("printf 'fail ENOSPC' >here; cp here mnt/f"); sh("cat here >mnt/f"); sh("dd if=here of=mnt/f")
print(log(6))
"""


def test_programs_see_the_error() -> None:
    output = alike(make, BEGIN + SHELL)
    assert output.count("No space left on device") == 3


LOCKS = """
lock = fcntl.LOCK_EX | fcntl.LOCK_NB
def other():
    sys.stdout.flush(); pid = os.fork()
    if not pid: print(attempt(fcntl.lockf, opened(), lock), end=" ", flush=True); os._exit(0)
    wait(pid)
a, b = opened(), opened()
fcntl.lockf(a, lock); other(); os.close(b); other()
fcntl.lockf(a, lock); b = os.dup(a); other(); os.close(b); other()
fcntl.lockf(a, lock); os.close(os.open("mnt/f", os.O_PATH)); other(); os.dup2(0, opened()); other()
fcntl.lockf(a, lock); os.close(opened("g")); other(); os.closerange(a, a + 1); other(); print()
"""


def test_any_close_of_a_file_ends_the_locks_of_the_process() -> None:
    assert alike(make, BEGIN + LOCKS) == "EAGAIN None EAGAIN None EAGAIN None EAGAIN None \n"


def test_a_process_without_a_tracer_learns_of_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor stays open then."""
    from recuse.sandbox.trap import inject  # noqa: PLC0415

    def refused(self: object) -> None:
        raise PermissionError(errno.EPERM, "no tracing")

    (tmp_path / "mnt").mkdir()
    with Sandbox(mounts={tmp_path / "mnt": make()}) as sandbox:
        monkeypatch.setattr(inject.Injection, "attach", refused)
        script = BEGIN + "fd = opened(); os.write(fd, b'fail EIO'); print(call('close', fd))\n"
        assert client_in(sandbox)(script, cwd=tmp_path) == "EIO\n"


class Slow(Filesystem):
    """A file whose flush waits."""

    def __init__(self) -> None:
        self.flushing = threading.Event()
        self.go_on = threading.Event()
        outer = self

        class File(OpenFile):
            def write(self, data: bytes, offset: int) -> int:
                return len(data)

            def flush(self) -> None:
                outer.flushing.set()
                assert outer.go_on.wait(PATIENCE_S)

        class Node(RegularFile):
            mode = 0o666
            size = 0

            def open(self, request: OpenRequest) -> OpenFile:
                return File()

            def truncate(self, size: int) -> None:
                pass

        super().__init__(Directory({"f": Node()}))


def test_a_close_waits_for_its_flush_and_can_be_killed(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    slow = Slow()
    with Sandbox(mounts={tmp_path / "mnt": slow}) as sandbox:
        script = "fd = os.open('mnt/f', os.O_RDWR)\nos.close(fd); print('closed')\n"
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "cwd": tmp_path}
        with sandbox.popen(python_argv(script), **pipes) as program:
            assert slow.flushing.wait(PATIENCE_S)
            program.kill()
            assert program.wait(PATIENCE_S) == -9
            slow.go_on.set()


def test_a_signal_before_a_close_is_received_leaves_nothing_open(
    sandbox: Sandbox, compiled: Compiled, here: Path
) -> None:
    """Its handler has no SA_RESTART, and close never fails with EINTR."""
    script = """
import resource
hits = [0]
def hit(*_): hits[0] += 1
signal.signal(signal.SIGALRM, hit); signal.siginterrupt(signal.SIGALRM, True)
open("mnt/f", "w")
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
left = set()
while hits[0] < 300:
    for path in ("mnt/f", "/dev/null"):
        fd = os.open(path, os.O_RDWR); left.add(fd); other = os.dup2(fd, 50)
        result = call("close", fd), call("close", other)
        assert result == (0, 0), result
signal.setitimer(signal.ITIMER_REAL, 0)
print(len(left), sorted(os.listdir("/proc/self/fd"))[-1] < "50")
"""
    assert client_in(sandbox)(script, cwd=here).endswith(" True\n")


def test_many_numbers_are_closed_without_being_looked_at(sandbox: Sandbox, here: Path) -> None:
    """As old daemons do; what is open there is flushed when it is the last one."""
    script = (
        "import resource\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))\n"
        "fd = os.open('mnt/f', os.O_RDWR | os.O_CREAT); os.write(fd, b'x'); high = 5000\n"
        "os.dup2(fd, high); os.close(fd); os.close(high); print(os.stat('mnt/f').st_size)\n"
    )
    assert client_in(sandbox)(script, cwd=here) == "1\n"


def test_ordinary_files_are_closed_as_ever(sandbox: Sandbox, here: Path) -> None:
    script = "exec 3<beside 4<&3 3<&-; read x <&4; echo $x; exec 4<&-; read y <&4; echo $?"
    assert shell_in(sandbox)(script, cwd=here).startswith("native\n")
