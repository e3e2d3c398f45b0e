"""The GPIO chip: with libgpiod's programs (version 1.6) and its Python package (2), with
python-periphery, and by plain ioctls for what these do not do.
"""

import ctypes
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import Needs
from tests.examples.conftest import in_sandbox

ROOT = Path(__file__).parents[2]
OUTPUT = {"capture_output": True, "text": True}
Python = Callable[[str], list[str]]

PRELUDE = f"""
import ctypes, errno, fcntl, os, select, struct, sys, threading, time
sys.path.insert(0, {str(ROOT / "examples")!r})
import gpio

chip = os.open("/dev/gpiochip9", os.O_RDWR)

def call(fd, command, data):
    "The structure that an ioctl makes of another one, or the error's name."
    try:
        fcntl.ioctl(fd, command, data)
    except OSError as error:
        return errno.errorcode[error.errno]
    return data

def request(*offsets, flags=0, attrs=(), **fields):
    "A descriptor of lines, by version 2."
    data = gpio.LineRequest(num_lines=len(offsets), **fields)
    data.offsets[:len(offsets)] = offsets
    data.config.flags, data.config.num_attrs = flags, len(attrs)
    for place, (id, value, mask) in zip(data.config.attrs, attrs):
        place.attr.id, place.attr.values, place.mask = id, value, mask
    done = call(chip, gpio.V2_GET_LINE, data)
    return done if isinstance(done, str) else done.fd

def handle(*offsets, flags=0, values=(), chip=chip, **fields):
    "A descriptor of lines, by version 1."
    data = gpio.HandleRequest(flags=flags, lines=len(offsets), **fields)
    data.offsets[:len(offsets)] = offsets
    data.default_values[:len(values)] = values
    done = call(chip, gpio.GET_LINEHANDLE, data)
    return done if isinstance(done, str) else done.fd

def event(offset, handle_flags=0, event_flags=3):
    "A descriptor of a line with events, by version 1."
    done = call(chip, gpio.GET_LINEEVENT, gpio.EventRequest(offset, handle_flags, event_flags))
    return done if isinstance(done, str) else done.fd

def get(fd, mask=1):
    done = call(fd, gpio.V2_LINE_GET_VALUES, gpio.LineValues(0, mask))
    return done if isinstance(done, str) else done.bits

def put(fd, bits, mask=1):
    done = call(fd, gpio.V2_LINE_SET_VALUES, gpio.LineValues(bits, mask))
    return done if isinstance(done, str) else done.bits

def info(offset, command=gpio.V2_GET_LINEINFO, fd=chip):
    done = call(fd, command, gpio.LineInfo(offset=offset))
    if isinstance(done, str):
        return done
    return done.name.decode(), done.consumer.decode(), gpio.Flag(done.flags).name

def events(fd, count, kind=gpio.LineEvent):
    data = os.read(fd, count * ctypes.sizeof(kind))
    return [kind.from_buffer_copy(data, at) for at in range(0, len(data), ctypes.sizeof(kind))]

F = gpio.Flag
"""


@pytest.fixture
def python() -> Python:
    """`python(code)`: the lines that a program prints, which has what PRELUDE defines."""

    def python(code: str) -> list[str]:
        argv = [sys.executable, "-c", PRELUDE + code]
        outcome: Any = in_sandbox(str(ROOT / "examples/gpiochip.py"), argv, **OUTPUT)
        assert (outcome.returncode, outcome.stderr) == (0, ""), outcome.stderr
        return str(outcome.stdout).splitlines()

    return python


