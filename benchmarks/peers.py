"""What is measured: each peer starts what it needs and says on which path the client workloads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import READY_SECONDS, UnavailableError, output, server
from benchmarks.tools import HERE, SHARED_MEMORY, Tools
from benchmarks.workloads import (
    COPY_1M,
    IOCTL_16,
    MAP_1M,
    NAMES,
    OPEN_CLOSE,
    READ_1M,
    READ_16_BY_8,
    READS,
    STAT_CACHED,
    WAKE_UP,
    WRITE_16,
    WRITES,
    Work,
)

RECUSE_PLAIN = "recuse plain"
RECUSE_ASYNC = "recuse async"
RECUSE_DEFAULT = "recuse defaults"
MOUNT = "mount"
MOUNT_RINGS = "mount io_uring"
MOUNT_ASYNC = "mount async"
MOUNT_ASYNC_RINGS = "async io_uring"
LIBFUSE_MULTI = "libfuse multi"
LIBFUSE_SINGLE = "libfuse single"
PYFUSE3 = "pyfuse3"
MFUSEPY = "mfusepy"
RAW_LOOP = "raw Python loop"
PASSTHROUGH = "passthrough"
UMOCKDEV = "umockdev"
TMPFS = "tmpfs"
TMPFS_SANDBOX = "tmpfs sandboxed"
MEMORY = "memory"
FILE = "file"
FILE_SANDBOX = "file sandboxed"
MOUNT_SANDBOX = "mount sandboxed"
CACHED_SANDBOX = "cached sandboxed"

DEVICE_WORKS = (*READS, READ_16_BY_8, WRITE_16, IOCTL_16)
MOUNT_WORKS = (*READS, READ_16_BY_8, *WRITES, *NAMES)
LIBFUSE_WORKS = (*MOUNT_WORKS, IOCTL_16)
LARGEST = 1 << 20
EXAMPLES = HERE.parent / "examples"

UMOCKDEV_DEVICE = """\
P: /devices/recuse-bench
N: recuse-bench
E: DEVNAME=/dev/recuse-bench
E: SUBSYSTEM=input
E: MAJOR=13
E: MINOR=77

"""
# EVIOCGKEY answers 0 and 16 bytes of 'R'.
UMOCKDEV_IOCTLS = f"@DEV /dev/recuse-bench\nEVIOCGKEY 0 {'52' * 16}\n"


@dataclass(frozen=True)
class Target:
    """How the client runs: `prefix` goes before its command, `path` is what it opens."""

    path: str
    prefix: tuple[str, ...] = ()
    pid: int = 0
    """The server's, if it is a process of its own."""


@dataclass(frozen=True)
class Peer:
    """`start` raises UnavailableError if this machine cannot run it."""

    name: str
    works: tuple[Work, ...]
    start: Callable[[], AbstractContextManager[Target]]


def _unmount(mountpoint: str) -> None:
    """After a server that did not unmount by itself; lazily, as it may not answer any more."""
    if os.path.ismount(mountpoint):
        helper = shutil.which("fusermount3")
        command = [helper, "-u", "-z"] if helper else ["umount", "-l"]
        subprocess.run([*command, mountpoint], check=False)


