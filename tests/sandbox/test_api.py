"""Sandbox, its run and popen."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import recuse
from recuse.sandbox import Program, Sandbox, SandboxError

from ..patience import PATIENCE_S
from .conftest import Fifo, Shell, Shells, Start


def test_input_and_output(sandbox: Sandbox) -> None:
    done = sandbox.run(["cat"], input=b"bytes", capture_output=True)
    assert (done.args, done.returncode, done.stdout, done.stderr) == (["cat"], 0, b"bytes", b"")
    done = sandbox.run(["sh", "-c", "cat; echo err >&2"], input="täxt", capture_output=True,
                       text=True, encoding="utf-8")  # fmt: skip
    assert (done.stdout, done.stderr) == ("täxt", "err\n")
    done = sandbox.run(["cat"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert done.stdout == b""
    done = sandbox.run(["sh", "-c", "echo err >&2"], stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT)  # fmt: skip
    assert done.stdout == b"err\n"


def test_a_large_input_and_output(sandbox: Sandbox) -> None:
    data = os.urandom(1 << 20)
    assert sandbox.run(["cat"], input=data, stdout=subprocess.PIPE).stdout == data


def test_return_codes(sandbox: Sandbox) -> None:
    for script, code in (("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", -9),
                         ("kill -SEGV $$", -11), ("kill -TERM $$", -15), ("kill -INT $$", -2),
                         ("kill -HUP $$", -1), ("kill -PIPE $$", -13),
                         ("kill -USR1 $$", -10)):  # fmt: skip
        assert sandbox.run(["sh", "-c", script]).returncode == code, script
    sandbox.run(["true"], check=True)
    with pytest.raises(subprocess.CalledProcessError) as raised:
        sandbox.run(["sh", "-c", "echo out; exit 3"], check=True, stdout=subprocess.PIPE)
    assert (raised.value.returncode, raised.value.output) == (3, b"out\n")
    assert raised.value.cmd == ["sh", "-c", "echo out; exit 3"]


def test_a_timeout_kills_everything(sandbox: Sandbox, echo: Fifo) -> None:
    # A child in the background, in a session of its own, that ignores signals.
    script = "trap '' TERM HUP INT; exec 5<>/dev/echo; setsid sleep 1000 & echo $!; wait"
    with pytest.raises(subprocess.TimeoutExpired) as raised:
        sandbox.run(["sh", "-c", script], timeout=5, stdout=subprocess.PIPE)
    assert raised.value.cmd == ["sh", "-c", script]
    assert raised.value.timeout == 5
    background = int(raised.value.output)
    assert not os.path.exists(f"/proc/{background}")
    assert echo.left_open == 0 < echo.opened


def test_programs_that_cannot_be_executed(sandbox: Sandbox, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    plain = tmp_path / "plain"
    plain.write_text("echo hello\n")
    plain.chmod(0o755)
    for argv, error, code in (
        (["no-such-program"], FileNotFoundError, errno.ENOENT),
        (["/no/such/program"], FileNotFoundError, errno.ENOENT),
        ([tmp_path], PermissionError, errno.EACCES),
        (["/etc/passwd"], PermissionError, errno.EACCES),
        ([script], FileNotFoundError, errno.ENOENT),
        ([plain], OSError, errno.ENOEXEC),
        (["/dev/null/x"], NotADirectoryError, errno.ENOTDIR),
        (["x" * 5000], OSError, errno.ENAMETOOLONG),
        (["echo", "x" * 200_000], OSError, errno.E2BIG),
    ):
        with pytest.raises(error) as raised:
            sandbox.run(argv)
        assert raised.value.errno == code
        if code != errno.E2BIG:
            assert raised.value.filename == os.fspath(argv[0])
        with pytest.raises(error):  # as subprocess does
            subprocess.run(argv, check=False)
    assert sandbox.run(["true"]).returncode == 0


def test_arguments_that_are_wrong(sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        sandbox.run(["true"], cwd="/no/such/directory")
    assert raised.value.filename == "/no/such/directory"
    for argv, error in ((["true", "a\0b"], ValueError), ([], (ValueError, IndexError)),
                        ([3], TypeError)):  # fmt: skip
        with pytest.raises(error):
            sandbox.run(argv, timeout=PATIENCE_S)  # type: ignore[arg-type]  # wrong on purpose
    unknown: tuple[dict[str, Any], ...] = (
        {"shell": True},
        {"executable": "sh"},
        {"preexec_fn": print},
        {"nonsense": 1},
    )
    for options in unknown:
        with pytest.raises(TypeError):
            sandbox.run(["true"], stdin=subprocess.DEVNULL, timeout=PATIENCE_S, **options)
    twice: tuple[dict[str, Any], ...] = (
        {"input": b"", "stdin": subprocess.PIPE},
        {"capture_output": True, "stdout": subprocess.PIPE},
    )
    for options in twice:
        with pytest.raises(ValueError, match="may not"):
            sandbox.run(["true"], **options)


def test_a_program_and_nothing_else_may_be_a_string(sandbox: Sandbox) -> None:
    assert sandbox.run("true").returncode == 0
    assert sandbox.run(b"true").returncode == 0


def test_arguments_are_passed_as_they_are(sandbox: Sandbox, tmp_path: Path) -> None:
    argv = ["printf", "%s.", "", " a b ", "--", "-x", "$HOME", "ü", "\n", os.fsdecode(b"\xff\xfe")]
    done = sandbox.run(argv, stdout=subprocess.PIPE)
    assert done.stdout == b".".join(map(os.fsencode, argv[2:])) + b"."
    assert sandbox.run([b"printf", tmp_path], stdout=subprocess.PIPE).stdout == bytes(tmp_path)


ENVIRONMENTS = [
    {},
    {"A": "1"},
    {"PATH": "/nowhere", "LANG": "C", "X": "a=b\nc"},
    {"LC_ALL": "C"},
    {"LANG": "C", "PYTHONHOME": "/nowhere", "PYTHONPATH": "/nowhere", "PYTHONSTARTUP": "/nowhere"},
    {"LC_CTYPE": "de_DE", "PYTHONUTF8": "1", "PYTHONWARNINGS": "error", "LD_BIND_NOW": "1"},
]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_the_environment_is_exactly_what_was_given(
    sandbox: Sandbox, environment: dict[str, str]
) -> None:
    done = sandbox.run(["/usr/bin/env", "-0"], env=environment, capture_output=True)
    entries = done.stdout.split(b"\0")[:-1]
    assert sorted(entries) == sorted(f"{k}={v}".encode() for k, v in environment.items())
    assert done.stderr == b""


def test_the_environment_is_inherited(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECUSE_TEST", "yes")
    native = subprocess.run(["env", "-0"], stdout=subprocess.PIPE, check=True).stdout
    ours = sandbox.run(["env", "-0"], stdout=subprocess.PIPE).stdout
    assert sorted(ours.split(b"\0")) == sorted(native.split(b"\0"))


def test_the_path_that_counts_is_the_programs(sandbox: Sandbox, tmp_path: Path) -> None:
    program = tmp_path / "recuse-test-program"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    done = sandbox.run([program.name], env={"PATH": str(tmp_path)}, stdout=subprocess.PIPE)
    assert done.stdout == b"found\n"
    # Without PATH there is a default.
    assert sandbox.run(["true"], env={}).returncode == 0


def test_options_of_popen(sandbox: Sandbox, tmp_path: Path) -> None:
    script = "pwd; umask; ulimit -n; echo $$; ps -o sid= -p $$"
    done = sandbox.run(["sh", "-c", script], cwd=tmp_path, umask=0o027, start_new_session=True,
                       stdout=subprocess.PIPE, text=True)  # fmt: skip
    lines = done.stdout.split()
    assert lines[:2] == [str(tmp_path), "0027"]
    assert int(lines[4]) != os.getsid(0)


def test_only_the_descriptors_that_are_passed_arrive(sandbox: Sandbox) -> None:
    r, w = os.pipe()
    os.set_inheritable(r, True)
    try:
        script = (
            "import os\n"
            "for n in sorted(map(int, os.listdir('/proc/self/fd'))):\n"
            "    try: print(n, os.readlink(f'/proc/self/fd/{n}').split(':')[0])\n"
            "    except OSError: pass\n"
        )
        done = sandbox.run([sys.executable, "-I", "-S", "-c", script], pass_fds=[w],
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert done.stderr == ""
        assert done.stdout == f"0 /dev/null\n1 pipe\n2 pipe\n{w} pipe\n"
        sandbox.run(["bash", "-c", f"echo hello >&{w}"], pass_fds=[w], check=True)
        assert os.read(r, 9) == b"hello\n"
    finally:
        os.close(r)
        os.close(w)


def test_a_passed_descriptor_is_held_by_the_program_alone(sandbox: Sandbox) -> None:
    r, w = os.pipe()
    with sandbox.popen(["bash", "-c", f"exec {w}>&-; read x"], pass_fds=[w],
                       stdin=subprocess.PIPE) as program:  # fmt: skip
        os.close(w)
        assert os.read(r, 1) == b""  # the end, while the program runs
        assert program.poll() is None
        os.close(r)


def test_the_standard_streams_are_held_by_the_program_alone(sandbox: Sandbox, start: Start) -> None:
    r, w = os.pipe()
    script = "os.close(0); os.close(1); sys.exit(len(os.read(int(args[0]), 1)))"
    with start(sandbox, script, r, pass_fds=[r]) as program:
        os.close(r)
        assert program.stdout.read() == b""
        with pytest.raises(BrokenPipeError):
            program.stdin.write(b"x")
        assert program.poll() is None
        os.close(w)
    assert program.returncode == 0


def test_a_program_in_the_background(sandbox: Sandbox) -> None:
    program = sandbox.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert program.poll() is None
    assert program.stdin is not None
    program.stdin.write(b"x")
    assert program.stdout is not None
    assert program.stdout.read(1) == b"x"
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(0.01)
    program.terminate()
    assert program.wait(PATIENCE_S) == -signal.SIGTERM
    program.terminate()  # again: nothing
    program.kill()
    program.stdin.close()
    program.stdout.close()


def test_wait_is_for_everything_that_was_started(sandbox: Sandbox, echo: Fifo) -> None:
    r, w = os.pipe()
    script = f"(exec 5</dev/echo; read x <&{r}; echo late >/dev/echo) & exit 3"
    with sandbox.popen(["bash", "-c", script], pass_fds=[r]) as program:
        os.close(r)
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.3)
        os.close(w)
        assert program.wait(PATIENCE_S) == 3
    assert echo.writes == [b"late\n"]


def test_a_signal_goes_to_the_program(sandbox: Sandbox) -> None:
    script = "trap 'echo caught; exit 7' USR1; echo ready; while :; do read x || sleep 0.01; done"
    with sandbox.popen(["sh", "-c", script], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"ready\n"
        program.send_signal(signal.SIGUSR1)
        assert program.stdout.readline() == b"caught\n"
    assert program.returncode == 7


def test_several_programs_share_the_devices(sandbox: Sandbox, echo: Fifo) -> None:
    first = sandbox.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    second = sandbox.popen(["sh", "-c", "echo two > /dev/echo"])
    assert second.wait(PATIENCE_S) == 0
    assert sandbox.run(["cat", "/dev/echo"], stdout=subprocess.PIPE).stdout == b"two\n"
    assert first.communicate(b"one") == (b"one", None)


def test_programs_started_by_many_threads(sandbox: Sandbox, echo: Fifo) -> None:
    errors = []

    def work(number: int) -> None:
        try:
            for _ in range(8):
                done = sandbox.run(["sh", "-c", f"echo {number} >/dev/echo; echo {number}"],
                                   stdout=subprocess.PIPE)  # fmt: skip
                assert done.stdout == b"%d\n" % number
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(echo.writes) == 32


def test_two_sandboxes_have_devices_of_their_own(make_echo: type[Fifo], shells: Shells) -> None:
    one, two = make_echo(), make_echo()
    with Sandbox(one) as first, Sandbox(two) as second:
        shells(first)("echo one > /dev/echo")
        shells(second)("echo two > /dev/echo")
    assert (one.writes, two.writes) == ([b"one\n"], [b"two\n"])


def test_a_sandbox_may_be_used_again(echo: Fifo, shells: Shells) -> None:
    sandbox = Sandbox(echo)
    for number in range(3):
        with sandbox:
            assert shells(sandbox)(f"echo {number} > /dev/echo; cat /dev/echo") == f"{number}\n"
        with pytest.raises(RuntimeError):
            sandbox.run(["true"])
    assert echo.opened == echo.released == 6


def test_the_end_kills_what_still_runs(echo: Fifo) -> None:
    with Sandbox(echo) as sandbox:
        program = sandbox.popen(["sh", "-c", "exec 5</dev/echo; echo; sleep 1000 & sleep 1000"],
                                stdout=subprocess.PIPE)  # fmt: skip
        assert program.stdout is not None
        program.stdout.readline()
    assert program.returncode == -signal.SIGKILL
    assert (echo.opened, echo.released) == (1, 1)
    program.stdout.close()


def test_an_exception_ends_the_sandbox_too(echo: Fifo) -> None:
    program: Program | None = None

    def fail() -> None:
        nonlocal program
        with Sandbox(echo) as sandbox:
            program = sandbox.popen(["sleep", "1000"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert program is not None
    assert program.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("one", "two"), [("a", "a/b"), ("a/b", "a"), ("b", "cuse"), ("b", "cuse/x"), ("b", "null/x")]
)
def test_names_that_are_directories_of_others(make_echo: type[Fifo], one: str, two: str) -> None:
    with pytest.raises(FileExistsError), Sandbox(make_echo(name=one), make_echo(name=two)):
        pass


def test_devices_that_clash(make_echo: type[Fifo]) -> None:
    one, two = make_echo(), make_echo()
    with pytest.raises(FileExistsError), Sandbox(one, two):
        pass
    with (
        pytest.raises(OSError, match="busy"),
        Sandbox(make_echo(major=60), make_echo(name="b", major=60)),
    ):
        pass


def test_no_devices(shells: Shells) -> None:
    with Sandbox() as sandbox:
        assert shells(sandbox)("echo x; ls /dev/echo") == (
            "x\nls: cannot access '/dev/echo': No such file or directory\n[status 2]"
        )


def test_devices_are_closed_once_after_their_files(make_echo: type[Fifo], shells: Shells) -> None:
    device = make_echo()
    closed = []
    device.close = lambda: closed.append(device.left_open)  # type: ignore[method-assign]  # of this device only
    with Sandbox(device) as sandbox:
        program = sandbox.popen(["sh", "-c", "exec 5</dev/echo; echo; sleep 1000"],
                                stdout=subprocess.PIPE)  # fmt: skip
        assert program.stdout is not None
        program.stdout.readline()
        assert closed == []
    program.stdout.close()
    assert closed == [0]


def test_a_sandbox_in_a_sandbox_is_refused_clearly(sandbox: Sandbox, client: Shell) -> None:
    script = (
        f"sys.path.insert(0, {str(Path(recuse.__file__).parents[1])!r})\n"
        "from recuse.sandbox import Sandbox, SandboxError\n"
        "with Sandbox() as inner:\n"
        "    try: inner.run(['true'])\n"
        "    except SandboxError as error: print(error)\n"
    )
    output = client(script)
    assert "another seccomp supervisor" in output
    assert len(output.splitlines()) == 1
    assert issubclass(SandboxError, Exception)
