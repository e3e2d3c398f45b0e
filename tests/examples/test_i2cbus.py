"""What eeprom.py's chips do not need of the bus: all of SMBus, read and write, errors.

With smbus2, in Python programs that run in the sandbox, for chips that a user might write.
"""

import errno
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from recuse import Sandbox
from recuse.cli.spec import load, parse

Run = Callable[..., subprocess.CompletedProcess[bytes]]

PRELUDE = """
import ctypes, errno, fcntl, os, struct
from smbus2 import SMBus, i2c_msg

def show(function, *arguments):
    try:
        print(function(*arguments))
    except OSError as error:
        print(errno.errorcode[error.errno])

def raw(command, argument):
    return fcntl.ioctl(device, command, argument)

bus = SMBus("/dev/i2c-9")
device = os.open("/dev/i2c-9", os.O_RDWR)
"""


@pytest.fixture
def python(run: Run) -> Callable[[str], list[str]]:
    """`python(code)`: the lines that a program prints, which has a `bus` and a raw `device`."""

    def python(code: str) -> list[str]:
        outcome = run("eeprom.py", sys.executable, "-c", PRELUDE + code)
        assert outcome.returncode == 0, outcome.stderr.decode()
        return outcome.stdout.decode().splitlines()

    return python


# ---- What the kernel half shows of the bus in /sys; Linux's CUSE does not, so it is not in
# test_eeprom.py, which runs there too.


def test_i2cdetect_lists_the_bus(run: Run, needs: Callable[..., object]) -> None:
    needs("i2cdetect", "i2c-tools")
    outcome = run("eeprom.py", "i2cdetect", "-l")
    assert [field.strip() for field in outcome.stdout.decode().split("\t")] == [
        "i2c-9",
        "i2c",
        "recuse I2C bus",
        "I2C adapter",
    ]


# ---- smbus2 with the chips of eeprom.py


def test_smbus2(python: Callable[[str], list[str]]) -> None:
    code = """
bus.write_byte_data(0x50, 0, 0x12)
bus.write_word_data(0x50, 1, 0x5634)
bus.write_i2c_block_data(0x50, 8, [1, 2, 3])
bus.write_block_data(0x50, 16, [4, 5, 6])
bus.write_byte(0x50, 1)
show(bus.read_byte, 0x50)
show(bus.read_byte_data, 0x50, 0)
show(bus.read_word_data, 0x50, 0)
show(bus.read_i2c_block_data, 0x50, 7, 5)
show(bus.read_block_data, 0x50, 16)
show(bus.write_quick, 0x50)
show(bus.write_quick, 0x51)
show(bus.read_byte, 0x51)
"""
    assert python(code) == [
        str(0x34),
        str(0x12),
        str(0x3412),
        "[255, 1, 2, 3, 255]",
        "[4, 5, 6]",
        "None",
        "ENXIO",
        "ENXIO",
    ]


def test_smbus2_combined_messages(python: Callable[[str], list[str]]) -> None:
    code = """
write = i2c_msg.write(0x50, [0x20, 7, 8, 9])
address, content = i2c_msg.write(0x50, [0x20]), i2c_msg.read(0x50, 4)
bus.i2c_rdwr(write, address, content)
print(list(content))
"""
    assert python(code) == ["[7, 8, 9, 255]"]


def test_smbus2_is_told_that_there_is_no_pec(python: Callable[[str], list[str]]) -> None:
    code = """
try:
    bus.enable_pec()
except OSError as error:
    print(error)
"""
    assert python(code) == ["SMBUS_PEC is not a feature"]


# ---- read and write


def test_read_and_write_are_one_message_each(python: Callable[[str], list[str]]) -> None:
    code = """
raw(0x703, 0x50)
show(os.write, device, bytes([0x10, 1, 2, 3]))
show(os.write, device, bytes([0x10]))
show(os.read, device, 2)
show(os.read, device, 2)
"""
    assert python(code) == ["4", "1", r"b'\x01\x02'", r"b'\x03\xff'"]


