"""A device's descriptor as one end of a pipe, used where the programs' end cannot be copied.

In a socket pair, only the programs' end can take back what recuse's end has made it show. The two
ends of a pipe can both be opened again through ``/proc/self/fd``. So here recuse's end can show
everything, without a copy of the programs' end. The programs hold the pipe open for reading *and*
writing (fs/pipe.c, pipe_poll; Linux 6.1), and it has room for two pages:

    empty            POLLOUT
    one page         POLLIN and POLLOUT
    two pages        POLLIN

It cannot show neither. Whoever waits for both and gets none is told that it can write, and finds
that it cannot. There is no POLLPRI, POLLERR or POLLHUP, and a wait for these alone is refused. To
be noticed once more, a pipe is given the size that it has already: there might be more room, so
those that wait for room look again (pipe_resize_ring). The supervisor's end is open for reading
only, and hangs up when the programs' end is closed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
from collections.abc import Callable
from typing import Final

from recuse.kernel.connection.request import PAGE_SIZE
from recuse.kernel.errors import os_error
from recuse.runtime.locks import new_lock
from recuse.runtime.log import Log
from recuse.runtime.room import check_room, keeping
from recuse.sandbox.files.native_end import READABLE, READING, WRITABLE, WRITING, shown

_log = Log("recuse.sandbox")

_CONTENT: Final = bytes(PAGE_SIZE)
_F_SETPIPE_SZ: Final = 1031


class PipeEnd:
    """The programs' end of a pipe, controlled from recuse's end.

    See `recuse.sandbox.files.native_end.NativeEnd`.
    """

    __slots__ = ("_count", "_lock", "link", "ours", "severed", "theirs")

    full = False
    urgent = False
    spares = 2
    """Nothing here is used up."""

    def __init__(self) -> None:
        """Make the pipe.

        Raises:
            OSError: ENFILE if the supervisor has no descriptors left.
        """
        self._lock = new_lock("PipeEnd")
        self.severed = False
        self._count = 1
        self.theirs = -1
        with keeping():
            self.ours, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                fcntl.fcntl(writer, _F_SETPIPE_SZ, 2 * PAGE_SIZE)
                self.theirs = self._open(os.O_RDWR)
                os.write(writer, _CONTENT)
                check_room(self.ours)
                self.link = f"pipe:[{os.fstat(self.theirs).st_ino}]"
            except BaseException:
                self.close()
                raise
            finally:
                os.close(writer)

    def _open(self, mode: int) -> int:
        return os.open(f"/proc/self/fd/{self.ours}", mode | os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def readable(self) -> bool:
        """Whether it shows POLLIN."""
        return self._count > 0

    @property
    def writable(self) -> bool:
        """Whether it shows POLLOUT."""
        return self._count < 2

    def check(self, events: int) -> None:
        """Raise OSError, EOPNOTSUPP, for a wait that nothing here could end."""
        if not events & (READABLE | WRITABLE):
            raise os_error(errno.EOPNOTSUPP)

    def can_show(self, bits: int, events: int) -> bool:
        """Whether it can show exactly those of ``events`` that are in ``bits``: never neither."""
        return bool(bits & (READING | WRITING)) and not (shown(bits) ^ bits) & events

    def make_readable(self) -> None:
        """Show POLLIN. If it is shown already, be noticed once more."""
        with self._lock:
            if self._count:
                self._touch()
            else:
                self._put()

    def make_urgent(self) -> None:
        """Show POLLIN, because POLLPRI cannot be shown."""
        self.make_readable()

    def make_writable(self) -> None:
        """Show POLLOUT."""
        with self._lock:
            if self._count == 2:
                self._take()

    def touch_writable(self) -> None:
        """Show POLLOUT as before, and be noticed once more."""
        with self._lock:
            self._touch()

    def lower(
        self,
        fetch: Callable[[], int] | None = None,
        *,
        drain: bool = False,
        fill: bool = False,
        spare: bool = False,
    ) -> None:
        """Stop showing POLLIN or POLLOUT. If both are to go, POLLIN goes, as one must stay."""
        del fetch, spare
        with self._lock:
            if self.severed:
                return
            if drain:
                while self._count:
                    self._take()
            elif fill:
                self._fill()

    def sever(self, close: Callable[[], None]) -> None:
        """Show POLLIN and POLLOUT for ever."""
        del close
        with self._lock:
            self.severed = True
            if self._count == 2:
                self._take()
            elif not self._count:
                self._put()

    def hand_over(self) -> None:
        """Close the supervisor's copy of the programs' end: it is installed, or never will be."""
        theirs, self.theirs = self.theirs, -1
        if theirs >= 0:
            os.close(theirs)

    def hung_up(self) -> bool:
        """Whether no program holds it any more, or it was closed."""
        poll = select.poll()
        with self._lock:
            if self.ours < 0:
                return True
            poll.register(self.ours, 0)
            return bool(poll.poll(0))

    def close(self) -> None:
        """Close the supervisor's end, and its copy of the programs' end."""
        self.hand_over()
        with self._lock:
            ours, self.ours = self.ours, -1
            if ours >= 0:
                os.close(ours)

    def _touch(self) -> None:
        if self.ours >= 0:
            try:
                fcntl.fcntl(self.ours, _F_SETPIPE_SZ, 2 * PAGE_SIZE)
            except OSError:
                _log.exception("no memory left to show that something has changed")

    def _fill(self) -> None:
        for _ in range(2 - self._count):
            self._put()

    def _put(self) -> None:
        if self.ours < 0:
            return
        try:
            writer = self._open(os.O_WRONLY)
        except OSError:
            _log.exception("no descriptor left to show that something can be read")
            return
        try:
            with contextlib.suppress(BlockingIOError):
                os.write(writer, _CONTENT)
            self._count += 1
        finally:
            os.close(writer)

    def _take(self) -> None:
        self._count -= 1
        if self.ours >= 0:
            with contextlib.suppress(BlockingIOError):
                os.read(self.ours, PAGE_SIZE)
