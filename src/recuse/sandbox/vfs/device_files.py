"""The files of devices: in /dev, and what belongs to them, and to filesystems, in /sys and /proc.

Each native directory that has some gets its own addition. A directory that does not exist natively
is in the addition of the directory above it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import time
from collections.abc import Callable
from typing import Final

from recuse.kernel.caller import Caller
from recuse.kernel.char import sysfs
from recuse.kernel.char.devices import CharDevice, DeviceTable
from recuse.kernel.connection.connection import Connection
from recuse.kernel.connection.operation import Operation
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.kernel.fs import control
from recuse.runtime.locks import new_lock
from recuse.sandbox.trap.call import OnDevice
from recuse.sandbox.vfs.dentry import Addition, Dentry, Location, MemoryTree, lone
from recuse.sandbox.vfs.mounts import Mounts
from recuse.sandbox.vfs.nodes import (
    AnonymousNode,
    AttributeNode,
    ControlNode,
    CuseNode,
    DeviceNode,
    DirectoryNode,
    FuseNode,
    Identity,
    LinkNode,
    Node,
    ServerNode,
)

CUSE_NUMBER = (10, 203)
FUSE_NUMBER = (10, 229)
"""Major and minor numbers of /dev/cuse and /dev/fuse (linux/miscdevice.h)."""

PROC_DEVICES: Final = b"/proc/devices"
PROC_FILESYSTEMS: Final = b"/proc/filesystems"
KNOWN_BY_NAME: Final = (PROC_DEVICES, PROC_FILESYSTEMS, b"/dev/fuse")
"""Files that almost every machine has natively, and that every sandbox hides. They are looked for
only by paths that end like theirs, so that other paths are looked up quickly."""
ENDS_KNOWN: Final = (b"devices", b"filesystems", b"fuse")

_FIRST_INODE = 0x7EC00000
_PROC_BLOCK_SIZE: Final = 1024

_TYPES: Final = (b"\tfuseblk\n", b"nodev\tfuse\n", b"nodev\tfusectl\n")

_TICK_NS: Final = 50_000_000


def majors_in_use() -> set[int]:
    """The major numbers of this machine's own devices and drivers, which would be hidden.

    A driver may have registered one for devices that do not exist yet.
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


def _filesystem(path: bytes) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return 0


