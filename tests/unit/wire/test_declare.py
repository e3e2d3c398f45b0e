"""Structures: their layout, and their bytes both ways."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recuse.wire import cuse, filesystem, fuse, notify, uring
from recuse.wire.declare import Field, Structure
from recuse.wire.errors import WireError

LAYOUT = Path(__file__).with_name("layout_7_45.txt")


def structures() -> Iterator[type[Structure]]:
    for module in (fuse, filesystem, notify, cuse, uring):
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield value


STRUCTURES = {made.__name__: made for made in structures()}
every_structure = pytest.mark.parametrize("made", STRUCTURES.values(), ids=STRUCTURES)

LIMITS = {
    "u8": (0, 2**8 - 1),
    "u16": (0, 2**16 - 1),
    "u32": (0, 2**32 - 1),
    "u64": (0, 2**64 - 1),
    "s32": (-(2**31), 2**31 - 1),
    "s64": (-(2**63), 2**63 - 1),
}


def split(type_name: str) -> tuple[str, int | None]:
    """("u32", 11) for "u32[11]"; None for what is no array."""
    name, _, length = type_name.rstrip("]").partition("[")
    return name, int(length) if length else None


def instances(made: type[Structure]) -> st.SearchStrategy[Structure]:
    """Any values that fit, the limits of each field among them."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in made.FIELDS:
        name, length = split(field.type)
        if name in STRUCTURES:
            fields[field.name] = instances(STRUCTURES[name])
            continue
        number = st.integers(*LIMITS[name]) | st.sampled_from(LIMITS[name])
        fields[field.name] = number if length is None else st.tuples(*[number] * length)
    return st.builds(made, **fields)


def test_a_declaration_says_it_all() -> None:
    assert fuse.fuse_out_header.SIZE == 16
    fields = fuse.fuse_out_header.FIELDS
    assert fields == (Field("len", "u32", 0), Field("error", "s32", 4), Field("unique", "u64", 8))
    header = fuse.fuse_out_header(unique=7)
    assert header == fuse.fuse_out_header(0, 0, 7)
    assert header != fuse.fuse_out_header(0, 0, 8)
    assert fuse.fuse_out_header.CODEC.unpack(header.pack()) == (0, 0, 7)


@every_structure
def test_nothing_but_the_declared_fields_can_be_set(made: type[Structure]) -> None:
    with pytest.raises(AttributeError):
        made().misspelt = 1  # type: ignore[attr-defined]


@every_structure
def test_all_fields_are_zero_by_default(made: type[Structure]) -> None:
    assert made().pack() == bytes(made.SIZE)


def test_inner_structures_are_not_shared() -> None:
    one, other = filesystem.fuse_attr_out(), filesystem.fuse_attr_out()
    one.attr.ino = 1
    assert other.attr.ino == 0


def test_layout_is_that_of_the_protocol() -> None:
    text = re.sub(r"^#.*\n", "", LAYOUT.read_text(encoding="ascii"), flags=re.MULTILINE)
    expected = {}
    for name, size, fields in re.findall(r"^(\w+) (\d+):((?:\s+\d+:\w+ [\w\[\]]+,?)+)", text, re.M):
        described = []
        for offset, kind, field, array in re.findall(r"(\d+):(\w+) _*(\w+)(\[\d*\])?", fields):
            if array != "[]":
                inner = f"fuse_{kind}" in STRUCTURES
                described.append(
                    Field(field, f"fuse_{kind}" if inner else kind + array, int(offset))
                )
        expected[name] = (int(size), tuple(described))
    ours = {name: (made.SIZE, made.FIELDS) for name, made in STRUCTURES.items()}
    # Ours alone.
    assert ours.pop("recuse_ioctl_file") == (
        16,
        (Field("fh", "u64", 0), Field("flags", "u32", 8), Field("offset", "u32", 12)),
    )
    others = {name: ours.pop(name) for name in list(ours) if name.startswith("recuse_")}
    assert {
        name: f"{size}: " + ", ".join(f"{offset}:{kind} {field}" for field, kind, offset in fields)
        for name, (size, fields) in others.items()
    } == {
        "recuse_mmap_in": "40: 0:u64 fh, 8:u64 addr, 16:u64 len, 24:s32 prot, 28:s32 flags, "
        "32:u64 offset",
        "recuse_mmap_out": "8: 0:s32 area, 4:u32 flags",
        "recuse_mmap_commit_in": "56: 0:u64 fh, 8:u64 mmap_unique, 16:u64 addr, 24:u64 len, "
        "32:s32 prot, 36:s32 flags, 40:s32 area, 44:u32 padding, 48:u64 offset",
        "recuse_munmap_in": "40: 0:u64 fh, 8:u64 mmap_unique, 16:u64 addr, 24:u64 len, "
        "32:s32 area, 36:u32 padding",
        "recuse_describe_out": "8: 0:u32 flags, 4:u32 max_read",
    }
    assert ours.pop("create_out") == (
        144,
        (Field("entry", "fuse_entry_out", 0), Field("open", "fuse_open_out", 128)),
    )
    assert ours == expected


@every_structure
@settings(max_examples=20)
@given(data=st.data())
def test_what_is_packed_is_unpacked_the_same(made: type[Structure], data: st.DataObject) -> None:
    value = data.draw(instances(made))
    packed = value.pack()
    assert len(packed) == made.SIZE
    assert made.unpack(packed) == value
    before = data.draw(st.binary(max_size=9))
    buffer = before + packed + data.draw(st.binary(max_size=9))
    assert made.unpack(buffer, len(before)) == value
    assert made.unpack(bytearray(buffer), len(before)) == value
    assert made.unpack(memoryview(buffer)[len(before) :]) == value


@every_structure
@settings(max_examples=20)
@given(data=st.data())
def test_any_bytes_of_the_size_are_unpacked_and_packed_the_same(
    made: type[Structure], data: st.DataObject
) -> None:
    packed = data.draw(st.binary(min_size=made.SIZE, max_size=made.SIZE))
    assert made.unpack(packed).pack() == packed


@every_structure
def test_fewer_bytes_are_refused(made: type[Structure]) -> None:
    for size in range(made.SIZE):
        with pytest.raises(WireError, match=f"{made.__name__} takes {made.SIZE} .* {size} are"):
            made.unpack(bytes(size))
        with pytest.raises(WireError):
            made.unpack(bytes(made.SIZE + 3), made.SIZE + 3 - size)


@every_structure
def test_a_value_that_does_not_fit_is_refused(made: type[Structure]) -> None:
    for field in made.FIELDS:
        name, length = split(field.type)
        if name in STRUCTURES:
            continue
        lowest, highest = LIMITS[name]
        numbers: list[Any] = [lowest - 1, highest + 1, "1", None]
        arrays: list[Any] = [(number,) + (0,) * ((length or 1) - 1) for number in numbers]
        arrays += [(), (0,) * ((length or 1) + 1)]
        for wrong in numbers if length is None else arrays:
            value = made()
            setattr(value, field.name, wrong)
            with pytest.raises(WireError, match=made.__name__):
                value.pack()
