"""The protocol's constants, and the structures that both devices and filesystems need.

Those that only filesystems need are in `recuse.wire.filesystem` and `recuse.wire.notify`, CUSE's
own in `recuse.wire.cuse`.
Names and numbers are those of Linux's include/uapi/linux/fuse.h, version 7.45, which is

    Copyright (C) 2001-2007 Miklos Szeredi. All rights reserved.

    Redistribution and use in source and binary forms, with or without
    modification, are permitted provided that the following conditions
    are met:
    1. Redistributions of source code must retain the above copyright
       notice, this list of conditions and the following disclaimer.
    2. Redistributions in binary form must reproduce the above copyright
       notice, this list of conditions and the following disclaimer in the
       documentation and/or other materials provided with the distribution.

    THIS SOFTWARE IS PROVIDED BY AUTHOR AND CONTRIBUTORS ``AS IS'' AND
    ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE
    IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE
    ARE DISCLAIMED.  IN NO EVENT SHALL AUTHOR OR CONTRIBUTORS BE LIABLE
    FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL
    DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS
    OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION)
    HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT
    LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY
    OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF
    SUCH DAMAGE.
"""

from recuse.wire.declare import Structure, s32, structure, u16, u16x11, u32, u32x11, u64

FUSE_KERNEL_VERSION = 7
FUSE_KERNEL_MINOR_VERSION = 45

FUSE_ROOT_ID = 1
FUSE_MIN_READ_BUFFER = 8192
"""Smallest size of the buffer that a server reads requests with."""
FUSE_INVALID_UIDGID = 0xFFFFFFFF
"""uid and gid of a request if the caller's do not exist in the server's user namespace."""
FUSE_UNIQUE_RESEND = 1 << 63
"""Set in the unique number of a request that is sent again after FUSE_NOTIFY_RESEND."""

# Opcodes.
FUSE_LOOKUP = 1
FUSE_FORGET = 2
FUSE_GETATTR = 3
FUSE_SETATTR = 4
FUSE_READLINK = 5
FUSE_SYMLINK = 6
FUSE_MKNOD = 8
FUSE_MKDIR = 9
FUSE_UNLINK = 10
FUSE_RMDIR = 11
FUSE_RENAME = 12
FUSE_LINK = 13
FUSE_OPEN = 14
FUSE_READ = 15
FUSE_WRITE = 16
FUSE_STATFS = 17
FUSE_RELEASE = 18
FUSE_FSYNC = 20
FUSE_SETXATTR = 21
FUSE_GETXATTR = 22
FUSE_LISTXATTR = 23
FUSE_REMOVEXATTR = 24
FUSE_FLUSH = 25
FUSE_INIT = 26
FUSE_OPENDIR = 27
FUSE_READDIR = 28
FUSE_RELEASEDIR = 29
FUSE_FSYNCDIR = 30
FUSE_GETLK = 31
FUSE_SETLK = 32
FUSE_SETLKW = 33
FUSE_ACCESS = 34
FUSE_CREATE = 35
FUSE_INTERRUPT = 36
FUSE_BMAP = 37
FUSE_DESTROY = 38
FUSE_IOCTL = 39
FUSE_POLL = 40
FUSE_NOTIFY_REPLY = 41
FUSE_BATCH_FORGET = 42
FUSE_FALLOCATE = 43
FUSE_READDIRPLUS = 44
FUSE_RENAME2 = 45
FUSE_LSEEK = 46
FUSE_COPY_FILE_RANGE = 47
FUSE_SETUPMAPPING = 48
FUSE_REMOVEMAPPING = 49
FUSE_SYNCFS = 50
FUSE_TMPFILE = 51
FUSE_STATX = 52
FUSE_COPY_FILE_RANGE_64 = 53
FUSE_INIT_BSWAP_RESERVED = 436207616
"""FUSE_INIT << 24: never sent, so a server that reads it has the wrong byte order."""

# Notifications: what `error` says in an out header whose `unique` is 0.
FUSE_NOTIFY_POLL = 1
FUSE_NOTIFY_INVAL_INODE = 2
FUSE_NOTIFY_INVAL_ENTRY = 3
FUSE_NOTIFY_STORE = 4
FUSE_NOTIFY_RETRIEVE = 5
FUSE_NOTIFY_DELETE = 6
FUSE_NOTIFY_RESEND = 7
FUSE_NOTIFY_INC_EPOCH = 8
FUSE_NOTIFY_PRUNE = 9

