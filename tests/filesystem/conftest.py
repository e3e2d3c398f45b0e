"""What the tests of mounts share: servers, which are processes of their own, and who may mount."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse.channel.rings import PARAMETER
from recuse.cli.probes import fuse_over_io_uring

from .places import Place

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
RECUSE = [sys.executable, "-m", "recuse.cli.main"]
PATIENCE_S = 60
LONG_S = 1800
"""For a server that all tests of a file use."""

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]
_COMMAND = "import sys; from recuse.cli.main import main; sys.exit(main())"


@functools.cache
def why_not_mounted() -> str:
    """Why no filesystem can be mounted here; "" if one can."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing, or may not be opened"
    if os.geteuid():
        return "" if shutil.which("fusermount3") else "fusermount3 is missing"
    done = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True)
    return "this root may not mount" if done.returncode else ""


@functools.cache
def why_no_rings() -> str:
    """Why there is no FUSE over io_uring here; "" if there is."""
    try:
        fuse_over_io_uring()
    except OSError as error:
        return f"FUSE over io_uring: {error.strerror}; root turns it on: echo Y >{PARAMETER}"
    return ""


TRANSPORTS = (
    pytest.param("no_io_uring"),
    pytest.param("io_uring", marks=pytest.mark.slow),
)
"""What the requests come by, as an option."""


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    """One of `TRANSPORTS`; skip the test where this is not possible."""
    option: str = request.param
    require(option)
    return option


def require(transport: str) -> None:
    """Skip the test where a mount by this transport is not possible."""
    if reason := why_not_mounted():
        pytest.skip(reason)
    if transport == "io_uring" and (reason := why_no_rings()):
        pytest.skip(reason)


@pytest.fixture
def rings(mounts: None) -> None:
    """Skip the test where there is no FUSE over io_uring."""
    if reason := why_no_rings():
        pytest.skip(reason)


@pytest.fixture
def detached(rings: None) -> None:
    """Skip the test for those who cannot mount without a directory."""
    if os.geteuid():
        pytest.skip("only root may")


@pytest.fixture
def mounts() -> None:
    """Skip the test where no filesystem can be mounted."""
    if reason := why_not_mounted():
        pytest.skip(reason)


@pytest.fixture
def root(mounts: None) -> None:
    """Skip the test for others than root."""
    if os.geteuid():
        pytest.skip("only root may")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, on which nothing is left."""
    made = tmp_path / "mount"
    made.mkdir()
    yield made
    if is_mounted(made):
        subprocess.run(["umount", "-l", made], check=False, timeout=PATIENCE_S)
        pytest.fail("it is still mounted")


def is_mounted(path: Path) -> bool:
    """Whether something is, without asking who serves it."""
    return f" {path} " in Path("/proc/self/mounts").read_text(encoding="utf-8")


def abort(directory: Path) -> None:
    """End the connection of what is mounted on a directory, as an administrator does."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[4] == str(directory):
            (minor,) = fields[2].split(":")[1:]
            connections = "/sys/fs/fuse/connections"
            script = f"mount -t fusectl recuse {connections}; echo 1 >{connections}/{minor}/abort"
            subprocess.run(["unshare", "-m", "sh", "-c", script], check=True, timeout=PATIENCE_S)
            return
    raise AssertionError("it is not mounted")


