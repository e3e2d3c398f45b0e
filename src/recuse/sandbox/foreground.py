"""Run one program in a sandbox as the foreground command of a terminal."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from recuse.kernel.connection.connection import Tap
from recuse.runtime.signals import SignalPipe
from recuse.sandbox.api import Sandbox
from recuse.sandbox.launch.parent import Program, SandboxError, require_proc
from recuse.sandbox.machine import Joinable
from recuse.sandbox.tasks.status import ThreadStatus
from recuse.server.device import Device

if TYPE_CHECKING:
    from recuse.channel.socket_mount import RemoteFilesystem
    from recuse.server.filesystem.served import Served

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36

_ORPHANS_S = 5.0
"""How long orphans are looked for and killed."""

_KEYS = (signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (*_KEYS, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_FEW_FILES = 64

_BROKEN = 125
"""The exit status if recuse itself failed, as with env(1) and timeout(1)."""


def supervise(
    devices: Sequence[Device | Joinable],
    argv: Sequence[str],
    *,
    mounts: Mapping[str, Served | RemoteFilesystem] | None = None,
    fuse: bool | None = None,
    tap: Callable[[], Tap] | None = None,
) -> int:
    """Run a program and wait until it and everything it started have ended.

    Descriptors, terminal, working directory and environment are the caller's own. The program gets
    the signals of the terminal's keys directly, since it is in the same process group. Other
    signals are passed on to it. After the program has ended, any signal also ends what it left in
    the background. A signal before the program is executed ends the start.

    Returns:
        The exit status, or 128 + n if signal n ended the program or arrived before it existed;
        125 if the program had to be killed because its calls could not be served.

    Raises:
        OSError: as :meth:`recuse.Sandbox.popen`, and if devices clash.
        SandboxError: sandboxes cannot work on this machine.
    """
    require_proc()
    inherited = _inherited_descriptors()
    _keep_freed_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Each file of recuse's that a program has open costs the supervisor a descriptor.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < _FEW_FILES:
        with contextlib.suppress(OSError):
            # glibc loads it when a thread is ended by the interpreter's end, and aborts if it
            # cannot.
            ctypes.CDLL("libgcc_s.so.1")
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with Sandbox(*devices, mounts=mounts, fuse=fuse, tap=tap) as sandbox:
        # Made before the program is started: later there may be no descriptors left.
        pipe = SignalPipe()
        signals = _Signals(sandbox)
        try:
            pipe.take(_PASSED_ON, signals.forward)
            options = {"env": _environment(), "pass_fds": inherited, "open_files": soft}
            program = sandbox.popen(argv, starting=signals.starting, **options)
            status = _until_end(program, pipe.reader)
            if status < 0:
                _end_orphans()
        except (OSError, SandboxError):
            if signals.early is None:
                raise
            return 128 + signals.early
        finally:
            pipe.close()
        if sandbox.broken:
            return _BROKEN
    return 128 - status if status < 0 else status


class _Signals:
    """What the signals do that this command gets."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._program: Program | None = None
        self.early: int | None = None
        """The one that ended the start."""

    def starting(self, program: Program) -> None:
        """Take note of the program's first process."""
        self._program = program
        if self.early is not None:
            program.cancel()

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        del frame
        program = self._program
        if program is None or not program.is_executed:
            # Nothing is raised here: that would be at any place, between the start of a thread and
            # the note of it for example.
            self.early = number
            if program is not None:
                program.cancel()
            return
        if program.program_ended():
            self._sandbox.kill()
            return
        if number in _KEYS and _in_foreground():
            return  # the terminal sends it to the whole group
        if number == signal.SIGHUP and os.getsid(0) == os.getpid():
            # The terminal is gone. Only its session's leader gets this signal: us. The kernel would
            # signal the others when the leader ended.
            signal.signal(number, signal.SIG_IGN)
            os.killpg(0, number)
        program.send_signal(number)


def _until_end(program: Program, signals: int) -> int:
    """Return the first process's status when everything has ended.

    `signals` is where their numbers come. Python runs their handlers in this thread, which would
    not wake up from waitpid(2) for them.
    """
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    ending = -1 if program.control is None else program.control.fileno()
    poll.register(ending, select.POLLIN)
    while (status := program.poll()) is None:
        # When the first process ends, it sends a packet, or its end of the socket closes.
        if any(number == ending for number, _ in poll.poll()):
            return program.wait()
        os.read(signals, 64)
    return int(status)


def _end_orphans() -> None:
    """Kill what the sandbox's first process left behind when it was killed: recuse adopted it.

    A device's own children are not under the filter, and are left alone.
    """
    from recuse.sandbox.launch.init import descendants  # noqa: PLC0415 - rarely needed

    own = _filters("self")
    until = time.monotonic() + _ORPHANS_S
    while time.monotonic() < until:
        left = [pid for pid in descendants(os.getpid()) if _filters(str(pid)) > own]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)


def _filters(pid: str) -> int:
    """The number of seccomp filters that a process has; 0 if it has ended."""
    with contextlib.suppress(OSError, KeyError):
        return ThreadStatus(pid).number(b"Seccomp_filters")
    return 0


def _in_foreground() -> bool:
    """Whether the terminal's keys send signals to this command's process group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _inherited_descriptors() -> list[int]:
    """The descriptors that this command inherited besides the standard streams.

    For example those of bash's <(...) or make's job server.
    """
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    inherited = []
    for number in numbers:
        with contextlib.suppress(OSError):  # the one that listed them is already closed
            if number > 2 and os.get_inheritable(number):
                inherited.append(number)
    return inherited


def _keep_freed_memory() -> None:
    """Have the C library keep up to 64 MiB of freed memory instead of returning it to the kernel.

    Each large transfer allocates and frees buffers of its size. Getting a megabyte from the kernel
    again, page by page, takes ten times as long as filling it.
    """
    with contextlib.suppress(AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes


def _environment() -> dict[str, str]:
    """The environment that this command was given.

    In the C locale, Python adds LC_CTYPE to its own (PEP 538).
    """
    environment = dict(os.environ)
    with open("/proc/self/environ", "rb") as given:
        if not any(entry.startswith(b"LC_CTYPE=") for entry in given.read().split(b"\0")):
            environment.pop("LC_CTYPE", None)
    return environment
