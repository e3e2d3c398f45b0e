"""The numbers and structures of <linux/gpio.h>, both versions of the interface, for gpiochip.py."""

import errno
from collections.abc import Sequence
from ctypes import (
    Structure,
    Union,
    c_char,
    c_int32,
    c_uint8,
    c_uint32,
    c_uint64,
    sizeof,
)
from enum import IntFlag

from recuse import IOR, IOWR

MAGIC = 0xB4
NAME_SIZE = 32
LINES_MAX = 64


class Flag(IntFlag):
    """GPIO_V2_LINE_FLAG_*."""

    USED = 1 << 0
    ACTIVE_LOW = 1 << 1
    INPUT = 1 << 2
    OUTPUT = 1 << 3
    EDGE_RISING = 1 << 4
    EDGE_FALLING = 1 << 5
    OPEN_DRAIN = 1 << 6
    OPEN_SOURCE = 1 << 7
    PULL_UP = 1 << 8
    PULL_DOWN = 1 << 9
    BIAS_DISABLED = 1 << 10
    CLOCK_REALTIME = 1 << 11


DIRECTION = Flag.INPUT | Flag.OUTPUT
EDGES = Flag.EDGE_RISING | Flag.EDGE_FALLING
DRIVE = Flag.OPEN_DRAIN | Flag.OPEN_SOURCE
BIAS = Flag.PULL_UP | Flag.PULL_DOWN | Flag.BIAS_DISABLED

_DETAILS = (
    Flag.ACTIVE_LOW,
    Flag.OPEN_DRAIN,
    Flag.OPEN_SOURCE,
    Flag.PULL_UP,
    Flag.PULL_DOWN,
    Flag.BIAS_DISABLED,
)
REQUEST_BITS = (Flag.INPUT, Flag.OUTPUT, *_DETAILS)
"""The meanings of bits 0, 1, 2... of GPIOHANDLE_REQUEST_*."""
INFO_BITS = (Flag.USED, Flag.OUTPUT, *_DETAILS)
"""The meanings of the bits of GPIOLINE_FLAG_*."""
EVENT_BITS = (Flag.EDGE_RISING, Flag.EDGE_FALLING)
"""The meanings of the bits of GPIOEVENT_REQUEST_*."""

REQUESTED, RELEASED, RECONFIGURED = 1, 2, 3
"""What happened to a line (GPIO_V2_LINE_CHANGED_*)."""
RISING, FALLING = 1, 2
"""The kind of an event (GPIO_V2_LINE_EVENT_*, GPIOEVENT_EVENT_*)."""
ATTR_FLAGS, ATTR_OUTPUT_VALUES, ATTR_DEBOUNCE = 1, 2, 3
ATTRS_MAX = 10


def invalid(why: str) -> OSError:
    return OSError(errno.EINVAL, why)


def from_bits(bits: int, meanings: Sequence[Flag]) -> Flag:
    """Return the flags for numbers of version 1; raise EINVAL for bits without a meaning."""
    if bits >> len(meanings):
        raise invalid("unknown flags")
    return Flag(sum(flag for index, flag in enumerate(meanings) if bits >> index & 1))


def to_bits(flags: Flag, meanings: Sequence[Flag]) -> int:
    return sum(1 << index for index, flag in enumerate(meanings) if flags & flag)


def check_flags(flags: int) -> Flag:
    """Return the flags of a request; raise EINVAL if they contradict each other."""
    given = Flag(flags)
    if flags & Flag.USED or flags & ~sum(Flag):
        raise invalid("unknown flags")
    for among in (DIRECTION, DRIVE, BIAS):
        if (given & among).bit_count() > 1:
            raise invalid(f"more than one of {among!r}")
    if given & EDGES and not given & Flag.INPUT:
        raise invalid("edges are for inputs")
    if given & DRIVE and not given & Flag.OUTPUT:
        raise invalid("drives are for outputs")
    if given & BIAS and not given & DIRECTION:
        raise invalid("bias without a direction")
    return given


class ChipInfo(Structure):
    _fields_ = [
        ("name", c_char * NAME_SIZE),
        ("label", c_char * NAME_SIZE),
        ("lines", c_uint32),
    ]


# Version 2


class AttributeValue(Union):
    _fields_ = [("flags", c_uint64), ("values", c_uint64), ("debounce_period_us", c_uint32)]


class Attribute(Structure):
    _anonymous_ = ("value",)
    _fields_ = [("id", c_uint32), ("padding", c_uint32), ("value", AttributeValue)]


class ConfigAttribute(Structure):
    _fields_ = [("attr", Attribute), ("mask", c_uint64)]


