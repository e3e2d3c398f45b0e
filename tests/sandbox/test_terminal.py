"""`recuse run` at a terminal: job control and the keys that make signals."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from ..patience import PATIENCE_S

ECHO = """
from recuse import Device, File

class EchoFile(File):
    def read(self, size, offset):
        return b"from the device\\n" if self.once() else b""
    def once(self):
        self.done = not getattr(self, 'done', False)
        return self.done
    def write(self, data, offset):
        pass

class Echo(Device):
    name = "echo"
    def open(self, request):
        return EchoFile()
"""


class Terminal:
    """A shell at a pseudo-terminal, with job control."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                os.environ["PS1"] = "$ "
                os.execvp(argv[0], argv)
            finally:
                os._exit(127)
        attributes = termios.tcgetattr(self.master)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(self.master, termios.TCSANOW, attributes)
        self.seen = b""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> str:
        """Read until the text comes; return what came before it."""
        self._read_until([text])
        before, _, self.seen = self.seen.partition(text.encode())
        return before.decode(errors="replace")

    def expect_all(self, *texts: str) -> None:
        """Read until all of them have come, in whatever order, and nothing else is expected."""
        self._read_until(texts)
        self.seen = b""

    def _read_until(self, texts: Iterable[str]) -> None:
        end = time.monotonic() + PATIENCE_S
        for text in texts:
            while text.encode() not in self.seen:
                ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
                assert ready, f"no {text!r} in {self.seen!r}"
                try:
                    part = os.read(self.master, 4096)
                except OSError:  # EIO: nobody has the other end any more
                    part = b""
                assert part, f"no {text!r} in {self.seen!r}"
                self.seen += part

    def foreground(self) -> int:
        """The process group that the keys send signals to."""
        return os.tcgetpgrp(self.master)

    def resume(self) -> None:
        """Have the shell, which waits for a command, continue its job in the foreground."""
        shell = self.foreground()
        self.type("fg\n")
        end = time.monotonic() + PATIENCE_S
        while self.foreground() == shell:
            assert time.monotonic() < end
            time.sleep(0.001)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGHUP)
        os.close(self.master)
        os.waitpid(self.pid, 0)


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    (tmp_path / "echo.py").write_text(ECHO)
    main = "import sys; from recuse.cli.main import main; sys.exit(main())"
    return [sys.executable, "-c", main, "run", "-d", str(tmp_path / "echo.py"), "--"]


@pytest.fixture
def bash(argv: list[str]) -> Iterator[Terminal]:
    """A shell in which `$R PROGRAM` runs a program with /dev/echo."""
    terminal = Terminal(["bash", "--norc", "--noprofile", "-i"])
    terminal.type(f'R() {{ {sys.executable} -c "{argv[2]}" run -d {argv[5]} -- "$@"; }}\n')
    terminal.type("echo rea''dy\n")
    terminal.expect("ready")
    terminal.expect("$ ")
    yield terminal
    terminal.close()


def test_interrupt(bash: Terminal) -> None:
    bash.type("R sh -c 'cat /dev/echo; echo star''ted; exec sleep 1000'\n")
    bash.expect("from the device\r\n")
    bash.expect("started")
    bash.type("\x03")
    bash.type("echo status $?.\n")
    bash.expect("status 130.")


def test_an_interrupt_that_the_program_catches(bash: Terminal) -> None:
    bash.type(
        "R sh -c 'trap \"echo caught; exit 7\" INT; echo star''ted; while :; do sleep 0.01; done'\n"
    )
    bash.expect("started")
    bash.type("\x03")
    bash.expect("caught")
    bash.type("echo status $?.\n")
    bash.expect("status 7.")


def test_quit(bash: Terminal) -> None:
    bash.type("ulimit -c 0; R sh -c 'echo star''ted; exec sleep 1000'\n")
    bash.expect("started")
    bash.type("\x1c")
    bash.type("echo status $?.\n")
    bash.expect("status 131.")


