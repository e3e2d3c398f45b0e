"""The examples with their real programs, as an ordinary user without any capability."""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Needs
from tests.examples.frames import FAST, Look, check, frames_of

ROOT = Path(__file__).parents[2]
EXAMPLES = "/usr/share/doc/libfuse3-dev/examples"
COMMAND = "import sys; from recuse.cli.main import main; sys.exit(main())"
NOBODY = ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]

Run = Callable[[str, str], str]


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """recuse, what it imports, its examples and smbus2, where anybody can read them."""
    packages = [ROOT / "src/recuse", ROOT / "examples"]
    for name in ("click", "smbus2"):
        packages.append(Path(__import__(name).__file__ or "").parent)
    with tempfile.TemporaryDirectory(prefix="unprivileged-") as name:
        directory = Path(name)
        for package in packages:
            shutil.copytree(package, directory / package.name)
        for_everybody(directory)
        yield directory


def for_everybody(directory: Path) -> None:
    directory.chmod(0o755)
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def directory_with_pictures(directory: Path) -> Path:
    """The same directory, with what the camera needs."""
    import linuxpy  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415
    import simplejpeg  # noqa: PLC0415

    for package in (linuxpy, np, simplejpeg):
        made = Path(package.__file__ or "").parent
        # The libraries that a wheel brings are beside it.
        for source in (made, made.with_name(f"{made.name}.libs")):
            if source.exists() and not (directory / source.name).exists():
                shutil.copytree(
                    source,
                    directory / source.name,
                    ignore=shutil.ignore_patterns("tests", "*.pyc"),
                )
                for_everybody(directory / source.name)
    return directory


@pytest.fixture
def as_nobody(needs: Needs, directory: Path) -> Run:
    """Runs a shell's command with an example; as nobody if this is root."""
    python, drop = sys.executable, []
    if os.geteuid() == 0:
        python = str(needs("/usr/bin/python3", "python3"))
        drop = [str(needs("setpriv", "util-linux")), *NOBODY, "--inh-caps=-all"]

    def run(device: str, command: str) -> str:
        done = subprocess.run(
            [*drop, python, "-B", "-c", COMMAND, "run", "-d", device, "--", "sh", "-c", command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=directory,
            env={"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", "PYTHONPATH": str(directory)},
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return done.stdout

    return run


def test_who_runs_there(as_nobody: Run) -> None:
    if os.geteuid() == 0:
        status = as_nobody("examples/echo.py", "id -u; grep -E 'Cap(Eff|Bnd)' /proc/self/status")
        assert status.split() == ["65534", "CapEff:", "0" * 16, "CapBnd:", "0" * 16]
    assert as_nobody("examples/echo.py", "echo hello >/dev/echo; cat /dev/echo") == "hello\n"


def test_i2c_tools(as_nobody: Run, needs: Needs) -> None:
    needs("i2cdetect", "i2c-tools")
    table = as_nobody("examples/eeprom.py", "i2cdetect -y -r 9").splitlines()
    assert next(line.split()[1:] for line in table if line.startswith("50:"))[0] == "50"
    assert "48" in next(line for line in table if line.startswith("40:")).split()
    written = as_nobody(
        "examples/eeprom.py",
        "i2cset -y 9 0x50 0x10 0x42 && i2cget -y 9 0x50 0x10 && i2cdump -y -r 0x10-0x10 9 0x50 b "
        "| tail -1 && i2ctransfer -y 9 w1@0x50 0x10 r1",
    )
    lines = written.splitlines()
    assert (lines[0], lines[1].split()[:2], lines[2]) == ("0x42", ["10:", "42"], "0x42")


def test_smbus2(as_nobody: Run, needs: Needs) -> None:
    python = sys.executable if os.geteuid() else str(needs("/usr/bin/python3", "python3"))
    script = (
        "from smbus2 import SMBus, i2c_msg; bus = SMBus(9); bus.write_byte_data(0x50, 3, 7); "
        "read = i2c_msg.read(0x50, 1); bus.i2c_rdwr(i2c_msg.write(0x50, [3]), read); "
        "print(bus.read_byte_data(0x50, 3), list(read))"
    )
    assert as_nobody("examples/eeprom.py", f"{python} -c '{script}'") == "7 [7]\n"


def test_libfuses_cuse_client(as_nobody: Run, needs: Needs, directory: Path) -> None:
    compiler = needs("gcc", "gcc")
    source = needs(f"{EXAMPLES}/cuse_client.c", "libfuse3-dev")
    program = directory / "cuse_client"
    subprocess.run([compiler, "-w", f"-I{EXAMPLES}", "-o", program, source], check=True)
    program.chmod(0o755)
    output = as_nobody(
        "examples/memory.py",
        "c=./cuse_client; $c /dev/memory s 8 && printf abc | $c /dev/memory w 3 2 2>&1 && "
        "$c /dev/memory r 3 2 2>&1; $c /dev/memory s",
    )
    assert "abc" in output
    assert output.endswith("8\n")


def test_libgpiods_programs(as_nobody: Run, needs: Needs) -> None:
    needs("gpioset", "gpiod")
    output = as_nobody(
        "examples/gpiochip.py", "gpiodetect && gpioset gpiochip9 0=1 && gpioget gpiochip9 1 3"
    )
    assert output == "gpiochip9 [recuse] (8 lines)\n1 0\n"


def test_a_camera(as_nobody: Run, needs: Needs, directory_with_pictures: Path) -> None:
    """Programs map its frames; that takes another process's memory."""
    needs("v4l2-ctl", "v4l-utils")
    python = sys.executable if os.geteuid() else str(needs("/usr/bin/python3", "python3"))
    command = [python, "-c", "import numpy, simplejpeg"]
    environment = {"PYTHONPATH": str(directory_with_pictures)}
    if subprocess.run(command, env=environment, check=False, stderr=subprocess.PIPE).returncode:
        pytest.skip(f"{python} is another Python than numpy here is for")
    output = as_nobody(
        "examples/" + FAST,
        "v4l2-ctl -d 9 --set-ctrl brightness=100 --get-ctrl brightness; { v4l2-ctl -d 9 "
        "--stream-mmap --stream-count=3 --stream-to=/dev/fd/3 >/dev/null 2>&1; } 3>&1 | base64",
    )
    title, _, data = output.partition("\n")
    assert title == "brightness: 100"
    look = Look(320, 240, brightness=100)
    assert len(check(frames_of(base64.b64decode(data), look), look)) == 3


def test_drawing(as_nobody: Run, needs: Needs) -> None:
    needs("fbcat", "fbcat")
    output = as_nobody(
        "examples/framebuffer.py,width=8,height=8", "printf ABCD >/dev/fb9; fbcat /dev/fb9 | cat -v"
    )
    assert output == "P6 8 8 255\nCBA" + 63 * "^@^@^@"
