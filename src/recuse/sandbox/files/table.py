"""The descriptors by which programs hold devices.

What a program holds is one end of a socket pair; the supervisor has the other. So everything that
can happen to a descriptor in Linux happens to this one by itself: dup, fork, exec, close-on-exec,
SCM_RIGHTS, exit, kill. Two questions remain, and this module answers them.

*Which device is descriptor N of that thread?* The kernel's own answer is the link
``/proc/TID/fd/N``, which for a socket is its inode number, unique while it lives. Reading it takes
about 3 us. What was found is remembered, and next time kcmp(2) says in half of that whether it is
still so. Nothing that a program does to its descriptors needs to be seen for that.

*When has the last reference gone?* The supervisor's end hangs up. That is when RELEASE is sent.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from recuse.channel.workers import Workers
from recuse.kernel.char.devices import CharDevice
from recuse.kernel.char.files import OpenFile
from recuse.kernel.connection.operation import run
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.runtime.room import check_room, keeping
from recuse.sandbox.arch import arch
from recuse.sandbox.errands import Errands
from recuse.sandbox.files.pipe_end import PipeEnd
from recuse.sandbox.files.readiness import Readiness
from recuse.sandbox.files.refresher import ReadinessRefresher, watched_by
from recuse.sandbox.files.socket_end import READY, NativeEnd
from recuse.sandbox.tasks.unseen import Unseen
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.nodes import Node
from recuse.wire.ids import Tid

if TYPE_CHECKING:
    from recuse.sandbox.files.attribute_file import AttributeFile
    from recuse.sandbox.files.cuse_file import CuseFile

_log = Log("recuse.sandbox")
_libc = ctypes.CDLL(None, use_errno=True)

_KCMP = arch.SYSCALLS["kcmp"]
_KCMP_VM = 1
_KCMP_FILES = 2
KCMP_EPOLL_TFD = 7
EPOLL_SLOT = struct.Struct("=III")
"""``struct kcmp_epoll_slot`` (linux/kcmp.h)."""
# Without argtypes, which would take a third of the call's time: all arguments are of 32 bits.
_kcmp = ctypes.CDLL(None).syscall

_MOST_SEEN = 4096

_LAST_RELEASES_S = 5.0
"""How long the end of the sandbox waits for releases that have begun."""

_SWEEP_S = 0.5
"""How long the last close of a file may go unnoticed whose device has gone while it was polled."""


class Descriptor:
    """One open file description in the programs, from open until its last reference is gone."""

    __slots__ = (
        "_ours",
        "_theirs",
        "end",
        "file",
        "flags",
        "held",
        "link",
        "location",
        "node",
        "pipe",
        "readiness",
        "slot",
    )

    def __init__(self, location: Location, flags: int, *, pipe: bool = False) -> None:
        """Make the pair.

        Args:
            location: where it was found; ``file`` is still to be set, but for O_PATH, which opens
                nothing.
            flags: the open flags, as F_GETFL shows them.
            pipe: whether it is one of a pipe's ends, and not a socket's.

        Raises:
            OSError: ENFILE if the supervisor has no descriptors left.
        """
        self.location = location
        self.node: Node = location.node
        self.file: OpenFile | CuseFile | AttributeFile | None = None
        self.flags = flags
        self.held = -1
        """By which number the programs' end was registered with `FileTable`' own epoll."""
        self.slot: ctypes.Array[ctypes.c_char] | None = None
        """``struct kcmp_epoll_slot``: where the kernel finds it, to compare others with it."""
        self.readiness: Readiness | None = None
        """Once a program has asked for it."""
        self.pipe: PipeEnd | None = None
        self._ours: socket.socket | None = None
        with keeping():
            if pipe:
                self._make_pipe()
            else:
                self._make_sockets()
        try:
            check_room(self.end)
        except OSError:
            self.close()
            raise

    def _make_pipe(self) -> None:
        self.pipe = PipeEnd()
        self.end = self.pipe.ours
        self._theirs = self.pipe.theirs
        self.link = f"pipe:[{os.fstat(self._theirs).st_ino}]"

    def _make_sockets(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # A byte to read and room to write: a device without a poll method is always ready.
        ours.send(READY)
        theirs.send(READY)  # for `NativeEnd.sever`
        self._ours = ours
        self.end = ours.fileno()
        self._theirs = theirs.detach()
        self.link = f"socket:[{os.fstat(self._theirs).st_ino}]"

    @property
    def theirs(self) -> int:
        """The programs' end, until :meth:`hand_over`."""
        return self._theirs

    @property
    def is_asked(self) -> bool:
        """Whether its readiness is not always the one that it natively has."""
        if isinstance(self.file, OpenFile):
            return not self.file.device.no_poll
        return self.file is None

    def showing(self, sever: Callable[[], None]) -> NativeEnd | PipeEnd:
        """What makes the programs' end look as it shall; ``sever`` closes ours."""
        if self.pipe is not None:
            return self.pipe
        assert self._ours is not None
        return NativeEnd(self._ours, sever)

    def hand_over(self) -> None:
        """The programs' end is theirs now, or never will be: close our copy."""
        theirs, self._theirs = self._theirs, -1
        if theirs >= 0:
            os.close(theirs)

    def hung_up(self) -> bool:
        """Whether no program holds it any more."""
        if self.pipe is not None:
            return self.pipe.hung_up()
        assert self._ours is not None
        try:
            self._ours.send(b"", socket.MSG_NOSIGNAL)  # quicker than asking poll
        except OSError:
            return True
        # The order matters: a closed end's number may be another descriptor's by now.
        return self.end < 0

    def close(self) -> None:
        """Close the supervisor's end."""
        self.hand_over()
        self.end = -1
        if self._ours is not None:
            self._ours.close()
        if self.pipe is not None:
            self.pipe.close()

    def fetch(self, tid: int, number: int, copy: Callable[[int], int]) -> int:
        """Return a copy of the programs' end, which a thread has by that number or another one.

        Raises:
            OSError: EBADF if it has not; as ``copy``, which copies one of the thread's descriptors.
        """
        found = copy(number)
        if self._is_end(found):
            return found
        os.close(found)
        for name in os.listdir(f"/proc/{tid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{tid}/fd/{name}") == self.link:
                    found = copy(int(name))
                    if self._is_end(found):
                        return found
                    os.close(found)
        raise os_error(errno.EBADF)

    def _is_end(self, copy: int) -> bool:
        return self.link == f"socket:[{os.fstat(copy).st_ino}]"


