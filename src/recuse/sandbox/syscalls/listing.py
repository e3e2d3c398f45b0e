"""Directory listings that show devices (fs/readdir.c; Linux 6.1).

The kernel lists the native entries, and recuse's entries follow after the last one. recuse's own
directories have no native entries: the "." and ".." of their placeholders are not theirs. The
supervisor makes the native call itself, on a copy of the caller's descriptor. The copy shares its
position, so the position also says how far a listing has come with recuse's entries. So rewinddir,
seekdir, dup and fork work as always. An open directory of a filesystem lists itself.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from recuse.kernel.errors import os_error
from recuse.sandbox.abilities import may_borrow
from recuse.sandbox.files.dirents import dirent
from recuse.sandbox.syscalls.handler import PROCEED, Handler, signed32
from recuse.sandbox.tasks.memory import write_memory
from recuse.sandbox.trap.borrowing import Borrowing
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import SERVER_GONE, Dentry, Location, Mount
from recuse.sandbox.vfs.native_files import list_next
from recuse.sandbox.vfs.resolve import Listed, Tree

if TYPE_CHECKING:
    from recuse.sandbox.machine import Machine
    from recuse.sandbox.trap.call import Outcome, TrappedCall

_LARGEST: Final = 1 << 18
_FIRST_POSITION: Final = 0x7FFFE000
_POSITIONS: Final = 0x1000
"""The positions of recuse's entries. They are above all that filesystems use, and below 2**31 - 1,
which some filesystems take for the end. sysfs uses hashes below that, so the window is small
(fs/kernfs/dir.c)."""

_Entry = tuple[bytes, int, int]
"""Name, inode number and mode."""
_Shown = list[tuple[Mount, Sequence[Dentry]]]
"""What trees list."""


def _list(call: TrappedCall, machine: Machine, *, typed: bool) -> Outcome:
    file = machine.files.find_opened(call.tid, call.a0)
    if file is not None:
        return file.entries(call, call.a1, min(call.a2 & 0xFFFFFFFF, _LARGEST), typed=typed)
    tree = machine.tree
    listed = tree.listed(call.tid, signed32(call.a0))
    if not listed:
        return PROCEED
    only_here = isinstance(listed, Location)
    if isinstance(listed, Location) and listed.node.removed:
        raise os_error(errno.ENOENT)  # it has been removed while it was open
    shown = _shown(call, listed)
    room = min(call.a2 & 0xFFFFFFFF, _LARGEST)
    if not may_borrow():
        return _list_apart(call, machine, listed, shown, room, only_here=only_here, typed=typed)
    key = (call.task.tgid, signed32(call.a0))
    with Borrowing(call) as borrowing:
        directory = borrowing.copy(key[1])
        try:
            position = os.lseek(directory, 0, os.SEEK_CUR)
            index = position - _FIRST_POSITION
            ours = 0 <= index < _POSITIONS
            remembered = tree.listings.get(key)
            if remembered is not None and remembered[:2] == (listed, position):
                index, ours = remembered[2], True
            data = b""
            if not ours and not only_here:
                data = list_next(call.task.acting, directory, room, typed=typed)
            if data:
                tree.listings.pop(key, None)
            else:
                index = index if ours else 0
                entries = _entries(tree, listed, shown)[index:]
                data, count = _encode(entries, _FIRST_POSITION + index, room, typed=typed)
                if entries and not count:
                    raise os_error(errno.EINVAL)
                try:
                    os.lseek(directory, _FIRST_POSITION + index + count, os.SEEK_SET)
                except OSError:
                    # One in which nothing can ever be (fs/libfs.c, empty_dir_llseek).
                    tree.listings[key] = (listed, position, index + count)
            if data and not _store(call, data):
                os.lseek(directory, position, os.SEEK_SET)
                raise os_error(errno.EFAULT)
        finally:
            os.close(directory)
        return borrowing.finish(len(data))


def _list_apart(
    call: TrappedCall,
    machine: Machine,
    listed: Listed,
    shown: _Shown,
    room: int,
    *,
    only_here: bool,
    typed: bool,
) -> int:
    """Do :func:`_list` where the caller's descriptor cannot be copied: the kernel lists its part.

    How far a listing has come with recuse's entries is remembered by the descriptor's number. That
    lasts as long as its position stays at the end of the native entries.
    """
    number = signed32(call.a0)
    listings = machine.tree.listings
    key = (call.task.tgid, number)
    try:
        with open(f"/proc/{call.tid}/fdinfo/{number}", "rb") as file:
            position = int(file.readline().split()[1])
        if not only_here and _has_native(call, number, position, room, typed=typed):
            listings.pop(key, None)
            return PROCEED
    except OSError:
        return PROCEED
    index = 0
    if 0 <= position - _FIRST_POSITION < _POSITIONS:
        index = position - _FIRST_POSITION
    if key in listings and listings[key][:2] == (listed, position):
        index = listings[key][2]
    entries = _entries(machine.tree, listed, shown)[index:]
    data, count = _encode(entries, _FIRST_POSITION + index, room, typed=typed)
    if entries and not count:
        raise os_error(errno.EINVAL)
    if data and not _store(call, data):
        raise os_error(errno.EFAULT)
    if count or not only_here:
        listings[key] = (listed, position, index + count)
    else:
        # The position never changes, so the next listing either starts again or never comes.
        listings.pop(key, None)
    return len(data)


def _has_native(call: TrappedCall, number: int, position: int, room: int, *, typed: bool) -> bool:
    """Whether the kernel has something to list. OSError if that cannot be found out."""
    directory = os.open(f"/proc/{call.tid}/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.lseek(directory, position, os.SEEK_SET)
        return bool(list_next(call.task.acting, directory, room, typed=typed))
    finally:
        os.close(directory)


def _shown(call: TrappedCall, listed: Listed) -> _Shown:
    """What is in a directory of recuse's, or is added to a native one."""
    if isinstance(listed, Location):
        return [(listed.mount, listed.mount.tree.list(call, listed.dentry))]
    shown: _Shown = []
    for addition in listed:
        try:
            shown.append((addition, addition.tree.list(call, addition.tree.root)))
        except OSError as error:
            if error.errno not in SERVER_GONE:
                raise
    return shown


