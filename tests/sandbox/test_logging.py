"""Programs are answered whatever logging does: its handlers and filters are the user's."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from recuse import Device, File
from recuse.runtime.log import Log
from recuse.sandbox import Sandbox

# Where what logging raises is shown.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class MistakenFile(File):
    def read(self, size: int, offset: int) -> bytes:
        raise ValueError("a mistake")

    async def write(self, data: bytes, offset: int) -> int:
        raise ValueError("a mistake")


class Mistaken(Device):
    name = "mistaken"

    def open(self, request: object) -> File:
        return MistakenFile()


class Strict(logging.Handler):
    """As a test suite has it that forbids errors."""

    def emit(self, record: logging.LogRecord) -> None:
        pytest.fail(f"logged: {record.getMessage()}")


@contextmanager
def strict_handler(_: pytest.MonkeyPatch) -> Iterator[None]:
    handler = Strict()
    logging.getLogger("recuse").addHandler(handler)
    yield
    logging.getLogger("recuse").removeHandler(handler)


@contextmanager
def raising_filter(_: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(record: logging.LogRecord) -> bool:
        raise RuntimeError(record.getMessage())

    logging.getLogger("recuse.server").addFilter(refuse)
    yield
    logging.getLogger("recuse.server").removeFilter(refuse)


@contextmanager
def closed_stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    class Closed:
        def write(self, text: str) -> int:
            raise ValueError("I/O operation on closed file")

        flush = write

    handler = logging.StreamHandler(Closed())
    logging.getLogger("recuse").addHandler(handler)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Closed())
        yield
    logging.getLogger("recuse").removeHandler(handler)


@pytest.mark.parametrize("broken", [strict_handler, raising_filter, closed_stderr])
def test_a_mistake_that_cannot_be_logged_is_eio_all_the_same(
    broken: Callable[[pytest.MonkeyPatch], Iterator[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "for _ in 1 2; do cat /dev/mistaken; echo x >/dev/mistaken; done"
    with Sandbox(Mistaken()) as sandbox, broken(monkeypatch):  # type: ignore[attr-defined]
        done = sandbox.run(["sh", "-c", script], capture_output=True, text=True, timeout=20)
    assert done.stderr.count("/dev/mistaken: Input/output error") == 2
    assert done.stderr.count("I/O error") == 2


def test_the_record_is_of_who_logs(caplog: pytest.LogCaptureFixture) -> None:
    Log("recuse.server").error("one %s", "two")
    (record,) = caplog.records
    assert (record.funcName, record.getMessage()) == ("test_the_record_is_of_who_logs", "one two")


def test_what_logging_raises_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("threading.excepthook", lambda told: shown.append(told.exc_value))
    error = RuntimeError("no")
    handler = Strict()
    monkeypatch.setattr(handler, "emit", lambda _: (_ for _ in ()).throw(error))
    logging.getLogger("recuse").addHandler(handler)
    try:
        Log("recuse.server").warning("hello")
    finally:
        logging.getLogger("recuse").removeHandler(handler)
    assert shown == [error]
