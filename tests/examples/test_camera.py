"""The camera: with v4l-utils' programs, ffmpeg, linuxpy and OpenCV, and by plain ioctls."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg

from recuse import Sandbox
from recuse.cli.spec import load, parse
from tests.conftest import Needs
from tests.examples.conftest import in_sandbox
from tests.examples.frames import (
    FAST,
    ROOT,
    SMALL,
    Bytes,
    Look,
    Painter,
    check,
    frames_of,
    read_number,
    to_jpeg,
)

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]

PRELUDE = f"""
import ctypes, errno, fcntl, mmap, os, select, sys
sys.path.insert(0, {str(ROOT / "examples")!r})
import pictures
from linuxpy.video import raw

IOC, B, MMAP = raw.IOC, raw.BufType.VIDEO_CAPTURE, raw.Memory.MMAP

def opened(flags=os.O_RDWR):
    return os.open("/dev/video9", flags)

def call(command, data, fd=None):
    "The structure that an ioctl makes of another one, or the error's name."
    try:
        fcntl.ioctl(camera if fd is None else fd, command & 0xFFFFFFFF, data)
    except OSError as error:
        return errno.errorcode[error.errno]
    return data

def request(count, fd=None, memory=MMAP):
    done = call(IOC.REQBUFS, raw.v4l2_requestbuffers(count, B, memory), fd)
    return done if isinstance(done, str) else done.count

def buffer(command, index=0, fd=None):
    return call(command, raw.v4l2_buffer(index, B, memory=MMAP), fd)

def stream(on, fd=None):
    done = call(IOC.STREAMON if on else IOC.STREAMOFF, ctypes.c_int(B), fd)
    return done if isinstance(done, str) else "done"