def test_read_and_write_of_nobody(python: Callable[[str], list[str]]) -> None:
    code = """
show(os.read, device, 1)
show(os.write, device, b"a")
raw(0x706, 0x51)
show(os.read, device, 1)
show(os.write, device, b"a")
"""
    assert python(code) == ["ENXIO"] * 4


def test_each_open_has_an_address_of_its_own(python: Callable[[str], list[str]]) -> None:
    code = """
other = os.open("/dev/i2c-9", os.O_RDWR)
raw(0x703, 0x50)
fcntl.ioctl(other, 0x703, 0x48)
show(os.read, other, 2)
show(os.read, device, 2)
"""
    assert python(code) == [r"b'\x15\x80'", r"b'\xff\xff'"]


def test_messages_end_at_8192_bytes(python: Callable[[str], list[str]]) -> None:
    code = """
raw(0x703, 0x50)
show(os.write, device, bytes(10000))
print(len(os.read(device, 10000)))
"""
    assert python(code) == ["8192", "8192"]


# ---- errors


ERRORS = {
    "raw, 0x703, 0x80": "EINVAL",
    "raw, 0x706, 0x80": "EINVAL",
    "raw, 0x7ff, 0": "ENOTTY",
    "raw, 0x705, 16": "EFAULT",
    # struct i2c_rdwr_ioctl_data: msgs, nmsgs
    "raw, 0x707, 16": "EFAULT",
    "raw, 0x707, struct.pack('QI4x', 0, 1)": "EINVAL",
    "raw, 0x707, struct.pack('QI4x', 16, 0)": "EINVAL",
    "raw, 0x707, struct.pack('QI4x', 16, 43)": "EINVAL",
    "raw, 0x707, struct.pack('QI4x', 16, 42)": "EFAULT",
    # struct i2c_smbus_ioctl_data: read_write, command, size, data
    "raw, 0x720, 16": "EFAULT",
    "raw, 0x720, struct.pack('BBxxIQ', 0, 0, 2, 0)": "EINVAL",
    "raw, 0x720, struct.pack('BBxxIQ', 0, 0, 2, 16)": "EFAULT",
    "raw, 0x720, struct.pack('BBxxIQ', 1, 0, 2, 16)": "EFAULT",
    "raw, 0x720, struct.pack('BBxxIQ', 2, 0, 2, block)": "EINVAL",
    "raw, 0x720, struct.pack('BBxxIQ', 1, 0, 9, block)": "EINVAL",
    "raw, 0x720, struct.pack('BBxxIQ', 0, 0, 5, block)": "EINVAL",
    "raw, 0x720, struct.pack('BBxxIQ', 0, 0, 6, block)": "EINVAL",
    "raw, 0x720, struct.pack('BBxxIQ', 0, 0, 7, block)": "EINVAL",
    "raw, 0x720, struct.pack('BBxxIQ', 0, 0, 8, block)": "EINVAL",
    "raw, 0x720, struct.pack('BBxxIQ', 1, 0, 8, block)": "EINVAL",
    # The same with a chip and a count that there are.
    "beginning, 0x720, struct.pack('BBxxIQ', 1, 0, 2, block)": r"b'\x01\x00'",
    "bus.write_byte_data, 0x51, 0, 0": "ENXIO",
    "bus.i2c_rdwr, i2c_msg.read(0x51, 1)": "ENXIO",
}


def test_errors(python: Callable[[str], list[str]]) -> None:
    code = """
raw(0x703, 0x50)
too_long = ctypes.create_string_buffer(bytes([33]) + bytes(33))
block = ctypes.addressof(too_long)
def beginning(*arguments):
    return raw(*arguments)[:2]
"""
    printed = python(code + "".join(f"show({call})\n" for call in ERRORS))
    assert dict(zip(ERRORS, printed, strict=True)) == ERRORS


