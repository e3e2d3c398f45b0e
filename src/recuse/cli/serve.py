"""`recuse serve`: devices and filesystems for other processes, each at a socket of its own."""

import contextlib
import errno
import os
import shlex
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence

import click

from recuse.channel.listen import DeviceServer, SocketServer
from recuse.channel.signals import EndingSignals, ending_signals
from recuse.channel.taps import ServerTap
from recuse.cli.failure import Failure
from recuse.cli.filesystem_spec import is_filesystem, load_filesystem
from recuse.cli.run import configure_logging, load_devices, recording
from recuse.cli.spec import SpecError, is_remote
from recuse.runtime.log import Log
from recuse.server.device import Device
from recuse.server.filesystem.served import Served

log = Log("recuse.cli")


def serve_all(
    specs: Sequence[str],
    listen: str | None,
    kernel: bool,
    trace: str | None = None,
    layout: str = "text",
    *,
    mount: str | None = None,
) -> int:
    """Serve what `specs` name until a signal ends it; returns the exit status.

    `trace`, `layout` and `mount` are the values of --trace, --trace-format and --mount.

    Raises:
        Failure: with a message for the user.
    """
    if mount is not None and (kernel or listen is not None):
        raise click.UsageError("--mount cannot be combined with --kernel or --listen")
    if listen is not None and (kernel or len(specs) > 1):
        raise click.UsageError("--listen takes one SPEC" + (", without --kernel" * kernel))
    configure_logging()
    try:
        for text in specs:
            if is_remote(text):
                raise SpecError(f"{text}: is already served: name the class instead")
        filesystems = [
            text for text in specs if not kernel and mount is None and is_filesystem(text)
        ]
        devices = load_devices([text for text in specs if text not in filesystems])
        served = [load_filesystem(text) for text in filesystems]
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
            _serve_sockets([*local, *served], listen, signals, tap)
    return 0


def _serve_sockets(
    served: Sequence[Device | Served],
    listen: str | None,
    signals: EndingSignals,
    tap: Callable[[], ServerTap] | None,
) -> None:
    with contextlib.ExitStack() as servers:
        options = []
        for one in served:
            path = listen or servers.enter_context(_default_path(one.name))
            try:
                server = _server(one, path, tap)
            except OSError as error:
                raise Failure(_explain(error, path)) from error
            except TypeError as error:
                raise Failure(f"{one.name}: {error}") from error
            servers.callback(server.close)
            click.echo(f"{one.name}: {path}")
            remote = shlex.quote(f"unix:{path}")
            options.append(f"-d {remote}" if isinstance(one, Device) else f"-m DIR={remote}")
        # Whoever started this may be waiting for the line.
        click.echo(f"In another terminal: recuse run {' '.join(options)} -- sh")
        signals.wait()


def _server(
    served: Device | Served, path: str, tap: Callable[[], ServerTap] | None
) -> SocketServer:
    if isinstance(served, Device):
        return DeviceServer(served, path, tap)
    from recuse.channel.listen_mount import FilesystemServer

    return FilesystemServer(served, path, tap)


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
