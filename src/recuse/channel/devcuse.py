"""The real kernel's CUSE: devices served through /dev/cuse, for all programs of the machine.

The kernel half is Linux itself (fs/fuse/cuse.c). It makes the node when it gets the answer to
CUSE_INIT. It removes the node when the last descriptor of this opened /dev/cuse is closed. A thread
that waits in read(2) would prevent that. So the descriptor is non-blocking, and threads wait in
poll(2), which an eventfd ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import queue
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from recuse.channel.signals import EndingSignals
from recuse.channel.taps import ServerTap, Tapped
from recuse.channel.workers import Workers
from recuse.kernel.connection.request import MAX_PAGES, PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.runtime.children import not_for_children
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.server.device import Device, device_makes_files
from recuse.server.session import Session

log = Log("recuse.channel")

DEV_CUSE = "/dev/cuse"

HEADROOM = 8192
"""Bytes for all of a request except its data. Also the smallest buffer that read(2) accepts
(fs/fuse/dev.c, fuse_dev_do_read, FUSE_MIN_READ_BUFFER)."""

MOST_DATA = MAX_PAGES * PAGE_SIZE
"""Most data that an ioctl can carry, in bytes, whatever max_write is: 32 pages
(fs/fuse/ioctl.c, fuse_do_ioctl, Linux 6.1)."""

_GATHER_MS = 1
"""If requests come by a ring, only FORGET and INTERRUPT come here: one read for many FORGETs spares
the other threads from being held up by each."""

NODE_WAIT_S = 2.0
"""How long udev may take to make a node, if the kernel makes none (no devtmpfs on /dev)."""

_NODE_TICK_S = 0.01

# ENOENT: the request was withdrawn while it was copied (its program was killed).
_READ_AGAIN = frozenset({errno.EINTR, errno.ENOENT})


class KernelError(Exception):
    """A device cannot be served on this kernel; the message says why, in one line."""


class Channel:
    """An open /dev/cuse or /dev/fuse, for several threads: it is not closed while one uses it."""

    def __init__(self, path: str | int = DEV_CUSE) -> None:
        """Open it; on /dev/cuse this makes the kernel send CUSE_INIT.

        Or take over an open descriptor that does not block. Raises OSError.
        """
        if isinstance(path, str):
            path = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.number = path
        """The descriptor, -1 once closed."""
        try:
            self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            os.close(path)
            raise
        self._lock = new_lock("Channel")
        self._unused = threading.Condition(self._lock)
        self._users: list[None] = []
        """One for each thread that uses it. One is added and removed without the lock."""
        self._closing = False
        not_for_children(self)

    def block(self) -> None:
        """Have `read` wait for the next request, which is quicker than `wait`.

        Whoever calls `close` has to end the connection before, as that alone ends such a read.
        """
        os.set_blocking(self.number, True)

    def read(self, size: int) -> bytes | None:
        """Return the next request, None if there is none now.

        Raises OSError with ENODEV when the connection has ended, from either side.
        """
        # As `_begin` and `_end`, without calling them for each request.
        self._users.append(None)
        try:
            while not self._closing:
                try:
                    return os.read(self.number, size)
                except BlockingIOError:
                    return None
                except OSError as error:
                    if error.errno not in _READ_AGAIN:
                        raise
            raise os_error(errno.ENODEV)
        finally:
            self._users.pop()
            if self._closing:
                self._tell_closer()

    def read_into(self, buffer: bytearray) -> int:
        """Read the next request into a buffer, without memory for it; return its size, 0 if none.

        Raises OSError as `read` does.
        """
        number = self._begin()
        try:
            while True:
                try:
                    return os.readv(number, (buffer,))
                except BlockingIOError:
                    return 0
                except OSError as error:
                    if error.errno not in _READ_AGAIN:
                        raise
        finally:
            self._end()

    @property
    def has_ended(self) -> bool:
        """Whether the connection has ended, from either side."""
        try:
            number = self._begin()
        except OSError:
            return True
        try:
            poll = select.poll()
            poll.register(number, 0)
            return any(events & select.POLLERR for _, events in poll.poll(0))
        finally:
            self._end()

    def wait(self, other: int = -1) -> None:
        """Wait until `read` would return something, or raise; or until ``other`` can be read.

        Raises OSError with ENODEV after `close`.
        """
        number = self._begin()
        try:
            poll = select.poll()
            poll.register(number, select.POLLIN)
            if other >= 0:
                poll.register(other, select.POLLIN)
            poll.register(self._wake, select.POLLIN)
            ready = poll.poll()
            if other >= 0 and ready == [(number, select.POLLIN)]:
                poll.unregister(number)
                poll.poll(_GATHER_MS)
        finally:
            self._end()

    def write(self, message: bytes) -> None:
        """Answer a request.

        Raises OSError: ENODEV when the connection has ended, ENOENT if nobody waits for it any
        longer, EINVAL if it is malformed. (`recuse.server.pending_reply` treats the first two as
        usual.)
        """
        self._users.append(None)
        try:
            if self._closing:
                raise os_error(errno.ENODEV)
            os.write(self.number, message)
        finally:
            self._users.pop()
            if self._closing:
                self._tell_closer()

    def gather(self, header: bytes, payload: bytes) -> None:
        """Answer a request with two pieces. Raises OSError as `write` does."""
        number = self._begin()
        try:
            os.writev(number, (header, payload))
        finally:
            self._end()

    def ioctl(self, command: int, argument: bytearray) -> int:
        """Make an ioctl with a structure on the descriptor; return its result. Raises OSError."""
        number = self._begin()
        try:
            result: int = fcntl.ioctl(number, command, argument)
            return result
        finally:
            self._end()

    def close(self) -> None:
        """Close it, which removes the device; the device is gone when this returns."""
        with self._lock:
            if not self._closing:
                self._closing = True
                os.eventfd_write(self._wake, 1)
            while self._users:
                self._unused.wait()
            self._close()

    def leave_to_parent(self) -> None:
        """See `recuse.runtime.children`."""
        self._closing = True
        self._close()

    def _close(self) -> None:
        # A child that is forked meanwhile does not close what may have these numbers by then.
        numbers = self.number, self._wake
        self.number = self._wake = -1
        for number in numbers:
            if number >= 0:
                os.close(number)

    def _begin(self) -> int:
        self._users.append(None)
        if self._closing:
            self._end()
            raise os_error(errno.ENODEV)
        return self.number

    def _end(self) -> None:
        self._users.pop()
        if self._closing:
            self._tell_closer()

    def _tell_closer(self) -> None:
        with self._lock:
            self._unused.notify_all()


class DevCuse:
    """One device on the real kernel."""

    def __init__(
        self,
        device: Device,
        path: str = DEV_CUSE,
        ended: Callable[[DevCuse], object] = lambda _: None,
        tap: ServerTap | None = None,
    ) -> None:
        """Prepare; nothing is opened before `start`.

        ``ended`` is called, in any thread and perhaps more than once, when the connection has
        ended: after `close`, or because an administrator has written to
        /sys/class/cuse/NAME/abort. Even then the device is there until `close`. ``tap`` traces.

        Raises ValueError or TypeError if the device is not well described (see `Device`).
        """
        self.device = device
        self._path = path
        self._ended = ended
        self._session = Session(device)
        self._size = HEADROOM + max(device.max_write, MOST_DATA)
        self._channel: Channel | None = None
        self._early: bytes | None = None
        self._tap = tap
        self._tapped: Tapped | None = None
        self._send: Callable[[bytes], object] = lambda _: None
        self._workers = Workers(self._receive, self._handle, name=f"recuse-kernel-{device.name}")

    @property
    def node(self) -> str:
        """The path at which programs find the device."""
        return f"/dev/{self.device.name}"

    def start(self) -> None:
        """Make the device, and serve it in threads of its own. On return there is a node.

        Raises KernelError if that is not possible. It has to be closed then, too.
        """
        try:
            self._channel = Channel(self._path)
        except OSError as error:
            raise KernelError(_why_not_opened(self._path, error)) from error
        self._send = self._channel.write
        if self._tap is not None:
            self._tapped = Tapped(self._tap, self._send)
            self._send = self._tapped.send
        if os.path.lexists(self.node):
            # Linux looks for the name only among CUSE's devices. A device called "null" would be
            # made without a node (fs/fuse/cuse.c, cuse_process_init_reply; 6.1).
            raise KernelError(f"{self.node} is there already: the device needs another name")
        try:
            self._shake_hands(self._channel)
        except OSError as error:
            raise KernelError(self._why_refused(error)) from error
        if self._tap is not None:
            self._tap.added(self.device.name, *self._number())
        try:
            self._workers.start()
        except OSError as error:
            raise KernelError(f"{self.node}: {error.strerror}") from error
        self._wait_for_node()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the connection; False if it has not ended by then."""
        return self._workers.join(timeout_s)

    def close(self) -> None:
        """Remove the device, release the files that programs have open, end the session.

        Calls of programs that wait fail, and so do later ones. Plain methods of the author's that
        are running continue in their threads, but their results go nowhere.
        """
        if self._channel is not None:
            self._channel.close()
        self._session.close()
        tap = self._tapped.take_off() if self._tapped is not None else None
        if tap is not None:
            tap.removed()

    def limits(self) -> Iterator[str]:
        """What Linux's CUSE does not do for this device, a line for each. Call it after `start`."""
        device = self.device
        if device.seekable:
            yield f"{self.node}: positions are ignored: reads and writes have offset 0, as in CUSE"
        if device.sysfs or device.subsystem != "class/cuse":
            yield f"{self.node}: what it declares for /sys is not there: it is in class/cuse only"
        if device_makes_files(device):
            yield (
                f"{self.node}: ioctls that make a new descriptor fail (EOPNOTSUPP): "
                "Linux's CUSE has no such thing"
            )
        try:
            found = os.stat(self.node)
        except OSError:
            major, minor = self._number()
            number = f"{major} {minor}" if major else "MAJOR MINOR"
            yield f"{self.node}: nobody has made the node; as root: mknod {self.node} c {number}"
            return
        wanted = {"mode": device.mode, "uid": device.uid, "gid": device.gid}
        got = {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
        for what, value in wanted.items():
            if value is not None and got[what] != value:
                form = "04o" if what == "mode" else "d"
                yield (
                    f"{self.node}: {what} is {got[what]:{form}}, not {value:{form}}: "
                    "udev's rules decide that"
                )

    def _shake_hands(self, channel: Channel) -> None:
        """Answer CUSE_INIT. Raises OSError with ENODEV if the kernel does not accept the answer."""
        while (message := channel.read(self._size)) is None:
            channel.wait()
        self._handle(message)
        # If the connection has not ended, the device was made while the answer was written.
        self._early = channel.read(self._size)

    def _receive(self) -> bytes | None:
        assert self._channel is not None
        message, self._early = self._early, None
        try:
            while message is None:
                message = self._channel.read(self._size)
                if message is None:
                    self._channel.wait()
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.exception("%s: %s cannot be read", self.node, self._path)
            self._ended(self)
        return message

    def _handle(self, message: bytes) -> None:
        assert self._channel is not None
        if self._tapped is not None:
            self._tapped.request(message)
        self._session.handle(message, self._send)

    def _wait_for_node(self) -> None:
        end = time.monotonic() + NODE_WAIT_S
        while not os.path.exists(self.node) and time.monotonic() < end:
            time.sleep(_NODE_TICK_S)

    def _number(self) -> tuple[int, int]:
        """The device's major and minor number from sysfs; 0, 0 if it is not there."""
        try:
            with open(f"{self._sysfs}/dev") as file:
                major, _, minor = file.read().partition(":")
            return int(major), int(minor)
        except (OSError, ValueError):
            return 0, 0

    @property
    def _sysfs(self) -> str:
        return f"/sys/class/cuse/{self.device.name.replace('/', '!')}"

    def _why_refused(self, error: OSError) -> str:
        device = self.device
        if os.path.exists(self._sysfs):
            reason = "another CUSE device has this name"
        elif device.major:
            reason = f"the number {device.major}:{device.minor} may be taken (see /proc/devices)"
        else:
            reason = f"{os.strerror(error.errno or errno.EIO)} (the kernel's log may say more)"
        return f"the kernel refuses the device {device.name}: {reason}"


def serve_kernel(
    devices: Sequence[Device],
    ready: Callable[[str], object],
    note: Callable[[str], object] = log.warning,
    *,
    signals: EndingSignals,
    tap: Callable[[], ServerTap] | None = None,
) -> None:
    """Serve devices on the real kernel until a signal to end; for the main thread.

    It also returns when the kernel has ended all connections. On return the devices are gone.

    Args:
        devices: with different names.
        ready: called with a device's path once it is there, in the calling thread.
        note: called before that, with a line for each thing that Linux's CUSE does not do.
        signals: waits for them.
        tap: makes the tap that traces a device's connection.

    Raises:
        KernelError: one of them cannot be served; then none is.
    """
    happened: queue.SimpleQueue[DevCuse] = queue.SimpleQueue()

    def ended(served: DevCuse) -> None:
        happened.put(served)
        signals.wake()

    with contextlib.ExitStack() as stack:
        serving: set[DevCuse] = set()
        for device in devices:
            served = DevCuse(device, ended=ended, tap=None if tap is None else tap())
            stack.callback(served.close)
            served.start()
            if not serving:
                note("programs cannot map these devices: Linux's CUSE has no mmap (ENODEV)")
            for limit in served.limits():
                note(limit)
            serving.add(served)
            ready(served.node)
        while serving and not signals.wait():
            while not happened.empty():
                served = happened.get()
                if served in serving:
                    serving.remove(served)
                    log.warning("%s: the kernel has ended the connection", served.node)
                    served.close()


def _why_not_opened(path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return f"there is no {path}: `modprobe cuse` as root makes it; `recuse run` needs none"
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{path}: permission denied: root may open it, and users that a udev rule allows; "
            "`recuse run` needs no rights"
        )
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return f"{path}: this kernel has no CUSE (CONFIG_CUSE); `recuse run` needs none"
    return f"{path}: {error.strerror}"
