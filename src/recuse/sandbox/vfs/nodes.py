"""Files that exist only in a sandbox: devices, and what belongs to them in /dev, /sys and /proc."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

from recuse.kernel.caller import Caller
from recuse.kernel.char import sysfs
from recuse.kernel.char.devices import CharDevice, DeviceTable
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.records import field, record
from recuse.sandbox.trap.call import OnDevice
from recuse.sandbox.vfs import native_files

CUSE_NUMBER = (10, 203)
"""Major and minor number of /dev/cuse (linux/miscdevice.h)."""

PROC_DEVICES: Final = b"/proc/devices"

_FIRST_INODE = 0x7EC00000

_PROC_MAGIC: Final = 0x9FA0
_SYSFS_MAGIC: Final = 0x62656572
"""linux/magic.h"""

_libc = ctypes.CDLL(None, use_errno=True)


@record
class Node:
    """A directory, a device, the channel ``/dev/cuse``, a symbolic link, or an attribute.

    Or a file that has no place in the tree.
    """

    path: bytes
    inode: int
    mode: int
    """Type and permission bits, as st_mode."""
    uid: int
    gid: int
    filesystem: int
    """The number of the filesystem that it seems to be on, as st_dev."""
    rdev: int = 0
    """The device's number, as st_rdev."""
    size: int = 0
    """As st_size."""
    block_size: int = PAGE_SIZE
    """As st_blksize."""
    device: CharDevice | None = None
    """What is opened, if it is a device."""
    anonymous: bool = False
    """It stands for the files that the device's ioctls have made, and cannot be opened."""
    target: bytes = b""
    """Where a symbolic link leads; empty for everything else."""
    show: Callable[[Caller], bytes | OnDevice[bytes]] | None = None
    """Makes an attribute's content, or tells what makes it; None if it cannot be read."""
    store: Callable[[bytes], None] | None = None
    """Takes what is written to an attribute; None if it cannot be written."""
    subdirectories: int = 0
    """How many of a directory's entries are directories."""
    removed: bool = False
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

    @property
    def is_attribute(self) -> bool:
        """Whether it is a file of ``/sys`` or ``/proc``."""
        return stat.S_ISREG(self.mode)

    @property
    def links(self) -> int:
        """As st_nlink."""
        return 2 + self.subdirectories if self.is_directory else 1


def _filesystem(path: bytes) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return 0


def _filesystem_type(path: bytes) -> int:
    """f_type of statfs(2), 0 if it does not tell."""
    buffer = (ctypes.c_long * 32)()
    return 0 if _libc.statfs(path, buffer) else buffer[0] & 0xFFFFFFFF


def majors_in_use() -> set[int]:
    """The major numbers of this machine's own devices and drivers: theirs would be hidden.

    A driver may have registered one for devices that are not there yet.
    """
    majors: set[int] = set()
    with contextlib.suppress(OSError):
        majors |= {_leading_number(name, ":") for name in os.listdir("/sys/dev/char")}
    with contextlib.suppress(OSError), open(PROC_DEVICES, encoding="utf-8", errors="replace") as f:
        lines = f.read().partition("Block devices:")[0].splitlines()
        majors |= {_leading_number(line.strip(), " ") for line in lines}
    return majors - {0}


def _leading_number(text: str, end: str) -> int:
    number = text.partition(end)[0]
    return int(number) if number.isdecimal() else 0


def native_node(file: int) -> Node:
    """What a descriptor leads to, which opens nothing (O_PATH), looking like a node.

    Raises:
        OSError: if the file cannot be looked at.
    """
    found = os.fstat(file)
    path = native_files.path_of(file)
    node = Node(path, found.st_ino, found.st_mode, found.st_uid, found.st_gid, found.st_dev)
    node.rdev, node.size = found.st_rdev, found.st_size
    node.subdirectories = found.st_nlink - 2
    node.block_size = found.st_blksize
    node.target = native_files.target_of(file) if stat.S_ISLNK(found.st_mode) else b""
    node.accessed_ns, node.modified_ns = found.st_atime_ns, found.st_mtime_ns
    node.changed_ns = found.st_ctime_ns
    return node


