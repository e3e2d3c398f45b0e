"""Devices on a FUSE mount of a kernel that has no passthrough (Linux before 6.9)."""

import subprocess
import sys
from pathlib import Path

import pytest

from recuse import Mount
from recuse.cli.spec import load, parse
from recuse.server.filesystem.device_tree import DeviceTree
from tests.conftest import Needs
from tests.examples.frames import FAST, SMALL, check, frames_of

from .conftest import ROOT, WAIT_S

MAP = """
import ctypes, errno, mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mmap(0, 4096, 3, mmap.MAP_SHARED, file, 0) == -1
assert ctypes.get_errno() == errno.ENODEV
"""


def test_it_is_mounted_and_cannot_be_mapped(tmp_path: Path) -> None:
    fmmap = load(parse(str(ROOT / "examples" / "fmmap.py")))
    echo = load(parse(str(ROOT / "examples" / "echo.py")))
    tree = DeviceTree([fmmap, echo])
    with Mount(tree, tmp_path) as served:
        if served.has_backing:
            pytest.skip("this kernel has FUSE passthrough")
        limits = tree.limits(served.path, served.has_backing)
        assert any("cannot map these files (ENODEV)" in limit for limit in limits)
        script = f"printf hello > {tmp_path}/echo && cat {tmp_path}/echo"
        done = subprocess.run(["sh", "-c", script], capture_output=True, check=True, timeout=WAIT_S)
        assert done.stdout == b"hello"
        program = [sys.executable, "-c", MAP, f"{tmp_path}/fmmap"]
        subprocess.run(program, check=True, timeout=WAIT_S)
    assert list(tmp_path.iterdir()) == []


def test_a_camera_is_read_and_cannot_be_mapped(tmp_path: Path, needs: Needs) -> None:
    needs("ffmpeg", "ffmpeg")
    camera, file = load(parse(str(ROOT / "examples" / FAST))), f"{tmp_path}/video9"
    with Mount(DeviceTree([camera]), tmp_path) as served:
        if served.has_backing:
            pytest.skip("this kernel has FUSE passthrough")
        argv = ["head", "-c", str(320 * 240 * 2), file]
        data = subprocess.run(argv, capture_output=True, check=True, timeout=WAIT_S).stdout
        assert len(check(frames_of(data, SMALL), SMALL)) == 1
        argv = ["ffmpeg", "-v", "error", "-f", "v4l2", "-i", file, "-f", "null", "-"]
        done = subprocess.run(argv, capture_output=True, check=False, timeout=WAIT_S)
        assert done.returncode != 0
        assert b"mmap: No such device" in done.stderr
