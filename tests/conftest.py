"""What every test gets: a check for what it leaves behind, and `needs` for what it must have.

Tests run in several processes at once (pytest-xdist): all of this looks at its own process only.
"""

import contextlib
import ctypes
import errno
import functools
import gc
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from recuse.sandbox.trap import answers
from recuse.sandbox.trap.answers import CallError

from . import lock_watch

lock_watch.install()

# A shell starts what is in the background (&) with these ignored, and nohup with SIGHUP. Programs
# that tests start would inherit that. They do not inherit a handler.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda _, __: None)

# How long an example takes says how busy the machine is.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

Needs = Callable[..., Path]

# Programs for administrators, such as i2cdetect, are not on everybody's path.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

# waitid(2): also children that were made with another signal than SIGCHLD for their end.
WALL = 0x40000000


def open_descriptors() -> set[tuple[int, str]]:
    """This process's descriptors with what each refers to."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        # The descriptor that listed the directory is gone by now.
        with contextlib.suppress(FileNotFoundError):
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
    return found


def child_processes() -> dict[int, str]:
    """This process's children, ended or not, that nobody has waited for: pid to name and state."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | WALL)
    except ChildProcessError:
        return {}
    children = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            stat = Path("/proc", entry, "stat").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # pid (name, which may hold anything) state ppid ...
        head, _, tail = stat.rpartition(")")
        state, parent = tail.split()[:2]
        if int(parent) == os.getpid():
            children[int(entry)] = f"{head.partition('(')[2]} ({state})"
    return children


def remove(child: int) -> None:
    """End and bury a child, so that only the test that left it behind fails."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, WALL)


@pytest.fixture(autouse=True)
def no_mistakes_in_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which a trapped call was answered twice, or lost."""
    mistakes: list[str] = []

    def on_mistake(what: str) -> None:
        mistakes.append(what)
        raise CallError(what)

    monkeypatch.setattr(answers, "on_mistake", on_mistake)
    yield
    assert not mistakes


@pytest.fixture(autouse=True)
def locks_in_order() -> Iterator[None]:
    """Fail a test in which locks were taken in another order than `recuse.runtime.locks` says."""
    yield
    violations = lock_watch.WATCH.violations()
    assert not violations, "\n".join(violations)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves descriptors or child processes behind.

    Autouse, so that it is set up before a test's other fixtures and looks again after all of them.
    `@pytest.mark.leaks("why")` is for a test that does so on purpose.
    """
    descriptors = open_descriptors()
    children = child_processes()
    yield
    if request.node.get_closest_marker("leaks"):
        return
    problems = []
    left = open_descriptors() - descriptors
    if left:
        # What only a reference cycle keeps open was let go of; it is not a leak.
        gc.collect()
        left = open_descriptors() - descriptors
    for number, target in sorted(left):
        problems.append(f"descriptor {number}: {target}")
    for child, name in child_processes().items():
        if child not in children:
            remove(child)
            problems.append(f"child process {child}: {name}")
    if problems:
        pytest.fail("left behind: " + "; ".join(problems), pytrace=False)


# linux/capability.h
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_CHECKPOINT_RESTORE = 40


def _allows(number: int, *refusals: int) -> bool:
    """Whether a system call, made with arguments that are wrong, fails with something else."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(number, -1, -1, 0)
    return ctypes.get_errno() not in refusals


def _succeeds(*argv: str) -> bool:
    return not subprocess.run(argv, capture_output=True, check=False, timeout=60).returncode


def _looks_into_others() -> bool:
    """Whether root here may look into processes of other users, as recuse must to serve them."""
    return os.geteuid() != 0 or _has_capability(CAP_SYS_PTRACE)


def _has_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> number & 1)


RIGHTS: dict[str, Callable[[], bool]] = {
    "namespaces": lambda: _succeeds("unshare", "-mpf", "true"),
    "user namespaces": lambda: _succeeds("unshare", "-r", "true"),
    # The same numbers on every architecture.
    "clone3": lambda: _allows(435, errno.ENOSYS),
    "pidfd_getfd": lambda: _allows(438, errno.EPERM),
    "other users": _looks_into_others,
    "CAP_SYS_ADMIN": lambda: _has_capability(CAP_SYS_ADMIN),
    "CAP_CHECKPOINT_RESTORE": lambda: _has_capability(CAP_CHECKPOINT_RESTORE),
}
"""What containers refuse, and what tells whether this one does (see docs/reach.md)."""


@functools.cache
def has_right(right: str) -> bool:
    """Whether this machine allows one of :data:`RIGHTS`."""
    return RIGHTS[right]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, visibly, what is marked with a right that is refused here."""
    for mark in item.iter_markers("right"):
        for right in mark.args:
            if not has_right(right):
                pytest.skip(f"refused here: {right}")


def give_up(what: str, package: str | None) -> NoReturn:
    """Skip the test for lack of `what`; in continuous integration fail, if it could be there."""
    if package is None:
        pytest.skip(f"{what} is missing")
    message = f"{what} is missing: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def needs() -> Needs:
    """`needs(what, package=None)`: the path of a program or file, or a visible skip without it.

    `what` is a program's name, or a path, in which `{multiarch}` stands for this system's directory
    of libraries. `package` is the Debian package that has it: with CI=true in the environment its
    lack is a failure, since .ci/packages should list it.
    """

    def find(what: str, package: str | None = None) -> Path:
        if "/" in what:
            multiarch = sysconfig.get_config_var("MULTIARCH") or ""
            path = Path(what.format(multiarch=multiarch))
            if path.exists():
                return path
        elif program := shutil.which(what, path=SEARCH_PATH):
            return Path(program)
        give_up(what, package)

    return find
