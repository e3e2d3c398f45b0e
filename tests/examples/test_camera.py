"""The camera: with v4l-utils' programs, ffmpeg, linuxpy and OpenCV, and by plain ioctls."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from recuse import Sandbox
from recuse.cli.spec import load, parse
from tests.conftest import Needs
from tests.examples.frames import (
    FAST,
    ROOT,
    SMALL,
    Look,
    Painter,
    check,
    frames_of,
    python,
    read_number,
    to_jpeg,
)

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_linuxpy_captures() -> None:
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
def test_opencv_captures(fourcc: str) -> None:
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


def test_the_first_camera(run: Run) -> None:
    pytest.importorskip("cv2")
    code = """
import cv2
capture = cv2.VideoCapture(0)
print(capture.getBackendName(), capture.get(cv2.CAP_PROP_FPS), capture.read()[1].shape)
"""
    outcome = run("camera.py,number=0", sys.executable, "-c", code)
    assert (outcome.stdout, outcome.stderr) == (b"V4L2 30.0 (480, 640, 3)\n", b"")


def test_reading(run: Run) -> None:
    size = 320 * 240 * 2
    outcome = run(FAST, "dd", "if=/dev/video9", f"bs={size}", "count=3", "status=none")
    assert len(check(frames_of(outcome.stdout, SMALL), SMALL)) == 3


def test_a_program_that_reads_waits_in_poll() -> None:
    """Frames come from then on."""
    code = """
os.set_blocking(camera, False)
poller = select.poll()
poller.register(camera, select.POLLIN)
for _ in range(3):
    print(poller.poll(20_000) == [(camera, select.POLLIN)], len(os.read(camera, 153600)))
"""
    assert python(code) == ["True 153600"] * 3


def test_a_frame_is_read_in_pieces() -> None:
    code = """
pieces = [os.read(camera, 100_000) for _ in range(4)]
print([len(piece) for piece in pieces])
# What is left, for a buffer at a page, fills one request; another one follows, and finds nothing.
print(len(os.read(camera, 153600 - 131072)), os.readv(camera, [mmap.mmap(-1, 300_000)]))
other = opened()
print(request(1, other), request(1))
os.close(camera)
print(request(1, opened()))
"""
    assert python(code) == ["[100000, 53600, 100000, 53600]", "22528 131072", "EBUSY EBUSY", "1"]


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
