"""`recuse run` as a command: options, messages and exit statuses; the sandbox itself is stubbed."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.cli.commands import cli
from recuse.cli.main import main, plain_mount, plain_run
from recuse.sandbox import SandboxError
from recuse.sandbox.launch.parent import lacks
from recuse.server.device import Device

ECHO = """
from recuse.server.device import Device

class Echo(Device):
    name = "echo"
    def open(self, request):
        raise OSError
"""

Supervise = Callable[[Sequence[Device], Sequence[str]], int]
Stub = Callable[[Supervise], None]


@pytest.fixture(autouse=True)
def echo_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    Path("echo.py").write_text(ECHO, encoding="utf-8")


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Run programs by a function of the test's instead of in a sandbox."""
    return lambda function: monkeypatch.setattr("recuse.sandbox.supervise", function)


def recuse(
    *args: str, script: str = "from recuse.cli.main import main"
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}\nsys.exit(main())", *args],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "names", "argv"),
    [
        (["true"], [], ["true"]),
        (["--", "true"], [], ["true"]),
        (["-d", "echo.py", "--", "ls", "-l", "--all"], ["echo"], ["ls", "-l", "--all"]),
        (["-d", "echo.py", "ls", "-d", "."], ["echo"], ["ls", "-d", "."]),
        (["--device=echo.py", "sh", "-c", "--", "x"], ["echo"], ["sh", "-c", "--", "x"]),
        (["-decho.py", "-d", "echo.py,name=b", "x"], ["echo", "b"], ["x"]),
        (["x", "--help"], [], ["x", "--help"]),
        (["--", "-x", "--", "y"], [], ["-x", "--", "y"]),
        (["x", ""], [], ["x", ""]),
    ],
)
def test_what_is_run(supervise: Stub, args: list[str], names: list[str], argv: list[str]) -> None:
    calls = []

    def run(devices: Sequence[Device], argv: Sequence[str]) -> int:
        calls.append(([device.name for device in devices], list(argv)))
        return 0

    supervise(run)
    assert main(["run", *args]) == 0
    assert calls == [(names, argv)]


word = st.sampled_from(
    ["-d", "--device", "-decho.py", "--device=x", "--trace", "--trace=f", "--trace-format", "jsonl",
     "--", "-", "-x", "--help", "", "run", "true", "a.py,b=c"]
) | st.text(max_size=3)  # fmt: skip


@given(words=st.lists(word, max_size=6))
def test_the_usual_form_means_the_same_to_click(words: list[str]) -> None:
    plain = plain_run(["run", *words])
    if plain is None:
        return
    command = cli.commands["run"]
    given = command.make_context("run", list(words)).params
    specs, argv = plain
    usual = {"mounts": (), "fuse": False, "trace": None, "trace_format": "text"}
    assert given == {"specs": (*specs,), "argv": (*argv,), **usual}


mount_word = st.sampled_from(
    ["-o", "--options", "-oro", "--background", "--private", "ro,uid=5", "a.py", "files", "--", "-"]
) | st.text(max_size=3)  # fmt: skip


@given(words=st.lists(mount_word, max_size=6))
def test_the_usual_form_of_mount_means_the_same_to_click(words: list[str]) -> None:
    plain = plain_mount(["mount", *words])
    if plain is None:
        return
    given = cli.commands["mount"].make_context("mount", list(words)).params
    (spec, directory, options), background = plain
    usual = {"argv": (), "private": False, "trace": None, "trace_format": "text"}
    assert given == {
        "spec": spec,
        "directory": directory,
        "options": (*options,),
        "background": background,
        **usual,
    }


def test_other_commands_and_mistakes_are_for_click() -> None:
    for line in ["", "--help", "doctor", "run", "run -d", "run -d x", "run -h", "run -x true"]:
        assert plain_run(line.split()) is None, line
        assert plain_mount(line.split()) is None, line


@pytest.mark.parametrize("status", [0, 1, 42, 137, 255])
def test_the_exit_status_is_the_programs(supervise: Stub, status: int) -> None:
    supervise(lambda devices, argv: status)
    assert main(["run", "x"]) == status


def error_in(error: BaseException) -> Supervise:
    def run(devices: Sequence[Device], argv: Sequence[str]) -> int:
        raise error

    return run


def os_error(code: int, filename: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), filename)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (os_error(errno.ENOENT, "prog"), 127, "prog: not found; is it installed, and on the PATH?"),
        (os_error(errno.EACCES, "prog"), 126, "prog: cannot be executed: Permission denied"),
        (os_error(errno.ENOEXEC, "prog"), 126, "prog: cannot be executed: Exec format error"),
        (
            os_error(errno.EPERM),
            125,
            "Operation not permitted; run `recuse doctor` to see what is missing here",
        ),
        (os_error(errno.EMFILE), 125, str(lacks(errno.EMFILE))),
        (os_error(errno.EAGAIN), 125, str(lacks(errno.EAGAIN))),
        (os_error(errno.ENOMEM), 125, str(lacks(errno.ENOMEM))),
        (
            os_error(errno.ENOENT, "/proc/other"),
            125,
            "/proc/other: No such file or directory; run `recuse doctor` to see what is missing "
            "here",
        ),
        (
            os_error(errno.EEXIST, "/dev/cuse"),
            125,
            "/dev/cuse: recuse or another device has that name, or a part of it; "
            "choose another with name=...",
        ),
        (SandboxError("not here: see `recuse doctor`"), 125, "not here: see `recuse doctor`"),
    ],
)
def test_errors_of_the_sandbox(
    supervise: Stub,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    status: int,
    message: str,
) -> None:
    supervise(error_in(error))
    assert main(["run", "prog"]) == status
    assert capsys.readouterr().err == f"recuse: {message}\n"


