"""Sandboxes with filesystems, and programs that use these."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from recuse import Filesystem
from recuse.sandbox import Sandbox

from ...patience import PATIENCE_S
from ..conftest import Shell, client_in, shell_in
from .raw_server import SERVER

UNMOUNTED = "fusermount3 -u mnt && ls mnt"
"""The end of a shell's command: what was below the mount is seen again."""

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@functools.cache
def example(name: str) -> Any:
    """The module of an example."""
    spec = util.spec_from_file_location(f"{name}_in_a_sandbox", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with an empty one, and a file beside that."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "beside").write_text("native\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def files() -> Filesystem:
    """An empty filesystem in memory."""
    made: Filesystem = example("memoryfs").MemoryFilesystem()
    return made


@pytest.fixture
def sandbox(here: Path, files: Filesystem) -> Iterator[Sandbox]:
    """A sandbox in which that is mounted there."""
    with Sandbox(mounts={here / "mnt": files}) as sandbox:
        yield sandbox
        machine = sandbox._machine
        assert machine is not None
        machine.files.settle(20)
        assert not len(machine.files)


@pytest.fixture
def shell(sandbox: Sandbox, here: Path) -> Shell:
    """Runs a shell's command beside the mount; returns what it and its errors print."""
    return functools.partial(shell_in(sandbox), cwd=here)


@pytest.fixture
def client(sandbox: Sandbox, here: Path) -> Shell:
    """Runs a Python script beside the mount; returns what it prints."""
    return functools.partial(client_in(sandbox), cwd=here)


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """An empty directory on a tmpfs."""
    if not any(
        line.startswith(("tmpfs /dev/shm ", "shm /dev/shm "))
        for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    ):
        pytest.skip("/dev/shm is no tmpfs here")
    with TemporaryDirectory(dir="/dev/shm") as made:
        yield Path(made)


@pytest.fixture
def natively(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Runs a shell's command natively, beside an empty directory ``mnt``."""
    directory = tmp_path_factory.mktemp("native")
    (directory / "mnt").mkdir()
    (directory / "beside").write_text("native\n", encoding="utf-8")

    def shell(script: str) -> str:
        done = subprocess.run(
            ["sh", "-c", script, "sh"],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        return done.stdout if done.returncode == 0 else f"{done.stdout}[status {done.returncode}]"

    return shell


@pytest.fixture
def bare_sandbox() -> Iterator[Sandbox]:
    """A sandbox with nothing in it."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def bare_shell(bare_sandbox: Sandbox, here: Path) -> Shell:
    """Runs a shell's command in it, beside an empty directory ``mnt`` and a tree, ``source``."""
    (here / "source").mkdir()
    (here / "source" / "text").write_text("some text\n", encoding="utf-8")
    (here / "source" / "deep").mkdir()
    (here / "source" / "deep" / "large").write_bytes(os.urandom(300_000))
    return functools.partial(shell_in(bare_sandbox), cwd=here)


def served_in(sandbox: Sandbox, here: Path) -> Shell:
    """Runs a script after SERVER beside a directory ``mnt``; returns what it prints."""

    def run(script: str, *, python: tuple[str, ...] = (sys.executable,)) -> str:
        done = sandbox.run(
            [*python, "-I", "-S", "-c", SERVER + script],
            cwd=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )
        output: str = done.stdout
        return output

    return run
