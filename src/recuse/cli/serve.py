"""`recuse serve`: devices for other processes, each at a socket of its own."""

import contextlib
import errno
import os
import shlex
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence

import click

from recuse.channel.listen import DeviceServer
from recuse.channel.signals import EndingSignals, ending_signals
from recuse.channel.taps import ServerTap
from recuse.cli.failure import Failure
from recuse.cli.run import configure_logging, load_devices, recording
from recuse.cli.spec import SpecError, is_remote
from recuse.runtime.log import Log
from recuse.server.device import Device

log = Log("recuse.cli")


def serve_devices(
    specs: Sequence[str],
    listen: str | None,
    kernel: bool,
    trace: str | None = None,
    layout: str = "text",
    *,
    mount: str | None = None,
) -> int:
    """Serve the devices of `specs` until a signal ends it; returns the exit status.

    `trace`, `layout` and `mount` are the values of --trace, --trace-format and --mount.

    Raises:
        Failure: with a message for the user.
    """
    if mount is not None and (kernel or listen is not None):
        raise click.UsageError("--mount cannot be combined with --kernel or --listen")
    if listen is not None and (kernel or len(specs) > 1):
        raise click.UsageError("--listen takes one device" + (", without --kernel" * kernel))
    configure_logging()
    try:
        for text in specs:
            if is_remote(text):
                raise SpecError(f"{text}: is already served: name the class instead")
        devices = load_devices(specs)
    except SpecError as error:
        raise Failure(str(error)) from error
    local = [device for device in devices if isinstance(device, Device)]
    # The trace is complete before signals have their usual effect again.
    with ending_signals() as signals, recording(trace, layout) as recorder:
        tap = None if recorder is None else recorder.connection
        if kernel:
            _serve_kernel(local, signals, tap)
        elif mount is not None:
            _serve_mount(local, mount, signals, tap)
        else:
            _serve_sockets(local, listen, signals, tap)
    return 0


def _serve_sockets(
    devices: Sequence[Device],
    listen: str | None,
    signals: EndingSignals,
    tap: Callable[[], ServerTap] | None,
) -> None:
    with contextlib.ExitStack() as servers:
        paths = []
        for device in devices:
            path = listen or servers.enter_context(_default_path(device.name))
            try:
                server = DeviceServer(device, path, tap)
            except OSError as error:
                raise Failure(_explain(error, path)) from error
            servers.callback(server.close)
            click.echo(f"{device.name}: {path}")
            paths.append(path)
        joined = " ".join(f"-d {shlex.quote(f'unix:{path}')}" for path in paths)
        # Whoever started this may be waiting for the line.
        click.echo(f"In another terminal: recuse run {joined} -- sh")
        signals.wait()


def _serve_kernel(
    devices: Sequence[Device], signals: EndingSignals, tap: Callable[[], ServerTap] | None
) -> None:
    from recuse.channel.devcuse import KernelError, serve_kernel

    try:
        serve_kernel(devices, click.echo, signals=signals, tap=tap)
    except KernelError as error:
        raise Failure(str(error)) from error


def _serve_mount(
    devices: Sequence[Device],
    directory: str,
    signals: EndingSignals,
    tap: Callable[[], ServerTap] | None,
) -> None:
    from recuse.channel.mount import Mount
    from recuse.channel.mounting import MountError
    from recuse.cli.mount import tell_manager
    from recuse.server.filesystem.device_tree import DeviceTree

    # An ordinary user may do that only if root allows it (/etc/fuse.conf).
    options = "noexec" if os.geteuid() else "noexec,allow_other"
    recorded = None if tap is None else tap()
    try:
        tree = DeviceTree(devices)
        with Mount(tree, directory, options, ended=signals.wake, tap=recorded) as mount:
            for limit in tree.limits(mount.path, mount.has_backing):
                log.warning("%s", limit)
            for device in devices:
                click.echo(f"{mount.path}/{device.name}")
            tell_manager()
            if not signals.wait():
                log.warning("%s: it was unmounted, or the connection aborted", mount.path)
    except (MountError, ValueError) as error:
        raise Failure(str(error)) from error


@contextlib.contextmanager
def _default_path(name: str) -> Iterator[str]:
    """Give the path for a device's socket, in a directory that no other user can enter."""
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
        raise Failure(
            f"{directory}: {error.strerror}; give another place: --listen PATH"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != own or status.st_mode & 0o077:
        raise Failure(
            f"{directory}: must be a directory that only you can enter; or give --listen PATH"
        )
    return directory


def _explain(error: OSError, path: str) -> str:
    reasons = {
        errno.EADDRINUSE: "another server is running there; end it, or give this one --listen PATH",
        errno.EEXIST: "exists already, and is not a socket",
        errno.ENAMETOOLONG: "too long for the path of a socket; give a shorter one: --listen PATH",
    }
    return f"{path}: {reasons.get(error.errno or 0, error.strerror or str(error))}"
