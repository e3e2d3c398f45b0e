"""Record what the cases do: docs/conformance.md says how to run it.

    python -m tests.conformance [--sandbox] [GROUP | CASE]...

Without --sandbox: on this machine's kernel; what was recorded is kept.  With it: in the sandbox;
what differs from what is kept is printed, and kept for the cases that are known to differ.
"""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
import time
from pathlib import Path

from . import records
from .places import Place, cases, in_sandbox, on_kernel


def record(place: Place, names: list[str]) -> dict[str, list[str]]:
    """What the cases do; without those that fail."""
    found = {}
    for case in names:
        try:
            found[case] = place.run(case)
        except (TimeoutError, EOFError, OSError) as error:
            print(f"{case}: {error}", flush=True)
    return found


def main() -> int:
    """Record the cases that the arguments name, all by default."""
    arguments = sys.argv[1:]
    sandboxed = "--sandbox" in arguments
    wanted = {argument for argument in arguments if not argument.startswith("-")}
    failed = 0
    differing = records.read(records.SANDBOX)
    with (
        tempfile.TemporaryDirectory() as directory,
        (in_sandbox if sandboxed else on_kernel)(Path(directory)) as place,
    ):
        for group, names in cases().items():
            chosen = [n for n in names if not wanted or wanted & {group, n}]
            began = time.monotonic()
            found = record(place, chosen)
            failed += len(chosen) - len(found)
            if chosen:
                print(f"# {group}: {len(found)} in {time.monotonic() - began:.1f} s")
            kept = records.read(group)
            if sandboxed:
                for case, lines in found.items():
                    if lines == kept.get(case):
                        differing.pop(case, None)
                    if lines != kept.get(case):
                        diff = difflib.unified_diff(kept.get(case, []), lines, n=2, lineterm="")
                        print("", f"[{case}]", *list(diff)[2:], sep="\n")
                        if case in differing:
                            differing[case] = lines
            elif found:
                kept |= found
                ordered = {name: kept[name] for name in names if name in kept}
                records.write(group, f"What Linux {os.uname().release} does", ordered, {})
    if sandboxed:
        head = "What the sandbox does where it differs from Linux, and why"
        records.write(records.SANDBOX, head, differing, records.reasons())
    return 1 if failed else 0


sys.exit(main())
