"""`recuse mount --private`: a mount that only one program, and what it starts, can see."""

import ctypes
import errno
import os
import signal
import subprocess
from collections.abc import Sequence

from recuse.channel.mounting import MountError
from recuse.channel.unmounting import call
from recuse.cli.failure import Failure
from recuse.cli.mount import load, make_mount
from recuse.cli.run import configure_logging, not_started, recording
from recuse.runtime.signals import SignalPipe

# linux/sched.h, linux/mount.h
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_REC, _MS_SLAVE = 0x4000, 1 << 19
_libc = ctypes.CDLL(None, use_errno=True)

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FROM_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


def run_private(
    spec: str,
    directory: str,
    options: Sequence[str],
    argv: Sequence[str],
    *,
    trace: str | None = None,
    layout: str = "text",
) -> int:
    """Mount the filesystem of `spec` for `argv` alone, run that, and return its exit status.

    Raises:
        Failure: with a message for the user.
    """
    configure_logging()
    # Before there are threads: with some, a process cannot have a new user namespace.
    try:
        leave()
    except OSError as error:
        raise Failure(f"--private: {_explain(error)}") from error
    with recording(trace, layout) as recorder:
        tap = None if recorder is None else recorder.connection()
        mount = make_mount(load(spec), directory, options, tap=tap)
        try:
            with mount:
                return _run(argv)
        except MountError as error:
            raise Failure(str(error)) from error


def leave() -> None:
    """Have mounts of our own, and be allowed to make some. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    if uid != 0 or _libc.unshare(_CLONE_NEWNS):
        call(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWUSER))
        _write("setgroups", "deny")
        _write("uid_map", f"{uid} {uid} 1")
        _write("gid_map", f"{gid} {gid} 1")
    # What others mount is seen here still, and not the other way round.
    call(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_SLAVE), None))


def _write(name: str, text: str) -> None:
    with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
        file.write(text)


def _run(argv: Sequence[str]) -> int:
    pipe = SignalPipe()
    # What comes before there is a program waits in the pipe. Those of a terminal reach the program
    # by themselves, and must not end this process.
    pipe.take((*_PASSED_ON, *_FROM_THE_TERMINAL, signal.SIGCHLD))
    try:
        try:
            program = subprocess.Popen(argv)
        except OSError as error:
            raise not_started(error, argv[0]) from error
        while (code := program.poll()) is None:
            for number in os.read(pipe.reader, 256):
                if number in _PASSED_ON:
                    program.send_signal(number)
    finally:
        pipe.close()
    return code if code >= 0 else 128 - code


def _explain(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.ENOSPC, errno.EACCES):
        return (
            f"no user namespaces here ({error.strerror}); see "
            "/proc/sys/user/max_user_namespaces, or kernel.apparmor_restrict_unprivileged_userns"
        )
    return error.strerror or str(error)
