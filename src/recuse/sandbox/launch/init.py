"""The first process of a sandbox: starts the program, adopts its orphans, waits for them all.

:mod:`recuse.sandbox.launch.parent` starts an interpreter in isolated mode and sends it this
module's code, which may not be a file of its own. This process stays outside the filter. Its exit
status is the program's: it ends by the same signal if the program did.

Each program in a sandbox waits for this process to start. So it imports only extension modules,
such as posix and _socket. The standard library's modules around them would take twice as long to
import as the interpreter takes to start.

Arguments: the control socket's descriptor number, then the program and its arguments.

It receives on the control socket: the number of the seccomp system call, the program's soft limit
of open files, the flags with which the filter lets sendmsg pass, and the filter. It sends, each as
one packet:

- ``L PID`` with the listener's descriptor;
- after it has received ``go``: ``X`` when the program has been executed, ``E ERRNO`` if that
  failed;
- at the end ``W STATUS``, the program's wait status. A supervisor that ignores SIGCHLD gets it in
  no other way.

If the supervisor goes away, the remaining programs are killed after a grace period: they cannot
open a file any more.
"""

import _ctypes
import _socket
import posix
import resource
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    Handler = Callable[[int, FrameType | None], Any] | int | None
else:
    import _signal

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER = 36
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32
GRACE_S = 2.0
"""How long programs may go on after the supervisor has gone away."""
KILL_AGAIN_S = 0.05
EIO = 5
ENOMEM = 12
GO = _signal.SIGUSR1

_KEPT_FROM_INIT = (_signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGHUP)


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Bytes(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_libc = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # the program itself
_prctl = _Function(_ctypes.dlsym(_libc, "prctl"))
_syscall = _Function(_ctypes.dlsym(_libc, "syscall"))


class Dispositions:
    """The signal handlers and the mask that the program inherits."""

    def __init__(self, handlers: "dict[int, Handler]", mask: "set[int]") -> None:
        self.handlers = handlers
        self.mask = mask


def check(result: int, what: str) -> int:
    """Raise OSError if a C call returned -1."""
    if result < 0:
        code = _ctypes.get_errno()
        raise OSError(code, f"{what}: {posix.strerror(code)}")
    return result


class Filter:
    """The filter, with the system call that installs it."""

    def __init__(self, seccomp: int, lending: int, program: bytes) -> None:
        """Take the filter; ``seccomp`` is the number of the system call that installs it.

        ``lending`` are the flags with which the filter lets sendmsg pass.
        """
        self._seccomp = seccomp
        self.lending = lending
        self._program = program

    def install(self) -> int:
        """Put the calling thread under the filter; returns the listener's descriptor."""
        # struct sock_fprog; for a ctypes structure, Python 3.14 imports all of ctypes.
        pointer = bytes(_Bytes(self._program))
        count = (len(self._program) // 8).to_bytes(2, sys.byteorder)
        prog = count + bytes(len(pointer) - len(count)) + pointer
        flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        return check(_syscall(self._seccomp, SECCOMP_SET_MODE_FILTER, flags, prog), "seccomp")


def original_environment() -> dict[bytes, bytes]:
    """The environment before the interpreter's locale coercion added to it.

    Entries without a name are left out: they cannot be passed on.
    """
    with open("/proc/self/environ", "rb") as environ:
        entries = environ.read().split(b"\0")
    pairs = [entry.partition(b"=") for entry in entries if entry.find(b"=") > 0]
    return {name: value for name, _, value in pairs}


def become_program(
    control: _socket.socket, the_filter: Filter, argv: list[bytes], dispositions: Dispositions
) -> None:
    """In the child: install the filter, wait for the supervisor, execute. Does not return.

    It sends the listener through ``control``. Until the signal GO says that trapped calls are
    served, it must make none: one would wait for ever.
    """
    try:
        environment = original_environment()
        check(_prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        check(_prctl(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0), "prctl")
        listener = the_filter.install()
    except OSError as error:
        control.send(b"E %d %s" % (error.errno or 0, str(error.strerror).encode()))
        posix._exit(125)
    try:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, listener.to_bytes(4, sys.byteorder))
        control.sendmsg([b"L"], [rights], the_filter.lending)
    except OSError:  # the first process is gone
        posix._exit(125)
    _signal.sigwait({GO})
    check(_prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0), "prctl")
    for number, handler in dispositions.handlers.items():
        _signal.signal(number, handler)
    for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # which Python ignores
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, dispositions.mask)
    posix.close(listener)
    error_code = execute(argv, environment)
    control.send(b"E %d" % error_code)
    posix._exit(127)


def execute(argv: list[bytes], environment: dict[bytes, bytes]) -> int:
    """Execute a program, found along PATH as by execvp; returns an errno if that fails.

    os.execvpe would import more modules, by calls that are already trapped here.
    """
    name = argv[0]
    path = environment.get(b"PATH", b"/bin:/usr/bin")
    directories = [b""] if b"/" in name else path.split(b":")
    found = last = 0
    for directory in directories:
        separator = b"/" if directory and not directory.endswith(b"/") else b""
        try:
            posix.execve(directory + separator + name, argv, environment)
        except OSError as error:
            last = error.errno or EIO
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                found = found or last
    return found or last


