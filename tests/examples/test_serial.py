"""The serial port with the programs that people use on serial ports: stty, picocom, pyserial."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from recuse import Sandbox
from recuse.cli.spec import load, parse
from tests.conftest import Needs

from .conftest import ROOT, TIMEOUT_S, Run

Shell = Callable[..., bytes]

SPEC = str(ROOT / "examples" / "serial.py")


def in_sandbox(specs: Sequence[str], argv: Sequence[str], **options: Any) -> str:
    """What a program prints that finds several ports; it must not fail."""
    with Sandbox(*(load(parse(SPEC + spec)) for spec in specs)) as sandbox:
        done = sandbox.run(argv, capture_output=True, timeout=TIMEOUT_S, text=True, **options)
    assert (done.stderr, done.returncode) == ("", 0)
    output: str = done.stdout
    return output


def cable(script: str, **options: Any) -> str:
    """What a shell prints that finds two ports with a cable between them."""
    return in_sandbox([",cable=a", ",cable=a,name=ttyR1"], ["sh", "-c", script], **options)


@pytest.fixture
def python(needs: Needs) -> Callable[[Sequence[str], str], str]:
    """`python(specs, script)`: what a script prints that finds ports, and has pyserial."""
    needs("/usr/lib/python3/dist-packages/serial/__init__.py", "python3-serial")
    interpreter = str(needs("/usr/bin/python3", "python3"))
    head = "import serial\n"
    return lambda specs, script: in_sandbox(specs, [interpreter, "-c", head + script])


def test_stty(shell: Shell) -> None:
    """It opens the device, and asks descriptor 0, to which it has duplicated it."""
    script = "stty -F /dev/ttyR0 -a | head -n 1; stty -F /dev/ttyR0 {}; stty -F /dev/ttyR0 -a"
    before = shell("serial.py", script.format("sane")).decode().splitlines()
    assert before[0] == "speed 9600 baud; rows 0; columns 0; line = 0;"
    assert "hupcl -cstopb cread clocal -crtscts" in " ".join(before)
    assert "isig icanon iexten echo" in " ".join(before)
    settings = "115200 parenb cs7 cstopb crtscts min 5 time 7 intr ^X rows 3 cols 4 -echo"
    after = " ".join(shell("serial.py", script.format(settings)).decode().splitlines()[1:])
    for words in (
        "speed 115200 baud; rows 3; columns 4; line = 0; intr = ^X; quit = ^\\;",
        "min = 5; time = 7; parenb -parodd -cmspar cs7 hupcl cstopb cread clocal crtscts",
        "-isig -icanon -iexten -echo",
    ):
        assert words in after


def test_stty_saves_and_restores(shell: Shell) -> None:
    script = "saved=$(stty -F /dev/ttyR0 -g); stty -F /dev/ttyR0 cooked crtscts; "
    script += 'test "$saved" != "$(stty -F /dev/ttyR0 -g)"; stty -F /dev/ttyR0 $saved; '
    script += 'test "$saved" = "$(stty -F /dev/ttyR0 -g)" && echo the same'
    assert shell("serial.py", script) == b"the same\n"


def test_it_is_a_terminal(shell: Shell) -> None:
    assert shell("serial.py", "tty </dev/ttyR0; test -t 0 </dev/ttyR0") == b"/dev/ttyR0\n"


def test_the_loopback_plug(shell: Shell) -> None:
    assert shell("serial.py", "echo hello >/dev/ttyR0; head -n 1 /dev/ttyR0") == b"hello\n"


def test_picocom(run: Run, needs: Needs) -> None:
    needs("picocom", "picocom")
    done = run("serial.py", "picocom", "-q", "-x", "200", "/dev/ttyR0", stdin=b"through the plug\n")
    assert (done.stderr, done.stdout.strip()) == (b"", b"through the plug")


def test_picocom_sets_the_speed(needs: Needs) -> None:
    """And its end sets the old one again."""
    needs("picocom", "picocom")
    program = "picocom -q -x 2000 -b 57600 -p 2 -y e"
    found = cable(
        "{ read line; echo $line; stty -F /dev/ttyR0 -a | tr '\\n' ' '; echo answer >&3; }"
        f" <>/dev/ttyR1 3>/dev/ttyR1 & echo question | {program} /dev/ttyR0; wait;"
        " stty -F /dev/ttyR0 speed"
    )
    assert found.startswith("question\nspeed 57600 baud;")
    assert " parenb -parodd -cmspar cs8 hupcl cstopb cread " in found
    assert found.endswith("answer\n9600\n")


def test_pyserial(python: Callable[[Sequence[str], str], str]) -> None:
    script = """
