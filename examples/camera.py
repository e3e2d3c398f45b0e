"""A camera, /dev/video9, for every program that uses Video4Linux.

It shows a moving test picture; each frame contains its number.  Try it, with Debian's packages
v4l-utils and ffmpeg::

    $ recuse run -d examples/camera.py -- bash
    $ v4l2-ctl -d /dev/video9 --set-ctrl brightness=160 --get-ctrl brightness,test_pattern
    brightness: 160
    test_pattern: 0 (Colour bars)
    $ ffmpeg -v error -f v4l2 -i /dev/video9 -frames:v 1 -update 1 frame.png

It needs the packages linuxpy, numpy and simplejpeg.  You can supply your own frames::

    Camera(draw=lambda number, width, height: numpy.zeros((height, width, 3), "uint8"))

Everything that could wait or change something is ``async def``, and so runs in one thread: there
are no locks.  Only the pictures are painted in other threads.
"""

import asyncio
import errno
import logging
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from linuxpy.video import raw
from pictures import PATTERNS, Draw, Look, Painter, to_jpeg
from v4l2 import VIDEO_MAJOR, Prioritised, handles, invalid, is_capture
from v4l2controls import Control, Controls, heading, menu, switch
from v4l2queue import READ_BUFFERS, Queue, QueueFile

from recuse import ArgumentError, Device, OpenRequest

log = logging.getLogger("recuse.camera")

SIZES = ((320, 240), (640, 480), (1280, 720), (1920, 1080))
FORMATS = {
    raw.PixelFormat.YUYV: ("YUYV 4:2:2", 0, raw.Colorspace.SRGB),
    raw.PixelFormat.MJPEG: ("Motion-JPEG", raw.ImageFormatFlag.COMPRESSED, raw.Colorspace.JPEG),
}
SLOWER = (1, 2, 3, 6)
"""The divisors of the frame rate that a program can choose."""
CAPABILITIES = (
    raw.Capability.VIDEO_CAPTURE
    | raw.Capability.READWRITE
    | raw.Capability.STREAMING
    | raw.Capability.EXT_PIX_FORMAT
)
VERSION = 6 << 16 | 1 << 8


def make_controls(*, with_patterns: bool) -> Iterable[Control]:
    """Return the controls that programs can set."""
    ids = raw.ControlID
    yield heading(ids.USER_CLASS, "User Controls")
    yield Control(ids.BRIGHTNESS, "Brightness", 255, 128)
    yield Control(ids.CONTRAST, "Contrast", 255, 128)
    yield Control(ids.SATURATION, "Saturation", 255, 128)
    yield switch(ids.HFLIP, "Horizontal Flip")
    yield switch(ids.VFLIP, "Vertical Flip")
    yield heading(ids.JPEG_CLASS, "JPEG Compression Controls")
    yield Control(ids.JPEG_COMPRESSION_QUALITY, "Compression Quality", 100, 90, minimum=1)
    if with_patterns:
        yield heading(ids.IMAGE_PROC_CLASS, "Image Processing Controls")
        yield menu(ids.TEST_PATTERN, "Test Pattern", list(PATTERNS))


