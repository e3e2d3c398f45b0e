"""Sections that end before there is a device."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import struct

from .kit import (
    BIG,
    FAILED,
    HUGE,
    MIN_READ,
    PAGE,
    Channel,
    Client,
    attempt,
    client_read,
    edge,
    errno_name,
    init_out,
    libc,
    libc_call,
    poll_state,
    reply,
    say,
    size_of,
    write_up_to_edge,
)


def section_open() -> None:
    """A channel of which nothing has been read."""
    channel = Channel()
    fd = channel.fd
    state = os.fstat(fd)
    say("it is", f"{stat.filemode(state.st_mode)[0]} {os.major(state.st_rdev)}:203")
    say("poll", poll_state(fd))
    say("lseek", attempt(os.lseek, fd, 0, os.SEEK_SET))
    say("fsync", attempt(os.fsync, fd))
    say("ftruncate", attempt(os.ftruncate, fd, 0))
    mapped = libc.mmap(None, PAGE, 1, mmap.MAP_SHARED, fd, 0)
    say("mmap", "works" if mapped != FAILED else errno_name(ctypes.get_errno()))
    other = Channel()
    for name, number in (("CLONE", 0x8004E500), ("TCGETS", 0x5401), ("_IO(0, 0)", 0)):
        argument = ctypes.c_uint32(other.fd)
        say(f"ioctl {name}", libc_call(libc.ioctl, fd, number, ctypes.addressof(argument)))
    argument = ctypes.c_uint32(fd)
    say("CLONE of itself", libc_call(libc.ioctl, fd, 0x8004E500, ctypes.addressof(argument)))
    say("CLONE, bad pointer", libc_call(libc.ioctl, fd, 0x8004E500, 8))
    other.close()
    one_way = os.open("/dev/cuse", os.O_RDONLY | os.O_NONBLOCK)
    say("O_RDONLY: read", size_of(attempt(os.read, one_way, MIN_READ)))
    say("O_RDONLY: write", attempt(os.write, one_way, reply(2)))
    os.close(one_way)
    one_way = os.open("/dev/cuse", os.O_WRONLY | os.O_NONBLOCK)
    say("O_WRONLY: read", size_of(attempt(os.read, one_way, MIN_READ)))
    say("O_WRONLY: write", attempt(os.write, one_way, reply(2)))
    os.close(one_way)
    fd = os.open("/dev/cuse", os.O_RDWR | os.O_TRUNC | os.O_CREAT | os.O_APPEND, 0o600)
    say("O_CREAT, O_TRUNC, O_APPEND", size_of(attempt(os.read, fd, MIN_READ)))
    os.close(fd)
    say("O_DIRECTORY", attempt(os.open, "/dev/cuse", os.O_RDWR | os.O_DIRECTORY))
    say("O_EXCL", attempt(os.open, "/dev/cuse", os.O_RDWR | os.O_CREAT | os.O_EXCL))
    channel.close()


def section_reads() -> None:
    """Reads of the first request with all sorts of buffers."""
    channel = Channel()
    fd = channel.fd
    for size in (0, 1, 39, 40, 100, 4096, MIN_READ - 1):
        say(f"read {size}", channel.read(size))
    say("readv, no segment", libc_call(libc.readv, fd, None, 0))
    say("readv, empty segments", attempt(os.readv, fd, [bytearray(0), bytearray(0)]))
    say("readv, in all 8191", attempt(os.readv, fd, [bytearray(4000), bytearray(4191)]))
    say("pread 100", attempt(os.pread, fd, 100, 0))
    say("pread at -1", libc_call(libc.pread, fd, bytes(1), 1, ctypes.c_long(-1)))
    say("read 8191 to nowhere", libc_call(libc.read, fd, ctypes.c_void_p(8), MIN_READ - 1))
    say("poll", poll_state(fd))
    pieces = [bytearray(1), bytearray(7), bytearray(0), bytearray(48), bytearray(MIN_READ)]
    size = attempt(os.readv, fd, pieces)
    say("readv, in all 8248", size)
    request = channel.take(b"".join(pieces)[:size])
    say("header", request.header(0, os.getpid()))
    major, minor, unused, flags = struct.unpack("=IIII", request.body)
    say("CUSE_INIT", f"major {major} minor>=11 {minor >= 11} unused {unused} flag {flags & 1}")
    say("poll", poll_state(fd))
    for size in (0, MIN_READ - 1, MIN_READ, HUGE):
        say(f"read {size}", channel.read(size))
    say("pread", attempt(os.pread, fd, MIN_READ, 5))
    say("read to nowhere", libc_call(libc.read, fd, ctypes.c_void_p(8), MIN_READ))
    channel.close()
    channel = Channel()
    say("pread of the first", size_of(attempt(os.pread, channel.fd, MIN_READ, 12345)))
    channel.close()


def section_faulty_reads() -> None:
    """What becomes of CUSE_INIT when there is no memory to read it into."""
    for name, room in (("nowhere", 0), ("39 bytes", 39), ("40 bytes", 40), ("55 bytes", 55)):
        channel = Channel()
        address = ctypes.c_void_p(edge() - room)
        say(f"read into {name}", libc_call(libc.read, channel.fd, address, MIN_READ))
        say("poll", poll_state(channel.fd))
        say("read", channel.read())
        say("write", channel.write(reply(2, init_out(b"DEVNAME=misuse\0"))))
        channel.close()
    channel = Channel()
    address = ctypes.c_void_p(edge() - 56)
    say("read into 56 bytes", libc_call(libc.read, channel.fd, address, MIN_READ))
    say("poll", poll_state(channel.fd))
    channel.close()


def section_early_writes() -> None:
    """Writes before anything has been read, and then before CUSE_INIT is answered."""
    channel = Channel()
    for taken in (False, True):
        if taken:
            channel.next()
            say("now", "CUSE_INIT is read")
        for size in (0, 1, 15):
            say(f"write {size} bytes", channel.write(reply(2)[:size]))
        say("writev, no segment", libc_call(libc.writev, channel.fd, None, 0))
        say("len too short", channel.write(reply(2, b"", 0, 15)))
        say("len too long", channel.write(reply(2, b"", 0, 17)))
        say("len 0", channel.write(reply(2, b"", 0, 0)))
        say("more than len", channel.write(reply(2, b"more", 0, 16)))
        for error in (1, 38, 512, -512, -513, -1000, -1001, -(1 << 31), (1 << 31) - 1):
            known, unknown = (channel.write(reply(unique, b"", error)) for unique in (2, 1234))
            say(f"error {error}", f"{known}, unknown {unknown}")
        for unique in (1, 3, 4, 5, 1234, (1 << 64) - 1):
            if unique == 3 and taken:
                continue
            say(f"unique {unique}", channel.write(reply(unique, b"", -5)))
        say("unknown, with payload", channel.write(reply(1234, b"x" * 100)))
        if not taken:
            say("unique 2", channel.write(reply(2, init_out(b"DEVNAME=misuse\0"))))
        say("write from nowhere", libc_call(libc.write, channel.fd, ctypes.c_void_p(8), 16))
        say("15 bytes from nowhere", libc_call(libc.write, channel.fd, ctypes.c_void_p(8), 15))
        say("half a header", write_up_to_edge(channel.fd, reply(2), 8))
        say("no payload, bad len", write_up_to_edge(channel.fd, reply(2, bytes(72), 0, 9), 16))
        say("no payload, unknown", write_up_to_edge(channel.fd, reply(1234, bytes(72)), 16))
        say("no payload, bad error", write_up_to_edge(channel.fd, reply(2, bytes(72), -512), 16))
        say("no payload, notification", write_up_to_edge(channel.fd, reply(0, bytes(8), 1), 16))
        say("poll", poll_state(channel.fd))
    say("read", channel.read())
    channel.close()


def section_inits() -> None:
    """Answers to CUSE_INIT, and what the channel is after them."""
    name = b"DEVNAME=misuse-init\0"
    good = init_out(name)
    answers: list[tuple[str, bytes, int]] = [
        ("nothing", b"", 0),
        ("error", b"", -5),
        ("error -511", b"", -511),
        ("error with payload", good, -5),
        ("no structure", good[:32], 0),
        ("71 bytes", good[:71], 0),
        ("no info", good[:72], 0),
        ("good", good, 0),
        ("4096 bytes of info", init_out(name + bytes(4096 - len(name))), 0),
        ("4097 bytes of info", init_out(name + bytes(4097 - len(name))), 0),
        ("major 6", init_out(name, major=6), 0),
        ("major 8", init_out(name, major=8), 0),
        ("minor 10", init_out(name, minor=10), 0),
        ("minor 11", init_out(name, minor=11), 0),
        ("minor 99", init_out(name, minor=99), 0),
        ("all flags", init_out(name, flags=0xFFFC), 0),
        ("no NUL", init_out(name[:-1]), 0),
        ("NULs before", init_out(b"\0\0\0" + name), 0),
        ("only NULs", init_out(bytes(10)), 0),
        ("other key", init_out(b"DEVMODE=0666\0"), 0),
        ("other key too", init_out(b"OTHER=1\0" + name + b"MORE\0"), 0),
        ("lower case", init_out(b"devname=misuse-init\0"), 0),
        ("empty name", init_out(b"DEVNAME=\0"), 0),
        ("no equals sign", init_out(b"DEVNAME\0"), 0),
        ("blank name", init_out(b"DEVNAME= \t \0"), 0),
        ("empty key", init_out(b"=misuse-init\0" + name), 0),
        ("blank key", init_out(b"  =misuse-init\0" + name), 0),
        ("white space", init_out(b" \tDEVNAME \n=  misuse-init\n\0"), 0),
        ("two names", init_out(b"DEVNAME=misuse-other\0" + name), 0),
        ("two names, one empty", init_out(name + b"DEVNAME=\0"), 0),
        ("no NUL after two", init_out(name + b"OTHER=1"), 0),
        ("equals sign in name", init_out(b"DEVNAME=misuse-init=1\0"), 0),
        ("directory", init_out(b"DEVNAME=misuse/init\0"), 0),
        ("spaces in name", init_out(b"DEVNAME=misuse init\0"), 0),
        ("64 bytes of name", init_out(b"DEVNAME=" + b"n" * 64 + b"\0"), 0),
        ("65 bytes of name", init_out(b"DEVNAME=" + b"n" * 65 + b"\0"), 0),
        ("200 bytes of name", init_out(b"DEVNAME=" + b"n" * 200 + b"\0"), 0),
        ("number 240:7", init_out(name, device=(240, 7)), 0),
        ("number 0:7", init_out(name, device=(0, 7)), 0),
        ("number 511:7", init_out(name, device=(511, 7)), 0),
        ("number 512:7", init_out(name, device=(512, 7)), 0),
        ("number 5000:7", init_out(name, device=(5000, 7)), 0),
        ("number 1:3, of null", init_out(name, device=(1, 3)), 0),
        ("minor 1048575", init_out(name, device=(240, 1048575)), 0),
        ("max_read, max_write 0", init_out(name, max_read=0, max_write=0), 0),
        ("max_write 1 MiB", init_out(name, max_write=1 << 20), 0),
        ("max_write 4 GiB", init_out(name, max_write=0xFFFFFFFF), 0),
        ("max_write 1 MiB, bad info", init_out(b"x", max_write=1 << 20), 0),
        ("max_write 1 MiB, minor 10", init_out(name, minor=10, max_write=1 << 20), 0),
    ]
    for what, payload, error in answers:
        channel = Channel()
        before = set(walk("/dev"))
        request = channel.next()
        result = channel.write(reply(request.unique, payload, error))
        made = [node(path) for path in sorted(set(walk("/dev")) - before)]
        say(what, f"{result}, {' '.join(made) or 'no device'}")
        reads = [channel.read(size) for size in (MIN_READ, BIG + 79, BIG + 80, HUGE)]
        again = channel.write(reply(request.unique, payload, error))
        unknown = channel.write(reply(1234))
        notification = channel.write(reply(0, bytes(8), 1))
        writes = f"write {again} {unknown} {notification}"
        say("    then", f"read {' '.join(reads)} {writes} poll: {poll_state(channel.fd)}")
        channel.close()


def node(path: str) -> str:
    """A device's path, number and mode."""
    state = os.stat(path)
    number = (os.major(state.st_rdev), os.minor(state.st_rdev))
    major = "dynamic" if number[0] in DYNAMIC else number[0]
    name = path if len(path) < 40 else f"{path[:10]}... ({len(path) - 5} bytes)"
    return f"{stat.filemode(state.st_mode)} {major}:{number[1]} {name}"


DYNAMIC = {*range(234, 255), *range(384, 512)} - {240, 511}


def walk(top: str) -> list[str]:
    return [
        os.path.join(directory, name)
        for directory, _, names in os.walk(top)
        for name in names
        if "/pts" not in directory and "/shm" not in directory and "/char" not in directory
    ]


def section_waiting() -> None:
    """A thread that waits in read while another one spoils the channel."""
    channel = Channel(0)
    request = channel.take(os.read(channel.fd, HUGE))
    client = Client(client_read, channel.fd, HUGE)
    payload = init_out(b"no NUL")
    say("write", channel.write(reply(request.unique, payload)))
    say("the waiting read", client.result)
    say("a blocking read", channel.read())
    channel.close()
    channel = Channel(0)
    os.set_blocking(channel.fd, False)
    channel.next()
    say("fcntl makes it non-blocking", channel.read())
    channel.close()
