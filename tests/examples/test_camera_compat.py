"""The camera with programs of 32 bits, whose structures have another layout."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recuse import Sandbox
from recuse.cli.spec import load, parse
from tests.conftest import Needs
from tests.examples.frames import FAST, ROOT, Look, check, frames_of

Compile = Callable[..., str]

CLIENT = Path(__file__).parent / "clients" / "camera.c"

KINDS = pytest.mark.parametrize(
    "flags",
    [(), ("-m32",), ("-m32", "-D_FILE_OFFSET_BITS=64", "-D_TIME_BITS=64")],
    ids=["64", "32", "32-time64"],
)


@pytest.fixture
def compiled(needs: Needs, tmp_path: Path) -> Compile:
    """`compiled(source, *flags)`: the path of a C program."""

    def compiled(source: str, *flags: str) -> str:
        gcc, program = needs("gcc", "gcc"), str(tmp_path / "program")
        if flags:
            needs("/usr/include/asm", "gcc-multilib")
        options = ["-O1", "-Wall", "-Werror", *flags, "-xc", "-", "-o"]
        subprocess.run([gcc, *options, program], input=source, text=True, check=True)
        return program

    return compiled


@KINDS
def test_frames(compiled: Compile, flags: tuple[str, ...]) -> None:
    program = compiled(CLIENT.read_text(), *flags)
    with Sandbox(load(parse(str(ROOT / "examples" / FAST)))) as sandbox:
        outcome = sandbox.run([program, "6"], capture_output=True, check=False, timeout=60)
    assert outcome.stderr.decode().splitlines() == [
        "input Camera 0",
        "was 320 240",
        "is 320 240 153600",
        "controls 160 64 at home",
        "wrong -1 Invalid argument 1",
        "event 160 of 980900, time ok",
        *["frame later ok"] * 6,
    ]
    assert outcome.returncode == 0
    look = Look(320, 240, brightness=160, contrast=64)
    assert len(check(frames_of(outcome.stdout, look), look)) == 6


@KINDS
def test_numbers_are_those_of_the_header(compiled: Compile, flags: tuple[str, ...]) -> None:
    """Of all commands that the camera answers; a structure's size is in the number."""
    sys.path.insert(0, str(ROOT / "examples"))
    import camera  # noqa: PLC0415
    from linuxpy.video import raw  # noqa: PLC0415

    def handler(number: int) -> str:
        return camera.CameraFile._ioctl_table.find(number & 0xFFFFFFFF).name

    names = [
        name
        for name, number in raw.IOC.__members__.items()
        if handler(number) != "unknown_ioctl" and not name.startswith("SUBDEV_")
    ]
    assert len(names) == 32
    lines = "".join(f'printf("%u\\n", (unsigned)(VIDIOC_{name}));\n' for name in names)
    program = compiled(
        "#include <stdio.h>\n#include <sys/time.h>\n#include <linux/videodev2.h>\n"
        f"int main(void) {{\n{lines}return 0; }}\n",
        *flags,
    )
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert [handler(int(number)) for number in said] == [name.lower() for name in names]
