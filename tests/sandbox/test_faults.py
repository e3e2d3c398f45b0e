"""Device servers that die, hang, close, answer twice or answer garbage in the middle of a request.

The server knows the protocol and nothing else: once at /dev/cuse in the sandbox, once as a process
of its own at a socket; and once it is a Python device in such a process.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from recuse.channel.socket import Remote
from recuse.sandbox import Sandbox

from ..patience import PATIENCE_S
from .conftest import Clients, Fifo, Shells, Start

Serve = Callable[[str, str], AbstractContextManager[tuple[Sandbox, subprocess.Popen[bytes]]]]


# Its arguments: the socket's path, or nothing for /dev/cuse; what it does wrong, and when.
SERVER = r"""
import os, signal, socket, struct, sys

path, fault, moment = sys.argv[1:]
OPCODES = {
    "open": 14, "read": 15, "write": 16, "release": 18, "ioctl": 39, "ioctl again": 39, "poll": 40
}
if path:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    connection, _ = listener.accept()
    os.unlink(path)
    channel = connection.detach()
    listener.close()
else:
    channel = os.open("/dev/cuse", os.O_RDWR)

def reply(unique, body=b"", error=0):
    try:
        os.write(channel, struct.pack("=IiQ", 16 + len(body), error, unique) + body)
    except OSError as error:
        pass  # refused, or the client is gone

def go_wrong(unique, answer):
    if fault == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "closes":
        os.close(channel)
        signal.pause()
    if fault == "hangs":
        print("hangs", flush=True)
        signal.pause()
    if fault == "answers twice":
        reply(unique, answer)
        reply(unique, answer)
    if fault == "answers garbage":
        reply(unique + 100, answer)       # to a request that there is not
        reply(unique, error=5)            # errors are negative
        reply(unique, error=-512)         # the kernel's own
        reply(unique, answer, error=-5)   # an error has no payload
        reply(0, bytes(8), error=77)      # a notification that there is not
        reply(unique, b"x" * 1000)        # more than there may be

round = 0
while True:
    message = os.read(channel, 1 << 18)
    if not message:
        sys.exit()
    length, opcode, unique = struct.unpack_from("=IIQ", message)
    body = message[40:]
    answer = b""
    if opcode == 4096:
        answer = struct.pack("=8I40x", 7, 31, 0, 1, 65536, 65536, 0, 0) + b"DEVNAME=bad\0"
        reply(unique, answer)
        if not path:
            print("ready", flush=True)
        continue
    if opcode == 14:
        answer = struct.pack("=QIi", 7, 0, 0)
    elif opcode == 15:
        answer = b"data"[: struct.unpack_from("=I", body, 16)[0]]
    elif opcode == 16:
        answer = struct.pack("=II", len(body) - 40, 0)
    elif opcode == 39:
        fh, flags, command, argument, in_size, out_size = struct.unpack_from("=QIIQII", body)
        round = 0 if in_size else 1
        if round == 1:  # once more, with the argument
            answer = struct.pack("=iIIIQQ", 0, 4, 1, 0, argument, 8)
        else:
            answer = struct.pack("=iIII", 42, 0, 0, 0)
    elif opcode == 40:
        answer = struct.pack("=II", 1, 0)
    second = opcode == 39 and round == 0
    if fault and OPCODES[moment] == opcode and second == (moment == "ioctl again"):
        go_wrong(unique, answer)
        fault = ""
    else:
        reply(unique, answer)
"""

# A Python device of which a method goes wrong; arguments as above.
DEVICE = r"""
import os, select, signal, sys, threading
from recuse import Device, File
from recuse.channel.listen import DeviceServer

path, fault, moment = sys.argv[1:]

def at(now):
    if now == moment:
        if fault == "hangs":
            print("hangs", flush=True)
            threading.Event().wait()
        if fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=server.close).start()
        threading.Event().wait()

class BadFile(File):
    def read(self, size, offset):
        at("read")
        return b"data"[:size]
    def write(self, data, offset):
        at("write")
    def unknown_ioctl(self, command, argument, memory):
        at("ioctl")
        memory.read(argument, 8)
        at("ioctl again")
        return 42
    def poll(self, events):
        at("poll")
        return select.POLLIN & events
    def release(self):
        at("release")

class Bad(Device):
    name = "bad"
    def open(self, request):
        at("open")
        return BadFile()

server = DeviceServer(Bad(), path)
print("ready", flush=True)
signal.pause()
"""

CLIENT = """
import functools, select
print = functools.partial(print, flush=True)
moment = args[0]
def open_it():
    number = attempt(os.open, '/dev/bad', os.O_RDWR)
    return 'opened' if isinstance(number, int) else number
def poll():
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return [{select.POLLIN: 'IN', select.POLLERR: 'ERR'}.get(e, e) for _, e in poller.poll(20000)]
if moment == 'open':
    print(open_it())
else:
    fd = os.open('/dev/bad', os.O_RDWR)
    print({
        'read': lambda: attempt(os.read, fd, 4),
        'write': lambda: attempt(os.write, fd, b'1234'),
        'ioctl': lambda: call('ioctl', fd, 1, b'12345678'),
        'poll': poll,
        'release': lambda: attempt(os.close, os.dup(fd)) or attempt(os.close, fd),
    }[moment.split()[0]]())
    if moment != 'release':
        again = call('ioctl', fd, 1, b'12345678')
        print(attempt(os.read, fd, 4), attempt(os.write, fd, b'1'), again)
