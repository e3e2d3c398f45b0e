"""How long programs take on trees of files, natively and on mounts; and what many nodes cost.

The tree has 2,000 files in 40 directories (`find`, `tar`), or 10,000 in one (`ls -lR`). A mirror
shows a native tree; before each look at it, the kernel forgets names, attributes and content.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.extras import resident
from benchmarks.peers import EXAMPLES, mirror, mounted
from benchmarks.processes import READY_SECONDS, UnavailableError, note, output
from benchmarks.tools import HERE, SHARED_MEMORY, Tools

NATIVE = "native"
MIRROR = "recuse, mirror"
PASSTHROUGH_LL = "libfuse, passthrough_ll"
MEMORY = "recuse, memory"
PYFUSE3_MEMORY = "pyfuse3, memory"

FIND = "find and stat 2,000 files, cold"
LIST = "ls -lR of 10,000 files, cold"
UNTAR = "untar 2,000 files"
FIRST = "mount, until it answers"

DIRECTORIES, FILES_EACH, LISTED = 40, 50, 10_000
JOB_SECONDS = 120.0
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
NAMES_AND_ATTRIBUTES = "2"

Place = Callable[[], AbstractContextManager[Path]]


@dataclass
class Trees:
    """Medians in seconds by job and peer; the bytes that a server has for each node it knows."""

    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    bytes_a_node: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def ratio(self, job: str, peer: str, base: str) -> float | None:
        """None if one of the two was not measured."""
        figures = self.seconds.get(job, {})
        return figures[peer] / figures[base] if peer in figures and base in figures else None


def _make(source: Path, directories: int, listed: int) -> None:
    (source / "many").mkdir()
    for number in range(listed):
        (source / "many" / f"file{number}").touch()
    for directory in range(directories):
        (source / "tree" / f"directory{directory}").mkdir(parents=True)
        for number in range(FILES_EACH):
            path = source / "tree" / f"directory{directory}" / f"file{number}"
            path.write_bytes(b"content\n" * (number * 20))
    with tarfile.open(source / "tree.tar", "w") as archive:
        archive.add(source / "tree", "tree")


def _drop_caches() -> None:
    os.sync()
    DROP_CACHES.write_text(NAMES_AND_ATTRIBUTES)


def _timed(command: Sequence[str]) -> float:
    start = time.perf_counter()
    output(command, JOB_SECONDS)
    return time.perf_counter() - start


@contextmanager
def _passthrough_ll(tools: Tools, source: Path) -> Iterator[Path]:
    program = tools.libfuse_example("passthrough_ll")
    mountpoint = tempfile.mkdtemp(dir=tools.directory)
    try:
        # It puts itself into the background when it is mounted.
        output([program, "-o", f"source={source}", mountpoint], READY_SECONDS)
        yield Path(mountpoint)
    finally:
        output(["umount", "-l", mountpoint], READY_SECONDS)
        os.rmdir(mountpoint)


@contextmanager
def _memory(tools: Tools) -> Iterator[Path]:
    mountpoint = tempfile.mkdtemp(dir=tools.directory)
    try:
        # pyfuse3's example has no extended attributes either.
        spec = f"{EXAMPLES / 'memoryfs.py'},xattrs=false"
        command = [tools.recuse(), "mount", "--background", spec]
        output([*command, mountpoint], READY_SECONDS)
        yield Path(mountpoint)
    finally:
        output([tools.recuse(), "umount", mountpoint], READY_SECONDS)
        os.rmdir(mountpoint)


@contextmanager
def _pyfuse3_memory(tools: Tools) -> Iterator[Path]:
    tools.need_package("pyfuse3")
    with mounted(tools, [tools.peer_python, str(HERE / "pyfuse3_memory.py")]) as target:
        yield Path(target.path).parent


@contextmanager
def _native(directory: Path) -> Iterator[Path]:
    yield directory


def _look(trees: Trees, places: dict[str, Place], repetitions: int) -> None:
    """The jobs that only look."""
    find = ("find", "{}/tree", "-type", "f", "-printf", "%s\n")
    jobs = {FIND: find, LIST: ("ls", "-lR", "{}/many")}
    for peer, place in places.items():
        note(f"trees: {peer}")
        try:
            with place() as directory:
                for job, words in jobs.items():
                    command = [word.format(directory) for word in words]
                    samples = []
                    for _ in range(repetitions):
                        _drop_caches()
                        samples.append(_timed(command))
                    trees.seconds.setdefault(job, {})[peer] = statistics.median(samples)
        except UnavailableError as error:
            trees.missing[peer] = str(error)


def _untar(trees: Trees, places: dict[str, Place], archive: Path, repetitions: int) -> None:
    for peer, place in places.items():
        note(f"untar: {peer}")
        samples = []
        try:
            for _ in range(repetitions):
                with place() as directory:
                    command = ["tar", "xf", str(archive), "-C", str(directory)]
                    samples.append(_timed(command))
        except UnavailableError as error:
            trees.missing[peer] = str(error)
        else:
            trees.seconds.setdefault(UNTAR, {})[peer] = statistics.median(samples)


def _first(trees: Trees, tools: Tools, repetitions: int) -> None:
    """From the start of the command until the root's attributes are there."""
    samples = []
    for _ in range(repetitions):
        start = time.perf_counter()
        with _memory(tools) as mountpoint:
            os.stat(mountpoint)
            samples.append(time.perf_counter() - start)
    trees.seconds[FIRST] = {MEMORY: statistics.median(samples)}


