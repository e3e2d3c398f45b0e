"""The first process of a sandbox: starts the program, adopts its orphans, waits for them all.

Run as a script by :mod:`recuse.sandbox.launch`, by path and in isolated mode, so it imports nothing
but the standard library. It stays outside the filter. Its exit status is the program's own: it
ends by the same signal if the program did.

Arguments: the control socket's descriptor number; the rest is the program and its arguments.

On the control socket it is told the number of the seccomp system call, the program's soft limit of
open files, the flags with which the filter lets sendmsg pass, and the filter. It sends, each as one
packet: ``L PID`` with the listener's descriptor; when told ``go``, ``X`` when the program has been
executed or ``E ERRNO`` when that failed. When the supervisor goes away, what is left of the
programs is killed after a grace period: they cannot open a file any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
PR_SET_CHILD_SUBREAPER = 36
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32
GRACE_S = 2.0
GO = signal.SIGUSR1

Handler = Callable[[int, FrameType | None], Any] | int | None

_libc = ctypes.CDLL(None, use_errno=True)

_KEPT_FROM_INIT = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


class SockFprog(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class Dispositions(NamedTuple):
    """What the program inherits of signals."""

    handlers: dict[int, Handler]
    mask: set[signal.Signals] | set[int]


def check(result: int, what: str) -> int:
    """Raise OSError for a C call's -1."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


class Filter(NamedTuple):
    """The filter, and what belongs to it."""

    seccomp: int
    """The number of the system call that installs it."""
    lending: int
    """Flags with which it lets sendmsg pass."""
    program: bytes

    def install(self) -> int:
        """Put the calling thread under the filter; returns the listener's descriptor."""
        prog = SockFprog(len(self.program) // 8, self.program)
        flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        return check(
            _libc.syscall(self.seccomp, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(prog)),
            "seccomp",
        )


def original_environment() -> dict[bytes, bytes]:
    """The environment as it was before the interpreter's locale coercion added to it."""
    with open("/proc/self/environ", "rb") as environ:
        pairs = [entry.partition(b"=") for entry in environ.read().split(b"\0") if b"=" in entry]
    return {name: value for name, _, value in pairs}


def become_program(
    control: socket.socket, the_filter: Filter, argv: list[bytes], dispositions: Dispositions
) -> None:
    """In the child: install the filter, wait for the supervisor, execute. Does not return.

    The listener is sent through ``control``. Until the signal GO says that trapped calls are
    served, none may be made: one would wait for ever.
    """
    try:
        environment = original_environment()
        check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
        check(_libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        listener = the_filter.install()
    except OSError as error:
        control.send(b"E %d %s" % (error.errno or 0, str(error.strerror).encode()))
        os._exit(125)
    try:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, listener.to_bytes(4, sys.byteorder))
        control.sendmsg([b"L"], [rights], the_filter.lending)
    except OSError:  # the first process is gone
        os._exit(125)
    signal.sigwait({GO})
    check(_libc.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0), "prctl")
    for number, handler in dispositions.handlers.items():
        signal.signal(number, handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, dispositions.mask)
    os.close(listener)
    error_code = execute(argv, environment)
    control.send(b"E %d" % error_code)
    os._exit(127)


def execute(argv: list[bytes], environment: dict[bytes, bytes]) -> int:
    """Execute a program, found along PATH like execvp does; returns an errno if it cannot."""
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        return error.errno or 1


def start(control: socket.socket, the_filter: Filter, argv: list[bytes]) -> int | None:
    """Start the program and hand its listener over; returns its pid, None if that failed."""
    handlers = {int(number): signal.getsignal(number) for number in _KEPT_FROM_INIT}
    handlers[int(signal.SIGINT)] = (
        signal.SIG_IGN if handlers[int(signal.SIGINT)] == signal.SIG_IGN else signal.SIG_DFL
    )
    ours, childs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {GO})
    pid = os.fork()
    if pid == 0:
        ours.close()
        control.close()
        dispositions = Dispositions(handlers, mask)
        become_program(childs, the_filter, argv, dispositions)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number in _KEPT_FROM_INIT:
        signal.signal(number, signal.SIG_IGN)
    childs.close()
    let_go_of_files({ours.fileno(), control.fileno()})
    packet, (*listeners,), _, _ = socket.recv_fds(ours, 256, 1)
    if not listeners:
        control.send(packet or b"E 5 the program's process died")
        return None
    (listener,) = listeners
    socket.send_fds(control, [b"L %d" % pid], [listener])
    os.close(listener)
    if control.recv(16) != b"go":
        os.kill(pid, signal.SIGKILL)
        return pid
    os.kill(pid, GO)
    # The child's end closes on exec; only a failure says something first.
    control.send(ours.recv(64) or b"X")
    ours.close()
    return pid


def let_go_of_files(kept: set[int]) -> None:
    """Close what belongs to the program, or who waits for it to close that would wait for us."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    for number in {int(name) for name in os.listdir("/proc/self/fd")} - kept - {0, 1, 2}:
        with contextlib.suppress(OSError):  # the descriptor that listed them is closed already
            os.close(number)


def descendants(pid: int) -> list[int]:
    """All processes below ``pid``."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                # PID (NAME, which may hold anything) STATE PPID ...
                parent = int(stat.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    new = [pid]
    while new:
        new = [child for parent in new for child in children.get(parent, ())]
        found += new
    return found


def kill_all() -> None:
    """Kill every process of the sandbox; called until there is none left."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def watch_supervisor(control: socket.socket) -> None:
    """Kill the programs when the supervisor says so, or some time after it has gone away."""
    command = b""
    with contextlib.suppress(OSError):
        command = control.recv(16)
    if command != b"kill":
        time.sleep(GRACE_S)
    while True:
        kill_all()
        time.sleep(0.05)


def wait_for_all(pid: int) -> int:
    """Wait until no process is left; returns the wait status of ``pid``."""
    status = 0
    while True:
        try:
            ended, ended_status = os.wait()
        except ChildProcessError:
            return status
        if ended == pid:
            status = ended_status


def end_like(status: int) -> None:
    """End as the program did."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            if number not in (signal.SIGKILL, signal.SIGSTOP):
                signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


def main(arguments: list[str]) -> None:
    """Be the first process."""
    # Where the program is to start with a standard stream closed, nothing of ours may take its
    # place: these are closed when the program is executed.
    while (placeholder := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(placeholder)
    control = socket.socket(fileno=int(arguments[0]))
    control.set_inheritable(False)
    seccomp, soft_limit, lending, program = control.recv(65536).split(b" ", 3)
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft_limit), hard_limit))
    argv = [os.fsencode(argument) for argument in arguments[1:]]
    try:
        check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
    except OSError as error:
        control.send(b"E %d" % (error.errno or 0))
        os._exit(125)
    pid = start(control, Filter(int(seccomp), int(lending), program), argv)
    if pid is None:
        os._exit(125)
    threading.Thread(target=watch_supervisor, args=(control,), daemon=True).start()
    end_like(wait_for_all(pid))


if __name__ == "__main__":
    main(sys.argv[1:])
