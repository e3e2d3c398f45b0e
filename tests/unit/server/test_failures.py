"""What a program and an author get when a method fails or returns what it must not."""

import asyncio
import errno
import threading
from typing import Any

import pytest

from recuse import Device, File, OpenRequest, ioctl
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_interrupt_in,
    fuse_ioctl_in,
    fuse_open_in,
    fuse_read_in,
    fuse_release_in,
    fuse_write_in,
)

from .conftest import Serve, Told


class Nasty:
    """Fails whatever is done with it."""

    def __getattr__(self, name: str) -> None:
        raise ZeroDivisionError(name)

    def __repr__(self) -> str:
        raise ZeroDivisionError("repr")


NAMED: dict[type[OSError], int] = {
    BlockingIOError: errno.EAGAIN,
    BrokenPipeError: errno.EPIPE,
    ChildProcessError: errno.ECHILD,
    ConnectionAbortedError: errno.ECONNABORTED,
    ConnectionRefusedError: errno.ECONNREFUSED,
    ConnectionResetError: errno.ECONNRESET,
    FileExistsError: errno.EEXIST,
    FileNotFoundError: errno.ENOENT,
    InterruptedError: errno.EINTR,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
    PermissionError: errno.EACCES,
    ProcessLookupError: errno.ESRCH,
}

CRASHES = [
    ZeroDivisionError("0"),
    KeyboardInterrupt(),
    SystemExit(1),
    GeneratorExit(),
    StopIteration(),
    asyncio.CancelledError(),
    MemoryError(),
    RecursionError(),
    OSError(),
    OSError("no errno"),
    OSError(0, "zero"),
    OSError(-5, "negative"),
    OSError(512, "ERESTARTSYS"),
    OSError("EIO", "a string"),
    TimeoutError(),
]


@pytest.mark.parametrize(
    ("error", "later"),
    [(error, False) for error in CRASHES]
    # Of a coroutine, Python makes a RuntimeError of it.
    + [(error, True) for error in CRASHES if not isinstance(error, StopIteration)],
    ids=repr,
)
def test_what_escapes_is_eio_and_a_traceback(
    serve: Serve, told: Told, error: BaseException, later: bool
) -> None:
    class ProbeFile(File):
        def read(self, size: int, offset: int) -> bytes:
            raise error

        async def write(self, data: bytes, offset: int) -> None:
            raise error

    peer = serve(ProbeFile)
    fh = peer.open()
    if later:
        number = peer.fails(FUSE_WRITE, fuse_write_in(fh=fh, size=1), b"x")
        name = "ProbeFile.write"
    else:
        number = peer.fails(FUSE_READ, fuse_read_in(fh=fh, size=1))
        name = "ProbeFile.read"
    assert number == errno.EIO
    line, shown = told.traceback()
    assert line.startswith(f"{name} raised {type(error).__name__}")
    assert shown is error
    # It is over, and the next one is served, by the same thread.
    (unique,) = peer.answers.keys() - {2}
    assert peer.fails(FUSE_INTERRUPT, fuse_interrupt_in(unique=unique), unique=9) == errno.EAGAIN
    peer.release(fh)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "busy"),
        BlockingIOError(errno.EAGAIN, "later"),
        InterruptedError(errno.EINTR, "interrupted"),
        OSError(1, "least"),
        OSError(511, "most"),
        FileNotFoundError("name"),
        *(kind() for kind in NAMED),
    ],
    ids=repr,
)
def test_os_errors_are_answers(serve: Serve, error: OSError) -> None:
    """Those about files say by their name which errno they are."""
    number = error.errno or NAMED[type(error)]

    class ProbeFile(File):
        def read(self, size: int, offset: int) -> bytes:
            raise error

        async def write(self, data: bytes, offset: int) -> None:
            raise error

        @ioctl(1)
        def one(self) -> None:
            raise error

    peer = serve(ProbeFile)
    fh = peer.open()
    assert peer.fails(FUSE_READ, fuse_read_in(fh=fh, size=1)) == number
    assert peer.fails(FUSE_WRITE, fuse_write_in(fh=fh, size=1), b"x") == number
    assert peer.fails(FUSE_IOCTL, fuse_ioctl_in(fh=fh, cmd=1)) == number


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (None, "returned None, not bytes"),
        ("text", "returned 'text', not bytes"),
        (5, "returned 5, not bytes"),
        ([1], "returned [1], not bytes"),
        ("x" * 100, "returned a str, not bytes"),
        (b"12345", "returned 5 bytes, but at most 4 were asked for"),
        (bytearray(5), "returned 5 bytes, but at most 4 were asked for"),
        (memoryview(b"12345678").cast("Q"), "returned 8 bytes, but at most 4 were asked for"),
    ],
)
def test_read_returns_what_it_must_not(
    serve: Serve,
    told: Told,
    returned: object,
    line: str,
    later: bool,
) -> None:
    class PlainFile(File):
        def read(self, size: int, offset: int) -> Any:
            return returned

    class AsyncFile(File):
        async def read(self, size: int, offset: int) -> Any:
            return returned

    peer = serve(AsyncFile if later else PlainFile)
    fh = peer.open()
    assert peer.fails(FUSE_READ, fuse_read_in(fh=fh, size=4)) == errno.EIO
    assert told.line() == f"{'Async' if later else 'Plain'}File.read {line}: EIO for the program"


