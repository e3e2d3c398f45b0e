"""A GPIO chip with eight lines.  Each pair is wired together: 0 and 1, 2 and 3...

Each line sees what the other line of its pair is set to.  Try it::

    $ recuse run -d examples/gpiochip.py -- bash
    $ gpiodetect
    gpiochip9 [recuse] (8 lines)
    $ gpioset gpiochip9 0=1
    $ gpioget gpiochip9 1 3
    1 0
    $ gpiofind B1
    gpiochip9 3

It has both versions of the interface.  Errors are those of drivers/gpio/gpiolib-cdev.c, Linux 6.1.
Nothing bounces here, so debouncing settings are only remembered.

Everything that could wait or change something is ``async def``, and so runs in one thread: there
are no locks.
"""

import asyncio
import ctypes
import errno
import os
import select
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from ctypes import c_uint32

import gpio
from gpio import Flag, check_flags, from_bits, invalid, to_bits

from recuse import Device, File, Memory, OpenRequest, ioctl


class Line:
    """One line: its settings, and the file that has requested it."""

    def __init__(self, offset: int, name: str) -> None:
        self.offset = offset
        self.name = name.encode()
        self.flags = Flag.INPUT
        self.output = 0
        """The level that it is set to, if it is an output."""
        self.level = 0
        """The level that its wire has."""
        self.debounce_us = 0
        self.consumer = b""
        self.user: LinesFile | None = None

    @property
    def value(self) -> int:
        """1 if it is active."""
        return self.level ^ bool(self.flags & Flag.ACTIVE_LOW)

    def set(self, value: int) -> None:
        """Set the output."""
        self.output = bool(value) ^ bool(self.flags & Flag.ACTIVE_LOW)

    def driven(self) -> int | None:
        """The level to which it drives its wire, None if it does not drive it."""
        let_go = Flag.OPEN_DRAIN if self.output else Flag.OPEN_SOURCE
        return self.output if self.flags & Flag.OUTPUT and not self.flags & let_go else None