ROOMS = {
    # flags, length of the buffer, its first byte: the result, what is in the buffer then
    (0x401, 33, 1): "done 03 ff ff ff 00 00",
    (0x401, 34, 2): "done 03 ff ff ff ff 00",
    (0x401, 33, 0): "EINVAL 00 00 00 00 00 00",
    (0x401, 33, 2): "EINVAL 02 00 00 00 00 00",
    (0x401, 0, 1): "EINVAL 01 00 00 00 00 00",
    (0x400, 33, 1): "EINVAL 01 00 00 00 00 00",
    (0x011, 33, 1): "ENOTSUP 01 00 00 00 00 00",
}


def test_messages_whose_length_the_chip_tells(python: Callable[[str], list[str]]) -> None:
    """I2C_M_RECV_LEN, and the same bit where it cannot be; a cell with 3 is the count."""
    code = f"""
def receive(flags, length, first):
    bus.write_byte_data(0x50, 0, 3)
    bus.write_byte(0x50, 0)
    buffer = ctypes.create_string_buffer(bytes([first]), 40)
    message = struct.pack("HHHxxQ", 0x50, flags, length, ctypes.addressof(buffer))
    messages = ctypes.create_string_buffer(message)
    try:
        raw(0x707, struct.pack("QI4x", ctypes.addressof(messages), 1))
        print("done", end=" ")
    except OSError as error:
        print(errno.errorcode[error.errno], end=" ")
    print(buffer[:6].hex(" "))

for case in {list(ROOMS)}:
    receive(*case)
"""
    assert dict(zip(ROOMS, python(code), strict=True)) == ROOMS


def test_ten_bit_addresses_are_not_supported(python: Callable[[str], list[str]]) -> None:
    code = """
show(raw, 0x704, 1)
show(raw, 0x703, 0x350)
show(raw, 0x703, 0x400)
show(os.read, device, 1)
show(raw, 0x704, 0)
show(raw, 0x703, 0x50)
show(os.read, device, 1)
"""
    assert python(code) == ["0", "0", "EINVAL", "ENOTSUP", "0", "0", r"b'\xff'"]


def test_options_that_change_nothing(python: Callable[[str], list[str]]) -> None:
    """I2C_PEC, I2C_RETRIES, I2C_TIMEOUT."""
    code = "show(raw, 0x708, 1)\nshow(raw, 0x701, 3)\nshow(raw, 0x702, 10)"
    assert python(code) == ["0", "0", "0"]


# ---- chips of one's own


@pytest.fixture
def i2cbus() -> Any:
    load(parse("examples/eeprom.py"))
    return importlib.import_module("i2cbus")


@pytest.fixture
def answers(i2cbus: Any) -> Callable[[Any, str], list[str]]:
    """`answers(chip, code)`: the lines that a program prints to whose bus, at 0x2a, is the chip."""

    def answers(chip: Any, code: str) -> list[str]:
        with Sandbox(i2cbus.Bus(9, {0x2A: chip})) as sandbox:
            outcome = sandbox.run(
                [sys.executable, "-c", PRELUDE + code], capture_output=True, timeout=60
            )
        assert (outcome.returncode, outcome.stderr) == (0, b"")
        lines: list[str] = outcome.stdout.decode().splitlines()
        return lines

    return answers


