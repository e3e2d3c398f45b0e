"""The camera with pictures of one's own."""

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from recuse import Sandbox
from recuse.cli.spec import SpecError, load, parse
from tests.examples.frames import PRELUDE, ROOT, SMALL, Bytes, frames_of

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_pictures_of_ones_own() -> None:
    """Also: mirrored by a control, as the test pictures are."""

    def draw(number: int, width: int, height: int) -> Bytes:
        rgb = np.zeros((height, width, 3), np.uint8)
        rgb[:, : width // 2] = 255
        return rgb

    import camera  # noqa: PLC0415
    from linuxpy.video import raw  # noqa: PLC0415

    device = camera.Camera(fps=200, width=320, height=240, draw=draw)
    program = ["head", "-c", "153600", "/dev/video9"]
    with Sandbox(device) as sandbox:
        plain = sandbox.run(program, capture_output=True, check=True, timeout=60).stdout
        device.controls.all[raw.ControlID.HFLIP].value = 1
        flipped = sandbox.run(program, capture_output=True, check=True, timeout=60).stdout
        assert raw.ControlID.TEST_PATTERN not in device.controls.all
    for data, left, right in ((plain, 235, 16), (flipped, 16, 235)):
        luma = frames_of(data, SMALL)[0][:, 0::2]
        assert (luma[:, :160] == left).all()
        assert (luma[:, 160:] == right).all()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("draw=x", "camera.py: draw must be a Python function"),
        ("fps=0", "camera.py: fps=0: at least one"),
    ],
)
def test_what_a_camera_is_not_made_of(argument: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load(parse(str(ROOT / "examples" / f"camera.py,{argument}")))


def test_pictures_that_fail(caplog: pytest.LogCaptureFixture) -> None:
    """The program hears of it, and the camera goes on; also when it is served once more."""
    import camera  # noqa: PLC0415

    def draw(number: int, width: int, height: int) -> Bytes:
        return np.zeros((height, width, 3 if number else 0), np.uint8)

    device = camera.Camera(fps=200, width=320, height=240, draw=draw)
    code = """
print(stream(True) if request(2) and buffer(IOC.QBUF, 0) and buffer(IOC.QBUF, 1) else "")
for _ in range(2):
    done = buffer(IOC.DQBUF)
    print(done.sequence > 0, done.bytesused, bool(done.flags & raw.BufferFlag.ERROR))
stream(False)
request(0)
try:
    os.read(camera, 100)
except OSError as error:
    print(errno.errorcode[error.errno])
print(len(os.read(camera, 100)))
"""
    for _ in range(2):
        with Sandbox(device) as sandbox:
            program = [sys.executable, "-c", PRELUDE + code]
            outcome = sandbox.run(program, capture_output=True, text=True, timeout=60)
        assert outcome.stderr == ""
        found = ["done", "False 0 True", "True 153600 False", "EIO", "100"]
        assert outcome.stdout.splitlines() == found
    assert caplog.text.count("no frame 0") == 4
    caplog.clear()  # the tracebacks know the frames' memory


@pytest.mark.parametrize(
    ("drawn", "what"),
    [
        (None, "NoneType"),
        (np.zeros((240, 320), np.uint8), "uint8 of (240, 320)"),
        (np.zeros((320, 240, 3), np.uint8), "uint8 of (320, 240, 3)"),
        (np.zeros((240, 320, 3)), "float64 of (240, 320, 3)"),
    ],
    ids=["none", "grey", "turned", "float"],
)
def test_what_is_no_picture(caplog: pytest.LogCaptureFixture, drawn: Any, what: str) -> None:
    """That is said once."""
    import camera  # noqa: PLC0415

    def draw(number: int, width: int, height: int) -> Bytes:
        bad: Bytes = drawn
        return bad if number < 3 else np.zeros((height, width, 3), np.uint8)

    device = camera.Camera(fps=500, width=320, height=240, draw=draw)
    with Sandbox(device) as sandbox:
        program = ["dd", "if=/dev/video9", "of=/dev/null", "conv=noerror", "count=4"]
        sandbox.run(program, capture_output=True, check=False, timeout=60)
    line = (
        f"TypeError: a picture must be uint8 of (240, 320, 3) (height, width, colours), not {what}"
    )
    assert caplog.text.count(line) == 1
    caplog.clear()


def test_pictures_that_take_long() -> None:
    """Frames that were due meanwhile are left out, and no others."""
    import camera  # noqa: PLC0415

    def draw(number: int, width: int, height: int) -> Bytes:
        time.sleep(0 if number else 0.1)
        return np.zeros((height, width, 3), np.uint8)

    code = """
request(4)
for index in range(4):
    buffer(IOC.QBUF, index)
stream(True)
frames = []
for _ in range(6):
    frames.append(buffer(IOC.DQBUF))
    buffer(IOC.QBUF, frames[-1].index)
numbers = [frame.sequence - frames[0].sequence for frame in frames]
seconds = [frame.timestamp.secs - frames[0].timestamp.secs + (
    frame.timestamp.usecs - frames[0].timestamp.usecs) / 1e6 for frame in frames]
print(numbers[1] >= 49, numbers[-1] - 100 < seconds[-1] * 500)
"""
    device = camera.Camera(fps=500, width=320, height=240, draw=draw)
    with Sandbox(device) as sandbox:
        program = [sys.executable, "-c", PRELUDE + code]
        outcome = sandbox.run(program, capture_output=True, text=True, timeout=60)
    assert (outcome.stdout, outcome.stderr) == ("True True\n", "")