camera = opened()
"""


@pytest.fixture
def python() -> Callable[..., list[str]]:
    """`python(code)`: the lines that a program prints, after PRELUDE."""

    def python(code: str, spec: str = FAST) -> list[str]:
        argv = [sys.executable, "-c", PRELUDE + code]
        outcome: Any = in_sandbox(
            str(ROOT / "examples" / spec), argv, capture_output=True, text=True
        )
        assert (outcome.returncode, outcome.stderr) == (0, "")
        return str(outcome.stdout).splitlines()

    return python


@pytest.fixture
def ctl(run: Run, needs: Needs) -> Callable[..., list[str]]:
    """`ctl(*options)`: the lines that v4l2-ctl prints, without white space at their ends."""
    needs("v4l2-ctl", "v4l-utils")

    def ctl(*options: str, spec: str = FAST) -> list[str]:
        outcome = run(spec, "v4l2-ctl", "-d", "/dev/video9", *options)
        assert outcome.returncode == 0, outcome
        return [line.strip() for line in outcome.stdout.decode().splitlines()]

    return ctl


# ---- v4l-utils


def test_v4l2_ctl_shows_all(ctl: Callable[..., list[str]]) -> None:
    lines = ctl("--all", spec="camera.py")
    for line in (
        "Card type        : recuse camera 9",
        "Bus info         : platform:recuse-9",
        "Video input : 0 (Camera: ok)",
        "Width/Height      : 640/480",
        "Pixel Format      : 'YUYV' (YUYV 4:2:2)",
        "Size Image        : 614400",
        "Frames per second: 30.000 (30/1)",
        "brightness 0x00980900 (int)    : min=0 max=255 step=1 default=128 value=128 flags=slider",
        "horizontal_flip 0x00980914 (bool)   : default=0 value=0",
        "compression_quality 0x009d0903 (int)    : "
        "min=1 max=100 step=1 default=90 value=90 flags=slider",
        "test_pattern 0x009f0903 (menu)   : min=0 max=2 default=0 value=0 (Colour bars)",
        "2: Chessboard",
    ):
        assert line in lines


def test_v4l2_ctl_finds_it(ctl: Callable[..., list[str]]) -> None:
    assert ctl("--list-devices", spec="camera.py")[:2] == [
        "recuse camera 9 (platform:recuse-9):",
        "/dev/video9",
    ]


def test_what_is_in_sysfs(run: Run) -> None:
    directory = "/sys/class/video4linux/video9"
    files = [f"{directory}/{name}" for name in ("name", "index", "dev")]
    outcome = run("camera.py", "cat", *files, "/sys/dev/char/81:9/uevent")
    lines = outcome.stdout.decode().splitlines()
    assert lines[:3] == ["recuse camera 9", "0", "81:9"]
    assert "DEVNAME=video9" in lines


def test_v4l2_ctl_lists_formats(ctl: Callable[..., list[str]]) -> None:
    intervals = [
        f"Interval: Discrete {seconds}s ({fps}.000 fps)"
        for seconds, fps in (("0.033", 30), ("0.067", 15), ("0.100", 10), ("0.200", 5))
    ]
    sizes = [
        line
        for size in ("320x240", "640x480", "1280x720", "1920x1080")
        for line in (f"Size: Discrete {size}", *intervals)
    ]
    assert ctl("--list-formats-ext", spec="camera.py") == [
        "ioctl: VIDIOC_ENUM_FMT",
        "Type: Video Capture",
        "",
        "[0]: 'YUYV' (YUYV 4:2:2)",
        *sizes,
        "[1]: 'MJPG' (Motion-JPEG, compressed)",
        *sizes,
    ]


def test_v4l2_ctl_streams(ctl: Callable[..., list[str]], tmp_path: Path) -> None:
    file = tmp_path / "frames"
    ctl("--stream-mmap", "--stream-count=60", f"--stream-to={file}")
    assert len(check(frames_of(file.read_bytes(), SMALL), SMALL)) == 60


@pytest.mark.parametrize(
    ("controls", "look"),
    [
        ("brightness=160,contrast=64", Look(320, 240, brightness=160, contrast=64)),
        ("saturation=0,horizontal_flip=1", Look(320, 240, saturation=0, hflip=True)),
        ("test_pattern=1,brightness=999", Look(320, 240, pattern=1, brightness=255)),
        ("test_pattern=2,vertical_flip=1", Look(320, 240, pattern=2, vflip=True)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_controls_change_the_picture(
    ctl: Callable[..., list[str]], tmp_path: Path, controls: str, look: Look
) -> None:
    file = tmp_path / "frames"
    ctl(f"--set-ctrl={controls}", "--stream-mmap", "--stream-count=2", f"--stream-to={file}")
    frames = frames_of(file.read_bytes(), SMALL)
    check(frames, look)
    plain = np.empty_like(frames[0])
    Painter().paint(plain, read_number(frames[0][:, 0::2]), SMALL)
    assert (frames[0] != plain).any()


def test_v4l2_compliance(run: Run, needs: Needs) -> None:
    """It found nothing to complain about; -s streams in all ways that there are."""
    needs("v4l2-compliance", "v4l-utils")
    outcome = run("camera.py", "v4l2-compliance", "-d", "/dev/video9", "-s10")
    output = outcome.stdout.decode()
    assert "54, Succeeded: 54, Failed: 0" in output.splitlines()[-1], output
    # A busy machine loses frames, as it would of a real camera.
    warnings = [line for line in output.splitlines() if "warn:" in line]
    assert [line for line in warnings if "got sequence number" not in line] == []
    assert outcome.returncode == 0
    for test in ("VIDIOC_G/S/TRY_EXT_CTRLS", "VIDIOC_(UN)SUBSCRIBE_EVENT/DQEVENT", "read/write",
                 "MMAP (no poll)", "MMAP (select)", "MMAP (epoll)"):  # fmt: skip
        assert f"test {test}: OK\n" in output.replace("\r", "\n")


def test_v4l2_ctl_sets_controls(ctl: Callable[..., list[str]]) -> None:
    asked = "--get-ctrl=brightness,test_pattern"
    assert ctl("--set-ctrl=brightness=99,test_pattern=2", asked) == [
        "brightness: 99",
        "test_pattern: 2 (Chessboard)",
    ]


# ---- without buffers, which Linux's own CUSE cannot have: tests/vm runs these there


def test_v4l2_compliance_without_buffers(run: Run, needs: Needs) -> None:
    needs("v4l2-compliance", "v4l-utils")
    outcome = run("camera.py,streaming=no", "v4l2-compliance", "-d", "/dev/video9", "-s10")
    output = outcome.stdout.decode()
    assert "54, Succeeded: 54, Failed: 0" in output.splitlines()[-1], output
    output = output.replace("\r", "\n")
    assert "test read/write: OK\n" in output
    assert "test MMAP (select): OK (Not Supported)\n" in output


def test_ffmpeg_says_why_it_cannot_stream(run: Run, needs: Needs) -> None:
    """And reads the same frames when it is told to."""
    needs("ffmpeg", "ffmpeg")
    spec, ffmpeg = "camera.py,streaming=no,width=320,height=240", ["ffmpeg", "-v", "error"]
    outcome = run(spec, *ffmpeg, "-f", "v4l2", "-i", "/dev/video9", "-f", "null", "-")
    assert outcome.returncode != 0
    assert b"does not support the streaming I/O method" in outcome.stderr
    form = ["-f", "rawvideo", "-pixel_format", "yuyv422"]
    outcome = run(
        spec,
        *[*ffmpeg, *form, "-video_size", "320x240", "-i", "/dev/video9"],
        *["-frames:v", "3", "-vsync", "passthrough", "-f", "rawvideo", "-"],
    )
    assert outcome.returncode == 0
    assert len(check(frames_of(outcome.stdout, SMALL), SMALL)) == 3


# ---- other programs


def test_ffmpeg_captures(run: Run, needs: Needs) -> None:
    needs("ffmpeg", "ffmpeg")
    outcome = run(
        "camera.py,fps=200",
        *["ffmpeg", "-v", "error", "-f", "v4l2", "-i", "/dev/video9", "-frames:v", "10"],
        *["-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "yuyv422", "-"],
    )
    assert outcome.returncode == 0, outcome.stderr
    look = Look(640, 480)
    assert len(check(frames_of(outcome.stdout, look), look)) == 10


def test_ffmpeg_captures_jpeg(run: Run, needs: Needs, tmp_path: Path) -> None:
    needs("ffmpeg", "ffmpeg")
    outcome = run(
        "camera.py,fps=200",
        *["ffmpeg", "-v", "error", "-f", "v4l2", "-input_format", "mjpeg", "-i", "/dev/video9"],
        *["-frames:v", "3", "-c", "copy", "-f", "image2", str(tmp_path / "%d.jpeg")],
    )
    assert outcome.returncode == 0, outcome.stderr
    numbers = []
    for file in sorted(tmp_path.iterdir()):
        data = file.read_bytes()
        numbers.append(read_number(simplejpeg.decode_jpeg(data, "GRAY")[:, :, 0]))
        frame = np.empty((480, 1280), np.uint8)
        Painter().paint(frame, numbers[-1], Look(640, 480, jpeg=True))
        assert data == to_jpeg(frame, 90)
    assert len(numbers) == 3
    assert numbers == sorted(set(numbers))


def test_linuxpy_captures(python: Callable[..., list[str]]) -> None:
    code = """
