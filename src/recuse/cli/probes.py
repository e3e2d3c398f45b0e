"""Small experiments on forked children, to see whether the sandbox can work on this machine.

Each function returns if its experiment succeeds, and raises OSError with the kernel's errno if not.
`recuse.cli.doctor` says what that means for the user.
"""

import contextlib
import ctypes
import errno
import os
import select
import shutil
import socket
import stat
import struct
from collections.abc import Callable, Iterator

from recuse.channel.io_uring import Ring
from recuse.channel.rings import PARAMETER
from recuse.channel.unmounting import HELPER
from recuse.cli.private import leave
from recuse.sandbox.arch import arch
from recuse.sandbox.files.identity import EPOLL_SLOT, KCMP_EPOLL_TFD
from recuse.sandbox.tasks.memory import UnreadableError, read_memory
from recuse.sandbox.trap.listener import Listener

# linux/prctl.h, linux/seccomp.h, linux/filter.h
_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1
_GET_NOTIF_SIZES = 3
_NEW_LISTENER = 8
_WAIT_KILLABLE_RECV = 32
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000

# linux/ptrace.h
_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17

_FSOPEN, _FSOPEN_CLOEXEC = 430, 1
"""linux/mount.h"""

_SBIN = "/sbin:/usr/sbin"
_WITHOUT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where shells look for a command if there is no PATH."""

_GETPGID = arch.SYSCALLS["getpgid"]
"""The call that the experiments trap: it is harmless, and Python itself does not make it."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _check(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@contextlib.contextmanager
def child(work: Callable[[socket.socket], object]) -> Iterator[tuple[int, socket.socket]]:
    """Run `work` in a forked child with one end of a socket pair; give its pid and the other end.

    The child lives until `work` returns or the block ends, whichever is first.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                work(theirs)
            finally:
                os._exit(0)
        theirs.close()
        try:
            yield pid, ours
        finally:
            ours.close()
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def _install_filter(flags: int) -> int:
    """Trap getpgid in this thread from now on; returns the listener's descriptor."""
    code = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in [
            (_LOAD, 0, 0, 0),
            (_JUMP_EQUAL, 0, 1, _GETPGID),
            (_RETURN, 0, 0, _NOTIFY),
            (_RETURN, 0, 0, _ALLOW),
        ]
    )
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    program = _Program(len(code) // 8, code)
    seccomp = arch.SYSCALLS["seccomp"]
    return _check(_libc.syscall(seccomp, _SET_MODE_FILTER, flags, ctypes.byref(program)))


def _trap(flags: int, answer: Callable[[Listener, int], object]) -> int:
    """Let a child make a trapped call, and `answer` it; returns the call's result."""

    def make_call(theirs: socket.socket) -> None:
        try:
            listener = _install_filter(flags)
        except OSError as error:
            theirs.send(struct.pack("=q", -(error.errno or 0)))
            return
        socket.send_fds(theirs, [b"listener"], [listener])
        os.close(listener)
        theirs.send(struct.pack("=q", _libc.syscall(_GETPGID, 0)))

    with child(make_call) as (_, ours):
        message, descriptors, _, _ = socket.recv_fds(ours, 8, 1)
        if not descriptors:
            (code,) = struct.unpack("=q", message)
            raise OSError(-code, os.strerror(-code))
        listener = Listener(descriptors[0])
        try:
            call = listener.receive(tuple)
            if call is None:
                raise ProcessLookupError("the child of an experiment has died")
            answer(listener, call[0])
            result: int = struct.unpack("=q", ours.recv(8))[0]
        finally:
            listener.close()
    return result


def notification_sizes() -> tuple[int, int, int]:
    """The sizes of seccomp's structures: notification, response, data (64-bit: 80, 24, 64)."""
    sizes = (ctypes.c_uint16 * 3)()
    seccomp = arch.SYSCALLS["seccomp"]
    _check(_libc.syscall(seccomp, _GET_NOTIF_SIZES, 0, ctypes.byref(sizes)))
    return sizes[0], sizes[1], sizes[2]


def trap_a_call() -> None:
    """Answer a child's system call for the kernel."""
    result = _trap(_NEW_LISTENER, lambda listener, call: listener.answer(call, 12345))
    if result != 12345:
        raise OSError(0, f"a trapped call returned {result}, not its answer")


def wait_killable() -> None:
    """Have a child's trapped call go on waiting when the child gets a signal that it catches."""
    flags = _NEW_LISTENER | _WAIT_KILLABLE_RECV
    _trap(flags, lambda listener, call: listener.proceed(call))


def add_descriptor() -> None:
    """Give a child a descriptor as its system call's result."""

    def answer(listener: Listener, call: int) -> None:
        descriptor = os.eventfd(0)  # any will do, and this one needs no file
        try:
            number = listener.add_descriptor(call, descriptor, cloexec=True)
            listener.answer(call, number or 0)
        finally:
            os.close(descriptor)

    _trap(_NEW_LISTENER, answer)


def sync_wake_up() -> bool:
    """Whether program and supervisor can share a CPU while one waits for the other."""
    found = []

    def answer(listener: Listener, call: int) -> None:
        found.append(listener.prefer_sync_wake_up())
        listener.proceed(call)

    _trap(_NEW_LISTENER, answer)
    return found[0]


def _wait(theirs: socket.socket) -> None:
    theirs.recv(1)


def read_child_memory() -> None:
    """Read a child's memory by address."""
    text = b"recuse doctor"
    buffer = ctypes.create_string_buffer(text)
    with child(_wait) as (pid, _):
        try:
            found = read_memory(pid, ctypes.addressof(buffer), len(text))
        except UnreadableError:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from None
    if found != text:
        raise OSError(0, "a child's memory had another content")


def read_child_proc() -> None:
    """Read in /proc which descriptors and which memory a child has."""
    with child(_wait) as (pid, _):
        os.readlink(f"/proc/{pid}/fd/{os.listdir(f'/proc/{pid}/fd')[0]}")
        with open(f"/proc/{pid}/maps", "rb") as maps:
            maps.readline()


def trace_child() -> None:
    """Stop a child by ptrace and let it continue."""
    with child(_wait) as (pid, _):
        _check(_libc.ptrace(_SEIZE, pid, None, None))
        _check(_libc.ptrace(_INTERRUPT, pid, None, None))
        os.waitpid(pid, 0)
        _check(_libc.ptrace(_DETACH, pid, None, None))


def hold_child() -> None:
    """Hold a child by a descriptor (pidfd)."""
    with child(_wait) as (pid, _):
        os.close(os.pidfd_open(pid))


def fetch_child_descriptor() -> None:
    """Copy a descriptor of a child."""
    with child(_wait) as (pid, _):
        pidfd = os.pidfd_open(pid)
        try:
            number = int(os.listdir(f"/proc/{pid}/fd")[0])
            os.close(_check(_libc.syscall(arch.SYSCALLS["pidfd_getfd"], pidfd, number, 0)))
        finally:
            os.close(pidfd)


def compare_with_child() -> None:
    """Recognise a child's descriptor as one that an epoll of ours has."""
    ours, theirs = socket.socketpair()
    with ours, theirs, select.epoll() as epoll, child(_wait) as (pid, _):
        epoll.register(theirs, 0)
        number = theirs.fileno()
        slot = EPOLL_SLOT.pack(epoll.fileno(), number, 0)
        compare = arch.SYSCALLS["kcmp"], pid, os.getpid(), KCMP_EPOLL_TFD, number, slot
        if _check(_libc.syscall(*compare)):
            raise OSError(0, "a child's descriptor seemed to be another")


def open_device(path: str) -> None:
    """Open and close a device node for reading and writing."""
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))


