"""What the tests of sockets share: a program, a table that can be waited for, raw ends."""

import contextlib
import os
import threading

from recuse.channel.packets import Packets
from recuse.kernel.caller import Caller
from recuse.kernel.devices import DeviceTable
from recuse.kernel.files import open_file
from recuse.kernel.operation import run
from recuse.wire.cuse import CUSE_INIT, cuse_init_in, cuse_init_out
from recuse.wire.fuse import (
    FUSE_KERNEL_MINOR_VERSION,
    FUSE_KERNEL_VERSION,
    fuse_in_header,
    fuse_out_header,
)

WAIT_S = 20
"""How long to wait for what must come; only a failure takes as long."""


class Table(DeviceTable):
    """A device table that tells when devices come and go."""

    def __init__(self):
        super().__init__(self._note, self._note)
        self._changed = threading.Condition()

    def _note(self, device):
        with self._changed:
            self._changed.notify_all()

    def wait(self, *names):
        """Wait until exactly these devices are there; return the first."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: sorted(device.name for device in self) == sorted(names), WAIT_S
            )
        return self.by_name(names[0]) if names else None


class Program:
    """Makes system calls on a device; its memory is one buffer at address 0."""

    def __init__(self, device, pid=1000):
        self.device = device
        self.content = bytearray(2 << 20)
        self.caller = Caller(pid, 1, 2, self)

    def read_memory(self, address, size):
        return bytes(self.content[address : address + size])

    def begin(self, operation):
        """Begin an operation; return a function that waits for its result or raises its error."""
        ended = threading.Event()
        outcome = []

        def done(result, error):
            outcome.append((result, error))
            ended.set()

        run(self.device.connection, operation, done)

        def wait():
            assert ended.wait(WAIT_S)
            ((result, error),) = outcome
            if error is not None:
                raise error
            return result

        wait.ended = ended.is_set
        return wait

    def open(self, flags=os.O_RDWR):
        self.file = self.begin(open_file(self.device, flags, self.caller))()
        return self

    def release(self):
        return self.begin(self.file.release())()

    def begin_read(self, size):
        return self.begin(self.file.read(self.caller, [(0, size)], None))

    def get(self, size):
        """Read so many bytes at most, and return them."""
        return bytes(self.content[: self.begin_read(size)()])

    def begin_write(self, data):
        self.content[: len(data)] = data
        return self.begin(self.file.write(self.caller, [(0, len(data))], None))

    def put(self, data):
        return self.begin_write(data)()

    # Of the memory, for the kernel half.

    def read(self, address, size):
        return self.read_memory(address, size)

    def write(self, address, data):
        self.content[address : address + len(data)] = data
        return len(data)

    def writable(self, address, size):
        return size


def message(unique, body=b"", opcode=0):
    """A request."""
    header = fuse_in_header(len=40 + len(body), opcode=opcode, unique=unique)
    return header.pack() + body


def init_request():
    offer = cuse_init_in(major=FUSE_KERNEL_VERSION, minor=FUSE_KERNEL_MINOR_VERSION)
    return message(2, offer.pack(), CUSE_INIT)


def reply(unique, payload=b"", error=0):
    return fuse_out_header(len=16 + len(payload), error=error, unique=unique).pack() + payload


def init_reply(unique, name=b"raw", major=0, max_write=131072):
    answer = cuse_init_out(
        major=FUSE_KERNEL_VERSION,
        minor=FUSE_KERNEL_MINOR_VERSION,
        max_read=1 << 20,
        max_write=max_write,
        dev_major=major,
    )
    return reply(unique, answer.pack() + b"DEVNAME=" + name + b"\0")


def number_of(request):
    """The unique number of a request."""
    return fuse_in_header.unpack(request).unique


class RawServer:
    """One connection's server end, by hand."""

    def __init__(self, listener):
        listener.settimeout(WAIT_S)
        self.sock, _ = listener.accept()
        self.packets = Packets(self.sock)

    def get(self):
        request = self.packets.receive()
        assert request is not None
        return request

    def serve_init(self, name=b"raw", **options):
        self.packets.send(init_reply(number_of(self.get()), name, **options))
        return self

    def close(self):
        self.packets.close()


def ends(sock):
    """Whether the other end has ended the connection, by now or soon."""
    sock.settimeout(WAIT_S)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        while sock.recv(1 << 20):
            pass
    return True