print(open_it())
echo = os.open('/dev/echo', os.O_RDWR)
print(os.write(echo, b'hello'), os.read(echo, 9))
"""

MOMENTS = ["open", "read", "write", "ioctl", "ioctl again", "poll", "release"]
RESULTS = {
    "read": "b'data'",
    "write": "4",
    "ioctl": "42",
    "poll": "['IN']",
    "release": "None",
    "open": "opened",
}


@pytest.fixture(params=["dev-cuse", "socket", "device"])
def serve(request: pytest.FixtureRequest, echo: Fifo, tmp_path: Path) -> Serve:
    """``serve(fault, moment)``: a sandbox, and the server that goes wrong."""
    path = str(tmp_path / "socket")

    @contextlib.contextmanager
    def serve(fault: str, moment: str) -> Iterator[tuple[Sandbox, subprocess.Popen[bytes]]]:
        with contextlib.ExitStack() as stack:

            def ready(server: subprocess.Popen[bytes]) -> None:
                stack.enter_context(server)
                stack.callback(server.kill)
                assert server.stdout is not None
                assert server.stdout.readline() == b"ready\n"

            if request.param == "dev-cuse":
                sandbox = stack.enter_context(Sandbox(echo))
                server: subprocess.Popen[bytes]
                argv = [sys.executable, "-I", "-S", "-c", SERVER, "", fault, moment]
                server = sandbox.popen(argv, stdout=subprocess.PIPE)
                ready(server)
            else:
                script = SERVER if request.param == "socket" else DEVICE
                argv = [sys.executable, "-c", script, path, fault, moment]
                server = subprocess.Popen(argv, stdout=subprocess.PIPE)
                ready(server)
                sandbox = stack.enter_context(Sandbox(echo, Remote(path)))
            yield sandbox, server

    return serve


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", ["dies", "closes"])
def test_the_server_goes(serve: Serve, clients: Clients, fault: str, moment: str) -> None:
    with serve(fault, moment) as (sandbox, _):
        lines = clients(sandbox)(CLIENT, moment).splitlines()
    assert lines[0] == {"release": "None", "poll": "['ERR']"}.get(moment, "ECONNABORTED")
    assert lines[-1] == "5 b'hello'"
    assert lines[-2] in {"ENOENT", "ENODEV"}
    if len(lines) > 3:
        assert set(lines[1].split()) <= {"ENODEV", "ENOTCONN"}
    assert len(lines) == 3 + (moment not in {"open", "release"})


@pytest.mark.parametrize("serve", ["dev-cuse", "socket"], indirect=True)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("fault", ["answers twice", "answers garbage"])
def test_the_server_stays(serve: Serve, clients: Clients, fault: str, moment: str) -> None:
    with serve(fault, moment) as (sandbox, _):
        lines = clients(sandbox)(CLIENT, moment).splitlines()
    good = RESULTS[moment.split(maxsplit=1)[0]]
    failed = "['ERR']" if moment == "poll" else "EIO"
    assert lines[0] == (good if fault == "answers twice" or moment == "release" else failed)
    if moment not in {"open", "release"}:
        assert lines[1] == "b'data' 1 42"
    assert lines[-2:] == ["opened", "5 b'hello'"]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_the_server_hangs(
    serve: Serve, start: Start, shells: Shells, clients: Clients, moment: str
) -> None:
    with serve("hangs", moment) as (sandbox, server):
        with start(sandbox, CLIENT, moment) as killed, start(sandbox, CLIENT, moment) as other:
            assert server.stdout is not None
            assert server.stdout.readline() == b"hangs\n"
            killed.kill()
            assert killed.wait(PATIENCE_S) == -signal.SIGKILL
            assert shells(sandbox)("echo x > /dev/echo; cat /dev/echo; ls /dev/bad") == (
                "x\n/dev/bad\n"
            )
            server.kill()
            other.wait(PATIENCE_S)
        assert clients(sandbox)("print(attempt(os.stat, '/dev/bad'))") == "ENOENT\n"


HERE = r"""
import os, signal, sys, threading
from recuse import Device, File
from recuse.sandbox import Sandbox

class BadFile(File):
    def read(self, size, offset):
        if sys.argv[1] == "at once":
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
        threading.Event().wait()

class Bad(Device):
    name = "bad"
    def open(self, request):
        return BadFile()

client = '''
import errno, mmap, os, sys
fd = os.open("/dev/bad", os.O_RDWR)
with open(sys.argv[1], "r+b") as file:
    told = mmap.mmap(file.fileno(), 6)  # write fails as well then
try:
    os.read(fd, 1)
except OSError as error:
    told[:] = errno.errorcode[error.errno].encode()
'''
with Sandbox(Bad()) as sandbox:
    sandbox.run([sys.executable, "-I", "-S", "-c", client, sys.argv[2]])
"""


@pytest.mark.parametrize("when", ["at once", "while it blocks"])
def test_the_process_of_the_sandbox_itself_dies(when: str, tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.write_bytes(b"none..")
    done = subprocess.run(
        [sys.executable, "-c", HERE, when, told],
        stdout=subprocess.PIPE,  # ends when the program has ended too
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert told.read_bytes() == b"ENOSYS"
