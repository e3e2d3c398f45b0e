"""Scripts of the shell, which use a mount as other programs do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .conftest import PATIENCE_S


def shell(directory: Path, script: str, *, errexit: bool = True, **environment: str) -> str:
    """What a script of bash prints in a directory. With `errexit` none of its commands fails."""
    done = subprocess.run(
        ["bash", "-ec" if errexit else "-c", script],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC", **environment},
    )
    assert not errexit or done.returncode == 0, done.stdout
    return done.stdout
