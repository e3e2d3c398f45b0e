"""A process's memory: this one's own, with holes and protections made for it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse.sandbox.arch import arch
from recuse.sandbox.tasks.memory import (
    UnreadableError,
    WritableMap,
    read_memory,
    write_memory,
)
from recuse.sandbox.tasks.strings import StringReader
from recuse.wire.ids import Tid

PAGE = mmap.PAGESIZE
PROT_NONE, PROT_READ = 0, 1

libc = ctypes.CDLL(None, use_errno=True)
PID = Tid(os.getpid())


@pytest.fixture
def area() -> Iterator[tuple[int, Callable[[int, int], None]]]:
    """Four pages: their address, and what changes the protection of one of them."""
    memory = mmap.mmap(-1, 4 * PAGE)
    view = ctypes.c_char.from_buffer(memory)
    address = ctypes.addressof(view)

    def protect(page: int, protection: int) -> None:
        assert libc.mprotect(ctypes.c_void_p(address + page * PAGE), PAGE, protection) == 0

    memory[:] = bytes(range(256)) * (4 * PAGE // 256)
    yield address, protect
    for page in range(4):
        protect(page, mmap.PROT_READ | mmap.PROT_WRITE)
    del view
    memory.close()


def fails(code: int, function: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared
        function(*arguments)
    assert caught.value.errno == code


@pytest.mark.parametrize("size", [0, 1, 16, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_what_is_read_is_there(area: tuple[int, Callable[[int, int], None]], size: int) -> None:
    expected = (bytes(range(256)) * (4 * PAGE // 256))[7 : 7 + size]
    assert read_memory(PID, area[0] + 7, size) == expected


def test_what_is_written_is_there(area: tuple[int, Callable[[int, int], None]]) -> None:
    data = b"\0with zeros\0" * 500
    assert write_memory(PID, area[0] + 5, data) == len(data)
    assert read_memory(PID, area[0] + 5, len(data)) == data
    assert write_memory(PID, area[0], b"") == 0


def test_any_part_of_any_buffer_is_written(area: tuple[int, Callable[[int, int], None]]) -> None:
    data = os.urandom(4 * PAGE)
    for buffer in (data, bytearray(data), memoryview(data), memoryview(bytearray(data))):
        for part in (slice(0, 10), slice(3, 3 + PAGE), slice(16, 4 * PAGE)):
            written = buffer[part]
            assert write_memory(PID, area[0], written) == len(written)
            assert read_memory(PID, area[0], len(written)) == data[part]
    _, protect = area
    protect(2, PROT_NONE)
    assert write_memory(PID, area[0], memoryview(data)) == 2 * PAGE
    fails(errno.EFAULT, write_memory, PID, area[0] + 2 * PAGE, memoryview(data)[PAGE:])


def test_copies_stop_where_memory_does(area: tuple[int, Callable[[int, int], None]]) -> None:
    address, protect = area
    protect(2, PROT_NONE)
    assert len(read_memory(PID, address + PAGE, 2 * PAGE)) == PAGE
    assert write_memory(PID, address + PAGE, bytes(2 * PAGE)) == PAGE
    fails(errno.EFAULT, read_memory, PID, address + 2 * PAGE, 1)
    fails(errno.EFAULT, write_memory, PID, address + 2 * PAGE, b"x")


def test_read_only_pages_are_not_written(area: tuple[int, Callable[[int, int], None]]) -> None:
    address, protect = area
    protect(1, PROT_READ)
    before = read_memory(PID, address + PAGE, 8)
    fails(errno.EFAULT, write_memory, PID, address + PAGE, b"x" * 8)
    assert read_memory(PID, address + PAGE, 8) == before


@pytest.mark.parametrize("address", [0, 1, arch.ADDRESS_LIMIT, 2**63, 2**64 - 1])
def test_addresses_that_no_program_has(address: int) -> None:
    fails(errno.EFAULT, read_memory, PID, address, 16)
    fails(errno.EFAULT, write_memory, PID, address, bytes(16))


def test_a_process_that_is_gone() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    fails(errno.ESRCH, read_memory, pid, 4096, 1)
    reader = StringReader()
    fails(errno.ESRCH, reader.read, pid, 4096)
    reader.close()


def test_the_map_knows_what_can_be_written(area: tuple[int, Callable[[int, int], None]]) -> None:
    address, protect = area
    protect(1, PROT_READ)
    protect(3, PROT_NONE)
    extents = WritableMap(PID)
    assert extents.extent(address, PAGE) == PAGE
    assert extents.extent(address + 10, 2 * PAGE) == PAGE - 10
    assert extents.extent(address + PAGE, 1) == 0
    assert extents.extent(address + 2 * PAGE, 2 * PAGE) == PAGE
    assert extents.extent(0, 1) == 0


def test_the_map_is_read_again_for_new_memory() -> None:
    extents = WritableMap(PID)
    extents.extent(0, 1)
    with mmap.mmap(-1, PAGE) as memory:
        view = ctypes.c_char.from_buffer(memory)
        assert extents.extent(ctypes.addressof(view), PAGE) == PAGE
        del view


@given(st.binary(max_size=5000).map(lambda raw: raw.replace(b"\0", b"/")), st.integers(0, PAGE))
def test_strings_are_read_across_pages(text: bytes, offset: int) -> None:
    buffer = ctypes.create_string_buffer(b"x" * offset + text + b"\0" + b"beyond")
    address = ctypes.addressof(buffer) + offset
    reader = StringReader()
    try:
        if len(text) < 4096:
            assert reader.read(PID, address) == text
        else:
            fails(errno.ENAMETOOLONG, reader.read, PID, address)
    finally:
        reader.close()


def test_a_string_that_runs_into_nothing() -> None:
    # A mapping of its own with nothing behind it, made by unmapping the second of two pages.
    libc.mmap.restype = ctypes.c_size_t
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    address = libc.mmap(None, ctypes.c_size_t(2 * PAGE), protection, flags, -1, 0)
    assert libc.munmap(ctypes.c_size_t(address + PAGE), PAGE) == 0
    ctypes.memset(address, ord("x"), PAGE)
    reader = StringReader()
    try:
        for bad in address + PAGE - 100, 0, arch.ADDRESS_LIMIT, 2**64 - 1:
            # The kernel, which may see more, is to say that it is EFAULT.
            with pytest.raises(UnreadableError):
                reader.read(PID, bad)
    finally:
        reader.close()
        libc.munmap(ctypes.c_size_t(address), PAGE)


def test_a_reader_keeps_few_descriptors_and_closes_them() -> None:
    before = len(os.listdir("/proc/self/fd"))
    text = ctypes.create_string_buffer(b"/a/path")
    reader = StringReader()
    children = []
    for _ in range(StringReader._MOST + 5):
        pid = Tid(os.fork())
        if pid == 0:
            signal.pause()
        children.append(pid)
        assert reader.read(pid, ctypes.addressof(text)) == b"/a/path"
    assert len(os.listdir("/proc/self/fd")) - before == 2 * StringReader._MOST + 1
    reader.forget_others(children[-1])
    assert len(os.listdir("/proc/self/fd")) - before == 3
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