from linuxpy.video.device import Device, VideoCapture
import numpy as np
with Device.from_id(9) as device:
    print(device.info.card, [str(f.description) for f in device.info.formats])
    device.controls.brightness.value = 100
    print(device.controls.brightness.value)
    capture = VideoCapture(device)
    capture.set_format(320, 240, "YUYV")
    painter, last = pictures.Painter(), -1
    with capture:
        for index, frame in zip(range(5), capture):
            data = np.frombuffer(bytes(frame), np.uint8).reshape(240, 640)
            number = pictures.read_number(data[:, ::2])
            expected = np.empty_like(data)
            painter.paint(expected, number, pictures.Look(320, 240, brightness=100))
            print((data == expected).all(), number == frame.frame_nb, number > last)
            last = number
"""
    assert python(code) == [
        "recuse camera 9 ['YUYV 4:2:2', 'Motion-JPEG']",
        "100",
        *["True True True"] * 5,
    ]


@pytest.mark.parametrize("fourcc", ["YUYV", "MJPG"])
def test_opencv_captures(python: Callable[..., list[str]], fourcc: str) -> None:
    pytest.importorskip("cv2")
    code = f"""
import cv2
import numpy as np
os.close(camera)
capture = cv2.VideoCapture("/dev/video9", cv2.CAP_V4L2)
capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*{fourcc!r}))
print(capture.set(cv2.CAP_PROP_FRAME_WIDTH, 320), capture.set(cv2.CAP_PROP_FRAME_HEIGHT, 240))
last = -1
for _ in range(5):
    ok, frame = capture.read()
    number = pictures.read_number(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY))
    look = pictures.Look(320, 240)
    moved = np.roll(pictures.bars(320, 240), -number * pictures.STEP, axis=1)[:, :, ::-1]
    # Not at the number, and not at the bars' edges, which are not sharp.
    away = frame[100:].astype(int) - moved[100:]
    print(ok, number > last, np.median(abs(away)) <= 4, (abs(away) > 40).mean() < 0.1)
    last = number
