"""The program's memory as a handler sees it, without a session."""

import ctypes
import errno
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recuse import Memory
from recuse.server.errors import Misuse
from recuse.server.memory import MoreMemory, Spans

areas = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=12)


def addresses(spans: Iterable[tuple[int, int]]) -> list[int]:
    return [a for address, size in spans for a in range(address, address + size)]


@given(areas, st.tuples(st.integers(0, 70), st.integers(0, 30)))
def test_spans_are_sets_of_addresses(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    spans = Spans(added)
    expected = set(addresses(added))
    assert addresses(spans) == sorted(expected)
    assert bool(spans) == bool(expected)
    # Adjoining ones are joined.
    starts = [address for address, _ in spans]
    ends = {address + size for address, size in spans}
    assert not ends & set(starts)
    assert all(size for _, size in spans)
    assert addresses(spans.gaps(*asked)) == sorted(set(addresses([asked])) - expected)


writes = st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=12)), max_size=8)


@given(areas, st.binary(min_size=80, max_size=80), writes, areas)
def test_memory_is_what_came_and_then_what_was_written(
    came: list[tuple[int, int]],
    origin: bytes,
    written: list[tuple[int, bytes]],
    read: list[tuple[int, int]],
) -> None:
    inputs = list(Spans(came))
    real = {a: origin[a] for a in addresses(inputs)}
    memory = Memory(inputs, bytes(real.values()))
    theirs = set(real)
    changed = set()
    for address, content in written:
        memory.write(address, content)
        real.update(enumerate(content, address))
        changed |= set(range(address, address + len(content)))
    assert addresses(memory.written) == sorted(changed)
    wanted = set()
    for address, size in read:
        area = range(address, address + size)
        wanted |= set(area) - changed
        if set(area) <= real.keys() and wanted <= theirs:
            assert memory.read(address, size) == bytes(real[a] for a in area)
        else:
            with pytest.raises(MoreMemory):
                memory.read(address, size)
    assert addresses(memory.wanted) == ([] if wanted <= theirs else sorted(wanted))
    result = memory.content(memory.written)
    assert result == bytes(real[a] for a in sorted(changed))


def test_reading_what_was_written_needs_nothing() -> None:
    memory = Memory([], b"")
    memory.write(10, b"0123456789")
    assert memory.read(12, 4) == b"2345"
    with pytest.raises(MoreMemory):
        memory.read(8, 4)
    assert memory.wanted == [(8, 2)]


def test_read_many_wants_all_at_once() -> None:
    memory = Memory([(100, 4)], b"abcd")
    with pytest.raises(MoreMemory):
        memory.read_many([(100, 4), (200, 8), (300, 16)])
    assert memory.wanted == [(100, 4), (200, 8), (300, 16)]
    memory = Memory([(100, 4), (200, 2)], b"abcdef")
    assert memory.read_many([(200, 2), (100, 1), (101, 0)]) == [b"ef", b"a", b""]
    assert memory.read_many([]) == []


def test_once_something_is_missing_nothing_is_read() -> None:
    # Or a handler that catches everything would go on with half of the truth.
    memory = Memory([(100, 4)], b"abcd")
    with pytest.raises(MoreMemory):
        memory.read(1, 1)
    with pytest.raises(MoreMemory):
        memory.read(100, 4)
    assert memory.wanted == [(1, 1), (100, 4)]


class Pair(ctypes.Structure):
    _fields_ = [("a", ctypes.c_uint16), ("b", ctypes.c_uint16)]


def test_structures_and_arrays() -> None:
    memory = Memory([(0, 8)], bytes((Pair * 2)(Pair(1, 2), Pair(3, 4))))
    first, second = memory.read_array(0, Pair, 2)
    assert (first.a, first.b, second.a, second.b) == (1, 2, 3, 4)
    first.a = 9
    assert memory.read_struct(0, Pair).a == 1
    memory.write_struct(4, first)
    assert memory.read(4, 4) == bytes(Pair(9, 2))
    assert [n.value for n in memory.read_array(0, ctypes.c_uint16, 3)] == [1, 2, 9]
    assert memory.read_array(0, Pair, 0) == []
    memory.write_struct(6, ctypes.c_uint16(5))
    assert memory.read_struct(4, Pair).b == 5


@pytest.mark.parametrize("address", [-1, 1 << 64, (1 << 64) - 7])
def test_addresses_that_do_not_exist(address: int) -> None:
    memory = Memory([], b"")
    for do in (lambda: memory.read(address, 8), lambda: memory.write(address, bytes(8))):
        with pytest.raises(OSError, match="no address") as caught:
            do()
        assert caught.value.errno == errno.EFAULT
    assert not memory.wanted
    assert not memory.written


def test_sizes_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        Memory([], b"").read(0, -1)


@pytest.mark.parametrize("data", [5, "text", None])
def test_only_bytes_can_be_written(data: Any) -> None:
    memory = Memory([], b"")
    with pytest.raises(TypeError):
        memory.write(0, data)
    assert not memory.written


def test_a_huge_read_costs_nothing() -> None:
    # Its size may come from the program's memory.
    memory = Memory([], b"")
    with pytest.raises(MoreMemory):
        memory.read(0, 1 << 60)
    assert memory.wanted == [(0, 1 << 60)]


def test_restricted_memory() -> None:
    memory = Memory([(100, 8)], b"abcdefgh", [(104, 8)])
    assert memory.read(100, 8) == b"abcdefgh"
    memory.write(104, b"ABCDEFGH")
    assert memory.read(102, 10) == b"cdABCDEFGH"
    for do in (
        lambda: memory.read(99, 2),
        lambda: memory.read(112, 1),
        lambda: memory.write(103, b"x"),
        lambda: memory.write(108, bytes(5)),
    ):
        with pytest.raises(Misuse):
            do()
    assert memory.written == [(104, 8)]
