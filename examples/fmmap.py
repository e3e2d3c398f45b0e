"""Memory that a device and programs share: one area for each user.

Once a millisecond, the device sets the next byte of each area that is 0 to 1. If a program sets it
back to 0, as `fmmap_client.py` does, the device sets it again. Reading the device shows a picture
of all areas. Each column is a part with ones, zeros or both (?), and ^ is where the device is. In
one terminal::

    recuse run -d examples/fmmap.py -- sh -c '
        python3 examples/fmmap_client.py /dev/fmmap 0 4 3000
        cat /dev/fmmap'

The proposal of direct mmap for FUSE (2009) came with an example of the same name that does this.
"""

import errno
from collections.abc import Iterator
from threading import Event, Lock, Thread

import recuse
from recuse import Area, Mapping, MmapRequest, OpenRequest

COLUMNS = 80
SIZE_MOST = 1 << 20
"""The largest area, in bytes: to look for a zero copies all of it."""
DELAY_S = 0.001


class UserArea:
    """The memory that one user's programs map."""

    def __init__(self, size: int) -> None:
        self.area = Area(size, dont_copy=True)
        self.cursor = 0

    def set_one(self) -> None:
        """Set the first zero at or after the cursor."""
        memory = bytes(self.area.buffer)
        found = memory.find(0, self.cursor)
        if found < 0:
            found = memory.find(0)
        if found >= 0:
            self.area[found] = 1
            self.cursor = (found + 1) % len(memory)

    def picture(self, columns: int) -> Iterator[str]:
        """Yield a character for each of ``columns`` parts."""
        memory = bytes(self.area.buffer)
        step = max(len(memory) // columns, 1)
        for column in range(columns):
            start = column * step
            part = memory[start : start + step] if column < columns - 1 else memory[start:]
            zeros = part.count(0)
            if start <= self.cursor < start + len(part):
                yield "^"
            elif 0 < zeros < len(part):
                yield "?"
            else:
                yield "0" if zeros else "1"


class Fmmap(recuse.Device):
    """The device: areas by user ID, and the thread that sets bytes."""

    name = "fmmap"
    map_length = 16 * 4096

    def __init__(self, *, name: str = "fmmap") -> None:
        super().__init__(name=name)
        self.users: dict[int | None, UserArea] = {}
        self.lock = Lock()
        self.closed = Event()
        self.thread = Thread(target=self.work, name=name, daemon=True)
        self.thread.start()

    def open(self, request: OpenRequest) -> recuse.File:
        return FmmapFile(request.uid)

    def work(self) -> None:
        """Set a byte of each area, again and again."""
        while not self.closed.wait(DELAY_S):
            with self.lock:
                for user in self.users.values():
                    user.set_one()

    def close(self) -> None:
        self.closed.set()
        self.thread.join()


class FmmapFile(recuse.File):
    """An open file of one user."""

    device: Fmmap

    def __init__(self, uid: int | None) -> None:
        self.uid = uid
        self.shown = False

    def mmap(self, request: MmapRequest) -> Area:
        """Share the user's area; the first mapping creates it. ENOMEM beyond SIZE_MOST."""
        if request.size > SIZE_MOST:
            raise OSError(errno.ENOMEM, f"an area has at most {SIZE_MOST} bytes")
        device = self.device
        with device.lock:
            if self.uid not in device.users:
                device.users[self.uid] = UserArea(request.size)
            return device.users[self.uid].area

    def mapped(self, mapping: Mapping) -> None:
        """Extend the area to the mapping's end."""
        with self.device.lock:
            if mapping.offset + mapping.length > mapping.area.size:
                mapping.area.resize(mapping.offset + mapping.length)

    def read(self, size: int, offset: int) -> bytes:
        """Return the whole picture at once, and then the end of the file."""
        if self.shown:
            self.shown = False
            return b""
        self.shown = True
        with self.device.lock:
            lines = []
            for uid, user in self.device.users.items():
                head = f"{uid:6}: {user.area.size:6} "
                lines.append(head + "".join(user.picture(COLUMNS - len(head))) + "\n")
        return "".join(lines).encode()[:size]
