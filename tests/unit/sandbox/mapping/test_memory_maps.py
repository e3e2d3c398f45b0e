"""How the end of a mapping is noticed; a duplicate of a descriptor stands for the mapping."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from recuse.kernel.char.mmap import Mapping
from recuse.sandbox.mapping import memory_maps as maps_module
from recuse.sandbox.mapping.memory_maps import Hold, MemoryMaps
from recuse.wire.descriptor import OwnedDescriptor
from tests.unit.kernel.support import error_of

PATIENCE_S = 20
WAIT_FOR_END = MemoryMaps._wait_for_end  # which `idle` replaces
NODE = SimpleNamespace(name="device")


class File:
    """Takes note of what is unmapped."""

    node = group = NODE
    location = SimpleNamespace(path=b"device")

    def __init__(self) -> None:
        self.unmapped: list[int] = []
        self.changed = threading.Condition()

    def munmap(self, mapping: Mapping) -> SimpleNamespace:
        operation = self._munmap(mapping)
        return SimpleNamespace(device=SimpleNamespace(connection=None), operation=operation)

    def mapping_ended(self) -> None:
        """Nothing else is to be done."""

    def _munmap(self, mapping: Mapping) -> Iterator[None]:
        with self.changed:
            self.unmapped.append(mapping.unique)
            self.changed.notify_all()
        return
        yield

    def wait(self, *uniques: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.unmapped == list(uniques), PATIENCE_S)


class Releases:
    """Counts the files that are being released."""

    def __init__(self) -> None:
        self.nodes: Counter[str] = Counter()

    def releasing(self, node: SimpleNamespace) -> None:
        self.nodes[node.name] += 1

    def released(self, node: SimpleNamespace) -> None:
        self.nodes[node.name] -= 1


@pytest.fixture
def maps() -> Iterator[MemoryMaps]:
    releases = Releases()
    made = MemoryMaps(releases)  # type: ignore[arg-type]
    yield made
    made.close()
    assert not releases.nodes.total()


@pytest.fixture
def idle(maps: MemoryMaps, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryMaps]:
    """Nothing is noticed by itself, but what `settle` notices."""
    ended = threading.Event()
    monkeypatch.setattr(MemoryMaps, "_wait_for_end", lambda self: ended.wait(PATIENCE_S) and None)
    yield maps
    ended.set()


@pytest.fixture
def memory() -> Iterator[int]:
    number = os.memfd_create("area")
    yield number
    os.close(number)


def hold(maps: MemoryMaps, memory: int, access: int = os.O_RDWR) -> Hold:
    return maps.hold(OwnedDescriptor(os.dup(memory)), access)


def keep(maps: MemoryMaps, held: Hold, file: File, unique: int) -> int:
    """Keep it; return the descriptor whose closing is the mapping's end."""
    theirs = os.dup(held.descriptor.fileno())
    mapping = Mapping(unique, 0x1000, 4096, 1)
    maps.keep(held, file, mapping, dont_expand=False)  # type: ignore[arg-type]
    return theirs


class SameInode:
    """The module os, for which all files are the same one."""

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def fstat(self, descriptor: int) -> SimpleNamespace:
        os.fstat(descriptor)
        return SimpleNamespace(st_dev=1, st_ino=2)


def watches(maps: MemoryMaps) -> int:
    """How many the kernel has."""
    return Path(f"/proc/self/fdinfo/{maps._inotify}").read_text("ascii").count("inotify wd:")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    poll = select.poll()
    for _ in range(PATIENCE_S * 100):
        if condition():
            return
        poll.poll(10)
    raise AssertionError("it has not come true")


def test_the_last_copy_ends_a_mapping(maps: MemoryMaps, memory: int) -> None:
    file = File()
    first = keep(maps, hold(maps, memory), file, 1)
    second = keep(maps, hold(maps, memory), file, 2)
    copy = os.dup(first)
    os.close(first)
    os.close(second)
    file.wait(2)
    os.close(copy)
    file.wait(2, 1)