def start(
    control: _socket.socket, the_filter: Filter, argv: list[bytes], mask: "set[int]"
) -> int | None:
    """Start the program and hand its listener over; returns its pid, None if that failed.

    ``mask`` is the program's signal mask. Until now, all of _KEPT_FROM_INIT are blocked.
    """
    handlers = {int(number): _signal.getsignal(number) for number in _KEPT_FROM_INIT}
    # Otherwise nobody learns how the program ends.
    handlers[int(_signal.SIGCHLD)] = _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    handlers[int(_signal.SIGINT)] = (
        _signal.SIG_IGN if handlers[int(_signal.SIGINT)] == _signal.SIG_IGN else _signal.SIG_DFL
    )
    ours, childs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    _signal.pthread_sigmask(_signal.SIG_BLOCK, {GO})
    pid = posix.fork()
    if pid == 0:
        ours.close()
        control.close()
        dispositions = Dispositions(handlers, mask)
        become_program(childs, the_filter, argv, dispositions)
    for number in _KEPT_FROM_INIT:
        _signal.signal(number, _signal.SIG_IGN)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    childs.close()
    let_go_of_files({ours.fileno(), control.fileno()})
    packet, rights, _, _ = ours.recvmsg(256, _socket.CMSG_SPACE(4))
    if not rights:
        control.send(packet or b"E 5 the program's process died")
        return None
    control.sendmsg([b"L %d" % pid], rights)
    posix.close(int.from_bytes(rights[0][2], sys.byteorder))
    if control.recv(16) != b"go":
        posix.kill(pid, _signal.SIGKILL)
        return pid
    posix.kill(pid, GO)
    # The child's end closes on exec; only a failure says something first.
    control.send(ours.recv(64) or b"X")
    ours.close()
    return pid


def let_go_of_files(kept: set[int]) -> None:
    """Close the program's files: nobody who waits for the program to close one waits for init."""
    null = open_nothing()
    for number in (0, 1, 2):
        posix.dup2(null, number)
    for number in {int(name) for name in posix.listdir("/proc/self/fd")} - kept - {0, 1, 2}:
        try:
            posix.close(number)
        except OSError:
            pass  # the one that listed them is already closed


def open_nothing() -> int:
    """A descriptor of something with nothing to read: /dev/null, if it exists."""
    try:
        return posix.open("/dev/null", posix.O_RDWR)
    except OSError:
        return posix.open("/", posix.O_RDONLY)


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``."""
    children: dict[int, list[int]] = {}
    for name in posix.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    line = stat.read()
            except OSError:
                continue  # it has ended
            # PID (NAME, which may contain anything) STATE PPID ...
            parent = int(line.rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    new = [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, ())]
        found += new
    return found


def kill_all() -> None:
    """Kill every process of the sandbox; called again until none is left."""
    for pid in descendants(posix.getpid()):
        try:
            posix.kill(pid, _signal.SIGKILL)
        except OSError:
            pass  # it has ended


def wait_for_all(pid: int, control: _socket.socket) -> int:
    """Wait until no process is left; returns the wait status of ``pid``.

    It kills all of them when the supervisor says so, or some time after it has gone away. It uses
    one thread: there may be no other.
    """
    ready, told = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
    _signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGCHLD, lambda _number, _frame: None)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGCHLD})
    poll = select.poll()
    poll.register(ready, select.POLLIN)
    poll.register(control.fileno(), select.POLLIN)
    kill_at: float | None = None
    status = 0
    while True:
        try:
            while True:
                ended, ended_status = posix.waitpid(-1, posix.WNOHANG)
                if ended == 0:
                    break
                if ended == pid:
                    status = ended_status
        except ChildProcessError:
            return status
        left_s = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        for number, _ in poll.poll(None if left_s is None else left_s * 1000):
            if number == ready:
                posix.read(ready, 4096)
                continue
            try:
                command = control.recv(16)
            except OSError:
                command = b""
            if command == b"kill":
                kill_at = time.monotonic()
            else:
                poll.unregister(number)
                if kill_at is None:
                    kill_at = time.monotonic() + GRACE_S
        if kill_at is not None and time.monotonic() >= kill_at:
            try:
                kill_all()
            except (OSError, MemoryError):
                pass  # it tries again soon
            kill_at = time.monotonic() + KILL_AGAIN_S


def end_like(status: int) -> None:
    """End as the program did."""
    if posix.WIFSIGNALED(status):
        number = posix.WTERMSIG(status)
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if number not in (_signal.SIGKILL, _signal.SIGSTOP):
                _signal.signal(number, _signal.SIG_DFL)
                _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {number})
        except (OSError, ValueError):
            pass
        posix.kill(posix.getpid(), number)
    posix._exit(posix.WEXITSTATUS(status))


def prepare_and_start(control: _socket.socket, arguments: list[str]) -> int | None:
    """Prepare this process and start the program; returns its pid, None if that failed."""
    # If the program should start with a standard stream closed, no other file may take its place.
    # These placeholders are closed when the program is executed.
    while (placeholder := open_nothing()) <= 2:
        pass
    posix.close(placeholder)
    posix.set_inheritable(control.fileno(), False)
    seccomp, soft_limit, lending, blocked, program = control.recv(65536).split(b" ", 4)
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft_limit), hard_limit))
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    argv = [argument.encode(encoding, errors) for argument in arguments]
    check(_prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
    mask = {int(number) for number in blocked.split(b",") if number}
    return start(control, Filter(int(seccomp), int(lending), program), argv, mask)


def main(control: _socket.socket, arguments: list[str]) -> None:
    """Be the first process; does not return."""
    try:
        pid = prepare_and_start(control, arguments)
    except (OSError, MemoryError) as error:
        control.send(b"E %d" % (getattr(error, "errno", None) or ENOMEM))
        posix._exit(125)
    if pid is None:
        posix._exit(125)
    status = wait_for_all(pid, control)
    try:
        control.send(b"W %d" % status)
    except OSError:
        pass  # the supervisor is gone
    end_like(status)
