"""Files that ioctls make, as programs hold them: every way to get, share and lose one."""

import ctypes
import errno
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from ctypes import c_int32, c_uint32
from pathlib import Path
from typing import Any

import pytest

from recuse import IO, IOR, IOWR, Device, File, OpenRequest, ioctl
from recuse.channel.listen import DeviceServer
from recuse.channel.socket import Remote
from recuse.sandbox import Program, Sandbox
from tests.conftest import Needs

from ..patience import PATIENCE_S


class Request(ctypes.Structure):
    """What the program gives: a number, and a place for the descriptor's."""

    _fields_ = [("number", c_uint32), ("fd", c_int32)]
    number: int
    fd: int


MAKE = IOWR("N", 1, Request)
MAKE_LATER = IOWR("N", 2, Request)
MAKE_READABLE = IOWR("N", 3, Request)
GET_NUMBER = IOR("N", 4, 4)
MAKE_SLOWLY = IOWR("N", 5, Request)
NOTHING = IO("N", 6)


class Made(File):
    """One of the numbers, which has one user at a time."""

    device: "Maker"

    def __init__(self, device: "Maker", number: int) -> None:
        with device.changed:
            if number in device.used:
                raise OSError(errno.EBUSY, "in use")
            device.used.add(number)
            device.made += 1
        self.number = number
        self.flags = os.O_RDWR | os.O_CLOEXEC
        self.data = b"number %d" % number

    def read(self, size: int, offset: int) -> bytes:
        return self.data[:size]

    def write(self, data: bytes, offset: int) -> int:
        self.data = data
        self.wake_pollers()
        return len(data)

    def poll(self, events: int) -> int:
        return select.POLLIN if self.data == b"ready" else 0

    @ioctl(GET_NUMBER, c_uint32)
    def get_number(self) -> int:
        return self.number

    def release(self) -> None:
        with self.device.changed:
            self.device.used.remove(self.number)
            self.device.released += 1
            self.device.changed.notify_all()


class MakerFile(File):
    device: "Maker"

    def poll(self, events: int) -> int:
        return select.POLLOUT

    @ioctl(MAKE, Request, descriptor="fd")
    def make(self, request: Request) -> Made:
        request.number += 100
        return Made(self.device, request.number)

    @ioctl(MAKE_LATER, Request, descriptor="fd")
    async def make_later(self, request: Request) -> Made:
        return self.make(request)

    @ioctl(MAKE_READABLE, Request, descriptor="fd")
    def make_readable(self, request: Request) -> Made:
        made = self.make(request)
        made.flags = os.O_RDONLY
        return made

    @ioctl(MAKE_SLOWLY, Request, descriptor="fd")
    def make_slowly(self, request: Request) -> Made:
        self.device.reached.set()
        assert self.device.go_on.wait(PATIENCE_S)
        return self.make(request)


class Maker(Device):
    """Counts what its ioctls make."""

    name = "maker"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.used: set[int] = set()
        self.made = 0
        self.released = 0
        self.changed = threading.Condition()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def open(self, request: OpenRequest) -> MakerFile:
        return MakerFile()

    def wait_released(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.released >= number, PATIENCE_S)


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def sandbox(maker: Maker) -> Iterator[Sandbox]:
    with Sandbox(maker) as sandbox:
        yield sandbox
    assert maker.made == maker.released
    assert not maker.used


SCRIPT = f"""
MAKE, MAKE_LATER, MAKE_READABLE, GET_NUMBER, MAKE_SLOWLY = {
    [MAKE, MAKE_LATER, MAKE_READABLE, GET_NUMBER, MAKE_SLOWLY]
}
chip = os.open("/dev/maker", os.O_RDWR)
def make(number, command=MAKE, chip=chip):
    data = bytearray(struct.pack("=Ii", number, -1))
    fcntl.ioctl(chip, command, data)
    made, fd = struct.unpack("=Ii", data)
    assert made == number + 100
    return fd
"""

Client = Callable[..., str]


