"""What mutations are made, with which tests they are tried, and what is left of a run."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..patience import PATIENCE_S
from .__main__ import ALSO, ROOT, selected
from .mutators import chosen, mutations


def changed(source: str) -> list[str]:
    """The source as each mutation has it."""
    return [one.apply(source) for one in mutations(source)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("x = a < b", ["x = (a <= b)"]),
        ("x = a is not b", ["x = (a is b)"]),
        ("x = a in b", ["x = (a not in b)"]),
        ("if a: x = b", ["if (not a): x = b"]),
        ("while a(): x = b", ["while (not a()): x = b"]),
        ("x = a if b else c", ["x = a if (not b) else c"]),
        ("x = [a for a in b if a]", ["x = [a for a in b if (not a)]"]),
        ("x = not a", ["x = (a)"]),
        ("x = a and b", ["x = (a or b)"]),
        ("x = 4", ["x = (3)", "x = (5)"]),
        ("x = True", ["x = (False)"]),
        ("x = a * (b + c)", ["x = (a // (b + c))", "x = a * ((b - c))"]),
        ("x += a", ["pass", "x -= a"]),
        ("x.a = b", ["pass"]),
        ("del x[a]", ["pass"]),
        ("x.a: int = b", ["pass"]),
        ("raise a", ["pass"]),
        ("a()", ["pass"]),
        ("def f(): return", ["def f(): pass"]),
        ("def f(): return a", ["def f(): return (None)"]),
        ("x = f(a, b, *c)", ["x = (f(b, a, *c))"]),
        # Two lines become one, and what follows stays where it was; positions are in bytes.
        ("x = 'é', f(\n    a,\n    b,\n)  # é\ny = b", ["x = 'é', (f(b, a))  # é\ny = b"]),
    ],
)
def test_the_mutations_of_a_piece(source: str, expected: list[str]) -> None:
    found = changed(source)
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring."""',
        "x: Final[Literal[1]]",
        "Steps: TypeAlias = A | B",
        "if TYPE_CHECKING:\n    a()",
        "assert a == 1",
        "_log.error('%d', 1)",
        "x = f'{a + 1}'",
        "x = f(a, a)",
        "def f(): return None",
        "x = a",
        "del x",
    ],
)
def test_what_no_test_is_to_notice_is_left(source: str) -> None:
    assert mutations(source) == []


def test_each_mutation_of_the_package_is_another_program() -> None:
    source = (ROOT / "src/recuse/sandbox/trap/call.py").read_text(encoding="utf-8")
    before = ast.dump(ast.parse(source))
    texts = changed(source)
    assert len(texts) == len(set(texts)) > 100
    assert all(ast.dump(ast.parse(text)) != before for text in texts)


def test_a_seed_chooses_the_same_again_and_another_others() -> None:
    source = "\n".join(f"x = f(a, {number}) == b" for number in range(100))
    ones = [chosen(source, None, 9, seed) for seed in ("0", "0", "1")]
    assert ones[0] == ones[1] != ones[2]
    assert len({one.what for one in ones[0]}) == 3
    assert len(ones[0]) == 9
    assert len(chosen("x = 1", None, 9, "0")) == 2


def test_a_line_has_all_of_its_mutations() -> None:
    source = "x = 1\ny = f(\n    a,\n    b,\n)\n"
    assert [one.what for one in chosen(source, 1, 1, "0")] == ["number", "number"]
    assert [one.what for one in chosen(source, 3, 1, "0")] == ["arguments"]


def test_tests_are_found_by_name_and_by_what_they_import(tmp_path: Path) -> None:
    module = tmp_path / "src/recuse/sandbox/room.py"
    for name, text in {
        "unit/sandbox/test_room.py": "",
        "sandbox/test_a.py": "from recuse.sandbox import room",
        "sandbox/test_b.py": "from recuse.sandbox.room import x",
        "sandbox/test_c.py": "import recuse.sandbox.room",
        "sandbox/test_d.py": "from recuse.sandbox import rooms",
        "vm/test_e.py": "import recuse.sandbox.room",
    }.items():
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found = ["unit/sandbox/test_room.py", *(f"sandbox/test_{one}.py" for one in "abc")]
    assert selected(module, tmp_path) == [f"tests/{name}" for name in found]


@pytest.mark.parametrize("name", ALSO)
def test_the_tests_that_are_named_are_there(name: str) -> None:
    (module,) = (ROOT / "src/recuse/sandbox").rglob(f"{name}.py")
    assert all((ROOT / test).exists() for test in selected(module, ROOT))


# As a whole, in a repository of its own

MODULE = """
def f(x):
    return x < 1
"""
TEST = """
import os, subprocess, recuse.room
def test_f():
    assert recuse.room.f(0)
"""
HANGS = """
    sleep = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with open(os.environ["TELL"], "w") as tell:
        tell.write(str(sleep.pid))
    sleep.wait()
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start the script in a repository with :data:`MODULE` and a test."""

    def start(test: str, *arguments: str) -> subprocess.Popen[str]:
        project = tmp_path / "project"
        shutil.copytree(Path(__file__).parent, project / "tests/mutation")
        (project / "src/recuse").mkdir(parents=True)
        (project / "src/recuse/__init__.py").touch()
        (project / "src/recuse/room.py").write_text(MODULE, encoding="ascii")
        (project / "tests/unit").mkdir()
        (project / "tests/unit/test_room.py").write_text(test, encoding="ascii")
        (tmp_path / "tmp").mkdir()
        os.mkfifo(tmp_path / "tell")
        return subprocess.Popen(
            [sys.executable, "-m", "tests.mutation", *arguments, "src/recuse/room.py"],
            cwd=project,
            env={**os.environ, "TMPDIR": f"{tmp_path}/tmp", "TELL": f"{tmp_path}/tell"},
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


def test_what_is_not_noticed_is_shown(start: Start, tmp_path: Path) -> None:
    with start(TEST) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert output == (
        "src/recuse/room.py:3: comparison\n@@ -2,2 +2,2 @@\n def f(x):\n"
        "-    return x < 1\n+    return (x <= 1)\n"
        "src/recuse/room.py:3: number\n@@ -2,2 +2,2 @@\n def f(x):\n"
        "-    return x < 1\n+    return x < (2)\n"
        "4 mutations: 2 noticed, 0 took too long, 2 survived\n"
    )
    assert process.returncode == 1
    assert (tmp_path / "project/src/recuse/room.py").read_text(encoding="ascii") == MODULE
    assert os.listdir(tmp_path / "tmp") == []


def test_tests_that_fail_without_a_mutation_tell_nothing(start: Start) -> None:
    with start(TEST.replace("f(0)", "f(1)")) as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert output.startswith(
        "src/recuse/room.py: without a mutation, the tests fail: FAILED tests/"
    )
    assert process.returncode == 2


def test_what_hangs_is_ended_with_all_that_it_has_started(start: Start, tmp_path: Path) -> None:
    with start(TEST + HANGS, "--timeout", "0.5") as process:
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert output == "src/recuse/room.py: without a mutation, the tests fail: no test\n"
    assert os.listdir(tmp_path / "tmp") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_can_be_stopped_and_leaves_nothing(start: Start, tmp_path: Path, number: int) -> None:
    with start(TEST + HANGS) as process:
        pid = int((tmp_path / "tell").read_text(encoding="ascii"))
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert output == "0 mutations: 0 noticed, 0 took too long, 0 survived, until it was stopped\n"
    assert process.returncode == 130
    assert not Path(f"/proc/{pid}").exists()
    assert os.listdir(tmp_path / "tmp") == []
