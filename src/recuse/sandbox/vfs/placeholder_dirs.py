"""Real, empty directories that stand for directories of the sandbox while these are open.

A program that has opened such a directory holds a descriptor of its placeholder. All calls about it
are answered from the sandbox's nodes. The placeholder is empty, so no names except "." and ".." are
found in it natively.

A placeholder is removed as soon as it is made, and only held open. So nothing is left behind if a
process is killed. For the kernel it is still a directory, but nothing can be made in it. It is as
deep below the removed directory of all placeholders as the directory it stands for is below the
root. So ".." natively leads to nothing that exists either. Placeholders are known by device and
inode number. No other directory has the same numbers while they are held.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import deque
from typing import Final

from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.sandbox.arch import arch
from recuse.sandbox.vfs import native_files
from recuse.sandbox.vfs.dentry import Dentry, Location, Mount

_MOST_GONE: Final = 64

_OPEN = os.O_RDONLY | arch.O_DIRECTORY | os.O_CLOEXEC


class PlaceholderDirs:
    """All placeholders of a sandbox. There is none before a program opens such a directory."""

    def __init__(self) -> None:
        self._lock = new_lock("PlaceholderDirs")
        self._root = b""
        self._held: dict[Location, int] = {}
        """The descriptors of their placeholders."""
        self._standing: dict[tuple[int, int], Location] = {}
        """What a placeholder stands for, by its device and inode number."""
        self._gone: deque[Location] = deque()
        """The directories that are held although they were removed."""
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
            held = self._held.get(location)
            if held is None:
                held = self._held[location] = self._make(location.path)
                status = os.fstat(held)
                self._standing[status.st_dev, status.st_ino] = location
                self.used = True
            return os.open(b"/proc/self/fd/%d" % held, _OPEN)

    def removed(self, directory: Dentry) -> None:
        """A directory was removed. Whoever has it open finds nothing there any more.

        For a few such directories recuse reports that as long as the placeholder is held. In the
        others the kernel finds nothing either.
        """
        with self._lock:
            self._gone += [location for location in self._held if location.dentry is directory]
            while len(self._gone) > _MOST_GONE:
                held = self._held.pop(self._gone.popleft())
                status = os.fstat(held)
                del self._standing[status.st_dev, status.st_ino]
                os.close(held)

    def _make(self, path: bytes) -> int:
        if not self._root:
            self._root = _place() + b"/recuse-" + os.urandom(8).hex().encode()
        made: list[bytes] = []
        try:
            place = self._root
            for name in path.split(b"/"):
                place = os.path.join(place, name)
                os.mkdir(place, 0o700)
                made.append(place)
                os.chmod(place, 0o755)  # everybody may search it, whatever the umask
            return os.open(place, _OPEN)
        finally:
            for place in reversed(made):
                with contextlib.suppress(OSError):
                    os.rmdir(place)

    def standing_for(self, status: os.stat_result) -> Location | None:
        """What a directory stands for; None if it is no placeholder."""
        return self._standing.get((status.st_dev, status.st_ino)) if self.used else None

    def are_entered(self, mount: Mount) -> bool:
        """Whether a directory of that mount is the working directory of some process."""
        with self._lock:
            places = {
                place for place, location in self._standing.items() if location.mount is mount
            }
        return bool(places) and native_files.is_working_directory(places)

    def close(self) -> None:
        """Close all placeholders."""
        with self._lock:
            held, self._held = self._held, {}
            self._standing.clear()
            self._gone.clear()
            self.used = False
        for descriptor in held.values():
            os.close(descriptor)


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
