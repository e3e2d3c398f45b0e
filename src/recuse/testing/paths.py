"""System calls on paths, as a user makes them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from recuse.kernel.errors import os_error
from recuse.kernel.fs import names, xattrs
from recuse.kernel.fs.attributes import get_attributes, get_birth_time, statfs
from recuse.kernel.fs.changes import NOW, Changes, change_attributes, truncate
from recuse.kernel.fs.directories import Directory, DirectoryEntry
from recuse.kernel.fs.files import FilesystemFile
from recuse.kernel.fs.opening import open_path
from recuse.kernel.fs.permission import MAY_ACCESS, permission
from recuse.kernel.fs.regular import RegularFile
from recuse.kernel.fs.walk import Last, Walk, read_link
from recuse.testing.files import TestDirectory, TestFile
from recuse.testing.status import stat_result

if TYPE_CHECKING:
    from recuse.kernel.connection.operation import Operation
    from recuse.kernel.fs.credentials import FileCaller
    from recuse.kernel.fs.inodes import Inode
    from recuse.testing.driver import Driver, Path

T = TypeVar("T")


class PathCalls:
    """What a user of the filesystem can do with its paths.

    Paths are relative to the filesystem's root, with or without "/" before them; symbolic links
    are followed within it. All methods raise what the system call of that name does: OSError with
    errno and ``filename``. Names are str, or bytes where a name may be no text.
    """

    def __init__(self, driver: Driver, caller: FileCaller, device: int) -> None:
        self._driver = driver
        self._caller = caller
        self._device = device

    # How they are done

    def _walk(self, make: Callable[[Walk], Operation[T]], *paths: Path) -> T:
        """Run an operation that goes along paths; once more if the server says ESTALE.

        Raises ValueError for a NUL in a path, as `os` does, before anything is asked.
        """
        for path in paths:
            encode(path)
        superblock = self._driver.superblock
        try:
            return self._driver.run(make(Walk(superblock, self._caller, superblock.root)), *paths)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        again = Walk(superblock, self._caller, superblock.root, again=True)
        return self._driver.run(make(again), *paths)

    def _at(
        self, path: Path, then: Callable[[Walk, Inode], Operation[T]], follow: bool = True
    ) -> T:
        """Run an operation on what a path leads to."""

        def operation(walk: Walk) -> Operation[T]:
            found = yield from walk.find(encode(path), follow)
            assert found.inode is not None
            return (yield from then(walk, found.inode))

        return self._walk(operation, path)

    def _make(self, path: Path, then: Callable[[Walk, Last], Operation[None]]) -> None:
        """Run an operation that makes the last name of a path (filename_create)."""

        def operation(walk: Walk) -> Operation[None]:
            last = yield from walk.find_last(encode(path))
            if last.is_dots:
                raise os_error(errno.EEXIST)
            yield from then(walk, last)

        self._walk(operation, path)

    # Files

    def open(self, path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> TestFile:
        """Open a regular file, or make one (O_CREAT); flags are those of `os.open`.

        Raises OSError: EISDIR for a directory, which `open_directory` opens; ENXIO for a FIFO,
        socket or device node, which the kernel opens without the filesystem.
        """
        file = self._open(path, flags, mode)
        if isinstance(file, RegularFile):
            return TestFile(self._driver, self._caller, file, path, self._device)
        self._driver.run(file.release())
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)

    def open_directory(self, path: Path) -> TestDirectory:
        """Open a directory."""
        file = self._open(path, os.O_RDONLY | os.O_DIRECTORY, 0)
        assert isinstance(file, Directory)
        return TestDirectory(self._driver, self._caller, file, path, self._device)

    def _open(self, path: Path, flags: int, mode: int) -> FilesystemFile:
        return self._walk(lambda walk: open_path(walk, encode(path), flags, mode), path)

    def read_bytes(self, path: Path) -> bytes:
        """Return a file's content."""
        with self.open(path) as file:
            return file.read()

    def read_text(self, path: Path) -> str:
        """Return a file's content, which is UTF-8."""
        return self.read_bytes(path).decode()

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Write a file anew, and make it if need be. Raises OSError: EIO if not all was taken."""
        self._write(path, data, os.O_TRUNC)

    def write_text(self, path: Path, text: str) -> None:
        """The same, with text."""
        self.write_bytes(path, text.encode())

    def append_bytes(self, path: Path, data: bytes) -> None:
        """Write at a file's end, and make it if need be."""
        self._write(path, data, os.O_APPEND)

    def _write(self, path: Path, data: bytes, flags: int) -> None:
        with self.open(path, os.O_WRONLY | os.O_CREAT | flags) as file:
            if file.write(data) != len(data):
                raise OSError(errno.EIO, "not everything was written", path)

    def truncate(self, path: Path, size: int) -> None:
        """Change a file's size."""
        self._at(path, lambda walk, inode: truncate(walk.superblock, walk.caller, inode, size))

    # Directories

    def listdir(self, path: Path = ".") -> list[str]:
        """Return the names in a directory, in the filesystem's order, without "." and ".."."""
        return [os.fsdecode(entry.name) for entry in self.scandir(path)]

    def scandir(self, path: Path = ".") -> list[DirectoryEntry]:
        """Return the entries of a directory, without "." and ".."."""
        with self.open_directory(path) as directory:
            return [entry for entry in directory if entry.name not in (b".", b"..")]

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        """Make a directory."""
        self._make(
            path,
            lambda walk, last: names.make_directory(
                walk.superblock, walk.caller, last.directory, last.name, mode
            ),
        )

    def mknod(self, path: Path, mode: int = 0o600, rdev: int = 0) -> None:
        """Make a FIFO, a socket, a device node or a regular file, as the type in ``mode`` says."""

        def operation(walk: Walk, last: Last) -> Operation[None]:
            _check_slashes(last)
            yield from names.make_node(
                walk.superblock, walk.caller, last.directory, last.name, mode, rdev
            )

        self._make(path, operation)

    def symlink(self, target: Path, path: Path) -> None:
        """Make a symbolic link that leads to ``target``."""
        leads_to = encode(target)

        def operation(walk: Walk, last: Last) -> Operation[None]:
            _check_slashes(last)
            yield from names.make_symlink(
                walk.superblock, walk.caller, last.directory, last.name, leads_to
            )

        self._make(path, operation)

    def readlink(self, path: Path) -> str:
        """Return where a symbolic link leads."""
        target = self._at(
            path, lambda walk, inode: read_link(walk.superblock, walk.caller, inode), follow=False
        )
        return os.fsdecode(target)

    def link(self, old: Path, new: Path) -> None:
        """Give a file another name; a symbolic link is not followed."""

        def operation(walk: Walk) -> Operation[None]:
            found = yield from walk.find(encode(old), follow=False)
            last = yield from walk.find_last(encode(new))
            if last.is_dots:
                raise os_error(errno.EEXIST)
            _check_slashes(last)
            assert found.inode is not None
            yield from names.make_link(
                walk.superblock, walk.caller, found.inode, last.directory, last.name
            )

        self._walk(operation, old, new)

    def unlink(self, path: Path) -> None:
        """Remove a name that is not a directory's."""

        def operation(walk: Walk) -> Operation[None]:
            last = yield from walk.find_last(encode(path))
            if last.is_dots:
                raise os_error(errno.EISDIR)
            yield from names.unlink(
                walk.superblock, walk.caller, last.directory, last.name, last.slashes
            )

        self._walk(operation, path)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""

        def operation(walk: Walk) -> Operation[None]:
            last = yield from walk.find_last(encode(path))
            if last.is_dots:
                errors = {b"": errno.EBUSY, b".": errno.EINVAL, b"..": errno.ENOTEMPTY}
                raise os_error(errors[last.name])
            yield from names.remove_directory(
                walk.superblock, walk.caller, last.directory, last.name
            )

        self._walk(operation, path)

    def rename(self, old: Path, new: Path, flags: int = 0) -> None:
        """Rename something; flags: `recuse.RENAME_NOREPLACE`, `recuse.RENAME_EXCHANGE`."""

        def operation(walk: Walk) -> Operation[None]:
            source = yield from walk.find_last(encode(old))
            target = yield from walk.find_last(encode(new))
            if source.is_dots:
                raise os_error(errno.EBUSY)
            if target.is_dots:
                exists = flags & names.RENAME_NOREPLACE
                raise os_error(errno.EEXIST if exists else errno.EBUSY)
            yield from names.Rename(walk.superblock, walk.caller, source, target, flags).run()

        self._walk(operation, old, new)

    # Attributes

    def stat(self, path: Path = ".", *, follow_symlinks: bool = True) -> os.stat_result:
        """Return a file's attributes."""
        attr = self._at(
            path,
            lambda walk, inode: get_attributes(walk.superblock, walk.caller, inode),
            follow_symlinks,
        )
        return stat_result(attr, self._device)

    def birth_time_ns(self, path: Path) -> int | None:
        """Return when a file was made, in nanoseconds (statx); None if that is not known."""
        return self._at(
            path, lambda walk, inode: get_birth_time(walk.superblock, walk.caller, inode)
        )

    def lstat(self, path: Path) -> os.stat_result:
        """Return a file's attributes, or those of the symbolic link that it is."""
        return self.stat(path, follow_symlinks=False)

    def exists(self, path: Path) -> bool:
        """Whether a path leads to something."""
        try:
            self.stat(path)
        except ValueError:
            return False  # as `os.path.exists` says it
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return False
            raise
        return True

    def access(self, path: Path, mode: int) -> bool:
        """Whether the user may read, write or execute a file (`os.R_OK` and so on)."""

        def operation(walk: Walk, inode: Inode) -> Operation[None]:
            yield from permission(walk.superblock, walk.caller, inode, mode | MAY_ACCESS)

        try:
            self._at(path, operation)
        except OSError:
            return False
        return True

    def chmod(self, path: Path, mode: int) -> None:
        """Change a file's permission bits."""
        self._change(path, Changes(mode=mode & 0o7777))

    def chown(
        self, path: Path, uid: int = -1, gid: int = -1, *, follow_symlinks: bool = True
    ) -> None:
        """Change a file's owner and group; -1: not."""
        changes = Changes(uid=None if uid < 0 else uid, gid=None if gid < 0 else gid)
        self._change(path, changes, follow_symlinks)

    def utime(
        self,
        path: Path,
        ns: tuple[int | None, int | None] | None = None,
        *,
        follow_symlinks: bool = True,
    ) -> None:
        """Set a file's times of access and change, in nanoseconds; None: to the present."""
        atime, mtime = (None, None) if ns is None else ns
        changes = Changes(
            atime_ns=NOW if atime is None else atime, mtime_ns=NOW if mtime is None else mtime
        )
        self._change(path, changes, follow_symlinks)

    def _change(self, path: Path, changes: Changes, follow: bool = True) -> None:
        self._at(
            path,
            lambda walk, inode: change_attributes(walk.superblock, walk.caller, inode, changes),
            follow,
        )

    def statvfs(self, path: Path = ".") -> os.statvfs_result:
        """Return what is known about the whole filesystem."""
        return self._at(path, lambda walk, inode: statfs(walk.superblock, walk.caller, inode))

    # Extended attributes

    def getxattr(self, path: Path, name: str) -> bytes:
        """Return an extended attribute."""
        encoded = encode(name)
        return self._sized(
            path,
            128,
            lambda walk, inode, size: xattrs.get_xattr(
                walk.superblock, walk.caller, inode, encoded, size
            ),
        )

    def listxattr(self, path: Path) -> list[str]:
        """Return the names of a file's extended attributes."""
        listed = self._sized(
            path,
            256,
            lambda walk, inode, size: xattrs.list_xattr(walk.superblock, walk.caller, inode, size),
        )
        return [os.fsdecode(name) for name in listed]

    def _sized(self, path: Path, size: int, then: Callable[[Walk, Inode, int], Operation[T]]) -> T:
        """Ask with a small buffer first, as `os.getxattr` and `os.listxattr` do."""
        try:
            return self._at(path, lambda walk, inode: then(walk, inode, size))
        except OSError as error:
            if error.errno != errno.ERANGE:
                raise
        return self._at(path, lambda walk, inode: then(walk, inode, xattrs.MOST_SIZE))

    def setxattr(self, path: Path, name: str, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; flags: `os.XATTR_CREATE`, `os.XATTR_REPLACE`."""
        encoded = encode(name)
        self._at(
            path,
            lambda walk, inode: xattrs.set_xattr(
                walk.superblock, walk.caller, inode, encoded, bytes(value), flags
            ),
        )

    def removexattr(self, path: Path, name: str) -> None:
        """Remove an extended attribute."""
        encoded = encode(name)
        self._at(
            path,
            lambda walk, inode: xattrs.remove_xattr(walk.superblock, walk.caller, inode, encoded),
        )


def encode(path: Path) -> bytes:
    """A path as a system call gets it. Raises ValueError for a NUL in it."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def _check_slashes(last: Last) -> None:
    """Raise what making something else than a directory does, if slashes follow the name."""
    if last.slashes:
        raise os_error(errno.ENOENT)
