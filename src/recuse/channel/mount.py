"""A filesystem on a mount of the real kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from recuse.channel.allow_root import is_kept_out
from recuse.channel.devcuse import Channel
from recuse.channel.guard import Guard
from recuse.channel.mount_options import given_descriptor, parse_options
from recuse.channel.mounting import (
    MountError,
    Source,
    check_directory,
    mount_at,
    mount_detached,
    take_over,
)
from recuse.channel.reserve import Reserve, refuse
from recuse.channel.taps import ServerTap, Tapped
from recuse.channel.unmounting import (
    ABORT,
    Identity,
    abort,
    connection_at,
    connection_of,
    identity,
    identity_of,
    open_control,
    resolve,
    unmount,
    write_changes,
)
from recuse.channel.workers import Workers
from recuse.runtime import threads
from recuse.runtime.log import Log
from recuse.server.dispatch import pick_interrupt
from recuse.server.filesystem.encoding import Owner
from recuse.server.filesystem.served import Served
from recuse.server.filesystem.session import FilesystemSession
from recuse.server.pending_reply import Gather, Send
from recuse.wire.errors import WireError
from recuse.wire.filesystem import (
    FUSE_DEV_IOC_BACKING_CLOSE,
    FUSE_DEV_IOC_BACKING_OPEN,
    fuse_backing_map,
)
from recuse.wire.fuse import FUSE_INTERRUPT, fuse_out_header

if TYPE_CHECKING:
    from recuse.channel.ring_entry import Entry
    from recuse.channel.rings import Rings

log = Log("recuse.channel")

UNMOUNT_S = 10.0
"""How long unmounting may take, in which the kernel has changes written, before it is forced."""

_OPCODE = slice(4, 8)
_INTERRUPT = FUSE_INTERRUPT.to_bytes(4, sys.byteorder)
_pack_u32 = struct.Struct("=I").pack


class Mount:
    """A filesystem on a directory, served by threads of this process.

    To be used in a ``with`` statement, which mounts and unmounts::

        with recuse.Mount(filesystem, "/mnt"):
            subprocess.run(["ls", "-l", "/mnt"])

    ``async with`` does the same without holding up the event loop.

    Without a directory it is mounted nowhere, which leaves nothing behind, whatever happens:
    `fileno` is its root directory, for ``dir_fd``, and `path` a path to that. That needs root, or
    a user namespace.

    The filesystem's methods run in other threads. A thread of the same process may use the mount,
    as long as it gives up the interpreter's lock, as all functions of `os` do; memory that it maps
    there (`mmap`) it must not touch, for it would wait with the lock.
    """

    def __init__(
        self,
        filesystem: Served,
        directory: str | os.PathLike[str] | None = None,
        options: str = "",
        *,
        ended: Callable[[], object] = lambda: None,
        tap: ServerTap | None = None,
    ) -> None:
        r"""Prepare; nothing is opened before :meth:`start`.

        Args:
            filesystem: what is mounted: a `Filesystem` or `Inodes`.
            directory: where: an empty one. None: nowhere. ``/dev/fd/N``: whoever started this
                process has opened /dev/fuse as N, and mounted it; nobody here unmounts it.
            options: as after mount(8)'s ``-o``: ``"ro,allow_other"`` (docs/mounting.md).
            ended: called, in any thread and perhaps more than once, when the connection has ended:
                after :meth:`close`, or since somebody has unmounted it.
            tap: traces the connection.

        Raises:
            ValueError: an option is not known, or has no such value.
        """
        self._options = parse_options(options)
        self._process = os.getpid()
        self._given = None if directory is None else given_descriptor(os.fspath(directory))
        self._directory = None if directory is None else _absolute(directory)
        self._filesystem = filesystem
        owner = Owner(self._options.uid, self._options.gid, self._options.umask)
        self._session = FilesystemSession(filesystem, self, owner)
        self._refuses = self._options.allow_root and not self._options.allow_other
        self._ended = ended
        self._channel: Channel | None = None
        self._root = -1
        self._identity: Identity | None = None
        self._connection: int | None = None
        self._control = -1
        """The file that ends the connection, if it could be opened."""
        self._guard: Guard | None = None
        self._tap = tap
        self._tapped: Tapped | None = None
        self._send: Send = lambda _: None
        self._gather: Gather | None = None
        self._size = self._session.request_size
        self._rings: Rings | None = None
        self._reserve = Reserve(self._size)
        self._workers: Workers[bytes | Entry] = Workers(
            self._receive, self._handle, failed=self._refuse, name="recuse-filesystem"
        )

    @property
    def path(self) -> str:
        """Where it is: the directory; or, without one, a path that all programs of the user have.

        Raises ValueError without a directory while it is not mounted.
        """
        if self._directory is not None:
            return self._directory
        return f"/proc/{os.getpid()}/fd/{self.fileno()}"

    def fileno(self) -> int:
        """Return the descriptor of a mount without a directory. Raises ValueError otherwise."""
        if self._root < 0:
            raise ValueError("there is no descriptor: it is on a directory, or not mounted")
        return self._root

    @property
    def is_mounted(self) -> bool:
        """Whether it is there still; somebody else may unmount it."""
        if self._directory is None:
            return self._root >= 0
        try:
            return self._identity is not None and identity(self._directory) == self._identity
        except OSError:
            return False

    @property
    def uses_io_uring(self) -> bool:
        """Whether programs' requests come by io_uring, once it is mounted."""
        return self._rings is not None and self._rings.ready

    @property
    def has_backing(self) -> bool:
        """Whether the kernel takes backing files (`Served.passthrough`), once it is mounted."""
        return self._session.has_backing

    def start(self) -> None:
        """Mount it and serve it; on return it answers.

        Raises:
            MountError: it cannot be mounted; :meth:`close` all the same.
        """
        filesystem, options = self._filesystem, self._options
        source = Source(filesystem.name, filesystem.max_read, filesystem.read_only)
        if self._directory is None:
            number, self._root = mount_detached(source, options)
            self._connection = connection_of(self._root)
        elif self._given is not None:
            number = take_over(self._given, source, options, self._session.payload_size)
        else:
            check_directory(self._directory, options.nonempty)
            number = mount_at(self._directory, source, options)
        try:
            self._channel = Channel(number)
            if self._given is not None:
                self._find_out(number)
            elif self._directory is not None:
                self._watch_over(self._directory)
            self._serve(self._channel)
        except OSError as error:
            if self._given is None and self._directory is not None and self._identity is None:
                # Which one it is, `close` does not know.
                unmount(self._directory, lazy=True)
            raise MountError(f"{self.path}: cannot be served: {error.strerror}") from error

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until it is unmounted; False if it still is after that time."""
        return self._workers.join(timeout_s)

    def close(self) -> None:
        """Unmount it, release the files that programs have open, and end the session.

        Programs that have files open, or are in it, find that their calls fail (ENOTCONN). It does
        nothing in a child of this process, which has copies of all that (`os.fork`).
        """
        if os.getpid() != self._process:
            return
        self._unmount()
        if self._channel is not None:
            has_ended = self._end_connection(self._channel)
            self._channel.close()
            if self._control >= 0:
                os.close(self._control)
                self._control = -1
            if self._rings is not None and has_ended:
                self._rings.join()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        self._session.close()
        tap = self._tapped.take_off() if self._tapped is not None else None
        if tap is not None:
            tap.removed()

    def open_backing(self, descriptor: int) -> int:
        """See `recuse.server.filesystem.passthrough.BackingFiles`."""
        assert self._channel is not None
        argument = fuse_backing_map(fd=descriptor).pack()
        return self._channel.ioctl(FUSE_DEV_IOC_BACKING_OPEN, bytearray(argument))

    def close_backing(self, number: int) -> None:
        """See `recuse.server.filesystem.passthrough.BackingFiles`."""
        assert self._channel is not None
        with contextlib.suppress(OSError):  # the connection has ended, and all of them with it
            self._channel.ioctl(FUSE_DEV_IOC_BACKING_CLOSE, bytearray(_pack_u32(number)))

    def __enter__(self) -> Mount:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Mount:
        from recuse.channel.awaited import enter  # noqa: PLC0415

        await enter(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        from recuse.channel.awaited import leave  # noqa: PLC0415

        await leave(self)

    def _find_out(self, number: int) -> None:
        """Find the mount that an open /dev/fuse belongs to, if the kernel tells."""
        self._connection = connection_at(number)
        if self._connection is not None:
            self._identity = identity_of(self._connection)
        if self._identity is not None:
            self._directory = self._identity.point

    def _watch_over(self, directory: str) -> None:
        """Have it unmounted if this process is killed. Raises OSError."""
        self._identity = identity(directory)
        if self._identity is not None:
            self._connection = self._identity.connection
            self._guard = Guard(directory, self._identity)

    def _serve(self, channel: Channel) -> None:
        """Answer the first request, and have threads answer the others. Raises OSError."""
        self._send = put = channel.write
        self._gather = channel.gather
        if self._tap is not None:
            self._tapped = Tapped(self._tap, channel.write)
            put = self._tapped.send
        errors: list[int] = []

        def send(answer: bytes) -> None:
            if not errors:
                errors.append(fuse_out_header.unpack(answer).error)
            put(answer)

        while (message := channel.read(self._size)) is None:
            channel.wait()
        if self._tapped is not None:
            self._tapped.request(message)
        self._prepare_rings(channel, message)
        self._session.handle(message, send)
        if errors != [0]:
            number = -errors[0] if errors else errno.EPROTO
            raise OSError(number, os.strerror(number))
        if self._tap is not None:
            self._tap.added(self.path, 0, 0)
        # Once as much has been given back, glibc keeps memory for the next read, instead of having
        # the kernel map it for each (mallopt(3), M_MMAP_THRESHOLD).
        bytes(2 * self._size)
        if self._rings is not None:
            self._start_rings()
        elif self._connection is not None:
            with contextlib.suppress(OSError):
                self._control = open_control(self._connection)
                channel.block()
        self._workers.start()
        if self._rings is not None and self._rings.ready:
            self._rings.know_file(self.path)

    def _end_connection(self, channel: Channel) -> bool:
        """End it though programs have files open; return whether it has ended.

        Otherwise it lasts until they are closed: the rings keep /dev/fuse open, and so does a child
        of this process.
        """
        if self._rings is not None:
            self._rings.close()
        if not channel.has_ended:
            self._abort()
        return channel.has_ended

    def _abort(self) -> None:
        if self._control >= 0:
            os.write(self._control, ABORT)
        elif self._connection is not None:
            abort(self._connection)

    def _prepare_rings(self, channel: Channel, message: bytes) -> None:
        if not self._options.io_uring:
            return
        from recuse.channel.rings import PARAMETER, Rings, is_offered  # noqa: PLC0415

        self._rings = Rings(self._handle_one, self._abort)
        try:
            if self._connection is None:  # nobody could end it if an answer were lost
                raise OSError(errno.EOPNOTSUPP, "the kernel does not tell which connection it is")
            if not is_offered(message):
                raise OSError(errno.EOPNOTSUPP, f"the kernel does not offer it ({PARAMETER})")
            self._rings.prepare(channel.number, self._session.payload_size)
            self._session.offers_rings = True
        except OSError as error:
            self._do_without_rings(error)
            self._rings.join()
            self._rings = None

    def _start_rings(self) -> None:
        assert self._rings is not None
        try:
            self._rings.start()
        except OSError as error:
            self._do_without_rings(error)

    def _do_without_rings(self, error: OSError) -> None:
        assert self._rings is not None
        self._rings.close()
        log.warning("%s: no io_uring: %s", self._filesystem.name, error.strerror)

    def _unmount(self) -> None:
        """Have it written what was changed, and unmounted; the threads still serve meanwhile."""
        if self._root < 0 and not self.is_mounted:
            return
        try:
            # The filesystem may not answer: then the connection's end ends this.
            thread = threads.start(self._unmount_now, name="recuse-unmount")
        except OSError:
            self._unmount_now()
        else:
            thread.join(UNMOUNT_S)
            if thread.is_alive():
                log.error(
                    "%s: does not answer, and is unmounted all the same", self._filesystem.name
                )
        self._identity = None

    def _unmount_now(self) -> None:
        if self._root >= 0:
            root, self._root = self._root, -1
            os.close(root)
            return
        directory = self._directory
        assert directory is not None
        if self._given is not None:
            write_changes(directory)
            return
        try:
            try:
                unmount(directory, lazy=False)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                write_changes(directory)
                unmount(directory, lazy=True)
        except OSError as error:
            if self.is_mounted:
                log.error("%s: %s; to unmount it: umount %s", directory, error.strerror, directory)

    def _receive(self) -> bytes | Entry | None:
        channel, rings = self._channel, self._rings
        assert channel is not None
        try:
            while True:
                if rings is not None and (entry := rings.receive()) is not None:
                    return entry
                try:
                    message = channel.read(self._size)
                except MemoryError:
                    message = self._reserve.read(channel)
                if message is not None:
                    return message
                channel.wait(-1 if rings is None else rings.fileno())
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.ECONNABORTED):
                log.exception("%s: /dev/fuse cannot be read", self._filesystem.name)
            self._ended()
            return None

    def _refuse(self, item: bytes | Entry, error: BaseException) -> None:
        """Answer what could not be handled, unless it was answered."""
        number = errno.ENOMEM if isinstance(error, MemoryError) else errno.EIO
        if isinstance(item, bytes):
            refuse(item, number, self._send)
        else:
            assert self._rings is not None
            self._rings.refuse_shared(item, number)

    def _handle(self, item: bytes | Entry) -> None:
        rings = self._rings
        if rings is None:
            assert isinstance(item, bytes)
            self._handle_one(item, self._send)
        elif not isinstance(item, bytes):
            rings.serve_shared(item)
        elif item[_OPCODE] == _INTERRUPT:
            self._interrupt(rings, item)
        else:
            self._handle_one(item, self._send)

    def _handle_one(self, message: bytes, send: Send) -> None:
        tapped = self._tapped
        gather = self._gather if send is self._send else None
        if tapped is not None:
            tapped.request(message)
            send, gather = tapped.recording(send), None
        try:
            if self._refuses and is_kept_out(message):
                refuse(message, errno.EACCES, send)
            else:
                self._session.handle(message, send, gather)
        except WireError as error:
            log.error("%s: %s", self._filesystem.name, error)
            refuse(message, errno.EIO, send)

    def _interrupt(self, rings: Rings, message: bytes) -> None:
        refusals: list[bytes] = []

        def try_to() -> bool:
            refusals.clear()
            self._handle_one(message, refusals.append)
            return not refusals

        rings.interrupt(pick_interrupt(message)[0], try_to)
        for refusal in refusals:
            with contextlib.suppress(OSError):  # it came by a ring, or is answered
                self._send(refusal)


def _absolute(directory: str | os.PathLike[str]) -> str:
    if given_descriptor(os.fspath(directory)) is not None:
        return os.fspath(directory)
    try:
        return resolve(directory)
    except OSError:
        return os.path.realpath(directory)
