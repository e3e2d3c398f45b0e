"""Structures that only requests of filesystems carry.

The same header and licence as `recuse.wire.fuse`. Names that start with two underscores in the
header have none here.
"""

from recuse.wire.declare import (
    Structure,
    field,
    s32,
    s64,
    structure,
    u16,
    u16x1,
    u32,
    u32x6,
    u64,
    u64x2,
    u64x14,
)
from recuse.wire.fuse import fuse_open_out
from recuse.wire.ioctl import IO, IOR, IOW


@structure
class fuse_attr(Structure):
    """Attributes of a file; times are seconds and nanoseconds, blocks are of 512 bytes."""

    ino: u64 = 0
    size: u64 = 0
    blocks: u64 = 0
    atime: u64 = 0
    mtime: u64 = 0
    ctime: u64 = 0
    atimensec: u32 = 0
    mtimensec: u32 = 0
    ctimensec: u32 = 0
    mode: u32 = 0
    nlink: u32 = 0
    uid: u32 = 0
    gid: u32 = 0
    rdev: u32 = 0
    blksize: u32 = 0
    flags: u32 = 0


@structure
class fuse_sx_time(Structure):
    """A time in fuse_statx."""

    tv_sec: s64 = 0
    tv_nsec: u32 = 0
    reserved: s32 = 0


@structure
class fuse_statx(Structure):
    """What statx(2) returns."""

    mask: u32 = 0
    blksize: u32 = 0
    attributes: u64 = 0
    nlink: u32 = 0
    uid: u32 = 0
    gid: u32 = 0
    mode: u16 = 0
    spare0: u16x1 = (0,) * 1
    ino: u64 = 0
    size: u64 = 0
    blocks: u64 = 0
    attributes_mask: u64 = 0
    atime: fuse_sx_time = field(default_factory=fuse_sx_time)
    btime: fuse_sx_time = field(default_factory=fuse_sx_time)
    ctime: fuse_sx_time = field(default_factory=fuse_sx_time)
    mtime: fuse_sx_time = field(default_factory=fuse_sx_time)
    rdev_major: u32 = 0
    rdev_minor: u32 = 0
    dev_major: u32 = 0
    dev_minor: u32 = 0
    spare2: u64x14 = (0,) * 14


@structure
class fuse_kstatfs(Structure):
    """What statfs(2) returns."""

    blocks: u64 = 0
    bfree: u64 = 0
    bavail: u64 = 0
    files: u64 = 0
    ffree: u64 = 0
    bsize: u32 = 0
    namelen: u32 = 0
    frsize: u32 = 0
    padding: u32 = 0
    spare: u32x6 = (0,) * 6


@structure
class fuse_file_lock(Structure):
    """A lock on the bytes start to end, both included; pid is a process's."""

    start: u64 = 0
    end: u64 = 0
    type: u32 = 0
    pid: u32 = 0


@structure
class fuse_entry_out(Structure):
    """Answer to LOOKUP and to requests that make a node; the valid times are for the caches."""

    nodeid: u64 = 0
    generation: u64 = 0
    entry_valid: u64 = 0
    attr_valid: u64 = 0
    entry_valid_nsec: u32 = 0
    attr_valid_nsec: u32 = 0
    attr: fuse_attr = field(default_factory=fuse_attr)


@structure
class fuse_forget_in(Structure):
    """Request of FORGET: how many lookups are taken back."""

    nlookup: u64 = 0


@structure
class fuse_forget_one(Structure):
    """One node of a BATCH_FORGET."""

    nodeid: u64 = 0
    nlookup: u64 = 0


@structure
class fuse_batch_forget_in(Structure):
    """Request of BATCH_FORGET; ``count`` fuse_forget_one follow."""

    count: u32 = 0
    dummy: u32 = 0


@structure
class fuse_getattr_in(Structure):
    """Request of GETATTR; fh is valid with FUSE_GETATTR_FH."""

    getattr_flags: u32 = 0
    dummy: u32 = 0
    fh: u64 = 0


@structure
class fuse_attr_out(Structure):
    """Answer to GETATTR and SETATTR."""

    attr_valid: u64 = 0
    attr_valid_nsec: u32 = 0
    dummy: u32 = 0
    attr: fuse_attr = field(default_factory=fuse_attr)