class GpioChip(Device):
    """The device."""

    subsystem = "bus/gpio"

    def __init__(self, number: int = 9, label: str = "recuse") -> None:
        """Create /dev/gpiochipNUMBER."""
        super().__init__(name=f"gpiochip{number}")
        self.label = label
        self.lines = [Line(offset, "ABCD"[offset // 2] + "01"[offset % 2]) for offset in range(8)]
        self.opened: set[ChipFile] = set()

    def open(self, request: OpenRequest) -> File:
        return ChipFile()

    def line(self, offset: int) -> Line:
        if offset >= len(self.lines):
            raise invalid("no such line")
        return self.lines[offset]

    def request(self, offsets: Iterable[int]) -> list[Line]:
        """Return lines that nobody has requested; raise EBUSY for others."""
        lines: list[Line] = []
        for offset in offsets:
            line = self.line(offset)
            if line.user is not None or line in lines:
                raise OSError(errno.EBUSY, "in use")
            lines.append(line)
        if not lines:
            raise invalid("no lines")
        return lines

    def settle(self) -> None:
        """Compute the levels of the lines, and report edges."""
        now_ns, today_ns = time.monotonic_ns(), time.time_ns()
        for pair in zip(self.lines[::2], self.lines[1::2], strict=True):
            driven = [level for line in pair if (level := line.driven()) is not None]
            pulled = any(line.flags & Flag.PULL_UP for line in pair)
            level = min(driven, default=int(pulled))  # if two outputs fight, low wins
            for line in pair:
                if line.level != level:
                    line.level = level
                    edge = Flag.EDGE_RISING if line.value else Flag.EDGE_FALLING
                    if line.user is not None and line.flags & edge:
                        at_ns = today_ns if line.flags & Flag.CLOCK_REALTIME else now_ns
                        line.user.edge(line, gpio.RISING if line.value else gpio.FALLING, at_ns)

    def changed(self, line: Line, what: int) -> None:
        """Report what happened to the line to those who watch it."""
        for file in self.opened:
            file.changed(line, what)


class Events(File):
    """A file from which programs read events."""

    def __init__(self, record: type[ctypes.Structure], most: int) -> None:
        self.record = record
        self.events: deque[ctypes.Structure] = deque(maxlen=most)
        self.arrived = asyncio.Event()

    def put(self, event: ctypes.Structure) -> None:
        """Keep an event for the reader; if there are too many, the oldest is lost."""
        self.events.append(event)
        self.arrived.set()
        self.wake_pollers()

    async def read(self, size: int, offset: int) -> bytes:
        fits = size // ctypes.sizeof(self.record)
        if not fits:
            raise invalid("no room for an event")
        while not self.events:
            if self.nonblocking:
                raise BlockingIOError(errno.EAGAIN, "no event")
            self.arrived.clear()
            await self.arrived.wait()
        return b"".join(bytes(self.events.popleft()) for _ in range(min(fits, len(self.events))))

    def poll(self, events: int) -> int:
        return select.POLLIN | select.POLLRDNORM if self.events else 0

    def unknown_ioctl(self, command: int, argument: int, memory: Memory) -> int:
        raise invalid("unknown command")


class ChipFile(Events):
    """An open of the chip.  Programs read from it what happened to the lines that they watch."""

    device: GpioChip

    def __init__(self) -> None:
        super().__init__(gpio.OldLineInfoChanged, 32)
        self.version = 0
        self.watched: set[Line] = set()

    async def release(self) -> None:
        self.device.opened.discard(self)

    @ioctl(gpio.GET_CHIPINFO, gpio.ChipInfo)
    def get_chip_info(self, info: gpio.ChipInfo) -> None:
        info.name, info.label = self.device.name.encode(), self.device.label.encode()
        info.lines = len(self.device.lines)

    # Information about lines

    @ioctl(gpio.V2_GET_LINEINFO, gpio.LineInfo)
    async def get_info(self, info: gpio.LineInfo) -> gpio.LineInfo:
        return self.info(info)

    @ioctl(gpio.V2_GET_LINEINFO_WATCH, gpio.LineInfo)
    async def watch(self, info: gpio.LineInfo) -> gpio.LineInfo:
        found = self.info(info)
        self.begin_to_watch(info.offset, 2)
        return found

    def info(self, asked: gpio.LineInfo) -> gpio.LineInfo:
        if any(asked.padding):
            raise invalid("padding")
        return line_info(self.device.line(asked.offset))

    @ioctl(gpio.GET_LINEINFO, gpio.OldLineInfo)
    async def get_old_info(self, info: gpio.OldLineInfo) -> gpio.OldLineInfo:
        return old_line_info(self.device.line(info.offset))

    @ioctl(gpio.GET_LINEINFO_WATCH, gpio.OldLineInfo)
    async def watch_old(self, info: gpio.OldLineInfo) -> gpio.OldLineInfo:
        found = old_line_info(self.device.line(info.offset))
        self.begin_to_watch(info.offset, 1)
        return found

    def begin_to_watch(self, offset: int, version: int) -> None:
        line = self.device.line(offset)
        if self.version not in (0, version):
            raise PermissionError(errno.EPERM, "watches by the other version already")
        if line in self.watched:
            raise OSError(errno.EBUSY, "watches it already")
        self.version = version
        self.record = gpio.LineInfoChanged if version == 2 else gpio.OldLineInfoChanged
        self.watched.add(line)
        self.device.opened.add(self)

    @ioctl(gpio.GET_LINEINFO_UNWATCH, c_uint32)
    async def unwatch(self, offset: int) -> int:
        line = self.device.line(offset)
        if line not in self.watched:
            raise OSError(errno.EBUSY, "does not watch it")
        self.watched.remove(line)
        return offset

    def changed(self, line: Line, what: int) -> None:
        if line in self.watched and len(self.events) < (self.events.maxlen or 0):
            info = line_info(line) if self.version == 2 else old_line_info(line)
            self.put(self.record(info, time.monotonic_ns(), what))

    # Requesting lines

    @ioctl(gpio.V2_GET_LINE, gpio.LineRequest, descriptor="fd")
    async def get_lines(self, request: gpio.LineRequest) -> "LinesFile":
        if request.num_lines > gpio.LINES_MAX or any(request.padding):
            raise invalid("too many lines, or padding")
        setup = configuration(request.config, request.num_lines)
        lines = self.device.request(request.offsets[: request.num_lines])
        most = min(request.event_buffer_size or 16 * len(lines), 16 * gpio.LINES_MAX)
        most = 1 << (most - 1).bit_length()
        file = RequestFile(self.device, lines, gpio.LineEvent, most)
        return file.take(request.consumer, setup)

    @ioctl(gpio.GET_LINEHANDLE, gpio.HandleRequest, descriptor="fd")
    async def get_handle(self, request: gpio.HandleRequest) -> "LinesFile":
        if request.lines > gpio.LINES_MAX:
            raise invalid("too many lines")
        flags = check_flags(from_bits(request.flags, gpio.REQUEST_BITS))
        lines = self.device.request(request.offsets[: request.lines])
        file = HandleFile(self.device, lines, gpio.OldLineEvent, 0)
        return file.take(request.consumer, [Setup(flags, v) for v in request.default_values])

    @ioctl(gpio.GET_LINEEVENT, gpio.EventRequest, descriptor="fd")
    async def get_event(self, request: gpio.EventRequest) -> "LinesFile":
        flags = from_bits(request.handle_flags, gpio.REQUEST_BITS) | Flag.INPUT
        flags = check_flags(flags | from_bits(request.event_flags, gpio.EVENT_BITS))
        lines = self.device.request([request.offset])
        file = EventFile(self.device, lines, gpio.OldLineEvent, 16)
        return file.take(request.consumer, [Setup(flags)])


class Setup:
    """The settings of a line."""

    def __init__(self, flags: Flag, value: int = 0, debounce_us: int = 0) -> None:
        self.flags = flags
        self.value = value
        self.debounce_us = debounce_us


def configuration(config: gpio.LineConfig, count: int) -> list[Setup]:
    """Return the settings of each of ``count`` lines in a configuration."""
    if config.num_attrs > gpio.ATTRS_MAX or any(config.padding):
        raise invalid("too many attributes, or padding")
    found = []
    for index in range(count):
        # If there are several for one line, the first counts.
        said: Mapping[int, gpio.Attribute] = {
            item.attr.id: item.attr
            for item in reversed(config.attrs[: config.num_attrs])
            if item.mask >> index & 1
        }
        flags, values, debounce = (
            said.get(what)
            for what in (gpio.ATTR_FLAGS, gpio.ATTR_OUTPUT_VALUES, gpio.ATTR_DEBOUNCE)
        )
        setup = Setup(check_flags(flags.flags if flags else config.flags))
        setup.value = values.values >> index & 1 if values else 0
        setup.debounce_us = debounce.debounce_period_us if debounce else 0
        if debounce and not setup.flags & Flag.INPUT:
            raise invalid("debouncing is for inputs")
        found.append(setup)
    return found


class LinesFile(Events):
    """Lines that a program has requested; it has them until the file is closed."""

    device: GpioChip
    flags = os.O_RDONLY | os.O_CLOEXEC

    def __init__(
        self, chip: GpioChip, lines: list[Line], record: type[ctypes.Structure], most: int
    ) -> None:
        super().__init__(record, most)
        self.chip = chip
        self.lines = lines

    def take(self, consumer: bytes, setup: Sequence[Setup]) -> "LinesFile":
        """Take the lines, and apply their settings."""
        for line in self.lines:
            line.user = self
            line.consumer = consumer[: gpio.NAME_SIZE - 1] or b"?"
        self.set_up(dict(zip(self.lines, setup, strict=False)), gpio.REQUESTED)
        return self

    def set_up(self, setup: Mapping[Line, Setup], what: int) -> None:
        for line, wanted in setup.items():
            # Without a direction, the line keeps its own.
            as_it_is = Flag(0) if wanted.flags & gpio.DIRECTION else line.flags & gpio.DIRECTION
            line.flags = wanted.flags & ~gpio.EDGES | as_it_is
            line.debounce_us = wanted.debounce_us
            if wanted.flags & Flag.OUTPUT:
                line.set(wanted.value)
        self.chip.settle()
        # Changes of levels by the settings are not events.
        for line, wanted in setup.items():
            line.flags |= wanted.flags & gpio.EDGES
            self.chip.changed(line, what)

    def set_values(self, values: Mapping[Line, int]) -> None:
        if not all(line.flags & Flag.OUTPUT for line in values):
            raise PermissionError(errno.EPERM, "an input")
        for line, value in values.items():
            line.set(value)
        self.chip.settle()

    def edge(self, line: Line, what: int, at_ns: int) -> None:
        """Report an edge to the program."""
        if len(self.events) < (self.events.maxlen or 0):
            self.put(gpio.OldLineEvent(at_ns, what))

    async def release(self) -> None:
        for line in self.lines:
            # An output goes on driving its wire.  One that does not drive it becomes an input.
            line.flags = Flag.INPUT if line.driven() is None else Flag.OUTPUT
            line.debounce_us = 0
            line.consumer, line.user = b"", None
        self.chip.settle()
        for line in self.lines:
            self.chip.changed(line, gpio.RELEASED)


class HandleFile(LinesFile):
    """Lines of version 1, without events."""

    async def read(self, size: int, offset: int) -> bytes:
        raise invalid("nothing to read")

    def poll(self, events: int) -> int:
        return select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM

    @ioctl(gpio.HANDLE_GET_VALUES, gpio.HandleValues)
    async def get_values(self, data: gpio.HandleValues) -> None:
        ctypes.memset(ctypes.byref(data), 0, ctypes.sizeof(data))
        for index, line in enumerate(self.lines):
            data.values[index] = line.value

    @ioctl(gpio.HANDLE_SET_VALUES, gpio.HandleValues)
    async def set_all_values(self, data: gpio.HandleValues) -> None:
        self.set_values(dict(zip(self.lines, data.values, strict=False)))

    @ioctl(gpio.HANDLE_SET_CONFIG, gpio.HandleConfig)
    async def set_config(self, config: gpio.HandleConfig) -> None:
        flags = check_flags(from_bits(config.flags, gpio.REQUEST_BITS))
        if not flags & gpio.DIRECTION:
            raise invalid("without a direction")
        values = zip(self.lines, config.default_values, strict=False)
        self.set_up({line: Setup(flags, value) for line, value in values}, gpio.RECONFIGURED)


class EventFile(LinesFile):
    """One line of version 1, with events."""

    @ioctl(gpio.HANDLE_GET_VALUES, gpio.HandleValues)
    async def get_values(self, data: gpio.HandleValues) -> None:
        data.values[0] = self.lines[0].value


class RequestFile(LinesFile):
    """Lines of version 2."""

    def __init__(
        self, chip: GpioChip, lines: list[Line], record: type[ctypes.Structure], most: int
    ) -> None:
        super().__init__(chip, lines, record, most)
        self.counts = dict.fromkeys(lines, 0)

    def edge(self, line: Line, what: int, at_ns: int) -> None:
        self.counts[line] += 1
        total = sum(self.counts.values())
        self.put(gpio.LineEvent(at_ns, what, line.offset, total, self.counts[line]))

    def chosen(self, mask: int) -> dict[int, Line]:
        """Return the lines whose bits are set in a mask, by their position in the request."""
        chosen = {index: line for index, line in enumerate(self.lines) if mask >> index & 1}
        if not chosen:
            raise invalid("no lines")
        return chosen

    @ioctl(gpio.V2_LINE_GET_VALUES, gpio.LineValues)
    async def get_values(self, data: gpio.LineValues) -> None:
        data.bits = sum(line.value << index for index, line in self.chosen(data.mask).items())

    @ioctl(gpio.V2_LINE_SET_VALUES, gpio.LineValues)
    async def set_some_values(self, data: gpio.LineValues) -> None:
        chosen = self.chosen(data.mask)
        self.set_values({line: data.bits >> index & 1 for index, line in chosen.items()})

    @ioctl(gpio.V2_LINE_SET_CONFIG, gpio.LineConfig)
    async def set_config(self, config: gpio.LineConfig) -> None:
        setup = zip(self.lines, configuration(config, len(self.lines)), strict=True)
        # Lines without a direction stay unchanged.
        chosen = {line: wanted for line, wanted in setup if wanted.flags & gpio.DIRECTION}
        self.set_up(chosen, gpio.RECONFIGURED)


def line_info(line: Line) -> gpio.LineInfo:
    info = gpio.LineInfo(line.name, line.consumer, line.offset)
    info.flags = line.flags | (Flag.USED if line.user is not None else 0)
    if isinstance(line.user, EventFile):
        info.flags &= ~gpio.EDGES  # version 1 does not report them to version 2
    if line.debounce_us:
        info.num_attrs = 1
        info.attrs[0].id = gpio.ATTR_DEBOUNCE
        info.attrs[0].debounce_period_us = line.debounce_us
    return info


def old_line_info(line: Line) -> gpio.OldLineInfo:
    flags = line.flags | (Flag.USED if line.user is not None else 0)
    return gpio.OldLineInfo(line.offset, to_bits(flags, gpio.INFO_BITS), line.name, line.consumer)
