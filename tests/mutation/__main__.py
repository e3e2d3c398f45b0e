"""Change the package in small ways, one at a time, and see whether its tests notice.

    python -m tests.mutation [--each N] [--seed N] [--test PATH]... MODULE[:LINE]...

A folder stands for the modules in it. All of it happens in a copy of the repository: for each
mutation, those tests run that `selected` finds for its module. What they do not notice is printed,
with its place. It may be equivalent: look before you write a test. `--test` adds tests to those
that are found; `:LINE` tries every mutation of a line, as when its test is written.

The status is 0 if all were noticed, 1 if not, 2 if the tests fail without a mutation.
"""

from __future__ import annotations

import argparse
import ast
import ctypes
import difflib
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .mutators import chosen

ROOT = Path(__file__).resolve().parents[2]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis")

ALSO = {
    "borrowing": ["test_blocking.py", "test_processes.py", "test_end.py"],
    "call": ["test_interruption.py"],
    "cuse_file": ["test_cuse_servers.py"],
    "native_files": ["test_paths.py", "test_rights.py", "test_places.py"],
    "pending": ["test_interruption.py", "test_ordinary_signals.py"],
    "readiness": ["polling"],
    "refresher": ["polling"],
    "resolve": ["test_paths.py", "test_listing.py"],
    "rights": ["test_rights.py", "test_credentials.py"],
    "signals": ["test_interruption.py"],
    "table": ["test_release.py", "test_processes.py"],
    "unseen": ["test_unprivileged.py"],
    "walk": ["test_paths.py", "test_places.py", "test_workdir.py"],
}
"""Tests in tests/sandbox by the name of the module that they are about, if theirs is another."""

PR_SET_CHILD_SUBREAPER = 36
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MOST_MEMORY = 8 << 30
"""Of each process: a mutation may have made a loop that has no end."""


def selected(module: Path, root: Path) -> list[str]:
    """The tests that a module's mutations are tried with, as paths below the root.

    Those are the ones whose names begin with its name or its package's, those that import it, and
    those in `ALSO`. Of a module of the sandbox that has none, the ordinary calls on files.
    """
    parts = module.relative_to(root / "src").with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    name, tests = parts[-1], root / "tests"
    found = []
    for path in sorted(tests.rglob("test_*.py"), key=lambda path: ("unit" not in path.parts, path)):
        if "vm" in path.parts:
            continue
        named = f"{path.stem}_".startswith((f"test_{name}_", f"test_{parts[-2]}_"))
        same = named and (parts[1] in path.parts or "unit" in path.parts)
        if same or imports(path.read_text(encoding="utf-8"), ".".join(parts)):
            found.append(path)
    if parts[1] == "sandbox":
        found += [tests / "sandbox" / also for also in ALSO.get(name, [])]
        found = found or [tests / "sandbox" / "test_files.py"]
    return list(dict.fromkeys(str(path.relative_to(root)) for path in found))


