"""Real, empty directories that stand for directories of the sandbox while these are open.

A program that has opened such a directory holds a descriptor of its placeholder. All calls about it
are answered from the sandbox's nodes. The placeholder is empty, so no names except "." and ".." are
found in it natively.

A placeholder is removed as soon as it is made. So nothing is left behind if a
process is killed. For the kernel it is still a directory, but nothing can be made in it. It is as
deep below the removed directory of all placeholders as the directory it stands for is below the
root. So ".." natively leads to nothing that exists either. Placeholders are known by device and
inode number. No other directory has the same numbers while somebody has them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from typing import Final

from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.sandbox.arch import arch
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import Location, Mount

_MOST_HELD: Final = 64

_IN_DELETE_SELF: Final = 0x400
_IN_IGNORED: Final = 0x8000
_EVENT: Final = struct.Struct("=iIII")
"""linux/inotify.h; the events of a directory itself have no name."""

_libc = ctypes.CDLL(None, use_errno=True)

_OPEN = os.O_RDONLY | arch.O_DIRECTORY | os.O_CLOEXEC


class PlaceholderDirs:
    """All placeholders of a sandbox. There is none before a program opens such a directory.

    The ones that were used last are held here, to be opened again. Others last as long as a program
    has them, as its working directory for example; inotify tells when that is over.
    """

    def __init__(self) -> None:
        self._lock = new_lock("PlaceholderDirs")
        self._root = b""
        self._held: dict[Location, int] = {}
        """The descriptors of their placeholders. The one that was used last comes last."""
        self._standing: dict[tuple[int, int], Location] = {}
        """What a placeholder stands for, by its device and inode number."""
        self._inotify = -1
        self._watches: dict[int, tuple[int, int]] = {}
        """Device and inode number, by the number of the watch."""
        self._watched = True
        """Whether all are watched. If they cannot be, all are held."""
        self.used = False
        """Whether there are any."""

    def open(self, location: Location) -> int:
        """Return a new descriptor of a directory's placeholder.

        Raises:
            OSError: EACCES if there is no place to make it; ENOENT if the directory has been
                removed; as mkdir and open.
        """
        with self._lock:
            if location.node.removed:
                raise os_error(errno.ENOENT)
            self._collect()
            held = self._held.pop(location, None)
            if held is None:
                held = self._make(location.path)
                status = os.fstat(held)
                identity = status.st_dev, status.st_ino
                self._standing[identity] = location
                self._watch(held, identity)
                self.used = True
            self._held[location] = held
            while self._watched and len(self._held) > _MOST_HELD:
                os.close(self._held.pop(next(iter(self._held))))
            return os.open(b"/proc/self/fd/%d" % held, _OPEN)

    def _watch(self, held: int, identity: tuple[int, int]) -> None:
        if self._inotify < 0 and self._watched:
            self._inotify = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        watch = -1
        if self._inotify >= 0:
            watch = _libc.inotify_add_watch(
                self._inotify, b"/proc/self/fd/%d" % held, _IN_DELETE_SELF
            )
        if watch < 0:
            self._watched = False
        else:
            self._watches[watch] = identity

    def _collect(self) -> None:
        """Forget those that nobody has any more: no other directory may be taken for them."""
        if self._inotify < 0:
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self._inotify, _EVENT.size * 64)
                for watch, what, _, _ in _EVENT.iter_unpack(data):
                    if what & _IN_IGNORED and (gone := self._watches.pop(watch, None)):
                        self._standing.pop(gone, None)

    def _make(self, path: bytes) -> int:
        if not self._root:
            self._root = _place() + b"/recuse-" + os.urandom(8).hex().encode()
        place, _, first = self._root.rpartition(b"/")
        made: list[bytes] = []
        here = os.open(place or b"/", _OPEN)
        try:
            # Step by step: the whole path may be longer than a path may be.
            for name in filter(None, (first, *path.split(b"/"))):
                os.mkdir(name, 0o700, dir_fd=here)
                made.append(name)
                here = _moved(here, name)
                os.fchmod(here, 0o755)  # everybody may search it, whatever the umask
            return os.dup(here)
        finally:
            with contextlib.suppress(OSError):
                while made:
                    here = _moved(here, b"..")
                    os.rmdir(made.pop(), dir_fd=here)
            os.close(here)

    def standing_for(self, status: os.stat_result) -> Location | None:
        """What a directory stands for; None if it is no placeholder."""
        if not self.used:
            return None
        identity = status.st_dev, status.st_ino
        if identity not in self._standing:
            return None
        with self._lock:
            self._collect()
            return self._standing.get(identity)

    def are_entered(self, mount: Mount) -> bool:
        """Whether a directory of that mount is the working directory of some process."""
        with self._lock:
            self._collect()
            places = {
                place for place, location in self._standing.items() if location.mount is mount
            }
        return bool(places) and native_files.is_working_directory(places)

    def close(self) -> None:
        """Close all placeholders."""
        with self._lock:
            held, self._held = self._held, {}
            self._standing.clear()
            inotify, self._inotify = self._inotify, -1
            self._watched = self.used = False
        if inotify >= 0:
            os.close(inotify)
        for descriptor in held.values():
            os.close(descriptor)


def _moved(directory: int, name: bytes) -> int:
    """A descriptor of a directory in another one, whose own is closed. OSError as open."""
    found = os.open(name, _OPEN, dir_fd=directory)
    os.close(directory)
    return found


def _place() -> bytes:
    """A directory in which others can be made. OSError: EACCES if there is none."""
    import tempfile  # noqa: PLC0415  # which most runs do without

    places = ["/dev/shm", os.environ.get("XDG_RUNTIME_DIR", ""), "/run"]
    with contextlib.suppress(FileNotFoundError):  # it tries several, and the working directory
        places.insert(0, tempfile.gettempdir())
    for place in places:
        if place and os.access(place, os.W_OK | os.X_OK):
            return os.fsencode(os.path.realpath(place))
    raise os_error(errno.EACCES)
