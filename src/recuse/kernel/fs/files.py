"""Open files of a filesystem: what all kinds have (fs/fuse/file.c).

`recuse.kernel.files` has what they share with devices, and when they are released.
"""

import contextlib
import errno
import os
from collections.abc import Callable
from typing import Final, TypeVar

from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import Request
from recuse.kernel.errors import os_error
from recuse.kernel.files import FuseFile
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.credentials import CAP_FSETID, FileCaller
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.inodes import STATX_BLOCKS, Inode
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.turns import InodeLock
from recuse.kernel.fs.writeback import sync_times, write_back, write_inode_now
from recuse.wire.fuse import (
    FOPEN_CACHE_DIR,
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    FOPEN_STREAM,
    FUSE_ATOMIC_O_TRUNC,
    FUSE_FLUSH,
    FUSE_FSYNC,
    FUSE_FSYNC_FDATASYNC,
    FUSE_FSYNCDIR,
    FUSE_HANDLE_KILLPRIV_V2,
    FUSE_OPEN,
    FUSE_OPEN_KILL_SUIDGID,
    FUSE_OPENDIR,
    FUSE_RELEASE,
    FUSE_RELEASE_FLOCK_UNLOCK,
    FUSE_RELEASEDIR,
    FUSE_WRITEBACK_CACHE,
    fuse_flush_in,
    fuse_fsync_in,
    fuse_open_in,
    fuse_open_out,
    fuse_release_in,
)

T = TypeVar("T")

OPEN_ONLY: Final = os.O_CREAT | os.O_EXCL | os.O_NOCTTY
"""Flags that concern only the opening (fuse_send_open)."""


class FilesystemFile(FuseFile):
    """What a descriptor (and its copies) of a file or directory refers to.

    open_flags
        FOPEN_ bits: what the server has said about reading and writing it.
    position
        In bytes; in a directory, what the server calls its offset.
    placing
        Held by what reads or writes at the position, or moves it: see `placed`.
    flocked
        The server has been asked for a lock of flock(2), which ends with the file.
    flushed
        Nothing was done with it since it was flushed. A program may have closed its last
        descriptor, and no other flush is due then.
    errors_seen
        Errors of writing back that are not told to this one: see `WriteErrors`.
    wake_pollers
        Called, in one of the server's threads, when a poll that waits should be made again.
    """

    __slots__ = (
        *("dentry", "errors_seen", "flocked", "flushed", "inode", "open_flags", "placing"),
        *("position", "superblock", "wake_pollers"),
    )

    def __init__(
        self, superblock: Superblock, dentry: Dentry, flags: int, opened: fuse_open_out | None
    ) -> None:
        """Make it; ``opened`` is None if the server does not know about open files."""
        connection = superblock.connection
        fh = None if opened is None else opened.fh
        super().__init__(connection, fh, flags, connection.polled.next_kh())
        assert dentry.inode is not None
        self.superblock = superblock
        self.dentry = dentry
        self.inode: Inode = dentry.inode
        self.position = 0
        self.placing = InodeLock()
        self.flocked = False
        self.flushed = False
        self.errors_seen = self.inode.errors.sample()
        self.wake_pollers: Callable[[], None] = _nobody
        if opened is not None:
            self.open_flags = opened.open_flags
        else:
            self.open_flags = FOPEN_KEEP_CACHE
            if self.inode.is_directory:
                self.open_flags |= FOPEN_CACHE_DIR

    @property
    def device(self) -> Superblock:
        """What `recuse.kernel.char.poll` needs."""
        return self.superblock

    @property
    def handle(self) -> int:
        """What requests name it by."""
        return self.fh or 0

    @property
    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self.flags & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR)

    @property
    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE in (os.O_WRONLY, os.O_RDWR)

    def running(self, operation: Operation[T], mapped: bool = False) -> Operation[T]:
        """See `FuseFile.running`."""
        self.flushed = False
        return super().running(operation, mapped)

    def placed(self, operation: Operation[T]) -> Operation[T]:
        """Run an operation that begins at the position, and moves it; one at a time (f_pos_lock).

        Not for streams, which have none: one may be read while it is written.
        """
        # fs/file.c, fdget_pos
        if self.open_flags & FOPEN_STREAM:
            return (yield from operation)
        lock = self.placing
        if not lock.take_now():
            yield from self.superblock.take(lock)
        try:
            return (yield from operation)
        finally:
            self.superblock.give_back(lock)

    def flush(self, caller: FileCaller) -> Operation[None]:
        """Do what each close(2) of a descriptor does; its error is close's (fuse_flush)."""
        return self.running(self._close(caller))

    def _close(self, caller: FileCaller) -> Operation[None]:
        # fs/open.c, filp_flush
        self.flushed = True  # what comes meanwhile, from another program, makes it untrue
        try:
            yield from self._flush(caller)
        except OSError as error:
            if error.errno == errno.EINTR:  # maybe the server has not seen it
                self.flushed = False
            raise
        finally:
            self._give_up_records(caller.owner)

    def _flush(self, caller: FileCaller) -> Operation[None]:
        inode, superblock = self.inode, self.superblock
        inode.check()
        held_back = superblock.has(FUSE_WRITEBACK_CACHE)
        if inode.is_directory or (self.open_flags & FOPEN_NOFLUSH and not held_back):
            return
        yield from write_inode_now(superblock, inode)
        body = fuse_flush_in(fh=self.handle, lock_owner=caller.owner)
        yield from ask_once(superblock, caller, FUSE_FLUSH, inode, body.pack())
        if held_back:
            inode.outdate(STATX_BLOCKS)

    def _give_up_records(self, owner: object) -> None:
        """Give up an owner's locks that are kept here (locks_remove_posix)."""
        records = self.inode.records
        if records is not None:
            records.remove(owner, self.superblock.connection.grant)

    def _unlock(self) -> None:
        self._give_up_records(self)
        if self.inode.flocks is not None:
            self.inode.flocks.unlock(self)

    def sync(self, caller: FileCaller, data_only: bool = False) -> Operation[None]:
        """Do fsync(2) or fdatasync(2) (fuse_fsync)."""
        return self.running(self.sync_held(caller, data_only))

    def sync_held(self, caller: FileCaller, data_only: bool = False) -> Operation[None]:
        """Do the same in an operation that runs on the file already."""
        inode, superblock = self.inode, self.superblock
        inode.check()
        opcode = FUSE_FSYNCDIR if inode.is_directory else FUSE_FSYNC
        flags = FUSE_FSYNC_FDATASYNC if data_only else 0
        body = fuse_fsync_in(fh=self.handle, fsync_flags=flags).pack()
        yield from superblock.lock(inode)
        try:
            yield from write_back(superblock, inode)
            number = inode.errors.take_since(self.errors_seen)
            self.errors_seen = inode.errors.count
            if number:
                raise os_error(number)
            yield from sync_times(superblock, inode)
            yield from ask_once(superblock, caller, opcode, inode, body)
        finally:
            superblock.unlock(inode)

    def can_write_back(self) -> None:
        """Have dirty pages written by it, as long as it is open (fuse_link_write_file)."""
        if self not in self.inode.writers:
            self.inode.writers.append(self)

    def _stop_writing_back(self) -> Operation[None]:
        """Write back what is dirty, and wait until no request names this file any more."""
        inode, superblock = self.inode, self.superblock
        if superblock.has(FUSE_WRITEBACK_CACHE):
            with contextlib.suppress(OSError):
                yield from write_inode_now(superblock, inode)
        if self in inode.writers:
            yield from superblock.take(inode.writing)
            inode.writers.remove(self)
            superblock.give_back(inode.writing)

    def _end_io(self) -> None:
        """No more is read or written by it (fuse_file_io_release)."""

    def _send_release(self) -> Operation[None]:
        yield from self._stop_writing_back()
        self._end_io()
        self._connection.polled.remove(self.kh)
        if self.fh is not None:
            # The header names no caller (fs/fuse/file.c, fuse_prepare_release: nocreds).
            opcode = FUSE_RELEASEDIR if self.inode.is_directory else FUSE_RELEASE
            release = fuse_release_in(fh=self.fh, flags=self.flags)
            if self.flocked:
                release.release_flags = FUSE_RELEASE_FLOCK_UNLOCK
                release.lock_owner = self.kh
            yield Request(opcode, release.pack(), nodeid=self.inode.nodeid, force=True)


