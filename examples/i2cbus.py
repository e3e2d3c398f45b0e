"""An I2C bus, /dev/i2c-N, for chips written in Python: see eeprom.py for two.

A program sees an adapter as Linux's i2c-dev shows it.  The adapter sends plain I2C messages, and
builds all of SMBus from them, except PEC and host notification.  Structures, numbers and errors are
those of <linux/i2c.h>, <linux/i2c-dev.h> and drivers/i2c/{i2c-dev,i2c-core-smbus}.c, Linux 6.1.
"""

import errno
from collections.abc import Iterable, Iterator, Mapping
from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64, c_ulong
from enum import IntEnum
from itertools import chain, islice, repeat
from threading import Lock

from recuse import Device, File, Memory, OpenRequest, ioctl

I2C_RETRIES = 0x0701
I2C_TIMEOUT = 0x0702
I2C_SLAVE = 0x0703
I2C_TENBIT = 0x0704
I2C_FUNCS = 0x0705
I2C_SLAVE_FORCE = 0x0706
I2C_RDWR = 0x0707
I2C_PEC = 0x0708
I2C_SMBUS = 0x0720

I2C_FUNC_I2C = 0x00000001
I2C_FUNC_SMBUS_ALL_BUT_PEC = 0x0FFF8000
"""From I2C_FUNC_SMBUS_BLOCK_PROC_CALL to I2C_FUNC_SMBUS_WRITE_I2C_BLOCK."""

I2C_M_RD = 0x0001
I2C_M_TEN = 0x0010
I2C_M_RECV_LEN = 0x0400

I2C_RDWR_IOCTL_MAX_MSGS = 42
I2C_SMBUS_READ = 1
I2C_SMBUS_BLOCK_MAX = 32
MESSAGE_MAX = 8192
"""Most bytes of one message; i2c-dev has it as a plain number."""

UNDRIVEN = 0xFF
"""The byte that a master reads if nobody pulls the data line down."""


class Chip:
    """A chip on the bus.  Subclass it, and override what the chip can do.

    The bus calls these methods one at a time, so they need no locks.  They may raise OSError, with
    EREMOTEIO if the chip does not acknowledge a message.
    """

    def write(self, data: bytes) -> None:
        """Receive one message: the bytes after the address.  A probe of the address has none."""

    def read(self) -> Iterable[int]:
        """Return the bytes of one message, as many as the chip can send.

        The master reads as many as it wants, and then 0xff.  A generator notices how many: it gets
        to the next ``yield`` only if the master wants that byte.
        """
        return ()


class Bus(Device):
    """The device: an adapter with the chips on its bus."""

    def __init__(self, number: int, chips: Mapping[int, Chip]) -> None:
        """Create /dev/i2c-NUMBER; ``chips`` maps addresses, 0x08 to 0x77, to chips."""
        super().__init__(
            name=f"i2c-{number}",
            # i2cdetect -l looks there for buses and their names.
            subsystem="class/i2c-dev",
            sysfs={"name": "recuse I2C bus\n"},
        )
        self.chips = dict(chips)
        # One program has the bus from the first message of a transfer to the last.
        self.lock = Lock()

    def open(self, request: OpenRequest) -> File:
        return BusFile()

    # Call these with the lock held:

    def write(self, address: int, data: bytes) -> None:
        """Send one message to a chip."""
        self._chip(address).write(data)

    def read(self, address: int, size: int) -> bytes:
        """Receive one message of ``size`` bytes from a chip."""
        return bytes(islice(self._clock(address), size))

    def read_counted(self, address: int, extra: int = 0) -> bytes:
        """Receive a message whose first byte says how many follow, and ``extra`` ones after it."""
        line = self._clock(address)
        count = next(line)
        if not 0 < count <= I2C_SMBUS_BLOCK_MAX:
            raise OSError(errno.EPROTO, "the chip sent a count that SMBus does not allow")
        return bytes([count, *islice(line, count + extra)])

    def _clock(self, address: int) -> Iterator[int]:
        return chain(self._chip(address).read(), repeat(UNDRIVEN))

    def _chip(self, address: int) -> Chip:
        try:
            return self.chips[address]
        except KeyError:
            raise OSError(errno.ENXIO, "no chip acknowledges this address") from None


