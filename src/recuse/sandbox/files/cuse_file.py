"""``/dev/cuse``: programs in the sandbox that serve devices (fs/fuse/cuse.c; Linux 6.1)."""

from __future__ import annotations

from collections.abc import Callable

from recuse.kernel.caller import Caller
from recuse.kernel.char.cuse import CuseChannel
from recuse.kernel.char.devices import DeviceTable
from recuse.sandbox.files.server_channel import ServerChannel, ServerFile
from recuse.sandbox.vfs.dentry import Location


class CuseFile(ServerFile):
    """One open ``/dev/cuse``."""

    __slots__ = ("_cuse",)

    def __init__(self, location: Location, flags: int, table: DeviceTable, caller: Caller) -> None:
        """Make the connection; CUSE_INIT can be read at once. OSError: ENFILE."""
        super().__init__(location, flags, None)
        self._cuse = CuseChannel(table, caller.pid, caller.uid, caller.gid)
        self.serve(ServerChannel(self._cuse.connection))

    def release(self, released: Callable[[], None]) -> None:
        """End the device, and everything that waits for it."""
        self._cuse.close()
        super().release(released)
