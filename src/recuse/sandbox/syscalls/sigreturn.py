"""The end of a signal handler, and calls that its signal has made fail (kernel/seccomp.c, 6.18).

A trapped call waits interruptibly until the listener has received it. A signal before that ends the
wait, and the listener never hears of the call. If the handler has SA_RESTART, the kernel makes the
call again and nobody notices. If not, the call fails with EINTR. That also happens to a stat or a
mkdir, which Linux never lets a signal interrupt, and which no program expects to fail like that.

When the handler returns, by rt_sigreturn(2), its frame on the stack has the registers with which
the thread continues. They may say that the thread comes out of a call with EINTR. If that call
would not have failed natively, the frame is changed so that the thread makes the call again. A call
that may have been interrupted while the kernel waited for something keeps its EINTR. A call for a
device is made again. Then its server is told of the signal (:attr:`SignalWatch.owed`), as if the
signal had come a moment later.

The opposite happens to poll and related calls. If the handler has SA_RESTART and they were not
received, the kernel makes them again, but natively they always fail with EINTR.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from recuse.kernel.errors import os_error
from recuse.runtime.log import Log
from recuse.sandbox.abilities import may_borrow
from recuse.sandbox.arch import arch, i386, i386_frame, x86_64_frame
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.syscalls.poll_files import PollFiles, SelectFiles
from recuse.sandbox.tasks.memory import UnreadableError, read_memory, write_memory
from recuse.sandbox.trap.borrowing import Borrowing
from recuse.sandbox.trap.filter import LOCK_COMMANDS, LOCK_COMMANDS_64, TRAPPED_FCNTL
from recuse.sandbox.vfs.native_files import start_of, status_from
from recuse.sandbox.vfs.resolve import AT_FDCWD

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import TrappedCall

_log = Log("recuse.sandbox")

Interrupted: TypeAlias = "x86_64_frame.Interrupted | i386_frame.Interrupted"

_Repair: TypeAlias = "Callable[[TrappedCall, Machine, Borrowing, int], None]"
"""Repairs the interrupted call of a frame, which starts at a stack pointer."""

_CODE_SIZE: Final = max(x86_64_frame.CODE_SIZE, i386_frame.CODE_SIZE)

_Decision: TypeAlias = "Callable[[Borrowing, Machine, Interrupted], bool]"
"""Whether a call that was not received would have continued natively, and so is made again."""

_Files: TypeAlias = "Callable[[int, Interrupted], list[tuple[int, int]]]"
"""Reads which descriptors a thread's call waits for, and the events of each."""

_READABLE: Final = select.POLLIN
_WRITABLE: Final = select.POLLOUT

_MOST_FILES: Final = 256
"""How many files of a call are looked at."""

_FALLS_ASLEEP_S: Final = 0.0001
"""How long a thread that is about to wait usually takes to fall asleep."""

_OPENED_AT_ONCE: Final = frozenset({1, 5, 10, *range(136, 144)})
"""Majors of devices whose open never waits: /dev/null and similar devices, /dev/tty, misc devices,
pseudo-terminals (Documentation/admin-guide/devices.txt). A serial port's open waits for a
carrier."""

_LOCK_NB: Final = 4

_SOCKETCALL_EVENTS: Final = {
    **dict.fromkeys((5, 10, 12, 17, 18, 19), _READABLE),  # accept, recv and related calls
    **dict.fromkeys((9, 11, 16, 20), _WRITABLE),  # send
}
"""linux/net.h: the calls that wait, and for which events."""

_WAITING_IOCTLS: Final = frozenset(
    {
        0x5403,  # TCSETSW
        0x5404,  # TCSETSF
        0x5407,  # TCSETAW
        0x5408,  # TCSETAF
        0x5409,  # TCSBRK
        0x5425,  # TCSBRKP
        0x542C,  # TCSETSW2
        0x542D,  # TCSETSF2
        0x545C,  # TIOCMIWAIT
    }
)
"""Commands of terminals that wait until everything was sent, or for a signal line."""

