"""Requests that the server wants to have once more, and limits that it sets."""

from __future__ import annotations

import contextlib
import errno
import stat
import threading

import pytest

from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.fs import superblock
from recuse.wire.filesystem import fuse_attr_out
from recuse.wire.fuse import (
    FUSE_GETATTR,
    FUSE_INTERRUPT,
    FUSE_NOTIFY_RESEND,
    FUSE_READ,
    FUSE_UNIQUE_RESEND,
    fuse_init_out,
    fuse_out_header,
)
from tests.patience import PATIENCE_S

from .support import FLAGS, Asked, Scripted, attr, entry


class Stat(threading.Thread):
    """A call that waits for its answer."""

    def __init__(self, mount: Scripted, held: list[Asked]) -> None:
        super().__init__()
        self._mount = mount
        self.size = -1
        before = len(held)
        self.start()
        while len(held) == before:
            self.join(0.001)

    def run(self) -> None:
        with contextlib.suppress(OSError):
            self.size = self._mount.stat("/").st_size


def test_what_is_not_answered_comes_again() -> None:
    mount = Scripted()
    held: list[Asked] = []
    mount.answers[FUSE_GETATTR] = held.append
    first = Stat(mount, held)
    second = Stat(mount, held)
    mount.notify(FUSE_NOTIFY_RESEND)
    numbers = [asked.header.unique for asked in held]
    assert numbers[2:] == [number | FUSE_UNIQUE_RESEND for number in numbers[:2]]
    # The first ones are not known any more.
    known = attr(1, stat.S_IFDIR, size=5)
    answer = fuse_attr_out(attr_valid=1, attr=known).pack()
    with pytest.raises(FileNotFoundError):
        mount.superblock.connection.write(header(numbers[0], answer))
    for number in numbers[2:]:
        mount.superblock.connection.write(header(number, answer))
    for call in (first, second):
        call.join(PATIENCE_S)
        assert call.size == 5
    mount.notify(FUSE_NOTIFY_RESEND)
    assert len(held) == 4


def header(unique: int, payload: bytes) -> bytes:
    return fuse_out_header(len=16 + len(payload), unique=unique).pack() + payload


def test_an_interrupt_follows_what_comes_again() -> None:
    mount = Scripted()
    held: list[Asked] = []
    mount.answers[FUSE_GETATTR] = held.append
    call = Stat(mount, held)
    while not mount._driver.interrupt(fatal=False):
        pass
    while mount.asked[-1].opcode != FUSE_INTERRUPT:
        call.join(0.001)
    mount.notify(FUSE_NOTIFY_RESEND)
    assert mount.asked[-1].opcode == FUSE_INTERRUPT
    number = held[-1].header.unique
    assert mount.asked[-1].body.unique == number
    answer = fuse_out_header(len=16, error=-errno.EINTR, unique=number).pack()
    mount.superblock.connection.write(answer)
    call.join(PATIENCE_S)


@pytest.mark.parametrize(("minor", "expected"), [(12, (12, 9)), (13, (5, 3)), (45, (5, 3))])
def test_limits_of_the_background_are_the_servers(minor: int, expected: tuple[int, int]) -> None:
    out = fuse_init_out(7, minor, flags=FLAGS & 0xFFFF, max_background=5, congestion_threshold=3)
    connection = Scripted(init=out.pack()[:24]).superblock.connection
    assert (connection.max_background, connection.congestion_threshold) == expected


def test_not_all_content_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superblock, "MOST_PAGES_KEPT", 8)
    mount = Scripted()
    for number, name in enumerate("abc", 2):
        mount.names[name] = entry(number, size=6 * PAGE_SIZE, valid_s=1000)
        mount.attrs[number] = attr(number, size=6 * PAGE_SIZE)
    mount.answers[FUSE_READ] = lambda asked: bytes(asked.body.size)
    for name in "abc":
        mount.read_bytes(name)
        kept = [len(inode.pages) for inode in mount.superblock.inodes.all()]
        assert sum(kept) <= 8
        assert max(kept) > 0


def test_not_all_names_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superblock, "MOST_KNOWN", 10)
    mount = Scripted()
    mount.superblock._most_known = 10
    for number in range(2, 40):
        mount.names[f"{number}"] = entry(number, valid_s=1000)
    with mount.open("5") as file:
        for name in mount.names:
            mount.stat(name)
            assert len(mount.superblock.inodes) <= 12
        assert file.stat().st_ino == 5
    assert sum(mount.lookups.values()) < 15