class LineConfig(Structure):
    _fields_ = [
        ("flags", c_uint64),
        ("num_attrs", c_uint32),
        ("padding", c_uint32 * 5),
        ("attrs", ConfigAttribute * ATTRS_MAX),
    ]


class LineRequest(Structure):
    _fields_ = [
        ("offsets", c_uint32 * LINES_MAX),
        ("consumer", c_char * NAME_SIZE),
        ("config", LineConfig),
        ("num_lines", c_uint32),
        ("event_buffer_size", c_uint32),
        ("padding", c_uint32 * 5),
        ("fd", c_int32),
    ]


class LineValues(Structure):
    _fields_ = [("bits", c_uint64), ("mask", c_uint64)]


class LineInfo(Structure):
    _fields_ = [
        ("name", c_char * NAME_SIZE),
        ("consumer", c_char * NAME_SIZE),
        ("offset", c_uint32),
        ("num_attrs", c_uint32),
        ("flags", c_uint64),
        ("attrs", Attribute * ATTRS_MAX),
        ("padding", c_uint32 * 4),
    ]


class LineInfoChanged(Structure):
    _fields_ = [
        ("info", LineInfo),
        ("timestamp_ns", c_uint64),
        ("event_type", c_uint32),
        ("padding", c_uint32 * 5),
    ]


class LineEvent(Structure):
    _fields_ = [
        ("timestamp_ns", c_uint64),
        ("id", c_uint32),
        ("offset", c_uint32),
        ("seqno", c_uint32),
        ("line_seqno", c_uint32),
        ("padding", c_uint32 * 6),
    ]


# Version 1


class OldLineInfo(Structure):
    _fields_ = [
        ("offset", c_uint32),
        ("flags", c_uint32),
        ("name", c_char * NAME_SIZE),
        ("consumer", c_char * NAME_SIZE),
    ]


class OldLineInfoChanged(Structure):
    _fields_ = [
        ("info", OldLineInfo),
        ("timestamp_ns", c_uint64),
        ("event_type", c_uint32),
        ("padding", c_uint32 * 5),
    ]


class HandleRequest(Structure):
    _fields_ = [
        ("offsets", c_uint32 * LINES_MAX),
        ("flags", c_uint32),
        ("default_values", c_uint8 * LINES_MAX),
        ("consumer", c_char * NAME_SIZE),
        ("lines", c_uint32),
        ("fd", c_int32),
    ]


class HandleConfig(Structure):
    _fields_ = [
        ("flags", c_uint32),
        ("default_values", c_uint8 * LINES_MAX),
        ("padding", c_uint32 * 4),
    ]


class HandleValues(Structure):
    _fields_ = [("values", c_uint8 * LINES_MAX)]


class EventRequest(Structure):
    _fields_ = [
        ("offset", c_uint32),
        ("handle_flags", c_uint32),
        ("event_flags", c_uint32),
        ("consumer", c_char * NAME_SIZE),
        ("fd", c_int32),
    ]


class OldLineEvent(Structure):
    _fields_ = [("timestamp_ns", c_uint64), ("id", c_uint32)]


GET_CHIPINFO = IOR(MAGIC, 0x01, ChipInfo)
GET_LINEINFO_UNWATCH = IOWR(MAGIC, 0x0C, sizeof(c_uint32))

V2_GET_LINEINFO = IOWR(MAGIC, 0x05, LineInfo)
V2_GET_LINEINFO_WATCH = IOWR(MAGIC, 0x06, LineInfo)
V2_GET_LINE = IOWR(MAGIC, 0x07, LineRequest)
V2_LINE_SET_CONFIG = IOWR(MAGIC, 0x0D, LineConfig)
V2_LINE_GET_VALUES = IOWR(MAGIC, 0x0E, LineValues)
V2_LINE_SET_VALUES = IOWR(MAGIC, 0x0F, LineValues)

GET_LINEINFO = IOWR(MAGIC, 0x02, OldLineInfo)
GET_LINEHANDLE = IOWR(MAGIC, 0x03, HandleRequest)
GET_LINEEVENT = IOWR(MAGIC, 0x04, EventRequest)
HANDLE_GET_VALUES = IOWR(MAGIC, 0x08, HandleValues)
HANDLE_SET_VALUES = IOWR(MAGIC, 0x09, HandleValues)
HANDLE_SET_CONFIG = IOWR(MAGIC, 0x0A, HandleConfig)
GET_LINEINFO_WATCH = IOWR(MAGIC, 0x0B, OldLineInfo)