@pytest.fixture
def gpio(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("gpio")


# ---- the interface


C_NAMES = {
    "ChipInfo": "gpiochip_info",
    "Attribute": "gpio_v2_line_attribute",
    "ConfigAttribute": "gpio_v2_line_config_attribute",
    "LineConfig": "gpio_v2_line_config",
    "LineRequest": "gpio_v2_line_request",
    "LineValues": "gpio_v2_line_values",
    "LineInfo": "gpio_v2_line_info",
    "LineInfoChanged": "gpio_v2_line_info_changed",
    "LineEvent": "gpio_v2_line_event",
    "OldLineInfo": "gpioline_info",
    "OldLineInfoChanged": "gpioline_info_changed",
    "HandleRequest": "gpiohandle_request",
    "HandleConfig": "gpiohandle_config",
    "HandleValues": "gpiohandle_data",
    "EventRequest": "gpioevent_request",
    "OldLineEvent": "gpioevent_data",
}
C_COMMANDS = {
    "GET_CHIPINFO": "GPIO_GET_CHIPINFO_IOCTL",
    "GET_LINEINFO_UNWATCH": "GPIO_GET_LINEINFO_UNWATCH_IOCTL",
    "V2_GET_LINEINFO": "GPIO_V2_GET_LINEINFO_IOCTL",
    "V2_GET_LINEINFO_WATCH": "GPIO_V2_GET_LINEINFO_WATCH_IOCTL",
    "V2_GET_LINE": "GPIO_V2_GET_LINE_IOCTL",
    "V2_LINE_SET_CONFIG": "GPIO_V2_LINE_SET_CONFIG_IOCTL",
    "V2_LINE_GET_VALUES": "GPIO_V2_LINE_GET_VALUES_IOCTL",
    "V2_LINE_SET_VALUES": "GPIO_V2_LINE_SET_VALUES_IOCTL",
    "GET_LINEINFO": "GPIO_GET_LINEINFO_IOCTL",
    "GET_LINEHANDLE": "GPIO_GET_LINEHANDLE_IOCTL",
    "GET_LINEEVENT": "GPIO_GET_LINEEVENT_IOCTL",
    "HANDLE_GET_VALUES": "GPIOHANDLE_GET_LINE_VALUES_IOCTL",
    "HANDLE_SET_VALUES": "GPIOHANDLE_SET_LINE_VALUES_IOCTL",
    "HANDLE_SET_CONFIG": "GPIOHANDLE_SET_CONFIG_IOCTL",
    "GET_LINEINFO_WATCH": "GPIO_GET_LINEINFO_WATCH_IOCTL",
}
C_FIELDS = {
    ("OldLineInfo", "offset"): "line_offset",
    ("OldLineInfoChanged", "timestamp_ns"): "timestamp",
    ("OldLineEvent", "timestamp_ns"): "timestamp",
    ("HandleRequest", "offsets"): "lineoffsets",
    ("HandleRequest", "consumer"): "consumer_label",
    ("EventRequest", "offset"): "lineoffset",
    ("EventRequest", "handle_flags"): "handleflags",
    ("EventRequest", "event_flags"): "eventflags",
    ("EventRequest", "consumer"): "consumer_label",
    ("Attribute", "value"): "flags",
}


def test_structures_and_numbers_are_those_of_the_header(
    gpio: ModuleType, needs: Needs, tmp_path: Path
) -> None:
    needs("/usr/include/linux/gpio.h", "linux-libc-dev")
    expected = {c: getattr(gpio, name) for name, c in C_COMMANDS.items()}
    flags = {"PULL_UP": "BIAS_PULL_UP", "PULL_DOWN": "BIAS_PULL_DOWN"}
    flags |= {"CLOCK_REALTIME": "EVENT_CLOCK_REALTIME"}
    for flag in gpio.Flag:
        expected[f"GPIO_V2_LINE_FLAG_{flags.get(flag.name, flag.name)}"] = int(flag)
    for name, c in C_NAMES.items():
        structure: type[ctypes.Structure] = getattr(gpio, name)
        expected[f"sizeof(struct {c})"] = ctypes.sizeof(structure)
        for field in structure._fields_:
            member = C_FIELDS.get((name, field[0]), field[0])
            expected[f"offsetof(struct {c}, {member})"] = getattr(structure, field[0]).offset
    lines = "".join(f'printf("%llu\\n", (unsigned long long)({c}));\n' for c in expected)
    source = "#include <linux/gpio.h>\n#include <stddef.h>\n#include <stdio.h>\n"
    program = tmp_path / "ask"
    subprocess.run(
        [str(needs("gcc", "gcc")), "-xc", "-", "-o", str(program)],
        input=f"{source}int main(void) {{\n{lines}return 0; }}\n",
        text=True,
        check=True,
    )
    said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(expected, map(int, said), strict=True)) == expected


# ---- programs


def test_python_periphery(python: Python) -> None:
    code = """
from periphery import GPIO
out = GPIO("/dev/gpiochip9", 0, "out", label="blink")
into = GPIO("/dev/gpiochip9", "A1", "in", edge="both", bias="pull_down")
print(out.name, out.label, out.chip_name, out.chip_label, out.direction, into.edge, into.bias)
for value in (True, False):
    out.write(value)
    print(into.read(), into.poll(20), into.read_event().edge)
threading.Timer(0.05, out.write, [True]).start()
print(into.read_event().edge)
into.inverted = True
print(into.read())
out.direction = "in"
print(into.read(), out.read())
into.bias = "pull_up"
print(into.read(), out.read())
try:
    GPIO("/dev/gpiochip9", 1, "out")
except Exception as error:
    print(error)
into.close()
GPIO("/dev/gpiochip9", 1, "out").close()
"""
    assert python(code) == [
        "A0 blink gpiochip9 recuse out both pull_down",
        "True True rising",
        "False True falling",
        "rising",
        "False",
        "True False",
        "False True",
        "[Errno 16] Opening output line handle: Device or resource busy",
    ]


