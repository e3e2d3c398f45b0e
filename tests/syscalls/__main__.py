"""Show the documentation's page of system calls, as the table has them.

    python -m tests.syscalls [--write]

With --write it is kept, in docs/syscalls.md.
"""

from __future__ import annotations

import argparse

from . import page


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description="Make the page of all system calls.")
    parser.add_argument("--write", action="store_true", help="keep it")
    if parser.parse_args().write:
        page.write()
    else:
        print(page.render(), end="")


if __name__ == "__main__":
    main()
