"""`recuse serve` of filesystems, and `recuse run -m DIR=unix:PATH`: real processes and programs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse.cli.main import main

RECUSE = [sys.executable, "-m", "recuse.cli.main"]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MEMORY = str(EXAMPLES / "memoryfs.py")
PATIENCE_S = 60

FILESYSTEMS = """
import os, threading, recuse
class Text(recuse.RegularFile):
    def open(self, request):
        return OpenText(self)
    def read(self, size, offset):
        if self.children_wait:
            print("waiting", flush=True); threading.Event().wait()
        return super().read(size, offset)
    children_wait = False
class Slow(Text):
    children_wait = True
class OpenText(recuse.OpenFile):
    def __init__(self, node):
        self.node = node
    def read(self, size, offset):
        return self.node.read(size, offset)
    def release(self):
        print("released", flush=True)
class Texts(recuse.Filesystem):
    name = "texts"
    read_only = True
    def __init__(self):
        super().__init__(recuse.Directory({"text": Text(b"some text\\n"), "slow": Slow(b"x")}))
    def close(self):
        print("closed", flush=True)
class Outer(recuse.Filesystem):
    root = recuse.Directory({"in": recuse.Directory()})
class Numbers(recuse.Inodes):
    name = "numbers"
    def init(self): print("init", flush=True)
    async def destroy(self): print("destroyed", flush=True)
    def getattr(self, ino, fh): return recuse.Attributes(mode=0o40755)
class Echo(recuse.Device):
    name = "echo"
"""

Serve = Callable[..., "Server"]


class Server:
    """A `recuse serve --listen socket` that has come up."""

    def __init__(self, *args: str) -> None:
        self.process = subprocess.Popen(
            [*RECUSE, "serve", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        while not self.lines or not self.lines[-1].startswith("In another"):
            self.lines.append(self.line())

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        return line

    def end(self, number: int = signal.SIGTERM) -> tuple[str, str]:
        """Send a signal; return what was printed since, on both streams."""
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=PATIENCE_S)
        return output, errors


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory with filesystems, and with two empty ones."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    Path("texts.py").write_text(FILESYSTEMS, encoding="utf-8")
    Path("mnt").mkdir()
    Path("other").mkdir()
    Path("run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers."""
    servers: list[Server] = []

    def start(*args: str) -> Server:
        servers.append(Server(*args))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()


