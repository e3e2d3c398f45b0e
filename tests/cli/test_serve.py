"""`recuse serve` and `recuse run -d unix:PATH`: real processes, programs and sandboxes."""

import contextlib
import errno
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recuse.channel.socket import Remote
from recuse.cli.main import main
from recuse.cli.spec import load, parse
from recuse.sandbox import Sandbox
from recuse.sandbox.arch import SUPPORTED

RECUSE = [sys.executable, "-m", "recuse.cli.main"]
PATIENCE_S = 20
"""How long to wait for what must come; only a failure takes as long."""

needs_sandbox = pytest.mark.skipif(not SUPPORTED, reason="another architecture than x86-64")

DEVICE = """
import os, sys, threading
from recuse import Device, File

class Echo(Device):
    name = "echo"
    max_read = max_write = 1 << 20
    def __init__(self, **attributes):
        super().__init__(**attributes)
        self.data = bytearray()
        self.lock = threading.Lock()
    def open(self, request):
        return EchoFile()
    def close(self):
        print("closed", flush=True)

class EchoFile(File):
    def read(self, size, offset):
        with self.device.lock:
            data = bytes(self.device.data[:size])
            del self.device.data[:size]
        return data
    def write(self, data, offset):
        with self.device.lock:
            self.device.data += data
        if data == b"wait\\n":
            print("waiting", flush=True)
            threading.Event().wait()
    def release(self):
        print("released", flush=True)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory with a device, and with a runtime directory of the test's own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    Path("echo.py").write_text(DEVICE, encoding="utf-8")
    Path("run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))


class Server:
    """A `recuse serve` that has come up."""

    def __init__(self, *args: str, sockets: int = 1) -> None:
        self.process = subprocess.Popen(
            [*RECUSE, "serve", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        lines = [self.line() for _ in range(sockets)]
        self.paths = [line.partition(": ")[2] for line in lines]
        self.names = [line.partition(": ")[0] for line in lines]
        self.hint = self.line()

    @property
    def unix(self) -> str:
        """What to join it with."""
        return f"unix:{self.paths[0]}"

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().removesuffix("\n")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Send a signal; return the exit status and what was printed since, on both streams."""
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, output, errors


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers."""
    servers: list[Server] = []

    def start(*args: str, **options: Any) -> Server:
        servers.append(Server(*args, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.process.kill()
        server.process.communicate()


def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`recuse run` in a process of its own."""
    return subprocess.run(
        [*RECUSE, "run", *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


def shell(server: Server, script: str) -> str:
    """What a script in a sandbox of its own prints."""
    done = run("-d", server.unix, "--", "sh", "-c", script)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


@needs_sandbox
def test_one_sandbox_after_another(serve: Serve) -> None:
    server = serve("echo.py")
    assert server.names == ["echo"]
    assert shell(server, "echo hello >/dev/echo") == ""
    assert shell(server, "cat /dev/echo") == "hello\n"
    status, output, errors = server.end()
    assert (status, errors) == (0, "")
    assert output == "released\nreleased\nclosed\n"


@needs_sandbox
def test_what_is_printed_works_as_it_is(serve: Serve) -> None:
    server = serve("--listen", "a path, with: a colon.sock", "echo.py,mode=0o640")
    assert server.paths == ["a path, with: a colon.sock"]
    command = server.hint.removeprefix("In another terminal: recuse ")
    argv = shlex.split(command.removesuffix(" sh"))
    assert argv[0] == "run"
    done = run(*argv[1:], "stat", "-c", "%a", "/dev/echo")
    assert (done.stdout, done.stderr) == ("640\n", "")


@needs_sandbox
def test_sandboxes_at_once(serve: Serve) -> None:
    """Each waits, with the device open, until all are there."""
    server = serve("echo.py")
    script = "exec 3<>/dev/echo; echo here; read go; echo $go >&3; cat <&3"
    argv = [*RECUSE, "run", "-d", server.unix, "--", "sh", "-c", script]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    sandboxes = [subprocess.Popen(argv, **pipes) for _ in range(4)]
    for sandbox in sandboxes:
        assert sandbox.stdout is not None
        assert sandbox.stdout.readline() == "here\n"
    for number, sandbox in enumerate(sandboxes):
        assert sandbox.communicate(f"{number}\n", timeout=PATIENCE_S) == (f"{number}\n", None)
        assert server.line() == "released"
    assert server.end()[1] == "closed\n"


@needs_sandbox
def test_a_megabyte_at_once(serve: Serve) -> None:
    server = serve("echo.py")
    script = "dd if=/dev/urandom bs=1M count=1 iflag=fullblock status=none of=data; "
    script += "dd if=data of=/dev/echo bs=1M status=none; "
    script += "dd if=/dev/echo bs=1M count=1 status=none | cmp - data && echo same"
    assert shell(server, script) == "same\n"


@needs_sandbox
def test_several_devices(serve: Serve) -> None:
    server = serve("echo.py", "echo.py,name=snd/dsp", sockets=2)
    assert server.names == ["echo", "snd/dsp"]
    assert [os.path.basename(path) for path in server.paths] == ["echo.sock", "snd!dsp.sock"]
    joined = [f"-dunix:{path}" for path in server.paths]
    done = run(*joined, "-decho.py,name=mine", "ls", "/dev/snd/dsp", "/dev/echo", "/dev/mine")
    assert done.stdout == "/dev/echo\n/dev/mine\n/dev/snd/dsp\nclosed\n"
    assert server.end()[:2] == (0, "closed\nclosed\n")
    assert os.listdir("run") == []


# ---- ends


@needs_sandbox
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_in_the_middle_of_a_call(serve: Serve, number: int) -> None:
    server = serve("echo.py")
    script = "/bin/echo wait >/dev/echo; echo status $?; ls /dev/echo"
    program = subprocess.Popen(
        [*RECUSE, "run", "-d", server.unix, "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.line() == "waiting"
    server.process.send_signal(number)
    began = time.monotonic()
    output, errors = program.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - began < 1
    assert os.strerror(errno.ECONNABORTED) in errors
    assert f"recuse: {server.paths[0]}: its server has gone" in errors
    assert "cannot access '/dev/echo'" in errors
    assert re.fullmatch(r"status [1-9]\n", output)


RETURN = """
import errno, os, sys, time
old = os.open("/dev/echo", os.O_RDWR)
os.write(old, b"first")
print("open", flush=True)
sys.stdin.readline()
def attempt(function, *args):
    try:
        return function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
print(attempt(os.read, old, 10), attempt(os.open, "/dev/echo", os.O_RDWR), flush=True)
sys.stdin.readline()
deadline = time.monotonic() + 20
while not os.path.exists("/dev/echo") and time.monotonic() < deadline:
    time.sleep(0.001)
new = os.open("/dev/echo", os.O_RDWR)
os.write(new, b"second")
print(os.read(new, 100), attempt(os.read, old, 10), attempt(os.write, old, b"x"))
"""


@needs_sandbox
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_starts_again(serve: Serve, number: int) -> None:
    server = serve("echo.py")
    with Sandbox(Remote(server.paths[0])) as sandbox:
        program = sandbox.popen(
            [sys.executable, "-c", RETURN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "open\n"
        server.end(number)
        program.stdin.write("\n")
        program.stdin.flush()
        # It may find the device for a moment after the server's end, but not the server.
        assert program.stdout.readline() in {
            "ENODEV ENOENT\n",
            "ECONNABORTED ENOENT\n",
            "ECONNABORTED ECONNABORTED\n",
            "ECONNABORTED ENODEV\n",
        }
        serve("echo.py")
        output, _ = program.communicate("\n", timeout=PATIENCE_S)
        assert output == "b'second' ENODEV ENODEV\n"


@needs_sandbox
def test_a_stopped_server_holds_up_only_its_own_programs(serve: Serve) -> None:
    server = serve("echo.py,name=slow")
    with Sandbox(Remote(server.paths[0]), load(parse("echo.py"))) as sandbox:
        server.process.send_signal(signal.SIGSTOP)
        head = "head -c 10000000 /dev/zero >/dev/slow"
        stuck = [sandbox.popen(["sh", "-c", head]) for _ in range(3)]
        stuck.append(sandbox.popen(["cat", "/dev/slow"]))
        script = "echo through >/dev/echo; cat /dev/echo"
        done = sandbox.run(["sh", "-c", script], capture_output=True, timeout=PATIENCE_S)
        assert done.stdout == b"through\n"
        stuck[-1].kill()
        assert stuck[-1].wait(PATIENCE_S) == -signal.SIGKILL
    assert all(program.returncode is not None for program in stuck)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_end(serve: Serve, number: int) -> None:
    server = serve("echo.py")
    assert server.end(number) == (0, "closed\n", "")
    assert os.listdir("run") == []


def test_a_second_signal_ends_a_server_that_does_not_end(serve: Serve) -> None:
    Path("stuck.py").write_text(
        DEVICE.replace('print("closed", flush=True)', 'print("closing", flush=True); STUCK'),
        encoding="utf-8",
    )
    text = Path("stuck.py").read_text(encoding="utf-8")
    Path("stuck.py").write_text(text.replace("STUCK", "threading.Event().wait()"), encoding="utf-8")
    server = serve("stuck.py")
    server.process.send_signal(signal.SIGTERM)
    assert server.line() == "closing"
    assert not os.path.exists(server.paths[0])
    deadline = time.monotonic() + PATIENCE_S
    while server.process.poll() is None and time.monotonic() < deadline:
        # What comes within a second counts as the first one.
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(0.05)
    assert server.process.returncode == 128 + signal.SIGTERM


def test_the_same_signal_twice(serve: Serve) -> None:
    server = serve("echo.py")
    server.process.send_signal(signal.SIGTERM)
    assert server.end(signal.SIGTERM) == (0, "closed\n", "")
    assert os.listdir("run") == []


def test_ignored_signals_stay_ignored(serve: Serve) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = serve("echo.py")
    finally:
        signal.signal(signal.SIGHUP, previous)
    server.process.send_signal(signal.SIGHUP)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(server.paths[0])
    assert server.end() == (0, "closed\n", "")


# ---- where


def test_the_usual_place(serve: Serve) -> None:
    server = serve("echo.py")
    runtime = os.environ["XDG_RUNTIME_DIR"]
    assert server.paths == [f"{runtime}/recuse/echo.sock"]
    assert stat.S_IMODE(os.stat("run/recuse").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(server.paths[0]).st_mode) == 0o600


@pytest.mark.parametrize("runtime", ["", "run", "/nowhere", "somebody else's"])
def test_without_a_runtime_directory(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    if runtime == "somebody else's":
        if os.geteuid():
            runtime = "/"
        else:
            runtime = str(tmp_path / "run")
            os.chown(runtime, 65534, 65534)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = serve("echo.py")
    directory = tmp_path / f"recuse-{os.geteuid()}"
    assert server.paths == [f"{directory}/echo.sock"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    server.end()
    assert not directory.exists()


@pytest.mark.parametrize("what", ["open to others", "a link", "a file", "somebody else's"])
def test_a_directory_that_cannot_be_trusted(
    capfd: pytest.CaptureFixture[str], what: str, tmp_path: Path
) -> None:
    directory = tmp_path / "run" / "recuse"
    if what == "a link":
        (tmp_path / "other").mkdir(mode=0o700)
        directory.symlink_to(tmp_path / "other")
    elif what == "a file":
        directory.touch(0o600)
    else:
        directory.mkdir(mode=0o700)
        directory.chmod(0o755 if what == "open to others" else 0o700)
    if what == "somebody else's":
        if os.geteuid():
            pytest.skip("only root can make a directory of somebody else's")
        os.chown(directory, 65534, 65534)
    assert main(["serve", "echo.py"]) == 125
    message = (
        f"recuse: {directory}: must be a directory that only you can enter; or give --listen PATH\n"
    )
    assert capfd.readouterr() == ("", message)


def test_a_living_server_stays(serve: Serve, capfd: pytest.CaptureFixture[str]) -> None:
    server = serve("echo.py")
    assert main(["serve", "echo.py"]) == 125
    assert capfd.readouterr().err == (
        f"recuse: {server.paths[0]}: another server is running there; end it, or give this one "
        "--listen PATH\n"
    )
    assert main(["serve", "--listen", "echo.py", "echo.py"]) == 125
    assert "echo.py: exists already, and is not a socket" in capfd.readouterr().err
    other = serve("--listen", "other.sock", "echo.py")
    assert other.end()[0] == server.end()[0] == 0


def test_a_server_that_was_killed_is_replaced(serve: Serve) -> None:
    server = serve("echo.py")
    server.end(signal.SIGKILL)
    assert os.path.exists(server.paths[0])
    assert serve("echo.py").end() == (0, "closed\n", "")
    assert os.listdir("run") == []


def test_if_one_device_cannot_be_served_none_is(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    serve("echo.py,name=b")
    assert main(["serve", "echo.py,name=a", "echo.py,name=b"]) == 125
    output, errors = capfd.readouterr()
    assert "another server is running there" in errors
    assert output.endswith("a.sock\nclosed\n")
    assert os.listdir("run/recuse") == ["b.sock"]


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        ([], 2, "Missing argument 'SPEC...' (see recuse serve --help)"),
        (
            ["--listen", "x", "echo.py", "echo.py,name=b"],
            2,
            "--listen takes one SPEC (see recuse serve --help)",
        ),
        (
            ["--listen", "x", "--kernel", "echo.py"],
            2,
            "--listen takes one SPEC, without --kernel (see recuse serve --help)",
        ),
        (["gone.py"], 125, "gone.py: no such file"),
        (["unix:x"], 125, "unix:x: is already served: name the class instead"),
        (
            ["--listen", "gone/x", "echo.py"],
            125,
            "gone/x: No such file or directory",
        ),
        (
            ["--listen", "x" * 200, "echo.py"],
            125,
            f"{'x' * 200}: too long for the path of a socket; give a shorter one: --listen PATH",
        ),
    ],
)
def test_errors(
    capfd: pytest.CaptureFixture[str], args: list[str], status: int, message: str
) -> None:
    assert main(["serve", *args]) == status
    assert capfd.readouterr().err == f"recuse: {message}\n"


# ---- joining that fails


@needs_sandbox
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("unix:", "unix:: add the path that `recuse serve` printed, after the colon"),
        (
            "unix:gone",
            "unix:gone: nobody serves there (`recuse serve SPEC...` prints where it serves)",
        ),
        ("unix:dead", "unix:dead: its server has ended"),
        ("unix:echo.py", "unix:echo.py: is not a socket"),
        ("unix:.", "unix:.: is not a socket"),
    ],
)
def test_nobody_to_join(spec: str, message: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind("dead")
    done = run("-d", spec, "true")
    assert (done.stderr, done.stdout, done.returncode) == (f"recuse: {message}\n", "", 125)


@needs_sandbox
def test_two_devices_of_one_name(serve: Serve) -> None:
    server = serve("echo.py")
    for other in (server.unix, "echo.py"):
        done = run("-d", server.unix, "-d", other, "true")
        assert f"recuse: {server.unix}: a device of its name is there already" in done.stderr
        assert done.returncode == 125
