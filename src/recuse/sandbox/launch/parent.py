"""Start a program under the filter."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib.util
import marshal
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, Final

from recuse.runtime.interpreter import NAME, interpreter
from recuse.sandbox.arch import DESCRIPTION, SUPPORTED, arch
from recuse.sandbox.launch.process_handle import ProcessHandle
from recuse.sandbox.tasks.memory import UnreadableError, read_memory
from recuse.sandbox.trap.filter import LENDING, build_filter
from recuse.sandbox.trap.listener import Listener

Argument = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Command = Argument | Sequence[Argument]
"""A program and its arguments, or just a program, as in subprocess."""

_INIT: Final = """\
import sys, _socket, marshal
control = _socket.socket(fileno=int(sys.argv[1]))
exec(marshal.loads(control.recv(131072) or sys.exit()))
main(control, sys.argv[2:])"""


_END_S: Final = 5.0
"""How long a process may take to end after it has closed its sockets."""

_HELD_BACK: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
"""Signals of a terminal, sent to its whole group, and of those that end a group."""

_YAMA: Final = "/proc/sys/kernel/yama/ptrace_scope"

_UNREADABLE: Final = (
    "kernel.yama.ptrace_scope is {}, so recuse cannot look into programs here: set it to 0 or 1 "
    "(sysctl), or run recuse with CAP_SYS_PTRACE"
)


class SandboxError(Exception):
    """The sandbox cannot work here; the message says why in one line."""


class Program(subprocess.Popen[Any]):
    """A program in a sandbox.

    It is a :class:`subprocess.Popen` that ends when *everything* that the program started has
    ended. ``pid`` is the sandbox's first process. That waits for the program and its orphans, and
    ends as the program did. ``program_pid`` is the program itself, which gets the signals.
    """

    program_pid: int = -1
    _process: ProcessHandle | None = None
    control: socket.socket | None = None
    """The socket to the first process: it says how the program ended, then closes."""
    is_executed: bool = False
    """Whether the first process was told to execute the program: signals are the program's now."""

    def adopt(self, program_pid: int, control: socket.socket) -> None:
        """Remember the program's own process, and the socket to the first one."""
        self.program_pid = program_pid
        self._process = ProcessHandle(program_pid)
        self.control = control

    def poll(self) -> int | None:
        """See :meth:`subprocess.Popen.poll`."""
        super().poll()
        return self._told()

    def wait(self, timeout: float | None = None) -> int:
        """See :meth:`subprocess.Popen.wait`."""
        super().wait(timeout)
        return self._told() or 0

    def _told(self) -> int | None:
        """The return code. Where SIGCHLD is ignored, the kernel forgets it and says 0."""
        control, code = self.control, self.returncode
        if code is not None and control is not None:
            self.control = None
            with contextlib.suppress(OSError):
                packet = control.recv(64, socket.MSG_DONTWAIT)
                if packet.startswith(b"W") and code == 0:
                    self.returncode = os.waitstatus_to_exitcode(int(packet[1:]))
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """Send a signal to the program; do nothing if it has ended."""
        if self._process is not None:
            self._process.send_signal(sig)

    def cancel(self) -> None:
        """Have the start fail: kill the first process, which takes the program with it."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def program_ended(self) -> bool:
        """Whether the program itself has ended, whatever it may have left in the background."""
        return self._process is not None and self._process.ended()

    def disown(self) -> None:
        """Close the handle of the program: it gets no more signals from here."""
        if self._process is not None:
            self._process.close()


class Launch:
    """A program that is about to be executed: its listener exists, and must be served now."""

    def __init__(
        self,
        argv: Command,
        *,
        open_files: int | None = None,
        filesystems: bool = False,
        starting: Callable[[Program], None] = lambda _: None,
        **options: Any,
    ) -> None:
        """Start the sandbox's first process and, stopped before its exec, the program's.

        Args:
            argv: the program, looked up along PATH, and its arguments.
            open_files: the program's soft RLIMIT_NOFILE; None for that of this process.
            filesystems: whether filesystems are mounted in its sandbox.
            starting: called when the first process exists, before it is waited for. From then on,
                :meth:`Program.cancel` ends the start.
            options: those of :class:`subprocess.Popen`, except ``shell``, ``preexec_fn`` and
                ``executable``.

        Raises:
            SandboxError: the kernel has no user notification, or does not allow it; or /proc is not
                that of this process's pid namespace.
            TypeError, ValueError: the options make no sense here, or there is no program.
        """
        if not SUPPORTED:
            raise SandboxError(
                f"recuse runs programs on x86-64 and arm64 only, but this is {DESCRIPTION}"
            )
        require_proc()
        for option in ("shell", "executable", "preexec_fn", "args"):
            if options.pop(option, None):
                raise TypeError(f"a program in a sandbox cannot be started with {option}=")
        arguments = [argv] if isinstance(argv, str | bytes | os.PathLike) else argv
        self._argv = [os.fsencode(argument) for argument in arguments]
        if not self._argv or not self._argv[0]:
            raise ValueError("no program to run: argv is empty")
        if open_files is None:
            open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._control, theirs = (
            _above_standard(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        )
        with theirs:
            command: list[str | bytes] = ["-I", "-S", "-c", _INIT, str(theirs.fileno())]
            passed = (*options.pop("pass_fds", ()), theirs.fileno())
            try:
                command = [_interpreter(), *command, *self._argv]
                self._control.send(_code_of_init())
                # They are for the program, which will have its own handlers for them, and not for
                # the interpreter that becomes the program.
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
                try:
                    self.program = Program(command, pass_fds=passed, **options)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            except BaseException:
                self._control.close()
                raise
        try:
            starting(self.program)
            self.program.args = argv
            seccomp = arch.SYSCALLS["seccomp"]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # reported below
                program = build_filter(filesystems=filesystems)
                blocked = b",".join(b"%d" % number for number in mask)
                parameters = (seccomp, open_files, LENDING, blocked, program)
                self._control.send(b"%d %d %d %b %b" % parameters)
            self.listener = self._receive_listener()
        except BaseException:
            self.abandon()
            raise

    def _receive_listener(self) -> Listener:
        packet = b""
        descriptors: list[int] = []
        with contextlib.suppress(ConnectionResetError):  # it ended with something unread
            packet, descriptors, _, _ = socket.recv_fds(self._control, 256, 1)
        if not packet:
            raise SandboxError(_explain_end(self.program))
        if not packet.startswith(b"L"):
            raise SandboxError(_explain(packet))
        if not descriptors:
            raise SandboxError(lacks(errno.EMFILE))
        listener = Listener(descriptors[0])
        try:
            self.program.adopt(int(packet.split()[1]), self._control)
            _look_into(self.program.program_pid)
        except BaseException:
            listener.close()
            raise
        listener.prefer_sync_wake_up()
        return listener

    def execute(self) -> None:
        """Let the program be executed.

        Raises:
            OSError: as :class:`subprocess.Popen` does: FileNotFoundError, PermissionError, ...
        """
        self.program.is_executed = True
        packet = b""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was killed
            self._control.send(b"go")
            packet = self._control.recv(256)
        if packet.startswith(b"E"):
            code = int(packet.split()[1])
            raise OSError(code, os.strerror(code), os.fsdecode(self._argv[0]))
        if packet != b"X":
            raise SandboxError("the sandbox's first process died: try again")

    def kill(self) -> None:
        """Kill whatever is left of the program and what it started."""
        try:
            self._control.send(b"kill")
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                raise

    def abandon(self) -> None:
        """Kill the program, wait for its end and close what belongs to it."""
        # The program itself too: until it is executed, the first process waits for it.
        self.program.send_signal(signal.SIGKILL)
        self.kill()
        self._control.close()
        with self.program:
            for stream in (self.program.stdin, self.program.stdout, self.program.stderr):
                if stream is not None:
                    stream.close()
            self.program.wait()
        self.program.disown()

    def close(self) -> None:
        """Close what belongs to a program that has ended."""
        self._control.close()
        self.program.disown()


def _interpreter() -> str:
    """The program that runs Python code: if Python is embedded, not ``sys.executable``.

    Raises:
        SandboxError: none was found.
    """
    found = interpreter()
    if found is None:
        raise SandboxError(
            f"the sandbox's first process needs {NAME}, which is neither in sys.exec_prefix nor on "
            "the PATH: install it there"
        )
    return found


@functools.cache
def _code_of_init() -> bytes:
    """The first process's code, compiled. This package may be in an archive."""
    spec = importlib.util.find_spec("recuse.sandbox.launch.init")
    assert spec is not None
    return marshal.dumps(spec.loader.get_code(spec.name))  # type: ignore[union-attr]


