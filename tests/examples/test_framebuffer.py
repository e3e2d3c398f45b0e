"""The framebuffer: with fbset, fbcat, ffmpeg and dd, and with small programs that map it."""

import ctypes
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from recuse import Sandbox
from recuse.channel.listen import DeviceServer
from recuse.channel.socket import Remote
from tests.conftest import Needs
from tests.examples.conftest import TIMEOUT_S, Run

ROOT = Path(__file__).parents[2]
FBSET = "PATH=$PATH:/usr/sbin:/sbin fbset -fb /dev/fb9"
PIXELS = {32: "bgra", 16: "rgb565le"}

Make = Callable[..., Any]

PRELUDE = f"""
import ctypes, errno, fcntl, mmap, os, sys
sys.path.insert(0, {str(ROOT / "examples")!r})
from framebuffer import *

fb = os.open("/dev/fb9", os.O_RDWR)

def attempt(function, *arguments):
    "What it returns, or the error's name."
    try:
        return function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]

def ioctl(command, argument=0):
    return attempt(fcntl.ioctl, fb, command, argument)

def get():
    variable = Variable()
    ioctl(FBIOGET_VSCREENINFO, variable)
    return variable

def put(command=FBIOPUT_VSCREENINFO, **fields):
    "What an ioctl says to the variables as they are but for some."
    variable = get()
    for name, value in fields.items():
        setattr(variable, name, value)
    return ioctl(command, variable)
"""


@pytest.fixture
def framebuffer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("framebuffer")


@pytest.fixture
def make(framebuffer: ModuleType) -> Iterator[Make]:
    """`make(width=8, ...)`: a Framebuffer, whose memory ends with the test."""
    devices = []

    def make(**arguments: Any) -> Any:
        devices.append(framebuffer.Framebuffer(**arguments))
        return devices[-1]

    yield make
    for device in devices:
        device.area.close()


def run(device: Any, *argv: str, **options: Any) -> bytes:
    """What a program prints; it must not fail."""
    with Sandbox(device) as sandbox:
        done = sandbox.run(argv, capture_output=True, timeout=TIMEOUT_S, **options)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    assert isinstance(done.stdout, bytes)
    return done.stdout


def python(device: Any, code: str) -> list[str]:
    """The lines that a program prints, which has what PRELUDE defines."""
    return run(device, sys.executable, "-c", PRELUDE + code).decode().splitlines()


def ffmpeg(needs: Needs, *arguments: str) -> list[str]:
    program = str(needs("ffmpeg", "ffmpeg"))
    return [program, "-v", "error", "-nostdin", "-threads", "1", *arguments]


def converted(needs: Needs, source: list[str], pixels: str, data: bytes = b"") -> bytes:
    """A picture as ffmpeg has it, outside."""
    argv = ffmpeg(needs, *source, "-frames:v", "1", "-pix_fmt", pixels, "-f", "rawvideo", "-")
    return subprocess.run(
        argv, input=data, stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S
    ).stdout


def card_of(width: int, height: int) -> list[str]:
    """The arguments of ffmpeg's for a picture with all that a screen can show."""
    return ["-f", "lavfi", "-i", f"testsrc=size={width}x{height}"]


# ---- the interface


HEADERS = "#include <linux/fb.h>\n#include <stddef.h>\n#include <stdio.h>\n"
C_NAMES = {
    "Bitfield": "fb_bitfield",
    "Variable": "fb_var_screeninfo",
    "Fixed": "fb_fix_screeninfo",
}
NUMBERS = [
    *["FBIOGET_VSCREENINFO", "FBIOPUT_VSCREENINFO", "FBIOGET_FSCREENINFO", "FBIOGETCMAP"],
    *["FBIOPUTCMAP", "FBIOPAN_DISPLAY", "FBIOBLANK", "FB_VISUAL_TRUECOLOR", "FB_ACTIVATE_NOW"],
    *["FB_ACTIVATE_MASK", "FB_ACTIVATE_KD_TEXT", "FB_VMODE_YWRAP", "FB_BLANK_POWERDOWN"],
]


