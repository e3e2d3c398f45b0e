"""What goes wrong on a mount: servers that raise, hang, die or say nonsense, and full disks."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recuse import Directory, Entry, Filesystem, Mount, Node, RegularFile, current_request

from .conftest import EXAMPLES, PATIENCE_S, Serve, abort, is_mounted


class Stuck(RegularFile):
    """A file whose methods wait until the test ends."""

    size = None

    def __init__(self) -> None:
        super().__init__()
        self.came = threading.Semaphore(0)
        self.free = threading.Event()
        self.released = threading.Event()

    def read(self, size: int, offset: int) -> bytes:
        self.came.release()
        request = current_request()
        while not self.free.wait(0.01) and not request.interrupted:
            pass
        return b""

    def forgotten(self) -> None:
        self.released.set()


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    file = Stuck()
    yield file
    file.free.set()


def program(code: str, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "import os, sys\n" + code],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


READ = "try: open('stuck').read()\nexcept OSError as error: print(error.errno)\nelse: print(0)"


def fails(call: Callable[..., Any], *arguments: Any) -> str:
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "succeeds"


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_program_that_is_killed_while_it_waits(
    stuck: Stuck, directory: Path, number: signal.Signals, transport: str
) -> None:
    """The method is interrupted, the program ends, and others are served on."""
    fs = Filesystem(Directory({"stuck": stuck, "hello": RegularFile(b"text")}))
    with Mount(fs, directory, transport):
        reader = program(READ, directory)
        assert stuck.came.acquire(timeout=PATIENCE_S)
        assert (directory / "hello").read_bytes() == b"text"
        reader.send_signal(number)
        reader.communicate(timeout=PATIENCE_S)
        assert reader.returncode
        assert (directory / "hello").read_bytes() == b"text"
        stuck.free.set()


@pytest.mark.usefixtures("root")
def test_aborted(stuck: Stuck, directory: Path, transport: str) -> None:
    """Whoever waits gets an error, and the server ends."""
    ended = threading.Event()
    fs = Filesystem(Directory({"stuck": stuck}))
    with Mount(fs, directory, transport, ended=ended.set):
        readers = [program(READ, directory) for _ in range(3)]
        for _ in readers:
            assert stuck.came.acquire(timeout=PATIENCE_S)
        abort(directory)
        for reader in readers:
            printed, _ = reader.communicate(timeout=PATIENCE_S)
            assert int(printed) in {errno.ECONNABORTED, errno.ENOTCONN}
        stuck.free.set()
        assert ended.wait(PATIENCE_S)
        assert fails(os.stat, directory / "not known yet") == "ENOTCONN"
    assert not is_mounted(directory)


HOLDS = """
import mmap
file = os.open("file", os.O_RDWR)
memory = mmap.mmap(file, 0)
print(memory[:4], flush=True)
input()
def fails(call, *arguments):
    try: call(*arguments)
    except OSError as error: return error.errno
print(fails(os.pwrite, file, b"x", 0), fails(os.stat, "new"))
"""


def test_a_server_that_dies_with_files_open(serve: Serve, directory: Path, transport: str) -> None:
    """Calls on the files fail, and nobody waits."""
    server = serve(f"{EXAMPLES}/memoryfs.py", str(directory), "-o", transport)
    assert server.line() == str(directory)
    (directory / "file").write_bytes(b"text" * 1000)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import os\n" + HOLDS],
        cwd=directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "b'text'\n"
    server.end(signal.SIGKILL)
    printed, _ = holder.communicate("\n", timeout=PATIENCE_S)
    assert printed == f"{errno.ENOTCONN} {errno.ENOTCONN}\n"
    while is_mounted(directory):  # until the process that watches the server has unmounted it
        pass


class Listed(Directory):
    """A directory that lists what it is told to."""

    def __init__(self, name: str, node: Node | None = None, kind: int = stat.S_IFREG) -> None:
        super().__init__({"good": RegularFile(b"text")})
        self.listed: Any = Entry(name, kind) if node is None else (name, node)

    def entries(self) -> Iterator[Any]:
        yield "good", self.children["good"]
        yield self.listed


@pytest.mark.usefixtures("mounts")
def test_impossible_names(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A listing with one fails, or does without it: no program gets it, and the rest works."""
    names = ("a/b", "/", "", "nul\0", ".", "..", "x" * 256, "y" * 5000, "z" * 70_000)
    trees: dict[str, Node] = {}
    for number, name in enumerate(names):
        trees[f"{number} entry"] = Listed(name)
        trees[f"{number} node"] = Listed(name, RegularFile(b"x"))
    with Mount(Filesystem(Directory(trees)), directory):
        for top in trees:
            number = int(top.partition(" ")[0])
            for _ in range(3):
                if number < 4:
                    assert fails(os.listdir, directory / top) == "EIO"
                else:
                    assert os.listdir(directory / top) == ["good"]
            assert (directory / top / "good").read_bytes() == b"text"


class Odd(RegularFile):
    """A file with attributes that cannot be."""

    def __init__(self, **wrong: Any) -> None:
        super().__init__(b"text")
        for name, value in wrong.items():
            setattr(self, name, value)


WRONG: tuple[dict[str, Any], ...] = (
    {"size": -1},
    {"size": 1 << 63},
    {"size": 1 << 64},
    {"size": "large"},
    {"mode": None},
    {"mode": -1},
    {"mode": 1 << 40},
    {"kind": 0},
    {"kind": stat.S_IFMT(0o170000)},
    {"kind": 0o030000},
    {"uid": -1},
    {"gid": 1 << 32},
    {"nlink": -1},
    {"mtime_ns": "now"},
    {"blocks": -1},
)


