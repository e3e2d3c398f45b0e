"""What a filesystem is asked whose files have backing files: as by Linux, field by field."""

from __future__ import annotations

import os
from typing import Any

import pytest

from .compared import compare
from .test_differential_in_process import umask

__all__ = ["umask"]  # a fixture

CALLS: list[tuple[Any, ...]] = [
    ("create", "b", 0o644), ("write", "b", b"hello", 0), ("stat", "b", True),
    ("read", "b", 10, 0), ("append", "b", b"x" * 5000), ("read", "b", 100000, 0),
    ("open", "b", os.O_RDWR), ("on_file", 0, "write", b"yy", 5), ("on_file", 0, "read", b"", 0),
    ("on_file", 0, "stat", b"", 0), ("read", "b", 10, 0), ("on_file", 0, "truncate", b"", 3),
    ("stat", "b", True), ("on_file", 0, "chmod", b"", 0o640), ("on_file", 0, "close", b"", 0),
    ("open", "b", os.O_WRONLY | os.O_TRUNC), ("on_file", 0, "write", b"yy", 5),
    ("stat", "b", True), ("on_file", 0, "close", b"", 0), ("open", "b", os.O_WRONLY | os.O_SYNC),
    ("on_file", 0, "write", b"yy", 5), ("on_file", 0, "close", b"", 0), ("unlink", "b"),
]  # fmt: skip


@pytest.mark.usefixtures("mounts")
def test_requests_are_those_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    compare(monkeypatch, CALLS, example="loopback", passthrough=True)
