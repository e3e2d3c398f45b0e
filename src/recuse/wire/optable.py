"""The protocol's operations as data: what each request and each answer consists of.

The codec of whole messages (`recuse.wire.message`), tracing and tests read this table. So none of
them has to know the operations itself.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from recuse.wire import cuse, fuse, notify
from recuse.wire import filesystem as fs
from recuse.wire.declare import Structure


class Payload(Enum):
    """What follows the structure of a message."""

    NONE = auto()
    """Nothing."""
    BYTES = auto()
    """Any number of bytes; the message itself says nothing about them."""
    SIZE = auto()
    """As many bytes as the structure's ``size``."""
    IN_SIZE = auto()
    """As many bytes as the structure's ``in_size``."""
    NAME = auto()
    """A name and its NUL."""
    NAMES = auto()
    """Two names, each with its NUL."""
    NAME_VALUE = auto()
    """A name, its NUL, and as many bytes as the structure's ``size``."""
    RECORDS = auto()
    """As many records (`Operation.record`) as the structure's ``count``."""


class Short(NamedTuple):
    """When a request's structure ends after ``size`` bytes, for minor versions from 11 up."""

    size: int
    before_minor: int = 0
    without_flag: int = 0
    """The INIT flag whose absence makes it shorter, or 0."""
    by_length: bool = False
    """The receiver decides by the length, as this request is what tells it the minor version."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One row: an opcode, its name in the header, and the parts of its messages in their order.

    Extensions may follow a request's payload (fuse_in_header.total_extlen).
    """

    opcode: int
    name: str
    minor: int
    """The first minor version that has it."""
    request: type[Structure] | None = None
    request_payload: Payload = Payload.NONE
    reply: type[Structure] | None = None
    reply_payload: Payload = Payload.NONE
    has_reply: bool = True
    """False for requests that a server need not answer."""
    short: Short | None = None
    short_replies: tuple[int, ...] = ()
    """Sizes after which an older server may end the answer's structure."""
    record: type[Structure] | None = None


# Short names for the table, and for the codec. In CPython 3.11 looking up a member through its enum
# takes ten times as long as a global name, and nearly as long as unpacking a structure.
NONE = Payload.NONE
BYTES = Payload.BYTES
SIZE = Payload.SIZE
IN_SIZE = Payload.IN_SIZE
NAME = Payload.NAME
NAMES = Payload.NAMES
NAME_VALUE = Payload.NAME_VALUE
RECORDS = Payload.RECORDS

