"""What it costs to start a program, in CPU time: of use on a busy machine too.

    python -m benchmarks.start [SRC]

measures /bin/true by itself, with a bare interpreter, in `recuse run` and in `Sandbox.run`, in
turns; with SRC, the src directory of another version, that one's too. Times are user and system
time of all processes together. What Python has compiled is used: compile both first (compileall).
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[1] / "src"
TURNS = 15
RUNS = 40
PROGRAM = "/bin/true"

MANY = f"""
import resource
from recuse import Sandbox

def used():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

with Sandbox() as sandbox:
    sandbox.run(["{PROGRAM}"])
    before = used()
    for _ in range({RUNS}):
        sandbox.run(["{PROGRAM}"])
    print((used() - before) / {RUNS})
"""


def milliseconds(command: Sequence[str], source: Path) -> float:
    """The CPU time that a command takes, or what it prints, in seconds, if it prints anything."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.stdout:
        return float(done.stdout) * 1000
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def main(sources: Sequence[Path]) -> None:
    """Print the medians."""
    python = sys.executable
    # As a module that all versions have.
    recuse = [python, "-m", "recuse.cli.main", "run"]
    echo = str(HERE.parent / "examples" / "echo.py")
    rows: list[tuple[str, list[str], Path]] = [
        (PROGRAM, [PROGRAM], HERE),
        ("python -I -S -c pass", [python, "-I", "-S", "-c", "pass"], HERE),
        ("python -c pass", [python, "-c", "pass"], HERE),
    ]
    for source in sources:
        rows += [
            (f"recuse run, {source}", [*recuse, "--", PROGRAM], source),
            (f"recuse run -d echo.py, {source}", [*recuse, "-d", echo, "--", PROGRAM], source),
            (f"Sandbox.run, {source}", [python, "-c", MANY], source),
        ]
    samples: list[list[float]] = [[] for _ in rows]
    for _ in range(TURNS):
        for (_, command, source), row in zip(rows, samples, strict=True):
            row.append(milliseconds(command, source))
    for (name, _, _), row in zip(rows, samples, strict=True):
        print(f"{statistics.median(row):7.1f} ms ({min(row):.1f} to {max(row):.1f})  {name}")


if __name__ == "__main__":
    main([HERE, *map(Path, sys.argv[1:])])
