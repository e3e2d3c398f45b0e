"""A serial port, /dev/ttyR0, with a loopback plug in it; or two ports with a cable between them.

Try it::

    $ recuse run -d examples/serial.py -- bash
    $ stty -F /dev/ttyR0 115200
    $ stty -F /dev/ttyR0
    speed 115200 baud; line = 0;
    min = 1; time = 0;
    -brkint -icrnl -imaxbel
    -opost -onlcr
    -isig -icanon -iexten -echo -echoe -echok -echoctl -echoke
    $ echo hello >/dev/ttyR0
    $ head -n 1 /dev/ttyR0
    hello

The first two ports with the same `cable` are connected::

    $ recuse run -d examples/serial.py,cable=a -d examples/serial.py,cable=a,name=ttyR1 -- bash
    $ echo hello >/dev/ttyR0
    $ head -n 1 /dev/ttyR1
    hello

Programs can set and read back all settings.  Modem lines, breaks, VMIN and VTIME work.  Bytes pass
unchanged and at once: there is no echo and no line editing.  Nothing is lost, as if flow control
were always on.  Numbers and structures are those of <asm-generic/ioctls.h> and <asm/termbits.h>.
"""

import asyncio
import errno
import select
from collections.abc import Callable
from ctypes import Structure, c_int, c_uint8, c_uint16, c_uint32
from typing import ClassVar

from recuse import IOR, IOW, Device, File, OpenRequest, ioctl


class Termios(Structure):
    """struct termios of the kernel, which has no speeds."""

    _fields_ = [
        ("c_iflag", c_uint32),
        ("c_oflag", c_uint32),
        ("c_cflag", c_uint32),
        ("c_lflag", c_uint32),
        ("c_line", c_uint8),
        ("c_cc", c_uint8 * 19),
    ]


class Termios2(Structure):
    """struct termios2, with speeds in bits per second."""

    _fields_ = [*Termios._fields_, ("c_ispeed", c_uint32), ("c_ospeed", c_uint32)]


class Winsize(Structure):
    """struct winsize: the size of a terminal, if there is one at the other end."""

    _fields_ = [(name, c_uint16) for name in ("rows", "columns", "width", "height")]


TCGETS, TCSETS, TCSETSW, TCSETSF = 0x5401, 0x5402, 0x5403, 0x5404
TCGETS2 = IOR("T", 0x2A, Termios2)
TCSETS2, TCSETSW2, TCSETSF2 = (IOW("T", number, Termios2) for number in (0x2B, 0x2C, 0x2D))
TCSBRK, TCXONC, TCFLSH, TCSBRKP, TIOCSBRK, TIOCCBRK = 0x5409, 0x540A, 0x540B, 0x5425, 0x5427, 0x5428
TIOCOUTQ, TIOCGWINSZ, TIOCSWINSZ, FIONREAD = 0x5411, 0x5413, 0x5414, 0x541B
TIOCMGET, TIOCMBIS, TIOCMBIC, TIOCMSET = 0x5415, 0x5416, 0x5417, 0x5418

TIOCM_DTR, TIOCM_RTS, TIOCM_CTS, TIOCM_CAR, TIOCM_DSR = 0x002, 0x004, 0x020, 0x040, 0x100
OUTPUTS = TIOCM_DTR | TIOCM_RTS

VTIME, VMIN = 5, 6
ICANON, IGNBRK = 0o2, 0o1
CS8, CREAD, HUPCL, CLOCAL = 0o60, 0o200, 0o2000, 0o4000
CBAUD, BOTHER = 0o10017, 0o10000
SLOW = (0, 50, 75, 110, 134, 150, 200, 300, 600, 1200, 1800, 2400, 4800, 9600, 19200, 38400)
FAST = (57600, 115200, 230400, 460800, 500000, 576000, 921600)
FASTEST = (1000000, 1152000, 1500000, 2000000, 2500000, 3000000, 3500000, 4000000)
SPEEDS = dict(enumerate(SLOW)) | dict(enumerate(FAST + FASTEST, 0o10001))
"""Speeds by their codes in c_cflag."""

CONTROL_CHARACTERS = bytes([3, 28, 127, 21, 4, 0, 1, 0, 17, 19, 26, 0, 18, 15, 23, 22, 0, 0, 0])

