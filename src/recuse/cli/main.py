"""The `recuse` command: from the arguments to the exit status.

A test suite may start hundreds of `recuse run`, and click can take longer to import than the
program takes to run. So this module parses the usual form itself; `recuse.cli.commands` has all
others.
"""

import gc
import sys
from collections.abc import Sequence

from recuse.cli.failure import reporting


def plain_run(args: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """Split `run [-d SPEC]... [--] PROGRAM [ARG]...` into the SPECs, and PROGRAM with its ARGs.

    None for anything else, including mistakes and whatever can be read in two ways.
    """
    if not args or args[0] != "run":
        return None
    specs: list[str] = []
    rest = list(args[1:])
    while len(rest) > 1 and rest[0] in ("-d", "--device") and not rest[1].startswith("-"):
        specs.append(rest[1])
        del rest[:2]
    if rest[:1] == ["--"]:
        del rest[0]
    elif rest and rest[0].startswith("-"):
        return None
    return (specs, rest) if rest else None


def plain_mount(args: Sequence[str]) -> tuple[tuple[str, str, list[str]], bool] | None:
    """Split `mount [--background] [-o OPTIONS]... SPEC DIR`: that, and if in the background.

    None for anything else, as `plain_run`.
    """
    if not args or args[0] != "mount":
        return None
    options: list[str] = []
    background = False
    rest = list(args[1:])
    while rest and rest[0].startswith("-"):
        if rest[0] == "--background":
            background = True
            del rest[0]
        elif rest[0] in ("-o", "--options") and len(rest) > 1 and not rest[1].startswith("-"):
            options.append(rest[1])
            del rest[:2]
        else:
            return None
    if len(rest) != 2 or rest[1].startswith("-"):
        return None
    return (rest[0], rest[1], options), background


def _import_all() -> None:
    """Import what will be needed, and keep the garbage collector off it, now and later.

    There is no garbage in it, and to look for some takes a tenth of the time.
    """
    gc.disable()
    import recuse.cli.run
    import recuse.sandbox  # noqa: F401

    gc.freeze()
    gc.enable()


def main(args: Sequence[str] | None = None) -> int:
    """Run the command with `args`, or with those of this process; returns the exit status."""
    own_process = args is None
    if args is None:
        args = sys.argv[1:]

    def command() -> int:
        if (plain := plain_run(args)) is not None:
            if own_process:
                _import_all()
            from recuse.cli.run import run_program

            return run_program(*plain)
        if (mount := plain_mount(args)) is not None:
            what, background = mount
            if background:
                from recuse.cli.background import start_in_background

                return start_in_background(*what)
            from recuse.cli.mount import serve_mount

            return serve_mount(*what)
        from recuse.cli.commands import invoke

        return invoke(args)

    return reporting(command)


if __name__ == "__main__":
    sys.exit(main())
