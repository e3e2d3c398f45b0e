"""What a filesystem is asked whose files are mapped: as by Linux, field by field."""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from recuse.testing import TestFile, TestMapping, TestMount

from .compared import compare
from .test_differential import Caller
from .test_differential_in_process import InProcess, umask

__all__ = ["umask"]  # a fixture


class MappingCaller(Caller):
    """It also maps files."""

    def __init__(self, top: Path) -> None:
        super().__init__(top)
        self.maps: list[mmap.mmap] = []

    def close(self) -> None:
        for one in self.maps:
            one.close()
        super().close()

    def map(self, index: int, size: int, private: bool) -> None:
        file = self.files[index]
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        writable = private or fcntl.fcntl(file, fcntl.F_GETFL) & os.O_RDWR
        how = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self.maps.append(mmap.mmap(file, size, flags, how))

    def on_map(self, index: int, what: str, start: int, data: bytes) -> Any:
        one = self.maps[index]
        if what == "read":
            return one[start : start + 10]
        if what == "write":
            one[start : start + len(data)] = data
            return None
        if what == "flush":
            return one.flush()
        return self.maps.pop(index).close()


class MappingInProcess(InProcess):
    """It also maps files."""

    def __init__(self, mount: TestMount) -> None:
        super().__init__(mount)
        self.maps: list[tuple[TestMapping, TestFile]] = []

    def close(self) -> None:
        for one, _ in self.maps:
            one.close()
        super().close()

    def map(self, index: int, size: int, private: bool) -> None:
        file = self.opened_files[index]
        assert isinstance(file, TestFile)
        file.stat()  # as mmap.mmap does
        self.maps.append((file.mmap(size, private=private), file))

    def on_map(self, index: int, what: str, start: int, data: bytes) -> Any:
        one, file = self.maps[index]
        if what == "read":
            return one[start : start + 10]
        if what == "write":
            one[start : start + len(data)] = data
            return None
        if what == "flush":
            return one.flush()
        self.maps.pop(index)
        file.flush()  # mmap.mmap has a copy of the descriptor
        return one.close()


CALLS: list[tuple[Any, ...]] = [
    ("create", "b", 0o644), ("write", "b", b"0123456789" * 1000, 0), ("open", "b", os.O_RDWR),
    ("map", 0, 10000, False), ("on_map", 0, "read", 5, b""), ("on_map", 0, "write", 5, b"xyz"),
    ("stat", "b", True), ("on_map", 0, "read", 0, b""), ("on_file", 0, "read", b"", 0),
    ("on_map", 0, "write", 4090, b"uvwuvwuvw"), ("on_map", 0, "flush", 0, b""),
    ("on_file", 0, "write", b"new", 3), ("on_map", 0, "read", 0, b""),
    ("on_map", 0, "write", 9000, b"end"), ("read", "b", 20, 8995), ("stat", "b", True),
    ("on_map", 0, "write", 1, b"!"), ("open", "b", os.O_RDONLY), ("map", 1, 4096, True),
    ("on_map", 1, "read", 0, b""), ("on_map", 1, "write", 0, b"mine"),
    ("on_map", 0, "read", 0, b""), ("on_map", 1, "close", 0, b""), ("on_map", 0, "write", 1, b"?"),
    ("on_map", 0, "close", 0, b""),
    ("on_file", 0, "close", b"", 0), ("on_file", 0, "close", b"", 0),
    ("write", "large", b"l" * 500000, 0), ("open", "large", os.O_RDONLY), ("map", 0, 500000, False),
    ("chmod", "large", 0o600), ("on_map", 0, "read", 300000, b""), ("on_map", 0, "read", 0, b""),
    ("on_map", 0, "close", 0, b""), ("on_file", 0, "close", b"", 0),
]  # fmt: skip


@pytest.mark.usefixtures("mounts")
@pytest.mark.parametrize("writeback", [False, True])
def test_requests_are_those_of_linux(monkeypatch: pytest.MonkeyPatch, writeback: bool) -> None:
    callers = (MappingCaller, MappingInProcess)
    compare(monkeypatch, CALLS, callers, writeback=writeback)
