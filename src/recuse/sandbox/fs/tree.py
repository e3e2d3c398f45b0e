"""A mounted filesystem, as the sandbox's walk and the handlers of system calls see it.

The kernel half (`recuse.kernel.fs`) does everything: what is valid, who may do what, what the
server is asked. Here its operations are chosen for a program's call.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs import changes, names, xattrs
from recuse.kernel.fs.attributes import (
    get_attributes,
    get_birth_time,
    known_attributes,
    statfs,
)
from recuse.kernel.fs.changes import Changes, change_attributes, truncate
from recuse.kernel.fs.credentials import ALL_CAPABILITIES, FileCaller
from recuse.kernel.fs.execution import read_program
from recuse.kernel.fs.inodes import STATX_BASIC_STATS, STATX_BTIME, Inode
from recuse.kernel.fs.lookup import lookup
from recuse.kernel.fs.options import MountOptions
from recuse.kernel.fs.permission import MAY_ACCESS, MAY_CHDIR, MAY_EXEC, permission
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.walk import Last, go_along, go_along_known, read_link
from recuse.kernel.fs.writeback import write_back_all
from recuse.sandbox.arch.status import Status
from recuse.sandbox.files.table import FileTable
from recuse.sandbox.fs import opening
from recuse.sandbox.fs.caller import caller_of, looker
from recuse.sandbox.fs.running import Mounted
from recuse.sandbox.fs.views import Name
from recuse.sandbox.trap.call import OnDevice, Outcome, Steps, TrappedCall
from recuse.sandbox.vfs.dentry import Dentry, Location
from recuse.sandbox.vfs.filesystem_tree import NOW, Description, FilesystemTree, Place, Times

if TYPE_CHECKING:
    from recuse.kernel.fs import dentries
    from recuse.wire.filesystem import fuse_attr

_MINORS: Final = 1 << 20
"""How many minor numbers there are. Filesystems without a device get the last ones of major 0; the
kernel gives its own the first."""
_MAGIC: Final = 0x65735546
"""FUSE_SUPER_MAGIC (linux/magic.h)."""
_STATFS: Final = struct.Struct("=qqQQQQQiiqqq32x")
"""asm-generic/statfs.h"""
_DEFAULT_BLOCK: Final = 512
"""FUSE_DEFAULT_BLKSIZE"""
_ST_VALID: Final = 0x20
_SIGN: Final = 1 << 63


def of(dentry: Dentry) -> dentries.Dentry:
    """The kernel half's own."""
    assert isinstance(dentry, Name)
    return dentry.of


def inode_of(dentry: Dentry) -> Inode:
    """What a name leads to."""
    assert isinstance(dentry, Name)
    return dentry.inode


def _last(place: Place) -> Last:
    return Last(of(place.directory.dentry), place.name, place.slashes)


def _signed(seconds: int) -> int:
    return seconds - 2 * _SIGN if seconds & _SIGN else seconds