def compiled(needs: Needs, path: Path, source: str, *flags: str) -> str:
    program = path / "program"
    argv = [str(needs("gcc", "gcc")), "-Wall", "-Werror", *flags, "-xc", "-", "-o", str(program)]
    subprocess.run(argv, input=source, text=True, check=True, timeout=TIMEOUT_S)
    return str(program)


@pytest.mark.parametrize("bits", [64, 32])
def test_structures_and_numbers_are_those_of_the_header(
    framebuffer: ModuleType, needs: Needs, tmp_path: Path, bits: int
) -> None:
    needs("/usr/include/linux/fb.h", "linux-libc-dev")
    names = dict(C_NAMES)
    if bits == 32:
        needs("/usr/include/asm", "gcc-multilib")
        names["Fixed32"] = names.pop("Fixed")
    expected = {name: getattr(framebuffer, name) for name in NUMBERS}
    for name, c in names.items():
        structure: type[ctypes.Structure] = getattr(framebuffer, name)
        expected[f"sizeof(struct {c})"] = ctypes.sizeof(structure)
        for field in structure._fields_:
            place = getattr(structure, field[0])
            expected[f"offsetof(struct {c}, {field[0]})"] = place.offset
            expected[f"sizeof(((struct {c} *)0)->{field[0]})"] = place.size
    lines = "".join(f'printf("%d\\n", (int)({c}));\n' for c in expected)
    source = f"{HEADERS}int main(void) {{\n{lines}return 0; }}\n"
    program = compiled(needs, tmp_path, source, f"-m{bits}")
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(expected, map(int, said), strict=True)) == expected


def test_fbset(run: Run, needs: Needs) -> None:
    needs("fbset", "fbset")
    done = run(
        "framebuffer.py,width=320,height=200,depth=16,pages=2", "fbset", "-fb", "/dev/fb9", "-i"
    )
    assert (
        done.stdout.decode()
        == """
mode "320x200"
    geometry 320 200 320 400 16
    timings 0 0 0 0 0 0 0
    rgba 5/11,6/5,5/0,0/0
endmode

Frame buffer device information:
    Name        : recuse
    Address     : 0
    Size        : 256000
    Type        : PACKED PIXELS
    Visual      : TRUECOLOR
    XPanStep    : 0
    YPanStep    : 1
    YWrapStep   : 0
    LineLength  : 640
    Accelerator : No
"""
    )


def test_fbset_sets_what_is_so(make: Make, needs: Needs) -> None:
    needs("fbset", "fbset")
    device = make(width=320, height=200, pages=2)
    geometries = {
        "320 200 320 400 32": 0,
        "320 200 320 200 32": 0,
        "320 200 320 401 32": 1,
        "320 200 640 400 32": 1,
        "640 480 640 480 32": 1,
        "160 100 160 100 32": 1,
        "320 200 320 400 16": 1,
    }
    script = "".join(f"{FBSET} -g {geometry} 2>&1; echo $?\n" for geometry in geometries)
    said = ["0\n", "ioctl FBIOPUT_VSCREENINFO: Invalid argument\n1\n"]
    expected = "".join(said[refused] for refused in geometries.values())
    assert run(device, "sh", "-c", script).decode() == expected


def test_setting_variables(make: Make) -> None:
    device = make(width=32, height=16, pages=3)
    code = """
print(put(), put(yres_virtual=16), get().yres_virtual)
print(put(red=Bitfield(0, 8)), put(grayscale=1), put(bits_per_pixel=24), put(xres=31))
print(put(pixclock=40000, vmode=1), get().pixclock, get().vmode)
print(put(xoffset=1), put(yoffset=33), put(yoffset=16, vmode=FB_VMODE_YWRAP), get().yoffset)
print(put(yoffset=32, activate=2), get().yoffset, put(yoffset=32), get().yoffset)
print(put(activate=FB_ACTIVATE_KD_TEXT), get().activate)
wanted = Variable(32, 16, 32, 16, bits_per_pixel=32)
print(ioctl(FBIOPUT_VSCREENINFO, wanted), wanted.red.offset, wanted.yres_virtual)
"""
    assert python(device, code) == [
        "0 0 48",
        "EINVAL EINVAL EINVAL EINVAL",
        "0 0 0",
        "EINVAL EINVAL EINVAL 0",
        "0 0 0 32",
        "0 0",
        "0 16 48",
    ]


