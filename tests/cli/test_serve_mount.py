"""`recuse serve --mount`: real processes and the real kernel."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recuse.cli.main import main

RECUSE = [sys.executable, "-m", "recuse.cli.main"]
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PATIENCE_S = 20

Needs = Callable[..., Path]


class Server:
    """A `recuse serve --mount` and the lines that it prints."""

    def __init__(self, *args: str, command: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*command, *RECUSE, "serve", "--mount", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.notes: list[str] = []
        """What it said on stderr, as far as read."""
        self._alarm = threading.Timer(PATIENCE_S, self.process.kill)
        self._alarm.start()

    def line(self) -> str:
        """Return the next line of its output, "" at its end."""
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()).startswith("recuse: "):
            self.notes.append(line)
        return line.removesuffix("\n")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit status and what it has written since, and noted."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=PATIENCE_S)
        self._alarm.cancel()
        return self.process.returncode, "".join(self.notes) + output


Serve = Callable[..., Server]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "mount"
    made.mkdir()
    return made


@pytest.fixture
def serve(needs: Needs, directory: Path) -> Iterator[Serve]:
    """Starts servers."""
    needs("/dev/fuse")
    if os.geteuid():
        pytest.skip("only root may mount")
    if subprocess.run(["unshare", "-m", "true"], check=False, timeout=PATIENCE_S).returncode:
        pytest.skip("this root may not mount")
    servers = []

    def start(*args: str, command: tuple[str, ...] = ()) -> Server:
        servers.append(Server(*args, command=command))
        return servers[-1]

    yield start
    for server in servers:
        with contextlib.suppress(ValueError):  # its output is closed: it has ended
            server.end(signal.SIGKILL)
    with contextlib.suppress(subprocess.CalledProcessError):
        if str(directory) in Path("/proc/self/mounts").read_text(encoding="utf-8"):
            subprocess.run(["umount", "-l", directory], check=True, timeout=PATIENCE_S)


def shell(script: str) -> str:
    """What a script prints."""
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_served_until_a_signal(serve: Serve, directory: Path, number: int) -> None:
    server = serve(str(directory), str(EXAMPLES / "echo.py"))
    assert server.line() == f"{directory}/echo"
    with open(directory / "echo", "r+b", buffering=0) as file:
        file.write(b"hello\n")
        assert file.read(100) == b"hello\n"
        # Open at the end: that is no hindrance.
        status, errors = server.end(number)
        assert (status, "Traceback" in errors) == (0, False)
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            file.read(1)
    assert not os.path.ismount(directory)
    assert list(directory.iterdir()) == []


def test_the_example_of_mapping(serve: Serve, directory: Path) -> None:
    server = serve(str(directory), str(EXAMPLES / "fmmap.py"))
    device = server.line()
    client = f"{sys.executable} {EXAMPLES}/fmmap_client.py {device}"
    code = f"open({str(directory / 'fmmap')!r}, 'r+b', buffering=0)"
    # One that stays open keeps the area.
    with subprocess.Popen(
        [sys.executable, "-c", f"file = {code}; print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        if "passthrough" in "".join(server.notes):
            keeper.communicate(b"\n", timeout=PATIENCE_S)
            pytest.skip("this kernel has no FUSE passthrough")
        # It sees ones, as far as the device is ahead of it.
        end = time.monotonic() + PATIENCE_S
        while "#" not in shell(f"{client} 0 4 50"):
            assert time.monotonic() < end
        assert "^" in shell(f"{client} 14 2 50")
        assert shell(f"cat {device}").split()[:2] == ["0:", str(16 * 4096)]
        keeper.communicate(b"\n", timeout=PATIENCE_S)
    assert server.end()[0] == 0


def test_after_a_kill_the_mount_goes_away(serve: Serve, directory: Path) -> None:
    echo = str(EXAMPLES / "echo.py")
    first = serve(str(directory), echo)
    assert first.line()
    second = serve(str(directory), echo)
    assert second.line() == ""
    taken = f"recuse: {directory}: a FUSE filesystem is mounted there: umount {directory}\n"
    assert second.end() == (125, taken)
    first.end(signal.SIGKILL)
    end = time.monotonic() + PATIENCE_S
    while f" {directory} " in Path("/proc/self/mounts").read_text(encoding="utf-8"):
        assert time.monotonic() < end
    assert serve(str(directory), echo).line() == f"{directory}/echo"


def test_unmounting_ends_the_server(serve: Serve, directory: Path) -> None:
    server = serve(str(directory), str(EXAMPLES / "echo.py"))
    assert server.line()
    assert shell(f"umount {directory}") == ""
    assert server.line() == ""
    assert server.process.wait(PATIENCE_S) == 0
    assert server.notes == [f"recuse: {directory}: it was unmounted, or the connection aborted\n"]


def test_with_a_trace(serve: Serve, directory: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    server = serve(str(directory), f"--trace={trace}", str(EXAMPLES / "echo.py"))
    assert server.line()
    assert shell(f"printf hello > {directory}/echo") == ""
    assert server.end()[0] == 0
    text = trace.read_text(encoding="utf-8")
    for part in ("INIT(", 'LOOKUP("echo', "OPEN(flags=O_WRONLY", "WRITE(", " -- unmounted"):
        assert part in text


def test_root_of_a_container_cannot_have_files_mapped(serve: Serve, directory: Path) -> None:
    unshare = ("unshare", "--user", "--map-root-user", "--mount", "--propagation", "slave")
    if subprocess.run([*unshare, "true"], check=False, timeout=PATIENCE_S).returncode:
        pytest.skip("no user namespaces")
    script = f"""
"$@" & server=$!
until [ -e {directory}/fmmap ]; do :; done
cat {directory}/fmmap
kill $server
wait $server
"""
    command = (*unshare, "sh", "-c", script, "sh")
    server = serve(str(directory), str(EXAMPLES / "fmmap.py"), command=command)
    while server.line():
        pass
    notes = "".join(server.notes)
    if "passthrough" in notes:
        pytest.skip("this kernel has no FUSE passthrough")
    assert "fmmap: the kernel does not take the device's memory (Operation not permitted" in notes
    assert server.process.wait(PATIENCE_S) == 0


def test_without_the_right_to_mount(serve: Serve, directory: Path) -> None:
    command = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    server = serve(str(directory), str(EXAMPLES / "echo.py"), command=command)
    assert server.line() == ""
    status, said = server.end()
    assert status == 125
    assert said.startswith(f"recuse: {directory}: only root may mount")


@pytest.mark.parametrize("option", ["--kernel", "--listen=here"])
def test_options_that_do_not_go_together(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--mount", ".", option, "echo.py"]) == 2
    assert "--mount cannot be combined with --kernel or --listen" in capsys.readouterr().err