class Camera(Device):
    """The device."""

    subsystem = "class/video4linux"

    def __init__(
        self,
        number: int = 9,
        fps: int = 30,
        width: int = 640,
        height: int = 480,
        *,
        draw: Draw | None = None,
        streaming: bool = True,
    ) -> None:
        """Create /dev/videoNUMBER with ``fps`` frames a second, or fewer if they are late.

        ``width`` and ``height`` are the initial size.  ``draw`` makes your own pictures: it gets a
        frame's number, width and height, and returns an array (height, width, 3) of bytes: red,
        green and blue.  Without ``streaming`` the camera says that it has no buffers to map:
        programs read(2) frames, which is all that Linux's own CUSE allows.

        Raises ArgumentError for less than one frame a second, or if ``draw`` is not a function (a
        command line cannot have one).
        """
        if fps < 1:
            raise ArgumentError(f"fps={fps}: at least one frame a second")
        if draw is not None and not callable(draw):
            raise ArgumentError("draw must be a Python function")
        super().__init__(name=f"video{number}", major=VIDEO_MAJOR, minor=number)
        self.card = f"recuse camera {number}"
        self.sysfs = {"name": f"{self.card}\n", "index": "0\n", "dev_debug": "0\n"}
        self.bus_info = f"platform:recuse-{number}"
        self.file = CameraFile if streaming else ReadOnlyFile
        self.fastest = Fraction(1, fps)
        self.interval = self.fastest
        """Seconds between two frames."""
        self.format = pix_format(raw.PixelFormat.YUYV, width, height)
        self.controls = Controls(list(make_controls(with_patterns=draw is None)))
        self.opened: set[Prioritised] = set()
        self.queue = Queue(self.fill, lambda: float(self.interval))
        self._painter = Painter(draw)
        self._failed = ""
        """The error of the last frame, if it failed."""

    async def open(self, request: OpenRequest) -> "CameraFile":
        file = self.file(self)
        self.opened.add(file)
        return file

    async def fill(self, memory: memoryview, number: int) -> int:
        """Put a frame into memory; return its number of bytes, 0 if it failed."""
        try:
            size = await asyncio.to_thread(self._paint, memory, number, self._look())
        except Exception as error:
            # Programs get a frame that is marked as bad, instead of waiting for ever.
            if repr(error) != self._failed:
                log.exception("no frame %d, nor others until this is fixed", number)
            self._failed = repr(error)
            return 0
        self._failed = ""
        return size

    def _look(self) -> Look:
        ids = raw.ControlID
        value = {id_: control.value for id_, control in self.controls.all.items()}
        return Look(
            self.format.width,
            self.format.height,
            jpeg=self.format.pixelformat == raw.PixelFormat.MJPEG,
            brightness=value[ids.BRIGHTNESS],
            contrast=value[ids.CONTRAST],
            saturation=value[ids.SATURATION],
            hflip=bool(value[ids.HFLIP]),
            vflip=bool(value[ids.VFLIP]),
            pattern=value.get(ids.TEST_PATTERN, 0),
            quality=value[ids.JPEG_COMPRESSION_QUALITY],
        )

    def _paint(self, memory: memoryview, number: int, look: Look) -> int:
        shape = look.height, look.width * 2
        if not look.jpeg:
            frame = np.frombuffer(memory, np.uint8).reshape(shape)
            self._painter.paint(frame, number, look)
            return frame.nbytes
        frame = np.empty(shape, np.uint8)
        self._painter.paint(frame, number, look)
        data = to_jpeg(frame, look.quality)
        if len(data) > len(memory):
            return 0
        memory[: len(data)] = data
        return len(data)


def pix_format(pixelformat: int, width: int, height: int) -> raw.v4l2_pix_format:
    """Return our nearest format."""
    if pixelformat not in FORMATS:
        pixelformat = raw.PixelFormat.YUYV
    width, height = min(SIZES, key=lambda size: abs(size[0] - width) + abs(size[1] - height))
    nearest = raw.v4l2_pix_format(width, height, pixelformat, raw.Field.NONE)
    nearest.bytesperline = width * 2 if pixelformat == raw.PixelFormat.YUYV else 0
    nearest.sizeimage = width * height * 2
    nearest.colorspace = FORMATS[pixelformat][2]
    nearest.priv = raw.PixelFormat.PRIV_MAGIC
    return nearest


