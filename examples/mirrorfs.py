"""A filesystem that shows a directory once more, as it is at that moment.

Try it on an empty directory, here `files`::

    $ recuse mount --private examples/mirrorfs.py,source=/usr files -- bash
    $ test -d files/share && echo it is there
    it is there

A node is an open descriptor (O_PATH), not a path: whoever renames a directory meanwhile, here or
there, changes no file's meaning.
"""

import ctypes
import os
import stat
from collections.abc import Iterator
from weakref import WeakValueDictionary

import recuse
from recuse import Changes, Entry, Node, OpenFile, OpenRequest

libc = ctypes.CDLL(None, use_errno=True)

DEFAULT_LIST = "system.posix_acl_default"


def checked(result: int) -> None:
    """Raise the error of a function of C, if it has failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Closing:
    """Closes a node's descriptor when the node is gone, and no longer known.

    A ``__del__`` of the node's would close it while `MirrorNode.known` still has the node: a new
    file, which may get the removed one's number at once, would be taken for it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class MirrorNode(Node):
    """A file of the directory that is shown.  Two names of a file are one node."""

    known: "WeakValueDictionary[tuple[int, int], MirrorNode]"
    device: int
    """``st_dev`` of the directory that is shown."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._closing = Closing(descriptor)

    @property
    def place(self) -> str:
        """A path for calls that take no descriptor."""
        return f"/proc/self/fd/{self.descriptor}"

    def attributes(self) -> os.stat_result:
        # They are the same as long as the file is there, whatever the kernel forgets of it.
        found = os.fstat(self.descriptor)
        if found.st_dev == self.device:
            return found
        # Something else is mounted there, and other files may have its numbers.
        times = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return os.stat_result((found.st_mode, 0, *found[2:]), times)

    def change(self, changes: Changes) -> None:
        if changes.size is not None:
            os.truncate(self.place, changes.size)
        if changes.uid is not None or changes.gid is not None:
            uid = -1 if changes.uid is None else changes.uid
            os.chown(self.place, uid, -1 if changes.gid is None else changes.gid)
        if changes.mode is not None:
            os.chmod(self.place, changes.mode)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            now = os.fstat(self.descriptor)
            atime = now.st_atime_ns if changes.atime_ns is None else changes.atime_ns
            mtime = now.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
            os.utime(self.place, ns=(atime, mtime))
        elif changes.size is changes.uid is changes.gid is changes.mode is None:
            os.chown(self.place, -1, -1)  # that changes st_ctime

    def get_xattr(self, name: str) -> bytes:
        return os.getxattr(self.place, name)

    def list_xattr(self) -> list[str]:
        return os.listxattr(self.place)

    def set_xattr(self, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.place, name, value, flags)
        if recuse.current_request().kill_suidgid:  # a list, by who is not in the file's group
            os.chmod(self.place, stat.S_IMODE(self.attributes().st_mode) & ~stat.S_ISGID)

    def remove_xattr(self, name: str) -> None:
        os.removexattr(self.place, name)


class MirrorFile(MirrorNode, recuse.RegularFile):
    """A regular file."""

    def open(self, request: OpenRequest) -> "MirrorOpenFile":
        # The kernel has truncated it, and gives the offset for what is appended.
        flags = request.flags & (os.O_ACCMODE | os.O_SYNC | os.O_DSYNC)
        return MirrorOpenFile(os.open(self.place, flags))


class MirrorOpenFile(OpenFile):
    """One open of it."""

    def __init__(self, descriptor: int) -> None:
        # Where the kernel can, it reads and writes by itself; elsewhere this class's base does.
        self.backing: int = descriptor

    def sync(self, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self.backing)

    def allocate(self, mode: int, offset: int, length: int) -> None:
        # Python has posix_fallocate(3) only, which makes no holes.
        checked(libc.fallocate(self.backing, mode, ctypes.c_long(offset), ctypes.c_long(length)))

    def seek(self, offset: int, whence: int) -> int:
        return os.lseek(self.backing, offset, whence)

    def release(self) -> None:
        os.close(self.backing)


class MirrorSymlink(MirrorNode, recuse.Symlink):
    """A symbolic link."""

    def readlink(self) -> str:
        return os.readlink("", dir_fd=self.descriptor)


class MirrorSpecial(MirrorNode, recuse.Special):
    """A FIFO, a socket or a device node."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self.kind = stat.S_IFMT(os.fstat(descriptor).st_mode)  # type: ignore[misc]


