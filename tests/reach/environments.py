"""The environments in which the battery is run, and how."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from . import battery, containers
from .containers import UNCONFINED, Container

HERE = Path(__file__).resolve().parent
BATTERY = str(HERE / "battery.py")
VM = HERE.parent / "vm" / "boot.py"

LIMIT_S = battery.PATIENCE_S * len(battery.CHECKS)
EMULATED_LIMIT_S = 1200.0
"""Within which the whole battery must be over, by itself or not."""


@dataclass(frozen=True)
class Results:
    """What the battery has found."""

    system: str
    """The kernel's release and the machine, such as ``6.1.0-9-amd64 x86_64``."""
    checks: dict[str, tuple[str, str]]
    """For each check an outcome and why, see battery.py."""


@dataclass(frozen=True)
class Environment:
    """Somewhere that recuse is run."""

    name: str
    run: Callable[[], Results]
    """Runs the battery there. Raises Unavailable."""


def results(printed: str) -> Results:
    """The results in what the battery has printed; those that are not there have failed."""
    system = "?"
    checks = dict.fromkeys(battery.CHECKS, ("no", "did not come to its end"))
    for line in printed.splitlines():
        if line.startswith('{"system":'):
            system = json.loads(line)["system"]
        if line.startswith('{"check":'):
            result = json.loads(line)
            checks[result["check"]] = (result["outcome"], result["why"])
    return Results(system, checks)


def everybodys_python() -> tuple[str, dict[str, str]]:
    """A Python that every user may run, and the environment in which it finds recuse."""
    search = [str(containers.ROOT / "src")]
    if all(path.stat().st_mode & stat.S_IXOTH for path in Path(sys.executable).resolve().parents):
        return sys.executable, {}
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in (f"/usr/bin/python{version}", "/usr/bin/python3"):
        if Path(name).exists():
            # Its modules that were compiled for another version are not for this one.
            search.append(sysconfig.get_path("purelib"))
            return name, {"PYTHONPATH": os.pathsep.join(search)}
    raise containers.Unavailable(
        "there is no Python that everybody can run: apt-get install python3"
    )


def _battery(run: Callable[..., subprocess.CompletedProcess[str]], limit_s: float) -> Results:
    """The results of a command that runs the battery somewhere, or until it was ended."""
    try:
        done = run(capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        return results(output.decode() if isinstance(output, bytes) else output)
    if '{"system":' not in done.stdout:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise containers.Unavailable(said[-1] if said else f"status {done.returncode}")
    return results(done.stdout)


def here(*checks: str) -> Results:
    """On the running kernel, as the user that this is; only these checks, if any are given."""
    command = [sys.executable, BATTERY, *checks]
    return _battery(partial(subprocess.run, command, check=False), LIMIT_S)


def in_container(container: Container) -> Results:
    """In a container."""
    python, variables = everybodys_python()
    container = replace(container, environment=variables)
    return _battery(partial(containers.run, container, [python, BATTERY]), LIMIT_S)


def in_nspawn() -> Results:
    """In a container of systemd's."""
    program = shutil.which("systemd-nspawn")
    if program is None:
        raise containers.Missing("missing; to have it: apt-get install systemd-container")
    python, variables = everybodys_python()
    settings = [f"--setenv={name}={value}" for name, value in variables.items()]
    binds = [f"--bind-ro={path}" for path in containers.not_in_root()]
    with containers.bundle() as (_, root):
        command = [
            program, "-q", "-D", str(root), "--register=no", "--keep-unit", "--as-pid2",
            # Its root is this machine's own: resolv.conf would be copied onto itself, and be empty.
            "--resolv-conf=off", "--timezone=off", "--link-journal=no",
            f"--chdir={containers.ROOT}", *binds, *settings, python, BATTERY,
        ]  # fmt: skip
        return _battery(partial(subprocess.run, command, check=False), LIMIT_S)


def in_machine(version: str) -> Results:
    """In a virtual machine with a kernel of Debian's."""
    inside = [sys.executable, BATTERY]
    command = [sys.executable, str(VM), "-k", version, "-l", str(EMULATED_LIMIT_S), *inside]
    return _battery(partial(subprocess.run, command, check=False), EMULATED_LIMIT_S + 60)


def in_arm64() -> Results:
    """In a virtual machine with Debian for arm64, whose Python it has, too."""
    inside = ["env", "RECUSE_SLOWNESS=10", "python3", BATTERY]
    command = [sys.executable, "-m", "tests.vm.arm64", *inside]
    run = partial(subprocess.run, command, cwd=HERE.parents[1], check=False)
    return _battery(run, 2 * EMULATED_LIMIT_S)


def _container(name: str, **particulars: Any) -> Environment:
    return Environment(name, partial(in_container, Container(**particulars)))


def _user(uid: int) -> str:
    return f"uid {uid}" if uid else "root"


HERE_NAME = "this machine"

KERNELS = [
    Environment("Linux 6.1 (Debian 12)", partial(in_machine, "6.1")),
    Environment("Linux 6.12 (Debian 13)", partial(in_machine, "6.12")),
    Environment("Linux 6.1 (Debian 12), arm64", in_arm64),
]

CONTAINERS = [
    _container(f"{profile}, {_user(uid)}", profile=profile, uid=uid)
    for profile in (UNCONFINED, *containers.PROFILES)
    for uid in (0, 1000)
] + [
    _container("moby, no_new_privs", no_new_privileges=True),
    _container("moby, uid 1000, no_new_privs", uid=1000, no_new_privileges=True),
    _container("moby, CAP_SYS_PTRACE", capabilities=("SYS_PTRACE",)),
    _container("moby, read-only root", read_only=True),
    _container("moby, read-only root, no writable /tmp", read_only=True, without_tmp=True),
    _container("moby, no /dev/shm", without_shm=True),
    _container(
        "moby, uid 1000, all of these",
        uid=1000,
        no_new_privileges=True,
        read_only=True,
        without_tmp=True,
        without_shm=True,
    ),
    _container("moby, user namespace", user_namespace=True),
    _container("unconfined, user namespace", profile=UNCONFINED, user_namespace=True),
    Environment("systemd-nspawn", in_nspawn),
]

ALL = [Environment(HERE_NAME, here), *KERNELS, *CONTAINERS]
