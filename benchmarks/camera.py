"""A camera's frames of 1920 x 1080 pixels, YUYV, in a program's memory: how many, at what cost."""

from __future__ import annotations

import re
import resource
import shutil
import statistics
import time
from dataclasses import dataclass

from benchmarks.processes import UnavailableError, note, output
from benchmarks.tools import HERE, Tools

FPS = 30
UNLIMITED = 5000
"""A frame rate that nothing here reaches."""
SECONDS = 120.0


@dataclass(frozen=True)
class Camera:
    """What v4l2-ctl, one program with four buffers, gets of examples/camera.py."""

    reported_fps: float
    """At 30 frames a second, by its own account."""
    cpus: float
    """How many CPUs that keeps busy: sandbox, device and v4l2-ctl together, start-up left out."""
    most_fps: float
    """How many come in a second if the camera waits for nothing but a buffer."""


@dataclass(frozen=True)
class _Stream:
    seconds: float
    cpu_seconds: float
    text: str


def _stream(tools: Tools, fps: int, frames: int) -> _Stream:
    spec = f"{HERE.parent / 'examples' / 'camera.py'},fps={fps},width=1920,height=1080"
    # v4l2-ctl reports on stderr.
    script = f"exec v4l2-ctl -d 9 --stream-mmap --stream-count={frames} 2>&1"
    command = [tools.recuse(), "run", "-d", spec, "--", "sh", "-c", script]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    text = output(command, SECONDS)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _Stream(seconds, cpu, text)


def reported(text: str) -> float:
    """The median of v4l2-ctl's reports, one for each second.

    Raises UnavailableError if there is none.
    """
    found = [float(fps) for fps in re.findall(r"([0-9.]+) fps", text)]
    if not found:
        raise UnavailableError("v4l2-ctl reported no frame rate")
    return statistics.median(found)


def camera(tools: Tools, frames: int) -> Camera:
    """Stream that many frames at 30 a second, and three times as many as they come.

    Raises UnavailableError without v4l2-ctl, or what the example needs.
    """
    if not shutil.which("v4l2-ctl"):
        raise UnavailableError("no v4l2-ctl (v4l-utils)")
    note(f"camera, {frames} frames")
    # The first one reads the interpreter and its modules from the disk.
    _stream(tools, FPS, 1)
    short, steady = _stream(tools, FPS, 1), _stream(tools, FPS, frames + 1)
    begun, fast = _stream(tools, UNLIMITED, 1), _stream(tools, UNLIMITED, 3 * frames + 1)
    return Camera(
        reported_fps=reported(steady.text),
        cpus=(steady.cpu_seconds - short.cpu_seconds) / (frames / FPS),
        most_fps=3 * frames / (fast.seconds - begun.seconds),
    )