# INIT flags.  Bits 32 and up travel shifted down in `flags2`, valid with FUSE_INIT_EXT only.
FUSE_ASYNC_READ = 1 << 0
FUSE_POSIX_LOCKS = 1 << 1
FUSE_FILE_OPS = 1 << 2
FUSE_ATOMIC_O_TRUNC = 1 << 3
FUSE_EXPORT_SUPPORT = 1 << 4
FUSE_BIG_WRITES = 1 << 5
FUSE_DONT_MASK = 1 << 6
FUSE_SPLICE_WRITE = 1 << 7
FUSE_SPLICE_MOVE = 1 << 8
FUSE_SPLICE_READ = 1 << 9
FUSE_FLOCK_LOCKS = 1 << 10
FUSE_HAS_IOCTL_DIR = 1 << 11
FUSE_AUTO_INVAL_DATA = 1 << 12
FUSE_DO_READDIRPLUS = 1 << 13
FUSE_READDIRPLUS_AUTO = 1 << 14
FUSE_ASYNC_DIO = 1 << 15
FUSE_WRITEBACK_CACHE = 1 << 16
FUSE_NO_OPEN_SUPPORT = 1 << 17
FUSE_PARALLEL_DIROPS = 1 << 18
FUSE_HANDLE_KILLPRIV = 1 << 19
FUSE_POSIX_ACL = 1 << 20
FUSE_ABORT_ERROR = 1 << 21
FUSE_MAX_PAGES = 1 << 22
FUSE_CACHE_SYMLINKS = 1 << 23
FUSE_NO_OPENDIR_SUPPORT = 1 << 24
FUSE_EXPLICIT_INVAL_DATA = 1 << 25
FUSE_MAP_ALIGNMENT = 1 << 26
FUSE_SUBMOUNTS = 1 << 27
FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
FUSE_SETXATTR_EXT = 1 << 29
FUSE_INIT_EXT = 1 << 30
FUSE_INIT_RESERVED = 1 << 31
FUSE_SECURITY_CTX = 1 << 32
FUSE_HAS_INODE_DAX = 1 << 33
FUSE_CREATE_SUPP_GROUP = 1 << 34
FUSE_HAS_EXPIRE_ONLY = 1 << 35
FUSE_DIRECT_IO_ALLOW_MMAP = 1 << 36
FUSE_PASSTHROUGH = 1 << 37
FUSE_NO_EXPORT_SUPPORT = 1 << 38
FUSE_HAS_RESEND = 1 << 39
FUSE_ALLOW_IDMAP = 1 << 40
FUSE_OVER_IO_URING = 1 << 41
FUSE_REQUEST_TIMEOUT = 1 << 42

# fuse_setattr_in.valid
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_LOCKOWNER = 1 << 9
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

# fuse_open_in.open_flags and fuse_create_in.open_flags
FUSE_OPEN_KILL_SUIDGID = 1 << 0

# fuse_open_out.open_flags
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
FOPEN_STREAM = 1 << 4
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
FOPEN_PASSTHROUGH = 1 << 7

# fuse_release_in.release_flags
FUSE_RELEASE_FLUSH = 1 << 0
FUSE_RELEASE_FLOCK_UNLOCK = 1 << 1

# fuse_getattr_in.getattr_flags
FUSE_GETATTR_FH = 1 << 0

# fuse_lk_in.lk_flags
FUSE_LK_FLOCK = 1 << 0

# fuse_write_in.write_flags and fuse_read_in.read_flags
FUSE_WRITE_CACHE = 1 << 0
FUSE_WRITE_LOCKOWNER = 1 << 1
FUSE_WRITE_KILL_SUIDGID = 1 << 2
FUSE_READ_LOCKOWNER = 1 << 1

# fuse_ioctl_in.flags; FUSE_IOCTL_RETRY is for fuse_ioctl_out.flags
FUSE_IOCTL_COMPAT = 1 << 0
FUSE_IOCTL_UNRESTRICTED = 1 << 1
FUSE_IOCTL_RETRY = 1 << 2
FUSE_IOCTL_32BIT = 1 << 3
FUSE_IOCTL_DIR = 1 << 4
FUSE_IOCTL_COMPAT_X32 = 1 << 5
FUSE_IOCTL_MAX_IOV = 256
"""Most fuse_ioctl_iovec of one answer, in_iovs and out_iovs together."""

# fuse_poll_in.flags
FUSE_POLL_SCHEDULE_NOTIFY = 1 << 0

# fuse_fsync_in.fsync_flags
FUSE_FSYNC_FDATASYNC = 1 << 0

# fuse_attr.flags
FUSE_ATTR_SUBMOUNT = 1 << 0
FUSE_ATTR_DAX = 1 << 1

# fuse_setxattr_in.setxattr_flags
FUSE_SETXATTR_ACL_KILL_SGID = 1 << 0

# fuse_notify_inval_entry_out.flags
FUSE_EXPIRE_ONLY = 1 << 0

# fuse_setupmapping_in.flags
FUSE_SETUPMAPPING_FLAG_WRITE = 1 << 0
FUSE_SETUPMAPPING_FLAG_READ = 1 << 1

# fuse_ext_header.type: up to 31 it is the number of security contexts (fuse_secctx_header).
FUSE_MAX_NR_SECCTX = 31
FUSE_EXT_GROUPS = 32

# Sizes of structures in older minor versions.
FUSE_COMPAT_ENTRY_OUT_SIZE = 120
FUSE_COMPAT_ATTR_OUT_SIZE = 96
FUSE_COMPAT_MKNOD_IN_SIZE = 8
FUSE_COMPAT_WRITE_IN_SIZE = 24
FUSE_COMPAT_STATFS_SIZE = 48
FUSE_COMPAT_SETXATTR_IN_SIZE = 8
FUSE_COMPAT_INIT_OUT_SIZE = 8
FUSE_COMPAT_22_INIT_OUT_SIZE = 24


