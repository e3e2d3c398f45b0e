"""The I2C example with the programs that people use on I2C: i2c-tools and busybox's."""

from collections.abc import Callable
from pathlib import Path

import pytest

Needs = Callable[..., Path]
Shell = Callable[..., bytes]
Script = Callable[..., str]

TABLE = """\
     0  1  2  3  4  5  6  7  8  9  a  b  c  d  e  f
00:                         -- -- -- -- -- -- -- -- \n\
10: -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- \n\
20: -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- \n\
30: -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- \n\
40: -- -- -- -- -- -- -- -- 48 -- -- -- -- -- -- -- \n\
50: 50 -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- \n\
60: -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- -- \n\
70: -- -- -- -- -- -- -- --                         \n\
"""
# busybox's begins its first row at 0x03, as i2cdetect -a does.
BUSYBOX_TABLE = TABLE.replace("00:            " + " " * 13, "00:          -- -- -- -- -- ")

FUNCTIONS = """\
Functionalities implemented by /dev/i2c-9:
I2C                              yes
SMBus Quick Command              yes
SMBus Send Byte                  yes
SMBus Receive Byte               yes
SMBus Write Byte                 yes
SMBus Read Byte                  yes
SMBus Write Word                 yes
SMBus Read Word                  yes
SMBus Process Call               yes
SMBus Block Write                yes
SMBus Block Read                 yes
SMBus Block Process Call         yes
SMBus PEC                        no
I2C Block Write                  yes
I2C Block Read                   yes
"""


NAMES = ("i2cdetect", "i2cget", "i2cset", "i2cdump", "i2ctransfer")


def i2c_tools(needs: Needs, shell: Shell) -> Script:
    needs("i2cget", "i2c-tools")
    return lambda script, arguments="": shell(f"eeprom.py{arguments}", script).decode()


def busyboxs(needs: Needs, shell: Shell) -> Script:
    needs("busybox", "busybox-static")
    functions = "".join(f'{name}() {{ busybox {name} "$@"; }}\n' for name in NAMES)
    return lambda script, arguments="": shell(f"eeprom.py{arguments}", functions + script).decode()


@pytest.fixture
def tools(needs: Needs, shell: Shell) -> Script:
    """`tools(script, arguments="")`: what a script prints in which i2cget and so on are i2c-tools'.

    A script that goes on after a failure shows it with `|| echo ...`.
    """
    return i2c_tools(needs, shell)


@pytest.fixture
def busybox(needs: Needs, shell: Shell) -> Script:
    """The same with the tools of busybox, one static binary."""
    return busyboxs(needs, shell)


@pytest.fixture(params=[i2c_tools, busyboxs])
def either(request: pytest.FixtureRequest, needs: Needs, shell: Shell) -> Script:
    """Both in turn, for scripts that both understand."""
    script: Script = request.param(needs, shell)
    return script


# ---- who is there


def test_i2cdetect_finds_both_chips(tools: Script) -> None:
    """As it likes, by quick writes only, by reads only."""
    assert tools("i2cdetect -y 9; i2cdetect -y -q 9; i2cdetect -y -r 9") == TABLE * 3


def test_busybox_i2cdetect_finds_both_chips(busybox: Script) -> None:
    assert busybox("i2cdetect -y 9") == BUSYBOX_TABLE


def test_i2cdetect_says_what_the_bus_can_do(tools: Script) -> None:
    assert tools("i2cdetect -F 9") == FUNCTIONS


def test_busybox_i2cdetect_says_what_the_bus_can_do(busybox: Script) -> None:
    output = busybox("i2cdetect -F 9")
    assert [line.split()[-1] for line in output.splitlines()[1:]] == [
        line.split()[-1] for line in FUNCTIONS.splitlines()[1:]
    ]


def test_another_bus(tools: Script) -> None:
    assert tools("i2cdetect -y 1; ls /dev/i2c-9 || true", ",number=1") == (
        TABLE + "ls: cannot access '/dev/i2c-9': No such file or directory\n"
    )


# ---- nobody is there


