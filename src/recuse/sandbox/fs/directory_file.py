"""Open directories of filesystems."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from recuse.kernel.caller import Caller
from recuse.kernel.char.mmap import Mapping, MmapCall, check
from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.directories import Directory
from recuse.sandbox.files.description import IoVecs
from recuse.sandbox.files.dirents import dirent
from recuse.sandbox.fs.caller import caller_of
from recuse.sandbox.fs.file import OpenedFile
from recuse.sandbox.trap.call import OnDevice, Outcome, TrappedCall

if TYPE_CHECKING:
    from recuse.sandbox.files.description import AnyMapper


class DirectoryFile(OpenedFile):
    """An open directory."""

    __slots__ = ()

    kernel_file: Directory

    def read(self, call: TrappedCall, segments: IoVecs, position: int | None) -> Outcome:
        """Fail with EISDIR (fs/libfs.c, generic_read_dir)."""
        raise os_error(errno.EISDIR)

    def seek(self, call: TrappedCall, offset: int, whence: int) -> int:
        """See `Directory.seek`."""
        file = self.kernel_file
        return self._tree.ask(
            call, ("seek", self), lambda: file.placed(_seek(file, offset, whence))
        )

    def mmap(self, caller: Caller, mapper: AnyMapper, wanted: MmapCall) -> OnDevice[Mapping | None]:
        """Raise what Linux looks at first, at last ENODEV."""
        check(wanted, self.flags & os.O_ACCMODE, possible=False, executable=True)
        return super().mmap(caller, mapper, wanted)

    def write_range(self, call: TrappedCall) -> Outcome:
        """Do nothing: a directory has no pages (fs/sync.c, sync_file_range)."""
        return 0

    def entries(self, call: TrappedCall, address: int, size: int, *, typed: bool) -> Outcome:
        """See `FileDescription.entries`."""
        file = self.kernel_file
        return self._tree.run(call, file.placed(_list(file, caller_of(call), address, size, typed)))


def _seek(file: Directory, offset: int, whence: int) -> Operation[int]:
    return file.seek(offset, whence)
    yield


def _list(
    file: Directory, caller: FileCaller, address: int, size: int, typed: bool
) -> Operation[int]:
    position = file.position
    entries = yield from file.read_entries(caller, size)
    data = b""
    reached = position
    for entry in entries:
        one = dirent(entry.name, entry.ino, entry.offset, entry.kind, typed=typed)
        if len(data) + len(one) > size:
            break
        data += one
        reached = entry.offset
    file.position = reached  # what did not fit comes next time
    if entries and not data:
        raise os_error(errno.EINVAL)
    if data:
        try:
            stored = caller.memory.write(address, data)
        except OSError:
            stored = 0
        if stored < len(data):
            file.position = position
            raise os_error(errno.EFAULT)
    return len(data)
