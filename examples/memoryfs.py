"""A filesystem in memory, with what Linux's tmpfs has: links, holes, extended attributes.

Try it on an empty directory, here `files`::

    $ recuse mount --private examples/memoryfs.py files -- bash
    $ echo hello >files/file
    $ ln files/file files/other
    $ stat -c '%h links, %s bytes' files/other
    2 links, 6 bytes

There are no locks here.  The kernel lets one program at a time change a directory or a file.
"""

import errno
import os
import stat
import time

import recuse
from recuse import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Node,
    NodeFile,
    OpenRequest,
    Statistics,
)

PAGE = 4096
ZEROS = bytes(PAGE)
MOST_PAGES = os.sysconf("SC_PHYS_PAGES") // 2 * (os.sysconf("SC_PAGE_SIZE") // PAGE)
"""Half of the machine's memory, as of a tmpfs.  Only fallocate keeps to it."""

DAY_NS = 24 * 3600 * 10**9

# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE = 1, 2


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def pages(offset: int, end: int) -> range:
    """The numbers of the pages with these bytes."""
    return range(offset // PAGE, -(-end // PAGE))


class MemoryNode(Node):
    """What all nodes have: an owner, times, extended attributes."""

    def __init__(self, mode: int, directory: "MemoryDirectory | None" = None) -> None:
        self.top: MemoryNode = self if directory is None else directory.top
        self.mode = mode
        self.xattrs: dict[str, bytes] = {}
        if directory is not None:
            request = recuse.current_request()
            self.uid, self.gid = request.uid or 0, request.gid or 0
            if directory.mode & stat.S_ISGID:
                self.gid = directory.gid
                self.mode |= stat.S_ISGID if isinstance(self, MemoryDirectory) else 0
        self.touch()
        self.atime_ns = self.btime_ns = self.mtime_ns

    def touch(self) -> None:
        """Note that the content changes now."""
        self.mtime_ns = self.ctime_ns = time.time_ns()

    def accessed(self) -> None:
        """Note that the content is read, as with the option relatime of other filesystems.

        On those the kernel does so by itself.
        """
        now = time.time_ns()
        if self.atime_ns <= max(self.mtime_ns, self.ctime_ns) or now - self.atime_ns >= DAY_NS:
            self.atime_ns = now

    def get_xattr(self, name: str) -> bytes:
        if name not in self.xattrs:
            raise error(errno.ENODATA)
        return self.xattrs[name]

    def list_xattr(self) -> list[str]:
        return list(self.xattrs)

    def set_xattr(self, name: str, value: bytes, flags: int) -> None:
        if name.startswith("system."):  # lists of who may do what, which nobody here looks at
            raise error(errno.EOPNOTSUPP)
        if flags == os.XATTR_CREATE and name in self.xattrs:
            raise error(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in self.xattrs:
            raise error(errno.ENODATA)
        self.xattrs[name] = value
        self.ctime_ns = time.time_ns()

    def remove_xattr(self, name: str) -> None:
        self.get_xattr(name)
        del self.xattrs[name]
        self.ctime_ns = time.time_ns()


class MemoryFile(MemoryNode, recuse.RegularFile):
    """A file: the pages that something was written to.  The others are holes."""

    size: int = 0

    def __init__(self, mode: int, directory: "MemoryDirectory") -> None:
        super().__init__(mode, directory)
        self.pages: dict[int, bytearray] = {}
        self.reserved: set[int] = set()
        """Pages for which there is room, but that are holes still."""

    @property
    def blocks(self) -> int:  # type: ignore[override]
        return (len(self.pages) + len(self.reserved)) * PAGE // 512

    def open(self, request: OpenRequest) -> "MemoryOpenFile":
        return MemoryOpenFile(self)

    def read(self, size: int, offset: int) -> bytes:
        self.accessed()
        end = min(offset + size, self.size)
        content = b"".join(self.pages.get(number, ZEROS) for number in pages(offset, end))
        return content[offset % PAGE :][: max(end - offset, 0)]

    def write(self, data: bytes, offset: int) -> None:
        end = offset + len(data)
        for number in pages(offset, end):
            start = number * PAGE
            page = self.pages.setdefault(number, bytearray(PAGE))
            low, high = max(offset, start), min(end, start + PAGE)
            page[low - start : high - start] = data[low - offset : high - offset]
        self.reserved.difference_update(pages(offset, end))
        self.size = max(self.size, end)
        self.touch()

    def reserve(self, offset: int, end: int) -> None:
        wanted = pages(offset, end)
        there = sum(number in wanted for number in (*self.pages, *self.reserved))
        if len(wanted) - there > MOST_PAGES - used(self.top)[1]:
            raise error(errno.ENOSPC)
        for number in wanted:
            if number in self.reserved:  # as a tmpfs: the second time it is filled with zeros
                self.reserved.remove(number)
                self.pages[number] = bytearray(PAGE)
            elif number not in self.pages:
                self.reserved.add(number)

    def punch(self, offset: int, end: int) -> None:
        """Make a hole: whole pages are given back, parts are filled with zeros."""
        for number in [number for number in self.pages if offset < number * PAGE + PAGE]:
            start = number * PAGE
            low, high = max(offset, start), min(end, start + PAGE)
            if high - low == PAGE:
                del self.pages[number]
            elif low < high:
                self.pages[number][low - start : high - start] = bytes(high - low)
        whole = range(-(-offset // PAGE), end // PAGE)
        self.reserved = {number for number in self.reserved if number not in whole}

    def truncate(self, size: int) -> None:
        if size <= self.size:
            self.punch(size, 1 << 63)
        if size != self.size:
            self.size = size
            self.touch()


class MemoryOpenFile(NodeFile):
    """One open of a file: it knows where the holes are."""

    node: MemoryFile

    def seek(self, offset: int, whence: int) -> int:
        pages, size = self.node.pages, self.node.size
        if offset >= size:
            raise error(errno.ENXIO)
        number = offset // PAGE
        if whence == os.SEEK_DATA:
            number = min((page for page in pages if page >= number), default=-1)
            if number < 0:
                raise error(errno.ENXIO)
        else:
            while number in pages:
                number += 1
        return min(max(offset, number * PAGE), size)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        node, end = self.node, offset + length
        if mode == PUNCH_HOLE | KEEP_SIZE:
            node.punch(offset, end)
        elif mode in (0, KEEP_SIZE):
            node.reserve(offset, end)
            node.size = node.size if mode else max(node.size, end)
        else:  # as a tmpfs: it writes no zeros
            raise error(errno.EOPNOTSUPP)
        node.touch()


class MemorySymlink(MemoryNode, recuse.Symlink):
    """A symbolic link."""

    def __init__(self, target: str, directory: "MemoryDirectory") -> None:
        super().__init__(0o777, directory)
        recuse.Symlink.__init__(self, target)

    def readlink(self) -> str:
        self.accessed()
        return self.target


class MemorySpecial(MemoryNode, recuse.Special):
    """A FIFO, a socket or a device node."""

    def __init__(self, mode: int, rdev: int, directory: "MemoryDirectory") -> None:
        super().__init__(stat.S_IMODE(mode), directory)
        recuse.Special.__init__(self, mode, rdev)


class MemoryDirectory(MemoryNode, recuse.Directory):
    """A directory: each one in it counts as a link to it."""

    def __init__(self, mode: int, directory: "MemoryDirectory | None" = None) -> None:
        super().__init__(mode, directory)
        self.children: dict[str, Node] = {}

    def entries(self) -> dict[str, Node]:
        self.accessed()
        return self.children

    def lookup(self, name: str) -> Node | None:
        return self.children.get(name)

    def put(self, name: str, node: Node) -> Node:
        self.children[name] = node
        self.nlink += isinstance(node, MemoryDirectory)
        self.touch()
        node.ctime_ns = self.ctime_ns
        return node

    def take(self, name: str) -> Node:
        node = self.children.pop(name)
        self.nlink -= isinstance(node, MemoryDirectory)
        self.touch()
        node.ctime_ns = self.ctime_ns
        return node

    def create(self, name: str, mode: int) -> Node:
        return self.put(name, MemoryFile(mode, self))

    def tmpfile(self, mode: int) -> Node:
        node = MemoryFile(mode, self)
        node.nlink = 0
        return node

    def mkdir(self, name: str, mode: int) -> Node:
        return self.put(name, MemoryDirectory(mode, self))

    def symlink(self, name: str, target: str) -> Node:
        return self.put(name, MemorySymlink(target, self))

    def mknod(self, name: str, mode: int, rdev: int) -> Node:
        return self.put(name, MemorySpecial(mode, rdev, self))

    def link(self, name: str, node: Node) -> None:
        node.nlink += 1
        self.put(name, node)

    def unlink(self, name: str) -> None:
        self.take(name).nlink -= 1

    def rmdir(self, name: str) -> None:
        directory = self.children[name]
        if isinstance(directory, MemoryDirectory) and directory.children:
            raise error(errno.ENOTEMPTY)
        self.take(name).nlink = 0

    def rename(self, name: str, directory: recuse.Directory, new_name: str, flags: int) -> None:
        assert isinstance(directory, MemoryDirectory)
        other = directory.children.get(new_name)
        if other is not None and flags & RENAME_NOREPLACE:
            raise error(errno.EEXIST)
        if other is not None and not flags & RENAME_EXCHANGE:
            if isinstance(other, MemoryDirectory):
                directory.rmdir(new_name)
            else:
                directory.unlink(new_name)
        node = self.take(name)
        if flags & RENAME_EXCHANGE:
            self.put(name, directory.take(new_name))
        directory.put(new_name, node)
        if flags & RENAME_WHITEOUT:
            self.put(name, MemorySpecial(stat.S_IFCHR, 0, self))


class MemoryFilesystem(recuse.Filesystem):
    """The filesystem."""

    name = "memory"
    xattrs = True

    def __init__(self) -> None:
        super().__init__(MemoryDirectory(0o755))

    def statistics(self) -> Statistics:
        nodes, blocks = used(self.root)
        return Statistics(
            blocks=MOST_PAGES,
            free=max(MOST_PAGES - blocks, 0),
            available=max(MOST_PAGES - blocks, 0),
            files=MOST_PAGES,
            free_files=max(MOST_PAGES - nodes, 0),
            block_size=PAGE,
        )


def used(top: Node) -> tuple[int, int]:
    """Return how many files there are, and how many pages they have."""
    found: dict[int, Node] = {}
    waiting = [top]
    while waiting:
        node = waiting.pop()
        found[id(node)] = node  # once, if it has several names
        if isinstance(node, MemoryDirectory):
            waiting += node.children.values()
    blocks = sum(node.blocks for node in found.values() if isinstance(node, MemoryFile))
    return len(found), blocks * 512 // PAGE
