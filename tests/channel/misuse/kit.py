"""What a server does: messages, channels, and clients in threads of their own."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import signal
import stat
import struct
import threading
from collections.abc import Callable
from typing import Any

WAIT_S = 20
LIMIT_S = 120

INIT, OPEN, READ, WRITE, RELEASE, INTERRUPT, IOCTL, POLL = 4096, 14, 15, 16, 18, 36, 39, 40
NAMES = {
    INIT: "CUSE_INIT", OPEN: "OPEN", READ: "READ", WRITE: "WRITE", RELEASE: "RELEASE",
    INTERRUPT: "INTERRUPT", IOCTL: "IOCTL", POLL: "POLL",
}  # fmt: skip

MIN_READ = 8192
BIG = 1 << 17
HUGE = 1 << 21

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
for _function in (libc.read, libc.write, libc.readv, libc.writev, libc.pread):
    _function.restype = ctypes.c_ssize_t


def say(what: str, result: object) -> None:
    print(f"{what}: {result}", flush=True)


def errno_name(number: int) -> str:
    """EIO, say, or the number where it has no name."""
    return errno.errorcode.get(number, f"errno {number}")


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, or the name of the errno that it fails with."""
    try:
        return function(*args)
    except OSError as error:
        return errno_name(error.errno or 0)


def libc_call(function: Any, *args: Any) -> Any:
    """The result of a C function, or the name of its errno; never called again by Python."""
    result = function(*args)
    return errno_name(ctypes.get_errno()) if result == -1 else result


def size_of(result: Any) -> Any:
    """What to print of a read."""
    return f"{len(result)} bytes" if isinstance(result, bytes) else result


# ---- memory that cannot be read or written

