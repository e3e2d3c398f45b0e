"""Command line of the benchmark; see the package."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import extras, goals, report, trees
from benchmarks.camera import camera
from benchmarks.peers import peers
from benchmarks.processes import UnavailableError, note
from benchmarks.runner import run
from benchmarks.tools import Tools

ROOT = Path(__file__).resolve().parent.parent


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run: the figures mean little")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json", metavar="FILE")
    parser.add_argument(
        "--only",
        action="append",
        metavar="PEER",
        help="measure this one only (more than once: these)",
    )
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="PROGRAM",
        help="the interpreter that has benchmarks/requirements.txt installed (default: this one)",
    )
    return parser.parse_args(argv)


def end(number: int, frame: object) -> None:
    """A SIGTERM or SIGHUP ends the benchmark as Ctrl-C does: through every `finally`."""
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    repetitions, seconds = (1, 0.02) if options.quick else (5, 0.25)
    machine = report.machine()
    settings = {
        "machine": machine,
        "quick": options.quick,
        "repetitions": repetitions,
        "seconds": seconds,
    }
    with tempfile.TemporaryDirectory(prefix="recuse-bench-") as directory:
        tools = Tools(Path(directory), options.peer_python)
        chosen = peers(tools)
        if options.only:
            if unknown := set(options.only) - {peer.name for peer in chosen}:
                known = ", ".join(peer.name for peer in chosen)
                note(f"no such peer: {', '.join(sorted(unknown))}; there are {known}")
                return 2
            chosen = tuple(peer for peer in chosen if peer.name in options.only)
        try:
            tools.client()
        except UnavailableError as error:
            note(f"no client: {error}")
            return 1
        outcome = run(tools, chosen, repetitions, seconds)
        startup, memory = None, None
        try:
            startup = extras.startup(tools, repetitions)
            memory = None if options.quick else extras.memory(tools)
        except UnavailableError as error:
            outcome.miss("start-up and memory", error)
        pictures = None
        try:
            pictures = camera(tools, 60 if options.quick else 300)
        except UnavailableError as error:
            outcome.miss("camera", error)
        found_trees = None
        try:
            if not options.only:
                found_trees = trees.measure(tools, 1 if options.quick else 5, quick=options.quick)
        except UnavailableError as error:
            outcome.miss("trees of files", error)
    judged = goals.evaluate(outcome.results, startup, memory, found_trees)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    found = report.document(
        settings, outcome, startup, memory, judged, camera=pictures, trees=found_trees
    )
    options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(report.table(outcome.results))
    print(report.extras_text(outcome, startup, memory, pictures))
    print(report.trees_text(found_trees), end="\n\n")
    for name, reason in outcome.missing.items():
        print(f"left out      {name}: {reason}")
    for goal in judged:
        print(goal)
    print(f"\n{options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
