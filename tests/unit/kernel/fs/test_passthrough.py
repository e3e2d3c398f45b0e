"""Files with backing files: FOPEN_PASSTHROUGH."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from recuse.channel.inprocess_backing import DescriptorFile
from recuse.kernel.fs.backing import BackingFile
from recuse.wire.declare import Buffer
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_PASSTHROUGH,
    FUSE_INIT_EXT,
    FUSE_OPEN,
    FUSE_PASSTHROUGH,
    FUSE_WRITEBACK_CACHE,
    fuse_init_out,
    fuse_open_out,
)

from .support import FLAGS, Scripted, always, attr, entry


class File:
    """A backing file in memory."""

    def __init__(self, content: bytearray | None = None) -> None:
        self.content = bytearray(b"backing") if content is None else content
        self.closed = 0
        self.reopens: list[File | OSError] = []
        """What was opened once more; an error that stands here is raised the next time."""

    def fileno(self) -> int:
        return 99

    def reopened(self, flags: int) -> File:
        if self.reopens and isinstance(self.reopens[-1], OSError):
            raise self.reopens[-1]
        self.reopens.append(again := File(self.content))
        return again

    def read(self, size: int, offset: int) -> bytes:
        return bytes(self.content[offset : offset + size])

    def write(self, data: Buffer, offset: int | None, flags: int) -> tuple[int, int]:
        start = len(self.content) if offset is None else offset
        self.content[start : start + len(data)] = data
        return len(data), start + len(data)

    def close(self) -> None:
        self.closed += 1


def closed(file: File) -> int:
    return file.closed


def mounted(flags: int = FUSE_PASSTHROUGH, max_stack_depth: int = 1) -> Scripted:
    flags |= FLAGS | FUSE_INIT_EXT
    init = fuse_init_out(7, 45, flags=flags & 0xFFFFFFFF, max_write=131072, flags2=flags >> 32)
    init.max_stack_depth = max_stack_depth
    mount = Scripted(init=init.pack())
    mount.names["a"] = entry(2, valid_s=100, size=7)
    mount.attrs[2] = attr(2, size=7)
    return mount


def opens_with(mount: Scripted, number: int, flags: int = FOPEN_PASSTHROUGH) -> None:
    answer = fuse_open_out(fh=7, open_flags=flags, backing_id=number)
    mount.answers[FUSE_OPEN] = always(answer)


def error_of_open(mount: Scripted) -> str:
    try:
        mount.open("a").close()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_the_backing_file_is_read_and_written() -> None:
    mount, backing = mounted(), File()
    opens_with(mount, mount.superblock.backing.open(backing))
    with mount.open("a", os.O_RDWR) as file:
        mount.clear()
        assert file.read(4) == b"back"
        assert file.read() == b"ing"
        assert file.pwrite(b"BACK", 0) == 4
        file.seek(7)
        assert file.write(b"!") == 1
        assert file.seek(0, os.SEEK_CUR) == 8
        assert "READ" not in mount.sent
        assert "WRITE" not in mount.sent
        assert file.backing_descriptor == 99
    with mount.open("a", os.O_WRONLY | os.O_APPEND) as file:
        file.pwrite(b"end", 0)
    assert backing.content == b"BACKing!end"


def test_it_is_appended_to_whatever_a_single_write_says() -> None:
    mount, file = mounted(), File()
    opens_with(mount, mount.superblock.backing.open(file))
    with mount.open("a", os.O_WRONLY | os.O_APPEND) as opened:
        mount._driver.run(opened._file.write(mount._caller, b"!", 0, appends=False))
    assert file.content == b"backing!"


def test_it_lives_as_long_as_somebody_has_it() -> None:
    mount, backing = mounted(), File()
    files = mount.superblock.backing
    number = files.open(backing)
    opens_with(mount, number)
    with mount.open("a") as file:
        files.close(number)
        with pytest.raises(FileNotFoundError):
            files.close(number)
        assert error_of_open(mount) == "EIO"
        assert file.read() == b"backing"
        assert closed(backing) == 0
    assert closed(backing) == 1
    other = File()
    files.open(other)
    mount.superblock.connection.abort()
    assert other.closed == 1


def test_all_opens_agree() -> None:
    mount, backing = mounted(), File()
    number = mount.superblock.backing.open(backing)
    second = mount.superblock.backing.open(File())
    opens_with(mount, number)
    with mount.open("a"):
        opens_with(mount, second)
        assert error_of_open(mount) == "EIO"
        for flags in (0, FOPEN_KEEP_CACHE, FOPEN_DIRECT_IO, FOPEN_PASSTHROUGH | FOPEN_KEEP_CACHE):
            opens_with(mount, number, flags)
            mount.clear()
            assert error_of_open(mount) == "EIO"
            # What the server has opened is released.
            assert mount.sent[-1] == "RELEASE"
        opens_with(mount, number)
        assert error_of_open(mount) == ""
    opens_with(mount, 0, 0)
    with mount.open("a"):
        opens_with(mount, number)
        assert error_of_open(mount) == "EIO"
    opens_with(mount, second)
    assert error_of_open(mount) == ""


def test_direct_files_ask_the_server() -> None:
    mount, backing = mounted(), File()
    number = mount.superblock.backing.open(backing)
    opens_with(mount, number, FOPEN_PASSTHROUGH | FOPEN_DIRECT_IO)
    with mount.open("a") as file:
        with pytest.raises(OSError, match="not implemented"):
            file.read(4)
        assert "READ" in mount.sent
        assert file.backing_descriptor is None
        opens_with(mount, number)
        with mount.open("a") as other:
            assert other.read() == b"backing"


@pytest.mark.parametrize(
    ("flags", "depth"),
    [
        (0, 1),
        (FUSE_PASSTHROUGH, 0),
        (FUSE_PASSTHROUGH, 3),
        (FUSE_PASSTHROUGH | FUSE_WRITEBACK_CACHE, 1),
    ],
)
def test_it_has_to_be_agreed_on(flags: int, depth: int) -> None:
    mount = mounted(flags, depth)
    assert not mount.superblock.has(FUSE_PASSTHROUGH)
    opens_with(mount, mount.superblock.backing.open(File()))
    assert error_of_open(mount) == "EIO"


def test_each_open_has_its_own() -> None:
    mount, backing = mounted(), File()
    opens_with(mount, mount.superblock.backing.open(backing))
    with mount.open("a"):
        pass
    (opened,) = backing.reopens
    assert isinstance(opened, File)
    assert closed(opened) == 1
    assert closed(backing) == 0
    backing.reopens.append(PermissionError(errno.EACCES, "not for the server"))
    assert error_of_open(mount) == "EIO"
    opens_with(mount, 0, 0)  # nothing has the backing file any more
    assert error_of_open(mount) == ""


def test_a_descriptor_that_is_only_read_may_be_written_by_another_open(tmp_path: Path) -> None:
    mount, path = mounted(), tmp_path / "backing"
    path.write_bytes(b"backing")
    file = DescriptorFile(os.open(path, os.O_RDONLY))
    opens_with(mount, mount.superblock.backing.open(file))
    with mount.open("a", os.O_RDONLY) as first, mount.open("a", os.O_WRONLY) as second:
        assert second.pwrite(b"BACK", 0) == 4
        assert first.read() == b"BACKing"
    mount.superblock.connection.abort()  # closes the descriptor


def test_what_is_agreed_on_satisfies_the_protocol() -> None:
    file: BackingFile = File()
    assert file.read(1, 0)


def test_descriptors_are_backing_files(tmp_path: Path) -> None:
    path = tmp_path / "backing"
    path.write_bytes(b"abc")
    file = DescriptorFile(os.open(path, os.O_RDWR))
    assert file.read(10, 1) == b"bc"
    assert file.write(b"X", 1, os.O_SYNC) == (1, 2)
    assert file.write(b"end", None, os.O_DSYNC) == (3, 6)
    assert path.read_bytes() == b"aXcend"
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fileno())