class Nodes:
    """All nodes of a sandbox, by path. Thread-safe.

    ``by_path`` may be read without ado; so may these:

    places
        Native directories in which there are nodes, by device and inode number: under which path
        the nodes in them are known.
    by_number
        The nodes of devices, by st_rdev.
    hidden
        What nodes hide natively: they have the same path.
    numbers_elsewhere
        Whether other nodes may have these numbers: a driver of the machine has one of the majors,
        or a program has made one.
    hides_links, hides_files
        Whether symbolic links, or anything but /proc/devices, are among those.
    """

    def __init__(self) -> None:
        self.by_path: dict[bytes, Node] = {}
        self.places: dict[tuple[int, int], bytes] = {}
        self.by_number: dict[int, Node] = {}
        self.numbers_elsewhere = False
        self.hidden: dict[tuple[int, int], Node] = {}
        self.hides_links = False
        self.hides_files = False
        self._entries: dict[bytes, dict[bytes, Node]] = {}
        self._of_device: dict[CharDevice, list[Node]] = {}
        self._anonymous: dict[int, Node] = {}
        self._kept: set[bytes] = set()
        self._next_inode = _FIRST_INODE
        self._owner = os.geteuid(), os.getegid()
        self._filesystem = {top: _filesystem(b"/" + top) for top in (b"dev", b"sys", b"proc")}
        self.proc_device = self._filesystem[b"proc"]
        """The number of the filesystem that the supervisor has on /proc."""
        self._kernel_places: dict[tuple[int, int], bytes] = {}
        """Those of /proc and /sys, by f_type and inode number."""
        self._kernel_inodes: set[int] = set()
        self._majors_in_use = majors_in_use()
        self._lock = new_lock("Nodes")

    def add(self, device: CharDevice) -> None:
        """Make the node ``/dev/NAME``, the device's files in ``/sys``, and their directories.

        Raises:
            OSError: EEXIST if its node is there already, or one of its directories is something
                else.
        """
        with self._lock:
            made = self._of_device[device] = []
            node = self._character(device.name, device.mode, device.major, device.minor)
            if device.major in self._majors_in_use:
                self.numbers_elsewhere = True
            node.uid = node.uid if device.uid is None else device.uid
            node.gid = node.gid if device.gid is None else device.gid
            node.device = device
            made.append(node)
            for path, entry in {entry.path: entry for entry in sysfs.entries(device)}.items():
                if os.fsencode(path) not in self.by_path:
                    made.append(self._entry(device, entry))

    def add_machine(self, table: DeviceTable) -> None:
        """Make what is there without any device: ``/dev/cuse``, CUSE's class, ``/proc/devices``."""
        with self._lock:
            self._character("cuse", 0o600, *CUSE_NUMBER)
            self._kept.add(os.fsencode(sysfs.CLASS))
            self._directory(os.fsencode(sysfs.CLASS))
            self._directory(b"/proc")
            devices = self._make(PROC_DEVICES, stat.S_IFREG | 0o444)
            devices.block_size = 1024
            devices.show = functools.partial(_show_devices, table)
            with contextlib.suppress(OSError):
                devices.inode = os.stat(PROC_DEVICES).st_ino

    def remove(self, device: CharDevice) -> None:
        """Take the device's nodes away, and the directories that only they needed."""
        with self._lock:
            self._anonymous.pop(device.serial, None)
            for node in reversed(self._of_device.pop(device, [])):
                for identity in [key for key, hidden in self.hidden.items() if hidden is node]:
                    del self.hidden[identity]
                self._unlink(node)

    def anonymous(self, device: CharDevice) -> Node:
        """The node of the files that the device's ioctls make, as anon_inode files have one.

        Like theirs (fs/anon_inodes.c) it has mode 0600 and no type, and all of them share it.
        """
        with self._lock:
            node = self._anonymous.get(device.serial)
            if node is None:
                path = b"anon_inode:" + os.fsencode(device.name)
                node = Node(path, self._next_inode, 0o600, *self._owner, self._filesystem[b"dev"])
                node.device, node.anonymous = device, True
                self._next_inode += 1
                self._anonymous[device.serial] = node
        return node

    def anonymous_or_none(self, device: CharDevice) -> Node | None:
        """The same, None if the device's ioctls have not made any files yet."""
        return self._anonymous.get(device.serial)

    def entries(self, path: bytes) -> list[Node]:
        """What there is of ours in a directory."""
        return list(self._entries.get(path, {}).values())

    def extends(self, path: bytes) -> bool:
        """Whether a listing of the directory must show more, or others, than are there natively."""
        return path in self._entries or path in self.by_path

    def children(self, path: bytes) -> Iterator[Node]:
        """The nodes that a listing of the directory must show besides what is there natively."""
        ours = path in self.by_path
        for node in self.entries(path):
            if ours or not os.path.lexists(node.path):
                yield node

    def _character(self, name: str, mode: int, major: int, minor: int) -> Node:
        path = b"/dev/" + os.fsencode(name)
        if path in self.by_path:
            raise os_error(errno.EEXIST)
        self._directory(path.rpartition(b"/")[0])
        node = self._make(path, stat.S_IFCHR | mode & 0o7777)
        node.rdev = os.makedev(major, minor)
        self.by_number[node.rdev] = node
        return node

    def _entry(self, device: CharDevice, entry: sysfs.Attribute | sysfs.Link) -> Node:
        path = os.fsencode(entry.path)
        self._directory(path.rpartition(b"/")[0])
        if isinstance(entry, sysfs.Link):
            node = self._make(path, stat.S_IFLNK | 0o777)
            node.target = os.fsencode(entry.target)
            node.size = 0 if path.startswith(b"/sys/") else len(node.target)
            return node
        node = self._make(path, stat.S_IFREG | entry.mode)
        in_proc = path.startswith(b"/proc/")
        node.size, node.block_size = (0, 1024) if in_proc else (PAGE_SIZE, PAGE_SIZE)
        node.store = entry.store
        if (show := entry.show) is not None:
            node.show = functools.partial(_show, device, show)
        return node

    def _make(self, path: bytes, mode: int) -> Node:
        parent, _, name = path.rpartition(b"/")
        top = path.split(b"/", 2)[1]
        node = Node(path, self._next_inode, mode, *self._owner, self._filesystem[top])
        self._next_inode += 1
        self._entries.setdefault(parent or b"/", {})[name] = node
        self.by_path[path] = node
        if node.is_directory and parent in self.by_path:
            self.by_path[parent].subdirectories += 1
        with contextlib.suppress(OSError):
            native = os.lstat(path)
            self.hidden[native.st_dev, native.st_ino] = node
            self.hides_links = self.hides_links or stat.S_ISLNK(native.st_mode)
            self.hides_files = self.hides_files or path != PROC_DEVICES
        return node

    def _directory(self, path: bytes) -> None:
        node = self.by_path.get(path)
        if node is not None:
            if not node.is_directory:
                raise os_error(errno.EEXIST)
            return
        try:
            native = os.stat(path)
        except OSError:
            self._directory(path.rpartition(b"/")[0] or b"/")
            self._make(path, stat.S_IFDIR | 0o755)
        else:
            if not stat.S_ISDIR(native.st_mode):
                raise os_error(errno.EEXIST)
            self.places[native.st_dev, native.st_ino] = path
            kind = _filesystem_type(path)
            if kind in (_PROC_MAGIC, _SYSFS_MAGIC):
                self._kernel_places[kind, native.st_ino] = path
                self._kernel_inodes.add(native.st_ino)

    def place(self, directory: bytes, status: os.stat_result) -> bytes | None:
        """Under which path the nodes in a native directory are known, None if there are none.

        A program may have a /proc or /sys mounted of its own, and there is one of each in a pid or
        network namespace: in all of them a directory has the same inode number (fs/proc/root.c,
        fs/kernfs/mount.c), and a new device is in all of them.
        """
        place = self.places.get((status.st_dev, status.st_ino))
        if place is None and status.st_ino in self._kernel_inodes:
            place = self._kernel_places.get((_filesystem_type(directory), status.st_ino))
        return place

    def _unlink(self, node: Node) -> None:
        node.removed = True
        del self.by_path[node.path]
        if self.by_number.get(node.rdev) is node:
            del self.by_number[node.rdev]
        parent, _, name = node.path.rpartition(b"/")
        siblings = self._entries[parent]
        del siblings[name]
        directory = self.by_path.get(parent)
        if directory is not None and node.is_directory:
            directory.subdirectories -= 1
        if not siblings:
            del self._entries[parent]
            if directory is not None and parent not in self._kept:
                self._unlink(directory)


def _show(
    device: CharDevice, show: Callable[[Caller], Operation[bytes]], caller: Caller
) -> OnDevice[bytes]:
    return OnDevice(device, show(caller))


def _show_devices(table: DeviceTable, _: Caller) -> bytes:
    """What is to be read from ``/proc/devices``."""
    try:
        with open(PROC_DEVICES, encoding="utf-8", errors="surrogateescape") as file:
            native = file.read()
    except OSError:
        native = ""
    devices = [(device.name, device.major) for device in table]
    return sysfs.character_devices(native, devices).encode("utf-8", "surrogateescape")