with serial.Serial("/dev/ttyR0", 230400, timeout=60, exclusive=True) as port:
    print(port.write(b"abc"), port.in_waiting, port.out_waiting, port.read(3))
    port.write(b"one\\ntwo\\n")
    print(port.readline(), port.in_waiting)
    port.reset_input_buffer()
    print(port.in_waiting)
    port.timeout = 0.05
    print(port.read(2))
    port.timeout = 60
    print(port.cts, port.dsr, port.cd, port.ri)
    port.rts = False
    print(port.cts, port.dsr)
    port.rts, port.dtr = True, False
    print(port.cts, port.dsr, port.cd)
    port.send_break(0)
    print(port.read(1))
    port.flush()
    port.baudrate = 12345
    port.stopbits, port.parity, port.bytesize = 2, "O", 7
    data = bytes(range(256)) * 200
    print(port.write(data), port.read(len(data)) == data)
"""
    assert python([""], script).splitlines() == [
        "3 3 0 b'abc'",
        "b'one\\n' 4",
        "0",
        "b''",
        "True True True False",
        "False True",
        "True False False",
        "b'\\x00'",
        "51200 True",
    ]


def test_pyserial_with_a_cable(python: Callable[[Sequence[str], str], str]) -> None:
    """More than the buffers hold; and what one end says on its lines, the other sees."""
    script = """
import threading
here, there = (serial.Serial(f"/dev/ttyR{n}", timeout=60, write_timeout=60) for n in (0, 1))
data = bytes(range(256)) * 800
sender = threading.Thread(target=here.write, args=[data])
sender.start()
print(there.read(len(data)) == data)
sender.join()
there.dtr = False
print(here.dsr, here.cd, here.cts, there.dsr)
there.close()
while here.dsr or here.cts: pass  # close does not wait until the device hears of it
print(here.dsr, here.cts)
"""
    specs = [",cable=b", ",cable=b,name=ttyR1"]
    assert python(specs, script) == "True\nFalse False True True\nFalse False\n"


READS = """
import errno, fcntl, os, termios, threading

port = os.open("/dev/ttyR0", os.O_RDWR)

def settings(least, time):
    found = termios.tcgetattr(port)
    found[6][termios.VMIN], found[6][termios.VTIME] = least, time
    termios.tcsetattr(port, termios.TCSANOW, found)

def read(*pieces):
    for piece in pieces:
        os.write(port, piece)
    return os.read(port, 8)

settings(0, 0)
print(read(), read(b"a"))
settings(0, 1)
print(read(), read(b"a"))
settings(3, 0)
threading.Timer(0.05, os.write, [port, b"bc"]).start()
print(read(b"a"))
print(read(b"0123456789"), os.read(port, 2))
settings(3, 1)
print(read(b"a"), read(b"abcd"))
settings(1, 0)
fcntl.fcntl(port, fcntl.F_SETFL, os.O_NONBLOCK)
try:
    print(read())
except BlockingIOError:
    print("EAGAIN", os.write(port, bytes(70000)))
try:
    os.write(port, b"a")
except BlockingIOError:
    print("EAGAIN")
"""


def test_how_many_bytes_a_read_waits_for() -> None:
    assert in_sandbox([""], [sys.executable, "-c", READS]).splitlines() == [
        "b'' b'a'",
        "b'' b'a'",
        "b'abc'",
        "b'01234567' b'89'",
        "b'a' b'abcd'",
        "EAGAIN 65536",
        "EAGAIN",
    ]


def test_a_read_that_waits_is_ended(shell: Shell) -> None:
    assert shell("serial.py", "timeout 0.1 cat /dev/ttyR0 || echo $?") == b"124\n"


def test_flushing_and_breaks(shell: Shell) -> None:
    script = """
import os, sys, termios
port = os.open("/dev/ttyR0", os.O_RDWR | os.O_NONBLOCK)
def left():
    try:
        return os.read(port, 9)
    except BlockingIOError:
        return None
os.write(port, b"a"); termios.tcflush(port, termios.TCOFLUSH); print(left())
os.write(port, b"a"); termios.tcflush(port, termios.TCIFLUSH); print(left())
os.write(port, b"a"); termios.tcsetattr(port, termios.TCSAFLUSH, termios.tcgetattr(port))
print(left())
termios.tcsendbreak(port, 0); print(left())
termios.tcdrain(port); print(left())
found = termios.tcgetattr(port); found[0] |= termios.IGNBRK
termios.tcsetattr(port, termios.TCSADRAIN, found); termios.tcsendbreak(port, 0); print(left())
found[2] &= ~termios.CREAD; termios.tcsetattr(port, termios.TCSANOW, found)
print(os.write(port, b"a"), left())
"""
    done = shell("serial.py", f"exec {sys.executable} - <<'END'\n{script}END")
    assert done.decode().split() == [
        "b'a'",
        "None",
        "None",
        "b'\\x00'",
        "None",
        "None",
        "1",
        "None",
    ]


def test_a_third_port_with_a_cable_is_not_connected() -> None:
    specs = [",cable=c", ",cable=c,name=ttyR1", ",cable=c,name=ttyR2"]
    script = "echo x >/dev/ttyR2; head -n 1 /dev/ttyR2"
    assert in_sandbox(specs, ["sh", "-c", script]) == "x\n"
