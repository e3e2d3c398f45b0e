"""The server's side of a socket at which a filesystem is served, for any number of sandboxes."""

from __future__ import annotations

from collections.abc import Callable

from recuse.channel.listen import SocketServer
from recuse.channel.taps import ServerTap
from recuse.server.filesystem.served import Served
from recuse.server.filesystem.session import FilesystemSession


class FilesystemServer(SocketServer):
    """Serves a filesystem at a socket. Each sandbox has caches and locks of its own."""

    def __init__(
        self, filesystem: Served, path: str, tap: Callable[[], ServerTap] | None = None
    ) -> None:
        """Serve it; see `SocketServer`.

        Raises TypeError if it is not well described (see `Filesystem`), and what `Inodes.init`
        raises.
        """
        self.filesystem = filesystem
        self._whole = FilesystemSession(filesystem)
        self._whole.hold()
        try:
            super().__init__(filesystem.name, path, tap)
        except BaseException:
            self._whole.close()
            raise

    def session(self) -> FilesystemSession:
        """Return what serves a new connection."""
        return FilesystemSession(self.filesystem, shared=True)

    def end(self) -> None:
        """Tell the filesystem that it is no longer served."""
        self._whole.close()
