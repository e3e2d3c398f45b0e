"""Programs in the sandbox that serve devices at /dev/cuse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recuse import Sandbox
from recuse.kernel.char.devices import DYNAMIC_MAJORS
from recuse.runtime.room import no_room
from recuse.sandbox.arch import arch
from recuse.sandbox.files import pipe_end
from recuse.sandbox.vfs.device_files import majors_in_use
from tests.conftest import Needs

from ..patience import PATIENCE_S
from .conftest import Compiled, Shell

# A server without any library. `ready` is printed when the reply to CUSE_INIT has been taken.
SERVER = r"""
import errno, os, select, signal, struct, sys, threading

def attempt(function, *args):
    try:
        return function(*args)
    except OSError as error:
        return errno.errorcode[error.errno]

def request(message):
    length, opcode, unique = struct.unpack_from("=IIQ", message)
    assert length == len(message)
    return opcode, unique, message[40:]

def reply(unique, body=b"", error=0):
    return struct.pack("=IiQ", 16 + len(body), error, unique) + body

def begin(name, flags=0):
    channel = os.open("/dev/cuse", os.O_RDWR | flags)
    opcode, unique, body = request(os.read(channel, 1 << 17))
    assert opcode == 4096, opcode
    init = struct.pack("=8I40x", 7, 31, 0, 1, 65536, 65536, 0, 0)
    os.write(channel, reply(unique, init + b"DEVNAME=" + name + b"\0"))
    return channel

def serve(channel, read=b"data"):
    '''Answer until the end; returns what was asked.'''
    seen = []
    while True:
        try:
            opcode, unique, body = request(os.read(channel, 1 << 17))
        except OSError as error:
            return seen
        seen.append(opcode)
        if opcode == 14:
            answer = struct.pack("=QIi", 7, 0, 0)
        elif opcode == 15:
            (size,) = struct.unpack_from("=I", body, 16)
            answer = read[:size]
        elif opcode == 16:
            answer = struct.pack("=II", len(body) - 40, 0)
        else:
            answer = b""
        os.write(channel, reply(unique, answer))
        if opcode == 18:
            return seen
