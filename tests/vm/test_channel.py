"""Whether the record that the sandbox is compared with is still what the kernel says."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "channel" / "linux.txt"
WAIT_S = 60


def test_a_server_that_misuses_the_channel() -> None:
    kept = RECORD.read_text()
    done = subprocess.run(
        [sys.executable, "-S", "-m", "tests.channel.misuse"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    record = [line for line in kept.splitlines() if not line.startswith("#")]
    assert done.stdout.splitlines() == record, f"Linux {os.uname().release}"
