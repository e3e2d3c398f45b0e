"""Run the battery in the environments, and say where recuse works in docs/reach.md.

    python -m tests.reach [--write] [ENVIRONMENT]...

An ENVIRONMENT is the beginning of a name in environments.py; without any, all are tried. What is
found is printed; with --write it is also kept, and the page's table made anew.
"""

from __future__ import annotations

import argparse

from . import records
from .containers import Unavailable
from .environments import ALL


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description="Run the battery where recuse is to work.")
    parser.add_argument("--write", action="store_true", help="keep what is found")
    parser.add_argument("environment", nargs="*", help="the beginning of a name")
    arguments = parser.parse_args()
    kept = records.read()
    for environment in ALL:
        wanted = arguments.environment or [environment.name]
        if not any(map(environment.name.startswith, wanted)):
            continue
        try:
            found = environment.run()
        except Unavailable as error:
            print(f"{environment.name}: not available: {error}", flush=True)
            continue
        bad = {check: why for check, (outcome, why) in found.checks.items() if outcome != "yes"}
        print(f"{environment.name}: {len(found.checks) - len(bad)} of {len(found.checks)}")
        for check, why in bad.items():
            print(f"    {check}: {why}", flush=True)
        kept[environment.name] = found
        if arguments.write:
            records.write(kept)


if __name__ == "__main__":
    main()