def test_other_ioctls(framebuffer: ModuleType, make: Make) -> None:
    device = make()
    code = """
cmap = bytearray(40)
print(ioctl(FBIOGETCMAP, cmap), ioctl(FBIOPUTCMAP, cmap), ioctl(0x46ff), ioctl(0x460f, cmap))
print(ioctl(FBIOBLANK, 0), ioctl(FBIOBLANK, 1), ioctl(FBIOBLANK, 77))
"""
    assert python(device, code) == ["EINVAL EINVAL ENOTTY ENOTTY", "0 0 0"]
    assert device.blank == framebuffer.FB_BLANK_POWERDOWN


def test_panning(make: Make, needs: Needs) -> None:
    device = make(width=8, height=8, pages=2)
    code = """
print(put(FBIOPAN_DISPLAY, yoffset=9), put(FBIOPAN_DISPLAY, xoffset=1), get().yoffset)
print(put(FBIOPAN_DISPLAY, yoffset=1, vmode=FB_VMODE_YWRAP), put(FBIOPAN_DISPLAY, yoffset=8))
print(get().yoffset, open("/sys/class/graphics/fb9/pan").read(), end="")
"""
    device.area[:512] = bytes(256) + b"\x30\x20\x10\x00" * 64
    assert python(device, code) == ["EINVAL EINVAL 0", "EINVAL 0", "8 0,8"]
    fbcat = run(device, str(needs("fbcat", "fbcat")), "/dev/fb9")
    assert fbcat == b"P6 8 8 255\n" + b"\x10\x20\x30" * 64
    assert converted(needs, ["-i", "-"], "rgb24", device.picture()) == b"\x10\x20\x30" * 64


def test_panning_without_another_page(make: Make) -> None:
    code = """
fixed = Fixed()
print(put(FBIOPAN_DISPLAY), put(FBIOPAN_DISPLAY, yoffset=1))
print(ioctl(FBIOGET_FSCREENINFO, fixed), fixed.ypanstep)
"""
    assert python(make(), code) == ["0 EINVAL", "0 0"]


def test_sysfs(make: Make) -> None:
    names = "name bits_per_pixel virtual_size stride pan mode modes rotate state"
    script = (
        f"for name in {names}; do cat /sys/class/graphics/fb9/$name; done; stat -c %t:%T /dev/fb9"
    )
    printed = run(make(width=32, height=16, pages=3), "sh", "-c", script)
    assert printed.decode().split() == [
        *["recuse", "32", "32,48", "128", "0,0", "U:32x16p-0", "U:32x16p-0", "0", "0", "1d:9"]
    ]


# ---- memory


def test_reading_and_writing(make: Make) -> None:
    device = make(width=8, height=8)
    code = """
print(os.write(fb, b"abcd"), os.lseek(fb, 0, os.SEEK_CUR), os.pread(fb, 6, 0))
print(os.pwrite(fb, b"wxyz", 254), os.pread(fb, 99, 252))
print(os.pread(fb, 1, 256), os.pread(fb, 1, 999))
print(attempt(os.pwrite, fb, b"a", 256), attempt(os.pwrite, fb, b"a", 257))
os.lseek(fb, 0, os.SEEK_SET)
print(os.write(fb, bytes(range(256)) * 1000), attempt(os.write, fb, b"a"))
"""
    assert python(device, code) == [
        r"4 4 b'abcd\x00\x00'",
        r"2 b'\x00\x00wx'",
        "b'' b''",
        "ENOSPC EFBIG",
        "256 ENOSPC",
    ]
    assert bytes(device.area.buffer) == bytes(range(256))


def test_dd_until_the_screen_is_full(make: Make) -> None:
    device = make()
    with Sandbox(device) as sandbox:
        argv = ["dd", "if=/dev/zero", "of=/dev/fb9", "bs=100000"]
        device.area[0] = device.area[-1] = 1
        done = sandbox.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert "No space left on device" in done.stderr
    assert "1228800 bytes" in done.stderr
    assert not any(device.area.buffer)


