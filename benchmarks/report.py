"""The figures as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import workloads
from benchmarks.camera import FPS, Camera
from benchmarks.extras import Memory, Startup
from benchmarks.goals import Goal
from benchmarks.peers import LIBFUSE_MULTI, LIBFUSE_SINGLE
from benchmarks.runner import Run
from benchmarks.samples import PLACEMENTS, Results, Summary
from benchmarks.trees import Trees

# More than this and the figures tell of the other work too.
QUIET_CPUS = 0.1


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "kernel": platform.release(),
        "processor": model or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def _summary_cells(summary: Summary | None) -> str:
    if summary is None:
        return f"{'-':>9}{'-':>9}{'-':>9}"
    return "".join(
        f"{value / 1000:>9.2f}" for value in (summary.median, summary.minimum, summary.maximum)
    )


def _ratio_cell(ratio: float | None) -> str:
    return f"{'-':>8}" if ratio is None else f"{ratio:>8.2f}"


def _placement_cells(results: Results, placement: str, peer: str, work: str) -> str:
    cells = _summary_cells(results.summary(placement, peer, work))
    for base in (LIBFUSE_MULTI, LIBFUSE_SINGLE):
        cells += _ratio_cell(results.ratio(placement, peer, work, base))
    return cells


def table(results: Results) -> str:
    """Microseconds per operation: a block for each work, a line for each peer."""
    columns = f"{'median':>9}{'min':>9}{'max':>9}{'/multi':>8}{'/single':>8}"
    titles = {"free": "scheduler free", "pinned": "all on one CPU"}
    width = len(columns)
    lines = [
        f"{'':<18}" + " |".join(f"{titles[placement]:^{width}}" for placement in PLACEMENTS),
        f"{'us per operation':<18}" + " |".join(columns for _ in PLACEMENTS),
    ]
    for work in workloads.ALL:
        names = {key.peer: None for key in results.samples if key.work == work.name}
        if not names:
            continue
        lines.append(work.name)
        for peer in names:
            cells = (_placement_cells(results, place, peer, work.name) for place in PLACEMENTS)
            lines.append(f"  {peer:<16}" + " |".join(cells))
    lines.append(
        "/multi and /single: the median over that of libfuse's server with that threading."
    )
    return "\n".join(lines)


def _entries(results: Results) -> Iterator[dict[str, Any]]:
    for key, samples in results.samples.items():
        summary = results.summary(key.placement, key.peer, key.work)
        assert summary
        yield {
            "placement": key.placement,
            "peer": key.peer,
            "work": key.work,
            "median_ns": summary.median,
            "min_ns": summary.minimum,
            "max_ns": summary.maximum,
            "samples_ns": samples,
            "ratio_libfuse_multi": results.ratio(key.placement, key.peer, key.work, LIBFUSE_MULTI),
            "ratio_libfuse_single": results.ratio(
                key.placement, key.peer, key.work, LIBFUSE_SINGLE
            ),
        }


def document(
    settings: dict[str, Any],
    outcome: Run,
    startup: Startup | None,
    memory: Memory | None,
    goals: Sequence[Goal],
    *,
    camera: Camera | None = None,
    trees: Trees | None = None,
) -> dict[str, Any]:
    """All that was found, for JSON: times in nanoseconds, start-up in seconds, memory in bytes."""
    return {
        "settings": settings,
        "results": list(_entries(outcome.results)),
        "startup_s": dataclasses.asdict(startup) if startup else None,
        "memory_bytes": dataclasses.asdict(memory) if memory else None,
        "camera": dataclasses.asdict(camera) if camera else None,
        "trees": dataclasses.asdict(trees) if trees else None,
        "missing": outcome.missing,
        "others_cpus": outcome.others,
        "goals": [{**dataclasses.asdict(goal), "met": goal.met} for goal in goals],
    }


def extras_text(
    outcome: Run, startup: Startup | None, memory: Memory | None, camera: Camera | None = None
) -> str:
    """The lines below the table."""
    lines = [f"CPUs that other work kept busy meanwhile: {outcome.others:.2f}"]
    if outcome.others > QUIET_CPUS:
        lines[0] += ": too much, measure again on a quiet machine"
    if startup:
        for name, summary in (
            ("/bin/true", startup.outside),
            ("recuse run", startup.inside),
            ("Sandbox.run", startup.another),
        ):
            lines.append(
                f"start-up, {name}: {summary.median * 1000:.1f} ms "
                f"({summary.minimum * 1000:.1f} to {summary.maximum * 1000:.1f})"
            )
    if memory:
        early, late, highest = (
            f"{size / (1 << 20):.2f}" for size in (memory.early, memory.late, memory.highest)
        )
        lines.append(
            f"memory over {memory.operations} operations: {early} MiB early, {late} MiB late, "
            f"{highest} MiB at most"
        )
    if camera:
        lines.append(
            f"camera, 1920x1080 YUYV: {camera.reported_fps:.2f} of {FPS} frames a second by "
            f"v4l2-ctl's report, {camera.cpus:.3f} CPUs busy; {camera.most_fps:.0f} at the most"
        )
    return "\n".join(lines)


def trees_text(trees: Trees | None) -> str:
    """A line for each job and peer."""
    if trees is None:
        return "trees of files were not measured"
    lines = []
    for job, figures in trees.seconds.items():
        lines += [f"{job}, {peer}: {seconds * 1000:.0f} ms" for peer, seconds in figures.items()]
    for peer, size in trees.bytes_a_node.items():
        lines.append(f"memory of a server for each node that it knows, {peer}: {size:.0f} bytes")
    lines += [f"left out      {peer}: {reason}" for peer, reason in trees.missing.items()]
    return "\n".join(lines)
