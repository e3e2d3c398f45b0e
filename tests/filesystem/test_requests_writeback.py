"""What a filesystem is asked whose files are written back later: as by Linux, field by field."""

from __future__ import annotations

import os
from typing import Any

import pytest

from .compared import compare
from .test_differential_in_process import umask

__all__ = ["umask"]  # a fixture

CALLS: list[tuple[Any, ...]] = [
    ("create", "b", 0o644), ("write", "b", b"hello", 0), ("stat", "b", True), ("read", "b", 10, 0),
    ("append", "b", b"x" * 5000), ("read", "b", 100000, 0), ("write", "b", b"yy", 100),
    ("truncate", "b", 100), ("stat", "b", True), ("truncate", "b", 100), ("chmod", "b", 0o600),
    ("utimens", "b", 5, 6, True), ("stat", "b", True),
    ("open", "b", os.O_RDWR), ("on_file", 0, "write", b"a" * 9000, 50),
    ("on_file", 0, "read", b"", 0), ("on_file", 0, "stat", b"", 0), ("stat", "b", True),
    ("on_file", 0, "truncate", b"", 5000), ("on_file", 0, "write", b"z" * 10, 20000),
    ("on_file", 0, "chmod", b"", 0o640), ("on_file", 0, "write", b"z" * 10, 30000),
    ("link", "b", "c"), ("on_file", 0, "write", b"z" * 10, 1), ("rename", "c", "d", 0),
    ("on_file", 0, "write", b"z" * 10, 2), ("xattr", "b", "user.a", b"1", 0),
    ("on_file", 0, "write", b"z" * 10, 3), ("unlink", "d"),
    ("on_file", 0, "write", b"z" * 10, 4), ("utimens", "b", 5, 6, True),
    ("on_file", 0, "write", b"z" * 10, 5), ("read", "b", 10, 0),
    ("on_file", 0, "write", b"z" * 10, 6), ("on_file", 0, "close", b"", 0),
    ("open", "b", os.O_WRONLY | os.O_TRUNC), ("on_file", 0, "write", b"z" * 10, 6),
    ("on_file", 0, "write", b"q" * 8192, 4096), ("on_file", 0, "close", b"", 0),
    ("stat", "b", True), ("open", "b", os.O_WRONLY | os.O_SYNC),
    ("on_file", 0, "write", b"z" * 10, 6), ("on_file", 0, "close", b"", 0),
    ("open", "b", os.O_WRONLY | os.O_DSYNC), ("on_file", 0, "write", b"z" * 10, 6),
    ("on_file", 0, "close", b"", 0), ("create", "su", 0o4755), ("write", "su", b"x", 0),
    ("truncate", "su", 0), ("stat", "su", True), ("remove_xattr", "b", "user.a"),
    ("unlink", "b"), ("symlink", "b", "s"), ("unlink", "s"), ("mkdir", "e", 0o700), ("rmdir", "e"),
]  # fmt: skip


@pytest.mark.usefixtures("mounts")
def test_requests_are_those_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    compare(monkeypatch, CALLS, writeback=True)
