"""Where the directories are made that stand for those of a sandbox."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from recuse.sandbox.vfs import placeholder_dirs
from recuse.sandbox.vfs.dentry import Location, MemoryTree, Mount
from recuse.sandbox.vfs.nodes import DirectoryNode, Identity
from recuse.sandbox.vfs.placeholder_dirs import PlaceholderDirs


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


def test_only_so_many_are_held_of_what_was_removed() -> None:
    placeholders = PlaceholderDirs()
    tree = MemoryTree(DirectoryNode(Identity(1, 0, 0, 0)), b"/")
    mount = Mount(tree, b"/dev/recuse-place")
    opened = []
    try:
        for number in range(100):
            dentry = tree.root.add(b"%d" % number, DirectoryNode(Identity(2 + number, 0, 0, 0)))
            location = Location(mount, dentry)
            opened.append((os.fstat(own := placeholders.open(location)), location))
            os.close(own)
            dentry.remove()
            placeholders.removed(dentry)
            with pytest.raises(FileNotFoundError):
                placeholders.open(location)
        assert len(placeholders._held) == len(placeholders._standing) == 64
        for status, location in opened[-64:]:
            assert placeholders.standing_for(status) is location
    finally:
        placeholders.close()
