"""What a filesystem's server says without being asked (fs/fuse/dev.c, fuse_notify)."""

import errno
import struct
from collections.abc import Callable
from typing import Final, TypeAlias

from recuse.kernel.connection.notify import notified_poller
from recuse.kernel.connection.operation import Operation, run
from recuse.kernel.connection.request import Request
from recuse.kernel.errors import os_error
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.inodes import UNKNOWN_ACL, Inode
from recuse.kernel.fs.mapping import refresh
from recuse.kernel.fs.superblock import Superblock
from recuse.kernel.fs.writeback import drop_pages, take_stores
from recuse.wire.fuse import (
    FUSE_EXPIRE_ONLY,
    FUSE_NOTIFY_DELETE,
    FUSE_NOTIFY_INC_EPOCH,
    FUSE_NOTIFY_INVAL_ENTRY,
    FUSE_NOTIFY_INVAL_INODE,
    FUSE_NOTIFY_POLL,
    FUSE_NOTIFY_PRUNE,
    FUSE_NOTIFY_REPLY,
    FUSE_NOTIFY_RESEND,
    FUSE_NOTIFY_RETRIEVE,
    FUSE_NOTIFY_STORE,
)
from recuse.wire.notify import (
    fuse_notify_delete_out,
    fuse_notify_inval_entry_out,
    fuse_notify_inval_inode_out,
    fuse_notify_prune_out,
    fuse_notify_retrieve_in,
    fuse_notify_retrieve_out,
    fuse_notify_store_out,
)

_Take: TypeAlias = Callable[[Superblock, bytes], None]


def notified(superblock: Superblock, code: int, body: bytes, size: int) -> None:
    """Take a notification; ``body`` is what follows the header, ``size`` bytes of it.

    Nothing here waits, unlike Linux, which takes an inode's lock for some.

    Raises OSError: EINVAL for a bad code or size, EFAULT if the end of it could not be read, ENOENT
    for a node or name that is not known here, ENAMETOOLONG, ENOTDIR, ENOTEMPTY.
    """
    if code == FUSE_NOTIFY_POLL:
        superblock.connection.polled.notify(notified_poller(code, body, size))
        return
    take = _TAKERS.get(code)
    if take is None:
        raise os_error(errno.EINVAL)
    if len(body) < size:
        raise os_error(errno.EFAULT)
    take(superblock, body)


def _known(superblock: Superblock, nodeid: int) -> Inode:
    inode = superblock.inodes.find(nodeid)
    if inode is None:
        raise os_error(errno.ENOENT)
    return inode


def _exactly(body: bytes, size: int) -> None:
    if len(body) != size:
        raise os_error(errno.EINVAL)


def _inval_inode(superblock: Superblock, body: bytes) -> None:
    _exactly(body, fuse_notify_inval_inode_out.SIZE)
    told = fuse_notify_inval_inode_out.unpack(body)
    inode = _known(superblock, told.ino)
    inode.change()
    inode.target = None
    inode.acl = UNKNOWN_ACL
    if told.off >= 0:
        operation = drop_pages(superblock, inode, told.off, max(told.len, 0))
        run(superblock.connection, _shown(superblock, operation), _nobody)


def _shown(superblock: Superblock, operation: Operation[None]) -> Operation[None]:
    """Have mappings show what an operation has changed."""
    yield from operation
    yield from refresh(superblock)


def _named(superblock: Superblock, body: bytes, fixed: int, namelen: int) -> bytes:
    if namelen > superblock.agreed.name_max:
        raise os_error(errno.ENAMETOOLONG)
    _exactly(body, fixed + namelen + 1)
    return body[fixed : fixed + namelen]


def _entry(superblock: Superblock, parent: int, name: bytes) -> tuple[Inode, Dentry]:
    # fuse_reverse_inval_entry
    directory = _known(superblock, parent)
    if not directory.is_directory:
        raise os_error(errno.ENOTDIR)
    dentry: Dentry | None = None if directory.alias is None else directory.alias()
    child = None if dentry is None else dentry.children.get(name)
    if child is None:
        raise os_error(errno.ENOENT)
    return directory, child


