"""mmap: what is refused before the server is asked, and the three messages, whatever fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.kernel.char.cuse import CuseChannel
from recuse.kernel.char.devices import DeviceTable
from recuse.kernel.char.mmap import MmapCall
from recuse.wire.cuse import (
    RECUSE_MAPPING,
    RECUSE_MMAP,
    RECUSE_MMAP_COMMIT,
    RECUSE_MMAP_DONT_COPY,
    RECUSE_MUNMAP,
    cuse_init_in,
    recuse_mmap_out,
)
from recuse.wire.declare import Buffer
from recuse.wire.descriptor import BytesWithDescriptor, OwnedDescriptor
from recuse.wire.fuse import FUSE_OPEN, FUSE_READ, FUSE_READ_LOCKOWNER, FUSE_RELEASE
from tests.unit.kernel.support import (
    BIG,
    OWNER,
    Message,
    Opened,
    Outcome,
    answer_init,
    init_reply,
    reply_bytes,
    start,
)

ADDRESS = 0x7F00_0000_0000
RW, SHARED, PRIVATE = 3, 1, 2


class Copy:
    """Takes up to ``room`` bytes."""

    def __init__(self, offset: int, room: int) -> None:
        self.memory = OwnedDescriptor(os.open("/dev/null", os.O_RDWR))
        self.offset = offset
        self.room = room
        self.data = b""

    def append(self, data: Buffer) -> None:
        if len(self.data) + len(data) > self.room:
            raise OSError(errno.ENOMEM, "no more")
        self.data += bytes(data)


class Mapper:
    """Maps nothing, or fails; says what it was asked."""

    def __init__(self, error: Exception | None = None, room: int = 1 << 20) -> None:
        self.error = error
        self.room = room
        self.copies: list[Copy] = []
        self.mapped: list[tuple[MmapCall, int]] = []
        self.kept: list[OwnedDescriptor] = []
        self.undone = 0

    def map(self, memory: OwnedDescriptor, call: MmapCall, flags: int) -> int:
        os.fstat(memory.fileno())
        if self.error is not None:
            raise self.error
        self.mapped.append((call, flags))
        self.kept.append(memory)
        return ADDRESS

    def unmap(self) -> None:
        self.undone += 1

    def copy(self, offset: int) -> Copy:
        self.copies.append(Copy(offset, self.room))
        return self.copies[-1]


class Mappable(Opened):
    """A file whose server answers MMAP with memory."""

    def __init__(self, *, area: int = 5, descriptor: bool = True, **options: object) -> None:
        self.area = area
        self.content: Callable[[int, int], bytes | int] = lambda size, offset: b""
        self.descriptor = descriptor
        self.refuse_mmap = self.refuse_commit = 0
        super().__init__(self._serve, **{"mapping": True} | options)  # type: ignore[arg-type]

    def _serve(self, message: Message) -> bytes | int | None:
        if message.opcode == RECUSE_MMAP_COMMIT:
            return -self.refuse_commit if self.refuse_commit else b""
        if message.opcode == FUSE_READ:
            return self.content(message.body.size, message.body.offset)
        if message.opcode != RECUSE_MMAP:
            return b""
        if self.refuse_mmap:
            return -self.refuse_mmap
        answer = recuse_mmap_out(area=self.area, flags=RECUSE_MMAP_DONT_COPY).pack()
        answer = reply_bytes(message.unique, answer)
        if self.descriptor:
            memory = OwnedDescriptor(os.open("/dev/null", os.O_RDWR))
            answer = BytesWithDescriptor(answer, memory)
        self.connection.write(answer)
        return None

    def mmap(
        self,
        mapper: Mapper | None = None,
        *,
        address: int = 0,
        length: int = 8192,
        protection: int = RW,
        flags: int = SHARED,
        offset: int = 0,
    ) -> Outcome:
        call = MmapCall(address, length, protection, flags, offset)
        return start(self.connection, self.file.mmap(self.caller, mapper or Mapper(), call))

    @property
    def opcodes(self) -> list[int]:
        return [message.opcode for message in self.server.messages]


def test_three_messages_of_one_mapping() -> None:
    file = Mappable()
    mapper = Mapper()
    mapping = file.mmap(mapper, address=0x1000, length=5000, offset=4096).result
    mmap, commit = file.asked
    assert (mmap.opcode, commit.opcode) == (RECUSE_MMAP, RECUSE_MMAP_COMMIT)
    ask = mmap.body
    assert (ask.fh, ask.addr, ask.len, ask.prot) == (7, 0x1000, 8192, RW)
    assert (ask.flags, ask.offset) == (SHARED, 4096)
    assert (mmap.header.pid, mmap.header.uid, mmap.header.gid) == (11, 22, 33)
    told = commit.body
    assert (told.fh, told.mmap_unique, told.addr, told.len) == (7, mmap.unique, ADDRESS, 8192)
    assert (told.prot, told.flags, told.area, told.offset) == (RW, SHARED, 5, 4096)
    assert mapper.mapped == [(MmapCall(0x1000, 5000, RW, SHARED, 4096), RECUSE_MMAP_DONT_COPY)]
    start(file.connection, file.file.munmap(mapping))
    end = file.asked[2].body
    assert file.asked[2].opcode == RECUSE_MUNMAP
    assert (end.fh, end.mmap_unique, end.addr, end.len, end.area) == (
        7, mmap.unique, ADDRESS, 8192, 5,
    )  # fmt: skip
    assert not mapper.undone


def test_the_file_is_released_after_its_last_mapping() -> None:
    file = Mappable()
    first, second = file.mmap().result, file.mmap().result
    start(file.connection, file.file.release())
    assert FUSE_RELEASE not in file.opcodes
    start(file.connection, file.file.munmap(second))
    assert FUSE_RELEASE not in file.opcodes
    start(file.connection, file.file.munmap(first))
    assert file.opcodes[-2:] == [RECUSE_MUNMAP, FUSE_RELEASE]


def test_what_the_server_refuses_is_not_mapped() -> None:
    file = Mappable()
    mapper = Mapper()
    file.refuse_mmap = errno.EBUSY
    assert file.mmap(mapper).errno == errno.EBUSY
    file.refuse_mmap = errno.ENOSYS
    assert file.mmap(mapper).errno == errno.ENODEV
    assert file.mmap(mapper, flags=PRIVATE).errno == errno.ENODEV
    assert file.opcodes == [FUSE_OPEN, *[RECUSE_MMAP] * 3]
    file.refuse_mmap = 0
    file.refuse_commit = errno.ENOSYS
    assert file.mmap(mapper).errno == errno.ENOSYS
    assert mapper.undone == 1
    assert RECUSE_MUNMAP not in file.opcodes


@pytest.mark.parametrize("options", [{"descriptor": False}, {"area": 0}, {"area": -1}])
def test_an_answer_without_memory_is_refused(options: dict[str, Any]) -> None:
    file = Mappable(**options)
    assert file.mmap().errno == errno.EINVAL
    assert file.asked[1].body.area == -errno.EINVAL


@pytest.mark.parametrize(
    ("error", "number"), [(BlockingIOError, errno.EAGAIN), (KeyError, errno.EIO)]
)
def test_commit_tells_why_the_mapping_failed(
    error: type[Exception], number: int, caplog: pytest.LogCaptureFixture
) -> None:
    file = Mappable()
    assert file.mmap(Mapper(error(errno.EAGAIN, "no"))).errno == number
    assert (file.asked[1].body.area, file.asked[1].body.addr) == (-number, 0)
    assert bool(caplog.records) == (error is KeyError)
    caplog.clear()  # a traceback keeps all that it passed


@pytest.mark.parametrize(
    ("access", "options", "number"),
    [
        (os.O_RDWR, {"length": 0}, errno.EINVAL),
        (os.O_RDWR, {"offset": 100}, errno.EINVAL),
        (os.O_RDWR, {"length": 1 << 60}, errno.ENOMEM),
        (os.O_RDWR, {"offset": (1 << 63) - 4096}, errno.EOVERFLOW),
        (os.O_RDWR, {"flags": 0}, errno.EINVAL),
        (os.O_RDWR, {"flags": 4}, errno.EINVAL),
        (os.O_RDWR, {"flags": SHARED | 0x10, "address": 1}, errno.EINVAL),
        (os.O_RDWR, {"flags": SHARED | 0x100}, errno.EINVAL),
        (os.O_RDWR, {"flags": SHARED | 0x40000}, errno.EINVAL),
        (os.O_RDWR, {"flags": 3 | 0x80000}, errno.EOPNOTSUPP),
        (os.O_RDWR, {"protection": 4}, errno.EPERM),
        (os.O_RDONLY, {}, errno.EACCES),
        (os.O_WRONLY, {"protection": 2}, errno.EACCES),
        (os.O_WRONLY, {"protection": 0, "flags": PRIVATE}, errno.EACCES),
        (os.O_ACCMODE, {"protection": 0, "flags": PRIVATE}, errno.EACCES),
    ],
)
def test_refused_without_asking(access: int, options: dict[str, Any], number: int) -> None:
    file = Mappable(flags=access)
    assert file.mmap(**options).errno == number
    assert not file.asked


def test_writing_to_a_private_mapping_needs_no_writable_file() -> None:
    assert Mappable(flags=os.O_RDONLY).mmap(flags=PRIVATE).result
    assert Mappable(flags=os.O_RDONLY).mmap(protection=1).result
    assert Mappable().mmap(flags=3 | 0x8000).result  # MAP_SHARED_VALIDATE | MAP_POPULATE


def test_a_server_that_has_not_taken_the_flag_is_not_asked() -> None:
    file = Mappable(mapping=False)
    assert file.mmap().errno == errno.ENODEV
    assert file.mmap(protection=4).errno == errno.ENODEV
    assert not file.asked


@pytest.mark.parametrize("descriptors", [False, True])
def test_the_flag_is_offered_where_descriptors_travel(descriptors: bool) -> None:
    channel = CuseChannel(DeviceTable(), descriptors=descriptors)
    offered = cuse_init_in.unpack(channel.connection.read(BIG), 40).flags
    assert bool(offered & RECUSE_MAPPING) is descriptors
    channel = CuseChannel(DeviceTable(), descriptors=descriptors)
    answer_init(channel, init_reply(flags=RECUSE_MAPPING))
    assert channel.device is not None
    assert channel.device.mapping is descriptors


def test_a_descriptor_that_nobody_takes_is_closed() -> None:
    file = Mappable()
    with pytest.raises(FileNotFoundError):
        file.connection.write(
            BytesWithDescriptor(reply_bytes(800), OwnedDescriptor(os.open("/", os.O_RDONLY)))
        )


def test_the_connection_ends_while_the_server_is_asked() -> None:
    file = Mappable()
    file._serve = lambda message: None  # type: ignore[method-assign]
    file.handler = file._serve
    outcome = file.mmap()
    assert outcome.pending
    file.connection.abort()
    assert outcome.errno == errno.ECONNABORTED


MAPS = st.fixed_dictionaries(
    {
        "refuse_mmap": st.sampled_from([0, 0, 0, errno.EBUSY, errno.ENOSYS]),
        "refuse_commit": st.sampled_from([0, 0, 0, errno.ENOMEM]),
        "descriptor": st.sampled_from([True, True, False]),
        "fails": st.sampled_from([0, 0, 0, errno.ENOMEM]),
    }
)


@given(st.data(), st.lists(MAPS, max_size=8))
def test_each_message_comes_exactly_once(data: st.DataObject, maps: list[dict[str, int]]) -> None:
    """Whatever fails, in whatever order mappings and the file end, also without a connection."""
    file = Mappable()
    mappings = []
    for each in maps:
        file.refuse_mmap, file.refuse_commit = each["refuse_mmap"], each["refuse_commit"]
        file.descriptor = bool(each["descriptor"])
        mapper = Mapper(OSError(each["fails"], "fails") if each["fails"] else None)
        outcome = file.mmap(mapper)
        good = not (each["refuse_mmap"] or each["refuse_commit"] or each["fails"])
        assert (outcome.calls[0][1] is None) == (good and file.descriptor)
        if outcome.calls[0][1] is None:
            mappings.append(outcome.result)
    accepted = [m.unique for m in file.asked if m.opcode == RECUSE_MMAP]
    accepted = [u for u, each in zip(accepted, maps, strict=True) if not each["refuse_mmap"]]
    commits = [m.body.mmap_unique for m in file.asked if m.opcode == RECUSE_MMAP_COMMIT]
    assert commits == accepted
    ends = data.draw(st.permutations([*mappings, None]))
    aborted = data.draw(st.integers(0, len(ends) * 3))
    for index, end in enumerate(ends):
        if index == aborted:
            file.connection.abort()
        operation = file.file.release() if end is None else file.file.munmap(end)
        assert not start(file.connection, operation).pending
        told = [m.body.mmap_unique for m in file.asked if m.opcode == RECUSE_MUNMAP]
        done = [m.unique for m in ends[: min(index + 1, aborted)] if m is not None]
        assert told == done
        released = index == len(ends) - 1 and aborted >= len(ends)
        assert file.opcodes.count(FUSE_RELEASE) == released
    assert all(first < second for first, second in pairwise(sorted(set(commits))))


# Without memory of its own: MAP_PRIVATE gets what is read.

CONTENT = bytes(range(256)) * 100


def content(size: int, offset: int) -> bytes:
    return CONTENT[offset : offset + size]


@pytest.mark.parametrize("taken", [False, True])
def test_a_private_copy_of_what_is_read(taken: bool) -> None:
    """Of a server that has not taken the flag, and of one that does not know MMAP for this file."""
    file = Mappable(mapping=taken, seekable=True, max_read=4096)
    file.refuse_mmap = errno.ENOSYS
    file.content = content
    file.file.position = 77
    mapper = Mapper()
    mapping = file.mmap(mapper, length=9000, flags=PRIVATE, offset=8192).result
    reads = file.asked[taken:]
    assert [message.opcode for message in reads] == [FUSE_READ] * 3
    assert [(read.body.offset, read.body.size) for read in reads] == [
        (8192, 4096), (12288, 4096), (16384, 4096),
    ]  # fmt: skip
    read = reads[0]
    assert (read.body.fh, read.body.read_flags, read.body.lock_owner, read.body.flags) == (
        7, FUSE_READ_LOCKOWNER, OWNER, os.O_RDWR,
    )  # fmt: skip
    assert (read.header.pid, read.header.uid, read.header.gid) == (11, 22, 33)
    (copy,) = mapper.copies
    assert (copy.offset, copy.data) == (8192, CONTENT[8192 : 8192 + 12288])
    assert mapper.mapped == [(MmapCall(0, 9000, RW, PRIVATE, 8192), 0)]
    assert (mapper.kept, file.file.position) == ([copy.memory], 77)
    # The file is kept by its mapping, of which the server hears nothing.
    start(file.connection, file.file.release())
    assert FUSE_RELEASE not in file.opcodes
    start(file.connection, file.file.munmap(mapping))
    assert file.opcodes[-2:] == [FUSE_READ, FUSE_RELEASE]


def test_a_copy_ends_where_the_file_ends() -> None:
    file = Mappable(mapping=False, seekable=True, max_read=4096)
    file.content = lambda size, offset: CONTENT[offset : min(offset + size, 5000)]
    mapper = Mapper()
    file.mmap(mapper, length=1 << 40, flags=PRIVATE)
    assert mapper.copies[0].data == CONTENT[:5000]
    assert len(file.asked) == 2
    file.mmap(mapper, flags=PRIVATE, offset=8192)
    assert mapper.copies[1].data == b""
    assert len(mapper.mapped) == 2


def test_what_is_read_is_one_readable_piece_in_size() -> None:
    file = Mappable(mapping=False, seekable=True, max_read=100000)
    file.content = lambda size, offset: bytes(size)
    mapper = Mapper()
    file.mmap(mapper, length=1 << 17, flags=PRIVATE)
    assert [message.body.size for message in file.asked] == [100000, (1 << 17) - 100000]


def test_what_is_read_at_once_is_bounded_whatever_the_server_says() -> None:
    file = Mappable(mapping=False, seekable=True, max_read=0xFFFFFFFF)
    file.content = lambda size, offset: bytes(size)
    file.mmap(Mapper(), length=3 << 19, flags=PRIVATE)
    assert [message.body.size for message in file.asked] == [1 << 20, 1 << 19]


def test_no_copy_of_a_stream_and_none_that_is_shared() -> None:
    for taken in (False, True):
        file = Mappable(mapping=taken)
        file.refuse_mmap = errno.ENOSYS
        assert file.mmap(flags=PRIVATE).errno == errno.ENODEV
        file = Mappable(mapping=taken, seekable=True)
        file.refuse_mmap = errno.ENOSYS
        assert file.mmap(flags=SHARED).errno == errno.ENODEV
        assert file.mmap(flags=3).errno == errno.ENODEV
        assert FUSE_READ not in file.opcodes


def test_no_copy_where_the_server_refuses_on_purpose() -> None:
    file = Mappable(seekable=True)
    file.refuse_mmap = errno.ENODEV
    assert file.mmap(flags=PRIVATE).errno == errno.ENODEV
    assert FUSE_READ not in file.opcodes


def test_no_copy_that_the_file_does_not_allow() -> None:
    file = Mappable(mapping=False, seekable=True, flags=os.O_WRONLY)
    assert file.mmap(flags=PRIVATE).errno == errno.EACCES
    file = Mappable(mapping=False, seekable=True, flags=os.O_RDONLY)
    assert file.mmap(flags=PRIVATE, protection=4).errno == errno.EPERM
    assert not file.asked
    assert file.mmap(flags=PRIVATE).result


@pytest.mark.parametrize("first", [0, 4096])
def test_what_cannot_be_read_is_not_mapped(first: int) -> None:
    """Also if some of it was read: a part would be a file that ends there."""
    file = Mappable(mapping=False, seekable=True, max_read=4096)
    file.content = lambda size, offset: bytes(size) if offset < first else -errno.EINTR
    mapper = Mapper()
    assert file.mmap(mapper, flags=PRIVATE).errno == errno.EINTR
    assert not mapper.mapped
    assert mapper.copies[0].memory.fileno() == -1
    start(file.connection, file.file.release())
    assert file.opcodes[-1] == FUSE_RELEASE


def test_no_more_is_read_than_there_is_room_for() -> None:
    file = Mappable(mapping=False, seekable=True, max_read=4096)
    file.content = lambda size, offset: bytes(size)
    mapper = Mapper(room=20000)
    assert file.mmap(mapper, length=1 << 40, flags=PRIVATE).errno == errno.ENOMEM
    assert len(file.asked) == 5
    assert mapper.copies[0].memory.fileno() == -1


def test_a_copy_that_cannot_be_mapped() -> None:
    file = Mappable(mapping=False, seekable=True)
    mapper = Mapper(OSError(errno.EPERM, "no"))
    assert file.mmap(mapper, flags=PRIVATE).errno == errno.EPERM
    assert [message.opcode for message in file.asked] == [FUSE_READ]
    start(file.connection, file.file.release())
    assert file.opcodes[-1] == FUSE_RELEASE
