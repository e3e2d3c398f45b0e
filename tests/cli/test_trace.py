"""`recuse run --trace` and `recuse trace summary`, with real programs in a real sandbox."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from recuse.cli.main import main
from recuse.sandbox.arch import SUPPORTED
from recuse.server.device import Device

needs_sandbox = pytest.mark.skipif(not SUPPORTED, reason="another architecture than x86-64")

RECUSE = [sys.executable, "-m", "recuse.cli.main"]
ECHO = str(Path(__file__).resolve().parents[2] / "examples" / "echo.py")

Supervise = Callable[..., int]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


def run(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RECUSE, "run", "-d", ECHO, *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


def masked(trace: str) -> str:
    """The trace without what differs: times, pids, latencies, which major was free."""
    trace = re.sub(r"(?m)^ *\d+\.\d{6} ", "TIME ", trace)
    trace = re.sub(r"\[\d+\]", "[PID]", trace)
    trace = re.sub(r"\|RECUSE_[A-Z_]+", "", trace)
    trace = trace.replace("write_flags=FUSE_WRITE_KILL_SUIDGID, ", "")  # if this is not root
    trace = re.sub(r"added, \d+:0", "added, MAJOR:0", trace)
    return re.sub(r"<\d+\.\d (us|ms|s)>", "<LATENCY>", trace)


INIT = (
    "TIME echo - CUSE_INIT(major=7, minor=45, flags=CUSE_UNRESTRICTED_IOCTL) = major=7, minor=45,"
    " flags=CUSE_UNRESTRICTED_IOCTL,"
    " max_read=131072, max_write=131072, dev_major=0, dev_minor=0"
    r' "DEVNAME=echo\x00DEVMODE=0666\x00" <LATENCY>'
    "\nTIME echo -- device added, MAJOR:0\n"
)
READ = (
    "TIME echo cat[PID] OPEN(flags=O_RDONLY) = fh=1 <LATENCY>\n"
    "TIME echo cat[PID] READ(fh=1, offset=0, size=131072, flags=O_RDONLY) = 0 <LATENCY>\n"
    "TIME echo - RELEASE(fh=1, flags=O_RDONLY) = 0 <LATENCY>\n"
)
END = "TIME echo -- device removed\n"


@needs_sandbox
def test_a_trace_on_stderr() -> None:
    done = run("--trace", "--", "cat", "/dev/echo")
    assert (done.stdout, done.returncode) == ("", 0)
    assert masked(done.stderr) == INIT + READ + END


@needs_sandbox
def test_a_trace_in_a_file_is_appended() -> None:
    script = r"printf 'one\ntwo' >/dev/echo; exec cat /dev/echo"
    for _ in range(2):
        done = run("--trace=trace", "sh", "-c", script)
        assert (done.stdout, done.stderr, done.returncode) == ("one\ntwo", "", 0)
    written = (
        "TIME echo sh[PID] OPEN(flags=O_WRONLY) = fh=1 <LATENCY>\n"
        "TIME echo sh[PID] WRITE(fh=1, offset=0, size=7, flags=O_WRONLY,"
        r' "one\ntwo") = 7 <LATENCY>'
        "\nTIME echo - RELEASE(fh=1, flags=O_WRONLY) = 0 <LATENCY>\n"
    )
    read = READ.replace("= 0 <LATENCY>\nTIME echo - R", r'= 7 "one\ntwo" <LATENCY>' + "\n@R")
    read = read.replace("@R", READ.splitlines()[1] + "\nTIME echo - R").replace("fh=1", "fh=2")
    assert masked(Path("trace").read_text(encoding="utf-8")) == 2 * (INIT + written + read + END)


@needs_sandbox
def test_the_trace_says_which_call_failed() -> None:
    done = run("--trace", "stty", "-F", "/dev/echo")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if " IOCTL(" in line]
    assert re.fullmatch(
        r"TIME echo stty\[PID\] IOCTL\(fh=1, flags=FUSE_IOCTL_UNRESTRICTED, cmd=TCGETS2?,"
        r" arg=0x[0-9a-f]+, in_size=0, out_size=0\) = ENOTTY <LATENCY>",
        masked(line),
    )


@needs_sandbox
def test_a_trace_in_json_and_its_summary() -> None:
    done = run(
        "--trace=trace", "--trace-format", "jsonl", "sh", "-c", "echo hi >/dev/echo; cat /dev/echo"
    )
    assert done.stdout == "hi\n"
    found = [json.loads(line) for line in Path("trace").read_text(encoding="utf-8").splitlines()]
    assert [one.get("name", one["event"]) for one in found] == [
        *["start", "CUSE_INIT", "added", "OPEN", "WRITE", "RELEASE"],
        *["OPEN", "READ", "READ", "RELEASE", "removed"],
    ]
    done = subprocess.run(
        [*RECUSE, "trace", "summary", "trace"], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    table = [line.split()[:6] for line in done.stdout.splitlines()]
    assert table == [
        ["device", "operation", "count", "errors", "in", "out"],
        ["echo", "CUSE_INIT", "1", "0", "0", "26"],
        ["echo", "OPEN", "2", "0", "0", "0"],
        ["echo", "READ", "2", "0", "0", "3"],
        ["echo", "RELEASE", "2", "0", "0", "0"],
        ["echo", "WRITE", "1", "0", "3", "0"],
    ]


@needs_sandbox
def test_a_full_disk_disturbs_nobody() -> None:
    done = run("--trace=/dev/full", "sh", "-c", "echo hi >/dev/echo; cat /dev/echo; exit 7")
    assert (done.stdout, done.returncode) == ("hi\n", 7)
    assert done.stderr == "recuse: tracing stops: No space left on device\n"


@needs_sandbox
def test_a_closed_pipe_disturbs_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(f"--trace=/dev/fd/{writing}", "cat", "/dev/echo", pass_fds=[writing])
    os.close(writing)
    assert (done.stdout, done.returncode) == ("", 0)
    assert done.stderr == "recuse: tracing stops: nobody reads it\n"


@pytest.mark.slow
@needs_sandbox
def test_the_trace_is_whole_when_recuse_is_killed() -> None:
    """What was asked last is there, as never answered or with its answer."""
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [*RECUSE, "run", "-d", ECHO, f"--trace=/dev/fd/{writing}", "sh", "-c"]
        + ["echo hi >/dev/echo; cat /dev/echo; echo ready; exec sleep 60"],
        stdout=subprocess.PIPE,
        pass_fds=[writing],
    )
    os.close(writing)
    with process, open(reading, encoding="utf-8") as lines:
        assert process.stdout is not None
        assert process.stdout.read(9) == b"hi\nready\n"
        found = []
        for line in lines:
            found.append(line)
            if "RELEASE(fh=2" in line:
                break
        process.send_signal(signal.SIGKILL)
        found += lines
    assert found[-1].startswith("   ")
    assert "RELEASE(fh=2" in found[-1]


@needs_sandbox
def test_ctrl_c_reaches_the_program_and_not_the_trace() -> None:
    process = subprocess.Popen(
        [*RECUSE, "run", "-d", ECHO, "--trace", "sh", "-c"]
        + [
            "trap 'trap \"\" INT; cat /dev/echo; exit 3' INT; echo ready;while :; do sleep .1; done"
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    # The shell gets it twice, from us and from recuse. The writer is in a group of its own.
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert masked(errors) == INIT + READ + END


@needs_sandbox
def test_without_trace_nothing_is_printed() -> None:
    done = run("cat", "/dev/echo")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    ("args", "argv", "file"),
    [
        (["--trace", "cat", "x"], ["cat", "x"], None),
        (["--trace", "--", "cat"], ["cat"], None),
        (["--trace=-", "cat"], ["cat"], None),
        (["--trace", "-d", ECHO, "cat", "--trace"], ["cat", "--trace"], None),
        (["-d", ECHO, "--trace", "cat"], ["cat"], None),
        (["--trace=f", "cat"], ["cat"], "f"),
        (["--trace-format", "jsonl", "--trace=f", "cat"], ["cat"], "f"),
        (["--trace-format=jsonl", "--trace", "cat"], ["cat"], None),
    ],
)
def test_where_a_trace_goes(
    args: list[str], argv: list[str], file: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def supervise(devices: Sequence[Device], argv: Sequence[str], *, tap: object) -> int:
        assert callable(tap)
        calls.append(list(argv))
        return 0

    monkeypatch.setattr("recuse.sandbox.supervise", supervise)
    assert main(["run", *args]) == 0
    assert calls == [argv]
    assert os.listdir() == ([file] if file else [])


@pytest.mark.parametrize(
    "args", [["cat"], ["cat", "--trace"], ["--", "cat", "--trace=f"], ["--trace-format=text", "x"]]
)
def test_nothing_is_traced_that_was_not_asked_for(
    args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recuse.sandbox.supervise", lambda devices, argv: 0)
    assert main(["run", *args]) == 0
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (
            ["--trace=no/such/trace", "true"],
            125,
            "recuse: --trace: no/such/trace: No such file or directory\n",
        ),
        (["--trace=.", "true"], 125, "recuse: --trace: .: Is a directory\n"),
        (["--trace"], 2, "recuse: no program given: add it after the options"),
        (["--trace-format", "xml", "true"], 2, "recuse: Invalid value for '--trace-format'"),
    ],
)
def test_what_cannot_be(
    args: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *args]) == status
    errors = capsys.readouterr().err
    assert errors.startswith(message)
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ""),
        (
            "   0.045579 echo sh[1] OPEN(flags=O_WRONLY) = fh=1 <92.5 us>\n",
            "recuse: trace: line 1: not JSON; is it from --trace-format jsonl?\n",
        ),
        ('{"event": "added"}\n{"event": "exchange"}\n', "recuse: trace: line 2: device is missing"),
        (None, "recuse: Invalid value for 'FILE': 'trace': No such file or directory"),
    ],
)
def test_a_summary_of_what_is_no_trace(
    content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("trace").write_text(content, encoding="utf-8")
    status = main(["trace", "summary", "trace"])
    errors = capsys.readouterr().err
    assert errors.startswith(message)
    assert bool(status) == bool(errors) == bool(message)


def test_a_summary_of_a_directory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "summary", "."]) != 0
    assert "Is a directory" in capsys.readouterr().err
