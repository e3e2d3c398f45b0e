"""`recuse run` in a process of its own, with real programs in a real sandbox."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recuse.sandbox.arch import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="another architecture than x86-64")

RECUSE = [sys.executable, "-m", "recuse.cli.main"]

DEVICE = """
import logging
from recuse import Device, File

class Echo(Device):
    name = "echo"
    def open(self, request):
        return EchoFile()

class EchoFile(File):
    def read(self, size, offset):
        raise ValueError("a mistake of the author's")
    def write(self, data, offset):
        logging.getLogger("mine").warning("got %s", bytes(data).decode().strip())
"""


@pytest.fixture(autouse=True)
def echo_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("echo.py").write_text(DEVICE, encoding="utf-8")


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RECUSE, "run", *args], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["true"], 0, ""),
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
        (
            ["no-such-program"],
            127,
            "recuse: no-such-program: not found; is it installed, and on the PATH?\n",
        ),
        (["./echo.py"], 126, "recuse: ./echo.py: cannot be executed: Permission denied\n"),
        (["/"], 126, "recuse: /: cannot be executed: Permission denied\n"),
    ],
)
def test_exit_status(argv: list[str], status: int, message: str) -> None:
    done = run("-d", "echo.py", "--", *argv)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", message)


@pytest.mark.parametrize("name", ["cuse", "cuse/x", "null/x"])
def test_a_name_that_is_taken(name: str) -> None:
    done = run("-d", f"echo.py,name={name}", "true")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == (
        f"recuse: /dev/{name}: recuse or another device has that name, or a part of it; "
        "choose another with name=...\n"
    )


def test_a_script_whose_interpreter_is_missing() -> None:
    script = Path("script")
    script.write_text("#!/no/such/interpreter\n", encoding="utf-8")
    script.chmod(0o755)
    done = run("./script")
    message = "recuse: ./script: cannot be executed: its interpreter is missing\n"
    assert (done.returncode, done.stderr) == (126, message)


def test_streams_and_environment_are_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "my own")
    done = subprocess.run(
        [*RECUSE, "run", "sh", "-c", "cat; echo $MINE; pwd; echo oops >&2"],
        input="from stdin\n", capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["from stdin", "my own", os.getcwd()]
    assert done.stderr == "oops\n"


def test_a_devices_mistake_is_told_and_does_no_harm() -> None:
    done = run("-d", "echo.py", "sh", "-c", "cat /dev/echo; echo on >/dev/echo; echo fine")
    assert done.returncode == 0
    assert done.stdout == "fine\n"
    (program, *ours) = sorted(done.stderr.splitlines(), key=lambda line: line.startswith("recuse:"))
    assert program == "cat: /dev/echo: Input/output error"
    assert ours[-1] == "recuse: got on"
    assert "recuse: ValueError: a mistake of the author's" in ours
    assert any("echo.py" in line for line in ours)
    assert all(line.startswith("recuse: ") for line in ours)


def test_where_seccomp_is_forbidden() -> None:
    deny = str(Path(__file__).with_name("deny.py"))
    done = subprocess.run(
        [sys.executable, deny, "317", "--", *RECUSE, "run", "true"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr.startswith("recuse: seccomp user notification is refused here")
    assert done.stderr.count("\n") == 1
    assert "recuse doctor" in done.stderr


def test_where_descriptors_of_others_can_neither_be_fetched_nor_compared() -> None:
    deny = str(Path(__file__).with_name("deny.py"))
    done = subprocess.run(
        [sys.executable, deny, "438", "312", "--", *RECUSE, "run", "-d", "echo.py", "sh", "-c",
         "echo on >/dev/echo"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "recuse: got on\n")


def test_recuse_in_recuse() -> None:
    done = run("--", *RECUSE, "run", "true")
    assert done.returncode == 125
    assert done.stderr.startswith("recuse: another seccomp supervisor has this process already")
    assert done.stderr.count("\n") == 1


def test_a_signal_is_passed_on() -> None:
    script = "trap 'echo ended; exit 3' TERM; echo ready; while :; do read line; done"
    with subprocess.Popen(
        [*RECUSE, "run", "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        # The shell's read goes on after the trap only if there is something to read.
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ended\n"
        assert process.wait(timeout=60) == 3


def on_a_terminal(args: list[str], keys: bytes) -> tuple[int, bytes]:
    """Run the command on a terminal of its own, and press `keys` when it prints "ready".

    Returns its exit status and all that the terminal showed.
    """
    ours, theirs = os.openpty()
    # setsid --ctty makes the terminal the one whose Ctrl-C it gets.
    process = subprocess.Popen(
        ["setsid", "--ctty", *RECUSE, "run", *args], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while b"ready" not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, keys)
        while True:
            shown += os.read(ours, 1024)
    except OSError:  # EIO: the last program that had the terminal is gone
        return process.wait(timeout=60), shown
    finally:
        os.close(ours)
        process.kill()
        process.wait()


def test_ctrl_c_ends_the_program_and_nothing_is_said() -> None:
    status, shown = on_a_terminal(
        ["-d", "echo.py", "sh", "-c", "echo ready; exec sleep 100"], b"\x03"
    )
    assert status == 130
    assert shown.replace(b"\r\n", b"\n") == b"ready\n^C"


def test_ctrl_c_is_the_programs_if_it_wants() -> None:
    script = "trap 'echo caught; exit 5' INT; echo ready; read line"
    status, shown = on_a_terminal(["sh", "-c", script], b"\x03")
    assert status == 5
    assert b"caught" in shown


def test_it_starts_quickly() -> None:
    """All of it takes 0.2 s on a slow machine; as CPU time, whatever else runs."""
    needed = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("-d", "echo.py", "true").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        needed.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(needed) < 0.4


def test_a_device_file_that_ignores_sigchld() -> None:
    head = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    Path("echo.py").write_text(head + DEVICE, encoding="utf-8")
    assert run("-d", "echo.py", "sh", "-c", "exit 7").returncode == 7
    assert run("-d", "echo.py", "sh", "-c", "kill -TERM $$").returncode == 143


def test_the_first_process_is_killed() -> None:
    """By the OOM killer, as it were: nothing of the sandbox is left."""
    script = "sleep 301 & echo $$ $!; exec sleep 302"
    with subprocess.Popen([*RECUSE, "run", "sh", "-c", script], stdout=subprocess.PIPE) as recuse:
        assert recuse.stdout
        program, other = map(int, recuse.stdout.readline().split())
        first = int(Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(first, signal.SIGKILL)
        assert recuse.wait(60) == 128 + signal.SIGKILL
    assert not Path(f"/proc/{program}").exists()
    assert not Path(f"/proc/{other}").exists()


@pytest.mark.right("namespaces")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have another /dev")
@pytest.mark.right("namespaces")
def test_without_dev_null() -> None:
    script = 'mount -t tmpfs none /dev; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "-", *RECUSE, "run", "-d", "echo.py", "sh", "-c",
         "echo on >/dev/echo; echo fine"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "recuse: got on\n")


@pytest.mark.parametrize(
    ("first_process", "message"),
    [
        ("exit 3", "ended with status 3 before the program could start"),
        ("kill -9 $$", "was killed by signal 9: is a memory limit too small?"),
    ],
)
def test_a_first_process_that_ends_at_once(first_process: str, message: str) -> None:
    Path("python").write_text(f"#!/bin/sh\n{first_process}\n", encoding="utf-8")
    Path("python").chmod(0o755)
    script = (
        "import sys; from recuse.cli.main import main\n"
        "sys.executable = './python'; sys.argv[1:] = ['run', 'true']; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 125
    assert done.stderr.startswith("recuse: the sandbox's first process")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.right("namespaces")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be without /proc")
def test_without_proc() -> None:
    script = 'mount -t tmpfs none /proc; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "-", *RECUSE, "run", "true"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr.startswith("recuse: there is no /proc")
    assert done.stderr.count("\n") == 1
