"""examples/archive.py: real programs find on the mount what they find in the unpacked archive."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from recuse import Mount
from tests.conftest import Needs

from .archives import LARGE, SECONDS, archive, end, lacks, member, tar_of
from .conftest import PATIENCE_S
from .shell import shell

pytestmark = pytest.mark.usefixtures("mounts")


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
        assert shell(shown, script) == shell(tree, script)
    subprocess.run(["diff", "-r", "--no-dereference", shown, tree], check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_tar(tree: Path, directory: Path, needs: Needs, kind: str) -> None:
    for program, package in (("bzip2", "bzip2"), ("xz", "xz-utils")):
        needs(program, package)
    path = tree.parent / f"a.{kind}"
    shell(tree, f"tar -caf {path} .")
    with Mount(archive(path), directory):
        same(directory, tree)
        assert (directory / "d/other").samefile(directory / "one")
        assert shell(directory, f"tar -df {path}") == ""


def test_special_files(tmp_path: Path, directory: Path) -> None:
    null = member("null", tarfile.CHRTYPE)
    null.devmajor, null.devminor = 1, 3
    (tmp_path / "a.tar").write_bytes(tar_of(null, member("fifo", tarfile.FIFOTYPE)))
    with Mount(archive(tmp_path / "a.tar"), directory):
        assert shell(directory, "stat -c '%F %A %t %T' null fifo").splitlines() == [
            "character special file crw-r--r-- 1 3",
            "fifo prw-r--r-- 0 0",
        ]


@pytest.mark.parametrize("option", ["-0", "-6"])
def test_a_zip(tree: Path, directory: Path, needs: Needs, option: str) -> None:
    needs("zip")
    path = tree.parent / "a.zip"
    shell(tree, f"zip -q -y -r {option} {path} .")
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
        assert shell(directory, "find . -mindepth 1 -printf '%P %M\n' | sort").splitlines() == [
            "d drwxr-xr-x",
            "d/file -rw-r--r--",
            "deep drwxr-xr-x",
            "deep/er drwxr-xr-x",
            "deep/er/file -rw-r--r--",
            "e drwxr-xr-x",
        ]
        assert shell(directory, "date -r d/file '+%F %T'") == "2020-09-13 12:26:40\n"


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
        for length in (4095, 4096, 5000, 0):
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
        "'link 4096': too long a target of a symbolic link, or none (1 of 3)",
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
        for length in (4095, 5000, 0):
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
        "'link 5000': too long a target of a symbolic link, or none (1 of 2)",
    ]


def test_holes(tmp_path: Path, directory: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shell(
        source,
        "truncate -s 5G holes; printf data | dd of=holes bs=1 seek=4G conv=notrunc status=none",
    )
    shell(
        source, "printf start | dd of=holes bs=1 conv=notrunc status=none; truncate -s 1M nothing"
    )
    for form in ("gnu", "posix"):
        shell(source, f"tar --format={form} -Szcf ../a.tar.gz .")
        with Mount(archive(tmp_path / "a.tar.gz"), directory):
            assert shell(
                directory, "head -c 5 holes; tail -c +$((1 + (4 << 30))) holes | head -c 4"
            ) == ("startdata")
            assert int(shell(directory, "stat -c %b holes")) <= 16
            assert int(shell(directory, "stat -c %b nothing")) == 0
            shell(
                directory, f"cp --sparse=auto holes {tmp_path}/copy; cmp nothing {source}/nothing"
            )
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
            assert shell(directory, f"tail -c +{offset + 1} large | head -c 4") == "here"
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
        assert shell(directory, "stat -f -c '%S %b %f' .") == (
            f"512 {(tmp_path / 'a.tar').stat().st_blocks} 0\n"
        )


@pytest.mark.timeout(600)
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
        assert shell(directory, "find . -type f -size +0 | wc -l") == "100000\n"
        content = shell(directory, "cat d99/*")
        assert content == ("".join(names[-1000:]) if kind == "zip" else "text\n" * 1000)
