"""The checks of tests/conftest.py do find what a test left behind, and say what is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

SAMPLES = """
import os, subprocess, pytest

def test_clean(tmp_path):
    with open(tmp_path / "file", "w"):
        subprocess.run(["true"], check=True)

def test_descriptor():
    os.open("/dev/null", os.O_RDONLY)

def test_cycle():
    class Owner:
        def __init__(self):
            self.itself, self.descriptor = self, os.open("/dev/null", os.O_RDONLY)
        def __del__(self):
            os.close(self.descriptor)
    Owner()

def test_child():
    if os.fork() == 0:
        os._exit(0)

def test_after_the_child():
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)

def test_locks():
    from recuse.runtime.locks import new_lock
    with new_lock("Packets"), new_lock("Packets.receiving"):
        pass

def test_after_the_locks():
    pass

@pytest.mark.leaks("on purpose")
def test_on_purpose():
    os.open("/dev/null", os.O_RDONLY)

@pytest.fixture
def closed_late():
    descriptor = os.open("/dev/null", os.O_RDONLY)
    yield
    os.close(descriptor)

def test_fixture_cleans_up(closed_late):
    pass

def test_has(needs):
    assert needs("cat", package="coreutils").name == "cat"
    assert str(needs("/dev/null")) == "/dev/null"

def test_lacks_program(needs):
    needs("no-such-program", package="its-package")

def test_lacks_file(needs):
    needs("/no/such/file")
"""


def outcomes(directory: Path, ci: str) -> tuple[dict[str, str], str]:
    """Run SAMPLES under this conftest: what became of each test, and all that pytest wrote."""
    tests = directory / "tests"
    tests.mkdir()
    for name in ("conftest.py", "lock_watch.py"):
        shutil.copy(TESTS / name, tests / name)
    (tests / "test_samples.py").write_text(SAMPLES, encoding="utf-8")
    (directory / "pytest.ini").write_text("[pytest]\nmarkers =\n  leaks: .\n", encoding="utf-8")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--tb=short", "-v"),
            "--import-mode=importlib",
        ],
        cwd=directory,
        env={**os.environ, "CI": ci, "COLUMNS": "200", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    found: dict[str, str] = {}
    for line in run.stdout.splitlines():
        word, _, rest = line.partition(" tests/test_samples.py::")
        # An error while cleaning up comes on top of the test's own outcome.
        if rest and word in {"PASSED", "FAILED", "ERROR"}:
            found[rest.split(" ")[0].removeprefix("test_")] = word
        elif word.startswith("SKIPPED"):
            found["skipped"] = found.get("skipped", "") + line
    return found, run.stdout


@pytest.mark.parametrize("ci", ["true", ""])
def test_outcomes(tmp_path: Path, ci: str) -> None:
    found, output = outcomes(tmp_path, ci)
    skipped = found.pop("skipped", "")
    expected = {
        "clean": "PASSED",
        "descriptor": "ERROR",
        "cycle": "PASSED",
        "child": "ERROR",
        "after_the_child": "PASSED",
        "locks": "ERROR",
        "after_the_locks": "PASSED",
        "on_purpose": "PASSED",
        "fixture_cleans_up": "PASSED",
        "has": "PASSED",
    }
    lack = "no-such-program is missing: apt-get install its-package"
    if ci:
        expected["lacks_program"] = "FAILED"
    assert found == expected, output
    assert lack in (output if ci else skipped)
    assert "left behind: descriptor" in output
    assert "left behind: child process" in output
    assert "Packets.receiving is taken after Packets" in output
    assert "/no/such/file is missing" in output