def failures(script: Script, expected: dict[str, str]) -> None:
    """Check what commands say when they fail."""
    commands = "".join(f"{command} || echo failed\n" for command in expected)
    assert script(commands) == "".join(f"{error}\nfailed\n" for error in expected.values())


def test_an_absent_chip(tools: Script) -> None:
    no_address = "Error: Sending messages failed: No such device or address"
    failures(
        tools,
        {
            "i2cget -y 9 0x51": "Error: Read failed",
            "i2cget -y 9 0x51 0": "Error: Read failed",
            "i2cget -y 9 0x51 0 w": "Error: Read failed",
            "i2cget -y 9 0x51 0 i 4": "Error: Read failed",
            "i2cset -y 9 0x51 0": "Error: Write failed",
            "i2cset -y 9 0x51 0 1": "Error: Write failed",
            "i2cset -y 9 0x51 0 1 2 3 i": "Error: Write failed",
            "i2ctransfer -y 9 w1@0x51 0 r8": no_address,
            "i2ctransfer -y 9 w1@0x50 0 r8@0x51": no_address,
        },
    )


def test_an_absent_chip_for_busybox(busybox: Script) -> None:
    failures(
        busybox,
        {
            "i2cget -y 9 0x51 0": "i2cget: read failed: No such device or address",
            "i2cset -y 9 0x51 0 1": "i2cset: write failed: No such device or address",
            "i2ctransfer -y 9 w1@0x51 0 r8": "i2ctransfer: I2C_RDWR: No such device or address",
        },
    )


def test_i2cdump_of_an_absent_chip(tools: Script) -> None:
    assert tools("i2cdump -y -r 0-15 9 0x51 b") == (
        "     0  1  2  3  4  5  6  7  8  9  a  b  c  d  e  f    0123456789abcdef\n"
        "00: XX XX XX XX XX XX XX XX XX XX XX XX XX XX XX XX    XXXXXXXXXXXXXXXX\n"
    )


# ---- the EEPROM


def test_erased_cells_are_ff(either: Script) -> None:
    assert either("i2cget -y 9 0x50 0; i2cget -y 9 0x50 0xff") == "0xff\n0xff\n"


def test_bytes_and_words(either: Script) -> None:
    script = """
        i2cset -y 9 0x50 0x10 0x12
        i2cset -y 9 0x50 0x11 0x5634 w
        i2cget -y 9 0x50 0x10 b; i2cget -y 9 0x50 0x11 b; i2cget -y 9 0x50 0x12 b
        i2cget -y 9 0x50 0x10 w
    """
    assert either(script) == "0x12\n0x34\n0x56\n0x3412\n"


def test_the_pointer_goes_on_by_itself(either: Script) -> None:
    """A byte without an address is read where the last transfer ended, over the end, too."""
    script = """
        i2cset -y 9 0x50 0xff 0xaa; i2cset -y 9 0x50 0 0xbb; i2cset -y 9 0x50 1 0xcc
        i2cset -y 9 0x50 0xff
        i2cget -y 9 0x50; i2cget -y 9 0x50; i2cget -y 9 0x50
    """
    assert either(script) == "0xaa\n0xbb\n0xcc\n"


def test_i2cget_sends_the_address_and_reads_a_byte(tools: Script) -> None:
    script = """
        i2cset -y 9 0x50 7 0x77; i2cset -y 9 0x50 8 0x88
        i2cget -y 9 0x50 7 c; i2cget -y 9 0x50
    """
    assert tools(script) == "0x77\n0x88\n"


def test_i2cset_reads_back_and_masks(tools: Script) -> None:
    script = """
        i2cset -y -r 9 0x50 0x20 0x5a
        i2cset -y -r -m 0x0f 9 0x50 0x20 0x03
        i2cget -y 9 0x50 0x20
    """
    assert tools(script) == (
        "Value 0x5a written, readback matched\nValue 0x53 written, readback matched\n0x53\n"
    )


