"""Content and times that the server does not have yet, on their way to it (fs/fuse/file.c, dir.c).

With FUSE_WRITEBACK_CACHE, write(2) only changes pages here, and the size and times of files are
kept here. Mappings change pages with any server. Pages are written back by close(2), fsync(2), and
what else needs the server to have them, and when there are many. Without an open file for writing
they cannot be.
"""

import errno
from typing import TYPE_CHECKING, Final

from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE, Request
from recuse.kernel.errors import os_error
from recuse.kernel.fs.inodes import MODIFIED, STATX_CTIME, Inode
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.together import Together
from recuse.wire.filesystem import fuse_attr_out, fuse_setattr_in
from recuse.wire.fuse import (
    FATTR_CTIME,
    FATTR_FH,
    FATTR_MTIME,
    FUSE_SETATTR,
    FUSE_WRITE,
    FUSE_WRITE_CACHE,
    fuse_write_in,
    fuse_write_out,
)

if TYPE_CHECKING:
    from recuse.kernel.fs.inodes import Writer

MOST_DIRTY: Final = (16 << 20) // PAGE_SIZE
"""As many pages may be dirty before a write waits until they are written back."""
_CTIME_MINOR: Final = 23
_NS: Final = 10**9
_MASK64: Final = (1 << 64) - 1


def split_time(ns: int) -> tuple[int, int]:
    """A time as the protocol has it: seconds and nanoseconds."""
    seconds, nanoseconds = divmod(ns, _NS)
    return seconds & _MASK64, nanoseconds


def set_times(inode: Inode, mtime_ns: int | None, ctime_ns: int | None) -> None:
    """Note times that are kept here."""
    attr = inode.attr
    if mtime_ns is not None:
        attr.mtime, attr.mtimensec = split_time(mtime_ns)
    if ctime_ns is not None:
        attr.ctime, attr.ctimensec = split_time(ctime_ns)


def modified(superblock: Superblock, inode: Inode) -> None:
    """Set the times of a file whose content changes, if they are kept here (file_update_time)."""
    if inode.is_kept:
        now = superblock.now()
        set_times(inode, now, now)
        inode.times_dirty = True
        superblock.dirty.add(inode)


