"""Running one program in a sandbox as the foreground command of a terminal."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
from collections.abc import Callable, Sequence
from types import FrameType

from recuse.kernel.connection import Tap
from recuse.sandbox.api import Sandbox
from recuse.sandbox.launch import Program
from recuse.sandbox.machine import Joinable
from recuse.server.device import Device

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

_KEYS = (signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (*_KEYS, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def supervise(
    devices: Sequence[Device | Joinable],
    argv: Sequence[str],
    *,
    tap: Callable[[], Tap] | None = None,
) -> int:
    """Run a program and wait until it and everything it started have ended.

    Descriptors, terminal, working directory and environment are the caller's own. What the
    terminal's keys send reaches the program by itself, since it is in the same process group;
    other signals are passed on. When the program has ended, and only what it left in the
    background goes on, any of them ends that too.

    Returns:
        The exit status, or 128 + n if signal n ended the program.

    Raises:
        OSError: as :meth:`recuse.Sandbox.popen` and for devices that clash.
        SandboxError: if sandboxes cannot work on this machine.
    """
    inherited = _inherited_descriptors()
    _keep_freed_memory()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Each file that any program has open costs the supervisor a descriptor.
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    program: Program | None = None
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        if program is not None and program.program_ended():
            sandbox.kill()
            return
        if number in _KEYS and _in_foreground():
            return  # the terminal sends it to the whole group
        if number == signal.SIGHUP and os.getsid(0) == os.getpid():
            # The terminal is gone. It tells its session's leader, which we are; the kernel would
            # tell the others when that ended.
            signal.signal(number, signal.SIG_IGN)
            os.killpg(0, number)
        if program is None:
            early.append(number)
        else:
            program.send_signal(number)

    with Sandbox(*devices, tap=tap) as sandbox:
        # What is ignored (nohup) stays so, for the program too.
        previous = {
            number: signal.signal(number, forward)
            for number in _PASSED_ON
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            program = sandbox.popen(argv, open_files=soft, env=_environment(), pass_fds=inherited)
            for number in early:
                program.send_signal(number)
            status = _wait(program)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    return 128 - status if status < 0 else status


def _wait(program: Program) -> int:
    """Wait for the end, and for signals, whichever thread the kernel gives them to.

    Python runs their handlers in this thread, which would not wake up from waitpid(2) for them.
    """
    ready, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    previous = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    ended = os.pidfd_open(program.pid)
    try:
        poll = select.poll()
        poll.register(ready, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while (status := program.poll()) is None:
            poll.poll()
            with contextlib.suppress(BlockingIOError):
                os.read(ready, 64)
        return int(status)
    finally:
        signal.set_wakeup_fd(previous)
        for descriptor in (ready, told, ended):
            os.close(descriptor)


def _in_foreground() -> bool:
    """Whether this command's process group is the one that its terminal's keys send signals to."""
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
    """What this command was given besides the standard streams: bash's <(...), make's jobs, ..."""
    numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    inherited = []
    for number in numbers:
        with contextlib.suppress(OSError):  # the one that listed them is closed already
            if number > 2 and os.get_inheritable(number):
                inherited.append(number)
    return inherited


def _keep_freed_memory() -> None:
    """Have the C library keep up to 64 MiB of freed memory instead of returning it to the kernel.

    Each large transfer makes and drops buffers of its size, and getting a megabyte from the kernel
    anew, page by page, takes ten times as long as filling it.
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