"""
    assert python(code) == ["True True", *["True True True True"] * 5]


def test_reading(run: Run) -> None:
    size = 320 * 240 * 2
    outcome = run(FAST, "dd", "if=/dev/video9", f"bs={size}", "count=3", "status=none")
    assert len(check(frames_of(outcome.stdout, SMALL), SMALL)) == 3


def test_a_frame_is_read_in_pieces(python: Callable[..., list[str]]) -> None:
    code = """
pieces = [os.read(camera, 100_000) for _ in range(4)]
print([len(piece) for piece in pieces])
other = opened()
print(request(1, other), request(1))
os.close(camera)
print(request(1, opened()))
"""
    assert python(code) == ["[100000, 53600, 100000, 53600]", "EBUSY EBUSY", "1"]


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
    line = f"TypeError: a picture is uint8 of (240, 320, 3) (height, width, colours), not {what}"
    assert caplog.text.count(line) == 1
    caplog.clear()


# ---- by ioctls


def test_structures_and_numbers_are_those_of_the_header(needs: Needs, tmp_path: Path) -> None:
    """Of all that the camera answers; a number has the size of the structure in it."""
    needs("/usr/include/linux/videodev2.h", "linux-libc-dev")
    import camera  # noqa: PLC0415
    from linuxpy.video import raw  # noqa: PLC0415

    commands = {
        f"VIDIOC_{name}": int(value) & 0xFFFFFFFF
        for name, value in raw.IOC.__members__.items()
        if camera.CameraFile._ioctl_table.find(int(value) & 0xFFFFFFFF).name != "unknown_ioctl"
        and not name.startswith("SUBDEV_")
    }
    assert len(commands) == 32
    lines = "".join(f'printf("%u\\n", (unsigned)({c}));\n' for c in commands)
    program = tmp_path / "ask"
    subprocess.run(
        [str(needs("gcc", "gcc")), "-xc", "-", "-o", str(program)],
        input="#include <stdio.h>\n#include <linux/videodev2.h>\n"
        f"int main(void) {{\n{lines}return 0; }}\n",
        text=True,
        check=True,
    )
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(commands, map(int, said), strict=True)) == commands


def test_buffers(python: Callable[..., list[str]]) -> None:
    code = """
