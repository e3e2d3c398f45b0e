"""What the real kernel shows of a device in /sys is what the sandbox shows."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLIENTS = Path(__file__).parents[1] / "sandbox" / "clients"


def test_the_record_that_the_sandbox_is_compared_with(start: Callable[..., Any]) -> None:
    server = start(f"{CLIENTS / 'sysfs_server.py'}:Probe")
    server.ready("/dev/snd/probe")
    printed = subprocess.run(
        [sys.executable, CLIENTS / "sysfs.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    ).stdout
    assert printed.splitlines() == (CLIENTS / "sysfs.txt").read_text().splitlines()
    assert server.process.wait(60) == 0


def test_what_is_declared_is_said_not_to_be_there(start: Callable[..., Any]) -> None:
    server = start("examples/eeprom.py")
    server.ready("/dev/i2c-9")
    assert "/dev/i2c-9: what it declares for /sys is not there" in server.errors()
    assert not Path("/sys/class/i2c-dev/i2c-9").exists()
    assert server.end() == 0