@structure
class fuse_in_header(Structure):
    """Starts every request. len counts the whole message, total_extlen counts units of 8 bytes."""

    len: u32 = 0
    opcode: u32 = 0
    unique: u64 = 0
    nodeid: u64 = 0
    uid: u32 = 0
    gid: u32 = 0
    pid: u32 = 0
    total_extlen: u16 = 0
    padding: u16 = 0


@structure
class fuse_out_header(Structure):
    """Starts every answer: error is 0 or a negative errno; unique 0 makes it a notification."""

    len: u32 = 0
    error: s32 = 0
    unique: u64 = 0


@structure
class fuse_init_in(Structure):
    """Request of INIT; kernels before 7.36 end it after ``flags``."""

    major: u32 = 0
    minor: u32 = 0
    max_readahead: u32 = 0
    flags: u32 = 0
    flags2: u32 = 0
    unused: u32x11 = (0,) * 11


@structure
class fuse_init_out(Structure):
    """Answer to INIT; servers before 7.23 end it after ``max_write``."""

    major: u32 = 0
    minor: u32 = 0
    max_readahead: u32 = 0
    flags: u32 = 0
    max_background: u16 = 0
    congestion_threshold: u16 = 0
    max_write: u32 = 0
    time_gran: u32 = 0
    max_pages: u16 = 0
    map_alignment: u16 = 0
    flags2: u32 = 0
    max_stack_depth: u32 = 0
    request_timeout: u16 = 0
    unused: u16x11 = (0,) * 11


@structure
class fuse_open_in(Structure):
    """Request of OPEN and OPENDIR; flags are those of open(2)."""

    flags: u32 = 0
    open_flags: u32 = 0


@structure
class fuse_open_out(Structure):
    """Answer to OPEN and OPENDIR; fh comes back in every request on the open file."""

    fh: u64 = 0
    open_flags: u32 = 0
    backing_id: s32 = 0


@structure
class fuse_release_in(Structure):
    """Request of RELEASE and RELEASEDIR."""

    fh: u64 = 0
    flags: u32 = 0
    release_flags: u32 = 0
    lock_owner: u64 = 0


@structure
class fuse_flush_in(Structure):
    """Request of FLUSH."""

    fh: u64 = 0
    unused: u32 = 0
    padding: u32 = 0
    lock_owner: u64 = 0


@structure
class fuse_fsync_in(Structure):
    """Request of FSYNC and FSYNCDIR."""

    fh: u64 = 0
    fsync_flags: u32 = 0
    padding: u32 = 0


@structure
class fuse_read_in(Structure):
    """Request of READ, READDIR and READDIRPLUS; flags are the open file's."""

    fh: u64 = 0
    offset: u64 = 0
    size: u32 = 0
    read_flags: u32 = 0
    lock_owner: u64 = 0
    flags: u32 = 0
    padding: u32 = 0


@structure
class fuse_write_in(Structure):
    """Request of WRITE; ``size`` bytes follow."""

    fh: u64 = 0
    offset: u64 = 0
    size: u32 = 0
    write_flags: u32 = 0
    lock_owner: u64 = 0
    flags: u32 = 0
    padding: u32 = 0


@structure
class fuse_write_out(Structure):
    """Answer to WRITE and COPY_FILE_RANGE: how many bytes were taken."""

    size: u32 = 0
    padding: u32 = 0


@structure
class fuse_interrupt_in(Structure):
    """Request of INTERRUPT: the request to interrupt."""

    unique: u64 = 0


@structure
class fuse_ioctl_in(Structure):
    """Request of IOCTL; ``in_size`` bytes follow, and out_size is the most the answer may carry."""

    fh: u64 = 0
    flags: u32 = 0
    cmd: u32 = 0
    arg: u64 = 0
    in_size: u32 = 0
    out_size: u32 = 0


@structure
class fuse_ioctl_iovec(Structure):
    """One area of the caller's memory.

    Before 7.16 it was the server's struct iovec, which on 64-bit machines is the same 16 bytes.
    """

    base: u64 = 0
    len: u64 = 0


@structure
class fuse_ioctl_out(Structure):
    """Answer to IOCTL; with FUSE_IOCTL_RETRY in_iovs + out_iovs areas follow, else output."""

    result: s32 = 0
    flags: u32 = 0
    in_iovs: u32 = 0
    out_iovs: u32 = 0


@structure
class fuse_poll_in(Structure):
    """Request of POLL; ``events`` is 0 before 7.21."""

    fh: u64 = 0
    kh: u64 = 0
    flags: u32 = 0
    events: u32 = 0


@structure
class fuse_poll_out(Structure):
    """Answer to POLL."""

    revents: u32 = 0
    padding: u32 = 0


@structure
class fuse_notify_poll_wakeup_out(Structure):
    """Notification POLL: something may have changed for the poller ``kh``."""

    kh: u64 = 0