def test_mapping(make: Make) -> None:
    """A page and a half: the rest of the second one can be mapped, too."""
    device = make(width=32, height=48)
    code = """
whole = mmap.mmap(fb, 6144)
second = mmap.mmap(fb, 4096, offset=4096, prot=mmap.PROT_READ)
whole[4096:4100] = b"abcd"
print(second[:4], os.pread(fb, 4, 4096))
os.pwrite(fb, b"efgh", 4096)
print(whole[4096:4100])
print(attempt(mmap.mmap, fb, 8193), type(mmap.mmap(fb, 8192)).__name__)
print(attempt(lambda: mmap.mmap(fb, 4096, offset=8192)))
libc = ctypes.CDLL(None, use_errno=True)
libc.mremap.restype = ctypes.c_void_p
start = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(whole)))
moved = libc.mremap(start, ctypes.c_size_t(8192), ctypes.c_size_t(16384), 1)
print(ctypes.c_long(moved).value, errno.errorcode[ctypes.get_errno()])
"""
    assert python(device, code) == [
        "b'abcd' b'abcd'",
        "b'efgh'",
        "EINVAL mmap",
        "EINVAL",
        "-1 EFAULT",
    ]


# ---- pictures


@pytest.mark.parametrize("depth", [32, 16])
def test_ffmpeg_draws_and_all_see_the_same(
    framebuffer: ModuleType, make: Make, needs: Needs, depth: int
) -> None:
    device = make(width=96, height=64, depth=depth)
    card, pixels = card_of(96, 64), PIXELS[depth]
    draw = ffmpeg(needs, *card, "-frames:v", "1", "-pix_fmt", pixels, "-f", "fbdev", "/dev/fb9")
    assert run(device, *draw) == b""
    drawn = converted(needs, card, pixels)
    assert device.area.buffer == drawn

    source = ["-f", "fbdev", "-i", "/dev/fb9"]
    grab = ffmpeg(needs, *source, "-frames:v", "1", "-f", "rawvideo", "-")
    assert run(device, *grab) == drawn

    rgb = run(device, str(needs("fbcat", "fbcat")), "/dev/fb9").removeprefix(b"P6 96 64 255\n")
    assert len({rgb[at : at + 3] for at in range(0, len(rgb), 3)}) > 50
    assert converted(needs, ["-i", "-"], "rgb24", device.picture()) == rgb
    if depth == 32:
        assert converted(needs, card, "rgb24") == rgb

    viewer = [sys.executable, str(ROOT / "examples/framebuffer.py"), "/dev/fb9"]
    assert run(device, *viewer) == device.picture()


@pytest.mark.parametrize("depth", [32, 16])
def test_ffmpeg_draws_on_the_page_that_is_shown(make: Make, needs: Needs, depth: int) -> None:
    device = make(width=96, height=64, depth=depth, pages=2)
    device.variable.yoffset = 64
    card, pixels = card_of(96, 64), PIXELS[depth]
    draw = ffmpeg(needs, *card, "-frames:v", "1", "-pix_fmt", pixels, "-f", "fbdev", "/dev/fb9")
    run(device, *draw)
    drawn = converted(needs, card, pixels)
    assert device.area.buffer == bytes(len(drawn)) + drawn


DRAW = """
#include <fcntl.h>
#include <linux/fb.h>
#include <stdio.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

int main(void) {
    struct { struct fb_fix_screeninfo it; char guard; } fix = { .guard = 42 };
    struct fb_var_screeninfo var;
    int fd = open("/dev/fb9", O_RDWR);
    if (fd < 0 || ioctl(fd, FBIOGET_FSCREENINFO, &fix) || ioctl(fd, FBIOGET_VSCREENINFO, &var))
        return 1;
    uint8_t *screen = mmap(0, fix.it.smem_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (screen == MAP_FAILED)
        return 2;
    for (unsigned y = 0; y < var.yres; y++)
        for (unsigned x = 0; x < var.xres; x++) {
            uint32_t *pixel = (uint32_t *)(screen + (y + var.yoffset) * fix.it.line_length) + x;
            *pixel = x << var.red.offset | y << var.green.offset | (x ^ y) << var.blue.offset;
        }
    printf("%s %u %u %u %d\\n", fix.it.id, fix.it.smem_len, fix.it.line_length, fix.it.visual,
           fix.guard);
    return 0;
}
"""