def _above_standard(end: socket.socket) -> socket.socket:
    """Move the socket to a number above 2, so it is not taken for a closed standard stream."""
    if end.fileno() > 2:
        return end
    with end:
        return socket.socket(fileno=fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 3))


def require_proc() -> None:
    """Raise SandboxError if /proc is missing, of another pid namespace, or hides what is needed."""
    try:
        name = os.readlink("/proc/self")
    except OSError:
        raise SandboxError(
            "there is no /proc, which recuse needs to see what programs do: mount it "
            "(mount -t proc proc /proc)"
        ) from None
    if name != str(os.getpid()):
        raise SandboxError(
            "/proc belongs to another pid namespace: mount a new one (with unshare: --mount-proc)"
        )
    found = interpreter()
    if found is not None and os.access(found, os.X_OK) and not os.access(found, os.R_OK):
        # fs/exec.c, would_dump
        raise SandboxError(
            f"{found}: may not be read, so the kernel hides in /proc what recuse needs to know of "
            "processes that run it: let this user read it, or use another Python"
        )


def lacks(number: int | None) -> str | None:
    """What an errno says has run out, and what to do; None for any other errno."""
    if number == errno.EAGAIN:
        return (
            "no more processes or threads can be started: raise the limit (ulimit -u; in a "
            "container --pids-limit)"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return f"no more files can be opened: raise the limit (ulimit -n; it is {soft} of {hard})"
    if number == errno.ENOMEM:
        return "no more memory: raise the limit (ulimit -v, or the container's)"
    return None


def _look_into(pid: int) -> None:
    """Check that a program, which just waits, may be looked into. SandboxError if none ever may.

    If it is only this program, that may change when it executes another one.
    """
    try:
        read_memory(pid, 1, 1)
    except UnreadableError:
        scope = ""
        with contextlib.suppress(OSError), open(_YAMA, encoding="ascii") as file:
            scope = file.read().strip()
        if scope in ("2", "3"):
            raise SandboxError(_UNREADABLE.format(scope)) from None
    except OSError:
        pass  # nothing is there


def _explain_end(program: Program) -> str:
    """Explain how the first process ended without sending anything."""
    try:
        code = program.wait(_END_S)
    except subprocess.TimeoutExpired:
        return "the sandbox's first process does not answer: try again"
    if code < 0:
        reason = ": is a memory limit too small?" if code == -signal.SIGKILL else ""
        return f"the sandbox's first process was killed by signal {-code}{reason}"
    return (
        f"the sandbox's first process, {_interpreter()}, ended with status {code} before the "
        "program could start: run it yourself, with -c pass, to see why"
    )


def _explain(packet: bytes) -> str:
    _, number, what = packet.split(b" ", 2) if packet.count(b" ") > 1 else (*packet.split(), b"")
    code = int(number)
    if (lack := lacks(code)) is not None:
        return lack
    if code in (errno.EINVAL, errno.ENOSYS):
        return (
            "this kernel lacks the seccomp user notification that recuse needs (Linux 5.19 or "
            "newer): see `recuse doctor`"
        )
    if code == errno.EBUSY:
        return (
            "another seccomp supervisor has this process already (recuse inside recuse?): "
            "run recuse outside it"
        )
    if what and not what.startswith(b"seccomp"):
        return f"{what.decode(errors='replace')}: recuse cannot start here; see `recuse doctor`"
    return f"seccomp user notification is refused here ({os.strerror(code)}): see `recuse doctor`"
