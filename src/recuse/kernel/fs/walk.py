"""The way along a path within one filesystem (fs/namei.c, link_path_walk)."""

import errno
import stat
from typing import Final, NamedTuple

from recuse.kernel.connection.operation import Operation
from recuse.kernel.errors import os_error
from recuse.kernel.fs.asking import ask
from recuse.kernel.fs.credentials import FileCaller
from recuse.kernel.fs.dentries import Dentry
from recuse.kernel.fs.inodes import STATX_ATIME, Inode
from recuse.kernel.fs.lookup import directory_of, is_known, lookup
from recuse.kernel.fs.permission import MAY_EXEC, may_search, permission
from recuse.kernel.fs.superblock import Superblock
from recuse.wire.fuse import FUSE_CACHE_SYMLINKS, FUSE_READLINK

PATH_MAX: Final = 4096
"""With the NUL at the end."""
_MOST_LINKS: Final = 40
"""MAXSYMLINKS."""
_DOTS: Final = (b"", b".", b"..")
_LINK_ROOM: Final = 4095


class Last(NamedTuple):
    """A path up to its last name."""

    directory: Dentry
    name: bytes
    """b"" if the path has no name: "/"; it may also be "." or ".."."""
    slashes: bool
    """Whether slashes follow: then it has to be a directory."""

    @property
    def is_dots(self) -> bool:
        """Whether it is no name that something could be made or removed with."""
        return self.name in _DOTS


class Walk:
    """One walk along a path, with everything that it has to keep to.

    ``start`` is where relative paths begin, and ``again`` asks the server about each name, whatever
    is remembered (LOOKUP_REVAL: a second try after ESTALE).
    """

    def __init__(
        self, superblock: Superblock, caller: FileCaller, start: Dentry, again: bool = False
    ) -> None:
        self.superblock = superblock
        self.caller = caller
        self.start = start
        self.again = again
        self._links = 0

    def find(self, path: bytes, follow: bool = True, directory: bool = False) -> Operation[Dentry]:
        """Return what a path leads to; ``follow`` a symbolic link at the end.

        Raises OSError: ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG, EACCES, or what the server answers.
        """
        last = yield from self.find_last(path)
        return (yield from self.go_on(last, follow, directory))

    def find_last(self, path: bytes, start: Dentry | None = None) -> Operation[Last]:
        """Return where the last name of a path is; whether it exists is not looked at."""
        if not path:
            raise os_error(errno.ENOENT)
        if len(path) >= PATH_MAX:
            raise os_error(errno.ENAMETOOLONG)
        here = self.start if start is None else start
        if path.startswith(b"/"):
            here = self.superblock.root
        names = [name for name in path.split(b"/") if name]
        if not names:
            return Last(here, b"", True)
        for name in names[:-1]:
            here = yield from self.go_on(Last(here, name, True))
        return Last(here, names[-1], path.endswith(b"/"))

    def go_on(self, last: Last, follow: bool = True, directory: bool = False) -> Operation[Dentry]:
        """Take the last step of a walk; see `find`."""
        while True:
            here, name, slashes = last
            directory = directory or slashes
            if name in _DOTS:
                if name:
                    yield from self._may_search(here)
                return here.directory if name == b".." else here
            found = yield from self.step(here, name)
            inode = found.inode
            if inode is None:
                raise os_error(errno.ENOENT)
            if not stat.S_ISLNK(inode.attr.mode) or not (follow or slashes):
                break
            last = yield from self.follow(last, inode)
        if directory and not inode.is_directory:
            raise os_error(errno.ENOTDIR)
        return found

    def step(self, here: Dentry, name: bytes, again: bool = False) -> Operation[Dentry]:
        """Look for one name in a directory, which the caller has to be allowed to search."""
        yield from self._may_search(here)
        again = again or self.again
        return (yield from lookup(self.superblock, self.caller, here, name, again))

    def follow(self, last: Last, link: Inode) -> Operation[Last]:
        """Follow a symbolic link that a walk has come to; return where the way goes on."""
        self._links += 1
        if self._links > _MOST_LINKS:
            raise os_error(errno.ELOOP)
        target = yield from read_link(self.superblock, self.caller, link)
        if not target:  # fs/namei.c, pick_link: the way goes on where the link is
            return Last(last.directory, b"", last.slashes)
        found = yield from self.find_last(target, last.directory)
        return found._replace(slashes=found.slashes or last.slashes)

    def _may_search(self, here: Dentry) -> Operation[None]:
        inode = directory_of(here)
        yield from permission(self.superblock, self.caller, inode, MAY_EXEC)


def go_along(
    superblock: Superblock, caller: FileCaller, start: Dentry, names: list[bytes]
) -> Operation[Dentry]:
    """Go along a path, and take each name off the end of ``names``; return where it stops.

    It stops at what is no directory, where nothing has that name, and before "..".

    Raises OSError: EACCES, ENAMETOOLONG, EIO, or what the server answers.
    """
    here = start
    while names:
        inode = here.inode
        if inode is None or not inode.is_directory:
            break
        yield from permission(superblock, caller, directory_of(here), MAY_EXEC)
        name = names[-1]
        if name == b"..":
            break
        if name != b".":
            found = yield from lookup(superblock, caller, here, name)
            if found.inode is None:
                break
            here = found
        names.pop()
    return here


def go_along_known(
    superblock: Superblock, caller: FileCaller, start: Dentry, names: list[bytes]
) -> Dentry:
    """Do the same as far as nobody has to be asked (fs/namei.c, lookup_fast)."""
    here = start
    now = superblock.clock()
    while names:
        inode = here.inode
        if inode is None or not may_search(superblock, caller, inode):
            break
        name = names[-1]
        if name == b"..":
            break
        if name != b".":
            found = here.children.get(name)
            if found is None or found.inode is None or not is_known(superblock, found, now):
                break
            here = found
        names.pop()
    return here


def read_link(superblock: Superblock, caller: FileCaller, inode: Inode) -> Operation[bytes]:
    """Return where a symbolic link leads (fuse_get_link).

    Raises OSError: EINVAL if it is no link, EIO.
    """
    inode.check()
    if not stat.S_ISLNK(inode.attr.mode):
        raise os_error(errno.EINVAL)
    target = inode.target
    if target is None:
        payload = yield from ask(caller, FUSE_READLINK, inode.nodeid, b"", _LINK_ROOM, least=0)
        inode.outdate(STATX_ATIME)
        # Linux keeps it as a string, which ends with the first NUL.
        target = bytes(payload).partition(b"\0")[0]
        if superblock.has(FUSE_CACHE_SYMLINKS):
            inode.target = target
    return target
