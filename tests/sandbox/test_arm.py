"""Programs of 32-bit ARM on arm64: they run, and see no devices."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from recuse import Sandbox
from recuse.sandbox.arch import MACHINE, arm

from .conftest import Fifo

pytestmark = pytest.mark.skipif(MACHINE != "aarch64", reason="for arm64: make test-arm64")

Run = Callable[..., list[int]]

BASE, DATA, RESULTS, SIZE = 0x10000, 0x11000, 0x12000, 0x3000
OPENAT, EXIT, GETPID, PIPE, EPOLL_CREATE = 322, 1, 20, 42, 250
AT_FDCWD = -100


def program(calls: list[tuple[int, ...]], data: bytes = b"") -> bytes:
    """A static executable that makes these calls and prints their results, each as 4 bytes.

    A call is its number and up to six arguments; ``data`` is in memory at DATA.
    """
    calls = [*calls, (arm.SYSCALLS["write"], 1, RESULTS, 4 * len(calls)), (EXIT, 0)]
    code = [*_set(8, RESULTS)]
    for number, *arguments in calls:
        for register, value in enumerate(arguments):
            code += _set(register, value)
        code += [*_set(7, number), 0xEF000000, 0xE4880004]  # svc 0; str r0, [r8], #4
    # ELF32, ET_EXEC, EM_ARM, EABI 5; one segment that may be read, written and executed.
    header = struct.pack("=16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 40, 1, BASE + 84, 52, 0,
                         0x05000000, 52, 32, 1, 0, 0, 0)  # fmt: skip
    segment = struct.pack("=8I", 1, 0, BASE, BASE, DATA - BASE + len(data), SIZE, 7, 0x1000)
    text = header + segment + struct.pack(f"={len(code)}I", *code)
    assert len(text) <= DATA - BASE
    return text.ljust(DATA - BASE, b"\0") + data


def _set(register: int, value: int) -> list[int]:
    """Instructions that set a register: movw and movt."""
    halves = (value & 0xFFFF, 0xE3000000), (value >> 16 & 0xFFFF, 0xE3400000)
    return [op | half >> 12 << 16 | register << 12 | half & 0xFFF for half, op in halves]


@pytest.fixture
def run(sandbox: Sandbox, tmp_path: Path) -> Run:
    """`run(calls, data, before)`: the results of calls, after a line of the shell."""

    def run(calls: list[tuple[int, ...]], data: bytes = b"", before: str = "") -> list[int]:
        file = tmp_path / "program"
        file.write_bytes(program(calls, data))
        file.chmod(0o755)
        script = f"{before}\nexec {file}"
        done = sandbox.run(["sh", "-c", script], stdout=subprocess.PIPE, timeout=60, check=True)
        return list(struct.unpack(f"={len(calls)}i", done.stdout))

    return run


def test_they_see_no_device(run: Run) -> None:
    name = b"/dev/echo\0"
    calls = [(OPENAT, AT_FDCWD, DATA, os.O_RDWR), (OPENAT, AT_FDCWD, DATA + len(name), 0)]
    assert run(calls, name + b"/dev/null\0") == [-errno.ENOENT, 3]


def test_their_other_files_are_as_ever(run: Run, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"0123456789")
    number = arm.SYSCALLS
    polled = struct.pack("=ihh", 3, 1, 0)
    calls = [
        (number["read"], 3, DATA + 64, 4),
        (number["pread64"], 3, DATA + 64, 9, 0, 8, 0),
        (number["lseek"], 3, -3, 2),
        (number["poll"], DATA, 1, 0),
        (number["_newselect"], 4, DATA + 16, 0, 0, 0),
        (number["fstat64"], 3, DATA + 64),
        (number["getsockname"], 3, DATA, DATA),
        (number["mmap2"], 0, 4096, 1, 2, 3, 0),
        (number["fcntl"], 3, 3),
        (number["io_uring_setup"], 4, DATA + 64),
    ]
    data = polled.ljust(16) + struct.pack("=I", 1 << 3) + bytes(512)
    results = run(calls, data, f"exec 3<{plain}")
    assert results[:7] == [4, 2, 7, 1, 1, 0, -errno.ENOTSOCK]
    assert results[7] & 0xFFF == 0
    assert results[8] & os.O_ACCMODE == os.O_RDONLY
    assert results[9] == -errno.ENOSYS


def test_a_descriptor_that_they_inherit_is_of_no_use(echo: Fifo, run: Run) -> None:
    echo.data += b"kept"
    number = arm.SYSCALLS
    # A pollfd, a set of descriptors, an iovec, an empty path, and room.
    data = struct.pack("=ihh8sI12x2I8x", 3, 1, 0, b"", 1 << 3, DATA + 64, 4) + bytes(512)
    room, polled, chosen, vector, nothing = DATA + 64, DATA, DATA + 16, DATA + 32, DATA + 40
    arguments = {
        ("read", "write", "fchmod", "fchown", "fchown32"): (3, room, 4),
        ("readv", "writev", "preadv", "pwritev"): (3, vector, 1),
        ("preadv2", "pwritev2"): (3, vector, 1, -1, -1, 0),
        ("pread64", "pwrite64", "_llseek"): (3, room, 4, 0, 0, 0),
        ("fstat", "fstat64", "lseek", "flock", "ioctl"): (3, room),
        ("sendfile", "sendfile64", "tee"): (1, 3, 0, 4),
        ("splice", "copy_file_range"): (1, 0, 3, 0, 4, 0),
        ("statx",): (3, nothing, 0x1000, 0xFFF, room),
        ("fstatat64",): (3, nothing, room, 0x1000),
        ("poll", "ppoll", "ppoll_time64"): (polled, 1, 0, 0, 8),
        ("_newselect", "pselect6", "pselect6_time64"): (4, chosen, 0, 0, 0, 0),
        ("epoll_ctl",): (4, 1, 3, room),
        ("send", "sendto", "sendmsg", "sendmmsg", "recv", "recvfrom"): (3, room, 4, 0, 0, 0),
        ("recvmsg", "recvmmsg", "recvmmsg_time64", "shutdown"): (3, room, 1, 0, 0),
        ("getsockopt", "setsockopt", "getsockname", "getpeername"): (3, room, 1, room, room),
        ("bind", "connect", "listen", "accept", "accept4"): (3, room, 16, 0),
    }
    by_name = {name: (number[name], *some) for names, some in arguments.items() for name in names}
    by_name |= {"mmap2": (number["mmap2"], 0, 4096, 3, 1, 3, 0)}
    by_name |= {name: (number[name], 3, 3) for name in ("fcntl", "fcntl64")}
    results = run(list(by_name.values()), data, "exec 3<>/dev/echo")
    assert dict(zip(by_name, results, strict=True)) == dict.fromkeys(by_name, -errno.ENOSYS)
    assert echo.writes == []
    assert echo.data == b"kept"


def test_what_they_start_sees_devices(echo: Fifo, run: Run) -> None:
    words = [b"/bin/sh\0", b"-c\0", b"echo hi >/dev/echo\0"]
    places = [DATA + 32 + sum(map(len, words[:index])) for index in range(3)]
    data = struct.pack("=4I16x", *places, 0) + b"".join(words)
    with pytest.raises(struct.error):  # it is replaced, and prints nothing
        run([(arm.SYSCALLS["execve"], places[0], DATA, 0)], data)
    assert echo.writes == [b"hi\n"]