def test_python_gpiod(python: Python) -> None:
    code = """
import gpiod
from gpiod.line import Bias, Direction, Edge, Value
print(gpiod.is_gpiochip_device("/dev/gpiochip9"), gpiod.is_gpiochip_device("/dev/null"))
with gpiod.Chip("/dev/gpiochip9") as gpiochip:
    print(gpiochip.get_info())
    gpiochip.watch_line_info("A0")
    out = gpiochip.request_lines({"A0": gpiod.LineSettings(Direction.OUTPUT)}, consumer="me")
    print(gpiochip.get_line_info(0).consumer, gpiochip.get_line_info(0).direction)
    settings = gpiod.LineSettings(edge_detection=Edge.BOTH, bias=Bias.PULL_DOWN)
    with gpiod.request_lines("/dev/gpiochip9", {("A1", "B1"): settings}) as into:
        print(into.wait_edge_events(0))
        for value in (Value.ACTIVE, Value.INACTIVE):
            out.set_value("A0", value)
            print(into.get_values())
        print(into.wait_edge_events(20))
        for event in into.read_edge_events():
            print(event.event_type, event.line_offset, event.global_seqno, event.line_seqno)
        inverted = gpiod.LineSettings(Direction.INPUT, active_low=True)
        into.reconfigure_lines({"A1": inverted})
        print(into.get_value("A1"))
    try:
        gpiochip.request_lines({"A0": None})
    except OSError as error:
        print(error)
    out.release()
    print([gpiochip.read_info_event().event_type for _ in range(2)])
"""
    assert python(code) == [
        "True False",
        '<ChipInfo name="gpiochip9" label="recuse" num_lines=8>',
        "me Direction.OUTPUT",
        "False",
        "[<Value.ACTIVE: 1>, <Value.INACTIVE: 0>]",
        "[<Value.INACTIVE: 0>, <Value.INACTIVE: 0>]",
        "True",
        "Type.RISING_EDGE 1 1 1",
        "Type.FALLING_EDGE 1 2 2",
        "Value.ACTIVE",
        "[Errno 16] Device or resource busy",
        "[<Type.LINE_REQUESTED: 1>, <Type.LINE_RELEASED: 2>]",
    ]


# ---- libgpiod's programs


@pytest.fixture
def tools(needs: Needs, shell: Callable[..., bytes]) -> Callable[[str], list[str]]:
    """`tools(script)`: the lines that a script of sh prints."""
    needs("gpiodetect", "gpiod")
    return lambda script: shell("gpiochip.py", script).decode().splitlines()


def test_gpiodetect_gpioinfo_gpiofind(tools: Callable[[str], list[str]]) -> None:
    assert tools("gpiodetect; gpiofind B1; gpioinfo") == [
        "gpiochip9 [recuse] (8 lines)",
        "gpiochip9 3",
        "gpiochip9 - 8 lines:",
        *[
            f'\tline   {offset}:         "{"ABCD"[offset // 2]}{offset % 2}"       unused   input  '
            "active-high "
            for offset in range(8)
        ],
    ]


def test_gpioset_and_gpioget(tools: Callable[[str], list[str]]) -> None:
    script = """
        gpioset gpiochip9 0=1 2=1
        gpioget gpiochip9 1 3 5
        gpioget --active-low gpiochip9 1
        gpioset gpiochip9 0=0
        gpioget gpiochip9 1
        gpioget --bias=pull-up gpiochip9 5
        gpioget gpiochip9 5
        gpioset --drive=open-drain gpiochip9 6=1
        gpioget gpiochip9 7
    """
    assert tools(script) == ["1 1 0", "0", "0", "1", "0", "0"]


def until(name: str, consumer: str) -> str:
    """A command that waits until a line is a program's."""
    return f"""until gpioinfo gpiochip9 | grep -q '"{name}" *"{consumer}"'; do :; done"""