@contextmanager
def mounted(
    tools: Tools, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[Target]:
    """A server's file "bench", on a directory of its own."""
    tools.need_fuse()
    mountpoint = tempfile.mkdtemp(dir=tools.directory)
    try:
        with server([*command, mountpoint], environment) as pid:
            yield Target(f"{mountpoint}/bench", pid=pid)
    finally:
        _unmount(mountpoint)
        os.rmdir(mountpoint)


@contextmanager
def _libfuse(tools: Tools, *flags: str) -> Iterator[Target]:
    with mounted(tools, [tools.libfuse_server(), *flags]) as target:
        yield target


@contextmanager
def _python_server(tools: Tools, package: str) -> Iterator[Target]:
    tools.need_package(package)
    command = [tools.peer_python, str(HERE / f"{package}_server.py")]
    with mounted(tools, command, {"FUSE_LIBRARY_NAME": "fuse3"}) as target:
        yield target


@contextmanager
def _recuse_mount(tools: Tools, options: str = "") -> Iterator[Target]:
    command = [sys.executable, str(HERE / "mount_server.py"), "-o", options]
    with mounted(tools, command) as target:
        yield target


@contextmanager
def _raw_loop(tools: Tools) -> Iterator[Target]:
    if os.geteuid() != 0:
        raise UnavailableError("only root mounts without a helper")
    with mounted(tools, [sys.executable, str(HERE / "raw_server.py")]) as target:
        yield target


@contextmanager
def mirror(tools: Tools, source: Path) -> Iterator[Path]:
    """A directory that shows another one, by the example."""
    tools.need_fuse()
    mountpoint = tempfile.mkdtemp(dir=tools.directory)
    # As long as libfuse's example believes what it has been told; it has no extended attributes.
    spec = f"{EXAMPLES / 'mirrorfs.py'},source={source},cache_s=1.0,xattrs=false"
    try:
        output([tools.recuse(), "mount", "--background", spec, mountpoint], READY_SECONDS)
        yield Path(mountpoint)
    finally:
        _unmount(mountpoint)
        os.rmdir(mountpoint)


@contextmanager
def _passthrough(tools: Tools) -> Iterator[Target]:
    """A file of shared memory, shown once more; only root's reads pass the server by."""
    if os.geteuid() != 0:
        raise UnavailableError("passthrough takes CAP_SYS_ADMIN")
    with _file(tools, SHARED_MEMORY, False) as target:
        source = Path(target.path)
        with mirror(tools, source.parent) as mountpoint:
            yield Target(str(mountpoint / source.name))


@contextmanager
def _umockdev(tools: Tools) -> Iterator[Target]:
    program = shutil.which("umockdev-run")
    if not program:
        raise UnavailableError("no umockdev-run (umockdev)")
    device = tools.directory / "bench.umockdev"
    ioctls = tools.directory / "bench.ioctl"
    device.write_text(UMOCKDEV_DEVICE)
    ioctls.write_text(UMOCKDEV_IOCTLS)
    path = "/dev/recuse-bench"
    yield Target(path, (program, "-d", str(device), "-i", f"{path}={ioctls}", "--"))


def recuse_prefix(tools: Tools, device: str) -> tuple[str, ...]:
    """`recuse run` with a device class of benchmarks/devices.py."""
    return (tools.recuse(), "run", "-d", f"{HERE / 'devices.py'}:{device}", "--")


@contextmanager
def _recuse(tools: Tools, device: str) -> Iterator[Target]:
    yield Target("/dev/bench", recuse_prefix(tools, device))


@contextmanager
def _sandbox_mount(tools: Tools, name: str) -> Iterator[Target]:
    """A file of the filesystem that `recuse run` serves without the kernel's FUSE."""
    mountpoint = tempfile.mkdtemp(dir=tools.directory)
    spec = f"{mountpoint}={HERE / 'mount_server.py'}:BenchFilesystem"
    try:
        yield Target(f"{mountpoint}/{name}", (tools.recuse(), "run", "-m", spec, "--"))
    finally:
        os.rmdir(mountpoint)


@contextmanager
def _zero() -> Iterator[Target]:
    """What it maps, shared, is memory and nothing else (drivers/char/mem.c)."""
    yield Target("/dev/zero")


@contextmanager
def _file(tools: Tools, directory: Path, sandboxed: bool) -> Iterator[Target]:
    if not os.access(directory, os.W_OK):
        raise UnavailableError(f"cannot write in {directory}")
    prefix = recuse_prefix(tools, "Plain") if sandboxed else ()
    with tempfile.NamedTemporaryFile(dir=directory, prefix="recuse-bench-") as file:
        file.write(b"R" * LARGEST)
        file.flush()
        yield Target(file.name, prefix)


def peers(tools: Tools) -> tuple[Peer, ...]:
    """All of them, in the order of the table."""
    rw = (*READS, WRITE_16)
    maps = (MAP_1M, COPY_1M)
    shared, here = SHARED_MEMORY, tools.directory
    return (
        Peer(RECUSE_PLAIN, (*DEVICE_WORKS, WAKE_UP, *maps), lambda: _recuse(tools, "Plain")),
        Peer(RECUSE_ASYNC, (*DEVICE_WORKS, WAKE_UP, *maps), lambda: _recuse(tools, "Async")),
        Peer(RECUSE_DEFAULT, (READ_1M, IOCTL_16), lambda: _recuse(tools, "Default")),
        Peer(MOUNT, MOUNT_WORKS, lambda: _recuse_mount(tools)),
        Peer(MOUNT_RINGS, MOUNT_WORKS, lambda: _recuse_mount(tools, "io_uring")),
        Peer(MOUNT_ASYNC, MOUNT_WORKS, lambda: _recuse_mount(tools, "async")),
        Peer(MOUNT_ASYNC_RINGS, MOUNT_WORKS, lambda: _recuse_mount(tools, "async,io_uring")),
        Peer(LIBFUSE_MULTI, LIBFUSE_WORKS, lambda: _libfuse(tools)),
        Peer(LIBFUSE_SINGLE, LIBFUSE_WORKS, lambda: _libfuse(tools, "-s")),
        Peer(PYFUSE3, MOUNT_WORKS, lambda: _python_server(tools, "pyfuse3")),
        Peer(MFUSEPY, LIBFUSE_WORKS, lambda: _python_server(tools, "mfusepy")),
        Peer(RAW_LOOP, (*READS, WRITE_16), lambda: _raw_loop(tools)),
        Peer(PASSTHROUGH, (*rw, COPY_1M), lambda: _passthrough(tools)),
        Peer(UMOCKDEV, (IOCTL_16,), lambda: _umockdev(tools)),
        Peer(TMPFS, rw, lambda: _file(tools, shared, False)),
        Peer(TMPFS_SANDBOX, rw, lambda: _file(tools, shared, True)),
        Peer(MEMORY, maps, _zero),
        Peer(FILE, (STAT_CACHED, OPEN_CLOSE), lambda: _file(tools, here, False)),
        Peer(FILE_SANDBOX, (STAT_CACHED, OPEN_CLOSE), lambda: _file(tools, here, True)),
        Peer(
            MOUNT_SANDBOX,
            (*MOUNT_WORKS, STAT_CACHED, MAP_1M),
            lambda: _sandbox_mount(tools, "bench"),
        ),
        Peer(CACHED_SANDBOX, (*READS, COPY_1M), lambda: _sandbox_mount(tools, "cached")),
    )