@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_RDWR])
def test_what_is_mapped_has_the_access_of_the_file(
    maps: MemoryMaps, memory: int, access: int
) -> None:
    held = hold(maps, memory, access)
    assert fcntl.fcntl(held.descriptor.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == access
    maps.abandon(held)


def test_what_is_no_memory(maps: MemoryMaps, tmp_path: Path) -> None:
    closed = OwnedDescriptor(os.dup(0))
    closed.close()
    assert error_of(maps.hold, closed, os.O_RDWR) == errno.EINVAL
    for opened in (os.open("/dev/null", os.O_RDWR), os.eventfd(0), os.open(tmp_path, os.O_RDONLY)):
        given = OwnedDescriptor(opened)
        assert error_of(maps.hold, given, os.O_RDWR) == errno.EINVAL
        given.close()


def test_what_comes_to_nothing_is_not_kept(maps: MemoryMaps, memory: int) -> None:
    maps.abandon(hold(maps, memory))
    assert not maps._by_inode


def test_memory_is_watched_as_long_as_it_lasts(maps: MemoryMaps) -> None:
    """It may be mapped again; and is nobody's when nothing is mapped and its server lets it go."""
    file = File()
    memory = os.memfd_create("area")
    for unique in range(3):
        os.close(keep(maps, hold(maps, memory), file, unique))
        file.wait(*range(unique + 1))
        wait_until(lambda: not maps._by_inode)
        assert watches(maps) == len(maps._by_watch) == 1
    theirs = keep(maps, hold(maps, memory), file, 3)
    os.close(memory)
    os.close(theirs)
    file.wait(0, 1, 2, 3)
    wait_until(lambda: not maps._by_watch)
    assert not watches(maps)


def test_an_inode_number_that_comes_again(
    maps: MemoryMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the memory goes what was known of it: another one gets a watch of its own."""
    monkeypatch.setattr(maps_module, "os", SameInode())
    file = File()
    for unique in (1, 2):
        memory = os.memfd_create("area")
        theirs = keep(maps, hold(maps, memory), file, unique)
        assert watches(maps) == 1
        os.close(memory)
        os.close(theirs)
        file.wait(*range(1, unique + 1))
        wait_until(lambda: not maps._by_watch)


def test_an_event_that_comes_before_the_lock_is_gone(idle: MemoryMaps, memory: int) -> None:
    """As the kernel has it: another look finds the mapping's end, at once where it matters."""
    file = File()
    theirs = keep(idle, hold(idle, memory), file, 1)
    os.close(os.open(f"/proc/self/fd/{memory}", os.O_RDONLY))  # makes an event
    idle.settle()
    assert not file.unmapped
    (mapped,) = idle._by_inode[os.fstat(memory).st_dev, os.fstat(memory).st_ino].mappings
    # Without a further event: the lock goes, though the description is still there.
    unlock = struct.pack("@hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, mapped.byte, 1, 0)
    fcntl.fcntl(theirs, fcntl.F_OFD_SETLK, unlock)
    idle.settle()
    assert file.unmapped == [1]
    os.close(theirs)


def test_events_that_are_lost(idle: MemoryMaps, memory: int) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text("ascii"))
    if limit > 100_000:
        pytest.skip("the kernel's queue of events is long here")
    file = File()
    others = os.memfd_create("one"), os.memfd_create("two")
    theirs = [keep(idle, hold(idle, other), file, 1) for other in others]
    mapped = keep(idle, hold(idle, memory), file, 2)
    short = os.memfd_create("short")
    idle.abandon(hold(idle, short))
    for _ in range(limit // 2 + 1):  # alternating, as two of a kind count as one
        for other in others:
            os.close(os.open(f"/proc/self/fd/{other}", os.O_RDONLY))
    os.close(mapped)
    os.close(short)
    idle.settle()
    assert file.unmapped == [2]
    assert len(idle._by_watch) == 3
    os.close(keep(idle, hold(idle, memory), file, 3))
    idle.settle()
    assert file.unmapped == [2, 3]
    for number in (*theirs, *others):
        os.close(number)
    idle.settle()
    assert file.unmapped == [2, 3, 1, 1]


def test_two_threads_that_are_told_of_one_change(
    idle: MemoryMaps, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one takes over from the other, both wait: who comes second finds nothing to read."""
    held = hold(idle, memory)
    found = object()

    def poll(_: float | None) -> list[tuple[int, int]]:
        idle._gone.append(found)  # type: ignore[arg-type]
        return [(idle._wake_read, select.EPOLLIN)]

    with monkeypatch.context() as patched:
        patched.setattr(idle, "_epoll", SimpleNamespace(poll=poll))
        assert WAIT_FOR_END(idle) is found
    idle.abandon(held)