def fuse_over_io_uring() -> None:
    """See whether the kernel's FUSE can use io_uring, and make a ring."""
    try:
        on = PARAMETER.read_text(encoding="ascii").strip() == "Y"
    except OSError:
        raise OSError(errno.ENOSYS, "this kernel does not have it") from None
    if not on:
        raise OSError(errno.EOPNOTSUPP, "it is turned off")
    Ring(1).close()


def mount_filesystem() -> str:
    """Begin to mount a filesystem, which needs the right to; return by what it can be done."""
    try:
        # The same number on every architecture.
        os.close(_check(_libc.syscall(_FSOPEN, b"fuse", _FSOPEN_CLOEXEC)))
    except OSError:
        program = shutil.which(HELPER)
        if program is None or os.geteuid() == 0:
            raise
        if not os.stat(program).st_mode & stat.S_ISUID:
            raise PermissionError(errno.EPERM, f"{program} is not set-user-ID root") from None
        return HELPER
    return "mount(2)"


def mount_privately() -> None:
    """Begin to mount a filesystem with mounts of our own, in a child."""

    def begin(theirs: socket.socket) -> None:
        try:
            leave()
            _check(_libc.syscall(_FSOPEN, b"fuse", _FSOPEN_CLOEXEC))
        except OSError as error:
            theirs.send(bytes([error.errno or errno.EIO]))
        else:
            theirs.send(b"\0")

    with child(begin) as (_, ours):
        (number,) = ours.recv(1)
    if number:
        raise OSError(number, os.strerror(number))


def command_for_mount8() -> str:
    """Find what mount(8) needs for the type fuse.recuse; return which `recuse` it runs."""
    if shutil.which("mount.fuse3", path=_SBIN) is None:
        raise FileNotFoundError(errno.ENOENT, "mount.fuse3 is missing")
    command = shutil.which("recuse", path=_WITHOUT_PATH)
    if command is None:
        raise FileNotFoundError(errno.ENOENT, "mount(8) does not find recuse")
    return command
