"""The rules about the source itself.

Which package imports which, how long a file may grow, and that none names the machine that it was
written on.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "recuse"

# What each room may import besides itself and the standard library. The root package is the
# public face of the server half.
MAY_IMPORT = {
    "": {"channel", "server", "sandbox", "wire"},
    "runtime": set(),
    "wire": set(),
    "kernel": {"runtime", "wire"},
    "server": {"runtime", "wire"},
    "channel": {"kernel", "runtime", "server", "wire"},
    "sandbox": {"channel", "kernel", "runtime", "server", "wire"},
    "testing": {"channel", "kernel", "runtime", "server", "wire"},
    "trace": {"runtime", "wire"},
    "cli": {"", "channel", "kernel", "runtime", "sandbox", "server", "trace", "wire", "click"},
}

# The kernel half leaves waiting and I/O to others; it may take a lock.
WAITING = {
    "asyncio",
    "concurrent",
    "multiprocessing",
    "select",
    "selectors",
    "socket",
    "subprocess",
}
NOT_IN = {"kernel": WAITING, "wire": WAITING | {"threading"}}


# Imported by type checkers alone, which bring it along.
FOR_TYPE_CHECKERS = {"typing_extensions"}


def room_of(path: Path) -> str:
    """The room that a file under src/recuse is in; "" for the root package."""
    parts = path.relative_to(SOURCE).parts
    if parts == ("__main__.py",):
        return "cli"  # which Python finds nowhere else
    return parts[0] if len(parts) > 1 else ""


def type_checking_lines(tree: ast.AST) -> set[int]:
    """The lines of a module that only a type checker sees."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    }


def imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """Each import anywhere in a module of `package` (dotted name as a list): line and full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            for alias in node.names:
                # `from recuse import wire` imports a room, `from recuse.wire import x` also does.
                yield node.lineno, f"{module}.{alias.name}"


def violations(source: str, room: str, package: list[str]) -> list[str]:
    """The imports of a module that its room may not have, each as "line N: name"."""
    found = []
    tree = ast.parse(source)
    type_checking = type_checking_lines(tree)
    for line, name in imports(tree, package):
        top, _, rest = name.partition(".")
        if top == "recuse":
            target = rest.partition(".")[0]
            target = target if target in MAY_IMPORT else ""
            allowed = target == room or target in MAY_IMPORT[room]
        elif top in sys.stdlib_module_names:
            allowed = top not in NOT_IN.get(room, ())
        else:
            allowed = top in MAY_IMPORT[room] or (
                top in FOR_TYPE_CHECKERS and line in type_checking
            )
        if not allowed:
            found.append(f"line {line}: {name}")
    return found


# Within the rooms that have several packages: each may import what stands before it.
ORDER = {
    "kernel": ["errors", "caller", "connection", "iovec", "locks", "files", "char", "fs"],
    "sandbox": [
        *("table", "arch", "abilities", "errands", "tasks", "trap", "vfs", "files", "mapping"),
        *("fs", "machine", "syscalls", "supervisor", "launch", "api", "foreground"),
    ],
}


def package_of(name: str) -> tuple[str, str]:
    """The room, and the package or module in it, of a dotted name below recuse."""
    room, _, rest = name.removeprefix("recuse.").partition(".")
    return room, rest.partition(".")[0]


@pytest.mark.parametrize("room", ORDER)
def test_packages_import_those_before_them(room: str) -> None:
    order = ORDER[room]
    names = {path.stem for path in (SOURCE / room).iterdir() if not path.name.startswith("__")}
    assert names == set(order)
    found = []
    for file in sorted((SOURCE / room).rglob("*.py")):
        path = file.relative_to(SOURCE).with_suffix("")
        _, own = package_of(".".join(path.parts))
        if own == "__init__":
            continue  # it shows what is in the others
        package = ["recuse", *path.parts[:-1]]
        for line, name in imports(ast.parse(file.read_text(encoding="utf-8")), package):
            target, other = package_of(name)
            if target != room or other not in order:
                continue
            if order.index(other) > order.index(own):
                found.append(f"{file.relative_to(ROOT)}, line {line}: {name}")
    assert found == []


def module_graph(root: Path) -> dict[str, set[str]]:
    """What each module of the package at `root` imports of it, for type checkers or not."""
    files = {
        ".".join([root.name, *path.relative_to(root).with_suffix("").parts]): path
        for path in root.rglob("*.py")
    }
    files = {module.removesuffix(".__init__"): path for module, path in files.items()}
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        graph[module] = set()
        package = [root.name, *path.relative_to(root).parent.parts]
        for _, name in imports(ast.parse(path.read_text(encoding="utf-8")), package):
            while name and name not in files:  # of what is in a module
                name = name.rpartition(".")[0]
            graph[module] |= {name} - {module, ""}
    return graph


def circles(graph: dict[str, set[str]]) -> set[frozenset[str]]:
    """The largest sets of nodes of which each can be reached from each."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        found: set[str] = set()
        left = [start]
        while left:
            new = graph[left.pop()] - found
            found |= new
            left += new
        reached[start] = found
    return {
        frozenset(other for other in reached[one] if one in reached[other])
        for one in graph
        if one in reached[one]
    }