def test_stop_and_continue(bash: Terminal, tmp_path: Path) -> None:
    # The program does not read the terminal when it is stopped: it could take what is typed next.
    go_on = tmp_path / "go on"
    wait = f'until test -e "{go_on}"; do sleep 0.01; done'
    bash.type(f"R sh -c 'echo star''ted; {wait}; read x; echo got $x.; cat /dev/echo; exit 5'\n")
    bash.expect("started")
    bash.type("\x1a")
    bash.expect("Stopped")
    bash.expect("$ ")
    bash.type("jobs; echo at the shell\n")
    bash.expect("Stopped")
    bash.expect("at the shell")
    bash.expect("$ ")
    bash.type("fg\n")
    bash.expect('"$@"')
    go_on.touch()
    bash.type("input\n")
    bash.expect("got input.")
    bash.expect("from the device")
    bash.type("echo status $?.\n")
    bash.expect("status 5.")


def test_in_the_background(bash: Terminal) -> None:
    bash.type("R sh -c 'cat /dev/echo; exit 6' > /dev/null & wait $!; echo status $?.\n")
    bash.expect("status 6.")


def test_the_terminal_is_the_programs(bash: Terminal) -> None:
    bash.type("R sh -c 'tty; test -t 0 && test -t 1 && test -t 2 && echo all three; stty size'\n")
    bash.expect("/dev/pts/")
    bash.expect("all three")
    bash.type("R cat /dev/tty\n")
    bash.type("typed\n\x04")
    bash.expect("typed")


def test_an_interactive_shell_in_the_sandbox(bash: Terminal) -> None:
    bash.type("R bash --norc --noprofile -i\n")
    bash.expect("$ ")
    bash.type("PS1=in''side:\n")
    bash.expect("inside:")
    bash.type("sh -c 'echo star''ted; exec sleep 1000'\n")
    bash.expect("started")
    bash.type("\x1a")
    bash.expect("Stopped")
    bash.expect("inside:")
    bash.type("cat /dev/echo; jobs\n")
    bash.expect("from the device")
    bash.expect("Stopped")
    bash.type("kill -9 %1; sleep 0.1; :\n")
    bash.expect("Killed")
    bash.expect("inside:")
    bash.type("exit 9\n")
    bash.expect("exit")
    bash.type("echo status $?.\n")
    bash.expect("status 9.")


def test_the_terminal_goes_away(argv: list[str]) -> None:
    # As when its window is closed: SIGHUP for the whole session.
    terminal = Terminal([*argv, "sh", "-c", "sleep 1000 & echo started; cat; wait"])
    terminal.expect("started")
    child = os.pidfd_open(terminal.pid)
    os.close(terminal.master)
    ended = select.select([child], [], [], PATIENCE_S)[0]
    os.close(child)
    if not ended:
        os.kill(terminal.pid, signal.SIGKILL)
    os.waitpid(terminal.pid, 0)
    assert ended


