"""The same script on Linux's FUSE and in the sandbox."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from recuse import Filesystem, Mount
from recuse.sandbox import Sandbox

from ...filesystem.conftest import why_not_mounted
from ...patience import PATIENCE_S
from ..conftest import python_argv

Alike = Callable[..., str]


def natively(make: Callable[[], Filesystem], script: str) -> str:
    """What a Python script prints beside a mount of a new filesystem, ``mnt``."""
    with tempfile.TemporaryDirectory() as here:
        mnt = Path(here, "mnt")
        mnt.mkdir()
        with Mount(make(), mnt):
            done = subprocess.run(
                python_argv(script),
                cwd=here,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=PATIENCE_S,
            )
    return done.stdout


def in_sandbox(make: Callable[[], Filesystem], script: str) -> str:
    """The same in a sandbox."""
    with tempfile.TemporaryDirectory() as here:
        mnt = Path(here, "mnt")
        mnt.mkdir()
        with Sandbox(mounts={mnt: make()}) as sandbox:
            done = sandbox.run(
                python_argv(script),
                cwd=here,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE_S,
            )
            machine = sandbox._machine
            assert machine is not None
            machine.files.settle(20)
    output: str = done.stdout
    return output


def alike(make: Callable[[], Filesystem], script: str) -> str:
    """Run a script in both; return what it prints, which has to be the same."""
    if reason := why_not_mounted():
        pytest.skip(reason)
    ours = in_sandbox(make, script)
    assert ours.splitlines() == natively(make, script).splitlines()
    assert "Traceback" not in ours
    return ours
