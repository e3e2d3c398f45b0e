"""A filesystem on a mount of the real kernel."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Mapping

from recuse.channel.devcuse import Channel, KernelError
from recuse.channel.devfuse import DEV_FUSE
from recuse.channel.workers import Workers
from recuse.runtime.log import Log
from recuse.server.filesystem.nodes import Filesystem
from recuse.server.filesystem.session import FilesystemSession
from recuse.wire.errors import WireError

log = Log("recuse.channel")

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Mount:
    """A filesystem on a directory, served by threads of this process.

    To be used in a ``with`` statement, which mounts and unmounts.
    """

    def __init__(
        self,
        filesystem: Filesystem,
        directory: str | os.PathLike[str],
        *,
        options: Mapping[str, str | bool] | None = None,
        ended: Callable[[], object] = lambda: None,
    ) -> None:
        """Prepare; nothing is opened before :meth:`start`.

        Args:
            filesystem: what is mounted.
            directory: where.
            options: fuse's own mount options (max_read, allow_other, default_permissions...).
            ended: called, in any thread and perhaps more than once, when the connection has ended.
        """
        self.path = os.path.abspath(os.fspath(directory))
        self._options = {"default_permissions": True, "allow_other": os.geteuid() == 0}
        self._options |= {name: bool(value) for name, value in (options or {}).items()}
        self._filesystem = filesystem
        self._session = FilesystemSession(filesystem)
        self._ended = ended
        self._channel: Channel | None = None
        self._mounted = False
        self._size = max(self._session.request_size, 8192)
        self._workers: Workers[bytes] = Workers(
            self._receive, self._handle, name="recuse-filesystem"
        )

    def start(self) -> None:
        """Mount it and serve it.

        Raises:
            KernelError: it cannot be mounted; :meth:`close` all the same.
        """
        try:
            channel = self._channel = Channel(DEV_FUSE)
            mount(self._filesystem, self.path, channel.number, self._options)
            self._mounted = True
            self._workers.start()
        except OSError as error:
            raise KernelError(f"{self.path}: cannot be mounted: {error.strerror}") from error

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until it is unmounted; False if it still is after that time."""
        return self._workers.join(timeout_s)

    def close(self) -> None:
        """Unmount it, and end the session."""
        if self._mounted:
            self._mounted = False
            # Lazily: programs may have files open, or be in it.
            _libc.umount2(os.fsencode(self.path), _MNT_DETACH)
        if self._channel is not None:
            self._channel.close()
        self._workers.join()
        self._session.close()

    def __enter__(self) -> Mount:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> bytes | None:
        assert self._channel is not None
        try:
            while (message := self._channel.read(self._size)) is None:
                self._channel.wait()
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.exception("%s: %s cannot be read", self.path, DEV_FUSE)
            self._ended()
            return None
        return message

    def _handle(self, message: bytes) -> None:
        assert self._channel is not None
        try:
            self._session.handle(message, self._channel.write)
        except WireError as error:
            log.error("%s: %s", self.path, error)


def mount(filesystem: Filesystem, path: str, channel: int, options: Mapping[str, object]) -> None:
    """Mount the connection of /dev/fuse that ``channel`` is. Raises OSError."""
    data = [
        f"fd={channel}",
        f"rootmode={stat.S_IFDIR:o}",
        f"user_id={os.getuid()}",
        f"group_id={os.getgid()}",
        f"max_read={filesystem.max_read}",
    ]
    data += [
        name if value is True else f"{name}={value}" for name, value in options.items() if value
    ]
    flags = _MS_NOSUID | _MS_NODEV
    if filesystem.read_only:
        flags |= _MS_RDONLY
    kind = os.fsencode(f"fuse.{filesystem.name}")
    source = os.fsencode(filesystem.name)
    if _libc.mount(
        source, os.fsencode(path), kind, ctypes.c_ulong(flags), os.fsencode(",".join(data))
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
