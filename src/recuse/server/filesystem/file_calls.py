"""What only few files support: ioctl, poll, locks, holes, space (fs/fuse/file.c, ioctl.c)."""

from __future__ import annotations

import errno
import os

from recuse.runtime.log import Log
from recuse.server.device import File, notify_once
from recuse.server.dispatch import (
    IOCTL_DATA,
    pick_ioctl,
    pick_poll,
    poll_answer,
    write_answer,
)
from recuse.server.filesystem import encoding
from recuse.server.filesystem.answers import as_it_is, copied, lock, nothing
from recuse.server.filesystem.answers import offset as offset_answer
from recuse.server.filesystem.level import Operation
from recuse.server.filesystem.open_file import OpenFile
from recuse.server.filesystem.requests import (
    MOST_COPIED,
    locking,
    pick_copy,
    pick_fallocate,
    seeking,
)
from recuse.server.filesystem.state import State
from recuse.server.ioctl_retries import IoctlCall
from recuse.server.pending_reply import PendingReply
from recuse.server.runner import Answer
from recuse.wire.errors import WireError
from recuse.wire.fuse import (
    FUSE_ACCESS,
    FUSE_COPY_FILE_RANGE,
    FUSE_COPY_FILE_RANGE_64,
    FUSE_FALLOCATE,
    FUSE_GETLK,
    FUSE_IOCTL,
    FUSE_IOCTL_DIR,
    FUSE_LSEEK,
    FUSE_POLL,
    FUSE_POLL_SCHEDULE_NOTIFY,
    FUSE_SETLK,
    FUSE_SETLKW,
    FUSE_STATX,
    FUSE_SYNCFS,
)

log = Log("recuse.server")


class FileCalls:
    """These operations, for one session."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._run = state.runner.run
        self._told_of_new_files = False

    def operations(self) -> dict[int, Operation]:
        """By opcode."""
        return {
            FUSE_IOCTL: self._ioctl,
            FUSE_POLL: self._poll,
            FUSE_GETLK: self._getlk,
            FUSE_SETLK: self._setlk,
            FUSE_SETLKW: self._setlk,
            FUSE_FALLOCATE: self._fallocate,
            FUSE_LSEEK: self._lseek,
            FUSE_COPY_FILE_RANGE: self._copy_file_range,
            FUSE_COPY_FILE_RANGE_64: self._copy_file_range,
            FUSE_STATX: self._statx,
            FUSE_SYNCFS: self._syncfs,
            FUSE_ACCESS: self._access,
        }

    def _open_file(self, handle: int, otherwise: int) -> OpenFile:
        """Return an open file that has the operations only filesystems have. Raises OSError."""
        file = self._state.file(handle)
        if not isinstance(file, OpenFile):
            raise OSError(otherwise, os.strerror(otherwise))
        return file

    def _ioctl(self, pending: PendingReply, number: int) -> None:
        del number
        message = pending.message
        _, handle, flags, command, argument, in_size, out_size = pick_ioctl(message)
        if flags & FUSE_IOCTL_DIR:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        data = message[IOCTL_DATA : IOCTL_DATA + in_size]
        if len(data) != in_size:
            raise WireError(f"{len(data)} bytes of data, not {in_size}")
        call = IoctlCall(self._state.file(handle), command, argument, data, out_size, self._state)
        if call.makes_file:
            self._tell_of_new_files(call.label)
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        call.restrict()
        self._run(pending, call.begin, call.answer, None)

    def _tell_of_new_files(self, method: str) -> None:
        if not self._told_of_new_files:
            self._told_of_new_files = True
            log.error(
                "%s makes a file, which Linux's FUSE does not take: EOPNOTSUPP for the program",
                method,
            )

    def _poll(self, pending: PendingReply, number: int) -> None:
        del number
        handle, kh, flags, events = pick_poll(pending.message)
        file = self._state.file(handle)
        if type(file).poll is File.poll:
            # ENOSYS would apply to all files, and some of them may have poll.
            pending.reply(poll_answer(encoding.ALWAYS_READY, None))
            return
        if flags & FUSE_POLL_SCHEDULE_NOTIFY:
            # This comes before the file is asked: a change after its answer must be reported.
            notify_once(file, kh, pending.send)
        self._run(pending, file.poll, poll_answer, None, events)

    def _getlk(self, pending: PendingReply, number: int) -> None:
        del number
        handle, asked, owner = locking(pending.message)
        file = self._open_file(handle, errno.EINVAL)
        self._run(pending, file.get_lock, lock, None, asked, owner)

    def _setlk(self, pending: PendingReply, number: int) -> None:
        del number
        handle, asked, owner = locking(pending.message)
        file = self._open_file(handle, errno.EINVAL)
        wait = pending.opcode == FUSE_SETLKW
        self._run(pending, file.set_lock, nothing, None, asked, owner, wait)

    def _fallocate(self, pending: PendingReply, number: int) -> None:
        del number
        handle, offset, length, mode = pick_fallocate(pending.message)
        file = self._open_file(handle, errno.EOPNOTSUPP)
        self._run(pending, file.allocate, nothing, None, mode, offset, length)

    def _lseek(self, pending: PendingReply, number: int) -> None:
        handle, offset, whence = seeking(pending.message)
        file = self._state.file(handle)
        if not isinstance(file, OpenFile) or type(file).seek is OpenFile.seek:
            size = self._state.known.get(number).size or 0
            self._run(pending, _seek_without_holes, offset_answer, None, size, offset, whence)
        else:
            self._run(pending, file.seek, offset_answer, None, offset, whence)

    def _copy_file_range(self, pending: PendingReply, number: int) -> None:
        del number
        handle, offset, _, other_handle, other_offset, length, _ = pick_copy(pending.message)
        file = self._open_file(handle, errno.EOPNOTSUPP)
        other = self._open_file(other_handle, errno.EOPNOTSUPP)
        answer: Answer = copied
        if pending.opcode == FUSE_COPY_FILE_RANGE:
            # The answer has only 32 bits for it.
            length, answer = min(length, MOST_COPIED), write_answer
        self._run(pending, file.copy_to, answer, length, offset, other, other_offset, length)

    def _statx(self, pending: PendingReply, number: int) -> None:
        node = self._state.known.get(number)
        self._run(pending, self._state.statx, as_it_is, None, node)

    def _syncfs(self, pending: PendingReply, number: int) -> None:
        del number
        self._run(pending, self._state.filesystem.sync, nothing, None)

    def _access(self, pending: PendingReply, number: int) -> None:
        # Only without default_permissions. ENOSYS means: always allowed, do not ask again.
        del number
        pending.fail(errno.ENOSYS)


def _seek_without_holes(size: int, offset: int, whence: int) -> int:
    if offset >= size:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return offset if whence == os.SEEK_DATA else size
