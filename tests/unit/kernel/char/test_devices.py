"""The device table: names and numbers."""

from __future__ import annotations

import errno

import pytest

from recuse.kernel.char.devices import CharDevice, DeviceTable, check_name

from ..support import connection, error_of


def register(table: DeviceTable, name: str, major: int = 0, minor: int = 0) -> CharDevice:
    return table.register(name, major, minor, connection())


def refused(table: DeviceTable, name: str, major: int = 0, minor: int = 0) -> int | None:
    return error_of(register, table, name, major, minor)


def test_a_device_is_found_by_name_and_number_until_it_is_removed() -> None:
    table = DeviceTable()
    device = register(table, "snd/dsp", 14, 3)
    assert table.by_name("snd/dsp") is table.by_number(14, 3) is device
    assert list(table) == [device]
    table.remove(device)
    assert table.by_name("snd/dsp") is table.by_number(14, 3) is None
    assert len(table) == 0
    table.remove(device)


def test_removing_a_device_twice_leaves_its_successor() -> None:
    table = DeviceTable()
    first = register(table, "thing", 14, 3)
    table.remove(first)
    second = register(table, "thing", 14, 3)
    table.remove(first)
    assert table.by_name("thing") is table.by_number(14, 3) is second
    assert first.serial != second.serial


def test_majors_are_given_away_from_254_down_then_from_511() -> None:
    table = DeviceTable()
    majors = [register(table, f"d{index}", minor=5).major for index in range(149)]
    assert majors == [*range(254, 233, -1), *range(511, 383, -1)]
    assert {device.minor for device in table} == {5}
    assert refused(table, "more", minor=5) == errno.EBUSY
    device = table.by_number(240, 5)
    assert device is not None
    table.remove(device)
    assert register(table, "more").major == 240


def test_a_major_with_any_device_is_not_given_away() -> None:
    table = DeviceTable()
    register(table, "fixed", 254, 77)
    assert register(table, "dynamic").major == 253


def test_majors_that_others_have_are_not_given_away() -> None:
    table = DeviceTable(taken=(254, 252, 3))
    assert [register(table, name).major for name in ("one", "two")] == [253, 251]
    assert register(table, "fixed", 254, 77).major == 254


def test_taken_numbers_and_names() -> None:
    table = DeviceTable()
    register(table, "thing", 14, 3)
    assert refused(table, "other", 14, 3) == errno.EBUSY
    assert refused(table, "thing", 14, 4) == errno.EEXIST
    assert refused(table, "thing") == errno.EEXIST
    assert refused(table, "thing", 14, 3) == errno.EBUSY  # the number is looked at first
    register(table, "other", 14, 4)
    assert len(table) == 2


@pytest.mark.parametrize(
    ("major", "minor"), [(512, 0), (-1, 0), (1, 1 << 20), (0, 1 << 20), (1, -1)]
)
def test_numbers_out_of_range(major: int, minor: int) -> None:
    table = DeviceTable()
    assert refused(table, "thing", major, minor) == errno.EINVAL
    assert len(table) == 0


def test_the_largest_numbers() -> None:
    assert register(DeviceTable(), "thing", 511, (1 << 20) - 1).major == 511


@pytest.mark.parametrize(
    "name", ["a", "a" * 255, "snd/dsp", "..a", "a..", "\u00fc" * 127, "with space", "\udcff"]
)
def test_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    "name",
    ["", "a" * 256, "\u00fc" * 128, "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a/.", "a\0b"],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        check_name(name)
    assert refused(DeviceTable(), name) == errno.EINVAL


def test_iterating_goes_on_while_devices_come_and_go() -> None:
    table = DeviceTable()
    for name in "abc":
        register(table, name)
    seen = []
    for device in table:
        seen.append(device.name)
        table.remove(device)
        register(table, device.name + "x")
    assert seen == ["a", "b", "c"]
    assert sorted(device.name for device in table) == ["ax", "bx", "cx"]


def test_a_device_transfers_at_least_4096_bytes_at_once() -> None:
    device = DeviceTable().register("thing", 0, 0, connection(), max_read=0, max_write=4097)
    assert (device.max_read, device.max_write) == (4096, 4097)
    assert device.mode == 0o600
