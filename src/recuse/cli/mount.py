"""`recuse mount` and `recuse umount`: filesystems on directories."""

import errno
import os
import socket
from collections.abc import Callable, Sequence

from recuse.channel.mount import Mount
from recuse.channel.mounting import MountError
from recuse.channel.signals import EndingSignals, ending_signals
from recuse.channel.taps import ServerTap
from recuse.channel.unmounting import identity, is_fuse, resolve, unmount
from recuse.cli.failure import FAILED, USAGE, Failure
from recuse.cli.filesystem_spec import load_filesystem
from recuse.cli.run import configure_logging, recording
from recuse.cli.spec import SpecError
from recuse.runtime.log import Log
from recuse.server.filesystem.served import Served

log = Log("recuse.cli")


def say(line: str) -> None:
    """Print a line at once, whoever reads it."""
    print(line, flush=True)


MOUNT_FAILED = 1
"""The exit status if it could not be mounted, or unmounted."""


def serve_mount(
    spec: str,
    directory: str,
    options: Sequence[str] = (),
    trace: str | None = None,
    layout: str = "text",
    *,
    ready: Callable[[str], object] = say,
) -> int:
    """Mount the filesystem of `spec` until a signal, or until it is unmounted.

    `ready` is told where, as soon as it answers. Returns the exit status.

    Raises:
        Failure: with a message for the user.
    """
    configure_logging()
    # Signals have their usual effect until it is loaded: that may take for ever.
    filesystem = load(spec, MOUNT_FAILED)
    # The trace is complete before signals have their usual effect again.
    with ending_signals() as signals, recording(trace, layout) as recorder:
        tap = None if recorder is None else recorder.connection()
        mount = make_mount(filesystem, directory, options, ended=signals.wake, tap=tap)
        try:
            with mount:
                ready(mount.path)
                tell_manager()
                _wait(mount, signals)
        except MountError as error:
            raise Failure(str(error), MOUNT_FAILED) from error
    return 0


def load(spec: str, status: int = FAILED) -> Served:
    """Make the filesystem that a SPEC names.

    Raises:
        Failure: with a message for the user, and that status.
    """
    try:
        return load_filesystem(spec)
    except SpecError as error:
        raise Failure(str(error), status) from error


def make_mount(
    filesystem: Served,
    directory: str,
    options: Sequence[str],
    *,
    ended: Callable[[], object] = lambda: None,
    tap: ServerTap | None = None,
) -> Mount:
    """Prepare the mount of a filesystem.

    Raises:
        Failure: an option is wrong; with a message for the user.
    """
    try:
        return Mount(filesystem, directory, ",".join(options), ended=ended, tap=tap)
    except ValueError as error:
        raise Failure(f"{error} (see recuse mount --help)", USAGE) from error


def _wait(mount: Mount, signals: EndingSignals) -> None:
    if not signals.wait() and mount.is_mounted:
        log.warning("%s: the connection was aborted", mount.path)


def tell_manager() -> None:
    """Tell who waits for a service to be ready, such as systemd (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            manager.sendto(b"READY=1", address)
    except OSError as error:
        log.warning("NOTIFY_SOCKET: %s", error.strerror)


def unmount_directory(directory: str, lazy: bool) -> int:
    """Unmount what is on a directory; returns the exit status.

    Raises:
        Failure: with a message for the user.
    """
    try:
        path = resolve(directory)
        found = identity(path)
        if found is None or not is_fuse(found.kind) or found.point != path:
            raise Failure(f"{directory}: no FUSE filesystem is mounted there", MOUNT_FAILED)
        unmount(path, lazy)
    except OSError as error:
        raise Failure(f"{directory}: {_explain(error)}", MOUNT_FAILED) from error
    return 0


def _explain(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "a program uses it: end that, or unmount it all the same with --lazy"
    return error.strerror or str(error)