@structure
class fuse_statx_in(Structure):
    """Request of STATX."""

    getattr_flags: u32 = 0
    reserved: u32 = 0
    fh: u64 = 0
    sx_flags: u32 = 0
    sx_mask: u32 = 0


@structure
class fuse_statx_out(Structure):
    """Answer to STATX."""

    attr_valid: u64 = 0
    attr_valid_nsec: u32 = 0
    flags: u32 = 0
    spare: u64x2 = (0,) * 2
    stat: fuse_statx = field(default_factory=fuse_statx)


@structure
class fuse_mknod_in(Structure):
    """Request of MKNOD, a name follows; before 7.12 it ends after ``rdev``."""

    mode: u32 = 0
    rdev: u32 = 0
    umask: u32 = 0
    padding: u32 = 0


@structure
class fuse_mkdir_in(Structure):
    """Request of MKDIR, a name follows; ``umask`` is 0 before 7.12."""

    mode: u32 = 0
    umask: u32 = 0


@structure
class fuse_rename_in(Structure):
    """Request of RENAME; the old and the new name follow."""

    newdir: u64 = 0


@structure
class fuse_rename2_in(Structure):
    """Request of RENAME2; the old and the new name follow; flags are renameat2's."""

    newdir: u64 = 0
    flags: u32 = 0
    padding: u32 = 0


@structure
class fuse_link_in(Structure):
    """Request of LINK; the new name follows."""

    oldnodeid: u64 = 0


@structure
class fuse_setattr_in(Structure):
    """Request of SETATTR; ``valid`` (FATTR_*) says which of the other fields count."""

    valid: u32 = 0
    padding: u32 = 0
    fh: u64 = 0
    size: u64 = 0
    lock_owner: u64 = 0
    atime: u64 = 0
    mtime: u64 = 0
    ctime: u64 = 0
    atimensec: u32 = 0
    mtimensec: u32 = 0
    ctimensec: u32 = 0
    mode: u32 = 0
    unused4: u32 = 0
    uid: u32 = 0
    gid: u32 = 0
    unused5: u32 = 0


@structure
class fuse_create_in(Structure):
    """Request of CREATE and TMPFILE, a name follows; before 7.12 it ends after ``mode``."""

    flags: u32 = 0
    mode: u32 = 0
    umask: u32 = 0
    open_flags: u32 = 0


@structure
class create_out(Structure):
    """Answer to CREATE and TMPFILE: two structures in a row; the header has no name for them."""

    entry: fuse_entry_out = field(default_factory=fuse_entry_out)
    open: fuse_open_out = field(default_factory=fuse_open_out)


@structure
class fuse_statfs_out(Structure):
    """Answer to STATFS."""

    st: fuse_kstatfs = field(default_factory=fuse_kstatfs)


@structure
class fuse_setxattr_in(Structure):
    """Request of SETXATTR, name and value follow.

    Without FUSE_SETXATTR_EXT it ends after ``flags``.
    """

    size: u32 = 0
    flags: u32 = 0
    setxattr_flags: u32 = 0
    padding: u32 = 0


@structure
class fuse_getxattr_in(Structure):
    """Request of GETXATTR (a name follows) and LISTXATTR; size 0 asks for the size."""

    size: u32 = 0
    padding: u32 = 0


@structure
class fuse_getxattr_out(Structure):
    """Answer to GETXATTR and LISTXATTR with size 0."""

    size: u32 = 0
    padding: u32 = 0


@structure
class fuse_lk_in(Structure):
    """Request of GETLK, SETLK and SETLKW."""

    fh: u64 = 0
    owner: u64 = 0
    lk: fuse_file_lock = field(default_factory=fuse_file_lock)
    lk_flags: u32 = 0
    padding: u32 = 0


@structure
class fuse_lk_out(Structure):
    """Answer to GETLK."""

    lk: fuse_file_lock = field(default_factory=fuse_file_lock)


@structure
class fuse_access_in(Structure):
    """Request of ACCESS; mask is access(2)'s."""

    mask: u32 = 0
    padding: u32 = 0