READABLE = select.POLLIN | select.POLLRDNORM
WRITABLE = select.POLLOUT | select.POLLWRNORM


class Port(Device):
    """The state of a port that all programs share.  Only the event loop's thread uses it."""

    name = "ttyR0"
    limit = 65536
    """The most bytes that wait to be read; a program that writes more waits."""

    unconnected: ClassVar[dict[str, "Port"]] = {}
    """Ports without another end, by their cable."""

    def __init__(self, *, name: str = "ttyR0", cable: str = "") -> None:
        super().__init__(name=name)
        self.settings = Termios2(c_cflag=0o15 | CS8 | CREAD | HUPCL | CLOCAL)
        self.settings.c_ispeed = self.settings.c_ospeed = 9600
        self.settings.c_cc[:] = CONTROL_CHARACTERS
        self.size = Winsize()
        self.outputs = 0
        self.received = bytearray()
        self.changed = asyncio.Condition()
        self.files: set[PortFile] = set()
        self.other = self
        if cable and cable in self.unconnected:
            self.other = self.unconnected.pop(cable)
            self.other.other = self
        elif cable:
            self.unconnected[cable] = self

    async def open(self, request: OpenRequest) -> File:
        if not self.files:
            self.outputs = OUTPUTS
        file = PortFile()
        self.files.add(file)
        return file

    @property
    def room(self) -> int:
        """The number of bytes that can be sent to it now."""
        return self.limit - len(self.received)

    @property
    def enough(self) -> int:
        """The number of bytes that a read waits for, 0 if it does not wait."""
        cc = self.settings.c_cc
        return 1 if self.settings.c_lflag & ICANON else cc[VMIN]

    @property
    def lines(self) -> int:
        """The modem lines.  Each end's outputs are the other end's inputs, as in a null modem."""
        theirs = self.other.outputs
        inputs = TIOCM_CTS if theirs & TIOCM_RTS else 0
        inputs |= TIOCM_DSR | TIOCM_CAR if theirs & TIOCM_DTR else 0
        return self.outputs | inputs

    async def receive(self, data: bytes) -> None:
        """Receive what the other end sends; drop it if the receiver is off."""
        if self.settings.c_cflag & CREAD:
            self.received += data
            await self.tell()

    def take(self, size: int) -> bytes:
        """Return the first bytes received."""
        data = bytes(self.received[:size])
        del self.received[:size]
        return data

    async def tell(self) -> None:
        """Wake programs that wait for bytes here, or for room."""
        async with self.changed:
            self.changed.notify_all()
        for file in self.files | self.other.files:
            file.wake_pollers()

    async def wait(self, until: Callable[[], bool], tenths: int = 0) -> None:
        """Wait for a change that `tell` reports, at most ``tenths`` of a second, 0 for no limit."""
        async with self.changed:
            try:
                async with asyncio.timeout(tenths / 10 if tenths else None):
                    await self.changed.wait_for(until)
            except TimeoutError:
                pass


