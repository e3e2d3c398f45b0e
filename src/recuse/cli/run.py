"""`recuse run`: load the devices, run the program with them, tell in one line what went wrong."""

import errno
import logging
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from recuse.channel.socket import Remote, RemoteError
from recuse.cli.spec import REMOTE, SpecError, is_remote, load, parse, parse_remote
from recuse.server.device import Device

if TYPE_CHECKING:
    from recuse.trace.recorder import Recorder


class Failure(click.ClickException):
    """Recuse itself failed; the status is that of env(1) and timeout(1) for the same."""

    exit_code = 125


class NotExecutable(Failure):
    """There is such a program, but it cannot be executed."""

    exit_code = 126


class NotFound(Failure):
    """There is no such program."""

    exit_code = 127


class _PrefixFormatter(logging.Formatter):
    """Puts `recuse: ` before each line, tracebacks too: the program writes to stderr as well."""

    def format(self, record: logging.LogRecord) -> str:
        return textwrap.indent(super().format(record), "recuse: ", lambda _line: True)


def configure_logging() -> None:
    """Show warnings, and the tracebacks of a device's methods, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrefixFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def load_devices(specs: Sequence[str]) -> list[Device | Remote]:
    """Make the devices that the -d options ask for.

    Raises:
        SpecError: one of them cannot be had, or two have the same name or number.
    """
    remotes: list[Device | Remote] = []
    devices: dict[str, Device] = {}
    numbers: set[tuple[int, int]] = set()
    for text in specs:
        if is_remote(text):
            remotes.append(Remote(parse_remote(text)))
            continue
        device = load(parse(text))
        for name in devices:
            # One of the two may be the other's directory.
            if f"{name}/".startswith(f"{device.name}/") or f"{device.name}/".startswith(f"{name}/"):
                raise SpecError(f"{text}: a device named {name} is there already; add name=...")
        number = (device.major, device.minor)
        if device.major and number in numbers:
            raise SpecError(
                f"{text}: a device with number {device.major}:{device.minor} is there already; "
                "add minor=..., or major=0 for a free number"
            )
        devices[device.name] = device
        numbers.add(number)
    return [*devices.values(), *remotes]


@contextmanager
def recording(trace: str | None, layout: str) -> Iterator["Recorder | None"]:
    """Trace to the file `trace` (- is stderr) meanwhile; not at all for None.

    Raises:
        Failure: it cannot be opened.
    """
    if trace is None:
        yield None
        return
    from recuse.trace.recorder import Recorder

    if trace == "-":
        recorder = Recorder(2, layout)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            output = os.open(trace, flags, 0o666)
        except OSError as error:
            raise Failure(f"--trace: {trace}: {error.strerror}") from error
        try:
            recorder = Recorder(output, layout)
        finally:
            os.close(output)
    try:
        yield recorder
    finally:
        recorder.close()


def run_program(
    specs: Sequence[str], argv: Sequence[str], trace: str | None = None, layout: str = "text"
) -> int:
    """Run `argv` with the devices of `specs`; returns the exit status to exit with.

    `trace` and `layout` are what --trace and --trace-format say.

    Raises:
        Failure: with what to tell the user.
    """
    configure_logging()
    try:
        devices = load_devices(specs)
    except SpecError as error:
        raise Failure(str(error)) from error
    from recuse.sandbox import SandboxError, supervise

    try:
        with recording(trace, layout) as recorder:
            if recorder is None:
                return supervise(devices, argv)
            return supervise(devices, argv, tap=recorder.connection)
    except SandboxError as error:
        raise Failure(str(error)) from error
    except RemoteError as error:
        raise Failure(f"{REMOTE}{error.filename}: {error.strerror}") from error
    except OSError as error:
        raise _explain(error, argv[0]) from error


def _explain(error: OSError, program: str) -> Failure:
    """Say what an error of the sandbox means for somebody at a shell."""
    reason = error.strerror or str(error)
    if error.filename is None or os.fspath(error.filename) != program:
        return Failure(f"{reason}; `recuse doctor` tells what this machine allows")
    if error.errno != errno.ENOENT:
        return NotExecutable(f"{program}: cannot be executed: {reason}")
    if os.path.dirname(program) and os.path.exists(program):
        return NotExecutable(f"{program}: cannot be executed: its interpreter is missing")
    return NotFound(f"{program}: not found; is it installed, and on the PATH?")