def _inval_entry(superblock: Superblock, body: bytes) -> None:
    if len(body) < fuse_notify_inval_entry_out.SIZE:
        raise os_error(errno.EINVAL)
    told = fuse_notify_inval_entry_out.unpack(body)
    name = _named(superblock, body, fuse_notify_inval_entry_out.SIZE, told.namelen)
    directory, child = _entry(superblock, told.parent, name)
    directory.outdate()
    if told.flags & FUSE_EXPIRE_ONLY:
        child.valid_until = 0
    else:
        child.detach()


def _delete(superblock: Superblock, body: bytes) -> None:
    if len(body) < fuse_notify_delete_out.SIZE:
        raise os_error(errno.EINVAL)
    told = fuse_notify_delete_out.unpack(body)
    name = _named(superblock, body, fuse_notify_delete_out.SIZE, told.namelen)
    directory, child = _entry(superblock, told.parent, name)
    directory.outdate()
    inode = child.inode
    if inode is None or inode.nodeid != told.child:
        child.detach()
        raise os_error(errno.ENOENT)
    if inode.is_directory:
        child.shrink()
        if any(below.inode is not None for below in child.children.values()):
            raise os_error(errno.ENOTEMPTY)
        inode.removed = True
    inode.attr.nlink = 0
    child.detach()


def _store(superblock: Superblock, body: bytes) -> None:
    if len(body) < fuse_notify_store_out.SIZE:
        raise os_error(errno.EINVAL)
    told = fuse_notify_store_out.unpack(body)
    _exactly(body, fuse_notify_store_out.SIZE + told.size)
    inode = _known(superblock, told.nodeid)
    end = told.offset + told.size
    if end > inode.attr.size:
        inode.change(0, at_least=end)
    inode.pages.store(told.offset, body[fuse_notify_store_out.SIZE :], inode.attr.size)
    run(superblock.connection, refresh(superblock), _nobody)


def _retrieve(superblock: Superblock, body: bytes) -> None:
    _exactly(body, fuse_notify_retrieve_out.SIZE)
    told = fuse_notify_retrieve_out.unpack(body)
    inode = _known(superblock, told.nodeid)
    size = max(min(told.size, superblock.max_write, inode.attr.size - told.offset), 0)
    take_stores(superblock, inode, told.offset, told.offset + size)
    data = inode.pages.content(told.offset, size)
    answer = fuse_notify_retrieve_in(offset=told.offset, size=len(data)).pack() + data
    request = Request(FUSE_NOTIFY_REPLY, answer, nodeid=told.nodeid, no_reply=True)
    superblock.connection.answer_retrieve(request, told.notify_unique)


def _inc_epoch(superblock: Superblock, body: bytes) -> None:
    _exactly(body, 0)
    superblock.epoch += 1


def _resend(superblock: Superblock, body: bytes) -> None:
    del body
    superblock.connection.resend()


def _prune(superblock: Superblock, body: bytes) -> None:
    if len(body) < fuse_notify_prune_out.SIZE:
        raise os_error(errno.EINVAL)
    count = fuse_notify_prune_out.unpack(body).count
    _exactly(body, fuse_notify_prune_out.SIZE + 8 * count)
    unwanted = set(struct.unpack_from(f"={count}Q", body, fuse_notify_prune_out.SIZE))
    for directory, name in reversed(_names_of(superblock, unwanted)):
        directory.drop(name)


def _names_of(superblock: Superblock, nodeids: set[int]) -> list[tuple[Dentry, bytes]]:
    """All known names of some nodes, with their directories; those further down come later."""
    found = []
    left = [superblock.root]
    while left:
        directory = left.pop()
        for name, child in list(directory.children.items()):
            left.append(child)
            if child.inode is not None and child.inode.nodeid in nodeids:
                found.append((directory, name))
    return found


def _nobody(result: object, error: OSError | None) -> None:
    del result, error  # what could not be written is told to those who have the file open


_TAKERS: Final[dict[int, _Take]] = {
    FUSE_NOTIFY_INVAL_INODE: _inval_inode,
    FUSE_NOTIFY_INVAL_ENTRY: _inval_entry,
    FUSE_NOTIFY_DELETE: _delete,
    FUSE_NOTIFY_STORE: _store,
    FUSE_NOTIFY_RETRIEVE: _retrieve,
    FUSE_NOTIFY_INC_EPOCH: _inc_epoch,
    FUSE_NOTIFY_PRUNE: _prune,
    FUSE_NOTIFY_RESEND: _resend,
}
