"""examples/archive.py on damaged archives: refused in one line, or EIO for what is damaged.

Without a mount: these are many.
"""

from __future__ import annotations

import errno
import io
import os
import random
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recuse.cli.filesystem_spec import load_filesystem
from recuse.cli.spec import SpecError
from recuse.testing import TestMount

from .conftest import EXAMPLES

CONTENT = random.Random(5).randbytes(64) * 16
KINDS = ["zip", "gnu", "pax", "gz", "bz2", "xz"]
TOLD = {errno.EIO, errno.EACCES, errno.EOPNOTSUPP}
"""Damaged, encrypted (or so it says), or packed in a way that nobody knows (or so it says)."""
MOST = 1 << 20
"""A file that says to be longer is not read here."""


def pack(kind: str) -> bytes:
    packed = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(3):
                archive.writestr(f"d/{number}", CONTENT)
            archive.writestr(zipfile.ZipInfo("stored"), CONTENT)
            link = zipfile.ZipInfo("link")
            link.create_system, link.external_attr = 3, 0o120777 << 16
            archive.writestr(link, "d/1")
        return packed.getvalue()
    form = tarfile.GNU_FORMAT if kind == "gnu" else tarfile.PAX_FORMAT
    mode = f"w:{'' if kind in ('gnu', 'pax') else kind}"
    with tarfile.open(fileobj=packed, mode=mode, format=form) as tar:  # type: ignore[call-overload]
        for name in ("d/0", "d/" + "long" * 40, "d/2"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(CONTENT), 1.5
            tar.addfile(info, io.BytesIO(CONTENT))
        for kind_, name in ((tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "other")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind_, "d/0"
            tar.addfile(info)
    return packed.getvalue()


PACKED = {kind: pack(kind) for kind in KINDS}


def use(mount: TestMount, directory: str = ".") -> Iterator[bytes]:
    """Look at everything; give what files contain."""
    for name in mount.listdir(directory):
        path = f"{directory}/{name}"
        found = mount.lstat(path)
        try:
            if stat.S_ISDIR(found.st_mode):
                yield from use(mount, path)
            elif stat.S_ISLNK(found.st_mode):
                mount.readlink(path)
            elif stat.S_ISREG(found.st_mode) and found.st_size <= MOST:
                content = mount.read_bytes(path)
                assert len(content) == found.st_size
                yield content
        except OSError as error:
            if error.errno not in TOLD:
                raise


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(PACKED[kind])
    with TestMount(load_filesystem(f"{EXAMPLES}/archive.py,path={tmp_path}/a")) as mount:
        assert list(use(mount)) == [CONTENT] * 4


def test_a_member_before_the_beginning(tmp_path: Path) -> None:
    content = bytearray(PACKED["zip"])
    content[-6] += 10  # where the directory is supposed to be: then the zip begins before the file
    (tmp_path / "a").write_bytes(content)
    with (
        TestMount(load_filesystem(f"{EXAMPLES}/archive.py,path={tmp_path}/a")) as mount,
        pytest.raises(OSError, match=os.strerror(errno.EIO)),
    ):
        mount.read_bytes("d/0")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(PACKED[kind])
    byte = st.sampled_from([0, 1, 0x80, 0xFF, *b"07-"]) | st.integers(0, 255)
    change = st.tuples(st.integers(0, len(content) - 1), st.binary(max_size=8) | byte)
    for place, new in data.draw(st.lists(change, min_size=1, max_size=4)):
        if isinstance(new, int):
            content[place : place + 1] = bytes([new])
        else:
            content[place:place] = new
    del content[data.draw(st.just(len(content)) | st.integers(0, len(content))) :]
    (tmp_path / "a").write_bytes(content)
    refused = ""
    try:
        filesystem = load_filesystem(f"{EXAMPLES}/archive.py,path={tmp_path}/a")
    except SpecError as error:
        refused = str(error)
    if refused:
        assert refused.startswith(f"{EXAMPLES}/archive.py: {tmp_path}/a: ")
        assert "\n" not in refused
    else:
        with TestMount(filesystem) as mount:
            for _ in use(mount):
                pass