class CameraFile(QueueFile):
    """An open of the camera."""

    device: Camera
    capabilities = CAPABILITIES

    def __init__(self, camera: Camera) -> None:
        super().__init__()
        self.camera = camera
        self.controls = camera.controls
        self.opened = camera.opened
        self.queue = camera.queue

    def frame_size(self) -> int:
        return int(self.camera.format.sizeimage)

    async def release(self) -> None:
        self.opened.discard(self)
        self.controls.files.discard(self)
        await super().release()

    @handles(raw.IOC.QUERYCAP, raw.v4l2_capability)
    async def querycap(self, told: raw.v4l2_capability) -> None:
        told.driver, told.card = b"recuse", self.camera.card.encode()
        told.bus_info, told.version = self.camera.bus_info.encode(), VERSION
        told.device_caps = int(self.capabilities)
        told.capabilities = int(self.capabilities | raw.Capability.DEVICE_CAPS)

    @handles(raw.IOC.ENUMINPUT, raw.v4l2_input)
    async def enuminput(self, asked: raw.v4l2_input) -> raw.v4l2_input:
        if asked.index:
            raise invalid("no such input")
        return raw.v4l2_input(0, b"Camera", raw.InputType.CAMERA)

    @handles(raw.IOC.G_INPUT, raw.cint)
    async def g_input(self) -> int:
        return 0

    @handles(raw.IOC.S_INPUT, raw.cint)
    async def s_input(self, number: int) -> int:
        self.may_change()
        if number:
            raise invalid("no such input")
        return 0

    # Formats

    @handles(raw.IOC.ENUM_FMT, raw.v4l2_fmtdesc)
    async def enum_fmt(self, asked: raw.v4l2_fmtdesc) -> raw.v4l2_fmtdesc:
        is_capture(asked.type)
        if asked.index >= len(FORMATS) or asked.mbus_code:
            raise invalid("no such format")
        pixelformat, (name, flags, _) = list(FORMATS.items())[asked.index]
        return raw.v4l2_fmtdesc(asked.index, asked.type, int(flags), name.encode(), pixelformat)

    @handles(raw.IOC.ENUM_FRAMESIZES, raw.v4l2_frmsizeenum)
    async def enum_framesizes(self, asked: raw.v4l2_frmsizeenum) -> raw.v4l2_frmsizeenum:
        if asked.pixel_format not in FORMATS or asked.index >= len(SIZES):
            raise invalid("no such size")
        told = raw.v4l2_frmsizeenum(asked.index, asked.pixel_format, raw.Frmsizetypes.DISCRETE)
        told.discrete.width, told.discrete.height = SIZES[asked.index]
        return told

    @handles(raw.IOC.ENUM_FRAMEINTERVALS, raw.v4l2_frmivalenum)
    async def enum_frameintervals(self, asked: raw.v4l2_frmivalenum) -> raw.v4l2_frmivalenum:
        if asked.pixel_format not in FORMATS or (asked.width, asked.height) not in SIZES:
            raise invalid("no such format")
        if asked.index >= len(SLOWER):
            raise invalid("no such interval")
        told = raw.v4l2_frmivalenum(asked.index, asked.pixel_format, asked.width, asked.height)
        told.type = raw.Frmivaltypes.DISCRETE
        interval = self.camera.fastest * SLOWER[asked.index]
        told.discrete.numerator, told.discrete.denominator = interval.as_integer_ratio()
        return told

    @handles(raw.IOC.G_FMT, raw.v4l2_format)
    async def g_fmt(self, asked: raw.v4l2_format) -> raw.v4l2_format:
        is_capture(asked.type)
        return _told(self.camera.format)

    @handles(raw.IOC.TRY_FMT, raw.v4l2_format)
    async def try_fmt(self, asked: raw.v4l2_format) -> raw.v4l2_format:
        is_capture(asked.type)
        pix = asked.fmt.pix
        return _told(pix_format(pix.pixelformat, pix.width, pix.height))

    @handles(raw.IOC.S_FMT, raw.v4l2_format)
    async def s_fmt(self, asked: raw.v4l2_format) -> raw.v4l2_format:
        self.may_change()
        is_capture(asked.type)
        pix = asked.fmt.pix
        wanted = pix_format(pix.pixelformat, pix.width, pix.height)
        self.queue.check_unused()
        self.camera.format = wanted
        return _told(wanted)

    # Frame rates

    @handles(raw.IOC.G_PARM, raw.v4l2_streamparm)
    async def g_parm(self, asked: raw.v4l2_streamparm) -> raw.v4l2_streamparm:
        is_capture(asked.type)
        told = raw.v4l2_streamparm(asked.type)
        capture = told.parm.capture
        capture.capability = int(raw.Capability.TIMEPERFRAME)
        capture.timeperframe = raw.v4l2_fract(*self.camera.interval.as_integer_ratio())
        capture.readbuffers = READ_BUFFERS
        return told

    @handles(raw.IOC.S_PARM, raw.v4l2_streamparm)
    async def s_parm(self, asked: raw.v4l2_streamparm) -> raw.v4l2_streamparm:
        self.may_change()
        is_capture(asked.type)
        wanted = asked.parm.capture.timeperframe
        fastest = self.camera.fastest
        nearest = fastest
        if wanted.numerator and wanted.denominator:
            interval = Fraction(wanted.numerator, wanted.denominator)
            nearest = min((fastest * by for by in SLOWER), key=lambda one: abs(one - interval))
        self.camera.interval = nearest
        return await self.g_parm(asked)


class ReadOnlyFile(CameraFile):
    """An open of a camera that has no buffers."""

    capabilities = CAPABILITIES & ~raw.Capability.STREAMING

    async def none(self, _: object) -> None:
        """Answer as if the command did not exist."""
        raise OSError(errno.ENOTTY, "no streaming")

    reqbufs = create_bufs = querybuf = qbuf = dqbuf = streamon = streamoff = none  # type: ignore[assignment]


def _told(pix: raw.v4l2_pix_format) -> raw.v4l2_format:
    told = raw.v4l2_format(raw.BufType.VIDEO_CAPTURE)
    told.fmt.pix = pix
    return told