def test_a_line_in_use(tools: Callable[[str], list[str]]) -> None:
    script = f"""
        gpioset --mode=signal --drive=open-drain --active-low gpiochip9 6=1 &
        {until("D0", "gpioset")}
        gpioinfo | grep D0
        gpioget gpiochip9 7
        gpioget gpiochip9 6 || true
        gpioget gpiochip9 8 || true
        kill $!
        wait
        gpioinfo | grep D0
    """
    assert tools(script) == [
        '\tline   6:         "D0"    "gpioset"  output   active-low [used open-drain]',
        "0",
        "gpioget: error reading GPIO values: Device or resource busy",
        "gpioget: error reading GPIO values: Invalid argument",
        '\tline   6:         "D0"       unused  output  active-high ',
    ]


def test_gpiomon(tools: Callable[[str], list[str]]) -> None:
    script = f"""
        gpiomon --num-events=3 --format='%o %e' gpiochip9 1 3 & {until("B1", "gpiomon")}
        for value in 1 0; do gpioset gpiochip9 0=$value; done
        gpioset gpiochip9 2=1
        wait
        gpiomon --num-events=1 --falling-edge --format=%e gpiochip9 3 & {until("B1", "gpiomon")}
        gpioset --mode=time --usec=1 gpiochip9 2=0
        wait
        gpiomon --format=%e gpiochip9 1 & {until("A1", "gpiomon")}
        kill $!
        wait
    """
    *both, last = tools(script)
    # Events of one line come in their order, those of two lines as gpiomon looks.
    assert sorted(both) == ["1 0", "1 1", "3 1"]
    assert [line for line in both if line[0] == "1"] == ["1 1", "1 0"]
    assert last == "0"


# ---- lines


def test_chip_and_lines(python: Python) -> None:
    code = """
found = call(chip, gpio.GET_CHIPINFO, gpio.ChipInfo())
print(found.name, found.label, found.lines)
print(info(0), info(7), info(8))
fd = request(2, flags=F.OUTPUT | F.ACTIVE_LOW | F.OPEN_DRAIN, consumer=b"me")
print(info(2))
old = call(chip, gpio.GET_LINEINFO, gpio.OldLineInfo(offset=2))
print(bin(old.flags), old.name, old.consumer)
os.close(fd)
print(info(2))
fd = request(2, flags=F.INPUT, attrs=[(gpio.ATTR_DEBOUNCE, 500, 1)])
found = call(chip, gpio.V2_GET_LINEINFO, gpio.LineInfo(offset=2))
print(found.num_attrs, found.attrs[0].id, found.attrs[0].debounce_period_us, found.consumer)
print(call(chip, gpio.V2_GET_LINEINFO, gpio.LineInfo(padding=(0, 1))))
print(call(chip, gpio.V2_LINE_GET_VALUES, gpio.LineValues()))
"""
    assert python(code) == [
        "b'gpiochip9' b'recuse' 8",
        "('A0', '', 'INPUT') ('D1', '', 'INPUT') EINVAL",
        "('B0', 'me', 'USED|ACTIVE_LOW|OUTPUT|OPEN_DRAIN')",
        "0b1111 b'B0' b'me'",
        "('B0', '', 'INPUT')",
        "1 3 500 b'?'",
        "EINVAL",
        "EINVAL",
    ]


def test_pairs_are_wired_together(python: Python) -> None:
    code = """
out = request(0, 2, 4, flags=F.OUTPUT, attrs=[(gpio.ATTR_OUTPUT_VALUES, 0b011, 0b111)])
into = request(1, 3, 5, flags=F.INPUT)
print(get(into, 7), get(out, 7), get(into, 5))
print(put(out, 0b100, 0b101), get(into, 7))
config = gpio.LineConfig(flags=F.OUTPUT | F.OPEN_DRAIN, num_attrs=2)
config.attrs[0].attr.id, config.attrs[0].attr.values, config.attrs[0].mask = 2, 0b111, 0b111
config.attrs[1].attr.id, config.attrs[1].attr.flags, config.attrs[1].mask = 1, F.INPUT, 0b010
call(out, gpio.V2_LINE_SET_CONFIG, config)
print(get(into, 7))
call(into, gpio.V2_LINE_SET_CONFIG, gpio.LineConfig(flags=F.INPUT | F.PULL_UP | F.ACTIVE_LOW))
print(get(into, 7), put(out, 0, 0b101), get(into, 7), get(out, 7))
print(put(out, 0, 0b010), put(into, 1, 1), put(out, 0, 0), get(into, 0))
call(into, gpio.V2_LINE_SET_CONFIG, gpio.LineConfig(flags=F.OUTPUT))
print(get(out, 7))
os.close(out)
print(get(into, 7))
"""
    assert python(code) == [
        "3 3 1",
        "4 6",
        "0",
        "0 0 5 2",
        "EPERM EPERM EINVAL EINVAL",
        "0",
        "0",
    ]


