"""`recuse serve`: devices that programs in other processes find, each at a socket of its own."""

import contextlib
import errno
import os
import shlex
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import click

from recuse.channel.listen import DeviceServer
from recuse.cli.run import Failure, configure_logging, load_devices
from recuse.cli.spec import SpecError, is_remote
from recuse.server.device import Device

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_SAME_SIGNAL_S = 1.0
"""Signals that come within this time are one: timeout(1) sends to the process and to its group."""


def serve_devices(specs: Sequence[str], listen: str | None, kernel: bool) -> int:
    """Serve the devices of `specs` until a signal ends it; returns the exit status.

    Raises:
        Failure: with what to tell the user.
    """
    if listen is not None and (kernel or len(specs) > 1):
        raise click.UsageError("--listen is for one device" + (", without --kernel" * kernel))
    configure_logging()
    try:
        for text in specs:
            if is_remote(text):
                raise SpecError(f"{text}: is served already")
        devices = load_devices(specs)
    except SpecError as error:
        raise Failure(str(error)) from error
    local = [device for device in devices if isinstance(device, Device)]
    if kernel:
        return _serve_kernel(local)
    with _until_a_signal() as wait, contextlib.ExitStack() as servers:
        paths = []
        for device in local:
            path = listen or servers.enter_context(_default_path(device.name))
            try:
                server = DeviceServer(device, path)
            except OSError as error:
                raise Failure(_explain(error, path)) from error
            servers.callback(server.close)
            click.echo(f"{device.name}: {path}")
            paths.append(path)
        joined = " ".join(f"-d {shlex.quote(f'unix:{path}')}" for path in paths)
        # Whoever started this may be waiting for the line.
        click.echo(f"In another terminal: recuse run {joined} -- sh")
        wait()
    return 0


def _serve_kernel(devices: Sequence[Device]) -> int:
    from recuse.channel.devcuse import KernelError, serve_kernel

    try:
        serve_kernel(devices, click.echo)
    except KernelError as error:
        raise Failure(str(error)) from error
    return 0


@contextlib.contextmanager
def _until_a_signal() -> Iterator[Callable[[], None]]:
    """Give a function that waits for a signal to end; a later one ends the process at once."""
    # Linux may give a signal to any thread, or give it just before the main thread waits: neither
    # ends a wait for a lock or a queue. What Python writes into a pipe stays there.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # What is ignored (nohup) stays so.
    previous = {
        number: signal.signal(number, _note)
        for number in _ENDING
        if signal.getsignal(number) is not signal.SIG_IGN
    }

    def wait() -> None:
        while os.read(reader, 1)[0] not in previous:
            pass
        watcher.start()

    def watch() -> None:
        first = time.monotonic()
        while data := os.read(reader, 1):
            if data[0] in previous and time.monotonic() - first > _SAME_SIGNAL_S:
                os._exit(128 + data[0])

    watcher = threading.Thread(target=watch, name="recuse-signals", daemon=True)
    try:
        yield wait
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_writer)
        os.close(writer)
        if watcher.ident is not None:
            watcher.join()
        os.close(reader)


def _note(_number: int, _frame: FrameType | None) -> None:
    """Do nothing here: that there is a handler has the signal's number written to the pipe."""


@contextlib.contextmanager
def _default_path(name: str) -> Iterator[str]:
    """Give the path for a device's socket, in a directory that nobody else can enter."""
    directory = _directory()
    try:
        # "snd/dsp" as in sysfs, which has no directories for it either.
        yield os.path.join(directory, name.replace("/", "!") + ".sock")
    finally:
        with contextlib.suppress(OSError):  # not empty: another server's
            os.rmdir(directory)


def _directory() -> str:
    own = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    # With su and sudo it may be another user's.
    if os.path.isabs(runtime) and os.path.isdir(runtime) and os.stat(runtime).st_uid == own:
        directory = os.path.join(runtime, "recuse")
    else:
        directory = os.path.join(tempfile.gettempdir(), f"recuse-{own}")
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
        status = os.lstat(directory)
    except OSError as error:
        raise Failure(f"{directory}: {error.strerror}; choose with --listen PATH") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != own or status.st_mode & 0o077:
        raise Failure(f"{directory}: is not a directory of yours alone; choose with --listen PATH")
    return directory


def _explain(error: OSError, path: str) -> str:
    reasons = {
        errno.EADDRINUSE: "another server is there; end it, or give this one --listen PATH",
        errno.EEXIST: "is there already, and no socket",
        errno.ENAMETOOLONG: "too long for the path of a socket; choose with --listen PATH",
    }
    return f"{path}: {reasons.get(error.errno or 0, error.strerror or str(error))}"
