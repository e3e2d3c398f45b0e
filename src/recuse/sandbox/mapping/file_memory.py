"""Memory for the pages of filesystems' files that programs have mapped: a memfd for each file."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.runtime.room import check_room, keeping
from recuse.wire.descriptor import OwnedDescriptor

if TYPE_CHECKING:
    from recuse.sandbox.mapping.snapshots import PrivateSnapshots


class FileMemory:
    """See `recuse.kernel.fs.memory.Memory`. Its pages count as those of copies do."""

    __slots__ = ("_copies", "_filled", "_memfd")

    def __init__(self, copies: PrivateSnapshots) -> None:
        """Make empty memory. Raises OSError(ENFILE) if the supervisor has no descriptors left."""
        with keeping():
            self._memfd = OwnedDescriptor(os.memfd_create("recuse"))
        check_room(self._memfd.fileno())
        # Who may only read the file is given a descriptor to read it by, for a moment.
        os.fchmod(self._memfd.fileno(), 0o600)
        self._copies = copies
        self._filled: set[int] = set()

    def descriptor(self) -> OwnedDescriptor:
        """See `Memory.descriptor`."""
        with keeping():
            copy = OwnedDescriptor(os.dup(self._memfd.fileno()))
        check_room(copy.fileno())
        return copy

    def read(self, offset: int, size: int) -> bytes:
        """See `Memory.read`."""
        return os.pread(self._memfd.fileno(), size, offset).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """See `Memory.write`."""
        touched = range(offset // PAGE_SIZE, -(-(offset + len(data)) // PAGE_SIZE))
        new = [number for number in touched if number not in self._filled]
        if new:
            self._copies.take(len(new) * PAGE_SIZE)
            self._filled.update(new)
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(self._memfd.fileno(), data[done:], offset + done)
            except OSError:
                raise os_error(errno.ENOMEM) from None

    def shorten(self, size: int) -> None:
        """See `Memory.shorten`."""
        number = self._memfd.fileno()
        if os.fstat(number).st_size > size:
            os.ftruncate(number, size)
            after = size // PAGE_SIZE
            gone = {page for page in self._filled if page >= after}
            self._filled -= gone
            self._copies.give_back(len(gone) * PAGE_SIZE)

    def close(self) -> None:
        """See `Memory.close`."""
        self._memfd.close()
        self._copies.give_back(len(self._filled) * PAGE_SIZE)
        self._filled.clear()
