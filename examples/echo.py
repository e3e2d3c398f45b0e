"""A device that gives back what was written to it, byte for byte.

Try it::

    $ recuse run -d examples/echo.py -- sh
    $ echo hi >/dev/echo
    $ cat /dev/echo
    hi
"""

from threading import Lock

from recuse import Device, File, OpenRequest


class Echo(Device):
    """The device.  Bytes that nobody has read yet belong to it, not to one of its open files."""

    name = "echo"

    def __init__(self) -> None:
        self.pending = bytearray()
        # Programs may read and write at once, each in a thread of its own.
        self.lock = Lock()

    def open(self, request: OpenRequest) -> File:
        return EchoFile()


class EchoFile(File):
    """One open of it."""

    device: Echo

    def write(self, data: bytes, offset: int) -> None:
        with self.device.lock:
            self.device.pending += data

    def read(self, size: int, offset: int) -> bytes:
        """Return the oldest bytes.  No bytes mean the end of the file: `cat` stops."""
        with self.device.lock:
            oldest = bytes(self.device.pending[:size])
            del self.device.pending[:size]
        return oldest
