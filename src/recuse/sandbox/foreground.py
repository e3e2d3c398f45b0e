"""Running one program in a sandbox as the foreground command of a terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from types import FrameType

from recuse.sandbox.api import Sandbox
from recuse.server.device import Device

_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_TERMINALS = (signal.SIGINT, signal.SIGQUIT)


def supervise(devices: Sequence[Device], argv: Sequence[str]) -> int:
    """Run a program and wait until it and everything it started have ended.

    Standard streams, terminal, working directory and environment are the caller's own. The
    terminal's signals reach the program by themselves, since it is in the same process group;
    SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on.

    Returns:
        The exit status, or 128 + n if signal n ended the program.

    Raises:
        OSError: as :meth:`recuse.Sandbox.popen` and for devices that clash.
        SandboxError: if sandboxes cannot work on this machine.
    """
    with Sandbox(*devices) as sandbox:
        program = sandbox.popen(argv)

        def forward(number: int, frame: FrameType | None) -> None:
            del frame
            program.send_signal(number)

        def ignore(number: int, frame: FrameType | None) -> None:
            del number, frame

        previous = {number: signal.signal(number, forward) for number in _FORWARDED}
        previous |= {number: signal.signal(number, ignore) for number in _TERMINALS}
        try:
            status = program.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    return 128 - status if status < 0 else os.EX_OK + status
