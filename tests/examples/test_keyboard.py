"""The keyboard with evtest, python-evdev and plain reads."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any

import pytest

from recuse import Sandbox
from recuse.cli.spec import load, parse
from tests.conftest import Needs

from .conftest import ROOT, TIMEOUT_S

SPEC = str(ROOT / "examples" / "keyboard.py")
DEVICE = "/dev/input/event9"


@pytest.fixture
def keyboard() -> Any:
    """The keyboard; `Any`, as it is of a file that the tests import as `-d` does."""
    return load(parse(f"{SPEC}:Keyboard,title=a keyboard"))


@pytest.fixture
def sandbox(keyboard: Any) -> Iterator[Sandbox]:
    """With the keyboard, and a typist for it."""
    with Sandbox(keyboard, load(parse(f"{SPEC}:Typist"))) as sandbox:
        yield sandbox


@pytest.fixture
def python(sandbox: Sandbox, needs: Needs) -> Callable[[str], list[str]]:
    """`python(script)`: the lines that a script prints that has python-evdev, and `keyboard`."""
    needs("/usr/lib/python3/dist-packages/evdev/__init__.py", "python3-evdev")
    interpreter = str(needs("/usr/bin/python3", "python3"))
    head = f"import evdev, os, select\nkeyboard = evdev.InputDevice({DEVICE!r})\n"
    head += "def typed(text):\n    with open('/dev/typist', 'w') as file: file.write(text)\n"

    def python(script: str) -> list[str]:
        argv = [interpreter, "-c", head + script]
        done = sandbox.run(argv, capture_output=True, timeout=TIMEOUT_S, text=True)
        assert (done.stderr, done.returncode) == ("", 0)
        lines: list[str] = done.stdout.splitlines()
        return lines

    return python


def wait_for(output: IO[str], words: str) -> list[str]:
    """Lines up to the one with these words."""
    lines = []
    for line in output:
        lines.append(line.strip())
        if words in line:
            return lines
    raise AssertionError(f"{words} never came: {lines}")


def test_evtest(sandbox: Sandbox, keyboard: Any, needs: Needs) -> None:
    needs("evtest", "evtest")
    argv = ["stdbuf", "-oL", "evtest", DEVICE]
    with sandbox.popen(argv, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        head = wait_for(program.stdout, "Testing ... (interrupt to exit)")
        keyboard.type("a!")
        events = wait_for(program.stdout, "KEY_LEFTSHIFT), value 0")
        program.kill()
    assert head[:6] == [
        "Input driver version is 1.0.1",
        "Input device ID: bus 0x6 vendor 0x1209 product 0x1 version 0x1",
        'Input device name: "a keyboard"',
        "Supported events:",
        "Event type 0 (EV_SYN)",
        "Event type 1 (EV_KEY)",
    ]
    assert [line.split("(")[1] for line in head if line.startswith("Event code 4")] == [
        *["KEY_3)", "KEY_APOSTROPHE)", "KEY_GRAVE)", "KEY_LEFTSHIFT)", "KEY_BACKSLASH)"],
        *["KEY_Z)", "KEY_X)", "KEY_C)", "KEY_V)", "KEY_B)", "KEY_N)"],
    ]
    assert head[-6:-2] == [
        "Event type 17 (EV_LED)",
        "Event code 0 (LED_NUML) state 0",
        "Event code 1 (LED_CAPSL) state 0",
        "Event code 2 (LED_SCROLLL) state 0",
    ]
    found = [line.partition(", ")[2] for line in events]
    assert found[1::2] == ["-------------- SYN_REPORT ------------"] * 5
    assert found[::2] == [
        "type 1 (EV_KEY), code 30 (KEY_A), value 1",
        "type 1 (EV_KEY), code 30 (KEY_A), value 0",
        "type 1 (EV_KEY), code 42 (KEY_LEFTSHIFT), value 1",
        "type 1 (EV_KEY), code 2 (KEY_1), value 1",
        "type 1 (EV_KEY), code 2 (KEY_1), value 0",
        "type 1 (EV_KEY), code 42 (KEY_LEFTSHIFT), value 0",
    ]


def test_evtest_queries(sandbox: Sandbox, keyboard: Any, needs: Needs) -> None:
    """Its exit status says whether a key is down, 10, or a light on."""
    needs("evtest", "evtest")

    def query(kind: str, name: str) -> int:
        argv = ["evtest", "--query", DEVICE, kind, name]
        return sandbox.run(argv, timeout=TIMEOUT_S).returncode

    assert query("EV_KEY", "KEY_B") == 0
    keyboard.press(48)
    assert query("EV_KEY", "KEY_B") == 10
    assert query("EV_KEY", "KEY_A") == 0
    assert query("EV_LED", "LED_CAPSL") == 0
    keyboard.lights.add(1)
    assert query("EV_LED", "LED_CAPSL") == 10
    assert query("EV_SND", "SND_BELL") == 0


def test_what_evdev_knows_of_it(python: Callable[[str], list[str]]) -> None:
    script = """
print(keyboard.name, keyboard.phys, repr(keyboard.uniq), hex(keyboard.version))
print(keyboard.info)
print({kind: len(codes) for kind, codes in keyboard.capabilities().items()})
print(keyboard.input_props(), keyboard.leds(), keyboard.active_keys(), keyboard.ff_effects_count)
"""
    assert python(script) == [
        "a keyboard recuse/input0 '' 0x10001",
        "bus: 0006, vendor 1209, product 0001, version 0001",
        "{0: 3, 1: 51, 17: 3}",
        "[] [] [] 0",
    ]


def test_typing(python: Callable[[str], list[str]]) -> None:
    script = """
