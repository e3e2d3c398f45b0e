"""Files of a filesystem that are read and written by a file of the machine (passthrough)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from recuse.sandbox import Sandbox

from ..conftest import Clients, client_in
from .conftest import example

CALLS = """
os.chdir(args[0])
fd = os.open("f", os.O_CREAT | os.O_RDWR, 0o644)
print(os.write(fd, b"0123456789"), os.pread(fd, 4, 3), os.pwritev(fd, [b"a", b"bc"], 2))
two = os.open("f", os.O_RDONLY)
print(os.read(two, 5), attempt(os.write, two, b"x"), os.read(two, 99), os.read(two, 1))
app = os.open("f", os.O_WRONLY | os.O_APPEND)
print(os.write(app, b"end"), os.lseek(app, 0, 1), os.read(two, 9), attempt(os.read, app, 1))
print(os.fstat(two).st_size, os.lseek(two, -2, 2), os.read(two, 9), os.lseek(fd, 0, 1))
print(os.ftruncate(fd, 4), os.pread(two, 9, 0), os.truncate("f", 6), os.pread(two, 9, 0))
print(open("f", "w").write("new"), os.pread(two, 9, 0), os.stat("f").st_size)
os.rename("f", "g"); os.unlink("g"); print(os.pwrite(fd, b"gone", 1), os.pread(two, 9, 0))
os.close(fd); os.close(app); os.close(two); print(attempt(open, "f"))
only = os.open("w", os.O_CREAT | os.O_WRONLY, 0o200); os.write(only, b"secret")
print(os.pread(os.open("w", os.O_RDWR), 9, 0), mmap.mmap(os.open("w", 0), 0, prot=1, flags=2)[:])
open("big", "wb").write(bytes(range(256)) * 9999); big = open("big", "rb").read()
print(big == bytes(range(256)) * 9999, os.system("cp big copy; cmp big copy; wc -c <copy"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="opens a file that only root may open")
def test_they_are_like_native_ones(here: Path, clients: Clients) -> None:
    module = example("mirrorfs")
    asked: list[str] = []

    class Opened(module.MirrorOpenFile):  # type: ignore[misc, name-defined]
        def read(self, size: int, offset: int) -> bytes:
            asked.append("read")
            return bytes(super().read(size, offset))

        def write(self, data: bytes, offset: int) -> int:
            asked.append("write")
            return int(super().write(data, offset))

    for name in ("native", "source"):
        (here / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MirrorOpenFile", Opened)
        with Sandbox(mounts={here / "mnt": module.Mirror(str(here / "source"))}) as sandbox:
            printed = client_in(sandbox)(CALLS, here / "mnt")
    expected = clients(None)(CALLS, here / "native")
    assert "Traceback" not in expected
    assert printed == expected
    assert asked == []
    assert sorted(os.listdir(here / "source")) == ["big", "copy", "w"]
