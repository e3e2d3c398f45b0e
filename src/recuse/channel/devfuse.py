"""A FUSE mount of the real kernel: devices served as files, which programs can map.

Linux's CUSE has no mmap; a regular file on a FUSE mount does (see `recuse.channel.backing`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence

from recuse.channel.backing import MountedDevice
from recuse.channel.devcuse import HEADROOM, MOST_DATA, Channel, KernelError
from recuse.channel.directory import DIRECTORY_MODE, Directory
from recuse.channel.mounting import DEV_FUSE, check_directory
from recuse.channel.signals import EndingSignals
from recuse.channel.taps import ServerTap, Tapped
from recuse.channel.unmounting import Identity, call, end_mount, identity
from recuse.channel.workers import Workers
from recuse.kernel.connection.request import PAGE_SIZE
from recuse.runtime.log import Log
from recuse.server.device import Device, device_makes_files, device_uses_memory
from recuse.wire.fuse import (
    FUSE_ATOMIC_O_TRUNC,
    FUSE_BATCH_FORGET,
    FUSE_BIG_WRITES,
    FUSE_CREATE,
    FUSE_FORGET,
    FUSE_INIT,
    FUSE_INIT_EXT,
    FUSE_INTERRUPT,
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    FUSE_LINK,
    FUSE_MAX_PAGES,
    FUSE_MKDIR,
    FUSE_MKNOD,
    FUSE_PASSTHROUGH,
    FUSE_RENAME,
    FUSE_RENAME2,
    FUSE_RMDIR,
    FUSE_SETATTR,
    FUSE_SYMLINK,
    FUSE_UNLINK,
    fuse_in_header,
    fuse_init_in,
    fuse_init_out,
    fuse_out_header,
)

log = Log("recuse.channel")

LEAST_MINOR = 31
"""FOPEN_STREAM; Linux 5.2."""

_IN = fuse_in_header.SIZE
_OUT = fuse_out_header.SIZE
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_SILENT = frozenset({FUSE_FORGET, FUSE_BATCH_FORGET})
_CHANGES = frozenset(
    {
        FUSE_CREATE,
        FUSE_LINK,
        FUSE_MKDIR,
        FUSE_MKNOD,
        FUSE_RENAME,
        FUSE_RENAME2,
        FUSE_RMDIR,
        FUSE_SETATTR,
        FUSE_SYMLINK,
        FUSE_UNLINK,
    }
)
_libc = ctypes.CDLL(None, use_errno=True)


class DevFuse:
    """Devices on one mount of the real kernel."""

    def __init__(
        self,
        devices: Sequence[Device],
        directory: str,
        ended: Callable[[], object] = lambda: None,
        tap: ServerTap | None = None,
    ) -> None:
        """Prepare; nothing is opened before `start`.

        ``directory`` is an empty one. ``ended`` is called, in any thread and perhaps more than
        once, when the connection has ended. That is after `close`, or because somebody has
        unmounted it or written to /sys/fs/fuse/connections/NUMBER/abort. ``tap`` traces.

        Raises ValueError or TypeError if a device is not well described (see `Device`), or if the
        names of two devices conflict.
        """
        self.path = os.path.abspath(directory)
        self._devices = {device: MountedDevice(device) for device in devices}
        self._directory = Directory(devices, lambda device: self._devices[device].size)
        self._max_read = min(device.max_read for device in devices)
        self._max_write = min(device.max_write for device in devices)
        self._size = HEADROOM + max(self._max_write, MOST_DATA)
        self._ended = ended
        self._channel: Channel | None = None
        self._mount: Identity | None = None
        self._tap = tap
        self._tapped: Tapped | None = None
        self._send: Callable[[bytes], object] = lambda _: None
        self.maps = False
        """Whether programs can map files, once it is mounted."""
        self._workers = Workers(self._receive, self._handle, name="recuse-mount")

    def start(self) -> None:
        """Mount it, and serve it in threads of its own.

        Raises KernelError if that is not possible. It has to be closed then, too.
        """
        check_directory(self.path)
        try:
            channel = self._channel = Channel(DEV_FUSE)
        except OSError as error:
            raise KernelError(_why_not_opened(error)) from error
        self._send = channel.write
        if self._tap is not None:
            self._tapped = Tapped(self._tap, self._send)
            self._send = self._tapped.send
        try:
            _mount(self.path, channel.number, self._max_read)
            self._mount = identity(self.path)
            self._shake_hands(channel)
        except OSError as error:
            raise KernelError(_why_not_mounted(self.path, error)) from error
        if self._tap is not None:
            self._tap.added(self.path, 0, 0)
        try:
            self._workers.start()
        except OSError as error:
            raise KernelError(f"{self.path}: {error.strerror}") from error

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the connection; False if it has not ended by then."""
        return self._workers.join(timeout_s)

    def close(self) -> None:
        """Unmount it, release the files that programs have open, end the sessions.

        Programs keep what they have mapped. Their calls that wait fail, and so do later ones.
        """
        if self._mount:
            self._unmount()
        if self._channel is not None:
            self._channel.close()
        for mounted in self._devices.values():
            mounted.close()
        tap = self._tapped.take_off() if self._tapped is not None else None
        if tap is not None:
            tap.removed()

    def limits(self) -> Iterator[str]:
        """What such a mount does not do for these devices, line by line. Call it after `start`."""
        if not self.maps:
            yield (
                f"{self.path}: programs cannot map these files (ENODEV): this kernel has no FUSE "
                "passthrough (Linux 6.9 or newer, CONFIG_FUSE_PASSTHROUGH)"
            )
        for device in self._devices:
            node = f"{self.path}/{device.name}"
            if device.sysfs or device.subsystem != "class/cuse":
                yield f"{node}: what it declares for /sys is not there"
            if device_makes_files(device):
                yield (
                    f"{node}: ioctls that make a new descriptor fail (EOPNOTSUPP): "
                    "Linux's FUSE has no such thing"
                )
            if device.unrestricted and device_uses_memory(device):
                yield (
                    f"{node}: ioctls that use memory their number does not describe fail (EIO): "
                    "Linux's FUSE lets none through"
                )

    def _unmount(self) -> None:
        """Unmount it, unless somebody else has."""
        assert self._mount is not None
        try:
            # Lazily, as programs may have files open or be in the directory.
            end_mount(self.path, self._mount)
        except OSError as error:
            log.error("%s: %s; to unmount it: umount %s", self.path, error.strerror, self.path)
        self._mount = None

    def _shake_hands(self, channel: Channel) -> None:
        """Answer INIT. Raises OSError."""
        while (message := channel.read(self._size)) is None:
            channel.wait()
        header = fuse_in_header.unpack(message)
        # Kernels before 7.36 send a shorter structure.
        offer = fuse_init_in.unpack(message[_IN:].ljust(fuse_init_in.SIZE, b"\0"))
        if self._tapped is not None:
            self._tapped.request(message)
        if (
            header.opcode != FUSE_INIT
            or offer.major != FUSE_KERNEL_VERSION
            or offer.minor < LEAST_MINOR
        ):
            raise OSError(
                errno.EPROTO,
                f"it speaks {offer.major}.{offer.minor}, this is for 7.{LEAST_MINOR} and later",
            )
        minor = min(offer.minor, FUSE_KERNEL_MINOR_VERSION)
        offered = offer.flags | offer.flags2 << 32
        flags = FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_MAX_PAGES
        self.maps = bool(offered & FUSE_INIT_EXT and offered & FUSE_PASSTHROUGH)
        if self.maps:
            flags |= FUSE_INIT_EXT | FUSE_PASSTHROUGH
        flags &= offered
        for mounted in self._devices.values():
            mounted.start(channel, self._send, minor, self.maps)
        out = fuse_init_out(
            major=FUSE_KERNEL_VERSION,
            minor=minor,
            flags=flags & 0xFFFFFFFF,
            flags2=flags >> 32,
            max_write=self._max_write,
            time_gran=1,
            max_pages=-(-max(self._max_read, self._max_write) // PAGE_SIZE),
            # Areas are not on a filesystem that lies on another one.
            max_stack_depth=1 if self.maps else 0,
        )
        self._reply(header.unique, out.pack())

    def _receive(self) -> bytes | None:
        assert self._channel is not None
        try:
            while (message := self._channel.read(self._size)) is None:
                self._channel.wait()
        except OSError as error:
            if error.errno != errno.ENODEV:
                log.exception("%s: %s cannot be read", self.path, DEV_FUSE)
            self._ended()
            return None
        return message

    def _handle(self, message: bytes) -> None:
        if self._tapped is not None:
            self._tapped.request(message)
        header = fuse_in_header.unpack(message)
        opcode, unique = header.opcode, header.unique
        if opcode in _SILENT:
            return
        if opcode == FUSE_INTERRUPT:
            self._interrupt(message)
            return
        try:
            answer = self._directory.answer(opcode, header.nodeid, message[_IN:])
        except OSError as error:
            self._fail(unique, error.errno or errno.EIO)
            return
        device = self._directory.device(header.nodeid)
        if answer is not None:
            self._reply(unique, answer)
        elif opcode in _CHANGES:
            self._fail(unique, errno.EPERM)
        elif device is not None:
            self._devices[device].handle(opcode, message)
        else:
            self._fail(unique, errno.ENOSYS)

    def _interrupt(self, message: bytes) -> None:
        """Find the device that answers the request; the INTERRUPT does not say which."""
        answers = [mounted.interrupt(message) for mounted in self._devices.values()]
        if None not in answers:
            self._write(answers[0] or b"")

    def _reply(self, unique: int, payload: bytes) -> None:
        self._write(fuse_out_header(len=_OUT + len(payload), unique=unique).pack() + payload)

    def _fail(self, unique: int, number: int) -> None:
        self._write(fuse_out_header(len=_OUT, error=-number, unique=unique).pack())

    def _write(self, message: bytes) -> None:
        try:
            self._send(message)
        except OSError as error:
            # ENOENT: the program was killed meanwhile; ENODEV: the connection has ended.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise


def serve_mount(
    devices: Sequence[Device],
    directory: str,
    ready: Callable[[str], object],
    note: Callable[[str], object] = log.warning,
    *,
    signals: EndingSignals,
    tap: Callable[[], ServerTap] | None = None,
) -> None:
    """Serve devices on a mount until a signal to end, or until it is unmounted; main thread only.

    Args:
        devices: with different names.
        directory: an empty one.
        ready: called with each device's path when all are there, in the calling thread.
        note: called before that, with a line for each thing that such a mount does not do.
        signals: waits for them.
        tap: makes the tap that traces the connection.

    Raises:
        KernelError: they cannot be served.
    """
    try:
        served = DevFuse(devices, directory, signals.wake, None if tap is None else tap())
    except ValueError as error:
        raise KernelError(str(error)) from error
    try:
        served.start()
        for limit in served.limits():
            note(limit)
        for device in devices:
            ready(f"{served.path}/{device.name}")
        if not signals.wait():
            log.warning("%s: it was unmounted, or the connection aborted", served.path)
    finally:
        served.close()


def _mount(path: str, channel: int, max_read: int) -> None:
    """Mount a connection; ``channel`` is its descriptor of /dev/fuse. Raises OSError."""
    options = (
        f"fd={channel},rootmode={DIRECTORY_MODE:o},user_id={os.getuid()},group_id={os.getgid()},"
        f"max_read={max_read},allow_other,default_permissions"
    )
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    call(_libc.mount(b"recuse", os.fsencode(path), b"fuse.recuse", flags, options.encode()))


def _why_not_opened(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"{DEV_FUSE}: this kernel has no FUSE (modprobe fuse); `recuse run` needs none"
    return f"{DEV_FUSE}: {error.strerror}"


def _why_not_mounted(path: str, error: OSError) -> str:
    if error.errno == errno.EPERM:
        return f"{path}: only root may mount; `recuse run` needs no rights"
    return f"{path}: cannot be mounted: {error.strerror}"
