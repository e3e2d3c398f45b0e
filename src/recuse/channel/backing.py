"""A device on a FUSE mount: its session, and the area that is its file's backing file.

An answer to OPEN with FOPEN_PASSTHROUGH and FOPEN_DIRECT_IO names a file, here an area's memfd.
mmap(2) maps that file, while reads and writes come to the server (fs/fuse/passthrough.c and
iomode.c, Linux 6.9). The kernel then does not report mappings. So each file is asked for its area
when it is opened. What `recuse.server` treats as a mapping lasts from then until RELEASE.

An inode has one backing file at a time. All opens have to name it, or they fail with EIO.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable
from functools import partial

from recuse.channel.devcuse import Channel
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.server.device import Device
from recuse.server.session import Session
from recuse.wire.cuse import (
    CUSE_INIT,
    RECUSE_MAPPING,
    RECUSE_MMAP,
    RECUSE_MMAP_COMMIT,
    RECUSE_MUNMAP,
    cuse_init_in,
    recuse_mmap_commit_in,
    recuse_mmap_in,
    recuse_mmap_out,
    recuse_munmap_in,
)
from recuse.wire.declare import Structure
from recuse.wire.descriptor import BytesWithDescriptor, OwnedDescriptor
from recuse.wire.filesystem import (
    FUSE_DEV_IOC_BACKING_CLOSE,
    FUSE_DEV_IOC_BACKING_OPEN,
    fuse_backing_map,
)
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_NOFLUSH,
    FOPEN_PASSTHROUGH,
    FOPEN_STREAM,
    FUSE_KERNEL_VERSION,
    FUSE_OPEN,
    FUSE_POLL,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_in_header,
    fuse_open_in,
    fuse_open_out,
    fuse_out_header,
    fuse_poll_out,
    fuse_read_in,
    fuse_release_in,
)
from recuse.wire.poll import DEFAULT_POLLMASK

log = Log("recuse.channel")

_IN = fuse_in_header.SIZE
_OUT = fuse_out_header.SIZE
_FLAGS = slice(_IN, _IN + 4)  # fuse_open_in begins with them
_OFFSET = slice(_IN + 8, _IN + 16)  # fuse_read_in and fuse_write_in have it after fh

Send = Callable[[bytes], object]
"""Takes the bytes of an answer; raises OSError if they are not wanted."""


class _Backing:
    """The area that a device's inode has at present, as the kernel knows it."""

    def __init__(self, area: int, number: int, descriptor: OwnedDescriptor) -> None:
        self.area = area
        self.number = number
        """The kernel's number for it, 1 or more."""
        self.descriptor = descriptor
        self.files: dict[int, int] = {}
        """The files that have it, by handle, with the unique number of their MMAP."""

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor.fileno()).st_size