class Smbus(IntEnum):
    """SMBus's kinds of transfer, I2C_SMBUS_* in <linux/i2c.h>."""

    QUICK = 0
    BYTE = 1
    BYTE_DATA = 2
    WORD_DATA = 3
    PROC_CALL = 4
    BLOCK_DATA = 5
    I2C_BLOCK_BROKEN = 6
    BLOCK_PROC_CALL = 7
    I2C_BLOCK_DATA = 8


BLOCK_SIZE = 1 + I2C_SMBUS_BLOCK_MAX + 1
"""A count, the bytes that it counts, and room that PEC once used."""

DATA_SIZES: dict[int, int] = {
    Smbus.QUICK: 0,
    Smbus.BYTE: 1,
    Smbus.BYTE_DATA: 1,
    Smbus.WORD_DATA: 2,
    Smbus.PROC_CALL: 2,
    Smbus.BLOCK_DATA: BLOCK_SIZE,
    Smbus.I2C_BLOCK_BROKEN: BLOCK_SIZE,
    Smbus.BLOCK_PROC_CALL: BLOCK_SIZE,
    Smbus.I2C_BLOCK_DATA: BLOCK_SIZE,
}
"""The number of bytes used of union i2c_smbus_data."""

READ_BEFORE = (Smbus.PROC_CALL, Smbus.BLOCK_PROC_CALL, Smbus.I2C_BLOCK_DATA)
"""Kinds that need the program's data even to read: to send it first, or for the count."""


class SmbusTransfer(Structure):
    """What I2C_SMBUS points to: struct i2c_smbus_ioctl_data."""

    _fields_ = [
        ("read_write", c_uint8),
        ("command", c_uint8),
        ("size", c_uint32),
        ("data", c_uint64),
    ]


class Transfer(Structure):
    """What I2C_RDWR points to: struct i2c_rdwr_ioctl_data."""

    _fields_ = [("msgs", c_uint64), ("nmsgs", c_uint32)]


class Message(Structure):
    """One of its messages: struct i2c_msg."""

    _fields_ = [("addr", c_uint16), ("flags", c_uint16), ("len", c_uint16), ("buf", c_uint64)]


def has_room(message: Message, buffer: bytes) -> bool:
    """Return whether an I2C_M_RECV_LEN message can take the longest block.

    Its buffer's first byte says how many bytes arrive in addition to those that the chip counts.
    The count itself is one of them.
    """
    reads = bool(message.flags & I2C_M_RD)
    return reads and bool(buffer) and 0 < buffer[0] <= len(buffer) - I2C_SMBUS_BLOCK_MAX


