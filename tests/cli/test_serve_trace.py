"""`recuse serve --trace`: what the server's end of the sockets sees, with real sandboxes."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse.cli.main import main
from recuse.sandbox.arch import SUPPORTED

RECUSE = [sys.executable, "-m", "recuse.cli.main"]
ECHO = str(Path(__file__).resolve().parents[2] / "examples" / "echo.py")
PATIENCE_S = 20

needs_sandbox = pytest.mark.skipif(not SUPPORTED, reason="another architecture than x86-64")

Serve = Callable[..., subprocess.Popen[str]]

INIT = (
    "TIME echo#N - CUSE_INIT(major=7, minor=45, flags=CUSE_UNRESTRICTED_IOCTL) = major=7, minor=45,"
    " flags=CUSE_UNRESTRICTED_IOCTL,"
    " max_read=131072, max_write=131072, dev_major=0, dev_minor=0"
    r' "DEVNAME=echo\x00DEVMODE=0666\x00" <LATENCY>'
    "\n"
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(*args)`: a `recuse serve --listen socket` of the echo device that has come up."""
    started = []

    def serve(*args: str) -> subprocess.Popen[str]:
        argv = [*RECUSE, "serve", "--listen", "socket", *args, ECHO]
        server = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(server)
        assert server.stdout is not None
        assert server.stdout.readline() == "echo: socket\n"
        return server

    yield serve
    for server in started:
        server.kill()
        server.communicate()


def run(*argv: str) -> str:
    """What a program prints in a sandbox of its own that has joined."""
    done = subprocess.run(
        [*RECUSE, "run", "-d", "unix:socket", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def end(server: subprocess.Popen[str], number: int = signal.SIGINT) -> str:
    """End it; what it has printed on stderr."""
    server.send_signal(number)
    _, errors = server.communicate(timeout=PATIENCE_S)
    assert server.returncode == 0
    return errors


def masked(trace: str, connection: int) -> str:
    """The lines of one connection, without what differs from run to run."""
    trace = "".join(
        line for line in trace.splitlines(keepends=True) if f" echo#{connection} " in line
    ).replace(f" echo#{connection} ", " echo#N ")
    trace = re.sub(r"(?m)^ *\d+\.\d{6} ", "TIME ", trace)
    trace = re.sub(r"\[\d+\]", "[PID]", trace)
    trace = re.sub(r"\|RECUSE_[A-Z_]+", "", trace)
    trace = trace.replace("write_flags=FUSE_WRITE_KILL_SUIDGID, ", "")  # if this is not root
    trace = re.sub(r"joined by \S+\[", "joined by PROGRAM[", trace)
    return re.sub(r"<\d+\.\d (us|ms|s)>", "<LATENCY>", trace)


@needs_sandbox
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_each_sandbox_has_its_lines(serve: Serve, number: int) -> None:
    """The trace is whole when the server has ended, whichever signal ended it."""
    server = serve("--trace")
    run("sh", "-c", "echo hi >/dev/echo")
    assert run("cat", "/dev/echo") == "hi\n"
    trace = end(server, number)
    assert masked(trace, 1) == (
        "TIME echo#N -- joined by PROGRAM[PID]\n" + INIT + "TIME echo#N sh[PID]"
        " OPEN(flags=O_WRONLY) = fh=1 <LATENCY>\n"
        r'TIME echo#N sh[PID] WRITE(fh=1, offset=0, size=3, flags=O_WRONLY, "hi\n") = 3 <LATENCY>'
        "\nTIME echo#N - RELEASE(fh=1, flags=O_WRONLY) = 0 <LATENCY>\n"
        "TIME echo#N -- left\n"
    )
    read = "TIME echo#N cat[PID] READ(fh=1, offset=0, size=131072, flags=O_RDONLY) = "
    assert masked(trace, 2) == (
        "TIME echo#N -- joined by PROGRAM[PID]\n" + INIT + "TIME echo#N cat[PID]"
        f" OPEN(flags=O_RDONLY) = fh=1 <LATENCY>\n{read}"
        rf'3 "hi\n" <LATENCY>'
        f"\n{read}0 <LATENCY>\n"
        "TIME echo#N - RELEASE(fh=1, flags=O_RDONLY) = 0 <LATENCY>\n"
        "TIME echo#N -- left\n"
    )
    assert len(trace.splitlines()) == 6 + 7


@needs_sandbox
def test_in_json_with_its_summary(serve: Serve) -> None:
    server = serve("--trace=trace", "--trace-format", "jsonl")
    for _ in range(2):
        assert run("sh", "-c", "echo hi >/dev/echo; cat /dev/echo") == "hi\n"
    assert end(server) == ""
    found = [json.loads(line) for line in Path("trace").read_text(encoding="utf-8").splitlines()]
    assert "connection" not in found[0]
    for connection in (1, 2):
        mine = [one for one in found[1:] if one["connection"] == connection]
        assert {one["device"] for one in mine} == {"echo"}
        assert [one.get("name", one["event"]) for one in mine] == [
            *["joined", "CUSE_INIT", "OPEN", "WRITE", "RELEASE"],
            *["OPEN", "READ", "READ", "RELEASE", "left"],
        ]
    done = subprocess.run(
        [*RECUSE, "trace", "summary", "trace"], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert [line.split()[:6] for line in done.stdout.splitlines()[1:]] == [
        ["echo", "CUSE_INIT", "2", "0", "0", "52"],
        ["echo", "OPEN", "4", "0", "0", "0"],
        ["echo", "READ", "4", "0", "0", "6"],
        ["echo", "RELEASE", "4", "0", "0", "0"],
        ["echo", "WRITE", "2", "0", "6", "0"],
    ]


@needs_sandbox
def test_without_trace_nothing_is_printed(serve: Serve) -> None:
    server = serve()
    assert run("cat", "/dev/echo") == ""
    assert end(server) == ""


@pytest.mark.parametrize(
    ("args", "specs", "trace", "layout"),
    [
        (["a.py"], ("a.py",), None, "text"),
        (["--trace", "a.py"], ("a.py",), "-", "text"),
        (["a.py", "--trace", "b.py"], ("a.py", "b.py"), "-", "text"),
        (["a.py", "--trace=f", "--trace-format", "jsonl"], ("a.py",), "f", "jsonl"),
        (["--listen", "--trace", "a.py"], ("a.py",), None, "text"),
        (["a.py", "--", "--trace"], ("a.py", "--trace"), None, "text"),
    ],
)
def test_where_a_trace_goes(
    args: list[str],
    specs: tuple[str, ...],
    trace: str | None,
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def serve_all(*found: object, mount: str | None) -> int:
        assert mount is None
        calls.append(found)
        return 0

    monkeypatch.setattr("recuse.cli.serve.serve_all", serve_all)
    assert main(["serve", *args]) == 0
    ((found, _listen, _kernel, *rest),) = calls
    assert (found, *rest) == (specs, trace, layout)


def test_a_trace_that_cannot_be_opened(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--listen", "socket", "--trace=no/trace", ECHO]) == 125
    assert capsys.readouterr().err == "recuse: --trace: no/trace: No such file or directory\n"