print(buffer(IOC.QUERYBUF), stream(True), buffer(IOC.DQBUF), stream(False))
print(request(2), request(2, memory=raw.Memory.USERPTR))
offsets = [buffer(IOC.QUERYBUF, index).m.offset for index in range(2)]
print(offsets, buffer(IOC.QUERYBUF, 2))
size = 320 * 240 * 2
maps = [mmap.mmap(camera, size, offset=offset) for offset in offsets]
print(bool(buffer(IOC.QUERYBUF, 1).flags & raw.BufferFlag.MAPPED))
for length, offset, flags in ((size, 4096, 1), (size + 4096, 0, 1), (size, 0, 2)):
    try:
        mmap.mmap(camera, length, offset=offset, flags=flags)
    except OSError as error:
        print(errno.errorcode[error.errno])
print(call(IOC.EXPBUF, raw.v4l2_exportbuffer(B)), call(IOC.S_FMT, raw.v4l2_format(B)))
other = opened(os.O_RDWR | os.O_NONBLOCK)
print(request(1, other), stream(True, other), buffer(IOC.DQBUF, 0, other))
poller = select.poll()
poller.register(camera)
print(poller.poll(0) == [(camera, select.POLLERR)])
print(buffer(IOC.QBUF).flags & raw.BufferFlag.QUEUED, buffer(IOC.QBUF))
print(stream(True), request(1))
done = buffer(IOC.DQBUF)
number = pictures.read_number(__import__("numpy").frombuffer(maps[0], "uint8")
                              [:size].reshape(240, 640)[:, ::2])
print(done.index, done.bytesused, done.sequence == number, done.field == raw.Field.NONE)
os.set_blocking(camera, False)
print(buffer(IOC.DQBUF))
buffer(IOC.QBUF, 1)
print(poller.poll(20_000) == [(camera, select.POLLIN)])
print(buffer(IOC.DQBUF).index, stream(False), stream(False), request(0), request(1, other))
print(maps[0][0] == 16, request(1))
os.close(other)
print(request(1, opened()))
"""
    size = 320 * 240 * 2
    room = -(-size // 4096) * 4096
    assert python(code) == [
        "EINVAL EINVAL EINVAL done",
        "2 EINVAL",
        f"[0, {room}] EINVAL",
        "True",
        *["EINVAL"] * 3,
        "ENOTTY EBUSY",
        "EBUSY EBUSY EBUSY",
        "True",
        "2 EINVAL",
        "done EBUSY",
        f"0 {size} True True",
        "EAGAIN",
        "True",
        "1 done done 0 1",
        "True EBUSY",
        "1",
    ]


def test_dequeueing_ends_with_the_stream(python: Callable[..., list[str]]) -> None:
    """A program that waits for a frame, with no buffer queued, hears of the stream's end."""
    code = """
import threading
request(1)
stream(True)
found = []
waiting = threading.Thread(target=lambda: found.append(buffer(IOC.DQBUF)))
waiting.start()
while not open(f"/proc/self/task/{waiting.native_id}/syscall").read().startswith("16 "):
    pass  # until it is in ioctl(2)
stream(False)
waiting.join(20)
print(found)
"""
    assert python(code) == ["['EINVAL']"]


def test_a_slow_program_loses_frames(python: Callable[..., list[str]]) -> None:
    """Those that come while no buffer is free; their numbers are left out, 500 in a second."""
    code = """
import time
import numpy as np
request(2)
memory = mmap.mmap(camera, 320 * 240 * 2)
stream(True)
buffer(IOC.QBUF)
last = buffer(IOC.DQBUF)
for _ in range(3):
    begin = last.timestamp.secs + last.timestamp.usecs / 1e6
    while time.monotonic() < begin + 0.05:
        pass
    buffer(IOC.QBUF)
    done = buffer(IOC.DQBUF)
    luma = np.frombuffer(memory, "uint8")[:320 * 240 * 2].reshape(240, 640)[:, ::2]
    print(done.sequence - last.sequence >= 23, pictures.read_number(luma) == done.sequence)
    last = done
"""
    assert python(code) == ["True True"] * 3


