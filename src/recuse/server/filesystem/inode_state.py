"""What the operations of one session on `Inodes` have in common."""

from __future__ import annotations

import errno
import itertools
import operator
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

from recuse.runtime.records import NamedTuple
from recuse.server.errors import Misuse, brief
from recuse.server.filesystem import encoding
from recuse.server.filesystem.attributes import Attributes, InodeEntry, Opened
from recuse.server.filesystem.inodes import Inodes
from recuse.server.filesystem.passthrough import Modes
from recuse.server.runner import Runner
from recuse.wire.filesystem import fuse_attr
from recuse.wire.fuse import (
    FOPEN_CACHE_DIR,
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    FOPEN_NONSEEKABLE,
    FOPEN_PARALLEL_DIRECT_WRITES,
    FUSE_COMPAT_SETXATTR_IN_SIZE,
    fuse_open_out,
)

_NO_ATTRIBUTES: Final = bytes(fuse_attr.SIZE)


class Held(NamedTuple):
    """An open file or directory."""

    fh: object
    ino: int
    is_directory: bool


class InodeState:
    """The open files of one session, and what the kernel half is told about inodes."""

    def __init__(self, inodes: Inodes, runner: Runner, owner: encoding.Owner) -> None:
        self.inodes = inodes
        self.runner = runner
        self.held: dict[int, Held] = {}
        self.modes = Modes()
        self.setxattr_size = FUSE_COMPAT_SETXATTR_IN_SIZE
        """How long a request to set an extended attribute is up to the name."""
        self._handles = itertools.count(1)
        self._valid = encoding.valid(inodes.cache_s)
        self._attributes = encoding.attributes if owner == encoding.Owner() else owner.of
        self._released = False

    def defines(self, *names: str) -> bool:
        """Whether the author has one of these methods."""
        return any(
            getattr(getattr(self.inodes, name), "__func__", None) is not getattr(Inodes, name)
            for name in names
        )

    # ---- inodes

    def entry(self, returned: Any, tail: bytes = b"") -> bytes:
        """``struct fuse_entry_out`` for an entry; ``tail`` follows it.

        Raises Misuse if it is not an `InodeEntry` of an inode.
        """
        if not isinstance(returned, InodeEntry) or not _is_number(returned.ino):
            raise Misuse(f"returned {brief(returned)}, not an InodeEntry with a number")
        entry_s = returned.entry_cache_s
        entry_valid = self._valid if entry_s is None else encoding.valid(entry_s)
        attributes = self._told(returned.ino, returned.attributes)
        valid = self._valid_of(returned)
        head = encoding.entry(returned.ino, entry_valid, valid, returned.generation)
        return head + attributes + tail

    def forget(self, forgotten: list[tuple[int, int]]) -> None:
        """Have the author take back lookups, except at the end, when they are all over."""
        if forgotten and not self._released:
            self.runner.quietly_later(self.inodes.forget, forgotten)

    def found(self, returned: Any, _: None) -> bytes:
        """The answer to LOOKUP."""
        if returned is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if isinstance(returned, InodeEntry) and returned.ino == 0:
            entry_s = returned.entry_cache_s
            valid = self._valid if entry_s is None else encoding.valid(entry_s)
            return encoding.entry(0, valid, (0, 0)) + _NO_ATTRIBUTES
        return self.entry(returned)

    def made(self, returned: Any, _: None) -> bytes:
        """The answer to MKNOD and the like."""
        return self.entry(returned)

    def attr(self, returned: Any, ino: int) -> bytes:
        """``struct fuse_attr_out`` for attributes, or an entry."""
        told = returned.attributes if isinstance(returned, InodeEntry) else returned
        return encoding.attr_head(self._valid_of(returned)) + self._told(ino, told)

    def statx(self, returned: Any, ino: int) -> bytes:
        """``struct fuse_statx_out`` for the same."""
        told = returned.attributes if isinstance(returned, InodeEntry) else returned
        btime_ns = told.btime_ns if isinstance(told, Attributes) else None
        return encoding.statx(self._told(ino, told), btime_ns, self._valid_of(returned))

    def _valid_of(self, returned: Any) -> tuple[int, int]:
        if isinstance(returned, InodeEntry) and returned.cache_s is not None:
            return encoding.valid(returned.cache_s)
        return self._valid

    def _told(self, ino: int, told: Any) -> bytes:
        if isinstance(told, os.stat_result):
            return self._attributes(told.st_ino, told)
        if not isinstance(told, Attributes):
            raise Misuse(f"returned {brief(told)}, not Attributes or os.stat_result")
        return self._attributes(ino, told)

    # ---- open files and directories

    def fh(self, handle: int) -> object:
        """Return what the author has opened; None if the kernel half did not ask.

        Raises OSError: EBADF.
        """
        if not handle:
            return None
        try:
            return self.held[handle].fh
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def opened(self, returned: Any, ino: int) -> bytes:
        """The answer to OPEN. Raises OSError: ENODEV if the session has closed."""
        how = returned if isinstance(returned, Opened) else Opened(returned)
        handle = next(self._handles)
        flags, backing = self.modes.open(handle, ino, how.backing, how.direct, how.keep_cache)
        if how.nonseekable and not backing:  # FOPEN_PASSTHROUGH_MASK excludes it
            flags |= FOPEN_NONSEEKABLE
        if not how.flushed:
            flags |= FOPEN_NOFLUSH
        if how.parallel_writes:
            flags |= FOPEN_PARALLEL_DIRECT_WRITES
        self._hold(handle, Held(how.fh, ino, False))
        return fuse_open_out(fh=handle, open_flags=flags, backing_id=backing).pack()

    def opened_directory(self, returned: Any, ino: int) -> bytes:
        """The answer to OPENDIR. Raises OSError: ENODEV if the session has closed."""
        how = returned if isinstance(returned, Opened) else Opened(returned)
        handle = next(self._handles)
        flags = FOPEN_CACHE_DIR if how.cache_entries else 0
        if how.keep_cache:
            flags |= FOPEN_KEEP_CACHE
        self._hold(handle, Held(how.fh, ino, True))
        return fuse_open_out(fh=handle, open_flags=flags).pack()

    def created(self, returned: Any, _: None) -> bytes:
        """The answer to CREATE. If it cannot be made, the file is released."""
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise Misuse(f"returned {brief(returned)}, not an InodeEntry and what `open` returns")
        entry, how = returned
        ino = entry.ino if isinstance(entry, InodeEntry) else 0
        opened = self.opened(how, ino)
        try:
            return self.entry(entry, opened)
        except BaseException:
            self.drop(fuse_open_out.unpack(opened).fh)
            raise

    def closed(self, handle: int) -> Held | None:
        """Remove and return what no program has open any longer; None if there is none."""
        self.modes.close(handle)
        return self.held.pop(handle, None)

    def drop(self, handle: int) -> None:
        """Release what the kernel half is not told about."""
        held = self.closed(handle)
        if held is not None:
            self.runner.quietly_later(self.releasing(held), held.ino, held.fh)

    def release_all(self) -> Iterator[Held]:
        """Remove and return all that is open; what is opened later is released at once."""
        self._released = True
        for handle in list(self.held):
            held = self.closed(handle)
            if held is not None:
                yield held

    def releasing(self, held: Held) -> Callable[[int, object], Any]:
        """The author's method that releases it."""
        return self.inodes.releasedir if held.is_directory else self.inodes.release

    def _hold(self, handle: int, held: Held) -> None:
        self.held[handle] = held
        if self._released:
            self.drop(handle)
            raise OSError(errno.ENODEV, "the session has closed")


def _is_number(ino: Any) -> bool:
    """Whether an inode may have this number; any integer type will do, such as NumPy's."""
    try:
        return 0 < operator.index(ino) < 1 << 64
    except TypeError:
        return False
