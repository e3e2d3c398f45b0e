"""`make demo`: with the programs that it is made for, and without v4l2-ctl."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from tests.conftest import Needs
from tests.examples.frames import ROOT, Look, Painter, read_number, to_jpeg

PATIENCE_S = 100


def demo(directory: Path, path: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run it there, with its programs from ``path``."""
    (directory / "examples").symlink_to(ROOT / "examples")
    return subprocess.run(
        [
            *[*command, "make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "shown"],
            *[f"BIN={Path(sys.executable).parent}", '--eval=shown: ; @sh -ec "$$DEMO"'],
        ],
        cwd=directory,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("lacking", [None, "v4l2-ctl"], ids=["all", "linuxpy"])
def test_the_picture_that_it_takes(needs: Needs, tmp_path: Path, lacking: str | None) -> None:
    needs("make")
    path = os.environ["PATH"]
    if lacking is None:
        needs("v4l2-ctl", "v4l-utils")
    else:
        # All programs but that one.
        found = {lacking}
        (tmp_path / "bin").mkdir()
        for directory in filter(os.path.isdir, path.split(os.pathsep)):
            for program in set(os.listdir(directory)) - found:
                os.symlink(f"{directory}/{program}", tmp_path / "bin" / program)
                found.add(program)
        path = str(tmp_path / "bin")
    done = demo(tmp_path, path)
    assert done.returncode == 0, done.stderr
    assert "\nThe picture that it took is in build/camera.jpeg.\n" in done.stdout
    assert ("$ v4l2-ctl " in done.stdout) == (lacking is None)
    assert os.listdir(tmp_path / "build") == ["camera.jpeg"]
    data = (tmp_path / "build" / "camera.jpeg").read_bytes()
    number = read_number(simplejpeg.decode_jpeg(data, "GRAY")[:, :, 0])
    frame = np.empty((480, 1280), np.uint8)
    Painter().paint(frame, number, Look(640, 480, jpeg=True, brightness=128 if lacking else 120))
    assert data == to_jpeg(frame, 90)


def test_the_filesystem_that_it_mounts(needs: Needs, tmp_path: Path) -> None:
    needs("make")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing, or may not be opened")
    done = demo(tmp_path, os.environ["PATH"])
    assert done.returncode == 0, done.stderr
    assert "\n    $ cmp build/files/echo.py examples/echo.py && echo equal\nequal\n" in done.stdout
    assert "build/files/archive.py\n" in done.stdout
    assert "\nequal as well\n" in done.stdout


NO_FUSE = """
[ ! -e /dev/fuse ] || {
    mkdir dev
    mount -t tmpfs -o nodev none dev
    cp -a /dev/fuse dev
    mount --bind dev/fuse /dev/fuse
}
exec "$0" "$@"
"""


@pytest.mark.right("namespaces")
def test_where_nothing_can_be_mounted(needs: Needs, tmp_path: Path) -> None:
    """As in a container, where no device works that was not allowed."""
    needs("make")
    if os.geteuid():
        pytest.skip("only root may")
    done = demo(tmp_path, os.environ["PATH"], "unshare", "-m", "sh", "-ec", NO_FUSE)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("Nothing can be")]
    assert line.startswith("Nothing can be mounted here: recuse: /dev/fuse: ")
    assert "\nequal\n" in done.stdout  # in the sandbox, which mounts nothing
    assert os.listdir(tmp_path / "build") == ["camera.jpeg"]