@pytest.mark.parametrize("bits", [64, 32])
def test_a_program_that_maps_it_and_draws(
    make: Make, needs: Needs, tmp_path: Path, bits: int
) -> None:
    if bits == 32:
        needs("/usr/include/asm", "gcc-multilib")
    program = compiled(needs, tmp_path, DRAW, f"-m{bits}", "-static")
    device = make(width=200, height=100)
    assert run(device, program) == b"recuse 80000 800 2 42\n"
    expected = bytes(part for y in range(100) for x in range(200) for part in (x, y, x ^ y))
    assert converted(needs, ["-i", "-"], "rgb24", device.picture()) == expected


def test_drawing_in_one_sandbox_and_looking_in_another(
    make: Make, needs: Needs, tmp_path: Path
) -> None:
    device, path = make(width=96, height=64), str(tmp_path / "socket")
    card, output = card_of(96, 64), ["-f", "fbdev", "/dev/fb9"]
    with closing(DeviceServer(device, path)):
        run(Remote(path), *ffmpeg(needs, *card, "-frames:v", "1", "-pix_fmt", "bgra", *output))
        rgb = run(Remote(path), str(needs("fbcat", "fbcat")), "/dev/fb9")
    assert rgb == b"P6 96 64 255\n" + converted(needs, card, "rgb24")


def test_a_large_picture_is_in_a_file(run: Run, needs: Needs, tmp_path: Path) -> None:
    """Also when the program that has drawn it is the last one, and making it takes a while."""
    device = f"framebuffer.py,width=1280,height=1024,depth=16,png={tmp_path / 'screen.png'}"
    assert run(device, "dd", "of=/dev/fb9", stdin=b"\x1f\0" * 4096).returncode == 0
    assert converted(needs, ["-i", str(tmp_path / "screen.png")], "rgb24")[:3] == b"\0\0\xff"


def test_who_looks_finds_a_whole_picture(make: Make, tmp_path: Path) -> None:
    screen = make(width=8, height=8, png=tmp_path / "screen.png")
    screen.save()
    with open(tmp_path / "screen.png", "rb") as black:
        screen.area[0:4] = b"\xff" * 4
        screen.save()
        assert black.read() != (tmp_path / "screen.png").read_bytes() == screen.picture()
    assert [path.name for path in tmp_path.iterdir()] == ["screen.png"]


def test_pictures_saved_by_many_threads(make: Make, tmp_path: Path) -> None:
    """Programs that close it at once, that is."""
    device = make(width=8, height=8, png=tmp_path / "screen.png")
    with ThreadPoolExecutor(8) as threads:
        for saved in [threads.submit(device.save) for _ in range(200)]:
            saved.result(TIMEOUT_S)
    assert (tmp_path / "screen.png").read_bytes() == device.picture()


def test_the_picture_is_in_a_file_when_it_is_drawn(run: Run, needs: Needs, tmp_path: Path) -> None:
    path = tmp_path / "screen.png"
    device = f"framebuffer.py,width=16,height=8,png={path}"
    run(device, "cat", "/dev/fb9")
    assert not path.exists()
    done = run(device, "dd", "of=/dev/fb9", stdin=b"\x30\x20\x10\0" * 64)
    assert done.returncode == 0
    rgb = b"\x10\x20\x30" * 64 + bytes(192)
    assert converted(needs, ["-i", str(path)], "rgb24") == rgb
    assert list(tmp_path.iterdir()) == [path]


# ---- mistakes


@pytest.mark.parametrize(
    "arguments", [{"depth": 24}, {"width": 7}, {"height": 0}, {"pages": 0}], ids=str
)
def test_what_cannot_be(framebuffer: ModuleType, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"depth=24|smallest"):
        framebuffer.Framebuffer(**arguments)


def test_a_picture_for_which_there_is_no_place(framebuffer: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing: no such directory"):
        framebuffer.Framebuffer(png=tmp_path / "missing" / "screen.png")


def test_the_viewer_says_how_to_use_it() -> None:
    viewer = [sys.executable, str(ROOT / "examples/framebuffer.py")]
    done = subprocess.run(viewer, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("framebuffer.py DEVICE >PICTURE.png\n")