class DeviceFiles:
    """All files of a sandbox's devices. Thread-safe.

    These attributes may be read without a lock:

    by_number
        The nodes of devices, by st_rdev.
    hidden
        What they hide natively, because it has the same path.
    numbers_elsewhere
        Whether other nodes may have these numbers: because a driver of the machine has one of the
        majors, or because a program has made a node.
    hides_links, hides_files
        Whether symbolic links, or anything except what is KNOWN_BY_NAME, are hidden.
    """

    def __init__(self, mounts: Mounts) -> None:
        """Make the table."""
        self.by_number: dict[int, ServerNode | DeviceNode] = {}
        self.numbers_elsewhere = False
        self.hidden: dict[tuple[int, int], Node] = {}
        self.hides_links = False
        self.hides_files = False
        self._mounts = mounts
        self._of_device: dict[CharDevice | Connection, list[Dentry]] = {}
        self._anonymous: dict[int, Location] = {}
        self._kept: set[Dentry] = set()
        self._next_inode = _FIRST_INODE
        self._owner = os.geteuid(), os.getegid()
        self.proc_device = _filesystem(b"/proc")
        """The device number of the supervisor's /proc."""
        self._majors_in_use = majors_in_use()
        self._looked_at: dict[bytes, int] = {}
        """When each native directory had last changed when it was looked at."""
        self._lock = new_lock("DeviceFiles")

    def add(self, device: CharDevice) -> None:
        """Make the node ``/dev/NAME``, the device's files in ``/sys``, and their directories.

        Raises:
            OSError: EEXIST if its node is there already, or one of its directories is something
                else.
        """
        with self._lock:
            made = self._of_device[device] = []
            path = b"/dev/" + os.fsencode(device.name)
            directory = self._new_directory_of(path)
            node = DeviceNode(self._identity(directory), device.mode & 0o7777, device)
            if device.major in self._majors_in_use:
                self.numbers_elsewhere = True
            node.uid = node.uid if device.uid is None else device.uid
            node.gid = node.gid if device.gid is None else device.gid
            self.by_number[node.rdev] = node
            made.append(self._put(directory, path, node))
            entries = {entry.path: entry for entry in sysfs.entries(device)}
            for name, entry in entries.items():
                path = os.fsencode(name)
                if self._mounts.at(path) is None:
                    directory = self._directory_of(path)
                    made.append(self._put(directory, path, self._make(directory, device, entry)))

    def add_connection(self, connection: Connection, number: int, owner: tuple[int, int]) -> None:
        """Make a filesystem's files in ``/sys/fs/fuse/connections``, unless they are there.

        ``number`` is its directory's name; ``owner`` are the user and group that have mounted it.
        """
        with self._lock:
            if connection in self._of_device:
                return
            made = self._of_device[connection] = []
            path = os.fsencode(f"{control.DIRECTORY}/{number}")
            above = self._directory_of(path)
            self._kept.add(above)
            identity = self._identity(above)._replace(uid=owner[0], gid=owner[1])
            directory = self._put(above, path, DirectoryNode(identity, control.MODE))
            made.append(directory)
            for file in control.control_files(connection):
                identity = identity._replace(inode=self._new_inode())
                show = None if file.show is None else functools.partial(_show_control, file.show)
                node = ControlNode(identity, file.mode, show, file.store)
                made.append(self._put(directory, path + b"/" + os.fsencode(file.name), node))

    def add_machine(self, table: DeviceTable) -> None:
        """Make the files that need no device: those that servers open, ``/proc/devices``, ..."""
        with self._lock:
            self._add_server(b"/dev/cuse", CuseNode, 0o600, CUSE_NUMBER)
            self._add_server(b"/dev/fuse", FuseNode, 0o666, FUSE_NUMBER)
            self._kept.add(self._directory(os.fsencode(sysfs.CLASS)))
            self._add_proc(PROC_DEVICES, functools.partial(_show_devices, table))

    def add_kinds(self) -> None:
        """Have ``/proc/filesystems`` name FUSE's types if the kernel has no FUSE."""
        native = _native(PROC_FILESYSTEMS)
        if filesystem_types(native) == native:
            return
        with self._lock:
            self._add_proc(PROC_FILESYSTEMS, lambda _: filesystem_types(_native(PROC_FILESYSTEMS)))

    def _add_proc(self, path: bytes, show: Callable[[Caller], bytes]) -> None:
        """Make a file in ``/proc`` in place of the native one."""
        directory = self._directory_of(path)
        node = AttributeNode(self._identity(directory), 0o444, show)
        node.block_size = _PROC_BLOCK_SIZE
        with contextlib.suppress(OSError):
            node.inode = os.stat(path).st_ino
        self._put(directory, path, node)

    def _add_server(
        self, path: bytes, kind: type[ServerNode], mode: int, number: tuple[int, int]
    ) -> None:
        directory = self._new_directory_of(path)
        node = kind(self._identity(directory), mode, os.makedev(*number))
        with contextlib.suppress(OSError):
            node.inode = os.lstat(path).st_ino  # the kernel lists it with that number
        self.by_number[node.rdev] = node
        self._put(directory, path, node)

    def remove(self, device: CharDevice) -> None:
        """Remove the device's nodes, and the directories that only they needed."""
        self._anonymous.pop(device.serial, None)
        self.remove_connection(device)

    def remove_connection(self, device: CharDevice | Connection) -> None:
        """The same for a filesystem's files."""
        with self._lock:
            for dentry in reversed(self._of_device.pop(device, [])):
                node = dentry.node
                for identity in [key for key, hidden in self.hidden.items() if hidden is node]:
                    del self.hidden[identity]
                if self.by_number.get(node.rdev) is node:
                    del self.by_number[node.rdev]
                if not dentry.node.removed:
                    self._unlink(dentry)

    def anonymous(self, device: CharDevice) -> Location:
        """The location of the files that the device's ioctls make. They have one node in common."""
        with self._lock:
            found = self._anonymous.get(device.serial)
            if found is None:
                identity = Identity(self._new_inode(), *self._owner, _filesystem(b"/dev"))
                node = AnonymousNode(identity, device)
                found = lone(node, b"anon_inode:" + os.fsencode(device.name))
                self._anonymous[device.serial] = found
        return found

    def anonymous_or_none(self, device: CharDevice) -> Location | None:
        """Like :meth:`anonymous`; None if the device's ioctls have not made any files yet."""
        return self._anonymous.get(device.serial)

    def directory(self, path: bytes) -> Location:
        """A directory at a path with nothing native. It is made if it is missing, and stays.

        Raises:
            OSError: EEXIST if something else is there.
        """
        with self._lock:
            self._kept.add(self._directory(path))
            found = self._mounts.at(path)
            assert found is not None
            return found

    def _new_inode(self) -> int:
        inode = self._next_inode
        self._next_inode += 1
        return inode

    def _identity(self, directory: Dentry) -> Identity:
        return Identity(self._new_inode(), *self._owner, directory.node.filesystem)

    def _make(
        self, directory: Dentry, device: CharDevice, entry: sysfs.Attribute | sysfs.Link
    ) -> Node:
        identity = self._identity(directory)
        if isinstance(entry, sysfs.Link):
            link = LinkNode(identity, os.fsencode(entry.target))
            if entry.path.startswith("/sys/"):
                link.size = 0
            return link
        show = entry.show
        content = None if show is None else functools.partial(_show, device, show)
        node = AttributeNode(identity, entry.mode, content, entry.store)
        if entry.path.startswith("/proc/"):
            node.block_size = _PROC_BLOCK_SIZE
        else:
            node.size = PAGE_SIZE
        return node

    def _put(self, directory: Dentry, path: bytes, node: Node) -> Dentry:
        dentry = directory.add(path.rpartition(b"/")[2], node)
        self._hide(path, node)
        return dentry

    def _hide(self, path: bytes, node: Node) -> None:
        """Hide what is natively at a node's path, if anything."""
        with contextlib.suppress(OSError):
            native = os.lstat(path)
            self.hidden[native.st_dev, native.st_ino] = node
            self.hides_links = self.hides_links or stat.S_ISLNK(native.st_mode)
            self.hides_files = self.hides_files or path not in KNOWN_BY_NAME

    def look_again(self) -> None:
        """Hide native files that have appeared at the paths of nodes since these were added.

        A directory in which there is a new name has another time of change.
        """
        for directory, addition in self._mounts.hiding():
            try:
                changed = os.stat(directory).st_mtime_ns
            except OSError:
                continue
            if self._looked_at.get(directory) == changed:
                continue
            with self._lock:
                for name, child in list(addition.tree.root.children.items()):
                    self._hide(os.path.join(directory, name), child.node)
            # Within one tick of the clock, the next change has the same time.
            if time.time_ns() - changed > _TICK_NS:
                self._looked_at[directory] = changed

    def _new_directory_of(self, path: bytes) -> Dentry:
        if self._mounts.at(path) is not None:
            raise os_error(errno.EEXIST)
        return self._directory_of(path)

    def _directory_of(self, path: bytes) -> Dentry:
        return self._directory(path.rpartition(b"/")[0] or b"/")

    def _directory(self, path: bytes) -> Dentry:
        """The directory with that path, or what is added to it if it exists natively."""
        found = self._mounts.at(path)
        if found is not None:
            if not found.node.is_directory:
                raise os_error(errno.EEXIST)
            return found.dentry
        addition = self._mounts.hiding_at(path)
        if addition is not None:
            return addition.tree.root
        try:
            native = os.stat(path)
        except OSError:
            above = self._directory_of(path)
            return self._put(above, path, DirectoryNode(self._identity(above)))
        if not stat.S_ISDIR(native.st_mode):
            raise os_error(errno.EEXIST)
        identity = Identity(native.st_ino, native.st_uid, native.st_gid, native.st_dev)
        tree = MemoryTree(DirectoryNode(identity), path)
        self._mounts.add(Addition(tree, path, hides=True))
        return tree.root

    def _unlink(self, dentry: Dentry) -> None:
        dentry.remove()
        above = dentry.parent
        if above is not None and above.parent and not above.children and above not in self._kept:
            self._unlink(above)


def _show(
    device: CharDevice, show: Callable[[Caller], Operation[bytes]], caller: Caller
) -> OnDevice[bytes]:
    return OnDevice(device, show(caller))


def _show_control(show: Callable[[], bytes], _: Caller) -> bytes:
    return show()


def _native(path: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def filesystem_types(native: bytes) -> bytes:
    """The content of ``/proc/filesystems`` with FUSE's types (fs/filesystems.c)."""
    missing = [line for line in _TYPES if line not in native.splitlines(keepends=True)]
    return b"".join([native, *missing])


def _show_devices(table: DeviceTable, _: Caller) -> bytes:
    """The content of ``/proc/devices``."""
    native = _native(PROC_DEVICES).decode("utf-8", "surrogateescape")
    devices = [(device.name, device.major) for device in table]
    return sysfs.character_devices(native, devices).encode("utf-8", "surrogateescape")