def _nodes(trees: Trees, tools: Tools, each: int) -> None:
    """Resident memory of a server that knows many nodes, beyond what it had."""
    servers = {
        MEMORY: [sys.executable, str(HERE / "many_nodes.py")],
        PYFUSE3_MEMORY: [tools.peer_python, str(HERE / "pyfuse3_many_nodes.py")],
    }
    for peer, command in servers.items():
        note(f"nodes: {peer}")
        try:
            if peer == PYFUSE3_MEMORY:
                tools.need_package("pyfuse3")
            with mounted(tools, [*command, str(each)]) as target:
                before = resident(target.pid)
                output(["find", str(Path(target.path).parent), "-size", "+1"], 10 * JOB_SECONDS)
                grown = resident(target.pid) - before
        except UnavailableError as error:
            trees.missing[peer] = str(error)
        else:
            trees.bytes_a_node[peer] = grown / (each * each)


def measure(tools: Tools, repetitions: int, *, quick: bool) -> Trees:
    """All of it. Raises UnavailableError where nothing can be mounted or caches not be dropped."""
    tools.need_fuse()
    if os.geteuid() != 0 or not os.access(DROP_CACHES, os.W_OK):
        raise UnavailableError("only root makes the kernel drop its caches")
    trees = Trees()
    with ExitStack() as stack:
        base = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else tools.directory
        source = Path(tempfile.mkdtemp(dir=base, prefix="recuse-bench-"))
        stack.callback(shutil.rmtree, source)
        _make(source, 2 if quick else DIRECTORIES, 100 if quick else LISTED)
        _look(
            trees,
            {
                NATIVE: lambda: _native(source),
                MIRROR: lambda: mirror(tools, source),
                PASSTHROUGH_LL: lambda: _passthrough_ll(tools, source),
            },
            repetitions,
        )
        _untar(
            trees,
            {
                MEMORY: lambda: _memory(tools),
                PYFUSE3_MEMORY: lambda: _pyfuse3_memory(tools),
                PASSTHROUGH_LL: lambda: _passthrough_ll(tools, _emptied(source)),
                MIRROR: lambda: mirror(tools, _emptied(source)),
            },
            source / "tree.tar",
            repetitions,
        )
    _first(trees, tools, repetitions)
    _nodes(trees, tools, 30 if quick else 1000)
    return trees


def _emptied(source: Path) -> Path:
    """A directory to unpack into, new each time."""
    return Path(tempfile.mkdtemp(dir=source))
