"""Running real programs with an example's device, in both ways that a user has."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from recuse import Sandbox
from recuse.cli.spec import load, parse

Run = Callable[..., subprocess.CompletedProcess[bytes]]

ROOT = Path(__file__).parents[2]

# Where the documented commands are: recuse itself, programs for administrators.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])

TIMEOUT_S = 60


def in_sandbox(spec: str, argv: Sequence[str], **options: Any) -> object:
    """Run a program with `recuse.Sandbox`."""
    with Sandbox(load(parse(spec))) as sandbox:
        return sandbox.run(argv, timeout=TIMEOUT_S, **options)


def by_command(spec: str, argv: Sequence[str], **options: Any) -> object:
    """Run a program with `recuse run`."""
    command = [sys.executable, "-m", "recuse.cli.main", "run", "-d", spec, "--", *argv]
    return subprocess.run(command, check=False, timeout=TIMEOUT_S, **options)


@pytest.fixture(params=[in_sandbox, by_command], ids=["sandbox", "command"])
def run(request: pytest.FixtureRequest) -> Run:
    """`run(spec, program, *arguments)`: the outcome, with output and errors apart.

    `spec` is as for `recuse run -d`, without the directory of the examples. Nothing of recuse's
    own may be among the errors: a traceback of the example's, or a complaint about it.
    """

    def run(
        spec: str, *argv: str, cwd: Path = ROOT, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "PATH": PATH, "LC_ALL": "C"}
        outcome: subprocess.CompletedProcess[bytes] = request.param(
            str(ROOT / "examples" / spec),
            argv,
            capture_output=True,
            cwd=cwd,
            env=environment,
            input=stdin,
        )
        assert b"recuse:" not in outcome.stderr, outcome.stderr.decode()
        return outcome

    return run


@pytest.fixture
def shell(run: Run) -> Callable[..., bytes]:
    """`shell(spec, script)`: what a script of sh prints, errors too; it must not fail."""

    def shell(spec: str, script: str, **options: object) -> bytes:
        outcome = run(spec, "sh", "-e", "-c", f"exec 2>&1\n{script}", **options)
        assert outcome.returncode == 0, outcome.stdout.decode(errors="replace")
        return outcome.stdout

    return shell