def test_blocks(tools: Script) -> None:
    script = """
        i2cset -y 9 0x50 0x40 0xde 0xad 0xbe 0xef i
        i2cget -y 9 0x50 0x40 i 5
        i2cget -y 9 0x50 0x3f i
    """
    long = ["0xff", "0xde", "0xad", "0xbe", "0xef", *["0xff"] * 27]
    assert tools(script) == f"0xde 0xad 0xbe 0xef 0xff\n{' '.join(long)}\n"


def test_a_write_does_not_leave_its_page(tools: Script) -> None:
    """Six bytes from the sixth cell of a page of eight: four of them begin at its first again."""
    script = """
        i2cset -y 9 0x50 0x0e 1 2 3 4 5 6 i
        i2cget -y 9 0x50 0x08 i 8
        i2cget -y 9 0x50 0x10 i 8
    """
    assert tools(script) == (
        "0x03 0x04 0x05 0x06 0xff 0xff 0x01 0x02\n0xff 0xff 0xff 0xff 0xff 0xff 0xff 0xff\n"
    )


def test_a_block_longer_than_a_page_overwrites_itself(tools: Script) -> None:
    numbers = " ".join(str(number) for number in range(32))
    script = f"i2cset -y 9 0x50 0 {numbers} i; i2cget -y 9 0x50 0 i 9"
    assert tools(script) == "0x18 0x19 0x1a 0x1b 0x1c 0x1d 0x1e 0x1f 0xff\n"


def test_smbus_blocks_have_a_count(tools: Script) -> None:
    script = """
        i2cset -y 9 0x50 0x10 6 7 8 s
        i2cget -y 9 0x50 0x10 i 5
        i2cget -y 9 0x50 0x10 s
    """
    assert tools(script) == "0x03 0x06 0x07 0x08 0xff\n0x06 0x07 0x08\n"


def test_a_count_that_smbus_does_not_have(tools: Script) -> None:
    """0xff, of an erased cell."""
    assert tools("i2cget -y 9 0x50 0 s || echo failed") == "Error: Read failed\nfailed\n"


HELLO = """
    i2cset -y 9 0x50 0 0x68 0x65 0x6c 0x6c 0x6f i
    i2cset -y 9 0x50 0x18 5 6 i
"""


def test_i2cdump(tools: Script) -> None:
    """By bytes, by words at even addresses, by blocks."""
    dumps = "".join(f"i2cdump -y -r 0-31 9 0x50 {mode}\n" for mode in "bWi")
    assert tools(HELLO + dumps) == 3 * (
        "     0  1  2  3  4  5  6  7  8  9  a  b  c  d  e  f    0123456789abcdef\n"
        "00: 68 65 6c 6c 6f ff ff ff ff ff ff ff ff ff ff ff    hello...........\n"
        "10: ff ff ff ff ff ff ff ff 05 06 ff ff ff ff ff ff    ........??......\n"
    )


def test_i2cdump_of_words(tools: Script) -> None:
    assert tools(f"{HELLO}i2cdump -y -r 0-7 9 0x50 w") == (
        "     0,8  1,9  2,a  3,b  4,c  5,d  6,e  7,f\n"
        "00: 6568 6c65 6c6c 6f6c ff6f ffff ffff ffff \n"
    )


def test_i2cdump_byte_after_byte(tools: Script) -> None:
    """Mode c: the address is sent once, the pointer moves by itself."""
    output = tools(f"{HELLO}i2cdump -y 9 0x50 c").splitlines()
    assert len(output) == 17
    assert output[1].endswith("hello...........")
    assert output[2] == "10: ff ff ff ff ff ff ff ff 05 06 ff ff ff ff ff ff    ........??......"
    assert output[16] == f"f0:{' ff' * 16}    {'.' * 16}"


def test_i2cdump_of_an_smbus_block(tools: Script) -> None:
    script = "i2cset -y 9 0x50 0 0x62 0x6c 0x6f 0x63 0x6b s; i2cdump -y 9 0x50 s"
    assert tools(script).endswith(f"00: 62 6c 6f 63 6b{' ' * 37}block\n")


