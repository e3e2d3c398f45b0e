"""An I2C bus with an EEPROM at 0x50 and a thermometer at 0x48.

Try it::

    $ recuse run -d examples/eeprom.py -- bash
    $ i2cdetect -y 9
         0  1  2  3  4  5  6  7  8  9  a  b  c  d  e  f
    00:                         -- -- -- -- -- -- -- --
    10: -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- --
    20: -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- --
    30: -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- --
    40: -- -- -- -- -- -- -- -- 48 -- -- -- -- -- -- --
    50: 50 -- -- -- -- -- -- -- -- -- -- -- -- -- -- --
    60: -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- --
    70: -- -- -- -- -- -- -- --
    $ i2cset -y 9 0x50 0 0x68 0x65 0x6c 0x6c 0x6f i
    $ i2ctransfer -y 9 w1@0x50 0 r6
    0x68 0x65 0x6c 0x6c 0x6f 0xff

On bus 1, at a temperature below zero::

    $ recuse run -d examples/eeprom.py,number=1,celsius=-3.5 -- i2cget -y 1 0x48 0 w
    0x80fc

To write your own chips, copy this file, and keep i2cbus.py beside it.
"""

from collections.abc import Iterator

from i2cbus import Bus, Chip


class Eeprom(Chip):
    """A 24C02: 256 bytes behind one pointer, written in pages of 8 bytes."""

    PAGE = 8

    def __init__(self) -> None:
        self.cells = bytearray(b"\xff" * 256)
        self.pointer = 0

    def write(self, data: bytes) -> None:
        """Set the pointer to the first byte; store the others from there, within the page."""
        if not data:
            return
        self.pointer, *content = data
        for byte in content:
            self.cells[self.pointer] = byte
            page, column = divmod(self.pointer, self.PAGE)
            self.pointer = page * self.PAGE + (column + 1) % self.PAGE

    def read(self) -> Iterator[int]:
        """Continue from the pointer, across pages, and from the last byte to the first."""
        while True:
            byte = self.cells[self.pointer]
            self.pointer = (self.pointer + 1) % len(self.cells)
            yield byte


class Thermometer(Chip):
    """An LM75: the temperature, a configuration byte and two limits, chosen by a pointer."""

    TEMPERATURE, CONFIGURATION, HYSTERESIS, LIMIT = range(4)

    def __init__(self, celsius: float) -> None:
        self.celsius = celsius
        self.pointer = self.TEMPERATURE
        self.settings = {
            self.CONFIGURATION: b"\x00",
            self.HYSTERESIS: half_degrees(75),
            self.LIMIT: half_degrees(80),
        }

    def write(self, data: bytes) -> None:
        """Choose a register and store what follows in it; the temperature cannot be written."""
        if not data:
            return
        self.pointer = data[0] % 4
        if self.pointer in self.settings:
            old, new = self.settings[self.pointer], data[1:]
            self.settings[self.pointer] = (new + old[len(new) :])[: len(old)]

    def read(self) -> bytes:
        if self.pointer == self.TEMPERATURE:
            return half_degrees(self.celsius)
        return self.settings[self.pointer]


def half_degrees(celsius: float) -> bytes:
    """Return a temperature as the chip has it: nine bits, then seven zeros."""
    return (round(celsius * 2) << 7).to_bytes(2, "big", signed=True)


class Board(Bus):
    """The bus with its chips: `-d examples/eeprom.py` finds this class."""

    def __init__(self, *, number: int = 9, celsius: float = 21.5) -> None:
        self.eeprom = Eeprom()
        self.thermometer = Thermometer(celsius)
        super().__init__(number, {0x50: self.eeprom, 0x48: self.thermometer})