def imports(source: str, module: str) -> bool:
    """Whether a program imports a module, or names from it."""
    package, _, name = module.rpartition(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            if node.module == module:
                return True
            if node.module == package and any(alias.name == name for alias in node.names):
                return True
        elif isinstance(node, ast.Import) and any(alias.name == module for alias in node.names):
            return True
    return False


@contextmanager
def copied(root: Path) -> Iterator[Path]:
    """A copy of the repository, and no process or mount that came from it when it is removed."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # The paths of sockets are short, and others than root are to get there.
    above = Path(tempfile.mkdtemp(prefix="mut"))
    try:
        above.chmod(0o755)
        (above / "t").mkdir()
        yield Path(shutil.copytree(root, above / "c", symlinks=True, ignore=NOT_COPIED))
    finally:
        end_children()
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
            where = line.split()[4]
            if where.startswith(f"{above}/"):
                subprocess.run(["umount", "-l", where], check=False)
        shutil.rmtree(above, ignore_errors=True)


def end_children() -> None:
    """Kill what a run of tests has left: it was handed to this process, as all orphans are."""
    while True:
        with suppress(FileNotFoundError):
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
            for child in children.split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


@dataclass
class Runner:
    """Runs tests in a copy of the repository."""

    copy: Path
    writes: int = 0
    output: str = ""
    """What pytest has said."""

    @property
    def failed(self) -> str:
        """Which test, and why, as far as it could be said."""
        lines = self.output.splitlines()
        return next((line for line in lines if line.startswith(("FAILED", "ERROR "))), "no test")

    def write(self, path: Path, source: str) -> None:
        """Change a module, so that no compiled form of it counts any more.

        Python tells by the size, and by the time in seconds.
        """
        self.writes += 1
        path.write_text(source, encoding="utf-8")
        os.utime(path, (self.writes, self.writes))

    def run(self, tests: list[str], timeout: float) -> int | None:
        """Return pytest's exit status, or None if that took too long."""
        argv = [sys.executable, "-m", "pytest", "-qx", "-m", "not slow", "-p", "no:cacheprovider"]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.copy}/src",
            "TMPDIR": str(self.copy.parent / "t"),
        }
        said = self.copy.parent / "said"
        with said.open("wb") as output:
            process = subprocess.Popen(
                [*argv, f"--timeout={max(20, timeout / 2):.0f}", *tests],
                cwd=self.copy,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            resource.prlimit(process.pid, resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            process.kill()
            process.wait()
            end_children()
            self.output = said.read_text(encoding="utf-8", errors="replace")


def difference(before: str, after: str, name: str) -> str:
    """The lines that are not the same."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), name, name, "", "", 1, "")
    return "\n".join(list(lines)[2:])


def show(text: str) -> None:
    """On a terminal, replace the line that says what is being done."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def try_module(
    runner: Runner, module: Path, line: int | None, options: argparse.Namespace, count: Counter[str]
) -> None:
    """Try some of a module's mutations; raises SystemExit if its tests fail without one."""
    name = str(module.relative_to(ROOT))
    # The repository may change meanwhile, but not the copy.
    path = runner.copy / name
    source = path.read_text(encoding="utf-8")
    tests = [*selected(path, runner.copy), *options.test]
    todo = chosen(source, line, options.each, f"{options.seed} {name}")
    if not tests or not todo:
        print(f"{name}: {'nothing to change' if tests else 'no tests'}")
        return
    show(f"{name}: {' '.join(tests)}")
    began = time.monotonic()
    if (status := runner.run(tests, options.timeout)) != 0:
        show("")
        print(f"{name}: without a mutation, the tests fail: {runner.failed}")
        raise SystemExit(2)
    timeout = min(options.timeout, 20 + 4 * (time.monotonic() - began))
    for number, one in enumerate(todo, 1):
        show(f"[{number}/{len(todo)}] {name}:{one.line}: {one.what}")
        changed = one.apply(source)
        runner.write(path, changed)
        status = runner.run(tests, timeout)
        if status != 0 and options.verbose:
            show("")
            how = "took too long" if status is None else runner.failed
            print(f"{name}:{one.line}: {one.what}: {how}", flush=True)
        if status is None:
            count["took too long"] += 1
        elif status:
            count["noticed"] += 1
        else:
            count["survived"] += 1
            show("")
            print(f"{name}:{one.line}: {one.what}\n{difference(source, changed, name)}", flush=True)
    runner.write(path, source)
    show("")


def modules(target: str) -> Iterator[tuple[Path, int | None]]:
    """The modules that an argument means, with the line."""
    name, _, line = target.partition(":")
    path = Path(name).resolve()
    if path.is_dir():
        yield from ((found, None) for found in sorted(path.rglob("*.py")))
    elif path.is_file():
        yield path, int(line) if line else None
    else:
        raise SystemExit(f"{name}: no such module")


def stop(number: int, frame: object) -> None:
    """End as Ctrl-C does; once, so that nothing is left."""
    del number, frame
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description="Change the package; see what tests notice.")
    parser.add_argument("target", nargs="+", help="a module, MODULE:LINE, or a folder")
    parser.add_argument("--each", type=int, default=5, help="how many of a module (5)")
    parser.add_argument("--seed", default="0", help="another one chooses others")
    parser.add_argument("--test", action="append", default=[], help="tests to run as well")
    parser.add_argument("--timeout", type=float, default=600, help="for one run, in seconds (600)")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what noticed the others")
    options = parser.parse_args()
    for number in STOPS:
        signal.signal(number, stop)
    targets = [one for target in options.target for one in modules(target)]
    count = Counter(dict.fromkeys(["noticed", "took too long", "survived"], 0))
    status = None
    try:
        with copied(ROOT) as copy:
            runner = Runner(copy)
            for module, line in targets:
                try_module(runner, module, line, options, count)
    except KeyboardInterrupt:
        status = 130
    show("")
    outcomes = ", ".join(f"{number} {outcome}" for outcome, number in count.items())
    print(f"{count.total()} mutations: {outcomes}{', until it was stopped' if status else ''}")
    return status or (1 if count["survived"] else 0)


if __name__ == "__main__":
    sys.exit(main())
