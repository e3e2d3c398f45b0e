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


def test_only_those_used_last_are_held_and_those_that_somebody_has() -> None:
    placeholders = PlaceholderDirs()
    tree = MemoryTree(DirectoryNode(Identity(1, 0, 0, 0)), b"/")
    mount = Mount(tree, b"/dev/recuse-place")
    opened = []
    kept = []
    try:
        for number in range(100):
            dentry = tree.root.add(b"%d" % number, DirectoryNode(Identity(2 + number, 0, 0, 0)))
            location = Location(mount, dentry)
            own = placeholders.open(location)
            opened.append((os.fstat(own), location))
            if number < 3:
                kept.append(own)
            else:
                os.close(own)
            dentry.remove()
            with pytest.raises(FileNotFoundError):
                placeholders.open(location)
        assert len(placeholders._held) == 64
        for status, location in opened[:3] + opened[-64:]:
            assert placeholders.standing_for(status) is location
        for status, location in opened[3:-64]:
            assert placeholders.standing_for(status) is not location  # the numbers may be another's
        os.close(kept.pop())
        assert placeholders.standing_for(opened[2][0]) is None
        assert len(placeholders._standing) == 66
    finally:
        for own in kept:
            os.close(own)
        placeholders.close()


def test_all_are_held_where_nobody_tells_of_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placeholder_dirs._libc, "inotify_init1", lambda _: -1)
    placeholders = PlaceholderDirs()
    tree = MemoryTree(DirectoryNode(Identity(1, 0, 0, 0)), b"/")
    mount = Mount(tree, b"/dev/recuse-place")
    try:
        for number in range(70):
            dentry = tree.root.add(b"%d" % number, DirectoryNode(Identity(2 + number, 0, 0, 0)))
            os.close(placeholders.open(Location(mount, dentry)))
        assert len(placeholders._held) == len(placeholders._standing) == 70
    finally:
        placeholders.close()