_NEVER: Final = (
    "fstat", "stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2",
    "readlink", "readlinkat", "getcwd", "chdir", "lseek", "getdents", "getdents64",
    "mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2",
    "link", "linkat", "symlink", "symlinkat", "mknod", "mknodat", "truncate",
    "chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchown", "fchownat",
    "utime", "utimes", "futimesat", "utimensat", "statfs", "fstatfs",
    "getxattr", "lgetxattr", "fgetxattr", "getxattrat",
    "listxattr", "llistxattr", "flistxattr", "listxattrat",
    "setxattr", "lsetxattr", "setxattrat", "removexattr", "lremovexattr", "removexattrat",
    "file_getattr", "file_setattr", "name_to_handle_at", "remap_file_pages",
    "copy_file_range", "mmap", "mremap", "execve", "execveat", "clone", "epoll_ctl",
    "unshare", "setns", "chroot", "pivot_root", "setuid", "setgid", "setreuid", "setregid",
    "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capset",
    "landlock_restrict_self", "fsync", "fdatasync", "ftruncate", "fallocate", "fchdir",
    "msync", "fsetxattr", "fremovexattr", "close", "close_range", "dup2", "dup3",
    "sync_file_range", "readahead", "sync", "syncfs", "inotify_add_watch", "fanotify_mark",
    "mount", "umount", "umount2", "fsopen",
    "bind", "listen", "connect", "shutdown",
    "getsockname", "getpeername", "getsockopt", "setsockopt",
)  # fmt: skip
"""Calls that only a signal that kills can interrupt. connect can be interrupted only after the
connection was started, which did not happen if the call was not received."""


def _never(lender: Borrowing, machine: Machine, made: Interrupted) -> bool:
    del lender, machine, made
    return True


def _is_ready(lender: Borrowing, number: int, events: int) -> bool:
    """Whether a descriptor of the caller is ready, or is not open.

    Raises:
        OSError: if that cannot be found out.
    """
    try:
        mode = os.stat(f"/proc/{lender.tid}/fd/{number}").st_mode
    except FileNotFoundError:
        return True  # it is not open, and the call will report that
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode):
        return True
    if not may_borrow():
        raise os_error(errno.EPERM)  # nobody sees this error at the end of a handler
    copy = lender.copy(number)
    try:
        poll = select.poll()
        poll.register(copy, events)
        return bool(poll.poll(0))
    finally:
        os.close(copy)


def _ready(events: int) -> _Decision:
    """For calls that wait until their file is ready: whether it already is."""

    def decide(lender: Borrowing, machine: Machine, made: Interrupted) -> bool:
        number = made.argument(0) & 0xFFFFFFFF
        if machine.files.find(lender.tid, number) is not None:
            return True  # if it waits, its server is told of the signal
        return _is_ready(lender, number, events)

    return decide


def _socketcall(lender: Borrowing, machine: Machine, made: Interrupted) -> bool:
    """For ``socketcall(kind, args)``, whose arguments are in memory."""
    kind = made.argument(0)
    if kind not in _SOCKETCALL_EVENTS:
        return True
    number = int.from_bytes(read_memory(lender.tid, made.argument(1), 4), "little")
    return _is_ready(lender, number, _SOCKETCALL_EVENTS[kind])


def _control(lender: Borrowing, machine: Machine, made: Interrupted) -> bool:
    if made.argument(1) & 0xFFFFFFFF not in _WAITING_IOCTLS:
        return True
    return machine.files.find(lender.tid, made.argument(0) & 0xFFFFFFFF) is not None


_QUICK_COMMANDS: Final = frozenset((*TRAPPED_FCNTL, *LOCK_COMMANDS, *LOCK_COMMANDS_64)) - {
    7,
    14,
    38,
}
"""All but F_SETLKW, F_SETLKW64 and F_OFD_SETLKW."""


def _fcntl(lender: Borrowing, machine: Machine, made: Interrupted) -> bool:
    del lender, machine
    return made.argument(1) & 0xFFFFFFFF in _QUICK_COMMANDS


def _flock(lender: Borrowing, machine: Machine, made: Interrupted) -> bool:
    del lender, machine
    return bool(made.argument(1) & _LOCK_NB)


def _open(path: int, base: int | None = None) -> _Decision:
    """For calls that open the path in argument ``path``, from the directory in argument ``base``.

    Only an open of a pipe or a device waits until a signal comes.
    """

    def decide(lender: Borrowing, machine: Machine, made: Interrupted) -> bool:
        name = machine.strings.read(lender.tid, made.argument(path))
        directory = AT_FDCWD if base is None else signed32(made.argument(base))
        start = b"/proc/%d/root" % lender.tid
        if not name.startswith(b"/"):
            start = start_of(lender.tid, directory)
        try:
            acting = machine.tasks.get(lender.tid).acting
            found = status_from(acting, start, name.lstrip(b"/") or b".")
        except OSError:
            return True  # it does not exist, or cannot be found: reporting that takes no time
        if stat.S_ISCHR(found.st_mode):
            return os.major(found.st_rdev) in _OPENED_AT_ONCE
        return not stat.S_ISFIFO(found.st_mode)

    return decide