def test_a_script_without_its_interpreter(
    supervise: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    supervise(error_in(os_error(errno.ENOENT, "./echo.py")))
    assert main(["run", "./echo.py"]) == 126
    message = "recuse: ./echo.py: cannot be executed: its interpreter is missing\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (
            [],
            2,
            "no program given: add it after the options (see recuse run --help)",
        ),
        (["--nonsense"], 2, "No such option '--nonsense' (see recuse run --help)"),
        (["-d"], 2, "Option '-d' requires an argument (see recuse run --help)"),
        (
            ["-d", "echo.py,mode=999", "x"],
            125,
            "echo.py: ValueError: Echo.mode is 999: not 0 to 0o777; octal numbers are written "
            "0o..., such as 0o660",
        ),
        (["-d", "gone.py", "x"], 125, "gone.py: no such file"),
        (
            ["-d", "echo.py", "-d", "./echo.py", "x"],
            125,
            "./echo.py: there is already a device named echo; add name=...",
        ),
        (
            ["-d", "echo.py", "-d", "echo.py,name=echo/2", "x"],
            125,
            "echo.py,name=echo/2: there is already a device named echo; add name=...",
        ),
        (
            ["-d", "echo.py,major=60", "-d", "echo.py,name=b,major=60", "x"],
            125,
            "echo.py,name=b,major=60: there is already a device with number 60:0; "
            "add minor=..., or major=0 for a free number",
        ),
        (["-d", "many.py", "x"], 125, "many.py:1: ValueError: one two"),
    ],
)
def test_errors_before_anything_runs(
    supervise: Stub,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    status: int,
    message: str,
) -> None:
    supervise(error_in(AssertionError("nothing is to be run")))
    Path("many.py").write_text("raise ValueError('one\\n  two')", encoding="utf-8")
    assert main(["run", *args]) == status
    assert capsys.readouterr().err == f"recuse: {message}\n"


def test_two_devices_of_a_major_number_differ_by_the_minor(supervise: Stub) -> None:
    supervise(lambda devices, argv: len(devices))
    args = ["-d", "echo.py,major=60", "-d", "echo.py,name=b,major=60,minor=1"]
    assert main(["run", *args, "x"]) == 2


def test_interrupted_while_the_sandbox_works(
    supervise: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    supervise(error_in(KeyboardInterrupt()))
    assert main(["run", "x"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_interrupted_while_a_device_is_loaded() -> None:
    Path("slow.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    done = recuse("run", "-d", "slow.py", "x")
    assert done.returncode == 130
    assert done.stderr.strip() == ""


def test_what_is_logged_is_marked_line_by_line() -> None:
    Path("noisy.py").write_text(
        "import logging\n"
        "log = logging.getLogger('recuse.server')\n"
        "log.info('not shown')\n"
        "log.warning('a warning')\n"
        "try:\n"
        "    1 / 0\n"
        "except ZeroDivisionError:\n"
        "    log.exception('a method failed')\n",
        encoding="utf-8",
    )
    done = recuse("run", "-d", "noisy.py", "x")
    lines = done.stderr.splitlines()
    assert lines[0] == "recuse: a warning"
    assert lines[1] == "recuse: a method failed"
    assert lines[2] == "recuse: Traceback (most recent call last):"
    assert "recuse: ZeroDivisionError: division by zero" in lines
    assert all(line.startswith("recuse: ") for line in lines)
    assert "not shown" not in done.stderr


def test_help_and_version() -> None:
    version = recuse("--version")
    assert version.returncode == 0
    assert version.stdout.startswith("recuse 0.")
    for args in (["--help"], ["-h"], ["run", "--help"], ["doctor", "--help"]):
        done = recuse(*args)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: recuse ")


def test_without_a_command_there_is_help() -> None:
    done = recuse()
    assert done.returncode == 2
    assert done.stdout == ""
    assert "doctor" in done.stderr


def test_without_a_subcommand_there_is_help_too() -> None:
    done = recuse("trace")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == recuse("trace", "--help").stdout


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("--version=1", "recuse"),
        ("doctor --json=1", "recuse doctor"),
        ("mount -o", "recuse mount"),
        ("trace -h=1", "recuse trace"),
        ("trace summary -x", "recuse trace summary"),
        ("umount --lazy=1 x", "recuse umount"),
    ],
)
def test_a_mistake_points_to_the_help_of_its_command(
    capsys: pytest.CaptureFixture[str], line: str, command: str
) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err.endswith(f" (see {command} --help)\n")


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rum"]) == 2
    assert capsys.readouterr().err.startswith("recuse: No such command 'rum'")


def test_help_imports_nothing_that_it_does_not_need() -> None:
    script = (
        "import atexit\n"
        "atexit.register(lambda: print([name for name in sys.modules if name in "
        "('asyncio', 'recuse.cli.spec', 'recuse.kernel', 'recuse.sandbox')]))\n"
        "from recuse.cli.main import main"
    )
    assert recuse("--help", script=script).stdout.splitlines()[-1] == "[]"
