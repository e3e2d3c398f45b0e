"""Devices with async def methods."""

import asyncio
import errno
import subprocess
import sys
import threading
from collections.abc import Awaitable, Generator
from typing import Any, TypeVar

import pytest

from recuse import IO, Device, File, Memory, OpenRequest, Request, Session, current_request, ioctl
from recuse.server import loop
from recuse.wire.declare import Structure
from recuse.wire.fuse import (
    FUSE_INTERRUPT,
    FUSE_IOCTL,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_WRITE,
    fuse_in_header,
    fuse_interrupt_in,
    fuse_ioctl_in,
    fuse_open_in,
    fuse_read_in,
    fuse_write_in,
    fuse_write_out,
)

from .conftest import Failure, Peer, Serve, Told

T = TypeVar("T", bound="Sleeper")


WAIT_S = 20


class Sleeper(File):
    """Reads wait for ever, unless they are told to go on."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.cancelled: list[int] = []
        self.go_on = asyncio.Event()

    async def read(self, size: int, offset: int) -> bytes:
        self.started.release()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.append(current_request().interrupted)
            raise
        return b"went on"

    async def write(self, data: bytes, offset: int) -> None:
        self.go_on.set()

    def begin(self, peer: Peer, fh: int) -> int:
        """Begin a read and return its number when the method runs."""
        unique = peer.post_read(fh)
        assert self.started.acquire(timeout=WAIT_S)
        return unique


def sleeper(serve: Serve) -> tuple[Peer, int, Sleeper]:
    return sleeping(serve, Sleeper)


def sleeping(serve: Serve, cls: type[T]) -> tuple[Peer, int, T]:
    peer = serve(cls)
    fh = peer.open()
    file = peer.session._files[fh]
    assert isinstance(file, cls)
    return peer, fh, file


def outcome(peer: Peer, unique: int) -> bytes | int:
    """Return an answer's payload, or its errno."""
    try:
        return peer.answer(unique)
    except Failure as failure:
        return failure.number


def test_all_methods_may_be_async(serve: Serve) -> None:
    events: list[int | str] = []

    class Probe(Device):
        name = "probe"

        async def open(self, request: OpenRequest) -> File:
            await asyncio.sleep(0)
            events.append(request.flags)
            return ProbeFile()

    class ProbeFile(File):
        async def read(self, size: int, offset: int) -> bytes:
            await asyncio.sleep(0)
            return b"read"

        async def write(self, data: bytes, offset: int) -> int:
            await asyncio.sleep(0)
            return len(data) - 1

        async def release(self) -> None:
            await asyncio.sleep(0)
            events.append("released")

        async def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
            await asyncio.sleep(0)
            return command

    peer = serve(Probe())
    fh = peer.open(5)
    assert peer.read(fh) == b"read"
    assert peer.write(fh, b"1234") == 3
    assert peer.restricted_ioctl(fh, 12) == (12, b"")
    peer.release(fh)
    assert events == [5, "released"]


def test_a_method_that_waits_holds_up_nobody(serve: Serve) -> None:
    peer, fh, file = sleeper(serve)
    waiting = [file.begin(peer, fh) for _ in range(20)]
    assert not peer.answers.keys() & set(waiting)
    peer.write(fh, b"go on")
    assert {outcome(peer, unique) for unique in waiting} == {b"went on"}


def test_a_plain_method_may_return_an_awaitable(serve: Serve) -> None:
    class Reply:
        def __await__(self) -> Generator[None, None, bytes]:
            yield from asyncio.sleep(0).__await__()
            return b"awaited"

    class ProbeFile(File):
        def read(self, size: int, offset: int) -> Awaitable[bytes]:
            return Reply()

    peer = serve(ProbeFile)
    assert peer.read(peer.open()) == b"awaited"


def test_all_sessions_share_one_loop_that_ends_with_the_last() -> None:
    from_methods = []

    class ProbeFile(File):
        async def read(self, size: int, offset: int) -> bytes:
            from_methods.append((asyncio.get_running_loop(), threading.current_thread()))
            return b""

    class Probe(Device):
        name = "probe"

        def open(self, request: OpenRequest) -> File:
            return ProbeFile()

    assert not loop.shared.running
    arrived = threading.Semaphore(0)
    sessions = [Session(Probe()) for _ in range(3)]
    for session in sessions:
        session.handle(packed(FUSE_OPEN, fuse_open_in()), lambda message: None)
        session.handle(packed(FUSE_READ, fuse_read_in(fh=1, size=1)), lambda m: arrived.release())
        assert arrived.acquire(timeout=WAIT_S)
    ((used, thread),) = set(from_methods)
    assert thread is not threading.main_thread()
    for session in sessions:
        assert not used.is_closed()
        session.close()
    assert used.is_closed()
    assert not thread.is_alive()
    assert not loop.shared.running