def _waits_not(
    files: _Files, milliseconds: int | None = None, time: int = 0, size: int = 16
) -> _Decision:
    """For calls that wait for ``files``: whether one is ready already, or the timeout is 0.

    The timeout is argument ``milliseconds``, or a timespec or timeval of ``size`` bytes to which
    argument ``time`` points.
    """

    def decide(lender: Borrowing, machine: Machine, made: Interrupted) -> bool:
        if milliseconds is not None:
            if signed32(made.argument(milliseconds)) == 0:
                return True
        elif (address := made.argument(time)) and not any(read_memory(lender.tid, address, size)):
            return True
        return any(
            _is_ready(lender, number & 0xFFFFFFFF, events)
            for number, events in files(lender.tid, made)
            if number >= 0
        )

    return decide


def _polled(tid: int, made: Interrupted) -> list[tuple[int, int]]:
    count = made.argument(1) & 0xFFFFFFFF
    return PollFiles(tid, made.argument(0), count).entries if 0 < count <= _MOST_FILES else []


def _selected(tid: int, made: Interrupted, word: int = 8) -> list[tuple[int, int]]:
    count = signed32(made.argument(0))
    addresses = made.argument(1), made.argument(2), made.argument(3)
    return SelectFiles(tid, addresses, count, word).entries if 0 < count <= _MOST_FILES else []


def _epoll(tid: int, made: Interrupted) -> list[tuple[int, int]]:
    del tid
    return [(signed32(made.argument(0)), _READABLE)]


_DECISIONS: Final[dict[str, _Decision]] = {
    **dict.fromkeys(_NEVER, _never),
    "rt_sigreturn": _never,
    **dict.fromkeys(("read", "pread64", "readv", "preadv", "preadv2"), _ready(_READABLE)),
    **dict.fromkeys(("recvfrom", "recvmsg", "recvmmsg", "accept", "accept4"), _ready(_READABLE)),
    **dict.fromkeys(("write", "pwrite64", "writev", "pwritev", "pwritev2"), _ready(_WRITABLE)),
    **dict.fromkeys(("sendto", "sendmsg", "sendmmsg", "sendfile"), _ready(_WRITABLE)),
    "open": _open(0),
    "creat": _open(0),
    "openat": _open(1, 0),
    "openat2": _open(1, 0),
    "ioctl": _control,
    "fcntl": _fcntl,
    "flock": _flock,
    "poll": _waits_not(_polled, 2),
    "ppoll": _waits_not(_polled, time=2),
    "select": _waits_not(_selected, time=4),
    "pselect6": _waits_not(_selected, time=4),
    "epoll_wait": _waits_not(_epoll, 3),
    "epoll_pwait": _waits_not(_epoll, 3),
    "epoll_pwait2": _waits_not(_epoll, time=3),
}


def _by_number(names: Iterable[str]) -> dict[int | None, _Decision]:
    return {arch.SYSCALLS[name]: _DECISIONS[name] for name in names if name in arch.SYSCALLS}


_WAITING: Final = (
    "poll",
    "ppoll",
    "select",
    "pselect6",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
)
_BY_NUMBER: Final = _by_number(_DECISIONS)
_WAITS: Final = _by_number(_WAITING)
"""Calls that a signal ends even if its handler has SA_RESTART (ERESTARTNOHAND, EINTR)."""

_NARROW: Final[dict[str, _Decision]] = {
    "socketcall": _socketcall,
    "poll": _DECISIONS["poll"],
    "ppoll": _waits_not(_polled, time=2, size=8),
    "ppoll_time64": _DECISIONS["ppoll"],
    "_newselect": _waits_not(partial(_selected, word=4), time=4, size=8),
    "pselect6": _waits_not(partial(_selected, word=4), time=4, size=8),
    "pselect6_time64": _waits_not(partial(_selected, word=4), time=4),
    "epoll_wait": _DECISIONS["epoll_wait"],
    "epoll_pwait": _DECISIONS["epoll_pwait"],
    "epoll_pwait2": _DECISIONS["epoll_pwait2"],
}
"""Calls of 32-bit programs with their own layouts. Old select has its arguments in memory."""


def _compat_decisions() -> dict[int | None, _Decision]:
    """A call does the same as its 64-bit alias, as stat64 does the same as stat."""
    alike = {name: _DECISIONS[name] for name in _DECISIONS if name not in _WAITING}
    return {
        call.number: decision
        for call in i386.CALLS
        if call.trapped and (decision := _NARROW.get(call.name) or alike.get(call.alias))
    }


_COMPAT_BY_NUMBER: Final = _compat_decisions()


