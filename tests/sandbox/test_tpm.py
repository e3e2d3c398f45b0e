"""tpm2-tools: a program that writes a command, polls, and reads the answer in two parts."""

from __future__ import annotations

import errno
import select
import struct
import threading

import pytest

from recuse import Device, File, OpenRequest
from recuse.sandbox import Sandbox
from tests.conftest import Needs

from ..patience import PATIENCE_S

# TCG's Trusted Platform Module Library, part 2: TPM2_CC_GetRandom, TPM_ST_NO_SESSIONS.
GET_RANDOM = 0x17B
NO_SESSIONS = 0x8001


class TpmFile(File):
    device: Tpm

    def write(self, data: bytes, offset: int) -> None:
        _, size, command, count = struct.unpack(">HIIH", data)
        self.device.commands.append((command, size == len(data)))
        if self.device.later:
            threading.Thread(target=self._answer, args=(count,)).start()
        else:
            self._answer(count)

    def _answer(self, count: int) -> None:
        with self.device.polled:
            # Not before the program asks, so that it does have to wait.
            if self.device.later and not self.device.polled.wait_for(
                lambda: self.device.polls, PATIENCE_S
            ):
                return
            body = struct.pack(">H", count) + bytes(range(count))
            self.device.answer = struct.pack(">HII", NO_SESSIONS, 10 + len(body), 0) + body
        self.wake_pollers()

    def poll(self, events: int) -> int:
        with self.device.polled:
            self.device.polls += 1
            self.device.polled.notify_all()
            return select.POLLIN if self.device.answer else 0

    def read(self, size: int, offset: int) -> bytes:
        device = self.device
        if not device.answer and self.nonblocking:
            raise BlockingIOError(errno.EAGAIN, "no answer yet")
        data, device.answer = device.answer[:size], device.answer[size:]
        return data


class Tpm(Device):
    """Knows one command; ``later``: answers it when the program waits for the answer."""

    name = "tpm0"

    def __init__(self, *, later: bool) -> None:
        super().__init__()
        self.later = later
        self.answer = b""
        self.polls = 0
        self.polled = threading.Condition()
        self.commands: list[tuple[int, bool]] = []

    def open(self, request: OpenRequest) -> File:
        return TpmFile()


@pytest.mark.parametrize("later", [False, True])
def test_tpm2_getrandom(needs: Needs, later: bool) -> None:
    program = needs("tpm2_getrandom", "tpm2-tools")
    tpm = Tpm(later=later)
    with Sandbox(tpm) as sandbox:
        done = sandbox.run(
            [program, "-T", "device:/dev/tpm0", "-f", "8"],
            capture_output=True,
            timeout=PATIENCE_S,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, bytes(range(8)), b"")
    assert set(tpm.commands) == {(GET_RANDOM, True)}
    assert tpm.polls
