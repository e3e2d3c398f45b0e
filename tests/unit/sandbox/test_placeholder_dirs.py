"""Where the directories are made that stand for those of a sandbox."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from recuse.sandbox.vfs import placeholder_dirs


def nowhere() -> str:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory")


def test_the_first_place_that_can_be_written_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert placeholder_dirs._place() == os.fsencode(os.path.realpath(tmp_path))
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda place, _: place == str(tmp_path))
    assert placeholder_dirs._place() == os.fsencode(os.path.realpath(tmp_path))


def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError):
        placeholder_dirs._place()