def test_extended_controls_tell_which_one_is_wrong(python: Callable[..., list[str]]) -> None:
    code = """
ids = raw.ControlID
def several(command, *pairs, which=0):
    items = (raw.v4l2_ext_control * len(pairs))()
    for item, (item.id, item.value) in zip(items, pairs):
        pass
    asked = raw.v4l2_ext_controls(count=len(pairs), error_idx=99)
    asked.which = which
    asked.controls = ctypes.cast(items, type(asked.controls))
    done = call(command, asked)
    return done if isinstance(done, str) else "", asked.error_idx, [i.value for i in items]

print(several(IOC.S_EXT_CTRLS, (ids.BRIGHTNESS, 300), (ids.HFLIP, 7)))
print(several(IOC.G_EXT_CTRLS, (ids.BRIGHTNESS, 0), (ids.HFLIP, 0)))
print(several(IOC.G_EXT_CTRLS, (ids.BRIGHTNESS, 0), which=raw.ControlWhichValue.DEF_VAL))
print(several(IOC.G_EXT_CTRLS, (ids.BRIGHTNESS, 0), (ids.GAIN, 0)))
print(several(IOC.TRY_EXT_CTRLS, (ids.BRIGHTNESS, 0), (ids.TEST_PATTERN, 3)))
print(several(IOC.S_EXT_CTRLS, (ids.BRIGHTNESS, 0), (ids.TEST_PATTERN, 3)))
print(several(IOC.TRY_EXT_CTRLS, (ids.BRIGHTNESS, 0), which=0x9f0000))
print(several(IOC.G_EXT_CTRLS, (ids.BRIGHTNESS, 0)))
print(several(IOC.TRY_EXT_CTRLS, which=0x9f0000), several(IOC.TRY_EXT_CTRLS, which=0x9a0000))
"""
    assert python(code) == [
        "('', 2, [255, 1])",
        "('', 2, [255, 1])",
        "('', 1, [128])",
        "('EINVAL', 2, [0, 0])",
        "('ERANGE', 1, [0, 3])",
        "('ERANGE', 2, [0, 3])",
        "('EINVAL', 0, [0])",
        "('', 1, [255])",
        "('', 0, []) ('EINVAL', 0, [])",
    ]


def test_events_and_priority(python: Callable[..., list[str]]) -> None:
    code = """
ids = raw.ControlID
other = opened()
poller = select.poll()
poller.register(camera, select.POLLPRI)
wanted = raw.v4l2_event_subscription(raw.EventType.CTRL, ids.CONTRAST)
print(call(IOC.SUBSCRIBE_EVENT, raw.v4l2_event_subscription(raw.EventType.CTRL, 5)))
call(IOC.SUBSCRIBE_EVENT, wanted)
print(poller.poll(0))
for fd, value in ((camera, 1), (other, 2), (other, 2), (other, 3)):
    call(IOC.S_CTRL, raw.v4l2_control(ids.CONTRAST, value), fd)
print(poller.poll(0) == [(camera, select.POLLPRI)])
event = call(IOC.DQEVENT, raw.v4l2_event())
print(event.id == ids.CONTRAST, event.u.ctrl.value, event.u.ctrl.changes, event.pending)
os.set_blocking(camera, False)
print(call(IOC.DQEVENT, raw.v4l2_event()))
call(IOC.UNSUBSCRIBE_EVENT, wanted)
call(IOC.S_CTRL, raw.v4l2_control(ids.CONTRAST, 4), other)
print(call(IOC.DQEVENT, raw.v4l2_event()))

print(call(IOC.S_PRIORITY, ctypes.c_uint32(3), other).value)
print(call(IOC.S_CTRL, raw.v4l2_control(ids.CONTRAST, 5)), request(1), request(1, other))
create = raw.v4l2_create_buffers(count=1, memory=MMAP, format=raw.v4l2_format(B))
for command, asked in (
    (IOC.S_INPUT, ctypes.c_int(0)), (IOC.S_FMT, raw.v4l2_format(B)),
    (IOC.S_PARM, raw.v4l2_streamparm(B)), (IOC.S_EXT_CTRLS, raw.v4l2_ext_controls()),
    (IOC.S_PRIORITY, ctypes.c_uint32(1)), (IOC.CREATE_BUFS, create),
    (IOC.STREAMON, ctypes.c_int(B)), (IOC.STREAMOFF, ctypes.c_int(B)),
):
    print(call(command, asked), end=" ")
print(request(0, other), call(IOC.S_INPUT, ctypes.c_int(0)))
print(call(IOC.S_PRIORITY, ctypes.c_uint32(9), other))
os.close(other)
print(call(IOC.S_CTRL, raw.v4l2_control(ids.CONTRAST, 5), opened()).value)
"""
    assert python(code) == [
        "EINVAL",
        "[]",
        "True",
        "True 3 1 0",
        "ENOENT",
        "ENOENT",
        "3",
        "EBUSY EBUSY 1",
        "EBUSY " * 8 + "0 EBUSY",
        "EINVAL",
        "5",
    ]


