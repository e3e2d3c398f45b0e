"""recuse as users have it: installed from a wheel, in a path with spaces, in an archive."""

import os
import shutil
import subprocess
import sys
import zipapp
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]

ECHO = """
from recuse import Device, File

class Echo(Device):
    name = "echo"
    pending = b""
    def open(self, request):
        return EchoFile()

class EchoFile(File):
    def write(self, data, offset):
        self.device.pending += data
    def read(self, size, offset):
        oldest, rest = self.device.pending[:size], self.device.pending[size:]
        self.device.pending = rest
        return oldest
"""

Check = Callable[..., None]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that the project's own backend makes."""
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (made,) = place.glob("recuse-*.whl")
    return made


def install(wheel: Path, *options: str) -> None:
    """Install the wheel, compiled as it usually is, without asking any package registry."""
    subprocess.run(
        [sys.executable, "-m", "pip", *options, "--no-deps", "--no-index", "-q",
         "--disable-pip-version-check", "--root-user-action=ignore", str(wheel)],
        check=True,
        capture_output=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def directory(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with recuse and click."""
    directory = tmp_path_factory.mktemp("a place with spaces") / "some packages"
    install(wheel, "install", "--target", str(directory))
    shutil.copytree(Path(click.__file__).parent, directory / "click")
    return directory


@pytest.fixture
def works(tmp_path: Path) -> Check:
    """`works(command)`: whether that is recuse, and not the one that these tests belong to."""
    spec, where = tmp_path / "echo device.py", tmp_path / "where.py"
    spec.write_text(ECHO, encoding="utf-8")
    where.write_text(f"{ECHO}import recuse\nprint(recuse.__file__)\n", encoding="utf-8")

    def works(command: Sequence[str | Path], **environment: str) -> None:
        given = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        options: dict[str, object] = {"env": given | environment, "cwd": tmp_path}

        def run(*args: str | Path, status: int = 0) -> str:
            done = subprocess.run(
                [*command, *args],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                **options,
            )  # type: ignore[call-overload]
            assert (done.returncode, done.stderr) == (status, "")
            return str(done.stdout)

        script = "echo hello >/dev/echo; cat /dev/echo; exit 7"
        assert run("run", "-d", spec, "--", "sh", "-c", script, status=7) == "hello\n"
        assert run("--help").startswith("Usage: recuse ")
        assert run("--version").startswith("recuse 0.")
        assert str(ROOT) not in run("run", "-d", where, "true")

    return works


def test_from_a_wheel_in_an_environment_with_spaces_in_its_path(
    wheel: Path, tmp_path: Path, works: Check
) -> None:
    place = tmp_path / "an environment of mine"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    install(wheel, "--python", str(place / "bin" / "python"), "install")
    (packages,) = place.glob("lib/python*/site-packages")
    shutil.copytree(Path(click.__file__).parent, packages / "click")
    works([place / "bin" / "recuse"])
    works([place / "bin" / "python", "-m", "recuse"])


def test_in_an_archive(directory: Path, tmp_path: Path, works: Check) -> None:
    archive = tmp_path / "recuse in one file.pyz"
    zipapp.create_archive(directory, archive, sys.executable, "recuse.__main__:main")
    works([archive])
    works([sys.executable, "-I", "-S", archive])


@pytest.mark.parametrize(
    "said",
    [
        pytest.param("''", id="empty"),
        pytest.param("None", id="None"),
        pytest.param("'/usr/bin/env'", id="a program that has Python in it"),
        pytest.param("'/there/is/no/editor'", id="one that is not there any more"),
    ],
)
def test_where_sys_executable_is_not_python(directory: Path, works: Check, said: str) -> None:
    code = f"import sys; sys.executable = {said}; import recuse.__main__"
    works([sys.executable, "-c", code], PYTHONPATH=str(directory))


def test_where_there_is_no_interpreter(directory: Path) -> None:
    code = "sys.executable = ''; sys.exec_prefix = sys.base_exec_prefix = '/nowhere'"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; import recuse.__main__", "run", "true"],
        capture_output=True,
        env=os.environ | {"PATH": str(directory), "PYTHONPATH": str(directory)},
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 125
    name = f"python3.{sys.version_info.minor}"
    assert done.stderr == (
        f"recuse: the sandbox's first process needs {name}, which is neither in sys.exec_prefix "
        "nor on the PATH: install it there\n"
    )


def test_where_only_the_files_are(directory: Path, tmp_path: Path) -> None:
    for package in ("click", "recuse"):
        (tmp_path / package).symlink_to(directory / package)
    for command in ("--version", "doctor"):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, '{tmp_path}');"
             "import recuse.__main__", command],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "unknown version" in done.stdout
        assert done.stderr == ""


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_with_other_versions_of_python(
    directory: Path, needs: Callable[..., Path], works: Check, minor: int
) -> None:
    name = f"python3.{minor}"
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    python = next(iter(sorted(versions.glob(f"3.{minor}.*/bin/{name}"))), None) or needs(name)
    # Warnings are errors: it is what becomes an error in a later version.
    works([python, "-Werror", "-m", "recuse"], PYTHONPATH=str(directory))