typed("Hi\\n")
select.select([keyboard], [], [], 60)
for event in keyboard.read():
    if event.type == evdev.ecodes.EV_KEY:
        print(evdev.ecodes.KEY[event.code], event.value)
print(keyboard.read_one())
typed("x" * 100)
print(sum(event.type == evdev.ecodes.EV_KEY for event in keyboard.read()))
try:
    typed("\\N{SNOWMAN}")
except OSError as error:
    print(error.strerror)
"""
    assert python(script) == [
        *["KEY_LEFTSHIFT 1", "KEY_H 1", "KEY_H 0", "KEY_LEFTSHIFT 0", "KEY_I 1", "KEY_I 0"],
        *["KEY_ENTER 1", "KEY_ENTER 0", "None", "32", "Invalid argument"],
    ]


def test_a_reader_that_waits(python: Callable[[str], list[str]]) -> None:
    """In read(2), and in select(2): nothing is there before the other one types."""
    script = """
import threading
print(select.select([keyboard], [], [], 0))
typing = threading.Timer(0.1, typed, ["a"])
typing.start()
print([event.code for event in [next(keyboard.read_loop())]])
typing.join()
while keyboard.read_one():
    pass
os.set_blocking(keyboard.fd, True)
typing = threading.Timer(0.1, typed, ["b"])
typing.start()
print(len(os.read(keyboard.fd, 24)))
typing.join()
"""
    assert python(script) == ["([], [], [])", "[30]", "24"]


def test_lights(python: Callable[[str], list[str]]) -> None:
    script = """
other = evdev.InputDevice(keyboard.path)
keyboard.set_led(evdev.ecodes.LED_CAPSL, 1)
print(keyboard.leds(verbose=True))
print([(event.type, event.code, event.value) for event in other.read()])
keyboard.set_led(evdev.ecodes.LED_CAPSL, 1)
print(keyboard.leds(), other.read_one())
keyboard.set_led(evdev.ecodes.LED_CAPSL, 0)
print(keyboard.leds())
"""
    assert python(script) == ["[('LED_CAPSL', 1)]", "[(17, 1, 1), (0, 0, 0)]", "[1] None", "[]"]


def test_grabbing(python: Callable[[str], list[str]]) -> None:
    script = """
other = evdev.InputDevice(keyboard.path)
keyboard.grab()
for call in (other.grab, other.ungrab):
    try:
        call()
    except OSError as error:
        print(error.strerror)
typed("a")
print(len(list(keyboard.read())), other.read_one())
keyboard.close()
keyboard = evdev.InputDevice(other.path)  # by then, the close has been heard of
typed("b")
print(next(other.read()).code)
other.grab()
other.ungrab()
"""
    assert python(script) == ["Device or resource busy", "Invalid argument", "4 None", "48"]


CLOCKS = """
import errno, fcntl, os, struct, time
file = os.open("/dev/input/event9", os.O_RDONLY | os.O_NONBLOCK)
def key():
    with open("/dev/typist", "w") as typist:
        typist.write("a")
key()
clocks = {1: time.CLOCK_MONOTONIC, 0: time.CLOCK_REALTIME, 7: time.CLOCK_BOOTTIME}
for number, clock in clocks.items():
    fcntl.ioctl(file, 0x400445A0, struct.pack("i", number))
    before = time.clock_gettime(clock)
    key()
    events = os.read(file, 4096)
    seconds, microseconds = struct.unpack_from("qq", events)
    print(len(events), before - 0.001 < seconds + microseconds / 1e6 < time.clock_gettime(clock))
for command, argument in ((0x400445A0, struct.pack("i", 5)), (0x80184540, bytes(24)), (0x4599, 0)):
    try:
        fcntl.ioctl(file, command, argument)
    except OSError as error:
        print(errno.errorcode[error.errno])
try:
    os.read(file, 23)
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def test_clocks_and_errors(sandbox: Sandbox) -> None:
    argv = [sys.executable, "-c", CLOCKS]
    done = sandbox.run(argv, capture_output=True, timeout=TIMEOUT_S, text=True)
    assert done.stderr == ""
    assert done.stdout.split() == ["96", "True"] * 3 + ["EINVAL"] * 4


def test_who_is_too_slow_is_told_so(sandbox: Sandbox, keyboard: Any) -> None:
    script = f"exec 3<{DEVICE}; echo; read _; dd bs=24 count=1 status=none <&3 | od -A n -t u2 -w24"
    argv = ["sh", "-c", script]
    pipe = subprocess.PIPE
    with sandbox.popen(argv, stdin=pipe, stdout=pipe, text=True) as program:
        assert program.stdout is not None
        program.stdout.readline()
        keyboard.type("a" * 300)
        found, _ = program.communicate("\n", timeout=TIMEOUT_S)
    assert found.split()[8:] == ["0", "3", "0", "0"]


def test_a_typist_without_a_keyboard() -> None:
    """In a process of its own, as the tests here make keyboards."""
    argv = [sys.executable, "-m", "recuse.cli.main", "run", "-d", f"{SPEC}:Typist", "--", "sh"]
    done = subprocess.run(
        [*argv, "-c", "echo x >/dev/typist"],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**os.environ, "LC_ALL": "C"},
    )
    assert "No such device or address" in done.stderr
