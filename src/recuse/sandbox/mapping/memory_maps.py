"""Memory of devices that programs have mapped, and when they unmap it.

No call that ends a mapping is trapped, because the kernel's own bookkeeping shows the end. Each
mapping is made from its own open file description of the memory's memfd. The description holds a
lock on one byte of it, a different byte for each (F_OFD_SETLK). Once it is mapped, all descriptors
of that description are closed. Only the memory map keeps it, with what fork copies of it and what
partial munmaps, mremap and mprotect leave of it. When the last part goes, by unmapping, exec, exit
or SIGKILL, the description ends, and its lock too. inotify reports that some description of a memfd
has ended (IN_CLOSE), and the locks say which (F_OFD_GETLK).

A server may share the same memory with several sandboxes, whose locks are then in the same file. So
the bytes are chosen at random out of 2**62.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
from collections import deque
from collections.abc import Iterator
from typing import Final

from recuse.channel.workers import Workers
from recuse.kernel.char.mmap import Mapping
from recuse.kernel.connection.operation import run
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.runtime.room import check_room, keeping
from recuse.sandbox.files.description import FileDescription
from recuse.sandbox.files.releases import PendingReleases
from recuse.sandbox.mapping.areas import Area, areas
from recuse.sandbox.mapping.snapshots import PrivateSnapshots
from recuse.wire.descriptor import OwnedDescriptor

_log = Log("recuse.sandbox")

_libc = ctypes.CDLL(None, use_errno=True)

_IN_CLOSE: Final = 0x18  # linux/inotify.h: IN_CLOSE_WRITE | IN_CLOSE_NOWRITE
_IN_IGNORED: Final = 0x8000
_IN_CLOEXEC: Final = 0o2000000
_IN_NONBLOCK: Final = 0o4000
_EVENT: Final = struct.Struct("=iIII")  # struct inotify_event; events of a file have no name
_EVENTS: Final = 256
"""How many events are read at a time."""
_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock
_F_GET_SEALS: Final = 1034

_RECHECKS_S: Final = tuple(0.001 * 2**n for n in range(11))
"""When to look again after an event, in seconds after the previous look.