def packed(opcode: int, body: Structure, unique: int = 2) -> bytes:
    content = body.pack()
    header = fuse_in_header(len=40 + len(content), opcode=opcode, unique=unique)
    return header.pack() + content


# Interrupts


def test_an_interrupt_cancels(serve: Serve) -> None:
    peer, fh, file = sleeper(serve)
    first, second = file.begin(peer, fh), file.begin(peer, fh)
    interrupt = peer.interrupt(first)
    assert outcome(peer, first) == errno.EINTR
    assert file.cancelled == [True]
    assert second not in peer.answers
    peer.write(fh, b"go on")
    assert outcome(peer, second) == b"went on"
    assert interrupt not in peer.answers


def test_a_method_may_answer_though_it_is_cancelled(serve: Serve) -> None:
    class Partial(Sleeper):
        async def read(self, size: int, offset: int) -> bytes:
            try:
                return await super().read(size, offset)
            except asyncio.CancelledError:
                return b"part"

    peer, fh, file = sleeping(serve, Partial)
    unique = file.begin(peer, fh)
    peer.interrupt(unique)
    assert outcome(peer, unique) == b"part"


def test_a_method_may_fail_otherwise_when_it_is_cancelled(serve: Serve) -> None:
    class Other(Sleeper):
        async def read(self, size: int, offset: int) -> bytes:
            try:
                return await super().read(size, offset)
            except asyncio.CancelledError:
                raise OSError(errno.EAGAIN, "later") from None

    peer, fh, file = sleeping(serve, Other)
    unique = file.begin(peer, fh)
    peer.interrupt(unique)
    assert outcome(peer, unique) == errno.EAGAIN


def test_an_interrupt_before_the_method_has_begun(serve: Serve) -> None:
    go_on, blocking = threading.Event(), threading.Event()
    begun: list[int | str] = []

    class Blocking(File):
        async def write(self, data: bytes, offset: int) -> None:
            blocking.set()
            assert go_on.wait(WAIT_S)  # Blocks the whole loop.

        async def read(self, size: int, offset: int) -> bytes:
            begun.append(size)
            return b""

        @ioctl(IO("E", 1))
        async def probe(self) -> None:
            begun.append("ioctl")

    peer = serve(Blocking)
    fh = peer.open()
    write = peer.post(FUSE_WRITE, fuse_write_in(fh=fh, size=1), b"x")
    assert blocking.wait(WAIT_S)
    read = peer.post_read(fh)
    probe = peer.post(FUSE_IOCTL, fuse_ioctl_in(fh=fh, cmd=IO("E", 1)))
    other = peer.post_read(fh, 1)
    peer.interrupt(read)
    peer.interrupt(probe)
    go_on.set()
    assert outcome(peer, read) == errno.EINTR
    assert outcome(peer, probe) == errno.EINTR
    assert outcome(peer, other) == b""
    assert outcome(peer, write) == (1).to_bytes(8, "little")
    assert begun == [1]


def test_plain_methods_see_that_they_are_interrupted(serve: Serve) -> None:
    reading, interrupted = threading.Event(), threading.Event()

    class ProbeFile(File):
        def read(self, size: int, offset: int) -> bytes:
            request = current_request()
            assert not request.interrupted
            reading.set()
            assert interrupted.wait(WAIT_S)
            assert request.interrupted
            raise InterruptedError(errno.EINTR, "interrupted")

    peer = serve(ProbeFile)
    fh = peer.open()
    unique = 500
    body = fuse_read_in(fh=fh, size=1)
    thread = threading.Thread(target=peer.post, args=(FUSE_READ, body), kwargs={"unique": unique})
    thread.start()
    assert reading.wait(WAIT_S)
    peer.interrupt(unique)
    interrupted.set()
    thread.join()
    assert outcome(peer, unique) == errno.EINTR


def test_an_interrupt_of_what_is_not_there_is_to_come_again(serve: Serve) -> None:
    peer, fh, file = sleeper(serve)
    answered = peer.post(FUSE_WRITE, fuse_write_in(fh=fh, size=1), b"x")
    peer.answer(answered)
    for unique in (answered, 1000):
        body = fuse_interrupt_in(unique=unique)
        assert peer.fails(FUSE_INTERRUPT, body, unique=unique | 1) == errno.EAGAIN
    assert not file.cancelled


def test_a_handler_that_is_cancelled_by_others_is_eio(serve: Serve, told: Told) -> None:
    class ProbeFile(File):
        async def read(self, size: int, offset: int) -> bytes:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
            return b""

    peer = serve(ProbeFile)
    assert peer.fails(FUSE_READ, fuse_read_in(fh=peer.open(), size=1)) == errno.EIO
    assert isinstance(told.traceback()[1], asyncio.CancelledError)


