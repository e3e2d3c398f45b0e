"""What stat(2) and similar calls say of a file, whatever the architecture's structure for it."""

from __future__ import annotations

from recuse.runtime.records import NamedTuple


class Status(NamedTuple):
    """A file's status. Devices' numbers are in the kernel's 32-bit encoding (`os.makedev`)."""

    device: int
    """The number of the filesystem that it is on."""
    inode: int
    mode: int
    links: int
    uid: int
    gid: int
    rdev: int
    size: int
    block_size: int
    stamps: tuple[int, int, int, int, int, int]
    """Access, modification and change time, each in seconds since the epoch and nanoseconds."""
    blocks: int = 0
    """Of 512 bytes, as st_blocks."""
    birth_ns: int | None = None
    """When it was made, if that is known."""
