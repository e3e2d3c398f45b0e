"""Sections about requests and the answers to them."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from typing import Any

from .kit import (
    IOCTL,
    MIN_READ,
    OPEN,
    OPENED,
    READ,
    RELEASE,
    WRITE,
    Client,
    attempt,
    client_ioctl,
    client_read,
    client_write,
    command,
    device,
    edge,
    libc,
    libc_call,
    opened,
    poll_state,
    released,
    reply,
    say,
    size_of,
    write_up_to_edge,
)


def section_requests() -> None:
    """The requests of all calls, in order, with headers and bodies."""
    channel, path = device()

    def shown(client: Client, opcode: int, payload: bytes = b"") -> None:
        request = channel.next()
        assert request.opcode == opcode
        say("request", request.header(channel.before, client.tid))
        say("body", request.content())
        say("answer", channel.answer(payload))

    client = Client(os.open, path, os.O_RDWR | os.O_APPEND | os.O_TRUNC | os.O_CREAT)
    shown(client, OPEN, OPENED)
    fd = client.result
    for size in (0, 1, 10, 4096):
        client = Client(client_read, fd, size)
        if size:
            shown(client, READ, b"r" * (size // 2))
        say(f"read {size}", size_of(client.result))
    client = Client(client_write, fd, b"written")
    shown(client, WRITE, struct.pack("=II", 7, 0))
    say("write", client.result)
    client = Client(os.pread, fd, 5, 1000)
    shown(client, READ, b"p")
    say("pread", client.result)
    client = Client(os.pwrite, fd, b"positioned", 1000)
    shown(client, WRITE, struct.pack("=II", 3, 0))
    say("pwrite", client.result)
    os.set_blocking(fd, False)
    client = Client(client_read, fd, 6)
    shown(client, READ)
    say("read after F_SETFL", client.result)
    copy = os.dup(fd)
    os.close(fd)
    client = Client(client_read, copy, 6)
    shown(client, READ, b"copy")
    say("read of the copy", client.result)
    client = Client(os.close, copy)
    shown(client, RELEASE)
    say("close", client.result)
    for name, flags in (
        ("O_RDONLY", os.O_RDONLY), ("O_WRONLY", os.O_WRONLY),
        ("O_NONBLOCK", os.O_RDWR | os.O_NONBLOCK), ("O_SYNC", os.O_RDWR | os.O_SYNC),
        ("O_CLOEXEC", os.O_RDWR | os.O_CLOEXEC), ("O_NOCTTY", os.O_RDWR | os.O_NOCTTY),
        ("O_NOFOLLOW", os.O_RDWR | os.O_NOFOLLOW),
    ):  # fmt: skip
        client = Client(os.open, path, flags)
        shown(client, OPEN, OPENED)
        say(name, isinstance(client.result, int))
        client = Client(os.close, client.result)
        shown(client, RELEASE)
    channel.close()


def section_answers() -> None:
    """Bad answers to each kind of request: what the server hears, what the client gets."""
    channel, path = device()
    fd = opened(channel, path)
    written = struct.pack("=II", 4, 0)
    done = struct.pack("=iIII", 3, 0, 0, 0)
    calls: list[tuple[str, int, bytes, Callable[..., Any], Any]] = [
        ("OPEN", OPEN, OPENED, os.open, (path, os.O_RDWR)),
        ("READ", READ, b"data", client_read, (fd, 4)),
        ("WRITE", WRITE, written, client_write, (fd, b"data")),
        ("IOCTL", IOCTL, done, client_ioctl, (fd, command(0, 0), 0)),
        ("IOCTL _IOR 8", IOCTL, done + bytes(8), client_ioctl, (fd, command(2, 8), 8)),
    ]
    for name, opcode, good, function, args in calls:
        answers: list[tuple[str, bytes, int]] = [
            ("good", good, 0),
            ("one byte short", good[:-1], 0),
            ("one byte long", good + b"x", 0),
            ("empty", b"", 0),
            ("4096 bytes", bytes(4096), 0),
            ("EPERM", b"", -1),
            ("EPERM with payload", good, -1),
            ("EPERM with a byte", b"x", -1),
            ("ENOSYS", b"", -38 if opcode != OPEN else -1),
            ("-511", b"", -511),
        ]
        for what, payload, error in answers:
            client = Client(function, *args)
            request = channel.next()
            assert request.opcode == opcode
            for wrong in (1, 512, -512, -1000):
                assert channel.answer(payload, wrong) == "EINVAL"
            assert channel.write(reply(request.unique, payload, 0, 1)) == "EINVAL"
            first, second = channel.answer(payload, error), channel.answer(payload, error)
            result = client.result
            if opcode == OPEN and isinstance(result, int):
                released(channel, result)
                result = "opened"
            say(f"{name}, {what}", f"{first}, twice {second}, client {result}")
    for name, count in (("fewer", 2), ("none", 0), ("more than given", 5), ("2**31", 1 << 31)):
        client = Client(client_write, fd, b"data")
        channel.next()
        say(f"WRITE, {name}", channel.answer(struct.pack("=II", count, 0)))
        say(f"WRITE, {name}, client", client.result)
    for name, result in (("-5", -5), ("2**31 - 1", (1 << 31) - 1), ("-511", -511)):
        client = Client(client_ioctl, fd, command(0, 0), 0)
        channel.next()
        say(f"IOCTL, result {name}", channel.answer(struct.pack("=iIII", result, 0, 0, 0)))
        say(f"IOCTL, result {name}, client", client.result)
    released(channel, fd)
    for name, payload, error in (
        ("good", b"", 0), ("error", b"", -5), ("payload", b"x", 0), ("error, payload", b"x", -5),
    ):  # fmt: skip
        fd = opened(channel, path)
        client = Client(os.close, fd)
        assert channel.next().opcode == RELEASE
        say(f"RELEASE, {name}", channel.answer(payload, error))
        say(f"RELEASE, {name}, twice", channel.answer(payload, error))
        say(f"RELEASE, {name}, client", client.result)
    channel.close()


def section_order() -> None:
    """Answers out of order, and to requests that nobody has read."""
    channel, path = device()
    fd = opened(channel, path)
    clients = []
    requests = []
    for size in (1, 2):
        clients.append(Client(client_read, fd, size))
        requests.append(channel.next())
    sizes = [struct.unpack_from("=I", request.body, 16)[0] for request in requests]
    say("the second has", f"+{requests[1].unique - requests[0].unique}")
    for request, size in reversed(list(zip(requests, sizes, strict=True))):
        say("answer", channel.write(reply(request.unique, b"x" * size)))
    say("clients", [client.result for client in clients])
    client = Client(client_read, fd, 3)
    channel.wait()
    say("poll", poll_state(channel.fd))
    unread = requests[1].unique + 2
    say("answer before reading", channel.write(reply(unread, b"abc")))
    request = channel.next()
    say("poll", poll_state(channel.fd))
    say("it is that one", request.unique == unread)
    say("answer", channel.write(reply(unread, b"abc")))
    say("client", client.result)
    say("answer to an older one", channel.write(reply(2)))
    say("its interrupt's", channel.write(reply(3)))
    released(channel, fd)
    channel.close()


def section_buffers() -> None:
    """Requests that do not fit the buffer, or cannot be stored in it."""
    channel, path = device(flags=0, max_read=4096, max_write=4096)
    fd = opened(channel, path)
    for size in (0, 100, MIN_READ - 1, MIN_READ):
        say(f"read {size}", channel.read(size))
    client = Client(client_ioctl, fd, command(1, 16000), 16000)
    channel.wait()
    say("poll", poll_state(channel.fd))
    say("too small for any", channel.read(MIN_READ - 1))
    say("too small for this", channel.read(MIN_READ))
    say("client", client.result)
    client = Client(client_ioctl, fd, command(1, 16000), 16000)
    channel.wait()
    say("one byte too small", channel.read(72 + 16000 - 1))
    say("client", client.result)
    client = Client(client_ioctl, fd, command(1, 16000), 16000)
    request = channel.next(72 + 16000)
    say("just right", len(request.message))
    channel.answer(struct.pack("=iIII", 0, 0, 0, 0))
    say("client", client.result)
    # One that does not fit, and one behind it that does.
    client = Client(client_ioctl, fd, command(1, 16000), 16000)
    channel.wait()
    second = Client(client_read, fd, 3)
    waits_in(second, 0)
    request = channel.next(MIN_READ)
    say("the next that fits", request.header(channel.before, second.tid))
    channel.answer(b"abc")
    say("clients", (client.result, second.result))
    for name, room in (("nowhere", 0), ("the header only", 40), ("all but a byte", 79)):
        client = Client(client_read, fd, 3)
        channel.wait()
        address = ctypes.c_void_p(edge() - room)
        say(f"read into {name}", libc_call(libc.read, channel.fd, address, MIN_READ))
        say("client", client.result)
        say("poll", poll_state(channel.fd))
    client = Client(client_read, fd, 3)
    channel.wait()
    address = ctypes.c_void_p(edge() - 80)
    say("read into 80 bytes", libc_call(libc.read, channel.fd, address, MIN_READ))
    request = channel.take(ctypes.string_at(address.value or 0, 80))
    say("answer", channel.answer(b"abc"))
    say("client", client.result)
    pieces = [bytearray(3), bytearray(0), bytearray(75), bytearray(1), bytearray(MIN_READ)]
    client = Client(client_read, fd, 3)
    channel.wait()
    say("readv", attempt(os.readv, channel.fd, pieces))
    request = channel.take(b"".join(pieces)[:80])
    answer = reply(request.unique, b"xyz")
    say("writev", attempt(os.writev, channel.fd, [answer[:5], b"", answer[5:17], answer[17:]]))
    say("client", client.result)
    for name, answer, readable in (
        ("no header", reply(0, b"abc"), 8),
        ("no payload", reply(0, b"abc"), 16),
        ("half a payload", reply(0, b"abc"), 17),
        ("no payload, error", reply(0, b"abc", -5), 16),
        ("no payload, too long", reply(0, b"abcd"), 16),
    ):
        client = Client(client_read, fd, 3)
        request = channel.next()
        answer = answer[:8] + struct.pack("=Q", request.unique) + answer[16:]
        say(f"write, {name}", write_up_to_edge(channel.fd, answer, readable))
        say(f"write, {name}, again", channel.answer(b"yes"))
        say("client", client.result)
    client = Client(client_write, fd, b"data")
    request = channel.next()
    answer = reply(request.unique, struct.pack("=II", 4, 0))
    say("write, structure cut", write_up_to_edge(channel.fd, answer, 20))
    say("again", channel.write(answer))
    say("client", client.result)
    released(channel, fd)
    channel.close()


def waits_in(client: Client, number: int) -> None:
    """Wait until the thread is in a system call of this number."""
    while client.tid == 0:
        os.sched_yield()
    while True:
        with open(f"/proc/self/task/{client.tid}/syscall") as file:
            if file.read().startswith(f"{number} "):
                return


def section_no_open() -> None:
    """A server that knows no OPEN."""
    channel, path = device()
    client = Client(os.open, path, os.O_RDWR)
    channel.serve(OPEN, b"", -errno.ENOSYS)
    say("open", isinstance(client.result, int) or client.result)
    if isinstance(client.result, int):
        fd = client.result
        client = Client(client_read, fd, 3)
        request = channel.next()
        say("read", request.content())
        channel.answer(b"abc")
        say("client", client.result)
        client = Client(os.close, fd)
        say("close", client.result)
        say("poll", poll_state(channel.fd))
        client = Client(os.open, path, os.O_RDWR)
        say("open again", isinstance(client.result, int))
    channel.close()


def section_interrupt() -> None:
    """Signals to a client, and answers to INTERRUPT."""
    channel, path = device()
    fd = opened(channel, path)
    client = Client(client_read, fd, 3)
    request = channel.next()
    say("before: EAGAIN", channel.write(reply(request.unique + 1, b"", -errno.EAGAIN)))
    say("before: none", channel.write(reply(request.unique + 1)))
    say("before: payload", channel.write(reply(request.unique + 1, b"x")))
    client.interrupt()
    interrupt = channel.next()
    say("header", interrupt.header(request.unique, client.tid))
    (about,) = struct.unpack("=Q", interrupt.body)
    say("it is about the request", about == request.unique)
    say("poll", poll_state(channel.fd))
    say("payload", channel.write(reply(interrupt.unique, b"x")))
    say("none", channel.write(reply(interrupt.unique)))
    say("EINTR", channel.write(reply(interrupt.unique, b"", -errno.EINTR)))
    say("poll", poll_state(channel.fd))
    say("EAGAIN", channel.write(reply(interrupt.unique, b"", -errno.EAGAIN)))
    say("poll", poll_state(channel.fd))
    say("EAGAIN again", channel.write(reply(interrupt.unique, b"", -errno.EAGAIN)))
    say("header", channel.next().header(request.unique, client.tid))
    say("read", channel.read())
    say("EAGAIN", channel.write(reply(interrupt.unique, b"", -errno.EAGAIN)))
    say("the request itself", channel.write(reply(request.unique, b"", -errno.EINTR)))
    say("client", client.result)
    say("its interrupt is gone", channel.read())
    say("EAGAIN", channel.write(reply(interrupt.unique, b"", -errno.EAGAIN)))
    # An INTERRUPT comes before requests that are older.
    client = Client(client_read, fd, 3)
    request = channel.next()
    client.interrupt()
    interrupt = channel.next()
    second = Client(client_read, fd, 4)
    channel.wait()
    say("EAGAIN", channel.write(reply(interrupt.unique, b"", -errno.EAGAIN)))
    say("first", channel.next().header(request.unique, client.tid))
    say("data", channel.write(reply(request.unique, b"abc")))
    say("client", client.result)
    channel.serve(READ, b"four")
    say("second", second.result)
    # ENOSYS: no more of them, but for the requests that are under way.
    client = Client(client_read, fd, 3)
    request = channel.next()
    say("ENOSYS", channel.write(reply(request.unique + 1, b"", -errno.ENOSYS)))
    client.interrupt()
    say("header", channel.next().header(request.unique, client.tid))
    say("data", channel.write(reply(request.unique, b"abc")))
    say("client", client.result)
    client = Client(client_read, fd, 3)
    request = channel.next()
    client.interrupt()
    second = Client(client_read, fd, 4)
    say("afterwards", channel.next().header(request.unique, second.tid))
    say("EAGAIN", channel.write(reply(request.unique + 1, b"", -errno.EAGAIN)))
    say("data", channel.answer(b"four"))
    say("data", channel.write(reply(request.unique, b"abc")))
    say("client", client.result)
    released(channel, fd)
    channel.close()
