"""Memory areas, and the methods by which an author shares them with programs."""

import asyncio
import errno
import gc
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from recuse import Area, Device, File, Mapping, MmapRequest
from recuse.wire.cuse import (
    RECUSE_MAPPING,
    RECUSE_MMAP,
    RECUSE_MMAP_COMMIT,
    RECUSE_MMAP_DONT_COPY,
    RECUSE_MMAP_DONT_EXPAND,
    RECUSE_MUNMAP,
    cuse_init_out,
    recuse_mmap_commit_in,
    recuse_mmap_in,
    recuse_mmap_out,
    recuse_munmap_in,
)
from recuse.wire.descriptor import BytesWithDescriptor
from tests.unit.server.conftest import WAIT_S, Peer, Told

Serve = Callable[[type[File] | Device], Peer]

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


class Mapped(File):
    """Notes what becomes of its mappings."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.refuse = 0
        self.ended = threading.Event()
        files.append(self)

    def mmap(self, request: MmapRequest) -> Area:
        self.log.append(
            (request.operation, request.length, request.offset, request.size, request.protection,
             request.flags, request.private, request.address, request.at_open)
        )  # fmt: skip
        return Area(request.size, dont_expand=True)

    def mapped(self, mapping: Mapping) -> None:
        self.log.append(mapping)
        mapping.area[:3] = b"abc"
        if self.refuse:
            raise OSError(self.refuse, "no")

    def unmapped(self, mapping: Mapping) -> None:
        self.log.append(("unmapped", mapping.unique))
        self.ended.set()

    def release(self) -> None:
        self.log.append("release")


class MappedLater(Mapped):
    """The same with coroutines."""

    async def mmap(self, request: MmapRequest) -> Area:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().mmap(request)

    async def mapped(self, mapping: Mapping) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().mapped(mapping)

    async def unmapped(self, mapping: Mapping) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().unmapped(mapping)


files: list[Mapped] = []


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Files, mappings and so areas are let go after each test."""
    yield
    files.clear()


@pytest.fixture(params=[Mapped, MappedLater])
def peer(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Peer]:
    peer = serve(request.param)
    yield peer
    peer.answers.clear()  # and the descriptors that came with them


def ask(peer: Peer, fh: int, length: int = 8192, offset: int = 4096) -> tuple[int, bytes]:
    body = recuse_mmap_in(fh, 0x1000, length, READ_WRITE, mmap.MAP_SHARED, offset)
    unique = peer.post(RECUSE_MMAP, body)
    return unique, peer.answer(unique)


def commit(fh: int, unique: int, area: int) -> recuse_mmap_commit_in:
    return recuse_mmap_commit_in(
        fh, unique, 0x7000, 8192, READ_WRITE, mmap.MAP_SHARED, area, 0, 4096
    )


def test_a_mapping_from_its_beginning_to_its_end(peer: Peer) -> None:
    fh = peer.open()
    unique, payload = ask(peer, fh)
    assert isinstance(payload, BytesWithDescriptor)
    out = recuse_mmap_out.unpack(payload)
    assert out.area > 0
    assert out.flags == RECUSE_MMAP_DONT_EXPAND
    assert peer.call(RECUSE_MMAP_COMMIT, commit(fh, unique, out.area)) == b""
    log = files[0].log
    asked = ("mmap", 8192, 4096, 12288, READ_WRITE, mmap.MAP_SHARED, False, 0x1000, False)
    assert log[0] == asked
    mapping = log[1]
    assert (mapping.address, mapping.length, mapping.offset) == (0x7000, 8192, 4096)
    assert (mapping.protection, mapping.flags, mapping.unique) == (
        READ_WRITE, mmap.MAP_SHARED, unique,
    )  # fmt: skip
    # What came with the answer is the area's memory, and its own descriptor.
    with mmap.mmap(payload.descriptor.fileno(), 12288) as view:
        assert view[:4] == b"abc\0"
    assert payload.descriptor.fileno() != mapping.area.fileno()
    assert peer.call(RECUSE_MUNMAP, recuse_munmap_in(fh, unique, 0x7000, 8192, out.area)) == b""
    peer.release(fh)
    assert log[2:] == [("unmapped", unique), "release"]
    assert peer.fails(RECUSE_MUNMAP, recuse_munmap_in(fh, unique)) == errno.EINVAL


def test_a_mapping_that_failed_is_unmapped(peer: Peer) -> None:
    fh = peer.open()
    unique, _ = ask(peer, fh)
    assert peer.call(RECUSE_MMAP_COMMIT, commit(fh, unique, -errno.ENOMEM)) == b""
    assert files[0].log[1:] == [("unmapped", unique)]
    assert peer.fails(RECUSE_MMAP_COMMIT, commit(fh, unique, 1)) == errno.EINVAL


def test_a_mapping_that_the_author_refuses_is_unmapped(peer: Peer) -> None:
    fh = peer.open()
    unique, _ = ask(peer, fh)
    files[0].refuse = errno.EDQUOT
    assert peer.fails(RECUSE_MMAP_COMMIT, commit(fh, unique, 1)) == errno.EDQUOT
    assert files[0].ended.wait(WAIT_S)
    assert files[0].log[2:] == [("unmapped", unique)]