class FileTable:
    """All descriptors of a sandbox, and the threads that notice their end."""

    def __init__(self, errands: Errands) -> None:
        """Start watching.

        Args:
            errands: do what waits for a release, and the late releases of severed files.

        Raises:
            OSError: EMFILE; EAGAIN if there can be no threads.
        """
        self._errands = errands
        self._lock = new_lock("FileTable")
        self._by_link: dict[str, Descriptor] = {}
        self._by_end: dict[int, Descriptor] = {}
        self._seen: dict[tuple[Tid, int], Descriptor] = {}
        """By thread and number, what was found there last."""
        self.unseen = Unseen(self._seen, self._by_link)
        self._slots: dict[int, Descriptor] = {}
        self._pid = os.getpid()
        # Not everywhere: containers may forbid it.
        self._can_compare = not _kcmp(_KCMP, self._pid, self._pid, _KCMP_VM, 0, None)
        self._releasing: Counter[Node] = Counter()
        self._settled = threading.Condition(self._lock)
        self._after_releases: list[tuple[Node, Callable[[], None]]] = []
        self._open: Counter[CharDevice | None] = Counter()
        self.refresher = ReadinessRefresher(errands)
        self._epoll = select.epoll()
        self._held = select.epoll()
        """Has the programs' ends in it, and nobody waits for it: the kernel takes out an end whose
        last reference is closed."""
        self._severed: list[Descriptor] = []
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
        return len(self._by_link)

    def find(self, tid: Tid, number: int) -> Descriptor | None:
        """The device behind descriptor ``number`` of thread ``tid``, or None if it is none.

        Raises:
            OSError: EIO if it may be one of a process that lets nobody look into it.
        """
        if not self._by_link:
            return None
        number &= 0xFFFFFFFF  # the kernel takes descriptors as 32-bit
        seen = self._seen.get((tid, number))
        if (
            seen is not None
            and (slot := seen.slot) is not None
            and not _kcmp(_KCMP, tid, self._pid, KCMP_EPOLL_TFD, number, slot)
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
        found = self._by_link.get(link)
        if found is not None and found.slot is not None:
            self.note(tid, number, found)
        return found

    def note(self, tid: Tid, number: int, descriptor: Descriptor) -> None:
        """Remember what a thread has under a number."""
        if len(self._seen) >= _MOST_SEEN:
            self._seen.clear()
        self._seen[tid, number] = descriptor

    def by_inode(self, inode: str) -> Descriptor | None:
        """The device whose descriptor has that inode number, as a file of an epoll shows it."""
        by_link = self._by_link
        return by_link.get(f"socket:[{inode}]") or by_link.get(f"pipe:[{inode}]")

    def by_link(self, link: str) -> Descriptor | None:
        """The device whose ``/proc/PID/fd`` link reads ``link``."""
        return self._by_link.get(link)

    def add(self, descriptor: Descriptor) -> None:
        """Watch a descriptor that is about to be handed over.

        Raises:
            OSError: ENODEV if the sandbox has ended meanwhile.
        """
        with self._lock:
            if self._epoll.closed:
                descriptor.close()
                raise os_error(errno.ENODEV)
            self._by_link[descriptor.link] = descriptor
            self._by_end[descriptor.end] = descriptor
            self._count(descriptor, 1)
            self._epoll.register(descriptor.end, 0)  # hang-ups are always told
            self._hold(descriptor)

    def _hold(self, descriptor: Descriptor) -> None:
        """Register the programs' end, by a number that no other has while it is there."""
        number = descriptor.theirs
        with contextlib.ExitStack() as copies:
            while number in self._slots:
                try:
                    number = fcntl.fcntl(descriptor.theirs, fcntl.F_DUPFD_CLOEXEC, number + 1)
                except OSError:  # there are no higher ones: two by one number cannot be compared
                    self._slots[number].slot = None
                    break
                copies.callback(os.close, number)
            else:
                if self._can_compare:
                    slot = EPOLL_SLOT.pack(self._held.fileno(), number, 0)
                    descriptor.slot = ctypes.create_string_buffer(slot, len(slot))
                self._slots[number] = descriptor
                descriptor.held = number
            self._held.register(number, 0)

    def _unhold(self, descriptor: Descriptor) -> None:
        """Its last reference is gone; the number may be another's."""
        descriptor.slot = None
        if self._slots.get(descriptor.held) is descriptor:
            del self._slots[descriptor.held]

    def _count(self, descriptor: Descriptor, step: int) -> None:
        file = descriptor.file
        if file is None or isinstance(file, OpenFile):
            device = None if file is None else file.device
            self._open[device] += step
            if not self._open[device]:
                del self._open[device]

    @property
    def polled(self) -> bool:
        """Whether there is any whose readiness is not always the one that it natively has."""
        return any(device is None or not device.no_poll for device in list(self._open))

    def readiness(self, descriptor: Descriptor, file: OpenFile) -> Readiness:
        """The readiness of a file that has this descriptor, made now if it was not asked for."""
        if descriptor.readiness is None:
            with self._lock:
                if descriptor.readiness is None:
                    end = descriptor.showing(functools.partial(self._sever, descriptor))
                    descriptor.readiness = Readiness(file, descriptor.link, end, self.refresher)
        return descriptor.readiness

    def _sever(self, descriptor: Descriptor) -> None:
        """Close our end, whose hang-up does not tell of the last close any more."""
        with self._lock:
            if self._by_link.get(descriptor.link) is not descriptor:
                return
            del self._by_end[descriptor.end]
            self._epoll.unregister(descriptor.end)
            descriptor.close()
            self._severed.append(descriptor)
            if len(self._severed) == 1:
                self._wake()

    def _sweep(self) -> list[Descriptor]:
        """Those severed ones that have no reference any more: they have left our epoll."""
        if not self._severed:
            return []
        with self._lock:
            if self._held.closed:
                return []
            held = {f"socket:[{one.inode}]" for one in watched_by(os.getpid(), self._held.fileno())}
            gone = [descriptor for descriptor in self._severed if descriptor.link not in held]
            self._severed = [one for one in self._severed if one.link in held]
        return gone

    def drop(self, descriptor: Descriptor) -> None:
        """Its last reference is gone, or it was never installed: close it and release the file."""
        with self._lock:
            if self._by_link.pop(descriptor.link, None) is None:
                return  # another thread saw it first
            if descriptor.end >= 0:
                del self._by_end[descriptor.end]
                with contextlib.suppress(OSError):
                    self._epoll.unregister(descriptor.end)
            descriptor.close()
            self._unhold(descriptor)
            self._count(descriptor, -1)
            if descriptor.readiness is not None:
                self.refresher.watched.discard(descriptor.readiness)
            if descriptor.file is None:
                return
            node = descriptor.node
            self._releasing[node] += 1
        _release(descriptor.file, lambda: self.released(node))

    def releasing(self, node: Node) -> None:
        """A file of the node is let go, or a mapping of one: opening waits until `released`."""
        with self._lock:
            self._releasing[node] += 1

    def released(self, node: Node) -> None:
        """That has come to its end."""
        with self._lock:
            self._releasing[node] -= 1
            if self._releasing[node]:
                return
            del self._releasing[node]
            self._settled.notify_all()
            ready = [go_on for waited_for, go_on in self._after_releases if waited_for is node]
            self._after_releases = [
                waiting for waiting in self._after_releases if waiting[0] is not node
            ]
        for go_on in ready:
            # Not here, in an event loop's thread perhaps: it runs the device's method, which may
            # block.
            self._errands.put(go_on)

    def releases(self, node: Node) -> Releases:
        """What to wait for so that all files of the node that were let go are released."""
        return Releases(self, node)

    def after_releases(self, node: Node, go_on: Callable[[], None]) -> bool:
        """Call ``go_on`` when all files of the node that were let go are released.

        Returns False if they are already; it is not called then.

        A program's close returns before the supervisor hears of it. Who opens the device next must
        find it released all the same, as after a close that waits for RELEASE.
        """
        if self._by_end:
            for end, _ in self._epoll.poll(0):
                descriptor = self._by_end.get(end)
                if descriptor is not None and descriptor.node is node and descriptor.hung_up():
                    self.drop(descriptor)
        with self._lock:
            if self._releasing[node]:
                self._after_releases.append((node, go_on))
                return True
            del self._releasing[node]
        return False

    def settle(self, timeout_s: float) -> None:
        """Wait until what programs have let go is released, so far as that takes no longer."""
        deadline = time.monotonic() + timeout_s
        for descriptor in self._sweep():
            self.drop(descriptor)
        with self._settled:
            while self._releasing or any(n != self._wake_read for n, _ in self._epoll.poll(0)):
                if not self._settled.wait(deadline - time.monotonic()):
                    return

    def _wait_for_hang_up(self) -> Descriptor | None:
        while True:
            for end, _ in self._epoll.poll(_SWEEP_S if self._severed else None, 2):
                if end == self._wake_read:
                    if self._closing.is_set():
                        return None
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 64)
                    continue
                descriptor = self._by_end.get(end)
                # The event may be that of an earlier descriptor, whose end had the same number.
                if descriptor is not None and descriptor.hung_up():
                    return descriptor
            for descriptor in self._sweep():
                self._errands.put(functools.partial(self.drop, descriptor))

    def _wake(self) -> None:
        """Have who waits for hang-ups look around."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def close(self) -> None:
        """Stop watching; release what is still open, and wait for releases, up to 5 seconds."""
        self._closing.set()
        self._wake()
        self._workers.join()
        with self._lock:
            left = list(self._by_link.values())
        for descriptor in left:
            self.drop(descriptor)
        with self._settled:
            # The threads that call for them leave one that takes its time behind.
            self._settled.wait_for(lambda: not self._releasing, _LAST_RELEASES_S)
            self._epoll.close()
            self._held.close()
        os.close(self._wake_read)
        os.close(self._wake_write)


class Releases:
    """See `FileTable.releases`: a :class:`recuse.sandbox.trap.call.Pause`."""

    __slots__ = ("_descriptors", "_node")

    def __init__(self, descriptors: FileTable, node: Node) -> None:
        self._descriptors = descriptors
        self._node = node

    def begin(self, go_on: Callable[[], None]) -> bool:
        """See `recuse.sandbox.trap.call.Pause`."""
        return self._descriptors.after_releases(self._node, go_on)


def _release(file: OpenFile | CuseFile | AttributeFile, released: Callable[[], None]) -> None:
    """Do what the last close of a file does; then call ``released``, now or later."""
    if not isinstance(file, OpenFile):
        file.close()
        released()
        return

    def done(_: object, error: OSError | None) -> None:
        if error is not None:
            # The program has closed the file and gone on: nobody else can be told.
            _log.debug("release of %s: %s", file.device.name, error)
        released()

    run(file.device.connection, file.release(), done)