"""


@pytest.fixture
def machine() -> Iterator[Sandbox]:
    """A sandbox with nothing in it."""
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def server(machine: Sandbox) -> Shell:
    """Runs a script after SERVER; returns what it prints."""

    def run(script: str, *args: str) -> str:
        done = machine.run(
            [sys.executable, "-I", "-S", "-c", SERVER + script, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
        )
        output: str = done.stdout
        return output

    return run


def test_the_device_is_there_when_the_reply_has_been_written(server: Shell) -> None:
    output = server(
        "channel = begin(b'served')\n"
        "found = os.stat('/dev/served')\n"
        "print(oct(found.st_mode), os.major(found.st_rdev), 'served' in os.listdir('/dev'))\n"
        "os.close(channel)\n"
        "print(attempt(os.stat, '/dev/served'))\n"
    )
    lines = output.splitlines()
    free = next(major for major in DYNAMIC_MAJORS if major not in majors_in_use())
    assert lines[0] == f"0o20600 {free} True"
    # The close is noticed a moment later; whoever opens something then finds it gone.
    assert lines[1] == "ENOENT" or "stat_result" in lines[1]


def test_a_child_uses_what_its_parent_serves(server: Shell) -> None:
    output = server(
        "channel = begin(b'served')\n"
        "if os.fork() == 0:\n"
        "    os.close(channel)\n"
        "    f = os.open('/dev/served', os.O_RDWR)\n"
        "    print(os.read(f, 3), os.write(f, b'12345'), attempt(os.read, f, 99), flush=True)\n"
        "    os._exit(0)\n"
        "print(serve(channel), flush=True)\n"
    )
    assert sorted(output.splitlines()) == ["[14, 15, 16, 15, 18]", "b'dat' 5 b'data'"]


def test_what_the_channel_says_to_misuse(server: Shell) -> None:
    output = server(
        "channel = os.open('/dev/cuse', os.O_RDWR | os.O_NONBLOCK)\n"
        "print(attempt(os.read, channel, 100), attempt(os.write, channel, b'short'))\n"
        "print(attempt(os.write, channel, reply(12345)))\n"
        "opcode, unique, body = request(os.read(channel, 1 << 17))\n"
        "print(opcode, unique, len(body), attempt(os.read, channel, 1 << 17))\n"
        "print(attempt(os.write, channel, reply(unique) + b'!'))\n"
        "print(attempt(os.write, channel, reply(unique, b'x' * 10)))\n"
        "print(attempt(os.read, channel, 1 << 17), attempt(os.lseek, channel, 0, 0))\n"
        "print(select.select([channel], [channel], [], 0)[0] == [channel])\n"
        "import fcntl\n"
        "print(attempt(fcntl.ioctl, channel, 0x8004e500, struct.pack('=I', channel)))\n"
        "print(attempt(fcntl.ioctl, channel, 0x5401, bytes(64)))\n"
    )
    assert output == (
        "EINVAL EINVAL\nENOENT\n4096 2 16 EAGAIN\nEINVAL\nEINVAL\nENODEV ESPIPE\nTrue\n"
        "ENOTTY\nENOTTY\n"
    )


def test_requests_and_replies_go_through_pipes(server: Shell) -> None:
    """As libfuse sends them with splice(2)."""
    output = server(
        "channel = begin(b'served'); r, w = os.pipe(); one, two = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.close(channel)\n"
        "    os.write(1, os.read(os.open('/dev/served', os.O_RDWR), 4) + b'\\n'); os._exit(0)\n"
        "print(attempt(os.splice, channel, os.open('/dev/null', os.O_WRONLY), 1 << 17))\n"
        "print(attempt(os.splice, channel, r, 1 << 17), attempt(os.splice, w, channel, 9))\n"
        "print(attempt(os.splice, one, channel, 9, 0), attempt(os.splice, channel, w, 100, 0))\n"
        "size = os.splice(channel, w, 1 << 17)\n"
        "opcode, unique, body = request(os.read(r, 1 << 17)); print(opcode, size - len(body))\n"
        "answer = reply(unique, struct.pack('=QIi', 7, 0, 0)); os.write(two, answer)\n"
        "print(attempt(os.splice, one, channel, 999), os.splice(one, channel, len(answer)))\n"
        "size = os.splice(channel, w, 1 << 17)\n"
        "opcode, unique, body = request(os.read(r, 1 << 17)); print(opcode, flush=True)\n"
        "os.write(channel, reply(unique, b'pipe'))\n"
        "serve(channel)\n"
    )
    assert output == "EINVAL\nEBADF EBADF\nESPIPE EINVAL\n14 40\nEINVAL 32\n15\npipe\n"


def test_a_request_that_a_pipe_has_no_room_for_fails(server: Shell) -> None:
    output = server(
        "channel = begin(b'served'); r, w = os.pipe(); os.write(w, b'full')\n"
        "if os.fork() == 0:\n"
        "    os.close(channel); os.write(1, attempt(os.open, '/dev/served', 2).encode() + b'\\n')\n"
        "    os._exit(0)\n"
        "print(attempt(os.splice, channel, w, 1 << 17), os.read(r, 99)); os.wait()\n"
    )
    assert sorted(output.splitlines()) == ["EIO", "EIO b'full'"]


def test_poll_says_that_nothing_is_served_any_more(server: Shell) -> None:
    output = server(
        "channel = os.open('/dev/cuse', os.O_RDWR)\n"
        "poll = select.poll(); poll.register(channel, 0)\n"
        "print(poll.poll(0))\n"
        "opcode, unique, body = request(os.read(channel, 1 << 17))\n"
        "attempt(os.write, channel, reply(unique, b'x' * 72))\n"
        "print(poll.poll(0) == poll.poll() == [(channel, select.POLLERR)])\n"
    )
    assert output == "[]\nTrue\n"


def test_select_tells_when_there_is_a_request(server: Shell) -> None:
    output = server(
        "channel = begin(b'served', os.O_NONBLOCK)\n"
        "print(select.select([channel], [], [], 0)[0], attempt(os.read, channel, 1 << 17))\n"
        "if os.fork() == 0:\n"
        "    os.close(channel); f = os.open('/dev/served', os.O_RDWR); os.read(f, 1); os._exit(0)\n"
        "seen = []\n"
        "while 18 not in seen:\n"
        "    select.select([channel], [], [])\n"
        "    opcode, unique, body = request(os.read(channel, 1 << 17)); seen.append(opcode)\n"
        "    answer = {14: struct.pack('=QIi', 7, 0, 0), 15: b'x'}.get(opcode, b'')\n"
        "    os.write(channel, reply(unique, answer))\n"
        "    print(select.select([channel], [], [], 0)[0] in ([], [channel]), end=' ')\n"
        "print(seen, select.select([channel], [], [], 0)[0])\n"
    )
    lines = output.splitlines()
    assert lines[0] == "[] EAGAIN"
    assert lines[1] == "True True True [14, 15, 18] []"


def test_readers_and_writers_take_vectors(server: Shell) -> None:
    output = server(
        "channel = os.open('/dev/cuse', os.O_RDWR)\n"
        "parts = [bytearray(7), bytearray(40), bytearray(1 << 17)]\n"
        "size = os.readv(channel, parts)\n"
        "opcode, unique, body = request(b''.join(parts)[:size])\n"
        "init = struct.pack('=8I40x', 7, 31, 0, 1, 65536, 65536, 0, 0) + b'DEVNAME=vector\\0'\n"
        "print(os.writev(channel, [reply(unique, init)[:5], reply(unique, init)[5:]]))\n"
        "print(os.path.exists('/dev/vector'))\n"
    )
    assert output == f"{16 + 72 + len('DEVNAME=vector') + 1}\nTrue\n"


def test_a_signal_ends_a_wait_for_requests(server: Shell) -> None:
    output = server(
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True))\n"
        "class Stop(Exception): pass\n"
        "def stop(*_): raise Stop\n"
        "signal.signal(signal.SIGUSR2, stop)\n"
        "channel = begin(b'served'); me = os.getpid()\n"
        "handled, told = os.pipe()\n"
        "signal.signal(signal.SIGUSR1, lambda *_: os.write(told, b'1'))\n"
        "def waits():\n"
        "    with open(f'/proc/{me}/syscall') as call:\n"
        f"        return call.read().split()[0] == '{arch.SYSCALLS['read']}'\n"
        "try:\n"
        "    if os.fork() == 0:\n"
        "        os.close(channel)\n"
        "        while not waits(): pass\n"
        "        os.kill(me, signal.SIGUSR1); os.read(handled, 1)\n"  # and the read starts anew
        "        while not waits(): pass\n"
        "        os.kill(me, signal.SIGUSR2); os._exit(0)\n"
        "    os.read(channel, 1 << 17)\n"
        "except Stop: print('stopped')\n"
    )
    assert output == "stopped\n"


def test_a_killed_server_leaves_its_clients_with_an_error(server: Shell) -> None:
    output = server(
        "gate = os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    channel = begin(b'served'); os.write(gate[1], b'1')\n"
        "    opcode, unique, body = request(os.read(channel, 1 << 17))\n"
        "    os.write(channel, reply(unique, struct.pack('=QIi', 7, 0, 0)))\n"
        "    request(os.read(channel, 1 << 17)); os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.read(gate[0], 1)\n"
        "f = os.open('/dev/served', os.O_RDWR)\n"
        "print(attempt(os.read, f, 10)); os.waitpid(child, 0)\n"
        "print(attempt(os.read, f, 10), attempt(os.open, '/dev/served', os.O_RDWR))\n"
        "print('served' in os.listdir('/dev'))\n"
    )
    assert output == "ECONNABORTED\nENOTCONN ENOENT\nFalse\n"


def test_no_room_for_an_open_channel_is_said(server: Shell) -> None:
    output = server(
        "import resource\n"
        "free = os.dup(0); os.close(free)\n"
        "most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))\n"
        "print(attempt(os.open, '/dev/cuse', os.O_RDWR))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (free + 9, most))\n"
        "channel = begin(b'served'); print(os.path.exists('/dev/served'))\n"
    )
    assert output == "EMFILE\nTrue\n"


def test_no_room_for_one_in_the_supervisor_is_said_too(
    server: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(descriptor: int) -> None:
        raise no_room()

    with monkeypatch.context() as patch:
        patch.setattr(pipe_end, "check_room", none_left)
        output = server("print(attempt(os.open, '/dev/cuse', os.O_RDWR))\n")
    assert output == "ENFILE\n"
    assert server("begin(b'served'); print(os.path.exists('/dev/served'))\n") == "True\n"


def test_names_are_taken_once(server: Shell) -> None:
    output = server(
        "one = begin(b'served')\n"
        "other = os.open('/dev/cuse', os.O_RDWR | os.O_NONBLOCK)\n"
        "opcode, unique, body = request(os.read(other, 1 << 17))\n"
        "init = struct.pack('=8I40x', 7, 31, 0, 1, 65536, 65536, 0, 0) + b'DEVNAME=served\\0'\n"
        "print(attempt(os.write, other, reply(unique, init)), attempt(os.read, other, 1 << 17))\n"
        "os.close(other)\n"
        "print(os.path.exists('/dev/served'))\n"
    )
    assert output == "103 ENODEV\nTrue\n"


@pytest.fixture(scope="module", params=["libfuse3-dev", "libfuse-dev"])
def libfuse(
    request: pytest.FixtureRequest, needs: Needs, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Libfuse's own example of a CUSE server and its client, compiled from their package."""
    examples = f"/usr/share/doc/{request.param}/examples"
    library, server, client = {
        "libfuse3-dev": ("fuse3", "cuse", "cuse_client"),
        "libfuse-dev": ("fuse", "cusexmp", "fioclient"),  # version 2.9
    }[request.param]
    gcc = needs("gcc", "gcc")
    needs(f"{examples}/{server}.c", request.param)
    directory = tmp_path_factory.mktemp(library)
    find = [str(needs("pkg-config", "pkg-config")), "--cflags", "--libs", library]
    flags = subprocess.run(find, capture_output=True, text=True, check=True).stdout.split()
    for name, source in (("server", server), ("client", client)):
        argv = [str(gcc), "-w", f"-I{examples}", f"{examples}/{source}.c"]
        subprocess.run([*argv, "-o", str(directory / name), *flags], check=True)
    return directory


