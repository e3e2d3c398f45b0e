"""Open files of devices, as programs hold them. The kernel half has its own open file for each."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Hashable
from functools import partial

from recuse.kernel.caller import Caller
from recuse.kernel.char.devices import CharDevice
from recuse.kernel.char.files import OpenFile
from recuse.kernel.char.mmap import Mapper, Mapping, MmapCall
from recuse.kernel.connection.operation import run
from recuse.kernel.errors import os_error
from recuse.kernel.locks import FileLocks
from recuse.runtime.log import Log
from recuse.sandbox.abilities import may_borrow
from recuse.sandbox.arch import compat
from recuse.sandbox.files.description import FileDescription, IoVecs
from recuse.sandbox.files.native_end import NativeEnd
from recuse.sandbox.files.pipe_end import PipeEnd
from recuse.sandbox.files.socket_end import SocketEnd
from recuse.sandbox.files.table import FileTable
from recuse.sandbox.trap.call import OnDevice, Outcome, Pause, Steps, TrappedCall
from recuse.sandbox.vfs.dentry import Location
from recuse.sandbox.vfs.device_files import DeviceFiles

_log = Log("recuse.sandbox")


def device_end() -> NativeEnd:
    """What programs hold of a device's file. OSError: ENFILE."""
    return SocketEnd() if may_borrow() else PipeEnd()


class DeviceFile(FileDescription):
    """One open file of a device."""

    __slots__ = ("_device", "_file", "_files", "_made")

    def __init__(
        self,
        location: Location,
        file: OpenFile,
        end: NativeEnd,
        files: FileTable,
        made: DeviceFiles,
    ) -> None:
        """Make it for an open file of the kernel half, with the same flags.

        Args:
            location: the device's.
            file: the kernel half's; it is released with this one.
            end: from :func:`device_end`.
            files: the table for files that the device's ioctls make.
            made: gives these files their location.
        """
        self._file = file
        self._device = file.device
        self._files = files
        self._made = made
        super().__init__(location, file.flags, end)

    def read(self, call: TrappedCall, segments: IoVecs, position: int | None) -> Outcome:
        """See `OpenFile.read`."""
        return call.run(self._device, self._file.read(call.caller(), segments, position))

    def write(
        self, call: TrappedCall, segments: IoVecs, position: int | None, flags: int = 0
    ) -> Outcome:
        """See `OpenFile.write`."""
        operation = self._file.write(call.caller(), segments, position, flags & os.O_SYNC)
        return call.run(self._device, operation)

    def read_at(self, caller: Caller, segments: IoVecs, position: int) -> OnDevice[int]:
        """See `OpenFile.read`."""
        return OnDevice(self._device, self._file.read(caller, segments, position))

    def write_at(
        self, caller: Caller, segments: IoVecs, position: int, flags: int
    ) -> OnDevice[int]:
        """See `OpenFile.write`."""
        return OnDevice(
            self._device, self._file.write(caller, segments, position, flags & os.O_SYNC)
        )

    def seek(self, call: TrappedCall, offset: int, whence: int) -> int:
        """See `OpenFile.seek`."""
        return self._file.seek(offset, whence)

    def ioctl(self, call: TrappedCall, command: int, argument: int) -> Outcome:
        """See `OpenFile.ioctl`."""
        device = self._device
        narrow = call.arch == compat.AUDIT_ARCH
        if not device.new_files:
            return call.run(device, self._file.ioctl(call.caller(), command, argument, narrow))
        install = partial(self._install, call)
        operation = self._file.ioctl(call.caller(), command, argument, narrow, install)
        made = self._made.anonymous_or_none(device)
        if made is None:
            return call.run(device, operation)
        # Release files first that earlier ioctls have made and the program has closed: they may be
        # in the way of the new one.
        return _after(self._files.releases(made.node), OnDevice(device, operation))

    def _install(self, call: TrappedCall, file: OpenFile, cloexec: bool) -> int:
        """See `recuse.kernel.char.files.Install`."""
        location = self._made.anonymous(self._device)
        made = AnonymousFile(location, file, device_end(), self._files, self._made)
        number = self._files.install(call, made, cloexec=cloexec)
        if number is None:
            raise os_error(errno.ESRCH)
        return number

    @property
    def poll_source(self) -> CharDevice:
        """The device."""
        return self._device

    def poll(self, caller: Caller, events: int, waiting: bool) -> OnDevice[int]:
        """See `OpenFile.poll`."""
        return OnDevice(self._device, self._file.poll(caller, events, waiting))

    def wake_by(self, changed: Callable[[], None]) -> None:
        """See `OpenFile.wake_pollers`."""
        self._file.wake_pollers = changed

    @property
    def ended(self) -> bool:
        """Whether the device's connection has ended."""
        return self._device.connection.ended

    def mmap(self, caller: Caller, mapper: Mapper, wanted: MmapCall) -> OnDevice[Mapping]:
        """See `OpenFile.mmap`."""
        return OnDevice(self._device, self._file.mmap(caller, mapper, wanted))

    def munmap(self, mapping: Mapping) -> OnDevice[None]:
        """See `OpenFile.munmap`."""
        return OnDevice(self._device, self._file.munmap(mapping))

    def locks(self) -> tuple[FileLocks, Hashable] | None:
        """The device's locks, and this file."""
        return self._device.locks, self._file

    def set_flags(self, flags: int) -> None:
        """Do F_SETFL. The server is told."""
        self.flags = self._file.flags = flags

    def release(self, released: Callable[[], None]) -> None:
        """See `OpenFile.release`."""
        device = self._device

        def done(_: object, error: OSError | None) -> None:
            if error is not None:
                # The program has closed the file and runs on: nobody else can be told.
                _log.debug("release of %s: %s", device.name, error)
            released()

        run(device.connection, self._file.release(), done)


class AnonymousFile(DeviceFile):
    """A file that a device's ioctl has made. Nobody else can open it."""

    __slots__ = ()

    def locks(self) -> None:
        """None: nobody else sees its lock."""


def _after(pause: Pause, step: OnDevice[int]) -> Steps[int]:
    yield pause
    result: int = yield step
    return result
