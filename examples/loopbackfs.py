"""A filesystem that shows a directory once more, at the level of inodes.

It is what libfuse's passthrough_ll and pyfuse3's passthroughfs do, for those who port such a
filesystem (docs/porting.md).  examples/mirrorfs.py does the same with nodes.

Try it on an empty directory, here `files`::

    $ recuse mount --private examples/loopbackfs.py,source=/usr files -- bash
    $ test -d files/share && echo it is there
    it is there
"""

import contextlib
import ctypes
import os
import stat
import threading
from collections.abc import Iterator

import recuse
from recuse import Changes, DirectoryEntry, InodeEntry, Opened

Made = tuple[InodeEntry, Opened]
Names = list[tuple[str, int]]

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> None:
    """Raise the error of a call that Python does not have."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Loopback(recuse.Inodes):
    """The filesystem.  An inode that the kernel knows is an open descriptor (O_PATH)."""

    name = "loopback"
    passthrough = True
    posix_acls = True
    cache_s = 0.0
    """Whatever happens there is seen here at once."""

    def __init__(self, source: str) -> None:
        root = os.open(source, os.O_PATH | os.O_DIRECTORY)
        self.descriptors = {recuse.ROOT_INODE: root}
        self.lookups: dict[int, int] = {}
        self.numbers: dict[tuple[int, int], int] = {}
        """By device and inode there.  The descriptor keeps these from being used again."""
        self.last = recuse.ROOT_INODE
        self.lock = threading.Lock()

    def destroy(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()

    def place(self, ino: int) -> str:
        """A path for calls that take no descriptor."""
        return f"/proc/self/fd/{self.descriptors[ino]}"

    # ---- lookups, which this class counts

    def lookup(self, parent: int, name: str) -> InodeEntry:
        flags = os.O_PATH | os.O_NOFOLLOW
        return self.entry(os.open(name, flags, dir_fd=self.descriptors[parent]))

    def entry(self, descriptor: int) -> InodeEntry:
        found = os.fstat(descriptor)
        key = found.st_dev, found.st_ino
        with self.lock:
            number = self.numbers.get(key)
            if number is None:
                number = self.numbers[key] = self.last = self.last + 1
                self.descriptors[number] = descriptor
                self.lookups[number] = 0
            else:
                os.close(descriptor)
            self.lookups[number] += 1
        return InodeEntry(number, found)

    def forget(self, inodes: list[tuple[int, int]]) -> None:
        with self.lock:
            for ino, count in inodes:
                self.lookups[ino] -= count
                if not self.lookups[ino]:
                    descriptor = self.descriptors.pop(ino)
                    found = os.fstat(descriptor)
                    del self.numbers[found.st_dev, found.st_ino], self.lookups[ino]
                    os.close(descriptor)

    # ---- attributes

    def getattr(self, ino: int, fh: object) -> os.stat_result:
        return os.fstat(self.descriptors[ino])

    def setattr(self, ino: int, changes: Changes, fh: object) -> os.stat_result:
        place, now = self.place(ino), self.getattr(ino, fh)
        if changes.size is not None:
            os.truncate(place, changes.size)
        if changes.uid is not None or changes.gid is not None:
            uid = -1 if changes.uid is None else changes.uid
            os.chown(place, uid, -1 if changes.gid is None else changes.gid)
        if changes.mode is not None:
            os.chmod(place, changes.mode)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            atime = now.st_atime_ns if changes.atime_ns is None else changes.atime_ns
            mtime = now.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
            os.utime(place, ns=(atime, mtime))
        elif changes.size is changes.uid is changes.gid is changes.mode is None:
            os.chown(place, -1, -1)  # that changes st_ctime
        return self.getattr(ino, fh)

    def getxattr(self, ino: int, name: str) -> bytes:
        return os.getxattr(self.place(ino), name)

    def setxattr(self, ino: int, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.place(ino), name, value, flags)
        if recuse.current_request().kill_suidgid:  # a list, by who is not in the file's group
            os.chmod(self.place(ino), stat.S_IMODE(self.getattr(ino, None).st_mode) & ~stat.S_ISGID)

    def listxattr(self, ino: int) -> list[str]:
        return os.listxattr(self.place(ino))

    def removexattr(self, ino: int, name: str) -> None:
        os.removexattr(self.place(ino), name)

    def statfs(self, ino: int) -> os.statvfs_result:
        return os.fstatvfs(self.descriptors[ino])

    # ---- names

    def modes(self, parent: int, mode: int) -> tuple[int, int | None]:
        """Return permissions to make something with, and those that it gets then.

        The latter are None if the directory has a default access control list, which decides.
        """
        try:
            os.getxattr(self.place(parent), "system.posix_acl_default")
        except OSError:
            # The final ones may not allow to open it: git makes such files.
            return 0o700, mode & ~recuse.current_request().umask
        return mode, None

    def made(self, parent: int, name: str, mode: int | None) -> InodeEntry:
        """Give what was made to the program's user, with exactly these permissions."""
        return self.given(parent, self.lookup(parent, name), mode)

    def given(self, parent: int, entry: InodeEntry, mode: int | None) -> InodeEntry:
        request = recuse.current_request()
        place, found = self.place(entry.ino), self.getattr(entry.ino, None)
        if mode is None:
            mode = stat.S_IMODE(found.st_mode)
        inherited = self.getattr(parent, None).st_mode & stat.S_ISGID
        if os.geteuid() == 0:
            os.chown(place, request.uid or 0, -1 if inherited else request.gid or 0)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(place, mode | (inherited if stat.S_ISDIR(found.st_mode) else 0))
        entry.attributes = self.getattr(entry.ino, None)
        return entry

    def mkdir(self, parent: int, name: str, mode: int) -> InodeEntry:
        first, last = self.modes(parent, mode)
        os.mkdir(name, first, dir_fd=self.descriptors[parent])
        return self.made(parent, name, last)

    def mknod(self, parent: int, name: str, mode: int, rdev: int) -> InodeEntry:
        first, last = self.modes(parent, stat.S_IMODE(mode))
        os.mknod(name, stat.S_IFMT(mode) | first, rdev, dir_fd=self.descriptors[parent])
        return self.made(parent, name, last)

    def symlink(self, parent: int, name: str, target: str) -> InodeEntry:
        os.symlink(target, name, dir_fd=self.descriptors[parent])
        return self.made(parent, name, 0)

    def readlink(self, ino: int) -> str:
        return os.readlink("", dir_fd=self.descriptors[ino])

    def link(self, ino: int, parent: int, name: str) -> InodeEntry:
        os.link(self.place(ino), name, dst_dir_fd=self.descriptors[parent])
        return self.lookup(parent, name)

    def unlink(self, parent: int, name: str) -> None:
        os.unlink(name, dir_fd=self.descriptors[parent])

    def rmdir(self, parent: int, name: str) -> None:
        os.rmdir(name, dir_fd=self.descriptors[parent])

    def rename(self, parent: int, name: str, new_parent: int, new_name: str, flags: int) -> None:
        old = self.descriptors[parent], os.fsencode(name)
        new = self.descriptors[new_parent], os.fsencode(new_name)
        checked(libc.renameat2(*old, *new, flags))

    # ---- directories: what is opened is a list of names and inode numbers

    def opendir(self, ino: int, flags: int) -> Names:
        with os.scandir(self.place(ino)) as entries:
            return [(entry.name, entry.inode()) for entry in entries]

    def readdir(self, ino: int, fh: Names, offset: int) -> Iterator[DirectoryEntry]:
        for index, (name, number) in enumerate(fh[offset:], offset + 1):
            yield DirectoryEntry(name, index, ino=number)

    def readdirplus(self, ino: int, fh: Names, offset: int) -> Iterator[DirectoryEntry]:
        for index, (name, _) in enumerate(fh[offset:], offset + 1):
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                yield DirectoryEntry(name, index, entry=self.lookup(ino, name))

    # ---- files: what is opened is a descriptor, which the kernel uses itself where it can

    def open(self, ino: int, flags: int) -> Opened:
        flags &= os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC
        descriptor = os.open(self.place(ino), flags)
        return Opened(descriptor, backing=descriptor)

    def create(self, parent: int, name: str, mode: int, flags: int) -> Made:
        flags = flags & os.O_ACCMODE | os.O_CREAT | os.O_EXCL
        first, last = self.modes(parent, mode)
        descriptor = os.open(name, flags, first, dir_fd=self.descriptors[parent])
        try:
            return self.made(parent, name, last), Opened(descriptor, backing=descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def tmpfile(self, parent: int, mode: int, flags: int) -> Made:
        first, last = self.modes(parent, mode)
        access = flags & os.O_ACCMODE
        descriptor = os.open(self.place(parent), os.O_TMPFILE | access, first)
        try:
            entry = self.entry(os.open(f"/proc/self/fd/{descriptor}", os.O_PATH))
            return self.given(parent, entry, last), Opened(descriptor, backing=descriptor)
        except OSError:
            os.close(descriptor)
            raise

    def read(self, ino: int, fh: int, size: int, offset: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, ino: int, fh: int, data: bytes, offset: int) -> int:
        return os.pwrite(fh, data, offset)

    def fsync(self, ino: int, fh: int, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(fh)

    def fallocate(self, ino: int, fh: int, mode: int, offset: int, length: int) -> None:
        checked(libc.fallocate(fh, mode, ctypes.c_long(offset), ctypes.c_long(length)))

    def lseek(self, ino: int, fh: int, offset: int, whence: int) -> int:
        return os.lseek(fh, offset, whence)

    def release(self, ino: int, fh: int) -> None:
        os.close(fh)
