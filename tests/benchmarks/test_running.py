"""The client, the processes around it and the whole program."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from benchmarks.peers import (
    FILE_SANDBOX,
    LIBFUSE_MULTI,
    LIBFUSE_SINGLE,
    MOUNT,
    RECUSE_ASYNC,
    RECUSE_DEFAULT,
    RECUSE_PLAIN,
    Peer,
    Target,
    peers,
)
from benchmarks.processes import UnavailableError, output, server
from benchmarks.runner import measure, parse, placed, run
from benchmarks.samples import FREE, PINNED, Key
from benchmarks.tools import Tools
from benchmarks.workloads import READ_16
from recuse.sandbox.arch import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
Needs = Callable[..., Path]


@pytest.fixture(scope="module")
def tools(needs: Needs, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    needs("cc", "gcc")
    return Tools(tmp_path_factory.mktemp("tools"), sys.executable)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"R" * (1 << 20))
    return path


def test_client_times_each_work(tools: Tools, file: Path) -> None:
    works = ["read:16", "read:1048576", "write:16", "openclose", "stat", "create"]
    text = output([tools.client(), "-t", "0.01", str(file), *works], 60)
    assert list(parse(text)) == works
    assert all(0 < nanoseconds < 1e9 for nanoseconds in parse(text).values())


def test_client_counts_as_told(tools: Tools, file: Path) -> None:
    text = output([tools.client(), "-t", "0.01", "-n", "123", str(file), "read:16"], 60)
    assert text.split()[:2] == ["read:16", "123"]


def test_client_shares_a_work_out_to_threads(tools: Tools, file: Path) -> None:
    text = output([tools.client(), "-t", "0.01", "-n", "800", str(file), "read:16x8"], 60)
    assert text.split()[:2] == ["read:16x8", "800"]
    text = output([tools.client(), "-t", "0.01", str(file), "read:16x8"], 60)
    assert 0 < parse(text)["read:16x8"] < 1e9


@pytest.mark.parametrize(
    ("content", "work", "message"),
    [
        (b"R" * 15 + b"X", "read:16", "wrong data at byte 15"),
        (b"R" * 15, "read:16", "15 bytes instead of 16"),
        (b"R" * 16, "ioctl:16", "Inappropriate ioctl for device"),
        (b"R" * 16, "read:16x0", "unknown work: read:16x0"),
        (b"R" * 15 + b"X", "read:16x2", "wrong data at byte 15"),
        (b"R" * 16, "sing:16", "unknown work: sing:16"),
        (None, "read:16", "No such file or directory"),
    ],
)
def test_client_refuses_what_is_not_the_work(
    tools: Tools, tmp_path: Path, content: bytes | None, work: str, message: str
) -> None:
    path = tmp_path / "wrong"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnavailableError, match=message):
        output([tools.client(), "-t", "0.01", str(path), work], 60)


def test_server_that_ends_is_unavailable_with_its_last_words() -> None:
    script = "import sys; print('x', flush=True); sys.exit('first\\nno mount here')"
    command = [sys.executable, "-c", script]
    with (
        pytest.raises(UnavailableError, match=r"^its server ended: no mount here$"),
        server(command),
    ):
        pass


def test_server_is_ended_and_buried() -> None:
    script = "import os, time; print('ready', flush=True); time.sleep(1000)"
    with server([sys.executable, "-c", script]):
        running = children()
        assert len(running) == 1
    assert not children()


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_program_that_takes_too_long_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match="no end within 0 s"):
        output([sys.executable, "-c", "import time; time.sleep(1000)"], 0.01)
    assert not children()


def test_pinned_is_one_cpu_and_free_is_all_again() -> None:
    before = os.sched_getaffinity(0)
    with placed(PINNED):
        assert len(os.sched_getaffinity(0)) == 1
        assert len(os.sched_getaffinity(0) & before) == 1
    with placed(FREE):
        assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before


def test_peer_that_fails_is_reported_once_and_the_others_go_on(
    tools: Tools, file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tries = 0

    @contextmanager
    def broken() -> Iterator[Target]:
        nonlocal tries
        tries += 1
        raise UnavailableError("no such luck")
        yield

    @contextmanager
    def working() -> Iterator[Target]:
        yield Target(str(file))

    pair = [Peer("broken", (READ_16,), broken), Peer("working", (READ_16,), working)]
    outcome = run(tools, pair, 2, 0.01)
    assert outcome.missing == {"broken": "no such luck"}
    assert tries == 1
    assert {key: len(found) for key, found in outcome.results.samples.items()} == {
        Key(placement, "working", READ_16.name): 2 for placement in (FREE, PINNED)
    }
    assert capfd.readouterr().err.count("left out: broken: no such luck\n") == 1


@pytest.mark.parametrize("name", [RECUSE_PLAIN, RECUSE_ASYNC, RECUSE_DEFAULT, FILE_SANDBOX, MOUNT])
def test_recuse_serves_the_works(tools: Tools, name: str) -> None:
    if not SUPPORTED:
        pytest.skip("another architecture than x86-64")
    (peer,) = [peer for peer in peers(tools) if peer.name == name]
    try:
        figures = measure(tools, peer, 0.01)
    except UnavailableError as error:
        if any(word in str(error) for word in ("recuse doctor", "/dev/fuse", "io_uring")):
            pytest.skip(str(error))
        raise
    assert list(figures) == [work.name for work in peer.works]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks", *arguments]


def test_unknown_peer_is_refused() -> None:
    done = subprocess.run(
        command("--only", "windows"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("no such peer: windows; there are recuse plain")


@pytest.mark.slow
def test_smoke_run_measures_or_names_every_peer(needs: Needs, tmp_path: Path) -> None:
    needs("cc", "gcc")
    report = tmp_path / "build" / "bench.json"
    chosen = peers(Tools(tmp_path, sys.executable))
    done = subprocess.run(
        command("--quick", "--json", str(report)),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(report.read_text())
    measured = {(entry["peer"], entry["work"]) for entry in document["results"]}
    for peer in chosen:
        if peer.name in document["missing"]:
            assert f"{peer.name}: {document['missing'][peer.name]}" in done.stdout
        else:
            assert {(peer.name, work.name) for work in peer.works} <= measured
    assert ("tmpfs", "read 16 B") in measured
    # Each goal is judged in words.
    assert done.stdout.count("(goal: at most ") == len(document["goals"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["build"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_no_mount_process_or_file(
    needs: Needs, tmp_path: Path, number: int
) -> None:
    needs("cc", "gcc")
    needs("/dev/fuse")
    needs("/usr/include/fuse3/fuse_lowlevel.h", "libfuse3-dev")
    with (
        open("/proc/self/mountinfo", "rb") as mounts,
        subprocess.Popen(
            command("--only", LIBFUSE_MULTI, "--only", LIBFUSE_SINGLE),
            cwd=ROOT,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        try:
            # The kernel wakes those who poll mountinfo whenever a mount comes or goes.
            changed = select.poll()
            changed.register(mounts, select.POLLPRI)
            while bytes(tmp_path) not in mounted(mounts):
                assert changed.poll(30_000), "no mount"
            process.send_signal(number)
            assert process.wait(30) != 0
        finally:
            process.kill()
        assert bytes(tmp_path) not in mounted(mounts)
    assert not list(tmp_path.iterdir())
    assert not [line for line in commands() if bytes(tmp_path) in line]


def mounted(mounts: BinaryIO) -> bytes:
    mounts.seek(0)
    return mounts.read()


def commands() -> Iterator[bytes]:
    """The command lines of all processes there are."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                yield (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
