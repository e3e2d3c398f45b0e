"""FUSE over io_uring: each request gets an answer, whatever fails in the server."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

import pytest

from recuse import Mount, RegularFile
from recuse.channel.io_uring import Ring
from recuse.channel.ring_entry import Entry
from recuse.channel.rings import Rings
from recuse.channel.shared_ring import SharedRing
from recuse.server.filesystem.session import FilesystemSession
from recuse.wire.fuse import FUSE_NOTIFY_REPLY

from .conftest import PATIENCE_S
from .programs import CPUS, READERS, STAT, Blocking, Gate, python, result, tree


class Raising(RegularFile):
    """A file that cannot be read."""

    size = None

    def read(self, size: int, offset: int) -> bytes:
        if offset == 0:
            raise RuntimeError("on purpose")
        raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN))


@pytest.mark.usefixtures("detached")
def test_a_method_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    with Mount(tree(raises=Raising()), None, "io_uring") as mount:
        number = os.open("raises", os.O_RDONLY, dir_fd=mount.fileno())
        for offset, expected in ((0, errno.EIO), (10, errno.EUCLEAN), (0, errno.EIO)):
            with pytest.raises(OSError, match=os.strerror(expected)):
                os.pread(number, 10, offset)
        os.close(number)
    assert "on purpose" in caplog.text


@pytest.mark.usefixtures("detached")
def test_an_internal_error_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    handle = FilesystemSession.handle

    def broken(self: FilesystemSession, message: bytes, reply: Any, gather: Any = None) -> None:
        if b"hello" in message:
            raise RuntimeError("on purpose")
        handle(self, message, reply, gather)

    monkeypatch.setattr(FilesystemSession, "handle", broken)
    with Mount(tree(), None, "io_uring") as mount:
        for _ in range(3):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.stat("hello", dir_fd=mount.fileno())
        os.listdir(mount.path)
    assert "on purpose" in caplog.text


@pytest.mark.usefixtures("detached")
def test_a_ring_that_breaks_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add = Ring.add

    def broken(self: Ring, *arguments: Any) -> None:
        if breaks and threading.current_thread().name == "recuse-ring":
            raise RuntimeError("on purpose")
        add(self, *arguments)

    breaks = False
    monkeypatch.setattr(Ring, "add", broken)
    with Mount(tree(), None, "io_uring") as mount:
        breaks = True
        with pytest.raises(OSError, match=f"{errno.ENOTCONN}|{errno.ECONNABORTED}"):
            os.stat("not there", dir_fd=mount.fileno())
    assert "on purpose" in caplog.text


@pytest.mark.usefixtures("detached")
@pytest.mark.parametrize("thread", ["recuse-ring", "recuse-shared-ring"])
def test_an_answer_that_the_kernel_does_not_take_ends_the_connection(
    thread: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The program would wait for ever.
    add = Ring.add

    def wrong(self: Ring, submission: bytes, commit_id: int = 0) -> None:
        if breaks and commit_id and threading.current_thread().name == thread:
            commit_id += 1 << 40
        add(self, submission, commit_id)

    breaks = False
    monkeypatch.setattr(Ring, "add", wrong)
    with Gate() as gate, Mount(tree(waits=Blocking(gate)), None, "io_uring") as mount:
        readers = [python(READERS, mount, "waits", "1", cpu=cpu) for cpu in CPUS]
        if thread == "recuse-shared-ring":
            gate.wait_for(len(CPUS))
        breaks = True
        with pytest.raises(OSError, match=f"{errno.ENOTCONN}|{errno.ECONNABORTED}"):
            os.stat("not there", dir_fd=mount.fileno())
        gate.open()
        for reader in readers:
            reader.communicate(timeout=PATIENCE_S)
    assert os.strerror(errno.ENOENT) in caplog.text


@pytest.mark.usefixtures("detached")
def test_a_method_that_blocks_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody looks after the queues while nothing happens. This one has no thread of its own.
    if len(CPUS) == 1:
        pytest.skip("there is only one CPU")
    asleep_or_not = SharedRing._asleep_or_not
    asleep = threading.Event()

    def tell(self: SharedRing, idle: int) -> None:
        asleep_or_not(self, idle)
        if self.asleep:
            asleep.set()

    monkeypatch.setattr(SharedRing, "_asleep_or_not", tell)
    os.sched_setaffinity(0, CPUS[1:])
    try:
        with Gate() as gate, Mount(tree(waits=Blocking(gate)), None, "io_uring") as mount:
            number = os.open("waits", os.O_RDONLY, dir_fd=mount.fileno())
            asleep.clear()
            assert asleep.wait(PATIENCE_S)
            reader = python(f"import os; os.read({number}, 10)", mount, cpu=CPUS[0], keep=number)
            gate.wait_for(1)
            assert result(python(STAT, mount, cpu=CPUS[0])) == "14\n"
            gate.open()
            result(reader)
            os.close(number)
    finally:
        os.sched_setaffinity(0, CPUS)


MISSING = """
import os
for _ in range(20):
    try:
        os.stat("not there")
    except FileNotFoundError:
        pass
print("done")
"""


@pytest.mark.usefixtures("detached")
def test_answers_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel finds an entry by the number of its request. What we ask of ourselves, to have it
    # look at a queue, has numbers as well: two entries were mistaken for each other.
    serve = Rings.serve
    came = threading.Semaphore(0)
    held: list[Entry] = []

    def hold(self: Rings, entry: Entry) -> None:
        if holds and entry._memory[4] == FUSE_NOTIFY_REPLY:
            held.append(entry)
            came.release()
        else:
            serve(self, entry)

    holds = False
    monkeypatch.setattr(Rings, "serve", hold)
    cpu = CPUS[0]
    with Gate() as gate, Mount(tree(waits=Blocking(gate)), None, "io_uring") as mount:
        rings = mount._rings
        assert rings is not None
        assert rings._shared is not None
        readers = python(READERS, mount, "waits", "4", cpu=cpu)
        gate.wait_for(4)
        holds = True
        rings._shared._nudge(cpu, 2)
        for _ in range(2):
            assert came.acquire(timeout=PATIENCE_S)
        holds = False
        for entry in reversed(held):
            serve(rings, entry)
        programs = [python(MISSING, mount, cpu=cpu) for _ in range(5)]
        for program in programs:
            assert result(program) == "done\n"
        gate.open()
        assert result(readers) == "{'at last\\n'} 4\n"


@pytest.mark.usefixtures("detached")
def test_what_the_kernel_is_asked_for_has_numbers_of_its_own() -> None:
    os.sched_setaffinity(0, CPUS[:1])
    known = RegularFile(b"known")
    try:
        with (
            Gate() as gate,
            Mount(tree(waits=Blocking(gate), known=known), None, "io_uring") as mount,
        ):
            number = os.open("known", os.O_RDONLY, dir_fd=mount.fileno())
            assert os.read(number, 10) == b"known"
            reader = python(READERS, mount, "waits", "1", cpu=CPUS[0])
            gate.wait_for(1)
            # The reader's request has one of the first numbers.
            for _ in range(100):
                assert known.retrieve(0, 5).result(PATIENCE_S) == b"known"
            gate.open()
            assert result(reader) == "{'at last\\n'} 1\n"
            os.close(number)
    finally:
        os.sched_setaffinity(0, CPUS)
