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

KINDS = pytest.mark.parametrize(
    "flags",
    [(), ("-m32",), ("-m32", "-D_FILE_OFFSET_BITS=64", "-D_TIME_BITS=64")],
    ids=["64", "32", "32-time64"],
)


@pytest.fixture
def compiled(needs: Needs, tmp_path: Path) -> Compile:
    """`compiled(*flags)`: the path of clients/camera.c as a program."""

    def compiled(*flags: str) -> str:
        gcc, source = needs("gcc", "gcc"), Path(__file__).parent / "clients" / "camera.c"
        if flags:
            needs("/usr/include/asm", "gcc-multilib")
        program = tmp_path / "camera"
        options = ["-O1", "-Wall", "-Werror", *flags, "-o"]
        subprocess.run([gcc, *options, program, source], check=True)
        return str(program)

    return compiled


@KINDS
def test_frames(compiled: Compile, flags: tuple[str, ...]) -> None:
    with Sandbox(load(parse(str(ROOT / "examples" / FAST)))) as sandbox:
        outcome = sandbox.run(
            [compiled(*flags), "capture", "6"], capture_output=True, check=False, timeout=60
        )
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
    """Of all structures that have another size; a number has it in it."""
    outcome = subprocess.run(
        [compiled(*flags), "numbers"], capture_output=True, text=True, check=True, timeout=60
    )
    sys.path.insert(0, str(ROOT / "examples"))
    import camera  # noqa: PLC0415

    find = camera.CameraFile._ioctl_table.find
    answered = {}
    for line in outcome.stdout.splitlines():
        name, number = line.split()
        answered[name.removeprefix("VIDIOC_").lower()] = find(int(number)).name
    assert len(answered) == 12
    assert answered == {name: name for name in answered}
