"""What open files and directories of filesystems have in common, as programs hold them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from recuse.kernel.caller import Caller
from recuse.kernel.connection.operation import Operation, run
from recuse.kernel.fs import file_calls
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.files import FilesystemFile
from recuse.runtime.log import Log
from recuse.sandbox.files.description import FileDescription
from recuse.sandbox.files.native_end import NativeEnd
from recuse.sandbox.fs.caller import caller_of, of_files
from recuse.sandbox.fs.record_locking import RecordLocking
from recuse.sandbox.fs.running import Mounted
from recuse.sandbox.trap.call import OnDevice, Outcome, TrappedCall
from recuse.sandbox.vfs.dentry import Location

_log: Final = Log("recuse.sandbox")


class OpenedFile(FileDescription):
    """An open file or directory.

    Linux sends FLUSH for each descriptor that is closed. So does `flush`, for those that a program
    closes itself. What the end of a process closes, or its execve, is seen only if it is the last
    one: `release` flushes the file then.
    """

    __slots__ = ("_opener", "_tree", "kernel_file", "lockers")

    has_events = False
    kernel_file: FilesystemFile

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
        self.kernel_file = file
        self._tree = tree
        self._opener = opener
        self.lockers: dict[int, FileCaller] = {}
        """Who has locked parts of it, by process."""

    @property
    def mounted(self) -> Mounted:
        """Its filesystem."""
        return self._tree

    def ioctl(self, call: TrappedCall, command: int, argument: int) -> Outcome:
        """See `recuse.kernel.fs.file_calls.ioctl`."""
        operation = file_calls.ioctl(self.kernel_file, caller_of(call), command, argument)
        return self._tree.run(call, operation)

    def flush(self, call: TrappedCall) -> OnDevice[None]:
        """See `FilesystemFile.flush`. What the process has locked ends."""
        return OnDevice(self._tree, self._tree.whole(self._flush(caller_of(call))))

    def _flush(self, caller: FileCaller) -> Operation[None]:
        try:
            yield from self.kernel_file.flush(caller)
        except OSError as error:
            if error.errno != errno.EINTR:  # maybe the server has not seen it
                self.lockers.pop(caller.tgid, None)
            raise
        self.lockers.pop(caller.tgid, None)

    def sync(self, call: TrappedCall, data_only: bool) -> Outcome:
        """See `FilesystemFile.sync`."""
        return self._tree.run(call, self.kernel_file.sync(caller_of(call), data_only))

    def sync_at(self, caller: Caller, data_only: bool) -> OnDevice[None]:
        """See `sync`."""
        operation = self.kernel_file.sync(of_files(caller), data_only)
        return OnDevice(self._tree, self._tree.whole(operation))

    def flock(self, call: TrappedCall, operation: int) -> Outcome | None:
        """See `recuse.kernel.fs.file_calls.flock`."""
        locked = file_calls.flock(self.kernel_file, caller_of(call), operation)
        return self._tree.run(call, locked)

    def record_lock(self, call: TrappedCall, command: int, address: int) -> Outcome:
        """See `RecordLocking.do`."""
        opened = (
            one for one in list(self._tree.files.by_link.values()) if isinstance(one, OpenedFile)
        )
        return RecordLocking(self._tree, list(opened)).do(self, call, command, address)

    def set_flags(self, flags: int) -> None:
        """Do F_SETFL."""
        self.flags = self.kernel_file.flags = flags

    def release(self, released: Callable[[], None]) -> None:
        """Release it, and flush it before, unless that was done."""

        def done(_: object, error: OSError | None) -> None:
            if error is not None:
                # The program has closed the file and runs on: nobody else can be told.
                _log.debug("close of %s: %s", self.location.path, error)
            released()
            self._tree.closed()

        run(self._tree.connection, self._tree.whole(self._close()), done)

    def _close(self) -> Operation[None]:
        try:
            # What a process has locked ends with its flush.
            callers = self._owners()
            if not self.kernel_file.flushed:
                callers.setdefault(self._opener.owner, self._opener)
            for caller in callers.values():
                yield from self.kernel_file.flush(caller)
        finally:
            yield from self.kernel_file.release()

    def _owners(self) -> dict[int, FileCaller]:
        return {caller.owner: caller for caller in self.lockers.values()}
