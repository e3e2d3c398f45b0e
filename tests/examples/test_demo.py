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


@pytest.mark.parametrize("lacking", [None, "v4l2-ctl"], ids=["all", "linuxpy"])
def test_the_picture_that_it_takes(needs: Needs, tmp_path: Path, lacking: str | None) -> None:
    make = str(needs("make"))
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
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [
            *[make, "--no-print-directory", "-f", str(ROOT / "Makefile"), "shown"],
            *[f"BIN={Path(sys.executable).parent}", '--eval=shown: ; @sh -ec "$$DEMO"'],
        ],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\nThe picture that it took is in build/camera.jpeg.\n" in done.stdout
    assert ("$ v4l2-ctl " in done.stdout) == (lacking is None)
    data = (tmp_path / "build" / "camera.jpeg").read_bytes()
    number = read_number(simplejpeg.decode_jpeg(data, "GRAY")[:, :, 0])
    frame = np.empty((480, 1280), np.uint8)
    Painter().paint(frame, number, Look(640, 480, jpeg=True, brightness=128 if lacking else 120))
    assert data == to_jpeg(frame, 90)
