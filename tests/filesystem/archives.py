"""Archives that the tests make, and examples/archive.py, which shows them."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from recuse import Filesystem
from recuse.cli.filesystem_spec import load_filesystem

from .conftest import EXAMPLES

SPEC = f"{EXAMPLES}/archive.py,path="
SECONDS = 1_600_000_000
SIZE = 1 << 18
"""A multiple of all blocks: no read goes past the end by itself."""
_random = random.Random(12)
LARGE = b"".join(_random.randbytes(61) * 16 for _ in range(3300))[: 3 << 20]
"""It goes beyond what is kept of a stream. No part is like the next, but all are quickly packed."""


def archive(path: Path) -> Filesystem:
    filesystem = load_filesystem(f"{SPEC}{path}")
    assert isinstance(filesystem, Filesystem)
    return filesystem


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


def lacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition(": ")[2] for record in caplog.records]