# Mistakes


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_loop_survives(serve: Serve, told: Told, error: type[BaseException]) -> None:
    class ProbeFile(File):
        async def read(self, size: int, offset: int) -> bytes:
            raise error

        async def write(self, data: bytes, offset: int) -> int:
            return 1

    peer = serve(ProbeFile)
    fh = peer.open()
    assert peer.fails(FUSE_READ, fuse_read_in(fh=fh, size=1)) == errno.EIO
    assert told.traceback()[0] == f"ProbeFile.read raised {error.__name__}"
    assert peer.write(fh, b"x") == 1


def test_open_is_checked_later_too(serve: Serve, told: Told) -> None:
    class Probe(Device):
        name = "probe"

        async def open(self, request: OpenRequest) -> Any:
            return None

    assert serve(Probe()).fails(FUSE_OPEN, fuse_open_in()) == errno.EIO
    assert told.line() == "Probe.open returned None, not a File: EIO for the program"


def test_an_async_open_that_nobody_waits_for_is_released(serve: Serve) -> None:
    released = threading.Semaphore(0)

    class ProbeFile(File):
        async def release(self) -> None:
            await asyncio.sleep(0)
            released.release()

    class Probe(Device):
        name = "probe"

        async def open(self, request: OpenRequest) -> File:
            return ProbeFile()

    peer = serve(Probe())
    peer.refuse = OSError(errno.ENOENT, "killed")
    peer.post(FUSE_OPEN, fuse_open_in())
    assert released.acquire(timeout=WAIT_S)
    peer.refuse = None
    peer.session.close()
    assert not released.acquire(blocking=False)


# The end


def test_close_ends_what_runs(serve: Serve) -> None:
    released: list[Request | None] = []

    class Probe(Sleeper):
        async def release(self) -> None:
            await asyncio.sleep(0)
            released.append(current_request_or_none())

    peer, fh, file = sleeping(serve, Probe)
    waiting = [file.begin(peer, fh) for _ in range(3)]
    peer.session.close()
    assert [outcome(peer, unique) for unique in waiting] == [errno.ECONNABORTED] * 3
    assert file.cancelled == [False] * 3
    assert released == [None]


def current_request_or_none() -> Request | None:
    try:
        return current_request()
    except LookupError:
        return None


def test_close_waits_for_a_handler_that_cleans_up(serve: Serve) -> None:
    class Slow(Sleeper):
        cleaned = False

        async def read(self, size: int, offset: int) -> bytes:
            try:
                return await super().read(size, offset)
            finally:
                for _ in range(10):
                    await asyncio.sleep(0)
                self.cleaned = True

    peer, fh, file = sleeping(serve, Slow)
    file.begin(peer, fh)
    peer.session.close()
    assert file.cleaned