@pytest.mark.parametrize("command", ["MAKE", "MAKE_LATER"])
@pytest.mark.parametrize("unrestricted", [False, True])
def test_a_new_file_has_operations_of_its_own(
    clients: Callable[[Sandbox], Client], command: str, unrestricted: bool
) -> None:
    maker = Maker(unrestricted=unrestricted)
    with Sandbox(maker) as sandbox:
        output = clients(sandbox)(
            SCRIPT
            + f"""
free = os.dup(0); os.close(free)
a = make(1, {command})
b = make(2, {command})
print(a == free, b == free + 1)
print(os.read(a, 100), os.read(b, 100))
print(os.write(a, b"changed"), os.read(a, 4), os.pread(b, 6, 0))
print(struct.unpack("=I", fcntl.ioctl(b, GET_NUMBER, bytes(4))))
print(attempt(fcntl.ioctl, a, MAKE, bytearray(8)), attempt(os.read, chip, 1))
os.close(chip)
print(os.read(b, 100))
"""
        )
        maker.wait_released(2)
    assert output.splitlines() == [
        "True True",
        "b'number 101' b'number 102'",
        "7 b'chan' b'number'",
        "(102,)",
        "ENOTTY EINVAL",
        "b'number 102'",
    ]


def test_a_device_that_is_served_at_a_socket(
    clients: Callable[[Sandbox], Client], maker: Maker, tmp_path: Path
) -> None:
    with closing(DeviceServer(maker, str(tmp_path / "socket"))) as server:
        with Sandbox(Remote(server.path)) as one, Sandbox(Remote(server.path)) as other:
            for number, sandbox in enumerate((one, other)):
                script = SCRIPT + f"fd = make({number}, MAKE_LATER); print(os.read(fd, 20))"
                assert clients(sandbox)(script) == f"b'number {100 + number}'\n"
        maker.wait_released(2)


def test_a_server_that_ends_leaves_files_that_fail(
    start: Callable[..., Program], maker: Maker, tmp_path: Path
) -> None:
    server = DeviceServer(maker, str(tmp_path / "socket"))
    with Sandbox(Remote(server.path)) as sandbox:
        script = """
fds = make(1), make(2), chip
print("made", flush=True)
sys.stdin.readline()
while os.path.exists("/dev/maker"):
    pass
print([attempt(os.read, fd, 9) for fd in fds], [attempt(make, 3, chip=fd) for fd in fds])
"""
        with start(sandbox, SCRIPT + script) as program:
            assert program.stdout is not None
            assert program.stdin is not None
            assert program.stdout.readline() == b"made\n"
            server.close()
            maker.wait_released(2)
            program.stdin.write(b"\n")
            assert program.stdout.read() == f"{['ENODEV'] * 3} {['ENODEV'] * 3}\n".encode()
            assert program.wait(PATIENCE_S) == 0


def test_a_new_file_looks_like_an_anonymous_one(client: Client) -> None:
    output = client(
        SCRIPT
        + """
fd, readable = make(1), make(2, MAKE_READABLE)
found = os.fstat(fd)
print(oct(found.st_mode), found.st_rdev, found.st_size, found.st_nlink, found.st_uid == os.getuid())
print(os.path.samestat(found, os.fstat(readable)))
where = os.fstatvfs(fd)
print(where.f_namemax, where.f_bsize == os.sysconf("SC_PAGE_SIZE"), where.f_blocks, where.f_files)
print(os.readlink(f"/proc/self/fd/{fd}"))
print(attempt(os.open, f"/proc/self/fd/{fd}", os.O_RDONLY))
print(attempt(os.open, f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY))
print(oct(fcntl.fcntl(fd, fcntl.F_GETFL)), oct(fcntl.fcntl(readable, fcntl.F_GETFL)))
print(fcntl.fcntl(fd, fcntl.F_GETFD), fcntl.fcntl(readable, fcntl.F_GETFD))
print(attempt(os.write, readable, b"x"), os.read(readable, 6))
fcntl.fcntl(readable, fcntl.F_SETFL, os.O_NONBLOCK)
print(oct(fcntl.fcntl(readable, fcntl.F_GETFL)))
print(attempt(mmap.mmap, fd, 4096), attempt(os.isatty, fd), attempt(os.lseek, fd, 0, 1))
"""
    )
    assert output.splitlines() == [
        "0o600 0 0 1 True",
        "True",
        "255 True 0 0",
        "anon_inode:maker",
        "ENXIO",
        "ENOTDIR",
        "0o2 0o0",
        "1 0",
        "EBADF b'number'",
        "0o4000",
        "ENODEV False 0",
    ]


def test_every_copy_is_the_same_file_and_the_last_one_releases_it(
    client: Client, maker: Maker
) -> None:
    output = client(
        SCRIPT
        + """
fd = make(1)
copy = os.dup(fd)
os.dup2(fd, 200)
os.close(fd)
print(os.write(200, b"shared"), os.read(copy, 10), flush=True)
ours, theirs = socket.socketpair()
if not os.fork():
    os.close(copy); os.close(200)
    _, (passed,), _, _ = socket.recv_fds(theirs, 1, 1)
    print(os.read(passed, 10), flush=True)
    ours.close(); theirs.recv(1)
    print(os.read(passed, 10), attempt(make, 1), flush=True)
    os._exit(0)
theirs.close()
socket.send_fds(ours, [b"x"], [copy])
os.close(copy); os.close(200)
print(attempt(make, 1), flush=True)
ours.close()
os.wait()
os.close(make(1))
os.close(make(1))
"""
    )
    assert sorted(output.splitlines()) == sorted(
        ["6 b'shared'", "b'shared'", "EBUSY", "b'shared' EBUSY"]
    )
    assert maker.made == 3