class MountedTree(Mounted, FilesystemTree):
    """The tree of one filesystem."""

    def __init__(
        self,
        superblock: Superblock,
        files: FileTable,
        listed: tuple[bytes, bytes, bytes],
        device: int | None = None,
    ) -> None:
        """Make it.

        Args:
            superblock: what is mounted.
            files: the sandbox's table of open files.
            listed: its source, kind and flags in lists of mounts.
            device: the number of the block device that it is on, if it is on one.
        """
        super().__init__(superblock, files)
        self._listed = listed
        self.device: Final = os.makedev(0, _MINORS + self.serial) if device is None else device
        """As st_dev."""
        self._root = Name(superblock.root)

    @property
    def root(self) -> Dentry:
        """See `FilesystemTree`."""
        return self._root

    @property
    def description(self) -> Description:
        """See `FilesystemTree`."""
        options = self.superblock.options
        told = b"user_id=%d,group_id=%d" % (options.user_id, options.group_id)
        told += b",default_permissions" if options.default_permissions else b""
        told += b",allow_other" if options.allow_other else b""
        if options.max_read != MountOptions().max_read:
            told += b",max_read=%d" % options.max_read
        if options.block_size not in (0, _DEFAULT_BLOCK):
            told += b",blksize=%d" % options.block_size
        source, kind, flags = self._listed
        return Description(source, kind, flags, told, self.device, options.user_id)

    def remount(self, flags: bytes) -> None:
        """See `FilesystemTree`."""
        source, kind, _ = self._listed
        self._listed = source, kind, flags
        read_only = flags.startswith(b"ro")
        self.superblock.options = self.superblock.options._replace(read_only=read_only)

    def write_back(self) -> OnDevice[None]:
        """See `FilesystemTree`."""
        return OnDevice(self, self.whole(write_back_all(self.superblock)))

    def directory_at(self, path: bytes) -> Dentry:
        """See `FilesystemTree`."""
        caller = FileCaller(os.getpid(), os.geteuid(), os.getegid(), capabilities=ALL_CAPABILITIES)
        here = self._root
        for name in filter(None, path.split(b"/")):
            found = self.wait(lookup(self.superblock, caller, here.of, name))
            if found.inode is None:
                raise os_error(errno.ENOENT)
            here = Name(found)
        if not here.node.is_directory:
            raise os_error(errno.ENOTDIR)
        return here

    @property
    def _no_exec(self) -> bool:
        return b"noexec" in self._listed[2].split(b",")

    # Looking

    def go_along(
        self, call: TrappedCall, start: Dentry, names: list[bytes], *, real: bool
    ) -> Dentry:
        """See `FilesystemTree`."""
        begin = of(start)
        question = begin, tuple(names), real
        caller = looker(call, real=real)
        self.settle(call)
        if not self.has_answered(call, question):
            begin = go_along_known(self.superblock, caller, begin, names)
            if not names:
                return Name(begin)
        there, left = self.ask(call, question, lambda: self._go_along(caller, begin, names[:]))
        del names[left:]
        return Name(there)

    def _go_along(
        self, caller: FileCaller, begin: dentries.Dentry, names: list[bytes]
    ) -> Operation[tuple[dentries.Dentry, int]]:
        there = yield from go_along(self.superblock, caller, begin, names)
        return there, len(names)

    def read_link(self, call: TrappedCall, link: Dentry) -> bytes:
        """See `FilesystemTree`."""
        inode = inode_of(link)
        return self.ask(
            call, ("link", inode), lambda: read_link(self.superblock, looker(call), inode)
        )

    def check_enter(self, call: TrappedCall, directory: Dentry) -> None:
        """See `FilesystemTree`."""
        self._check(call, directory, MAY_EXEC | MAY_CHDIR, real=False)

    def check_access(self, call: TrappedCall, dentry: Dentry, wanted: int, *, real: bool) -> None:
        """See `FilesystemTree`."""
        if wanted & MAY_EXEC and self._no_exec and stat.S_ISREG(inode_of(dentry).attr.mode):
            raise os_error(errno.EACCES)
        self._check(call, dentry, wanted | MAY_ACCESS, real=real)

    def _check(self, call: TrappedCall, dentry: Dentry, mask: int, *, real: bool) -> None:
        inode = inode_of(dentry)
        self.ask(
            call,
            ("permission", inode, mask, real),
            lambda: permission(self.superblock, looker(call, real=real), inode, mask),
        )

    def status(
        self, call: TrappedCall, dentry: Dentry, mask: int = STATX_BASIC_STATS, sync: int = 0
    ) -> Status:
        """See `FilesystemTree`."""
        inode, caller = inode_of(dentry), looker(call)
        question = "status", inode
        self.settle(call)
        if not mask & STATX_BTIME and not sync and not self.has_answered(call, question):
            attr = known_attributes(self.superblock, caller, inode)
            if attr is not None:
                return self._status(attr, None)
        return self.ask(call, question, lambda: self._get_status(caller, inode, mask, sync))

    def _get_status(
        self, caller: FileCaller, inode: Inode, mask: int, sync: int
    ) -> Operation[Status]:
        born = None
        if mask & STATX_BTIME:
            born = yield from get_birth_time(self.superblock, caller, inode)
        basic = mask & STATX_BASIC_STATS
        attr = yield from get_attributes(self.superblock, caller, inode, basic, sync=sync)
        return self._status(attr, born)

    def _status(self, attr: fuse_attr, born: int | None) -> Status:
        return Status(
            self.device,
            attr.ino,
            attr.mode,
            attr.nlink,
            attr.uid,
            attr.gid,
            attr.rdev,
            attr.size,
            attr.blksize or PAGE_SIZE,
            (
                *(_signed(attr.atime), attr.atimensec),
                *(_signed(attr.mtime), attr.mtimensec),
                *(_signed(attr.ctime), attr.ctimensec),
            ),
            attr.blocks,
            born,
        )

    def statfs(self, call: TrappedCall) -> bytes:
        """See `FilesystemTree`."""
        inode = self._root.inode
        told = self.ask(call, "statfs", lambda: statfs(self.superblock, looker(call), inode))
        return _STATFS.pack(
            *(_MAGIC, told.f_bsize, told.f_blocks, told.f_bfree, told.f_bavail),
            *(told.f_files, told.f_ffree, self.device & 0x7FFFFFFF, 0),
            *(told.f_namemax, told.f_frsize, told.f_flag | _ST_VALID),
        )

    def is_removed(self, dentry: Dentry) -> bool:
        """See `FilesystemTree`."""
        assert isinstance(dentry, Name)
        return dentry.is_removed

    def read_program(
        self, call: TrappedCall, dentry: Dentry, take: Callable[[bytes], None]
    ) -> Steps[None]:
        """See `FilesystemTree`."""
        if self._no_exec:
            raise os_error(errno.EACCES)
        caller, found = caller_of(call), of(dentry)
        yield self.files.releases(self)
        program = read_program(self.superblock, caller, found, take)
        yield OnDevice(self, self.whole(program))

    # Opening and making

    def open(self, call: TrappedCall, location: Location, flags: int, mode: int) -> Outcome:
        """See `FilesystemTree`."""
        return opening.open_found(self, call, location, flags, mode)

    def create(
        self, call: TrappedCall, place: Place, flags: int, mode: int, *, absent: bool
    ) -> Outcome:
        """See `FilesystemTree`."""
        return opening.create(self, call, place, flags, mode, absent)

    def make_directory(self, call: TrappedCall, place: Place, mode: int) -> Outcome:
        """See `FilesystemTree`."""
        caller, (directory, name, _) = caller_of(call, creates=True), _last(place)
        return self.run(call, names.make_directory(self.superblock, caller, directory, name, mode))

    def make_node(self, call: TrappedCall, place: Place, mode: int, rdev: int) -> Outcome:
        """See `FilesystemTree`."""
        caller, (directory, name, _) = caller_of(call, creates=True), _last(place)
        return self.run(call, names.make_node(self.superblock, caller, directory, name, mode, rdev))

    def make_symlink(self, call: TrappedCall, place: Place, target: bytes) -> Outcome:
        """See `FilesystemTree`."""
        directory, name, _ = _last(place)
        return self.run(
            call, names.make_symlink(self.superblock, caller_of(call), directory, name, target)
        )

    def make_link(self, call: TrappedCall, old: Location, place: Place) -> Outcome:
        """See `FilesystemTree`."""
        inode, (directory, name, _) = inode_of(old.dentry), _last(place)
        return self.run(
            call, names.make_link(self.superblock, caller_of(call), inode, directory, name)
        )

    def unlink(self, call: TrappedCall, place: Place) -> Outcome:
        """See `FilesystemTree`."""
        return self.run(call, names.unlink(self.superblock, caller_of(call), *_last(place)))

    def remove_directory(self, call: TrappedCall, place: Place) -> Outcome:
        """See `FilesystemTree`."""
        directory, name, _ = _last(place)
        return self.run(
            call, names.remove_directory(self.superblock, caller_of(call), directory, name)
        )

    def rename(self, call: TrappedCall, old: Place, new: Place, flags: int) -> Outcome:
        """See `FilesystemTree`."""
        rename = names.Rename(self.superblock, caller_of(call), _last(old), _last(new), flags)
        return self.run(call, rename.run())

    # Attributes

    def _change(self, call: TrappedCall, dentry: Dentry, wanted: Changes) -> Outcome:
        inode, caller = inode_of(dentry), caller_of(call)
        return self.run(call, change_attributes(self.superblock, caller, inode, wanted))

    def change_mode(self, call: TrappedCall, dentry: Dentry, mode: int) -> Outcome:
        """See `FilesystemTree`."""
        return self._change(call, dentry, Changes(mode=mode & 0o7777))

    def change_owner(
        self, call: TrappedCall, dentry: Dentry, uid: int | None, gid: int | None
    ) -> Outcome:
        """See `FilesystemTree`."""
        return self._change(call, dentry, Changes(uid=uid, gid=gid))

    def set_times(self, call: TrappedCall, dentry: Dentry, times: Times) -> Outcome:
        """See `FilesystemTree`."""
        atime, mtime = (changes.NOW if time == NOW else time for time in times)
        return self._change(call, dentry, Changes(atime_ns=atime, mtime_ns=mtime))

    def truncate(self, call: TrappedCall, dentry: Dentry, size: int) -> Outcome:
        """See `FilesystemTree`."""
        return self.run(call, truncate(self.superblock, caller_of(call), inode_of(dentry), size))

    # Extended attributes

    def get_xattr(
        self, call: TrappedCall, dentry: Dentry, name: bytes, address: int, size: int
    ) -> Outcome:
        """See `FilesystemTree`."""
        caller, inode = caller_of(call), inode_of(dentry)
        if not size:
            return self.run(call, xattrs.xattr_size(self.superblock, caller, inode, name))
        size = min(size, xattrs.MOST_SIZE)
        value = xattrs.get_xattr(self.superblock, caller, inode, name, size)
        return self.run(call, _stored(caller, address, value))

    def list_xattr(self, call: TrappedCall, dentry: Dentry, address: int, size: int) -> Outcome:
        """See `FilesystemTree`."""
        caller, inode = caller_of(call), inode_of(dentry)
        if not size:
            return self.run(call, xattrs.xattr_size(self.superblock, caller, inode, None))
        size = min(size, xattrs.MOST_SIZE)
        listed = xattrs.list_xattr(self.superblock, caller, inode, size)
        return self.run(call, _stored(caller, address, _joined(listed)))

    def set_xattr(
        self, call: TrappedCall, dentry: Dentry, name: bytes, value: bytes, flags: int
    ) -> Outcome:
        """See `FilesystemTree`."""
        caller, inode = caller_of(call), inode_of(dentry)
        operation = xattrs.set_xattr(self.superblock, caller, inode, name, value, flags)
        return self.run(call, operation)

    def remove_xattr(self, call: TrappedCall, dentry: Dentry, name: bytes) -> Outcome:
        """See `FilesystemTree`."""
        caller, inode = caller_of(call), inode_of(dentry)
        return self.run(call, xattrs.remove_xattr(self.superblock, caller, inode, name))


def _joined(listed: Operation[list[bytes]]) -> Operation[bytes]:
    return b"".join(name + b"\0" for name in (yield from listed))


def _stored(caller: FileCaller, address: int, operation: Operation[bytes]) -> Operation[int]:
    """Put a result into the caller's memory; return its size."""
    data = yield from operation
    if data and caller.memory.write(address, data) < len(data):
        raise os_error(errno.EFAULT)
    return len(data)
