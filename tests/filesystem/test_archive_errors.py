"""examples/archive.py: archives that cannot be mounted, and members that cannot be read."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import random
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from recuse import Mount
from recuse.cli.spec import SpecError
from tests.conftest import Needs

from .archives import LARGE, SIZE, SPEC, archive, end, lacks, member, tar_of
from .conftest import EXAMPLES
from .shell import shell

pytestmark = pytest.mark.usefixtures("mounts")

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_encrypted_members(
    tmp_path: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as packed:
        packed.writestr("secret", b"text")
        packed.writestr("open", b"text")
    content = bytearray((tmp_path / "plain.zip").read_bytes())
    # The flag of the first member, in its own header and in the directory.
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with Mount(archive(tmp_path / "a.zip"), directory):
        assert (directory / "open").read_bytes() == b"text"
        with pytest.raises(PermissionError):
            (directory / "secret").read_bytes()
    assert lacks(caplog) == ["'secret': encrypted, so no program can read it (1 of 1)"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_damaged_member(
    tmp_path: Path, directory: Path, method: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as packed:
        for name in ("before", "damaged", "after"):
            packed.writestr(name, random.Random(name).randbytes(SIZE))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with Mount(archive(path), directory):
        for name in ("before", "after"):
            assert (directory / name).read_bytes() == random.Random(name).randbytes(SIZE)
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                (directory / "damaged").read_bytes()
    (record,) = caplog.records
    assert record.getMessage().startswith("'damaged' is damaged: ")
    assert record.exc_info is None


def test_a_wrong_checksum_after_the_last_byte(tmp_path: Path, directory: Path) -> None:
    """An empty block is between them: nobody needs to unpack that to have all bytes."""
    content = b"text" * (SIZE // 4)
    packer = zlib.compressobj(wbits=-15)
    data = packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH) + packer.flush()
    for wrong in (0, 1):
        with open(tmp_path / "a", "wb") as file, zipfile.ZipFile(file, "w") as packed:
            info = zipfile.ZipInfo("file")
            info.compress_type, info.header_offset = zipfile.ZIP_DEFLATED, 0
            info.file_size, info.compress_size = SIZE, len(data)
            info.CRC = zlib.crc32(content) ^ wrong
            file.write(info.FileHeader() + data)
            end(packed, info)
        with Mount(archive(tmp_path / "a"), directory):
            if not wrong:
                assert (directory / "file").read_bytes() == content
            else:
                with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                    (directory / "file").read_bytes()


def test_a_damaged_header_of_a_zip_member(tmp_path: Path, directory: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("small", b"text")
        packed.writestr("large", LARGE)
    content = bytearray(path.read_bytes())
    content[0:4] = b"xxxx"
    second = content.index(b"PK\3\4", 1)
    content[second : second + 4] = b"xxxx"
    path.write_bytes(content)
    with Mount(archive(path), directory):
        for name in ("small", "large"):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                os.close(os.open(directory / name, os.O_RDONLY))


def test_a_method_that_python_does_not_know(tmp_path: Path, directory: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("file", b"text")
    content = bytearray(path.read_bytes())
    content[8] = content[content.index(b"PK\1\2") + 10] = 9
    path.write_bytes(content)
    with Mount(archive(path), directory), pytest.raises(OSError, match="not supported"):
        (directory / "file").read_bytes()


def test_an_archive_that_is_truncated_while_it_is_mounted(tmp_path: Path, directory: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_of(member("file"), content=LARGE))
    with Mount(archive(path), directory):
        os.truncate(path, 1 << 20)
        assert (directory / "file").stat().st_size == len(LARGE)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (directory / "file").read_bytes()


PLAIN = tar_of(member("a"), member("b"), content=bytes(2000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "is neither a zip nor a tar, or is damaged"),
        (b"some text\n" * 100, "is neither a zip nor a tar, or is damaged"),
        (PLAIN[:400], "is neither a zip nor a tar, or is damaged"),
        (PLAIN[:4000], "unexpected end of data"),
        (PLAIN[:2700], "truncated header"),
        (PLAIN[:2600] + b"\xff" + PLAIN[2601:], "bad checksum"),
        (gzip.compress(PLAIN)[:60], "Compressed file ended before the end-of-stream marker"),
        (gzip.compress(PLAIN)[:-8] + bytes(8), "CRC check failed"),
        (bz2.compress(PLAIN)[:60], "Compressed file ended before the end-of-stream marker"),
        (lzma.compress(PLAIN)[:60], "Compressed file ended before the end-of-stream marker"),
        (gzip.compress(b"no archive"), "truncated header"),
        (b"PK\3\4" + bytes(100), "is neither a zip nor a tar, or is damaged"),
        (b"PK\5\6" + bytes(8) + b"\xff" * 8 + bytes(2), "Bad offset for central directory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_mounted(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SpecError) as refused:
        archive(path)
    assert str(refused.value).startswith(f"{EXAMPLES}/archive.py: {path}: {message}")
    assert "\n" not in str(refused.value)


def test_a_directory_is_no_archive(command: Command, directory: Path) -> None:
    done = command("mount", f"{SPEC}{directory}", str(directory))
    assert done.stderr == f"recuse: {EXAMPLES}/archive.py: {directory}: Is a directory\n"


def test_zstd(tmp_path: Path, directory: Path, command: Command, needs: Needs) -> None:
    """It depends on Python."""
    needs("zstd")
    path = tmp_path / "a.tar.zst"
    (tmp_path / "a.tar").write_bytes(tar_of(member("file"), content=LARGE))
    shell(tmp_path, "zstd -q a.tar")
    if sys.version_info >= (3, 14):
        with Mount(archive(path), directory):
            assert (directory / "file").read_bytes() == LARGE
    else:
        done = command("mount", f"{SPEC}{path}", str(directory))
        assert done.returncode == 1
        assert done.stderr.endswith("zstd needs Python 3.14\n")