def test_old_handles(python: Python) -> None:
    code = """
out = handle(0, 2, flags=2, values=[1, 0], consumer=b"old")
into = handle(1, 3, flags=1)
def values(fd):
    return list(call(fd, gpio.HANDLE_GET_VALUES, gpio.HandleValues()).values[:3])
print(info(0), values(into))
call(out, gpio.HANDLE_SET_VALUES, gpio.HandleValues((0, 7)))
print(values(into), call(into, gpio.HANDLE_SET_VALUES, gpio.HandleValues()))
config = gpio.HandleConfig(2 | 4, (1, 1))
call(out, gpio.HANDLE_SET_CONFIG, config)
print(values(into), values(out), info(0)[2])
print([call(out, gpio.HANDLE_SET_CONFIG, gpio.HandleConfig(flags)) for flags in (3, 0, 4)])
print(call(out, gpio.V2_GET_LINE, gpio.LineRequest()))
print(handle(0), handle(4, 4), handle(8), handle(*range(4, 4)), handle(4, flags=256))
print([handle(4, flags=flags) for flags in (8, 2 | 8 | 16, 32, 1 | 32 | 64)])
as_it_is = handle(5, flags=0)
print(info(5)[2])
try:
    os.read(out, 16)
except OSError as error:
    print(error.errno == errno.EINVAL)
"""
    assert python(code) == [
        "('A0', 'old', 'USED|OUTPUT') [1, 0, 0]",
        "[0, 1, 0] EPERM",
        "[0, 0, 0] [1, 1, 0] USED|ACTIVE_LOW|OUTPUT",
        "['EINVAL', 'EINVAL', 'EINVAL']",
        "EINVAL",
        "EBUSY EBUSY EINVAL EINVAL EINVAL",
        "['EINVAL', 'EINVAL', 'EINVAL', 'EINVAL']",
        "USED|INPUT",
        "True",
    ]


def test_what_is_refused(python: Python) -> None:
    code = """
for flags in (
    1 << 12, F.USED, F.INPUT | F.OUTPUT, F.OUTPUT | F.EDGE_RISING, F.EDGE_FALLING,
    F.OUTPUT | F.OPEN_DRAIN | F.OPEN_SOURCE, F.INPUT | F.OPEN_DRAIN, F.PULL_UP,
    F.INPUT | F.PULL_UP | F.PULL_DOWN,
):
    print(request(0, flags=flags), end=" ")
print()
print(request(), request(9), request(0, padding=(1,)), request(0, 0))
print(request(0, flags=F.OUTPUT, attrs=[(gpio.ATTR_DEBOUNCE, 500, 1)]))
print(call(chip, gpio.V2_GET_LINE, gpio.LineRequest(num_lines=65)))
print(call(chip, gpio.GET_LINEHANDLE, gpio.HandleRequest(lines=65)))
print(event(0, 2), event(0, 8), event(0, 0, 4), event(8))
first = request(0, 1, 2)
print(request(3, 2), event(1), request(0, 9), request(9, 0))
call(first, gpio.V2_LINE_SET_CONFIG, gpio.LineConfig(flags=F.ACTIVE_LOW))
print(info(0)[2], request(4, flags=F.OUTPUT, attrs=[(gpio.ATTR_DEBOUNCE, 0, 1)]))
print(info(3))
"""
    assert python(code) == [
        " ".join(["EINVAL"] * 9) + " ",
        "EINVAL EINVAL EINVAL EBUSY",
        "EINVAL",
        "EINVAL",
        "EINVAL",
        "EINVAL EINVAL EINVAL EINVAL",
        "EBUSY EBUSY EBUSY EINVAL",
        "USED|INPUT EINVAL",
        "('B1', '', 'INPUT')",
    ]


# ---- events