def test_there_are_no_import_circles() -> None:
    """Those for type checkers included: such modules cannot be understood one by one either."""
    graph = module_graph(SOURCE)
    assert len(graph) > 100
    assert sum(map(len, graph.values())) > 400
    assert circles(graph) == set()


def test_an_import_circle_is_found(tmp_path: Path) -> None:
    root = tmp_path / "recuse"
    (root / "room").mkdir(parents=True)
    for name, source in {
        "__init__": "",
        "a": "from recuse.room.b import thing",
        "b": "def f():\n    from recuse.room import c",
        "c": "if TYPE_CHECKING:\n    from .a import Name",
        "d": "import recuse.room.a",
        "e": "import os",
    }.items():
        (root / "room" / f"{name}.py").write_text(source, encoding="utf-8")
    expected = {frozenset(f"recuse.room.{name}" for name in "abc")}
    assert circles(module_graph(root)) == expected


# What finds a file by a path, of the standard library and of the kernel.
FILE_FUNCTIONS = {
    *("open", "stat", "lstat", "access", "listdir", "scandir", "readlink", "statvfs", "walk"),
    *("mkdir", "mknod", "rmdir", "unlink", "remove", "rename", "link", "symlink", "chmod", "chown"),
    *("utime", "truncate", "chdir", "execv", "execve", "getxattr", "setxattr", "listxattr"),
    *("exists", "lexists", "islink", "isdir", "isfile", "ismount", "realpath", "samefile"),
    *(
        "statfs",
        "statx",
        "openat",
        "openat2",
        "open_tree",
        "faccessat2",
        "newfstatat",
        "getdents64",
    ),
}
# Where the sandbox may do that besides native_files, with paths that no program has named. (What
# begins with /proc is the supervisor's own business: it is about processes by their numbers.)
OWN_PATHS = {
    "abilities": "tries which calls are allowed, on its own root",
    "foreground": "the terminal",
    "launch/process_handle": "a process's status, from a descriptor of its directory",
    "launch/init": "the program to be executed; a process of its own, with the program's rights",
    "launch/parent": "the interpreter",
    "vfs/device_files": "where they are made: paths that authors and recuse itself give",
    "vfs/placeholder_dirs": "directories that stand for recuse's own",
    "syscalls/mounting": "what fusermount3 may do for users, on this machine",
    "tasks/status": "a process's status, in a /proc of another pid namespace",
}


def file_uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Each call that finds a file by a path which does not begin with /proc: line and name."""
    for node in ast.walk(tree):
        name = argument = ""
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            argument = ast.unparse(node.args[0]).lstrip("fb") if node.args else ""
            if name != "open" and not name.startswith(("os.", "posix.", "_libc.", "pathlib.")):
                continue
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            name = ast.unparse(node.value)
            if not name.endswith(("SYSCALLS", "INJECTED")):
                continue
            name = f"SYSCALLS.{node.slice.value!r}".replace("'", "")
        else:
            continue
        if name.rpartition(".")[2] in FILE_FUNCTIONS and not argument.startswith("'/proc/"):
            yield node.lineno, name


def test_native_files_are_named_in_one_module() -> None:
    """There it is seen to that nothing is done with more rights than a program has."""
    found = []
    used = set()
    for file in sorted((SOURCE / "sandbox").rglob("*.py")):
        module = str(file.relative_to(SOURCE / "sandbox").with_suffix(""))
        for line, name in file_uses(ast.parse(file.read_text(encoding="utf-8"))):
            if module in OWN_PATHS:
                used.add(module)
            elif module != "vfs/native_files":
                found.append(f"{file.relative_to(ROOT)}, line {line}: {name}")
    assert found == []
    assert used == set(OWN_PATHS)


@pytest.mark.parametrize(
    "source",
    [
        "os.open(path, 0)",
        "open(name)",
        "os.path.exists(b'/' + name)",
        "os.stat(name, dir_fd=file)",
        "_libc.syscall(arch.SYSCALLS['openat2'], 1)",
        "_libc.statfs(path, buffer)",
        "os.open(f'{place}/x', 0)",
    ],
)
def test_a_native_file_that_is_named_is_found(source: str) -> None:
    assert len(list(file_uses(ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source", ["open(f'/proc/{tid}/status')", "os.readlink(b'/proc/self/fd/%d' % file)", "find(x)"]
)
def test_what_names_no_native_file_is_not(source: str) -> None:
    assert not list(file_uses(ast.parse(source)))


MOST_LINES = 500
MOST_LINES_OF_A_FUNCTION = 60
"""Without its docstring."""


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How long a function is from its first line of code on."""
    first = function.body[0]
    start = function.lineno
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        start += (first.end_lineno or first.lineno) - first.lineno + 1
    return (function.end_lineno or start) - start + 1