CALLS: list[tuple[str, str, list[bytes | int]]] = [
    ("write_quick, 0x2a", "None", [b""]),
    ("write_byte, 0x2a, 1", "None", [b"\x01"]),
    ("write_byte_data, 0x2a, 1, 2", "None", [b"\x01\x02"]),
    ("write_word_data, 0x2a, 1, 0x302", "None", [b"\x01\x02\x03"]),
    ("write_block_data, 0x2a, 1, [7, 8]", "None", [b"\x01\x02\x07\x08"]),
    ("write_i2c_block_data, 0x2a, 1, [7, 8]", "None", [b"\x01\x07\x08"]),
    ("read_byte, 0x2a", "3", [1]),
    ("read_byte_data, 0x2a, 9", "3", [b"\x09", 1]),
    ("read_word_data, 0x2a, 9", f"{0x503}", [b"\x09", 2]),
    ("process_call, 0x2a, 9, 0x201", f"{0x503}", [b"\x09\x01\x02", 2]),
    ("read_block_data, 0x2a, 9", "[5, 7, 9]", [b"\x09", 4]),
    ("block_process_call, 0x2a, 9, [1, 2]", "[5, 7, 9]", [b"\x09\x02\x01\x02", 4]),
    ("read_i2c_block_data, 0x2a, 9, 2", "[3, 5]", [b"\x09", 2]),
    ("read_i2c_block_data, 0x2a, 9, 32", f"{list(range(3, 67, 2))}", [b"\x09", 32]),
]

READING_CALLS: list[tuple[str, str, list[bytes | int]]] = [
    # size, then what is in the program's block
    ("0", "02 01 00 00", []),
    ("4", "03 05 00 00", [b"\x09\x02\x01", 2]),
    ("7", "03 05 07 09", [b"\x09\x02\x01\x00", 4]),
]


def test_smbus_as_messages(i2cbus: Any, answers: Callable[[Any, str], list[str]]) -> None:
    """What the chip sees of each call: bytes written, and the number of bytes read."""
    seen: list[bytes | int] = []

    class Odd(i2cbus.Chip):  # type: ignore[misc]
        """Sends 3, 5, 7, ... of which 3 is also a count."""

        def write(self, data: bytes) -> None:
            seen.append(data)

        def read(self) -> Iterator[int]:
            seen.append(0)
            for number in range(3, 256, 2):
                seen[-1] += 1  # type: ignore[operator]
                yield number

    # smbus2 makes calls that write and read as ones that write; Linux takes them as reading, too.
    code = """
raw(0x703, 0x2a)
def read(size):
    block = ctypes.create_string_buffer(bytes([2, 1]), 34)
    raw(0x720, struct.pack("BBxxIQ", 1, 9, size, ctypes.addressof(block)))
    return block[:4].hex(" ")
"""
    code += "".join(f"show(bus.{call})\n" for call, _, _ in CALLS)
    code += "".join(f"show(read, {size})\n" for size, _, _ in READING_CALLS)
    calls = CALLS + READING_CALLS
    assert answers(Odd(), code) == [result for _, result, _ in calls]
    assert seen == [message for _, _, messages in calls for message in messages]


def test_counts_that_smbus_does_not_have(python: Callable[[str], list[str]]) -> None:
    code = """
for count in (0, 1, 32, 33):
    bus.write_byte_data(0x50, 0, count)
    show(lambda: len(bus.read_block_data(0x50, 0)))
"""
    assert python(code) == ["EPROTO", "1", "32", "EPROTO"]


def test_a_chip_may_refuse(i2cbus: Any, answers: Callable[[Any, str], list[str]]) -> None:
    class Busy(i2cbus.Chip):  # type: ignore[misc]
        def write(self, data: bytes) -> None:
            raise OSError(errno.EREMOTEIO, "writing cells")

    code = "show(bus.write_byte, 0x2a, 1)\nshow(bus.i2c_rdwr, i2c_msg.write(0x2a, [1]))"
    assert answers(Busy(), code) == ["EREMOTEIO", "EREMOTEIO"]


def test_a_chip_that_does_nothing_is_there(
    i2cbus: Any, answers: Callable[[Any, str], list[str]]
) -> None:
    code = "show(bus.write_byte, 0x2a, 1)\nshow(bus.read_byte, 0x2a)"
    assert answers(i2cbus.Chip(), code) == ["None", "255"]