def _entries(tree: Tree, listed: Listed, shown: _Shown) -> list[_Entry]:
    """The entries that are listed after the native ones."""
    if isinstance(listed, Location):
        node = listed.node
        entries = [(b".", node.inode, node.mode), (b"..", tree.inode_above(listed), node.mode)]
        entries += [_entry(dentry) for _, dentries in shown for dentry in dentries]
        return entries
    added: dict[bytes, _Entry] = {}
    for mount, dentries in shown:
        for dentry in dentries:
            name = dentry.name
            if name not in added and not native_files.is_there(os.path.join(mount.path, name)):
                added[name] = _entry(dentry)
    return list(added.values())


def _entry(dentry: Dentry) -> _Entry:
    return dentry.name, dentry.node.inode, dentry.node.mode


def _store(call: TrappedCall, data: bytes) -> bool:
    try:
        return write_memory(call.tid, call.a1, data) == len(data)
    except OSError:
        return False


def _encode(entries: list[_Entry], position: int, room: int, *, typed: bool) -> tuple[bytes, int]:
    """Encode as many entries as fit into ``room`` bytes; return them and their number."""
    data = bytearray()
    for count, (name, inode, mode) in enumerate(entries):
        entry = dirent(name, inode, position + count + 1, stat.S_IFMT(mode), typed=typed)
        if len(data) + len(entry) > room:
            return bytes(data), count
        data += entry
    return bytes(data), len(entries)


def getdents64(call: TrappedCall, machine: Machine) -> Outcome:
    """``getdents64(fd, buf, count)``."""
    return _list(call, machine, typed=True)


def getdents(call: TrappedCall, machine: Machine) -> Outcome:
    """``getdents(fd, buf, count)``."""
    return _list(call, machine, typed=False)


HANDLERS: Final[dict[str, Handler]] = {"getdents64": getdents64, "getdents": getdents}