# An answer to GETXATTR or LISTXATTR is a fuse_getxattr_out if size was 0, otherwise the bytes.
# An INIT or CUSE_INIT longer than ours is from a newer kernel; the extra part is skipped.
# fmt: off
_ROWS = (
    Operation(fuse.FUSE_LOOKUP, "FUSE_LOOKUP", 1, None, NAME, fs.fuse_entry_out),
    Operation(fuse.FUSE_FORGET, "FUSE_FORGET", 1, fs.fuse_forget_in, has_reply=False),
    Operation(fuse.FUSE_GETATTR, "FUSE_GETATTR", 1, fs.fuse_getattr_in, NONE, fs.fuse_attr_out),
    Operation(fuse.FUSE_SETATTR, "FUSE_SETATTR", 1, fs.fuse_setattr_in, NONE, fs.fuse_attr_out),
    Operation(fuse.FUSE_READLINK, "FUSE_READLINK", 1, None, NONE, None, BYTES),
    Operation(fuse.FUSE_SYMLINK, "FUSE_SYMLINK", 1, None, NAMES, fs.fuse_entry_out),
    Operation(fuse.FUSE_MKNOD, "FUSE_MKNOD", 1, fs.fuse_mknod_in, NAME, fs.fuse_entry_out,
        short=Short(8, before_minor=12)),
    Operation(fuse.FUSE_MKDIR, "FUSE_MKDIR", 1, fs.fuse_mkdir_in, NAME, fs.fuse_entry_out),
    Operation(fuse.FUSE_UNLINK, "FUSE_UNLINK", 1, None, NAME),
    Operation(fuse.FUSE_RMDIR, "FUSE_RMDIR", 1, None, NAME),
    Operation(fuse.FUSE_RENAME, "FUSE_RENAME", 1, fs.fuse_rename_in, NAMES),
    Operation(fuse.FUSE_LINK, "FUSE_LINK", 1, fs.fuse_link_in, NAME, fs.fuse_entry_out),
    Operation(fuse.FUSE_OPEN, "FUSE_OPEN", 1, fuse.fuse_open_in, NONE, fuse.fuse_open_out),
    Operation(fuse.FUSE_READ, "FUSE_READ", 1, fuse.fuse_read_in, NONE, None, BYTES),
    Operation(fuse.FUSE_WRITE, "FUSE_WRITE", 1, fuse.fuse_write_in, SIZE, fuse.fuse_write_out),
    Operation(fuse.FUSE_STATFS, "FUSE_STATFS", 1, None, NONE, fs.fuse_statfs_out),
    Operation(fuse.FUSE_RELEASE, "FUSE_RELEASE", 1, fuse.fuse_release_in),
    Operation(fuse.FUSE_FSYNC, "FUSE_FSYNC", 1, fuse.fuse_fsync_in),
    Operation(fuse.FUSE_SETXATTR, "FUSE_SETXATTR", 1, fs.fuse_setxattr_in, NAME_VALUE,
        short=Short(8, without_flag=fuse.FUSE_SETXATTR_EXT)),
    Operation(fuse.FUSE_GETXATTR, "FUSE_GETXATTR", 1, fs.fuse_getxattr_in, NAME, None, BYTES),
    Operation(fuse.FUSE_LISTXATTR, "FUSE_LISTXATTR", 1, fs.fuse_getxattr_in, NONE, None, BYTES),
    Operation(fuse.FUSE_REMOVEXATTR, "FUSE_REMOVEXATTR", 1, None, NAME),
    Operation(fuse.FUSE_FLUSH, "FUSE_FLUSH", 1, fuse.fuse_flush_in),
    Operation(fuse.FUSE_INIT, "FUSE_INIT", 1, fuse.fuse_init_in, BYTES, fuse.fuse_init_out,
        short=Short(16, before_minor=36, by_length=True), short_replies=(8, 24)),
    Operation(fuse.FUSE_OPENDIR, "FUSE_OPENDIR", 1, fuse.fuse_open_in, NONE, fuse.fuse_open_out),
    Operation(fuse.FUSE_READDIR, "FUSE_READDIR", 1, fuse.fuse_read_in, NONE, None, BYTES),
    Operation(fuse.FUSE_RELEASEDIR, "FUSE_RELEASEDIR", 1, fuse.fuse_release_in),
    Operation(fuse.FUSE_FSYNCDIR, "FUSE_FSYNCDIR", 2, fuse.fuse_fsync_in),
    Operation(fuse.FUSE_GETLK, "FUSE_GETLK", 7, fs.fuse_lk_in, NONE, fs.fuse_lk_out),
    Operation(fuse.FUSE_SETLK, "FUSE_SETLK", 7, fs.fuse_lk_in),
    Operation(fuse.FUSE_SETLKW, "FUSE_SETLKW", 7, fs.fuse_lk_in),
    Operation(fuse.FUSE_ACCESS, "FUSE_ACCESS", 3, fs.fuse_access_in),
    Operation(fuse.FUSE_CREATE, "FUSE_CREATE", 3, fs.fuse_create_in, NAME, fs.create_out,
        short=Short(8, before_minor=12)),
    Operation(fuse.FUSE_INTERRUPT, "FUSE_INTERRUPT", 7, fuse.fuse_interrupt_in, has_reply=False),
    Operation(fuse.FUSE_BMAP, "FUSE_BMAP", 8, fs.fuse_bmap_in, NONE, fs.fuse_bmap_out),
    Operation(fuse.FUSE_DESTROY, "FUSE_DESTROY", 8),
    Operation(fuse.FUSE_IOCTL, "FUSE_IOCTL", 11, fuse.fuse_ioctl_in, IN_SIZE, fuse.fuse_ioctl_out,
        BYTES),
    Operation(fuse.FUSE_POLL, "FUSE_POLL", 11, fuse.fuse_poll_in, NONE, fuse.fuse_poll_out),
    Operation(fuse.FUSE_NOTIFY_REPLY, "FUSE_NOTIFY_REPLY", 15, notify.fuse_notify_retrieve_in, SIZE,
        has_reply=False),
    Operation(fuse.FUSE_BATCH_FORGET, "FUSE_BATCH_FORGET", 16, fs.fuse_batch_forget_in, RECORDS,
        has_reply=False, record=fs.fuse_forget_one),
    Operation(fuse.FUSE_FALLOCATE, "FUSE_FALLOCATE", 19, fs.fuse_fallocate_in),
    Operation(fuse.FUSE_READDIRPLUS, "FUSE_READDIRPLUS", 21, fuse.fuse_read_in, NONE, None, BYTES),
    Operation(fuse.FUSE_RENAME2, "FUSE_RENAME2", 23, fs.fuse_rename2_in, NAMES),
    Operation(fuse.FUSE_LSEEK, "FUSE_LSEEK", 24, fs.fuse_lseek_in, NONE, fs.fuse_lseek_out),
    Operation(fuse.FUSE_COPY_FILE_RANGE, "FUSE_COPY_FILE_RANGE", 28, fs.fuse_copy_file_range_in,
        NONE, fuse.fuse_write_out),
    Operation(fuse.FUSE_SETUPMAPPING, "FUSE_SETUPMAPPING", 31, fs.fuse_setupmapping_in),
    Operation(fuse.FUSE_REMOVEMAPPING, "FUSE_REMOVEMAPPING", 31, fs.fuse_removemapping_in,
        RECORDS, record=fs.fuse_removemapping_one),
    Operation(fuse.FUSE_SYNCFS, "FUSE_SYNCFS", 34, fs.fuse_syncfs_in),
    Operation(fuse.FUSE_TMPFILE, "FUSE_TMPFILE", 37, fs.fuse_create_in, NAME, fs.create_out),
    Operation(fuse.FUSE_STATX, "FUSE_STATX", 39, fs.fuse_statx_in, NONE, fs.fuse_statx_out),
    Operation(fuse.FUSE_COPY_FILE_RANGE_64, "FUSE_COPY_FILE_RANGE_64", 45,
        fs.fuse_copy_file_range_in, NONE, fs.fuse_copy_file_range_out),
    Operation(cuse.CUSE_INIT, "CUSE_INIT", 11, cuse.cuse_init_in, BYTES, cuse.cuse_init_out, BYTES),
    Operation(cuse.RECUSE_MMAP, "RECUSE_MMAP", 11, cuse.recuse_mmap_in, NONE,
        cuse.recuse_mmap_out),
    Operation(cuse.RECUSE_MMAP_COMMIT, "RECUSE_MMAP_COMMIT", 11, cuse.recuse_mmap_commit_in),
    Operation(cuse.RECUSE_MUNMAP, "RECUSE_MUNMAP", 11, cuse.recuse_munmap_in),
    Operation(cuse.RECUSE_SHOW, "RECUSE_SHOW", 11, None, NAME, None, BYTES),
    Operation(cuse.RECUSE_DESCRIBE, "RECUSE_DESCRIBE", 1, None, NONE, cuse.recuse_describe_out,
        BYTES),
    Operation(cuse.CUSE_INIT_BSWAP_RESERVED, "CUSE_INIT_BSWAP_RESERVED", 11, None, BYTES, None,
        BYTES),
    Operation(fuse.FUSE_INIT_BSWAP_RESERVED, "FUSE_INIT_BSWAP_RESERVED", 1, None, BYTES, None,
        BYTES),
)
# fmt: on

OPERATIONS: dict[int, Operation] = {row.opcode: row for row in _ROWS}