The kernel reports the end of a description just before it drops the locks (fs/file_table.c,
__fput). Of several that end at about the same time it reports one.
"""

_BYTES: Final = 1 << 62


class _Memfd:
    """A memfd that something is mapped from, or about to be, or that is still watched."""

    __slots__ = ("descriptor", "holds", "inode", "mappings", "watch")

    def __init__(self, descriptor: OwnedDescriptor, inode: tuple[int, int], watch: int) -> None:
        self.descriptor = descriptor
        self.inode = inode
        self.watch = watch
        self.holds = 0
        """How many mappings are being made."""
        self.mappings: list[Mapped] = []

    def has_lock(self, byte: int) -> bool:
        """Whether the description that has locked the byte still exists."""
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        found = fcntl.fcntl(self.descriptor.fileno(), fcntl.F_OFD_GETLK, asked)
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


class Hold:
    """A description of some memory from which a mapping will be made."""

    __slots__ = ("byte", "descriptor", "kept", "memfd")

    def __init__(self, memfd: _Memfd, byte: int, descriptor: OwnedDescriptor) -> None:
        self.memfd = memfd
        self.byte = byte
        self.descriptor = descriptor
        self.kept = False


class Mapped:
    """A mapping that exists."""

    __slots__ = ("byte", "dont_expand", "file", "mapping")

    def __init__(
        self, byte: int, file: FileDescription, mapping: Mapping, dont_expand: bool
    ) -> None:
        self.byte = byte
        self.file = file
        self.mapping = mapping
        self.dont_expand = dont_expand


class MemoryMaps:
    """All mappings of a sandbox's devices, and the threads that notice when they end."""

    def __init__(self, releases: PendingReleases) -> None:
        """Prepare. What is needed is made with the first mapping.

        Args:
            releases: is told which groups' files are being released.
        """
        self._releases = releases
        self.snapshots = PrivateSnapshots(self._reclaim)
        self._lock = new_lock("MemoryMaps")
        self._by_inode: dict[tuple[int, int], _Memfd] = {}
        self._watched: dict[tuple[int, int], _Memfd] = {}
        self._by_watch: dict[int, _Memfd] = {}
        """Both also have memfds of which nothing is mapped any more, until the memory is gone: it
        may be mapped again, and watching costs nothing. The kernel removes the watch and reports
        that long before an inode's number is used again."""
        self._gone: deque[Mapped] = deque()
        self._doubtful: set[_Memfd] = set()
        self._rechecks = 0
        self._dont_expand = 0
        self.extendable = 0
        """How many mappings are of files of filesystems."""
        self._inotify = -1
        self._closed = False
        self._epoll: select.epoll | None = None
        self._wake_read = self._wake_write = -1
        self._workers: Workers[Mapped] | None = None

    def hold(self, memory: OwnedDescriptor, access: int) -> Hold:
        """Start a mapping of some memory.

        Args:
            memory: is taken over, if necessary.
            access: O_RDONLY or O_RDWR; limits what mprotect can make of the mapping.

        Raises:
            OSError: EINVAL if it is not a memfd; ENFILE if the supervisor has no descriptors left;
                ENODEV if the sandbox has ended.
        """
        try:
            status = os.fstat(memory.fileno())
            fcntl.fcntl(memory.fileno(), _F_GET_SEALS)
        except OSError:
            raise os_error(errno.EINVAL) from None
        inode = status.st_dev, status.st_ino
        byte = int.from_bytes(os.urandom(8), "little") % _BYTES
        with keeping():
            own = OwnedDescriptor(
                os.open(f"/proc/self/fd/{memory.fileno()}", access | os.O_CLOEXEC)
            )
            check_room(own.fileno())
            lock = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(own.fileno(), fcntl.F_OFD_SETLK, lock)
            with self._lock:
                if self._closed:
                    raise os_error(errno.ENODEV)
                memfd = self._by_inode.get(inode) or self._add(memory, inode)
                memfd.holds += 1
        return Hold(memfd, byte, own)

    def _add(self, memory: OwnedDescriptor, inode: tuple[int, int]) -> _Memfd:
        memfd = self._watched.get(inode)
        if memfd is None:
            self._start()
            path = f"/proc/self/fd/{memory.fileno()}".encode()
            watch = _libc.inotify_add_watch(self._inotify, path, _IN_CLOSE)
            if watch < 0:
                raise os_error(ctypes.get_errno())
            memfd = self._watched[inode] = self._by_watch[watch] = _Memfd(memory, inode, watch)
        else:
            memfd.descriptor = memory
        self._by_inode[inode] = memfd
        return memfd

    def _start(self) -> None:
        """Make everything that watching needs, or nothing. Raises the OSError of what failed."""
        if self._workers is not None:
            return
        with contextlib.ExitStack() as made:
            inotify = _libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
            if inotify < 0:
                raise os_error(ctypes.get_errno())
            made.callback(os.close, inotify)
            wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            made.callback(os.close, wake_read)
            made.callback(os.close, wake_write)
            epoll = made.enter_context(select.epoll())
            check_room(epoll.fileno())
            epoll.register(inotify, select.EPOLLIN)
            epoll.register(wake_read, select.EPOLLIN)
            self._inotify, self._wake_read, self._wake_write = inotify, wake_read, wake_write
            self._epoll = epoll
            workers = Workers(self._wait_for_end, self._unmapped, name="recuse-munmap")
            try:
                workers.start()
            except OSError:
                self._inotify = self._wake_read = self._wake_write = -1
                self._epoll = None
                raise
            self._workers = workers
            made.pop_all()

    def abandon(self, hold: Hold) -> None:
        """Nothing was mapped after all, unless :meth:`keep` was called."""
        if hold.kept:
            return
        hold.descriptor.close()
        with self._lock:
            hold.memfd.holds -= 1
            self._drop_unused(hold.memfd)

    def keep(
        self, hold: Hold, file: FileDescription, mapping: Mapping, *, dont_expand: bool
    ) -> None:
        """The mapping has been made. Wait for its end from now on."""
        hold.kept = True
        mapped = Mapped(hold.byte, file, mapping, dont_expand)
        with self._lock:
            hold.memfd.holds -= 1
            hold.memfd.mappings.append(mapped)
            self._dont_expand += dont_expand
            self.extendable += not mapping.area
            # Close this descriptor while nobody looks at the memfd: the event of the mapping's end
            # may already be there, and may be merged with the event of this close.
            hold.descriptor.close()

    def _drop_unused(self, memfd: _Memfd) -> None:
        if memfd.holds or memfd.mappings:
            return
        self._by_inode.pop(memfd.inode, None)
        self._doubtful.discard(memfd)
        memfd.descriptor.close()

    def settle(self) -> None:
        """Have the server told of everything that programs have unmapped so far."""
        if self._by_inode:
            with self._lock:
                # Include those whose event came too early: their locks are gone by now.
                self._collect(self._events() | self._doubtful)
                if self._doubtful:
                    self._wake()
            while self._gone:
                with contextlib.suppress(IndexError):
                    self._unmapped(self._gone.popleft())

    def _reclaim(self) -> None:
        """Close memory that programs have unmapped so far, if nobody else has done so."""
        with self._lock:
            if self._by_inode and not self._closed:
                self._collect(self._events() | self._doubtful)
                self._wake()  # to tell the servers

    def _wake(self) -> None:
        """Wake the thread that waits for events."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def _wait_for_end(self) -> Mapped | None:
        assert self._epoll is not None
        while True:
            if self._gone:
                with contextlib.suppress(IndexError):
                    return self._gone.popleft()
            timeout = _RECHECKS_S[self._rechecks] if self._doubtful else None
            found = self._epoll.poll(timeout)
            with self._lock:
                if self._closed:
                    return None
                if any(number == self._wake_read for number, _ in found):
                    # Another thread may have read it: during a change of leaders, both wait.
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                if found:
                    self._collect(self._events())
                else:
                    self._look_again()

    def _collect(self, memfds: set[_Memfd]) -> None:
        """Find out which mappings of some memfds have ended. The lock is held."""
        for memfd in memfds:
            ended = [mapped for mapped in memfd.mappings if not memfd.has_lock(mapped.byte)]
            for mapped in ended:
                memfd.mappings.remove(mapped)
                self._dont_expand -= mapped.dont_expand
                self.extendable -= not mapped.mapping.area
                self._releases.releasing(mapped.file.group)
                self._gone.append(mapped)
            self._rechecks = 0
            self._doubtful.add(memfd)
            self._drop_unused(memfd)

    def _look_again(self) -> None:
        rechecks = self._rechecks + 1
        self._collect(set(self._doubtful))
        if rechecks == len(_RECHECKS_S):
            self._doubtful.clear()
            rechecks = 0
        self._rechecks = rechecks

    def _events(self) -> set[_Memfd]:
        """The memfds that inotify reports something of."""
        memfds: set[_Memfd] = set()
        number = _EVENTS
        while number == _EVENTS:
            try:
                data = os.read(self._inotify, _EVENTS * _EVENT.size)
            except BlockingIOError:
                break
            number = len(data) // _EVENT.size
            for watch, mask, _, _ in _EVENT.iter_unpack(data):
                if watch < 0:  # events were lost
                    memfds.update(self._by_inode.values())
                    self._watched = self._by_inode.copy()
                    self._by_watch = {memfd.watch: memfd for memfd in self._by_inode.values()}
                elif mask & _IN_IGNORED:
                    if (memfd := self._by_watch.pop(watch, None)) is not None:
                        del self._watched[memfd.inode]
                elif watch in self._by_watch:
                    memfds.add(self._by_watch[watch])
        return memfds

    def _unmapped(self, mapped: Mapped) -> None:
        """Tell the server of a mapping's end."""

        def done(_: object, error: OSError | None) -> None:
            if error is not None:
                _log.debug("munmap of %s: %s", mapped.file.location.path, error)
            self._releases.released(mapped.file.group)
            mapped.file.mapping_ended()

        step = mapped.file.munmap(mapped.mapping)
        run(step.device.connection, step.operation, done)

    def files(self) -> list[FileDescription]:
        """The files of all mappings that exist, as far as that is known: see :meth:`settle`."""
        with self._lock:
            memfds = self._by_inode.values()
            return [mapped.file for memfd in memfds for mapped in memfd.mappings]

    def maps(self, tid: int, address: int) -> bool:
        """Whether what a thread has mapped at an address is a device's or a file's memory."""
        return any(True for _ in self._between(tid, address, address + 1))

    def may_grow(self, tid: int, address: int) -> bool:
        """Whether mremap may make a thread's mapping at an address longer."""
        # Moves of a mapping (mremap) are not followed. If a memfd has several mappings, it is then
        # not known which one this is.
        return not self._dont_expand or not any(
            mapped.dont_expand
            for _, mappings in self._between(tid, address, address + 1)
            for mapped in mappings
        )

    def at(self, tid: int, address: int) -> tuple[FileDescription, int] | None:
        """The file that a thread has mapped at an address, and the offset in it."""
        for area, mappings in self._between(tid, address, address + 1):
            for mapped in mappings:
                return mapped.file, area.offset + address - area.start
        return None

    def shared(self, tid: int, start: int, end: int) -> list[FileDescription]:
        """The files of which a thread has shared mappings between two addresses, each once."""
        found = self._between(tid, start, end)
        files = [mappings[0].file for area, mappings in found if area.shared and mappings]
        return list(dict.fromkeys(files))

    def _between(self, tid: int, start: int, end: int) -> Iterator[tuple[Area, list[Mapped]]]:
        """The parts of a thread's memory that are of ours, and which mappings they may be."""
        if not self._by_inode:
            return
        for area in areas(tid, start, end):
            memfd = self._by_inode.get(area.inode)
            if memfd is not None:
                every = list(memfd.mappings)
                here = [m for m in every if 0 <= area.start - m.mapping.address < m.mapping.length]
                yield area, here or every

    def close(self) -> None:
        """Stop watching. For the servers, unmap everything that is left."""
        with self._lock:
            self._closed = True
        if self._workers is not None:
            self._wake()
            self._workers.join()
        for mapped in self._left():
            self._unmapped(mapped)
        for number in (self._inotify, self._wake_read, self._wake_write):
            if number >= 0:
                os.close(number)
        if self._epoll is not None:
            self._epoll.close()

    def _left(self) -> Iterator[Mapped]:
        with self._lock:
            memfds = list(self._by_inode.values())
            for memfd in memfds:
                for mapped in memfd.mappings:
                    self._releases.releasing(mapped.file.group)
                    self._gone.append(mapped)
                memfd.mappings.clear()
                self._drop_unused(memfd)
        yield from self._gone
