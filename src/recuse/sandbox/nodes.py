"""Files that exist only in a sandbox."""

from __future__ import annotations

import stat
import time
from dataclasses import dataclass, field

from recuse.kernel.devices import CharDevice


@dataclass(slots=True, eq=False)
class Node:
    """A directory, a device, the channel ``/dev/cuse``, or a file that has no place in the tree."""

    path: bytes
    inode: int
    mode: int
    """Type and permission bits, as st_mode."""
    uid: int
    gid: int
    rdev: int = 0
    """The device's number, as st_rdev."""
    device: CharDevice | None = None
    """What is opened; None for a directory, and for the channel."""
    anonymous: bool = False
    """It stands for the files that the device's ioctls have made, and cannot be opened."""
    accessed_ns: int = field(default_factory=time.time_ns)
    modified_ns: int = field(default_factory=time.time_ns)
    changed_ns: int = field(default_factory=time.time_ns)

    @property
    def name(self) -> bytes:
        """The last component of the path."""
        return self.path.rpartition(b"/")[2]

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory that does not exist natively."""
        return stat.S_ISDIR(self.mode)