def test_impossible_attributes(
    directory: Path, transport: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The file cannot be used, or what does not fit is left out; its directory can."""
    trees = {
        str(number): Directory({"odd": Odd(**wrong), "good": RegularFile(b"text")})
        for number, wrong in enumerate(WRONG)
    }
    with Mount(Filesystem(Directory(trees)), directory, transport):
        for top, wrong in zip(trees, WRONG, strict=True):
            for _ in range(2):
                found = fails(os.stat, directory / top / "odd")
                assert found == "EIO" or ("mode" in wrong and found == "succeeds"), wrong
                assert fails(os.listdir, directory / top) in {"EIO", "succeeds"}
                assert (directory / top / "good").read_bytes() == b"text"


FULL = """
set -o pipefail
cd "$1"
dd if=/dev/zero of=big bs=64k 2>&1 | sed -n 's/.*: //p'; stat -c %s big
cp big copy 2>&1 | sed -n 's/.*: //p'; rm -f copy
echo small >small 2>&1 | sed -n 's/.*: //p'; cat small; mkdir d 2>/dev/null && echo made
truncate -s 100000 big; head -c 50000 /dev/zero | tr '\\0' x >more; sha256sum more
cmp -n 100000 big /dev/zero; rm big more
echo again >small; cat small; df --output=size . | tail -1
ls
"""


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("kind", ["mirror", "loopback"])
def test_a_full_disk_below(
    serve: Serve, directory: Path, tmp_path: Path, kind: str, transport: str
) -> None:
    """The program that writes is told, as on that disk; room that is made can be used."""
    disks = [tmp_path / "disk", tmp_path / "other"]
    for disk in disks:
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], check=True)
    try:
        server = serve(f"{EXAMPLES}/{kind}fs.py,source={disks[0]}", str(directory), "-o", transport)
        assert server.line() == str(directory)
        here, there = (
            subprocess.run(
                ["bash", "-c", FULL, "bash", top],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            for top in (directory, disks[1])
        )
        assert here.stdout == there.stdout
        assert os.strerror(errno.ENOSPC) in here.stdout
        assert server.end(signal.SIGTERM) == (0, "")
    finally:
        subprocess.run(["umount", "-l", *disks], check=True, timeout=PATIENCE_S)


@pytest.mark.usefixtures("mounts")
def test_two_filesystems_in_one_process(tmp_path: Path, transport: str) -> None:
    tops = [tmp_path / "one", tmp_path / "other"]
    for top in tops:
        top.mkdir()
    trees = [
        Filesystem(Directory({"name": RegularFile(top.name.encode()), "d": Directory({})}))
        for top in tops
    ]
    with Mount(trees[0], tops[0], transport):
        with Mount(trees[1], tops[1], transport):
            readers = [
                program(f"for _ in range(500): assert open('name').read() == {top.name!r}", top)
                for top in tops * 2
            ]
            for reader in readers:
                assert reader.communicate(timeout=PATIENCE_S) == ("", "")
            assert os.stat(tops[0]).st_dev != os.stat(tops[1]).st_dev
            assert fails(os.rename, tops[0] / "name", tops[1] / "d/name") == "EXDEV"
            assert fails(os.link, tops[0] / "name", tops[1] / "d/name") == "EXDEV"
        assert (tops[0] / "name").read_bytes() == b"one"
        assert not is_mounted(tops[1])


MANY = """
from recuse import Directory, Filesystem, RegularFile

class Number(RegularFile):
    alive = made = 0
    def __init__(self, content=b""):
        super().__init__(content)
        Number.alive += 1
        Number.made += 1
    def __del__(self):
        Number.alive -= 1

class Count(RegularFile):
    size = None
    def __init__(self, name):
        super().__init__()
        self.name = name
    def read(self, size, offset):
        return b"%d" % getattr(Number, self.name) if not offset else b""

class Numbers(Directory):
    def lookup(self, name):
        return Number(name.encode()) if name.isdecimal() else COUNTS[name]

COUNTS = {name: Count(name) for name in ("alive", "made")}
fs = Filesystem(Numbers())
"""


@pytest.mark.slow
@pytest.mark.usefixtures("root")
def test_nodes_are_forgotten(serve: Serve, directory: Path, tmp_path: Path, transport: str) -> None:
    """Under memory pressure the kernel forgets nodes, and so does the server."""
    spec = tmp_path / "many.py"
    spec.write_text(MANY, encoding="ascii")
    server = serve(str(spec), str(directory), "-o", transport)
    assert server.line() == str(directory)
    status = Path(f"/proc/{server.process.pid}/statm")
    pages = []
    for turn in range(3):
        for number in range(turn * 15_000, turn * 15_000 + 15_000):
            os.stat(directory / str(number))
        Path("/proc/sys/vm/drop_caches").write_text("2", encoding="ascii")
        while int((directory / "alive").read_bytes()) > 100:
            pass  # they come in batches, between other requests
        pages.append(int(status.read_text(encoding="ascii").split()[1]))
    assert int((directory / "made").read_bytes()) == 45_000
    # 30,000 nodes more would be twice that. (How many are there at once, varies.)
    assert max(pages) - pages[0] < 2000
    assert server.end(signal.SIGTERM) == (0, "")