def take_stores(
    superblock: Superblock, inode: Inode, start: int = 0, end: int | None = None
) -> None:
    """Find what programs have stored in mappings, with bytes of a range (fuse_page_mkwrite)."""
    after = None if end is None else -(-end // PAGE_SIZE)
    if inode.pages.take_stores(start // PAGE_SIZE, after, inode.attr.size):
        modified(superblock, inode)
        superblock.dirty.add(inode)


def ctime_changed(superblock: Superblock, inode: Inode, asked: bool = True) -> Operation[None]:
    """Note that a file's attributes or names have changed (fuse_update_ctime).

    ``asked``: the server's opinion is asked for again.
    """
    if asked:
        inode.outdate(STATX_CTIME)
    if inode.is_kept:
        set_times(inode, None, superblock.now())
        inode.times_dirty = True
        superblock.dirty.add(inode)
        yield from flush_time_update(superblock, inode)


def flush_time_update(superblock: Superblock, inode: Inode) -> Operation[None]:
    """Write a file's times back; an error is told later (fuse_flush_time_update)."""
    try:
        yield from sync_times(superblock, inode)
    except OSError as error:
        inode.errors.add(error.errno or errno.EIO)


def write_inode_now(superblock: Superblock, inode: Inode) -> Operation[None]:
    """Write back a file's dirty pages, then its times (fs/fs-writeback.c).

    Raises OSError: EIO or ENOSPC if content was lost since that was last told, or what the server
    answers about the times.
    """
    yield from write_back(superblock, inode)
    number = inode.errors.take()
    yield from _flush_times(superblock, inode, number)
    if number:
        raise os_error(number)


def sync_times(superblock: Superblock, inode: Inode) -> Operation[None]:
    """Write back a file's times (sync_inode_metadata). Raises the server's OSError."""
    return _flush_times(superblock, inode, 0)


def _flush_times(superblock: Superblock, inode: Inode, lost: int) -> Operation[None]:
    # fs/fuse/dir.c, fuse_flush_times; inode.c, fuse_write_inode. The header names no caller.
    if not inode.times_dirty:
        return
    yield from superblock.take(inode.writing)
    try:
        inode.times_dirty = False
        attr = inode.attr
        body = fuse_setattr_in(valid=FATTR_MTIME, mtime=attr.mtime, mtimensec=attr.mtimensec)
        if superblock.agreed.minor >= _CTIME_MINOR:
            body.valid |= FATTR_CTIME
            body.ctime, body.ctimensec = attr.ctime, attr.ctimensec
        if inode.writers:
            body.valid |= FATTR_FH
            body.fh = inode.writers[-1].fh or 0
        size = fuse_attr_out.SIZE
        reply = yield Request(FUSE_SETATTR, body.pack(), size, size, nodeid=inode.nodeid)
    finally:
        superblock.give_back(inode.writing)
        _clean(superblock, inode)
    if reply.error and not lost:
        raise os_error(-reply.error)


def _clean(superblock: Superblock, inode: Inode) -> None:
    if not inode.times_dirty and not inode.pages.dirty:
        superblock.dirty.discard(inode)


def write_back(
    superblock: Superblock,
    inode: Inode,
    start: int = 0,
    end: int | None = None,
    *,
    page_by_page: bool = False,
) -> Operation[None]:
    """Send dirty pages with bytes of a range, and wait for all that are on their way.

    What fails is noted: see `recuse.kernel.fs.inodes.WriteErrors`.

    Args:
        superblock: the filesystem.
        inode: the file.
        start: the first byte.
        end: where the range ends; None: nowhere.
        page_by_page: send each in its own request, as Linux does before it gives up pages.
    """
    take_stores(superblock, inode, start, end)
    if not (inode.pages.dirty or inode.pages.writing):
        return
    yield from superblock.take(inode.writing)
    try:
        after = None if end is None else -(-end // PAGE_SIZE)
        most = 1 if page_by_page else max(superblock.max_write // PAGE_SIZE, 1)
        runs = list(inode.pages.dirty_runs(start // PAGE_SIZE, after, most))
        if not runs:
            return
        if not inode.writers:
            inode.errors.add(errno.EIO)
            for number, count in runs:
                inode.pages.take_dirty(number, count)
                inode.pages.sent(number, count)
            return
        yield from _send(superblock, inode, inode.writers[-1], runs)
    finally:
        superblock.give_back(inode.writing)
        _clean(superblock, inode)


def _send(
    superblock: Superblock, inode: Inode, writer: "Writer", runs: list[tuple[int, int]]
) -> Operation[None]:
    # fuse_writepages, fuse_send_writepage, fuse_writepage_end
    requests = []
    for number, count in runs:
        offset = number * PAGE_SIZE
        data = inode.pages.take_dirty(number, count)[: max(inode.attr.size - offset, 0)]
        if not data:
            continue  # it has been truncated meanwhile
        body = fuse_write_in(
            fh=writer.fh or 0, offset=offset, size=len(data), write_flags=FUSE_WRITE_CACHE
        ).pack()
        size = fuse_write_out.SIZE
        requests.append(
            Request(
                *(FUSE_WRITE, body + data, size, size),
                nodeid=inode.nodeid,
                force=True,
                background=True,
            )
        )
    try:
        if requests:
            yield Together(requests)
    finally:
        for number, count in runs:
            inode.pages.sent(number, count)
    for request in requests:
        if request.reply is not None and request.reply.error:
            inode.errors.add(-request.reply.error)
    if not inode.is_kept:
        inode.outdate(MODIFIED)


def drop_pages(
    superblock: Superblock, inode: Inode, offset: int = 0, length: int = 0
) -> Operation[None]:
    """Give up content, what is dirty after writing it back (invalidate_inode_pages2_range).

    ``length`` 0: up to the end.
    """
    end = offset + length if length else None
    yield from write_back(superblock, inode, offset, end, page_by_page=True)
    inode.pages.drop(offset, length)


def balance(superblock: Superblock) -> Operation[None]:
    """Have those who write wait when too much is dirty (balance_dirty_pages)."""
    if sum(len(inode.pages.dirty) for inode in list(superblock.dirty)) <= MOST_DIRTY:
        return
    for inode in list(superblock.dirty):
        yield from write_back(superblock, inode)


def write_back_all(superblock: Superblock) -> Operation[None]:
    """Write back everything: sync(2), syncfs(2), and what a host does from time to time.

    Errors are told to those who have the files open.
    """
    for inode in superblock.dirty | superblock.mapped:
        yield from write_back(superblock, inode)
        yield from flush_time_update(superblock, inode)