PAGE = mmap.PAGESIZE
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
FAILED = ctypes.c_void_p(-1).value
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def edge() -> int:
    """The address where memory ends: 256 KiB before it can be used, as much behind it cannot."""
    size = 2 * HUGE
    start = libc.mmap(None, size, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert libc.mprotect(start + HUGE, HUGE, 0) == 0
    return int(start) + HUGE


def write_up_to_edge(fd: int, message: bytes, readable: int) -> Any:
    """Write a message of which only the first bytes can be read."""
    address = edge() - readable
    ctypes.memmove(address, message[:readable], readable)
    return libc_call(libc.write, fd, ctypes.c_void_p(address), ctypes.c_size_t(len(message)))


# ---- messages


def reply(unique: int, payload: bytes = b"", error: int = 0, length: int | None = None) -> bytes:
    size = 16 + len(payload) if length is None else length
    return struct.pack("=IiQ", size, error, unique) + payload


def init_out(
    info: bytes = b"",
    *,
    major: int = 7,
    minor: int = 31,
    flags: int = 1,
    max_read: int = 131072,
    max_write: int = 131072,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    return struct.pack("=8I40x", major, minor, 0, flags, max_read, max_write, *device) + info


class Request:
    """A request that was read."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        (
            self.length, self.opcode, self.unique, self.node,
            self.uid, self.gid, self.pid, self.end,
        ) = struct.unpack_from("=IIQQIIII", message)  # fmt: skip
        self.body = message[40:]

    def header(self, before: int, caller: int) -> str:
        """What its header says, compared with the request before it and the calling thread."""
        length = "right" if self.length == len(self.message) else self.length
        # Root's ids are 0, which is nobody's too: then only the pid tells whose they are.
        own = {"uid": os.getuid(), "gid": os.getgid(), "pid": caller}
        found = {"uid": self.uid, "gid": self.gid, "pid": self.pid}
        whose = {key: "caller" if found[key] == own[key] else str(found[key]) for key in own}
        if os.getuid() == 0 and whose["uid"] == whose["gid"] == "caller" != whose["pid"]:
            whose["uid"] = whose["gid"] = "0"
        return (
            f"{NAMES.get(self.opcode, self.opcode)} len {length} unique +{self.unique - before}"
            f" node {self.node} end {self.end}"
            f" uid {whose['uid']} gid {whose['gid']} pid {whose['pid']}"
        )

    def content(self) -> str:
        """What its body says, but for what depends on the machine."""
        body = self.body
        if self.opcode == OPEN:
            flags, open_flags = struct.unpack("=II", body)
            return f"flags {flags:#o} open_flags {open_flags}"
        if self.opcode in (READ, WRITE):
            handle, offset, size, own, owner, flags, end = struct.unpack_from("=QQIIQII", body)
            data = f" data {body[40:]!r}" if self.opcode == WRITE else ""
            return (
                f"fh {handle} offset {offset} size {size} own {own} owner {'yes' if owner else 0}"
                f" flags {flags:#o} end {end}{data}"
            )
        if self.opcode == RELEASE:
            handle, flags, own, owner = struct.unpack("=QIIQ", body)
            return f"fh {handle} flags {flags:#o} own {own} owner {'yes' if owner else 0}"
        if self.opcode == IOCTL:
            handle, flags, command, _, size, out = struct.unpack_from("=QIIQII", body)
            return f"fh {handle} flags {flags} cmd {command:#x} in {size} out {out}"
        if self.opcode == INTERRUPT:
            return f"{len(body)} bytes"
        return f"{len(body)} bytes"


def poll_state(fd: int) -> str:
    """The events of poll(2), of all that there are."""
    poller = select.poll()
    every = select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLRDNORM | select.POLLWRNORM
    poller.register(fd, every)
    events = dict(poller.poll(0)).get(fd, 0)
    bits = ("IN", "OUT", "PRI", "RDNORM", "WRNORM", "ERR", "HUP", "NVAL")
    return "|".join(bit for bit in bits if events & getattr(select, "POLL" + bit)) or "0"


CHANNELS: list[Channel] = []
"""Those that are open."""


class Channel:
    """One open /dev/cuse, which does not wait."""

    def __init__(self, flags: int = os.O_NONBLOCK) -> None:
        self.fd = os.open("/dev/cuse", os.O_RDWR | flags)
        self.unique = 0
        """Of the last request that was read."""
        CHANNELS.append(self)

    def next(self, size: int = HUGE) -> Request:
        """The next request, for which it waits."""
        self.wait()
        return self.take(os.read(self.fd, size))

    def wait(self) -> None:
        """Wait until there is a request to be read."""
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        assert poller.poll(WAIT_S * 1000), "no request has come"

    def take(self, message: bytes) -> Request:
        request = Request(message)
        if request.opcode != INTERRUPT:
            self.before, self.unique = self.unique, request.unique
        return request

    def read(self, size: int = HUGE) -> Any:
        return size_of(attempt(os.read, self.fd, size))

    def write(self, message: bytes) -> Any:
        return attempt(os.write, self.fd, message)

    def answer(self, payload: bytes = b"", error: int = 0) -> Any:
        """Answer the last request."""
        return self.write(reply(self.unique, payload, error))

    def serve(self, opcode: int, payload: bytes = b"", error: int = 0) -> None:
        """Read a request of this kind and answer it."""
        request = self.next()
        assert request.opcode == opcode, NAMES.get(request.opcode)
        result = self.answer(payload, error)
        assert result == 16 + len(payload), result

    def close(self) -> None:
        CHANNELS.remove(self)
        os.close(self.fd)


class Client:
    """A system call in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.tid = 0
        self._result: Any = None
        self._thread = threading.Thread(target=self._run, args=(function, args), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., Any], args: Any) -> None:
        self.tid = threading.get_native_id()
        self._result = attempt(function, *args)

    def interrupt(self) -> None:
        """Send it a signal that has a handler, which says nothing of a restart."""
        assert self._thread.ident is not None
        signal.pthread_kill(self._thread.ident, signal.SIGUSR1)

    @property
    def result(self) -> Any:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the client still waits"
        return self._result


def client_read(fd: int, size: int) -> Any:
    """read(2), once: Python's own would begin again after a signal."""
    buffer = ctypes.create_string_buffer(size)
    result = libc_call(libc.read, fd, buffer, ctypes.c_size_t(size))
    return buffer.raw[:result] if isinstance(result, int) else result


def client_write(fd: int, data: bytes) -> Any:
    return libc_call(libc.write, fd, data, ctypes.c_size_t(len(data)))


libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


def client_ioctl(fd: int, command: int, size: int) -> Any:
    buffer = ctypes.create_string_buffer(max(size, 1))
    return libc_call(libc.ioctl, fd, command, ctypes.addressof(buffer))


def command(direction: int, size: int) -> int:
    """An ioctl's number; direction 1 is _IOW, 2 is _IOR."""
    return direction << 30 | size << 16 | ord("r") << 8 | 1


NUMBER = [0]


def device(**options: Any) -> tuple[Channel, str]:
    """A channel with a device, and the device's path."""
    NUMBER[0] += 1
    name = f"misuse{NUMBER[0]}"
    channel = Channel()
    channel.serve(INIT, init_out(f"DEVNAME={name}\0".encode(), **options))
    path = f"/dev/{name}"
    assert stat.S_ISCHR(os.stat(path).st_mode)
    return channel, path


OPENED = struct.pack("=QII", 7, 0, 0)


def opened(channel: Channel, path: str, flags: int = os.O_RDWR) -> int:
    """A file of the device, with the file handle 7."""
    client = Client(os.open, path, flags)
    channel.serve(OPEN, OPENED)
    assert isinstance(client.result, int), client.result
    return int(client.result)


def released(channel: Channel, fd: int) -> None:
    client = Client(os.close, fd)
    channel.serve(RELEASE)
    assert client.result is None
