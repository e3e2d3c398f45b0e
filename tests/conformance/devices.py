"""The devices of the conformance suite, which answer without chance."""

from __future__ import annotations

from typing import ClassVar

from recuse import Device, File, OpenRequest

_PATTERN = bytes(i * 7 % 251 for i in range(251)) * 5000


def pattern(size: int, offset: int = 0) -> bytes:
    """What is read at an offset."""
    start = offset % 251
    return _PATTERN[start : start + size]


class ConformanceFile(File):
    """Gives the pattern, takes everything, knows no ioctl."""

    def read(self, size: int, offset: int) -> bytes:
        return pattern(size, offset)

    def write(self, data: bytes, offset: int) -> int:
        return len(data)


class ConformanceDevice(Device):
    """All of them."""

    mode = 0o600
    actions: ClassVar[dict[str, str]] = {}
    """What the recorder does with an operation if a case does not say: see recording.py."""

    def open(self, request: OpenRequest) -> File:
        return ConformanceFile()


class Polled(ConformanceDevice):
    """Is not ready, unless a case says so."""

    actions: ClassVar = {"POLL": "poll 0"}


class Unpolled(ConformanceDevice):
    """Has no poll."""

    actions: ClassVar = {"POLL": "error 38"}


def devices() -> list[ConformanceDevice]:
    """One of each; those that make the kernel remember something are used by few cases."""
    return [
        ConformanceDevice(name="recuse-plain"),
        ConformanceDevice(name="recuse-restricted", unrestricted=False),
        ConformanceDevice(name="recuse-small", max_read=4096, max_write=4096),
        ConformanceDevice(name="recuse-odd", max_read=10000, max_write=5000),
        ConformanceDevice(name="recuse-deaf"),
        ConformanceDevice(name="recuse-opened-alike"),
        Polled(name="recuse-polled"),
        Unpolled(name="recuse-unpolled"),
        Unpolled(name="recuse-unpolled-2"),
    ]
