"""What open files and directories of filesystems have in common, as programs hold them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable
from typing import Final

from recuse.kernel.connection.operation import Operation, run
from recuse.kernel.errors import os_error
from recuse.kernel.fs import file_calls
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.files import FilesystemFile
from recuse.kernel.locks import FileLocks
from recuse.runtime.log import Log
from recuse.sandbox.files.description import FileDescription
from recuse.sandbox.files.native_end import NativeEnd
from recuse.sandbox.fs.caller import caller_of
from recuse.sandbox.fs.running import Mounted
from recuse.sandbox.trap.call import Outcome, TrappedCall
from recuse.sandbox.vfs.dentry import Location
from recuse.wire.fuse import FUSE_FLOCK_LOCKS

_log: Final = Log("recuse.sandbox")


class OpenedFile(FileDescription):
    """An open file or directory.

    Linux sends FLUSH for each close of a descriptor. Here the server gets one, for the last: the
    closes of single descriptors are not seen.
    """

    __slots__ = ("_file", "_opener", "_tree")

    has_events = False
    _file: FilesystemFile

    def __init__(
        self,
        location: Location,
        file: FilesystemFile,
        end: NativeEnd,
        tree: Mounted,
        opener: FileCaller,
    ) -> None:
        """Make it for an open file of the kernel half, which is released with this one."""
        super().__init__(location, file.flags, end)
        self.group = tree
        self._file = file
        self._tree = tree
        self._opener = opener

    def ioctl(self, call: TrappedCall, command: int, argument: int) -> Outcome:
        """See `recuse.kernel.fs.file_calls.ioctl`."""
        operation = file_calls.ioctl(self._file, caller_of(call), command, argument)
        return self._tree.run(call, operation)

    def sync(self, call: TrappedCall, data_only: bool) -> Outcome:
        """See `FilesystemFile.sync`."""
        return self._tree.run(call, self._file.sync(caller_of(call), data_only))

    def flock(self, call: TrappedCall, operation: int) -> Outcome | None:
        """See `FileDescription.flock`."""
        if not self._tree.superblock.has(FUSE_FLOCK_LOCKS):
            return None
        return self._tree.run(call, file_calls.flock(self._file, caller_of(call), operation))

    def record_lock(self, call: TrappedCall, command: int, address: int) -> Outcome:
        """Fail: there are no locks of parts of files here yet.

        Raises:
            OSError: ENOLCK.
        """
        raise os_error(errno.ENOLCK)

    def locks(self) -> tuple[FileLocks, Hashable] | None:
        """The inode's locks, and this file."""
        return self._tree.superblock.inodes.locks_of(self._file.inode), self._file

    def set_flags(self, flags: int) -> None:
        """Do F_SETFL."""
        self.flags = self._file.flags = flags

    def release(self, released: Callable[[], None]) -> None:
        """Flush it and release it."""

        def done(_: object, error: OSError | None) -> None:
            if error is not None:
                # The program has closed the file and runs on: nobody else can be told.
                _log.debug("close of %s: %s", self.location.path, error)
            released()
            self._tree.closed()

        run(self._tree.connection, self._tree.whole(self._close()), done)

    def _close(self) -> Operation[None]:
        try:
            yield from self._file.flush(self._opener)
        finally:
            yield from self._file.release()
