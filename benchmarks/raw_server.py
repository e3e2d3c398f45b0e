"""The least that a Python program has to do to serve a file: a loop on /dev/fuse, by hand.

    python raw_server.py MOUNTPOINT

What a library adds to that is the difference to this one. It reads and writes what
libfuse_server.c does, in one thread, and needs root. Prints "ready" once it is mounted; SIGTERM
unmounts it and ends it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
import sys

from recuse.wire.filesystem import fuse_attr, fuse_attr_out, fuse_entry_out
from recuse.wire.fuse import (
    FOPEN_DIRECT_IO,
    FUSE_DESTROY,
    FUSE_FORGET,
    FUSE_GETATTR,
    FUSE_INIT,
    FUSE_LOOKUP,
    FUSE_MAX_PAGES,
    FUSE_OPEN,
    FUSE_READ,
    FUSE_RELEASE,
    FUSE_WRITE,
    fuse_init_out,
    fuse_open_out,
)

LARGEST = 1 << 20
ANSWERS = {size: b"R" * size for size in (16, 4096, 131072, LARGEST)}
HEADER = struct.Struct("=IIQQ")
REPLY = struct.Struct("=IiQ")
SIZE_AT = 40 + 16
"""Where ``fuse_read_in`` and ``fuse_write_in`` have the size."""
SIZE = struct.Struct("=I")

_libc = ctypes.CDLL(None, use_errno=True)


def attributes(node: int) -> fuse_attr:
    if node == 1:
        return fuse_attr(ino=1, mode=stat.S_IFDIR | 0o755, nlink=2)
    return fuse_attr(ino=2, mode=stat.S_IFREG | 0o666, nlink=1, size=LARGEST)


def answer(opcode: int, node: int, message: bytes) -> bytes | int:
    """What is said to everything but reads and writes: a reply, or an errno."""
    if opcode == FUSE_INIT:
        return fuse_init_out(
            major=7, minor=31, max_readahead=1 << 17, max_write=LARGEST, max_pages=256,
            flags=FUSE_MAX_PAGES,
        ).pack()  # fmt: skip
    if opcode == FUSE_LOOKUP:
        if message[40:] != b"bench\0":
            return errno.ENOENT
        return fuse_entry_out(
            nodeid=2, entry_valid=3600, attr_valid=3600, attr=attributes(2)
        ).pack()
    if opcode == FUSE_GETATTR:
        return fuse_attr_out(attr_valid=3600, attr=attributes(node)).pack()
    if opcode == FUSE_OPEN:
        return fuse_open_out(open_flags=FOPEN_DIRECT_IO).pack()
    return b"" if opcode in (FUSE_RELEASE, FUSE_DESTROY) else errno.ENOSYS


def serve(device: int) -> None:
    """Answer until nothing is mounted any more."""
    read, write = os.read, os.writev
    while True:
        message = read(device, LARGEST + 4096)
        _, opcode, unique, node = HEADER.unpack_from(message)
        if opcode == FUSE_READ:
            (size,) = SIZE.unpack_from(message, SIZE_AT)
            data = ANSWERS.get(size) or b"R" * size
            write(device, (REPLY.pack(16 + size, 0, unique), data))
        elif opcode == FUSE_WRITE:
            data = message[SIZE_AT : SIZE_AT + 4] + bytes(4)
            write(device, (REPLY.pack(24, 0, unique), data))
        elif opcode != FUSE_FORGET:
            body = answer(opcode, node, message)
            if isinstance(body, int):
                write(device, (REPLY.pack(16, -body, unique),))
            else:
                write(device, (REPLY.pack(16 + len(body), 0, unique), body))
            if opcode == FUSE_DESTROY:
                return


def main() -> None:
    (mountpoint,) = sys.argv[1:]
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,max_read={LARGEST}"
    if _libc.mount(b"bench", mountpoint.encode(), b"fuse.bench", 0, options.encode()):
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        print("ready", flush=True)
        serve(device)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
    finally:
        _libc.umount2(mountpoint.encode(), 2)  # MNT_DETACH


if __name__ == "__main__":
    main()
