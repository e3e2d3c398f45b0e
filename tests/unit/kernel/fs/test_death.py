"""Servers that are old, and servers that are dead."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable

import pytest

from recuse.kernel.fs.options import OFFERED
from recuse.wire.fuse import (
    FUSE_GETATTR,
    FUSE_INIT_EXT,
    FUSE_MAP_ALIGNMENT,
    FUSE_READ,
    FUSE_SUBMOUNTS,
    FUSE_WRITE,
    fuse_init_out,
)
from tests.patience import PATIENCE_S

from .support import FLAGS, Asked, Scripted, entry


def error_of(function: Callable[..., object], *arguments: object) -> str:
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def with_file() -> Scripted:
    mount = Scripted()
    mount.names["a"] = entry(2, size=10000, valid_s=1000)
    return mount


def test_after_the_servers_death_every_call_fails() -> None:
    mount = with_file()
    file = mount.open("a", os.O_RDWR)
    directory = mount.open_directory("/")
    mount.superblock.connection.abort()
    calls: list[tuple[Callable[..., object], tuple[object, ...]]] = [
        (file.pread, (1, 0)),
        (file.pwrite, (b"x", 0)),
        (file.truncate, (1,)),
        (file.fsync, ()),
        (file.fallocate, (0, 0, 1)),
        (file.ioctl, (1,)),
        (file.seek, (0, os.SEEK_DATA)),
        (file.flush, ()),
        (directory.read_entries, ()),
        (mount.stat, ("b",)),
        (mount.mkdir, ("d",)),
        (mount.unlink, ("a",)),
        (mount.rename, ("a", "b")),
        (mount.link, ("a", "b")),
        (mount.symlink, ("a", "b")),
        (mount.chmod, ("a", 0)),
        (mount.truncate, ("a", 0)),
        (mount.getxattr, ("a", "user.x")),
        (mount.listxattr, ("a",)),
        (mount.setxattr, ("a", "user.x", b"")),
        (mount.open, ("a",)),
        (mount.statvfs, ()),
    ]
    for call, arguments in calls:
        assert error_of(call, *arguments) == "ENOTCONN", call
    # What needs no server goes on.
    file.lock(fcntl.F_WRLCK)
    file.seek(5)
    directory.close()
    assert error_of(file.close) == "ENOTCONN"


@pytest.mark.parametrize("opcode", [FUSE_READ, FUSE_WRITE, FUSE_GETATTR])
def test_its_death_ends_calls_that_wait(opcode: int) -> None:
    mount = with_file()
    held: list[Asked] = []
    file = mount.open("a", os.O_RDWR)
    mount.answers[opcode] = held.append
    mount.now += 10**13  # attributes have expired
    calls: dict[int, Callable[[], object]] = {
        FUSE_READ: lambda: file.pread(1, 0),
        FUSE_WRITE: lambda: file.pwrite(b"x", 0),
        FUSE_GETATTR: file.stat,
    }
    call = calls[opcode]
    result: list[str] = []
    thread = threading.Thread(target=lambda: result.append(error_of(call)))
    thread.start()
    while not held:
        thread.join(0.001)
    mount.superblock.connection.abort()
    thread.join(PATIENCE_S)
    assert result == ["ECONNABORTED"]
    file.closed = True


@pytest.mark.parametrize(("minor", "size"), [(12, 24), (22, 24), (23, 64), (36, 64), (45, 64)])
def test_old_servers_answer_less(minor: int, size: int) -> None:
    out = fuse_init_out(7, minor, flags=FLAGS & 0xFFFFFFFF, max_write=4096)
    mount = Scripted(init=out.pack()[:size])
    mount.names["a"] = entry(2)
    agreed = mount.superblock.agreed
    assert (agreed.minor, agreed.max_write, agreed.max_pages) == (minor, 4096, 32)
    mount.clear()
    renamed = error_of(mount.rename, "a", "b", 1)
    assert ("RENAME2" in mount.sent) == (minor >= 23)
    assert renamed == "EINVAL"


def test_what_is_not_done_is_not_offered() -> None:
    assert OFFERED & FUSE_INIT_EXT
    assert not OFFERED & (FUSE_SUBMOUNTS | FUSE_MAP_ALIGNMENT)
