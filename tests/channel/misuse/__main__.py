"""Serve a CUSE device, wrongly in every way there is, and print what the kernel says to it.

    python -S -m tests.channel.misuse [SECTION]...

The same program runs on Linux's CUSE and in a sandbox; the two must print the same, so nothing that
it prints may depend on the machine: addresses, pids and times are compared here, and only the
outcome is printed.  Each line is `what was done: size, errno or content`, below its section's name.

It uses nothing but the standard library, and of that only the system calls.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from . import beginning, life, serving
from .kit import CHANNELS, LIMIT_S

ORDER = (
    "open",
    "reads",
    "faulty_reads",
    "early_writes",
    "notifications",
    "inits",
    "names",
    "waiting",
    "requests",
    "answers",
    "order",
    "buffers",
    "no_open",
    "end",
    "sysfs",
    "interrupt",
)

SECTIONS: dict[str, Callable[[], None]] = {
    name: getattr(module, f"section_{name}")
    for name in ORDER
    for module in (beginning, serving, life)
    if hasattr(module, f"section_{name}")
}


def main() -> NoReturn:
    signal.alarm(LIMIT_S)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    status = 0
    for name in sys.argv[1:] or SECTIONS:
        print(f"[{name}]", flush=True)
        try:
            SECTIONS[name]()
        except Exception:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
            status = 1
        # A thread that waits for a server in its own process could not even be killed.
        while CHANNELS:
            CHANNELS[0].close()
    os._exit(status)


if __name__ == "__main__":
    main()
