"""What CUSE adds to the protocol (the header's cuse_* and CUSE_*), and this project's own flags.

The same header and licence as `recuse.wire.fuse`.
"""

from recuse.wire.declare import Structure, s32, structure, u32, u32x10, u64

CUSE_INIT = 4096
CUSE_INIT_BSWAP_RESERVED = 1048576
"""CUSE_INIT << 8: never sent, so a server that reads it has the wrong byte order."""

CUSE_INIT_INFO_MAX = 4096
"""Most bytes of KEY=VALUE strings after cuse_init_out, their NULs counted."""

CUSE_UNRESTRICTED_IOCTL = 1 << 0

# Bits that Linux neither offers nor accepts. recuse's kernel half offers them. A server sets them
# in its answer only if they were offered.
RECUSE_SEEKABLE = 1 << 16
"""The device has positions: READ and WRITE carry the real offset, and lseek counts."""
RECUSE_NODE_INFO = 1 << 17
"""DEVMODE, DEVUID and DEVGID among the info strings say how the device's node looks."""
RECUSE_NEW_FILES = 1 << 18
"""Answers to IOCTL may carry an open file (RECUSE_IOCTL_FILE)."""
RECUSE_SYSFS = 1 << 19
"""SUBSYSTEM, ATTRIBUTE and LINK among the info strings say what the device has in /sys in
addition to CUSE's own files, and the server answers RECUSE_SHOW."""
RECUSE_MAPPING = 1 << 20
"""The server answers RECUSE_MMAP. Offered if answers can carry a file descriptor."""

RECUSE_FILE_FLAGS = 1 << 21
"""IOCTL carries the file's current O_NONBLOCK, as set by fcntl (RECUSE_IOCTL_NONBLOCK)."""

RECUSE_IOCTL_NONBLOCK = 1 << 17
"""In fuse_ioctl_in.flags: the file has O_NONBLOCK now."""

RECUSE_IOCTL_FILE = 1 << 16
"""In fuse_ioctl_out.flags: a recuse_ioctl_file lies between that structure and the output."""

RECUSE_MMAP = 4352
"""A program wants to map the device: which memory? The answer carries a descriptor."""
RECUSE_MMAP_COMMIT = 4353
"""The result of a RECUSE_MMAP that the server accepted; if the server refuses, mmap fails."""
RECUSE_MUNMAP = 4354
"""The last part of a mapping, and of its copies in child processes, is gone."""

RECUSE_MMAP_DONT_COPY = 1 << 0
"""Children do not inherit the mapping."""
RECUSE_MMAP_DONT_EXPAND = 1 << 1
"""mremap cannot make it longer."""

RECUSE_SHOW = 4356
"""Asks for a declared attribute's content: its path with a NUL. The answer is one page at most."""

RECUSE_DESCRIBE = 4357
"""How is a filesystem to be mounted? Comes before INIT. A name follows the answer's structure."""

RECUSE_DESCRIBE_READ_ONLY = 1 << 0


@structure
class cuse_init_in(Structure):
    """Request of CUSE_INIT: the kernel's version and what it offers."""

    major: u32 = 0
    minor: u32 = 0
    unused: u32 = 0
    flags: u32 = 0


@structure
class cuse_init_out(Structure):
    """Answer to CUSE_INIT; NUL-terminated KEY=VALUE strings follow.

    max_read and max_write are in bytes (taken as at least 4096); dev_major 0 asks for a number.
    """

    major: u32 = 0
    minor: u32 = 0
    unused: u32 = 0
    flags: u32 = 0
    max_read: u32 = 0
    max_write: u32 = 0
    dev_major: u32 = 0
    dev_minor: u32 = 0
    spare: u32x10 = (0,) * 10


@structure
class recuse_ioctl_file(Structure):
    """A new open file of the device, which the caller gets when the ioctl has succeeded.

    fh is its handle, never used for another file. There will be one RELEASE of it, even if the
    caller cannot have it. flags are those of open(2): the access mode, and O_CLOEXEC for the
    descriptor. offset is the place in the output for the descriptor's number, an s32.
    """

    fh: u64 = 0
    flags: u32 = 0
    offset: u32 = 0


@structure
class recuse_mmap_in(Structure):
    """Request of RECUSE_MMAP: the arguments of mmap(2); len is a multiple of the page size."""

    fh: u64 = 0
    addr: u64 = 0
    len: u64 = 0
    prot: s32 = 0
    flags: s32 = 0
    offset: u64 = 0


@structure
class recuse_mmap_out(Structure):
    """Answer to RECUSE_MMAP; it carries the memory's descriptor.

    area is the server's own number for that memory, at least 1. flags are RECUSE_MMAP_DONT_COPY and
    RECUSE_MMAP_DONT_EXPAND.
    """

    area: s32 = 0
    flags: u32 = 0


@structure
class recuse_mmap_commit_in(Structure):
    """Request of RECUSE_MMAP_COMMIT; its answer has no payload.

    area is from the answer to the RECUSE_MMAP whose number is mmap_unique, or a negative errno if
    the mapping failed. addr is where it is mapped.
    """

    fh: u64 = 0
    mmap_unique: u64 = 0
    addr: u64 = 0
    len: u64 = 0
    prot: s32 = 0
    flags: s32 = 0
    area: s32 = 0
    padding: u32 = 0
    offset: u64 = 0


@structure
class recuse_munmap_in(Structure):
    """Request of RECUSE_MUNMAP; its answer has no payload."""

    fh: u64 = 0
    mmap_unique: u64 = 0
    addr: u64 = 0
    len: u64 = 0
    area: s32 = 0
    padding: u32 = 0


@structure
class recuse_describe_out(Structure):
    """Answer to RECUSE_DESCRIBE; the name follows, which makes the type ``fuse.NAME``.

    flags is RECUSE_DESCRIBE_READ_ONLY or 0; max_read is in bytes.
    """

    flags: u32 = 0
    max_read: u32 = 0