def test_close_on_exec(client: Client, maker: Maker) -> None:
    output = client(
        SCRIPT
        + '''
fds = make(1), make(2, MAKE_READABLE)
code = """import os, sys
for fd in map(int, sys.argv[1:]):
    try:
        print(os.read(fd, 10))
    except OSError as error:
        print(error.errno)"""
sys.stdout.flush()
os.execv(sys.executable, [sys.executable, "-ISc", code, *map(str, fds)])
'''
    )
    assert output.splitlines() == [str(errno.EBADF), "b'number 102'"]
    maker.wait_released(2)


def test_each_file_is_polled_by_itself(client: Client) -> None:
    output = client(
        SCRIPT
        + """
import select
a, b = make(1), make(2)
poll, epoll = select.poll(), select.epoll()
for fd in chip, a, b:
    poll.register(fd, select.POLLIN | select.POLLOUT)
    epoll.register(fd, select.EPOLLIN)
print(poll.poll(0) == [(chip, select.POLLOUT)], epoll.poll(0))
for fd in a, b:
    threading.Timer(0.05, os.write, [fd, b"ready"]).start()
    poll.unregister(chip) if fd == a else None
    print(poll.poll(20000) == [(fd, select.POLLIN)], epoll.poll(20) == [(fd, select.EPOLLIN)])
    os.write(fd, b"calm")
    print(poll.poll(0), epoll.poll(0))
"""
    )
    assert output.splitlines() == ["True []", "True True", "[] []", "True True", "[] []"]


def test_what_was_closed_is_released_before_the_next_ioctl(client: Client) -> None:
    script = """
for _ in range(300):
    os.close(make(1))
    other = make(1, chip=os.open("/dev/maker", 0))
    os.close(other)
    os.close(other - 1)
"""
    assert client(SCRIPT + script) == ""


def test_a_full_table(client: Client, maker: Maker) -> None:
    output = client(
        SCRIPT
        + """
import resource
last = os.dup(0); os.close(last)
resource.setrlimit(resource.RLIMIT_NOFILE, (last, last))
for command in MAKE, MAKE_LATER:
    data = bytearray(struct.pack("=Ii", 1, -1))
    print(attempt(fcntl.ioctl, chip, command, data), struct.unpack("=Ii", data))
"""
    )
    assert output.splitlines() == ["EMFILE (1, -1)"] * 2
    assert maker.made == maker.released == 2


def test_memory_that_cannot_be_written_leaves_no_descriptor(client: Client, maker: Maker) -> None:
    output = client(
        SCRIPT
        + """
libc.mmap.restype = ctypes.c_void_p
area = libc.mmap(None, ctypes.c_size_t(4096), 1, 0x22, -1, 0)
before = os.listdir("/proc/self/fd")
for command in MAKE, MAKE_LATER:
    print(call("ioctl", chip, ctypes.c_ulong(command), ctypes.c_void_p(area)))
    print(call("ioctl", chip, ctypes.c_ulong(command), ctypes.c_void_p(8)))
print(os.listdir("/proc/self/fd") == before)
"""
    )
    assert output.splitlines() == ["EFAULT"] * 4 + ["True"]
    assert maker.made == maker.released == 2


def test_a_program_that_is_killed_meanwhile(
    start: Callable[..., Program], sandbox: Sandbox, maker: Maker
) -> None:
    with start(sandbox, SCRIPT + "make(1, MAKE_SLOWLY)") as program:
        assert maker.reached.wait(PATIENCE_S)
        program.kill()
        program.wait(PATIENCE_S)
        maker.go_on.set()
        maker.wait_released(1)


@pytest.mark.parametrize("flags", [["-m32", "-static"], []], ids=["i386", "x86-64"])
def test_a_compiled_program(
    compiled: Callable[..., str], sandbox: Sandbox, flags: list[str], needs: Needs
) -> None:
    needs("gcc", "gcc")
    if flags:
        needs("/usr/include/asm", "gcc-multilib")
    done = sandbox.run(
        [compiled("new_file", *flags)], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "101 number 101 600 2\n"