class MirrorDirectory(MirrorNode, recuse.Directory):
    """A directory."""

    def entries(self) -> Iterator["tuple[str, MirrorNode] | Entry"]:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.descriptor)
        try:
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    yield self._listed(entry)
        finally:
            os.close(descriptor)

    def _listed(self, entry: "os.DirEntry[str]") -> "tuple[str, MirrorNode] | Entry":
        """Find the node, if the kernel would otherwise look up one name after the other."""
        if recuse.current_request().operation == "readdirplus":
            try:
                return entry.name, self.lookup(entry.name)
            except OSError:
                pass  # it has just been removed
        return Entry(entry.name, kind_of(entry), entry.inode())

    def lookup(self, name: str) -> MirrorNode:
        return self._node(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.descriptor))

    def _node(self, descriptor: int) -> MirrorNode:
        found = os.fstat(descriptor)
        node = self.known.get((found.st_dev, found.st_ino))
        if node is None:
            kind = KINDS.get(stat.S_IFMT(found.st_mode), MirrorSpecial)
            node = self.known[found.st_dev, found.st_ino] = kind(descriptor)
            node.known, node.device = self.known, self.device
        else:
            os.close(descriptor)
        return node

    def _modes(self, mode: int) -> tuple[int, int | None]:
        """Return permissions to make something with, and those that it gets then.

        The latter are None if the directory has a default access control list, which decides.
        """
        try:
            os.getxattr(self.place, DEFAULT_LIST)
        except OSError:
            # The final ones may not allow to open it: git makes such files.
            return 0o700, mode & ~recuse.current_request().umask
        return mode, None

    def _made(self, name: str, mode: int | None) -> MirrorNode:
        return self._given(self.lookup(name), mode)

    def _given(self, node: MirrorNode, mode: int | None) -> MirrorNode:
        """Give what was made to the program's user, with exactly these permissions."""
        request = recuse.current_request()
        if mode is None:
            mode = stat.S_IMODE(os.fstat(node.descriptor).st_mode)
        inherited = os.fstat(self.descriptor).st_mode & stat.S_ISGID
        if os.geteuid() == 0:
            os.chown(node.place, request.uid or 0, -1 if inherited else request.gid or 0)
        if not isinstance(node, MirrorSymlink):
            directory = isinstance(node, MirrorDirectory)
            os.chmod(node.place, mode | (inherited if directory else 0))
        return node

    def create(self, name: str, mode: int) -> tuple[MirrorNode, MirrorOpenFile]:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
        first, last = self._modes(mode)
        file = MirrorOpenFile(os.open(name, flags, first, dir_fd=self.descriptor))
        try:
            return self._made(name, last), file
        except OSError:
            file.release()
            raise

    def tmpfile(self, mode: int) -> tuple[MirrorNode, MirrorOpenFile]:
        flags = os.O_TMPFILE | os.O_RDWR
        first, last = self._modes(mode)
        file = MirrorOpenFile(os.open(".", flags, first, dir_fd=self.descriptor))
        try:
            node = self._node(os.open(f"/proc/self/fd/{file.backing}", os.O_PATH))
            return self._given(node, last), file
        except OSError:
            file.release()
            raise

    def mkdir(self, name: str, mode: int) -> MirrorNode:
        first, last = self._modes(mode)
        os.mkdir(name, first, dir_fd=self.descriptor)
        return self._made(name, last)

    def symlink(self, name: str, target: str) -> MirrorNode:
        os.symlink(target, name, dir_fd=self.descriptor)
        return self._made(name, 0)

    def mknod(self, name: str, mode: int, rdev: int) -> MirrorNode:
        first, last = self._modes(stat.S_IMODE(mode))
        os.mknod(name, stat.S_IFMT(mode) | first, rdev, dir_fd=self.descriptor)
        return self._made(name, last)

    def link(self, name: str, node: Node) -> None:
        assert isinstance(node, MirrorNode)
        os.link(node.place, name, dst_dir_fd=self.descriptor)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self.descriptor)

    def rmdir(self, name: str) -> None:
        os.rmdir(name, dir_fd=self.descriptor)

    def rename(self, name: str, directory: recuse.Directory, new_name: str, flags: int) -> None:
        assert isinstance(directory, MirrorDirectory)
        old = self.descriptor, os.fsencode(name)
        new = directory.descriptor, os.fsencode(new_name)
        checked(libc.renameat2(*old, *new, flags))  # Python has none with flags


def kind_of(entry: "os.DirEntry[str]") -> int:
    """Tell directories, files and links apart, as far as the listing does."""
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFLNK if entry.is_symlink() else 0


KINDS: dict[int, type[MirrorNode]] = {
    stat.S_IFDIR: MirrorDirectory,
    stat.S_IFREG: MirrorFile,
    stat.S_IFLNK: MirrorSymlink,
}


class Mirror(recuse.Filesystem):
    """The filesystem."""

    name = "mirror"
    xattrs = True
    passthrough = True
    posix_acls = True

    def __init__(self, source: str, cache_s: float = 0.0) -> None:
        self.cache_s = cache_s  # by default, whatever happens there is seen here at once
        root = MirrorDirectory(os.open(source, os.O_PATH | os.O_DIRECTORY))
        root.known = WeakValueDictionary()
        root.device = os.fstat(root.descriptor).st_dev
        super().__init__(root)

    def statistics(self) -> os.statvfs_result:
        assert isinstance(self.root, MirrorDirectory)
        return os.fstatvfs(self.root.descriptor)