class BusFile(File):
    """One open of the bus, with the address that its program has chosen."""

    device: Bus

    def __init__(self) -> None:
        self.slave = 0
        self.ten_bit = False

    @property
    def address(self) -> int:
        if self.ten_bit:
            raise OSError(errno.EOPNOTSUPP, "this adapter has no ten-bit addresses")
        return self.slave

    def read(self, size: int, offset: int) -> bytes:
        with self.device.lock:
            return self.device.read(self.address, min(size, MESSAGE_MAX))

    def write(self, data: bytes, offset: int) -> int:
        message = data[:MESSAGE_MAX]
        with self.device.lock:
            self.device.write(self.address, message)
        return len(message)

    @ioctl(I2C_FUNCS, c_ulong, direction="r")
    def functions(self) -> int:
        return I2C_FUNC_I2C | I2C_FUNC_SMBUS_ALL_BUT_PEC

    @ioctl(I2C_SLAVE)
    @ioctl(I2C_SLAVE_FORCE)
    def choose(self, address: int) -> None:
        # Without force, Linux answers EBUSY for a chip with a driver.  Here no chip has one.
        if address > (0x3FF if self.ten_bit else 0x7F):
            raise OSError(errno.EINVAL, "no such address")
        self.slave = address

    @ioctl(I2C_TENBIT)
    def set_ten_bit(self, wanted: int) -> None:
        self.ten_bit = bool(wanted)

    @ioctl(I2C_PEC)
    @ioctl(I2C_RETRIES)
    @ioctl(I2C_TIMEOUT)
    def set_option(self, value: int) -> None:
        """Accept it, as Linux does for an adapter that ignores it."""

    @ioctl(I2C_RDWR, Transfer, direction="w")
    def transfer(self, transfer: Transfer, memory: Memory) -> int:
        """Do several messages in a row; return their number."""
        if not transfer.msgs or not 0 < transfer.nmsgs <= I2C_RDWR_IOCTL_MAX_MSGS:
            raise OSError(errno.EINVAL, "no messages, or too many")
        messages = memory.read_array(transfer.msgs, Message, transfer.nmsgs)
        if any(message.len > MESSAGE_MAX for message in messages):
            raise OSError(errno.EINVAL, "a message is too long")
        if any(message.flags & I2C_M_TEN for message in messages):
            raise OSError(errno.EOPNOTSUPP, "this adapter has no ten-bit addresses")
        # All of the program's memory is read before the first message: see recuse.Memory.
        buffers = memory.read_many([(message.buf, message.len) for message in messages])
        for message, buffer in zip(messages, buffers, strict=True):
            if message.flags & I2C_M_RECV_LEN and not has_room(message, buffer):
                raise OSError(errno.EINVAL, "no room for the longest block")
        bus = self.device
        with bus.lock:
            for message, buffer in zip(messages, buffers, strict=True):
                if not message.flags & I2C_M_RD:
                    bus.write(message.addr, buffer)
                elif message.flags & I2C_M_RECV_LEN:
                    memory.write(message.buf, bus.read_counted(message.addr, buffer[0] - 1))
                else:
                    memory.write(message.buf, bus.read(message.addr, message.len))
        return len(messages)

    @ioctl(I2C_SMBUS, SmbusTransfer, direction="w")
    def smbus(self, transfer: SmbusTransfer, memory: Memory) -> None:
        """Do one SMBus transfer, made of I2C messages."""
        kind, reading = transfer.size, transfer.read_write == I2C_SMBUS_READ
        if kind not in DATA_SIZES or transfer.read_write > I2C_SMBUS_READ:
            raise OSError(errno.EINVAL, "not a kind of SMBus transfer")
        # To send one byte, the command's is enough.
        size = 0 if kind == Smbus.BYTE and not reading else DATA_SIZES[kind]
        if size and not transfer.data:
            raise OSError(errno.EINVAL, "no data")
        data = b""
        if kind == Smbus.I2C_BLOCK_BROKEN and reading:
            data = bytes([I2C_SMBUS_BLOCK_MAX])
        elif kind in READ_BEFORE or not reading:
            data = memory.read(transfer.data, size)
        if data and size == BLOCK_SIZE:
            if data[0] > I2C_SMBUS_BLOCK_MAX:
                raise OSError(errno.EINVAL, "the block is too long")
            data = data[: 1 + data[0]]
        with self.device.lock:
            answer = self._smbus(kind, reading, bytes([transfer.command]), data)
        if answer:
            memory.write(transfer.data, answer)

    def _smbus(self, kind: int, reading: bool, command: bytes, data: bytes) -> bytes:
        """Send and receive; return the bytes to store in the program's union."""
        bus, address = self.device, self.address
        match kind:
            case Smbus.QUICK if reading:
                bus.read(address, 0)
            case Smbus.QUICK:
                bus.write(address, b"")
            case Smbus.BYTE if reading:
                return bus.read(address, 1)
            case Smbus.BYTE:
                bus.write(address, command)
            case Smbus.BYTE_DATA | Smbus.WORD_DATA if reading:
                bus.write(address, command)
                return bus.read(address, DATA_SIZES[kind])
            case Smbus.PROC_CALL:
                bus.write(address, command + data)
                return bus.read(address, len(data))
            case Smbus.BLOCK_DATA if reading:
                bus.write(address, command)
                return bus.read_counted(address)
            case Smbus.BLOCK_PROC_CALL:
                bus.write(address, command + data)
                return bus.read_counted(address)
            case Smbus.I2C_BLOCK_DATA | Smbus.I2C_BLOCK_BROKEN if reading:
                bus.write(address, command)
                return data[:1] + bus.read(address, data[0])
            case Smbus.I2C_BLOCK_DATA | Smbus.I2C_BLOCK_BROKEN:
                # Without the count: the chip sees only the bytes.
                bus.write(address, command + data[1:])
            case _:
                bus.write(address, command + data)
        return b""
