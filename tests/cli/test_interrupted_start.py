"""Signals for a whole process group, as from Ctrl-C, while `recuse run` starts a program."""

import subprocess
import sys

import pytest

from recuse.sandbox.arch import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="another architecture than x86-64")

INTERRUPTED_AT = """
import os, signal, sys
from recuse.cli.main import main
from recuse.sandbox.launch.parent import Launch, Program
from recuse.sandbox.supervisor import Supervisor

def interrupting(owner, name, *, before):
    original = getattr(owner, name)
    def method(*args, **options):
        if before:
            os.killpg(0, signal.{number})
        result = original(*args, **options)
        if not before:
            os.killpg(0, signal.{number})
        return result
    setattr(owner, name, method)

interrupting({method}, before={before})
sys.exit(main(sys.argv[1:]))
"""


def run(method: str, argv: list[str], *, before: bool, number: str) -> tuple[int, str, str]:
    code = INTERRUPTED_AT.format(method=method, before=before, number=number)
    done = subprocess.run(
        [sys.executable, "-c", code, "run", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "method",
    [
        'Program, "__init__"',
        'Launch, "_receive_listener"',
        'Supervisor, "__init__"',
        'Supervisor, "start"',
    ],
)
def test_before_the_program_exists(method: str, before: bool, number: str, status: int) -> None:
    argv = ["sh", "-c", "echo it is executed"]
    assert run(method, argv, before=before, number=number) == (status, "", "")


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_as_it_is_executed_it_is_the_programs(number: str, status: int) -> None:
    """The program is there, or soon will be: it has the default action, as outside."""
    found = run('Launch, "execute"', ["sleep", "60"], before=False, number=number)
    assert found == (status, "", "")


def test_the_programs_own_handler_is_called() -> None:
    """Here it begins when its handler is there."""
    code = """
import os, signal, sys
from recuse.cli.main import main
from recuse.sandbox.launch.parent import Launch
execute = Launch.execute
reading, writing = os.pipe()
os.set_inheritable(writing, True)
def and_be_interrupted(launch):
    execute(launch)
    os.read(reading, 1)
    os.killpg(0, signal.SIGINT)
Launch.execute = and_be_interrupted
sys.exit(main(["run", "sh", "-c", f\"\"\"
trap 'trap "" INT; echo caught; exit 3' INT
echo >/dev/fd/{writing}
while :; do sleep .1; done
\"\"\"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        start_new_session=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "caught\n", "")
