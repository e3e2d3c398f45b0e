"""open, read, write and their kin on a device."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from recuse import Device, File, OpenRequest
from recuse.sandbox import Sandbox

from .conftest import Clients, Fifo, Shell

# The ways to open that the kernel has, each as an expression of a client script.
OPENINGS = {
    "open": "libc.syscall(2, b'/dev/echo', os.O_RDWR)",
    "openat": "libc.syscall(257, -100, b'/dev/echo', os.O_RDWR)",
    "openat with a bad directory": "libc.syscall(257, 77, b'/dev/echo', os.O_RDWR)",
    "openat2": "libc.syscall(437, -100, b'/dev/echo', struct.pack('3Q', os.O_RDWR, 0, 0), 24)",
    "openat2 without links": (
        "libc.syscall(437, -100, b'/dev/echo', struct.pack('3Q', os.O_RDWR, 0, 6), 24)"
    ),
    "open with O_CREAT": "libc.syscall(2, b'/dev/echo', os.O_RDWR | os.O_CREAT, 0o600)",
    "open with O_TRUNC": "libc.syscall(2, b'/dev/echo', os.O_RDWR | os.O_TRUNC)",
    "open with O_NOFOLLOW": "libc.syscall(2, b'/dev/echo', os.O_RDWR | os.O_NOFOLLOW)",
    "open with a flag that nobody knows": "libc.syscall(2, b'/dev/echo', os.O_RDWR | 1 << 27)",
}


LOWEST = "lowest = os.open('/', 0); os.close(lowest)\n"
"""Not always 3: a library may have opened something."""


@pytest.mark.parametrize("opening", OPENINGS.values(), ids=OPENINGS)
def test_each_way_to_open(echo: Fifo, client: Shell, opening: str) -> None:
    script = f"fd = {opening}; print(fd == lowest, os.write(fd, b'hello'), os.read(fd, 9))"
    assert client(LOWEST + script) == "True 5 b'hello'\n"
    assert echo.opened == 1
    assert echo.requests[0].flags & ~0o100000 & ~os.O_NOFOLLOW == os.O_RDWR


def test_creat(echo: Fifo, client: Shell) -> None:
    script = "fd = libc.syscall(85, b'/dev/echo', 0o600); print(attempt(os.read, fd, 1))\n"
    assert client(script + "print(os.write(fd, b'x'))") == "EBADF\n1\n"
    assert echo.writes == [b"x"]


FAILING_OPENINGS = """
node = os.fsencode(args[0])
how = lambda *words: struct.pack(f'{len(words)}Q', *words)
openat2 = lambda path, how, size: call(437, -100, path, how, size)
print(call('open', node, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
print(call('open', node, os.O_DIRECTORY))
print(call('open', node, os.O_CREAT | os.O_DIRECTORY, 0o600))
print(call('open', node, 0o20200000 | os.O_RDWR, 0o600))
print(call('open', node + b'/', os.O_RDONLY), call('open', node + b'/', os.O_CREAT | os.O_RDWR))
print(call('open', node + b'/x', os.O_RDONLY), call('open', node + b'/..', os.O_RDONLY))
print(call('open', node + b'x' * 4096, os.O_RDONLY), call('open', None, os.O_RDONLY))
print(call('open', node + b'x' * 255, os.O_RDONLY), call('open', b'', os.O_RDONLY))
print(openat2(node, how(os.O_RDONLY, 0, 0), 8), openat2(node, how(1 << 40, 0, 0), 24))
print(openat2(node, how(os.O_RDONLY, 0o600, 0), 24), openat2(node, how(0, 0, 1 << 20), 24))
print(openat2(node, how(0, 0, 0, 1), 32), openat2(node, None, 24))
print(openat2(node, how(0, 0, 8), 24), openat2(node, how(0, 0, 0), 5000))
print(openat2(node, how(0, 0, 0, 0), 32))
"""


def test_openings_that_fail_do_so_as_natively(as_native: Shell) -> None:
    as_native(FAILING_OPENINGS)


def test_no_open_reaches_the_device_that_the_kernel_would_refuse(echo: Fifo, client: Shell) -> None:
    client(FAILING_OPENINGS.rpartition("print")[0], "/dev/echo")
    assert echo.opened == 0


def test_the_flags_that_a_device_is_told(echo: Fifo, client: Shell) -> None:
    client(
        "os.open('/dev/echo', os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND)\n"
        "os.open('/dev/echo', os.O_RDONLY | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC)\n"
    )
    known = os.O_ACCMODE | os.O_NONBLOCK | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_EXCL
    first, second = (request.flags & known for request in echo.requests)
    assert first == os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND
    assert second == os.O_RDONLY


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EACCES, errno.ENXIO, errno.EAGAIN])
def test_a_device_may_refuse_to_be_opened(
    sandbox: Sandbox, echo: Fifo, client: Shell, code: int
) -> None:
    def refuse(request: OpenRequest) -> File:
        raise OSError(code, "no")

    echo.open = refuse  # type: ignore[method-assign]  # of this device only
    name = errno.errorcode[code]
    script = "print(attempt(os.open, '/dev/echo', 0), os.open('/', 0) == lowest)"
    assert client(LOWEST + script) == f"{name} True\n"


READS = {
    "read": "print(os.read(fd, 4))",
    "pread": "print(os.pread(fd, 4, 1000))",
    "readv": "a, b = bytearray(1), bytearray(3); os.readv(fd, [a, b]); print(bytes(a + b))",
    "readv with empty ones": (
        "a, b = bytearray(1), bytearray(3); os.readv(fd, [bytearray(), a, bytearray(), b]);"
        "print(bytes(a + b))"
    ),
    "preadv": "a, b = bytearray(1), bytearray(3); os.preadv(fd, [a, b], 7); print(bytes(a + b))",
    "preadv2": (
        "a, b = bytearray(1), bytearray(3)\n"
        "os.preadv(fd, [a, b], -1, os.RWF_HIPRI); print(bytes(a + b))"
    ),
}


@pytest.mark.parametrize("reading", READS.values(), ids=READS)
def test_each_way_to_read(echo: Fifo, client: Shell, reading: str) -> None:
    echo.data += b"1234567"
    assert client(f"fd = os.open('/dev/echo', os.O_RDONLY)\n{reading}") == "b'1234'\n"
    assert echo.data == b"567"


WRITES = {
    "write": "print(os.write(fd, b'1234'))",
    "pwrite": "print(os.pwrite(fd, b'1234', 1000))",
    "writev": "print(os.writev(fd, [b'1', b'', b'234']))",
    "pwritev": "print(os.pwritev(fd, [b'1', b'234'], 7))",
    "pwritev2": "print(os.pwritev(fd, [b'1', b'234'], -1, os.RWF_SYNC | os.RWF_DSYNC))",
}


@pytest.mark.parametrize("writing", WRITES.values(), ids=WRITES)
def test_each_way_to_write(echo: Fifo, client: Shell, writing: str) -> None:
    assert client(f"fd = os.open('/dev/echo', os.O_WRONLY)\n{writing}") == "4\n"
    assert echo.writes == [b"1234"]


TRANSFERS = """
import ctypes
libc = ctypes.CDLL(None)
fd = os.open(args[0], os.O_RDWR)
readable, writable = os.open(args[0], os.O_RDONLY), os.open(args[0], os.O_WRONLY)
path = os.open(args[0], 0o10000000)
for f in fd, readable, writable, path:
    print(attempt(os.read, f, 0), attempt(os.write, f, b''), attempt(os.write, f, b'xyz'))
    print(attempt(os.read, f, 4), attempt(os.pread, f, 4, -1), attempt(os.pwrite, f, b'x', -1))
    print(attempt(os.readv, f, [bytearray(2), bytearray(3)]), attempt(os.writev, f, [b'x', b'yy']))
    print(attempt(os.readv, f, []), attempt(os.writev, f, []))
    print(attempt(os.preadv, f, [bytearray(2)], -2), attempt(os.pwritev, f, [b'x'], -2))
    print(attempt(os.preadv, f, [bytearray(2)], -1), attempt(os.pwritev, f, [b'x'], -1))
    print(attempt(os.pwritev, f, [b'x'], 0, 1 << 20), attempt(os.preadv, f, [bytearray(1)], 0, 64))
    print([libc.readv(f, None, ctypes.c_size_t(n)) for n in (1025, 1 << 32, (1 << 32) + 1025)])
    print(attempt(os.lseek, f, 0, 99), attempt(os.lseek, f, 0, -1))
"""


def test_transfers_that_are_odd_do_what_they_do_natively(as_native: Shell) -> None:
    as_native(TRANSFERS)


def test_a_read_of_nothing_is_not_the_devices_business(echo: Fifo, client: Shell) -> None:
    script = "fd = os.open('/dev/echo', os.O_RDWR); print(os.read(fd, 0), os.write(fd, b''))"
    assert client(script) == "b'' 0\n"
    assert echo.writes == []


def test_large_transfers_come_in_pieces_and_whole(echo: Fifo, client: Shell) -> None:
    echo.data += bytes(range(256)) * 4096
    script = """
        fd = os.open('/dev/echo', os.O_RDWR)
        data = os.read(fd, 1 << 21)
        print(len(data), data == bytes(range(256)) * 4096)
        print(os.write(fd, bytes(300000)), os.read(fd, 300001) == bytes(300000))
    """
    assert client(script.replace("\n        ", "\n")) == "1048576 True\n300000 True\n"
    assert max(map(len, echo.writes)) <= 131072
    assert sum(map(len, echo.writes)) == 300000


IN_KERNEL = """
fd, file = os.open('/dev/echo', os.O_RDWR), os.memfd_create('file')
r, w = os.pipe()
os.write(file, b'data'); os.lseek(file, 0, 0); os.write(w, b'more')
print(attempt(os.sendfile, fd, file, 0, 4), attempt(os.sendfile, file, fd, None, 4))
print(attempt(os.splice, fd, w, 4), attempt(os.splice, r, fd, 4))
print(attempt(os.copy_file_range, fd, file, 4), attempt(os.copy_file_range, file, fd, 4))
print(call('tee', fd, w, 4, 0), call('tee', r, fd, 4, 0))
print(attempt(os.sendfile, w, file, 0, 4), os.read(r, 9))
"""


def test_transfers_inside_the_kernel_are_refused(echo: Fifo, client: Shell) -> None:
    # So that programs fall back to read and write, as with fs/fuse/cuse.c, which has no splice.
    # (The kernel's own null device has: it is no model here.)
    refused = "EINVAL EINVAL\n" * 4
    assert client(IN_KERNEL) == refused + "4 b'moredata'\n"
    assert echo.writes == []


def test_a_device_without_positions(echo: Fifo, client: Shell) -> None:
    # fs/fuse/cuse.c: noop_llseek.
    echo.data += b"1234"
    script = "fd = os.open('/dev/echo', os.O_RDWR)\n"
    script += "print([os.lseek(fd, 5, whence) for whence in (0, 1, 2, 3, 4)], os.read(fd, 2),"
    script += "os.lseek(fd, -7, 0), attempt(os.lseek, fd, 0, 5))"
    assert client(script) == "[0, 0, 0, 0, 0] b'12' 0 EINVAL\n"


class PageFile(File):
    device: "Page"

    def read(self, size: int, offset: int) -> bytes:
        return bytes(range(32))[offset : offset + size]

    def write(self, data: bytes, offset: int) -> int:
        self.device.written.append((offset, bytes(data)))
        return len(data)


class Page(Device):
    name = "page"
    seekable = True

    def __init__(self) -> None:
        super().__init__()
        self.written: list[tuple[int, bytes]] = []

    def open(self, request: OpenRequest) -> File:
        return PageFile()


def test_a_seekable_device_has_positions(clients: Clients) -> None:
    page = Page()
    script = """
fd = os.open('/dev/page', os.O_RDWR)
print(os.read(fd, 2), os.read(fd, 2), os.lseek(fd, 0, 1), os.pread(fd, 2, 9), os.lseek(fd, 0, 1))
print(os.lseek(fd, 3, 1), os.write(fd, b'abc'), os.pwrite(fd, b'd', 30), os.lseek(fd, 0, 1))
print(attempt(os.lseek, fd, -1, 0), attempt(os.lseek, fd, 0, 2), os.lseek(fd, 1 << 40, 0))
print(os.read(fd, 1), os.preadv(fd, [bytearray(1), bytearray(4)], 30))
other = os.open('/dev/page', os.O_RDONLY)
print(os.lseek(other, 0, 1), os.lseek(os.dup(fd), 0, 1))
"""
    with Sandbox(page) as sandbox:
        output = clients(sandbox)(script)
    assert output == (
        "b'\\x00\\x01' b'\\x02\\x03' 4 b'\\t\\n' 4\n7 3 1 10\nEINVAL ESPIPE 1099511627776\n"
        "b'' 2\n0 1099511627776\n"
    )
    assert page.written == [(7, b"abc"), (30, b"d")]


@pytest.mark.parametrize("block", [1, 7, 4096, 65536])
def test_dd(echo: Fifo, sandbox: Sandbox, tmp_path: Path, block: int) -> None:
    # dup2, fstat, lseek, and writes of exactly the block's size.
    size = 3 * block + block // 2
    (tmp_path / "in").write_bytes(os.urandom(size))
    command = ["dd", f"bs={block}", "status=none"]
    sandbox.run([*command, f"if={tmp_path}/in", "of=/dev/echo"], check=True)
    assert {len(write) for write in echo.writes} <= {block, block // 2}
    sandbox.run([*command, "if=/dev/echo", f"of={tmp_path}/out"], check=True)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


def test_cat_and_cp_copy_a_devices_bytes(echo: Fifo, shell: Shell, tmp_path: Path) -> None:
    echo.data += b"hello\n"
    out = tmp_path / "out"
    assert shell(f"cat /dev/echo > {out}; cp {out} /dev/echo; cat < /dev/echo; cat {out}") == (
        "hello\nhello\n"
    )


def test_io_uring_is_not_there(client: Shell) -> None:
    # It would do input and output that no filter sees. Programs fall back.
    assert client("print(call(425, 8, bytes(120)))") == "ENOSYS\n"


def test_input_and_output_of_a_program_may_be_a_pipe(sandbox: Sandbox) -> None:
    done = sandbox.run(["sh", "-c", "cat > /dev/echo; cat /dev/echo"], input=b"x" * 100000,
                       stdout=subprocess.PIPE)  # fmt: skip
    assert done.stdout == b"x" * 100000
