"""A keyboard, /dev/input/event9, and /dev/typist, which types what is written to it.

Try it::

    $ recuse run -d examples/keyboard.py:Keyboard -d examples/keyboard.py:Typist -- bash
    $ exec 3</dev/input/event9
    $ echo -n A >/dev/typist
    $ dd bs=24 count=8 status=none <&3 | od -A n -v -w24 -t u2 | awk '{ print $9, $10, $11 }'
    1 42 1
    0 0 0
    1 30 1
    0 0 0
    1 30 0
    0 0 0
    1 42 0
    0 0 0

That is: shift and A are pressed, then released.  `evtest /dev/input/event9` shows keys as they are
pressed, with their names.

Numbers, structures and errors are those of <linux/input.h> and drivers/input/evdev.c, Linux 6.1.
"""

import asyncio
import errno
import select
import struct
import time
from collections import deque
from collections.abc import Iterable
from ctypes import Structure, c_int, c_uint16
from threading import Lock

from recuse import IOR, IOW, Device, File, Memory, OpenRequest, ioctl

EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_MSC, EV_SW = 0x00, 0x01, 0x02, 0x03, 0x04, 0x05
EV_LED, EV_SND, EV_FF = 0x11, 0x12, 0x15
SYN_REPORT, SYN_DROPPED = 0, 3
LED_NUML, LED_CAPSL, LED_SCROLLL = 0, 1, 2
KEY_LEFTSHIFT = 42

# The largest code of each type: it limits how many bits a program can ask for.
LAST = {EV_SYN: 0x1F, EV_KEY: 0x2FF, EV_REL: 0x0F, EV_ABS: 0x3F, EV_MSC: 0x07, EV_SW: 0x10}
LAST |= {EV_LED: 0x0F, EV_SND: 0x07, EV_FF: 0x7F}
LAST_PROPERTY = 0x1F

EVENT = struct.Struct("@qqHHi")
"""struct input_event: seconds, microseconds, type, code, value."""

CLOCKS = {0: time.CLOCK_REALTIME, 1: time.CLOCK_MONOTONIC, 7: time.CLOCK_BOOTTIME}

ROWS = {  # an American keyboard: the first key's code, the keys, and the same with shift
    2: ("1234567890-=", "!@#$%^&*()_+"),
    15: ("\tqwertyuiop[]\n", "\tQWERTYUIOP{}\n"),
    30: ("asdfghjkl;'`", 'ASDFGHJKL:"~'),
    43: ("\\zxcvbnm,./", "|ZXCVBNM<>?"),
    57: (" ", " "),
}
KEYS = {
    character: (first + index, shifted)
    for first, row in ROWS.items()
    for shifted in (True, False)
    for index, character in enumerate(row[shifted])
}

KEYBOARDS: "list[Keyboard]" = []


class Id(Structure):
    """struct input_id."""

    _fields_ = [(name, c_uint16) for name in ("bustype", "vendor", "product", "version")]


def get(number: int) -> int:
    """Return a command that fills in as many bytes as the program asks for."""
    return IOR("E", number, 0)


