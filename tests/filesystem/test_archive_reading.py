"""examples/archive.py: reads in any order, and by several programs at once."""

from __future__ import annotations

import io
import os
import random
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recuse import Mount

from .archives import LARGE, archive, member, tar_of
from .shell import shell

pytestmark = pytest.mark.usefixtures("mounts")


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


@pytest.mark.parametrize(("kind", "count"), [("gz", 3), ("bz2", 2), ("xz", 2)])
def test_reading_on_does_not_begin_again(
    tmp_path: Path, directory: Path, begun: list[str], kind: str, count: int
) -> None:
    """Even though the kernel reads ahead, in parts that arrive in any order."""
    members = [member(f"{number:02}") for number in range(count)]
    (tmp_path / "a").write_bytes(tar_of(*members, content=LARGE, mode=f"w:{kind}"))
    with Mount(archive(tmp_path / "a"), directory):
        assert shell(directory, "cat * | sha256sum") == shell(
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
