"""Whose an area is: the device's, a file's or a mapping's, as its author chooses."""

import sys

import numpy as np
import pytest

from recuse import Area, Device, File, MmapRequest, OpenRequest
from recuse.sandbox import Sandbox

from ..patience import PATIENCE_S

PROGRAM = """
import mmap, os
files = [os.open("/dev/owner", os.O_RDWR) for _ in range(2)]
maps = [mmap.mmap(file, 4096) for file in files for _ in range(2)]
print(*(memory[0] for memory in maps))
maps[0][1] = 7
print(*(memory[1] for memory in maps))
"""


def new_area() -> Area:
    """An area that numpy has filled."""
    area = Area(4096)
    np.frombuffer(area.buffer, np.uint8)[:] = 3
    return area


class Owner(Device):
    """Has one, and lets `kept` choose."""

    name = "owner"

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.kept = kept
        self.area = new_area()

    def open(self, request: OpenRequest) -> File:
        return OwnerFile()


class OwnerFile(File):
    device: Owner

    def __init__(self) -> None:
        self.area = new_area()

    def mmap(self, request: MmapRequest) -> Area:
        if self.device.kept == "mapping":
            return new_area()
        return self.device.area if self.device.kept == "device" else self.area


@pytest.mark.parametrize(
    ("kept", "seen"), [("device", "7 7 7 7"), ("file", "7 7 3 3"), ("mapping", "7 3 3 3")]
)
def test_who_shares_an_area(kept: str, seen: str) -> None:
    with Sandbox(Owner(kept)) as sandbox:
        argv = [sys.executable, "-c", PROGRAM]
        done = sandbox.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.stdout, done.stderr) == (f"3 3 3 3\n{seen}\n", "")
