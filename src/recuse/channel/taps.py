"""Tracing at a server's end: a tap records what the server gets and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from recuse.kernel.connection.connection import Tap
from recuse.runtime.log import Log

_log = Log("recuse.channel")


class ServerTap(Tap, Protocol):
    """A tap that can also distinguish connections which share a device."""

    def joined(self, name: str, pid: int) -> None:
        """Record who is at the other end of a connection, for the device with that name."""

    def left(self) -> None:
        """Record that the connection has ended."""


class Tapped:
    """Shows a tap the messages of a server's connection; if the tap raises, it is removed."""

    def __init__(self, tap: ServerTap, send: Callable[[bytes], object]) -> None:
        self.tap: ServerTap | None = tap
        self._send = send

    def request(self, message: bytes) -> None:
        """Record a request that was read."""
        tap = self.tap
        if tap is not None:
            try:
                tap.request(message)
            except Exception:
                self._failed()

    def send(self, message: bytes) -> None:
        """Record an answer, then send it. Raises what sending raises."""
        self._answer(message)
        self._send(message)

    def recording(self, send: Callable[[bytes], object]) -> Callable[[bytes], None]:
        """Return what records an answer, then sends it by another way."""

        def record_and_send(message: bytes) -> None:
            self._answer(message)
            send(message)

        return record_and_send

    def _answer(self, message: bytes) -> None:
        tap = self.tap
        if tap is not None:
            try:
                tap.reply(bytes(message))  # without a descriptor, as a tap might keep it
            except Exception:
                self._failed()

    def take_off(self) -> ServerTap | None:
        """Stop recording; return the tap, None if it was already removed."""
        tap, self.tap = self.tap, None
        return tap

    def _failed(self) -> None:
        self.tap = None
        _log.exception("a connection's tap failed and was taken off")
