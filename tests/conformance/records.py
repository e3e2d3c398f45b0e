"""What is kept of the cases, in records/.

A file for each of the client's has what the real kernel does.  sandbox.txt has what the sandbox
does where it differs, each with the reason.
"""

from __future__ import annotations

import os
from pathlib import Path

RECORDS = Path(__file__).parent / "records"

SANDBOX = "sandbox"


def read(name: str) -> dict[str, list[str]]:
    """The records of one file, by case; empty if there are none."""
    file = RECORDS / f"{name}.txt"
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith("#") or not line:
            continue
        if line.startswith("["):
            lines = found[line[1:-1]] = []
        else:
            lines.append(line)
    return found


def reasons() -> dict[str, str]:
    """Why the sandbox differs, by case: the comments in sandbox.txt under the case's name."""
    found: dict[str, str] = {}
    case = ""
    for line in (RECORDS / f"{SANDBOX}.txt").read_text().splitlines():
        if line.startswith("["):
            case = line[1:-1]
        elif line.startswith("# ") and case:
            found[case] = f"{found.get(case, '')} {line[2:]}".strip()
    return found


def write(name: str, head: str, records: dict[str, list[str]], why: dict[str, str]) -> None:
    """Keep them."""
    RECORDS.mkdir(exist_ok=True)
    text = f"# {head}: docs/conformance.md\n"
    for case, lines in records.items():
        text += f"\n[{case}]\n"
        if case in why:
            text += f"# {why[case]}\n"
        text += "".join(f"{line}\n" for line in lines)
    with (RECORDS / f"{name}.txt").open("w") as file:
        file.write(text)
        # The virtual machine is switched off, not shut down.
        file.flush()
        os.fsync(file.fileno())