def test_timeout_s_signals(argv: list[str]) -> None:
    # timeout(1) signals its child and the whole group.
    done = subprocess.run(
        ["timeout", "-s", "INT", "1", *argv, "sleep", "1000"], check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 124


def test_sigint_for_recuse_alone_reaches_the_program(argv: list[str]) -> None:
    # As from kill(1), a test harness or an IDE's stop button: no terminal has sent it to the group.
    with subprocess.Popen(
        [*argv, "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.send_signal(signal.SIGINT)
        try:
            assert program.wait(5) in (130, -signal.SIGINT)
        finally:
            program.terminate()


WAITING = """
import asyncio
from recuse import Device, File

class WaitFile(File):
    async def write(self, data, offset):
        self.device.lines.put_nowait(data)
    async def read(self, size, offset):
        return await self.device.lines.get()

class Wait(Device):
    name = "wait"
    def __init__(self):
        super().__init__()
        self.lines = asyncio.Queue()
    def open(self, request):
        return WaitFile()
"""


@pytest.fixture
def waiting(bash: Terminal, tmp_path: Path) -> Terminal:
    """The shell, with a device in echo.py whose reads wait."""
    (tmp_path / "echo.py").write_text(WAITING)
    return bash


def test_interrupt_while_a_device_is_read(waiting: Terminal) -> None:
    waiting.type("R sh -c 'echo star''ted; exec cat /dev/wait'\n")
    waiting.expect("started")
    waiting.type("\x03")
    waiting.type("echo status $?.\n")
    waiting.expect("status 130.")


def test_quit_while_a_device_is_read(waiting: Terminal) -> None:
    waiting.type("ulimit -c 0; R sh -c 'echo star''ted; exec cat /dev/wait'\n")
    waiting.expect("started")
    waiting.type("\x1c")
    waiting.type("echo status $?.\n")
    waiting.expect("status 131.")


def test_an_interrupt_that_is_caught_while_a_device_is_read(waiting: Terminal) -> None:
    script = 'print("star" "ted", flush=True); open("/dev/wait").read()'
    waiting.type(f"R {sys.executable} -S -c '{script}'\n")
    waiting.expect("started")
    waiting.type("\x03")
    waiting.expect("KeyboardInterrupt")
    waiting.type("echo status $?.\n")
    waiting.expect("status 130.")


def test_stop_and_continue_while_a_device_is_read(waiting: Terminal) -> None:
    # recuse is stopped with its program, and goes on with it.
    waiting.type("R sh -c 'echo star''ted; exec cat /dev/wait'\n")
    waiting.expect("started")
    waiting.type("\x1a")
    waiting.expect("Stopped")
    waiting.expect("$ ")
    waiting.resume()
    waiting.type("\x03")
    waiting.type("echo status $?.\n")
    waiting.expect("status 130.")


def test_job_control_in_the_sandbox_while_a_device_is_read(waiting: Terminal) -> None:
    waiting.type("R bash --norc --noprofile -i\n")
    waiting.expect("$ ")
    waiting.type("PS1=in''side:\n")
    waiting.expect("inside:")
    waiting.type("sh -c 'echo star''ted; exec cat /dev/wait'\n")
    waiting.expect("started")
    waiting.type("\x1a")
    waiting.expect("Stopped")
    waiting.expect("inside:")
    waiting.type("echo hel''lo > /dev/wait; fg\n")
    waiting.expect("hello")
    waiting.type("\x1a")
    waiting.expect("Stopped")
    waiting.expect("inside:")
    waiting.type("bg\n")
    waiting.expect("inside:")
    waiting.type("echo wor''ld > /dev/wait\n")
    waiting.expect_all("world", "inside:")
    waiting.resume()
    waiting.type("\x03")
    waiting.expect("inside:")
    waiting.type("echo status $?.\n")
    waiting.expect("status 130.")


DEAF = """
import threading
from recuse import Device, File

class DeafFile(File):
    def read(self, size, offset):
        threading.Event().wait()

class Deaf(Device):
    name = "deaf"
    def open(self, request):
        return DeafFile()
"""


def test_the_keys_that_end_a_program_do_so_whatever_its_device_does(
    bash: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "echo.py").write_text(DEAF)
    bash.type("ulimit -c 0; R sh -c 'echo star''ted; exec cat /dev/deaf'\n")
    bash.expect("started")
    bash.type("\x03")
    bash.type("echo status $?.\n")
    bash.expect("status 130.")
    # One that catches Ctrl-C waits on, as for a driver.
    script = 'print("star" "ted", flush=True); open("/dev/deaf").read()'
    bash.type(f"R {sys.executable} -S -c '{script}'\n")
    bash.expect("started")
    bash.type("\x03\x1c")
    bash.type("echo status $?.\n")
    bash.expect("status 131.")
