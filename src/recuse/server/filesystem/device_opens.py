"""Opens devices that are nodes: OPEN takes the steps of `Device.open`, `File.mmap`, `File.mapped`.

An answer to OPEN with FOPEN_PASSTHROUGH and FOPEN_DIRECT_IO names a file, here an area's memfd.
mmap(2) maps that file, while reads and writes come to the server (fs/fuse/passthrough.c and
iomode.c, Linux 6.9). The kernel then does not report mappings. So each file is asked for its area
when it is opened. What `File` calls a mapping lasts from then until RELEASE.

An inode has one backing file at a time. All opens have to name it, or they fail with EIO.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from recuse.server.areas import Area
from recuse.server.device import File
from recuse.server.errors import Misuse, brief
from recuse.server.filesystem.device_node import DeviceNode, Mapped
from recuse.server.filesystem.open_file import error
from recuse.server.filesystem.requests import HEADER
from recuse.server.filesystem.steps import Steps, run_steps
from recuse.server.mapping import Mapping, MmapRequest
from recuse.server.request import OpenRequest
from recuse.wire.cuse import recuse_mmap_in
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_NOFLUSH,
    FOPEN_PASSTHROUGH,
    FOPEN_STREAM,
    fuse_open_in,
)

if TYPE_CHECKING:
    from recuse.server.filesystem.state import State
    from recuse.server.pending_reply import PendingReply

_PROTECTION: Final = {
    os.O_RDONLY: mmap.PROT_READ,
    os.O_WRONLY: mmap.PROT_WRITE,
    os.O_RDWR: mmap.PROT_READ | mmap.PROT_WRITE,
}


class DeviceOpens:
    """Opens devices, for one session."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._runner = state.runner

    def open(self, pending: PendingReply, node: DeviceNode, flags: int) -> None:
        """Answer OPEN, or make sure that it is answered."""
        if flags & os.O_TRUNC:
            # As for a character device: the kernel has nothing to truncate (FUSE_ATOMIC_O_TRUNC).
            flags &= ~os.O_TRUNC
            pending.message = pending.message[:HEADER] + fuse_open_in(flags=flags).pack()
        context = pending, node, flags
        self._runner.run(pending, node.device.open, self._opened, context, OpenRequest(pending))

    def _opened(
        self, file: Any, context: tuple[PendingReply, DeviceNode, int]
    ) -> bytes | Awaitable[bytes]:
        pending, node, flags = context
        if not isinstance(file, File):
            raise Misuse(f"returned {brief(file)}, not a File")
        file.device, file.flags = node.device, flags
        return run_steps(self._finish(pending, node, file))

    def _finish(self, pending: PendingReply, node: DeviceNode, file: File) -> Steps[bytes]:
        """Give a new file its area, if it has one, and answer."""
        state = self._state
        handle = state.handle()
        try:
            backing = yield from self._map(pending, node, file, handle)
        except BaseException:
            # The kernel is not told about the file.
            self._runner.quietly_later(file.release)
            raise
        how = FOPEN_DIRECT_IO
        if not state.filesystem.posix_locks:
            # No FLUSH at close(2), as it fails when the server is gone.
            how |= FOPEN_NOFLUSH
        if backing:
            # It has positions like a regular file. FOPEN_PASSTHROUGH_MASK excludes FOPEN_STREAM.
            how |= FOPEN_PASSTHROUGH
        elif not node.device.seekable:
            # It does not lock the position either, so a program may read and write at once.
            how |= FOPEN_STREAM
        if not node.device.seekable:
            state.unpositioned[handle] = bool(backing)
        return state.add(handle, file, how, backing)

    def _map(self, pending: PendingReply, node: DeviceNode, file: File, handle: int) -> Steps[int]:
        """Give a file the area that programs will map; return the backing file's number, 0: none.

        Raises OSError: EBUSY if it does not get the area that others have.
        """
        modes = self._state.modes
        if modes.channel is None:
            return 0
        length = -(-node.device.map_length // mmap.PAGESIZE) * mmap.PAGESIZE
        protection = _PROTECTION.get(file.flags & os.O_ACCMODE, 0)
        call = recuse_mmap_in(len=length, prot=protection, flags=mmap.MAP_SHARED)
        area = yield from self._ask(file, MmapRequest(pending, call))
        if area is None:
            return _without(node, "has none")
        mapping = Mapping(area, 0, length, 0, protection, mmap.MAP_SHARED, pending.unique)
        unmapped = partial(self._runner.forgiving, file.unmapped, mapping)
        try:
            descriptor = node.memory.take(area)
        except OSError:
            yield unmapped
            return _without(node, "has another one")
        number = self._state.known.number(node)
        try:
            backing = modes.map(handle, number, descriptor)
        except OSError as refusal:
            node.memory.leave()
            yield unmapped
            node.tell(
                f"the kernel does not take the device's memory ({refusal.strerror}; the "
                "server has to be root of the machine itself): programs cannot map it"
            )
            return 0
        try:
            yield partial(file.mapped, mapping)
        except BaseException as refusal:
            modes.close(handle)
            node.memory.leave()
            if not isinstance(refusal, Exception):
                # The program or the session gives up.
                self._runner.quietly_later(file.unmapped, mapping)
                raise
            yield unmapped
            self._runner.complain(file.mapped, refusal)
            return _without(node, "refuses to have it mapped")
        self._state.mapped[handle] = Mapped(node, file, mapping)
        return backing

    def _ask(self, file: File, request: MmapRequest) -> Steps[Area | None]:
        """Ask a file for its area; None if it has none."""
        try:
            area = yield partial(file.mmap, request)
            if not isinstance(area, Area):
                raise Misuse(f"returned {brief(area)}, not an Area")
            try:
                area.fileno()
            except ValueError:
                raise Misuse(f"returned {area!r}") from None
        except Exception as refusal:
            self._runner.complain(file.mmap, refusal)
            return None
        return area


def _without(node: DeviceNode, why: str) -> int:
    """Return 0 if a file may be open without an area. Raises OSError: EBUSY.

    If it is opened at the moment when another file gets an area, the kernel itself refuses it with
    EIO.
    """
    if node.memory.size is not None:
        node.tell(
            f"the kernel has one area for all files that are open: a file that {why} cannot be "
            "opened meanwhile (EBUSY)"
        )
        raise error(errno.EBUSY)
    return 0