@pytest.mark.parametrize("options", ["-f -s", "-f", "-s", ""])
def test_libfuses_server_and_client(machine: Sandbox, libfuse: Path, options: str) -> None:
    script = f"""
cd {libfuse}
cp server served$$
./served$$ --name=example {options} {"&" if "-f" in options else ""}
while ! test -c /dev/example; do :; done
./client /dev/example s
printf 'hello world' | ./client /dev/example w 11
./client /dev/example r 5 6
./client /dev/example s 5
printf HE > /dev/example
head -c 5 /dev/example; echo
dd if=/dev/example bs=3 count=1 status=none; echo
# A signal between its look at the flag that ends it and its read is lost: the server's own mistake.
while test -c /dev/example; do pkill -x served$$; done
echo gone
"""
    done = machine.run(
        ["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.stdout == "0\nworldHEllo\nHEl\ngone\n", done.stderr
    assert "transferred 11 bytes (0 -> 11)" in done.stderr


# A server on the bare protocol, with no library whose habits the channel could be tied to.

BARE_CLIENTS = 12

BARE = """
exec 2>&1
"$SERVER" bare "$@" > "$OUT" & server=$!
while ! grep -q ready "$OUT"; do :; done
test -c /dev/bare || echo no device
"""
"""Starts it, in a shell whose arguments are the server's options."""


@pytest.fixture
def bare(machine: Sandbox, needs: Needs, compiled: Compiled, tmp_path: Path) -> Shell:
    """``bare(script, *options)``: what a shell prints that has started the server before."""
    needs("gcc", "gcc")
    environment = {
        **os.environ,
        "SERVER": compiled("bare_server"),
        "CLIENT": compiled("bare_client"),
        "OUT": str(tmp_path / "out"),
    }
    (tmp_path / "out").touch()

    def run(script: str, *options: str) -> str:
        done = machine.run(
            ["sh", "-c", BARE + script, "sh", *options],
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            env=environment,
        )
        # The shell says, or not, how its job has ended.
        output: str = done.stdout
        return output.replace("Killed\n", "")

    return run


@pytest.mark.slow
@pytest.mark.parametrize("vector", ["plain", "vector"])
@pytest.mark.parametrize("wait", ["block", "poll"])
@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_server_on_the_bare_protocol(bare: Shell, wait: str, vector: str, threads: str) -> None:
    script = f"""
echo hello > /dev/bare
cat /dev/bare
dd if=/dev/bare bs=2 count=2 status=none; echo
dd if=/dev/zero of=/dev/bare bs=100000 count=3 status=none
wc -c < /dev/bare
for number in $(seq {BARE_CLIENTS}); do
    "$CLIENT" /dev/bare check 20 & clients="$clients $!"
done
for client in $clients; do wait $client || echo a client has failed; done
"$CLIENT" /dev/bare 1
kill $server
wait $server
echo status $?
while test -c /dev/bare; do :; done
"$CLIENT" /dev/bare 1
"""
    # What is written in pieces of 65536 bytes is kept piece by piece.
    assert bare(script, wait, vector, threads) == (
        f"hello\nhell\n{100000 - 65536}\nfiles 1\nstatus 0\nopen: No such file or directory\n"
    )


@pytest.mark.parametrize("threads", ["1", "4"])
@pytest.mark.parametrize(("how", "status"), [("exits", 3), ("is killed", 137), ("SIGTERM", 0)])
def test_a_server_that_ends_in_the_middle_of_requests(
    bare: Shell, how: str, status: int, threads: str
) -> None:
    end = {"exits": '"$CLIENT" /dev/bare 3', "is killed": '"$CLIENT" /dev/bare 4'}.get(
        how, "kill $server"
    )
    script = f"""
for number in $(seq {BARE_CLIENTS}); do
    "$CLIENT" /dev/bare 2 & clients="$clients $!"
done
while ! "$CLIENT" /dev/bare 1 | grep -qx 'files {BARE_CLIENTS + 1}'; do :; done
{end}
wait $server
echo status $?
for client in $clients; do wait $client; done
test -e /dev/bare || echo gone
"""
    lines = bare(script, threads).splitlines()
    # Of each client one line: it had opened the device, and maybe not gone on to its ioctl.
    ended = [line for line in lines if line in ("ECONNABORTED 0", "ENOTCONN 0")]
    assert len(ended) == BARE_CLIENTS + (how != "SIGTERM")
    assert sorted(set(lines) - set(ended)) == ["gone", f"status {status}"]


def test_two_servers_on_the_bare_protocol_and_one_that_follows(bare: Shell) -> None:
    script = """
"$SERVER" bare > "$OUT.second"; echo status $?
cat "$OUT.second"
: > "$OUT.other"
"$SERVER" other > "$OUT.other" & other=$!
while ! grep -q ready "$OUT.other"; do :; done
echo one > /dev/bare; echo two > /dev/other; cat /dev/bare /dev/other
kill -KILL $server
wait $server
"$SERVER" bare > "$OUT" & server=$!
while ! grep -q ready "$OUT"; do :; done
cat /dev/bare; echo three > /dev/bare; cat /dev/bare /dev/other
kill $server $other
wait
"""
    assert bare(script) == "status 0\nready\none\ntwo\nthree\ntwo\n"
