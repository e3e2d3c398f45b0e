"""examples/archive.py: real programs find on the mount what they find in the unpacked archive."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recuse import Filesystem, Mount
from recuse.cli.filesystem_spec import load_filesystem
from tests.conftest import Needs

from .conftest import EXAMPLES, PATIENCE_S

pytestmark = pytest.mark.usefixtures("mounts")

Command = Callable[..., subprocess.CompletedProcess[str]]

SPEC = f"{EXAMPLES}/archive.py,path="
SECONDS = 1_600_000_000
SIZE = 1 << 18
"""A multiple of all blocks: no read goes past the end by itself."""
LARGE = random.Random(12).randbytes(1 << 20) * 3
"""It goes beyond what is kept of a stream."""


def archive(path: Path) -> Filesystem:
    filesystem = load_filesystem(f"{SPEC}{path}")
    assert isinstance(filesystem, Filesystem)
    return filesystem


def sh(directory: Path, script: str) -> str:
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"},
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def tar_of(*members: tarfile.TarInfo, content: bytes = b"text\n", mode: str = "w") -> bytes:
    """An archive; the regular files have all the same content."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
        for member in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def end(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Put a member into the directory whose content was written to the file itself."""
    assert packed.fp is not None
    packed.filelist.append(info)
    vars(packed).update(start_dir=packed.fp.tell(), _didModify=True)


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mtime = kind, linkname, SECONDS
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return info


# What is shown


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a bit of everything."""
    top = tmp_path / "tree"
    (top / "empty").mkdir(parents=True)
    (top / "d/e/f").mkdir(parents=True)
    (top / "d/large").write_bytes(LARGE)
    (top / "d/words").write_text("hello\nneedle\n" * 5000)
    (top / "d/none").touch()
    (top / "d/e/f/naïve ☃").write_bytes(os.fsencode("snow\n"))
    (top / "d/e/run").write_text("#!/bin/sh\necho $0 $1\n")
    (top / "d/link").symlink_to("words")
    (top / "dangling").symlink_to("../nothing/at/all")
    (top / "one").write_text("one\n")
    os.link(top / "one", top / "d/other")
    (top / "d/e/run").chmod(0o755)
    (top / "one").chmod(0o640)
    (top / "empty").chmod(0o700)
    for number, path in enumerate(sorted(top.rglob("*"), reverse=True)):
        os.utime(path, (SECONDS + number, SECONDS + number), follow_symlinks=False)
    return top


def same(shown: Path, tree: Path, links: str = "%n") -> None:
    """Compare what programs find; sizes and numbers of links only of what is no directory."""
    form = rf"'%P %y %m %T@ %l\n' \! -type d -printf '%P {links} %s\n'"
    for script in (
        rf"find . -mindepth 1 -printf {form} | sort",
        "grep -rc needle . | sort; find . -type f -exec sha256sum {} + | sort",
        "d/e/run 1; ls -1 d; tail -n 1 d/link",
    ):
        assert sh(shown, script) == sh(tree, script)
    subprocess.run(["diff", "-r", "--no-dereference", shown, tree], check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_tar(tree: Path, directory: Path, needs: Needs, kind: str) -> None:
    for program, package in (("bzip2", "bzip2"), ("xz", "xz-utils")):
        needs(program, package)
    path = tree.parent / f"a.{kind}"
    sh(tree, f"tar -caf {path} .")
    with Mount(archive(path), directory):
        same(directory, tree)
        assert (directory / "d/other").samefile(directory / "one")
        assert sh(directory, f"tar -df {path}") == ""


def test_special_files(tmp_path: Path, directory: Path) -> None:
    null = member("null", tarfile.CHRTYPE)
    null.devmajor, null.devminor = 1, 3
    (tmp_path / "a.tar").write_bytes(tar_of(null, member("fifo", tarfile.FIFOTYPE)))
    with Mount(archive(tmp_path / "a.tar"), directory):
        assert sh(directory, "stat -c '%F %A %t %T' null fifo").splitlines() == [
            "character special file crw-r--r-- 1 3",
            "fifo prw-r--r-- 0 0",
        ]


@pytest.mark.parametrize("option", ["-0", "-6"])
def test_a_zip(tree: Path, directory: Path, needs: Needs, option: str) -> None:
    needs("zip")
    path = tree.parent / "a.zip"
    sh(tree, f"zip -q -y -r {option} {path} .")
    with Mount(archive(path), directory):
        same(directory, tree, links="1")


def test_a_zip_that_no_unix_made(tmp_path: Path, directory: Path) -> None:
    """There are no modes, times of the local clock, and directories with and without a slash."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name, bits in (("d", 0x10), ("d/file", 0x20), ("e/", 0x10), ("deep/er/file", 1)):
            info = zipfile.ZipInfo(name, (2020, 9, 13, 12, 26, 40))
            info.create_system, info.external_attr = 0, bits
            packed.writestr(info, b"" if bits == 0x10 else b"text")
            # `writestr` has an own opinion about it.
            info.external_attr = bits
    with Mount(archive(tmp_path / "a.zip"), directory):
        assert sh(directory, "find . -mindepth 1 -printf '%P %M\n' | sort").splitlines() == [
            "d drwxr-xr-x",
            "d/file -rw-r--r--",
            "deep drwxr-xr-x",
            "deep/er drwxr-xr-x",
            "deep/er/file -rw-r--r--",
            "e drwxr-xr-x",
        ]
        assert sh(directory, "date -r d/file '+%F %T'") == "2020-09-13 12:26:40\n"


def test_times_to_the_nanosecond(tmp_path: Path, directory: Path) -> None:
    new, old = member("new"), member("old")
    new.pax_headers, old.mtime = {"mtime": "1600000000.123456789"}, -1.5
    (tmp_path / "a.tar").write_bytes(tar_of(new, old))
    with Mount(archive(tmp_path / "a.tar"), directory):
        assert (directory / "new").stat().st_mtime_ns == 1_600_000_000_123_456_789
        assert (directory / "old").stat().st_mtime_ns == -1_500_000_000


def test_odd_names_and_duplicates(
    tmp_path: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (name, kind, linkname) in enumerate(
            [
                ("../up/./a", tarfile.REGTYPE, ""),
                ("/abs//b", tarfile.REGTYPE, ""),
                ("twice", tarfile.REGTYPE, ""),
                ("linked", tarfile.LNKTYPE, "./twice"),
                ("twice", tarfile.REGTYPE, ""),
                ("file", tarfile.REGTYPE, ""),
                ("file/in/it", tarfile.REGTYPE, ""),
                ("link", tarfile.SYMTYPE, "/etc"),
                ("link/passwd", tarfile.REGTYPE, ""),
                ("again", tarfile.DIRTYPE, ""),
                ("again/x", tarfile.REGTYPE, ""),
                ("again/", tarfile.DIRTYPE, ""),
                ("../..", tarfile.REGTYPE, ""),
                ("none", tarfile.LNKTYPE, "nowhere"),
                ("circle/c", tarfile.LNKTYPE, "circle"),
                ("new\nline", tarfile.REGTYPE, ""),
                ("\udcff\udcfe", tarfile.REGTYPE, ""),
            ]
        ):
            info = member(name, kind, linkname)
            content = b"%d" % number
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    with Mount(archive(tmp_path / "a.tar"), directory):
        found = {
            os.path.relpath(os.path.join(top, name), directory): (Path(top) / name).read_text()
            for top, _, names in os.walk(directory)
            for name in names
        }
        assert found == {
            "up/a": "0",
            "abs/b": "1",
            "linked": "2",
            "twice": "4",
            "file/in/it": "6",
            "link/passwd": "8",
            "again/x": "10",
            "new\nline": "15",
            "\udcff\udcfe": "16",
        }
        assert (directory / "linked").stat().st_nlink == 1
    assert lacks(caplog) == [
        "'../..': no name for a file (1 of 1)",
        "'none': a hard link to nothing (1 of 2)",
    ]


def lacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition(": ")[2] for record in caplog.records]


def test_tar_members_that_linux_cannot_have(
    tmp_path: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each costs what is odd of it, not the archive or its directory."""
    times = ["nan", "inf", "-inf", "text", "1e999999999", "1e30", "-1e30"]
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, mtime in enumerate(times):
            info = member(f"time {number}")
            info.pax_headers = {"mtime": mtime}
            tar.addfile(info)
        for number, (key, owner) in enumerate(
            [("uid", -7), ("gid", -7), ("uid", (1 << 32) - 1), ("gid", 1 << 40)]
        ):
            info = member(f"owner {number}")
            info.pax_headers = {key: str(owner)}
            tar.addfile(info)
        for major, minor in ((1 << 12, 0), (1, 1 << 20), (1 << 40, 0), (-1, 0)):
            for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
                info = member(f"{kind!r} {major} {minor}", kind)
                info.devmajor, info.devminor = major, minor
                packed = bytearray(info.tobuf(tarfile.GNU_FORMAT))
                for place, value in ((329, major), (337, minor)):
                    packed[place : place + 8] = ((value & (1 << 64) - 1) | 1 << 63).to_bytes(8)
                packed[148:156] = b"%06o\0 " % (sum(packed[:148]) + sum(packed[156:512]) + 256)
                assert tar.fileobj is not None
                tar.fileobj.write(bytes(packed))
                tar.offset += len(packed)
        for length in (4095, 4096, 5000):
            tar.addfile(member(f"link {length}", tarfile.SYMTYPE, "x" * length))
        for length in (255, 256, 2000):
            tar.addfile(member("y" * length))
            tar.addfile(member("z" * length + "/in it"))
    with Mount(archive(tmp_path / "a.tar"), directory):
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(directory)}
        names = [f"time {number}" for number in range(len(times))]
        owned = [f"owner {number}" for number in range(4)]
        fifos = [name for name in found if stat.S_ISFIFO(found[name].st_mode)]
        assert len(fifos) == 4
        assert sorted(found) == sorted([*names, *owned, *fifos, "link 4095", "y" * 255, "z" * 255])
        # Without a time, as what has none: the directory itself.
        assert {found[name].st_mtime_ns for name in names} == {directory.stat().st_mtime_ns}
        assert {found[name].st_uid for name in owned} == {os.geteuid()}
        assert {found[name].st_gid for name in owned} == {os.getegid()}
        assert os.readlink(directory / "link 4095") == "x" * 4095
    expected = [
        "'time 0': no such time (1 of 7)",
        "\"b'3' 4096 0\": no such device number (1 of 8)",
        "'link 4096': too long a target of a symbolic link (1 of 2)",
        f"{'y' * 256!r}: too long a name (1 of 4)",
    ]
    if os.geteuid() == 0:
        expected.insert(1, "'owner 0': no such owner (1 of 4)")
    assert lacks(caplog) == expected


def test_zip_members_that_linux_cannot_have(
    tmp_path: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("x", "d/", "good"):
            packed.writestr(name, "hello" if name != "d/" else "")
        for length in (4095, 5000):
            link = zipfile.ZipInfo(f"link {length}")
            link.create_system, link.external_attr = 3, 0o120777 << 16
            packed.writestr(link, "x" * length)
        packed.filelist[0].filename = packed.filelist[0].orig_filename = ""
    with Mount(archive(tmp_path / "a.zip"), directory):
        assert sorted(os.listdir(directory)) == ["d", "good", "link 4095"]
        assert (directory / "d").is_dir()
        assert (directory / "good").read_text() == "hello"
    assert lacks(caplog) == [
        "'': no name for a file (1 of 1)",
        "'link 5000': too long a target of a symbolic link (1 of 1)",
    ]


def test_holes(tmp_path: Path, directory: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    sh(
        source,
        "truncate -s 5G holes; printf data | dd of=holes bs=1 seek=4G conv=notrunc status=none",
    )
    sh(source, "printf start | dd of=holes bs=1 conv=notrunc status=none; truncate -s 1M nothing")
    for form in ("gnu", "posix"):
        sh(source, f"tar --format={form} -Szcf ../a.tar.gz .")
        with Mount(archive(tmp_path / "a.tar.gz"), directory):
            assert sh(
                directory, "head -c 5 holes; tail -c +$((1 + (4 << 30))) holes | head -c 4"
            ) == ("startdata")
            assert int(sh(directory, "stat -c %b holes")) <= 16
            assert int(sh(directory, "stat -c %b nothing")) == 0
            sh(directory, f"cp --sparse=auto holes {tmp_path}/copy; cmp nothing {source}/nothing")
            with open(directory / "holes", "rb", buffering=0) as file:
                data = os.lseek(file.fileno(), 1 << 20, os.SEEK_DATA)
                assert 4 << 30 >= data > (4 << 30) - (1 << 16)
                assert os.lseek(file.fileno(), 1 << 20, os.SEEK_HOLE) == 1 << 20
                hole = os.lseek(file.fileno(), data, os.SEEK_HOLE)
                assert 4 << 30 < hole <= (4 << 30) + (1 << 16)
                for offset, whence in ((hole, os.SEEK_DATA), (5 << 30, os.SEEK_HOLE)):
                    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
                        os.lseek(file.fileno(), offset, whence)
        assert (tmp_path / "copy").stat().st_size == 5 << 30
        assert (tmp_path / "copy").stat().st_blocks < 1000
        os.unlink(tmp_path / "copy")


def test_a_stored_member_of_5_gib(tmp_path: Path, directory: Path) -> None:
    size = 5 << 30
    with open(tmp_path / "a.zip", "wb") as file, zipfile.ZipFile(file, "w") as packed:
        info = zipfile.ZipInfo("large")
        info.file_size, info.compress_size = size, size
        info.CRC = info.header_offset = 0
        header = info.FileHeader(zip64=True)
        file.write(header)
        for offset in (0, 1 << 32, size - 4):
            file.seek(len(header) + offset)
            file.write(b"here")
        end(packed, info)
    with Mount(archive(tmp_path / "a.zip"), directory):
        assert (directory / "large").stat().st_size == size
        for offset in (0, 1 << 32, size - 4):
            assert sh(directory, f"tail -c +{offset + 1} large | head -c 4") == "here"
        # Its checksum is wrong. To find that out takes reading all of it.


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path, directory: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("inner", b"")
    (tmp_path / "a").write_bytes(tar_of(member("a.zip"), content=inner.getvalue()))
    assert zipfile.is_zipfile(tmp_path / "a")
    with Mount(archive(tmp_path / "a"), directory):
        assert os.listdir(directory) == ["a.zip"]


def test_a_zip_after_a_program(tmp_path: Path, directory: Path) -> None:
    """As archives that unpack themselves are made."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("small", b"text")
        packed.writestr("large", LARGE)
    (tmp_path / "a").write_bytes(b"#!/bin/sh\nexit\n" + inner.getvalue())
    with Mount(archive(tmp_path / "a"), directory):
        assert (directory / "small").read_bytes() == b"text"
        assert (directory / "large").read_bytes() == LARGE


def test_it_is_read_only(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(member("file")))
    with Mount(archive(tmp_path / "a.tar"), directory):
        for change in (
            lambda: (directory / "file").write_text("x"),
            (directory / "new").touch,
            (directory / "file").unlink,
            lambda: (directory / "file").chmod(0o600),
        ):
            with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                change()
        assert sh(directory, "stat -f -c '%S %b %f' .") == (
            f"512 {(tmp_path / 'a.tar').stat().st_blocks} 0\n"
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_100000_members(tmp_path: Path, directory: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    names = [f"d{number // 1000}/f{number}" for number in range(100_000)]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name in names:
                packed.writestr(name, name)
    else:
        path.write_bytes(tar_of(*map(member, names), mode="w:gz"))
    with Mount(archive(path), directory):
        assert sh(directory, "find . -type f -size +0 | wc -l") == "100000\n"
        content = sh(directory, "cat d99/*")
        assert content == ("".join(names[-1000:]) if kind == "zip" else "text\n" * 1000)


# In any order, from many threads


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """How often archives are unpacked from the beginning."""
    names: list[str] = []
    (tmp_path / "first.tar").write_bytes(tar_of(member("file")))
    archive(tmp_path / "first.tar").close()
    compressions = sys.modules["unpack"].COMPRESSIONS

    def counting(opener: Callable[[str], Any]) -> Callable[[str], Any]:
        def begin(path: str) -> Any:
            names.append(path)
            return opener(path)

        return begin

    for magic, opener in list(compressions.items()):
        monkeypatch.setitem(compressions, magic, counting(opener))
    return names


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("begun")
@given(st.lists(st.tuples(st.integers(0, len(LARGE)), st.integers(1, 1 << 20)), max_size=20))
def test_parts_in_any_order(parts: list[tuple[int, int]]) -> None:
    unpack = sys.modules["unpack"]
    begun = 0

    def begin() -> io.BytesIO:
        nonlocal begun
        begun += 1
        return io.BytesIO(LARGE)

    unpacker = unpack.Unpacker(begin)
    furthest = 0
    for offset, size in parts:
        before = begun
        assert unpacker.read(size, offset) == LARGE[offset : offset + size]
        furthest = max(furthest, offset + size)
        # Parts that the kernel has asked for at once are not further apart than that.
        if offset >= furthest - unpack.KEPT:
            assert begun == before
        assert len(unpacker.streams) <= unpack.STREAMS
    unpacker.close()


@pytest.mark.parametrize(("kind", "count"), [("gz", 10), ("bz2", 2), ("xz", 2)])
def test_reading_on_does_not_begin_again(
    tmp_path: Path, directory: Path, begun: list[str], kind: str, count: int
) -> None:
    """Even though the kernel reads ahead, in parts that arrive in any order."""
    members = [member(f"{number:02}") for number in range(count)]
    (tmp_path / "a").write_bytes(tar_of(*members, content=LARGE, mode=f"w:{kind}"))
    with Mount(archive(tmp_path / "a"), directory):
        assert sh(directory, "cat * | sha256sum") == sh(
            directory, f"tar -xOf {tmp_path}/a | sha256sum"
        )
        # To list the members, and to read them.
        assert len(begun) == 2


def test_two_programs_do_not_disturb_each_other(
    tmp_path: Path, directory: Path, begun: list[str]
) -> None:
    members = [member("first"), member("between"), member("second")]
    (tmp_path / "a").write_bytes(tar_of(*members, content=LARGE, mode="w:gz"))
    with (
        Mount(archive(tmp_path / "a"), directory),
        open(directory / "first", "rb", buffering=0) as one,
        open(directory / "second", "rb", buffering=0) as two,
    ):
        for file in (one, two):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for offset in range(0, len(LARGE), 1 << 18):
            for file in (one, two):
                assert os.pread(file.fileno(), 4096, offset) == LARGE[offset : offset + 4096]
        assert len(begun) == 3


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_threads_that_read_here_and_there(tmp_path: Path, directory: Path, kind: str) -> None:
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a", "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("one", LARGE)
            packed.writestr("two", LARGE[::-1])
    else:
        with tarfile.open(tmp_path / "a", "w:gz" if kind == "tar.gz" else "w") as tar:
            for name, content in (("one", LARGE), ("two", LARGE[::-1])):
                info = member(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    def read(number: int) -> None:
        place = random.Random(number)
        expected = LARGE[::-1] if number % 2 else LARGE
        with open(directory / ("two" if number % 2 else "one"), "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(20):
                offset, size = place.randrange(len(LARGE)), place.randrange(1, 300_000)
                found = os.pread(file.fileno(), size, offset)
                assert found == expected[offset : offset + size]

    with Mount(archive(tmp_path / "a"), directory), ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(16)))


# What cannot be read


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
def test_what_cannot_be_mounted(
    command: Command, directory: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a"
    if content is not None:
        path.write_bytes(content)
    done = command("mount", f"{SPEC}{path}", str(directory))
    assert done.returncode == 1
    assert done.stderr.startswith(f"recuse: {EXAMPLES}/archive.py: {path}: {message}")
    assert done.stderr.count("\n") == 1


def test_a_directory_is_no_archive(command: Command, directory: Path) -> None:
    done = command("mount", f"{SPEC}{directory}", str(directory))
    assert done.stderr == f"recuse: {EXAMPLES}/archive.py: {directory}: Is a directory\n"


def test_zstd(tmp_path: Path, directory: Path, command: Command, needs: Needs) -> None:
    """It depends on Python."""
    needs("zstd")
    path = tmp_path / "a.tar.zst"
    (tmp_path / "a.tar").write_bytes(tar_of(member("file"), content=LARGE))
    sh(tmp_path, "zstd -q a.tar")
    if sys.version_info >= (3, 14):
        with Mount(archive(path), directory):
            assert (directory / "file").read_bytes() == LARGE
    else:
        done = command("mount", f"{SPEC}{path}", str(directory))
        assert done.returncode == 1
        assert done.stderr.endswith("zstd needs Python 3.14\n")