class MountedDevice:
    """A device whose file is on a FUSE mount."""

    def __init__(self, device: Device) -> None:
        """Prepare; raises ValueError or TypeError if it is not well described (see `Device`)."""
        self.device = device
        self._session = Session(device, maps_at_open=True)
        self._length = -(-device.map_length // mmap.PAGESIZE) * mmap.PAGESIZE
        self._lock = new_lock("MountedDevice")
        self._backing: _Backing | None = None
        self._channel: Channel | None = None
        self._send: Send = lambda _: None
        self._passthrough = False
        self._told: set[str] = set()
        self._serve: dict[int, Callable[[bytes], None]] = {
            FUSE_OPEN: self._open,
            FUSE_READ: self._read_or_write,
            FUSE_WRITE: self._read_or_write,
            FUSE_POLL: lambda message: self._session.handle(message, self._polled),
            FUSE_RELEASE: self._release,
        }

    def start(self, channel: Channel, send: Send, minor: int, passthrough: bool) -> None:
        """Serve a connection with that minor version; mmap works only with `passthrough`."""
        self._channel, self._send, self._passthrough = channel, send, passthrough
        init = cuse_init_in(major=FUSE_KERNEL_VERSION, minor=minor, flags=RECUSE_MAPPING)
        header = fuse_in_header(len=_IN + init.SIZE, opcode=CUSE_INIT)
        self._session.handle(header.pack() + init.pack(), lambda _: None)

    def handle(self, opcode: int, message: bytes) -> None:
        """Answer a request on the device's file, or make sure that it is answered."""
        serve = self._serve.get(opcode)
        if serve is None:
            self._session.handle(message, self._send)
        else:
            serve(message)

    def interrupt(self, message: bytes) -> bytes | None:
        """Pass on an INTERRUPT; return the answer to it if it is not for one of our requests."""
        answers: list[bytes] = []
        self._session.handle(message, answers.append)
        return answers[0] if answers else None

    def close(self) -> None:
        """End the session, after the connection."""
        self._session.close()
        with self._lock:
            backing, self._backing = self._backing, None
        if backing is not None:
            backing.descriptor.close()

    @property
    def size(self) -> int:
        """The size of its area in bytes while files have one, otherwise 0."""
        with self._lock:
            return 0 if self._backing is None else self._backing.size

    # OPEN takes these steps: the file, its area, whether the device agrees, and the answer. All the
    # requests to the session have OPEN's unique number, one after the other, so that an INTERRUPT
    # of it finds what is running.

    def _open(self, message: bytes) -> None:
        (flags,) = _unpack_u32(message[_FLAGS])
        # As for a character device: the kernel has nothing to truncate (FUSE_ATOMIC_O_TRUNC).
        told = message[: _FLAGS.start] + _pack_u32(flags & ~os.O_TRUNC) + message[_FLAGS.stop :]
        self._session.handle(told, partial(self._opened, message))

    def _opened(self, message: bytes, answer: bytes) -> None:
        if _error(answer):
            self._send(answer)
            return
        handle = fuse_open_out.unpack(answer, _OUT).fh
        if not self._passthrough:
            self._answer_open(message, handle, None)
            return
        access = fuse_open_in.unpack(message, _IN).flags & os.O_ACCMODE
        call = recuse_mmap_in(
            fh=handle, len=self._length, prot=_PROTECTION.get(access, 0), flags=mmap.MAP_SHARED
        )
        self._session.handle(
            _request(message, RECUSE_MMAP, call), partial(self._mapped, message, call)
        )

    def _mapped(self, message: bytes, call: recuse_mmap_in, answer: bytes) -> None:
        if _error(answer):
            self._open_without_area(message, call.fh, "has none")
            return
        assert isinstance(answer, BytesWithDescriptor)
        area = recuse_mmap_out.unpack(answer, _OUT).area
        unique = fuse_in_header.unpack(message).unique
        number = 0
        with self._lock:
            try:
                backing = self._take(area, answer.descriptor)
            except OSError as error:
                number = error.errno or errno.EIO
            else:
                backing.files[call.fh] = unique
        commit = recuse_mmap_commit_in(
            fh=call.fh,
            mmap_unique=unique,
            len=call.len,
            prot=call.prot,
            flags=call.flags,
            area=-number or area,
        )
        then: Send
        if number:
            then = partial(self._not_backed, message, call.fh, number)
        else:
            then = partial(self._committed, message, call.fh, backing.number)
        self._session.handle(_request(message, RECUSE_MMAP_COMMIT, commit), then)

    def _take(self, area: int, descriptor: OwnedDescriptor) -> _Backing:
        """Make the area the inode's, if it is not. Raises OSError if it cannot be. Lock held."""
        backing = self._backing
        if backing is None:
            assert self._channel is not None
            argument = fuse_backing_map(fd=descriptor.fileno()).pack()
            number = self._channel.ioctl(FUSE_DEV_IOC_BACKING_OPEN, bytearray(argument))
            backing = self._backing = _Backing(area, number, descriptor)
        elif backing.area != area:
            raise OSError(errno.EBUSY, "another area")
        return backing

    def _not_backed(self, message: bytes, handle: int, number: int, _: bytes) -> None:
        if number == errno.EBUSY:
            self._open_without_area(message, handle, "has another one")
            return
        self._tell(
            f"the kernel does not take the device's memory ({os.strerror(number)}; the "
            "server has to be root of the machine itself): programs cannot map it"
        )
        self._answer_open(message, handle, None)

    def _committed(self, message: bytes, handle: int, number: int, answer: bytes) -> None:
        if _error(answer):
            self._leave(handle)
            self._open_without_area(message, handle, "refuses to have it mapped")
        else:
            self._answer_open(message, handle, number)

    def _open_without_area(self, message: bytes, handle: int, why: str) -> None:
        """Open a file that does not get the inode's area, if the kernel allows that.

        If it is opened at the moment when another file gets an area, the kernel itself refuses it
        with EIO.
        """
        with self._lock:
            taken = self._backing is not None
        if not taken:
            self._answer_open(message, handle, None)
            return
        self._tell(
            f"the kernel has one area for all files that are open: a file that {why} cannot be "
            "opened meanwhile (EBUSY)"
        )
        header = fuse_in_header.unpack(message)
        self._give_up(message, handle)
        self._send(fuse_out_header(len=_OUT, error=-errno.EBUSY, unique=header.unique).pack())

    def _answer_open(self, message: bytes, handle: int, backing: int | None) -> None:
        # No FLUSH at close(2), as it fails when the server is gone.
        out = fuse_open_out(fh=handle, open_flags=FOPEN_DIRECT_IO | FOPEN_NOFLUSH)
        if backing is not None:
            # It has positions like a regular file. FOPEN_PASSTHROUGH_MASK excludes FOPEN_STREAM.
            out.open_flags |= FOPEN_PASSTHROUGH
            out.backing_id = backing
        elif not self.device.seekable:
            # It does not lock the position either, so a program may read and write at once.
            out.open_flags |= FOPEN_STREAM
        header = fuse_in_header.unpack(message)
        answer = fuse_out_header(len=_OUT + out.SIZE, unique=header.unique).pack() + out.pack()
        try:
            self._send(answer)
        except OSError as error:
            # Nobody waits for it, so no RELEASE follows.
            log.debug("the answer to request %d was not taken: %r", header.unique, error)
            self._give_up(message, handle)

    def _give_up(self, message: bytes, handle: int) -> None:
        """Release a file that the kernel was not told about."""
        release = fuse_release_in(fh=handle)
        self._close(_request(message, FUSE_RELEASE, release), handle, lambda _: None)

    def _release(self, message: bytes) -> None:
        self._close(message, fuse_release_in.unpack(message, _IN).fh, self._send)

    def _close(self, release: bytes, handle: int, send: Send) -> None:
        """End the mapping, if there is one, and then the file."""
        unique, area = self._leave(handle)
        if not area:
            self._session.handle(release, send)
            return
        call = recuse_munmap_in(fh=handle, mmap_unique=unique, len=self._length, area=area)
        self._session.handle(
            _request(release, RECUSE_MUNMAP, call), lambda _: self._session.handle(release, send)
        )

    def _leave(self, handle: int) -> tuple[int, int]:
        """Take a file's area from it; return its mapping's number and the area's, 0 if it had none.

        When the last file is gone, the inode has no area: the kernel forgets the backing file
        before it sends RELEASE (fs/fuse/file.c, fuse_file_put).
        """
        with self._lock:
            backing = self._backing
            if backing is None or handle not in backing.files:
                return 0, 0
            unique = backing.files.pop(handle)
            if not backing.files:
                self._backing = None
                backing.descriptor.close()
                assert self._channel is not None
                try:
                    self._channel.ioctl(
                        FUSE_DEV_IOC_BACKING_CLOSE, bytearray(_pack_u32(backing.number))
                    )
                except OSError as error:  # the connection has ended, and this with it
                    log.debug("backing file %d: %r", backing.number, error)
            return unique, backing.area

    def _read_or_write(self, message: bytes) -> None:
        if not self.device.seekable and (
            # Without FOPEN_STREAM the kernel tracks the position, also with O_APPEND.
            self._backing is not None or fuse_read_in.unpack(message, _IN).flags & os.O_APPEND
        ):
            message = message[: _OFFSET.start] + bytes(8) + message[_OFFSET.stop :]
        self._session.handle(message, self._send)

    def _polled(self, answer: bytes) -> None:
        """Pass on an answer to POLL, or a notification."""
        if _error(answer) == -errno.ENOSYS:
            # ENOSYS would apply to all devices of the mount.
            unique = fuse_out_header.unpack(answer).unique
            out = fuse_poll_out(revents=DEFAULT_POLLMASK)
            answer = fuse_out_header(len=_OUT + out.SIZE, unique=unique).pack() + out.pack()
        self._send(answer)

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.error("%s: %s", self.device.name, what)


_PROTECTION = {
    os.O_RDONLY: mmap.PROT_READ,
    os.O_WRONLY: mmap.PROT_WRITE,
    os.O_RDWR: mmap.PROT_READ | mmap.PROT_WRITE,
}
_pack_u32 = struct.Struct("=I").pack
_unpack_u32 = struct.Struct("=I").unpack


def _error(answer: bytes) -> int:
    return fuse_out_header.unpack(answer).error


def _request(message: bytes, opcode: int, body: Structure) -> bytes:
    """Make a request of our own, with the number and caller of one of the kernel's."""
    header = fuse_in_header.unpack(message)
    header.len, header.opcode = _IN + body.SIZE, opcode
    return header.pack() + body.pack()