def test_a_program_that_is_killed_gives_the_buffers_back(python: Callable[..., list[str]]) -> None:
    code = """
import signal, subprocess
if not (child := os.fork()):
    os.close(camera)
    camera = opened()
    request(4)
    kept = mmap.mmap(camera, 320 * 240 * 2)
    buffer(IOC.QBUF)
    stream(True)
    buffer(IOC.DQBUF)
    os.kill(os.getpid(), signal.SIGKILL)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), request(2, opened()))
"""
    assert python(code) == ["-9 2"]


def test_nothing_is_left_of_a_program() -> None:
    import camera  # noqa: PLC0415

    code = """
call(IOC.SUBSCRIBE_EVENT, raw.v4l2_event_subscription(raw.EventType.CTRL, raw.ControlID.CONTRAST))
request(2)
buffer(IOC.QBUF)
stream(True)
kept = mmap.mmap(camera, 4096)
print(buffer(IOC.DQBUF).sequence >= 0)
"""
    device = camera.Camera(fps=500, width=320, height=240)
    with Sandbox(device) as sandbox:
        program = [sys.executable, "-c", PRELUDE + code]
        assert sandbox.run(program, capture_output=True, timeout=60).stdout == b"True\n"
    assert device.controls.files == device.opened == set()
    assert (device.queue.area, device.queue.owner, device.queue.streaming) == (None, None, False)


def test_two_cameras(needs: Needs, tmp_path: Path) -> None:
    needs("v4l2-ctl", "v4l-utils")
    specs = [str(ROOT / "examples" / FAST), str(ROOT / "examples" / f"{FAST},number=10")]
    script = "".join(
        f"v4l2-ctl -d {number} --stream-mmap --stream-count=5 --stream-to={tmp_path}/{number} & "
        for number in (9, 10)
    )
    with Sandbox(*(load(parse(spec)) for spec in specs)) as sandbox:
        sandbox.run(["sh", "-c", f"{script} wait"], capture_output=True, check=True, timeout=60)
    for number in (9, 10):
        frames = frames_of((tmp_path / str(number)).read_bytes(), SMALL)
        assert len(check(frames, SMALL)) == 5


def test_in_a_process_of_its_own(needs: Needs, tmp_path: Path) -> None:
    """`recuse serve`: buffers are shared between three processes."""
    needs("v4l2-ctl", "v4l-utils")
    socket, frames = tmp_path / "camera", tmp_path / "frames"
    recuse = [sys.executable, "-m", "recuse.cli.main"]
    spec = str(ROOT / "examples" / FAST)
    with subprocess.Popen(
        [*recuse, "serve", "--listen", str(socket), spec], stdout=subprocess.PIPE
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == f"video9: {socket}\n".encode()
            program = ["v4l2-ctl", "-d", "9", "--stream-mmap", "--stream-count=10"]
            subprocess.run(
                [*recuse, "run", "-d", f"unix:{socket}", "--", *program, f"--stream-to={frames}"],
                check=True,
                capture_output=True,
                timeout=60,
            )
        finally:
            server.terminate()
    assert len(check(frames_of(frames.read_bytes(), SMALL), SMALL)) == 10