def test_files_and_functions_stay_short() -> None:
    long = []
    for file in sorted(SOURCE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if text.count("\n") > MOST_LINES:
            long.append(str(file.relative_to(ROOT)))
        long += [
            f"{file.relative_to(ROOT)}: {node.name}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and code_lines(node) > MOST_LINES_OF_A_FUNCTION
        ]
    assert long == []


def tracked_files() -> list[Path]:
    """The files of the repository, without the licence."""
    listing = subprocess.run(
        # The checkout may belong to somebody else, as in a container: only listing it is safe.
        ["git", "-c", "safe.directory=*", "ls-files", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    files = [ROOT / name for name in listing.split("\0") if name and name != "LICENSE"]
    return [file for file in files if file.is_file()]


def test_every_import_follows_the_rules() -> None:
    problems = []
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 5
    for file in files:
        package = ["recuse", *file.relative_to(SOURCE).parent.parts]
        for problem in violations(file.read_text(encoding="utf-8"), room_of(file), package):
            problems.append(f"{file.relative_to(ROOT)}, {problem}")
    assert problems == []


MADE_IN_RUNTIME = ("Thread(", "Timer(", "Lock(", "RLock(", "Condition()", "Semaphore(", "Barrier(")


def test_loggers_threads_and_locks_are_made_in_one_room() -> None:
    """Logging that raises, a lack of threads, and the order of locks are dealt with there."""
    found = [
        f"{file.relative_to(ROOT)}: {what}"
        for file in sorted(SOURCE.rglob("*.py"))
        for what in ("logging.getLogger(", *(f"threading.{kind}" for kind in MADE_IN_RUNTIME))
        if what in file.read_text(encoding="utf-8") and room_of(file) != "runtime"
    ]
    assert found == []


def test_every_room_has_rules() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("wire", "import click"),
        ("wire", "import recuse"),
        ("wire", "from recuse import Device"),
        ("wire", "from recuse.kernel import queue"),
        ("kernel", "import socket"),
        ("kernel", "from asyncio import sleep"),
        ("kernel", "import recuse.server.device"),
        ("kernel", "from recuse import server"),
        ("kernel", "from .. import channel"),
        ("kernel", "from ..server import device"),
        ("kernel", "def f():\n    import select"),
        ("server", "from recuse.kernel.connection.connection import Connection"),
        ("server", "import recuse.channel.inprocess as c"),
        ("channel", "from recuse.sandbox import Sandbox"),
        ("sandbox", "import click"),
        ("sandbox", "if TYPE_CHECKING:\n    from recuse.cli import spec"),
        ("server", "import typing_extensions"),
        ("server", "if TYPE_CHECKING:\n    pass\nfrom typing_extensions import Buffer"),
        ("server", "if TYPE_CHECKING:\n    import click"),
        ("", "from recuse.cli.main import main"),
    ],
)
def test_a_forbidden_import_is_found(room: str, source: str) -> None:
    assert len(violations(source, room, ["recuse", room] if room else ["recuse"])) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("wire", "import struct, enum\nfrom . import errors\nfrom recuse.wire import fuse"),
        ("kernel", "import threading\nfrom ..wire.fuse import FUSE_READ\nfrom .queue import Queue"),
        ("server", "if TYPE_CHECKING:\n    from typing_extensions import Buffer"),
        ("server", "import asyncio\nfrom recuse.wire import fuse"),
        ("channel", "from recuse.kernel import cuse\nfrom recuse.server import session"),
        ("sandbox", "import ctypes, select\nimport recuse.kernel.char.files"),
        ("cli", "import click\nimport recuse\nfrom recuse.sandbox import supervise"),
        ("", "from recuse.server.device import Device"),
    ],
)
def test_an_allowed_import_passes(room: str, source: str) -> None:
    assert violations(source, room, ["recuse", room] if room else ["recuse"]) == []


def test_a_start_imports_nothing_slow() -> None:
    """`recuse run` begins for each test of a user's: what only some devices need comes later."""
    slow = {"asyncio", "click", "dataclasses", "hashlib", "inspect", "numpy", "pathlib", "random"}
    slow |= {"recuse.wire.filesystem", "recuse.wire.optable"}
    script = (
        "import sys, recuse, recuse.cli.main, recuse.cli.run, recuse.sandbox\n"
        f"print(sorted({slow!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_no_file_is_longer_than_anybody_reads() -> None:
    lengths = {
        str(file.relative_to(ROOT)): file.read_bytes().count(b"\n") for file in tracked_files()
    }
    assert len(lengths) > 10
    assert {name: length for name, length in lengths.items() if length > 700} == {}


# Written so that no pattern is found in this file.
FORBIDDEN = re.compile(
    r"/w[o]rk/|/h[o]me/|py[p]i\.org|pyth[o]nhosted|deb\.d[e]bian\.org"
    r"|registry\.n[p]mjs|crates\.i[o]"
)


def test_no_file_names_a_machine_or_a_package_registry() -> None:
    found = []
    for file in tracked_files():
        text = file.read_bytes().decode(errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if FORBIDDEN.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_the_forbidden_words_are_recognised() -> None:
    host = ".".join(["py" + "pi", "org"])
    assert FORBIDDEN.search(f"see https://{host}/project")
    assert FORBIDDEN.search("/".join(["open('", "work", "x')"]))
    assert not FORBIDDEN.search("the work of homework")
