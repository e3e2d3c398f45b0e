"""A device whose memory is mapped, and a program that maps it: for the tests of mmap."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from recuse import Area, Device, File, Mapping, MmapRequest, OpenRequest
from recuse.sandbox import Sandbox

from ...patience import PATIENCE_S

PAGE = 4096

READ, RW = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
SHARED, PRIVATE = mmap.MAP_SHARED, mmap.MAP_PRIVATE
FIXED, POPULATE, LOCKED = 0x10, 0x8000, 0x2000
MAYMOVE = 1


class SharedFile(File):
    """Maps the device's area."""

    device: Shared

    def mmap(self, request: MmapRequest) -> Area:
        self.device.note("mmap", request.unique)
        if self.device.refuse_mmap:
            raise OSError(self.device.refuse_mmap, "no")
        return self.device.area or Area(request.size)

    def mapped(self, mapping: Mapping) -> None:
        self.device.note("mapped", mapping.unique)
        self.device.mappings.append(mapping)
        if self.device.fill:
            mapping.area[:1] = self.device.fill
        if self.device.refuse_commit:
            raise OSError(self.device.refuse_commit, "no")

    def unmapped(self, mapping: Mapping) -> None:
        self.device.note("unmapped", mapping.unique)

    def release(self) -> None:
        self.device.note("release", 0)


class Shared(Device):
    """All map one area; without one, each its own."""

    name = "area"
    file: type[SharedFile] = SharedFile

    def __init__(self, area: Area | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.area = area
        self.fill = b""
        self.refuse_mmap = self.refuse_commit = 0
        self.mappings: list[Mapping] = []
        self.log: list[tuple[str, int]] = []
        self.changed = threading.Condition()

    def open(self, request: OpenRequest) -> File:
        return self.file()

    def note(self, what: str, unique: int) -> None:
        with self.changed:
            self.log.append((what, unique))
            self.changed.notify_all()

    def count(self, what: str) -> int:
        with self.changed:
            return sum(each == what for each, _ in self.log)

    def wait(self, what: str, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.count_held(what) >= number, PATIENCE_S)

    def count_held(self, what: str) -> int:
        return sum(each == what for each, _ in self.log)


@contextmanager
def checked() -> Iterator[Shared]:
    """A device of 16 pages; in the end every mapping has ended once."""
    device = Shared(Area(16 * PAGE))
    yield device
    assert device.area is not None
    device.area.close()
    mapped = {unique for what, unique in device.log if what == "mapped"}
    unmapped = [unique for what, unique in device.log if what == "unmapped"]
    assert len(unmapped) == len(set(unmapped))
    assert mapped <= set(unmapped)
    device.mappings.clear()


def run(
    sandbox: Sandbox | None,
    program: str,
    commands: str,
    *,
    path: str = "/dev/area",
    flags: int = os.O_RDWR,
    pages: int = 16,
) -> str:
    """Run the client's commands on the area, or without a sandbox on a memfd."""
    arguments = [program, path if sandbox else "memfd", str(flags), str(pages)]
    return run_client(sandbox, arguments, commands)


def run_client(sandbox: Sandbox | None, arguments: list[str], commands: str) -> str:
    """Run the client with some commands; return what it prints."""
    start: Any = subprocess.run if sandbox is None else sandbox.run
    done = start(
        arguments,
        input=commands,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    output: str = done.stdout
    return output
