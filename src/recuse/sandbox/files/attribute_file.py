"""Open files of /sys and /proc (fs/kernfs/file.c, fs/seq_file.c; Linux 6.1)."""

from __future__ import annotations

import errno
import os
from typing import Final

from recuse.kernel.caller import Caller
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.sandbox.files.description import FileDescription, IoVecs
from recuse.sandbox.files.socket_end import SocketEnd
from recuse.sandbox.tasks.memory import read_memory
from recuse.sandbox.trap.call import OnDevice, Outcome, Steps, TrappedCall
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.nodes import AttributeNode

_MAX_POSITION: Final = 0x7FFFFFFF
"""The largest position in sysfs (s_maxbytes)."""


class AttributeFile(FileDescription):
    """One open attribute.

    Its content is made when it is read from the beginning, or from a position other than where the
    last read ended. Reads that continue get the rest of the same content.
    """

    __slots__ = ("_content", "_lock", "_next", "_position")

    node: AttributeNode

    def __init__(self, location: Location, flags: int) -> None:
        """Make it of an :class:`AttributeNode`. OSError: ENFILE."""
        super().__init__(location, flags, SocketEnd())
        self._lock = new_lock("AttributeFile")
        self._position = 0
        self._content = b""
        self._next = -1
        """The position at which the same content can be read on."""

    def read(self, call: TrappedCall, segments: IoVecs, position: int | None) -> Outcome:
        """Read from ``position``, or from the file's position, which then moves.

        Raises:
            OSError: ENODEV if the device is gone; EFAULT; what the device's server returns.
        """
        caller = call.caller()
        if self.node.removed or self.node.show is None:
            raise os_error(errno.ENODEV)
        with self._lock:
            at = self._position if position is None else position
            if at and at == self._next:
                return self._take(caller, segments, at, move=position is None)

        content = self.node.show(caller)
        if isinstance(content, OnDevice):
            return self._ask(content, caller, segments, at, move=position is None)
        return self._begin(content, caller, segments, at, move=position is None)

    def _ask(
        self, asked: OnDevice[bytes], caller: Caller, segments: IoVecs, at: int, *, move: bool
    ) -> Steps[int]:
        content = yield asked
        return self._begin(content, caller, segments, at, move=move)

    def _begin(
        self, content: bytes, caller: Caller, segments: IoVecs, at: int, *, move: bool
    ) -> int:
        with self._lock:
            self._content = content
            return self._take(caller, segments, at, move=move)

    def _take(self, caller: Caller, segments: IoVecs, at: int, *, move: bool) -> int:
        """Copy content to the caller; called with the lock held."""
        start = at
        for address, length in segments:
            part = self._content[at : at + length]
            if not part:
                break
            count = caller.memory.write(address, part)
            at += count
            if count < len(part):
                break
        self._next = at
        if move:
            self._position = at
        return at - start

    def write(
        self, call: TrappedCall, segments: IoVecs, position: int | None, flags: int = 0
    ) -> int:
        """Write up to a page, at once. It is the whole value, whatever the position is.

        Raises:
            OSError: ENODEV if the device is gone; EFAULT; EINVAL and others for a bad value.
        """
        data = _gathered(call, segments)
        if self.node.removed or self.node.store is None:
            raise os_error(errno.ENODEV)
        if data:
            self.node.store(data)
        if position is None:
            with self._lock:
                self._position += len(data)
        return len(data)

    def seek(self, call: TrappedCall, offset: int, whence: int) -> int:
        """Do lseek (generic_file_llseek; seq_lseek in /proc).

        Raises:
            OSError: EINVAL; ENXIO for SEEK_DATA and SEEK_HOLE beyond the end.
        """
        size = self.node.size
        with self._lock:
            if whence == os.SEEK_CUR:
                offset += self._position
            elif whence != os.SEEK_SET:
                if not size or whence > os.SEEK_HOLE:
                    raise os_error(errno.EINVAL)
                if whence == os.SEEK_END:
                    offset += size
                elif not 0 <= offset < size:
                    raise os_error(errno.ENXIO)
                elif whence == os.SEEK_HOLE:
                    offset = size
            if not 0 <= offset <= _MAX_POSITION:
                raise os_error(errno.EINVAL)
            self._position = offset
            return offset


def _gathered(call: TrappedCall, segments: IoVecs) -> bytes:
    """Up to a page of what the caller writes. OSError: EFAULT."""
    room = PAGE_SIZE
    data = b""
    for address, length in segments:
        part = read_memory(call.tid, address, min(length, room))
        data += part
        room -= len(part)
        if len(part) < length:
            if room:
                raise os_error(errno.EFAULT)
            break
    return data


class ControlFile(AttributeFile):
    """One open file of ``/sys/fs/fuse/connections`` (fs/fuse/control.c; Linux 6.18).

    When its filesystem is mounted no more, it is empty, and what is written does nothing.
    """

    __slots__ = ()

    def read(self, call: TrappedCall, segments: IoVecs, position: int | None) -> Outcome:
        """Read on. OSError: EINVAL if nobody can read it; ESPIPE at a position; EFAULT."""
        if self.node.show is None:
            raise os_error(errno.EINVAL)
        if position is not None:
            raise os_error(errno.ESPIPE)
        return 0 if self.node.removed else super().read(call, segments, position)

    def write(
        self, call: TrappedCall, segments: IoVecs, position: int | None, flags: int = 0
    ) -> int:
        """Write a value. OSError: EINVAL, also if nobody can write it; ERANGE; ESPIPE; EFAULT."""
        if self.node.store is None:
            raise os_error(errno.EINVAL)
        if position is not None:
            raise os_error(errno.ESPIPE)
        data = _gathered(call, segments)
        self.node.store(data)
        return len(data)

    def seek(self, call: TrappedCall, offset: int, whence: int) -> int:
        """Refuse with ESPIPE."""
        raise os_error(errno.ESPIPE)