def ask_once(
    superblock: Superblock, caller: FileCaller, opcode: int, inode: Inode, body: bytes
) -> Operation[None]:
    """Send a request that a server need not know: after ENOSYS it is not sent any more."""
    if opcode in superblock.lacks:
        return
    try:
        yield from ask(caller, opcode, inode.nodeid, body)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        superblock.lacks.add(opcode)


def send_open(
    superblock: Superblock, caller: FileCaller, inode: Inode, flags: int
) -> Operation[fuse_open_out | None]:
    """Send OPEN or OPENDIR; None if the server does not want to know (fuse_file_open)."""
    opcode = FUSE_OPENDIR if inode.is_directory else FUSE_OPEN
    if opcode in superblock.lacks:
        return None
    told = flags & ~OPEN_ONLY
    if not superblock.has(FUSE_ATOMIC_O_TRUNC):
        told &= ~os.O_TRUNC
    body = fuse_open_in(flags=told, open_flags=kill_flag(superblock, caller, flags))
    try:
        payload = yield from ask(caller, opcode, inode.nodeid, body.pack(), fuse_open_out.SIZE)
    except OSError as error:
        # FUSE_NO_OPEN_SUPPORT and FUSE_NO_OPENDIR_SUPPORT only tell the server that this is so.
        if error.errno != errno.ENOSYS:
            raise
        superblock.lacks.add(opcode)
        return None
    return fuse_open_out.unpack(payload)


def kill_flag(superblock: Superblock, caller: FileCaller, flags: int) -> int:
    """FUSE_OPEN_KILL_SUIDGID if opening truncates for somebody who may not keep these bits."""
    kills = flags & os.O_TRUNC and not flags & os.O_EXCL and not caller.may(CAP_FSETID)
    if kills and superblock.has(FUSE_HANDLE_KILLPRIV_V2):
        return FUSE_OPEN_KILL_SUIDGID
    return 0


def bad_descriptor() -> OSError:
    """The error of a call that the file was not opened for."""
    return os_error(errno.EBADF)


def _nobody() -> None:
    pass
