"""`recuse run`: load the devices, run the program with them, report errors in one line."""

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from recuse.channel.socket import Remote, RemoteError
from recuse.cli.failure import NOT_EXECUTABLE, NOT_FOUND, Failure
from recuse.cli.spec import REMOTE, SpecError, is_remote, load, parse, parse_remote
from recuse.server.device import Device

if TYPE_CHECKING:
    from recuse.channel.socket_mount import RemoteFilesystem
    from recuse.server.filesystem.served import Served
    from recuse.trace.recorder import Recorder


class _PrefixFormatter(logging.Formatter):
    """Puts `recuse: ` before each line, tracebacks too: the program writes to stderr as well."""

    def format(self, record: logging.LogRecord) -> str:
        return "".join(f"recuse: {line}" for line in super().format(record).splitlines(True))


def configure_logging() -> None:
    """Show warnings, and the tracebacks of a device's methods, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_PrefixFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def load_devices(specs: Sequence[str]) -> list[Device | Remote]:
    """Create the devices that the -d options ask for.

    Raises:
        SpecError: one of them cannot be created, or two have the same name or number.
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
                raise SpecError(f"{text}: there is already a device named {name}; add name=...")
        number = (device.major, device.minor)
        if device.major and number in numbers:
            raise SpecError(
                f"{text}: there is already a device with number {device.major}:{device.minor}; "
                "add minor=..., or major=0 for a free number"
            )
        devices[device.name] = device
        numbers.add(number)
    return [*devices.values(), *remotes]


@contextmanager
def recording(trace: str | None, layout: str) -> Iterator["Recorder | None"]:
    """Trace to the file `trace` (- is stderr) inside the with block; None traces nothing.

    Raises:
        Failure: the file cannot be opened.
    """
    if trace is None:
        yield None
        return
    from recuse.trace.recorder import Recorder

    output = 2
    try:
        if trace != "-":
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            output = os.open(trace, flags, 0o666)
        recorder = Recorder(output, layout)
    except OSError as error:
        raise Failure(f"--trace: {trace}: {error.strerror}") from error
    finally:
        if output != 2:
            os.close(output)
    try:
        yield recorder
    finally:
        recorder.close()


def load_mounts(mounts: Sequence[str]) -> "dict[str, Served | RemoteFilesystem]":
    """Make the filesystems that the -m options ask for, by their directories.

    Raises:
        SpecError: one of them is not well written, or cannot be made.
    """
    made: dict[str, Served | RemoteFilesystem] = {}
    for text in mounts:
        directory, found, spec = text.partition("=")
        if not (directory and found and spec):
            raise SpecError(f"-m {text}: write it as DIR=SPEC, as in -m /mnt=memoryfs.py")
        path = os.path.realpath(directory)
        is_inside = path.startswith(tuple(f"{other.rstrip('/')}/" for other in made))
        if not is_inside and not os.path.isdir(directory):
            raise SpecError(f"-m {text}: {directory} is not a directory")
        if path in made:
            raise SpecError(f"-m {text}: there is already a filesystem at {directory}")
        made[path] = _load_mount(spec)
    return made


def _load_mount(spec: str) -> "Served | RemoteFilesystem":
    if is_remote(spec):
        from recuse.channel.socket_mount import RemoteFilesystem

        return RemoteFilesystem(parse_remote(spec))
    from recuse.cli.filesystem_spec import load_filesystem

    return load_filesystem(spec)


def run_program(
    specs: Sequence[str],
    argv: Sequence[str],
    trace: str | None = None,
    layout: str = "text",
    mounts: Sequence[str] = (),
    *,
    fuse: bool = False,
) -> int:
    """Run `argv` with the devices of `specs` and the filesystems of `mounts`.

    `trace` and `layout` are the values of --trace and --trace-format; `fuse` is whether there is
    --fuse. Returns the exit status.

    Raises:
        Failure: with a message for the user.
    """
    configure_logging()
    try:
        devices = load_devices(specs)
        filesystems = load_mounts(mounts)
    except SpecError as error:
        raise Failure(str(error)) from error
    from recuse.sandbox import SandboxError, supervise

    try:
        with recording(trace, layout) as recorder:
            options: dict[str, Any] = {"mounts": filesystems} if filesystems else {}
            if fuse:
                options["fuse"] = True
            if recorder is not None:
                options["tap"] = recorder.connection
            return supervise(devices, argv, **options)
    except SandboxError as error:
        raise Failure(str(error)) from error
    except RemoteError as error:
        raise Failure(f"{REMOTE}{error.filename}: {error.strerror}") from error
    except OSError as error:
        if error.filename in filesystems:
            raise Failure(_explain_mount(error)) from error
        raise _explain(error, argv[0]) from error


def _explain_mount(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return f"{error.filename}: something is mounted there already"
    if error.errno == errno.ECONNREFUSED:
        return f"{error.filename}: the filesystem's first answer (INIT) is no use"
    return f"{error.filename}: {error.strerror}"


def _explain(error: OSError, program: str) -> Failure:
    """Turn an error of the sandbox into a message for somebody at a shell."""
    reason = error.strerror or str(error)
    if error.filename is None or os.fspath(error.filename) != program:
        from recuse.sandbox.launch.parent import lacks

        if (lack := lacks(error.errno)) is not None:
            return Failure(lack)
        if error.filename is not None and error.errno == errno.EEXIST:
            return Failure(
                f"{error.filename}: recuse or another device has that name, or a part of it; "
                "choose another with name=..."
            )
        named = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return Failure(f"{named}{reason}; run `recuse doctor` to see what is missing here")
    return not_started(error, program)


def not_started(error: OSError, program: str) -> Failure:
    """Say why a program cannot be executed."""
    if error.errno != errno.ENOENT:
        reason = error.strerror or str(error)
        return Failure(f"{program}: cannot be executed: {reason}", NOT_EXECUTABLE)
    if os.path.dirname(program) and os.path.exists(program):
        return Failure(f"{program}: cannot be executed: its interpreter is missing", NOT_EXECUTABLE)
    return Failure(f"{program}: not found; is it installed, and on the PATH?", NOT_FOUND)
