"""Structures of notifications that only filesystems send.

The same header and licence as `recuse.wire.fuse`.
"""

from recuse.wire.declare import Structure, s64, structure, u32, u64


@structure
class fuse_notify_inval_inode_out(Structure):
    """Notification INVAL_INODE; off < 0 is for the attributes only, len <= 0 to the end."""

    ino: u64 = 0
    off: s64 = 0
    len: s64 = 0


@structure
class fuse_notify_inval_entry_out(Structure):
    """Notification INVAL_ENTRY; a name follows, its NUL not counted in ``namelen``."""

    parent: u64 = 0
    namelen: u32 = 0
    flags: u32 = 0


@structure
class fuse_notify_delete_out(Structure):
    """Notification DELETE; a name follows, its NUL not counted in ``namelen``."""

    parent: u64 = 0
    child: u64 = 0
    namelen: u32 = 0
    padding: u32 = 0


@structure
class fuse_notify_store_out(Structure):
    """Notification STORE; ``size`` bytes follow."""

    nodeid: u64 = 0
    offset: u64 = 0
    size: u32 = 0
    padding: u32 = 0


@structure
class fuse_notify_retrieve_out(Structure):
    """Notification RETRIEVE; the bytes come as request NOTIFY_REPLY."""

    notify_unique: u64 = 0
    nodeid: u64 = 0
    offset: u64 = 0
    size: u32 = 0
    padding: u32 = 0


@structure
class fuse_notify_retrieve_in(Structure):
    """Request of NOTIFY_REPLY, laid out like fuse_write_in; ``size`` bytes follow."""

    dummy1: u64 = 0
    offset: u64 = 0
    size: u32 = 0
    dummy2: u32 = 0
    dummy3: u64 = 0
    dummy4: u64 = 0


@structure
class fuse_notify_prune_out(Structure):
    """Notification PRUNE; ``count`` u64 node numbers follow."""

    count: u32 = 0
    padding: u32 = 0
    spare: u64 = 0
