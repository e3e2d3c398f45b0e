"""The open files of a sandbox's programs, from open until their last reference is gone.

A program holds one end of a native object of recuse's (:mod:`recuse.sandbox.files.native_end`), and
what it does with its descriptor need not be seen. Two questions remain.

*Which file is descriptor N of that thread?* The kernel's own answer is the link
``/proc/TID/fd/N``. For a socket it has the inode number, which is unique while the socket lives.
Reading the link takes about 3 us. The result is remembered, and the next time kcmp(2) says in half
that time whether it is still true (:mod:`recuse.sandbox.files.identity`).

*When has the last reference gone?* The supervisor's end hangs up. RELEASE is sent then.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import threading
from collections.abc import Callable, Hashable, Iterator

from recuse.channel.workers import Workers
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.sandbox.errands import Errands
from recuse.sandbox.files.description import FileDescription, PollSource
from recuse.sandbox.files.identity import KCMP, KCMP_EPOLL_TFD, Identities, kcmp
from recuse.sandbox.files.readiness import Readiness
from recuse.sandbox.files.refresher import ReadinessRefresher
from recuse.sandbox.files.releases import PendingReleases
from recuse.sandbox.tasks.unseen import Unseen
from recuse.sandbox.trap.call import TrappedCall
from recuse.wire.ids import Tid

_MOST_SEEN = 4096
_MOST_NOTED = 64

_LAST_RELEASES_S = 5.0
"""How long the end of the sandbox waits for releases that have started."""

_SWEEP_S = 0.5
"""How long a last close may go unnoticed if the device went away while the file was polled."""


class FileTable:
    """All open files of a sandbox, and the threads that notice when they are closed."""

    def __init__(self, errands: Errands) -> None:
        """Start watching.

        Args:
            errands: run what waits for a release, and the late releases of severed files.

        Raises:
            OSError: EMFILE; EAGAIN if no thread can be started.
        """
        self._errands = errands
        self._lock = new_lock("FileTable")
        self.by_link: dict[str, FileDescription] = {}
        """By what the link ``/proc/PID/fd/N`` of its descriptors reads."""
        self._by_end: dict[int, FileDescription] = {}
        self._seen: dict[tuple[Tid, int], FileDescription] = {}
        """What was last found there, by thread and number."""
        self.unseen = Unseen(self._seen, self.by_link)
        self._pid = os.getpid()
        self._identities = Identities()
        self.pending = PendingReleases(self._lock, errands)
        self._sources: dict[PollSource, int] = {}
        """For each source, how many open files it has."""
        self.refresher = ReadinessRefresher(errands)
        self._epoll = select.epoll()
        self._severed: list[FileDescription] = []
        self._closing = threading.Event()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._workers = Workers(self._wait_for_hang_up, self.drop, name="recuse-release")
        try:
            self._epoll.register(self._wake_read, select.EPOLLIN)
            self._workers.start()
        except BaseException:
            os.close(self._wake_read)
            os.close(self._wake_write)
            raise

    def __len__(self) -> int:
        return len(self.by_link)

    def find(self, tid: Tid, number: int) -> FileDescription | None:
        """The file behind descriptor ``number`` of thread ``tid``; None if it is not recuse's.

        Raises:
            OSError: EIO if it may be recuse's, but nobody may look into the process.
        """
        if not self.by_link:
            return None
        number &= 0xFFFFFFFF  # the kernel takes descriptors as 32-bit numbers
        seen = self._seen.get((tid, number))
        if (
            seen is not None
            and (slot := seen.slot) is not None
            and not kcmp(KCMP, tid, self._pid, KCMP_EPOLL_TFD, number, slot)
        ):
            return seen
        try:
            link = os.readlink(f"/proc/{tid}/fd/{number}")
        except PermissionError:
            if self.unseen.may_hold(tid, number):
                self.unseen.tell(tid)
                raise os_error(errno.EIO) from None
            return None
        except OSError:
            return None
        found = self.by_link.get(link)
        if found is not None and found.slot is not None:
            self.note(tid, number, found)
        return found

    def find_opened(self, tid: Tid, number: int) -> FileDescription | None:
        """Find a file like :meth:`find`, for calls that do not work on O_PATH descriptors.

        Raises:
            OSError: EBADF for a file opened with O_PATH.
        """
        file = self.find(tid, number)
        if file is not None and not file.opened:
            raise os_error(errno.EBADF)
        return file

    def note(self, tid: Tid, number: int, file: FileDescription) -> None:
        """Remember which file a thread has under a number."""
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen[tid, number] = file
        if len(file.noted) >= _MOST_NOTED:
            file.noted[:] = [key for key in file.noted if self._seen.get(key) is file]
        file.noted.append((tid, number))

    def by_inode(self, inode: str) -> FileDescription | None:
        """The file whose descriptor has that inode number, as an epoll's fdinfo shows it."""
        by_link = self.by_link
        return by_link.get(f"socket:[{inode}]") or by_link.get(f"pipe:[{inode}]")

    def install(self, call: TrappedCall, file: FileDescription, *, cloexec: bool) -> int | None:
        """Give the caller a descriptor of a new file, and return its number.

        Return None if the caller is gone.

        Raises:
            OSError: EMFILE; ENODEV if the sandbox has ended meanwhile. The file is then released,
                also when the caller is gone.
        """
        try:
            self.add(file)
        except OSError:
            file.release(_nothing)
            raise
        try:
            number = call.add_descriptor(file.end.theirs, cloexec=cloexec)
        except OSError:
            self.drop(file)
            raise
        if number is None:
            self.drop(file)
            return None
        self.note(call.tid, number, file)
        # Do this before the program runs on: it may close the file at once, and the close must
        # release it.
        file.end.hand_over()
        return number

    def add(self, file: FileDescription) -> None:
        """Watch a file whose descriptor is about to be handed over.

        Raises:
            OSError: ENODEV if the sandbox has ended meanwhile.
        """
        with self._lock:
            if self._epoll.closed:
                file.end.close()
                raise os_error(errno.ENODEV)
            self.by_link[file.link] = file
            self._by_end[file.end.ours] = file
            if (source := file.poll_source) is not None:
                self._sources[source] = self._sources.get(source, 0) + 1
            self._epoll.register(file.end.ours, 0)  # hang-ups are always reported
            self._identities.add(file)

    @property
    def polled(self) -> bool:
        """Whether any file must be asked for its readiness."""
        return any(not source.no_poll for source in list(self._sources))

    def readiness(self, file: FileDescription) -> Readiness:
        """The readiness of a file that is asked; it is made at the first use."""
        if file.readiness is None:
            with self._lock:
                if file.readiness is None:
                    close_end = functools.partial(self._close_end, file)
                    file.readiness = Readiness(file, self.refresher, close_end)
        return file.readiness

    def _close_end(self, file: FileDescription) -> None:
        """Close the supervisor's end. Its hang-up no longer reports the last close."""
        with self._lock:
            if self.by_link.get(file.link) is not file:
                return
            del self._by_end[file.end.ours]
            self._epoll.unregister(file.end.ours)
            file.end.close()
            self._severed.append(file)
            if len(self._severed) == 1:
                self._wake()

    def _sweep(self) -> list[FileDescription]:
        """The severed files that have no reference any more: they have left recuse's epoll."""
        if not self._severed:
            return []
        with self._lock:
            if self._identities.closed:
                return []
            held = {f"socket:[{inode}]" for inode in self._identities.inodes()}
            gone = [file for file in self._severed if file.link not in held]
            self._severed = [one for one in self._severed if one.link in held]
        return gone

    def drop(self, file: FileDescription) -> None:
        """Close a file's end and release it: no reference is left, or it was never installed."""
        group = file.group
        with self._lock:
            if self.by_link.pop(file.link, None) is None:
                return  # another thread was first
            self.pending.begin(group)  # before it can no longer be found: see `has_closed`
            if file.end.ours >= 0:
                del self._by_end[file.end.ours]
                try:  # noqa: SIM105 - suppress takes 1 us
                    self._epoll.unregister(file.end.ours)
                except OSError:
                    pass
            file.end.close()
            self._identities.remove(file)
            for key in file.noted:
                if self._seen.get(key) is file:
                    self._seen.pop(key, None)
            if (source := file.poll_source) is not None:
                left = self._sources[source] - 1
                if left:
                    self._sources[source] = left
                else:
                    del self._sources[source]
            if file.readiness is not None:
                self.refresher.watched.discard(file.readiness)
        file.release(functools.partial(self.pending.released, group))

    def releases(self, group: Hashable) -> Releases:
        """A pause until all closed files of a group (a device's node, ...) are released."""
        return Releases(self, group)

    def has_closed(self, group: Hashable) -> bool:
        """Whether closed files of a group are still to be released."""
        if self._by_end and any(True for _ in self._closed(group)):
            return True
        return group in self.pending

    def _closed(self, group: Hashable) -> Iterator[FileDescription]:
        for end, _ in self._epoll.poll(0):
            file = self._by_end.get(end)
            if file is not None and file.group is group and file.end.hung_up():
                yield file

    def after_releases(self, group: Hashable, go_on: Callable[[], None]) -> bool:
        """Call ``go_on`` when all closed files of a group are released.

        Return False if they are already; ``go_on`` is not called then.
        """
        if self._by_end:
            for file in self._closed(group):
                self.drop(file)
        return self.pending.call_after(group, go_on)

    def settle(self, timeout_s: float) -> None:
        """Wait for at most ``timeout_s`` until everything that programs have closed is released."""
        for file in self._sweep():
            self.drop(file)
        self.pending.wait(self._has_hang_ups, timeout_s)

    def _has_hang_ups(self) -> bool:
        return any(end != self._wake_read for end, _ in self._epoll.poll(0))

    def _wait_for_hang_up(self) -> FileDescription | None:
        while True:
            for end, _ in self._epoll.poll(_SWEEP_S if self._severed else None, 2):
                if end == self._wake_read:
                    if self._closing.is_set():
                        return None
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 64)
                    continue
                file = self._by_end.get(end)
                # The event may be of an earlier file whose end had the same number.
                if file is not None and file.end.hung_up():
                    return file
            for file in self._sweep():
                self._errands.put(functools.partial(self.drop, file))

    def _wake(self) -> None:
        """Wake the thread that waits for hang-ups."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Stop watching; release what is still open, and wait for releases, up to 5 seconds."""
        self._closing.set()
        self._wake()
        self._workers.join()
        with self._lock:
            left = list(self.by_link.values())
        for file in left:
            self.drop(file)
        # A release that takes its time is left behind by the threads that make it.
        self.pending.wait(lambda: False, _LAST_RELEASES_S)
        with self._lock:
            self._epoll.close()
            self._identities.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


def _nothing() -> None:
    pass


class Releases:
    """See `FileTable.releases`. It is a :class:`recuse.sandbox.trap.call.Pause`."""

    __slots__ = ("_files", "_group")

    def __init__(self, files: FileTable, group: Hashable) -> None:
        self._files = files
        self._group = group

    def begin(self, go_on: Callable[[], None]) -> bool:
        """See `recuse.sandbox.trap.call.Pause`."""
        return self._files.after_releases(self._group, go_on)
