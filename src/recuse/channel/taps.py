"""Tracing at a server's end: what it gets and what it answers, noted by a tap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from recuse.kernel.connection.connection import Tap
from recuse.runtime.log import Log

_log = Log("recuse.channel")


class ServerTap(Tap, Protocol):
    """A tap that can also tell apart connections which share a device."""

    def joined(self, name: str, pid: int) -> None:
        """Take note of who is at the other end of a connection, for the device of that name."""

    def left(self) -> None:
        """Take note that the connection has ended."""


class Tapped:
    """Shows a tap what passes a server's connection; an exception of the tap's takes it off."""

    def __init__(self, tap: ServerTap, send: Callable[[bytes], object]) -> None:
        self.tap: ServerTap | None = tap
        self._send = send

    def request(self, message: bytes) -> None:
        """Note a request that was read."""
        tap = self.tap
        if tap is not None:
            try:
                tap.request(message)
            except Exception:
                self._failed()

    def send(self, message: bytes) -> None:
        """Note an answer, then send it. Raises what sending raises."""
        tap = self.tap
        if tap is not None:
            try:
                tap.reply(bytes(message))  # without a descriptor, which a tap might keep
            except Exception:
                self._failed()
        self._send(message)

    def take_off(self) -> ServerTap | None:
        """Note no more; return the tap, None if it is off already."""
        tap, self.tap = self.tap, None
        return tap

    def _failed(self) -> None:
        self.tap = None
        _log.exception("a connection's tap failed and was taken off")