def run(*args: str) -> tuple[int, str, str]:
    """Run `recuse run` in a process of its own; return its status, output and errors."""
    done = subprocess.run(
        [*RECUSE, "run", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    return done.returncode, done.stdout, done.stderr


def shell(script: str, *mounts: str) -> str:
    """What a script prints in a sandbox with mounts, or with that of ``socket``."""
    options = [part for mount in mounts or ("mnt=unix:socket",) for part in ("-m", mount)]
    status, output, errors = run(*options, "--", "sh", "-c", script)
    assert (status, errors) == (0, "")
    return output


def test_one_sandbox_after_another(serve: Serve) -> None:
    serve("--listen", "socket", MEMORY)
    assert shell("mkdir mnt/deep; seq 100000 >mnt/deep/file; ls mnt") == "deep\n"
    assert shell("cksum <mnt/deep/file") == shell("seq 100000 | cksum")
    assert list(Path("mnt").iterdir()) == []


def test_what_is_printed_works_as_it_is(serve: Serve) -> None:
    server = serve(MEMORY, str(EXAMPLES / "echo.py"))
    hint = server.lines[-1].removeprefix("In another terminal: recuse run ")
    options = hint.removesuffix(" -- sh\n").replace("DIR=", "mnt=").split()
    script = "echo hi >mnt/a; cat mnt/a >/dev/echo; cat /dev/echo"
    assert run(*options, "--", "sh", "-c", script) == (0, "hi\n", "")


def test_two_sandboxes_at_once(serve: Serve) -> None:
    serve("--listen", "socket", MEMORY)
    first = subprocess.Popen(
        [*RECUSE, "run", "-m", "mnt=unix:socket", "--", "sh", "-c",
         "echo one >mnt/a; echo ready; read x; cat mnt/b; echo more >>mnt/b"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    assert shell("cat mnt/a; echo two >mnt/b") == "one\n"
    assert first.communicate("\n", timeout=PATIENCE_S)[0] == "two\n"
    assert shell("cat mnt/b") == "two\nmore\n"


def test_two_mounts_one_of_them_served_elsewhere(serve: Serve) -> None:
    serve("--listen", "socket", MEMORY)
    script = "echo hi >mnt/a; cp mnt/a other/b; mv other/b mnt/c; cat mnt/c; ls other"
    assert shell(script, "mnt=unix:socket", f"other={MEMORY}") == "hi\n"
    assert shell("cat mnt/c") == "hi\n"


def test_its_server_may_be_in_another_sandbox(serve: Serve) -> None:
    """So it needs nothing of the machine: not even the server is outside."""
    server = subprocess.Popen(
        [*RECUSE, "run", "-m", f"other={MEMORY}", "--",
         *RECUSE, "serve", "--listen", "socket", MEMORY],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "memory: socket\n"
        assert shell("echo hi >mnt/a; cat mnt/a") == "hi\n"
    finally:
        server.terminate()
        server.communicate(timeout=PATIENCE_S)


def test_how_it_is_mounted(serve: Serve) -> None:
    serve("--listen", "socket", "texts.py:Texts")
    output = shell("grep unix: /proc/mounts; cat mnt/text; touch mnt/new 2>&1; stat -fc %T mnt")
    mount, *rest = output.splitlines()
    assert mount.startswith(f"unix:socket {Path('mnt').resolve()} fuse.texts ro,nosuid,nodev,")
    assert rest == [
        "some text",
        "touch: cannot touch 'mnt/new': Read-only file system",
        "fuseblk",
    ]


def test_the_same_without_a_server() -> None:
    output = shell("grep fuse.texts /proc/mounts; touch mnt/text 2>&1; :", "mnt=texts.py:Texts")
    assert " ro,nosuid,nodev," in output
    assert output.endswith("touch: cannot touch 'mnt/text': Read-only file system\nclosed\n")


def test_the_filesystem_is_closed_once(serve: Serve) -> None:
    server = serve("--listen", "socket", "texts.py:Texts")
    for _ in range(2):
        assert shell("cat mnt/text") == "some text\n"
        assert server.line() == "released\n"
    assert server.end() == ("closed\n", "")


def test_inodes_begin_and_end_once(serve: Serve) -> None:
    server = serve("texts.py:Numbers")
    assert server.lines[0] == "init\n"
    socket = server.lines[1].split(": ")[1].strip()
    for _ in range(2):
        assert shell("stat -c %a mnt", f"mnt=unix:{socket}") == "755\n"
    assert server.end() == ("destroyed\n", "")


AGAIN = """
import errno, os, sys
def attempt(function, *args):
    try:
        return function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
old = os.open("mnt/a", os.O_RDWR | os.O_CREAT); directory = os.open("mnt", os.O_RDONLY)
os.write(old, b"first")
print("open", flush=True)
sys.stdin.readline()
print(attempt(os.pread, old, 9, 0), attempt(os.stat, "mnt/a"), attempt(os.listdir, "mnt"))
print("told", flush=True)
sys.stdin.readline()
while attempt(os.listdir, "mnt") == "ENOTCONN":
    pass
with open("mnt/b", "w") as file: file.write("second")
print(os.listdir("mnt"), attempt(os.pread, old, 9, 0), attempt(os.stat, "a", ), end=" ")
print(open("/proc/mounts").read().count("unix:socket"))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_starts_again(serve: Serve, number: int) -> None:
    server = serve("--listen", "socket", MEMORY)
    program = subprocess.Popen(
        [*RECUSE, "run", "-m", "mnt=unix:socket", "--", sys.executable, "-c", AGAIN],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdout is not None
    assert program.stdin is not None
    assert program.stdout.readline() == "open\n"
    server.end(number)
    program.stdin.write("\n")
    program.stdin.flush()
    # What is asked before the end is noticed fails with ECONNABORTED, as on Linux.
    assert set(program.stdout.readline().split()) <= {"ENOTCONN", "ECONNABORTED"}
    assert program.stdout.readline() == "told\n"
    serve("--listen", "socket", MEMORY)
    output, errors = program.communicate("\n", timeout=PATIENCE_S)
    assert output == "['b'] ENOTCONN ENOENT 1\n"
    assert errors == "recuse: socket: its server has gone; the filesystem comes back when it does\n"


def test_it_comes_back_inside_another_filesystem(serve: Serve) -> None:
    server = serve("--listen", "socket", MEMORY)
    script = (
        "echo 1 >mnt/in/a; echo ready; read x; echo $(ls mnt/in 2>&1)\n"
        "echo told; read x; until ls mnt/in >/dev/null 2>&1; do :; done\n"
        "echo 2 >mnt/in/b; ls mnt/in; cat mnt/in/b; grep -c unix: /proc/mounts"
    )
    program = subprocess.Popen(
        [*RECUSE, "run", "-m", "mnt=texts.py:Outer", "-m", "mnt/in=unix:socket", "--",
         "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert program.stdin is not None
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    server.end(signal.SIGKILL)
    program.stdin.write("\n")
    program.stdin.flush()
    assert "mnt/in" in program.stdout.readline()
    assert program.stdout.readline() == "told\n"
    serve("--listen", "socket", MEMORY)
    assert program.communicate("\n", timeout=PATIENCE_S)[0] == "b\n2\n1\n"


def test_the_server_ends_in_the_middle_of_a_call(serve: Serve) -> None:
    server = serve("--listen", "socket", "texts.py:Texts")
    program = subprocess.Popen(
        [*RECUSE, "run", "-m", "mnt=unix:socket", "--", "cat", "mnt/slow"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.line() == "waiting\n"
    server.process.kill()
    output, errors = program.communicate(timeout=PATIENCE_S)
    assert (program.returncode, output) == (1, "")
    assert "cat: mnt/slow: Software caused connection abort\n" in errors


def test_what_is_unmounted_is_left(serve: Serve) -> None:
    server = serve("--listen", "socket", "texts.py:Texts", "--trace")
    assert shell("umount mnt && ls mnt && grep -c unix: /proc/mounts; :") == "0\n"
    _, trace = server.end()
    assert trace.count("joined by") == 1


def test_requests_are_traced_at_both_ends(serve: Serve, tmp_path: Path) -> None:
    server = serve("--listen", "socket", "--trace=theirs", "--trace-format", "jsonl", MEMORY)
    tracing = ["--trace=ours", "--trace-format", "jsonl"]
    assert run(*tracing, "-m", "mnt=unix:socket", "mkdir", "mnt/made")[0] == 0
    server.end()
    for trace, name in (("ours", f"{tmp_path}/mnt"), ("theirs", "memory")):
        table = subprocess.check_output([*RECUSE, "trace", "summary", trace], text=True)
        assert [name, "MKDIR", "1"] in [line.split()[:3] for line in table.splitlines()]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["texts.py"],
            "texts.py: has devices and filesystems: choose one, such as texts.py:Echo or "
            "texts.py:Texts",
        ),
        (
            ["--kernel", "texts.py:Texts"],
            "texts.py:Texts: is a filesystem, not a device: use `recuse mount texts.py:Texts DIR`",
        ),
        (["--listen", "no/socket", MEMORY], "no/socket: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(
    capfd: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert main(["serve", *args]) == 125
    assert capfd.readouterr().err == f"recuse: {message}\n"


def test_what_cannot_be_joined(serve: Serve) -> None:
    serve("--listen", "socket", MEMORY)
    serve("--listen", "echo", str(EXAMPLES / "echo.py"))
    for options, message in (
        (
            ["-d", "unix:socket"],
            "unix:socket: serves a filesystem, not a device: use -m DIR=unix:PATH",
        ),
        (["-m", "mnt=unix:echo"], "unix:echo: serves a device, not a filesystem: use -d unix:PATH"),
        (
            ["-m", "mnt=unix:no"],
            "unix:no: nobody serves there (`recuse serve SPEC...` prints where it serves)",
        ),
        (["-m", "no=unix:socket"], "-m no=unix:socket: no is not a directory"),
    ):
        assert run(*options, "true") == (125, "", f"recuse: {message}\n")