def _end(call: TrappedCall, machine: Machine, repair: _Repair) -> int:
    """End a handler.

    The call always proceeds, because without it the thread could not continue. So if anything goes
    wrong here, the EINTR from the kernel stays. A thread that has lent a descriptor makes this call
    again.
    """
    with Borrowing(call) as lender:
        try:
            stack = _stack_pointer(call.tid, lender.alive)
            if not machine.signals.comes_again(call.tid, stack):
                try:
                    repair(call, machine, lender, stack)
                finally:
                    if lender.has_lent:
                        machine.signals.will_come_again(call.tid, stack)
        except (OSError, UnreadableError):
            pass  # it may not be looked into, or is gone
        except Exception:
            _log.exception("internal error at the end of a signal handler of thread %d", call.tid)
        return lender.finish(PROCEED)


def rt_sigreturn(call: TrappedCall, machine: Machine) -> int:
    """``rt_sigreturn()``."""
    return _end(call, machine, _repair)


def compat_rt_sigreturn(call: TrappedCall, machine: Machine) -> int:
    """``rt_sigreturn()`` of a 32-bit program, whose handler has SA_SIGINFO."""
    return _end(call, machine, partial(_repair_compat, i386_frame.CONTEXT_OFFSETS["rt_sigreturn"]))


def compat_sigreturn(call: TrappedCall, machine: Machine) -> int:
    """``sigreturn()`` of a 32-bit program."""
    return _end(call, machine, partial(_repair_compat, i386_frame.CONTEXT_OFFSETS["sigreturn"]))


def _repair(call: TrappedCall, machine: Machine, lender: Borrowing, stack: int) -> None:
    frame = read_memory(call.tid, stack, x86_64_frame.SIZE)
    if len(frame) < x86_64_frame.SIZE or (made := x86_64_frame.interrupted(frame)) is None:
        return
    if made.restarts:
        decide = _WAITS.get(made.number)
        if decide is None:
            return
        # If that cannot be found out, EINTR is right: it is always allowed, and a wait may not end.
        with contextlib.suppress(OSError):
            if decide(lender, machine, made):
                return
        outcome: bytes | None = made.failed()
    else:
        outcome = _made_anew(call, machine, lender, made, _BY_NUMBER)
    if outcome is not None and lender.alive():
        write_memory(call.tid, stack + x86_64_frame.OUTCOME_OFFSET, outcome)


def _repair_compat(
    offset: int, call: TrappedCall, machine: Machine, lender: Borrowing, stack: int
) -> None:
    content = read_memory(call.tid, stack + offset, i386_frame.SIZE)
    if len(content) < i386_frame.SIZE or (made := i386_frame.interrupted(content)) is None:
        return
    outcome = _made_anew(call, machine, lender, made, _COMPAT_BY_NUMBER)
    if outcome is not None and lender.alive():
        write_memory(call.tid, stack + offset + i386_frame.OUTCOME_OFFSET, outcome)


def _made_anew(
    call: TrappedCall,
    machine: Machine,
    lender: Borrowing,
    made: Interrupted,
    decisions: dict[int | None, _Decision],
) -> bytes | None:
    """The contents that make the thread repeat its call; None if the call keeps its EINTR."""
    if machine.signals.has_ended(call.tid, made.after):
        return None  # it was received, and its device has returned EINTR
    if made.after == call.instruction:
        number: int | None = call.number  # the end of another handler, in the same code
    else:
        read = partial(read_memory, call.tid)
        number = made.number_of(read(made.after - _CODE_SIZE, _CODE_SIZE), read)
    decide = decisions.get(number)
    if number is None or decide is None or not decide(lender, machine, made):
        return None
    machine.signals.owed[call.tid] = made.after
    return made.made_anew(number)


def _stack_pointer(tid: int, waits: Callable[[], bool]) -> int:
    """The stack pointer of a thread that waits in a trapped call.

    Args:
        tid: the thread.
        waits: whether it still waits.

    Raises:
        OSError: ESRCH if it is gone.
    """
    with open(f"/proc/{tid}/syscall", "rb", 0) as file:
        while True:
            # "15 0x0 0x0 0x0 0x0 0x0 0x0 0x7ffd... 0x7f12...": number, arguments, sp, pc; or
            # "running": its call was received on another CPU before the thread fell asleep.
            fields = file.read(256).split()
            if len(fields) > 1:
                return int(fields[-2], 16)
            if not waits():
                raise os_error(errno.ESRCH)
            time.sleep(_FALLS_ASLEEP_S)
            file.seek(0)


HANDLERS: Final[dict[str, Handler]] = {"rt_sigreturn": rt_sigreturn}
COMPAT_HANDLERS: Final[dict[str, Handler]] = {
    "rt_sigreturn": compat_rt_sigreturn,
    "sigreturn": compat_sigreturn,
}
