"""A filesystem that a test uses without mounting it."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import time
from collections.abc import Collection, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from recuse.channel.inprocess_backing import InProcessBacking
from recuse.channel.inprocess_mount import InProcessMount
from recuse.kernel.fs.credentials import ALL_CAPABILITIES, FileCaller
from recuse.kernel.fs.notifications import notified
from recuse.kernel.fs.options import MountOptions
from recuse.kernel.fs.superblock import Superblock
from recuse.server.filesystem.session import FilesystemSession
from recuse.testing.driver import Driver
from recuse.testing.paths import PathCalls
from recuse.testing.recording import Recorder, Sent

if TYPE_CHECKING:
    from recuse.server.filesystem.served import Served

_devices: Final = itertools.count(1)
_owners: Final = itertools.count(1)


class Leak(AssertionError):
    """At its end, a filesystem still had files or nodes that nobody can use any more."""


class TestMount(PathCalls):
    """A filesystem, and one user of it: the one who runs the test. Others: `as_user`.

    A context manager. At its end everything is closed and forgotten, and then the filesystem must
    have nothing left. All methods may be called by several threads.
    """

    __test__ = False

    def __init__(
        self,
        filesystem: Served,
        *,
        default_permissions: bool = True,
        allow_other: bool = True,
        read_only: bool = False,
        umask: int = 0o022,
        timeout_s: float = 30.0,
    ) -> None:
        """Begin to serve it.

        Args:
            filesystem: what is tested: a `Filesystem` or `Inodes`.
            default_permissions: permissions are checked by the modes of files, as Linux does it for
                all mounts of `recuse mount`. Otherwise the filesystem is asked (ACCESS).
            allow_other: others than the user who runs the test may use it too.
            read_only: it is mounted read-only: changes fail with EROFS, without being asked for.
            umask: permissions that new files lack.
            timeout_s: how long an ``async def`` method may take for its answer, and reading a whole
                file or directory. A filesystem that needs longer has failed.

        Raises:
            OSError: ECONNREFUSED if the filesystem's answer to INIT is no use.
        """
        uid, gid = os.geteuid(), os.getegid()
        options = MountOptions(
            default_permissions=default_permissions,
            allow_other=allow_other,
            read_only=read_only,
            user_id=uid,
            group_id=gid,
        )
        self._umask = umask
        self._ahead_ns = 0
        self._superblock = Superblock(options, notified, self._clock)
        backing = InProcessBacking(self._superblock)
        self._session = FilesystemSession(filesystem, backing)
        self._channel = InProcessMount(self._superblock, self._session)
        self._ended = False
        driver = Driver(self._superblock, timeout_s)
        super().__init__(driver, self._caller_of(uid, gid, os.getgroups()), next(_devices))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            # What failed is more interesting than what is left because of that.
            self._ended = True
            self._channel.close()
            self._driver.close_files()

    def close(self) -> None:
        """End it, once: close all files, forget all nodes, end the session.

        Raises Leak if the filesystem then still has open files or known nodes.
        """
        if self._ended:
            return
        self._ended = True
        left = self._leaks()
        self._channel.close()
        if left:
            raise Leak("; ".join(left))

    def as_user(self, uid: int, gid: int | None = None, groups: Collection[int] = ()) -> PathCalls:
        """Return the same filesystem as another user sees it; 0 has all capabilities."""
        caller = self._caller_of(uid, uid if gid is None else gid, groups)
        return PathCalls(self._driver, caller, self._device)

    def advance(self, seconds: float) -> None:
        """Let time pass for what is remembered of names and attributes, without waiting."""
        self._ahead_ns += int(seconds * 10**9)

    def drop_caches(self) -> None:
        """Forget all names and nodes that are not in use, as Linux does when memory is short."""
        self._superblock.drop_caches()
        self._superblock.send_forgets()

    def interrupt(self, *, fatal: bool = False) -> int:
        """Interrupt all calls that wait, as a signal does; return how many that were.

        ``fatal`` is a signal that kills.
        """
        return self._driver.interrupt(fatal)

    def abort(self) -> None:
        """End the connection, as the server's death does: all calls fail from now on."""
        self._superblock.connection.abort()

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[Sent]]:
        """Record the requests that the filesystem gets, in a list that grows meanwhile."""
        agreed = self._superblock.agreed
        recorder = Recorder(agreed.minor, agreed.flags)
        self._superblock.connection.tap = recorder
        try:
            yield recorder.sent
        finally:
            self._superblock.connection.tap = None

    def _clock(self) -> int:
        return time.monotonic_ns() + self._ahead_ns

    def _caller_of(self, uid: int, gid: int, groups: Collection[int]) -> FileCaller:
        capabilities = 0 if uid else ALL_CAPABILITIES
        return FileCaller(
            os.getpid(),
            uid,
            gid,
            groups=groups,
            capabilities=capabilities,
            umask=self._umask,
            owner=next(_owners),
        )

    def _leaks(self) -> list[str]:
        """Close and forget all there is; return what the filesystem still has."""
        self._driver.close_files()
        if self._superblock.connection.ended:
            return []
        self.drop_caches()
        left = self._session.left()
        if left:
            # An exception of the test's may have kept something in use.
            gc.collect()
            self.drop_caches()
            left = self._session.left()
        return left
