"""`recuse run` as a whole."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Needs

from ..patience import PATIENCE_S

Recuse = Callable[..., subprocess.CompletedProcess[Any]]


ECHO = """
import os
import select
from recuse import Device, File

class EchoFile(File):
    def read(self, size, offset):
        data = self.device.data[:size]
        del self.device.data[:size]
        return bytes(data)
    def write(self, data, offset):
        self.device.data += data
    def release(self):
        self.device.say('release')

class Echo(Device):
    name = "echo"
    data = bytearray()
    log = None
    def open(self, request):
        self.say('open')
        return EchoFile()
    def say(self, what):
        if path := os.environ.get('ECHO_LOG'):
            with open(path, 'a') as log:
                log.write(what + '\\n')
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    (tmp_path / "echo.py").write_text(ECHO)
    return str(tmp_path / "echo.py")


@pytest.fixture
def argv(spec: str) -> list[str]:
    """The beginning of a command line that runs a program with /dev/echo."""
    recuse = [
        sys.executable,
        "-c",
        "import sys; from recuse.cli.main import main; sys.exit(main())",
    ]
    return [*recuse, "run", "-d", spec, "--"]


@pytest.fixture
def recuse(argv: list[str]) -> Recuse:
    def recuse(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[Any]:
        options = {"capture_output": True, "text": True, "timeout": PATIENCE_S} | options
        return subprocess.run([*argv, *args], check=False, **options)

    return recuse


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """``temporary()``: the names of what sandboxes of this test have in their TMPDIR."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return lambda: os.listdir(directory)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        ("kill -SEGV $$", 139),
        ("kill -INT $$", 130),
        ("kill -PIPE $$", 141),
        ("(sleep 0.1; exit 9) & exit 4", 4),
        ("(kill -KILL $(exec sh -c 'echo $PPID')); exit 5", 5),
    ],
)
def test_the_exit_status(recuse: Recuse, script: str, status: int) -> None:
    done = recuse("sh", "-c", script)
    assert (done.returncode, done.stdout) == (status, "")


def test_programs_that_cannot_be_executed(recuse: Recuse, tmp_path: Path) -> None:
    assert recuse("no-such-program").returncode == 127
    assert recuse("/no/such/program").returncode == 127
    assert recuse(str(tmp_path)).returncode == 126
    assert recuse("/etc/passwd").returncode == 126
    done = recuse("no-such-program")
    assert done.stderr.startswith("recuse: no-such-program: not found")
    assert len(done.stderr.splitlines()) == 1


def test_standard_streams_are_the_callers(recuse: Recuse, argv: list[str], tmp_path: Path) -> None:
    done = recuse("sh", "-c", "cat; echo err >&2; pwd", input="in\n", cwd=tmp_path)
    assert (done.stdout, done.stderr) == (f"in\n{tmp_path}\n", "err\n")
    # Also when some of them are closed.
    script = 'exec "$@"'
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        out = tmp_path / "out"
        with subprocess.Popen(
            ["sh", "-c", f"{script} {closed}", "sh", *argv,
             "sh", "-c", f"ls -l /proc/self/fd >{out} 2>/dev/null; echo x >/dev/echo"],
            stdin=subprocess.DEVNULL,
        ) as program:  # fmt: skip
            assert program.wait(PATIENCE_S) == 0, closed
        assert "socket" not in out.read_text()


def test_redirections(recuse: Recuse, tmp_path: Path) -> None:
    script = """
echo one > /dev/echo
cat < /dev/echo
exec 5<>/dev/echo
echo two >&5; cat <&5; exec 5>&-
exec 200<>/dev/echo
echo three >&200; head -c 6 <&200; exec 200>&-
{ echo four; ls /nosuch; } >/dev/echo 2>&1; cat /dev/echo
echo five | tee /dev/echo; cat < /dev/echo
(echo six; sh -c 'echo seven') >> /dev/echo; sed 's/.*/[&]/' < /dev/echo
cat <<END >/dev/echo
eight
END
cat /dev/echo - </dev/null
"""
    done = recuse("bash", "-c", script)
    assert done.stdout.splitlines() == [
        *["one", "two", "three", "four"],
        "ls: cannot access '/nosuch': No such file or directory",
        *["five", "five", "[six]", "[seven]", "eight"],
    ]
    assert done.stderr == ""


def test_a_file_is_released_once_for_each_open(recuse: Recuse, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "echo x > /dev/echo; cat /dev/echo; exec 5<>/dev/echo 6>&5; (sleep 0.1) & kill -9 $$"
    recuse("sh", "-c", script, env={**os.environ, "ECHO_LOG": str(log)})
    assert log.read_text().split() == ["open", "release"] * 3


@pytest.mark.parametrize("environment", [{}, {"LANG": "C"}, {"A": "b", "PATH": "/usr/bin:/bin"}])
def test_the_environment_is_the_callers(recuse: Recuse, environment: dict[str, str]) -> None:
    # PYTHONPATH is only to find recuse, where it is not installed.
    done = recuse("/usr/bin/env", "-0", env=environment)
    assert sorted(done.stdout.split("\0")[:-1]) == sorted(
        f"{k}={v}" for k, v in environment.items()
    )


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2], ids=lambda n: n.name
)
def test_signals_are_passed_on(argv: list[str], number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo caught; exit 7' {name}; echo ready; while :; do sleep 0.01; done"
    with subprocess.Popen([*argv, "sh", "-c", script], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        program.send_signal(number)
        assert program.stdout.read() == b"caught\n"
    assert program.returncode == 7


def test_a_signal_that_is_not_caught_ends_the_program(argv: list[str]) -> None:
    with subprocess.Popen(
        [*argv, "sh", "-c", "echo ready; exec sleep 1000"], stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        program.terminate()
    assert program.returncode == 143


def test_ignored_signals_stay_ignored(argv: list[str]) -> None:
    # nohup
    script = "trap '' HUP INT; exec \"$@\""
    grep = ["sh", "-c", "grep SigIgn /proc/self/status"]
    native = subprocess.run(["sh", "-c", script, "sh", *grep], stdout=subprocess.PIPE, check=True)
    ours = subprocess.run(
        ["sh", "-c", script, "sh", *argv, *grep], stdout=subprocess.PIPE, check=True
    )
    assert ours.stdout == native.stdout


def test_a_signal_for_a_child_of_a_device_is_not_the_programs(
    recuse: Recuse, spec: str, tmp_path: Path
) -> None:
    """Of a process that the device's method forks, as multiprocessing does."""
    fork = """
class ForkFile(EchoFile):
    def write(self, data, offset):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), 15)
            os._exit(0)
        self.device.data += b'%d' % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
EchoFile = ForkFile
"""
    Path(spec).write_text(ECHO + fork)
    done = recuse("sh", "-c", "echo >/dev/echo; cat /dev/echo")
    assert (done.returncode, done.stdout, done.stderr) == (0, "-15", "")


def test_background_children_are_served_until_the_last_one_ends(argv: list[str]) -> None:
    script = "exec 3<&0; (read x <&3; echo $x > /dev/echo; cat /dev/echo) & exit 3"
    with subprocess.Popen(
        [*argv, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.communicate(b"late\n", PATIENCE_S)[0] == b"late\n"
    assert program.returncode == 3


def test_inherited_descriptors(argv: list[str]) -> None:
    # As bash makes them for <(...), make for its job server, systemd for sockets.
    script = 'exec 7</dev/null; "$@" sh -c "cat \\$1 >&8; test -r /dev/fd/7" sh <(echo hello) 8>&1'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *argv], capture_output=True, check=False, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


@pytest.mark.parametrize(
    "use", ["read", "open", "none"], ids=["using a file", "opening", "not using it"]
)
def test_the_supervisor_is_killed(argv: list[str], use: str) -> None:
    # Calls fail then; whoever does not end by itself is killed after a grace period.
    script = {
        "read": "exec 5<>/dev/echo; echo ready; read go; cat <&5; echo $?; sleep 1000",
        "open": "echo ready; read go; : < /dev/echo; echo no",
        "none": "echo ready; read go; echo 1; sleep 1000",
    }[use]
    with subprocess.Popen(
        [*argv, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        stderr=subprocess.DEVNULL,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        children = [os.pidfd_open(pid) for pid in descendants(program.pid)]
        assert len(children) >= 2
        program.kill()
        program.wait()
        with contextlib.suppress(BrokenPipeError):
            assert program.stdin is not None
            program.stdin.write(b"go\n")
        program.stdout.read()  # nobody holds it any more
        for child in children:
            os.close(child)


def test_nothing_is_left(
    recuse: Recuse, temporary: Callable[[], list[str]], tmp_path: Path
) -> None:
    (tmp_path / "echo.py").write_text(ECHO.replace('"echo"', '"recuse-test/echo"'))
    assert recuse("ls", "/dev/recuse-test").stdout == "echo\n"
    assert recuse("sh", "-c", "ls /dev/recuse-test; kill -9 $$").stdout == "echo\n"
    assert temporary() == []


@pytest.mark.parametrize("whom", [os.kill, os.killpg], ids=["recuse", "its process group"])
def test_nothing_is_left_of_one_that_is_killed(
    argv: list[str], temporary: Callable[[], list[str]], whom: Callable[[int, int], None]
) -> None:
    script = "exec 5</sys/class/cuse; ls /sys/class/cuse/. >&2; echo ready; read go; cat"
    with subprocess.Popen(
        [*argv, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        stderr=subprocess.DEVNULL, process_group=0,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        children = [os.pidfd_open(pid) for pid in descendants(program.pid)]
        assert temporary() == []  # so whoever is killed leaves nothing, whenever that is
        whom(program.pid, signal.SIGKILL)
        program.wait()
        program.stdout.read()
        for child in children:
            assert select.select([child], [], [], PATIENCE_S)[0]
            os.close(child)
    assert temporary() == []


@pytest.mark.right("namespaces", "user namespaces")
def test_another_namespaces_proc(argv: list[str], needs: Needs) -> None:
    unshare = [str(needs("unshare", "util-linux")), "-rpf"]
    done = subprocess.run(
        [*unshare, *argv, "true"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 125
    assert done.stderr.startswith("recuse: /proc belongs to another pid namespace")


def test_recuse_in_recuse(recuse: Recuse, argv: list[str]) -> None:
    done = recuse(*argv, "true")
    assert done.returncode == 125
    assert done.stderr.startswith("recuse: another seccomp supervisor has this process already")
    assert len(done.stderr.splitlines()) == 1


def test_a_blocked_sigchld_stays_blocked_and_the_end_is_seen(recuse: Recuse) -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})

    done = recuse("grep", "SigBlk", "/proc/self/status", preexec_fn=block)
    assert done.stdout.split() == ["SigBlk:", f"{1 << (signal.SIGCHLD - 1):016x}"]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", [None, "", "/nowhere:{}", "{}/is-a-file:{}", "{}/locked:/bin"])
def test_a_program_is_found_as_outside(recuse: Recuse, tmp_path: Path, path: str | None) -> None:
    """Along PATH, whatever that has: what the message says is what is tested elsewhere."""
    (tmp_path / "is-a-file").touch()
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "prog").touch(0o644)
    (tmp_path / "prog").write_text('#!/bin/sh\nprintf \'%s \' "$0" "$@"')
    (tmp_path / "prog").chmod(0o755)
    environment = dict(os.environ)
    del environment["PATH"]
    if path is not None:
        environment["PATH"] = path.format(tmp_path, tmp_path)
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment}
    done = recuse("prog", "a b", "", **options)
    code = "import os, sys; os.execvp('prog', ['prog', 'a b', ''])"
    outside = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, **options
    )
    assert done.stdout == outside.stdout
    assert (done.returncode == 0) == (outside.returncode == 0)
    if "PermissionError" in outside.stderr:
        assert done.returncode == 126
    elif outside.returncode:
        assert done.returncode == 127