def test_events(python: Python) -> None:
    code = """
out = request(0, 2, flags=F.OUTPUT)
both = request(1, 3, flags=F.INPUT | F.EDGE_RISING | F.EDGE_FALLING)
before = time.monotonic_ns()
for bits, mask in ((3, 3), (3, 3), (0, 1), (0, 2), (1, 1)):
    put(out, bits, mask)
for at in events(both, 2) + events(both, 10):
    print(at.offset, at.id, at.seqno, at.line_seqno, before < at.timestamp_ns < time.monotonic_ns())
    before = at.timestamp_ns - 1
os.close(both)
put(out, 0)
low = request(1, flags=F.INPUT | F.EDGE_RISING | F.ACTIVE_LOW | F.CLOCK_REALTIME)
for bits in (1, 0, 1, 0):
    put(out, bits)
for at in events(low, 10):
    print(at.id, at.seqno, at.line_seqno, abs(time.time_ns() - at.timestamp_ns) < 1e11)
try:
    os.read(low, 47)
except OSError as error:
    print(error.errno == errno.EINVAL)
"""
    assert python(code) == [
        "1 1 1 1 True",
        "3 1 2 1 True",
        "1 2 3 2 True",
        "3 2 4 2 True",
        "1 1 5 3 True",
        "1 1 1 True",
        "1 2 2 True",
        "True",
    ]


def test_old_events(python: Python) -> None:
    code = """
out = request(0, flags=F.OUTPUT)
rising, = [event(1, event_flags=1)]
for bits in (1, 0, 1):
    put(out, bits)
print([at.id for at in events(rising, 10, gpio.OldLineEvent)])
print(call(rising, gpio.HANDLE_GET_VALUES, gpio.HandleValues()).values[0], info(1)[2])
try:
    os.read(rising, 15)
except OSError as error:
    print(error.errno == errno.EINVAL)
"""
    assert python(code) == ["[1, 1]", "1 USED|INPUT", "True"]


def test_a_reader_waits_unless_it_does_not_want_to(python: Python) -> None:
    code = """
out = request(0, flags=F.OUTPUT)
into = request(1, flags=F.INPUT | F.EDGE_RISING | F.EDGE_FALLING)
os.set_blocking(into, False)
try:
    os.read(into, 48)
except BlockingIOError:
    print("nothing")
os.set_blocking(into, True)
threading.Timer(0.05, put, [out, 1]).start()
print(events(into, 1)[0].id)
"""
    assert python(code) == ["nothing", "1"]


def test_too_many_events(python: Python) -> None:
    code = """
out = request(0, flags=F.OUTPUT)
new, old = request(1, flags=F.INPUT | F.EDGE_RISING, event_buffer_size=3), None
for _ in range(5):
    put(out, 1), put(out, 0)
print([at.seqno for at in events(new, 99)])
os.close(new)
old = event(1)
for _ in range(9):
    put(out, 1), put(out, 0)
print(len(events(old, 99, gpio.OldLineEvent)))
"""
    assert python(code) == ["[2, 3, 4, 5]", "16"]  # a power of two has room


def test_watching_lines(python: Python) -> None:
    code = """
print(info(0, gpio.V2_GET_LINEINFO_WATCH), info(1, gpio.V2_GET_LINEINFO_WATCH)[0])
print(info(0, gpio.V2_GET_LINEINFO_WATCH), info(8, gpio.V2_GET_LINEINFO_WATCH))
print(call(chip, gpio.GET_LINEINFO_WATCH, gpio.OldLineInfo(offset=2)))
fd = request(0, 1, 2, flags=F.INPUT, consumer=b"me")
call(fd, gpio.V2_LINE_SET_CONFIG, gpio.LineConfig(flags=F.OUTPUT))
for offset in (1, 1, 8):
    print(call(chip, gpio.GET_LINEINFO_UNWATCH, ctypes.c_uint32(offset)))
os.close(fd)
print(info(0)[2])
for at in events(chip, 10, gpio.LineInfoChanged):
    print(at.event_type, at.info.offset, at.info.consumer, F(at.info.flags).name)
old = os.open("/dev/gpiochip9", 0)
call(old, gpio.GET_LINEINFO_WATCH, gpio.OldLineInfo(offset=2))
fd = handle(2, flags=2)
for at in events(old, 10, gpio.OldLineInfoChanged):
    print(at.event_type, at.info.offset, at.info.consumer, bin(at.info.flags))
"""
    assert python(code) == [
        "('A0', '', 'INPUT') A1",
        "EBUSY EINVAL",
        "EPERM",
        "c_uint(1)",
        "EBUSY",
        "EINVAL",
        "OUTPUT",
        "1 0 b'me' USED|INPUT",
        "1 1 b'me' USED|INPUT",
        "3 0 b'me' USED|OUTPUT",
        "3 1 b'me' USED|OUTPUT",
        "2 0 b'' OUTPUT",
        "1 2 b'?' 0b11",
    ]
