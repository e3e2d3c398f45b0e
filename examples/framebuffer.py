"""A framebuffer, /dev/fb9: a screen as memory, which programs map, or read and write.

Try it::

    $ recuse run -d examples/framebuffer.py,png=screen.png -- bash
    $ fbset -fb /dev/fb9 | grep geometry
        geometry 640 480 640 480 32
    $ ffmpeg -v error -f lavfi -i testsrc=s=vga -frames:v 1 -pix_fmt bgra -f fbdev /dev/fb9
    $ fbcat /dev/fb9 | head -n 1
    P6 640 480 255

``png`` names a file that gets the picture when a program that could draw has closed the device.
This file is also a program that takes a picture of any framebuffer at any time:
``python examples/framebuffer.py /dev/fb9 >screen.png``.

ioctls answer as in drivers/video/fbdev/core/fbmem.c, Linux 6.1, with a driver that has one size and
one kind of pixels.
"""

import errno
import fcntl
import mmap
import os
import struct
import sys
import zlib
from ctypes import Structure, c_char, c_uint16, c_uint32, c_uint64
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from recuse import (
    Area,
    ArgumentError,
    Device,
    File,
    Memory,
    MmapRequest,
    OpenRequest,
    current_request,
    ioctl,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

FBIOGET_VSCREENINFO, FBIOPUT_VSCREENINFO, FBIOGET_FSCREENINFO = 0x4600, 0x4601, 0x4602
FBIOGETCMAP, FBIOPUTCMAP, FBIOPAN_DISPLAY, FBIOBLANK = 0x4604, 0x4605, 0x4606, 0x4611
FB_VISUAL_TRUECOLOR = 2
FB_MAJOR = 29  # linux/major.h
FB_ACTIVATE_NOW, FB_ACTIVATE_MASK, FB_ACTIVATE_KD_TEXT = 0, 15, 512
FB_VMODE_YWRAP = 256
FB_BLANK_POWERDOWN = 4


# ---- the structures of <linux/fb.h>


class Bitfield(Structure):
    """struct fb_bitfield: where a colour is in a pixel."""

    _fields_ = [("offset", c_uint32), ("length", c_uint32), ("msb_right", c_uint32)]


class Variable(Structure):
    """struct fb_var_screeninfo: what can change."""

    _fields_ = [
        *((name, c_uint32) for name in ("xres", "yres", "xres_virtual", "yres_virtual")),
        *((name, c_uint32) for name in ("xoffset", "yoffset", "bits_per_pixel", "grayscale")),
        *((name, Bitfield) for name in ("red", "green", "blue", "transp")),
        *((name, c_uint32) for name in ("nonstd", "activate", "height", "width", "accel_flags")),
        *((name, c_uint32) for name in ("pixclock", "left_margin", "right_margin")),
        *((name, c_uint32) for name in ("upper_margin", "lower_margin", "hsync_len", "vsync_len")),
        *((name, c_uint32) for name in ("sync", "vmode", "rotate", "colorspace")),
        ("reserved", c_uint32 * 4),
    ]

    def pixels(self) -> tuple[int | tuple[int, int], ...]:
        """Return the kind of pixels: their bits, whether they are grey, where each colour is."""
        colours = (self.red, self.green, self.blue, self.transp)
        return self.bits_per_pixel, self.grayscale, *((c.offset, c.length) for c in colours)


class Fixed(Structure):
    """struct fb_fix_screeninfo: what never changes."""

    _fields_ = [
        ("id", c_char * 16),
        ("smem_start", c_uint64),
        *((name, c_uint32) for name in ("smem_len", "type", "type_aux", "visual")),
        *((name, c_uint16) for name in ("xpanstep", "ypanstep", "ywrapstep")),
        ("line_length", c_uint32),
        ("mmio_start", c_uint64),
        *((name, c_uint32) for name in ("mmio_len", "accel")),
        ("capabilities", c_uint16),
        ("reserved", c_uint16 * 2),
    ]


class Fixed32(Structure):
    """The same for 32-bit programs, whose longs are shorter."""

    _fields_ = [(name, c_uint32 if kind is c_uint64 else kind) for name, kind, *_ in Fixed._fields_]


COLOURS = {
    32: {"red": (16, 8), "green": (8, 8), "blue": (0, 8), "transp": (24, 8)},
    16: {"red": (11, 5), "green": (5, 6), "blue": (0, 5)},
}
"""By bits per pixel, where the colours are: the first bit, and the number of bits."""


# ---- the device


class Framebuffer(Device):
    """The device: memory, and the part of it that is on the screen."""

    subsystem = "class/graphics"

    def __init__(
        self,
        number: int = 9,
        *,
        width: int = 640,
        height: int = 480,
        depth: int = 32,
        pages: int = 1,
        png: Path | None = None,
    ) -> None:
        """Create /dev/fbNUMBER, with pixels of 32 bits (BGRA in memory) or 16 (RGB565).

        The memory has ``pages`` screens, one below the other; FBIOPAN_DISPLAY chooses which part is
        shown.
        """
        if depth not in COLOURS:
            raise ArgumentError(f"depth={depth}: must be 32 or 16")
        if min(width, height) < 8 or pages < 1:
            raise ArgumentError(f"{pages} pages of {width} x {height}: 1 of 8 x 8 is the smallest")
        if png is not None and not png.parent.is_dir():
            raise ArgumentError(f"{png.parent}: no such directory")
        super().__init__(name=f"fb{number}", major=FB_MAJOR, minor=number, seekable=True)
        self.png = png
        self.saving = Lock()
        self.variable = Variable(width, height, width, height * pages, bits_per_pixel=depth)
        self.variable.width = self.variable.height = 0xFFFFFFFF  # unknown size in millimetres
        for name, place in COLOURS[depth].items():
            setattr(self.variable, name, Bitfield(*place))
        self.fixed = Fixed(b"recuse", visual=FB_VISUAL_TRUECOLOR, ypanstep=pages > 1)
        self.fixed.line_length = width * depth // 8
        self.fixed.smem_len = self.fixed.line_length * height * pages
        self.area = Area(self.fixed.smem_len, name=self.name, dont_expand=True)
        self.blank = 0
        mode = f"U:{width}x{height}p-0\n"
        self.sysfs = {
            "name": "recuse\n",
            "bits_per_pixel": f"{depth}\n",
            "virtual_size": f"{width},{height * pages}\n",
            "stride": f"{self.fixed.line_length}\n",
            "pan": Framebuffer.show_pan,
            "mode": mode,
            "modes": mode,
            "rotate": "0\n",
            "state": "0\n",
        }

    def open(self, request: OpenRequest) -> File:
        return FramebufferFile()

    def check(self, wanted: Variable) -> Variable:
        """Return the result if a program set ``wanted``.

        As with the framebuffers of Linux's DRM drivers, sizes and pixels cannot change, and timings
        do not matter.  Raises EINVAL.
        """
        can = self.variable
        size = wanted.xres, wanted.yres
        fits = wanted.xres_virtual <= can.xres_virtual and wanted.yres_virtual <= can.yres_virtual
        if size != (can.xres, can.yres) or not fits:
            raise OSError(errno.EINVAL, "another size")
        # Old programs give the bits per pixel, and nothing about colours.
        colours = wanted.pixels()[1:]
        if wanted.bits_per_pixel != can.bits_per_pixel or (
            colours != can.pixels()[1:] and colours != Variable().pixels()[1:]
        ):
            raise OSError(errno.EINVAL, "other pixels")
        shown = self.panned(wanted)
        shown.activate = wanted.activate & ~FB_ACTIVATE_KD_TEXT
        return shown

    def panned(self, wanted: Variable) -> Variable:
        """Return the result with another part of the memory on the screen; raise EINVAL."""
        shown = Variable.from_buffer_copy(self.variable)
        if wanted.xoffset or wanted.yoffset > shown.yres_virtual - shown.yres:
            raise OSError(errno.EINVAL, "not in memory")
        if wanted.yoffset and wanted.vmode & FB_VMODE_YWRAP:
            raise OSError(errno.EINVAL, "it does not wrap")
        shown.yoffset = wanted.yoffset
        return shown

    def picture(self) -> bytes:
        """Return what is on the screen now, as a PNG."""
        return picture(self.variable, self.fixed.line_length, self.area.buffer)

    def save(self) -> None:
        """Write the picture to the user's file; readers always find a complete one."""
        if self.png is None:
            return
        with self.saving:
            new = self.png.with_name(f"{self.png.name}.new")
            new.write_bytes(self.picture())
            new.replace(self.png)

    def show_pan(self) -> str:
        return f"{self.variable.xoffset},{self.variable.yoffset}\n"


class FramebufferFile(File):
    """One open of it."""

    device: Framebuffer

    def mmap(self, request: MmapRequest) -> Area:
        pages = -(-self.device.area.size // mmap.PAGESIZE)
        if request.size > pages * mmap.PAGESIZE:
            raise OSError(errno.EINVAL, "beyond the end of the memory")
        return self.device.area

    def read(self, size: int, offset: int) -> "Buffer":
        return self.device.area[offset : offset + size]

    def write(self, data: bytes, offset: int) -> int:
        area = self.device.area
        if offset > area.size:
            raise OSError(errno.EFBIG, "beyond the end of the memory")
        data = data[: area.size - offset]
        if not data:
            raise OSError(errno.ENOSPC, "at the end of the memory")
        area[offset : offset + len(data)] = data
        return len(data)

    def release(self) -> None:
        if self.flags & os.O_ACCMODE != os.O_RDONLY:
            self.device.save()

    @ioctl(FBIOGET_VSCREENINFO, Variable, direction="r")
    def get_variable(self, _old: Variable) -> Variable:
        return self.device.variable

    @ioctl(FBIOPUT_VSCREENINFO, Variable, direction="rw")
    def put_variable(self, wanted: Variable) -> Variable:
        checked = self.device.check(wanted)
        if checked.activate & FB_ACTIVATE_MASK == FB_ACTIVATE_NOW:
            self.device.variable = checked
        return checked

    @ioctl(FBIOPAN_DISPLAY, Variable, direction="rw")
    def pan(self, wanted: Variable) -> None:
        self.device.variable = self.device.panned(wanted)

    @ioctl(FBIOGET_FSCREENINFO)
    def get_fixed(self, address: int, memory: Memory) -> None:
        """The size of the structure depends on the program."""
        fixed: Structure = self.device.fixed
        if current_request().compat:
            fixed = Fixed32(*(getattr(fixed, name) for name, *_ in Fixed32._fields_))
        memory.write_struct(address, fixed)

    @ioctl(FBIOGETCMAP)
    @ioctl(FBIOPUTCMAP)
    def colour_map(self) -> None:
        raise OSError(errno.EINVAL, "no colour map: pixels contain their colours")

    @ioctl(FBIOBLANK)
    def set_blank(self, level: int) -> None:
        self.device.blank = min(level, FB_BLANK_POWERDOWN)


# ---- the viewer


def shades(pixels: bytes, size: int, where: Bitfield) -> bytes:
    """Return one colour of each pixel, from 0 to 255; a pixel has ``size`` bytes."""
    if where.length == 8:
        return pixels[where.offset // 8 :: size]
    if size != 2 or not where.length:
        raise ValueError("pixels of an unknown kind")
    offset, most = where.offset, (1 << where.length) - 1
    shade = bytes(value * 0xFFFF // most >> 8 for value in range(most + 1))
    return bytes([shade[pixel >> offset & most] for pixel in memoryview(pixels).cast("H")])


def picture(variable: Variable, line_length: int, memory: "memoryview | mmap.mmap") -> bytes:
    """Return what a framebuffer shows, as a PNG."""
    size = variable.bits_per_pixel // 8
    first = variable.yoffset * line_length + variable.xoffset * size
    starts = range(first, first + variable.yres * line_length, line_length)
    pixels = b"".join(memory[start : start + variable.xres * size] for start in starts)
    rgb = bytearray(3 * variable.xres * variable.yres)
    for index, where in enumerate((variable.red, variable.green, variable.blue)):
        rgb[index::3] = shades(pixels, size, where)
    return png(variable.xres, variable.yres, rgb)


def png(width: int, height: int, rgb: bytearray) -> bytes:
    """Return a picture in the format of a PNG file (RFC 2083), from 3 bytes for each pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    lines = b"".join(b"\0" + rgb[at : at + 3 * width] for at in range(0, len(rgb), 3 * width))
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)  # 8 bits each of RGB
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )


def view(path: str) -> bytes:
    """Return what any framebuffer device shows, as a PNG."""
    with open(path, "rb", buffering=0) as file:
        fixed, variable = Fixed(), Variable()
        fcntl.ioctl(file, FBIOGET_FSCREENINFO, fixed)
        fcntl.ioctl(file, FBIOGET_VSCREENINFO, variable)
        with mmap.mmap(file.fileno(), fixed.smem_len, prot=mmap.PROT_READ) as memory:
            return picture(variable, fixed.line_length, memory)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.stdout.isatty():
        sys.exit(f"usage: {sys.argv[0]} DEVICE >PICTURE.png")
    sys.stdout.buffer.write(view(sys.argv[1]))
