"""What the battery has found in each environment, and the table of it in the documentation."""

from __future__ import annotations

import json
from pathlib import Path

from . import battery
from .environments import ALL, Results

HERE = Path(__file__).resolve().parent
FILE = HERE / "records.txt"
PAGE = HERE.parents[1] / "docs" / "reach.md"
BEGIN = "<!-- made by python -m tests.reach --write -->\n"
END = "<!-- end -->\n"


def read() -> dict[str, Results]:
    """What is kept, by the environment's name."""
    found = {}
    for line in FILE.read_text().splitlines() if FILE.exists() else ():
        kept = json.loads(line)
        failed = {check: (outcome, why) for check, outcome, why in kept["otherwise"]}
        checks = {check: failed.get(check, ("yes", "")) for check in kept["checks"]}
        found[kept["environment"]] = Results(kept["system"], checks)
    return found


def write(found: dict[str, Results]) -> None:
    """Keep this, a line for each environment, and make the page's table of it."""
    with FILE.open("w") as output:
        for environment in ALL:
            if (results := found.get(environment.name)) is None:
                continue
            line = {
                "environment": environment.name,
                "system": results.system,
                "checks": list(results.checks),
                "otherwise": [(c, o, w) for c, (o, w) in results.checks.items() if o != "yes"],
            }
            output.write(json.dumps(line) + "\n")
    head, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    PAGE.write_text(head + BEGIN + table(found) + END + tail)


def table(found: dict[str, Results]) -> str:
    """The table, and below it why something does not work, in Markdown."""
    checks = [check.replace("_", " ") for check in battery.CHECKS]
    lines = [
        f"| | {' | '.join(checks)} |",
        f"| --- |{' --- |' * len(checks)}",
    ]
    notes: dict[str, int] = {}
    for environment in ALL:
        if environment.name not in found:
            continue
        cells = []
        for check in battery.CHECKS:
            outcome, why = found[environment.name].checks.get(check, ("-", "not tried"))
            if outcome != "yes":
                outcome = f"**{outcome}** [{notes.setdefault(why, len(notes) + 1)}]"
            cells.append(outcome)
        system = found[environment.name].system.partition(" ")[0]
        lines.append(f"| {environment.name} ({system}) | {' | '.join(cells)} |")
    lines += ["", *(f"[{number}] {why}  " for why, number in notes.items())]
    return "\n".join(lines).rstrip() + "\n"