def test_busybox_i2cdump(busybox: Script) -> None:
    output = busybox("i2cset -y 9 0x50 0 0x68; i2cset -y 9 0x50 1 0x69; i2cdump -y 9 0x50 b")
    assert output.splitlines()[1] == f"00: 68 69{' ff' * 14}    hi{'.' * 14}"


def test_transfers_of_several_messages(either: Script) -> None:
    script = """
        i2ctransfer -y 9 w4@0x50 0x20 1 2 3
        i2ctransfer -y 9 w1@0x50 0x20 r4
        i2ctransfer -y 9 w2@0x50 0x21 9 w1@0x50 0x20 r3 w1@0x48 0 r2
    """
    assert either(script) == "0x01 0x02 0x03 0xff\n0x01 0x09 0x03\n0x15 0x80\n"


def test_as_many_messages_as_linux_takes(tools: Script) -> None:
    """42; i2ctransfer itself refuses more."""
    script = f"i2cset -y 9 0x50 0 5; i2ctransfer -y 9 {'w1@0x50 0 r1 ' * 21}"
    assert tools(script) == "0x05\n" * 21


def test_a_transfer_whose_length_the_chip_tells(tools: Script) -> None:
    script = "i2cset -y 9 0x50 0x10 6 7 8 s; i2ctransfer -y 9 w1@0x50 0x10 r?"
    assert tools(script) == "0x03 0x06 0x07 0x08\n"


def test_the_longest_message(tools: Script) -> None:
    """8192 bytes: the whole memory, 32 times over."""
    output = tools("i2cset -y 9 0x50 3 0xab; i2ctransfer -y 9 w1@0x50 0 r8192").split()
    assert output == (["0xff"] * 3 + ["0xab"] + ["0xff"] * 252) * 32


def test_longer_messages_are_refused(tools: Script) -> None:
    assert tools("i2ctransfer -y 9 r8193@0x50 || echo failed") == (
        "Error: Sending messages failed: Invalid argument\nfailed\n"
    )


# ---- the thermometer


@pytest.mark.parametrize(
    ("celsius", "word"),
    [
        ("", "0x8015"),
        (",celsius=0", "0x0000"),
        (",celsius=-3.5", "0x80fc"),
        (",celsius=125", "0x007d"),
    ],
)
def test_the_temperature(either: Script, celsius: str, word: str) -> None:
    """Its first byte is the higher one, which SMBus's words have last."""
    assert either("i2cget -y 9 0x48 0 w", celsius) == f"{word}\n"


def test_the_temperature_cannot_be_written(tools: Script) -> None:
    script = "i2cset -y 9 0x48 0 0 w; i2cget -y 9 0x48 0 w"
    assert tools(script) == "0x8015\n"


def test_configuration_and_limits(tools: Script) -> None:
    script = """
        i2cget -y 9 0x48 1; i2cget -y 9 0x48 2 w; i2cget -y 9 0x48 3 w
        i2cset -y 9 0x48 1 0x06; i2cset -y 9 0x48 2 0x8028 w; i2cset -y 9 0x48 3 0x0030 w
        i2cget -y 9 0x48 1; i2cget -y 9 0x48 2 w; i2cget -y 9 0x48 3 w
    """
    assert tools(script) == "0x00\n0x004b\n0x0050\n0x06\n0x8028\n0x0030\n"


def test_half_a_limit(tools: Script) -> None:
    """A master that stops after one byte of two leaves the other as it was."""
    script = "i2cset -y 9 0x48 3 0x8030 w; i2cset -y 9 0x48 3 0x20; i2cget -y 9 0x48 3 w"
    assert tools(script) == "0x8020\n"


def test_its_pointer_stays(tools: Script) -> None:
    assert tools("i2cset -y 9 0x48 2; i2ctransfer -y 9 r2@0x48 r2") == "0x4b 0x00\n0x4b 0x00\n"


def test_nobody_drives_the_line_after_a_register(tools: Script) -> None:
    assert tools("i2ctransfer -y 9 w1@0x48 1 r4") == "0x00 0xff 0xff 0xff\n"