@pytest.mark.parametrize(
    ("returned", "line"),
    [
        (b"abc", "returned b'abc', not a number of bytes or None"),
        (3.0, "returned 3.0, not a number of bytes or None"),
        (-1, "returned -1, but was given 3 bytes"),
        (4, "returned 4, but was given 3 bytes"),
        (1 << 70, "returned 1180591620717411303424, but was given 3 bytes"),
    ],
)
def test_write_returns_what_it_must_not(
    serve: Serve, told: Told, returned: object, line: str
) -> None:
    class ProbeFile(File):
        def write(self, data: bytes, offset: int) -> Any:
            return returned

    peer = serve(ProbeFile)
    fh = peer.open()
    assert peer.fails(FUSE_WRITE, fuse_write_in(fh=fh, size=3), b"abc") == errno.EIO
    assert told.line() == f"ProbeFile.write {line}: EIO for the program"


def test_a_result_that_fails_when_looked_at(serve: Serve, told: Told) -> None:
    class ProbeFile(File):
        def read(self, size: int, offset: int) -> bytes:
            return Nasty()  # type: ignore[return-value]  # that is what is wrong

    peer = serve(ProbeFile)
    assert peer.fails(FUSE_READ, fuse_read_in(fh=peer.open(), size=4)) == errno.EIO
    assert isinstance(told.traceback()[1], ZeroDivisionError)


@pytest.mark.parametrize("returned", [None, 1, [], File], ids=repr)
def test_open_returns_no_file(serve: Serve, told: Told, returned: Any) -> None:
    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> Any:
            return returned

    assert serve(Probe()).fails(FUSE_OPEN, fuse_open_in()) == errno.EIO
    line = told.line()
    assert line.startswith("Probe.open returned ")
    assert line.endswith(", not a File: EIO for the program")


def test_open_refuses(serve: Serve) -> None:
    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            raise OSError(errno.EBUSY, "one at a time")

    assert serve(Probe()).fails(FUSE_OPEN, fuse_open_in()) == errno.EBUSY


def test_open_may_not_fail_with_enosys(serve: Serve, told: Told) -> None:
    # The kernel takes it for "does not want to hear of OPEN", and then opens succeed.
    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            raise OSError(errno.ENOSYS, "not yet")

    assert serve(Probe()).fails(FUSE_OPEN, fuse_open_in()) == errno.EIO
    assert told.line() == "Probe.open raised ENOSYS: EIO for the program"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ZeroDivisionError()])
def test_release_that_fails_is_told_and_done(serve: Serve, told: Told, error: Exception) -> None:
    class ProbeFile(File):
        calls = 0

        def release(self) -> None:
            ProbeFile.calls += 1
            raise error

    peer = serve(ProbeFile)
    fh = peer.open()
    peer.fails(FUSE_RELEASE, fuse_release_in(fh=fh))
    assert told.traceback()[1] is error
    peer.session.close()
    assert ProbeFile.calls == 1


def test_close_goes_on_when_something_fails(serve: Serve, told: Told) -> None:
    class ProbeFile(File):
        def release(self) -> None:
            raise ZeroDivisionError

    class Probe(Device):
        name = "probe"
        closed = False

        def open(self, request: OpenRequest) -> File:
            return ProbeFile()

        def close(self) -> None:
            self.closed = True
            raise SystemExit

    device = Probe()
    peer = serve(device)
    peer.open()
    peer.open()
    peer.session.close()
    assert device.closed
    assert told.lines() == [
        "ProbeFile.release raised ZeroDivisionError",
        "ProbeFile.release raised ZeroDivisionError",
        "Probe.close raised SystemExit",
    ]


def test_the_class_named_is_that_of_the_object(serve: Serve, told: Told) -> None:
    class Base(File):
        def read(self, size: int, offset: int) -> bytes:
            raise ZeroDivisionError

    class Derived(Base):
        pass

    peer = serve(Derived)
    assert peer.fails(FUSE_READ, fuse_read_in(fh=peer.open(), size=4)) == errno.EIO
    assert told.traceback()[0] == "Derived.read raised ZeroDivisionError"


def test_keyboard_interrupt_does_not_end_the_serving_thread(serve: Serve, told: Told) -> None:
    class ProbeFile(File):
        def read(self, size: int, offset: int) -> bytes:
            raise KeyboardInterrupt

    peer = serve(ProbeFile)
    fh = peer.open()
    served = []

    def work() -> None:
        for _ in range(2):
            served.append(peer.fails(FUSE_READ, fuse_read_in(fh=fh, size=4)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert served == [errno.EIO, errno.EIO]
    assert len(told.lines()) == 2
