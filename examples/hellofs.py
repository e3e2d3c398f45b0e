"""A filesystem with two files: a text, and a clock.

Try it on an empty directory, here `files`::

    $ recuse mount --private examples/hellofs.py files -- bash
    $ cat files/hello
    Hello, world!
    $ wc -c <files/clock
    9
"""

import time

from recuse import Directory, Filesystem, RegularFile


class Clock(RegularFile):
    """The time when it is read.  Its size is not known before."""

    size = None

    def read(self, size: int, offset: int) -> bytes:
        return time.strftime("%H:%M:%S\n").encode()[offset : offset + size]


class Hello(Filesystem):
    """The filesystem."""

    name = "hello"
    root = Directory({"hello": RegularFile(b"Hello, world!\n"), "clock": Clock()})