class PortFile(File):
    """One open of it."""

    device: Port

    async def read(self, size: int, offset: int) -> bytes:
        port = self.device
        enough, tenths = min(port.enough, size), port.settings.c_cc[VTIME]
        if port.settings.c_lflag & ICANON:
            tenths = 0
        if self.nonblocking and not port.received and (enough or tenths):
            raise BlockingIOError(errno.EAGAIN, "nothing received")
        if not self.nonblocking:
            if not (enough and tenths):
                # VMIN alone waits for so many bytes, VTIME alone for one; without both, do not
                # wait.
                if enough or tenths:
                    await port.wait(lambda: len(port.received) >= (enough or 1), tenths)
            else:
                # The time is that between bytes, so it starts with the first.
                there = 0
                await port.wait(lambda: bool(port.received))
                while there < len(port.received) < enough:
                    there = len(port.received)
                    await port.wait(lambda: len(port.received) > there, tenths)  # noqa: B023
        data = port.take(size)
        await port.tell()
        return data

    async def write(self, data: bytes, offset: int) -> int:
        other = self.device.other
        if not other.room:
            if self.nonblocking:
                raise BlockingIOError(errno.EAGAIN, "no room")
            await other.wait(lambda: other.room > 0)
        # A program that wrote only a part continues with the rest.
        data = data[: other.room]
        await other.receive(data)
        return len(data)

    async def poll(self, events: int) -> int:
        port = self.device
        few = 1 if port.settings.c_cc[VTIME] else port.enough or 1
        ready = READABLE if len(port.received) >= few else 0
        return ready | (WRITABLE if port.other.room else 0)

    async def release(self) -> None:
        port = self.device
        port.files.discard(self)
        if not port.files and port.settings.c_cflag & HUPCL:
            port.outputs = 0

    # Settings

    @ioctl(TCGETS, Termios, direction="r")
    async def get_settings(self, _old: Termios) -> Termios:
        return Termios.from_buffer_copy(self.device.settings)

    @ioctl(TCGETS2, Termios2)
    async def get_settings_2(self, _old: Termios2) -> Termios2:
        return self.device.settings

    @ioctl(TCSETS, Termios, direction="w")
    @ioctl(TCSETSW, Termios, direction="w")
    async def set_settings(self, new: Termios) -> None:
        settings = Termios2.from_buffer_copy(bytes(new) + bytes(8))
        await self.set_settings_2(settings)

    @ioctl(TCSETSF, Termios, direction="w")
    async def flush_and_set(self, new: Termios) -> None:
        self.device.received.clear()
        await self.set_settings(new)

    @ioctl(TCSETS2, Termios2)
    @ioctl(TCSETSW2, Termios2)
    async def set_settings_2(self, new: Termios2) -> None:
        port = self.device
        code = new.c_cflag & CBAUD
        if code != BOTHER:
            new.c_ispeed = new.c_ospeed = SPEEDS[code]
        if not new.c_ospeed:
            port.outputs = 0  # B0 hangs up
        port.settings = new
        await port.tell()

    @ioctl(TCSETSF2, Termios2)
    async def flush_and_set_2(self, new: Termios2) -> None:
        self.device.received.clear()
        await self.set_settings_2(new)

    @ioctl(TIOCGWINSZ, Winsize, direction="r")
    async def get_size(self, _old: Winsize) -> Winsize:
        return self.device.size

    @ioctl(TIOCSWINSZ, Winsize, direction="w")
    async def set_size(self, new: Winsize) -> None:
        self.device.size = new

    # Bytes and breaks

    @ioctl(FIONREAD, c_int, direction="r")
    async def how_many_received(self) -> int:
        return len(self.device.received)

    @ioctl(TIOCOUTQ, c_int, direction="r")
    async def how_many_to_send(self) -> int:
        return 0

    @ioctl(TCFLSH)
    async def flush(self, queue: int) -> None:
        if queue not in (0, 1, 2):  # TCIFLUSH, TCOFLUSH, TCIOFLUSH
            raise OSError(errno.EINVAL, "no such queue")
        if queue != 1:
            self.device.received.clear()
            await self.device.tell()

    @ioctl(TCXONC)
    async def flow(self, action: int) -> None:
        if action not in (0, 1, 2, 3):  # TCOOFF, TCOON, TCIOFF, TCION
            raise OSError(errno.EINVAL, "no such action")

    @ioctl(TCSBRK)
    async def send_break(self, no_break: int) -> None:
        # tcdrain(3) asks for no break: everything has been sent already.
        if not no_break:
            await self.begin_break()

    @ioctl(TCSBRKP)
    @ioctl(TIOCSBRK)
    async def begin_break(self) -> None:
        other = self.device.other
        if not other.settings.c_iflag & IGNBRK:
            await other.receive(b"\0")

    @ioctl(TIOCCBRK)
    async def end_break(self) -> None:
        pass

    # Modem lines

    @ioctl(TIOCMGET, c_int, direction="r")
    async def get_lines(self) -> int:
        return self.device.lines

    @ioctl(TIOCMSET, c_int, direction="w")
    async def set_lines(self, lines: int) -> None:
        self.device.outputs = lines & OUTPUTS

    @ioctl(TIOCMBIS, c_int, direction="w")
    async def raise_lines(self, lines: int) -> None:
        self.device.outputs |= lines & OUTPUTS

    @ioctl(TIOCMBIC, c_int, direction="w")
    async def lower_lines(self, lines: int) -> None:
        self.device.outputs &= ~lines