def test_close_does_not_wait_for_ever(
    serve: Serve, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recuse.server.runner.CLOSE_WAIT_S", 0.01)
    monkeypatch.setattr("recuse.server.loop.STOP_WAIT_S", 0.01)

    class Stubborn(Sleeper):
        async def read(self, size: int, offset: int) -> bytes:
            while not self.go_on.is_set():
                try:
                    await super().read(size, offset)
                except asyncio.CancelledError:
                    continue
            return b"after all"

    peer, fh, file = sleeping(serve, Stubborn)
    unique = file.begin(peer, fh)
    assert loop.shared._running is not None
    thread, (used, *_) = loop.shared._running
    peer.session.close()
    closing, stopping = told.lines()
    assert closing == "Tasks.end has not ended after 0.01 s"
    assert "the event loop has not ended" in stopping
    used.call_soon_threadsafe(file.go_on.set)
    assert outcome(peer, unique) == b"after all"
    thread.join()


def test_async_releases_that_fail_at_the_end_are_told(serve: Serve, told: Told) -> None:
    class ProbeFile(File):
        async def release(self) -> None:
            raise TimeoutError("of its own")

    peer = serve(ProbeFile)
    peer.open()
    peer.session.close()
    line, error = told.traceback()
    assert line == "ProbeFile.release raised TimeoutError with errno None, which is not one"
    assert isinstance(error, TimeoutError)


def test_a_coroutine_that_comes_after_the_end_does_not_begin(serve: Serve) -> None:
    reading, go_on = threading.Event(), threading.Event()

    class ProbeFile(File):
        def read(self, size: int, offset: int) -> Awaitable[bytes]:
            reading.set()
            assert go_on.wait(WAIT_S)
            return self.late()

        async def late(self) -> bytes:
            raise AssertionError("does not begin")

    peer = serve(ProbeFile)
    body = fuse_read_in(fh=peer.open(), size=1)
    thread = threading.Thread(target=peer.post, args=(FUSE_READ, body), kwargs={"unique": 500})
    thread.start()
    assert reading.wait(WAIT_S)
    peer.session.close()
    go_on.set()
    thread.join()
    assert outcome(peer, 500) == errno.ECONNABORTED
    assert not loop.shared.running


def test_after_the_loop_has_stopped(serve: Serve, told: Told) -> None:
    """As when a program exits, and closes sessions later than atexit has stopped the loop."""

    class ProbeFile(File):
        async def read(self, size: int, offset: int) -> bytes:
            return b""

        async def release(self) -> None:
            raise AssertionError("does not run")

    peer = serve(ProbeFile)
    fh = peer.open()
    assert peer.read(fh) == b""
    loop.shared.stop()
    assert peer.fails(FUSE_READ, fuse_read_in(fh=fh, size=1)) == errno.ECONNABORTED
    peer.session.close()
    line, error = told.traceback()
    assert line == "ProbeFile.release raised RuntimeError"
    assert str(error) == "Event loop is closed"


def join_loop() -> None:
    """Wait for the end of the loop, which comes later if a session was closed on it."""
    for thread in threading.enumerate():
        if thread.name == "recuse-async":
            thread.join(WAIT_S)


def test_close_on_the_loop_itself(serve: Serve) -> None:
    closed = threading.Event()

    class Probe(Device):
        name = "probe"
        file = None

        def open(self, request: OpenRequest) -> File:
            self.file = Closing()
            return self.file

        def close(self) -> None:
            closed.set()

    class Closing(Sleeper):
        async def write(self, data: bytes, offset: int) -> None:
            peer.session.close()
            assert not closed.is_set()
            await asyncio.sleep(0)
            raise AssertionError("is cancelled")

    device = Probe()
    peer = serve(device)
    fh = peer.open()
    assert device.file is not None
    read = device.file.begin(peer, fh)
    write = peer.post(FUSE_WRITE, fuse_write_in(fh=fh, size=1), b"x")
    assert closed.wait(WAIT_S)
    assert outcome(peer, read) == errno.ECONNABORTED
    assert outcome(peer, write) == errno.ECONNABORTED
    join_loop()


def test_what_has_not_begun_when_the_session_closes_is_answered_and_never_begins(
    serve: Serve,
) -> None:
    begun: list[int] = []

    class Closing(File):
        async def write(self, data: bytes, offset: int) -> None:
            begun.append(offset)
            # On the loop, so that the second write's task is made before the first step of the end.
            second.append(peer.post(FUSE_WRITE, fuse_write_in(fh=fh, size=1, offset=1), b"x"))
            peer.session.close()

    second: list[int] = []
    peer = serve(Closing)
    fh = peer.open()
    first = peer.post(FUSE_WRITE, fuse_write_in(fh=fh, size=1), b"x")
    assert outcome(peer, first) == fuse_write_out(size=1).pack()
    assert outcome(peer, second[0]) == errno.ECONNABORTED
    assert begun == [0]
    join_loop()


def test_tasks_that_handlers_leave_behind_end_with_the_loop(serve: Serve) -> None:
    ended = threading.Event()

    class ProbeFile(File):
        async def read(self, size: int, offset: int) -> bytes:
            self.ticker = asyncio.create_task(self.tick())
            await asyncio.sleep(0)
            return b""

        async def tick(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    peer = serve(ProbeFile)
    peer.read(peer.open())
    assert not ended.is_set()
    peer.session.close()
    assert ended.is_set()


def test_plain_devices_do_without_asyncio() -> None:
    code = """
import sys
from recuse import *
class Probe(Device):
    name = "probe"
    def open(self, request): return File()
Session(Probe()).close()
assert "asyncio" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("waiting", ["", "await asyncio.Event().wait()"])
def test_a_program_that_forgets_to_close_still_exits(waiting: str) -> None:
    code = f"""
import asyncio, threading
from recuse import *
from recuse.wire.fuse import *
begun = threading.Event()
class ProbeFile(File):
    async def read(self, size, offset):
        begun.set()
        {waiting or "pass"}
        return b""
class Probe(Device):
    name = "probe"
    def open(self, request): return ProbeFile()
session = Session(Probe())
for opcode, body in [(FUSE_OPEN, fuse_open_in()), (FUSE_READ, fuse_read_in(fh=1, size=1))]:
    header = fuse_in_header(len=40 + body.SIZE, opcode=opcode, unique=2)
    session.handle(header.pack() + body.pack(), lambda message: None)
assert begun.wait(20)
print("end")
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code],
        check=True,
        timeout=30,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "end\n"
    assert "never awaited" not in done.stderr