def bits(numbers: Iterable[int], last: int) -> bytes:
    """Return the numbers as bits, in whole longs of 64, as the kernel has them."""
    return sum(1 << number for number in numbers).to_bytes((last // 64 + 1) * 8, "little")


class Keyboard(Device):
    """The device: the keys that are down, and the lights that are on."""

    name = "input/event9"

    def __init__(self, *, name: str = "input/event9", title: str = "recuse keyboard") -> None:
        super().__init__(name=name)
        self.title = title
        self.lock = Lock()
        self.down: set[int] = set()
        self.lights: set[int] = set()
        self.files: list[KeyboardFile] = []
        self.grabbed_by: KeyboardFile | None = None
        KEYBOARDS.append(self)

    def open(self, request: OpenRequest) -> File:
        file = KeyboardFile()
        with self.lock:
            self.files.append(file)
        return file

    def type(self, text: str) -> None:
        """Press and release keys.  Call it from any thread.

        Raises ValueError for a character that the keyboard does not have.
        """
        if unknown := set(text) - set(KEYS):
            raise ValueError(f"no keys for {''.join(sorted(unknown))!r}")
        for character in text:
            code, shifted = KEYS[character]
            keys = [KEY_LEFTSHIFT, code] if shifted else [code]
            for key in keys:
                self.press(key)
            for key in reversed(keys):
                self.press(key, down=False)

    def press(self, key: int, *, down: bool = True) -> None:
        """Press a key, or release it."""
        with self.lock:
            if (key in self.down) != down:
                self.down ^= {key}
                self.happen(EV_KEY, key, int(down))

    def happen(self, kind: int, code: int, value: int) -> None:
        """Send an event to all programs, or to the one that has grabbed us.  Needs the lock."""
        for file in self.files if self.grabbed_by is None else [self.grabbed_by]:
            file.put(kind, code, value)


class KeyboardFile(File):
    """One program's queue of events."""

    device: Keyboard
    most = 1024
    """The most events that wait for the program.  If it is too slow, SYN_DROPPED tells it."""

    def __init__(self) -> None:
        self.queue: deque[bytes] = deque()
        self.clock = time.CLOCK_REALTIME
        self.loop: asyncio.AbstractEventLoop | None = None
        self.arrived = asyncio.Event()

    def event(self, kind: int, code: int, value: int) -> bytes:
        """Return an event that happens now."""
        seconds, nanoseconds = divmod(time.clock_gettime_ns(self.clock), 10**9)
        return EVENT.pack(seconds, nanoseconds // 1000, kind, code, value)

    def put(self, kind: int, code: int, value: int) -> None:
        """Queue an event, and wake the program."""
        if len(self.queue) > self.most - 2:
            self.queue.clear()
            self.queue.append(self.event(EV_SYN, SYN_DROPPED, 0))
        self.queue += [self.event(kind, code, value), self.event(EV_SYN, SYN_REPORT, 0)]
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.arrived.set)
        self.wake_pollers()

    async def read(self, size: int, offset: int) -> bytes:
        if size < EVENT.size:
            raise OSError(errno.EINVAL, "no room for an event")
        self.loop = asyncio.get_running_loop()
        while True:
            self.arrived.clear()
            with self.device.lock:
                count = min(len(self.queue), size // EVENT.size)
                events = [self.queue.popleft() for _ in range(count)]
            if events:
                return b"".join(events)
            if self.nonblocking:
                raise BlockingIOError(errno.EAGAIN, "no event")
            await self.arrived.wait()

    def write(self, data: bytes, offset: int) -> int:
        """Switch lights: programs write events for that."""
        if len(data) < EVENT.size:
            raise OSError(errno.EINVAL, "not an event")
        keyboard = self.device
        size = len(data) - len(data) % EVENT.size
        for _, _, kind, code, value in EVENT.iter_unpack(data[:size]):
            with keyboard.lock:
                on = code in keyboard.lights
                if kind == EV_LED and code <= LED_SCROLLL and on != bool(value):
                    keyboard.lights ^= {code}
                    keyboard.happen(EV_LED, code, int(not on))
        return size

    def poll(self, events: int) -> int:
        readable = select.POLLIN | select.POLLRDNORM if self.queue else 0
        return readable | select.POLLOUT | select.POLLWRNORM

    def release(self) -> None:
        with self.device.lock:
            self.device.files.remove(self)
            if self.device.grabbed_by is self:
                self.device.grabbed_by = None

    # Identity

    @ioctl(IOR("E", 0x01, c_int), c_int)
    def get_version(self) -> int:
        return 0x010001

    @ioctl(IOR("E", 0x02, Id), Id)
    def get_id(self, _old: Id) -> Id:
        return Id(bustype=0x06, vendor=0x1209, product=0x0001, version=1)  # BUS_VIRTUAL

    @ioctl(get(0x06), bytes)
    def get_name(self) -> bytes:
        return self.device.title.encode() + b"\0"

    @ioctl(get(0x07), bytes)
    def get_place(self) -> bytes:
        return b"recuse/input0\0"

    @ioctl(get(0x08), bytes)
    def get_serial_number(self) -> bytes:
        raise OSError(errno.ENOENT, "it has none")

    @ioctl(get(0x09), bytes)
    def get_properties(self) -> bytes:
        return bits((), LAST_PROPERTY)

    # Abilities: EVIOCGBIT of a type, one command for each type

    @ioctl(get(0x20 + EV_SYN), bytes)
    def get_types(self) -> bytes:
        return bits((EV_SYN, EV_KEY, EV_LED), LAST[EV_SYN])

    @ioctl(get(0x20 + EV_KEY), bytes)
    def get_keys(self) -> bytes:
        return bits({code for code, _ in KEYS.values()} | {KEY_LEFTSHIFT}, LAST[EV_KEY])

    @ioctl(get(0x20 + EV_LED), bytes)
    def get_lights(self) -> bytes:
        return bits((LED_NUML, LED_CAPSL, LED_SCROLLL), LAST[EV_LED])

    @ioctl(IOR("E", 0x84, c_int), c_int)
    def get_count_of_force_effects(self) -> int:
        return 0

    # Current state

    @ioctl(get(0x18), bytes)
    def get_keys_down(self) -> bytes:
        return bits(self.device.down, LAST[EV_KEY])

    @ioctl(get(0x19), bytes)
    def get_lights_on(self) -> bytes:
        return bits(self.device.lights, LAST[EV_LED])

    @ioctl(get(0x1A), bytes)
    def get_sounds_on(self) -> bytes:
        return bits((), LAST[EV_SND])

    @ioctl(get(0x1B), bytes)
    def get_switches_on(self) -> bytes:
        return bits((), LAST[EV_SW])

    # Settings

    @ioctl(IOW("E", 0x90, c_int))
    def grab(self, wanted: int) -> None:
        """The argument is not a pointer, although the number says so."""
        keyboard = self.device
        with keyboard.lock:
            if wanted and keyboard.grabbed_by is not None:
                raise OSError(errno.EBUSY, "grabbed by another program")
            if not wanted and keyboard.grabbed_by is not self:
                raise OSError(errno.EINVAL, "not grabbed")
            keyboard.grabbed_by = self if wanted else None

    @ioctl(IOW("E", 0xA0, c_int), c_int)
    def set_clock(self, number: int) -> None:
        if number not in CLOCKS:
            raise OSError(errno.EINVAL, "no such clock")
        with self.device.lock:
            self.clock = CLOCKS[number]
            self.queue.clear()

    def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
        """Answer for types that a keyboard does not have, and refuse what evdev does not know."""
        number, size = command & 0xFF, command >> 16 & 0x3FFF
        if command & ~(0x3FFF << 16) == get(number) and number - 0x20 in LAST:
            nothing = bits((), LAST[number - 0x20])[:size]
            memory.write(argument, nothing)
            return len(nothing)
        raise OSError(errno.EINVAL, "not a command for a keyboard")


class Typist(Device):
    """Types what is written to it, on the keyboard that this process created last."""

    name = "typist"

    def open(self, request: OpenRequest) -> File:
        if not KEYBOARDS:
            raise OSError(errno.ENXIO, "no keyboard")
        return TypistFile(KEYBOARDS[-1])


class TypistFile(File):
    """Text goes in, keys come out of the keyboard."""

    def __init__(self, keyboard: Keyboard) -> None:
        self.keyboard = keyboard

    def write(self, data: bytes, offset: int) -> None:
        try:
            self.keyboard.type(data.decode())
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error

    def poll(self, events: int) -> int:
        return select.POLLOUT | select.POLLWRNORM