def test_no_descriptor_left_for_the_memory(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE would say that the program's own table is full."""

    def fail(number: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    fh = peer.open()
    monkeypatch.setattr(os, "dup", fail)
    body = recuse_mmap_in(fh, 0, 4096, READ_WRITE, mmap.MAP_SHARED)
    assert peer.fails(RECUSE_MMAP, body) == errno.ENFILE


def test_an_answer_that_does_not_arrive_is_unmapped(peer: Peer) -> None:
    fh = peer.open()
    peer.refuse = FileNotFoundError(errno.ENOENT, "gone")
    unique = peer.post(RECUSE_MMAP, recuse_mmap_in(fh, 0, 4096, READ_WRITE, mmap.MAP_SHARED))
    assert files[0].ended.wait(WAIT_S)
    assert files[0].log[1:] == [("unmapped", unique)]
    peer.refuse = None


def test_the_end_of_the_session_ends_mappings(peer: Peer) -> None:
    fh = peer.open()
    unique, _ = ask(peer, fh)
    peer.session.close()
    assert files[0].log[1:] == [("unmapped", unique), "release"]


def test_the_flag_is_taken_where_it_is_offered(serve: Serve) -> None:
    peer = serve(Mapped)
    assert not cuse_init_out.unpack(peer.init()).flags & RECUSE_MAPPING
    assert cuse_init_out.unpack(peer.init(flags=RECUSE_MAPPING)).flags == RECUSE_MAPPING


def test_a_file_without_mmap(serve: Serve) -> None:
    peer = serve(File)
    fh = peer.open()
    body = recuse_mmap_in(fh, 0, 4096, READ_WRITE, mmap.MAP_SHARED)
    assert peer.fails(RECUSE_MMAP, body) == errno.ENOSYS
    assert peer.fails(RECUSE_MMAP, recuse_mmap_in(fh + 1, 0, 4096)) == errno.EBADF


def test_what_is_no_area(serve: Serve, told: Told) -> None:
    class Wrong(File):
        answer: Any = None

        def mmap(self, request: MmapRequest) -> Any:
            return Wrong.answer

    peer = serve(Wrong)
    body = recuse_mmap_in(peer.open(), 0, 4096, READ_WRITE, mmap.MAP_SHARED)
    assert peer.fails(RECUSE_MMAP, body) == errno.EIO
    assert told.line() == "Wrong.mmap returned None, not an Area: EIO for the program"
    Wrong.answer = Area(4096)
    Wrong.answer.close()
    assert peer.fails(RECUSE_MMAP, body) == errno.EIO
    assert "closed>: EIO" in told.line()


def test_unmapped_may_fail(serve: Serve, told: Told) -> None:
    class Clumsy(Mapped):
        def unmapped(self, mapping: Mapping) -> None:
            raise OSError(errno.EBUSY, "no")

    peer = serve(Clumsy)
    fh = peer.open()
    unique, _ = ask(peer, fh)
    peer.call(RECUSE_MMAP_COMMIT, commit(fh, unique, 1))
    assert peer.fails(RECUSE_MUNMAP, recuse_munmap_in(fh, unique)) == errno.EBUSY
    line, _ = told.traceback()
    assert line == "Clumsy.unmapped raised OSError"
    # Else what is logged keeps it.
    files[0].log[1].area.close()
    peer.answers.clear()


# Areas


def test_an_area_is_like_a_memoryview() -> None:
    with Area(10) as area:
        assert (area.size, len(area), bytes(area.buffer)) == (10, 10, bytes(10))
        area[2] = 7
        area[4:6] = b"xy"
        assert area[2] == 7
        assert bytes(area[2:7]) == b"\x07\0xy\0"
        area.buffer[:2] = b"ab"
        assert os.pread(area.fileno(), 10, 0) == b"ab\x07\0xy\0\0\0\0"
        os.pwrite(area.fileno(), b"Z", 9)
        assert area[-1] == ord("Z")
        with pytest.raises(IndexError):
            area[10]


def test_a_resized_area_keeps_what_it_has() -> None:
    with Area(4096) as area:
        area[:3] = b"abc"
        view = area.buffer[1:3]
        area.resize(8192)
        assert (area.size, bytes(area[:4])) == (8192, b"abc\0")
        view[0] = ord("B")
        assert bytes(area[:3]) == b"aBc"
        area.resize(8192)
        with pytest.raises(ValueError, match="0 bytes"):
            area.resize(0)
        with pytest.raises(OSError, match=r"File too large|Invalid|No space|allocate"):
            area.resize(1 << 62)
        assert area.size in (8192, os.fstat(area.fileno()).st_size)


def test_an_area_with_views_does_not_shrink() -> None:
    with Area(8192) as area:
        view = area.buffer[4096:]
        with pytest.raises(BufferError):
            area.resize(4096)
        assert area.size == os.fstat(area.fileno()).st_size == 8192
        area[0] = 1
        view.release()
        area.resize(4096)
        assert area.size == os.fstat(area.fileno()).st_size == 4096


def test_a_closed_area_is_closed() -> None:
    area = Area(4096)
    view = area.buffer[:4]
    area.close()
    area.close()
    view[:2] = b"ok"  # memory that somebody sees stays
    assert repr(area).endswith("closed>")
    with pytest.raises(ValueError, match="closed"):
        area.fileno()
    with pytest.raises(ValueError, match="closed"):
        area.resize(8192)
    with pytest.raises(ValueError, match="0 bytes"):
        Area(0)


def test_forgotten_areas_leave_nothing() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        Area(4096)[0] = 1
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_numbers_and_flags() -> None:
    with Area(1, dont_copy=True) as first, Area(1) as second:
        assert first.number != second.number
        assert first.dont_copy
        assert not first.dont_expand
    assert RECUSE_MMAP_DONT_COPY == 1