@structure
class fuse_bmap_in(Structure):
    """Request of BMAP."""

    block: u64 = 0
    blocksize: u32 = 0
    padding: u32 = 0


@structure
class fuse_bmap_out(Structure):
    """Answer to BMAP."""

    block: u64 = 0


@structure
class fuse_fallocate_in(Structure):
    """Request of FALLOCATE; mode is fallocate(2)'s."""

    fh: u64 = 0
    offset: u64 = 0
    length: u64 = 0
    mode: u32 = 0
    padding: u32 = 0


@structure
class fuse_dirent(Structure):
    """One name of READDIR's answer; ``namelen`` bytes follow, and zeros up to 8."""

    ino: u64 = 0
    off: u64 = 0
    namelen: u32 = 0
    type: u32 = 0


@structure
class fuse_direntplus(Structure):
    """One name of READDIRPLUS's answer; the name follows as in fuse_dirent."""

    entry_out: fuse_entry_out = field(default_factory=fuse_entry_out)
    dirent: fuse_dirent = field(default_factory=fuse_dirent)


@structure
class fuse_backing_map(Structure):
    """Argument of FUSE_DEV_IOC_BACKING_OPEN."""

    fd: s32 = 0
    flags: u32 = 0
    padding: u64 = 0


@structure
class fuse_lseek_in(Structure):
    """Request of LSEEK; whence is SEEK_HOLE or SEEK_DATA."""

    fh: u64 = 0
    offset: u64 = 0
    whence: u32 = 0
    padding: u32 = 0


@structure
class fuse_lseek_out(Structure):
    """Answer to LSEEK."""

    offset: u64 = 0


@structure
class fuse_copy_file_range_in(Structure):
    """Request of COPY_FILE_RANGE and COPY_FILE_RANGE_64."""

    fh_in: u64 = 0
    off_in: u64 = 0
    nodeid_out: u64 = 0
    fh_out: u64 = 0
    off_out: u64 = 0
    len: u64 = 0
    flags: u64 = 0


@structure
class fuse_copy_file_range_out(Structure):
    """Answer to COPY_FILE_RANGE_64."""

    bytes_copied: u64 = 0


@structure
class fuse_setupmapping_in(Structure):
    """Request of SETUPMAPPING: maps a part of the file into the DAX window."""

    fh: u64 = 0
    foffset: u64 = 0
    len: u64 = 0
    flags: u64 = 0
    moffset: u64 = 0


@structure
class fuse_removemapping_in(Structure):
    """Request of REMOVEMAPPING; ``count`` fuse_removemapping_one follow."""

    count: u32 = 0


@structure
class fuse_removemapping_one(Structure):
    """A part of the DAX window."""

    moffset: u64 = 0
    len: u64 = 0


@structure
class fuse_syncfs_in(Structure):
    """Request of SYNCFS."""

    padding: u64 = 0


@structure
class fuse_secctx(Structure):
    """One security context; its name and ``size`` bytes follow."""

    size: u32 = 0
    padding: u32 = 0


@structure
class fuse_secctx_header(Structure):
    """Starts the security contexts; size counts all of them and this header."""

    size: u32 = 0
    nr_secctx: u32 = 0


@structure
class fuse_ext_header(Structure):
    """Starts an extension of a request; size counts it too."""

    size: u32 = 0
    type: u32 = 0


@structure
class fuse_supp_groups(Structure):
    """Extension FUSE_EXT_GROUPS; ``nr_groups`` u32 follow."""

    nr_groups: u32 = 0


# ioctl commands of /dev/fuse.
FUSE_DEV_IOC_MAGIC = 229
FUSE_DEV_IOC_CLONE = IOR(FUSE_DEV_IOC_MAGIC, 0, 4)
FUSE_DEV_IOC_BACKING_OPEN = IOW(FUSE_DEV_IOC_MAGIC, 1, fuse_backing_map.SIZE)
FUSE_DEV_IOC_BACKING_CLOSE = IOW(FUSE_DEV_IOC_MAGIC, 2, 4)
FUSE_DEV_IOC_SYNC_INIT = IO(FUSE_DEV_IOC_MAGIC, 3)