class Server:
    """A process that mounts, and what it prints."""

    def __init__(
        self,
        *args: str,
        command: tuple[str, ...] = (),
        life_s: float = PATIENCE_S,
        **environment: str,
    ) -> None:
        """Start it; after its life it is killed, should a test hang."""
        self.process = subprocess.Popen(
            [*command, *RECUSE, "mount", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._alarm = threading.Timer(life_s, self.process.kill)
        self._alarm.start()

    def line(self) -> str:
        """Return the next line of its output, "" at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().removesuffix("\n")

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Send a signal, if one is given; return the exit status and what it complained about."""
        if number is not None:
            self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        self._alarm.cancel()
        return self.process.returncode, errors


Serve = Callable[..., Server]


@pytest.fixture
def serve(mounts: None, directory: Path) -> Iterator[Serve]:
    """Starts servers; all have to end before the test does."""
    servers: list[Server] = []

    def start(*args: str, **options: object) -> Server:
        servers.append(Server(*args, **options))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.terminate()
        if server.process.stdout is not None and not server.process.stdout.closed:
            server.end()


@pytest.fixture
def command(mounts: None, directory: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command of recuse to its end."""

    def run(*args: str, **options: object) -> subprocess.CompletedProcess[str]:
        given: dict[str, object] = {"timeout": PATIENCE_S, "cwd": "/", **options}
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [*RECUSE, *args], check=False, capture_output=True, text=True, **given
        )

    return run


class Somebody:
    """An ordinary user, who is not this one if this is root."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.directory = home / "mount"
        self._drop = NOBODY if os.geteuid() == 0 else []
        self._python = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            [*self._drop, *argv],
            check=False,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.home), "LC_ALL": "C"},
        )

    def recuse(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command of recuse."""
        return self.run(*self.command(*args))

    def command(self, *args: str) -> list[str]:
        """Return the program and its arguments for that."""
        return [self._python, "-B", "-c", _COMMAND, *args]


@pytest.fixture
def somebody() -> Iterator[Somebody]:
    """The package and its examples, where anybody can read them, and a directory of that user's."""
    if reason := why_not_mounted():
        pytest.skip(reason)
    if not Path("/usr/bin/python3").exists():
        pytest.skip("there is no Python that nobody can run")
    packages = [ROOT / "src/recuse", EXAMPLES, Path(__import__("click").__file__ or "").parent]
    with tempfile.TemporaryDirectory(prefix="somebody-") as name:
        home = Path(name)
        for package in packages:
            shutil.copytree(
                package, home / package.name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for path in (home, *home.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        made = Somebody(home)
        made.directory.mkdir()
        if os.geteuid() == 0:
            os.chown(made.directory, 65534, 65534)
        yield made
        if is_mounted(made.directory):
            subprocess.run(["umount", "-l", made.directory], check=False, timeout=PATIENCE_S)
            pytest.fail("it is still mounted")


SERVED = ("memory", "mirror", "loopback")
"""The examples that are used like any other filesystem."""


@pytest.fixture(
    scope="module",
    params=[
        *((kind, "no_io_uring") for kind in SERVED),
        # The requests are the same ones, so one kind shows that they arrive.
        pytest.param(("memory", "io_uring"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def served(request: pytest.FixtureRequest) -> Iterator[Place]:
    """One mount for all tests of a file."""
    kind, transport = request.param
    require(transport)
    with tempfile.TemporaryDirectory(prefix="mounted-") as name:
        top = Path(name)
        top.chmod(0o755)
        for made in ("mount", "source", "ordinary"):
            (top / made).mkdir()
        spec = f"{EXAMPLES}/{kind}fs.py"
        if kind != "memory":
            spec += f",source={top / 'source'}"
        options = ["-o", f"allow_other,{transport}" if os.geteuid() == 0 else transport]
        server = Server(spec, str(top / "mount"), *options, life_s=LONG_S)
        try:
            assert server.line() == str(top / "mount")
            yield Place(kind, top / "mount", top / "ordinary")
        finally:
            server.process.terminate()
            errors = server.end()[1]
            if is_mounted(top / "mount"):
                subprocess.run(["umount", "-l", top / "mount"], check=False)
        assert errors == ""


@pytest.fixture
def place(served: Place) -> Iterator[Place]:
    """A new directory on each; what is in them is removed, by rm."""
    here = Path("test")
    for top in (served.mounted, served.ordinary):
        (top / here).mkdir()
    yield Place(served.kind, served.mounted / here, served.ordinary / here)
    for top in (served.mounted, served.ordinary):
        subprocess.run(["rm", "-r", top / here], check=True, timeout=PATIENCE_S)
        assert os.listdir(top) == []
